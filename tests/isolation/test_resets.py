"""Resets that fail, hang, or are deferred, on real servers; and connections outside of the rotation."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median
from typing import Any

import psycopg
import pytest
from servers import MariaDB, PostgreSQL
from servers.process import wait_until
from servers.proxy import FaultProxy

from connpool import ConnectionPool, PoolClosed, PoolMisuse, PoolTimeout, reset
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter
from connpool.adapters.sqlite import SQLiteAdapter
from isolation.leaks import SESSION, one

pytestmark = pytest.mark.server

LATE = 1.0  # seconds more than the limit that a busy machine may take


class Driver:
    """A driver, its server, and what hangs on it."""

    def __init__(self, name: str, adapter: Callable[..., Any], address: tuple[str, int]) -> None:
        self.name = name
        self.adapter = adapter  # called with host and port
        self.address = address
        self.session = SESSION[name]
        self.nap = "select pg_sleep(5)" if name == "PostgreSQL" else "select sleep(5)"


@pytest.fixture(params=["PostgreSQL", "MariaDB"])
def driver(request: pytest.FixtureRequest) -> Driver:
    if request.param == "PostgreSQL":
        postgresql: PostgreSQL = request.getfixturevalue("postgresql")

        def connect(**other: Any) -> Any:
            return PsycopgAdapter(**{**postgresql.params, "autocommit": True, **other})

        return Driver("PostgreSQL", connect, postgresql.address)
    mariadb: MariaDB = request.getfixturevalue("mariadb")

    def connect_mysql(**other: Any) -> Any:
        return PyMySQLAdapter(**{**mariadb.params, "autocommit": True, "ssl_disabled": True, **other})

    return Driver("MariaDB", connect_mysql, mariadb.address)


def next_session(pool: ConnectionPool[Any], driver: Driver) -> object:
    with pool.connection() as conn:
        assert one(conn, "select 1") == 1
        return driver.session(conn)


# -- resets that fail ----------------------------------------------------------------------------------


def test_reset_that_raises_costs_the_connection_and_is_raised_once(driver: Driver) -> None:
    def fail(conn: Any) -> None:
        raise LookupError("mine")

    with ConnectionPool(driver.adapter(), max_size=1, reset=fail) as pool:
        with pytest.raises(LookupError, match="mine"), pool.connection() as conn:
            first = driver.session(conn)
        with pytest.raises(ZeroDivisionError) as caught, pool.connection() as conn:
            assert driver.session(conn) != first
            raise ZeroDivisionError("the block's own")
        assert any("mine" in note for note in caught.value.__notes__)
        assert pool.stats().in_use == 0
        assert pool.stats().discards["reset_failed"] == 2  # type: ignore[index] # a StrEnum


def test_reset_that_hangs_in_a_query_is_cut_off(driver: Driver) -> None:
    pool: ConnectionPool[Any] = ConnectionPool(
        driver.adapter(), max_size=1, reset=lambda conn: one(conn, driver.nap), reset_timeout=0.3
    )
    with pool:
        with pool.connection() as conn:
            first = driver.session(conn)
            left = time.monotonic()
        assert 0.2 < time.monotonic() - left < 0.3 + LATE
        with pytest.raises(ZeroDivisionError), pool.connection() as conn:
            assert driver.session(conn) != first
            raise ZeroDivisionError
        assert pool.stats().in_use == 0


@pytest.mark.parametrize("policy", ["rollback", "full"])
def test_black_hole_at_return_delays_the_borrower_by_the_limit_at_most(
    driver: Driver, fault_proxy: Callable[[Any], FaultProxy], policy: Any
) -> None:
    proxy = fault_proxy(driver.address)
    host, port = proxy.address
    pool: ConnectionPool[Any] = ConnectionPool(
        driver.adapter(host=host, port=port), max_size=1, reset=policy, reset_timeout=0.4
    )
    with pool:
        with pytest.raises(ZeroDivisionError), pool.connection() as conn:
            first = driver.session(conn)
            conn.cursor().execute("begin")
            proxy.black_hole()
            left = time.monotonic()
            raise ZeroDivisionError
        assert time.monotonic() - left < 0.4 + LATE
        proxy.pass_through()
        if policy == "rollback":
            assert next_session(pool, driver) != first
        else:  # what was sent has arrived by now, and so may its answer
            with pool.connection() as conn:
                assert one(conn, "select 1") == 1
        assert pool.stats().in_use == 0


def test_answer_that_does_not_come_costs_the_next_borrower_no_more_than_his_time(
    driver: Driver, fault_proxy: Callable[[Any], FaultProxy]
) -> None:
    proxy = fault_proxy(driver.address)
    host, port = proxy.address
    adapter = driver.adapter()
    dials = [adapter.connect, driver.adapter(host=host, port=port).connect]  # the last one first

    def dial(limit: float | None) -> Any:
        return (dials.pop() if dials[1:] else dials[0])(limit)

    adapter.connect = dial
    with ConnectionPool(adapter, max_size=2, reset="full", reset_timeout=0.4) as pool:
        with pool.connection() as conn:
            first = driver.session(conn)
            proxy.black_hole()
        began = time.monotonic()
        assert next_session(pool, driver) != first
        assert time.monotonic() - began < 0.4 + LATE


def test_reset_that_the_server_refuses_costs_the_connection(postgresql: PostgreSQL) -> None:
    pool: ConnectionPool[Any] = ConnectionPool(
        PsycopgAdapter(**postgresql.params, autocommit=True), max_size=1, reset="full"
    )
    with pool:
        with pool.connection() as conn:
            first = conn.info.backend_pid
        postgresql.terminate_sessions()
        with pool.connection() as conn:  # its answer was an error, or none
            assert conn.info.backend_pid != first


def test_parts_that_a_driver_does_not_know_are_refused_at_once(postgresql: PostgreSQL) -> None:
    with pytest.raises(PoolMisuse, match="does not know reset_connection; it knows: close_cursors, "):
        ConnectionPool(PsycopgAdapter(**postgresql.params), reset=[reset.unlisten, reset.reset_connection])
    pool = ConnectionPool(lambda: psycopg.connect(postgresql.dsn), reset=reset.reset_connection)
    with pool, pytest.raises(PoolMisuse, match="does not know reset_connection"), pool.connection():
        pass


def test_parts_alone_clear_what_they_name(postgresql: PostgreSQL) -> None:
    pool: ConnectionPool[Any] = ConnectionPool(
        PsycopgAdapter(**postgresql.params, autocommit=True),
        max_size=1,
        reset=[reset.unlock, reset.reset_settings],
    )
    with pool:
        with pool.connection() as conn:
            one(conn, "select pg_advisory_lock(1)")
            conn.execute("set statement_timeout = '1h'")
            conn.execute("create temp table t (a int)")
        with pool.connection() as conn:
            locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
            assert one(conn, locks) == 0
            assert one(conn, "show statement_timeout") == "0"
            assert one(conn, "select to_regclass('t')::text") == "t"  # not named, not cleared


def test_none_closes_what_would_need_a_word(driver: Driver) -> None:
    with ConnectionPool(driver.adapter(), max_size=1, reset="none") as pool:
        conn = pool.acquire()
        first = driver.session(conn)
        pool.release(conn)
        conn = pool.acquire()
        assert driver.session(conn) == first
        conn.cursor().execute("begin")
        pool.release(conn)
        assert next_session(pool, driver) != first
        assert pool.stats().discards["reset"] == 1  # type: ignore[index] # a StrEnum


# -- deferred -------------------------------------------------------------------------------------------


def cycles(pool: ConnectionPool[Any], times: int, pause: float) -> list[float]:
    """Return how long each borrow took its caller, with a pause after it."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        with pool.connection() as conn:
            one(conn, "select 1")
        taken.append(time.perf_counter() - began)
        time.sleep(pause)
    return taken


@pytest.mark.stress
def test_deferred_reset_costs_its_callers_no_round_trip(
    driver: Driver, fault_proxy: Callable[[Any], FaultProxy]
) -> None:
    proxy = fault_proxy(driver.address)
    proxy.delay(0.001)
    host, port = proxy.address
    with ExitStack() as stack:
        pools = [
            stack.enter_context(
                ConnectionPool(driver.adapter(host=host, port=port), max_size=1, reset=policy)
            )
            for policy in ("rollback", "full")
        ]
        synchronous = stack.enter_context(
            ConnectionPool(
                driver.adapter(host=host, port=port), max_size=1, reset="full", on_connect=lambda conn: None
            )
        )
        taken: list[list[float]] = [[], [], []]
        for _ in range(20):  # side by side: the machine is shared
            for number, pool in enumerate((*pools, synchronous)):
                taken[number] += cycles(pool, 5, pause=0.005)
    plain, deferred, awaited = map(median, taken)
    print(f"\ndeferred {deferred / plain:.2f} x, awaited {awaited / plain:.2f} x of {plain * 1000:.2f} ms")
    # The benchmark says how much; here a whole test run may be on the same processors.
    assert awaited > 1.3 * plain
    assert deferred - plain < 0.6 * (awaited - plain)


def test_answer_on_the_wire_is_waited_for_back_to_back(driver: Driver) -> None:
    with ConnectionPool(driver.adapter(), max_size=1, reset="full") as pool:
        sessions = {next_session(pool, driver) for _ in range(200)}
        assert len(sessions) == 1
        assert pool.stats().resets == 200


def test_caller_without_time_still_gets_an_idle_connection(driver: Driver) -> None:
    with ConnectionPool(driver.adapter(), max_size=1, reset="full") as pool:
        next_session(pool, driver)
        for _ in range(50):
            with pool.connection(timeout=0) as conn:
                assert one(conn, "select 1") == 1
        assert pool.stats().opened == 1


# -- outside of the rotation ----------------------------------------------------------------------------


def test_dedicated_connection_leaves_the_pool_its_places(driver: Driver) -> None:
    with ConnectionPool(driver.adapter(), max_size=1, max_dedicated=2) as pool:
        with pool.dedicated() as conn, pool.dedicated() as other:
            assert len({driver.session(conn), driver.session(other), next_session(pool, driver)}) == 3
            assert pool.stats().size == 1
            assert pool.stats().dedicated == 2
            with (
                pytest.raises(PoolTimeout, match=r"all 2 connections are held .*dedicated"),
                pool.dedicated(timeout=0.05),
            ):
                pass
        wait_until(lambda: pool.stats().dedicated == 0)
        assert pool.stats().size == 1


def test_dedicated_connection_is_closed_at_the_end_and_never_lent_again(postgresql: PostgreSQL) -> None:
    adapter = PsycopgAdapter(**postgresql.params, autocommit=True)
    with ConnectionPool(adapter, max_size=1) as pool:
        with pool.dedicated() as conn:
            conn.execute("listen news")
            one(conn, "select pg_advisory_lock(42)")
            first = conn.info.backend_pid
        with pool.dedicated() as conn:
            assert conn.info.backend_pid != first
        with pool.connection() as conn:
            wait_until(lambda: one(conn, "select pg_try_advisory_lock(42)"))


def test_dedicated_connections_end_with_their_pool(tmp_path: Any) -> None:
    pool = ConnectionPool(SQLiteAdapter(str(tmp_path / "a.db")), max_size=1)
    with pool.dedicated():
        closing = threading.Thread(target=pool.close, args=(10.0,))
        closing.start()
        wait_until(lambda: pool._core.closed)
        with pytest.raises(PoolClosed), pool.dedicated():
            pass
        assert closing.is_alive()
    closing.join(10)
    assert not closing.is_alive()
    assert pool.stats().dedicated == 0


@pytest.fixture(autouse=True)
def _no_session_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """See that what the servers see in the end is what the pools say: nothing."""
    names = {"postgresql", "mariadb"} & {*request.fixturenames}
    if "driver" in request.fixturenames:
        names = {request.node.callspec.params["driver"].lower()}
    servers = [request.getfixturevalue(name) for name in sorted(names)]
    before = {session.id for server in servers for session in server.census(user=server.user)}
    yield
    for server in servers:
        wait_until(
            lambda server=server: {session.id for session in server.census(user=server.user)} <= before,
            what="no session is left",
        )
