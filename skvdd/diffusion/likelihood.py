"""Exact likelihoods of score models by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skvdd.nn.gaussian_mixture import LOG_2PI
from skvdd.randomness import as_random_state

DenoiseRows = Callable[[Tensor, Tensor], Tensor]
EXACT_DIMENSIONS = 32  # up to which the divergence is exact
PROBES = 32  # random directions of its estimate above
STEPS_PER_NAT = 12.0  # of the noise range, for an error of 1e-3
HERMITE_NODES = 7  # along each axis, up to two dimensions
LINE_NODES = 5  # of the quadrature along a line, on which the score is nearly linear


def flow_log_prob(
    denoise: DenoiseRows,
    actions: Tensor,
    noise_min: float,
    noise_max: float,
    n_steps: int,
    probes: Tensor | None = None,
) -> Tensor:
    r"""Return ``log p(a)`` by integrating the probability-flow ODE from low to high noise.

    In the variable :math:`\tau = \ln \sigma` the flow of a variance-exploding model is
    :math:`da/d\tau = a - D(a; \sigma)`, and the log-density gains its divergence:

    .. math:: \log p(a) = \log p_{\sigma_{max}}\big(a(\tau_1)\big)
              + \int_{\tau_0}^{\tau_1} \operatorname{div}(a - D)\, d\tau

    What is returned is the density of the model at its lowest noise level; that of a
    variance-preserving model is the same thing in the scaled variable. The density at the highest
    level is nearly Gaussian, and is read off the denoiser itself (`_final_log_prob`); for that,
    above two dimensions, ``noise_max`` should be at least 3 standard deviations of the data.

    Parameters
    ----------
    denoise : callable
        Maps actions (n, d_a) and one noise level (0-d tensor) to expected clean actions (n, d_a),
        row by row.
    actions : Tensor of shape (n, d_a)
        Where to evaluate, of standardized actions.
    noise_min, noise_max : float
        Range of the integral.
    n_steps : int
        Runge-Kutta steps of fourth order, equal in ``ln sigma``; four evaluations each.
    probes : Tensor of shape (m, d_a), default=None
        Directions of Hutchinson's estimate of the divergence, ``E[v . (J v)]``, with entries of
        zero mean and unit variance; the same for every row. ``None`` is exact (``d_a``
        derivatives).

    Returns
    -------
    Tensor of shape (n,)
        Log-densities in nats, of standardized actions.

    References
    ----------
    Song et al. (2021), "Score-based generative modeling through stochastic differential
    equations", appendix D.2; Grathwohl et al. (2019), "FFJORD", for the estimate by probes.
    """
    if probes is None:
        probes = torch.eye(actions.shape[-1], dtype=actions.dtype, device=actions.device)
        weight = 1.0
    else:
        weight = 1.0 / len(probes)
    step = math.log(noise_max / noise_min) / n_steps
    flow = _Flow(denoise, probes, weight)
    log_volume = actions.new_zeros(len(actions))
    for i in range(n_steps):
        tau = math.log(noise_min) + i * step
        actions, log_volume = _runge_kutta_step(flow, actions, log_volume, tau, step)
    return log_volume + _final_log_prob(denoise, actions, noise_max)


def probe_directions(
    n_actions: int, random_state: int | np.random.RandomState | None
) -> Tensor | None:
    """Return directions (m, d_a) of Hutchinson's estimate, None where the divergence is exact."""
    if n_actions <= EXACT_DIMENSIONS:
        return None
    signs = as_random_state(random_state).choice([-1.0, 1.0], (PROBES, n_actions))
    return torch.from_numpy(signs).float()


def likelihood_steps(noise_min: float, noise_max: float, tolerance: float) -> int:
    """Return how many Runge-Kutta steps meet a tolerance.

    Parameters
    ----------
    noise_min, noise_max : float
        Range of the integral.
    tolerance : float
        Error of the log-density in nats. The method is of fourth order, so steps grow with its
        inverse fourth root; the constant is measured on mixtures of modes as narrow as the lowest
        noise level.

    Returns
    -------
    int
    """
    length = math.log(noise_max / noise_min)
    return math.ceil(STEPS_PER_NAT * length * (1e-3 / tolerance) ** 0.25)


def _final_log_prob(denoise: DenoiseRows, actions: Tensor, noise_max: float) -> Tensor:
    """Return the log-density (n,) at the highest noise level.

    It is a Gaussian around ``D(0)``, of the variance that standardized actions have there, times a
    ratio near one. The integral of the score along the line from the center gives the ratio up to
    a constant; the constant makes the density integrate to one, by a cubature that is exact up to
    the fifth degree. Far out, where no training action comes, the ratio stays what it is at
    ``reach`` standard deviations: there a network only extrapolates.
    """
    d_a = actions.shape[1]
    sigma = actions.new_tensor(noise_max)
    center = denoise(torch.zeros_like(actions), sigma)
    scale = math.hypot(1.0, noise_max)
    white = (actions - center) / scale
    log_gaussian = -0.5 * (white.square() + LOG_2PI).sum(dim=-1) - d_a * math.log(scale)
    if d_a > EXACT_DIMENSIONS:  # the cubature's evaluations grow with the square of the dimension
        return log_gaussian
    reach = (d_a + 2) ** 0.5 + 2.0

    def log_ratio(white: Tensor) -> Tensor:
        white = white * (reach / white.norm(dim=-1, keepdim=True).clamp(min=reach))
        total = 0.5 * white.square().sum(dim=-1)
        for node, weight in zip(*np.polynomial.legendre.leggauss(LINE_NODES), strict=True):
            point = center + 0.5 * (node + 1.0) * scale * white
            score = (denoise(point, sigma) - point) / noise_max**2
            total = total + 0.5 * weight * scale * (score * white).sum(dim=-1)
        return total

    constant = torch.zeros_like(actions[:, 0])
    for node, weight in _cubature(d_a):
        point = actions.new_tensor(node).expand_as(actions)
        constant = constant + weight * log_ratio(point).exp()
    return log_gaussian + log_ratio(white) - constant.log()


def _cubature(d_a: int) -> list[tuple[NDArray, float]]:
    """Return nodes and weights of a mean under a standard normal, exact up to degree five or more.

    Up to two dimensions it is the product of Gauss and Hermite's rule, which also does for ratios
    that are less near one. Above, the rule of Stroud and Secrest (1963) with ``2 d_a^2 + 1`` nodes:
    the origin, a point on either side of each axis, four points for each pair of axes.
    """
    if d_a <= 2:
        points, weights = np.polynomial.hermite_e.hermegauss(HERMITE_NODES)
        grid = product(zip(points, weights / weights.sum(), strict=True), repeat=d_a)
        return [(np.array([x for x, _ in each]), math.prod(w for _, w in each)) for each in grid]
    axes = np.eye(d_a)
    radius = (d_a + 2.0) ** 0.5
    nodes = [(np.zeros(d_a), 2.0 / (d_a + 2))]
    for axis in axes:
        weight = (4.0 - d_a) / (2.0 * (d_a + 2) ** 2)
        nodes += [(sign * radius * axis, weight) for sign in (-1, 1)]
    for first, second in combinations(axes, 2):
        weight, reach = 1.0 / (d_a + 2) ** 2, radius / 2**0.5
        signs = product((-1, 1), repeat=2)
        nodes += [(reach * (a * first + b * second), weight) for a, b in signs]
    return nodes


@dataclass(frozen=True)
class _Flow:
    """The velocity ``a - D(a)`` of the flow and its divergence."""

    denoise: DenoiseRows
    probes: Tensor
    weight: float

    def __call__(self, actions: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return both, from one forward pass and one backward pass for each probe."""
        with torch.enable_grad():
            actions = actions.detach().requires_grad_()
            velocity = actions - self.denoise(actions, actions.new_tensor(sigma))
            # Rows do not see each other, so the gradient of a sum over rows is every row's own.
            divergence = actions.new_zeros(len(actions))
            for probe in self.probes:
                (gradient,) = torch.autograd.grad(
                    (velocity @ probe).sum(), actions, retain_graph=True
                )
                divergence = divergence + gradient @ probe
        return velocity.detach(), self.weight * divergence.detach()


def _runge_kutta_step(
    flow: _Flow, actions: Tensor, log_volume: Tensor, tau: float, step: float
) -> tuple[Tensor, Tensor]:
    """Advance actions and the integral of the divergence by one step (Kutta, 1901)."""
    v1, d1 = flow(actions, math.exp(tau))
    v2, d2 = flow(actions + step / 2 * v1, math.exp(tau + step / 2))
    v3, d3 = flow(actions + step / 2 * v2, math.exp(tau + step / 2))
    v4, d4 = flow(actions + step * v3, math.exp(tau + step))
    return (
        actions + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4),
        log_volume + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4),
    )
