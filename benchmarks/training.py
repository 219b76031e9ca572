"""Trainings: a policy, the demonstrations that it learns from, and its teacher; done once.

A `Training` is named by a hash of all that decides what is learned. Trained policies are kept in
``benchmarks/cache``, or where ``SKVDD_BENCHMARKS_CACHE`` says, as safetensors; those of other
libraries by joblib.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import joblib
import numpy as np
import torch
from filelock import FileLock
from sklearn.preprocessing import FunctionTransformer

import skvdd
from benchmarks.provenance import (
    describe_features,
    describe_set,
    digest,
    processor,
    source_digest,
)
from benchmarks.stopwatch import Stopwatch
from skvdd.base.policy import BasePolicy
from skvdd.callbacks import Checkpoint
from skvdd.datasets import load_demonstrations
from skvdd.datasets.features import task_features
from skvdd.devices import resolve_device
from skvdd.persistence import write_whole

# Trained policies; not in the repository.
CACHE = Path(os.environ.get("SKVDD_BENCHMARKS_CACHE", Path(__file__).parent / "cache"))
CORE = 2  # raised when the library learns otherwise from the same data and parameters


class Cost(NamedTuple):
    """What a training took.

    ``cpu`` seconds are those of the processor, in all threads of the process: what other programs
    take meanwhile does not lengthen them. ``gpu`` and ``wall`` seconds are those of the clock, on
    a GPU and of a method that is not of this library.
    """

    iterations: int | None
    seconds: float
    clock: str
    trained_on: str

    def __add__(self, other: Any) -> Cost:
        """Return what two trainings took together."""
        counts = (self.iterations, other.iterations)
        return Cost(
            None if None in counts else sum(counts),
            self.seconds + other.seconds,
            " + ".join(dict.fromkeys([self.clock, other.clock])),
            " + ".join(dict.fromkeys([self.trained_on, other.trained_on])),
        )


@dataclass(frozen=True, eq=False)
class Training:
    """A policy to be trained.

    Parameters
    ----------
    estimator : estimator
        Unfitted, with its seed: a policy of this library, or anything with ``fit(X, y)`` and
        ``act(X, random_state=)``.
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

    # -- what it is ------------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """Hash of all that decides what is learned, but for versions of other packages."""
        return digest(json.dumps(self.describe(), sort_keys=True, default=repr))

    @cached_property
    def setting(self) -> str:
        """The key without the seed: equal for runs that a table may average."""
        content = self.describe()
        content["parameters"] = {
            name: value for name, value in content["parameters"].items() if name != "random_state"
        }
        content["teacher"] = self.teacher and self.teacher.setting
        return digest(json.dumps(content, sort_keys=True, default=repr))

    def describe(self) -> dict[str, Any]:
        """Return class, parameters, data and teacher."""
        cls, data = type(self.estimator), (self.demonstrations, self.n_demonstrations)
        seen = self.features and describe_features(self.features, *data, self.goal)
        return {
            "class": cls.__name__ if self.is_ours else f"{cls.__module__}:{cls.__qualname__}",
            "code": CORE if self.is_ours else source_digest(cls),
            "parameters": parameters_of(self.estimator),
            "demonstrations": describe_set(*data),
            "features": seen,
            "window_size": self.window_size,
            "goal": self.goal,
            "teacher": self.teacher and self.teacher.key,
        }

    @property
    def is_ours(self) -> bool:
        """Whether the policy is of this library, or a subclass of one that is."""
        return isinstance(self.estimator, BasePolicy)

    @property
    def window_size(self) -> int:
        """States in a row."""
        return getattr(self.estimator, "window_size", 1)

    @property
    def iterations(self) -> int | None:
        """Iterations of this training and those before it, as far as parameters tell them."""
        parameters = parameters_of(self.estimator)
        if "max_iter" not in parameters:
            return None
        own = parameters["max_iter"] + parameters.get("init_iter", 0)
        return own + ((self.teacher.iterations or 0) if self.teacher else 0)

    # -- what it learns from ---------------------------------------------------------------------

    def rows(self) -> tuple[Any, Any]:
        """Return what the policy is fitted on: one row a decision, with a goal where it has one."""
        demonstrations = load_demonstrations(self.demonstrations, self.n_demonstrations)
        seed = getattr(self.estimator, "random_state", None)
        rows, actions, _ = demonstrations.windows(
            self.window_size, goal=self.goal, random_state=seed
        )
        rows = self.transformer().transform(rows)
        return (rows if self.is_ours else rows.reshape(len(rows), -1)), actions

    def transformer(self) -> FunctionTransformer:
        """Return what stands between the states and the policy."""
        if self.features is None:
            return FunctionTransformer()
        return task_features(self.features, self.window_size)

    # -- training --------------------------------------------------------------------------------

    def policy(self) -> tuple[Any, Cost]:
        """Return the trained policy and what it took with its teacher; train what is not kept."""
        CACHE.mkdir(parents=True, exist_ok=True)
        before = None if self.teacher is None else self.teacher.policy()
        with FileLock(CACHE / f"{self.key}.lock"):  # another process may be at it
            if not self._cost_path.is_file():
                self._train(None if before is None else before[0])
        cost = Cost(**json.loads(self._cost_path.read_text()))
        policy = skvdd.load(self.path) if self.is_ours else joblib.load(self.path)
        return policy, cost if before is None else before[1] + cost

    @property
    def path(self) -> Path:
        """Where the trained policy lies."""
        return CACHE / f"{self.key}.{'safetensors' if self.is_ours else 'joblib'}"

    @property
    def _cost_path(self) -> Path:
        return CACHE / f"{self.key}.json"  # written last: what has it is whole

    def _train(self, teacher: Any) -> None:
        states, actions = self.rows()
        if self.is_ours:
            seconds = self._fit_ours(states, actions, teacher)
            self.estimator.save(self.path)
        else:
            start = time.perf_counter()
            self.estimator.fit(states, actions)
            seconds = time.perf_counter() - start
            joblib.dump(self.estimator, self.path)
        self.keep_cost(seconds)

    def keep_cost(self, seconds: float) -> None:
        """Note what the training took, which makes the policy in the cache a whole one."""
        own = self.iterations
        if own is None:
            own = getattr(self.estimator, "n_iter_", None)
        elif self.teacher is not None:
            own -= self.teacher.iterations or 0
        clock = "gpu" if self._on_gpu() else "cpu" if self.is_ours else "wall"
        device = torch.cuda.get_device_name() if clock == "gpu" else processor()
        cost = Cost(None if own is None else int(own), round(seconds, 2), clock, device)
        write(self._cost_path, json.dumps(cost._asdict()) + "\n")

    def _fit_ours(self, states: Any, actions: Any, teacher: Any) -> float:
        """Fit the estimator and return the seconds; a training that was killed is resumed."""
        stopwatch = Stopwatch(time.perf_counter if self._on_gpu() else self._clock())
        self.estimator.set_callbacks(stopwatch, Checkpoint(CACHE / f"{self.key}.checkpoint"))
        try:
            self.estimator.fit(states, actions, **({} if teacher is None else {"teacher": teacher}))
        finally:
            self.estimator.set_callbacks()
        if self.estimator.interrupted_:
            raise KeyboardInterrupt
        return stopwatch.seconds

    def _on_gpu(self) -> bool:
        return self.is_ours and resolve_device(self.estimator.device).type == "cuda"

    def _clock(self) -> Callable[[], float]:
        return time.process_time


class Foreign:
    """A method that is not of this library, as `skvdd.evaluation.evaluate_policy` wants a policy.

    Parameters
    ----------
    policy : object
        With ``act(X, random_state=)``, which takes flat rows and one generator.
    window_size, goal_dim : int
        States in a row, and numbers of the goal at its end.
    """

    def __init__(self, policy: Any, window_size: int, goal_dim: int) -> None:
        self.policy, self.window_size, self.goal_dim = policy, window_size, goal_dim

    def act(self, X: Any, *, random_state: Any = None) -> Any:
        """Return actions; the generators of the rows seed the one of the policy."""
        seeds = [generator.randint(2**32, dtype=np.uint32) for generator in random_state]
        X = np.asarray(X).reshape(len(X), -1)
        return self.policy.act(X, random_state=np.random.RandomState(seeds))


def parameters_of(estimator: Any) -> dict[str, Any]:
    """Return the parameters of an estimator but its teacher; its attributes if it tells none."""
    if hasattr(estimator, "get_params"):
        parameters = estimator.get_params(deep=False)
    else:
        parameters = {k: v for k, v in vars(estimator).items() if not k.endswith("_")}
    return {name: value for name, value in parameters.items() if name != "teacher"}


def write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    write_whole(path, text.encode())
