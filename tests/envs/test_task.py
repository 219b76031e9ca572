"""What all robot tasks share, tried on a task of two lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from skvdd.envs.avoiding import Avoiding
from skvdd.envs.task import RobotTask

REPOSITORY = Path(__file__).resolve().parents[2]


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


class Lift(RobotTask):
    """Succeed as soon as the tool has been above 0.2 m after a window."""

    n_axes = 3
    start_joints = Avoiding.start_joints

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = gymnasium.spaces.Box(-2.0, 2.0, (6,), np.float64)

    @classmethod
    def objects(cls):
        return ""

    def _begin(self, context):
        self.events = []

    def _observe(self):
        self.events.append("observe")
        return np.concatenate([self.set_point, self.tcp_position])

    def _is_over(self):
        self.events.append("judge")
        return super()._is_over()

    def _keep_books(self):
        self.events.append("keep books")
        self._success = bool(self.tcp_position[2] > 0.2)

    def _info(self):
        return {"success": self._success, "behavior": 0}


def test_a_step_observes_and_judges_before_the_window():
    env = Lift()
    env.reset()
    before = env.tcp_position
    env.events.clear()
    observation, *_ = env.step([0.0, 0.0, 0.01])
    assert env.events == ["observe", "judge", "keep books"]
    np.testing.assert_array_equal(observation[3:], before)
    assert not np.array_equal(env.tcp_position, before)


def test_success_after_the_window_is_reported_by_the_next_step():
    env = Lift()
    env.reset()
    seen = []
    while not seen or not seen[-1][2]:
        _, reward, terminated, truncated, info = env.step([0.0, 0.0, 0.01])
        seen.append((reward, info["success"], terminated))
        assert not truncated
    assert seen[-2:] == [(1.0, True, False), (0.0, True, True)]


def test_environments_of_a_task_share_their_model_and_nothing_else():
    one, two = Lift(), Lift()
    assert one.model() is two.model()
    assert one.model() is not Avoiding.model()
    one.reset()
    two.reset()
    untouched = two.tcp_position
    one.step([0.05, 0.0, 0.0])
    np.testing.assert_array_equal(two.tcp_position, untouched)


def test_stepping_before_reset_says_so():
    with refused("Call reset() before step() and before set_point.", gymnasium.error.ResetNeeded):
        Lift().step([0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"render_mode": "human"}, "render_mode must be 'rgb_array' or None, got 'human'."),
        ({"camera": "top"}, "camera must be one of ('view', 'agent'), got 'top'."),
        ({"width": 2000}, "width must be an integer from 1 to 1024 pixels, got 2000."),
        ({"height": 0}, "height must be an integer from 1 to 1024 pixels, got 0."),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with refused(message):
        Lift(**arguments)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            [0.0, 0.0],
            "action must have shape (3,): the change of the set-point in meters; got shape (2,).",
        ),
        (
            [0.0, float("nan"), 0.0],
            "action must be finite, got [0.0, nan, 0.0]. A policy that returns NaN or infinity "
            "has usually diverged in training.",
        ),
    ],
)
def test_wrong_actions_are_refused_before_anything_moves(action, message):
    env = Lift()
    env.reset()
    before = env.tcp_position, env.set_point
    with refused(message):
        env.step(action)
    np.testing.assert_array_equal((env.tcp_position, env.set_point), before)


def test_render_without_a_mode_says_how_to_get_one():
    env = Lift()
    env.reset()
    with refused(
        "render() needs render_mode='rgb_array', got render_mode=None. Pass it to gymnasium.make."
    ):
        env.render()


def test_a_missing_renderer_names_the_packages(monkeypatch):
    def no_display(*arguments):
        raise OSError("no display")

    monkeypatch.setattr("mujoco.Renderer", no_display)
    env = Lift(render_mode="rgb_array", width=64, height=48)
    env.reset()
    with refused(
        "MuJoCo could not open an off-screen renderer of 64 x 48 pixels. Without a display, set "
        "MUJOCO_GL=egl or MUJOCO_GL=osmesa before Python starts; on Debian egl needs the "
        "packages libegl1, libegl-mesa0 and libgl1-mesa-dri.",
        RuntimeError,
    ) as caught:
        env.render()
    assert isinstance(caught.value.__cause__, OSError)


def test_close_can_be_called_twice():
    env = Lift()
    env.close()
    env.close()


RENDER = """
import sys, mujoco
try:
    mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
except Exception:
    sys.exit(77)
import warnings
warnings.simplefilter("error")
import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
import skvdd.envs

env = gymnasium.make("skvdd/Avoiding-v0", render_mode="rgb_array", width=160, height=120)
env.reset()
first = env.render()
assert first.shape == (120, 160, 3) and first.dtype == np.uint8
red = (first[..., 0] > 120) & (first[..., 1] < 60)
assert red.mean() > 0.005, "no obstacle in sight"
for _ in range(10):
    env.step([0.0, 0.008])
second = env.render()
assert (first != second).any() and first.std() > 20
env.close()
env.close()

agent = gymnasium.make("skvdd/Avoiding-v0", render_mode="rgb_array", camera="agent")
agent.reset()
assert agent.render().shape == (480, 480, 3)
check_env(agent.unwrapped)
agent.close()
"""


@pytest.mark.rendering
def test_rendering():
    # In a process of its own: which OpenGL is used is settled when MuJoCo is imported.
    environment = {"MUJOCO_GL": "egl", **os.environ}
    done = subprocess.run(
        [sys.executable, "-c", RENDER],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("no OpenGL without a display here")
    assert done.returncode == 0, done.stderr


# -- contexts -------------------------------------------------------------------------------


class Numbered(Lift):
    """A task with two numbers of context, which does nothing with them."""

    context_size = 2

    @classmethod
    def draw_context(cls, rng):
        return rng.uniform(0.0, 1.0, 2)


def test_an_episode_draws_its_context_from_its_seed():
    env = Numbered()
    env.reset(seed=3)
    first = env.context
    env.reset()
    second = env.context
    env.reset(seed=3)
    np.testing.assert_array_equal(env.context, first)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("split", "number"), [("train", 0), ("test", 1), ("validation", 2)])
def test_listed_contexts_are_the_same_for_everybody(split, number):
    env = Numbered()
    env.reset(seed=0, options={"context": 7, "split": split})
    np.testing.assert_array_equal(env.context, np.random.default_rng([number, 7]).uniform(size=2))
    np.testing.assert_array_equal(env.context, Numbered.listed_context(7, split))


def test_the_test_list_is_the_default():
    env = Numbered()
    env.reset(options={"context": np.int64(7)})
    np.testing.assert_array_equal(env.context, Numbered.listed_context(7, "test"))


def test_a_context_can_be_given():
    env = Numbered()
    env.reset(options={"context": [0.25, 0.5]})
    np.testing.assert_array_equal(env.context, [0.25, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": -1}, "context must be an integer of at least 0, got -1."),
        ({"context": 1.0}, "context must be an integer of at least 0, got 1.0."),
        (
            {"context": 0, "split": "all"},
            "split must be one of ('train', 'test', 'validation'), got 'all'.",
        ),
        ({"context": True}, "context must be an integer of at least 0, got True."),
        ({"contexts": 0}, "options must be 'context' and 'split', got ['contexts']."),
        (
            {"context": [1.0]},
            "context must be the number of a listed one, or 2 finite numbers as draw_context "
            "returns them; got [1.0].",
        ),
    ],
)
def test_wrong_contexts_are_refused(options, message):
    with refused(message):
        Numbered().reset(options=options)


def test_a_task_that_always_starts_alike_has_no_contexts():
    with refused("context cannot be chosen: every episode of Lift starts alike."):
        Lift().reset(options={"context": 0})
