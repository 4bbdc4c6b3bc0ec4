"""A thousand borrowers of one session, each of whom leaves all he can: the next one finds nothing of it."""

from typing import Any

import psycopg
import pymysql
import pytest
from servers import MariaDB, PostgreSQL

from connpool import ConnectionPool
from connpool.adapters.pymysql import PyMySQLAdapter
from isolation.leaks import POSTGRESQL, SESSION, mariadb_leaks, postgresql_leaks

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

TIMES = 1000


def run(pool: ConnectionPool[Any], leaks: Any, session: Any, times: int, also: Any) -> None:
    with pool.connection() as conn:
        first = session(conn)
        pristine = [leak.look(conn) for leak in leaks]
    for number in range(times):
        with pool.connection() as conn:
            also(conn, number)
            for leak in leaks:
                leak.make(conn)
        with pool.connection() as conn:
            assert session(conn) == first, "another session"
            for leak, before in zip(leaks, pristine, strict=True):
                assert leak.look(conn) == before, f"{leak.name}, time {number}"


@pytest.mark.parametrize("on_connect", [None, lambda conn: conn.execute("set timezone = 'UTC'")])
def test_postgresql_with_statements_that_psycopg_prepares(postgresql: PostgreSQL, on_connect: Any) -> None:
    def ask(conn: Any, number: int) -> None:
        for _ in range(7):  # psycopg prepares what it executes for the sixth time
            cursor = psycopg.Cursor(conn)
            assert cursor.execute("select %s::int + 1", (number,)).fetchone()[0] == number + 1

    # What is open when the block ends is committed; that it is rolled back otherwise, others show.
    leaks = [leak for leak in POSTGRESQL if "transaction" not in leak.name]
    with postgresql_leaks(postgresql) as adapter:
        with ConnectionPool(adapter(), max_size=1, reset="full", on_connect=on_connect) as pool:
            run(pool, leaks, SESSION["PostgreSQL"], TIMES if on_connect is None else 100, ask)
            assert pool.stats().opened == 1


@pytest.mark.parametrize("on_connect", [None, lambda conn: conn.cursor().execute("set @hook = 1")])
def test_mariadb(mariadb: MariaDB, on_connect: Any) -> None:
    def ask(conn: Any, number: int) -> None:
        with conn.cursor(pymysql.cursors.Cursor) as cursor:
            cursor.execute("select %s, @x, @hook", (number,))
            row = cursor.fetchone()
        assert int(row[0]) == number
        assert row[1:] == (1, None if on_connect is None else 1)

    with mariadb_leaks(mariadb) as (all_leaks, adapter):
        leaks = [leak for leak in all_leaks if "transaction" not in leak.name]
        with ConnectionPool(adapter(), max_size=1, reset="full", on_connect=on_connect) as pool:
            run(pool, leaks, SESSION["MariaDB"], TIMES if on_connect is None else 100, ask)
            assert pool.stats().opened == 1


def test_session_that_got_a_database_and_had_none_is_replaced(mariadb: MariaDB) -> None:
    params: dict[str, Any] = {**mariadb.params}
    name = params.pop("database")
    with ConnectionPool(PyMySQLAdapter(**params), max_size=1, reset="full") as pool:
        with pool.connection() as conn:
            conn.cursor().execute(f"use {name}")
            first = conn.thread_id()
        with pool.connection() as conn, conn.cursor() as cursor:
            assert conn.thread_id() != first
            cursor.execute("select database()")
            assert cursor.fetchone() == (None,)
