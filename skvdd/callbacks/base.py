"""What all callbacks of the library share."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any

from skvdd._sklearn import CallbackContext, get_context_path
from skvdd.training import FitStart, Run


class Callback:
    """What these callbacks share: one record for each fit that runs, and hooks by event.

    The same object may serve many fits, one after the other or in threads: scikit-learn hands it
    on to clones. Nothing of a fit is therefore kept but in its `Run` and in its record.
    """

    def __init__(self) -> None:
        self._records: dict[int, Any] = {}  # by identity of the estimator that is fitted

    def setup(self, estimator: Any, context: CallbackContext) -> None:
        """Begin the record of a fit."""
        self._records[id(estimator)] = self._open(estimator, context)

    def on_fit_task_begin(
        self, estimator: Any, context: CallbackContext, *, metadata: Any = None
    ) -> None:
        """Look at a task that begins: the fit, one of its training runs, or a report."""
        metadata = metadata or {}
        if isinstance(metadata.get("fit"), FitStart):
            self._fit_begins(estimator, metadata["fit"])
        if isinstance(metadata.get("run"), Run):
            self._between_reports(estimator, metadata["run"], begins=not is_report(context))

    def teardown(self, estimator: Any, context: CallbackContext) -> None:
        """End the record of a fit."""
        self._close(self._records.pop(id(estimator), None))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_records": {}}

    def _record(self, estimator: Any) -> Any:
        return self._records[id(estimator)]

    # -- what a subclass may do ------------------------------------------------------------------

    def _open(self, estimator: Any, context: CallbackContext) -> Any:
        """Return the record of a fit that begins."""
        return None

    def _close(self, record: Any) -> None:
        """Close what a record holds."""

    def _fit_begins(self, estimator: Any, start: FitStart) -> None:
        """Take part in the beginning of a fit, before any random number is drawn."""

    def _between_reports(self, estimator: Any, run: Run, *, begins: bool) -> None:
        """Look at a run when it begins, and before each report."""


def is_report(context: CallbackContext) -> bool:
    """Say whether a task is a report; else it is a training run, the child of a fit."""
    return context.parent is not None and context.parent.task_name != "fit"


def own_path(path: str | Path, context: CallbackContext) -> Path:
    """Return a path with the numbers of the tasks around a fit, if it is not the outermost."""
    path = Path(path)
    numbers = [str(task.task_id) for task in get_context_path(context)[1:]]
    return path.with_name("-".join([path.stem, *numbers]) + path.suffix)


def last_due(iteration: int, every: int) -> int:
    """Return the multiple of ``every`` that was passed last: reports may not fall on them."""
    return iteration - iteration % every


def check_interval(name: str, value: Any, lowest: int = 1) -> None:
    """Raise a ValueError if what should count iterations does not."""
    if not isinstance(value, Integral) or value < lowest:
        raise ValueError(f"{name} must be an integer of at least {lowest}, got {value!r}.")


def check_folder(name: str, path: str | Path) -> None:
    """Raise a FileNotFoundError if a file could not be written for want of its folder."""
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(
            f"{name}={str(path)!r} lies in a folder that does not exist. Create it first."
        )
