"""A tiny task: walk along a line from a random start; the end reached is the behavior."""

import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from skvdd.envs import Score, TaskSpec
from skvdd.evaluation import evaluate_policy


class Line(gymnasium.Env):
    """Succeeds beyond ±1; which side is the behavior."""

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

    def _info(self):
        return {"speed": self.speed}


class Indifferent(Line):
    """Does not tell behaviors apart."""

    def _info(self):
        return {"success": abs(self.position) > 1.0}


class Signpost(Line):
    """Starts where its context says, and tells a goal: the way it came from."""

    shift = {"test": 0.0, "train": 0.05, "validation": 0.025}

    def reset(self, *, seed=None, options=None):
        self.goal = None
        super().reset(seed=seed)
        options = dict(options or {})
        context, shift = options.pop("context", 0), self.shift[options.pop("split", "test")]
        assert not options
        self.goal = np.array([-1.0 if np.ndim(context) else float(context)])
        self.position = context[0] if np.ndim(context) else 0.1 * context + shift
        self.speed = 0.0
        return self._observation(), self._info()

    def _info(self):
        return {**super()._info(), "goal": self.goal}


class Buttons(Line):
    """Takes no vectors as actions."""

    def __init__(self):
        super().__init__()
        self.action_space = Discrete(2)


LINE, SIGNPOST = "skvddtest/Line-v0", "skvddtest/Signpost-v0"


def two_more(evaluation):
    """Return what no other metric is."""
    return evaluation.success_rate + 2.0


SIDES = {"left": "to the left", "right": "to the right"}
ENVIRONMENTS = (Line, Silent, Indifferent, Signpost, Buttons)
TASKS = (
    TaskSpec("line", LINE, scores=(Score(behaviors=SIDES),), n_rollouts=20),
    TaskSpec(
        "signpost",
        SIGNPOST,
        scores=(Score(behaviors=SIDES, skips_unsolved=True),),
        n_contexts=3,
        n_rollouts=2,
        selection=two_more,
    ),
)


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


class Sides:
    """Walks away from the middle, or stays where a start beyond 0.45 was."""

    window_size = 1

    def act(self, X, *, random_state=None):
        position = X[:, 0, 0]
        return np.where(np.abs(position) > 0.45, 0.0, np.where(position > 0, 0.1, -0.1))[:, None]


class GoalPolicy:
    """Remembers what it was asked and goes straight on."""

    window_size, goal_dim = 2, 3

    def __init__(self):
        self.asked = []

    def act(self, X, *, random_state=None):
        self.asked.append(X)
        return np.tile([0.0, 0.01], (len(X), 1))


def refuses(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def evaluate(policy, n_episodes=20, *, task="Line", random_state=0, **options):
    """Evaluate on one of these tasks, without a progress bar."""
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
