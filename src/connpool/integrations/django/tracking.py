"""Which sessions were altered: read from the statements, as the driver's cursors send them.

In session mode Django has the driver's own connection.  Its cursors are of classes that look at each text
on its way, so also what is executed past Django, on ``connection.connection``, is seen.  What was not
recognised as harmless counts as altering; `connpool.facade.statements` says what is recognised.

The mark stands in the connection object, where the cursor finds it without knowing of any wrapper.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from connpool.facade.statements import Dialect, recognise

_MARK: Final = "connpool_altered"

# SQLite's functions leave nothing in a connection, and Django registers many of its own.
_ROWS: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "VALUES"})


def begin(conn: Any) -> None:
    """Forget what was done to a connection before it was borrowed."""
    vars(conn)[_MARK] = False  # past psycopg's __setattr__ in a pool, which would look at all settings


def altered(conn: Any) -> bool:
    """Tell whether a statement has altered the session, or may have."""
    return bool(vars(conn).get(_MARK, True))


def alter(conn: Any) -> None:
    """Note that something has."""
    vars(conn)[_MARK] = True


def look(conn: Any, query: object, dialect: Dialect) -> None:
    """Look at a statement that is about to be sent."""
    if isinstance(query, str):
        statement = recognise(query, dialect)
        if statement.harmless:
            return
        if dialect == "sqlite" and statement.verb in _ROWS and not statement.alters:
            return
    vars(conn)[_MARK] = True


def altering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a connection's method that notes that it alters."""

    @functools.wraps(method)
    def call(conn: Any, *args: Any, **kwargs: Any) -> Any:
        alter(conn)
        return method(conn, *args, **kwargs)

    return call
