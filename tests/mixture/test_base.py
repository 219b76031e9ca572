"""The queries of every mixture of experts, against scipy, Bayes and autograd; and its start."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import NotFittedError

import skvdd
from skvdd import GaussianMoEPolicy, IMCPolicy
from skvdd.nn import gaussian_mixture as gm
from tests.estimators import SMALL
from tests.mixture.toys import directions

mixtures = pytest.mark.parametrize("Mixture", [GaussianMoEPolicy, IMCPolicy])


@pytest.fixture(scope="module")
def plane():
    """A policy over two action dimensions, its experts correlated and different, and its data."""
    X, y = directions()
    y = y @ np.array([[3.0, 1.0], [0.0, 0.2]]) + [5.0, -7.0]  # units unlike the standardized ones
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


# -- queries ------------------------------------------------------------------


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


def test_diagonal_covariances_are_diagonal():
    X, y = directions()
    policy = GaussianMoEPolicy(2, covariance="diag", window_size=2, **SMALL).fit(X, y)
    _, covariances = policy.experts(X)
    assert (covariances[..., 0, 1] == 0).all()
    assert np.ptp(covariances[..., 0, 0]) > 0


@mixtures
def test_no_expert_is_narrower_than_the_floor(Mixture, tmp_path):
    X, y = directions()
    y = np.column_stack([y[:, 0], np.ones(len(y))])  # the same to the digit: a spike, if it may be
    settings = {**SMALL, "max_iter": 150, "learning_rate": 0.04}

    def narrowest(policy):
        _, scale = policy.network_.action_normalization.statistics
        factors = np.linalg.cholesky(policy.experts(X)[1]) / scale[:, None]
        return np.diagonal(factors, axis1=-2, axis2=-1).min()

    free, floored = (
        Mixture(2, window_size=2, scale_floor=floor, **settings).fit(X, y) for floor in (1e-3, 0.2)
    )
    assert narrowest(free) < 0.1
    floored.save(tmp_path / "policy.safetensors")
    for policy in (floored, skvdd.load(tmp_path / "policy.safetensors")):
        assert narrowest(policy) == pytest.approx(0.2, rel=0.1)
        assert narrowest(policy) >= 0.2 * (1 - 1e-6)  # weights of float32


def test_experts_scale_with_the_units_of_the_actions():
    X, y = directions()
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


# -- mixtures as tensors --------------------------------------------------------------------------


def raw_tensors(policy, X):
    """Return the mixtures of states, through the differentiable query."""
    return policy.mixture(torch.tensor(X, dtype=torch.float64))


@pytest.mark.parametrize("flat", [False, True], ids=["windows", "rows"])
def test_the_mixture_of_tensors_is_that_of_the_other_queries_in_raw_units(flat, plane):
    policy, X, y = plane
    mixture = raw_tensors(policy, X.reshape(60, 6) if flat else X)
    assert {part.dtype for part in vars(mixture).values()} == {torch.float64}
    gates, means, factors = (part.detach().numpy() for part in vars(mixture).values())
    expected_means, expected_covariances = policy.experts(X)
    # Batches of other sizes round otherwise: float32, in units of the spread of the actions.
    np.testing.assert_allclose(np.exp(gates), policy.gating(X), atol=1e-6)
    np.testing.assert_allclose(np.exp(gates).sum(axis=1), 1.0, rtol=0, atol=1e-14)
    np.testing.assert_allclose(means, expected_means, atol=1e-5)
    np.testing.assert_allclose(factors @ factors.swapaxes(2, 3), expected_covariances, atol=1e-5)
    found = gm.log_prob(mixture, torch.from_numpy(y)[:, None])[:, 0].detach()
    np.testing.assert_allclose(found, policy.log_prob(X, y), atol=1e-4)


class Double(torch.nn.Module):
    """A normalization that keeps float64, so that differences of a network can be taken."""

    def __init__(self, normalization):
        super().__init__()
        self.mean, self.scale = normalization.mean, normalization.scale

    def forward(self, raw):
        return (raw - self.mean) / self.scale


def in_double_precision(policy):
    """Return a copy of a policy whose network computes in float64."""
    policy = copy.deepcopy(policy)
    policy.network_.double()
    policy.network_.row_normalization = Double(policy.network_.row_normalization)
    return policy


@pytest.mark.parametrize("part", ["log_gate", "mean", "scale_tril"])
def test_gradients_in_the_states_are_those_of_finite_differences(part, plane):
    policy, X, _ = plane
    exact = in_double_precision(policy)
    states = torch.tensor(X[:3], requires_grad=True)
    assert torch.autograd.gradcheck(lambda states: getattr(exact.mixture(states), part), states)
    found, expected = (
        torch.autograd.grad(getattr(p.mixture(states), part).square().sum(), states)[0]
        for p in (policy, exact)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert expected.abs().max() > 1e-3


def test_gradients_reach_every_parameter_of_the_network(plane):
    policy, X, y = plane
    policy = copy.deepcopy(policy)
    loss = -gm.log_prob(raw_tensors(policy, X), torch.from_numpy(y)[:, None]).mean()
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in policy.network_.parameters())
    assert loss.item() == pytest.approx(-policy.score(X, y), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_other_types_are_taken(dtype, plane):
    policy, X, _ = plane
    states = torch.tensor(X, dtype=dtype)
    expected = policy.mixture(states.double())
    found = policy.mixture(states)
    assert found.mean.dtype == torch.float64
    assert torch.equal(found.mean, expected.mean)


def test_the_users_default_type_does_not_matter(plane):
    policy, X, _ = plane
    before = raw_tensors(policy, X)
    torch.set_default_dtype(torch.float64)
    try:
        after = raw_tensors(policy, X)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(vars(before).values(), vars(after).values(), strict=True):
        assert torch.equal(one, other)


def test_a_goal_is_the_end_of_a_row_of_tensors():
    X, y = directions()
    rows = np.column_stack([X.reshape(60, 6), 100 + y])
    policy = GaussianMoEPolicy(2, window_size=2, goal_dim=2, **SMALL).fit(rows, y)
    states = torch.tensor(rows, requires_grad=True)
    mixture = policy.mixture(states)
    np.testing.assert_allclose(mixture.mean.detach(), policy.experts(rows)[0], atol=1e-5)
    (gradient,) = torch.autograd.grad(mixture.mean.sum(), states)
    assert (gradient.abs().amax(dim=0) > 0).all()


def test_an_unfitted_policy_has_no_mixture():
    with pytest.raises(NotFittedError):
        GaussianMoEPolicy().mixture(torch.zeros(1, 2))


# -- chunks ---------------------------------------------------------------------------------------


@mixtures
def test_chunks_of_actions_come_back_as_they_were_given(Mixture, tmp_path):
    X, y = directions()
    chunks = np.stack([y, y + 1, 2 * y], axis=1)
    Mixture(2, window_size=2, **SMALL).fit(X, chunks).save(tmp_path / "policy.safetensors")
    policy = skvdd.load(tmp_path / "policy.safetensors")
    assert (policy.action_shape_, policy.horizon_) == ((3, 2), 3)
    assert policy.predict(X).shape == policy.act(X, random_state=0).shape == (60, 3, 2)
    assert policy.sample(X, 4, random_state=0).shape == (60, 4, 3, 2)
    # Inside, a chunk is one flat action, its steps one after the other.
    means, covariances = policy.experts(X)
    assert (means.shape, covariances.shape) == ((60, 2, 6), (60, 2, 6, 6))
    joint = scipy_joint(policy, X, chunks.reshape(60, 6))
    np.testing.assert_allclose(policy.log_prob(X, chunks), logsumexp(joint, axis=1), rtol=1e-6)
    best = means[np.arange(60), policy.gating(X).argmax(axis=1)]
    np.testing.assert_array_equal(policy.predict(X), best.reshape(60, 3, 2))
    responsibilities = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    np.testing.assert_allclose(policy.responsibilities(X, chunks), responsibilities, atol=1e-6)


@mixtures
def test_the_steps_of_a_chunk_share_the_normalization_of_their_dimensions(Mixture):
    X, y = directions()
    chunks = np.stack([y, y + 1, 2 * y], axis=1)
    policy = Mixture(2, window_size=2, **{**SMALL, "max_iter": 0}).fit(X, chunks)
    mean, scale = policy.network_.action_normalization.statistics
    columns = chunks.reshape(-1, 2)
    np.testing.assert_allclose(mean.reshape(3, 2), [columns.mean(axis=0)] * 3)
    np.testing.assert_allclose(scale.reshape(3, 2), [columns.std(axis=0)] * 3)


@mixtures
def test_a_chunk_of_one_action_is_that_action(Mixture):
    X, y = directions()
    plain, chunked = (
        Mixture(2, window_size=2, **SMALL).fit(X, actions) for actions in (y, y[:, None])
    )
    np.testing.assert_array_equal(chunked.log_prob(X, y[:, None]), plain.log_prob(X, y))
    np.testing.assert_array_equal(
        chunked.sample(X, 3, random_state=0)[:, :, 0], plain.sample(X, 3, random_state=0)
    )


# -- what was learned is what counts --------------------------------------------------------------


@mixtures
def test_parameters_set_after_fit_change_nothing(Mixture, tmp_path):
    X, y = directions()
    policy = Mixture(2, window_size=2, **SMALL).fit(X, y)
    before = policy.gating(X), *policy.experts(X), policy.sample(X, 3, random_state=0)
    policy.set_params(n_experts=5, covariance="diag", scale_floor=0.5, hidden_size=7)
    policy.save(tmp_path / "policy.safetensors")
    for other in (policy, skvdd.load(tmp_path / "policy.safetensors")):
        after = other.gating(X), *other.experts(X), other.sample(X, 3, random_state=0)
        np.testing.assert_equal(after, before)


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


@pytest.mark.parametrize("floor", [0.1, 0.3, 1.0])
def test_experts_can_grow_from_the_start_above_any_floor(floor):
    """Where a softplus is flat, no gradient is left: 1e-6 of it would take thousands of steps."""
    X, y = directions()
    policy = GaussianMoEPolicy(3, window_size=2, scale_floor=floor, **{**SMALL, "max_iter": 0}).fit(
        X, y
    )
    network = policy.network_.requires_grad_()
    factors = network(network.row_normalization(torch.tensor(X).flatten(1))).scale_tril
    diagonal = factors.diagonal(dim1=2, dim2=3)
    assert (diagonal > floor).all()
    (gradient,) = torch.autograd.grad(diagonal.sum() / 60, network.output.bias)
    slopes = gradient.view(3, -1)[:, 2:4]
    # 1 - exp(-x) at a softplus of x = 0.05, the least that an expert starts above its floor.
    assert slopes.min() > 0.9 * (1 - np.exp(-0.05))
