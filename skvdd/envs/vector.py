"""A pool of environments that is stepped together, for any Gymnasium environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")
Env: TypeAlias = gymnasium.Env[Any, Any]

MIN_SHARED = 4  # with fewer environments, waking the threads costs more than it gains


class EnvPool:
    """Several environments of one kind, reset and stepped in any combination.

    Unlike Gymnasium's vector environments a pool does not reset by itself: the caller names
    the environments that take part in each call, so an episode that is over costs nothing
    and no step is wasted. Environments share nothing but their model; results depend
    neither on their number nor on the number of threads.

    An environment is made, reset, stepped and closed in one and the same thread, as contexts of
    OpenGL demand, in which it may render.

    Parameters
    ----------
    env_id : str
        Any id that `gymnasium.make` knows.
    n_envs : int
        How many to make.
    n_threads : int or None, default=None
        Threads that step. MuJoCo releases Python's lock while it simulates, so two idle
        cores step 32 Avoiding environments 1.4 to 1.8 times as fast as one. None takes one thread
        per core, at most 8. Fewer than four environments have one thread, and so have those with a
        ``render_mode``: the caller's own.
    wrap : callable or None, default=None
        ``wrap(env)`` is what takes the place of each environment, as a `gymnasium.Wrapper` does.
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
        self,
        env_id: str,
        n_envs: int,
        *,
        n_threads: int | None = None,
        wrap: Callable[[Env], Env] | None = None,
        **make_kwargs: Any,
    ) -> None:
        _check_at_least_one("n_envs", n_envs)
        if n_threads is None:
            n_threads = min(_n_cores(), 8)
        _check_at_least_one("n_threads", n_threads)
        self.env_id = env_id
        alone = n_envs < MIN_SHARED or make_kwargs.get("render_mode") is not None
        self.n_threads = 1 if alone else min(n_threads, n_envs)
        make_kwargs.setdefault("disable_env_checker", True)
        # Environment i is in the hands of thread i % n_threads; a single one is the caller's.
        n_workers = self.n_threads if self.n_threads > 1 else 0
        self._threads = [ThreadPoolExecutor(1) for _ in range(n_workers)]
        self._process = os.getpid()
        self._closed = False
        self.envs: list[Env] = []

        def make() -> Env:
            env = gymnasium.make(env_id, **make_kwargs)
            return env if wrap is None else wrap(env)

        try:
            # One after the other: what environments share is loaded once.
            for index in range(n_envs):
                self.envs.append(self._call(index, make))
        except BaseException:
            with suppress(Exception):
                self.close()
            raise

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
        results = self._run("reset", reset_one, indices, starts)
        observations, infos = zip(*results, strict=True)
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
        observations, rewards, terminated, truncated, infos = zip(*results, strict=True)
        return (
            self._stack(observations),
            # Some environments give arrays of one element.
            np.array([np.asarray(reward).item() for reward in rewards], dtype=np.float64),
            np.array([np.asarray(over).item() for over in terminated], dtype=bool),
            np.array([np.asarray(over).item() for over in truncated], dtype=bool),
            list(infos),
        )

    def close(self) -> None:
        """Close all environments and end the threads; can be called more than once."""
        if self._closed:
            return
        self._closed = True

        def close_one(index: int, _: None) -> None:
            self.envs[index].close()

        everyone = range(len(self.envs))
        try:
            self._run("close", close_one, everyone, [None] * len(everyone))
        finally:
            for thread in self._threads:
                thread.shutdown()

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

    def _call(self, index: int, function: Callable[[], T]) -> T:
        """Call a function in the thread of an environment."""
        if not self._threads:
            return function()
        return self._threads[index % self.n_threads].submit(function).result()

    def _run(
        self,
        verb: str,
        function: Callable[[int, Any], T],
        indices: Sequence[int],
        arguments: Sequence[Any] | NDArray[Any],
    ) -> list[T]:
        """Call `function` for every environment and its argument, in the environment's thread."""
        pairs = [(int(i), argument) for i, argument in zip(indices, arguments, strict=True)]

        def run_share(rows: Iterable[int]) -> list[T | Exception]:
            return [_attempt(function, *pairs[row]) for row in rows]

        results: dict[int, T | Exception]
        if not self._threads:
            results = dict(enumerate(run_share(range(len(pairs)))))
        else:
            if os.getpid() != self._process:  # it would wait for ever
                raise RuntimeError(
                    "A pool with threads can only be used by the process that has made it: threads "
                    "do not survive a fork. Make a pool in each process, or give n_threads=1."
                )
            # One share per thread: handing over single steps costs more than it gains.
            shares: dict[int, list[int]] = {}
            for row, (index, _) in enumerate(pairs):
                shares.setdefault(index % self.n_threads, []).append(row)
            futures = [self._threads[thread].submit(run_share, shares[thread]) for thread in shares]
            results = {
                row: result
                for rows, future in zip(shares.values(), futures, strict=True)
                for row, result in zip(rows, future.result(), strict=True)
            }
        return [self._result(verb, index, results[row]) for row, (index, _) in enumerate(pairs)]

    def _result(self, verb: str, index: int, result: T | Exception) -> T:
        """Return what a call gave, or raise its exception with the name of the environment."""
        if isinstance(result, Exception):
            raise RuntimeError(
                f"Environment {index} of {len(self)} ({self.env_id}) failed in {verb}: "
                f"{type(result).__name__}: {result}"
            ) from result
        return result

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
