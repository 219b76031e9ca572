"""ONNX files: what torch gives, for any number of rows, or no file."""

import copy
import subprocess
import sys

import numpy as np
import pytest

from skvdd import GaussianMoEPolicy
from skvdd.control import onnx
from tests.control.toys import WINDOW, make_data, spread
from tests.estimators import SMALL

load = pytest.importorskip("onnx").load
InferenceSession = pytest.importorskip("onnxruntime").InferenceSession


def test_the_file_gives_what_the_policy_gives(policy, tmp_path):
    policy.export_onnx(tmp_path / "policy.onnx")
    session = InferenceSession(tmp_path / "policy.onnx")
    scale = spread(policy).max()
    for n in (1, 5):
        X = make_data(seed=n)[0][:n]
        inputs = {"states": X}
        if len(session.get_inputs()) == 2:
            streams = [np.random.RandomState(i) for i in range(n)]
            shape = session.get_inputs()[1].shape[1:]
            inputs["noise"] = np.stack([rng.standard_normal(shape) for rng in streams])
            expected = policy.act(X, random_state=[np.random.RandomState(i) for i in range(n)])
            # 1e-5 of the spread of the actions: float32 in another order of summation.
            actions = session.run(None, inputs)[0]
            np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5 * scale)
        else:
            gates, means, scale_trils = session.run(["gates", "means", "scale_trils"], inputs)
            np.testing.assert_allclose(gates, policy.gating(X), atol=1e-5)
            np.testing.assert_allclose(gates.sum(axis=1), 1.0)
            np.testing.assert_allclose(means, policy.experts(X)[0], rtol=0, atol=1e-5 * scale)
            covariances = scale_trils @ scale_trils.swapaxes(-1, -2)
            expected = policy.experts(X)[1]
            np.testing.assert_allclose(covariances, expected, rtol=0, atol=1e-5 * scale**2)


# -- comparison with torch ------------------------------------------------------------------------


def narrow_actions():
    """Actions with a spread of 1e-3, meters a step, far from zero."""
    X, y = make_data()
    return X, 0.5 + 1e-3 * (y - y.mean(axis=0)) / y.std(axis=0)


def shifted(deployment):
    """Return a deployment whose actions are off by 0.4% of their spread."""
    deployment = copy.deepcopy(deployment)
    units = deployment.graph.network.action_normalization
    units.mean += 0.004 * units.scale
    return deployment


def test_an_error_of_thousandths_of_a_small_spread_is_refused():
    policy = GaussianMoEPolicy(2, window_size=WINDOW, **SMALL).fit(*narrow_actions())
    assert spread(policy).max() < 1.1e-3  # 0.4% of it is less than a hundred-thousandth
    deployment = policy._deployment()
    other = shifted(deployment)
    model = onnx.to_onnx(other.graph, other.examples())
    message = "other means than torch for 1 rows: they differ by 0.004 standard deviations"
    with pytest.raises(RuntimeError, match=message):
        onnx.verify(deployment, model)
    onnx.verify(other, model)  # it gives what it was made of


def test_a_model_that_differs_is_not_written(mixture, tmp_path, monkeypatch):
    path = tmp_path / "policy.onnx"
    path.write_text("what was there")
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"other gates than torch for 1 rows.*Nothing was writ"):
        mixture.export_onnx(path)
    assert path.read_text() == "what was there"
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.onnx"]


# -- files ----------------------------------------------------------------------------------------


def test_without_the_extra_it_says_how_to_get_it(mixture, tmp_path, monkeypatch, fresh_exports):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'skvdd\[onnx\]'"):
        mixture.export_onnx(tmp_path / "policy.onnx")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'skvdd\[onnx\]'"):
        mixture.controller("onnx")


def test_a_folder_that_is_not_there_is_named(mixture, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        mixture.export_onnx(tmp_path / "nowhere" / "policy.onnx")


def test_the_file_needs_onnxruntime_alone(mixture, tmp_path):
    mixture.export_onnx(tmp_path / "policy.onnx")
    program = (
        "import sys, numpy as np, onnxruntime\n"
        "session = onnxruntime.InferenceSession('policy.onnx')\n"
        "gates, means, _ = session.run(None, {'states': np.zeros((3, 12))})\n"
        "assert gates.shape == (3, 2) and means.shape == (3, 2, 2)\n"
        "sys.exit(int('torch' in sys.modules or 'skvdd' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)


def test_nothing_about_shapes_is_left_to_run_time(transformer, tmp_path):
    transformer.export_onnx(tmp_path / "policy.onnx")
    operations = {node.op_type for node in load(tmp_path / "policy.onnx").graph.node}
    assert "Softmax" in operations
    assert not operations & {"Shape", "Expand", "Trilu"}
