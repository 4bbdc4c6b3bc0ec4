"""What ``connpool size`` works out and shows; the formulas stand in `connpool.sizing`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .. import sizing

N = TypeVar("N", int, float)


class Incomplete(Exception):
    """There is not enough to calculate with; the message names what is missing."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """The command's options; ``None`` was not given."""

    size: int | None
    concurrency: float | None
    operations: float | None
    rate: float | None
    held: float | None
    safety: float
    threads: int | None
    per_thread: int | None
    instances: int
    processes: int
    dedicated: int
    max_connections: int | None
    reserve: float
    cores: int | None
    spindles: int
    pgbouncer: bool
    pairs: int
    bouncers: int


@dataclass(frozen=True, slots=True)
class Sum:
    """One line of the result."""

    name: str
    formula: str
    result: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came out."""

    max_size: int
    fits: bool | None
    """Whether the server has room for it all; ``None``: it was not asked."""
    conclusion: str
    sums: list[Sum]


def calculate(q: Question) -> Answer:
    """Work it all out.

    Raises:
        Incomplete: An option is missing.
        ValueError: An option has a value that makes no sense.
    """
    sums = [*_demands(q)]
    sizes = [s for s in sums if s.name != "in_use"]
    if not sizes or all(s.name == "deadlock_floor" for s in sizes):
        raise Incomplete("give --concurrency and --operations, or --rate and --held, or --size")
    largest = max(sizes, key=lambda s: s.result)
    max_size = int(largest.result)
    total = sizing.in_all(max_size, instances=q.instances, processes=q.processes, dedicated=q.dedicated)
    each = f"({max_size} + {q.dedicated})" if q.dedicated else f"{max_size}"
    sums.append(Sum("max_size", f"the largest of these: {largest.name}", max_size))
    sums.append(Sum("in_all", f"{q.instances} instances x {q.processes} processes x {each}", total))
    if q.cores is not None:
        result = sizing.server_orientation(q.cores, q.spindles)
        sums.append(Sum("server_orientation", f"{q.cores} cores x 2 + {q.spindles} spindles", result))
    if q.max_connections is None:
        if q.pgbouncer:
            raise Incomplete("--pgbouncer divides the server's connections: give --max-connections")
        conclusion = f"max_size={max_size}; whether the server has room, --max-connections will tell."
        return Answer(max_size=max_size, fits=None, conclusion=conclusion, sums=sums)
    room = sizing.budget(q.max_connections, q.reserve)
    sums.append(Sum("budget", f"{q.max_connections} less a reserve of {q.reserve:.0%}", room))
    if q.pgbouncer:
        sizes_there = sizing.for_pgbouncer(total, room, pairs=q.pairs, bouncers=q.bouncers)
        sums += [
            Sum(name, "pgbouncer.ini", value)  # by their names there
            for name, value in asdict(sizes_there).items()
        ]
    fits = q.pgbouncer or total <= room
    return Answer(max_size=max_size, fits=fits, conclusion=_conclusion(q, max_size, total, room), sums=sums)


def _demands(q: Question) -> Iterator[Sum]:
    """Yield what asks for a size, one by one."""
    if q.size is not None:
        yield Sum("size", "as given", sizing.in_all(q.size))
    if requests := _both("--concurrency", q.concurrency, "--operations", q.operations):
        concurrency, operations = requests
        formula = f"{concurrency:g} requests x {operations:g} operations x {q.safety:g}"
        yield Sum("for_requests", formula, sizing.for_requests(concurrency, operations, q.safety))
    if acquires := _both("--rate", q.rate, "--held", q.held):
        rate, held = acquires
        busy = sizing.in_use(rate, held)
        yield Sum("in_use", f"{rate:g}/s x {held:g} s, on average (Little's law)", round(busy, 3))
        yield Sum("for_rate", f"{busy:g} x {q.safety:g}", sizing.for_rate(rate, held, q.safety))
    if nested := _both("--threads", q.threads, "--per-thread", q.per_thread):
        threads, per_thread = nested
        formula = f"{threads} threads x ({per_thread} connections - 1) + 1"
        yield Sum("deadlock_floor", formula, sizing.deadlock_floor(threads, per_thread))


def _both(first: str, one: N | None, second: str, other: N | None) -> tuple[N, N] | None:
    """Return the values of two options that are nothing without each other; ``None``: neither was given."""
    if one is not None and other is not None:
        return one, other
    if one is None and other is None:
        return None
    given, missing = (first, second) if other is None else (second, first)
    raise Incomplete(f"{given} needs {missing}")


def _conclusion(q: Question, max_size: int, total: int, room: int) -> str:
    if q.pgbouncer:
        return f"max_size={max_size}: {total} clients of PgBouncer share {room} connections of the server."
    if total <= room:
        return f"max_size={max_size} fits: {total} of {room} connections."
    most = room // (q.instances * q.processes) - q.dedicated
    instead = f"at most max_size={most} in each process" if most > 0 else "not even one in each process"
    return (
        f"max_size={max_size} does not fit: {total} of {room} connections; {instead}."
        " Fewer processes, or a pooler in front of the server (--pgbouncer)."
    )


def show(answer: Answer, *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        print(json.dumps(asdict(answer), indent=2))
        return
    table = Table(box=SIMPLE_HEAD, header_style="")
    table.add_column("")
    table.add_column("from", overflow="fold")
    table.add_column("result", justify="right")
    for each in answer.sums:
        table.add_row(each.name, each.formula, f"{each.result:g}")
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(answer.conclusion)
