"""Rows that are too many to be copied: a minibatch is gathered, standardised and sent at a time.

Axes: rows ``n``, columns ``c`` of whatever the rows are (state windows with goals, or actions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor

# Arrays that would take more bytes than this as float64 are used as they are, in their own type,
# wherever they lie: no copy of them is made. Smaller ones are standardised once, on the device.
STREAMED_BYTES = 2**27
CONTEXT_BYTES = 2**28  # contexts of all rows that are kept; more are encoded when they are needed
BLOCK = 2**15  # rows of a streamed array that are worked on at once
DEVICE_SHARE = 0.5  # of a GPU's free memory that standardised rows may take


class StreamedRows:
    """Standardised rows that are made when they are asked for.

    They answer `index_select`, `split` and ``len`` as a tensor of all of them would.

    Parameters
    ----------
    values : ndarray of shape (n, c)
        The rows in raw units, of any number type, in memory or on disk (`numpy.memmap`).
    scaler : StandardScaler
        Units of the columns.
    device : torch.device
        Where the rows are sent. On a GPU every `index_select` waits for the row numbers, which
        have to come to the host; the rows themselves go without waiting.
    """

    def __init__(self, values: NDArray, scaler: StandardScaler, device: torch.device) -> None:
        self.values, self.scaler, self.device = np.asarray(values), scaler, device

    def __len__(self) -> int:
        return len(self.values)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the rows of an index (m,), as a tensor (m, c) on the device.

        Parameters
        ----------
        dim : int
            0: only rows can be chosen.
        index : Tensor of shape (m,)
            Which rows.

        Returns
        -------
        Tensor of shape (m, c), float32
        """
        if dim != 0:
            raise ValueError(f"dim must be 0, got {dim}: only rows can be chosen.")
        return self._send(self.values[index.cpu().numpy()])

    def split(self, size: int) -> Iterator[Tensor]:
        """Return blocks of so many rows, one after the other.

        Parameters
        ----------
        size : int
            Rows in a block; in the last one maybe fewer.

        Yields
        ------
        Tensor of shape (size, c), float32
        """
        for start in range(0, len(self), size):
            yield self._send(self.values[start : start + size])

    def _send(self, raw: NDArray) -> Tensor:
        rows = standardise(self.scaler, raw)
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(self.device, non_blocking=True)


class StreamedContexts:
    """Contexts that are encoded when they are asked for, since all of them would be too many.

    Parameters
    ----------
    encode : callable
        Maps rows (m, c) to contexts (m, ...).
    rows : Tensor of shape (n, c) or StreamedRows
        What is encoded.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], rows: Tensor | StreamedRows) -> None:
        self.encode, self.rows = encode, rows

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the contexts (m, ...) of an index (m,) of rows."""
        with torch.no_grad():
            return self.encode(self.rows.index_select(dim, index))


Rows = Tensor | StreamedRows
Contexts = Tensor | StreamedContexts


def is_streamed(values: Any) -> bool:
    """Say whether an array-like is so large that it is used as it is, without a copy."""
    shape = getattr(values, "shape", ())
    return 8 * int(np.prod(shape, dtype=np.int64)) > STREAMED_BYTES


def is_resident(*values: Rows | Contexts | None) -> bool:
    """Say whether rows and contexts are on the device as a whole, none read in when asked for."""
    return not any(isinstance(value, StreamedRows | StreamedContexts) for value in values)


def standardise(scaler: StandardScaler, values: NDArray) -> Tensor:
    """Return ``(values - mean) / scale`` along the last axis as a float32 tensor."""
    # In float64 first: raw units may have an offset much larger than their spread.
    if len(values) <= BLOCK:
        return torch.from_numpy(
            ((values - scaler.mean_) / scaler.scale_).astype(np.float32, order="C")
        )
    standard = np.empty(values.shape, dtype=np.float32)
    for start in range(0, len(values), BLOCK):
        rows = slice(start, start + BLOCK)
        standard[rows] = (values[rows] - scaler.mean_) / scaler.scale_
    return torch.from_numpy(standard)


def standard_rows(scaler: StandardScaler, values: NDArray, device: torch.device) -> Rows:
    """Return standardised rows for training: on the device, or streamed if they are too many.

    Parameters
    ----------
    scaler : StandardScaler
        Units of the columns.
    values : ndarray of shape (n, c)
        Rows in raw units.
    device : torch.device
        Where to compute. A GPU takes all rows that fit into its free memory.

    Returns
    -------
    Tensor of shape (n, c) or StreamedRows
    """
    if not is_streamed(values):
        return standardise(scaler, values).to(device)
    rows = StreamedRows(values, scaler, device)
    if not fits(4 * values.size, device):
        return rows
    on_device = torch.empty(values.shape, device=device)
    for start, block in zip(range(0, len(rows), BLOCK), rows.split(BLOCK), strict=True):
        on_device[start : start + BLOCK] = block
    return on_device


def raw_blocks(values: NDArray) -> Iterator[NDArray]:
    """Return all rows as they are, or float64 blocks of them if they are streamed."""
    if not is_streamed(values):
        yield values
        return
    for start in range(0, len(values), BLOCK):
        yield np.asarray(values[start : start + BLOCK], dtype=np.float64, order="C")


def fits(n_bytes: int, device: torch.device) -> bool:
    """Say whether a GPU has memory for so many bytes; elsewhere its memory is the host's."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= DEVICE_SHARE * free
