"""Queries of a fitted policy: validation, standardization, batches of bounded size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skvdd.base.validation import check_query_actions, check_query_rows
from skvdd.devices import resolve_device

# Matrix products of few rows, and the rows left over at the end of many, take other kernels, which
# round differently: in a multiple of so many rows each gives the same bits alone as in any batch,
# where widths are multiples of four (of other widths, the last bits may differ).
ROW_MULTIPLE = 16
# Actions evaluated at once, so that a query of millions needs no memory of that size.
MAX_ACTIONS = 8192


class QueryMixin:
    """What the methods of a fitted policy share."""

    network_: Any  # a `PolicyNetwork`, of the class whose calls a subclass uses
    action_shape_: tuple[int, ...]
    device: str | torch.device

    def _check_rows(self, X: ArrayLike) -> NDArray:
        """Validate the observations of a query and return them as (n, T * d + g)."""
        check_is_fitted(self)
        return check_query_rows(self, X, self.network_.layout)

    def _check_query(self, X: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
        """Validate rows and actions, return them as (n, T * d + g) and (n, m), float64."""
        rows = self._check_rows(X)
        return rows, check_query_actions(self, y, len(rows))

    def _standard_rows(self, rows: NDArray) -> Tensor:
        """Return rows as standardized float32, on the CPU."""
        return self.network_.row_normalization.standardize(rows)

    def _standard_actions(self, actions: NDArray) -> Tensor:
        """Return actions as standardized float32, on the CPU."""
        return self.network_.action_normalization.standardize(actions)

    def _raw_actions(self, actions: Tensor) -> NDArray:
        """Return standardized actions (n, ..., m) in raw units, shaped as `fit` was given them."""
        mean, scale = self.network_.action_normalization.statistics
        return self._shaped(actions.cpu().double().numpy() * scale + mean)

    def _shaped(self, actions: NDArray) -> NDArray:
        """Return flat actions (n, ..., m) in the shape of those of `fit`."""
        return actions.reshape(*actions.shape[:-1], *self.action_shape_)

    def _network(self) -> Any:
        """Return the trained network on the device of this estimator."""
        device = resolve_device(self.device)
        if next(self.network_.parameters()).device != device:  # to ask costs less than to move
            self.network_.to(device)
        return self.network_

    def _evaluate(self, function: Callable[..., Tensor], rows: Tensor, *others: Tensor) -> Tensor:
        """Call ``function`` on blocks of rows, without autograd, and return the joined result.

        Parameters
        ----------
        function : callable
            Maps tensors of equal length, on this estimator's device, to one such tensor.
        rows : Tensor of shape (n, F)
            Standardized rows, on the CPU.
        *others : Tensor of shape (n, S, ...)
            What there is for ``S`` actions of each row, on the CPU. The result then has shape
            (n, S, ...), and memory is bounded by the number of actions, however few the rows are.

        Returns
        -------
        Tensor of shape (n, ...)
            On the CPU.
        """
        device = resolve_device(self.device)
        n_samples = others[0].shape[1] if others else 1
        with torch.inference_mode(False), torch.no_grad():  # likelihoods differentiate inside
            columns = [
                _evaluate_rows(function, device, rows, [o[:, s : s + MAX_ACTIONS] for o in others])
                for s in range(0, n_samples, MAX_ACTIONS)
            ]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


def _evaluate_rows(
    function: Callable[..., Tensor], device: torch.device, rows: Tensor, others: list[Tensor]
) -> Tensor:
    """Evaluate blocks of rows that together have at most `MAX_ACTIONS` actions."""
    n, n_samples = len(rows), others[0].shape[1] if others else 1
    size = max(1, MAX_ACTIONS // n_samples)
    # A multiple, or a power of two, which divides it: then there are no rows to fill up.
    size = size - size % ROW_MULTIPLE if size > ROW_MULTIPLE else 1 << (size.bit_length() - 1)
    blocks = []
    for start in range(0, n, size):
        block = [part[start : start + size] for part in (rows, *others)]
        if others:
            blocks.append(_evaluate_samples(function, device, *block))
        else:
            padded = _pad(block[0], ROW_MULTIPLE).to(device)
            blocks.append(function(padded)[: len(block[0])].cpu())
    return torch.cat(blocks)


def _evaluate_samples(
    function: Callable[..., Tensor], device: torch.device, rows: Tensor, *others: Tensor
) -> Tensor:
    """Evaluate a block with several actions for each row.

    A row with many actions is evaluated as several equal rows with some of them each, so that the
    number of rows is a `ROW_MULTIPLE` without the work of so many rows.
    """
    n, n_samples = others[0].shape[:2]
    parts = min(ROW_MULTIPLE // math.gcd(n, ROW_MULTIPLE), n_samples)
    while n_samples > 1 and parts & (parts - 1):  # a power of two, to divide the multiple
        parts -= 1
    shares = [_pad(other.transpose(0, 1), parts).transpose(0, 1) for other in others]
    split = [share.reshape(n * parts, -1, *share.shape[2:]) for share in shares]
    tensors = [_pad(t, ROW_MULTIPLE) for t in (rows.repeat_interleave(parts, dim=0), *split)]
    result = function(*(tensor.to(device) for tensor in tensors))[: n * parts].cpu()
    return result.reshape(n, -1, *result.shape[2:])[:, :n_samples]


def _pad(values: Tensor, multiple: int) -> Tensor:
    """Repeat the last row until the number of rows is a multiple."""
    missing = -len(values) % multiple
    if not missing:
        return values
    return torch.cat([values, values[-1:].expand(missing, *values.shape[1:])])
