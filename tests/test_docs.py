"""What is public is documented completely, what pages show runs, and a broken site is noticed."""

import doctest
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import runpy
import textwrap
from dataclasses import replace
from functools import reduce
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import skvdd.datasets
from skvdd.envs import spec
from skvdd.training.fit import Fit

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
GALLERY = DOCS / "gallery"
SITE = DOCS / "_build" / "html"

NO_PAGES = ("_build", "gallery", "generated", "results", "results_built", "_templates")
PAGES = sorted(
    path
    for path in [*DOCS.rglob("*.rst"), *DOCS.rglob("*.md"), REPOSITORY / "README.md"]
    if not set(NO_PAGES) & set(path.parts)
)

# Checks of numpydoc that would cost more than they give: that there is an extended summary and a
# See Also everywhere (ES01, SA), where line breaks are (GL01-GL03), that one value returned has no
# name and that "self" is explained (RT02, RT03), the order of parameters described together (PR03).
# An example (EX01) is asked of every function and class, not of every method.
IGNORED = {"ES01", "SA01", "SA04", "GL01", "GL02", "GL03", "RT02", "RT03", "PR03"}

# Called by scikit-learn, not by a user: its documentation describes them.
HOOKS = {"setup", "teardown", "on_fit_task_begin", "on_fit_task_end", "of_teacher"}


def public_names():
    """Return the names on the page of the API."""
    names, module = [], ""
    for line in (DOCS / "api.rst").read_text().splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.fullmatch(r"   ([A-Za-z][\w.]*)", line):
            names.append(f"{module}.{found[1]}")
    return names


def resolve(name):
    """Return what a dotted name stands for."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            return reduce(getattr, parts[n:], importlib.import_module(".".join(parts[:n])))
        except ModuleNotFoundError:
            continue
    raise AssertionError(f"{name} is not there")


def own_members(name):
    """Yield the names of the public methods and properties that this library gives a class."""
    for member in dir(resolve(name)):
        if member.startswith("_") or member in HOOKS or re.fullmatch(r"set_\w+_request", member):
            continue
        value = inspect.getattr_static(resolve(name), member)
        function = getattr(value, "fget", getattr(value, "__func__", value))
        if callable(function) and (getattr(function, "__module__", None) or "").startswith("skvdd"):
            yield f"{name}.{member}"


def undocumented_fields(name):
    """Return the fields of a record that its docstring lists neither as parameters nor else."""
    text = inspect.getdoc(resolve(name))
    fields = inspect.signature(resolve(name)).parameters.values()
    named = [
        field.name
        for field in fields
        if field.kind not in (field.VAR_POSITIONAL, field.VAR_KEYWORD)
    ]
    return [field for field in named if not re.search(rf"(?m)^([\w, ]*, )?{field}\b.* :", text)]


@pytest.mark.parametrize("name", public_names())
def test_what_is_public_is_documented(name):
    """Shapes and units are prose; that every parameter and result is described can be checked."""
    validate = pytest.importorskip("numpydoc.validate").validate
    members = list(own_members(name)) if inspect.isclass(resolve(name)) else []
    wrong = []
    for each in [name, *members]:
        for code, message in validate(each)["errors"]:
            if code in IGNORED or (code == "EX01" and each != name):
                continue
            if code == "PR01" and each == name and not members_missing(name):
                continue
            wrong.append(f"{each}: {code} {message}")
    assert wrong == []


def members_missing(name):
    """Say whether a class lacks a description of one of its arguments."""
    return not inspect.isclass(resolve(name)) or bool(undocumented_fields(name))


def short(name):
    return name.rsplit(".", 1)[1]


def test_every_export_is_on_the_page_of_the_api():
    documented = {short(name) for name in public_names()}
    modules = ["skvdd", "skvdd.control", "skvdd.datasets", "skvdd.datasets.readers"]
    modules += ["skvdd.plotting", "skvdd.envs", "skvdd.evaluation", "skvdd.metrics"]
    exported = {name for module in modules for name in importlib.import_module(module).__all__}
    aliases = {"__version__", "EXPERT_COLORS", "Sorting2", "Sorting4", "Sorting6"}
    assert exported - aliases <= documented


# ---------------------------------------------------------------------------------------
# Code on pages
# ---------------------------------------------------------------------------------------


def named(paths):
    """Return parameters of a test, named by the page."""
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.name)


@pytest.fixture
def _no_new_tasks():
    """Forget the tasks that a page registers."""
    tasks, environments = dict(spec._TASKS), dict(gymnasium.registry)
    yield
    for registry, before in ((spec._TASKS, tasks), (gymnasium.registry, environments)):
        registry.clear()
        registry.update(before)


@named([path for path in PAGES if ">>> " in path.read_text()])
@pytest.mark.usefixtures("_no_new_tasks")
def test_examples_of_pages_run(path):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, attempted = doctest.testfile(str(path), module_relative=False, optionflags=flags)
    assert (failed, attempted > 0) == (0, True)


def code_blocks(path):
    """Return the Python of a page that is no doctest."""
    text = path.read_text()
    if path.suffix == ".md":
        return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    pattern = r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)"
    return [textwrap.dedent(block) for block in re.findall(pattern, text)]


# What a block needs that is not here: files, hardware, other programs and networks.
ELSEWHERE = (
    "h5py",
    "read_d3il",
    "Client(",
    "record_episode",
    "TrainingSnapshots",
    "render_mode",
    "while not over",
    "normalizer",
    "FirstAction",
    "load_beso_checkpoint",
    "VDDDistiller.paper",
    'open("policy.safetensors", "rb")',
)


@pytest.fixture(scope="module")
def shown():
    """Return what the pages take for granted: a policy, its student, and what they learned."""
    demos = skvdd.datasets.load_demonstrations("avoiding", 3)
    states, actions, groups = demos.windows(window_size=5)
    small = {"window_size": 5, "hidden_size": 16, "max_iter": 2, "random_state": 0}
    beso = skvdd.DiffusionPolicy(**small).fit(states, actions)
    vdd = skvdd.VDDDistiller(init_iter=2, **small).fit(states, actions, teacher=beso)
    names = {"np": np, "beso": beso, "vdd": vdd, "policy": vdd, "demos": demos}
    names |= {"states": states, "actions": actions, "groups": groups}
    names |= {"held_out_states": states[:20], "held_out_actions": actions[:20]}
    names["wanted_action"] = torch.as_tensor(actions[0])
    return names


@pytest.fixture
def _quickly(monkeypatch, tmp_path):
    """Let fits end after two iterations, episodes after three steps, searches after one fold."""
    evaluate = importlib.import_module("skvdd.evaluation.evaluate")
    train, driver = Fit.train, evaluate.Driver
    plan, load = evaluate.plan_rollouts, skvdd.datasets.load_demonstrations

    def train_briefly(fit, stage):
        return train(fit, replace(stage, max_iter=min(stage.max_iter, 2)))

    def drive_briefly(*args, **options):
        return driver(*args, **options | {"max_episode_steps": 3})

    monkeypatch.setattr(Fit, "train", train_briefly)
    monkeypatch.setattr(evaluate, "Driver", drive_briefly)
    monkeypatch.setattr(evaluate, "plan_rollouts", lambda *args: plan(*args)[:4])
    monkeypatch.setattr(skvdd.datasets, "load_demonstrations", lambda name, n=None: load(name, 3))
    monkeypatch.chdir(tmp_path)


@named([path for path in PAGES if code_blocks(path)])
@pytest.mark.usefixtures("_no_new_tasks", "_quickly")
def test_code_of_pages_runs(path, shown):
    """From top to bottom, in one namespace; blocks that need what is not here are compiled."""
    names = dict(shown)
    for example in doctest.DocTestParser().get_examples(path.read_text()):
        if example.source.startswith(("import", "from")):
            exec(example.source, names)
    for number, block in enumerate(code_blocks(path)):
        code = compile(block, f"{path.name}, block {number}", "exec")
        if not any(mark in block for mark in ELSEWHERE):
            exec(code, names)


@pytest.mark.parametrize("name", ["task", "encoder", "teacher", "distiller", "mixture_distiller"])
def test_programs_about_extending_run(name, capsys):
    runpy.run_path(str(DOCS / "extending" / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    found = {
        "task": "behaviors            2  of 2",  # both sides of the post are taken
        "encoder": "SetEncoder() True",  # the loaded policy predicts the same
        "teacher": "0.7",  # modes at -0.75 and 0.75
        "mixture_distiller": "0.5 0.5",  # both modes are as likely
        "distiller": "to the right, at 1.0",  # modes at -1 and 1
    }
    assert found[name] in said


def test_the_method_of_the_page_on_benchmarks_acts_as_the_nearest_did():
    method = runpy.run_path(str(DOCS / "guide" / "nearest.py"))["Nearest"](window_size=1)
    X, y = np.array([[0.0]] * 5 + [[1.0]] * 5), np.array([[-1.0]] * 5 + [[2.0]] * 5)
    acted = method.fit(X, y).act([[0.1], [0.9]], random_state=np.random.RandomState(0))
    assert acted.tolist() == [[-1.0], [2.0]]


# ---------------------------------------------------------------------------------------
# The gallery and the site
# ---------------------------------------------------------------------------------------


def test_outputs_of_the_gallery_are_those_of_its_examples():
    """`make docs` runs what changed, `make gallery` everything; commit what they write."""
    kept = json.loads((GALLERY / "outputs.json").read_text())
    scripts = (REPOSITORY / "examples").glob("plot_*.py")
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in scripts}
    assert {name: entry["sha256"] for name, entry in kept.items()} == hashes


def test_every_picture_of_the_gallery_is_there_and_shown():
    named = set(re.findall(r"sphx_glr_\w+\.png", (GALLERY / "outputs.json").read_text()))
    assert named == {path.name for path in (GALLERY / "images").glob("*.png")}


def walk():
    """Return docs/walk.py as a module."""
    spec = importlib.util.spec_from_file_location("walk", DOCS / "walk.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_walk_notices_what_is_broken(tmp_path):
    (tmp_path / "index.html").write_text(
        '<p id="here"></p><a href="#here">a</a> <a href="other.html?q=1#there">b</a>'
        '<a href="https://example.org/x">c</a> <a href="gone.html">d</a> <img src="gone.png">'
        '<a href="#gone">e</a> <a href="other.html#gone">f</a>'
    )
    (tmp_path / "other.html").write_text('<p id="there"></p>')
    assert list(walk().broken_links(tmp_path)) == [
        "index.html: gone.html does not exist",
        "index.html: gone.png does not exist",
        "index.html: #gone has no such fragment",
        "index.html: other.html#gone has no such fragment",
    ]


@pytest.mark.skipif(walk().chromium() is None, reason="Chromium is not installed")
def test_the_walk_hears_what_a_page_says(tmp_path):
    (tmp_path / "page.html").write_text("<script>console.error('broken'); nothing();</script>")
    html, said = walk().opened(walk().chromium(), (tmp_path / "page.html").as_uri())
    assert "<script>" in html
    assert ["broken" in said[0], "nothing is not defined" in said[1]] == [True, True]


@pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site is not built")
def test_the_built_site_has_no_broken_link():
    """`make docs` opens every page in Chromium besides."""
    assert list(walk().broken_links(SITE)) == []
