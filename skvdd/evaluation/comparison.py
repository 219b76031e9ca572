"""Two policies in the same contexts: what differs, and by how much more than by chance."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skvdd.evaluation.report import Evaluation
from skvdd.evaluation.score import ScoreReport, Z, within
from skvdd.metrics.behavior import (
    divergence_by_chance,
    divergence_error,
    divergences,
    mean_of,
)
from skvdd.metrics.intervals import (
    Interval,
    bootstrap_interval,
    standard_error,
)

Array = NDArray[np.float64]


class Difference(NamedTuple):
    """A number of two policies, and the difference of the first from the second.

    Attributes
    ----------
    first, second : float
        The number of each, over the contexts in which both have it.
    estimate : float
        The difference.
    standard_error : float
        Of the difference.

    Examples
    --------
    >>> from skvdd.evaluation import Difference
    >>> difference = Difference(first=0.9, second=0.8, estimate=0.1, standard_error=0.02)
    >>> abs(difference.estimate) > 1.96 * difference.standard_error  # beyond chance?
    True
    """

    first: float
    second: float
    estimate: float
    standard_error: float


class BehaviorDivergence(NamedTuple):
    """How differently two policies solve a task.

    Attributes
    ----------
    estimate : float
        Jensen-Shannon divergence of the behaviors of their successes, mean over contexts, to the
        base of two: 0 for the same shares, 1 for no behavior in common.
    interval : tuple of float
        95 % interval.
    floor : float
        What two samples of one policy, of the same sizes, would show by chance. An estimate near
        it is no evidence of a difference.

    Examples
    --------
    >>> from skvdd.evaluation import BehaviorDivergence
    >>> divergence = BehaviorDivergence(estimate=0.3, interval=(0.2, 0.4), floor=0.1)
    >>> divergence.interval[0] > divergence.floor
    True
    """

    estimate: float
    interval: Interval
    floor: float


@dataclass(frozen=True)
class Comparison:
    """What `compare_evaluations` found; ``print`` shows it as a table.

    Attributes
    ----------
    env_id : str
        The environment.
    n_contexts : int
        Number of contexts, 0 where every episode starts alike.
    success_rate : Difference
        Of the success rates.
    entropy_d3il, diversity : Difference or None
        Of the entropies and diversities; None where behaviors are not told apart.
    divergence : BehaviorDivergence or None
        Of the behaviors, likewise.

    Examples
    --------
    >>> from skvdd.evaluation import Comparison, Difference
    >>> difference = Difference(first=0.9, second=0.8, estimate=0.1, standard_error=0.02)
    >>> print(Comparison("CartPole-v1", 0, difference, None, None, None))
    CartPole-v1: first minus second, standard errors unpaired
      success rate   0.900 - 0.800 = +0.100 +- 0.020
    """

    env_id: str
    n_contexts: int
    success_rate: Difference
    entropy_d3il: Difference | None
    diversity: Difference | None
    divergence: BehaviorDivergence | None

    def __str__(self) -> str:
        """Return the table."""
        pairing = f"paired over {self.n_contexts} contexts" if self.n_contexts > 1 else "unpaired"
        lines = [f"{self.env_id}: first minus second, standard errors {pairing}"]
        rows = {
            "success rate": self.success_rate,
            "entropy, D3IL": self.entropy_d3il,
            "diversity": self.diversity,
        }
        for name, row in rows.items():
            if row is not None:
                lines.append(
                    f"  {name:<13}  {row.first:.3f} - {row.second:.3f} = {row.estimate:+.3f} "
                    f"+- {row.standard_error:.3f}"
                )
        if self.divergence is not None:
            lines.append(
                f"  behaviors      divergence {self.divergence.estimate:.3f}, "
                f"{within(self.divergence.interval)}, {self.divergence.floor:.3f} by chance"
            )
        return "\n".join(lines)


def compare_evaluations(
    first: Evaluation, second: Evaluation, *, score: str | None = None
) -> Comparison:
    """Compare two policies that were rolled out in the same contexts.

    Contexts differ in difficulty, and that is the same for both: differences are taken in each
    context, so that it cancels. Where every episode starts alike nothing is paired, and standard
    errors add up.

    Parameters
    ----------
    first, second : Evaluation
        Of one environment, in the same contexts; equal ``random_state`` is not needed.
    score : str or None, default=None
        Which score of the task; None is the first.

    Returns
    -------
    comparison : Comparison
        Differences with their standard errors.

    Raises
    ------
    ValueError
        If environments, scores or contexts differ.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.evaluation import compare_evaluations, evaluate_policy
    >>> class Straight:
    ...     window_size = 1
    ...
    ...     def act(self, X, *, random_state=None):
    ...         return np.tile([0.0, 0.005], (len(X), 1))
    >>> one, other = (evaluate_policy(Straight(), "avoiding", 4, random_state=i) for i in (0, 1))
    >>> compare_evaluations(one, other).success_rate.estimate
    0.0
    """
    one, other = _matched(first, second, score)
    base = one.base
    success = _difference(
        one.success_rates, other.success_rates, _binomial_error(one), _binomial_error(other)
    )
    if base is None:
        return Comparison(first.env_id, first.n_contexts, success, None, None, None)
    entropy = _difference(one.entropies, other.entropies, one.entropy_error, other.entropy_error)
    diversity = _difference(
        one.diversities, other.diversities, one.diversity_error, other.diversity_error
    )
    divergence = _divergence(one, other)
    return Comparison(first.env_id, first.n_contexts, success, entropy, diversity, divergence)


def behavior_divergence(
    first: Evaluation, second: Evaluation, *, score: str | None = None
) -> BehaviorDivergence:
    r"""Return how differently two policies solve a task in the same contexts.

    In each context the shares :math:`p` and :math:`q` of the behaviors among the successes of the
    two are compared by the Jensen-Shannon divergence [1]_,

    .. math:: \tfrac{1}{2} KL(p \| m) + \tfrac{1}{2} KL(q \| m) , \qquad m = \tfrac{1}{2} (p + q)

    and the mean is over the contexts that both solve. Few rollouts make any two samples differ, so
    the value is to be held against `BehaviorDivergence.floor`.

    Parameters
    ----------
    first, second : Evaluation
        Of one environment, in the same contexts.
    score : str or None, default=None
        Which score of the task; None is the first.

    Returns
    -------
    divergence : BehaviorDivergence
        The divergence, its interval, and its value by chance.

    Raises
    ------
    ValueError
        If environments, scores or contexts differ, or behaviors are not told apart.

    References
    ----------
    .. [1] J. Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on
       Information Theory 37, 1991.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.evaluation import behavior_divergence, evaluate_policy
    >>> class Aside:
    ...     window_size = 1
    ...
    ...     def __init__(self, x):
    ...         self.x = x
    ...
    ...     def act(self, X, *, random_state=None):
    ...         return np.tile([self.x, 0.005], (len(X), 1))
    >>> left, right = (evaluate_policy(Aside(x), "avoiding", 4) for x in (-0.002, 0.002))
    >>> behavior_divergence(left, right).estimate  # no way in common
    1.0
    """
    one, other = _matched(first, second, score)
    if one.base is None:
        raise ValueError(f"first must be of a task with behaviors, got {first.env_id}.")
    return _divergence(one, other)


def _matched(
    first: Evaluation, second: Evaluation, score: str | None
) -> tuple[ScoreReport, ScoreReport]:
    """Return the reports to compare, or say why they cannot be."""
    if first.env_id != second.env_id:
        raise ValueError(
            f"first and second must be of one environment, got {first.env_id} and {second.env_id}."
        )
    name = next(iter(first.scores)) if score is None else score
    for evaluation in (first, second):
        if name not in evaluation.scores:
            known = ", ".join(evaluation.scores)
            raise ValueError(f"score must be one of {known}, got {name!r}.")
    contexts = [(e.split, e.scores[name].context_list) for e in (first, second)]
    if contexts[0] != contexts[1] or not _same_table(first.table, second.table):
        raise ValueError(
            "first and second must have been rolled out in the same contexts, in one order, got "
            f"{_words(first)} and {_words(second)}."
        )
    return first.scores[name], second.scores[name]


def _same_table(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _words(evaluation: Evaluation) -> str:
    if not evaluation.n_contexts:
        return "no contexts"
    if evaluation.split is None:
        return f"a table of {evaluation.n_contexts}"
    numbers = ", ".join(map(str, evaluation.score.context_list[:4]))
    more = ", ..." if evaluation.n_contexts > 4 else ""
    return f"{numbers}{more} of the {evaluation.split} list"


def _difference(one: Array, other: Array, *errors: float) -> Difference:
    """Return the difference of two means over the contexts in which both have a value.

    Values are paired by context; where every episode starts alike, errors of the two add up.
    """
    both = ~(np.isnan(one) | np.isnan(other))
    gaps = (one - other)[both]
    error = standard_error(gaps) if len(one) > 1 else hypot(*errors)
    first, second = mean_of(one[both], nan), mean_of(other[both], nan)
    return Difference(first, second, first - second, error)


def _binomial_error(report: ScoreReport) -> float:
    rate, n = report.success_rate, len(report.successes)
    return sqrt(rate * (1.0 - rate) / n)


def _divergence(one: ScoreReport, other: ScoreReport) -> BehaviorDivergence:
    values = divergences(one.counts, other.counts)
    estimate = mean_of(values, nan)
    floor = divergence_by_chance(one.counts, other.counts)
    if one.has_contexts:
        return BehaviorDivergence(estimate, bootstrap_interval(values), floor)
    half = Z * divergence_error(one.counts[0], other.counts[0])
    interval = max(estimate - half, 0.0), min(estimate + half, 1.0)
    return BehaviorDivergence(estimate, interval, floor)
