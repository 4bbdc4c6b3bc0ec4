"""Servers are restarted under load, or end sessions behind the pool's back: what callers notice of it."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Self

import pytest
from servers import MariaDB, PostgreSQL
from servers.process import wait_until

from connpool import ConnectionPool, PoolError
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter

pytestmark = [pytest.mark.server, pytest.mark.chaos, pytest.mark.timeout(180)]

THREADS, SIZE = 50, 10
TIMEOUT = 5.0  # seconds for an acquire
LATE = 0.25  # seconds that an acquire may take beyond it, under this load
RECOVERS_WITHIN = 1.0  # seconds after the server accepts connections again


def adapter_for(server: PostgreSQL | MariaDB) -> Any:
    if isinstance(server, PostgreSQL):
        return PsycopgAdapter(**server.params)
    return PyMySQLAdapter(**server.params, ssl_disabled=True)


def work(conn: Any) -> None:
    with conn.cursor() as cursor:
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)


def census(server: PostgreSQL | MariaDB) -> int:
    return len(server.census(user=server.user))


class Load:
    """Threads that borrow and work, and note what became of it and when."""

    def __init__(self, pool: ConnectionPool[Any], threads: int) -> None:
        self.done: list[tuple[float, float, float, Exception | None]] = []  # began, got it, ended, error
        self._pool = pool
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            began = got = time.monotonic()
            error = None
            try:
                with self._pool.connection(timeout=TIMEOUT) as conn:
                    got = time.monotonic()
                    work(conn)
            except Exception as exc:
                error = exc
            now = time.monotonic()
            if isinstance(error, PoolError):
                got = now
            self.done.append((began, got, now, error))
            time.sleep(0.002)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "somebody hangs"


@pytest.fixture(params=["PostgreSQL", "MariaDB"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgreSQL | MariaDB]:
    """Provide a server of one's own: it will not survive."""
    with {"PostgreSQL": PostgreSQL, "MariaDB": MariaDB}[request.param]() as server:
        yield server


@pytest.mark.parametrize("how", ["stopped", "at once", "killed"])
def test_restart_is_felt_only_while_the_server_is_away(server: PostgreSQL | MariaDB, how: str) -> None:
    with ConnectionPool(adapter_for(server), max_size=SIZE) as pool:
        with Load(pool, THREADS) as load:
            wait_until(lambda: len(load.done) > 1000)
            away = time.monotonic()
            if how == "killed":
                server.kill()
            elif how == "at once" and isinstance(server, PostgreSQL):
                os.kill(server.pid, signal.SIGQUIT)
                wait_until(lambda: not server.running)
                server.stop()
            else:
                server.stop()
            time.sleep(0.5)
            server.start()
            back = time.monotonic()
            wait_until(lambda: sum(ended > back and not error for _, _, ended, error in load.done) > 1000)
        assert all(got - began < TIMEOUT + LATE for began, got, _, _ in load.done)
        # Those in flight when it went away began before; nobody begins after it is back and fails.
        failed = [(began - back, ended - back, error) for began, _, ended, error in load.done if error]
        assert not [entry for entry in failed if entry[0] > 0], failed
        assert all(ended - back < RECOVERS_WITHIN for _, ended, _ in [(0, e + back, x) for _, e, x in failed])
        first = min(ended for _, got, ended, error in load.done if got > back and not error)
        assert first - back < RECOVERS_WITHIN
        assert away < back
        stats = pool.stats()
        assert stats.opened <= 2 * SIZE
        assert stats.dials <= 2 * SIZE + stats.dial_failures
        wait_until(lambda: census(server) == pool.stats().size)


def test_idle_sessions_that_were_killed_cost_no_error_and_no_ping(server: PostgreSQL | MariaDB) -> None:
    with ConnectionPool(adapter_for(server), max_size=SIZE, probe_after=0.2, ping_after=None) as pool:
        with ExitStack() as stack:
            for _ in range(SIZE):
                work(stack.enter_context(pool.connection()))
        time.sleep(0.3)
        server.terminate_sessions()
        for _ in range(20):
            with pool.connection() as conn:
                work(conn)


def test_server_that_ends_idle_sessions_never_ends_one_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "connpool")
    with MariaDB(wait_timeout=3) as server:
        # Neither probes nor pings: they would find what must not happen.
        pool = ConnectionPool(adapter_for(server), max_size=3, probe_after=None, ping_after=None)
        with pool:
            for _ in range(2):
                with ExitStack() as stack:
                    for _ in range(3):
                        work(stack.enter_context(pool.connection()))
                time.sleep(5.0)
            with pool.connection() as conn:
                work(conn)
            assert pool.stats().discards["server_limit"] == 6  # type: ignore[index] # a StrEnum
    shortened = [record.getMessage() for record in caplog.records if record.name == "connpool"]
    assert len(shortened) == 1
    assert "idle connections are closed after 2.4 s in place of idle_timeout=600.0" in shortened[0]


def test_postgresql_that_ends_idle_sessions_never_ends_one_of_ours() -> None:
    with PostgreSQL(settings={"idle_session_timeout": "2s"}) as server:
        pool = ConnectionPool(adapter_for(server), max_size=2, probe_after=None, ping_after=None)
        with pool:
            for _ in range(2):
                with pool.connection() as conn, pool.connection() as other:
                    work(conn)
                    work(other)
                time.sleep(3.0)
            with pool.connection() as conn:
                work(conn)
            assert pool.stats().discards["server_limit"] == 4  # type: ignore[index] # a StrEnum


def test_ten_pools_come_back_without_a_storm(server: PostgreSQL | MariaDB) -> None:
    pools = [
        ConnectionPool(adapter_for(server), max_size=9, max_connecting=2, name=f"pool-{number}")
        for number in range(10)
    ]
    peak = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, *(pool.stats().opening for pool in pools))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ExitStack() as stack:
            loads = [stack.enter_context(Load(pool, 9)) for pool in pools]
            wait_until(lambda: all(len(load.done) > 50 for load in loads), timeout=30)
            server.kill()
            time.sleep(0.3)
            server.start()
            back = time.monotonic()
            wait_until(
                lambda: all(
                    any(ended > back and not error for *_, ended, error in load.done) for load in loads
                )
            )
            time.sleep(0.5)
        texts = {str(error) for load in loads for *_, error in load.done if error}
        assert not [text for text in texts if "too many" in text.lower()], texts
        assert peak <= 2
    finally:
        stop.set()
        watcher.join()
        for pool in pools:
            pool.close()
