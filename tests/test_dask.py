"""Sweeps and evaluations on a Dask cluster: the same results, also where a worker dies."""

import os
import signal
from itertools import chain

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skvdd import GaussianMoEPolicy, VDDDistiller
from skvdd.evaluation import evaluate_policy, rollout_scorer
from skvdd.rollouts import BLOCK_SIZE
from tests.estimators import SMALL, small_teacher
from tests.evaluation.tasks import assert_same_rollouts

distributed = pytest.importorskip("distributed")

# Most of the time goes by until processes have started, again after each that was killed.
pytestmark = pytest.mark.slow

TINY = {**SMALL, "max_iter": 3, "window_size": 2}
AVOIDING = "avoiding"
SHORT = {"max_episode_steps": 15}
GROUPS = np.arange(60) // 10
FOLDS = list(GroupKFold(2).split(GROUPS, groups=GROUPS))


@pytest.fixture(scope="module")
def client():
    """Two processes of one thread each, which a nanny restarts when they die."""
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with (
        distributed.LocalCluster(**options, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        client.amm.stop()  # it would leave one copy of what is given to all workers
        yield client


@pytest.fixture(scope="module")
def data():
    rng = np.random.RandomState(0)
    X = rng.uniform(-1, 1, size=(60, 8))
    y = 0.01 * np.stack([np.sign(rng.standard_normal(60)) + X[:, 4], X[:, 5]], axis=1)
    return X, y


def pass_on(X, death=None):
    """Return X, but kill the process that comes here first, if there is a place to note it."""
    if death is not None and not os.path.exists(death):
        os.close(os.open(death, os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), signal.SIGKILL)
    return X


def mortal_policy(death=None):
    return make_pipeline(
        FunctionTransformer(pass_on, kw_args={"death": death}), GaussianMoEPolicy(2, **TINY)
    )


def on_all_workers(*data):
    """Run joblib on the cluster, with a copy of the data in each worker."""
    # What it would hand out by itself, from 1 kB on, has one copy, which may die with its worker.
    return joblib.parallel_config("dask", scatter=[*data, *chain.from_iterable(FOLDS)])


def test_a_search_with_rollouts_finds_what_it_finds_without_a_cluster(client, data):
    teacher = small_teacher(window_size=2, max_iter=3).fit(*data)
    search = GridSearchCV(
        VDDDistiller(n_experts=2, init_iter=2, **TINY),
        {"noise_max": [0.5, 1.0], "n_experts": [1, 2]},
        scoring=rollout_scorer(
            AVOIDING, 2, metric=["mean_return", "entropy_d3il"], env_kwargs=SHORT
        ),
        refit="entropy_d3il",
        cv=FOLDS,
        error_score="raise",
    )
    expected = search.fit(*data, teacher=teacher).cv_results_
    predicted = search.predict(data[0])
    with on_all_workers(*data):
        found = search.fit(*data, teacher=teacher).cv_results_
    for name in [name for name in expected if "test" in name]:
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(search.predict(data[0]), predicted)


def test_a_search_loses_no_result_when_a_worker_dies(client, data, tmp_path):
    search = GridSearchCV(
        mortal_policy(),
        {"gaussianmoepolicy__learning_rate": [1e-4, 1e-3, 1e-2]},
        cv=FOLDS,
        error_score="raise",
        refit=False,
    )
    expected = search.fit(*data).cv_results_
    death = tmp_path / "death"
    search.set_params(estimator=mortal_policy(str(death)))
    with on_all_workers(*data):
        found = search.fit(*data).cv_results_
    assert death.exists()
    for name in [name for name in expected if "test" in name]:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("dies", [False, True])
def test_an_evaluation_is_the_same_on_a_cluster(dies, client, data, tmp_path):
    policy = mortal_policy().fit(*data)
    options = {"random_state": 0, "progress": False, "env_kwargs": SHORT}
    expected = evaluate_policy(policy, AVOIDING, 2 * BLOCK_SIZE + 1, **options)
    death = tmp_path / "death"
    if dies:
        policy.set_params(functiontransformer__kw_args={"death": str(death)})
    with joblib.parallel_config("dask"):
        found = evaluate_policy(policy, AVOIDING, 2 * BLOCK_SIZE + 1, **options)
    assert death.exists() == dies
    assert_same_rollouts(found, expected)
