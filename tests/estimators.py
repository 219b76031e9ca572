"""The one list of estimators: add an estimator here and every law of the contract tests it.

Settings are the smallest that still learn something; laws never depend on how much.
"""

from skvdd import DiffusionPolicy, GaussianMoEPolicy, VDDDistiller

SMALL = {"hidden_size": 16, "n_layers": 1, "max_iter": 20, "batch_size": 32, "random_state": 0}


def small_teacher(**parameters):
    return DiffusionPolicy(**{**SMALL, "n_steps": 4, **parameters})


def make_estimators(**parameters):
    """Return an unfitted instance of every estimator."""
    settings = {**SMALL, **parameters}
    return [
        small_teacher(**parameters),
        GaussianMoEPolicy(2, **settings),
        VDDDistiller(small_teacher(**parameters), n_experts=2, init_iter=10, **settings),
    ]


def type_name(estimator):
    return type(estimator).__name__
