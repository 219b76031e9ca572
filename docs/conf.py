"""Configuration of the Sphinx site; the build needs no network."""

import re
import sys
from html import escape
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from PIL import Image
from sphinx.util import logging

import skvdd

sys.path.insert(0, str(Path(__file__).parent))  # extensions of our own

logger = logging.getLogger(__name__)

project = "skvdd"
author = "The skvdd developers"
copyright = "2026, The skvdd developers"
version = release = skvdd.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "kept_outputs",
    "result_tables",
    "myst_parser",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "results/*", "results_built/*", "api/generated/backreferences"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}

default_role = "py:obj"  # `fit` in a docstring links to the method, if there is one
smartquotes = False  # default="ve" is code

autosummary_generate = True
autodoc_typehints = "none"  # the types stand in the numpydoc sections
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
copybutton_exclude = ".linenos, .gp, .go"

# kept_outputs.py answers in place of an example whose script did not change.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",  # the others start processes, or need a robot
    "run_stale_examples": True,
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "api/generated/backreferences",
    "doc_module": ("skvdd",),
    "capture_repr": (),
    "notebook_extensions": set(),
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": float("inf"),  # seconds say more of a machine than of a script
    "show_signature": False,
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_title = f"skvdd {version}"
html_static_path = ["_static"]
html_css_files = ["skvdd.css"]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "show_prev_next": False,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 5,
    "footer_start": ["copyright"],
    "footer_end": [],
}
ALONE = ("index", "api", "results", "speed", "reliability", "develop", "changelog", "cite")
html_sidebars = {page: [] for page in ALONE}


def skip_what_is_not_ours(app, what, name, obj, skip, options):
    """Leave out members that scikit-learn, Gymnasium or the standard library document."""
    if re.fullmatch(r"set_\w+_request", name):
        return True
    owner = getattr(getattr(obj, "fget", obj), "__module__", None)
    return skip or (isinstance(owner, str) and owner.split(".")[0] != "skvdd")


def mend_types(app, what, name, obj, options, lines):
    """Make types of parameters valid: a continued line, and ``(n_features_in_,)``, a link else."""
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    lines[:] = re.sub(r"\((\w+_),\)", r"(``\1``,)", text).split("\n")


# Formulas become MathML, which every current browser draws: no script and no font to fetch.
def mathml(node, display=False):
    # docutils sets no space around the names of functions and knows \bigl, but not \big.
    source = re.sub(r"\\(log|ln)\b(?!\s*[(_^])", r"\,\\\1\,", node.astext())
    source = re.sub(r"\\(big|Big|bigg|Bigg)(?![a-zA-Z])", r"\\\1l", source)
    # It would set the index of a letter with a bar below the letter.
    source = re.sub(r"\\bar\{(\\?\w+)\}_(\w)", r"\\bar{\1_\2}", source)
    if display and r"\\" in source and r"\begin" not in source:
        source = rf"\begin{{aligned}}{source}\end{{aligned}}"
    try:
        # A norm's bar would stretch to the tallest sum of its line.
        return tex2mathml(source, as_block=display).replace("<mo>‖", '<mo stretchy="false">‖')
    except MathError as error:
        logger.warning("%s in the formula %r", error, source, location=node, type="math")
        return f"<code>{escape(source)}</code>"


def inline_formula(writer, node):
    writer.body.append(mathml(node))
    raise SkipNode


def displayed_formula(writer, node):
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(mathml(node, display=True))
    if node["number"]:
        writer.body.append(f'<span class="eqno">({node["number"]})</span>')
    writer.body.append("</div>\n")
    raise SkipNode


def leave_out_archives(app, docname, source):
    """Offer examples as scripts alone: a zip of one file is no help, and never the same twice."""
    if docname.startswith("gallery/"):
        pattern = r" *\.\. container:: sphx-glr-download sphx-glr-download-zip\n\n.*\n"
        source[0] = re.sub(pattern, "", source[0])


def shrink_pictures(app):
    """Keep pictures of examples with 256 colors, a third of the bytes."""
    for path in Path(app.srcdir, "gallery", "images").rglob("*.png"):
        with Image.open(path) as picture:
            if picture.mode != "P":
                picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def setup(app):
    app.connect("builder-inited", shrink_pictures, priority=900)  # after the examples have run
    app.connect("source-read", leave_out_archives)
    app.connect("autodoc-process-docstring", mend_types, priority=100)
    app.connect("autodoc-skip-member", skip_what_is_not_ours)
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
