"""How sure a number is: intervals of success rates and of means over contexts."""

from __future__ import annotations

from math import nan, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, stdtrit

Interval = tuple[float, float]

MIN_VALUES = 5  # of an interval; of four, it would cover 80 % in place of 95 %
N_RESAMPLES = 2000  # of a bootstrap: its ends then move by about a hundredth of their distance


def wilson_interval(n_success: int, n_trials: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Return Wilson's score interval of a success rate.

    Unlike the textbook interval :math:`\hat p \pm z \sqrt{\hat p (1 - \hat p) / n}` it stays
    within [0, 1] and keeps a width when every rollout succeeds, which is where good policies
    are.

    Parameters
    ----------
    n_success : int
        Number of successes.
    n_trials : int
        Number of trials, at least one.
    confidence : float, default=0.95
        Coverage of the two-sided interval.

    Returns
    -------
    low, high : float
        The ends of the interval.

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22, 1927.

    Examples
    --------
    >>> from skvdd.metrics import wilson_interval
    >>> low, high = wilson_interval(19, 20)
    >>> print(f"{low:.3f} {high:.3f}")
    0.764 0.991
    """
    if n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, got {n_trials}.")
    if not 0 <= n_success <= n_trials:
        raise ValueError(f"n_success must lie between 0 and n_trials={n_trials}, got {n_success}.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}.")
    z = float(ndtri(0.5 + confidence / 2.0))
    rate = n_success / n_trials
    shrinkage = 1.0 + z**2 / n_trials
    center = (rate + z**2 / (2.0 * n_trials)) / shrinkage
    spread = sqrt(rate * (1.0 - rate) / n_trials + (z / (2.0 * n_trials)) ** 2)
    half_width = z * spread / shrinkage
    # The ends are exact there; the subtraction leaves a rounding error of 1e-17.
    low = 0.0 if n_success == 0 else center - half_width
    high = 1.0 if n_success == n_trials else center + half_width
    return low, high


def bootstrap_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the bootstrap interval of a mean over contexts.

    The contexts of an evaluation are a sample of all that could have been drawn, so the bootstrap
    [1]_ resamples contexts. Resampled means of few contexts spread too little; the ends are moved
    out to where Student's t has them (the expanded percentile interval [2]_). With fewer than
    about ten contexts it is too narrow all the same, and with fewer than five there is none.

    Parameters
    ----------
    values : array-like of shape (n,)
        The value of each context; NaN where it has none, which is left out of the mean.
    confidence : float, default=0.95
        Coverage of the interval.

    Returns
    -------
    low, high : float
        The ends; NaN with fewer than five values, or where all are equal, which says nothing of
        how far others spread.

    References
    ----------
    .. [1] B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7,
       1979.
    .. [2] T. C. Hesterberg, "What teachers should know about the bootstrap", The American
       Statistician 69, 2015.

    Examples
    --------
    >>> from skvdd.metrics import bootstrap_interval
    >>> low, high = bootstrap_interval([0.0, 1.0] * 20)
    >>> print(f"{low:.2f} {high:.2f}")
    0.35 0.65
    """
    counted = np.asarray(values, dtype=float)
    counted = counted[~np.isnan(counted)]
    n = len(counted)
    if n < MIN_VALUES or np.ptp(counted) == 0:
        return nan, nan
    tail = ndtr(sqrt(n / (n - 1)) * stdtrit(n - 1, 0.5 - confidence / 2.0))
    drawn = np.random.default_rng(0).integers(n, size=(N_RESAMPLES, n))
    ends = np.quantile(counted[drawn].mean(axis=1), [tail, 1.0 - tail])
    return float(ends[0]), float(ends[1])


def standard_error(values: ArrayLike) -> float:
    """Return the standard error of the mean of what is not NaN; NaN with fewer than two."""
    counted = np.asarray(values, dtype=float)
    counted = counted[~np.isnan(counted)]
    return float(counted.std(ddof=1)) / sqrt(len(counted)) if len(counted) > 1 else nan
