"""How often the scripted demonstrators succeed at the first attempt, in contexts of the test list.

``python -m benchmarks.demonstrators`` prints a Markdown table, in about four minutes of two cores.
`load_demonstrations` keeps successes only; this tells how many there are to keep.
"""

from __future__ import annotations

import argparse

import gymnasium
import numpy as np
from joblib import Parallel, delayed

from skvdd.datasets.experts.recording import demonstrate
from skvdd.envs import TaskSpec, get_task, task_names


def success_rate(task: TaskSpec, set_name: str, behavior: str | int, n_contexts: int) -> float:
    """Try a behavior once in each of the first contexts of the test list.

    Parameters
    ----------
    task : TaskSpec
        The task.
    set_name : str
        Whose demonstrator tries.
    behavior : str or int
        What.
    n_contexts : int
        In how many contexts; how often, where every episode starts alike.

    Returns
    -------
    float
        Share of the attempts that solve the task, and in this behavior.
    """
    env = gymnasium.make(task.env_id, disable_env_checker=True)
    demonstrator = task.demonstrator(set_name)
    try:
        episodes = [
            demonstrate(
                demonstrator,
                env,
                behavior,
                np.random.default_rng(i),
                options={"context": i, "split": "test"} if task.n_contexts else None,
                score=task.score,
            )
            for i in range(n_contexts)
        ]
    finally:
        env.close()
    return float(np.mean([episode is not None for episode in episodes]))


def main() -> None:
    """Measure all sets and behaviors and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    print(f"| {arguments.contexts} contexts | behaviors | mean | the least of a behavior |")
    print("| --- | --- | --- | --- |")
    for task in map(get_task, task_names()):
        for set_name in task.demonstrators:
            rates = Parallel(n_jobs=arguments.jobs)(
                delayed(success_rate)(task, set_name, behavior, arguments.contexts)
                for behavior in task.score.behaviors
            )
            print(f"| {set_name} | {len(rates)} | {np.mean(rates):.3f} | {min(rates):.3f} |")


if __name__ == "__main__":
    main()
