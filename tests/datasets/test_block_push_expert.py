"""The demonstrator of Block Push: both orders, every assignment, honest recordings."""

import gymnasium
import mujoco
import numpy as np
import pytest

from skvdd.datasets import load_demonstrations
from skvdd.datasets.experts import block_push as expert
from skvdd.datasets.experts.recording import demonstrate
from skvdd.envs.block_push import BEHAVIORS, BlockPush

MAX_STEP = 0.035  # m, of the demonstrations of the original


@pytest.fixture(scope="module")
def env():
    return gymnasium.make("skvdd/BlockPush-v0", disable_env_checker=True)


@pytest.fixture(scope="module")
def embedded():
    return load_demonstrations("blockpush")


# -- what it does -----------------------------------------------------------------------------


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("index", range(4))
def test_both_orders_succeed_in_test_contexts(env, behavior, index):
    rng = np.random.default_rng(index)
    episode = demonstrate(expert.DEMONSTRATOR, env, behavior, rng, options={"context": index})
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
        start = {"context": context}
        assert demonstrate(expert.DEMONSTRATOR, env, behavior, rng, options=start) is not None


def test_a_block_that_goes_astray_is_brought_back(env):
    observation, _ = env.reset(options={"context": 0})
    task = env.unwrapped
    act = expert.DEMONSTRATOR.make_actor(task, BEHAVIORS[0], np.random.default_rng(0))
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


# -- the recordings -----------------------------------------------------------------------------


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
