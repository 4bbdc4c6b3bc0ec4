"""sqlite3: connections to a file, or to a database in memory that the whole pool shares.

Nothing here travels over a network: a dial takes microseconds and needs no limit.  What may take long
is waiting for another writer, and sqlite3 limits that by itself (``timeout``, 5 s by default).

The pool moves connections between threads, so ``check_same_thread`` is always False here.  That is
safe: a connection is used by one thread at a time, which SQLite's multi-thread mode
(``sqlite3.threadsafety`` 1) permits already; nothing needs the serialized mode, 3.

How a database is used stays the user's decision: no PRAGMA is run here.  What most services want is
said in ``on_connect``, which runs once for each connection::

    def on_connect(conn: sqlite3.Connection) -> None:
        conn.execute("PRAGMA journal_mode = WAL")   # readers and the writer do not block each other
        conn.execute("PRAGMA synchronous = NORMAL")
        conn.execute("PRAGMA foreign_keys = ON")

    pool = create_pool("sqlite:///app.db", on_connect=on_connect)

A forked child must neither use nor close what its parent has opened
(https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_), so there
these connections refuse everything, and are kept for ever.  But SQLite itself remembers in the child
which locks the process has, and they are the parent's alone.  A connection that the child opens then
believes in locks that it does not have.  With a file in WAL mode, where open connections always have
one, this loses data: when the parent closes its last, SQLite finds no lock, and deletes the log that the
child goes on writing to (tried: what it commits from then on is gone).  So a file that was in WAL mode,
or in a transaction, when the process forked is refused in the child.  Close the pool before the fork, or
use it only in the children.  Any other file is opened anew, and of a database in memory the child
gets a copy, as of all memory.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import parse_qsl, unquote, urlencode

from ..adapter import Adapter, Fault, Verdict
from ..errors import (
    PoolClosed,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from ..reset import Part
from .dbapi import OF_THE_PARENT, Aborted

# An enum's member is looked up by a descriptor of its class: too dear for every release.
_CLEAN: Final = Verdict.CLEAN
_ALTERED: Final = Verdict.ALTERED
_DIRTY: Final = Verdict.DIRTY
_BROKEN: Final = Verdict.BROKEN
_SPENT: Final = Verdict.SPENT

_NOTHING: Final = "SELECT 1 WHERE 0"
"""Runs, reads no table, takes no lock, returns no row that a row factory would see."""

_LEGACY: Final = -1
"""``sqlite3.LEGACY_TRANSACTION_CONTROL``: the only mode before Python 3.12."""


class _Settings(NamedTuple):
    """What a connection keeps for its borrower: the baseline."""

    row_factory: Any
    text_factory: Any
    isolation_level: Any
    autocommit: bool | int | None
    """``None`` before Python 3.12."""


class SQLitePoolTimeout(PoolTimeout, sqlite3.OperationalError):
    """`PoolTimeout` that is caught as the driver's error, too."""


class SQLitePoolOverloaded(PoolOverloaded, sqlite3.OperationalError):
    """`PoolOverloaded` that is caught as the driver's error, too."""


class SQLitePoolUnavailable(PoolUnavailable, sqlite3.OperationalError):
    """`PoolUnavailable` that is caught as the driver's error, too."""


class SQLitePoolClosed(PoolClosed, sqlite3.OperationalError):
    """`PoolClosed` that is caught as the driver's error, too."""


class Connection(sqlite3.Connection):
    """A `sqlite3.Connection` that can be referred to weakly.

    So the pool gets a connection back that its borrower lost without releasing it, at the next
    garbage collection: it has a reference to itself.
    """

    __slots__ = ("__weakref__",)


_numbers = itertools.count(1)


class SQLiteAdapter(Adapter[sqlite3.Connection]):
    """sqlite3, as the pool sees it.

    Args:
        database: A path, which is made absolute here, so that a later change of the working directory
            does not split the pool over two files; a ``file:`` URI together with ``uri=True``; or
            ``":memory:"``, a database in memory that all connections of this adapter share, and that
            lives as long as the adapter.  It behaves like a small file without WAL: a reader waits
            for a writer to commit.  SQLite limits its size to 1 GiB.
        **kwargs: What `sqlite3.connect` takes besides.  A ``factory`` whose instances have no room for
            a weak reference is subclassed.

    Raises:
        PoolMisuse: ``check_same_thread`` is true.
    """

    name = "sqlite3"
    errors: Mapping[type[PoolError], type[PoolError]] = MappingProxyType(
        {
            PoolTimeout: SQLitePoolTimeout,
            PoolOverloaded: SQLitePoolOverloaded,
            PoolUnavailable: SQLitePoolUnavailable,
            PoolClosed: SQLitePoolClosed,
        }
    )
    says: Mapping[str, str] = {
        "connect": "PRAGMA database_list; in a callable's database in memory, a table that is rolled back",
        "require": "PRAGMA query_only",
        "ping": _NOTHING,
        "begin": "BEGIN, in the connection's isolation_level",
        "commit": "COMMIT",
        "rollback": "ROLLBACK",
        "restore": "nothing: settings of the driver's own",
        "demoted": "as for `require`",
        str(Part.FULL): "nothing: the connection is closed, and a new one opened",
    }
    parts: Collection[Part] = frozenset((Part.FULL,))

    def __init__(self, database: str | os.PathLike[str], **kwargs: Any) -> None:
        if kwargs.get("check_same_thread"):
            raise PoolMisuse(
                "check_same_thread=True ties a connection to the thread that opened it, but a pool "
                "lends it to others: leave it out"
            )
        path = os.fspath(database)
        anchored = path == ":memory:"
        if anchored:
            path = _memory()
            kwargs["uri"] = True
        elif path and not (kwargs.get("uri") and path.startswith("file:")):
            path = str(Path(path).absolute())
        kwargs["check_same_thread"] = False
        kwargs["factory"] = _with_weakref(kwargs.get("factory", Connection))
        self._set_up(lambda: sqlite3.connect(path, **kwargs), path, bounded=True, anchored=anchored)
        if kwargs.get("autocommit") is False:
            self.sees_transactions = False

    @classmethod
    def around(cls, connect: Callable[[], sqlite3.Connection]) -> SQLiteAdapter:
        """Make an adapter from a callable that returns connections.

        Connections of another class than `sqlite3.Connection` itself can be taken back when their
        borrower loses them; those of that very class cannot.
        """
        adapter = cls.__new__(cls)
        adapter._set_up(connect, "", bounded=False, anchored=False)
        return adapter

    @classmethod
    def from_url(cls, url: str) -> SQLiteAdapter:
        """Make an adapter from a URL.

        ``sqlite:///relative.db``, ``sqlite:////absolute.db``, and for a shared database in memory
        ``sqlite://``, ``sqlite:///`` or ``sqlite:///:memory:``.  The path is percent-decoded.  The
        query may hold ``timeout``, ``isolation_level``, ``detect_types``, ``cached_statements`` and
        ``autocommit`` for `sqlite3.connect`, and SQLite's own ``mode``, ``cache``, ``vfs``,
        ``immutable`` and ``nolock``.
        """
        _, _, rest = url.partition("://")
        place, _, query = rest.partition("?")
        host, slash, path = place.partition("/")
        if host:
            raise PoolMisuse(
                "a sqlite URL names no host: three slashes before a relative path, four before an "
                "absolute one"
            )
        kwargs: dict[str, Any] = {}
        uri: dict[str, str] = {}
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key in _URI_PARAMETERS:
                uri[key] = value
            elif key in _PARAMETERS:
                kwargs[key] = _parameter(key, value)
            else:
                known = ", ".join([*_PARAMETERS, *_URI_PARAMETERS])
                raise PoolMisuse(f"{key!r} is no parameter of a sqlite URL; there are: {known}")
        path = unquote(path) if slash else ""
        if path in ("", ":memory:"):
            if uri:
                raise PoolMisuse(f"{', '.join(uri)}: only for a database in a file")
            return cls(":memory:", **kwargs)
        if uri:
            path = f"{Path(path).absolute().as_uri()}?{urlencode(uri)}"
            kwargs["uri"] = True
        return cls(path, **kwargs)

    def _set_up(
        self, connect: Callable[[], sqlite3.Connection], path: str, *, bounded: bool, anchored: bool
    ) -> None:
        self._connect = connect
        self._path = path
        self._place = path if anchored else ""
        read_only = _READ_ONLY.search(path) if path.startswith("file:") else None
        self._read_only = read_only is not None
        self._anchored = anchored
        self.bounded = bounded
        self._examined = False
        self._lock = threading.Lock()
        self._aborted = Aborted(own=_own_references)
        self._anchors: list[sqlite3.Connection] = []
        weakref.finalize(self, _let_go, self._aborted, self._anchors)
        _adapters.add(self)

    def __repr__(self) -> str:
        if self._anchored:
            return "<SQLiteAdapter in memory>"
        return f"<SQLiteAdapter for {self._path or 'a callable'!r}>"

    def connect(
        self,
        limit: float | None,  # noqa: ARG002
        credentials: Mapping[str, Any] | None = None,
    ) -> sqlite3.Connection:
        """Open a connection.  It takes no lock on the database, so nothing needs a limit.

        Raises:
            PoolMisuse: There are *credentials*: nobody asks for them.  Or the process is a forked child,
                and must not open this database.
        """
        if credentials and self.bounded:
            raise PoolMisuse("sqlite3 has no credentials: leave credentials= out")
        if self._place in _unsafe:
            raise PoolMisuse(_unsafe[self._place])
        self._aborted.sweep()
        if self._anchored and not self._anchors:
            with self._lock:
                if not self._anchors:
                    # The database goes with its last connection; the pool may close all of its own.
                    self._anchors.append(self._connect())
        return self._connect()

    def adopt(self, conn: sqlite3.Connection) -> object:
        """Return the settings; find out, once, whether such connections can be pooled.

        Raises:
            PoolMisuse: They are bound to the thread that opened them; or each is a database of its
                own; or SQLite was built without mutexes.
        """
        if _mode(conn) is False:
            # A transaction is open at any time: COMMIT and ROLLBACK are followed by a BEGIN.
            self.sees_transactions = False
            if not conn.in_transaction:
                conn.execute("BEGIN")  # on_connect has chosen this mode: see `_end`
        if not self._examined or _unsafe:
            try:
                self._place = _place(conn) or self._path
                if self._place in _unsafe:
                    raise PoolMisuse(_unsafe[self._place])
                self._examined = self._examined or self._examine(conn)
            except PoolMisuse:
                conn.close()  # here, because it may be that no other thread can
                raise
        return _Settings(conn.row_factory, conn.text_factory, conn.isolation_level, _mode(conn))

    def remember(
        self,
        conn: sqlite3.Connection,  # noqa: ARG002
        parts: tuple[Part, ...],  # noqa: ARG002
        limit: float | None,  # noqa: ARG002
    ) -> object:
        """Remember nothing: a reset brings nothing back, it closes."""
        return None

    def _examine(self, conn: sqlite3.Connection) -> bool:
        """Refuse what cannot be pooled; return False if that could not be found out."""
        if sqlite3.threadsafety < 1:
            raise PoolMisuse(
                "sqlite3 cannot be pooled: its threadsafety is 0, and threads may share the library "
                "from level 1 on"
            )
        bound = False if self.bounded else _is_bound_to_this_thread(conn)
        if bound:
            raise PoolMisuse(
                "a sqlite3 connection that only its own thread may use cannot be pooled: pass "
                'check_same_thread=False, or use create_pool("sqlite:///app.db")'
            )
        if self._is_private(conn):
            raise PoolMisuse(
                "each of these sqlite3 connections is an empty database of its own, in memory or in "
                'a temporary file: use create_pool("sqlite://") for a database in memory that the '
                "pool shares"
            )
        return bound is not None

    def _is_private(self, conn: sqlite3.Connection) -> bool:
        """Tell whether a connection has a database that no other connection sees.

        Even for a pool of one that is a mistake: its data would go when the connection is replaced.
        A private database has no file name, nor has a shared cache in memory.  What tells them apart
        is a second connection: what it writes is seen, or locked, in a shared one.  There the second
        one is kept: the database goes with its last connection, and the pool may close all of its own.
        """
        if any(name == "main" and file for _, name, file in _rows(conn, "PRAGMA database_list")):
            return False
        other = self._connect()
        if other is conn:
            raise PoolMisuse("the connect callable returned the same connection twice")
        private = True
        try:
            other.execute("PRAGMA busy_timeout = 0")
            if not other.in_transaction:
                other.execute("BEGIN")
            other.execute("CREATE TABLE _connpool_seen (a)")
            private = not _rows(conn, "SELECT 1 FROM sqlite_master WHERE name = '_connpool_seen'")
        except sqlite3.OperationalError:
            private = False  # locked: it is shared
        finally:
            if other.in_transaction:
                other.execute("ROLLBACK")  # which takes the table back
            if private or self._anchors:
                other.close()
            else:
                self._anchors.append(other)
            conn.rollback()  # with autocommit=False the SELECT has opened a transaction
        return private

    def verdict(self, conn: sqlite3.Connection, baseline: Any) -> Verdict:
        """Judge by the open transaction, by a SELECT that was not read to its end, by the settings.

        ``in_transaction`` does not show such a SELECT, which would keep a frozen snapshot for the next
        borrower, and which ROLLBACK does not end.  But an interrupt holds for new statements, too,
        until no statement is active any more (sqlite.org/c3ref/interrupt.html): if one runs, none was.
        Re-registering a function would tell as well, in a third of the time, but makes SQLite prepare
        every cached statement anew: 2 to 8 us for the next one, measured, against 0.6 us.

        The transaction comes first: the work of a borrower who leaves both behind is committed, and
        only then is the connection given up.  What a half-read ``INSERT ... RETURNING`` has written
        without a transaction is no more lost than that: it is committed when its cursor goes.
        """
        try:
            if self._aborted and id(conn) in self._aborted:
                return _BROKEN
            if conn.in_transaction:
                return _DIRTY
            conn.interrupt()
            conn.execute(_NOTHING)
            # Spelled out it takes half the time of an attrgetter and one comparison of tuples.
            row_factory, text_factory, level, mode = baseline
            if (
                conn.row_factory is row_factory
                and conn.text_factory is text_factory
                and conn.isolation_level == level
                # With False a transaction is open at any time, unless its borrower has said COMMIT.
                and (mode is None or (conn.autocommit is mode and mode is not False))  # type: ignore[attr-defined] # it is there if mode is
            ):
                return _CLEAN
            return _ALTERED
        except sqlite3.ProgrammingError as exc:
            return _SPENT if "closed database" in str(exc) else _BROKEN  # or it is another thread's
        except sqlite3.Error:
            return _SPENT  # no transaction was open
        except Exception:
            return _BROKEN

    def alive(self, conn: sqlite3.Connection) -> bool:
        """Tell whether it is open: there is no server that could have closed it."""
        try:
            return id(conn) not in self._aborted and conn.total_changes >= 0
        except sqlite3.Error:
            return False

    def ping(self, conn: sqlite3.Connection, limit: float | None) -> None:  # noqa: ARG002
        """Run a statement.  It reads no table, so that it waits for no lock."""
        self._refuse(conn)
        if id(conn) in self._aborted:
            raise sqlite3.OperationalError("the connection was aborted")
        conn.execute(_NOTHING)

    def idle_limit(self, conn: sqlite3.Connection, limit: float | None) -> float | None:  # noqa: ARG002
        """Return ``None``: there is no server that could end a session."""
        return None

    def writable(self, conn: sqlite3.Connection, limit: float | None) -> bool:  # noqa: ARG002
        """Tell whether the database takes writes, as far as that shows without a lock.

        No, if it was opened with ``mode=ro`` or ``immutable`` by this adapter, if ``query_only`` is on,
        or if the file does not let itself be written: SQLite then opens it for reading.
        """
        self._refuse(conn)
        if self._read_only:
            return False
        try:
            ((query_only,),) = _rows(conn, "PRAGMA query_only")
            file = _place(conn)
        except sqlite3.Error as exc:
            if self.fault(exc, dialling=False) is Fault.DEAD:
                raise
            return True  # an authorizer forbids to ask
        return not query_only and (not file or os.access(file, os.W_OK) or not os.access(file, os.F_OK))

    def begin(self, conn: sqlite3.Connection) -> None:
        """Send BEGIN, of the kind that the connection's ``isolation_level`` names."""
        self._refuse(conn)
        if _mode(conn) is not False:  # else one is open at any time
            conn.execute(f"BEGIN {conn.isolation_level or ''}")

    def commit(self, conn: sqlite3.Connection) -> None:
        """Commit in each transaction mode; waits for readers as long as ``timeout`` says."""
        self._end(conn, conn.commit, "COMMIT")

    def rollback(self, conn: sqlite3.Connection, limit: float | None) -> None:  # noqa: ARG002
        """Roll back in each transaction mode; it waits for nobody."""
        self._end(conn, conn.rollback, "ROLLBACK")

    def _end(self, conn: sqlite3.Connection, method: Callable[[], None], statement: str) -> None:
        """End the open transaction.

        The method does nothing with autocommit=True.  With autocommit=False it begins the next one:
        for a pool of other connections, one of which was put into this mode, that would never be rest.
        """
        self._refuse(conn)
        mode = _mode(conn)
        if mode is True or (mode is False and self.sees_transactions):
            if conn.in_transaction:
                conn.execute(statement)
            return
        method()
        if conn.in_transaction and not _runs(conn):
            # A half-read SELECT has outlived it, and the verdict will not come to that question.
            _close(conn)

    def restore(self, conn: sqlite3.Connection, baseline: Any, limit: float | None) -> None:  # noqa: ARG002
        """Put back the row factory, the text factory, and how transactions begin; commit nothing."""
        self._refuse(conn)
        row_factory, text_factory, level, mode = baseline
        conn.row_factory = row_factory
        conn.text_factory = text_factory
        at_rest = conn.in_transaction is (mode is False)
        if conn.isolation_level == level and _mode(conn) is mode and at_rest:
            return
        if conn.in_transaction:
            # With autocommit=False; there is nothing in it, or it would have been ended before.
            conn.execute("ROLLBACK")
        if mode is None:
            conn.isolation_level = level
        else:
            # This mode is entered without a COMMIT or BEGIN.  In another one a level of None commits,
            # and fails if there is nothing to commit.
            modal: Any = conn
            modal.autocommit = _LEGACY
            conn.isolation_level = level
            modal.autocommit = mode

    def send_reset(
        self,
        conn: sqlite3.Connection,
        baseline: object,  # noqa: ARG002
        memory: object,  # noqa: ARG002
        parts: tuple[Part, ...],  # noqa: ARG002
        limit: float | None,
    ) -> object | None:
        """Close, for SQLite has no reset; the next borrower gets a new connection.

        PRAGMAs, temporary tables, attached databases, functions, collations, the authorizer and trace
        hooks cannot be listed.  To open a connection takes some 0.1 ms; a database in memory outlives
        it, because the adapter has one of its own to that.
        """
        self.close(conn, limit)
        return None

    def read_reset(self, conn: sqlite3.Connection, token: object, limit: float | None) -> None:
        """Do nothing: there is never an answer to wait for."""

    def close(self, conn: sqlite3.Connection, limit: float | None) -> None:  # noqa: ARG002
        """Close; what is not committed is lost."""
        if id(conn) in self._aborted.kept:
            return
        self._aborted.pop(id(conn), None)
        self._aborted.sweep()
        _close(conn)

    def abort(self, conn: sqlite3.Connection) -> None:
        """Interrupt what runs; close as soon as nobody else refers to the connection.

        Closing it under a statement of another thread crashes the interpreter.  What the interrupt
        does not end is a statement that waits for a lock: that one ends with ``timeout``.
        """
        if id(conn) in self._aborted.kept:
            return
        self._aborted[id(conn)] = conn
        try:
            conn.interrupt()
        except sqlite3.Error:
            pass  # closed already
        self._aborted.sweep()

    def forget(self, conn: sqlite3.Connection) -> None:
        """Have the connection refuse everything, and keep it for ever, for its locks are the parent's.

        It is not touched but for the one attribute that is a mere field of SQLite's.  A connection of
        the very class `sqlite3.Connection` cannot be made to refuse: then only the adapter does.
        """
        try:
            if conn.in_transaction:
                _unsafe.setdefault(self._place, _WAS_IN_TRANSACTION)
            elif self._place and Path(f"{self._place}-wal").exists():
                _unsafe.setdefault(self._place, _WAS_IN_WAL)
        except Exception:
            pass  # closed already
        try:
            self._aborted.keep(conn)
            conn.__class__ = _refusing(type(conn))
        except Exception:
            pass

    def _refuse(self, conn: sqlite3.Connection) -> None:
        if id(conn) in self._aborted.kept:
            raise sqlite3.ProgrammingError(OF_THE_PARENT)

    def _begin_anew(self) -> None:
        """In a forked child: nobody has the lock, and the anchor is the parent's."""
        self._lock = threading.Lock()
        for anchor in self._anchors:
            self._aborted.keep(anchor)
        self._anchors.clear()

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Judge by SQLite's result code.

        A lock that was not got, a full disk and a damaged file are the statement's own trouble: the
        next connection would have the same.
        """
        code = getattr(exc, "sqlite_errorcode", None)
        if code is not None and (code == sqlite3.SQLITE_READONLY_DBMOVED or code & 0xFF in _DEAD):
            return Fault.DEAD
        if isinstance(exc, sqlite3.ProgrammingError) and (
            "closed database" in str(exc) or str(exc) == OF_THE_PARENT
        ):
            return Fault.DEAD
        if dialling and isinstance(exc, sqlite3.Error) and not isinstance(exc, PoolError):
            return Fault.AUTH if code is not None and code & 0xFF in _REFUSED else Fault.DEAD
        return Fault.ORDINARY


def _mode(conn: sqlite3.Connection) -> bool | int | None:
    mode: bool | int | None = getattr(conn, "autocommit", None)
    return mode


def _runs(conn: sqlite3.Connection) -> bool:
    """Tell whether a new statement runs although the connection was interrupted: see `verdict`."""
    try:
        conn.interrupt()
        conn.execute(_NOTHING)
    except sqlite3.Error:
        return False
    return True


def _close(conn: sqlite3.Connection) -> None:
    """Close, in each transaction mode.

    With autocommit=False close() says ROLLBACK first, and beside a half-read SELECT the verdict's
    interrupt fails that: the connection would stay open.  SQLite rolls back without being told.
    """
    try:
        if _mode(conn) is False:
            modal: Any = conn
            modal.autocommit = _LEGACY
    except sqlite3.ProgrammingError:
        pass  # closed already, or another thread's: close() knows what to say to that
    conn.close()


_DEAD: Final = frozenset((sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN))
# What a dial cannot cure.  The last is also what a wrong key looks like, where there is encryption.
_REFUSED: Final = frozenset((sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOTADB))

_READ_ONLY: Final = re.compile(r"[?&](mode=ro|immutable=(1|yes|true|on))(&|#|$)", re.IGNORECASE)


# -- forked children ---------------------------------------------------------------------------------

_adapters: weakref.WeakSet[SQLiteAdapter] = weakref.WeakSet()

_unsafe: dict[str, str] = {}
"""In a forked child: the databases that it must not open, and why."""

_WAS_IN_WAL: Final = (
    "this process is a forked child, and its parent had connections to this sqlite database, which is in WAL "
    "mode: what the child commits could be lost; close the pool before the fork, or use it only afterwards"
)
_WAS_IN_TRANSACTION: Final = (
    "this process is a forked child, and its parent was in a transaction of this sqlite database: here that "
    "would never end; fork when no connection is lent, or use the pool only afterwards"
)


def _place(conn: sqlite3.Connection) -> str:
    """Return the path of the main database's file; none in memory."""
    for _, name, file in _rows(conn, "PRAGMA database_list"):
        if name == "main" and file:
            return str(Path(file).resolve())
    return ""


def _refusing(klass: type[sqlite3.Connection]) -> type[sqlite3.Connection]:
    """Return a class for a connection that may not be used; to close it does nothing."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise sqlite3.ProgrammingError(OF_THE_PARENT)

    def close(_: object) -> None:
        pass

    names: dict[str, Any] = {"__slots__": (), "__call__": refuse, "__enter__": refuse, "__exit__": refuse}
    for name, what in vars(sqlite3.Connection).items():
        if name.startswith("_") or isinstance(what, type):
            continue
        names[name] = refuse if callable(what) else property(refuse, refuse)
    names["close"] = close
    return type(klass.__name__, (klass,), names)


def _begin_anew_in_child() -> None:
    for adapter in list(_adapters):
        adapter._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_child)


def _memory() -> str:
    """Return the URI of a new database in memory that several connections can share."""
    name = f"connpool-{os.getpid()}-{next(_numbers)}"
    if sqlite3.sqlite_version_info >= (3, 36):
        # Who meets a lock waits for it: of 1,200 statements in six threads, none failed.
        return f"file:/{name}?vfs=memdb"
    # Who meets a locked table fails at once, whatever the timeout: of 1,200, half.
    return f"file:{name}?mode=memory&cache=shared"


def _with_weakref(factory: Any) -> Any:
    """Return a factory whose connections can be referred to weakly."""
    if not isinstance(factory, type) or factory.__weakrefoffset__:
        return factory
    return type(factory.__name__, (factory,), {"__slots__": ("__weakref__",)})


@functools.cache
def _own_references() -> int:
    """Count the references that a connection has to itself: its cache of statements calls it.

    So one that its borrower has lost is not freed, and not noticed, before the next garbage
    collection.
    """
    conn = sqlite3.connect(":memory:")
    try:
        return sys.getrefcount(conn) - 2  # the variable's, and the argument's
    finally:
        conn.close()


def _is_bound_to_this_thread(conn: sqlite3.Connection) -> bool | None:
    """Tell whether another thread may not touch a connection; ``None`` if that cannot be tried."""
    refused: list[bool] = []

    def touch() -> None:
        try:
            sqlite3.Connection.cursor(conn)
        except sqlite3.ProgrammingError:
            refused.append(True)

    thread = threading.Thread(target=touch, name="connpool-sqlite-touch", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None  # no threads left; the next connection is tried
    thread.join()
    return bool(refused)


def _rows(conn: sqlite3.Connection, statement: str) -> list[tuple[Any, ...]]:
    cursor = conn.cursor()
    cursor.row_factory = None  # the user's may make anything of a row
    return cursor.execute(statement).fetchall()


def _let_go(aborted: Aborted, anchors: list[sqlite3.Connection]) -> None:
    aborted.sweep()
    for anchor in anchors:
        anchor.close()


# -- URLs ---------------------------------------------------------------------------------------------

_URI_PARAMETERS: Final = ("mode", "cache", "vfs", "immutable", "nolock")
_MODES: Final = {"true": True, "false": False, "legacy": _LEGACY}
_LEVELS: Final = {
    "none": None,
    "deferred": "DEFERRED",
    "immediate": "IMMEDIATE",
    "exclusive": "EXCLUSIVE",
}
_PARAMETERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "timeout": float,
    "isolation_level": lambda value: _LEVELS[value.lower()],
    "detect_types": int,
    "cached_statements": int,
    "autocommit": lambda value: _MODES[value.lower()],
    "check_same_thread": lambda value: {"true": True, "false": False}[value.lower()],
}


def _parameter(key: str, value: str) -> Any:
    try:
        return _PARAMETERS[key](value)
    except (KeyError, ValueError):
        raise PoolMisuse(f"{key}={value!r} in a sqlite URL is no such value") from None
