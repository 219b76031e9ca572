"""Where distillers find a teacher, how they ask it, how they continue, and what they refuse."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvdd import DiffusionPolicy, VDDDistiller, load
from skvdd.diffusion import Teacher
from skvdd.training import Run
from tests.distillation.toys import (
    STUDENTS,
    OwnTeacher,
    answers,
    exactly,
    known_teacher,
    one_mode,
    small_student,
)
from tests.estimators import SMALL, small_teacher, type_name

every = pytest.mark.parametrize("kind", STUDENTS)


@pytest.fixture(scope="module")
def pipeline(two_ways):
    return make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(
        two_ways[0].reshape(60, 6), two_ways[1]
    )


def statistics(policy):
    network = policy.network_
    return [*network.row_normalization.statistics, *network.action_normalization.statistics]


def assert_same(one, other, X):
    np.testing.assert_array_equal(answers(one, X), answers(other, X))


# -- where the teacher comes from -----------------------------------------------------------------


@every
def test_a_teacher_given_to_fit_is_one_frozen_in_the_constructor_or_fitted_here(
    kind, teacher, two_ways
):
    X, y = two_ways
    in_fit = small_student(kind).fit(X, y, teacher=teacher)
    assert_same(in_fit, small_student(kind, FrozenEstimator(teacher)).fit(X, y), X)
    assert_same(in_fit, small_student(kind).fit(X, y, teacher=FrozenEstimator(teacher)), X)
    here = small_student(kind, clone(teacher)).fit(X, y)
    np.testing.assert_array_equal(here.teacher_.predict(X), teacher.predict(X))
    assert_same(in_fit, here, X)


@every
def test_a_teacher_without_a_seed_takes_one_from_the_student(kind, two_ways):
    X, y = two_ways
    unseeded = small_teacher(window_size=2, random_state=None)
    first, second = (small_student(kind, unseeded).fit(X, y) for _ in range(2))
    assert_same(first, second, X)
    assert isinstance(first.teacher_.random_state, int)
    assert unseeded.random_state is None
    other = small_student(kind, unseeded, random_state=1, max_iter=0).fit(X, y)
    assert other.teacher_.random_state != first.teacher_.random_state


@every
def test_only_a_teacher_fitted_here_is_kept(kind, teacher, two_ways):
    X, y = two_ways
    student = small_student(kind, clone(teacher)).fit(X, y)
    assert student.teacher_ is not student.teacher
    assert not hasattr(student.teacher, "network_")
    student.fit(X, y, teacher=teacher)
    assert not hasattr(student, "teacher_")
    assert not hasattr(small_student(kind, FrozenEstimator(teacher)).fit(X, y), "teacher_")


@every
@pytest.mark.parametrize("piped", [False, True], ids=["policy", "pipeline"])
def test_a_fitted_teacher_in_the_constructor_is_fitted_anew_with_a_warning(
    kind, piped, teacher, pipeline, two_ways
):
    X, y = two_ways
    X, given = X.reshape(60, 6), pipeline if piped else teacher
    before = given.predict(X)
    name = type_name(small_student(kind))
    message = (
        f"the teacher given to the constructor of {name} is fitted, but a clone of it is trained "
        "anew. Give it to fit(..., teacher=teacher), or wrap it: "
        f"{name}(FrozenEstimator(teacher))."
    )
    with pytest.warns(UserWarning, match=exactly(message)):
        student = small_student(kind, given).fit(X, 2 * y)
    np.testing.assert_array_equal(given.predict(X), before)
    assert np.abs(student.teacher_.predict(X) - before).max() > 1e-3


def test_without_any_teacher_a_diffusion_policy_of_these_rows_is_trained(two_ways, monkeypatch):
    X, y = two_ways
    short = DiffusionPolicy.fit

    def fit(self, X, y):
        return short(self.set_params(max_iter=2, batch_size=8), X, y)

    monkeypatch.setattr(DiffusionPolicy, "fit", fit)
    rows = np.column_stack([X.reshape(60, 6), X[:, 0, :1]])
    student = small_student("VDD", goal_dim=1).fit(rows, y)
    assert type(student.teacher_) is DiffusionPolicy
    expected = DiffusionPolicy(window_size=2, goal_dim=1, max_iter=2, batch_size=8).get_params()
    trained = student.teacher_.get_params()
    assert isinstance(trained.pop("random_state"), int)
    assert trained == {name: expected[name] for name in trained}


@every
def test_a_given_teacher_is_not_modified(kind, teacher, two_ways):
    X, y = two_ways
    before = teacher.sample(X, random_state=0)
    weights = {name: value.clone() for name, value in teacher.network_.state_dict().items()}
    trainable = [p.requires_grad for p in teacher.network_.parameters()]
    student = small_student(kind).fit(X, y, teacher=teacher)
    assert [p.requires_grad for p in teacher.network_.parameters()] == trainable
    assert all(trainable)
    assert {p.device.type for p in teacher.network_.parameters()} == {"cpu"}
    for name, value in teacher.network_.state_dict().items():
        assert torch.equal(value, weights[name])
    np.testing.assert_array_equal(teacher.sample(X, random_state=0), before)
    shared = {p.data_ptr() for p in teacher.network_.parameters()}
    assert shared.isdisjoint(p.data_ptr() for p in student.network_.parameters())


@every
def test_a_student_has_its_teachers_normalization(kind, teacher, two_ways):
    X, y = two_ways
    student = small_student(kind).fit(3 * X[:40], y[:40], teacher=teacher)
    np.testing.assert_equal(statistics(student), statistics(teacher))


# -- pipelines ------------------------------------------------------------------------------------


@every
def test_a_pipeline_is_a_teacher_that_sees_its_own_states(kind, pipeline, two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    student = small_student(kind).fit(flat, y, teacher=pipeline)
    assert_same(student, small_student(kind, FrozenEstimator(pipeline)).fit(flat, y), flat)
    assert_same(student, small_student(kind, clone(pipeline)).fit(flat, y), flat)
    mean, _ = student.network_.row_normalization.statistics
    np.testing.assert_allclose(mean, np.tile(X.reshape(-1, 3).mean(axis=0), 2))
    actions = student.network_.action_normalization.statistics
    np.testing.assert_equal(actions, pipeline[-1].network_.action_normalization.statistics)
    bare = small_student(kind, encoder="mlp").fit(flat, y, teacher=pipeline[-1])
    assert np.abs(answers(bare, flat) - answers(student, flat)).max() > 1e-5


@every
@pytest.mark.parametrize("with_actions", [True, False], ids=["y", "no y"])
def test_windows_with_an_axis_of_their_own_reach_a_pipeline(kind, with_actions, pipeline, two_ways):
    X, y = two_ways
    y = y if with_actions else None
    flat = small_student(kind).fit(X.reshape(60, 6), y, teacher=pipeline)
    assert_same(small_student(kind).fit(X, y, teacher=pipeline), flat, X)
    if with_actions:
        assert_same(small_student(kind, clone(pipeline)).fit(X, y), flat, X)


@every
def test_the_steps_of_a_pipeline_see_named_columns(kind, two_ways):
    X, y = two_ways
    frame = pd.DataFrame(X.reshape(60, 6), columns=list("abcdef"))
    pipeline = make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(frame, y)
    for actions in (y, None):
        student = small_student(kind).fit(frame, actions, teacher=pipeline)
        assert list(student.feature_names_in_) == list("abcdef")


# -- how a teacher is asked -----------------------------------------------------------------------


class Recorder:
    """A score around the states, less an offset, that keeps what it was asked."""

    def __init__(self, offset=0.0):
        self.offset, self.asked = offset, []

    def __call__(self, states, actions, sigma):
        self.asked.append((states, actions, sigma))
        return one_mode(states - self.offset, actions, sigma)


@every
@pytest.mark.parametrize("window_size", [1, 2])
def test_a_score_is_asked_at_raw_states_and_standardized_actions(kind, window_size):
    score = Recorder(100.0)
    units = {"action_mean": [100.0, -3.0], "action_scale": [20.0, 0.01]}
    X = 100 + np.random.RandomState(0).uniform(-1, 1, size=(50, 2 * window_size))
    y = [100.0, -3.0] + [20.0, 0.01] * np.random.RandomState(1).standard_normal((50, 2))
    student = small_student(kind, window_size=window_size, state_noise=0.0)
    student.fit(X, y, teacher=known_teacher(score, n_actions=2, **units))
    rows = torch.from_numpy(X).float()
    assert len(score.asked) > 0
    for states, actions, sigma in score.asked:
        assert states.shape == (len(states), window_size, 2)
        assert sigma.shape == (len(states), 1)
        assert actions.shape == (len(states), actions.shape[1], 2)
        assert {values.dtype for values in (states, actions, sigma)} == {torch.float32}
        assert not any(values.requires_grad for values in (states, actions, sigma))
        nearest = (states.flatten(1)[:, None] - rows[None]).abs().amax(dim=2).amin(dim=1)
        assert nearest.max() < 1e-4  # float32 at 100
        assert sigma.min() >= 0.03 * 0.999
        assert sigma.max() <= 5.0 * 1.001
        assert actions.abs().max() < 4 + 5 * 5.0  # within 5 standard deviations, noise and all


AS_GIVEN = {
    "rows": lambda X: X.reshape(60, 6),
    "windows": lambda X: X,
    "frame": lambda X: pd.DataFrame(X.reshape(60, 6), columns=list("abcdef")),
    "lists": lambda X: X.tolist(),
}


@every
@pytest.mark.parametrize("given", AS_GIVEN)
def test_without_actions_a_score_is_asked_for_windows_too(kind, given, two_ways):
    X = AS_GIVEN[given](np.array(two_ways[0]))
    score = Recorder()
    student = small_student(kind).fit(X, teacher=known_teacher(score, n_actions=2))
    assert {states.shape[1:] for states, _, _ in score.asked} == {(2, 3)}
    assert student.action_shape_ == (2,)


@every
def test_a_teacher_of_ones_own_needs_the_protocol_alone(kind, two_ways):
    X, y = two_ways
    teacher = OwnTeacher()
    assert isinstance(teacher, Teacher)
    given = small_student(kind).fit(X, y, teacher=teacher)
    assert_same(given, small_student(kind, teacher).fit(X, y), X)
    mean, scale = given.network_.action_normalization.statistics
    np.testing.assert_array_equal([mean, scale], [teacher.action_mean, teacher.action_scale])
    assert small_student(kind).fit(X, teacher=teacher).action_shape_ == (2,)


def test_a_teacher_of_ones_own_that_transforms_states_is_given_them_as_they_came(two_ways):
    X, y = two_ways
    seen = []

    class Transforming(OwnTeacher):
        sees_states = False

        def prepare(self, X):
            seen.append(X)
            return X.to_numpy().reshape(-1, 2, 3)

        def sample(self, X, *, random_state=None):
            return super().sample(X.to_numpy(), random_state=random_state)

    frame = pd.DataFrame(X.reshape(60, 6), columns=list("abcdef"))
    for actions in (y, None):
        small_student("VDD").fit(frame, actions, teacher=Transforming())
    assert [len(X) for X in seen] == [1, 60] * 2  # one row to see that it fits, then all
    assert all(list(X.columns) == list("abcdef") for X in seen)


def test_contexts_are_computed_once_where_no_noise_reaches_the_teacher(two_ways):
    X, y = two_ways
    sizes = []

    class Counting(OwnTeacher):
        def context(self, states):
            sizes.append(len(states))
            return super().context(states)

    small_student("CD", state_noise=0.0).fit(X, y, teacher=Counting())
    assert sizes == [1, 60]  # one row to know the size, then all
    sizes.clear()
    small_student("CD", state_noise=0.1).fit(X, y, teacher=Counting())
    assert sizes == [32] * 6  # those of each minibatch, with its noise


@pytest.mark.parametrize("sde", ["ve", "vp"])
def test_without_actions_they_are_drawn_by_the_teachers_own_sampler(sde, two_ways, monkeypatch):
    X, y = two_ways
    teacher = small_teacher(sde=sde, window_size=2, sampler="heun", n_steps=3).fit(X, y)
    draws, own = [], DiffusionPolicy.sample

    def sample(self, X, *args, **options):
        draws.append((options, own(self, X, *args, **options)))
        return draws[-1][1]

    class Watched(VDDDistiller):
        def _distillation(self, fit):
            self.actions_ = fit.actions
            return super()._distillation(fit)

    monkeypatch.setattr(DiffusionPolicy, "sample", sample)
    student = Watched(n_experts=2, init_iter=2, window_size=2, **SMALL).fit(X, teacher=teacher)
    ((options, drawn),) = draws
    assert options.keys() == {"random_state"}
    expected = teacher.sample(X, sampler="heun", n_steps=3, **options)
    np.testing.assert_array_equal(drawn, expected)
    standard = teacher.network_.action_normalization.standardize(drawn)
    assert torch.equal(student.actions_, standard)
    if sde == "vp":  # clipped to the range of its data, as the teacher does
        low, high = teacher.network_.action_range
        # Raw units and back: some units in the last place.
        assert bool(((standard >= low - 1e-5) & (standard <= high + 1e-5)).all())


@every
def test_actions_have_the_shape_that_the_teacher_was_given(kind, two_ways):
    X, y = two_ways
    flat = small_teacher(window_size=2).fit(X, y[:, 0])
    column = small_teacher(window_size=2).fit(X, y[:, :1])
    assert small_student(kind).fit(X, teacher=flat).predict(X).shape == (60,)
    assert small_student(kind).fit(X, teacher=column).predict(X).shape == (60, 1)
    given = small_student(kind).fit(X, y[:, 0], teacher=column)
    assert given.predict(X).shape == given.sample(X).shape == (60,)


@every
def test_a_student_gives_chunks_where_its_teacher_does(kind, two_ways, tmp_path):
    X, y = two_ways
    chunks = np.stack([y, y + 1, 2 * y], axis=1)
    teacher = small_teacher(window_size=2).fit(X, chunks)
    for actions in (chunks, None):
        small_student(kind).fit(X, actions, teacher=teacher).save(tmp_path / "student.safetensors")
        student = load(tmp_path / "student.safetensors")
        assert (student.action_shape_, student.horizon_) == ((3, 2), 3)
        assert student.predict(X).shape == student.act(X, random_state=0).shape == (60, 3, 2)
        assert student.sample(X, 4, random_state=0).shape == (60, 4, 3, 2)
        assert np.isfinite(student.score(X, chunks))
    # The steps of a chunk share the normalization of their dimensions.
    mean, scale = student.network_.action_normalization.statistics
    columns = chunks.reshape(-1, 2)
    np.testing.assert_allclose(mean.reshape(3, 2), [columns.mean(axis=0)] * 3)
    np.testing.assert_allclose(scale.reshape(3, 2), [columns.std(axis=0)] * 3)
    with pytest.raises(ValueError, match="y has 4 action dimensions, but the teacher has 6"):
        small_student(kind).fit(X, chunks[:, :2], teacher=teacher)


@every
def test_a_chunk_of_one_action_is_that_action(kind, teacher, two_ways):
    X, y = two_ways
    of_chunks = small_teacher(window_size=2).fit(X, y[:, None])
    plain = small_student(kind).fit(X, y, teacher=teacher)
    chunked = small_student(kind).fit(X, y[:, None], teacher=of_chunks)
    for method in ("sample", "act"):
        one, other = (getattr(p, method)(X, random_state=0) for p in (plain, chunked))
        np.testing.assert_array_equal(other, one[:, None])
    assert chunked.score(X, y[:, None]) == plain.score(X, y)


# -- continuing -----------------------------------------------------------------------------------

# Whether a teacher is given to fit or to the constructor, and which.
CONTINUED = {
    "policy": ("fit", lambda teacher, pipeline: teacher),
    "pipeline": ("fit", lambda teacher, pipeline: pipeline),
    "frozen policy": ("fit", lambda teacher, pipeline: FrozenEstimator(teacher)),
    "frozen pipeline": ("fit", lambda teacher, pipeline: FrozenEstimator(pipeline)),
    "score": ("fit", lambda teacher, pipeline: known_teacher(one_mode, n_actions=2)),
    "own": ("fit", lambda teacher, pipeline: OwnTeacher()),
    "frozen policy in the constructor": ("init", lambda t, pipeline: FrozenEstimator(t)),
    "frozen pipeline in the constructor": ("init", lambda t, pipeline: FrozenEstimator(pipeline)),
    "score in the constructor": ("init", lambda t, p: known_teacher(one_mode, n_actions=2)),
    "own in the constructor": ("init", lambda teacher, pipeline: OwnTeacher()),
    "policy fitted here": ("init", lambda teacher, pipeline: clone(teacher)),
    "pipeline fitted here": ("init", lambda teacher, pipeline: clone(pipeline)),
}


def other_rows(X, y):
    """Other states and actions, and fewer of them."""
    return 5 + 2 * X[:45], y[:45] + 1


def beginner(kind, teacher=None):
    own = {"init": "random", "init_iter": 2} if kind == "VDD" else {}
    return small_student(kind, teacher, max_iter=3, **own)


@every
@pytest.mark.parametrize("name", CONTINUED)
def test_a_student_continues_on_other_states_with_every_kind_of_teacher(
    kind, name, teacher, pipeline, two_ways
):
    X, y = two_ways[0].reshape(60, 6), two_ways[1]
    place, make = CONTINUED[name]
    its = make(teacher, pipeline)
    held, given = (its, None) if place == "init" else (None, its)
    student = beginner(kind, held).partial_fit(X, y, teacher=given)
    before, stated = answers(student, X), statistics(student)
    student.partial_fit(*other_rows(X, y), teacher=given)
    np.testing.assert_equal(statistics(student), stated)
    assert student.n_iter_ == 6
    assert np.abs(answers(student, X) - before).max() > 1e-5
    student.set_params(warm_start=True).fit(*other_rows(X, y), teacher=given)
    np.testing.assert_equal(statistics(student), stated)
    assert student.n_iter_ == 3
    assert np.isfinite(answers(student, X)).all()


@every
@pytest.mark.parametrize("name", ["policy", "pipeline", "score", "own"])
def test_a_student_continues_from_what_it_learned_through_files_and_pickles_too(
    kind, name, teacher, pipeline, two_ways, tmp_path
):
    X, y = two_ways[0].reshape(60, 6), two_ways[1]
    its = CONTINUED[name][1](teacher, pipeline)
    student = beginner(kind).fit(X, y, teacher=its)
    student.save(tmp_path / "student.safetensors")
    restored = load(tmp_path / "student.safetensors")
    # Without steps to speak of, nothing changes.
    still = pickle.loads(pickle.dumps(student)).set_params(learning_rate=1e-12)
    still.partial_fit(*other_rows(X, y), teacher=its)
    np.testing.assert_allclose(answers(still, X), answers(student, X), rtol=0, atol=1e-6)
    for policy in (student, restored):
        policy.partial_fit(*other_rows(X, y), teacher=its)
    assert_same(restored, student, X)


def test_a_score_is_asked_at_the_raw_states_of_the_call_that_continues(two_ways):
    X, y = two_ways
    score = Recorder()
    student = small_student("VDD", known_teacher(score, n_actions=2), state_noise=0.0)
    student.partial_fit(X, y)
    score.asked.clear()
    others = 100 + 50 * X
    student.partial_fit(others, y)
    rows = torch.from_numpy(others)
    for states, _, _ in score.asked:
        nearest = (states[:, None] - rows[None]).abs().amax(dim=(2, 3)).amin(dim=1)
        # Standardized by the first call's, in float32, and back: some units in the last place.
        assert nearest.max() < 1e-4


@every
def test_continuing_refuses_another_normalization_of_actions(kind, teacher, two_ways):
    X, y = two_ways
    student = small_student(kind, warm_start=True).fit(X, y, teacher=teacher)
    other = small_teacher(window_size=2).fit(X, 3 * y)
    message = "this teacher has another normalization of actions."
    with pytest.raises(ValueError, match=exactly(_continuing(message, partial=False))):
        student.fit(X, y, teacher=other)
    with pytest.raises(ValueError, match=exactly(_continuing(message, partial=True))):
        student.partial_fit(X, y, teacher=other)
    own = small_student(kind).fit(X, y, teacher=OwnTeacher())
    with pytest.raises(ValueError, match="another normalization of actions"):
        own.partial_fit(X, y, teacher=OwnTeacher(action_scale=(2.0, 0.25)))


def _continuing(what, partial):
    start = "partial_fit continues" if partial else "warm_start=True continues"
    remedy = "Call fit to start anew." if partial else "Set warm_start=False."
    return f"{start} with the teacher of the last fit, but {what} {remedy}"


@every
@pytest.mark.parametrize("lost", ["given to fit", "not in a file"])
def test_continuing_needs_the_teacher_of_the_first_call(kind, lost, teacher, two_ways, tmp_path):
    X, y = two_ways
    if lost == "given to fit":
        student = small_student(kind).fit(X, y, teacher=teacher)
    else:
        small_student(kind, clone(teacher)).fit(X, y).save(tmp_path / "student.safetensors")
        student = load(tmp_path / "student.safetensors")
    for name, partial in (("partial_fit", True), ("fit with warm_start=True", False)):
        message = (
            f"teacher must be given to {name}, already fitted, if the first call was given one or "
            "the policy was loaded from a file: a teacher that is fitted now would have another "
            "normalization. Got None."
        )
        call = student.partial_fit if partial else student.set_params(warm_start=True).fit
        with pytest.raises(ValueError, match=exactly(message)):
            call(X, y)


# -- errors ---------------------------------------------------------------------------------------


@every
def test_a_teacher_of_another_window_or_goal_is_refused(kind, two_ways):
    X, y = two_ways
    student = small_student(kind)
    teacher = small_teacher(window_size=1).fit(X[:, -1], y)
    message = (
        f"the teacher has window_size=1, but {type_name(student)} has window_size=2; they must be "
        "equal."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        student.fit(X, y, teacher=teacher)
    with pytest.raises(ValueError, match=exactly(message)):
        small_student(kind, FrozenEstimator(teacher)).fit(X, y)
    with pytest.raises(ValueError, match=exactly(message)):  # before any training
        small_student(kind, clone(teacher)).fit(X, y)
    with pytest.raises(ValueError, match=r"^the teacher has goal_dim=0, but .* has goal_dim=2;"):
        small_student(kind, goal_dim=2).fit(
            np.zeros((60, 8)), y, teacher=small_teacher(window_size=2).fit(X, y)
        )


@every
def test_a_teacher_of_other_states_is_refused_before_any_training(
    kind, teacher, pipeline, two_ways, monkeypatch
):
    X, y = two_ways
    monkeypatch.setattr(Run, "step", lambda self: pytest.fail("a step was taken"))
    for actions in (y, None):
        with pytest.raises(
            ValueError, match=exactly("X has 4 columns, but the teacher has learned from 6.")
        ):
            small_student(kind).fit(X[:, :, :2], actions, teacher=teacher)
        with pytest.raises(ValueError, match=r"^X has 4 features, but StandardScaler is expecting"):
            small_student(kind).fit(X[:, :, :2], actions, teacher=pipeline)


@every
def test_a_teacher_of_other_actions_is_refused(kind, teacher, two_ways):
    X, y = two_ways
    message = "y has 1 action dimensions, but the teacher has 2."
    for its in (teacher, OwnTeacher()):
        with pytest.raises(ValueError, match=exactly(message)):
            small_student(kind).fit(X, y[:, 0], teacher=its)


@every
def test_an_unfitted_teacher_given_to_fit_is_refused(kind, two_ways):
    X, y = two_ways
    message = (
        "the teacher given to fit, DiffusionPolicy, is not fitted yet. Fit it first, or give it "
        "to the constructor, which fits a clone of it on (X, y)."
    )
    teacher = small_teacher(window_size=2)
    for unfitted in (teacher, FrozenEstimator(teacher), make_pipeline(StandardScaler(), teacher)):
        with pytest.raises(NotFittedError, match=exactly(message)):
            small_student(kind).fit(X, y, teacher=unfitted)


def not_a_teacher(name):
    return exactly(
        "teacher must be a DiffusionPolicy, a Pipeline that ends in one, a FrozenEstimator of "
        "either, a ScoreTeacher, or an object of the protocol skvdd.diffusion.Teacher, got "
        f"{name}."
    )


class NearlyATeacher(OwnTeacher):
    """All of the protocol but one method."""

    denoise = None


@every
@pytest.mark.parametrize(
    ("thing", "name"),
    [
        ("teacher", "str"),
        (LinearRegression(), "LinearRegression"),
        (FrozenEstimator(LinearRegression()), "LinearRegression"),
        (make_pipeline(StandardScaler(), LinearRegression()), "Pipeline"),
        (one_mode, "function"),
        (NearlyATeacher(), "NearlyATeacher"),
    ],
)
def test_what_is_no_teacher_is_refused_by_fit(kind, thing, name, two_ways):
    with pytest.raises(TypeError, match=not_a_teacher(name)):
        small_student(kind).fit(*two_ways, teacher=thing)


@every
def test_a_pipeline_that_ends_in_no_teacher_is_refused_by_the_constructor_too(kind, two_ways):
    pipeline = make_pipeline(StandardScaler(), LinearRegression())
    with pytest.raises(TypeError, match=not_a_teacher("Pipeline")):
        small_student(kind, pipeline).fit(*two_ways)
    student = small_student(kind, LinearRegression())
    message = f"^The 'teacher' parameter of {type_name(student)} must be"
    with pytest.raises(ValueError, match=message):
        student.fit(*two_ways)


@every
@pytest.mark.parametrize("held", [None, small_teacher(window_size=2)], ids=["none", "unfitted"])
def test_neither_actions_nor_a_fitted_teacher_is_refused(kind, held, two_ways):
    student = small_student(kind, held)
    message = (
        f"{type_name(student)} requires y to be passed, but the target y is None: without actions "
        "a teacher must be given, already fitted, as fit(X, teacher=...)."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        student.fit(two_ways[0])


@every
def test_a_score_of_another_shape_is_refused(kind, two_ways):
    X, y = two_ways

    def short(states, actions, sigma):
        return one_mode(states, actions, sigma)[..., 0]

    def arrays(states, actions, sigma):
        return actions.numpy()

    for score, came in ((short, r"\(\d+, \d+\)"), (arrays, "ndarray")):
        message = (
            r"^the score function must return a tensor of the shape of its actions, "
            rf"\(\d+, \d+, 2\), got {came}\. Wrap it in a function that does\.$"
        )
        with pytest.raises(ValueError, match=message):
            small_student(kind).fit(X, y, teacher=known_teacher(score, n_actions=2))


@every
def test_a_failed_fit_leaves_the_student_as_it_was(kind, teacher, two_ways):
    X, y = two_ways
    student = small_student(kind, clone(teacher)).fit(X, y)
    before, kept = answers(student, X), student.teacher_

    def wrong(states, actions, sigma):
        return actions[..., :1]

    with pytest.raises(ValueError, match="the score function must return"):
        student.fit(X, y, teacher=known_teacher(wrong, n_actions=2))
    with pytest.raises(ValueError, match="y has 1 action dimensions"):
        student.fit(X, y[:, 0], teacher=teacher)
    np.testing.assert_array_equal(answers(student, X), before)
    assert student.teacher_ is kept
    assert student.n_iter_ == 6
