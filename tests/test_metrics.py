"""Success intervals, task entropy and the Monte-Carlo divergence."""

import re
from math import inf, isnan, log

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from skvdd.metrics import kl_divergence, task_entropy, wilson_interval


def refuses(message):
    """Expect a ValueError whose whole message is this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# ---------------------------------------------------------------------------------------
# wilson_interval
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_trials", [1, 7, 200])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95, 1.0])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_wilson_interval_agrees_with_scipy(n_trials, share, confidence):
    n_success = round(share * n_trials)
    expected = binomtest(n_success, n_trials).proportion_ci(confidence, method="wilson")
    interval = wilson_interval(n_success, n_trials, confidence)
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_touches_the_ends_exactly():
    assert wilson_interval(0, 13)[0] == 0.0
    assert wilson_interval(13, 13)[1] == 1.0


def test_wilson_interval_takes_the_sum_of_a_boolean_array():
    successes = np.array([True, False, True])
    assert wilson_interval(successes.sum(), 3) == wilson_interval(2, 3)


def test_wilson_interval_refuses_what_cannot_be_a_count():
    with refuses("n_trials must be at least 1, got 0."):
        wilson_interval(0, 0)
    with refuses("n_success must lie between 0 and n_trials=4, got 5."):
        wilson_interval(5, 4)
    with refuses("n_success must lie between 0 and n_trials=4, got -1."):
        wilson_interval(-1, 4)
    with refuses("confidence must lie strictly between 0 and 1, got 95."):
        wilson_interval(1, 4, confidence=95)


# ---------------------------------------------------------------------------------------
# task_entropy
# ---------------------------------------------------------------------------------------


def test_entropy_is_one_when_all_behaviors_are_equally_frequent():
    assert task_entropy(list(range(24)) * 3, base=24) == pytest.approx(1.0, abs=1e-12)


def test_entropy_is_zero_for_one_behavior_or_no_success():
    assert task_entropy([7] * 10, base=24) == 0.0
    assert task_entropy([None] * 10, base=24) == 0.0
    assert task_entropy([], base=24) == 0.0


def test_entropy_by_hand():
    # Shares 1/2, 1/4, 1/4: 1.5 bits, of log2(8) = 3 bits.
    assert task_entropy(["a", "a", "b", "c"], base=8) == pytest.approx(0.5, abs=1e-12)
    # Shares 3/4, 1/4 in base 2: 2 - 3/4 log2(3).
    expected = 2.0 - 0.75 * log(3, 2)
    assert task_entropy([1, 1, 1, 0], base=2) == pytest.approx(expected, abs=1e-12)


def test_failed_rollouts_do_not_count():
    assert task_entropy(["a", None, "b", None, None], base=2) == task_entropy(["a", "b"], base=2)


def test_behaviors_may_be_tuples():
    assert task_entropy([(0, 1, 2), (1, 1, 2)], base=4) == pytest.approx(0.5, abs=1e-12)


def test_entropy_is_the_mean_over_initial_states():
    # Context 0 shows both behaviours (1 bit), context 1 only one (0 bit). Pooled, the shares
    # are 1/4 and 3/4, which is more than the mean.
    behaviors, contexts = ["a", "b", "b", "b"], [0, 0, 1, 1]
    assert task_entropy(behaviors, base=2, contexts=contexts) == pytest.approx(0.5, abs=1e-12)
    assert task_entropy(behaviors, base=2) == pytest.approx(2.0 - 0.75 * log(3, 2), abs=1e-12)


def test_an_initial_state_without_success_counts_as_zero():
    assert task_entropy(["a", "b", None], base=2, contexts=[0, 0, 1]) == pytest.approx(0.5)


def test_task_entropy_refuses_what_has_no_meaning():
    with refuses("base must be at least 2, the number of behaviours, got 1."):
        task_entropy(["a"], base=1)
    with refuses(
        "base must be the number of behaviours of the task, got base=2 and 3 distinct "
        "behaviours. Mark failed rollouts with None."
    ):
        task_entropy(["a", "b", "c", None], base=2)
    with refuses(
        "contexts must name the initial state of every rollout, got 1 contexts for 2 behaviors."
    ):
        task_entropy(["a", "b"], base=2, contexts=[0])


# ---------------------------------------------------------------------------------------
# kl_divergence
# ---------------------------------------------------------------------------------------


def test_kl_divergence_by_hand():
    estimate, standard_error = kl_divergence([1.0, 2.0, 3.0], [0.0, 2.0, 1.0])
    assert estimate == 1.0
    assert standard_error == pytest.approx(1.0 / 3.0**0.5)  # differences 1, 0, 2


def test_kl_divergence_covers_the_closed_form():
    # KL(N(0, 1) || N(1, 2)) = log 2 + (1 + 1) / 8 - 1/2.
    x = np.random.RandomState(0).normal(size=20_000)
    estimate, standard_error = kl_divergence(norm.logpdf(x), norm.logpdf(x, 1.0, 2.0))
    assert standard_error < 0.01
    assert abs(estimate - (log(2.0) - 0.25)) < 3.0 * standard_error


def test_kl_divergence_is_infinite_where_q_vanishes():
    estimate, standard_error = kl_divergence([0.0, 0.0], [0.0, -inf])
    assert estimate == inf
    assert isnan(standard_error)


def test_kl_divergence_refuses_what_cannot_be_a_density():
    with refuses(
        "log_p and log_q must be two vectors of one length, at least 2, got shapes (3,) and (2,)."
    ):
        kl_divergence([0.0, 0.0, 0.0], [0.0, 0.0])
    with refuses(
        "log_p and log_q must be two vectors of one length, at least 2, got shapes (1,) and (1,)."
    ):
        kl_divergence([0.0], [0.0])
    with refuses("log_p must be finite, since the samples come from p, got -inf."):
        kl_divergence([0.0, -inf], [0.0, 0.0])
    with refuses("log_q must not be nan or +inf."):
        kl_divergence([0.0, 0.0], [0.0, float("nan")])
