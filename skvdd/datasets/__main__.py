"""Record scripted demonstrations to a file.

    python -m skvdd.datasets pushing --n-episodes 132 --output pushing.npz

makes the set of a task that comes with the library, and

    python -m skvdd.datasets pillar --import my_tasks --n-episodes 50 --output pillar.npz

one of a task that the module ``my_tasks`` registers.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a set of demonstrations to a file."""
    from skvdd.datasets.experts.recording import SEED, record
    from skvdd.envs import get_task, task_names

    modules = argparse.ArgumentParser(add_help=False)
    modules.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module that registers tasks of your own; may be repeated",
    )
    named, _ = modules.parse_known_args(arguments)
    for module in named.modules:
        import_module(module)
    sets = [name for task in task_names() for name in get_task(task).demonstrators]
    parser = argparse.ArgumentParser(
        prog="python -m skvdd.datasets",
        description="Record scripted demonstrations.",
        parents=[modules],
    )
    parser.add_argument("task", choices=sorted(sets), help="the task, or one of its sets")
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--n-episodes", type=int, required=True)
    parser.add_argument("--random-state", type=int, default=SEED)
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 for one on each core")
    options = parser.parse_args(arguments)
    demonstrations = record(
        options.task,
        options.n_episodes,
        random_state=options.random_state,
        n_jobs=options.jobs,
    )
    demonstrations.save(options.output)
    print(demonstrations.describe())


if __name__ == "__main__":
    main()
