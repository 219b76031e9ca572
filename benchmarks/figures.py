"""The pictures of the experiments, from records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.summary import Summary
from benchmarks.tables import Table

COLORS = ("#1f5fa8", "#c4501b", "#2e7d4f")
GRAY = "#777777"
QUANTITIES = {
    "success_rate": "success rate",
    "entropy_d3il": "entropy, D3IL",
    "diversity": "diversity",
}


def draw(table: Table, kind: str, title: str, path: Path) -> None:
    """Draw a table: ``"dots"``, ``"line"`` or ``"groups"``."""
    names = dict(QUANTITIES) if table.task.score.n_behaviors else {"success_rate": "success rate"}
    if table.task.headline != "success_rate":
        names = {table.task.headline: table.task.headline.replace("_", " "), **names}
    figure = {"dots": _dots, "line": _lines, "groups": _groups}[kind](table, names)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _dots(table: Table, quantities: Mapping[str, str]) -> Figure:
    """Draw each row as a point and its interval; the ceiling of an entropy as a tick."""
    lines = table.lines
    figure = Figure(figsize=(3 * len(quantities) + 2, 0.42 * len(lines) + 1.4))
    figure.set_layout_engine("constrained")
    axes = np.atleast_1d(figure.subplots(1, len(quantities), sharey=True))
    for color, axis, (quantity, words) in zip(
        _repeated(COLORS), axes, quantities.items(), strict=False
    ):
        for place, line in enumerate(lines):
            _point(axis, line.summary(quantity), place, color)
            if quantity == "entropy_d3il":
                axis.plot(line.summary("entropy_ceiling").mean, place, "|", color=GRAY, ms=11)
        _finish(axis, words)
    axes[0].set_yticks(range(len(lines)), [line.name for line in lines])
    axes[0].set_ylim(len(lines) - 0.5, -0.5)  # the first row on top, no mark cut off
    if "entropy_d3il" in quantities:
        axes[list(quantities).index("entropy_d3il")].set_title(
            "|: if perfectly diverse, with so many successes", fontsize=8, color=GRAY
        )
    return figure


def _lines(table: Table, quantities: Mapping[str, str]) -> Figure:
    """Draw quantities against the number that the names of the rows begin with."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    x = [float(line.name.split()[0]) for line in table.lines]
    for color, (quantity, words) in zip(_repeated(COLORS), quantities.items(), strict=False):
        found = [line.summary(quantity) for line in table.lines]
        middle = np.array([s.mean for s in found])
        around = np.array([[s.mean - s.low, s.high - s.mean] for s in found]).T
        around = np.maximum(np.nan_to_num(around), 0.0)
        axis.errorbar(x, middle, around, color=color, marker="o", capsize=3, label=words)
    axis.set_xscale("log", base=2)
    axis.set_xticks(x, [f"{value:g}" for value in x])
    axis.set(xlabel="experts", ylim=(-0.02, 1.05))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def _groups(table: Table, quantities: Mapping[str, str]) -> Figure:
    """Draw rows named "method, group": a place for each group, a color for each method."""
    named = [(*line.name.split(", ", 1), line) for line in table.lines]
    methods = list(dict.fromkeys(method for method, _, _ in named))
    groups = list(dict.fromkeys(group for _, group, _ in named))
    figure = Figure(figsize=(3 * len(quantities) + 2, 0.16 * len(named) + 1.8))
    figure.set_layout_engine("constrained")
    axes = np.atleast_1d(figure.subplots(1, len(quantities), sharey=True))
    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for axis, (quantity, words) in zip(axes, quantities.items(), strict=True):
        for method, group, line in named:
            number = methods.index(method)
            place = groups.index(group) + 0.16 * (number - (len(methods) - 1) / 2)
            _point(axis, line.summary(quantity), place, colors[number % len(colors)])
        _finish(axis, words)
        for place in range(1, len(groups)):
            axis.axhline(place - 0.5, color="0.85", lw=0.8, zorder=0)
    for number, method in enumerate(methods):
        axes[0].plot([], [], "o-", color=colors[number % len(colors)], label=method)
    axes[0].set_yticks(range(len(groups)), groups)
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(methods), 6))
    return figure


def _point(axis: Axes, summary: Summary, place: float, color: object) -> None:
    axis.plot([summary.low, summary.high], [place, place], color=color, lw=2)
    axis.plot(summary.mean, place, "o", color=color, ms=6)


def _finish(axis: Axes, words: str) -> None:
    axis.set(xlabel=words, xlim=(-0.02, 1.05))
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _repeated(colors: Sequence[str]) -> list[str]:
    return list(colors) * 2
