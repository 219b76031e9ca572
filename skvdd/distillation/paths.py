"""Parts of the consistency models: the network, the teacher's paths, distances.

Axes: rows ``n``, noise levels (or samples) of each row ``S``, actions ``d_a``. Denoisers and
students are functions of noisy actions (n, S, d_a) and noise levels (n, S).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from skvdd._sklearn import Interval, StrOptions
from skvdd.diffusion.denoiser import ContextDenoiser
from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.diffusion.noise import karras
from skvdd.nn.network import PolicyNetwork
from skvdd.nn.normalization import Normalization

RHO = 7.0  # spacing of the noise levels, that of EDM
HUBER = 0.03  # where the pseudo-Huber distance turns from a square to a norm, standardized actions

# Rules of the parameters of losses that compare two answers.
EMA_TARGET: dict[str, list[Any]] = {
    "distance": [StrOptions({"l2", "pseudo_huber"})],
    "target_decay": [Interval(Real, 0, 1, closed="left")],
}

Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PathBatch:
    """What a loss on a minibatch sees.

    Parameters
    ----------
    student, target : callable
        The student in the rows of the minibatch, ``student(actions, sigma)``, with the weights
        that are trained and with their EMA, frozen.
    teacher : callable
        ``D(actions, sigma)``, the teacher's expected clean action in the same rows.
    actions, noise : Tensor of shape (n, S, d_a)
        Clean actions, and standard normal noise for each.
    levels : Tensor of shape (n_levels + 1,)
        Noise levels of a path, ascending from zero.
    generator : torch.Generator
        Source of random numbers, for `skvdd.training.draw`.
    """

    student: Callable[..., Tensor]
    target: Callable[..., Tensor]
    teacher: Denoise
    actions: Tensor
    noise: Tensor
    levels: Tensor
    generator: torch.Generator


class GeneratorNetwork(PolicyNetwork):
    """A denoiser that generates actions, with the noise levels between which it works.

    Parameters
    ----------
    denoiser : dict
        Arguments of a `ContextDenoiser`, or of a `GPTDenoiser` where there is no encoder.
    noise_min, noise_max : float
        The teacher's noise levels.
    start_scale : float
        Standard deviation of the noise that samples start from, at ``noise_max``.
    """

    def __init__(
        self, denoiser: dict[str, Any], noise_min: float, noise_max: float, start_scale: float
    ) -> None:
        nn.Module.__init__(self)  # the denoiser has the normalization
        self.config = {
            "denoiser": denoiser,
            "noise_min": noise_min,
            "noise_max": noise_max,
            "start_scale": start_scale,
        }
        self.noise_min, self.noise_max, self.start_scale = noise_min, noise_max, start_scale
        kind = ContextDenoiser if "encoder" in denoiser else GPTDenoiser
        self.denoiser = kind(**denoiser)
        self.layout, self.n_actions = self.denoiser.layout, self.denoiser.n_actions

    @property
    def row_normalization(self) -> Normalization:  # type: ignore[override]
        """Statistics of rows (n, T * d + g)."""
        return self.denoiser.row_normalization

    @property
    def action_normalization(self) -> Normalization:  # type: ignore[override]
        """Statistics of actions (n, n_actions)."""
        return self.denoiser.action_normalization

    def conditioned(self, rows: Tensor) -> Callable[..., Tensor]:
        """Encode standardized rows (n, T * d + g), and return the denoiser's `denoise` in them."""
        return partial(self.denoiser.denoise, self.denoiser.context(rows))


def heun_step(denoise: Denoise, actions: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    r"""Follow the probability-flow ODE :math:`da/d\sigma = (a - D) / \sigma` for one step.

    Heun's method from each action's level to the next; a step to zero is Euler's, and one from
    zero stays there.

    Parameters
    ----------
    denoise : callable
        ``D(actions, sigma)``.
    actions : Tensor of shape (n, S, d_a)
        Noisy actions.
    sigma, sigma_next : Tensor of shape (n, S)
        Where each begins and ends.

    Returns
    -------
    Tensor of shape (n, S, d_a)
    """
    step = (sigma_next - sigma)[..., None]
    # At level zero the slope is 0 / 0: it is evaluated at another level there, and not used.
    sigma = torch.where(sigma > 0, sigma, 1.0)
    inside = torch.where(sigma_next > 0, sigma_next, 1.0)
    slope = (actions - denoise(actions, sigma)) / sigma[..., None]
    euler = actions + step * slope
    slope_next = (euler - denoise(euler, inside)) / inside[..., None]
    heun = actions + 0.5 * step * (slope + slope_next)
    return torch.where((sigma_next > 0)[..., None], heun, euler)


def draw_jumps(uniform: Tensor, levels: Tensor, solver_steps: int) -> tuple[Tensor, Tensor]:
    """Turn uniform numbers into jumps on a grid of noise levels.

    Parameters
    ----------
    uniform : Tensor of shape (2, n, S)
        Numbers in [0, 1).
    levels : Tensor of shape (n_levels + 1,)
        Noise levels, ascending from zero.
    solver_steps : int
        Levels that the solver walks down from ``t``, unless ``s`` comes first.

    Returns
    -------
    path : Tensor of shape (solver_steps + 1, n, S)
        From ``t``, any level above zero, to ``u``.
    s : Tensor of shape (n, S)
        Any level below ``t``.
    """
    t = 1 + (uniform[0] * (len(levels) - 1)).long()
    s = (uniform[1] * t).long()
    path = [levels[torch.maximum(t - step, s)] for step in range(solver_steps + 1)]
    return torch.stack(path), levels[s]


def measure(estimate: Tensor, target: Tensor, distance: str) -> Tensor:
    """Return the distance ``d(estimate, target)`` of actions (n, S, d_a), shape (n, S).

    ``"l2"`` is the squared norm of the difference, ``"pseudo_huber"`` is
    ``sqrt(|difference|^2 + c^2) - c`` with ``c = 0.03`` (Song and Dhariwal, 2024, for images).
    """
    squared = (estimate - target).square().sum(dim=-1)
    return squared if distance == "l2" else (squared + HUBER**2).sqrt() - HUBER


def jump_levels(network: Any, n_steps: int) -> list[float]:
    """Return the levels from which the steps of a sampler start: ``noise_max`` and below."""
    # One more than there are steps, and the last left out: from noise_min nothing is left to do.
    return karras(n_steps + 1, network.noise_min, network.noise_max, RHO)[:n_steps].tolist()
