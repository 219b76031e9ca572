"""What both distilled generators share: their teachers, the start, the target, options, errors."""

import copy
import re

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvdd import (
    ConsistencyDistiller,
    ConsistencyTrajectoryDistiller,
    DiffusionPolicy,
    ScoreTeacher,
    load,
)
from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.distillation.generator import GeneratorStep, heun_step
from skvdd.metrics import energy_score
from tests.distillation.toys import gaussian, known_teacher, normal, two_modes
from tests.estimators import SMALL, small_teacher, type_name

CLASSES = {"CD": ConsistencyDistiller, "CTM": ConsistencyTrajectoryDistiller}
LOSSES = {"CD": {"consistency"}, "CTM": {"trajectory", "consistency", "denoising"}}
TEACHERS = {
    "ve": {},
    "vp": {"sde": "vp"},
    "gpt": {"architecture": "gpt"},
    "vp gpt": {"sde": "vp", "architecture": "gpt"},
    "transformer": {"encoder": "transformer", "n_heads": 2},
}

both = pytest.mark.parametrize("kind", CLASSES)


def student(kind, teacher=None, **parameters):
    settings = {**SMALL, "max_iter": 6, "window_size": 2, "n_levels": 5}
    return CLASSES[kind](teacher, **{**settings, **parameters})


@pytest.fixture(scope="module")
def two_ways():
    """Demonstrations like those of the other tests, shared here, so no one may write to them."""
    rng = np.random.RandomState(0)
    X = rng.uniform(-1, 1, size=(60, 2, 3))
    side = np.sign(rng.standard_normal(60))
    y = np.stack([side * (1 + X[:, -1, 0]), X[:, -1, 1]], axis=1)
    y += 0.1 * rng.standard_normal(y.shape)
    X.flags.writeable = y.flags.writeable = False
    return X, y


@pytest.fixture(scope="module")
def teachers(two_ways):
    """A fitted teacher of every kind; tests must not change them."""
    return {
        name: small_teacher(window_size=2, **parameters).fit(*two_ways)
        for name, parameters in TEACHERS.items()
    }


def exactly(message):
    return f"^{re.escape(message)}$"


def draw(policy, X, **options):
    return policy.sample(X, 3, random_state=0, **options)


# -- steps of the ODE -----------------------------------------------------------------------


def test_heuns_method_has_an_error_of_third_order_in_a_step():
    path, actions, t = gaussian(), normal(5, 1, 2), torch.full((5, 1), 1.0).double()
    errors = []
    for size in (0.2, 0.1, 0.05):
        exact = path.move(actions, t, t - size)
        errors.append((heun_step(path.denoise, actions, t, t - size) - exact).abs().max())
    assert 6 < errors[0] / errors[1] < 10
    assert 6 < errors[1] / errors[2] < 10


def test_a_step_to_zero_is_eulers_and_one_from_zero_stays():
    path, actions = gaussian(), normal(1, 3, 2)
    t, s = torch.tensor([[1.0, 0.0, 2.0]]).double(), torch.tensor([[0.0, 0.0, 2.0]]).double()

    def denoise(actions, sigma):
        assert (sigma > 0).all()
        return path.denoise(actions, sigma)

    moved = heun_step(denoise, actions, t, s)
    torch.testing.assert_close(moved[:, 0], path.denoise(actions, t)[:, 0])
    assert torch.equal(moved[:, 1:], actions[:, 1:])


# -- the start ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", TEACHERS)
def test_a_student_starts_as_a_copy_of_its_teachers_network(kind, name, teachers, two_ways):
    X, y = two_ways
    teacher = teachers[name]
    policy = student(kind, max_iter=0, hidden_size=64).fit(X, y, teacher=teacher)
    own = policy.network_.denoiser.state_dict()
    for entry, values in teacher.network_.state_dict().items():
        assert torch.equal(own.pop(entry), values)
    assert {entry.split(".")[0] for entry in own} == (
        {"target_embedding"} if kind == "CTM" else set()
    )
    assert policy.network_.noise_min == teacher.noise_min
    assert policy.network_.noise_max == teacher.noise_max
    expected = np.hypot(1, 5) if "vp" in name else 5.0
    assert policy.network_.start_scale == pytest.approx(expected)
    states = policy._standardise_states(X.reshape(60, 6))
    actions, sigma = normal(60, 3, 2).float(), 0.1 + 4 * torch.rand(60, 3)
    denoised = teacher.network_.denoise(teacher.network_.context(states), actions, sigma)
    answer = policy.network_.conditioned(states)
    if kind == "CTM":  # g is the teacher's denoiser, wherever a jump may end
        torch.testing.assert_close(answer(actions, sigma, 0.3 * sigma), denoised)
    else:
        low = torch.full_like(sigma, teacher.noise_min)
        assert torch.equal(answer(actions, low), actions)


@both
@pytest.mark.parametrize("name", TEACHERS)
def test_every_kind_of_teacher_can_be_distilled_and_saved(kind, name, teachers, two_ways, tmp_path):
    X, y = two_ways
    before = copy.deepcopy(teachers[name].network_.state_dict())
    policy = student(kind).fit(X, y, teacher=teachers[name])
    for entry, values in teachers[name].network_.state_dict().items():
        assert torch.equal(before[entry], values)
    assert draw(policy, X).shape == (60, 3, 2)
    assert {row["stage"] for row in policy.history_} == {"distillation"}
    assert LOSSES[kind] == set(policy.history_[-1]) - {"stage", "iteration", "learning_rate"}
    policy.save(tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(draw(again, X, n_steps=3), draw(policy, X, n_steps=3))
    assert again.score(X, y) == policy.score(X, y)


@both
@pytest.mark.parametrize("encoder", ["mlp", "transformer"])
def test_a_fresh_network_has_the_students_sizes(kind, encoder, teachers, two_ways):
    policy = student(kind, encoder=encoder, hidden_size=20).fit(*two_ways, teacher=teachers["gpt"])
    config = policy.network_.denoiser.config
    assert (config["encoder"]["kind"], config["hidden_size"]) == (encoder, 20)


@both
def test_auto_is_the_copy_where_there_is_one(kind, teachers, two_ways):
    X, y = two_ways
    auto, copied = (
        draw(student(kind, encoder=encoder).fit(X, y, teacher=teachers["gpt"]), X)
        for encoder in ("auto", "teacher")
    )
    np.testing.assert_array_equal(auto, copied)
    auto, own = (
        draw(student(kind, encoder=encoder).fit(X, teacher=known_teacher()), X)
        for encoder in ("auto", "mlp")
    )
    np.testing.assert_array_equal(auto, own)


@both
def test_of_a_teacher_of_whole_windows_single_actions_are_learnt(kind, teachers, two_ways):
    X, _ = two_ways
    teacher = copy.deepcopy(teachers["gpt"])
    joint = GPTDenoiser(**(teacher.network_.config | {"joint": True}))
    joint.load_state_dict(teacher.network_.state_dict())
    teacher.network_ = joint.eval()
    policy = student(kind).fit(X, teacher=teacher)
    assert policy.network_.denoiser.config["joint"] is False
    assert draw(policy, X).shape == (60, 3, 2)


# -- where the teacher comes from -----------------------------------------------------------


@both
def test_a_teacher_given_to_fit_frozen_or_fitted_here_is_the_same(kind, teachers, two_ways):
    X, y = two_ways
    teacher = teachers["ve"]
    expected = draw(student(kind).fit(X, y, teacher=teacher), X)
    frozen = student(kind, FrozenEstimator(teacher)).fit(X, y)
    here = student(kind, clone(teacher)).fit(X, y)
    for policy in (frozen, here):
        np.testing.assert_array_equal(draw(policy, X), expected)
    assert not hasattr(frozen, "teacher_")
    np.testing.assert_array_equal(here.teacher_.predict(X), teacher.predict(X))


@both
def test_a_pipeline_is_a_teacher_that_sees_its_own_states(kind, two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    pipeline = make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(flat, y)
    policy = student(kind).fit(flat, y, teacher=pipeline)
    here = student(kind, clone(pipeline)).fit(flat, y)
    np.testing.assert_array_equal(draw(policy, flat), draw(here, flat))
    np.testing.assert_array_equal(policy.action_scaler_.mean_, pipeline[-1].action_scaler_.mean_)
    bare = student(kind, encoder="mlp").fit(flat, y, teacher=pipeline[-1])
    assert np.abs(draw(bare, flat) - draw(policy, flat)).max() > 1e-5


@both
def test_a_score_is_asked_in_raw_units_with_one_noise_level_a_state(kind):
    asked = []

    def score(states, actions, noise_level):
        asked.append((states, actions, noise_level))
        return two_modes(states, actions, noise_level)

    teacher = ScoreTeacher(
        score, n_actions=1, noise_min=0.03, noise_max=5.0, action_mean=100.0, action_scale=2.0
    )
    X = 100 + np.random.RandomState(0).uniform(-1, 1, size=(50, 2))
    policy = student(kind, window_size=1, state_noise=0.0).fit(X, 100 + X[:, :1], teacher=teacher)
    assert len(asked) > 0
    rows = torch.from_numpy(X).float()
    for states, actions, noise_level in asked:
        assert states.shape[1:] == (1, 2)
        assert noise_level.shape == (len(states), 1)
        assert actions.shape == (len(states), actions.shape[1], 1)
        assert not any(values.requires_grad for values in (states, actions, noise_level))
        assert (states - rows[None]).abs().amax(dim=2).amin(dim=1).max() < 1e-4
        assert noise_level.min() >= 0.03 * 2.0 * 0.999
        assert noise_level.max() <= 5.0 * 2.0 * 1.001
    assert np.isfinite(draw(policy, X)).all()


@both
def test_without_actions_those_of_the_teacher_are_learnt_from(kind, teachers, two_ways):
    X, y = two_ways
    without = student(kind).fit(X, teacher=teachers["ve"])
    assert without.n_actions_ == 2
    assert (
        np.abs(draw(without, X) - draw(student(kind).fit(X, y, teacher=teachers["ve"]), X)).max()
        > 0
    )
    flat = small_teacher(window_size=2).fit(X, y[:, 0])
    assert student(kind).fit(X, teacher=flat).predict(X).shape == (60,)


# -- the target -----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_target_follows_the_student_once_an_iteration(decay):
    network, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False)
    nothing = dict.fromkeys(
        ("teacher", "objective", "states", "actions", "contexts", "levels", "generator")
    )
    step = GeneratorStep(
        network=network, target=target, target_decay=decay, state_noise=0.0, **nothing
    )
    before = target.weight.clone()
    step._follow()
    expected = decay * before + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(target.weight, expected)
    assert not target.weight.requires_grad


@both
def test_the_target_is_moved_before_every_step_and_by_nothing_else(
    kind, teachers, two_ways, monkeypatch
):
    steps = []
    follow = GeneratorStep._follow

    def record(self):
        follow(self)
        steps.append((self.network.state_dict(), copy.deepcopy(self.target.state_dict())))

    monkeypatch.setattr(GeneratorStep, "_follow", record)
    student(kind, target_decay=0.0).fit(*two_ways, teacher=teachers["ve"])
    assert len(steps) == 6
    first, last = steps[0][1], steps[-1][1]
    assert any(not torch.equal(first[name], last[name]) for name in first)
    steps.clear()
    student(kind, target_decay=0.9999).fit(*two_ways, teacher=teachers["ve"])
    first, last = steps[0][1], steps[-1][1]
    for name, values in first.items():
        torch.testing.assert_close(last[name], values, atol=1e-5, rtol=0)


# -- what it can be asked -------------------------------------------------------------------


@both
def test_it_has_no_density_and_is_scored_by_the_energy_of_its_samples(kind, teachers, two_ways):
    X, y = two_ways
    policy = student(kind).fit(X, y, teacher=teachers["ve"])
    assert not hasattr(policy, "log_prob")
    samples = policy.sample(X, 64, random_state=0)
    assert policy.score(X, y) == pytest.approx(-energy_score(samples, y).mean())
    assert policy.score(X, y) == policy.score(X, y)
    flat = student(kind).fit(X, y[:, 0], teacher=small_teacher(window_size=2).fit(X, y[:, 0]))
    samples = flat.sample(X, 64, random_state=0)
    assert flat.score(X, y[:, 0]) == pytest.approx(-energy_score(samples, y[:, 0]).mean())


@both
def test_actions_in_several_steps_do_not_depend_on_their_neighbours(kind, teachers, two_ways):
    X, y = two_ways
    policy = student(kind, n_steps=3).fit(X, y, teacher=teachers["ve"])
    together = draw(policy, X)
    np.testing.assert_array_equal(draw(policy, X[:5]), together[:5])
    np.testing.assert_array_equal(draw(policy, X, n_steps=3), together)
    assert np.abs(draw(policy, X, n_steps=1) - together).max() > 1e-3
    assert policy.predict(X).shape == policy.act(X, random_state=0).shape == (60, 2)


@both
def test_a_search_may_range_over_the_steps(kind, teachers, two_ways):
    X, y = (values.reshape(60, -1) for values in two_ways)
    search = GridSearchCV(student(kind), {"n_steps": [1, 2]}, cv=2)
    search.fit(X, y, teacher=teachers["ve"])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# -- options --------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "option",
    [
        {"n_levels": 9},
        {"distance": "pseudo_huber"},
        {"target_decay": 0.0},
        {"n_steps": 2},
        {"encoder": "mlp"},
        {"weight_decay": 10.0},
        {"batch_size": 16},
        {"state_noise": 0.0},
        {"ema_decay": 0.0},
    ],
    ids=str,
)
def test_every_option_changes_what_is_drawn(kind, option, teachers, two_ways):
    X, y = two_ways
    plain, other = (
        draw(student(kind, max_iter=12, **options).fit(X, y, teacher=teachers["ve"]), X)
        for options in ({}, option)
    )
    assert 1e-6 < np.abs(other - plain).max() < np.inf


# -- errors ---------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_levels", 1),
        ("distance", "l1"),
        ("target_decay", 1.0),
        ("n_steps", 0),
        ("encoder", "cnn"),
    ],
)
def test_invalid_parameters_are_named(kind, name, value, two_ways):
    policy = student(kind, **{name: value})
    with pytest.raises(ValueError, match=f"^The '{name}' parameter of {type_name(policy)} must"):
        policy.fit(*two_ways)


@both
@pytest.mark.parametrize("n_steps", [0, -1, 1.5])
def test_an_impossible_number_of_steps_is_refused(kind, n_steps, teachers, two_ways):
    policy = student(kind, max_iter=0).fit(*two_ways, teacher=teachers["ve"])
    message = f"n_steps must be an integer of at least 1, got {n_steps!r}."
    with pytest.raises(ValueError, match=exactly(message)):
        policy.sample(two_ways[0], n_steps=n_steps)


@both
def test_a_network_cannot_be_copied_from_a_teacher_that_has_none(kind, two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    message = (
        "encoder='teacher' needs a teacher with a network over the same states: not a "
        "ScoreTeacher, and not behind a Pipeline. Use encoder='mlp'."
    )
    pipeline = make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(flat, y)
    for teacher in (known_teacher(), pipeline):
        with pytest.raises(ValueError, match=exactly(message)):
            student(kind, encoder="teacher").fit(flat, teacher=teacher)


@both
def test_a_teacher_that_does_not_fit_is_refused(kind, teachers, two_ways):
    X, y = two_ways
    name = type_name(student(kind))
    with pytest.raises(
        ValueError, match=exactly("y has 1 action dimensions, but the teacher has 2.")
    ):
        student(kind).fit(X, y[:, 0], teacher=teachers["ve"])
    message = f"the teacher has window_size=2, but {name} has window_size=1; they must be equal."
    with pytest.raises(ValueError, match=exactly(message)):
        student(kind, window_size=1).fit(X[:, -1], y, teacher=teachers["ve"])
    with pytest.raises(NotFittedError, match="the teacher given to fit, DiffusionPolicy, is not"):
        student(kind).fit(X, y, teacher=DiffusionPolicy(window_size=2))
    with pytest.raises(ValueError, match=f"^{name} requires y to be passed"):
        student(kind).fit(X)


@both
def test_a_warm_start_refuses_other_units_and_noise_levels(kind, teachers, two_ways):
    X, y = two_ways
    policy = student(kind, warm_start=True).fit(X, y, teacher=teachers["ve"])
    policy.fit(X, y, teacher=teachers["ve"])
    others = [
        small_teacher(window_size=2).fit(X, 3 * y),
        small_teacher(window_size=2, noise_max=4.0).fit(X, y),
        teachers["vp"],
    ]
    message = (
        "warm_start=True goes on with the teacher of the last fit, but this teacher has other "
        "units or noise levels. Set warm_start=False."
    )
    for teacher in others:
        with pytest.raises(ValueError, match=exactly(message)):
            policy.fit(X, y, teacher=teacher)
