"""
=====================================
Noticing what was never demonstrated
=====================================

A distilled mixture has an exact likelihood in one call of a network. While a robot is driven, by a
person or by another policy, it tells of every decision how well it fits what was demonstrated, and
so whether something is wrong: another driver, an offset of a sensor, a loose joint.
"""

# %%
# What is normal
# --------------
#
# Episodes are kept whole: one in four of each behavior is held out, and shows how the likelihood
# varies where nothing is wrong.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from skvdd import DiffusionPolicy, VDDDistiller
from skvdd.datasets import load_demonstrations

demonstrations = load_demonstrations("avoiding")
numbers = np.arange(len(demonstrations))
held_out = numbers // 24 % 4 == 3  # episodes take turns through the 24 behaviors

states, actions, _ = demonstrations.subset(numbers[~held_out]).windows(window_size=5)
small = {"window_size": 5, "hidden_size": 64, "random_state": 0}
teacher = DiffusionPolicy(max_iter=1500, **small).fit(states, actions)
policy = VDDDistiller(init_iter=1000, max_iter=200, **small)
policy.fit(states, actions, teacher=teacher)

# %%
# What is not
# -----------
normal_states, normal_actions, _ = demonstrations.subset(numbers[held_out]).windows(window_size=5)
other_states, other_actions, _ = load_demonstrations("avoiding-hesitant", 24).windows(window_size=5)

turn = np.deg2rad(30)
rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
offset = np.array([0.0, 0.0, 0.03, 0.0])  # of the measured x, m

cases = {
    "held out": (normal_states, normal_actions),
    "a hesitant driver": (other_states, other_actions),
    "actions turned by 30°": (normal_states, normal_actions @ rotation.T),
    "sensor off by 3 cm": (normal_states + offset, normal_actions),
}
log_likelihoods = {name: policy.log_prob(*case) for name, case in cases.items()}

# %%
# A threshold
# -----------
#
# One false alarm in a hundred decisions: the first percentile of what was held out. The area under
# the ROC curve is the probability that a wrong decision has a lower likelihood than a normal one.
normal = log_likelihoods["held out"]
threshold = np.quantile(normal, 0.01)
print(f"{'':<22}  alarms  area under ROC")
for name, values in log_likelihoods.items():
    labels = np.r_[np.zeros(len(normal)), np.ones(len(values))]
    area = roc_auc_score(labels, -np.r_[normal, values])
    print(f"{name:<22}  {np.mean(values < threshold):6.2f}  {area:14.2f}")

# %%
# Fraction of decisions below each likelihood. A single decision says little where the curves are
# close; an alarm that waits for several in a row is surer and later.
figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
for color, (name, values) in zip(colors, log_likelihoods.items(), strict=True):
    ax.ecdf(values, color=color, label=name)
ax.axvline(threshold, color="0.5", ls=":", label="threshold")
ax.set(xlim=(normal.min() - 20, normal.max() + 1), xlabel="log-likelihood of a decision (nats)")
ax.set_ylabel("fraction of decisions below")
ax.legend(frameon=False, loc="upper left")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
