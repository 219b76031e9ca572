"""Success intervals, task entropy, divergence, energy score and the distillation report."""

import re
from math import inf, isnan, log, nan, pi

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from skvdd import GaussianMoEPolicy
from skvdd.metrics import (
    DistillationReport,
    KLEstimate,
    ShareEstimate,
    distillation_report,
    energy_score,
    kl_divergence,
    task_entropy,
    wilson_interval,
)
from tests.estimators import SMALL, small_teacher


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


def test_contexts_without_a_success_can_be_left_out():
    behaviors, contexts = ["a", "b", None, None, "a"], [0, 0, 1, 1, 2]
    assert task_entropy(behaviors, 2, contexts) == pytest.approx(1.0 / 3.0)
    assert task_entropy(behaviors, 2, contexts, skip_unsolved=True) == pytest.approx(0.5)
    assert task_entropy([None, None], 2, [0, 1], skip_unsolved=True) == 0.0


def test_task_entropy_refuses_what_has_no_meaning():
    with refuses("base must be at least 2, the number of behaviors, got 1."):
        task_entropy(["a"], base=1)
    with refuses(
        "base must be the number of behaviors of the task, got base=2 and 3 distinct "
        "behaviors. Mark failed rollouts with None."
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


# ---------------------------------------------------------------------------------------
# distillation_report
# ---------------------------------------------------------------------------------------


class Modes:
    """Equally frequent Gaussian modes around the last state's first column, actions (n, S, d_a)."""

    def __init__(self, *means, width=1.0, n_actions=1):
        self.means, self.width, self.n_actions = means, width, n_actions

    def sample(self, X, n_samples, *, random_state=None):
        rng = np.random.RandomState(random_state)
        offset = rng.choice(self.means, (len(X), n_samples, 1))
        noise = rng.normal(size=(len(X), n_samples, self.n_actions))
        return self.centre(X)[:, None] + offset + self.width * noise

    def log_prob(self, X, y):
        distance = y - self.centre(X)
        parts = [norm.logpdf(distance, mean, self.width).sum(axis=1) for mean in self.means]
        return np.logaddexp.reduce(parts, axis=0) - log(len(parts))

    @staticmethod
    def centre(X):
        X = np.asarray(X)
        return X[:, :1] if X.ndim == 2 else X[:, -1, :1]


STATES = np.random.RandomState(0).normal(size=(200, 3))


def report(student, teacher, X=STATES, n_samples=100, random_state=0):
    return distillation_report(student, teacher, X, n_samples=n_samples, random_state=random_state)


def assert_within(estimate, truth, errors=4.0):
    assert abs(estimate.estimate - truth) < errors * estimate.standard_error


@pytest.mark.parametrize("n_actions", [1, 2])
def test_report_covers_the_closed_form_of_two_gaussians(n_actions):
    # KL(N(0, 1) || N(1, 2)) = log 2 + (1 + 1) / 8 - 1/2, the other way - log 2 + (4 + 1) / 2 - 1/2.
    teacher = Modes(0.0, n_actions=n_actions)
    found = report(Modes(1.0, width=2.0, n_actions=n_actions), teacher)
    assert_within(found.forward_kl, n_actions * (log(2.0) - 0.25))
    assert_within(found.reverse_kl, n_actions * (2.0 - log(2.0)))
    assert 0.0 < found.forward_kl.standard_error < 0.02


def test_report_covers_the_closed_form_of_shares():
    # Regions of one dimension: |a - mean| < 2.576 width.
    found = report(Modes(1.0, width=2.0), Modes(0.0), n_samples=2000)
    edge = norm.isf(0.005)
    inside = norm.cdf(1 + 2 * edge) - norm.cdf(1 - 2 * edge)
    assert found.coverage.estimate == pytest.approx(inside, abs=0.002)
    inside = norm.cdf(edge, 1.0, 2.0) - norm.cdf(-edge, 1.0, 2.0)
    assert found.precision.estimate == pytest.approx(inside, abs=0.01)


def test_report_of_a_dropped_mode():
    found = report(Modes(-5.0), Modes(-5.0, 5.0))
    assert_within(found.coverage, 0.495)
    assert_within(found.precision, 0.99)
    assert_within(found.reverse_kl, log(2.0))
    assert found.forward_kl.estimate > 20.0


def test_report_of_an_invented_mode():
    found = report(Modes(-5.0, 5.0), Modes(-5.0))
    assert_within(found.coverage, 0.99)
    assert_within(found.precision, 0.495)
    assert_within(found.forward_kl, log(2.0))
    assert found.reverse_kl.estimate > 20.0


@pytest.mark.parametrize(("n_samples", "share"), [(16, 16 / 17), (64, 64 / 65), (400, 0.99)])
def test_report_of_equal_policies(n_samples, share):
    found = report(Modes(-2.0, 2.0), Modes(-2.0, 2.0), n_samples=n_samples)
    assert found.forward_kl == found.reverse_kl == (0.0, 0.0)
    assert found.equal_share == pytest.approx(share)
    assert_within(found.coverage, share)
    assert_within(found.precision, share)


def test_errors_come_from_the_means_of_the_states():
    class Shifted(Modes):
        """Off by the state: its divergence differs from state to state, x^2 / 2."""

        @staticmethod
        def centre(X):
            return np.zeros((len(X), 1))

    X = np.repeat([[0.0], [2.0]], 10, axis=0)
    found = report(Shifted(0.0), Modes(0.0), X=X, n_samples=5000).forward_kl
    assert found.estimate == pytest.approx(1.0, abs=0.05)
    assert found.standard_error == pytest.approx(
        np.std([0.0, 2.0] * 10, ddof=1) / 20**0.5, abs=0.01
    )


def test_the_error_of_one_state_comes_from_its_samples():
    found = report(Modes(1.0), Modes(0.0), X=STATES[:1], n_samples=4000)
    # log pi - log q = 1/2 - a, of unit variance.
    assert_within(found.forward_kl, 0.5)
    assert found.forward_kl.standard_error == pytest.approx(4000**-0.5, rel=0.1)
    p = found.coverage.estimate
    assert found.coverage.standard_error == pytest.approx((p * (1 - p) / 4000) ** 0.5, rel=0.01)


def test_report_takes_windows_and_lists():
    windows = np.stack([STATES - 7.0, STATES], axis=1)
    student, teacher = Modes(1.0), Modes(0.0)
    assert report(student, teacher, windows) == report(student, teacher)
    assert report(student, teacher, STATES.tolist()) == report(student, teacher)


def test_report_of_real_policies_with_named_columns():
    X = pd.DataFrame(STATES[:40], columns=["x", "y", "z"])
    y = X["x"].to_numpy() + 0.1 * np.random.RandomState(1).normal(size=40)
    teacher = small_teacher().fit(X, y)
    student = GaussianMoEPolicy(2, **SMALL).fit(X, y)
    found = report(student, teacher, X.iloc[::10], n_samples=8)
    assert np.isfinite(found.forward_kl).all()
    assert np.isfinite(found.reverse_kl).all()
    assert 0.0 <= found.coverage.estimate <= 1.0
    assert (found.n_states, found.n_samples) == (4, 8)


def test_report_follows_the_seed():
    student, teacher = Modes(1.0), Modes(0.0)
    assert report(student, teacher) == report(student, teacher)
    assert report(student, teacher) != report(student, teacher, random_state=1)
    same = report(student, teacher, random_state=np.random.RandomState(0))
    assert same == report(student, teacher)
    report(student, teacher, random_state=None)


def test_student_and_teacher_do_not_share_their_noise():
    seeds = []

    class Spy(Modes):
        def sample(self, X, n_samples, *, random_state=None):
            seeds.append(random_state)
            return super().sample(X, n_samples, random_state=random_state)

    report(Spy(0.0), Spy(0.0))
    assert len(set(seeds)) == 2


class Uniform(Modes):
    """Uniform on the unit interval above the state: no density elsewhere."""

    def sample(self, X, n_samples, *, random_state=None):
        rng = np.random.RandomState(random_state)
        return self.centre(X)[:, None] + rng.uniform(size=(len(X), n_samples, 1))

    def log_prob(self, X, y):
        inside = np.abs(y - self.centre(X) - 0.5)[:, 0] <= 0.5
        return np.where(inside, 0.0, -inf)


def test_report_is_infinite_where_the_other_density_vanishes():
    found = report(Uniform(), Modes(0.0))
    assert found.forward_kl.estimate == inf
    assert isnan(found.forward_kl.standard_error)
    assert_within(found.reverse_kl, log(2.0 * pi) / 2.0 + 1.0 / 6.0)
    assert_within(found.coverage, norm.cdf(1.0) - 0.5)
    assert found.precision.estimate == 1.0


def test_report_prints_as_a_table():
    found = DistillationReport(
        forward_kl=KLEstimate(1.25, 0.5),
        reverse_kl=KLEstimate(inf, nan),
        coverage=ShareEstimate(0.5, 0.0625),
        precision=ShareEstimate(0.984, 0.001),
        n_states=20,
        n_samples=64,
    )
    assert str(found).splitlines() == [
        "Distillation over 20 states, 64 actions in each",
        "forward KL    1.250 +- 0.500  nats, E_teacher[log pi - log q]",
        "reverse KL      inf +- nan    nats, E_student[log q - log pi]",
        "coverage      0.500 +- 0.062  teacher's actions in the student's region, 0.985 if equal",
        "precision     0.984 +- 0.001  student's actions in the teacher's region, 0.985 if equal",
    ]


def test_report_refuses_what_is_no_density():
    class Sampler:
        def sample(self, X, n_samples, *, random_state=None):
            """Never called."""

    with pytest.raises(
        TypeError,
        match=r"^student must have the methods sample and log_prob, got Sampler without "
        r"log_prob\.$",
    ):
        report(Sampler(), Modes(0.0))
    with pytest.raises(
        TypeError,
        match=r"^teacher must have the methods sample and log_prob, got object without sample and "
        r"log_prob\.$",
    ):
        report(Modes(0.0), object())


@pytest.mark.parametrize("X", [np.zeros(3), np.zeros((0, 3)), np.zeros((1, 1, 1, 1))])
def test_report_refuses_states_of_another_shape(X):
    with refuses(f"X must have shape (n, d) or (n, T, d) with at least one state, got {X.shape}."):
        report(Modes(0.0), Modes(0.0), X)


@pytest.mark.parametrize("n_samples", [1, 2.0, None])
def test_report_refuses_a_wrong_number_of_samples(n_samples):
    with refuses(f"n_samples must be an integer of at least 2, got {n_samples!r}."):
        report(Modes(0.0), Modes(0.0), n_samples=n_samples)


class Broken(Modes):
    """Answers ``sample`` and ``log_prob`` by functions of what would have been right."""

    def __init__(self, sample=lambda actions: actions, log_prob=lambda density: density):
        super().__init__(0.0)
        self.break_sample, self.break_log_prob = sample, log_prob

    def sample(self, X, n_samples, *, random_state=None):
        return self.break_sample(super().sample(X, n_samples, random_state=random_state))

    def log_prob(self, X, y):
        return self.break_log_prob(super().log_prob(X, y))


def test_report_refuses_wrong_answers():
    X = STATES[:2]
    with refuses(
        "teacher.sample must return actions of shape (2, 5, d_a) or (2, 5), got (5, 2, 1)."
    ):
        report(Modes(0.0), Broken(sample=lambda a: a.swapaxes(0, 1)), X, 5)
    with refuses(
        "student.log_prob must return one number for each of the 10 rows, got shape (10, 1)."
    ):
        report(Broken(log_prob=lambda density: density[:, None]), Modes(0.0), X, 5)
    with refuses("student.log_prob must be finite at its own samples, got -inf."):
        report(Broken(log_prob=lambda density: density - inf), Modes(0.0), X, 5)
    for wrong in (nan, inf):
        with refuses("teacher.log_prob must not return nan or +inf, got it for student.sample."):
            report(Modes(0.0), Broken(log_prob=lambda density, w=wrong: density + w), X, 5)
    with refuses("teacher.sample must return finite actions, got nan or infinity."):
        report(Modes(0.0), Broken(sample=lambda actions: actions * nan), X, 5)
