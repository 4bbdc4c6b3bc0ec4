"""Who takes part among asyncio's pools: as `peers`, with one task in the place of each thread.

A pool is made in the event loop that uses it.  Some pools know one driver only, so a benchmark has a case
for each driver, and connpool takes part in each.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ClassVar, Self

from .drivers import AsyncDriver

SUFFIX = " (asyncio)"


class AsyncPeer:
    """One pool of at most `size` connections; with `idle` it may shrink to so many, and keeps them ready."""

    name: ClassVar[str]
    distribution: ClassVar[str | None]
    module: ClassVar[str]
    configuration: ClassVar[str]
    empty: ClassVar[str]
    drivers: ClassVar[tuple[str, ...]] = ("psycopg", "asyncpg", "aiosqlite")
    method: ClassVar[str] = "connection"  # of `pool`: what users write between `async with` and the colon

    pool: Any
    lease: Callable[[], AbstractAsyncContextManager[Any]]

    @classmethod
    async def open(cls, driver: AsyncDriver, size: int, idle: int | None = None) -> Self:
        """Make the pool; open `idle` connections, or all."""
        peer = cls()
        await peer.begin(driver, size, size if idle is None else idle)
        peer.lease = getattr(peer.pool, cls.method)
        async with AsyncExitStack() as stack:
            for _ in range(size if idle is None else idle):
                await stack.enter_async_context(peer.lease())
        return peer

    async def begin(self, driver: AsyncDriver, size: int, idle: int) -> None:
        """Make the pool, which must keep `idle` connections."""
        raise NotImplementedError

    def waiting(self) -> int | None:
        """Return the number of tasks that are queued; None: it cannot be seen."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class AsyncConnpool(AsyncPeer):
    name = "connpool" + SUFFIX
    distribution = "dbapi-connpool"
    module = "connpool"
    configuration = "AsyncConnectionPool(connect, max_size=N, max_waiting=None)"
    empty = "looks at the driver's state; reads the clock twice; records how long the connection was lent"

    async def begin(self, driver: AsyncDriver, size: int, idle: int) -> None:
        import connpool

        self.pool = connpool.AsyncConnectionPool(
            driver.connect, max_size=size, min_idle=min(idle, size), max_waiting=None
        )
        await self.pool.wait_ready()

    def waiting(self) -> int:
        return int(self.pool.stats().waiting)

    async def close(self) -> None:
        await self.pool.close()


class AsyncPsycopgPool(AsyncPeer):
    name = "psycopg_pool" + SUFFIX
    distribution = "psycopg-pool"
    module = "psycopg_pool"
    configuration = "AsyncConnectionPool(dsn, min_size=N, max_size=N)"
    empty = (
        "looks at the driver's state; its commit(), which sends nothing; reads the clock five times; counters"
    )
    drivers = ("psycopg",)

    async def begin(self, driver: AsyncDriver, size: int, idle: int) -> None:
        import psycopg_pool

        self.pool = psycopg_pool.AsyncConnectionPool(
            driver.dsn,
            connection_class=driver.connection_class,
            min_size=idle,
            max_size=size,
            open=False,
        )
        await self.pool.open(wait=True)

    def waiting(self) -> int:
        return len(self.pool._waiting)

    async def close(self) -> None:
        await self.pool.close()


class AsyncSQLAlchemy(AsyncPeer):
    name = "SQLAlchemy" + SUFFIX
    distribution = "SQLAlchemy"
    module = "sqlalchemy.ext.asyncio"
    configuration = (
        "create_async_engine(url, async_creator=connect, pool_size=N, max_overflow=0): "
        "an AsyncAdaptedQueuePool, through its Engine"
    )
    empty = "a greenlet for each step; the driver's rollback(), which sends nothing (reset_on_return)"
    method = "connect"
    urls: ClassVar[dict[str, str]] = {
        "psycopg": "postgresql+psycopg://",
        "asyncpg": "postgresql+asyncpg://",
        "aiosqlite": "sqlite+aiosqlite:///db",  # a file's name decides which pool it gets
    }

    async def begin(self, driver: AsyncDriver, size: int, idle: int) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        self.pool = create_async_engine(
            self.urls[driver.name],
            async_creator=driver.connect,
            pool_size=idle,
            max_overflow=size - idle,
        )

    def waiting(self) -> int:
        return len(self.pool.pool._pool._queue._getters)

    async def close(self) -> None:
        await self.pool.dispose()


class Asyncpg(AsyncPeer):
    name = "asyncpg"
    distribution = "asyncpg"
    module = "asyncpg"
    configuration = "create_pool(dsn, min_size=N, max_size=N)"
    empty = "a reset of the session, which is a round trip; a proxy each time"
    drivers = ("asyncpg",)
    method = "acquire"
    options: ClassVar[dict[str, Any]] = {}

    async def begin(self, driver: AsyncDriver, size: int, idle: int) -> None:
        import asyncpg

        self.pool = await asyncpg.create_pool(
            driver.dsn,
            connect=driver.connect,
            connection_class=driver.connection_class,
            min_size=idle,
            max_size=size,
            **self.options,
        )

    def waiting(self) -> int:
        return len(self.pool._queue._getters)

    async def close(self) -> None:
        await self.pool.close()


async def _nothing(conn: object) -> None:
    """Reset nothing."""


class AsyncpgUnreset(Asyncpg):
    name = "asyncpg, no reset"
    configuration = "create_pool(dsn, min_size=N, max_size=N, reset=a coroutine function that does nothing)"
    empty = "nothing is sent; a proxy each time"
    options: ClassVar[dict[str, Any]] = {"reset": _nothing}


class AioSQLitePool(AsyncPeer):
    name = "aiosqlitepool"
    distribution = "aiosqlitepool"
    module = "aiosqlitepool"
    configuration = "SQLiteConnectionPool(connect, pool_size=N)"
    empty = (
        "SELECT 1 before, rollback() after, each a turn of the connection's thread, in a task with a timeout"
    )
    drivers = ("aiosqlite",)

    async def begin(self, driver: AsyncDriver, size: int, idle: int) -> None:  # noqa: ARG002 -- keeps all
        from aiosqlitepool import SQLiteConnectionPool

        self.pool = SQLiteConnectionPool(driver.connect, pool_size=size)

    def waiting(self) -> int:
        return len(self.pool._pool._queue._getters)

    async def close(self) -> None:
        await self.pool.close()


class AsyncFloor(AsyncPeer):
    """The least that lends and takes back: a queue of the standard library, and a context manager."""

    name = "floor" + SUFFIX
    distribution = None
    module = "asyncio"
    configuration = "asyncio.Queue, get and put_nowait inside a context manager with __slots__"
    empty = "nothing"

    async def begin(self, driver: AsyncDriver, size: int, idle: int) -> None:  # noqa: ARG002 -- not a pool
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.connections = [await driver.connect() for _ in range(size)]
        for conn in self.connections:
            self.queue.put_nowait(conn)
        self.pool = self

    def connection(self) -> "AsyncFloorLease":
        return AsyncFloorLease(self.queue)

    def waiting(self) -> int:
        return len(self.queue._getters)  # type: ignore[attr-defined] # not for everybody

    async def close(self) -> None:
        for conn in self.connections:
            await conn.close()


class AsyncFloorLease:
    __slots__ = ("conn", "queue")

    def __init__(self, queue: "asyncio.Queue[Any]") -> None:
        self.queue = queue

    async def __aenter__(self) -> Any:
        self.conn = await self.queue.get()
        return self.conn

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        self.queue.put_nowait(self.conn)


ASYNC_PEERS: dict[str, type[AsyncPeer]] = {
    peer.name: peer
    for peer in (
        AsyncConnpool,
        AsyncPsycopgPool,
        AsyncSQLAlchemy,
        Asyncpg,
        AsyncpgUnreset,
        AioSQLitePool,
        AsyncFloor,
    )
}
ASYNC_OURS, ASYNC_FLOOR = AsyncConnpool.name, AsyncFloor.name


def who_knows(driver: str) -> tuple[str, ...]:
    """Return the contenders that can pool this driver's connections."""
    return tuple(name for name, peer in ASYNC_PEERS.items() if driver in peer.drivers)
