"""Which reset policy clears what: observed on the real servers, and written into the documentation.

`CONNPOOL_WRITE_DOCS=1` writes the tables anew; else a table that is not what was observed fails.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import MariaDB, PostgreSQL

from connpool import ConnectionPool
from isolation.leaks import (
    CLEARED,
    LEAKS,
    POSTGRESQL,
    REPLACED,
    SESSION,
    SQLITE,
    Leak,
    mariadb_leaks,
    naive,
    observe,
    postgresql_leaks,
    sqlite_adapter,
)

pytestmark = pytest.mark.server

POLICIES = ("none", "rollback", "full")
GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "choose-a-reset-policy.md"

Provided = tuple[str, tuple[Leak, ...], Callable[[], Any]]


@contextmanager
def _sqlite(path: Path) -> Iterator[Provided]:
    yield "SQLite", SQLITE, lambda: sqlite_adapter(str(path / "leaks.db"))


@pytest.fixture(params=["PostgreSQL", "MariaDB", "SQLite"])
def provided(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Provided]:
    if request.param == "PostgreSQL":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        with postgresql_leaks(server) as adapter:
            yield "PostgreSQL", POSTGRESQL, adapter
    elif request.param == "MariaDB":
        database: MariaDB = request.getfixturevalue("mariadb")
        with mariadb_leaks(database) as (leaks, connect):
            yield "MariaDB", leaks, connect
    else:
        with _sqlite(tmp_path) as found:
            yield found


def observed(server: str, leak: Leak, adapter: Any, policy: str) -> str:
    with ConnectionPool(adapter, max_size=1, reset=policy) as pool:  # type: ignore[arg-type] # from a list
        return observe(pool, leak, SESSION[server])


def test_everything_leaks_through_a_pool_without_a_return_path(provided: Provided) -> None:
    server, leaks, adapter = provided
    for leak in leaks:
        assert observed(server, leak, naive(adapter()), "rollback") == LEAKS, leak.name


def test_full_leaves_nothing_behind(provided: Provided) -> None:
    server, leaks, adapter = provided
    for leak in leaks:
        found = observed(server, leak, adapter(), "full")
        assert found == (REPLACED if server == "SQLite" else CLEARED), leak.name


def test_the_guide_says_what_was_observed(provided: Provided) -> None:
    server, leaks, adapter = provided
    rows = ["| | " + " | ".join(f'`"{policy}"`' for policy in POLICIES) + " |", "|---" * 4 + "|"]
    for leak in leaks:
        found = [observed(server, leak, adapter(), policy) for policy in POLICIES]
        rows.append(f"| {leak.name} | " + " | ".join(found) + " |")
    table = "\n".join(rows)
    text = GUIDE.read_text()
    begin, end = f"<!-- observed: {server} -->\n", "<!-- end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    assert pattern.search(text), f"{GUIDE.name} has no table for {server}"
    if os.environ.get("CONNPOOL_WRITE_DOCS"):
        GUIDE.write_text(pattern.sub(lambda _: f"{begin}{table}\n{end}", text))
    else:
        assert f"{begin}{table}\n{end}" in text, f"observed:\n{table}"
