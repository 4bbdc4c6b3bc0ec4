"""aiosqlite (https://aiosqlite.omnilib.dev/): sqlite3 connections for asyncio, each with a thread of its own.

What is true of SQLite, and of a connection at rest, stands in the adapter for sqlite3, which does the work
here, too: in the connection's thread, as aiosqlite would.  Particular to aiosqlite:

*Cancelled is not ended.*  A statement whose task is cancelled goes on in the thread.  So the pooled class
counts what was asked of the thread and what the thread has done; as long as the two differ the connection is
BROKEN, and closing it interrupts the statement.  Once the thread is idle the verdict is as true as ever.

*The verdict* looks at the sqlite3 connection from the loop's thread.  That is safe while the other one is
idle, but sqlite3 permits it with ``check_same_thread=False`` only, which a connect callable has to say.

*Threads.*  aiosqlite's keep the interpreter from ending as long as a connection is open; those of connections
that are made here do not.

*Loops.*  A connection belongs to no loop, so it can be closed in any.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, TypeVar, cast

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

from connpool.adapter import Fault, Verdict
from connpool.adapters.classes import Subclasses
from connpool.adapters.sqlite import _NOTHING, SQLiteAdapter, _close
from connpool.errors import PoolError, PoolMisuse
from connpool.reset import Part

__all__ = ["AiosqliteAdapter"]

T = TypeVar("T")

_CLEAN: Final = Verdict.CLEAN
_ALTERED: Final = Verdict.ALTERED
_DIRTY: Final = Verdict.DIRTY
_BROKEN: Final = Verdict.BROKEN
_SPENT: Final = Verdict.SPENT

_CLOSED: Final = "Connection closed", "no active connection"
"""What aiosqlite says of a connection that is closed."""


class _Calls:
    """What a connection's thread was asked to do, and has done.

    The thread keeps the last function that it has called, so that may refer to this, but not to the
    connection, which would never be garbage.
    """

    __slots__ = ("aborted", "asked", "done", "opened")

    def __init__(self) -> None:
        # Two numbers, each written by one thread only.
        self.asked = 0
        self.done = 0
        self.aborted = False
        self.opened: sqlite3.Connection | None = None

    def counted(self, function: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            try:
                if self.aborted:
                    raise sqlite3.OperationalError("the connection was aborted")
                return function()
            finally:
                self.done += 1

        return call

    def close_opened(self) -> None:
        if self.opened is not None:
            self.opened.close()


def _pooled(base: type[Any]) -> type[Any]:
    """Make the subclass that connections of *base*, aiosqlite's class or a user's, get in a pool."""

    class Pooled(base):  # type: ignore[misc] # one for each class of a user
        _calls: _Calls

        async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self._running and self._connection is not None:  # else aiosqlite raises, and asks nothing
                self._calls.asked += 1
            return await super()._execute(self._calls.counted(partial(fn, *args, **kwargs)))

        def stop(self) -> asyncio.Future[Any] | None:
            # A dial whose task was cancelled: aiosqlite drops what the thread has opened.
            if self._connection is None:
                self._tx.put_nowait((None, self._calls.close_opened))
            stopped: asyncio.Future[Any] | None = super().stop()
            return stopped

    return Pooled


_classes = Subclasses(_pooled)


class AiosqliteAdapter:
    """Connections of aiosqlite, to a file or to a database in memory that the whole pool shares.

    Args:
        database: As for the adapter for sqlite3: a path, a ``file:`` URI together with ``uri=True``, or
            ``":memory:"``, which all connections of this adapter share.
        iter_chunk_size: As for `aiosqlite.connect`.
        kwargs: What `sqlite3.connect` takes besides.

    Raises:
        PoolMisuse: ``check_same_thread`` is true.
    """

    name: str = "aiosqlite"
    bounded: bool = True
    sees_transactions: bool = True
    errors: Mapping[type[PoolError], type[PoolError]] = SQLiteAdapter.errors
    parts: Collection[Part] = SQLiteAdapter.parts
    says: Mapping[str, str] = SQLiteAdapter.says

    def __init__(self, database: str | os.PathLike[str], *, iter_chunk_size: int = 64, **kwargs: Any) -> None:
        self._set_up(SQLiteAdapter(database, **kwargs), iter_chunk_size=iter_chunk_size)

    @classmethod
    def around(cls, connect: Callable[[], Awaitable[aiosqlite.Connection]]) -> AiosqliteAdapter:
        """Make an adapter for a callable whose result is awaited, as that of `aiosqlite.connect` is.

        It has to pass ``check_same_thread=False``.
        """
        adapter = cls.__new__(cls)
        adapter._set_up(None, connect=connect)
        adapter.bounded = False
        return adapter

    @classmethod
    def from_url(cls, url: str) -> AiosqliteAdapter:
        """Make an adapter from a URL, which is read as by the adapter for sqlite3."""
        adapter = cls.__new__(cls)
        scheme, separator, rest = url.partition("://")
        adapter._set_up(SQLiteAdapter.from_url(scheme.partition("+")[0] + separator + rest))
        return adapter

    def _set_up(
        self,
        sqlite: SQLiteAdapter | None,
        *,
        connect: Callable[[], Awaitable[aiosqlite.Connection]] | None = None,
        iter_chunk_size: int = 64,
    ) -> None:
        self._sqlite = sqlite
        self.sees_transactions = sqlite is None or sqlite.sees_transactions
        self._connect = connect
        self._iter_chunk_size = iter_chunk_size

    def __repr__(self) -> str:
        if self._connect is not None:
            shown = getattr(self._connect, "__qualname__", type(self._connect).__qualname__)
            return f"AiosqliteAdapter.around({shown})"
        return f"<AiosqliteAdapter over {self._sqlite!r}>"

    # -- opening -------------------------------------------------------------------------------------

    async def connect(
        self, limit: float | None, credentials: Mapping[str, Any] | None = None
    ) -> aiosqlite.Connection:
        """Open a connection in a thread of its own.

        Raises:
            PoolMisuse: There are *credentials*: nobody asks for them.  Or the process is a forked child,
                and must not open this database.
        """
        if self._connect is not None:
            return await self._connect()
        sqlite, calls = self._sqlite, _Calls()

        def open_it() -> sqlite3.Connection:
            assert sqlite is not None
            calls.opened = sqlite.connect(None, credentials)
            return calls.opened

        conn: Any = _classes.of(aiosqlite.Connection)(open_it, self._iter_chunk_size)
        conn._calls = calls
        conn._thread.daemon = True
        async with asyncio.timeout(limit):
            await conn
        return cast("aiosqlite.Connection", conn)

    def adopt(self, conn: aiosqlite.Connection) -> object:
        """Return the settings; find out, once, whether such connections can be pooled.

        Raises:
            PoolMisuse: They are bound to their thread; or each is a database of its own.
        """
        if not isinstance(conn, aiosqlite.Connection):
            raise PoolMisuse(
                f"the connect callable returned a {type(conn).__module__}.{type(conn).__qualname__},"
                " not an aiosqlite.Connection"
            )
        raw = conn._conn
        try:
            raw.cursor().close()
        except sqlite3.ProgrammingError:
            raise PoolMisuse(
                "an aiosqlite connection that only its own thread may look at cannot be pooled: pass "
                'check_same_thread=False, or give the pool a URL, "sqlite:///app.db"'
            ) from None
        if self._sqlite is None:
            self._sqlite = SQLiteAdapter.around(conn._connector)
        if _classes.give(conn):
            cast("Any", conn)._calls = _Calls()
        baseline = self._sqlite.adopt(raw)
        self.sees_transactions = self._sqlite.sees_transactions
        return baseline

    async def remember(
        self,
        conn: aiosqlite.Connection,  # noqa: ARG002
        parts: tuple[Part, ...],  # noqa: ARG002
        limit: float | None,  # noqa: ARG002
    ) -> object:
        """Remember nothing: a reset brings nothing back, it closes."""
        return None

    # -- judging -------------------------------------------------------------------------------------

    # -- warm path
    def verdict(self, conn: Any, baseline: Any) -> Verdict:
        """Judge by whether the thread is idle, and then as the adapter for sqlite3 does."""
        try:
            raw = conn._connection
            if raw is None:
                return _BROKEN if conn._calls.aborted else _SPENT
            calls = conn._calls
            if calls.asked != calls.done:
                return _BROKEN
            if raw.in_transaction:
                return _DIRTY
            raw.interrupt()
            raw.execute(_NOTHING)  # fails if a SELECT is half read
            row_factory, text_factory, level, mode = baseline
            if (
                raw.row_factory is row_factory
                and raw.text_factory is text_factory
                and raw.isolation_level == level
                and (mode is None or (raw.autocommit is mode and mode is not False))
            ):
                return _CLEAN
            return _ALTERED
        except sqlite3.ProgrammingError as exc:
            return _SPENT if "closed database" in str(exc) else _BROKEN
        except sqlite3.Error:
            return _SPENT  # no transaction was open
        except Exception:
            return _BROKEN

    # -- end of warm path

    def alive(self, conn: Any) -> bool:
        """Tell whether it is open, and its thread lives."""
        try:
            return bool(conn._connection.total_changes >= 0 and conn._thread.is_alive())
        except (AttributeError, sqlite3.Error):
            return False

    # -- speaking ------------------------------------------------------------------------------------

    async def ping(self, conn: aiosqlite.Connection, limit: float | None) -> None:
        """Run a statement in the connection's thread.  It reads no table, so that it waits for no lock."""
        await self._within(limit, conn, "ping", SQLiteAdapter.ping, limit)

    async def idle_limit(
        self,
        conn: aiosqlite.Connection,  # noqa: ARG002
        limit: float | None,  # noqa: ARG002
    ) -> float | None:
        """Return ``None``: there is no server that could end a session."""
        return None

    async def writable(self, conn: aiosqlite.Connection, limit: float | None) -> bool:
        """Tell whether the database takes writes, as far as that shows without a lock."""
        return bool(await self._within(limit, conn, "writable", SQLiteAdapter.writable, limit))

    async def begin(self, conn: aiosqlite.Connection) -> None:
        """Send BEGIN, of the kind that the connection's ``isolation_level`` names."""
        await self._within(None, conn, "BEGIN", SQLiteAdapter.begin)

    async def commit(self, conn: aiosqlite.Connection) -> None:
        """Commit; waits for readers as long as ``timeout`` says."""
        await self._within(None, conn, "COMMIT", SQLiteAdapter.commit)

    async def rollback(self, conn: aiosqlite.Connection, limit: float | None) -> None:
        """Roll back; it waits for nobody."""
        await self._within(limit, conn, "ROLLBACK", SQLiteAdapter.rollback, limit)

    # -- going back ----------------------------------------------------------------------------------

    async def restore(self, conn: aiosqlite.Connection, baseline: object, limit: float | None) -> None:
        """Put back the row factory, the text factory, and how transactions begin; commit nothing."""
        await self._within(limit, conn, "restore", SQLiteAdapter.restore, baseline, limit)

    async def send_reset(
        self,
        conn: aiosqlite.Connection,
        baseline: object,  # noqa: ARG002
        memory: object,  # noqa: ARG002
        parts: tuple[Part, ...],  # noqa: ARG002
        limit: float | None,
    ) -> object | None:
        """Close, for SQLite has no reset; the next borrower gets a new connection."""
        await self.close(conn, limit)
        return None

    async def read_reset(self, conn: aiosqlite.Connection, token: object, limit: float | None) -> None:
        """Do nothing: there is never an answer to wait for."""

    # -- closing -------------------------------------------------------------------------------------

    async def close(self, conn: Any, limit: float | None) -> None:
        """Close, and wait for the thread to have done it; interrupt what it does."""
        if conn._connection is None:
            return
        calls = getattr(conn, "_calls", None)  # it has none before it is adopted
        if calls is not None and calls.asked != calls.done:
            self.abort(conn)
            return
        closed = asyncio.get_running_loop().create_future()
        _stop(conn, closed)
        await asyncio.wait([closed], timeout=limit)

    def abort(self, conn: Any) -> None:
        """Interrupt what the thread does, and have it close the connection and end.

        What the interrupt does not end is a statement that waits for a lock: that ends with ``timeout``.
        """
        raw = conn._connection
        if raw is None:
            return
        _mark(conn)
        try:
            raw.interrupt()
        except sqlite3.Error:
            pass  # closed already
        _stop(conn, None)

    def forget(self, conn: Any) -> None:
        """Have the connection refuse everything, and keep it for ever, for its locks are the parent's."""
        try:
            raw = conn._connection
            if raw is not None and self._sqlite is not None:
                self._sqlite.forget(raw)
            _mark(conn)
            conn._running, conn._connection = False, None
        except Exception:
            pass

    # -- faults --------------------------------------------------------------------------------------

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Judge by SQLite's result code, or by what aiosqlite says of a closed connection."""
        if isinstance(exc, ValueError) and str(exc) in _CLOSED:
            return Fault.DEAD
        if dialling and isinstance(exc, TimeoutError) and not isinstance(exc, PoolError):
            return Fault.DEAD
        return SQLiteAdapter.fault(cast("SQLiteAdapter", self._sqlite), exc, dialling=dialling)

    # -- limits --------------------------------------------------------------------------------------

    async def _within(
        self,
        limit: float | None,
        conn: Any,
        what: str,
        step: Callable[..., T],
        *args: Any,
    ) -> T:
        """Take a step of the adapter for sqlite3 in the connection's thread, within *limit* seconds."""
        try:
            async with asyncio.timeout(limit):
                result: T = await conn._execute(step, self._sqlite, conn._connection, *args)
                return result
        except TimeoutError:
            self.abort(conn)
            raise sqlite3.ProgrammingError(
                f"{what}: not done within {limit:.3g} s; this is a closed database now"
            ) from None


def _mark(conn: Any) -> None:
    """Note that a connection is aborted, and have its thread call nothing more."""
    conn.__dict__.setdefault("_calls", _Calls()).aborted = True


def _stop(conn: Any, closed: asyncio.Future[None] | None) -> None:
    """Have a connection's thread close it, after what it has been asked before, and end.

    *closed* is told so, in its loop.
    """
    raw, conn._connection, conn._running = conn._connection, None, False

    def close() -> object:
        _close(raw)
        return _STOP_RUNNING_SENTINEL

    conn._tx.put_nowait((closed, close))
