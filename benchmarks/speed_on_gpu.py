"""The sections of `benchmarks.speed` on a GPU, beside one thread of the CPU that drives it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.bench import TRANSFORMER, WINDOW_SIZE, Bench, Row, Section, milliseconds, student
from benchmarks.stopwatch import seconds_per_iteration, threads
from skvdd import DiffusionPolicy, GaussianMoEPolicy

ITERATIONS = 500  # of a fit that is timed, less as many of a fit that is not
CPU_ITERATIONS = 12
BATCHES = (256, 1024, 4096)
N_ACTIONS = 1_000_000
CPU_SHARE = 100  # the CPU draws one in so many


def training_rows(bench: Bench) -> Iterator[Row]:
    """Yield the time of one iteration, by what is trained and by rows of a minibatch."""
    states, actions = bench.data
    data = (np.resize(states, (BATCHES[-1], *states.shape[1:])),)
    data += (np.resize(actions, (BATCHES[-1], actions.shape[1])),)
    distilled = {"teacher": bench.teacher}
    for name, policy, fit_params in (
        ("teacher", DiffusionPolicy(window_size=WINDOW_SIZE), {}),
        ("EM", GaussianMoEPolicy(window_size=WINDOW_SIZE), {}),
        ("distillation", student(), distilled),
        ("… transformer student 4 x 72", student(**TRANSFORMER), distilled),
    ):
        for size in BATCHES:
            policy.set_params(batch_size=size)
            gpu = _seconds_on_gpu(policy.set_params(device="cuda"), *data, **fit_params)
            with threads(1):
                policy.set_params(device="cpu")
                cpu = seconds_per_iteration(policy, CPU_ITERATIONS, *data, **fit_params)
            yield name, f"{size:,}", milliseconds(gpu), milliseconds(cpu), f"{cpu / gpu:.1f}"


def sampling_rows(bench: Bench) -> Iterator[Row]:
    """Yield the time of a million actions, one for each state."""
    states = np.resize(bench.data[0], (N_ACTIONS, *bench.data[0].shape[1:]))
    students = bench.students
    for name, policy in (
        ("teacher, 16 steps", bench.teacher),
        *((f"{name}", policy) for name, policy in students.items()),
    ):
        gpu = _fastest_sample(policy.set_params(device="cuda"), states)
        with threads(1):
            few = states[: N_ACTIONS // CPU_SHARE]
            cpu = CPU_SHARE * _fastest_sample(policy.set_params(device="cpu"), few)
        yield name, f"{gpu:.2f} s", f"{cpu:.1f} s", f"{cpu / gpu:.0f}"


def _seconds_on_gpu(policy: Any, *data: Any, **fit_params: Any) -> float:
    """Return the time of an iteration: what more of them add to a fit."""
    seconds = []
    for n_iterations in (100, ITERATIONS, 2 * ITERATIONS):  # the first warms up
        policy.set_params(max_iter=n_iterations, random_state=0)
        start = time.perf_counter()
        policy.fit(*data, **fit_params)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return (seconds[2] - seconds[1]) / ITERATIONS


def _fastest_sample(policy: Any, states: Any, n_calls: int = 3) -> float:
    seconds = []
    for _ in range(n_calls):
        start = time.perf_counter()
        policy.sample(states, random_state=0)  # on the CPU when it returns
        seconds.append(time.perf_counter() - start)
    return min(seconds)


AGAINST = ("GPU", "one CPU thread", "times faster")
SECTIONS = {
    "gpu-training": Section(
        "One iteration of training on a GPU, by rows of a minibatch",
        ("what", "rows", *AGAINST),
        training_rows,
    ),
    "gpu-sampling": Section(
        "A million actions drawn on a GPU, one for each state",
        ("policy", *AGAINST),
        sampling_rows,
    ),
}
