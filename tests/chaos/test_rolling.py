"""Changes while people work: passwords, replaced connections, a short maintenance, the end of the pool."""

import itertools
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import psycopg
import pytest
from psycopg import sql
from servers import MariaDB, PostgreSQL
from servers.process import wait_until

from connpool import ConnectionPool, Credentials, PoolTimeout, PoolUnavailable
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter

pytestmark = [pytest.mark.server, pytest.mark.chaos]

LATE = 1.0  # seconds that a busy machine may take


class Account:
    """A user of a real server whose password changes."""

    def __init__(self, server: PostgreSQL | MariaDB) -> None:
        self.server = server
        self.user = f"rotating_{secrets.token_hex(4)}"
        self.password = secrets.token_hex(8)
        self.asked = 0

    def rotate(self) -> None:
        """Set a new password; the old one is refused from now on."""
        self.password = secrets.token_hex(8)
        if isinstance(self.server, PostgreSQL):
            with psycopg.connect(**self.server.params_for(user=self.server.superuser)) as conn:
                conn.execute(
                    sql.SQL("alter role {} password {}").format(
                        sql.Identifier(self.user), sql.Literal(self.password)
                    )
                )
        else:
            self.server.execute(f"set password for '{self.user}'@'%' = password('{self.password}')")

    def adapter(self) -> Any:
        """Return an adapter that has no password of its own."""
        params: dict[str, Any] = {**self.server.params, "user": self.user}
        if isinstance(self.server, PostgreSQL):
            return PsycopgAdapter(**params)
        params["password"] = "not this one"
        return PyMySQLAdapter(**params)

    def credentials(self) -> dict[str, str]:
        self.asked += 1
        return {"password": self.password}

    def sessions(self) -> set[int]:
        return {session.id for session in self.server.census(user=self.user)}


@contextmanager
def postgresql_account(server: PostgreSQL) -> Iterator[Account]:
    account = Account(server)
    rules = server.directory / "data" / "pg_hba.conf"
    before = rules.read_text()
    server.execute(f"create role {account.user} login")
    rules.write_text(f"host all {account.user} 127.0.0.1/32 scram-sha-256\n{before}")
    server.execute("select pg_reload_conf()")
    try:
        account.rotate()
        yield account
    finally:
        rules.write_text(before)
        server.execute("select pg_reload_conf()")
        server.terminate_sessions(user=account.user)
        server.execute(f"drop role {account.user}")


@contextmanager
def mariadb_account(server: MariaDB) -> Iterator[Account]:
    account = Account(server)
    server.execute(f"create user '{account.user}'@'%' identified by '{account.password}'")
    server.execute(f"grant all on {server.params['database']}.* to '{account.user}'@'%'")
    try:
        yield account
    finally:
        server.terminate_sessions(user=account.user)
        server.execute(f"drop user '{account.user}'@'%'")


@pytest.fixture(params=["PostgreSQL", "MariaDB"])
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    if request.param == "PostgreSQL":
        with postgresql_account(request.getfixturevalue("postgresql")) as account:
            yield account
    else:
        with mariadb_account(request.getfixturevalue("mariadb")) as account:
            yield account


def work(conn: Any) -> None:
    with conn.cursor() as cursor:
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)


class Crowd:
    """Threads that borrow and work until told to stop."""

    def __init__(self, pool: ConnectionPool[Any], size: int, pause: float = 0.001) -> None:
        self.errors: list[BaseException] = []
        self.served = itertools.count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(pool, pause)) for _ in range(size)]

    def _run(self, pool: ConnectionPool[Any], pause: float) -> None:
        while not self._stop.is_set():
            try:
                with pool.connection() as conn:
                    work(conn)
                    time.sleep(pause)
                next(self.served)
            except Exception as exc:
                self.errors.append(exc)
            self._stop.wait(pause)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "somebody hangs"


@pytest.mark.parametrize("over", [0.0, 1.0])
def test_password_that_is_rotated_while_people_work_fails_nobody(account: Account, over: float) -> None:
    with ConnectionPool(account.adapter(), max_size=5, credentials=account.credentials) as pool:
        with Crowd(pool, 20) as crowd:
            wait_until(lambda: pool.stats().size == 5)
            for _ in range(3):
                before = account.sessions()
                account.rotate()
                pool.evict(over=over)
                wait_until(lambda before=before: not account.sessions() & before, timeout=over + 10)
                wait_until(lambda: pool.stats().size == 5)
        assert not crowd.errors
        assert next(crowd.served) > 100
        wait_until(lambda: len(account.sessions()) == pool.stats().size)
    assert account.asked >= 4


def test_password_that_changed_between_question_and_dial_is_asked_for_again(account: Account) -> None:
    def credentials() -> dict[str, str]:
        found = account.credentials()
        if account.asked == 1:
            account.rotate()
        return found

    with ConnectionPool(account.adapter(), max_size=1, credentials=credentials) as pool:
        with pool.connection() as conn:
            work(conn)
    assert account.asked == 2


def test_wrong_password_fails_at_once_and_is_never_shown(account: Account) -> None:
    secret = "hunter2-" + secrets.token_hex(4)
    with ConnectionPool(account.adapter(), credentials=lambda: {"password": secret}) as pool:
        began = time.monotonic()
        with pytest.raises(PoolUnavailable) as caught, pool.connection():
            pass
        assert time.monotonic() - began < LATE
        assert secret not in f"{caught.value!r} {caught.value.__cause__!r} {pool!r} {pool._options!r}"


def test_connection_does_not_outlive_its_credentials(account: Account) -> None:
    def credentials() -> Credentials:
        return Credentials(account.credentials(), expires_in=0.5)

    with ConnectionPool(account.adapter(), max_size=1, credentials=credentials) as pool:
        with pool.connection() as conn:
            work(conn)
        first = account.sessions()
        wait_until(lambda: not account.sessions() & first, timeout=5)  # while it is idle
        with pool.connection() as conn:
            work(conn)
        assert account.asked == 2


def test_nobody_is_served_while_the_pool_is_suspended(account: Account) -> None:
    with ConnectionPool(account.adapter(), max_size=2, credentials=account.credentials) as pool:
        with Crowd(pool, 5) as crowd:
            wait_until(lambda: next(crowd.served) > 10)
            pool.suspend()
            wait_until(lambda: pool.stats().in_use == 0)
            waiting = wait_until(lambda: pool.stats().waiting == 5 and pool.stats())
            with pytest.raises(PoolTimeout, match="suspended"), pool.connection(timeout=0.05):
                pass
            time.sleep(0.1)
            assert pool.stats().acquires == waiting.acquires
            pool.resume()
            wait_until(lambda: pool.stats().acquires > waiting.acquires + 10)
        assert not crowd.errors


def test_pool_that_is_closed_cuts_what_is_still_in_use(account: Account, caplog: Any) -> None:
    asleep = "select pg_sleep(30)" if isinstance(account.server, PostgreSQL) else "select sleep(30)"
    pool = ConnectionPool(account.adapter(), max_size=2, credentials=account.credentials)
    failed: list[BaseException] = []
    inside = threading.Event()

    def hold() -> None:
        try:
            with pool.connection() as conn, conn.cursor() as cursor:
                inside.set()
                cursor.execute(asleep)
        except Exception as exc:
            failed.append(exc)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    time.sleep(0.1)
    began = time.monotonic()
    pool.close(timeout=0.3)
    assert 0.2 < time.monotonic() - began < 0.3 + LATE
    thread.join(5)
    assert not thread.is_alive()
    assert len(failed) == 1
    assert "1 of its connections were still in use" in caplog.text
