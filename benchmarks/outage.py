"""A server is killed, or stopped, under fifty threads and started again: what callers notice of it.

Every pool looks at a connection before it lends it: connpool by itself, the others because they are told to,
as their documentation says.  A borrow may take 2 s where the pool has such a limit.  After each, also after
one that failed, a thread pauses for 5 ms.

`conduct` runs where the servers are, and takes them away; `measure` runs in the contender's process.  Both
read the same clock: the monotonic one is the machine's.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from .drivers import RealDriver
from .figures import Case, Demand, Plan, Table, names, series, spread, thousands
from .peers import OURS, Peer

WITH_FLOOR = False
THREADS, SIZE = 50, 10
TIMEOUT = 2.0  # seconds for a borrow
LATE = 0.25  # seconds that it may take beyond that, under this load
RECOVERS_WITHIN = 1000.0  # ms from the moment at which the server accepts connections
PAUSE = 0.005
STATEMENTS = {"PostgreSQL": "select pg_sleep(0.005)", "MariaDB": "select sleep(0.005)"}
SETTLE, WARM = 1.0, 2.0  # seconds of load before the server goes away; in the latter the rate is taken
STAY, PATIENCE = 5.0, 40.0  # seconds of load after it is back: at least, and until a contender has recovered
ENOUGH, WINDOW = 0.9, 0.5  # recovered: so much of the rate before, for so many seconds
GRACE = 10.0  # seconds for callers to come back after the load has ended

CONFIGURATIONS = {
    OURS: "ConnectionPool(connect, max_size=10), connection(timeout=2)",
    "psycopg_pool": "ConnectionPool(dsn, min_size=10, max_size=10, timeout=2,"
    " check=ConnectionPool.check_connection)",
    "SQLAlchemy": "create_engine(url, pool_size=10, max_overflow=0, pool_timeout=2, pool_pre_ping=True)",
    "DBUtils": 'PooledDB(connect, maxconnections=10, blocking=True, ping=1); with psycopg ping="select 1"',
}


def plans(*, quick: bool) -> list[Plan]:
    rounds = 1 if quick else 3
    everybody = tuple(CONFIGURATIONS)
    without_psycopg = tuple(name for name in everybody if name != "psycopg_pool")

    def plan(server: Any, how: str, away: float, only: tuple[str, ...]) -> Plan:
        return Plan({"server": server, "how": how, "away": away}, rounds, server, only=only)

    return [
        plan("PostgreSQL", "killed", 1.0, everybody),
        plan("PostgreSQL", "stopped", 1.0, everybody),
        plan("PostgreSQL", "killed", 6.0, everybody),
        plan("MariaDB", "killed", 1.0, without_psycopg),
    ]


# -- where the servers are


def conduct(
    ask: Callable[[dict[str, Any]], dict[str, Any]], running: Any, *, server: str, how: str, away: float
) -> dict[str, Any]:
    """Have a contender's process load the server, take that away and bring it back, and ask what happened."""

    def tell(step: str, **instants: float) -> dict[str, Any]:
        answer = ask({"server": server, "step": step, **instants})
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    try:
        tell("begin")
        measured = tell("end", **outage(running, how, away))
        time.sleep(0.3)  # for the server to notice who has left
        measured["sessions"] = len(running.census(user=running.user))
        return measured
    except RuntimeError as exc:
        return {"error": str(exc)}
    finally:
        ask({"server": server, "step": "close"})


def outage(server: Any, how: str, away: float) -> dict[str, float]:
    """Take a server away; return when that began, when it was gone, and when it accepted callers again."""
    left = time.monotonic()
    if how == "killed":
        server.kill()
    else:
        server.stop()
    gone = time.monotonic()
    time.sleep(away)
    with ThreadPoolExecutor(1) as starter:
        started = starter.submit(server.start)
        back = accepts(RealDriver(server.url).connect)
        started.result()
    return {"left": left, "gone": gone, "back": back}


def accepts(connect: Callable[[], Any], limit: float = 30.0) -> float:
    """Return when a plain connection was accepted, tried over and over."""
    until = time.monotonic() + limit
    while True:
        try:
            connect().close()
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.005)
        else:
            return time.monotonic()


# -- in the contender's process


class Dialer:
    """Connects, and keeps the time and the outcome of each attempt."""

    def __init__(self, dsn: str) -> None:
        self.driver = RealDriver(dsn)
        self.attempts: list[tuple[float, bool]] = []

    def __call__(self) -> Any:
        return self.count(self.driver.connect)

    def count(self, connect: Callable[[], Any]) -> Any:
        began, opened = time.monotonic(), False
        try:
            conn = connect()
            opened = True
            return conn
        finally:
            self.attempts.append((began, opened))


@dataclass(frozen=True)
class Subject:
    """One pool, as the load and the figures need it."""

    lease: Callable[[], AbstractContextManager[Any]]
    size: Callable[[], int]
    close: Callable[[], object]

    def execute(self, conn: Any, statement: str) -> None:
        with conn.cursor() as cursor:
            cursor.execute(statement)
            cursor.fetchall()


class EngineSubject(Subject):
    def execute(self, conn: Any, statement: str) -> None:
        conn.exec_driver_sql(statement).all()


def ours(dialer: Dialer, server: str) -> Subject:  # noqa: ARG001 -- all are called alike
    import connpool

    pool = connpool.ConnectionPool(dialer, max_size=SIZE)
    return Subject(lambda: pool.connection(timeout=TIMEOUT), lambda: pool.stats().size, pool.close)


def psycopg_pool(dialer: Dialer, server: str) -> Subject:  # noqa: ARG001 -- all are called alike
    import psycopg
    import psycopg_pool

    class Connection(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            return dialer.count(lambda: psycopg.Connection.connect(*args, **kwargs))

    pool = psycopg_pool.ConnectionPool(
        dialer.driver.dsn,
        connection_class=Connection,
        min_size=SIZE,
        max_size=SIZE,
        timeout=TIMEOUT,
        check=psycopg_pool.ConnectionPool.check_connection,
        open=True,
    )
    pool.wait()
    return Subject(pool.connection, lambda: pool.get_stats()["pool_size"], pool.close)


def sqlalchemy(dialer: Dialer, server: str) -> Subject:
    from sqlalchemy import QueuePool, create_engine

    engine = create_engine(
        {"PostgreSQL": "postgresql+psycopg://", "MariaDB": "mysql+pymysql://"}[server],
        creator=dialer,
        pool_size=SIZE,
        max_overflow=0,
        pool_timeout=TIMEOUT,
        pool_pre_ping=True,
    )
    pool = engine.pool
    assert isinstance(pool, QueuePool), "the default, which counts"
    return EngineSubject(engine.connect, lambda: pool.checkedin() + pool.checkedout(), engine.dispose)


def dbutils(dialer: Dialer, server: str) -> Subject:
    from dbutils.pooled_db import PooledDB  # type: ignore[import-untyped] # has no types

    # psycopg's connections have no ping().
    ping = {"PostgreSQL": "select 1", "MariaDB": 1}[server]
    pool = PooledDB(Connector(dialer), maxconnections=SIZE, blocking=True, ping=ping)
    return Subject(pool.connection, lambda: len(pool._idle_cache) + pool._connections, pool.close)


class Connector:
    """A function that connects, with what DBUtils wants to know of the driver."""

    threadsafety = 1

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    def __call__(self) -> Any:
        return self._dialer()


SUBJECTS: dict[str, Callable[[Dialer, str], Subject]] = {
    OURS: ours,
    "psycopg_pool": psycopg_pool,
    "SQLAlchemy": sqlalchemy,
    "DBUtils": dbutils,
}


class Borrow(NamedTuple):
    asked: float
    got: float  # or when it was told that it gets nothing
    ended: float
    error: str | None


class Load:
    """Threads that borrow, execute a statement and give back, over and over."""

    def __init__(self, subject: Subject, dialer: Dialer, statement: str) -> None:
        self.borrows: list[Borrow] = []
        self.subject = subject
        self.dialer = dialer
        self._statement = statement
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            asked, got, error = time.monotonic(), None, None
            try:
                with self.subject.lease() as conn:
                    got = time.monotonic()
                    self.subject.execute(conn, self._statement)
            except Exception as exc:
                error = type(exc).__name__
            ended = time.monotonic()
            self.borrows.append(Borrow(asked, ended if got is None else got, ended, error))
            time.sleep(PAUSE)

    def stop(self) -> int:
        """End the load; return how many callers do not come back."""
        self._stop.set()
        until = time.monotonic() + GRACE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)


_loads: list[Load] = []  # the one that is under way between two steps


def measure(peer: type[Peer], dsn: str, server: str, step: str, **instants: float) -> dict[str, Any]:
    """Begin the load; end it when the contender has recovered, and say how it fared; or close the pool."""
    if step == "begin":
        dialer = Dialer(dsn)
        load = Load(SUBJECTS[peer.name](dialer, server), dialer, STATEMENTS[server])
        _loads.append(load)
        time.sleep(SETTLE + WARM)
        if failed := {borrow.error for borrow in load.borrows if borrow.error}:
            raise RuntimeError(f"failed before anything happened to the server: {', '.join(failed)}")
        return {}
    if step == "end":
        [load] = _loads
        return finish(load, **instants)
    while _loads:
        load = _loads.pop()
        load.stop()
        load.subject.close()
    return {}


def finish(load: Load, left: float, gone: float, back: float) -> dict[str, Any]:
    while (now := time.monotonic()) < back + PATIENCE:
        if now > back + STAY and recovered(load.borrows, left, back) is not None:
            break
        time.sleep(0.5)
    hanging = load.stop()
    dials = load.dialer.attempts.copy()
    return {
        **digest(load.borrows, left, gone, back),
        "hanging": hanging,
        "dials": sum(began > left for began, _ in dials),
        "opened": sum(opened for began, opened in dials if began > left),
        "size": load.subject.size(),
        "outage_ms": round((back - left) * 1e3),
    }


def digest(borrows: list[Borrow], left: float, gone: float, back: float) -> dict[str, Any]:
    """Return what the callers noticed of a server that left and was back."""
    later = [borrow for borrow in borrows if borrow.ended > left]
    served = [borrow.ended for borrow in later if not borrow.error and borrow.ended > gone]
    failed = [borrow for borrow in later if borrow.error]
    full = recovered(borrows, left, back)
    return {
        "per_second": round(rate(borrows, left), 1),
        # The moment at which the server accepts is known to a few ms: a contender may have been quicker.
        "first_ms": round(max(0.0, min(served) - back) * 1e3, 1) if served else None,
        "recovered_ms": None if full is None else round(full * 1e3, 1),
        "failed_meanwhile": sum(borrow.ended <= back for borrow in failed),
        "failed_after": sum(borrow.ended > back for borrow in failed),
        "failed_anew": sum(borrow.asked > back for borrow in failed),
        "errors": dict(Counter(borrow.error for borrow in failed).most_common()),
        "longest_acquire": round(max(borrow.got - borrow.asked for borrow in later), 3),
    }


def rate(borrows: list[Borrow], left: float) -> float:
    """Return how many were served per second before the server went away."""
    return sum(left - WARM < borrow.ended <= left and not borrow.error for borrow in borrows) / WARM


def recovered(borrows: list[Borrow], left: float, back: float) -> float | None:
    """Return how long after its return about as many were served as before; None: they never were."""
    served = sorted(borrow.ended for borrow in borrows.copy() if not borrow.error)
    wanted = ENOUGH * rate(borrows, left) * WINDOW
    for number in range(bisect_left(served, back), len(served)):
        begin = served[number]
        if bisect_left(served, begin + WINDOW) - number >= wanted:
            return begin - back
    return None


# -- the report


def tables(cases: list[Case]) -> list[Table]:
    head = [
        "",
        "served again after, ms",
        f"at {ENOUGH:.0%} of the rate after, ms",
        "failed meanwhile",
        "failed later (asked later), most",
        "longest acquire, s",
        "connects (failed)",
        "sessions, counted",
    ]
    return [
        Table(
            "outage: {server} {how}, and started {away:g} s later".format(**case["case"]),
            head,
            [row(case, name) for name in names(case)],
        )
        for case in cases
    ]


def row(case: Case, name: str) -> list[str]:
    def values(key: str) -> list[float]:
        return series(case, name, key)

    failed = [n - opened for n, opened in zip(values("dials"), values("opened"), strict=True)]
    ends = sorted(
        {f"{n:.0f}, {size:.0f}" for n, size in zip(values("sessions"), values("size"), strict=True)}
    )
    return [
        name,
        known(case, name, "first_ms"),
        known(case, name, "recovered_ms"),
        spread(values("failed_meanwhile"), thousands),
        f"{max(values('failed_after')):,.0f} ({max(values('failed_anew')):,.0f})",
        f"{max(values('longest_acquire')):.2f}",
        f"{median(values('dials')):,.0f} ({median(failed):,.0f})",
        "; ".join(ends),
    ]


def known(case: Case, name: str, key: str) -> str:
    """Show a figure that a round may lack, because the contender did not get so far."""
    measured = [round_[name][key] for round_ in case["rounds"] if key in round_.get(name, {})]
    found = [value for value in measured if value is not None]
    if len(found) == len(measured):
        return spread(found, thousands)
    return f"not within {PATIENCE:g} s in {len(measured) - len(found)} of {len(measured)} rounds"


def demands(cases: list[Case]) -> list[Demand]:
    def ours(key: str) -> list[float]:
        return [float(round_[OURS][key]) for round_ in rounds if round_[OURS][key] is not None]

    rounds = [round_ for case in cases for round_ in case["rounds"] if "first_ms" in round_.get(OURS, {})]
    strays = [abs(a - b) for a, b in zip(ours("sessions"), ours("size"), strict=True)]
    first = ours("first_ms") if len(ours("first_ms")) == len(rounds) else [float("inf")]
    return [
        Demand(
            "outage: ms until the first is served", max(first, default=None), RECOVERS_WITHIN, at_most=True
        ),
        Demand(
            "outage: failed although asked after it", max(ours("failed_anew"), default=None), 0, at_most=True
        ),
        Demand(
            "outage: longest acquire, of a limit of 2 s",
            max(ours("longest_acquire"), default=None),
            TIMEOUT + LATE,
            at_most=True,
            unit=" s",
        ),
        Demand("outage: connections opened after it", max(ours("opened"), default=None), SIZE, at_most=True),
        Demand("outage: sessions that the pool does not count", max(strays, default=None), 0, at_most=True),
    ]
