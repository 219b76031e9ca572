"""All callbacks beside each other, in searches and in copies."""

import pickle
import re

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from skvdd.callbacks import Checkpoint, CSVLogger, EarlyStopping, RolloutMonitor, TensorBoardLogger
from tests.callbacks.toys import mixture, peak, read_rows, same_weights
from tests.estimators import label, make_estimators

AVOIDING = "avoiding"


def all_callbacks(X, y, folder):
    return [
        CSVLogger(folder / "log.csv"),
        TensorBoardLogger(folder / "board"),
        EarlyStopping(X, y, every=7, patience=1000, keep_best=False),
        Checkpoint(folder / "run.ckpt", every=5),
    ]


@pytest.mark.parametrize("estimator", make_estimators(window_size=2, max_iter=8), ids=label)
def test_watching_changes_no_bit(estimator, two_ways, tmp_path):
    pytest.importorskip("tensorboard")
    X, y = two_ways
    alone, watched = clone(estimator), clone(estimator)
    watched.set_callbacks(*all_callbacks(X[:5], y[:5], tmp_path), ProgressBar())
    assert same_weights(alone.fit(X, y), watched.fit(X, y))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board", "log.csv"]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_callbacks_work_nested_in_a_search(n_jobs, data, tmp_path):
    X, y = data
    grid = {"n_experts": [1, 2]}
    plain = GridSearchCV(mixture(max_iter=6), grid, cv=2).fit(X, y)
    policy = mixture(max_iter=6).set_callbacks(
        CSVLogger(tmp_path / "log.csv"),
        Checkpoint(tmp_path / "run.ckpt", every=2),
        EarlyStopping(X, y, patience=1000, keep_best=False),
    )
    search = GridSearchCV(policy, grid, cv=2, n_jobs=n_jobs).set_callbacks(ProgressBar())
    search.fit(X, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 5  # four splits and the refit; no checkpoint is left
    for name in names:
        assert re.fullmatch(r"log(-\d+)+\.csv", name)
        rows = read_rows(tmp_path / name)
        assert [row["iteration"] for row in rows] == list("123456")
        assert all(row["held_out_score"] for row in rows)


def test_stopping_stops_each_fit_of_a_search_on_its_own(data):
    X, y = data
    stopping = EarlyStopping(X, y, metric=peak(3), patience=2)
    search = GridSearchCV(mixture().set_callbacks(stopping), {"n_experts": [1, 2]}, cv=2)
    assert search.fit(X, y).best_estimator_.n_iter_ == 5
    assert len(search.best_estimator_.history_) == 5


def test_a_clone_takes_its_callbacks_with_it_and_a_pickle_too(data, tmp_path):
    X, y = data
    callbacks = [
        CSVLogger(tmp_path / "log.csv"),
        EarlyStopping(X, y, patience=2),
        Checkpoint(tmp_path / "run.ckpt"),
        RolloutMonitor(AVOIDING, 1),
    ]
    policy = mixture(max_iter=5).set_callbacks(*callbacks[:3]).fit(X, y)
    for copied in (clone(policy), pickle.loads(pickle.dumps(policy))):
        (tmp_path / "log.csv").unlink()
        assert same_weights(copied.fit(X, y), policy)
        assert (tmp_path / "log.csv").exists()
    for callback in callbacks:
        again = pickle.loads(pickle.dumps(callback))
        assert type(again) is type(callback)
        assert vars(again).keys() == vars(callback).keys()


def test_callbacks_are_silent_about_estimators_they_do_not_know(data, tmp_path):
    pytest.importorskip("tensorboard")
    X, y = data
    callbacks = all_callbacks(X, y, tmp_path)
    search = GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2).set_callbacks(*callbacks)
    search.fit(X, y[:, 0] > 0)
    search.best_estimator_.set_callbacks(*callbacks).fit(X, y[:, 0] > 0)
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_a_policy_links_to_its_documentation():
    for estimator in make_estimators():
        name = type(estimator).__name__
        page = f"https://skvdd.readthedocs.io/en/stable/api/generated/skvdd.{name}.html"
        assert f'href="{page}"' in estimator._repr_html_()
