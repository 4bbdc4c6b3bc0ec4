"""What a full reset costs its callers, a millisecond away from the server: deferred, awaited, and not at all.

Three pools of one connection each take turns: the same borrow with one query, and a pause after it in which
the answer to a deferred reset has time to arrive; or none.
"""

import time
from contextlib import ExitStack
from statistics import median
from typing import Any

from .drivers import RealDriver
from .figures import Case, Demand, Plan, Table, find, series, spread
from .peers import OURS, Peer

TITLE = "resets: {driver}, {pause_ms:g} ms between two borrows"
WITH_FLOOR = False
EACH_WAY = 0.001
POLICIES = ("none", "deferred", "awaited")


def plans(*, quick: bool) -> list[Plan]:
    turns, rounds = (20, 2) if quick else (100, 5)
    return [
        Plan(
            {"driver": driver, "pause_ms": pause_ms, "turns": turns},
            rounds,
            server=server,
            delay=EACH_WAY,
            only=(OURS,),
        )
        for driver, server in (("psycopg", "PostgreSQL"), ("PyMySQL", "MariaDB"))
        for pause_ms in (5.0, 0.0)
    ]


def measure(peer: type[Peer], dsn: str, driver: str, pause_ms: float, turns: int) -> dict[str, Any]:  # noqa: ARG001
    """Return milliseconds that the median borrow took its caller."""
    import connpool

    ours: Any = connpool  # the type checker may see another package of that name
    real = RealDriver(dsn)

    def connect() -> Any:
        conn = real.connect()
        if driver == "psycopg":
            conn.autocommit = True
        else:
            conn.autocommit(True)
        return conn

    options: dict[str, dict[str, Any]] = {
        "none": {"reset": "rollback"},
        "deferred": {"reset": "full"},
        "awaited": {"reset": "full", "on_connect": nothing},  # which has to run after it
    }
    taken: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    with ExitStack() as stack:
        pools = {
            policy: stack.enter_context(ours.ConnectionPool(connect, max_size=1, **options[policy]))
            for policy in POLICIES
        }
        for turn in range(turns + 1):
            for policy, pool in pools.items():
                for _ in range(3):
                    time.sleep(pause_ms / 1000)
                    began = time.perf_counter()
                    with pool.connection() as conn, conn.cursor() as cursor:
                        cursor.execute("select 1")
                        cursor.fetchone()
                    if turn:
                        taken[policy].append(time.perf_counter() - began)
    return {policy: round(median(values) * 1000, 4) for policy, values in taken.items()}


def nothing(conn: Any) -> None:
    """Do nothing, but after each reset."""
    del conn


def tables(cases: list[Case]) -> list[Table]:
    return [
        Table(
            TITLE.format(**case["case"]),
            ["reset", "ms per borrow, median (min to max)", "times that without"],
            [
                [
                    policy,
                    spread(series(case, OURS, policy), lambda ms: f"{ms:.2f}"),
                    spread(_to_none(case, policy), lambda x: f"{x:.2f}"),
                ]
                for policy in POLICIES
            ],
        )
        for case in cases
    ]


def _to_none(case: Case, policy: str) -> list[float]:
    pairs = zip(series(case, OURS, policy), series(case, OURS, "none"), strict=True)
    return [value / none for value, none in pairs]


def demands(cases: list[Case]) -> list[Demand]:
    kept = []
    for driver in ("psycopg", "PyMySQL"):
        case = find(cases, driver=driver, pause_ms=5.0)
        ratios = _to_none(case, "deferred") if case else []
        kept.append(
            Demand(
                f"a borrow with a deferred reset, {driver}, 5 ms after the last, times one without",
                median(ratios) if ratios else None,
                1.15,
                at_most=True,
            )
        )
    return kept
