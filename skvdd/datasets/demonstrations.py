"""Demonstrations: recorded episodes, cut into the rows that policies are fitted on."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

FORMAT = "skvdd-demonstrations"
VERSION = 1

Behavior = str | int | None

# ---------------------------------------------------------------------------------------
# The container
# ---------------------------------------------------------------------------------------


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
    """

    states: NDArray[np.floating]
    actions: NDArray[np.floating]
    behavior: Behavior = None

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

    def __len__(self) -> int:
        """Return the number of decisions."""
        return len(self.states)

    def __repr__(self) -> str:
        """Return a line that names sizes instead of values."""
        return (
            f"Episode({len(self)} steps, {self.states.shape[1]} states, "
            f"{self.actions.shape[1]} actions, behavior={self.behavior!r})"
        )


def _checked_behavior(behavior: Any) -> Behavior:
    """Return a behaviour that JSON can hold and a set can count."""
    if isinstance(behavior, np.integer):
        return int(behavior)
    if behavior is None or isinstance(behavior, str | int):
        return behavior
    raise TypeError(f"behavior must be a str, an int or None, got {behavior!r}.")


def _checked_rows(rows: Any, name: str) -> NDArray[np.floating]:
    """Return a read-only float copy of a non-empty, finite table, or say what is wrong."""
    array = np.array(rows)
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


@dataclass(frozen=True, eq=False, repr=False)
class Demonstrations:
    """A set of recorded episodes of one task.

    Parameters
    ----------
    episodes : iterable of Episode
        At least one; all with the same numbers of states and actions.
    name : str, default=""
        What the set is called.
    metadata : dict, default={}
        Where the set comes from: anything that JSON can hold.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.datasets import Demonstrations, Episode
    >>> episode = Episode(states=np.array([[0.0], [1.0], [2.0]]), actions=np.ones((3, 1)))
    >>> demos = Demonstrations([episode], name="line")
    >>> demos
    Demonstrations('line', 1 episode, 3 rows, 1 state, 1 action)
    >>> states, actions, groups = demos.windows(window_size=2)
    >>> states[:, :, 0]
    array([[0., 0.],
           [0., 1.],
           [1., 2.]])
    """

    episodes: tuple[Episode, ...]
    name: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze the list of episodes and check that they belong together."""
        object.__setattr__(self, "episodes", tuple(self.episodes))
        object.__setattr__(self, "metadata", dict(self.metadata))
        if not self.episodes:
            raise ValueError("Demonstrations need at least one episode, got none.")
        first = self.episodes[0]
        for i, episode in enumerate(self.episodes):
            widths = episode.states.shape[1], episode.actions.shape[1]
            expected = first.states.shape[1], first.actions.shape[1]
            if widths != expected:
                raise ValueError(
                    "All episodes must have the same numbers of states and actions; episode 0 "
                    f"has {expected[0]} and {expected[1]}, episode {i} has {widths[0]} and "
                    f"{widths[1]}."
                )

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.episodes)

    def __iter__(self) -> Iterator[Episode]:
        """Go through the episodes."""
        return iter(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        """Return one episode."""
        return self.episodes[index]

    def __repr__(self) -> str:
        """Return a line that names sizes instead of values."""
        states, actions = self.episodes[0].states.shape[1], self.episodes[0].actions.shape[1]
        sizes = [
            _count(len(self), "episode"),
            _count(self.n_rows, "row"),
            _count(states, "state"),
            _count(actions, "action"),
        ]
        return f"Demonstrations({self.name!r}, {', '.join(sizes)})"

    @property
    def n_rows(self) -> int:
        """Number of decisions in all episodes."""
        return sum(map(len, self.episodes))

    @property
    def behaviors(self) -> tuple[Behavior, ...]:
        """Behaviour of each episode."""
        return tuple(episode.behavior for episode in self.episodes)

    def windows(
        self, window_size: int = 1
    ) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.intp]]:
        """Cut the episodes into one row per decision.

        Parameters
        ----------
        window_size : int, default=1
            Number of states a decision looks at: its own and those before it. The start of
            an episode is padded by repeating its first state.

        Returns
        -------
        states : ndarray of shape (n, window_size, d)
            The window of each decision, oldest state first.
        actions : ndarray of shape (n, d_a)
            The action taken.
        groups : ndarray of shape (n,)
            Index of the episode, for cross-validation that keeps episodes whole.
        """
        if not is_count(window_size):
            raise ValueError(f"window_size must be an integer of at least 1, got {window_size!r}.")
        states = np.concatenate([episode.states for episode in self.episodes])
        actions = np.concatenate([episode.actions for episode in self.episodes])
        first_row, _, groups = self._extents()
        rows = np.arange(len(states))[:, None] + np.arange(1 - window_size, 1)
        return states[np.maximum(rows, first_row[:, None])], actions, groups

    def goal_windows(
        self,
        window_size: int = 1,
        *,
        goal_columns: Sequence[int] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.intp]]:
        """Cut the episodes into one row per decision, each with a goal that was reached later.

        What an episode did after a decision, the decision did for: a goal is a state drawn
        uniformly from those that follow in the same episode, as BESO [1]_ trains its policies.
        The last decision, which nothing follows, has its own state for a goal.

        Parameters
        ----------
        window_size : int, default=1
            Number of states a decision looks at, as in `windows`.
        goal_columns : sequence of int or None, default=None
            Which columns of a state make a goal, in the order given; negative ones count from
            the end. None is the whole state.
        random_state : int, RandomState or None, default=None
            Source of the draws. To give every decision more than one goal, draw again with
            another and concatenate.

        Returns
        -------
        rows : ndarray of shape (n, window_size * d + g)
            What a policy with ``goal_dim=g`` is fitted on: the window, oldest state first, then
            the goal (`append_goals`).
        actions : ndarray of shape (n, d_a)
            The action taken.
        groups : ndarray of shape (n,)
            Index of the episode, for cross-validation that keeps episodes whole.

        Raises
        ------
        ValueError
            If ``window_size`` is no positive integer, or ``goal_columns`` are no columns.

        References
        ----------
        .. [1] Reuss, Li, Jia, Lioutikov (2023), "Goal conditioned imitation learning using
           score-based diffusion policies".

        Examples
        --------
        >>> import numpy as np
        >>> from skvdd.datasets import Demonstrations, Episode
        >>> states = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
        >>> demos = Demonstrations([Episode(states, np.ones((3, 1)))])
        >>> rows, actions, groups = demos.goal_windows(goal_columns=[0], random_state=0)
        >>> rows
        array([[0., 5., 1.],
               [1., 5., 2.],
               [2., 5., 2.]])
        """
        windows, actions, groups = self.windows(window_size)
        columns = _checked_columns(goal_columns, windows.shape[2])
        _, end_row, _ = self._extents()
        following = np.minimum(np.arange(len(windows)) + 1, end_row - 1)
        reached = check_random_state(random_state).randint(following, end_row)
        return append_goals(windows, windows[reached, -1][:, columns]), actions, groups

    def _extents(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Return for each decision its episode's first row, end (exclusive) and index."""
        lengths = np.array([len(episode) for episode in self.episodes])
        ends = np.cumsum(lengths)
        groups = np.repeat(np.arange(len(self)), lengths)
        return (ends - lengths)[groups], ends[groups], groups

    def subset(self, indices: Iterable[int]) -> Demonstrations:
        """Return some of the episodes, in the order given.

        Parameters
        ----------
        indices : iterable of int
            Which episodes; negative ones count from the end.

        Returns
        -------
        Demonstrations
            With the same name and metadata; the episodes are shared, not copied.
        """
        chosen = []
        for index in indices:
            if not -len(self) <= index < len(self):
                raise ValueError(f"indices must lie within {len(self)} episodes, got {index}.")
            chosen.append(self.episodes[index])
        return Demonstrations(tuple(chosen), self.name, dict(self.metadata))

    def describe(self) -> str:
        """Return a small table: the sizes, then episodes and lengths per behaviour."""
        behaviors = self.behaviors
        counts = Counter(behaviors)
        lines = [repr(self), f"{'behavior':>12} {'episodes':>9} {'shortest':>9} {'longest':>8}"]
        for behavior in sorted(counts, key=lambda b: (str(type(b)), b)):
            lengths = [len(e) for e in self.episodes if e.behavior == behavior]
            lines.append(
                f"{behavior!s:>12} {counts[behavior]:>9} {min(lengths):>9} {max(lengths):>8}"
            )
        return "\n".join(lines)

    # -- files ----------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set to one compressed ``.npz`` file, without pickle.

        The file appears complete or not at all: it is written beside its place and moved.

        Parameters
        ----------
        path : path-like
            Where to; an existing file is replaced.
        """
        arrays = {
            "header": np.array(self._header()),
            "lengths": np.array([len(episode) for episode in self.episodes]),
            "states": np.concatenate([episode.states for episode in self.episodes]),
            "actions": np.concatenate([episode.actions for episode in self.episodes]),
        }
        _write_atomically(Path(path), arrays)

    def _header(self) -> str:
        """Return everything but the arrays, as JSON."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "behaviors": self.behaviors,
            "metadata": self.metadata,
        }
        try:
            return json.dumps(header)
        except TypeError as error:
            raise TypeError(
                "name, behaviors and metadata must be made of what JSON can hold (dict with str "
                f"keys, list, str, int, float, bool, None) to be saved: {error}."
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Demonstrations:
        """Read a set that `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        Demonstrations
            Equal to what was saved, to the last bit.
        """
        with open(path, "rb") as file:
            try:
                return _from_archive(np.load(file, allow_pickle=False))
            except Exception as error:  # damage shows anywhere: zip, zlib, npy, JSON, content
                raise ValueError(
                    f"{os.fspath(path)} is damaged, or not a demonstrations file of version "
                    f"{VERSION} as Demonstrations.save writes it ({error})"
                ) from error


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


def _checked_columns(columns: Sequence[int] | None, n_columns: int) -> NDArray[np.intp]:
    """Return the indices of a goal's columns among those of a state."""
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
            f"goal_columns must lie within the {_count(n_columns, 'column')} of a state, got "
            f"{outside[0]}."
        )
    return indices


def is_count(value: object) -> bool:
    """Say whether a value is a positive integer."""
    return isinstance(value, int | np.integer) and bool(value >= 1)


def _count(number: int, noun: str) -> str:
    """Return ``"1 row"``, ``"2 rows"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _write_atomically(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write an archive so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _from_archive(archive: Any) -> Demonstrations:
    """Build the set from an open archive; any error means a foreign or damaged file."""
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("not an .npz archive")
    header = json.loads(str(archive["header"]))
    if header["format"] != FORMAT or header["version"] != VERSION:
        raise ValueError(f"format {header['format']!r}, version {header['version']!r}")
    lengths, states, actions = archive["lengths"], archive["states"], archive["actions"]
    if not lengths.sum() == len(states) == len(actions):
        raise ValueError(
            f"lengths add up to {lengths.sum()} rows, found {len(states)} of states and "
            f"{len(actions)} of actions"
        )
    ends = np.cumsum(lengths)[:-1]
    parts = zip(np.split(states, ends), np.split(actions, ends), header["behaviors"], strict=True)
    return Demonstrations(
        tuple(Episode(*part) for part in parts), header["name"], header["metadata"]
    )
