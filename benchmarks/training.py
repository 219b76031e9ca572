"""Trainings: a policy, the demonstrations that it learns from, and its teacher; done once.

A `Training` is named by a hash of all that decides what is learned. Trained policies are kept in
``benchmarks/cache``, or where ``SKVDD_BENCHMARKS_CACHE`` says, as safetensors; those of other
libraries by joblib.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
    arguments : dict or None, default=None
        What the estimator was made with; needed of one that has no ``get_params``.

    Attributes
    ----------
    parameters : dict
        Those of the estimator as it is now: what ``fit`` does to it changes no key.
    """

    estimator: Any
    demonstrations: str
    n_demonstrations: int | None = None
    goal: Literal["recorded", "future"] | None = None
    teacher: Training | None = None
    features: str | None = None
    arguments: dict[str, Any] | None = None
    parameters: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keep the parameters, and refuse those that a key could not name."""
        cls, is_told = type(self.estimator), hasattr(self.estimator, "get_params")
        if not is_told and self.arguments is None:
            raise ValueError(
                f"arguments must be those that {cls.__name__} was made with, since it has no "
                "get_params, got None."
            )
        found = parameters_of(self.estimator, self.arguments)
        if not self.is_ours:
            found = plain_parameters(cls, found)
        object.__setattr__(self, "parameters", found)

    # -- what it is ------------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """Hash of all that decides what is learned, but for versions of other packages."""
        return digest(json.dumps(self._description, sort_keys=True, default=told))

    @cached_property
    def setting(self) -> str:
        """The key without the seed: equal for runs that a table may average."""
        content = self.describe()
        content["parameters"] = {
            name: value for name, value in content["parameters"].items() if name != "random_state"
        }
        content["teacher"] = self.teacher and self.teacher.setting
        return digest(json.dumps(content, sort_keys=True, default=told))

    def describe(self) -> dict[str, Any]:
        """Return class, parameters, data and teacher."""
        return dict(self._description)

    @cached_property
    def _description(self) -> dict[str, Any]:
        """What `describe` returns; the key is asked for before any training."""
        cls, data = type(self.estimator), (self.demonstrations, self.n_demonstrations)
        seen = self.features and describe_features(self.features, *data, self.goal)
        return {
            "class": cls.__name__ if self.is_ours else f"{cls.__module__}:{cls.__qualname__}",
            "code": CORE if self.is_ours else source_digest(cls),
            "parameters": self.parameters,
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
        own = getattr(self.estimator, "window_size", 1)
        return own if self.is_ours else self.parameters.get("window_size", own)

    @property
    def iterations(self) -> int | None:
        """Iterations of this training and those before it, as far as parameters tell them."""
        if "max_iter" not in self.parameters:
            return None
        own = self.parameters["max_iter"] + self.parameters.get("init_iter", 0)
        return own + ((self.teacher.iterations or 0) if self.teacher else 0)

    # -- what it learns from ---------------------------------------------------------------------

    def rows(self) -> tuple[Any, Any]:
        """Return what the policy is fitted on: one row a decision, with a goal where it has one."""
        demonstrations = load_demonstrations(self.demonstrations, self.n_demonstrations)
        seed = self.parameters.get("random_state")
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
            if self._cost_path.is_file():
                policy, cost = self._load()
            else:
                policy, cost = self._train(None if before is None else before[0])
        return policy, cost if before is None else before[1] + cost

    @property
    def path(self) -> Path:
        """Where the trained policy lies."""
        return CACHE / f"{self.key}.{'safetensors' if self.is_ours else 'joblib'}"

    @property
    def _cost_path(self) -> Path:
        return CACHE / f"{self.key}.json"  # written last: what has it is whole

    def _load(self) -> tuple[Any, Cost]:
        cost = Cost(**json.loads(self._cost_path.read_text()))
        return (skvdd.load(self.path) if self.is_ours else joblib.load(self.path)), cost

    def _train(self, teacher: Any) -> tuple[Any, Cost]:
        """Return the trained policy, from where it is kept, and what it took."""
        if not self.is_ours:
            return self._train_foreign()
        states, actions = self.rows()
        seconds = self._fit_ours(states, actions, teacher)
        self.estimator.save(self.path)
        self._keep(self._cost(seconds))
        return self._load()

    def _train_foreign(self) -> tuple[Any, Cost]:
        """Train a method of another library; one that cannot be written is played all the same."""
        name = type(self.estimator).__name__
        try:
            pickled(self.estimator)
        except Exception as error:
            raise TypeError(
                f"{name} must be what pickle can write, to be kept after its training ({error})."
            ) from error
        states, actions = self.rows()
        start = time.perf_counter()
        self.estimator.fit(states, actions)
        cost = self._cost(time.perf_counter() - start)
        try:
            content = pickled(self.estimator)
        except Exception as error:
            print(f"{name} was not kept, pickle cannot write it trained ({error}).", flush=True)
            return self.estimator, cost
        write_whole(self.path, content)
        self._keep(cost)
        return self._load()

    def _cost(self, seconds: float) -> Cost:
        """Return what this training took, that of the teacher apart."""
        own = self.iterations
        if own is None:
            own = getattr(self.estimator, "n_iter_", None)
        elif self.teacher is not None:
            own -= self.teacher.iterations or 0
        clock = "gpu" if self._on_gpu() else "cpu" if self.is_ours else "wall"
        device = torch.cuda.get_device_name() if clock == "gpu" else processor()
        return Cost(None if own is None else int(own), round(seconds, 2), clock, device)

    def _keep(self, cost: Cost) -> None:
        """Write the cost, which says that the policy in the cache is a whole one."""
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
        With ``act(X, random_state=)``, which takes flat rows and one generator. It is given one row
        at a time, with the generator of its rollout: what a rollout does then depends neither on
        those beside it nor on how many there are.
    window_size, goal_dim : int
        States in a row, and numbers of the goal at its end.
    """

    def __init__(self, policy: Any, window_size: int, goal_dim: int) -> None:
        self.policy, self.window_size, self.goal_dim = policy, window_size, goal_dim

    def act(self, X: Any, *, random_state: Any = None) -> Any:
        """Return the action of each row."""
        X = np.asarray(X).reshape(len(X), 1, -1)
        actions = [
            np.atleast_1d(self.policy.act(row, random_state=generator))
            for row, generator in zip(X, random_state, strict=True)
        ]
        return np.concatenate(actions)


# -- parameters ----------------------------------------------------------------------------------


def parameters_of(estimator: Any, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the parameters of an estimator but its teacher.

    Of one that has no ``get_params``: the defaults of its class, and what it was made with.
    """
    if hasattr(estimator, "get_params"):
        found = estimator.get_params(deep=False)
    else:
        found = {**defaults_of(type(estimator)), **(arguments or {})}
    return {name: value for name, value in found.items() if name != "teacher"}


def defaults_of(cls: type) -> dict[str, Any]:
    """Return the defaults of the parameters of a class."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def plain_parameters(cls: type, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the parameters of a foreign class, as JSON has them.

    A default that JSON does not know is left out: the code says what it is.
    """
    defaults, plain = defaults_of(cls), {}
    for name, value in parameters.items():
        try:
            plain[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            if name in defaults and value is defaults[name]:
                continue
            raise TypeError(
                f"{name} of {cls.__name__} must be a number, a text, None, or lists and dicts of "
                f"them, so that a key can name it, got {type(value).__name__}."
            ) from error
    return plain


def told(value: Any) -> str:
    """Return what a key says of a parameter that JSON does not know."""
    text = repr(value)
    if re.search(r" at 0x[0-9a-fA-F]+", text):
        raise TypeError(f"a parameter must have a repr that is always the same, got {text}.")
    return text


def pickled(estimator: Any) -> bytes:
    """Return what joblib writes."""
    buffer = io.BytesIO()
    joblib.dump(estimator, buffer)
    return buffer.getvalue()


def write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    write_whole(path, text.encode())
