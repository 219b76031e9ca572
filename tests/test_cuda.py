"""What holds on a GPU: the same laws, the CPU's numbers, and no wait inside the training loop."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone

import skvdd
from skvdd.training.loop import REPORTS
from tests.estimators import ask, judgement, label, make_estimators, methods

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

every = pytest.mark.parametrize("estimator", make_estimators(window_size=2), ids=label)

# Sums of a few hundred products in float32, in another order.
CLOSE = {"rtol": 2e-4, "atol": 2e-4}


def weights(policy):
    return {name: value.cpu().numpy() for name, value in policy.network_.state_dict().items()}


@every
def test_a_fit_happens_on_the_gpu_and_repeats(estimator, two_ways):
    policies = [clone(estimator).fit(*two_ways) for _ in range(2)]
    assert {p.device.type for p in policies[0].network_.parameters()} == {"cuda"}
    first, second = map(weights, policies)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@every
def test_a_policy_of_the_gpu_answers_alike_on_the_cpu(estimator, two_ways, tmp_path):
    X, y = two_ways
    policy = clone(estimator).fit(X, y)
    policy.save(tmp_path / "policy.safetensors")
    moved = skvdd.load(tmp_path / "policy.safetensors").set_params(device="cpu")
    for method in methods(policy):
        here, there = ask(policy, method, X, y), ask(moved, method, X, y)
        if method != "act":
            np.testing.assert_allclose(here, there, err_msg=method, **CLOSE)
    unpickled = pickle.loads(pickle.dumps(policy))
    np.testing.assert_array_equal(
        ask(unpickled, judgement(policy), X, y), ask(policy, judgement(policy), X, y)
    )


@every
def test_training_waits_for_the_gpu_only_where_it_reports(estimator, two_ways):
    n_iterations = 3 * REPORTS
    policy = clone(estimator).set_params(max_iter=n_iterations)
    shorter = clone(estimator).set_params(max_iter=REPORTS)
    more = count_waits(lambda: policy.fit(*two_ways)) - count_waits(lambda: shorter.fit(*two_ways))
    # Both report as often, so that twice as many iterations more add nothing.
    assert more <= 0.1 * n_iterations


@every
def test_tensors_on_the_gpu_are_welcome(estimator, two_ways):
    X, y = two_ways
    there = [torch.from_numpy(values).cuda() for values in two_ways]
    policy, expected = clone(estimator).fit(*there), clone(estimator).fit(X, y)
    for method in methods(policy):
        np.testing.assert_array_equal(ask(policy, method, *there), ask(expected, method, X, y))


@every
def test_the_gpu_s_generator_and_default_device_are_left_alone(estimator, two_ways):
    X, y = two_ways
    expected = clone(estimator).fit(X, y).predict(X)
    torch.cuda.manual_seed(7)
    before = torch.cuda.get_rng_state()
    with torch.device("cuda"):
        policy = clone(estimator).fit(X, y)
        np.testing.assert_array_equal(policy.predict(X), expected)
        for method in methods(policy):
            ask(policy, method, X, y)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def count_waits(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@every
def test_a_replayed_fit_is_that_of_single_calls(estimator, two_ways, monkeypatch):
    replayed = weights(clone(estimator).fit(*two_ways))
    monkeypatch.setattr("skvdd.training.replay.EAGER_CALLS", 10**9)
    single = weights(clone(estimator).fit(*two_ways))
    for name in replayed:
        np.testing.assert_allclose(replayed[name], single[name], rtol=1e-5, atol=1e-6, err_msg=name)
