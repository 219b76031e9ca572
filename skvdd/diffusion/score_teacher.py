"""Teachers made of a score function, or of a network that predicts noise, actions or velocity."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_random_state
from torch import Tensor

from skvdd.diffusion.noise import karras
from skvdd.diffusion.samplers import draw_actions

Function = Callable[[Tensor, Tensor, Tensor], Any]

N_STEPS = 32  # of the sampler
BLOCK = 4096  # rows that are sampled at a time


class ScoreTeacher:
    r"""Make a teacher of a score function :math:`\nabla_a \log p_\sigma(a|s)`.

    Parameters
    ----------
    score : callable
        ``score(states, actions, sigma)`` with float32 tensors: raw states (n, T, d), or flat rows
        (n, T * d + g) where there is a goal; standardized actions (n, S, m), S for each state;
        noise levels (n, 1). Returns the scores (n, S, m) with respect to the standardized actions,
        on any device. It runs without autograd; use ``torch.enable_grad()`` inside if needed.
        A student calls it on the student's device, `sample` where the parameters of a
        ``torch.nn.Module`` are, else on a GPU if there is one.
    n_actions : int
        Number m of numbers in an action. A chunk of H actions is flat, time-major.
    noise_min, noise_max : float
        Range of noise levels in which the score is good, in standardized actions, as everywhere.
    action_mean, action_scale : float or array-like of shape (m,), default=0.0, 1.0
        Standardized actions are ``(raw - action_mean) / action_scale``. Kept as float64 (m,).

    Raises
    ------
    TypeError
        If ``score`` is not callable.
    ValueError
        If another argument is out of range.

    Examples
    --------
    A normal distribution of standard deviation 50 around 100 times the state, in raw units:

    >>> import numpy as np
    >>> from skvdd.diffusion.score_teacher import ScoreTeacher
    >>> def score(states, actions, sigma):
    ...     return (states[:, -1:] - actions) / (0.5**2 + sigma[..., None] ** 2)
    >>> teacher = ScoreTeacher(score, n_actions=1, noise_min=0.02, noise_max=5, action_scale=100)
    >>> teacher
    ScoreTeacher(n_actions=1, noise_min=0.02, noise_max=5)
    >>> actions = teacher.sample(np.ones((500, 1, 1)), random_state=0)
    >>> actions.shape, bool(abs(actions.mean() - 100) < 10)
    ((500, 1), True)
    """

    sees_states = True
    replayable = False  # a user's function may do anything
    network = None

    def __init__(
        self,
        score: Function,
        *,
        n_actions: int,
        noise_min: float,
        noise_max: float,
        action_mean: ArrayLike = 0.0,
        action_scale: ArrayLike = 1.0,
    ) -> None:
        if not callable(score):
            came = type(score).__name__
            raise TypeError(f"score must be a function of states, actions and sigma, got {came}.")
        _check_range(n_actions, noise_min, noise_max)
        self.function, self.n_actions = score, int(n_actions)
        self.noise_min, self.noise_max = float(noise_min), float(noise_max)
        self.action_mean = _unit("action_mean", action_mean, self.n_actions)
        self.action_scale = _unit("action_scale", action_scale, self.n_actions)

    @classmethod
    def from_noise_prediction(
        cls,
        network: Function,
        alphas_cumprod: ArrayLike,
        *,
        n_actions: int,
        prediction_type: str = "epsilon",
        clip: float | None = None,
        noise_min: float | None = None,
        noise_max: float | None = None,
        action_mean: ArrayLike = 0.0,
        action_scale: ArrayLike = 1.0,
    ) -> Self:
        r"""Make a teacher of a DDPM network (Ho et al., 2020, eq. 4), as trained with diffusers.

        The network sees standardized actions with noise, :math:`a_t = \sqrt{\bar{\alpha}_t}\, a +
        \sqrt{1 - \bar{\alpha}_t}\, \epsilon`. :math:`a_t / \sqrt{\bar{\alpha}_t}` has noise of
        level :math:`\sigma_t = \sqrt{(1 - \bar{\alpha}_t) / \bar{\alpha}_t}` and the score
        :math:`-\epsilon / \sigma_t`. Between timesteps, the score times :math:`1 + \sigma^2` is
        interpolated linearly in :math:`\ln \sigma`, by two calls of the network.

        Parameters
        ----------
        network : callable
            ``network(noisy_actions, timesteps, states)``, one row for each action: :math:`a_t`
            (N, m), float32; indices of ``alphas_cumprod`` (N,), int64; raw states (N, T, d), or
            flat rows with a goal, float32. Returns the prediction (N, m).
        alphas_cumprod : array-like of shape (n_timesteps,)
            :math:`\bar{\alpha}_t`, ``scheduler.alphas_cumprod`` in diffusers: strictly falling,
            between 1 and 0. Timesteps of 1 or 0 have no score and are not used.
        n_actions : int
            Number m of numbers in an action.
        prediction_type : {"epsilon", "sample", "v_prediction"}, default="epsilon"
            The scheduler's option: the network predicts :math:`\epsilon`; the clean action a; or
            :math:`\sqrt{\bar{\alpha}_t}\, \epsilon - \sqrt{1 - \bar{\alpha}_t}\, a` (Salimans and
            Ho, 2022, section 4).
        clip : float, default=None
            Clamp the estimate of the clean standardized action to ``[-clip, clip]``: the
            scheduler's ``clip_sample_range`` where its ``clip_sample`` is on.
        noise_min, noise_max : float, default=None
            Part of the schedule's noise levels to use; None is its end. A ``noise_max`` of 5 to 80
            is high enough; the cosine schedule ends at 2000 or more.
        action_mean, action_scale : float or array-like of shape (m,), default=0.0, 1.0
            What training subtracted from raw actions, and then divided them by. Where it mapped
            [low, high] to [-1, 1], they are ``(high + low) / 2`` and ``(high - low) / 2``.

        Returns
        -------
        ScoreTeacher
            It can be pickled if the network can.

        Raises
        ------
        ValueError
            If an argument is out of range, or the noise levels leave the schedule.

        Warns
        -----
        UserWarning
            If ``alphas_cumprod`` looks like ``scheduler.alphas``, or ends far from pure noise.

        Examples
        --------
        >>> import torch
        >>> from skvdd.diffusion.score_teacher import ScoreTeacher
        >>> alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)
        >>> def network(actions, timesteps, states):  # exact for a normal policy N(state, 1)
        ...     alpha_bar = alphas_cumprod[timesteps, None]
        ...     return (1 - alpha_bar).sqrt() * (actions - alpha_bar.sqrt() * states[:, -1])
        >>> ScoreTeacher.from_noise_prediction(network, alphas_cumprod, n_actions=1)
        ScoreTeacher(n_actions=1, noise_min=0.01, noise_max=157.4)
        """
        timesteps, sigma = _schedule(alphas_cumprod)
        _check_prediction(prediction_type, clip)
        low = sigma[0] if noise_min is None else noise_min
        high = sigma[-1] if noise_max is None else noise_max
        _require(
            0.99 * sigma[0] <= low and high <= 1.01 * sigma[-1],  # may be rounded
            "noise_min and noise_max must lie within the noise levels of alphas_cumprod, "
            f"{sigma[0]:.4g} to {sigma[-1]:.4g}, got {low:.4g} and {high:.4g}. None is the end.",
        )
        return cls(
            NoisePredictionScore(network, timesteps, np.log(sigma), prediction_type, clip),
            n_actions=n_actions,
            noise_min=low,
            noise_max=high,
            action_mean=action_mean,
            action_scale=action_scale,
        )

    @classmethod
    def from_velocity(
        cls,
        velocity: Function,
        *,
        n_actions: int,
        noise_min: float = 0.03,
        noise_max: float = 5.0,
        action_mean: ArrayLike = 0.0,
        action_scale: ArrayLike = 1.0,
    ) -> Self:
        r"""Make a teacher of a flow-matching network (Lipman et al., 2023).

        For standardized actions, time runs from noise to data along straight lines:
        :math:`a_t = (1 - t)\, \epsilon + t\, a` and :math:`v = E[a - \epsilon | a_t, s]`. Then
        :math:`x = a_t / t` has noise of level :math:`\sigma = (1 - t) / t` and, by Tweedie's
        formula, the score :math:`(v - x) / (\sigma (1 + \sigma))`.

        Parameters
        ----------
        velocity : callable
            ``velocity(actions_t, t, states)``, one row for each action: :math:`a_t` (N, m); times
            (N,), 0 for noise and 1 for data; raw states (N, T, d), or flat rows with a goal; all
            float32. Returns the velocities (N, m). Where time runs the other way, wrap it:
            ``lambda a, t, s: -velocity(a, 1 - t, s)``.
        noise_min, noise_max : float, default=0.03, 5.0
            Range of noise levels; level ``sigma`` is time ``1 / (1 + sigma)``.
        n_actions, action_mean, action_scale
            As for `from_noise_prediction`.

        Returns
        -------
        ScoreTeacher
            It can be pickled if the network can.

        Raises
        ------
        ValueError
            If an argument is out of range.

        Examples
        --------
        >>> from skvdd.diffusion.score_teacher import ScoreTeacher
        >>> def velocity(actions, t, states):  # exact for a normal policy N(state, 1)
        ...     mean, t = states[:, -1], t[:, None]
        ...     slope = (2 * t - 1) / ((1 - t) ** 2 + t**2)
        ...     return mean + slope * (actions - t * mean)
        >>> ScoreTeacher.from_velocity(velocity, n_actions=1)
        ScoreTeacher(n_actions=1, noise_min=0.03, noise_max=5)
        """
        return cls(
            VelocityScore(velocity),
            n_actions=n_actions,
            noise_min=noise_min,
            noise_max=noise_max,
            action_mean=action_mean,
            action_scale=action_scale,
        )

    @property
    def device(self) -> torch.device:
        """Where `sample` calls the function."""
        network = getattr(self.function, "network", self.function)
        parameters = network.parameters() if isinstance(network, torch.nn.Module) else ()
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return next((p.device for p in parameters), torch.device(default))

    def prepare(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return ``X`` (n, ...) as a finite float64 array of the same shape, raw states."""
        # Copied, as PyTorch wants arrays writable, and those of a data frame are not.
        return check_array(X, dtype=np.float64, allow_nd=True, copy=True, input_name="X")

    def context(self, states: Tensor) -> Tensor:
        """Return raw states (n, T, d), or flat rows, as float32: what the function takes."""
        return states.to(torch.float32)

    @torch.no_grad()
    def score(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the scores (n, S, m) of noisy standardized actions (n, S, m), in their dtype.

        ``sigma`` is (n, 1), a noise level for each state, or (n, S), one for each action. Raises
        ValueError if the function returns another shape.
        """
        if sigma.shape[1] == 1:
            return self._ask(context, actions, sigma)
        # The function is promised one level for all actions of a state.
        rows = context.repeat_interleave(actions.shape[1], dim=0)
        score = self._ask(rows, actions.flatten(0, 1)[:, None], sigma.reshape(-1, 1))
        return score.reshape(actions.shape)

    def denoise(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean clean action, ``actions + sigma**2 * score`` (Tweedie); as `score`."""
        variance = sigma[..., None].to(actions).square()
        return torch.addcmul(actions, variance, self.score(context, actions, sigma))

    def sample(
        self, X: ArrayLike, *, random_state: int | np.random.RandomState | None = None
    ) -> NDArray[np.float64]:
        """Draw an action for each row by the ancestral sampler, in 32 steps of Karras's levels.

        Parameters
        ----------
        X : array-like of shape (n, T, d) or (n, T * d + g)
            States in raw units, of the shape that the function takes.
        random_state : int, RandomState or None, default=None
            Source of the noise, drawn row by row: a row's noise does not depend on later rows.

        Returns
        -------
        ndarray of shape (n, m), float64
            Actions in raw units.

        Raises
        ------
        ValueError
            If ``X`` is empty or not finite, or the function returns another shape.
        """
        states = torch.from_numpy(self.prepare(X))
        rng = check_random_state(random_state)
        with torch.device("cpu"):  # whatever the default device is
            sigmas = karras(N_STEPS, self.noise_min, self.noise_max).tolist()
        actions = np.concatenate([self._draw(part, sigmas, rng) for part in states.split(BLOCK)])
        return actions * self.action_scale + self.action_mean

    def _draw(self, states: Tensor, sigmas: list[float], rng: np.random.RandomState) -> NDArray:
        noise = torch.from_numpy(rng.standard_normal((len(states), 1, N_STEPS, self.n_actions)))
        parts = states.to(self.device), noise.to(self.device, torch.float32)
        return draw_actions(self, *parts, sigmas, "euler_ancestral")[:, 0].double().cpu().numpy()

    def _ask(self, states: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        score = self.function(states, actions.to(states.dtype), sigma.to(states.dtype))
        return _like(actions, score, "the score function")

    def __repr__(self) -> str:
        levels = f"noise_min={self.noise_min:.4g}, noise_max={self.noise_max:.4g}"
        return f"{type(self).__name__}(n_actions={self.n_actions}, {levels})"

    def __sklearn_clone__(self) -> Self:
        return self  # it learns nothing, and a user's network is not to be copied


@dataclass(frozen=True, eq=False)
class NoisePredictionScore:
    """The score behind `ScoreTeacher.from_noise_prediction`, whose arguments it takes; pickles.

    ``log_sigma`` are the logarithms of the noise levels of ``timesteps``, ascending.
    """

    network: Function
    timesteps: NDArray[np.integer]
    log_sigma: NDArray[np.float64]
    prediction_type: str = "epsilon"
    clip: float | None = None

    def __call__(self, states: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the scores (n, S, m) at standardized actions (n, S, m), noise levels (n, 1)."""
        grid = torch.tensor(self.log_sigma, dtype=sigma.dtype, device=sigma.device)
        wanted = sigma[:, 0].log().contiguous()
        above = torch.searchsorted(grid, wanted).clamp(1, len(grid) - 1)
        share = (wanted - grid[above - 1]) / (grid[above] - grid[above - 1])
        # Times 1 + sigma^2 it bends least, between levels as far apart as 64 and 2029 too, where
        # the score falls a thousandfold: those are the last two of 100 steps of the cosine.
        weighted = torch.lerp(
            self._weighted(states, actions, above - 1, grid),
            self._weighted(states, actions, above, grid),
            share.clamp(0.0, 1.0)[:, None, None],  # rounding must not leave the timesteps
        )
        variance = sigma[..., None].square()
        score = weighted / (1.0 + variance)
        if self.clip is None:
            return score
        clean = torch.addcmul(actions, variance, score).clamp(-self.clip, self.clip)
        return (clean - actions) / variance

    def _weighted(self, states: Tensor, actions: Tensor, index: Tensor, grid: Tensor) -> Tensor:
        """Return ``(1 + sigma**2) * score`` at one timestep for each state, given by its index."""
        timesteps = torch.tensor(self.timesteps, dtype=torch.int64, device=index.device)[index]
        sigma = grid[index, None, None].exp()
        scale = (1.0 + sigma.square()).sqrt()  # sqrt(alpha_bar) = 1 / scale
        output = _ask_rows(self.network, "network", actions / scale, timesteps, states)
        if self.prediction_type == "sample":
            return (output - actions) * (scale / sigma).square()
        if self.prediction_type == "v_prediction":
            output = (output + sigma * actions / scale) / scale
        return -output * scale.square() / sigma


@dataclass(frozen=True, eq=False)
class VelocityScore:
    """The score behind `ScoreTeacher.from_velocity`, of its ``velocity``; pickles."""

    network: Function

    def __call__(self, states: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the scores (n, S, m) at standardized actions (n, S, m), noise levels (n, 1)."""
        sigma = sigma[..., None]
        t = 1.0 / (1.0 + sigma)
        velocity = _ask_rows(self.network, "velocity", t * actions, t[:, 0, 0], states)
        return (velocity - actions) / (sigma * (1.0 + sigma))


def _ask_rows(network: Function, name: str, actions: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """Ask a network of rows for actions (n, S, m) of n states at n times; same shape back."""
    rows, n_samples = actions.flatten(0, 1), actions.shape[1]
    output = network(rows, *(part.repeat_interleave(n_samples, dim=0) for part in (t, states)))
    return _like(rows, output, name).reshape(actions.shape)


def _like(actions: Tensor, output: Any, name: str) -> Tensor:
    """Return what a user's function gave for actions, on their device, in their dtype."""
    if isinstance(output, Tensor) and output.shape == actions.shape:
        return output.detach().to(actions)
    came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"{name} must return a tensor of the shape of its actions, {tuple(actions.shape)}, got "
        f"{came}. Wrap it in a function that does."
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _check_range(n_actions: int, noise_min: float, noise_max: float) -> None:
    _require(
        isinstance(n_actions, Integral) and n_actions >= 1,
        f"n_actions must be an integer of at least 1, got {n_actions!r}.",
    )
    _require(
        0.0 < noise_min < noise_max < float("inf"),
        "noise_min and noise_max must be positive, finite and in this order, got "
        f"noise_min={noise_min} and noise_max={noise_max}.",
    )


def _unit(name: str, value: ArrayLike, n_actions: int) -> NDArray[np.float64]:
    """Return a mean or scale as one number for each action dimension."""
    unit = np.asarray(value, dtype=np.float64)
    kind = "positive and finite" if name == "action_scale" else "finite"
    valid = np.isfinite(unit) & ((unit > 0.0) | (name != "action_scale"))
    _require(
        unit.shape in {(), (1,), (n_actions,)} and bool(valid.all()),
        f"{name} must be {kind}, one number or one for each of the {n_actions} action "
        f"dimensions, got {value!r}.",
    )
    return np.broadcast_to(unit, (n_actions,)).copy()


def _check_prediction(prediction_type: str, clip: float | None) -> None:
    allowed = ("epsilon", "sample", "v_prediction")
    _require(
        prediction_type in allowed,
        f"prediction_type must be one of {allowed}, got {prediction_type!r}.",
    )
    _require(
        clip is None or 0.0 < clip < float("inf"),
        f"clip must be a positive, finite number, or None to clamp nothing, got {clip!r}.",
    )


def _schedule(alphas_cumprod: ArrayLike) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Return the timesteps that have a score, and their noise levels; float64, on the CPU."""
    if isinstance(alphas_cumprod, Tensor):
        alphas_cumprod = alphas_cumprod.detach().cpu().numpy()
    alphas = np.asarray(alphas_cumprod, dtype=np.float64)
    _require(
        alphas.ndim == 1,
        f"alphas_cumprod must be a vector, one number per timestep, got shape {alphas.shape}.",
    )
    outside = alphas[~((alphas >= 0.0) & (alphas <= 1.0))]
    _require(not len(outside), f"alphas_cumprod must lie between 0 and 1, got {outside[:1].sum()}.")
    rising = np.append(np.flatnonzero(np.diff(alphas) >= 0.0), -1)[0]
    _require(
        rising < 0,
        "alphas_cumprod must fall strictly, least noise first, got "
        f"{alphas[rising + 1]} after {alphas[rising]}.",
    )
    timesteps = np.flatnonzero((alphas > 0.0) & (alphas < 1.0))
    _require(
        len(timesteps) >= 2,
        "alphas_cumprod needs at least two timesteps strictly between 0 and 1, got "
        f"{len(timesteps)}.",
    )
    _warn_of_alphas(alphas)
    return timesteps, np.sqrt((1.0 - alphas[timesteps]) / alphas[timesteps])


def _warn_of_alphas(alphas: NDArray[np.float64]) -> None:
    """Warn of a schedule that looks like the factors of ``alphas_cumprod``, or ends early."""
    # Half way, the schedules in use are at 0.5 or below. Their factors stay above 0.9 for longer,
    # and end above 0.9 too, but for the cosine's.
    if alphas[-1] > 0.5 or np.median(alphas) > 0.9:
        warnings.warn(
            f"alphas_cumprod is {np.median(alphas):.3g} half way and {alphas[-1]:.3g} at its end, "
            "far from pure noise. If these are the factors, scheduler.alphas, pass "
            "scheduler.alphas_cumprod. If they are the products, actions cannot be drawn from "
            "pure noise: lengthen the schedule, or use this teacher at low noise only.",
            UserWarning,
            stacklevel=4,
        )
