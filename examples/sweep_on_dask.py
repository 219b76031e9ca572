r"""
=====================
A sweep on many hosts
=====================

Searches and rollouts go through joblib, and joblib goes through Dask where it is told to. The same
search runs here in one process, then on a cluster, and finds the same, to the last bit.

Without an argument, the script starts a cluster of two processes on this machine
(``pip install 'skvdd[dask]'``):

.. code-block:: bash

   OMP_NUM_THREADS=1 python sweep_on_dask.py

With the address of a scheduler it uses the workers there. They need skvdd as well; one thread each
is enough:

.. code-block:: bash

   dask scheduler                                                  # on one host
   OMP_NUM_THREADS=1 dask worker tcp://FIRST_HOST:8786 --nworkers 16 --nthreads 1   # on every host
   OMP_NUM_THREADS=1 python sweep_on_dask.py tcp://FIRST_HOST:8786

``OMP_NUM_THREADS=1`` bounds the threads of torch and of BLAS. Small networks are fastest on one,
and results are equal to the last bit only where every process computes with as many threads.
"""

# %%
# The search
# ----------
#
# It is written down once, and knows nothing of a cluster.
import sys
import time
from contextlib import ExitStack, nullcontext

import joblib
import numpy as np
from distributed import Client, LocalCluster
from sklearn.model_selection import GridSearchCV, GroupKFold

from skvdd import DiffusionPolicy, VDDDistiller
from skvdd.datasets import load_demonstrations
from skvdd.evaluation import evaluate_policy, rollout_scorer

small = {"window_size": 2, "hidden_size": 32, "batch_size": 256, "random_state": 0}


def make_search():
    """Return a search over the noise levels, decided by rollouts."""
    return GridSearchCV(
        VDDDistiller(n_experts=4, init_iter=100, max_iter=20, **small),
        {"noise_min": [0.05, 0.2], "noise_max": [0.5, 1.0]},
        scoring=rollout_scorer("avoiding", 10, metric=["success_rate", "mean_return"]),
        refit="success_rate",
        cv=GroupKFold(2),
        error_score="raise",
    )


# %%
# Here or there
# -------------
#
# Where to compute is said around the calls. A worker that dies loses no result: Dask gives its
# tasks to another.
def compute(name, where, data, groups, teacher):
    """Search and evaluate in a context; return the scores of the folds and the rollouts."""
    start = time.perf_counter()
    with where:
        search = make_search().fit(*data, groups=groups, teacher=teacher)
        best = search.best_estimator_
        found = evaluate_policy(best, "avoiding", 128, random_state=1, progress=False)
    print(f"{name}: {time.perf_counter() - start:.0f} s, best {search.best_params_}")
    scores = [search.cv_results_[f"split{fold}_test_mean_return"] for fold in range(2)]
    return np.array(scores), found


def main(address=None):
    """Compute on the cluster of an address, or on two processes here, and in this one process."""
    states, actions, groups = load_demonstrations("avoiding", n_episodes=24).windows(window_size=2)
    teacher = DiffusionPolicy(max_iter=200, **small).fit(states, actions)
    task = (states, actions), groups, teacher

    with ExitStack() as stack:
        if address is None:
            cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
            address = stack.enter_context(cluster)
        stack.enter_context(Client(address))
        scores, found = compute("on the cluster", joblib.parallel_config("dask"), *task)
    expected, alone = compute("in one process", nullcontext(), *task)

    print(found)
    print("scores equal:  ", np.array_equal(scores, expected))
    print("rollouts equal:", np.array_equal(found.returns, alone.returns))


# Processes of a cluster on this machine import this file, and must not start clusters of their own.
if __name__ == "__main__":
    main(*sys.argv[1:2])
