import numpy as np
import pytest
import torch

# Small networks gain nothing from threads, and a test run has a process for each core.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before the fixtures, which fit as well
def pytest_runtest_setup(item):
    """Give what has no `random_state` of its own the same numbers in every run."""
    np.random.seed(0)  # noqa: NPY002 - random_state=None draws from the global state


@pytest.fixture
def two_ways():
    """States in windows of two, and two-dimensional actions that go left or right."""
    rng = np.random.RandomState(0)
    states = rng.uniform(-1, 1, size=(60, 2, 3))
    side = np.sign(rng.standard_normal(60))
    actions = np.stack([side * (1 + states[:, -1, 0]), states[:, -1, 1]], axis=1)
    return states, actions + 0.1 * rng.standard_normal(actions.shape)
