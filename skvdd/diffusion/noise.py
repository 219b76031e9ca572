r"""Noise levels: densities to train on and schedules to sample along.

Both families of teachers share one parameterization. A variance-preserving process
:math:`a_t = \alpha_t a + \sqrt{1 - \alpha_t^2}\, \epsilon` is the variance-exploding one,
:math:`x = a + \sigma \epsilon`, seen through the scaling :math:`a_t = \alpha_t x`, with
:math:`\sigma = \sqrt{1 - \alpha_t^2} / \alpha_t` and hence
:math:`\alpha_t = 1 / \sqrt{1 + \sigma^2}`. A noise level is this :math:`\sigma`, everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from skvdd.registry import register

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
    mean, std = LOG_NORMAL[0] + math.log(sigma_data), LOG_NORMAL[1]
    low, high = (_normal_cdf((math.log(end) - mean) / std) for end in (noise_min, noise_max))
    normal = math.sqrt(2.0) * torch.erfinv(2.0 * (low + (high - low) * uniform) - 1.0)
    # Rounding may step over the bounds by a hair, which the clamp takes back.
    return (mean + std * normal).exp().clamp(noise_min, noise_max)


def log_logistic(uniform: Tensor, noise_min: float, noise_max: float, sigma_data: float) -> Tensor:
    """Turn uniform numbers into noise levels of BESO's log-logistic density.

    Parameters and return value are those of `log_normal`.
    """
    location = math.log(sigma_data)
    ends = ((math.log(end) - location) / LOG_LOGISTIC_SCALE for end in (noise_min, noise_max))
    low, high = (1.0 / (1.0 + math.exp(-end)) for end in ends)
    log_sigma = location + LOG_LOGISTIC_SCALE * torch.logit(low + (high - low) * uniform)
    return log_sigma.exp().clamp(noise_min, noise_max)


def log_uniform(uniform: Tensor, noise_min: float, noise_max: float | Tensor) -> Tensor:
    """Turn uniform numbers into noise levels whose logarithms are uniform."""
    return noise_min * (noise_max / noise_min) ** uniform


def _normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2.0))


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
    ramp = torch.linspace(0, 1, n_steps, dtype=torch.float64, device="cpu")
    low, high = noise_min ** (1 / rho), noise_max ** (1 / rho)
    return _append_zero((high + ramp * (low - high)) ** rho)


def exponential(n_steps: int, noise_min: float, noise_max: float) -> Tensor:
    """Return noise levels equally spaced in ``ln sigma``; shapes as for `karras`."""
    low, high = math.log(noise_min), math.log(noise_max)
    return _append_zero(torch.linspace(high, low, n_steps, dtype=torch.float64, device="cpu").exp())


def linear(n_steps: int, noise_min: float, noise_max: float) -> Tensor:
    """Return noise levels equally spaced in ``sigma``; shapes as for `karras`."""
    return _append_zero(
        torch.linspace(noise_max, noise_min, n_steps, dtype=torch.float64, device="cpu")
    )


@dataclass(frozen=True)
class CosineProcess:
    r"""The variance-preserving process of Nichol and Dhariwal (2021).

    .. math:: \bar\alpha(t) = f(t) / f(0), \quad
              f(t) = \cos^2 \Big( \frac{t + s}{1 + s} \frac{\pi}{2} \Big)

    Its noise grows without bound, which they stop by clipping the last step; here the time at
    which the highest level is reached is the last one.

    Parameters
    ----------
    offset : float, default=0.008
        The ``s`` that keeps the first steps from being too small.
    """

    offset: float = 0.008

    def sigma(self, time: Tensor) -> Tensor:
        """Return the noise level at times in [0, 1)."""
        start, now = self._cosine(torch.zeros_like(time)), self._cosine(time)
        return ((start / now) ** 2 - 1.0).clamp(min=0.0).sqrt()

    def time(self, sigma: float) -> float:
        """Return the time at which a noise level is reached."""
        start = math.cos(self.offset / (1 + self.offset) * math.pi / 2)
        angle = math.acos(start / math.sqrt(1 + sigma**2))
        return angle * 2 / math.pi * (1 + self.offset) - self.offset

    def _cosine(self, time: Tensor) -> Tensor:
        return torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2)


@dataclass(frozen=True)
class BetaProcess:
    r"""A variance-preserving process whose rate of noise grows linearly (Song et al., 2021).

    .. math:: -\ln \bar\alpha(t) = \beta_{min} t + (\beta_{max} - \beta_{min})\, t^2 / 2

    At times :math:`k/n` this is what the discrete "vp" schedule of ``n`` steps multiplies to.

    Parameters
    ----------
    beta_min, beta_max : float
        Rates of noise at times 0 and 1.
    """

    beta_min: float
    beta_max: float

    def sigma(self, time: Tensor) -> Tensor:
        """Return the noise level at times in [0, 1]."""
        exponent = self.beta_min * time + 0.5 * (self.beta_max - self.beta_min) * time.square()
        return torch.expm1(exponent).sqrt()

    def time(self, sigma: float) -> float:
        """Return the time at which a noise level is reached."""
        slope = self.beta_max - self.beta_min
        exponent = math.log1p(sigma**2)
        return (math.sqrt(self.beta_min**2 + 2 * slope * exponent) - self.beta_min) / slope


# "vp" is that of the diffusion policies of the paper; "linear" is the schedule of DDPM, 1e-4 to
# 2e-2 in 1000 steps, in the limit of many steps (Song et al., 2021, appendix C).
PROCESSES: dict[str, CosineProcess | BetaProcess] = {
    "cosine": CosineProcess(),
    "linear": BetaProcess(0.1, 20.0),
    "vp": BetaProcess(0.1, 10.0),
}


def process_density(
    process: CosineProcess | BetaProcess, uniform: Tensor, noise_min: float, noise_max: float
) -> Tensor:
    """Turn uniform numbers into noise levels at times uniform in a variance-preserving process.

    Parameters
    ----------
    process : CosineProcess or BetaProcess
        One of `PROCESSES`.
    uniform : Tensor
        Numbers in (0, 1), any shape.
    noise_min, noise_max : float
        Where the times begin and end.

    Returns
    -------
    Tensor
        Noise levels, of the shape of ``uniform``.
    """
    first, last = process.time(noise_min), process.time(noise_max)
    # Rounding may step over the bounds by a hair, which the clamp takes back.
    return process.sigma(first + (last - first) * uniform).clamp(noise_min, noise_max)


def process_schedule(
    process: CosineProcess | BetaProcess, n_steps: int, noise_min: float, noise_max: float
) -> Tensor:
    """Return the noise levels of a discrete variance-preserving process, equally spaced in time.

    Parameters
    ----------
    process : CosineProcess or BetaProcess
        One of `PROCESSES`.
    n_steps : int
        Number of steps; the last ends at ``noise_max``.
    noise_min, noise_max : float
        Lowest and highest level.

    Returns
    -------
    Tensor of shape (n_steps + 1,), float64
        Decreasing from ``noise_max``; the last level is zero.
    """
    last = process.time(noise_max)
    times = last * torch.arange(n_steps, 0, -1, dtype=torch.float64, device="cpu") / n_steps
    return _append_zero(process.sigma(times).clamp(noise_min, noise_max))


def _append_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


NOISE_DENSITIES = {"lognormal": log_normal, "loglogistic": log_logistic}
SCHEDULES = {"karras": karras, "exponential": exponential, "linear": linear}


@register
@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels of a diffusion policy, to train on and to sample along.

    Parameters
    ----------
    sde, noise_min, noise_max, noise_density, schedule
        Parameters of `skvdd.DiffusionPolicy`.
    sigma_data : float, default=1.0
        Standard deviation of the standardized actions in the densities.
    """

    sde: str = "ve"
    noise_min: float = 0.03
    noise_max: float = 5.0
    noise_density: str = "auto"
    schedule: str = "auto"
    sigma_data: float = 1.0

    @property
    def process(self) -> CosineProcess | BetaProcess:
        """The variance-preserving process of that schedule."""
        return PROCESSES["cosine" if self.schedule == "auto" else self.schedule]

    @property
    def start_scale(self) -> float:
        """Standard deviation of the noise that sampling starts from.

        A variance-preserving process ends in a standard normal, here divided by ``alpha``.
        """
        return math.hypot(1.0, self.noise_max) if self.sde == "vp" else self.noise_max

    def check(self) -> None:
        """Raise a ValueError unless levels and schedule fit each other and the process."""
        if self.sde not in ("ve", "vp") or self.noise_density not in ("auto", *NOISE_DENSITIES):
            raise ValueError(f"there is no noise process {self!r}.")
        if not (self.noise_min > 0.0 and self.sigma_data > 0.0):
            raise ValueError(f"noise_min and sigma_data must be positive, got {self!r}.")
        check_noise_range(self.noise_min, self.noise_max)
        schedules = SCHEDULES if self.sde == "ve" else PROCESSES
        if self.schedule not in {"auto", *schedules}:
            raise ValueError(
                f"schedule must be one of {['auto', *schedules]} for sde={self.sde!r}, got "
                f"{self.schedule!r}."
            )
        if self.sde == "vp" and self.process.time(self.noise_max) > 1.0:
            highest = float(self.process.sigma(torch.ones((), dtype=torch.float64, device="cpu")))
            raise ValueError(
                f"noise_max must be at most {highest:.4g}, where schedule={self.schedule!r} ends, "
                f"got {self.noise_max}."
            )

    def of_training(self, uniform: Tensor) -> Tensor:
        """Turn uniform numbers of any shape into the noise levels to train on."""
        bounds = self.noise_min, self.noise_max
        if self.sde == "vp" and self.noise_density == "auto":
            return process_density(self.process, uniform, *bounds)
        density = "lognormal" if self.noise_density == "auto" else self.noise_density
        return NOISE_DENSITIES[density](uniform, *bounds, self.sigma_data)

    def of_sampling(self, n_steps: int) -> list[float]:
        """Return the noise levels along which actions are drawn, ending in zero."""
        bounds = self.noise_min, self.noise_max
        if self.sde == "vp":
            return process_schedule(self.process, n_steps, *bounds).tolist()
        schedule = SCHEDULES["karras" if self.schedule == "auto" else self.schedule]
        return schedule(n_steps, *bounds).tolist()


def check_noise_range(noise_min: float, noise_max: float) -> None:
    """Raise a ValueError unless ``noise_min < noise_max``."""
    if noise_min >= noise_max:
        raise ValueError(
            f"noise_max must exceed noise_min, got noise_min={noise_min} and noise_max={noise_max}."
        )
