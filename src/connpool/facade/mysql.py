"""PyMySQL and mysqlclient, as the facade sees them.

A transaction without autocommit is opened with BEGIN on a connection in autocommit: one word in place of
SET AUTOCOMMIT=0 before and =1 behind it.

PyMySQL's cursors have their rows in memory, and ask the connection for further sets of rows only if its last
result is theirs still, which after another command it is not.  mysqlclient's ask without looking, so there
all sets are fetched before the connection goes home, and closing a cursor says nothing to it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from .connection import Connection
from .cursor import BufferedCursor, Cursor, Through
from .drivers import Driver
from .link import Link
from .statements import Statement

__all__ = ("MySQLdb", "PyMySQL")

_IN_TRANS, _AUTOCOMMIT = 1, 2
"""Flags of the server's status: https://dev.mysql.com/doc/dev/mysql-server/latest/mysql__com_8h.html"""


class _Procedures:
    """What both drivers' cursors do with procedures."""

    __slots__ = ()

    def callproc(self: Any, procname: str, args: Sequence[Any] = ()) -> Any:
        """Call a procedure; its arguments are user variables, which pin the session."""
        if args:
            with self._link.lock:
                self._link.pin("callproc(): user variables")
        return self._run("callproc", procname, (args,), {}, text="CALL procedure()")


class PyMySQLCursor(_Procedures, Cursor):
    """A cursor of PyMySQL's, buffered or not."""

    __slots__ = ()
    _speak = frozenset(["nextset", "close"])

    max_stmt_length = Through()

    @property
    def lastrowid(self) -> Any:
        """The identity of the row inserted last."""
        return getattr(self._raw, "lastrowid", None)


class MySQLdbCursor(_Procedures, BufferedCursor):
    """A cursor of mysqlclient's."""

    __slots__ = ()

    max_stmt_length = Through()


class MySQLConnection(Connection):
    """What connections of both drivers have in common."""

    __slots__ = ()
    _kept = frozenset(["encoders", "decoders", "cursorclass"])
    _pinning = MappingProxyType(
        {
            "select_db": "USE",
            "set_charset": "set_charset()",
            "set_character_set": "set_character_set()",
            "set_sql_mode": "set_sql_mode()",
            "change_user": "change_user()",
            "query": "query()",
        }
    )

    @property
    def open(self) -> bool:
        """Whether the connection is open, and no transaction or session was lost."""
        return not self._link.closed and self._link.lost is None

    @property
    def encoders(self) -> Any:
        """How values are written: this connection's own."""
        return self._own("encoders")

    @encoders.setter
    def encoders(self, value: Any) -> None:
        self._link.keep("encoders", value)

    @property
    def decoders(self) -> Any:
        """How values are read: this connection's own."""
        return self._own("decoders")

    @decoders.setter
    def decoders(self, value: Any) -> None:
        self._link.keep("decoders", value)

    def _own(self, name: str) -> Any:
        """Return a dictionary that may be changed, in place of the one that real connections have."""
        link = self._link
        if name not in link.kept:
            link.keep(name, dict(link.attribute(name)))
        return link.kept[name]

    def autocommit(self, value: Any) -> None:
        """Switch autocommit; to switch it on commits what is open.  Nothing is sent for it."""
        link = self._link
        with link.lock:
            link.driver.check_kept(link, "autocommit", value)
            if link.real is not None and value and link.autocommit is False:
                link.commit()
            link.autocommit = bool(value)

    def get_autocommit(self) -> bool:
        """Tell whether each statement is a transaction of its own."""
        known = self._link.autocommit
        return bool(self._call("get_autocommit", (), {})) if known is None else known

    def begin(self) -> None:
        """Begin a transaction."""
        link = self._link
        if link.options.pooling == "statement":
            link.refuse('begin(): pooling="statement" allows no transaction of several statements')
        with link.lock:
            real = link.begin("BEGIN")
            try:
                real.query("BEGIN")
            except BaseException as exc:
                link.failed(exc)
                raise
            link.settle()

    def ping(self, reconnect: bool = False) -> None:  # noqa: ARG002 -- the pool reconnects
        """Make a round trip.  It never reconnects: a session that is gone is replaced by the pool."""
        self._call("ping", (False,) if self._link.driver.name == "pymysql" else (), {})

    def insert_id(self) -> Any:
        """Return the identity of the row inserted last, within a transaction."""
        return self._of_the_last("insert_id")

    def affected_rows(self) -> Any:
        """Return how many rows the last statement changed, within a transaction."""
        return self._of_the_last("affected_rows")

    def show_warnings(self) -> Any:
        """Return the warnings of the last statement, within a transaction."""
        return self._of_the_last("show_warnings")

    def warning_count(self) -> Any:
        """Return how many warnings the last statement has left, within a transaction."""
        return self._of_the_last("warning_count")

    def _of_the_last(self, name: str) -> Any:
        link = self._link
        with link.lock:
            if link.real is None:
                link.refuse(f"{name}() asks for the session of the statement before; cursors know it, too")
            return self._call(name, (), {})


class PyMySQLConnection(MySQLConnection):
    """A connection of PyMySQL's."""

    __slots__ = ()
    _cursor = PyMySQLCursor


class MySQLdbConnection(MySQLConnection):
    """A connection of mysqlclient's."""

    __slots__ = ()
    _kept = MySQLConnection._kept | {"converter"}
    _cursor = MySQLdbCursor


class _MySQL(Driver):
    dialect = "mysql"
    with_closes = True
    greets = True
    local: ClassVar[frozenset[str]] = frozenset(["cursorclass"])

    def autocommit_of(self, arguments: Mapping[str, Any]) -> bool | None:
        """Return the argument; it is off if nothing is said, and the server's own if ``None`` is."""
        value = arguments.get("autocommit", False)
        return None if value is None else bool(value)

    def pooled_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Have connections in autocommit, on which transactions are begun."""
        if arguments.get("autocommit", False) is None:
            return arguments
        return {**arguments, "autocommit": True}

    def set_autocommit(self, conn: Any, value: bool) -> None:
        """Switch it, if that is not so already."""
        if bool(conn.get_autocommit()) != value:
            conn.autocommit(value)

    def keep_autocommit(self, link: Link, value: bool) -> None:
        """Note the mode of a link."""
        link.autocommit = value

    def autocommits(self, link: Link, real: Any) -> bool:
        """Tell whether a statement of a link is a transaction of its own."""
        return bool(real.get_autocommit()) if link.autocommit is None else link.autocommit

    def greet(self, link: Link, real: Any) -> None:
        """Switch autocommit on for a link that wants it, on a pool of connections without."""
        if link.autocommit and not real.get_autocommit():
            real.autocommit(True)

    def new_cursor(self, link: Link, real: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a cursor of the class that is asked for, here or by the link."""
        if link.local and not args and not kwargs:
            args = (link.local["cursorclass"],)
        return real.cursor(*args, **kwargs)

    def _begin(self, real: Any) -> None:
        real.query("BEGIN")

    def carry(self, real: Any, changes: Mapping[str, object], unknown: Sequence[str]) -> Sequence[object]:
        """Ask for what is not known, and set all in one statement."""
        cursor = self._plain(real)
        found: Sequence[object] = ()
        if unknown:
            cursor.execute(f"SELECT {', '.join(f'@@SESSION.{name}' for name in unknown)}")
            found = cursor.fetchone()
        if changes:
            names = ", ".join(f"@@SESSION.{name} = %s" for name in changes)
            cursor.execute(f"SET {names}", tuple(changes.values()))
        cursor.close()
        return found

    def _plain(self, real: Any) -> Any:
        return sys.modules[f"{self.module}.cursors"].Cursor(real)


class PyMySQL(_MySQL):
    """PyMySQL."""

    name = "pymysql"
    face = PyMySQLConnection

    def connection_class(self) -> type[Any] | None:
        """Return PyMySQL's."""
        return sys.modules["pymysql"].connections.Connection if "pymysql" in sys.modules else None

    def before(self, link: Link, real: Any, statement: Statement) -> None:
        """Begin, for a link without autocommit on a connection with it, unless the statement does or ends."""
        if link.autocommit is False and not statement.begins and not statement.ends:
            status = real.server_status
            if status & _AUTOCOMMIT and not status & _IN_TRANS:
                self._begin(real)

    def reads_ahead(self, kind: type[Any]) -> bool:
        """Tell whether it is a class of buffered cursors."""
        return not issubclass(kind, sys.modules["pymysql.cursors"].SSCursor)

    def is_live(self, raw: Any) -> bool:
        """Tell whether a cursor reads its rows from the socket."""
        result = raw._result
        return result is not None and bool(result.unbuffered_active)

    def must_hold(self, raw: Any) -> bool:  # noqa: ARG002
        """Tell that unread rows outside of a transaction look as if somebody had left them behind."""
        return True

    def is_exhausted(self, name: str, args: Sequence[Any], result: Any, raw: Any) -> bool:  # noqa: ARG002
        """Tell by the result, whose last row has been read."""
        return not self.is_live(raw)

    def step_at_home(self, raw: Any, name: str, args: Sequence[Any]) -> Any:
        """Take the step: there is nothing more to be read, and so nothing is said."""
        return getattr(raw, name)(*args)

    def close_at_home(self, raw: Any) -> None:
        """Close the cursor, which looks at the connection's last result, and says nothing."""
        raw.close()

    def drop(self, raw: Any) -> None:
        """Leave it to the adapter, which knows of unread rows."""


class MySQLdb(_MySQL):
    """mysqlclient."""

    name = "MySQLdb"
    face = MySQLdbConnection

    def before(self, link: Link, real: Any, statement: Statement) -> None:
        """Begin as for PyMySQL; what statements tell is all that is known of a transaction."""
        if statement.begins:
            link.in_transaction = True
        elif statement.ends:
            link.in_transaction = False
        elif not self.autocommits(link, real) and not link.in_transaction:
            if real.get_autocommit():
                self._begin(real)
            link.in_transaction = True

    def is_live(self, raw: Any) -> bool:
        """Tell whether a cursor reads its rows from the socket."""
        return isinstance(raw, sys.modules["MySQLdb.cursors"].CursorUseResultMixIn)

    def must_hold(self, raw: Any) -> bool:  # noqa: ARG002
        """Tell that the connection does not show what is unread."""
        return True

    def is_exhausted(self, name: str, args: Sequence[Any], result: Any, raw: Any) -> bool:
        """Tell by the rows."""
        if name == "fetchmany":
            wanted: int = args[0] if args else raw.arraysize
            return len(result) < wanted
        return name in ("fetchall", "close") or (name == "fetchone" and result is None)

    def step_at_home(self, raw: Any, name: str, args: Sequence[Any]) -> Any:
        """Answer as at the end of the rows: with them the turn has ended."""
        answers: Mapping[str, object] = {"fetchone": None, "nextset": None, "fetchall": (), "fetchmany": ()}
        if name == "__next__":
            raise StopIteration
        return answers[name] if name in answers else super().step_at_home(raw, name, args)

    def has_more(self, raw: Any) -> bool:
        """Ask for further sets only if there are some: to ask forgets the number of affected rows."""
        more = getattr(raw.connection, "more_results", None)
        return more is None or bool(more())

    def close_at_home(self, raw: Any) -> None:
        """Forget the connection: closing would ask it for further results."""
        raw.connection = None

    def no_rows(self, raw: Any) -> Sequence[Any]:
        """Answer as this driver does: with no rows, once something was executed."""
        if raw is None:
            return super().no_rows(raw)
        return ()
