"""Replay buffers of Diffusion Policy, in zarr stores."""

from __future__ import annotations

import math
import os
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.archive import check_expansion
from skvdd.datasets.demonstrations import Demonstrations, Episode

Array = NDArray[np.floating]

# Others are refused: one of zarr's codecs is pickle.
CODECS = ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")
HEADER = struct.Struct("<4xI4xI")  # of a Blosc chunk: bytes when unpacked, block size, bytes stored
MANY_CHUNKS = 1000  # an array may have so many, stored or not


def read_zarr(path: str | os.PathLike[str]) -> Demonstrations:
    """Read a replay buffer of Diffusion Policy [1]_: a zarr store of format 2.

    For the stores of Block Push, `read_block_push
    <skvdd.datasets.readers.read_block_push>` does more.

    Parameters
    ----------
    path : path-like
        The folder of the store, with ``data/obs``, ``data/action`` and ``meta/episode_ends``.

    Returns
    -------
    Demonstrations
        All columns as they are.

    Raises
    ------
    ImportError
        If zarr is not installed.
    FileNotFoundError
        If there is no such store.
    ValueError
        If the store is damaged, holds something else, uses a codec that is not one of plain
        compression, or claims arrays far larger than what is stored.

    References
    ----------
    .. [1] C. Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion",
       RSS 2023.

    Examples
    --------
    Two invented episodes, of 3 and 2 steps, in the form of the published stores:

    >>> import tempfile
    >>> import numpy as np
    >>> import zarr
    >>> from skvdd.datasets.readers import read_zarr
    >>> with tempfile.TemporaryDirectory() as root:
    ...     store = zarr.open_group(f"{root}/push.zarr", mode="w", zarr_format=2)
    ...     for name, values in {
    ...         "data/obs": np.zeros((5, 4)),
    ...         "data/action": np.zeros((5, 2)),
    ...         "meta/episode_ends": np.array([3, 5]),
    ...     }.items():
    ...         _ = store.create_array(name, data=values)
    ...     read_zarr(f"{root}/push.zarr")
    Demonstrations('push', 2 episodes, 5 rows, 4 states, 2 actions)
    """
    path = Path(path)
    episodes = [
        Episode(observations, actions, metadata={"number": i})
        for i, (observations, actions) in enumerate(read_series(path))
    ]
    return Demonstrations(tuple(episodes), path.stem, {"source": "zarr"})


def is_zarr(path: Path) -> bool:
    """Say whether a folder is a zarr store."""
    return path.suffix == ".zarr" or (path / ".zgroup").is_file()


def read_series(
    path: Path, n_states: int | None = None, n_actions: int | None = None
) -> list[tuple[Array, Array]]:
    """Read the observations and actions of each episode.

    Parameters
    ----------
    path : Path
        The folder of the store.
    n_states, n_actions : int or None, default=None
        How many columns there have to be.

    Returns
    -------
    list of tuple of two ndarray
        Of shapes (L, d) and (L, d_a).
    """
    try:
        zarr = import_module("zarr")
    except ImportError as error:
        raise ImportError("reading a zarr store needs zarr: pip install zarr.") from error
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing: it must be the folder of a zarr store.")
    try:
        store = zarr.open_group(os.fspath(path), mode="r", zarr_format=2)
        names = ("data/obs", "data/action", "meta/episode_ends")
        observations, actions, ends = (_read_member(store[name], path / name) for name in names)
    except KeyError as error:
        raise ValueError(f"{path} must hold the array {error}, and does not.") from error
    except Exception as error:  # damage shows as nearly anything
        raise ValueError(f"{path} cannot be read: {error}") from error
    for name, table, n_columns in (("obs", observations, n_states), ("action", actions, n_actions)):
        if table.ndim != 2 or n_columns not in (None, table.shape[1]):
            raise ValueError(
                f"{path} must hold data/{name} of shape (n, {n_columns or 'd'}), got {table.shape}."
            )
    _check_ends(path, ends, len(observations), len(actions))
    pieces = (np.split(table, ends[:-1]) for table in (observations, actions))
    series = list(zip(*pieces, strict=True))
    for i, tables in enumerate(series):
        if not all(np.isfinite(table).all() for table in tables):
            raise ValueError(f"episode {i} of {path} must be finite, and is not.")
    return series


def _read_member(member: Any, folder: Path) -> Array:
    """Read an array whose claims are sound."""
    about = member.metadata.to_dict()
    compressor = about.get("compressor")
    if about.get("filters") or (compressor is not None and compressor["id"] not in CODECS):
        raise ValueError(f"{member.name} is not stored by one of {', '.join(CODECS)} alone")
    if member.dtype.kind not in "fiu":
        raise ValueError(f"{member.name} holds {member.dtype} instead of numbers")
    for shape in (about["shape"], about["chunks"]):
        check_expansion(
            member.name, math.prod(shape) * member.dtype.itemsize, member.nbytes_stored()
        )
    if member.nchunks > max(MANY_CHUNKS, member.nbytes_stored()):
        raise ValueError(f"{member.name} claims {member.nchunks} chunks, most of them missing")
    if compressor is not None and compressor["id"] == "blosc":
        _check_blosc(member, folder)
    return np.asarray(member[:])


def _check_blosc(member: Any, folder: Path) -> None:
    """Refuse chunks whose headers claim other sizes than they have.

    Blosc's decompressor is not told how long a chunk is: it believes the header, and would read and
    write beyond the memory that is there. Within the right sizes it checks everything itself.
    """
    n_bytes = math.prod(member.chunks) * member.dtype.itemsize
    for place in np.ndindex(member.cdata_shape):
        chunk = folder / member.metadata.encode_chunk_key(place)
        if not chunk.is_file():  # of nothing but the fill value
            continue
        with chunk.open("rb") as file:
            header = file.read(HEADER.size)
        n_stored = chunk.stat().st_size
        if n_stored < HEADER.size or HEADER.unpack(header) != (n_bytes, n_stored):
            raise ValueError(f"chunk {chunk.name} of {member.name} has not the sizes it claims")


def _check_ends(path: Path, ends: Array, n_states: int, n_actions: int) -> None:
    """Refuse ends of episodes that do not cut the rows into episodes."""
    is_increasing = ends.ndim == 1 and len(ends) > 0 and (np.diff(ends, prepend=0) > 0).all()
    if ends.dtype.kind not in "iu" or not is_increasing or ends[-1] != n_states:
        raise ValueError(
            f"{path} must hold meta/episode_ends that rise to the number of rows, {n_states}."
        )
    if n_states != n_actions:
        raise ValueError(
            f"{path} must hold equally many observations and actions, got {n_states} and "
            f"{n_actions}."
        )
