"""One recorded episode."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Behavior = str | int | None


@dataclass(frozen=True, eq=False)
class Episode:
    """One recorded episode of L decisions.

    Parameters
    ----------
    states : ndarray of shape (L, d)
        What the demonstrator observed at each decision.
    actions : ndarray of shape (L, d_a)
        What it did, in the same rows.
    behavior : str, int or None, default=None
        Which way of solving the task the episode shows, None where unknown.
    goals : ndarray of shape (L, g) or None, default=None
        What was wanted at each decision, None where nobody said.
    images : mapping of str to sequence of path-like, or None, default=None
        Files of pictures, one for each decision, by camera. They are named, not read.
    metadata : dict, default={}
        Where the episode comes from: anything that JSON can hold.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.datasets import Episode
    >>> Episode(np.zeros((3, 4)), np.zeros((3, 2)), behavior="left")
    Episode(3 steps, 4 states, 2 actions, behavior='left')
    """

    states: NDArray[np.floating]
    actions: NDArray[np.floating]
    behavior: Behavior = None
    goals: NDArray[np.floating] | None = None
    images: dict[str, tuple[str, ...]] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the arrays and make them read-only."""
        for name in ("states", "actions"):
            object.__setattr__(self, name, _checked_rows(getattr(self, name), name))
        object.__setattr__(self, "behavior", _checked_behavior(self.behavior))
        if len(self.states) != len(self.actions):
            raise ValueError(
                "states and actions of an episode must have equally many rows, got "
                f"{len(self.states)} states and {len(self.actions)} actions. A last state "
                "without an action has to be dropped."
            )
        if self.goals is not None:
            object.__setattr__(self, "goals", _checked_rows(self.goals, "goals"))
            self._check_length(self.goals, "goals")
        if self.images is not None:
            object.__setattr__(self, "images", self._checked_images(self.images))
        object.__setattr__(self, "metadata", dict(self.metadata))

    def __len__(self) -> int:
        """Return the number of decisions."""
        return len(self.states)

    def __repr__(self) -> str:
        """Return a line that names sizes instead of values."""
        return (
            f"Episode({len(self)} steps, {self.states.shape[1]} states, "
            f"{self.actions.shape[1]} actions, behavior={self.behavior!r})"
        )

    def _check_length(self, rows: Any, name: str) -> None:
        """Refuse what does not have one row for each decision."""
        if len(rows) != len(self):
            raise ValueError(
                f"{name} of an episode must be as many as its {len(self)} states, got {len(rows)}."
            )

    def _checked_images(self, images: Mapping[str, Sequence[Any]]) -> dict[str, tuple[str, ...]]:
        """Return the names of the files, one for each decision and camera."""
        checked = {}
        for camera, paths in images.items():
            checked[camera] = tuple(os.fspath(path) for path in paths)
            self._check_length(checked[camera], f"images of {camera!r}")
        return checked


def _checked_behavior(behavior: Any) -> Behavior:
    """Return a behavior that JSON can hold and a set can count."""
    if isinstance(behavior, np.integer):
        return int(behavior)
    if behavior is None or isinstance(behavior, str | int):
        return behavior
    raise TypeError(f"behavior must be a str, an int or None, got {behavior!r}.")


def _checked_rows(rows: Any, name: str) -> NDArray[np.floating]:
    """Return a non-empty, finite, read-only float table, or say what is wrong.

    It is a copy, unless the rows lie in a file that is mapped for reading.
    """
    if np.ma.is_masked(rows):
        raise ValueError(
            f"{name} of an episode have {int(np.ma.getmaskarray(rows).sum())} masked entries, "
            "which nothing can be learned from: leave out their rows, or fill them."
        )
    is_mapped = isinstance(rows, np.memmap) and not rows.flags.writeable
    array = rows.view(np.ndarray) if is_mapped else np.array(rows)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{name} of an episode must be a table with one row per decision and at least one "
            f"row and column, got shape {array.shape}."
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} of an episode must be finite, got NaN or infinity in row "
            f"{int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])}."
        )
    array.setflags(write=False)
    return array
