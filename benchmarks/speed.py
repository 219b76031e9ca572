"""Time of one distillation iteration, one control step and one action, against published figures.

    python -m benchmarks.speed

The published code was timed on two cores of a similar machine: 9.6 s for one iteration at these
shapes, 55-75 ms for one control step. Trust the ratios only as far as your machine is like it;
run nothing else meanwhile.
"""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import torch

import skvdd.envs  # noqa: F401  registers the task
from skvdd import DiffusionPolicy, VDDDistiller
from skvdd.datasets import load_demonstrations
from skvdd.evaluation import time_action

PUBLISHED_ITERATION = 9.6  # s, 2 expert steps and 1 gating step, batch 1024, 8 experts, 2 samples
PUBLISHED_CONTROL_STEP = 55e-3  # s, the faster of the figures
SHAPES = {"window_size": 5, "batch_size": 1024, "n_experts": 8, "n_samples": 2}


class Clock:
    """A callback that notes the time whenever a report of the distillation ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def setup(self, estimator, context) -> None:
        """Do nothing at the beginning of `fit`."""

    def on_fit_task_begin(self, estimator, context) -> None:
        """Do nothing at the beginning of a task."""

    def on_fit_task_end(self, estimator, context) -> None:
        """Note the time of a leaf task."""
        if context.max_subtasks == 0:
            self.times.append(time.perf_counter())

    def teardown(self, estimator, context) -> None:
        """Do nothing at the end of `fit`."""


def seconds_per_iteration(
    student: VDDDistiller, teacher: DiffusionPolicy, states, actions, n_iterations: int = 30
) -> float:
    """Return the median time of an iteration; each report covers one."""
    clock = Clock()
    student.set_params(init="kmeans", max_iter=n_iterations, random_state=0).set_callbacks(clock)
    student.fit(states, actions, teacher=teacher)
    return float(np.median(np.diff(clock.times)))


def seconds_per_control_step(n_steps: int = 2000) -> float:
    """Return the median time of one step of the environment, on one thread."""
    env = gymnasium.make("skvdd/Avoiding-v0").unwrapped
    env.reset(seed=0)
    times = []
    for i in range(n_steps):
        start = time.perf_counter()
        *_, over, _, _ = env.step(np.array([0.004 * (-1) ** (i // 20), 0.001]))
        times.append(time.perf_counter() - start)
        if over:
            env.reset(seed=0)
    return float(np.median(times))


def main() -> None:
    """Measure and print a Markdown table."""
    states, actions, _ = load_demonstrations("avoiding").windows(window_size=5)
    teacher = DiffusionPolicy(window_size=5, max_iter=20, random_state=0).fit(states, actions)
    students = {
        "default student": VDDDistiller(**SHAPES),
        "paper's student, transformer 4 x 72": VDDDistiller(
            encoder="transformer", hidden_size=72, n_layers=4, n_heads=4, **SHAPES
        ),
    }
    published = DiffusionPolicy(
        architecture="gpt",
        window_size=5,
        hidden_size=72,
        n_layers=4,
        max_iter=1,
        random_state=0,
    ).fit(states, actions)
    print(f"{torch.get_num_threads()} threads\n")
    print("| what | time | published code | times faster |")
    print("| --- | --- | --- | --- |")
    for name, student in students.items():
        seconds = seconds_per_iteration(student, teacher, states, actions)
        row(f"one iteration, {name}", seconds, PUBLISHED_ITERATION)
    seconds = seconds_per_iteration(
        VDDDistiller(**SHAPES), published, states, actions, n_iterations=4
    )
    row(
        "one iteration, default student, published transformer teacher",
        seconds,
        PUBLISHED_ITERATION,
    )
    row(
        "one control step (35 ms of robot time)", seconds_per_control_step(), PUBLISHED_CONTROL_STEP
    )
    for name, student in students.items():
        milliseconds = time_action(student, states[0])
        print(f"| one action, {name}, 1 thread, `act` | {milliseconds:.2f} ms | | |")


def row(what: str, seconds: float, published: float) -> None:
    """Print one comparison."""
    times = f"{1e3 * seconds:.3g} ms | {1e3 * published:.4g} ms | {published / seconds:.0f}"
    print(f"| {what} | {times} |", flush=True)


if __name__ == "__main__":
    main()
