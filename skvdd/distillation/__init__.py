"""Distilling teachers into policies that act in one forward pass."""

from skvdd.distillation.consistency import ConsistencyDistiller
from skvdd.distillation.distiller import VDDDistiller
from skvdd.distillation.trajectory import ConsistencyTrajectoryDistiller

__all__ = ["ConsistencyDistiller", "ConsistencyTrajectoryDistiller", "VDDDistiller"]
