"""Callbacks that write the history of a training as it grows."""

from __future__ import annotations

import csv
import io
from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from skvdd._sklearn import CallbackContext
from skvdd.callbacks.base import Callback, check_folder, is_report, own_path
from skvdd.persistence import write_whole
from skvdd.training import Run, is_first_process


class _Logger(Callback, metaclass=ABCMeta):
    """Writes rows of the history once all callbacks have added their columns."""

    def _between_reports(self, estimator: Any, run: Run, *, begins: bool) -> None:
        if is_first_process():
            self._log(estimator, run)

    def on_fit_task_end(
        self, estimator: Any, context: CallbackContext, *, metadata: Any = None
    ) -> None:
        """Write what is left at the end of a run."""
        run = (metadata or {}).get("run")
        if isinstance(run, Run) and not is_report(context) and is_first_process():
            self._log(estimator, run)

    @abstractmethod
    def _log(self, estimator: Any, run: Run) -> None:
        """Write the rows that are new."""


class CSVLogger(_Logger):
    """Write the history to a CSV file during training.

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
        check_folder("path", path)
        self.path = path

    def _open(self, estimator: Any, context: CallbackContext) -> Path:
        return own_path(self.path, context)

    def _log(self, estimator: Any, run: Run) -> None:
        rows = [*run.earlier, *run.history]
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

    def _open(self, estimator: Any, context: CallbackContext) -> _Board:
        return _Board(own_path(self.folder, context))

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
