"""What the facade needs to know about a driver, beyond what its adapter tells the pool."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from connpool.errors import PoolMisuse

from .connection import Connection
from .cursor import BufferedCursor
from .errors import closed_error
from .statements import KNOWN, Dialect, Statement

if TYPE_CHECKING:
    from .link import Link

__all__ = ("Driver",)


class Driver:
    """A DB-API driver of which nothing is known: what PEP 249 says, and no more.

    Its rows are fetched before a connection goes home, and a transaction is what statements tell.
    """

    name: ClassVar[str] = "DB-API"
    dialect: ClassVar[Dialect] = "unknown"
    face: ClassVar[type[Connection]]

    with_closes: ClassVar[bool] = False
    """Whether ``with conn:`` closes the connection at its end."""
    with_commits: ClassVar[bool] = False
    """Whether it commits before it closes."""
    greets: ClassVar[bool] = False
    """Whether `greet` has something to do."""
    follows: ClassVar[bool] = True
    """Whether `before` has something to do."""
    local: ClassVar[frozenset[str]] = frozenset()
    """Attributes that belong to the link, and that no real connection needs to know."""

    def __init__(self, module: str) -> None:
        self.module = module
        """The driver's module, by its name."""
        self.known = KNOWN[self.dialect]
        """What statements do, by their texts."""
        self.in_memory: set[type[Any]] = set()
        """Classes of cursors that are known to have their rows in memory once they are executed."""

    # -- errors --------------------------------------------------------------------------------------

    def error_class(self, name: str) -> type[Exception]:
        """Return one of PEP 249's exceptions."""
        found = getattr(sys.modules.get(self.module), name, None)
        return found if isinstance(found, type) and issubclass(found, Exception) else PoolMisuse

    def error(self, name: str, text: str) -> Exception:
        """Make one of PEP 249's exceptions."""
        return self.error_class(name)(text)

    def closed(self, text: str) -> Exception:
        """Make the error for the use of what is closed."""
        return closed_error(self.module, text)

    # -- connecting ----------------------------------------------------------------------------------

    def autocommit_of(self, arguments: Mapping[str, Any]) -> bool | None:  # noqa: ARG002
        """Return the mode that the arguments of ``connect`` ask for; ``None``: the connection tells."""
        return None

    def pooled_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments for connections that are shared by transactions."""
        return arguments

    def connection_class(self) -> type[Any] | None:
        """Return the class of the driver's connections, if that is known before one is made."""
        return None

    # -- autocommit ----------------------------------------------------------------------------------

    def set_autocommit(self, conn: Any, value: bool) -> None:
        """Switch a real connection's autocommit, if that is not so already; may send something."""
        if conn.autocommit != value:
            conn.autocommit = value

    def keep_autocommit(self, link: Link, value: bool) -> None:
        """Note the mode of a link."""
        link.kept["autocommit"] = value

    def autocommits(self, link: Link, real: Any) -> bool:
        """Tell whether a statement of a link is a transaction of its own."""
        value = link.kept.get("autocommit", getattr(real, "autocommit", False))
        return value is True or (not callable(value) and bool(value))

    def check_kept(self, link: Link, name: str, value: object) -> None:
        """Refuse a value that the mode does not allow."""
        if name == "autocommit" and not value and link.options.pooling == "statement":
            link.refuse('autocommit=False: with pooling="statement" no statement may leave a transaction')

    def has_attribute(self, link: Link, name: str) -> bool:
        """Tell whether an attribute is one of the driver's connections."""
        try:
            link.attribute(name)
        except AttributeError:
            return False
        return True

    # -- statements ------------------------------------------------------------------------------------

    def text(self, query: object) -> str:
        """Return the text of what a user executes."""
        if type(query) is str:
            return query
        return query.decode("utf-8", "replace") if isinstance(query, bytes | bytearray) else str(query)

    def is_outdated(self, exc: BaseException) -> bool:  # noqa: ARG002
        """Tell whether an error says that what sessions have prepared is of no use any more."""
        return False

    def greet(self, link: Link, real: Any) -> None:
        """Make ready a connection that was just borrowed."""

    def before(self, link: Link, real: Any, statement: Statement) -> None:
        """Do what has to be done before a statement; note whether it is in a transaction."""
        if statement.begins:
            link.in_transaction = True
        elif statement.ends:
            link.in_transaction = False
        elif not self.autocommits(link, real):
            link.in_transaction = True

    # -- cursors ---------------------------------------------------------------------------------------

    def new_cursor(self, link: Link, real: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """Make a cursor of the driver's on a real connection."""
        return real.cursor(*args, **kwargs)

    def adapt(self, raw: Any, adapters: Any) -> None:
        """Give a cursor the types' adapters that are its own."""
        raise NotImplementedError

    def connection_of(self, raw: Any) -> object:
        """Return the real connection of a driver's cursor."""
        return getattr(raw, "connection", None)

    def reads_ahead(self, kind: type[Any]) -> bool:  # noqa: ARG002
        """Tell whether cursors of a class are never live, and need no connection to be read."""
        return False

    def is_live(self, raw: Any) -> bool:  # noqa: ARG002
        """Tell whether a cursor has its rows in the server."""
        return False

    def has_more(self, raw: Any) -> bool:  # noqa: ARG002
        """Tell whether to ask for a further set of rows, before the connection goes home."""
        return False

    def must_hold(self, raw: Any) -> bool:  # noqa: ARG002
        """Tell whether a live cursor outlives its transaction, or whether its rows do not show."""
        return False

    def is_exhausted(self, name: str, args: Sequence[Any], result: object, raw: Any) -> bool:  # noqa: ARG002
        """Tell whether a step of a live cursor that holds was its last."""
        return False

    def step_at_home(self, raw: Any, name: str, args: Sequence[Any]) -> Any:  # noqa: ARG002
        """Take a step of a cursor whose turn is over."""
        if name == "close":
            return self.close_at_home(raw)
        raise self.error("ProgrammingError", f"{name}(): the transaction of this cursor has ended")

    def close_at_home(self, raw: Any) -> None:
        """Close a cursor without a word to its connection."""

    def drop(self, raw: Any) -> None:
        """End a live cursor whose transaction is over."""
        self.close_at_home(raw)

    def no_rows(self, raw: Any) -> Sequence[Any]:  # noqa: ARG002
        """Answer a fetch where there are no rows."""
        raise self.error("ProgrammingError", "no rows to fetch: nothing was executed, or it returned none")

    # -- settings --------------------------------------------------------------------------------------

    def carry(self, real: Any, changes: Mapping[str, object], unknown: Sequence[str]) -> Sequence[object]:
        """Set settings of the session outside of a transaction; return what the *unknown* ones were."""
        raise NotImplementedError


class GenericConnection(Connection):
    """A connection of a driver of which nothing is known."""

    __slots__ = ()
    _kept = frozenset(["autocommit"])
    _cursor = BufferedCursor


Driver.face = GenericConnection


class OracleDB(Driver):
    """python-oracledb."""

    name = "oracledb"
    with_closes = True


class SQLiteConnection(Connection):
    """A connection of sqlite3."""

    __slots__ = ()
    _kept = frozenset(["autocommit", "isolation_level", "row_factory", "text_factory"])
    _pinning = types.MappingProxyType(
        {
            name: f"{name}()"
            for name in (
                *("create_function", "create_aggregate", "create_window_function", "create_collation"),
                *("set_authorizer", "set_progress_handler", "set_trace_callback", "enable_load_extension"),
                *("load_extension", "setlimit", "setconfig"),
            )
        }
    )
    _cursor = BufferedCursor

    def execute(self, sql: str, *parameters: Any) -> Any:
        """Execute on a cursor of its own."""
        return self.cursor().execute(sql, *parameters)

    def executemany(self, sql: str, parameters: Any) -> Any:
        """Execute for each set of parameters, on a cursor of its own."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, script: str) -> Any:
        """Execute several statements on a cursor of its own."""
        return self.cursor()._run("executescript", script, (), {})


class SQLite(Driver):
    """The standard library's sqlite3."""

    name = "sqlite3"
    dialect = "sqlite"
    face = SQLiteConnection

    def keep_autocommit(self, link: Link, value: bool) -> None:
        """Note the mode as the driver's legacy transaction control has it."""
        link.kept["isolation_level"] = None if value else "DEFERRED"

    def set_autocommit(self, conn: Any, value: bool) -> None:
        """Switch the legacy transaction control."""
        conn.isolation_level = None if value else "DEFERRED"

    def autocommits(self, link: Link, real: Any) -> bool:
        """Tell whether a statement of a link is a transaction of its own."""
        return link.kept.get("isolation_level", real.isolation_level) is None

    def no_rows(self, raw: Any) -> Sequence[Any]:  # noqa: ARG002
        """Answer as this driver does: with no rows."""
        return []
