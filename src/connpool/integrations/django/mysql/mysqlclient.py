"""mysqlclient's sessions: opened as Django wants them, and begun anew.

mysqlclient has no COM_RESET_CONNECTION.  COM_CHANGE_USER does as much and more: it logs in again, on the
same connection, and rolls back, unlocks, drops temporary tables and forgets variables on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from connpool.adapters.dbapi import DBAPIAdapter
from connpool.reset import Part

_PARTS: Collection[Part] = frozenset({Part.FULL, Part.RESET_CONNECTION})


class MySQLClientAdapter(DBAPIAdapter):
    """Connections of mysqlclient with Django's parameters.

    Args:
        connect: mysqlclient's.
        params: Django's parameters for it.
        say: A statement for each new session; ``None``: there is nothing to say.
    """

    name = "MySQLdb"
    parts: Collection[Part] = _PARTS
    says: Mapping[str, str] = {
        **DBAPIAdapter.says,
        str(Part.FULL): "COM_CHANGE_USER, then what was set at connect",
        str(Part.RESET_CONNECTION): "the same",
    }

    def __init__(self, connect: Callable[..., Any], params: Mapping[str, Any], say: str | None) -> None:
        def opened(**params: Any) -> Any:
            conn = connect(**params)
            if say:
                conn.query(say)
            return conn

        super().__init__(opened, **params)
        self._params = dict(params)
        self._say = say

    def adopt(self, conn: Any) -> object:
        """Note the settings; there is a reset, other than for mysqlclient in general."""
        baseline = super().adopt(conn)
        self.parts = _PARTS
        return baseline

    def send_reset(
        self,
        conn: Any,
        baseline: Any,
        memory: object,  # noqa: ARG002 -- all is in the parameters
        parts: tuple[Part, ...],  # noqa: ARG002 -- both are the same
        limit: float | None,
    ) -> object | None:
        """Begin the session anew, all at once; a transaction that is open is rolled back by it."""
        with self.within(conn, limit):
            self._begin_anew(conn)
        self.restore(conn, baseline, limit)
        return None

    def _begin_anew(self, conn: Any) -> None:
        params = self._params
        charset = params.get("charset") or conn.character_set_name()
        password = params.get("password") or params.get("passwd") or ""
        conn.change_user(params.get("user") or "", password, params.get("database") or params.get("db"))
        conn.set_character_set(charset, params.get("collation") or "")
        if params.get("sql_mode"):
            conn.set_sql_mode(params["sql_mode"])
        for statement in (params.get("init_command"), self._say):
            if statement:
                conn.query(statement)
                conn.store_result()
