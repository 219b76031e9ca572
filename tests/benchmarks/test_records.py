"""Records are whole, and those of several processes and scores all arrive."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np

from benchmarks import training
from benchmarks.records import COLUMNS, Store, compacted, restored
from skvdd.envs import Score, get_task
from skvdd.evaluation import Evaluation, ScoreReport

OUTCOMES = np.zeros(3, [("context", "i2"), ("success", "?")])


def row(key, **values):
    return {**dict.fromkeys(COLUMNS), "key": key, "seed": 0, "n_contexts": 0, **values}


def add_some(folder, cache, first):
    training.CACHE = cache
    for number in range(first, first + 5):
        Store(folder).add(row(f"{number:02d}"), OUTCOMES, {f"t{number}": {"max_iter": number}})


def test_what_processes_add_at_once_is_all_there(tmp_path):
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        for first in (0, 5, 10):
            pool.submit(add_some, tmp_path / "records", tmp_path / "cache", first)
    store = Store(tmp_path / "records")
    keys = [f"{number:02d}" for number in range(15)]
    assert [found["key"] for found in store.rows()] == keys
    assert sorted(store.outcomes()) == keys
    assert len(store.read("trainings")) == 15


def test_a_run_that_is_there_is_left_as_it_is(tmp_path):
    store = Store(tmp_path)
    store.add(row("a", name="first", success_rate=0.123456789), OUTCOMES, {})
    store.add(row("a", name="second"), OUTCOMES, {})
    (found,) = store.rows()
    assert (found["name"], found["success_rate"], found["diversity"]) == ("first", 0.123457, None)


def test_every_score_of_a_task_is_kept():
    scores = (Score("one", {0: "left", 1: "right"}), Score("two", {"x": "across", "y": "along"}))
    task = replace(get_task("sides"), scores=scores)
    contexts = (0, 1, 0)
    reports = {
        "one": ScoreReport(scores[0], np.array([True, True, False]), (0, 1, None), contexts),
        "two": ScoreReport(scores[1], np.array([False, True, True]), (None, "y", "x"), contexts),
    }
    numbers = np.array([1.0, 2.0, 0.5]), np.array([3, 4, 5])
    evaluation = Evaluation(task.env_id, "test", reports, contexts, *numbers, episodes=None)
    table = compacted(evaluation)
    assert table.dtype.names == (
        *("context", "length", "return"),
        *("success", "behavior", "success_two", "behavior_two"),
    )
    again = restored(task, "test", table)
    assert again.to_dict() == evaluation.to_dict()
    assert again.scores["two"].behaviors == (None, "y", "x")


def test_long_episodes_and_many_contexts_are_kept_and_short_columns_are_read():
    task, contexts = get_task("sides"), (40_000, 7)
    report = ScoreReport(task.score, np.array([True, False]), ("left", None), contexts)
    numbers = np.array([1.0, 0.0]), np.array([70_000, 3])
    found = Evaluation(task.env_id, "test", {"success": report}, contexts, *numbers, episodes=None)
    again = restored(task, "test", compacted(found))
    assert (again.contexts, again.lengths.tolist()) == (contexts, [70_000, 3])
    short = np.array([(7, 3, 1.0, True, 0)], "i2, i2, f4, ?, i2")
    short.dtype.names = compacted(found).dtype.names
    assert restored(task, "test", short).to_dict()["mean_length"] == 3.0
