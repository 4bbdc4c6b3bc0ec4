"""PostgreSQL, by psycopg 3.

What Django sets in each new session is part of what its connections are from the start, so that a reset
leaves it as it is, and nothing has to be said again.  The time zone goes into the start-up packet, where
``RESET ALL`` comes back to it; autocommit, the isolation level and the classes of cursors are attributes
of psycopg's.  Only ``assume_role`` takes a statement after each reset, which ends every role.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import IsolationLevel, sql

from connpool.adapters.psycopg import PsycopgAdapter

from ..checks import PooledValidation
from ..creation import PooledCreation
from ..wrapper import PooledWrapper
from . import cursors

_QUESTION = """
    SELECT current_setting('max_connections')::int
             - current_setting('superuser_reserved_connections')::int
             - coalesce(current_setting('reserved_connections', true)::int, 0),
           (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend')
"""


class DjangosPsycopgAdapter(PsycopgAdapter[Any]):
    """psycopg's connections as Django wants them."""

    def __init__(self, isolation_level: Any, params: dict[str, Any]) -> None:
        super().__init__(**params)
        self._isolation_level = isolation_level

    def connect(self, limit: float | None, credentials: Any = None) -> Any:
        conn = super().connect(limit, credentials)
        if self._isolation_level is not None:
            conn.isolation_level = self._isolation_level
        conn.server_cursor_factory = cursors.ServerSideCursor
        return conn


class DatabaseCreation(PooledCreation, base.DatabaseCreation):  # type: ignore[misc] # Django has no types
    """Django's, without idle sessions in the way."""


class DatabaseValidation(PooledValidation):
    """Django's, and what there is to say about the pool."""


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):  # type: ignore[misc] # Django has no types
    """Django's, on a pool of connpool's."""

    creation_class = DatabaseCreation
    validation_class = DatabaseValidation

    def make_adapter(self, params: dict[str, Any]) -> PsycopgAdapter[Any]:
        """Return the adapter for Django's parameters."""
        params["autocommit"] = self.settings_dict["AUTOCOMMIT"]
        if not self.pools_transactions():  # where the facade looks
            params["cursor_factory"] = cursors.looking(params["cursor_factory"])
        if self.timezone_name and self.pool_takes_parameters():
            said = params.get("options") or ""
            params["options"] = f"{said} -c TimeZone={_escaped(self.timezone_name)}".strip()
        return DjangosPsycopgAdapter(self._isolation_level(), params)

    def pool_takes_parameters(self) -> bool:
        """Tell whether start-up parameters reach the server: poolers in between refuse unknown ones."""
        chosen = self.pool_settings()
        return chosen is None or chosen.options.get("behind") is None

    def pool_defaults(self) -> dict[str, Any]:
        """Return options that stand where the user's settings say nothing."""
        defaults = super().pool_defaults()
        role = self.settings_dict["OPTIONS"].get("assume_role")
        if role:
            defaults["on_connect"] = _assuming(role)
        return defaults

    def _isolation_level(self) -> Any:
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        try:
            return None if level is None else IsolationLevel(level)
        except ValueError:
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['OPTIONS']['isolation_level'] = {level!r}: must be one of"
                " psycopg.IsolationLevel"
            ) from None

    def ensure_timezone(self) -> bool:
        """Set the time zone of what is lent; the next connection is of a pool that has it anyway."""
        if self.connection is None:
            return False
        changed: bool = self._configure_timezone(self.connection)
        return changed

    def init_connection_state(self) -> None:
        """See to it that the session is Django's, which it is already, unless somebody has let it slip."""
        if self._lent is None:
            super().init_connection_state()
            return
        BaseDatabaseWrapper.init_connection_state(self)
        if self._lease is None:
            return  # there is no session that could have let it slip
        # The server reports its time zone with each change: this asks nobody.
        if self._configure_timezone(self.connection) and not self.get_autocommit():
            self.connection.commit()

    def _set_autocommit(self, autocommit: bool) -> None:
        # psycopg takes its lock and looks at the state even where nothing changes.
        if self._lent is None or self.connection.autocommit != autocommit:
            super()._set_autocommit(autocommit)

    def create_cursor(self, name: str | None = None) -> Any:
        """Make a cursor; one of the facade's knows the adapters for the time zone from its connections."""
        if self._lent is None or self._lease is not None:
            return super().create_cursor(name)
        if name is None:
            return self.connection.cursor()
        return self.connection.cursor(name, scrollable=False, withhold=self.connection.autocommit)

    def _close(self) -> None:
        PooledWrapper._close(self)

    def server_capacity(self) -> tuple[int, int]:
        """Return how many ordinary sessions the server admits, and how many it has."""
        with self.temporary_connection() as cursor:
            cursor.execute(_QUESTION)
            capacity, used = cursor.fetchone()
        return capacity, used


def _assuming(role: str) -> Callable[[Any], None]:
    def assume(conn: Any) -> None:
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Literal(role)))

    return assume


def _escaped(value: str) -> str:
    """Return a value as ``options`` wants it: it is split at spaces."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
