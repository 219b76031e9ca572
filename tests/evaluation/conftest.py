"""The tiny tasks are known while the tests of a module here run."""

import gymnasium
import pytest

from skvdd.envs import register_task, spec
from tests.evaluation.tasks import ENVIRONMENTS, TASKS


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Register the tasks, and forget them afterwards."""
    for environment in ENVIRONMENTS:
        env_id = f"skvddtest/{environment.__name__}-v0"
        gymnasium.register(env_id, entry_point=environment, max_episode_steps=60)
    for task in TASKS:
        register_task(task)
    yield
    for task in TASKS:
        del spec._TASKS[task.name]
    for environment in ENVIRONMENTS:
        del gymnasium.registry[f"skvddtest/{environment.__name__}-v0"]
