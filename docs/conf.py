"""How Sphinx builds these pages: `make docs`. Nothing is fetched; every warning is an error."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the code beside these pages, whatever is installed

from autoprune import __version__  # noqa: E402

project = "autoprune"
author = "autoprune's authors"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx_external_toc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
external_toc_path = "_toc.yml"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# Links by `#heading`, as git hosts have them.
myst_heading_anchors = 4
myst_links_external_new_tab = False

# `name` in a docstring is a link where it names something here, and code in any case.
default_role = "py:obj"
add_module_names = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = False
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"autoprune {release}"
html_show_copyright = False
html_copy_source = False
linkcheck_timeout = 20
linkcheck_anchors = False


class Registry(SphinxDirective):
    """``registry:: autoprune.pruning.criteria.CRITERIA``: its names, and what each one is."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        lines = []
        for key, entry in getattr(importlib.import_module(module), name).items():
            shown = key if isinstance(key, str) else key.__name__.lstrip("_")
            lines += [f"``{shown}``", f"    {_summary(shown, entry)}", ""]
        box = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.arguments[0]), 0, box)
        return box.children


def _summary(name: str, entry: Any) -> str:
    """Return the first paragraph of what an entry's function or class says of itself."""
    made = getattr(entry, "score", None) or getattr(entry, "make", type(entry))
    if not made.__doc__:
        raise ValueError(f"The docstring of {name!r} must say what it is: the reference shows it.")
    words = inspect.cleandoc(made.__doc__).split("\n\n")[0].split()
    return " ".join(words).replace("|", r"\|").replace("*", r"\*")


def lead_to_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to the measurements, which lie beside the benchmarks, lead to their page here."""
    source[0] = source[0].replace("](../benchmarks/RESULTS.md", "](results.md")


class WholeDescriptions:
    """Keeps napoleon from taking what precedes a colon in a field's description for its type."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def before(self, app: Sphinx, what: str, name: str, thing: Any, o: Any, lines: Any) -> None:
        self.lines = list(lines)

    def after(self, app: Sphinx, what: str, name: str, thing: Any, o: Any, lines: Any) -> None:
        if what == "attribute":
            lines[:] = self.lines


def readable(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, of: str
) -> tuple[str, str] | None:
    """Let a signature with defaults that are made anew be read as Python."""
    return signature and (signature.replace("<factory>", "..."), of)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("registry", Registry)
    app.connect("source-read", lead_to_page)
    whole = WholeDescriptions()
    app.connect("autodoc-process-docstring", whole.before, priority=400)
    app.connect("autodoc-process-docstring", whole.after, priority=600)
    app.connect("autodoc-process-signature", readable)
    return {"parallel_read_safe": True}
