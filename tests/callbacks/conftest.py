import numpy as np
import pytest


@pytest.fixture
def data(two_ways):
    return tuple(values.reshape(60, -1) for values in two_ways)


@pytest.fixture(scope="module")
def walked():
    """States and actions of Avoiding: straight ahead."""
    rng = np.random.RandomState(0)
    states = rng.uniform([0.3, -0.3, 0.3, -0.3], [0.7, 0.3, 0.7, 0.3], size=(80, 4))
    return states, np.tile([0.0, 0.02], (80, 1)) + 0.002 * rng.standard_normal((80, 2))
