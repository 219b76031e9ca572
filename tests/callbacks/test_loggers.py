"""Logs of a training."""

import os
import re
import sys

import numpy as np
import pytest

from skvdd import VDDDistiller
from skvdd.callbacks import Checkpoint, CSVLogger, EarlyStopping, TensorBoardLogger
from tests.callbacks.toys import mixture, peak, read_rows
from tests.estimators import SMALL, small_teacher


def test_a_csv_file_holds_the_history_with_the_columns_of_later_callbacks(data, tmp_path):
    X, y = data
    teacher = small_teacher(window_size=2).fit(X, y)
    student = VDDDistiller(n_experts=2, init_iter=5, window_size=2, **SMALL)
    stopping = EarlyStopping(X, y, metric=peak(4), every=3)
    student.set_callbacks(CSVLogger(tmp_path / "log.csv"), stopping).fit(X, y, teacher=teacher)
    rows = read_rows(tmp_path / "log.csv")
    assert len(rows) == len(student.history_) == 25
    for written, row in zip(rows, student.history_, strict=True):
        assert {name: value for name, value in written.items() if value} == {
            name: str(value) for name, value in row.items()
        }


def test_a_csv_file_grows_with_the_training(data, tmp_path):
    X, y = data
    lengths = []

    def count(policy, X, y):
        path = tmp_path / "log.csv"
        lengths.append(len(read_rows(path)) if path.exists() else 0)
        return 0.0

    policy = mixture(max_iter=4)
    policy.set_callbacks(EarlyStopping(X, y, metric=count), CSVLogger(tmp_path / "log.csv"))
    policy.fit(X, y)
    assert lengths == [0, 1, 2, 3]
    assert len(read_rows(tmp_path / "log.csv")) == 4
    policy.set_params(max_iter=2).fit(X, y)
    assert len(read_rows(tmp_path / "log.csv")) == 2  # of the last fit


def test_a_log_holds_the_rows_of_its_fit_alone(data, tmp_path):
    """Both stages of a fit, all of a refit, and of `partial_fit` not those of earlier calls."""
    X, y = data
    log = tmp_path / "log.csv"
    teacher = small_teacher(window_size=2, max_iter=2).fit(X, y)
    student = VDDDistiller(n_experts=2, init_iter=3, window_size=2, **{**SMALL, "max_iter": 4})
    student.set_callbacks(CSVLogger(log)).fit(X, y, teacher=teacher)
    stages = [(row["stage"], row["iteration"]) for row in read_rows(log)]
    assert stages == [
        *(("maximum likelihood", str(i)) for i in (1, 2, 3)),
        *(("distillation", str(i)) for i in (1, 2, 3, 4)),
    ]
    student.set_params(init_iter=0, max_iter=3).fit(X, y, teacher=teacher)
    assert [row["stage"] for row in read_rows(log)] == ["distillation"] * 3
    student.partial_fit(X[:30], y[:30], teacher=teacher)
    assert len(student.history_) == 6
    rows = read_rows(log)
    assert [row["iteration"] for row in rows] == ["1", "2", "3"]
    for row, expected in zip(rows, student.history_[3:], strict=True):
        assert row == {name: str(value) for name, value in expected.items()}
    teacher.set_callbacks(CSVLogger(log)).partial_fit(X, y)  # another policy, the same file
    assert [row["stage"] for row in read_rows(log)] == ["denoising"] * 2


def test_the_log_of_a_student_has_no_rows_of_its_teacher(data, tmp_path):
    X, y = data
    student = VDDDistiller(
        small_teacher(window_size=2), n_experts=2, init_iter=2, window_size=2, **SMALL
    )
    student.set_callbacks(CSVLogger(tmp_path / "log.csv")).fit(X, y)
    assert {row["stage"] for row in read_rows(tmp_path / "log.csv")} == {
        "maximum likelihood",
        "distillation",
    }
    assert os.listdir(tmp_path) == ["log.csv"]


@pytest.fixture
def tensorboard(monkeypatch):
    """Files of the same second are read in the order of their names, which end in a count."""
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer import event_file_writer

    counter = event_file_writer.AtomicCounter(1000)
    monkeypatch.setattr(event_file_writer, "_global_uid", counter)


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
def test_tensorboard_reads_the_history(data, tensorboard, tmp_path):
    X, y = data
    teacher = small_teacher(window_size=2).fit(X, y)
    student = VDDDistiller(n_experts=2, init_iter=5, window_size=2, **SMALL)
    stopping = EarlyStopping(X, y, metric=peak(4), every=3)
    student.set_callbacks(TensorBoardLogger(tmp_path / "board"), stopping)
    student.fit(X, y, teacher=teacher)
    for stage in ("maximum likelihood", "distillation"):
        rows = [row for row in student.history_ if row["stage"] == stage]
        names = {name for row in rows for name in row} - {"stage", "iteration"}
        read = scalars(tmp_path / "board" / stage)
        assert set(read) == names
        for name in names:
            expected = [(row["iteration"], row[name]) for row in rows if name in row]
            np.testing.assert_allclose(read[name], expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
def test_tensorboard_shows_the_rows_of_the_last_fit_alone(data, tensorboard, tmp_path):
    X, y = data
    policy = mixture(max_iter=6).set_callbacks(
        EarlyStopping(X, y, metric=peak(3), patience=1000), TensorBoardLogger(tmp_path)
    )

    def shown():
        read = scalars(tmp_path / "maximum likelihood")
        return {tag: [step for step, _ in events] for tag, events in read.items() if events}

    policy.fit(X, y)
    assert set(map(tuple, shown().values())) == {(1, 2, 3, 4, 5, 6)}
    policy.set_params(max_iter=3).set_callbacks(TensorBoardLogger(tmp_path)).fit(X, y)
    assert "held_out_score" not in shown()
    assert set(map(tuple, shown().values())) == {(1, 2, 3)}
    policy.set_params(max_iter=2).partial_fit(X, y)
    read = scalars(tmp_path / "maximum likelihood")["complete_nll"]
    expected = [(row["iteration"], row["complete_nll"]) for row in policy.history_[3:]]
    assert len(expected) == 2
    np.testing.assert_allclose(read, expected, rtol=1e-6)  # kept as float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
@pytest.mark.parametrize("logger_first", [False, True])
def test_tensorboard_reads_a_resumed_fit_as_one(logger_first, data, tensorboard, tmp_path):
    X, y = data
    made = {"broken": False}

    def break_once(policy, X, y):
        if policy.n_iter_ == 11 and not made["broken"]:
            made["broken"] = True
            raise RuntimeError("the machine is on fire")
        return 0.0

    callbacks = [Checkpoint(tmp_path / "run.ckpt", every=4), TensorBoardLogger(tmp_path)]
    callbacks = callbacks[::-1] if logger_first else callbacks
    policy = mixture().set_callbacks(*callbacks, EarlyStopping(X, y, metric=break_once, every=11))
    with pytest.raises(RuntimeError, match="on fire"):
        policy.fit(X, y)
    policy.fit(X, y)
    read = scalars(tmp_path / "maximum likelihood")["complete_nll"]
    expected = [(row["iteration"], row["complete_nll"]) for row in policy.history_]
    np.testing.assert_allclose(read, expected, rtol=1e-6)


def test_a_missing_tensorboard_is_named_at_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("skvdd.callbacks.loggers.find_spec", lambda name: None)
    message = "TensorBoardLogger needs the package tensorboard: pip install tensorboard."
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(message)}"):
        TensorBoardLogger(tmp_path)


def test_the_folder_of_a_log_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path='.*' lies in a folder that does not exist"):
        CSVLogger(tmp_path / "nowhere" / "log.csv")
