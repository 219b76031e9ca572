"""The records of a task: one row a run, the outcome of every rollout, and each training once.

A folder has ``runs.csv``, ``outcomes.npz`` (by the key of a run), ``trainings.json`` (by the key of
a training) and ``tables.json`` (which runs each experiment shows). Tables and pictures are made
from these alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from benchmarks import training
from benchmarks.provenance import digest
from skvdd.envs import TaskSpec, get_task
from skvdd.evaluation import Evaluation, ScoreReport
from skvdd.persistence import write_whole

RESULTS = Path(__file__).parents[1] / "docs" / "results"
COLUMNS: dict[str, Callable[[str], Any]] = {
    "key": str,
    "training": str,
    "setting": str,
    "name": str,
    "env_id": str,
    "budget": str,
    "seed": int,
    "split": str,
    "n_contexts": int,
    "n_episodes": int,
    "success": float,
    "success_rate": float,
    "success_low": float,
    "success_high": float,
    "entropy_d3il": float,
    "entropy_low": float,
    "entropy_high": float,
    "entropy_ceiling": float,
    "diversity": float,
    "diversity_low": float,
    "diversity_high": float,
    "n_behaviors": int,
    "mean_return": float,
    "mean_length": float,
    "iterations": int,
    "seconds": float,
    "clock": str,
    "trained_on": str,
    "demonstrations": str,
    "demonstrator_version": str,
    "n_demonstrations": int,
    "rows": str,
    "commit": str,
    "skvdd": str,
    "torch": str,
    "mujoco": str,
    "processor": str,
    "date": str,
}
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Record:
    """A run that was done.

    Parameters
    ----------
    row : dict
        Its row in ``runs.csv``; what was not measured is None.
    task : TaskSpec
        The task.
    outcomes : structured ndarray of shape (n,)
        What each rollout did.
    """

    row: Row
    task: TaskSpec
    outcomes: NDArray[np.void]

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation, without the episodes themselves."""
        split = self.row["split"] if self.row["n_contexts"] else None
        return restored(self.task, split, self.outcomes)


class Store:
    """The records in one folder; several processes may add to them.

    Parameters
    ----------
    folder : Path
        Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # -- reading ---------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Return all rows."""
        path = self.folder / "runs.csv"
        if not path.is_file():
            return []
        with open(path, newline="", encoding="utf-8") as file:
            return [_typed(row) for row in csv.DictReader(file)]

    def keys(self) -> set[str]:
        """Return the keys of the runs that are there."""
        return {row["key"] for row in self.rows()}

    def outcomes(self) -> dict[str, NDArray[np.void]]:
        """Return the outcomes of all runs."""
        path = self.folder / "outcomes.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def records(self, task: TaskSpec) -> list[Record]:
        """Return all records."""
        outcomes = self.outcomes()
        return [Record(row, task, outcomes[row["key"]]) for row in self.rows()]

    def read(self, name: str) -> dict[str, Any]:
        """Return ``trainings`` or ``tables``."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    # -- writing ---------------------------------------------------------------------------------

    def add(
        self, row: Mapping[str, Any], outcomes: NDArray[np.void], trainings: Mapping[str, Any]
    ) -> None:
        """Add a run, whole or not at all; one of the same key is left as it is."""
        with self._locked():
            rows = self.rows()
            if row["key"] in {other["key"] for other in rows}:
                return
            everything = {**self.outcomes(), row["key"]: outcomes}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **dict(sorted(everything.items())))
            write_whole(self.folder / "outcomes.npz", buffer.getvalue())
            self._write_json("trainings", {**self.read("trainings"), **trainings})
            self._write_rows([*rows, dict(row)])  # last: what has a row is whole

    def show(self, table: str, content: Mapping[str, Any]) -> None:
        """Note which runs a table shows."""
        with self._locked():
            self._write_json("tables", {**self.read("tables"), table: content})

    def _locked(self) -> FileLock:
        """Return a lock; it lies in the cache, since a file beside the records would stay there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        training.CACHE.mkdir(parents=True, exist_ok=True)
        return FileLock(training.CACHE / f"records-{digest(str(self.folder.resolve()))}.lock")

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=1, sort_keys=name == "trainings", default=repr)
        write_whole(self.folder / f"{name}.json", (text + "\n").encode())

    def _write_rows(self, rows: list[Row]) -> None:
        rows.sort(key=lambda row: [str(row[k]) for k in ("split", "budget", "name")] + [row["key"]])
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: _text(row[name]) for name in COLUMNS} for row in rows])
        write_whole(self.folder / "runs.csv", buffer.getvalue().encode())


def load(task: str, results: str | Path = RESULTS) -> list[Record]:
    """Return all records of a task.

    Parameters
    ----------
    task : str
        Its name, or the id of its environment.
    results : str or Path, default=RESULTS
        Folder that has a folder for each task.
    """
    spec = get_task(task)
    return Store(Path(results) / spec.name).records(spec)


# -- outcomes ------------------------------------------------------------------------------------


def compacted(evaluation: Evaluation) -> NDArray[np.void]:
    """Return what each rollout did: behaviors by their place in the list of the task."""
    fields: dict[str, tuple[str, Any]] = {
        "context": ("i4", [-1 if c is None else c for c in evaluation.contexts]),
        "length": ("i4", evaluation.lengths),
        "return": ("f4", evaluation.returns),
    }
    for name, report in _by_ending(evaluation.scores).items():
        index = {behavior: k for k, behavior in enumerate(report.score.behaviors)}
        fields[f"success{name}"] = ("?", report.successes)
        fields[f"behavior{name}"] = ("i2", [index.get(b, -1) for b in report.behaviors])
    table = np.empty(evaluation.n_episodes, [(name, kind) for name, (kind, _) in fields.items()])
    for name, (_, values) in fields.items():
        table[name] = values
    return table


def restored(task: TaskSpec, split: str | None, outcomes: NDArray[np.void]) -> Evaluation:
    """Return the evaluation that was compacted; it has no episodes."""
    contexts = tuple(None if c < 0 else int(c) for c in outcomes["context"])
    scores = {score.name: score for score in task.scores}
    reports = {}
    for ending, score in _by_ending(scores).items():
        values = [*score.behaviors, None]  # -1 is the last
        behaviors = tuple(values[k] for k in outcomes[f"behavior{ending}"])
        reports[score.name] = ScoreReport(score, outcomes[f"success{ending}"], behaviors, contexts)
    return Evaluation(
        env_id=task.env_id,
        split=split,
        scores=reports,
        contexts=contexts,
        returns=outcomes["return"].astype(float),
        lengths=outcomes["length"].astype(int),
        episodes=None,  # type: ignore[arg-type]
    )


def _by_ending(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return scores by the ending of their columns: none for the first."""
    return {
        "" if place == 0 else f"_{name}": score
        for place, (name, score) in enumerate(scores.items())
    }


# -- rows ----------------------------------------------------------------------------------------


def _typed(row: Mapping[str, str]) -> Row:
    return {k: convert(row[k]) if row.get(k) else None for k, convert in COLUMNS.items()}


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
