"""Record scripted demonstrations to a file.

    python -m skvdd.datasets pushing --n-episodes 132 --output pushing.npz

makes the set of a task that comes with the library.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module

from skvdd.datasets.loading import RECORDED


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a set of demonstrations to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m skvdd.datasets", description="Record scripted demonstrations."
    )
    parser.add_argument("task", choices=sorted(RECORDED))
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--n-episodes", type=int, required=True)
    options = parser.parse_args(arguments)
    from skvdd.datasets.experts.recording import record

    demonstrator = import_module(RECORDED[options.task]).DEMONSTRATORS[options.task]
    demonstrations = record(demonstrator, options.n_episodes)
    demonstrations.save(options.output)
    print(demonstrations.describe())


if __name__ == "__main__":
    main()
