"""Demonstrations: recorded episodes, cut into the rows that policies are fitted on."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import UnsupportedOperation
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

from skvdd.datasets.archive import read_archive, write_archive
from skvdd.datasets.episode import Behavior, Episode
from skvdd.datasets.goals import append_goals, checked_columns

__all__ = ["Behavior", "Demonstrations", "Episode", "append_goals", "is_count"]

FORMAT = "skvdd-demonstrations"
VERSION = 2  # 2: goals, images, and metadata of each episode
READABLE = (1, 2)

Rows = NDArray[np.floating]
Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False, repr=False)
class Demonstrations:
    """A set of recorded episodes of one task.

    It is a sequence: it has a length, episodes are indexed and sliced, and ``+`` puts two sets
    together.

    Parameters
    ----------
    episodes : iterable of Episode
        At least one; all with the same numbers of states and actions, and of columns of goals,
        and with pictures of the same cameras.
    name : str, default=""
        What the set is called.
    metadata : dict, default={}
        Where the set comes from: anything that JSON can hold. ``"states"`` and ``"actions"``,
        where they are lists of as many names as there are columns, name the columns.

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
    >>> demos + demos
    Demonstrations('line', 2 episodes, 6 rows, 1 state, 1 action)
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
            _check_alike(first, episode, i)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.episodes)

    def __iter__(self) -> Iterator[Episode]:
        """Go through the episodes."""
        return iter(self.episodes)

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> Demonstrations: ...

    def __getitem__(self, index: int | slice) -> Episode | Demonstrations:
        """Return one episode, or for a slice the set of those."""
        return self.subset(index) if isinstance(index, slice) else self.episodes[index]

    def __add__(self, other: Demonstrations) -> Demonstrations:
        """Return both sets as one; metadata that differ are kept as ``"parts"``."""
        if not isinstance(other, Demonstrations):
            return NotImplemented
        name = self.name if self.name == other.name else f"{self.name} + {other.name}"
        metadata = self.metadata
        if (self.name, self.metadata) != (other.name, other.metadata):
            metadata = {"parts": self._parts() + other._parts()}
            for key in ("states", "actions"):  # the columns of both
                if key in self.metadata and self.metadata[key] == other.metadata.get(key):
                    metadata[key] = self.metadata[key]
        return Demonstrations(self.episodes + other.episodes, name, metadata)

    def __repr__(self) -> str:
        """Return a line that names sizes instead of values."""
        sizes = [
            _count(len(self), "episode"),
            _count(self.n_rows, "row"),
            _count(self.episodes[0].states.shape[1], "state"),
            _count(self.episodes[0].actions.shape[1], "action"),
        ]
        return f"Demonstrations({self.name!r}, {', '.join(sizes)})"

    @property
    def n_rows(self) -> int:
        """Number of decisions in all episodes."""
        return sum(map(len, self.episodes))

    @property
    def behaviors(self) -> tuple[Behavior, ...]:
        """Behavior of each episode."""
        return tuple(episode.behavior for episode in self.episodes)

    # -- rows -----------------------------------------------------------------------------

    def windows(
        self,
        window_size: int = 1,
        *,
        goal: Literal["future", "recorded"] | None = None,
        goal_columns: Sequence[int] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> tuple[Rows, Rows, Indices]:
        """Cut the episodes into one row per decision.

        All rows are held in memory: ``n * window_size * d`` numbers, and the ``n * d`` they are
        taken from while they are cut. That is so for a set that is memory-mapped, too, as the
        padding leaves no view that would do. `subset` first, where that is too much.

        Parameters
        ----------
        window_size : int, default=1
            Number of states a decision looks at: its own and those before it. The start of
            an episode is padded by repeating its first state.
        goal : {"future", "recorded"} or None, default=None
            Whether each row ends with a goal:

            - ``"future"``: a state that was reached later. What an episode did after a decision,
              the decision did for: the goal is drawn uniformly from the states that follow in the
              same episode, as BESO [1]_ trains its policies. The last decision, which nothing
              follows, has its own state for a goal.
            - ``"recorded"``: what the episode says was wanted (`Episode.goals`).
        goal_columns : sequence of int or None, default=None
            Which columns of a state, or of a recorded goal, make a goal, in the order given;
            negative ones count from the end. None is all of them.
        random_state : int, RandomState or None, default=None
            Source of the draws of future goals. To give every decision more than one goal, draw
            again with another and concatenate.

        Returns
        -------
        states : ndarray of shape (n, window_size, d) or (n, window_size * d + g)
            The window of each decision, oldest state first. With goals, what a policy with
            ``goal_dim=g`` is fitted on: the flat window, then the goal (`append_goals`).
        actions : ndarray of shape (n, d_a)
            The action taken.
        groups : ndarray of shape (n,)
            Index of the episode, for cross-validation that keeps episodes whole.

        Raises
        ------
        ValueError
            If ``window_size`` is no positive integer, there is no such ``goal``, or
            ``goal_columns`` are no columns of it.

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
        >>> rows, actions, groups = demos.windows(goal="future", goal_columns=[0], random_state=0)
        >>> rows
        array([[0., 5., 1.],
               [1., 5., 2.],
               [2., 5., 2.]])
        """
        if not is_count(window_size):
            raise ValueError(f"window_size must be an integer of at least 1, got {window_size!r}.")
        goals = self._goals(goal, goal_columns, random_state)
        first_row, _, groups = self._extents()
        rows = np.arange(len(groups))[:, None] + np.arange(1 - window_size, 1)
        windows = self._stacked("states")[np.maximum(rows, first_row[:, None])]
        actions = self._stacked("actions")
        return windows if goals is None else append_goals(windows, goals), actions, groups

    def _goals(
        self,
        goal: str | None,
        columns: Sequence[int] | None,
        random_state: int | np.random.RandomState | None,
    ) -> Rows | None:
        """Return the goal of each decision, (n, g), None without."""
        if goal is None:
            if columns is not None:
                raise ValueError("goal_columns choose from a goal, so goal must not be None.")
            return None
        if goal not in ("future", "recorded"):
            raise ValueError(f"goal must be 'future', 'recorded' or None, got {goal!r}.")
        if goal == "recorded":
            recorded = self._stacked("goals")
            return recorded[:, checked_columns(columns, recorded.shape[1], "a goal")]
        chosen = checked_columns(columns, self.episodes[0].states.shape[1], "a state")
        _, end_row, groups = self._extents()
        following = np.minimum(np.arange(len(groups)) + 1, end_row - 1)
        reached = check_random_state(random_state).randint(following, end_row)
        return self._stacked("states")[reached][:, chosen]

    def _stacked(self, kind: str) -> Rows:
        """Return states, actions or goals of all episodes, one after the other."""
        tables = [getattr(episode, kind) for episode in self.episodes]
        if tables[0] is None:
            raise ValueError(
                "goal='recorded' needs episodes with goals, and these have none; 'future' takes "
                "states that were reached later."
            )
        return np.concatenate(tables)

    def _extents(self) -> tuple[Indices, Indices, Indices]:
        """Return for each decision its episode's first row, end (exclusive) and index."""
        lengths = np.array([len(episode) for episode in self.episodes])
        ends = np.cumsum(lengths)
        groups = np.repeat(np.arange(len(self)), lengths)
        return (ends - lengths)[groups], ends[groups], groups

    # -- parts ----------------------------------------------------------------------------

    def subset(
        self,
        indices: Iterable[int] | slice = slice(None),
        *,
        behaviors: Iterable[Behavior] | str | int | None = None,
    ) -> Demonstrations:
        """Return some of the episodes.

        Parameters
        ----------
        indices : iterable of int, slice, or mask of bool; default=all
            Which episodes, in the order given; negative ones count from the end. A mask has one
            entry for each episode.
        behaviors : str, int, iterable of them, or None; default=None
            Of those only the ones that show this behavior, or one of these; None does not
            choose, ``[None]`` takes the episodes whose behavior is unknown.

        Returns
        -------
        Demonstrations
            With the same name and metadata; the episodes are shared, not copied.

        Raises
        ------
        ValueError
            If an index is out of range, a mask has another length, no episode shows one of the
            behaviors, or no episode is left.

        Examples
        --------
        >>> from skvdd.datasets import load_demonstrations
        >>> demos = load_demonstrations("pushing")
        >>> demos.subset(slice(0, 40), behaviors=[0, 1]).behaviors[:4]
        (0, 1, 0, 1)
        """
        chosen = [self.episodes[i] for i in self._checked_indices(indices)]
        if behaviors is not None:
            wanted = {behaviors} if isinstance(behaviors, str | int) else set(behaviors)
            unknown = wanted - set(self.behaviors)
            if unknown:
                raise ValueError(
                    "behaviors must be among those that the episodes show, got "
                    f"{', '.join(sorted(map(repr, unknown)))}."
                )
            chosen = [episode for episode in chosen if episode.behavior in wanted]
        return Demonstrations(tuple(chosen), self.name, dict(self.metadata))

    def _checked_indices(self, indices: Iterable[int] | slice) -> list[int]:
        """Return the numbers of the episodes that are meant."""
        if isinstance(indices, slice):
            return list(range(len(self)))[indices]
        chosen = list(indices)
        if chosen and all(isinstance(index, bool | np.bool_) for index in chosen):
            if len(chosen) != len(self):
                raise ValueError(
                    f"indices that are a mask must have {len(self)} entries, one for each "
                    f"episode, got {len(chosen)}."
                )
            return np.flatnonzero(chosen).tolist()
        for index in chosen:
            if not -len(self) <= index < len(self):
                raise ValueError(f"indices must lie within {len(self)} episodes, got {index}.")
        return chosen

    def split(
        self,
        test_size: float | int = 0.25,
        *,
        stratify: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> tuple[Demonstrations, Demonstrations]:
        """Split the set at random, whole episodes at a time.

        Parameters
        ----------
        test_size : float or int, default=0.25
            Share of the episodes that the second part gets, or their number.
        stratify : bool, default=False
            Whether both parts get the behaviors in equal shares.
        random_state : int, RandomState or None, default=None
            Source of the draw.

        Returns
        -------
        train, test : Demonstrations
            The two parts, each in the order of the set.

        Raises
        ------
        ValueError
            If a part would be empty, or a behavior cannot be in both parts.

        Examples
        --------
        >>> from skvdd.datasets import load_demonstrations
        >>> train, test = load_demonstrations().split(24, stratify=True, random_state=0)
        >>> len(train), len(test), len(set(test.behaviors))
        (72, 24, 24)
        """
        labels = [repr(behavior) for behavior in self.behaviors]
        single = [label for label, count in Counter(labels).items() if count == 1]
        if stratify and single:
            raise ValueError(
                "stratify needs at least two episodes of each behavior, got one of "
                f"{', '.join(single)}."
            )
        parts = train_test_split(
            np.arange(len(self)),
            test_size=test_size,
            random_state=random_state,
            stratify=labels if stratify else None,
        )
        train, test = (self.subset(np.sort(part).tolist()) for part in parts)
        return train, test

    def _parts(self) -> list[dict[str, Any]]:
        """Return name and metadata of each set that this one was put together from."""
        if "parts" in self.metadata:
            return list(self.metadata["parts"])
        return [{"name": self.name, "n_episodes": len(self), "metadata": self.metadata}]

    # -- overview -------------------------------------------------------------------------

    def describe(self) -> str:
        """Return tables: episodes and their lengths by behavior, and the range of each column.

        Returns
        -------
        str
            To be printed.

        Examples
        --------
        >>> from skvdd.datasets import load_demonstrations
        >>> print(load_demonstrations("pushing").describe())
        Demonstrations('pushing', 132 episodes, ... rows, 10 states, 2 actions)
            behavior  episodes   share  shortest  longest
                   0        33   25.0%       ...
        ...
        <BLANKLINE>
                                   minimum       mean    maximum
        state 0, desired x             ...
        """
        return "\n".join([repr(self), *self._behavior_table(), "", *self._column_table()])

    def _behavior_table(self) -> list[str]:
        """Return a line for each behavior."""
        lines = [f"{'behavior':>12} {'episodes':>9} {'share':>7} {'shortest':>9} {'longest':>8}"]
        counts = Counter(self.behaviors)
        for behavior in sorted(counts, key=lambda b: (str(type(b)), b)):
            lengths = [len(e) for e in self.episodes if e.behavior == behavior]
            lines.append(
                f"{behavior!s:>12} {len(lengths):>9} {len(lengths) / len(self):>7.1%} "
                f"{min(lengths):>9} {max(lengths):>8}"
            )
        return lines

    def _column_table(self) -> list[str]:
        """Return a line for each column of states, actions and goals."""
        columns: list[tuple[str, float, float, float]] = []
        for kind in ("states", "actions", "goals"):
            tables = [getattr(episode, kind) for episode in self.episodes]
            if tables[0] is not None:
                columns += zip(
                    self._labels(kind, tables[0].shape[1]), *_ranges(tables), strict=True
                )
        width = max(len(label) for label, *_ in columns)
        head = f"{'':<{width}} {'minimum':>10} {'mean':>10} {'maximum':>10}"
        return [head] + [
            f"{label:<{width}} {low:>10.4g} {mean:>10.4g} {high:>10.4g}"
            for label, low, mean, high in columns
        ]

    def _labels(self, kind: str, n_columns: int) -> list[str]:
        """Return number and, where the metadata tell it, name of each column."""
        names = self.metadata.get(kind)
        labels = [f"{kind.removesuffix('s')} {i}" for i in range(n_columns)]
        if not isinstance(names, list) or len(names) != n_columns:
            return labels
        return [f"{label}, {name}" for label, name in zip(labels, names, strict=True)]

    # -- files ----------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, compressed: bool = True) -> None:
        """Write the set to one ``.npz`` file, without pickle.

        The file appears complete or not at all: it is written beside its place and moved.

        Parameters
        ----------
        path : path-like
            Where to; an existing file is replaced.
        compressed : bool, default=True
            Whether the file is small; if not, `load` can memory-map it.
        """
        arrays = {
            "header": np.array(self._header()),
            "lengths": np.array([len(episode) for episode in self.episodes]),
            "states": self._stacked("states"),
            "actions": self._stacked("actions"),
        }
        if self.episodes[0].goals is not None:
            arrays["goals"] = self._stacked("goals")
        write_archive(Path(path), arrays, compressed=compressed)

    def _header(self) -> str:
        """Return everything but the arrays, as JSON."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "behaviors": self.behaviors,
            "metadata": self.metadata,
            "images": [episode.images for episode in self.episodes],
            "episodes": [episode.metadata for episode in self.episodes],
        }
        try:
            return json.dumps(header)
        except TypeError as error:
            raise TypeError(
                "name, behaviors and metadata must be made of what JSON can hold (dict with str "
                f"keys, list, str, int, float, bool, None) to be saved: {error}."
            ) from error

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, mmap_mode: Literal["r"] | None = None
    ) -> Demonstrations:
        """Read a set that `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.
        mmap_mode : {"r"} or None, default=None
            ``"r"`` leaves states, actions and goals in the file, which they are read from when
            they are used. The file must not be changed meanwhile, and must have been saved with
            ``compressed=False``. The numbers are checked to be finite, so they are read once.

        Returns
        -------
        Demonstrations
            Equal to what was saved, to the last bit.

        Raises
        ------
        ValueError
            If the file is damaged or none of these; a size that it claims is checked before
            memory is taken for it.
        io.UnsupportedOperation
            If a compressed file is to be memory-mapped.
        """
        if mmap_mode not in (None, "r"):
            raise ValueError(f"mmap_mode must be 'r' or None, got {mmap_mode!r}.")
        with open(path, "rb"):  # a missing file is no damaged one
            pass
        try:
            return _from_archive(Path(path), mapped=mmap_mode == "r")
        except UnsupportedOperation:
            raise
        except Exception as error:  # damage shows anywhere: zip, zlib, npy, JSON, content
            raise ValueError(
                f"{os.fspath(path)} is damaged, or not a demonstrations file of version 1 or 2 "
                f"as Demonstrations.save writes it ({error})"
            ) from error

    def to_minari(self, dataset_id: str, *, env: str | None = None) -> Any:
        """Write the set to the user's Minari data sets.

        Minari wants the state after the last action, which is not recorded here: the last state
        is repeated there. It wants rewards, which are zero, and each episode ends as truncated.
        Episodes with goals have observations ``{"observation": …, "desired_goal": …}``.
        `~skvdd.datasets.readers.read_minari` reads the set back as it was.

        Parameters
        ----------
        dataset_id : str
            What it is called there, such as ``"avoiding/scripted-v0"``.
        env : str or None, default=None
            Gymnasium's name of the environment, such as ``"skvdd/Avoiding-v0"``, for Minari's
            ``recover_environment``.

        Returns
        -------
        minari.MinariDataset
            The data set.

        Raises
        ------
        ImportError
            If Minari is not installed.
        ValueError
            If there is a data set of this name already, the name is none, or Gymnasium does not
            know the environment.
        """
        from skvdd.datasets.minari_writer import write_minari

        return write_minari(dataset_id, self.episodes, json.loads(self._header()), env)


# ---------------------------------------------------------------------------------------
# What the container is made of
# ---------------------------------------------------------------------------------------


def _check_alike(first: Episode, episode: Episode, i: int) -> None:
    """Refuse what is no episode, or has other columns or cameras than the first one."""
    if not isinstance(episode, Episode):
        raise TypeError(
            f"Demonstrations are made of Episode objects, got {type(episode).__name__} at {i}. "
            "Use Episode(states, actions)."
        )
    widths = episode.states.shape[1], episode.actions.shape[1]
    expected = first.states.shape[1], first.actions.shape[1]
    if widths != expected:
        raise ValueError(
            "All episodes must have the same numbers of states and actions; episode 0 "
            f"has {expected[0]} and {expected[1]}, episode {i} has {widths[0]} and {widths[1]}."
        )
    if _width(episode.goals) != _width(first.goals):
        raise ValueError(
            "All episodes must have goals of the same number of columns, or none; episode 0 has "
            f"{_width(first.goals)} columns, episode {i} has {_width(episode.goals)}."
        )
    cameras, expected_cameras = sorted(episode.images or ()), sorted(first.images or ())
    if cameras != expected_cameras:
        raise ValueError(
            f"All episodes must have images of the same cameras; episode 0 has {expected_cameras}, "
            f"episode {i} has {cameras}."
        )


def _width(goals: Rows | None) -> int:
    """Return the number of columns of goals, 0 without."""
    return 0 if goals is None else goals.shape[1]


def _ranges(tables: Sequence[Rows]) -> tuple[Rows, Rows, Rows]:
    """Return minimum, mean and maximum of each column, over all tables."""
    total = sum(table.sum(axis=0, dtype=np.float64) for table in tables)
    return (
        np.min([table.min(axis=0) for table in tables], axis=0),
        total / sum(map(len, tables)),
        np.max([table.max(axis=0) for table in tables], axis=0),
    )


def is_count(value: object) -> bool:
    """Say whether a value is a positive integer."""
    return isinstance(value, int | np.integer) and bool(value >= 1)


def _count(number: int, noun: str) -> str:
    """Return ``"1 row"``, ``"2 rows"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _from_archive(path: Path, mapped: bool) -> Demonstrations:
    """Build the set from a file; any error means a foreign or damaged one."""
    arrays = read_archive(
        path, ("header", "lengths", "states", "actions"), ("goals",), mapped=mapped
    )
    header = json.loads(str(arrays["header"]))
    if header["format"] != FORMAT or header["version"] not in READABLE:
        raise ValueError(f"format {header['format']!r}, version {header['version']!r}")
    lengths, states, actions = arrays["lengths"], arrays["states"], arrays["actions"]
    goals = arrays.get("goals", states[:, :0])
    if not lengths.sum() == len(states) == len(actions) == len(goals):
        raise ValueError(
            f"lengths add up to {lengths.sum()} rows, found {len(states)} of states, "
            f"{len(actions)} of actions and {len(goals)} of goals"
        )
    ends = np.cumsum(lengths)[:-1]
    parts = zip(
        *(np.split(rows, ends) for rows in (states, actions, goals)),
        header["behaviors"],
        header.get("images", [None] * len(lengths)),
        header.get("episodes", [{}] * len(lengths)),
        strict=True,
    )
    episodes = tuple(
        Episode(states, actions, behavior, goals if "goals" in arrays else None, images, metadata)
        for states, actions, goals, behavior, images, metadata in parts
    )
    return Demonstrations(episodes, header["name"], header["metadata"])
