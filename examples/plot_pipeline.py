"""
=====================
Steps before a policy
=====================

A policy is the last step of a scikit-learn ``Pipeline`` as any estimator is: what comes before it
turns raw states into what it learns from, and the whole is rolled out, searched and saved as one
object. Here states come as a data frame, go through features, and a policy of the actions stays a
density. ``TransformedTargetRegressor``, which transforms the actions instead, keeps much less.

The script takes about a minute on one core.
"""

# %%
# Columns with names
# ------------------
#
# A row is a window of two states of Avoiding, flat, oldest state first. Names help where tables
# have many columns: fitted on a data frame, an estimator remembers them and refuses others.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, QuantileTransformer, RobustScaler

from skvdd import GaussianMoEPolicy
from skvdd.datasets import load_demonstrations
from skvdd.datasets.features import task_features
from skvdd.evaluation import evaluate_policy

COLUMNS = ["desired_x", "desired_y", "measured_x", "measured_y"]
NAMES = [f"{column}_{when}" for when in ("before", "now") for column in COLUMNS]

windows, actions, _ = load_demonstrations("avoiding").windows(window_size=2)
rows = pd.DataFrame(windows.reshape(len(windows), -1), columns=NAMES)
print(rows.iloc[:3].round(3).to_string())

# %%
# Features of one's own
# ---------------------
#
# A policy standardizes states and actions by itself, so ``StandardScaler`` before it changes
# nothing. What pays is what standardizing cannot do: a difference of two columns that are large and
# nearly equal, or a scaler that outliers do not disturb. ``window_size`` says how many states a row
# has when it *reaches* the policy; a step may change how many columns each of them has.


def how_far_the_command_leads(frame):
    """Replace the desired positions of both states by how far they are ahead of the measured."""
    frame = frame.copy()
    for when in ("before", "now"):
        for axis in "xy":
            frame[f"desired_{axis}_{when}"] -= frame[f"measured_{axis}_{when}"]
    return frame


small = {"hidden_size": 64, "max_iter": 600, "batch_size": 256, "learning_rate": 2e-3}
pipeline = make_pipeline(
    FunctionTransformer(how_far_the_command_leads),
    RobustScaler(),
    GaussianMoEPolicy(8, window_size=2, random_state=0, **small),
)
pipeline.fit(rows, actions)
print(list(pipeline.feature_names_in_)[:3], "...")

# %%
# ``evaluate_policy`` gives a pipeline the raw observations of the environment, with the names that
# it was fitted with, and asks its last step to act. (Its training is cut short here; the defaults
# take more iterations, and reach more behaviors.)
print(evaluate_policy(pipeline, "avoiding", 50, random_state=0, progress=False))

# %%
# Only states were transformed, so the likelihood is still one of raw actions, and can be compared
# with that of any other policy. Methods that a ``Pipeline`` does not pass on are asked of the last
# step, with what the steps before it return:
prepared = pipeline[:-1].transform(rows)
print(f"score {pipeline.score(rows, actions):.2f} nats")
print("samples", pipeline[-1].sample(prepared[:3], 100, random_state=0).shape)

# %%
# Features of the tasks
# ---------------------
#
# For tasks with objects, ``task_features`` is such a step, ready made: directions and distances
# from the rod to the cubes and from the cubes to their targets, instead of coordinates alone. On
# episodes from starts that neither has seen, it helps. (Each start is shown in all four
# behaviors, one after the other.)
pushing = load_demonstrations("pushing")
train, test = pushing[:100], pushing[100:]
for name, steps in {
    "coordinates": [],
    "features": [task_features("pushing", window_size=1)],
}.items():
    states, pushes, _ = train.windows(window_size=1)
    unseen = test.windows(window_size=1)[:2]
    policy = make_pipeline(*steps, GaussianMoEPolicy(4, window_size=1, random_state=0, **small))
    policy.fit(states[:, 0], pushes)
    print(f"{name:11}  held-out score {policy.score(unseen[0][:, 0], unseen[1]):6.2f} nats")

# %%
# Transformed actions
# -------------------
#
# ``TransformedTargetRegressor`` fits its regressor on transformed targets and transforms
# predictions back. It is a *regressor*: of a policy it keeps ``predict``, the mean of the most
# probable expert, and its ``score`` is the coefficient of determination. Samples, densities and
# gates are gone, and with them what the policy was for; without ``act`` it cannot be rolled out.
regressor = TransformedTargetRegressor(
    GaussianMoEPolicy(8, window_size=2, random_state=0, **small),
    transformer=QuantileTransformer(output_distribution="normal", random_state=0),
)
regressor.fit(rows, actions)
for name in ("predict", "score", "act", "sample", "log_prob", "gating"):
    has = (hasattr(thing, name) for thing in (pipeline[-1], regressor))
    print(f"{name:9}", *("yes" if there else "no " for there in has))

# %%
# At the start of an episode, demonstrations go several ways. Samples show it, a prediction cannot:
start = np.flatnonzero(np.all(windows[:, 0] == windows[:, 1], axis=1))[:1]
drawn = pipeline[-1].sample(prepared[start], 400, random_state=0)[0]
(predicted,) = regressor.predict(rows.iloc[start])

figure, axis = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
axis.scatter(*1000 * drawn.T, s=8, alpha=0.4, label="samples of the policy")
axis.scatter(*1000 * predicted, marker="X", s=90, color="C3", label="prediction, all that is left")
axis.set(xlabel="change of desired x in mm", ylabel="change of desired y in mm")
axis.legend()
plt.show()

# %%
# Actions need no scaler, since a policy standardizes them. Where they must be transformed
# otherwise, as an angle or a logarithm, transform them before ``fit`` and transform back what
# ``sample`` and ``act`` return; ``log_prob`` is then a density of the transformed actions.
