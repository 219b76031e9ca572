"""The layout of a row: which column is what."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from skvdd.nn.layout import RowLayout


def test_a_row_is_a_window_oldest_state_first_and_then_the_goal():
    layout = RowLayout(n_states=3, window_size=2, goal_dim=1)
    assert (layout.n_window, layout.n_columns) == (6, 7)
    windows, goals = layout.split(torch.arange(14).view(2, 7))
    assert windows.tolist() == [[[0, 1, 2], [3, 4, 5]], [[7, 8, 9], [10, 11, 12]]]
    assert goals.tolist() == [[6], [13]]


def test_a_state_alone_is_a_window_of_one_without_a_goal():
    layout = RowLayout(3)
    assert layout == RowLayout(n_states=3, window_size=1, goal_dim=0)
    windows, goals = layout.split(torch.zeros(4, 3))
    assert windows.shape == (4, 1, 3)
    assert goals.shape == (4, 0)


def test_rows_unflatten_into_windows_and_stay_flat_where_there_is_a_goal():
    rows = torch.arange(12).view(2, 6)
    assert RowLayout(3, 2).unflatten(rows).shape == (2, 2, 3)
    assert torch.equal(RowLayout(3, 2).unflatten(rows).flatten(1), rows)
    assert RowLayout(2, 2, 2).unflatten(rows) is rows


def test_rows_of_another_width_are_no_rows_of_a_layout():
    with pytest.raises(RuntimeError, match="split"):
        RowLayout(3, 2, 1).split(torch.zeros(4, 6))


def test_layouts_are_values():
    assert RowLayout(3, 2) == RowLayout(3, 2, 0) != RowLayout(2, 3)
    assert len({RowLayout(3, 2), RowLayout(3, 2)}) == 1
    with pytest.raises(FrozenInstanceError):
        RowLayout(3).n_states = 4
