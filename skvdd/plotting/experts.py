"""Experts over the density and the score of their teacher, as they are and as they come about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from skvdd.plotting.policies import (
    GATE_THRESHOLD,
    action_grid,
    check_estimators,
    check_two_actions,
    density_on_grid,
    scores_on_grid,
)
from skvdd.plotting.style import MUTED, choose_axes, expert_colors, line_handle, text_color

Array = NDArray[np.floating]

ARROWS = 16  # of the score field, along the longer side of a panel


class ExpertsDisplay:
    """Experts over the density of their teacher, for a few states (figure 2 of the paper).

    It is recommended to use `from_estimator`. Gray is the square root of the teacher's
    density, each panel relative to its peak, so that rare modes can be seen. An expert is
    drawn by its one- and two-sigma ellipses, the stronger the more weight the gating gives
    it; experts below 1 % are left out. Arrows are the teacher's score: its direction, and a
    length that tells a weak one from a strong one.

    Parameters
    ----------
    grid : tuple of ndarray of shape (g,)
        The two axes of the grid of actions.
    log_density : ndarray of shape (m, g, g) or None
        Log density of the teacher in m states; the second axis is the second action.
    gates : ndarray of shape (m, K)
        Weights of the experts.
    means : ndarray of shape (m, K, 2)
        Means of the experts.
    covariances : ndarray of shape (m, K, 2, 2)
        Covariances of the experts.
    scores : ndarray of shape (m, g, g, 2) or None, default=None
        Scores of the teacher on the grid.

    Attributes
    ----------
    axes_ : ndarray of shape (m,) of matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    experts_ : list of matplotlib Artist
        Ellipses and centers.

    See Also
    --------
    TrainingSnapshots : Keeps the policies of a training for `animate`.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.plotting import ExpertsDisplay
    >>> rng = np.random.RandomState(0)
    >>> states, actions = rng.uniform(size=(50, 1)), rng.standard_normal((50, 2))
    >>> policy = GaussianMoEPolicy(n_experts=2, max_iter=20, random_state=0).fit(states, actions)
    >>> display = ExpertsDisplay.from_estimator(policy, states[:3], grid_size=8)
    >>> display.axes_.shape
    (3,)
    """

    axes_: NDArray[np.object_]
    figure_: Any
    experts_: list[Artist]

    def __init__(
        self,
        grid: tuple[Array, Array],
        log_density: Array | None,
        gates: Array,
        means: Array,
        covariances: Array,
        scores: Array | None = None,
    ) -> None:
        self.grid = grid
        self.log_density = log_density
        self.gates = gates
        self.means = means
        self.covariances = covariances
        self.scores = scores

    @classmethod
    def from_estimator(
        cls,
        policy: Any,
        X: ArrayLike,
        *,
        teacher: Any = None,
        score_level: float | None = None,
        grid_size: int = 48,
        ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
        titles: Sequence[str] | None = None,
        action_names: tuple[str, str] = ("action 0", "action 1"),
        action_scale: float = 1.0,
    ) -> ExpertsDisplay:
        """Draw the experts of a policy over the density of its teacher.

        Parameters
        ----------
        policy : mixture policy
            Has ``gating`` and ``experts``.
        X : array-like of shape (m, d), (m, T, d) or (m, T * d + g)
            One window per panel.
        teacher : policy, ScoreTeacher or Teacher, default=None
            Whose density is drawn: it has ``log_prob`` and ``sample``; the samples only find the
            extent of the grid. None draws the density of the policy itself. A `ScoreTeacher`, or
            another `skvdd.diffusion.Teacher`, has no density, only arrows.
        score_level : float, default=None
            Noise level, in standardized actions, at which the teacher's score is drawn as arrows;
            None draws none.
        grid_size : int, default=48
            Points of the grid along each action.
        ax : matplotlib Axes or sequence of m, default=None
            Where to draw; None makes a figure.
        titles : sequence of m str, default=None
            Titles of the panels.
        action_names : tuple of str, default=("action 0", "action 1")
            Labels of the axes, with units.
        action_scale : float, default=1.0
            Factor of the numbers at the axes: 1000 shows meters in millimeters.

        Returns
        -------
        display : ExpertsDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            If policy or teacher lack what is drawn.
        ValueError
            If the policy has another number of actions than two.
        """
        teacher = policy if teacher is None else teacher
        check_estimators(policy, teacher, score_level)
        X = np.asarray(X, dtype=float)
        gates, (means, covariances) = policy.gating(X), policy.experts(X)
        check_two_actions(means)
        grid = action_grid(means, covariances, gates, teacher, X, grid_size)
        log_density, scores = None, None
        if hasattr(teacher, "log_prob"):
            log_density = density_on_grid(teacher, X, grid)
        if score_level is not None:
            scores = scores_on_grid(teacher, policy, X, grid, score_level)
        display = cls(grid, log_density, gates, means, covariances, scores)
        return display.plot(ax, titles=titles, action_names=action_names, action_scale=action_scale)

    def plot(
        self,
        ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
        *,
        titles: Sequence[str] | None = None,
        action_names: tuple[str, str] = ("action 0", "action 1"),
        action_scale: float = 1.0,
    ) -> ExpertsDisplay:
        """Draw one panel per state.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of m, default=None
            Where to draw; None makes a figure.
        titles : sequence of m str, default=None
            Titles of the panels.
        action_names : tuple of str, default=("action 0", "action 1")
            Labels of the axes, with units.
        action_scale : float, default=1.0
            Factor of the numbers at the axes: 1000 shows meters in millimeters.

        Returns
        -------
        display : ExpertsDisplay
            Itself.
        """
        n_states = len(self.gates)
        if titles is None:
            titles = [f"state {state + 1}" for state in range(n_states)]
        if len(titles) != n_states:
            raise ValueError(f"titles must be one per state, {n_states}, got {len(titles)}.")
        self.axes_ = choose_axes(ax, n_states, "state", lambda: _make_panels(n_states, self.grid))
        self.figure_ = self.axes_[0].figure
        for state, (panel, title) in enumerate(zip(self.axes_, titles, strict=True)):
            self._draw_teacher(panel, state)
            limits = [(float(axis[0]), float(axis[-1])) for axis in self.grid]
            panel.set(xlim=limits[0], ylim=limits[1], aspect="equal", title=title)
            panel.set_xlabel(action_names[0])
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(MaxNLocator(4))
                axis.set_major_formatter(lambda value, _: f"{action_scale * value:.4g}")
        self.axes_[0].set_ylabel(action_names[1])
        self.experts_ = _draw_experts(self.axes_, self.gates, self.means, self.covariances)
        self.axes_[-1].legend(
            handles=self._legend(), loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False
        )
        return self

    def animate(
        self, policies: Sequence[Any], X: ArrayLike, *, interval: float = 100.0
    ) -> FuncAnimation:
        """Return a film of the experts, one picture for each policy, in these axes.

        Parameters
        ----------
        policies : sequence of mixture policies
            The moments of a training, for example `TrainingSnapshots.policies_`. Each has the
            number of experts of this display.
        X : array-like of shape (m, d), (m, T, d) or (m, T * d + g)
            The windows that this display was made for.
        interval : float, default=100.0
            Time between two pictures, ms.

        Returns
        -------
        animation : matplotlib.animation.FuncAnimation
            ``animation.save("training.gif", writer="pillow")`` writes it,
            ``animation.to_jshtml()`` shows it in a notebook.

        Raises
        ------
        ValueError
            If there are no policies, or one has other states, experts or actions.
        """
        if len(policies) == 0:
            raise ValueError("policies must be at least one, got none.")
        X = np.asarray(X, dtype=float)
        moments = [(policy.gating(X), *policy.experts(X)) for policy in policies]
        for number, (_, means, _) in enumerate(moments):
            if means.shape != self.means.shape:
                raise ValueError(
                    "policies and X must give experts of the shape of this display's, "
                    f"{self.means.shape}, got {means.shape} from policy {number}."
                )
        labels = [_moment_of(policy) for policy in policies]
        corner = self.axes_[0].text(
            0.03,
            0.03,
            "",
            transform=self.axes_[0].transAxes,
            fontsize="small",
            bbox={"facecolor": self.axes_[0].get_facecolor(), "edgecolor": "none", "alpha": 0.8},
            zorder=5,
        )
        self.figure_.draw_without_rendering()
        self.figure_.set_layout_engine("none")  # axes must not move from picture to picture

        def show(number: int) -> list[Artist]:
            for artist in self.experts_:
                artist.remove()
            self.experts_ = _draw_experts(self.axes_, *moments[number])
            corner.set_text(labels[number])
            return [*self.experts_, corner]

        return FuncAnimation(self.figure_, show, frames=len(policies), interval=interval)

    def _draw_teacher(self, ax: Axes, state: int) -> None:
        if self.log_density is not None:
            log_density = self.log_density[state]
            relative = np.exp(log_density - log_density.max())
            steps = [axis[1] - axis[0] for axis in self.grid]
            ax.imshow(
                relative,
                cmap=_density_colors(),
                norm=PowerNorm(0.5, 0.0, 1.0),
                origin="lower",
                extent=(
                    self.grid[0][0] - steps[0] / 2,
                    self.grid[0][-1] + steps[0] / 2,
                    self.grid[1][0] - steps[1] / 2,
                    self.grid[1][-1] + steps[1] / 2,
                ),
                interpolation="bilinear",
            )
        if self.scores is not None:
            _draw_scores(ax, self.grid, self.scores[state])

    def _legend(self) -> list[Line2D]:
        colors = expert_colors(self.gates.shape[1])
        used = np.flatnonzero((self.gates > GATE_THRESHOLD).any(axis=0))
        return [line_handle(colors[expert], f"expert {expert + 1}") for expert in used]


def _moment_of(policy: Any) -> str:
    """Return when in its training a policy was taken, as far as it is known."""
    history = getattr(policy, "history_", None)
    if not history:
        return ""
    return f"{history[-1]['stage']}, iteration {history[-1]['iteration']}"


# ---------------------------------------------------------------------------------------
# What is drawn
# ---------------------------------------------------------------------------------------


def _draw_experts(
    axes: NDArray[np.object_], gates: Array, means: Array, covariances: Array
) -> list[Artist]:
    """Draw the experts that are switched on, a panel for each state, and return what was drawn."""
    colors = expert_colors(gates.shape[1])
    artists: list[Artist] = []
    for state, expert in np.argwhere(gates > GATE_THRESHOLD):
        gate = float(gates[state, expert])
        for n_sigma in (1.0, 2.0):
            ellipse = _ellipse(means[state, expert], covariances[state, expert], n_sigma)
            ellipse.set(
                edgecolor=colors[expert],
                facecolor="none",
                linewidth=0.8 + 1.4 * gate,
                alpha=min(1.0, 0.5 + 1.5 * gate),
                clip_on=True,
            )
            artists.append(axes[state].add_patch(ellipse))
        artists += axes[state].plot(
            *means[state, expert],
            ".",
            color=colors[expert],
            markersize=4,
            scalex=False,
            scaley=False,
        )
    return artists


def _ellipse(mean: Array, covariance: Array, n_sigma: float) -> Ellipse:
    variances, directions = np.linalg.eigh(covariance)
    width, height = 2.0 * n_sigma * np.sqrt(variances)
    angle = np.degrees(np.arctan2(directions[1, 0], directions[0, 0]))
    return Ellipse((mean[0], mean[1]), width, height, angle=angle)


def _draw_scores(ax: Axes, grid: tuple[Array, Array], scores: Array) -> None:
    """Draw arrows at some points of the grid, as far apart along one axis as along the other."""
    steps = [float(axis[1] - axis[0]) for axis in grid]
    apart = max(float(np.ptp(axis)) for axis in grid) / ARROWS
    chosen = []
    for axis, step in zip(grid, steps, strict=True):
        every = max(1, round(apart / step))
        chosen.append(np.arange((len(axis) - 1) % every // 2, len(axis), every))
    arrows = _arrows(scores[np.ix_(chosen[1], chosen[0])])
    ax.quiver(
        grid[0][chosen[0]],
        grid[1][chosen[1]],
        *np.moveaxis(arrows, -1, 0),
        color=MUTED,
        angles="xy",
        pivot="mid",
        scale_units="xy",
        scale=1.0 / apart,
        width=0.0035,
        headwidth=4,
        headlength=4,
        headaxislength=3.5,
        minlength=0.1,
    )


def _arrows(scores: Array) -> Array:
    """Return scores shortened to at most one: half, where they are as long as the median."""
    lengths = np.linalg.norm(scores, axis=-1, keepdims=True)
    median = np.median(lengths)
    return scores / (lengths + median + np.finfo(float).tiny)


def _density_colors() -> LinearSegmentedColormap:
    """Return a map from the background, whatever it is, part of the way to the color of text."""
    ink = to_rgb(text_color())
    return LinearSegmentedColormap.from_list("density", [(*ink, 0.0), (*ink, 0.4)])


def _make_panels(n_states: int, grid: tuple[Array, Array]) -> NDArray[Any]:
    """Return panels in the proportions of the grid, side by side with room for a legend."""
    width = 2.6 if n_states > 1 else 3.6
    height = width * float(np.clip(np.ptp(grid[1]) / np.ptp(grid[0]), 0.4, 2.0))
    figure = plt.figure(figsize=(width * n_states + 1.8, height + 0.9), layout="compressed")
    return figure.subplots(1, n_states, sharex=True, sharey=True, squeeze=False)[0]
