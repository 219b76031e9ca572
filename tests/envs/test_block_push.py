"""Block Push against its specification, and against policies that misbehave."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import skvdd.envs
from skvdd.envs.block_push import BEHAVIORS, OVERSHOOT, START, WORKSPACE, BlockPush

REPOSITORY = Path(__file__).resolve().parents[2]

# Block and block2, target on the far side, target2 on the near side: x, y, yaw.
POSES = [0.35, -0.2, 1.2, 0.48, -0.1, 2.0, 0.52, 0.2, math.pi, 0.28, 0.2, math.pi]
TARGET, TARGET2 = np.array([0.52, 0.2]), np.array([0.28, 0.2])
STRAIGHT, CROSSED = [*POSES, 0.0], [*POSES, 1.0]


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture
def env():
    env = BlockPush()
    env.reset(options={"context": STRAIGHT})
    return env


@pytest.fixture
def crossed():
    env = BlockPush()
    env.reset(options={"context": CROSSED})
    return env


def put(env, block=None, block2=None):
    """Put blocks somewhere by hand."""
    for body, position in zip(env._blocks, (block, block2), strict=True):
        if position is not None:
            body.place(*position, 0.02, 0.0)
    mujoco.mj_forward(env.model(), env.data)


def stand(env):
    """Return reward, end and info of a step that moves nothing."""
    _, reward, terminated, truncated, info = env.step([0.0, 0.0])
    assert not truncated
    return reward, terminated, info


# -- the contract -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # blocks can go anywhere
def test_gymnasium_finds_nothing_to_complain_about():
    check_env(gymnasium.make("skvdd/BlockPush-v0").unwrapped, skip_render_check=True)


def test_the_class_is_reexported():
    assert skvdd.envs.BlockPush is BlockPush


def test_an_episode_starts_as_the_context_says(env):
    observation, info = env.reset(options={"context": CROSSED})
    np.testing.assert_allclose(observation[:6], POSES[:6], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(observation[6:], [*START, *START])
    np.testing.assert_array_equal(env.context, CROSSED)
    assert info == {"success": False, "behavior": None, "score": 0.0, "goal": [*TARGET2, *TARGET]}
    assert env.reset(options={"context": STRAIGHT})[1]["goal"] == [*TARGET, *TARGET2]
    assert not np.abs(env.data.qvel).max() > 1e-6


def test_targets_are_drawn_where_they_count(env):
    places = [env.data.body(name).xpos for name in ("target", "target2")]
    np.testing.assert_array_equal(places, [[*TARGET, 0.0], [*TARGET2, 0.0]])


def test_the_observation_shows_the_state_after_the_action(env):
    observation, *_ = env.step([0.03, -0.02])
    np.testing.assert_allclose(observation[8:], [0.33, -0.42], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(observation[6:8], env.rod_position)
    np.testing.assert_array_equal(observation[8:], env.command)
    np.testing.assert_array_equal(observation[[0, 1, 3, 4]], env.block_positions.ravel())
    arrived = 1.0 - math.exp(-0.1 / 0.04)
    np.testing.assert_allclose(
        observation[6:8] - START, arrived * np.array([0.03, -0.02]), atol=1e-3
    )


def test_info_can_be_written_as_json(env):
    info = env.step([0.0, 0.0])[4]
    assert json.loads(json.dumps(info)) == info


def test_stepping_before_reset_says_so():
    with refused("Call reset() before step() and before command.", gymnasium.error.ResetNeeded):
        BlockPush().step([0.0, 0.0])


def test_an_assignment_is_zero_or_one(env):
    with refused(
        "context must end with the assignment, 0 (block to target) or 1 (block to target2), got "
        "2.0."
    ):
        env.reset(options={"context": [*POSES, 2.0]})


def test_an_episode_ends_after_299_steps():
    env = gymnasium.make("skvdd/BlockPush-v0")
    env.reset(seed=0)
    ends = [env.step(np.zeros(2))[2:4] for _ in range(299)]
    assert ends == [(False, False)] * 298 + [(False, True)]


def test_the_same_actions_give_the_same_episode_to_the_last_bit():
    actions = np.random.default_rng(0).normal([0.001, 0.01], 0.02, (40, 2))
    for start in ({"seed": 3}, {"options": {"context": 2}}, {"options": {"context": CROSSED}}):
        runs = []
        for _ in range(2):
            env = BlockPush()
            for _ in range(2):
                first, _ = env.reset(**start)
                runs.append([first, *(env.step(action)[0] for action in actions)])
        for run in runs[1:]:
            np.testing.assert_array_equal(run, runs[0])


# -- contexts -----------------------------------------------------------------------------


def test_contexts_are_drawn_as_specified():
    rng = np.random.default_rng(0)
    contexts = np.array([BlockPush.draw_context(rng) for _ in range(4000)])
    blocks, targets = contexts[:, :6].reshape(-1, 2, 3), contexts[:, 6:12].reshape(-1, 2, 3)
    np.testing.assert_allclose(blocks.min((0, 1)), [0.3, -0.35, 1.0], atol=0.003)
    np.testing.assert_allclose(blocks.max((0, 1)), [0.5, -0.05, math.pi], atol=0.003)
    assert np.abs(np.diff(blocks[:, :, 0], axis=1)).min() > 0.1
    offsets = targets[:, :, 0] - 0.4
    assert (np.sign(offsets[:, 0]) == -np.sign(offsets[:, 1])).all()
    assert 0.115 <= np.abs(offsets).min() < np.abs(offsets).max() <= 0.125
    assert 0.1925 <= targets[..., 1].min() < targets[..., 1].max() <= 0.2075
    assert np.abs(targets[..., 2] - math.pi).max() <= math.pi / 30
    layouts, counts = np.unique([offsets[:, 0] > 0, contexts[:, 12]], axis=1, return_counts=True)
    assert layouts.shape == (2, 4)
    assert np.abs(counts / 1000 - 1.0).max() < 0.1


# -- score, reward, success, behavior ------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "score"),
    [((0.049, 0.0), 0.5), ((0.051, 0.0), 0.0), ((0.035, -0.035), 0.5), ((-0.036, 0.036), 0.0)],
)
def test_a_block_is_in_a_target_within_five_centimetres(env, shift, score):
    put(env, block=TARGET + shift)
    reward, terminated, info = stand(env)
    assert (reward, terminated, info["score"]) == (score, False, score)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(("context", "wanted"), [(STRAIGHT, (0, 1)), (CROSSED, (1, 0))])
def test_wanted_pairs_are_worth_a_half_each_and_their_order_is_the_behavior(
    env, context, wanted, order
):
    env.reset(options={"context": context})
    names, targets = ("block", "block2"), (TARGET, TARGET2)
    put(env, **{names[order[0]]: targets[wanted[order[0]]]})
    reward, terminated, info = stand(env)
    assert (reward, terminated, info["success"], info["behavior"]) == (0.5, False, False, None)
    assert stand(env)[0] == 0.0, "a pair counts once"
    put(env, **{names[order[1]]: targets[wanted[order[1]]]})
    reward, terminated, info = stand(env)
    assert (reward, terminated, info["success"], info["score"]) == (0.5, True, True, 1.0)
    assert info["behavior"] == f"{names[order[0]]} first"
    assert info["behavior"] in BEHAVIORS


def test_the_other_assignment_ends_the_episode_without_success(crossed):
    put(crossed, TARGET, TARGET2)
    reward, terminated, info = stand(crossed)
    assert (reward, terminated) == (0.0, True)
    assert (info["success"], info["behavior"], info["score"]) == (False, None, 0.0)


def test_two_blocks_in_one_target_end_nothing(env):
    shift = np.array([0.022, 0.0])
    put(env, TARGET - shift, TARGET + shift)
    reward, terminated, info = stand(env)
    assert (reward, terminated, info["success"], info["score"]) == (0.5, False, False, 0.5)


def test_a_visit_to_the_wrong_target_costs_nothing(env):
    put(env, block=TARGET2)
    assert stand(env)[:2] == (0.0, False)
    put(env, block2=(0.28, 0.245))
    assert stand(env)[:2] == (0.5, False)
    put(env, block=TARGET)
    reward, terminated, info = stand(env)
    assert (reward, terminated, info["behavior"]) == (0.5, True, "block2 first")


def test_a_completed_pair_remains_one_but_success_needs_both_at_once(env):
    put(env, block=TARGET)
    stand(env)
    put(env, (0.4, -0.3), TARGET2)
    reward, terminated, info = stand(env)
    assert (reward, terminated) == (0.5, False)
    assert (info["score"], info["success"], info["behavior"]) == (1.0, False, None)
    put(env, block=TARGET)
    reward, terminated, info = stand(env)
    assert (reward, terminated, info["success"]) == (0.0, True, True)
    assert info["behavior"] == "block first"


def test_of_two_pairs_in_one_step_the_block_counts_as_first(crossed):
    put(crossed, TARGET2, TARGET)
    reward, terminated, info = stand(crossed)
    assert (reward, terminated, info["behavior"]) == (1.0, True, "block first")


def test_a_new_episode_forgets_the_last(env):
    put(env, TARGET, TARGET2)
    stand(env)
    _, info = env.reset(options={"context": STRAIGHT})
    assert (info["success"], info["score"]) == (False, 0.0)
    put(env, block=TARGET)
    assert stand(env)[0] == 0.5


# -- the simulation -------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.005, 0.02, 0.034])
def test_a_block_is_pushed_ahead_of_the_rod_and_stays_flat(env, step):
    env.reset(options={"context": [0.3, -0.3, math.pi / 2, *STRAIGHT[3:]]})
    observations, heights, upright = [], [], []
    for _ in range(math.ceil(0.2 / step)):
        observations.append(env.step([0.0, step])[0])
        heights.append(env.data.body("block").xpos[2])
        upright.append(env.data.body("block").xmat[8])
    np.testing.assert_allclose(heights, 0.02, rtol=0, atol=0.001)
    np.testing.assert_allclose(upright, 1.0, rtol=0, atol=0.001)
    x, y, yaw, *_, rod_y, _, _ = observations[-1]
    assert x == pytest.approx(0.3, abs=0.002)
    assert 0.023 < y - rod_y < 0.035, "next to the rod; a fast one lets it slide on a little"
    assert yaw == pytest.approx(math.pi / 2, abs=0.1)


def test_a_block_that_is_let_go_stops(env):
    env.reset(options={"context": [0.3, -0.2, math.pi / 2, *STRAIGHT[3:]]})
    for _ in range(8):
        env.step([0.0, 0.03])
    env.step([0.0, -0.03])
    before = env.block_positions
    env.step([0.0, 0.0])
    np.testing.assert_allclose(env.block_positions, before, rtol=0, atol=1e-5)


def test_the_command_keeps_to_the_workspace(env):
    observation, *_ = env.step([1e300, -5.0])
    np.testing.assert_array_equal(observation[8:], [0.7, -0.5])
    observation, *_ = env.step([-0.1, 0.1])
    np.testing.assert_allclose(observation[8:], [0.6, -0.4], rtol=0, atol=1e-12)


RNG = np.random.default_rng(0)
MAGNITUDES = 10.0 ** RNG.integers(-320, 308, (1000, 1))
CORNERS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
MISBEHAVIOR = {
    "uniform": RNG.uniform(-0.1, 0.1, (1000, 2)),
    "gaussian": RNG.normal(0.0, 0.3, (1000, 2)),
    "any magnitude": MAGNITUDES * RNG.choice([-1.0, 0.0, 1.0], (1000, 2)),
    "corner to corner": np.tile(CORNERS, (250, 1)),
    "to and fro": np.tile([[0.0, 0.2], [0.0, -0.2]], (500, 1)),
    "constant": np.repeat(0.05 * CORNERS, 250, axis=0),
}


@pytest.mark.parametrize("kind", MISBEHAVIOR)
def test_absurd_actions_break_nothing(env, kind):
    for i, action in enumerate(MISBEHAVIOR[kind]):
        if i % 250 == 0:
            assert not env.data.warning.number.any()  # a reset forgets them
            env.reset(seed=i)
        observation, *_ = env.step(action)
        assert observation in env.observation_space
    assert not env.data.warning.number.any()
    assert np.isfinite(env.data.qacc).all()


def test_the_rod_does_not_leave_the_workspace(env):
    lower, upper = WORKSPACE - [[OVERSHOOT], [-OVERSHOOT]]
    np.testing.assert_array_equal(env.observation_space.low[6:8], lower)
    np.testing.assert_array_equal(env.observation_space.high[6:8], upper)
    for corner in 4.0 * CORNERS:
        for _ in range(5):
            env.step(corner)
        assert (np.abs(env.rod_position - env.command) < 1e-3).all()


# -- pictures -------------------------------------------------------------------------------

RENDER = """
import sys, mujoco
try:
    mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
except Exception:
    sys.exit(77)
import gymnasium
import skvdd.envs

for camera in ("view", "agent"):
    env = gymnasium.make(
        "skvdd/BlockPush-v0", render_mode="rgb_array", width=160, height=120, camera=camera
    )
    env.reset(options={"context": 0})
    first = env.render().astype(int)
    assert first.shape == (120, 160, 3) and first.std() > 20
    red, green, blue = first.transpose(2, 0, 1)
    assert ((red > 120) & (green < 100) & (blue < 100)).sum() > 20, "no red block in sight"
    assert ((green > 120) & (red < 100) & (blue < 100)).sum() > 20, "no green block in sight"
    for _ in range(5):
        env.step([0.0, 0.03])
    assert (first != env.render()).any()
    env.close()
"""


@pytest.mark.rendering
def test_rendering():
    # In a process of its own: which OpenGL is used is settled when MuJoCo is imported.
    done = subprocess.run(
        [sys.executable, "-c", RENDER],
        cwd=REPOSITORY,
        env={"MUJOCO_GL": "egl", **os.environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("no OpenGL without a display here")
    assert done.returncode == 0, done.stderr
