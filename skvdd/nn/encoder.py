"""Encoders of a state window: one vector per decision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skvdd.nn.blocks import CausalAttentionBlock, ResidualBlock


def build_encoder(
    kind: str,
    *,
    n_states: int,
    window_size: int,
    hidden_size: int,
    n_layers: int,
    n_heads: int,
) -> nn.Module:
    """Return an encoder that maps state windows (n, T, d) to contexts (n, h).

    Parameters
    ----------
    kind : {"mlp", "transformer"}
        Residual multilayer perceptron over the flattened window, or causal transformer over its
        states.
    n_states, window_size : int
        Dimension ``d`` of a state and number ``T`` of states in a window.
    hidden_size, n_layers, n_heads : int
        Width ``h`` of the context, number of layers, attention heads (transformer only).

    Returns
    -------
    torch.nn.Module
        The encoder, with freshly drawn weights.
    """
    if kind == "mlp":
        return MLPEncoder(n_states * window_size, hidden_size, n_layers)
    return TransformerEncoder(n_states, window_size, hidden_size, n_layers, n_heads)


class MLPEncoder(nn.Module):
    """A residual multilayer perceptron over the flattened window.

    Parameters
    ----------
    n_inputs : int
        Length ``T * d`` of a flattened window.
    hidden_size, n_layers : int
        Width and number of residual layers.
    """

    def __init__(self, n_inputs: int, hidden_size: int, n_layers: int) -> None:
        super().__init__()
        blocks = [ResidualBlock(hidden_size) for _ in range(n_layers)]
        self.layers = nn.Sequential(
            nn.Linear(n_inputs, hidden_size), *blocks, nn.LayerNorm(hidden_size)
        )

    def forward(self, states: Tensor) -> Tensor:
        """Map windows (n, T, d) to contexts (n, h)."""
        return self.layers(states.flatten(1))


class TransformerEncoder(nn.Module):
    """A causal transformer over the states of a window; its last token is the context.

    Parameters
    ----------
    n_states, window_size : int
        Dimension of a state and number of states in a window.
    hidden_size, n_layers, n_heads : int
        Width of a token, number of blocks, attention heads.
    """

    def __init__(
        self, n_states: int, window_size: int, hidden_size: int, n_layers: int, n_heads: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(n_states, hidden_size)
        self.position = nn.Parameter(0.02 * torch.randn(window_size, hidden_size))
        blocks = [CausalAttentionBlock(hidden_size, n_heads) for _ in range(n_layers)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """Map windows (n, T, d) to contexts (n, h)."""
        tokens = self.blocks(self.embedding(states) + self.position)
        return self.norm(tokens[:, -1])
