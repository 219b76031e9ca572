"""``python -m benchmarks``: train methods, roll them out, and print what came out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

TOOLS = {
    "speed": "what everything costs in time",
    "memory": "whether memory grows over many fits",
    "toy": "distillation where the truth is known",
    "threads": "where a second thread pays",
    "demonstrators": "how often the demonstrators succeed",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    main = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train methods and roll them out")
    _add_common(run)
    _add_methods(run)
    run.add_argument("--seeds", type=int, default=3, help="how many seeds")
    run.add_argument("--split", default="test", choices=["test", "validation", "train"])
    run.add_argument(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="[METHOD:]NAME=VALUE",
        help="parameters, in place of those of the task",
    )
    run.add_argument("--iterations", type=int, help="of all trainings of a method together")
    run.add_argument(
        "--unequal",
        action="store_true",
        help="as many iterations as the task's settings give each method, not equally many",
    )

    table = commands.add_parser("table", help="print what is recorded, as Markdown")
    _add_task(table)
    table.add_argument("--rows", nargs="+", default=[], help="names of rows, in this order")
    table.add_argument("--against", help="method or row with which the others are compared")
    table.add_argument("--split", default="test", choices=["test", "validation", "train"])
    table.add_argument("--budget", default="full", choices=["full", "quick"])

    search = commands.add_parser("search", help="choose parameters in validation contexts")
    _add_common(search)
    _add_methods(search)

    paper = commands.add_parser("paper", help="do experiments of the paper, and others")
    paper.add_argument("names", nargs="+", metavar="EXPERIMENT", help="or all, or list")
    _add_common(paper)
    paper.add_argument("--seeds", type=int, default=3, help="how many seeds")

    pages = commands.add_parser("pages", help="write all tables and pictures from the records")
    pages.add_argument("--records", type=Path, help="folder of the records")
    pages.add_argument("output", type=Path, help="folder to write")

    for name, words in TOOLS.items():
        commands.add_parser(name, help=words, add_help=False)
    return main


def _add_task(command: argparse.ArgumentParser) -> None:
    command.add_argument("--task", default="avoiding", help="name of a registered task")
    command.add_argument(
        "--import", dest="imports", nargs="+", default=[], help="modules that register tasks"
    )
    command.add_argument("--records", type=Path, help="folder of the records of all tasks")


def _add_common(command: argparse.ArgumentParser) -> None:
    _add_task(command)
    command.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    command.add_argument("--budget", default="full", choices=["full", "quick"])
    command.add_argument("--n-demonstrations", type=int, help="to learn from")


def _add_methods(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--method", nargs="+", required=True, metavar="METHOD", help="names, or module:Class"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in TOOLS:
        sys.argv = [f"python -m benchmarks {words[0]}", *words[1:]]
        import_module(f"benchmarks.{words[0]}").main()
        return
    asked = parser().parse_args(words)
    try:
        failures = conduct(asked)
    except (TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
    if failures:
        sys.exit("\n".join([f"{len(failures)} failed:", *failures]))


def conduct(asked: argparse.Namespace) -> list[str]:
    """Do a command and return what failed."""
    from benchmarks import commands, pages, records
    from benchmarks.methods import imported

    results = asked.records or records.RESULTS
    if asked.command == "pages":
        pages.build(results, asked.output)
        return []
    for module in asked.imports:
        imported(module)
    asked.task = _known(asked.task)
    _check_counts(asked)
    folder = results / asked.task
    if asked.command == "table":
        options = {"rows": asked.rows, "against": asked.against}
        found = commands.table(
            asked.task, folder, split=asked.split, budget=asked.budget, **options
        )
        print(found)
        return []
    common = {"jobs": asked.jobs, "budget": asked.budget, "imports": asked.imports}
    common["n_demonstrations"] = asked.n_demonstrations
    if asked.command == "search":
        return commands.search(asked.task, asked.method, folder, **common)
    if asked.command == "paper":
        if asked.names == ["list"]:
            for name, title in commands.available(asked.task).items():
                print(f"{name:<12}{title}")
            return []
        return commands.paper(asked.names, asked.task, folder, n_seeds=asked.seeds, **common)
    return commands.run(
        asked.task,
        asked.method,
        folder,
        n_seeds=asked.seeds,
        split=asked.split,
        settings=asked.set,
        iterations=asked.iterations,
        equal=not asked.unequal,
        **common,
    )


def _known(task: str) -> str:
    """Return the name of a task; raise a ValueError that says how to make one known."""
    from skvdd.envs import find_task, task_names

    found = find_task(task)
    if found is None:
        raise ValueError(
            f"--task must be one of {', '.join(task_names())}, got {task!r}; for another, pass "
            "--import MODULE, which registers it."
        )
    if task in found.demonstrators and task != found.name:
        raise ValueError(
            f"--task must be a task, got {task!r}, a set of demonstrations of {found.name}."
        )
    return found.name


def _check_counts(asked: argparse.Namespace) -> None:
    for name in ("seeds", "iterations", "n_demonstrations"):
        value = getattr(asked, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")


if __name__ == "__main__":
    main()
