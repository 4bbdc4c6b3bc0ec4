"""Tasks on real servers: what they lose, their loops, their limits; to cancel is in `chaos/test_asyncio`."""

import asyncio
import gc
import inspect
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers import MariaDB, PostgreSQL, wait_until

import connpool
from connpool import AsyncConnectionPool, Reason, create_async_pool
from tasks.stage import play, settle

SIZE = 5


@dataclass
class Driver:
    """How tasks speak to a server through a driver."""

    url: str
    ask: Callable[[Any, float, int], Awaitable[int]]  # sleeps in the server, and returns a number from there
    sessions: Callable[[], int]

    def pool(self, **options: Any) -> AsyncConnectionPool[Any]:
        return create_async_pool(self.url, **{"max_size": SIZE, "acquire_timeout": None} | options)


async def ask_psycopg(conn: Any, seconds: float, number: int) -> int:
    cursor = await conn.execute("select %s::int from pg_sleep(%s)", (number, seconds))
    return int((await cursor.fetchone())[0])


async def ask_asyncpg(conn: Any, seconds: float, number: int) -> int:
    return int(await conn.fetchval("select $1::int from pg_sleep($2)", number, seconds))


async def ask_aiomysql(conn: Any, seconds: float, number: int) -> int:
    async with conn.cursor() as cursor:
        await cursor.execute("select %s, sleep(%s)", (number, seconds))
        return int((await cursor.fetchone())[0])


ASK = {"psycopg": ask_psycopg, "asyncpg": ask_asyncpg, "aiomysql": ask_aiomysql}


@pytest.fixture(params=ASK)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    name = request.param
    server: PostgreSQL | MariaDB
    if name == "aiomysql":
        server = request.getfixturevalue("mariadb")
        url = server.url_for(database=request.getfixturevalue("mariadb_database"))
    else:
        server = request.getfixturevalue("postgresql")
        url = server.url_for(dbname=request.getfixturevalue("postgresql_database"))
    others = {session.id for session in server.census()}

    def sessions() -> int:
        return len([session for session in server.census() if session.id not in others])

    scheme, _, rest = url.partition("://")
    yield Driver(f"{scheme}+{name}://{rest}", ASK[name], sessions)
    wait_until(lambda: sessions() == 0, timeout=10)


def lose_fifty(make: Callable[[], AsyncConnectionPool[Any]], sessions: Callable[[], int]) -> None:
    """Borrow connections and drop them: each is told with its line, and takes neither place nor session."""

    async def main() -> None:
        async with make() as pool:
            for number in range(50):
                conn = await pool.acquire()
                del conn
                gc.collect()
                if number % 10 == 9:
                    await settle()
                    assert sessions() <= 2
            conn = await pool.acquire()  # finds the last one
            await pool.release(conn)
            assert pool.stats().discards[Reason.LOST] == 50
            await settle()
            wait_until(lambda: sessions() == pool.stats().size)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        play(main)
    # Some drivers have a warning of their own, which does not know the line.
    ours = [str(each.message) for each in told if "was lost" in str(each.message)]
    assert len(ours) == 50
    line = inspect.getsourcelines(main)[1] + 3
    assert all(f"test_servers.py:{line} was lost" in message for message in ours), ours[0]


@pytest.mark.server
def test_fifty_connections_that_become_garbage_cost_no_place_and_no_session(driver: Driver) -> None:
    lose_fifty(lambda: driver.pool(max_size=2, acquire_timeout=5.0), driver.sessions)


def test_fifty_connections_to_a_file_that_become_garbage_leave_none_open(tmp_path: Path) -> None:
    file = tmp_path / "garbage.db"

    def sessions() -> int:
        return sum(Path(each.path) == file for each in psutil.Process().open_files())

    lose_fifty(
        lambda: create_async_pool(f"sqlite:///{file}", max_size=2, acquire_timeout=5.0),
        sessions,
    )


@pytest.mark.server
def test_a_pool_serves_three_loops_in_a_row_and_leaves_no_session_behind(driver: Driver) -> None:
    pool = driver.pool()

    async def borrow() -> None:
        async with pool.connection() as conn:
            assert await driver.ask(conn, 0.0, 7) == 7

    for _ in range(3):
        asyncio.run(borrow())
        assert driver.sessions() <= 1
    asyncio.run(pool.close())


@pytest.mark.server
def test_a_deadline_cuts_the_waiting_and_a_timeout_of_asyncio_the_question(driver: Driver) -> None:
    async def main() -> None:
        async with driver.pool(max_size=1) as pool:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), pool.connection() as conn:
                    with connpool.deadline(0.05), pytest.raises(connpool.PoolTimeout):
                        await pool.acquire()
                    await driver.ask(conn, 1.0, 1)  # some servers go on with it, and close then
            async with asyncio.timeout(10), pool.connection() as conn:
                assert await driver.ask(conn, 0.0, 2) == 2

    play(main)
