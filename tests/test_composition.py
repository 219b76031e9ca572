"""Policies inside scikit-learn's own: searches, validations, pipelines, data frames, processes."""

import gc
import os
import re
import weakref
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from scipy.stats import loguniform
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    ParameterGrid,
    RandomizedSearchCV,
    cross_validate,
    learning_curve,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, RobustScaler, StandardScaler

from skvdd import GaussianMoEPolicy, VDDDistiller
from skvdd.datasets import append_goals
from skvdd.envs import get_task
from skvdd.evaluation import evaluate_policy, rollout_scorer, time_action
from skvdd.evaluation.evaluate import _Stage
from skvdd.rollouts import BLOCK_SIZE, as_policy
from tests.estimators import SMALL, ask, label, make_estimators, methods, small_teacher, type_name
from tests.evaluation.tasks import assert_same_rollouts

TINY = {**SMALL, "max_iter": 3}
AVOIDING = "avoiding"
NAMES = [f"{what}{time}" for time in (0, 1) for what in "xyuv"]  # two states of four columns
GROUPS = np.arange(60) // 10
FOLDS = list(GroupKFold(2).split(GROUPS, groups=GROUPS))
SHORT = {"max_episode_steps": 15}  # what is done matters here, not how well

every_estimator = pytest.mark.parametrize(
    "estimator", make_estimators(window_size=2, max_iter=3), ids=label
)
with_and_without_routing = pytest.mark.parametrize("routing", [False, True])


def unfitted_teacher():
    return small_teacher(window_size=2, max_iter=3)


def student(teacher=None, **parameters):
    settings = {**TINY, "n_experts": 2, "init_iter": 2, "window_size": 2}
    return VDDDistiller(teacher, **{**settings, **parameters})


def mixture(**parameters):
    return GaussianMoEPolicy(2, **{**TINY, "window_size": 2, **parameters})


@pytest.fixture(scope="module")
def data():
    """Six episodes of ten decisions: states like those of Avoiding, and actions."""
    rng = np.random.RandomState(0)
    X = rng.uniform(-1, 1, size=(60, 8))
    y = 0.01 * np.stack([np.sign(rng.standard_normal(60)) + X[:, 4], X[:, 5]], axis=1)
    X.flags.writeable = y.flags.writeable = False
    return X, y


@pytest.fixture(scope="module")
def teacher(data):
    """A teacher that has seen all episodes."""
    return unfitted_teacher().fit(*data)


@pytest.fixture(scope="module")
def processes():
    """Let joblib decide on the threads of its processes, and end them with this module."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.endswith("_NUM_THREADS")]:
            patch.delenv(name)
        yield
    get_reusable_executor().shutdown(wait=True)


def refuses(message, error=ValueError):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def roll_out(policy, n_episodes=4, **options):
    options = {"random_state": 0, "progress": False, "env_kwargs": SHORT, **options}
    return evaluate_policy(policy, AVOIDING, n_episodes, **options)


def assert_same_answers(one, other, X, y):
    for method in methods(one):
        np.testing.assert_array_equal(ask(one, method, X, y), ask(other, method, X, y))


# -- searches -------------------------------------------------------------------------------------

GRID = [{"noise_max": [0.5, 1.0], "n_experts": [1]}, {"learning_rate": [1e-2]}]


def scores_of_folds(search):
    """Return the scores of a search, one row for each candidate, one column for each fold."""
    return np.stack([search.cv_results_[f"split{i}_test_score"] for i in range(2)], axis=1)


def scores_by_hand(estimator, data, **given):
    X, y = data
    return [
        [
            clone(estimator)
            .set_params(**candidate)
            .fit(X[train], y[train], **given)
            .score(X[test], y[test])
            for train, test in FOLDS
        ]
        for candidate in ParameterGrid(GRID)
    ]


@pytest.mark.parametrize(
    ("way", "routing"),
    [
        ("fit", False),
        ("fit", True),
        ("frozen to fit", False),
        ("frozen to fit", True),
        ("pipeline to fit", False),
        ("pipeline to fit", True),
        ("frozen", False),
        ("fold", True),
    ],
)
def test_a_search_is_what_one_would_do_by_hand(way, routing, teacher, data):
    """One teacher for all, from `fit` or frozen in the constructor; or one fitted in each fold."""
    own = {"frozen": FrozenEstimator(teacher), "fold": unfitted_teacher()}
    to_fit = {"fit": teacher, "frozen to fit": FrozenEstimator(teacher)}
    if way == "pipeline to fit":
        to_fit[way] = make_pipeline(StandardScaler(), unfitted_teacher()).fit(*data)
    estimator = student(own.get(way))
    given = {"teacher": to_fit[way]} if way in to_fit else {}
    with config_context(enable_metadata_routing=routing):
        search = GridSearchCV(estimator, GRID, cv=GroupKFold(2), error_score="raise")
        search.fit(*data, groups=GROUPS, **given)
    np.testing.assert_array_equal(scores_of_folds(search), scores_by_hand(estimator, data, **given))
    best = clone(estimator).set_params(**search.best_params_).fit(*data, **given)
    assert_same_answers(search.best_estimator_, best, *data)
    assert search.score(*data) == best.score(*data)


def test_a_teacher_in_the_constructor_leaves_the_held_out_episodes_unseen(data):
    """What a fold's student is does not change when the episodes of its test fold do."""
    X, y = data
    train, test = FOLDS[0]
    changed = y.copy()
    changed[test] *= -3.0
    seen = unfitted_teacher().fit(X, y), unfitted_teacher().fit(X, changed)
    leaking = [student().fit(X[train], y[train], teacher=t).predict(X) for t in seen]
    clean = [
        cross_validate(
            student(unfitted_teacher()), X, actions, cv=[FOLDS[0]], return_estimator=True
        )["estimator"][0].predict(X)
        for actions in (y, changed)
    ]
    assert np.abs(leaking[0] - leaking[1]).max() > 1e-4
    np.testing.assert_array_equal(clean[0], clean[1])


@pytest.mark.parametrize("in_fit", [True, False])
def test_a_search_in_two_processes_finds_what_one_does(in_fit, teacher, data, processes):
    search = RandomizedSearchCV(
        student(None if in_fit else unfitted_teacher()),
        {"noise_max": [0.5, 1.0], "n_experts": [1, 2], "learning_rate": loguniform(1e-4, 1e-2)},
        n_iter=3,
        cv=GroupKFold(2),
        random_state=0,
        error_score="raise",
    )
    given = {"teacher": teacher} if in_fit else {}
    one, two = (
        clone(search).set_params(n_jobs=n_jobs).fit(*data, groups=GROUPS, **given)
        for n_jobs in (1, 2)
    )
    np.testing.assert_array_equal(scores_of_folds(one), scores_of_folds(two))
    assert one.best_params_ == two.best_params_
    assert_same_answers(one.best_estimator_, two.best_estimator_, *data)


def test_rollouts_in_two_processes_score_as_in_one(data, processes):
    scorer = rollout_scorer(
        AVOIDING, 3, metric=["success_rate", "entropy_d3il", "mean_return"], env_kwargs=SHORT
    )
    pipeline = make_pipeline(StandardScaler(), mixture())
    search = GridSearchCV(
        pipeline,
        {"gaussianmoepolicy__n_experts": [1, 2]},
        scoring=scorer,
        refit="success_rate",
        cv=FOLDS[:1],
        error_score="raise",
    )
    one, two = (clone(search).set_params(n_jobs=n_jobs).fit(*data) for n_jobs in (1, 2))
    for name in ("success_rate", "entropy_d3il", "mean_return"):
        found = one.cv_results_[f"mean_test_{name}"]
        np.testing.assert_array_equal(found, two.cv_results_[f"mean_test_{name}"])
    assert scorer(one.best_estimator_, None) == scorer(two.best_estimator_, None)


@with_and_without_routing
def test_validations_pass_teacher_and_groups_on(routing, teacher, data):
    shared = {"cv": GroupKFold(2), "error_score": "raise"}
    if routing:
        shared["params"] = {"teacher": teacher, "groups": GROUPS}
    else:
        shared.update(params={"teacher": teacher}, groups=GROUPS)
    with config_context(enable_metadata_routing=routing):
        scores = cross_validate(student(), *data, return_estimator=True, **shared)
        sizes, _, curve = learning_curve(student(), *data, train_sizes=[10, 30], **shared)
    by_hand = [
        student()
        .fit(data[0][train], data[1][train], teacher=teacher)
        .score(data[0][test], data[1][test])
        for train, test in FOLDS
    ]
    np.testing.assert_array_equal(scores["test_score"], by_hand)
    assert not any(hasattr(fitted, "teacher_") for fitted in scores["estimator"])
    np.testing.assert_array_equal(sizes, [10, 30])
    np.testing.assert_array_equal(curve[1], by_hand)
    assert (curve[0] != curve[1]).all()


def test_parameters_of_a_teacher_are_set_through_its_student(data):
    policy = student(unfitted_teacher()).set_params(teacher__max_iter=1, teacher__n_steps=2)
    assert policy.fit(*data).teacher_.n_iter_ == 1
    assert clone(policy).get_params()["teacher__n_steps"] == policy.teacher_.n_steps == 2
    piped = student(make_pipeline(StandardScaler(), unfitted_teacher()))
    piped.set_params(teacher__diffusionpolicy__max_iter=2)
    assert piped.fit(*data).teacher_[-1].n_iter_ == 2
    search = GridSearchCV(student(unfitted_teacher()), {"teacher__max_iter": [1, 2]}, cv=2)
    assert search.fit(*data).best_estimator_.teacher_.n_iter_ in {1, 2}


def test_a_copy_shares_a_frozen_teacher_and_forgets_a_fitted_one(teacher, data):
    frozen = clone(student(FrozenEstimator(teacher)))
    assert frozen.teacher.estimator is teacher
    fitted = student(teacher)
    assert clone(fitted).teacher is not teacher
    assert not hasattr(clone(fitted).teacher, "network_")


# -- pipelines ------------------------------------------------------------------------------------


def double(X):
    return 2.0 * X


def positions(X):
    """Keep the first two of the four columns of both states."""
    return X.reshape(len(X), 2, 4)[:, :, :2].reshape(len(X), 4)


@every_estimator
def test_a_policy_ends_a_pipeline(estimator, data):
    X, y = data
    pipeline = make_pipeline(RobustScaler(), FunctionTransformer(double), clone(estimator))
    pipeline.fit(X, y)
    prepared = 2.0 * RobustScaler().fit(X).transform(X)
    bare = clone(estimator).fit(prepared, y)
    np.testing.assert_array_equal(pipeline.predict(X), bare.predict(prepared))
    windows = X.reshape(60, 2, 4)
    acted = as_policy(pipeline).act(windows, random_state=0)
    np.testing.assert_array_equal(acted, bare.act(prepared, random_state=0))


@with_and_without_routing
def test_a_teacher_reaches_a_student_at_the_end_of_a_pipeline(routing, data):
    """The student hands it the rows that it gets itself, so the teacher is of scaled states."""
    X, y = data
    scaled = StandardScaler().fit(X).transform(X)
    teacher = unfitted_teacher().fit(scaled, y)
    with config_context(enable_metadata_routing=routing):
        name = "teacher" if routing else "vdddistiller__teacher"
        pipeline = make_pipeline(StandardScaler(), student()).fit(X, y, **{name: teacher})
    bare = student().fit(scaled, y, teacher=teacher)
    np.testing.assert_array_equal(pipeline.predict(X), bare.predict(scaled))
    assert pipeline.score(X, y) == bare.score(scaled, y)


@pytest.mark.parametrize("wrap", [lambda policy: policy, FrozenEstimator], ids=["bare", "frozen"])
def test_a_pipeline_is_rolled_out_as_its_policy_behind_its_steps(wrap, data):
    X, y = data
    expected = roll_out(mixture().fit(X, y))
    nothing = make_pipeline(FunctionTransformer(), mixture()).fit(X, y)
    alone = make_pipeline(mixture()).fit(X, y)
    assert_same_rollouts(expected, roll_out(wrap(nothing)))
    assert_same_rollouts(expected, roll_out(wrap(alone)))
    # Powers of two are exact, so a policy of doubled states is the same one.
    doubled = make_pipeline(FunctionTransformer(double), mixture()).fit(X, y)
    assert_same_rollouts(expected, roll_out(wrap(doubled)))


def test_steps_may_change_the_number_of_columns_of_a_state(data):
    X, y = data
    pipeline = make_pipeline(FunctionTransformer(positions), mixture()).fit(X, y)
    assert pipeline[-1].n_features_in_ == 4
    evaluation = roll_out(pipeline, 1)
    windows, actions, _ = evaluation.episodes.windows(2)
    # `act` draws its expert first; the two means of the experts are all that it can return.
    means, _ = pipeline[-1].experts(positions(windows.reshape(len(windows), -1)))
    distances = np.abs(means - actions[:, None]).max(axis=2).min(axis=1)
    np.testing.assert_allclose(distances, 0.0, atol=1e-12)


def test_a_pipeline_has_the_goal_of_its_last_step(data):
    X, y = data
    goals = X[:, :3]
    rows = append_goals(X.reshape(60, 2, 4), goals)
    pipeline = make_pipeline(StandardScaler(), mixture(goal_dim=3)).fit(rows, y)
    assert as_policy(pipeline).goal_dim == 3
    here, there = (roll_out(pipeline, goal=[side, 0.0, 0.0]) for side in (0.5, -0.5))
    actions = here.episodes[0].actions[0], there.episodes[0].actions[0]
    asked = append_goals([here.episodes[0].states[[0, 0]]], [0.5, 0.0, 0.0])
    means, _ = pipeline[-1].experts(pipeline[:-1].transform(asked))
    assert np.abs(means[0] - actions[0]).max(axis=1).min() < 1e-12
    assert np.abs(actions[0] - actions[1]).max() > 1e-9
    with refuses("goal must have shape (3,), the goal_dim of the policy, got shape (2,)."):
        roll_out(pipeline, goal=[0.0, 0.0])


def test_what_no_pipeline_can_do_is_refused(data):
    X, y = data
    with refuses(
        "policy must have act and window_size, or be a Pipeline that ends in what has them, got "
        "Pipeline that ends in StandardScaler without act and window_size. Every policy of skvdd "
        "has them; wrap any other one.",
        TypeError,
    ):
        roll_out(make_pipeline(FunctionTransformer(), StandardScaler()).fit(X))
    with pytest.raises(NotFittedError, match="Pipeline instance is not fitted yet"):
        roll_out(make_pipeline(StandardScaler(), mixture()))
    with refuses("X has 8 features, but StandardScaler is expecting 6 features as input."):
        roll_out(make_pipeline(StandardScaler(), mixture()).fit(X[:, :6], y))


def test_a_search_over_a_pipeline_chooses_its_steps_by_rollouts(data):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), mixture()),
        {"standardscaler": [StandardScaler(), "passthrough"]},
        scoring=rollout_scorer(AVOIDING, 2, env_kwargs=SHORT),
        cv=FOLDS[:1],
        error_score="raise",
    ).fit(*data)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert roll_out(search.best_estimator_).n_episodes == 4


def test_a_decision_of_a_pipeline_is_timed(data):
    pipeline = make_pipeline(StandardScaler(), mixture()).fit(*data)
    assert time_action(pipeline, data[0][0].reshape(2, 4), n_calls=2) > 0.0
    assert time_action(pipeline, data[0][0], n_calls=2) > 0.0


# -- scaled targets -------------------------------------------------------------------------------


@every_estimator
def test_a_regressor_of_transformed_targets_keeps_nothing_but_predictions(estimator, data):
    X, y = data
    whole = TransformedTargetRegressor(clone(estimator), transformer=StandardScaler()).fit(X, y)
    scaler = StandardScaler().fit(y)
    inner = clone(estimator).fit(X, scaler.transform(y))
    predicted = scaler.inverse_transform(inner.predict(X))
    np.testing.assert_allclose(whole.predict(X), predicted, rtol=1e-12)
    assert whole.score(X, y) == pytest.approx(r2_score(y, predicted))  # no likelihood
    assert not any(hasattr(whole, name) for name in ("act", "sample", "log_prob", "gating"))
    with pytest.raises(TypeError, match="got TransformedTargetRegressor without act and window"):
        roll_out(whole)


# -- data frames ----------------------------------------------------------------------------------


@pytest.fixture(params=["pandas", "polars"])
def frame(request):
    """Make a data frame of an array and column names."""
    if request.param == "pandas":
        return lambda values, names: pd.DataFrame(values, columns=names)
    polars = pytest.importorskip("polars")
    return lambda values, names: polars.DataFrame(values, schema=names)


@every_estimator
def test_columns_of_data_frames_are_known_by_name(estimator, frame, data):
    X, y = data
    expected = clone(estimator).fit(X, y)
    table = frame(X, NAMES)
    policy = clone(estimator).fit(table, frame(y, ["dx", "dy"]))
    assert list(policy.feature_names_in_) == NAMES
    for method in ("predict", "act"):
        # Data frames lie in memory column by column, where means sum up in another order.
        np.testing.assert_allclose(
            ask(policy, method, table, y), ask(expected, method, X, y), rtol=1e-6, atol=1e-9
        )
    with pytest.raises(ValueError, match="feature names should match"):
        policy.predict(frame(X[:, ::-1].copy(), NAMES[::-1]))


def test_named_policies_are_rolled_out_in_their_names(frame, data):
    X, y = data
    table = frame(X, NAMES)
    expected = roll_out(mixture().fit(X, y))
    by_name = ColumnTransformer([("all", "passthrough", NAMES)])
    # Warnings are errors in these tests: rows without names would give one in every step.
    assert_same_rollouts(expected, roll_out(mixture().fit(table, y)))
    assert_same_rollouts(expected, roll_out(make_pipeline(by_name, mixture()).fit(table, y)))


def test_names_are_left_out_where_there_is_no_library_of_data_frames(monkeypatch, data):
    policy = mixture().fit(pd.DataFrame(data[0], columns=NAMES), data[1])

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("skvdd.rollouts.policies.import_module", missing)
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        acted = as_policy(policy).act(data[0], random_state=0)
    np.testing.assert_array_equal(acted, mixture().fit(*data).act(data[0], random_state=0))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_steps_may_hand_data_frames_on(library, data):
    pytest.importorskip(library)
    X, y = data
    plain = make_pipeline(StandardScaler(), mixture()).fit(X, y)
    expected = plain.predict(X)
    rows = pd.DataFrame(X, columns=NAMES)
    with config_context(transform_output=library):
        everywhere = make_pipeline(StandardScaler(), mixture()).fit(rows, y)
        np.testing.assert_array_equal(everywhere.predict(rows), expected)
    scaler = StandardScaler().set_output(transform=library)
    here = make_pipeline(scaler, mixture()).fit(rows, y)
    assert list(everywhere[-1].feature_names_in_) == list(here[-1].feature_names_in_) == NAMES
    assert_same_rollouts(roll_out(here), roll_out(plain))


@every_estimator
def test_a_notebook_shows_parameters_and_a_link(estimator, data):
    link = f"https://skvdd.readthedocs.io/en/stable/api/generated/skvdd.{type_name(estimator)}.html"
    pipeline = make_pipeline(StandardScaler(), clone(estimator))
    for shown in (estimator, clone(estimator).fit(*data), pipeline, pipeline.fit(*data)):
        page = shown._repr_html_()
        assert link in page
        assert re.search(r"<td class=\"param\">\s*(<[^>]*>\s*)*window_size", page)


# -- many fits in one process ----------------------------------------------------------------------


def test_fitted_policies_leave_nothing_behind(data):
    """What a search fits and drops is freed; ``python -m benchmarks.memory`` measures it."""
    left = {}
    for estimator in make_estimators(window_size=2, max_iter=3):
        policy = clone(estimator).fit(*data)
        policy.act(data[0][:3], random_state=0)
        left[label(estimator)] = weakref.ref(policy), weakref.ref(policy.network_)
        del policy
    gc.collect()
    alive = [name for name, references in left.items() if any(r() is not None for r in references)]
    assert alive == []


# -- processes ------------------------------------------------------------------------------------


def test_rollouts_in_processes_are_those_of_one(data, processes):
    pipeline = make_pipeline(StandardScaler(), mixture()).fit(*data)
    n_episodes = BLOCK_SIZE + 6
    expected = roll_out(pipeline, n_episodes)
    assert_same_rollouts(expected, roll_out(pipeline, n_episodes, n_jobs=2))
    assert_same_rollouts(expected, roll_out(pipeline, n_episodes, n_jobs=2, n_envs=5))


def count_threads():
    """Return how many threads torch, BLAS and a pool of environments would use here."""
    from threadpoolctl import threadpool_info

    with _Stage(None, get_task(AVOIDING), None, {}, None, {}).open_pool(8) as pool:
        n_stepping = pool.n_threads
    return SimpleNamespace(
        torch=torch.get_num_threads(),
        stepping=n_stepping,
        libraries=max(library["num_threads"] for library in threadpool_info()),
    )


def test_threads_are_bounded_in_the_processes_of_joblib(processes):
    share = max(1, joblib.cpu_count() // 2)
    for counts in joblib.Parallel(n_jobs=2)(joblib.delayed(count_threads)() for _ in range(2)):
        assert counts.torch <= share
        assert counts.stepping <= share
        assert counts.libraries <= share
