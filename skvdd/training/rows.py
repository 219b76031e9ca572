"""Training data on the device, or gathered a minibatch at a time where there is too much of it.

Axes: rows ``n``, columns ``c`` of whatever the rows are (observations, or actions).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skvdd.nn.normalization import BLOCK, Normalization

# Arrays that would take more bytes than this as float64 are used as they are, in their own type,
# wherever they lie: no copy of them is made. Smaller ones are standardized once, on the device.
STREAMED_BYTES = 2**27
DEVICE_FRACTION = 0.5  # of a GPU's free memory that standardized rows may take


class StreamedRows:
    """Standardized rows, gathered from an array when they are needed.

    `index_select`, `split` and ``len`` do what those of a tensor of all rows would.

    Parameters
    ----------
    values : ndarray of shape (n, c)
        The rows in raw units, of any number type, in memory or on disk (`numpy.memmap`).
    normalization : Normalization
        Statistics of the columns.
    device : torch.device
        Where the rows are sent. On a GPU every `index_select` waits for the row numbers, which
        have to come to the host; the rows themselves go without waiting.
    """

    def __init__(self, values: NDArray, normalization: Normalization, device: torch.device) -> None:
        self.values, self.device = np.asarray(values), device
        self.mean, self.scale = normalization.statistics

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
        """Yield blocks of ``size`` rows, (size, c); the last one may be shorter."""
        for start in range(0, len(self), size):
            yield self._send(self.values[start : start + size])

    def _send(self, raw: NDArray) -> Tensor:
        # In float64 first: raw units may have an offset much larger than their spread.
        standard = ((raw - self.mean) / self.scale).astype(np.float32, order="C")
        rows = torch.from_numpy(standard)
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(self.device, non_blocking=True)


Rows = Tensor | StreamedRows


def is_streamed(values: Any) -> bool:
    """Say whether an array-like is so large that it is used as it is, without a copy."""
    shape = getattr(values, "shape", ())
    return 8 * int(np.prod(shape, dtype=np.int64)) > STREAMED_BYTES


def is_resident(*values: Rows | None) -> bool:
    """Say whether rows are on the device as a whole, none gathered on demand."""
    return not any(isinstance(value, StreamedRows) for value in values)


def standard_rows(normalization: Normalization, values: NDArray, device: torch.device) -> Rows:
    """Return standardized rows for training: on the device, or streamed if they are too many.

    Parameters
    ----------
    normalization : Normalization
        Statistics of the columns.
    values : ndarray of shape (n, c)
        Rows in raw units.
    device : torch.device
        Where to compute. A GPU takes all rows that fit into its free memory.

    Returns
    -------
    Tensor of shape (n, c) or StreamedRows
    """
    if not is_streamed(values):
        return normalization.standardize(values).to(device)
    rows = StreamedRows(values, normalization, device)
    if not _fits(4 * values.size, device):
        return rows
    on_device = torch.empty(values.shape, dtype=torch.float32, device=device)
    for start, block in zip(range(0, len(rows), BLOCK), rows.split(BLOCK), strict=True):
        on_device[start : start + BLOCK] = block
    return on_device


def _fits(n_bytes: int, device: torch.device) -> bool:
    """Say whether a GPU has memory for so many bytes; elsewhere its memory is the host's."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= DEVICE_FRACTION * free
