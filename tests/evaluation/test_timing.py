"""The stopwatch."""

import pytest
import torch

from skvdd.evaluation import time_action
from tests.evaluation.tasks import Constant, refuses


def test_time_action_times_single_decisions():
    class Counted(Constant):
        def act(self, X, *, random_state=None):
            calls.append((X.shape, torch.get_num_threads()))
            return super().act(X)

    calls = []
    threads = torch.get_num_threads()
    milliseconds = time_action(Counted([0.1]), [[0.0, 1.0]] * 3, n_calls=10)
    assert 0.0 < milliseconds < 100.0
    assert calls == [((1, 3, 2), 1)] * 11
    assert torch.get_num_threads() == threads


def test_time_action_restores_threads_after_an_error():
    class Broken(Constant):
        def act(self, X, *, random_state=None):
            raise RuntimeError("broken")

    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"):
        time_action(Broken([0.1]), [[0.0]], n_threads=threads + 1)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["n_calls", "n_threads"])
def test_time_action_refuses_counts_below_one(name):
    with refuses(f"{name} must be an integer of at least 1, got 0."):
        time_action(Constant([0.1]), [[0.0]], **{name: 0})
