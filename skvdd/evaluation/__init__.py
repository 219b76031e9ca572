"""Rollouts: how often a policy succeeds, in how many ways, and how fast it decides."""

from skvdd.evaluation.comparison import (
    BehaviorDivergence,
    Comparison,
    Difference,
    behavior_divergence,
    compare_evaluations,
)
from skvdd.evaluation.evaluate import evaluate_policy
from skvdd.evaluation.report import Evaluation
from skvdd.evaluation.score import ScoreReport
from skvdd.evaluation.scoring import rollout_scorer
from skvdd.evaluation.timing import time_action
from skvdd.recording import record_episode

__all__ = [
    "BehaviorDivergence",
    "Comparison",
    "Difference",
    "Evaluation",
    "ScoreReport",
    "behavior_divergence",
    "compare_evaluations",
    "evaluate_policy",
    "record_episode",
    "rollout_scorer",
    "time_action",
]
