"""The diffusion policy: it learns the closed form, in whatever units, and says what it refuses."""

import re

import numpy as np
import pytest
import torch

from skvdd import DiffusionPolicy

NOISE = 0.4  # standard deviation of the toy's actions around their mean, raw units
UNITS = np.array([1.0, 20.0])  # of the two action dimensions


def refused(message):
    """Expect a ValueError whose whole message is this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def mean(states):
    """The mean of the toy's actions, shape (n, 2)."""
    first, second = states[:, 0], states[:, 1]
    return UNITS * np.stack([1.0 + first, second - 0.5 * first], axis=1)


def make_data(n, seed):
    """Gaussian actions around a mean that depends on the state."""
    rng = np.random.RandomState(seed)
    states = rng.uniform(-1, 1, size=(n, 2))
    return states, mean(states) + UNITS * NOISE * rng.standard_normal((n, 2))


@pytest.fixture(scope="module")
def policy():
    """Fitted; tests must not change it."""
    policy = DiffusionPolicy(
        hidden_size=64,
        n_layers=1,
        max_iter=1200,
        batch_size=256,
        state_noise=0.0,
        ema_decay=0.99,
        noise_min=0.05,
        device="cpu",
        random_state=0,
    )
    return policy.fit(*make_data(4000, seed=0))


@pytest.fixture(scope="module")
def queries():
    return make_data(200, seed=1)


@pytest.fixture(scope="module")
def untrained():
    """Fitted without a single step; tests must not change it."""
    return DiffusionPolicy(max_iter=0, hidden_size=8, n_layers=1, random_state=0, n_steps=3).fit(
        *make_data(30, seed=0)
    )


def scale_of(policy):
    """The standard deviation of the actions, raw units."""
    return policy.network_.action_normalization.statistics[1]


def closed_form_denoiser(policy, states, actions, level):
    """E[a | a + sigma * scale * eps] of the toy, raw units."""
    variance, added = (UNITS * NOISE) ** 2, (level * scale_of(policy)) ** 2
    return mean(states) + variance / (variance + added) * (actions - mean(states))


# -- the closed form ------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.1, 0.3, 1.0, 3.0])
def test_the_denoiser_learns_the_closed_form_of_gaussian_actions(policy, queries, level):
    states, actions = queries
    scale = scale_of(policy)
    noisy = actions + level * scale * np.random.RandomState(2).standard_normal(actions.shape)
    exact = closed_form_denoiser(policy, states, noisy, level)
    error = (policy.denoise(states, noisy, level) - exact) / scale
    # Root mean square, in standardized actions, whose spread over the states is one.
    assert np.sqrt(np.mean(error**2)) < 0.1


def test_the_density_comes_near_the_closed_form(policy, queries):
    states, actions = queries
    variance = (UNITS * NOISE) ** 2 + (0.05 * scale_of(policy)) ** 2
    squared = (actions - mean(states)) ** 2 / variance
    exact = -0.5 * (squared + np.log(2 * np.pi * variance)).sum(axis=1)
    log_prob = policy.log_prob(states, actions)
    assert np.mean(np.abs(log_prob - exact)) < 0.2
    # No density is better on average than the true one; 200 actions tell that to 0.1 nats.
    assert abs(policy.score(states, actions) - exact.mean()) < 0.1


def test_samples_have_the_moments_of_the_actions(policy, queries):
    states = queries[0][:20]
    samples = policy.sample(states, n_samples=500, random_state=0)
    assert samples.shape == (20, 500, 2)
    # Means to five standard errors and the tolerance of the denoiser; deviations to 20 per cent.
    deviation = UNITS * NOISE
    error = np.abs(samples.mean(axis=1) - mean(states))
    assert (error < deviation * (5 / np.sqrt(500) + 0.25)).all()
    np.testing.assert_allclose(samples.std(axis=(1)).mean(axis=0), deviation, rtol=0.2)


def test_a_prediction_is_a_typical_action(policy, queries):
    states, _ = queries
    error = (policy.predict(states) - mean(states)) / (UNITS * NOISE)
    # Of eight draws, which are off by one deviation, it is one in a dense place.
    assert np.sqrt(np.mean(error**2)) < 1.0
    assert np.abs(error).max() < 2.0


# -- units ----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.1, 1.0, "rows"])
def test_the_score_in_raw_units_is_the_gap_over_the_variance_of_the_noise(policy, queries, level):
    states, actions = queries
    level = np.linspace(0.1, 4.0, len(states)) if level == "rows" else level
    gap = policy.denoise(states, actions, level) - actions
    variance = np.square(np.multiply.outer(level, scale_of(policy)))
    # Single precision inside, divided by a variance of 0.01 in standardized actions.
    np.testing.assert_allclose(
        policy.score_function(states, actions, level) * UNITS, gap / variance * UNITS, atol=2e-3
    )


def test_the_score_is_near_that_of_gaussian_actions(policy, queries):
    states, actions = queries
    added = (0.3 * scale_of(policy)) ** 2
    exact = -(actions - mean(states)) / ((UNITS * NOISE) ** 2 + added)
    error = (policy.score_function(states, actions, 0.3) - exact) * UNITS * NOISE
    assert np.sqrt(np.mean(error**2)) < 0.2


def test_one_level_for_each_row_is_those_levels_one_by_one(policy, queries):
    states, actions = queries[0][:20], queries[1][:20]
    levels = np.linspace(0.1, 4.0, 20)
    together = policy.denoise(states, actions, levels)
    alone = [policy.denoise(states[[i]], actions[[i]], levels[i])[0] for i in range(20)]
    np.testing.assert_array_equal(together, alone)


def test_the_columns_come_back_as_they_were_given():
    states, actions = make_data(30, seed=0)
    policy = DiffusionPolicy(max_iter=0, hidden_size=8, random_state=0).fit(states, actions[:, 0])
    for method in (policy.denoise, policy.score_function):
        assert method(states, actions[:, 0], 0.5).shape == (30,)


# -- sampling -------------------------------------------------------------------------------


def test_one_step_from_the_highest_level_is_the_denoiser_there(policy, queries):
    states = queries[0]
    noise = np.random.RandomState(7).standard_normal((200, 1, 1, 2))[:, 0, 0]
    center, scale = policy.network_.action_normalization.statistics
    start = center + scale * policy.noise_max * noise
    np.testing.assert_allclose(
        policy.sample(states, n_steps=1, random_state=7),
        policy.denoise(states, start, policy.noise_max),
        atol=1e-4,
    )


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("n_steps", [1, 5])
def test_steps_and_sampler_of_a_call_stand_in_for_the_parameters(untrained, sampler, n_steps):
    states = make_data(30, seed=0)[0]
    other = DiffusionPolicy(
        max_iter=0, hidden_size=8, n_layers=1, random_state=0, n_steps=n_steps, sampler=sampler
    ).fit(*make_data(30, seed=0))
    np.testing.assert_array_equal(
        untrained.sample(states, 2, random_state=3, n_steps=n_steps, sampler=sampler),
        other.sample(states, 2, random_state=3),
    )
    assert (untrained.n_steps, untrained.sampler) == (3, "auto")


def test_samplers_of_the_flow_agree_when_steps_are_many(policy, queries):
    euler, heun, dpmpp_2m = (
        policy.sample(queries[0], n_steps=200, sampler=sampler, random_state=0) / UNITS
        for sampler in ("euler", "heun", "dpmpp_2m")
    )
    np.testing.assert_allclose(euler, heun, atol=0.05)
    np.testing.assert_allclose(dpmpp_2m, heun, atol=0.01)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "linear"])
@pytest.mark.parametrize("noise_density", ["lognormal", "loglogistic"])
def test_every_schedule_and_density_can_be_chosen(schedule, noise_density):
    states, actions = make_data(30, seed=0)
    policy = DiffusionPolicy(
        max_iter=2, hidden_size=8, schedule=schedule, noise_density=noise_density, n_steps=3
    ).fit(states, actions)
    assert np.isfinite(policy.sample(states, random_state=0)).all()


def test_an_untrained_policy_shrinks_actions_toward_their_center(untrained):
    """The head starts at zero: D = a / (1 + sigma^2) in standardized actions."""
    states, actions = make_data(30, seed=0)
    center, _ = untrained.network_.action_normalization.statistics
    np.testing.assert_allclose(
        untrained.denoise(states, actions, 2.0) - center,
        (actions - center) / 5.0,
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_density_of_an_untrained_policy_is_standard_normal(untrained):
    """That denoiser is the exact one of N(0, 1), seen here at the lowest noise level."""
    states, actions = make_data(30, seed=0)
    center, scale = untrained.network_.action_normalization.statistics
    variance = 1.0 + untrained.noise_min**2
    standard = (actions - center) / scale
    exact = -0.5 * (standard**2 / variance + np.log(2 * np.pi * variance)) - np.log(scale)
    np.testing.assert_allclose(
        untrained.log_prob(states, actions), exact.sum(axis=1), rtol=0, atol=1e-4
    )


# -- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("noise_max", [0.5, 0.2])
def test_noise_bounds_out_of_order_are_refused(noise_max):
    policy = DiffusionPolicy(noise_min=0.5, noise_max=noise_max)
    with refused(f"noise_max must exceed noise_min, got noise_min=0.5 and noise_max={noise_max}."):
        policy.fit(*make_data(30, seed=0))
    assert not hasattr(policy, "network_")


@pytest.mark.parametrize("method", ["denoise", "score_function"])
@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (-0.1, "-0.1"),
        (0.0, "0.0"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        ([0.1, 0.2], "[0.1, 0.2]"),
        ([[0.1], [0.1], [0.1]], "[[0.1], [0.1], [0.1]]"),
        ([0.1, 0.2, -0.3], "[0.1, 0.2, -0.3]"),
    ],
)
def test_an_impossible_noise_level_is_refused(untrained, method, level, shown):
    states, actions = make_data(3, seed=0)
    with refused(
        f"noise_level must be one positive number or one for each of the 3 rows, got {shown}."
    ):
        getattr(untrained, method)(states, actions, level)


@pytest.mark.parametrize(("n_steps", "shown"), [(0, "0"), (-2, "-2"), (2.0, "2.0"), ("3", "'3'")])
def test_an_impossible_number_of_steps_is_refused(untrained, n_steps, shown):
    with refused(f"n_steps must be an integer of at least 1, got {shown}."):
        untrained.sample(make_data(3, seed=0)[0], n_steps=n_steps)


def test_an_unknown_sampler_is_refused(untrained):
    with refused(
        "sampler must be one of ['dpmpp_2m', 'euler', 'euler_ancestral', 'heun'], got 'rk4'."
    ):
        untrained.sample(make_data(3, seed=0)[0], sampler="rk4")


def test_no_samples_are_refused(untrained):
    with refused("n_samples must be None or an integer of at least 1, got 0."):
        untrained.sample(make_data(3, seed=0)[0], n_samples=0)


def test_integers_of_numpy_are_integers(untrained):
    states = make_data(3, seed=0)[0]
    draws = untrained.sample(states, np.int64(2), n_steps=np.int32(2), random_state=0)
    np.testing.assert_array_equal(draws, untrained.sample(states, 2, n_steps=2, random_state=0))


def test_queries_leave_the_network_without_gradients(untrained):
    states, actions = make_data(3, seed=0)
    untrained.log_prob(states, actions)
    untrained.denoise(states, actions, 0.1)
    assert all(p.grad is None for p in untrained.network_.parameters())
    assert not torch.is_inference_mode_enabled()
