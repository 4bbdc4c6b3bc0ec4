"""Real servers that are killed, restarted, black-holed and refused; the pool against each of them.

Every test ends with a census: what the server sees equals what the pool says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pymysql
import pytest
from servers import FaultProxy, MariaDB, PostgreSQL, wait_until
from threads.crowd import crowd

from connpool import ConnectionPool, PoolError, PoolTimeout, PoolUnavailable
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter

pytestmark = [pytest.mark.chaos, pytest.mark.server]


class Side:
    """One kind of server, with what the tests need of it."""

    def __init__(self, server: PostgreSQL | MariaDB) -> None:
        self.server = server
        self.error: type[Exception] = psycopg.Error if isinstance(server, PostgreSQL) else pymysql.Error

    def adapter(self, address: tuple[str, int] | None = None) -> Any:
        host, port = address or self.server.address
        if isinstance(self.server, PostgreSQL):
            return PsycopgAdapter(**{**self.server.params, "host": host, "port": port})
        return PyMySQLAdapter(**{**self.server.params, "host": host, "port": port})

    def sessions(self) -> int:
        return len(self.server.census())

    def kill(self) -> int:
        return self.server.terminate_sessions()

    def work(self, conn: Any, seconds: float = 0.0) -> None:
        with conn.cursor() as cursor:
            cursor.execute(
                f"select pg_sleep({seconds})"
                if isinstance(self.server, PostgreSQL)
                else f"select sleep({seconds})"
            )
            cursor.fetchall()


@pytest.fixture(params=["postgresql", "mariadb"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    side = Side(request.getfixturevalue(request.param))
    yield side
    assert wait_until(lambda: side.sessions() == 0, 10.0), f"sessions left: {side.server.census()}"


def agree(side: Side, pool: ConnectionPool[Any]) -> Callable[[], bool]:
    """Return a test for: the server sees as many sessions as the pool has."""
    return lambda: side.sessions() == pool.stats().size


def test_every_session_killed_under_load_fails_only_what_was_in_flight(side: Side) -> None:
    stop, errors, failed_acquires = threading.Event(), [], []
    with ConnectionPool(side.adapter(), max_size=5) as pool:

        def work(_: int) -> None:
            while not stop.is_set():
                try:
                    with pool.connection() as conn:
                        side.work(conn, 0.01)
                except PoolError as exc:
                    failed_acquires.append(exc)
                except side.error as exc:
                    errors.append(exc)

        timers = [threading.Timer(1.0, side.kill), threading.Timer(2.5, stop.set)]
        for timer in timers:
            timer.start()
        crowd(20, work)
        assert failed_acquires == []
        # Those in flight, and those whose dead connection was handed to them in the same instant.
        assert len(errors) <= 2 * 5
        assert wait_until(agree(side, pool), 10.0)


def test_sessions_killed_while_idle_cost_nobody_an_error(side: Side) -> None:
    with ConnectionPool(side.adapter(), max_size=3, probe_after=0) as pool:
        conns = [pool.acquire() for _ in range(3)]
        for conn in conns:
            pool.release(conn)
        side.kill()
        crowd(3, lambda _: _use(pool, side))
        assert wait_until(agree(side, pool), 10.0)


def _use(pool: ConnectionPool[Any], side: Side, seconds: float = 0.0) -> None:
    with pool.connection() as conn:
        side.work(conn, seconds)


def test_a_server_killed_and_started_again_is_found_within_two_seconds(side: Side) -> None:
    with ConnectionPool(side.adapter(), max_size=4, acquire_timeout=30.0) as pool:
        crowd(4, lambda _: _use(pool, side))
        side.server.kill()
        back = threading.Thread(target=side.server.start)
        back.start()
        deadline = time.monotonic() + 30.0
        while True:  # an idle connection of before may fail its statement within `probe_after`
            try:
                _use(pool, side)
                break
            except (side.error, PoolError):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        back.join()
        began = time.monotonic()
        crowd(8, lambda _: _use(pool, side))
        assert time.monotonic() - began < 2.0
        assert wait_until(agree(side, pool), 10.0)


def test_a_server_that_is_away_is_explained_with_its_own_words(side: Side) -> None:
    with FaultProxy(side.server.address) as proxy:
        with ConnectionPool(side.adapter(proxy.address), probe_after=0) as pool:
            _use(pool, side)
            proxy.refuse()
            proxy.send_rst()
            with pytest.raises(
                PoolUnavailable, match=r"(?i)last connect error: .*(refused|can't connect)"
            ) as caught:
                pool.acquire(timeout=1.0)
            assert isinstance(caught.value.__cause__, side.error)
            assert isinstance(caught.value, side.error), "also the driver's OperationalError"
            proxy.pass_through()
            _use(pool, side)


def test_a_black_hole_ends_every_step_in_time(side: Side) -> None:
    with FaultProxy(side.server.address) as proxy:
        pool = ConnectionPool(
            side.adapter(proxy.address),
            max_size=2,
            probe_after=0,
            ping_after=0,
            reset_timeout=0.5,
            connect_timeout=1.0,
        )
        conn = pool.acquire()
        with conn.cursor() as cursor:
            cursor.execute("begin")
        proxy.black_hole()
        began = time.monotonic()
        pool.release(conn)  # its rollback gets no answer
        assert time.monotonic() - began < 1.5
        began = time.monotonic()
        with pytest.raises((PoolUnavailable, PoolTimeout)):
            pool.acquire(timeout=1.0)
        assert time.monotonic() - began < 2.0
        proxy.pass_through()
        _use(pool, side)
        began = time.monotonic()
        pool.close()
        assert time.monotonic() - began < 3.0


@pytest.mark.parametrize("kind", [PostgreSQL, MariaDB])
def test_a_server_that_is_full_is_back_pressure(kind: type[PostgreSQL | MariaDB]) -> None:
    """Callers go on with the connections that are held, although no further one is to be had."""
    with kind(max_connections=12) as server:
        side = Side(server)
        with ConnectionPool(side.adapter(), max_size=50, acquire_timeout=30.0) as pool:
            for _ in range(5):
                crowd(40, lambda _: _use(pool, side, 0.2))
            stats = pool.stats()
            assert stats.timeouts == 0
            assert stats.dial_failures > 0, "the server was never full: the test proves nothing"
            assert stats.acquires >= 200
