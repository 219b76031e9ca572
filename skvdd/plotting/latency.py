"""The time of a decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from skvdd.plotting.style import BAR_COLOR, choose_axes, open_frame


class LatencyDisplay:
    """How long policies take for one decision, on a logarithmic axis.

    It is recommended to use `from_estimators`.

    Parameters
    ----------
    labels : sequence of m str
        Names of the policies.
    milliseconds : array-like of shape (m,)
        Time of one decision of each.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    points_ : matplotlib PathCollection
        The times.

    Examples
    --------
    >>> from skvdd.plotting import LatencyDisplay
    >>> display = LatencyDisplay(["teacher", "VDD"], [4.1, 0.2]).plot()
    >>> [text.get_text() for text in display.ax_.texts]
    ['4.1 ms', '0.2 ms']
    """

    ax_: Axes
    figure_: Any
    points_: Any

    def __init__(self, labels: Sequence[str], milliseconds: ArrayLike) -> None:
        self.labels = labels
        self.milliseconds = milliseconds

    @classmethod
    def from_estimators(
        cls,
        policies: Mapping[str, Any],
        X_row: ArrayLike,
        *,
        n_calls: int = 200,
        n_threads: int = 1,
        ax: Axes | None = None,
    ) -> LatencyDisplay:
        """Measure policies one after the other, and draw.

        Parameters
        ----------
        policies : mapping of str to fitted policy
            What to measure, in the order from top to bottom.
        X_row : array-like of shape (T, d) or (T * d,)
            The window of one decision.
        n_calls, n_threads : int, default=200, 1
            As in `skvdd.evaluation.time_action`, whose medians are drawn.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : LatencyDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there are no policies.
        """
        from skvdd.evaluation import time_action

        if not policies:
            raise ValueError("policies must be at least one, got none.")
        milliseconds = [
            time_action(policy, X_row, n_calls=n_calls, n_threads=n_threads)
            for policy in policies.values()
        ]
        return cls(list(policies), milliseconds).plot(ax)

    def plot(self, ax: Axes | None = None) -> LatencyDisplay:
        """Draw a row for each policy.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : LatencyDisplay
            Itself.
        """
        milliseconds = np.asarray(self.milliseconds, dtype=float)
        n = len(milliseconds)
        self.ax_ = choose_axes(ax, 1, "picture", lambda: _make_latency_axes(n))[0]
        self.figure_ = self.ax_.figure
        rows = np.arange(n)
        self.points_ = self.ax_.scatter(milliseconds, rows, s=60, color=BAR_COLOR, zorder=3)
        for row, value in zip(rows, milliseconds, strict=True):
            self.ax_.annotate(
                f"{value:.2g} ms" if value < 10 else f"{value:.0f} ms",
                (value, row),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
            )
        self.ax_.set_xscale("log")
        self.ax_.set_xlim(milliseconds.min() / 2.0, milliseconds.max() * 4.0)
        self.ax_.set(xlabel="time of one decision (ms)", ylim=(n - 0.5, -0.5))
        self.ax_.set_yticks(rows, self.labels)
        self.ax_.grid(axis="x", alpha=0.25)
        open_frame(self.ax_)
        return self


def _make_latency_axes(n_policies: int) -> Axes:
    return plt.subplots(figsize=(6.0, 0.5 * n_policies + 1.1), layout="constrained")[1]
