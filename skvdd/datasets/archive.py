"""Archives of arrays, ``.npz``: written whole or not at all, read without trusting their claims."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from io import UnsupportedOperation
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

# A few bytes can be made to unpack into gigabytes. Recorded numbers never shrink that much.
MAX_EXPANSION = 200
ALWAYS_ALLOWED = 64 * 2**20  # bytes, whatever they were packed into

_LOCAL_HEADER = struct.Struct("<26x2H")  # of a zip member: lengths of its name and extra field


def write_archive(
    path: Path, arrays: Mapping[str, NDArray[Any]], *, compressed: bool = True
) -> None:
    """Write an archive so that a reader sees all of it or nothing.

    Parameters
    ----------
    path : Path
        Where to; an existing file is replaced.
    arrays : mapping of str to ndarray
        The members.
    compressed : bool, default=True
        Whether to compress. Only arrays that were not can be memory-mapped. Arrays so monotonous
        that `read_archive` would take them for an attack are never compressed.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        _write(temporary, arrays, np.savez_compressed if compressed else np.savez)
        if compressed and _expands_too_far(temporary):
            _write(temporary, arrays, np.savez)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(path: Path, arrays: Mapping[str, NDArray[Any]], save: Callable[..., None]) -> None:
    """Write a file, and see it on the disk."""
    with open(path, "wb") as file:
        save(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())


def _expands_too_far(path: Path) -> bool:
    """Say whether `check_expansion` would refuse a member."""
    with zipfile.ZipFile(path) as archive:
        return any(m.file_size > _allowed(m.compress_size) for m in archive.infolist())


def read_archive(
    path: Path, names: Sequence[str], optional: Sequence[str] = (), *, mapped: bool = False
) -> dict[str, NDArray[Any]]:
    """Read members of an archive.

    What a member says of its size is checked before memory is taken for it.

    Parameters
    ----------
    path : Path
        The file.
    names, optional : sequence of str
        Members that have to be there, and members that may be missing.
    mapped : bool, default=False
        Whether to map tables, the members of two dimensions, instead of reading them. The check
        sums of mapped members are not verified.

    Returns
    -------
    dict of str to ndarray
        The members that are there, read-only.

    Raises
    ------
    ValueError
        If a member is missing, holds objects, or is not as large as it says.
    io.UnsupportedOperation
        If a table is to be mapped, but is compressed.
    """
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        missing = [name for name in names if name not in members]
        if missing:
            raise ValueError(f"{missing[0]!r} is not in the archive")
        return {
            name: _read_member(archive, members[name], path, mapped)
            for name in (*names, *optional)
            if name in members
        }


def check_expansion(name: str, n_bytes: int, n_stored: int) -> None:
    """Refuse an array that would take up far more memory than its file has bytes.

    Parameters
    ----------
    name : str
        What the array is called.
    n_bytes, n_stored : int
        Its size in memory, and in the file.

    Raises
    ------
    ValueError
        If it unpacks into more than two hundred times its size, and more than 64 MiB.
    """
    if n_bytes > _allowed(n_stored):
        raise ValueError(f"{name} claims {n_bytes} bytes, but only {n_stored} are stored")


def _allowed(n_stored: int) -> int:
    """Return how many bytes so many stored ones may become."""
    return max(ALWAYS_ALLOWED, MAX_EXPANSION * n_stored)


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, mapped: bool
) -> NDArray[Any]:
    """Read or map one array."""
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(member)
        n_bytes = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{name} holds objects instead of numbers")
        if n_bytes != info.file_size - member.tell():
            raise ValueError(
                f"{name} claims {n_bytes} bytes and has {info.file_size - member.tell()}"
            )
        check_expansion(name, n_bytes, min(info.compress_size, path.stat().st_size))
        order = "F" if is_fortran else "C"
        if mapped and len(shape) == 2:
            start = _start_of(info, path) + member.tell()
            return np.memmap(path, dtype, "r", start, shape, order)  # type: ignore[call-overload]
        return np.frombuffer(member.read(n_bytes), dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _start_of(info: zipfile.ZipInfo, path: Path) -> int:
    """Return where in the file the bytes of a member begin."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise UnsupportedOperation(
            f"{path} is compressed, and such files cannot be memory-mapped: save the set with "
            "compressed=False, or load it without mmap_mode."
        )
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER.size)
    name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return info.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)
