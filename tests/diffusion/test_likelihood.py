"""Likelihoods by the probability flow, against densities in closed form."""

import math

import numpy as np
import pytest
import torch

from skvdd.diffusion.likelihood import (
    EXACT_DIMENSIONS,
    PROBES,
    _cubature,
    _Flow,
    flow_log_prob,
    likelihood_steps,
    probe_directions,
)
from skvdd.nn.gaussian_mixture import (
    GaussianMixture,
    action_score,
    log_prob,
    rsample_experts,
    smooth,
)

NOISE_MIN, NOISE_MAX = 0.02, 80.0

# Zero mean, as the Gaussian at the end of the flow supposes.
GAUSSIAN = GaussianMixture(
    torch.zeros(1, 1, dtype=torch.float64),
    torch.zeros(1, 1, 2, dtype=torch.float64),
    torch.tensor([[[[1.1, 0.0], [0.5, 0.6]]]], dtype=torch.float64),
)
TWO_MODES = GaussianMixture(
    torch.tensor([[0.4, 0.6]], dtype=torch.float64).log(),
    torch.tensor([[[-0.9, 0.3], [0.6, -0.2]]], dtype=torch.float64),
    torch.tensor([[[[0.3, 0.0], [0.2, 0.4]], [[0.4, 0.0], [-0.3, 0.3]]]], dtype=torch.float64),
)
ONE_DIMENSION = GaussianMixture(
    torch.tensor([[0.4, 0.6]], dtype=torch.float64).log(),
    torch.tensor([[[-0.9], [0.6]]], dtype=torch.float64),
    torch.tensor([[[[0.2]], [[0.3]]]], dtype=torch.float64),
)


def denoiser(mixture):
    """The exact denoiser of a mixture, by Tweedie's formula."""

    def denoise(actions, sigma):
        return actions + sigma**2 * action_score(smooth(mixture, sigma[None]), actions[None])[0]

    return denoise


def density(mixture, actions):
    """The closed form of what is asked for: the density at the lowest noise level."""
    level = torch.tensor([NOISE_MIN], dtype=torch.float64)
    return log_prob(smooth(mixture, level), actions[None])[0]


def points(d_a=2, width=1.5):
    axis = torch.linspace(-width, width, 7, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * d_a).view(-1, d_a)


def typical(mixture):
    """Every expert's center and the corners one and a half standard deviations around it."""
    corners = torch.tensor([0.0, -1.5, 1.5], dtype=torch.float64)
    corners = torch.cartesian_prod(corners, corners).expand(*mixture.mean.shape[:2], -1, -1)
    return rsample_experts(mixture, corners).flatten(0, 2)


def errors(mixture, actions, n_steps, noise_max=NOISE_MAX):
    value = flow_log_prob(denoiser(mixture), actions, NOISE_MIN, noise_max, n_steps)
    return (value - density(mixture, actions)).abs()


@pytest.mark.parametrize("mixture", [GAUSSIAN, TWO_MODES], ids=["gaussian", "mixture"])
def test_the_flow_gives_the_closed_form_of_the_density(mixture):
    assert errors(mixture, typical(mixture), n_steps=120).max() < 1e-3


def test_the_error_falls_with_the_number_of_steps():
    coarse, middle, fine = (errors(TWO_MODES, points(), n).max() for n in (12, 24, 48))
    assert fine < middle < coarse
    assert fine < coarse / 16


def test_the_steps_are_of_fourth_order():
    """Against a fine solution of the same flow, so that the end of the flow does not count."""
    # A mixture: the divergence of a Gaussian's flow is the same everywhere.
    denoise, actions = denoiser(TWO_MODES), typical(TWO_MODES)
    exact = flow_log_prob(denoise, actions, NOISE_MIN, NOISE_MAX, 250)
    coarse, fine = (
        (flow_log_prob(denoise, actions, NOISE_MIN, NOISE_MAX, n) - exact).abs().max().item()
        for n in (50, 100)
    )
    assert math.log2(coarse / fine) == pytest.approx(4.0, abs=0.5)


@pytest.mark.parametrize("noise_max", [5.0, 10.0, 20.0])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_gaussian_actions_leave_no_error_at_a_high_last_level(noise_max, shift):
    """Correlated, and not centered: in a given state actions are not, however standardized."""
    aside = GaussianMixture(GAUSSIAN.log_gate, GAUSSIAN.mean + shift, GAUSSIAN.scale_tril)
    # What is left is the cubature's: sixth powers of data variance over noise variance.
    assert errors(aside, typical(aside), 100, noise_max).max() < 1e-5


def test_standard_normal_actions_leave_no_error_at_any_highest_level():
    standard = GaussianMixture(
        torch.zeros(1, 1, dtype=torch.float64),
        torch.zeros(1, 1, 2, dtype=torch.float64),
        torch.eye(2, dtype=torch.float64)[None, None],
    )
    assert errors(standard, points(), n_steps=60, noise_max=1.0).max() < 1e-7


@pytest.mark.parametrize("noise_max", [1.0, 80.0])
def test_the_density_integrates_to_one(noise_max):
    grid = torch.linspace(-3.0, 3.0, 601, dtype=torch.float64)[:, None]
    value = flow_log_prob(denoiser(ONE_DIMENSION), grid, NOISE_MIN, noise_max, 60)
    assert (value.exp().sum() * 0.01).item() == pytest.approx(1.0, abs=1e-3)


def test_the_divergence_is_the_trace_of_the_jacobian():
    denoise, actions, sigma = denoiser(TWO_MODES), points(), 0.3
    flow = _Flow(denoise, torch.eye(2, dtype=torch.float64), 1.0)
    velocity, divergence = flow(actions, sigma)
    level = torch.tensor(sigma, dtype=torch.float64)
    torch.testing.assert_close(velocity, actions - denoise(actions, level))
    for row, expected in zip(actions, divergence, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda a: a - denoise(a[None], level)[0], row)
        torch.testing.assert_close(jacobian.trace(), expected)


def test_no_gradients_are_kept_and_none_need_be_on():
    with torch.no_grad():
        value = flow_log_prob(denoiser(TWO_MODES), points(), NOISE_MIN, 1.0, 2)
    assert not value.requires_grad
    assert torch.equal(value, flow_log_prob(denoiser(TWO_MODES), points(), NOISE_MIN, 1.0, 2))


def test_a_row_alone_is_the_row_in_a_batch():
    actions = points()
    whole = flow_log_prob(denoiser(TWO_MODES), actions, NOISE_MIN, NOISE_MAX, 20)
    alone = flow_log_prob(denoiser(TWO_MODES), actions[5:6], NOISE_MIN, NOISE_MAX, 20)
    torch.testing.assert_close(alone, whole[5:6])


def standardized(weights, means, scales):
    """A mixture of round modes, shifted and scaled to zero mean and unit variance."""
    weights, means = torch.tensor(weights).double(), torch.tensor(means).double()
    scales = torch.tensor(scales).double()
    center = (weights[:, None] * means).sum(dim=0)
    spread = (weights[:, None] * ((means - center) ** 2 + scales[:, None] ** 2)).sum(dim=0).sqrt()
    tril = torch.diag_embed(scales[:, None] / spread)
    return GaussianMixture(weights.log()[None], ((means - center) / spread)[None], tril[None])


RING = [[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)]
DATA = {
    "gaussian": standardized([1.0], [[0.3, -0.2]], [1.0]),
    "two modes": standardized([0.4, 0.6], [[-0.9, 0.3], [0.6, -0.2]], [0.3, 0.4]),
    "ring": standardized([1 / 8] * 8, RING, [0.1] * 8),
    "skewed": standardized([0.1, 0.9], [[-1.0], [1.0]], [0.05, 0.05]),
    "three dimensions": standardized([0.5, 0.5], [[0, 0, 1.0], [1, -1, 0.0]], [0.1, 0.2]),
}


def default_error(mixture, tolerance):
    """The error, at draws of the density itself, with the range and steps of a default policy."""
    low, high = 0.03, 5.0
    smoothed = smooth(mixture, torch.tensor([low], dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    shape = (*mixture.mean.shape[:2], 20, mixture.mean.shape[2])
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    actions = rsample_experts(smoothed, noise).flatten(0, 2)
    steps = likelihood_steps(low, high, tolerance)
    value = flow_log_prob(denoiser(mixture), actions, low, high, steps)
    return (value - log_prob(smoothed, actions[None])[0]).abs().max()


@pytest.mark.parametrize("mixture", DATA.values(), ids=DATA)
def test_the_default_tolerance_is_met(mixture):
    assert default_error(mixture, 1e-3) < 1e-3


@pytest.mark.parametrize("name", ["gaussian", "ring"])
def test_the_error_falls_with_the_tolerance(name):
    coarse, middle, fine = (default_error(DATA[name], t) for t in (1e-1, 1e-2, 1e-3))
    assert fine < middle < coarse


def test_the_density_integrates_to_one_in_two_dimensions():
    axis = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64)
    value = flow_log_prob(denoiser(TWO_MODES), torch.cartesian_prod(axis, axis), 0.1, 5.0, 40)
    assert (value.exp().sum() * 0.1**2).item() == pytest.approx(1.0, abs=1e-3)


def test_probes_give_the_divergence_where_their_products_average_to_the_identity():
    """Hutchinson's estimate is ``sum_ij J_ij E[v_i v_j]``: exact for a balanced set of signs."""
    balanced = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    exact = flow_log_prob(denoiser(TWO_MODES), points(), 0.1, 5.0, 6)
    estimate = flow_log_prob(denoiser(TWO_MODES), points(), 0.1, 5.0, 6, balanced)
    torch.testing.assert_close(estimate, exact)
    one_sided = flow_log_prob(denoiser(TWO_MODES), points(), 0.1, 5.0, 6, balanced[:1])
    assert (one_sided - exact).abs().max() > 1e-3


def test_directions_are_random_signs_above_so_many_dimensions():
    assert probe_directions(EXACT_DIMENSIONS, 0) is None
    probes = probe_directions(EXACT_DIMENSIONS + 1, 0)
    assert probes.shape == (PROBES, EXACT_DIMENSIONS + 1)
    assert probes.dtype == torch.float32
    assert set(probes.flatten().tolist()) == {-1.0, 1.0}
    # Five standard errors of the mean of so many signs.
    assert probes.mean().abs() < 5 / math.sqrt(probes.numel())
    assert torch.equal(probe_directions(EXACT_DIMENSIONS + 1, 0), probes)
    assert not torch.equal(probe_directions(EXACT_DIMENSIONS + 1, 1), probes)


@pytest.mark.parametrize("d_a", [1, 2, 5, 9])
def test_the_cubature_is_exact_up_to_degree_five(d_a):
    nodes, weights = zip(*_cubature(d_a), strict=True)
    nodes, weights = np.array(nodes), np.array(weights)
    assert len(nodes) == {1: 7, 2: 49}.get(d_a, 2 * d_a**2 + 1)
    moments = {(): 1, (0,): 0, (0, 0): 1, (0, 0, 0): 0, (0, 0, 0, 0): 3, (0, 0, 0, 0, 0): 0}
    if d_a > 1:
        moments |= {(0, 1): 0, (0, 0, 1, 1): 1, (0, 0, 0, 1): 0, (0, 1, 1): 0}
    for powers, expected in moments.items():
        value = weights @ nodes[:, list(powers)].prod(axis=1)
        assert value == pytest.approx(expected, abs=1e-12)
