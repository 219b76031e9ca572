"""Threads and global settings of torch during a fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import ThreadpoolController

# Multiply-adds of one iteration, about 0.1 s of one thread, below which training has one thread.
# On a quiet machine two are 1.6 to 1.8 times faster from the default size on; where a core is busy
# they are 11 times slower (`python -m benchmarks.threads`, with and without `--busy`).
SMALL_WORK = 2e9
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # with which a user chooses

# OpenMP's threads do not survive a fork, and the child would wait for them for ever.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@contextmanager
def fit_settings(device: torch.device, work: float) -> Iterator[None]:
    """Train with gradients, and a small network on one CPU thread.

    A second thread makes it 1.6 times faster on a quiet machine, and eleven times slower when its
    core is busy. The user's choice is left alone: ``OMP_NUM_THREADS`` in the environment, or
    `torch.set_num_threads` with another number than that of the cores. All settings are put back.

    Parameters
    ----------
    device : torch.device
        Where the fit computes.
    work : float
        Multiply-adds of one iteration.
    """
    n_threads = torch.get_num_threads()
    with torch.inference_mode(False), torch.enable_grad():
        if device.type != "cpu" or work >= SMALL_WORK or is_chosen(n_threads):
            yield
            return
        libraries = ThreadpoolController()
        # OpenMP, torch's and scikit-learn's, has a number for each thread of Python, while
        # `torch.set_num_threads` would change that of new ones, too.
        with libraries.select(user_api="openmp").limit(limits=1), _one_blas_thread(libraries):
            yield


@contextmanager
def _one_blas_thread(libraries: ThreadpoolController) -> Iterator[None]:
    """Let NumPy's BLAS have one thread; where it has, a fit in another thread may put it back."""
    blas = libraries.select(user_api="blas")
    if all(pool["num_threads"] == 1 for pool in blas.info()):
        yield
        return
    with blas.limit(limits=1):
        yield


def is_chosen(n_threads: int) -> bool:
    """Say whether somebody has set the number of threads."""
    if any(name in os.environ for name in VARIABLES):
        return True
    n_cores = {os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        n_cores.add(len(os.sched_getaffinity(0)))
    return n_threads not in {*n_cores, *(n // 2 for n in n_cores)}  # torch counts physical cores
