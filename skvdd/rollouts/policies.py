"""What can be rolled out: policies, and pipelines that end in one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from skvdd.nn.layout import RowLayout

Array = NDArray[np.float64]


class Policy(Protocol):
    """All that an evaluation asks of a policy."""

    @property
    def window_size(self) -> int:
        """Number of states in a window."""
        ...

    def act(self, X: Array, *, random_state: Any = None) -> Array:
        """Return one action per window, (n, d_a)."""
        ...


def as_policy(policy: Any) -> Policy:
    """Return what can be rolled out: a policy, or a fitted pipeline that ends in one, as a policy.

    Parameters
    ----------
    policy : fitted policy or Pipeline
        Or one of them in `FrozenEstimator`.

    Returns
    -------
    policy : Policy
        With ``window_size`` and ``act``, which takes plain arrays of raw windows. A policy of skvdd
        looks at windows and goals of the sizes that it was fitted with, whatever its parameters
        say since.

    Raises
    ------
    TypeError
        If it, or the last step of the pipeline, has no ``act`` or no ``window_size``.
    """
    if isinstance(policy, FrozenEstimator):
        return as_policy(policy.estimator)
    last = policy.steps[-1][1] if isinstance(policy, Pipeline) else policy
    missing = [name for name in ("act", "window_size") if not hasattr(last, name)]
    if missing:
        chain = "Pipeline that ends in " if last is not policy else ""
        raise TypeError(
            "policy must have act and window_size, or be a Pipeline that ends in what has them, "
            f"got {chain}{type(last).__name__} without {' and '.join(missing)}. Every policy of "
            "skvdd has them; wrap any other one."
        )
    names = getattr(policy, "feature_names_in_", None)
    transform = policy[:-1].transform if isinstance(policy, Pipeline) and len(policy) > 1 else None
    sizes = fitted_sizes(last)
    if names is None and transform is None and sizes == _stated_sizes(last):
        return last
    return ComposedPolicy(last, transform, names, *sizes)


def fitted_sizes(policy: Any) -> tuple[int, int]:
    """Return the numbers of states and of goal columns in a row of the last fit."""
    layout = getattr(getattr(policy, "network_", None), "layout", None)
    if isinstance(layout, RowLayout):
        return layout.window_size, layout.goal_dim
    return _stated_sizes(policy)


def _stated_sizes(policy: Any) -> tuple[int, int]:
    return policy.window_size, getattr(policy, "goal_dim", 0)


@dataclass(frozen=True, eq=False)
class ComposedPolicy:
    """A policy whose rows are not what they seem: named, transformed, or of an earlier fit.

    Parameters
    ----------
    policy : Policy
        The last step.
    transform : callable or None
        What the earlier steps do to flat rows. They may change the number of columns of a state,
        but those of a goal must remain, last and as many.
    feature_names : ndarray of shape (T * d + g,) or None
        Names of the columns in the data frame that was given to `fit`.
    window_size : int
        Number of states in a window.
    goal_dim : int
        Number of columns of a goal.
    """

    policy: Policy
    transform: Callable[[Any], Any] | None
    feature_names: NDArray[np.object_] | None
    window_size: int
    goal_dim: int

    def act(self, X: Array, *, random_state: Any = None) -> Array:
        """Return one action per raw window, (n, T, d) or flat."""
        rows: Any = X.reshape(len(X), -1)
        if self.feature_names is not None and len(self.feature_names) == rows.shape[1]:
            rows = _name_columns(rows, self.feature_names)
        if self.transform is not None:
            rows = self.transform(rows)
        return self.policy.act(rows, random_state=random_state)


def _name_columns(rows: Array, names: NDArray[np.object_]) -> Any:
    """Return a data frame of a library that is there; the rows as they are without any."""
    for library, argument in (("pandas", "columns"), ("polars", "schema")):
        with suppress(ModuleNotFoundError):
            return import_module(library).DataFrame(rows, **{argument: list(names)})
    return rows


def check_goal(policy: object, goal: ArrayLike | None) -> Array | None:
    """Return the goal as a vector of the length that the policy was given in `fit`."""
    if goal is None:
        return None
    goal_dim = getattr(policy, "goal_dim", 0)
    values = np.asarray(goal, dtype=float)
    if values.shape != (goal_dim,) or goal_dim == 0:
        raise ValueError(
            f"goal must have shape ({goal_dim},), the goal_dim of the policy, got shape "
            f"{values.shape}."
        )
    return values
