"""Rollouts: many environments stepped against one batched policy, each episode as if alone."""

from skvdd.rollouts.driver import (
    BLOCK_SIZE,
    Driver,
    RandomState,
    Rollout,
    Start,
    check_limit,
    plan_rollouts,
)
from skvdd.rollouts.policies import ComposedPolicy, Policy, as_policy, check_goal
from skvdd.rollouts.tasks import Registration, check_spaces, registered, resolve_task

__all__ = [
    "BLOCK_SIZE",
    "ComposedPolicy",
    "Driver",
    "Policy",
    "RandomState",
    "Registration",
    "Rollout",
    "Start",
    "as_policy",
    "check_goal",
    "check_limit",
    "check_spaces",
    "plan_rollouts",
    "registered",
    "resolve_task",
]
