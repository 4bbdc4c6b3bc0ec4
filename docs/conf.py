"""Sphinx: nothing here needs the network, and every warning is an error in CI."""

from dataclasses import fields
from typing import TypeVar

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.inspect import safe_getattr

import connpool

project = "connpool"
author = "connpool contributors"
copyright = f"2026, {author}"
release = version = connpool.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
root_doc = "index"
exclude_patterns = ["_build", "**/_*.md"]  # the latter are parts of pages

html_theme = "furo"
html_title = f"connpool {connpool.__version__}"

myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
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


def google_style(_app: Sphinx, what: str, name: str, obj: object, _options: object, lines: list[str]) -> None:
    """Read Args, Returns and Raises, as napoleon does, but leave the docstrings of attributes.

    Napoleon takes the first half of a sentence with a colon in it for the attribute's type.
    """
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, Config(), what=what, name=name, obj=obj).lines()


# -- references ----------------------------------------------------------------------------------------

# Where a reader should look for a type that has no entry of its own.
INSTEAD = {
    "connpool.leases.Lease": "connpool.ConnectionPool.connection",
    "connpool.async_leases.Lease": "connpool.AsyncConnectionPool.connection",
    "connpool.options.Default": "connpool.DEFAULT",
    "connpool.metrics.Pool": "connpool.ConnectionPool",
}
# Shown by their names only: a reader of the reference need not know them.
INTERNAL = ("connpool.engine.",)


def other_names(target: str) -> list[str]:
    """Return the names under which the reference may have what a docstring calls otherwise."""
    last = target.rpartition(".")[2]
    names = [INSTEAD[target]] if target in INSTEAD else []
    if last in connpool.__all__:
        names.append(f"connpool.{last}")  # what is public is found by its public name
    if "." not in target:
        # Options, and methods of the pool, are called by their bare names everywhere.
        names += [f"connpool.{owner}.{last}" for owner in ("PoolOptions", "ConnectionPool", "Adapter")]
    return names


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Find what a reference means that Python's own rules do not find."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    for name in other_names(target):
        found = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, contnode)
        if found is not None:
            return found
    return contnode if target.startswith(INTERNAL) or is_type_variable(target) else None


def is_type_variable(target: str) -> bool:
    """Tell a name like ``connpool.pool.C``, which is no thing to look up."""
    module, _, name = target.rpartition(".")
    if not module.startswith("connpool"):
        return False
    return isinstance(safe_getattr(__import__(module, fromlist=["x"]), name, None), TypeVar)


# -- the table of options ------------------------------------------------------------------------------


def rule_of(option: str) -> str:
    """Return an option's rule in the words of its own refusal."""
    try:
        connpool.PoolOptions(**{option: object()})  # type: ignore[arg-type] # that is what it refuses
    except (TypeError, ValueError) as refusal:
        return str(refusal).partition(": must be ")[2]
    raise AssertionError(f"{option} accepts anything: its rule is missing")


def options_table() -> str:
    """Return every option with its default and rule, as the code has them."""
    rows = ["| Option | Default | Must be |", "| --- | --- | --- |"]
    for option in fields(connpool.PoolOptions):
        link = f"[`{option.name}`](#connpool.PoolOptions.{option.name})"
        rows.append(f"| {link} | `{option.default!r}` | {rule_of(option.name)} |")
    return "\n".join(rows)


myst_substitutions = {"options_table": options_table()}


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", google_style)
    app.connect("missing-reference", resolve)
