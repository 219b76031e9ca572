"""Consistency distillation: its objective in closed form, its sampler, and what it learns."""

import numpy as np
import pytest
import torch

from skvdd import ConsistencyDistiller
from skvdd.diffusion.noise import karras
from skvdd.distillation.consistency import consistency_loss, generate
from skvdd.distillation.paths import jump_levels
from skvdd.randomness import row_noise
from tests.distillation.toys import (
    Gaussian,
    Stub,
    ends_of_paths,
    gaussian,
    known_teacher,
    normal,
    one_mode,
)

NOISE_MIN, NOISE_MAX = 0.03, 5.0
PATH = gaussian()


def truth(actions, sigma):
    """Where the path of each action ends: the consistency function."""
    return PATH.move(actions, sigma, torch.full_like(sigma, NOISE_MIN))


def grid(n_levels):
    """Neighboring levels of a path, (1, n_levels - 1) each."""
    levels = karras(n_levels, NOISE_MIN, NOISE_MAX, 7.0)[:-1]
    return levels[None, :-1], levels[None, 1:]


def loss_of(student, target=truth, n_levels=18, n=200, **options):
    sigma, sigma_next = (level.expand(n, -1) for level in grid(n_levels))
    noise = normal(*sigma.shape, 2, seed=1)
    actions = PATH.mean + PATH.variance.sqrt() * normal(*noise.shape)
    arguments = (student, target, PATH.denoise, actions, noise, sigma, sigma_next)
    return consistency_loss(*arguments, **options)


# -- the objective --------------------------------------------------------------------------


def test_the_exact_consistency_function_has_no_loss_but_that_of_heuns_method():
    coarse, fine = (loss_of(truth, n_levels=n).total for n in (18, 72))
    assert coarse < 1e-4
    # A step is 4.1 times shorter and its error of third order: 4800 times less loss.
    assert fine < coarse / 2000


@pytest.mark.parametrize(
    "wrong",
    [
        PATH.denoise,
        lambda actions, sigma: actions,
        lambda actions, sigma: truth(actions, 1.2 * sigma),
    ],
    ids=["denoiser", "identity", "other level"],
)
def test_another_function_has_a_loss(wrong):
    assert loss_of(wrong, wrong).total > 30 * loss_of(truth).total


def test_a_constant_agrees_with_itself():
    """What keeps a student from it is the boundary alone, which its network has by construction."""

    def constant(actions, sigma):
        return torch.zeros_like(actions)

    assert loss_of(constant, constant).total == 0


def test_the_total_is_the_mean_distance_in_double_precision():
    loss = loss_of(PATH.denoise)
    assert loss.distance.shape == (200, 17)
    assert loss.total.dtype == loss.distance.dtype == torch.float64
    torch.testing.assert_close(loss.total, loss.distance.mean())


@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
def test_distances_are_the_published_ones(distance):
    def shifted(actions, sigma):
        return truth(actions, sigma) + torch.tensor([3.0, -4.0])

    # 72 levels: what Heun's method adds is below the tolerance.
    expected = {"l2": 25.0, "pseudo_huber": (25.0 + 0.03**2) ** 0.5 - 0.03}[distance]
    loss = loss_of(shifted, n_levels=72, distance=distance)
    np.testing.assert_allclose(loss.distance, expected, atol=0.05)


def test_gradients_reach_the_student_and_neither_target_nor_teacher():
    own, its, teachers = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in "abc")
    sigma, sigma_next = (level.expand(20, -1) for level in grid(5))
    loss = consistency_loss(
        lambda actions, sigma: own * truth(actions, 1.1 * sigma),
        lambda actions, sigma: its * truth(actions, sigma),
        lambda actions, sigma: teachers * PATH.denoise(actions, sigma),
        normal(20, 4, 2),
        normal(20, 4, 2, seed=1),
        sigma,
        sigma_next,
    )
    loss.total.backward()
    assert own.grad.abs() > 1e-6
    assert its.grad is None
    assert teachers.grad is None


# -- sampling -------------------------------------------------------------------------------


def sample(network, noise):
    levels = jump_levels(network, noise.shape[2])
    return generate(network, torch.zeros(len(noise), 1), noise, levels=levels)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_the_exact_function_draws_the_teachers_samples_in_any_number_of_steps(n_steps):
    # Of a centered teacher, and from noise as wide as its noised actions: there both are exact.
    path = Gaussian(torch.zeros(2).double(), PATH.variance)
    network = Stub(
        lambda actions, sigma: path.move(actions, sigma, torch.full_like(sigma, NOISE_MIN)),
        start_scale=(NOISE_MAX**2 + PATH.variance).sqrt(),
    )
    noise = normal(1, 100_000, n_steps, 2)
    actions = sample(network, noise)[0]
    np.testing.assert_allclose(actions.mean(dim=0), 0.0, atol=0.015)
    expected = (PATH.variance + NOISE_MIN**2).sqrt()
    np.testing.assert_allclose(actions.std(dim=0), expected, rtol=0.01)


def test_every_step_but_the_first_adds_noise_above_the_lowest_level():
    asked = []

    def record(actions, sigma):
        asked.append((actions, sigma))
        return torch.zeros_like(actions)

    noise = normal(2, 4, 3, 2)
    network = Stub(record, start_scale=7.0)
    sample(network, noise)
    levels = [sigma.unique().item() for _, sigma in asked]
    assert levels == pytest.approx(karras(4, NOISE_MIN, NOISE_MAX, 7.0)[:3].tolist())
    torch.testing.assert_close(asked[0][0], 7.0 * noise[:, :, 0])
    for step in (1, 2):
        scale = (levels[step] ** 2 - NOISE_MIN**2) ** 0.5
        torch.testing.assert_close(asked[step][0], scale * noise[:, :, step])


# -- what is learned -------------------------------------------------------------------------

LEARNING = {
    "hidden_size": 32,
    "n_layers": 1,
    "max_iter": 500,
    "batch_size": 64,
    "learning_rate": 5e-3,
    "ema_decay": 0.95,
    "n_levels": 10,
    "target_decay": 0.8,
    "state_noise": 0.0,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def of_two_modes():
    X = np.linspace(-1, 1, 300)[:, None]
    return ConsistencyDistiller(**LEARNING).fit(X, teacher=known_teacher())


@pytest.mark.parametrize("n_steps", [1, 3])
def test_two_modes_are_recovered_from_a_score_alone(n_steps, of_two_modes):
    states = np.array([[-0.8], [0.0], [0.8]])
    noise = row_noise(0, 3, (1000, n_steps, 1))
    expected = ends_of_paths(known_teacher(), states, noise[:, :, 0])[..., 0] - states
    samples = of_two_modes.sample(states, 1000, random_state=0, n_steps=n_steps)[..., 0] - states
    np.testing.assert_allclose((samples > 0).mean(axis=1), (expected > 0).mean(axis=1), atol=0.08)
    np.testing.assert_allclose(np.abs(samples).mean(axis=1), 1.0, atol=0.1)
    assert np.mean(np.abs(np.abs(samples) - 1) > 0.7) < 0.06  # between the modes, or beyond
    if n_steps == 1:
        assert np.mean(np.sign(samples) == np.sign(expected)) > 0.97
        assert np.mean(np.abs(samples - expected)) < 0.12


def test_a_gaussian_is_recovered_from_a_score_alone_action_by_action_in_raw_units():
    X = np.random.RandomState(0).uniform(-1, 1, size=(300, 2))
    mean, scale = np.array([100.0, -3.0]), np.array([20.0, 0.01])
    teacher = known_teacher(one_mode, n_actions=2, action_mean=mean, action_scale=scale)
    student = ConsistencyDistiller(**LEARNING).fit(X, teacher=teacher)
    noise = row_noise(0, 20, (500, 1, 2))[:, :, 0]
    expected = ends_of_paths(teacher, X[:20], noise)
    samples = (student.sample(X[:20], 500, random_state=0) - mean) / scale
    np.testing.assert_allclose(samples.mean(axis=1), expected.mean(axis=1), atol=0.1)
    width = [part.std(axis=1).mean(axis=0) for part in (samples, expected)]
    np.testing.assert_allclose(*width, atol=0.06)
    np.testing.assert_allclose(width[1], [0.3, 0.8], rtol=0.05)  # the teacher's own
    assert np.abs(samples - expected).mean() < 0.1


def test_predict_is_an_action_of_one_of_the_modes(of_two_modes):
    states = np.linspace(-0.9, 0.9, 50)[:, None]
    predicted = of_two_modes.predict(states)
    np.testing.assert_array_equal(predicted, of_two_modes.predict(states))
    # The modes are a standard deviation of 0.2 wide; between them, at 0, hardly anybody acts.
    assert np.abs(np.abs(predicted - states) - 1).max() < 0.6


def test_at_the_lowest_level_a_student_is_the_identity(of_two_modes):
    network = of_two_modes.network_
    actions = normal(5, 3, 1).float()
    sigma = torch.full((5, 3), network.noise_min)
    assert torch.equal(network.conditioned(torch.zeros(5, 1))(actions, sigma), actions)
