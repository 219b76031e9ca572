"""The sections of `benchmarks.speed` on a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.bench import TRANSFORMER, WINDOW_SIZE, Bench, Row, Section, milliseconds, student
from benchmarks.stopwatch import seconds_per_iteration, threads
from skvdd import (
    ConsistencyDistiller,
    ConsistencyTrajectoryDistiller,
    DiffusionPolicy,
    GaussianMoEPolicy,
    IMCPolicy,
)

WARM_UP = 300  # iterations of a fit that is not timed: more of them are
N_REPLAYED, N_LAUNCHED, N_ON_CPU = 1000, 500, 12  # iterations that are timed
NEVER = 10**9  # calls before a capture
N_ACTIONS = 1_000_000
CPU_SHARE = 100  # the CPU draws one in so many


def training_rows(bench: Bench) -> Iterator[Row]:
    """Yield the time of one iteration: replayed, launched kernel by kernel, and on the CPU."""
    sizes = {"window_size": WINDOW_SIZE}
    distilled = {"teacher": bench.teacher}
    for name, policy, fit_params in (
        ("teacher VE", DiffusionPolicy(**sizes), {}),
        ("teacher VP", DiffusionPolicy("vp", **sizes), {}),
        ("GPT, batch 64", DiffusionPolicy(architecture="gpt", batch_size=64, **sizes), {}),
        ("EM", GaussianMoEPolicy(**sizes), {}),
        ("IMC", IMCPolicy(**sizes), {}),
        ("VDD", student(), distilled),
        ("VDD, transformer student 4 x 72", student(**TRANSFORMER), distilled),
        ("consistency distillation", ConsistencyDistiller(**sizes), distilled),
        ("consistency trajectories", ConsistencyTrajectoryDistiller(**sizes), distilled),
    ):
        policy.set_params(device="cuda")
        replayed = _seconds_more(policy, N_REPLAYED, *bench.data, **fit_params)
        with patch("skvdd.training.replay.EAGER_CALLS", NEVER):
            launched = _seconds_more(policy, N_LAUNCHED, *bench.data, **fit_params)
        with threads(1):
            policy.set_params(device="cpu")
            cpu = seconds_per_iteration(policy, N_ON_CPU, *bench.data, **fit_params)
        times = (milliseconds(seconds) for seconds in (replayed, launched, cpu))
        yield name, *times, f"{launched / replayed:.1f}", f"{cpu / replayed:.1f}"


def sampling_rows(bench: Bench) -> Iterator[Row]:
    """Yield the time of a million actions, one for each state."""
    states = np.resize(bench.data[0], (N_ACTIONS, *bench.data[0].shape[1:]))
    for name, policy in (("teacher, 16 steps", bench.teacher), *bench.students.items()):
        gpu = _fastest_sample(policy.set_params(device="cuda"), states)
        with threads(1):
            few = states[: N_ACTIONS // CPU_SHARE]
            cpu = CPU_SHARE * _fastest_sample(policy.set_params(device="cpu"), few)
        yield name, f"{gpu:.2f} s", f"{cpu:.1f} s", f"{cpu / gpu:.0f}"


def _seconds_more(policy: Any, n: int, *data: Any, **fit_params: Any) -> float:
    """Return the time of an iteration: the part of each in what so many more add to a fit."""
    seconds = []
    for n_iterations in (WARM_UP, WARM_UP, WARM_UP + n):  # the first fit makes what later ones use
        policy.set_params(max_iter=n_iterations, random_state=0)
        start = time.perf_counter()
        policy.fit(*data, **fit_params)  # which ends with the last losses read back
        seconds.append(time.perf_counter() - start)
    return (seconds[2] - seconds[1]) / n


def _fastest_sample(policy: Any, states: Any, n_calls: int = 3) -> float:
    seconds = []
    for _ in range(n_calls):
        start = time.perf_counter()
        policy.sample(states, random_state=0)  # on the CPU when it returns
        seconds.append(time.perf_counter() - start)
    return min(seconds)


SECTIONS = {
    "gpu-training": Section(
        "One iteration of training on a GPU, batch 256 where nothing else is said",
        ("what", "replayed", "launched", "one CPU thread", "times faster", "than the CPU"),
        training_rows,
    ),
    "gpu-sampling": Section(
        "A million actions drawn on a GPU, one for each state",
        ("policy", "GPU", "one CPU thread", "times faster"),
        sampling_rows,
    ),
}
