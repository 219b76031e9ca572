"""The machinery of the paper's tables: nothing is done twice, and a failure harms no other run."""

import json
from itertools import count

import numpy as np
import pytest
import torch

from benchmarks import reports, runs
from benchmarks.figures import summarize
from benchmarks.methods import METHODS, TASKS, Plan, candidate_name
from benchmarks.paper import EXPERIMENTS
from benchmarks.reports import _measured, comparison, search
from benchmarks.runs import Run, Training, execute
from benchmarks.variants import HighestLevel, LowestLevel, UniformGating
from skvdd import GaussianMoEPolicy, VDDDistiller
from tests.estimators import SMALL, small_teacher


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")


@pytest.fixture
def trained(monkeypatch):
    """Names of the classes that were fitted."""
    names = []
    for cls in (GaussianMoEPolicy, VDDDistiller, type(small_teacher())):

        def fit(self, *args, _fit=cls.fit, **kwargs):
            names.append(type(self).__name__)
            return _fit(self, *args, **kwargs)

        monkeypatch.setattr(cls, "fit", fit)
    return names


def training(estimator=None, **kwargs):
    estimator = estimator or GaussianMoEPolicy(2, **SMALL)
    return Training(estimator, "avoiding", n_demonstrations=kwargs.pop("n", 2), **kwargs)


def run(name="EM", of=None, seed=0, **settings):
    return Run(name, of or training(), "skvdd/Avoiding-v0", 2, seed, settings)


def test_a_key_depends_on_every_parameter_the_data_and_the_teacher():
    keys = [
        training().key,
        training(GaussianMoEPolicy(3, **SMALL)).key,
        training(GaussianMoEPolicy(2, **{**SMALL, "random_state": 1})).key,
        training(n=3).key,
        training(features="sorting4").key,
        training(features="sorting6").key,
        training(teacher=training()).key,
        Training(GaussianMoEPolicy(2, **SMALL), "avoiding-human", 2).key,
    ]
    assert len(set(keys)) == len(keys)
    assert training().key == keys[0]


def test_what_is_there_is_not_done_again(tmp_path, trained):
    wanted = [run(), run("EM, other rollouts", seed=1)]
    assert execute(wanted, tmp_path, jobs=1) == []
    assert trained == ["GaussianMoEPolicy"]  # one training, rolled out twice
    first = wanted[0].path(tmp_path).read_text()
    assert execute([run(), run("again", seed=2)], tmp_path, jobs=1) == []
    assert trained == ["GaussianMoEPolicy"]
    assert wanted[0].path(tmp_path).read_text() == first


def test_a_cached_policy_acts_as_the_one_that_was_trained():
    states, _ = training().rows()
    fresh, loaded = training().policy()[0], training().policy()[0]
    np.testing.assert_array_equal(
        fresh.act(states[:20], random_state=0), loaded.act(states[:20], random_state=0)
    )


def test_a_training_that_was_killed_goes_on_where_it_was(monkeypatch):
    teacher = training(small_teacher())
    student = training(VDDDistiller(n_experts=2, init_iter=20, **SMALL), teacher=teacher)

    def distill(until=None):
        ticks = count()

        def clock():
            if (tick := next(ticks)) == until:
                raise OSError("killed")
            return tick

        monkeypatch.setattr(Training, "_clock", lambda self: clock)
        return student.policy()

    whole, seconds = distill()
    (runs.CACHE / f"{student.key}.seconds").unlink()
    with pytest.raises(OSError, match="killed"):
        distill(until=60)  # after the twenty reports of the start, two ticks each
    (checkpoint,) = runs.CACHE.glob("*.checkpoint")
    resumed, seconds_again = distill()
    assert not checkpoint.exists()
    states, _ = teacher.rows()
    np.testing.assert_array_equal(
        whole.sample(states[:20], random_state=0), resumed.sample(states[:20], random_state=0)
    )
    assert seconds_again == pytest.approx(seconds, abs=3)  # the few before the checkpoint is read


def test_a_teacher_is_trained_once_for_all_its_students(tmp_path, trained):
    teacher = training(small_teacher())
    students = [
        run(f"VDD {k}", training(VDDDistiller(n_experts=k, init_iter=2, **SMALL), teacher=teacher))
        for k in (1, 2)
    ]
    assert execute(students, tmp_path, jobs=1) == []
    assert trained == ["DiffusionPolicy", "VDDDistiller", "VDDDistiller"]


def test_a_failed_run_is_reported_and_the_others_are_done(tmp_path):
    broken = run("broken", training(GaussianMoEPolicy(2, **{**SMALL, "batch_size": 0})))
    fine = run()
    (failure,) = execute([broken, fine], tmp_path, jobs=1)
    assert "batch_size" in failure
    assert fine.path(tmp_path).is_file()
    assert not broken.path(tmp_path).is_file()


def test_what_waits_for_a_failed_teacher_is_not_tried(tmp_path, trained):
    teacher = training(small_teacher(batch_size=0))
    student = training(VDDDistiller(**SMALL), teacher=teacher)
    (failure,) = execute([run("VDD", student), run("VE", teacher)], tmp_path, jobs=1)
    assert "batch_size" in failure
    assert trained == ["DiffusionPolicy"]  # nor is the teacher tried again


def test_a_record_tells_how_it_was_made(tmp_path):
    record = run("VE-1", training(small_teacher()), n_steps=1).record(tmp_path)
    assert record["training"]["parameters"]["max_iter"] == SMALL["max_iter"]
    assert record["settings"] == {"n_steps": 1}
    assert {"versions", "machine", "training_seconds", "success_rate", "seed"} <= record.keys()


def test_summaries_are_students_intervals():
    summary = summarize([0.9, 0.92, 0.94, 0.96])
    assert summary.mean == pytest.approx(0.93)
    half = 3.182446 * np.std([0.9, 0.92, 0.94, 0.96], ddof=1) / 2  # t of three degrees of freedom
    assert summary.low == pytest.approx(0.93 - half, abs=1e-6)
    assert summary.high == pytest.approx(0.93 + half, abs=1e-6)
    assert summarize([1.0, 1.0, 0.9]).high == 1.0


def records(names, success):
    return {
        name: [{"success_rate": s, "entropy": 0.5, "n_behaviors": 9, "training_seconds": 7}]
        for name, s in zip(names, success, strict=True)
    }


def test_a_table_shows_the_papers_figures_beside_ours(tmp_path):
    plan = Plan(TASKS["avoiding"], tmp_path, 2, 1, {})
    table = comparison(plan, "table2", "Table 2", records(["EM", "VDD-VE"], [0.9, 0.8]))
    assert "| EM | 0.900" in table
    assert "| 0.65 ± 0.18 |" in table
    assert (tmp_path / "table2.png").is_file()


def test_a_table_leaves_out_what_the_paper_does_not_say(tmp_path):
    plan = Plan(TASKS["blockpush"], tmp_path, 2, 1, {})
    found = records(["EM"], [0.9])
    found["EM"][0]["mean_return"] = 0.95
    table = comparison(plan, "table2", "Table 2", found)
    assert "| EM | 0.950 | 0.88 ± 0.04 | 0.500 |  |" in table
    assert (tmp_path / "table2.png").is_file()


def test_a_table_of_a_task_that_the_paper_does_not_have_has_our_figures_alone(tmp_path):
    plan = Plan(TASKS["sorting2"], tmp_path, 2, 1, {})
    table = comparison(plan, "table2", "Table 2", records(["EM"], [0.9]))
    assert "paper" not in table
    assert "| EM | 0.900 | 0.500 |" in table


def test_what_was_measured_is_measured_again_with_another_core(tmp_path, monkeypatch):
    numbers = count()
    found = [_measured(tmp_path / "t.json", lambda: {"a": next(numbers)}) for _ in range(2)]
    monkeypatch.setattr(reports, "CORE", -1)
    found.append(_measured(tmp_path / "t.json", lambda: {"a": next(numbers)}))
    assert found == [{"a": 0}, {"a": 0}, {"a": 1}]


def test_the_search_keeps_the_best_candidate_of_each_method(tmp_path):
    plan = Plan(TASKS["avoiding"], tmp_path, 2, 1, {})
    names = [candidate_name("IMC", parameters) for parameters in METHODS["IMC"].candidates]
    success = np.linspace(0.1, 0.9, len(names))
    search(plan, "tune", "Search", records(names, success))
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    assert tuned == {"IMC": METHODS["IMC"].candidates[-1]}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_plans_runs_of_distinct_names_and_seeds(tmp_path, name):
    plan = Plan(TASKS["avoiding"], tmp_path, 2, 1, {})
    planned = EXPERIMENTS[name].runs(plan, range(2))
    assert len({(one.name, one.seed) for one in planned}) == len(planned)


def test_a_gating_that_is_not_learned_is_uniform():
    states, actions = training().rows()
    teacher = small_teacher().fit(states, actions)
    student = UniformGating(n_experts=4, init_iter=3, **SMALL).fit(states, actions, teacher=teacher)
    np.testing.assert_allclose(student.gating(states[:5]), 0.25)
    assert "gating" not in student.history_[-1]


@pytest.mark.parametrize(("cls", "level"), [(LowestLevel, 0.25), (HighestLevel, 2.0)])
def test_one_noise_level_is_a_bound(cls, level):
    student = cls(noise_min=0.25, noise_max=2.0)
    assert student._draw_levels(torch.tensor([0.1, 0.9]), 0.5).tolist() == [level, level]


def test_an_ablation_has_a_key_of_its_own(tmp_path):
    plan = Plan(TASKS["avoiding"], tmp_path, 2, 1, {})
    keys = [plan.run("VDD-VE", 0, make=cls).key for cls in (None, LowestLevel, HighestLevel)]
    assert len(set(keys)) == 3


def test_every_searched_method_has_the_same_number_of_candidates():
    assert {len(method.candidates) for method in METHODS.values()} == {0, 3}
