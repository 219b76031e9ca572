"""Minari, Farama's library of recorded episodes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.demonstrations import Demonstrations, Episode
from skvdd.datasets.minari_writer import HEADER, import_minari

Array = NDArray[np.floating]


def read_minari(dataset: str | os.PathLike[str]) -> Demonstrations:
    """Read a data set of Minari.

    Nothing is downloaded, and the environment that a data set names is not made.

    Parameters
    ----------
    dataset : str or path-like
        The name of a data set of the user's, such as ``"D4RL/door/human-v2"``; or the folder of
        one, which holds a folder ``data``.

    Returns
    -------
    Demonstrations
        Without the last state of each episode, after which nothing was done. Observations of
        several parts are put behind one another, in the order of the space; where they have an
        ``"observation"`` and a ``"desired_goal"``, the former are the states and the latter the
        goals. What `Demonstrations.to_minari` wrote is returned as it was.

    Raises
    ------
    ImportError
        If Minari is not installed.
    FileNotFoundError
        If there is no such data set.
    ValueError
        If it is damaged, or has states or actions that are no vectors.

    Examples
    --------
    What `Demonstrations.to_minari` writes to the user's folder of data sets is read back:

    >>> import os
    >>> import tempfile
    >>> from unittest.mock import patch
    >>> import numpy as np
    >>> from skvdd.datasets import Demonstrations, Episode
    >>> from skvdd.datasets.readers import read_minari
    >>> demos = Demonstrations([Episode(np.zeros((5, 2)), np.ones((5, 1)))], name="walk")
    >>> with tempfile.TemporaryDirectory() as root:
    ...     with patch.dict(os.environ, MINARI_DATASETS_PATH=root):
    ...         _ = demos.to_minari("walk/scripted-v0")
    ...         read_minari("walk/scripted-v0")
    Demonstrations('walk', 1 episode, 5 rows, 2 states, 1 action)
    """
    minari = import_minari()
    folder = _folder(minari, dataset)
    try:
        about = json.loads((folder / "metadata.json").read_text())
        if not {"observation_space", "action_space"} <= about.keys():
            # Minari would make the environment to know its spaces, whatever that runs.
            raise ValueError("its metadata have no spaces")
        source = minari.MinariDataset(folder)
        episodes = [_episode(source, episode) for episode in source.iterate_episodes()]
    except Exception as error:  # damage shows as nearly anything
        raise ValueError(f"{folder} cannot be read: {error}") from error
    header = about.get(HEADER)
    if header is None:
        metadata = {"source": f"Minari, {source.id}"}
        if source.env_spec is not None:
            metadata["environment"] = source.env_spec.id
        return Demonstrations(tuple(episodes), source.id, metadata)
    return _as_written(episodes, header, folder)


def _folder(minari: Any, dataset: str | os.PathLike[str]) -> Path:
    """Return where the data lie."""
    named = minari.storage.get_dataset_path(os.fspath(dataset))
    for folder in (Path(dataset), Path(named)):
        if (folder / "data").is_dir():
            return folder / "data"
    raise FileNotFoundError(
        f"dataset must be a folder that holds a folder data, or the name of one in {named.parent}, "
        f"got {os.fspath(dataset)!r}. `minari download` gets published ones."
    )


def _episode(source: Any, episode: Any) -> Episode:
    """Return one episode."""
    space, observed, goals = source.observation_space, episode.observations, None
    if isinstance(space, gymnasium.spaces.Dict) and {"observation", "desired_goal"} <= set(space):
        goals = _rows(space["desired_goal"], observed["desired_goal"], "goals")[:-1]
        space, observed = space["observation"], observed["observation"]
    return Episode(
        _rows(space, observed, "states")[:-1],
        _rows(source.action_space, episode.actions, "actions"),
        goals=goals,
        metadata={"number": int(episode.id), "return": float(np.sum(episode.rewards))},
    )


def _rows(space: gymnasium.Space[Any], values: Any, name: str) -> Array:
    """Return values of a space as a table."""
    if isinstance(space, gymnasium.spaces.Dict):
        parts = [_rows(part, values[key], name) for key, part in space.items()]
        return np.concatenate(parts, axis=1)
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) > 1:
        raise ValueError(f"{name} must be vectors of numbers, got {space}")
    return np.asarray(values).reshape(len(values), -1)


def _as_written(episodes: list[Episode], header: dict[str, Any], folder: Path) -> Demonstrations:
    """Return episodes with what `Demonstrations.to_minari` kept of them."""
    try:
        kept = zip(episodes, header["behaviors"], header["images"], header["episodes"], strict=True)
        whole = tuple(
            Episode(episode.states, episode.actions, behavior, episode.goals, images, metadata)
            for episode, behavior, images, metadata in kept
        )
        return Demonstrations(whole, header["name"], header["metadata"])
    except Exception as error:
        raise ValueError(f"{folder} has other episodes than were written: {error}") from error
