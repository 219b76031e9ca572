"""Intervals of success rates."""

import re
from math import isnan

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from skvdd.metrics import bootstrap_interval, wilson_interval
from skvdd.metrics.intervals import standard_error


def refuses(message):
    """Expect a ValueError whose whole message is this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


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


# -- over contexts --------------------------------------------------------------------------


def test_the_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).uniform(size=400) ** 2
    expected = bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    # The ends of 2000 resamples vary by about 0.001 here, and 400 values need no widening.
    np.testing.assert_allclose(bootstrap_interval(values), expected, atol=0.004)


def test_the_bootstrap_leaves_out_what_has_no_value():
    values = [0.2, np.nan, 0.8, 0.5, np.nan, 0.1, 0.3]
    assert bootstrap_interval(values) == bootstrap_interval([0.2, 0.8, 0.5, 0.1, 0.3])


@pytest.mark.parametrize(
    "values", [[], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4, np.nan], [1.0] * 9]
)
def test_too_few_values_and_equal_ones_have_no_interval(values):
    assert all(map(isnan, bootstrap_interval(values)))


@pytest.mark.parametrize(("n", "least"), [(6, 0.87), (30, 0.90)])
def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says(n, least):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        low, high = bootstrap_interval(rng.beta(2.0, 1.0, size=n))
        hits += low <= 2.0 / 3.0 <= high
    # 400 trials have a standard error of 1.2 %. Not widened, 6 values would cover 84 %.
    assert least < hits / 400 < 0.985


def test_standard_errors():
    assert standard_error([1.0, 3.0, np.nan]) == pytest.approx(1.0)  # sqrt(2) / sqrt(2)
    assert isnan(standard_error([1.0]))
