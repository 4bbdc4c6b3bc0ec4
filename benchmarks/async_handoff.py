"""A connection goes from one task to another that waits: from the end of a block to the waiter running.

What the pool does to take the connection back is in it.
"""

import asyncio
import time
from typing import Any

from . import handoff
from .async_peers import ASYNC_OURS, AsyncPeer, who_knows
from .drivers import AsyncDriver
from .figures import Case, Demand, Plan, Table, percentile
from .handoff import WARM_UP

TITLE = "async_handoff: from the end of a block to the waiter running, {driver}"
WITH_FLOOR = True
TASKS = True


def plans(*, quick: bool) -> list[Plan]:
    handoffs, rounds = (200, 2) if quick else (2000, 5)
    drivers = ("psycopg", "asyncpg")
    return [
        Plan({"driver": driver, "handoffs": handoffs}, rounds, only=who_knows(driver)) for driver in drivers
    ]


def measure(peer: type[AsyncPeer], dsn: str, driver: str, handoffs: int) -> dict[str, Any]:
    return asyncio.run(_measure(peer, AsyncDriver(driver, dsn), handoffs))


async def _measure(peer: type[AsyncPeer], driver: AsyncDriver, handoffs: int) -> dict[str, Any]:
    pool = await peer.open(driver, 1)
    latencies: list[float] = []
    released_at = 0.0

    async def wait() -> None:
        async with pool.lease():
            latencies.append(time.perf_counter() - released_at)

    try:
        for _ in range(handoffs + WARM_UP):
            async with pool.lease():
                waiter = asyncio.create_task(wait())
                while not pool.waiting():  # noqa: ASYNC110 -- pools have no event for it
                    await asyncio.sleep(0)  # some need several turns of the loop
                released_at = time.perf_counter()
            await waiter
    finally:
        await pool.close()
    measured = [latency * 1e6 for latency in latencies[WARM_UP:]]
    return {"us": round(percentile(measured, 50), 2), "p99_us": round(percentile(measured, 99), 2)}


def tables(cases: list[Case]) -> list[Table]:
    return handoff.tables(cases, TITLE, ASYNC_OURS)


def demands(cases: list[Case]) -> list[Demand]:  # noqa: ARG001 -- shown, not promised
    return []
