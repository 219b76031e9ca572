"""Seeds put together: means, intervals, and differences of two rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, isnan, nan

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from skvdd.evaluation import Evaluation, compare_evaluations
from skvdd.metrics.intervals import (
    MIN_VALUES,
    bootstrap_interval,
    standard_error,
    wilson_interval,
)

Array = NDArray[np.float64]
Evaluations = Sequence[Evaluation]

# By quantity: its interval in an evaluation, and its value in each context.
INTERVALS = {
    "success_rate": "success_interval",
    "entropy_d3il": "entropy_interval",
    "diversity": "diversity_interval",
}
PER_CONTEXT = {
    "success_rate": "success_rates",
    "entropy_d3il": "entropies",
    "diversity": "diversities",
}


@dataclass(frozen=True)
class Summary:
    """A quantity over the seeds of a row.

    Parameters
    ----------
    mean : float
        Mean over seeds.
    std : float
        Standard deviation over the seeds that have a value; NaN of one.
    n : int
        Number of seeds.
    low, high : float
        95 % interval of the mean: over contexts, with these seeds; where every episode starts
        alike, over seeds (Student's t), or of the only seed over its rollouts. Of equal success
        rates it is Wilson's over all rollouts. NaN where too little was seen.
    """

    mean: float
    std: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        """Return mean, deviation of several seeds, and interval."""
        if isnan(self.mean):
            return ""
        spread = "" if isnan(self.std) else f" ± {self.std:.3f}"
        interval = "" if isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f}{spread}{interval}"


def summarize(evaluations: Evaluations, quantity: str) -> Summary:
    """Return the summary of a quantity of evaluations, one of each seed.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        In the same contexts.
    quantity : {"success_rate", "entropy_d3il", "entropy_ceiling", "diversity", "mean_return"}
        Which.
    """
    values = np.array([_number(getattr(e, quantity)) for e in evaluations])
    mean, n = mean_of(values), len(values)
    counted = values[~np.isnan(values)]
    std = float(counted.std(ddof=1)) if len(counted) > 1 else nan
    low, high = (nan, nan) if isnan(mean) else _interval(evaluations, quantity, values)
    if quantity in PER_CONTEXT:  # a diversity may exceed one by chance
        low, high = max(low, 0.0), high if quantity == "diversity" else min(high, 1.0)
    return Summary(mean, std, n, low, high)


def _interval(evaluations: Evaluations, quantity: str, values: Array) -> tuple[float, float]:
    if quantity == "entropy_ceiling":
        return nan, nan
    if evaluations[0].n_contexts > 1:
        means = by_context(evaluations, quantity)
        enough = len(means) >= MIN_VALUES
        if quantity == "success_rate" and enough and np.ptp(means) == 0:  # as evaluations have it
            return wilson_interval(round(float(means[0]) * len(means)), len(means))
        return bootstrap_interval(means)
    if len(values) > 1:
        return _over_seeds(evaluations, quantity, values[~np.isnan(values)])
    return getattr(evaluations[0], INTERVALS.get(quantity, ""), (nan, nan))


def _over_seeds(evaluations: Evaluations, quantity: str, values: Array) -> tuple[float, float]:
    """Return Student's interval; equal seeds do not say how far others would spread."""
    if len(values) > 1 and np.ptp(values) > 0:
        half = float(t.ppf(0.975, len(values) - 1)) * standard_error(values)
        return mean_of(values) - half, mean_of(values) + half
    if quantity != "success_rate":
        return nan, nan
    successes = np.concatenate([e.successes for e in evaluations])
    return wilson_interval(int(successes.sum()), len(successes))


def by_context(evaluations: Evaluations, quantity: str) -> Array:
    """Return a quantity in each context, by their numbers; NaN where no seed has it."""
    table = np.array([_in_contexts(e, quantity) for e in evaluations])
    has = ~np.isnan(table)
    return np.where(has.any(0), np.nansum(table, 0), nan) / np.maximum(has.sum(0), 1)


def _in_contexts(evaluation: Evaluation, quantity: str) -> Array:
    listed = np.array(evaluation.score.context_list)
    if quantity in PER_CONTEXT:
        found = np.asarray(getattr(evaluation.score, PER_CONTEXT[quantity]), dtype=float)
        return found[np.argsort(listed)]
    contexts = np.array(evaluation.contexts)
    listed = np.sort(listed)
    return np.array([evaluation.returns[contexts == c].mean() for c in listed])


@dataclass(frozen=True)
class Gap:
    """How much more a row has than another.

    Parameters
    ----------
    estimate, error : float
        The difference of the means, and its standard error.
    """

    estimate: float
    error: float

    def __str__(self) -> str:
        """Return both."""
        if isnan(self.estimate):
            return ""
        return f"{self.estimate:+.3f}" + ("" if isnan(self.error) else f" ± {self.error:.3f}")


def gap_between(first: Evaluations, second: Evaluations, quantity: str) -> Gap:
    """Return the difference of a quantity of two rows, paired by context.

    The standard error has two parts, added in squares: over contexts, of the differences in each
    (mean over seeds), and over seeds. Where every episode starts alike it is over seeds; of a
    single seed, over its rollouts.

    Parameters
    ----------
    first, second : sequence of Evaluation
        Of the same seeds, in this order. In other contexts there is no difference: it is NaN.
    quantity : {"success_rate", "entropy_d3il", "diversity", "mean_return"}
        Which.
    """
    if len({(e.split, frozenset(e.contexts)) for e in (*first, *second)}) > 1:
        return Gap(nan, nan)
    gaps = np.array(
        [
            _number(getattr(a, quantity)) - _number(getattr(b, quantity))
            for a, b in zip(first, second, strict=True)
        ]
    )
    over_seeds = standard_error(gaps) if len(gaps) > 1 else nan
    if first[0].n_contexts > 1:
        each = by_context(first, quantity) - by_context(second, quantity)
        over_contexts = standard_error(each)
        error = over_contexts if isnan(over_seeds) else hypot(over_contexts, over_seeds)
        return Gap(mean_of(each), error)
    if len(gaps) > 1:
        return Gap(mean_of(gaps), over_seeds)
    found = getattr(compare_evaluations(first[0], second[0]), quantity, None)
    return Gap(mean_of(gaps), nan if found is None else found.standard_error)


def mean_of(values: Array) -> float:
    """Return the mean of what is not NaN."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else nan


def _number(value: float | None) -> float:
    return nan if value is None else float(value)
