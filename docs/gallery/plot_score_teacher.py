"""
=============================
A score function as a teacher
=============================

All that a distillation asks of its teacher is a score, the gradient of a log density at some noise
level. Here the teacher is not a network but a formula: two ways to act, opposite each other, that
turn with the state.
"""

# %%
# The formula
# -----------
#
# In state :math:`s` the action lies near one of two points on a circle, at the angle :math:`s` and
# opposite. The density is a mixture of two Gaussians; noise of level :math:`\sigma` adds
# :math:`\sigma^2` to their variances. ``ScoreTeacher`` gives the function tensors: raw states
# (n, T, d), standardized actions (n, S, d_a) and noise levels (n, 1). The formula below is for raw
# actions; they are the same, since ``action_mean`` and ``action_scale`` are left at 0 and 1.
import matplotlib.pyplot as plt
import numpy as np
import torch

from skvdd import ScoreTeacher, VDDDistiller, verify_teacher
from skvdd.metrics import kl_divergence
from skvdd.plotting import ExpertsDisplay

STD = 0.25


def modes(angle):
    """Return the two points of each state, (n, 2, 2)."""
    point = torch.stack([angle.cos(), angle.sin()], dim=-1)
    return torch.stack([point, -point], dim=1)


def score(states, actions, sigma):
    variance = STD**2 + sigma[:, :, None] ** 2
    toward = modes(states[:, -1, 0])[:, None] - actions[:, :, None]  # (n, S, mode, d_a)
    weight = torch.softmax(-0.5 * (toward**2).sum(-1) / variance, dim=-1)
    return (weight[..., None] * toward).sum(-2) / variance


teacher = ScoreTeacher(score, n_actions=2, noise_min=0.02, noise_max=5.0)

# %%
# Is it a score? ``verify_teacher`` compares with identities that hold for every score, and names
# what breaks them: a wrong sign, noise in place of a score, raw actions, time that runs backward.
rng = np.random.RandomState(0)
states = rng.uniform(-np.pi / 2, np.pi / 2, size=(2000, 1))
print(verify_teacher(teacher, states[:, None]))

# %%
# The student
# -----------
#
# States are all that is given; actions for the start and for the gating are drawn from the teacher.
student = VDDDistiller(
    n_experts=4,
    hidden_size=64,
    init_iter=1000,
    max_iter=300,
    noise_min=0.05,
    state_noise=0.0,
    random_state=0,
)
student.fit(states, teacher=teacher)

# %%
# Experts in three states
# -----------------------
#
# A score function has no density to draw, but arrows. The axes of a display can be drawn on: lines
# are where the true density has fallen to a tenth of its peak.
shown = np.array([[-1.0], [0.0], [1.0]])
display = ExpertsDisplay.from_estimator(
    student, shown, teacher=teacher, score_level=0.3, titles=[f"s = {s:g}" for (s,) in shown]
)


def log_prob(angles, actions):
    """Return the true log density, (n,)."""
    distance = ((modes(torch.tensor(angles)).numpy() - actions[:, None]) ** 2).sum(-1)
    exponents = -0.5 * distance / STD**2
    return np.logaddexp(*exponents.T) - np.log(2 * 2 * np.pi * STD**2)


mesh = np.stack(np.meshgrid(*display.grid), axis=-1)
for ax, (angle,) in zip(display.axes_, shown, strict=True):
    density = np.exp(log_prob(np.full(mesh[..., 0].size, angle), mesh.reshape(-1, 2)))
    density = density.reshape(mesh.shape[:2]) / density.max()
    ax.contour(*display.grid, density, levels=[0.1], colors="0.5", linestyles="dashed")
plt.show()

# %%
# How close it is
# ---------------
#
# Both densities are known, so the divergence that the distillation minimizes can be estimated from
# samples of the student. It is in nats, zero where both agree.
rows = np.repeat(states[:200], 50, axis=0)
own = student.sample(rows, random_state=0)
print(kl_divergence(student.log_prob(rows, own), log_prob(rows[:, 0], own)))
