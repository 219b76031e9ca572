"""Tables and pages: from records alone, and none hides what its rows cost."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import commands, pages
from benchmarks.experiments import EXPERIMENTS
from benchmarks.measured import MEASUREMENTS
from benchmarks.records import Record, Store, compacted
from benchmarks.tables import Column, Table, by_name
from skvdd.envs import get_task, task_names
from tests.benchmarks.test_records import row
from tests.benchmarks.test_summary import evaluation


def record(name="EM", seed=2, rate=0.5, **values):
    """A record of four contexts, of whose rollouts a share succeeds at either side."""
    contexts = np.repeat(np.arange(4), 4)
    successes = np.tile(np.arange(4) < 4 * rate, 4)
    found = evaluation(successes, contexts, ("left", "right") * 8)
    found = replace(found, scores={"success": replace(found.score, score=get_task("sides").score)})
    told = {"name": name, "seed": seed, "split": "test", "budget": "full", "setting": name}
    told |= {"n_contexts": 4, "n_episodes": 16, "iterations": 100, "seconds": 10.0, "clock": "cpu"}
    told |= {"demonstrations": "sides", "n_demonstrations": 10, "demonstrator_version": "7"}
    told |= {"commit": "0123456789", "training": name}
    return Record(row(f"{name}{seed}", **{**told, **values}), get_task("sides"), compacted(found))


def kept(folder, *records):
    for one in records:
        Store(folder).add(one.row, one.outcomes, {})


def test_a_table_says_how_much_more_some_rows_cost():
    alike = {"EM": [record("EM")], "VE": [record("VE", iterations=100, seconds=11.0)]}
    assert "Rows differ" not in Table(get_task("sides"), alike).caption()
    unequal = {"EM": [record("EM")], "VE": [record("VE", iterations=400, seconds=31.0)]}
    table = Table(get_task("sides"), unequal)
    assert (
        "Rows differ in iterations (100 to 400) and seconds (10 to 31), all trainings of a method "
        "together, its teacher's too." in table.caption()
    )
    for shown in (table, Table(get_task("sides"), alike)):
        header = shown.markdown().splitlines()[0]
        assert "| iterations | seconds | seeds |" in header


def test_a_caption_says_where_from_and_how_sure():
    rows = {"EM": [record(), record(seed=3)], "VE": [record("VE")]}
    assert Table(get_task("sides"), rows, "EM").caption() == (
        "Rollouts of a seed: 4 in each of 4 contexts of the test list. Cells: mean ± standard "
        "deviation over seeds [95 % interval over contexts (bootstrap)]; differences ± standard "
        "error over contexts and seeds, paired. Seconds are of the processor in all threads. "
        "Demonstrations: 10 of 'sides', version 7. Measured at 0123456789."
    )


def test_seconds_have_one_unit_and_a_caption_says_what_clock_they_are_of():
    rows = {"EM": [record()], "Mine": [record("Mine", clock="wall", seconds=2.4)]}
    table = Table(get_task("sides"), rows)
    clocks = "Seconds are of the processor in all threads (EM); of the wall clock (Mine)."
    assert clocks in table.caption()
    assert table.markdown().splitlines()[3].endswith(" | 2 | 1 |")


def test_a_table_compares_rows_with_one_of_them():
    rows = {"EM": [record(rate=0.25)], "VDD": [record("VDD", rate=0.75)]}
    table = Table(get_task("sides"), rows, against="EM")
    header, _, em, vdd = table.markdown().splitlines()
    assert header.endswith("| success rate minus EM | diversity minus EM |")
    assert "| entropy, D3IL | if perfectly diverse | diversity |" in header
    assert em.endswith("|  |  |")
    assert "| +0.500 ± 0.000 |" in vdd


def test_a_row_alone_is_compared_with_none():
    table = Table(get_task("sides"), {"EM": [record()]}, against="EM")
    assert "minus" not in table.markdown()
    assert "differences" not in table.caption()


def test_published_figures_stand_beside_ours():
    column = Column("paper", {"EM": 0.65})
    table = Table(get_task("sides"), {"EM": [record()]}, published=[column])
    assert "| paper |" in table.markdown()
    assert "| 0.65 |" in table.markdown()


def test_figures_of_the_paper_stand_beside_what_it_has_measured():
    columns = {
        name: [set(column.figures) for column in EXPERIMENTS[name].published(get_task("aligning"))]
        for name in ("table2", "table5", "budgets")
    }
    assert {"EM", "VDD-VE"} < columns["table2"][0]
    assert columns["table5"][0] == {"VE-16", "VE-32", "VE-64"}
    assert columns["budgets"] == []
    assert EXPERIMENTS["table2"].published(get_task("sides")) == []


def test_runs_of_one_name_and_different_settings_are_not_averaged():
    short, long = record(setting="a"), record(seed=3, setting="b", iterations=200)
    other = record(seed=4, setting="c0ffee00", iterations=200)
    assert list(by_name([record(), record(seed=3)])) == ["EM"]
    assert list(by_name([short, long])) == ["EM, 100 iterations", "EM, 200 iterations"]
    long_ones = [f"EM, 200 iterations, setting {setting}" for setting in ("b", "c0ffee")]
    assert list(by_name([short, long, other])) == ["EM, 100 iterations", *long_ones]
    same = [record(setting="a"), record(seed=3, setting="b")]
    assert list(by_name(same)) == ["EM, setting a", "EM, setting b"]


def test_rows_of_one_name_are_told_apart_by_what_they_learned_from():
    few = record("NN", setting="a", n_demonstrations=40)
    many = record("NN", setting="b", n_demonstrations=100)
    other = record("NN", setting="c", n_demonstrations=100, demonstrations="others")
    assert list(by_name([few, many])) == ["NN, 40 demonstrations", "NN, 100 demonstrations"]
    assert list(by_name([few, many, other])) == [
        "NN, 40 demonstrations, of 'sides'",
        "NN, 100 demonstrations, of 'sides'",
        "NN, 100 demonstrations, of 'others'",
    ]


def test_rows_and_the_one_compared_with_are_found_by_name_or_method(tmp_path):
    few = record("IMC", 2, setting="a", n_demonstrations=40)
    many = record("IMC", 3, setting="b", n_demonstrations=100)
    kept(tmp_path, few, many, record())
    both = ["IMC, 40 demonstrations", "IMC, 100 demonstrations"]
    table = commands.table("sides", tmp_path, rows=["imc", "em"], against=both[1])
    assert (list(table.rows), table.against) == ([*both, "EM"], both[1])
    assert list(commands.table("sides", tmp_path, rows=both[:1]).rows) == both[:1]
    expected = (
        r"^--against must be one of 'IMC, 40 demonstrations', 'IMC, 100 demonstrations', got 'imc'"
    )
    with pytest.raises(ValueError, match=rf"{expected}\.$"):
        commands.table("sides", tmp_path, against="imc")


def test_the_table_of_a_task_is_of_one_split_and_budget(tmp_path):
    kept(
        tmp_path,
        record(),
        record(seed=3, budget="quick"),
        record("VDD-VE", seed=2, rate=1.0),
        record("IMC", seed=4, split="validation"),
    )
    table = commands.table("sides", tmp_path, against="vdd")
    assert (list(table.rows), table.against) == (["EM", "VDD-VE"], "VDD-VE")
    assert list(commands.table("sides", tmp_path, budget="quick").rows) == ["EM"]
    assert list(commands.table("sides", tmp_path, rows=["VDD-VE"]).rows) == ["VDD-VE"]
    with pytest.raises(ValueError, match=r"^--rows must be of 'EM', 'VDD-VE', got 'IMC'\.$"):
        commands.table("sides", tmp_path, rows=["IMC"])
    with pytest.raises(ValueError, match=r"^--against must be one of 'EM', 'VDD-VE', got 'x'\.$"):
        commands.table("sides", tmp_path, against="x")


# -- pages ---------------------------------------------------------------------------------------


def test_pages_have_every_table_that_a_task_can_have(tmp_path):
    folder, output = tmp_path / "records", tmp_path / "built"
    kept(folder / "sides", record(), record("VDD-VE", rate=0.75))
    shown = {"EM": {"2": "EM2", "3": "EM3"}, "VDD-VE": {"2": "VDD-VE2"}}
    Store(folder / "sides").show("table2", {"command": "python -m x", "rows": shown})
    pages.build(folder, output)
    text = (output / "sides-table2.md").read_text()
    assert text.startswith("## Mixtures of experts, learned and distilled\n\n`python -m x`\n\n")
    assert "Not recorded yet: EM (seed 3)." in text
    assert "](sides-table2.png)" in text
    assert "| EM | 0.500" in text
    assert (output / "sides-table2.png").is_file()
    for task in task_names():
        for name in commands.available(task):
            assert (output / f"{task}-{name}.md").is_file()
    nothing = "## Distillation, and the teachers\n\nNothing has been recorded yet.\n"
    assert (output / "sides-table1.md").read_text() == nothing


@pytest.mark.parametrize("kind", ["dots", "line", "groups"])
def test_every_kind_of_picture_is_drawn(tmp_path, kind):
    names = {"dots": ["EM", "VE"], "line": ["1 experts", "2 experts"]}
    names["groups"] = ["EM, clean", "VE, clean", "EM, hard"]
    rows = {name: [record(name)] for name in names[kind]}
    pages.draw(Table(get_task("sides"), rows), kind, "title", tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_what_was_measured_is_reported(tmp_path):
    found = {"processor": "P", "torch": "2", "commit": "c"}
    times = {"VE 1": 1.0, "VDD 1": 0.5}
    (tmp_path / "table3.json").write_text(json.dumps({"rows": times, **found}))
    text = MEASUREMENTS["table3"].report(tmp_path / "table3.json", tmp_path / "none.png")
    assert "| VE | 1 | 1.00 | 4.03 |" in text
    assert text.startswith("One thread of P, torch 2, at c.\n\n")


def test_paths_are_kept_and_drawn(tmp_path, monkeypatch):
    from skvdd import VDDDistiller
    from tests.estimators import SMALL, small_teacher

    class Student:
        def training(self, method, seed, parameters):
            n = parameters["n_experts"]
            teacher = small_teacher(window_size=5)
            student = VDDDistiller(teacher, n_experts=n, init_iter=2, window_size=5, **SMALL)
            from skvdd.datasets import load_demonstrations

            rows, actions, _ = load_demonstrations("avoiding", 1).windows(5)
            return SimpleNamespace(policy=lambda: (student.fit(rows, actions), None))

    from benchmarks import measured

    monkeypatch.setattr(measured, "DRAWN_ROLLOUTS", 2)
    monkeypatch.setattr(measured, "replace", lambda plan, tuned: Student())
    plan = SimpleNamespace(task=get_task("avoiding"))
    measured.measure_paths(plan, tmp_path / "figure4.npz")
    measured.report_paths(tmp_path / "figure4.npz", tmp_path / "figure4.png")
    assert (tmp_path / "figure4.png").is_file()


def test_experiments_are_offered_for_the_tasks_that_have_them():
    of_all = ["table1", "table2", "table3"]
    assert list(commands.available("sides")) == of_all
    assert commands.available("sides")["table3"] == MEASUREMENTS["table3"].title
    assert set(commands.available("aligning")) == {*of_all, "table5", "budgets"}
    assert set(commands.available("avoiding")) == {*EXPERIMENTS, *MEASUREMENTS} - {"budgets"}
    with pytest.raises(
        ValueError, match=r"^experiment of pushing must be one of table1, .* got 'd"
    ):
        commands.paper(["difficulty"], "pushing", None)
