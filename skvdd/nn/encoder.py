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
    n_goals: int = 0,
) -> nn.Module:
    """Return an encoder that maps rows (n, T * d + g) to contexts (n, h).

    A row is a state window, oldest state first, then a goal of ``g`` numbers, where there is one.

    Parameters
    ----------
    kind : {"mlp", "transformer"}
        Residual multilayer perceptron over the row, or causal transformer over its states, the
        goal a token before them.
    n_states, window_size : int
        Dimension ``d`` of a state and number ``T`` of states in a window.
    hidden_size, n_layers, n_heads : int
        Width ``h`` of the context, number of layers, attention heads (transformer only).
    n_goals : int, default=0
        Dimension ``g`` of the goal; 0 for none.

    Returns
    -------
    torch.nn.Module
        The encoder, with freshly drawn weights.
    """
    if kind == "mlp":
        return MLPEncoder(n_states * window_size + n_goals, hidden_size, n_layers)
    return TransformerEncoder(n_states, window_size, hidden_size, n_layers, n_heads, n_goals)


class MLPEncoder(nn.Module):
    """A residual multilayer perceptron over the row.

    Parameters
    ----------
    n_inputs : int
        Length ``T * d + g`` of a row.
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
        """Map rows (n, T * d + g), or windows (n, T, d), to contexts (n, h)."""
        return self.layers(states.flatten(1))


class TransformerEncoder(nn.Module):
    """A causal transformer over the states of a window; its last token is the context.

    Parameters
    ----------
    n_states, window_size : int
        Dimension of a state and number of states in a window.
    hidden_size, n_layers, n_heads : int
        Width of a token, number of blocks, attention heads.
    n_goals : int, default=0
        Dimension of the goal, which becomes the first token.
    """

    def __init__(
        self,
        n_states: int,
        window_size: int,
        hidden_size: int,
        n_layers: int,
        n_heads: int,
        n_goals: int = 0,
    ) -> None:
        super().__init__()
        self.n_goals = n_goals
        self.goal_embedding = nn.Linear(n_goals, hidden_size) if n_goals else None
        self.embedding = nn.Linear(n_states, hidden_size)
        self.position = nn.Parameter(0.02 * torch.randn(window_size, hidden_size))
        blocks = [CausalAttentionBlock(hidden_size, n_heads) for _ in range(n_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """Map rows (n, T * d + g), or windows (n, T, d), to contexts (n, h)."""
        rows = states.flatten(1)
        windows = rows[:, : rows.shape[1] - self.n_goals]
        tokens = self.embedding(windows.unflatten(1, (len(self.position), -1))) + self.position
        if self.goal_embedding is not None:
            goal = self.goal_embedding(rows[:, None, windows.shape[1] :])
            tokens = torch.cat([goal, tokens], dim=1)
        for block in self.blocks:  # nobody reads what the last one would say of earlier states
            tokens = block(tokens, last_only=block is self.blocks[-1])
        return self.norm(tokens[:, -1])
