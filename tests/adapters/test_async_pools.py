"""The pool over real servers: whoever is cancelled leaves no transaction, also where each return is a reset.

That nobody sees his rows, without a reset and in greater numbers, is in `chaos/test_asyncio`.
"""

import asyncio
import random
from typing import Any

import pytest

from adapters.async_contract import AsyncHarness
from adapters.test_aiomysql import AiomysqlHarness
from adapters.test_asyncpg import AsyncpgHarness
from adapters.test_psycopg_async import AsyncPsycopgHarness
from connpool import AsyncConnectionPool

pytestmark = [pytest.mark.server, pytest.mark.stress]

BORROWERS = 600
MAX_SIZE = 4


def psycopg(request: pytest.FixtureRequest) -> AsyncHarness:
    return AsyncPsycopgHarness(*on(request, "postgresql"))


def asyncpg(request: pytest.FixtureRequest) -> AsyncHarness:
    return AsyncpgHarness(*on(request, "postgresql"))


def aiomysql(request: pytest.FixtureRequest) -> AsyncHarness:
    return AiomysqlHarness(*on(request, "mariadb"))


def on(request: pytest.FixtureRequest, name: str) -> tuple[Any, str]:
    return request.getfixturevalue(name), request.getfixturevalue(f"{name}_database")


@pytest.fixture(params=[psycopg, asyncpg, aiomysql], ids=lambda make: make.__name__, scope="class")
def harness(request: pytest.FixtureRequest) -> AsyncHarness:
    return request.param(request)


class TestCancelledBorrowers:
    def test_the_next_borrower_gets_neither_rows_nor_a_transaction_of_a_cancelled_one(
        self, harness: AsyncHarness
    ) -> None:
        rng = random.Random(4711)
        table = f"{harness.table}_{type(harness).__name__}"
        finished: set[int] = set()  # their bodies; what comes after may have been cancelled
        served: set[int] = set()
        cancelled = []

        async def borrow(pool: AsyncConnectionPool[Any], number: int) -> None:
            async with pool.transaction(timeout=30) as conn:
                await harness.arun(conn, f"INSERT INTO {table} VALUES ({number})")
                for own in (number, number + 1_000_000):
                    assert await harness.arun(conn, f"SELECT {own}") == [(own,)]
                finished.add(number)
            served.add(number)

        async def main() -> None:
            async with AsyncConnectionPool(harness.aadapter(), max_size=MAX_SIZE, reset="full") as pool:
                async with pool.connection() as conn:
                    await harness.arun(conn, f"CREATE TABLE {table} (a INTEGER)")
                tasks = [asyncio.ensure_future(borrow(pool, number)) for number in range(BORROWERS)]
                while any(not task.done() for task in tasks):
                    victims = [task for task in tasks if not task.done()][: 2 * MAX_SIZE]
                    if victims and rng.random() < 0.5:
                        rng.choice(victims).cancel()
                    await asyncio.sleep(rng.random() / 500)
                for task in tasks:
                    if task.cancelled():
                        cancelled.append(task)
                    else:
                        task.result()
                stats = pool.stats()
                assert stats.in_use == 0
                assert stats.size <= MAX_SIZE
                async with pool.connection() as conn:
                    committed = {a for (a,) in await harness.arun(conn, f"SELECT a FROM {table}")}
                    assert served <= committed <= finished
                    assert len(await harness.arun(conn, harness.census)) < MAX_SIZE

        asyncio.run(asyncio.wait_for(main(), 60))
        assert len(served) > BORROWERS / 10
        assert len(cancelled) > BORROWERS / 50
