"""Divergence and energy score."""

import re
from math import inf, isnan, log, nan, pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from skvdd.metrics import energy_score, kl_divergence


def refuses(message):
    """Expect a ValueError whose whole message is this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


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


# ---------------------------------------------------------------------------------------
# energy_score
# ---------------------------------------------------------------------------------------


def test_energy_score_by_hand():
    # Distances to y are 1, 1, 3, of the pairs 0, 4, 4: 5/3 - 1/2 * 8/3.
    assert energy_score([[1.0, 1.0, 5.0]], [2.0]) == pytest.approx([1.0 / 3.0])
    # Distances to y are 5 and 5, of the pair 6: 5 - 1/2 * 6.
    assert energy_score([[[3.0, 4.0], [-3.0, 4.0]]], [[0.0, 0.0]]) == pytest.approx([2.0])


def test_energy_score_covers_the_closed_form_of_a_gaussian():
    # CRPS(N(m, s), y) = s [z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)] with z = (y - m) / s.
    mean, width, n_repeats = 0.5, 2.0, 400
    for y in (-3.0, 0.5, 1.7, 6.0):
        samples = np.random.RandomState(0).normal(mean, width, size=(n_repeats, 100))
        scores = energy_score(samples, np.full(n_repeats, y))
        z = (y - mean) / width
        truth = width * (z * (2.0 * norm.cdf(z) - 1.0) + 2.0 * norm.pdf(z) - pi**-0.5)
        assert_mean_within(scores, truth)
        assert scores.std() < 0.5


@pytest.mark.parametrize("n_samples", [2, 3, 10])
def test_energy_score_is_unbiased_however_few_the_samples(n_samples):
    # E|X - y| of a standard Gaussian at its mean is sqrt(2 / pi), E|X - X'| is 2 / sqrt(pi).
    samples = np.random.RandomState(0).normal(size=(20_000, n_samples))
    scores = energy_score(samples, np.zeros(20_000))
    assert_mean_within(scores, (2.0 / pi) ** 0.5 - pi**-0.5)


def test_few_samples_score_as_many_do_in_two_dimensions():
    rng = np.random.RandomState(0)
    few = energy_score(rng.normal(size=(20_000, 2, 2)), np.ones((20_000, 2)))
    many = energy_score(rng.normal(size=(20, 1000, 2)), np.ones((20, 2)))
    assert_mean_within(few, many.mean())


@pytest.fixture(scope="module", params=[1, 2])
def true_scores(request):
    """Return actions, samples of their own distribution, and the scores of these."""
    rng = np.random.RandomState(0)
    y = rng.normal(size=(20_000, request.param))
    noise = rng.normal(size=(20_000, 8, request.param))
    return y, noise, energy_score(noise, y)


@pytest.mark.parametrize(
    ("shift", "width"), [(0.5, 1.0), (-0.5, 1.0), (0.0, 0.5), (0.0, 2.0), (0.3, 1.4)]
)
def test_the_true_distribution_has_the_best_energy_score(shift, width, true_scores):
    y, noise, scores = true_scores
    worse = energy_score(shift + width * noise, y) - scores
    assert worse.mean() > 4.0 * worse.std() / 20_000**0.5


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 4), st.integers(2, 6), st.integers(1, 3)),
    shift=st.floats(-1e3, 1e3),
    scale=st.floats(1e-3, 1e3),
)
def test_energy_score_moves_with_the_units(seed, shape, shift, scale):
    rng = np.random.RandomState(seed)
    samples, y = rng.normal(size=shape), rng.normal(size=(shape[0], shape[2]))
    scores = energy_score(samples, y)
    np.testing.assert_allclose(energy_score(samples + shift, y + shift), scores, atol=1e-9)
    np.testing.assert_allclose(
        energy_score(scale * samples, scale * y), scale * scores, atol=1e-9 * scale
    )
    rotation = np.linalg.qr(rng.normal(size=(shape[2], shape[2])))[0]
    np.testing.assert_allclose(energy_score(samples @ rotation, y @ rotation), scores, atol=1e-9)
    order = rng.permutation(shape[1])
    np.testing.assert_allclose(energy_score(samples[:, order], y), scores, atol=1e-9)


def test_rows_have_energy_scores_of_their_own():
    rng = np.random.RandomState(0)
    samples, y = rng.normal(size=(5, 7, 2)), rng.normal(size=(5, 2))
    alone = [energy_score(samples[[i]], y[[i]])[0] for i in range(5)]
    np.testing.assert_array_equal(energy_score(samples, y), alone)


def test_one_dimension_may_be_left_out_of_the_energy_score():
    rng = np.random.RandomState(0)
    samples, y = rng.normal(size=(5, 7, 1)), rng.normal(size=(5, 1))
    np.testing.assert_array_equal(
        energy_score(samples[..., 0], y[..., 0]), energy_score(samples, y)
    )
    assert energy_score(np.zeros((0, 2, 1)), np.zeros((0, 1))).shape == (0,)


def test_energy_score_refuses_shapes_that_do_not_fit():
    for shape in [(4,), (4, 1), (4, 1, 2), (4, 3, 2, 1)]:
        with refuses(
            f"samples must have shape (n, S, d_a) or (n, S) with S at least 2, got shape {shape}."
        ):
            energy_score(np.zeros(shape), np.zeros((4, 2)))
    with refuses("y must have shape (4, 2) for samples of shape (4, 3, 2), got shape (4,)."):
        energy_score(np.zeros((4, 3, 2)), np.zeros(4))
    with refuses("y must have shape (4,) for samples of shape (4, 3), got shape (3,)."):
        energy_score(np.zeros((4, 3)), np.zeros(3))


def test_energy_score_refuses_what_is_not_finite():
    with refuses("samples must be finite, got nan."):
        energy_score([[0.0, nan]], [0.0])
    with refuses("y must be finite, got -inf."):
        energy_score([[0.0, 1.0]], [-inf])


def assert_mean_within(values, truth, errors=4.0):
    """Expect a mean within so many of its standard errors."""
    assert abs(values.mean() - truth) < errors * values.std(ddof=1) / len(values) ** 0.5
