"""What happened during a training: its losses, and the policies on the way."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from skvdd.plotting.style import choose_axes, expert_colors, open_frame

NOT_LOSSES = ("stage", "iteration", "learning_rate")  # columns of a history


class TrainingSnapshots:
    """A callback of scikit-learn that keeps the policy as it was at moments of its training.

    Give it to ``set_callbacks`` before `fit`; a policy of skvdd reports up to a hundred times in
    each stage of training. A teacher that a distiller trains itself is not among the snapshots.

    Parameters
    ----------
    every : int, default=1
        Keep one of so many reports.

    Attributes
    ----------
    policies_ : list of fitted policies
        In order; each is a policy of its own, whose last row of ``history_`` says when it was
        taken. A new `fit` begins a new list.

    See Also
    --------
    ExpertsDisplay.animate : Makes a film of them.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.plotting import TrainingSnapshots
    >>> rng = np.random.RandomState(0)
    >>> states, actions = rng.uniform(size=(50, 1)), rng.standard_normal((50, 2))
    >>> snapshots = TrainingSnapshots(every=10)
    >>> policy = GaussianMoEPolicy(n_experts=2, max_iter=20, random_state=0)
    >>> policy = policy.set_callbacks(snapshots).fit(states, actions)
    >>> [snapshot.history_[-1]["iteration"] for snapshot in snapshots.policies_]
    [10, 20]
    """

    policies_: list[Any]

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
        self.every = every

    def setup(self, estimator: Any, context: Any) -> None:
        """Forget the last training."""
        self.policies_ = []
        self._n_reports = 0

    def teardown(self, estimator: Any, context: Any) -> None:
        """Nothing is left to do."""

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Nothing is to be kept yet."""

    def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any) -> None:
        """Keep the policy after a report; ends of whole stages say nothing new."""
        if fitted_estimator is None or context.max_subtasks != 0:
            return
        self._n_reports += 1
        if self._n_reports % self.every == 0:
            fitted_estimator.set_callbacks()
            self.policies_.append(fitted_estimator)


class HistoryDisplay:
    """The losses of a training over its iterations.

    It is recommended to use `from_estimator`. Each loss of each stage of the training has a panel
    of its own, since their units differ.

    Parameters
    ----------
    history : list of dict
        ``history_`` of a policy: ``stage``, ``iteration``, and numbers.
    terms : sequence of str, default=None
        Which losses to draw; None takes all.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        The axes drawn on, one for each loss of each stage.
    figure_ : matplotlib Figure
        Their figure.
    lines_ : list of Line2D
        The curve of each axes.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.plotting import HistoryDisplay
    >>> rng = np.random.RandomState(0)
    >>> states, actions = rng.uniform(size=(50, 1)), rng.standard_normal((50, 2))
    >>> policy = GaussianMoEPolicy(n_experts=2, max_iter=20, random_state=0).fit(states, actions)
    >>> HistoryDisplay.from_estimator(policy).axes_[0].get_xlabel()
    'iteration'
    """

    axes_: NDArray[np.object_]
    figure_: Any
    lines_: list[Line2D]

    def __init__(
        self, history: Sequence[dict[str, Any]], terms: Sequence[str] | None = None
    ) -> None:
        self.history = history
        self.terms = terms

    @classmethod
    def from_estimator(
        cls,
        policy: Any,
        *,
        terms: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    ) -> HistoryDisplay:
        """Draw the training of a fitted policy.

        Parameters
        ----------
        policy : fitted policy
            Has ``history_``.
        terms : sequence of str, default=None
            Which losses to draw; None takes all.
        ax : matplotlib Axes or sequence of them, default=None
            Where to draw, one for each loss of each stage; None makes a figure.

        Returns
        -------
        display : HistoryDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            If the policy has no history.
        ValueError
            If a term is none of its losses, or there is nothing to draw.
        """
        if not hasattr(policy, "history_"):
            raise TypeError(
                f"policy must have history_, got {type(policy).__name__} without. Fit it first."
            )
        return cls(policy.history_, terms).plot(ax)

    def plot(self, ax: Axes | Sequence[Axes] | NDArray[Any] | None = None) -> HistoryDisplay:
        """Draw a panel for each loss of each stage.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of them, default=None
            Where to draw, one for each loss of each stage; None makes a figure.

        Returns
        -------
        display : HistoryDisplay
            Itself.
        """
        curves = self._curves()
        stages = list(dict.fromkeys(stage for stage, _ in curves))
        colors = dict(zip(stages, expert_colors(len(stages)), strict=True))
        self.axes_ = choose_axes(ax, len(curves), "loss", lambda: _make_panels(len(curves)))
        self.figure_ = self.axes_[0].figure
        self.lines_ = []
        for panel, ((stage, term), (x, y)) in zip(self.axes_, curves.items(), strict=True):
            self.lines_ += panel.plot(x, y, color=colors[stage])
            panel.set(title=stage, xlabel="iteration", ylabel=term)
            panel.grid(alpha=0.25)
            open_frame(panel)
        return self

    def _curves(self) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
        """Return iterations and values by stage and loss."""
        curves: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
        for row in self.history:
            for name, value in row.items():
                if name in NOT_LOSSES or not isinstance(value, Real):
                    continue
                x, y = curves.setdefault((row["stage"], name), ([], []))
                x.append(row["iteration"])
                y.append(float(value))
        if not curves:
            raise ValueError("history has no losses: the policy was not trained, max_iter=0.")
        known = dict.fromkeys(term for _, term in curves)
        for term in self.terms or ():
            if term not in known:
                raise ValueError(f"terms must be among {', '.join(known)}, got {term!r}.")
        chosen = known if self.terms is None else self.terms
        return {key: curve for key, curve in curves.items() if key[1] in chosen}


def _make_panels(n_panels: int) -> NDArray[Any]:
    """Return panels in rows of up to three."""
    n_columns = min(n_panels, 3)
    n_rows = -(-n_panels // n_columns)
    figure = plt.figure(figsize=(3.3 * n_columns, 2.5 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for spare in panels[n_panels:]:
        spare.remove()
    return panels[:n_panels]
