"""Mixture algebra: against torch's and scipy's densities, and by the laws every density obeys."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from skvdd.nn.gaussian_mixture import (
    GaussianMixture,
    action_score,
    affine,
    component_log_prob,
    entropy,
    log_prob,
    log_responsibilities,
    rsample_experts,
    smooth,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=20)
SEEDS = st.integers(0, 2**31 - 1)
EXPERTS = st.integers(1, 4)
DIMENSIONS = st.integers(1, 4)


def uniform(low, high, shape, generator):
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def make_mixture(seed, n=3, n_experts=3, d_a=2):
    """Mixtures whose means lie in [-2, 2] and whose widths lie between about 0.3 and 1.6."""
    generator = torch.Generator().manual_seed(seed)
    lower = uniform(-0.5, 0.5, (n, n_experts, d_a, d_a), generator).tril(-1)
    diagonal = uniform(0.5, 1.5, (n, n_experts, d_a), generator)
    return GaussianMixture(
        torch.log_softmax(uniform(-2.0, 2.0, (n, n_experts), generator), dim=-1),
        uniform(-2.0, 2.0, (n, n_experts, d_a), generator),
        lower + torch.diag_embed(diagonal),
    )


def make_actions(seed, n=3, n_actions=5, d_a=2):
    generator = torch.Generator().manual_seed(seed + 1)
    return uniform(-4.0, 4.0, (n, n_actions, d_a), generator)


def reference(mixture):
    """The same mixtures in torch's own words."""
    experts = MultivariateNormal(mixture.mean, scale_tril=mixture.scale_tril)
    return MixtureSameFamily(Categorical(logits=mixture.log_gate), experts)


def covariance(mixture):
    return mixture.scale_tril @ mixture.scale_tril.mT


def assert_same(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# -- against other implementations ----------------------------------------------------------


@PROPERTY
@given(SEEDS, EXPERTS, DIMENSIONS)
def test_log_prob_is_that_of_torch(seed, n_experts, d_a):
    mixture = make_mixture(seed, n_experts=n_experts, d_a=d_a)
    actions = make_actions(seed, d_a=d_a)
    expected = reference(mixture).log_prob(actions.transpose(0, 1)).T
    assert_same(log_prob(mixture, actions), expected)


@PROPERTY
@given(SEEDS, DIMENSIONS)
def test_component_log_prob_is_that_of_scipy(seed, d_a):
    mixture, actions = make_mixture(seed, d_a=d_a), make_actions(seed, d_a=d_a)
    result = component_log_prob(mixture, actions).numpy()
    for row in range(3):
        for expert in range(3):
            normal = multivariate_normal(
                mixture.mean[row, expert].numpy(), covariance(mixture)[row, expert].numpy()
            )
            density = normal.logpdf(actions[row].numpy().reshape(-1, d_a))
            np.testing.assert_allclose(result[row, :, expert], density, rtol=1e-9)


@PROPERTY
@given(SEEDS, DIMENSIONS)
def test_entropy_is_that_of_scipy(seed, d_a):
    mixture = make_mixture(seed, d_a=d_a)
    expected = [
        [multivariate_normal(cov=expert.numpy()).entropy() for expert in row]
        for row in covariance(mixture)
    ]
    np.testing.assert_allclose(entropy(mixture).numpy(), expected, rtol=1e-10)


@PROPERTY
@given(SEEDS, EXPERTS, DIMENSIONS)
def test_action_score_is_the_gradient_of_log_prob(seed, n_experts, d_a):
    mixture = make_mixture(seed, n_experts=n_experts, d_a=d_a)
    actions = make_actions(seed, d_a=d_a).requires_grad_()
    (gradient,) = torch.autograd.grad(log_prob(mixture, actions).sum(), actions)
    assert_same(action_score(mixture, actions), gradient)


# -- laws of a density ----------------------------------------------------------------------


@PROPERTY
@given(SEEDS, EXPERTS)
def test_a_density_of_one_action_dimension_integrates_to_one(seed, n_experts):
    mixture = make_mixture(seed, n_experts=n_experts, d_a=1)
    grid = torch.linspace(-16.0, 16.0, 401, dtype=torch.float64)
    density = log_prob(mixture, grid[None, :, None].expand(3, -1, -1)).exp()
    assert_same(density.sum(dim=1) * (grid[1] - grid[0]), torch.ones(3, dtype=torch.float64))


@PROPERTY
@given(SEEDS, EXPERTS)
def test_a_density_of_two_action_dimensions_integrates_to_one(seed, n_experts):
    mixture = make_mixture(seed, n=1, n_experts=n_experts, d_a=2)
    axis = torch.linspace(-14.0, 14.0, 225, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    integral = log_prob(mixture, grid[None]).exp().sum() * (axis[1] - axis[0]) ** 2
    # Eight standard deviations of the widest expert lie within the grid.
    assert integral.item() == pytest.approx(1.0, abs=1e-8)


@PROPERTY
@given(SEEDS, EXPERTS, DIMENSIONS)
def test_responsibilities_are_bayes_rule_and_sum_to_one(seed, n_experts, d_a):
    mixture = make_mixture(seed, n_experts=n_experts, d_a=d_a)
    actions = make_actions(seed, d_a=d_a)
    responsibility = log_responsibilities(mixture, actions).exp()
    assert_same(responsibility.sum(dim=-1), torch.ones(3, 5, dtype=torch.float64))
    joint = mixture.log_gate[:, None].exp() * component_log_prob(mixture, actions).exp()
    assert_same(responsibility, joint / joint.sum(dim=-1, keepdim=True))


@PROPERTY
@given(SEEDS, st.permutations(range(4)))
def test_the_order_of_the_experts_does_not_matter(seed, order):
    mixture, actions = make_mixture(seed, n_experts=4), make_actions(seed)
    permuted = GaussianMixture(
        mixture.log_gate[:, order], mixture.mean[:, order], mixture.scale_tril[:, order]
    )
    assert_same(log_prob(permuted, actions), log_prob(mixture, actions))
    assert_same(action_score(permuted, actions), action_score(mixture, actions))
    assert_same(
        log_responsibilities(permuted, actions), log_responsibilities(mixture, actions)[..., order]
    )


@PROPERTY
@given(
    SEEDS,
    st.lists(st.floats(-100.0, 100.0), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3),
)
def test_other_units_change_the_density_by_the_jacobian_alone(seed, shift, scale):
    mixture, actions = make_mixture(seed, d_a=3), make_actions(seed, d_a=3)
    shift, scale = torch.tensor([shift, scale], dtype=torch.float64)
    moved, moved_actions = affine(mixture, shift, scale), actions * scale + shift
    # An offset of 100 costs a scale of 0.01 four digits, and the squared distance doubles that.
    log_jacobian = scale.log().sum()
    assert_same(
        log_prob(moved, moved_actions) + log_jacobian, log_prob(mixture, actions), tolerance=1e-9
    )
    assert_same(
        log_responsibilities(moved, moved_actions),
        log_responsibilities(mixture, actions),
        tolerance=1e-9,
    )
    assert_same(entropy(moved) - log_jacobian, entropy(mixture))


# -- smoothing and sampling -----------------------------------------------------------------


@PROPERTY
@given(SEEDS, DIMENSIONS, st.floats(0.0, 10.0))
def test_smoothing_adds_the_variance_of_the_noise(seed, d_a, level):
    mixture = make_mixture(seed, d_a=d_a)
    sigma = torch.tensor([0.0, level, 2.0 * level], dtype=torch.float64)
    smoothed = smooth(mixture, sigma)
    noise = sigma[:, None, None, None] ** 2 * torch.eye(d_a, dtype=torch.float64)
    assert_same(covariance(smoothed), covariance(mixture) + noise)
    assert torch.equal(smoothed.scale_tril, smoothed.scale_tril.tril())
    assert torch.equal(smoothed.mean, mixture.mean)
    assert torch.equal(smoothed.log_gate, mixture.log_gate)


def test_smoothing_is_the_convolution_with_a_gaussian():
    mixture, sigma = make_mixture(0, n=1, d_a=1), 0.7
    grid = torch.linspace(-16.0, 16.0, 801, dtype=torch.float64)
    actions = torch.linspace(-3.0, 3.0, 7, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((actions[:, None] - grid) / sigma) ** 2)
    kernel = kernel / (sigma * math.sqrt(2.0 * math.pi))
    density = log_prob(mixture, grid[None, :, None])[0].exp()
    smoothed = smooth(mixture, torch.tensor([sigma], dtype=torch.float64))
    assert_same(
        log_prob(smoothed, actions[None, :, None])[0].exp(),
        kernel @ density * (grid[1] - grid[0]),
    )


@PROPERTY
@given(SEEDS, DIMENSIONS)
def test_samples_of_the_experts_have_their_moments(seed, d_a):
    mixture = make_mixture(seed, d_a=d_a)
    # Points with exactly zero mean and unit covariance in place of random numbers.
    points = math.sqrt(d_a) * torch.eye(d_a, dtype=torch.float64)
    points = torch.cat([points, -points])
    samples = rsample_experts(mixture, points.expand(3, 3, -1, -1))
    assert samples.shape == (3, 3, 2 * d_a, d_a)
    assert_same(samples.mean(dim=2), mixture.mean)
    centered = samples - mixture.mean[:, :, None]
    assert_same(centered.mT @ centered / (2 * d_a), covariance(mixture))


def test_samples_of_the_experts_carry_gradients_into_means_and_factors():
    mixture = make_mixture(0, n=1, n_experts=1)
    mean, scale_tril = mixture.mean.requires_grad_(), mixture.scale_tril.requires_grad_()
    noise = torch.tensor([[[[0.5, -2.0]]]], dtype=torch.float64)
    rsample_experts(GaussianMixture(mixture.log_gate, mean, scale_tril), noise).sum().backward()
    assert mean.grad.tolist() == [[[1.0, 1.0]]]
    assert scale_tril.grad.tolist() == [[[[0.5, -2.0], [0.5, -2.0]]]]


# -- numerics -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@PROPERTY
@given(SEEDS, EXPERTS, DIMENSIONS)
def test_everything_stays_finite_ten_thousand_standard_deviations_away(dtype, seed, n_experts, d_a):
    mixture = make_mixture(seed, n_experts=n_experts, d_a=d_a).to(dtype)
    direction = make_actions(seed, d_a=d_a).to(dtype)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    actions = mixture.mean[:, :1] + 1e4 * direction @ mixture.scale_tril[:, 0].mT
    assert log_prob(mixture, actions).isfinite().all()
    assert action_score(mixture, actions).isfinite().all()
    responsibility = log_responsibilities(mixture, actions).exp()
    torch.testing.assert_close(
        responsibility.sum(dim=-1), torch.ones(3, 5, dtype=dtype), rtol=0, atol=1e-6
    )


def test_responsibilities_are_exact_where_every_density_vanishes():
    # Two unit Gaussians at 0 and 1: log r_1 - log r_0 = a - 1/2, whatever the densities are.
    mixture = GaussianMixture(
        torch.full((1, 2), math.log(0.5)),
        torch.tensor([[[0.0], [1.0]]]),
        torch.ones(1, 2, 1, 1),
    )
    actions = torch.tensor([[[-64.0], [64.0]]])
    assert log_prob(mixture, actions).exp().tolist() == [[0.0, 0.0]]
    assert_same(
        log_responsibilities(mixture, actions),
        torch.tensor([[[0.0, -64.5], [-63.5, 0.0]]]),
        tolerance=1e-5,
    )


@PROPERTY
@given(SEEDS, EXPERTS, DIMENSIONS)
def test_single_precision_is_close_to_double_precision(seed, n_experts, d_a):
    mixture = make_mixture(seed, n_experts=n_experts, d_a=d_a)
    actions = make_actions(seed, d_a=d_a)
    single, single_actions = mixture.to(torch.float32), actions.float()
    for function in (log_prob, log_responsibilities, action_score):
        result = function(single, single_actions)
        assert result.dtype == torch.float32
        torch.testing.assert_close(
            result.double(), function(mixture, actions), rtol=1e-4, atol=1e-4
        )


@PROPERTY
@given(SEEDS, EXPERTS, DIMENSIONS)
def test_a_row_alone_is_the_row_in_a_batch(seed, n_experts, d_a):
    mixture = make_mixture(seed, n=6, n_experts=n_experts, d_a=d_a)
    actions = make_actions(seed, n=6, d_a=d_a)
    for function in (component_log_prob, log_prob, log_responsibilities, action_score):
        alone = function(mixture[2:3], actions[2:3])
        assert_same(alone, function(mixture, actions)[2:3], tolerance=1e-12)


# -- the record -----------------------------------------------------------------------------


def test_rows_are_picked_by_slice_and_by_index():
    mixture = make_mixture(0)
    index = torch.tensor([2, 0])
    assert torch.equal(mixture[1:].mean, mixture.mean[1:])
    assert torch.equal(mixture[index].log_gate, mixture.log_gate[index])
    assert torch.equal(mixture[index].scale_tril, mixture.scale_tril[index])


def test_a_detached_mixture_is_equal_and_out_of_the_graph():
    mixture = make_mixture(0)
    mean = mixture.mean.requires_grad_()
    detached = GaussianMixture(mixture.log_gate, 2.0 * mean, mixture.scale_tril).detach()
    assert torch.equal(detached.mean, 2.0 * mean)
    assert not detached.mean.requires_grad
