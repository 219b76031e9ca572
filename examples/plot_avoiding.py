"""
=========================
Avoiding from end to end
=========================

A robot arm steers a rod between six obstacles, in one of 24 ways. A diffusion policy is trained on
demonstrations, distilled into a mixture of eight experts, and both are rolled out in the simulator.

The settings are small, so that the script takes about a minute on one core; ``make demo`` shows
what the defaults reach.
"""

# %%
# Teacher and student
# -------------------
import matplotlib.pyplot as plt

from skvdd import DiffusionPolicy, VDDDistiller
from skvdd.datasets import load_demonstrations
from skvdd.evaluation import evaluate_policy
from skvdd.plotting import (
    BehaviorDisplay,
    ExpertsDisplay,
    HistoryDisplay,
    LatencyDisplay,
    TrajectoriesDisplay,
)

demonstrations = load_demonstrations("avoiding")
states, actions, _ = demonstrations.windows(window_size=5)
small = {"window_size": 5, "hidden_size": 64, "random_state": 0}

teacher = DiffusionPolicy(max_iter=2000, **small).fit(states, actions)
student = VDDDistiller(n_experts=8, init_iter=1000, max_iter=200, **small)
student.fit(states, actions, teacher=teacher)

# %%
# Training of the student: first maximum likelihood, which spreads the experts, then distillation.
HistoryDisplay.from_estimator(student, terms=["complete_nll", "score_gap"])
plt.show()

# %%
# What they decide
# ----------------
#
# At the start of an episode and before the second row of obstacles. Gray is the density of the
# teacher, ellipses are the experts.
episode = demonstrations.subset([0]).windows(window_size=5)[0]
ExpertsDisplay.from_estimator(
    student,
    episode[[0, 35]],
    teacher=teacher,
    grid_size=32,
    titles=("at the start", "later"),
    action_names=("Δx (mm)", "Δy (mm)"),
    action_scale=1000,
)
plt.show()

# %%
# What they do
# ------------
policies = {f"teacher, {teacher.n_steps} steps": teacher, "VDD": student}
evaluations = {
    name: evaluate_policy(policy, "avoiding", 40, random_state=0, progress=False)
    for name, policy in policies.items()
}
for evaluation in evaluations.values():
    print(evaluation)

# %%
# The paths of the student, in the colors of the experts that decide:
paths = TrajectoriesDisplay.from_evaluation(evaluations["VDD"], student)
plt.show()

# %%
# Each expert alone:
paths.plot_experts()
plt.show()

# %%
# How often each of the 24 ways is taken. Forty episodes cannot show them in their true proportions:
# in brackets is the entropy that a policy would have that takes all of them equally often.
BehaviorDisplay.from_evaluations({"demonstrations": demonstrations, **evaluations})
plt.show()

# %%
# What a decision costs, on one thread:
LatencyDisplay.from_estimators(policies, states[0], n_calls=100)
plt.show()

# %%
# A film of one episode is written by ``skvdd.evaluation.record_episode(student,
# "skvdd/Avoiding-v0", "avoiding.gif")``.
