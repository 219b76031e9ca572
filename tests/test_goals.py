"""Goals: the last columns of a row, for every policy that takes them and from end to end."""

import functools
import re

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from skvdd import (
    ConsistencyDistiller,
    ConsistencyTrajectoryDistiller,
    DiffusionPolicy,
    GaussianMoEPolicy,
    ScoreTeacher,
    VDDDistiller,
    load,
)
from skvdd.datasets import Demonstrations, Episode, append_goals
from skvdd.encoders import Encoder
from tests.estimators import ask, methods

TINY = {
    "window_size": 2,
    "goal_dim": 2,
    "hidden_size": 8,
    "n_layers": 1,
    "max_iter": 5,
    "batch_size": 32,
    "random_state": 0,
}


def make_estimators(**parameters):
    """Return an unfitted instance of every policy that takes goals, by name."""
    settings = {**TINY, **parameters}
    teacher = {**settings, "n_steps": 4}
    return {
        "mlp": DiffusionPolicy(**teacher),
        "transformer": DiffusionPolicy(encoder="transformer", **teacher),
        "gpt": DiffusionPolicy(architecture="gpt", **teacher),
        "vp": DiffusionPolicy(sde="vp", **teacher),
        "vp gpt": DiffusionPolicy(sde="vp", architecture="gpt", **teacher),
        "mixture": GaussianMoEPolicy(2, **settings),
        "mixture transformer": GaussianMoEPolicy(2, encoder="transformer", **settings),
        "distiller": VDDDistiller(DiffusionPolicy(**teacher), n_experts=2, init_iter=5, **settings),
        "distiller of gpt": VDDDistiller(
            DiffusionPolicy(architecture="gpt", **teacher), n_experts=2, init_iter=5, **settings
        ),
        "consistency": ConsistencyDistiller(DiffusionPolicy(**teacher), **settings),
        "consistency of gpt": ConsistencyDistiller(
            DiffusionPolicy(architecture="gpt", **teacher), **settings
        ),
        "trajectory": ConsistencyTrajectoryDistiller(DiffusionPolicy(**teacher), **settings),
        "trajectory of gpt": ConsistencyTrajectoryDistiller(
            DiffusionPolicy(architecture="gpt", **teacher), **settings
        ),
    }


ESTIMATORS = make_estimators()
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


def make_rows(n=40, seed=0):
    """Rows of two states of three dimensions and a goal of two, and actions close to the goal."""
    rng = np.random.RandomState(seed)
    windows, goals = rng.uniform(-1, 1, (n, 2, 3)), rng.uniform(-1, 1, (n, 2))
    return append_goals(windows, goals), goals + 0.1 * rng.standard_normal((n, 2))


@functools.cache
def fitted(name):
    """Return a fitted policy; tests must not change it."""
    return clone(ESTIMATORS[name]).fit(*make_rows())


def row_methods(policy):
    """Return the names of the methods that answer row by row."""
    return [name for name in methods(policy) if name != "score"]


# -- the contract ---------------------------------------------------------------------------


@every_estimator
def test_shapes_are_those_of_the_contract(name):
    policy, (X, y) = fitted(name), make_rows()
    assert policy.n_features_in_ == 8
    assert policy.sample(X).shape == policy.predict(X).shape == policy.act(X).shape == (40, 2)
    assert policy.sample(X, n_samples=3).shape == (40, 3, 2)
    if hasattr(policy, "log_prob"):
        log_prob = ask(policy, "log_prob", X, y)
        assert log_prob.shape == (40,)
        assert np.isfinite(log_prob).all()


@every_estimator
def test_windows_with_three_axes_have_no_room_for_a_goal(name):
    windows, (_, y) = np.zeros((40, 2, 3)), make_rows()
    message = (
        "X must be flat, (n, window_size * d + goal_dim), for goal_dim=2, got shape (40, 2, 3). "
        "skvdd.datasets.append_goals(windows, goals) builds it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        clone(ESTIMATORS[name]).fit(windows, y)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fitted(name).predict(windows)


@every_estimator
@pytest.mark.parametrize("n_columns", [7, 3, 2, 1])
def test_columns_that_do_not_fit_are_refused(name, n_columns):
    X, y = make_rows()
    message = f"X has {n_columns} columns, which does not fit window_size=2 and goal_dim=2:"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        clone(ESTIMATORS[name]).fit(X[:, :n_columns], y)


@pytest.mark.parametrize("name", ["mlp", "gpt", "mixture", "distiller"])
def test_a_query_has_the_columns_of_the_fit(name):
    X, _ = make_rows()
    with pytest.raises(ValueError, match="X has 6 features"):
        fitted(name).predict(X[:, :6])


@every_estimator
def test_a_row_is_the_same_alone_and_in_a_batch(name):
    policy, (X, y) = fitted(name), make_rows()
    for method in row_methods(policy):
        together = ask(policy, method, X, y)
        np.testing.assert_array_equal(ask(policy, method, X[:1], y[:1]), together[:1])


@every_estimator
def test_a_saved_policy_answers_the_same(name, tmp_path):
    policy, (X, y) = fitted(name), make_rows()
    policy.save(tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors")
    assert again.goal_dim == 2
    for method in row_methods(policy):
        np.testing.assert_array_equal(ask(again, method, X, y), ask(policy, method, X, y))


# -- units ----------------------------------------------------------------------------------


@every_estimator
def test_the_units_of_the_goal_do_not_matter(name):
    X, y = make_rows()
    moved = X.copy()
    moved[:, 6:] = 50.0 * X[:, 6:] + [3.0, -7.0]
    expected = fitted(name).predict(X)
    # Standardized goals differ by rounding, which a few steps of training spread.
    actual = clone(ESTIMATORS[name]).fit(moved, y).predict(moved)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@every_estimator
def test_a_goal_has_units_of_its_own(name):
    policy, (X, _) = fitted(name), make_rows()
    X_states, goals = X[:, :6].reshape(-1, 3), X[:, 6:]
    mean, scale = policy.network_.row_normalization.statistics
    expected = np.concatenate([np.tile(X_states.std(axis=0), 2), goals.std(axis=0)])
    np.testing.assert_allclose(scale, expected)
    expected = np.concatenate([np.tile(X_states.mean(axis=0), 2), goals.mean(axis=0)])
    np.testing.assert_allclose(mean, expected, atol=1e-12)


# -- what is learned ------------------------------------------------------------------------

SEEN = []


class Witness(nn.Module):
    def forward(self, rows):
        SEEN.append(rows.detach().clone())
        return rows


class WitnessEncoder(Encoder):
    """An encoder that changes nothing, and keeps what it is given."""

    def build(self, layout):
        return Witness()


@pytest.mark.parametrize("name", ["mlp", "vp", "mixture", "distiller", "consistency", "trajectory"])
def test_noise_on_the_states_leaves_goals_alone(name):
    X, y = make_rows()
    policy = clone(ESTIMATORS[name]).set_params(encoder=WitnessEncoder(), state_noise=2.0)
    SEEN.clear()
    policy.fit(X, y)
    rows = torch.cat([rows for rows in SEEN if len(rows) == policy.batch_size])
    standard = policy.network_.row_normalization.standardize(X)
    nearest = (rows[:, None, 6:] - standard[None, :, 6:]).abs().amax(dim=2).amin(dim=1)
    assert nearest.max() == 0.0
    nearest = (rows[:, None, :6] - standard[None, :, :6]).abs().amax(dim=2).amin(dim=1)
    assert nearest.median() > 0.5


LEARNING = {
    "hidden_size": 32,
    "max_iter": 100,
    "batch_size": 64,
    "learning_rate": 5e-3,
    "ema_decay": 0.9,
}


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if not name.endswith("of gpt")])
def test_actions_follow_the_goal(name):
    X, y = make_rows(300)
    estimator = make_estimators(**LEARNING)[name]
    if name == "distiller":
        estimator.set_params(init_iter=100)
    policy = estimator.fit(X, y)
    new, _ = make_rows(100, seed=1)
    actions = policy.predict(new)
    for i in range(2):
        assert np.corrcoef(actions[:, i], new[:, 6 + i])[0, 1] > 0.9
    # The same window with the goal on the other side: so is the action.
    there, back = (append_goals(new[:, :6].reshape(-1, 2, 3), [side, side]) for side in (0.8, -0.8))
    assert (policy.predict(there) > policy.predict(back)).all()


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_a_density_is_that_of_the_goal(name):
    policy = make_estimators(**LEARNING)[name].fit(*make_rows(300))
    X, y = make_rows(50, seed=1)
    elsewhere = X.copy()
    elsewhere[:, 6:] = np.roll(X[:, 6:], 1, axis=0)
    gap = ask(policy, "log_prob", X, y) - ask(policy, "log_prob", elsewhere, y)
    assert gap.mean() > 1.0  # goals of spread 0.6, actions within 0.1 of theirs


# -- teachers -------------------------------------------------------------------------------


@pytest.mark.parametrize("goal_dim", [0, 4])
def test_a_teacher_with_another_goal_is_refused(goal_dim):
    X, y = make_rows()
    teacher = DiffusionPolicy(**{**TINY, "goal_dim": goal_dim}).fit(X, y)
    message = (
        f"the teacher has goal_dim={goal_dim}, but VDDDistiller has goal_dim=2; they must be equal."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VDDDistiller(n_experts=2, init_iter=5, **TINY).fit(X, y, teacher=teacher)


@pytest.mark.parametrize("name", ["mlp", "transformer", "gpt", "vp"])
def test_a_fitted_teacher_needs_no_actions(name):
    X, _ = make_rows()
    student = VDDDistiller(n_experts=2, init_iter=5, **TINY).fit(X, teacher=fitted(name))
    assert student.predict(X).shape == (40, 2)


def make_score_teacher(seen):
    """Return a teacher that acts as the goal, and notes the states that it is asked about."""

    def score(states, actions, sigma):
        seen.append(states)
        return (states[:, None, 6:] - actions) / (0.1**2 + sigma[..., None] ** 2)

    return ScoreTeacher(score, n_actions=2, noise_min=0.02, noise_max=5.0)


def test_a_score_function_is_given_flat_rows_in_raw_units():
    X, _ = make_rows()
    X, seen = 3.0 * X + 5.0, []
    VDDDistiller(n_experts=2, init_iter=5, state_noise=0.0, **TINY).fit(
        X, teacher=make_score_teacher(seen)
    )
    assert {states.shape[1:] for states in seen} == {(8,)}
    rows = np.unique(np.concatenate([states.numpy() for states in seen]), axis=0)
    gaps = np.abs(rows[:, None] - X[None]).max(axis=2).min(axis=1)
    assert gaps.max() < 1e-4  # in single precision


def test_without_a_goal_a_score_function_is_given_windows():
    seen = []

    def score(states, actions, sigma):
        seen.append(states)
        return -actions / (1 + sigma[..., None] ** 2)

    X, _ = make_rows()
    teacher = ScoreTeacher(score, n_actions=2, noise_min=0.02, noise_max=5.0)
    VDDDistiller(n_experts=2, init_iter=5, **{**TINY, "goal_dim": 0}).fit(X[:, :6], teacher=teacher)
    assert {states.shape[1:] for states in seen} == {(2, 3)}


def test_a_student_of_a_score_function_follows_the_goal():
    settings = {**TINY, **LEARNING}
    X, _ = make_rows(300)
    student = VDDDistiller(n_experts=1, init_iter=100, **settings)
    student.fit(X, teacher=make_score_teacher([]))
    new, _ = make_rows(100, seed=1)
    for i in range(2):
        assert np.corrcoef(student.predict(new)[:, i], new[:, 6 + i])[0, 1] > 0.9


# -- from demonstrations --------------------------------------------------------------------


def make_demonstrations():
    """Straight walks to one side or the other: only the goal tells which."""
    rng = np.random.RandomState(0)
    episodes = []
    for _ in range(30):
        step = rng.choice([-1.0, 1.0])
        noise = 0.05 * rng.standard_normal((8, 1))
        place = np.concatenate([np.zeros(1), np.cumsum(step + noise[:-1, 0])])
        # The second column is of no use; the walker does not see where it came from.
        states = np.stack([place, rng.standard_normal(8)], axis=1)
        episodes.append(Episode(states, step + noise))
    return Demonstrations(episodes)


@pytest.mark.parametrize("name", ["mlp", "mixture"])
def test_goals_of_demonstrations_tell_the_policy_where_to_go(name):
    rows, actions, _ = make_demonstrations().windows(
        2, goal="future", goal_columns=[0], random_state=0
    )
    policy = make_estimators(**LEARNING, goal_dim=1)[name].fit(rows, actions)
    start = np.zeros((1, 2, 2))
    left, right = (policy.predict(append_goals(start, [goal]))[0, 0] for goal in (-5.0, 5.0))
    assert left < -0.5  # -1 in the demonstrations
    assert right > 0.5
