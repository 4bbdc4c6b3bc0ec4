"""Fifty requests at once meet five idle connections; a connect takes 150 ms, a query 2 ms.

HikariCP calls it "Welcome to the Jungle": all could be served by the five in 20 ms, long before the first
new connection is there.  How many connections does the pool open, who is served when, and how many are left a
second later?  In the sustained variant the load stays, with queries of 20 ms: now the pool must grow.

The driver is a fake, so that connects and queries take what the script says.
"""

import threading
import time
from functools import partial
from statistics import median
from typing import Any

from .drivers import FakeDriver, Ledger
from .figures import Case, Demand, Plan, Table, find, middle, names, series, spread, thousands
from .peers import OURS, Peer, run_threads

TITLE = "spike: 50 requests meet 5 idle connections"
WITH_FLOOR = False
CONNECT = 0.150
IDLE, MOST, REQUESTS = 5, 50, 50
MAX_CONNECTING = 2  # connpool's default
BURST, SUSTAINED = 0.002, 0.020  # seconds of a query
ENOUGH = 20  # connections that the sustained load must lead to


def plans(*, quick: bool) -> list[Plan]:
    return [
        Plan({"kind": "burst", "after": 0.5 if quick else 1.0}, rounds=1 if quick else 5),
        Plan({"kind": "sustained", "after": 1.5 if quick else 3.0}, rounds=1 if quick else 2),
    ]


def measure(peer: type[Peer], dsn: str, kind: str, after: float) -> dict[str, Any]:  # noqa: ARG001 -- no server
    driver = FakeDriver(CONNECT, BURST if kind == "burst" else SUSTAINED)
    pool = peer(driver, MOST, idle=IDLE)
    try:
        deadline = time.perf_counter() + 5.0
        while driver.size() < IDLE and time.perf_counter() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        before = driver.size()
        began, waits = (burst if kind == "burst" else sustained)(pool, after)
        ended = time.perf_counter()
        if kind == "burst":
            time.sleep(after)
        return summary(driver, kind, before, (began, ended), waits)
    finally:
        pool.close()


def summary(
    driver: Ledger, kind: str, before: int, measured_from_to: tuple[float, float], waits: "Waits"
) -> dict[str, Any]:
    """Return the figures of a burst, or of a sustained load, whose waits these are."""
    began, ended = measured_from_to
    steps = growth(driver, began, time.perf_counter())
    measured: dict[str, Any] = {
        "idle_before": before,
        "served": len(waits),
        "dials": sum(began <= instant <= ended for instant in driver.dials),
        "size_at_most": max(size for _, size in steps),
        "growth": steps,
        "longest_wait_ms": round(max(got - asked for asked, got in waits) * 1e3, 2),
    }
    if kind == "burst":
        measured["makespan_ms"] = round((max(got for _, got in waits) - began + BURST) * 1e3, 2)
        measured["overtaken"] = overtaken(waits)
        measured["size_after"] = driver.size()
    else:
        enough = driver.reached(ENOUGH)
        measured["enough_after_ms"] = None if enough is None else round((enough - began) * 1e3, 1)
        measured["per_second"] = round(len(waits) / (ended - began), 1)
    return measured


Waits = list[tuple[float, float]]
"""When each request asked for a connection, and when it got one."""


def burst(pool: Peer, after: float) -> tuple[float, Waits]:  # noqa: ARG001 -- as `sustained`
    """Have everybody make one request at the same time."""
    barrier = threading.Barrier(REQUESTS)
    waits: Waits = []

    def request() -> None:
        barrier.wait()
        asked = time.perf_counter()
        with pool.lease() as conn:
            waits.append((asked, time.perf_counter()))
            conn.cursor().execute("query")

    began = time.perf_counter()
    run_threads(request for _ in range(REQUESTS))
    return min(asked for asked, _ in waits) if waits else began, waits


def sustained(pool: Peer, seconds: float) -> tuple[float, Waits]:
    """Have everybody make one request after the other."""
    barrier = threading.Barrier(REQUESTS)
    waits: list[Waits] = [[] for _ in range(REQUESTS)]

    def requests(mine: Waits) -> None:
        barrier.wait()
        until = time.perf_counter() + seconds
        while (asked := time.perf_counter()) < until:
            with pool.lease() as conn:
                mine.append((asked, time.perf_counter()))
                conn.cursor().execute("query")

    began = time.perf_counter()
    run_threads(partial(requests, mine) for mine in waits)
    return began, [wait for mine in waits for wait in mine]


def overtaken(waits: Waits) -> int:
    """Return how many requests were served after one that had come later.

    Of two threads that ask, or are served, within the same instant, the scheduler chooses which runs first,
    and not the pool: half a query is the least that counts.
    """
    slack = BURST / 2
    return sum(
        any(later > asked + slack and earlier < got - slack for later, earlier in waits)
        for asked, got in waits
    )


def growth(driver: Ledger, began: float, ended: float) -> list[tuple[float, int]]:
    """Return when, in ms from the beginning, the number of open connections became what."""
    size, steps = 0, []
    for instant, change in driver.ledger:
        size += change
        if instant >= began:
            steps.append((round((instant - began) * 1e3, 1), size))
        else:
            steps[:] = [(0.0, size)]
    return [*steps, (round((ended - began) * 1e3, 1), size)]


def tables(cases: list[Case], title: str = TITLE, who: str = "threads") -> list[Table]:
    found = []
    if case := find(cases, kind="burst"):
        rows = [
            [
                name,
                f"{min(series(case, name, 'served')):.0f}",
                spread(series(case, name, "makespan_ms"), thousands),
                f"{max(series(case, name, 'overtaken')):.0f}",
                spread(series(case, name, "dials"), thousands),
                f"{max(series(case, name, 'size_after')):.0f}",
            ]
            for name in names(case)
        ]
        head = [
            "",
            "served of 50, fewest",
            "all done after, ms",
            "requests overtaken, most",
            "connects begun",
            "connections 1 s later, most",
        ]
        found.append(Table(title, head, rows))
    if case := find(cases, kind="sustained"):
        rows = []
        for name in names(case):
            enough = [r[name]["enough_after_ms"] for r in case["rounds"] if name in r]
            reached = [ms for ms in enough if ms is not None]
            rows.append(
                [
                    name,
                    f"{middle(case, name, 'size_at_most'):.0f}",
                    thousands(median(reached)) if reached else "never",
                    spread(series(case, name, "per_second"), thousands),
                    spread(series(case, name, "longest_wait_ms"), thousands),
                ]
            )
        seconds = case["case"]["after"]
        head = [
            "",
            f"connections within {seconds:g} s",
            f"{ENOUGH} connections after, ms",
            "queries per second",
            "longest wait, ms",
        ]
        found.append(Table(f"{title.partition(':')[0]}, sustained: 50 {who}, queries of 20 ms", head, rows))
    return found


def demands(cases: list[Case], name: str = "spike", ours: str = OURS) -> list[Demand]:
    found = []
    if case := find(cases, kind="burst"):
        served, left, late = (series(case, ours, key) for key in ("served", "size_after", "overtaken"))
        found += [
            Demand(f"{name}: requests served", min(served, default=None), REQUESTS, at_most=False),
            Demand(f"{name}: requests overtaken", median(late) if late else None, 0, at_most=True),
            Demand(
                f"{name}: connections 1 s later", max(left, default=None), IDLE + MAX_CONNECTING, at_most=True
            ),
        ]
    if case := find(cases, kind="sustained"):
        sizes = series(case, ours, "size_at_most")
        found.append(
            Demand(f"{name}, sustained load: connections", min(sizes, default=None), ENOUGH, at_most=False)
        )
    return found
