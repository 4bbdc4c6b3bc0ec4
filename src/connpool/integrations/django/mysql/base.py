"""MySQL and MariaDB, by mysqlclient or PyMySQL; `driver` says by which.

The isolation level, which Django sets in each new session, is set with the connect here, so that a reset
comes back to it and nothing has to be said again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from importlib import import_module
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.functional import cached_property

from connpool import Adapter

from ..checks import PooledValidation
from ..creation import PooledCreation
from ..options import Settings
from ..wrapper import PooledWrapper
from .cursors import looking
from .driver import import_backend
from .mysqlclient import MySQLClientAdapter

base: Any = import_backend()
ON_PYMYSQL: bool = base.Database.__name__ == "pymysql"
_cursors: Any = import_module(f"{base.Database.__name__}.cursors")

_server_data: dict[Hashable, dict[str, Any]] = {}


class DatabaseCreation(PooledCreation, base.DatabaseCreation):  # type: ignore[misc] # Django has no types
    """Django's, without idle sessions in the way."""


class DatabaseValidation(PooledValidation, base.DatabaseValidation):  # type: ignore[misc] # as above
    """Django's, and what there is to say about the pool."""


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):  # type: ignore[misc] # as above
    """Django's, on a pool of connpool's."""

    creation_class = DatabaseCreation
    validation_class = DatabaseValidation

    # -- the pool

    def _complete_params(self) -> tuple[dict[str, Any], str | None]:
        """Return the driver's parameters, and the statement that Django begins each session with."""
        params = self.get_connection_params()
        params["autocommit"] = self.settings_dict["AUTOCOMMIT"]
        if not self.pools_transactions():  # where the facade looks
            params["cursorclass"] = looking(params.get("cursorclass") or _cursors.Cursor)
        level = self.isolation_level
        return params, f"SET SESSION TRANSACTION ISOLATION LEVEL {level.upper()}" if level else None

    def make_adapter(self, params: dict[str, Any]) -> Adapter[Any]:
        """Return the adapter for Django's parameters."""
        params, say = self._complete_params()
        if not ON_PYMYSQL:
            return MySQLClientAdapter(base.Database.connect, params, say)
        from connpool.adapters.pymysql import PyMySQLAdapter

        if say and not params.get("init_command"):
            params["init_command"] = say
        return PyMySQLAdapter(**params)

    def pool_defaults(self) -> dict[str, Any]:
        """Return options that stand where the user's settings say nothing."""
        defaults = super().pool_defaults()
        params, say = self._complete_params()
        if ON_PYMYSQL and say and params.get("init_command"):
            defaults["on_connect"] = _saying(say)  # there is one place for one statement
        return defaults

    def pool_options(self, chosen: Settings) -> dict[str, Any]:
        """Return the options of the pool; a full reset of mysqlclient's needs the password."""
        options = super().pool_options(chosen)
        if not ON_PYMYSQL and options["reset"] in ("full", "tracked") and options.get("credentials"):
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['OPTIONS']['pool']: with mysqlclient a full reset logs in again,"
                ' with the password of the settings; with credentials= use PyMySQL, or reset="rollback"'
            )
        return options

    # -- what Django asks of each connection

    def init_connection_state(self) -> None:
        """See to it that the session is Django's, which it is already."""
        if self._lent is None:
            super().init_connection_state()
            return
        BaseDatabaseWrapper.init_connection_state(self)
        if self.features.is_sql_auto_is_null_enabled:  # it was MySQL's default, long ago
            with self.cursor() as cursor:
                cursor.execute("SET SQL_AUTO_IS_NULL = 0")

    @cached_property  # type: ignore[untyped-decorator] # Django has no types
    def mysql_server_data(self) -> dict[str, Any]:
        """What Django wants to know of the server: asked once for each pool, not by each thread."""
        key = self._pool_key()
        if key not in _server_data or self.pool is None:
            _server_data[key] = base.DatabaseWrapper.mysql_server_data.func(self)
        known: dict[str, Any] = _server_data[key]
        return known

    def _set_autocommit(self, autocommit: bool) -> None:
        if self._lent is None or bool(self.connection.get_autocommit()) != autocommit:
            super()._set_autocommit(autocommit)

    def server_capacity(self) -> tuple[int, int]:
        """Return how many ordinary sessions the server admits, and how many it has."""
        with self.temporary_connection() as cursor:
            cursor.execute("SELECT @@global.max_connections")
            ((capacity,),) = cursor.fetchall()
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
            ((_, used),) = cursor.fetchall()
        return int(capacity), int(used)


def _saying(statement: str) -> Callable[[Any], None]:
    def say(conn: Any) -> None:
        with conn.cursor() as cursor:
            cursor.execute(statement)

    return say
