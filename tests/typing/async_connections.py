"""Checked by mypy, never run: what a lease of the asyncio pool lends is the driver's own connection."""

from typing import Any, assert_type

import psycopg
from psycopg.rows import DictRow, TupleRow, dict_row

import connpool
from connpool.adapters.psycopg_async import AsyncPsycopgAdapter


async def by_callable() -> None:
    pool = connpool.AsyncConnectionPool(lambda: psycopg.AsyncConnection.connect("dbname=app"), max_size=4)
    assert_type(pool, connpool.AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]])
    async with pool.connection() as conn:
        assert_type(conn, psycopg.AsyncConnection[TupleRow])
    async with pool.transaction(timeout=1.0) as conn:
        assert_type(conn, psycopg.AsyncConnection[TupleRow])
    conn = await pool.acquire(timeout=None)
    assert_type(conn, psycopg.AsyncConnection[TupleRow])
    assert_type(pool.detach(conn), psycopg.AsyncConnection[TupleRow])


async def by_adapter() -> None:
    async with connpool.AsyncConnectionPool(AsyncPsycopgAdapter("dbname=app")) as pool:
        async with pool.connection() as conn:
            assert_type(conn, psycopg.AsyncConnection[TupleRow])
    async with connpool.AsyncConnectionPool(AsyncPsycopgAdapter("", row_factory=dict_row)) as dict_pool:
        async with dict_pool.dedicated() as dict_conn:
            assert_type(dict_conn, psycopg.AsyncConnection[DictRow])


async def with_hooks() -> None:
    async def greet(conn: psycopg.AsyncConnection[TupleRow]) -> None:
        await conn.execute("select 1")

    async def provide() -> dict[str, Any]:
        return {"password": "geheim"}

    connpool.AsyncConnectionPool(AsyncPsycopgAdapter(""), on_connect=greet, credentials=provide)


assert_type(connpool.create_async_pool("sqlite:///app.db", max_size=4), connpool.AsyncConnectionPool[Any])
