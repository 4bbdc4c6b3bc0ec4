"""Sphinx: nothing here needs the network, and every warning is an error in CI."""

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

from connpool._version import __version__

project = "connpool"
author = "connpool contributors"
copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
root_doc = "index"
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"connpool {__version__}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# `name` in a docstring links where it names something of ours, and is code otherwise.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"

# Inventories are fetched from the network: there is none, so that the pages build anywhere. Other
# projects are linked by their address.
intersphinx_mapping: dict[str, tuple[str, str | None]] = {}

# Without inventories only our own names can be checked. A reference to any of them must lead
# somewhere; everybody else's are let be.
nitpick_ignore_regex = [(r"py:.*", r"(?!connpool\b).*")]


def google_style(
    _app: Sphinx, what: str, name: str, obj: object, _options: object, lines: list[str]
) -> None:
    """Read Args, Returns and Raises, as napoleon does, but leave the docstrings of attributes.

    Napoleon takes the first half of a sentence with a colon in it for the attribute's type.
    """
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, Config(), what=what, name=name, obj=obj).lines()


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", google_style)
