"""Numbers that judge a policy: success, diversity, distance to another density or to actions."""

from skvdd.metrics.behavior import (
    behavior_diversity,
    count_behaviors,
    entropy_ceiling,
    entropy_d3il,
)
from skvdd.metrics.density import KLEstimate, energy_score, kl_divergence
from skvdd.metrics.distillation import DistillationReport, ShareEstimate, distillation_report
from skvdd.metrics.intervals import bootstrap_interval, wilson_interval

__all__ = [
    "DistillationReport",
    "KLEstimate",
    "ShareEstimate",
    "behavior_diversity",
    "bootstrap_interval",
    "count_behaviors",
    "distillation_report",
    "energy_score",
    "entropy_ceiling",
    "entropy_d3il",
    "kl_divergence",
    "wilson_interval",
]
