"""
=======================
Watching a policy learn
=======================

Callbacks look at a policy while it is trained. Here one measures the likelihood of held-out
episodes and stops the training when it ceases to rise, one rolls the policy out in the simulator,
one writes a log, and one saves the state of the training, so that a fit that is cut short can be
resumed as if nothing had happened.

The settings are small, so that the script takes less than a minute on one core.
"""

# %%
# Data
# ----
#
# Episodes stay whole. The policy learns from a sixth of them only, so that it soon begins to learn
# them by heart; the others are held out.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.model_selection import GroupShuffleSplit

from skvdd import GaussianMoEPolicy
from skvdd.callbacks import Checkpoint, CSVLogger, EarlyStopping, RolloutMonitor
from skvdd.datasets import load_demonstrations

states, actions, groups = load_demonstrations("avoiding").windows(window_size=5)
split = GroupShuffleSplit(n_splits=1, train_size=1 / 6, random_state=0)
train, held_out = next(split.split(states, groups=groups))

# %%
# Callbacks
# ---------
#
# `EarlyStopping` and `RolloutMonitor` add a column to ``history_``, and so to the log. The rollouts
# are few and only watched here; with ``keep_best=True`` the policy would end with the weights that
# succeed most often. In a task that has contexts, a monitor plays those of the validation list, so
# that those of the test list are left for the report.
folder = Path(tempfile.mkdtemp())
stopping = EarlyStopping(states[held_out], actions[held_out], every=50, patience=6)
monitor = RolloutMonitor("avoiding", 24, every=100, keep_best=False)
log, checkpoint = CSVLogger(folder / "log.csv"), Checkpoint(folder / "run.ckpt", every=200)

policy = GaussianMoEPolicy(
    window_size=5,
    hidden_size=64,
    max_iter=1600,
    learning_rate=2e-3,
    state_noise=0.01,
    random_state=0,
)


# %%
# A training that is cut short
# ----------------------------
#
# Suppose that the machine fails. The checkpoint stays behind.
class PowerCut:
    """A callback of scikit-learn's protocol: it ends the first fit after 300 iterations."""

    happened = False

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        row = (metadata or {}).get("row", {"iteration": 0})
        if row["iteration"] >= 300 and not self.happened:
            self.happened = True
            raise RuntimeError("the power is gone")

    def teardown(self, estimator, context):
        pass


policy.set_callbacks(stopping, monitor, log, checkpoint, PowerCut())
try:
    policy.fit(states[train], actions[train])
except RuntimeError as error:
    print(f"{error}; what is left: {sorted(path.name for path in folder.iterdir())}")

# %%
# The same call resumes from the file, in this process or in another, and ends with the bits of a
# training that was never cut short. Then the file is removed.
policy.fit(states[train], actions[train])
print(f"{policy.n_iter_} iterations; what is left: {[path.name for path in folder.iterdir()]}")
print(f"best held-out score {stopping.best_score_:.2f} at iteration {stopping.best_iteration_}")

# %%
# What was seen
# -------------
#
# ``history_`` is a list of dictionaries: ``pandas.DataFrame(policy.history_)`` is a table of it.
figure, axes = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
for name, axis in (("held_out_score", axes[0]), ("success_rate", axes[1])):
    rows = [row for row in policy.history_ if name in row]
    iterations = [row["iteration"] for row in rows]
    axis.plot(iterations, [row[name] for row in rows], marker="o", markersize=3)
    axis.axvline(stopping.best_iteration_, color="0.6", linestyle=":")
    axis.set_ylabel(name.replace("_", " "))
    axis.grid(alpha=0.3)
axes[0].set_title("the dotted line is where the weights that were kept come from")
axes[1].set(xlabel="iteration", ylim=(0, 1))
plt.show()
