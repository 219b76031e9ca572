"""Pictures of a policy: where its rollouts go, and where its experts sit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Ellipse
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from skvdd.envs.avoiding import FINISH_Y, OBSTACLES

if TYPE_CHECKING:
    from skvdd.evaluation import Evaluation

Array = NDArray[np.floating]

# Okabe and Ito's colours without yellow, which is lost on white, and four darker ones.
EXPERT_COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#000000", "#882255", "#332288", "#7F7F7F",
)  # fmt: skip
SUCCESS_COLOR, FAILURE_COLOR = EXPERT_COLORS[:2]

AVOIDING = "skvdd/Avoiding-v0"
MEASURED_X, MEASURED_Y = 2, 3  # columns of an observation of Avoiding

# Experts below this weight are switched off: drawing them would only clutter the picture.
GATE_THRESHOLD = 0.01


def expert_colors(n_experts: int) -> list[Any]:
    """Return one colour per expert, the same in every picture.

    Parameters
    ----------
    n_experts : int
        Number of experts K.

    Returns
    -------
    colors : list of length K
        Colours that people with colour-blindness can tell apart, for up to ten experts;
        beyond that, evenly spaced ones.
    """
    if n_experts <= len(EXPERT_COLORS):
        return list(EXPERT_COLORS[:n_experts])
    return list(colormaps["turbo"](np.linspace(0.03, 0.97, n_experts)))


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, without empty margins, and close it.

    Parameters
    ----------
    figure : matplotlib Figure
        For example ``display.figure_``.
    path : path-like
        File to write.
    """
    figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white")
    plt.close(figure)


# ---------------------------------------------------------------------------------------
# Rollouts in the plane
# ---------------------------------------------------------------------------------------


class TrajectoriesDisplay:
    """Rollouts of Avoiding in the plane, coloured by expert (figure 4 of the paper).

    It is recommended to use `from_evaluation`. Each point of a path has the colour of the
    expert that the gating finds most likely there; without experts, a path has the colour of
    its success. A cross ends every path that failed.

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
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    lines_ : LineCollection
        The paths, one segment per step.
    """

    ax_: Axes
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
            The policy that was evaluated, for the colours; None, or one that has no
            ``gating``, colours by success.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : TrajectoriesDisplay
            The display, drawn.
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
            windows, _, _ = evaluation.episodes.windows(policy.window_size)
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
        if ax is None:
            _, ax = plt.subplots(figsize=(7.2, 3.7), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        _draw_scene(ax)
        segments = [np.stack([path[:-1, ::-1], path[1:, ::-1]], axis=1) for path in self.paths]
        self.lines_ = LineCollection(
            list(compress(np.concatenate(segments), shown)),
            colors=list(compress(self._segment_colors(), shown)),
            linewidths=line_width,
            alpha=alpha,
            capstyle="round",
            zorder=2,
        )
        ax.add_collection(self.lines_, autolim=False)
        if expert is None:
            self._mark_failures(ax)
        ax.legend(
            handles=self._legend(), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False
        )
        return self

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

    def _mark_failures(self, ax: Axes) -> None:
        ends = [
            p[-1] for p, ok in zip(self.paths, np.asarray(self.successes), strict=True) if not ok
        ]
        if ends:
            x, y = np.transpose(ends)
            ax.scatter(y, x, marker="x", s=14, linewidths=1.0, color="0.15", zorder=4)

    def _legend(self) -> list[Line2D]:
        successes = np.asarray(self.successes, dtype=bool)
        if self.experts is None:
            handles = [_line_handle(SUCCESS_COLOR, f"success ({successes.sum()})")]
            if not successes.all():
                handles.append(_line_handle(FAILURE_COLOR, f"failure ({(~successes).sum()})"))
            return handles
        shares = np.bincount(np.concatenate(self.experts), minlength=self._count_experts())
        shares = shares / shares.sum()
        colors = expert_colors(len(shares))
        handles = [
            _line_handle(colors[expert], f"expert {expert + 1} ({_percent(share)})")
            for expert, share in enumerate(shares)
            if share > 0
        ]
        if not successes.all():
            label = f"failure ({(~successes).sum()} of {len(successes)})"
            handles.append(Line2D([], [], color="0.15", marker="x", ls="none", label=label))
        return handles


def _draw_scene(ax: Axes) -> None:
    """Draw the table from above, towards the finish on the right, the robot at the top."""
    for obstacle in OBSTACLES:
        circle = Circle(
            (obstacle.y, obstacle.x), obstacle.radius, facecolor="0.82", edgecolor="0.45", zorder=3
        )
        ax.add_patch(circle)
    ax.axvline(FINISH_Y, color="#009E73", lw=4, alpha=0.35, zorder=1, solid_capstyle="butt")
    ax.annotate(
        "finish",
        (FINISH_Y, 0.745),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color="#00664B",
        fontsize="small",
    )
    ax.set(xlim=(-0.31, 0.37), ylim=(0.75, 0.25), aspect="equal", xlabel="y (m)", ylabel="x (m)")
    ax.spines[["top", "right"]].set_visible(False)


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %" if share >= 0.005 else "< 1 %"


def _line_handle(color: Any, label: str) -> Line2D:
    return Line2D([], [], color=color, lw=2.5, label=label)


# ---------------------------------------------------------------------------------------
# Experts over the teacher's density
# ---------------------------------------------------------------------------------------


class ExpertsDisplay:
    """Experts over the density of their teacher, for a few states (figure 2 of the paper).

    It is recommended to use `from_estimators`. Grey is the square root of the teacher's
    density, each panel relative to its peak, so that rare modes can be seen. An expert is
    drawn by its one- and two-sigma ellipses, the stronger the more weight the gating gives
    it; experts below 1 % are left out.

    Parameters
    ----------
    grid : tuple of ndarray of shape (g,)
        The two axes of the grid of actions.
    log_density : ndarray of shape (m, g, g)
        Log density of the teacher in m states; the second axis is the second action.
    gates : ndarray of shape (m, K)
        Weights of the experts.
    means : ndarray of shape (m, K, 2)
        Means of the experts.
    covariances : ndarray of shape (m, K, 2, 2)
        Covariances of the experts.

    Attributes
    ----------
    axes_ : ndarray of shape (m,) of matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    """

    axes_: NDArray[np.object_]
    figure_: Any

    def __init__(
        self,
        grid: tuple[Array, Array],
        log_density: Array,
        gates: Array,
        means: Array,
        covariances: Array,
    ) -> None:
        self.grid = grid
        self.log_density = log_density
        self.gates = gates
        self.means = means
        self.covariances = covariances

    @classmethod
    def from_estimators(
        cls,
        policy: Any,
        teacher: Any,
        X: ArrayLike,
        *,
        axes: Sequence[Axes] | None = None,
        grid_size: int = 48,
        titles: Sequence[str] | None = None,
        action_names: tuple[str, str] = ("action 0", "action 1"),
        action_scale: float = 1.0,
    ) -> ExpertsDisplay:
        """Draw the experts of a policy over the density of its teacher.

        Parameters
        ----------
        policy : mixture policy
            Has ``gating`` and ``experts``.
        teacher : policy
            Has ``log_prob`` and ``sample``; the samples only find the extent of the grid.
        X : array-like of shape (m, T, d)
            One window per panel.
        axes : sequence of m matplotlib Axes, default=None
            Where to draw; None makes a figure.
        grid_size : int, default=48
            Points of the grid along each action.
        titles : sequence of m str, default=None
            Titles of the panels.
        action_names : tuple of str, default=("action 0", "action 1")
            Labels of the axes, with units.
        action_scale : float, default=1.0
            Factor of the numbers at the axes: 1000 shows metres in millimetres.

        Returns
        -------
        display : ExpertsDisplay
            The display, drawn.
        """
        _check_estimators(policy, teacher)
        X = np.asarray(X, dtype=float)
        gates, (means, covariances) = policy.gating(X), policy.experts(X)
        _check_two_actions(means)
        grid = _action_grid(means, covariances, gates, teacher, X, grid_size)
        log_density = _density_on_grid(teacher, X, grid)
        display = cls(grid, log_density, gates, means, covariances)
        return display.plot(
            axes, titles=titles, action_names=action_names, action_scale=action_scale
        )

    def plot(
        self,
        axes: Sequence[Axes] | None = None,
        *,
        titles: Sequence[str] | None = None,
        action_names: tuple[str, str] = ("action 0", "action 1"),
        action_scale: float = 1.0,
    ) -> ExpertsDisplay:
        """Draw one panel per state.

        Parameters
        ----------
        axes : sequence of m matplotlib Axes, default=None
            Where to draw; None makes a figure.
        titles : sequence of m str, default=None
            Titles of the panels.
        action_names : tuple of str, default=("action 0", "action 1")
            Labels of the axes, with units.
        action_scale : float, default=1.0
            Factor of the numbers at the axes: 1000 shows metres in millimetres.

        Returns
        -------
        display : ExpertsDisplay
            Itself.
        """
        n_states = len(self.gates)
        if titles is None:
            titles = [f"state {state + 1}" for state in range(n_states)]
        if axes is None:
            axes = _make_panels(n_states, self.grid)
        for name, values in (("axes", axes), ("titles", titles)):
            if len(values) != n_states:
                raise ValueError(f"{name} must be one per state, {n_states}, got {len(values)}.")
        self.axes_ = np.array(axes, dtype=object)
        self.figure_ = self.axes_[0].figure
        for state, (ax, title) in enumerate(zip(self.axes_, titles, strict=True)):
            self._draw_density(ax, state)
            self._draw_experts(ax, state)
            ax.set(xlabel=action_names[0], aspect="equal", title=title)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(MaxNLocator(4))
                axis.set_major_formatter(lambda value, _: f"{action_scale * value:.4g}")
        self.axes_[0].set_ylabel(action_names[1])
        self.axes_[-1].legend(
            handles=self._legend(), loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False
        )
        return self

    def _draw_density(self, ax: Axes, state: int) -> None:
        log_density = self.log_density[state]
        relative = np.exp(log_density - log_density.max())
        ax.pcolormesh(
            *self.grid,
            relative,
            cmap="Greys",
            norm=PowerNorm(0.5, 0.0, 2.0),
            shading="gouraud",
            rasterized=True,
        )

    def _draw_experts(self, ax: Axes, state: int) -> None:
        colors = expert_colors(self.gates.shape[1])
        for expert in np.flatnonzero(self.gates[state] > GATE_THRESHOLD):
            gate = float(self.gates[state, expert])
            for n_sigma in (1.0, 2.0):
                ellipse = _ellipse(
                    self.means[state, expert], self.covariances[state, expert], n_sigma
                )
                ellipse.set(
                    edgecolor=colors[expert],
                    facecolor="none",
                    linewidth=0.8 + 1.4 * gate,
                    alpha=min(1.0, 0.5 + 1.5 * gate),
                )
                ax.add_patch(ellipse)
            ax.plot(*self.means[state, expert], ".", color=colors[expert], markersize=4)

    def _legend(self) -> list[Line2D]:
        colors = expert_colors(self.gates.shape[1])
        used = np.flatnonzero((self.gates > GATE_THRESHOLD).any(axis=0))
        return [_line_handle(colors[expert], f"expert {expert + 1}") for expert in used]


def _check_estimators(policy: Any, teacher: Any) -> None:
    for role, estimator, needed in (
        ("policy", policy, ("gating", "experts")),
        ("teacher", teacher, ("log_prob", "sample")),
    ):
        missing = [name for name in needed if not hasattr(estimator, name)]
        if missing:
            raise TypeError(
                f"{role} must have {' and '.join(needed)}, got {type(estimator).__name__} "
                f"without {' and '.join(missing)}."
            )


def _check_two_actions(means: Array) -> None:
    if means.shape[-1] != 2:
        raise ValueError(
            f"ExpertsDisplay draws policies with 2 actions, got one with {means.shape[-1]}. "
            "Build the display from two components of its means and covariances instead."
        )


def _action_grid(
    means: Array, covariances: Array, gates: Array, teacher: Any, X: Array, grid_size: int
) -> tuple[Array, Array]:
    """Return axes that hold the teacher's samples and the two-sigma ellipses of the experts."""
    samples = teacher.sample(X, 256, random_state=0).reshape(-1, 2)
    drawn = gates > GATE_THRESHOLD
    reach = 2.0 * np.sqrt(np.diagonal(covariances, axis1=-2, axis2=-1))[drawn]
    points = np.concatenate([samples, means[drawn] - reach, means[drawn] + reach])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.1 * (high - low)
    x, y = np.linspace(low - margin, high + margin, grid_size).T
    return x, y


def _density_on_grid(teacher: Any, X: Array, grid: tuple[Array, Array]) -> Array:
    """Return the teacher's log density (m, g, g), one state after another to bound memory."""
    mesh = np.stack(np.meshgrid(*grid), axis=-1)
    actions = mesh.reshape(-1, 2)
    rows = [teacher.log_prob(np.repeat(x[None], len(actions), axis=0), actions) for x in X]
    return np.stack(rows).reshape(len(X), *mesh.shape[:2])


def _ellipse(mean: Array, covariance: Array, n_sigma: float) -> Ellipse:
    variances, directions = np.linalg.eigh(covariance)
    width, height = 2.0 * n_sigma * np.sqrt(variances)
    angle = np.degrees(np.arctan2(directions[1, 0], directions[0, 0]))
    return Ellipse((mean[0], mean[1]), width, height, angle=angle)


def _make_panels(n_states: int, grid: tuple[Array, Array]) -> Sequence[Axes]:
    """Return panels in the proportions of the grid, side by side with room for a legend."""
    width = 2.6
    height = width * float(np.clip(np.ptp(grid[1]) / np.ptp(grid[0]), 0.4, 2.0))
    figure = plt.figure(figsize=(width * n_states + 1.8, height + 0.9), layout="constrained")
    panels = figure.subplots(1, n_states, sharex=True, sharey=True, squeeze=False)
    return list(panels[0])
