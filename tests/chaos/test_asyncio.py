"""The outages of the tests beside this one, met by tasks; and tasks that are cancelled at any instant.

Every scene ends with nothing left behind in its loop, and with a census: what the server sees equals what
the pool says.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiomysql
import asyncpg
import psycopg
import pytest
from servers import FaultProxy, MariaDB, PostgreSQL, wait_until
from tasks.stage import play

from connpool import AsyncConnectionPool, PoolError, PoolTimeout, PoolUnavailable, Reason
from connpool.adapters.aiomysql import AiomysqlAdapter
from connpool.adapters.asyncpg import AsyncpgAdapter
from connpool.adapters.psycopg_async import AsyncPsycopgAdapter

pytestmark = [pytest.mark.server, pytest.mark.chaos]

TASKS, SIZE = 50, 10
TIMEOUT = 5.0  # seconds for an acquire
LATE = 0.1  # seconds that a step may take beyond its limit
RECOVERS_WITHIN = 1.0  # seconds after the server accepts connections again

CANCELLATIONS = 1500
ROWS = 20
INSTANTS = 0.002  # seconds within which a task is cancelled, once it has begun or has its first answer

Rows = list[tuple[int, int]]


# -- drivers -------------------------------------------------------------------------------------------


# All rows at once for an even number, and one after the other for an odd one.


async def rows_of_psycopg(conn: Any, number: int) -> Rows:
    query = f"select {number}, g from generate_series(1, {ROWS}) g"
    async with conn.cursor() as cursor:
        if number % 2:
            return [row async for row in cursor.stream(query)]
        await cursor.execute(query)
        return list(await cursor.fetchall())


async def rows_of_asyncpg(conn: Any, number: int) -> Rows:
    query = f"select {number}, g from generate_series(1, {ROWS}) g"
    if number % 2:
        async with conn.transaction():
            return [tuple(row) async for row in conn.cursor(query, prefetch=5)]
    return [tuple(row) for row in await conn.fetch(query)]


async def rows_of_aiomysql(conn: Any, number: int) -> Rows:
    async with conn.cursor(aiomysql.SSCursor if number % 2 else aiomysql.Cursor) as cursor:
        await cursor.execute(f"select {number}, seq from seq_1_to_{ROWS}")
        return list(await cursor.fetchall())


@dataclass
class Driver:
    """A driver, with a server that it speaks to."""

    server: PostgreSQL | MariaDB
    kind: Callable[..., Any]
    rows: Callable[[Any, int], Awaitable[Rows]]
    begin: Callable[[Any], Awaitable[object]]
    errors: tuple[type[Exception], ...]
    """What its statements raise when their connection is lost."""
    database: str = "dbname"

    def adapter(self, address: tuple[str, int] | None = None, **more: str) -> Any:
        params: dict[str, Any] = {**self.server.params, **more}
        params[self.database] = params.pop("dbname", None) or params.pop("database")
        if address is not None:
            params["host"], params["port"] = address
        return self.kind(**params)

    async def work(self, conn: Any, number: int = 1) -> None:
        """Ask for rows of one's own, and get no others."""
        assert await self.rows(conn, number) == [(number, n + 1) for n in range(ROWS)]

    async def agree(self, pool: AsyncConnectionPool[Any]) -> None:
        """Wait until the server sees as many sessions as the pool has."""
        async with asyncio.timeout(10):
            while len(await asyncio.to_thread(self.server.census)) != pool.stats().size:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def begin(conn: Any) -> None:
    await conn.execute("begin")


DRIVERS: dict[str, dict[str, Any]] = {
    "psycopg": {
        "kind": AsyncPsycopgAdapter,
        "rows": rows_of_psycopg,
        "begin": begin,
        "errors": (psycopg.OperationalError,),
    },
    "asyncpg": {
        "kind": AsyncpgAdapter,
        "rows": rows_of_asyncpg,
        "begin": begin,
        "errors": (
            asyncpg.PostgresConnectionError,
            asyncpg.OperatorInterventionError,  # "terminating connection because of ..."
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,  # begun in the instant in which the server's last word came in
            OSError,
        ),
        "database": "database",
    },
    "aiomysql": {
        "kind": AiomysqlAdapter,
        "rows": rows_of_aiomysql,
        "begin": lambda conn: conn.begin(),
        "errors": (aiomysql.OperationalError, aiomysql.InterfaceError),
        "database": "db",
    },
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    server = request.getfixturevalue("mariadb" if request.param == "aiomysql" else "postgresql")
    yield Driver(server, **DRIVERS[request.param])
    server.start()  # if it was killed
    wait_until(lambda: not server.census(), what="no session is left")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds + LATE, f"{took:.3f} s in place of {seconds:g} s"


async def fill(pool: AsyncConnectionPool[Any], driver: Driver, size: int) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(size):
            await driver.work(await stack.enter_async_context(pool.connection()))


# -- restarts ------------------------------------------------------------------------------------------

Done = tuple[float, float, float, Exception | None]  # began, got it, ended, error


@asynccontextmanager
async def load(pool: AsyncConnectionPool[Any], driver: Driver) -> AsyncIterator[list[Done]]:
    """Let tasks borrow and work until the block ends; lend the list of what became of it and when."""
    done: list[Done] = []
    stopped = False

    async def run() -> None:
        while not stopped:
            began = got = time.monotonic()
            error: Exception | None = None
            try:
                async with pool.connection(timeout=TIMEOUT) as conn:
                    got = time.monotonic()
                    await driver.work(conn)
            except PoolError as exc:
                got, error = time.monotonic(), exc
            except driver.errors as exc:
                error = exc
            done.append((began, got, time.monotonic(), error))
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(run())
        yield done
        stopped = True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.005)


def test_restart_is_felt_only_while_the_server_is_away(driver: Driver) -> None:
    async def scene() -> None:
        async with AsyncConnectionPool(driver.adapter(), max_size=SIZE) as pool:
            async with load(pool, driver) as done:
                await until(lambda: len(done) > 500)
                await asyncio.to_thread(driver.server.kill)
                await asyncio.sleep(0.3)
                await asyncio.to_thread(driver.server.start)
                back = time.monotonic()
                await until(lambda: sum(end > back and not error for *_, end, error in done) > 500)
            assert max(got - began for began, got, *_ in done) < TIMEOUT + LATE
            late = [
                entry for entry in done if entry[3] and (entry[0] > back or entry[2] > back + RECOVERS_WITHIN)
            ]
            assert not late
            assert (
                min(end for _, got, end, error in done if got > back and not error) < back + RECOVERS_WITHIN
            )
            assert any(error for *_, error in done), "nobody felt it: the test proves nothing"
            stats = pool.stats()
            assert stats.opened <= 2 * SIZE
            assert stats.acquires == stats.releases
            await driver.agree(pool)

    play(scene)


def test_idle_sessions_that_were_killed_cost_no_error_and_no_ping(driver: Driver) -> None:
    async def scene() -> None:
        async with AsyncConnectionPool(
            driver.adapter(), max_size=SIZE, probe_after=0.1, ping_after=None
        ) as pool:
            await fill(pool, driver, SIZE)
            await asyncio.sleep(0.2)
            assert await asyncio.to_thread(driver.server.terminate_sessions) == SIZE
            for number in range(20):
                async with pool.connection() as conn:
                    await driver.work(conn, number)
            await driver.agree(pool)

    play(scene)


# -- black holes ---------------------------------------------------------------------------------------


@dataclass
class Routes:
    """The way to the server leads through a proxy, until it leads there directly."""

    driver: Driver
    proxy: FaultProxy

    def __post_init__(self) -> None:
        self.adapter = self.driver.adapter(self.proxy.address)
        self._through, self._directly = self.adapter.connect, self.driver.adapter().connect
        self.adapter.connect = self._connect
        self.is_direct = False

    async def _connect(self, limit: float | None, credentials: Any = None) -> Any:
        return await (self._directly if self.is_direct else self._through)(limit, credentials)


@pytest.fixture
def routes(driver: Driver, fault_proxy: Callable[[Any], FaultProxy]) -> Iterator[Routes]:
    routes = Routes(driver, fault_proxy(driver.server))
    yield routes
    routes.proxy.close()  # what it holds towards the server ends


def test_idle_connections_in_a_black_hole_are_left_for_a_new_route(routes: Routes) -> None:
    async def scene() -> None:
        async with AsyncConnectionPool(routes.adapter, max_size=4, probe_after=0.05, ping_after=0.1) as pool:
            await fill(pool, routes.driver, 4)
            await asyncio.sleep(0.2)
            routes.proxy.black_hole()
            routes.is_direct = True
            with within(2.0):
                conn = await pool.acquire(timeout=2.0)
            await routes.driver.work(conn)
            await pool.release(conn)
            assert pool.stats().discards[Reason.SILENT] == 4

    play(scene)


def test_nothing_passes_at_all(routes: Routes) -> None:
    async def scene() -> None:
        async with AsyncConnectionPool(
            routes.adapter, max_size=4, probe_after=0.05, ping_after=0.1, connect_timeout=0.5
        ) as pool:
            await fill(pool, routes.driver, 4)
            await asyncio.sleep(0.2)
            routes.proxy.black_hole()
            with within(1.0), pytest.raises(PoolUnavailable):
                await pool.acquire(timeout=1.0)
            routes.proxy.pass_through()
            async with pool.connection() as conn:
                await routes.driver.work(conn)

    play(scene)


def test_steps_of_the_pool_end_in_time_in_a_black_hole(routes: Routes) -> None:
    """A commit, a rollback at the return, and closing; each on a connection that was well when it began."""

    async def scene() -> None:
        pool = AsyncConnectionPool(routes.adapter, max_size=2, commit_timeout=0.3, reset_timeout=0.3)
        async with pool:
            with pytest.raises(PoolTimeout, match="whether the server has committed is not known"):
                async with pool.connection() as conn:
                    await routes.driver.begin(conn)
                    routes.proxy.black_hole()
                    began = time.monotonic()
            assert time.monotonic() - began < 0.3 + LATE
            routes.proxy.pass_through()

            conn = await pool.acquire()
            await routes.driver.begin(conn)
            routes.proxy.black_hole()
            with within(0.3):
                await pool.release(conn)
            routes.proxy.pass_through()

            await fill(pool, routes.driver, 2)
            routes.proxy.black_hole()
            with within(1.0):
                await pool.close()
            assert pool.stats().size == 0

    play(scene)


# -- cancellation --------------------------------------------------------------------------------------


def test_nobody_sees_the_rows_of_one_who_was_cancelled(driver: Driver) -> None:
    """Tasks ask without end for rows with a number of their own, until each is cancelled, at any instant."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    struck = asked = 0  # cancelled while they had a connection; answers that were checked

    async def scene() -> None:
        async with AsyncConnectionPool(driver.adapter(), max_size=4) as pool:
            numbers = iter(range(CANCELLATIONS))

            async def victim(number: int, served: asyncio.Event) -> None:
                nonlocal asked, struck
                async with pool.connection() as conn:
                    try:
                        while True:
                            await driver.work(conn, number)
                            asked += 1
                            served.set()
                    except asyncio.CancelledError:
                        struck += 1
                        raise

            async def executioner() -> None:
                for number in numbers:
                    served = asyncio.Event()
                    task = asyncio.create_task(victim(number, served))
                    if chance.random() < 0.5:
                        await served.wait()
                    await asyncio.sleep(chance.random() * INSTANTS)
                    again = chance.random() < 0.5  # and again, as AnyIO does: into what tidies up, too
                    task.cancel()
                    while not task.done():
                        await asyncio.wait([task], timeout=0.0002 if again else None)
                        task.cancel()
                    assert task.cancelled(), task.exception()

            async with asyncio.TaskGroup() as group:
                for _ in range(6):
                    group.create_task(executioner())
            await fill(pool, driver, 4)
            stats = pool.stats()
            assert stats.size == stats.idle == 4
            assert stats.acquires == stats.releases
            await driver.agree(pool)
            print(f"{struck} struck with a connection, {asked} answers, {stats.opened} opened")

    play(scene)
    assert struck > CANCELLATIONS / 3
    assert asked > CANCELLATIONS / 3


# MariaDB is not told; neither is PostgreSQL if psycopg is cancelled again while it tells it.
@pytest.mark.parametrize(
    ("driver", "times"), [("psycopg", 1), ("asyncpg", 1), ("asyncpg", 5)], indirect=["driver"]
)
def test_what_a_cancelled_task_has_asked_for_ends_in_the_server(driver: Driver, times: int) -> None:
    play(lambda: cancelled_while_asking(driver, driver.adapter(), times))


@pytest.mark.parametrize(
    ("driver", "limit", "times"),
    [
        ("psycopg", {"options": "-c client_connection_check_interval=200ms"}, 5),
        ("aiomysql", {"init_command": "SET SESSION max_statement_time = 0.5"}, 1),
    ],
    indirect=["driver"],
)
def test_what_goes_on_in_the_server_ends_with_a_limit_there(
    driver: Driver, limit: dict[str, str], times: int
) -> None:
    play(lambda: cancelled_while_asking(driver, driver.adapter(**limit), times))


async def cancelled_while_asking(driver: Driver, adapter: Any, times: int) -> None:
    """Cancel a task that has asked for a minute of sleep; wait until the server does not sleep any more."""

    def asked() -> bool:
        return any("sleep(60)" in (session.query or "") for session in driver.server.census())

    async def ask() -> None:
        async with pool.connection() as conn:
            if isinstance(driver.server, MariaDB):
                async with conn.cursor() as cursor:
                    await cursor.execute("select sleep(60)")
            else:
                await conn.execute("select pg_sleep(60)")

    async with AsyncConnectionPool(adapter, max_size=1) as pool:
        task = asyncio.create_task(ask())
        await asyncio.to_thread(wait_until, asked)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.0002)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until, lambda: not asked())
