"""Teachers that are nothing but a score function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

ScoreFunction = Callable[[Tensor, Tensor, Tensor], Any]
Network = Callable[[Tensor, Tensor, Tensor], Any]


class ScoreTeacher:
    r"""Wrap any score :math:`\nabla_a \log \pi_\sigma(a|s)` as a teacher to distil from.

    Parameters
    ----------
    score : callable
        ``score(states, actions, noise_level)`` with states of shape (n, T, d), actions
        (n, S, d_a), several for each state, and noise levels (n, 1); all float32 tensors in raw
        units. Returns the scores, (n, S, d_a), in raw units. It is never differentiated. To a
        student with a goal, states are flat rows (n, T * d + g), the goal last.
    n_actions : int
        Action dimension ``d_a``.
    noise_min, noise_max : float
        Range of noise levels for which the score is good, in standardised actions: a level
        ``sigma`` stands for noise of standard deviation ``action_scale * sigma``.
    action_mean : float or array-like of shape (d_a,), default=0.0
        Centre of the actions, raw units.
    action_scale : float, default=1.0
        Spread of the actions, raw units; one number, since the noise is isotropic.

    See Also
    --------
    ScoreTeacher.from_noise_prediction : From a network that predicts the noise (DDPM, diffusers).
    ScoreTeacher.from_velocity : From a network that predicts the velocity (flow matching).

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
        _check_units(n_actions, noise_min, noise_max, action_mean, action_scale)
        self.score = score
        self.n_actions = n_actions
        self.noise_min = noise_min
        self.noise_max = noise_max
        self.action_mean = action_mean
        self.action_scale = action_scale

    @classmethod
    def from_noise_prediction(
        cls,
        network: Network,
        alphas_cumprod: ArrayLike,
        *,
        n_actions: int,
        action_mean: float | np.ndarray = 0.0,
        action_scale: float = 1.0,
    ) -> Self:
        r"""Wrap a network that predicts the noise in an action, as DDPM trains it.

        The convention is that of ``diffusers``: in scaled actions,
        ``(actions - action_mean) / action_scale``, the network recovers :math:`\epsilon` from

        .. math:: a_t = \sqrt{\bar\alpha_t}\, a + \sqrt{1 - \bar\alpha_t}\, \epsilon .

        :math:`a_t / \sqrt{\bar\alpha_t}` is the action with noise of level
        :math:`\sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}`, where the score is
        :math:`-\epsilon / \sigma_t`. Between two timesteps it is interpolated, linearly in
        :math:`\ln \sigma`: two evaluations of the network for each action.

        Parameters
        ----------
        network : callable
            ``network(noisy_actions, timesteps, states)`` with :math:`a_t` of shape (m, d_a),
            timesteps (m,), int64, and states (m, T, d) in raw units; one row for each action, on
            the student's device. Returns the noise, (m, d_a).
        alphas_cumprod : array-like of shape (n_timesteps,)
            :math:`\bar\alpha_t` for every timestep, falling strictly, from 1 to 0 at most;
            ``scheduler.alphas_cumprod``. Timesteps of pure noise or none have no score and are
            never asked.
        n_actions : int
            Action dimension ``d_a``.
        action_mean : float or array-like of shape (d_a,), default=0.0
            What the network's training took off the actions, raw units.
        action_scale : float, default=1.0
            What it divided them by, raw units. Where each dimension had its own, distil in scaled
            actions (leave mean and scale alone) and undo the scaling of the student's actions.

        Returns
        -------
        ScoreTeacher
            Its ``noise_min`` and ``noise_max`` are the levels of the first and last timestep
            that have one. It can be pickled if the network can.

        Raises
        ------
        ValueError
            If ``alphas_cumprod`` is no such sequence, or another argument is out of range.

        Examples
        --------
        The exact network of a standard normal policy around the state:

        >>> import numpy as np
        >>> import torch
        >>> from skvdd import ScoreTeacher
        >>> alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)
        >>> def network(actions, timesteps, states):
        ...     alpha_bar = alphas_cumprod[timesteps, None]
        ...     return (1 - alpha_bar).sqrt() * (actions - alpha_bar.sqrt() * states[:, -1])
        >>> teacher = ScoreTeacher.from_noise_prediction(network, alphas_cumprod, n_actions=1)
        >>> print(f"{teacher.noise_min:.3f} {teacher.noise_max:.0f}")
        0.010 157
        >>> state, action, level = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1)
        >>> print(f"{teacher.score(state, action, level).item():.3f}")  # -1 / (1 + 1)
        -0.500
        """
        alphas = _check_alphas_cumprod(alphas_cumprod)
        timesteps = np.flatnonzero((alphas > 0.0) & (alphas < 1.0))
        sigma = np.sqrt((1.0 - alphas[timesteps]) / alphas[timesteps])
        return cls(
            NoisePredictionScore(network, timesteps, np.log(sigma), action_mean, action_scale),
            n_actions=n_actions,
            noise_min=float(sigma[0]),
            noise_max=float(sigma[-1]),
            action_mean=action_mean,
            action_scale=action_scale,
        )

    @classmethod
    def from_velocity(
        cls,
        velocity: Network,
        *,
        n_actions: int,
        noise_min: float = 0.03,
        noise_max: float = 5.0,
        action_mean: float | np.ndarray = 0.0,
        action_scale: float = 1.0,
    ) -> Self:
        r"""Wrap a network that predicts a velocity, as flow matching trains it.

        In scaled actions, ``(actions - action_mean) / action_scale``, time runs from noise to
        data along straight lines, and the network recovers their direction:

        .. math:: a_t = (1 - t)\, \epsilon + t\, a ,
                  \qquad v(a_t, t, s) = E[a - \epsilon | a_t, s] .

        :math:`x = a_t / t` is the action with noise of level :math:`\sigma = (1 - t) / t`, the
        clean action is expected at :math:`a_t + (1 - t) v`, and by Tweedie's formula the score is
        :math:`(v - x) / (\sigma (1 + \sigma))`.

        Parameters
        ----------
        velocity : callable
            ``velocity(actions_t, t, states)`` with :math:`a_t` of shape (m, d_a), times (m,)
            between 0, noise, and 1, data, and states (m, T, d) in raw units; one row for each
            action, on the student's device. Returns the velocities, (m, d_a). Where time runs the
            other way, wrap it: ``lambda a, t, s: -velocity(a, 1 - t, s)``.
        n_actions : int
            Action dimension ``d_a``.
        noise_min, noise_max : float, default=0.03, 5.0
            Range of noise levels, in scaled actions; level ``sigma`` is time ``1 / (1 + sigma)``.
            The defaults are those of `DiffusionPolicy`, times 0.97 to 0.17.
        action_mean : float or array-like of shape (d_a,), default=0.0
            What the network's training took off the actions, raw units.
        action_scale : float, default=1.0
            What it divided them by, raw units; one number, see `from_noise_prediction`.

        Returns
        -------
        ScoreTeacher
            The teacher. It can be pickled if the network can.

        Raises
        ------
        ValueError
            If an argument is out of range.

        Examples
        --------
        The exact velocity of a standard normal policy around the state:

        >>> import torch
        >>> from skvdd import ScoreTeacher
        >>> def velocity(actions, t, states):
        ...     mean, t = states[:, -1], t[:, None]
        ...     slope = (2 * t - 1) / ((1 - t) ** 2 + t**2)
        ...     return mean + slope * (actions - t * mean)
        >>> teacher = ScoreTeacher.from_velocity(velocity, n_actions=1)
        >>> state, action, level = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1)
        >>> print(f"{teacher.score(state, action, level).item():.3f}")  # -1 / (1 + 1)
        -0.500
        """
        return cls(
            VelocityScore(velocity, action_mean, action_scale),
            n_actions=n_actions,
            noise_min=noise_min,
            noise_max=noise_max,
            action_mean=action_mean,
            action_scale=action_scale,
        )


# ---------------------------------------------------------------------------------------
# Scores of networks that were trained to predict something else
# ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NoisePredictionScore:
    """The score behind `ScoreTeacher.from_noise_prediction`; a class, so that it pickles.

    Parameters
    ----------
    network : callable
        Predicts the noise.
    timesteps : ndarray of shape (n_levels,)
        Those that have a score.
    log_sigma : ndarray of shape (n_levels,)
        Logarithms of their noise levels, ascending.
    action_mean, action_scale : float or array-like of shape (d_a,), float
        Units of the network's actions.
    """

    network: Network
    timesteps: NDArray[np.integer]
    log_sigma: NDArray[np.floating]
    action_mean: Any
    action_scale: float

    def __call__(self, states: Tensor, actions: Tensor, noise_level: Tensor) -> Tensor:
        """Return the scores (n, S, d_a) at actions of that shape, noise levels (n, 1), all raw."""
        grid = torch.as_tensor(self.log_sigma).to(noise_level)
        wanted = (noise_level[:, 0] / self.action_scale).log().contiguous()
        above = torch.searchsorted(grid, wanted).clamp(1, len(grid) - 1)
        share = (wanted - grid[above - 1]) / (grid[above] - grid[above - 1])
        scaled = _scale(actions, self.action_mean, self.action_scale)
        # Of what could be interpolated, the score itself bends least: in closed form, five times
        # less error at low noise than the noise, 20 times less than the nearest timestep.
        score = torch.lerp(
            self._at_timesteps(states, scaled, above - 1, grid),
            self._at_timesteps(states, scaled, above, grid),
            share.clamp(0.0, 1.0)[:, None, None],  # rounding must not leave the timesteps
        )
        return score / self.action_scale

    def _at_timesteps(self, states: Tensor, scaled: Tensor, index: Tensor, grid: Tensor) -> Tensor:
        """Return the scores in scaled actions at one timestep per state, given by its index."""
        sigma = grid[index, None, None].exp()
        noisy = scaled / (1.0 + sigma.square()).sqrt()
        timesteps = torch.as_tensor(self.timesteps, dtype=torch.int64).to(index.device)[index]
        noise = _ask(self.network, "network", noisy, timesteps, states)
        return -noise / sigma


@dataclass(frozen=True, eq=False)
class VelocityScore:
    """The score behind `ScoreTeacher.from_velocity`; a class, so that it pickles.

    Parameters
    ----------
    velocity : callable
        Predicts the velocity.
    action_mean, action_scale : float or array-like of shape (d_a,), float
        Units of the network's actions.
    """

    velocity: Network
    action_mean: Any
    action_scale: float

    def __call__(self, states: Tensor, actions: Tensor, noise_level: Tensor) -> Tensor:
        """Return the scores (n, S, d_a) at actions of that shape, noise levels (n, 1), all raw."""
        sigma = noise_level[..., None] / self.action_scale
        scaled = _scale(actions, self.action_mean, self.action_scale)
        t = 1.0 / (1.0 + sigma)
        velocity = _ask(self.velocity, "velocity", t * scaled, t[:, 0, 0], states)
        return (velocity - scaled) / (sigma * (1.0 + sigma) * self.action_scale)


def _scale(actions: Tensor, mean: Any, scale: float) -> Tensor:
    return (actions - torch.as_tensor(mean).to(actions)) / scale


def _ask(network: Network, name: str, actions: Tensor, times: Tensor, states: Tensor) -> Tensor:
    """Give a network of rows the actions (n, S, d_a) of n states at n times; same shape back."""
    n_samples = actions.shape[1]
    rows = actions.flatten(0, 1)
    repeated = (part.repeat_interleave(n_samples, dim=0) for part in (times, states))
    output = network(rows, *repeated)
    if not isinstance(output, Tensor) or output.shape != rows.shape:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{name} must return a tensor of shape {tuple(rows.shape)} for actions of that shape, "
            f"got {came}. Wrap it in a function that takes and returns (m, d_a)."
        )
    return output.reshape(actions.shape).to(actions)


def _check_units(
    n_actions: int, noise_min: float, noise_max: float, action_mean: Any, action_scale: float
) -> None:
    """Raise unless dimension, noise levels and units can be those of a teacher."""
    if not isinstance(n_actions, Integral) or n_actions < 1:
        raise ValueError(f"n_actions must be an integer of at least 1, got {n_actions!r}.")
    if not 0.0 < noise_min < noise_max < float("inf"):
        raise ValueError(
            "noise_min and noise_max must be positive, finite and in this order, got "
            f"noise_min={noise_min} and noise_max={noise_max}."
        )
    mean = np.asarray(action_mean, dtype=np.float64)
    if mean.shape not in {(), (1,), (n_actions,)} or not np.isfinite(mean).all():
        raise ValueError(
            f"action_mean must be finite, one number or one for each of the {n_actions} actions, "
            f"got {action_mean!r}."
        )
    if np.ndim(action_scale) or not (isfinite(action_scale) and action_scale > 0.0):
        raise ValueError(
            "action_scale must be one positive, finite number for all actions, got "
            f"{action_scale!r}."
        )


def _check_alphas_cumprod(alphas_cumprod: ArrayLike) -> NDArray[np.float64]:
    """Return the schedule as float64 on the CPU, or say what is wrong with it."""
    if isinstance(alphas_cumprod, Tensor):
        alphas_cumprod = alphas_cumprod.detach().cpu().numpy()
    alphas = np.asarray(alphas_cumprod, dtype=np.float64)
    if alphas.ndim != 1:
        raise ValueError(
            f"alphas_cumprod must be a vector, one number per timestep, got shape {alphas.shape}."
        )
    if not ((alphas >= 0.0) & (alphas <= 1.0)).all():
        raise ValueError(
            "alphas_cumprod must lie between 0 and 1, got "
            f"{alphas[~((alphas >= 0.0) & (alphas <= 1.0))][0]}."
        )
    rising = np.flatnonzero(np.diff(alphas) >= 0.0)
    if len(rising):
        i = rising[0]
        raise ValueError(
            f"alphas_cumprod must fall strictly from each timestep to the next, got {alphas[i]} "
            f"and {alphas[i + 1]} at timesteps {i} and {i + 1}."
        )
    n_levels = int(((alphas > 0.0) & (alphas < 1.0)).sum())
    if n_levels < 2:
        raise ValueError(
            f"alphas_cumprod needs at least two timesteps strictly between 0 and 1, got {n_levels}."
        )
    return alphas


class StandardisedScore:
    """A `ScoreTeacher` seen from a student: standardised tensors in and out.

    It answers the same three calls as a `skvdd.diffusion.denoiser.ContextDenoiser`.

    Parameters
    ----------
    teacher : ScoreTeacher
        The score in raw units.
    state_mean, state_scale : Tensor of shape (T * d + g,)
        Units of the columns of a student's row.
    action_mean, action_scale : Tensor of shape (d_a,)
        Units of the actions.
    window_size, goal_dim : int
        Layout of a row.
    """

    def __init__(
        self,
        teacher: ScoreTeacher,
        state_mean: Tensor,
        state_scale: Tensor,
        action_mean: Tensor,
        action_scale: Tensor,
        *,
        window_size: int,
        goal_dim: int,
    ) -> None:
        self.function = teacher.score
        self.window_size, self.goal_dim = window_size, goal_dim
        self.state_mean, self.state_scale = state_mean, state_scale
        self.action_mean, self.action_scale = action_mean, action_scale

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of what a sampler draws for a state."""
        return tuple(self.action_scale.shape)

    def context(self, rows: Tensor) -> Tensor:
        """Return what the function is given for rows (n, T * d + g); it encodes them itself.

        States in raw units, (n, T, d), or with a goal the rows as they are, in raw units.
        """
        raw = rows * self.state_scale + self.state_mean
        return raw if self.goal_dim else raw.unflatten(1, (self.window_size, -1))

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
