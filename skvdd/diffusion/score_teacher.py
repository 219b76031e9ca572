"""Teachers made of a score function, or of a network that predicts noise, actions or velocity."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_random_state
from torch import Tensor

from skvdd.diffusion.noise import karras
from skvdd.diffusion.prediction import (
    Function,
    NoisePredictionScore,
    VelocityScore,
    check_noise_levels,
    check_prediction,
    check_schedule,
    check_unit,
    like_actions,
    require,
)
from skvdd.nn.samplers import draw_actions

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
        check_noise_levels(n_actions, noise_min, noise_max)
        self.function, self.n_actions = score, int(n_actions)
        self.noise_min, self.noise_max = float(noise_min), float(noise_max)
        self.action_mean = check_unit("action_mean", action_mean, self.n_actions)
        self.action_scale = check_unit("action_scale", action_scale, self.n_actions)

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
        timesteps, sigma = check_schedule(alphas_cumprod)
        check_prediction(prediction_type, clip)
        low = sigma[0] if noise_min is None else noise_min
        high = sigma[-1] if noise_max is None else noise_max
        require(
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
        n_actions : int
            Number m of numbers in an action.
        action_mean, action_scale : float or array-like of shape (m,), default=0.0, 1.0
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
        """Return observations as an array.

        Parameters
        ----------
        X : array-like of shape (n, ...)
            Raw states.

        Returns
        -------
        ndarray of shape (n, ...)
            Finite float64.
        """
        # Copied, as PyTorch wants arrays writable, and those of a data frame are not.
        return check_array(X, dtype=np.float64, allow_nd=True, copy=True, input_name="X")

    def context(self, states: Tensor) -> Tensor:
        """Return what the function takes.

        Parameters
        ----------
        states : Tensor of shape (n, T, d) or (n, T * d + g)
            Raw states.

        Returns
        -------
        Tensor of the same shape
            In float32.
        """
        return states.to(torch.float32)

    @torch.no_grad()
    def score(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the scores of noisy standardized actions.

        Parameters
        ----------
        context : Tensor of shape (n, ...)
            States, from `context`.
        actions : Tensor of shape (n, S, m)
            Noisy actions.
        sigma : Tensor of shape (n, 1) or (n, S)
            A noise level for each state, or for each action.

        Returns
        -------
        Tensor of shape (n, S, m)
            In the dtype of the actions.

        Raises
        ------
        ValueError
            If the function returns another shape.
        """
        if sigma.shape[1] == 1:
            return self._ask(context, actions, sigma)
        # The function is promised one level for all actions of a state.
        rows = context.repeat_interleave(actions.shape[1], dim=0)
        score = self._ask(rows, actions.flatten(0, 1)[:, None], sigma.reshape(-1, 1))
        return score.reshape(actions.shape)

    def denoise(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean clean action, ``actions + sigma**2 * score`` (Tweedie's formula).

        Parameters
        ----------
        context, actions, sigma : Tensor
            As for `score`.

        Returns
        -------
        Tensor of shape (n, S, m)
        """
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
        return like_actions(actions, score, "the score function")

    def __repr__(self) -> str:
        levels = f"noise_min={self.noise_min:.4g}, noise_max={self.noise_max:.4g}"
        return f"{type(self).__name__}(n_actions={self.n_actions}, {levels})"

    def __sklearn_clone__(self) -> Self:
        return self  # it learns nothing, and a user's network is not to be copied
