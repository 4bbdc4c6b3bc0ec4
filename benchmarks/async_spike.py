"""Fifty tasks at once meet five idle connections; a connect takes 150 ms more than it does, a query 2 ms.

As `spike`, with connections of real drivers, because asyncpg's pool takes no others.
"""

import asyncio
import time
from typing import Any

from . import spike
from .async_peers import ASYNC_OURS, ASYNC_PEERS, AsyncPeer
from .drivers import SlowAsyncDriver
from .figures import Case, Demand, Plan, Table
from .spike import BURST, CONNECT, IDLE, MOST, REQUESTS, SUSTAINED, Waits

TITLE = "async_spike: 50 tasks meet 5 idle connections"
WITH_FLOOR = False
TASKS = True
DRIVERS = {"asyncpg": "asyncpg", "asyncpg, no reset": "asyncpg"}  # everybody else: psycopg
NO_SERVER = ("aiosqlitepool",)


def plans(*, quick: bool) -> list[Plan]:
    them = tuple(name for name in ASYNC_PEERS if name not in NO_SERVER)
    return [
        Plan({"kind": "burst", "after": 0.5 if quick else 1.0}, rounds=1 if quick else 5, only=them),
        Plan({"kind": "sustained", "after": 1.5 if quick else 3.0}, rounds=1 if quick else 2, only=them),
    ]


def measure(peer: type[AsyncPeer], dsn: str, kind: str, after: float) -> dict[str, Any]:
    return asyncio.run(
        _measure(peer, SlowAsyncDriver(DRIVERS.get(peer.name, "psycopg"), dsn, CONNECT), kind, after)
    )


async def _measure(peer: type[AsyncPeer], driver: SlowAsyncDriver, kind: str, after: float) -> dict[str, Any]:
    pool = await peer.open(driver, MOST, IDLE)
    try:
        await asyncio.sleep(0.1)
        before, waits = driver.size(), []
        began = time.perf_counter()
        until = began if kind == "burst" else began + after
        pause = BURST if kind == "burst" else SUSTAINED
        await asyncio.gather(*(requests(pool, until, pause, waits) for _ in range(REQUESTS)))
        ended = time.perf_counter()
        if kind == "burst":
            await asyncio.sleep(after)
        return spike.summary(driver, kind, before, (began, ended), waits)
    finally:
        await pool.close()


async def requests(pool: AsyncPeer, until: float, query_seconds: float, waits: Waits) -> None:
    """Make one request, and others after it until the time is over."""
    while True:
        asked = time.perf_counter()
        async with pool.lease():
            waits.append((asked, time.perf_counter()))
            await asyncio.sleep(query_seconds)
        if time.perf_counter() >= until:
            return


def tables(cases: list[Case]) -> list[Table]:
    return spike.tables(cases, TITLE, "tasks")


def demands(cases: list[Case]) -> list[Demand]:
    return spike.demands(cases, "async_spike", ASYNC_OURS)
