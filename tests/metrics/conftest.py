"""A pool in which something of everything has happened."""

import threading
from collections.abc import Iterator

import pytest
from servers import wait_until

from connpool import ConnectionPool, PoolOverloaded, PoolTimeout, PoolUnavailable
from connpool.testing import FakeAdapter, FakeConnection, FakeServer


def queue(pool: ConnectionPool[FakeConnection]) -> threading.Thread:
    """Start a thread that queues for a connection, and return when it does."""

    def borrow() -> None:
        with pool.connection():
            pass

    thread = threading.Thread(target=borrow)
    thread.start()
    wait_until(lambda: pool.stats(reset_peaks=False).waiting)
    return thread


@pytest.fixture
def pool() -> Iterator[ConnectionPool[FakeConnection]]:
    server = FakeServer()
    with ConnectionPool(
        FakeAdapter(server), max_size=2, max_waiting=1, name="orders", reset="rollback"
    ) as pool:
        for _ in range(30):
            with pool.connection():
                pass
        first, second = pool.acquire(), pool.acquire()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.01)
        queued = queue(pool)
        with pytest.raises(PoolOverloaded):
            pool.acquire()
        pool.release(first)
        queued.join()
        pool.detach(second).close()
        conn = pool.acquire()
        conn.execute("insert")
        pool.release(conn)
        server.down()
        pool.evict()
        with pytest.raises(PoolUnavailable):
            pool.acquire(timeout=0.01)
        server.up()
        wait_until(lambda: pool.stats(reset_peaks=False).opening == 0)
        with pool.connection(timeout=10):
            pass
        yield pool
