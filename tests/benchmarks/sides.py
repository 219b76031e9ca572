"""A task of milliseconds: step out of an interval at either side. And a method from elsewhere."""

import gymnasium
import numpy as np
from gymnasium import spaces

from skvdd.datasets.experts.recording import Demonstrator
from skvdd.envs import Score, TaskSpec

SPLITS = {"train": 0, "validation": 1, "test": 2}


class Sides(gymnasium.Env):
    """A point on a line. A context is where it starts."""

    observation_space = spaces.Box(-9.0, 9.0, (2,))
    action_space = spaces.Box(-9.0, 9.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        options = options or {}
        rng = self.np_random
        if "context" in options:
            split = SPLITS[options.get("split", "test")]
            rng = np.random.default_rng([split, options["context"]])
        self.start = self.place = rng.uniform(-0.5, 0.5)
        return self._observation(), {}

    def step(self, action):
        self.place += float(np.clip(action[0], -1.0, 1.0))
        success = abs(self.place) > 1.0
        info = {"success": success}
        if success:
            info["behavior"] = "right" if self.place > 0 else "left"
        return self._observation(), float(success), success, False, info

    def _observation(self):
        return np.array([self.place, self.start], dtype=np.float32)


def make_actor(task, behavior, rng):
    step = 0.4 if behavior == "right" else -0.4
    return lambda observation: np.array([step + 0.02 * rng.standard_normal()])


SPEC = TaskSpec(
    "sides",
    "tests/Sides-v0",
    entry_point=Sides,
    time_limit=8,
    scores=(Score(behaviors={"left": "to the left", "right": "to the right"}),),
    n_contexts=4,
    n_rollouts=4,
    demonstrators={"sides": Demonstrator(make_actor, version=7, description="out it goes")},
    selection=lambda evaluation: evaluation.success_rate + 10.0 * (evaluation.split == "test"),
)


class Walker:
    """Goes on as the demonstrations do on the mean, to a side that a coin chooses."""

    def __init__(self, pace=1.0, random_state=None):
        self.pace, self.random_state = pace, random_state

    def fit(self, X, y):
        assert X.ndim == 2
        self.step_ = self.pace * float(np.abs(y).mean())
        return self

    def act(self, X, *, random_state=None):
        side = np.sign(X[:, :1]) if len(X) == 0 else np.where(X[:, :1] > 0, 1.0, -1.0)
        start = random_state.choice([-1.0, 1.0], size=(len(X), 1))
        return self.step_ * np.where(X[:, :1] == X[:, 1:2], start, side)


class Slotted:
    """Has neither a dict of attributes nor a seed, and always goes right."""

    __slots__ = ("mean_", "width")

    def __init__(self, window_size=1):
        self.width = window_size

    def fit(self, X, y):
        assert X.shape[1] == 2 * self.width
        self.mean_ = float(abs(y).mean())

    def act(self, X, *, random_state=None):
        return [[self.mean_]] * len(X)


class Closed(Walker):
    """Holds, once it is trained, what pickle cannot write."""

    def fit(self, X, y):
        self.model_ = lambda x: x
        return super().fit(X, y)
