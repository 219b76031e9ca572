"""Noise levels: densities to train on and schedules to sample along (Karras et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOG_NORMAL = (-1.2, 1.2)  # mean and standard deviation of ln(sigma / sigma_data), EDM
LOG_LOGISTIC_SCALE = 0.5  # of ln(sigma / sigma_data), BESO


def log_normal(uniform: Tensor, noise_min: float, noise_max: float, sigma_data: float) -> Tensor:
    """Turn uniform numbers into noise levels of the log-normal density of EDM.

    Parameters
    ----------
    uniform : Tensor
        Numbers in (0, 1), any shape.
    noise_min, noise_max : float
        The density is cut to this interval.
    sigma_data : float
        Standard deviation of the data.

    Returns
    -------
    Tensor
        Noise levels, of the shape of ``uniform``.
    """
    mean, std = LOG_NORMAL
    normal = torch.distributions.Normal(mean + math.log(sigma_data), std)
    return _truncated(normal.cdf, normal.icdf, uniform, noise_min, noise_max)


def log_logistic(uniform: Tensor, noise_min: float, noise_max: float, sigma_data: float) -> Tensor:
    """Turn uniform numbers into noise levels of BESO's log-logistic density.

    Parameters and return value are those of `log_normal`.
    """
    location = math.log(sigma_data)

    def cdf(log_sigma: Tensor) -> Tensor:
        return torch.sigmoid((log_sigma - location) / LOG_LOGISTIC_SCALE)

    def icdf(probability: Tensor) -> Tensor:
        return location + LOG_LOGISTIC_SCALE * torch.logit(probability)

    return _truncated(cdf, icdf, uniform, noise_min, noise_max)


def log_uniform(uniform: Tensor, noise_min: float, noise_max: float) -> Tensor:
    """Turn uniform numbers into noise levels whose logarithms are uniform."""
    return noise_min * (noise_max / noise_min) ** uniform


def _truncated(
    cdf: Callable[[Tensor], Tensor],
    icdf: Callable[[Tensor], Tensor],
    uniform: Tensor,
    noise_min: float,
    noise_max: float,
) -> Tensor:
    bounds = torch.tensor([noise_min, noise_max], dtype=torch.float64).log()
    low, high = cdf(bounds).to(uniform)
    # Rounding may step over the bounds by a hair, which the clamp takes back.
    return icdf(low + (high - low) * uniform).exp().clamp(noise_min, noise_max)


def karras(n_steps: int, noise_min: float, noise_max: float, rho: float = 5.0) -> Tensor:
    """Return noise levels equally spaced in ``sigma**(1 / rho)`` (eq. 5 of Karras et al.).

    Parameters
    ----------
    n_steps : int
        Number of sampling steps.
    noise_min, noise_max : float
        Lowest and highest level.
    rho : float, default=5.0
        7 in EDM, 5 in BESO; larger values spend more steps at low noise.

    Returns
    -------
    Tensor of shape (n_steps + 1,), float64
        Decreasing from ``noise_max``; the last level is zero.

    Examples
    --------
    >>> from skvdd.diffusion.noise import karras
    >>> karras(2, 0.1, 1.0).tolist()
    [1.0, 0.1, 0.0]
    """
    ramp = torch.linspace(0, 1, n_steps, dtype=torch.float64)
    low, high = noise_min ** (1 / rho), noise_max ** (1 / rho)
    return _append_zero((high + ramp * (low - high)) ** rho)


def exponential(n_steps: int, noise_min: float, noise_max: float) -> Tensor:
    """Return noise levels equally spaced in ``ln sigma``; shapes as for `karras`."""
    low, high = math.log(noise_min), math.log(noise_max)
    return _append_zero(torch.linspace(high, low, n_steps, dtype=torch.float64).exp())


def linear(n_steps: int, noise_min: float, noise_max: float) -> Tensor:
    """Return noise levels equally spaced in ``sigma``; shapes as for `karras`."""
    return _append_zero(torch.linspace(noise_max, noise_min, n_steps, dtype=torch.float64))


def _append_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


NOISE_DENSITIES = {"lognormal": log_normal, "loglogistic": log_logistic}
SCHEDULES = {"karras": karras, "exponential": exponential, "linear": linear}
