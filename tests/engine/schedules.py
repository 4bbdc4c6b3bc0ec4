"""Random schedules for the simulator: clients, a server with a bad day, an operator.

`python -m engine.schedules SEED` (with tests/ on the path) replays one schedule by its seed.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from connpool.engine.core import Entry
from connpool.engine.flows import Step
from connpool.errors import PoolError
from connpool.testing import (
    Cancelled,
    FakeConnection,
    FakeError,
    FakeOperationalError,
    FakeServer,
    Simulation,
    Task,
)

TIMEOUTS = (0, 0.005, 0.05, 0.5, 2.0, None)
PATIENCE = 60.0  # seconds after which whoever is not done hangs
AFTERMATH = 2.0  # seconds that are watched when all is done: as long as the longest lifetime


class Schedule:
    """One schedule: everything in it follows from the seed."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = Random(f"schedule {seed}")
        self.server = FakeServer(
            latency={
                Step.CONNECT: draw.choice((0.0, 0.02, 0.3)),
                Step.PING: draw.choice((0.0, 0.005)),
                Step.ROLLBACK: draw.choice((0.0, 0.005)),
                Step.COMMIT: draw.choice((0.0, 0.005)),
                Step.CLOSE: draw.choice((0.0, 0.01, 0.5)),
            }
        )
        options: dict[str, Any] = {
            "max_size": draw.randint(1, 4),
            "max_connecting": draw.randint(1, 2),
            "max_waiting": draw.choice((None, 1000, 4)),
            "connect_timeout": draw.choice((None, 10.0, 0.2)),
            "max_lifetime": draw.choice((None, 2.0, 0.1)),
            "idle_timeout": draw.choice((None, 1.0, 0.05)),
            "probe_after": draw.choice((None, 0, 0.02)),
            "ping_after": draw.choice((None, 0.05)),
            "max_uses": draw.choice((None, 1, 3)),
            "on_connect": draw.choice((None, None, lambda conn: conn.execute("set"))),
        }
        options["min_idle"] = draw.choice((0, 0, draw.randint(0, options["max_size"])))
        self.simulation = Simulation(seed, self.server, helpers=draw.choice((1.0, 1.0, 0.7)), **options)
        self.cancels = draw.choice((0.0, 0.1, 0.4))
        self.bound = options["max_size"]
        self.counts: Counter[str] = Counter()
        self.clients = 0  # that are not done
        self.troubles = 0  # that are not over

    def run(self) -> Counter[str]:
        """Let clients, server and operator loose; then bring peace, and see that nothing is left over."""
        draw, simulation = self.draw, self.simulation
        for _ in range(draw.randint(1, 8)):
            self.clients += 1
            simulation.at(draw.random(), lambda: self.client(draw.randint(1, 6)))
        for _ in range(draw.choice((0, 0, 1, 3))):
            self.bad_hour(draw.random() * 2)
        for _ in range(draw.choice((0, 0, 1, 2))):
            self.trouble(draw.random() * 2, self.operate)
        self.until(lambda: not self.clients and not self.troubles)
        assert not self.clients, f"{self.clients} clients hang"
        self.aftermath()
        self.close()
        return self.counts

    # -- time ------------------------------------------------------------------------------------------

    def until(self, done: Callable[[], bool]) -> None:
        """Let things happen until all is done; an upkeep that has nothing to do goes on for ever."""
        at, seconds = self.simulation.now, 0.0
        while not done() and seconds < PATIENCE:
            at = max(at, self.simulation.now) + 0.1  # the clock may have jumped
            seconds += 0.1
            self.simulation.run(at)

    def aftermath(self) -> None:
        """Let happen what has been set going."""
        self.simulation.run(self.simulation.now + AFTERMATH)
        self.until(lambda: not self.simulation.tasks)

    def trouble(self, at: float, event: Callable[[], object]) -> None:
        """Plan something that the schedule does not end before."""
        self.troubles += 1

        def happen() -> None:
            self.troubles -= 1
            event()

        self.simulation.at(at, happen)

    # -- clients ---------------------------------------------------------------------------------------

    def client(self, rounds: int) -> None:
        """Acquire, use, release, several times."""
        if not rounds:
            self.clients -= 1
            return
        timeout = self.draw.choice(TIMEOUTS)
        began = self.simulation.now

        def served(task: Task[Entry[FakeConnection]]) -> None:
            pause = self.draw.random() * 0.02
            if task.result is not None:
                self.counts["served"] += 1
                entry, task.result = task.result, None
                self.use(entry, rounds)
                return
            self.counts[type(task.error).__name__] += 1
            assert isinstance(task.error, PoolError | Cancelled), repr(task.error)
            if timeout is not None and not self.jumped:
                late = self.simulation.now - began - timeout
                assert late < 1.0 or self.slow, f"an acquire ended {late:.3f} s after its deadline"
            self.simulation.at(self.simulation.now + pause, lambda: self.client(rounds - 1))

        task = self.simulation.acquire(timeout)
        task.callbacks.append(served)
        self.perhaps_cancel(task)

    jumped = False

    @property
    def slow(self) -> bool:
        """Whether somebody may have to dial by himself: then a dial's length adds to the wait."""
        return self.simulation._helpers < 1.0

    def use(self, entry: Entry[FakeConnection], rounds: int) -> None:
        """Do with a connection what borrowers do, and give it back."""
        draw, simulation = self.draw, self.simulation
        error: BaseException | None = None
        assert entry.conn.in_transaction is False, "a transaction of somebody else"
        deed = draw.randrange(10)
        try:
            if deed == 0:
                entry.conn.kill()
            if deed < 5:
                entry.conn.execute("write")
            if deed == 5:
                entry.conn.execute("fail")
        except (FakeError, FakeOperationalError) as exc:
            # Without its traceback, whose frames would own the entry if it is lost later.
            error = exc.with_traceback(None) if draw.random() < 0.8 else None
            self.counts["statement failed"] += 1
        if deed == 9:
            entry.conn.close()

        def back() -> None:
            nonlocal entry
            if draw.random() < 0.03:
                self.lose(entry)
            else:
                self.perhaps_cancel(simulation.release(entry, error))
            del entry
            self.client(rounds - 1)

        simulation.at(simulation.now + draw.random() * 0.05, back)

    def lose(self, entry: Entry[FakeConnection]) -> None:
        """Drop an entry, as an exception at the wrong bytecode does; parked threads look each 0.25 s."""
        self.counts["lost"] += 1
        self.simulation.lent.remove(entry)
        simulation = self.simulation
        simulation.at(
            simulation.now + 0.25, lambda: simulation.spawn(simulation.flows.upkeep(), "look") and None
        )

    def perhaps_cancel(self, task: Task[Any]) -> None:
        """Throw into a task somewhere on its way."""
        while self.draw.random() < self.cancels:
            self.simulation.at(self.simulation.now + self.draw.random() * 0.05, task.cancel)

    # -- server and operator -----------------------------------------------------------------------------

    def bad_hour(self, at: float) -> None:
        """Plan an outage, a mass kill, a refusal, or a suspended machine."""
        simulation, server = self.simulation, self.server
        kind = self.draw.randrange(4)
        if kind == 0:
            self.trouble(at, server.down)
            self.trouble(at + self.draw.random() * 3, server.up)
        elif kind == 1:
            self.trouble(at, server.kill_sessions)
        elif kind == 2:
            self.trouble(at, lambda: server.down(FakeOperationalError("password authentication failed")))
            self.trouble(at + self.draw.random(), server.up)
        else:
            self.jumped = True
            self.trouble(at, lambda: simulation.jump(self.draw.choice((1.0, 20.0))))

    def operate(self) -> None:
        """Evict, resize, or wait for the pool to be ready."""
        simulation, flows = self.simulation, self.simulation.flows
        kind = self.draw.randrange(3)
        if kind == 0:
            simulation.spawn(flows.evict(), "evict")
        elif kind == 1:
            self.bound = self.draw.randint(1, 4)
            simulation.spawn(flows.resize(self.bound, self.draw.randint(0, self.bound)), "resize")
        else:
            simulation.spawn(flows.ready(simulation.now + 1.0), "ready")

    def close(self) -> None:
        """Prove that every place is usable, then close the pool and see that nothing is left."""
        simulation, core = self.simulation, self.simulation.core
        core.resize(core.max_size, 0)
        self.server.up()
        self.use_every_place()
        self.aftermath()
        assert not simulation.lent
        simulation.check_at_rest()
        simulation.spawn(simulation.flows.close(simulation.now + 5.0), "close")
        self.aftermath()
        simulation.check_at_rest()
        assert not core.slots
        assert not self.server.sessions, "a session survived the pool"

    def use_every_place(self) -> None:
        """Acquire as many connections as there may be, and release them.

        A method of its own: a name that lives on would own what is lost later.
        """
        simulation = self.simulation
        tasks = [simulation.acquire(30.0) for _ in range(simulation.core.max_size)]
        self.until(lambda: all(task.done for task in tasks))
        assert all(task.result for task in tasks), f"a place was lost: {[task.error for task in tasks]}"
        for task in tasks:
            entry, task.result = task.result, None
            assert entry is not None
            simulation.release(entry)


def run(seed: int) -> Counter[str]:
    """Run one schedule; an error names its seed."""
    schedule = Schedule(seed)
    try:
        counts = schedule.run()
    except BaseException as exc:
        steps = schedule.simulation.steps
        exc.add_note(f"schedule {seed}, after {steps} steps; replay: python -m engine.schedules {seed}")
        raise
    counts["steps"] = schedule.simulation.steps
    return counts


@dataclass
class Report:
    """What became of many schedules."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)  # tracebacks, by seed


def run_many(seeds: Sequence[int]) -> Report:
    """Run many schedules, in a process of their own perhaps: what comes back can be pickled."""
    report = Report()
    for seed in seeds:
        try:
            report.counts += run(seed)
        except Exception as exc:
            report.failures[seed] = "".join(traceback.format_exception(exc))
    return report


if __name__ == "__main__":
    for seed in sys.argv[1:]:
        print(seed, dict(run(int(seed))))
