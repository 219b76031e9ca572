"""
===================================
Cross-validation that leaks nothing
===================================

A held-out score should say how a policy does on episodes that it has never seen. Two things may
have seen them all the same: neighboring rows of the same episode in the training fold, and a
teacher that was trained on everything. This example does it wrong in both ways, and then right.

The script takes about a minute and a half on one core.
"""

# %%
# Few demonstrations
# ------------------
#
# With many demonstrations the differences are small. Here there are 24, as where somebody has to
# demonstrate by hand.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_validate

from skvdd import DiffusionPolicy, GaussianMoEPolicy, VDDDistiller
from skvdd.datasets import load_demonstrations

demonstrations = load_demonstrations("avoiding", n_episodes=24)
states, actions, groups = demonstrations.windows(window_size=2)
small = {"window_size": 2, "hidden_size": 32, "batch_size": 256, "learning_rate": 2e-3}

# %%
# Rows of one episode
# -------------------
#
# ``windows`` returns a third array, the number of the episode of each row. ``KFold`` on shuffled
# rows tests a policy on the rows between those that it has learned from; ``GroupKFold`` keeps
# episodes whole.
policy = GaussianMoEPolicy(4, max_iter=300, random_state=0, **small)
by_episode = {"groups": groups, "cv": GroupKFold(3, shuffle=True, random_state=0)}
by_row = {"cv": KFold(3, shuffle=True, random_state=0)}


def held_out(policy, folds, **given):
    """Return the score of each fold."""
    return cross_validate(policy, states, actions, **folds, **given)["test_score"]


of_mixture = {"rows": held_out(policy, by_row), "episodes": held_out(policy, by_episode)}
for name, scores in of_mixture.items():
    print(f"split by {name:8}  {scores.mean():6.2f} nats, folds {np.round(scores, 2)}")

# %%
# A teacher that has seen it all
# ------------------------------
#
# A distiller learns from a teacher, and the teacher from demonstrations. There are three ways to
# say which:
#
# - given to ``fit``, here by ``params``, one teacher serves all folds. It is trained once, so this
#   is the cheap way. But it has seen the episodes that its students are tested on, and they have
#   been told what it has seen.
# - ``FrozenEstimator(teacher)`` in the constructor is the same: used as it is, and not fitted
#   again.
# - an unfitted teacher in the constructor is cloned and fitted anew in each fold, on the rows of
#   its training part alone. This is the way without a leak, and it costs a teacher for each fit.
unfitted = DiffusionPolicy(max_iter=300, random_state=0, **small)
seen_all = DiffusionPolicy(max_iter=300, random_state=0, **small).fit(states, actions)

shared = {"n_experts": 4, "init_iter": 200, "max_iter": 40, "random_state": 0, **small}
of_student = {
    "in fit": held_out(VDDDistiller(**shared), by_episode, params={"teacher": seen_all}),
    "frozen": held_out(VDDDistiller(FrozenEstimator(seen_all), **shared), by_episode),
    "in each fold": held_out(VDDDistiller(unfitted, **shared), by_episode),
}
for name, scores in of_student.items():
    print(f"teacher {name:12}  {scores.mean():6.2f} nats, folds {np.round(scores, 2)}")

# %%
# The first two are equal to the last digit. Both are optimistic:
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
for axis, found, title in (
    (axes[0], of_mixture, "a mixture, split by"),
    (axes[1], of_student, "a student, its teacher"),
):
    for place, scores in enumerate(found.values()):
        honest = place == len(found) - 1
        color = "C0" if honest else "C1"
        axis.scatter(np.full(3, place), scores, color=color, alpha=0.5)
        axis.hlines(scores.mean(), place - 0.25, place + 0.25, color=color)
    axis.set_xticks(range(len(found)), found)
    axis.set(title=title, xlim=(-0.5, len(found) - 0.5))
    axis.grid(axis="y", alpha=0.3)
axes[0].set_ylabel("held-out score in nats")
plt.show()

# %%
# The same in a search
# --------------------
#
# ``GridSearchCV`` takes a teacher in the same three ways. Parameters of a teacher in the
# constructor can be searched as well, as ``teacher__...``; ``refit`` fits teacher and student once
# more, on all episodes.
search = GridSearchCV(VDDDistiller(unfitted, **shared), {"noise_max": [0.5, 1.0]}, cv=GroupKFold(2))
search.fit(states, actions, groups=groups)
print(search.best_params_, f"{search.best_score_:.2f} nats")

# %%
# For the *choice* of a parameter the cheap way is often good enough, since all candidates profit
# alike. The score to report is the one without a leak, or rollouts.
