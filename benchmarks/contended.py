"""Several threads share few connections: how much gets done, how long a caller waits, and who is served.

Without a hold the block is empty: what is measured is the pool alone, under threads that lose the
interpreter lock at any moment.  With a hold each block sleeps, as if it waited for a query: nobody can do
more than size / hold.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from statistics import median
from threading import Barrier
from typing import Any

from .drivers import RealDriver
from .figures import (
    Case,
    Demand,
    Plan,
    Table,
    find,
    middle,
    names,
    percentile,
    ratio,
    series,
    spread,
    thousands,
    times,
)
from .peers import FLOOR, OURS, Peer, fill, run_threads

TITLE = "contended: threads x connections"
WITH_FLOOR = True
HOLD = 0.001
CHUNK = 20  # cycles between two looks at the clock
EMPTY = [(4, 2), (4, 4), (8, 4), (8, 8), (32, 4)]
HELD = [(8, 4), (32, 4)]


def plans(*, quick: bool) -> list[Plan]:
    if quick:
        return [
            Plan({"threads": 4, "size": 4, "hold": 0.0, "seconds": 0.2}, rounds=2),
            Plan({"threads": 32, "size": 4, "hold": HOLD, "seconds": 0.3}, rounds=2),
        ]
    empty = [Plan({"threads": t, "size": s, "hold": 0.0, "seconds": 1.0}, rounds=5) for t, s in EMPTY]
    held = [Plan({"threads": t, "size": s, "hold": HOLD, "seconds": 1.0}, rounds=5) for t, s in HELD]
    return empty + held


def measure(
    peer: type[Peer], dsn: str, threads: int, size: int, hold: float, seconds: float
) -> dict[str, Any]:
    pool = peer(RealDriver(dsn), size)
    try:
        fill(pool, size)
        served = [0] * threads
        elapsed = [0.0] * threads
        waits: list[list[float]] = [[] for _ in range(threads)]
        held: list[list[float]] = [[] for _ in range(threads)]
        barrier = Barrier(threads)

        def empty(number: int) -> None:
            lease, cycles = pool.lease, 0
            barrier.wait()
            began = time.perf_counter()
            while (now := time.perf_counter()) < began + seconds:
                for _ in repeat(None, CHUNK):
                    with lease():
                        pass
                cycles += CHUNK
            served[number], elapsed[number] = cycles, now - began

        def holding(number: int) -> None:
            lease, my_waits, my_holds = pool.lease, waits[number], held[number]
            barrier.wait()
            began = now = time.perf_counter()
            while now < began + seconds:
                with lease():
                    got = time.perf_counter()
                    my_waits.append(got - now)
                    time.sleep(hold)
                    my_holds.append(time.perf_counter() - got)
                now = time.perf_counter()
            served[number], elapsed[number] = len(my_waits), now - began

        work: Callable[[int], None] = holding if hold else empty
        run_threads(partial(work, number) for number in range(threads))
    finally:
        pool.close()
    return summary(served, max(elapsed), waits, held, size, hold)


def summary(
    served: list[int],
    seconds: float,
    waits: list[list[float]],
    held: list[list[float]],
    size: int,
    hold: float,
) -> dict[str, Any]:
    """Return the figures of blocks that each of those who shared the connections got through."""
    measured: dict[str, Any] = {
        "per_second": round(sum(served) / seconds, 1),
        "served": sorted(served, reverse=True),
        "most_to_least": round(max(served) / max(1, min(served)), 3),
    }
    if hold:
        all_waits = [wait for mine in waits for wait in mine]
        measured["wait_ms"] = {
            str(p): round(percentile(all_waits, p) * 1e3, 3) for p in (50, 90, 99, 99.9, 100)
        }
        measured["p99_ms"], measured["longest_ms"] = measured["wait_ms"]["99"], measured["wait_ms"]["100"]
        measured["hold_ms"] = round(median(h for mine in held for h in mine) * 1e3, 4)
        measured["of_ideal"] = round(measured["per_second"] / (size / hold), 4)
    return measured


def tables(cases: list[Case], who: str = "threads", empty_block: str = "empty block") -> list[Table]:
    name_of = "contended" if who == "threads" else "async_contended"
    found = []
    empty = [case for case in cases if not case["case"]["hold"]]
    if empty:
        everybody = list(dict.fromkeys(name for case in empty for name in names(case)))
        head = ["", *(f"{c['case'][who]} on {c['case']['size']}" for c in empty)]
        rows = [
            [name, *(spread(series(case, name, "per_second"), lambda x: f"{x / 1000:.0f}") for case in empty)]
            for name in everybody
        ]
        title = (
            f"{name_of}: {who} on connections, {empty_block}; thousand cycles per second, median (min to max)"
        )
        found.append(Table(title, head, rows))
    for case in cases:
        hold, many, size = (case["case"][key] for key in ("hold", who, "size"))
        if not hold:
            continue
        head = [
            "",
            "blocks per second",
            f"of the ideal ({size / hold:,.0f})",
            "wait p50, ms",
            "wait p99, ms",
            "longest wait, ms",
            "most / least served",
        ]
        rows = [
            [
                name,
                spread(series(case, name, "per_second"), thousands),
                times(middle(case, name, "of_ideal")),
                f"{median(r[name]['wait_ms']['50'] for r in case['rounds'] if name in r):.1f}",
                spread(series(case, name, "p99_ms"), lambda ms: f"{ms:.1f}"),
                thousands(middle(case, name, "longest_ms") or 0.0),
                times(middle(case, name, "most_to_least")),
            ]
            for name in names(case)
        ]
        title = f"{name_of}: {many:,} {who} on {size} connections, each held for {hold * 1e3:g} ms"
        found.append(Table(title, head, rows))
    return found


def demands(cases: list[Case]) -> list[Demand]:
    found = []
    if case := find(cases, threads=4, size=4, hold=0.0):
        limits = {"psycopg_pool": 10.0, "SQLAlchemy": 10.0, "connpool 1.0.14 (PyPI)": 10.0, "DBUtils": 5.0}
        found += [
            Demand(
                f"4 threads on 4: throughput, times {name}'s",
                ratio(case, OURS, name, "per_second"),
                limit,
                at_most=False,
            )
            for name, limit in limits.items()
        ]
    if case := find(cases, threads=32, size=4, hold=HOLD):
        best = [
            round_[OURS]["per_second"]
            / max(m["per_second"] for n, m in round_.items() if n not in (OURS, FLOOR) and "error" not in m)
            for round_ in case["rounds"]
            if "per_second" in round_.get(OURS, {}) and len(set(round_) - {OURS, FLOOR})
        ]
        found += [
            Demand(
                "32 threads on 4, 1 ms: of the ideal", middle(case, OURS, "of_ideal"), 0.90, at_most=False
            ),
            Demand(
                "32 threads on 4, 1 ms: of the best peer", median(best) if best else None, 0.93, at_most=False
            ),
            Demand(
                "32 threads on 4, 1 ms: p99 wait",
                middle(case, OURS, "p99_ms"),
                1.5 * 32 / 4 * HOLD * 1e3,
                at_most=True,
                unit=" ms",
            ),
            Demand(
                "32 threads on 4, 1 ms: most served / least served",
                middle(case, OURS, "most_to_least"),
                1.10,
                at_most=True,
            ),
        ]
    return found
