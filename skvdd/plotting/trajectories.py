"""Rollouts of Avoiding in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import ArrayLike, NDArray

from skvdd.envs.avoiding import FINISH_Y, OBSTACLES
from skvdd.plotting.style import (
    FAILURE_COLOR,
    FINISH_COLOR,
    MUTED,
    SUCCESS_COLOR,
    choose_axes,
    expert_colors,
    line_handle,
    open_frame,
    text_color,
)
from skvdd.rollouts.policies import fitted_sizes

if TYPE_CHECKING:
    from skvdd.evaluation import Evaluation

Array = NDArray[np.floating]

AVOIDING = "skvdd/Avoiding-v0"
MEASURED_X, MEASURED_Y = 2, 3  # columns of an observation of Avoiding
COLUMNS = 4  # of panels


class TrajectoriesDisplay:
    """Rollouts of Avoiding in the plane, colored by expert (figure 4 of the paper).

    It is recommended to use `from_estimator` or `from_evaluation`. Each point of a path has the
    color of the expert that the gating finds most likely there; without experts, a path has the
    color of its success. A cross ends every path that failed.

    Parameters
    ----------
    paths : sequence of ndarray of shape (L, 2)
        Measured positions x and y of each rollout, m.
    successes : array-like of shape (n,)
        Whether each rollout succeeded.
    experts : sequence of ndarray of shape (L,), default=None
        The most likely expert at each point, from zero.
    n_experts : int, default=None
        Number of experts K; None counts up to the largest in `experts`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on last.
    axes_ : ndarray of matplotlib Axes
        All axes drawn on last: one, or those of `plot_experts`.
    figure_ : matplotlib Figure
        Their figure.
    lines_ : LineCollection
        The paths, one segment per step.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.plotting import TrajectoriesDisplay
    >>> path = np.array([[0.5, -0.2], [0.6, 0.0], [0.6, 0.2]])
    >>> display = TrajectoriesDisplay([path], [False], [np.array([0, 0, 1])]).plot()
    >>> display.ax_.get_xlabel()
    'y (m)'
    """

    ax_: Axes
    axes_: NDArray[np.object_]
    figure_: Any
    lines_: LineCollection

    def __init__(
        self,
        paths: Sequence[Array],
        successes: ArrayLike,
        experts: Sequence[NDArray[np.intp]] | None = None,
        n_experts: int | None = None,
    ) -> None:
        self.paths = paths
        self.successes = successes
        self.experts = experts
        self.n_experts = n_experts

    @classmethod
    def from_estimator(
        cls,
        policy: Any,
        n_episodes: int = 100,
        *,
        random_state: int | np.random.RandomState | None = None,
        ax: Axes | None = None,
    ) -> TrajectoriesDisplay:
        """Roll a policy out in Avoiding and draw where it went.

        Parameters
        ----------
        policy : fitted policy
            What `skvdd.evaluation.evaluate_policy` takes.
        n_episodes : int, default=100
            Number of rollouts.
        random_state : int, RandomState instance or None, default=None
            Seeds environments and noise.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : TrajectoriesDisplay
            The display, drawn.
        """
        from skvdd.evaluation import evaluate_policy

        evaluation = evaluate_policy(
            policy, AVOIDING, n_episodes, random_state=random_state, progress=False
        )
        return cls.from_evaluation(evaluation, policy, ax=ax)

    @classmethod
    def from_evaluation(
        cls,
        evaluation: Evaluation,
        policy: Any = None,
        *,
        ax: Axes | None = None,
    ) -> TrajectoriesDisplay:
        """Draw the rollouts of an evaluation.

        Parameters
        ----------
        evaluation : Evaluation
            Result of `skvdd.evaluation.evaluate_policy` on Avoiding.
        policy : mixture policy, default=None
            The policy that was evaluated, for the colors; None, or one that has no
            ``gating``, colors by success.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : TrajectoriesDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the evaluation is of another task.
        """
        if evaluation.env_id != AVOIDING:
            raise ValueError(
                f"evaluation must be one of {AVOIDING}, whose obstacles are drawn, "
                f"got one of {evaluation.env_id}."
            )
        episodes = evaluation.episodes.episodes
        paths = [episode.states[:, [MEASURED_X, MEASURED_Y]] for episode in episodes]
        experts, n_experts = None, None
        if hasattr(policy, "gating"):
            windows, _, _ = evaluation.episodes.windows(fitted_sizes(policy)[0])
            gates = policy.gating(windows)
            ends = np.cumsum([len(path) for path in paths])[:-1]
            experts, n_experts = np.split(gates.argmax(axis=1), ends), gates.shape[1]
        display = cls(paths, evaluation.successes, experts, n_experts)
        return display.plot(ax)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        expert: int | None = None,
        line_width: float = 0.9,
        alpha: float = 0.7,
    ) -> TrajectoriesDisplay:
        """Draw obstacles, paths and legend.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        expert : int, default=None
            Draw only the steps at which this expert, counted from zero, is the most likely one;
            None draws all, and marks failures.
        line_width : float, default=0.9
            Width of a path, points.
        alpha : float, default=0.7
            Opacity of a path.

        Returns
        -------
        display : TrajectoriesDisplay
            Itself.
        """
        shown = self._shown_segments(expert)
        self.axes_ = choose_axes(ax, 1, "picture", _make_axes)
        self.ax_ = self.axes_[0]
        self.figure_ = self.ax_.figure
        _draw_scene(self.ax_)
        _name_finish(self.ax_)
        self.lines_ = self._add_lines(self.ax_, shown, line_width, alpha)
        if expert is None:
            self._mark_failures(self.ax_)
        self.ax_.legend(
            handles=self._legend(), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False
        )
        return self

    def plot_experts(
        self,
        ax: Sequence[Axes] | NDArray[Any] | None = None,
        *,
        line_width: float = 0.9,
        alpha: float = 0.7,
    ) -> TrajectoriesDisplay:
        """Draw a panel for each expert that is ever the most likely one: its steps alone.

        Parameters
        ----------
        ax : sequence of matplotlib Axes, default=None
            Where to draw, one for each such expert; None makes a figure.
        line_width : float, default=0.9
            Width of a path, points.
        alpha : float, default=0.7
            Opacity of a path.

        Returns
        -------
        display : TrajectoriesDisplay
            Itself; `axes_` are the panels.

        Raises
        ------
        ValueError
            If the display has no experts.
        """
        if self.experts is None:
            raise ValueError(
                "plot_experts needs a display with experts, got one without: give "
                "from_evaluation a mixture policy, or use plot."
            )
        shares = self._shares()
        used = np.flatnonzero(shares)
        self.axes_ = choose_axes(ax, len(used), "expert in use", lambda: _make_panels(len(used)))
        for panel, expert in zip(self.axes_, used, strict=True):
            _draw_scene(panel)
            shown = self._shown_segments(int(expert))
            self.lines_ = self._add_lines(panel, shown, line_width, alpha)
            panel.set_title(f"expert {expert + 1} ({_percent(shares[expert])})")
        if ax is None:
            _label_outer(self.axes_)
        self.ax_ = self.axes_[-1]
        self.figure_ = self.ax_.figure
        return self

    def _add_lines(
        self, ax: Axes, shown: NDArray[np.bool_], line_width: float, alpha: float
    ) -> LineCollection:
        segments = [np.stack([path[:-1, ::-1], path[1:, ::-1]], axis=1) for path in self.paths]
        lines = LineCollection(
            list(compress(np.concatenate(segments), shown)),
            colors=list(compress(self._segment_colors(), shown)),
            linewidths=line_width,
            alpha=alpha,
            capstyle="round",
            zorder=2,
        )
        ax.add_collection(lines, autolim=False)
        return lines

    def _shown_segments(self, expert: int | None) -> NDArray[np.bool_]:
        """Return which segments of all paths are drawn."""
        if expert is None:
            return np.ones(sum(len(path) - 1 for path in self.paths), dtype=bool)
        if self.experts is None or not 0 <= expert < self._count_experts():
            n_experts = 0 if self.experts is None else self._count_experts()
            raise ValueError(
                f"expert must be None or one of the {n_experts} experts of this display, counted "
                f"from zero, got {expert}."
            )
        return np.concatenate([experts[:-1] for experts in self.experts]) == expert

    def _segment_colors(self) -> list[Any]:
        if self.experts is None:
            return [
                SUCCESS_COLOR if success else FAILURE_COLOR
                for path, success in zip(self.paths, np.asarray(self.successes), strict=True)
                for _ in path[1:]
            ]
        colors = expert_colors(self._count_experts())
        return [colors[expert] for experts in self.experts for expert in experts[:-1]]

    def _count_experts(self) -> int:
        if self.n_experts is not None:
            return self.n_experts
        return 1 + max(int(experts.max()) for experts in self.experts or ())

    def _shares(self) -> Array:
        """Return the fraction of decisions at which each expert is the most likely one, (K,)."""
        counts = np.bincount(np.concatenate(self.experts or ()), minlength=self._count_experts())
        return counts / counts.sum()

    def _mark_failures(self, ax: Axes) -> None:
        ends = [
            p[-1] for p, ok in zip(self.paths, np.asarray(self.successes), strict=True) if not ok
        ]
        if ends:
            x, y = np.transpose(ends)
            ax.scatter(y, x, marker="x", s=14, linewidths=1.0, color=text_color(), zorder=4)

    def _legend(self) -> list[Line2D]:
        successes = np.asarray(self.successes, dtype=bool)
        if self.experts is None:
            handles = [line_handle(SUCCESS_COLOR, f"success ({successes.sum()})")]
            if not successes.all():
                handles.append(line_handle(FAILURE_COLOR, f"failure ({(~successes).sum()})"))
            return handles
        shares = self._shares()
        colors = expert_colors(len(shares))
        handles = [
            line_handle(colors[expert], f"expert {expert + 1} ({_percent(share)})")
            for expert, share in enumerate(shares)
            if share > 0
        ]
        if not successes.all():
            label = f"failure ({(~successes).sum()} of {len(successes)})"
            handles.append(Line2D([], [], color=text_color(), marker="x", ls="none", label=label))
        return handles


def _make_axes() -> Axes:
    return plt.subplots(figsize=(7.2, 3.7), layout="compressed")[1]


def _make_panels(n_panels: int) -> NDArray[Any]:
    """Return panels in rows."""
    n_columns = min(n_panels, COLUMNS)
    n_rows = -(-n_panels // n_columns)
    figure = plt.figure(figsize=(2.9 * n_columns + 0.5, 2.4 * n_rows + 0.4), layout="compressed")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for spare in panels[n_panels:]:
        spare.remove()
    return panels[:n_panels]


def _label_outer(panels: NDArray[np.object_]) -> None:
    """Leave labels only at the left of each row and at the bottom of each column."""
    for number, panel in enumerate(panels):
        if number % COLUMNS:
            panel.set_ylabel("")
            panel.tick_params(labelleft=False)
        if number + COLUMNS < len(panels):
            panel.set_xlabel("")
            panel.tick_params(labelbottom=False)


def _draw_scene(ax: Axes) -> None:
    """Draw the table from above, toward the finish on the right, the robot at the top."""
    for obstacle in OBSTACLES:
        circle = Circle(
            (obstacle.y, obstacle.x),
            obstacle.radius,
            facecolor=(0.5, 0.5, 0.5, 0.4),
            edgecolor=MUTED,
            zorder=3,
        )
        ax.add_patch(circle)
    ax.axvline(FINISH_Y, color=FINISH_COLOR, lw=4, alpha=0.35, zorder=1, solid_capstyle="butt")
    ax.set(xlim=(-0.31, 0.37), ylim=(0.75, 0.25), aspect="equal", xlabel="y (m)", ylabel="x (m)")
    open_frame(ax)


def _name_finish(ax: Axes) -> None:
    ax.annotate(
        "finish",
        (FINISH_Y, 0.745),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=FINISH_COLOR,
        fontsize="small",
    )


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %" if share >= 0.005 else "< 1 %"
