"""The demonstrator: every behaviour, natural speed, honest recordings."""

import re

import gymnasium
import numpy as np
import pytest

from skvdd.datasets import Demonstrations, load_demonstrations
from skvdd.datasets.experts import avoiding as expert
from skvdd.envs.avoiding import BEHAVIORS, OBSTACLES, ROD_RADIUS, gaps_of


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture(scope="module")
def one_round():
    return expert.make_demonstrations(n_per_behavior=1, random_state=7, progress=False)


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


def test_a_path_needs_a_complete_behaviour():
    with refused("behavior must be one of the 24 BEHAVIORS, got 5."):
        expert.reference_path(5, np.zeros(2), np.random.default_rng(0))


def test_an_impossible_behaviour_is_given_up(monkeypatch):
    monkeypatch.setattr(expert, "demonstrate", lambda env, behavior, rng: None)
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
    monkeypatch.setattr(
        expert, "make_demonstrations", lambda n, seed: load_demonstrations(n_episodes=n + seed)
    )
    path = tmp_path / "out.npz"
    expert.main(["--output", str(path), "--n-per-behavior", "2", "--random-state", "1"])
    assert len(Demonstrations.load(path)) == 3
    assert capsys.readouterr().out.startswith("Demonstrations('avoiding', 3 episodes, ")
