"""Mixtures of Gaussian experts: what they can be asked, and training them from data."""

from skvdd.mixture.em import GaussianMoEPolicy
from skvdd.mixture.imc import IMCPolicy

__all__ = ["GaussianMoEPolicy", "IMCPolicy"]
