"""Tasks of one's own that need no simulator: walk along a line, to its left or right end."""

import builtins
import os
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from skvdd.datasets.experts.recording import Demonstrator
from skvdd.envs import Score, TaskSpec, register_task


class Line(gymnasium.Env):
    """Start at a drawn place between -1 and 1, and leave that range."""

    observation_space = action_space = Box(-9.0, 9.0, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        options = options or {}
        splits = ("train", "validation", "test")
        rng = self.np_random
        if "context" in options:
            rng = np.random.default_rng([splits.index(options["split"]), options["context"]])
        self._place = rng.uniform(-0.5, 0.5)
        return np.array([self._place]), self._info()

    def step(self, action):
        self._place += float(action[0])
        return np.array([self._place]), 0.0, abs(self._place) > 1.0, False, self._info()

    def _info(self):
        over = abs(self._place) > 1.0
        return {"success": over, "behavior": ("left", "right")[self._place > 0] if over else None}


class Reuser(gymnasium.Env):
    """Count three steps, in the same arrays again and again, and spoil the actions."""

    observation_space = Line.observation_space

    def __init__(self, dtype):
        self.action_space = Box(-9, 9, (1,), dtype)
        self._place, self._goal = np.zeros(1), np.full(1, 5.0, np.float32)
        self.played = []

    def reset(self, *, seed=None, options=None):
        return self._place, {"goal": self._goal}

    def step(self, action):
        self.played.append((action.item(), action.dtype))
        action[0] = 0
        self._place += 1.0
        self._goal += 1.0
        return self._place, 0.0, self._place[0] == 3.0, False, {"success": True}


def make_actor(task, behavior, rng):
    """Walk to one end, in steps of a drawn length."""
    step = rng.uniform(0.3, 0.4) * (1 if behavior == "right" else -1)
    return lambda observation: np.array([step])


def plan(number, random_state):
    """Take turns, tell the log which episode is recorded, and stop with an error when asked to."""
    if "LINE_LOG" in os.environ:
        time.sleep(0.01)
        with open(os.environ["LINE_LOG"], "a") as log:
            log.write(f"{number}\n")
    if os.environ.get("LINE_STOP") == str(number):
        raise getattr(builtins, os.environ["LINE_ERROR"])
    return ("left", "right")[number % 2], (random_state, number)


LINE = TaskSpec(
    name="line",
    env_id="Line-v0",
    entry_point=Line,
    time_limit=20,
    scores=(Score(behaviors={"left": "to the left", "right": "to the right"}),),
    n_contexts=3,
    demonstrators={"line": Demonstrator(make_actor, version=4, description="walks", plan=plan)},
    states=("place",),
    actions=("step",),
)


def load_beside_another(folder, name, n_episodes):
    """Load a set in the moment in which another process does the same."""
    from skvdd.datasets import load_demonstrations

    register_task(LINE)
    Path(folder, name).touch()
    while len(list(Path(folder).iterdir())) < 2:
        time.sleep(0.001)
    load_demonstrations("line", n_episodes, n_jobs=1).save(Path(folder, f"{name}.npz"))
