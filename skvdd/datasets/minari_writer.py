"""Demonstrations for Minari, Farama's library of recorded episodes."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from numpy.typing import NDArray

from skvdd.datasets.episode import Episode

HEADER = "skvdd"  # the key in Minari's metadata, of all that Minari has no place for


def import_minari() -> Any:
    """Return the module of Minari, or say how to get it."""
    try:
        return import_module("minari")
    except ImportError as error:
        raise ImportError("this needs Minari: pip install 'minari[hdf5]'.") from error


def write_minari(
    dataset_id: str, episodes: Sequence[Episode], header: dict[str, Any], env: str | None
) -> Any:
    """Write episodes to the user's Minari data sets, all of them or none.

    Parameters
    ----------
    dataset_id : str
        What the set is called there.
    episodes : sequence of Episode
        Alike in their columns.
    header : dict
        Kept in the metadata of the set.
    env : str or None
        Gymnasium's name of the environment.

    Returns
    -------
    minari.MinariDataset
        The data set.

    Raises
    ------
    ImportError
        If Minari is not installed.
    ValueError
        If there is a data set of this name already, the name is none, or Gymnasium does not know
        the environment.
    """
    minari = import_minari()
    _check_env(env)
    folder = _free_folder(minari, dataset_id)
    observed = _observations(_space, episodes[0])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* is (set to )?None", UserWarning)  # author etc.
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                [_buffer(episode) for episode in episodes],
                env=env,
                observation_space=Dict(observed) if isinstance(observed, dict) else observed,
                action_space=_space(episodes[0].actions),
            )
        dataset.storage.update_metadata({HEADER: header})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return dataset


def _check_env(env: str | None) -> None:
    """Refuse an environment that Gymnasium does not know."""
    import skvdd.envs  # noqa: F401  registers those of this library

    try:
        if env is not None:
            gymnasium.spec(env)
    except gymnasium.error.Error as error:
        raise ValueError(f"env must be known to Gymnasium, got {env!r}: {error}") from error


def _free_folder(minari: Any, dataset_id: str) -> Path:
    """Return where a new data set will lie; Minari itself checks too late."""
    try:
        minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "dataset_id must be a name with a version, such as 'avoiding/scripted-v0', got "
            f"{dataset_id!r}."
        ) from error
    folder = Path(minari.storage.get_dataset_path(dataset_id))
    if folder.exists():
        raise ValueError(f"dataset_id must be new, and there is {dataset_id!r} in {folder}.")
    return folder


def _space(rows: NDArray[np.floating]) -> Box:
    """Return the space of a row."""
    return Box(-np.inf, np.inf, rows.shape[1:], rows.dtype.type)


def _buffer(episode: Episode) -> Any:
    """Return an episode as Minari takes it."""
    last = np.arange(len(episode)) == len(episode) - 1
    return import_minari().data_collector.EpisodeBuffer(
        observations=_observations(lambda rows: np.concatenate([rows, rows[-1:]]), episode),
        actions=episode.actions,
        rewards=np.zeros(len(episode)),
        terminations=np.zeros_like(last),
        truncations=last,
    )


def _observations(make: Callable[[NDArray[np.floating]], Any], episode: Episode) -> Any:
    """Return what is made of the states, and of the goals where there are any."""
    if episode.goals is None:
        return make(episode.states)
    return {"observation": make(episode.states), "desired_goal": make(episode.goals)}
