"""What an evaluation says: rates, diversity and their intervals, of one score and of several."""

import json

import numpy as np
import pytest

from skvdd.envs import Score, TaskSpec, register_task, spec
from skvdd.evaluation import Evaluation, ScoreReport, evaluate_policy
from skvdd.metrics import (
    behavior_diversity,
    bootstrap_interval,
    entropy_ceiling,
    entropy_d3il,
    wilson_interval,
)
from skvdd.metrics.behavior import diversity_error, entropy_error
from skvdd.rollouts import BLOCK_SIZE
from tests.evaluation.tasks import Constant, Line, RandomWalk, evaluate


@pytest.fixture(scope="module")
def reference():
    return evaluate(RandomWalk(), BLOCK_SIZE + 10)


def report(successes, behaviors, contexts=None, **score):
    """Return the report of a task with the behaviors a, b and c."""
    contexts = (None,) * len(successes) if contexts is None else tuple(contexts)
    score = Score(behaviors={"a": "A", "b": "B", "c": "C"}, **score)
    return ScoreReport(score, np.array(successes, dtype=bool), tuple(behaviors), contexts)


def test_a_policy_that_goes_right_always_succeeds_in_one_way():
    evaluation = evaluate(Constant([0.1]))
    assert evaluation.success_rate == 1.0
    assert evaluation.success_interval == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert evaluation.entropy_d3il == 0.0
    assert evaluation.n_behaviors == 1
    assert evaluation.behaviors == ("right",) * 20
    np.testing.assert_array_equal(evaluation.returns, 1.0)
    # 0.1, 0.18, 0.244 ... add up to 1.2 after 5 steps at the latest, from -0.2.
    assert evaluation.lengths.max() <= 6


def test_a_policy_that_stands_still_always_fails():
    evaluation = evaluate(Constant([0.0]))
    assert evaluation.success_rate == evaluation.entropy_d3il == 0.0
    assert evaluation.n_behaviors == 0
    assert set(evaluation.behaviors) == {"left", "right"}
    np.testing.assert_array_equal(evaluation.lengths, 60)
    np.testing.assert_array_equal(evaluation.returns, 0.0)


def test_entropy_counts_only_successes(reference):
    shares = [
        np.mean(
            [
                b == side
                for b, ok in zip(reference.behaviors, reference.successes, strict=True)
                if ok
            ]
        )
        for side in ("left", "right")
    ]
    assert 0 < reference.successes.sum() < len(reference.successes)
    assert reference.entropy_d3il == pytest.approx(-sum(p * np.log2(p) for p in shares))
    assert reference.base == 2


def test_a_task_without_behaviors_has_no_entropy():
    evaluation = evaluate(Constant([0.1]), task="Indifferent")
    assert evaluation.success_rate == 1.0
    assert evaluation.entropy_d3il is evaluation.base is None
    assert evaluation.n_behaviors == 0


def test_the_table_is_aligned():
    evaluation = evaluate(Constant([0.1]), env_kwargs={"start_width": 0.0})
    assert str(evaluation) == (
        "skvddtest/Line-v0, 20 episodes\n"
        "  success rate     1.000  95 % in [0.839, 1.000]\n"
        "  entropy, D3IL    0.000  95 % in [0.000, 0.100], 0.963 if perfectly diverse\n"
        "  diversity        0.000  no interval, 1 if all equally frequent\n"
        "  behaviors            1  of 2\n"
        "  mean return      1.000\n"
        "  mean length        5.0  actions"
    )


def test_the_table_leaves_out_what_the_task_does_not_tell():
    table = str(evaluate(Constant([0.1]), task="Indifferent"))
    assert "success rate" in table
    assert "entropy" not in table
    assert "diversity" not in table
    assert "behaviors" not in table


def test_the_summary_survives_json(reference):
    summary = reference.to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["n_episodes"] == BLOCK_SIZE + 10


def test_the_record_is_frozen_and_short_to_print(reference):
    assert isinstance(reference, Evaluation)
    with pytest.raises(AttributeError):
        reference.success_rate = 1.0
    assert len(repr(reference)) < 300


def test_a_short_evaluation_prints_nothing(capfd):
    evaluate(Constant([0.1]), progress=True)
    assert capfd.readouterr() == ("", "")


# -- the numbers of a score -------------------------------------------------------------------


def test_the_numbers_are_those_of_the_metrics():
    successes = [1, 1, 1, 0, 1, 1, 0, 0]
    behaviors = ["a", "b", "b", "a", "c", "c", "b", "a"]
    contexts = [0, 1, 0, 1, 0, 1, 2, 2]
    solved = [b if ok else None for b, ok in zip(behaviors, successes, strict=True)]
    for skips in (False, True):
        found = report(successes, behaviors, contexts, skips_unsolved=skips)
        options = {"base": 3, "contexts": contexts}
        assert found.success_rate == 5 / 8
        assert found.entropy_d3il == pytest.approx(
            entropy_d3il(solved, **options, skip_unsolved=skips)
        )
        assert found.entropy_ceiling == pytest.approx(
            entropy_ceiling(solved, **options, skip_unsolved=skips)
        )
        assert found.diversity == pytest.approx(behavior_diversity(solved, **options))
        assert found.n_behaviors == 3


def test_rates_of_contexts_have_a_bootstrap_interval():
    contexts = np.repeat(range(5), 2).tolist()
    found = report([1, 1, 0, 1, 0, 0, 1, 1, 0, 1], ["a"] * 10, contexts)
    np.testing.assert_array_equal(found.success_rates, [1.0, 0.5, 0.0, 1.0, 0.5])
    assert found.success_interval == bootstrap_interval([1.0, 0.5, 0.0, 1.0, 0.5])


@pytest.mark.parametrize(("success", "n_success"), [(1, 5), (0, 0)])
def test_equal_rates_of_contexts_have_the_interval_of_as_many_trials(success, n_success):
    found = report([success] * 10, ["a"] * 10, np.repeat(range(5), 2).tolist())
    assert found.success_interval == wilson_interval(n_success, 5)


def test_fewer_than_five_contexts_have_no_interval():
    found = report([1, 1, 0, 1, 1, 1, 0, 0], list("abababab"), np.repeat(range(4), 2).tolist())
    for interval in (found.success_interval, found.entropy_interval, found.diversity_interval):
        assert np.isnan(interval).all()
    assert ("success rate", "0.625", "no interval") in found.rows()


def test_a_rate_without_contexts_has_the_interval_of_wilson():
    assert report([1, 1, 0, 1], ["a"] * 4).success_interval == wilson_interval(3, 4)


def test_diversities_of_contexts_have_a_bootstrap_interval():
    found = report([1] * 10, list("abaaabbbba"), np.repeat(range(5), 2).tolist())
    assert found.diversity_interval == bootstrap_interval(found.diversities)
    assert found.entropy_interval == bootstrap_interval(found.entropies)


def test_diversities_without_contexts_have_an_interval_of_two_standard_errors():
    found = report([1] * 12, "aaaaaaabbbcc")
    for name, error_of in (("diversity", diversity_error), ("entropy", entropy_error)):
        error = error_of(np.array([7, 3, 2]), 3)
        value = found.diversity if name == "diversity" else found.entropy_d3il
        low, high = getattr(found, f"{name}_interval")
        most = 1.0 if name == "entropy" else np.inf
        expected = (value - 1.96 * error, min(value + 1.96 * error, most))
        assert (low, high) == pytest.approx(expected)


def test_behaviors_that_the_task_does_not_list_do_not_count():
    found = report([1, 1, 1, 1], ["a", "b", "?", None])
    assert found.success_rate == 1.0
    np.testing.assert_array_equal(found.counts, [[1, 1, 0]])
    assert found.n_behaviors == 2


def test_a_summary_has_none_for_what_is_not_defined():
    found = report([0, 0], ["a", "b"]).to_dict()
    assert found["diversity"] is None
    assert found["diversity_interval"] == [None, None]
    assert json.loads(json.dumps(found)) == found


# -- of one rollout each ------------------------------------------------------------------------


def test_the_outcome_of_every_rollout_is_kept():
    frame = evaluate(RandomWalk(), 12, task="Signpost", contexts=3).to_frame()
    assert list(frame.columns) == ["context", "success", "behavior", "length", "return"]
    assert frame["context"].tolist() == [0, 1, 2] * 4
    assert frame["return"].tolist() == frame["success"].astype(float).tolist()
    assert frame["length"].between(1, 60).all()
    assert set(frame["behavior"]) <= {"left", "right"}


class TwoWays(Line):
    """Judges twice: beyond ±1, as ever, and beyond ±0.5 at any time."""

    def _info(self):
        return {
            **super()._info(),
            "half": abs(self.position) > 0.5,
            "fast": "yes" if abs(self.speed) > 0.1 else "no",
        }


@pytest.fixture
def two_ways():
    task = TaskSpec(
        "two-ways",
        "skvddtest/TwoWays-v0",
        entry_point=TwoWays,
        time_limit=60,
        scores=(
            Score(behaviors={"left": "l", "right": "r"}),
            Score("half", {"yes": "y", "no": "n"}, success_key="half", behavior_key="fast"),
        ),
    )
    yield register_task(task)
    del spec._TASKS[task.name]


def test_several_scores_come_from_the_same_rollouts(two_ways):
    evaluation = evaluate_policy(RandomWalk(), "two-ways", 40, random_state=0, progress=False)
    success, half = evaluation.scores.values()
    assert evaluation.success_rate == success.success_rate < half.success_rate
    assert (success.successes <= half.successes).all()
    assert set(half.behaviors) == {"yes", "no"}
    assert set(evaluation.behaviors) == {"left", "right"}
    summary = evaluation.to_dict()
    assert summary["success_rate"] == summary["scores"]["success"]["success_rate"]
    assert summary["scores"]["half"]["entropy_d3il"] == half.entropy_d3il
    assert " success\n" in str(evaluation)
    assert " half\n" in str(evaluation)
    assert {"success_half", "behavior_success"} <= set(evaluation.to_frame().columns)


def test_successes_with_behaviors_that_no_task_lists_are_warned_of(monkeypatch):
    monkeypatch.setattr(
        Line, "_info", lambda self: {"success": abs(self.position) > 1.0, "behavior": "up"}
    )
    with pytest.warns(UserWarning, match=r"^skvddtest/Line-v0 reports behaviors .*: 'up'\.$"):
        evaluation = evaluate(Constant([0.1]))
    assert (evaluation.success_rate, evaluation.entropy_d3il) == (1.0, 0.0)
