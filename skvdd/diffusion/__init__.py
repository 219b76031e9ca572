"""Diffusion policies, and everything else that can teach."""

from skvdd.diffusion.checkpoint import load_beso_checkpoint
from skvdd.diffusion.policy import DiffusionPolicy
from skvdd.diffusion.score_teacher import ScoreTeacher
from skvdd.diffusion.teacher import Teacher, as_teacher
from skvdd.diffusion.verify import verify_teacher

__all__ = [
    "DiffusionPolicy",
    "ScoreTeacher",
    "Teacher",
    "as_teacher",
    "load_beso_checkpoint",
    "verify_teacher",
]
