"""What a borrower can leave behind, for each driver: how it is done, and how the next one would see it.

A leak is seen if the next borrower, on the same server session, finds something else than there was
at connect.  `observe` tells for a pool what became of each; `Naive` is the pool that everything gets
through, without which no test here would prove anything.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pymysql
import pymysql.converters
import pymysql.cursors
from psycopg.rows import dict_row, tuple_row
from servers import MariaDB, PostgreSQL

from connpool import ConnectionPool, Verdict
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter
from connpool.adapters.sqlite import SQLiteAdapter

CLEARED, LEAKS, REPLACED = "cleared", "**stays**", "new session"


@dataclass(frozen=True)
class Leak:
    """One thing that a borrower can leave behind."""

    name: str
    make: Callable[[Any], object]
    look: Callable[[Any], object]


def naive(adapter: Any) -> Any:
    """Return an adapter that takes every connection for clean: what pools without a return path do."""
    adapter.verdict = lambda conn, baseline: Verdict.CLEAN
    return adapter


def observe(pool: ConnectionPool[Any], leak: Leak, session: Callable[[Any], object]) -> str:
    """Let one borrower make a leak and the next one look; tell what became of it."""
    conn = pool.acquire()
    first, before = session(conn), leak.look(conn)
    leak.make(conn)
    assert leak.look(conn) != before, f"{leak.name}: nothing was done, or it cannot be seen"
    pool.release(conn)
    conn = pool.acquire()
    second, after = session(conn), leak.look(conn)
    pool.release(conn)
    if after != before:
        return LEAKS
    return CLEARED if second == first else REPLACED


# -- PostgreSQL, psycopg ------------------------------------------------------------------------------


def one(conn: Any, query: str) -> Any:
    """Ask for one value, whatever the connection's factories are; nothing is prepared."""
    if isinstance(conn, psycopg.Connection):
        row = psycopg.Cursor(conn, row_factory=tuple_row).execute(query, prepare=False).fetchone()
    elif isinstance(conn, sqlite3.Connection):
        cursor = sqlite3.Cursor(conn)
        cursor.row_factory = None
        row = cursor.execute(query).fetchone()
    else:
        with pymysql.cursors.Cursor(conn) as cursor:
            cursor.execute(query)
            row = cursor.fetchone()
    return row and row[0]


def run(*statements: str) -> Callable[[Any], None]:
    """Return what executes statements."""

    def make(conn: Any) -> None:
        for statement in statements:
            if isinstance(conn, psycopg.Connection):
                conn.execute(statement, prepare=False)
            elif isinstance(conn, sqlite3.Connection):
                conn.execute(statement).fetchall()
            else:
                with conn.cursor() as cursor:
                    cursor.execute(statement)

    return make


def asks(query: str) -> Callable[[Any], Any]:
    """Return what asks for one value."""
    return lambda conn: one(conn, query)


def code(query: str) -> Callable[[Any], Any]:
    """Return what tells how a statement fails, if it does."""

    def look(conn: Any) -> object:
        try:
            one(conn, query)
        except psycopg.Error as exc:
            return exc.sqlstate
        except pymysql.Error as exc:
            return exc.args[0]
        except sqlite3.Error as exc:
            return str(exc)
        return None

    return look


def sets(**attributes: Any) -> Callable[[Any], None]:
    """Return what sets attributes of the connection."""

    def make(conn: Any) -> None:
        for name, value in attributes.items():
            setattr(conn, name, value)

    return make


def reads(*names: str) -> Callable[[Any], Any]:
    """Return what reads attributes of the connection."""
    return lambda conn: [getattr(conn, name) for name in names]


def _prepare_by_driver(conn: psycopg.Connection[Any]) -> None:
    conn.execute("select %s::int", (1,), prepare=True)


def _add_handlers(conn: psycopg.Connection[Any]) -> None:
    conn.add_notice_handler(print)
    conn.add_notify_handler(print)


def _register(conn: psycopg.Connection[Any]) -> None:
    conn.adapters.register_loader("int4", psycopg.types.string.TextLoader)


POSTGRESQL = (
    Leak(
        "an open transaction", run("begin", "insert into kept values (1)"), asks("select count(*) from kept")
    ),
    Leak("`SET statement_timeout`", run("set statement_timeout = '1h'"), asks("show statement_timeout")),
    Leak("`SET search_path`", run("set search_path = pg_catalog"), asks("show search_path")),
    Leak("`SET ROLE`", run("set role reporter"), asks("select current_user")),
    Leak(
        "`SET SESSION AUTHORIZATION`",
        run("set session authorization reporter"),
        asks("select session_user"),
    ),
    Leak("a temporary table", run("create temp table t (a int)"), asks("select to_regclass('t')")),
    Leak(
        "`PREPARE`",
        run("prepare p as select 1"),
        asks("select count(*) from pg_prepared_statements where name = 'p'"),
    ),
    Leak(
        "statements that psycopg prepared",
        _prepare_by_driver,
        asks("select count(*) from pg_prepared_statements where name like '\\_pg3%%'"),
    ),
    Leak(
        "an advisory lock",
        run("select pg_advisory_lock(7)"),
        asks("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"),
    ),
    Leak("`LISTEN`", run("listen news"), asks("select count(*) from pg_listening_channels()")),
    Leak(
        "a cursor `WITH HOLD`",
        run("declare c cursor with hold for select 1"),
        asks("select count(*) from pg_cursors where name = 'c'"),
    ),
    Leak("`currval()`", run("select nextval('public.numbers')"), code("select currval('public.numbers')")),
    Leak("`autocommit`", sets(autocommit=False), reads("autocommit")),
    Leak(
        "`isolation_level`, `read_only`, `deferrable`",
        sets(isolation_level=psycopg.IsolationLevel.SERIALIZABLE, read_only=True, deferrable=True),
        reads("isolation_level", "read_only", "deferrable"),
    ),
    Leak(
        "`row_factory`, `cursor_factory`, `prepare_threshold`",
        sets(row_factory=dict_row, cursor_factory=psycopg.ClientCursor, prepare_threshold=None),
        reads("row_factory", "cursor_factory", "prepare_threshold"),
    ),
    Leak(
        "notice and notify handlers",
        _add_handlers,
        lambda conn: (list(conn._notice_handlers), list(conn._notify_handlers)),
    ),
    Leak(
        "loaders and dumpers",
        _register,
        lambda conn: type(conn.execute("select 1::int4", prepare=False).fetchone()[0]),
    ),
)


@contextmanager
def postgresql_leaks(server: PostgreSQL) -> Iterator[Callable[[], PsycopgAdapter[Any]]]:
    """Provide what the leaks of PostgreSQL need: a function that returns a new adapter."""
    with server.database() as database:
        for statement in (
            "do $$ begin create role reporter; exception when duplicate_object then null; end $$",
            "create table kept (a int)",
            "grant all on kept to public",
            "create sequence numbers",
            "grant all on numbers to public",
        ):
            server.execute(statement, dbname=database)

        def adapter() -> PsycopgAdapter[Any]:
            params = server.params_for(user=server.superuser, dbname=database)
            # What is set at connect is what a reset must come back to.
            options = "-c statement_timeout=30s -c search_path=public,pg_catalog"
            return PsycopgAdapter(**params, options=options, autocommit=True)

        yield adapter


# -- MariaDB, PyMySQL ---------------------------------------------------------------------------------


def _autocommit_off(conn: Any) -> None:
    conn.autocommit(False)


def _decode(conn: Any) -> None:
    conn.decoders = {**conn.decoders, pymysql.constants.FIELD_TYPE.LONG: str}


def mariadb_leaks_of(database: str, other: str) -> tuple[Leak, ...]:
    """Return the leaks of MariaDB; *other* is a database that is not the connection's."""
    return (
        Leak(
            "an open transaction",
            run("begin", "insert into kept values (1)"),
            asks("select count(*) from kept"),
        ),
        Leak("`USE`", run(f"use {other}"), asks("select database()")),
        Leak("`SET autocommit`", run("set autocommit = 0"), asks("select @@autocommit")),
        Leak("`Connection.autocommit()`", _autocommit_off, asks("select @@autocommit")),
        Leak("a user variable", run("set @x = 5"), asks("select @x")),
        Leak(
            "`GET_LOCK`",
            run("select get_lock('leak', 0)"),
            asks("select is_used_lock('leak') = connection_id()"),
        ),
        Leak("`SET sql_mode`", run("set sql_mode = 'ANSI'"), asks("select @@sql_mode")),
        Leak("`SET time_zone`", run("set time_zone = '+05:00'"), asks("select @@time_zone")),
        Leak("`SET NAMES`", run("set names latin1"), asks("select @@character_set_client")),
        Leak(
            "the isolation level",
            run("set session transaction isolation level read uncommitted"),
            asks("select @@tx_isolation"),
        ),
        Leak("`foreign_key_checks`", run("set foreign_key_checks = 0"), asks("select @@foreign_key_checks")),
        Leak("a temporary table", run("create temporary table t (a int)"), code("select * from t")),
        Leak("`PREPARE`", run("prepare p from 'select 1'"), code("execute p")),
        Leak("`LOCK TABLES`", run(f"lock tables {database}.kept read"), code("select * from unlocked")),
        Leak("`cursorclass`", sets(cursorclass=pymysql.cursors.DictCursor), reads("cursorclass")),
        Leak("decoders", _decode, asks("select 1")),
    )


@contextmanager
def mariadb_leaks(
    server: MariaDB,
) -> Iterator[tuple[tuple[Leak, ...], Callable[[], PyMySQLAdapter[Any]]]]:
    """Provide the leaks of MariaDB, and a function that returns a new adapter."""
    with server.database() as database, server.database() as other:
        for table in ("kept", "unlocked"):
            server.execute(f"create table {database}.{table} (a int)")

        def adapter() -> PyMySQLAdapter[Any]:
            return PyMySQLAdapter(
                **server.params_for(database=database),
                autocommit=True,
                sql_mode="TRADITIONAL",
                init_command="set time_zone = '+01:00', @x = 1",
                ssl_disabled=True,
            )

        yield mariadb_leaks_of(database, other), adapter


# -- SQLite -------------------------------------------------------------------------------------------


def _add_function(conn: sqlite3.Connection) -> None:
    conn.create_function("leaked", 0, lambda: 1)


SQLITE = (
    Leak(
        "an open transaction", run("begin", "insert into kept values (1)"), asks("select count(*) from kept")
    ),
    Leak("`PRAGMA`", run("pragma foreign_keys = on"), asks("pragma foreign_keys")),
    Leak("a temporary table", run("create temp table t (a)"), code("select * from t")),
    Leak(
        "an attached database",
        run("attach ':memory:' as other"),
        asks("select count(*) from pragma_database_list where name = 'other'"),
    ),
    Leak("functions, collations", _add_function, code("select leaked()")),
    Leak(
        "`row_factory`, `text_factory`",
        sets(row_factory=sqlite3.Row, text_factory=bytes),
        reads("row_factory", "text_factory"),
    ),
    Leak("`isolation_level`", sets(isolation_level="IMMEDIATE"), reads("isolation_level")),
)


def sqlite_adapter(path: str) -> SQLiteAdapter:
    """Return an adapter for a database with what the leaks of SQLite need."""
    with sqlite3.connect(path) as conn:
        conn.execute("create table if not exists kept (a)")
    conn.close()
    return SQLiteAdapter(path, isolation_level=None)


# -- which session is it? -----------------------------------------------------------------------------

SESSION: dict[str, Callable[[Any], object]] = {
    "PostgreSQL": lambda conn: conn.info.backend_pid,
    "MariaDB": lambda conn: conn.thread_id(),
    "SQLite": lambda conn: getattr(conn, "_number", id(conn)),
}
