"""Ten thousand tasks wait for the one connection: what each costs, and whether all are served in order.

A task that waits has memory of its own, whatever it waits for; what it takes more than one that sleeps on
a future is the pool's.
"""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

from .async_peers import ASYNC_OURS, AsyncPeer, who_knows
from .drivers import AsyncDriver
from .figures import Case, Demand, Plan, Table, names, series, spread, thousands

TITLE = "async_waiting: {tasks:,} tasks wait for one connection, {driver}"
WITH_FLOOR = True
TASKS = True


def plans(*, quick: bool) -> list[Plan]:
    tasks, rounds = (500, 1) if quick else (10_000, 3)
    drivers = ("psycopg", "asyncpg", "aiosqlite")
    return [Plan({"driver": driver, "tasks": tasks}, rounds, only=who_knows(driver)) for driver in drivers]


def measure(peer: type[AsyncPeer], dsn: str, driver: str, tasks: int) -> dict[str, Any]:
    return asyncio.run(_measure(peer, AsyncDriver(driver, dsn), tasks))


async def _measure(peer: type[AsyncPeer], driver: AsyncDriver, tasks: int) -> dict[str, Any]:
    pool = await peer.open(driver, 1)
    try:
        timed = await queue(pool, tasks)
        return timed | {"bytes": await memory(pool, tasks)}
    finally:
        await pool.close()


async def queue(pool: AsyncPeer, tasks: int) -> dict[str, Any]:
    """Have all wait, then serve them."""
    served: list[int] = []

    async def work(number: int) -> None:
        async with pool.lease():
            served.append(number)

    async with pool.lease():
        began = time.perf_counter()
        workers = [asyncio.create_task(work(number)) for number in range(tasks)]
        await until_waiting(pool, tasks)
        waiting = time.perf_counter()
    done = await asyncio.gather(*workers, return_exceptions=True)
    ended = time.perf_counter()
    return {
        "queue_us": round((waiting - began) / tasks * 1e6, 2),
        "serve_us": round((ended - waiting) / tasks * 1e6, 2),
        "served": len(served),
        "failed": sum(isinstance(each, BaseException) for each in done),
        "overtaken": overtaken(served),
    }


async def until_waiting(pool: AsyncPeer, tasks: int) -> None:
    """Return when all are in the pool's queue, or as many as ever will be."""
    last = -1
    while (now := pool.waiting() or 0) < tasks and now != last:
        last = now
        for _ in range(10):
            await asyncio.sleep(0)


def overtaken(served: list[int]) -> int:
    """Return how many were served after one that had come later."""
    latest, found = -1, 0
    for number in served:
        found += number < latest
        latest = max(latest, number)
    return found


async def memory(pool: AsyncPeer, tasks: int) -> float:
    """Return the bytes that a task takes that waits in the pool, beyond one that sleeps on a future."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[None]] = []

    async def sleep() -> None:
        futures.append(loop.create_future())
        await futures[-1]

    async def wait() -> None:
        async with pool.lease():
            pass

    async def all_asleep() -> None:
        await asyncio.sleep(0)  # each begins to wait at once
        assert len(futures) == tasks

    async def all_waiting() -> None:
        await until_waiting(pool, tasks)

    plain, sleepers = await bytes_each(sleep, tasks, all_asleep)
    for future in futures:
        future.set_result(None)
    await asyncio.gather(*sleepers)
    async with pool.lease():
        waiting, waiters = await bytes_each(wait, tasks, all_waiting)
    await asyncio.gather(*waiters, return_exceptions=True)
    return round(waiting - plain, 1)


async def bytes_each(
    work: Callable[[], Coroutine[Any, Any, None]],
    tasks: int,
    settled: Callable[[], Coroutine[Any, Any, None]],
) -> tuple[float, list[asyncio.Task[None]]]:
    """Start tasks; return what each takes when all sleep."""
    gc.collect()
    tracemalloc.start()
    try:
        started = [asyncio.create_task(work()) for _ in range(tasks)]
        await settled()
        return tracemalloc.get_traced_memory()[0] / tasks, started
    finally:
        tracemalloc.stop()


def tables(cases: list[Case]) -> list[Table]:
    head = [
        "",
        "bytes per waiting task",
        "µs to begin to wait, each",
        "µs to be served, each",
        "served, fewest",
        "overtaken, most",
    ]
    return [
        Table(
            TITLE.format(**case["case"]),
            head,
            [
                [
                    name,
                    spread(series(case, name, "bytes"), thousands),
                    spread(series(case, name, "queue_us"), lambda us: f"{us:.1f}"),
                    spread(series(case, name, "serve_us"), lambda us: f"{us:.1f}"),
                    thousands(min(series(case, name, "served"))),
                    thousands(max(series(case, name, "overtaken"))),
                ]
                for name in names(case)
            ],
        )
        for case in cases
    ]


def demands(cases: list[Case]) -> list[Demand]:
    found = []
    for case in cases:
        served, overtaken = (series(case, ASYNC_OURS, key) for key in ("served", "overtaken"))
        unserved = [case["case"]["tasks"] - each for each in served]
        label = f"{case['case']['tasks']:,} waiting tasks, {case['case']['driver']}"
        found += [
            Demand(f"{label}: not served", max(unserved, default=None), 0, at_most=True),
            Demand(f"{label}: overtaken", max(overtaken, default=None), 0, at_most=True),
        ]
    return found
