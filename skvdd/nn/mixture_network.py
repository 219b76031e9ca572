"""The network of every mixture-of-experts policy: an encoded state in, a Gaussian mixture out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from skvdd.nn.blocks import ResidualBlock, silu, zero_
from skvdd.nn.encoder import build_encoder
from skvdd.nn.gaussian_mixture import GaussianMixture

GATING_SIZE = 64


class MixtureNetwork(nn.Module):
    """Encoder, experts' head and gating head (figure 5 of the VDD paper).

    The experts share a residual trunk and one output layer. The gating reads the encoder's
    features but sends no gradient into them: it has to judge the experts, not to shape them.

    Parameters
    ----------
    encoder : dict
        Arguments of `skvdd.nn.encoder.build_encoder`.
    n_experts, n_actions : int
        Number ``K`` of experts and dimension ``d_a`` of an action.
    hidden_size, n_layers : int
        Width and number of layers of the trunk.
    covariance : {"full", "diag"}
        Shape of the experts' covariances.
    learn_gating : bool
        Without it every expert has probability ``1 / K`` everywhere.
    scale_floor : float, default=1e-3
        Lowest diagonal entry of a Cholesky factor, in standardised actions.

    Raises
    ------
    ValueError
        If the floor is not positive and finite.
    """

    def __init__(
        self,
        encoder: dict[str, Any],
        n_experts: int,
        n_actions: int,
        hidden_size: int,
        n_layers: int,
        covariance: str,
        learn_gating: bool,
        scale_floor: float = 1e-3,  # what networks had before they could be told
    ) -> None:
        super().__init__()
        if not 0.0 < scale_floor < math.inf:
            raise ValueError(f"scale_floor must be positive and finite, got {scale_floor}.")
        self.config = {
            "encoder": encoder,
            "n_experts": n_experts,
            "n_actions": n_actions,
            "hidden_size": hidden_size,
            "n_layers": n_layers,
            "covariance": covariance,
            "learn_gating": learn_gating,
            "scale_floor": float(scale_floor),
        }
        self.n_experts, self.n_actions = n_experts, n_actions
        self.learn_gating = learn_gating
        self.scale_floor = scale_floor
        side = 0 if covariance == "diag" else n_actions  # no correlations, no pairs of actions
        rows, columns = torch.tril_indices(side, side, offset=-1)
        self.tril_rows: Tensor
        self.tril_columns: Tensor
        self.register_buffer("tril_rows", rows, persistent=False)
        self.register_buffer("tril_columns", columns, persistent=False)
        self.encoder = build_encoder(**encoder)
        self.trunk = nn.Sequential(
            nn.Linear(encoder["hidden_size"], hidden_size),
            *(ResidualBlock(hidden_size) for _ in range(n_layers)),
            nn.LayerNorm(hidden_size),
        )
        self.output = zero_(nn.Linear(hidden_size, n_experts * (2 * n_actions + len(rows))))
        self.gating = nn.Sequential(
            nn.Linear(encoder["hidden_size"], GATING_SIZE),
            nn.SiLU(),
            nn.Linear(GATING_SIZE, GATING_SIZE),
            nn.SiLU(),
            zero_(nn.Linear(GATING_SIZE, n_experts)),
        )

    def forward(self, states: Tensor) -> GaussianMixture:
        """Map standardised state windows (n, T, d) to their mixtures."""
        return self.mixture(self.encoder(states))

    def mixture(self, context: Tensor) -> GaussianMixture:
        """Map encoded states (n, h) to their mixtures."""
        mean, scale_tril = self.experts(context)
        return GaussianMixture(self.log_gate(context), mean, scale_tril)

    def experts(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return means (n, K, d_a) and Cholesky factors (n, K, d_a, d_a)."""
        values = self.output(silu(self.trunk(context)))
        values = values.view(context.shape[0], self.n_experts, -1)
        mean, diagonal, lower = values.tensor_split((self.n_actions, 2 * self.n_actions), dim=-1)
        scale_tril = torch.diag_embed(nn.functional.softplus(diagonal) + self.scale_floor)
        scale_tril[..., self.tril_rows, self.tril_columns] = lower
        return mean, scale_tril

    def log_gate(self, context: Tensor) -> Tensor:
        """Return the log-probabilities of the experts (n, K)."""
        if not self.learn_gating:
            return context.new_full((context.shape[0], self.n_experts), -math.log(self.n_experts))
        return torch.log_softmax(self.gating(context.detach()), dim=-1)

    def expert_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over what the experts are made of: encoder, where it is trained, and heads."""
        for module in (self.encoder, self.trunk, self.output):
            yield from (p for p in module.parameters() if p.requires_grad)

    @torch.no_grad()
    def place_experts(self, means: Tensor, scales: Tensor) -> None:
        """Start the experts at means (K, d_a), with standard deviations (K,), in every state."""
        bias = torch.zeros(self.n_experts, self.output.out_features // self.n_experts)
        bias[:, : self.n_actions] = means
        above = (scales - self.scale_floor).clamp(min=1e-6)
        inverse_softplus = above + (-torch.expm1(-above)).log()
        bias[:, self.n_actions : 2 * self.n_actions] = inverse_softplus[:, None]
        self.output.bias.copy_(bias.flatten())
