import gymnasium
import joblib
import pytest

from benchmarks import provenance, training
from skvdd.datasets import load_demonstrations
from skvdd.envs import register_task, spec
from tests.benchmarks.sides import SPEC


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A cache of demonstrations of the task of the tests."""
    folder = tmp_path_factory.mktemp("demonstrations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKVDD_CACHE", str(folder))
        patch.setattr(spec, "_TASKS", dict(spec._TASKS))
        patch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
        register_task(SPEC)
        with joblib.parallel_config("sequential"):
            load_demonstrations("sides", 100)
    return folder


@pytest.fixture(autouse=True)
def sides(recorded, tmp_path, monkeypatch):
    """The task of the tests, known as long as a test lasts, and a cache of its own."""
    monkeypatch.setenv("SKVDD_CACHE", str(recorded))
    monkeypatch.setattr(training, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(spec, "_TASKS", dict(spec._TASKS))
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    register_task(SPEC)
    for cached in (provenance.describe_set, provenance.describe_features):
        cached.cache_clear()
    return SPEC
