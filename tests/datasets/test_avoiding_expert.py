"""The demonstrator: every behavior, natural speed, honest recordings."""

import re
from collections import Counter
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from skvdd.datasets.experts import avoiding as expert
from skvdd.datasets.experts.recording import demonstrate, record
from skvdd.envs.avoiding import BEHAVIORS, OBSTACLES, ROD_RADIUS, gaps_of


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture(scope="module")
def one_round():
    return record("avoiding", 24, random_state=7, n_jobs=1, progress=False)


@pytest.fixture
def env():
    return gymnasium.make("skvdd/Avoiding-v0", disable_env_checker=True)


def test_a_round_shows_every_behavior_once(one_round):
    assert sorted(one_round.behaviors) == sorted(BEHAVIORS)
    assert sum(episode.metadata["attempts"] for episode in one_round) <= 30


def test_the_order_uses_all_gaps_evenly():
    order = expert.spread_order()
    assert sorted(order) == list(BEHAVIORS)
    for n in range(1, 25):
        for row, n_gaps in enumerate((2, 3, 4)):
            counts = np.bincount([gaps_of(b)[row] for b in order[:n]], minlength=n_gaps)
            assert counts.max() - counts.min() <= 1


def test_steps_are_as_long_as_a_hand_would_make_them(one_round):
    actions = one_round.windows()[1]
    steps = np.linalg.norm(actions, axis=1)
    assert 0.004 < steps.min() < steps.max() < 0.010
    assert 0.006 < np.median(steps) < 0.008


def test_the_rod_keeps_clear_of_the_obstacles(one_round):
    for episode in one_round:
        for obstacle in OBSTACLES:
            distance = np.hypot(
                episode.states[:, 2] - obstacle.x, episode.states[:, 3] - obstacle.y
            )
            assert distance.min() > obstacle.radius + ROD_RADIUS


def test_recordings_contain_deviations_and_corrections(one_round):
    # The heading wanders by tens of degrees and its noise remembers itself.
    for episode in one_round.episodes[:5]:
        heading = np.unwrap(np.arctan2(episode.actions[:, 1], episode.actions[:, 0]))
        turns = np.diff(heading)
        assert 0.1 < turns.std() < 0.4
        changes_of_side = np.count_nonzero(np.diff(np.sign(turns)))
        assert changes_of_side > 20


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_paths_pass_their_gaps_at_a_distance(behavior):
    start = np.array([0.525, -0.28])
    for seed in range(5):
        path = expert.reference_path(behavior, start, np.random.default_rng(seed))
        np.testing.assert_array_equal(path[0], start)
        assert path[-1, 1] > 0.36
        for obstacle in OBSTACLES:
            distance = np.hypot(path[:, 0] - obstacle.x, path[:, 1] - obstacle.y).min()
            assert distance > obstacle.radius + ROD_RADIUS + 0.01


def test_an_undecided_path_makes_for_the_middle_first():
    start = np.array([0.525, -0.28])
    style = replace(expert.OVERLAPPING_STYLE, swerve_rate=0.0)
    for behavior in BEHAVIORS:
        path = expert.reference_path(behavior, start, np.random.default_rng(0), style)
        early = path[path[:, 1] < expert.ROW_Y[0] - style.commitment[1]]
        assert np.abs(early[:, 0] - expert.MIDDLE_X).max() < 0.06


def test_a_swerving_path_makes_for_another_gap_first():
    start = np.array([0.525, -0.28])
    style = replace(expert.OVERLAPPING_STYLE, swerve_rate=1.0)
    for behavior in BEHAVIORS:
        path = expert.reference_path(behavior, start, np.random.default_rng(0), style)
        early = path[path[:, 1] < expert.ROW_Y[0] - style.commitment[1]]
        went_right, goes_right = early[-1, 0] > expert.MIDDLE_X, gaps_of(behavior)[0] == 1
        assert went_right != goes_right


# -- styles -----------------------------------------------------------------------------------


def test_a_steady_hand_changes_nothing():
    hand = expert.Hand(expert.CLEAN_STYLE, np.random.default_rng(0))
    for action in np.random.default_rng(1).normal(size=(100, 2)).astype(np.float32):
        moved = hand.move(action)
        assert moved.dtype == np.float32
        np.testing.assert_array_equal(moved, action)


def runs(mask):
    """Return the lengths of the runs of True."""
    edges = np.flatnonzero(np.diff([0, *mask.astype(int), 0]))
    return edges[1::2] - edges[::2]


def test_pauses_are_short_and_nearly_still():
    style = replace(expert.CLEAN_STYLE, pause_rate=0.02)
    hand = expert.Hand(style, np.random.default_rng(0))
    actions = np.array([hand.move(np.float32([0.0, 0.007])) for _ in range(5000)])
    still = np.linalg.norm(actions, axis=1) < 0.0007
    lengths = runs(still)
    assert 50 < len(lengths) < 120
    assert lengths.min() >= 5
    assert np.median(lengths) <= 15  # two in a row make a longer one
    np.testing.assert_array_equal(actions[~still], np.float32([[0.0, 0.007]] * sum(~still)))


def test_corrections_go_back_a_little():
    style = replace(expert.CLEAN_STYLE, correction_rate=0.02)
    hand = expert.Hand(style, np.random.default_rng(0))
    steps = np.array([hand.move(np.float32([0.0, 0.007]))[1] for _ in range(5000)])
    assert set(steps.round(5).tolist()) == set(np.float32([0.007, -0.0042]).round(5).tolist())
    assert runs(steps < 0).min() >= 3


def test_jerks_are_rare_and_long():
    style = replace(expert.CLEAN_STYLE, jerk_rate=0.02)
    hand = expert.Hand(style, np.random.default_rng(0))
    actions = np.array([hand.move(np.float32([0.0, 0.007])) for _ in range(5000)])
    lengths = np.linalg.norm(actions, axis=1)
    assert 0.01 < np.mean(lengths > 0.01) < 0.03
    assert 0.011 < lengths[lengths > 0.01].min() < lengths.max() < 0.023


def test_speed_drifts_slowly_and_far():
    hand = expert.Hand(replace(expert.CLEAN_STYLE, speed_drift=0.35), np.random.default_rng(0))
    log_speed = np.log([hand.move(np.float32([0.0, 1.0]))[1] for _ in range(5000)])
    assert 0.25 < log_speed.std() < 0.45
    assert 0.9 < np.corrcoef(log_speed[1:], log_speed[:-1])[0, 1] < 0.99


@pytest.mark.parametrize("n_episodes", [1, 24, 96, 500])
def test_a_long_tail_has_a_few_favorites(n_episodes):
    order = expert.zipf_order(n_episodes, 0.85, np.random.default_rng(3))
    assert len(order) == n_episodes
    assert set(order) <= set(BEHAVIORS)
    counts = np.zeros(24)
    shown = sorted(Counter(order).values(), reverse=True)
    counts[: len(shown)] = shown
    weights = np.arange(1.0, 25.0) ** -0.85
    assert np.abs(counts - n_episodes * weights / weights.sum()).max() < 1


def test_the_order_of_a_long_tail_is_random():
    # The mean place of an episode says nothing about how frequent its behavior is.
    places, top = [], []
    for seed in range(200):
        order = expert.zipf_order(96, 0.85, np.random.default_rng(seed))
        favorite = Counter(order).most_common(1)[0][0]
        places.append(np.mean([i for i, b in enumerate(order) if b == favorite]))
        top.append(favorite)
    assert abs(np.mean(places) - 47.5) < 2
    assert len(set(top)) == 24


def test_a_path_needs_a_complete_behavior():
    with refused("behavior must be one of the 24 BEHAVIORS, got 5."):
        expert.reference_path(5, np.zeros(2), np.random.default_rng(0))


def test_failed_attempts_are_not_recorded(monkeypatch, env):
    straight_into_row_one = np.array([[0.525, -0.28], [0.5, -0.1], [0.5, 0.4]])
    monkeypatch.setattr(expert, "reference_path", lambda *arguments: straight_into_row_one)
    rng = np.random.default_rng(0)
    assert demonstrate(expert.CLEAN, env, BEHAVIORS[0], rng) is None
