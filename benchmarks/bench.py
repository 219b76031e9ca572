"""What the sections of `benchmarks.speed` share: their subjects, and the form of their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from benchmarks.limits import Machine
from benchmarks.stopwatch import Times
from skvdd import DiffusionPolicy, TransformerEncoder, VDDDistiller
from skvdd.datasets import load_demonstrations

Row = tuple[Any, ...]

WINDOW_SIZE = 5
TRANSFORMER = {"encoder": TransformerEncoder(72, 4), "hidden_size": 72, "n_layers": 4}


class Bench:
    """Demonstrations, policies and machines, each made once.

    How well a policy acts does not matter to its speed, so they are barely trained.
    """

    def __init__(self) -> None:
        self._machines: dict[int, Machine] = {}

    @cached_property
    def data(self) -> tuple[NDArray, NDArray]:
        """State windows (n, T, d) and actions (n, d_a) of Avoiding."""
        states, actions, _ = load_demonstrations("avoiding").windows(window_size=WINDOW_SIZE)
        return states, actions

    @cached_property
    def teacher(self) -> DiffusionPolicy:
        """The default teacher."""
        policy = DiffusionPolicy(window_size=WINDOW_SIZE, max_iter=20, random_state=0)
        return policy.fit(*self.data)

    @cached_property
    def published_teacher(self) -> DiffusionPolicy:
        """A teacher of the published architecture and size."""
        shape = {"architecture": "gpt", "hidden_size": 72, "n_layers": 4}
        policy = DiffusionPolicy(window_size=WINDOW_SIZE, max_iter=1, random_state=0, **shape)
        return policy.fit(*self.data)

    @cached_property
    def students(self) -> dict[str, VDDDistiller]:
        """The default student, and one of the published architecture and size."""
        students = {"default student": student(), "transformer 4 x 72": student(**TRANSFORMER)}
        for policy in students.values():
            policy.set_params(max_iter=1).fit(*self.data, teacher=self.teacher)
        return students

    def machine(self, n_threads: int = 1) -> Machine:
        """Return what the machine can do with so many threads."""
        if n_threads not in self._machines:
            self._machines[n_threads] = Machine.measure(n_threads)
        return self._machines[n_threads]


@dataclass(frozen=True)
class Section:
    """A table of the report.

    Parameters
    ----------
    title : str
        What it shows.
    columns : tuple of str
        Heads of the columns.
    rows : callable
        Measures and yields the rows, cells as they are printed; None is an empty one.
    """

    title: str
    columns: tuple[str, ...]
    rows: Callable[[Bench], Iterator[Row]]

    def show(self, bench: Bench) -> None:
        """Measure, and print each row as soon as it is there."""
        print(f"\n**{self.title}**\n")
        print(_line(self.columns))
        print(_line("---" for _ in self.columns))
        for row in self.rows(bench):
            print(_line("" if cell is None else str(cell) for cell in row), flush=True)


def student(**parameters: Any) -> VDDDistiller:
    """Return a fresh student whose experts start without training."""
    return VDDDistiller(init_iter=0, window_size=WINDOW_SIZE, random_state=0, **parameters)


def milliseconds(seconds: float | None) -> str | None:
    """Return a time as it is printed."""
    if seconds is None:
        return None
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def both(times: Times) -> tuple[str | None, str | None]:
    """Return median and 99th percentile as they are printed."""
    return milliseconds(times.median), milliseconds(times.high)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
