"""The network of every mixture-of-experts policy: encoded rows in, Gaussian mixtures out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.blocks import ResidualBlock, silu, zero_
from skvdd.nn.gaussian_mixture import GaussianMixture
from skvdd.nn.layout import RowLayout
from skvdd.nn.network import BuildsEncoder, PolicyNetwork, build_encoder

GATING_SIZE = 64
LEAST_ABOVE_FLOOR = 0.05  # of a standard deviation at the start, where softplus has a gradient


class MixtureNetwork(PolicyNetwork):
    """Encoder, experts' head and gating head (figure 5 of the VDD paper).

    The experts share a residual trunk and one output layer.

    Parameters
    ----------
    layout : RowLayout
        Columns of a row.
    n_actions : int
        Numbers ``d_a`` in an action.
    encoder : Encoder
        Builds the encoder, see `skvdd.encoders`.
    n_experts : int
        Number ``K`` of experts.
    hidden_size, n_layers : int
        Width and number of layers of the trunk.
    covariance : {"full", "diag"}
        Shape of the experts' covariances.
    scale_floor : float
        Lowest diagonal entry of a Cholesky factor, in standardized actions.
    detach_gating : bool
        Whether the gating sends no gradient into the encoder. In VDD it assigns the experts,
        and does not shape them; maximum likelihood needs the gradient.
    encoder_frozen : bool
        Whether the encoder is a teacher's, which is not trained.

    Raises
    ------
    ValueError
        If the floor is not positive and finite.
    """

    def __init__(
        self,
        layout: RowLayout,
        n_actions: int,
        encoder: BuildsEncoder,
        n_experts: int,
        hidden_size: int,
        n_layers: int,
        covariance: str,
        scale_floor: float,
        detach_gating: bool,
        encoder_frozen: bool = False,
    ) -> None:
        super().__init__(
            layout,
            n_actions,
            encoder=encoder,
            n_experts=n_experts,
            hidden_size=hidden_size,
            n_layers=n_layers,
            covariance=covariance,
            scale_floor=float(scale_floor),
            detach_gating=detach_gating,
            encoder_frozen=encoder_frozen,
        )
        if not 0.0 < scale_floor < math.inf:
            raise ValueError(f"scale_floor must be positive and finite, got {scale_floor}.")
        self.n_experts, self.scale_floor = n_experts, float(scale_floor)
        self.detach_gating, self.encoder_frozen = detach_gating, encoder_frozen
        side = 0 if covariance == "diag" else n_actions  # no correlations, no pairs of actions
        rows, columns = torch.tril_indices(side, side, offset=-1)
        self.tril_rows: Tensor
        self.tril_columns: Tensor
        self.register_buffer("tril_rows", rows, persistent=False)
        self.register_buffer("tril_columns", columns, persistent=False)
        self.encoder, n_features = build_encoder(encoder, layout)
        self.encoder.requires_grad_(not encoder_frozen)
        self.trunk = nn.Sequential(
            nn.Linear(n_features, hidden_size),
            *(ResidualBlock(hidden_size) for _ in range(n_layers)),
            nn.LayerNorm(hidden_size),
        )
        self.output = zero_(nn.Linear(hidden_size, n_experts * (2 * n_actions + len(rows))))
        self.gating = nn.Sequential(
            nn.Linear(n_features, GATING_SIZE),
            nn.SiLU(),
            nn.Linear(GATING_SIZE, GATING_SIZE),
            nn.SiLU(),
            zero_(nn.Linear(GATING_SIZE, n_experts)),
        )

    def train(self, mode: bool = True) -> MixtureNetwork:
        """Set the training mode of all that is trained."""
        super().train(mode)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    def forward(self, rows: Tensor) -> GaussianMixture:
        """Map standardized rows (n, T * d + g) to mixtures of standardized actions."""
        return self.mixture(self.encoder(rows))

    def raw_mixture(self, rows: Tensor) -> GaussianMixture:
        """Map raw rows (n, T * d + g), float64, to mixtures of raw actions, float64."""
        mixture = self(self.row_normalization(rows)).to(torch.float64)
        log_gate = torch.log_softmax(mixture.log_gate, dim=1)  # sums to one in float64 too
        units = self.action_normalization
        return gm.affine(
            GaussianMixture(log_gate, mixture.mean, mixture.scale_tril), units.mean, units.scale
        )

    def mixture(self, features: Tensor) -> GaussianMixture:
        """Map encoded rows (n, h) to their mixtures."""
        mean, scale_tril = self.experts(features)
        return GaussianMixture(self.log_gate(features), mean, scale_tril)

    def experts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return means (n, K, d_a) and Cholesky factors (n, K, d_a, d_a)."""
        values = self.output(silu(self.trunk(features)))
        values = values.view(features.shape[0], self.n_experts, -1)
        mean, diagonal, lower = values.tensor_split((self.n_actions, 2 * self.n_actions), dim=-1)
        scale_tril = torch.diag_embed(nn.functional.softplus(diagonal) + self.scale_floor)
        scale_tril[..., self.tril_rows, self.tril_columns] = lower
        return mean, scale_tril

    def log_gate(self, features: Tensor) -> Tensor:
        """Return the log-probabilities of the experts (n, K)."""
        features = features.detach() if self.detach_gating else features
        return torch.log_softmax(self.gating(features), dim=-1)

    def expert_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over what the experts are made of: encoder, where it is trained, and heads."""
        for module in (self.encoder, self.trunk, self.output):
            yield from (p for p in module.parameters() if p.requires_grad)

    @torch.no_grad()
    def place_experts(self, means: Tensor, scales: Tensor) -> None:
        """Start the experts at means (K, d_a), with standard deviations (K,), in every state."""
        bias = self.output.bias.new_zeros(
            self.n_experts, self.output.out_features // self.n_experts
        )
        bias[:, : self.n_actions] = means
        # Close above the floor the softplus would be flat, and an expert could never grow.
        above = (scales - self.scale_floor).clamp(min=LEAST_ABOVE_FLOOR)
        inverse_softplus = above + (-torch.expm1(-above)).log()
        bias[:, self.n_actions : 2 * self.n_actions] = inverse_softplus[:, None]
        self.output.bias.copy_(bias.flatten())
