"""What is public is documented completely, what pages show runs, and a broken site is noticed."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import re
import runpy
import textwrap
from functools import reduce
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
SITE = DOCS / "_build" / "html"

PAGES = sorted(
    path
    for path in [*DOCS.rglob("*.rst"), *DOCS.rglob("*.md"), REPOSITORY / "README.md"]
    if not {"_build", "gallery", "generated", "results", "_templates"} & set(path.parts)
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
    modules += ["skvdd.plotting", "skvdd.envs"]
    exported = {name for module in modules for name in importlib.import_module(module).__all__}
    aliases = {"__version__", "EXPERT_COLORS", "Sorting2", "Sorting4", "Sorting6"}
    assert exported - aliases <= documented


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_of_pages_run(path):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testfile(str(path), module_relative=False, optionflags=flags)
    assert failed == 0


def code_blocks(path):
    """Return the Python of a page that is no doctest."""
    text = path.read_text()
    if path.suffix == ".md":
        return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    pattern = r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)"
    return [textwrap.dedent(block) for block in re.findall(pattern, text)]


@pytest.mark.parametrize("path", [p for p in PAGES if code_blocks(p)], ids=lambda path: path.name)
def test_code_of_pages_is_python_and_imports_what_exists(path):
    for block in code_blocks(path):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("skvdd"):
                for alias in node.names:
                    assert hasattr(importlib.import_module(node.module), alias.name)


@pytest.mark.parametrize("name", ["task", "encoder", "teacher", "distiller", "mixture_distiller"])
def test_programs_about_extending_run(name, capsys):
    runpy.run_path(str(DOCS / "extending" / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    found = {
        "task": "behaviors           2  of 2",  # both sides of the post are taken
        "encoder": "SetEncoder() True",  # the loaded policy predicts the same
        "teacher": "0.7",  # modes at -0.75 and 0.75
        "mixture_distiller": "0.5 0.5",  # both modes are as likely
        "distiller": "to the right, at 1.0",  # modes at -1 and 1
    }
    assert found[name] in said


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
