"""One thread, nobody else: `with pool.connection(): pass`, over and over.

In short turns with the floor, in the same process, so that a noisy moment meets both.
"""

import threading
import time
from collections.abc import Callable
from functools import cache
from itertools import repeat
from statistics import median
from sys import _getframe
from typing import Any

from .drivers import RealDriver
from .figures import Case, Demand, Plan, Table, find, names, ratio, series, spread, times
from .peers import FLOOR, OURS, Floor, Peer, fill

TITLE = "cycle: one thread, empty block, {driver}"
WITH_FLOOR = True
SIZE = 4
TURN = 0.001  # seconds: short, so that another process seldom cuts into one; the median forgets the few
LEAD = 50  # cycles before each turn: the floor's have just been in the processor's caches


def plans(*, quick: bool) -> list[Plan]:
    turns, rounds = (100, 3) if quick else (400, 7)
    return [
        Plan({"driver": "psycopg", "turns": turns}, rounds),
        Plan(
            {"driver": "PyMySQL", "turns": turns}, rounds, server="MariaDB", only=(OURS, "SQLAlchemy", FLOOR)
        ),
    ]


def measure(peer: type[Peer], dsn: str, driver: str, turns: int) -> dict[str, Any]:  # noqa: ARG001 -- a label
    real = RealDriver(dsn)
    pool, floor = peer(real, SIZE), Floor(real, SIZE)
    try:
        fill(pool, SIZE)
        spin(pool, 2000)
        spin(floor, 2000)
        cycles, floor_cycles = int(TURN / spin(pool, 2000)), int(TURN / spin(floor, 2000))
        mine, least = [], []
        for _ in range(turns):
            least.append(spin(floor, floor_cycles))
            mine.append(spin(pool, cycles))
        return {
            "ns": round(median(mine) * 1e9, 1),
            "floor_ns": round(median(least) * 1e9, 1),
            "to_floor": round(median(m / f for m, f in zip(mine, least, strict=True)), 4),
            "site_ns": round(site() * 1e9, 1),
        }
    finally:
        pool.close()
        floor.close()


class _Slot:
    __slots__ = ("code", "lasti", "owner")


def _note(slot: Any) -> None:
    """What the warm path does to know its borrower."""
    frame = _getframe(1)
    slot.code = frame.f_code
    slot.lasti = frame.f_lasti
    slot.owner = threading.get_ident()
    slot.owner = None


def _nothing(slot: Any) -> None:
    pass


def site(cycles: int = 20_000) -> float:
    """Return the seconds that it takes to note a borrower: his code, his instruction, his thread."""
    slot, took = _Slot(), {}
    for function in (_nothing, _note):
        rounds = []
        for _ in range(15):
            began = time.perf_counter()
            for _ in repeat(None, cycles):
                function(slot)
            rounds.append((time.perf_counter() - began) / cycles)
        took[function] = median(rounds)
    return took[_note] - took[_nothing]


LOOP = """
def loop(pool, cycles):
    for _ in repeat(None, cycles):
        with pool.{method}():
            pass
"""


@cache
def loop(peer: type[Peer]) -> Callable[[Any, int], None]:
    """Return the loop as a user of this pool would write it.

    A method called through its object is what the interpreter specialises; the same method taken out first
    is not.  Each contender has code of its own, because what was specialised for one slows down another.
    """
    names: dict[str, Any] = {"repeat": repeat}
    exec(LOOP.format(method=peer.method), names)
    made: Callable[[Any, int], None] = names["loop"]
    return made


def spin(peer: Peer, cycles: int) -> float:
    """Return the seconds of one cycle."""
    run, pool = loop(type(peer)), peer.pool
    run(pool, LEAD)
    began = time.perf_counter()
    run(pool, cycles)
    return (time.perf_counter() - began) / cycles


def tables(cases: list[Case], title: str = TITLE, ours: str = OURS) -> list[Table]:
    return [
        Table(
            title.format(**case["case"]),
            ["", "µs per cycle, median (min to max)", "times connpool's", "times the floor"],
            [
                [
                    name,
                    spread(series(case, name, "ns"), lambda ns: f"{ns / 1000:.2f}"),
                    times(ratio(case, name, ours, "ns")),
                    spread(series(case, name, "to_floor"), lambda x: f"{x:.2f}"),
                ]
                for name in names(case)
            ],
        )
        for case in cases
    ]


def demands(cases: list[Case]) -> list[Demand]:
    kept = []
    for driver, limits in (
        ("psycopg", {"psycopg_pool": 0.25, "SQLAlchemy": 0.25, "DBUtils": 0.5}),
        ("PyMySQL", {"SQLAlchemy": 0.25}),
    ):
        case = find(cases, driver=driver)
        if case is None:
            continue
        kept += [
            Demand(
                f"time of a cycle with {driver}, of {name}'s",
                ratio(case, OURS, name, "ns"),
                limit,
                at_most=True,
            )
            for name, limit in limits.items()
        ]
        noted = series(case, OURS, "site_ns") if driver == "psycopg" else []
        if noted:
            kept.append(Demand("noting the borrower, µs", median(noted) / 1000, 0.2, at_most=True))
        to_floor = series(case, OURS, "to_floor")
        kept.append(
            Demand(
                f"time of a cycle with {driver}, times the floor",
                median(to_floor) if to_floor else None,
                3.0,
                at_most=True,
            )
        )
    return kept
