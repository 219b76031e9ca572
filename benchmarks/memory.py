"""Does memory grow? Resident memory of one process over many fits, of each estimator.

``python -m benchmarks.memory`` prints a Markdown table. Each estimator has a process of its own;
its first fits fill the caches of the libraries and are left out of the slope.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import psutil
from sklearn.base import clone

import skvdd

SMALL: dict[str, Any] = {"hidden_size": 64, "n_layers": 2, "max_iter": 20, "random_state": 0}
N_FIRST = 10  # fits before memory is compared
MIB = 2**20


def make_estimators() -> dict[str, Any]:
    """Return every estimator, small, by name; distillers fit a teacher of their own each time."""
    teacher = skvdd.DiffusionPolicy(**SMALL)
    return {
        "DiffusionPolicy": teacher,
        "VDDDistiller": skvdd.VDDDistiller(teacher, n_experts=4, init_iter=10, **SMALL),
        "GaussianMoEPolicy": skvdd.GaussianMoEPolicy(4, **SMALL),
        "IMCPolicy": skvdd.IMCPolicy(4, round_iter=5, **SMALL),
        "ConsistencyDistiller": skvdd.ConsistencyDistiller(teacher, **SMALL),
        "ConsistencyTrajectoryDistiller": skvdd.ConsistencyTrajectoryDistiller(teacher, **SMALL),
    }


def measure(name: str, n_fits: int, n_rows: int = 2000) -> list[float]:
    """Fit an estimator anew many times, and ask it.

    Parameters
    ----------
    name : str
        Which of `make_estimators`.
    n_fits : int
        How often.
    n_rows : int, default=2000
        Rows of data; what a single fit leaves behind shows if it holds them.

    Returns
    -------
    list of float
        Resident memory after each fit, MiB.
    """
    X, y = np.random.RandomState(0).standard_normal((2, n_rows, 8))
    process, sizes = psutil.Process(), []
    for _ in range(n_fits):
        policy = clone(make_estimators()[name]).fit(X, y[:, :2])
        policy.act(X[:64], random_state=0)
        del policy
        gc.collect()
        sizes.append(process.memory_info().rss / MIB)
    return sizes


def slope(sizes: Sequence[float]) -> float:
    """Return the growth in a fit, KiB, by least squares after the first fits."""
    later = sizes[N_FIRST:]
    return 1024.0 * float(np.polyfit(np.arange(len(later)), later, 1)[0])


def main() -> None:
    """Measure all estimators, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=50)
    n_fits = parser.parse_args().fits
    if n_fits < N_FIRST + 2:
        parser.error(f"--fits must be at least {N_FIRST + 2}, got {n_fits}")
    print(f"| estimator | after {N_FIRST} fits, MiB | after {n_fits}, MiB | growth in a fit, KiB |")
    print("| --- | --- | --- | --- |")
    for name in make_estimators():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            sizes = process.submit(measure, name, n_fits).result()
        print(
            f"| `{name}` | {sizes[N_FIRST - 1]:.1f} | {sizes[-1]:.1f} | {slope(sizes):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
