"""psycopg for asyncio: the contract, plain and TLS, and what only these connections have."""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import pytest
from servers import PostgreSQL

from adapters.async_contract import AsyncAdapterContract, AsyncHarness, Unread, run
from adapters.contract import LIMIT, SOON
from adapters.test_psycopg import PsycopgHarness, wait_readable
from connpool.adapter import Verdict
from connpool.adapters.psycopg import Steps, Wait
from connpool.adapters.psycopg_async import AsyncPsycopgAdapter, _run
from connpool.errors import PoolMisuse

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


# -- what only these connections have ----------------------------------------------------------------


@pytest.fixture
def harness(postgresql: PostgreSQL) -> AsyncPsycopgHarness:
    return AsyncPsycopgHarness(postgresql, postgresql.dbname)


def test_an_abort_leaves_the_descriptor_to_the_task_that_watches_it(harness: AsyncPsycopgHarness) -> None:
    """Else the next connection gets the same number, and the loop's selector takes it for the old one."""

    async def abort() -> None:
        adapter = harness.aadapter()
        conn = await adapter.connect(LIMIT)
        task = asyncio.ensure_future(harness.aslow(conn))
        await asyncio.wait([task], timeout=0.05)
        fileno = conn.fileno()
        adapter.abort(conn)
        assert os.fstat(fileno)
        await asyncio.wait([task], timeout=SOON)
        assert isinstance(task.exception(), psycopg.OperationalError)
        await adapter.close(conn, SOON)
        assert conn.closed

    run(abort())


def test_a_cancelled_step_is_cleaned_up_behind_whoever_keeps_the_exception() -> None:
    here, there = socket.socketpair()

    def steps() -> Steps[None]:
        yield Wait(here.fileno(), None)

    async def cancel() -> BaseException | None:
        task = asyncio.ensure_future(_run(waiting))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as exc:
            return exc
        return None

    waiting = steps()
    with here, there:
        kept = run(cancel())
        assert kept is not None
        assert waiting.gi_frame is None


def test_a_statement_that_was_cancelled_leaves_a_connection_at_rest(harness: AsyncPsycopgHarness) -> None:
    """psycopg has taken it back at the server before CancelledError goes on."""

    async def cancel() -> None:
        adapter = harness.aadapter()
        conn = await adapter.connect(LIMIT)
        baseline = adapter.adopt(conn)
        task = asyncio.ensure_future(harness.aslow(conn))
        await asyncio.wait([task], timeout=0.05)
        task.cancel()
        await asyncio.wait([task], timeout=SOON)
        assert adapter.verdict(conn, baseline) is Verdict.FAILED
        await adapter.close(conn, SOON)

    run(cancel())


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_a_name_is_resolved_without_blocking_the_loop(
    harness: AsyncPsycopgHarness, limit: float | None
) -> None:
    async def resolve() -> None:
        adapter = AsyncPsycopgAdapter(**{**harness.params, "host": "localhost"})
        conn = await adapter.connect(limit)
        await adapter.ping(conn, limit)
        await adapter.close(conn, limit)

    run(resolve())


def test_a_synchronous_connection_is_refused(harness: AsyncPsycopgHarness) -> None:
    with psycopg.connect(**harness.params) as conn:
        with pytest.raises(PoolMisuse, match="not a psycopg.AsyncConnection"):
            harness.aadapter().adopt(conn)
