"""D3IL: demonstrations by people, as its authors published them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.demonstrations import Demonstrations, Episode
from skvdd.datasets.readers.d3il_tasks import TASKS, Layout, Recording
from skvdd.datasets.readers.pickles import load_arrays

Array = NDArray[np.float64]

CAMERAS = ("bp-cam", "inhand-cam")


def read_d3il(
    task: str,
    root: str | os.PathLike[str],
    *,
    split: Literal["train", "eval"] | os.PathLike[str] | None = None,
) -> Demonstrations:
    """Read the demonstrations of a task of D3IL [1]_.

    States and actions are those that D3IL trains on, which are the observations and actions of
    the environment here: an action is the difference of two successive desired positions, so the
    last sample of a file makes no row. Tangents are cut off at ±100, as in the environments.

    Parameters
    ----------
    task : str
        What, and where it lies below `root`:

        - ``"avoiding"``: ``avoiding/data``
        - ``"aligning"``: ``aligning/all_data/state``
        - ``"pushing"``: ``pushing/all_data``
        - ``"sorting2"``, ``"sorting4"``, ``"sorting6"``: ``sorting/2_boxes/state`` and so on
        - ``"stacking"``: ``stacking/all_data``; states are the desired joints (7), the width of
          the gripper, and x, y, z and tangent of the yaw of the red, green and blue block;
          actions the changes of the desired joints and the next width
        - ``"stacking-images"``: ``stacking/vision_data/state``
    root : path-like
        The folder into which D3IL's zip was extracted.
    split : {"train", "eval"}, path-like or None, default=None
        The published split, or another list of file names, in the order of the list. None is all
        files, in the order of their names.

    Returns
    -------
    Demonstrations
        Behaviors are those of the environment: told by the file names of Aligning and Pushing,
        by the trajectories of Avoiding, Sorting and Stacking (order of arrival such as ``"rgb"``,
        None if it is incomplete). Where the ``images`` folder is there, each episode names its
        pictures (`Episode.images`; JPEG, 96 by 96). The metadata of an episode name its file and,
        if the file has one, the context, for ``env.reset(options={"context": …})``.

    Raises
    ------
    FileNotFoundError
        If a folder, a list, an episode or a picture is missing.
    ValueError
        If there is no such task, or a file holds something else; see `load_arrays
        <skvdd.datasets.readers.pickles.load_arrays>` for what is refused.

    References
    ----------
    .. [1] X. Jia et al., "Toward Diverse Behaviors: A Benchmark for Imitation Learning with
       Human Demonstrations", ICLR 2024.

    Examples
    --------
    >>> from skvdd.datasets.readers import read_d3il
    >>> read_d3il("juggling", "data")
    Traceback (most recent call last):
    ...
    ValueError: task must be one of 'avoiding', 'aligning', ..., got 'juggling'.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(map(repr, TASKS))}, got {task!r}.")
    layout, root = TASKS[task], Path(root)
    episodes = [_read_episode(path, root, layout) for path in _files(root, layout, split)]
    metadata = {
        "source": f"D3IL, {task}",
        "split": None if split is None else os.fspath(split),
        "states": list(layout.states),
        "actions": list(layout.actions),
    }
    if layout.environment is not None:
        metadata["environment"] = layout.environment
    return Demonstrations(tuple(episodes), f"d3il-{task}", metadata)


def read_contexts(path: str | os.PathLike[str]) -> Array:
    """Read a list of contexts of D3IL.

    D3IL publishes them as ``test_contexts.pkl`` and ``train_contexts.pkl``.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    ndarray of shape (n, 3 * k)
        One context per row: x, y in m and yaw in rad of each of the k objects. Aligning: the
        tray, the target. Pushing: the red cube, the green cube. Sorting: six blocks, of which the
        task uses the first ones, ``contexts[:, :3 * n_blocks]``. Stacking: the red, the green and
        the blue block, and a target that is not used. A row can be given to
        ``reset(options={"context": row})``, all of them to ``evaluate_policy(contexts=...)``.

    Raises
    ------
    ValueError
        If the file is no pickle of arrays, or holds something else than contexts; see
        `load_arrays <skvdd.datasets.readers.pickles.load_arrays>` for what is refused.

    Examples
    --------
    Two contexts of two objects in the published form, x and y in m, yaw in degrees:

    >>> import pickle
    >>> import tempfile
    >>> import numpy as np
    >>> from skvdd.datasets.readers import read_contexts
    >>> red, green = np.array([0.5, -0.1, 90.0]), np.array([0.5, 0.1, 0.0])
    >>> quaternion = np.array([1.0, 0.0, 0.0, 0.0])
    >>> with tempfile.NamedTemporaryFile(suffix=".pkl") as file:
    ...     _ = file.write(pickle.dumps([[red, quaternion, green, quaternion]] * 2))
    ...     file.flush()
    ...     read_contexts(file.name).round(2)
    array([[ 0.5 , -0.1 ,  1.57,  0.5 ,  0.1 ,  0.  ],
           [ 0.5 , -0.1 ,  1.57,  0.5 ,  0.1 ,  0.  ]])
    """
    entries = load_arrays(path)
    if not (isinstance(entries, list | tuple) and entries):
        raise ValueError(
            f"{path} must hold a list of contexts, got {type(entries).__name__}"
            f"{' without entries' if isinstance(entries, list | tuple) else ''}."
        )
    contexts = [_context(entry, f"Entry {i} of {path}") for i, entry in enumerate(entries)]
    for i, context in enumerate(contexts):
        if len(context) != len(contexts[0]):
            raise ValueError(
                f"{path} must hold contexts of equally many objects, entry 0 has "
                f"{len(contexts[0]) // 3}, entry {i} has {len(context) // 3}."
            )
    return np.array(contexts)


# ---------------------------------------------------------------------------------------
# Which files
# ---------------------------------------------------------------------------------------


def _files(root: Path, layout: Layout, split: str | os.PathLike[str] | None) -> list[Path]:
    """Return the files of the episodes."""
    folder = root / layout.folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: root must be the folder of D3IL's data, in which "
            f"{layout.folder} holds the episodes of the task."
        )
    if split is None:
        found = sorted(folder.glob("*.pkl"))
        if not found:
            raise FileNotFoundError(f"{folder} must hold episodes, files .pkl, and holds none.")
        return found
    path = _list_of(root, layout, split)
    names = load_arrays(path)
    if not (isinstance(names, list | tuple) and names) or not all(map(_is_file_name, names)):
        raise ValueError(f"{path} must hold a list of names of files in {folder}.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} must hold the {len(names)} files that {path} lists; {len(missing)} are "
            f"missing, the first of them is {missing[0]}."
        )
    return [folder / name for name in names]


def _list_of(root: Path, layout: Layout, split: str | os.PathLike[str]) -> Path:
    """Return the list of a split's files."""
    if split not in ("train", "eval"):
        return Path(split)
    paths = [root / pattern.format(split) for pattern in layout.lists]
    for path in paths:
        if path.is_file():
            return path
    if not paths:
        raise ValueError(f"split must be None for {layout.folder}, which has none, got {split!r}.")
    raise FileNotFoundError(f"the list of the split is missing: {' or '.join(map(str, paths))}.")


def _is_file_name(name: Any) -> bool:
    """Say whether something names a file of a folder, and nothing outside."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*\.pkl", name) is not None


# ---------------------------------------------------------------------------------------
# What is in them
# ---------------------------------------------------------------------------------------


def _read_episode(path: Path, root: Path, layout: Layout) -> Episode:
    """Return the episode of a file."""
    recording = Recording(path)
    states, actions = layout.features(recording)
    if len(states) < 2:
        raise ValueError(f"{path} must hold at least 2 samples, got {len(states)}.")
    metadata: dict[str, Any] = {"file": path.relative_to(root).as_posix()}
    with suppress(ValueError):  # Avoiding has none
        context = _context(recording.content.get("context"), "")
        metadata["context"] = context[: layout.context_size].tolist()  # Sorting draws six poses
    images = None if layout.images is None else _images(root / layout.images, path, len(actions))
    behavior = layout.behavior(recording)
    try:
        return Episode(states[:-1], actions, behavior, images=images, metadata=metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _images(folder: Path, path: Path, n_rows: int) -> dict[str, tuple[str, ...]] | None:
    """Return the pictures of an episode, by camera; None where there are none of any."""
    if not folder.is_dir():
        return None
    images = {}
    for camera in CAMERAS:
        place = folder / camera / path.stem
        there = set(os.listdir(place)) if place.is_dir() else set()
        names = [f"{i}.jpg" for i in range(n_rows)]
        missing = [name for name in names if name not in there]
        if missing:
            raise FileNotFoundError(
                f"{place} must hold the pictures 0.jpg to {names[-1]} of {path}, and {missing[0]} "
                "is missing."
            )
        images[camera] = tuple(str(place / name) for name in names)
    return images


def _context(entry: Any, where: str) -> Array:
    """Return x, y (m) and yaw (rad) of the k objects of a context, (3 * k,)."""
    parts = _parts(entry)
    shapes = [getattr(part, "shape", None) for part in parts]
    if not parts or shapes != [(3,), (4,)] * (len(parts) // 2):
        raise ValueError(
            f"{where} must be a context: for each object x, y, yaw in degrees and then a "
            "quaternion, arrays of shape (3,) and (4,). It has "
            f"{f'shapes {shapes}' if any(shapes) else 'no such structure'}."
        )
    poses = np.array(parts[::2])
    if poses.dtype.kind not in "fiu" or not np.isfinite(poses).all():
        raise ValueError(f"{where} must be a context of finite numbers, and is not.")
    poses = poses.astype(np.float64)
    poses[:, 2] = np.deg2rad(poses[:, 2])
    return poses.ravel()


def _parts(entry: Any) -> list[Any]:
    """Return the arrays of a context, whether they come object by object or all in one list."""
    if not isinstance(entry, list | tuple):
        return []
    nested = [part if isinstance(part, list | tuple) else [part] for part in entry]
    return [part for parts in nested for part in parts]
