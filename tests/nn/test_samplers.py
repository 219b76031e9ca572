"""Samplers: driven by denoisers in closed form, they follow flows in closed form.

A Gaussian N(m, C) has the denoiser m + C (C + sigma^2 I)^-1 (x - m), and its probability flow
carries x at the level sigma to m + (C + tau^2 I)^1/2 (C + sigma^2 I)^-1/2 (x - m) at tau. In one
dimension the flow of any distribution keeps every point's quantile.
"""

import math

import pytest
import torch

from skvdd.diffusion.noise import exponential, karras
from skvdd.nn.gaussian_mixture import GaussianMixture, action_score, smooth
from skvdd.nn.samplers import (
    SAMPLERS,
    STOCHASTIC,
    densest,
    draw_actions,
    euler_ancestral,
    n_noises,
)

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)
DETERMINISTIC = sorted(set(SAMPLERS) - STOCHASTIC)
ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2}


def gaussian_denoiser(x, sigma):
    return MEAN + (x - MEAN) @ torch.linalg.solve(COVARIANCE + sigma**2 * EYE, COVARIANCE)


def power(matrix, exponent):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def gaussian_flow(x, sigma, tau):
    matrix = power(COVARIANCE + tau**2 * EYE, 0.5) @ power(COVARIANCE + sigma**2 * EYE, -0.5)
    return MEAN + (x - MEAN) @ matrix.T


TWO_MODES = GaussianMixture(
    torch.tensor([[0.3, 0.7]], dtype=torch.float64).log(),
    torch.tensor([[[-1.0], [0.8]]], dtype=torch.float64),
    torch.tensor([[[[0.2]], [[0.3]]]], dtype=torch.float64),
)


def smoothed(sigma):
    return smooth(TWO_MODES, torch.tensor([sigma], dtype=torch.float64))


def mixture_denoiser(x, sigma):
    """Tweedie's formula, for x of shape (S, 1)."""
    return x + sigma**2 * action_score(smoothed(sigma), x[None])[0]


def quantile(x, sigma):
    """The distribution function of the noised mixture, for x of shape (S, 1)."""
    mixture = smoothed(sigma)
    standard = (x - mixture.mean[0, :, 0]) / mixture.scale_tril[0, :, 0, 0]
    return torch.special.ndtr(standard) @ mixture.log_gate[0].exp()


def starts(sigma, d_a=2, n=50):
    generator = torch.Generator().manual_seed(0)
    return sigma * torch.randn((n, d_a), generator=generator, dtype=torch.float64)


def walk(name, denoise, x, sigmas):
    return SAMPLERS[name](denoise, x, sigmas.tolist(), [])


# -- the flow of a Gaussian -----------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_sampler_converges_to_the_flow_of_a_gaussian(name):
    x = starts(10.0)
    exact = gaussian_flow(x, 10.0, 0.0)
    errors = [
        (walk(name, gaussian_denoiser, x, karras(n, 1e-3, 10.0)) - exact).abs().max().item()
        for n in (25, 100, 400)
    ]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < {1: 0.02, 2: 2e-4}[ORDERS[name]]


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_the_error_falls_with_the_order_of_the_sampler(name, order):
    x = starts(10.0)
    exact = gaussian_flow(x, 10.0, 0.05)

    def error(n_steps):  # without the last step to zero, which is of first order in every sampler
        sigmas = exponential(n_steps + 1, 0.05, 10.0)[:-1]
        return (walk(name, gaussian_denoiser, x, sigmas) - exact).abs().max().item()

    assert math.log2(error(100) / error(200)) == pytest.approx(order, abs=0.15)
    assert math.log2(error(200) / error(400)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_samplers_keep_the_quantiles_of_a_mixture(name, order):
    x = torch.linspace(-20.0, 20.0, 41, dtype=torch.float64)[:, None]
    exact = quantile(x, 10.0)

    def error(n_steps):
        sigmas = exponential(n_steps + 1, 0.02, 10.0)[:-1]
        return (quantile(walk(name, mixture_denoiser, x, sigmas), 0.02) - exact).abs().max().item()

    assert error(400) < {1: 0.02, 2: 5e-4}[order]
    assert math.log2(error(200) / error(400)) == pytest.approx(order, abs=0.3)


# -- what each sampler is -------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_gives_the_denoiser_at_the_highest_level(name):
    x = starts(3.0)
    torch.testing.assert_close(
        walk(name, gaussian_denoiser, x, karras(1, 0.1, 3.0)), gaussian_denoiser(x, 3.0)
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_gives_the_denoiser_at_the_lowest_level(name):
    calls = []

    def denoise(x, sigma):
        calls.append((x, sigma))
        return gaussian_denoiser(x, sigma)

    fresh = [torch.zeros(50, 2, dtype=torch.float64)] * 3
    result = SAMPLERS[name](denoise, starts(3.0), karras(4, 0.1, 3.0).tolist(), fresh)
    x, sigma = calls[-1]
    assert sigma == pytest.approx(0.1)
    torch.testing.assert_close(result, gaussian_denoiser(x, sigma))


@pytest.mark.parametrize(
    ("name", "evaluations"),
    {"euler": 5, "euler_ancestral": 5, "dpmpp_2m": 5, "heun": 9}.items(),
)
def test_a_sampler_asks_the_denoiser_as_often_as_it_says(name, evaluations):
    levels = []

    def denoise(x, sigma):
        levels.append(sigma)
        return gaussian_denoiser(x, sigma)

    fresh = [torch.zeros(50, 2, dtype=torch.float64)] * 4
    SAMPLERS[name](denoise, starts(3.0), karras(5, 0.1, 3.0).tolist(), fresh)
    assert len(levels) == evaluations
    assert min(levels) > 0


def test_euler_is_ddim():
    """Song et al. (2021) write the step as an interpolation between the action and its estimate."""
    sigmas = karras(7, 0.1, 3.0)
    x = expected = starts(3.0)
    for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        ratio = sigma_next / sigma
        expected = ratio * expected + (1 - ratio) * gaussian_denoiser(expected, sigma)
    torch.testing.assert_close(walk("euler", gaussian_denoiser, x, sigmas), expected)


def test_dpmpp_2m_takes_the_published_steps():
    """Algorithm 2 of Lu et al. (2022) in data prediction: alpha = 1, lambda = -ln sigma."""
    sigmas = karras(6, 0.1, 3.0).tolist()
    x = starts(3.0)
    lambdas = [-math.log(sigma) for sigma in sigmas[:-1]]
    estimates = [gaussian_denoiser(x, sigmas[0])]
    expected = sigmas[1] / sigmas[0] * x - math.expm1(lambdas[0] - lambdas[1]) * estimates[0]
    for i in range(2, 6):
        estimates.append(gaussian_denoiser(expected, sigmas[i - 1]))
        h = lambdas[i] - lambdas[i - 1]
        r = (lambdas[i - 1] - lambdas[i - 2]) / h
        combined = (1 + 1 / (2 * r)) * estimates[-1] - 1 / (2 * r) * estimates[-2]
        expected = sigmas[i] / sigmas[i - 1] * expected - math.expm1(-h) * combined
    expected = gaussian_denoiser(expected, sigmas[5])  # to zero noise, of first order
    result = walk("dpmpp_2m", gaussian_denoiser, x, karras(6, 0.1, 3.0))
    torch.testing.assert_close(result, expected)


# -- the stochastic sampler -----------------------------------------------------------------


def ancestral(denoise, sigmas, n, d_a):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((len(sigmas) - 1, n, d_a), generator=generator, dtype=torch.float64)
    return euler_ancestral(denoise, sigmas[0] * noise[0], sigmas.tolist(), noise[1:].unbind())


def test_the_ancestral_sampler_draws_from_a_gaussian():
    n = 20_000
    samples = ancestral(gaussian_denoiser, karras(100, 0.01, 20.0), n, 2)
    # Five standard errors, and two per cent of a deviation for the steps being finite.
    error = 5.0 / math.sqrt(n)
    deviations = COVARIANCE.diagonal().sqrt()
    assert ((samples.mean(dim=0) - MEAN).abs() < (error + 0.02) * deviations).all()
    largest = deviations[:, None] * deviations
    tolerance = (math.sqrt(2) * error + 0.04) * largest
    assert ((samples.T.cov() - COVARIANCE).abs() < tolerance).all()


def test_every_ancestral_step_has_the_moments_of_the_reverse_process():
    """One step from the exact marginal: mean and variance follow from two lines of algebra."""
    sigma, sigma_next = 2.0, 1.0
    # Of a^2 = C: the step multiplies the deviation by 1 + (down - sigma) sigma / (C + sigma^2) and
    # adds the variance up^2 = 1 * (4 - 1) / 4; down^2 = 1 - 3 / 4.
    up, down = math.sqrt(0.75), 0.5

    def denoise(x, sigma):
        return x / (1 + sigma**2)  # standard normal data

    x = torch.tensor([[1.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    result = euler_ancestral(denoise, x, [sigma, sigma_next], [one])
    assert result.item() == pytest.approx(1 + (down - sigma) * sigma / (1 + sigma**2) + up)


def test_the_ancestral_sampler_draws_from_a_mixture():
    n = 20_000
    samples = ancestral(mixture_denoiser, karras(100, 0.01, 20.0), n, 1)
    # Kolmogorov's statistic: 1.63 / sqrt(n) is its 1 % point; 0.015 for the steps being finite.
    share = quantile(samples, 0.0).sort().values
    empirical = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert (share - empirical).abs().max() < 1.63 / math.sqrt(n) + 0.015


def test_ancestral_noise_is_used_as_often_as_there_are_steps_above_zero():
    sigmas = karras(4, 0.1, 3.0).tolist()
    x, zero = starts(3.0), torch.zeros(50, 2, dtype=torch.float64)
    for step in range(3):
        fresh = [zero] * 3
        fresh[step] = torch.ones_like(zero)
        moved = euler_ancestral(gaussian_denoiser, x, sigmas, fresh)
        assert not torch.allclose(moved, euler_ancestral(gaussian_denoiser, x, sigmas, [zero] * 3))


# -- driving a model ------------------------------------------------------------------------


class ShiftedGaussian:
    """A policy N(s, 1): the context is the last state; it counts what it is asked."""

    def __init__(self):
        self.encoded = 0

    def context(self, states):
        self.encoded += 1
        return states[:, -1]

    def denoise(self, context, actions, sigma):
        assert sigma.shape == (len(actions), 1)
        center = context[:, None]
        return center + (actions - center) / (1 + sigma[..., None] ** 2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_states_are_encoded_once_for_all_steps_and_samples(name):
    model, n_steps = ShiftedGaussian(), 6
    generator = torch.Generator().manual_seed(0)
    states = torch.randn((3, 4, 2), generator=generator, dtype=torch.float64)
    noise = torch.randn((3, 5, n_steps, 2), generator=generator, dtype=torch.float64)
    sigmas = karras(n_steps, 0.1, 3.0).tolist()
    actions = draw_actions(model, states, noise, sigmas, name)
    assert model.encoded == 1
    assert actions.shape == (3, 5, 2)

    def denoise(x, sigma):
        return states[:, -1:] + (x - states[:, -1:]) / (1 + sigma**2)

    start, *fresh = noise.unbind(dim=2)
    torch.testing.assert_close(actions, SAMPLERS[name](denoise, 3.0 * start, sigmas, fresh))


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_as_many_actions_as_the_sampler_takes(name):
    """A deterministic sampler takes its start alone; a stochastic one leaves none over."""
    taken = []

    class Fresh(list):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    fresh = Fresh([torch.zeros(50, 2, dtype=torch.float64)] * 20)
    SAMPLERS[name](gaussian_denoiser, starts(3.0), karras(6, 0.1, 3.0).tolist(), fresh)
    assert len(set(taken)) + 1 == n_noises(name, 6)


def test_every_estimate_of_the_clean_action_is_clipped_to_the_bounds():
    model, states = ShiftedGaussian(), torch.full((3, 1, 2), 9.0, dtype=torch.float64)
    noise = torch.ones((3, 5, 1, 2), dtype=torch.float64)
    low, high = torch.tensor([[-1.0, -2.0], [3.0, 4.0]], dtype=torch.float64)
    sigmas = karras(4, 0.1, 3.0).tolist()
    clipped = draw_actions(model, states, noise, sigmas, "euler", bounds=(low, high))
    torch.testing.assert_close(clipped, high.expand(3, 5, 2))  # the mean of 9 lies beyond them


def test_the_start_has_the_scale_that_is_asked_for():
    model, states = ShiftedGaussian(), torch.zeros((1, 1, 2), dtype=torch.float64)
    noise = torch.ones((1, 1, 1, 2), dtype=torch.float64)
    asked = draw_actions(model, states, noise, [3.0, 0.0], "euler", start_scale=7.0)
    torch.testing.assert_close(asked, torch.full((1, 1, 2), 7.0 / 10.0, dtype=torch.float64))


# -- a typical action -----------------------------------------------------------------------


def test_the_densest_action_is_the_closest_to_its_two_nearest_neighbors():
    actions = torch.randn((20, 8, 3), generator=torch.Generator().manual_seed(0))
    gaps = (actions[:, :, None] - actions[:, None]).norm(dim=-1).sort(dim=2).values
    chosen = gaps[:, :, 1:3].sum(dim=2).argmin(dim=1)
    expected = torch.stack([row[i] for row, i in zip(actions, chosen, strict=True)])
    assert torch.equal(densest(actions), expected)


def test_the_densest_action_of_two_modes_lies_in_the_larger_one():
    actions = torch.tensor([[[-1.0], [-1.1], [-0.9], [1.0], [1.3], [-1.05], [0.7], [-0.95]]])
    assert densest(actions).item() < -0.8


def test_the_densest_action_is_never_the_odd_one_between_two_modes():
    """The medoid would be: nobody is nearer to all the others."""
    actions = torch.tensor([[[-1.0], [-1.1], [-0.9], [0.1], [0.9], [1.0], [1.1], [1.2]]])
    distance = (actions[0] - actions[0].T).abs().sum(dim=1)
    assert actions[0, distance.argmin()].item() == pytest.approx(0.1)
    assert densest(actions).abs().item() > 0.8


@pytest.mark.parametrize("n_draws", [1, 2, 3])
def test_of_few_actions_one_is_chosen(n_draws):
    actions = torch.randn(5, n_draws, 2, generator=torch.Generator().manual_seed(0))
    assert (actions == densest(actions)[:, None]).all(dim=2).any(dim=1).all()


def test_the_densest_action_of_no_rows_is_none():
    assert densest(torch.zeros(0, 8, 2)).shape == (0, 2)
