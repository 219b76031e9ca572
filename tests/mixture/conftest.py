import pytest

from skvdd import GaussianMoEPolicy
from tests.mixture.toys import two_lines


@pytest.fixture(scope="package")
def on_lines():
    X, y = two_lines(0, 2000)
    return GaussianMoEPolicy(
        2,
        hidden_size=16,
        n_layers=1,
        max_iter=600,
        learning_rate=5e-3,
        state_noise=0.0,
        random_state=0,
    ).fit(X, y)
