"""Small data sets in the formats of others, of which the fuzzer damages one file at a time."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from skvdd.datasets import Demonstrations, Episode, readers

ROWS = np.random.RandomState(0).standard_normal((6, 60))


@dataclass(frozen=True)
class Store:
    """A published data set in small.

    Parameters
    ----------
    name : str
        Of the reader and the set.
    folder : Path
        Where its files lie.
    read : callable
        Reads it.
    """

    name: str
    folder: Path
    read: Callable[[], Any]

    def files(self) -> list[Path]:
        """Return all its files, in the order of their names."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def make_stores(folder: Path) -> list[Store]:
    """Write a small set for every reader whose libraries are installed."""
    makers = {
        "contexts": _contexts,
        "d3il-avoiding": _avoiding,
        "d3il-aligning": _aligning,
        "relay-kitchen": _kitchen,
        "block-push": _block_push,
    }
    if find_spec("zarr"):
        makers |= {"zarr": _zarr, "block-push-zarr": _block_push_zarr}
    if find_spec("minari"):
        makers["minari"] = _minari
    stores = []
    for name, make in makers.items():
        place = folder / name
        place.mkdir(parents=True)
        stores.append(Store(name, place, make(place)))
        stores[-1].read()  # undamaged it can be read
    return stores


def _contexts(folder: Path) -> Callable[[], Any]:
    entry = [ROWS[0, :3], ROWS[0, :4], ROWS[1, :3], ROWS[1, :4]]
    _pickle(folder / "test_contexts.pkl", [entry, entry])
    return partial(readers.read_contexts, folder / "test_contexts.pkl")


def _avoiding(folder: Path) -> Callable[[], Any]:
    robot = {"des_c_pos": ROWS[:, :3], "c_pos": ROWS[:, 3:6]}
    for number, protocol in enumerate((0, 2, 5)):
        path = folder / "avoiding" / "data" / f"env_{number}.pkl"
        _pickle(path, {"robot": robot}, protocol)
    return partial(readers.read_d3il, "avoiding", folder)


def _aligning(folder: Path) -> Callable[[], Any]:
    box = {"pos": ROWS[:, :3], "quat": ROWS[:, 3:7]}
    content = {
        "robot": {"des_c_pos": ROWS[:, :3], "c_pos": ROWS[:, 3:6]},
        "push-box": box,
        "target-box": box,
        "context": [ROWS[0, :3], ROWS[0, :4], ROWS[1, :3], ROWS[1, :4]],
    }
    _pickle(folder / "aligning" / "all_data" / "state" / "a_00.pkl", content)
    _pickle(folder / "aligning" / "eval_files.pkl", ["a_00.pkl"])
    return partial(readers.read_d3il, "aligning", folder, split="eval")


def _kitchen(folder: Path) -> Callable[[], Any]:
    _padded(folder, ("observations_seq", "actions_seq", "existence_mask"), (60, 9, 7))
    return partial(readers.read_relay_kitchen, folder)


def _block_push(folder: Path) -> Callable[[], Any]:
    names = tuple(f"multimodal_push_{what}" for what in ("observations", "actions", "masks"))
    _padded(folder, names, (16, 2, 4))
    return partial(readers.read_block_push, folder)


def _padded(folder: Path, names: tuple[str, ...], n_columns: tuple[int, ...]) -> None:
    import torch

    for name, columns in zip(names[:2], n_columns[:2], strict=True):
        np.save(folder / f"{name}.npy", np.resize(ROWS, (2, 3, columns)))
    np.save(folder / f"{names[2]}.npy", np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    torch.save(torch.zeros(2, 3, n_columns[2]), folder / "onehot_goals.pth")


def _zarr(folder: Path) -> Callable[[], Any]:
    _write_zarr(folder / "set.zarr", 5, 2)
    return partial(readers.read_zarr, folder / "set.zarr")


def _block_push_zarr(folder: Path) -> Callable[[], Any]:
    _write_zarr(folder / "set.zarr", 16, 2)
    return partial(readers.read_block_push, folder / "set.zarr")


def _write_zarr(path: Path, n_states: int, n_actions: int) -> None:
    import zarr

    group = zarr.open_group(os.fspath(path), mode="w", zarr_format=2)
    for name, values in (
        ("data/obs", ROWS[:, :n_states]),
        ("data/action", ROWS[:, :n_actions]),
        ("meta/episode_ends", np.array([2, 6])),
    ):
        group.create_array(name, data=values)


def _minari(folder: Path) -> Callable[[], Any]:
    os.environ["MINARI_DATASETS_PATH"] = os.fspath(folder)
    Demonstrations([Episode(ROWS[:, :2], ROWS[:, :1])]).to_minari("fuzz/line-v0")
    return partial(readers.read_minari, folder / "fuzz" / "line-v0")


def _pickle(path: Path, content: Any, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
