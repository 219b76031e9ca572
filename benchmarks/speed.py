"""Time of one distillation iteration, of control steps and of actions, against published figures.

    python -m benchmarks.speed

The published code was timed on two cores of a similar machine: 9.6 s for one iteration at these
shapes, 55-75 ms for one control step, 4.2 ms for an action of the paper's student and 202 ms for
one of its teacher with 64 steps. Trust the ratios only as far as your machine is like it; run
nothing else meanwhile.
"""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import torch

import skvdd.envs  # noqa: F401  registers the tasks
from benchmarks.methods import TASKS
from skvdd import DiffusionPolicy, VDDDistiller
from skvdd.datasets import load_demonstrations
from skvdd.evaluation import time_action

PUBLISHED_ITERATION = 9.6  # s, 2 expert steps and 1 gating step, batch 1024, 8 experts, 2 samples
PUBLISHED_CONTROL_STEP = 55e-3  # s, the faster of the figures
PUBLISHED_ACTION = 4.2e-3  # s, of the student
PUBLISHED_TEACHER = {1: 5e-3, 8: 31e-3, 32: 92e-3, 64: 202e-3}  # s, by denoising steps
ENGINES = ("torch", "numpy", "onnx")
N_CALLS = 1000
REPLAYED = 2  # demonstrations whose control steps are timed
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


def seconds_per_control_step(task: str, env_id: str) -> tuple[float, float]:
    """Return median and 90th percentile of a step, on one thread, in demonstrations replayed."""
    env = gymnasium.make(env_id, disable_env_checker=True).unwrapped
    times = []
    for number, episode in enumerate(load_demonstrations(task, REPLAYED)):
        options = {"context": number, "split": "train"} if env.context_size else None
        env.reset(seed=0, options=options)
        for action in episode.actions:
            start = time.perf_counter()
            env.step(action)
            times.append(time.perf_counter() - start)
    return float(np.median(times)), float(np.quantile(times, 0.9))


def seconds_of_controller(policy, engine: str, states) -> tuple[float, float]:
    """Return median and 99th percentile of a controller's `act`, on one thread."""
    torch.set_num_threads(1)
    controller = policy.controller(engine, random_state=0)
    controller.reset()
    times = []
    for call in range(N_CALLS + N_CALLS // 10):
        state = states[call % len(states), -1]
        start = time.perf_counter()
        controller.act(state)
        times.append(time.perf_counter() - start)
    times = times[N_CALLS // 10 :]
    return float(np.median(times)), float(np.quantile(times, 0.99))


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
    print("\n| control step, demonstrations replayed | median | 90 % below | published code |")
    print("| --- | --- | --- | --- |")
    for task in TASKS.values():
        median, high = seconds_per_control_step(task.name, task.env_id)
        published_step = f"{1e3 * PUBLISHED_CONTROL_STEP:.0f} ms" if task.name == "avoiding" else ""
        print(f"| {task.env_id} | {1e3 * median:.3f} ms | {1e3 * high:.3f} ms | {published_step} |")
    actions_table(students, teacher, states)


def actions_table(students: dict[str, VDDDistiller], teacher: DiffusionPolicy, states) -> None:
    """Measure and print the time of one action, by `act` and by controllers, on one thread."""
    print("\n| one action, 1 thread | engine | median | 99 % below | published code |")
    print("| --- | --- | --- | --- | --- |")
    published_actions = (None, PUBLISHED_ACTION)
    for (name, student), seconds in zip(students.items(), published_actions, strict=True):
        published_action = f"{1e3 * seconds:.1f} ms" if seconds else ""
        print(f"| {name} | `act` | {time_action(student, states[0]):.3f} ms | | |")
        for engine in ENGINES:
            median, high = seconds_of_controller(student, engine, states)
            print(
                f"| {name} | {engine} | {1e3 * median:.3f} ms | {1e3 * high:.3f} ms | "
                f"{published_action} |",
                flush=True,
            )
    for n_steps, seconds in PUBLISHED_TEACHER.items():
        teacher.set_params(n_steps=n_steps)
        print(
            f"| teacher, {n_steps} steps | `act` | {time_action(teacher, states[0]):.3f} ms | | "
            f"{1e3 * seconds:.0f} ms |"
        )
        for engine in ("torch", "numpy"):
            median, high = seconds_of_controller(teacher, engine, states)
            print(
                f"| teacher, {n_steps} steps | {engine} | {1e3 * median:.3f} ms | "
                f"{1e3 * high:.3f} ms | |",
                flush=True,
            )


def row(what: str, seconds: float, published: float) -> None:
    """Print one comparison."""
    times = f"{1e3 * seconds:.3g} ms | {1e3 * published:.4g} ms | {published / seconds:.0f}"
    print(f"| {what} | {times} |", flush=True)


if __name__ == "__main__":
    main()
