"""
======================================
One call of a network: which students?
======================================

Five ways to an action in one network call, on a task whose truth is known: the teacher cut to one
step, consistency distillation (CD), consistency trajectories (CTM), the mixture by maximum
likelihood (EM), and the mixture by distillation (VDD).
"""

# %%
# The task
# --------
#
# The action goes up or down by ``1 + s``, with little noise. The mean of the two is an action that
# nobody takes.
import matplotlib.pyplot as plt
import numpy as np

from skvdd import (
    ConsistencyDistiller,
    ConsistencyTrajectoryDistiller,
    DiffusionPolicy,
    GaussianMoEPolicy,
    VDDDistiller,
)
from skvdd.metrics import energy_score
from skvdd.plotting import LatencyDisplay

rng = np.random.RandomState(0)


def demonstrate(n):
    """Return states (n, 1) and actions (n,)."""
    states = rng.uniform(0, 1, size=(n, 1))
    ways = rng.choice([-1.0, 1.0], size=n)
    return states, ways * (1 + states[:, 0]) + 0.1 * rng.standard_normal(n)


states, actions = demonstrate(4000)
small = {"hidden_size": 64, "random_state": 0}
teacher = DiffusionPolicy(max_iter=1200, **small).fit(states, actions)

# %%
# The students
# ------------
#
# The iterations are chosen so that each of them takes about ten seconds on one core.
policies = {f"teacher, {teacher.n_steps} steps": teacher}
policies["teacher, 1 step"] = teacher.with_sampler(n_steps=1)
students = {
    "CD": ConsistencyDistiller(max_iter=600, **small),
    "CTM": ConsistencyTrajectoryDistiller(max_iter=300, **small),
    "EM": GaussianMoEPolicy(n_experts=4, max_iter=1500, **small),
    "VDD": VDDDistiller(n_experts=4, init_iter=1000, max_iter=300, **small),
}
for name, student in students.items():
    given = {} if name == "EM" else {"teacher": teacher}
    policies[name] = student.fit(states, actions, **given)

# %%
# What they draw
# --------------
#
# Beside each name, the energy score on new demonstrations: it asks for samples alone, so that every
# method can be compared. In expectation nothing scores lower than the truth; of 2000 decisions,
# differences of a hundredth or two are chance.
new_states, new_actions = demonstrate(2000)
truth = (rng.choice([-1.0, 1.0], (2000, 16)) * (1 + new_states)) + 0.1 * rng.standard_normal(
    (2000, 16)
)


def measure(samples):
    return energy_score(samples[:, :, None], new_actions[:, None]).mean()


figure, axes = plt.subplots(2, 3, figsize=(8, 5), sharex=True, sharey=True, layout="constrained")
for ax, (name, policy) in zip(axes.flat, policies.items(), strict=True):
    samples = policy.sample(new_states, 16, random_state=0)
    ax.scatter(new_states[:, 0], samples[:, 0], s=3, color="#0072B2", alpha=0.4)
    ax.set_title(f"{name}: {measure(samples):.4f}", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
figure.supxlabel("state")
figure.supylabel("action")
figure.suptitle(f"one sample in each state, and the energy score (truth: {measure(truth):.4f})")
plt.show()

# %%
# What a decision costs
# ---------------------
#
# Milliseconds of one call of ``act``, on one thread, everything around the network included.
LatencyDisplay.from_estimators(policies, new_states[0], n_calls=100)
plt.show()

# %%
# CD and CTM keep the form of a diffusion policy and lose its density. A mixture has one, in the
# same single call:
for name in ("EM", "VDD"):
    print(f"{name}: {policies[name].score(new_states, new_actions):.3f} nats per decision")
