"""How times are taken: medians of many calls, on a known number of threads."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from skvdd.training import Run
from skvdd.training import threads as threads_of_fits

N_CALLS = 1000  # of a function that is timed, unless it is too slow
LONGEST = 4.0  # s, after which no more calls are begun
FEWEST = 5  # calls, however slow


@dataclass(frozen=True)
class Times:
    """Seconds of a call.

    Parameters
    ----------
    median, high : float
        Median and 99th percentile.
    """

    median: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Return those of some calls."""
        return cls(float(np.median(seconds)), float(np.quantile(seconds, 0.99)))


class Clock:
    """A callback that notes the time whenever a report of a training run ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def setup(self, estimator: Any, context: Any) -> None:
        """Do nothing at the beginning of `fit`."""

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing at the beginning of a task."""

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """Note the time of a leaf task."""
        if context.max_subtasks == 0:
            self.times.append(time.perf_counter())

    def teardown(self, estimator: Any, context: Any) -> None:
        """Do nothing at the end of `fit`."""


class Stopwatch:
    """A callback that counts the seconds of a fit, those before it was killed among them.

    They go into the notes of each run, which a `~skvdd.callbacks.Checkpoint` that comes after it
    writes and reads. What was done after the last writing, and what was prepared a second time,
    does not count twice: the sum is what the fit would have taken in one piece.

    Parameters
    ----------
    clock : callable
        Returns seconds.

    Attributes
    ----------
    seconds : float
        Those of the last fit so far.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.seconds = clock, 0.0

    def setup(self, estimator: Any, context: Any) -> None:
        """Start at nought."""
        self.seconds, self._last = 0.0, self.clock()

    def on_fit_task_begin(self, estimator: Any, context: Any, *, metadata: Any = None) -> None:
        """Count on when the fit, a run or a report begins."""
        self._count(metadata)

    def on_fit_task_end(self, estimator: Any, context: Any, *, metadata: Any = None) -> None:
        """Count on when one ends."""
        self._count(metadata)

    def teardown(self, estimator: Any, context: Any) -> None:
        """Count what came after the last of them."""
        self._count(None)

    def _count(self, metadata: Any) -> None:
        now = self.clock()
        self.seconds, self._last = self.seconds + now - self._last, now
        run = (metadata or {}).get("run")
        if isinstance(run, Run):
            notes = run.notes.setdefault("stopwatch", {"seconds": 0.0})
            # More than here has been counted where a checkpoint has just put back its notes.
            self.seconds = notes["seconds"] = max(self.seconds, notes["seconds"])


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch and NumPy use so many threads, in fits of small networks too."""
    before, small = torch.get_num_threads(), threads_of_fits.SMALL_WORK
    torch.set_num_threads(n)
    threads_of_fits.SMALL_WORK = 0.0  # below it, a fit would take one
    try:
        with threadpool_limits(n):
            yield
    finally:
        torch.set_num_threads(before)
        threads_of_fits.SMALL_WORK = small


def time_calls(
    function: Callable[..., Any], arguments: Sequence[Any], n_calls: int = N_CALLS
) -> Times:
    """Time a function, called with each of some arguments in turn, after a tenth to warm up."""
    calls = itertools.cycle(arguments)
    _seconds(function, calls, n_calls // 10, LONGEST / 10)
    return Times.of(_seconds(function, calls, n_calls, LONGEST))


def time_each(function: Callable[..., Any], arguments: Sequence[Any]) -> list[float]:
    """Return the seconds of a call with each of some arguments."""
    return _seconds(function, iter(arguments), len(arguments), math.inf)


def seconds_per_iteration(
    estimator: Any, n_iterations: int, *data: Any, **fit_params: Any
) -> float:
    """Fit for so many iterations, at most 100, and return the median time of one."""
    clock = Clock()
    estimator.set_params(max_iter=n_iterations, random_state=0).set_callbacks(clock)
    estimator.fit(*data, **fit_params)
    estimator.set_callbacks()
    return float(np.median(np.diff(clock.times)))


def _seconds(
    function: Callable[..., Any], calls: Iterator[Any], n_calls: int, longest: float
) -> list[float]:
    """Return the seconds of each call: so many calls, or fewer if they take too long."""
    seconds: list[float] = []
    while len(seconds) < n_calls and (sum(seconds) < longest or len(seconds) < FEWEST):
        argument = next(calls)
        start = time.perf_counter()
        function(argument)
        seconds.append(time.perf_counter() - start)
    return seconds
