"""Numbers stay finite and right: against arithmetic of fifty digits, at every scale and size."""

import mpmath
import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from mpmath import mp
from sklearn.base import clone

import skvdd
from skvdd.distillation.vdd import expert_loss, gating_loss
from skvdd.mixture.em import em_loss
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from tests.estimators import ask, judgement, label, make_estimators

every_estimator = pytest.mark.parametrize("estimator", make_estimators(max_iter=10), ids=label)
DIGITS = 50


# -- the algebra, in as many digits as one likes ---------------------------------------------------


def random_mixture(seed, n_experts, d_a, scale=1.0, skew=0.3):
    """Return one mixture, float64; ``skew`` is the size of what lies below the diagonals."""
    rng = np.random.RandomState(seed)
    lower = np.tril(skew * rng.standard_normal((1, n_experts, d_a, d_a)), -1)
    diagonal = np.exp(rng.uniform(-1, 1, size=(1, n_experts, d_a)))
    scale_tril = scale * (lower + np.einsum("nki,ij->nkij", diagonal, np.eye(d_a)))
    mean = 3 * scale * rng.standard_normal((1, n_experts, d_a))
    log_gate = torch.log_softmax(torch.tensor(4 * rng.standard_normal((1, n_experts))), dim=1)
    return GaussianMixture(log_gate, torch.tensor(mean), torch.tensor(scale_tril))


def drawn_from(mixture, seed, reach=1.0):
    """Return an action (1, 1, d_a) that the first expert would take, or one far from it."""
    noise = np.random.RandomState(seed + 1).standard_normal(mixture.mean.shape[-1])
    expert = mixture.mean[0, 0] + mixture.scale_tril[0, 0] @ torch.tensor(reach * noise)
    return expert[None, None]


def exact(mixture, action):
    """Return log-density, responsibilities and score of an action, by mpmath."""
    with mp.workdps(DIGITS):
        n_experts, d_a = mixture.mean.shape[1:]
        log_joint, pulls = [], []
        for z in range(n_experts):
            tril = mixture.scale_tril[0, z].tolist()
            gap = [
                mp.mpf(a) - mp.mpf(m)
                for a, m in zip(action.flatten().tolist(), mixture.mean[0, z].tolist(), strict=True)
            ]
            white = forward(tril, gap)
            log_det = mp.fsum(mp.log(mp.mpf(tril[i][i])) for i in range(d_a))
            distance = mp.fsum(w * w for w in white)
            constant = log_det + d_a * mp.log(2 * mp.pi) / 2
            log_joint.append(mp.mpf(mixture.log_gate[0, z].item()) - distance / 2 - constant)
            pulls.append(backward(tril, white))
        top = max(log_joint)
        log_prob = top + mp.log(mp.fsum(mp.exp(value - top) for value in log_joint))
        weights = [mp.exp(value - log_prob) for value in log_joint]
        score = [
            -mp.fsum(w * pull[i] for w, pull in zip(weights, pulls, strict=True))
            for i in range(d_a)
        ]
        return float(log_prob), np.array(weights, float), np.array(score, float)


def forward(tril, right):
    """Solve ``L x = right``."""
    found = []
    for i, value in enumerate(right):
        found.append((value - mp.fdot(zip(tril[i][:i], found, strict=True))) / mp.mpf(tril[i][i]))
    return found


def backward(tril, right):
    """Solve ``L^T x = right``."""
    found = [mp.mpf(0)] * len(right)
    for i in reversed(range(len(right))):
        known = mp.fsum(mp.mpf(tril[j][i]) * found[j] for j in range(i + 1, len(right)))
        found[i] = (right[i] - known) / mp.mpf(tril[i][i])
    return found


SIZES = [(1, 1), (1, 64), (2, 3), (8, 8), (64, 1), (64, 2), (16, 16), (3, 64)]


@pytest.mark.parametrize(("n_experts", "d_a"), SIZES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_densities_and_scores_are_right_at_every_scale_and_size(n_experts, d_a, scale):
    skew = 0.3 / np.sqrt(d_a)
    mixture = random_mixture(n_experts + d_a, n_experts, d_a, scale, skew)
    action = drawn_from(mixture, d_a)
    log_prob, weights, score = exact(mixture, action)
    # Double precision has 16 digits; sums over 64 dimensions and solves cost a few of them.
    np.testing.assert_allclose(gm.log_prob(mixture, action).item(), log_prob, rtol=1e-11)
    found = gm.log_responsibilities(mixture, action)[0, 0].exp()
    np.testing.assert_allclose(found, weights, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(gm.action_score(mixture, action)[0, 0], score, rtol=1e-9)


def test_units_that_differ_by_twelve_orders_of_magnitude_do_no_harm():
    standard = random_mixture(0, 4, 3)
    units = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)
    mixture = gm.affine(standard, torch.tensor([1.0, -1e3, 1e9], dtype=torch.float64), units)
    action = drawn_from(mixture, 0)
    log_prob, weights, _ = exact(mixture, action)
    # An offset of 1e9 in units of 1e6, and of 1 in units of 1e-6, costs three and six digits.
    np.testing.assert_allclose(gm.log_prob(mixture, action).item(), log_prob, rtol=1e-9)
    found = gm.log_responsibilities(mixture, action)[0, 0].exp()
    np.testing.assert_allclose(found, weights, rtol=1e-8, atol=1e-300)


@pytest.mark.parametrize("thin", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("d_a", [2, 8])
def test_nearly_singular_covariances_cost_digits_but_nothing_else(thin, d_a):
    rng = np.random.RandomState(d_a)
    tril = np.tril(rng.standard_normal((1, 2, d_a, d_a)), -1) + np.eye(d_a)
    tril[..., -1, -1] = thin  # the last dimension nearly follows from the others
    mixture = GaussianMixture(
        torch.log(torch.tensor([[0.3, 0.7]], dtype=torch.float64)),
        torch.tensor(rng.standard_normal((1, 2, d_a))),
        torch.tensor(tril),
    )
    action = drawn_from(mixture, 0)
    log_prob, weights, _ = exact(mixture, action)
    # The action's own rounding, 1e-16, is magnified by 1 / thin, and so is everything else.
    tolerance = {"rtol": 1e-13 / thin}
    np.testing.assert_allclose(gm.log_prob(mixture, action).item(), log_prob, **tolerance)
    found = gm.log_responsibilities(mixture, action)[0, 0].exp()
    np.testing.assert_allclose(found, weights, atol=1e-300, **tolerance)


@pytest.mark.parametrize("reach", [1e3, 1e6, 1e12])
def test_responsibilities_are_right_where_no_density_is_left(reach):
    mixture = random_mixture(3, 4, 2)
    action = drawn_from(mixture, 3, reach)
    log_prob, weights, score = exact(mixture, action)
    np.testing.assert_allclose(gm.log_prob(mixture, action).item(), log_prob, rtol=1e-12)
    np.testing.assert_allclose(gm.action_score(mixture, action)[0, 0], score, rtol=1e-9)
    found = gm.log_responsibilities(mixture, action)[0, 0].exp()
    np.testing.assert_allclose(found, weights, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0, 1e6])
def test_a_smoothed_mixture_is_right_at_every_level_of_noise(sigma):
    mixture = random_mixture(1, 3, 4)
    smoothed = gm.smooth(mixture, torch.tensor([sigma], dtype=torch.float64))
    action = drawn_from(smoothed, 1)
    with mp.workdps(DIGITS):
        for z in range(3):
            tril = mp.matrix(mixture.scale_tril[0, z].tolist())
            covariance = tril * tril.T + mp.mpf(sigma) ** 2 * mp.eye(4)
            expected = np.array(mp.cholesky(covariance).tolist(), float)
            np.testing.assert_allclose(smoothed.scale_tril[0, z], expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(
        gm.log_prob(smoothed, action).item(), exact(smoothed, action)[0], rtol=1e-12
    )


# -- the objectives, in single precision as training has them --------------------------------------


def standardized(seed, n, n_experts, d_a, thin=1.0):
    rng = np.random.RandomState(seed)
    tril = np.tril(0.2 * rng.standard_normal((n, n_experts, d_a, d_a)) / np.sqrt(d_a), -1)
    widths = thin * np.exp(rng.uniform(-1, 1, size=(n, n_experts, d_a)))
    mixture = GaussianMixture(
        torch.log_softmax(torch.tensor(3 * rng.standard_normal((n, n_experts))), dim=1),
        torch.tensor(rng.standard_normal((n, n_experts, d_a))),
        torch.tensor(thin * tril + np.einsum("nki,ij->nkij", widths, np.eye(d_a))),
    )
    samples = mixture.mean[:, :, None] + torch.tensor(
        thin * rng.standard_normal((n, n_experts, 3, d_a))
    )
    return mixture, samples, torch.tensor(rng.standard_normal(samples.shape))


@pytest.mark.parametrize(("n_experts", "d_a"), [(1, 1), (1, 64), (64, 1), (64, 8), (8, 64)])
@pytest.mark.parametrize("thin", [1e-3, 1.0])  # from the floor of the networks' scales
def test_losses_in_single_precision_are_those_in_double(n_experts, d_a, thin):
    mixture, samples, scores = standardized(0, 5, n_experts, d_a, thin)
    single = mixture.to(torch.float32)
    actions = samples[:, 0, 0]

    def losses(mixture, cast):
        experts = expert_loss(mixture, cast(samples), cast(scores))
        em = em_loss(mixture, cast(actions))
        responsibilities = gm.log_responsibilities(mixture, cast(actions)[:, None])[:, 0]
        gating = gating_loss(mixture.log_gate, responsibilities)
        return np.array([float(v) for v in (experts.total, em.experts, em.gating, gating)])

    expected = losses(mixture, torch.Tensor.double)
    found = losses(single, torch.Tensor.float)
    assert np.isfinite(expected).all()
    # Seven digits, of which a width of 1e-3 at actions near one leaves four; each dimension adds.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * d_a)


def test_losses_stay_finite_a_million_standard_deviations_away():
    mixture, samples, scores = standardized(1, 4, 8, 3, 1e-3)
    mixture = mixture.to(torch.float32)
    far = 1e3 + samples.float()
    mean = mixture.mean.clone().requires_grad_()
    moved = GaussianMixture(mixture.log_gate, mean, mixture.scale_tril)
    total = em_loss(moved, far[:, 0, 0]).total + expert_loss(moved, far, scores.float()).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(mean.grad).all()


# -- whole policies --------------------------------------------------------------------------------


def make_data(n=30, d_a=2, seed=0):
    rng = np.random.RandomState(seed)
    states = rng.standard_normal((n, 2))
    return states, states @ rng.standard_normal((2, d_a)) + 0.1 * rng.standard_normal((n, d_a))


def assert_answers(policy, X, y):
    """Expect finite answers from everything that a policy can be asked."""
    for method in ("predict", "sample", "act", judgement(policy)):
        assert np.isfinite(ask(policy, method, X, y)).all(), method
    if hasattr(policy, "responsibilities"):
        np.testing.assert_allclose(policy.responsibilities(X, y).sum(axis=1), 1.0, rtol=1e-12)
        assert np.isfinite(policy.experts(X)[1]).all()


@every_estimator
@pytest.mark.parametrize(("of_states", "of_actions"), [(1e-6, 1e6), (1e6, 1e-6)])
def test_other_units_change_nothing_but_the_units(estimator, of_states, of_actions):
    X, y = make_data()
    policy = clone(estimator).fit(X, y)
    scaled = clone(estimator).fit(of_states * X, of_actions * y)
    # Powers of ten round the data in their last digit, and ten steps of training carry that on.
    close = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(
        scaled.predict(of_states * X) / of_actions, policy.predict(X), **close
    )
    found = ask(scaled, judgement(policy), of_states * X, of_actions * y)
    expected = ask(policy, judgement(policy), X, y)
    if hasattr(policy, "log_prob"):
        np.testing.assert_allclose(found + 2 * np.log(of_actions), expected, rtol=1e-3, atol=5e-3)
    else:
        np.testing.assert_allclose(found, expected, **close)


def test_the_density_of_a_policy_is_that_of_its_experts_to_nine_digits():
    X, y = make_data()
    units = np.array([1e-6, 1e6])
    policy = skvdd.GaussianMoEPolicy(3, hidden_size=8, max_iter=30, random_state=0)
    policy.fit(X, y * units)
    means, covariances = policy.experts(X[:3])
    gates, found = policy.gating(X[:3]), policy.log_prob(X[:3], y[:3] * units)
    with mp.workdps(DIGITS):
        for row in range(3):
            densities = []
            for z in range(3):
                covariance = mp.matrix(covariances[row, z].tolist())
                gap = mp.matrix((y[row] * units).tolist()) - mp.matrix(means[row, z].tolist())
                distance = (gap.T * mp.lu_solve(covariance, gap))[0]
                norm = mp.sqrt((2 * mp.pi) ** 2 * mp.det(covariance))
                densities.append(mp.mpf(gates[row, z]) * mp.exp(-distance / 2) / norm)
            expected = float(mpmath.log(mp.fsum(densities)))
            np.testing.assert_allclose(found[row], expected, rtol=1e-9)


@every_estimator
def test_one_row_is_enough(estimator):
    policy = clone(estimator).fit([[1.0, 2.0]], [[3.0, 4.0]])
    assert_answers(policy, np.array([[1.0, 2.0], [5.0, 6.0]]), np.array([[3.0, 4.0], [0.0, 0.0]]))


@every_estimator
def test_duplicated_rows_and_constant_columns_do_no_harm(estimator):
    X, y = make_data(6)
    X, y = np.repeat(X, 5, axis=0), np.repeat(y, 5, axis=0)
    X[:, 1] = y[:, 0] = 1e6
    policy = clone(estimator).fit(X, y)
    assert_answers(policy, X, y)
    # What is constant in the data stays there, within what ten steps of training have learned.
    assert np.abs(policy.predict(X)[:, 0] - 1e6).max() < 10


@every_estimator
def test_all_rows_may_be_the_same(estimator):
    X, y = np.full((20, 2), 7.0), np.full((20, 2), -3.0)
    assert_answers(clone(estimator).fit(X, y), X, y)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_actions_on_a_line_are_learned_without_a_singular_covariance(covariance):
    X, y = make_data(60, d_a=1)
    y = np.hstack([y, 3 * y, y - 5])  # of rank one
    policy = skvdd.GaussianMoEPolicy(
        4, covariance=covariance, hidden_size=16, max_iter=300, random_state=0
    ).fit(X, y)
    assert_answers(policy, X, y)
    assert np.linalg.eigvalsh(policy.experts(X)[1]).min() > 0


@pytest.mark.parametrize(("n_experts", "d_a"), [(1, 64), (64, 1), (64, 64)])
def test_many_experts_and_many_dimensions(n_experts, d_a):
    X, y = make_data(70, d_a)
    small = {"hidden_size": 8, "n_layers": 1, "max_iter": 2, "batch_size": 4, "random_state": 0}
    teacher = skvdd.DiffusionPolicy(**small, n_steps=3).fit(X, y)
    for policy in (
        skvdd.GaussianMoEPolicy(n_experts, **small).fit(X, y),
        skvdd.IMCPolicy(n_experts, round_iter=2, **small).fit(X, y),
        skvdd.VDDDistiller(n_experts=n_experts, init_iter=2, **small).fit(X, y, teacher=teacher),
    ):
        assert_answers(policy, X[:2], y[:2])
        covariances = policy.experts(X[:2])[1]
        widths = np.sqrt(np.diagonal(covariances, axis1=2, axis2=3))
        correlations = covariances / widths[..., None] / widths[..., None, :]
        np.testing.assert_allclose(correlations, correlations.transpose(0, 1, 3, 2), atol=1e-12)


# -- long runs, and the same bits ------------------------------------------------------------------


def test_a_thousand_iterations_leave_no_drift_and_no_growth():
    X, y = make_data(40)
    policy = skvdd.GaussianMoEPolicy(3, hidden_size=8, max_iter=1000, random_state=0).fit(X, y)
    losses = np.array([row["complete_nll"] for row in policy.history_])
    assert np.isfinite(losses).all()
    # At the end of the schedule the loss of the last tenth lies below every early one, and is calm.
    assert losses[-10:].max() < losses[:10].min()
    assert np.ptp(losses[-10:]) < 0.5


def test_a_query_has_the_same_bits_in_blocks_of_any_size():
    X, y = make_data(130)
    for estimator in make_estimators(max_iter=10):
        policy = estimator.fit(X, y)
        whole = policy.predict(X)
        for size in (1, 3, 16, 17, 21, 43, 63, 129):
            parts = [policy.predict(X[i : i + size]) for i in range(0, len(X), size)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def fitted_answers(estimator, X, y):
    return clone(estimator).fit(X, y).predict(X)


def assert_same_in_workers(backend, estimators):
    X, y = make_data()
    expected = [fitted_answers(estimator, X, y) for estimator in estimators]
    found = Parallel(n_jobs=2, backend=backend)(
        delayed(fitted_answers)(estimator, X, y) for estimator in estimators
    )
    for answers, alone in zip(found, expected, strict=True):
        np.testing.assert_array_equal(answers, alone)


@pytest.mark.slow
def test_fits_in_other_processes_have_the_same_bits():
    assert_same_in_workers("loky", make_estimators(max_iter=1))


def test_fits_in_threads_have_the_same_bits():
    assert_same_in_workers("threading", 6 * make_estimators(max_iter=1))
