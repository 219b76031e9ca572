"""Success and behavior, as people tell them."""

import numpy as np
import pytest

from skvdd.envs import Score
from skvdd.envs.verdicts import Verdict
from tests.rollouts.scenes import refuses

TRUE = (True, np.True_, 1, 1.0, np.float32(1.0), np.array(True), np.array([1]))
FALSE = (False, np.False_, 0, 0.0, np.int8(0), np.array(0.0))


def hear(*infos, **score):
    """Return success and behavior after these infos."""
    verdict = Verdict(Score(**score))
    for info in infos:
        verdict.hear(info)
    return verdict.success, verdict.behavior


@pytest.mark.parametrize(
    ("values", "expected"), [(TRUE, True), (FALSE, False)], ids=["true", "false"]
)
def test_truth_comes_in_many_types(values, expected):
    for value in values:
        success, _ = hear({"success": value})
        assert success is expected


@pytest.mark.parametrize(
    "value", [np.nan, np.float32("nan"), 0.5, 2, "True", None, [True, True], np.array([])], ids=repr
)
def test_what_is_no_truth_value_is_refused(value):
    with refuses(f"'success' must be true or false, got {value!r}"):
        hear({"success": False}, {"success": value})


def test_the_last_word_counts():
    assert hear({"success": True}, {"success": False}) == (False, None)
    assert hear({"success": False}, {"success": True}, {}) == (True, None)


def test_success_at_any_step_counts_where_the_score_says_so():
    infos = ({"success": False}, {"success": True}, {"success": False})
    assert hear(*infos) == (False, None)
    assert hear(*infos, when="any") == (True, None)
    assert hear({"success": False}, {}, when="any") == (False, None)


def test_nothing_told_is_no_verdict():
    assert hear({}, {"reward": 1.0}) == (None, None)


def test_the_behavior_is_the_last_one_told():
    assert hear({"behavior": "left"}, {"success": True}) == (True, "left")
    assert hear({"success": True, "behavior": "left"}, {"behavior": "right"}) == (True, "right")
    assert hear({"success": True, "behavior": "left"}, {"behavior": None}) == (True, None)


def test_of_success_at_any_step_the_behavior_is_that_of_the_first():
    infos = (
        {"success": False, "behavior": "up"},
        {"success": True, "behavior": "left"},
        {"success": True, "behavior": "right"},
    )
    assert hear(*infos) == (True, "right")
    assert hear(*infos, when="any") == (True, "left")
    late = ({"success": True}, {"success": False}, {"behavior": "left"})
    assert hear(*late, when="any") == (True, "left")


def test_keys_are_those_of_the_score():
    info = {"success": True, "behavior": "a", "stacked": 0, "order": np.int64(5)}
    success, behavior = hear(info, success_key="stacked", behavior_key="order")
    assert (success, behavior) == (False, 5)
    assert type(behavior) is int


@pytest.mark.parametrize(
    ("told", "behavior"),
    [(np.array(1), 1), (np.array([1]), 1), (1.0, 1), (np.str_("a"), "a"), (np.int8(1), 1)],
)
def test_a_behavior_of_another_type_is_meant_as_a_number_or_a_text(told, behavior):
    verdict = Verdict(Score(behaviors={1: "one", "a": "A"}))
    verdict.hear({"success": True, "behavior": told})
    assert verdict.behavior == behavior
    assert type(verdict.behavior) in (int, str)


@pytest.mark.parametrize("told", [(1, 2), {}, [1], float("nan"), np.zeros(2)])
def test_what_is_no_behavior_is_refused_where_behaviors_count(told):
    with pytest.raises(ValueError, match=r"^'behavior' must be a text, an integer or None, got "):
        Verdict(Score(behaviors={0: "a", 1: "b"})).hear({"success": True, "behavior": told})
    verdict = Verdict(Score())
    verdict.hear({"success": True, "behavior": told})
    assert (verdict.success, verdict.behavior) == (True, None)
