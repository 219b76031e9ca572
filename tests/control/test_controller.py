"""Controllers: the actions of ``act``, whatever the engine; nothing on the way that could fail."""

import copy
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from skvdd import GaussianMoEPolicy
from tests.control.toys import (
    WINDOW,
    first_action,
    make_data,
    observations,
    spread,
    windows,
)
from tests.estimators import SMALL

ENGINES = ("torch", "onnx")
every = pytest.mark.parametrize("engine", ENGINES)


@every
def test_a_controller_acts_as_the_policy_does_in_every_episode(policy, engine):
    controller = policy.controller(engine, random_state=3)
    noise = np.random.RandomState(3)
    for episode in (observations(), observations(3, seed=2)):
        controller.reset()
        for state, window in zip(episode, windows(episode), strict=True):
            expected = policy.act(window[None], random_state=[noise])[0]
            # 1e-5 of the spread of the actions: float32 in another order of summation.
            np.testing.assert_allclose(
                controller.act(state), expected, rtol=0, atol=1e-5 * spread(policy).max()
            )


@pytest.mark.parametrize("covariance", ["full", "diag"])
@every
def test_the_mixture_of_a_decision_is_that_of_the_policy(covariance, engine, mixture, transformer):
    policy = mixture if covariance == "full" else transformer
    controller = policy.controller(engine, random_state=0)
    first_action(controller)
    gates, means, scale_trils = controller.mixture
    window = windows(observations())[0][None]
    np.testing.assert_allclose(gates, policy.gating(window)[0], atol=1e-5)
    expected_means, expected_covariances = policy.experts(window)
    scale = spread(policy).max()
    np.testing.assert_allclose(means, expected_means[0], rtol=0, atol=1e-5 * scale)
    covariances = scale_trils @ scale_trils.swapaxes(-1, -2)
    np.testing.assert_allclose(covariances, expected_covariances[0], rtol=0, atol=1e-5 * scale**2)


@every
def test_a_goal_stays_for_the_episode(engine):
    policy = GaussianMoEPolicy(2, window_size=WINDOW, goal_dim=2, **SMALL)
    policy.fit(*make_data(goal_dim=2))
    controller = policy.controller(engine, random_state=0)
    noise = np.random.RandomState(0)
    for goal in (np.array([1e4 + 1.0, 1e4 - 1.0]), np.array([1e4 - 2.0, 1e4])):
        controller.reset(goal)
        for state, window in zip(observations(), windows(observations()), strict=True):
            row = np.concatenate([window.ravel(), goal])[None]
            expected = policy.act(row, random_state=[noise])[0]
            np.testing.assert_allclose(controller.act(state), expected, rtol=0, atol=1e-7)


def test_one_action_dimension_stays_a_vector():
    X, y = make_data()
    policy = GaussianMoEPolicy(2, window_size=WINDOW, **SMALL).fit(X, y[:, 0])
    assert first_action(policy.controller("torch")).shape == (1,)


@every
def test_a_chunk_comes_whole(engine):
    X, y = make_data()
    policy = GaussianMoEPolicy(2, window_size=WINDOW, **SMALL)
    policy.fit(X, np.stack([y, y + 0.01, y - 0.02], axis=1))
    controller = policy.controller(engine, random_state=3)
    expected = policy.act(windows(observations())[0][None], random_state=3)[0]
    assert expected.shape == (3, 2)
    np.testing.assert_allclose(first_action(controller), expected, rtol=0, atol=1e-7)


@every
def test_a_later_fit_does_not_change_a_controller(engine):
    policy = GaussianMoEPolicy(2, window_size=WINDOW, warm_start=True, **SMALL).fit(*make_data())
    controllers = [policy.controller(engine, random_state=0) for _ in range(2)]
    before = first_action(controllers[0])
    policy.fit(*make_data(seed=5))
    np.testing.assert_array_equal(first_action(controllers[1]), before)
    assert np.abs(first_action(policy.controller("torch", random_state=0)) - before).max() > 0


@every
def test_an_action_is_ones_own_to_change(policy, engine):
    controller, other = (policy.controller(engine, random_state=0) for _ in range(2))
    for each in (controller, other):
        each.reset()
    for state in observations():
        action, expected = controller.act(state), other.act(state)
        np.testing.assert_array_equal(action, expected)
        kept = None if controller.mixture is None else [part.copy() for part in controller.mixture]
        action[:] = 1e9  # as np.clip(action, low, high, out=action) would
        if kept is not None:
            np.testing.assert_equal(controller.mixture, tuple(kept))


def test_a_mixture_is_that_of_the_last_decision(mixture):
    controller = mixture.controller("torch", random_state=0)
    controller.reset()
    assert controller.mixture is None
    controller.act(observations()[0])
    gates, means, factors = controller.mixture
    assert (gates.shape, means.shape, factors.shape) == ((2,), (2, 2), (2, 2, 2))
    controller.reset()
    assert controller.mixture is None


# -- which engine ---------------------------------------------------------------------------------


def test_auto_is_onnx_runtime_where_it_is_installed_and_never_a_matter_of_speed(
    mixture, monkeypatch
):
    one, other = (mixture.controller(random_state=0) for _ in range(2))
    assert one.engine_name == other.engine_name == "onnx"
    np.testing.assert_array_equal(first_action(one), first_action(other))
    engines = sys.modules["skvdd.control.engines"]
    for missing in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setattr(
            engines, "find_spec", lambda name, missing=missing: name != missing or None
        )
        assert mixture.controller(random_state=0).engine_name == "torch"


def test_an_unknown_engine_is_refused(mixture):
    message = "engine must be 'auto', 'torch' or 'onnx', got 'numpy'."
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture.controller("numpy")


def test_a_controller_of_torch_cannot_be_pickled(mixture):
    with pytest.raises(TypeError, match="engine='torch' cannot be pickled"):
        pickle.dumps(mixture.controller("torch"))


# -- errors ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_goal():
    return GaussianMoEPolicy(2, window_size=WINDOW, goal_dim=4, **SMALL).fit(*make_data(goal_dim=4))


def test_an_episode_must_begin(mixture):
    with pytest.raises(RuntimeError, match=r"Call reset\(\) before act\(\)"):
        mixture.controller("torch").act(observations()[0])


UNREADABLE = {
    "a dictionary": {"joints": [0.0, 0.0], "tool": [0.0, 0.0]},
    "bfloat16": torch.zeros(4, dtype=torch.bfloat16),
    "a gradient": torch.zeros(4, requires_grad=True),
    "words": ["left", "right", "up", "down"],
    "ragged": [[0.0, 1.0], [2.0]],
    "masked": np.ma.masked_greater([1e4, 1e4, 1e4, 1e6], 1e5),
}
OUT_OF_RANGE = {
    "NaN": [1e4, np.nan, 1e4, 1e4],
    "infinity": [1e4, -np.inf, 1e4, 1e4],
    "the largest number": [1e4, sys.float_info.max, 1e4, 1e4],
    "the largest of float32": [1e4, -float(np.finfo(np.float32).max), 1e4, 1e4],
}


def refused(given):
    """Return the end of the message, after the name of the argument."""
    if given in UNREADABLE:
        kind = type(UNREADABLE[given]).__name__
        return f"must be a vector of numbers that NumPy can read, got a {kind}."
    value = np.float64(OUT_OF_RANGE[given][1])
    return f"must be finite and near the data of fit, got {value} as entry 1."


@pytest.mark.parametrize("given", [*UNREADABLE, *OUT_OF_RANGE])
@every
def test_an_observation_that_is_no_reading_is_refused_and_not_kept(given, engine, mixture):
    controller, other = (mixture.controller(engine, random_state=0) for _ in range(2))
    states = observations()
    for each in (controller, other):
        each.reset()
        each.act(states[0])
    value = (UNREADABLE | OUT_OF_RANGE)[given]
    with pytest.raises(ValueError, match=f"^observation {re.escape(refused(given))}"):
        controller.act(value)
    np.testing.assert_array_equal(controller.act(states[1]), other.act(states[1]))


@pytest.mark.parametrize("given", [*UNREADABLE, *OUT_OF_RANGE])
def test_a_goal_that_is_no_reading_is_refused_and_the_episode_goes_on(given, with_goal):
    controller, other = (with_goal.controller("torch", random_state=0) for _ in range(2))
    states = observations()
    for each in (controller, other):
        each.reset(1e4 + np.arange(4.0))
        each.act(states[0])
    value = (UNREADABLE | OUT_OF_RANGE)[given]
    with pytest.raises(ValueError, match=f"^goal {re.escape(refused(given))}"):
        controller.reset(value)
    np.testing.assert_array_equal(controller.act(states[1]), other.act(states[1]))


@pytest.mark.parametrize("shape", [(3,), (1, 4), ()])
def test_an_observation_of_another_shape_is_refused(shape, mixture):
    controller = mixture.controller("torch")
    controller.reset()
    message = f"observation must be 4 finite numbers, shape (4,), got shape {shape}."
    with pytest.raises(ValueError, match=re.escape(message)):
        controller.act(np.full(shape, 1e4))


@pytest.mark.parametrize("goal", [None, np.zeros(3), np.zeros((1, 4))], ids=["none", "3", "1 x 4"])
def test_a_goal_of_another_shape_is_refused(goal, with_goal, mixture):
    came = "none" if goal is None else f"shape {goal.shape}"
    message = f"goal must have shape (4,), the goal_dim of the policy, got {came}."
    with pytest.raises(ValueError, match=re.escape(message)):
        with_goal.controller("torch").reset(goal)
    if goal is not None:
        with pytest.raises(ValueError, match=r"goal must have shape \(0,\)"):
            mixture.controller("torch").reset(goal)


def test_a_generator_of_numpy_is_refused_as_everywhere(mixture):
    with pytest.raises(ValueError, match=r"^random_state must be an integer, a numpy\.random\.Ra"):
        mixture.controller("torch", random_state=np.random.default_rng(0))


def test_an_unfitted_policy_has_no_controller():
    with pytest.raises(NotFittedError):
        GaussianMoEPolicy().controller()


def test_a_copied_controller_has_a_window_and_draws_of_its_own():
    X, y = np.random.RandomState(0).standard_normal((2, 40, 2))
    policy = GaussianMoEPolicy(3, window_size=2, max_iter=2, random_state=0).fit(
        X.reshape(20, 2, 2), y[:20]
    )
    controller = policy.controller("torch", random_state=0)
    controller.reset()
    controller.act(X[0])
    other = copy.deepcopy(controller)
    np.testing.assert_array_equal(other.act(X[1]), controller.act(X[1]))
    other.reset()
    np.testing.assert_array_equal(controller.act(X[2]).shape, (2,))
