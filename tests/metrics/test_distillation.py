"""The distillation report."""

import re
from math import inf, isnan, log, nan, pi

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from skvdd import GaussianMoEPolicy
from skvdd.metrics import DistillationReport, KLEstimate, ShareEstimate, distillation_report
from tests.estimators import SMALL, small_teacher


def refuses(message):
    """Expect a ValueError whose whole message is this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


class Modes:
    """Equally frequent Gaussian modes around the last state's first column, actions (n, S, d_a)."""

    def __init__(self, *means, width=1.0, n_actions=1):
        self.means, self.width, self.n_actions = means, width, n_actions

    def sample(self, X, n_samples, *, random_state=None):
        rng = np.random.RandomState(random_state)
        offset = rng.choice(self.means, (len(X), n_samples, 1))
        noise = rng.normal(size=(len(X), n_samples, self.n_actions))
        return self.center(X)[:, None] + offset + self.width * noise

    def log_prob(self, X, y):
        distance = y - self.center(X)
        parts = [norm.logpdf(distance, mean, self.width).sum(axis=1) for mean in self.means]
        return np.logaddexp.reduce(parts, axis=0) - log(len(parts))

    @staticmethod
    def center(X):
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
        def center(X):
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
        return self.center(X)[:, None] + rng.uniform(size=(len(X), n_samples, 1))

    def log_prob(self, X, y):
        inside = np.abs(y - self.center(X) - 0.5)[:, 0] <= 0.5
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
