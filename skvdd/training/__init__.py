"""Training: the life of a fit, the loop, minibatches, large data, several processes."""

from skvdd.training.fit import Fit, FitStart, Stage
from skvdd.training.loop import Loss, Run, Update
from skvdd.training.minibatches import draw
from skvdd.training.processes import from_first, is_first_process

__all__ = [
    "Fit",
    "FitStart",
    "Loss",
    "Run",
    "Stage",
    "Update",
    "draw",
    "from_first",
    "is_first_process",
]
