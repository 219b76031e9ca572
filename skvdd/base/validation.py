"""Checks of what a policy is given, with errors that name the argument and the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.utils import check_array, check_consistent_length

from skvdd._sklearn import validate_data
from skvdd.nn.layout import RowLayout
from skvdd.nn.network import PolicyNetwork
from skvdd.nn.normalization import BLOCK, FARTHEST, Normalization
from skvdd.training.fit import Data
from skvdd.training.rows import is_streamed


def check_training_data(
    estimator: Any, X: ArrayLike, y: ArrayLike | None, *, reset: bool, needs_actions: bool
) -> Data:
    """Validate the data of a fit.

    Parameters
    ----------
    estimator : estimator
        Gets ``n_features_in_`` and ``feature_names_in_``; its ``window_size`` and ``goal_dim`` are
        those of ``X``.
    X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
        Observations.
    y : array-like of shape (n,), (n, d_a) or (n, H, d_a), or None
        Actions.
    reset : bool
        Whether this is a first fit; else the columns must be those of the last one.
    needs_actions : bool
        Whether ``y=None`` is refused.

    Returns
    -------
    Data
    """
    flat = flatten(X, estimator.window_size, estimator.goal_dim)
    if y is None and not needs_actions:
        rows = validate_data(estimator, flat, reset=reset, **_kept(X))
        return Data(X, rows, None, _layout(rows, estimator), ())
    given = as_numbers(y, "y")
    checks = (_kept(X), {**_kept(y), "ensure_2d": False, "allow_nd": True})
    rows, actions = validate_data(estimator, flat, given, reset=reset, validate_separately=checks)
    check_consistent_length(rows, actions)
    shape = _action_shape(actions)
    return Data(X, rows, actions.reshape(len(actions), -1), _layout(rows, estimator), shape)


def _action_shape(actions: NDArray) -> tuple[int, ...]:
    if actions.ndim > 3 or 0 in actions.shape[1:]:
        raise ValueError(
            f"y must have shape (n,), (n, d_a) or (n, H, d_a), got {actions.shape}: one row is one "
            "decision, an action or a chunk of H of them."
        )
    return actions.shape[1:]


def _layout(rows: NDArray, estimator: Any) -> RowLayout:
    window_size, goal_dim = estimator.window_size, estimator.goal_dim
    n_columns = rows.shape[1] - goal_dim
    if goal_dim and (n_columns < window_size or n_columns % window_size):
        raise ValueError(
            f"X has {rows.shape[1]} columns, which does not fit window_size={window_size} and "
            f"goal_dim={goal_dim}: a flat row holds window_size states, oldest first, then the "
            "goal. skvdd.datasets.append_goals builds such rows."
        )
    if n_columns % window_size:
        raise ValueError(
            f"X has {rows.shape[1]} columns, which is no multiple of window_size={window_size}: a "
            "flat row holds window_size states, oldest first. Give X as (n, window_size, d), or "
            "set window_size=1."
        )
    return RowLayout(n_columns // window_size, window_size, goal_dim)


def check_query_rows(estimator: Any, X: ArrayLike, layout: RowLayout) -> NDArray:
    """Validate the observations of a query and return them as (n, T * d + g)."""
    flat = flatten(X, layout.window_size, layout.goal_dim)
    rows = validate_data(estimator, flat, reset=False, **_kept(X))
    check_range(rows, estimator.network_.row_normalization, "X")
    return rows


def check_query_actions(estimator: Any, y: ArrayLike, n_rows: int) -> NDArray:
    """Validate the actions of a query and return them as (n, m), float64."""
    actions = check_array(
        as_numbers(y, "y"),
        dtype=np.float64,
        order="C",
        ensure_2d=False,
        allow_nd=True,
        input_name="y",
    )
    check_consistent_length(np.empty(n_rows), actions)
    shape, n_numbers = estimator.action_shape_, math.prod(estimator.action_shape_)
    accepted = {shape, (n_numbers,)} | ({()} if n_numbers == 1 else set())
    if actions.shape[1:] not in accepted:
        raise ValueError(_other_actions(estimator, actions, shape))
    actions = actions.reshape(n_rows, -1)
    check_range(actions, estimator.network_.action_normalization, "y")
    return actions if actions.flags.writeable else actions.copy()  # torch warns of the other


def _other_actions(estimator: Any, actions: NDArray, shape: tuple[int, ...]) -> str:
    name = type(estimator).__name__
    if actions.ndim <= 2 and len(shape) < 2:
        n_columns = actions.shape[1] if actions.ndim == 2 else 1
        return (
            f"y has {n_columns} columns, but {name} was fitted with "
            f"{math.prod(shape)} action dimensions."
        )
    return (
        f"y has shape {actions.shape}, but {name} was fitted with actions of shape "
        f"{_rows_of(shape)}."
    )


def check_range(values: NDArray, normalization: Normalization, name: str) -> None:
    """Raise a ValueError where a value is so far from the training data that nothing follows.

    The networks work in float32, where the squares of such values overflow.
    """
    low, high = normalization.bounds()
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        outside = (block < low) | (block > high)
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise ValueError(
                f"{name} has the value {block[row, column]:.4g} in row {start + row}, column "
                f"{column}: more than {FARTHEST:.0e} standard deviations from the data of fit. Is "
                "it the placeholder of a missing reading?"
            )


def flatten(X: ArrayLike, window_size: int, goal_dim: int) -> Any:
    """Bring (n, T, d) to the canonical (n, T * d); leave everything else as it came."""
    X = as_numbers(X, "X")
    if hasattr(X, "columns") or np.ndim(X) != 3:
        return X
    windows = np.asarray(X)
    if goal_dim:
        raise ValueError(
            f"X must be flat, (n, window_size * d + goal_dim), for goal_dim={goal_dim}, "
            f"got shape {windows.shape}. skvdd.datasets.append_goals(windows, goals) builds it."
        )
    if windows.shape[1] != window_size:
        raise ValueError(
            f"X has windows of {windows.shape[1]} states (shape {windows.shape}), but "
            f"window_size={window_size}."
        )
    return windows.reshape(len(windows), -1)


def as_numbers(values: Any, name: str) -> Any:
    """Return an array-like that NumPy can take, or raise an error that names it.

    Tensors come to the CPU. Masked entries and mappings are refused: neither are numbers.
    """
    # A sparse array may be a mapping, of which scikit-learn's error says more.
    mapping = isinstance(values, Mapping) and not issparse(values)
    if mapping or type(values).__name__ == "TensorDataset":
        raise TypeError(
            f"{name} must be an array, got a {type(values).__name__}. Give its arrays one by one: "
            "fit(X, y) with X of shape (n, d), (n, T, d) or (n, T * d + g)."
        )
    refuse_masked(values, name)
    if type(values).__module__.partition(".")[0] == "torch" and hasattr(values, "detach"):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        return (values.double() if values.is_floating_point() else values).numpy()
    return values


def refuse_masked(values: Any, name: str) -> None:
    """Raise a ValueError for a masked array with masked entries."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(
            f"{name} has {int(np.ma.getmaskarray(values).sum())} masked entries, which nothing can "
            "be learned from: leave out their rows, or fill them."
        )


def check_same_data(estimator: Any, data: Data, *, partial: bool) -> None:
    """Raise a ValueError if a fit cannot continue on data, which have another shape or unit."""
    continues, remedy = continuation(partial)
    network, layout = estimator.network_, data.layout
    n_actions = network.n_actions if data.actions is None else data.n_actions
    before = network.layout.n_states + network.layout.goal_dim, network.n_actions
    now = layout.n_states + layout.goal_dim, n_actions
    if now != before:
        columns = "states and goals" if layout.goal_dim else "states"
        raise ValueError(
            f"{continues} from a fit with {columns} of {before[0]} and actions of {before[1]} "
            f"dimensions, got {now[0]} and {now[1]}. {remedy}"
        )
    same = data.action_shape == estimator.action_shape_ or (
        n_actions == 1 and max(len(data.action_shape), len(estimator.action_shape_)) < 2
    )
    if data.actions is not None and not same:
        raise ValueError(
            f"{continues} from a fit with actions of shape {_rows_of(estimator.action_shape_)}, "
            f"got {_rows_of(data.action_shape)}. {remedy}"
        )
    if layout == network.layout:
        check_range(data.rows, network.row_normalization, "X")
    if data.actions is not None:
        check_range(data.actions, network.action_normalization, "y")


def check_same_network(old: PolicyNetwork, new: PolicyNetwork, *, partial: bool) -> None:
    """Raise a ValueError if a fit cannot continue from a network, since another one is wanted."""
    continues, remedy = continuation(partial)
    if type(old) is not type(new):
        raise ValueError(
            f"{continues} from a {type(old).__name__}, got a {type(new).__name__}. {remedy}"
        )
    for name, value in _flat(new.config).items():
        before = _flat(old.config).get(name)
        if repr(value) != repr(before):
            raise ValueError(
                f"{continues} from a network with {name}={before}, got {name}={value}. {remedy}"
            )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the entries of a nested one in its place."""
    nested = config.get("denoiser")
    return config if nested is None else {**config, **nested, "denoiser": None}


def _rows_of(shape: tuple[int, ...]) -> str:
    """Return the shape of n actions, as messages show it."""
    return f"({', '.join(['n', *map(str, shape)])}{'' if shape else ','})"


def continuation(partial: bool) -> tuple[str, str]:
    """Return what continues from the last fit, and the remedy, for messages."""
    if partial:
        return "partial_fit continues", "Call fit to start anew."
    return "warm_start=True continues", "Set warm_start=False."


def check_n_samples(n_samples: int | None) -> None:
    """Raise a ValueError unless ``n_samples`` is None or a positive integer."""
    if n_samples is not None and (not isinstance(n_samples, Integral) or n_samples < 1):
        raise ValueError(f"n_samples must be None or an integer of at least 1, got {n_samples!r}.")


def check_n_steps(n_steps: int) -> int:
    """Return a number of sampling steps, or raise a ValueError."""
    if not isinstance(n_steps, Integral) or n_steps < 1:
        raise ValueError(f"n_steps must be an integer of at least 1, got {n_steps!r}.")
    return int(n_steps)


def _kept(values: Any) -> dict[str, Any]:
    """Return how `check_array` keeps values: in their own way if streamed, else float64, by rows.

    Sums and products round otherwise where numbers lie in another order in memory.
    """
    return {"dtype": "numeric"} if is_streamed(values) else {"dtype": np.float64, "order": "C"}
