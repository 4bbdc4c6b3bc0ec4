"""`debug=True`: what was given back is refused to whoever still has it, through each way of borrowing."""

import gc
import re
import threading
import weakref
from typing import Any

import pytest

from connpool import ConnectionPool, PoolMisuse
from connpool.testing import FakeAdapter, FakeConnection, FakeServer


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def guarded(server: FakeServer, **options: Any) -> ConnectionPool[FakeConnection]:
    return ConnectionPool(FakeAdapter(server), debug=True, **options)


RELEASED_HERE = re.compile(r"released at (\S*/)?test_guarding\.py:\d+ in MainThread")


@pytest.mark.parametrize("way", ["connection", "transaction", "dedicated"])
def test_use_after_the_block_names_where_it_ended(server: FakeServer, way: str) -> None:
    with guarded(server, max_size=1) as pool:
        with getattr(pool, way)() as conn:
            assert isinstance(conn, FakeConnection)
            conn.execute("select 1")
            cursor = conn.cursor()
        with pool.connection() as other:
            for use in (lambda: conn.execute("select 2"), lambda: cursor.execute("select 3"), conn.commit):
                with pytest.raises(PoolMisuse, match=RELEASED_HERE):
                    use()
            other.execute("select 4")
    assert not {"select 2", "select 3"} & set(server.statements)
    assert "select 4" in server.statements


def test_use_after_release_names_where_it_was_released(server: FakeServer) -> None:
    with guarded(server, max_size=1) as pool:
        conn = pool.acquire()
        conn.execute("select 1")
        pool.release(conn)
        with pytest.raises(PoolMisuse, match=RELEASED_HERE):
            conn.execute("select 2")


def test_second_release_is_refused_although_the_connection_serves_another(server: FakeServer) -> None:
    with guarded(server, max_size=1) as pool:
        first = pool.acquire()
        pool.release(first)
        second = pool.acquire()
        for misuse in (pool.release, pool.detach):
            with pytest.raises(
                PoolMisuse, match=r"was released at .*test_guarding.py:\d+ in MainThread already"
            ):
                misuse(first)
        second.execute("select 1")
        pool.release(second)
        assert pool.stats().size == pool.stats().idle == 1


def test_release_while_another_thread_is_inside_a_call_closes_the_connection(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(conn: FakeConnection) -> None:
        inside.set()
        leave.wait(10)

    monkeypatch.setattr(FakeConnection, "commit", slow)
    with guarded(server, max_size=1) as pool:
        conn = pool.acquire()
        thread = threading.Thread(target=conn.commit, name="other")
        thread.start()
        inside.wait(10)
        with pytest.raises(PoolMisuse, match=r"while it was in use: other was inside FakeConnection\.commit"):
            pool.release(conn)
        leave.set()
        thread.join()
        with pool.connection():
            assert pool.stats().opened == 2


def test_detached_connection_is_the_drivers_own(server: FakeServer) -> None:
    with guarded(server, max_size=1) as pool:
        conn = pool.detach(pool.acquire())
        assert type(conn) is FakeConnection
        conn.close()


def test_guarded_connection_that_its_borrower_loses_comes_back(server: FakeServer) -> None:
    with guarded(server, max_size=1) as pool:
        conn = pool.acquire()
        watch = weakref.ref(conn)
        with pytest.warns(ResourceWarning, match=r"test_guarding\.py:\d+ was lost"):
            del conn
            gc.collect()
            assert watch() is None
            with pool.connection(timeout=5) as conn:
                conn.execute("select 1")


def test_lease_in_use_keeps_its_loan_when_it_is_entered_again(server: FakeServer) -> None:
    with guarded(server, max_size=1) as pool:
        lease = pool.connection()
        with lease as conn:
            with pytest.raises(PoolMisuse, match="one `with` block at a time"):
                lease.__enter__()
            conn.execute("select 1")


def test_error_of_begin_ends_the_loan(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(adapter: FakeAdapter, conn: FakeConnection) -> None:
        raise LookupError("begin")

    monkeypatch.setattr(FakeAdapter, "begin", refuse)
    with guarded(server, max_size=1) as pool:
        with pytest.raises(LookupError), pool.transaction():
            pytest.fail("the block must not run")
        assert pool.stats().idle == 1


def test_pool_without_debug_lends_the_drivers_own_object(server: FakeServer) -> None:
    with ConnectionPool(FakeAdapter(server)) as pool, pool.connection() as conn:
        assert type(conn) is FakeConnection
