"""Diffusion policies in ONNX Runtime: two small models and a loop, which gives what torch gives."""

import numpy as np
import pytest
import torch

from skvdd.control.runtime import SamplerLoop
from skvdd.nn.samplers import SAMPLERS
from tests.control.toys import WINDOW, first_action, make_data, observations, spread, windows
from tests.estimators import small_teacher

onnx = pytest.importorskip("onnx")

KINDS = {
    "ve": {},
    "vp": {"sde": "vp"},
    "gpt": {"architecture": "gpt"},
    "vp gpt": {"sde": "vp", "architecture": "gpt"},
}


@pytest.fixture(scope="module")
def teachers():
    return {
        kind: small_teacher(window_size=WINDOW, **options).fit(*make_data())
        for kind, options in KINDS.items()
    }


@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_can_be_deployed(kind, sampler, engine, teachers):
    policy = teachers[kind].with_sampler(sampler, n_steps=5)
    window = windows(observations())[0][None]
    expected = policy.act(window, random_state=[np.random.RandomState(3)])[0]
    found = first_action(policy.controller(engine, random_state=3))
    # 1e-5 of the spread of the actions: float32 in another order of summation.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * spread(policy).max())


def test_two_small_models_do_for_any_number_of_steps(teachers):
    policy = teachers["ve"].with_sampler("euler_ancestral", n_steps=64)
    controller = policy.controller("onnx", random_state=3)
    loop = controller._engine
    assert isinstance(loop, SamplerLoop)
    models = [onnx.load_from_string(part._model) for part in (loop.encode, loop.denoise)]
    # One evaluation of a network of one layer: 64 of them would be thousands.
    assert max(len(model.graph.node) for model in models) < 100
    few = teachers["ve"].with_sampler(n_steps=2).controller("onnx")._engine
    assert [few.encode._model, few.denoise._model] == [loop.encode._model, loop.denoise._model]
    window = windows(observations())[0][None]
    expected = policy.act(window, random_state=[np.random.RandomState(3)])[0]
    # The errors of 64 steps, all in the same direction at worst.
    np.testing.assert_allclose(
        first_action(controller), expected, rtol=0, atol=1e-4 * spread(policy).max()
    )


def test_chunks_of_a_diffusion_policy_come_whole():
    X, y = make_data()
    policy = small_teacher(window_size=WINDOW).fit(X, np.stack([y, y + 0.01, y - 0.02], axis=1))
    window = windows(observations())[0][None]
    expected = policy.act(window, random_state=[np.random.RandomState(3)])[0]
    assert expected.shape == (3, 2)
    found = first_action(policy.controller("torch", random_state=3))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * spread(policy).max())


def test_what_is_deployed_is_what_was_learned(teachers):
    """Parameters that are set after fit change nothing here either."""
    policy = teachers["ve"].with_sampler()
    before = first_action(policy.controller("onnx", random_state=0))
    policy.set_params(n_steps=1, sampler="heun", noise_max=50.0, sde="vp")
    np.testing.assert_array_equal(first_action(policy.controller("onnx", random_state=0)), before)


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_the_users_default_type_does_not_matter(engine, mixture, fresh_exports, double_by_default):
    window = windows(observations())[0][None]
    expected = mixture.act(window, random_state=3)[0]
    found = first_action(mixture.controller(engine, random_state=3))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * spread(mixture).max())
