"""Rollouts: reproducible to the last bit, checked, summed up; and the stopwatch."""

import json
import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from skvdd.evaluation import BLOCK_SIZE, Evaluation, evaluate_policy, time_action

# ---------------------------------------------------------------------------------------
# A tiny task: walk along a line from a random start; the end reached is the behaviour
# ---------------------------------------------------------------------------------------


class Line(gymnasium.Env):
    """Succeeds beyond ±1; which side is the behaviour."""

    n_behaviors = 2

    def __init__(self, start_width=0.2):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Box(-np.inf, np.inf, (1,), np.float64)
        self.start_width = start_width

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-self.start_width, self.start_width)
        self.speed = 0.0
        return self._observation(), self._info()

    def step(self, action):
        self.speed = 0.8 * self.speed + float(action[0])
        self.position += self.speed
        success = abs(self.position) > 1.0
        return self._observation(), float(success), success, False, self._info()

    def _observation(self):
        return np.array([self.position, self.speed])

    def _info(self):
        return {
            "success": abs(self.position) > 1.0,
            "behavior": "right" if self.position > 0.0 else "left",
        }


class Silent(Line):
    """Does not tell success."""

    n_behaviors = None

    def _info(self):
        return {"speed": self.speed}


class Indifferent(Line):
    """Does not tell behaviours apart."""

    n_behaviors = None

    def _info(self):
        return {"success": abs(self.position) > 1.0}


class Buttons(Line):
    """Takes no vectors as actions."""

    def __init__(self):
        super().__init__()
        self.action_space = Discrete(2)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Register the tasks of this module while its tests run."""
    tasks = {f"skvddtest/{task.__name__}-v0": task for task in (Line, Silent, Indifferent, Buttons)}
    for env_id, task in tasks.items():
        gymnasium.register(env_id, entry_point=task, max_episode_steps=60)
    yield
    for env_id in tasks:
        del gymnasium.registry[env_id]


class RandomWalk:
    """A float32 network, which rounds differently at different batch sizes, plus noise."""

    window_size = 3

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(6, 50, generator=generator)
        self.second = torch.randn(50, 1, generator=generator) / 50.0
        self.batches = []

    def act(self, X, *, random_state=None):
        self.batches.append(np.shape(X))
        rows = torch.from_numpy(X.reshape(len(X), -1)).float()
        mean = torch.tanh(torch.tanh(rows @ self.first) @ self.second).double().numpy()
        noise = np.stack([rng.standard_normal(1) for rng in random_state])
        return 0.05 * mean + 0.05 * noise


class Constant:
    """Always gives the same action."""

    def __init__(self, action, window_size=1):
        self.action, self.window_size = action, window_size

    def act(self, X, *, random_state=None):
        return np.array([self.action] * len(X))


def refuses(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def evaluate(policy, n_episodes=20, *, task="Line", random_state=0, **options):
    """Evaluate on a task of this module, without a progress bar."""
    options = {"progress": False, "random_state": random_state, **options}
    return evaluate_policy(policy, f"skvddtest/{task}-v0", n_episodes, **options)


def assert_same_rollouts(first, second):
    """Compare all that an evaluation holds, bit for bit."""
    assert first.to_dict() == second.to_dict()
    assert first.behaviors == second.behaviors
    for name in ("successes", "returns", "lengths"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for one, other in zip(first.episodes, second.episodes, strict=True):
        np.testing.assert_array_equal(one.states, other.states)
        np.testing.assert_array_equal(one.actions, other.actions)


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
# The record
# ---------------------------------------------------------------------------------------


def test_a_policy_that_goes_right_always_succeeds_in_one_way():
    evaluation = evaluate(Constant([0.1]))
    assert evaluation.success_rate == 1.0
    assert evaluation.success_interval == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert evaluation.entropy == 0.0
    assert evaluation.n_behaviors == 1
    assert evaluation.behaviors == ("right",) * 20
    np.testing.assert_array_equal(evaluation.returns, 1.0)
    # 0.1, 0.18, 0.244 ... add up to 1.2 after 5 steps at the latest, from -0.2.
    assert evaluation.lengths.max() <= 6


def test_a_policy_that_stands_still_always_fails():
    evaluation = evaluate(Constant([0.0]))
    assert evaluation.success_rate == evaluation.entropy == 0.0
    assert evaluation.n_behaviors == 0
    assert set(evaluation.behaviors) == {"left", "right"}
    np.testing.assert_array_equal(evaluation.lengths, 60)
    np.testing.assert_array_equal(evaluation.returns, 0.0)


def test_entropy_counts_only_successes(reference):
    shares = [
        np.mean(
            [
                b == side
                for b, ok in zip(reference.behaviors, reference.successes, strict=True)
                if ok
            ]
        )
        for side in ("left", "right")
    ]
    assert 0 < reference.successes.sum() < len(reference.successes)
    assert reference.entropy == pytest.approx(-sum(p * np.log2(p) for p in shares))
    assert reference.entropy_base == 2


def test_a_task_without_behaviors_has_no_entropy():
    evaluation = evaluate(Constant([0.1]), task="Indifferent")
    assert evaluation.success_rate == 1.0
    assert evaluation.entropy is evaluation.entropy_base is None
    assert evaluation.n_behaviors == 0


def test_the_table_is_aligned():
    evaluation = evaluate(Constant([0.1]), env_kwargs={"start_width": 0.0})
    assert str(evaluation) == (
        "skvddtest/Line-v0, 20 episodes\n"
        "  success rate    1.000  95 % in [0.839, 1.000]\n"
        "  task entropy    0.000  base 2\n"
        "  behaviours          1  of 2\n"
        "  mean return     1.000\n"
        "  mean length       5.0  actions"
    )


def test_the_table_leaves_out_what_the_task_does_not_tell():
    table = str(evaluate(Constant([0.1]), task="Indifferent"))
    assert "success rate" in table
    assert "entropy" not in table
    assert "behaviours" not in table


def test_the_summary_survives_json(reference):
    summary = reference.to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["n_episodes"] == BLOCK_SIZE + 10


def test_the_record_is_frozen_and_short_to_print(reference):
    assert isinstance(reference, Evaluation)
    with pytest.raises(AttributeError):
        reference.success_rate = 1.0
    assert len(repr(reference)) < 300


def test_a_short_evaluation_prints_nothing(capfd):
    evaluate(Constant([0.1]), progress=True)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------


def test_an_unknown_environment_is_refused():
    known = ", ".join(sorted(name for name in gymnasium.registry if name.startswith("skvdd/")))
    assert "skvdd/Avoiding-v0" in known
    with refuses(
        "env_id must name a registered environment, got 'skvdd/Nowhere-v0'. skvdd has "
        f"{known}; import the package that registers another one, or call gymnasium.register."
    ):
        evaluate_policy(Constant([0.1]), "skvdd/Nowhere-v0")


@pytest.mark.parametrize("name", ["n_episodes", "n_envs"])
def test_counts_below_one_are_refused(name):
    with refuses(f"{name} must be at least 1, got 0."):
        evaluate(Constant([0.1]), **{name: 0})


def test_what_is_no_policy_is_refused():
    with refuses(
        "policy must have act and window_size, got object without act and window_size. "
        "Every policy of skvdd has them; wrap any other one.",
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


def test_an_environment_that_does_not_tell_success_is_refused():
    with refuses(
        "the infos of skvddtest/Silent-v0 must tell 'success', got ['speed']. "
        "Wrap the environment so that its info says whether the episode succeeded."
    ):
        evaluate(Constant([0.0]), task="Silent")


def test_an_environment_without_vectors_is_refused():
    with refuses(
        "the actions of skvddtest/Buttons-v0 must be vectors, got Discrete(2). Flatten them "
        "first, for example with gymnasium's wrappers."
    ):
        evaluate(Constant([0.1]), task="Buttons")


# ---------------------------------------------------------------------------------------
# The stopwatch
# ---------------------------------------------------------------------------------------


def test_time_action_times_single_decisions():
    class Counted(Constant):
        def act(self, X, *, random_state=None):
            calls.append((X.shape, torch.get_num_threads()))
            return super().act(X)

    calls = []
    threads = torch.get_num_threads()
    milliseconds = time_action(Counted([0.1]), [[0.0, 1.0]] * 3, n_calls=10)
    assert 0.0 < milliseconds < 100.0
    assert calls == [((1, 3, 2), 1)] * 11
    assert torch.get_num_threads() == threads


def test_time_action_restores_threads_after_an_error():
    class Broken(Constant):
        def act(self, X, *, random_state=None):
            raise RuntimeError("broken")

    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"):
        time_action(Broken([0.1]), [[0.0]], n_threads=threads + 1)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["n_calls", "n_threads"])
def test_time_action_refuses_counts_below_one(name):
    with refuses(f"{name} must be at least 1, got 0."):
        time_action(Constant([0.1]), [[0.0]], **{name: 0})


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
    assert first.entropy_base == 24
    assert_same_rollouts(first, second)


# -- goals ----------------------------------------------------------------------------------


class GoalPolicy:
    """Remembers what it was asked and goes straight on."""

    window_size, goal_dim = 2, 3

    def __init__(self):
        self.asked = []

    def act(self, X, *, random_state=None):
        self.asked.append(X)
        return np.tile([0.0, 0.01], (len(X), 1))


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
