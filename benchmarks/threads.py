"""Where a second CPU thread begins to pay in training: `skvdd.training.threads.SMALL_WORK`.

    python -m benchmarks.threads                     # on a quiet machine
    python -m benchmarks.threads --busy              # with another process on one core

An iteration of the default teacher is timed with one thread and with all, in turn, for growing
networks and minibatches. Work is what `fit` computes: three passes over all weights, in
multiply-adds. Times are the least of several alternating trials.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import numpy as np
import torch

from skvdd import DiffusionPolicy
from skvdd.training import threads

SIZES = ((128, 256), (256, 256), (256, 1024), (512, 256), (512, 1024), (1024, 1024))
TRIALS = 3
ITERATIONS = 20


def seconds(policy: DiffusionPolicy, data: tuple, n_threads: int) -> float:
    """Return seconds of an iteration with a number of threads."""
    torch.set_num_threads(n_threads)
    start = time.perf_counter()
    policy.fit(*data)
    return (time.perf_counter() - start) / ITERATIONS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    busy = parser.parse_args().busy
    rng = np.random.RandomState(0)
    data = rng.standard_normal((8192, 20)), rng.standard_normal((8192, 2))
    n_threads = os.cpu_count() or 1
    threads.SMALL_WORK = 0.0  # this module sets the number itself
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    print(f"| width | batch | work | 1 thread, ms | {n_threads} threads, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    try:
        for hidden_size, batch_size in SIZES:
            policy = DiffusionPolicy(
                hidden_size=hidden_size,
                batch_size=batch_size,
                max_iter=ITERATIONS,
                device="cpu",
                random_state=0,
            )
            trials = [
                (seconds(policy, data, 1), seconds(policy, data, n_threads)) for _ in range(TRIALS)
            ]
            one, many = (min(column) for column in zip(*trials, strict=True))
            weights = sum(p.numel() for p in policy.network_.parameters())
            print(
                f"| {hidden_size} | {batch_size} | {3.0 * weights * batch_size:.1e} | "
                f"{1e3 * one:.1f} | {1e3 * many:.1f} | {one / many:.2f} |",
                flush=True,
            )
    finally:
        if other is not None:
            other.kill()


if __name__ == "__main__":
    main()
