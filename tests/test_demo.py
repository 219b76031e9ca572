"""The demo, really run with tiny budgets, and its command line."""

import json
import re
from functools import partial

import matplotlib
import numpy as np
import pytest

import skvdd
from skvdd import DiffusionPolicy, GaussianMoEPolicy, VDDDistiller
from skvdd.__main__ import main
from skvdd.datasets import load_demonstrations
from skvdd.demo import DemoEstimators, default_estimators, run_demo
from skvdd.evaluation import time_action

matplotlib.use("Agg")

POLICIES = ("teacher", "teacher_one_step", "vdd", "em")
FILES = {
    "results.json",
    "trajectories.png",
    "experts.png",
    "teacher.safetensors",
    "vdd.safetensors",
}


def tiny_estimators():
    """Return estimators that train for three iterations."""
    common = {
        "window_size": 2,
        "hidden_size": 8,
        "n_layers": 1,
        "max_iter": 3,
        "batch_size": 32,
        "random_state": 0,
    }
    return DemoEstimators(
        teacher=DiffusionPolicy(n_steps=3, **common),
        vdd=VDDDistiller(n_experts=3, init_iter=3, **common),
        em=GaussianMoEPolicy(n_experts=3, **common),
    )


@pytest.fixture(scope="module", autouse=True)
def short():
    """Measure a few calls and draw a coarse picture; the demo is otherwise as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skvdd.demo.time_action", partial(time_action, n_calls=10))
        patch.setattr("skvdd.demo.GRID_SIZE", 6)
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the demo once; nothing may change the folder."""
    folder = tmp_path_factory.mktemp("run") / "a" / "demo"
    estimators = tiny_estimators()
    results = run_demo(folder, n_episodes=2, progress=False, estimators=estimators)
    return folder, results, estimators


def refuses(message):
    """Expect a ValueError whose whole message is this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# ---------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------


def test_the_folder_holds_what_is_promised_and_nothing_else(demo):
    folder, _, _ = demo
    assert {path.name for path in folder.iterdir()} == FILES


def test_the_results_are_those_of_the_file(demo):
    folder, results, _ = demo
    assert json.loads((folder / "results.json").read_text()) == results


def test_every_policy_has_its_numbers(demo):
    _, results, _ = demo
    for name in POLICIES:
        row = results[name]
        assert row["env_id"] == "skvdd/Avoiding-v0"
        assert row["n_episodes"] == 2
        assert row["base"] == 24
        assert {"entropy_d3il", "entropy_ceiling", "diversity"} < set(row)
        assert 0.0 <= row["success_interval"][0] <= row["success_rate"]
        assert row["action_ms"] > 0.0


def test_the_results_tell_how_they_came_about(demo):
    _, results, _ = demo
    assert results["n_episodes"] == 2
    assert results["random_state"] == 0
    assert list(results["seconds"]) == [
        "train_teacher",
        "train_vdd",
        "train_em",
        "evaluate",
        "time",
        "pictures",
    ]
    assert set(results["versions"]) == {
        "python",
        "skvdd",
        "torch",
        "numpy",
        "scikit-learn",
        "mujoco",
    }
    assert results["versions"]["skvdd"] == skvdd.__version__


def test_the_saved_policies_are_the_trained_ones(demo):
    folder, _, estimators = demo
    states, _, _ = load_demonstrations("avoiding", 1).windows(2)
    for name in ("teacher", "vdd"):
        loaded = skvdd.load(folder / f"{name}.safetensors")
        expected = getattr(estimators, name).predict(states)
        np.testing.assert_array_equal(loaded.predict(states), expected)


def test_the_one_step_teacher_leaves_the_teacher_alone(demo):
    _, _, estimators = demo
    assert estimators.teacher.n_steps == 3


def test_the_pictures_are_pictures(demo):
    folder, _, _ = demo
    for name in ("trajectories.png", "experts.png"):
        height, width, _ = matplotlib.image.imread(folder / name).shape
        assert width > height > 250


def test_a_second_run_replaces_the_first_and_gives_the_same(demo, tmp_path, capsys):
    folder, results, _ = demo
    (tmp_path / "results.json").write_text("old")
    again = run_demo(tmp_path, n_episodes=2, estimators=tiny_estimators())
    for name in POLICIES:
        first, second = ({**r[name], "action_ms": None} for r in (results, again))
        assert first == second
    for name in ("teacher", "vdd"):
        file = f"{name}.safetensors"
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()
    assert json.loads((tmp_path / "results.json").read_text()) == again
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    for title in ("teacher, 3 steps", "teacher, 1 step", "VDD, 3 experts", "EM, 3 experts"):
        assert f"{title}: skvdd/Avoiding-v0, 2 episodes\n" in printed  # the evaluation of each
        assert f"\n  {title} " in printed  # all of them in one table


# ---------------------------------------------------------------------------------------
# Recipe and refusals
# ---------------------------------------------------------------------------------------


def test_the_recipe_is_the_defaults_with_a_window_of_five():
    estimators = default_estimators(n_experts=4, random_state=7)
    assert estimators.vdd.n_experts == estimators.em.n_experts == 4
    for estimator in (estimators.teacher, estimators.vdd, estimators.em):
        changed = {
            name: value
            for name, value in estimator.get_params(deep=False).items()
            if value is not None and value != type(estimator)().get_params(deep=False)[name]
        }
        changed.pop("n_experts", None)
        assert changed == {"window_size": 5, "random_state": 7}


def test_an_output_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "taken"
    path.write_text("")
    with refuses(f"output must be a folder, got {path}, which is a file."):
        run_demo(path)


def test_no_episodes_are_refused_before_a_folder_is_made(tmp_path):
    with refuses("n_episodes must be at least 1, got 0."):
        run_demo(tmp_path / "demo", n_episodes=0)
    assert not (tmp_path / "demo").exists()


def test_a_failed_run_leaves_earlier_results_alone(tmp_path):
    class Broken(GaussianMoEPolicy):
        def act(self, X, *, random_state=None):
            raise RuntimeError("broken")

    (tmp_path / "results.json").write_text("old")
    estimators = tiny_estimators()
    broken = DemoEstimators(
        teacher=estimators.teacher,
        vdd=estimators.vdd,
        em=Broken(**estimators.em.get_params(deep=False)),
    )
    with pytest.raises(RuntimeError, match="broken"):
        run_demo(tmp_path, n_episodes=1, progress=False, estimators=broken)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"


# ---------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Record what the command line would run, and how many threads it asks for."""
    recorded = []
    monkeypatch.setattr("skvdd.demo.run_demo", lambda *a, **k: recorded.append((a, k)))
    monkeypatch.setattr("torch.set_num_threads", lambda n: recorded.append(n))
    return recorded


def test_the_command_passes_its_options_on(calls):
    words = ["demo", "--output", "there", "--seed", "3", "--episodes", "50", "--threads", "2"]
    assert main(words) == 0
    assert calls == [2, (("there",), {"random_state": 3, "n_episodes": 50})]


def test_the_command_has_the_defaults_of_the_function(calls):
    main(["demo"])
    assert calls == [(("demo",), {"random_state": 0, "n_episodes": 200})]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--episodes", "0"],
            "argument --episodes: must be an integer from 1 to 2147483647, got '0'",
        ),
        (
            ["--threads", "many"],
            "argument --threads: must be an integer from 1 to 2147483647, got 'many'",
        ),
        (["--seed", "-1"], "argument --seed: must be an integer from 0 to 4294967295, got '-1'"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(words, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", *words])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"python -m skvdd demo: error: {message}"


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--output", "--seed", "--episodes", "--threads", "results.json"):
        assert option in printed


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([])
    assert exit_info.value.code == 2
    assert "demo" in capsys.readouterr().err


def test_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"skvdd {skvdd.__version__}\n"
