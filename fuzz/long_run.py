"""Train for 24 000 iterations and look for drift, numbers that are not finite, and growing memory.

python -m fuzz.long_run
"""

from __future__ import annotations

import argparse
import os
import resource
from typing import Any

import numpy as np
import torch

import skvdd

ITERATIONS = 24_000


class MemoryRecord:
    """A callback that notes how much memory the process holds, as training goes on."""

    max_propagation_depth = None

    def __init__(self) -> None:
        self.resident: list[float] = []

    def setup(self, estimator: Any, context: Any) -> None:
        """Nothing is to be prepared."""

    def on_fit_task_begin(self, estimator: Any, context: Any, **kwargs: Any) -> None:
        """Nothing has happened yet."""

    def on_fit_task_end(self, estimator: Any, context: Any, **kwargs: Any) -> bool:
        """Note the memory and let the training go on."""
        self.resident.append(resident_memory())
        return False

    def teardown(self, estimator: Any, context: Any) -> None:
        """Nothing is to be cleaned up."""


def resident_memory() -> float:
    """Return the memory that this process holds now, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def make_estimators(max_iter: int) -> list[Any]:
    """Return small estimators of every objective, of so many iterations."""
    small = {"hidden_size": 16, "n_layers": 1, "batch_size": 32, "random_state": 0}
    whole = {**small, "max_iter": max_iter}
    teacher = skvdd.DiffusionPolicy(n_steps=4, max_iter=2000, **small)
    return [
        skvdd.DiffusionPolicy(**whole),
        skvdd.DiffusionPolicy(sde="vp", **whole),
        skvdd.GaussianMoEPolicy(4, **whole),
        skvdd.IMCPolicy(4, **whole),
        skvdd.VDDDistiller(teacher, n_experts=4, init_iter=2000, **whole),
        skvdd.ConsistencyDistiller(teacher, n_levels=10, **whole),
        skvdd.ConsistencyTrajectoryDistiller(teacher, n_levels=10, **whole),
    ]


def describe(policy: Any, states: np.ndarray, memory: list[float]) -> str:
    """Return a line: the loss along the run, how far answers lie, how memory grew."""
    rows = [row for row in policy.history_ if row["stage"] == policy.history_[-1]["stage"]]
    name = next(key for key in rows[-1] if key not in {"stage", "iteration", "learning_rate"})
    tenths = [part.mean() for part in np.array_split([row[name] for row in rows], 10)]
    finite = all(np.isfinite(v) for row in rows for k, v in row.items() if k != "stage")
    farthest = np.abs(policy.predict(states)).max()
    tenth, half = (memory[int(share * len(memory))] for share in (0.1, 0.5))
    return (
        f"{type(policy).__name__:<31} {name}: first tenth {tenths[0]:.4f}, ninth {tenths[8]:.4f}, "
        f"last {tenths[9]:.4f}; all finite: {finite}; largest action {farthest:.2f}; memory at a "
        f"tenth {tenth:.0f}, half {half:.0f}, end {memory[-1]:.0f} MiB"
    )


def main() -> None:
    """Train every estimator and print what became of it."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.long_run", description=__doc__)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.RandomState(0)
    states = rng.uniform(-1, 1, size=(400, 2))
    side = np.sign(rng.standard_normal(400))
    actions = np.stack([side * (1 + states[:, 0]), states[:, 1]], axis=1)
    actions += 0.1 * rng.standard_normal(actions.shape)
    print(f"{options.iterations} iterations each (process {os.getpid()})", flush=True)
    for estimator in make_estimators(options.iterations):
        record = MemoryRecord()
        estimator.set_callbacks(record).fit(states, actions)
        print(describe(estimator, states, record.resident), flush=True)


if __name__ == "__main__":
    main()
