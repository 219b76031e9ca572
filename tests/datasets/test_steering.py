"""How demonstrators steer: noise with a memory, turns, and blocks that are pushed like trailers."""

import numpy as np
import pytest

from skvdd.datasets.experts.steering import (
    Wander,
    WanderingHand,
    angle_between,
    is_behind,
    polar,
    reverse_trailer,
    turned,
    unit,
)


def test_wandering_has_the_spread_and_the_memory_that_were_asked_for():
    wander = Wander(np.random.default_rng(0), memory=0.8, spread=0.5)
    values = [wander.value] + [wander.step() for _ in range(20_000)]
    assert wander.value == values[-1]
    assert np.std(values) == pytest.approx(0.5, rel=0.03)
    for lag in (1, 3):
        correlation = np.corrcoef(values[lag:], values[:-lag])[0, 1]
        assert correlation == pytest.approx(0.8**lag, abs=0.03)


def test_wandering_starts_anywhere():
    starts = [Wander(np.random.default_rng(i), 0.9, 2.0).value for i in range(2000)]
    assert np.std(starts) == pytest.approx(2.0, rel=0.05)


def test_a_hand_goes_where_it_is_told_on_average():
    hand = WanderingHand(np.random.default_rng(0), memory=0.5, speed_noise=0.1)
    steps = np.array([hand.step(2.0, 0.01, 0.3) for _ in range(20_000)])
    headings = np.arctan2(steps[:, 1], steps[:, 0]) - 2.0
    assert np.mean(headings) == pytest.approx(0.0, abs=0.02)
    assert np.std(headings) == pytest.approx(0.3, rel=0.03)
    lengths = np.linalg.norm(steps, axis=1)
    assert np.mean(lengths) == pytest.approx(0.01, rel=0.01)
    assert np.std(lengths) == pytest.approx(0.001, rel=0.03)


@pytest.mark.parametrize("turn", [-3.0, -0.4, 0.0, 1.0, 2.5])
def test_a_turn_leads_from_one_direction_to_another(turn):
    one = polar(0.3, 2.9)
    other = polar(0.7, 2.9 + turn)
    assert angle_between(one, other) == pytest.approx(turn)
    np.testing.assert_allclose(turned(unit(one), turn), unit(other))


def test_nothing_has_no_direction():
    assert unit(np.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ([0.0, 0.04], True),  # straight behind
        ([0.039, 0.04], True),  # aside, in contact
        ([0.04, 0.0], False),  # beside
        ([0.0, -0.04], False),  # ahead
        ([0.034, 0.06], False),  # aside, and not in contact yet
        ([0.0, 0.08], False),  # too far away
    ],
)
def test_a_rod_pushes_from_behind_and_near_only(axis, expected):
    found = is_behind(np.array(axis), np.array([0.0, 1.0]), 0.075, (0.06, 0.07), (0.9, 0.3))
    assert found is expected


@pytest.mark.parametrize(("miss", "steering"), [(0.1, -0.2), (-0.1, 0.2), (1.0, -0.5), (0.0, 0.0)])
def test_to_turn_a_block_the_rod_steers_to_the_other_side(miss, steering):
    axis, heading = polar(0.05, 1.0), polar(1.0, 1.0 + miss)
    assert reverse_trailer(axis, heading, gain=2.0, limit=0.5) == pytest.approx(1.0 + steering)
