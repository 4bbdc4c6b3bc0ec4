"""aiosqlite: the contract, and what only aiosqlite has."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiosqlite
import pytest

from adapters.async_contract import AsyncAdapterContract, AsyncHarness, run
from adapters.contract import LIMIT, SHORT, SOON, Lent
from adapters.test_sqlite import FOREVER, SQLiteContract, SQLiteHarness
from connpool.adapter import Fault, Verdict
from connpool.adapters.aiosqlite import AiosqliteAdapter
from connpool.errors import PoolMisuse


class AiosqliteHarness(AsyncHarness, SQLiteHarness):
    def aadapter(self) -> AiosqliteAdapter:
        return AiosqliteAdapter(self.path, **self.kwargs)

    def adapter(self) -> Any:
        return self.block(self.aadapter())

    async def aconnect(self) -> aiosqlite.Connection:
        return await aiosqlite.connect(self.path, check_same_thread=False)

    def bad_dials(self) -> Any:
        nowhere = AiosqliteAdapter(self.path / "no" / "such.db")
        return {"no directory": (self.block(nowhere), frozenset({Fault.DEAD}))}

    def sessions(self, lent: Lent) -> list[Any]:
        return [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        shown = dict(super().alterations())
        shown.pop("autocommit", None)  # aiosqlite does not pass it on
        return shown

    async def arun(self, conn: aiosqlite.Connection, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await conn.execute_fetchall(statement)]

    async def aslow(self, conn: aiosqlite.Connection) -> None:
        await conn.execute(FOREVER)

    def slow(self, conn: Any) -> None:
        run(self.aslow(conn.real))

    def run(self, conn: Any, statement: str) -> list[tuple[Any, ...]]:
        return run(self.arun(conn.real, statement))

    def leave_unread(self, conn: Any) -> object:
        for a in range(3):
            self.insert(conn, a)
        conn.commit()

        async def read_one() -> object:
            cursor = await conn.real.execute(f"SELECT a FROM {self.table}")
            await cursor.fetchone()
            return cursor

        return run(read_one())

    def change_session(self, conn: Any) -> None:
        for statement in (
            "PRAGMA cache_size = 4711",
            "CREATE TEMP TABLE leak (a)",
            "ATTACH ':memory:' AS leak",
        ):
            self.run(conn, statement)
        conn.create_function("leak", 0, lambda: 4711)
        conn.commit()


class AiosqliteContract(AsyncAdapterContract, SQLiteContract):
    pass


class TestFile(AiosqliteContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> AsyncHarness:
        return AiosqliteHarness(tmp_path / "app.db")


class TestAround(AiosqliteContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> AsyncHarness:
        class AroundHarness(AiosqliteHarness):
            lacks = MappingProxyType({**SQLiteHarness.lacks})

            def aadapter(self) -> AiosqliteAdapter:
                return AiosqliteAdapter.around(self.aconnect)

        return AroundHarness(tmp_path / "app.db")


# -- what only aiosqlite has -------------------------------------------------------------------------


@pytest.fixture
def harness(tmp_path: Path) -> AiosqliteHarness:
    return AiosqliteHarness(tmp_path / "app.db")


@pytest.fixture
def lent(harness: AiosqliteHarness) -> Iterator[Lent]:
    lent = Lent(harness.adapter())
    yield lent
    lent.adapter.close(lent.conn, SOON)


def test_a_statement_whose_task_was_cancelled_is_broken_while_it_runs_and_told_true_after(lent: Lent) -> None:
    conn, go_on = lent.conn.real, threading.Event()
    lent.conn.execute("CREATE TABLE t (a)")
    lent.conn.create_function("wait", 0, lambda: go_on.wait(SOON))

    async def cancel() -> None:
        task = asyncio.ensure_future(conn.execute("INSERT INTO t VALUES (wait())"))
        await asyncio.wait([task], timeout=0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert lent.verdict() is Verdict.BROKEN, "it is running still"
        go_on.set()
        await lent.adapter.real.ping(conn, LIMIT)  # type: ignore[attr-defined]
        assert lent.verdict() is Verdict.DIRTY, "and it has written"
        await lent.adapter.real.rollback(conn, LIMIT)  # type: ignore[attr-defined]
        assert lent.verdict() is Verdict.CLEAN

    run(asyncio.wait_for(cancel(), SOON))


def test_what_was_asked_before_an_abort_and_not_begun_is_not_done(lent: Lent) -> None:
    conn, go_on = lent.conn.real, threading.Event()
    lent.conn.create_function("wait", 0, lambda: go_on.wait(SOON))
    done: list[str] = []

    async def abort() -> list[Any]:
        first = asyncio.ensure_future(conn.execute("SELECT wait()"))
        second = asyncio.ensure_future(conn._execute(done.append, "something"))
        await asyncio.wait([first], timeout=0.05)
        lent.adapter.abort(lent.conn)
        go_on.set()
        return await asyncio.gather(first, second, return_exceptions=True)

    _, error = run(asyncio.wait_for(abort(), SOON))
    assert isinstance(error, sqlite3.OperationalError)
    assert not done
    assert lent.verdict() is Verdict.BROKEN


def test_a_step_that_waits_for_the_thread_keeps_its_limit(lent: Lent) -> None:
    go_on = threading.Event()
    lent.conn.create_function("wait", 0, lambda: go_on.wait(SOON))

    async def wait() -> None:
        task = asyncio.ensure_future(lent.conn.real.execute("SELECT wait()"))
        await asyncio.sleep(0)
        with pytest.raises(sqlite3.ProgrammingError, match="not done within 0.5 s") as caught:
            await lent.adapter.real.ping(lent.conn.real, SHORT)  # type: ignore[attr-defined]
        assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD
        assert lent.verdict() is Verdict.BROKEN
        go_on.set()
        await asyncio.wait([task])

    run(wait())


def test_what_a_cancelled_dial_has_opened_is_closed(tmp_path: Path) -> None:
    events: list[str] = []
    go_on = threading.Event()

    class Slow(sqlite3.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            go_on.wait(SOON)
            super().__init__(*args, **kwargs)
            events.append("opened")

        def close(self) -> None:
            super().close()
            events.append("closed")

    async def cancel() -> None:
        task = asyncio.ensure_future(AiosqliteAdapter(tmp_path / "app.db", factory=Slow).connect(LIMIT))
        await asyncio.wait([task], timeout=0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        workers = [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]
        go_on.set()
        for worker in workers:
            worker.join(SOON)

    run(cancel())
    assert events == ["opened", "closed"]


def test_a_connection_that_only_its_thread_may_look_at_is_refused(tmp_path: Path) -> None:
    async def adopt() -> None:
        adapter = AiosqliteAdapter.around(lambda: aiosqlite.connect(tmp_path / "app.db"))
        conn = await adapter.connect(LIMIT)
        with pytest.raises(PoolMisuse, match="check_same_thread=False"):
            adapter.adopt(conn)
        await adapter.close(conn, LIMIT)

    run(adopt())


def test_connections_to_memory_share_one_database_that_outlives_them() -> None:
    async def share() -> None:
        adapter = AiosqliteAdapter.from_url("sqlite+aiosqlite://")
        for statement in ("CREATE TABLE t (a)", "INSERT INTO t VALUES (4711)", "SELECT a FROM t"):
            conn = await adapter.connect(LIMIT)
            adapter.adopt(conn)
            rows = await conn.execute_fetchall(statement)
            await adapter.commit(conn)
            await adapter.close(conn, LIMIT)
        assert list(rows) == [(4711,)]

    run(share())


def test_open_connections_do_not_keep_the_interpreter_from_ending(lent: Lent) -> None:
    assert lent.conn.real._thread.daemon
