"""No transaction of one borrower reaches the next: not open, not frozen, not committed by mistake."""

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
from servers import MariaDB, PostgreSQL

from connpool import ConnectionPool, PoolMisuse
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter
from connpool.adapters.sqlite import SQLiteAdapter
from isolation.leaks import naive, one

pytestmark = pytest.mark.server


@pytest.mark.parametrize("reset", ["rollback", "full"])
@pytest.mark.parametrize("ending", ["block", "exception", "release"])
def test_mysql_without_autocommit_never_serves_a_frozen_snapshot(
    mariadb: MariaDB, mariadb_database: str, ending: str, reset: Any
) -> None:
    mariadb.execute(f"create table {mariadb_database}.t (v int)")
    mariadb.execute(f"insert into {mariadb_database}.t values (1)")
    adapter = PyMySQLAdapter(**mariadb.params_for(database=mariadb_database))
    with ConnectionPool(adapter, max_size=1, reset=reset) as pool:
        if ending == "release":
            conn = pool.acquire()
            assert one(conn, "select v from t") == 1
            pool.release(conn)
        elif ending == "block":
            with pool.connection() as conn:
                assert one(conn, "select v from t") == 1
        else:
            with pytest.raises(LookupError), pool.connection() as conn:
                assert one(conn, "select v from t") == 1
                raise LookupError
        session = conn.thread_id()
        mariadb.execute(f"update {mariadb_database}.t set v = 2")
        with pool.connection() as conn:
            assert conn.thread_id() == session
            assert one(conn, "select v from t") == 2


def test_mysql_of_a_naive_pool_serves_a_frozen_snapshot(mariadb: MariaDB, mariadb_database: str) -> None:
    mariadb.execute(f"create table {mariadb_database}.t (v int)")
    mariadb.execute(f"insert into {mariadb_database}.t values (1)")
    adapter = naive(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database)))
    with ConnectionPool(adapter, max_size=1) as pool:
        with pool.connection() as conn:
            assert one(conn, "select v from t") == 1
        mariadb.execute(f"update {mariadb_database}.t set v = 2")
        with pool.connection() as conn:
            assert one(conn, "select v from t") == 1


def switch_off(conn: Any) -> None:
    if isinstance(conn, psycopg.Connection):
        conn.autocommit = False
    else:
        conn.autocommit(False)


@pytest.mark.parametrize("reset", ["rollback", "full"])
def test_what_was_written_with_autocommit_switched_off_is_absent_mysql(
    mariadb: MariaDB, mariadb_database: str, reset: Any
) -> None:
    mariadb.execute(f"create table {mariadb_database}.t (v int)")
    adapter = PyMySQLAdapter(**mariadb.params_for(database=mariadb_database), autocommit=True)
    with ConnectionPool(adapter, max_size=1, reset=reset) as pool:
        mark = mariadb.mark()
        with pytest.raises(LookupError), pool.connection() as conn:
            session = conn.thread_id()
            switch_off(conn)
            conn.cursor().execute("insert into t values (1)")
            raise LookupError
        with pool.connection() as conn:
            assert conn.thread_id() == session
            assert conn.get_autocommit()
            assert one(conn, "select count(*) from t") == 0
        if reset == "rollback":
            texts = [statement.text.upper() for statement in mariadb.statements(mark)]
            written, rollback = texts.index("INSERT INTO T VALUES (1)"), texts.index("ROLLBACK")
            assert not any("AUTOCOMMIT" in text for text in texts[written:rollback])
            assert any("AUTOCOMMIT" in text for text in texts[rollback:])


@pytest.mark.parametrize("reset", ["rollback", "full"])
def test_what_was_written_with_autocommit_switched_off_is_absent_postgresql(
    postgresql: PostgreSQL, postgresql_database: str, reset: Any
) -> None:
    adapter = PsycopgAdapter(**postgresql.params_for(dbname=postgresql_database), autocommit=True)
    with ConnectionPool(adapter, max_size=1, reset=reset) as pool:
        with pool.connection() as conn:
            conn.execute("create table t (v int)")
        with pytest.raises(LookupError), pool.connection() as conn:
            switch_off(conn)
            conn.execute("insert into t values (1)")
            raise LookupError
        with pool.connection() as conn:
            assert conn.autocommit
            assert one(conn, "select count(*) from t") == 0


def test_what_was_written_with_autocommit_switched_off_is_absent_sqlite(tmp_path: Path) -> None:
    with ConnectionPool(SQLiteAdapter(str(tmp_path / "t.db"), isolation_level=None), max_size=1) as pool:
        with pool.connection() as conn:
            conn.execute("create table t (v)")
        with pytest.raises(LookupError), pool.connection() as conn:
            conn.isolation_level = "DEFERRED"
            conn.execute("insert into t values (1)")
            raise LookupError
        with pool.connection() as conn:
            assert conn.isolation_level is None
            assert one(conn, "select count(*) from t") == 0


def test_half_read_select_leaves_no_frozen_snapshot_sqlite(tmp_path: Path) -> None:
    path = str(tmp_path / "t.db")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("pragma journal_mode = wal")
    writer.execute("create table t (v)")
    writer.executemany("insert into t values (?)", [(1,)] * 1000)
    with ConnectionPool(SQLiteAdapter(path), max_size=1) as pool:
        with pool.connection() as conn:
            cursor = conn.execute("select v from t")
            assert cursor.fetchone() == (1,)
        writer.execute("update t set v = 2")
        with pool.connection() as conn:
            assert one(conn, "select min(v) from t") == 2
        del cursor
    writer.close()


@pytest.mark.parametrize("reset", ["none", "rollback", "full"])
def test_failed_transaction_is_reported_and_not_silently_rolled_back(
    postgresql: PostgreSQL, reset: Any
) -> None:
    with ConnectionPool(PsycopgAdapter(**postgresql.params), max_size=1, reset=reset) as pool:
        with pytest.raises(PoolMisuse, match="the transaction has failed and was rolled back"):
            with pool.connection() as conn:
                with pytest.raises(psycopg.errors.DivisionByZero):
                    conn.execute("select 1 / 0")
        with pool.connection() as conn:
            assert one(conn, "select 1") == 1


# -- nothing is sent when nothing is owed --------------------------------------------------------------


def test_a_thousand_autocommit_borrows_send_nothing_of_their_own_postgresql(postgresql: PostgreSQL) -> None:
    with ConnectionPool(PsycopgAdapter(**postgresql.params, autocommit=True), max_size=1) as pool:
        with pool.connection():
            pass
        mark = postgresql.mark()
        for _ in range(1000):
            with pool.connection() as conn:
                conn.execute("select 'mine'", prepare=False)
        texts = [statement.text for statement in postgresql.statements(mark)]
    assert texts == ["select 'mine'"] * 1000


def test_a_thousand_autocommit_borrows_send_nothing_of_their_own_mariadb(mariadb: MariaDB) -> None:
    with ConnectionPool(PyMySQLAdapter(**mariadb.params, autocommit=True), max_size=1) as pool:
        with pool.connection():
            pass
        mark = mariadb.mark()
        for _ in range(1000):
            with pool.connection() as conn, conn.cursor() as cursor:
                cursor.execute("select 'mine'")
        texts = [statement.text for statement in mariadb.statements(mark)]
    assert texts == ["select 'mine'"] * 1000


def test_explicit_commit_is_followed_by_nothing(postgresql: PostgreSQL) -> None:
    with ConnectionPool(PsycopgAdapter(**postgresql.params), max_size=1) as pool:
        mark = postgresql.mark()
        for _ in range(100):
            with pool.connection() as conn:
                conn.execute("select 'mine'", prepare=False)
                conn.commit()
        texts = [statement.text.lower() for statement in postgresql.statements(mark)]
    assert texts.count("commit") == 100
    assert "rollback" not in texts


def test_close_by_the_borrower_is_no_error(postgresql: PostgreSQL, mariadb: MariaDB) -> None:
    for adapter in (PsycopgAdapter(**postgresql.params), PyMySQLAdapter(**mariadb.params)):
        pool: ConnectionPool[Any]
        with ConnectionPool(adapter, max_size=1) as pool:  # type: ignore[arg-type] # of either driver
            with pool.connection() as conn:
                assert one(conn, "select 1") == 1
                conn.close()
            with pool.connection() as other:
                assert one(other, "select 1") == 1
            assert pool.stats().discards["spent"] == 1  # type: ignore[index] # a StrEnum
            assert isinstance(conn, pymysql.connections.Connection | psycopg.Connection)
