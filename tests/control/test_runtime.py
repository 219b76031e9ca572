"""Controllers on the robot: pickled, and then run without torch and without an estimator."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.control.toys import observations

REPOSITORY = Path(__file__).resolve().parents[2]

PROGRAM = """
import pickle, sys
import numpy as np

states = np.load("states.npy")
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        controller = pickle.load(file)
    controller.reset()
    np.save(path.replace(".pkl", ".npy"), [controller.act(state) for state in states])
absent = {"torch", "onnx", "onnxscript", "mujoco", "gymnasium", "matplotlib"}
absent |= {"skvdd.base", "skvdd.mixture", "skvdd.distillation", "skvdd.diffusion.policy"}
absent |= {"sklearn.cluster", "sklearn.pipeline", "sklearn.linear_model"}
assert not absent & sys.modules.keys(), absent & sys.modules.keys()
"""


def test_a_pickled_controller_acts_in_a_process_without_torch_or_estimators(policies, tmp_path):
    np.save(tmp_path / "states.npy", observations())
    controllers = {n: p.controller("onnx", random_state=0) for n, p in policies.items()}
    for name, controller in controllers.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(controller))
    subprocess.run(
        [sys.executable, "-c", PROGRAM, *(f"{name}.pkl" for name in controllers)],
        cwd=tmp_path,
        check=True,
        timeout=120,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "OMP_NUM_THREADS": "1"},
    )
    for name, controller in controllers.items():
        controller.reset()
        expected = [controller.act(state) for state in observations()]
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)


def test_a_pickled_controller_continues_its_episode(policies):
    for policy in (policies["GaussianMoEPolicy"], policies["DiffusionPolicy"]):
        controller = policy.controller("onnx", random_state=0)
        controller.reset()
        states = observations()
        for state in states[:4]:
            controller.act(state)
        other = pickle.loads(pickle.dumps(controller))
        for state in states[4:]:
            np.testing.assert_array_equal(other.act(state), controller.act(state))
