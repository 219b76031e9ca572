"""Numbers that judge a policy: success, diversity, and distance to another density."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from math import inf, log, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]


class KLEstimate(NamedTuple):
    """A Monte-Carlo estimate of a Kullback-Leibler divergence, in nats."""

    estimate: float
    standard_error: float


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


def task_entropy(
    behaviors: Sequence[Hashable | None],
    base: int,
    contexts: Sequence[Hashable] | None = None,
) -> float:
    r"""Return the entropy of the behaviours with which a policy solves a task (eq. 40).

    .. math::
        -\frac{1}{S_0} \sum_{s_0} \sum_{\beta} \pi(\beta | s_0) \log_{|B|} \pi(\beta | s_0)

    One means that every behaviour is equally frequent, zero that there is only one, or no
    success at all. With few rollouts the estimate is too low: 24 rollouts cannot show 24
    behaviours in their true proportions.

    Parameters
    ----------
    behaviors : sequence of length n
        The behaviour of each rollout; None for a rollout that failed, which is not counted.
    base : int
        Number of behaviours of the task, :math:`|B|`, the base of the logarithm.
    contexts : sequence of length n, default=None
        The initial state of each rollout. Given, the result is the mean of the entropies of
        each initial state; one without any success counts as zero. None: all rollouts share
        one initial state.

    Returns
    -------
    entropy : float
        Between 0 and 1.

    Examples
    --------
    >>> from skvdd.metrics import task_entropy
    >>> task_entropy(["left", "right", None, "left", "right"], base=4)
    0.5
    """
    if base < 2:
        raise ValueError(f"base must be at least 2, the number of behaviours, got {base}.")
    if contexts is None:
        contexts = [None] * len(behaviors)
    if len(contexts) != len(behaviors):
        raise ValueError(
            "contexts must name the initial state of every rollout, "
            f"got {len(contexts)} contexts for {len(behaviors)} behaviors."
        )
    counts: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for context, behavior in zip(contexts, behaviors, strict=True):
        counts[context].update(() if behavior is None else (behavior,))
    _check_base(base, set().union(*counts.values()))
    return sum(_entropy(counter, base) for counter in counts.values()) / max(len(counts), 1)


def kl_divergence(log_p: ArrayLike, log_q: ArrayLike) -> KLEstimate:
    r"""Estimate :math:`KL(p \| q) = E_p[\log p - \log q]` from samples of p.

    Parameters
    ----------
    log_p : array-like of shape (n,)
        Log density of p at n samples of p.
    log_q : array-like of shape (n,)
        Log density of q at the same samples.

    Returns
    -------
    estimate : KLEstimate
        The mean of the differences and its standard error. Where q vanishes at a sample of p
        the divergence is infinite and its standard error nan.

    Examples
    --------
    >>> from skvdd.metrics import kl_divergence
    >>> kl_divergence([0.0, -1.0, -2.0, -1.0], [-1.0, -1.0, -3.0, -3.0])
    KLEstimate(estimate=1.0, standard_error=0.408248290463863)
    """
    log_p, log_q = _check_log_densities(log_p, log_q)
    if np.isneginf(log_q).any():
        return KLEstimate(inf, nan)
    difference = log_p - log_q
    error = difference.std(ddof=1) / sqrt(len(difference))
    return KLEstimate(float(difference.mean()), float(error))


def _entropy(counts: Counter[Hashable], base: int) -> float:
    n = counts.total()
    return sum((-count / n * log(count / n) for count in counts.values()), 0.0) / log(base)


def _check_base(base: int, distinct: set[Hashable]) -> None:
    if len(distinct) > base:
        raise ValueError(
            f"base must be the number of behaviours of the task, got base={base} "
            f"and {len(distinct)} distinct behaviours. Mark failed rollouts with None."
        )


def _check_log_densities(log_p: ArrayLike, log_q: ArrayLike) -> tuple[Array, Array]:
    log_p, log_q = np.asarray(log_p, dtype=float), np.asarray(log_q, dtype=float)
    if log_p.ndim != 1 or log_p.shape != log_q.shape or len(log_p) < 2:
        raise ValueError(
            "log_p and log_q must be two vectors of one length, at least 2, "
            f"got shapes {log_p.shape} and {log_q.shape}."
        )
    if not np.isfinite(log_p).all():
        raise ValueError(
            "log_p must be finite, since the samples come from p, "
            f"got {log_p[~np.isfinite(log_p)][0]}."
        )
    if np.isnan(log_q).any() or np.isposinf(log_q).any():
        raise ValueError("log_q must not be nan or +inf.")
    return log_p, log_q
