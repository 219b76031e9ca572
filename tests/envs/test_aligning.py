"""Aligning against its specification."""

import json
import math
import re
import warnings

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import skvdd.envs
from skvdd.envs.aligning import (
    BEHAVIORS,
    INSIDE,
    MAX_HEIGHT,
    MIN_HEIGHT,
    OUTSIDE,
    START_MAX,
    START_MIN,
    Aligning,
    behavior_name,
)

CONTEXT = np.array([0.5, -0.2, 0.3, 0.45, 0.3, -1.0])
REST = -0.0091  # m, height of the tray at rest


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture
def env():
    env = Aligning()
    env.reset(options={"context": CONTEXT})
    return env


def put_tray(env, dx=0.0, dy=0.0, turn=0.0, z=REST):
    """Put the tray at rest, relative to the target."""
    x, y, yaw = env.context[3:]
    env._tray.place(x + dx, y + dy, z, yaw + turn)
    mujoco.mj_forward(env.model(), env.data)


def lead(env, goal, speed=0.007, n_wait=15):
    """Lead the set-point straight to a goal and wait there; return the last step's results."""
    n_steps = math.ceil(np.linalg.norm(goal - env.set_point) / speed)
    for action in np.tile((goal - env.set_point) / n_steps, (n_steps, 1)):
        env.step(action)
    for _ in range(n_wait):
        result = env.step(np.zeros(3))
    return result


# -- the contract -------------------------------------------------------------------------


def test_gymnasium_finds_nothing_to_complain_about():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box observation space m.*infinity")
        check_env(gymnasium.make("skvdd/Aligning-v0").unwrapped, skip_render_check=True)


def test_the_class_is_reexported():
    assert skvdd.envs.Aligning is Aligning
    assert gymnasium.make("skvdd/Aligning-v0").spec.max_episode_steps == 400


def test_an_episode_starts_as_its_context_says(env):
    observation, info = env.reset(options={"context": CONTEXT})
    np.testing.assert_allclose(observation[:3], [0.525, -0.3488, 0.2516], atol=1e-4)
    np.testing.assert_array_equal(observation[3:6], observation[:3])
    tray = [0.5, -0.2, 0.0, math.cos(0.15), 0.0, 0.0, math.sin(0.15)]
    target = [0.45, 0.3, 0.0, math.cos(-0.5), 0.0, 0.0, math.sin(-0.5)]
    np.testing.assert_allclose(observation[6:], tray + target, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(env.context, CONTEXT)
    assert info == {"success": False, "behavior": OUTSIDE}


def test_contexts_are_drawn_from_the_two_regions():
    contexts = np.array([Aligning.draw_context(np.random.default_rng(i)) for i in range(500)])
    low, high = np.ravel(START_MIN), np.ravel(START_MAX)
    assert (contexts >= low).all()
    assert (contexts <= high).all()
    np.testing.assert_allclose(contexts.min(axis=0), low, atol=0.02 * (high - low).max())
    np.testing.assert_allclose(contexts.max(axis=0), high, atol=0.02 * (high - low).max())


def test_the_observation_pairs_the_new_set_point_with_the_old_measurement(env):
    tool = env.tcp_position
    action = np.array([0.002, 0.007, -0.003])
    observation, reward, terminated, truncated, _ = env.step(action)
    np.testing.assert_array_equal(observation[:3], tool + action)
    np.testing.assert_array_equal(observation[3:6], tool)
    np.testing.assert_array_equal(observation[6:9], [0.5, -0.2, 0.0])
    assert (reward, terminated, truncated) == (0.0, False, False)
    tool, tray = env.tcp_position, env._tray.position
    observation, *_ = env.step(np.zeros(3))
    np.testing.assert_array_equal(observation[3:6], tool)
    np.testing.assert_array_equal(observation[6:9], tray)


def test_the_tray_falls_to_the_table_and_stays(env):
    for _ in range(20):
        env.step(np.zeros(3))
    np.testing.assert_allclose(env._tray.position, [0.5, -0.2, REST], atol=1e-4)
    assert env._tray.yaw == pytest.approx(0.3, abs=1e-4)


def test_info_can_be_written_as_json(env):
    info = env.step(np.zeros(3))[4]
    assert json.loads(json.dumps(info)) == {"success": False, "behavior": OUTSIDE}


@pytest.mark.parametrize("start", [{"seed": 3}, {"options": {"context": 7, "split": "train"}}])
def test_the_same_actions_give_the_same_episode_to_the_last_bit(start):
    actions = np.random.default_rng(0).uniform(-0.01, 0.01, (40, 3))
    actions[:, 1] = np.abs(actions[:, 1])  # into the tray
    observations = []
    for _ in range(2):
        env = Aligning()
        for _ in range(2):
            env.reset(**start)
            observations.append([env.step(action)[0] for action in actions])
    for other in observations[1:]:
        np.testing.assert_array_equal(other, observations[0])


# -- success ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dx", "dy", "degrees", "success"),
    [
        (0.0, 0.0, 0.0, True),
        (0.0155, 0.0, 0.0, True),  # sqrt(0.018^2 - 0.0091^2) = 0.01553
        (0.0156, 0.0, 0.0, False),
        (0.0109, -0.0109, 0.0, True),
        (0.0111, -0.0111, 0.0, False),
        (0.0, 0.0, 8.6, True),
        (0.0, 0.0, -8.6, True),
        (0.0, 0.0, 8.7, False),
        (0.0, 0.0, 90.0, False),  # the colors of the walls count
        (0.0, 0.0, 360.0 - 8.6, True),
        (0.01, 0.01, 8.0, True),
        (0.02, 0.0, 8.0, False),
    ],
)
def test_success_needs_both_place_and_direction(env, dx, dy, degrees, success):
    put_tray(env, dx, dy, math.radians(degrees))
    env._keep_books()
    assert env._info()["success"] is success


def test_the_height_counts(env):
    put_tray(env, 0.017, z=0.0)
    env._keep_books()
    assert env._info()["success"]
    put_tray(env, 0.017, z=REST)
    env._keep_books()
    assert not env._info()["success"]


def test_an_episode_ends_one_step_after_success(env):
    put_tray(env)
    _, reward, terminated, _, info = env.step(np.zeros(3))
    assert (reward, terminated, info["success"]) == (1.0, False, True)
    _, reward, terminated, _, info = env.step(np.zeros(3))
    assert (reward, terminated, info["success"]) == (0.0, True, True)


def test_success_is_judged_again_in_the_extra_step(env):
    put_tray(env)
    env.step(np.zeros(3))
    put_tray(env, dx=0.03)
    _, reward, terminated, _, info = env.step(np.zeros(3))
    assert (reward, terminated, info["success"]) == (-1.0, True, False)


def test_an_episode_ends_after_400_steps():
    env = gymnasium.make("skvdd/Aligning-v0", disable_env_checker=True)
    env.reset(seed=0)
    ends = [env.step(np.zeros(3))[2:4] for _ in range(400)]
    assert ends[:-1] == [(False, False)] * 399
    assert ends[-1] == (False, True)


# -- behavior ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dx", "dy", "behavior"),
    [(0.0, 0.0, INSIDE), (0.0, 0.0509, INSIDE), (0.0, -0.0511, OUTSIDE), (0.04, 0.04, OUTSIDE)],
)
def test_behavior_is_the_distance_of_the_tool_in_the_plane(env, dx, dy, behavior):
    x, y, _ = env.tcp_position
    env._tray.place(x + dx, y + dy, REST, 0.0)
    mujoco.mj_forward(env.model(), env.data)
    assert env._info()["behavior"] == behavior


def test_behaviors_have_names():
    assert BEHAVIORS == (0, 1)
    assert [behavior_name(behavior) for behavior in BEHAVIORS] == ["inside", "outside"]
    with refused("behavior must be one of (0, 1), got 2."):
        behavior_name(2)


# -- physics ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start_y", "behavior", "shift"),
    # From the wall the rod goes on for 0.1 m less the gap, which is 0.035 m or 0.025 m wide.
    [(-0.2, INSIDE, 0.065), (-0.29, OUTSIDE, 0.075)],
)
def test_the_rod_moves_the_tray_from_both_sides_of_a_wall(env, start_y, behavior, shift):
    env.reset(options={"context": [0.5, -0.2, 0.0, 0.5, 0.3, 1.0]})
    lead(env, np.array([0.5, start_y, 0.25]))
    lead(env, np.array([0.5, start_y, 0.135]))
    np.testing.assert_allclose(env._tray.position[:2], [0.5, -0.2], atol=0.002)
    *_, info = lead(env, np.array([0.5, start_y + 0.1, 0.135]), speed=0.004)
    assert info["behavior"] == behavior
    np.testing.assert_allclose(env._tray.position, [0.5, -0.2 + shift, REST], atol=0.02)
    assert abs(env._tray.yaw) < 0.2
    assert env._tray.quaternion[1:3] == pytest.approx([0.0, 0.0], abs=0.02), "upright"


def test_the_target_is_immaterial(env):
    lead(env, np.array([0.45, 0.3, 0.25]))
    lead(env, np.array([0.45, 0.3, 0.13]))
    assert env.data.ncon <= 4, "the tray on the table, and when it sleeps nothing"


def test_the_tray_weighs_what_it_should():
    model = Aligning.model()
    assert model.body("tray").mass[0] == pytest.approx(1.004)


# -- misbehaving policies -----------------------------------------------------------------


def test_the_height_of_the_set_point_is_bounded(env):
    for height, action in ((MIN_HEIGHT, -5.0), (MAX_HEIGHT, 5.0)):
        observation, *_ = env.step([0.0, 0.0, action])
        assert observation[2] == env.set_point[2] == height


@pytest.mark.parametrize("xy", [(0.5, -0.2), (0.3, 0.3), (0.55, 0.4)])
@pytest.mark.parametrize("height", [MIN_HEIGHT, MAX_HEIGHT])
def test_the_arm_arrives_at_the_edges_of_its_heights(env, xy, height):
    env.reset(options={"context": [0.5, 0.0, 0.0, 0.45, 0.3, -1.0]})
    lead(env, np.array([*xy, 0.25]))
    lead(env, np.array([*xy, height]), n_wait=60)
    np.testing.assert_allclose(env.tcp_position, [*xy, height], rtol=0, atol=0.003)


def test_the_set_point_is_clipped_at_its_own_height(env):
    observation, *_ = env.step([5.0, 0.0, 5.0])
    assert observation[2] == MAX_HEIGHT
    radius = 0.088 + math.sqrt(0.71**2 - (MAX_HEIGHT + 0.212 - 0.333) ** 2)
    assert np.hypot(*observation[:2]) == pytest.approx(radius, abs=1e-9)


def test_the_tip_is_not_driven_through_the_table(env):
    lead(env, np.array([0.4, 0.0, 0.2]))
    for _ in range(100):
        env.step([0.0, 0.0, -1.0])
        assert env.tcp_position[2] - 0.12 > -0.025


def random_actions(rng, n):
    return rng.uniform(-0.01, 0.01, (n, 3))


def diving_actions(rng, n):
    """Press on the tray, and drag it about."""
    return rng.normal(0.0, 0.02, (n, 3)) - [0.0, 0.0, 0.01]


def huge_actions(rng, n):
    return rng.choice([-1.0, 0.0, 1.0], (n, 3)) * 10.0 ** rng.integers(-320, 308, (n, 1))


def alternating_actions(rng, n):
    return np.tile([[2.0, 2.0, -2.0], [-2.0, -2.0, 2.0]], (n // 2, 1))


def constant_actions(rng, n):
    """Bulldoze in one direction after the other."""
    return np.repeat(rng.normal(0.0, 0.01, (n // 50, 3)), 50, axis=0)


@pytest.mark.parametrize(
    "make_actions",
    [random_actions, diving_actions, huge_actions, alternating_actions, constant_actions],
)
def test_absurd_actions_break_nothing(make_actions):
    rng = np.random.default_rng(0)
    env = Aligning()
    for episode, actions in enumerate(np.split(make_actions(rng, 1000), 5)):
        env.reset(seed=episode)
        for action in actions:
            observation, *_ = env.step(action)
            assert observation in env.observation_space
        assert np.isfinite(env.data.qacc).all()
        assert not env.data.warning.number.any()


def test_an_action_that_is_not_finite_is_refused(env):
    with pytest.raises(ValueError, match=r"^action must be finite, got \[nan, 0\.0, 0\.0\]\. "):
        env.step([np.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"^action must have shape \(3,\): "):
        env.step([0.0, 0.0])


def test_an_impossible_context_is_refused(env):
    with pytest.raises(ValueError, match=r"or 6 finite numbers as draw_context returns them"):
        env.reset(options={"context": [0.5, -0.2, 0.3]})


# -- pictures -----------------------------------------------------------------------------


@pytest.mark.rendering
def test_a_picture_shows_the_scene():
    env = Aligning(render_mode="rgb_array", width=96, height=96)
    env.reset(options={"context": CONTEXT})
    before = env.render()
    assert before.shape == (96, 96, 3)
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 100
    moved = CONTEXT + np.array([0.0, 0.0, 0.0, 0.1, 0.0, 0.0])
    env.reset(options={"context": moved})
    assert (env.render() != before).any(), "the target has moved"
    env.close()
