"""Who takes part: one class per contender, with the same five methods.

Each is configured as its own documentation would have it for "at most N connections, callers wait"; every
other option keeps its default.  `configuration` says how, `empty` what it does in an empty block besides
lending; both are printed with the figures.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from .drivers import FakeDriver, RealDriver

Driver = RealDriver | FakeDriver


class Peer:
    """One pool of at most `size` connections; with `idle` it may shrink to so many, and keeps them ready."""

    name: ClassVar[str]
    distribution: ClassVar[str | None]
    module: ClassVar[str]
    configuration: ClassVar[str]
    empty: ClassVar[str]
    method: ClassVar[str] = "connection"  # of `pool`: what users write between `with` and the colon

    pool: Any
    # Bound methods of the pool itself wherever it has them, so that no frame of ours is measured.
    lease: Callable[[], AbstractContextManager[Any]]
    acquire: Callable[[], Any]
    release: Callable[[Any], object]

    def __init__(self, driver: Driver, size: int, idle: int | None = None) -> None:
        raise NotImplementedError

    def waiting(self) -> int | None:
        """Return the number of callers that are queued; None: it cannot be seen."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Connpool(Peer):
    name = "connpool"
    distribution = "dbapi-connpool"
    module = "connpool"
    configuration = "ConnectionPool(connect, max_size=N)"
    empty = "looks at the driver's state; reads the clock twice; records how long the connection was lent"

    def __init__(self, driver: Driver, size: int, idle: int | None = None) -> None:
        import connpool

        self.pool = connpool.ConnectionPool(driver.connect, max_size=size, min_idle=idle or 0)
        if idle:
            self.pool.wait_ready()
        self.lease = self.pool.connection
        self.acquire = self.pool.acquire
        self.release = self.pool.release

    def waiting(self) -> int:
        return self.pool.stats().waiting

    def close(self) -> None:
        self.pool.close()


class PsycopgPool(Peer):
    name = "psycopg_pool"
    distribution = "psycopg-pool"
    module = "psycopg_pool"
    configuration = "ConnectionPool(dsn, min_size=N, max_size=N)"
    empty = (
        "looks at the driver's state; its commit(), which sends nothing; reads the clock five times; counters"
    )

    def __init__(self, driver: Driver, size: int, idle: int | None = None) -> None:
        import psycopg_pool

        self.pool = psycopg_pool.ConnectionPool(
            driver.dsn,
            connection_class=driver.connection_class,
            min_size=size if idle is None else idle,
            max_size=size,
            open=True,
        )
        self.pool.wait()
        self.lease = self.pool.connection
        self.acquire = self.pool.getconn
        self.release = self.pool.putconn

    def waiting(self) -> int:
        return len(self.pool._waiting)

    def close(self) -> None:
        self.pool.close()


class SQLAlchemy(Peer):
    name = "SQLAlchemy"
    distribution = "SQLAlchemy"
    module = "sqlalchemy"
    configuration = "QueuePool(connect, pool_size=N, max_overflow=0), without an Engine"
    empty = (
        "the driver's rollback(), which sends nothing (reset_on_return); a proxy and a finalizer each time"
    )
    method = "connect"

    def __init__(self, driver: Driver, size: int, idle: int | None = None) -> None:
        from sqlalchemy.pool import QueuePool

        kept = size if idle is None else idle
        self.pool = QueuePool(driver.connect, pool_size=kept, max_overflow=size - kept)
        self.lease = self.pool.connect
        self.acquire = self.pool.connect
        self.release = lambda conn: conn.close()
        if idle:
            fill(self, idle)

    def waiting(self) -> int:
        return len(self.pool._pool.not_empty._waiters)  # type: ignore[attr-defined] # not for everybody

    def close(self) -> None:
        self.pool.dispose()


class DBUtils(Peer):
    name = "DBUtils"
    distribution = "DBUtils"
    module = "dbutils"
    configuration = "PooledDB(psycopg, maxconnections=N, blocking=True)"
    empty = "the driver's rollback(), which sends nothing (reset=True), under the lock; a proxy each time"

    def __init__(self, driver: Driver, size: int, idle: int | None = None) -> None:
        from dbutils.pooled_db import PooledDB  # type: ignore[import-untyped] # has no types

        options = {"conninfo": driver.dsn} if driver.dsn else {}
        self.pool = PooledDB(
            driver.module,
            mincached=idle or 0,
            maxcached=idle or 0,  # 0: no limit
            maxconnections=size,
            blocking=True,
            **options,
        )
        self.lease = self.pool.connection
        self.acquire = self.pool.connection
        self.release = lambda conn: conn.close()

    def waiting(self) -> int:
        return len(self.pool._lock._waiters)

    def close(self) -> None:
        self.pool.close()


class PyPIConnpool(Peer):
    """The package that is called connpool on PyPI: same import name, so never in one process with ours."""

    name = "connpool 1.0.14 (PyPI)"
    distribution = "connpool"
    module = "connpool"
    configuration = "ConnectionPool.from_callables(connect, close=..., config=PoolConfig(max_size=N))"
    empty = "nothing: it resets only if it is given a function for that; counters, under a second lock"

    def __init__(self, driver: Driver, size: int, idle: int | None = None) -> None:
        import connpool

        ours: Any = connpool  # the type checker sees the other one
        self.pool = ours.ConnectionPool.from_callables(
            driver.connect,
            close=lambda conn: conn.close(),
            config=ours.PoolConfig(min_size=idle or 0, max_size=size),
        )
        if idle:
            self.pool.open()
        self.lease = self.pool.connection
        self.acquire = self.pool.acquire
        self.release = self.pool.release

    def waiting(self) -> int:
        return int(self.pool.stats().waiting)

    def close(self) -> None:
        self.pool.close()


class Floor(Peer):
    """The least that lends and takes back: a queue of the standard library, and a context manager."""

    name = "floor"
    distribution = None
    module = "queue"
    configuration = "queue.SimpleQueue, get and put inside a context manager with __slots__"
    empty = "nothing"

    def __init__(self, driver: Driver, size: int, idle: int | None = None) -> None:  # noqa: ARG002 -- not a pool
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.connections = [driver.connect() for _ in range(size)]
        for conn in self.connections:
            self.queue.put(conn)
        self.pool = self
        self.lease = self.connection  # as in a pool: one method call, one object, its two methods
        self.acquire = self.queue.get
        self.release = self.queue.put

    def connection(self) -> "FloorLease":
        return FloorLease(self.queue)

    def waiting(self) -> None:
        return None

    def close(self) -> None:
        for conn in self.connections:
            conn.close()


class FloorLease:
    __slots__ = ("conn", "queue")

    def __init__(self, queue: "queue.SimpleQueue[Any]") -> None:
        self.queue = queue

    def __enter__(self) -> Any:
        self.conn = self.queue.get()
        return self.conn

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        self.queue.put(self.conn)


PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (Connpool, PsycopgPool, SQLAlchemy, DBUtils, PyPIConnpool, Floor)
}
OURS, FLOOR = Connpool.name, Floor.name


def fill(peer: Peer, size: int) -> None:
    """Have a pool open all its connections before it is measured, also one that opens on demand."""
    held: list[Any] = []
    lock = threading.Lock()

    def hold() -> None:
        conn = peer.acquire()
        with lock:
            held.append(conn)

    run_threads(hold for _ in range(size))
    for conn in held:
        peer.release(conn)


def run_threads(jobs: Iterable[Callable[[], object]]) -> None:
    """Run jobs at the same time, each in its own thread; wait for all; raise what the first one raised."""
    errors: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
