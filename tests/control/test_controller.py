"""Controllers: the actions of ``act``, whatever the engine; nothing on the way that could fail."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from skvdd import DiffusionPolicy, GaussianMoEPolicy, VDDDistiller
from skvdd.control.engines import example_inputs, make_engine
from skvdd.control.translate import to_numpy
from tests.estimators import SMALL, label, make_estimators, small_teacher

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINES = ("torch", "numpy", "onnx")
WINDOW, N_STATES = 3, 4


def make_data(n=60, n_actions=2, goal_dim=0, seed=0):
    """Rows of windows (and goals) in far-off units, and actions that depend on the last state."""
    rng = np.random.RandomState(seed)
    X = 1e4 + 3.0 * rng.standard_normal((n, WINDOW * N_STATES + goal_dim))
    y = 50.0 + 0.01 * np.tanh(X[:, -n_actions:] - 1e4)
    return X, y + 0.001 * rng.standard_normal(y.shape)


def observations(n=8, seed=1):
    return 1e4 + 3.0 * np.random.RandomState(seed).standard_normal((n, N_STATES))


def windows(states):
    """Return what the controller has seen at each step, the start padded by its first state."""
    padded = np.concatenate([np.repeat(states[:1], WINDOW - 1, axis=0), states])
    return [padded[i : i + WINDOW] for i in range(len(states))]


@pytest.fixture(scope="module", params=make_estimators(window_size=WINDOW), ids=label)
def policy(request):
    return request.param.fit(*make_data())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_controller_acts_as_the_policy_does_in_every_episode(policy, engine):
    controller = policy.controller(engine, random_state=3)
    noise = np.random.RandomState(3)
    for episode in (observations(), observations(3, seed=2)):
        controller.reset()
        for state, window in zip(episode, windows(episode), strict=True):
            expected = policy.act(window[None], random_state=[noise])[0]
            # 1e-5 of the spread of the actions: float32 in another order of summation.
            np.testing.assert_allclose(controller.act(state), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("encoder", ["mlp", "transformer"])
@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_mixture_of_a_decision_is_that_of_the_policy(encoder, covariance, engine):
    policy = GaussianMoEPolicy(
        3, window_size=WINDOW, encoder=encoder, covariance=covariance, **SMALL
    ).fit(*make_data(n_actions=3))
    controller = policy.controller(engine, random_state=0)
    controller.reset()
    controller.act(observations()[0])
    gates, means, scale_trils = controller.mixture
    window = windows(observations())[0][None]
    np.testing.assert_allclose(gates, policy.gating(window)[0], atol=1e-5)
    expected_means, expected_covariances = policy.experts(window)
    scale = policy.action_scaler_.scale_
    np.testing.assert_allclose(means, expected_means[0], rtol=0, atol=1e-5 * scale.max())
    covariances = scale_trils @ scale_trils.swapaxes(-1, -2)
    np.testing.assert_allclose(
        covariances, expected_covariances[0], rtol=0, atol=1e-5 * scale.max() ** 2
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_every_sampler_can_be_deployed(engine, sampler):
    policy = DiffusionPolicy(window_size=WINDOW, n_steps=3, sampler=sampler, **SMALL)
    policy.fit(*make_data())
    controller = policy.controller(engine, random_state=3)
    controller.reset()
    window = windows(observations())[0][None]
    expected = policy.act(window, random_state=[np.random.RandomState(3)])[0]
    np.testing.assert_allclose(controller.act(observations()[0]), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gating_that_is_not_learnt_is_constant(engine):
    policy = VDDDistiller(
        small_teacher(window_size=WINDOW),
        n_experts=4,
        window_size=WINDOW,
        learn_gating=False,
        init_iter=5,
        **SMALL,
    ).fit(*make_data())
    controller = policy.controller(engine, random_state=0)
    controller.reset()
    controller.act(observations()[0])
    np.testing.assert_allclose(controller.mixture[0], 0.25, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_goal_stays_for_the_episode(engine):
    policy = GaussianMoEPolicy(2, window_size=WINDOW, goal_dim=2, **SMALL)
    policy.fit(*make_data(goal_dim=2))
    controller = policy.controller(engine, random_state=0)
    goal = np.array([1e4 + 1.0, 1e4 - 1.0])
    controller.reset(goal)
    noise = np.random.RandomState(0)
    for state, window in zip(observations(), windows(observations()), strict=True):
        row = np.concatenate([window.ravel(), goal])[None]
        expected = policy.act(row, random_state=[noise])[0]
        np.testing.assert_allclose(controller.act(state), expected, rtol=0, atol=1e-7)
    message = "goal must have shape (2,), the goal_dim of the policy, got none."
    with pytest.raises(ValueError, match=re.escape(message)):
        controller.reset()


def test_one_action_dimension_stays_a_vector():
    X, y = make_data()
    controller = GaussianMoEPolicy(2, window_size=WINDOW, **SMALL).fit(X, y[:, 0]).controller()
    controller.reset()
    assert controller.act(observations()[0]).shape == (1,)


def test_auto_takes_one_of_the_engines():
    controller = GaussianMoEPolicy(2, window_size=WINDOW, **SMALL).fit(*make_data()).controller()
    assert controller.engine_name in ENGINES


def test_a_later_fit_does_not_change_a_controller():
    policy = GaussianMoEPolicy(2, window_size=WINDOW, warm_start=True, **SMALL).fit(*make_data())
    for engine in ENGINES:
        controllers = [policy.controller(engine, random_state=0) for _ in range(2)]
        for controller in controllers:
            controller.reset()
        before = controllers[0].act(observations()[0])
        policy.fit(*make_data(seed=5))
        np.testing.assert_array_equal(controllers[1].act(observations()[0]), before)


# -- without torch ----------------------------------------------------------------------------


def test_a_numpy_controller_works_in_a_process_without_torch(tmp_path):
    policy = GaussianMoEPolicy(2, window_size=WINDOW, encoder="transformer", **SMALL)
    controller = policy.fit(*make_data()).controller("numpy", random_state=0)
    (tmp_path / "controller.pkl").write_bytes(pickle.dumps(controller))
    np.save(tmp_path / "states.npy", observations())
    program = (
        "import pickle, sys, numpy as np\n"
        "controller = pickle.load(open('controller.pkl', 'rb'))\n"
        "controller.reset()\n"
        "actions = [controller.act(state) for state in np.load('states.npy')]\n"
        "np.save('actions.npy', actions)\n"
        "sys.exit(int('torch' in sys.modules))"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        check=True,
        timeout=120,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    )
    controller.reset()
    expected = [controller.act(state) for state in observations()]
    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), expected)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_other_engines_cannot_be_pickled(engine):
    policy = GaussianMoEPolicy(2, window_size=WINDOW, **SMALL).fit(*make_data())
    with pytest.raises(TypeError, match=f"engine='{engine}' cannot be pickled"):
        pickle.dumps(policy.controller(engine))


# -- errors -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return GaussianMoEPolicy(2, window_size=WINDOW, **SMALL).fit(*make_data())


def test_an_episode_must_begin(small):
    with pytest.raises(RuntimeError, match=r"Call reset\(\) before act\(\)"):
        small.controller("torch").act(observations()[0])


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(3), "observation must be 4 finite numbers, shape (4,), got shape (3,)."),
        (np.zeros((1, 4)), "observation must be 4 finite numbers, shape (4,), got shape (1, 4)."),
        ([0.0, np.nan, 0.0, 0.0], "got shape (4,) with NaN or infinity."),
        ([0.0, np.inf, 0.0, 0.0], "got shape (4,) with NaN or infinity."),
    ],
)
def test_a_wrong_observation_is_refused(small, observation, message):
    controller = small.controller("torch")
    controller.reset()
    with pytest.raises(ValueError, match=re.escape(message)):
        controller.act(observation)


def test_an_unknown_engine_is_refused(small):
    message = "engine must be 'auto', 'torch', 'onnx' or 'numpy', got 'tensorrt'."
    with pytest.raises(ValueError, match=re.escape(message)):
        small.controller("tensorrt")


def test_an_unfitted_policy_has_no_controller():
    with pytest.raises(NotFittedError):
        GaussianMoEPolicy().controller()


def test_an_operator_that_numpy_lacks_is_named(small, monkeypatch):
    graph, layout = small._deployed()
    monkeypatch.delitem(sys.modules["skvdd.control.translate"].FUNCTIONS, "silu")
    with pytest.raises(NotImplementedError, match="does not know the operator 'silu'"):
        make_engine(graph, "numpy", example_inputs(layout))


def test_an_operator_with_other_settings_is_not_taken_for_the_plain_one():
    tangent = torch.nn.GELU(approximate="tanh")
    with pytest.raises(NotImplementedError, match="'gelu' with approximate='tanh'"):
        to_numpy(tangent, torch.zeros(1, 3))
    plain = to_numpy(torch.nn.GELU(), torch.zeros(1, 3))
    (values,) = plain(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32))
    np.testing.assert_allclose(values, [[-0.15865525, 0.0, 0.84134475]], rtol=1e-6)
