"""The demonstrator of Block Push: both orders, every assignment, honest recordings."""

import math
from importlib.resources import as_file, files

import gymnasium
import mujoco
import numpy as np
import pytest

from skvdd.datasets import Demonstrations
from skvdd.datasets.experts import block_push as expert
from skvdd.datasets.experts.recording import demonstrate, record
from skvdd.envs.block_push import BEHAVIORS, BlockPush

DEMONSTRATOR = expert.DEMONSTRATORS["blockpush"]
MAX_STEP = 0.035  # m, of the demonstrations of the original


@pytest.fixture(scope="module")
def env():
    return gymnasium.make(DEMONSTRATOR.env_id, disable_env_checker=True)


@pytest.fixture(scope="module")
def embedded():
    with as_file(files("skvdd.datasets") / "data" / "blockpush.npz") as path:
        return Demonstrations.load(path)


# -- what it does -----------------------------------------------------------------------------


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("index", range(4))
def test_both_orders_succeed_in_test_contexts(env, behavior, index):
    rng = np.random.default_rng(index)
    episode = demonstrate(DEMONSTRATOR, env, behavior, index, rng, split="test")
    assert episode.behavior == behavior
    assert 60 <= len(episode) <= 200
    task = env.unwrapped
    remaining = np.linalg.norm(task.block_positions - task.goal, axis=1)
    assert remaining[BEHAVIORS.index(behavior)] < 0.03
    assert remaining.max() < 0.05


@pytest.mark.parametrize("assignment", [0.0, 1.0])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_every_configuration_of_goals_is_reached(env, assignment, side):
    context = BlockPush.listed_context(0)
    context[[6, 9]] = 0.4 + 0.12 * side, 0.4 - 0.12 * side
    context[12] = assignment
    for behavior in BEHAVIORS:
        rng = np.random.default_rng(0)
        assert demonstrate(DEMONSTRATOR, env, behavior, context, rng) is not None


def test_a_block_that_goes_astray_is_brought_back(env):
    observation, _ = env.reset(options={"context": 0})
    task = env.unwrapped
    act = DEMONSTRATOR.make_actor(task, BEHAVIORS[0], np.random.default_rng(0))
    terminated = kicked = False
    while not terminated:
        if task.score == 0.5 and not kicked:
            x, y = task.goal[0]
            task._blocks[0].place(x + 0.02, y - 0.12, 0.02, 0.3)
            mujoco.mj_forward(task.model(), task.data)
            observation, kicked = task._observe(), True
        observation, _, terminated, truncated, info = env.step(act(observation))
        assert not truncated
    assert kicked
    assert info["success"]


# -- how it steers ------------------------------------------------------------------------------


def test_a_free_way_is_straight():
    heading = expert.heading_around(
        np.zeros(2), np.array([1.0, 0.0]), np.array([0.5, 0.2]), clearance=0.1
    )
    np.testing.assert_array_equal(heading, [1.0, 0.0])


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_an_obstacle_is_passed_along_its_tangent(side):
    obstacle = np.array([0.5, 0.05 * side])
    heading = expert.heading_around(np.zeros(2), np.array([1.0, 0.0]), obstacle, clearance=0.1)
    assert np.linalg.norm(heading) == pytest.approx(1.0)
    assert math.copysign(1.0, heading[1]) == -side
    closest = abs(heading[0] * obstacle[1] - heading[1] * obstacle[0])
    assert closest == pytest.approx(0.1)


@pytest.mark.parametrize("goal_y", [-1e-3, 1e-3])
def test_the_way_leads_out_of_a_circle(goal_y):
    start, goal, obstacle = np.array([-0.03, 0.0]), np.array([1.0, goal_y]), np.zeros(2)
    heading = expert.heading_around(start, goal, obstacle, clearance=0.05)
    assert np.linalg.norm(start + 0.01 * heading) > 0.03


def test_a_goal_beside_an_obstacle_can_be_reached():
    position, goal, obstacle = np.array([0.5, 0.01]), np.zeros(2), np.array([0.04, 0.0])
    for _ in range(200):
        heading = expert.heading_around(position, goal, obstacle, clearance=0.05)
        position = position + min(0.01, np.linalg.norm(goal - position)) * heading
        if np.linalg.norm(goal - position) < 1e-6:
            break
    assert np.linalg.norm(goal - position) < 1e-6


# -- the recordings -----------------------------------------------------------------------------


def test_a_seed_and_a_number_decide_an_episode(embedded):
    episode = record(DEMONSTRATOR, 6, first=5, n_jobs=1, progress=False)[0]
    assert episode.behavior == embedded[5].behavior
    np.testing.assert_allclose(episode.states, embedded[5].states, rtol=0, atol=1e-3)
    other = record(DEMONSTRATOR, 6, first=5, random_state=1, n_jobs=1, progress=False)[0]
    assert len(other) != len(episode) or (other.states != episode.states).any()


def test_the_embedded_set_is_balanced_and_described(embedded):
    assert embedded.name == "blockpush"
    assert [embedded.behaviors.count(behavior) for behavior in BEHAVIORS] == [
        len(embedded) // 2
    ] * 2
    metadata = embedded.metadata
    assert metadata["environment"] == DEMONSTRATOR.env_id
    assert metadata["version"] == DEMONSTRATOR.version
    assert metadata["attempts_per_episode"] < 1.05
    assert len(metadata["states"]) == embedded[0].states.shape[1] == 10
    assert len(metadata["actions"]) == embedded[0].actions.shape[1] == 2


def test_recordings_contain_jerks_and_a_wandering_heading(embedded):
    actions = embedded.windows()[1]
    jerky = np.linalg.norm(actions, axis=1) > max(*expert.APPROACH_SPEED, *expert.PUSH_SPEED) + 1e-6
    expected = expert.JERK_RATE * (expert.JERK_LENGTH[1] - 0.03) / np.ptp(expert.JERK_LENGTH)
    assert jerky.mean() == pytest.approx(expected, rel=0.3)
    turns = np.diff(np.arctan2(*embedded[0].actions.T[::-1]))
    assert 0.1 < np.abs((turns + np.pi) % (2 * np.pi) - np.pi).mean() < 1.0


def test_steps_are_bounded_and_episodes_short(embedded):
    lengths = np.array([len(episode) for episode in embedded])
    assert 100 < lengths.mean() < 140
    assert lengths.max() < 200
    steps = np.linalg.norm(embedded.windows()[1], axis=1)
    assert 0.0 < steps.min() < steps.max() < MAX_STEP


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_recorded_episodes_are_replayed(env, embedded, index):
    # Elsewhere another MuJoCo or processor may move the last bits, so not bit for bit.
    episode = embedded[index]
    observation, info = env.reset(options={"context": index, "split": "train"})
    terminated = False
    for state, action in zip(episode.states, episode.actions, strict=True):
        assert not terminated
        np.testing.assert_allclose(observation, state, rtol=0, atol=1e-3)
        observation, _, terminated, _, info = env.step(action)
    assert terminated
    assert info["success"]
    assert info["behavior"] == episode.behavior
