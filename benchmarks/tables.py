"""Tables in Markdown, from records alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.published import Published
from benchmarks.records import Record
from benchmarks.summary import Summary, gap_between, summarize
from skvdd.envs import TaskSpec

Rows = Mapping[str, Sequence[Record]]  # of the seeds of each row

# How much more of something the most costly row may have before a caption says so.
UNEQUAL = {"iterations": 1.01, "seconds": 1.2}

CLOCKS = {
    "cpu": "the processor in all threads",
    "gpu": "the wall clock, GPU",
    "wall": "the wall clock",
}

# What tells settings of one name apart, as a row says it.
READABLE = {
    "n_demonstrations": "{} demonstrations",
    "demonstrations": "of {!r}",
    "demonstrator_version": "version {}",
    "iterations": "{} iterations",
}


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Parameters
    ----------
    name : str
        Its name.
    records : sequence of Record
        One of each seed.
    """

    name: str
    records: Sequence[Record]

    def summary(self, quantity: str) -> Summary:
        """Return the summary of a quantity."""
        return summarize([record.evaluation for record in self.records], quantity)

    def number(self, column: str) -> float | None:
        """Return the mean over seeds of a number in the records; None where one has none."""
        values = [record.row[column] for record in self.records]
        return None if None in values else sum(values) / len(values)

    def each(self, column: str) -> list[str]:
        """Return what the records have in a column, each once."""
        return list(dict.fromkeys(str(record.row[column]) for record in self.records))

    def gap(self, other: Line, quantity: str) -> str:
        """Return the difference to another row, over the seeds that both have."""
        mine = {record.row["seed"]: record.evaluation for record in self.records}
        its = {record.row["seed"]: record.evaluation for record in other.records}
        shared = sorted(mine.keys() & its.keys())
        if other.name == self.name or not shared:
            return ""
        return str(gap_between([mine[s] for s in shared], [its[s] for s in shared], quantity))


@dataclass(frozen=True)
class Column:
    """A column of published figures: its head, and a figure by the name of the row."""

    head: str
    figures: Mapping[str, Published | float]


@dataclass(frozen=True)
class Table:
    """Success and diversity of several rows, what they cost, and how they differ from one of them.

    Parameters
    ----------
    task : TaskSpec
        The task.
    rows : mapping of str to sequence of Record
        The records of each row.
    against : str or None, default=None
        The row that the others are compared with.
    published : sequence of Column, default=()
        Figures of the paper.
    """

    task: TaskSpec
    rows: Rows
    against: str | None = None
    published: Sequence[Column] = field(default=())

    @property
    def lines(self) -> list[Line]:
        """The rows that have records."""
        return [Line(name, records) for name, records in self.rows.items() if records]

    def __str__(self) -> str:
        """Return caption and table."""
        return f"{self.caption()}\n\n{self.markdown()}"

    # -- the table -------------------------------------------------------------------------------

    def markdown(self) -> str:
        """Return the table."""
        columns = self._columns()
        return markdown(columns, zip(*columns.values(), strict=True))

    def _columns(self) -> dict[str, list[str]]:
        lines, columns = self.lines, {}
        columns[""] = [line.name for line in lines]
        if self.task.headline != "success_rate":
            head = self.task.headline.replace("_", " ")
            columns[head] = [str(line.summary(self.task.headline)) for line in lines]
        columns["success rate"] = [str(line.summary("success_rate")) for line in lines]
        if self._has_behaviors:
            columns["entropy, D3IL"] = [str(line.summary("entropy_d3il")) for line in lines]
            ceilings = [line.summary("entropy_ceiling").mean for line in lines]
            columns["if perfectly diverse"] = [f"{ceiling:.3f}" for ceiling in ceilings]
            columns["diversity"] = [str(line.summary("diversity")) for line in lines]
        for column in self.published:
            columns[column.head] = [str(column.figures.get(line.name, "")) for line in lines]
        columns["iterations"] = [_whole(line.number("iterations")) for line in lines]
        columns["seconds"] = [_whole(line.number("seconds")) for line in lines]
        columns["seeds"] = [str(len(line.records)) for line in lines]
        return columns | self._gaps()

    def _gaps(self) -> dict[str, list[str]]:
        base = next((line for line in self.lines if line.name == self.against), None)
        if base is None or len(self.lines) < 2:
            return {}
        quantities = {self.task.headline: self.task.headline.replace("_", " ")}
        if self._has_behaviors:
            quantities["diversity"] = "diversity"
        return {
            f"{words} minus {base.name}": [line.gap(base, quantity) for line in self.lines]
            for quantity, words in quantities.items()
        }

    @property
    def _has_behaviors(self) -> bool:
        return self.task.score.n_behaviors is not None

    # -- the caption -----------------------------------------------------------------------------

    def caption(self) -> str:
        """Return what the numbers are, and what makes rows unequal."""
        lines = self.lines
        if not lines:
            return "Nothing has been recorded yet."
        parts = [self._played(), self._spread(), self._clock(), self._inequality(), self._origin()]
        return " ".join(part for part in parts if part)

    def _played(self) -> str:
        rows = [record.row for line in self.lines for record in line.records]
        sizes = {(row["n_episodes"], row["n_contexts"] or 0, row["split"] or "") for row in rows}
        words = []
        for n_episodes, n_contexts, split in sorted(sizes):
            if n_contexts:
                each = f"{n_episodes / n_contexts:g} in each of {n_contexts} contexts"
                words.append(f"{each} of the {split} list")
            else:
                words.append(f"{n_episodes}")
        return f"Rollouts of a seed: {'; '.join(words)}."

    def _spread(self) -> str:
        several = any(len(line.records) > 1 for line in self.lines)
        spread = "mean ± standard deviation over seeds" if several else "one seed"
        if self.task.n_contexts:
            interval = "over contexts (bootstrap)"
            error = "over contexts and seeds, paired"
        else:
            interval = (
                "over seeds (Student's t; of equal success rates, Wilson's over all rollouts)"
            )
            interval = interval if several else "over rollouts"
            error = "over seeds" if several else "over rollouts"
        text = f"Cells: {spread} [95 % interval {interval}]"
        return f"{text}; differences ± standard error {error}." if self._gaps() else f"{text}."

    def _clock(self) -> str:
        """Say what the seconds are of; which rows, if they differ in it."""
        rows: dict[str, list[str]] = {}
        for line in self.lines:
            words = ", ".join(CLOCKS.get(clock, clock) for clock in line.each("clock"))
            rows.setdefault(words, []).append(line.name)
        if len(rows) == 1:
            return f"Seconds are of {next(iter(rows))}."
        told = (f"of {words} ({', '.join(names)})" for words, names in rows.items())
        return f"Seconds are {'; '.join(told)}."

    def _inequality(self) -> str:
        """Say what is not alike: a difference of such rows is none of the methods alone."""
        unequal = [
            f"{column} ({min(found):.0f} to {max(found):.0f})"
            for column, factor in UNEQUAL.items()
            if (found := [x for line in self.lines if (x := line.number(column)) is not None])
            and max(found) > factor * min(found)
        ]
        if not unequal:
            return ""
        return (
            f"Rows differ in {' and '.join(unequal)}, all trainings of a method together, its "
            "teacher's too."
        )

    def _origin(self) -> str:
        rows = [record.row for line in self.lines for record in line.records]
        commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
        sets = {
            (r["demonstrations"], r["n_demonstrations"], r["demonstrator_version"]) for r in rows
        }
        words = "; ".join(
            f"{n} of {name!r}" + (f", version {version}" if version else "")
            for name, n, version in sorted(sets, key=str)
        )
        return f"Demonstrations: {words}. Measured at {commits}."


def by_name(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return records by the names of rows; those of one name and several settings apart.

    What differs and can be read tells settings apart, and the hash of the setting otherwise.
    """
    grouped: dict[str, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: record.row["seed"]):
        settings = grouped.setdefault(record.row["name"], {})
        settings.setdefault(record.row["setting"], []).append(record)
    rows = {}
    for name, settings in grouped.items():
        for ending, found in _endings(settings).items():
            rows[name + ending] = found
    return rows


def _endings(settings: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Return the records of each setting of a name by what its rows add to that name."""
    first = [found[0].row for found in settings.values()]
    differing = [column for column in READABLE if len({row[column] for row in first}) > 1]
    readable = [
        [READABLE[c].format(row[c]) for c in differing if row[c] is not None] for row in first
    ]
    endings = {}
    for setting, words in zip(settings, readable, strict=True):
        alike = len(settings) > 1 and readable.count(words) > 1
        told = [*words, f"setting {setting[:6]}"] if alike else words
        endings["".join(f", {word}" for word in told)] = settings[setting]
    return endings


def markdown(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table in Markdown."""
    header = tuple(header)
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _whole(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}"
