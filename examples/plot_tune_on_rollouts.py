"""
=============================================
Choosing noise levels by what a policy can do
=============================================

The likelihood of demonstrated actions does not tell whether a policy reaches its goal. Here a
grid search over the noise levels of the distillation is decided by rollouts in the simulator
instead: by the success rate and by the variety of the ways that succeed.

The settings are small, so that the script takes about two minutes on one core; ``make demo``
shows what the defaults reach.
"""

# %%
# The teacher
# -----------
#
# All candidates learn from the same diffusion policy. It is trained once, before the search, and
# handed to ``fit``.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from skvdd import DiffusionPolicy, VDDDistiller
from skvdd.datasets import load_demonstrations
from skvdd.evaluation import evaluate_policy, rollout_scorer
from skvdd.metrics import wilson_interval

states, actions, _ = load_demonstrations("avoiding").windows(window_size=5)
teacher = DiffusionPolicy(window_size=5, hidden_size=64, max_iter=3000, random_state=0)
teacher.fit(states, actions)

# %%
# The search
# ----------
#
# The scorer ignores the data of the test split, so cross-validation only chooses what a candidate
# is trained on. One split that trains on every row is enough. The three metrics come from the same
# rollouts; ``refit`` names the one that decides, here the number by which D3IL selects models of
# Avoiding, 0.8 of the success rate and 0.2 of the entropy. Every candidate plays the same 100
# episodes. With more cores, give the search ``n_jobs``.
N_EPISODES = 100
METRICS = ["success_rate", "entropy_d3il", "selection"]
NOISE_MIN, NOISE_MAX = [0.05, 0.2], [0.25, 0.5, 1.0]

search = GridSearchCV(
    VDDDistiller(window_size=5, init_iter=0, max_iter=300, batch_size=256, random_state=0),
    {"noise_min": NOISE_MIN, "noise_max": NOISE_MAX},
    scoring=rollout_scorer("avoiding", N_EPISODES, metric=METRICS),
    refit="selection",
    cv=[(np.arange(len(states)), [0])],
)
search.fit(states, actions, teacher=teacher)

# %%
# The result
# ----------
success, entropy, selection = (search.cv_results_[f"mean_test_{metric}"] for metric in METRICS)
print("noise_min  noise_max  success  entropy  selection")
for candidate, *scores in zip(
    search.cv_results_["params"], success, entropy, selection, strict=True
):
    print("{noise_min:9.2f}  {noise_max:9.2f}".format(**candidate), end="")
    print("  {:7.2f}  {:7.2f}  {:9.3f}".format(*scores))

# %%
# Bars are 95 % intervals of the success rate. Where they overlap widely, the difference may be
# chance: more episodes make them shorter, and other values of ``random_state`` of the distiller
# show what the training adds.
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharex=True, layout="constrained")
for noise_min, marker in zip(NOISE_MIN, "os", strict=True):
    chosen = search.cv_results_["param_noise_min"] == noise_min
    levels = search.cv_results_["param_noise_max"][chosen].astype(float)
    levels *= 0.98 if marker == "o" else 1.02  # beside each other, so that no bar is hidden
    counts = np.rint(N_EPISODES * success[chosen]).astype(int)
    intervals = np.array([wilson_interval(count, N_EPISODES) for count in counts])
    whiskers = np.abs(intervals.T - success[chosen])
    label = f"noise_min={noise_min}"
    axes[0].errorbar(levels, success[chosen], whiskers, marker=marker, capsize=3, label=label)
    axes[1].plot(levels, entropy[chosen], marker=marker, label=label)
for axis, name in zip(axes, ("success rate", "entropy, D3IL"), strict=True):
    axis.set(xscale="log", xlabel="noise_max", ylabel=name, ylim=(0, 1))
    axis.set_xticks(NOISE_MAX, [str(level) for level in NOISE_MAX])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
axes[0].legend(loc="lower right")
figure.suptitle(f"{N_EPISODES} rollouts of each distilled policy")
plt.show()

# %%
# The best of several noisy scores is optimistic. The chosen policy, which the search has trained
# again, is therefore judged by episodes that it was not chosen by. Avoiding always starts alike, so
# these have another seed. In a task that has contexts nothing needs to be said: a scorer plays
# those of its validation list, and ``evaluate_policy`` those of its test list.
best = search.best_estimator_
print(evaluate_policy(best, "avoiding", N_EPISODES, random_state=1, progress=False))
