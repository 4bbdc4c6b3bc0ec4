"""Outages that last a day, on the virtual clock: how callers fare, and how soon all is well again.

`python -m engine.outages SEED` (with tests/ on the path) replays one outage by its seed.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from connpool.adapter import Credentials
from connpool.engine import upkeep
from connpool.engine.operations import Call, Step
from connpool.engine.records import Entry
from connpool.errors import PoolError, PoolTimeout, PoolUnavailable
from connpool.testing import FakeConnection, FakeError, FakeOperationalError, FakeServer, Simulation, Task

DAY = 86_400.0
DIAL = 0.02  # seconds that a dial takes
BACK = 0.1  # seconds after which a client that was refused comes again
EPSILON = 0.001

KINDS = ("refused", "hanging", "full", "password", "standby")


class Bounded(Simulation):
    """A simulation in which dials and pings end within their limits, as with an adapter that connects."""

    busiest = 0  # dials at the same time

    def seconds(self, call: Call) -> float:
        seconds = super().seconds(call)
        if call.step in (Step.CONNECT, Step.PING, Step.WRITABLE):
            limit = call.args[0] if call.step is Step.CONNECT else call.args[-1]
            self.busiest = max(self.busiest, len(self.core.opening))
            if isinstance(limit, float) and seconds > limit:
                call.fn = self.come_too_late
                return limit
        return seconds

    def come_too_late(self, *args: object) -> None:
        for arg in args:
            if isinstance(arg, FakeConnection):
                arg.busy = True
        raise FakeOperationalError("no answer in time")


class Outage:
    """One outage: everything in it follows from the seed."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = Random(f"outage {seed}")
        self.kind = draw.choice(KINDS)
        self.server = FakeServer(latency={Step.CONNECT: DIAL, Step.PING: 0.001}, password="old")
        self.connect_timeout = draw.choice((1.0, 5.0))
        self.options: dict[str, Any] = {
            "max_size": draw.randint(1, 5),
            "max_connecting": draw.randint(1, 3),
            # With it the pool dials all day, every five seconds: seldom, because that takes its time.
            "min_idle": int(draw.random() < 0.01),
            "connect_timeout": self.connect_timeout,
            "max_lifetime": draw.choice((None, 1800.0)),
            "idle_timeout": draw.choice((None, 600.0)),
            "keepalive": draw.choice((None, 60.0)),
            "require": "read-write" if self.kind == "standby" else None,
            "credentials": self.credentials,
        }
        self.simulation = Bounded(seed, self.server, jitter=False, **self.options)
        self.counts: Counter[str] = Counter()
        self.refusing = False  # the password has changed, and the provider does not know
        self.first: float | None = None  # when somebody was served again

    def credentials(self) -> Credentials:
        assert self.server.password is not None
        secret = "outdated" if self.refusing else self.server.password
        return Credentials({"password": secret}, expires_in=3600.0)

    def run(self) -> Counter[str]:
        simulation, draw = self.simulation, self.draw
        lent = self.lend_all()
        began = simulation.now + 1.0
        for entry in lent:  # some come back before it, some find out
            simulation.at(began - 1.0 + 2.0 * draw.random(), lambda entry=entry: self.give(entry))  # type: ignore[misc]
        del lent, entry
        ends = began + DAY
        simulation.at(began, self.begin)
        for _ in range(10):
            self.visit(began + draw.random() * 60.0)
            self.visit(began + draw.random() * DAY)
        self.come(ends - draw.random() * 10.0)
        late = ends + draw.random() * 20.0
        self.come(late)
        simulation.at(ends, self.end)
        simulation.run(ends + self.slack() + EPSILON)
        assert self.first is not None, f"nobody was served within {self.slack():.2f} s after {self.kind}"
        simulation.run(late + 60.0)
        assert self.counts["came back"] == 2, "somebody waits for ever"
        self.counts["milliseconds"] += int(1000 * (self.first - ends))
        self.counts["dials"] += simulation.core.totals.dials
        self.check()
        return self.counts

    def slack(self) -> float:
        """Return the seconds after the outage within which somebody who waits is served."""
        hanging = self.connect_timeout if self.kind == "hanging" else DIAL  # the dial that is under way
        return hanging + upkeep.PAUSE_CAP + BACK + DIAL + 0.01

    # -- the server ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Kill all sessions, and open none any more."""
        server = self.server
        assert isinstance(server.latency, dict)
        server.kill_sessions()
        if self.kind == "refused":
            server.down()
        elif self.kind == "hanging":
            server.latency[Step.CONNECT] = 1e9
        elif self.kind == "full":
            server.max_sessions = 0
        elif self.kind == "standby":
            server.writable = False
        else:
            self.refusing = True

    def end(self) -> None:
        server = self.server
        assert isinstance(server.latency, dict)
        server.password = "new"
        server.up()
        server.max_sessions = None
        server.writable = True
        server.latency[Step.CONNECT] = DIAL
        self.refusing = False

    # -- clients ---------------------------------------------------------------------------------------

    def lend_all(self) -> list[Entry[FakeConnection]]:
        """Lend as many connections as there may be."""
        simulation = self.simulation
        tasks = [simulation.acquire(30.0) for _ in range(simulation.core.max_size)]
        simulation.run(simulation.now + 5.0)
        assert all(task.result is not None for task in tasks), [task.error for task in tasks]
        entries = [task.result for task in tasks if task.result is not None]
        for task in tasks:
            task.result = None
        return entries

    def give(self, entry: Entry[FakeConnection]) -> None:
        """Give back a connection whose borrower has written, or found that it is gone."""
        error: FakeError | None = None
        try:
            entry.conn.execute("write")
        except FakeError as exc:
            entry.conn.busy = True  # a driver shows it
            error = exc.with_traceback(None)
        self.simulation.release(entry, error)

    def visit(self, at: float) -> None:
        """Plan somebody who comes during the outage, and has a deadline."""
        timeout = self.draw.choice((0, 0.5, 3.0))

        def come() -> None:
            task = self.simulation.acquire(timeout)
            task.callbacks.append(lambda task: self.visited(task, at + timeout))

        self.simulation.at(at, come)

    def visited(self, task: Task[Entry[FakeConnection]], deadline: float) -> None:
        assert self.simulation.now <= deadline + EPSILON, "a visitor was kept beyond his deadline"
        if task.result is not None:
            self.counts["visitors served"] += 1  # by a session that had been killed, or not yet
            entry, task.result = task.result, None
            self.give(entry)
            return
        assert isinstance(task.error, PoolUnavailable | PoolTimeout), repr(task.error)
        self.counts[f"visitors {type(task.error).__name__}"] += 1

    def come(self, at: float) -> None:
        """Plan somebody who comes and stays until he is served."""

        def served(task: Task[Entry[FakeConnection]]) -> None:
            now = self.simulation.now
            if task.result is None:
                assert isinstance(task.error, PoolError), repr(task.error)
                self.counts["sent away"] += 1
                self.come(now + BACK)
                return
            assert task.result.conn.alive, "a dead connection was lent after the outage"
            if self.first is None:
                self.first = now
            entry, task.result = task.result, None
            self.counts["came back"] += 1
            self.give(entry)

        def ask() -> None:
            self.simulation.acquire(None).callbacks.append(served)

        self.simulation.at(at, ask)

    # -- what must be true afterwards --------------------------------------------------------------------

    def check(self) -> None:
        """See that all is as it was before."""
        simulation, core = self.simulation, self.simulation.core
        assert (core.failures, core.abandoned, core.last_error) == (0, 0, None)
        assert simulation.busiest <= core.options.max_connecting, "a storm"
        waiting = 10 * 3.0 + 10 * 3.0 + 16.0 + 40.0  # seconds during which somebody waits, at most
        patience = DAY / (upkeep.IDLE_PAUSE_CAP / 2) if core.min_idle else 0.0
        most = 100 + waiting / (upkeep.PAUSE_CAP / 2) + patience
        assert core.totals.dials <= most, f"{core.totals.dials} dials in a day"
        entries = self.lend_all()
        for entry in entries:
            simulation.release(entry)
        del entries, entry
        simulation.run(simulation.now + 1.0)
        if not core.min_idle:  # else an upkeep may be under way
            simulation.check_at_rest()


def run(seed: int) -> Counter[str]:
    """Run one outage; an error names its seed."""
    outage = Outage(seed)
    try:
        counts = outage.run()
    except BaseException as exc:
        exc.add_note(f"outage {seed}: {outage.kind}, {outage.options}")
        exc.add_note(f"replay: python -m engine.outages {seed}")
        raise
    counts[f"outages: {outage.kind}"] += 1
    return counts


@dataclass
class Report:
    """What became of many outages."""

    counts: Counter[str] = field(default_factory=Counter)
    longest: dict[str, int] = field(default_factory=dict)  # milliseconds until somebody was served, by kind
    failures: dict[int, str] = field(default_factory=dict)  # tracebacks, by seed

    def add(self, counts: Counter[str]) -> None:
        """Add what became of one outage."""
        self.counts += counts
        (kind,) = [kind for kind in KINDS if counts[f"outages: {kind}"]]
        self.longest[kind] = max(self.longest.get(kind, 0), counts["milliseconds"])


def run_many(seeds: Sequence[int]) -> Report:
    """Run many outages, in a process of their own perhaps: what comes back can be pickled."""
    report = Report()
    for seed in seeds:
        try:
            counts = run(seed)
        except Exception as exc:
            report.failures[seed] = "".join(traceback.format_exception(exc))
        else:
            report.add(counts)
    return report


if __name__ == "__main__":
    for seed in sys.argv[1:]:
        print(seed, dict(run(int(seed))))
