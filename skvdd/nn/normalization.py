"""Normalization to zero mean and unit variance, as a part of the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skvdd.nn.layout import RowLayout

# Standardized values beyond this have no meaning, and their squares overflow float32.
FARTHEST = 1e12
# A spread below so many units in the last place of the largest value is rounding, not signal.
ROUNDING = 4.0
SMALLEST = 1e-12  # spread below which a column counts as constant, in whatever unit
BLOCK = 2**15  # rows of an array that are standardized at once


class Normalization(nn.Module):
    """Standardize columns: raw float64 values to float32 ones, and back.

    Raw values are float64 because their offset may be much larger than their spread.

    Parameters
    ----------
    n_columns : int
        Number of columns.

    Attributes
    ----------
    mean, scale : Tensor of shape (n_columns,), float64
        Statistics, zeros and ones until `set` is called.

    Examples
    --------
    >>> import torch
    >>> from skvdd.nn.normalization import Normalization
    >>> normalization = Normalization(2).set([1.0, 0.0], [2.0, 1.0])
    >>> normalization(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    tensor([[1., 4.]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_columns, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(n_columns, dtype=torch.float64))

    def set(self, mean: Iterable[float] | Tensor, scale: Iterable[float] | Tensor) -> Normalization:
        """Set mean and scale, (n_columns,) each, and return the module."""
        for buffer, values in ((self.mean, mean), (self.scale, scale)):
            buffer.copy_(torch.as_tensor(values, dtype=torch.float64, device=buffer.device))
        return self

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw values (..., n_columns) to standardized ones, float32."""
        return ((raw - self.mean) / self.scale).to(torch.float32)

    def inverse(self, standard: Tensor) -> Tensor:
        """Map standardized values (..., n_columns) to raw ones, float64."""
        return standard.to(torch.float64) * self.scale + self.mean

    @property
    def statistics(self) -> tuple[NDArray, NDArray]:
        """Mean and scale as float64 arrays (n_columns,)."""
        return self.mean.cpu().numpy(), self.scale.cpu().numpy()

    def standardize(self, values: NDArray) -> Tensor:
        """Return an array (n, n_columns) as a standardized float32 tensor on the CPU."""
        mean, scale = self.statistics
        standard = np.empty(values.shape, dtype=np.float32)
        for start in range(0, len(values), BLOCK):
            rows = slice(start, start + BLOCK)
            standard[rows] = (values[rows] - mean) / scale
        return torch.from_numpy(standard)

    def bounds(self) -> tuple[NDArray, NDArray]:
        """Return the lowest and highest raw value (n_columns,) that can be standardized."""
        mean, scale = self.statistics
        return mean - FARTHEST * scale, mean + FARTHEST * scale


def column_statistics(blocks: Iterable[NDArray], name: str = "values") -> tuple[NDArray, NDArray]:
    """Return mean and scale (n_columns,) of rows that come in blocks.

    The scale is the standard deviation; of a column that is constant but for rounding it is one.

    Parameters
    ----------
    blocks : iterable of ndarray of shape (m, n_columns), float64
        The rows.
    name : str, default="values"
        What they are, for messages.

    Returns
    -------
    mean, scale : ndarray of shape (n_columns,), float64

    Raises
    ------
    ValueError
        If values are so large that their squares are not finite.

    Notes
    -----
    Means and squared deviations of the blocks are merged by the formula of Chan, Golub and LeVeque
    (1983).
    """
    count, mean, deviation, largest = 0, np.zeros(1), np.zeros(1), np.zeros(1)
    single: NDArray = np.ones(1, dtype=bool)  # whether all values so far are float32 numbers
    for block in blocks:
        block_mean, squares = _moments(block)
        total, difference = count + len(block), block_mean - mean
        largest = np.maximum(largest, np.abs(block).max(axis=0))
        with np.errstate(over="ignore", invalid="ignore"):
            deviation = deviation + squares + difference**2 * (count * len(block) / total)
            mean = mean + difference * (len(block) / total)
            single = single & (block == block.astype(np.float32)).all(axis=0)
        count = total
    if not np.isfinite(deviation).all():
        raise ValueError(
            f"{name} has values of up to {largest.max():.4g}, whose squares are not finite. Leave "
            "out what is no measurement, or give them in a larger unit."
        )
    scale = np.sqrt(np.maximum(deviation, 0.0) / count)
    precision = np.where(single, np.finfo(np.float32).eps, np.finfo(np.float64).eps)
    constant = scale <= np.maximum(ROUNDING * precision * largest, SMALLEST)
    return mean, np.where(constant, 1.0, scale)


def _moments(block: NDArray) -> tuple[NDArray, NDArray]:
    """Return means and sums of squared deviations of the columns; not finite if they overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = block.mean(axis=0)
        shifted = block - mean
        # The second term takes back the rounding of the mean.
        return mean, (shifted**2).sum(axis=0) - shifted.sum(axis=0) ** 2 / len(block)


def row_statistics(rows: NDArray, layout: RowLayout) -> tuple[NDArray, NDArray]:
    """Return mean and scale (T * d + g,) of rows (n, T * d + g).

    The states of a window share their statistics, so that a state means the same in each place.
    """
    n_window, n_states = layout.n_window, layout.n_states
    states = (block[:, :n_window].reshape(-1, n_states) for block in blocks_of(rows))
    parts = [np.tile(column_statistics(states, "X"), layout.window_size)]
    if layout.goal_dim:
        goals = (block[:, n_window:] for block in blocks_of(rows))
        parts.append(np.stack(column_statistics(goals, "X")))
    mean, scale = np.concatenate(parts, axis=1)
    return mean, scale


def action_statistics(actions: NDArray, n_dimensions: int) -> tuple[NDArray, NDArray]:
    """Return mean and scale (H * d_a,) of flat chunks (n, H * d_a).

    The steps of a chunk share the statistics of their ``n_dimensions`` numbers.
    """
    steps = (block.reshape(-1, n_dimensions) for block in blocks_of(actions))
    mean, scale = np.tile(column_statistics(steps, "y"), actions.shape[1] // n_dimensions)
    return mean, scale


def blocks_of(values: NDArray) -> Iterator[NDArray]:
    """Yield the rows of an array, `BLOCK` at a time, as float64."""
    for start in range(0, len(values), BLOCK):
        yield np.asarray(values[start : start + BLOCK], dtype=np.float64, order="C")
