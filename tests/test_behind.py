"""Behind PgBouncer in transaction mode, for real; for other proxies, what reaches a server without one."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from servers import MariaDB, PgBouncer, PostgreSQL, Statement
from servers.process import wait_until
from sqlalchemy.ext.asyncio import create_async_engine

import connpool
from connpool import AsyncConnectionPool, ConnectionPool
from connpool.adapters.asyncpg import AsyncpgAdapter
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.psycopg_async import AsyncPsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter
from connpool.events import Event
from connpool.integrations.sqlalchemy import AsyncConnPool

pytestmark = pytest.mark.server

STATEMENTS = [f"select {n}" for n in range(50)]
ROUNDS = 7  # psycopg prepares what it has executed five times


@pytest.fixture(scope="module")
def narrow(postgresql_behind_pgbouncer: PostgreSQL) -> Iterator[PgBouncer]:
    """Provide a PgBouncer with two sessions of the server for everybody."""
    with PgBouncer(postgresql_behind_pgbouncer.address, default_pool_size=2) as server:
        yield server


def own(statements: list[Statement]) -> list[str]:
    """Return the texts, without those with which PgBouncer tends its own connections."""
    tending = ("standard_conforming_strings", "set client_encoding")
    texts = [statement.text.lower().rstrip(";") for statement in statements]
    return [text for text in texts if not any(words in text for words in tending)]


def in_threads(number: int, work: Callable[[int], None]) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def settle(pool: Any, narrow: PgBouncer) -> None:
    assert wait_until(lambda: len(narrow.census()) == pool.stats().idle, 5.0)


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_crowd_repeats_statements_and_the_server_hears_nothing_else(
    narrow: PgBouncer, postgresql_behind_pgbouncer: PostgreSQL, autocommit: bool
) -> None:
    server = postgresql_behind_pgbouncer
    adapter = PsycopgAdapter(**narrow.params, autocommit=autocommit)
    mark = server.mark()
    with ConnectionPool(adapter, max_size=10, behind="pgbouncer", probe_after=0) as pool:

        def work(index: int) -> None:
            for _ in range(ROUNDS if index < 4 else 1):
                for statement in STATEMENTS:
                    with pool.connection() as conn:
                        conn.execute(statement)

        assert in_threads(20, work) == []
        settle(pool, narrow)
        assert len(narrow.console("show servers")) <= 2
        said = own(server.statements(mark))
        assert set(said) == {*STATEMENTS, *(() if autocommit else ("begin", "commit"))}
        executed = sum(text in STATEMENTS for text in said)
        assert executed == (4 * ROUNDS + 16) * len(STATEMENTS)
    assert wait_until(lambda: not narrow.census(), 5.0)


def test_without_the_preset_the_first_error_says_what_to_do(narrow: PgBouncer) -> None:
    events: list[Event] = []
    adapter = PsycopgAdapter(**narrow.params, prepare_threshold=0)
    with ConnectionPool(adapter, max_size=6, observers=[events.append]) as pool:

        def work(_: int) -> None:
            for _ in range(ROUNDS):
                with pool.connection() as conn:
                    conn.execute("select 1")

        errors = in_threads(6, work)
        assert errors
        assert {type(error) for error in errors} <= {
            psycopg.errors.DuplicatePreparedStatement,
            psycopg.errors.InvalidSqlStatementName,
        }
        (event,) = [event for event in events if event.name == "stray_statement"]
        assert "behind='pgbouncer'" in event.text
        assert sum("behind='pgbouncer'" in "".join(getattr(e, "__notes__", ())) for e in errors) == 1
    assert wait_until(lambda: not narrow.census(), 5.0)


@pytest.mark.parametrize("kind", [AsyncPsycopgAdapter, AsyncpgAdapter])
def test_a_crowd_of_tasks_does_so_as_well(
    narrow: PgBouncer, postgresql_behind_pgbouncer: PostgreSQL, kind: Any
) -> None:
    async def main() -> None:
        adapter = kind.from_url(narrow.url)
        async with AsyncConnectionPool(adapter, max_size=10, behind="pgbouncer") as pool:

            async def work(index: int) -> None:
                for _ in range(ROUNDS if index < 4 else 1):
                    for statement in STATEMENTS:
                        async with pool.transaction() as conn:
                            await conn.execute(statement)

            mark = postgresql_behind_pgbouncer.mark()
            await asyncio.gather(*(work(index) for index in range(20)))
            said = own(postgresql_behind_pgbouncer.statements(mark))
            assert set(said) == {*STATEMENTS, "begin", "commit"}
            assert len(narrow.census()) == pool.stats().idle

    asyncio.run(main())
    assert wait_until(lambda: not narrow.census(), 5.0)


def test_asyncpg_prepares_nothing_that_has_a_name(narrow: PgBouncer) -> None:
    async def main() -> None:
        adapter = AsyncpgAdapter.from_url(narrow.url)
        async with AsyncConnectionPool(adapter, max_size=10, behind="pgbouncer") as pool:

            async def work(number: int) -> None:
                for _ in range(ROUNDS):
                    async with pool.connection() as conn:  # each statement by itself
                        assert await conn.fetchval("select $1::int", number) == number

            await asyncio.gather(*(work(number) for number in range(10)))
            async with pool.connection() as conn:
                named = "select name from pg_prepared_statements where name like '%asyncpg%'"
                assert await conn.fetchval(named) is None

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_an_asyncio_engine_of_sqlalchemy_does_so_as_well(narrow: PgBouncer, driver: str) -> None:
    async def main() -> None:
        url = sa.make_url(narrow.url).set(drivername=f"postgresql+{driver}")
        engine = create_async_engine(url, poolclass=AsyncConnPool, max_size=10, behind="pgbouncer")

        async def work(number: int) -> None:
            for _ in range(ROUNDS):
                async with engine.connect() as conn:
                    assert await conn.scalar(sa.select(sa.literal(number))) == number
                async with engine.connect() as conn:
                    await conn.execution_options(isolation_level="AUTOCOMMIT")
                    assert await conn.scalar(sa.select(sa.literal(number))) == number

        await asyncio.gather(*(work(number) for number in range(10)))
        await engine.dispose()

    asyncio.run(main())
    assert wait_until(lambda: not narrow.census(), 5.0)


def test_what_was_killed_behind_the_pooler_costs_no_more_than_one_error_each(
    narrow: PgBouncer, postgresql_behind_pgbouncer: PostgreSQL
) -> None:
    with ConnectionPool(PsycopgAdapter(**narrow.params), max_size=4, behind="pgbouncer") as pool:
        with pool.connection() as conn:
            conn.execute("select 1")
        postgresql_behind_pgbouncer.terminate_sessions(user=narrow.user)
        failed = 0
        for _ in range(10):
            try:
                with pool.connection() as conn:
                    conn.execute("select 1")
            except psycopg.OperationalError:
                failed += 1
        assert failed <= 2
        settle(pool, narrow)


def queries(mariadb: MariaDB, mark: int, last: str) -> list[str]:
    """Return what was said since a mark, once *last* is in the log, which may be a moment late."""
    assert wait_until(lambda: any(last in s.text.lower() for s in mariadb.statements(mark)), 5.0)
    return [s.text.lower() for s in mariadb.statements(mark) if s.kind == "Query"]


def test_mariadb_is_asked_for_its_limit_where_nothing_is_in_between(mariadb: MariaDB) -> None:
    mark = mariadb.mark()
    with ConnectionPool(PyMySQLAdapter(**mariadb.params)) as pool:
        with pool.connection():
            pass
        assert "wait_timeout" in str(pool.describe())
    assert queries(mariadb, mark, "wait_timeout")


@pytest.mark.parametrize("behind", ["proxysql", "rds-proxy"])
def test_mariadb_hears_the_drivers_handshake_and_the_users_statements(mariadb: MariaDB, behind: Any) -> None:
    """What is said with the preset of a proxy that cannot be installed here."""
    mark, others = mariadb.mark(), {s.id for s in mariadb.census(user=mariadb.user)}
    with ConnectionPool(PyMySQLAdapter(**mariadb.params), behind=behind, probe_after=0, max_size=1) as pool:
        for n in range(3):
            with pool.connection() as conn:
                conn.cursor().execute(f"select {n}")
        assert "wait_timeout" not in str(pool.describe())
        assert {s.id for s in mariadb.census(user=mariadb.user)} - others == {conn.thread_id()}
    said = queries(mariadb, mark, "select 2")
    handshake = [text for text in said if text.startswith(("set names", "set autocommit"))]
    ends = [text for text in said if text == "commit"]
    assert [text for text in said if text not in (*handshake, *ends)] == [f"select {n}" for n in range(3)]
    assert wait_until(lambda: others >= {s.id for s in mariadb.census(user=mariadb.user)}, 5.0)


def test_postgresql_hears_the_users_statements_only(postgresql: PostgreSQL) -> None:
    mark = postgresql.mark()
    with connpool.create_pool(postgresql.url, behind="rds-proxy", max_size=1) as pool:
        for n in range(3):
            with pool.connection() as conn:
                conn.execute(f"select {n}")
    said = own(postgresql.statements(mark))
    assert said == [text for n in range(3) for text in ("begin", f"select {n}", "commit")]
