import gymnasium
import pytest

from tests.rollouts.scenes import SCENE, Scene


@pytest.fixture(scope="module", autouse=True)
def scene():
    """Register the environment while the tests of a module here run."""
    gymnasium.register(SCENE, entry_point=Scene)
    yield
    del gymnasium.registry[SCENE]
