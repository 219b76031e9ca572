"""Validation: what counts as observations and actions, and errors that say what came."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from skvdd import GaussianMoEPolicy
from skvdd.base.validation import (
    as_numbers,
    check_n_samples,
    check_n_steps,
    check_query_actions,
    check_query_rows,
    check_same_data,
    check_same_network,
    check_training_data,
    flatten,
)
from skvdd.nn.layout import RowLayout
from skvdd.nn.network import PolicyNetwork


def refused(message, kind=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def check(X, y=0.0, window_size=1, goal_dim=0, *, needs_actions=True):
    y = np.zeros((len(X), 2)) if isinstance(y, float) else y
    estimator = GaussianMoEPolicy(window_size=window_size, goal_dim=goal_dim)
    return check_training_data(estimator, X, y, reset=True, needs_actions=needs_actions)


# -- observations of a fit ------------------------------------------------------------------


def test_states_windows_and_flat_rows_are_one_thing():
    windows = np.random.RandomState(0).standard_normal((5, 2, 3))
    data = check(windows, window_size=2)
    np.testing.assert_array_equal(data.rows, windows.reshape(5, 6))
    np.testing.assert_array_equal(check(windows.reshape(5, 6), window_size=2).rows, data.rows)
    assert data.layout == RowLayout(n_states=3, window_size=2)
    assert data.X is windows
    assert check(windows[:, 0]).layout == RowLayout(n_states=3)


def test_the_goal_takes_the_last_columns():
    data = check(np.zeros((5, 8)), window_size=2, goal_dim=2)
    assert data.layout == RowLayout(n_states=3, window_size=2, goal_dim=2)


def test_rows_are_doubles_in_the_order_of_c():
    for X in (
        np.arange(6).reshape(3, 2),
        np.asfortranarray(np.ones((3, 2), dtype=np.float32)),
        [[1, 2], [3, 4], [5, 6]],
        torch.ones(3, 2, dtype=torch.bfloat16),
        torch.ones(3, 2, requires_grad=True),
        pd.DataFrame({"a": [1, 2, 3], "b": [4, 5, 6]}),
    ):
        rows = check(X).rows
        assert rows.dtype == np.float64
        assert rows.flags.c_contiguous


@pytest.mark.parametrize(
    ("X", "settings", "message"),
    [
        (
            np.zeros((5, 7)),
            {"window_size": 2},
            "X has 7 columns, which is no multiple of window_size=2: a flat row holds window_size "
            "states, oldest first. Give X as (n, window_size, d), or set window_size=1.",
        ),
        (
            np.zeros((5, 3, 2)),
            {"window_size": 2},
            "X has windows of 3 states (shape (5, 3, 2)), but window_size=2.",
        ),
        (
            np.zeros((5, 2, 2)),
            {"window_size": 2, "goal_dim": 1},
            "X must be flat, (n, window_size * d + goal_dim), for goal_dim=1, got shape "
            "(5, 2, 2). skvdd.datasets.append_goals(windows, goals) builds it.",
        ),
        (
            np.zeros((5, 6)),
            {"window_size": 2, "goal_dim": 1},
            "X has 6 columns, which does not fit window_size=2 and goal_dim=1: a flat row holds "
            "window_size states, oldest first, then the goal. skvdd.datasets.append_goals builds "
            "such rows.",
        ),
        (
            np.zeros((5, 3)),
            {"window_size": 2, "goal_dim": 3},
            "X has 3 columns, which does not fit window_size=2 and goal_dim=3: a flat row holds "
            "window_size states, oldest first, then the goal. skvdd.datasets.append_goals builds "
            "such rows.",
        ),
    ],
    ids=["columns", "window", "goal", "both", "no states"],
)
def test_rows_that_do_not_fit_the_window_are_refused(X, settings, message):
    with refused(message):
        check(X, **settings)


@pytest.mark.parametrize("X", [np.zeros((2, 3, 4, 5)), np.zeros(3), np.zeros((0, 2))])
def test_what_has_no_rows_is_refused(X):
    with pytest.raises(ValueError, match=r"dim|sample|1D"):
        check(X, np.zeros(len(X)))


def test_no_columns_are_refused():
    for X, y in ((np.zeros((5, 0)), np.zeros(5)), (np.zeros((5, 2)), np.zeros((5, 0)))):
        with pytest.raises(ValueError, match=r"0 feature\(s\) \(shape=\(5, 0\)\)"):
            check(X, y)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["X", "y"])
def test_values_that_are_not_finite_are_refused_by_name(name, bad):
    values = {"X": np.zeros((5, 2)), "y": np.zeros((5, 2))}
    values[name][3, 1] = bad
    with pytest.raises(ValueError, match=rf"Input {name} contains"):
        check(values["X"], values["y"])


def test_a_mapping_is_no_array():
    for values in (
        {"states": np.zeros((5, 2))},
        torch.utils.data.TensorDataset(torch.zeros(5, 2)),
    ):
        with refused(
            f"X must be an array, got a {type(values).__name__}. Give its arrays one by one: "
            "fit(X, y) with X of shape (n, d), (n, T, d) or (n, T * d + g).",
            TypeError,
        ):
            flatten(values, 1, 0)


def test_masked_entries_are_refused_and_counted():
    masked = np.ma.masked_greater(np.arange(6.0).reshape(3, 2), 2.5)
    with refused(
        "y has 3 masked entries, which nothing can be learned from: leave out their rows, or fill "
        "them."
    ):
        as_numbers(masked, "y")
    assert as_numbers(np.ma.masked_greater(np.zeros(3), 1.0), "y").sum() == 0.0


# -- actions of a fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "action_shape", "n_actions"),
    [((5,), (), 1), ((5, 1), (1,), 1), ((5, 2), (2,), 2), ((5, 3, 2), (3, 2), 6)],
)
def test_actions_are_kept_flat_and_their_shape_beside_them(shape, action_shape, n_actions):
    y = np.arange(np.prod(shape), dtype=float).reshape(shape)
    data = check(np.zeros((5, 2)), y)
    assert (data.action_shape, data.n_actions) == (action_shape, n_actions)
    np.testing.assert_array_equal(data.actions, y.reshape(5, -1))


@pytest.mark.parametrize("shape", [(5, 0, 2), (5, 2, 0), (5, 2, 2, 2)])
def test_actions_of_another_kind_are_refused(shape):
    with refused(
        f"y must have shape (n,), (n, d_a) or (n, H, d_a), got {shape}: one row is one decision, "
        "an action or a chunk of H of them."
    ):
        check(np.zeros((5, 2)), np.zeros(shape))


def test_each_row_has_an_action():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        check(np.zeros((5, 2)), np.zeros((4, 2)))


def test_actions_are_left_out_where_the_teacher_gives_them():
    data = check(np.zeros((5, 2)), None, needs_actions=False)
    assert data.actions is None
    assert data.action_shape == ()
    with pytest.raises(ValueError, match="requires y to be passed"):
        check(np.zeros((5, 2)), None)


# -- queries --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(), (2,), (3, 2)], ids=str)
def policy(request):
    """Fitted to windows of two states; tests must not change it."""
    rng = np.random.RandomState(0)
    policy = GaussianMoEPolicy(2, window_size=2, hidden_size=4, max_iter=0, random_state=0)
    return policy.fit(rng.standard_normal((20, 2, 3)), rng.standard_normal((20, *request.param)))


def rows_of(policy, X):
    return check_query_rows(policy, X, policy.network_.layout)


def test_a_query_takes_rows_as_the_fit_did_whatever_is_set_later(policy):
    X = np.random.RandomState(1).standard_normal((5, 2, 3))
    np.testing.assert_array_equal(rows_of(policy, X), X.reshape(5, 6))
    np.testing.assert_array_equal(rows_of(policy, X.reshape(5, 6)), X.reshape(5, 6))
    with pytest.raises(ValueError, match="expecting 6 features"):
        rows_of(policy, X[:, :1].reshape(5, 3))


def test_actions_of_a_query_come_back_flat(policy):
    y = np.zeros((5, *policy.action_shape_))
    assert check_query_actions(policy, y, 5).shape == (5, policy.network_.n_actions)
    assert check_query_actions(policy, y.reshape(5, -1), 5).shape == (5, policy.network_.n_actions)


def test_actions_of_another_number_are_refused(policy):
    n_actions = policy.network_.n_actions
    with pytest.raises(ValueError, match=r"^y has .*was fitted with"):
        check_query_actions(policy, np.zeros((5, n_actions + 1)), 5)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        check_query_actions(policy, np.zeros((4, n_actions)), 5)


def test_a_chunk_whose_axes_are_swapped_is_refused():
    rng = np.random.RandomState(0)
    policy = GaussianMoEPolicy(2, hidden_size=4, max_iter=0, random_state=0)
    policy.fit(rng.standard_normal((20, 3)), rng.standard_normal((20, 3, 2)))
    with refused(
        "y has shape (5, 2, 3), but GaussianMoEPolicy was fitted with actions of shape (n, 3, 2)."
    ):
        check_query_actions(policy, np.zeros((5, 2, 3)), 5)


@pytest.mark.parametrize(("name", "value"), [("X", 1e15), ("X", -1e30), ("y", 1e15), ("y", -1e308)])
def test_what_is_too_far_from_the_data_is_refused_by_place(policy, name, value):
    width = 6 if name == "X" else policy.network_.n_actions
    values = np.zeros((5, width))
    values[3, -1] = value
    message = (
        f"{name} has the value {value:.4g} in row 3, column {width - 1}: more than 1e+12 standard "
        "deviations from the data of fit. Is it the placeholder of a missing reading?"
    )
    with refused(message):
        rows_of(policy, values) if name == "X" else check_query_actions(policy, values, 5)


# -- continuing -----------------------------------------------------------------------------


def continue_on(policy, X, y, *, window_size=2, partial=True):
    data = check(X, y, window_size)
    check_same_data(policy, data, partial=partial)


def test_a_fit_continues_on_data_of_the_same_shape(policy):
    X, y = np.ones((5, 2, 3)), np.ones((5, *policy.action_shape_))
    continue_on(policy, X, y)
    check_same_data(policy, check(X, None, 2, needs_actions=False), partial=True)


def test_a_fit_does_not_continue_on_states_or_actions_of_other_dimensions(policy):
    X, n_actions = np.ones((5, 2, 3)), policy.network_.n_actions
    with refused(
        f"partial_fit continues from a fit with states of 3 and actions of {n_actions} "
        f"dimensions, got 3 and {n_actions + 1}. Call fit to start anew."
    ):
        continue_on(policy, X, np.ones((5, n_actions + 1)))
    with refused(
        f"warm_start=True continues from a fit with states of 3 and actions of {n_actions} "
        f"dimensions, got 2 and {n_actions}. Set warm_start=False."
    ):
        continue_on(policy, X[..., :2], np.ones((5, n_actions)), partial=False)


def test_a_fit_does_not_continue_on_actions_of_another_shape():
    """Six numbers are two chunks of three as little as three of two."""
    rng = np.random.RandomState(0)
    policy = GaussianMoEPolicy(2, hidden_size=4, max_iter=0, random_state=0)
    policy.fit(rng.standard_normal((20, 3)), rng.standard_normal((20, 3, 2)))
    for shape, shown in (((5, 2, 3), "(n, 2, 3)"), ((5, 6), "(n, 6)")):
        with refused(
            "partial_fit continues from a fit with actions of shape (n, 3, 2), got "
            f"{shown}. Call fit to start anew."
        ):
            continue_on(policy, np.ones((5, 3)), np.ones(shape), window_size=1)


@pytest.mark.parametrize("name", ["X", "y"])
def test_a_fit_does_not_continue_on_data_that_its_normalization_cannot_take(policy, name):
    values = {"X": np.ones((5, 6)), "y": np.ones((5, *policy.action_shape_))}
    values[name][4] = 1e20
    with pytest.raises(ValueError, match=rf"^{name} has the value 1e\+20 in row 4, column 0"):
        continue_on(policy, **values)


def test_a_fit_continues_from_a_network_of_the_same_configuration():
    layout = RowLayout(3, 2)
    old = PolicyNetwork(layout, 2, width=8)
    check_same_network(old, PolicyNetwork(layout, 2, width=8), partial=True)
    with refused(
        "warm_start=True continues from a network with width=8, got width=9. Set warm_start=False."
    ):
        check_same_network(old, PolicyNetwork(layout, 2, width=9), partial=False)


def test_a_window_of_another_length_is_another_network():
    old, new = PolicyNetwork(RowLayout(3, 2), 2), PolicyNetwork(RowLayout(3, 4), 2)
    with pytest.raises(ValueError, match=r"layout=RowLayout\(n_states=3, window_size=2"):
        check_same_network(old, new, partial=False)


# -- numbers of things ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1, 2.0, "3", True is None])
def test_numbers_of_samples_and_steps_are_positive_integers(n):
    with refused(f"n_samples must be None or an integer of at least 1, got {n!r}."):
        check_n_samples(n)
    with refused(f"n_steps must be an integer of at least 1, got {n!r}."):
        check_n_steps(n)


def test_integers_of_numpy_are_integers():
    check_n_samples(None)
    check_n_samples(np.int64(3))
    assert type(check_n_steps(np.int32(2))) is int


def test_a_fit_that_continues_keeps_the_shape_of_single_numbers():
    X, y = np.random.RandomState(0).standard_normal((2, 40, 2))
    policy = GaussianMoEPolicy(2, max_iter=2, random_state=0).fit(X, y[:, 0])
    assert policy.partial_fit(X, y[:, :1]).predict(X).shape == (40,)
    with pytest.raises(ValueError, match="continues from a fit with actions of shape"):
        policy.partial_fit(X, y[:, :1, None])
