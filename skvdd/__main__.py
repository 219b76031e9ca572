"""``python -m skvdd``: the library from a shell."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import skvdd

DEMO = """\
Train a diffusion policy on the demonstrations that come with the library, distill it into a
mixture of Gaussian experts, fit the same mixture by EM for comparison, roll all of them out on
the simulated robot, and time one action of each. Takes about five minutes on two cores.

Writes results.json, trajectories.png, experts.png, teacher.safetensors and vdd.safetensors.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Returns
    -------
    parser : argparse.ArgumentParser
        With one subparser per command.
    """
    parser = argparse.ArgumentParser(
        prog="python -m skvdd",
        description="Distill diffusion policies into mixtures of Gaussian experts.",
    )
    parser.add_argument("--version", action="version", version=f"skvdd {skvdd.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train, distill and compare on Avoiding",
        description=DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "--output", default="demo", metavar="FOLDER", help="where to write (default: %(default)s)"
    )
    demo.add_argument(
        "--seed", type=_seed, default=0, help="of training and rollouts (default: %(default)s)"
    )
    demo.add_argument(
        "--episodes",
        type=_positive,
        default=200,
        metavar="N",
        help="rollouts of each policy (default: %(default)s)",
    )
    demo.add_argument(
        "--threads",
        type=_positive,
        default=None,
        metavar="N",
        help="threads of torch (default: torch's own choice, one per core)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, default=None
        The words after ``python -m skvdd``; None takes those of the process.

    Returns
    -------
    status : int
        Exit status of the process.
    """
    options = build_parser().parse_args(arguments)
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    from skvdd.demo import run_demo  # the simulator is not needed to print a help text

    run_demo(options.output, random_state=options.seed, n_episodes=options.episodes)
    return 0


def _positive(word: str) -> int:
    return _integer(word, 1, 2**31 - 1)


def _seed(word: str) -> int:
    return _integer(word, 0, 2**32 - 1)


def _integer(word: str, low: int, high: int) -> int:
    try:
        number = int(word)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"must be an integer from {low} to {high}, got {word!r}")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
