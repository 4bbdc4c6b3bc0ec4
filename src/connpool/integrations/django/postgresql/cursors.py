"""Django's cursors for psycopg, which look at what they send."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from django.db.backends.postgresql import base

from ..tracking import look


class _Looking:
    """Mixed into a cursor of psycopg's, in front of it."""

    connection: Any

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        look(self.connection, query, "postgresql")
        return super().execute(query, *args, **kwargs)  # type: ignore[misc] # psycopg's

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        look(self.connection, query, "postgresql")
        super().executemany(query, *args, **kwargs)  # type: ignore[misc] # psycopg's

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        look(self.connection, query, "postgresql")
        rows: Iterator[Any] = super().stream(query, *args, **kwargs)  # type: ignore[misc] # psycopg's
        return rows

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        look(self.connection, statement, "postgresql")
        return super().copy(statement, *args, **kwargs)  # type: ignore[misc] # psycopg's


@cache
def looking(base: type[Any]) -> type[Any]:
    """Return a subclass of a cursor's class, Django's or a user's, that looks at what it sends."""
    return type(base.__name__, (_Looking, base), {})


class ServerSideCursor(base.ServerSideCursor):  # type: ignore[misc] # as above
    """Django's, with its rows in the server; one WITH HOLD may stay there when it is forgotten."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Declare the cursor."""
        look(self.connection, None if self.withhold else query, "postgresql")
        return super().execute(query, *args, **kwargs)
