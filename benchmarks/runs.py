"""Runs of an experiment: trained once, rolled out, one JSON file each; what is there is not redone.

A `Training` is named by a hash of everything that goes into it: class and parameters of the
estimator, the demonstrations, and its teacher. A `Run` rolls one out and leaves a record.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skvdd
from benchmarks.stopwatch import Stopwatch
from skvdd.callbacks import Checkpoint
from skvdd.datasets import load_demonstrations
from skvdd.datasets.features import task_features
from skvdd.devices import resolve_device
from skvdd.evaluation import Evaluation, evaluate_policy
from skvdd.persistence import write_whole

CACHE = Path(__file__).parent / "cache"  # trained policies
CORE = 2  # raised when the library learns otherwise from the same data and parameters


@dataclass(frozen=True, eq=False)
class Training:
    """A policy to be trained.

    Parameters
    ----------
    estimator : BasePolicy
        Unfitted, with its seed.
    demonstrations : str
        Name of a set.
    n_demonstrations : int or None, default=None
        How many of its episodes, from the first; None for all that come with the library.
    goal : {"recorded", "future"} or None, default=None
        Which goals the rows have.
    teacher : Training or None, default=None
        The teacher of a distiller.
    features : str or None, default=None
        The task whose features the policy sees in place of raw states.
    """

    estimator: Any
    demonstrations: str
    n_demonstrations: int | None = None
    goal: Literal["recorded", "future"] | None = None
    teacher: Training | None = None
    features: str | None = None

    @cached_property
    def key(self) -> str:
        """Hash of all that decides what is learned, but for versions of other packages."""
        content = json.dumps(self.describe(), sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return class, parameters, data and teacher, as JSON has them."""
        parameters = self.estimator.get_params(deep=False)
        parameters.pop("teacher", None)
        return {
            "core": CORE,
            "class": type(self.estimator).__name__,
            "parameters": parameters,
            "demonstrations": self.demonstrations,
            "n_demonstrations": self.n_demonstrations,
            "data": fingerprint(self.demonstrations),
            "teacher": self.teacher and self.teacher.key,
            "goal": self.goal,
            "features": self.features,
        }

    def policy(self) -> tuple[Any, float]:
        """Return the trained policy and the seconds it took; train what is not in the cache.

        Seconds are those of the processor, in all threads of this process: what other programs
        take at the same time does not lengthen them. On a GPU they are those of the clock.
        """
        path, seconds_path = CACHE / f"{self.key}.safetensors", CACHE / f"{self.key}.seconds"
        if seconds_path.is_file():
            return skvdd.load(path), float(seconds_path.read_text().split()[0])
        # The teacher is trained, or loaded, before the clock starts.
        teacher = {"teacher": self.teacher.policy()[0]} if self.teacher else {}
        states, actions = self.rows()
        seconds = self._fit(states, actions, **teacher)
        if self.estimator.interrupted_:
            raise KeyboardInterrupt
        self.estimator.save(path)
        name = torch.cuda.get_device_name() if self._on_gpu() else _processor()
        write(seconds_path, f"{seconds:.2f} {name}\n")
        return self.estimator, seconds

    def rows(self) -> tuple[Any, Any]:
        """Return what the policy is fitted on: one row a decision, with a goal where it has one."""
        demonstrations = load_demonstrations(self.demonstrations, self.n_demonstrations)
        rows, actions, _ = demonstrations.windows(
            self.estimator.window_size, goal=self.goal, random_state=self.estimator.random_state
        )
        return self.transformer().transform(rows), actions

    def transformer(self) -> FunctionTransformer:
        """Return what stands between the states and the policy."""
        if self.features is None:
            return FunctionTransformer()
        return task_features(self.features, self.estimator.window_size)

    def trained_on(self) -> str:
        """Return the processor or GPU that trained the policy; nothing where it was not noted."""
        _, _, name = (CACHE / f"{self.key}.seconds").read_text().strip().partition(" ")
        return name

    def _fit(self, states: Any, actions: Any, **teacher: Any) -> float:
        """Fit the estimator and return the seconds; a training that was killed is resumed."""
        CACHE.mkdir(exist_ok=True)
        stopwatch = Stopwatch(self._clock())
        self.estimator.set_callbacks(stopwatch, Checkpoint(CACHE / f"{self.key}.checkpoint"))
        try:
            self.estimator.fit(states, actions, **teacher)
        finally:
            self.estimator.set_callbacks()
        return stopwatch.seconds

    def _on_gpu(self) -> bool:
        return resolve_device(self.estimator.device).type == "cuda"

    def _clock(self) -> Callable[[], float]:
        return time.perf_counter if self._on_gpu() else time.process_time


@dataclass(frozen=True, eq=False)
class Run:
    """A trained policy and how it is rolled out.

    Parameters
    ----------
    name : str
        What the tables call it.
    training : Training
        The policy.
    env_id : str
        Where it acts.
    n_rollouts, seed : int
        How many rollouts, and their seed.
    settings : dict, default={}
        How actions are drawn: ``n_steps``, ``sampler``.
    n_contexts : int or None, default=None
        Contexts that the rollouts share.
    """

    name: str
    training: Training
    env_id: str
    n_rollouts: int
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    n_contexts: int | None = None

    @cached_property
    def key(self) -> str:
        """Hash of training and rollouts."""
        content = [self.training.key, self.env_id, self.n_rollouts, self.seed, self.settings]
        if self.n_contexts is not None:
            content.append(self.n_contexts)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def path(self, folder: Path) -> Path:
        """Return where the record lies."""
        return folder / f"{self.name.replace(' ', '_')}-seed{self.seed}-{self.key}.json"

    def roll_out(self) -> tuple[Evaluation, float]:
        """Return the rollouts, and the seconds of the training."""
        policy, seconds = self.training.policy()
        if self.settings:
            policy = policy.with_sampler(**self.settings)
        evaluation = evaluate_policy(
            make_pipeline(self.training.transformer(), policy),
            self.env_id,
            self.n_rollouts,
            contexts=self.n_contexts,
            random_state=self.seed,
            progress=False,
        )
        return evaluation, seconds

    def record(self, folder: Path) -> dict[str, Any]:
        """Return the record; roll out what has none."""
        path = self.path(folder)
        if not path.is_file():
            evaluation, seconds = self.roll_out()
            record = {
                "name": self.name,
                **evaluation.to_dict(),
                "training_seconds": seconds,
                "trained_on": self.training.trained_on(),
                "training": self.training.describe(),
                "training_key": self.training.key,
                "settings": self.settings,
                "seed": self.seed,
                **machine(),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, json.dumps(record, indent=1, default=str) + "\n")
        return json.loads(path.read_text())


def execute(runs: Sequence[Run], folder: Path, jobs: int) -> list[str]:
    """Make the record of every run, several at once, teachers first.

    Parameters
    ----------
    runs : sequence of Run
        What is wanted; a training that several share is done once.
    folder : Path
        Where the records go.
    jobs : int
        Runs at a time, one thread each.

    Returns
    -------
    list of str
        What failed and why; the other runs are not harmed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if not run.path(folder).is_file():
            groups.setdefault(run.training.key, []).append(run)
    needed = [group[0].training.teacher for group in groups.values()]
    teachers = {teacher.key: teacher for teacher in needed if teacher is not None}
    # What several students wait for must not be trained by each.
    failed = _each(jobs, [(_train, key, (teacher,)) for key, teacher in teachers.items()])

    def able(training: Training | None) -> bool:
        return training is None or (training.key not in failed and able(training.teacher))

    calls = [
        (_record, key, (group, folder)) for key, group in groups.items() if able(group[0].training)
    ]
    failed |= _each(jobs, calls)
    return list(failed.values())


def _each(
    jobs: int, calls: Sequence[tuple[Callable[..., str], str, tuple[Any, ...]]]
) -> dict[str, str]:
    """Make every call, print what each says, and return the errors of those that failed."""
    attempt = _attempt if jobs == 1 else _attempt_apart
    outcomes = Parallel(n_jobs=jobs, prefer="threads", return_as="generator_unordered")(
        delayed(attempt)(*call) for call in calls
    )
    errors = {}
    for number, (key, message, error) in enumerate(outcomes, start=1):
        print(f"[{number}/{len(calls)}] {message}", flush=True)
        if error:
            errors[key] = message
    return errors


def _attempt_apart(
    function: Callable[..., str], key: str, arguments: tuple[Any, ...]
) -> tuple[str, str, bool]:
    """Make a call in a process of its own, whose death is one failure and harms no other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(_attempt, function, key, arguments).result()
        except BrokenProcessPool as error:
            return key, f"FAILED {arguments[0]}\n{error}", True


def _attempt(
    function: Callable[..., str], key: str, arguments: tuple[Any, ...]
) -> tuple[str, str, bool]:
    torch.set_num_threads(1)
    try:
        return key, function(*arguments), False
    except Exception:
        return key, f"FAILED {arguments[0]}\n{traceback.format_exc()}", True


def _train(training: Training) -> str:
    _, seconds = training.policy()
    return f"{type(training.estimator).__name__}: trained in {seconds:.0f} s"


def _record(runs: Sequence[Run], folder: Path) -> str:
    records = [run.record(folder) for run in runs]
    return ", ".join(
        f"{record['name']}, seed {record['seed']}: success {record['success_rate']:.3f}, entropy "
        f"{record['entropy']:.3f} ({record['training_seconds']:.0f} s)"
        for record in records
    )


@cache
def fingerprint(demonstrations: str) -> str:
    """Return a hash of all rows of a set of demonstrations."""
    digest = hashlib.sha256()
    for episode in load_demonstrations(demonstrations):
        digest.update(np.ascontiguousarray(episode.states).tobytes())
        digest.update(np.ascontiguousarray(episode.actions).tobytes())
    return digest.hexdigest()[:16]


@cache
def machine() -> dict[str, Any]:
    """Return what ran, on what, and when."""
    packages = ("torch", "numpy", "scikit-learn", "mujoco")
    return {
        "versions": {
            "python": platform.python_version(),
            "skvdd": skvdd.__version__,
            **{package: version(package) for package in packages},
        },
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads_of_a_run": 1},
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    write_whole(path, text.encode())
