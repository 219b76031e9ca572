"""Mixtures of Gaussian experts: what they can be asked, and training them from data."""

from skvdd.mixture.em import GaussianMoEPolicy

__all__ = ["GaussianMoEPolicy"]
