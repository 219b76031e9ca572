"""Checkpoints: a fit that is killed resumes where its file was written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from skvdd._sklearn import CallbackContext
from skvdd.callbacks.base import (
    Callback,
    check_folder,
    check_interval,
    is_report,
    last_due,
    own_path,
)
from skvdd.persistence import write_whole
from skvdd.training import FitStart, Run, from_first, is_first_process

FORMAT = "skvdd-checkpoint"
FORMAT_VERSION = 2
# Parts of a header, of its fingerprint and of each stage.
HEADER = {"fingerprint": dict, "rng": list, "stages": dict}
FINGERPRINT = {"parameters": dict}
STAGE = {"iteration": int, "stopped": bool, "history": list, "notes": dict}


@dataclass
class _Saved:
    """What a checkpoint holds, and where."""

    path: Path
    context: CallbackContext
    fingerprint: dict[str, Any] = field(default_factory=dict)
    rng: Any = None
    stages: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    written_at: int = 0  # iteration of the run

    def write(self) -> None:
        """Replace the file, in the first process."""
        if not is_first_process():
            return
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "rng": self.rng,
            "stages": {stage: values for stage, (_, values) in self.stages.items()},
        }
        tensors = _flat({stage: tensors for stage, (tensors, _) in self.stages.items()})
        write_whole(self.path, serialize(tensors, metadata={"skvdd": json.dumps(header)}))

    def read(self) -> bool:
        """Take over what the file holds, if there is one; say whether there was."""
        content = from_first(lambda: _read(self.path))
        if content is None:
            return False
        header, tensors = content
        nested = _nested(tensors)
        self.fingerprint, self.rng = header["fingerprint"], header["rng"]
        self.stages = {
            stage: (nested.get(stage, {}), values) for stage, values in header["stages"].items()
        }
        return True


class Checkpoint(Callback):
    """Save the state of a fit from time to time, so that it can be resumed bit for bit.

    If the process ends before the fit does, call `fit` again with the same arguments, in a new
    process if need be: it finds the file and resumes where the file was written, with the same
    weights, optimizer, EMA, random numbers and history, and the state of the other callbacks of
    this package. On the same machine the result is that of a fit that was never interrupted.
    A fit that ends removes the file; one that is interrupted from the keyboard leaves it.

    The file has a fingerprint of the parameters, the data and the teacher: a fit with others is
    refused. A teacher that is trained in a `fit` of its student has a second file,
    ``<path>.teacher``, until the student is done.

    Parameters
    ----------
    path : str or Path
        File to write; safetensors, without pickle.
    every : int, default=1000
        Iterations between two writings, rounded up to reports. The end of each stage is written
        too.

    Raises
    ------
    ValueError
        In `fit`, if the file is damaged or belongs to another fit; the message names what differs.

    Notes
    -----
    ``random_state`` may be anything; its numbers are in the file. What has a state of its own is
    not: random steps of a teacher's pipeline need an integer ``random_state``.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.callbacks import Checkpoint
    >>> states, actions = np.random.RandomState(0).standard_normal((2, 50, 1))
    >>> policy = GaussianMoEPolicy(2, max_iter=5, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(os.path.join(folder, "run.ckpt"), every=2)
    ...     _ = policy.set_callbacks(checkpoint).fit(states, actions)
    ...     os.listdir(folder)
    []
    """

    def __init__(self, path: str | Path, *, every: int = 1000) -> None:
        super().__init__()
        check_interval("every", every)
        check_folder("path", path)
        self.path, self.every = path, every

    def of_teacher(self, student: Any) -> Checkpoint:
        """Return the checkpoint of a teacher that is trained in the fit of a student."""
        return _TeacherCheckpoint(_of_teacher(self._record(student).path), every=self.every)

    def on_fit_task_end(
        self, estimator: Any, context: CallbackContext, *, metadata: Any = None
    ) -> None:
        """Save a run that ended; remove the file when the whole fit has."""
        saved: _Saved | None = self._records.get(id(estimator))
        if saved is None:
            return
        run = (metadata or {}).get("run")
        if isinstance(run, Run):
            if not is_report(context) and not run.interrupted:
                self._save(saved, run)
        elif context is saved.context and not (metadata or {}).get("interrupted", True):
            self._done(saved)

    def _open(self, estimator: Any, context: CallbackContext) -> _Saved:
        return _Saved(own_path(self.path, context), context)

    def _fit_begins(self, estimator: Any, start: FitStart) -> None:
        saved, fingerprint = self._record(estimator), start.fingerprint()
        if saved.read():
            _check_fingerprint(saved, fingerprint)
            with _damage_named(saved.path):
                start.rng = _random_state(saved.rng)
        else:
            saved.fingerprint, saved.rng = fingerprint, _state_of(start.rng)
            saved.write()

    def _between_reports(self, estimator: Any, run: Run, *, begins: bool) -> None:
        saved = self._record(estimator)
        if begins:
            if run.stage in saved.stages:
                with _damage_named(saved.path):
                    run.load(*saved.stages[run.stage])
            saved.written_at = last_due(run.iteration, self.every)
        elif run.iteration >= saved.written_at + self.every:
            self._save(saved, run)

    def _save(self, saved: _Saved, run: Run) -> None:
        saved.stages[run.stage] = run.state()
        saved.written_at = last_due(run.iteration, self.every)
        saved.write()

    def _done(self, saved: _Saved) -> None:
        if is_first_process():
            for path in (saved.path, _of_teacher(saved.path)):
                path.unlink(missing_ok=True)


class _TeacherCheckpoint(Checkpoint):
    """One with just this path, which stays when the teacher is done, until its student is."""

    def _open(self, estimator: Any, context: CallbackContext) -> _Saved:
        return _Saved(Path(self.path), context)

    def _done(self, saved: _Saved) -> None:
        pass


def _of_teacher(path: Path) -> Path:
    return path.with_name(path.name + ".teacher")


def _state_of(rng: np.random.RandomState) -> list[Any]:
    name, key, *rest = rng.get_state(legacy=True)
    return [name, np.asarray(key).tolist(), *rest]


def _random_state(state: list[Any]) -> np.random.RandomState:
    """Return a generator of its own: the user's, or NumPy's global one, is left alone."""
    name, key, position, *rest = state
    if not 0 <= position <= len(key):  # NumPy does not check it
        raise ValueError(f"its generator is at {position} of {len(key)} numbers")
    rng = np.random.RandomState()
    rng.set_state((name, np.asarray(key, dtype=np.uint32), position, *rest))
    return rng


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged file into one that says so."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return header and tensors of a checkpoint, None if there is no file."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {}).get("skvdd", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no checkpoint of skvdd: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} is no checkpoint of skvdd. Give another path.")
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has format version {header.get('version')}, but this skvdd reads "
            f"version {FORMAT_VERSION}."
        )
    _check_parts(path, "header", header, HEADER)
    _check_parts(path, "fingerprint", header["fingerprint"], FINGERPRINT)
    for name, stage in header["stages"].items():
        _check_parts(path, f"stage {name!r}", stage, STAGE)
    return header, tensors


def _check_parts(path: Path, name: str, values: Any, kinds: Mapping[str, type]) -> None:
    """Raise a ValueError unless a part of a header holds values of these kinds."""
    values = values if isinstance(values, dict) else {}
    wrong = [part for part, kind in kinds.items() if type(values.get(part)) is not kind]
    if wrong:
        raise ValueError(f"{str(path)!r} is damaged: its {name} has no {' and no '.join(wrong)}.")


def _check_fingerprint(saved: _Saved, now: dict[str, Any]) -> None:
    """Raise a ValueError that names what differs between the fit of a file and this one."""
    before = saved.fingerprint
    parts = [(name, before.get(name), now[name]) for name in now if name != "parameters"]
    old, new = before.get("parameters", {}), now["parameters"]
    parts += [(name, old.get(name), new.get(name)) for name in {**old, **new}]
    differing = [f"{name} was {old!r}, is {new!r}" for name, old, new in parts if old != new]
    if differing:
        raise ValueError(
            f"the checkpoint {str(saved.path)!r} belongs to another fit: {'; '.join(differing)}. "
            "Give what that fit was given to resume it, or delete the file to start anew."
        )


def _flat(nested: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return nested tensors by their paths, 'stage/network/weight'."""
    flat: dict[str, Tensor] = {}
    for name, value in nested.items():
        if isinstance(value, torch.Tensor):
            flat[name] = value
        else:
            flat |= {f"{name}/{rest}": tensor for rest, tensor in _flat(value).items()}
    return flat


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """Undo `_flat`."""
    nested: dict[str, Any] = {}
    for path, tensor in flat.items():
        *folders, name = path.split("/")
        inner = nested
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = tensor
    return nested
