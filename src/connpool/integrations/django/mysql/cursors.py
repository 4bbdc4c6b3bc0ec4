"""Cursors of PyMySQL's or mysqlclient's, which look at what they send."""

from __future__ import annotations

from functools import cache
from typing import Any

from .. import tracking


@cache
def looking(base: type[Any]) -> type[Any]:
    """Return a subclass of a driver's cursors whose statements are looked at."""

    class Looking(base):  # type: ignore[misc] # a type that is known when it runs
        connection: Any

        _looked = False  # at the text that the driver makes many rows of

        def execute(self, query: Any, args: Any = None) -> Any:
            if not self._looked:
                tracking.look(self.connection, query, "mysql")
            return super().execute(query, args)

        def executemany(self, query: Any, args: Any) -> Any:
            tracking.look(self.connection, query, "mysql")
            self._looked = True
            try:
                return super().executemany(query, args)
            finally:
                self._looked = False

        def callproc(self, *args: Any) -> Any:
            tracking.alter(self.connection)
            return super().callproc(*args)

    Looking.__name__ = base.__name__
    return Looking
