"""A connection goes from one thread to another that waits for it: from `release` to the waiter running.

The releaser then sleeps, so that nobody but the waiter wants to run.
"""

import threading
import time
from typing import Any

from .drivers import RealDriver
from .figures import Case, Demand, Plan, Table, names, percentile, ratio, series, spread, times
from .peers import OURS, Peer

TITLE = "handoff: from release to the waiter running"
WITH_FLOOR = True
SETTLE = 0.0002  # seconds from "it is in the queue" to "it is asleep"
UNSEEN = 0.001  # the same, where the queue cannot be seen


def plans(*, quick: bool) -> list[Plan]:
    return [Plan({"handoffs": 100 if quick else 500}, rounds=2 if quick else 5)]


def measure(peer: type[Peer], dsn: str, handoffs: int) -> dict[str, Any]:
    pool = peer(RealDriver(dsn), 1)
    latencies: list[float] = []
    begin, done = threading.Semaphore(0), threading.Semaphore(0)
    released_at = 0.0

    def wait() -> None:
        for _ in range(handoffs + WARM_UP):
            begin.acquire()
            conn = pool.acquire()
            latencies.append(time.perf_counter() - released_at)
            pool.release(conn)
            done.release()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    try:
        for _ in range(handoffs + WARM_UP):
            conn = pool.acquire()
            begin.release()
            until_parked(pool)
            released_at = time.perf_counter()
            pool.release(conn)
            done.acquire()
    finally:
        pool.close()
    waiter.join()
    measured = [latency * 1e6 for latency in latencies[WARM_UP:]]
    return {"us": round(percentile(measured, 50), 2), "p99_us": round(percentile(measured, 99), 2)}


WARM_UP = 20


def until_parked(pool: Peer) -> None:
    """Return when somebody sleeps in the pool's queue."""
    if pool.waiting() is None:
        time.sleep(UNSEEN)
        return
    while not pool.waiting():
        time.sleep(SETTLE)
    time.sleep(SETTLE)


def tables(cases: list[Case], title: str = TITLE, ours: str = OURS) -> list[Table]:
    return [_table(case, title.format(**case["case"]), ours) for case in cases]


def _table(case: Case, title: str, ours: str) -> Table:
    rows = [
        [
            name,
            spread(series(case, name, "us"), lambda us: f"{us:.0f}"),
            spread(series(case, name, "p99_us"), lambda us: f"{us:.0f}"),
            times(ratio(case, name, ours, "us")),
        ]
        for name in names(case)
    ]
    return Table(title, ["", "median, µs (min to max)", "p99, µs (min to max)", "times connpool's"], rows)


def demands(cases: list[Case]) -> list[Demand]:  # noqa: ARG001 -- shown, not promised
    return []
