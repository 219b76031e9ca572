"""Distil diffusion policies into mixtures of Gaussian experts, in scikit-learn's style."""

from skvdd.diffusion import DiffusionPolicy, ScoreTeacher
from skvdd.distillation import VDDDistiller
from skvdd.mixture import GaussianMoEPolicy
from skvdd.persistence import load

__version__ = "0.1.0"

__all__ = [
    "DiffusionPolicy",
    "GaussianMoEPolicy",
    "ScoreTeacher",
    "VDDDistiller",
    "__version__",
    "load",
]
