"""What this machine can do at best: its arithmetic and its memory, measured, and work counted.

A limit is a time that no program with these operations can beat here: as many floating-point
operations as its matrix products have, at the rate of the fastest product, or as many bytes as
have to be read, at the rate of the fastest reading; whichever takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stopwatch import threads

# Rows, inner size and columns of matrix products: those of the networks here, and a large one.
PRODUCTS = ((1024, 128, 128), (4096, 128, 128), (1024, 512, 512), (1536, 1536, 1536))
CACHED_SIZES = (192, 256, 384, 512)  # of square matrices, 0.14 to 1 MiB: as large as the students
MEMORY_BYTES = 2**28  # more than any cache holds
REPEATS = 9


@dataclass(frozen=True)
class Machine:
    """The best rates that were measured on some threads.

    Parameters
    ----------
    n_threads : int
        How many.
    products : dict of tuple to float
        Floating-point operations a second of each of `PRODUCTS`, float32.
    cached : float
        Bytes a second of a product of vector and matrix that stays in the cache.
    memory : float
        Bytes a second that are read and written where nothing stays in the cache.
    """

    n_threads: int
    products: dict[tuple[int, int, int], float]
    cached: float
    memory: float

    @classmethod
    def measure(cls, n_threads: int) -> Machine:
        """Measure the rates; takes a few seconds."""
        with threads(n_threads):
            products = {shape: _product_rate(*shape) for shape in PRODUCTS}
            cached = max(_cached_rate(size) for size in CACHED_SIZES)
            return cls(n_threads, products, cached, _memory_rate())

    @property
    def product(self) -> float:
        """Floating-point operations a second of the fastest product."""
        return max(self.products.values())

    def seconds(self, n_flops: float, n_cached_bytes: float = 0.0) -> float:
        """Return the shortest time for so many operations and bytes read from the cache."""
        return max(n_flops / self.product, n_cached_bytes / self.cached)


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Return the floating-point operations of all matrix products in a call, backward ones too."""
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()


def flops_per_iteration(estimator: Any, *data: Any, **fit_params: Any) -> int:
    """Return the operations of one iteration of training: what a second one adds to a fit."""
    one, two = (
        count_flops(lambda n=n: estimator.set_params(max_iter=n).fit(*data, **fit_params))
        for n in (1, 2)
    )
    return two - one


def weight_bytes(*modules: nn.Module) -> int:
    """Return the bytes of all parameters: what one row has to be multiplied with."""
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _product_rate(n_rows: int, n_inner: int, n_columns: int) -> float:
    left, right = torch.randn(n_rows, n_inner), torch.randn(n_inner, n_columns)
    result = torch.empty(n_rows, n_columns)
    n_flops = 2 * n_rows * n_inner * n_columns
    return n_flops / _fastest(lambda: torch.mm(left, right, out=result), max(3, 10**9 // n_flops))


def _cached_rate(size: int) -> float:
    # By NumPy, whose products with a vector are faster than torch's.
    matrix, vector = np.ones((size, size), dtype=np.float32), np.ones(size, dtype=np.float32)
    sides = (lambda: matrix @ vector), (lambda: vector @ matrix)
    return matrix.nbytes / min(_fastest(side, 1000) for side in sides)


def _memory_rate() -> float:
    source = torch.zeros(MEMORY_BYTES // 4)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), 1)


def _fastest(function: Callable[[], Any], n_calls: int) -> float:
    """Return the seconds of a call, in the fastest of some series of them."""
    series = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(n_calls):
            function()
        series.append((time.perf_counter() - start) / n_calls)
    return float(np.min(series))
