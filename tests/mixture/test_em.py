"""Maximum likelihood, and what every mixture of experts can be asked, against scipy and Bayes."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import skvdd
from skvdd import GaussianMoEPolicy, IMCPolicy
from skvdd.mixture.em import em_loss
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from tests.estimators import SMALL

SHARE, SLOPE, WIDTH = 0.75, 0.5, 0.1  # of the upper line, of both, and around either


def two_lines(seed, n):
    """Actions on one of two lines that rise with the state, three in four on the upper one."""
    rng = np.random.RandomState(seed)
    x = rng.uniform(-1, 1, size=n)
    side = np.where(rng.uniform(size=n) < SHARE, 1.0, -1.0)
    return x[:, None], side + SLOPE * x + WIDTH * rng.standard_normal(n)


def true_log_density(X, y):
    center = SLOPE * X[:, 0]
    return np.logaddexp(
        np.log(SHARE) + norm.logpdf(y, center + 1, WIDTH),
        np.log(1 - SHARE) + norm.logpdf(y, center - 1, WIDTH),
    )


@pytest.fixture(scope="module")
def on_lines():
    X, y = two_lines(0, 2000)
    return GaussianMoEPolicy(
        2,
        hidden_size=16,
        n_layers=1,
        max_iter=600,
        learning_rate=5e-3,
        state_noise=0.0,
        random_state=0,
    ).fit(X, y)


@pytest.fixture
def plane(two_ways):
    """A policy over two action dimensions, its experts correlated and different, and its data."""
    X, y = two_ways
    y = y @ np.array([[3.0, 1.0], [0.0, 0.2]]) + [5.0, -7.0]  # units unlike the standardised ones
    return GaussianMoEPolicy(3, window_size=2, **{**SMALL, "max_iter": 100}).fit(X, y), X, y


def scipy_joint(policy, X, y):
    """``log xi_z + log N_z(a)`` of every row and expert."""
    gating = policy.gating(X)
    means, covariances = policy.experts(X)
    return np.array(
        [
            [
                np.log(gating[i, z])
                + multivariate_normal.logpdf(y[i], means[i, z], covariances[i, z])
                for z in range(gating.shape[1])
            ]
            for i in range(len(X))
        ]
    )


# -- the objective --------------------------------------------------------------------------------


def random_parameters(seed, n=4, n_experts=3, d_a=2):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    chol = 0.3 * normal(n, n_experts, d_a, d_a).tril(-1)
    chol = chol + torch.diag_embed(0.5 + normal(n, n_experts, d_a).abs())
    leaves = (normal(n, n_experts), normal(n, n_experts, d_a), chol)
    return [leaf.requires_grad_() for leaf in leaves], normal(n, d_a)


@pytest.mark.parametrize("shape", [{}, {"n_experts": 1}, {"d_a": 1}])
def test_the_em_loss_has_the_gradient_of_the_negative_log_likelihood(shape):
    leaves, actions = random_parameters(0, **shape)
    logits, mean, chol = leaves
    mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
    likelihood = -gm.log_prob(mixture, actions[:, None]).mean()
    expected = torch.autograd.grad(likelihood, leaves, retain_graph=True)
    for gradient, value in zip(
        torch.autograd.grad(em_loss(mixture, actions).total, leaves), expected, strict=True
    ):
        torch.testing.assert_close(gradient, value, atol=1e-13, rtol=1e-10)


def test_the_em_loss_exceeds_the_negative_log_likelihood_by_the_entropy_of_responsibilities():
    (logits, mean, chol), actions = random_parameters(1)
    mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
    log_responsibility = gm.log_responsibilities(mixture, actions[:, None])[:, 0]
    entropy = -(log_responsibility.exp() * log_responsibility).sum(dim=1).mean()
    likelihood = -gm.log_prob(mixture, actions[:, None]).mean()
    torch.testing.assert_close(em_loss(mixture, actions).total, likelihood + entropy)


def test_the_two_halves_of_the_em_loss_teach_experts_and_gating_apart():
    (logits, mean, chol), actions = random_parameters(2)
    mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
    loss = em_loss(mixture, actions)
    assert torch.autograd.grad(loss.experts, logits, retain_graph=True, allow_unused=True) == (
        None,
    )
    assert torch.autograd.grad(loss.gating, (mean, chol), allow_unused=True) == (None, None)


# -- what is learnt -------------------------------------------------------------------------------


def test_maximum_likelihood_recovers_a_mixture_of_two_lines(on_lines):
    X, y = two_lines(1, 4000)
    divergence = np.mean(true_log_density(X, y) - on_lines.log_prob(X, y))
    assert -0.01 < divergence < 0.05  # nats; an upper line alone would miss by more than one


def test_the_experts_are_the_lines_in_raw_units(on_lines):
    X = np.linspace(-0.9, 0.9, 20)[:, None]
    means, covariances = on_lines.experts(X)
    order = np.argsort(means[:, :, 0], axis=1)
    lines = np.stack([SLOPE * X[:, 0] - 1, SLOPE * X[:, 0] + 1], axis=1)
    np.testing.assert_allclose(np.take_along_axis(means[:, :, 0], order, 1), lines, atol=0.06)
    np.testing.assert_allclose(np.sqrt(covariances[:, :, 0, 0]), WIDTH, atol=0.03)
    gating = np.take_along_axis(on_lines.gating(X), order, axis=1)
    np.testing.assert_allclose(gating[:, 1], SHARE, atol=0.08)


def test_the_history_names_both_halves_of_the_objective(on_lines):
    first, last = on_lines.history_[0], on_lines.history_[-1]
    assert {"complete_nll", "experts", "gating"} < set(last)
    assert last["complete_nll"] == pytest.approx(last["experts"] + last["gating"], abs=1e-4)
    assert last["complete_nll"] < first["complete_nll"]


# -- what a mixture can be asked ------------------------------------------------------------------


def test_gating_rows_are_probabilities(plane):
    policy, X, _ = plane
    gating = policy.gating(X)
    assert gating.shape == (60, 3)
    assert (gating > 0).all()
    np.testing.assert_allclose(gating.sum(axis=1), 1.0, rtol=0, atol=1e-14)


def test_the_covariances_are_symmetric_and_positive_definite(plane):
    policy, X, _ = plane
    means, covariances = policy.experts(X)
    assert means.shape == (60, 3, 2)
    assert covariances.shape == (60, 3, 2, 2)
    np.testing.assert_array_equal(covariances, covariances.swapaxes(2, 3))
    assert np.linalg.eigvalsh(covariances).min() > 0
    assert np.abs(covariances[..., 0, 1]).max() > 1e-3


def test_diagonal_covariances_are_diagonal(two_ways):
    X, y = two_ways
    policy = GaussianMoEPolicy(2, covariance="diag", window_size=2, **SMALL).fit(X, y)
    _, covariances = policy.experts(X)
    assert (covariances[..., 0, 1] == 0).all()
    assert np.ptp(covariances[..., 0, 0]) > 0


@pytest.mark.parametrize("Mixture", [GaussianMoEPolicy, IMCPolicy])
def test_no_expert_is_narrower_than_the_floor(Mixture, two_ways, tmp_path):
    X, y = two_ways
    y = np.column_stack([y[:, 0], np.ones(len(y))])  # the same to the digit: a spike, if it may be
    settings = {**SMALL, "max_iter": 300, "learning_rate": 0.02}

    def narrowest(policy):
        factors = np.linalg.cholesky(policy.experts(X)[1]) / policy.action_scaler_.scale_[:, None]
        return np.diagonal(factors, axis1=-2, axis2=-1).min()

    free, floored = (
        Mixture(2, window_size=2, scale_floor=floor, **settings).fit(X, y) for floor in (1e-3, 0.2)
    )
    assert narrowest(free) < 0.1
    floored.save(tmp_path / "policy.safetensors")
    for policy in (floored, skvdd.load(tmp_path / "policy.safetensors")):
        assert narrowest(policy) == pytest.approx(0.2, rel=0.1)
        assert narrowest(policy) >= 0.2 * (1 - 1e-6)  # weights of float32


def test_experts_scale_with_the_units_of_the_actions(two_ways):
    X, y = two_ways
    policy, scaled = (
        GaussianMoEPolicy(2, window_size=2, **SMALL).fit(X, actions)
        for actions in (y, y * [8.0, 0.5])
    )
    factor = np.array([8.0, 0.5])
    (means, covariances), (scaled_means, scaled_covariances) = policy.experts(X), scaled.experts(X)
    np.testing.assert_allclose(scaled_means, means * factor, rtol=1e-12)
    np.testing.assert_allclose(
        scaled_covariances, covariances * np.outer(factor, factor), rtol=1e-12
    )


def test_one_action_dimension_keeps_its_axis_in_the_experts(on_lines):
    means, covariances = on_lines.experts(np.zeros((3, 1)))
    assert means.shape == (3, 2, 1)
    assert covariances.shape == (3, 2, 1, 1)


def test_the_density_is_the_sum_over_experts_by_scipy(plane):
    policy, X, y = plane
    expected = logsumexp(scipy_joint(policy, X, y), axis=1)
    np.testing.assert_allclose(policy.log_prob(X, y), expected, rtol=1e-9)


def test_responsibilities_are_bayes_rule_by_scipy(plane):
    policy, X, y = plane
    joint = scipy_joint(policy, X, y)
    expected = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    responsibilities = policy.responsibilities(X, y)
    np.testing.assert_allclose(responsibilities, expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(responsibilities.sum(axis=1), 1.0, rtol=0, atol=1e-12)


def test_responsibilities_stay_exact_far_from_every_expert(plane):
    policy, X, y = plane
    far = policy.responsibilities(X, y + 1e6)
    np.testing.assert_allclose(far.sum(axis=1), 1.0, rtol=0, atol=1e-12)


def test_predict_is_the_mean_of_the_most_probable_expert(plane):
    policy, X, _ = plane
    means, _ = policy.experts(X)
    best = policy.gating(X).argmax(axis=1)
    assert len(np.unique(best)) > 1
    np.testing.assert_array_equal(policy.predict(X), means[np.arange(60), best])


def test_act_returns_the_mean_of_one_of_the_experts(plane):
    policy, X, _ = plane
    means, _ = policy.experts(X)
    hit = (policy.act(X, random_state=0)[:, None] == means).all(axis=2)
    np.testing.assert_array_equal(hit.sum(axis=1), 1)
    assert hit.any(axis=0).all()


N_DRAWS = 4000


def assert_frequencies(counted, gating):
    """Counts of independent draws lie within four standard deviations of their expectation."""
    error = np.abs(counted / N_DRAWS - gating)
    assert (error <= 4 * np.sqrt(gating * (1 - gating) / N_DRAWS)).all()


def test_act_chooses_experts_as_often_as_the_gating_says(plane):
    policy, X, _ = plane
    actions = policy.act(np.repeat(X[:1], N_DRAWS, axis=0), random_state=0)
    means, _ = policy.experts(X[:1])
    counted = (actions[:, None] == means).all(axis=2).sum(axis=0)
    assert counted.sum() == N_DRAWS
    assert_frequencies(counted, policy.gating(X[:1])[0])


def test_samples_come_from_experts_as_often_as_the_gating_says(on_lines):
    state = np.array([[0.3]])
    actions = on_lines.sample(state, n_samples=N_DRAWS, random_state=0)[0]
    # The lines are twenty standard deviations apart: the origin of a sample is beyond doubt.
    origin = on_lines.responsibilities(np.repeat(state, N_DRAWS, axis=0), actions)
    counted = (origin > 0.5).sum(axis=0)
    assert_frequencies(counted, on_lines.gating(state)[0])


def test_samples_have_the_moments_of_the_mixture(plane):
    policy, X, _ = plane
    samples = policy.sample(X[:1], n_samples=20_000, random_state=0)[0]
    gating = policy.gating(X[:1])[0]
    means, covariances = (values[0] for values in policy.experts(X[:1]))
    mean = gating @ means
    spread = means - mean
    covariance = np.tensordot(gating, covariances + spread[:, :, None] * spread[:, None], 1)
    error = np.abs(samples.mean(axis=0) - mean)
    assert (error < 4 * np.sqrt(np.diag(covariance) / 20_000)).all()
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_allclose(np.cov(samples.T) / scale, covariance / scale, atol=0.05)


# -- the start ------------------------------------------------------------------------------------


def test_experts_start_at_the_clusters_of_the_actions():
    rng = np.random.RandomState(0)
    center = np.array([[-20.0, 0.0], [0.0, 30.0], [20.0, 0.0]])
    y = np.concatenate([c + rng.standard_normal((40, 2)) for c in center])
    X = rng.standard_normal((120, 2))
    policy = GaussianMoEPolicy(3, **{**SMALL, "max_iter": 0}).fit(X, y)
    means, _ = policy.experts(X)
    order = np.argsort(means[0, :, 0])
    clusters = y.reshape(3, 40, 2).mean(axis=1)
    np.testing.assert_allclose(means[:, order], np.tile(clusters, (120, 1, 1)), atol=1e-4)
    np.testing.assert_allclose(policy.gating(X), 1 / 3, rtol=1e-6)


def test_there_may_be_more_experts_than_distinct_actions():
    X = np.random.RandomState(0).standard_normal((30, 2))
    y = np.tile([-1.0, 3.0], 15)  # two values: their scale is 2
    start = GaussianMoEPolicy(5, **{**SMALL, "max_iter": 0}).fit(X, y)
    means, covariances = start.experts(X)
    np.testing.assert_allclose(np.sort(means[0, :2, 0]), [-1.0, 3.0], atol=1e-6)
    assert len(np.unique(means[0])) == 5  # spare experts start beside the others, not on them
    assert np.abs(means[0] - [[-1.0, 3.0]]).min(axis=1).max() < 5 * 0.1 * 2
    np.testing.assert_allclose(np.sqrt(covariances), 0.1 * 2, rtol=1e-5)
    trained = GaussianMoEPolicy(5, **SMALL).fit(X, y)
    assert np.isfinite(trained.log_prob(X, y)).all()


def test_of_very_many_rows_a_share_is_enough_to_find_the_clusters():
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((2, 25_000, 1))
    policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 0}).fit(X, y)
    means, _ = policy.experts(X[:1])
    # Two clusters of a standard normal lie at its half-normal means.
    expected = np.array([-1, 1]) * np.sqrt(2 / np.pi)
    np.testing.assert_allclose(np.sort(means[0, :, 0]), expected, atol=0.03)
