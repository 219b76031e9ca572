"""Diffusion policies: the teachers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skvdd.diffusion.checkpoint import load_beso_checkpoint
    from skvdd.diffusion.policy import DiffusionPolicy
    from skvdd.diffusion.score_teacher import ScoreTeacher
    from skvdd.diffusion.teacher import Teacher
    from skvdd.diffusion.verify import verify_teacher

__all__ = [
    "DiffusionPolicy",
    "ScoreTeacher",
    "Teacher",
    "load_beso_checkpoint",
    "verify_teacher",
]

# Loaded when asked for: a controller needs the samplers, but neither torch nor an estimator.
_HOMES = {
    "DiffusionPolicy": "policy",
    "load_beso_checkpoint": "checkpoint",
    "ScoreTeacher": "score_teacher",
    "Teacher": "teacher",
    "verify_teacher": "verify",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
