"""An environment that does what it is told, and policies for it."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from skvdd.envs import EnvPool
from skvdd.rollouts import Driver, plan_rollouts, resolve_task

SCENE = "skvddtest/Scene-v0"


class Scene(gymnasium.Env):
    """Tells one info after the other and ends with the last, or goes on for ever."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(
        self, infos=({"success": True},), *, action_space=None, ends=True, first=None, reward=0.0
    ):
        self.infos, self.ends, self.first, self.reward = infos, ends, first, reward
        self.action_space = (
            Box(-1.0, 1.0, (2,), np.float64) if action_space is None else action_space
        )
        self.given = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        self.place = self.np_random.uniform(size=1)
        return self.place if self.first is None else self.first, {}

    def step(self, action):
        self.given.append(action)
        info = self.infos[min(self.n_steps, len(self.infos) - 1)]
        self.n_steps += 1
        self.place = self.place + 0.1 * action[:1]
        over = self.ends and self.n_steps == len(self.infos)
        return self.place, self.reward, over, False, info


class Still:
    """Stays where it is."""

    window_size = 1

    def __init__(self, action=(0.0, 0.0)):
        self.action = action

    def act(self, X, *, random_state=None):
        return np.array([self.action] * len(X))


class Noisy:
    """Goes anywhere, depending on where it is."""

    window_size = 2

    def act(self, X, *, random_state=None):
        noise = np.stack([rng.standard_normal(2) for rng in random_state])
        return 0.1 * noise + np.tanh(X[:, :, 0])


def refuses(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def play(policy=None, n_episodes=1, *, task=None, n_envs=1, starts=None, options=None, **scene):
    """Return the rollouts, in their order, and the environments that have played them."""
    task = resolve_task(SCENE) if task is None else task
    rollouts = plan_rollouts(n_episodes, 0, starts)
    with EnvPool(SCENE, n_envs, **scene) as pool:
        driver = Driver(Still() if policy is None else policy, pool, task, **(options or {}))
        played = sorted(driver.run(rollouts), key=lambda rollout: rollout.index)
    return played, [env.unwrapped for env in pool.envs]


def play_one(policy=None, **arguments):
    """Return a single rollout and its environment."""
    (rollout,), (env,) = play(policy, **arguments)
    return rollout, env
