"""Threads and global settings of torch during a fit: set for it, and put back."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from skvdd import GaussianMoEPolicy
from skvdd.callbacks import EarlyStopping
from skvdd.training.threads import SMALL_WORK, VARIABLES, fit_settings, is_chosen
from tests.estimators import SMALL

CPU = torch.device("cpu")


@pytest.fixture
def many_threads(monkeypatch):
    """Four cores, of which torch uses all, and a user who has chosen nothing."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_a_small_fit_has_one_thread_and_gives_back_those_of_the_user(many_threads):
    states, actions = np.random.RandomState(0).standard_normal((2, 20, 1))
    seen = []

    def look(policy, X, y):
        seen.append((torch.get_num_threads(), blas_threads()))
        return 0.0

    stopping = EarlyStopping(states, actions, metric=look, patience=1000)
    policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 2}).set_callbacks(stopping)
    blas = blas_threads()
    policy.fit(states, actions)
    assert {n for n, _ in seen} == {1}
    assert set().union(*(pools for _, pools in seen)) <= {1}
    assert torch.get_num_threads() == 4
    assert blas_threads() == blas


def test_threads_come_back_after_an_error(many_threads):
    def fail():
        with fit_settings(CPU, 1.0):
            assert torch.get_num_threads() == 1
            raise RuntimeError("the machine is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        fail()
    assert torch.get_num_threads() == 4


def test_a_large_fit_and_one_on_a_gpu_keep_their_threads(many_threads):
    for device, work in ((CPU, SMALL_WORK), (torch.device("cuda"), 1.0)):
        with fit_settings(device, work):
            assert torch.get_num_threads() == 4


@pytest.mark.parametrize("name", VARIABLES)
def test_a_choice_in_the_environment_is_left_alone(name, many_threads, monkeypatch):
    monkeypatch.setenv(name, "4")
    with fit_settings(CPU, 1.0):
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize("n_threads", [1, 3])
def test_another_number_than_that_of_the_cores_is_a_choice(n_threads, many_threads):
    torch.set_num_threads(n_threads)
    with fit_settings(CPU, 1.0):
        assert torch.get_num_threads() == n_threads


def test_all_cores_and_the_half_that_are_physical_are_no_choice(many_threads):
    assert [n for n in range(1, 9) if not is_chosen(n)] == [2, 4]


def test_a_fit_inside_of_what_forbids_gradients_has_them(many_threads):
    states, actions = np.random.RandomState(0).standard_normal((2, 20, 1))

    def fit():
        policy = GaussianMoEPolicy(2, **{**SMALL, "max_iter": 2}).fit(states, actions)
        return policy.network_.output.weight

    expected = fit()
    for forbids in (torch.no_grad, torch.inference_mode):
        with forbids():
            found = fit()
            assert not torch.is_grad_enabled()
        assert torch.equal(found, expected)
        assert not found.is_inference()
        assert torch.is_grad_enabled()


FORKING = """
import multiprocessing
import numpy as np
import torch
from skvdd import GaussianMoEPolicy

torch.set_num_threads(2)
X = np.random.RandomState(0).standard_normal((2000, 20))
policy = GaussianMoEPolicy(2, hidden_size=64, max_iter=2, random_state=0).fit(X, X[:, :2])
expected = policy.predict(X)

def answer():
    found = policy.predict(X)
    policy.fit(X, X[:, :2])
    answers.put((np.abs(found - expected).max() < 1e-6, torch.get_num_threads()))

fork = multiprocessing.get_context("fork")
answers = fork.SimpleQueue()
child = fork.Process(target=answer, daemon=True)
child.start()
child.join(60)
print(child.exitcode, *(answers.get() if child.exitcode == 0 else ()), torch.get_num_threads())
child.kill()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_after_threads_predicts_and_fits():
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    result = subprocess.run(
        [sys.executable, "-c", FORKING],
        capture_output=True,
        text=True,
        timeout=150,
        env=environment,
    )
    # Its one thread is the one that has survived; its parent keeps both.
    assert result.stdout == "0 True 1 2\n", result.stderr
