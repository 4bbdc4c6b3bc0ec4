"""Checked by mypy, never run: what a lease lends is typed as the driver's own connection."""

from typing import Any, assert_type

import aiosqlite
import psycopg
import pymysql
from psycopg.rows import DictRow, TupleRow, dict_row

import connpool
from connpool.adapters.aiomysql import AiomysqlAdapter
from connpool.adapters.aiosqlite import AiosqliteAdapter
from connpool.adapters.asyncpg import AsyncpgAdapter
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.psycopg_async import AsyncPsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter

by_callable = connpool.ConnectionPool(lambda: psycopg.connect("dbname=app"), max_size=4)
assert_type(by_callable, connpool.ConnectionPool[psycopg.Connection[TupleRow]])
with by_callable.connection() as conn:
    assert_type(conn, psycopg.Connection[TupleRow])
with by_callable.transaction(timeout=1.0) as conn:
    assert_type(conn, psycopg.Connection[TupleRow])
assert_type(by_callable.acquire(timeout=None), psycopg.Connection[TupleRow])

with connpool.ConnectionPool(PsycopgAdapter("dbname=app")).connection() as conn:
    assert_type(conn, psycopg.Connection[TupleRow])
with connpool.ConnectionPool(PsycopgAdapter("dbname=app", row_factory=dict_row)).connection() as dict_conn:
    assert_type(dict_conn, psycopg.Connection[DictRow])

with connpool.ConnectionPool(lambda: pymysql.connect(host="db")).connection() as mysql_conn:
    assert_type(mysql_conn, "pymysql.connections.Connection[pymysql.cursors.Cursor]")
with connpool.ConnectionPool(PyMySQLAdapter(host="db")).connection() as mysql_conn:
    assert_type(mysql_conn, "pymysql.connections.Connection[pymysql.cursors.Cursor]")

by_url = connpool.create_pool("sqlite:///app.db", max_size=4)
assert_type(by_url, connpool.ConnectionPool[Any])
assert_type(by_callable.stats().wait.percentile(99), float)

async_by_adapter = connpool.AsyncConnectionPool(AsyncPsycopgAdapter("dbname=app"))
assert_type(async_by_adapter, connpool.AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]])
async_by_callable = connpool.AsyncConnectionPool(lambda: psycopg.AsyncConnection.connect("dbname=app"))
assert_type(async_by_callable, connpool.AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]])
assert_type(
    connpool.AsyncConnectionPool(AiosqliteAdapter("app.db")),
    connpool.AsyncConnectionPool[aiosqlite.Connection],
)
# asyncpg and aiomysql ship no types of their own.
untyped: tuple[connpool.AsyncAdapter[Any], ...] = (AsyncpgAdapter(), AiomysqlAdapter())
