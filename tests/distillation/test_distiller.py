"""The distiller as an estimator: where its teacher comes from, what its options do, its errors."""

import re

import numpy as np
import pytest
import sklearn
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvdd import DiffusionPolicy, ScoreTeacher, VDDDistiller
from skvdd.distillation.base import SAMPLING_STEPS, sample_actions
from tests.estimators import SMALL, small_teacher


def small_student(teacher=None, **parameters):
    settings = {**SMALL, "n_experts": 2, "init_iter": 6, "max_iter": 10, "window_size": 2}
    return VDDDistiller(teacher, **{**settings, **parameters})


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
def teacher(two_ways):
    return small_teacher(window_size=2).fit(*two_ways)


@pytest.fixture(scope="module")
def plain(teacher, two_ways):
    """A student of the defaults, to compare others with."""
    return small_student().fit(*two_ways, teacher=teacher)


def exactly(message):
    return f"^{re.escape(message)}$"


def answers(policy, X, y):
    """Everything that a mixture is made of, so that equality is that of the policies."""
    return np.concatenate([part.ravel() for part in (policy.gating(X), *policy.experts(X))])


def assert_same(one, other, X, y):
    np.testing.assert_array_equal(answers(one, X, y), answers(other, X, y))


# Two experts in closed form: three in ten actions lie below the state, seven in ten above it.
SHARES, OFFSETS, WIDTH = (0.3, 0.7), (-1.0, 1.0), 0.3


def known_score(states, actions, noise_level):
    """Score of the noised mixture around the last state."""
    means = states[:, -1, :1, None] + torch.tensor(OFFSETS)
    variance = WIDTH**2 + noise_level[..., None] ** 2
    distance = means - actions
    weight = torch.softmax(torch.tensor(SHARES).log() - distance**2 / (2 * variance), dim=-1)
    return (weight * distance).sum(dim=-1, keepdim=True) / variance


def known_log_density(state, actions):
    parts = [
        np.log(share) + norm.logpdf(actions, state + offset, WIDTH)
        for share, offset in zip(SHARES, OFFSETS, strict=True)
    ]
    return np.logaddexp(*parts)


def known_teacher(score=known_score, **units):
    return ScoreTeacher(score, n_actions=1, noise_min=0.02, noise_max=5.0, **units)


# -- where the teacher comes from -----------------------------------------------------------------


def test_a_teacher_given_to_fit_is_one_frozen_in_the_constructor(teacher, two_ways):
    X, y = two_ways
    in_fit = small_student().fit(X, y, teacher=teacher)
    frozen = small_student(FrozenEstimator(teacher)).fit(X, y)
    frozen_in_fit = small_student().fit(X, y, teacher=FrozenEstimator(teacher))
    assert_same(in_fit, frozen, X, y)
    assert_same(in_fit, frozen_in_fit, X, y)


def test_a_teacher_fitted_here_is_one_fitted_beforehand(teacher, two_ways):
    X, y = two_ways
    here = small_student(clone(teacher)).fit(X, y)
    np.testing.assert_array_equal(here.teacher_.predict(X), teacher.predict(X))
    assert_same(here, small_student().fit(X, y, teacher=teacher), X, y)


def test_a_teacher_without_a_seed_takes_one_from_the_student(two_ways):
    X, y = two_ways
    unseeded = small_teacher(window_size=2, random_state=None)
    first, second = (small_student(unseeded).fit(X, y) for _ in range(2))
    assert_same(first, second, X, y)
    assert isinstance(first.teacher_.random_state, int)
    assert unseeded.random_state is None


def test_only_a_teacher_fitted_here_is_kept(teacher, two_ways):
    X, y = two_ways
    student = small_student(clone(teacher)).fit(X, y)
    assert student.teacher_ is not student.teacher
    assert not hasattr(student.teacher, "network_")
    student.fit(X, y, teacher=teacher)
    assert not hasattr(student, "teacher_")
    assert not hasattr(small_student(FrozenEstimator(teacher)).fit(X, y), "teacher_")


def test_a_fitted_teacher_in_the_constructor_is_fitted_anew(teacher, two_ways):
    X, y = two_ways
    before = teacher.predict(X)
    student = small_student(teacher).fit(X, 2 * y)
    np.testing.assert_array_equal(teacher.predict(X), before)
    assert np.abs(student.teacher_.predict(X) - before).max() > 1e-3


def test_without_any_teacher_a_diffusion_policy_of_this_window_is_trained(two_ways, monkeypatch):
    X, y = two_ways
    short = DiffusionPolicy.fit

    def fit(self, X, y):
        return short(self.set_params(max_iter=2, batch_size=8), X, y)

    monkeypatch.setattr(DiffusionPolicy, "fit", fit)
    student = small_student().fit(X, y)
    assert type(student.teacher_) is DiffusionPolicy
    expected = DiffusionPolicy(window_size=2, max_iter=2, batch_size=8).get_params()
    trained = student.teacher_.get_params()
    assert isinstance(trained.pop("random_state"), int)
    assert trained == {name: expected[name] for name in trained}


def test_a_given_teacher_is_not_modified(teacher, two_ways):
    X, y = two_ways
    before = teacher.sample(X, random_state=0)
    weights = {name: value.clone() for name, value in teacher.network_.state_dict().items()}
    trainable = [p.requires_grad for p in teacher.network_.parameters()]
    student = small_student().fit(X, y, teacher=teacher)
    assert [p.requires_grad for p in teacher.network_.parameters()] == trainable
    assert all(trainable)
    assert {p.device.type for p in teacher.network_.parameters()} == {"cpu"}
    for name, value in teacher.network_.state_dict().items():
        assert torch.equal(value, weights[name])
    np.testing.assert_array_equal(teacher.sample(X, random_state=0), before)
    shared = {p.data_ptr() for p in teacher.network_.parameters()}
    assert shared.isdisjoint(p.data_ptr() for p in student.network_.parameters())


def test_units_and_encoder_are_the_teachers(teacher, two_ways):
    X, y = two_ways
    student = small_student().fit(X, y, teacher=teacher)
    np.testing.assert_array_equal(student.action_scaler_.mean_, teacher.action_scaler_.mean_)
    np.testing.assert_array_equal(student.state_scaler_.scale_, teacher.state_scaler_.scale_)
    own = student.network_.encoder.state_dict()
    for name, value in teacher.network_.encoder.state_dict().items():
        assert torch.equal(own[name], value)
    assert not any(p.requires_grad for p in student.network_.encoder.parameters())


def test_a_pipeline_is_a_teacher_that_sees_its_own_states(two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    pipeline = make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(flat, y)
    student = small_student().fit(flat, y, teacher=pipeline)
    frozen = small_student(FrozenEstimator(pipeline)).fit(flat, y)
    here = small_student(clone(pipeline)).fit(flat, y)
    assert_same(student, frozen, flat, y)
    assert_same(student, here, flat, y)
    columns = X.reshape(-1, 3)
    np.testing.assert_allclose(student.state_scaler_.mean_, columns.mean(axis=0))
    np.testing.assert_array_equal(student.action_scaler_.mean_, pipeline[-1].action_scaler_.mean_)


def test_earlier_steps_of_a_pipeline_are_applied_to_the_states(two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    pipeline = make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(flat, y)
    bare = small_student(encoder="mlp").fit(flat, y, teacher=pipeline[-1])
    piped = small_student(encoder="mlp").fit(flat, y, teacher=pipeline)
    assert np.abs(answers(bare, flat, y) - answers(piped, flat, y)).max() > 1e-5


# -- a teacher in closed form ---------------------------------------------------------------------


@pytest.mark.parametrize("units", [{}, {"action_mean": 0.5, "action_scale": 2.0}])
def test_a_known_density_is_recovered_from_its_score_alone(units):
    X = np.linspace(-1, 1, 400)[:, None]
    student = VDDDistiller(
        n_experts=2,
        hidden_size=16,
        n_layers=1,
        init_iter=100,
        max_iter=250,
        batch_size=128,
        learning_rate=5e-3,
        noise_min=0.05,
        state_noise=0.0,
        random_state=0,
    ).fit(X, teacher=known_teacher(**units))
    grid = np.linspace(-4.5, 4.5, 901)
    divergence = []
    for state in (-0.8, -0.2, 0.3, 0.9):
        known = known_log_density(state, grid)
        learnt = student.log_prob(np.full((901, 1), state), grid[:, None])
        divergence.append(np.trapezoid(np.exp(known) * (known - learnt), grid))
    assert np.max(divergence) < 0.05  # nats; forgetting an expert would cost more than one
    assert np.min(divergence) > -1e-6


def test_a_score_may_be_given_in_the_constructor(two_ways):
    X, _ = two_ways
    given = small_student().fit(X, teacher=known_teacher())
    held = small_student(known_teacher()).fit(X)
    assert_same(given, held, X, None)
    assert not hasattr(held, "teacher_")


def test_the_score_is_asked_in_raw_units_within_its_noise_levels():
    asked = []

    def score(states, actions, noise_level):
        asked.append((states, actions, noise_level))
        return known_score(states, actions, noise_level)

    X = 100 + np.random.RandomState(0).uniform(-1, 1, size=(50, 2))
    student = small_student(window_size=1, state_noise=0.0)
    student.fit(X, teacher=known_teacher(score, action_mean=100.0, action_scale=2.0))
    rows = torch.from_numpy(X).float()
    for states, actions, noise_level in asked:
        n, n_actions, _ = actions.shape
        assert states.shape == (n, 1, 2)
        assert noise_level.shape == (n, 1)
        assert actions.shape == (n, n_actions, 1)
        assert {values.dtype for values in (states, actions, noise_level)} == {torch.float32}
        assert not any(values.requires_grad for values in (states, actions, noise_level))
        nearest = (states - rows[None]).abs().amax(dim=2).amin(dim=1)
        assert nearest.max() < 1e-4
        assert noise_level.min() >= 0.02 * 2.0 * 0.999
        assert noise_level.max() <= 5.0 * 2.0 * 1.001


# -- data -----------------------------------------------------------------------------------------


def test_without_actions_the_gating_learns_from_those_of_the_teacher(teacher, two_ways):
    X, y = two_ways
    without = small_student().fit(X, teacher=teacher)
    told = small_student(gating_actions="teacher").fit(X, y, teacher=teacher)
    assert_same(without, told, X, y)
    assert without.n_actions_ == 2


def test_actions_of_one_dimension_have_the_shape_that_the_teacher_was_given(two_ways):
    X, y = two_ways
    flat = small_teacher(window_size=2).fit(X, y[:, 0])
    column = small_teacher(window_size=2).fit(X, y[:, :1])
    assert small_student().fit(X, teacher=flat).predict(X).shape == (60,)
    assert small_student().fit(X, teacher=column).predict(X).shape == (60, 1)
    given = small_student().fit(X, y[:, 0], teacher=column)
    assert given.predict(X).shape == given.sample(X).shape == (60,)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"objective": "published"},
        *({"noise": noise} for noise in ("interval", "anneal", "uniform", "min", "max")),
        {"noise_min": 0.05},
        {"noise_max": 1.0},
        {"n_samples": 3},
        {"expert_steps": 1},
        {"gating_steps": 2},
        {"expert_weighting": "uniform"},
        {"learn_gating": False},
        {"gating_actions": "teacher"},
        {"init": "kmeans"},
        {"init": "random"},
        {"init_iter": 3},
        {"covariance": "diag"},
        {"scale_floor": 0.05},
        {"encoder": "mlp"},
        {"encoder": "transformer"},
        {"n_layers": 2},
        {"weight_decay": 10.0},
        {"batch_size": 16},
        {"n_experts": 3},
    ],
    ids=str,
)
def test_every_option_changes_what_is_learnt(option, plain, teacher, two_ways):
    X, y = two_ways
    other = small_student(**option).fit(X, y, teacher=teacher)
    difference = np.abs(other.log_prob(X, y) - plain.log_prob(X, y)).max()
    assert np.isfinite(difference)
    assert difference > 1e-6


@pytest.mark.parametrize("noise", ["loguniform", "interval", "anneal", "uniform", "min", "max"])
def test_every_choice_of_noise_goes_with_the_published_objective(noise, teacher, two_ways):
    X, y = two_ways
    student = small_student(noise=noise, objective="published").fit(X, y, teacher=teacher)
    assert np.isfinite(student.log_prob(X, y)).all()


def test_the_bounds_do_not_matter_to_choices_that_leave_them_aside(teacher, two_ways):
    X, y = two_ways
    for noise in ("min", "max", "uniform"):
        near, far = (
            small_student(max_iter=3, noise=noise, **bounds).fit(X, y, teacher=teacher)
            for bounds in ({}, {"noise_min": 1e-9, "noise_max": 1e9})
        )
        assert_same(near, far, X, y)


def test_a_gating_that_is_not_learnt_is_uniform(teacher, two_ways):
    X, y = two_ways
    student = small_student(n_experts=5, learn_gating=False).fit(X, y, teacher=teacher)
    np.testing.assert_allclose(student.gating(X), 0.2, rtol=1e-6)
    assert "gating" not in {
        name for row in student.history_ if row["stage"] == "distillation" for name in row
    }


def test_diagonal_experts_have_diagonal_covariances(teacher, two_ways):
    X, y = two_ways
    _, covariances = small_student(covariance="diag").fit(X, y, teacher=teacher).experts(X)
    assert (covariances[..., 0, 1] == 0).all()


def test_the_automatic_encoder_is_the_teachers_where_it_has_one(teacher, two_ways):
    X, y = two_ways
    auto, taken = (
        small_student(encoder=encoder).fit(X, y, teacher=teacher) for encoder in ("auto", "teacher")
    )
    assert_same(auto, taken, X, y)
    auto, own = (
        small_student(encoder=encoder).fit(X, teacher=known_teacher())
        for encoder in ("auto", "mlp")
    )
    assert_same(auto, own, X, y)


def test_random_experts_start_in_the_unit_cube_with_unit_variance(teacher, two_ways):
    X, y = two_ways
    student = small_student(n_experts=200, init="random", max_iter=0).fit(X, y, teacher=teacher)
    means, covariances = student.experts(X)
    scale = teacher.action_scaler_.scale_
    standard = (means - teacher.action_scaler_.mean_) / scale
    assert (standard == standard[:1]).all()  # the same in every state
    assert -1 <= standard.min() < -0.95
    assert 0.95 < standard.max() <= 1
    expected = np.broadcast_to(np.diag(scale**2), covariances.shape)
    np.testing.assert_allclose(covariances, expected, rtol=1e-5)


def test_maximum_likelihood_comes_before_distillation_only_where_it_is_asked_for(teacher, two_ways):
    X, y = two_ways

    def stages(**parameters):
        history = small_student(**parameters).fit(X, y, teacher=teacher).history_
        return list(dict.fromkeys(row["stage"] for row in history))

    assert stages() == ["maximum likelihood", "distillation"]
    assert stages(init="kmeans") == stages(init="random") == ["distillation"]


def test_the_history_tells_how_far_the_scores_are_apart(teacher, two_ways):
    X, y = two_ways
    smoothed = small_student().fit(X, y, teacher=teacher).history_[-1]
    assert smoothed["score_gap"] > 0
    published = small_student(objective="published").fit(X, y, teacher=teacher).history_[-1]
    assert "score_gap" not in published
    assert {"experts", "gating", "entropy"} < set(smoothed)
    assert {"experts", "gating", "entropy"} < set(published)


@pytest.mark.parametrize("objective", ["smoothed", "published"])
def test_a_share_of_the_forward_divergence_changes_the_student_and_is_in_the_history(
    objective, teacher, two_ways
):
    X, y = two_ways
    alone, with_share = (
        small_student(objective=objective, likelihood_weight=weight).fit(X, y, teacher=teacher)
        for weight in (0.0, 0.3)
    )
    assert "likelihood" not in alone.history_[-1]
    assert np.isfinite(with_share.history_[-1]["likelihood"])
    assert not np.array_equal(answers(alone, X, y), answers(with_share, X, y))


def test_the_published_recipe_is_table_four():
    parameters = VDDDistiller.paper(n_experts=4, random_state=3).get_params()
    expected = {
        "teacher": None,
        "n_experts": 4,
        "random_state": 3,
        "objective": "published",
        "noise": "interval",
        "noise_min": 0.2,
        "noise_max": 0.5,
        "n_samples": 2,
        "likelihood_weight": 0.0,
        "expert_steps": 2,
        "gating_steps": 1,
        "expert_weighting": "gating",
        "learn_gating": True,
        "init": "random",
        "covariance": "full",
        "encoder": "transformer",
        "hidden_size": 72,
        "n_layers": 4,
        "n_heads": 4,
        "max_iter": 20_000,
        "batch_size": 1024,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "ema_decay": 0.0,
        "state_noise": 0.0,
    }
    assert {name: parameters[name] for name in expected} == expected
    assert VDDDistiller.paper(learning_rate=1.0).learning_rate == 1.0


# -- scikit-learn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize("wrap", [lambda teacher: teacher, FrozenEstimator], ids=["bare", "frozen"])
def test_a_grid_search_passes_the_teacher_on(routing, wrap, teacher, two_ways):
    X, y = (values.reshape(60, -1) for values in two_ways)
    with sklearn.config_context(enable_metadata_routing=routing):
        search = GridSearchCV(small_student(max_iter=5), {"n_experts": [1, 2]}, cv=2)
        search.fit(X, y, teacher=wrap(teacher))
    assert search.best_params_["n_experts"] in {1, 2}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert not hasattr(search.best_estimator_, "teacher_")


def test_a_grid_search_takes_a_pipeline_as_teacher_in_the_constructor(two_ways):
    # Not in its fit: scikit-learn takes a pipeline, which has a length, for one value a row.
    X, y = (values.reshape(60, -1) for values in two_ways)
    pipeline = make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(X, y)
    student = small_student(FrozenEstimator(pipeline), max_iter=5)
    search = GridSearchCV(student, {"n_experts": [1, 2]}, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.teacher.estimator is pipeline


@pytest.mark.parametrize("routing", [False, True])
def test_episodes_stay_whole_in_a_search_over_groups(routing, teacher, two_ways):
    X, y = (values.reshape(60, -1) for values in two_ways)
    with sklearn.config_context(enable_metadata_routing=routing):
        search = GridSearchCV(small_student(max_iter=5), {"n_experts": [1, 2]}, cv=GroupKFold(2))
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
    student = small_student()
    student.set_callbacks(Interrupt())
    message = (
        "VDDDistiller: training was interrupted after 1 of 6 iterations; the policy is fitted "
        "with what it has learnt so far."
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


def test_a_teacher_of_another_window_is_refused(two_ways):
    X, y = two_ways
    teacher = small_teacher(window_size=1).fit(X[:, -1], y)
    message = (
        "the teacher has window_size=1, but VDDDistiller has window_size=2; they must be equal."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        small_student().fit(X, y, teacher=teacher)
    with pytest.raises(ValueError, match=exactly(message)):
        small_student(FrozenEstimator(teacher)).fit(X, y)


def test_a_teacher_of_other_states_is_refused(teacher, two_ways):
    X, y = two_ways
    message = "X has 4 features, but DiffusionPolicy is expecting 6 features as input."
    with pytest.raises(ValueError, match=exactly(message)):
        small_student().fit(X[:, :, :2], y, teacher=teacher)


def test_a_teacher_of_other_actions_is_refused(teacher, two_ways):
    X, y = two_ways
    message = "y has 1 action dimensions, but the teacher has 2."
    with pytest.raises(ValueError, match=exactly(message)):
        small_student().fit(X, y[:, 0], teacher=teacher)


def test_an_unfitted_teacher_given_to_fit_is_refused(two_ways):
    X, y = two_ways
    message = (
        "the teacher given to fit, DiffusionPolicy, is not fitted yet. Fit it first, or give it "
        "to the constructor, which fits a clone of it on (X, y)."
    )
    teacher = small_teacher(window_size=2)
    for unfitted in (teacher, FrozenEstimator(teacher), make_pipeline(StandardScaler(), teacher)):
        with pytest.raises(NotFittedError, match=exactly(message)):
            small_student().fit(X, y, teacher=unfitted)


def not_a_teacher(name):
    return exactly(
        "teacher must be a DiffusionPolicy, a Pipeline that ends in one, a FrozenEstimator of "
        f"either, or a ScoreTeacher, got {name}."
    )


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        ("teacher", "str"),
        (LinearRegression(), "LinearRegression"),
        (FrozenEstimator(LinearRegression()), "LinearRegression"),
        (make_pipeline(StandardScaler(), LinearRegression()), "Pipeline"),
        (known_score, "function"),
    ],
)
def test_what_is_no_teacher_is_refused_by_fit(thing, name, two_ways):
    with pytest.raises(TypeError, match=not_a_teacher(name)):
        small_student().fit(*two_ways, teacher=thing)


def test_a_pipeline_that_ends_in_no_teacher_is_refused_by_the_constructor_too(two_ways):
    pipeline = make_pipeline(StandardScaler(), LinearRegression())
    with pytest.raises(TypeError, match=not_a_teacher("Pipeline")):
        small_student(pipeline).fit(*two_ways)
    with pytest.raises(ValueError, match=r"^The 'teacher' parameter of VDDDistiller must be"):
        small_student(LinearRegression()).fit(*two_ways)


@pytest.mark.parametrize("held", [None, small_teacher(window_size=2)], ids=["none", "unfitted"])
def test_neither_actions_nor_a_fitted_teacher_is_refused(held, two_ways):
    message = (
        "VDDDistiller requires y to be passed, but the target y is None: without actions a "
        "teacher must be given, already fitted, as fit(X, teacher=...)."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        small_student(held).fit(two_ways[0])


@pytest.mark.parametrize("bounds", [(0.5, 0.1), (0.3, 0.3)])
def test_bounds_out_of_order_are_refused(bounds, teacher, two_ways):
    low, high = bounds
    message = f"noise_max must exceed noise_min, got noise_min={low} and noise_max={high}."
    with pytest.raises(ValueError, match=exactly(message)):
        small_student(noise_min=low, noise_max=high).fit(*two_ways, teacher=teacher)


@pytest.mark.parametrize("noise", ["loguniform", "interval", "anneal"])
@pytest.mark.parametrize("bounds", [(0.001, 0.5), (0.1, 50.0)])
def test_bounds_beyond_the_teachers_noise_levels_are_refused(noise, bounds, two_ways):
    X, _ = two_ways
    low, high = bounds
    message = (
        f"noise_min={low} and noise_max={high} must lie within the teacher's noise levels, "
        "[0.02, 5.0]."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        small_student(noise=noise, noise_min=low, noise_max=high).fit(X, teacher=known_teacher())


def test_an_encoder_cannot_be_taken_from_a_teacher_that_has_none(two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    message = (
        "encoder='teacher' needs a teacher with an encoder of the same states: not a "
        "ScoreTeacher, not architecture='gpt', and not behind a Pipeline. Use encoder='mlp'."
    )
    pipeline = make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(flat, y)
    for teacher in (known_teacher(), pipeline):
        with pytest.raises(ValueError, match=exactly(message)):
            small_student(encoder="teacher").fit(
                flat, y[:, : 1 + (teacher is pipeline)], teacher=teacher
            )


def test_a_score_of_another_shape_is_refused(two_ways):
    X, y = two_ways
    student = small_student(batch_size=60)
    expected = (
        "the score function must return a tensor of shape (60, 4, 1) for actions of that shape"
    )
    teacher = known_teacher(
        lambda states, actions, noise_level: known_score(states, actions, noise_level)[..., 0]
    )
    with pytest.raises(ValueError, match=exactly(f"{expected}, got (60, 4).")):
        student.fit(X, y[:, :1], teacher=teacher)
    teacher = known_teacher(lambda states, actions, noise_level: actions.numpy())
    with pytest.raises(ValueError, match=exactly(f"{expected}, got ndarray.")):
        student.fit(X, y[:, :1], teacher=teacher)


def test_a_warm_start_refuses_another_teacher(two_ways):
    X, y = two_ways
    first = small_teacher(window_size=2).fit(X, y)
    other = small_teacher(window_size=2, random_state=1).fit(X, y)
    student = VDDDistiller(n_experts=2, init_iter=5, window_size=2, warm_start=True, **SMALL)
    student.fit(X, y, teacher=first).fit(X, y, teacher=first)
    message = (
        "warm_start=True goes on with the teacher of the last fit, but this teacher has other "
        "units or another encoder. Set warm_start=False."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        student.fit(X, y, teacher=other)


def test_actions_drawn_from_a_variance_preserving_teacher_keep_to_its_process_and_range(two_ways):
    """Without y a student learns from what the teacher itself would do, clipped as it does."""
    X, y = two_ways
    teacher = small_teacher(sde="vp", window_size=2, max_iter=100).fit(X, y)
    student = small_student(window_size=2)
    rng = np.random.RandomState(0)
    view = student._view_teacher(teacher, X, student._check_training_states(X))
    drawn = sample_actions(view, 0)
    assert view.sigmas == teacher._noise().of_sampling(SAMPLING_STEPS)
    low, high = teacher.network_.action_range
    assert bool(((drawn >= low) & (drawn <= high)).all())
    own = teacher.sample(X, n_steps=SAMPLING_STEPS, random_state=rng)
    raw = teacher._raw_actions(drawn)
    # Two samples of the same distribution: means within 5 standard errors.
    error = np.sqrt((own.var(axis=0) + raw.var(axis=0)) / len(own))
    assert np.all(np.abs(own.mean(axis=0) - raw.mean(axis=0)) < 5 * error)
