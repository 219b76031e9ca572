"""Distilling teachers into policies that act in one forward pass."""

from skvdd._sklearn import let_searches_pass_on_teachers
from skvdd.distillation.consistency import ConsistencyDistiller
from skvdd.distillation.distiller import VDDDistiller
from skvdd.distillation.trajectory import ConsistencyTrajectoryDistiller

__all__ = ["ConsistencyDistiller", "ConsistencyTrajectoryDistiller", "VDDDistiller"]

let_searches_pass_on_teachers()
