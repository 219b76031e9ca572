"""Pictures of policies, in scikit-learn's manner: displays that keep what they draw.

A display is made from estimators or from what an evaluation found (``from_...``), which draws it
as well; ``plot`` draws it again, on axes of the caller's, without computing anything anew.
"""

from skvdd.plotting.ablation import AblationDisplay
from skvdd.plotting.behaviors import BehaviorDisplay
from skvdd.plotting.experts import ExpertsDisplay
from skvdd.plotting.latency import LatencyDisplay
from skvdd.plotting.style import EXPERT_COLORS, expert_colors, save_figure
from skvdd.plotting.training import HistoryDisplay, TrainingSnapshots
from skvdd.plotting.trajectories import TrajectoriesDisplay

__all__ = [
    "EXPERT_COLORS",
    "AblationDisplay",
    "BehaviorDisplay",
    "ExpertsDisplay",
    "HistoryDisplay",
    "LatencyDisplay",
    "TrainingSnapshots",
    "TrajectoriesDisplay",
    "expert_colors",
    "save_figure",
]
