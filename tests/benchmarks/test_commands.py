"""The command line: any method, equal budgets, searches in contexts of their own."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import commands
from benchmarks.__main__ import main
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods import METHODS, Method, find_method
from benchmarks.plan import BUDGETS, Plan
from benchmarks.presets import PRESETS
from benchmarks.records import Store, load
from benchmarks.variants import HighestLevel, LowestLevel, UniformGating
from skvdd.envs import get_task
from tests.estimators import SMALL

WALKER = "tests.benchmarks.sides:Walker"
TINY = [f"{name}={value}" for name, value in SMALL.items() if name != "random_state"]


def plan(task="sides", budget="full", **options):
    return Plan(get_task(task), BUDGETS[budget], **options)


# -- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_plans_runs_of_distinct_names_and_seeds(name):
    task = (EXPERIMENTS[name].tasks or ("avoiding",))[0]
    few = plan(task, n_demonstrations=24)
    planned = EXPERIMENTS[name].runs(few, range(2))
    assert len({(one.name, one.seed) for one in planned}) == len(planned)
    assert EXPERIMENTS[name].against in {None, *(one.name for one in planned)}


def test_a_task_without_a_preset_has_the_defaults():
    one = plan().run("VDD-VE", 3)
    assert (one.n_rollouts, one.n_contexts, one.split) == (16, 4, "test")
    assert (one.training.n_demonstrations, one.training.features) == (100, None)
    assert one.training.estimator.random_state == one.training.teacher.estimator.random_state == 3


def test_what_is_quick_has_fewer_contexts_with_as_many_rollouts_and_fewer_iterations():
    full, quick = (plan("aligning", b).run("EM", 0) for b in ("full", "quick"))
    assert (full.n_contexts, full.n_rollouts) == (60, 960)
    assert (quick.n_contexts, quick.n_rollouts) == (15, 240)
    assert full.training.estimator.max_iter == 8 * quick.training.estimator.max_iter
    assert (plan("avoiding", "quick").n_rollouts, plan("avoiding").n_contexts) == (50, None)


@pytest.mark.parametrize("task", EXPERIMENTS["budgets"].tasks)
def test_the_rows_of_equal_budgets_have_as_many_iterations(task):
    runs = EXPERIMENTS["budgets"].runs(plan(task, "quick", n_demonstrations=24), [2])
    iterations = {one.name: one.training.iterations for one in runs}
    student = iterations["VDD-VE"]
    assert iterations["EM, as many iterations"] == student
    assert iterations["EM on the teacher's encoder"] == student
    assert iterations["VDD-VE, start alone"] < student
    encoder = next(one for one in runs if one.name == "EM on the teacher's encoder")
    assert encoder.training.estimator.max_iter == 1  # of distillation
    assert encoder.training.teacher.key == runs[0].training.key


def test_an_ablation_has_a_key_of_its_own():
    classes = (None, LowestLevel, HighestLevel, UniformGating)
    assert len({plan().run("VDD-VE", 0, make=cls).key for cls in classes}) == 4


def test_presets_are_of_methods_and_parameters_that_there_are():
    for task, preset in PRESETS.items():
        assert preset.parameters.keys() <= METHODS.keys()
        for method in METHODS:
            plan(task, n_demonstrations=4).training(method, 0)


def test_every_searched_method_has_the_same_number_of_candidates():
    assert {len(method.candidates) for method in METHODS.values()} == {0, 3}


# -- methods -------------------------------------------------------------------------------------


def test_methods_are_found_by_short_names_and_by_their_class():
    assert find_method("vdd") is find_method("VDD-VE") is METHODS["VDD-VE"]
    assert find_method("em") is METHODS["EM"]
    assert find_method(WALKER).is_foreign
    with pytest.raises(
        ValueError, match=r"^method must be one of vdd, .*, or module:Class, got 'x'\.$"
    ):
        find_method("x")
    with pytest.raises(
        ValueError, match=r"^pathlib:X must be a class, the module pathlib has no 'X'\.$"
    ):
        find_method("pathlib:X")
    with pytest.raises(
        TypeError, match=r"^pathlib:Path must have fit and act, it has no fit and no act\.$"
    ):
        find_method("pathlib:Path")


def test_settings_are_for_all_methods_that_take_them_or_for_one():
    settings = ["max_iter=7", "EM:n_experts=3", "encoder=mlp", "pace=2"]
    assert commands.parameters_for(METHODS["EM"], settings) == {
        "max_iter": 7,
        "n_experts": 3,
        "encoder": "mlp",
    }
    assert commands.parameters_for(METHODS["IMC"], settings) == {"max_iter": 7, "encoder": "mlp"}
    assert commands.parameters_for(find_method(WALKER), settings) == {"pace": 2}
    with pytest.raises(
        ValueError, match=r"^--set must be \[METHOD:\]NAME=VALUE, got 'max_iter'\.$"
    ):
        commands.parameters_for(METHODS["EM"], ["max_iter"])


def test_a_setting_that_no_method_takes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^--set must be of em or imc, got 'pace=2'\.$"):
        commands.run("sides", ["em", "imc"], tmp_path, settings=["max_iter=2", "pace=2"])


def test_methods_of_one_call_have_as_many_iterations():
    own = plan("aligning", n_demonstrations=4)
    for name in ("VE", "VDD-VE", "EM", "IMC", "CD-VE", "VE-1"):
        for whole, one in ((None, own), (30_000, commands.scaled(own, 30_000))):
            fair = commands.at_equal_cost(one, METHODS[name], {}, whole)
            training = one.training(name, 0, exact=fair)
            assert training.iterations == (whole or 24_000 + 12_000 + 5_000)
    assert commands.at_equal_cost(own, METHODS["EM"], {"max_iter": 7}) == {}
    expected = r"^--iterations must be more than the 36000 that VDD-VE has before its own, got 9\.$"
    with pytest.raises(ValueError, match=expected):
        commands.at_equal_cost(own, METHODS["VDD-VE"], {}, 9)


# -- commands ------------------------------------------------------------------------------------


def test_a_method_from_elsewhere_runs_beside_ours(tmp_path, capsys, sides):
    arguments = ["run", "--task", "sides", "--method", "em", WALKER, "--seeds", "2"]
    arguments += ["--records", str(tmp_path), "--set", *TINY, "max_iter=20"]
    main(arguments)
    table = capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["| EM " + " ".join(TINY), "| Walker"]
    records = Store(tmp_path / "sides").records(sides)
    walkers = [found for found in records if found.row["name"] == "Walker"]
    assert [found.row["seed"] for found in walkers] == [2, 3]
    assert all(found.evaluation.success_rate == 1.0 for found in walkers)
    assert walkers[0].row["diversity"] > 0.3
    main(arguments)
    assert "4 are recorded already" in capsys.readouterr().out


def test_a_search_plays_in_validation_contexts_and_keeps_the_best(tmp_path, monkeypatch, sides):
    candidates = ({}, {"pace": 0.01}, {"pace": 2.0})  # the second never arrives
    method = Method("W", find_method(WALKER).make, candidates=candidates[1:], is_foreign=True)
    monkeypatch.setitem(METHODS, "W", method)
    assert commands.search("sides", ["W"], tmp_path) == []
    records = Store(tmp_path).records(sides)
    assert {found.row["split"] for found in records} == {"validation"}
    assert {found.row["n_contexts"] for found in records} == {2}
    assert commands.read_tuned(tmp_path) == {"W": {"pace": 2.0}}
    assert plan(tuned={"EM": {"n_experts": 3}}).training("EM", 0).estimator.n_experts == 3


def test_only_what_has_candidates_is_searched(tmp_path):
    expected = r"^--method must be one of CD-VE, CTM-VE, VDD-VP, VDD-VE, EM, IMC, got VE\.$"
    with pytest.raises(ValueError, match=expected):
        commands.search("sides", ["VE"], tmp_path)


def test_an_experiment_notes_its_runs_and_prints_its_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        EXPERIMENTS,
        "table2",
        replace(
            EXPERIMENTS["table2"],
            runs=lambda own, seeds: [own.run("EM", seed, exact=SMALL) for seed in seeds],
        ),
    )
    main(["paper", "table2", "--task", "sides", "--seeds", "1", "--records", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "`python -m benchmarks paper table2 --task sides --seeds 1`" in printed
    assert "| EM | " in printed
    (keys,) = Store(tmp_path / "sides").read("tables")["table2"]["rows"].values()
    assert set(keys.values()) == Store(tmp_path / "sides").keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "--task", "nothing"], "error: --task must be one of aligning, "),
        (["table", "--import", "no_module"], "error: no_module cannot be imported (No module "),
        (["run", "--method", "no_module:X"], "error: no_module cannot be imported (No module "),
        (["run", "--method", "pathlib:X"], "error: pathlib:X must be a class, the module "),
        (
            ["run", "--method", "em", "--iterations", "0"],
            "error: --iterations must be at least 1, got 0.",
        ),
        (["run", "--method", "em", "--seeds", "0"], "error: --seeds must be at least 1, got 0."),
        (["paper", "difficulty", "--task", "pushing"], "error: experiment of pushing must be one "),
        (
            ["table", "--task", "avoiding-human"],
            "error: --task must be a task, got 'avoiding-human', a set of demonstrations of "
            "avoiding.",
        ),
        (
            ["run", "--method", "builtins:range"],
            "error: builtins:range must have fit and act, it has no fit and no act.",
        ),
        (["run", "--task", "sides", "--method", "x"], "error: method must be one of vdd, "),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--records", str(tmp_path)])
    assert str(stopped.value).startswith(message)
    assert "\n" not in str(stopped.value)


def test_a_task_that_nobody_has_registered_is_said_to_need_an_import(tmp_path):
    with pytest.raises(SystemExit, match=r"pass --import MODULE, which registers it\.$"):
        main(["run", "--task", "nothing", "--method", "em", "--records", str(tmp_path)])


def test_the_list_of_experiments_has_names_and_titles(capsys):
    main(["paper", "list", "--task", "sides"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "table1      Distillation, and the teachers"
    assert [line.split()[0] for line in lines] == ["table1", "table2", "table3"]


def test_a_task_is_found_by_the_id_of_its_environment(tmp_path):
    command = ["run", "--task", "tests/Sides-v0", "--method", WALKER, "--seeds", "1"]
    main([*command, "--records", str(tmp_path)])
    assert [folder.name for folder in tmp_path.iterdir() if folder.name != "cache"] == ["sides"]
    assert len(load("tests/Sides-v0", tmp_path)) == 1


def test_a_class_with_slots_and_without_a_seed_runs(tmp_path, sides):
    method = "tests.benchmarks.sides:Slotted"
    command = ["run", "--task", "sides", "--method", method, "--seeds", "2"]
    main([*command, "--records", str(tmp_path)])
    records = load("sides", tmp_path)
    assert len({found.row["training"] for found in records}) == 1
    assert [found.row["success_rate"] for found in records] == [1.0, 1.0]


def test_records_are_loaded_from_a_folder_named_by_text(tmp_path):
    command = ["run", "--task", "sides", "--method", WALKER, "--seeds", "1"]
    main([*command, "--records", str(tmp_path)])
    (record,) = load("sides", str(tmp_path))
    assert record.row["name"] == "Walker"


@pytest.mark.slow
def test_a_task_of_a_users_own_runs_in_several_processes(tmp_path, recorded):
    (tmp_path / "my_task.py").write_text(
        "from skvdd.envs import register_task\n"
        "from tests.benchmarks.sides import SPEC\n"
        "register_task(SPEC)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks", "run", "--task", "sides", "--import", "my_task"]
    command += ["--method", WALKER, "--seeds", "1", "--jobs", "2", "--records", str(tmp_path)]
    paths = f"{tmp_path}:{root}"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=root,
        env={
            "PYTHONPATH": paths,
            "SKVDD_CACHE": str(recorded),
            "SKVDD_BENCHMARKS_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| Walker | 1.000 |" in done.stdout
