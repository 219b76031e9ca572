"""The contract of every policy: one fit, queries, files."""

from skvdd.base.policy import BasePolicy, DensityPolicy

__all__ = ["BasePolicy", "DensityPolicy"]
