"""Many tasks share few connections: how much gets done, how long a task waits, and who is served.

Without a hold each block gives way once, so that all others want a connection meanwhile: what is measured
is the pool alone.  With a hold each block sleeps, as if it waited for a query.
"""

import asyncio
import time
from typing import Any

from . import contended
from .async_peers import ASYNC_OURS, AsyncPeer, who_knows
from .drivers import AsyncDriver
from .figures import Case, Demand, Plan, Table, find, middle

WITH_FLOOR = True
TASKS = True
HOLD = 0.002


def plans(*, quick: bool) -> list[Plan]:
    seconds, rounds = (0.3, 2) if quick else (1.0, 5)
    shapes = [(100, 4, 0.0), (100, 4, HOLD)] if quick else [(100, 4, 0.0), (10_000, 4, 0.0), (100, 4, HOLD)]
    return [
        Plan(
            {"driver": "psycopg", "tasks": tasks, "size": size, "hold": hold, "seconds": seconds},
            rounds,
            only=who_knows("psycopg"),
        )
        for tasks, size, hold in shapes
    ]


def measure(
    peer: type[AsyncPeer], dsn: str, driver: str, tasks: int, size: int, hold: float, seconds: float
) -> dict[str, Any]:
    return asyncio.run(_measure(peer, AsyncDriver(driver, dsn), tasks, size, hold, seconds))


async def _measure(
    peer: type[AsyncPeer], driver: AsyncDriver, tasks: int, size: int, hold: float, seconds: float
) -> dict[str, Any]:
    pool = await peer.open(driver, size)
    waits: list[list[float]] = [[] for _ in range(tasks)]
    held: list[list[float]] = [[] for _ in range(tasks)]
    over = False

    async def work(number: int) -> None:
        lease, my_waits, my_holds = pool.lease, waits[number], held[number]
        while not over:
            asked = time.perf_counter()
            async with lease():
                got = time.perf_counter()
                if over:
                    return  # too late to count; and those behind need not wait for the sleep
                await asyncio.sleep(hold)
                my_waits.append(got - asked)
                my_holds.append(time.perf_counter() - got)

    try:
        workers = [asyncio.create_task(work(number)) for number in range(tasks)]
        await asyncio.sleep(0)  # ten thousand need a while to begin
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        over, elapsed = True, time.perf_counter() - began
        served = [len(mine) for mine in held]
        await asyncio.gather(*workers)
    finally:
        await pool.close()
    return contended.summary(served, elapsed, waits, held, size, hold)


def tables(cases: list[Case]) -> list[Table]:
    return contended.tables(cases, "tasks", "a block that gives way once")


def _apart(case: Case) -> float | None:
    """Return how many blocks more than the last one the first one got through, at most."""
    served = [
        round_[ASYNC_OURS]["served"] for round_ in case["rounds"] if "served" in round_.get(ASYNC_OURS, {})
    ]
    return max((mine[0] - mine[-1] for mine in served), default=None)


def demands(cases: list[Case]) -> list[Demand]:
    case = find(cases, tasks=100, hold=HOLD)
    if case is None:
        return []
    return [
        Demand(
            "100 tasks on 4, 2 ms: of the ideal", middle(case, ASYNC_OURS, "of_ideal"), 0.75, at_most=False
        ),
        Demand("100 tasks on 4, 2 ms: most served less least served", _apart(case), 1, at_most=True),
    ]
