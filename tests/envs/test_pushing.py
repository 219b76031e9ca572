"""Pushing: the scene, success and behavior by hand-made placements, and calm under bad actions."""

import math

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import skvdd.envs  # noqa: F401  registers the task
from skvdd.envs.pushing import (
    BEHAVIORS,
    CUBE_HEIGHT,
    START_MAX,
    START_MIN,
    TARGETS,
    Pushing,
    behavior_name,
    placements_of,
)

AWAY = ((0.30, -0.10), (0.70, -0.10))  # m, of red and green: in no target
RED_TARGET, GREEN_TARGET = TARGETS[0][:2], TARGETS[1][:2]


@pytest.fixture
def env():
    env = Pushing()
    env.reset(options={"context": 0})
    return env


def put(env, red, green):
    """Lay the cubes down and look at them as after a window."""
    for block, (x, y) in zip(env._cubes, (red, green), strict=True):
        block.place(x, y, CUBE_HEIGHT, 0.0)
    mujoco.mj_forward(env.model(), env.data)
    env._keep_books()
    return env._info()


@pytest.mark.filterwarnings("ignore:.*observation space m:UserWarning")  # tables have an edge
def test_it_is_a_gymnasium_environment():
    check_env(gymnasium.make("skvdd/Pushing-v0").unwrapped, skip_render_check=True)
    assert gymnasium.spec("skvdd/Pushing-v0").max_episode_steps == 400


# -- the start ------------------------------------------------------------------------------


def test_contexts_are_uniform_in_their_box():
    rng = np.random.default_rng(0)
    contexts = np.array([Pushing.draw_context(rng) for _ in range(2000)])
    low, high = np.ravel(START_MIN), np.ravel(START_MAX)
    assert (contexts >= low).all()
    assert (contexts <= high).all()
    # The mean of 2000 uniform numbers is off by 0.0065 of the width; five times that.
    np.testing.assert_allclose((contexts.mean(axis=0) - low) / (high - low), 0.5, atol=0.033)


def test_the_first_observation_is_the_context_and_the_tool():
    env = Pushing()
    context = [0.45, -0.1, 0.5, 0.6, -0.05, -1.2]
    observation, info = env.reset(options={"context": context})
    np.testing.assert_array_equal(observation[:2], observation[2:4])
    np.testing.assert_allclose(observation[2:4], [0.5249, -0.2797], atol=5e-4)
    expected = [0.45, -0.1, math.tan(0.5), 0.6, -0.05, math.tan(-1.2)]
    np.testing.assert_allclose(observation[4:], expected, atol=1e-9)
    assert info == {"success": False, "behavior": None}


def test_a_tangent_is_cut_off_near_a_quarter_turn():
    env = Pushing()
    observation, _ = env.reset(options={"context": [0.45, -0.1, 1.5707, 0.6, -0.05, -1.5707]})
    assert (observation[6], observation[9]) == (100.0, -100.0)
    assert env.observation_space.contains(observation)


def test_cubes_at_rest_stay_where_they_are(env):
    before = [block.position for block in env._cubes]
    for _ in range(10):
        env.step([0.0, 0.0])
    for block, position in zip(env._cubes, before, strict=True):
        np.testing.assert_allclose(block.position, position, atol=5e-4)


def test_cubes_that_overlap_at_the_start_part_calmly():
    env = Pushing()
    env.reset(options={"context": [0.50, -0.05, math.pi / 4, 0.55, -0.05, math.pi / 4]})
    for _ in range(20):
        env.step([0.0, 0.0])
    red, green = (block.position for block in env._cubes)
    assert 0.05 < np.linalg.norm(red[:2] - green[:2]) < 0.15
    np.testing.assert_allclose([red[2], green[2]], CUBE_HEIGHT, atol=2e-3)


# -- success and behavior ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "behavior"),
    [
        ([(RED_TARGET, AWAY[1]), (RED_TARGET, GREEN_TARGET)], 0),
        ([(AWAY[0], GREEN_TARGET), (RED_TARGET, GREEN_TARGET)], 1),
        ([(GREEN_TARGET, AWAY[1]), (GREEN_TARGET, RED_TARGET)], 2),
        ([(AWAY[0], RED_TARGET), (GREEN_TARGET, RED_TARGET)], 3),
    ],
)
def test_order_and_assignment_are_the_behavior(env, steps, behavior):
    first, second = steps
    assert put(env, *first) == {"success": False, "behavior": None}
    assert put(env, *second) == {"success": True, "behavior": behavior}
    assert placements_of(behavior)[0][1] == (0 if RED_TARGET in first else 1)


def test_a_first_placement_given_up_leaves_a_success_without_a_behavior(env):
    put(env, RED_TARGET, AWAY[1])
    put(env, AWAY[0], AWAY[1])
    put(env, GREEN_TARGET, AWAY[1])
    assert put(env, GREEN_TARGET, RED_TARGET) == {"success": True, "behavior": None}


def test_one_cube_placed_is_no_success(env):
    assert not put(env, RED_TARGET, AWAY[1])["success"]


@pytest.mark.parametrize(("distance", "success"), [(0.0487, True), (0.0489, False)])
def test_the_radius_is_three_dimensional(env, distance, success):
    # sqrt(0.05^2 - 0.011^2) = 0.04877
    put(env, RED_TARGET, AWAY[1])
    x, y = GREEN_TARGET
    assert put(env, RED_TARGET, (x, y + distance))["success"] is success


def test_an_episode_ends_one_step_after_its_success(env):
    put(env, RED_TARGET, AWAY[1])
    put(env, RED_TARGET, GREEN_TARGET)
    _, reward, terminated, _, info = env.step([0.0, 0.0])
    assert (reward, terminated, info) == (0.0, True, {"success": True, "behavior": 0})


def test_a_success_that_does_not_last_one_step_is_none(env):
    put(env, RED_TARGET, AWAY[1])
    put(env, RED_TARGET, GREEN_TARGET)
    env._cubes[1].place(*AWAY[1], CUBE_HEIGHT, 0.0)
    _, reward, terminated, _, info = env.step([0.0, 0.0])
    assert (reward, terminated, info["success"]) == (-1.0, True, False)


def test_names():
    assert [behavior_name(b) for b in BEHAVIORS] == ["rr-gg", "gg-rr", "rg-gr", "gr-rg"]
    with pytest.raises(ValueError, match="behavior must be one of"):
        placements_of(4)


# -- the simulation -------------------------------------------------------------------------


def test_the_rod_pushes_a_cube():
    env = Pushing()
    env.reset(options={"context": [0.45, -0.1, 0.0, 0.60, -0.1, 0.0]})
    for _ in range(14):  # in front of the green cube
        env.step([0.005, 0.0])
    for _ in range(60):
        observation, *_ = env.step([0.0, 0.005])
    assert observation[8] > -0.06
    np.testing.assert_allclose(observation[4:6], [0.45, -0.1], atol=1e-3)


def roll(env, actions, **options):
    observations = [env.reset(**options)[0]]
    observations += [env.step(action)[0] for action in actions]
    return np.array(observations)


@pytest.mark.parametrize("start", [{"seed": 5}, {"options": {"context": 3}}])
def test_a_replay_is_the_same_to_the_last_bit(start):
    actions = np.random.default_rng(0).uniform(-0.01, 0.01, (60, 2)) + np.array([0.0, 0.004])
    first = roll(Pushing(), actions, **start)
    env = Pushing()
    roll(env, actions[:7], seed=9)  # a used environment remembers nothing
    np.testing.assert_array_equal(roll(env, actions, **start), first)


ABSURD = {
    "random": lambda rng, t: rng.uniform(-0.02, 0.02, 2),
    "random and huge": lambda rng, t: rng.normal(0.0, 10.0, 2),
    "always away": lambda rng, t: np.array([1e3, 1e3]),
    "through the cubes and back": lambda rng, t: np.array([0.02, 0.02]) * (-1) ** (t // 25),
    "jerking": lambda rng, t: np.array([0.3, -0.3]) * (-1) ** t,
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_actions_do_no_harm(name):
    env, rng = Pushing(), np.random.default_rng(1)
    env.reset(seed=0)
    for t in range(1000):
        observation, _, terminated, _, _ = env.step(ABSURD[name](rng, t))
        assert np.isfinite(observation).all()
        if terminated or t % 400 == 399:
            assert not env.data.warning.number.any()  # a reset forgets them
            env.reset()
    assert not env.data.warning.number.any()


def test_a_picture_shows_the_scene():
    env = Pushing(render_mode="rgb_array", width=96, height=96)
    env.reset(seed=0)
    try:
        picture = env.render()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert picture.shape == (96, 96, 3)
    red, green, blue = np.moveaxis(picture.astype(int), 2, 0)
    assert ((red > 120) & (green < 60) & (blue < 60)).any()
    assert ((green > 120) & (red < 60) & (blue < 60)).any()
    env.close()
