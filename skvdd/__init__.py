"""Distill diffusion policies into mixtures of Gaussian experts, in scikit-learn's style."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skvdd.diffusion import DiffusionPolicy, ScoreTeacher, verify_teacher
    from skvdd.distillation import (
        ConsistencyDistiller,
        ConsistencyTrajectoryDistiller,
        VDDDistiller,
    )
    from skvdd.encoders import MLPEncoder, TransformerEncoder
    from skvdd.mixture import GaussianMoEPolicy, IMCPolicy
    from skvdd.persistence import load

__version__ = "0.1.0"

__all__ = [
    "ConsistencyDistiller",
    "ConsistencyTrajectoryDistiller",
    "DiffusionPolicy",
    "GaussianMoEPolicy",
    "IMCPolicy",
    "MLPEncoder",
    "ScoreTeacher",
    "TransformerEncoder",
    "VDDDistiller",
    "__version__",
    "load",
    "verify_teacher",
]

# Loaded when asked for: a controller on a robot needs neither torch nor an estimator.
_HOMES = {
    "ConsistencyDistiller": "skvdd.distillation",
    "ConsistencyTrajectoryDistiller": "skvdd.distillation",
    "DiffusionPolicy": "skvdd.diffusion",
    "GaussianMoEPolicy": "skvdd.mixture",
    "IMCPolicy": "skvdd.mixture",
    "MLPEncoder": "skvdd.encoders",
    "ScoreTeacher": "skvdd.diffusion",
    "TransformerEncoder": "skvdd.encoders",
    "VDDDistiller": "skvdd.distillation",
    "load": "skvdd.persistence",
    "verify_teacher": "skvdd.diffusion",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
