"""
============================
A policy without its library
============================

A mixture is fitted to demonstrations and written to an ONNX file. The control loop below needs
NumPy and ONNX Runtime alone: it keeps the window of states, and draws an expert from the gating.
"""

# %%
# The file
# --------
import tempfile
from pathlib import Path

from skvdd import GaussianMoEPolicy
from skvdd.datasets import load_demonstrations

states, actions, _ = load_demonstrations("avoiding").windows(window_size=5)
policy = GaussianMoEPolicy(window_size=5, max_iter=4000, random_state=0).fit(states, actions)
path = Path(tempfile.mkdtemp()) / "avoiding.onnx"
policy.export_onnx(path)

# %%
# The robot
# ---------
#
# Normalization is inside the file: raw states go in, and gates, means and Cholesky factors in raw
# units come out.
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402


class Robot:
    """All that control needs of the policy."""

    def __init__(self, path, window_size, seed):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.window_size = window_size
        self.rng = np.random.default_rng(seed)
        self.window = None

    def act(self, state):
        if self.window is None:  # an episode begins: repeat its first state
            self.window = [state] * self.window_size
        self.window = [*self.window[1:], state]
        row = np.concatenate(self.window)[None]
        gates, means, _ = self.session.run(None, {"states": row})
        return means[0, self.rng.choice(gates.shape[1], p=gates[0])]


# %%
# Twenty episodes in the simulator
# --------------------------------
import gymnasium  # noqa: E402

import skvdd.envs  # noqa: E402, F401  registers the task

env = gymnasium.make("skvdd/Avoiding-v0")
successes = []
for episode in range(20):
    robot = Robot(path, window_size=5, seed=episode)
    state, info = env.reset(seed=episode)
    over = False
    while not over:
        state, _, terminated, truncated, info = env.step(robot.act(state))
        over = terminated or truncated
    successes.append(info["success"])
print(f"{np.mean(successes):.2f} of {len(successes)} episodes succeeded")
