"""Early stopping, monitors and loggers: alone, in searches, and beside each other."""

import csv
import os
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from skvdd import GaussianMoEPolicy, VDDDistiller, load
from skvdd.callbacks import Checkpoint, CSVLogger, EarlyStopping, RolloutMonitor, TensorBoardLogger
from skvdd.evaluation import evaluate_policy
from tests.estimators import SMALL, label, make_estimators, small_teacher

AVOIDING = "skvdd/Avoiding-v0"


@pytest.fixture
def data(two_ways):
    return tuple(values.reshape(60, -1) for values in two_ways)


def mixture(**parameters):
    return GaussianMoEPolicy(2, window_size=2, **{**SMALL, **parameters})


def peak(at):
    """Return a metric that is best after so many iterations."""
    return lambda policy, X, y: -abs(policy.n_iter_ - at)


def weights_of(policy):
    return {name: value.clone() for name, value in policy.network_.state_dict().items()}


def same_weights(first, second):
    first, second = weights_of(first), weights_of(second)
    return all(torch.equal(first[name], second[name]) for name in first)


# -- early stopping -------------------------------------------------------------------------


def test_training_stops_when_the_score_no_longer_improves(data):
    X, y = data
    stopping = EarlyStopping(X, y, metric=peak(6), patience=3)
    policy = mixture().set_callbacks(stopping).fit(X, y)
    assert policy.n_iter_ == 9  # three reports after the sixth
    assert [row["held_out_score"] for row in policy.history_] == [-abs(i - 6) for i in range(1, 10)]
    assert (stopping.best_score_, stopping.best_iteration_) == (0.0, 6)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_best_weights_are_kept_or_the_last_ones(ema_decay, data):
    X, y = data
    seen = {}

    def watch(policy, X, y):
        seen[policy.n_iter_] = weights_of(policy)
        return -abs(policy.n_iter_ - 6)

    for keep_best, iteration in ((True, 6), (False, 9)):
        stopping = EarlyStopping(X, y, metric=watch, patience=3, keep_best=keep_best)
        policy = mixture(ema_decay=ema_decay).set_callbacks(stopping).fit(X, y)
        kept = weights_of(policy)
        assert all(torch.equal(kept[name], seen[iteration][name]) for name in kept)
        assert any(not torch.equal(kept[name], seen[15 - iteration][name]) for name in kept)


def test_a_run_that_improves_to_its_end_is_not_stopped(data):
    X, y = data
    stopping = EarlyStopping(X, y, metric=peak(20), patience=1)
    policy = mixture().set_callbacks(stopping).fit(X, y)
    assert policy.n_iter_ == stopping.best_iteration_ == 20
    assert same_weights(policy, mixture().fit(X, y))


def test_an_improvement_must_exceed_the_tolerance(data):
    X, y = data
    scores = iter([0.0, 0.5, 1.0, 2.0, 2.5, 2.9])
    stopping = EarlyStopping(X, y, metric=lambda *_: next(scores), patience=2, tol=0.9)
    assert mixture().set_callbacks(stopping).fit(X, y).n_iter_ == 6
    assert (stopping.best_score_, stopping.best_iteration_) == (2.0, 4)


@pytest.mark.parametrize(
    ("scores", "best", "n_iter"),
    [
        ([np.nan, 0.0, 1.0, 0.5, 0.5, 0.5], (1.0, 3), 6),
        ([np.nan, np.nan, -3.0, np.nan, -4.0, -3.0], (-3.0, 3), 6),
        ([-np.inf, np.nan, 1.0, np.nan, np.nan, np.nan], (1.0, 3), 6),
        ([1.0, np.nan, np.nan, np.nan], (1.0, 1), 4),
    ],
)
def test_a_score_that_is_not_a_number_is_never_the_best(scores, best, n_iter, data, tmp_path):
    X, y = data
    kept, left = {}, iter(scores)

    def metric(policy, X, y):
        kept[policy.n_iter_] = weights_of(policy)
        return next(left)

    stopping = EarlyStopping(X, y, metric=metric, patience=3)
    policy = mixture().set_callbacks(stopping).fit(X, y)
    assert policy.n_iter_ == n_iter
    assert (stopping.best_score_, stopping.best_iteration_) == best
    assert all(torch.equal(v, kept[best[1]][name]) for name, v in weights_of(policy).items())
    np.testing.assert_array_equal([row["held_out_score"] for row in policy.history_], scores)
    policy.save(tmp_path / "policy.safetensors")  # such a score is a part of the history
    again = load(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal([row["held_out_score"] for row in again.history_], scores)


def test_a_fit_without_any_score_stops_and_keeps_its_last_weights(data):
    X, y = data
    stopping = EarlyStopping(X, y, metric=lambda *_: np.nan, patience=4)
    policy = mixture().set_callbacks(stopping).fit(X, y)
    assert policy.n_iter_ == 4
    assert not hasattr(stopping, "best_score_")
    assert np.isfinite(policy.predict(X)).all()


def test_measurements_come_every_so_many_iterations_and_at_the_end(data):
    X, y = data
    for max_iter, every, expected in (
        (20, 6, [6, 12, 18, 20]),
        (20, None, [*range(1, 21)]),
        (250, 100, [102, 201, 250]),  # reports are every third iteration
    ):
        stopping = EarlyStopping(X, y, metric=peak(0), every=every, patience=1000)
        policy = mixture(max_iter=max_iter).set_callbacks(stopping).fit(X, y)
        rows = [row["iteration"] for row in policy.history_ if "held_out_score" in row]
        assert rows == expected


def test_the_score_is_that_of_the_policy_on_the_held_out_rows(data):
    X, y = data
    stopping = EarlyStopping(X[40:], y[40:], name="likelihood")
    policy = mixture().set_callbacks(stopping).fit(X[:40], y[:40])
    assert policy.score(X[40:], y[40:]) == stopping.best_score_
    best = max(policy.history_, key=lambda row: row["likelihood"])
    assert best["likelihood"] == stopping.best_score_
    assert best["iteration"] == stopping.best_iteration_


@pytest.mark.parametrize("sde", ["ve", "vp"])
@pytest.mark.parametrize("behind_pipeline", [False, True])
def test_a_diffusion_policy_is_stopped_by_its_denoising_and_never_by_its_likelihood(
    sde, behind_pipeline, data, monkeypatch
):
    def refuse(*arguments, **options):
        raise AssertionError("an integral for each report takes longer than the training")

    monkeypatch.setattr("skvdd.diffusion.base.flow_log_prob", refuse)
    X, y = data
    stopping = EarlyStopping(X[40:], y[40:], every=5)
    policy = small_teacher(sde=sde, window_size=2).set_callbacks(stopping)
    whole = make_pipeline(StandardScaler(), policy) if behind_pipeline else policy
    whole.fit(X[:40], y[:40])
    held_out = whole[0].transform(X[40:]) if behind_pipeline else X[40:]
    assert stopping.best_score_ == policy.denoising_score(held_out, y[40:])
    assert [row["iteration"] for row in policy.history_ if "held_out_score" in row] == [
        *(5, 10, 15, 20)
    ]


def test_every_other_policy_is_stopped_by_its_score(data):
    X, y = data
    for estimator in make_estimators(window_size=2, max_iter=2):
        if hasattr(estimator, "denoising_score"):
            continue
        stopping = EarlyStopping(X[40:], y[40:])
        estimator.set_callbacks(stopping).fit(X[:40], y[:40])
        assert estimator.score(X[40:], y[40:]) == stopping.best_score_


def test_each_stage_is_watched_on_its_own(data):
    X, y = data
    teacher = small_teacher(window_size=2).fit(X, y)
    student = VDDDistiller(n_experts=2, init_iter=10, window_size=2, **SMALL)
    stopping = EarlyStopping(X, y, metric=peak(4), patience=2)
    student.set_callbacks(stopping).fit(X, y, teacher=teacher)
    stages = [(row["stage"], row["iteration"]) for row in student.history_]
    assert stages[5] == ("maximum likelihood", 6)
    assert stages[-1] == ("distillation", 6)
    assert len(stages) == 12


def test_a_saved_policy_holds_the_column_of_the_score(data, tmp_path):
    X, y = data
    policy = mixture().set_callbacks(EarlyStopping(X, y, metric=peak(4), patience=1)).fit(X, y)
    policy.save(tmp_path / "policy.safetensors")
    assert load(tmp_path / "policy.safetensors").history_ == policy.history_


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"patience": 0}, ValueError, "patience must be an integer of at least 1, got 0."),
        ({"every": 1.5}, ValueError, "every must be an integer of at least 1, got 1.5."),
        ({"tol": -1.0}, ValueError, "tol must be at least 0, got -1.0."),
        ({"name": "a/b"}, ValueError, "name must be a text without '/', got 'a/b'."),
        ({"metric": "mse"}, TypeError, "metric must be callable or None, got 'mse'."),
        ({"y": [1.0]}, ValueError, "y must have a row for each of X, got 1 for 2."),
    ],
)
def test_arguments_of_early_stopping_are_checked(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        EarlyStopping(**{"X": [[0.0], [1.0]], "y": [0.0, 1.0], **arguments})


# -- pipelines ------------------------------------------------------------------------------


def far_away(data):
    """Return rows that a policy makes nothing of unless the pipeline brings them near."""
    X, y = data
    return 1e3 + 50.0 * X, y


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("metric", [None, "own"])
def test_early_stopping_in_a_pipeline_measures_what_its_steps_make_of_the_rows(
    metric, search, data
):
    X, y = far_away(data)
    seen = []

    def own(pipeline, X_held_out, y_held_out):
        seen.append((pipeline, X_held_out))
        return pipeline.score(X_held_out, y_held_out)

    stopping = EarlyStopping(X[40:], y[40:], metric=own if metric else None, patience=1000)
    policy = mixture(max_iter=4).set_callbacks(stopping)
    pipeline = Pipeline([("near", MinMaxScaler()), ("unit", StandardScaler()), ("last", policy)])
    if search:
        grid = {"last__n_experts": [1, 2], "unit": [StandardScaler(), "passthrough"]}
        pipeline = GridSearchCV(pipeline, grid, cv=2)
    pipeline.fit(X[:40], y[:40])
    fitted = pipeline.best_estimator_ if search else pipeline
    history = fitted[-1].history_
    assert fitted.score(X[40:], y[40:]) == max(row["held_out_score"] for row in history)
    assert all(X_held_out is stopping.X for _, X_held_out in seen)
    for whole, _ in seen:
        assert [name for name, _ in whole.steps] == ["near", "unit", "last"]
    if metric and not search:  # as the policy stands, not as it ends
        assert [whole["last"].n_iter_ for whole, _ in seen] == [1, 2, 3, 4]


@pytest.mark.parametrize("search", [False, True])
def test_a_monitor_in_a_pipeline_rolls_the_whole_of_it_out(search, walked, monkeypatch):
    X, y = walked
    seen = []

    def evaluate(policy, *arguments, **options):
        seen.append(policy.predict(X))
        return evaluate_policy(policy, *arguments, **options)

    monkeypatch.setattr("skvdd.evaluation.evaluate_policy", evaluate)
    monitor = RolloutMonitor(AVOIDING, 1, every=2)
    policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 2}).set_callbacks(monitor)
    pipeline = make_pipeline(StandardScaler(), MinMaxScaler((3.0, 4.0)), policy)
    if search:
        pipeline = GridSearchCV(pipeline, {"gaussianmoepolicy__n_experts": [2]}, cv=2)
    pipeline.fit(X, y)
    assert len(seen) == (3 if search else 1)
    np.testing.assert_array_equal(seen[-1], pipeline.predict(X))


def test_pipelines_in_pipelines_are_measured_as_a_whole(data):
    X, y = far_away(data)
    for policy in (mixture(max_iter=4), small_teacher(window_size=2, max_iter=4)):
        stopping = EarlyStopping(X[40:], y[40:], every=2, keep_best=False)
        inner = make_pipeline(StandardScaler(), policy.set_callbacks(stopping))
        whole = make_pipeline(MinMaxScaler(), "passthrough", inner).fit(X[:40], y[:40])
        X_inner = inner[0].transform(whole[0].transform(X[40:]))
        score = getattr(policy, "denoising_score", policy.score)(X_inner, y[40:])
        assert policy.history_[-1]["held_out_score"] == score


def test_a_policy_that_is_no_last_step_of_a_pipeline_is_measured_alone(data):
    X, y = data
    seen = []
    stopping = EarlyStopping(X, y, metric=lambda policy, *_: seen.append(policy) or 0.0)
    mixture(max_iter=1).set_callbacks(stopping).fit(X, y)
    assert [type(policy) for policy in seen] == [GaussianMoEPolicy]


# -- rollouts -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walked():
    """States and actions of Avoiding: straight ahead."""
    rng = np.random.RandomState(0)
    states = rng.uniform([0.3, -0.3, 0.3, -0.3], [0.7, 0.3, 0.7, 0.3], size=(80, 4))
    return states, np.tile([0.0, 0.02], (80, 1)) + 0.002 * rng.standard_normal((80, 2))


def test_a_monitor_keeps_the_weights_that_do_best(walked):
    """The column is what an evaluation of that moment finds, and the best of it stays."""
    monitor = RolloutMonitor(
        AVOIDING, 2, every=2, metric="mean_return", random_state=3, name="return"
    )
    policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 4}).set_callbacks(monitor).fit(*walked)
    rows = [row for row in policy.history_ if "return" in row]
    assert [row["iteration"] for row in rows] == [2, 4]
    found = evaluate_policy(policy, AVOIDING, 2, random_state=3, progress=False)
    assert found.returns.mean() == max(row["return"] for row in rows) == monitor.best_score_


def test_a_monitor_rolls_out_as_asked_and_waits_as_long_as_asked(walked, monkeypatch):
    calls = []

    def evaluate(policy, *arguments, **options):
        calls.append((arguments, options))
        return evaluate_policy(policy, *arguments, **options)

    monkeypatch.setattr("skvdd.evaluation.evaluate_policy", evaluate)
    monitor = RolloutMonitor(AVOIDING, 1, every=1, patience=1, random_state=7, metric="d3il")
    policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 9}).set_callbacks(monitor).fit(*walked)
    assert policy.n_iter_ == len(calls) == 2  # as bad after the second as after the first
    assert calls[0] == calls[1]
    arguments, options = calls[0]
    assert arguments == (AVOIDING, 1)
    assert options["random_state"] == 7
    assert list(policy.history_[-1])[-1] == "d3il"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "Nowhere-v0"}, "env_id must name a registered environment, got 'Nowhere-v0'"),
        ({"every": 0}, "every must be an integer of at least 1, got 0."),
        ({"metric": "beauty"}, "metric must be one or several of success_rate"),
        ({"n_episodes": 0}, "n_episodes must be at least 1, got 0."),
    ],
)
def test_arguments_of_a_monitor_are_checked(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        RolloutMonitor(**{"env_id": AVOIDING, **arguments})
    with pytest.raises(TypeError, match="metric must be the name of one metric"):
        RolloutMonitor(AVOIDING, metric=["entropy"])


# -- logs -----------------------------------------------------------------------------------


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


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


# -- all of them ----------------------------------------------------------------------------


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
