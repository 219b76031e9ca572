"""Teachers that are nothing but a score function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

ScoreFunction = Callable[[Tensor, Tensor, Tensor], Any]


class ScoreTeacher:
    r"""Wrap any score :math:`\nabla_a \log \pi_\sigma(a|s)` as a teacher to distil from.

    Parameters
    ----------
    score : callable
        ``score(states, actions, noise_level)`` with states of shape (n, T, d), actions
        (n, S, d_a), several for each state, and noise levels (n, 1); all float32 tensors in raw
        units. Returns the scores, (n, S, d_a), in raw units. It is never differentiated.
    n_actions : int
        Action dimension ``d_a``.
    noise_min, noise_max : float
        Range of noise levels for which the score is good, in standardised actions: a level
        ``sigma`` stands for noise of standard deviation ``action_scale * sigma``.
    action_mean : float or array-like of shape (d_a,), default=0.0
        Centre of the actions, raw units.
    action_scale : float, default=1.0
        Spread of the actions, raw units; one number, since the noise is isotropic.

    Examples
    --------
    A teacher that is known in closed form, a standard normal policy around the state:

    >>> import numpy as np
    >>> from skvdd import ScoreTeacher, VDDDistiller
    >>> def score(states, actions, noise_level):
    ...     return (states[:, -1:] - actions) / (1 + noise_level[..., None] ** 2)
    >>> teacher = ScoreTeacher(score, n_actions=1, noise_min=0.02, noise_max=5.0)
    >>> states = np.linspace(-1, 1, 50)[:, None]
    >>> student = VDDDistiller(n_experts=1, max_iter=20, init_iter=20, random_state=0)
    >>> student.fit(states, teacher=teacher).predict(states).shape
    (50, 1)
    """

    def __init__(
        self,
        score: ScoreFunction,
        *,
        n_actions: int,
        noise_min: float,
        noise_max: float,
        action_mean: float | np.ndarray = 0.0,
        action_scale: float = 1.0,
    ) -> None:
        self.score = score
        self.n_actions = n_actions
        self.noise_min = noise_min
        self.noise_max = noise_max
        self.action_mean = action_mean
        self.action_scale = action_scale


class StandardisedScore:
    """A `ScoreTeacher` seen from a student: standardised tensors in and out.

    It answers the same three calls as a `skvdd.diffusion.denoiser.ContextDenoiser`.

    Parameters
    ----------
    teacher : ScoreTeacher
        The score in raw units.
    state_mean, state_scale : Tensor of shape (d,)
        Units of the student's states.
    action_mean, action_scale : Tensor of shape (d_a,)
        Units of the actions.
    """

    def __init__(
        self,
        teacher: ScoreTeacher,
        state_mean: Tensor,
        state_scale: Tensor,
        action_mean: Tensor,
        action_scale: Tensor,
    ) -> None:
        self.function = teacher.score
        self.state_mean, self.state_scale = state_mean, state_scale
        self.action_mean, self.action_scale = action_mean, action_scale

    def context(self, states: Tensor) -> Tensor:
        """Return the states (n, T, d) in raw units: the function encodes them itself."""
        return states * self.state_scale + self.state_mean

    def score(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the scores (n, S, d_a) at actions of that shape, noise levels (n, 1)."""
        raw = actions * self.action_scale + self.action_mean
        score = self.function(context, raw, sigma * self.action_scale[0])
        if not isinstance(score, Tensor) or score.shape != actions.shape:
            came = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(
                f"the score function must return a tensor of shape {tuple(actions.shape)} for "
                f"actions of that shape, got {came}."
            )
        return score.to(actions) * self.action_scale

    def denoise(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return ``D = a + sigma^2 * score`` (Tweedie's formula); shapes as `score`."""
        variance = sigma[..., None].square()
        return torch.addcmul(actions, variance, self.score(context, actions, sigma))
