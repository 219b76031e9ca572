"""Noise levels: schedules by their formulas, densities by their inverse distribution functions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from skvdd.diffusion.noise import (
    NOISE_DENSITIES,
    PROCESSES,
    SCHEDULES,
    NoiseLevels,
    exponential,
    karras,
    linear,
    log_logistic,
    log_normal,
    log_uniform,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "d3il_w5_nogoal_lin_io.npz"
BOUNDS = [(0.03, 5.0), (0.1, 1.0), (0.002, 80.0)]


def uniform_grid(n=201):
    """The numbers (i + 1/2) / n, evenly spread over (0, 1)."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


# -- schedules ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 4, 8])
def test_schedules_are_those_of_the_published_code(name, n_steps):
    with np.load(GOLDEN) as golden:
        expected = golden[f"sigmas_{name}_{n_steps}"]
    # Single precision there, double precision here.
    np.testing.assert_allclose(SCHEDULES[name](n_steps, 0.1, 1.0).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 2, 3, 16])
def test_a_schedule_falls_from_the_highest_level_to_the_lowest_and_to_zero(
    name, n_steps, low, high
):
    sigmas = SCHEDULES[name](n_steps, low, high)
    assert sigmas.shape == (n_steps + 1,)
    assert sigmas.dtype == torch.float64
    assert (sigmas.diff() < 0).all()
    assert sigmas[0].item() == pytest.approx(high, rel=1e-12)
    assert sigmas[-1].item() == 0.0
    if n_steps > 1:
        assert sigmas[-2].item() == pytest.approx(low, rel=1e-12)


@pytest.mark.parametrize("rho", [1.0, 5.0, 7.0])
def test_karras_levels_are_given_by_equation_five(rho):
    expected = [
        (80.0 ** (1 / rho) + i / 9 * (0.002 ** (1 / rho) - 80.0 ** (1 / rho))) ** rho
        for i in range(10)
    ]
    np.testing.assert_allclose(karras(10, 0.002, 80.0, rho).numpy(), [*expected, 0.0], rtol=1e-12)


def test_karras_levels_with_rho_five_by_hand():
    # Fifth roots 1 and 2, halfway 1.5.
    np.testing.assert_allclose(karras(3, 1.0, 32.0).numpy(), [32.0, 1.5**5, 1.0, 0.0], rtol=1e-12)


def test_exponential_levels_have_a_constant_ratio():
    np.testing.assert_allclose(exponential(4, 0.01, 10.0).numpy(), [10, 1, 0.1, 0.01, 0])


def test_linear_levels_have_a_constant_difference():
    np.testing.assert_allclose(linear(4, 0.1, 1.0).numpy(), [1.0, 0.7, 0.4, 0.1, 0.0])


def test_karras_levels_approach_the_linear_and_the_exponential_ones():
    torch.testing.assert_close(karras(9, 0.1, 1.0, rho=1.0), linear(9, 0.1, 1.0))
    torch.testing.assert_close(
        karras(9, 0.1, 1.0, rho=1e7), exponential(9, 0.1, 1.0), rtol=1e-6, atol=0
    )


# -- densities ------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_log_normal_levels_have_scipys_truncated_distribution(low, high, sigma_data):
    mean, std = -1.2 + math.log(sigma_data), 1.2
    a, b = ((math.log(bound) - mean) / std for bound in (low, high))
    sigma = log_normal(uniform_grid(), low, high, sigma_data)
    share = stats.truncnorm.cdf(np.log(sigma.numpy()), a, b, loc=mean, scale=std)
    np.testing.assert_allclose(share, uniform_grid().numpy(), atol=1e-6)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_log_logistic_levels_have_scipys_truncated_distribution(low, high, sigma_data):
    whole = stats.fisk(c=1 / 0.5, scale=sigma_data)  # the log-logistic distribution
    sigma = log_logistic(uniform_grid(), low, high, sigma_data)
    share = (whole.cdf(sigma.numpy()) - whole.cdf(low)) / (whole.cdf(high) - whole.cdf(low))
    np.testing.assert_allclose(share, uniform_grid().numpy(), atol=1e-6)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_log_uniform_levels_have_scipys_distribution(low, high):
    expected = stats.loguniform(low, high).ppf(uniform_grid().numpy())
    np.testing.assert_allclose(log_uniform(uniform_grid(), low, high).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("low", "high"), [*BOUNDS, (1e-4, 1e4)])
@pytest.mark.parametrize("name", NOISE_DENSITIES)
def test_levels_stay_within_their_bounds_and_rise_with_the_number(name, low, high, dtype):
    ends = torch.tensor([0.0, 1e-7, 1 - 1e-7, 1.0], dtype=torch.float64)
    uniform = torch.cat([uniform_grid(), ends]).sort().values.to(dtype)
    sigma = NOISE_DENSITIES[name](uniform, low, high, 1.0)
    assert sigma.dtype == dtype
    assert sigma.isfinite().all()
    assert (sigma.diff() >= 0).all()
    assert low * (1 - 1e-6) <= sigma.min().item() <= low * 1.01
    assert high * 0.9 <= sigma.max().item() <= high * (1 + 1e-6)


@pytest.mark.parametrize("name", NOISE_DENSITIES)
def test_levels_come_in_the_shape_of_the_numbers(name):
    uniform = uniform_grid(6)
    flat = NOISE_DENSITIES[name](uniform, 0.1, 1.0, 1.0)
    assert torch.equal(NOISE_DENSITIES[name](uniform.view(2, 3), 0.1, 1.0, 1.0), flat.view(2, 3))


@pytest.mark.parametrize("name", NOISE_DENSITIES)
def test_levels_scale_with_the_data(name):
    density, uniform = NOISE_DENSITIES[name], uniform_grid()
    torch.testing.assert_close(
        density(uniform, 0.2, 6.0, 2.0), 2 * density(uniform, 0.1, 3.0, 1.0), rtol=1e-6, atol=0
    )


# -- the levels of a policy -----------------------------------------------------------------


def test_the_defaults_are_those_of_edm_and_beso():
    levels = NoiseLevels(noise_min=0.1, noise_max=2.0)
    uniform = uniform_grid()
    assert torch.equal(levels.of_training(uniform), log_normal(uniform, 0.1, 2.0, 1.0))
    assert levels.of_sampling(5) == karras(5, 0.1, 2.0).tolist()
    assert levels.start_scale == 2.0


def test_a_variance_preserving_process_gives_training_and_sampling_levels():
    levels = NoiseLevels("vp", 0.1, 2.0, schedule="linear")
    process = PROCESSES["linear"]
    assert levels.process == process
    ends = levels.of_training(torch.tensor([0.0, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(ends.numpy(), [0.1, 2.0], rtol=1e-9)
    sigmas = levels.of_sampling(4)
    assert (len(sigmas), sigmas[-1]) == (5, 0.0)
    assert sigmas[0] == pytest.approx(2.0)
    assert levels.start_scale == pytest.approx(math.sqrt(5))  # 1 / alpha at the highest level


@pytest.mark.parametrize("name", NOISE_DENSITIES)
@pytest.mark.parametrize("sde", ["ve", "vp"])
def test_a_density_can_be_chosen_for_either_process(name, sde):
    levels = NoiseLevels(sde, 0.1, 2.0, noise_density=name, sigma_data=0.5)
    expected = NOISE_DENSITIES[name](uniform_grid(), 0.1, 2.0, 0.5)
    assert torch.equal(levels.of_training(uniform_grid()), expected)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0)])
def test_a_range_that_is_none_is_refused(low, high):
    message = f"noise_max must exceed noise_min, got noise_min={low} and noise_max={high}"
    with pytest.raises(ValueError, match=message):
        NoiseLevels(noise_min=low, noise_max=high).check()


def test_a_schedule_must_be_one_of_the_process():
    NoiseLevels("ve", schedule="karras").check()
    NoiseLevels("vp", schedule="cosine").check()
    with pytest.raises(ValueError, match="schedule must be one of"):
        NoiseLevels("ve", schedule="cosine").check()
    with pytest.raises(ValueError, match="schedule must be one of"):
        NoiseLevels("vp", schedule="karras").check()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_default_device_of_the_user_does_not_matter(name):
    with torch.device("meta"):
        assert NoiseLevels(schedule=name).of_sampling(3) == SCHEDULES[name](3, 0.03, 5.0).tolist()
        NoiseLevels("vp").check()
        assert len(NoiseLevels("vp").of_sampling(3)) == 4
