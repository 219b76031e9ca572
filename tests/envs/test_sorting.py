"""Sorting against its specification."""

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
from skvdd.envs.sorting import CELLS, Sorting2, Sorting4, Sorting6, color_orders, d3il_key

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = (Sorting2, Sorting4, Sorting6)
IDS = ("skvdd/Sorting2-v0", "skvdd/Sorting4-v0", "skvdd/Sorting6-v0")
FALLEN, STANDING = 0.011, 0.13  # m, heights of a block's center


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def put(env, *places, z=FALLEN):
    """Place the blocks at (x, y), upright and at rest."""
    for block, (x, y) in zip(env.blocks, places, strict=True):
        block.place(x, y, z, 0.0)
    mujoco.mj_forward(env.model(), env.data)


def put_and_judge(env, *places):
    put(env, *places)
    env._keep_books()
    return env._info()


@pytest.fixture
def env():
    env = Sorting2()
    env.reset(seed=0)
    return env


# -- the contract -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*A Box observation space m.*infinity")  # as it should be
@pytest.mark.parametrize("name", IDS)
def test_gymnasium_finds_nothing_to_complain_about(name):
    check_env(gymnasium.make(name).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("task", TASKS)
def test_the_classes_are_reexported(task):
    assert getattr(skvdd.envs, task.__name__) is task


@pytest.mark.parametrize(
    ("task", "n_numbers", "n_behaviors"), [(Sorting2, 10, 2), (Sorting4, 16, 6), (Sorting6, 22, 20)]
)
def test_sizes(task, n_numbers, n_behaviors):
    env = task()
    observation, info = env.reset(seed=3)
    assert observation.shape == env.observation_space.shape == (n_numbers,)
    assert observation.dtype == np.float64
    assert info == {"success": False, "behavior": None}
    assert len(color_orders(task.n_blocks)) == n_behaviors
    assert task.context_size == env.context.size == 3 * task.n_blocks


@pytest.mark.parametrize(("name", "limit"), list(zip(IDS, (500, 700, 1200), strict=True)))
def test_time_limits(name, limit):
    assert gymnasium.spec(name).max_episode_steps == limit


def test_info_can_be_written_as_json(env):
    info = env.step([0.0, 0.0])[4]
    assert json.loads(json.dumps(info)) == {"success": False, "behavior": None}


def test_the_observation_shows_set_point_tool_and_blocks(env):
    context = [0.45, -0.1, 0.3, 0.6, 0.05, -1.2]
    observation, _ = env.reset(options={"context": context})
    tool = env.tcp_position
    np.testing.assert_allclose(tool, [0.5251, -0.2993, 0.2515], atol=1e-4)
    np.testing.assert_array_equal(observation[:4], [*tool[:2], *tool[:2]])
    blocks = [0.45, -0.1, math.tan(0.3), 0.6, 0.05, math.tan(-1.2)]
    np.testing.assert_allclose(observation[4:], blocks, rtol=1e-12)
    after, *_ = env.step([0.003, -0.004])
    np.testing.assert_array_equal(after[:2], tool[:2] + np.array([0.003, -0.004]))
    np.testing.assert_array_equal(after[2:], observation[2:])


def test_the_yaw_of_a_tilted_block_is_that_of_the_original(env):
    quaternion = np.array([0.5, 0.1, -0.4, 0.3])
    quaternion /= np.linalg.norm(quaternion)
    env.data.qpos[env.model().joint("blue1").qposadr[0] + 3 :][:4] = quaternion
    mujoco.mj_forward(env.model(), env.data)
    rotation = env.data.body("blue1").xmat.reshape(3, 3)
    assert env._observe()[9] == pytest.approx(-rotation[0, 1] / rotation[0, 0], rel=1e-9)


def test_tangents_are_clipped_near_a_quarter_turn(env):
    for yaw, shown in ((1.57, 100.0), (-1.57, -100.0), (1.55, math.tan(1.55))):
        observation, _ = env.reset(options={"context": [0.45, -0.1, yaw, 0.6, 0.05, 0.0]})
        assert observation[6] == pytest.approx(shown, rel=1e-9)


# -- contexts -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_blocks_start_in_different_cells(task):
    used = set()
    for i in range(60):
        poses = task.listed_context(i).reshape(-1, 3)
        cells = [
            number
            for x, y, yaw in poses
            for number, (x0, x1, y0, y1) in enumerate(CELLS)
            if x0 <= x <= x1 and y0 <= y <= y1 and abs(yaw) <= math.pi / 2
        ]
        assert len(set(cells)) == len(poses) == task.n_blocks
        used.add(tuple(cells))
    assert len(used) > 15


def test_blocks_of_neighboring_cells_move_apart_gently():
    env = Sorting6()
    for i in range(10):
        before = env.reset(options={"context": i})[0][4:].reshape(-1, 3)
        for _ in range(20):
            after, *_ = env.step([0.0, 0.0])
        shift = after[4:].reshape(-1, 3) - before
        assert np.abs(shift[:, :2]).max() < 0.02
        assert all(abs(block.position[2] - STANDING) < 0.001 for block in env.blocks)


def test_the_same_start_and_actions_give_the_same_episode_to_the_last_bit():
    actions = np.random.default_rng(0).uniform(-0.01, 0.012, (60, 2))
    for options in ({"seed": 5}, {"options": {"context": 7}}):
        episodes = []
        for _ in range(2):
            env = Sorting4()
            for _ in range(2):
                start, _ = env.reset(**options)
                episodes.append([start, *(env.step(action)[0] for action in actions)])
        for other in episodes[1:]:
            np.testing.assert_array_equal(other, episodes[0])


# -- the scene ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "x", "y", "half_size"),
    [
        ("platform", 0.5, -0.1, (0.3, 0.3, 0.1)),
        ("r_back", 0.4, 0.41, (0.1, 0.01, 0.1)), ("b_back", 0.625, 0.41, (0.1, 0.01, 0.1)),
        ("r_left", 0.3, 0.32, (0.005, 0.1, 0.1)), ("b_left", 0.525, 0.32, (0.005, 0.1, 0.1)),
        ("r_right", 0.5, 0.32, (0.005, 0.1, 0.1)), ("b_right", 0.725, 0.32, (0.005, 0.1, 0.1)),
        ("r_front", 0.4, 0.22, (0.1, 0.005, 0.1)), ("b_front", 0.625, 0.22, (0.1, 0.005, 0.1)),
    ],
)  # fmt: skip
def test_platform_and_walls_stand_where_they_should(name, x, y, half_size):
    geom = Sorting2.model().geom(name)
    np.testing.assert_allclose(geom.pos, [x, y, 0.0], atol=1e-12)
    np.testing.assert_allclose(geom.size, half_size, atol=1e-12)


def test_the_rod_ends_at_the_height_of_the_blocks_centers(env):
    assert env.tcp_position[2] - 0.12 == pytest.approx(STANDING, abs=0.002)


def test_blocks_fall_into_the_bins_and_stay_on_the_platform(env):
    put(env, (0.4, 0.30), (0.6, 0.0), z=STANDING)
    for _ in range(30):
        env.step([0.0, 0.0])
    np.testing.assert_allclose(env.blocks[0].position, [0.4, 0.30, FALLEN], atol=0.002)
    np.testing.assert_allclose(env.blocks[1].position, [0.6, 0.0, STANDING], atol=0.002)


def test_a_push_brings_a_block_over_the_edge(env):
    env.reset(options={"context": [0.45, 0.1, 0.0, 0.6, -0.1, 0.0]})
    for action in 10 * [[-0.0075, 0.0]] + 80 * [[0.0, 0.0075]]:
        env.step(action)
    x, y, z = env.blocks[0].position
    assert 0.3 < x < 0.5
    assert 0.22 < y < 0.41
    assert z < 0.1
    assert env._order == [0]
    assert env.blocks[1].position[1] == pytest.approx(-0.1, abs=1e-3)


# -- success ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("red", "blue", "success"),
    [
        ((0.40, 0.32), (0.625, 0.32), True),
        ((0.301, 0.221), (0.526, 0.221), True), ((0.499, 0.409), (0.724, 0.409), True),
        ((0.299, 0.32), (0.625, 0.32), False), ((0.501, 0.32), (0.625, 0.32), False),
        ((0.40, 0.219), (0.625, 0.32), False), ((0.40, 0.411), (0.625, 0.32), False),
        ((0.40, 0.32), (0.524, 0.32), False), ((0.40, 0.32), (0.726, 0.32), False),
        ((0.40, 0.32), (0.625, 0.219), False), ((0.40, 0.32), (0.625, 0.411), False),
        ((0.40, 0.22), (0.625, 0.32), False), ((0.40, 0.32), (0.625, 0.41), False),
        ((0.625, 0.32), (0.40, 0.32), False),
    ],
)  # fmt: skip
def test_success_is_a_matter_of_rectangles(env, red, blue, success):
    assert put_and_judge(env, red, blue)["success"] is success


def test_height_does_not_count(env):
    put(env, (0.4, 0.32), (0.625, 0.32), z=0.4)
    env._keep_books()
    assert env._info()["success"]


def test_success_is_reported_one_step_later(env):
    put(env, (0.4, 0.32), (0.625, 0.32))
    steps = [env.step([0.0, 0.0])[1:] for _ in range(2)]
    (reward, terminated, _, info), (late_reward, late_terminated, truncated, late_info) = steps
    assert (reward, terminated, info["success"], info["behavior"]) == (1.0, False, True, None)
    assert (late_reward, late_terminated, truncated) == (0.0, True, False)
    assert late_info["success"]
    assert late_info["behavior"] in ("rb", "br")


def test_success_that_the_extra_step_loses_is_none(env):
    put(env, (0.4, 0.32), (0.625, 0.32))
    env.step([0.0, 0.0])
    put(env, (0.4, 0.32), (0.625, 0.0), z=STANDING)
    _, reward, terminated, _, info = env.step([0.0, 0.0])
    assert (reward, terminated, info["success"]) == (-1.0, True, False)


# -- behaviors -----------------------------------------------------------------------------

IN_RED, IN_BLUE, OUTSIDE = (0.4, 0.3), (0.62, 0.3), (0.5, -0.1)


@pytest.mark.parametrize(
    ("first", "behavior"), [((IN_RED, OUTSIDE), "rb"), ((OUTSIDE, IN_BLUE), "br")]
)
def test_the_behavior_is_the_order_of_arrival(env, first, behavior):
    assert put_and_judge(env, *first) == {"success": False, "behavior": None}
    assert put_and_judge(env, IN_RED, IN_BLUE) == {"success": True, "behavior": behavior}


def test_one_block_is_recorded_per_step_the_one_nearest_to_its_bins_center_first(env):
    assert put_and_judge(env, (0.4, 0.35), (0.625, 0.33))["behavior"] is None
    assert env._order == [1]
    assert put_and_judge(env, (0.4, 0.35), (0.625, 0.33))["behavior"] == "br"


def test_a_block_without_its_bin_hides_those_farther_from_theirs(env):
    put_and_judge(env, (0.4, 0.412), (0.54, 0.23))  # 0.092 and 0.124 m from their centers
    assert env._order == []


def test_a_block_in_the_other_bin_is_not_recorded(env):
    put_and_judge(env, IN_BLUE, OUTSIDE)
    assert env._order == []


def test_a_recorded_block_stays_recorded_where_it_goes(env):
    put_and_judge(env, IN_RED, OUTSIDE)
    put_and_judge(env, OUTSIDE, OUTSIDE)
    assert put_and_judge(env, OUTSIDE, IN_BLUE) == {"success": False, "behavior": "rb"}
    assert put_and_judge(env, IN_RED, IN_BLUE) == {"success": True, "behavior": "rb"}
    env.reset()
    assert env._info() == {"success": False, "behavior": None}


def test_blocks_of_one_color_are_alike():
    env = Sorting4()
    env.reset(seed=0)
    in_red, in_blue = [(0.35, 0.3), (0.45, 0.3)], [(0.58, 0.3), (0.67, 0.3)]
    put_and_judge(env, OUTSIDE, in_red[1], (0.6, 0.0), (0.4, 0.0))
    put_and_judge(env, OUTSIDE, in_red[1], (0.6, 0.0), in_blue[1])
    put_and_judge(env, OUTSIDE, in_red[1], *in_blue)
    assert put_and_judge(env, *in_red, *in_blue) == {"success": True, "behavior": "rbbr"}


@pytest.mark.parametrize(("n_blocks", "keys"), [(2, {64, 128}), (4, {48, 80, 96, 144, 160, 192})])
def test_keys_are_those_of_the_original(n_blocks, keys):
    assert {d3il_key(behavior) for behavior in color_orders(n_blocks)} == keys


def test_there_are_20_orders_of_six_blocks():
    orders = color_orders(6)
    keys = [d3il_key(order) for order in orders]
    assert keys == sorted(set(keys))
    assert len(orders) == 20
    assert all(order.count("r") == order.count("b") == 3 for order in orders)
    assert all(key.bit_count() == 3 and key % 4 == 0 for key in keys)


@pytest.mark.parametrize("behavior", ["", "b", "rrb", "rg", "rbrbrbrbrb"])
def test_what_is_no_order_has_no_key(behavior):
    with refused(
        "behavior must be equally many 'r' and 'b' in the order of arrival, such as 'rrbb', "
        f"got {behavior!r}."
    ):
        d3il_key(behavior)


# -- misbehaving policies ------------------------------------------------------------------


def absurd_actions(rng, n):
    """Yield n actions, a fifth each small, huge, of all sizes, alternating and constant."""
    n //= 5
    yield from rng.uniform(-0.01, 0.01, (n, 2))
    yield from rng.normal(0.0, 0.1, (n, 2))
    yield from rng.choice([-1.0, 0.0, 1.0], (n, 2)) * 10.0 ** rng.integers(-320, 308, (n, 1))
    yield from np.tile([[0.3, 0.5], [-0.3, -0.5]], (n // 2, 1))
    yield from np.tile([0.004, 0.009], (n // 4, 1))  # through the blocks, leave beside the bins
    yield from np.tile([0.0, -0.05], (n // 4, 1))
    yield from np.tile([-0.05, 0.05], (n // 4, 1))
    yield from np.tile([0.05, 0.0], (n // 4, 1))


@pytest.mark.parametrize(
    ("task", "n_steps"), [(Sorting2, 2000), (Sorting4, 1600), (Sorting6, 1200)]
)
def test_absurd_actions_break_nothing(task, n_steps):
    env = task()
    env.reset(seed=1)
    for step, action in enumerate(absurd_actions(np.random.default_rng(0), n_steps)):
        observation, *_ = env.step(action)
        assert observation in env.observation_space
        assert np.isfinite(observation).all()
        assert abs(env.tcp_position[2] - 0.25) < 0.35
        if step % 400 == 399:  # new blocks where the old ones have been thrown off
            assert not env.data.warning.number.any()
            env.reset()
    assert np.isfinite(env.data.qacc).all()


def test_the_tool_arrives_at_the_edge_of_reach(env):
    observation, *_ = env.step([5.0, 5.0])
    assert np.hypot(*observation[:2]) == pytest.approx(0.786, abs=1e-3)
    for _ in range(130):  # the soft arm swings for seconds after such a jump
        observation, *_ = env.step([0.0, 0.0])
    np.testing.assert_allclose(observation[2:4], observation[:2], rtol=0, atol=0.006)


# -- pictures -------------------------------------------------------------------------------

RENDER = """
import sys
import mujoco
import numpy as np
from skvdd.envs.sorting import Sorting6
try:
    mujoco.GLContext(8, 8).free()
except Exception:
    sys.exit(77)
env = Sorting6(render_mode="rgb_array", width=96, height=96)
env.reset(seed=0)
red, green, blue = env.render().astype(int).transpose(2, 0, 1)
env.close()
assert (red > 2 * np.maximum(green, blue)).mean() > 0.01
assert (blue > 2 * np.maximum(green, red)).mean() > 0.01
"""


@pytest.mark.rendering
def test_a_picture_shows_blocks_and_bins():
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
