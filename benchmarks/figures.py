"""The pictures of the paper's experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import t

SUCCESS_COLOR, ENTROPY_COLOR, PAPER_COLOR = "#1f5fa8", "#c4501b", "#777777"
QUANTITIES = (("success_rate", "success rate"), ("entropy", "task entropy"))


@dataclass(frozen=True)
class Summary:
    """Mean over seeds, standard deviation, and 95 % interval of the mean (Student's t)."""

    mean: float
    std: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return mean, deviation and interval; of one seed the mean alone."""
        if self.low == self.high and self.std == 0:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.std:.3f} [{self.low:.3f}, {self.high:.3f}]"


def summarize(values: Sequence[float]) -> Summary:
    """Return the summary of one value a seed; both quantities lie in [0, 1]."""
    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Summary(mean, 0.0, mean, mean)
    std = float(values.std(ddof=1))
    half = float(t.ppf(0.975, n - 1)) * std / np.sqrt(n)
    return Summary(mean, std, max(0.0, mean - half), min(1.0, mean + half))


def dot_plot(
    rows: dict[str, tuple[Summary, Summary]],
    published: dict[str, tuple[float, float]],
    title: str,
    path: Path,
) -> None:
    """Draw success and entropy of each row, with intervals, and the paper's values beside."""
    names = list(rows)
    figure, axes = plt.subplots(
        1, 2, figsize=(8, 0.42 * len(names) + 1.4), sharey=True, layout="constrained"
    )
    for k, (axis, (_, label)) in enumerate(zip(axes, QUANTITIES, strict=True)):
        color = (SUCCESS_COLOR, ENTROPY_COLOR)[k]
        for place, name in enumerate(names):
            summary = rows[name][k]
            axis.plot([summary.low, summary.high], [place, place], color=color, lw=2)
            axis.plot(summary.mean, place, "o", color=color, ms=7)
            if name in published:
                axis.plot(
                    published[name][k], place, "D", mfc="none", mec=PAPER_COLOR, ms=7, zorder=0
                )
        axis.set(xlabel=label, xlim=(-0.02, 1.02))
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)  # the first row on top, no mark cut off
    if any(name in published for name in names):
        axes[1].plot([], [], "D", mfc="none", mec=PAPER_COLOR, label="paper")
        figure.legend(loc="outside lower center", frameon=False)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def line_plot(
    x: Sequence[float],
    quantities: Sequence[tuple[Summary, Summary]],
    xlabel: str,
    title: str,
    path: Path,
) -> None:
    """Draw success and entropy against a number that doubles."""
    figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    colors = (SUCCESS_COLOR, ENTROPY_COLOR)
    for color, (_, label), summaries in zip(
        colors, QUANTITIES, zip(*quantities, strict=True), strict=True
    ):
        middle = [s.mean for s in summaries]
        around = ([s.mean - s.low for s in summaries], [s.high - s.mean for s in summaries])
        axis.errorbar(x, middle, around, color=color, marker="o", capsize=3, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(x, [f"{value:g}" for value in x])
    axis.set(xlabel=xlabel, ylim=(-0.02, 1.02), title=title)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    save(figure, path)


def grouped_dot_plot(
    groups: dict[str, dict[str, tuple[Summary, Summary]]], title: str, path: Path
) -> None:
    """Draw success and entropy of several methods in each group, a row for each group."""
    methods = list(dict.fromkeys(name for rows in groups.values() for name in rows))
    height = 0.16 * len(methods) * len(groups) + 1.6
    figure, axes = plt.subplots(1, 2, figsize=(9, height), sharey=True, layout="constrained")
    for k, (axis, (_, label)) in enumerate(zip(axes, QUANTITIES, strict=True)):
        for number, method in enumerate(methods):
            color = plt.cm.tab10.colors[number]
            for place, rows in enumerate(groups.values()):
                if method not in rows:
                    continue
                summary = rows[method][k]
                y = place + 0.16 * (number - (len(methods) - 1) / 2)
                axis.plot([summary.low, summary.high], [y, y], color=color, lw=1.5)
                axis.plot(summary.mean, y, "o", color=color, ms=6)
            axis.plot([], [], "o-", color=color, label=method)
        axis.set(xlabel=label, xlim=(-0.02, 1.02))
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        for place in range(1, len(groups)):
            axis.axhline(place - 0.5, color="0.85", lw=0.8, zorder=0)
    axes[0].set_yticks(range(len(groups)), list(groups))
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods)
    )
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
