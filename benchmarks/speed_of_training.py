"""The sections of `benchmarks.speed` on training: one iteration, and how it grows."""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import (
    TRANSFORMER,
    WINDOW_SIZE,
    Bench,
    Row,
    Section,
    milliseconds,
    student,
)
from benchmarks.limits import flops_per_iteration
from benchmarks.stopwatch import Clock, seconds_per_iteration, threads
from skvdd import DiffusionPolicy, GaussianMoEPolicy, VDDDistiller

PUBLISHED_ITERATION = 9.6  # s, on 2 threads: 2 expert steps and 1 gating step at these shapes
PUBLISHED_SHAPES = {"batch_size": 1024, "n_experts": 8, "n_samples": 2}
EXPERTS = (1, 2, 4, 8, 16, 32, 64)
MINIBATCHES = (64, 256, 1024, 4096, 16_384)
N_ROWS = tuple(10**k for k in range(3, 8))
N_STATES, N_ACTIONS = 4, 2  # columns of the rows made up: those of Avoiding
CHUNK = 100_000  # rows that are made up at once
ROW_ITERATIONS = 100


def iteration_rows(bench: Bench) -> Iterator[Row]:
    """Yield the time of one iteration, by what is trained."""
    shaped, transformer = student(**PUBLISHED_SHAPES), student(**PUBLISHED_SHAPES, **TRANSFORMER)
    distilled = {"teacher": bench.teacher}
    expensive = {"teacher": bench.published_teacher}
    for name, policy, fit_params, n_iterations, published in (
        ("teacher, batch 256", DiffusionPolicy(window_size=WINDOW_SIZE), {}, 100, None),
        ("EM, batch 256", GaussianMoEPolicy(window_size=WINDOW_SIZE), {}, 100, None),
        ("distillation, batch 256", student(), distilled, 60, None),
        ("distillation, published shapes", shaped, distilled, 30, PUBLISHED_ITERATION),
        ("… transformer student 4 x 72", transformer, distilled, 15, PUBLISHED_ITERATION),
        ("… published teacher", shaped, expensive, 4, PUBLISHED_ITERATION),
    ):
        n_flops = flops_per_iteration(policy, *bench.data, **fit_params)
        for n_threads in (1, 2):
            with threads(n_threads):
                seconds = seconds_per_iteration(policy, n_iterations, *bench.data, **fit_params)
            limit = bench.machine(n_threads).seconds(n_flops)
            # The published code had two threads.
            known = published if n_threads == 2 else None
            yield (
                name,
                n_threads,
                *_against(seconds, limit),
                milliseconds(known),
                f"{known / seconds:.0f}" if known else None,
            )


def expert_rows(bench: Bench) -> Iterator[Row]:
    """Yield the time of a distillation's iteration, by experts."""
    for n_experts in EXPERTS:
        yield f"{n_experts}", *_distillation(bench, student(n_experts=n_experts))


def minibatch_rows(bench: Bench) -> Iterator[Row]:
    """Yield the time of a distillation's iteration, by rows of a minibatch."""
    states, actions = bench.data
    data = (np.resize(states, (MINIBATCHES[-1], *states.shape[1:])),)
    data += (np.resize(actions, (MINIBATCHES[-1], actions.shape[1])),)
    for size in MINIBATCHES:
        seconds, *rest = _distillation(bench, student(batch_size=size), *data)
        yield f"{size:,}", seconds, *rest


def _distillation(bench: Bench, policy: VDDDistiller, *data: NDArray) -> Row:
    data = data or bench.data
    n_flops = flops_per_iteration(policy, *data, teacher=bench.teacher)
    with threads(1):
        seconds = seconds_per_iteration(policy, 12, *data, teacher=bench.teacher)
    return _against(seconds, bench.machine().seconds(n_flops))


def _against(seconds: float, limit: float) -> Row:
    return milliseconds(seconds), milliseconds(limit), f"{seconds / limit:.1f}"


# ---------------------------------------------------------------------------------------
# Many rows
# ---------------------------------------------------------------------------------------


def data_rows(bench: Bench) -> Iterator[Row]:
    """Yield time and memory of a distillation from files, by rows, each in a process of its own."""
    for n_rows in N_ROWS:
        with tempfile.TemporaryDirectory() as folder:
            n_bytes = write_rows(Path(folder), n_rows)
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            with pool:
                start, iteration, own, resident = pool.submit(
                    fit_from_files, bench.teacher, folder, n_rows
                ).result()
        yield (
            f"{n_rows:,}",
            f"{n_bytes / 1e6:,.0f} MB",
            f"{start:.2f} s",
            f"{1e6 * start / n_rows:.2g} µs",
            milliseconds(iteration),
            f"{own / 1e6:,.0f} MB",
            f"{resident / 1e6:,.0f} MB",
        )


def write_rows(folder: Path, n_rows: int) -> int:
    """Write states and actions, float32 and standard normal, and return their bytes."""
    rng = np.random.default_rng(0)
    n_bytes = 0
    for name, n_columns in (("states", WINDOW_SIZE * N_STATES), ("actions", N_ACTIONS)):
        file = _map(folder, name, n_rows, n_columns, "w+")
        for start in range(0, n_rows, CHUNK):
            block = file[start : start + CHUNK]
            block[:] = rng.standard_normal(block.shape, dtype=np.float32)
        n_bytes += file.nbytes
    return n_bytes


def fit_from_files(teacher: Any, folder: str, n_rows: int) -> tuple[float, float, int, int]:
    """Distill from files; return the seconds before the first iterations and of an iteration.

    Then the bytes that the fit took beside the mapped files, and the most that was resident, the
    program itself and what is mapped included.
    """
    states = _map(Path(folder), "states", n_rows, WINDOW_SIZE * N_STATES, "r")
    actions = _map(Path(folder), "actions", n_rows, N_ACTIONS, "r")
    clock = Clock()
    policy = student().set_params(max_iter=ROW_ITERATIONS).set_callbacks(clock)
    with threads(1), peak_of_own_memory() as peak:
        start = time.perf_counter()
        policy.fit(states, actions, teacher=teacher)
    iteration = float(np.median(np.diff(clock.times)))
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return clock.times[0] - start - iteration, iteration, peak[0], resident


@contextmanager
def peak_of_own_memory() -> Iterator[list[int]]:
    """Watch the memory of this process that no file backs; one number, the bytes it grew by."""
    before = _own_memory()
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _own_memory() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _map(folder: Path, name: str, n_rows: int, n_columns: int, mode: Any) -> NDArray[np.float32]:
    return np.memmap(folder / f"{name}.f32", np.float32, mode, shape=(n_rows, n_columns))


ITERATION = ("time", "limit", "times the limit")
SECTIONS = {
    "training": Section(
        "One iteration of training; of a distillation two steps of the experts, one of the gating",
        ("what", "threads", *ITERATION, "published code", "times faster"),
        iteration_rows,
    ),
    "experts": Section(
        "One iteration of a distillation by experts, batch 256, one thread",
        ("experts", *ITERATION),
        expert_rows,
    ),
    "minibatches": Section(
        "One iteration of a distillation by rows of a minibatch, 8 experts, one thread",
        ("rows", *ITERATION),
        minibatch_rows,
    ),
    "rows": Section(
        "A distillation from mapped files by rows, one thread: before the first iteration, then",
        (
            "rows",
            "data",
            "before",
            "before, each row",
            "one iteration",
            "own memory",
            "peak resident",
        ),
        data_rows,
    ),
}
