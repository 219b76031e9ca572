"""Networks that encode a row of observations: one vector of features per decision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skvdd.nn.blocks import CausalAttentionBlock, ResidualBlock
from skvdd.nn.layout import RowLayout


class ResidualMLP(nn.Module):
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

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (n, T * d + g) to features (n, h)."""
        return self.layers(rows)


class CausalTransformer(nn.Module):
    """A causal transformer over the states of a window; its last token is the feature vector.

    Parameters
    ----------
    layout : RowLayout
        Columns of a row. A goal becomes the first token.
    hidden_size, n_layers, n_heads : int
        Width of a token, number of blocks, attention heads.
    """

    def __init__(self, layout: RowLayout, hidden_size: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.layout = layout
        goal_dim = layout.goal_dim
        self.goal_embedding = nn.Linear(goal_dim, hidden_size) if goal_dim else None
        self.embedding = nn.Linear(layout.n_states, hidden_size)
        self.position = nn.Parameter(0.02 * torch.randn(layout.window_size, hidden_size))
        blocks = [CausalAttentionBlock(hidden_size, n_heads) for _ in range(n_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (n, T * d + g) to features (n, h)."""
        windows, goals = self.layout.split(rows)
        tokens = self.embedding(windows) + self.position
        if self.goal_embedding is not None:
            tokens = torch.cat([self.goal_embedding(goals)[:, None], tokens], dim=1)
        for block in self.blocks:  # the last block need answer for the last token alone
            tokens = block(tokens, last_only=block is self.blocks[-1])
        return self.norm(tokens[:, -1])
