"""How long one decision takes."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from skvdd.evaluation.evaluate import check_count
from skvdd.rollouts import Policy, as_policy

Array = NDArray[np.float64]


def time_action(
    policy: Policy, X_row: ArrayLike, *, n_calls: int = 200, n_threads: int = 1
) -> float:
    """Measure how long one decision takes: one state in, one action out.

    Parameters
    ----------
    policy : fitted policy or Pipeline
        As in `evaluate_policy`.
    X_row : array-like of shape (T, d) or (T * d + g,)
        The window of one decision.
    n_calls : int, default=200
        Number of timed calls, after a tenth as many to warm up.
    n_threads : int, default=1
        Threads that torch may use meanwhile.

    Returns
    -------
    milliseconds : float
        Median wall-clock time of one call of ``act``.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.evaluation import time_action
    >>> X, y = np.random.RandomState(0).standard_normal((2, 50, 3))
    >>> policy = GaussianMoEPolicy(2, max_iter=2, random_state=0).fit(X, y)
    >>> milliseconds = time_action(policy, X[:1], n_calls=5)
    >>> milliseconds > 0
    True
    """
    check_count("n_calls", n_calls)
    check_count("n_threads", n_threads)
    policy = as_policy(policy)
    X = np.asarray(X_row, dtype=float)[None]
    noise = np.random.RandomState(0)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        for _ in range(max(1, n_calls // 10)):
            policy.act(X, random_state=noise)
        seconds = [_time_call(policy, X, noise) for _ in range(n_calls)]
    finally:
        torch.set_num_threads(threads_before)
    return 1000.0 * float(np.median(seconds))


def _time_call(policy: Policy, X: Array, noise: np.random.RandomState) -> float:
    start = time.perf_counter()
    policy.act(X, random_state=noise)
    return time.perf_counter() - start
