"""The tasks of D3IL: what their files hold, as states, actions and behaviors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.episode import Behavior
from skvdd.datasets.readers.pickles import load_arrays
from skvdd.envs import aligning, get_task, pushing
from skvdd.envs.avoiding import ROW_HALF_WIDTH, ROW_Y, gap_bit
from skvdd.envs.blocks import TANGENT_LIMIT
from skvdd.envs.sorting import BINS, is_inside

Array = NDArray[np.float64]
Features = tuple[Array, Array]  # of all T samples, and of the T - 1 actions between them

STACKING_ZONE = (0.5, 0.2)  # m, where the stack is to be
STACKING_RADIUS = 0.06  # m, a block counts as put there


class Recording:
    """The content of an episode's file.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_samples: int | None = None  # known from the first series
        self.content = load_arrays(path)
        if not isinstance(self.content, dict):
            raise ValueError(f"{path} must hold a dict, got {type(self.content).__name__}.")

    def rows(self, group: str, key: str, n_columns: int) -> Array:
        """Return a series of vectors, (T, n_columns)."""
        part = self.content.get(group)
        series: Any = part.get(key) if isinstance(part, dict) else None
        is_series = isinstance(series, np.ndarray) and series.dtype.kind in "fiu"
        if is_series and n_columns == 1 and series.ndim == 1:
            series = series[:, None]
        if not is_series or series.shape[1:] != (n_columns,):
            raise ValueError(
                f"{self.path} must hold {key} of {group}, numbers of shape (T, {n_columns}), got "
                f"{series.shape if is_series else type(series).__name__}."
            )
        self.n_samples = len(series) if self.n_samples is None else self.n_samples
        if len(series) != self.n_samples:
            raise ValueError(
                f"{self.path} must hold series of one length, got {self.n_samples} samples and "
                f"{len(series)} of {key} of {group}."
            )
        return np.asarray(series, dtype=np.float64)

    def planar(self, block: str) -> Array:
        """Return x, y (m) and the tangent of the yaw of a block, (T, 3)."""
        return np.delete(self.spatial(block), 2, axis=1)

    def spatial(self, block: str) -> Array:
        """Return x, y, z (m) and the tangent of the yaw of a block, (T, 4)."""
        return np.c_[self.rows(block, "pos", 3), tan_yaw(self.rows(block, "quat", 4))]


def tan_yaw(quaternions: Array) -> Array:
    """Return the tangent of the yaw, D3IL's coordinate of it.

    Parameters
    ----------
    quaternions : ndarray of shape (n, 4)
        Orientations (w, x, y, z).

    Returns
    -------
    ndarray of shape (n,)
        Within ±100, as `skvdd.envs.blocks.Block.tan_yaw`.

    Examples
    --------
    >>> import numpy as np
    >>> tan_yaw(np.array([[np.cos(np.pi / 8), 0.0, 0.0, np.sin(np.pi / 8)]])).round(12)
    array([1.])
    """
    w, x, y, z = quaternions.T
    yaw = np.arctan2(2.0 * (w * z - x * y), w * w + x * x - y * y - z * z)
    return np.clip(np.tan(yaw), -TANGENT_LIMIT, TANGENT_LIMIT)


# ---------------------------------------------------------------------------------------
# States, actions, behaviors
# ---------------------------------------------------------------------------------------


def _tool(recording: Recording, n_axes: int) -> tuple[Array, Array]:
    """Return the desired and the measured position of the tool, (T, n_axes) each."""
    desired, measured = (recording.rows("robot", key, 3) for key in ("des_c_pos", "c_pos"))
    return desired[:, :n_axes], measured[:, :n_axes]


def _rod_features(recording: Recording, blocks: Sequence[str] = ()) -> Features:
    """Return the features of Avoiding, Pushing and Sorting."""
    desired, measured = _tool(recording, 2)
    states = np.concatenate([desired, measured, *map(recording.planar, blocks)], axis=1)
    return states, np.diff(desired, axis=0)


def _aligning_features(recording: Recording) -> Features:
    desired, measured = _tool(recording, 3)
    poses = [
        recording.rows(box, key, width)
        for box in ("push-box", "target-box")
        for key, width in (("pos", 3), ("quat", 4))
    ]
    return np.concatenate([desired, measured, *poses], axis=1), np.diff(desired, axis=0)


def _stacking_features(recording: Recording) -> Features:
    joints, width = (
        recording.rows("robot", "des_j_pos", 7),
        recording.rows("robot", "gripper_width", 1),
    )
    blocks = map(recording.spatial, STACKING_BLOCKS)
    actions = np.c_[np.diff(joints, axis=0), width[1:]]
    return np.concatenate([joints, width, *blocks], axis=1), actions


def _named(behaviors: Sequence[int], recording: Recording) -> Behavior:
    """Return the behavior that the name of a file ends with, None where it has no number."""
    match = re.search(r"_(\d\d)$", recording.path.stem)
    if match is None:
        return None
    if int(match[1]) not in behaviors:
        raise ValueError(
            f"{recording.path} must end with the number of a behavior, one of "
            f"{', '.join(f'_{behavior:02}' for behavior in behaviors)}."
        )
    return int(match[1])


def _gaps(recording: Recording) -> Behavior:
    """Return the behavior of `skvdd.envs.avoiding.Avoiding`."""
    x, y, _ = recording.rows("robot", "c_pos", 3).T
    behavior = 0
    for row, row_y in enumerate(ROW_Y):
        is_last = row == len(ROW_Y) - 1
        crossing = y >= row_y if is_last else np.abs(y - row_y) <= ROW_HALF_WIDTH
        bits = (gap_bit(row, x_crossing) for x_crossing in x[crossing].tolist())
        bit = next((bit for bit in bits if bit is not None), None)
        behavior |= 0 if bit is None else 1 << bit
    return behavior


def _sorted_colors(blocks: Sequence[str], recording: Recording) -> Behavior:
    """Return the behavior of `skvdd.envs.sorting.Sorting`."""
    colors = [block[0] for block in blocks]
    bins = np.array([[BINS[color].x, BINS[color].y] for color in colors])
    places = np.stack([recording.planar(block)[:, :2] for block in blocks], axis=1)
    order = _arrivals(places, bins, lambda i, x, y: is_inside(colors[i], x, y))
    return "".join(colors[i] for i in order) if len(order) == len(blocks) else None


def _stacked_colors(recording: Recording) -> Behavior:
    """Return the order in which the blocks came to the zone."""
    places = np.stack([recording.rows(b, "pos", 3)[:, :2] for b in STACKING_BLOCKS], axis=1)
    zone = np.array(STACKING_ZONE)
    order = _arrivals(
        places, zone, lambda _, x, y: bool(np.hypot(*(zone - (x, y))) <= STACKING_RADIUS)
    )
    return "".join(STACKING_BLOCKS[i][0] for i in order) if len(order) == 3 else None


def _arrivals(
    places: Array, goals: Array, has_arrived: Callable[[int, float, float], bool]
) -> list[int]:
    """Return in which order blocks arrived: at each sample at most the one closest to its goal.

    Parameters
    ----------
    places : ndarray of shape (T, k, 2)
        Where the blocks were.
    goals : ndarray of shape (k, 2) or (2,)
        Where they belong.
    has_arrived : callable
        Says of the number, x and y of a block whether it is there.
    """
    distances = np.linalg.norm(places - goals, axis=2)
    order: list[int] = []
    waiting = list(range(places.shape[1]))
    for sample, distance in zip(places.tolist(), distances, strict=True):
        if not waiting:
            break
        nearest = waiting[int(np.argmin(distance[waiting]))]
        if has_arrived(nearest, *sample[nearest]):
            order.append(nearest)
            waiting.remove(nearest)
    return order


# ---------------------------------------------------------------------------------------
# The tasks
# ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where a task lies below the root, and what it is made of."""

    folder: str
    features: Callable[[Recording], Features]
    behavior: Callable[[Recording], Behavior]
    states: tuple[str, ...]
    actions: tuple[str, ...]
    lists: tuple[str, ...] = ()  # of files; {} is the split
    images: str | None = None
    environment: str | None = None
    context_size: int | None = None  # None keeps all of a file's context


PUSHING_BLOCKS = ("red-box", "green-box")
STACKING_BLOCKS = ("red-box", "green-box", "blue-box")


def _as_here(task: str) -> dict[str, Any]:
    """Return what a layout shares with the task's environment here."""
    spec = get_task(task)
    return {"states": spec.states, "actions": spec.actions, "environment": spec.env_id}


def _sorting(n_blocks: int) -> Layout:
    """Return the layout of a task of Sorting."""
    numbers = range(1, n_blocks // 2 + 1)
    blocks = [f"{color}-box{i}" for color in ("red", "blue") for i in numbers]
    folder = f"{n_blocks}_boxes"
    return Layout(
        folder=f"sorting/{folder}/state",
        features=partial(_rod_features, blocks=blocks),
        behavior=partial(_sorted_colors, blocks),
        lists=(
            f"sorting/{folder}_{{}}_files.pkl",
            f"sorting/{folder}/{folder}_{{}}_files.pkl",
        ),
        images=f"sorting/{folder}/images",
        context_size=3 * n_blocks,
        **_as_here(f"sorting{n_blocks}"),
    )


def _stacking(folder: str, prefix: str, images: str | None) -> Layout:
    """Return the layout of a set of Stacking."""
    joints = [f"joint {i}" for i in range(1, 8)]
    colors = [block.removesuffix("-box") for block in STACKING_BLOCKS]
    return Layout(
        folder=f"stacking/{folder}",
        features=_stacking_features,
        behavior=_stacked_colors,
        states=(
            *(f"desired {joint}" for joint in joints),
            "gripper width",
            *(f for c in colors for f in (f"{c} x", f"{c} y", f"{c} z", f"tan({c} yaw)")),
        ),
        actions=(*(f"change of desired {joint}" for joint in joints), "next gripper width"),
        lists=(f"stacking/{prefix}{{}}_files.pkl",),
        images=images,
    )


TASKS = {
    "avoiding": Layout(
        folder="avoiding/data",
        features=_rod_features,
        behavior=_gaps,
        **_as_here("avoiding"),
    ),
    "aligning": Layout(
        folder="aligning/all_data/state",
        features=_aligning_features,
        behavior=partial(_named, aligning.BEHAVIORS),
        lists=("aligning/{}_files.pkl",),
        images="aligning/all_data/images",
        **_as_here("aligning"),
    ),
    "pushing": Layout(
        folder="pushing/all_data",
        features=partial(_rod_features, blocks=PUSHING_BLOCKS),
        behavior=partial(_named, pushing.BEHAVIORS),
        lists=("pushing/{}_files.pkl",),
        **_as_here("pushing"),
    ),
    **{f"sorting{n_blocks}": _sorting(n_blocks) for n_blocks in (2, 4, 6)},
    "stacking": _stacking("all_data", "", None),
    "stacking-images": _stacking("vision_data/state", "vision_", "stacking/vision_data/images"),
}
