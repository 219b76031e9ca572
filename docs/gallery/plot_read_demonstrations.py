"""
=============================
Reading public demonstrations
=============================

Readers turn the files that others have published into :class:`~skvdd.datasets.Demonstrations`,
with the states, actions and behaviors of the environments here. This script reads D3IL's Avoiding,
looks at it, and splits it. It takes a few seconds.
"""

# %%
# A folder as D3IL publishes it
# -----------------------------
#
# With the published data, ``root`` is the folder into which the zip was extracted. To run without
# them, this script writes 24 scripted episodes in the same form: one pickle each, of everything the
# robot measured. (The last sample of a file is not followed by an action.)
import pickle
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skvdd.datasets import Demonstrations, load_demonstrations
from skvdd.datasets.readers import read_d3il

root = Path(tempfile.mkdtemp())
folder = root / "avoiding" / "data"
folder.mkdir(parents=True)
for number, episode in enumerate(load_demonstrations("avoiding", n_episodes=24)):
    last = episode.states[-1, :2] + episode.actions[-1]
    desired = np.vstack([episode.states[:, :2], last])
    measured = np.vstack([episode.states[:, 2:], episode.states[-1, 2:]])
    height = np.full((len(desired), 1), 0.12)
    robot = {
        "des_c_pos": np.hstack([desired, height]),
        "c_pos": np.hstack([measured, height]),
    }
    content = pickle.dumps({"robot": robot})
    (folder / f"env_{number:04}_00.pkl").write_bytes(content)

# %%
# Reading
# -------
#
# A pickle can have any function called. These are interpreted instead of run: one that asks for
# anything but arrays and plain containers is refused, and the refusal names what it asked for. A
# bad episode is named by its file and never left out silently.
demos = read_d3il("avoiding", root)
print(demos.describe())

# %%
# Each episode remembers its file, and the behavior is told by the trajectory: the gaps of the
# three rows through which the rod passed, as :class:`~skvdd.envs.Avoiding` reports them.
print(demos[0], demos[0].metadata)

# %%
# Looking
# -------
#
# Slices, masks and behaviors choose episodes. Here the color tells the gap in the last row.
figure, axis = plt.subplots(figsize=(4, 4.5), layout="constrained")
for gap in range(4):
    through_it = [behavior for behavior in demos.behaviors if behavior >> (5 + gap) & 1]
    for episode in demos.subset(behaviors=through_it):
        axis.plot(*episode.states[:, 2:].T, color=f"C{gap}", linewidth=1)
axis.set(xlabel="x in m", ylabel="y in m", aspect="equal", title=f"{len(demos)} demonstrations")
plt.show()

# %%
# Splitting and adding
# --------------------
#
# Splits keep episodes whole. With ``stratify=True`` every behavior is in both parts, for which it
# needs two episodes at least; the scripted set adds four of each.
more = demos + load_demonstrations("avoiding")
train, test = more.split(test_size=24, stratify=True, random_state=0)
print(train, test, sep="\n")

# %%
# Rows to fit a policy on
# -----------------------
states, actions, groups = train.windows(window_size=5)
print(states.shape, actions.shape, groups.shape)

# %%
# Keeping
# -------
#
# One file, without pickle. What is too large for memory is saved uncompressed and mapped; then the
# rows are read as parts of the set are used.
train.save(root / "train.npz", compressed=False)
mapped = Demonstrations.load(root / "train.npz", mmap_mode="r")
print(mapped[:8].windows(window_size=5)[0].shape)
