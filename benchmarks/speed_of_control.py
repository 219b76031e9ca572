"""The sections of `benchmarks.speed` on acting: actions, control steps, rollouts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import skvdd.envs  # noqa: F401  registers the tasks
from benchmarks.bench import WINDOW_SIZE, Bench, Row, Section, both, milliseconds
from benchmarks.limits import count_flops, weight_bytes
from benchmarks.stopwatch import Times, threads, time_calls, time_each
from skvdd import GaussianMoEPolicy
from skvdd.datasets import load_demonstrations
from skvdd.envs import get_task, task_names
from skvdd.evaluation import evaluate_policy
from skvdd.rollouts import BLOCK_SIZE

PUBLISHED_CONTROL_STEP = 55e-3  # s, the faster of the figures
PUBLISHED_ACTIONS = {"transformer 4 x 72": 4.2e-3}  # s
PUBLISHED_TEACHER = {1: 5e-3, 8: 31e-3, 32: 92e-3, 64: 202e-3}  # s, by denoising steps
ENGINES = {"torch": (1, 2), "onnx": (1,)}  # and the threads that they can use
BATCHES = (1, 10, 100, 1000, 10_000, 100_000)
REPLAYED = 2  # demonstrations whose control steps are timed
N_EPISODES = 256


def action_rows(bench: Bench) -> Iterator[Row]:
    """Yield the time of one action, by policy and engine."""
    row = _standard_row(bench)
    for name, student in bench.students.items():
        work = count_flops(student.network_, row), weight_bytes(student.network_)
        yield from _engine_rows(bench, name, student, work, PUBLISHED_ACTIONS.get(name))
    for n_steps, published in PUBLISHED_TEACHER.items():
        teacher = bench.teacher.with_sampler(n_steps=n_steps)
        work = teacher_work(teacher.network_, row, n_steps)
        name = f"teacher, {n_steps} step{'s' * (n_steps > 1)}"
        yield from _engine_rows(bench, name, teacher, work, published)


def teacher_work(network: Any, row: Tensor, n_steps: int) -> tuple[int, int]:
    """Return the operations, and bytes of weights, of one action: a context, then the steps."""
    action, sigma = torch.zeros(1, 1, *network.action_shape), torch.ones(1, 1)
    context = network.context(row)
    n_flops = count_flops(network.denoise, context, action, sigma)
    encoder = weight_bytes(network.encoder)
    n_bytes = weight_bytes(network) - encoder
    return count_flops(network.context, row) + n_steps * n_flops, encoder + n_steps * n_bytes


def _engine_rows(
    bench: Bench, name: str, policy: Any, work: tuple[int, int], published: float | None
) -> Iterator[Row]:
    limit = bench.machine().seconds(*work)
    observations = list(bench.data[0][:500, -1])
    for engine, n_threads in ENGINES.items():
        controller = policy.controller(engine, random_state=0)
        controller.reset()
        for n in n_threads:
            with threads(n):
                times = time_calls(controller.act, observations)
            yield name, engine, n, *both(times), milliseconds(limit), milliseconds(published)


def batch_rows(bench: Bench) -> Iterator[Row]:
    """Yield how many actions a second `act` gives, by the number of states."""
    states = np.resize(bench.data[0], (BATCHES[-1], *bench.data[0].shape[1:]))
    for name, student in bench.students.items():
        limit = 1.0 / bench.machine().seconds(count_flops(student.network_, _standard_row(bench)))
        for n in BATCHES:
            with threads(1):
                rate = n / time_calls(student.act, [states[:n]], 100).median
            fraction = f"{100 * rate / limit:.2g} %"
            yield name, f"{n:,}", f"{rate:,.0f}", f"{limit:,.0f}", fraction


def environment_rows(bench: Bench) -> Iterator[Row]:
    """Yield the time of a control step, by task."""
    for task in map(get_task, task_names()):
        times, physics = time_steps(task.name, task.env_id)
        published = PUBLISHED_CONTROL_STEP if task.name == "avoiding" else None
        yield task.env_id, *both(times), milliseconds(physics), milliseconds(published)


def time_steps(task: str, env_id: str) -> tuple[Times, float]:
    """Return the times of control steps in demonstrations, and of MuJoCo's part of the last."""
    env: Any = gymnasium.make(env_id, disable_env_checker=True).unwrapped
    seconds: list[float] = []
    for episode in load_demonstrations(task, REPLAYED):
        context = episode.metadata.get("context")
        options = None if context is None else {"context": context, "split": "train"}
        env.reset(seed=0, options=options)
        before = env.data.time
        seconds += time_each(env.step, episode.actions)
        n_ticks = round((env.data.time - before) / len(episode) / env.model().opt.timestep)
    physics = time_calls(lambda _: mujoco.mj_step(env.model(), env.data, n_ticks), [None], 200)
    return Times.of(seconds), physics.median


def episode_rows(bench: Bench) -> Iterator[Row]:
    """Yield rollouts a second, by processes and threads."""
    policy = GaussianMoEPolicy(window_size=WINDOW_SIZE, max_iter=1500, random_state=0)
    policy.fit(*bench.data)
    step = time_steps("avoiding", "skvdd/Avoiding-v0")[0].median
    evaluate(policy, 2, 2 * BLOCK_SIZE)  # starts both processes
    for n_jobs, n_threads in ((1, 1), (1, 2), (2, 1)):
        with threads(n_threads):
            start = time.perf_counter()
            n_steps = int(evaluate(policy, n_jobs, N_EPISODES).sum())
            seconds = time.perf_counter() - start
        limit = f"{n_jobs * n_threads / step:,.0f}"
        rates = f"{N_EPISODES / seconds:.1f}", f"{n_steps / seconds:,.0f}"
        yield n_jobs, n_threads, *rates, limit


def evaluate(policy: Any, n_jobs: int, n_episodes: int) -> NDArray[Any]:
    """Roll a policy out in Avoiding and return the lengths of the episodes."""
    return evaluate_policy(
        policy, "skvdd/Avoiding-v0", n_episodes, n_jobs=n_jobs, random_state=0, progress=False
    ).lengths


def _standard_row(bench: Bench) -> Tensor:
    """Return one row as a network is given it."""
    return bench.teacher._standard_rows(bench.data[0][:1].reshape(1, -1))


SECTIONS = {
    "actions": Section(
        "One observation in, one action out: controllers; window, normalization and draw included",
        ("policy", "engine", "threads", "median", "99 % below", "limit", "published code"),
        action_rows,
    ),
    "batches": Section(
        "Actions for many states at once: `act`, one thread",
        ("policy", "states", "actions a second", "limit", "fraction of the limit"),
        batch_rows,
    ),
    "environments": Section(
        "One control step of each task, demonstrations replayed, one thread",
        ("task", "median", "99 % below", "physics alone", "published code"),
        environment_rows,
    ),
    "episodes": Section(
        "Rollouts: `evaluate_policy` in Avoiding; the limit is the simulator without a policy",
        ("processes", "threads of each", "episodes a second", "steps a second", "limit, steps"),
        episode_rows,
    ),
}
