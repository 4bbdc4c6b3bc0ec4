"""SQLite: a pool for a database in a file.

One in memory goes with its connection, so Django never closes that, and there is nothing to pool.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.sqlite3 import base

from connpool.adapters.sqlite import Connection, SQLiteAdapter

from ..checks import PooledValidation
from ..creation import PooledCreation
from ..registry import Pool
from ..wrapper import PooledWrapper


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
        params.setdefault("factory", Connection)  # which can be watched, should a borrower lose it
        # Not this one, which is a thread's: the pool would keep it for ever.
        opener = base.DatabaseWrapper(dict(self.settings_dict), self.alias)
        opener.get_connection_params()  # it notes what is to be run in each connection
        isolation_level = None if self.settings_dict["AUTOCOMMIT"] else ""

        def connect() -> Any:
            conn = opener.get_new_connection(params)
            conn.isolation_level = isolation_level
            return conn

        return SQLiteAdapter.around(connect)

    def pool_defaults(self) -> dict[str, Any]:
        """Return options that stand where the user's settings say nothing.

        A full reset of SQLite is a new connection, and a session has little that outlives a request.
        """
        return {"reset": "rollback"}

    def server_capacity(self) -> tuple[int, int]:
        """Return zeros: there is no server that could be full."""
        return 0, 0
