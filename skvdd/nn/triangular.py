"""Cholesky factors and inverses of many small matrices.

For a matrix of two or three rows LAPACK takes longer to be called than to compute, once for each
matrix and again for each derivative, and on a GPU the host waits for it. Up to `SPELT_OUT` rows
each entry is therefore written out, for all matrices of a batch at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPELT_OUT = 3  # rows; from four on, LAPACK is as fast


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower triangular factor ``L`` of ``L L^T``, shape (..., d, d).

    Parameters
    ----------
    matrix : Tensor of shape (..., d, d)
        Symmetric matrices. The factor of one that is not positive definite has NaN among its
        entries: nothing is raised, so that nothing has to wait for a GPU.

    Returns
    -------
    Tensor of shape (..., d, d)

    Examples
    --------
    >>> import torch
    >>> from skvdd.nn.triangular import cholesky
    >>> cholesky(torch.tensor([[4.0, 2.0], [2.0, 10.0]])).tolist()
    [[2.0, 0.0], [1.0, 3.0]]
    """
    size = matrix.shape[-1]
    if size > SPELT_OUT:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return factor.masked_fill(failed.bool()[..., None, None], torch.nan)
    entries: dict[tuple[int, int], Tensor] = {}
    for j in range(size):
        for i in range(j, size):
            rest = matrix[..., i, j]
            for k in range(j):
                rest = rest - entries[i, k] * entries[j, k]
            entries[i, j] = rest.sqrt() if i == j else rest / entries[j, j]
    return _lower(entries, size)


def inverse(lower: Tensor) -> Tensor:
    """Return the inverse of lower triangular matrices, shape (..., d, d).

    Parameters
    ----------
    lower : Tensor of shape (..., d, d)
        The matrices; what is above the diagonal is not looked at.

    Returns
    -------
    Tensor of shape (..., d, d)

    Examples
    --------
    >>> import torch
    >>> from skvdd.nn.triangular import inverse
    >>> inverse(torch.tensor([[2.0, 0.0], [1.0, 4.0]])).tolist()
    [[0.5, 0.0], [-0.125, 0.25]]
    """
    size = lower.shape[-1]
    if size > SPELT_OUT:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    entries: dict[tuple[int, int], Tensor] = {}
    for i in range(size):
        entries[i, i] = lower[..., i, i].reciprocal()
        for j in range(i):
            rest = lower[..., i, j] * entries[j, j]
            for k in range(j + 1, i):
                rest = rest + lower[..., i, k] * entries[k, j]
            entries[i, j] = -rest * entries[i, i]
    return _lower(entries, size)


def _lower(entries: dict[tuple[int, int], Tensor], size: int) -> Tensor:
    """Return the matrices of the entries (i, j), i >= j, zero elsewhere."""
    zero = torch.zeros_like(entries[0, 0])
    every = [entries.get((i, j), zero) for i in range(size) for j in range(size)]
    return torch.stack(every, dim=-1).unflatten(-1, (size, size))
