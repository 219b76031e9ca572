"""Callbacks of `fit`, for ``policy.set_callbacks``: stopping early, monitoring, logs, checkpoints.

They follow the protocol of `sklearn.callback` and can be mixed with scikit-learn's own. Each takes
part in the training of the policy it was given to, and ignores everything else. What happens is
told at reports: about a hundred times in each training run (a *stage*; distillers may have several
in one `fit`, and each is watched on its own). A callback draws no random numbers of the training:
with and without it the same weights come out, unless it stops the run or keeps other weights.

Where a policy is fitted inside another estimator, as in a grid search, every fit has files of its
own: ``log.csv`` becomes ``log-0-3.csv``, the numbers of its tasks in scikit-learn's task tree. Of
several processes that train together, the first one writes and measures.
"""

from __future__ import annotations

import csv
import io
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from skvdd._sklearn import CallbackContext, get_context_path
from skvdd.persistence import write_whole
from skvdd.training import FitStart, Run, from_first, is_first_process

__all__ = ["CSVLogger", "Checkpoint", "EarlyStopping", "RolloutMonitor", "TensorBoardLogger"]

FORMAT = "skvdd-checkpoint"
FORMAT_VERSION = 1


class _Callback:
    """What these callbacks share: one record for each fit that runs, and hooks by what happened.

    The same object may serve many fits, one after the other or in threads: scikit-learn hands it
    on to clones. Nothing of a fit is therefore kept but in its `Run` and in its record.
    """

    def __init__(self) -> None:
        self._records: dict[int, Any] = {}  # by identity of the estimator that is fitted

    def setup(self, estimator: Any, context: CallbackContext) -> None:
        """Begin the record of a fit."""
        self._records[id(estimator)] = self._open(context)

    def on_fit_task_begin(
        self, estimator: Any, context: CallbackContext, *, metadata: Any = None
    ) -> None:
        """Look at a task that begins: the fit, one of its training runs, or a report."""
        told = metadata or {}
        if isinstance(told.get("fit"), FitStart):
            self._fit_begins(estimator, told["fit"])
        if isinstance(told.get("run"), Run):
            self._between_reports(estimator, told["run"], begins=not _is_report(context))

    def teardown(self, estimator: Any, context: CallbackContext) -> None:
        """End the record of a fit."""
        self._close(self._records.pop(id(estimator), None))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_records": {}}

    def _record(self, estimator: Any) -> Any:
        return self._records[id(estimator)]

    # -- what a subclass may do ------------------------------------------------------------------

    def _open(self, context: CallbackContext) -> Any:
        """Return the record of a fit that begins."""
        return None

    def _close(self, record: Any) -> None:
        """Give back what a record holds."""

    def _fit_begins(self, estimator: Any, start: FitStart) -> None:
        """Take part in the beginning of a fit, before any random number is drawn."""

    def _between_reports(self, estimator: Any, run: Run, *, begins: bool) -> None:
        """Look at a run when it begins, and before each report."""


def _is_report(context: CallbackContext) -> bool:
    """Say whether a task is a report; else it is a training run, the child of a fit."""
    return context.parent is not None and context.parent.task_name != "fit"


def _own_path(path: str | Path, context: CallbackContext) -> Path:
    """Return a path with the numbers of the tasks around a fit, if it is not the outermost."""
    path = Path(path)
    numbers = [str(task.task_id) for task in get_context_path(context)[1:]]
    return path.with_name("-".join([path.stem, *numbers]) + path.suffix)


def _last_due(iteration: int, every: int) -> int:
    """Return the multiple of ``every`` that was passed last: reports may not fall on them."""
    return iteration - iteration % every


def _check_interval(name: str, value: Any, lowest: int = 1) -> None:
    if not isinstance(value, Integral) or value < lowest:
        raise ValueError(f"{name} must be an integer of at least {lowest}, got {value!r}.")


def _check_folder(name: str, path: str | Path) -> None:
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(
            f"{name}={str(path)!r} lies in a folder that does not exist. Create it first."
        )


# ---------------------------------------------------------------------------------------
# Monitors
# ---------------------------------------------------------------------------------------


class _Monitor(_Callback):
    """Measures the policy from time to time; keeps the best weights, and stops when none come."""

    def __init__(
        self, *, every: int | None, patience: int | None, tol: float, keep_best: bool, name: str
    ) -> None:
        super().__init__()
        if every is not None:
            _check_interval("every", every)
        if patience is not None:
            _check_interval("patience", patience)
        if not tol >= 0:
            raise ValueError(f"tol must be at least 0, got {tol!r}.")
        if not name or "/" in name:
            raise ValueError(f"name must be a text without '/', got {name!r}.")
        self.every, self.patience, self.tol = every, patience, tol
        self.keep_best, self.name = keep_best, name

    @abstractmethod
    def _measure(self, policy: Any) -> float:
        """Return the score of a fitted policy; greater is better."""

    def on_fit_task_end(
        self,
        estimator: Any,
        context: CallbackContext,
        *,
        metadata: Any = None,
        fitted_estimator: Any = None,
    ) -> bool:
        """Measure the policy at the end of a report, put the best weights in at the end of a run.

        Returns
        -------
        bool
            Whether the run is to stop.
        """
        run = (metadata or {}).get("run")
        if not isinstance(run, Run):
            return False
        if not _is_report(context):
            self._finish(run)
            return False
        notes = run.notes.setdefault(self.name, {"measured": 0})
        every = self.every or 1
        ends = run.iteration >= run.max_iter
        if not ends and run.iteration < notes["measured"] + every:
            return False
        notes["measured"] = _last_due(run.iteration, every)
        score = from_first(lambda: float(self._measure(fitted_estimator)))
        metadata["row"][self.name] = score
        return self._judge(run, notes, score, fitted_estimator)

    def _judge(self, run: Run, notes: dict[str, float], score: float, policy: Any) -> bool:
        """Note a score and say whether the run has waited long enough for a better one."""
        if "best" not in notes or score > notes["best"] + self.tol:
            notes |= {"best": score, "iteration": run.iteration, "waited": 0}
            if self.keep_best:
                run.kept[self.name] = policy.network_.state_dict()  # of a copy: it stays
        else:
            notes["waited"] += 1
        return self.patience is not None and notes["waited"] >= self.patience

    def _finish(self, run: Run) -> None:
        notes = run.notes.get(self.name, {})
        if "best" in notes:
            self.best_score_, self.best_iteration_ = notes["best"], int(notes["iteration"])
        if self.name in run.kept:
            run.averaged().load_state_dict(run.kept[self.name])


class EarlyStopping(_Monitor):
    """Stop training when a score on held-out data ceases to improve.

    Parameters
    ----------
    X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
        State windows that the policy does not learn from.
    y : array-like of shape (n, d_a) or (n,)
        Actions taken in them.
    metric : callable or None, default=None
        ``metric(policy, X, y)`` returns a number, greater is better. ``None`` is
        ``policy.score(X, y)``. It must not draw from the global generators, or the fit will not be
        reproducible.
    every : int or None, default=None
        Iterations between two measurements, rounded up to reports; ``None`` measures at each.
    patience : int, default=10
        Measurements without improvement after which the run is stopped.
    tol : float, default=0.0
        What counts as an improvement: more than this above the best score.
    keep_best : bool, default=True
        Whether the policy ends with the weights of its best score instead of the last ones.
    name : str, default="held_out_score"
        Column of the score in ``history_``.

    Attributes
    ----------
    best_score_, best_iteration_ : float, int
        Of the training run that ended last in this process.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.callbacks import EarlyStopping
    >>> states, actions = np.random.RandomState(0).standard_normal((2, 80, 1))
    >>> stopping = EarlyStopping(states[60:], actions[60:], patience=3)
    >>> policy = GaussianMoEPolicy(2, max_iter=200, learning_rate=1e-2, random_state=0)
    >>> policy.set_callbacks(stopping).fit(states[:60], actions[:60]).n_iter_ < 200
    True
    >>> bool(np.isclose(policy.score(states[60:], actions[60:]), stopping.best_score_))
    True
    """

    def __init__(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        metric: Callable[[Any, Any, Any], float] | None = None,
        every: int | None = None,
        patience: int = 10,
        tol: float = 0.0,
        keep_best: bool = True,
        name: str = "held_out_score",
    ) -> None:
        super().__init__(every=every, patience=patience, tol=tol, keep_best=keep_best, name=name)
        if metric is not None and not callable(metric):
            raise TypeError(f"metric must be callable or None, got {metric!r}.")
        n_rows = np.shape(X)[0], np.shape(y)[0]
        if n_rows[0] != n_rows[1]:
            raise ValueError(f"y must have a row for each of X, got {n_rows[1]} for {n_rows[0]}.")
        self.X, self.y, self.metric = X, y, metric

    def _measure(self, policy: Any) -> float:
        if self.metric is None:
            return policy.score(self.X, self.y)
        return self.metric(policy, self.X, self.y)


class RolloutMonitor(_Monitor):
    """Roll the policy out from time to time while it is trained, and keep the best weights.

    Parameters
    ----------
    env_id, n_episodes, metric, contexts, random_state, env_kwargs, goal : as in `rollout_scorer`
        What is measured, see `skvdd.evaluation.rollout_scorer`; with one metric. Every measurement
        plays the same episodes, unless ``random_state`` is None. The best of many noisy scores is
        optimistic: judge the policy by other episodes afterwards.
    every : int, default=1000
        Iterations between two measurements, rounded up to reports. The end of a run is measured
        too.
    keep_best : bool, default=True
        Whether the policy ends with the weights of its best score instead of the last ones.
    patience : int or None, default=None
        Measurements without improvement after which the run is stopped; ``None`` never stops it.
    name : str or None, default=None
        Column of the score in ``history_``; ``None`` is the name of the metric.

    Attributes
    ----------
    best_score_, best_iteration_ : float, int
        Of the training run that ended last in this process.

    Examples
    --------
    >>> from skvdd.callbacks import RolloutMonitor
    >>> RolloutMonitor("skvdd/Avoiding-v0", 20, every=500, metric="entropy").name
    'entropy'
    """

    def __init__(
        self,
        env_id: str,
        n_episodes: int = 100,
        *,
        every: int = 1000,
        metric: str = "success_rate",
        keep_best: bool = True,
        patience: int | None = None,
        contexts: int | ArrayLike | None = None,
        random_state: int | None = 0,
        env_kwargs: Mapping[str, Any] | None = None,
        goal: ArrayLike | None = None,
        name: str | None = None,
    ) -> None:
        # Here, since simulators are loaded by those alone who roll out.
        from skvdd.evaluation import rollout_scorer

        if not isinstance(metric, str):
            raise TypeError(f"metric must be the name of one metric, got {metric!r}.")
        _check_interval("every", every)
        self._scorer = rollout_scorer(
            env_id,
            n_episodes,
            metric=metric,
            contexts=contexts,
            random_state=random_state,
            env_kwargs=env_kwargs,
            goal=goal,
        )
        super().__init__(
            every=every,
            patience=patience,
            tol=0.0,
            keep_best=keep_best,
            name=metric if name is None else name,
        )

    def _measure(self, policy: Any) -> float:
        return self._scorer(policy, None)  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------
# Loggers
# ---------------------------------------------------------------------------------------


class _Logger(_Callback):
    """Writes rows of the history once all callbacks have added their columns."""

    def _between_reports(self, estimator: Any, run: Run, *, begins: bool) -> None:
        if is_first_process():
            self._log(estimator, run)

    def on_fit_task_end(
        self, estimator: Any, context: CallbackContext, *, metadata: Any = None
    ) -> None:
        """Write what is left at the end of a run."""
        run = (metadata or {}).get("run")
        if isinstance(run, Run) and not _is_report(context) and is_first_process():
            self._log(estimator, run)

    @abstractmethod
    def _log(self, estimator: Any, run: Run) -> None:
        """Write the rows that are new."""


class CSVLogger(_Logger):
    """Write the history to a CSV file while training goes on.

    One line a report, with the columns of ``history_``; a column that does not concern a row is
    empty. The file is that of one fit: an older one of that name is replaced. It is whole at any
    time, after a resumed fit as well.

    Parameters
    ----------
    path : str or Path
        File to write.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.callbacks import CSVLogger
    >>> states, actions = np.random.RandomState(0).standard_normal((2, 50, 1))
    >>> policy = GaussianMoEPolicy(2, max_iter=5, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "log.csv")
    ...     _ = policy.set_callbacks(CSVLogger(path)).fit(states, actions)
    ...     with open(path) as file:
    ...         lines = file.read().splitlines()
    >>> lines[0], len(lines)
    ('stage,iteration,learning_rate,complete_nll,experts,gating', 6)
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        _check_folder("path", path)
        self.path = path

    def _open(self, context: CallbackContext) -> Path:
        return _own_path(self.path, context)

    def _log(self, estimator: Any, run: Run) -> None:
        rows = [*getattr(estimator, "history_", []), *run.history]
        if not rows:
            return
        text = io.StringIO()
        columns = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self._record(estimator), text.getvalue().encode())


class TensorBoardLogger(_Logger):
    """Write the history for TensorBoard, with torch's own ``SummaryWriter``.

    Each stage of a fit is a run, in a folder of its name; each column of ``history_`` a scalar.

    Parameters
    ----------
    folder : str or Path
        Where to write; it is created.

    Raises
    ------
    ModuleNotFoundError
        If the package ``tensorboard`` is not installed.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.callbacks import TensorBoardLogger
    >>> states, actions = np.random.RandomState(0).standard_normal((2, 50, 1))
    >>> policy = GaussianMoEPolicy(2, max_iter=5, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = policy.set_callbacks(TensorBoardLogger(folder)).fit(states, actions)
    ...     os.listdir(folder)
    ['maximum likelihood']
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        if find_spec("tensorboard") is None:
            raise ModuleNotFoundError(
                "TensorBoardLogger needs the package tensorboard: pip install tensorboard. "
                "CSVLogger needs none."
            )
        self.folder = folder

    def _open(self, context: CallbackContext) -> _Board:
        return _Board(_own_path(self.folder, context))

    def _close(self, record: _Board) -> None:
        record.close()

    def _log(self, estimator: Any, run: Run) -> None:
        self._record(estimator).write(run)


@dataclass
class _Board:
    """The writer of one stage after the other."""

    folder: Path
    stage: str = ""
    writer: Any = None
    n_written: int = 0

    def write(self, run: Run) -> None:
        if run.stage != self.stage or self.writer is None:
            self._begin(run)
        for row in run.history[self.n_written :]:
            for name, value in row.items():
                if not isinstance(value, str) and name != "iteration":
                    self.writer.add_scalar(name, value, row["iteration"])
        self.n_written = len(run.history)
        self.writer.flush()

    def _begin(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        # What a run that is resumed had written before, after its checkpoint, does not count.
        self.writer = SummaryWriter(str(self.folder / run.stage), purge_step=run.iteration + 1)
        self.stage, self.n_written = run.stage, len(run.history)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


# ---------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------


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
        write_whole(self.path, serialise(tensors, metadata={"skvdd": json.dumps(header)}))

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


class Checkpoint(_Callback):
    """Save the state of a fit from time to time, so that it can be resumed bit for bit.

    If the process ends before the fit does, call `fit` again with the same arguments, in a new
    process if need be: it finds the file and goes on where the file was written, with the same
    weights, optimiser, averages, random numbers and history, and what the other callbacks of this
    module remember. On the same machine the result is that of a fit that was never interrupted.
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
        _check_interval("every", every)
        _check_folder("path", path)
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
            if not _is_report(context) and not run.interrupted:
                self._save(saved, run)
        elif context is saved.context and not getattr(estimator, "interrupted_", True):
            self._done(saved)

    def _open(self, context: CallbackContext) -> _Saved:
        return _Saved(_own_path(self.path, context), context)

    def _fit_begins(self, estimator: Any, start: FitStart) -> None:
        saved, fingerprint = self._record(estimator), start.fingerprint()
        if saved.read():
            _check_fingerprint(saved, fingerprint)
            # An object of its own: the user's, or NumPy's global one, is left alone.
            start.rng = np.random.RandomState()
            start.rng.set_state(saved.rng)
        else:
            saved.fingerprint, saved.rng = fingerprint, _state_of(start.rng)
            saved.write()

    def _between_reports(self, estimator: Any, run: Run, *, begins: bool) -> None:
        saved = self._record(estimator)
        if begins:
            if run.stage in saved.stages:
                run.load(*saved.stages[run.stage])
            saved.written_at = _last_due(run.iteration, self.every)
        elif run.iteration >= saved.written_at + self.every:
            self._save(saved, run)

    def _save(self, saved: _Saved, run: Run) -> None:
        saved.stages[run.stage] = run.state()
        saved.written_at = _last_due(run.iteration, self.every)
        saved.write()

    def _done(self, saved: _Saved) -> None:
        if is_first_process():
            for path in (saved.path, _of_teacher(saved.path)):
                path.unlink(missing_ok=True)


class _TeacherCheckpoint(Checkpoint):
    """One with just this path, which stays when the teacher is done, until its student is."""

    def _open(self, context: CallbackContext) -> _Saved:
        return _Saved(Path(self.path), context)

    def _done(self, saved: _Saved) -> None:
        pass


def _of_teacher(path: Path) -> Path:
    return path.with_name(path.name + ".teacher")


def _state_of(rng: np.random.RandomState) -> list[Any]:
    name, key, *rest = rng.get_state(legacy=True)
    return [name, np.asarray(key).tolist(), *rest]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return header and tensors of a checkpoint, None if there is no file."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {}).get("skvdd", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} is no checkpoint of skvdd: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} is no checkpoint of skvdd. Give another path.")
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has format version {header.get('version')}, but this skvdd reads "
            f"version {FORMAT_VERSION}."
        )
    return header, tensors


def _check_fingerprint(saved: _Saved, now: dict[str, Any]) -> None:
    """Raise a ValueError that names what differs between the fit of a file and this one."""
    before = saved.fingerprint
    parts = [(name, before[name], now[name]) for name in now if name != "parameters"]
    names = {**before["parameters"], **now["parameters"]}
    parts += [(k, before["parameters"].get(k), now["parameters"].get(k)) for k in names]
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
