"""A forked child begins anew: it shares no session with its parent, and does its parent no harm."""

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers import MariaDB, PostgreSQL
from servers.process import wait_until

from connpool import ConnectionPool
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter

pytestmark = [
    pytest.mark.server,
    pytest.mark.chaos,
    # Python 3.12 and later warn of exactly what is tested here: a fork beside threads.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


class Driver:
    """A driver with its server."""

    def __init__(self, adapter: Callable[[], Any], session: Callable[[Any], int], server: Any) -> None:
        self.adapter = adapter
        self.session = session
        self.server = server

    def ask(self, conn: Any) -> int:
        """Make a round trip and return which session it was."""
        with conn.cursor() as cursor:
            cursor.execute("select 1")
            assert cursor.fetchone() == (1,)
        return self.session(conn)

    def census(self) -> set[int]:
        return {session.id for session in self.server.census(user=self.server.user)}


@pytest.fixture(params=["PostgreSQL, TLS", "MariaDB"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    if request.param == "MariaDB":
        mariadb: MariaDB = request.getfixturevalue("mariadb")
        yield Driver(lambda: PyMySQLAdapter(**mariadb.params), lambda conn: conn.thread_id(), mariadb)
    else:
        server: PostgreSQL = request.getfixturevalue("system_postgresql")
        yield Driver(lambda: PsycopgAdapter(**server.params), lambda conn: conn.info.backend_pid, server)


def in_child(job: Callable[[], Any]) -> Any:
    """Fork, do a job in the child, and return what it returned; its error fails the test."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                answer = {"result": job()}
            except BaseException:
                answer = {"error": traceback.format_exc()}
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said, "the child died without a word"
    answer = json.loads(said)
    assert "error" not in answer, answer["error"]
    return answer["result"]


def test_child_has_sessions_of_its_own_and_the_parents_live_on(driver: Driver) -> None:
    with ConnectionPool(driver.adapter(), max_size=3) as pool:
        with pool.connection() as first, pool.connection() as second:
            parents = {driver.ask(first), driver.ask(second)}

        def job() -> list[int]:
            with pool.connection(timeout=10) as first, pool.connection(timeout=10) as second:
                sessions = [driver.ask(first), driver.ask(second)]
            assert pool.stats().size == 2
            pool.close()
            return sessions

        children = set(in_child(job))
        assert len(children) == 2
        assert not children & parents
        with pool.connection() as first, pool.connection() as second:
            assert {driver.ask(first), driver.ask(second)} == parents
        assert pool.stats().opened == 2
        wait_until(lambda: driver.census() >= parents and not driver.census() & children)


def test_connection_that_was_lent_at_the_fork_is_refused_in_the_child(driver: Driver) -> None:
    with ConnectionPool(driver.adapter(), max_size=2) as pool:
        bare = pool.acquire()
        with pool.connection() as conn:
            mine = driver.ask(conn)

            def job() -> int:
                for refused in (conn, bare):
                    with pytest.raises(Exception):  # noqa: B017, PT011 # whatever the driver has
                        driver.ask(refused)
                with pool.connection(timeout=10) as other:
                    return driver.ask(other)

            assert in_child(job) != mine
            assert driver.ask(conn) == mine
        pool.release(bare)
        with pool.connection() as conn:
            driver.ask(conn)
        assert pool.stats().opened == 2


def test_child_that_leaves_its_parents_block_harms_nobody(driver: Driver) -> None:
    """As with os.fork() inside a ``with`` block, whose end comes in both processes."""
    with ConnectionPool(driver.adapter(), max_size=1) as pool:
        reader, writer = os.pipe()
        with pool.connection() as conn:
            mine = driver.ask(conn)
            pid = os.fork()
        if pid == 0:
            try:
                with pool.connection(timeout=10) as conn:
                    os.write(writer, json.dumps(driver.ask(conn)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            child = json.loads(pipe.read() or b"null")
        os.waitpid(pid, 0)
        assert child not in (mine, None)
        with pool.connection() as conn:
            assert driver.ask(conn) == mine


def test_fork_while_threads_use_the_pool(driver: Driver) -> None:
    """Some of them are inside the lock, or in the queue, which in the child nobody will ever leave."""
    stop = threading.Event()
    errors: list[Exception] = []
    with ConnectionPool(driver.adapter(), max_size=3) as pool:

        def work() -> None:
            while not stop.is_set():
                try:
                    with pool.connection(timeout=30) as conn:
                        driver.ask(conn)
                except Exception as exc:
                    errors.append(exc)
                    return

        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()

        def job() -> int:
            with pool.connection(timeout=10) as conn:
                return driver.ask(conn)

        for _ in range(20):
            in_child(job)
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join(30)
        assert not errors
        assert pool.stats().opened == 3
