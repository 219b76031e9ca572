"""Behaviors: how often each is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from numpy.typing import ArrayLike, NDArray

from skvdd.datasets.demonstrations import Demonstrations
from skvdd.plotting.style import BAR_COLOR, MUTED, choose_axes, open_frame

if TYPE_CHECKING:
    from skvdd.evaluation import Evaluation, ScoreReport

Array = NDArray[np.floating]

MAX_UNSEEN = 24  # with more behaviors, those that nobody showed are left out
MAX_LEVEL = 8  # with more behaviors, their names are written upward


class BehaviorDisplay:
    """How often each behavior is shown: demonstrations and policies below each other.

    It is recommended to use `from_estimator` or `from_evaluations`. A bar is the fraction of all
    episodes that succeeded with this behavior, so that the bars of a panel add up to the success
    rate; the dotted line is where all would be if every episode succeeded and every behavior were
    as frequent.

    Parameters
    ----------
    behaviors : sequence of str
        Names of the B behaviors, along the axis.
    frequencies : ndarray of shape (m, B)
        Share of the episodes of each source.
    titles : sequence of m str
        Titles of the sources.
    n_behaviors : int, default=None
        Behaviors that the task has, for the dotted line; None draws none.

    Attributes
    ----------
    axes_ : ndarray of shape (m,) of matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    bars_ : list of m BarContainer
        The bars.

    Examples
    --------
    >>> from skvdd.plotting import BehaviorDisplay
    >>> display = BehaviorDisplay(["left", "right"], [[0.4, 0.5]], ["VDD"]).plot()
    >>> [round(float(bar.get_height()), 1) for bar in display.bars_[0]]
    [0.4, 0.5]
    """

    axes_: NDArray[np.object_]
    figure_: Any
    bars_: list[BarContainer]

    def __init__(
        self,
        behaviors: Sequence[str],
        frequencies: ArrayLike,
        titles: Sequence[str],
        n_behaviors: int | None = None,
    ) -> None:
        self.behaviors = behaviors
        self.frequencies = frequencies
        self.titles = titles
        self.n_behaviors = n_behaviors

    @classmethod
    def from_estimator(
        cls,
        policy: Any,
        env_id: str,
        n_episodes: int | None = None,
        *,
        demonstrations: Demonstrations | None = None,
        contexts: Any = None,
        random_state: int | np.random.RandomState | None = None,
        ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    ) -> BehaviorDisplay:
        """Roll a policy out and draw its behaviors.

        Parameters
        ----------
        policy : fitted policy
            What `skvdd.evaluation.evaluate_policy` takes.
        env_id : str
            A task that tells behaviors apart, or the id of its environment.
        n_episodes : int or None, default=None
            Number of rollouts; None is what the task says.
        demonstrations : Demonstrations, default=None
            What to draw above the policy.
        contexts : default=None
            Initial states, as in `skvdd.evaluation.evaluate_policy`.
        random_state : int, RandomState instance or None, default=None
            Seeds environments and noise.
        ax : matplotlib Axes or sequence of them, default=None
            Where to draw, one for each source; None makes a figure.

        Returns
        -------
        display : BehaviorDisplay
            The display, drawn.
        """
        from skvdd.evaluation import evaluate_policy

        sources: dict[str, Evaluation | Demonstrations] = {}
        if demonstrations is not None:
            sources["demonstrations"] = demonstrations
        sources[type(policy).__name__] = evaluate_policy(
            policy,
            env_id,
            n_episodes,
            contexts=contexts,
            random_state=random_state,
            progress=False,
        )
        return cls.from_evaluations(sources, ax=ax)

    @classmethod
    def from_evaluations(
        cls,
        sources: Mapping[str, Evaluation | Demonstrations],
        *,
        ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    ) -> BehaviorDisplay:
        """Draw the behaviors of evaluations, and of demonstrations beside them.

        Behaviors have the names and the order of their task. The title of an evaluation tells its
        success rate, D3IL's entropy, and what the entropy of a perfectly diverse policy with as
        many successes would be. That of demonstrations tells an entropy only where every episode
        starts alike: demonstrations do not say in which contexts they started, and all of them
        together are no measure of the choice in each.

        Parameters
        ----------
        sources : mapping of str to Evaluation or Demonstrations
            What to draw under which title; at least one is an evaluation.
        ax : matplotlib Axes or sequence of them, default=None
            Where to draw, one for each source; None makes a figure.

        Returns
        -------
        display : BehaviorDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there is no evaluation among the sources, they are of several tasks, or the task
            tells no behaviors apart.
        """
        evaluation = _check_sources(sources)
        names = list(evaluation.score.score.behaviors.values())
        reports = [_report_of(source, evaluation) for source in sources.values()]
        shares = np.array([_shares(report) for report in reports])
        shown = np.arange(len(names))
        if len(names) > MAX_UNSEEN:
            shown = np.flatnonzero(shares.any(axis=0))
        titles = [
            _title(label, report, isinstance(source, Demonstrations), evaluation.n_contexts > 0)
            for (label, source), report in zip(sources.items(), reports, strict=True)
        ]
        return cls([names[k] for k in shown], shares[:, shown], titles, len(names)).plot(ax)

    def plot(self, ax: Axes | Sequence[Axes] | NDArray[Any] | None = None) -> BehaviorDisplay:
        """Draw a panel for each source.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of m, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : BehaviorDisplay
            Itself.
        """
        frequencies = np.asarray(self.frequencies, dtype=float)
        n_sources, n_behaviors = frequencies.shape
        self.axes_ = choose_axes(
            ax, n_sources, "source", lambda: _make_panels(n_sources, n_behaviors)
        )
        self.figure_ = self.axes_[0].figure
        self.bars_ = []
        places = np.arange(n_behaviors)
        for panel, row, title in zip(self.axes_, frequencies, self.titles, strict=True):
            self.bars_.append(panel.bar(places, row, color=BAR_COLOR, width=0.75))
            if self.n_behaviors is not None:
                panel.axhline(1.0 / self.n_behaviors, color=MUTED, ls=":", lw=1.2)
            panel.set_title(title, loc="left", fontsize="medium")
            rotation = 90 if n_behaviors > MAX_LEVEL else 0
            panel.set_xticks(places, self.behaviors, rotation=rotation)
            panel.set(ylabel="share", xlim=(-0.7, n_behaviors - 0.3))
            panel.label_outer()
            open_frame(panel)
        self.axes_[-1].set_xlabel("behavior")
        return self


def _check_sources(sources: Mapping[str, Evaluation | Demonstrations]) -> Evaluation:
    """Return one of the evaluations, after making sure that all are of one task with behaviors."""
    evaluations = [s for s in sources.values() if not isinstance(s, Demonstrations)]
    env_ids = {evaluation.env_id for evaluation in evaluations}
    if len(env_ids) != 1:
        came = ", ".join(sorted(env_ids)) or "no evaluation"
        raise ValueError(f"sources must hold evaluations of one task, got {came}.")
    if evaluations[0].base is None:
        raise ValueError(
            f"sources must be of a task with behaviors, {evaluations[0].env_id} tells none apart. "
            "Name its behaviors in a TaskSpec and call skvdd.envs.register_task if it does."
        )
    return evaluations[0]


def _report_of(source: Evaluation | Demonstrations, evaluation: Evaluation) -> ScoreReport:
    """Return what a source showed; a demonstration with a behavior is a success."""
    from skvdd.evaluation import ScoreReport

    if not isinstance(source, Demonstrations):
        return source.score
    behaviors = tuple(source.behaviors)
    successes = np.array([behavior is not None for behavior in behaviors])
    return ScoreReport(evaluation.score.score, successes, behaviors, (None,) * len(behaviors))


def _shares(report: ScoreReport) -> Array:
    """Return the fraction of all episodes that succeeded with each behavior, (B,)."""
    shares: Array = report.counts.sum(axis=0) / len(report.successes)
    return shares


def _title(label: str, report: ScoreReport, demonstrated: bool, has_contexts: bool) -> str:
    if demonstrated:
        return label if has_contexts else f"{label}: entropy {report.entropy_d3il:.3f}"
    return (
        f"{label}: success rate {report.success_rate:.3f}, entropy {report.entropy_d3il:.3f} "
        f"({report.entropy_ceiling:.3f} if perfectly diverse)"
    )


def _make_panels(n_sources: int, n_behaviors: int) -> NDArray[Any]:
    """Return panels below each other, wide enough for their titles."""
    width = float(np.clip(0.32 * n_behaviors + 1.0, 6.4, 10.0))
    figure = plt.figure(figsize=(width, 1.5 * n_sources + 0.8), layout="constrained")
    return figure.subplots(n_sources, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
