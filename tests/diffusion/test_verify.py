"""The check of teachers: right ones pass, and every fault is called by its name."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from skvdd.diffusion.score_teacher import ScoreTeacher
from skvdd.diffusion.verify import TeacherReport, verify_teacher

X = np.random.RandomState(0).uniform(-1, 1, size=(300, 2, 3))
ANGLES = np.linspace(0.008, 1.008, 101) / 1.008 * math.pi / 2
ALPHAS_CUMPROD = np.cumprod(np.maximum((np.cos(ANGLES[1:]) / np.cos(ANGLES[:-1])) ** 2, 0.001))


class Modes:
    """A mixture of Gaussians around a linear function of the state; standardized actions."""

    def __init__(self, m, offsets=(-0.8, 0.8), width=0.2):
        rng = np.random.RandomState(m)
        self.weights = rng.normal(scale=0.4, size=(3, m))
        self.offsets = np.array(offsets)[:, None] * rng.uniform(0.7, 1.2, size=(len(offsets), m))
        self.widths = width * rng.uniform(0.6, 1.4, size=(len(offsets), m))
        self.scale, self.mean = rng.uniform(0.02, 30.0, size=m), rng.uniform(-5.0, 5.0, size=m)
        self.units = {"n_actions": m, "action_mean": self.mean, "action_scale": self.scale}

    def score(self, states, actions, sigma):
        """The score in closed form, (n, S, m)."""
        weights, offsets, widths = (
            torch.tensor(part, dtype=actions.dtype)
            for part in (self.weights, self.offsets, self.widths)
        )
        variance = widths**2 + sigma[..., None, None] ** 2
        away = (states[:, -1] @ weights)[:, None, None] + offsets - actions[:, :, None]
        log_share = -0.5 * (away**2 / variance + variance.log()).sum(dim=-1, keepdim=True)
        return (torch.softmax(log_share, dim=2) * away / variance).sum(dim=2)

    def demonstrations(self, states=X):
        """Raw actions in each state, (n, m)."""
        rng = np.random.RandomState(1)
        mode = rng.randint(len(self.offsets), size=len(states))
        noise = self.widths[mode] * rng.standard_normal((len(states), len(self.scale)))
        standardized = states[:, -1] @ self.weights + self.offsets[mode] + noise
        return standardized * self.scale + self.mean

    def teacher(self, function=None, noise_min=0.03, noise_max=5.0):
        levels = {"noise_min": noise_min, "noise_max": noise_max}
        return ScoreTeacher(function or self.score, **levels, **self.units)

    def network(self, prediction_type="epsilon", reverse=False):
        """The best network of each prediction type, by diffusers' formulas."""

        def network(a_t, timesteps, states):
            t = 99 - timesteps if reverse else timesteps
            alpha_bar = torch.tensor(ALPHAS_CUMPROD)[t].float()[:, None]
            root, noise_root = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            sigma, x = noise_root / root, a_t / root
            score = self.score(states, x[:, None], sigma)[:, 0]
            epsilon, clean = -sigma * score, x + sigma**2 * score
            velocity = root * epsilon - noise_root * clean
            return {"epsilon": epsilon, "sample": clean, "v_prediction": velocity}[prediction_type]

        return network

    def of_noise_prediction(self, predicts="epsilon", as_if=None, reverse=False, **options):
        return ScoreTeacher.from_noise_prediction(
            self.network(predicts, reverse),
            ALPHAS_CUMPROD,
            prediction_type=as_if or predicts,
            **options,
            **self.units,
        )

    def velocity(self, a_t, t, states):
        t = t[:, None]
        sigma, x = (1 - t) / t, a_t / t
        score = self.score(states, x[:, None], sigma)[:, 0]
        return x + sigma**2 * score + sigma * score


def gaussian(m):
    return Modes(m, offsets=(0.0,), width=1.0)


def faults(teacher, *args, **options):
    """The lines of the error."""
    with pytest.raises(ValueError, match=r"^verify_teacher found:\n- ") as caught:
        verify_teacher(teacher, *args, **options)
    return str(caught.value).split("\n- ")[1:]


POLICIES = [
    pytest.param(make, m, id=f"{name}-{m}")
    for name, make in (("gaussian", gaussian), ("modes", Modes))
    for m in (1, 2, 8)
]
with_and_without_y = pytest.mark.parametrize("drawn", [False, True], ids=["y", "drawn"])


# -- right teachers -------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "m"), POLICIES)
@pytest.mark.parametrize("levels", [(0.03, 5.0), (0.02, 80.0), (0.1, 1.0)])
@with_and_without_y
def test_an_exact_score_is_right(make, m, levels, drawn):
    policy = make(m)
    report = verify_teacher(
        policy.teacher(None, *levels), X, None if drawn else policy.demonstrations()
    )
    assert isinstance(report, TeacherReport)
    assert report.source == ("teacher.sample" if drawn else "y")
    assert (report.noise_levels[0], report.noise_levels[-1]) == pytest.approx(levels)
    assert report.scale.shape == report.slope.shape == (len(report.noise_levels), m)
    np.testing.assert_allclose(report.scale[-1], 1.0, rtol=0.05 if levels[1] > 1 else 0.4)
    assert report.differences["repeated"] == 0.0
    assert max(report.differences.values()) < 1e-5


@pytest.mark.parametrize(("make", "m"), POLICIES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@with_and_without_y
def test_an_exact_noise_prediction_is_right(make, m, prediction_type, drawn):
    policy = make(m)
    y = None if drawn else policy.demonstrations()
    verify_teacher(policy.of_noise_prediction(prediction_type, clip=5.0), X, y)
    report = verify_teacher(policy.of_noise_prediction(prediction_type), X, y)
    assert report.noise_levels[-1] > 2000


@pytest.mark.parametrize(("make", "m"), POLICIES)
@with_and_without_y
def test_an_exact_velocity_is_right(make, m, drawn):
    policy = make(m)
    teacher = ScoreTeacher.from_velocity(policy.velocity, **policy.units)
    verify_teacher(teacher, X, None if drawn else policy.demonstrations())


@pytest.mark.parametrize("seed", range(20))
def test_chance_makes_no_faults(seed):
    policy = Modes(2)
    y = policy.demonstrations()
    verify_teacher(policy.teacher(), X, y, n_rows=32, random_state=seed)
    verify_teacher(policy.teacher(), X[:5], n_rows=32, random_state=seed)


def test_a_deterministic_policy_is_right():
    policy = Modes(2, offsets=(0.0,), width=0.0)
    for y in (policy.demonstrations(), None):
        verify_teacher(policy.teacher(), X, y)


def test_a_network_may_be_wrong_by_a_few_percent():
    policy = Modes(2, offsets=(-0.4, 0.4), width=0.1)
    teacher = policy.teacher(lambda s, a, g: 1.1 * policy.score(s, a, g), noise_max=10.0)
    report = verify_teacher(teacher, X, policy.demonstrations())
    assert report.loss[-1] > 1.5


def test_narrow_policies_are_measured_around_their_means():
    policy = Modes(2, offsets=(0.0,), width=0.05)
    report = verify_teacher(policy.teacher(), X, policy.demonstrations())
    np.testing.assert_allclose(report.scale, 1.0, rtol=0.2)


def test_the_figures_are_those_of_a_gaussian():
    policy = gaussian(1)
    report = verify_teacher(policy.teacher(), X, policy.demonstrations(), n_rows=300)
    width = policy.widths[0, 0]
    moved = report.noise_levels**2 / (width**2 + report.noise_levels**2)
    np.testing.assert_allclose(report.moved, moved, rtol=0.2)
    np.testing.assert_allclose(report.scale, 1.0, rtol=0.2)
    np.testing.assert_allclose(report.slope[:4], 1.0, rtol=0.2)
    assert (report.loss < 1.05).all()


def test_a_report_reads_as_a_table():
    policy = Modes(2)
    report = verify_teacher(policy.teacher(), X, policy.demonstrations())
    lines = str(report).splitlines()
    assert lines[0] == "256 rows, actions of 2 numbers from y"
    assert lines[1].split() == ["noise", "level", "scale", "slope", "loss", "moved", "center"]
    assert len(lines) == 2 + len(report.noise_levels) + 2
    assert lines[2].split()[0] == "0.03"
    assert re.fullmatch(r"Differences, where 0 is right: repeated 0e\+00, .*", lines[-1])
    assert max(map(len, lines)) < 110


# -- wrong answers --------------------------------------------------------------------------------

MISTAKES = {
    "sign": (lambda score, sigma: -score, "The sign is wrong"),
    "epsilon": (lambda score, sigma: -sigma * score, "This is epsilon. Return -epsilon / sigma."),
    "minus epsilon": (lambda score, sigma: sigma * score, "This is -epsilon."),
    "of a_t": (lambda score, sigma: (1 + sigma**2).sqrt() * score, "with respect to a_t"),
    "difference": (lambda score, sigma: sigma**2 * score, "This is denoised - noisy actions."),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(("make", "m"), POLICIES)
@with_and_without_y
def test_what_is_not_the_score_is_named(make, m, mistake, drawn):
    policy, (change, name) = make(m), MISTAKES[mistake]
    teacher = policy.teacher(lambda s, a, g: change(policy.score(s, a, g), g[..., None]))
    (fault,) = faults(teacher, X, None if drawn else policy.demonstrations())
    assert name in fault
    assert fault.startswith("At noise level 5, the score is ")
    assert " Or: " not in fault or drawn


@pytest.mark.parametrize("levels", [(0.03, 3.0), (0.05, 80.0), (0.025, 2000.0)])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_any_range_of_noise(mistake, levels):
    policy, (change, name) = Modes(2), MISTAKES[mistake]
    teacher = policy.teacher(lambda s, a, g: change(policy.score(s, a, g), g[..., None]), *levels)
    assert name in faults(teacher, X, policy.demonstrations())[0]


@pytest.mark.parametrize("noise_max", [80.0, 2000.0])
@pytest.mark.parametrize("mistake", ["sign", "epsilon"])
def test_samples_that_explode_are_no_obstacle(mistake, noise_max):
    policy, (change, name) = Modes(2), MISTAKES[mistake]
    teacher = policy.teacher(
        lambda s, a, g: change(policy.score(s, a, g), g[..., None]), 0.03, noise_max
    )
    (fault,) = faults(teacher, X)
    assert name in fault


def test_a_clean_action_is_named():
    policy = Modes(2)
    teacher = policy.teacher(lambda s, a, g: a + g[..., None] ** 2 * policy.score(s, a, g))
    (fault,) = faults(teacher, X, policy.demonstrations())
    assert "This is the clean action. Return (clean - actions) / sigma**2." in fault


@with_and_without_y
def test_a_score_in_raw_units_is_named(drawn):
    policy = Modes(3)
    scale = torch.tensor(policy.scale).float()
    teacher = policy.teacher(lambda s, a, g: policy.score(s, a, g) / scale)
    (fault,) = faults(teacher, X, None if drawn else policy.demonstrations())
    assert "This is the score with respect to raw actions. Multiply it by action_scale." in fault


@pytest.mark.parametrize("factor", [0.1, 1.6])
@with_and_without_y
def test_a_wrong_scale_of_one_dimension_is_named(factor, drawn):
    policy = Modes(4)
    factors = torch.tensor([1.0, 1.0, factor, 1.0])
    teacher = policy.teacher(lambda s, a, g: factors * policy.score(s, a, g))
    (fault,) = faults(teacher, X, None if drawn else policy.demonstrations())
    found = re.match(
        r"At noise level 5, the score is (.*) times what it must be in dimensions \[2\] of 4", fault
    )
    assert float(found[1]) == pytest.approx(factor, rel=0.1 if not drawn else 0.8)
    if not drawn:
        assert "The factor is the same at all noise levels." in fault


def test_a_function_of_raw_actions_is_noticed():
    policy = Modes(2)
    mean, scale = (torch.tensor(unit).float() for unit in (policy.mean, policy.scale))

    def raw(states, actions, sigma):
        return policy.score(states, (actions - mean) / scale, sigma / scale.mean()) / scale

    (fault,) = faults(policy.teacher(raw), X, policy.demonstrations())
    assert "takes standardized actions and sigma" in fault


# -- time -----------------------------------------------------------------------------------------


@with_and_without_y
@pytest.mark.parametrize("make", [gaussian, Modes])
def test_a_reversed_level_is_named(make, drawn):
    policy = make(2)
    teacher = policy.teacher(lambda s, a, g: policy.score(s, a, 0.03 * 5.0 / g))
    (fault,) = faults(teacher, X, None if drawn else policy.demonstrations())
    assert "Time runs the wrong way" in fault or "the direction of time" in fault
    assert drawn or "Time runs the wrong way" in fault


@pytest.mark.parametrize(("make", "m"), POLICIES)
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
def test_a_reversed_timestep_is_noticed(make, m, predicts):
    policy = make(m)
    teacher = policy.of_noise_prediction(predicts, reverse=True, noise_max=5.0)
    (fault,) = faults(teacher, X, policy.demonstrations())
    assert "direction of time" in fault or "Time runs the wrong way" in fault
    if (predicts, make) == ("epsilon", gaussian):
        assert "Time runs the wrong way" in fault


@pytest.mark.parametrize("m", [1, 2, 8])
def test_a_velocity_of_reversed_time_is_noticed(m):
    policy = Modes(m)  # for a standard normal it is the same function
    teacher = ScoreTeacher.from_velocity(
        lambda a, t, s: -policy.velocity(a, 1 - t, s), **policy.units
    )
    (fault,) = faults(teacher, X, policy.demonstrations())
    assert "direction of time" in fault or "Time runs the wrong way" in fault


@pytest.mark.parametrize(("make", "m"), POLICIES)
@pytest.mark.parametrize(
    ("predicts", "as_if"),
    [
        ("epsilon", "sample"),
        ("epsilon", "v_prediction"),
        ("sample", "epsilon"),
        ("v_prediction", "epsilon"),
    ],
)
def test_another_prediction_type_is_noticed(make, m, predicts, as_if):
    policy = make(m)
    teacher = policy.of_noise_prediction(predicts, as_if)
    (fault,) = faults(teacher, X, policy.demonstrations())
    assert "prediction_type" in fault


# -- other actions --------------------------------------------------------------------------------


def test_actions_of_other_states_are_noticed():
    policy = Modes(2)
    y = policy.demonstrations()[::-1]
    (fault,) = faults(policy.teacher(), X, y)
    assert "the columns, order and units of X" in fault


def test_a_clip_below_the_actions_is_noticed():
    policy = gaussian(2)
    teacher = policy.of_noise_prediction(clip=0.5)
    (fault,) = faults(teacher, X, policy.demonstrations())
    assert "clip is not below the actions" in fault


def test_another_mean_is_noticed():
    policy = Modes(2)
    teacher = policy.teacher(lambda s, a, g: policy.score(s, a - 2.0, g))
    (fault,) = faults(teacher, X, policy.demonstrations())
    assert fault.startswith("Denoised actions are not the means of the clean ones: center 1.")


def test_raw_actions_are_noticed():
    policy = Modes(2)
    teacher = ScoreTeacher(policy.score, n_actions=2, noise_min=0.03, noise_max=5.0)
    for scale in (0.01, 100.0):
        y = scale * (policy.demonstrations() - policy.mean) / policy.scale
        (fault,) = faults(teacher, X, y)
        assert fault.startswith("y looks like raw actions: they have standard deviations of ")
        assert "Set action_mean and action_scale" in fault
    far = 50.0 + (policy.demonstrations() - policy.mean) / policy.scale
    (fault,) = faults(teacher, X, far)
    assert fault.startswith("y looks like raw actions: ")
    teacher.function = lambda s, a, g: -policy.score(s, a, g)
    first, second = faults(teacher, X, far)
    assert first == fault
    assert "The sign is wrong" in second


def test_a_teacher_that_draws_raw_actions_is_noticed():
    policy = Modes(2)

    def narrow(states, actions, sigma):
        return policy.score(states, actions / 0.01, sigma / 0.01) / 0.01

    (fault,) = faults(policy.teacher(narrow, 0.001), X)
    assert fault.startswith("The actions that teacher.sample draws have standard deviations of ")


# -- unstable answers -----------------------------------------------------------------------------


def test_random_answers_are_noticed():
    policy = Modes(2)
    generator = torch.Generator().manual_seed(0)

    def dropout(states, actions, sigma):
        kept = torch.rand(actions.shape, generator=generator) > 0.1
        return policy.score(states, actions, sigma) * kept / 0.9

    assert re.match(
        r"Asked twice, the score differs by \d+\.\d\d%\. Call network\.eval\(\)",
        faults(policy.teacher(dropout), X, policy.demonstrations())[0],
    )


def test_answers_that_depend_on_the_batch_are_noticed():
    policy = Modes(2)

    def batch_norm(states, actions, sigma):
        flat = actions.flatten(0, 1)
        return policy.score(states, (actions - flat.mean(dim=0)) / flat.std(dim=0), sigma)

    def repeat(states, actions, sigma):
        n_samples = actions.shape[1]
        rows = states.repeat(n_samples, 1, 1), actions.reshape(-1, 1, 2)
        return policy.score(*rows, sigma.repeat(n_samples, 1)).reshape(actions.shape)

    for function in (batch_norm, repeat):
        fault = faults(policy.teacher(function), X, policy.demonstrations())[0]
        assert re.match(r"Asked among other actions, the score differs by \d+\.\d%", fault)


def test_all_that_is_wrong_is_listed():
    policy = Modes(2)
    teacher = policy.teacher(lambda s, a, g: -policy.score(s, a - a.mean(dim=(0, 1)), g))
    first, second = faults(teacher, X, policy.demonstrations())
    assert "Asked among other actions" in first
    assert "The sign is wrong" in second


@with_and_without_y
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_noticed(value, drawn):
    policy = Modes(2)

    def broken(states, actions, sigma):
        return policy.score(states, actions, sigma).masked_fill(sigma[..., None] > 4.0, value)

    (fault,) = faults(policy.teacher(broken), X, None if drawn else policy.demonstrations())
    assert fault.startswith("At noise level 5, 100.0% of what score returns is not finite.")


class Changed:
    """A teacher by protocol alone, with one method changed."""

    def __init__(self, teacher, name, method):
        self.teacher = teacher
        setattr(self, name, method)

    def __getattr__(self, name):
        return getattr(self.teacher, name)


def test_a_denoiser_that_is_not_tweedie_is_noticed():
    policy = Modes(2)
    teacher = policy.teacher()
    wrong = Changed(teacher, "denoise", lambda *asked: 1.1 * teacher.denoise(*asked))
    assert re.match(
        r"denoise differs by \d+\.\d% from actions \+ sigma\*\*2 \* score\.",
        faults(wrong, X, policy.demonstrations())[0],
    )


def test_a_sample_that_is_not_finite_is_noticed():
    wrong = Changed(
        Modes(2).teacher(), "sample", lambda X, random_state: np.full((len(X), 2), np.inf)
    )
    (fault,) = faults(wrong, X)
    assert fault.startswith("The actions that teacher.sample draws have standard deviations of -")


def test_a_teacher_is_asked_in_float32():
    teacher = Modes(2).teacher()

    def score(context, actions, sigma):
        assert actions.dtype == sigma.dtype == torch.float32
        assert sigma.shape == (len(actions), 1)
        return teacher.score(context, actions, sigma)

    verify_teacher(Changed(teacher, "score", score), X)


def test_another_shape_is_noticed():
    teacher = Modes(2).teacher()
    wrong = Changed(teacher, "score", lambda *asked: teacher.score(*asked)[..., 0])
    (fault,) = faults(wrong, X)
    assert fault == "score must return the shape of the actions, (256, 8, 2), got (256, 8)."


# -- arguments ------------------------------------------------------------------------------------


def test_rows_come_in_any_container():
    seen = []

    class OfFrames(ScoreTeacher):
        def prepare(self, X):
            seen.append(X)
            return super().prepare(X)

    frame = pd.DataFrame(X[:, -1], columns=["a", "b", "c"])
    policy = Modes(2)
    y = policy.demonstrations()
    teacher = OfFrames(
        lambda s, a, g: policy.score(s[:, None], a, g),
        noise_min=0.03,
        noise_max=5.0,
        **policy.units,
    )
    one = verify_teacher(teacher, frame, pd.DataFrame(y))
    other = verify_teacher(policy.teacher(), X, y.reshape(-1, 2, 1).tolist())
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-6)
    assert {type(rows) for rows in seen} == {pd.DataFrame}


def test_the_same_state_gives_the_same_report():
    policy = Modes(2)
    y = policy.demonstrations()
    one, other = (str(verify_teacher(policy.teacher(), X, y)) for _ in range(2))
    assert one == other
    assert str(verify_teacher(policy.teacher(), X, y, random_state=1)) != one
    assert str(verify_teacher(policy.teacher(), X, random_state=np.random.RandomState(1))) != one


def test_few_rows_are_repeated_where_actions_are_drawn():
    report = verify_teacher(Modes(2).teacher(), X[:1], n_rows=64)
    assert report.n_rows == 64
    policy = Modes(2)
    assert verify_teacher(policy.teacher(), X[:40], policy.demonstrations()[:40]).n_rows == 40


@pytest.mark.parametrize("n_rows", [31, 100.0])
def test_too_few_rows_are_refused(n_rows):
    message = rf"^n_rows must be an integer of at least 32, got {n_rows}\.$"
    with pytest.raises(ValueError, match=message):
        verify_teacher(Modes(1).teacher(), X, n_rows=n_rows)


def test_wrong_demonstrations_are_refused():
    teacher, y = Modes(2).teacher(), Modes(2).demonstrations()
    lost = y.copy()
    lost[3, 1] = np.nan
    for wrong, came in (
        (y[:31], "(31, 2) with 0"),
        (y[:, 0], "(300,) with 0"),
        (lost, "(300, 2) with 1"),
    ):
        message = re.escape(
            "y must have at least 32 rows of 2 finite numbers, like the teacher's actions, got "
            f"shape {came} not finite."
        )
        with pytest.raises(ValueError, match=message):
            verify_teacher(teacher, X[: len(wrong)], wrong)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        verify_teacher(teacher, X, y[:100])


def test_a_range_of_low_noise_needs_demonstrations():
    policy = Modes(2)
    teacher = policy.teacher(None, 0.1, 0.5)
    verify_teacher(teacher, X, policy.demonstrations())
    with pytest.raises(ValueError, match=r"^y must be given where noise_max is below 1: "):
        verify_teacher(teacher, X)


def test_what_is_no_teacher_is_made_one(monkeypatch):
    policy, seen = Modes(2), []

    def as_teacher(estimator, device):
        seen.append(estimator)
        assert device == "cpu"
        return policy.teacher()

    monkeypatch.setattr("skvdd.diffusion.teacher.as_teacher", as_teacher, raising=False)
    estimator = object()
    verify_teacher(estimator, X)
    verify_teacher(policy.teacher(), X)
    assert seen == [estimator]


def test_grad_mode_and_generators_are_left_alone():
    policy = Modes(2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    weight = torch.ones((), requires_grad=True)
    verify_teacher(policy.teacher(lambda s, a, g: weight * policy.score(s, a, g)), X)
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("default", ["float64", "meta"])
def test_default_dtype_and_device_change_nothing(default):
    def function(states, actions, sigma):
        return (states[:, -1:, :2] - actions) / (0.25 + sigma[..., None] ** 2)

    teacher = ScoreTeacher(function, n_actions=2, noise_min=0.03, noise_max=5.0)
    expected = str(verify_teacher(teacher, X))
    if default == "float64":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device(default)
    try:
        assert str(verify_teacher(teacher, X)) == expected
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
