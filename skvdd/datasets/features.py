"""Features of states that show what decides an action: where things lie, seen from one another.

A cube goes where the rod touches it, to a millimetre, and the coordinates in a state are of
decimetres. A network that is given directions and distances instead learns from a tenth of the
demonstrations what it hardly learns from coordinates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import FunctionTransformer

from skvdd.envs.aligning import WALL_DISTANCE
from skvdd.envs.pushing import TARGETS
from skvdd.envs.sorting import BINS

Array = NDArray[np.floating]

NEAR = 0.15  # m: distances below it have a column of their own, that resolves them
FOURFOLD = 4  # a cube looks the same after a quarter turn


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


def rod_features(states: Array) -> list[Array]:
    """Return what a planar rod is about: set-point, and how far it leads the rod, (..., 2) each."""
    desired, rod = states[..., :2], states[..., 2:4]
    return [desired, desired - rod]


def pushing_features(states: Array) -> Array:
    """Return the features of `~skvdd.envs.pushing.Pushing`: (..., 10) to (..., 40)."""
    rod, parts = states[..., 2:4], rod_features(states)
    for column in (4, 7):
        cube = states[..., column : column + 2]
        targets = [bearing(cube, np.array(target[:2])) for target in TARGETS]
        yaw = rotation(np.arctan(states[..., column + 2]), FOURFOLD)
        parts += [cube, cube - rod, yaw, bearing(rod, cube), *targets]
    return np.concatenate(parts, axis=-1)


def aligning_features(states: Array) -> Array:
    """Return the features of `~skvdd.envs.aligning.Aligning`: (..., 20) to (..., 40)."""
    desired, tool = states[..., :3], states[..., 3:6]
    tray, target = states[..., 6:9], states[..., 13:16]
    yaw, target_yaw = _yaw(states[..., 9:13]), _yaw(states[..., 16:20])
    return np.concatenate(
        [
            *(desired, desired - tool, tool[..., 2:] - tray[..., 2:]),
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
    """Return the features of `~skvdd.envs.sorting.Sorting`: (..., 4 + 3n) to (..., 4 + 14n)."""
    rod, parts = states[..., 2:4], rod_features(states)
    n_blocks = (states.shape[-1] - 4) // 3
    for block in range(n_blocks):
        column, bin_ = 4 + 3 * block, BINS["r" if block < n_blocks // 2 else "b"]
        centre = states[..., column : column + 2]
        mouth = np.array([bin_.x, bin_.y])
        yaw = rotation(np.arctan(states[..., column + 2]), FOURFOLD)
        parts += [centre, centre - rod, yaw, bearing(rod, centre), bearing(centre, mouth)]
    return np.concatenate(parts, axis=-1)


def block_push_features(states: Array, goals: Array) -> Array:
    """Return the features of `~skvdd.envs.block_push.BlockPush`: (..., 10) to (..., 32)."""
    measured, commanded = states[..., 6:8], states[..., 8:10]
    parts = [commanded, commanded - measured]
    for column, goal in ((0, goals[..., :2]), (3, goals[..., 2:])):
        block = states[..., column : column + 2]
        yaw = rotation(states[..., column + 2], FOURFOLD)
        parts += [block, block - commanded, yaw, bearing(commanded, block), bearing(block, goal)]
    return np.concatenate(parts, axis=-1)


# Features and how many goal numbers they look at, by task.
FEATURES: dict[str, tuple[Callable[..., Array], int]] = {
    "pushing": (pushing_features, 0),
    "aligning": (aligning_features, 0),
    "sorting2": (sorting_features, 0),
    "sorting4": (sorting_features, 0),
    "sorting6": (sorting_features, 0),
    "blockpush": (block_push_features, 4),
}


def task_features(task: str, window_size: int = 1) -> FunctionTransformer:
    """Return a transformer from the rows of a task to features, to put before a policy.

    Parameters
    ----------
    task : str
        ``"pushing"``, ``"aligning"``, ``"sorting2"``, ``"sorting4"``, ``"sorting6"`` or
        ``"blockpush"``.
    window_size : int, default=1
        States in a row, that of the policy.

    Returns
    -------
    sklearn.preprocessing.FunctionTransformer
        It takes rows (n, T, d), (n, T * d) or, in Block Push, with a goal (n, T * d + 4), and
        returns flat rows of features, a goal at the end as it was. It learns nothing.

    Raises
    ------
    ValueError
        If there are no features for the task.

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
    if task not in FEATURES:
        known = ", ".join(map(repr, FEATURES))
        raise ValueError(f"task must be one of {known} to have features, got {task!r}.")
    return FunctionTransformer(_featured, kw_args={"task": task, "window_size": window_size})


def _featured(rows: ArrayLike, task: str, window_size: int) -> Array:
    """Return flat rows of features of flat rows, or of windows."""
    features, goal_dim = FEATURES[task]
    rows = np.asarray(rows)
    rows = rows.reshape(len(rows), -1)
    n_columns = rows.shape[1] - goal_dim
    if n_columns % window_size:
        raise ValueError(
            f"the rows of {task!r} must hold {window_size} states each"
            f"{f' and {goal_dim} numbers of a goal' * bool(goal_dim)}, got {rows.shape[1]} columns."
        )
    states = rows[:, :n_columns].reshape(len(rows), window_size, -1)
    goal = rows[:, n_columns:]
    seen = [np.repeat(goal[:, None], window_size, axis=1)] if goal_dim else []
    return np.concatenate([features(states, *seen).reshape(len(rows), -1), goal], axis=1)
