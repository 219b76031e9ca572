"""The demonstrator of Pushing: every behavior, round the other cube, honest recordings."""

import gymnasium
import numpy as np
import pytest

from skvdd.datasets.experts.pushing import DEMONSTRATOR, heading_past, may_push
from skvdd.datasets.experts.recording import demonstrate
from skvdd.envs.pushing import BEHAVIORS


@pytest.fixture(scope="module")
def env():
    return gymnasium.make("skvdd/Pushing-v0", disable_env_checker=True)


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_it_shows_every_behavior(env, behavior):
    # Of 240 test contexts and behaviors 239 succeed at the first attempt.
    shown = [
        demonstrate(DEMONSTRATOR, env, behavior, np.random.default_rng(i), options={"context": i})
        for i in range(3)
    ]
    assert all(episode is not None and episode.behavior == behavior for episode in shown)
    for episode in shown:
        assert np.linalg.norm(episode.actions, axis=1).max() < 0.0105
        assert 100 < len(episode) < 400


# -- geometry ---------------------------------------------------------------------------------


def test_a_cube_is_pushed_past_the_other_one():
    cube, goal = np.zeros(2), np.array([0.0, 1.0])
    np.testing.assert_allclose(heading_past(cube, goal, np.array([0.5, 0.5])), [0.0, 1.0])
    heading = heading_past(cube, goal, np.array([0.02, 0.3]))
    assert heading[0] < 0  # on the side that is nearer to the goal
    angle = np.arccos(heading @ [0.02, 0.3] / np.hypot(0.02, 0.3))
    np.testing.assert_allclose(np.sin(angle) * np.hypot(0.02, 0.3), 0.10, atol=1e-9)


@pytest.mark.parametrize(
    ("axis", "behind"), [([0.0, 0.04], True), ([0.04, 0.0], False), ([0.0, 0.2], False)]
)
def test_the_rod_pushes_from_behind_and_near_only(axis, behind):
    assert may_push(np.array(axis), np.array([0.0, 1.0])) is behind
