"""Distances of a policy to another density, or to actions."""

from __future__ import annotations

from math import inf, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, pdist

Array = NDArray[np.float64]


class KLEstimate(NamedTuple):
    """A Monte-Carlo estimate of a Kullback-Leibler divergence, in nats.

    Attributes
    ----------
    estimate : float
        The divergence, nats.
    standard_error : float
        Of the estimate, in the same unit.

    Examples
    --------
    >>> from skvdd.metrics import KLEstimate
    >>> divergence = KLEstimate(estimate=0.25, standard_error=0.125)
    >>> divergence.estimate - 1.96 * divergence.standard_error  # may it be zero?
    0.0050000000000000044
    """

    estimate: float
    standard_error: float


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


def energy_score(samples: ArrayLike, y: ArrayLike) -> Array:
    r"""Return the energy score of each row's samples at the value that was observed.

    .. math:: E \| X - y \| - \tfrac{1}{2} E \| X - X' \|

    with independent samples :math:`X, X'` of a policy and the observed action :math:`y`; lower is
    better. It needs samples only, so it also judges a policy without a likelihood. It is a strictly
    proper scoring rule: in expectation nothing scores better than the distribution that :math:`y`
    comes from. In one dimension it is the continuous ranked probability score. Its unit is that of
    the actions, in the Euclidean norm: columns of unlike units should be scaled first.

    The second mean is over pairs of distinct samples, which makes the estimate unbiased whatever
    their number; with few samples a single score may be negative.

    Parameters
    ----------
    samples : array-like of shape (n, S, d_a) or (n, S)
        Samples in each row, at least two.
    y : array-like of shape (n, d_a) or (n,)
        The observed value of each row.

    Returns
    -------
    score : ndarray of shape (n,)
        The score of each row.

    References
    ----------
    T. Gneiting and A. E. Raftery, "Strictly proper scoring rules, prediction, and estimation",
    Journal of the American Statistical Association 102, 2007.

    C. A. T. Ferro, "Fair scores for ensemble forecasts", Quarterly Journal of the Royal
    Meteorological Society 140, 2014.

    Examples
    --------
    The sample pairs are 5 apart. The first value has distances 0 and 5, the second 5 and 10:

    >>> from skvdd.metrics import energy_score
    >>> energy_score([[[0, 0], [3, 4]], [[0, 0], [3, 4]]], [[0, 0], [6, 8]])
    array([0., 5.])
    """
    samples, y = _check_samples(samples, y)
    # Row by row: the pairs of all rows would take S / 2 times the memory of the samples.
    scores = (
        cdist(row, point).mean() - pdist(row).mean() / 2.0
        for row, point in zip(samples, y, strict=True)
    )
    return np.fromiter(scores, dtype=float, count=len(samples))


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


def _check_samples(samples: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Return samples (n, S, d_a) and values (n, 1, d_a), or say what is wrong with them."""
    samples, y = np.asarray(samples, dtype=float), np.asarray(y, dtype=float)
    if samples.ndim not in (2, 3) or samples.shape[1] < 2:
        raise ValueError(
            "samples must have shape (n, S, d_a) or (n, S) with S at least 2, got shape "
            f"{samples.shape}."
        )
    expected = samples.shape[:1] + samples.shape[2:]
    if y.shape != expected:
        raise ValueError(
            f"y must have shape {expected} for samples of shape {samples.shape}, got shape "
            f"{y.shape}."
        )
    for name, values in {"samples": samples, "y": y}.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got {values[~np.isfinite(values)][0]}.")
    if samples.ndim == 2:
        samples, y = samples[..., None], y[..., None]
    return samples, y[:, None]
