"""psycopg for asyncio: the contract, plain and TLS, and what only these connections have."""

from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import pytest
from servers import PostgreSQL

from adapters.async_contract import AsyncAdapterContract, AsyncHarness, Unread
from adapters.test_psycopg import PsycopgHarness, wait_readable
from connpool.adapters.psycopg_async import AsyncPsycopgAdapter

pytestmark = pytest.mark.server


class AsyncPsycopgHarness(AsyncHarness, PsycopgHarness):
    census = "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"

    def make(self, params: Mapping[str, Any]) -> Any:
        return self.block(AsyncPsycopgAdapter(**params))

    def aadapter(self) -> AsyncPsycopgAdapter[Any]:
        return AsyncPsycopgAdapter(**self.params)

    async def aconnect(self) -> psycopg.AsyncConnection:
        return await psycopg.AsyncConnection.connect(**self.params)

    async def arun(self, conn: psycopg.AsyncConnection, statement: str) -> list[tuple[Any, ...]]:
        cursor = await conn.execute(statement)
        return await cursor.fetchall() if cursor.description else []

    async def aslow(self, conn: psycopg.AsyncConnection) -> None:
        await conn.execute("select pg_sleep(60)")

    def set_autocommit(self, conn: Any) -> None:
        conn.set_autocommit(True)

    def begin_read_only(self, conn: Any) -> None:
        conn.set_read_only(True)
        conn.execute("select 1")

    def leave_unread(self, conn: Any) -> object:
        return Unread(conn.real.cursor().stream("select generate_series(1, 10)"))

    def kill(self, conn: Any) -> None:
        self.server.execute("select pg_terminate_backend(%s)", conn.info.backend_pid)
        wait_readable(conn)

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        class Cursor(psycopg.AsyncClientCursor[Any]):
            pass

        class ServerCursor(psycopg.AsyncServerCursor[Any]):
            pass

        def call(name: str, value: object) -> Callable[[Any], object]:
            return lambda conn: getattr(conn, name)(value)

        changes = dict(super().alterations())
        changes["cursor_factory"] = lambda conn: setattr(conn, "cursor_factory", Cursor)
        changes["server_cursor_factory"] = lambda conn: setattr(conn, "server_cursor_factory", ServerCursor)
        changes["isolation_level"] = call("set_isolation_level", psycopg.IsolationLevel.SERIALIZABLE)
        changes["read_only"] = call("set_read_only", False)
        changes["deferrable"] = call("set_deferrable", True)
        changes["autocommit"] = call("set_autocommit", True)
        return changes


class TestPlain(AsyncAdapterContract):
    @pytest.fixture
    def harness(self, postgresql: PostgreSQL, postgresql_database: str) -> AsyncHarness:
        return AsyncPsycopgHarness(postgresql, postgresql_database)
