"""A pool of environments that is stepped together, for any Gymnasium environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")

MIN_SHARED = 4  # with fewer environments, waking the threads costs more than it gains


class EnvPool:
    """Several environments of one kind, reset and stepped in any combination.

    Unlike Gymnasium's vector environments a pool does not reset by itself: the caller names
    the environments that take part in each call, so an episode that is over costs nothing
    and no step is wasted. Environments share nothing but their model; results depend
    neither on their number nor on the number of threads.

    Parameters
    ----------
    env_id : str
        Any id that `gymnasium.make` knows.
    n_envs : int
        How many to make.
    n_threads : int or None, default=None
        Threads that step. MuJoCo releases Python's lock while it simulates, so two idle
        cores step 32 Avoiding environments 1.4 to 1.8 times as fast as one. None takes one thread
        per core, at most 8 and at most one per environment.
    **make_kwargs
        Passed on to `gymnasium.make`. Its passive checker is off unless asked for.

    Examples
    --------
    >>> from skvdd.envs import EnvPool
    >>> with EnvPool("CartPole-v1", 3) as pool:
    ...     observations, infos = pool.reset([0, 1, 2], seeds=[7, 8, 9])
    ...     observations, rewards, terminated, truncated, infos = pool.step([0, 2], [1, 0])
    >>> observations.shape, rewards
    ((2, 4), array([1., 1.]))
    """

    def __init__(
        self, env_id: str, n_envs: int, *, n_threads: int | None = None, **make_kwargs: Any
    ) -> None:
        _check_at_least_one("n_envs", n_envs)
        if n_threads is None:
            n_threads = min(_n_cores(), 8)
        _check_at_least_one("n_threads", n_threads)
        self.env_id = env_id
        self.n_threads = min(n_threads, n_envs)
        make_kwargs.setdefault("disable_env_checker", True)
        self.envs = [gymnasium.make(env_id, **make_kwargs) for _ in range(n_envs)]
        self._executor = ThreadPoolExecutor(self.n_threads) if self.n_threads > 1 else None

    # -- what the environments are ----------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of environments."""
        return len(self.envs)

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Space of one environment's observations."""
        return self.envs[0].observation_space

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Space of one environment's actions."""
        return self.envs[0].action_space

    @property
    def n_behaviors(self) -> int | None:
        """Number of behaviours that solve the task, None where the task does not say."""
        return getattr(self.envs[0].unwrapped, "n_behaviors", None)

    @property
    def skips_unsolved(self) -> bool:
        """Whether contexts without a success are left out of the task entropy."""
        return getattr(self.envs[0].unwrapped, "skips_unsolved", False)

    # -- what they do -------------------------------------------------------------------------

    def reset(
        self,
        indices: Sequence[int],
        seeds: Sequence[int | None],
        options: Sequence[dict[str, Any] | None] | None = None,
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Start episodes.

        Parameters
        ----------
        indices : sequence of k int
            Which environments.
        seeds : sequence of k int or None
            One seed for each.
        options : sequence of k dict or None, default=None
            Options for each; None for all without.

        Returns
        -------
        observations : ndarray of shape (k, ...)
            First observations, stacked; dictionaries and tuples of stacks for such spaces.
        infos : list of k dict
            As `reset` of the environments returns them.
        """
        self._check_lengths(indices, "seeds", seeds)
        if options is None:
            options = [None] * len(indices)
        self._check_lengths(indices, "options", options)

        def reset_one(index: int, start: tuple[int | None, Any]) -> tuple[Any, dict[str, Any]]:
            seed, option = start
            return self.envs[index].reset(seed=seed, options=option)

        starts = list(zip(seeds, options, strict=True))
        observations, infos = self._run("reset", reset_one, indices, starts)
        return self._stack(observations), list(infos)

    def step(
        self, indices: Sequence[int], actions: ArrayLike
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], list[dict]]:
        """Take one step in some environments.

        Parameters
        ----------
        indices : sequence of k int
            Which environments.
        actions : array-like of shape (k, d_a)
            One action for each.

        Returns
        -------
        observations : ndarray of shape (k, ...)
            As from `reset`.
        rewards : ndarray of shape (k,)
            Rewards.
        terminated, truncated : ndarray of shape (k,)
            Whether the episode is over, and why; a finished environment waits for `reset`.
        infos : list of k dict
            As `step` of the environments returns them.
        """
        actions = np.asarray(actions)
        self._check_lengths(indices, "actions", actions)

        def step_one(index: int, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            return self.envs[index].step(action)

        results = self._run("step", step_one, indices, actions)
        observations, rewards, terminated, truncated, infos = results
        return (
            self._stack(observations),
            np.array(rewards, dtype=np.float64),
            np.array(terminated, dtype=bool),
            np.array(truncated, dtype=bool),
            list(infos),
        )

    def close(self) -> None:
        """Close all environments and end the threads; can be called more than once."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        for env in self.envs:
            env.close()

    def __enter__(self) -> Self:
        """Return the pool itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the pool."""
        self.close()

    # -- how ------------------------------------------------------------------------------

    def _run(
        self, verb: str, function: Callable[..., T], indices: Sequence[int], arguments: Any
    ) -> Any:
        """Call `function` for every pair; return the columns of its results."""
        pairs = [(int(i), argument) for i, argument in zip(indices, arguments, strict=True)]

        def run_chunk(chunk: list[tuple[int, Any]]) -> list[T | Exception]:
            return [_attempt(function, index, argument) for index, argument in chunk]

        if self._executor is None or len(pairs) < MIN_SHARED:
            results = run_chunk(pairs)
        else:
            # One chunk per thread: handing over single steps costs more than it gains.
            size = -(-len(pairs) // self.n_threads)
            chunks = [pairs[i : i + size] for i in range(0, len(pairs), size)]
            results = [r for chunk in self._executor.map(run_chunk, chunks) for r in chunk]
        for (index, _), result in zip(pairs, results, strict=True):
            if isinstance(result, Exception):
                raise RuntimeError(
                    f"Environment {index} of {len(self)} ({self.env_id}) failed in {verb}: "
                    f"{type(result).__name__}: {result}"
                ) from result
        return zip(*results, strict=True)

    def _stack(self, observations: Sequence[Any]) -> Any:
        """Put observations of a few environments together."""
        space = self.observation_space
        if isinstance(space, spaces.Dict | spaces.Tuple):
            stacks: Any = create_empty_array(space, len(observations))
            return concatenate(space, observations, stacks)
        return np.stack(observations)

    def _check_lengths(self, indices: Sequence[int], name: str, values: Any) -> None:
        """Refuse what would step an environment twice, none, or one that is not there."""
        if len(indices) == 0:
            raise ValueError("indices must name at least one environment, got none.")
        if len(values) != len(indices):
            raise ValueError(
                f"{name} must have one row per index, got {len(values)} for {len(indices)} indices."
            )
        if len(set(indices)) < len(indices) or min(indices) < 0 or max(indices) >= len(self):
            raise ValueError(
                f"indices must be distinct and lie in [0, {len(self) - 1}], got "
                f"{[int(i) for i in indices]}."
            )


def _attempt(function: Callable[..., T], index: int, argument: Any) -> T | Exception:
    """Return the result, or the exception, so that one failure does not hide another."""
    try:
        return function(index, argument)
    except Exception as error:
        return error


def _check_at_least_one(name: str, value: object) -> None:
    """Refuse a number that is not a positive integer."""
    if not (isinstance(value, int | np.integer) and value >= 1):
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def _n_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
