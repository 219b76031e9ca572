"""The one list of estimators: add an estimator here and every law of the contract tests it.

Settings are the smallest that still learn something; laws never depend on how much.
"""

from skvdd import (
    ConsistencyDistiller,
    ConsistencyTrajectoryDistiller,
    DiffusionPolicy,
    GaussianMoEPolicy,
    IMCPolicy,
    VDDDistiller,
)

SMALL = {"hidden_size": 16, "n_layers": 1, "max_iter": 20, "batch_size": 32, "random_state": 0}


def small_teacher(**parameters):
    return DiffusionPolicy(**{**SMALL, "n_steps": 4, **parameters})


def make_estimators(**parameters):
    """Return an unfitted instance of every estimator."""
    settings = {**SMALL, **parameters}
    return [
        small_teacher(**parameters),
        small_teacher(sde="vp", **parameters),
        small_teacher(architecture="gpt", **parameters),
        GaussianMoEPolicy(2, **settings),
        IMCPolicy(2, round_iter=5, **settings),
        VDDDistiller(small_teacher(**parameters), n_experts=2, init_iter=10, **settings),
        ConsistencyDistiller(small_teacher(**parameters), n_levels=5, **settings),
        ConsistencyTrajectoryDistiller(small_teacher(**parameters), n_levels=5, **settings),
    ]


def judgement(policy):
    """Return the name of the method that judges given actions; not every policy has a density."""
    return "log_prob" if hasattr(policy, "log_prob") else "score"


def methods(policy):
    """Return the names of the methods that a policy is asked by."""
    return ["sample", "predict", "act", judgement(policy)]


def ask(policy, method, X, y, **options):
    """Call a method of a policy with what it takes.

    The integral of a diffusion policy's likelihood is coarse: it need not be exact to be the same.
    """
    if method == "log_prob" and hasattr(policy, "denoising_score"):
        options = {"tolerance": 10.0, **options}
    if method in {"score", "log_prob"}:
        return getattr(policy, method)(X, y, **options)
    if method == "predict":
        return policy.predict(X)
    return getattr(policy, method)(X, random_state=0, **options)


def type_name(estimator):
    return type(estimator).__name__


def label(estimator):
    """Name an estimator in the list of tests: its class, and what is not the default."""
    parameters = estimator.get_params(deep=False)
    kinds = [parameters.get("sde"), parameters.get("architecture")]
    return "-".join([type_name(estimator), *(kind for kind in kinds if kind in {"vp", "gpt"})])
