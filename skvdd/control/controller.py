"""One state in, one action out, at once: what runs on the robot. Nothing here needs torch."""

from __future__ import annotations

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
class Layout:
    """Sizes of what goes through a controller.

    Parameters
    ----------
    n_states, window_size, goal_dim : int
        Dimension of a state, states in a window, dimension of the goal.
    noise_shape : tuple of int or None
        Standard normal numbers that one action takes; None for a mixture, which takes one.
    """

    n_states: int
    window_size: int
    goal_dim: int
    noise_shape: tuple[int, ...] | None


class Controller:
    """A policy in control: it keeps the window, and decides with nothing else on the way.

    Made by ``policy.controller()``. Its actions are those of ``policy.act`` on the same windows
    and random numbers. It can be pickled if its engine is ``"numpy"``, and then works in a process
    without torch.

    Parameters
    ----------
    engine : callable
        Maps a row (1, F), and noise where the policy is a sampler, to the outputs of its graph.
    engine_name : str
        ``"torch"``, ``"onnx"`` or ``"numpy"``.
    layout : Layout
        Sizes.
    random_state : int, RandomState or None
        Source of all draws.

    Attributes
    ----------
    engine_name : str
        Which engine runs.
    mixture : tuple of ndarray or None
        Gates (K,), means (K, d_a) and Cholesky factors (K, d_a, d_a) of the last decision, raw
        units; None before the first, and of a policy that is no mixture.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> states, actions = np.random.RandomState(0).standard_normal((2, 50, 3))
    >>> policy = GaussianMoEPolicy(2, max_iter=5, random_state=0).fit(states, actions)
    >>> controller = policy.controller(engine="numpy", random_state=0)
    >>> controller.reset()
    >>> controller.act([0.0, 0.5, 1.0]).shape
    (3,)
    """

    def __init__(
        self,
        engine: Engine,
        engine_name: str,
        layout: Layout,
        random_state: int | np.random.RandomState | None,
    ) -> None:
        self.engine_name = engine_name
        self.mixture: tuple[Array, Array, Array] | None = None
        self._engine = engine
        self._layout = layout
        self._rng = check_random_state(random_state)
        n_window = layout.n_states * layout.window_size
        self._row = np.zeros((1, n_window + layout.goal_dim))
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
        values = np.zeros(0) if goal is None else np.asarray(goal, dtype=np.float64)
        if values.shape != self._goal.shape:
            raise ValueError(
                f"goal must have shape {self._goal.shape}, the goal_dim of the policy, got "
                f"{'none' if goal is None else f'shape {values.shape}'}."
            )
        if not np.isfinite(values).all():
            raise ValueError(f"goal must be finite, got {values.tolist()}.")
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
        ndarray of shape (d_a,)
            What ``policy.act`` does: of a mixture, the mean of an expert drawn from the gating.

        Raises
        ------
        ValueError
            If the observation has another shape, or is not finite.
        RuntimeError
            If `reset` has not been called.
        """
        self._see(observation)
        if self._layout.noise_shape is not None:
            noise = self._rng.standard_normal(self._layout.noise_shape)
            return self._engine(self._row, noise[None])[0][0]
        gates, means, scale_trils = self._engine(self._row)
        self.mixture = gates[0], means[0], scale_trils[0]
        return means[0, _draw(gates[0], self._rng.standard_normal())]

    def _see(self, observation: ArrayLike) -> None:
        """Move the window on by one state."""
        if self._empty is None:
            raise RuntimeError("Call reset() before act(): an episode must begin.")
        state = np.asarray(observation, dtype=np.float64)
        n = self._layout.n_states
        if state.shape != (n,) or not math.isfinite(state.sum()):
            raise ValueError(
                f"observation must be {n} finite numbers, shape ({n},), got shape {state.shape}"
                f"{'' if np.isfinite(state).all() else ' with NaN or infinity'}."
            )
        if self._empty:
            self._window.reshape(-1, n)[:] = state
            self._empty = False
            return
        self._window[:-n] = self._window[n:]
        self._window[-n:] = state

    def __getstate__(self) -> dict[str, Any]:
        if self.engine_name != "numpy":
            raise TypeError(
                f"a controller with engine={self.engine_name!r} cannot be pickled; make one with "
                "engine='numpy', or save the policy."
            )
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        n_window = self._layout.n_states * self._layout.window_size
        self._window, self._goal = self._row[0, :n_window], self._row[0, n_window:]


def _draw(gates: Array, normal: float) -> int:
    """Return the expert that a standard normal number picks from gates (K,)."""
    uniform = 0.5 * math.erfc(-ROOT_HALF * normal)
    # Rounding may leave the last sum a hair below one: the last expert takes what is beyond.
    return min(int(gates.cumsum().searchsorted(uniform)), len(gates) - 1)
