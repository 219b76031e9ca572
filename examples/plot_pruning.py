"""
======================================
How many experts does a policy need?
======================================

The gating of a distilled mixture leaves some experts almost unused. Here the least used ones of
sixteen are dropped, one after the other, without any further training, until it hurts.
"""

# %%
# Sixteen experts
# ---------------
import matplotlib.pyplot as plt
import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from skvdd import DiffusionPolicy, VDDDistiller
from skvdd.datasets import load_demonstrations
from skvdd.evaluation import evaluate_policy
from skvdd.plotting import expert_colors

states, actions, _ = load_demonstrations("avoiding").windows(window_size=5)
small = {"window_size": 5, "hidden_size": 64, "random_state": 0}
teacher = DiffusionPolicy(max_iter=1500, **small).fit(states, actions)
policy = VDDDistiller(n_experts=16, init_iter=1000, max_iter=150, **small)
policy.fit(states, actions, teacher=teacher)

# %%
# How much each is used
# ---------------------
#
# The mean of its gate over the states of the demonstrations.
gates = policy.gating(states)
usage = gates.mean(axis=0)
order = np.argsort(usage)[::-1]

figure, ax = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
ax.bar(range(len(usage)), usage[order], color=np.array(expert_colors(16), dtype=object)[order])
ax.set_xticks(range(len(usage)), order + 1)
ax.set(xlabel="expert", ylabel="mean gate")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Fewer of them
# -------------
#
# A pruned policy keeps some experts and lets their gates add up to one again. For rollouts, a
# policy is anything with ``window_size`` and ``act``; as in the whole mixture, an action is the
# mean of an expert drawn from the gating.


class Pruned:
    """Some experts of a mixture."""

    def __init__(self, policy, kept):
        self.policy, self.kept = policy, kept
        self.window_size = policy.window_size

    def gating(self, X):
        gates = self.policy.gating(X)[:, self.kept]
        return gates / gates.sum(axis=1, keepdims=True)

    def act(self, X, *, random_state=None):
        means = self.policy.experts(X)[0][:, self.kept]
        drawn = [
            rng.choice(len(self.kept), p=gate)
            for rng, gate in zip(random_state, self.gating(X), strict=True)
        ]
        return means[np.arange(len(X)), drawn]


# %%
# The likelihood needs no rollouts: the densities of all experts are computed once, on every tenth
# decision.
rows, taken = states[::10], actions[::10]
means, covariances = policy.experts(rows)
log_densities = np.array(
    [
        [multivariate_normal.logpdf(action, m, c) for m, c in zip(*experts, strict=True)]
        for action, *experts in zip(taken, means, covariances, strict=True)
    ]
)
counts = np.arange(1, 17)
log_likelihoods = []
for count in counts:
    kept = order[:count]
    log_gates = np.log(Pruned(policy, kept).gating(rows))
    log_likelihoods.append(logsumexp(log_gates + log_densities[:, kept], axis=1).mean())
print(f"all sixteen: {policy.score(rows, taken):.3f} nats, by hand {log_likelihoods[-1]:.3f}")

# %%
played = [2, 4, 6, 8, 12, 16]
evaluations = [
    evaluate_policy(Pruned(policy, order[:count]), "avoiding", 40, random_state=0, progress=False)
    for count in played
]

# %%
# What is lost
# ------------
#
# Half of the experts can go before the likelihood falls, and little variety is lost. With fewer,
# ways disappear, while the success rate stays within its intervals: few ways can be driven well.
# Diversity is the probability that two successes go different ways, scaled so that it is one where
# all ways are equally frequent. Bars are 95 % intervals; of forty episodes they are wide.
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
axes[0].plot(counts, log_likelihoods, "o-", color="#0072B2")
axes[0].set(ylabel="log-likelihood (nats)")
success = [(e.success_rate, *e.success_interval) for e in evaluations]
diversity = [(e.diversity, *e.diversity_interval) for e in evaluations]
for label, found, color in (("success", success, "#0072B2"), ("diversity", diversity, "#D55E00")):
    values, *bounds = np.transpose(found)
    whiskers = np.abs(bounds - values)
    axes[1].errorbar(played, values, whiskers, fmt="o-", capsize=3, color=color, label=label)
axes[1].set(ylim=(0, 1.1))
axes[1].legend(frameon=False, loc="lower right")
for ax in axes:
    ax.set_xlabel("experts kept")
    ax.set_xticks(played)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
