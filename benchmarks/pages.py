"""Tables and pictures for the documentation, from records alone: ``python -m benchmarks pages``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.experiments import EXPERIMENTS, Experiment
from benchmarks.figures import draw
from benchmarks.measured import MEASUREMENTS
from benchmarks.records import Record, Store
from benchmarks.tables import Table, markdown
from benchmarks.training import write
from skvdd.envs import TaskSpec, get_task, task_names

SEARCH = "search"


def build(folder_of_records: Path, output: Path) -> None:
    """Write ``TASK-TABLE.md``, with its picture, for every table that a task can have.

    A table of which nothing has been recorded says so.

    Parameters
    ----------
    folder_of_records : Path
        With a folder for each task.
    output : Path
        Where to write.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name in task_names():
        task = get_task(name)
        store = Store(folder_of_records / name)
        shown = store.read("tables")
        records = {record.row["key"]: record for record in store.records(task)}
        for table in dict.fromkeys([*shown, *offered(name)]):
            text = page(task, table, shown.get(table), records, output)
            write(output / f"{name}-{table}.md", text + "\n")
        for measured in MEASUREMENTS:
            if MEASUREMENTS[measured].exists_for(name):
                text = measured_page(name, measured, store.folder, output)
                write(output / f"{name}-{measured}.md", text + "\n")


def offered(task: str) -> list[str]:
    """Return the experiments that exist for a task."""
    return [name for name, experiment in EXPERIMENTS.items() if experiment.exists_for(task)]


def page(
    task: TaskSpec,
    name: str,
    shown: dict[str, Any] | None,
    records: dict[str, Record],
    output: Path | None,
) -> str:
    """Return the Markdown of a table, and draw its picture.

    Parameters
    ----------
    task : TaskSpec
        The task.
    name : str
        Name of the table: an experiment, with the budget after it unless that is full.
    shown : dict or None
        Which runs it shows, as ``tables.json`` says.
    records : dict of str to Record
        All that there are.
    output : Path or None
        Where the picture goes; None draws none.
    """
    experiment = EXPERIMENTS.get(name.partition("-")[0])
    title = experiment.title if experiment else "Search, in contexts of the validation list"
    if shown is None:
        return f"## {title}\n\nNothing has been recorded yet."
    rows = {
        row: [records[key] for key in keys.values() if key in records]
        for row, keys in shown["rows"].items()
    }
    table = made(task, experiment, rows)
    parts = [f"## {title}", f"`{shown['command']}`", table.caption()]
    lacking = missing(shown["rows"], records)
    if lacking:
        parts.append(f"Not recorded yet: {lacking}.")
    if table.lines and output is not None:
        picture = output / f"{task.name}-{name}.png"
        draw(table, experiment.picture if experiment else "dots", title, picture)
        parts.append(f"![{title}]({picture.name})")
    if table.lines:
        parts.append(table.markdown())
    if name.startswith(SEARCH):
        parts.append(selection(task, rows))
    return "\n\n".join(parts)


def measured_page(task: str, name: str, folder: Path, output: Path) -> str:
    """Return the Markdown of what was measured on single policies, and draw its picture."""
    measurement = MEASUREMENTS[name]
    title, path = f"## {measurement.title}", folder / f"{name}.{measurement.ending}"
    if not path.is_file():
        return f"{title}\n\nNothing has been recorded yet."
    picture = output / f"{task}-{name}.png"
    text = measurement.report(path, picture)
    drawn = [f"![{measurement.title}]({picture.name})"] if picture.is_file() else []
    return "\n\n".join([title, *drawn, text])


def made(task: TaskSpec, experiment: Experiment | None, rows: dict[str, list[Record]]) -> Table:
    """Return the table of an experiment."""
    if experiment is None:
        return Table(task, rows)
    return Table(task, rows, experiment.against, experiment.published(task))


def missing(rows: dict[str, dict[str, str]], records: dict[str, Record]) -> str:
    """Return which runs have no record."""
    found = []
    for row, keys in rows.items():
        seeds = [seed for seed, key in keys.items() if key not in records]
        if seeds:
            found.append(f"{row} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})")
    return ", ".join(found)


def selection(task: TaskSpec, rows: dict[str, list[Record]]) -> str:
    """Return the table of the scores by which a search has chosen."""
    return markdown(
        ("candidate", "selection score"),
        (
            (row, f"{task.selection(found[0].evaluation):.3f}")
            for row, found in rows.items()
            if found
        ),
    )
