"""Tasks on real servers: nobody gets an answer that was another's, and the server sees what the pool says."""

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from servers import MariaDB, PostgreSQL, wait_until

import connpool
from connpool import AsyncConnectionPool, Reason, create_async_pool
from tasks.stage import play, settle

TASKS = 400
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


@pytest.mark.server
def test_nobody_gets_the_answer_to_a_cancelled_question(driver: Driver) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")

    async def main() -> None:
        async def visit(number: int) -> None:
            await asyncio.sleep(chance.random() / 10)
            async with pool.connection() as conn:
                for _ in range(2):
                    assert await driver.ask(conn, chance.random() / 500, number) == number

        async with driver.pool() as pool:
            tasks = [asyncio.create_task(visit(number)) for number in range(TASKS)]
            for victim in chance.sample(tasks, TASKS // 2):
                await asyncio.sleep(chance.random() / 500)
                victim.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            errors = [result for result in results if isinstance(result, Exception)]
            assert not errors, errors[0]
            assert results.count(None) >= TASKS // 2
            await settle()
            stats = pool.stats()
            assert stats.size == stats.idle <= SIZE
            assert stats.acquires == stats.releases
            wait_until(lambda: driver.sessions() == stats.size)

    play(main)


# The driver's own warning, which as an error keeps its connection alive.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.server
def test_fifty_connections_that_become_garbage_cost_no_place_and_no_session(driver: Driver) -> None:
    async def main() -> None:
        async with driver.pool(max_size=2, acquire_timeout=5.0) as pool:
            for _ in range(50):
                conn = await pool.acquire()
                del conn
                gc.collect()
            await settle()
            assert pool.stats().discards[Reason.LOST] >= 48
            wait_until(lambda: driver.sessions() <= 2)

    play(main)


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
