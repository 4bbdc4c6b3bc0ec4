"""One thread waits in the queue; another releases the only connection and asks for it again at once.

Is the one who waited overtaken?  An *attempt* is one such release and acquire while the waiter is queued.
A pool that hands over serves the waiter at the first attempt; the waiter then queues anew, until all
attempts are used up.
"""

import threading
from typing import Any

from .drivers import RealDriver
from .figures import Case, Demand, Plan, Table, names, series
from .handoff import until_parked
from .peers import OURS, Peer

TITLE = "fairness: one waiter against release(); acquire()"
WITH_FLOOR = False


def plans(*, quick: bool) -> list[Plan]:
    return [Plan({"attempts": 100 if quick else 2000}, rounds=1 if quick else 3)]


def measure(peer: type[Peer], dsn: str, attempts: int) -> dict[str, Any]:
    pool = peer(RealDriver(dsn), 1)
    begin, done = threading.Semaphore(0), threading.Semaphore(0)
    served = over = False

    def wait() -> None:
        nonlocal served
        while True:
            begin.acquire()
            if over:
                return
            conn = pool.acquire()
            served = True
            pool.release(conn)
            done.release()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    left, overtaken = attempts, 0
    try:
        conn = pool.acquire()
        while left:
            served = False
            begin.release()
            until_parked(pool)
            while left and not served:
                left -= 1
                pool.release(conn)
                conn = pool.acquire()
                overtaken += not served
            pool.release(conn)
            done.acquire()
            conn = pool.acquire()
        pool.release(conn)
        over = True
        begin.release()
        waiter.join()
    finally:
        pool.close()
    return {"overtaken": overtaken, "attempts": attempts}


def tables(cases: list[Case]) -> list[Table]:
    case = cases[0]
    head = ["", f"times overtaken, of {case['case']['attempts']}, each round"]
    rows = [[name, ", ".join(f"{n:.0f}" for n in series(case, name, "overtaken"))] for name in names(case)]
    return [Table(TITLE, head, rows)]


def demands(cases: list[Case]) -> list[Demand]:
    times = series(cases[0], OURS, "overtaken")
    return [
        Demand("one waiter against a loop: times overtaken", max(times) if times else None, 0, at_most=True)
    ]
