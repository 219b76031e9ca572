"""Variants of `skvdd.VDDDistiller` that only ablations need (figure 3 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

from skvdd import VDDDistiller
from skvdd.training import Fit


class LowestLevel(VDDDistiller):
    """VDD at the noise level ``noise_min`` alone."""

    def _draw_levels(self, uniform: Tensor, progress: float | Tensor) -> Tensor:
        return torch.full_like(uniform, self.noise_min)


class HighestLevel(VDDDistiller):
    """VDD at the noise level ``noise_max`` alone."""

    def _draw_levels(self, uniform: Tensor, progress: float | Tensor) -> Tensor:
        return torch.full_like(uniform, self.noise_max)


class UniformGating(VDDDistiller):
    """VDD whose gating is not learned: all experts are equally probable in every state."""

    def _initialize(self, fit: Fit) -> None:
        super()._initialize(fit)
        fit.network.gating.requires_grad_(False)  # type: ignore[operator, union-attr]
