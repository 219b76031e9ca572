"""Diffusion policies: the teachers."""

from skvdd.diffusion.policy import DiffusionPolicy
from skvdd.diffusion.teacher import ScoreTeacher

__all__ = ["DiffusionPolicy", "ScoreTeacher"]
