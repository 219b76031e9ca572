"""
========================================
New demonstrations where the policy errs
========================================

A policy that imitates meets states that no demonstration has shown, once it has made a small
error. Dataset aggregation (DAgger) asks the demonstrator what to do in just those states: roll the
policy out, let the demonstrator label the states that it came to, and learn from old and new rows
together. ``partial_fit`` continues from the weights that are there.

The task is a mass point that is pushed around an obstacle to a goal; the script takes less than a
minute on one core.
"""

# %%
# The task and its demonstrator
# -----------------------------
#
# The point has to go from the left to ``(1, 0)`` and must not touch the disc in the middle. The
# demonstrator goes around on the side that it is on; where that is undecided, a coin is thrown for
# each decision, so that the states in the middle know two answers.
import matplotlib.pyplot as plt
import numpy as np

from skvdd import GaussianMoEPolicy

GOAL, RADIUS, STEP, HORIZON = np.array([1.0, 0.0]), 0.35, 0.06, 60


def demonstrate(position, rng):
    """Return the demonstrator's step at positions (n, 2)."""
    side = np.where(position[:, 1] + 0.02 * rng.standard_normal(len(position)) > 0, 1.0, -1.0)
    around = np.stack([np.zeros_like(side), side * (RADIUS + 0.15)], axis=1)
    passed = position[:, 0] > 0.05
    toward = np.where(passed[:, None], GOAL, around) - position
    length = np.linalg.norm(toward, axis=1, keepdims=True)
    return STEP * toward / np.maximum(length, STEP)


def roll_out(act, n, rng, push=0.0):
    """Return positions (n, HORIZON + 1, 2) and which of the rollouts reached the goal."""
    start = np.stack([np.full(n, -1.0), rng.uniform(-0.1, 0.1, n)], axis=1)
    path, safe = [start], np.ones(n, dtype=bool)
    for _ in range(HORIZON):
        path.append(path[-1] + act(path[-1]) + push * rng.standard_normal((n, 2)))
        safe &= np.linalg.norm(path[-1], axis=1) > RADIUS
    return np.stack(path, axis=1), safe & (np.linalg.norm(path[-1] - GOAL, axis=1) < 0.1)


# %%
# First, imitation
# ----------------
#
# Eight demonstrations, all of them undisturbed. The policy is then disturbed a little in every
# step, and does not know what to do about it.
rng = np.random.RandomState(0)
PUSH = 0.03
paths, _ = roll_out(lambda position: demonstrate(position, rng), 8, rng)
states = paths[:, :-1].reshape(-1, 2)
actions = demonstrate(states, rng)

policy = GaussianMoEPolicy(4, hidden_size=32, max_iter=400, learning_rate=3e-3, random_state=0)
policy.partial_fit(states, actions)


def judge(policy):
    """Return rollouts of the policy that it has not learned from, and which of them succeeded."""
    rng = np.random.RandomState(1)
    return roll_out(lambda position: policy.act(position, random_state=rng), 200, rng, PUSH)


rounds = [(len(states), *judge(policy))]

# %%
# Then, in turns
# --------------
#
# In each round the policy plays, the demonstrator labels twenty of its rollouts, and the policy
# continues with all rows so far. The normalization stays that of the first call.
for _ in range(5):
    paths, _ = roll_out(lambda position: policy.act(position, random_state=rng), 20, rng, PUSH)
    visited = paths[:, :-1].reshape(-1, 2)
    states = np.concatenate([states, visited])
    actions = np.concatenate([actions, demonstrate(visited, rng)])
    policy.partial_fit(states, actions)
    rounds.append((len(states), *judge(policy)))

for number, (n_rows, _, success) in enumerate(rounds):
    print(f"round {number}: {n_rows:5d} rows, success rate {success.mean():.2f}")

# %%
# The result
# ----------
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for axis, number in zip(axes, (0, len(rounds) - 1), strict=False):
    _, paths, success = rounds[number]
    for path, succeeded in zip(paths[:60], success, strict=False):
        axis.plot(*path.T, color="C0" if succeeded else "C3", alpha=0.4, linewidth=0.8)
    axis.add_patch(plt.Circle((0, 0), RADIUS, color="0.7"))
    axis.plot(*GOAL, "k*")
    axis.set(title=f"round {number}", xlim=(-1.2, 1.4), ylim=(-1, 1), aspect="equal")
axes[2].plot([success.mean() for _, _, success in rounds], marker="o")
axes[2].set(xlabel="round", ylabel="success rate", ylim=(0, 1))
axes[2].grid(alpha=0.3)
plt.show()
