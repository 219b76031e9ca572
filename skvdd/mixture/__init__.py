"""Mixtures of Gaussian experts: their queries, and training them from data."""

from skvdd.mixture.em import GaussianMoEPolicy
from skvdd.mixture.imc import IMCPolicy

__all__ = ["GaussianMoEPolicy", "IMCPolicy"]
