"""Consistency trajectories: their objective in closed form, their sampler, what they learn."""

import copy

import numpy as np
import pytest
import torch

from skvdd import ConsistencyTrajectoryDistiller
from skvdd.diffusion.noise import karras
from skvdd.distillation.paths import draw_jumps, jump_levels
from skvdd.distillation.trajectory import generate, jump, trajectory_loss
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


def grid(n_levels):
    return karras(n_levels, NOISE_MIN, NOISE_MAX, 7.0).flip(0)


def uniform(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def loss_of(student, target=PATH.guess, n_levels=18, solver_steps=2, n=2000, **options):
    path, s = draw_jumps(uniform(2, n, 1), grid(n_levels), solver_steps)
    noise = normal(*s.shape, 2, seed=1)
    actions = PATH.mean + PATH.variance.sqrt() * normal(*noise.shape)
    return trajectory_loss(student, target, PATH.denoise, actions, noise, path, s, **options)


# -- jumps ----------------------------------------------------------------------------------


def test_a_jump_is_a_share_of_the_noisy_action_and_a_share_of_the_guess():
    actions, t = normal(4, 5, 2), 1 + uniform(4, 5)
    s = 0.5 * t
    guess = jump(lambda actions, t, s: (t + 10 * s)[..., None] * actions, actions, t, s)
    torch.testing.assert_close(guess, 0.5 * actions + 0.5 * (6 * t)[..., None] * actions)


def test_a_jump_to_where_it_starts_is_the_identity_to_the_last_bit():
    actions, t = normal(4, 5, 2), 1 + uniform(4, 5)
    for level in (t, torch.zeros_like(t)):
        assert torch.equal(jump(lambda actions, t, s: 7 + actions, actions, level, level), actions)


def test_no_network_is_asked_at_level_zero_and_no_gradient_is_lost():
    def guess(actions, t, s):
        assert (t > 0).all()
        return actions * t.log()[..., None]

    actions = normal(1, 2, 2).requires_grad_()
    t = torch.tensor([[0.0, 2.0]]).double()
    jump(guess, actions, t, torch.zeros_like(t)).sum().backward()
    expected = torch.tensor([1.0, np.log(2.0)], dtype=torch.float64)[None, :, None].expand(1, 2, 2)
    torch.testing.assert_close(actions.grad, expected)


# -- the objective --------------------------------------------------------------------------


def test_the_exact_trajectories_have_no_loss_but_that_of_heuns_method():
    coarse, fine = (loss_of(PATH.guess, n_levels=n).consistency.mean() for n in (19, 73))
    assert coarse < 1e-3
    assert fine < coarse / 20  # limited by the step into level zero, which is Euler's


@pytest.mark.parametrize("solver_steps", [1, 4, 18])
def test_any_number_of_steps_of_the_solver_has_the_same_solution(solver_steps):
    exact = loss_of(PATH.guess, solver_steps=solver_steps).consistency.mean()
    assert exact < 1e-3
    assert (
        loss_of(lambda a, t, s: PATH.denoise(a, t), solver_steps=solver_steps).total > exact + 0.01
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda actions, t, s: PATH.denoise(actions, t),
        lambda actions, t, s: PATH.guess(actions, t, 0.5 * s),
        lambda actions, t, s: PATH.guess(actions, t, s) + 0.1,
    ],
    ids=["denoiser", "other end", "moved"],
)
def test_other_trajectories_have_a_loss(wrong):
    assert loss_of(wrong).consistency.mean() > 5 * loss_of(PATH.guess).consistency.mean()


def test_the_denoising_error_is_least_at_the_denoiser():
    """There it is the variance of the clean action given the noisy one, v t^2 / (v + t^2)."""
    path, _ = draw_jumps(uniform(2, 50_000, 1), grid(18), 2)
    loss = loss_of(PATH.guess, n=50_000)
    noise = path[0][..., None] ** 2
    expected = (PATH.variance * noise / (PATH.variance + noise)).sum(dim=-1)
    np.testing.assert_allclose(loss.denoising.mean(), expected.mean(), rtol=0.02)
    moved = loss_of(lambda actions, t, s: PATH.guess(actions, t, s) + 0.2, n=50_000)
    np.testing.assert_allclose(moved.denoising.mean(), expected.mean() + 0.08, rtol=0.02)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_total_is_the_weighted_sum_in_double_precision(weight):
    loss = loss_of(lambda actions, t, s: PATH.denoise(actions, t), dsm_weight=weight)
    assert loss.consistency.shape == loss.denoising.shape == (2000, 1)
    assert {part.dtype for part in vars(loss).values()} == {torch.float64}
    expected = loss.consistency.mean() + weight * loss.denoising.mean()
    torch.testing.assert_close(loss.total, expected)


def test_distances_may_be_robust():
    square, robust = (
        loss_of(lambda actions, t, s: PATH.denoise(actions, t), distance=distance).consistency
        for distance in ("l2", "pseudo_huber")
    )
    torch.testing.assert_close(robust, (square + 0.03**2).sqrt() - 0.03)


def test_every_term_has_a_gradient_and_neither_target_nor_teacher():
    own, its, teachers = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in "abc")
    path, s = draw_jumps(uniform(2, 50, 4), grid(5), 2)
    loss = trajectory_loss(
        lambda actions, t, s: own * PATH.denoise(actions, t),
        lambda actions, t, s: its.detach() * PATH.guess(actions, t, s),
        lambda actions, sigma: teachers * PATH.denoise(actions, sigma),
        normal(50, 4, 2),
        normal(50, 4, 2, seed=1),
        path,
        s,
    )
    for term in (loss.consistency, loss.denoising):
        (gradient,) = torch.autograd.grad(term.mean(), own, retain_graph=True)
        assert gradient.abs() > 1e-4
    loss.total.backward()
    assert own.grad.isfinite()
    assert its.grad is None
    assert teachers.grad is None


def test_the_gradient_passes_through_the_frozen_jump_to_level_zero():
    """Taken on to zero, an error at level s counts as much as the path has left of it."""
    t, s = torch.full((1, 1), 2.0).double(), torch.full((1, 1), 1.0).double()
    actions, noise = normal(1, 1, 2), normal(1, 1, 2, seed=1)

    def shifted(actions, t, s):
        return PATH.guess(actions, t, s) + shift

    shift = torch.full((2,), 0.1, dtype=torch.float64, requires_grad=True)
    path = torch.stack([t, s])
    loss = trajectory_loss(shifted, PATH.guess, PATH.denoise, actions, noise, path, s)
    (gradient,) = torch.autograd.grad(loss.consistency.sum(), shift)
    left = (PATH.variance / (PATH.variance + 1.0)).sqrt()  # of a distance at s, at level zero
    noisy = actions + 2.0 * noise
    exact = PATH.move(noisy, t, s) + 0.5 * shift
    slope = (noisy - PATH.denoise(noisy, t)) / 2.0
    euler = noisy - slope
    heun = noisy - 0.5 * (slope + (euler - PATH.denoise(euler, s)))
    expected = 2 * left**2 * 0.5 * (exact - heun)[0, 0]
    torch.testing.assert_close(gradient, expected.detach())


# -- sampling -------------------------------------------------------------------------------


def sample(guess, noise, start_scale=NOISE_MAX, gamma=0.0):
    network = Stub(guess, start_scale=start_scale)
    levels = jump_levels(network, noise.shape[2])
    return generate(network, torch.zeros(len(noise), 1), noise, levels=levels, gamma=gamma)


@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_exact_jumps_end_where_the_path_does_in_any_number(n_steps):
    noise = normal(3, 50, n_steps, 2)
    top, zero = torch.tensor([[NOISE_MAX]]).double(), torch.zeros(1, 1).double()
    expected = PATH.move(NOISE_MAX * noise[:, :, 0], top, zero)
    torch.testing.assert_close(sample(PATH.guess, noise), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_exact_jumps_draw_the_teachers_samples_at_any_gamma(gamma):
    path = Gaussian(torch.zeros(2).double(), PATH.variance)
    start_scale = (NOISE_MAX**2 + PATH.variance).sqrt()
    noise = normal(1, 100_000, 4, 2)
    actions = sample(path.guess, noise, start_scale, gamma=gamma)[0]
    np.testing.assert_allclose(actions.mean(dim=0), 0.0, atol=0.015)
    np.testing.assert_allclose(actions.std(dim=0), PATH.variance.sqrt(), rtol=0.01)
    other = sample(path.guess, torch.cat([noise[:, :, :1], -noise[:, :, 1:]], dim=2), start_scale)
    same = torch.allclose(other[0], actions, atol=1e-9)
    assert same == (gamma == 0)  # the noise after the start counts only where gamma says so


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
    "dsm_weight": 0.1,
    "state_noise": 0.0,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def of_two_modes():
    X = np.linspace(-1, 1, 300)[:, None]
    return ConsistencyTrajectoryDistiller(**LEARNING).fit(X, teacher=known_teacher())


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
    student = ConsistencyTrajectoryDistiller(**LEARNING).fit(X, teacher=teacher)
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


def test_the_fitted_gamma_decides_whether_noise_after_the_start_counts(of_two_modes):
    rows = torch.zeros(4, 1)
    noise = normal(4, 50, 3, 1).float()
    other = torch.cat([noise[:, :, :1], -noise[:, :, 1:]], dim=2)
    policy = copy.copy(of_two_modes)
    one, two = (policy._sample(rows.numpy(), part) for part in (noise, other))
    torch.testing.assert_close(one, two)
    policy.gamma_ = 0.5
    one, two = (policy._sample(rows.numpy(), part) for part in (noise, other))
    assert (one - two).abs().max() > 0.1


@pytest.mark.parametrize(
    "option", [{"solver_steps": 1}, {"dsm_weight": 0.0}, {"n_steps": 3, "gamma": 0.5}], ids=str
)
def test_every_option_changes_what_is_drawn(option):
    X = np.linspace(-1, 1, 40)[:, None]
    settings = {**LEARNING, "max_iter": 15}
    plain, other = (
        ConsistencyTrajectoryDistiller(**parameters).fit(X, teacher=known_teacher())
        for parameters in (settings, settings | option)
    )
    samples = [policy.sample(X, 5, random_state=0) for policy in (plain, other)]
    assert np.abs(samples[0] - samples[1]).max() > 1e-4


@pytest.mark.parametrize(("name", "value"), [("solver_steps", 0), ("dsm_weight", -1), ("gamma", 2)])
def test_invalid_parameters_are_named(name, value):
    message = f"^The '{name}' parameter of ConsistencyTrajectoryDistiller must"
    with pytest.raises(ValueError, match=message):
        ConsistencyTrajectoryDistiller(**{name: value}).fit(np.zeros((4, 1)), np.zeros(4))
