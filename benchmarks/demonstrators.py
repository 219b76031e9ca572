"""How often the scripted demonstrators succeed at the first attempt, in contexts of the test list.

``python -m benchmarks.demonstrators`` prints a Markdown table, in about four minutes of two cores.
`load_demonstrations` keeps successes only; this tells how many there are to keep.
"""

from __future__ import annotations

import argparse
from importlib import import_module

import gymnasium
import numpy as np
from joblib import Parallel, delayed

from skvdd.datasets.experts.recording import Demonstrator, demonstrate
from skvdd.datasets.loading import RECORDED


def success_rate(demonstrator: Demonstrator, behavior: str | int, n_contexts: int) -> float:
    """Try a behavior once in each of the first contexts of the test list.

    Parameters
    ----------
    demonstrator : Demonstrator
        Who.
    behavior : str or int
        What.
    n_contexts : int
        In how many contexts.

    Returns
    -------
    float
        Share of the attempts that solve the task, and in this behavior.
    """
    env = gymnasium.make(demonstrator.env_id, disable_env_checker=True)
    try:
        episodes = [
            demonstrate(demonstrator, env, behavior, i, np.random.default_rng(i), "test")
            for i in range(n_contexts)
        ]
    finally:
        env.close()
    return float(np.mean([episode is not None for episode in episodes]))


def main() -> None:
    """Measure all tasks and behaviors and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    print(f"| {arguments.contexts} contexts | behaviors | mean | the least of a behavior |")
    print("| --- | --- | --- | --- |")
    for task, module in RECORDED.items():
        demonstrator = import_module(module).DEMONSTRATORS[task]
        rates = Parallel(n_jobs=arguments.jobs)(
            delayed(success_rate)(demonstrator, behavior, arguments.contexts)
            for behavior in demonstrator.behaviors
        )
        print(f"| {task} | {len(rates)} | {np.mean(rates):.3f} | {min(rates):.3f} |", flush=True)


if __name__ == "__main__":
    main()
