"""psycopg 3 (https://www.psycopg.org/psycopg3/), connections for asyncio.

What is true of psycopg, and what is said to the server, stands in the module for the synchronous ones.
Particular to these:

*Waiting* is `_ready`: each step watches the socket itself, through the loop, and stops watching before it
ends, however it ends.  So a socket is never closed while a selector knows it, and a cancelled step leaves
nothing behind but libpq's own state: ACTIVE, which is BROKEN, from the moment when anything was sent.

*Cancelled statements* of the borrower's psycopg takes back itself: it asks the server to cancel, and reads
the answer, for at most 10 s, before CancelledError goes on.  Such a connection is at rest, in a transaction
that is open or has failed.

*Settings* are changed by coroutines, ``set_autocommit`` and three others; they send nothing.

*The lock* belongs to tasks.  A task inside waits in the loop for the socket, so the socket may only be shut
down then: that task closes it.

psycopg cannot use the proactor loop, Windows' default; it says so itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import psycopg
from psycopg.conninfo import conninfo_attempts_async

from connpool.adapters.psycopg import (
    Psycopg,
    Steps,
    Wait,
    Wire,
    adapters_of,
    begin,
    busy,
    dial,
    drop_notifies,
    idle_limit,
    ping,
    read_reset,
    rollback,
    send_reset,
    to_put_back,
    writable,
)
from connpool.adapters.sockets import shut_down
from connpool.reset import Part

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext, ConnParam
    from psycopg.rows import AsyncRowFactory, TupleRow

__all__ = ["AsyncPsycopgAdapter"]

C = TypeVar("C", bound="psycopg.AsyncConnection[Any]")
C2 = TypeVar("C2", bound="psycopg.AsyncConnection[Any]")
R = TypeVar("R")
T = TypeVar("T")


class AsyncPsycopgAdapter(Psycopg[C]):
    """Asyncio connections of psycopg 3, made by the adapter within a limit.

    Args:
        conninfo: A libpq connection string or URI, as for `psycopg.AsyncConnection.connect`.
        row_factory: As for that; it decides the connection's type.
        kwargs: Its other arguments.  A `connect_timeout` is what one address may take at most; the
            pool's own limit is for all of them together.

    Raises:
        PoolMisuse: libpq cannot parse the connection string, or knows no such parameter.
    """

    _kind = psycopg.AsyncConnection

    @overload
    def __init__(
        self: AsyncPsycopgAdapter[psycopg.AsyncConnection[TupleRow]],
        conninfo: str = "",
        *,
        row_factory: None = None,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        cursor_factory: type[psycopg.AsyncCursor[Any]] | None = None,
        **kwargs: ConnParam,
    ) -> None: ...

    @overload
    def __init__(
        self: AsyncPsycopgAdapter[psycopg.AsyncConnection[R]],
        conninfo: str = "",
        *,
        row_factory: AsyncRowFactory[R],
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        cursor_factory: type[psycopg.AsyncCursor[Any]] | None = None,
        **kwargs: ConnParam,
    ) -> None: ...

    def __init__(self, conninfo: str = "", **kwargs: Any) -> None:
        super().__init__(conninfo, **kwargs)

    @classmethod
    def around(cls, connect: Callable[[], Awaitable[C2]]) -> AsyncPsycopgAdapter[C2]:
        """Make an adapter for a callable whose result is awaited; its dials have no limit of ours."""
        adapter: AsyncPsycopgAdapter[Any] = AsyncPsycopgAdapter()
        adapter.bounded = False
        adapter._callable = connect
        return adapter

    @classmethod
    def from_url(cls, url: str) -> AsyncPsycopgAdapter[psycopg.AsyncConnection[TupleRow]]:
        """Make an adapter from a libpq URI; ``postgresql+psycopg://`` is understood as well."""
        scheme, separator, rest = url.partition("://")
        return AsyncPsycopgAdapter(scheme.partition("+")[0] + separator + rest)

    # -- opening -------------------------------------------------------------------------------------

    async def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> C:
        """Open a connection within *limit* seconds, whatever the number of addresses.

        Names are resolved in a thread of the loop's, and the limit covers that, too.

        *credentials* are parameters of libpq's, in place of those of the same names, wherever these come
        from; ``None`` for a value takes the parameter away.
        """
        if self._callable is not None:
            return cast("C", await self._callable())
        deadline = None if limit is None else monotonic() + limit
        params = self._parameters(credentials or {})
        try:
            async with asyncio.timeout(limit):
                attempts = await conninfo_attempts_async(params)
        except TimeoutError:
            raise psycopg.errors.ConnectionTimeout(f"no address found within {limit:.3g} s") from None
        conn = self._furnished(await _run(dial(params, attempts, deadline)))
        if self._autocommit:
            await conn.set_autocommit(True)
        return conn

    async def remember(self, conn: C, parts: tuple[Part, ...], limit: float | None) -> object:  # noqa: ARG002
        """Copy the adapters for `Part.FULL`; the server remembers all else that a reset brings back."""
        return adapters_of(conn, parts)

    # -- speaking ------------------------------------------------------------------------------------

    async def ping(self, conn: C, limit: float | None) -> None:
        """Send an empty query, which changes nothing in any state of a transaction."""
        await _speak(conn, "ping", limit, ping)

    async def idle_limit(self, conn: C, limit: float | None) -> float | None:
        """Ask for ``idle_session_timeout``, which there is since PostgreSQL 14; 0 means never."""
        return await _speak(conn, "idle_session_timeout", limit, idle_limit)

    async def writable(self, conn: C, limit: float | None) -> bool:
        """Ask whether the server is a standby, or begins all transactions READ ONLY."""
        return await _speak(conn, "in_hot_standby", limit, writable)

    async def begin(self, conn: C) -> None:
        """Send the BEGIN that psycopg would, with the connection's characteristics."""
        await _speak(conn, "BEGIN", None, begin)

    async def commit(self, conn: C) -> None:
        """Commit."""
        await conn.commit()

    async def rollback(self, conn: C, limit: float | None) -> None:
        """Roll back, and forget what psycopg prepared, as it does in a rollback of its own."""
        await _speak(conn, "ROLLBACK", limit, rollback)

    # -- going back ----------------------------------------------------------------------------------

    async def restore(self, conn: C, baseline: Any, limit: float | None) -> None:
        """Put the settings back, and drop what was notified.  Nothing is sent."""
        await _speak(conn, "restore", limit, drop_notifies)
        await _put_back(conn, baseline)

    async def send_reset(
        self, conn: C, baseline: Any, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> object | None:
        """Send the parts in one message, after a ROLLBACK if a transaction is open."""
        await _speak(conn, "reset", limit, partial(send_reset, baseline, memory, parts))
        settings: object = baseline
        return settings

    async def read_reset(self, conn: C, token: object, limit: float | None) -> None:
        """Read the answers, and put the settings back; close the connection if that fails."""
        try:
            await _speak(conn, "reset", limit, read_reset)
            await _put_back(conn, token)
        except BaseException:
            self._finish(conn)
            raise

    # -- closing -------------------------------------------------------------------------------------

    async def close(self, conn: C, limit: float | None) -> None:  # noqa: ARG002 -- it never waits
        """Say goodbye if it can be said at once, and close."""
        self._finish(conn)

    def _new_lock(self) -> object:
        return asyncio.Lock()

    def _finish(self, conn: C) -> None:
        if conn.lock.locked():
            shut_down(lambda: conn.pgconn.socket)
        else:
            conn.pgconn.finish()


async def _put_back(conn: psycopg.AsyncConnection[Any], settings: object) -> None:
    """Put all settings back.  The setters take the lock, so it must be free; they send nothing."""
    for name, value in to_put_back(conn, settings):
        setter = getattr(conn, f"set_{name}", None)
        if setter is None:
            setattr(conn, name, value)
        else:
            await setter(value)


# -- waiting in the event loop -------------------------------------------------------------------------


async def _run(steps: Steps[T]) -> T:
    """Take the steps, waiting in the event loop in between."""
    try:
        wait = next(steps)
        while True:
            wait = steps.send(await _ready(wait))
    except StopIteration as end:
        return cast("T", end.value)
    finally:
        steps.close()  # it cleans up at once, cancelled or not


async def _ready(wait: Wait) -> bool:
    """Wait until a socket can be read or written, or has failed; tell whether it is so in time."""
    loop = asyncio.get_running_loop()
    is_ready = asyncio.Event()
    try:
        if wait.read:
            loop.add_reader(wait.fileno, is_ready.set)
        if wait.write:
            loop.add_writer(wait.fileno, is_ready.set)
        async with asyncio.timeout(wait.seconds):
            await is_ready.wait()
    except TimeoutError:
        return is_ready.is_set()
    finally:
        loop.remove_reader(wait.fileno)
        loop.remove_writer(wait.fileno)
    return True


async def _speak(
    conn: psycopg.AsyncConnection[Any], what: str, limit: float | None, talk: Callable[[Wire], Steps[T]]
) -> T:
    """Take the connection's lock within *limit* seconds, and talk in what is left of them."""
    deadline = None if limit is None else monotonic() + limit
    try:
        async with asyncio.timeout(limit):
            await conn.lock.acquire()
    except TimeoutError:
        raise busy(what, limit, who="task") from None
    try:
        return await _run(talk(Wire(conn, what, limit, deadline)))
    finally:
        conn.lock.release()
