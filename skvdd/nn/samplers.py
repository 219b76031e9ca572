"""Samplers: free functions from noise to actions, given a denoiser and noise levels.

Each takes ``denoise(x, sigma)``, a start ``x`` of any shape at the level ``sigmas[0]``, decreasing
``sigmas`` that end in zero, and (stochastic samplers) one noise tensor for each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the samplers work on NumPy's arrays as well, in control without torch
    from torch import Tensor

Denoise = Callable[[Any, float], Any]


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Sequence[Tensor]) -> Tensor:
    """Integrate the probability-flow ODE with Euler's method.

    In the variance-exploding parameterization this is also DDIM (Song et al., 2021): its update
    ``x' = (sigma'/sigma) x + (1 - sigma'/sigma) D`` is the Euler step written in another way.
    """
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * _slope(denoise, x, sigma)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Sequence[Tensor]) -> Tensor:
    """Integrate the probability-flow ODE with Heun's method (Karras et al. 2022, alg. 1).

    Two evaluations a step, one in the last.
    """
    for sigma, sigma_next in pairwise(sigmas):
        slope = _slope(denoise, x, sigma)
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope = 0.5 * (slope + _slope(denoise, x_next, sigma_next))
            x_next = x + (sigma_next - sigma) * slope
        x = x_next
    return x


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Sequence[Tensor]
) -> Tensor:
    """Simulate the reverse process: Euler steps below the next level, then fresh noise up to it.

    The step draws from the posterior ``q(x' | x, a = D)`` of the noise process. That posterior does
    not change when actions are scaled, so this is also the ancestral sampler of DDPM (Ho et al.,
    2020), with the variance that they call beta-tilde.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        # The variance that the reverse process adds in this step, and what is left below it.
        sigma_up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        sigma_down = max(sigma_next**2 - sigma_up**2, 0.0) ** 0.5
        x = x + (sigma_down - sigma) * _slope(denoise, x, sigma)
        if sigma_next > 0:
            x = x + sigma_up * noise[i]
    return x


def dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Sequence[Tensor]
) -> Tensor:
    """Integrate with DPM-Solver++(2M) (Lu et al., 2022): second order at one evaluation a step."""
    previous, sigma_previous = None, 0.0
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        estimate = denoised
        if previous is not None and sigma_next > 0:
            step, last_step = _log_ratio(sigma, sigma_next), _log_ratio(sigma_previous, sigma)
            estimate = denoised + 0.5 * step / last_step * (denoised - previous)
        ratio = sigma_next / sigma
        x = ratio * x + (1.0 - ratio) * estimate
        previous, sigma_previous = denoised, sigma
    return x


def _slope(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """Return ``da/dsigma = (a - D(a; sigma)) / sigma``, the probability-flow ODE."""
    return (x - denoise(x, sigma)) / sigma


def _log_ratio(sigma: float, sigma_next: float) -> float:
    return math.log(sigma / sigma_next)


SAMPLERS = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}
STOCHASTIC = frozenset({"euler_ancestral"})
N_NEIGHBORS = 2  # of a typical action


def n_noises(sampler: str, n_steps: int) -> int:
    """Return how many standard normal actions sampling takes: its start, and what it adds."""
    return n_steps if sampler in STOCHASTIC else 1


def draw_actions(
    model: Any,
    rows: Tensor,
    noise: Tensor,
    sigmas: Sequence[float],
    sampler: str,
    *,
    start_scale: float | None = None,
    bounds: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Encode rows once and sample actions from noise.

    Parameters
    ----------
    model : object
        Has ``context(rows)`` and ``denoise(context, actions, sigma)``.
    rows : Tensor of shape (n, T * d + g)
        Standardized rows.
    noise : Tensor of shape (n, S, 1 + m, d_a) or (n, S, 1 + m, T, d_a)
        Standard normal: the start, and what a stochastic sampler adds on the way. The
        second form is for a model that denoises the actions of a whole window together.
    sigmas : sequence of float
        Noise levels, ending in zero.
    sampler : str
        Key of `SAMPLERS`.
    start_scale : float, default=None
        Standard deviation of the start; ``None`` is the highest noise level.
    bounds : tuple of Tensor of shape (d_a,), default=None
        Lowest and highest action; every estimate of the clean action is clipped to them.

    Returns
    -------
    Tensor of shape (n, S, d_a)
        Standardized actions; of a window, the last.
    """
    context = model.context(rows)

    def denoise(actions: Tensor, sigma: float) -> Tensor:
        level = actions.new_full((actions.shape[0], 1), sigma)
        clean = model.denoise(context, actions, level)
        return clean if bounds is None else clean.clamp(*bounds)

    start, *fresh = noise.unbind(dim=2)
    scale = sigmas[0] if start_scale is None else start_scale
    actions = SAMPLERS[sampler](denoise, scale * start, sigmas, fresh)
    return actions[..., -1, :] if start.ndim == 4 else actions


def densest(actions: Tensor) -> Tensor:
    """Return of each row's actions (n, S, d_a) the one with the nearest neighbors, (n, d_a).

    Two neighbors count. The medoid, nearest to all the others, would be the odd action between two
    modes.
    """
    import torch

    direct = "donot_use_mm_for_euclid_dist"  # the other way loses digits
    distance = torch.cdist(actions, actions, compute_mode=direct)
    n_nearest = min(N_NEIGHBORS, actions.shape[1] - 1) + 1  # each is its own nearest
    chosen = distance.topk(n_nearest, largest=False).values.sum(dim=-1).argmin(dim=1)
    return actions[chosen.new_tensor(range(len(actions))), chosen]
