"""The distiller as an estimator: what it learns, what its options do, what it keeps, its errors."""

import pickle
from functools import partial

import numpy as np
import pytest
import sklearn
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvdd import MLPEncoder, VDDDistiller, load
from tests.distillation.toys import (
    OFFSETS,
    SHARES,
    WIDTH,
    OwnTeacher,
    answers,
    exactly,
    known_teacher,
    one_mode,
    small_student,
    two_modes,
)
from tests.estimators import SMALL, small_teacher

small_vdd = partial(small_student, "VDD")


@pytest.fixture(scope="module")
def plain(teacher, two_ways):
    """A student of the defaults, to compare others with."""
    return small_vdd().fit(*two_ways, teacher=teacher)


def assert_same(one, other, X):
    np.testing.assert_array_equal(answers(one, X), answers(other, X))


# -- a teacher in closed form ---------------------------------------------------------------------

LEARNING = {
    "hidden_size": 16,
    "n_layers": 1,
    "init_iter": 100,
    "max_iter": 250,
    "batch_size": 128,
    "learning_rate": 5e-3,
    "noise_min": 0.05,
    "state_noise": 0.0,
    "random_state": 0,
}


def known_log_density(state, actions):
    parts = [
        np.log(share) + norm.logpdf(actions, state + offset, WIDTH)
        for share, offset in zip(SHARES, OFFSETS, strict=True)
    ]
    return np.logaddexp(*parts)


def test_a_known_density_is_recovered_from_its_score_alone_in_raw_units():
    mean, scale = 50.0, 20.0
    X = np.linspace(-1, 1, 400)[:, None]
    teacher = known_teacher(two_modes, action_mean=mean, action_scale=scale)
    student = VDDDistiller(n_experts=2, **LEARNING).fit(X, teacher=teacher)
    grid = np.linspace(-4.5, 4.5, 901)
    divergence = []
    for state in (-0.8, -0.2, 0.3, 0.9):
        known = known_log_density(state, grid)
        actions = mean + scale * grid[:, None]
        learned = student.log_prob(np.full((901, 1), state), actions) + np.log(scale)
        divergence.append(np.trapezoid(np.exp(known) * (known - learned), grid))
    assert np.max(divergence) < 0.05  # nats; forgetting an expert would cost more than one
    assert np.min(divergence) > -1e-6


def test_a_gaussian_is_recovered_in_raw_units_from_a_score_with_a_scale_for_each_dimension():
    mean, scale = np.array([100.0, -3.0]), np.array([20.0, 0.01])
    X = np.random.RandomState(0).uniform(-1, 1, size=(300, 2))
    teacher = known_teacher(one_mode, n_actions=2, action_mean=mean, action_scale=scale)
    student = VDDDistiller(n_experts=1, **LEARNING).fit(X, teacher=teacher)
    means, covariances = (values[:, 0] for values in student.experts(X))
    np.testing.assert_allclose((means - mean) / scale, X, atol=0.15)
    expected = np.diag((np.array([0.3, 0.8]) * scale) ** 2)
    # A tenth of the widths: what some hundred iterations leave.
    np.testing.assert_allclose(
        covariances.mean(axis=0) / np.outer(scale, scale),
        expected / np.outer(scale, scale),
        atol=0.07,
    )
    samples = student.sample(X[:1], 4000, random_state=0)[0]
    np.testing.assert_allclose(samples.std(axis=0), [0.3 * 20.0, 0.8 * 0.01], rtol=0.1)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"objective": "published"},
        *({"noise": noise} for noise in ("uniform", "anneal")),
        {"noise_min": 0.05},
        {"noise_max": 1.0},
        {"n_samples": 3},
        {"expert_steps": 1},
        {"likelihood_weight": 0.0},
        {"init": "random"},
        {"init_iter": 0},
        {"init_iter": 3},
        {"covariance": "diag"},
        {"scale_floor": 0.05},
        {"encoder": "mlp"},
        {"encoder": "transformer"},
        {"encoder": MLPEncoder(24, 1)},
        {"n_layers": 2},
        {"weight_decay": 10.0},
        {"batch_size": 16},
        {"n_experts": 3},
    ],
    ids=str,
)
def test_every_option_changes_what_is_learned(option, plain, teacher, two_ways):
    X, y = two_ways
    other = small_vdd(**option).fit(X, y, teacher=teacher)
    difference = np.abs(other.log_prob(X, y) - plain.log_prob(X, y)).max()
    assert np.isfinite(difference)
    assert difference > 1e-6


@pytest.mark.parametrize("noise", ["loguniform", "uniform", "anneal"])
def test_every_choice_of_noise_goes_with_the_published_objective(noise, teacher, two_ways):
    X, y = two_ways
    student = small_vdd(noise=noise, objective="published").fit(X, y, teacher=teacher)
    assert np.isfinite(student.log_prob(X, y)).all()


def test_a_subclass_may_draw_noise_levels_of_its_own(teacher, two_ways):
    X, y = two_ways
    drawn = []

    class Lowest(VDDDistiller):
        def _draw_levels(self, uniform, progress):
            drawn.append((uniform, progress))
            return self.noise_min + 0.0 * uniform

    settings = {**SMALL, "n_experts": 2, "init_iter": 2, "max_iter": 4, "window_size": 2}
    own = Lowest(**settings).fit(X, y, teacher=teacher)
    assert [progress for _, progress in drawn] == [i / 4 for i in range(4) for _ in range(2)]
    assert all(((uniform >= 0) & (uniform < 1)).all() for uniform, _ in drawn)
    # The same as levels between which there is nothing.
    narrow = VDDDistiller(**settings, noise_max=0.1 * (1 + 1e-12)).fit(X, y, teacher=teacher)
    np.testing.assert_allclose(answers(own, X), answers(narrow, X), atol=1e-6)


def test_diagonal_experts_have_diagonal_covariances(teacher, two_ways):
    X, y = two_ways
    _, covariances = small_vdd(covariance="diag").fit(X, y, teacher=teacher).experts(X)
    assert (covariances[..., 0, 1] == 0).all()


def test_the_automatic_encoder_is_the_teachers_where_it_has_one(teacher, plain, two_ways):
    X, y = two_ways
    taken = small_vdd(encoder="teacher").fit(X, y, teacher=teacher)
    assert_same(plain, taken, X)
    assert taken.network_.encoder_frozen
    transformer = small_teacher(window_size=2, architecture="gpt").fit(X, y)  # has none
    for its in (known_teacher(one_mode, n_actions=2), OwnTeacher(), transformer):
        auto, own = (
            small_vdd(encoder=encoder).fit(X, y, teacher=its) for encoder in ("auto", "mlp")
        )
        assert_same(auto, own, X)
        assert not auto.network_.encoder_frozen


def test_maximum_likelihood_comes_before_distillation_only_where_it_is_asked_for(teacher, two_ways):
    X, y = two_ways

    def stages(**parameters):
        history = small_vdd(**parameters).fit(X, y, teacher=teacher).history_
        return list(dict.fromkeys(row["stage"] for row in history))

    assert stages() == stages(init="random") == ["maximum likelihood", "distillation"]
    assert stages(init_iter=0) == stages(init="random", init_iter=0) == ["distillation"]


def test_the_history_tells_how_far_the_scores_are_apart(plain, teacher, two_ways):
    X, y = two_ways
    smoothed = plain.history_[-1]
    assert smoothed["score_gap"] > 0
    published = small_vdd(objective="published").fit(X, y, teacher=teacher).history_[-1]
    assert "score_gap" not in published
    assert {"experts", "gating", "entropy"} < set(smoothed)
    assert {"experts", "gating", "entropy"} < set(published)


@pytest.mark.parametrize("objective", ["smoothed", "published"])
def test_a_share_of_the_forward_divergence_changes_the_student_and_is_in_the_history(
    objective, teacher, two_ways
):
    X, y = two_ways
    alone, with_share = (
        small_vdd(objective=objective, likelihood_weight=weight).fit(X, y, teacher=teacher)
        for weight in (0.0, 0.3)
    )
    assert "likelihood" not in alone.history_[-1]
    assert np.isfinite(with_share.history_[-1]["likelihood"])
    assert not np.array_equal(answers(alone, X), answers(with_share, X))


def test_the_published_recipe_is_table_four():
    parameters = VDDDistiller.paper(n_experts=4, random_state=3).get_params()
    expected = {
        "teacher": None,
        "n_experts": 4,
        "random_state": 3,
        "objective": "published",
        "noise": "uniform",
        "noise_min": 0.2,
        "noise_max": 0.5,
        "n_samples": 2,
        "likelihood_weight": 0.0,
        "expert_steps": 2,
        "init": "random",
        "init_iter": 0,
        "covariance": "full",
        "encoder": "transformer",  # of four heads
        "hidden_size": 72,
        "n_layers": 4,
        "max_iter": 20_000,
        "batch_size": 1024,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "ema_decay": 0.0,
        "state_noise": 0.0,
    }
    assert {name: parameters[name] for name in expected} == expected
    assert VDDDistiller.paper(learning_rate=1.0).learning_rate == 1.0


# -- the teacher's encoder ------------------------------------------------------------------------


def encoder_of(policy):
    return {name: values.clone() for name, values in policy.network_.encoder.state_dict().items()}


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def through_a_file(student, folder):
    student.save(folder / "student.safetensors")
    return load(folder / "student.safetensors")


TRIPS = {
    "as it is": lambda student, folder: student,
    "saved and loaded": through_a_file,
    "pickled": lambda student, folder: pickle.loads(pickle.dumps(student)),
}


@pytest.mark.parametrize("trip", TRIPS)
def test_a_students_encoder_stays_its_teachers_for_ever(trip, teacher, two_ways, tmp_path):
    X, y = two_ways
    student = TRIPS[trip](small_vdd().fit(X, y, teacher=teacher), tmp_path)
    before = answers(student, X)
    for call in (student.partial_fit, student.set_params(warm_start=True).fit):
        call(X, y, teacher=teacher)
        assert_equal_weights(encoder_of(student), encoder_of(teacher))
        assert not any(p.requires_grad for p in student.network_.encoder.parameters())
        assert all(p.requires_grad for p in student.network_.trunk.parameters())
    assert np.abs(answers(student, X) - before).max() > 1e-4
    assert not student.network_.train().encoder.training


@pytest.mark.parametrize("trip", TRIPS)
def test_a_student_on_a_teachers_encoder_refuses_a_teacher_with_another(
    trip, teacher, two_ways, tmp_path
):
    X, y = two_ways
    student = TRIPS[trip](small_vdd().fit(X, y, teacher=teacher), tmp_path)
    flat = X.reshape(60, 6)
    pipeline = make_pipeline(FrozenEstimator(StandardScaler().fit(flat)), clone(teacher))
    others = [
        small_teacher(window_size=2, random_state=1).fit(X, y),
        small_teacher(window_size=2, architecture="gpt").fit(X, y),
        pipeline.fit(flat, y),
    ]
    message = (
        "partial_fit continues with the teacher of the last fit, but this teacher has another "
        "encoder. Call fit to start anew."
    )
    before = answers(student, X)
    for other in others:
        with pytest.raises(ValueError, match=exactly(message)):
            student.partial_fit(flat, y, teacher=other)
    np.testing.assert_array_equal(answers(student, X), before)


def test_a_student_with_an_encoder_of_its_own_may_change_teachers(teacher, two_ways):
    X, y = two_ways
    other = small_teacher(window_size=2, random_state=1).fit(X, y)
    student = small_vdd(encoder="mlp").fit(X, y, teacher=teacher)
    before = encoder_of(student)
    student.partial_fit(X, y, teacher=other)
    assert any(not torch.equal(before[name], now) for name, now in encoder_of(student).items())


# -- what was learned is what counts --------------------------------------------------------------


def test_parameters_set_after_fit_change_nothing(teacher, two_ways, tmp_path):
    X, y = two_ways
    student = small_vdd().fit(X, y, teacher=teacher)
    before = answers(student, X), student.sample(X, 3, random_state=0), student.log_prob(X, y)
    student.set_params(n_experts=5, covariance="diag", scale_floor=0.5, encoder="mlp")
    student.set_params(noise_min=0.3, hidden_size=7, objective="published")
    for policy in (student, through_a_file(student, tmp_path)):
        after = answers(policy, X), policy.sample(X, 3, random_state=0), policy.log_prob(X, y)
        np.testing.assert_equal(after, before)


def test_the_density_of_a_chunk_is_that_of_its_steps_one_after_the_other(two_ways):
    X, y = two_ways
    chunks = np.stack([y, y + 1, 2 * y], axis=1)
    student = small_vdd().fit(X, chunks, teacher=small_teacher(window_size=2).fit(X, chunks))
    means, covariances = student.experts(X)
    assert (means.shape, covariances.shape) == ((60, 2, 6), (60, 2, 6, 6))
    joint = np.log(student.gating(X)) + [
        [multivariate_normal.logpdf(chunk.ravel(), *expert) for expert in zip(*row, strict=True)]
        for chunk, *row in zip(chunks, means, covariances, strict=True)
    ]
    np.testing.assert_allclose(student.log_prob(X, chunks), logsumexp(joint, axis=1), rtol=1e-6)
    best = means[np.arange(60), student.gating(X).argmax(axis=1)]
    np.testing.assert_array_equal(student.predict(X), best.reshape(60, 3, 2))


# -- scikit-learn ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(two_ways):
    X, y = two_ways
    steps = make_pipeline(StandardScaler(), small_teacher(window_size=2))
    return steps.fit(X.reshape(60, 6), y)


@pytest.mark.parametrize(
    ("kind", "routing"),
    [*((kind, False) for kind in ("bare", "frozen", "pipeline", "score")), ("pipeline", True)],
)
def test_a_grid_search_passes_the_teacher_on(routing, kind, teacher, pipeline, two_ways):
    X, y = (values.reshape(60, -1) for values in two_ways)
    its = {
        "bare": teacher,
        "frozen": FrozenEstimator(teacher),
        "pipeline": pipeline,
        "score": known_teacher(one_mode, n_actions=2),
    }[kind]
    with sklearn.config_context(enable_metadata_routing=routing):
        search = GridSearchCV(small_vdd(max_iter=2, init_iter=2), {"n_experts": [1, 2]}, cv=2)
        search.fit(X, y, teacher=its)
    assert search.best_params_["n_experts"] in {1, 2}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert not hasattr(search.best_estimator_, "teacher_")


def test_a_grid_search_takes_a_pipeline_as_teacher_in_the_constructor(pipeline, two_ways):
    X, y = (values.reshape(60, -1) for values in two_ways)
    student = small_vdd(FrozenEstimator(pipeline), max_iter=2, init_iter=2)
    search = GridSearchCV(student, {"n_experts": [1, 2]}, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.teacher.estimator is pipeline


@pytest.mark.parametrize("routing", [False, True])
def test_episodes_stay_whole_in_a_search_over_groups(routing, teacher, two_ways):
    X, y = (values.reshape(60, -1) for values in two_ways)
    with sklearn.config_context(enable_metadata_routing=routing):
        search = GridSearchCV(
            small_vdd(max_iter=2, init_iter=2), {"n_experts": [1, 2]}, cv=GroupKFold(2)
        )
        search.fit(X, y, groups=np.arange(60) // 10, teacher=teacher)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


class Interrupt:
    """A callback that interrupts the first run of training at its first report."""

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.max_subtasks == 0:
            raise KeyboardInterrupt
        return False

    def teardown(self, estimator, context):
        pass


def test_an_interrupt_of_maximum_likelihood_ends_the_fit(teacher, two_ways):
    X, y = two_ways
    student = small_vdd(init_iter=6)
    student.set_callbacks(Interrupt())
    message = (
        "VDDDistiller: training was interrupted after 1 of 6 iterations; the policy is fitted "
        "with what it has learned so far."
    )
    with pytest.warns(ConvergenceWarning, match=exactly(message)):
        student.fit(X, y, teacher=teacher)
    assert student.interrupted_ is True
    assert {row["stage"] for row in student.history_} == {"maximum likelihood"}
    assert student.n_iter_ == 0
    assert np.isfinite(student.log_prob(X, y)).all()
    student.set_callbacks()
    assert student.fit(X, y, teacher=teacher).interrupted_ is False


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(0.5, 0.1), (0.3, 0.3)])
def test_bounds_out_of_order_are_refused(bounds, teacher, two_ways):
    low, high = bounds
    message = f"noise_max must exceed noise_min, got noise_min={low} and noise_max={high}."
    with pytest.raises(ValueError, match=exactly(message)):
        small_vdd(noise_min=low, noise_max=high).fit(*two_ways, teacher=teacher)


@pytest.mark.parametrize("noise", ["loguniform", "uniform", "anneal"])
@pytest.mark.parametrize("bounds", [(0.001, 0.5), (0.1, 50.0)])
def test_bounds_beyond_the_teachers_noise_levels_are_refused(noise, bounds, teacher, two_ways):
    X, y = two_ways
    low, high = bounds
    message = (
        f"noise_min={low} and noise_max={high} must lie within the teacher's noise levels, "
        "[0.03, 5.0]."
    )
    student = small_vdd(noise=noise, noise_min=low, noise_max=high)
    for its in (known_teacher(one_mode, n_actions=2), teacher):
        with pytest.raises(ValueError, match=exactly(message)):
            student.fit(X, y, teacher=its)
    with pytest.raises(ValueError, match=exactly(message)):  # before a teacher is trained
        clone(student).set_params(teacher=clone(teacher)).fit(X, y)


NO_ENCODER = exactly(
    "encoder='teacher' of VDDDistiller needs a teacher with an encoder of the same states: not a "
    "ScoreTeacher, not architecture='gpt', and not behind a Pipeline. Use encoder='mlp'."
)


def test_an_encoder_cannot_be_taken_from_a_teacher_that_has_none(pipeline, two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    transformer = small_teacher(window_size=2, architecture="gpt").fit(X, y)
    for its in (known_teacher(one_mode, n_actions=2), pipeline, transformer, OwnTeacher()):
        with pytest.raises(ValueError, match=NO_ENCODER):
            small_vdd(encoder="teacher").fit(flat, y, teacher=its)
    with pytest.raises(ValueError, match=NO_ENCODER):
        small_vdd(known_teacher(one_mode, n_actions=2), encoder="teacher").fit(flat, y)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise", "interval"),
        ("init", "em"),
        ("init_iter", -1),
        ("objective", "paper"),
        ("n_samples", 0),
        ("expert_steps", 0),
        ("likelihood_weight", -0.1),
        ("encoder", "cnn"),
    ],
)
def test_invalid_parameters_are_named(name, value, two_ways):
    with pytest.raises(ValueError, match=f"^The '{name}' parameter of VDDDistiller must"):
        small_vdd(**{name: value}).fit(*two_ways)
