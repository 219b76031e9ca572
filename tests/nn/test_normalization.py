"""Normalization: both ways against numbers by hand, statistics in blocks against NumPy at once."""

import numpy as np
import pytest
import torch

from skvdd.nn import normalization as module
from skvdd.nn.layout import RowLayout
from skvdd.nn.normalization import (
    FARTHEST,
    Normalization,
    action_statistics,
    blocks_of,
    column_statistics,
    row_statistics,
)

SINGLE, DOUBLE = np.finfo(np.float32).eps, np.finfo(np.float64).eps


def normal(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape)


def statistics(values):
    return column_statistics(blocks_of(values))


# -- the module -----------------------------------------------------------------------------


def test_values_are_standardized_and_brought_back():
    normalization = Normalization(2).set([1.0, -2.0], [2.0, 0.5])
    raw = torch.tensor([[3.0, -2.0], [1.0, -1.5]], dtype=torch.float64)
    assert normalization(raw).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert normalization.inverse(normalization(raw)).tolist() == raw.tolist()


def test_standardized_values_are_single_and_raw_ones_double_precision():
    normalization = Normalization(2)
    assert normalization(torch.zeros(3, 2, dtype=torch.float64)).dtype == torch.float32
    assert normalization.inverse(torch.zeros(3, 2)).dtype == torch.float64
    assert normalization.standardize(np.zeros((3, 2), dtype=np.int16)).dtype == torch.float32


def test_a_fresh_normalization_changes_nothing():
    values = normal(5, 3)
    expected = torch.from_numpy(values).float()
    assert torch.equal(Normalization(3)(torch.from_numpy(values)), expected)
    assert torch.equal(Normalization(3).standardize(values), expected)


def test_other_axes_may_stand_before_the_columns():
    normalization = Normalization(2).set([1.0, 2.0], [3.0, 4.0])
    raw = torch.from_numpy(normal(4, 5, 2))
    flat = normalization(raw.flatten(0, 1))
    assert torch.equal(normalization(raw), flat.view(4, 5, 2))
    assert torch.equal(normalization.inverse(normalization(raw)).flatten(0, 1),
                       normalization.inverse(flat))  # fmt: skip


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_an_array_becomes_what_a_tensor_becomes_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    values = 1e6 + normal(10, 2)
    normalization = Normalization(2).set(*statistics(values))
    expected = normalization(torch.from_numpy(values))
    assert torch.equal(normalization.standardize(values), expected)


def test_no_rows_become_no_rows():
    assert Normalization(2).standardize(np.zeros((0, 2))).shape == (0, 2)


def test_a_far_offset_costs_no_digit_of_single_precision():
    """Values of 1e8 have a spacing of 8 in single precision, and of 1.5e-8 in double precision."""
    values = normal(100, 1)
    normalization = Normalization(1).set([1e8], [1.0])
    standard = normalization(torch.from_numpy(1e8 + values))
    np.testing.assert_allclose(standard.numpy(), values, rtol=0, atol=2e-7)
    np.testing.assert_allclose(normalization.inverse(standard).numpy() - 1e8, values, atol=2e-7)


def test_statistics_are_given_back_as_they_were_set():
    mean, scale = normal(3), np.exp(normal(3, seed=1))
    for given in ((mean, scale), (mean.tolist(), scale.tolist()), map(torch.tensor, (mean, scale))):
        ours = Normalization(3).set(*given).statistics
        np.testing.assert_array_equal(ours, (mean, scale))
        assert {part.dtype for part in ours} == {np.dtype(np.float64)}


def test_statistics_are_part_of_a_saved_state_and_not_trained():
    normalization = Normalization(3).set([1, 2, 3], [4, 5, 6])
    assert list(normalization.parameters()) == []
    again = Normalization(3)
    again.load_state_dict(normalization.state_dict())
    np.testing.assert_array_equal(again.statistics, normalization.statistics)


def test_statistics_of_another_number_of_columns_are_refused():
    with pytest.raises(RuntimeError, match="size"):
        Normalization(3).set([1.0, 2.0], [1.0, 1.0])


def test_what_lies_within_the_bounds_has_a_finite_square():
    normalization = Normalization(2).set([1.0, -50.0], [2.0, 1e-3])
    for bound, sign in zip(normalization.bounds(), (-1, 1), strict=True):
        standard = normalization.standardize(bound[None])
        # The offset of -50 costs nothing of a bound that is 1e9 away.
        np.testing.assert_allclose(standard.numpy(), [[sign * FARTHEST] * 2], rtol=1e-6)
        assert standard.square().isfinite().all()


# -- statistics of columns ------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_statistics_in_blocks_are_those_of_numpy_in_one_pass(block, offset, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    values = offset + normal(500, 3) * [1.0, 1e-2, 1e2]
    mean, scale = statistics(values)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-12, atol=1e-12)
    # Numbers near 1e6 have a spacing of 1e-10, which is 1e-8 of a spread of 0.01.
    np.testing.assert_allclose(scale, values.std(axis=0), rtol=2e-8)


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.0, 1e9, 1e100, 1e150])
def test_the_scale_follows_the_unit(unit):
    values = normal(50, 2)
    mean, scale = statistics(unit * values)
    np.testing.assert_allclose(mean / unit, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale / unit, values.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e-5, 1e6 + 0.1, 1e12 + 0.1, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", [64, 2**15])
def test_a_constant_column_has_scale_one(value, dtype, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    values = np.full((1001, 1), value, dtype=dtype)  # whose sum is not exact
    mean, scale = statistics(values)
    np.testing.assert_allclose(mean, values[0], rtol=1e-14)
    assert scale == 1.0


@pytest.mark.parametrize("value", [0.1, 3.0, 1e6 + 0.1])
@pytest.mark.parametrize(("dtype", "eps"), [(np.float32, SINGLE), (np.float64, DOUBLE)])
def test_a_column_that_is_constant_but_for_rounding_has_scale_one(value, dtype, eps):
    last_digit = np.random.RandomState(0).randint(-1, 2, (1000, 1))
    values = (dtype(value) * (1 + last_digit * eps)).astype(dtype)
    assert len(np.unique(values)) > 1
    assert statistics(values)[1] == 1.0


def test_rounding_noise_around_zero_has_scale_one():
    """Sines of multiples of pi: what a computation leaves of a zero."""
    values = np.sin(np.pi * np.arange(1000.0))[:, None]
    assert 0 < values.std() < 1e-12
    assert statistics(values)[1] == 1.0


def test_the_rounding_of_single_precision_counts_in_a_column_of_such_numbers_alone():
    """A spread of 3e-8 around one is the rounding of float32 numbers, but a signal in float64."""
    signal = 1 + 3e-8 * normal(1000, 1)
    np.testing.assert_allclose(statistics(signal)[1], signal.std(), rtol=1e-6)
    single = signal.astype(np.float32)
    assert len(np.unique(single)) > 1
    assert statistics(single)[1] == 1.0


def test_a_small_signal_on_a_far_offset_is_kept():
    """A millimeter in meters on the offset of a UTM northing, and nanoseconds on a Unix time."""
    for offset, spread in ((5.4e6, 1e-3), (1.7e9, 1e-5)):
        values = offset + spread * normal(1000, 1)
        _, scale = statistics(values)
        np.testing.assert_allclose(scale, spread, rtol=0.1)  # 1000 values, and their spacing


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.int64])
def test_integers_and_flags_are_numbers(dtype):
    values = np.random.RandomState(0).randint(0, 2, (100, 2)).astype(dtype)
    mean, scale = statistics(values)
    np.testing.assert_allclose(mean, values.astype(float).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(scale, values.astype(float).std(axis=0), rtol=1e-14)


@pytest.mark.parametrize("offset", [10**6, 2**22, 10**7, 10**9, 10**12])
def test_integers_far_from_zero_stay_apart(offset):
    """Whether or not their difference counts as rounding, it is of order one afterwards."""
    values = offset + np.array([[0], [1]] * 50)
    standard = Normalization(1).set(*statistics(values)).standardize(values)
    assert 0.5 < (standard[1] - standard[0]).item() <= 2.0 + 1e-6


def test_one_row_has_its_values_as_means():
    mean, scale = statistics(np.array([[3.0, -7.0]]))
    assert (mean.tolist(), scale.tolist()) == ([3.0, -7.0], [1.0, 1.0])


def test_a_constant_column_does_no_harm_to_its_neighbors():
    values = np.column_stack([np.full(100, 5.0), normal(100), np.full(100, 0.1)])
    np.testing.assert_allclose(statistics(values)[1], [1.0, values[:, 1].std(), 1.0], rtol=1e-12)


@pytest.mark.parametrize("largest", [1e160, 1e300])
def test_values_whose_squares_overflow_are_refused_by_name(largest):
    values = np.array([[largest], [-largest]])
    with pytest.raises(
        ValueError, match=r"^X has values of up to 1e.*whose squares are not finite"
    ):
        row_statistics(values, RowLayout(1))
    with pytest.raises(ValueError, match=r"^y has values of up to 1e"):
        action_statistics(values, 1)


# -- statistics of rows and chunks ----------------------------------------------------------


def test_the_states_of_a_window_share_their_statistics_and_the_goal_has_its_own():
    rows = normal(200, 3, 2) * [1.0, 50.0] + [3.0, 0.0]
    goals = 7.0 + 0.1 * normal(200, 2, seed=1)
    flat = np.concatenate([rows.reshape(200, 6), goals], axis=1)
    mean, scale = row_statistics(flat, RowLayout(n_states=2, window_size=3, goal_dim=2))
    states = rows.reshape(-1, 2)
    for ours, function in ((mean, np.mean), (scale, np.std)):
        expected = [*np.tile(function(states, axis=0), 3), *function(goals, axis=0)]
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_the_steps_of_a_chunk_share_their_statistics():
    chunks = normal(200, 4, 2) * [1.0, 50.0] + np.arange(4)[:, None]
    mean, scale = action_statistics(chunks.reshape(200, 8), 2)
    steps = chunks.reshape(-1, 2)
    np.testing.assert_allclose(mean, np.tile(steps.mean(axis=0), 4), rtol=1e-12)
    np.testing.assert_allclose(scale, np.tile(steps.std(axis=0), 4), rtol=1e-12)


def test_the_numbers_of_one_action_have_statistics_of_their_own():
    actions = normal(200, 8) * np.arange(1, 9)
    mean, scale = action_statistics(actions, 8)
    np.testing.assert_allclose(mean, actions.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale, actions.std(axis=0), rtol=1e-12)


def test_blocks_are_the_rows_in_order_as_doubles(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    values = np.asfortranarray(np.arange(20, dtype=np.float32).reshape(10, 2))
    blocks = list(blocks_of(values))
    assert [len(block) for block in blocks] == [4, 4, 2]
    assert all(block.dtype == np.float64 and block.flags.c_contiguous for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), values)
