"""Exact likelihoods of score models by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from skvdd.nn.gaussian_mixture import LOG_2PI

DenoiseRows = Callable[[Tensor, Tensor], Tensor]


def flow_log_prob(
    denoise: DenoiseRows, actions: Tensor, noise_min: float, noise_max: float, n_steps: int
) -> Tensor:
    r"""Return ``log p(a)`` by integrating the probability-flow ODE from low to high noise.

    In the variable :math:`\tau = \ln \sigma` the flow of a variance-exploding model is
    :math:`da/d\tau = a - D(a; \sigma)`, and the log-density gains its divergence:

    .. math:: \log p(a) = \log N\big(a(\tau_1); D(0; \sigma_{max}), (1 + \sigma_{max}^2) I\big)
              + \int_{\tau_0}^{\tau_1} \operatorname{div}(a - D)\, d\tau

    The divergence is exact (``d_a`` derivatives). What is returned is the density of the model at
    its lowest noise level. The Gaussian at the end takes the clean actions to have unit variance
    around what the denoiser expects of them; the error of that falls as ``1 / noise_max**2``.

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

    Returns
    -------
    Tensor of shape (n,)
        Log-densities in nats, in standardised units.

    References
    ----------
    Song et al. (2021), "Score-based generative modeling through stochastic differential
    equations", appendix D.2.
    """
    centre = denoise(torch.zeros_like(actions), actions.new_tensor(noise_max))
    step = math.log(noise_max / noise_min) / n_steps
    log_volume = actions.new_zeros(len(actions))
    for i in range(n_steps):
        tau = math.log(noise_min) + i * step
        actions, log_volume = _runge_kutta_step(denoise, actions, log_volume, tau, step)
    variance = 1.0 + noise_max**2
    squared = (actions - centre).square().sum(dim=-1) / variance
    return log_volume - 0.5 * (squared + actions.shape[-1] * (LOG_2PI + math.log(variance)))


def _runge_kutta_step(
    denoise: DenoiseRows, actions: Tensor, log_volume: Tensor, tau: float, step: float
) -> tuple[Tensor, Tensor]:
    """Advance actions and the integral of the divergence by one step (Kutta, 1901)."""

    def velocity(offset: float, moved: Tensor) -> tuple[Tensor, Tensor]:
        return _velocity_and_divergence(denoise, moved, math.exp(tau + offset))

    v1, d1 = velocity(0.0, actions)
    v2, d2 = velocity(step / 2, actions + step / 2 * v1)
    v3, d3 = velocity(step / 2, actions + step / 2 * v2)
    v4, d4 = velocity(step, actions + step * v3)
    return (
        actions + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4),
        log_volume + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4),
    )


def _velocity_and_divergence(
    denoise: DenoiseRows, actions: Tensor, sigma: float
) -> tuple[Tensor, Tensor]:
    """Return ``a - D(a)`` and its divergence, from one forward pass and ``d_a`` backward ones."""
    with torch.enable_grad():
        actions = actions.detach().requires_grad_()
        velocity = actions - denoise(actions, actions.new_tensor(sigma))
        # Rows do not see each other, so the gradient of a column's sum is every row's own.
        divergence = sum(
            torch.autograd.grad(velocity[:, i].sum(), actions, retain_graph=True)[0][:, i]
            for i in range(actions.shape[-1])
        )
    return velocity.detach(), torch.as_tensor(divergence).detach()
