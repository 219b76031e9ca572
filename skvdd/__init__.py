"""Distil diffusion policies into mixtures of Gaussian experts, in scikit-learn's style."""

from skvdd.diffusion import DiffusionPolicy, ScoreTeacher
from skvdd.distillation import (
    ConsistencyDistiller,
    ConsistencyTrajectoryDistiller,
    VDDDistiller,
)
from skvdd.mixture import GaussianMoEPolicy, IMCPolicy
from skvdd.persistence import load

__version__ = "0.1.0"

__all__ = [
    "ConsistencyDistiller",
    "ConsistencyTrajectoryDistiller",
    "DiffusionPolicy",
    "GaussianMoEPolicy",
    "IMCPolicy",
    "ScoreTeacher",
    "VDDDistiller",
    "__version__",
    "load",
]
