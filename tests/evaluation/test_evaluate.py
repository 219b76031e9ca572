"""Rollouts: reproducible to the last bit; what a policy is given; refusals."""

import sys

import joblib
import numpy as np
import pytest

from skvdd.evaluation import evaluate_policy
from skvdd.rollouts import BLOCK_SIZE
from tests.evaluation.tasks import (
    SIGNPOST,
    Constant,
    GoalPolicy,
    RandomWalk,
    assert_same_rollouts,
    evaluate,
    refuses,
)

# ---------------------------------------------------------------------------------------
# Reproducibility
# ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    """More episodes than one batch has rows, so that places in it are shared."""
    return evaluate(RandomWalk(), BLOCK_SIZE + 10)


@pytest.mark.parametrize("n_envs", [1, 3, 8, 70])
def test_rollouts_do_not_depend_on_the_number_of_environments(reference, n_envs):
    assert_same_rollouts(reference, evaluate(RandomWalk(), BLOCK_SIZE + 10, n_envs=n_envs))


@pytest.mark.parametrize(("n_jobs", "n_envs"), [(2, None), (3, 5), (-1, None)])
def test_rollouts_do_not_depend_on_the_number_of_jobs(reference, n_jobs, n_envs):
    with joblib.parallel_config("threading"):  # other processes do not import this module
        found = evaluate(RandomWalk(), BLOCK_SIZE + 10, n_jobs=n_jobs, n_envs=n_envs)
    assert_same_rollouts(reference, found)


def test_the_number_of_jobs_is_what_joblib_is_told_around_it(monkeypatch):
    blocks = []
    play_block = sys.modules["skvdd.evaluation.evaluate"]._play_block
    monkeypatch.setattr(
        "skvdd.evaluation.evaluate._play_block", lambda *args: blocks.append(1) or play_block(*args)
    )
    with joblib.parallel_config("threading", n_jobs=2):
        evaluate(RandomWalk(), BLOCK_SIZE + 1, n_jobs=1)
        assert not blocks
        evaluate(RandomWalk(), BLOCK_SIZE + 1)
        assert len(blocks) == 2


@pytest.mark.parametrize("n_jobs", [0, 1.5, "two"])
def test_a_wrong_number_of_jobs_is_refused(n_jobs):
    with refuses(f"n_jobs must be None or an integer other than 0, got {n_jobs!r}."):
        evaluate(Constant([0.1]), n_jobs=n_jobs)


def test_the_same_seed_gives_the_same_rollouts(reference):
    assert_same_rollouts(reference, evaluate(RandomWalk(), BLOCK_SIZE + 10))


def test_another_seed_gives_other_rollouts(reference):
    other = evaluate(RandomWalk(), BLOCK_SIZE + 10, random_state=1)
    assert (other.lengths != reference.lengths).any()


def test_the_first_episodes_of_a_longer_evaluation_are_those_of_a_shorter_one(reference):
    shorter = evaluate(RandomWalk(), 5)
    for one, other in zip(shorter.episodes, reference.episodes, strict=False):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_episodes_have_seeds_and_noise_of_their_own(reference):
    starts = {episode.states[0, 0] for episode in reference.episodes}
    actions = {episode.actions[0, 0] for episode in reference.episodes}
    assert len(starts) == len(actions) == BLOCK_SIZE + 10


def test_a_random_state_instance_is_consumed():
    rng = np.random.RandomState(0)
    first, second = (
        evaluate(RandomWalk(), random_state=rng),
        evaluate(RandomWalk(), random_state=rng),
    )
    assert_same_rollouts(first, evaluate(RandomWalk()))
    assert (first.lengths != second.lengths).any()


@pytest.mark.parametrize("n_envs", [1, 20])
def test_every_call_of_act_has_one_size(n_envs):
    policy = RandomWalk()
    evaluate(policy, n_envs=n_envs)
    assert set(policy.batches) == {(BLOCK_SIZE, 3, 2)}


# ---------------------------------------------------------------------------------------
# What the policy is given, what it gave
# ---------------------------------------------------------------------------------------


def test_the_windows_of_the_episodes_are_what_the_policy_saw():
    class Recorder(RandomWalk):
        def act(self, X, *, random_state=None):
            seen.append(X[0])
            return super().act(X, random_state=random_state)

    seen = []
    evaluation = evaluate(Recorder(), 1)
    states, actions, groups = evaluation.episodes.windows(3)
    np.testing.assert_array_equal(states, seen)
    np.testing.assert_array_equal(states[0], [states[0, 0]] * 3)
    assert len(actions) == len(groups) == evaluation.lengths[0]


def test_states_and_actions_follow_the_task():
    (episode,) = evaluate(Constant([0.1]), 1).episodes
    np.testing.assert_allclose(np.diff(episode.states[:, 0]), episode.states[1:, 1], atol=1e-12)
    np.testing.assert_array_equal(episode.actions, 0.1)


def test_env_kwargs_reach_the_environment():
    evaluation = evaluate(Constant([0.1]), env_kwargs={"start_width": 0.0})
    assert {episode.states[0, 0] for episode in evaluation.episodes} == {0.0}


def test_actions_of_one_dimension_may_come_as_a_vector():
    assert_same_rollouts(evaluate(Constant(0.1)), evaluate(Constant([0.1])))


# ---------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n_episodes", "n_envs"])
def test_counts_below_one_are_refused(name):
    with refuses(f"{name} must be an integer of at least 1, got 0."):
        evaluate(Constant([0.1]), **{name: 0})


def test_what_is_no_policy_is_refused():
    with refuses(
        "policy must have act and window_size, or be a Pipeline that ends in what has them, got "
        "object without act and window_size. Every policy of skvdd has them; wrap any other one.",
        TypeError,
    ):
        evaluate(object())


def test_actions_of_another_shape_are_refused():
    with refuses(
        "policy.act must return one action of skvddtest/Line-v0 per row, shape (64, 1), "
        "got shape (64, 2) in episode 0. Was the policy fitted on the actions of another "
        "environment?"
    ):
        evaluate(Constant([0.1, 0.1]))


def test_actions_that_are_not_finite_are_refused():
    class Diverges(Constant):
        def act(self, X, *, random_state=None):
            actions = super().act(X)
            actions[X[:, -1, 0] > 0.5] = np.nan
            return actions

    # From 0 the path is 0.1, 0.28, 0.524: the action of step 3 is refused.
    with refuses(
        "policy.act must return finite actions, got [nan] in episode 0 of skvddtest/Line-v0, "
        "step 3. Look for a training that diverged, or for states far from its data."
    ):
        evaluate(Diverges([0.1]), env_kwargs={"start_width": 0.0})


# ---------------------------------------------------------------------------------------
# The robot
# ---------------------------------------------------------------------------------------


class Wander:
    """Heads for the finish with steps that sway to either side."""

    window_size = 2

    def act(self, X, *, random_state=None):
        sway = np.array([rng.normal() for rng in random_state])
        return np.stack([0.002 * sway, np.full(len(X), 0.009)], axis=1)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_avoiding_rollouts_do_not_depend_on_the_number_of_environments(n_envs):
    options = {"random_state": 0, "progress": False}
    first = evaluate_policy(Wander(), "skvdd/Avoiding-v0", 6, n_envs=6, **options)
    second = evaluate_policy(Wander(), "skvdd/Avoiding-v0", 6, n_envs=n_envs, **options)
    assert first.base == 24
    assert_same_rollouts(first, second)


# -- goals ----------------------------------------------------------------------------------


def test_a_goal_is_the_end_of_every_row():
    policy = GoalPolicy()
    evaluate_policy(policy, "skvdd/Avoiding-v0", n_episodes=1, goal=[1.0, 2.0, 3.0])
    assert policy.asked[0].shape == (64, 2 * 4 + 3)
    np.testing.assert_array_equal(policy.asked[0][:, -3:], np.tile([1.0, 2.0, 3.0], (64, 1)))


@pytest.mark.parametrize("goal", [None, [1.0], [[1.0, 2.0, 3.0]]])
def test_a_goal_of_another_shape_is_refused(goal):
    with pytest.raises(
        ValueError, match=r"goal must have shape \(3,\), the goal_dim of the policy"
    ):
        evaluate_policy(GoalPolicy(), "skvdd/Avoiding-v0", n_episodes=1, goal=goal)


class Follower:
    """Walks to the side of its goal, and remembers what it was asked."""

    window_size, goal_dim = 1, 1

    def __init__(self):
        self.asked = []

    def act(self, X, *, random_state=None):
        self.asked.append(X)
        return np.where(X[:, -1:] > 0.5, 0.1, -0.1)


def test_without_a_goal_each_episode_has_the_one_its_environment_tells():
    policy = Follower()
    evaluation = evaluate_policy(policy, SIGNPOST, n_episodes=4, contexts=2)
    np.testing.assert_array_equal(policy.asked[0][:4, -1], [0.0, 1.0, 0.0, 1.0])
    assert evaluation.behaviors == ("left", "right", "left", "right")


def test_a_told_goal_of_another_shape_is_refused():
    policy = Follower()
    policy.goal_dim = 2
    with pytest.raises(ValueError, match=r"goal must have shape \(2,\).* tell one of shape \(1,\)"):
        evaluate_policy(policy, SIGNPOST, n_episodes=1)
