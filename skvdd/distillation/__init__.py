"""Distilling teachers into policies that act in one forward pass."""

from skvdd.distillation.distiller import VDDDistiller

__all__ = ["VDDDistiller"]
