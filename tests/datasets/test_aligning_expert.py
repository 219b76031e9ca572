"""The demonstrator of Aligning: both behaviors, natural motion, honest recordings."""

import cmath
import math

import gymnasium
import numpy as np
import pytest

from skvdd.datasets.experts import aligning as expert
from skvdd.datasets.experts.recording import demonstrate
from skvdd.envs.aligning import BEHAVIORS, INSIDE, OUTSIDE

LIMIT = 400


@pytest.fixture(scope="module")
def env():
    return gymnasium.make("skvdd/Aligning-v0", disable_env_checker=True)


@pytest.fixture(scope="module")
def episodes(env):
    """Attempts in six test contexts, for each behavior."""
    return {
        behavior: [
            demonstrate(
                expert.DEMONSTRATOR,
                env,
                behavior,
                np.random.default_rng([0, i, behavior]),
                options={"context": i},
            )
            for i in range(6)
        ]
        for behavior in BEHAVIORS
    }


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_both_behaviors_succeed_in_most_contexts(episodes, behavior):
    successes = [episode for episode in episodes[behavior] if episode is not None]
    assert len(successes) >= 5
    assert np.mean([len(episode) for episode in successes]) < 0.6 * LIMIT


def test_steps_are_as_long_as_a_hand_would_make_them(episodes):
    for episode in (e for one in episodes.values() for e in one if e is not None):
        steps = np.linalg.norm(episode.actions[:, :2], axis=1)
        assert steps.max() < 0.0085
        assert np.abs(episode.actions[:, 2]).max() < 0.0085
        assert np.median(steps) > 0.003


def test_the_rod_stays_on_its_side_of_the_walls(episodes):
    for behavior, tried in episodes.items():
        for states in (episode.states for episode in tried if episode is not None):
            pushing = np.linalg.norm(np.diff(states[:, 6:8], axis=0), axis=1) > 0.001
            distance = np.linalg.norm(states[:-1, 3:5] - states[:-1, 6:8], axis=1)[pushing]
            assert pushing.sum() > 30
            if behavior == INSIDE:
                assert distance.max() < 0.055
            else:
                assert distance.min() > 0.060


def test_a_seed_decides_everything_and_another_one_varies(env):
    one, same, other = (
        demonstrate(
            expert.DEMONSTRATOR, env, INSIDE, np.random.default_rng(seed), options={"context": 7}
        )
        for seed in (1, 1, 3)
    )
    np.testing.assert_array_equal(one.actions, same.actions)
    n = min(len(one), len(other))
    assert np.abs(one.actions[:n] - other.actions[:n]).max() > 0.002


# -- geometry -----------------------------------------------------------------------------


def scene(tray=0j, yaw=0.0, target=0.4j, target_yaw=0.0):
    return expert.Scene(0j, 0.25, 0j, 0.25, tray, yaw, target, target_yaw)


def test_points_go_from_the_tray_to_the_plane_and_back():
    tilted = scene(0.5 + 0.1j, 0.3)
    assert tilted.in_plane(0.1 + 0j) == pytest.approx(0.5 + 0.1j + 0.1 * cmath.rect(1, 0.3))
    assert tilted.in_tray(tilted.in_plane(0.02 - 0.03j)) == pytest.approx(0.02 - 0.03j)


def test_an_observation_is_sorted():
    half = 0.6
    pose = [math.cos(half), 0.0, 0.0, math.sin(half)]
    seen = expert.see(np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, *pose, 10, 11, 12, 1.0, 0.0, 0.0, 0.0]))
    assert (seen.desired, seen.desired_height, seen.tool, seen.height) == (1 + 2j, 3, 4 + 5j, 6)
    assert (seen.tray, seen.target, seen.target_yaw) == (7 + 8j, 10 + 11j, 0.0)
    assert seen.yaw == pytest.approx(1.2)
    assert seen.turn == pytest.approx(-1.2)


@pytest.mark.parametrize("turn", [-2.5, -1.0, -0.2, 0.0, 0.4, 1.5, 2.8])
def test_a_car_on_its_arc_has_no_error_and_follows_it_to_the_end(turn):
    # Start at the origin along the real axis: an arc of length one that turns by `turn`.
    way = (cmath.rect(1.0, turn) - 1.0) / (1j * turn) if turn else 1.0 + 0j
    position, heading = 0j, 0.0
    for _ in range(950):
        car = expert.Car(heading, 0.05, (way - position) * cmath.rect(1, -heading), turn - heading)
        assert abs(car.error) < 0.02
        heading += 0.001 * car.curvature
        position += cmath.rect(0.001, heading)
    assert abs(way - position) == pytest.approx(0.05, abs=0.003)
    assert heading == pytest.approx(0.95 * turn, abs=0.02)


@pytest.mark.parametrize("error", [-0.8, 0.5])
def test_a_car_beside_its_arc_comes_back_to_it(error):
    position, heading, goal = 0j, error, 1.0 + 0j
    for _ in range(930):
        way = (goal - position) * cmath.rect(1, -heading)
        heading += 0.001 * expert.Car(heading, 0.05, way, -heading).curvature
        position += cmath.rect(0.001, heading)
    assert abs(heading) < 0.05
    assert abs(position.imag) < 0.01


def test_a_push_through_the_center_shifts_and_does_not_turn():
    hold = expert.Hold(-0.065j, 1j, True)
    assert expert.predict_push(scene(target=0.02j), hold) == pytest.approx((0.0, 0.02))
    error, length = expert.predict_push(scene(target=-0.02j), hold)
    assert length == 0.0
    assert error == pytest.approx(0.02 / 0.018)


def test_a_push_beside_the_center_turns_toward_that_side():
    right = expert.Hold(0.03 - 0.065j, 1j, True)
    left = expert.Hold(-0.03 - 0.065j, 1j, True)
    ccw = scene(target=0j, target_yaw=0.3)
    assert expert.predict_push(ccw, right)[1] > 0.0
    assert expert.predict_push(ccw, left)[1] == 0.0


def test_the_driver_goes_round_the_tray_in_pieces():
    driver = expert.Outside(np.random.default_rng(0))
    assert driver._way_to(0.09 + 0j, 0.1 + 0.01j) == 0.09
    first = driver._way_to(-0.09 + 0j, 0.1 + 0.01j)
    assert abs(first) == pytest.approx(expert.ROUND_RADIUS)
    assert 0.0 < cmath.phase(first) < 1.0


@pytest.mark.parametrize("behavior", [INSIDE, OUTSIDE])
def test_far_from_the_target_the_tray_is_driven_and_near_it_pushed(behavior):
    driver_class = expert.Inside if behavior == INSIDE else expert.Outside
    driver = driver_class(np.random.default_rng(0))
    assert not driver._choose(scene(target=0.4j)).is_straight
    assert driver._choose(scene(target=0.02j)).is_straight
