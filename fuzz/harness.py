"""Runs cases of a target, watches time and memory, and keeps what should not have happened."""

from __future__ import annotations

import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

import numpy as np

SLOW = 1.0  # processor seconds of one case that are too many
HANG = 120  # seconds by the clock after which a case is given up; the machine may be busy
ALARM_EVERY = 64  # cases: setting it costs as much as a case
MEMORY = 2 * 2**30  # bytes that the cases may take beyond what the libraries take


@dataclass(frozen=True)
class Target:
    """Something that takes whatever it is given.

    Parameters
    ----------
    name : str
        What the reports call it.
    share : int
        Cases of it among those of all targets, relative to theirs.
    case : callable
        Draws an input from a `numpy.random.RandomState` and tries it. What it raises beyond
        ``allowed`` is a finding.
    allowed : tuple of exception types, default=(ValueError,)
        How the input may be refused.
    prepare : callable, default=None
        Makes what the cases share, before time and memory are watched.
    """

    name: str
    share: int
    case: Callable[[np.random.RandomState], None]
    allowed: tuple[type[Exception], ...] = (ValueError,)
    prepare: Callable[[], object] | None = None


@dataclass
class Report:
    """What became of the cases of one target."""

    name: str
    n_cases: int = 0
    n_refused: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    findings: dict[str, tuple[int, int]] = field(default_factory=dict)  # what: first case, count

    def __str__(self) -> str:
        head = (
            f"{self.name:<16} {self.n_cases:>9} cases, {self.n_refused:>9} refused, "
            f"{self.n_cases / max(self.seconds, 1e-9):>7.0f} a second, slowest "
            f"{1000 * self.slowest:.0f} ms, {len(self.findings)} findings"
        )
        found = [
            f"    case {first} ({count} like it): {what}"
            for what, (first, count) in self.findings.items()
        ]
        return "\n".join([head, *found])


class Hang(BaseException):
    """A case took longer than `HANG` seconds."""


def run(target: Target, cases: range, seed: int, seconds: float = np.inf) -> Report:
    """Try cases of a target.

    Parameters
    ----------
    target : Target
        What is tried.
    cases : range
        Numbers of the cases: with the seed a number decides everything about its case.
    seed : int
        Seed of the run.
    seconds : float, default=inf
        By the clock, after which no further case is begun.

    Returns
    -------
    Report
    """
    report = Report(target.name)
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _give_up)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning is an answer
        for case in cases:
            if time.perf_counter() - start > seconds:
                break
            if case % ALARM_EVERY == 0:
                signal.alarm(HANG)
            _try(target, case, seed, report)
    signal.alarm(0)
    report.seconds = time.perf_counter() - start
    return report


def limit_memory() -> None:
    """Let allocations beyond `MEMORY` fail from now on, instead of taking the machine down."""
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))


def peak_memory() -> float:
    """Return the most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _try(target: Target, case: int, seed: int, report: Report) -> None:
    """Try a case, and once more if it was slow: the clock also runs while others compute."""
    before = time.perf_counter()
    try:
        target.case(_source(target, case, seed))
    except target.allowed:
        report.n_refused += 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _keep(report, case, _describe(error))
    taken = time.perf_counter() - before
    report.n_cases += 1
    if taken > SLOW:
        taken = _processor_seconds(target, case, seed)
    report.slowest = max(report.slowest, taken)
    if taken > SLOW:
        _keep(report, case, f"took longer than {SLOW} s of the processor")


def _source(target: Target, case: int, seed: int) -> np.random.RandomState:
    return np.random.RandomState([seed, *target.name.encode(), case])


def _processor_seconds(target: Target, case: int, seed: int) -> float:
    """Return how long a case takes of the processor."""
    before = time.process_time()
    with suppress(BaseException):
        target.case(_source(target, case, seed))
    return time.process_time() - before


def _keep(report: Report, case: int, what: str) -> None:
    first, count = report.findings.get(what, (case, 0))
    report.findings[what] = (first, count + 1)


def _describe(error: BaseException) -> str:
    """Return type, place and first line: the same for errors with the same cause."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = str(error).partition("\n")[0][:100]
    return f"{type(error).__name__} in {place.name}, {place.filename}:{place.lineno}: {message}"


def _give_up(number: int, frame: FrameType | None) -> NoReturn:
    raise Hang(f"still running after {HANG} s")
