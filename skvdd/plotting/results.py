"""What came out: behaviors shown, ablations, and the time of a decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from joblib import Parallel, delayed
from matplotlib.axes import Axes
from matplotlib.container import BarContainer, ErrorbarContainer
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t
from sklearn.base import clone
from sklearn.metrics import check_scoring

from skvdd.datasets.demonstrations import Behavior, Demonstrations
from skvdd.envs.avoiding import behavior_name
from skvdd.metrics import task_entropy
from skvdd.plotting.style import EXPERT_COLORS, MUTED, choose_axes, expert_colors, open_frame
from skvdd.plotting.trajectories import AVOIDING

if TYPE_CHECKING:
    from skvdd.evaluation import Evaluation

Array = NDArray[np.floating]

BAR_COLOR = EXPERT_COLORS[0]


# ---------------------------------------------------------------------------------------
# Behaviors
# ---------------------------------------------------------------------------------------


class BehaviorDisplay:
    """How often each behavior is shown: demonstrations and policies below each other.

    It is recommended to use `from_estimator` or `from_evaluations`. A bar is the fraction of all
    episodes that succeeded with this behavior, so that the bars of a panel add up to the success
    rate; the dotted line is where all would be if every behavior were as frequent.

    Parameters
    ----------
    behaviors : sequence of str
        Names of the B behaviors, along the axis.
    frequencies : ndarray of shape (m, B)
        Share of the episodes of each source.
    labels : sequence of m str
        Names of the sources, in the titles.
    entropies : sequence of m float
        Task entropy of each source, in the titles.
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
    >>> display = BehaviorDisplay(["left", "right"], [[0.4, 0.5]], ["VDD"], [0.99]).plot()
    >>> display.axes_[0].get_title(loc="left")
    'VDD: task entropy 0.990, success rate 0.900'
    """

    axes_: NDArray[np.object_]
    figure_: Any
    bars_: list[BarContainer]

    def __init__(
        self,
        behaviors: Sequence[str],
        frequencies: ArrayLike,
        labels: Sequence[str],
        entropies: Sequence[float],
        n_behaviors: int | None = None,
    ) -> None:
        self.behaviors = behaviors
        self.frequencies = frequencies
        self.labels = labels
        self.entropies = entropies
        self.n_behaviors = n_behaviors

    @classmethod
    def from_estimator(
        cls,
        policy: Any,
        env_id: str,
        n_episodes: int = 100,
        *,
        demonstrations: Demonstrations | None = None,
        contexts: int | ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
        ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    ) -> BehaviorDisplay:
        """Roll a policy out and draw its behaviors.

        Parameters
        ----------
        policy : fitted policy
            What `skvdd.evaluation.evaluate_policy` takes.
        env_id : str
            A registered environment that tells behaviors apart.
        n_episodes : int, default=100
            Number of rollouts.
        demonstrations : Demonstrations, default=None
            What to draw above the policy.
        contexts : int, array-like of shape (m, k) or None, default=None
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
        names: Callable[[Any], str] | None = None,
        ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    ) -> BehaviorDisplay:
        """Draw the behaviors of evaluations, and of demonstrations beside them.

        Parameters
        ----------
        sources : mapping of str to Evaluation or Demonstrations
            What to draw under which title; at least one is an evaluation.
        names : callable, default=None
            Returns the name of a behavior; None takes the gaps of Avoiding, elsewhere ``str``.
        ax : matplotlib Axes or sequence of them, default=None
            Where to draw, one for each source; None makes a figure.

        Returns
        -------
        display : BehaviorDisplay
            The display, drawn. The entropy of an evaluation is its own, the mean over contexts
            where it has some; that of demonstrations is the one of all of them together.

        Raises
        ------
        ValueError
            If there is no evaluation among the sources, they are of several tasks, or the task
            tells no behaviors apart.
        """
        env_id, base = _task_of(sources)
        name = _names_of(env_id) if names is None else names
        shown = {label: _solved_behaviors(source) for label, source in sources.items()}
        seen = {b for behaviors in shown.values() for b in behaviors if b is not None}
        ordered = sorted(seen, key=_order if name is str else name)
        frequencies = [
            [Counter(behaviors)[behavior] / len(behaviors) for behavior in ordered]
            for behaviors in shown.values()
        ]
        entropies = [
            task_entropy(shown[label], base)
            if isinstance(source, Demonstrations)
            else float(source.entropy or 0.0)
            for label, source in sources.items()
        ]
        display = cls(
            [name(b) for b in ordered], np.array(frequencies), list(sources), entropies, base
        )
        return display.plot(ax)

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
            ax, n_sources, "source", lambda: _make_behavior_panels(n_sources, n_behaviors)
        )
        self.figure_ = self.axes_[0].figure
        self.bars_ = []
        places = np.arange(n_behaviors)
        for panel, row, label, entropy in zip(
            self.axes_, frequencies, self.labels, self.entropies, strict=True
        ):
            self.bars_.append(panel.bar(places, row, color=BAR_COLOR, width=0.75))
            if self.n_behaviors is not None:
                panel.axhline(1.0 / self.n_behaviors, color=MUTED, ls=":", lw=1.2)
            panel.set_title(
                f"{label}: task entropy {entropy:.3f}, success rate {row.sum():.3f}",
                loc="left",
                fontsize="medium",
            )
            panel.set_xticks(places, self.behaviors, rotation=90 if n_behaviors > 8 else 0)
            panel.set(ylabel="share", xlim=(-0.7, n_behaviors - 0.3))
            panel.label_outer()
            open_frame(panel)
        self.axes_[-1].set_xlabel("behavior")
        return self


def _task_of(sources: Mapping[str, Evaluation | Demonstrations]) -> tuple[str, int]:
    """Return the environment of the evaluations, and how many behaviors it has."""
    evaluations = [s for s in sources.values() if not isinstance(s, Demonstrations)]
    tasks = {(evaluation.env_id, evaluation.entropy_base) for evaluation in evaluations}
    if len(tasks) != 1:
        came = ", ".join(sorted(env_id for env_id, _ in tasks)) or "no evaluation"
        raise ValueError(f"sources must hold evaluations of one task, got {came}.")
    ((env_id, base),) = tasks
    if base is None:
        raise ValueError(f"sources must be of a task with behaviors, {env_id} tells none apart.")
    return env_id, base


def _names_of(env_id: str) -> Callable[[Any], str]:
    return behavior_name if env_id == AVOIDING else str


def _solved_behaviors(source: Evaluation | Demonstrations) -> list[Behavior]:
    """Return the behavior of each episode, None where it failed."""
    if isinstance(source, Demonstrations):
        return list(source.behaviors)
    return [
        behavior if success else None
        for behavior, success in zip(source.behaviors, source.successes, strict=True)
    ]


def _order(behavior: Behavior) -> tuple[bool, Any]:
    """Return a key that sorts numbers before words."""
    return isinstance(behavior, str), behavior


def _make_behavior_panels(n_sources: int, n_behaviors: int) -> NDArray[Any]:
    width = float(np.clip(0.32 * n_behaviors + 1.0, 5.5, 10.0))
    figure = plt.figure(figsize=(width, 1.5 * n_sources + 0.8), layout="constrained")
    return figure.subplots(n_sources, 1, sharex=True, sharey=True, squeeze=False)[:, 0]


# ---------------------------------------------------------------------------------------
# Ablations
# ---------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------
# Time of a decision
# ---------------------------------------------------------------------------------------


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
