"""What the demonstration runs on, and what it does there: one request, and the blow half-way."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .. import Adapter, ConnectionPool
from ..adapters.sqlite import SQLiteAdapter
from .embedded import NoServer, find_programs, running_server

C = TypeVar("C")

MAX_CONNECTIONS = 100
"""PostgreSQL's own default: a connection per request shall meet the limit that it meets elsewhere."""


class Unavailable(Exception):
    """The database that was asked for cannot be had; the message says why."""


class Database(Protocol[C]):
    """One database under load."""

    title: str
    """Its name and whereabouts, for the headline."""
    kills_sessions: bool
    """Whether `strike` terminates sessions; else it only has them replaced."""

    def adapter(self) -> Adapter[C]:
        """Return what the pool opens connections with."""

    def connect(self) -> AbstractContextManager[C]:
        """Open a connection of one's own, to be closed when its block ends."""

    def request(self, conn: C) -> None:
        """Do what one request does: some milliseconds of work."""

    def session(self, conn: C) -> int:
        """Return the server's number of a connection's session."""

    def sessions(self) -> int | None:
        """Count the sessions that the server has for us; ``None``: it has none."""

    def rows(self) -> int | None:
        """Count what requests have left behind; ``None``: they leave nothing."""

    def strike(self, pool: ConnectionPool[C]) -> frozenset[int]:
        """Deal the blow; return the sessions that were killed."""


class SQLite:
    """A temporary file: nothing to install, no server, and so no session to kill."""

    kills_sessions = False

    def __init__(self, directory: str) -> None:
        self.title = f"SQLite {sqlite3.sqlite_version}, a temporary file"
        self._path = Path(directory) / "demo.db"
        with closing(sqlite3.connect(self._path)) as conn, conn:
            conn.execute("create table orders (id integer primary key, customer integer, amount integer)")
            rows = ((number * 7919 % 1000, number % 500) for number in range(50_000))
            conn.executemany("insert into orders (customer, amount) values (?, ?)", rows)

    def adapter(self) -> Adapter[sqlite3.Connection]:
        """Return what the pool opens connections with."""
        return SQLiteAdapter(self._path)

    def connect(self) -> AbstractContextManager[sqlite3.Connection]:
        """Open a connection of one's own."""
        return closing(sqlite3.connect(self._path))

    def request(self, conn: sqlite3.Connection) -> None:
        """Read the whole table.

        It writes nothing: SQLite has one writer at a time, and the wait for it, which is not the
        pool's, would drown everything else.
        """
        conn.execute("select customer, sum(amount) from orders where amount % 7 = 3").fetchone()

    def session(self, conn: sqlite3.Connection) -> int:
        """Return something that differs between connections that are open."""
        return id(conn)

    def sessions(self) -> int | None:
        """There are none."""
        return None

    def rows(self) -> int | None:
        """Requests leave nothing."""
        return None

    def strike(self, pool: ConnectionPool[sqlite3.Connection]) -> frozenset[int]:
        """Have every connection replaced, as one would after a change of credentials."""
        pool.evict()
        return frozenset()


def choose(driver: str, stack: ExitStack, note: Callable[[str], None]) -> Database[Any]:
    """Set up the database for *driver*, to be removed by *stack*; *note* takes lines for the user.

    Raises:
        Unavailable: PostgreSQL was asked for by name and cannot be had.
    """
    if driver != "sqlite":
        try:
            from .postgresql import PostgreSQL

            programs = find_programs()
            note("Starting a private PostgreSQL ...")
            server = stack.enter_context(running_server(programs, MAX_CONNECTIONS))
            return stack.enter_context(PostgreSQL.on(server))
        except (NoServer, ImportError) as exc:
            reason = _reason(exc)
            if driver == "postgresql":
                raise Unavailable(f"no PostgreSQL: {reason}") from exc
            note(f"No PostgreSQL here ({reason}): this runs on SQLite.")
    return SQLite(stack.enter_context(tempfile.TemporaryDirectory(prefix="connpool-demo-")))


def _reason(exc: Exception) -> str:
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        return f"{exc.name.partition('.')[0]} is not installed"
    return str(exc).strip().partition("\n")[0]
