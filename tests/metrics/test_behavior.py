"""Diversity of behaviors."""

import re
from itertools import product
from math import isnan, log

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from skvdd.metrics import behavior_diversity, count_behaviors, entropy_ceiling, entropy_d3il
from skvdd.metrics.behavior import (
    divergence_by_chance,
    divergence_error,
    divergences,
    diversities,
    diversity_error,
    entropies,
    entropy_error,
)


def refuses(message):
    """Expect a ValueError whose whole message is this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_entropy_is_one_when_all_behaviors_are_equally_frequent():
    assert entropy_d3il(list(range(24)) * 3, base=24) == pytest.approx(1.0, abs=1e-12)


def test_entropy_is_zero_for_one_behavior_or_no_success():
    assert entropy_d3il([7] * 10, base=24) == 0.0
    assert entropy_d3il([None] * 10, base=24) == 0.0
    assert entropy_d3il([], base=24) == 0.0


def test_entropy_by_hand():
    # Shares 1/2, 1/4, 1/4: 1.5 bits, of log2(8) = 3 bits.
    assert entropy_d3il(["a", "a", "b", "c"], base=8) == pytest.approx(0.5, abs=1e-12)
    # Shares 3/4, 1/4 in base 2: 2 - 3/4 log2(3).
    expected = 2.0 - 0.75 * log(3, 2)
    assert entropy_d3il([1, 1, 1, 0], base=2) == pytest.approx(expected, abs=1e-12)


def test_failed_rollouts_do_not_count():
    assert entropy_d3il(["a", None, "b", None, None], base=2) == entropy_d3il(["a", "b"], base=2)


def test_behaviors_may_be_tuples():
    assert entropy_d3il([(0, 1, 2), (1, 1, 2)], base=4) == pytest.approx(0.5, abs=1e-12)


def test_entropy_is_the_mean_over_initial_states():
    # Context 0 shows both behaviors (1 bit), context 1 only one (0 bit). Pooled, the shares
    # are 1/4 and 3/4, which is more than the mean.
    behaviors, contexts = ["a", "b", "b", "b"], [0, 0, 1, 1]
    assert entropy_d3il(behaviors, base=2, contexts=contexts) == pytest.approx(0.5, abs=1e-12)
    assert entropy_d3il(behaviors, base=2) == pytest.approx(2.0 - 0.75 * log(3, 2), abs=1e-12)


def test_an_initial_state_without_success_counts_as_zero():
    assert entropy_d3il(["a", "b", None], base=2, contexts=[0, 0, 1]) == pytest.approx(0.5)


def test_contexts_without_a_success_can_be_left_out():
    behaviors, contexts = ["a", "b", None, None, "a"], [0, 0, 1, 1, 2]
    assert entropy_d3il(behaviors, 2, contexts) == pytest.approx(1.0 / 3.0)
    assert entropy_d3il(behaviors, 2, contexts, skip_unsolved=True) == pytest.approx(0.5)
    assert entropy_d3il([None, None], 2, [0, 1], skip_unsolved=True) == 0.0


def test_entropy_refuses_what_has_no_meaning():
    with refuses("base must be at least 2, the number of behaviors, got 1."):
        entropy_d3il(["a"], base=1)
    with refuses(
        "base must be the number of behaviors of the task, got base=2 and 3 distinct "
        "behaviors. Mark failed rollouts with None."
    ):
        entropy_d3il(["a", "b", "c", None], base=2)
    with refuses(
        "contexts must name the initial state of every rollout, got 1 contexts for 2 behaviors."
    ):
        entropy_d3il(["a", "b"], base=2, contexts=[0])


# -- counts ---------------------------------------------------------------------------------


def test_behaviors_are_counted_by_context():
    counts = count_behaviors(["a", "b", None, "a"], contexts=["x", "x", "x", "y"])
    np.testing.assert_array_equal(counts, [[1, 1], [1, 0]])
    assert count_behaviors([None, None], contexts=[0, 1]).shape == (2, 0)


# -- the ceiling ----------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "base"), [(1, 2), (2, 2), (3, 2), (3, 3), (4, 3), (2, 20)])
def test_the_ceiling_is_the_mean_entropy_of_all_draws(n, base):
    draws = [
        entropy_d3il(list(draw), base) for draw in product(range(base), repeat=n)
    ]  # all equally probable
    assert entropy_ceiling(["a"] * n, base) == pytest.approx(np.mean(draws), abs=1e-12)


def test_the_ceiling_is_the_mean_over_contexts_by_the_rule_of_the_task():
    behaviors, contexts = ["a", "a", "a", None, None], [0, 0, 1, 1, 2]
    # Two successes show both of two behaviors half the time; one shows one; none shows none.
    assert entropy_ceiling(behaviors, 2, contexts) == pytest.approx(0.5 / 3.0)
    assert entropy_ceiling(behaviors, 2, contexts, skip_unsolved=True) == pytest.approx(0.25)


def test_a_uniform_policy_reaches_the_ceiling_whatever_its_success_rate():
    rng = np.random.default_rng(0)
    contexts = np.repeat(np.arange(3000), 8)
    for rate in (0.3, 0.9):
        solved = rng.uniform(size=len(contexts)) < rate
        behaviors = rng.integers(20, size=len(contexts))
        drawn = [int(b) if ok else None for b, ok in zip(behaviors, solved, strict=True)]
        reached = entropy_d3il(drawn, 20, contexts.tolist(), skip_unsolved=True)
        ceiling = entropy_ceiling(drawn, 20, contexts.tolist(), skip_unsolved=True)
        # Entropies of a context spread by 0.2 at most, their mean over 3000 by 0.004.
        assert reached == pytest.approx(ceiling, abs=0.012)


# -- diversity ------------------------------------------------------------------------------


def test_diversity_by_hand():
    # Of six pairs, five differ; of three equally probable behaviors two thirds would.
    assert behavior_diversity(["a", "a", "b", "c"], 3) == pytest.approx((5 / 6) / (2 / 3))
    assert behavior_diversity(["a", "a", "a", None], 3) == 0.0
    assert behavior_diversity(["a", "b"], 2) == 2.0  # unbiased, so above one at times


def test_contexts_with_fewer_than_two_successes_have_no_diversity():
    behaviors, contexts = ["a", "a", "b", None, None, "b"], [0, 0, 1, 1, 2, 1]
    assert behavior_diversity(behaviors, 2, contexts) == 0.0
    assert isnan(behavior_diversity(["a", None], 2, [0, 1]))
    assert isnan(behavior_diversity([], 2))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.0), (0.7, 0.2, 0.1), (1 / 3, 1 / 3, 1 / 3)])
def test_diversity_is_unbiased_whatever_the_number_of_successes(n, shares):
    mean = sum(
        np.prod([shares[k] for k in draw]) * behavior_diversity(list(draw), 3)
        for draw in product(range(3), repeat=n)
    )
    truth = (1.0 - sum(share**2 for share in shares)) / (1.0 - 1.0 / 3.0)
    assert mean == pytest.approx(truth, abs=1e-12)


# -- divergence -----------------------------------------------------------------------------


def test_divergences_agree_with_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, size=(2, 30, 4))
    one[0], other[0] = [3, 0, 0, 0], [0, 2, 1, 0]
    expected = [jensenshannon(p, q, base=2.0) ** 2 for p, q in zip(one, other, strict=True)]
    np.testing.assert_allclose(divergences(one, other), expected, atol=1e-12)
    assert divergences(one, other)[0] == pytest.approx(1.0)  # nothing in common


def test_a_context_that_one_policy_never_solves_has_no_divergence():
    assert np.isnan(divergences(np.array([[0, 0]]), np.array([[1, 2]]))).all()
    assert isnan(divergence_by_chance(np.array([[0, 0]]), np.array([[1, 2]])))


def test_the_floor_is_what_two_samples_of_one_policy_show():
    rng = np.random.default_rng(1)
    one, other = rng.multinomial(12, [0.4, 0.3, 0.3], size=(2, 500))
    shown = divergences(one, other)
    # The standard error over 500 contexts is 0.003, that of 200 permutations less.
    assert divergence_by_chance(one, other) == pytest.approx(shown.mean(), abs=0.01)
    assert divergence_by_chance(one, other) == divergence_by_chance(one, other)


@pytest.mark.parametrize("function", [entropy_ceiling, behavior_diversity])
def test_all_refuse_what_has_no_meaning(function):
    with refuses("base must be at least 2, the number of behaviors, got 1."):
        function(["a"], 1)
    with refuses(
        "base must be the number of behaviors of the task, got base=2 and 3 distinct "
        "behaviors. Mark failed rollouts with None."
    ):
        function(["a", "b", "c"], 2)


# -- standard errors, where all episodes start alike ----------------------------------------


@pytest.mark.parametrize(
    ("statistic", "error"), [(diversities, diversity_error), (entropies, entropy_error)]
)
@pytest.mark.parametrize(
    "shares", [(0.8, 0.2), (0.5, 0.3, 0.1, 0.1), tuple(np.arange(1, 25) / 300)]
)
def test_standard_errors_are_the_spread_of_the_estimate(statistic, error, shares):
    base = len(shares)
    counts = np.random.default_rng(0).multinomial(190, shares, size=400)
    spread = np.std([statistic(row[None], base)[0] for row in counts])
    # The spread of 400 values is known to 4 %; errors are on the large side with many behaviors.
    assert 0.85 < np.mean([error(row, base) for row in counts]) / spread < 1.4


@pytest.mark.parametrize(
    ("statistic", "error"), [(diversities, diversity_error), (entropies, entropy_error)]
)
@pytest.mark.parametrize("n", [8, 16, 190])
def test_equally_frequent_behaviors_have_an_error_that_covers(statistic, error, n):
    # Here the first-order term vanishes: the jackknife would say that nothing is uncertain.
    counts = np.random.default_rng(0).multinomial(n, [0.5, 0.5], size=400)
    truth = {diversities: 1.0, entropies: np.mean([entropies(c[None], 2)[0] for c in counts])}
    hits = [
        abs(statistic(row[None], 2)[0] - truth[statistic]) <= 1.96 * error(row, 2) for row in counts
    ]
    assert np.mean(hits) > 0.93


def test_too_few_successes_have_no_error():
    assert isnan(diversity_error(np.array([1, 0]), 2))
    assert isnan(diversity_error(np.array([9, 0]), 2))  # how rare the other is, nobody has seen
    assert isnan(entropy_error(np.array([0, 1]), 2))
    assert isnan(divergence_error(np.array([0, 0]), np.array([1, 2])))


def test_the_error_of_a_divergence_is_its_spread():
    rng = np.random.default_rng(0)
    one, other = (
        rng.multinomial(60, [0.7, 0.2, 0.1], 300),
        rng.multinomial(60, [0.2, 0.2, 0.6], 300),
    )
    spread = divergences(one, other).std()
    errors = [divergence_error(a, b) for a, b in zip(one[:60], other[:60], strict=True)]
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
