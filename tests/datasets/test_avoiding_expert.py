"""The demonstrator: every behaviour, natural speed, honest recordings."""

import re
from collections import Counter
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from skvdd.datasets import Demonstrations, load_demonstrations
from skvdd.datasets.experts import avoiding as expert
from skvdd.datasets.loading import EMBEDDED, RECORDED
from skvdd.envs.avoiding import BEHAVIORS, OBSTACLES, ROD_RADIUS, gaps_of

SETS = [task for task in EMBEDDED if task not in RECORDED]


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture(scope="module")
def one_round():
    return expert.make_demonstrations(n_per_behavior=1, random_state=7, progress=False)


@pytest.fixture(scope="module", params=[name for name in expert.STYLES if name != "clean"])
def styled_round(request):
    return expert.make_demonstrations(
        n_per_behavior=1, random_state=7, progress=False, style=request.param
    )


def test_a_round_shows_every_behaviour_once(one_round):
    assert sorted(one_round.behaviors) == sorted(BEHAVIORS)
    assert one_round.metadata["n_attempts"] <= 30


def test_the_order_uses_all_gaps_evenly():
    order = expert.spread_order()
    assert sorted(order) == list(BEHAVIORS)
    for n in range(1, 25):
        for row, n_gaps in enumerate((2, 3, 4)):
            counts = np.bincount([gaps_of(b)[row] for b in order[:n]], minlength=n_gaps)
            assert counts.max() - counts.min() <= 1


def test_a_recording_is_what_the_environment_returned(one_round):
    env = gymnasium.make(expert.ENVIRONMENT)
    for episode in one_round.episodes[:6]:
        observation, info = env.reset()
        for state, action in zip(episode.states, episode.actions, strict=True):
            np.testing.assert_array_equal(observation, state)
            observation, _, terminated, _, info = env.step(action)
        assert terminated
        assert info == {"success": True, "behavior": episode.behavior}


def test_the_seed_decides_everything(one_round):
    again = expert.make_demonstrations(n_per_behavior=1, random_state=7, progress=False)
    np.testing.assert_array_equal(again.windows()[0], one_round.windows()[0])
    np.testing.assert_array_equal(again.windows()[1], one_round.windows()[1])


def test_another_seed_gives_other_episodes(one_round):
    shipped = load_demonstrations(n_episodes=24)
    assert one_round.behaviors == shipped.behaviors
    assert all(
        len(one) != len(other) or (one.actions != other.actions).any()
        for one, other in zip(one_round, shipped, strict=True)
    )


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
    style = replace(expert.OVERLAPPING, swerve_rate=0.0)
    for behavior in BEHAVIORS:
        path = expert.reference_path(behavior, start, np.random.default_rng(0), style)
        early = path[path[:, 1] < expert.ROW_Y[0] - style.commitment[1]]
        assert np.abs(early[:, 0] - expert.MIDDLE_X).max() < 0.06


def test_a_swerving_path_makes_for_another_gap_first():
    start = np.array([0.525, -0.28])
    style = replace(expert.OVERLAPPING, swerve_rate=1.0)
    for behavior in BEHAVIORS:
        path = expert.reference_path(behavior, start, np.random.default_rng(0), style)
        early = path[path[:, 1] < expert.ROW_Y[0] - style.commitment[1]]
        went_right, goes_right = early[-1, 0] > expert.MIDDLE_X, gaps_of(behavior)[0] == 1
        assert went_right != goes_right


# -- styles -----------------------------------------------------------------------------------


def test_there_is_an_embedded_set_of_every_style():
    variants = [f"avoiding-{name}" for name in expert.STYLES if name != "clean"]
    assert ["avoiding", *variants] == SETS


@pytest.mark.parametrize("task", SETS)
def test_the_embedded_sets_are_what_the_demonstrator_does(task):
    # Elsewhere another MuJoCo or processor may move the last bits, so replay, not regenerate.
    env = gymnasium.make(expert.ENVIRONMENT)
    for episode in load_demonstrations(task, n_episodes=2):
        observation, info = env.reset()
        for state, action in zip(episode.states, episode.actions, strict=True):
            np.testing.assert_allclose(observation, state, rtol=0, atol=1e-4)
            observation, _, terminated, _, info = env.step(action)
        assert terminated
        assert info == {"success": True, "behavior": episode.behavior}


def test_the_shipped_clean_set_is_the_default():
    made = expert.make_demonstrations(n_per_behavior=1, progress=False)
    shipped = load_demonstrations(n_episodes=24)
    assert made.behaviors == shipped.behaviors
    assert made.name == shipped.name
    assert set(made.metadata) == set(shipped.metadata)
    for one, other in zip(made, shipped, strict=True):
        np.testing.assert_allclose(one.states, other.states, rtol=0, atol=1e-4)
        np.testing.assert_allclose(one.actions, other.actions, rtol=0, atol=1e-4)


def test_a_styled_round_is_successful_and_short_enough(styled_round):
    assert len(styled_round) == 24
    assert max(map(len, styled_round)) <= expert.MAX_LENGTH
    env = gymnasium.make(expert.ENVIRONMENT)
    for episode in styled_round.episodes[:2]:
        observation, info = env.reset()
        for state, action in zip(episode.states, episode.actions, strict=True):
            np.testing.assert_array_equal(observation.astype(np.float32), state)
            observation, _, terminated, _, info = env.step(action)
        assert terminated
        assert info == {"success": True, "behavior": episode.behavior}


def test_the_metadata_tell_style_seed_and_attempts(styled_round):
    metadata = styled_round.metadata
    style = expert.STYLES[metadata["style"]]
    assert styled_round.name == f"avoiding-{metadata['style']}"
    assert expert.Style(**metadata["parameters"]) == style
    assert metadata["demonstrator"] == style.description
    assert metadata["random_state"] == 7
    assert 24 <= metadata["n_attempts"] <= 150


def test_the_seed_decides_everything_in_every_style(styled_round):
    behavior, style = styled_round[0].behavior, expert.STYLES[styled_round.metadata["style"]]
    assert styled_round.behaviors == tuple(expert._order(style, 1, 7))
    env = gymnasium.make(expert.ENVIRONMENT)
    again, _ = expert._first_success(env, behavior, (7, behavior, 0), style)
    np.testing.assert_array_equal(again.states, styled_round[0].states)
    np.testing.assert_array_equal(again.actions, styled_round[0].actions)


def test_a_steady_hand_changes_nothing():
    hand = expert.Hand(expert.CLEAN, np.random.default_rng(0))
    for action in np.random.default_rng(1).normal(size=(100, 2)).astype(np.float32):
        moved = hand.move(action)
        assert moved.dtype == np.float32
        np.testing.assert_array_equal(moved, action)


def runs(mask):
    """Return the lengths of the runs of True."""
    edges = np.flatnonzero(np.diff([0, *mask.astype(int), 0]))
    return edges[1::2] - edges[::2]


def test_pauses_are_short_and_nearly_still():
    style = replace(expert.CLEAN, pause_rate=0.02)
    hand = expert.Hand(style, np.random.default_rng(0))
    actions = np.array([hand.move(np.float32([0.0, 0.007])) for _ in range(5000)])
    still = np.linalg.norm(actions, axis=1) < 0.0007
    lengths = runs(still)
    assert 50 < len(lengths) < 120
    assert lengths.min() >= 5
    assert np.median(lengths) <= 15  # two in a row make a longer one
    np.testing.assert_array_equal(actions[~still], np.float32([[0.0, 0.007]] * sum(~still)))


def test_corrections_go_back_a_little():
    style = replace(expert.CLEAN, correction_rate=0.02)
    hand = expert.Hand(style, np.random.default_rng(0))
    steps = np.array([hand.move(np.float32([0.0, 0.007]))[1] for _ in range(5000)])
    assert set(steps.round(5).tolist()) == set(np.float32([0.007, -0.0042]).round(5).tolist())
    assert runs(steps < 0).min() >= 3


def test_jerks_are_rare_and_long():
    style = replace(expert.CLEAN, jerk_rate=0.02)
    hand = expert.Hand(style, np.random.default_rng(0))
    actions = np.array([hand.move(np.float32([0.0, 0.007])) for _ in range(5000)])
    lengths = np.linalg.norm(actions, axis=1)
    assert 0.01 < np.mean(lengths > 0.01) < 0.03
    assert 0.011 < lengths[lengths > 0.01].min() < lengths.max() < 0.023


def test_speed_drifts_slowly_and_far():
    hand = expert.Hand(replace(expert.CLEAN, speed_drift=0.35), np.random.default_rng(0))
    log_speed = np.log([hand.move(np.float32([0.0, 1.0]))[1] for _ in range(5000)])
    assert 0.25 < log_speed.std() < 0.45
    assert 0.9 < np.corrcoef(log_speed[1:], log_speed[:-1])[0, 1] < 0.99


def test_longer_demonstrations_are_not_recorded(monkeypatch):
    env = gymnasium.make(expert.ENVIRONMENT)
    behavior = BEHAVIORS[0]
    episode = expert.demonstrate(env, behavior, np.random.default_rng(0))
    monkeypatch.setattr(expert, "MAX_LENGTH", len(episode) - 1)
    assert expert.demonstrate(env, behavior, np.random.default_rng(0)) is None


@pytest.mark.parametrize("n_episodes", [1, 24, 96, 500])
def test_a_long_tail_has_a_few_favourites(n_episodes):
    order = expert.zipf_order(n_episodes, 0.85, np.random.default_rng(3))
    assert len(order) == n_episodes
    assert set(order) <= set(BEHAVIORS)
    counts = np.zeros(24)
    shown = sorted(Counter(order).values(), reverse=True)
    counts[: len(shown)] = shown
    weights = np.arange(1.0, 25.0) ** -0.85
    assert np.abs(counts - n_episodes * weights / weights.sum()).max() < 1


def test_the_order_of_a_long_tail_is_random():
    # The mean place of an episode says nothing about how frequent its behaviour is.
    places, top = [], []
    for seed in range(200):
        order = expert.zipf_order(96, 0.85, np.random.default_rng(seed))
        favourite = Counter(order).most_common(1)[0][0]
        places.append(np.mean([i for i, b in enumerate(order) if b == favourite]))
        top.append(favourite)
    assert abs(np.mean(places) - 47.5) < 2
    assert len(set(top)) == 24


def test_an_unknown_style_is_refused_with_the_known_ones():
    with refused(
        "style must be one of 'clean', 'hesitant', 'overlapping', 'longtail', 'human', got 'shy'."
    ):
        expert.make_demonstrations(style="shy")


def test_a_path_needs_a_complete_behaviour():
    with refused("behavior must be one of the 24 BEHAVIORS, got 5."):
        expert.reference_path(5, np.zeros(2), np.random.default_rng(0))


def test_an_impossible_behaviour_is_given_up(monkeypatch):
    monkeypatch.setattr(expert, "demonstrate", lambda env, behavior, rng, style: None)
    with refused(
        "Behaviour 37 (1-1-1) did not succeed in 100 attempts; the demonstrator's noise or its "
        "path does not suit this robot.",
        RuntimeError,
    ):
        expert.make_demonstrations(n_per_behavior=1, progress=False)


def test_failed_attempts_are_not_recorded(monkeypatch):
    env = gymnasium.make(expert.ENVIRONMENT)
    straight_into_row_one = np.array([[0.525, -0.28], [0.5, -0.1], [0.5, 0.4]])
    monkeypatch.setattr(expert, "reference_path", lambda *arguments: straight_into_row_one)
    assert expert.demonstrate(env, BEHAVIORS[0], np.random.default_rng(0)) is None


def test_the_command_writes_the_shipped_file(tmp_path, capsys, monkeypatch):
    def load(n_per_behavior, random_state, *, style):
        task = "avoiding" if style == "clean" else f"avoiding-{style}"
        return load_demonstrations(task, n_episodes=n_per_behavior + random_state)

    monkeypatch.setattr(expert, "make_demonstrations", load)
    path = tmp_path / "out.npz"
    options = ["--output", str(path), "--n-per-behavior", "2", "--random-state", "1"]
    expert.main(options)
    assert len(Demonstrations.load(path)) == 3
    assert capsys.readouterr().out.startswith("Demonstrations('avoiding', 3 episodes, ")
    expert.main([*options, "--style", "human"])
    assert Demonstrations.load(path).name == "avoiding-human"
