"""No packet passes, no FIN, no RST: each step of the pool ends in time, and no thread stays behind."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from servers import FaultProxy, MariaDB, PostgreSQL
from servers.process import wait_until

from connpool import ConnectionPool, PoolError, PoolTimeout, PoolUnavailable
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter

pytestmark = [pytest.mark.server, pytest.mark.chaos]

LATE = 0.25  # seconds beyond a limit; more is a failure even on a busy machine


class Routes:
    """An adapter whose way leads through a proxy, until it is told to go directly."""

    def __init__(self, server: PostgreSQL | MariaDB, proxy: FaultProxy) -> None:
        self.server, self.proxy = server, proxy
        kind: Any = PsycopgAdapter if isinstance(server, PostgreSQL) else PyMySQLAdapter
        host, port = proxy.address
        params: dict[str, Any] = {**server.params}
        if kind is PyMySQLAdapter:
            params["ssl_disabled"] = True
        self.adapter = kind(**{**params, "host": host, "port": port})
        self.through, self.directly = self.adapter.connect, kind(**params).connect
        self.adapter.connect = self.connect
        self.is_direct = False

    def connect(self, limit: float | None, credentials: Any = None) -> Any:
        return (self.directly if self.is_direct else self.through)(limit, credentials)


@pytest.fixture(params=["postgresql", "mariadb"])
def routes(request: pytest.FixtureRequest, fault_proxy: Callable[[Any], FaultProxy]) -> Iterator[Routes]:
    server = request.getfixturevalue(request.param)
    routes = Routes(server, fault_proxy(server))
    yield routes
    routes.proxy.pass_through()


def work(conn: Any) -> None:
    with conn.cursor() as cursor:
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)


def fill(pool: ConnectionPool[Any], size: int) -> None:
    with ExitStack() as stack:
        for _ in range(size):
            work(stack.enter_context(pool.connection()))


def borrow(pool: ConnectionPool[Any], timeout: float) -> float:
    """Borrow and work; return how long the acquire took."""
    began = time.monotonic()
    with pool.connection(timeout=timeout) as conn:
        took = time.monotonic() - began
        work(conn)
    return took


def test_idle_connections_in_a_black_hole_are_left_for_a_new_route(routes: Routes) -> None:
    with ConnectionPool(routes.adapter, max_size=4, probe_after=0.05, ping_after=0.1) as pool:
        fill(pool, 4)
        time.sleep(0.2)
        routes.proxy.black_hole()
        routes.is_direct = True
        assert borrow(pool, timeout=2.0) < 2.0
        assert pool.stats().discards["silent"] == 4  # type: ignore[index] # a StrEnum


def test_nothing_passes_at_all(routes: Routes) -> None:
    with ConnectionPool(routes.adapter, max_size=4, probe_after=0.05, ping_after=0.1) as pool:
        fill(pool, 4)
        time.sleep(0.2)
        routes.proxy.black_hole()
        began = time.monotonic()
        with pytest.raises(PoolUnavailable), pool.connection(timeout=2.0):
            pass
        assert time.monotonic() - began < 2.0 + LATE
        routes.proxy.pass_through()
        assert borrow(pool, timeout=10.0) < 10.0


def test_ping_after_suspicion_finds_what_a_probe_cannot(routes: Routes) -> None:
    """One connection is found dead; the others, idle for a moment only, are asked before they are lent."""
    with ConnectionPool(routes.adapter, max_size=3, probe_after=0.05, reset_timeout=0.6) as pool:
        fill(pool, 3)
        time.sleep(0.1)
        with pytest.raises(Exception) as caught, pool.connection() as conn:  # noqa: PT011
            routes.server.terminate_sessions()
            work(conn)
        assert not isinstance(caught.value, PoolError)
        for _ in range(20):
            borrow(pool, timeout=5.0)


def test_commit_into_a_black_hole_ends_in_time_and_says_what_is_unknown(routes: Routes) -> None:
    with ConnectionPool(routes.adapter, max_size=1, commit_timeout=0.5) as pool:
        fill(pool, 1)
        with pytest.raises(PoolTimeout, match="whether the server has committed is not known"):
            with pool.connection() as conn:
                work(conn)
                routes.proxy.black_hole()
                began = time.monotonic()
        assert time.monotonic() - began < 0.5 + LATE
        routes.is_direct = True
        borrow(pool, timeout=5.0)


def test_return_into_a_black_hole_ends_in_time(routes: Routes) -> None:
    with ConnectionPool(routes.adapter, max_size=1, reset_timeout=0.5) as pool:
        with pytest.raises(LookupError), pool.connection() as conn:
            work(conn)
            routes.proxy.black_hole()
            began = time.monotonic()
            raise LookupError
        assert time.monotonic() - began < 0.5 + LATE
        routes.is_direct = True
        borrow(pool, timeout=5.0)


def test_dials_into_a_black_hole_end_and_leave_no_thread(routes: Routes) -> None:
    before = threading.active_count()
    routes.proxy.black_hole()
    with ConnectionPool(routes.adapter, max_size=4, connect_timeout=0.5) as pool:
        began = time.monotonic()
        with pytest.raises(PoolUnavailable), pool.connection(timeout=2.0):
            pass
        assert time.monotonic() - began < 2.0 + LATE
    wait_until(lambda: threading.active_count() <= before, what="no thread is left")


def test_close_never_waits_for_a_dead_socket(routes: Routes) -> None:
    pool = ConnectionPool(routes.adapter, max_size=4)
    fill(pool, 4)
    routes.proxy.black_hole()
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 1.0 + LATE


def test_keepalive_finds_the_dead_before_anybody_borrows_them(routes: Routes) -> None:
    pool = ConnectionPool(
        routes.adapter, max_size=3, keepalive=0.2, reset_timeout=0.5, probe_after=None, ping_after=None
    )
    with pool:
        fill(pool, 3)
        routes.proxy.black_hole()
        routes.is_direct = True
        wait_until(lambda: pool.stats().discards["silent"] == 3)  # type: ignore[index] # a StrEnum
        borrow(pool, timeout=2.0)


def test_keepalive_keeps_connections_that_nobody_uses(routes: Routes) -> None:
    with ConnectionPool(routes.adapter, max_size=3, keepalive=0.1) as pool:
        fill(pool, 3)
        time.sleep(1.0)
        wait_until(lambda: pool.stats().idle == 3)  # one may be asked at this very moment
        assert pool.stats().opened == 3
