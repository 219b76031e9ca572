"""Scores as a parameter changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from joblib import Parallel, delayed
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t
from sklearn.base import clone
from sklearn.metrics import check_scoring

from skvdd.plotting.style import choose_axes, expert_colors, open_frame

Array = NDArray[np.floating]


class AblationDisplay:
    """Scores of a policy as one of its parameters changes (figure 3 of the paper).

    It is recommended to use `from_estimator`, which trains a policy for each value and seed. A
    point is the mean over the seeds with its 95 % interval (Student's t, for two seeds or more);
    the small marks are the seeds. Values that are numbers are joined by a line.

    Parameters
    ----------
    param_name : str
        The parameter, at the axis.
    values : sequence of length v
        Its values, in the order of the axis, evenly spaced.
    scores : mapping of str to array-like of shape (v, n_seeds)
        The scores of each policy, by the name of the score.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on.
    figure_ : matplotlib Figure
        Their figure.
    errorbars_ : dict of str to ErrorbarContainer
        Means and intervals, by the name of the score.

    Examples
    --------
    >>> from skvdd.plotting import AblationDisplay
    >>> success = [[0.98, 0.96], [0.95, 0.97], [0.96, 0.94]]
    >>> display = AblationDisplay("n_experts", [1, 4, 8], {"success_rate": success}).plot()
    >>> display.ax_.get_ylabel()
    'success_rate'
    """

    ax_: Axes
    figure_: Any
    errorbars_: dict[str, ErrorbarContainer]

    def __init__(
        self, param_name: str, values: Sequence[Any], scores: Mapping[str, ArrayLike]
    ) -> None:
        self.param_name = param_name
        self.values = values
        self.scores = scores

    @classmethod
    def from_estimator(
        cls,
        policy: Any,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        param_name: str,
        param_range: Sequence[Any],
        scoring: Any = None,
        random_states: Sequence[int] = (0,),
        fit_params: Mapping[str, Any] | None = None,
        n_jobs: int | None = None,
        ax: Axes | None = None,
    ) -> AblationDisplay:
        """Train clones of a policy, one for each value and seed, score them, and draw.

        Parameters
        ----------
        policy : policy
            What is cloned; fitted or not.
        X, y : array-like
            What all are trained on, and given to the scorer. To score on other data, or in the
            simulator, give a scorer that does: `skvdd.evaluation.rollout_scorer`.
        param_name : str
            The parameter that changes.
        param_range : sequence of length v
            Its values.
        scoring : str, callable, list, tuple, dict or None, default=None
            As in scikit-learn; one that returns several scores draws several curves. None is
            ``score``.
        random_states : sequence of int, default=(0,)
            Seeds; each is the ``random_state`` of one policy for each value.
        fit_params : mapping, default=None
            Arguments of `fit`: ``{"teacher": teacher}``.
        n_jobs : int, default=None
            Policies that are trained at a time, by joblib.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : AblationDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the policy has no such parameter, or there is no value or seed.
        """
        if param_name not in policy.get_params():
            known = ", ".join(policy.get_params(deep=False))
            raise ValueError(
                f"param_name must be a parameter of {type(policy).__name__} ({known}), got "
                f"{param_name!r}."
            )
        for name, given in (("param_range", param_range), ("random_states", random_states)):
            if len(given) == 0:
                raise ValueError(f"{name} must hold at least one, got none.")
        scorer = check_scoring(policy, scoring)
        candidates = [
            clone(policy).set_params(**{"random_state": seed, param_name: value})
            for value in param_range
            for seed in random_states
        ]
        results = Parallel(n_jobs=n_jobs)(
            delayed(_fit_and_score)(candidate, X, y, dict(fit_params or {}), scorer)
            for candidate in candidates
        )
        shape = (len(param_range), len(random_states))
        scores = {
            name: np.reshape([result[name] for result in results], shape) for name in results[0]
        }
        return cls(param_name, list(param_range), scores).plot(ax)

    def plot(self, ax: Axes | None = None) -> AblationDisplay:
        """Draw means, intervals and seeds.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : AblationDisplay
            Itself.
        """
        self.ax_ = choose_axes(ax, 1, "picture", _make_ablation_axes)[0]
        self.figure_ = self.ax_.figure
        numbers = all(isinstance(value, int | float | np.number) for value in self.values)
        joined = numbers and not any(isinstance(value, bool) for value in self.values)
        self.errorbars_ = {}
        colors = expert_colors(len(self.scores))
        for place, (name, values) in enumerate(self.scores.items()):
            scores = np.asarray(values, dtype=float)
            # Side by side, so that no interval hides another.
            x = np.arange(len(scores)) + 0.06 * (place - (len(self.scores) - 1) / 2)
            self.errorbars_[name] = self.ax_.errorbar(
                x,
                scores.mean(axis=1),
                _half_intervals(scores),
                color=colors[place],
                marker="o",
                ls="-" if joined else "none",
                capsize=3,
                label=name,
            )
            if scores.shape[1] > 1:
                self.ax_.plot(
                    np.repeat(x, scores.shape[1]),
                    scores.ravel(),
                    "_",
                    color=colors[place],
                    alpha=0.6,
                )
        self.ax_.set_xticks(range(len(self.values)), [_text(value) for value in self.values])
        self.ax_.set(xlabel=self.param_name, xlim=(-0.4, len(self.values) - 0.6))
        self.ax_.grid(axis="y", alpha=0.25)
        open_frame(self.ax_)
        if len(self.scores) == 1:
            self.ax_.set_ylabel(next(iter(self.scores)))
        else:
            self.ax_.legend(frameon=False)
        return self


def _fit_and_score(
    policy: Any, X: ArrayLike, y: ArrayLike | None, fit_params: dict[str, Any], scorer: Any
) -> dict[str, float]:
    score = scorer(policy.fit(X, y, **fit_params), X, y)
    return dict(score) if isinstance(score, Mapping) else {"score": float(score)}


def _half_intervals(scores: Array) -> Array | None:
    """Return half the 95 % interval of each row's mean; None for a single seed."""
    n_seeds = scores.shape[1]
    if n_seeds < 2:
        return None
    half = student_t.ppf(0.975, n_seeds - 1) * scores.std(axis=1, ddof=1) / np.sqrt(n_seeds)
    return np.asarray(half)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _make_ablation_axes() -> Axes:
    return plt.subplots(figsize=(5.0, 3.4), layout="constrained")[1]
