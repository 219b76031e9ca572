"""Make the tables and pictures of the results from the records: a Sphinx extension.

``docs/results`` has the records; ``docs/results_built`` gets a Markdown file for each task, which
``results.md`` includes.
"""

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
BUILT = DOCS / "results_built"


def build_tables(app: Any) -> None:
    """Write the file of each task: its tables, and what has not been measured."""
    sys.path.insert(0, str(DOCS.parent))  # the benchmarks are no part of the package
    from benchmarks.pages import build
    from skvdd.envs import task_names

    build(DOCS / "results", BUILT)
    for task in task_names():
        sections = [path.read_text(encoding="utf-8") for path in tables_of(task)]
        (BUILT / f"{task}.md").write_text(joined(sections), encoding="utf-8")


def tables_of(task: str) -> list[Path]:
    """Return the files of a task's tables, in the order of the paper."""
    return sorted(BUILT.glob(f"{task}-*.md"), key=lambda path: ("-table" not in path.name, path))


def joined(sections: list[str]) -> str:
    """Return the sections that show something, and the titles of those that do not."""
    shown = [text.strip() for text in sections if "\n|" in text or "![" in text]
    empty = [text.splitlines()[0].lstrip("# ") for text in sections if text.strip() not in shown]
    if empty:
        shown.append(f"**Not measured yet:** {'; '.join(empty)}.")
    return "\n\n".join(shown) + "\n"


def setup(app: Any) -> None:
    """Make them before any page is read."""
    app.connect("builder-inited", build_tables)
