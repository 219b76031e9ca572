"""Variance-preserving diffusion: published processes and samplers, and a policy trained on one."""

import math
import re

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skvdd import DiffusionPolicy, VDDDistiller, load
from skvdd.diffusion.noise import PROCESSES, process_density, process_schedule
from skvdd.nn.samplers import SAMPLERS

RANGES = [(0.03, 5.0), (0.1, 1.0), (0.002, 12.0)]
NOISE = 0.1  # standard deviation of the toy's actions around each of its two modes
COARSE = 1.0  # tolerance of a log-density that is compared with itself, or need only be finite


def make_data(n, seed):
    """Actions of one dimension at the state or at minus the state, which is about 1."""
    rng = np.random.RandomState(seed)
    states = rng.uniform(0.8, 1.2, size=(n, 1))
    side = np.sign(rng.standard_normal((n, 1)))
    return states, side * states + NOISE * rng.standard_normal((n, 1))


@pytest.fixture(scope="module")
def policy():
    """Fitted; tests must not change it."""
    policy = DiffusionPolicy(
        sde="vp", hidden_size=32, n_layers=1, max_iter=400, ema_decay=0.98, random_state=0
    )
    return policy.fit(*make_data(1000, 0))


def tiny(**parameters):
    settings = {"hidden_size": 8, "n_layers": 1, "max_iter": 5, "n_steps": 4, "random_state": 0}
    return DiffusionPolicy(sde="vp", **{**settings, **parameters})


def alpha_bar(process, times):
    """Return the share of the data's variance at some times, from the noise level."""
    return (1.0 / (1.0 + PROCESSES[process].sigma(times).square())).numpy()


# -- processes ------------------------------------------------------------------------------


def test_cosine_is_the_formula_of_nichol_and_dhariwal():
    times = np.linspace(0, 0.999, 50)
    shares = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    expected = shares / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bar("cosine", torch.from_numpy(times)), expected, rtol=1e-9)


@pytest.mark.parametrize("n", [4, 16, 100])
def test_vp_multiplies_to_the_product_of_the_published_steps(n):
    k = np.arange(1, n + 1)
    alphas = np.exp(-0.1 / n - 0.5 * (10 - 0.1) * (2 * k - 1) / n**2)
    times = torch.from_numpy(k / n)
    np.testing.assert_allclose(alpha_bar("vp", times), np.cumprod(alphas), rtol=1e-12)


def test_linear_is_close_to_the_thousand_steps_of_ddpm():
    products = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    # A thousand steps are no continuum: -ln(1 - beta) exceeds beta by beta^2 / 2, in all by 0.07.
    np.testing.assert_allclose(np.log(alpha_bar("linear", times)), np.log(products), atol=0.1)
    np.testing.assert_allclose(alpha_bar("linear", times), products, atol=2e-3)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("sigma", [0.002, 0.03, 1.0, 5.0, 12.0])
def test_the_time_of_a_level_is_where_it_is_reached(name, sigma):
    process = PROCESSES[name]
    time = process.time(sigma)
    assert 0 < time <= 1
    # Differences of nearly equal numbers leave about 1e-16 / sigma^2 of a low level.
    reached = process.sigma(torch.tensor(time, dtype=torch.float64)).item()
    assert reached == pytest.approx(sigma, rel=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("n_steps", [1, 2, 16])
def test_a_schedule_falls_from_the_highest_level_to_zero(name, low, high, n_steps):
    sigmas = process_schedule(PROCESSES[name], n_steps, low, high)
    assert sigmas.shape == (n_steps + 1,)
    assert sigmas.dtype == torch.float64
    assert (sigmas.diff() < 0).all()
    assert sigmas[0].item() == pytest.approx(high, rel=1e-9)
    assert sigmas[:-1].min() >= low
    assert sigmas[-1].item() == 0.0


@pytest.mark.parametrize("name", PROCESSES)
def test_a_schedule_is_equally_spaced_in_time(name):
    sigmas = process_schedule(PROCESSES[name], 8, 1e-6, 5.0)[:-1].tolist()
    times = [PROCESSES[name].time(sigma) for sigma in sigmas]
    np.testing.assert_allclose(times, np.arange(8, 0, -1) / 8 * times[0], rtol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_to_train_on_lie_within_the_bounds_and_reach_them(name, low, high, dtype):
    uniform = torch.linspace(0, 1, 1001, dtype=dtype)
    sigmas = process_density(PROCESSES[name], uniform, low, high)
    assert sigmas.dtype == dtype
    assert sigmas.min() >= low
    assert sigmas.max() <= high * (1 + torch.finfo(dtype).eps)
    # In single precision 1 + sigma^2 is rounded, which a level of 0.002 feels.
    assert sigmas[0].item() == pytest.approx(low, rel=0.1)
    assert sigmas[-1].item() == pytest.approx(high, rel=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_levels_to_train_on_are_uniform_in_time(name):
    process, uniform = PROCESSES[name], torch.linspace(0, 1, 11, dtype=torch.float64)
    sigmas = process_density(process, uniform, 0.03, 5.0)
    times = [process.time(sigma) for sigma in sigmas.tolist()]
    expected = np.linspace(process.time(0.03), process.time(5.0), 11)
    np.testing.assert_allclose(times, expected, rtol=1e-9)


# -- samplers -------------------------------------------------------------------------------


def predicted_noise(scaled, share):
    """Stand in for a network that predicts the noise in a scaled action, smooth and non-linear."""
    return torch.tanh(1.3 * scaled + 0.2) + 0.5 * math.sqrt(1 - share) * scaled


def clean_action(scaled, share):
    """Return the predicted clean action, clipped as the published samplers do."""
    noise = predicted_noise(scaled, share)
    return ((scaled - math.sqrt(1 - share) * noise) / math.sqrt(share)).clamp(-1.0, 1.0)


def ddpm(start, shares, noise):
    """Ho et al. (2020), algorithm 2 in the form of eq. 7: the posterior given the clean action."""
    scaled = start
    for t in range(len(shares) - 1, -1, -1):
        share, below = shares[t], shares[t - 1] if t > 0 else 1.0
        beta = 1 - share / below
        mean = math.sqrt(below) * beta / (1 - share) * clean_action(scaled, share)
        mean = mean + math.sqrt(1 - beta) * (1 - below) / (1 - share) * scaled
        beta_tilde = (1 - below) / (1 - share) * beta
        scaled = mean + (math.sqrt(beta_tilde) * noise[len(shares) - 1 - t] if t > 0 else 0.0)
    return scaled


def ddim(start, shares, noise):
    """Song et al. (2021), eq. 12 at eta 0, with the noise that fits the clipped clean action."""
    scaled = start
    for t in range(len(shares) - 1, -1, -1):
        share, below = shares[t], shares[t - 1] if t > 0 else 1.0
        clean = clean_action(scaled, share)
        direction = (scaled - math.sqrt(share) * clean) / math.sqrt(1 - share)
        scaled = math.sqrt(below) * clean + math.sqrt(1 - below) * direction
    return scaled


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("n_steps", [1, 2, 7, 16])
@pytest.mark.parametrize(
    ("sampler", "reference"),
    [("euler_ancestral", ddpm), ("euler", ddim)],
)
def test_a_sampler_is_the_published_loop_over_scaled_actions(process, n_steps, sampler, reference):
    sigmas = process_schedule(PROCESSES[process], n_steps, 1e-6, 5.0).tolist()
    shares = [1 / (1 + sigma**2) for sigma in sigmas[-2::-1]]
    generator = torch.Generator().manual_seed(0)
    start, *noise = torch.randn(n_steps, 50, 2, generator=generator, dtype=torch.float64)

    def denoise(x, sigma):
        share = 1 / (1 + sigma**2)
        return clean_action(math.sqrt(share) * x, share)

    ours = SAMPLERS[sampler](denoise, start / math.sqrt(shares[-1]), sigmas, noise)
    # Rounding in double precision, some steps and divisions by small levels long.
    torch.testing.assert_close(ours, reference(start, shares, noise), rtol=0, atol=1e-6)


# -- the policy -----------------------------------------------------------------------------


def test_the_score_is_that_of_the_scaled_action_by_the_chain_rule(policy):
    network = policy.network_
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(20, 3, 1, generator=generator)
    sigma = 0.03 + 4 * torch.rand(20, 3, generator=generator)
    context = network.context(torch.randn(20, 1, generator=generator))
    with torch.no_grad():
        scaled = x * (1 + sigma[..., None] ** 2).rsqrt()
        noise = network._output(context, scaled, sigma, None)
        score = network.score(context, x, sigma)
    alpha = (1 + sigma[..., None] ** 2).rsqrt()
    scaled_score = -noise / (1 - alpha**2).sqrt()  # of the density of alpha * x
    # Single precision: D - x cancels all but sigma of an x of order one, then over sigma squared.
    torch.testing.assert_close(score, alpha * scaled_score, rtol=1e-3, atol=2e-3)


def test_the_network_sees_the_scaled_action(policy):
    seen = []
    hook = policy.network_.input.register_forward_hook(lambda module, args, out: seen.extend(args))
    try:
        x, sigma = torch.full((1, 1, 1), 3.0), torch.full((1, 1), 2.0)
        policy.network_.denoise(policy.network_.context(torch.zeros(1, 1)), x, sigma)
    finally:
        hook.remove()
    torch.testing.assert_close(seen[0], x / math.sqrt(5))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("n_steps", [1, 5])
def test_samples_never_leave_the_range_of_the_data(sampler, n_steps):
    X, y = make_data(100, 0)
    policy = tiny(noise_max=8.0).fit(X, y)  # hardly trained: without clipping it would go astray
    samples = policy.sample(X, n_samples=20, random_state=0, sampler=sampler, n_steps=n_steps)
    slack = 1e-6 * np.abs(y).max()  # units are applied in single precision
    assert samples.min() >= y.min() - slack
    assert samples.max() <= y.max() + slack


@pytest.mark.parametrize("sampler", ["euler_ancestral", "euler"])
def test_samples_have_the_two_modes_of_the_data(policy, sampler):
    states = np.array([[0.8], [1.0], [1.2]])
    samples = policy.sample(states, n_samples=2000, random_state=0, sampler=sampler, n_steps=32)
    for state, row in zip(states[:, 0], samples[..., 0], strict=True):
        right = row > 0
        # Four hundred iterations on a thousand rows: odds to 0.15, places to half of the NOISE.
        assert right.mean() == pytest.approx(0.5, abs=0.15)
        assert np.median(row[right]) == pytest.approx(state, abs=0.08)
        assert np.median(row[~right]) == pytest.approx(-state, abs=0.08)
        assert np.mean(np.abs(np.abs(row) - state) < 4 * NOISE) > 0.9


def test_one_step_averages_the_modes(policy):
    """One step is ``D(x)`` at the highest level, close to the conditional mean, 0."""
    samples = policy.sample([[1.0]], n_samples=500, random_state=0, n_steps=1)
    assert np.abs(samples.mean()) < 0.15
    assert np.median(np.abs(samples)) < 0.5  # the modes are at -1 and 1


def test_the_density_integrates_to_one_and_is_about_that_of_the_data(policy):
    actions = np.linspace(-2.5, 2.5, 401)[:, None]
    density = np.exp(policy.log_prob(np.ones((401, 1)), actions))
    # What is left at the highest level is made to integrate to one by a cubature that is exact
    # for smooth networks; this one, hardly trained, misses by 0.03, and by 0.003 after 2000 steps.
    assert np.trapezoid(density, actions[:, 0]) == pytest.approx(1.0, abs=0.05)
    modes = [np.exp(-0.5 * ((actions[:, 0] - m) / NOISE) ** 2) for m in (-1, 1)]
    truth = 0.5 * sum(modes) / (NOISE * math.sqrt(2 * math.pi))
    overlap = np.trapezoid(np.minimum(density, truth), actions[:, 0])
    assert overlap > 0.75  # 1 if equal; a single Gaussian of the same moments has 0.24


@pytest.mark.parametrize("schedule", ["auto", *PROCESSES])
@pytest.mark.parametrize("architecture", ["context", "gpt"])
def test_every_schedule_fits(schedule, architecture):
    X, y = make_data(40, 0)
    policy = tiny(schedule=schedule, architecture=architecture).fit(X, y)
    assert np.isfinite(policy.sample(X, random_state=0)).all()
    assert np.isfinite(policy.predict(X)).all()
    assert np.isfinite(policy.log_prob(X, y, tolerance=COARSE)).all()


@pytest.mark.parametrize("density", ["lognormal", "loglogistic"])
def test_the_other_densities_of_levels_fit_too(density):
    X, y = make_data(40, 0)
    policy = tiny(noise_density=density).fit(X, y)
    assert np.isfinite(policy.predict(X)).all()


@pytest.mark.parametrize(
    ("sde", "schedule", "others"),
    [
        ("vp", "karras", ["auto", "cosine", "linear", "vp"]),
        ("vp", "exponential", ["auto", "cosine", "linear", "vp"]),
        ("ve", "cosine", ["auto", "karras", "exponential", "linear"]),
        ("ve", "vp", ["auto", "karras", "exponential", "linear"]),
    ],
)
def test_a_schedule_of_the_other_family_is_refused(sde, schedule, others):
    message = f"schedule must be one of {others} for sde={sde!r}, got {schedule!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tiny(schedule=schedule).set_params(sde=sde).fit(*make_data(20, 0))


def test_a_level_that_the_process_does_not_reach_is_refused_before_training():
    policy = tiny(schedule="vp", noise_max=12.5)
    message = "noise_max must be at most 12.45, where schedule='vp' ends, got 12.5."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        policy.fit(*make_data(20, 0))
    assert not hasattr(policy, "network_")
    clone(policy).set_params(noise_max=12.4).fit(*make_data(20, 0))


def test_a_saved_policy_draws_the_same(policy, tmp_path):
    policy.save(tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors")
    X, y = make_data(30, 1)
    for sampler in ("euler_ancestral", "euler"):
        ours, theirs = (p.sample(X, 4, random_state=0, sampler=sampler) for p in (policy, again))
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (p.log_prob(X, y, tolerance=COARSE) for p in (policy, again))
    np.testing.assert_array_equal(ours, theirs)


# -- distilled ------------------------------------------------------------------------------


def distiller(**parameters):
    settings = {"hidden_size": 8, "n_layers": 1, "max_iter": 5, "init_iter": 5, "random_state": 0}
    return VDDDistiller(n_experts=2, **{**settings, **parameters})


@pytest.mark.parametrize("with_actions", [True, False])
def test_it_can_be_distilled(policy, with_actions):
    X, y = make_data(50, 1)
    student = distiller().fit(X, y if with_actions else None, teacher=policy)
    assert student.predict(X).shape == (50, 1)
    assert np.isfinite(student.log_prob(X, y)).all()


def test_a_distiller_asks_at_noise_levels_relative_to_the_signal(policy, monkeypatch):
    """The bounds are of sigma over alpha, which exceed 1, the end of a preserved variance."""
    X, y = make_data(50, 1)
    seen = []
    original = type(policy.network_).score

    def score(self, context, actions, sigma):
        seen.append(sigma)
        return original(self, context, actions, sigma)

    monkeypatch.setattr(type(policy.network_), "score", score)
    distiller(noise_min=2.0, noise_max=4.0).fit(X, y, teacher=policy)
    levels = torch.cat([sigma.flatten() for sigma in seen])
    assert levels.min() >= 2.0 * (1 - 1e-6)
    assert levels.max() <= 4.0 * (1 + 1e-6)


def test_a_distiller_is_refused_a_level_outside_those_of_the_process(policy):
    X, y = make_data(50, 1)
    with pytest.raises(ValueError, match="noise_max"):
        distiller(noise_max=5.1).fit(X, y, teacher=policy)


def test_a_fit_that_continues_widens_the_range_of_the_data():
    rng = np.random.RandomState(0)
    X = rng.uniform(-1, 1, (200, 1))
    y = X + 0.1 * rng.standard_normal((200, 1))
    policy = DiffusionPolicy("vp", hidden_size=8, n_layers=1, max_iter=2, warm_start=True)
    before = policy.fit(X, y).network_.action_range.clone()
    after = policy.fit(X, y + 4).network_.action_range
    standard = policy.network_.action_normalization.standardize(y + 4)
    np.testing.assert_allclose(after.numpy()[1], standard.numpy().max(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(after[0].numpy(), before[0].numpy())
