"""Readers of published files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# All that a pickle of NumPy arrays needs. NumPy 2 moved what NumPy 1 called numpy.core.
_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
}


def read_contexts(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Read a list of contexts of D3IL's Aligning or Pushing.

    D3IL publishes them as ``test_contexts.pkl`` and ``train_contexts.pkl``. A pickle can name any
    function and have it called; this reader refuses every file that names something else than
    NumPy's arrays, before anything is called.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    ndarray of shape (n, 6)
        One context per row: x, y in m and yaw in rad, of the first object (Aligning: the tray,
        Pushing: the red cube), then of the second one (the target, the green cube). A row can be
        given to ``reset(options={"context": row})``, all of them to
        ``evaluate_policy(contexts=...)``.

    Raises
    ------
    ValueError
        If the file is no pickle, names something else, or holds something else than contexts.
    """
    with open(path, "rb") as file:
        entries = _load_arrays(file, path)
    if not (isinstance(entries, list | tuple) and entries):
        raise ValueError(
            f"{path} must hold a list of contexts, got {type(entries).__name__}"
            f"{' without entries' if isinstance(entries, list | tuple) else ''}."
        )
    return np.array([_context(entry, i, path) for i, entry in enumerate(entries)])


def _context(entry: Any, index: int, path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Return x, y (m) and yaw (rad) of the two objects of an entry, (6,)."""
    shapes = _shapes(entry)
    if shapes != [(3,), (4,), (3,), (4,)]:
        raise ValueError(
            f"{path} must hold contexts of two objects, each x, y, yaw in degrees and then a "
            f"quaternion: arrays of shape (3,), (4,), (3,), (4,). Entry {index} has "
            f"{'no such structure' if shapes is None else f'shapes {shapes}'}."
        )
    context = np.array([entry[0], entry[2]], dtype=np.float64)
    context[:, 2] = np.deg2rad(context[:, 2])
    if not np.isfinite(context).all():
        raise ValueError(f"{path} must hold finite contexts, entry {index} is not.")
    return context.ravel()


def _shapes(entry: Any) -> list[tuple[int, ...]] | None:
    """Return the shapes of a sequence of real arrays, None for anything else."""
    if not isinstance(entry, Sequence) or isinstance(entry, str | bytes):
        return None
    if not all(isinstance(part, np.ndarray) and part.dtype.kind in "fiu" for part in entry):
        return None
    return [part.shape for part in entry]


def _load_arrays(file: BinaryIO, path: str | os.PathLike[str]) -> Any:
    """Load a pickle of NumPy arrays, or say why not."""
    try:
        return _ArrayUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a broken pickle can raise nearly anything
        raise ValueError(f"{path} is no intact pickle of arrays: {error}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle NumPy arrays and plain Python values, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if it is harmless."""
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only NumPy arrays are loaded."
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
