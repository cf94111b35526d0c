"""The site of these pages: Sphinx, MyST and furo. `make docs` builds it, offline, with warnings as errors."""

import re
import textwrap
from itertools import groupby

from bird import __version__

project = "BIRD"
author = "The BIRD authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "BIRD"
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3

default_role = "code"  # docstrings write `name`, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("ArrayLike", "Floats", "Ints", "NDArray")}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
# Types of torch, numpy and the standard library have no page here, and the build looks nothing up in a network.
nitpick_ignore_regex = [("py:.*", ".*")]


def markdown_to_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`, indented blocks and tables: keep those as they are, escape the rest."""
    blocks = []
    for verbatim, group in groupby(lines, key=lambda line: line.startswith(("    ", "|"))):
        text = "\n".join(group)
        if verbatim:
            blocks += ["", "::", "", textwrap.indent(text, "    "), ""]
        else:
            blocks.append(re.sub(r"(`[^`]*`)|([*_|])", lambda found: found[1] or "\\" + found[2], text))
    lines[:] = [*"\n".join(blocks).split("\n"), ""]


def setup(app):
    app.connect("autodoc-process-docstring", markdown_to_rst)
