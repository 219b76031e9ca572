"""One state in, one action out, at once: what runs on the robot. Nothing here needs torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

Array = NDArray[np.float64]
Engine = Callable[..., tuple[Array, ...]]

ROOT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Sizes:
    """Sizes of what goes through a controller.

    Parameters
    ----------
    n_states, window_size, goal_dim : int
        Dimension of a state, states in a window, dimension of the goal.
    noise_shape : tuple of int or None
        Standard normal numbers that one action takes; None for a mixture, which takes one.
    action_shape : tuple of int
        Shape of an action, ``(d_a,)`` or a chunk ``(H, d_a)``.
    low, high : ndarray of shape (T * d + g,)
        Lowest and highest values of a row; what is beyond is no reading.
    """

    n_states: int
    window_size: int
    goal_dim: int
    noise_shape: tuple[int, ...] | None
    action_shape: tuple[int, ...]
    low: Array
    high: Array


class Controller:
    """A policy in control: it keeps the window, and goes from an observation to an action.

    Made by ``policy.controller()``. Its actions are those of ``policy.act`` on the same windows
    and random numbers. It can be pickled if its engine is ``"onnx"``, and then works in a process
    without torch.

    Parameters
    ----------
    engine : callable
        Maps a row (1, F), and noise where the policy is a sampler, to the outputs of its graph.
    engine_name : str
        ``"torch"`` or ``"onnx"``.
    sizes : Sizes
        Sizes.
    random_state : int, RandomState or None
        Source of all draws.

    Attributes
    ----------
    engine_name : str
        Which engine runs.
    mixture : tuple of ndarray or None
        Gates (K,), means (K, m) and Cholesky factors (K, m, m) of the last decision, raw units;
        None before the first, and of a policy that is no mixture.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> states, actions = np.random.RandomState(0).standard_normal((2, 50, 3))
    >>> policy = GaussianMoEPolicy(2, max_iter=5, random_state=0).fit(states, actions)
    >>> controller = policy.controller(engine="torch", random_state=0)
    >>> controller.reset()
    >>> controller.act([0.0, 0.5, 1.0]).shape
    (3,)
    """

    def __init__(
        self,
        engine: Engine,
        engine_name: str,
        sizes: Sizes,
        random_state: int | np.random.RandomState | None,
    ) -> None:
        self.engine_name = engine_name
        self.mixture: tuple[Array, Array, Array] | None = None
        self._engine = engine
        self._sizes = sizes
        self._rng = check_random_state(random_state)
        n_window = sizes.n_states * sizes.window_size
        self._row = np.zeros((1, n_window + sizes.goal_dim))
        self._window = self._row[0, :n_window]
        self._goal = self._row[0, n_window:]
        self._empty: bool | None = None  # whether the window waits for its first state

    def reset(self, goal: ArrayLike | None = None) -> None:
        """Begin an episode: the next observation fills the whole window.

        Parameters
        ----------
        goal : array-like of shape (goal_dim,) or None, default=None
            What to reach, for a policy with goals.

        Raises
        ------
        ValueError
            If the goal has another shape, or is not finite.
        """
        values = np.zeros(0) if goal is None else _numbers(goal, "goal")
        if values.shape != self._goal.shape:
            raise ValueError(
                f"goal must have shape {self._goal.shape}, the goal_dim of the policy, got "
                f"{'none' if goal is None else f'shape {values.shape}'}."
            )
        n = len(self._window)
        _check_range(values, self._sizes.low[n:], self._sizes.high[n:], "goal")
        self._goal[:] = values
        self.mixture = None
        self._empty = True

    def act(self, observation: ArrayLike) -> Array:
        """Return the action for what is observed now.

        Parameters
        ----------
        observation : array-like of shape (d,)
            The state.

        Returns
        -------
        ndarray of shape (d_a,) or (H, d_a); (1,) where `fit` was given plain numbers
            What ``policy.act`` does: of a mixture, the mean of an expert drawn from the gating. It
            is yours to change.

        Raises
        ------
        ValueError
            If the observation has another shape, is not finite, or is so far from all training
            data that it can be no reading.
        RuntimeError
            If `reset` has not been called.
        """
        self._push(observation)
        sizes = self._sizes
        if sizes.noise_shape is not None:
            noise = self._rng.standard_normal(sizes.noise_shape)
            return self._engine(self._row, noise[None])[0][0].reshape(sizes.action_shape)
        gates, means, scale_trils = self._engine(self._row)
        self.mixture = gates[0], means[0], scale_trils[0]
        expert = _draw(gates[0], self._rng.standard_normal())
        return means[0, expert].copy().reshape(sizes.action_shape)

    def _push(self, observation: ArrayLike) -> None:
        """Move the window on by one state."""
        if self._empty is None:
            raise RuntimeError("Call reset() before act(): an episode must begin.")
        state = _numbers(observation, "observation")
        n = self._sizes.n_states
        if state.shape != (n,):
            raise ValueError(
                f"observation must be {n} finite numbers, shape ({n},), got shape {state.shape}."
            )
        _check_range(state, self._sizes.low[:n], self._sizes.high[:n], "observation")
        if self._empty:
            self._window.reshape(-1, n)[:] = state
            self._empty = False
            return
        self._window[:-n] = self._window[n:]
        self._window[-n:] = state

    def __repr__(self) -> str:
        sizes = self._sizes
        return (
            f"Controller(engine={self.engine_name!r}, window_size={sizes.window_size}, "
            f"n_states={sizes.n_states}, action_shape={sizes.action_shape})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Controller:
        """Return a controller of its own window and draws, on the same engine."""
        rng = copy.deepcopy(self._rng, memo)
        new = Controller(self._engine, self.engine_name, self._sizes, rng)
        new._row[:] = self._row
        new._empty, new.mixture = self._empty, copy.deepcopy(self.mixture, memo)
        return new

    def __getstate__(self) -> dict[str, Any]:
        if self.engine_name != "onnx":
            raise TypeError(
                f"a controller with engine={self.engine_name!r} cannot be pickled; make one with "
                "engine='onnx', or save the policy."
            )
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        n_window = self._sizes.n_states * self._sizes.window_size
        self._window, self._goal = self._row[0, :n_window], self._row[0, n_window:]


def _draw(gates: Array, normal: float) -> int:
    """Return the expert that a standard normal number picks from gates (K,)."""
    uniform = 0.5 * math.erfc(-ROOT_HALF * normal)
    # Rounding may leave the last sum a hair below one: the last expert takes what is beyond.
    return min(int(gates.cumsum().searchsorted(uniform)), len(gates) - 1)


def _numbers(values: Any, name: str) -> Array:
    """Return what was given as float64, or a ValueError that names it."""
    if not isinstance(values, dict) and not np.ma.is_masked(values):
        try:
            return np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError):  # the last of a tensor that needs a gradient
            pass
    raise ValueError(
        f"{name} must be a vector of numbers that NumPy can read, got a {type(values).__name__}. "
        "Join the entries of a dictionary into one array, in the order of the columns of X in fit."
    )


def _check_range(values: Array, low: Array, high: Array, name: str) -> None:
    """Raise a ValueError unless all values lie between the bounds, which NaN never does."""
    inside = (low <= values) & (values <= high)
    if not inside.all():
        i = int(np.argmin(inside))
        raise ValueError(
            f"{name} must be finite and near the data of fit, got {values[i]} as entry {i}. Is it "
            "the placeholder of a missing reading?"
        )
