"""In how many ways a policy solves a task.

Behaviors are counted in each context by themselves. A policy that always goes left in one half of
the contexts and right in the other shows both behaviors and chooses neither: over all contexts
together its behaviors would look diverse, within each they are not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from functools import cache
from math import log, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import binom

Array = NDArray[np.float64]
Counts = NDArray[np.int64]  # (contexts, behaviors)

N_SPLITS = 200  # random samples, for a mean or a spread


def count_behaviors(
    behaviors: Sequence[Hashable | None], contexts: Sequence[Hashable] | None = None
) -> Counts:
    """Return how often each behavior was shown in each context.

    Parameters
    ----------
    behaviors : sequence of length n
        The behavior of each rollout; None for one that is not counted, since it failed.
    contexts : sequence of length n, default=None
        The initial state of each rollout; None if all have the same.

    Returns
    -------
    counts : ndarray of shape (contexts, behaviors)
        Contexts and behaviors in the order in which they first occur.

    Examples
    --------
    >>> from skvdd.metrics import count_behaviors
    >>> count_behaviors(["left", None, "right", "left"], contexts=[0, 0, 1, 1])
    array([[1, 0],
           [1, 1]])
    """
    if contexts is None:
        contexts = [None] * len(behaviors)
    if len(contexts) != len(behaviors):
        raise ValueError(
            "contexts must name the initial state of every rollout, "
            f"got {len(contexts)} contexts for {len(behaviors)} behaviors."
        )
    counters: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for context, behavior in zip(contexts, behaviors, strict=True):
        counters[context].update(() if behavior is None else (behavior,))
    shown = list(dict.fromkeys(behavior for behavior in behaviors if behavior is not None))
    rows = [[counter[behavior] for behavior in shown] for counter in counters.values()]
    return np.array(rows, dtype=np.int64).reshape(len(counters), len(shown))


def entropy_d3il(
    behaviors: Sequence[Hashable | None],
    base: int,
    contexts: Sequence[Hashable] | None = None,
    *,
    skip_unsolved: bool = False,
) -> float:
    r"""Return the entropy by which D3IL and VDD measure diversity (eq. 40 of the paper).

    .. math::
        -\frac{1}{S_0} \sum_{s_0} \sum_{\beta} \pi(\beta | s_0) \log_{|B|} \pi(\beta | s_0)

    over the behaviors :math:`\beta` of the successful rollouts from each initial state. One means
    that every behavior is equally frequent, zero that there is only one, or no success at all.

    The shares of a few rollouts are put in for the probabilities :math:`\pi`, so that the value
    depends on the number of successes: 8 rollouts cannot show 20 behaviors in their true
    proportions. Two policies are comparable where they have equally many; `entropy_ceiling` is what
    could be reached, and `behavior_diversity` does not depend on it.

    Parameters
    ----------
    behaviors : sequence of length n
        The behavior of each rollout; None for a rollout that failed, which is not counted.
    base : int
        Number of behaviors of the task, :math:`|B|`, the base of the logarithm.
    contexts : sequence of length n, default=None
        The initial state of each rollout; None if all have the same.
    skip_unsolved : bool, default=False
        Whether initial states without any success are left out of the mean, as D3IL does in
        sorting and stacking; otherwise they count as zero, as in aligning and pushing.

    Returns
    -------
    entropy : float
        Between 0 and 1.

    Examples
    --------
    >>> from skvdd.metrics import entropy_d3il
    >>> entropy_d3il(["left", "right", None, "left", "right"], base=4)
    0.5
    """
    counts = _checked_counts(behaviors, base, contexts)
    return mean_of(entropies(counts, base, skip_unsolved))


def entropy_ceiling(
    behaviors: Sequence[Hashable | None],
    base: int,
    contexts: Sequence[Hashable] | None = None,
    *,
    skip_unsolved: bool = False,
) -> float:
    r"""Return the D3IL entropy that a perfectly diverse policy with as many successes would have.

    It is the expectation of `entropy_d3il` if each of the :math:`n` successes in a context showed
    one of the :math:`K` behaviors by chance, all equally probable:

    .. math:: \sum_{k=1}^{n} K \binom{n}{k} K^{-k} (1 - K^{-1})^{n-k} \;
              \tfrac{k}{n} \log_K \tfrac{n}{k}

    An entropy above it is chance, or of a policy that takes turns.

    Parameters
    ----------
    behaviors, base, contexts, skip_unsolved : as in `entropy_d3il`
        What was shown, and how many behaviors there are.

    Returns
    -------
    ceiling : float
        Between 0 and 1.

    Examples
    --------
    Of two successes, half show different ones of two behaviors:

    >>> from skvdd.metrics import entropy_ceiling
    >>> round(entropy_ceiling(["left", "left"], base=2), 6)
    0.5
    """
    counts = _checked_counts(behaviors, base, contexts)
    return mean_of(ceilings(counts, base, skip_unsolved))


def behavior_diversity(
    behaviors: Sequence[Hashable | None], base: int, contexts: Sequence[Hashable] | None = None
) -> float:
    r"""Return an estimate of diversity that does not depend on the number of rollouts.

    It is the probability that two successful rollouts from the same initial state behave
    differently, in units of what a policy has whose :math:`K` behaviors are all equally probable:

    .. math:: \frac{1}{1 - 1/K}
              \left( 1 - \sum_\beta \frac{n_\beta (n_\beta - 1)}{n (n - 1)} \right)

    the mean over the initial states with at least two successes. Zero means that each initial
    state is always solved in one way, one that all ways are equally frequent.

    No estimate of an entropy from a few rollouts is unbiased; this one, Simpson's, is, whatever the
    number of successes. As the price a single estimate may lie above one.

    Parameters
    ----------
    behaviors, base, contexts : as in `entropy_d3il`
        What was shown, and how many behaviors there are.

    Returns
    -------
    diversity : float
        NaN where no initial state has two successes.

    References
    ----------
    E. H. Simpson, "Measurement of diversity", Nature 163, 1949.

    L. Paninski, "Estimation of entropy and mutual information", Neural Computation 15, 2003, on
    why entropies have no unbiased estimate.

    Examples
    --------
    Of the three pairs, two differ; of a perfectly diverse policy one in two would:

    >>> from skvdd.metrics import behavior_diversity
    >>> round(behavior_diversity(["left", "left", None, "right"], base=2), 3)
    1.333
    """
    return mean_of(diversities(_checked_counts(behaviors, base, contexts), base), empty=nan)


# ---------------------------------------------------------------------------------------
# Context by context
# ---------------------------------------------------------------------------------------


def entropies(counts: Counts, base: int, skip_unsolved: bool = False) -> Array:
    """Return D3IL's entropy of each context; NaN where it is left out."""
    n = counts.sum(axis=1)
    shares = counts / np.maximum(n, 1)[:, None]
    values = -xlogy(shares, shares).sum(axis=1) / log(base) + 0.0  # no -0.0
    return np.where((n > 0) | (not skip_unsolved), values, nan)


def ceilings(counts: Counts, base: int, skip_unsolved: bool = False) -> Array:
    """Return the expected entropy of a perfectly diverse policy in each context, as `entropies`."""
    n = counts.sum(axis=1)
    values = np.array([_expected_entropy(int(n_successes), base) for n_successes in n])
    return np.where((n > 0) | (not skip_unsolved), values, nan)


def diversities(counts: Counts, base: int) -> Array:
    """Return Simpson's diversity of each context; NaN with fewer than two successes."""
    n = counts.sum(axis=1).astype(float)
    pairs = np.where(n > 1, n * (n - 1.0), nan)
    alike = (counts * (counts - 1.0)).sum(axis=1) / pairs
    return (1.0 - alike) / (1.0 - 1.0 / base)


def entropy_error(counts: Counts, base: int) -> float:
    """Return the standard error of the entropy of one context.

    Parameters
    ----------
    counts : ndarray of shape (K,)
        How often each behavior was shown.
    base : int
        Number of behaviors of the task.

    Returns
    -------
    float
        From the delta method and its next term [1]_, which alone is left where all behaviors are
        equally frequent; NaN with fewer than two successes.

    References
    ----------
    .. [1] M. S. Roulston, "Estimating the errors on measured entropy and mutual information",
       Physica D 125, 1999.
    """
    n = int(counts.sum())
    if n < 2:
        return nan
    shares = counts / n
    information = -np.log(np.where(shares > 0, shares, 1.0))
    spread = shares @ information**2 - (shares @ information) ** 2
    return sqrt(max(spread, 0.0) / n + (base - 1) / (2.0 * n**2)) / log(base)


def diversity_error(counts: Counts, base: int) -> float:
    """Return the standard error of Simpson's diversity of one context.

    Parameters
    ----------
    counts : ndarray of shape (K,)
        How often each behavior was shown.
    base : int
        Number of behaviors of the task.

    Returns
    -------
    float
        From Simpson's exact variance, with shares for probabilities; NaN with fewer than two
        successes, or with all in one behavior, which say nothing of the frequency of others.
    """
    n = int(counts.sum())
    if n < 2 or (counts == n).any():
        return nan
    shares = counts / n
    second, third = float(np.sum(shares**2)), float(np.sum(shares**3))
    variance = 4.0 * (n - 2) * third + 2.0 * second - 2.0 * (2 * n - 3) * second**2
    return sqrt(max(variance, 0.0) / (n * (n - 1))) / (1.0 - 1.0 / base)


def divergence_error(one: Counts, other: Counts, random_state: int = 0) -> float:
    """Return the standard error of the divergence in one context, by the parametric bootstrap.

    Parameters
    ----------
    one, other : ndarray of shape (K,)
        How often two policies showed each behavior.
    random_state : int, default=0
        Seed of the resampling.

    Returns
    -------
    float
        NaN where either has no success.
    """
    rng = np.random.default_rng(random_state)
    n = one.sum(), other.sum()
    if min(n) == 0:
        return nan
    drawn = [
        rng.multinomial(k, counts / k, size=N_SPLITS)
        for k, counts in zip(n, (one, other), strict=True)
    ]
    return float(divergences(*drawn).std(ddof=1))


def divergences(one: Counts, other: Counts) -> Array:
    """Return the Jensen-Shannon divergence in each context; NaN where either has no success.

    Parameters
    ----------
    one, other : ndarray of shape (contexts, behaviors)
        How often two policies showed each behavior.

    Returns
    -------
    ndarray of shape (contexts,)
        To the base of two: between zero, for equal shares, and one, for none in common.
    """
    with np.errstate(invalid="ignore"):
        p, q = (counts / counts.sum(axis=1, keepdims=True) for counts in (one, other))
        mean = 0.5 * (p + q)
        halves = [xlogy(r, r) - xlogy(r, np.where(r > 0, mean, 1.0)) for r in (p, q)]
    values: Array = 0.5 * (halves[0] + halves[1]).sum(axis=1) / log(2.0)
    return values


def divergence_by_chance(one: Counts, other: Counts, random_state: int = 0) -> float:
    """Return the mean divergence if both policies were the same, by permutation in each context.

    Parameters
    ----------
    one, other : ndarray of shape (contexts, behaviors)
        How often two policies showed each behavior.
    random_state : int, default=0
        Seed of the permutations.
    """
    rng = np.random.default_rng(random_state)
    both, n = one + other, one.sum(axis=1)
    solved = (n > 0) & (other.sum(axis=1) > 0)
    if not solved.any():
        return nan
    both, n = both[solved], n[solved]
    means = []
    for _ in range(N_SPLITS):
        split = np.array(
            [rng.multivariate_hypergeometric(row, k) for row, k in zip(both, n, strict=True)]
        )
        means.append(divergences(split, both - split).mean())
    return float(np.mean(means))


@cache
def _expected_entropy(n_successes: int, base: int) -> float:
    """Return the mean entropy of so many draws from a uniform distribution."""
    k = np.arange(1, n_successes + 1)
    shares = k / max(n_successes, 1)
    return float(-base * binom.pmf(k, n_successes, 1.0 / base) @ xlogy(shares, shares)) / log(base)


def _checked_counts(
    behaviors: Sequence[Hashable | None], base: int, contexts: Sequence[Hashable] | None
) -> Counts:
    if base < 2:
        raise ValueError(f"base must be at least 2, the number of behaviors, got {base}.")
    counts = count_behaviors(behaviors, contexts)
    if counts.shape[1] > base:
        raise ValueError(
            f"base must be the number of behaviors of the task, got base={base} and "
            f"{counts.shape[1]} distinct behaviors. Mark failed rollouts with None."
        )
    return counts


def mean_of(values: Array, empty: float = 0.0) -> float:
    """Return the mean of what is not NaN; without, 0 as D3IL reports it, or what is given."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else empty
