"""Exact likelihoods of score models by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skvdd.nn.gaussian_mixture import LOG_2PI

DenoiseRows = Callable[[Tensor, Tensor], Tensor]
STEPS_PER_NAT = 12.0  # of the noise range, for an error of 1e-3
NEARLY_GAUSSIAN = 3.0  # noise, in standard deviations of the data, that hides their shape
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
    ``noise_max`` should be at least 3 standard deviations of the data.

    Parameters
    ----------
    denoise : callable
        Maps actions (n, d_a) and one noise level (0-d tensor) to expected clean actions (n, d_a),
        row by row.
    actions : Tensor of shape (n, d_a)
        Where to evaluate, in standardised units.
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
        Log-densities in nats, in standardised units.

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
    return log_volume + _final_log_prob(flow, actions, noise_max)


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


def _final_log_prob(flow: _Flow, actions: Tensor, noise_max: float) -> Tensor:
    r"""Return the log-density (n,) at the highest noise level.

    Laplace's approximation, with its first correction, gives it at the mode; the integral of the
    score along the line from there gives it at the action. Exact for Gaussian data; for others
    what is left is of the order of the fourth cumulant of the clean actions over
    :math:`\sigma_{max}^6`. Below ``NEARLY_GAUSSIAN`` that is no longer small, and a Gaussian of
    unit data variance around ``D(0)`` stands in: normalised, but only as right as its shape.
    """
    if noise_max < NEARLY_GAUSSIAN:
        zero = torch.zeros_like(actions)
        offset = actions - flow.denoise(zero, zero.new_tensor(noise_max))
        variance = 1.0 + noise_max**2
        squared = offset.square().sum(dim=-1) / variance
        return -0.5 * (squared + offset.shape[1] * (LOG_2PI + math.log(variance)))
    mode, variances, axes = _mode(flow.denoise, torch.zeros_like(actions), noise_max)
    log_density = -0.5 * (variances.log() + LOG_2PI).sum(dim=-1)
    log_density = log_density - _quartic_term(flow, mode, variances, axes, noise_max)
    offset = actions - mode
    for node, weight in zip(*np.polynomial.legendre.leggauss(LINE_NODES), strict=True):
        point = mode + 0.5 * (node + 1.0) * offset
        denoised = flow.denoise(point, point.new_tensor(noise_max))
        score = (denoised - point) / noise_max**2
        log_density = log_density + 0.5 * weight * (score * offset).sum(dim=-1)
    return log_density


def _mode(denoise: DenoiseRows, start: Tensor, noise_max: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return mode (n, d_a), variances (n, d_a) and axes (n, d_a, d_a) at a high noise level.

    The precision is minus the derivative of the score, ``(I - dD/da) / sigma^2``.
    """
    sigma = start.new_tensor(noise_max)
    mode = denoise(start, sigma)
    mode, *_ = _newton_step(denoise, mode, sigma)
    mode, remaining, axes = _newton_step(denoise, mode, sigma)
    return mode, noise_max**2 / remaining, axes


def _newton_step(
    denoise: DenoiseRows, mode: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a better mode, and eigenvalues and axes of ``I - dD/da``."""
    denoised, jacobian = _with_jacobian(denoise, mode, sigma)
    # Of exact scores the Jacobian is symmetric, eigenvalues in [0, 1); of learnt ones nearly.
    eigenvalues, axes = torch.linalg.eigh(0.5 * (jacobian + jacobian.mT))
    remaining = 1.0 - eigenvalues.clamp(0.0, 0.999)
    along = torch.einsum("nij,ni->nj", axes, denoised - mode) / remaining
    return mode + torch.einsum("nij,nj->ni", axes, along), remaining, axes


def _quartic_term(
    flow: _Flow, mode: Tensor, variances: Tensor, axes: Tensor, noise_max: float
) -> Tensor:
    """Return the mean (n,) of the quartic part of the log-density under Laplace's Gaussian.

    It is an eighth of the bi-Laplacian, in units of the standard deviations: second differences,
    over one standard deviation, of the score's divergence.
    """
    centre = flow(mode, noise_max)[1]
    total = torch.zeros_like(centre)
    for i in range(mode.shape[1]):
        step = variances[:, i : i + 1].sqrt() * axes[:, :, i]
        around = flow(mode + step, noise_max)[1] + flow(mode - step, noise_max)[1]
        total = total - (around - 2.0 * centre)
    return total / 8.0


def _with_jacobian(denoise: DenoiseRows, actions: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``D`` (n, d_a) and its Jacobian (n, d_a, d_a)."""
    with torch.enable_grad():
        actions = actions.detach().requires_grad_()
        denoised = denoise(actions, sigma)
        rows = [
            torch.autograd.grad(denoised[:, i].sum(), actions, retain_graph=True)[0]
            for i in range(actions.shape[1])
        ]
    return denoised.detach(), torch.stack(rows, dim=1)


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
