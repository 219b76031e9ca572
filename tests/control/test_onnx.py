"""ONNX files: what torch gives, for any number of rows, or no file."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import load
from onnxruntime import InferenceSession

from skvdd import GaussianMoEPolicy
from skvdd.control import onnx
from tests.estimators import SMALL, label, make_estimators


def make_data(seed=0):
    rng = np.random.RandomState(seed)
    return 5.0 + rng.standard_normal((60, 6)), 100.0 + rng.standard_normal((60, 2))


@pytest.fixture(params=make_estimators(window_size=2), ids=label)
def policy(request):
    return request.param.fit(*make_data())


def test_the_file_gives_what_the_policy_gives(policy, tmp_path):
    policy.export_onnx(tmp_path / "policy.onnx")
    session = InferenceSession(tmp_path / "policy.onnx")
    for n in (1, 5):
        X = make_data(seed=n)[0][:n]
        inputs = {"states": X}
        if len(session.get_inputs()) == 2:
            streams = [np.random.RandomState(i) for i in range(n)]
            shape = session.get_inputs()[1].shape[1:]
            inputs["noise"] = np.stack([rng.standard_normal(shape) for rng in streams])
            expected = policy.act(X, random_state=[np.random.RandomState(i) for i in range(n)])
            np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-4)
        else:
            gates, means, scale_trils = session.run(["gates", "means", "scale_trils"], inputs)
            np.testing.assert_allclose(gates, policy.gating(X), atol=1e-5)
            np.testing.assert_allclose(gates.sum(axis=1), 1.0)
            np.testing.assert_allclose(means, policy.experts(X)[0], atol=1e-4)
            covariances = scale_trils @ scale_trils.swapaxes(-1, -2)
            np.testing.assert_allclose(covariances, policy.experts(X)[1], atol=1e-4)


@pytest.fixture(scope="module")
def small():
    return GaussianMoEPolicy(2, window_size=2, **SMALL).fit(*make_data())


def test_a_model_that_differs_is_not_written(small, tmp_path, monkeypatch):
    path = tmp_path / "policy.onnx"
    path.write_text("what was there")
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"other gates than torch for 1 rows.*Nothing was writ"):
        small.export_onnx(path)
    assert path.read_text() == "what was there"
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.onnx"]


def test_without_the_extra_it_says_how_to_get_it(small, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'skvdd\[onnx\]'"):
        small.export_onnx(tmp_path / "policy.onnx")


def test_a_folder_that_is_not_there_is_named(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        small.export_onnx(tmp_path / "nowhere" / "policy.onnx")


def test_the_file_needs_onnxruntime_alone(small, tmp_path):
    small.export_onnx(tmp_path / "policy.onnx")
    program = (
        "import sys, numpy as np, onnxruntime\n"
        "session = onnxruntime.InferenceSession('policy.onnx')\n"
        "gates, means, _ = session.run(None, {'states': np.zeros((3, 6))})\n"
        "assert gates.shape == (3, 2) and means.shape == (3, 2, 2)\n"
        "sys.exit(int('torch' in sys.modules or 'skvdd' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)


def test_nothing_about_shapes_is_left_to_run_time(tmp_path):
    policy = GaussianMoEPolicy(2, encoder="transformer", window_size=3, **SMALL).fit(*make_data())
    policy.export_onnx(tmp_path / "policy.onnx")
    operations = {node.op_type for node in load(tmp_path / "policy.onnx").graph.node}
    assert "Softmax" in operations
    assert not operations & {"Shape", "Expand", "Trilu"}
