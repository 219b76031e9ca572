"""Avoiding against its specification, and against recordings of the original."""

import json
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import skvdd.envs
from skvdd.datasets import load_demonstrations
from skvdd.envs.avoiding import (
    BEHAVIORS,
    OBSTACLES,
    ROD_RADIUS,
    Avoiding,
    behavior_name,
    gap_bit,
    gaps_of,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "d3il_avoiding_replay.npz"


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture
def env():
    env = Avoiding()
    env.reset()
    return env


def put_tool_at(env, x, y):
    """Let the simulator believe that the last window ended with the tool at (x, y)."""
    env._arm._tcp[:2] = x, y


def steer(env, targets, speed=0.008, n_max=200):
    """Lead the set-point straight from target to target; return the last step's results."""
    for target in targets:
        while np.linalg.norm(target - env.set_point[:2]) > speed:
            way = target - env.set_point[:2]
            result = env.step(speed * way / np.linalg.norm(way))
            if result[2]:
                return result
    for _ in range(n_max):
        result = env.step(np.zeros(2))
        if result[2]:
            break
    return result


# -- the contract -------------------------------------------------------------------------


def test_gymnasium_finds_nothing_to_complain_about():
    check_env(gymnasium.make("skvdd/Avoiding-v0").unwrapped, skip_render_check=True)


def test_the_class_is_reexported():
    assert skvdd.envs.Avoiding is Avoiding
    with pytest.raises(AttributeError, match=r"^module 'skvdd.envs' has no attribute 'Nothing'$"):
        _ = skvdd.envs.Nothing


def test_every_episode_starts_alike(env):
    observation, info = env.reset(seed=1)
    np.testing.assert_allclose(
        observation, [0.52492847, -0.27973673, 0.52492847, -0.27973673], atol=1e-8
    )
    assert observation.dtype == np.float64
    assert info == {"success": False, "behavior": 0}
    again, _ = env.reset(seed=2)
    np.testing.assert_array_equal(again, observation)


def test_the_observation_pairs_the_new_set_point_with_the_old_measurement(env):
    before = env.tcp_position
    action = np.array([0.002, 0.007])
    observation, reward, terminated, truncated, _ = env.step(action)
    np.testing.assert_array_equal(observation[:2], before[:2] + action)
    np.testing.assert_array_equal(observation[2:], before[:2])
    assert (reward, terminated, truncated) == (0.0, False, False)
    after = env.tcp_position
    observation, *_ = env.step([0.0, 0.0])
    np.testing.assert_array_equal(observation[2:], after[:2])


def test_info_can_be_written_as_json(env):
    info = env.step([0.0, 0.0])[4]
    assert json.loads(json.dumps(info)) == {"success": False, "behavior": 0}


def test_the_same_actions_give_the_same_episode_to_the_last_bit():
    actions = np.random.default_rng(0).uniform(-0.01, 0.01, (30, 2))
    observations = []
    for _ in range(2):
        env = Avoiding()
        for _ in range(2):
            env.reset()
            observations.append([env.step(action)[0] for action in actions])
    for other in observations[1:]:
        np.testing.assert_array_equal(other, observations[0])


def test_single_precision_actions_are_taken_at_their_value(env):
    action = np.array([0.003, 0.007], dtype=np.float32)
    start = env.set_point[:2]
    np.testing.assert_array_equal(env.step(action)[0][:2], start + action.astype(np.float64))


def test_an_episode_ends_after_250_steps():
    env = gymnasium.make("skvdd/Avoiding-v0")
    env.reset()
    ends = [env.step(np.zeros(2))[2:4] for _ in range(250)]
    assert ends[:-1] == [(False, False)] * 249
    assert ends[-1] == (False, True)


# -- success and failure --------------------------------------------------------------------


def test_success_is_measured_before_the_window(env):
    put_tool_at(env, 0.5, 0.3501)
    _, reward, terminated, _, info = env.step([0.0, 0.0])
    assert (reward, terminated, info["success"]) == (1.0, True, True)


def test_the_finish_line_itself_is_not_enough(env):
    put_tool_at(env, 0.5, 0.35)
    _, reward, terminated, _, info = env.step([0.0, 0.0])
    assert (reward, terminated, info["success"]) == (0.0, False, False)


def test_touching_an_obstacle_ends_the_episode_without_success(env):
    _, reward, terminated, _, info = steer(env, [np.array([0.5, -0.10])])
    assert (reward, terminated, info["success"]) == (0.0, True, False)
    distance = np.linalg.norm(env.tcp_position[:2] - [0.5, -0.10])
    assert distance == pytest.approx(OBSTACLES[0].radius + ROD_RADIUS, abs=0.003)


def test_a_contact_is_reported_by_the_next_step(env):
    while not env._touches(env._rod, env._obstacles):
        result = env.step([-0.0005, 0.007])
        assert not result[2]
    assert env.step([0.0, 0.0])[2]


def test_success_wins_over_a_contact(env):
    steer(env, [np.array([0.5, -0.10])])
    assert env._touches(env._rod, env._obstacles)
    put_tool_at(env, 0.5, 0.36)
    _, reward, terminated, _, info = env.step([0.0, 0.0])
    assert (reward, terminated, info["success"]) == (1.0, True, True)


def test_a_free_way_succeeds(env):
    way = [(0.6, -0.1), (0.66, 0.08), (0.715, 0.24), (0.7, 0.38)]
    _, reward, terminated, _, info = steer(env, np.array(way))
    assert (reward, terminated) == (1.0, True)
    assert info == {"success": True, "behavior": 2**1 + 2**4 + 2**8}
    assert behavior_name(info["behavior"]) == "2-3-4"


# -- behaviors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "x", "bit"),
    [
        (0, 0.499, 0), (0, 0.501, 1), (0, 0.5, None),
        (1, 0.4, 2), (1, 0.5, 3), (1, 0.6, 4), (1, 0.425, None), (1, 0.575, None),
        (2, 0.3, 5), (2, 0.4, 6), (2, 0.6, 7), (2, 0.7, 8),
        (2, 0.35, None), (2, 0.5, None), (2, 0.65, 8),
    ],
)  # fmt: skip
def test_gaps_are_numbered_as_in_d3il(row, x, bit):
    assert gap_bit(row, x) == bit


@pytest.mark.parametrize(
    ("places", "behavior"),
    [
        ([(0.4, -0.131)], 0),
        ([(0.4, -0.129)], 2**0),
        ([(0.4, -0.071), (0.6, -0.08)], 2**0),  # a row is decided once
        ([(0.5, -0.1), (0.6, -0.1)], 2**1),  # undecided behind the obstacle
        ([(0.5, 0.05)], 2**3),
        ([(0.5, 0.049)], 0),
        ([(0.5, 0.111)], 0),
        ([(0.7, 0.259)], 0),
        ([(0.7, 0.26)], 2**8),
        ([(0.7, 0.9)], 2**8),
        ([(0.4, -0.1), (0.6, 0.08), (0.4, 0.3)], 2**0 + 2**4 + 2**6),
    ],
)
def test_behavior_bits(env, places, behavior):
    for x, y in places:
        put_tool_at(env, x, y)
        env._keep_books()
    assert env._info()["behavior"] == behavior


def test_there_are_24_behaviors_with_24_names():
    assert len(set(BEHAVIORS)) == 24
    names = {behavior_name(behavior) for behavior in BEHAVIORS}
    assert len(names) == 24
    assert all(f"{a}-{b}-{c}" in names for a in "12" for b in "123" for c in "1234")


def test_unfinished_behaviors_have_names_too():
    assert behavior_name(0) == "?-?-?"
    assert gaps_of(2**1 + 2**3) == (1, 1, None)


@pytest.mark.parametrize("behavior", [-1, 3, 512, 2**5 + 2**6])
def test_an_integer_that_is_no_behavior_is_refused(behavior):
    with refused(
        "behavior must be a sum of at most one bit per row (0 to 1, 2 to 4, 5 to 8), got "
        f"{behavior}."
    ):
        behavior_name(behavior)


# -- misbehaving policies ------------------------------------------------------------------


def test_a_set_point_out_of_reach_is_shown_as_what_is_pursued(env):
    observation, *_ = env.step([5.0, 0.0])
    radius = np.hypot(*observation[:2])
    assert radius == pytest.approx(0.798, abs=1e-4)
    np.testing.assert_array_equal(env.set_point[:2], observation[:2])
    observation, *_ = env.step([-0.1, 0.0])
    np.testing.assert_allclose(np.hypot(observation[0] + 0.1, observation[1]), radius, rtol=1e-12)


def test_the_tool_arrives_at_the_edge_of_reach(env):
    env.step([-5.0, -5.0])
    for _ in range(130):  # the soft arm swings for seconds after such a jump
        observation, *_ = env.step([0.0, 0.0])
    np.testing.assert_allclose(observation[2:], observation[:2], rtol=0, atol=0.005)


def misbehaving_actions():
    rng = np.random.default_rng(0)
    yield from rng.uniform(-0.01, 0.01, (400, 2))
    yield from rng.normal(0.0, 0.1, (400, 2))
    yield from rng.normal(0.0, 10.0, (300, 2))
    yield from rng.choice([-1.0, 0.0, 1.0], (300, 2)) * 10.0 ** rng.integers(-320, 308, (300, 1))
    yield from np.tile([[2.0, 2.0], [-2.0, -2.0]], (150, 1))  # from one end to the other
    yield from np.tile([[0.0, 2.0], [0.0, -2.0]], (50, 1))
    yield from np.tile([0.02, 0.0], (100, 1))  # leave through the edge
    yield from np.tile([0.0, 0.05], (100, 1))  # ram an obstacle


def test_2000_absurd_actions_break_nothing(env):
    actions = list(misbehaving_actions())
    assert len(actions) == 2000
    for action in actions:
        observation, *_ = env.step(action)
        assert observation in env.observation_space
        assert abs(env.tcp_position[2] - 0.12) < 0.3
    assert not env.data.warning.number.any()
    assert np.isfinite(env.data.qacc).all()
    env.reset()
    np.testing.assert_allclose(env.tcp_position[:2], [0.52492847, -0.27973673], atol=1e-8)


# -- the original, and our own recordings ---------------------------------------------------


def test_the_original_is_replayed_within_a_millimeter(env):
    with np.load(GOLDEN) as golden:
        episodes = [golden[name] for name in ("ep0", "ep3", "ep4")]
        np.testing.assert_allclose(golden["qpos0"], Avoiding.start_joints, atol=1e-8)
    for episode in episodes:
        errors, ends = [], []
        observation, _ = env.reset()
        for row in episode:
            observation, _, terminated, _, info = env.step(row[:2] - env.set_point[:2])
            np.testing.assert_allclose(observation[:2], row[:2], atol=1e-7)
            errors.append(np.linalg.norm(env.tcp_position[:2] - row[4:6]))
            ends.append(terminated)
        assert np.mean(errors) < 0.001
        assert np.max(errors) < 0.0025
        assert ends[-1]
        assert not info["success"], "these recordings end in a collision"
        assert not any(ends[:-3]), "and not much before it"


@pytest.mark.parametrize("index", [0, 31, 62, 95])
def test_recorded_episodes_are_replayed_bit_for_bit(env, index):
    # MuJoCo promises equal bits for one version on one kind of machine only.
    exact = load_demonstrations().metadata["mujoco"] == _mujoco_version() and _is_x86()
    episode = load_demonstrations()[index]
    observation, info = env.reset()
    terminated = False
    for state, action in zip(episode.states, episode.actions, strict=True):
        assert not terminated
        np.testing.assert_allclose(observation, state, rtol=0, atol=0 if exact else 1e-6)
        observation, _, terminated, _, info = env.step(action)
    assert terminated
    assert info == {"success": True, "behavior": episode.behavior}


def _mujoco_version():
    import mujoco

    return mujoco.__version__


def _is_x86():
    import platform

    return platform.machine().lower() in ("x86_64", "amd64")
