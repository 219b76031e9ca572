"""Algorithm 1 of Zhou et al. (2024): the steps of experts and gating in one iteration.

Axes: rows ``n``, experts ``K``, samples of each expert ``v``, actions ``d_a``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skvdd.diffusion.noise import log_uniform
from skvdd.distillation.base import TeacherContexts
from skvdd.distillation.vdd import expert_loss, gating_loss, likelihood_loss, smoothed_expert_loss
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from skvdd.nn.mixture_network import MixtureNetwork
from skvdd.training.fit import Fit
from skvdd.training.loop import Loss, Update
from skvdd.training.minibatches import draw

# Actions scored by the teacher at once: the activations of its layers stay in a CPU's cache.
CACHED_ACTIONS = 1024

DrawLevels = Callable[[Tensor, float | Tensor], Tensor]


def noise_levels(
    choice: str, uniform: Tensor, progress: float | Tensor, low: float, high: float
) -> Tensor:
    """Turn uniform numbers into noise levels ``t ~ p(t)`` (section 4.3).

    Parameters
    ----------
    choice : {"loguniform", "uniform", "anneal"}
        The density, as described in `skvdd.VDDDistiller`.
    uniform : Tensor of shape (n,)
        Numbers in [0, 1).
    progress : float or Tensor of shape ()
        Fraction of training that is done.
    low, high : float
        Bounds.

    Returns
    -------
    Tensor of shape (n,)
    """
    if choice == "uniform":
        return low + (high - low) * uniform
    end: float | Tensor = high
    if choice == "anneal":
        end = low * (high / low) ** (1.0 - progress)
    return log_uniform(uniform, low, end)


class Distillation:
    """The two steps of an iteration.

    Parameters
    ----------
    fit : Fit
        With a `MixtureNetwork`, rows, actions and a teacher.
    levels : callable
        ``levels(uniform, progress)`` returns the noise levels (n,) of a step.
    objective : {"smoothed", "published"}
        Which objective the experts minimize.
    n_samples : int
        Samples ``v`` of each expert.
    likelihood_weight : float
        Weight of `likelihood_loss` beside the objective.
    weighting : {"gating", "uniform"}, default="gating"
        Weight of each expert.
    """

    def __init__(
        self,
        fit: Fit,
        *,
        levels: DrawLevels,
        objective: str,
        n_samples: int,
        likelihood_weight: float,
        weighting: str = "gating",
    ) -> None:
        self.fit, self.teacher = fit, fit.teacher
        self.network: MixtureNetwork = fit.network  # type: ignore[assignment]
        self.contexts = TeacherContexts(fit)
        # On the teacher's own encoder, features and contexts are the same.
        self.shares_encoder = self.network.encoder_frozen and self.contexts.same_rows
        self.levels, self.objective, self.weighting = levels, objective, weighting
        self.n_samples, self.likelihood_weight = n_samples, likelihood_weight

    def updates(self, expert_steps: int) -> list[Update]:
        """Return the optimizer steps of an iteration (lines 3 to 7)."""
        replayable = self.contexts.is_resident
        network = self.network
        gating = [p for p in network.gating.parameters() if p.requires_grad]
        updates = [
            Update(
                "experts",
                self.expert_step,
                list(network.expert_parameters()),
                expert_steps,
                replayable=replayable,
            ),
            Update("gating", self.gating_step, gating, replayable=replayable),
        ]
        return updates if gating else updates[:1]

    def expert_step(self, index: Tensor, progress: float | Tensor) -> Loss:
        """Return the M-step objective of the experts (line 4: eq. 16) on some rows."""
        features, context = self._encode(index)
        mixture = self.network.mixture(features)
        sigma = self.levels(draw(torch.rand, (len(index),), self.fit.generator), progress)
        samples = gm.rsample_experts(mixture, self._normal(mixture))
        terms = {"entropy": gm.entropy(mixture.detach()).mean()}
        actions = self.fit.actions.index_select(0, index)
        if self.objective == "published":
            scores = self._score(context, samples, sigma)
            total = expert_loss(mixture, samples, scores, weighting=self.weighting).total
            target, weight = (mixture, actions), torch.ones_like(sigma)
        else:
            smoothed = gm.smooth(mixture, sigma)
            samples = samples + sigma[:, None, None, None] * self._normal(mixture)
            scores = self._score(context, samples, sigma)
            loss = smoothed_expert_loss(
                mixture, samples, scores, sigma, weighting=self.weighting, smoothed=smoothed
            )
            relative = sigma[:, None, None].square() * loss.gap.square().sum(dim=-1)
            total, terms = loss.total, {"score_gap": relative.mean(), **terms}
            target, weight = (smoothed, self._noised(actions, sigma)), sigma
        if self.likelihood_weight:
            likelihood = likelihood_loss(*target, weight)
            total = total + self.likelihood_weight * likelihood
            terms["likelihood"] = likelihood.detach()
        return Loss(total, terms)

    def gating_step(self, index: Tensor, progress: float | Tensor) -> Loss:
        """Return the gating's objective (line 7: eq. 13), its targets from the E-step (line 6)."""
        with torch.no_grad():
            features = self._features(index)
        log_gate = self.network.log_gate(features)
        with torch.no_grad():
            mixture = GaussianMixture(log_gate.detach(), *self.network.experts(features))
            actions = self.fit.actions.index_select(0, index)[:, None]
            targets = gm.log_responsibilities(mixture, actions)[:, 0]  # eq. 15
        return Loss(gating_loss(log_gate, targets))

    def _features(self, index: Tensor) -> Tensor:
        """Return the student's features of some rows."""
        if self.shares_encoder and self.contexts.kept is not None:
            return self.contexts.kept.index_select(0, index)
        return self.network.encoder(self.fit.noised_rows(index))

    def _encode(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's features of some rows, and the teacher's contexts of the same."""
        if self.shares_encoder:
            features = self._features(index)
            return features, features.detach()
        rows = self.fit.noised_rows(index)
        return self.network.encoder(rows), self.contexts.of(index, rows)

    @torch.no_grad()
    def _score(self, context: Tensor, samples: Tensor, sigma: Tensor) -> Tensor:
        """Return the teacher's scores at samples (n, K, v, d_a), one noise level a state."""
        actions = samples.detach().flatten(1, 2)
        n, n_actions = actions.shape[:2]
        size = n if actions.is_cuda else max(1, CACHED_ACTIONS // n_actions)
        blocks = zip(*(t.split(size) for t in (context, actions, sigma[:, None])), strict=True)
        return torch.cat([self.teacher.score(*block) for block in blocks]).view_as(samples)

    def _normal(self, mixture: GaussianMixture) -> Tensor:
        n, n_experts, d_a = mixture.mean.shape
        return draw(torch.randn, (n, n_experts, self.n_samples, d_a), self.fit.generator)

    def _noised(self, actions: Tensor, sigma: Tensor) -> Tensor:
        return actions + sigma[:, None] * draw(torch.randn, actions.shape, self.fit.generator)


def start_at_random(network: Any, seed: int) -> None:
    """Start the experts with means uniform in [-1, 1] and unit variance."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (network.n_experts, network.n_actions)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    device = network.output.bias.device
    scales = torch.ones(network.n_experts, dtype=torch.float32, device=device)
    network.place_experts((2.0 * uniform - 1.0).to(device), scales)
