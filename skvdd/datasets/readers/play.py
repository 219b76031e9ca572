"""Relay kitchen and block push, as they were published for learning from play."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.demonstrations import Behavior, Demonstrations, Episode
from skvdd.datasets.readers.replay_buffer import is_zarr, read_series
from skvdd.envs.block_push import BEHAVIORS, TOLERANCE

Array = NDArray[np.floating]

Series = tuple[Array, Array, Array | None]  # observations, actions and labels of an episode

KITCHEN_EPISODES = 566
KITCHEN_TASKS = (
    "bottom burner",
    "top burner",
    "light switch",
    "slide cabinet",
    "hinge cabinet",
    "microwave",
    "kettle",
)
KITCHEN_ACTIONS = (*(f"joint {i} velocity" for i in range(1, 8)), "finger 1", "finger 2")
KITCHEN_STATES = (
    *(f"joint {i}" for i in range(1, 8)),
    *("finger 1", "finger 2"),
    *(
        f"{part} {corner} burner"
        for corner in ("bottom right", "bottom left", "top right", "top left")
        for part in ("knob of", "flame of")
    ),
    *("light switch", "light", "slide cabinet", "left hinge door", "right hinge door"),
    *("microwave door", "kettle x", "kettle y", "kettle z"),
    *("kettle qw", "kettle qx", "kettle qy", "kettle qz"),
)

PUSH_EPISODES = 1000
PUSH_COLUMNS = 16
PUSH_STATES = (
    *("block x", "block y", "block yaw", "block2 x", "block2 y", "block2 yaw"),
    *("measured x", "measured y", "commanded x", "commanded y"),
)
PUSH_ACTIONS = ("change of commanded x", "change of commanded y")


def read_relay_kitchen(root: str | os.PathLike[str]) -> Demonstrations:
    """Read the demonstrations of relay kitchen [1]_: people in a simulated kitchen.

    Sources disagree on which axis of the arrays is time. It is told by the mask, in which the
    steps of an episode come before the padding, or else by the 566 episodes.

    Parameters
    ----------
    root : path-like
        The folder with ``observations_seq.npy``, ``actions_seq.npy``, ``existence_mask.npy`` and,
        where there is one, ``onehot_goals.pth``.

    Returns
    -------
    Demonstrations
        States are the 30 positions of robot and kitchen (the 30 zeros that follow them are left
        out), actions 9 velocities in [-1, 1]. With ``onehot_goals.pth``, `Episode.goals` are its
        7 columns, and the behavior is the order of the tasks, such as ``"microwave, kettle,
        light switch, slide cabinet"``. The metadata tell the ``"layout"`` that was found.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file holds something else, or nothing tells which axis is time.

    References
    ----------
    .. [1] A. Gupta et al., "Relay Policy Learning", CoRL 2019; in the form of Z. J. Cui et al.,
       "From Play to Policy", ICLR 2023.

    Examples
    --------
    Two invented episodes, of 2 and 3 steps, in the form of the published files:

    >>> import tempfile
    >>> import numpy as np
    >>> from skvdd.datasets.readers import read_relay_kitchen
    >>> with tempfile.TemporaryDirectory() as root:
    ...     np.save(f"{root}/observations_seq.npy", np.zeros((2, 3, 60)))
    ...     np.save(f"{root}/actions_seq.npy", np.zeros((2, 3, 9)))
    ...     np.save(f"{root}/existence_mask.npy", [[1, 1, 0], [1, 1, 1]])
    ...     read_relay_kitchen(root)
    Demonstrations('relay-kitchen', 2 episodes, 5 rows, 30 states, 9 actions)
    """
    data = _load(
        Path(root),
        ("observations_seq.npy", "actions_seq.npy", "existence_mask.npy"),
        n_columns=((30, 60), (9,), (len(KITCHEN_TASKS),)),
        n_episodes=KITCHEN_EPISODES,
    )
    episodes = [
        Episode(states[:, :30], actions, _task_order(labels), labels, metadata={"number": i})
        for i, (states, actions, labels) in enumerate(data.episodes)
    ]
    metadata = {
        "source": "relay kitchen",
        "layout": data.layout,
        "states": list(KITCHEN_STATES),
        "actions": list(KITCHEN_ACTIONS),
        "goals": list(KITCHEN_TASKS),
    }
    return Demonstrations(tuple(episodes), "relay-kitchen", metadata)


def read_block_push(root: str | os.PathLike[str]) -> Demonstrations:
    """Read the demonstrations of Block Push [1]_: a scripted oracle in PyBullet.

    Parameters
    ----------
    root : path-like
        The folder ``multimodal_push_fixed_target`` with ``multimodal_push_observations.npy``,
        ``multimodal_push_actions.npy``, ``multimodal_push_masks.npy`` and, where there is one,
        ``onehot_goals.pth``. Which axis is time is told by the mask, as for
        `read_relay_kitchen`, or else by the 1000 episodes. Or one of the zarr stores
        ``multimodal_push_seed.zarr`` and ``multimodal_push_seed_abs.zarr``.

    Returns
    -------
    Demonstrations
        States, actions and goals are the observations, actions and goals of
        `skvdd.envs.block_push.BlockPush`: 10 columns, changes of the command (absolute commands
        are converted), and where block and block2 were brought to (4). Which target that is,
        ``onehot_goals.pth`` tells, or else the last state. The behavior is the block that came
        first; it is None if none is seen in its target. (A file ends before its last action shows
        effect, so that one does not see the other block arrive.) The metadata tell the
        ``"layout"`` that was found, and whether actions were ``"absolute"``.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file holds something else, or nothing tells which axis is time.
    ImportError
        If a zarr store is to be read, and zarr is not installed.

    References
    ----------
    .. [1] N. M. M. Shafiullah et al., "Behavior Transformers: Cloning k modes with one stone",
       NeurIPS 2022; zarr stores by C. Chi et al., "Diffusion Policy", RSS 2023.

    Examples
    --------
    Two invented episodes, of 2 and 3 steps, in the form of the published files:

    >>> import tempfile
    >>> import numpy as np
    >>> from skvdd.datasets.readers import read_block_push
    >>> with tempfile.TemporaryDirectory() as root:
    ...     np.save(f"{root}/multimodal_push_observations.npy", np.zeros((2, 3, 16)))
    ...     np.save(f"{root}/multimodal_push_actions.npy", np.zeros((2, 3, 2)))
    ...     np.save(f"{root}/multimodal_push_masks.npy", [[1, 1, 0], [1, 1, 1]])
    ...     read_block_push(root)
    Demonstrations('block-push', 2 episodes, 5 rows, 10 states, 2 actions)
    """
    root, is_absolute = Path(root), False
    if is_zarr(root):
        pairs = read_series(root, PUSH_COLUMNS, len(PUSH_ACTIONS))
        series: list[Series] = [(*pair, None) for pair in pairs]
        is_absolute, layout = _is_absolute(series), "zarr"
    else:
        data = _load(
            root,
            tuple(f"multimodal_push_{what}.npy" for what in ("observations", "actions", "masks")),
            n_columns=((PUSH_COLUMNS,), (len(PUSH_ACTIONS),), (4,)),
            n_episodes=PUSH_EPISODES,
        )
        series, layout = data.episodes, data.layout
    metadata = {
        "source": "block push",
        "environment": "skvdd/BlockPush-v0",
        "layout": layout,
        "absolute": is_absolute,
        "states": list(PUSH_STATES),
        "actions": list(PUSH_ACTIONS),
    }
    episodes = [
        _push_episode(observations, actions - is_absolute * observations[:, 8:10], labels, i)
        for i, (observations, actions, labels) in enumerate(series)
    ]
    return Demonstrations(tuple(episodes), "block-push", metadata)


# ---------------------------------------------------------------------------------------
# Behaviors and goals
# ---------------------------------------------------------------------------------------


def _task_order(labels: Array | None) -> Behavior:
    """Return the tasks of a kitchen episode in the order in which they were done."""
    if labels is None or not labels.any():
        return None
    first = {task: int(labels[:, task].argmax()) for task in np.flatnonzero(labels.any(axis=0))}
    return ", ".join(KITCHEN_TASKS[task] for task in sorted(first, key=lambda task: first[task]))


def _push_episode(
    observations: Array, actions: Array, labels: Array | None, number: int
) -> Episode:
    """Return an episode of Block Push, with the goals and behaviors of the environment."""
    blocks = observations[:, [0, 1, 3, 4]].reshape(-1, 2, 2)
    targets = observations[:, [10, 11, 13, 14]].reshape(-1, 2, 2)
    distances = np.linalg.norm(blocks[:, :, None] - targets[:, None], axis=3)  # block, target
    wanted = [1, 0] if _is_crossed(distances[-1], labels) else [0, 1]
    seen = distances[:, [0, 1], wanted] < TOLERANCE
    first = np.where(seen.any(axis=0), seen.argmax(axis=0), len(seen))
    return Episode(
        observations[:, :10],
        actions,
        BEHAVIORS[int(first.argmin())] if seen.any() else None,
        targets[:, wanted].reshape(-1, 4),
        metadata={"number": number},
    )


def _is_crossed(distances: Array, labels: Array | None) -> bool:
    """Say whether block was to come to target2, and block2 to target."""
    if labels is not None:
        done = np.any(labels, axis=0)  # 2 * block + target
        straight, crossed = bool(done[[0, 3]].all()), bool(done[[1, 2]].all())
        if straight != crossed:
            return crossed
    return bool(distances[0, 1] + distances[1, 0] < distances[0, 0] + distances[1, 1])


def _is_absolute(series: Sequence[Series]) -> bool:
    """Say whether actions are the next command, and not its change."""
    as_change = as_command = 0.0
    for observations, actions, _ in series:
        command = observations[:, 8:10]
        as_change += float(np.abs(actions[:-1] - np.diff(command, axis=0)).sum())
        as_command += float(np.abs(actions[:-1] - command[1:]).sum())
    return as_command < as_change


# ---------------------------------------------------------------------------------------
# Padded arrays
# ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Padded:
    """Observations, actions and labels of each episode, and how they lay in the files."""

    episodes: list[Series]
    layout: str


def _load(
    root: Path,
    names: tuple[str, ...],
    n_columns: tuple[tuple[int, ...], ...],
    n_episodes: int,
) -> _Padded:
    """Read observations, actions and mask, and labels if there are any, without the padding."""
    observations, actions, mask = (_load_npy(root / name) for name in names)
    time_axis = _time_axis(mask, n_episodes, root / names[2])
    lengths = mask.sum(axis=time_axis).astype(int)
    labels = _load_labels(root / "onehot_goals.pth", mask.shape, n_columns[2])
    tables = [observations, actions] if labels is None else [observations, actions, labels]
    for table, name, columns in zip(tables[:2], names[:2], n_columns[:2], strict=True):
        _check_shape(table, mask.shape, columns, root / name)
    if time_axis == 0:
        tables = [table.swapaxes(0, 1) for table in tables]
    cut = [[np.array(table[i, :length]) for table in tables] for i, length in enumerate(lengths)]
    _check_finite(cut, root)
    return _Padded(
        [(rows[0], rows[1], None if labels is None else rows[2]) for rows in cut],
        "time first" if time_axis == 0 else "episode first",
    )


def _load_npy(path: Path) -> Array:
    """Map an array of numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damage shows as nearly anything
        raise ValueError(f"{path} is no intact array of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold an array of numbers.")
    return array


def _time_axis(mask: Array, n_episodes: int, path: Path) -> int:
    """Return the axis of a mask along which each episode begins with ones and ends with zeros."""
    if mask.ndim != 2 or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"{path} must hold zeros and ones of two dimensions, got shape {mask.shape}."
        )
    steps = np.asarray(mask, dtype=np.int8)
    axes = [
        axis
        for axis in (0, 1)
        if (steps.take(0, axis) == 1).all() and (np.diff(steps, axis=axis) <= 0).all()
    ]
    if not axes:
        raise ValueError(
            f"{path} must mark the steps of each episode with ones, from its first step to its "
            f"last, and neither axis of its shape {mask.shape} does."
        )
    if len(axes) == 2:
        axes = [axis for axis in axes if mask.shape[1 - axis] == n_episodes]
    if len(axes) != 1:
        raise ValueError(
            f"{path} does not tell which axis is time: of the shape {mask.shape}, either may be, "
            f"and not exactly one is of the {n_episodes} published episodes."
        )
    return axes[0]


def _load_labels(path: Path, shape: tuple[int, ...], n_columns: tuple[int, ...]) -> Array | None:
    """Read the one-hot labels, a tensor in a file of PyTorch; None where there are none."""
    if not path.is_file():
        return None
    import torch  # readers of other files do without

    try:
        tensor: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage, or a pickle that asks for more than tensors
        raise ValueError(f"{path} is no intact tensor: {error}") from error
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise ValueError(f"{path} must hold a tensor, got {type(tensor).__name__}.")
    _check_shape(tensor, shape, n_columns, path)
    return tensor.detach().to(torch.float32).numpy()


def _check_shape(
    table: Any, mask_shape: tuple[int, ...], n_columns: tuple[int, ...], path: Path
) -> None:
    """Refuse an array that does not belong to the mask."""
    shape = tuple(table.shape)
    if len(shape) != 3 or shape[:2] != mask_shape or shape[2] not in n_columns:
        wanted = " or ".join(str((*mask_shape, columns)) for columns in n_columns)
        raise ValueError(f"{path} must have shape {wanted}, as its mask, got {shape}.")


def _check_finite(episodes: list[list[Array]], root: Path) -> None:
    """Refuse an episode that is not of numbers, by its number."""
    for i, tables in enumerate(episodes):
        if not all(np.isfinite(table).all() for table in tables):
            raise ValueError(f"episode {i} of {root} must be finite, and is not.")
