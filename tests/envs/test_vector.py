"""The pool gives what its environments give, in any combination."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from skvdd.envs import EnvPool

AVOIDING = "skvdd/Avoiding-v0"


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


class Moody(gymnasium.Env):
    """Observe a dictionary; fail when told to."""

    observation_space = spaces.Dict(
        {"count": spaces.Discrete(100), "place": spaces.Box(-1.0, 1.0, (2,), np.float64)}
    )
    action_space = spaces.Discrete(3)

    def _observation(self):
        return {"count": self.count, "place": np.full(2, 0.25)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 10 * seed + (options or {}).get("more", 0)
        return self._observation(), {"seed": seed}

    def step(self, action):
        if action == 2:
            raise ZeroDivisionError("bad mood")
        self.count += int(action)
        return self._observation(), float(action), False, False, {}


gymnasium.register("skvdd-test/Moody-v0", entry_point=Moody)


def roll(pool, actions):
    """Reset everything, play (steps, n, 2) actions, return the observations."""
    everyone = list(range(len(pool)))
    pool.reset(everyone, [0] * len(pool))
    return np.array([pool.step(everyone, row)[0] for row in actions])


def test_every_environment_has_options_of_its_own():
    with EnvPool("skvdd-test/Moody-v0", 2) as pool:
        observations, _ = pool.reset([0, 1], [1, 2], [None, {"more": 3}])
        np.testing.assert_array_equal(observations["count"], [10, 23])
        with refused("options must have one row per index, got 1 for 2 indices."):
            pool.reset([0, 1], [1, 2], [None])


def test_results_do_not_depend_on_threads_or_on_company():
    actions = np.random.default_rng(0).uniform(-0.008, 0.008, (6, 9, 2))
    with EnvPool(AVOIDING, 9, n_threads=1) as pool:
        alone = roll(pool, actions)
    with EnvPool(AVOIDING, 9, n_threads=3) as pool:
        np.testing.assert_array_equal(roll(pool, actions), alone)
    with EnvPool(AVOIDING, 2, n_threads=2) as pool:
        np.testing.assert_array_equal(roll(pool, actions[:, 4:6]), alone[:, 4:6])


def test_a_pool_does_what_its_environments_do():
    env = gymnasium.make(AVOIDING)
    first, info = env.reset(seed=5)
    expected = env.step([0.001, 0.007])
    with EnvPool(AVOIDING, 3) as pool:
        observations, infos = pool.reset([2, 0], [5, 6])
        assert observations.shape == (2, 4)
        np.testing.assert_array_equal(observations[0], first)
        assert infos == [info, info]
        observations, rewards, terminated, truncated, infos = pool.step([2], [[0.001, 0.007]])
    np.testing.assert_array_equal(observations, [expected[0]])
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == ([0.0], [False], [False])
    assert infos == [expected[4]]


def test_only_the_named_environments_move():
    with EnvPool(AVOIDING, 3) as pool:
        pool.reset([0, 1, 2], [0, 0, 0])
        before = [env.unwrapped.tcp_position for env in pool.envs]
        pool.step([1], np.array([[0.0, 0.01]]))
        moved = [
            not np.array_equal(env.unwrapped.tcp_position, place)
            for env, place in zip(pool.envs, before, strict=True)
        ]
    assert moved == [False, True, False]


def test_spaces_and_behaviours_are_those_of_the_environment():
    with EnvPool(AVOIDING, 1) as pool:
        assert pool.n_behaviors == 24
        assert pool.observation_space.shape == (4,)
        assert pool.action_space.shape == (2,)
    with EnvPool("CartPole-v1", 1) as pool:
        assert pool.n_behaviors is None
        assert pool.action_space == spaces.Discrete(2)


def test_arguments_reach_the_environments():
    with EnvPool("CartPole-v1", 2, n_threads=1, max_episode_steps=1) as pool:
        pool.reset([0, 1], [0, 1])
        assert pool.step([0, 1], [0, 1])[3].tolist() == [True, True]


def test_seeds_reach_the_environments():
    with EnvPool("CartPole-v1", 3, n_threads=1) as pool:
        observations, _ = pool.reset([0, 1, 2], [7, 8, 7])
    np.testing.assert_array_equal(observations[0], observations[2])
    assert (observations[0] != observations[1]).any()


def test_dictionaries_are_stacked_entry_by_entry():
    with EnvPool("skvdd-test/Moody-v0", 5, n_threads=2) as pool:
        observations, infos = pool.reset(range(5), range(5))
        assert observations["count"].tolist() == [0, 10, 20, 30, 40]
        assert observations["place"].shape == (5, 2)
        assert [info["seed"] for info in infos] == [0, 1, 2, 3, 4]
        observations, rewards, *_ = pool.step([4, 1], [1, 0])
    assert observations["count"].tolist() == [41, 10]
    assert rewards.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("n_threads", [1, 4])
def test_a_failing_environment_is_named(n_threads):
    with EnvPool("skvdd-test/Moody-v0", 6, n_threads=n_threads) as pool:
        pool.reset(range(6), range(6))
        with refused(
            "Environment 3 of 6 (skvdd-test/Moody-v0) failed in step: ZeroDivisionError: bad mood",
            RuntimeError,
        ) as caught:
            pool.step(range(6), [0, 1, 0, 2, 0, 2])
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert pool.envs[1].unwrapped.count == 11, "the others have taken their step"


def test_a_nan_action_is_reported_with_its_environment():
    with EnvPool(AVOIDING, 2) as pool:
        pool.reset([0, 1], [0, 0])
        with refused(
            "Environment 1 of 2 (skvdd/Avoiding-v0) failed in step: ValueError: action must be "
            "finite, got [0.0, nan]. A policy that returns NaN or infinity has usually diverged in "
            "training.",
            RuntimeError,
        ):
            pool.step([0, 1], [[0.0, 0.0], [0.0, np.nan]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_envs": 0}, "n_envs must be an integer of at least 1, got 0."),
        ({"n_envs": 2.0}, "n_envs must be an integer of at least 1, got 2.0."),
        ({"n_envs": 1, "n_threads": 0}, "n_threads must be an integer of at least 1, got 0."),
    ],
)
def test_wrong_sizes_are_refused(arguments, message):
    with refused(message):
        EnvPool("CartPole-v1", **arguments)


@pytest.mark.parametrize(
    ("indices", "actions", "message"),
    [
        ([], [], "indices must name at least one environment, got none."),
        ([0, 1], [0], "actions must have one row per index, got 1 for 2 indices."),
        ([0, 0], [0, 0], "indices must be distinct and lie in [0, 2], got [0, 0]."),
        ([3], [0], "indices must be distinct and lie in [0, 2], got [3]."),
        ([-1], [0], "indices must be distinct and lie in [0, 2], got [-1]."),
    ],
)
def test_wrong_calls_are_refused(indices, actions, message):
    with EnvPool("CartPole-v1", 3) as pool:
        pool.reset([0, 1, 2], [0, 0, 0])
        with refused(message):
            pool.step(indices, actions)


def test_a_pool_closes_twice_and_never_has_more_threads_than_environments():
    pool = EnvPool("CartPole-v1", 2, n_threads=16)
    assert pool.n_threads == 2
    pool.close()
    pool.close()
