"""mysqlclient's sessions: opened as Django wants them, and begun anew.

mysqlclient has no COM_RESET_CONNECTION.  COM_CHANGE_USER does as much and more: it logs in again, on the
same connection, and rolls back, unlocks, drops temporary tables and forgets variables on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from connpool.adapters.dbapi import DBAPIAdapter


def make_adapter(connect: Callable[..., Any], params: Mapping[str, Any], say: str | None) -> DBAPIAdapter:
    """Return the adapter for Django's parameters; *say* is a statement for each new session."""
    return DBAPIAdapter(partial(_connect, connect, say), **params)


def make_reset(params: Mapping[str, Any], say: str | None) -> Callable[[Any], None]:
    """Return what makes a session that of a new connection with these parameters."""
    return partial(_begin_anew, dict(params), say)


def _connect(connect: Callable[..., Any], say: str | None, **params: Any) -> Any:
    conn = connect(**params)
    if say:
        conn.query(say)
    return conn


def _begin_anew(params: dict[str, Any], say: str | None, conn: Any) -> None:
    charset = params.get("charset") or conn.character_set_name()
    password = params.get("password") or params.get("passwd") or ""
    conn.change_user(params.get("user") or "", password, params.get("database") or params.get("db"))
    conn.set_character_set(charset, params.get("collation") or "")
    if params.get("sql_mode"):
        conn.set_sql_mode(params["sql_mode"])
    for statement in (params.get("init_command"), say):
        if statement:
            conn.query(statement)
            conn.store_result()
    conn.autocommit(params["autocommit"])
