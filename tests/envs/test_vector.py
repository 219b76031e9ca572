"""The pool gives what its environments give, in any combination."""

import os
import re
from threading import get_ident

import gymnasium
import mujoco
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


class Faithful(gymnasium.Env):
    """Notes in which threads it lives; the third one that is made may fail."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
    lives: list["Faithful"] = []

    def __init__(self, render_mode=None, fails=False):
        self.render_mode = render_mode
        self.threads = []
        self.lives.append(self)
        self._note("make")
        if fails and len(self.lives) == 3:
            raise OSError("no third one")

    def _note(self, what):
        self.threads.append((what, get_ident()))

    def reset(self, *, seed=None, options=None):
        self._note("reset")
        return np.zeros(1), {}

    def step(self, action):
        self._note("step")
        return np.zeros(1), 0.0, False, False, {}

    def close(self):
        self._note("close")


gymnasium.register("skvdd-test/Faithful-v0", entry_point=Faithful)


@pytest.fixture
def lives():
    """Environments that have been made in a test, in their order."""
    Faithful.lives.clear()
    return Faithful.lives


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


def test_spaces_are_those_of_the_environment():
    with EnvPool(AVOIDING, 1) as pool:
        assert pool.observation_space.shape == (4,)
        assert pool.action_space.shape == (2,)
    with EnvPool("CartPole-v1", 1) as pool:
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


def test_rewards_and_ends_may_come_as_arrays_of_one():
    def as_arrays(env):
        return gymnasium.wrappers.TransformReward(env, lambda reward: np.array([reward]))

    with EnvPool("CartPole-v1", 5, n_threads=1, wrap=as_arrays) as pool:
        pool.reset(range(5), range(5))
        _, rewards, terminated, truncated, _ = pool.step(range(5), [0] * 5)
    assert rewards.shape == terminated.shape == truncated.shape == (5,)


# ---------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_envs", "n_threads", "expected"),
    [(1, 1, 1), (2, 16, 1), (3, 2, 1), (4, 2, 2), (4, 16, 4), (5, 1, 1), (9, 3, 3)],
)
def test_an_environment_stays_in_its_thread(lives, n_envs, n_threads, expected):
    with EnvPool("skvdd-test/Faithful-v0", n_envs, n_threads=n_threads) as pool:
        assert pool.n_threads == expected
        everyone = list(range(n_envs))
        pool.reset(everyone, everyone)
        for some in (everyone, everyone[::-1], everyone[-1:], everyone[: n_envs // 2 + 1]):
            pool.step(some, np.zeros((len(some), 1)))
        pool.reset(everyone[-1:], [0])
    threads = [{thread for _, thread in env.threads} for env in lives]
    assert [len(its) for its in threads] == [1] * n_envs
    assert len(set().union(*threads)) == expected
    assert all(threads[i] == threads[i % expected] for i in range(n_envs))
    assert [env.threads[-1][0] for env in lives] == ["close"] * n_envs
    assert (get_ident() in set().union(*threads)) == (expected == 1)


def test_a_pool_with_threads_is_refused_after_a_fork(monkeypatch):
    with EnvPool("CartPole-v1", 4, n_threads=2) as pool:
        message = (
            "A pool with threads can only be used by the process that has made it: threads do not "
            "survive a fork. Make a pool in each process, or give n_threads=1."
        )
        with monkeypatch.context() as patch, refused(message, RuntimeError):
            patch.setattr(os, "getpid", lambda: -1)
            pool.reset(range(4), range(4))
        pool.reset(range(4), range(4))


def test_environments_that_render_live_in_the_thread_of_the_caller(lives):
    with EnvPool("skvdd-test/Faithful-v0", 6, n_threads=3, render_mode="rgb_array") as pool:
        assert pool.n_threads == 1
        pool.reset(range(6), range(6))
        pool.step(range(6), np.zeros((6, 1)))
    assert {thread for env in lives for _, thread in env.threads} == {get_ident()}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_what_was_made_is_closed_when_one_cannot_be_made(lives, n_threads):
    with refused("no third one", OSError):
        EnvPool("skvdd-test/Faithful-v0", 5, n_threads=n_threads, fails=True)
    assert [[what for what, _ in env.threads] for env in lives] == [
        ["make", "close"],
        ["make", "close"],
        ["make"],
    ]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_pool_closes_each_environment_once(lives, n_threads):
    pool = EnvPool("skvdd-test/Faithful-v0", 5, n_threads=n_threads)
    pool.close()
    pool.close()
    assert [env.threads[1:] for env in lives] == [[("close", env.threads[0][1])] for env in lives]


def test_an_environment_that_cannot_be_closed_is_named_and_the_others_are_closed(lives):
    pool = EnvPool("skvdd-test/Faithful-v0", 5, n_threads=2)

    def fail():
        raise OSError("stuck")

    lives[1].close = fail
    with refused(
        "Environment 1 of 5 (skvdd-test/Faithful-v0) failed in close: OSError: stuck", RuntimeError
    ):
        pool.close()
    assert [env.threads[-1][0] for env in lives] == ["close", "make", "close", "close", "close"]


def test_a_wrapper_takes_the_place_of_each_environment(lives):
    class Twice(gymnasium.ActionWrapper):
        def __init__(self, env):
            super().__init__(env)
            wrapped.append(get_ident())

        def action(self, action):
            return 2 * action

    wrapped = []
    with EnvPool("skvdd-test/Faithful-v0", 4, n_threads=2, wrap=Twice) as pool:
        assert [type(env) for env in pool.envs] == [Twice] * 4
        assert wrapped == [env.threads[0][1] for env in lives]


class Picture(gymnasium.Env):
    """Looks at a picture to see its state."""

    observation_space = spaces.Box(0.0, 255.0, (3,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def __init__(self):
        scene = "<mujoco><worldbody><light pos='0 0 2'/><geom size='.3'/></worldbody></mujoco>"
        self.model = mujoco.MjModel.from_xml_string(scene)
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, 16, 16)

    def _look(self):
        mujoco.mj_forward(self.model, self.data)
        self.renderer.update_scene(self.data)
        return self.renderer.render().mean(axis=(0, 1))

    def reset(self, *, seed=None, options=None):
        return self._look(), {}

    def step(self, action):
        return self._look(), 0.0, False, False, {}

    def close(self):
        self.renderer.close()


gymnasium.register("skvdd-test/Picture-v0", entry_point=Picture)


@pytest.mark.rendering
def test_environments_may_look_at_pictures_in_their_threads():
    seen = []
    for n_threads in (1, 2):
        with EnvPool("skvdd-test/Picture-v0", 4, n_threads=n_threads) as pool:
            pool.reset(range(4), range(4))
            for some in (range(4), [3, 0], range(4)):
                observations, *_ = pool.step(some, np.zeros((len(some), 1)))
            seen.append(observations)
    np.testing.assert_array_equal(*seen)
    assert seen[0].min() > 0.0  # something is to be seen


def test_rewards_and_ends_may_be_numbers_in_one_environment_and_arrays_in_another():
    class Mixed(gymnasium.Env):
        observation_space = action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)

        def reset(self, *, seed=None, options=None):
            self.is_array = seed % 2 == 0
            return np.zeros(1), {}

        def step(self, action):
            reward, over = (np.array([1.0]), np.array(True)) if self.is_array else (0.5, False)
            return np.zeros(1), reward, over, False, {}

    gymnasium.register("skvddtest/Mixed-v0", Mixed)
    try:
        with EnvPool("skvddtest/Mixed-v0", 2) as pool:
            pool.reset([0, 1], [0, 1])
            _, rewards, terminated, truncated, _ = pool.step([0, 1], np.zeros((2, 1)))
    finally:
        del gymnasium.registry["skvddtest/Mixed-v0"]
    assert (rewards.tolist(), terminated.tolist()) == ([1.0, 0.5], [True, False])
    assert not truncated.any()
