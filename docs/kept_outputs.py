"""Build the gallery without running its examples: a Sphinx extension.

Git has the pictures in ``docs/gallery/images`` and ``docs/gallery/outputs.json``: for each example
the hash of its script, and what each of its blocks printed and showed. sphinx-gallery makes the
pages of these and of ``examples/`` in seconds. An example is run only if its script changed;
without ``docs/gallery``, as in ``make gallery``, all of them are.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from sphinx_gallery import gen_rst

KEPT = Path(__file__).parent / "gallery" / "outputs.json"

run_example = gen_rst.execute_script


def hash_of(script: Path) -> str:
    """Return what tells one version of a script from another."""
    return hashlib.sha256(script.read_bytes()).hexdigest()


def kept_outputs() -> dict[str, dict[str, Any]]:
    """Return the hash and the outputs of each example, by the name of its script."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def keep(name: str, sha256: str, outputs: list[str]) -> None:
    """Write down what the blocks of a script put out, line by line for the sake of diffs."""
    kept = kept_outputs()
    lines = [output.strip("\n").splitlines() for output in outputs]
    kept[name] = {"sha256": sha256, "outputs": lines}
    text = json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False)
    KEPT.write_text(text + "\n", encoding="utf-8")


def run_or_replay(
    blocks: Any, variables: dict[str, Any], gallery_conf: Any, file_conf: Any
) -> tuple[list[str], float]:
    """Stand in for sphinx-gallery's `execute_script`: run only what has no kept output."""
    script = Path(variables["src_file"])
    sha256 = hash_of(script)  # before it runs
    kept = kept_outputs().get(script.name)
    if variables["execute_script"] and kept and kept["sha256"] == sha256:
        variables.update(memory_delta=0.0, example_globals={})
        return ["\n".join(["", "", *lines, "", ""]) for lines in kept["outputs"]], 0.0
    outputs, seconds = run_example(blocks, variables, gallery_conf, file_conf)
    if variables["execute_script"]:
        keep(script.name, sha256, outputs)
    return outputs, seconds


def setup(app: Any) -> None:
    """Put the kept outputs between sphinx-gallery and the examples."""
    gen_rst.execute_script = run_or_replay
