"""SQLite: a pool for a database in a file.

One in memory goes with its connection, so Django never closes that, and there is nothing to pool.
"""

from __future__ import annotations

import sqlite3
from functools import cache
from typing import Any

from django.db.backends.sqlite3 import base

from connpool.adapters.sqlite import SQLiteAdapter

from .. import tracking
from ..checks import PooledValidation
from ..creation import PooledCreation
from ..registry import Pool
from ..wrapper import PooledWrapper


class _Cursor(base.SQLiteCursorWrapper):  # type: ignore[misc] # Django has no types
    """Django's, which looks at what it executes."""

    def execute(self, query: Any, params: Any = None) -> Any:
        tracking.look(self.connection, query, "sqlite")
        return super().execute(query, params)

    def executemany(self, query: Any, param_list: Any) -> Any:
        tracking.look(self.connection, query, "sqlite")
        return super().executemany(query, param_list)

    def executescript(self, script: Any) -> Any:
        tracking.look(self.connection, script, "sqlite")
        return super().executescript(script)


class _PlainCursor(sqlite3.Cursor):
    """One that is not Django's: ``connection.connection.execute()`` makes such."""

    def execute(self, *args: Any) -> Any:
        tracking.look(self.connection, args[0], "sqlite")
        return super().execute(*args)

    def executemany(self, *args: Any) -> Any:
        tracking.look(self.connection, args[0], "sqlite")
        return super().executemany(*args)

    def executescript(self, *args: Any) -> Any:
        tracking.look(self.connection, args[0], "sqlite")
        return super().executescript(*args)


class _Looking:
    """Mixed into a connection's class: it knows whether it was altered."""

    def cursor(self, factory: Any = _PlainCursor) -> Any:
        return super().cursor(factory)  # type: ignore[misc] # sqlite3's


for _name in (
    *("create_function", "create_aggregate", "create_window_function", "create_collation"),
    *("set_authorizer", "set_progress_handler", "set_trace_callback", "enable_load_extension"),
):
    if hasattr(sqlite3.Connection, _name):  # some are left out of some builds
        setattr(_Looking, _name, tracking.altering(getattr(sqlite3.Connection, _name)))


@cache
def _looking(base: type[Any]) -> type[Any]:
    """Return a subclass that looks; it can be watched, too, should a borrower lose a connection."""
    return type(base.__name__, (_Looking, base), {})


class DatabaseCreation(PooledCreation, base.DatabaseCreation):  # type: ignore[misc] # Django has no types
    """Django's, without idle connections in the way."""


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):  # type: ignore[misc] # as above
    """Django's, on a pool of connpool's."""

    creation_class = DatabaseCreation
    validation_class = PooledValidation

    @property
    def pool(self) -> Pool | None:
        """The pool of a database in a file; ``None`` for one in memory."""
        return None if self.is_in_memory_db() else super().pool

    def make_adapter(self, params: dict[str, Any]) -> SQLiteAdapter:
        """Return an adapter for connections that are opened by Django's own function."""
        params["factory"] = _looking(params.get("factory") or sqlite3.Connection)
        # Not this one, which is a thread's: the pool would keep it for ever.
        opener = base.DatabaseWrapper(dict(self.settings_dict), self.alias)
        opener.get_connection_params()  # it notes what is to be run in each connection
        isolation_level = None if self.settings_dict["AUTOCOMMIT"] else ""

        def connect() -> Any:
            conn = opener.get_new_connection(params)
            conn.isolation_level = isolation_level
            return conn

        return SQLiteAdapter.around(connect)

    def create_cursor(self, name: str | None = None) -> Any:
        """Make a cursor that understands Django's placeholders."""
        if self._lent is None:
            return super().create_cursor(name)
        return self.connection.cursor(factory=_Cursor)

    def server_capacity(self) -> tuple[int, int]:
        """Return zeros: there is no server that could be full."""
        return 0, 0
