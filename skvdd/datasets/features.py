"""Features of states that show what decides an action: where things lie, seen from one another.

A cube goes where the rod touches it, to a millimeter, and the coordinates in a state are of
decimeters. A network that is given directions and distances instead learns from a tenth of the
demonstrations what it hardly learns from coordinates.

How far a set-point leads the rod is the last action again, and a policy that sees it repeats it:
Sorting shows nothing of its set-point, Aligning only the height.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import FunctionTransformer

from skvdd.envs.aligning import WALL_DISTANCE
from skvdd.envs.pushing import TARGETS
from skvdd.envs.sorting import BINS, PLATFORM_EDGE
from skvdd.envs.spec import get_task, imported

Array = NDArray[np.floating]

NEAR = 0.15  # m: distances below it have a column of their own, that resolves them
CLOSE = 0.10  # m: places of the rod beside a cube likewise
FALLING = (-0.02, 0.05)  # m, of a block past the edge of the platform: on it, and in its bin
FAR = 10.0  # m: more than any distance on the table
FOURFOLD = 4  # a cube looks the same after a quarter turn
AT_ONCE = 2**13  # rows that are worked on together: what lies between is several times as large


def bearing(start: Array, end: Array) -> Array:
    """Return direction and distance from one point of the plane to another.

    Parameters
    ----------
    start, end : ndarray of shape (..., 2)
        Points, m.

    Returns
    -------
    ndarray of shape (..., 4)
        Cosine and sine of the direction (zero for points that coincide), the distance, and the
        distance again, cut off at 0.15 m.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.datasets.features import bearing
    >>> bearing(np.array([0.0, 0.0]), np.array([0.0, 0.2]))
    array([0.  , 1.  , 0.2 , 0.15])
    """
    way = end - start
    distance = np.linalg.norm(way, axis=-1, keepdims=True)
    direction = way / np.maximum(distance, 1e-9)
    return np.concatenate([direction, distance, np.minimum(distance, NEAR)], axis=-1)


def behind(rod: Array, cube: Array, goal: Array) -> Array:
    """Return where a rod is, seen from a cube that looks to its goal.

    A cube goes to its goal while the rod is straight behind it.

    Parameters
    ----------
    rod, cube, goal : ndarray of shape (..., 2)
        Points of the plane, m.

    Returns
    -------
    ndarray of shape (..., 6)
        How far the rod is ahead of the cube and to its left; both again, cut off at 0.1 m; cosine
        and sine of the turn from the cube's way to the line from rod to cube.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.datasets.features import behind
    >>> behind(np.array([0.0, 0.2]), np.array([0.0, 0.5]), np.array([0.0, 1.0])).round(3) + 0.0
    array([-0.3,  0. , -0.1,  0. ,  1. ,  0. ])
    """
    way, axis = bearing(cube, goal), bearing(cube, rod)
    (c, s), (x, y) = np.moveaxis(way[..., :2], -1, 0), np.moveaxis(axis[..., :2], -1, 0)
    direction = np.stack([c * x + s * y, c * y - s * x], axis=-1)
    place = direction * axis[..., 2:3]
    return np.concatenate([place, np.clip(place, -CLOSE, CLOSE), -direction], axis=-1)


def rotation(angle: Array, symmetry: int = 1) -> Array:
    """Return cosine and sine of an angle, equal for angles that look alike.

    Parameters
    ----------
    angle : ndarray of shape (...)
        Angles, rad.
    symmetry : int, default=1
        In how many positions of a full turn the thing looks the same: 4 for a cube from above.

    Returns
    -------
    ndarray of shape (..., 2)
        Cosine and sine of ``symmetry * angle``.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.datasets.features import rotation
    >>> rotation(np.array([0.0, np.pi / 2]), symmetry=4).round(6) + 0.0
    array([[1., 0.],
           [1., 0.]])
    """
    return np.stack([np.cos(symmetry * angle), np.sin(symmetry * angle)], axis=-1)


def pushing_features(states: Array) -> Array:
    """Return the features of `~skvdd.envs.pushing.Pushing`: (..., 10) to (..., 64)."""
    desired, rod = states[..., :2], states[..., 2:4]
    parts = [desired, desired - rod]
    for column in (4, 7):
        cube = states[..., column : column + 2]
        yaw = rotation(np.arctan(states[..., column + 2]), FOURFOLD)
        parts += [cube, cube - rod, yaw, bearing(rod, cube)]
        for target in TARGETS:
            goal = np.array(target[:2])
            parts += [bearing(cube, goal), behind(rod, cube, goal)]
    return np.concatenate(parts, axis=-1)


def aligning_features(states: Array) -> Array:
    """Return the features of `~skvdd.envs.aligning.Aligning`: (..., 20) to (..., 37)."""
    desired_height, tool = states[..., 2:3], states[..., 3:6]
    tray, target = states[..., 6:9], states[..., 13:16]
    yaw, target_yaw = _yaw(states[..., 9:13]), _yaw(states[..., 16:20])
    return np.concatenate(
        [
            *(tool[..., :2], desired_height),
            *(desired_height - tool[..., 2:], tool[..., 2:] - tray[..., 2:]),
            *(tray[..., :2], target[..., :2], rotation(yaw), rotation(target_yaw - yaw)),
            *_in_frame(tool[..., :2] - tray[..., :2], yaw),
            *_in_frame(target[..., :2] - tray[..., :2], yaw),
            bearing(tool[..., :2], tray[..., :2]),
            bearing(tray[..., :2], target[..., :2]),
            bearing(tool[..., :2], target[..., :2]),
        ],
        axis=-1,
    )


def _yaw(quaternion: Array) -> Array:
    """Return the rotation about the vertical, rad, (...)."""
    return 2.0 * np.arctan2(quaternion[..., 3], quaternion[..., 0])


def _in_frame(way: Array, yaw: Array) -> list[Array]:
    """Return a way as a frame of some yaw sees it, and again cut off where it is far away."""
    c, s = np.cos(yaw)[..., None], np.sin(yaw)[..., None]
    x, y = way[..., :1], way[..., 1:]
    turned = np.concatenate([c * x + s * y, c * y - s * x], axis=-1)
    reach = 2.0 * WALL_DISTANCE
    return [turned, np.clip(turned, -reach, reach)]


def sorting_features(states: Array) -> Array:
    """Return the features of `~skvdd.envs.sorting.Sorting`.

    For n blocks (..., 4 + 3n) to (..., 2 + 21n + 2n(n - 1)). Blocks of a color can stand in for
    one another: the nearest to the rod comes first, and last what lies in a bin.
    """
    rod, blocks = states[..., None, 2:4], _nearest_first(states)
    center, yaw = blocks[..., :2], rotation(np.arctan(blocks[..., 2]), FOURFOLD)
    n_blocks = blocks.shape[-2]
    mouth = np.repeat([[BINS[color].x, BINS[color].y] for color in "rb"], n_blocks // 2, axis=0)
    fallen = np.clip(center[..., 1:] - PLATFORM_EDGE, *FALLING)
    parts = [center, center - rod, yaw, fallen, bearing(rod, center), bearing(center, mouth)]
    each = np.concatenate([*parts, behind(rod, center, mouth)], axis=-1)
    one, other = np.triu_indices(n_blocks, 1)
    pairs = bearing(center[..., one, :], center[..., other, :])
    seen = [part.reshape(*states.shape[:-1], -1) for part in (each, pairs)]
    return np.concatenate([states[..., 2:4], *seen], axis=-1)


def _nearest_first(states: Array) -> Array:
    """Return the blocks, of each color in order of distance to the rod, (..., n, 3)."""
    blocks = states[..., 4:].reshape(*states.shape[:-1], 2, -1, 3)
    away = np.linalg.norm(blocks[..., :2] - states[..., None, None, 2:4], axis=-1)
    order = np.argsort(away + FAR * (blocks[..., 1] > PLATFORM_EDGE), axis=-1, kind="stable")
    ordered = np.take_along_axis(blocks, order[..., None], axis=-2)
    return ordered.reshape(*states.shape[:-1], -1, 3)


def block_push_features(states: Array, goals: Array) -> Array:
    """Return the features of `~skvdd.envs.block_push.BlockPush`: (..., 10) to (..., 32)."""
    measured, commanded = states[..., 6:8], states[..., 8:10]
    parts = [commanded, commanded - measured]
    for column, goal in ((0, goals[..., :2]), (3, goals[..., 2:])):
        block = states[..., column : column + 2]
        yaw = rotation(states[..., column + 2], FOURFOLD)
        parts += [block, block - commanded, yaw, bearing(commanded, block), bearing(block, goal)]
    return np.concatenate(parts, axis=-1)


def task_features(task: str, window_size: int = 1) -> FunctionTransformer:
    """Return a transformer from the rows of a task to features, to put before a policy.

    Parameters
    ----------
    task : str
        Its name: ``"pushing"``, ``"aligning"``, ``"sorting2"``, ``"sorting4"``, ``"sorting6"``,
        ``"blockpush"``, or one of your own whose `~skvdd.envs.TaskSpec` has ``features``.
    window_size : int, default=1
        States in a row, that of the policy.

    Returns
    -------
    sklearn.preprocessing.FunctionTransformer
        It takes rows (n, T, d), (n, T * d) or, in tasks with goals of g numbers, (n, T * d + g),
        and returns flat rows of features, a goal at the end as it was, in their floating type
        (whole numbers: float64). It learns nothing.

    Raises
    ------
    ValueError
        If there is no such task, or it has no features.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.datasets import load_demonstrations
    >>> from skvdd.datasets.features import task_features
    >>> states, actions, _ = load_demonstrations("pushing", 4).windows(window_size=5)
    >>> policy = make_pipeline(
    ...     task_features("pushing", window_size=5),
    ...     GaussianMoEPolicy(window_size=5, max_iter=10, random_state=0),
    ... )
    >>> policy.fit(states, actions).predict(states[:3]).shape
    (3, 2)
    """
    spec = get_task(task)
    if spec.features is None:
        raise ValueError(f"task must have features, and {spec.name!r} has none.")
    parameters = {"window_size": window_size, "features": spec.features, "goal_dim": spec.goal_dim}
    return FunctionTransformer(_featured, kw_args=parameters)


def _featured(
    rows: ArrayLike, window_size: int, features: str | Callable[..., Array], goal_dim: int
) -> Array:
    """Return flat rows of features of flat rows, or of windows."""
    rows = np.asarray(rows)
    rows = rows.reshape(len(rows), -1)
    if (rows.shape[1] - goal_dim) % window_size:
        raise ValueError(
            f"rows must hold {window_size} states each"
            f"{f' and {goal_dim} numbers of a goal' * bool(goal_dim)}, got {rows.shape[1]} columns."
        )
    function = imported(features)
    first = _features_of(rows[:AT_ONCE], window_size, function, goal_dim)
    if len(rows) <= AT_ONCE:
        return first
    featured = np.empty((len(rows), first.shape[1]), dtype=first.dtype)
    featured[:AT_ONCE] = first
    for start in range(AT_ONCE, len(rows), AT_ONCE):
        block = slice(start, start + AT_ONCE)
        featured[block] = _features_of(rows[block], window_size, function, goal_dim)
    return featured


def _features_of(
    rows: Array, window_size: int, function: Callable[..., Array], goal_dim: int
) -> Array:
    """Return the features of flat rows, reckoned in float64 and given back in the rows' type."""
    n_columns = rows.shape[1] - goal_dim
    exact = rows.astype(np.float64, copy=False)
    states = exact[:, :n_columns].reshape(len(rows), window_size, -1)
    goal = exact[:, n_columns:]
    seen = [np.repeat(goal[:, None], window_size, axis=1)] if goal_dim else []
    featured = np.concatenate([function(states, *seen).reshape(len(rows), -1), goal], axis=1)
    return featured.astype(rows.dtype if rows.dtype.kind == "f" else np.float64, copy=False)
