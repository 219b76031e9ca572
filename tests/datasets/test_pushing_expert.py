"""The demonstrator of Pushing: every behaviour, round the other cube, honest recordings."""

from itertools import pairwise

import gymnasium
import numpy as np
import pytest

from skvdd.datasets import load_demonstrations
from skvdd.datasets.experts.pushing import (
    CLEARANCE,
    DEMONSTRATORS,
    heading_past,
    is_behind,
    point_ahead,
    way_round,
)
from skvdd.datasets.experts.recording import demonstrate
from skvdd.envs.pushing import BEHAVIORS

PUSHING = DEMONSTRATORS["pushing"]


@pytest.fixture(scope="module")
def env():
    return gymnasium.make("skvdd/Pushing-v0", disable_env_checker=True)


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_it_shows_every_behavior(env, behavior):
    # Of 240 test contexts and behaviours 239 succeed at the first attempt.
    shown = [
        demonstrate(PUSHING, env, behavior, context, np.random.default_rng(context), "test")
        for context in range(3)
    ]
    assert all(episode is not None and episode.behavior == behavior for episode in shown)
    for episode in shown:
        assert np.linalg.norm(episode.actions, axis=1).max() < 0.0105
        assert 100 < len(episode) < 400


def test_an_episode_replays_to_its_states(env):
    episode = load_demonstrations("pushing")[0]
    observation, _ = env.reset(options={"context": 0, "split": "train"})
    for state, action in zip(episode.states, episode.actions, strict=True):
        # Another processor or MuJoCo may round differently, and contacts spread that.
        np.testing.assert_allclose(observation[:6], state[:6], atol=2e-3)
        observation, _, terminated, _, info = env.step(action)
    assert terminated
    assert info == {"success": True, "behavior": episode.behavior}


# -- geometry ---------------------------------------------------------------------------------


def test_a_way_without_obstacles_is_straight():
    way = way_round(np.zeros(2), np.array([1.0, 0.0]), np.array([[0.5, 0.8]]), CLEARANCE)
    np.testing.assert_array_equal(way, [[0.0, 0.0], [1.0, 0.0]])


def test_a_way_goes_round_an_obstacle():
    centre = np.array([[0.5, 0.01]])
    way = way_round(np.zeros(2), np.array([1.0, 0.0]), centre, 0.1)
    points = np.concatenate([np.linspace(a, b, 50) for a, b in pairwise(way)])
    assert np.linalg.norm(points - centre, axis=1).min() >= 0.1
    assert points[:, 1].max() <= 1e-12  # on the nearer side
    length = np.linalg.norm(np.diff(way, axis=0), axis=1).sum()
    assert 1.0 < length < 1.03


def test_a_point_ahead_lies_along_the_way():
    way = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(point_ahead(way, 1.25), [1.0, 0.25])
    np.testing.assert_array_equal(point_ahead(way, 9.0), [1.0, 1.0])


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
    assert is_behind(np.array(axis), np.array([0.0, 1.0])) is behind
