"""asyncio engines on an `AsyncConnPool`: psycopg and asyncpg on PostgreSQL, aiomysql, aiosqlite."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from servers import MariaDB, PostgreSQL
from sqlalchemy import event, exc, orm
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.util import greenlet_spawn

import connpool
from connpool.integrations.sqlalchemy import AsyncConnPool

numbers = sa.Table("number", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))


class Base(orm.DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(50))
    books: orm.Mapped[list["Book"]] = orm.relationship()


class Book(Base):
    __tablename__ = "book"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str] = orm.mapped_column(sa.String(50))
    author_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("author.id"))


class Backend:
    """A database of its own, a driver, and what its server knows of it."""

    def __init__(self, server: PostgreSQL | MariaDB, url: str, driver: str) -> None:
        self.server = server
        self.url = sa.make_url(url).set(drivername=driver)
        self.session = (
            "select pg_backend_pid()" if isinstance(server, PostgreSQL) else "select connection_id()"
        )

    def census(self) -> set[int]:
        return {s.id for s in self.server.census() if s.database == self.url.database}

    @asynccontextmanager
    async def engine(self, **arguments: Any) -> AsyncIterator[AsyncEngine]:
        engine = create_async_engine(self.url, **{"poolclass": AsyncConnPool, **arguments})
        try:
            yield engine
            pool: Any = engine.pool
            assert pool.checkedout() == 0
            assert await settled(lambda: len(self.census()) == pool.checkedin())
        finally:
            await engine.dispose()
        assert await settled(lambda: not self.census())

    def kill(self, session: object) -> None:
        if isinstance(self.server, PostgreSQL):
            self.server.execute("select pg_terminate_backend(%s, 5000)", session)
        else:
            self.server.execute(f"kill {session}")


async def settled(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 5.0
    while not condition():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.01)
    return True


@pytest.fixture(scope="class", params=["postgresql+psycopg", "postgresql+asyncpg", "mysql+aiomysql"])
def backend(request: pytest.FixtureRequest) -> Backend:
    driver: str = request.param
    if driver.startswith("postgresql"):
        server = request.getfixturevalue("postgresql")
        return Backend(server, server.url_for(dbname=request.getfixturevalue("postgresql_database")), driver)
    server = request.getfixturevalue("mariadb")
    return Backend(server, server.url_for(database=request.getfixturevalue("mariadb_database")), driver)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@pytest.mark.server
class TestServers:
    def test_core_and_orm(self, backend: Backend) -> None:
        async def main() -> None:
            async with backend.engine(max_size=3) as engine:
                async with engine.begin() as conn:
                    await conn.run_sync(Base.metadata.create_all)
                async with AsyncSession(engine, expire_on_commit=False) as session:
                    session.add(Author(name="Ada", books=[Book(title="A"), Book(title="B")]))
                    await session.commit()
                    ada = await session.scalar(sa.select(Author).options(orm.selectinload(Author.books)))
                    assert ada is not None
                    assert [book.title for book in ada.books] == ["A", "B"]
                    async with session.begin_nested() as savepoint:
                        ada.name = "Bea"
                        await session.flush()
                        await savepoint.rollback()
                    await session.commit()
                async with engine.connect() as conn:
                    rows = await conn.stream(sa.select(Book.title).order_by(Book.title))
                    assert [row[0] async for row in rows] == ["A", "B"]
                    assert await conn.scalar(sa.select(Author.name)) == "Ada"
                async with engine.begin() as conn:
                    await conn.run_sync(Base.metadata.drop_all)

        run(main)

    def test_transactions_end_as_they_are_told(self, backend: Backend) -> None:
        async def main() -> None:
            async with backend.engine(max_size=1) as engine:
                async with engine.begin() as conn:
                    await conn.run_sync(numbers.create)
                with pytest.raises(ZeroDivisionError):
                    async with engine.begin() as conn:
                        await conn.execute(sa.insert(numbers).values(n=1))
                        raise ZeroDivisionError
                async with engine.connect() as conn:
                    await conn.execute(sa.insert(numbers).values(n=2))  # never committed

                def insert_and_leave_it_open() -> None:
                    raw = engine.sync_engine.raw_connection()
                    raw.cursor().execute("insert into number values (3)")
                    raw.close()

                await greenlet_spawn(insert_and_leave_it_open)
                async with engine.connect() as conn:
                    await conn.execution_options(isolation_level="AUTOCOMMIT")
                    await conn.execute(sa.insert(numbers).values(n=4))
                async with engine.connect() as conn:
                    await conn.execute(sa.insert(numbers).values(n=5))
                async with engine.begin() as conn:
                    assert list(await conn.scalars(sa.select(numbers.c.n))) == [4]
                    await conn.run_sync(numbers.drop)

        run(main)

    def test_a_crowd_is_served_one_after_the_other(self, backend: Backend) -> None:
        async def main() -> None:
            async with backend.engine(max_size=3) as engine:
                order: list[int] = []

                async def work(number: int) -> None:
                    async with engine.connect() as conn:
                        order.append(number)
                        assert await conn.scalar(sa.text("select 1")) == 1

                await asyncio.gather(*(work(number) for number in range(30)))
                assert sorted(order) == list(range(30))
                assert order == sorted(order)
                assert len(backend.census()) <= 3

        run(main)

    def test_a_session_ended_by_its_server_costs_one_error(self, backend: Backend) -> None:
        async def main() -> None:
            async with backend.engine(max_size=3) as engine:
                async with engine.connect() as one, engine.connect():
                    backend.kill(await one.scalar(sa.text(backend.session)))
                    with pytest.raises(exc.DBAPIError) as caught:
                        await one.execute(sa.text("select 1"))
                    assert caught.value.connection_invalidated
                    await one.rollback()
                    assert await one.scalar(sa.text("select 1")) == 1
                for _ in range(5):
                    async with engine.connect() as conn:
                        assert await conn.scalar(sa.text("select 1")) == 1

        run(main)

    def test_a_task_that_is_cancelled_loses_nothing(self, backend: Backend) -> None:
        async def main() -> None:
            slow = "select pg_sleep(1)" if isinstance(backend.server, PostgreSQL) else "select sleep(1)"
            async with backend.engine(max_size=2, pool_timeout=5.0) as engine:

                async def work() -> None:
                    async with engine.connect() as conn:
                        await conn.execute(sa.text(slow))

                for delay in (0.0, 0.002, 0.05):
                    tasks = [asyncio.create_task(work()) for _ in range(4)]
                    await asyncio.sleep(delay)
                    for task in tasks:
                        task.cancel()
                    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
                for _ in range(3):
                    async with engine.connect() as one, engine.connect() as other:
                        assert await one.scalar(sa.text("select 1")) == await other.scalar(
                            sa.text("select 1")
                        )

        run(main)

    def test_a_full_reset_leaves_nothing_of_a_session(self, backend: Backend) -> None:
        async def main() -> None:
            seen: list[object] = []

            async def note(conn: object) -> None:
                seen.append(conn)

            async with backend.engine(max_size=1, reset="full", on_connect=note) as engine:
                async with engine.connect() as conn:
                    session = await conn.scalar(sa.text(backend.session))
                    await conn.execute(sa.text("create temporary table leak (a int)"))
                    await conn.commit()
                for _ in range(3):
                    async with engine.connect() as conn:
                        assert await conn.scalar(sa.text(backend.session)) == session
                        with pytest.raises(exc.DBAPIError):
                            await conn.execute(sa.text("select * from leak"))
                async with engine.connect() as conn:
                    raw = await conn.get_raw_connection()
                    assert seen[0] is raw.driver_connection

        run(main)

    @pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")
    def test_a_connection_that_was_lost_is_closed_and_its_place_is_free(self, backend: Backend) -> None:
        async def main() -> None:
            async with backend.engine(max_size=1, pool_timeout=5.0) as engine:
                with pytest.warns(exc.SAWarning, match="garbage collector"):
                    await engine.connect().start()
                    gc.collect()
                async with engine.connect() as conn:
                    assert await conn.scalar(sa.text("select 1")) == 1

        run(main)

    def test_what_cannot_be_opened_is_an_error_of_the_engines(self, backend: Backend) -> None:
        async def main() -> None:
            url = backend.url.set(username="nobody", password="wrong-secret")
            engine = create_async_engine(url, poolclass=AsyncConnPool)
            with pytest.raises(exc.DBAPIError, match="nobody") as caught:
                async with engine.connect():
                    pass
            assert "wrong-secret" not in str(caught.value)
            await engine.dispose()

        run(main)

    def test_it_is_a_timeout_of_sqlalchemys_that_says_who_has_the_connections(self, backend: Backend) -> None:
        async def main() -> None:
            async with backend.engine(max_size=1, pool_timeout=0.05) as engine:
                async with engine.connect():
                    with pytest.raises(exc.TimeoutError, match="1 of 1 in use") as caught:
                        async with engine.connect():
                            pass
                assert isinstance(caught.value, connpool.PoolTimeout)
                assert "test_sqlalchemy_asyncio.py:" in str(caught.value)

        run(main)

    def test_events_are_fired_where_they_may_await(self, backend: Backend) -> None:
        async def main() -> None:
            async with backend.engine(max_size=1) as engine:
                heard: list[str] = []

                def ask(conn: Any, record: Any) -> None:
                    cursor = conn.cursor()
                    cursor.execute("select 1")
                    heard.append(f"connect {cursor.fetchone()[0]}")
                    cursor.close()
                    conn.rollback()

                event.listen(engine.sync_engine, "connect", ask)
                for name in ("checkout", "reset", "checkin"):
                    event.listen(engine.sync_engine, name, lambda *_, name=name: heard.append(name))
                async with engine.connect() as conn:
                    await conn.scalar(sa.text("select 1"))
                assert heard == ["connect 1", "checkout", "reset", "checkin"]

        run(main)


# -- without a server ---------------------------------------------------------------------------------


def test_aiosqlite_serves_as_well(tmp_path: Path) -> None:
    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}", poolclass=AsyncConnPool)
        async with engine.begin() as conn:
            await conn.run_sync(numbers.create)
            await conn.execute(sa.insert(numbers).values(n=1))
        async with engine.connect() as conn:
            await conn.execute(sa.insert(numbers).values(n=2))
        async with engine.connect() as conn:
            assert list(await conn.scalars(sa.select(numbers.c.n))) == [1]
        await engine.dispose()

    run(main)


def test_an_engine_serves_one_loop_after_the_other(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}", poolclass=AsyncConnPool)

    async def main() -> None:
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text("select 1")) == 1
        await engine.dispose()

    run(main)
    run(main)
