"""Runs leave one record each, whoever asks, and a failure harms no other."""

import numpy as np
import pytest

from benchmarks import runs
from benchmarks.records import Store
from benchmarks.runs import Run, execute
from benchmarks.training import Training
from skvdd import GaussianMoEPolicy, VDDDistiller
from skvdd.envs import get_task
from skvdd.evaluation import compare_evaluations
from tests.benchmarks.sides import Walker
from tests.estimators import SMALL, small_teacher


def training(estimator=None, **kwargs):
    return Training(estimator or GaussianMoEPolicy(2, **SMALL), "sides", 10, **kwargs)


def run(name="EM", of=None, seed=0, settings=None, **options):
    options = {"n_contexts": 4, **options}
    return Run(name, of or training(), "sides", 8, seed, settings or {}, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_call_twice_leaves_the_same_record(tmp_path):
    records = tmp_path / "records"
    assert execute([run(), run(seed=1)], records, jobs=1) == []
    before = files(records)
    assert before.keys() == {"runs.csv", "outcomes.npz", "trainings.json"}
    assert execute([run(), run(seed=1)], records, jobs=1) == []
    assert files(records) == before
    assert execute([run(seed=1), run()], tmp_path / "elsewhere", jobs=1) == []
    assert files(tmp_path / "elsewhere") == before  # and in another order, elsewhere


def test_a_run_key_depends_on_training_and_rollouts():
    keys = [
        run().key,
        run(of=training(GaussianMoEPolicy(3, **SMALL))).key,
        run(seed=1).key,
        run(n_contexts=3).key,
        run(split="validation").key,
        run(settings={"n_steps": 1}).key,
        Run("EM", training(), "sides", 9, 0, n_contexts=4).key,
        Run("EM", training(), "avoiding", 8, 0, n_contexts=4).key,
    ]
    assert len(set(keys)) == len(keys)
    assert run("another name").key == keys[0]


def test_a_record_tells_how_it_was_made(tmp_path, sides):
    wanted = run(of=training(small_teacher()), settings={"n_steps": 1}, budget="quick")
    execute([wanted], tmp_path, jobs=1)
    (record,) = Store(tmp_path).records(sides)
    row = record.row
    assert row["key"] == wanted.key
    assert (row["env_id"], row["split"], row["budget"]) == ("tests/Sides-v0", "test", "quick")
    assert (row["n_contexts"], row["n_episodes"], row["seed"]) == (4, 8, 0)
    assert (row["demonstrations"], row["n_demonstrations"]) == ("sides", 10)
    assert row["demonstrator_version"] == "7"
    assert row["iterations"] == SMALL["max_iter"]
    assert row["clock"] == "cpu"
    assert len(row["commit"]) >= 10 or row["commit"] == "unknown"
    assert None not in (row["torch"], row["mujoco"], row["processor"], row["date"], row["rows"])
    described = Store(tmp_path).read("trainings")[row["training"]]
    assert described["parameters"]["max_iter"] == SMALL["max_iter"]


@pytest.mark.parametrize(
    ("changes", "commits"), [(False, ["c0", "c0"]), (True, ["c0..c1", "c0..c3"])]
)
def test_a_record_names_the_commit_that_was_loaded(changes, commits, tmp_path, monkeypatch):
    names = iter(["c0", "c1", "c1", "c3", "c3"])
    monkeypatch.setattr(runs, "commit", lambda: next(names) if changes else "c0")
    monkeypatch.setattr(runs, "environment", lambda code: {"commit": code})
    rows = []
    monkeypatch.setattr(Store, "add", lambda self, row, *others: rows.append(row))
    assert execute([run(), run(seed=1)], tmp_path, jobs=1) == []
    assert [row["commit"] for row in rows] == commits


def test_outcomes_give_the_numbers_of_the_evaluation(tmp_path, sides):
    wanted = run(of=training(Walker(random_state=0), arguments={"random_state": 0}))
    execute([wanted], tmp_path, jobs=1)
    (record,) = Store(tmp_path).records(sides)
    evaluation = wanted.roll_out(wanted.policy()[0])
    assert evaluation.n_behaviors == 2
    rebuilt = record.evaluation
    assert rebuilt.to_dict() == evaluation.to_dict()
    assert rebuilt.behaviors == evaluation.behaviors
    np.testing.assert_array_equal(rebuilt.successes, evaluation.successes)
    for name in ("success_rate", "entropy_d3il", "entropy_ceiling", "diversity", "mean_length"):
        assert record.row[name] == pytest.approx(evaluation.to_dict()[name], rel=1e-5)
    assert compare_evaluations(rebuilt, evaluation).success_rate.estimate == 0.0


def test_a_task_without_contexts_has_records_of_a_split_too(tmp_path):
    brief = Training(GaussianMoEPolicy(2, **SMALL), "avoiding", 2)
    execute([Run("EM", brief, "avoiding", 2, 0)], tmp_path, jobs=1)
    (record,) = Store(tmp_path).records(get_task("avoiding"))
    assert (record.row["split"], record.row["n_contexts"]) == ("test", 0)
    assert (record.evaluation.split, record.evaluation.contexts) == (None, (None, None))


def test_a_teacher_is_described_with_its_student_and_trained_once(tmp_path):
    teacher = training(small_teacher())
    students = [
        run(f"VDD {k}", training(VDDDistiller(n_experts=k, init_iter=2, **SMALL), teacher=teacher))
        for k in (1, 2)
    ]
    assert execute(students, tmp_path, jobs=1) == []
    described = Store(tmp_path).read("trainings")
    assert described.keys() == {teacher.key, *(one.training.key for one in students)}
    assert described[students[0].training.key]["teacher"] == teacher.key


def test_a_failed_run_is_reported_and_the_others_are_done(tmp_path):
    broken = run("broken", training(GaussianMoEPolicy(2, **{**SMALL, "batch_size": 0})))
    fine = run()
    (failure,) = execute([broken, fine], tmp_path, jobs=1)
    assert failure.startswith("FAILED broken, seed 0\n")
    assert "batch_size" in failure
    assert Store(tmp_path).keys() == {fine.key}


def test_what_waits_for_a_failed_teacher_is_not_tried(tmp_path):
    teacher = training(small_teacher(batch_size=0))
    student = training(VDDDistiller(**SMALL), teacher=teacher)
    (failure,) = execute([run("VDD", student), run("VE", teacher)], tmp_path, jobs=1)
    assert failure.startswith("FAILED DiffusionPolicy, seed 0\n")
