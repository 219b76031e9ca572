"""Early stopping: alone, in pipelines and in searches."""

import re

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from skvdd import GaussianMoEPolicy, VDDDistiller, load
from skvdd.callbacks import EarlyStopping
from tests.callbacks.toys import mixture, peak, same_weights, weights_of
from tests.estimators import SMALL, make_estimators, small_teacher


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
