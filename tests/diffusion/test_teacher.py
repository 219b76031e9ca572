"""Teachers as distillers see them: policies, pipelines, frozen ones, and objects of one's own."""

import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skvdd import DiffusionPolicy, GaussianMoEPolicy, ScoreTeacher, VDDDistiller
from skvdd.diffusion import Teacher
from skvdd.diffusion.denoiser import Denoiser
from skvdd.diffusion.teacher import PolicyTeacher, as_teacher, is_ready, teacher_digest
from tests.estimators import SMALL, small_teacher

LEVEL = 0.7


def windows(n=30, seed=0):
    """Windows of two states of three numbers, far from zero, and actions of two."""
    rng = np.random.RandomState(seed)
    X = 5.0 + rng.standard_normal((n, 2, 3))
    return X, 10.0 * X[:, -1, :2] + rng.standard_normal((n, 2))


@pytest.fixture(scope="module")
def policy():
    """Fitted; tests must not change it."""
    return small_teacher(window_size=2).fit(*windows())


@pytest.fixture(scope="module")
def pipeline():
    """Fitted; tests must not change it."""
    X, y = windows()
    return make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(X.reshape(30, 6), y)


class Standing:
    """A teacher of one's own: standard normal actions in every state."""

    noise_min, noise_max = 0.1, 2.0
    action_mean, action_scale = np.zeros(2), np.ones(2)
    sees_states, replayable, network = True, False, None

    def prepare(self, X):
        return np.asarray(X)

    def context(self, states):
        return states.flatten(1)

    def score(self, context, actions, sigma):
        return -actions / (1 + sigma[..., None] ** 2)

    def denoise(self, context, actions, sigma):
        return actions / (1 + sigma[..., None] ** 2)

    def sample(self, X, *, random_state=None):
        return np.random.RandomState(random_state).standard_normal((len(X), 2))


def gaussian_score(states, actions, sigma):
    return -actions / (1 + sigma[..., None] ** 2)


def score_teacher(**arguments):
    settings = {"n_actions": 2, "noise_min": 0.1, "noise_max": 2.0}
    return ScoreTeacher(gaussian_score, **{**settings, **arguments})


# -- what is a teacher ----------------------------------------------------------------------


def test_whatever_is_fitted_and_gives_scores_is_seen_as_a_teacher(policy, pipeline):
    for given in (policy, pipeline, FrozenEstimator(policy), FrozenEstimator(pipeline)):
        teacher = as_teacher(given, "cpu")
        assert isinstance(teacher, PolicyTeacher)
        assert isinstance(teacher, Teacher)


@pytest.mark.parametrize("teacher", [Standing(), score_teacher()], ids=["own", "score"])
def test_what_is_a_teacher_already_is_taken_as_it_is(teacher):
    assert isinstance(teacher, Teacher)
    assert as_teacher(teacher) is teacher


@pytest.mark.parametrize(
    "thing",
    [
        None,
        "policy",
        DiffusionPolicy,
        LinearRegression(),
        make_pipeline(StandardScaler(), LinearRegression()),
        GaussianMoEPolicy(),
        FrozenEstimator(LinearRegression()),
        SimpleNamespace(noise_min=0.1, noise_max=2.0, score=gaussian_score),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_what_gives_no_scores_is_refused(thing):
    inner = thing.estimator if isinstance(thing, FrozenEstimator) else thing
    message = (
        "teacher must be a DiffusionPolicy, a Pipeline that ends in one, a FrozenEstimator of "
        "either, a ScoreTeacher, or an object of the protocol skvdd.diffusion.Teacher, got "
        f"{type(inner).__name__}."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        as_teacher(thing)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda policy: policy,
        FrozenEstimator,
        lambda policy: make_pipeline(StandardScaler(), policy),
    ],
    ids=["policy", "frozen", "pipeline"],
)
def test_a_teacher_that_is_not_fitted_is_refused(wrap):
    with pytest.raises(NotFittedError, match=r"the teacher .* is not fitted yet\. Fit it first"):
        as_teacher(wrap(small_teacher()))


def test_a_constructors_teacher_is_fitted_unless_it_is_frozen_or_gives_scores_alone(
    policy, pipeline
):
    assert is_ready(FrozenEstimator(policy))
    assert is_ready(FrozenEstimator(pipeline))
    assert is_ready(score_teacher())
    assert is_ready(Standing())
    for teacher in (policy, pipeline, small_teacher(), None):
        assert not is_ready(teacher)


# -- a policy -------------------------------------------------------------------------------


def ask(teacher, states, actions, call="score"):
    """Ask a teacher of raw states for standardized actions (n, S, m)."""
    level = torch.full((len(states), 1), LEVEL)
    with torch.no_grad():
        return getattr(teacher, call)(teacher.context(states), actions, level).double().numpy()


@pytest.mark.parametrize("given", ["policy", "pipeline"])
@pytest.mark.parametrize("call", ["score", "denoise"])
def test_a_teacher_answers_as_its_policy_in_standardized_actions(request, given, call):
    given = request.getfixturevalue(given)
    X, y = windows(10, seed=1)
    policy, rows = given, X.reshape(10, 6)
    if isinstance(given, Pipeline):
        policy, rows = given[-1], given[0].transform(rows)
    teacher = as_teacher(given, "cpu")
    standard = (y - teacher.action_mean) / teacher.action_scale
    prepared = torch.from_numpy(teacher.prepare(X))
    ours = ask(teacher, prepared, torch.from_numpy(standard).float()[:, None], call)[:, 0]
    if call == "score":  # the chain rule divides by the scale
        theirs = policy.score_function(rows, y, LEVEL) * teacher.action_scale
    else:
        theirs = (policy.denoise(rows, y, LEVEL) - teacher.action_mean) / teacher.action_scale
    # Single precision, in batches of another size.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_states_may_be_windows_or_flat_rows(policy):
    X, _ = windows(10, seed=1)
    teacher, actions = as_teacher(policy, "cpu"), torch.zeros(10, 4, 2)
    flat, window = torch.from_numpy(X.reshape(10, 6)), torch.from_numpy(X)
    np.testing.assert_array_equal(ask(teacher, window, actions), ask(teacher, flat, actions))


def test_a_goal_comes_at_the_end_of_a_flat_row():
    X = np.random.RandomState(0).standard_normal((30, 5))
    policy = small_teacher(window_size=2, goal_dim=1).fit(X, X[:, :2])
    teacher = as_teacher(policy, "cpu")
    moved = torch.from_numpy(X[:5]).clone()
    moved[:, -1] += 1.0
    before, after = (
        ask(teacher, rows, torch.zeros(5, 1, 2)) for rows in (torch.from_numpy(X[:5]), moved)
    )
    assert np.abs(after - before).max() > 1e-6


def test_a_teacher_has_the_normalization_and_the_noise_of_its_policy():
    X, y = windows()
    policy = small_teacher(sde="vp", window_size=2, noise_min=0.05, noise_max=3.0).fit(X, y)
    teacher = as_teacher(policy, "cpu")
    expected = policy.network_.action_normalization.statistics
    np.testing.assert_array_equal((teacher.action_mean, teacher.action_scale), expected)
    assert (teacher.noise_min, teacher.noise_max) == (0.05, 3.0)
    assert teacher.start_scale == pytest.approx(math.sqrt(10))
    assert teacher.action_shape == (2,)


def test_a_student_can_start_from_the_network_of_a_policy_but_not_of_a_pipeline(policy, pipeline):
    """Behind a pipeline it knows other states than the student sees."""
    alone, behind = as_teacher(policy, "cpu"), as_teacher(pipeline, "cpu")
    assert isinstance(alone.network, Denoiser)
    assert alone.sees_states
    assert behind.network is None
    assert not behind.sees_states
    assert alone.replayable
    assert behind.replayable


def test_a_pipeline_of_the_policy_alone_is_the_policy(policy):
    alone = as_teacher(Pipeline([("policy", policy)]), "cpu")
    assert alone.sees_states
    assert alone.network is not None


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_samples_are_those_of_the_policy_in_the_shape_of_its_actions(shape):
    X = np.random.RandomState(0).standard_normal((30, 2))
    y = np.random.RandomState(1).standard_normal((30, *shape))
    policy = small_teacher().fit(X, y)
    teacher = as_teacher(policy, "cpu")
    assert teacher.action_shape == shape
    assert teacher.action_mean.shape == (math.prod(shape),)
    np.testing.assert_array_equal(
        teacher.sample(X, random_state=3), policy.sample(X, random_state=3)
    )


@pytest.mark.parametrize("given", ["policy", "pipeline"])
def test_a_teacher_stays_what_it_was_when_its_policy_is_fitted_again(request, given):
    given = copy.deepcopy(request.getfixturevalue(given))
    X, y = windows(10, seed=1)
    teacher = as_teacher(given, "cpu")
    actions = torch.zeros(10, 1, 2)

    def answers():
        rows = teacher.prepare(X)
        scores = ask(teacher, torch.from_numpy(rows), actions)
        return rows, scores, teacher.sample(X, random_state=0)

    before = answers()
    given.fit(100.0 * X.reshape(10, 6), y)
    for ours, expected in zip(answers(), before, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_policy_stays_what_it_was_when_it_teaches(policy):
    teacher = as_teacher(policy, "cpu")
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert all(p.requires_grad for p in policy.network_.parameters())
    assert all(
        ours.data_ptr() != its.data_ptr()
        for ours, its in zip(teacher.model.parameters(), policy.network_.parameters(), strict=True)
    )


# -- a pipeline -----------------------------------------------------------------------------


def test_the_earlier_steps_are_applied_to_windows_and_to_flat_rows(pipeline):
    X, _ = windows(10, seed=1)
    teacher = as_teacher(pipeline, "cpu")
    expected = pipeline[0].transform(X.reshape(10, 6))
    np.testing.assert_array_equal(teacher.prepare(X.reshape(10, 6)), expected)
    np.testing.assert_array_equal(teacher.prepare(X), expected)


def test_samples_of_a_pipeline_pass_through_its_steps(pipeline):
    X, _ = windows(10, seed=1)
    teacher = as_teacher(pipeline, "cpu")
    flat = X.reshape(10, 6)
    expected = pipeline[-1].sample(pipeline[0].transform(flat), random_state=0)
    np.testing.assert_array_equal(teacher.sample(flat, random_state=0), expected)
    np.testing.assert_array_equal(teacher.sample(X, random_state=0), expected)


def test_steps_that_know_columns_by_name_get_them():
    X, y = windows()
    frame = pd.DataFrame(X.reshape(30, 6), columns=[f"s{i}" for i in range(6)])
    pipeline = make_pipeline(StandardScaler(), small_teacher(window_size=2)).fit(frame, y)
    expected = pipeline[0].transform(frame)
    np.testing.assert_array_equal(as_teacher(pipeline, "cpu").prepare(frame), expected)


@pytest.mark.parametrize("with_actions", [True, False])
def test_a_student_of_windows_learns_from_a_pipeline(pipeline, with_actions):
    X, y = windows()
    student = VDDDistiller(n_experts=2, window_size=2, init_iter=5, **SMALL)
    student.fit(X, y if with_actions else None, teacher=pipeline)
    assert student.predict(X).shape == (30, 2)
    np.testing.assert_array_equal(
        student.network_.action_normalization.statistics,
        pipeline[-1].network_.action_normalization.statistics,
    )


# -- a score --------------------------------------------------------------------------------

WIDTH = 0.25  # of the policy below, in standardized actions around the state
SCHEDULE = np.cumprod(1.0 - np.linspace(1e-3, 0.2, 100))


def gaussian_noise(noisy, timesteps, states):
    alpha_bar = torch.tensor(SCHEDULE).float()[timesteps, None]
    variance = alpha_bar * WIDTH**2 + 1 - alpha_bar
    return (1 - alpha_bar).sqrt() / variance * (noisy - alpha_bar.sqrt() * states[:, -1])


def gaussian_velocity(actions_t, t, states):
    mean, t = states[:, -1], t[:, None]
    slope = (t * WIDTH**2 - (1 - t)) / ((1 - t) ** 2 + (t * WIDTH) ** 2)
    return mean + slope * (actions_t - t * mean)


@pytest.mark.parametrize("kind", ["noise", "velocity"])
def test_a_student_learns_a_gaussian_through_a_network_of_either_kind(kind):
    units = {"n_actions": 1, "action_mean": 3.0, "action_scale": 2.0}
    if kind == "noise":
        teacher = ScoreTeacher.from_noise_prediction(gaussian_noise, SCHEDULE, **units)
    else:
        teacher = ScoreTeacher.from_velocity(gaussian_velocity, **units)
    X = np.random.RandomState(0).uniform(-1, 1, size=(200, 1))
    settings = {**SMALL, "max_iter": 150, "init_iter": 50, "noise_min": 0.05, "noise_max": 0.3}
    student = VDDDistiller(n_experts=1, state_noise=0.0, **settings).fit(X, teacher=teacher)
    y = 3.0 + 2.0 * X + np.random.RandomState(1).normal(scale=2.0 * WIDTH, size=X.shape)
    lost = norm.logpdf(y[:, 0], 3.0 + 2.0 * X[:, 0], 2.0 * WIDTH) - student.log_prob(X, y)
    # Means within a few tenths of the deviation of 0.5, after seconds of training.
    assert abs(student.predict(X) - (3.0 + 2.0 * X)).mean() < 0.2
    assert lost.mean() < 0.1


# -- telling teachers apart -----------------------------------------------------------------


def double(X):
    return 2 * X


def test_equal_teachers_have_one_digest(policy, pipeline):
    for teacher in (policy, pipeline, score_teacher(), Standing()):
        expected = teacher_digest(teacher)
        assert teacher_digest(copy.deepcopy(teacher)) == expected
        assert teacher_digest(FrozenEstimator(teacher)) == expected


def test_a_digest_does_not_depend_on_where_things_lie_in_memory(policy):
    """A resumed fit runs in another process."""
    digest = teacher_digest(Pipeline([("f", FunctionTransformer(double)), ("policy", policy)]))
    assert "0x" not in digest
    passing = Pipeline([("nothing", "passthrough"), ("policy", policy)])
    assert teacher_digest(passing) != digest


def test_policies_of_other_weights_noise_or_sampling_have_other_digests(policy):
    X, y = windows()

    def fitted(**parameters):
        return small_teacher(window_size=2, **parameters).fit(X, y)

    others = [
        policy,
        fitted(random_state=1),
        fitted(noise_max=4.0),
        fitted(schedule="linear"),
        policy.with_sampler("heun"),
        policy.with_sampler(n_steps=5),
        small_teacher(window_size=2).fit(X, 2 * y),
    ]
    assert len({teacher_digest(other) for other in others}) == len(others)


def test_pipelines_of_other_steps_have_other_digests(policy, pipeline):
    X, _ = windows()
    flat = X.reshape(30, 6)

    def behind(*steps):
        return make_pipeline(*steps, policy)

    others = [
        policy,
        behind(StandardScaler().fit(flat)),
        behind(StandardScaler().fit(flat + 1.0)),
        behind(StandardScaler(with_mean=False).fit(flat)),
        behind(StandardScaler().fit(flat), FunctionTransformer()),
    ]
    assert len({teacher_digest(other) for other in others}) == len(others)


def test_score_teachers_of_other_units_or_levels_have_other_digests():
    others = [
        score_teacher(),
        score_teacher(noise_min=0.2),
        score_teacher(noise_max=3.0),
        score_teacher(action_mean=[0.0, 1.0]),
        score_teacher(action_scale=2.0),
        Standing(),
    ]
    assert len({teacher_digest(other) for other in others}) == len(others)
