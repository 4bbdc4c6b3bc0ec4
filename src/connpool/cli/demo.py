"""The demonstration: what happens in which order, what is counted, and whether the promise held.

The promise is: an acquire never fails, whatever becomes of the server's sessions; the statements that
are lost are those that were running on them, one on each at most; and no thread is served noticeably
more often than another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic as clock
from typing import Any, Generic, TypeVar

from .. import ConnectionPool, PoolStats, Reason
from .databases import Database
from .view import Blow, Outcome, Plan, Sample, Side, View
from .workload import Failure, Figures, Load

C = TypeVar("C")

TICK = 0.25
"""Seconds between two looks: four a second read calmly."""

FAIR = 1.5
"""How many times as often as the least served thread the most served one may get a connection."""
SLACK = 2
"""Requests by which two threads may differ anyhow; it matters in the first second only."""

__all__ = ("Plan", "run")


def run(plan: Plan, database: Database[C], view: View) -> bool:
    """Show what the pool does; return whether the promise held."""
    logging.getLogger("connpool").addHandler(logging.NullHandler())  # the view shows what the log would tell
    with view:
        view.begin(plan, database.title, kills_sessions=database.kills_sessions)
        pooled = _Pooled(plan, database)
        side = pooled.run(view)
        single = _single(plan, database, view)
    outcome = Outcome(
        plan=plan,
        title=database.title,
        blow=pooled.blow(),
        pooled=side,
        single=single,
        committed=side.figures.done,
        rows=pooled.rows,
        broken=pooled.broken(side),
    )
    view.end(outcome)
    return not outcome.broken


# -- the pool ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Strike:
    """The blow, as it was dealt.  Instants are of the clock."""

    began: float
    ended: float
    killed: frozenset[int]


class _Pooled(Generic[C]):
    """All threads on one pool, which is struck half-way."""

    def __init__(self, plan: Plan, database: Database[C]) -> None:
        self._plan = plan
        self._database = database
        self._opened: list[float] = []
        self._strike: _Strike | None = None
        self._pool = ConnectionPool(
            database.adapter(),
            max_size=plan.size,
            on_connect=lambda _: self._opened.append(clock()),
            name="demo",
        )
        self._load = Load(plan.threads, self._pool.connection, database.request, database.session)
        self._hanging = 0
        self.rows: int | None = None

    def run(self, view: View) -> Side:
        """Put the pool under load, and strike half-way."""
        load = self._load
        try:
            side = _under_load(
                "one pool for all",
                load,
                self._plan.seconds,
                self._database,
                view,
                opened=lambda: self._pool.stats().opened,
                stats=self._pool.stats,
                blow=self.blow,
                half_way=self._deal_blow,
            )
        finally:
            # After Ctrl-C the threads are still at it: closing the pool sends the queue away at once.
            load.stopped.set()
            self._pool.close()
            load.stop()
        self._hanging = sum(client.is_alive() for client in load.clients)
        self.rows = self._database.rows()
        return side

    def _deal_blow(self) -> None:
        began = clock()
        killed = self._database.strike(self._pool)
        self._strike = _Strike(began, clock(), killed)

    def blow(self) -> Blow | None:
        """Return what is known so far of the blow and its consequences."""
        strike = self._strike
        if strike is None:
            return None
        victims = self._victims(strike)
        replaced = sorted(at - strike.began for at in self._opened if at > strike.began)
        return Blow(
            kills_sessions=self._database.kills_sessions,
            at=strike.began - self._load.began_at,
            killed=len(strike.killed),
            in_flight=sum(failure.acquired_at <= strike.ended for failure in victims),
            late=sum(failure.acquired_at > strike.ended for failure in victims),
            found=self._pool.stats().discards[Reason.DEAD],
            refusals=sum(len(client.refusals) for client in self._load.clients),
            new=len(replaced),
            first_after=replaced[0] if replaced else None,
            last_after=replaced[-1] if replaced else None,
        )

    def _victims(self, strike: _Strike) -> list[Failure]:
        return [failure for failure in self._failures() if failure.session in strike.killed]

    def _failures(self) -> list[Failure]:
        return [failure for client in self._load.clients for failure in client.failures]

    def broken(self, side: Side) -> list[str]:
        """Return what did not hold, a clause for each."""
        found: list[str] = []
        strike, blow = self._strike, self.blow()
        refusals = [text for client in self._load.clients for text in client.refusals]
        if refusals:
            found.append(f"{_count(len(refusals), 'acquire')} failed, the first with {refusals[0]}")
        victims = self._victims(strike) if strike else []
        others = [failure for failure in self._failures() if failure not in victims]
        if others:
            what = "on a session that nobody had touched"
            found.append(
                f"{_count(len(others), 'statement')} failed {what}, the first with {others[0].error}"
            )
        if strike and len(victims) > len({failure.session for failure in victims}):
            found.append(f"{len(victims)} statements failed on {len(strike.killed)} killed sessions")
        if blow is None or (self._database.kills_sessions and not blow.killed):
            found.append("there was no session to kill")
        elif not blow.new:
            found.append("no connection was opened afterwards")
        if self.rows is not None and not 0 <= self.rows - side.figures.done <= len(victims):
            found.append(
                f"{side.figures.done:,} requests were committed, but the table has {self.rows:,} rows"
            )
        if side.most > side.least * FAIR + SLACK:
            found.append(f"one thread was served {side.least} times, another {side.most} times")
        if self._hanging:
            found.append(f"{_count(self._hanging, 'thread')} never came back")
        return found


# -- a connection per request ------------------------------------------------------------------------


def _single(plan: Plan, database: Database[Any], view: View) -> Side:
    """Let the same threads do the same with a connection of their own for each request."""
    load = Load(plan.threads, database.connect, database.request, database.session)
    try:
        return _under_load(
            "a connection per request",
            load,
            plan.seconds / 2,
            database,
            view,
            opened=lambda: sum(len(client.waits) for client in load.clients),
        )
    finally:
        load.stop()


# -- both --------------------------------------------------------------------------------------------


def _under_load(
    title: str,
    load: Load[Any],
    seconds: float,
    database: Database[Any],
    view: View,
    *,
    opened: Callable[[], int],
    stats: Callable[[], PoolStats] | None = None,
    blow: Callable[[], Blow | None] = lambda: None,
    half_way: Callable[[], None] | None = None,
) -> Side:
    """Run *load* for some seconds and show it.

    Rate and shares are those of the time under load; the rest is counted until the last thread is done.
    """
    peak: int | None = None

    def look() -> Figures:
        nonlocal peak
        total, recent = load.look()
        sessions = database.sessions()
        if sessions is not None:
            peak = max(sessions, peak or 0)
        least, most = load.shares()
        view.show(
            Sample(
                title=title,
                seconds=seconds,
                total=total,
                recent=recent,
                least=least,
                most=most,
                sessions=sessions,
                stats=stats() if stats else None,
                blow=blow(),
            )
        )
        return total

    load.start()
    turn = 0
    total = look()
    while (left := load.began_at + seconds - clock()) > 0:
        turn += 1
        next_at = load.began_at + turn * TICK
        if half_way and clock() - load.began_at >= seconds / 2:
            half_way()
            half_way = None
        load.stopped.wait(max(0.0, min(next_at - clock(), left)))
        total = look()
    least, most = load.shares()
    load.stop()
    final, _ = load.look()
    return Side(
        title=title,
        figures=final,
        rate=total.rate,
        least=least,
        most=most,
        opened=opened(),
        peak=peak,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
