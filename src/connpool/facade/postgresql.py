"""psycopg 3 and psycopg2, as the facade sees them.

psycopg's client cursors read from results in memory (``_fetch_pipeline`` speaks only in a pipeline without a
result yet); psycopg2's ask the connection whether it is open, so their rows are fetched before it goes home.
Cursors with a name have their rows in the server, until their transaction ends; WITH HOLD, until they are
closed.  Neither driver is imported here: a connection of its has done that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar

from .connection import Connection
from .cursor import BufferedCursor, Cursor, Through
from .drivers import Driver
from .link import Link

__all__ = ("Psycopg", "Psycopg2", "PsycopgConnection", "PsycopgCursor")


class PsycopgCursor(Cursor):
    """A cursor of psycopg's, in the client or in the server."""

    __slots__ = ()

    row_factory = Through()
    itersize = Through(100)
    format = Through()

    @property
    def adapters(self) -> Any:
        """The types' adapters of this cursor, on whichever connection it is executed."""
        if self._adapters is None:
            self._adapters = self.__getattr__("adapters")
        return self._adapters

    @property
    def closed(self) -> bool:
        """Whether the cursor is closed."""
        return self._closed

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute for each set of parameters, on one connection."""
        self._run("executemany", query, args, kwargs)

    def results(self) -> Iterator[Any]:
        """Go through the sets of rows."""
        for _ in self._read().results():
            yield self

    def set_result(self, index: int) -> Any:
        """Go to a set of rows."""
        self._read().set_result(index)
        return self

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Read rows as they come; the link stays until the last one, or `close` of the iterator."""
        with self._link.held(query) as real:
            yield from self._on(real).stream(query, *args, **kwargs)

    @contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Copy to or from the server; the link stays until the end of the block."""
        with self._link.held(statement) as real, self._on(real).copy(statement, *args, **kwargs) as copy:
            yield copy

    def __del__(self) -> None:
        if getattr(self, "_holds", False) and not self._closed:
            # The server has it still: nobody else may get this session.
            self._link.pinned = self._link.pinned or "a cursor WITH HOLD that was not closed"


class PsycopgConnection(Connection):
    """A connection of psycopg's."""

    __slots__ = ()
    _cursor = PsycopgCursor
    _kept = frozenset(
        [
            *(
                "autocommit",
                "isolation_level",
                "read_only",
                "deferrable",
                "prepare_threshold",
                "prepared_max",
            ),
            *("row_factory", "cursor_factory", "server_cursor_factory"),
        ]
    )
    _pinning = MappingProxyType(
        {
            "add_notify_handler": "a handler of notifications",
            "remove_notify_handler": "a handler of notifications",
            "add_notice_handler": "a handler of notices",
            "remove_notice_handler": "a handler of notices",
        }
    )

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, or its transaction or session was lost."""
        return self._link.closed or self._link.lost is not None

    @property
    def broken(self) -> bool:
        """Whether a transaction or a session was lost."""
        return self._link.lost is not None and not self._link.closed

    @property
    def connection(self) -> Any:
        """This connection: psycopg asks a context for it."""
        return self

    @property
    def adapters(self) -> Any:
        """The types' adapters of this connection, for whichever real one is behind it."""
        link = self._link
        mine = link.local.get("adapters")
        if mine is None:
            theirs = link.attribute("adapters")
            mine = link.local["adapters"] = type(theirs)(theirs)
        return mine

    def execute(self, query: Any, params: Any = None, *, prepare: Any = None, binary: bool = False) -> Any:
        """Execute on a cursor of its own, and return it."""
        return self.cursor(binary=binary).execute(query, params, prepare=prepare)

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[Any]:
        """Begin a transaction, or a savepoint within one; the link stays until the outermost ends."""
        if self._link.options.pooling == "statement":
            self._link.refuse(
                'transaction(): pooling="statement" allows no transaction of several statements'
            )
        with self._link.held() as real, real.transaction(savepoint_name, force_rollback) as transaction:
            yield transaction

    @contextmanager
    def pipeline(self) -> Iterator[Any]:
        """Send statements without waiting for answers; the link stays until the end of the block."""
        with self._link.held() as real, real.pipeline() as pipeline:
            yield pipeline

    def notifies(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Wait for notifications: this needs the session, which is pinned."""
        with self._link.lock:
            self._link.pin("notifies()")
        with self._link.held() as real:
            yield from real.notifies(*args, **kwargs)

    def cancel(self) -> None:
        """Cancel what runs, from another thread.  The real connection is closed when it comes back."""
        self._link.cancel("cancel")

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Cancel what runs, as `cancel`."""
        self._link.cancel("cancel_safe", timeout=timeout)

    def set_autocommit(self, value: bool) -> None:
        """Set `autocommit`."""
        self._link.keep("autocommit", value)

    def set_isolation_level(self, value: Any) -> None:
        """Set `isolation_level`."""
        self._link.keep("isolation_level", value)

    def set_read_only(self, value: bool | None) -> None:
        """Set `read_only`."""
        self._link.keep("read_only", value)

    def set_deferrable(self, value: bool | None) -> None:
        """Set `deferrable`."""
        self._link.keep("deferrable", value)


class _PostgreSQL(Driver):
    dialect = "postgresql"
    follows = False  # the server tells whether a transaction is open

    def carry(self, real: Any, changes: Mapping[str, object], unknown: Sequence[str]) -> Sequence[object]:
        """Read and set in one statement, in which the reading comes first."""
        asked = [f"pg_catalog.current_setting('{name}', true)" for name in unknown]
        asked += [f"pg_catalog.set_config('{name}', %s, false)" for name in changes]
        was = real.autocommit
        if not was:
            real.autocommit = True
        try:
            values = ["" if value is None else str(value) for value in changes.values()]
            row: Sequence[object] = self._ask(real, f"SELECT {', '.join(asked)}", values)
        finally:
            if not was:
                real.autocommit = False
        return row[: len(unknown)]

    def _ask(self, real: Any, query: str, values: list[str]) -> Sequence[object]:
        raise NotImplementedError


class Psycopg(_PostgreSQL):
    """psycopg 3."""

    name = "psycopg"
    face = PsycopgConnection
    with_closes = with_commits = True
    local: ClassVar[frozenset[str]] = frozenset(["row_factory", "cursor_factory", "server_cursor_factory"])

    def connection_class(self) -> type[Any] | None:
        """Return psycopg's."""
        return sys.modules["psycopg"].Connection if "psycopg" in sys.modules else None

    def text(self, query: object) -> str:
        """Return the text of a string, of what `psycopg.sql` has composed, or of a template."""
        if type(query) is str:
            return query
        if hasattr(query, "as_string"):
            text: str = query.as_string(None)
            return text
        if hasattr(query, "strings"):
            return " ? ".join(query.strings)
        return super().text(query)

    def new_cursor(self, link: Link, real: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a cursor as the connection would, with the factories of the link."""
        local = link.local
        if not local:
            return real.cursor(*args, **kwargs)
        raw = _made(real, local, *args, **kwargs)
        if "adapters" in local:
            self.adapt(raw, local["adapters"])
        return raw

    def adapt(self, raw: Any, adapters: Any) -> None:
        """Give a cursor adapters; a loader that is registered later counts for rows that are there, too."""
        own = type(adapters)(adapters)
        own._register_loader_callback = raw.adapters._register_loader_callback
        raw._adapters = own  # there is no public way

    def is_outdated(self, exc: BaseException) -> bool:
        """Recognise "cached plan must not change result type", in whatever language the server says it."""
        if getattr(exc, "sqlstate", None) != "0A000":
            return False
        diagnosis = getattr(exc, "diag", None)
        return getattr(diagnosis, "source_function", None) == "RevalidateCachedQuery"

    def connection_of(self, raw: Any) -> object:
        """Return the real connection of a cursor."""
        return raw.connection

    def reads_ahead(self, kind: type[Any]) -> bool:
        """Tell whether it is a class of cursors without names."""
        return not hasattr(kind, "withhold")

    def is_live(self, raw: Any) -> bool:
        """Tell whether a cursor has a name."""
        return hasattr(raw, "withhold")

    def must_hold(self, raw: Any) -> bool:
        """Tell whether it is one WITH HOLD."""
        return bool(raw.withhold)

    def close_at_home(self, raw: Any) -> None:
        """Close as a client cursor is: a cursor of the server's has ended with its transaction."""
        sys.modules["psycopg"].Cursor.close(raw)

    def _ask(self, real: Any, query: str, values: list[str]) -> Sequence[object]:
        psycopg = sys.modules["psycopg"]
        cursor = psycopg.ClientCursor(real, row_factory=psycopg.rows.tuple_row)
        row: Sequence[object] = cursor.execute(query, values, prepare=False).fetchone()
        return row


def _made(
    real: Any,
    local: dict[str, Any],
    name: str = "",
    *,
    binary: bool = False,
    row_factory: Any = None,
    scrollable: bool | None = None,
    withhold: bool = False,
) -> Any:
    row_factory = row_factory or local.get("row_factory") or real.row_factory
    if name:
        factory = local.get("server_cursor_factory") or real.server_cursor_factory
        raw = factory(real, name=name, row_factory=row_factory, scrollable=scrollable, withhold=withhold)
    else:
        raw = (local.get("cursor_factory") or real.cursor_factory)(real, row_factory=row_factory)
    if binary:
        raw.format = sys.modules["psycopg"].pq.Format.BINARY
    return raw


class Psycopg2Cursor(BufferedCursor):
    """A cursor of psycopg2's."""

    __slots__ = ()

    itersize = Through(2000)

    def copy_expert(self, sql: Any, *args: Any, **kwargs: Any) -> Any:
        """Copy to or from the server."""
        return self._run("copy_expert", sql, args, kwargs)


class Psycopg2Connection(Connection):
    """A connection of psycopg2's."""

    __slots__ = ()
    _cursor = Psycopg2Cursor
    _kept = frozenset(["autocommit", "isolation_level", "readonly", "deferrable", "cursor_factory"])
    _pinning = MappingProxyType(
        {"set_client_encoding": "set_client_encoding()", "poll": "poll()", "lobject": "a large object"}
    )

    @property
    def closed(self) -> int:
        """0 if open, 1 if closed, 2 if a transaction or session was lost: the driver's values."""
        return 1 if self._link.closed else 2 if self._link.lost is not None else 0

    def set_session(
        self,
        isolation_level: Any = None,
        readonly: Any = None,
        deferrable: Any = None,
        autocommit: Any = None,
    ) -> None:
        """Set what is not ``None``."""
        given = {
            "isolation_level": isolation_level,
            "readonly": readonly,
            "deferrable": deferrable,
            "autocommit": autocommit,
        }
        for name, value in given.items():
            if value is not None:
                self._link.keep(name, value)

    def set_isolation_level(self, level: int | None) -> None:
        """Set the level by the driver's numbers, where 0 is autocommit."""
        self._link.keep("autocommit", level == 0)
        if level != 0:
            self._link.keep("isolation_level", level)

    def cancel(self) -> None:
        """Cancel what runs, from another thread.  The real connection is closed when it comes back."""
        self._link.cancel("cancel")


class Psycopg2(_PostgreSQL):
    """psycopg2."""

    name = "psycopg2"
    face = Psycopg2Connection
    local: ClassVar[frozenset[str]] = frozenset(["cursor_factory"])

    def text(self, query: object) -> str:
        """Return the text of a string, or of what `psycopg2.sql` has composed."""
        if type(query) is str or not hasattr(query, "as_string"):
            return super().text(query)
        return _text_of(query)

    def new_cursor(self, link: Link, real: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a cursor as the connection would, with the factory of the link."""
        factory = link.local.get("cursor_factory")
        if factory is not None and len(args) < 2:
            kwargs = {"cursor_factory": factory, **kwargs}
        return real.cursor(*args, **kwargs)

    def is_live(self, raw: Any) -> bool:
        """Tell whether a cursor has a name."""
        return raw.name is not None

    def must_hold(self, raw: Any) -> bool:
        """Tell whether it is one WITH HOLD."""
        return bool(raw.withhold)

    def _ask(self, real: Any, query: str, values: list[str]) -> Sequence[object]:
        cursor = sys.modules["psycopg2"].extensions.cursor(real)
        cursor.execute(query, values)
        row: Sequence[object] = cursor.fetchone()
        cursor.close()
        return row


def _text_of(composed: Any) -> str:
    """Return the text of a composition, without a connection to quote by: literals do not matter here."""
    parts = getattr(composed, "seq", None)
    if parts is not None:
        return "".join(map(_text_of, parts))
    if hasattr(composed, "string"):
        return str(composed.string)
    if hasattr(composed, "strings"):
        return ".".join('"' + name.replace('"', '""') + '"' for name in composed.strings)
    return "%s"
