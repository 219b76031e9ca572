"""
==================================
How experts find the modes: a film
==================================

A diffusion policy learns actions on a ring of eight modes. A mixture of eight experts, started at
random, is distilled from nothing but its score. Snapshots taken on the way make a film of the
experts being drawn to the modes and pushed apart (figure 2 of the paper).
"""

# %%
# Eight modes
# -----------
#
# There is a single state, always zero; all that is to be learned is one density of two actions.
import matplotlib.pyplot as plt
import numpy as np

from skvdd import DiffusionPolicy, VDDDistiller
from skvdd.plotting import ExpertsDisplay, TrainingSnapshots

rng = np.random.RandomState(0)
angles = 2 * np.pi * rng.randint(8, size=4000) / 8
actions = np.stack([np.cos(angles), np.sin(angles)], axis=1) + 0.12 * rng.standard_normal((4000, 2))
states = np.zeros((4000, 1))

teacher = DiffusionPolicy(hidden_size=64, max_iter=2500, learning_rate=2e-3, random_state=0)
teacher.fit(states, actions)

# %%
# The distillation
# ----------------
#
# By default the experts start near the modes already, and a part of the forward divergence keeps
# them there. Both are switched off here, to leave everything to the score, whose noise falls during
# the training: large noise guides from afar, small noise sharpens. This start finds all modes; with
# other values of ``random_state`` an expert may stay between two of them, which is why random
# experts are not the default.
#
# ``TrainingSnapshots`` is a callback as scikit-learn has them: it keeps the student as it was at
# every second report.
snapshots = TrainingSnapshots(every=2)
student = VDDDistiller(
    n_experts=8,
    init="random",
    init_iter=0,
    likelihood_weight=0.0,
    noise="anneal",
    noise_max=1.5,
    n_samples=8,
    encoder="mlp",
    hidden_size=64,
    max_iter=400,
    batch_size=64,
    learning_rate=2e-3,
    state_noise=0.0,
    random_state=0,
)
student.set_callbacks(snapshots).fit(states, actions, teacher=teacher)

# %%
# The end
# -------
#
# Gray is the teacher's density, arrows are its score at a noise level of 0.4. Ellipses are one and
# two standard deviations of an expert.
display = ExpertsDisplay.from_estimator(
    student,
    states[:1],
    teacher=teacher,
    score_level=0.4,
    grid_size=40,
    titles=["after training"],
)

# %%
# The film
# --------
animation = display.animate(snapshots.policies_, states[:1], interval=120)
plt.show()

# %%
# ``animation.save("training.gif", writer="pillow")`` writes it to a file. Six of its pictures, on
# axes of our own; the density is not computed again:
figure, axes = plt.subplots(2, 3, figsize=(8, 5.6), layout="constrained")
moments = np.linspace(0, len(snapshots.policies_) - 1, 6).astype(int)
for ax, moment in zip(axes.flat, moments, strict=True):
    policy = snapshots.policies_[moment]
    gates, (means, covariances) = policy.gating(states[:1]), policy.experts(states[:1])
    still = ExpertsDisplay(display.grid, display.log_density, gates, means, covariances)
    still.plot(ax, titles=[f"iteration {policy.history_[-1]['iteration']}"])
    ax.get_legend().remove()
    ax.label_outer()
plt.show()
