"""The primary changes: a pool leaves the old one, and the standby's refusals are nobody's for long."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import psycopg
import pytest
from servers import FaultProxy, MariaDB, PostgreSQL
from servers.process import wait_until
from servers.standby import Standby

from connpool import ConnectionPool, PoolUnavailable
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter

pytestmark = [pytest.mark.server, pytest.mark.chaos, pytest.mark.timeout(180)]

SIZE = 5
SETTLED = 5.0  # seconds after the switch from which nobody may fail


@pytest.fixture
def primary() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        server.execute("create table written (at timestamptz default clock_timestamp())", dbname="app")
        server.execute("grant all on written to app", dbname="app")
        yield server


@pytest.fixture
def standby(primary: PostgreSQL) -> Iterator[Standby]:
    with Standby(primary) as server:
        yield server


class Writers:
    """Threads that write, and note when they failed."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self.failed: list[tuple[float, Exception]] = []
        self.written = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(pool,)) for _ in range(SIZE)]

    def _run(self, pool: ConnectionPool[Any]) -> None:
        while not self._stop.wait(0.002):
            try:
                with pool.connection() as conn:
                    conn.cursor().execute("insert into written values (default)")
                self.written += 1
            except Exception as exc:
                self.failed.append((time.monotonic(), exc))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


@pytest.mark.parametrize("old", ["read-only", "stopped"])
def test_writers_follow_a_promoted_standby(
    primary: PostgreSQL, standby: Standby, fault_proxy: Callable[[Any], FaultProxy], old: str
) -> None:
    proxy = fault_proxy(primary)
    host, port = proxy.address
    adapter = PsycopgAdapter(**{**primary.params, "host": host, "port": port})
    with ConnectionPool(adapter, max_size=SIZE, require="read-write") as pool:
        with Writers(pool) as writers:
            wait_until(lambda: writers.written > 100 and pool.stats().size == SIZE)
            assert not writers.failed
            standby.promote()
            proxy.switch(standby.address)
            if old == "stopped":
                primary.stop()
            else:  # as managed services do it: its sessions live on
                primary.execute("alter system set default_transaction_read_only = on")
                primary.execute("select pg_reload_conf()")
            switched = time.monotonic()
            before = writers.written
            wait_until(lambda: writers.written > before + 500, timeout=20)
            time.sleep(0.5)
        assert len(writers.failed) <= SIZE, writers.failed
        assert all(at < switched + SETTLED for at, _ in writers.failed)
        [[count]] = standby.execute("select count(*) from written", dbname="app")
        assert isinstance(count, int)
        assert count >= 500
        if old == "read-only":
            assert pool.stats().discards["demoted"] > 0  # type: ignore[index] # a StrEnum
            wait_until(lambda: not primary.census(user="app"))


def test_standby_is_refused_where_writes_are_required(primary: PostgreSQL, standby: Standby) -> None:
    with ConnectionPool(PsycopgAdapter(**standby.params), require="read-write", max_size=1) as pool:
        with pytest.raises(PoolUnavailable, match=r"takes no writes, and require='read-write'"):
            with pool.connection(timeout=2):
                pass
        standby.promote()
        with pool.connection(timeout=5) as conn:
            conn.execute("insert into written values (default)")


def test_transaction_that_its_borrower_made_read_only_is_no_failover(primary: PostgreSQL) -> None:
    with ConnectionPool(PsycopgAdapter(**primary.params), max_size=2) as pool:
        for _ in range(3):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection() as conn:
                conn.execute("set transaction read only")
                conn.execute("insert into written values (default)")
        assert pool.stats().opened == 1


def test_mariadb_that_became_read_only_is_left() -> None:
    with MariaDB() as old, MariaDB() as new:
        servers = [old, new]
        for server in servers:
            server.execute(f"create table {server.params['database']}.written (at timestamp default now())")

        def connect() -> Any:
            return PyMySQLAdapter(**servers[0].params)

        class Following(PyMySQLAdapter[Any]):
            """What a name that leads to the primary does."""

            def connect(self, limit: float | None, credentials: Any = None) -> Any:
                return connect().connect(limit, credentials)

        with ConnectionPool(Following(), max_size=SIZE, require="read-write") as pool:
            with Writers(pool) as writers:
                wait_until(lambda: writers.written > 100 and pool.stats().size == SIZE)
                servers.reverse()
                old.execute("set global read_only = 1")
                before = writers.written
                wait_until(lambda: writers.written > before + 500, timeout=20)
            assert len(writers.failed) <= SIZE, writers.failed
            assert pool.stats().discards["demoted"] > 0  # type: ignore[index] # a StrEnum
            wait_until(lambda: not old.census(user=old.user))
        old.execute("set global read_only = 0")
