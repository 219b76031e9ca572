"""
==================
A task of your own
==================

Any Gymnasium environment with vectors as observations and actions can be imitated. This one is a
point in the plane that has to get past a pillar, on either side. Its demonstrations come from a
script.
"""

# %%
# The environment
# ---------------
#
# The info of each step tells ``success``, and, where ways are to be told apart, ``behavior``.
import gymnasium
import matplotlib.pyplot as plt
import numpy as np
from gymnasium.spaces import Box
from matplotlib.patches import Circle

from skvdd import DiffusionPolicy, VDDDistiller
from skvdd.datasets import Demonstrations, Episode
from skvdd.envs import Score, TaskSpec, register_task
from skvdd.evaluation import evaluate_policy
from skvdd.plotting import BehaviorDisplay, ExpertsDisplay, expert_colors


class Pillar(gymnasium.Env):
    """Get from the left to the right, past a pillar of radius 0.3 in the middle."""

    observation_space = Box(-2.0, 2.0, (2,), np.float64)  # position
    action_space = Box(-0.1, 0.1, (2,), np.float64)  # step

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = np.array([-1.0, self.np_random.uniform(-0.05, 0.05)])
        self.side = None
        return self.position, {"success": False, "behavior": None}

    def step(self, action):
        before = self.position
        self.position = before + action
        if before[0] < 0.0 <= self.position[0]:
            self.side = "above" if self.position[1] > 0 else "below"
        hit = bool(np.hypot(*self.position) < 0.3)
        success = bool(self.position[0] > 1.0) and not hit
        info = {"success": success, "behavior": self.side}
        return self.position, float(success), success or hit, False, info


# %%
# A ``TaskSpec`` says what there is to know about the task: its environment and time limit, and
# which behaviors solve it, under which names. Rollouts and displays look it up.
register_task(
    TaskSpec(
        name="pillar",
        env_id="Pillar-v0",
        entry_point=Pillar,
        time_limit=80,
        scores=(Score(behaviors={"above": "above the pillar", "below": "below it"}),),
    )
)

# %%
# The demonstrations
# ------------------
#
# An episode holds the state before each action, the actions, and what was shown.


def demonstrate(env, behavior, rng):
    """Drive past one side of the pillar, by way of a point beside it, with a shaky hand."""
    sign = 1 if behavior == "above" else -1
    beside = np.array([0.0, sign * rng.uniform(0.5, 0.7)])
    state, _ = env.reset(seed=int(rng.integers(2**31)))
    states, actions, over = [], [], False
    while not over:
        target = beside if state[0] < -0.05 else np.array([1.3, 0.0])
        direction = (target - state) / np.linalg.norm(target - state)
        action = 0.05 * direction + 0.005 * rng.standard_normal(2)
        states.append(state)
        actions.append(action)
        state, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    return Episode(np.array(states), np.array(actions), info["behavior"])


env, rng = gymnasium.make("Pillar-v0"), np.random.default_rng(0)
demonstrations = Demonstrations(
    [demonstrate(env, ("above", "below")[number % 2], rng) for number in range(60)], name="pillar"
)
print(demonstrations.describe())

# %%
# Teacher and student
# -------------------
#
# The window of three states shows in which direction the point is moving.
states, actions, _ = demonstrations.windows(window_size=3)
small = {"window_size": 3, "hidden_size": 64, "random_state": 0}
teacher = DiffusionPolicy(max_iter=1500, **small).fit(states, actions)
student = VDDDistiller(n_experts=4, init_iter=800, max_iter=200, **small)
student.fit(states, actions, teacher=teacher)

# %%
# Where the ways part, the experts do. At the start both are open; once the point has turned, one is
# left.
display = ExpertsDisplay.from_estimator(
    student, states[[0, 12]], teacher=teacher, grid_size=32, titles=("at the start", "12 steps on")
)
plt.show()

# %%
# The rollouts
# ------------
evaluation = evaluate_policy(student, "pillar", 100, random_state=0, progress=False)
print(evaluation)
BehaviorDisplay.from_evaluations({"demonstrations": demonstrations, "VDD": evaluation})
plt.show()

# %%
# Episodes of an evaluation are demonstrations themselves, so windows and gates of what was driven
# are a call away:
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
windows, _, _ = evaluation.episodes.windows(window_size=3)
deciding = student.gating(windows).argmax(axis=1)
for expert, color in enumerate(expert_colors(4)):
    x, y = windows[deciding == expert, -1].T
    ax.scatter(x, y, s=4, color=color, alpha=0.6, label=f"expert {expert + 1}")
ax.add_patch(Circle((0, 0), 0.3, facecolor=(0.5, 0.5, 0.5, 0.4), edgecolor="0.5"))
ax.set(aspect="equal", xlabel="x", ylabel="y")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=3)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
