"""What can be rolled out, and what it looks at."""

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvdd import GaussianMoEPolicy
from skvdd.datasets.demonstrations import append_goals
from skvdd.rollouts import as_policy, check_goal
from tests.estimators import SMALL
from tests.rollouts.scenes import Still, play, refuses

ROWS = np.random.RandomState(0).standard_normal((30, 3, 1))
ACTIONS = np.random.RandomState(1).standard_normal((30, 2))


def fitted(**parameters):
    """Return a policy of windows of three states."""
    settings = {**SMALL, "max_iter": 2, "window_size": 3, **parameters}
    return GaussianMoEPolicy(2, **settings)


def test_a_policy_is_what_is_rolled_out():
    policy = fitted().fit(ROWS, ACTIONS)
    assert as_policy(policy) is as_policy(FrozenEstimator(policy)) is policy
    still = Still()
    assert as_policy(still) is still


@pytest.mark.parametrize("window_size", [1, 5])
def test_windows_are_those_of_the_fit_whatever_is_set_afterwards(window_size):
    policy = fitted().fit(ROWS, ACTIONS)
    expected, _ = play(as_policy(policy), 4, infos=[{"success": True}] * 6)
    policy.set_params(window_size=window_size, goal_dim=1)
    for given in (policy, FrozenEstimator(policy)):
        found, _ = play(as_policy(given), 4, infos=[{"success": True}] * 6)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.actions, other.actions)


def test_windows_of_a_pipeline_are_those_of_its_fit():
    pipeline = make_pipeline(StandardScaler(), fitted()).fit(ROWS.reshape(30, -1), ACTIONS)
    expected, _ = play(as_policy(pipeline), 2)
    pipeline.set_params(gaussianmoepolicy__window_size=1)
    found, _ = play(as_policy(pipeline), 2)
    np.testing.assert_array_equal(found[0].actions, expected[0].actions)


def test_goals_are_those_of_the_fit():
    goals = np.random.RandomState(2).standard_normal((30, 2))
    policy = fitted(goal_dim=2).fit(append_goals(ROWS, goals), ACTIONS)
    policy.set_params(goal_dim=0)
    assert check_goal(as_policy(policy), [0.5, 1.0]).tolist() == [0.5, 1.0]
    options = {"goal": np.array([0.5, 1.0])}
    (rollout,), _ = play(as_policy(policy), options=options)
    row = np.hstack([np.tile(rollout.states[0], 3), options["goal"]])[None]
    noise = np.random.RandomState(0)
    assert rollout.actions[0].shape == policy.act(row, random_state=noise)[0].shape
    with refuses("goal must have shape (2,), the goal_dim of the policy, got shape (3,)."):
        check_goal(as_policy(policy), np.zeros(3))


def test_a_policy_that_is_not_fitted_has_the_sizes_of_its_parameters():
    assert as_policy(fitted()).window_size == 3


def test_chunks_of_a_fitted_policy_are_refused():
    chunks = np.repeat(ACTIONS[:, None], 4, axis=1)
    policy = fitted().fit(ROWS, chunks)
    with refuses(
        "policy.act must return one action per decision, got chunks of 4, shape (64, 4, 2). Fit it "
        "on single actions, or wrap it in a policy whose act returns the first of each chunk."
    ):
        play(as_policy(policy))
    single = fitted().fit(ROWS, chunks[:, :1])
    expected, _ = play(as_policy(fitted().fit(ROWS, ACTIONS)))
    found, _ = play(as_policy(single))
    np.testing.assert_array_equal(found[0].actions, expected[0].actions)


def test_what_is_no_policy_is_refused():
    with refuses(
        "policy must have act and window_size, or be a Pipeline that ends in what has them, got "
        "Pipeline that ends in StandardScaler without act and window_size. Every policy of skvdd "
        "has them; wrap any other one.",
        TypeError,
    ):
        as_policy(make_pipeline(StandardScaler()))
