"""Teachers made of scores, noise predictions and velocities, against closed forms."""

import math
import pickle
import re
import warnings
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from skvdd.diffusion import score_teacher
from skvdd.diffusion.noise import karras
from skvdd.diffusion.score_teacher import ScoreTeacher
from skvdd.nn.samplers import euler, euler_ancestral

MEAN, SCALE = np.array([1.5, -0.5]), np.array([0.8, 40.0])  # of raw actions
UNITS = {"n_actions": 2, "action_mean": MEAN, "action_scale": SCALE}

GATE = torch.tensor([0.3, 0.7], dtype=torch.float64)
OFFSETS = torch.tensor([[-0.8, 0.3], [0.9, -0.2]], dtype=torch.float64)
TRIL = torch.tensor([[[0.3, 0.0], [0.1, 0.2]], [[0.2, 0.0], [-0.1, 0.4]]], dtype=torch.float64)


def exactly(message):
    return f"^{re.escape(message)}$"


def exact_score(states, x, sigma):
    """The score of two noised experts around the last state; x (N, 2), sigma (N,)."""
    with torch.enable_grad():
        x = x.detach().double().requires_grad_()
        noise = sigma.double()[:, None, None, None].square() * torch.eye(2, dtype=torch.float64)
        experts = MultivariateNormal(
            OFFSETS + 0.2 * states[:, -1, :1, None].double(), TRIL @ TRIL.mT + noise
        )
        log_prob = MixtureSameFamily(Categorical(GATE.expand(len(x), 2)), experts).log_prob(x)
        return torch.autograd.grad(log_prob.sum(), x)[0]


def score(states, actions, sigma):
    """What a user's function answers, (n, S, 2)."""
    n_samples = actions.shape[1]
    rows = [part.repeat_interleave(n_samples, dim=0) for part in (states, sigma[:, 0])]
    exact = exact_score(rows[0], actions.flatten(0, 1), rows[1])
    return exact.reshape(actions.shape).to(actions.dtype)


def teacher_of(function=score, **changes):
    return ScoreTeacher(function, **{**UNITS, "noise_min": 0.03, "noise_max": 5.0, **changes})


def linear_schedule(n=1000):
    return np.cumprod(1.0 - np.linspace(1e-4, 0.02, n) * (1000 / n))


def cosine_betas(n=100):
    def level(share):
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - level((i + 1) / n) / level(i / n), 0.999) for i in range(n)])


def cosine_schedule(n=100):
    return np.cumprod(1.0 - cosine_betas(n))


class ExactNetwork:
    """The best network of each prediction type, by diffusers' formulas."""

    def __init__(self, alphas_cumprod, prediction_type="epsilon"):
        self.alphas_cumprod = torch.as_tensor(alphas_cumprod)
        self.prediction_type = prediction_type

    def __call__(self, noisy, timesteps, states):
        assert timesteps.dtype == torch.int64
        assert noisy.dtype == states.dtype == torch.float32
        assert len(noisy) == len(timesteps) == len(states)
        alpha_bar = self.alphas_cumprod[timesteps][:, None]
        root, noise_root = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        sigma = noise_root / root
        epsilon = -sigma * exact_score(states, noisy / root, sigma[:, 0])
        clean = (noisy - noise_root * epsilon) / root
        velocity = root * epsilon - noise_root * clean
        return {"epsilon": epsilon, "sample": clean, "v_prediction": velocity}[self.prediction_type]


def from_noise(alphas_cumprod, prediction_type="epsilon", **options):
    network = ExactNetwork(alphas_cumprod, prediction_type)
    return ScoreTeacher.from_noise_prediction(
        network, alphas_cumprod, prediction_type=prediction_type, **UNITS, **options
    )


def exact_velocity(actions_t, t, states):
    """E[a - eps | a_t], from Tweedie's estimate of the clean action."""
    assert actions_t.dtype == t.dtype == states.dtype == torch.float32
    assert len(actions_t) == len(t) == len(states)
    sigma, t = (1 - t) / t, t[:, None]
    noised = actions_t / t
    clean = noised + sigma[:, None] ** 2 * exact_score(states, noised, sigma)
    return clean - (noised - clean) / sigma[:, None]


def from_velocity(**options):
    return ScoreTeacher.from_velocity(exact_velocity, **UNITS, **options)


def questions(levels, n_samples=7):
    """States, noised standardized actions of the policy and noise levels, one for each state."""
    generator = torch.Generator().manual_seed(0)
    n = len(levels)
    states = torch.randn(n, 3, 2, generator=generator)
    sigma = torch.as_tensor(levels, dtype=torch.float32)[:, None]
    expert = torch.arange(n_samples) % 2
    width = (0.1 + sigma[..., None] ** 2).sqrt()
    noise = torch.randn(n, n_samples, 2, generator=generator)
    return states, OFFSETS[expert].float() + width * noise, sigma


def relative_error(one, other):
    return float((one - other).norm() / other.norm())


# -- the function ---------------------------------------------------------------------------------


def test_a_function_is_asked_in_float32_and_one_unit():
    seen = []

    def function(states, actions, sigma):
        seen.append((states, actions, sigma))
        return -actions

    states, actions, sigma = questions([0.1, 0.5])
    teacher = teacher_of(function)
    context = teacher.context(torch.from_numpy(teacher.prepare(states.double().numpy())))
    answer = teacher.score(context, actions.double(), sigma.double())
    assert answer.dtype == torch.float64
    assert [part.dtype for part in seen[0]] == [torch.float32] * 3
    for part, asked in zip(seen[0], (states, actions, sigma), strict=True):
        torch.testing.assert_close(part, asked, rtol=0, atol=0)


def test_prepare_keeps_the_shape():
    teacher = teacher_of()
    for X in (np.ones((3, 2, 4), dtype=np.float32), [[1, 2], [3, 4]]):
        assert teacher.prepare(X).dtype == np.float64
        assert teacher.prepare(X).shape == np.shape(X)
    assert teacher.prepare(pd.DataFrame(np.ones((2, 2)))).flags.writeable
    with pytest.raises(ValueError, match="Input X contains NaN"):
        teacher.prepare([[1.0, np.nan]])


def test_a_level_for_each_action_is_asked_row_by_row():
    states, actions, _ = questions([1.0] * 3, n_samples=4)
    sigma = torch.linspace(0.1, 2.0, 12).reshape(3, 4)

    def function(states, actions, sigma):
        assert actions.shape == (12, 1, 2)
        assert sigma.shape == (12, 1)
        return score(states, actions, sigma)

    answer = teacher_of(function).score(states, actions, sigma)
    for row in range(3):
        for sample in range(4):
            one = slice(row, row + 1), slice(sample, sample + 1)
            alone = score(states[one[0]], actions[one], sigma[one])
            torch.testing.assert_close(answer[one], alone)


@pytest.mark.parametrize("width", [1, 7])
def test_denoise_is_tweedie(width):
    states, actions, sigma = questions([0.1, 0.5, 3.0])
    sigma = sigma.expand(-1, width)
    teacher = teacher_of()
    expected = actions + sigma[..., None] ** 2 * teacher.score(states, actions, sigma)
    torch.testing.assert_close(teacher.denoise(states, actions, sigma), expected)


def test_scores_have_no_graph():
    network = torch.nn.Linear(2, 2)
    states, actions, sigma = questions([0.1, 0.5])

    def energy(states, actions, sigma):
        with torch.enable_grad():
            actions = actions.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(-(actions**2).sum() / 2, actions, create_graph=True)
        return gradient

    def tracked(states, actions, sigma):
        assert not torch.is_grad_enabled()
        return network(actions)

    for function in (tracked, energy):
        answer = teacher_of(function).score(states, actions.requires_grad_(), sigma)
        assert not answer.requires_grad
    torch.testing.assert_close(answer, -actions.detach())


@pytest.mark.parametrize("output", [lambda a: a[:, 0], lambda a: {"sample": a}])
def test_an_answer_of_another_shape_is_refused(output):
    asked = questions([0.1, 0.5])

    def message(name, shape, came):
        return exactly(
            f"{name} must return a tensor of the shape of its actions, {shape}, got {came}. Wrap "
            "it in a function that does."
        )

    came = "(2, 2)" if isinstance(output(asked[1]), torch.Tensor) else "dict"
    with pytest.raises(ValueError, match=message("the score function", (2, 7, 2), came)):
        teacher_of(lambda states, actions, sigma: output(actions)).score(*asked)
    came = "(14,)" if came != "dict" else "dict"
    network = ScoreTeacher.from_noise_prediction(
        lambda actions, timesteps, states: output(actions), linear_schedule(), n_actions=2
    )
    with pytest.raises(ValueError, match=message("network", (14, 2), came)):
        network.score(*asked)
    velocity = ScoreTeacher.from_velocity(lambda actions, t, states: output(actions), n_actions=2)
    with pytest.raises(ValueError, match=message("velocity", (14, 2), came)):
        velocity.score(*asked)


# -- units ----------------------------------------------------------------------------------------


def test_units_are_vectors():
    teacher = teacher_of(action_mean=3.0, action_scale=[2.0])
    for unit, value in ((teacher.action_mean, 3.0), (teacher.action_scale, 2.0)):
        assert unit.dtype == np.float64
        np.testing.assert_array_equal(unit, [value, value])
    np.testing.assert_array_equal(teacher_of().action_scale, SCALE)


def test_units_are_the_teacher_own():
    scale = np.array([1.0, 2.0])
    teacher = teacher_of(action_scale=scale)
    scale[0] = 5.0
    assert teacher.action_scale[0] == 1.0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"n_actions": 0}, "n_actions must be an integer of at least 1, got 0."),
        ({"n_actions": 2.0}, "n_actions must be an integer of at least 1, got 2.0."),
        (
            {"noise_min": 5.0, "noise_max": 0.1},
            "noise_min and noise_max must be positive, finite and in this order, got "
            "noise_min=5.0 and noise_max=0.1.",
        ),
        (
            {"noise_max": math.inf},
            "noise_min and noise_max must be positive, finite and in this order, got "
            "noise_min=0.03 and noise_max=inf.",
        ),
        (
            {"action_mean": [0.0, 1.0, 2.0]},
            "action_mean must be finite, one number or one for each of the 2 action dimensions, "
            "got [0.0, 1.0, 2.0].",
        ),
        (
            {"action_scale": [1.0, 0.0]},
            "action_scale must be positive and finite, one number or one for each of the 2 action "
            "dimensions, got [1.0, 0.0].",
        ),
        (
            {"action_scale": math.nan},
            "action_scale must be positive and finite, one number or one for each of the 2 action "
            "dimensions, got nan.",
        ),
    ],
)
def test_wrong_arguments_are_refused(argument, message):
    with pytest.raises(ValueError, match=exactly(message)):
        teacher_of(**argument)
    with pytest.raises(ValueError, match=exactly(message)):
        ScoreTeacher.from_velocity(exact_velocity, **{**UNITS, **argument})


def test_what_is_no_function_is_refused():
    message = "score must be a function of states, actions and sigma, got Tensor."
    with pytest.raises(TypeError, match=exactly(message)):
        teacher_of(torch.zeros(2))


# -- an object ------------------------------------------------------------------------------------


def test_a_teacher_has_the_protocol_of_a_score():
    teacher = teacher_of()
    assert (teacher.noise_min, teacher.noise_max, teacher.n_actions) == (0.03, 5.0, 2)
    assert teacher.function is score
    assert teacher.replayable is False
    assert teacher.network is None
    assert repr(teacher) == "ScoreTeacher(n_actions=2, noise_min=0.03, noise_max=5)"
    assert clone(teacher) is teacher


@pytest.mark.parametrize(
    "make", [teacher_of, from_velocity, lambda: from_noise(linear_schedule(), clip=2.0)]
)
def test_a_teacher_pickles_with_its_network(make):
    teacher = make()
    again = pickle.loads(pickle.dumps(teacher))
    asked = questions([0.1, 0.5])
    torch.testing.assert_close(again.score(*asked), teacher.score(*asked), rtol=0, atol=0)


def test_a_module_is_asked_where_its_parameters_are():
    function = torch.nn.Linear(2, 2, device="meta")
    assert teacher_of(function).device.type == "meta"
    assert ScoreTeacher.from_velocity(function, n_actions=2).device.type == "meta"
    assert teacher_of(torch.nn.Identity()).device.type in {"cpu", "cuda"}
    assert teacher_of().device.type in {"cpu", "cuda"}


@contextmanager
def defaults(dtype=torch.float32, device=None):
    """What users set for their own code."""
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def simple_teachers():
    units = {"n_actions": 2, "action_mean": [0.0, 1.0], "action_scale": 2.0}
    yield ScoreTeacher(
        lambda s, a, g: -a / (1 + g[..., None] ** 2), noise_min=0.1, noise_max=5, **units
    )
    yield ScoreTeacher.from_velocity(lambda a, t, s: s[:, -1] - a * t[:, None], **units)
    for kind in ("epsilon", "sample", "v_prediction"):
        yield ScoreTeacher.from_noise_prediction(
            lambda a, t, s: a * (1 + t.float()[:, None]) ** -0.5 - s[:, -1],
            linear_schedule(),
            prediction_type=kind,
            clip=3.0,
            **units,
        )


@pytest.mark.parametrize("default", [{"dtype": torch.float64}, {"device": "meta"}])
def test_default_dtype_and_device_change_nothing(default):
    asked = questions([0.1, 0.5])
    level_by_level = (*asked[:2], asked[2].expand(-1, 7))

    def answers():
        for teacher in simple_teachers():
            yield teacher.score(*asked)
            yield teacher.denoise(*level_by_level)
            yield torch.from_numpy(teacher.sample(asked[0].numpy(), random_state=0))

    expected = list(answers())
    with defaults(**default):
        found = list(answers())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# -- samples --------------------------------------------------------------------------------------


def gaussian(states, actions, sigma):
    """A policy N(last state, 0.5^2), in standardized actions."""
    return (states[:, -1:] - actions) / (0.25 + sigma[..., None] ** 2)


def expected_sample(policy_mean, policy_variance, noise_min, noise_max):
    """Mean and deviation after 32 ancestral steps: x' is the mean of x and D, with noise."""
    mean, variance = 0.0, noise_max**2
    for sigma, below in pairwise(karras(32, noise_min, noise_max).tolist()):
        shrink, share = policy_variance / (policy_variance + sigma**2), below**2 / sigma**2
        slope = share + (1 - share) * shrink
        mean = slope * mean + (1 - share) * (1 - shrink) * policy_mean
        variance = slope**2 * variance + below**2 * (1 - share)
    return mean, math.sqrt(variance)


def test_samples_are_in_raw_units():
    X = np.repeat(np.random.RandomState(0).uniform(-1, 1, size=(4, 3, 2)), 4000, axis=0)
    actions = teacher_of(gaussian).sample(X, random_state=0)
    assert actions.dtype == np.float64
    found = ((actions - MEAN) / SCALE).reshape(4, 4000, 2)
    mean, std = expected_sample(X[::4000, -1], 0.25, 0.03, 5.0)
    np.testing.assert_allclose(found.mean(axis=1), mean, atol=0.03)
    np.testing.assert_allclose(found.std(axis=1), std, rtol=0.05)


def test_samples_of_a_row_do_not_depend_on_later_rows(monkeypatch):
    X = np.random.RandomState(0).uniform(-1, 1, size=(30, 3, 2))
    teacher = teacher_of(gaussian)
    actions = teacher.sample(X, random_state=0)
    np.testing.assert_allclose(teacher.sample(X[:5], random_state=0), actions[:5], rtol=1e-5)
    rng = np.random.RandomState(0)
    parts = [teacher.sample(X[:10], random_state=rng), teacher.sample(X[10:], random_state=rng)]
    np.testing.assert_allclose(np.concatenate(parts), actions, rtol=1e-5)
    assert (teacher.sample(X, random_state=1) != actions).all()
    monkeypatch.setattr(score_teacher, "BLOCK", 7)
    np.testing.assert_allclose(teacher.sample(X, random_state=0), actions, rtol=1e-5)


def test_samples_leave_the_generators_of_others_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    teacher_of(gaussian).sample(np.ones((3, 1, 2)), random_state=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("make", [lambda f: f, ScoreTeacher.from_velocity])
@pytest.mark.parametrize("shape", [(2, 3), (8,)])
def test_a_function_sees_windows_or_flat_rows_in_raw_units(make, shape):
    seen = []

    def network(actions, t, states):
        seen.append(states)
        return -actions

    def function(states, actions, sigma):
        return network(actions, sigma, states)

    X = 5.0 + np.random.RandomState(0).normal(size=(6, *shape))
    if make is ScoreTeacher.from_velocity:
        teacher = ScoreTeacher.from_velocity(network, n_actions=1)
    else:
        teacher = ScoreTeacher(function, n_actions=1, noise_min=0.1, noise_max=5)
    teacher.sample(X, random_state=0)
    for states in seen:
        np.testing.assert_array_equal(states.numpy(), X.astype(np.float32))


# -- noise prediction -----------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", [linear_schedule(100), cosine_schedule()])
def test_a_noise_prediction_is_exact_at_every_timestep(schedule, prediction_type):
    sigma = np.sqrt((1 - schedule) / schedule)
    asked = questions(sigma)
    found = from_noise(schedule, prediction_type).score(*asked) * asked[2][..., None]
    torch.testing.assert_close(found, score(*asked) * asked[2][..., None], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("schedule", "tolerance"), [(linear_schedule(), 1e-3), (cosine_schedule(), 5e-3)]
)
def test_a_noise_prediction_is_interpolated_between_timesteps(schedule, tolerance, prediction_type):
    teacher = from_noise(schedule, prediction_type)
    for low, high in ((teacher.noise_min, 1.0), (1.0, 10.0), (10.0, teacher.noise_max)):
        asked = questions(np.geomspace(low, high, 100))
        level = asked[2][..., None]
        assert relative_error(teacher.score(*asked) * level, score(*asked) * level) < tolerance


def test_a_noise_prediction_has_the_levels_of_its_schedule():
    schedule = cosine_schedule()
    teacher = from_noise(torch.tensor(schedule))
    assert teacher.noise_min == pytest.approx(math.sqrt(1 / schedule[0] - 1))
    assert teacher.noise_max == pytest.approx(math.sqrt(1 / schedule[-1] - 1))
    teacher = from_noise(schedule, noise_min=0.1, noise_max=80)
    assert (teacher.noise_min, teacher.noise_max) == (0.1, 80.0)


@pytest.mark.parametrize("levels", [{"noise_min": 0.01}, {"noise_max": 3000.0}])
def test_levels_outside_the_schedule_are_refused(levels):
    low, high = levels.get("noise_min", 0.02513), levels.get("noise_max", 2029)
    message = (
        "noise_min and noise_max must lie within the noise levels of alphas_cumprod, 0.02513 to "
        f"2029, got {low:.4g} and {high:.4g}. None is the end."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        from_noise(cosine_schedule(), **levels)


def test_levels_read_off_the_schedule_are_inside():
    teacher = from_noise(cosine_schedule(), noise_min=0.0251, noise_max=2030)
    asked = questions([teacher.noise_min, teacher.noise_max])
    assert torch.isfinite(teacher.score(*asked)).all()


def test_outside_the_schedule_the_weighted_score_is_that_of_its_end():
    teacher = from_noise(cosine_schedule(20))
    states, actions, _ = questions([1.0, 1.0])
    ends = torch.tensor([[teacher.noise_min], [teacher.noise_max]])
    outside = ends * torch.tensor([[0.5], [2.0]])
    found, end = (
        (1 + level[..., None] ** 2) * teacher.score(states, actions, level)
        for level in (outside, ends)
    )
    torch.testing.assert_close(found, end)


def test_timesteps_without_a_score_are_never_asked():
    inner = cosine_schedule(20)
    schedule = np.concatenate([[1.0], inner, [0.0]])
    teacher = from_noise(schedule)
    assert teacher.noise_max == from_noise(inner).noise_max < math.inf
    asked = questions([teacher.noise_min / 2, teacher.noise_min, 1.0, teacher.noise_max])
    torch.testing.assert_close(
        teacher.score(*asked), from_noise(inner).score(*asked), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_ancestral_steps_are_those_of_ddpm(clip, prediction_type):
    schedule = cosine_schedule(20)
    network = ExactNetwork(schedule, prediction_type)
    states, noise = torch.randn(6, 1, 2), torch.randn(20, 6, 2, dtype=torch.float64)
    a_t = noise[0]
    for t in reversed(range(20)):  # scheduling_ddpm.py of diffusers, variance "fixed_small"
        alpha_bar, previous = schedule[t], schedule[t - 1] if t else 1.0
        output = network(a_t.float(), torch.full((6,), t), states).double()
        clean = {
            "epsilon": (a_t - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5,
            "sample": output,
            "v_prediction": alpha_bar**0.5 * a_t - (1 - alpha_bar) ** 0.5 * output,
        }[prediction_type]
        if clip:
            clean = clean.clamp(-clip, clip)
        alpha = alpha_bar / previous
        a_t = (
            previous**0.5 * (1 - alpha) / (1 - alpha_bar) * clean
            + alpha**0.5 * (1 - previous) / (1 - alpha_bar) * a_t
        )
        if t:
            variance = (1 - previous) / (1 - alpha_bar) * (1 - alpha)
            a_t = a_t + variance**0.5 * noise[20 - t]
    teacher = from_noise(schedule, prediction_type, clip=clip)
    sigma = np.sqrt((1 - schedule) / schedule)[::-1]

    def denoise(x, level):
        return teacher.denoise(states, x[:, None], torch.full((6, 1), level))[:, 0]

    start = math.hypot(1.0, sigma[0]) * noise[0]
    found = euler_ancestral(denoise, start, [*sigma, 0.0], list(noise[1:]))
    torch.testing.assert_close(found, a_t, rtol=2e-3, atol=2e-3)
    if clip:
        assert found.abs().max() <= clip + 1e-6


def test_euler_steps_are_those_of_ddim():
    schedule = cosine_schedule(20)
    network = ExactNetwork(schedule)
    states, a_t = torch.randn(6, 1, 2), torch.randn(6, 2, dtype=torch.float64)
    start = a_t
    for t in reversed(range(20)):  # scheduling_ddim.py of diffusers, eta = 0
        alpha_bar, previous = schedule[t], schedule[t - 1] if t else 1.0
        epsilon = network(a_t.float(), torch.full((6,), t), states).double()
        clean = (a_t - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5
        a_t = previous**0.5 * clean + (1 - previous) ** 0.5 * epsilon
    teacher = from_noise(schedule)
    sigma = np.sqrt((1 - schedule) / schedule)[::-1]

    def denoise(x, level):
        return teacher.denoise(states, x[:, None], torch.full((6, 1), level))[:, 0]

    found = euler(denoise, math.hypot(1.0, sigma[0]) * start, [*sigma, 0.0], [])
    torch.testing.assert_close(found, a_t, rtol=2e-3, atol=2e-3)


def test_clip_bounds_the_denoised_action_between_timesteps():
    teacher, free = from_noise(cosine_schedule(), clip=0.7), from_noise(cosine_schedule())
    asked = questions(np.geomspace(teacher.noise_min, teacher.noise_max, 300))
    clean = free.denoise(*asked)
    error = (teacher.denoise(*asked) - clean.clamp(-0.7, 0.7)).abs() / (1 + asked[2][..., None])
    assert (clean.abs() > 0.7).double().mean() > 0.1
    assert error.max() < 1e-5


@pytest.mark.parametrize(
    ("alphas_cumprod", "message"),
    [
        (
            [[0.9, 0.5]],
            "alphas_cumprod must be a vector, one number per timestep, got shape (1, 2).",
        ),
        ([0.9, 0.5, -0.1], "alphas_cumprod must lie between 0 and 1, got -0.1."),
        ([0.9, float("nan")], "alphas_cumprod must lie between 0 and 1, got nan."),
        (
            [0.9, 0.5, 0.5],
            "alphas_cumprod must fall strictly, least noise first, got 0.5 after 0.5.",
        ),
        (
            cosine_schedule(20)[::-1],
            "alphas_cumprod must fall strictly, least noise first, got "
            f"{cosine_schedule(20)[-2]} after {cosine_schedule(20)[-1]}.",
        ),
        (
            [1.0, 0.5, 0.0],
            "alphas_cumprod needs at least two timesteps strictly between 0 and 1, got 1.",
        ),
    ],
)
def test_a_wrong_schedule_is_refused(alphas_cumprod, message):
    with pytest.raises(ValueError, match=exactly(message)):
        ScoreTeacher.from_noise_prediction(exact_velocity, alphas_cumprod, n_actions=2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"prediction_type": "velocity"},
            "prediction_type must be one of ('epsilon', 'sample', 'v_prediction'), got 'velocity'.",
        ),
        ({"clip": 0.0}, "clip must be a positive, finite number, or None to clamp nothing, got 0."),
        (
            {"clip": math.inf},
            "clip must be a positive, finite number, or None to clamp nothing, got inf.",
        ),
    ],
)
def test_a_wrong_option_is_refused(option, message):
    with pytest.raises(ValueError, match=re.escape(message.rstrip("."))):
        ScoreTeacher.from_noise_prediction(exact_velocity, linear_schedule(), n_actions=2, **option)


@pytest.mark.parametrize(
    "alphas",
    [
        1.0 - np.linspace(1e-4, 0.02, 1000),
        1.0 - cosine_betas(),
        np.cumprod(1.0 - np.linspace(1e-4, 0.02, 50)),
    ],
    ids=["linear", "cosine", "short"],
)
def test_factors_in_place_of_products_are_noticed(alphas):
    with pytest.warns(UserWarning, match=r"If these are the factors, scheduler\.alphas, pass"):
        ScoreTeacher.from_noise_prediction(exact_velocity, alphas, n_actions=2)


@pytest.mark.parametrize(
    "alphas_cumprod",
    [linear_schedule(), cosine_schedule(), cosine_schedule(10), linear_schedule(100)],
)
def test_products_are_taken_without_a_warning(alphas_cumprod):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScoreTeacher.from_noise_prediction(exact_velocity, alphas_cumprod, n_actions=2)


# -- velocity -------------------------------------------------------------------------------------


def test_a_velocity_gives_the_exact_score():
    teacher = from_velocity()
    asked = questions(np.geomspace(teacher.noise_min, teacher.noise_max, 200))
    torch.testing.assert_close(teacher.score(*asked), score(*asked), rtol=2e-3, atol=2e-3)


def test_a_velocity_of_reversed_time_is_wrapped():
    def other(actions, t, states):  # noise at time 1, the sign of pi0
        return -exact_velocity(actions, 1 - t, states)

    teacher = ScoreTeacher.from_velocity(lambda a, t, s: -other(a, 1 - t, s), **UNITS)
    asked = questions(np.geomspace(teacher.noise_min, teacher.noise_max, 20))
    torch.testing.assert_close(
        teacher.score(*asked), from_velocity().score(*asked), rtol=1e-3, atol=1e-3
    )


def test_a_velocity_has_the_levels_it_is_given():
    teacher = from_velocity(noise_min=0.1, noise_max=2.0)
    assert (teacher.noise_min, teacher.noise_max) == (0.1, 2.0)
