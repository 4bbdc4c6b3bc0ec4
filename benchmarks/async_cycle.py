"""One task, nobody else: `async with pool.connection(): pass`, over and over.

In short turns with the floor, in the same process, so that a noisy moment meets both.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import cache
from itertools import repeat
from statistics import median
from typing import Any

from . import cycle
from .async_peers import ASYNC_OURS, AsyncFloor, AsyncPeer, who_knows
from .cycle import LEAD, SIZE, TURN
from .drivers import AsyncDriver
from .figures import Case, Demand, Plan, Table, find, ratio

TITLE = "async_cycle: one task, empty block, {driver}"
WITH_FLOOR = True
TASKS = True
DRIVERS = ("psycopg", "asyncpg", "aiosqlite")


def plans(*, quick: bool) -> list[Plan]:
    turns, rounds = (50, 2) if quick else (200, 7)
    return [Plan({"driver": driver, "turns": turns}, rounds, only=who_knows(driver)) for driver in DRIVERS]


def measure(peer: type[AsyncPeer], dsn: str, driver: str, turns: int) -> dict[str, Any]:
    return asyncio.run(_measure(peer, AsyncDriver(driver, dsn), turns))


async def _measure(peer: type[AsyncPeer], driver: AsyncDriver, turns: int) -> dict[str, Any]:
    pool, floor = await peer.open(driver, SIZE), await AsyncFloor.open(driver, SIZE)
    try:
        cycles, floor_cycles = await turn_of(pool), await turn_of(floor)
        mine, least = [], []
        for _ in range(turns):
            least.append(await spin(floor, floor_cycles))
            mine.append(await spin(pool, cycles))
        return {
            "ns": round(median(mine) * 1e9, 1),
            "floor_ns": round(median(least) * 1e9, 1),
            "to_floor": round(median(m / f for m, f in zip(mine, least, strict=True)), 4),
        }
    finally:
        await pool.close()
        await floor.close()


async def turn_of(peer: AsyncPeer) -> int:
    """Warm up; return how many cycles a turn has.  Pools that speak to the server have few."""
    rough = await spin(peer, LEAD)
    return max(1, int(TURN / await spin(peer, max(LEAD, min(2000, int(0.01 / rough))))))


LOOP = """
async def loop(pool, cycles):
    for _ in repeat(None, cycles):
        async with pool.{method}():
            pass
"""


@cache
def loop(peer: type[AsyncPeer]) -> Callable[[Any, int], Coroutine[Any, Any, None]]:
    """Return the loop as a user of this pool would write it; as `cycle.loop`."""
    names: dict[str, Any] = {"repeat": repeat}
    exec(LOOP.format(method=peer.method), names)
    made: Callable[[Any, int], Coroutine[Any, Any, None]] = names["loop"]
    return made


async def spin(peer: AsyncPeer, cycles: int) -> float:
    """Return the seconds of one cycle."""
    run, pool = loop(type(peer)), peer.pool
    await run(pool, min(LEAD, cycles))
    began = time.perf_counter()
    await run(pool, cycles)
    return (time.perf_counter() - began) / cycles


def tables(cases: list[Case]) -> list[Table]:
    return cycle.tables(cases, title=TITLE, ours=ASYNC_OURS)


def demands(cases: list[Case]) -> list[Demand]:
    return [
        Demand(
            f"time of an async cycle with {driver}, of {name}'s",
            ratio(case, ASYNC_OURS, name, "ns"),
            limit,
            at_most=True,
        )
        for driver, name, limit in (
            ("psycopg", "psycopg_pool (asyncio)", 0.25),
            ("psycopg", "SQLAlchemy (asyncio)", 0.25),
            ("asyncpg", "asyncpg", 1.0),
            ("asyncpg", "asyncpg, no reset", 1.0),
            ("aiosqlite", "aiosqlitepool", 1.0),
        )
        if (case := find(cases, driver=driver))
    ]
