"""Rollouts during a training."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from skvdd import GaussianMoEPolicy
from skvdd.callbacks import RolloutMonitor
from skvdd.envs import Score, TaskSpec, register_task, spec
from skvdd.evaluation import evaluate_policy
from tests.estimators import SMALL

AVOIDING = "avoiding"


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


def test_a_monitor_waits_for_a_better_score_as_long_as_asked(walked):
    monitor = RolloutMonitor(AVOIDING, 1, every=1, patience=1, random_state=7, metric="selection")
    policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 9}).set_callbacks(monitor).fit(*walked)
    assert policy.n_iter_ == 2  # as bad after the second as after the first
    assert [row["selection"] for row in policy.history_] == [0.0, 0.0]
    assert list(policy.history_[-1])[-1] == "selection"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be an integer of at least 1, got 0."),
        (
            {"metric": "beauty"},
            "metric must be one or several of success_rate, entropy_d3il, diversity, mean_return, "
            "selection, got 'beauty'.",
        ),
        ({"n_episodes": 0}, "n_episodes must be an integer of at least 1, got 0."),
        (
            {"contexts": 5},
            "contexts must be None for avoiding, whose episodes all start alike, got "
            "('validation', 5). Choose with one random_state and report with another.",
        ),
    ],
)
def test_arguments_of_a_monitor_are_checked(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RolloutMonitor(AVOIDING, **arguments)


def test_a_monitor_measures_one_metric_of_a_known_task():
    message = "metric must be the name of one metric, got ['diversity']."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        RolloutMonitor(AVOIDING, metric=["diversity"])
    with pytest.raises(ValueError, match=r"^env_id must be the name of a task or the id of a "):
        RolloutMonitor("Nowhere-v0")


class Platforms(gymnasium.Env):
    """One step from a listed start; where the rollouts started is kept."""

    asked: list = []
    observation_space = Box(-1.0, 1.0, (4,), np.float64)
    action_space = Box(-1.0, 1.0, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.options = options
        split = ("train", "validation", "test").index(options.get("split", "test"))
        return np.array([0.1 * options["context"], split, 0.0, 0.0]), {"success": False}

    def step(self, action):
        Platforms.asked.append(self.options)
        return np.zeros(4), 1.0, True, False, {"success": True, "behavior": "left"}


@pytest.fixture
def platforms():
    """Make a task of three contexts known for a while; return what its resets are asked."""
    sides = Score(behaviors={"left": "left", "right": "right"})
    task = TaskSpec(
        "platforms",
        "skvddtest/Platforms-v0",
        Platforms,
        scores=(sides,),
        n_contexts=3,
        n_rollouts=2,
        selection=lambda evaluation: evaluation.success_rate + 4.0,
    )
    Platforms.asked.clear()
    register_task(task)
    yield Platforms.asked
    del spec._TASKS[task.name]
    del gymnasium.registry[task.env_id]


def asked_of(contexts, split="validation"):
    return [{"context": context, "split": split} for context in contexts]


def by_context(asked):
    return sorted(asked, key=lambda options: options["context"])


def test_a_monitor_plays_the_protocol_of_the_task_in_validation_contexts(platforms, walked):
    monitor = RolloutMonitor("platforms", every=2, metric="selection")
    policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 4}).set_callbacks(monitor).fit(*walked)
    # Two measurements, two rollouts in each of the three contexts.
    assert by_context(platforms) == asked_of(np.repeat([0, 1, 2], 4))
    assert [row["selection"] for row in policy.history_ if "selection" in row] == [5.0, 5.0]


@pytest.mark.parametrize(
    ("contexts", "expected"),
    [
        ([4, 7], asked_of([4, 4, 7, 7])),
        (("train", 1), asked_of([0, 0, 0, 0], "train")),
    ],
)
def test_a_monitor_plays_the_contexts_that_are_asked_for(contexts, expected, platforms, walked):
    monitor = RolloutMonitor("platforms", 4, contexts=contexts, metric="entropy_d3il")
    policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 1}).set_callbacks(monitor).fit(*walked)
    assert by_context(platforms) == expected
    assert policy.history_[-1]["entropy_d3il"] == 0.0


@pytest.mark.parametrize("search", [False, True])
def test_a_monitor_in_a_pipeline_rolls_the_whole_of_it_out(search, walked, monkeypatch):
    X, y = walked
    seen = []

    def evaluate(policy, *arguments, **options):
        seen.append(policy.predict(X))
        return evaluate_policy(policy, *arguments, **options)

    monkeypatch.setattr("skvdd.evaluation.scoring.evaluate_policy", evaluate)
    monitor = RolloutMonitor(AVOIDING, 1, every=2)
    policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 2}).set_callbacks(monitor)
    pipeline = make_pipeline(StandardScaler(), MinMaxScaler((3.0, 4.0)), policy)
    if search:
        pipeline = GridSearchCV(pipeline, {"gaussianmoepolicy__n_experts": [2]}, cv=2)
    pipeline.fit(X, y)
    assert len(seen) == (3 if search else 1)
    np.testing.assert_array_equal(seen[-1], pipeline.predict(X))
