"""Two policies in the same contexts."""

from dataclasses import replace
from math import isnan, nan, sqrt

import numpy as np
import pytest

from skvdd.datasets import Demonstrations, Episode
from skvdd.envs import Score
from skvdd.evaluation import Evaluation, ScoreReport, behavior_divergence, compare_evaluations
from tests.evaluation.tasks import refuses

EPISODES = Demonstrations([Episode(np.zeros((1, 1)), np.zeros((1, 1)))])
ABC = {"a": "A", "b": "B", "c": "C"}


def evaluation(successes, behaviors, contexts=None, *, split="test", env_id="E-v0", known=ABC):
    """Return an evaluation with these outcomes."""
    n = len(successes)
    contexts = (None,) * n if contexts is None else tuple(contexts)
    report = ScoreReport(
        Score(behaviors=known), np.array(successes, bool), tuple(behaviors), contexts
    )
    lengths = np.ones(n, dtype=np.intp)
    return Evaluation(env_id, split, {"success": report}, contexts, np.zeros(n), lengths, EPISODES)


def drawn(shares, n_contexts=200, n=16, seed=0, rate=1.0):
    """Return an evaluation of a policy that behaves by chance, more diversely in some contexts."""
    rng = np.random.default_rng(seed)
    contexts = np.repeat(np.arange(n_contexts), n)
    behaviors = rng.choice(list("abc"), size=len(contexts), p=shares)
    return evaluation(rng.uniform(size=len(contexts)) < rate, behaviors, contexts.tolist())


def test_differences_are_paired_over_contexts():
    # Contexts differ much, policies by a little in each: 1/4, 1/4 and none.
    contexts = [0] * 4 + [1] * 4 + [2] * 4
    one = evaluation([1, 1, 1, 1] + [1, 0, 0, 0] + [0] * 4, ["a"] * 12, contexts)
    other = evaluation([1, 1, 1, 0] + [0, 0, 0, 0] + [0] * 4, ["a"] * 12, contexts)
    difference = compare_evaluations(one, other).success_rate
    assert difference[:3] == pytest.approx((5 / 12, 3 / 12, 2 / 12))
    assert difference.standard_error == pytest.approx(np.std([0.25, 0.25, 0], ddof=1) / sqrt(3))


def test_first_minus_second_is_the_difference():
    # Unequal numbers of rollouts: 3 of 4 and 0 of 1 succeed, against 1 of 4 and 1 of 1.
    contexts = [0, 0, 0, 0, 1]
    one, other = (
        evaluation([1, 1, 1, 0, 0], "aaaaa", contexts),
        evaluation([1, 0, 0, 0, 1], "aaaaa", contexts),
    )
    found = compare_evaluations(one, other).success_rate
    assert found[:3] == pytest.approx((0.375, 0.625, -0.25))


def test_contexts_without_a_diversity_are_left_out_of_its_difference():
    contexts = [0, 0, 1, 1, 2, 2]
    one = evaluation([1, 1, 1, 1, 1, 0], "abaaab", contexts)
    other = evaluation([1, 1, 1, 1, 1, 1], "aaaaab", contexts)
    difference = compare_evaluations(one, other).diversity
    assert difference.first == pytest.approx(0.75)
    assert difference.second == pytest.approx(0.0)  # of the two that both have
    assert difference.estimate == pytest.approx(0.75)


def test_without_contexts_standard_errors_add_up():
    one = evaluation([1] * 8 + [0] * 2, list("aaaabbbbcc"))
    other = evaluation([1] * 5 + [0] * 5, list("aabbcaaaaa"))
    found = compare_evaluations(one, other)
    error = sqrt(0.8 * 0.2 / 10 + 0.5 * 0.5 / 10)
    assert found.success_rate == pytest.approx((0.8, 0.5, 0.3, error))
    assert found.diversity.standard_error > 0.0
    assert "unpaired" in str(found)


@pytest.mark.parametrize("seeds", [(0, 1), (2, 3)])
def test_equal_policies_differ_by_no_more_than_chance(seeds):
    shares = (0.5, 0.3, 0.2)
    found = compare_evaluations(*(drawn(shares, seed=seed, rate=0.8) for seed in seeds))
    for difference in (found.success_rate, found.entropy_d3il, found.diversity):
        assert abs(difference.estimate) < 3.0 * difference.standard_error
    low, high = found.divergence.interval
    assert low < found.divergence.floor < high


def test_the_standard_error_is_the_spread_of_the_difference():
    found = [
        compare_evaluations(
            drawn((0.5, 0.3, 0.2), 40, seed=seed), drawn((0.4, 0.4, 0.2), 40, seed=seed + 1000)
        ).diversity
        for seed in range(120)
    ]
    spread = np.std([difference.estimate for difference in found])
    # 120 differences tell their spread to 7 %.
    assert np.mean([d.standard_error for d in found]) == pytest.approx(spread, rel=0.2)


def test_policies_with_nothing_in_common_diverge_by_one():
    contexts = [0, 0, 1, 1]
    one = evaluation([1] * 4, "aabb", contexts)
    other = evaluation([1] * 4, "bbaa", contexts)  # the same shares over all contexts together
    found = behavior_divergence(one, other)
    assert found.estimate == 1.0
    assert all(map(isnan, found.interval))  # of two contexts
    assert 0.0 < found.floor < 1.0


def test_contexts_that_one_never_solves_tell_no_divergence():
    one = evaluation([1, 1, 0, 0], "aaaa", [0, 0, 1, 1])
    other = evaluation([1, 1, 1, 1], "aaaa", [0, 0, 1, 1])
    assert behavior_divergence(one, other).estimate == 0.0
    nobody = evaluation([0] * 4, "aaaa", [0, 0, 1, 1])
    assert isnan(behavior_divergence(one, nobody).estimate)
    assert compare_evaluations(one, nobody).diversity[1:] == pytest.approx(
        (nan, nan, nan), nan_ok=True
    )


def test_without_contexts_a_divergence_has_an_interval_too():
    one = evaluation([1] * 30, "a" * 20 + "b" * 10)
    other = evaluation([1] * 30, "a" * 10 + "c" * 20)
    found = behavior_divergence(one, other)
    assert 0.0 <= found.interval[0] < found.estimate < found.interval[1]
    assert found.interval[0] > found.floor


def test_the_table_shows_differences_with_their_errors():
    contexts = [0, 0, 1, 1]
    one, other = evaluation([1] * 4, "abaa", contexts), evaluation([1, 1, 1, 0], "aaaa", contexts)
    assert str(compare_evaluations(one, other)) == (
        "E-v0: first minus second, standard errors paired over 2 contexts\n"
        "  success rate   1.000 - 0.750 = +0.250 +- 0.250\n"
        "  entropy, D3IL  0.315 - 0.000 = +0.315 +- 0.315\n"
        "  diversity      1.500 - 0.000 = +1.500 +- nan\n"
        "  behaviors      divergence 0.156, no interval, 0.156 by chance"
    )


def test_a_task_without_behaviors_has_success_rates_alone():
    one = evaluation([1, 0], [None, None], [0, 1], known={})
    found = compare_evaluations(one, one)
    assert found.success_rate.estimate == 0.0
    assert found.entropy_d3il is found.diversity is found.divergence is None
    assert "diversity" not in str(found)
    with refuses("first must be of a task with behaviors, got E-v0."):
        behavior_divergence(one, one)


def test_what_cannot_be_compared_is_refused():
    one = evaluation([1, 1], "ab", [0, 1])
    with refuses("first and second must be of one environment, got E-v0 and F-v0."):
        compare_evaluations(one, evaluation([1, 1], "ab", [0, 1], env_id="F-v0"))
    same = "first and second must have been rolled out in the same contexts, in one order, got"
    with refuses(f"{same} 0, 1 of the test list and 0, 1 of the validation list."):
        compare_evaluations(one, evaluation([1, 1], "ab", [0, 1], split="validation"))
    with refuses(f"{same} 0, 1 of the test list and 1, 0 of the test list."):
        behavior_divergence(one, evaluation([1, 1], "ab", [1, 0]))
    tables = (
        replace(evaluation([1, 1], "ab", [0, 1], split=None), table=np.array([[0.0], [x]]))
        for x in (1.0, 2.0)
    )
    with refuses(f"{same} a table of 2 and a table of 2."):
        compare_evaluations(*tables)
    with refuses("score must be one of success, got 'half'."):
        compare_evaluations(one, one, score="half")
