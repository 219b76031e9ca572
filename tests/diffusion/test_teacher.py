"""Score teachers made from noise predictions and velocities, against closed forms."""

import math
import pickle
import re

import numpy as np
import pytest
import torch
from scipy.stats import norm

from skvdd import ScoreTeacher, VDDDistiller
from skvdd.nn.gaussian_mixture import GaussianMixture, action_score, smooth
from tests.estimators import SMALL

MEAN, SCALE = (1.5, -0.5), 0.8  # the units of the networks' actions, (raw - MEAN) / SCALE


def exactly(message):
    return f"^{re.escape(message)}$"


def policy(states):
    """Two correlated experts around the last state, in scaled actions."""
    n = len(states)
    last = states[:, -1, :1, None].double()
    offsets = torch.tensor([[-0.8, 0.3], [0.9, -0.2]], dtype=torch.float64)
    tril = torch.tensor([[[0.3, 0.0], [0.1, 0.2]], [[0.2, 0.0], [-0.1, 0.4]]], dtype=torch.float64)
    log_gate = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    return GaussianMixture(
        log_gate.expand(n, 2), offsets + 0.2 * last, tril.expand(n, 2, 2, 2).contiguous()
    )


def scaled_score(states, actions, sigma):
    """The score of the noised policy in scaled actions, (m, d_a), levels (m,)."""
    mixture = smooth(policy(states), sigma.double())
    return action_score(mixture, actions[:, None].double())[:, 0].to(actions)


def raw_score(states, actions, level):
    """What a teacher has to answer, (n, S, d_a), levels (n, 1), all in raw units."""
    n_samples = actions.shape[1]
    rows = (actions.flatten(0, 1) - torch.tensor(MEAN)) / SCALE
    repeated = states.repeat_interleave(n_samples, dim=0)
    sigma = level[:, 0].repeat_interleave(n_samples) / SCALE
    return scaled_score(repeated, rows, sigma).reshape(actions.shape) / SCALE


def linear_schedule(n=1000):
    return np.cumprod(1.0 - np.linspace(1e-4, 0.02, n) * (1000 / n))


def cosine_schedule(n=100):
    def level(share):
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    rates = [min(1 - level((i + 1) / n) / level(i / n), 0.999) for i in range(n)]
    return np.cumprod(1.0 - np.array(rates))


class ExactNoise:
    """The best prediction of the noise, in the convention of diffusers."""

    def __init__(self, alphas_cumprod):
        self.alphas_cumprod = torch.as_tensor(alphas_cumprod)

    def __call__(self, noisy, timesteps, states):
        assert timesteps.dtype == torch.int64
        assert len(noisy) == len(timesteps) == len(states)
        alpha_bar = self.alphas_cumprod[timesteps]
        sigma = ((1 - alpha_bar) / alpha_bar).sqrt().float()
        clean_scale = noisy / alpha_bar.sqrt().float()[:, None]
        return -sigma[:, None] * scaled_score(states, clean_scale, sigma)


def exact_velocity(actions_t, t, states):
    """E[a - eps | a_t], from Tweedie's estimate of the clean action."""
    assert len(actions_t) == len(t) == len(states)
    sigma, t = (1 - t) / t, t[:, None]
    noised = actions_t / t
    clean = noised + sigma[:, None] ** 2 * scaled_score(states, noised, sigma)
    noise = (noised - clean) / sigma[:, None]
    return clean - noise


def from_noise(alphas_cumprod):
    return ScoreTeacher.from_noise_prediction(
        ExactNoise(alphas_cumprod),
        alphas_cumprod,
        n_actions=2,
        action_mean=np.array(MEAN),
        action_scale=SCALE,
    )


def from_velocity(**levels):
    return ScoreTeacher.from_velocity(
        exact_velocity, n_actions=2, action_mean=MEAN, action_scale=SCALE, **levels
    )


def questions(levels, n_samples=7):
    """States, noised raw actions of the policy and raw noise levels, one per state."""
    generator = torch.Generator().manual_seed(0)
    n = len(levels)
    states = torch.randn(n, 3, 2, generator=generator)
    sigma = torch.as_tensor(levels, dtype=torch.float32)[:, None]
    mean = policy(states).mean.float()[:, torch.arange(n_samples) % 2]
    width = (0.1 + sigma[..., None] ** 2).sqrt()
    scaled = mean + width * torch.randn(n, n_samples, 2, generator=generator)
    return states, scaled * SCALE + torch.tensor(MEAN), sigma * SCALE


def relative_error(one, other):
    return float((one - other).norm() / other.norm())


# -- noise prediction -----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [linear_schedule(), cosine_schedule()])
def test_a_noise_prediction_is_exact_at_every_timestep(schedule):
    sigma = np.sqrt((1 - schedule) / schedule)
    asked = questions(sigma[sigma < 50.0])
    torch.testing.assert_close(
        from_noise(schedule).score(*asked), raw_score(*asked), rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize(
    ("schedule", "tolerance"), [(linear_schedule(), 1e-3), (cosine_schedule(), 1e-2)]
)
def test_a_noise_prediction_is_interpolated_between_timesteps(schedule, tolerance):
    teacher = from_noise(schedule)
    levels = np.geomspace(teacher.noise_min, 5.0, 400)
    asked = questions(levels)
    assert relative_error(teacher.score(*asked), raw_score(*asked)) < tolerance


def test_a_noise_prediction_has_the_levels_of_its_schedule():
    schedule = cosine_schedule()
    teacher = from_noise(torch.tensor(schedule))
    assert teacher.noise_min == pytest.approx(math.sqrt(1 / schedule[0] - 1))
    assert teacher.noise_max == pytest.approx(math.sqrt(1 / schedule[-1] - 1))


def test_timesteps_without_a_score_are_never_asked():
    inner = cosine_schedule(20)
    schedule = np.concatenate([[1.0], inner, [0.0]])
    teacher = from_noise(schedule)
    assert 0.0 < teacher.noise_min < teacher.noise_max < math.inf
    assert teacher.noise_max == from_noise(inner).noise_max
    asked = questions([teacher.noise_min / 2, teacher.noise_min, 1.0, teacher.noise_max])
    torch.testing.assert_close(
        teacher.score(*asked), from_noise(inner).score(*asked), rtol=1e-5, atol=1e-6
    )
    assert torch.isfinite(teacher.score(*asked)).all()


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
            "alphas_cumprod must fall strictly from each timestep to the next, got 0.5 and 0.5 at "
            "timesteps 1 and 2.",
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


# -- velocity -------------------------------------------------------------------------------------


def test_a_velocity_gives_the_exact_score():
    teacher = from_velocity()
    asked = questions(np.geomspace(teacher.noise_min, teacher.noise_max, 200))
    torch.testing.assert_close(teacher.score(*asked), raw_score(*asked), rtol=2e-3, atol=2e-3)


def test_a_velocity_has_the_levels_it_is_given():
    teacher = from_velocity(noise_min=0.1, noise_max=2.0)
    assert (teacher.noise_min, teacher.noise_max) == (0.1, 2.0)


# -- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: from_noise(linear_schedule()), from_velocity])
def test_a_teacher_pickles_with_its_network(make):
    teacher = make()
    again = pickle.loads(pickle.dumps(teacher))
    asked = questions([0.1, 0.5])
    torch.testing.assert_close(again.score(*asked), teacher.score(*asked), rtol=0, atol=0)


@pytest.mark.parametrize("output", [lambda a: a[:, 0], lambda a: {"sample": a}])
def test_a_network_of_another_shape_is_refused(output):
    asked = questions([0.1, 0.5])
    came = "(14,)" if isinstance(output(asked[1][0]), torch.Tensor) else "dict"
    end = (
        " must return a tensor of shape (14, 2) for actions of that shape, got "
        f"{came}. Wrap it in a function that takes and returns (m, d_a)."
    )

    def network(actions, times, states):
        return output(actions)

    teacher = ScoreTeacher.from_noise_prediction(network, linear_schedule(), n_actions=2)
    with pytest.raises(ValueError, match=exactly("network" + end)):
        teacher.score(*asked)
    with pytest.raises(ValueError, match=exactly("velocity" + end)):
        ScoreTeacher.from_velocity(network, n_actions=2).score(*asked)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"n_actions": 0}, "n_actions must be an integer of at least 1, got 0."),
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
            "action_mean must be finite, one number or one for each of the 2 actions, got "
            "[0.0, 1.0, 2.0].",
        ),
        (
            {"action_scale": [1.0, 2.0]},
            "action_scale must be one positive, finite number for all actions, got [1.0, 2.0].",
        ),
        (
            {"action_scale": -1.0},
            "action_scale must be one positive, finite number for all actions, got -1.0.",
        ),
    ],
)
def test_wrong_units_are_refused(argument, message):
    with pytest.raises(ValueError, match=exactly(message)):
        ScoreTeacher.from_velocity(exact_velocity, **{"n_actions": 2, **argument})


WIDTH = 0.25  # of the policy below, in scaled actions around the state
SCHEDULE = linear_schedule(100)


def gaussian_noise(noisy, timesteps, states):
    alpha_bar = torch.tensor(SCHEDULE).float()[timesteps, None]
    variance = alpha_bar * WIDTH**2 + 1 - alpha_bar
    return (1 - alpha_bar).sqrt() / variance * (noisy - alpha_bar.sqrt() * states[:, -1])


def gaussian_velocity(actions_t, t, states):
    mean, t = states[:, -1], t[:, None]
    slope = (t * WIDTH**2 - (1 - t)) / ((1 - t) ** 2 + (t * WIDTH) ** 2)
    return mean + slope * (actions_t - t * mean)


@pytest.mark.parametrize("kind", ["noise", "velocity"])
def test_a_student_learns_a_gaussian_through_each(kind):
    units = {"n_actions": 1, "action_mean": 3.0, "action_scale": 2.0}
    if kind == "noise":
        teacher = ScoreTeacher.from_noise_prediction(gaussian_noise, SCHEDULE, **units)
    else:
        teacher = ScoreTeacher.from_velocity(gaussian_velocity, **units)
    X = np.random.RandomState(0).uniform(-1, 1, size=(200, 1))
    settings = {**SMALL, "max_iter": 300, "init_iter": 100, "noise_min": 0.05, "noise_max": 0.3}
    student = VDDDistiller(n_experts=1, **settings).fit(X, teacher=teacher)
    y = 3.0 + 2.0 * X + np.random.RandomState(1).normal(scale=2.0 * WIDTH, size=X.shape)
    lost = norm.logpdf(y[:, 0], 3.0 + 2.0 * X[:, 0], 2.0 * WIDTH) - student.log_prob(X, y)
    assert abs(student.predict(X) - (3.0 + 2.0 * X)).mean() < 0.2
    assert lost.mean() < 0.1


@pytest.mark.parametrize(("goal_dim", "shape"), [(0, (2, 3)), (2, (8,))])
def test_a_network_sees_windows_or_rows_with_a_goal(goal_dim, shape):
    seen = []

    def velocity(actions_t, t, states):
        seen.append(states)
        return -actions_t

    rows = 5.0 + np.random.RandomState(0).normal(size=(30, 6 + goal_dim))
    teacher = ScoreTeacher.from_velocity(velocity, n_actions=1)
    settings = {**SMALL, "max_iter": 2, "init_iter": 2, "state_noise": 0.0}
    VDDDistiller(n_experts=1, window_size=2, goal_dim=goal_dim, **settings).fit(
        rows, teacher=teacher
    )
    assert {states.shape[1:] for states in seen} == {shape}
    asked = torch.cat(seen).flatten(1).double().numpy()
    distance = np.abs(asked[:, None] - rows).max(axis=-1).min(axis=1)
    assert distance.max() < 1e-5  # raw units, oldest state first, the goal last
