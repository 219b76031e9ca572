"""Seeds put together: by closed forms, and by what an evaluation says itself."""

from math import nan, sqrt

import numpy as np
import pytest

from benchmarks.summary import Summary, gap_between, summarize
from skvdd.envs import Score
from skvdd.evaluation import Evaluation, ScoreReport, compare_evaluations

SCORE = Score(behaviors={"l": "left", "r": "right"})


def evaluation(successes, contexts=None, behaviors=None, returns=None):
    n = len(successes)
    contexts = (None,) * n if contexts is None else tuple(contexts)
    behaviors = ("l", "r") * n if behaviors is None else behaviors
    report = ScoreReport(SCORE, np.array(successes, bool), tuple(behaviors[:n]), contexts)
    returns = np.array(successes if returns is None else returns, float)
    return Evaluation("e", "test", {"s": report}, contexts, returns, np.ones(n, int), None)


def test_three_equal_seeds_do_not_look_like_one():
    one, three = ([evaluation([1, 1, 1, 0])] * n for n in (1, 3))
    assert (
        str(summarize(three, "success_rate")) == "0.750 ± 0.000 [0.468, 0.911]"
    )  # of twelve rollouts
    assert str(summarize(one, "success_rate")) == "0.750 [0.301, 0.954]"  # Wilson's


def test_without_contexts_an_interval_is_students_over_seeds():
    seeds = [evaluation([1] * k + [0] * (100 - k)) for k in (40, 42, 44, 46)]
    summary = summarize(seeds, "success_rate")
    half = 3.182446 * np.std([0.40, 0.42, 0.44, 0.46], ddof=1) / 2  # t of three degrees of freedom
    assert (summary.mean, summary.n) == (pytest.approx(0.43), 4)
    assert (summary.low, summary.high) == pytest.approx((0.43 - half, 0.43 + half), abs=1e-6)


def test_with_contexts_an_interval_is_over_them_whatever_the_seeds_are():
    contexts = np.repeat(np.arange(20), 2)
    hard = contexts % 2 == 0
    alike = [evaluation(hard, contexts)] * 3
    summary = summarize(alike, "success_rate")
    assert (summary.low, summary.high) == alike[0].success_interval
    assert summary.low < 0.4 < 0.6 < summary.high
    assert summary.std == 0.0


def test_what_is_not_measured_is_an_empty_cell():
    assert str(Summary(nan, nan, 1, nan, nan)) == ""
    failures = [evaluation([0, 0, 0, 0], [0, 0, 1, 1])]
    assert str(summarize(failures, "diversity")) == ""


def test_a_ceiling_is_a_mean_without_an_interval():
    found = [evaluation([1, 1, 1, 1], [0, 0, 1, 1])]
    assert str(summarize(found, "entropy_ceiling")) == f"{found[0].entropy_ceiling:.3f}"


def test_a_gap_of_one_seed_is_that_of_the_paired_comparison():
    rng = np.random.default_rng(0)
    contexts = np.repeat(np.arange(15), 4)
    a, b = (evaluation(rng.random(60) < p, contexts) for p in (0.8, 0.5))
    for quantity in ("success_rate", "entropy_d3il", "diversity"):
        gap = gap_between([a], [b], quantity)
        expected = getattr(compare_evaluations(a, b), quantity)
        assert gap.estimate == pytest.approx(expected.estimate)
        assert gap.error == pytest.approx(expected.standard_error)


def test_a_gap_of_several_seeds_is_as_unsure_as_contexts_and_seeds_are_together():
    contexts = np.arange(4)
    first = [evaluation([1, 1, 1, 0], contexts), evaluation([1, 1, 1, 1], contexts)]
    second = [evaluation([0, 1, 0, 0], contexts), evaluation([0, 1, 0, 1], contexts)]
    gap = gap_between(first, second, "success_rate")
    assert gap.estimate == pytest.approx(0.5)  # 1, 0, 1, 0 in the contexts, in both seeds
    assert gap.error == pytest.approx(np.std([1, 0, 1, 0], ddof=1) / 2)
    first[1] = evaluation([1, 1, 1, 0], contexts)  # and 0, -1 more in the second seed's last
    gap = gap_between(first, second, "success_rate")
    over_contexts = np.std([1, 0, 1, -0.5], ddof=1) / 2
    over_seeds = np.std([0.5, 0.25], ddof=1) / sqrt(2)
    assert gap.error == pytest.approx(np.hypot(over_contexts, over_seeds))


def test_a_gap_without_contexts_is_as_unsure_as_the_seeds_are():
    first = [evaluation([1] * k + [0] * (10 - k)) for k in (8, 9, 10)]
    second = [evaluation([1] * k + [0] * (10 - k)) for k in (5, 5, 5)]
    gap = gap_between(first, second, "mean_return")
    assert (gap.estimate, gap.error) == (pytest.approx(0.4), pytest.approx(0.1 / sqrt(3)))
    assert str(gap) == "+0.400 ± 0.058"


def test_equal_seeds_have_an_interval_of_the_success_rate_alone():
    three = [evaluation([1, 1, 1, 1])] * 3
    assert str(summarize(three, "success_rate")) == "1.000 ± 0.000 [0.758, 1.000]"
    for quantity in ("mean_return", "entropy_d3il", "diversity"):
        assert str(summarize(three, quantity)).endswith("± 0.000")


def test_too_little_that_was_seen_has_no_interval():
    contexts = [0, 0, 1, 1, 2, 2, 3, 3]
    for successes in ([1] * 8, [1, 1, 1, 1, 1, 1, 1, 0]):
        found = [evaluation(successes, contexts)]
        for quantity in ("success_rate", "entropy_d3il", "diversity", "mean_return"):
            assert not {"[", "n"} & set(str(summarize(found, quantity)))


def test_a_seed_without_a_value_leaves_the_deviation_of_the_others():
    seeds = [evaluation(s) for s in ([0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0])]
    assert "nan" not in str(summarize(seeds, "diversity"))


def test_rows_of_other_contexts_have_no_gap():
    of = {n: [evaluation([1] * n, np.arange(n))] for n in (1, 4, 6)}
    moved = [evaluation([1] * 4, np.arange(1, 5))]
    assert str(gap_between(of[4], of[4], "success_rate")).startswith("+0.000")
    for first, second in ((of[4], of[6]), (of[1], of[4]), (of[4], moved), (of[4], of[1])):
        assert str(gap_between(first, second, "success_rate")) == ""


@pytest.mark.parametrize("quantity", ["success_rate", "mean_return"])
def test_a_gap_pairs_the_contexts_by_their_numbers(quantity):
    one = evaluation([1, 0, 0, 1, 0], [0, 1, 2, 3, 4])
    same = evaluation([0, 1, 0, 0, 1], [4, 3, 2, 1, 0])
    gap = gap_between([one], [same], quantity)
    assert (gap.estimate, gap.error) == (0.0, 0.0)
