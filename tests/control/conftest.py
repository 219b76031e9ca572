import pytest

from skvdd import DiffusionPolicy, GaussianMoEPolicy
from skvdd.control import engines, onnx
from skvdd.training.fingerprint import network_digest
from tests.control.toys import WINDOW, make_data
from tests.estimators import SMALL, label, make_estimators

EXPORT = onnx.to_onnx
MODELS = {}


def remembered(graph, examples):
    """Export a graph once, however often it is asked for: an export takes a second."""
    parts = (
        type(graph).__name__,
        network_digest(graph.network),
        graph.network.config,
        getattr(graph, "draw", None),
        getattr(graph, "schedule", None),
        [tuple(example.shape) for example in examples],
    )
    key = repr(parts)
    if key not in MODELS:
        MODELS[key] = EXPORT(graph, examples)
    return MODELS[key]


@pytest.fixture(autouse=True, scope="module")
def _shared_exports():
    with pytest.MonkeyPatch.context() as patch:
        for module in (engines, onnx):
            patch.setattr(module, "to_onnx", remembered)
        yield


@pytest.fixture
def fresh_exports(monkeypatch):
    """Export anew in this test."""
    for module in (engines, onnx):
        monkeypatch.setattr(module, "to_onnx", EXPORT)


@pytest.fixture(scope="session")
def policies():
    """Every policy, fitted; tests must not change them."""
    fitted = {
        label(policy): policy.fit(*make_data()) for policy in make_estimators(window_size=WINDOW)
    }
    # Whole samplers of few steps are exported faster; two have noise between them.
    for name, policy in fitted.items():
        if isinstance(policy, DiffusionPolicy):
            fitted[name] = policy.with_sampler(n_steps=2 if name == "DiffusionPolicy" else 1)
    return fitted


NAMES = [label(policy) for policy in make_estimators()]


def pytest_generate_tests(metafunc):
    """Run a test that asks for ``policy`` with each of them."""
    if "policy" in metafunc.fixturenames:
        metafunc.parametrize("policy", NAMES, indirect=True)


@pytest.fixture
def policy(request, policies):
    return policies[request.param]


@pytest.fixture(scope="session")
def mixture(policies):
    return policies["GaussianMoEPolicy"]


@pytest.fixture(scope="session")
def transformer():
    """A mixture with another encoder, and experts without correlations."""
    policy = GaussianMoEPolicy(
        3, window_size=WINDOW, encoder="transformer", covariance="diag", **SMALL
    )
    return policy.fit(*make_data(n_actions=3))
