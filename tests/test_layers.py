"""The layers: a module imports only from lower ones.

    0  errors, reset, options, adapter        what everybody may read
    1  engine                                 no thread, event loop, clock, driver or logging
    2  threads, deadlines, guard, pool, ...   the runtimes
    3  everything else                        public names only; adapters: one third party each

Imports under `if TYPE_CHECKING:` and inside functions count: a layer is about what one has to
know in order to read a module, not about when it is loaded.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src"

LAYERS = (
    (
        *("connpool._version", "connpool.errors", "connpool.stats", "connpool.events", "connpool.advice"),
        *("connpool.behind", "connpool.reset", "connpool.options", "connpool.adapter"),
    ),
    ("connpool.engine",),
    (
        *("connpool.threads", "connpool.tasks", "connpool.borrowers", "connpool.telling"),
        *("connpool.description",),
        *("connpool.deadlines", "connpool.guard", "connpool.leases", "connpool.pool"),
        *("connpool.async_leases", "connpool.async_pool"),
    ),
)
TOP = len(LAYERS)

# What the top layer may see of the rest of the package, besides its own family of modules and
# the names in connpool itself.
PUBLIC = (
    "connpool.errors",
    "connpool.stats",
    "connpool.events",
    "connpool.reset",
    "connpool.options",
    "connpool.adapter",
    "connpool.guard",
    "connpool.leases",
    "connpool.pool",
    "connpool.async_pool",
    "connpool.adapters",
    "connpool.facade",
    "connpool.testing",
)
NOT_PUBLIC = (
    "connpool.engine",
    "connpool.threads",
    "connpool.tasks",
    "connpool.deadlines",
    "connpool.metrics",
    "connpool.integrations",
    "connpool.cli",
)
MAY_ALSO_SEE = {
    "connpool.testing": ("connpool.engine",),  # the simulator is one of its runtimes
    "connpool.__main__": ("connpool.cli",),
}
ONE_THIRD_PARTY = (
    "connpool.adapters",
    "connpool.facade",
    "connpool.metrics",
    "connpool.integrations",
)
ANY_THIRD_PARTY = ("connpool.cli",)

# Why the engine must do without them.
ENGINE_MUST_NOT = {
    "time": "the engine is told what time it is",
    "datetime": "the engine is told what time it is",
    "sched": "the engine is told what time it is",
    "asyncio": "the engine knows no event loop",
    "logging": "the engine returns what has happened; a runtime tells",
    "random": "the engine is handed its random numbers, so that a seed replays a schedule",
    "secrets": "the engine is handed its random numbers, so that a seed replays a schedule",
    "socket": "the engine does no I/O",
    "ssl": "the engine does no I/O",
    "select": "the engine does no I/O",
    "selectors": "the engine does no I/O",
    "subprocess": "the engine does no I/O",
    "sqlite3": "the engine knows no driver",
    "concurrent": "the engine knows no thread",
    "multiprocessing": "the engine knows no process",
    "queue": "the engine never waits",
    "_thread": "the engine knows no thread",
    "threading": "the engine knows no thread; the one lock is in core.py",
    "weakref": "what is watched weakly stands in records.py",
}
CORE = "connpool.engine.core"
EXCEPT = {("connpool.engine.core", "threading"), ("connpool.engine.records", "weakref")}
# Looked up as attributes at use, because gevent replaces them.
LOCK_NAMES = {"Lock", "RLock", "get_ident"}


class Import(NamedTuple):
    target: str
    line: int


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def layer(module: str) -> int:
    return next((n for n, packages in enumerate(LAYERS) if within(module, packages)), TOP)


def imports(module: str, tree: ast.Module, *, is_package: bool) -> Iterator[Import]:
    """Yield every import as a dotted name, `from connpool.pool import X` as connpool.pool.X."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                up = node.level - 1 if is_package else node.level
                base = ".".join([*parts[: len(parts) - up], *([base] if base else [])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)


def broken_rules(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Return one sentence, with its line, for each import of a module that breaks a rule."""
    tree = ast.parse(source)
    found = list(imports(module, tree, is_package=is_package))
    reports = [
        f"{module}:{line}: {complaint}" for target, line in found for complaint in complaints(module, target)
    ]
    if module == CORE:
        reports += [f"{module}:{line}: {text}" for text, line in misuses_of_threading(tree)]
    if within(module, ONE_THIRD_PARTY):
        others = sorted({package for target, _ in found if (package := third_party(target))})
        if len(others) > 1:
            reports.append(f"{module}: at most one third party each, not {' and '.join(others)}")
    return reports


def complaints(module: str, target: str) -> Iterator[str]:
    package = target.partition(".")[0]
    if package == "connpool":
        yield from complaints_about_ours(module, target)
    elif third_party(target):
        if not within(module, ONE_THIRD_PARTY + ANY_THIRD_PARTY):
            yield f"must not import {package}: the core has no dependencies"
    elif within(module, ("connpool.engine",)):
        reason = ENGINE_MUST_NOT.get(package)
        if reason and (module, package) not in EXCEPT:
            yield f"must not import {package}: {reason}"


def complaints_about_ours(module: str, target: str) -> Iterator[str]:
    mine = layer(module)
    if mine < TOP:
        # connpool itself is above everybody, except as the prefix of a module of ours
        if layer(target) > mine:
            yield f"must not import {target}: a module imports only from lower layers"
        elif target.startswith("connpool.async_") and not module.startswith("connpool.async_"):
            yield f"must not import {target}: threads and tasks know nothing of each other"
    elif module != "connpool":
        yield from complaints_about_private_names(module, target)


def complaints_about_private_names(module: str, target: str) -> Iterator[str]:
    family = ".".join(module.split(".")[:2])  # connpool.cli for connpool.cli.demo
    if within(target, (family, *MAY_ALSO_SEE.get(module, ()))):
        return
    direct = target.count(".") <= 1 and not within(target, NOT_PUBLIC)
    if is_private(target) or not (direct or within(target, PUBLIC)):
        yield f"must not import {target}: this layer sees the public API only"


def is_private(target: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in target.split("."))


def third_party(target: str) -> str:
    package = target.partition(".")[0]
    ours = package == "connpool" or package in sys.stdlib_module_names
    return "" if ours else package


def misuses_of_threading(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="threading"):
                yield "must look up threading's names at use: gevent replaces them", node.lineno
            case ast.Attribute(value=ast.Name(id="threading"), attr=name) if name not in LOCK_NAMES:
                yield f"must not use threading.{name}: only the one lock", node.lineno


def source_files() -> list[Path]:
    return sorted(SOURCE.glob("connpool/**/*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_module_imports_only_what_its_layer_allows(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    broken = broken_rules(module_name(path), source, is_package=path.name == "__init__.py")
    assert not broken, "\n" + "\n".join(broken)


def test_there_are_modules_to_look_at() -> None:
    assert source_files()


BAD = [
    ("connpool.errors", "from connpool.engine import core", "lower layers"),
    ("connpool.errors", "import connpool", "lower layers"),
    ("connpool.engine.flows", "import time", "told what time it is"),
    ("connpool.engine.flows", "from time import monotonic", "told what time it is"),
    ("connpool.engine.flows", "def f():\n    import asyncio", "no event loop"),
    ("connpool.engine.core", "import logging", "a runtime tells"),
    ("connpool.engine.upkeep", "import random", "seed"),
    ("connpool.engine.upkeep", "import threading", "the one lock is in core.py"),
    ("connpool.engine.upkeep", "import weakref", "stands in records.py"),
    ("connpool.engine.core", "import threading\nthreading.Thread()", "only the one lock"),
    ("connpool.engine.core", "from threading import RLock", "gevent"),
    ("connpool.engine.core", "import psycopg", "no dependencies"),
    ("connpool.engine.core", "from connpool.pool import ConnectionPool", "lower layers"),
    ("connpool.engine.core", "from ..pool import ConnectionPool", "lower layers"),
    ("connpool.engine.core", "from .. import pool", "lower layers"),
    ("connpool.pool", "from connpool.adapters.psycopg import PsycopgAdapter", "lower layers"),
    ("connpool.pool", "import greenlet", "no dependencies"),
    ("connpool.pool", "from connpool.async_pool import AsyncConnectionPool", "tasks"),
    ("connpool.adapters.psycopg", "from connpool.engine.core import Entry", "public API only"),
    ("connpool.adapters.psycopg", "from connpool.threads import run", "public API only"),
    ("connpool.adapters.psycopg", "from connpool.pool import _take", "public API only"),
    ("connpool.adapters.psycopg", "import connpool.cli", "public API only"),
    ("connpool.adapters.psycopg", "import pymysql\nimport psycopg", "not psycopg and pymysql"),
    ("connpool.cli.demo", "from connpool import engine", "public API only"),
    ("connpool.integrations.sqlalchemy", "from connpool.engine.core import Core", "public API only"),
    ("connpool.integrations.sqlalchemy", "import sqlalchemy\nimport psycopg", "not psycopg and sqlalchemy"),
    ("connpool.testing", "import pytest", "no dependencies"),
    ("connpool.testing", "from connpool.threads import run", "public API only"),
]
GOOD = [
    ("connpool.adapter", "from connpool.errors import PoolError\nimport enum"),
    ("connpool.engine.records", "import weakref"),
    ("connpool.engine.core", "import threading\nlock = threading.RLock()"),
    ("connpool.engine.core", "from connpool.engine.records import Tally"),
    ("connpool.engine.flows", "from . import core"),
    ("connpool.engine", "from .core import Entry"),
    ("connpool.pool", "import time, threading\nfrom connpool.threads import run"),
    ("connpool.async_pool", "import asyncio\nfrom connpool.engine import flows"),
    ("connpool", "from connpool.stats import PoolStats"),
    ("connpool.adapters.psycopg", "import psycopg\nfrom connpool.adapters.dbapi import X"),
    ("connpool.adapters.psycopg", "from connpool import ConnectionPool, errors"),
    ("connpool.metrics.prometheus", "import prometheus_client\nimport connpool"),
    ("connpool.cli.demo", "import rich, typer\nfrom connpool.adapters.sqlite import X"),
    ("connpool.testing", "from connpool.engine.flows import acquire"),
    ("connpool.cli.demo", "from connpool import __version__, testing"),
    ("connpool.__main__", "from connpool.cli import main"),
]


@pytest.mark.parametrize(("module", "source", "reason"), BAD)
def test_a_broken_rule_is_named_with_its_line(module: str, source: str, reason: str) -> None:
    reports = broken_rules(module, source, is_package=module == "connpool.engine")
    assert len(reports) == 1
    assert reports[0].startswith(f"{module}:")
    assert reason in reports[0]


def test_the_line_of_a_broken_rule_is_the_one_of_the_import() -> None:
    (report,) = broken_rules("connpool.engine.flows", '"""Flows."""\n\nimport time\n')
    assert report == "connpool.engine.flows:3: must not import time: " + ENGINE_MUST_NOT["time"]


@pytest.mark.parametrize(("module", "source"), GOOD)
def test_what_the_layers_allow_is_not_reported(module: str, source: str) -> None:
    assert not broken_rules(module, source, is_package=module == "connpool.engine")
