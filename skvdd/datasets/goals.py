"""Rows of goal-conditioned policies: a window of states, then a goal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def append_goals(windows: ArrayLike, goals: ArrayLike) -> NDArray[np.floating]:
    """Return the flat rows that a goal-conditioned policy takes: each window, then its goal.

    Parameters
    ----------
    windows : array-like of shape (n, T, d) or (n, T * d)
        State windows, oldest state first; flat ones are taken as they are.
    goals : array-like of shape (n, g) or (g,)
        The goal of each window, or one for all of them. A vector is always one goal: n goals of
        one number each are (n, 1).

    Returns
    -------
    ndarray of shape (n, T * d + g)
        Rows for a policy with ``goal_dim=g``.

    Raises
    ------
    ValueError
        If windows or goals have another shape.

    Examples
    --------
    >>> from skvdd.datasets import append_goals
    >>> append_goals([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]], [9.0])
    array([[0., 1., 2., 3., 9.],
           [4., 5., 6., 7., 9.]])
    """
    windows, goals = _as_floats(windows), _as_floats(goals)
    if windows.ndim not in (2, 3) or 0 in windows.shape:
        raise ValueError(
            "windows must have shape (n, T, d) or (n, T * d), with at least one row and column, "
            f"got {windows.shape}."
        )
    n = len(windows)
    if goals.ndim not in (1, 2) or 0 in goals.shape or (goals.ndim == 2 and len(goals) != n):
        raise ValueError(
            f"goals must have shape ({n}, g), one for each of the {n} windows, or (g,), one for "
            f"all, with at least one column, got {goals.shape}."
        )
    goals = np.broadcast_to(goals, (n, goals.shape[-1]))
    return np.concatenate([windows.reshape(n, -1), goals], axis=1)


def _as_floats(values: ArrayLike) -> NDArray[np.floating]:
    """Return an array that keeps its precision if it is one of floats."""
    array = np.asarray(values)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def checked_columns(columns: Sequence[int] | None, n_columns: int, whose: str) -> NDArray[np.intp]:
    """Return the indices of the columns that make a goal.

    Parameters
    ----------
    columns : sequence of int or None
        The choice; negative ones count from the end, None is all.
    n_columns : int
        How many there are to choose from.
    whose : str
        What they are the columns of, for the error.

    Returns
    -------
    ndarray of shape (g,)
        The indices.

    Raises
    ------
    ValueError
        If there are no such columns.
    """
    if columns is None:
        return np.arange(n_columns)
    indices = np.asarray(columns)
    if indices.ndim != 1 or len(indices) == 0 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            "goal_columns must be a sequence of at least one column number, or None for all; got "
            f"{columns!r}."
        )
    outside = indices[(indices < -n_columns) | (indices >= n_columns)]
    if len(outside):
        raise ValueError(
            f"goal_columns must lie within the {n_columns} column{'s' if n_columns > 1 else ''} of "
            f"{whose}, got {outside[0]}."
        )
    return indices
