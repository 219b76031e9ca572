"""Rollouts as the score of a search."""

import pickle

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skvdd import VDDDistiller
from skvdd.envs import TaskSpec, register_task, spec
from skvdd.evaluation import (
    rollout_scorer,
)
from tests.estimators import SMALL, small_teacher
from tests.evaluation.tasks import (
    LINE,
    SIGNPOST,
    Constant,
    GoalPolicy,
    RandomWalk,
    evaluate,
    refuses,
)


class Push(BaseEstimator):
    """An estimator that pushes as hard as it is told, to random sides; fit learns nothing."""

    window_size = 1

    def __init__(self, force=0.1):
        self.force = force

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def act(self, X, *, random_state=None):
        noise = [[0.05 * rng.standard_normal()] for rng in random_state]
        return self.force * np.sign(np.reshape(X, (len(X), -1))[:, :1]) + np.array(noise)


ROWS = np.zeros((6, 2))


def test_a_scorer_returns_what_an_evaluation_finds():
    policy = RandomWalk()
    found = evaluate(policy, 30)
    assert 0.0 < found.success_rate < 1.0
    scores = {
        "success_rate": found.success_rate,
        "entropy_d3il": found.entropy_d3il,
        "diversity": found.diversity,
        "mean_return": found.returns.mean(),
        "selection": found.success_rate,
    }
    for metric, score in scores.items():
        scorer = rollout_scorer(LINE, 30, metric=metric)
        assert type(scorer(policy, ROWS)) is float
        assert scorer(policy, ROWS) == scorer(policy, None, np.zeros(6)) == pytest.approx(score)
    assert rollout_scorer(LINE, 30, metric=list(scores))(policy, ROWS) == pytest.approx(scores)


def test_several_scores_come_from_the_same_rollouts():
    policy = RandomWalk()
    rollout_scorer(LINE, 5)(policy, ROWS)
    n_calls = len(policy.batches)
    rollout_scorer(LINE, 5, metric=["selection", "success_rate", "diversity"])(policy, ROWS)
    assert len(policy.batches) == 2 * n_calls


def test_a_scorer_follows_its_seed():
    policy, metric = RandomWalk(), ["success_rate", "entropy_d3il"]
    score = rollout_scorer(LINE, 30, metric=metric, random_state=0)(policy, ROWS)
    assert score == rollout_scorer(LINE, 30, metric=metric, random_state=0)(policy, ROWS)
    assert score != rollout_scorer(LINE, 30, metric=metric, random_state=1)(policy, ROWS)
    anew = rollout_scorer(LINE, 30, metric=metric, random_state=None)
    assert len({tuple(anew(policy, ROWS).values()) for _ in range(5)}) > 1


def test_a_scorer_survives_pickling_and_copying():
    scorer = rollout_scorer(
        LINE, 30, metric=["success_rate", "entropy_d3il"], env_kwargs={"start_width": 0.5}
    )
    search = clone(GridSearchCV(Push(), {}, scoring=scorer))
    score = scorer(RandomWalk(), ROWS)
    assert pickle.loads(pickle.dumps(scorer))(RandomWalk(), ROWS) == score
    assert search.scoring(RandomWalk(), ROWS) == score


def test_env_kwargs_and_goal_reach_the_rollouts():
    assert rollout_scorer(LINE, 5)(Constant([0.0]), ROWS) == 0.0
    assert rollout_scorer(LINE, 50, env_kwargs={"start_width": 5.0})(Constant([0.0]), ROWS) > 0.5
    policy = GoalPolicy()
    rollout_scorer("skvdd/Avoiding-v0", 1, goal=[1.0, 2.0, 3.0])(policy, ROWS)
    np.testing.assert_array_equal(policy.asked[0][0, -3:], [1.0, 2.0, 3.0])


def test_a_grid_search_finds_the_policy_that_behaves_best():
    search = GridSearchCV(
        Push(),
        {"force": [0.0, 0.1, -0.1]},
        scoring=rollout_scorer(LINE, 20),
        cv=GroupKFold(2),
        error_score="raise",
    )
    search.fit(ROWS, groups=[0, 0, 0, 1, 1, 1])
    assert search.best_params_ == {"force": 0.1}
    assert search.best_score_ == 1.0


def test_a_grid_search_lists_several_scores():
    search = GridSearchCV(
        Push(),
        {"force": [-0.1, 0.1]},
        scoring=rollout_scorer(LINE, 20, metric=["success_rate", "entropy_d3il"]),
        refit="entropy_d3il",
        cv=[([0, 1], [2])],
        error_score="raise",
    ).fit(ROWS)
    success, entropy = (
        search.cv_results_[f"mean_test_{name}"] for name in ("success_rate", "entropy_d3il")
    )
    assert success[1] == 1.0 > success[0]
    assert entropy[1] == search.best_score_ > 0.9


def test_cross_validation_takes_a_scorer():
    scores = cross_val_score(Push(), ROWS, scoring=rollout_scorer(LINE, 5), cv=3)
    np.testing.assert_array_equal(scores, 1.0)
    scorer = rollout_scorer(LINE, 5, metric=["mean_return", "selection"])
    results = cross_validate(Push(), ROWS, scoring=scorer, cv=3)
    np.testing.assert_array_equal(results["test_mean_return"], 1.0)
    assert len(results["test_selection"]) == 3


@pytest.mark.parametrize("routing", [False, True])
def test_a_distiller_is_searched_with_a_teacher_given_to_fit(routing):
    rng = np.random.RandomState(0)
    X, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 1))
    teacher = small_teacher().fit(X, y)
    student = VDDDistiller(n_experts=2, init_iter=5, **{**SMALL, "max_iter": 5})
    with config_context(enable_metadata_routing=routing):
        search = GridSearchCV(
            student,
            {"noise_min": [0.1, 0.2]},
            scoring=rollout_scorer(LINE, 5, metric=["success_rate", "selection"]),
            refit="selection",
            cv=[(np.arange(40), [0])],
            error_score="raise",
        ).fit(X, y, teacher=teacher)
    assert np.isfinite(search.cv_results_["mean_test_selection"]).all()
    frozen = FrozenEstimator(search.best_estimator_)
    scorer = rollout_scorer(LINE, 5, metric="selection")
    assert scorer(frozen, X) == scorer(search.best_estimator_, X) == search.best_score_


def test_a_pipeline_is_scored_as_its_last_step_behind_the_others():
    frozen = FrozenEstimator(Push().fit(ROWS))
    reverse = FunctionTransformer(np.negative)
    scorer = rollout_scorer(LINE, 5)
    assert scorer(make_pipeline(FunctionTransformer(), frozen).fit(ROWS), ROWS) == 1.0
    assert scorer(make_pipeline(reverse, frozen).fit(ROWS), ROWS) == 0.0


@pytest.mark.parametrize("metric", ["entropy_d3il", "diversity", ["success_rate", "diversity"]])
def test_a_scorer_of_behaviors_needs_a_task_that_tells_them(metric):
    name = metric if isinstance(metric, str) else "diversity"
    with refuses(
        "metric must be success_rate, mean_return or selection for skvddtest/Indifferent-v0, which "
        f"tells no behaviors apart, got '{name}'. Name its behaviors in a TaskSpec and call "
        "skvdd.envs.register_task if it does."
    ):
        rollout_scorer("skvddtest/Indifferent-v0", metric=metric)
    scorer = rollout_scorer("skvddtest/Indifferent-v0", 5, metric=["success_rate", "mean_return"])
    assert scorer(Constant([0.1]), ROWS) == {"success_rate": 1.0, "mean_return": 1.0}


def test_a_scorer_refuses_wrong_arguments_when_it_is_made():
    for metric, came in [("speed", "'speed'"), (["diversity", "speed"], "'speed'"), ([], "none")]:
        with refuses(
            "metric must be one or several of success_rate, entropy_d3il, diversity, mean_return, "
            f"selection, got {came}."
        ):
            rollout_scorer(LINE, metric=metric)
    with refuses("n_episodes must be an integer of at least 1, got 0."):
        rollout_scorer(LINE, 0)
    for seed in (-1, 2**32, 0.5, "0"):
        with refuses(f"random_state must be None or an integer in [0, 2**32), got {seed!r}."):
            rollout_scorer(LINE, random_state=seed)
    with pytest.raises(ValueError, match=r"^random_state must be None .* got RandomState\("):
        rollout_scorer(LINE, random_state=np.random.RandomState(0))
    with pytest.raises(ValueError, match=r"^env_id must be the name of a task .*, got 'No-v0'"):
        rollout_scorer("No-v0")
    with pytest.raises(ValueError, match=r"^the actions of skvddtest/Buttons-v0 must be vectors"):
        rollout_scorer("skvddtest/Buttons-v0")
    with pytest.raises(TypeError, match="hue"):
        rollout_scorer(LINE, env_kwargs={"hue": "red"})


def test_models_are_selected_by_the_number_of_the_task():
    scorer = rollout_scorer(SIGNPOST, metric="selection")
    assert scorer(Constant([0.1]), ROWS) == 3.0  # all succeed, and two more
    assert pickle.loads(pickle.dumps(scorer))(Constant([0.0]), ROWS) == 2.0


def test_a_scorer_takes_the_name_of_a_task():
    assert rollout_scorer("line", 5)(Constant([0.1]), ROWS) == 1.0


def test_a_scorer_plays_by_the_rules_it_is_given():
    scorer = rollout_scorer(LINE, 5, max_episode_steps=2)
    assert scorer(Constant([0.1]), ROWS) == 0.0  # cut before it gets there
    assert rollout_scorer(LINE, 5)(Constant([0.1]), ROWS) == 1.0


def test_a_scorer_of_a_task_with_a_function_of_a_script_can_be_pickled():
    task = TaskSpec("scripted", "skvddtest/Indifferent-v0", selection=lambda evaluation: 7.0)
    register_task(task)
    try:
        scorer = rollout_scorer("scripted", 5, metric="selection")
        assert pickle.loads(pickle.dumps(scorer))(Constant([0.1]), ROWS) == 7.0
    finally:
        del spec._TASKS["scripted"]


@pytest.mark.parametrize("limit", [0, 2.5, True])
def test_a_wrong_limit_is_refused_before_any_rollout(limit):
    message = f"max_episode_steps must be None or an integer of at least 1, got {limit!r}."
    with refuses(message):
        rollout_scorer(LINE, 5, max_episode_steps=limit)
    with refuses(message):
        evaluate(Constant([0.1]), max_episode_steps=limit)
