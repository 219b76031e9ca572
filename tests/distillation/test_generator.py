"""What both distilled generators share: the start, the target, their answers, options, errors."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvdd import MLPEncoder, TransformerEncoder, load
from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.distillation.generator import GeneratorStep
from skvdd.metrics import energy_score
from tests.distillation.toys import (
    OwnTeacher,
    answers,
    exactly,
    known_teacher,
    normal,
    one_mode,
    small_student,
)
from tests.estimators import small_teacher, type_name

LOSSES = {"CD": {"consistency"}, "CTM": {"trajectory", "consistency", "denoising"}}
TEACHERS = {
    "ve": {},
    "vp": {"sde": "vp"},
    "gpt": {"architecture": "gpt"},
    "vp gpt": {"sde": "vp", "architecture": "gpt"},
    "transformer": {"encoder": TransformerEncoder(16, 1, n_heads=2)},
}

both = pytest.mark.parametrize("kind", LOSSES)


@pytest.fixture(scope="module")
def teachers(two_ways):
    """A fitted teacher of every kind; tests must not change them."""
    return {
        name: small_teacher(window_size=2, **parameters).fit(*two_ways)
        for name, parameters in TEACHERS.items()
    }


@pytest.fixture(scope="module")
def students(teachers, two_ways):
    """A fitted student of either class; tests must not change them."""
    return {
        kind: small_student(kind, n_steps=3).fit(*two_ways, teacher=teachers["ve"])
        for kind in LOSSES
    }


# -- the start ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", TEACHERS)
def test_a_student_starts_as_a_copy_of_its_teachers_network(kind, name, teachers, two_ways):
    X, y = two_ways
    teacher = teachers[name]
    policy = small_student(kind, max_iter=0, hidden_size=64).fit(X, y, teacher=teacher)
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
    rows = policy.network_.row_normalization(torch.tensor(X).flatten(1))
    actions, sigma = normal(60, 3, 2).float(), 0.1 + 4 * torch.rand(60, 3)
    with torch.no_grad():
        denoised = teacher.network_.denoise(teacher.network_.context(rows), actions, sigma)
        answer = policy.network_.conditioned(rows)
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
    policy = small_student(kind).fit(X, y, teacher=teachers[name])
    for entry, values in teachers[name].network_.state_dict().items():
        assert torch.equal(before[entry], values)
    assert answers(policy, X).shape == (60, 3, 2)
    assert {row["stage"] for row in policy.history_} == {"distillation"}
    assert LOSSES[kind] == set(policy.history_[-1]) - {"stage", "iteration", "learning_rate"}
    policy.save(tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors")
    in_steps = {"n_samples": 3, "random_state": 0, "n_steps": 3}
    np.testing.assert_array_equal(again.sample(X, **in_steps), policy.sample(X, **in_steps))
    assert again.score(X, y) == policy.score(X, y)


@both
@pytest.mark.parametrize("encoder", ["mlp", "transformer", MLPEncoder(24, 1)], ids=str)
def test_a_fresh_network_has_the_students_sizes(kind, encoder, teachers, two_ways):
    policy = small_student(kind, encoder=encoder, hidden_size=20).fit(
        *two_ways, teacher=teachers["gpt"]
    )
    config = policy.network_.denoiser.config
    expected = {"mlp": MLPEncoder(20, 1), "transformer": TransformerEncoder(20, 1)}
    expected = expected[encoder] if isinstance(encoder, str) else encoder
    assert config["encoder"].get_params() == expected.get_params()
    assert type(config["encoder"]) is type(expected)
    assert config["hidden_size"] == 20


@both
def test_auto_is_the_copy_where_there_is_one(kind, teachers, two_ways):
    X, y = two_ways
    auto, copied = (
        answers(small_student(kind, encoder=encoder).fit(X, y, teacher=teachers["gpt"]), X)
        for encoder in ("auto", "teacher")
    )
    np.testing.assert_array_equal(auto, copied)
    for its in (known_teacher(one_mode, n_actions=2), OwnTeacher()):
        auto, own = (
            answers(small_student(kind, encoder=encoder).fit(X, y, teacher=its), X)
            for encoder in ("auto", "mlp")
        )
        np.testing.assert_array_equal(auto, own)


@both
def test_of_a_teacher_of_whole_windows_single_actions_are_learned(kind, teachers, two_ways):
    X, _ = two_ways
    teacher = copy.deepcopy(teachers["gpt"])
    joint = GPTDenoiser(**(teacher.network_.config | {"joint": True}))
    joint.load_state_dict(teacher.network_.state_dict())
    teacher.network_ = joint.eval()
    policy = small_student(kind).fit(X, teacher=teacher)
    assert policy.network_.denoiser.config["joint"] is False
    assert answers(policy, X).shape == (60, 3, 2)


# -- the target -----------------------------------------------------------------------------


def record_targets(monkeypatch):
    """Return a list that gets the weights of student and target, before each step."""
    steps, update = [], GeneratorStep._update_target

    def record(self):
        before = copy.deepcopy([*self.target.parameters()])
        update(self)
        steps.append(
            [before, *([*copy.deepcopy(n).parameters()] for n in (self.network, self.target))]
        )

    monkeypatch.setattr(GeneratorStep, "_update_target", record)
    return steps


@both
@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_target_follows_the_student_once_an_iteration_and_by_nothing_else(
    kind, decay, teachers, two_ways, monkeypatch
):
    steps = record_targets(monkeypatch)
    small_student(kind, target_decay=decay).fit(*two_ways, teacher=teachers["ve"])
    assert len(steps) == 6
    for before, own, after in steps:
        for start, goal, end in zip(before, own, after, strict=True):
            torch.testing.assert_close(end, decay * start + (1 - decay) * goal)
            assert not end.requires_grad
    for (_, _, after), (before, own, _) in pairwise(steps):
        assert all(map(torch.equal, after, before))  # nothing else has moved it
        assert not all(map(torch.equal, after, own))  # while the student has moved


# -- its answers ----------------------------------------------------------------------------


@both
def test_it_has_no_density_and_is_scored_by_the_energy_of_its_samples(kind, students, two_ways):
    X, y = two_ways
    policy = students[kind]
    assert not hasattr(policy, "log_prob")
    _, scale = policy.network_.action_normalization.statistics
    samples = policy.sample(X, 64, random_state=0)
    # In float32 inside, in float64 here.
    expected = -energy_score(samples / scale, y / scale).mean()
    assert policy.score(X, y) == pytest.approx(expected, rel=1e-5)
    assert policy.score(X, y) == policy.score(X, y)


@both
def test_the_score_of_actions_without_an_axis_of_their_own_is_that_of_one_with(kind, two_ways):
    X, y = two_ways
    flat, column = (
        small_student(kind).fit(X, part, teacher=small_teacher(window_size=2).fit(X, part))
        for part in (y[:, 0], y[:, :1])
    )
    assert flat.score(X, y[:, 0]) == column.score(X, y[:, :1])


@both
def test_no_unit_of_the_actions_changes_the_score(kind, two_ways):
    """Factors of two, so that nothing rounds otherwise: kilometers and milliradians, say."""
    X, y = two_ways
    units = np.array([2.0**10, 2.0**-10])
    teachers = (known_teacher(one_mode, n_actions=2, action_scale=s) for s in (1.0, units))
    plain, scaled = (
        small_student(kind).fit(X, actions, teacher=teacher)
        for actions, teacher in zip((y, y * units), teachers, strict=True)
    )
    assert scaled.score(X, y * units) == plain.score(X, y)
    np.testing.assert_array_equal(answers(scaled, X), answers(plain, X) * units)


@both
def test_actions_in_several_steps_do_not_depend_on_their_neighbors(kind, students, two_ways):
    X, _ = two_ways
    policy = students[kind]
    together = answers(policy, X)
    np.testing.assert_array_equal(answers(policy, X[:5]), together[:5])
    np.testing.assert_array_equal(policy.sample(X, 3, random_state=0, n_steps=3), together)
    assert np.abs(policy.sample(X, 3, random_state=0, n_steps=1) - together).max() > 1e-3
    assert policy.predict(X).shape == policy.act(X, random_state=0).shape == (60, 2)


@both
def test_predict_is_deterministic_and_one_of_eight_draws(kind, students, two_ways):
    X, _ = two_ways
    policy = students[kind]
    predicted = policy.predict(X)
    np.testing.assert_array_equal(policy.predict(X), predicted)
    np.testing.assert_array_equal(policy.predict(X[20:25]), predicted[20:25])
    # The same noise for every row, that of the first row of a sample with this seed.
    drawn = np.concatenate([policy.sample(X[i : i + 1], 8, random_state=0) for i in range(60)])
    assert (np.abs(drawn - predicted[:, None]).max(axis=2).min(axis=1) == 0).all()


@both
def test_parameters_set_after_fit_change_nothing(kind, students, two_ways, tmp_path):
    X, y = two_ways
    policy = pickle.loads(pickle.dumps(students[kind]))
    before = answers(policy, X), policy.predict(X), policy.score(X, y)
    policy.set_params(n_steps=1, n_levels=9, hidden_size=7, encoder="mlp", distance="pseudo_huber")
    if kind == "CTM":
        policy.set_params(gamma=0.7)
    policy.save(tmp_path / "policy.safetensors")
    for other in (policy, load(tmp_path / "policy.safetensors")):
        after = answers(other, X), other.predict(X), other.score(X, y)
        np.testing.assert_equal(after, before)


@both
def test_a_search_may_range_over_the_steps(kind, teachers, two_ways):
    X, y = (values.reshape(60, -1) for values in two_ways)
    search = GridSearchCV(small_student(kind), {"n_steps": [1, 2]}, cv=2)
    search.fit(X, y, teacher=teachers["ve"])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.n_steps_ == search.best_params_["n_steps"]


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
def test_every_option_changes_what_is_drawn(kind, option, teachers, students, two_ways):
    X, y = two_ways
    other = small_student(kind, **{"n_steps": 3, **option}).fit(X, y, teacher=teachers["ve"])
    assert 1e-6 < np.abs(answers(other, X) - answers(students[kind], X)).max() < np.inf


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
    policy = small_student(kind, **{name: value})
    with pytest.raises(ValueError, match=f"^The '{name}' parameter of {type_name(policy)} must"):
        policy.fit(*two_ways)


@both
@pytest.mark.parametrize("n_steps", [0, -1, 1.5])
def test_an_impossible_number_of_steps_is_refused(kind, n_steps, students, two_ways):
    message = f"n_steps must be an integer of at least 1, got {n_steps!r}."
    with pytest.raises(ValueError, match=exactly(message)):
        students[kind].sample(two_ways[0], n_steps=n_steps)


@both
def test_a_network_cannot_be_copied_from_a_teacher_that_has_none(kind, two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    message = (
        "encoder='teacher' needs a teacher with a network over the same states: not a "
        "ScoreTeacher, and not behind a Pipeline. Use encoder='mlp'."
    )
    pipeline = make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(flat, y)
    for its in (known_teacher(one_mode, n_actions=2), pipeline, OwnTeacher()):
        with pytest.raises(ValueError, match=exactly(message)):
            small_student(kind, encoder="teacher").fit(flat, y, teacher=its)


@both
def test_continuing_refuses_other_noise_levels(kind, teachers, two_ways):
    X, y = two_ways
    policy = small_student(kind, warm_start=True).fit(X, y, teacher=teachers["ve"])
    before = answers(policy, X)
    message = (
        "warm_start=True continues with the teacher of the last fit, but this teacher has other "
        "noise levels. Set warm_start=False."
    )
    narrower = small_teacher(window_size=2, noise_max=4.0).fit(X, y)
    # A variance-preserving one of the same range starts from more noise.
    for its in (narrower, teachers["vp"]):
        with pytest.raises(ValueError, match=exactly(message)):
            policy.fit(X, y, teacher=its)
    np.testing.assert_array_equal(answers(policy, X), before)


@both
def test_a_student_with_a_network_of_its_own_may_change_teachers(kind, teachers, two_ways):
    X, y = two_ways
    policy = small_student(kind, encoder="mlp").fit(X, y, teacher=teachers["ve"])
    before = answers(policy, X)
    policy.partial_fit(X, y, teacher=teachers["gpt"])
    assert np.abs(answers(policy, X) - before).max() > 1e-4
