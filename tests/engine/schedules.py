"""Random schedules for the simulator: clients, a server with a bad day, an operator, hooks and policies.

`python -m engine.schedules SEED` (with tests/ on the path) replays one schedule by its seed.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any, TypeVar

from connpool.adapter import Credentials
from connpool.engine.operations import Call, Flow, Step
from connpool.engine.records import Entry
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

R = TypeVar("R")

BOUNDED = (Step.PING, Step.WRITABLE, Step.ROLLBACK, Step.RESTORE, Step.SEND_RESET, Step.READ_RESET)
"""Steps that the adapter ends in time: their limit is their last argument."""
CUT = (Step.COMMIT, Step.ON_CONNECT, Step.ON_ACQUIRE, Step.ON_RELEASE, Step.RESET)
"""Steps that nobody can end in time, but by cutting their connection."""


class HookError(FakeError):
    """What a hook raises."""


class LookupFailed(FakeError):
    """What a credentials provider raises."""


class Strict(Simulation):
    """A simulation in which steps keep their limits, and nothing fails unnoticed."""

    fault = ""  # what must never happen, and has
    cut = 0  # hooks that took too long
    undecided = 0  # COMMITs that did

    def __init__(self, seed: int, server: FakeServer, **options: Any) -> None:
        super().__init__(seed, server, **options)
        adapter: Any = self.flows.adapter
        self._restore = adapter.restore
        adapter.restore = self.restore

    def spawn(self, flow: Flow[R], name: str) -> Task[R]:
        task = super().spawn(flow, name)
        task.callbacks.append(self.inspect)
        return task

    def inspect(self, task: Task[Any]) -> None:
        """See that a task failed as tasks may."""
        error = task.error
        assert not self.fault, self.fault
        if error is not None:
            assert isinstance(error, PoolError | FakeError | Cancelled), f"{task.name} failed: {error!r}"
            self.cut += "its connection was cut" in str(error)
            self.undecided += "no answer to COMMIT" in str(error)

    def seconds(self, call: Call) -> float:
        seconds, step = super().seconds(call), call.step
        if step in BOUNDED:
            limit = call.args[-1]
            if isinstance(limit, float) and seconds > limit:
                call.fn = self.come_too_late
                return limit
        elif self.core.limited and step in CUT:
            # It waits for the server, and so no longer than its connection lives.
            for slot, until in self.core.limited.items():
                if slot.conn is call.args[-1]:
                    return min(seconds, max(0.0, until - self.now) + 0.001)
        return seconds

    def come_too_late(self, conn: FakeConnection, *args: object) -> None:
        conn.busy = True
        raise FakeOperationalError("no answer in time")

    def restore(self, conn: FakeConnection, baseline: object, limit: float | None) -> None:
        """Restore, and note what no error tells: a driver would have committed."""
        if conn.in_transaction:
            self.fault = "settings were restored in an open transaction"
        self._restore(conn, baseline, limit)


class Customs:
    """Hooks and a reset policy, and what they promise to whoever is lent a connection."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = Random(f"customs {seed}")
        self.counts: Counter[str] = Counter()
        self.faults = 0.0  # the probability that a hook raises
        self.mode = "default"
        self.session: dict[str, str] = {}  # beside the tenant
        self.promised: dict[int, str] = {}  # tenants, by the number of the connection
        self.options: dict[str, Any] = {}
        if draw.random() < 0.6:
            return
        self.faults = draw.choice((0.0, 0.0, 0.1))
        self.options = {
            "reset": draw.choice(
                (
                    "rollback",
                    "none",
                    "full",
                    "full",
                    self.clear_tenant,
                    [self.clear_tenant, "unlock"],
                    ["unlock", self.clear_tenant],
                )
            ),
            "reset_timeout": draw.choice((5.0, None, 0.05)),
            "on_connect": draw.choice((None, None, self.open_transaction, self.set_role)),
            "on_acquire": draw.choice((None, self.set_tenant)),
            "on_release": draw.choice((None, None, self.upset)),
            "on_close": draw.choice((None, self.say_goodbye)),
        }
        if self.options["on_connect"] == self.set_role:
            self.mode, self.session = "autocommit", {"role": "app"}

    @property
    def clears_session(self) -> bool:
        policy = self.options.get("reset")
        return policy == "full" or isinstance(policy, list)

    @property
    def clears_tenant(self) -> bool:
        return self.clears_session or self.options.get("reset") == self.clear_tenant

    # -- hooks -----------------------------------------------------------------------------------------

    def perhaps_raise(self) -> None:
        if self.faults and self.draw.random() < self.faults:
            self.counts["hook failed"] += 1
            raise HookError("as hooks do")

    def open_transaction(self, conn: FakeConnection) -> None:
        self.perhaps_raise()
        conn.execute("set")

    def set_role(self, conn: FakeConnection) -> None:
        self.perhaps_raise()
        conn.execute("set role app")
        conn.mode = "autocommit"

    def set_tenant(self, conn: FakeConnection) -> None:
        self.perhaps_raise()
        tenant = self.promised[conn.number] = str(self.draw.random())
        conn.execute(f"set tenant {tenant}")

    def clear_tenant(self, conn: FakeConnection) -> None:
        self.perhaps_raise()
        conn.execute("set tenant nobody")

    def upset(self, conn: FakeConnection) -> None:
        """Leave behind what the policy has to put right."""
        self.perhaps_raise()
        conn.mode = "upset"
        if self.clears_session:
            conn.execute("set role upset")

    def say_goodbye(self, conn: FakeConnection) -> None:
        self.perhaps_raise()

    # -- borrowers -------------------------------------------------------------------------------------

    def alter(self, conn: FakeConnection) -> None:
        """Change settings, as borrowers do, and do not put them back."""
        deed = self.draw.randrange(10)
        if deed < 3:
            conn.mode = "mine"
        if 1 < deed < 5:
            conn.execute("set tenant mine")
        if deed == 5:
            conn.execute("set role mine")

    def check(self, conn: FakeConnection) -> None:
        """See that a connection that is lent is as it was promised."""
        assert conn.mode == self.mode, f"the settings of somebody else: {conn.mode}"
        session = conn.session.copy()
        tenant = session.pop("tenant", "nobody")
        if self.options.get("on_acquire") is not None:
            assert tenant == self.promised.pop(conn.number, "not told"), "on_acquire was not run"
        elif self.clears_tenant:
            assert tenant == "nobody", "the tenant of somebody else"
        if self.clears_session:
            assert session == self.session, f"the session of somebody else: {session}"


class Weather:
    """What servers and operators do beside dying: passwords change, primaries are demoted, networks hang."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = Random(f"weather {seed}")
        self.server: FakeServer
        self.fair = draw.random() < 0.5
        self.old: list[str] = []  # passwords that a provider may still hand out, once
        self.sealed = 0.05  # the probability that a provider raises
        self.options: dict[str, Any] = {}
        self.password: str | None = None
        self.idle_limit: float | None = None
        if self.fair:
            return
        self.idle_limit = draw.choice((None, None, 0.02, 0.5))
        self.options = {
            "keepalive": draw.choice((None, None, 0.02, 0.3)),
            "require": draw.choice((None, None, "read-write")),
            "commit_timeout": draw.choice((None, 1.0, 0.004)),
        }
        if draw.random() < 0.4:
            self.password = "first"
            self.options["credentials"] = self.credentials

    def credentials(self) -> object:
        """Give what the server asks for, or what it asked for until a moment ago."""
        if self.draw.random() < self.sealed:
            raise LookupFailed("the vault is sealed")
        found = {"password": self.old.pop() if self.old else self.server.password}
        return Credentials(found, expires_in=1.0) if self.draw.random() < 0.2 else found

    def rotate(self) -> None:
        """Change the password; the provider is late with it, once."""
        if self.server.password is not None:
            self.old = [self.server.password]
            self.server.password = str(self.draw.random())

    def demote(self) -> None:
        self.server.writable = False

    def promote(self) -> None:
        self.server.writable = True

    def swallow(self) -> None:
        """Lose the packets of those who only ask."""
        assert isinstance(self.server.latency, dict)
        self.server.latency.update({Step.PING: 3.0, Step.WRITABLE: 3.0})

    def pass_on(self) -> None:
        """Lose no packets any more."""
        assert isinstance(self.server.latency, dict)
        self.server.latency.update({Step.PING: 0.0, Step.WRITABLE: 0.0})

    def clear(self) -> None:
        """End all this."""
        self.sealed = 0.0
        self.promote()
        self.pass_on()


class Schedule:
    """One schedule: everything in it follows from the seed."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = Random(f"schedule {seed}")
        customs = self.customs = Customs(seed)
        weather = self.weather = Weather(seed)
        self.server = weather.server = FakeServer(
            password=weather.password,
            idle_limit=weather.idle_limit,
            latency={
                Step.CONNECT: draw.choice((0.0, 0.02, 0.3)),
                Step.PING: draw.choice((0.0, 0.005)),
                Step.ROLLBACK: draw.choice((0.0, 0.005)),
                Step.COMMIT: draw.choice((0.0, 0.005)),
                Step.CLOSE: draw.choice((0.0, 0.01, 0.5)),
                Step.READ_RESET: customs.draw.choice((0.0, 0.005)),
                Step.RESTORE: customs.draw.choice((0.0, 0.005)),
                Step.RESET: customs.draw.choice((0.0, 0.02)),
                Step.ON_ACQUIRE: customs.draw.choice((0.0, 0.005, 0.1)),
                Step.ON_RELEASE: customs.draw.choice((0.0, 0.02)),
                Step.ON_CLOSE: customs.draw.choice((0.0, 0.0, 2.0)),
            },
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
            "on_connect": draw.choice((None, None, customs.open_transaction)),
            **customs.options,
            **weather.options,
        }
        options["min_idle"] = draw.choice((0, 0, draw.randint(0, options["max_size"])))
        self.simulation = Strict(seed, self.server, helpers=draw.choice((1.0, 1.0, 0.7)), **options)
        self.warm = customs.draw.random() < 0.5  # else a build without a GIL, where all goes by the flows
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
        for _ in range(0 if self.weather.fair else self.weather.draw.choice((0, 1, 1, 2))):
            self.storm(self.weather.draw.random() * 2)
        self.until(lambda: not self.clients and not self.troubles)
        assert not self.clients, f"{self.clients} clients hang"
        self.aftermath()
        self.close()
        totals = self.simulation.core.totals
        discards = {f"discarded: {reason}": count for reason, count in totals.discards.items()}
        self.counts.update(self.customs.counts)
        self.counts.update(discards, rollbacks=totals.rollbacks, resets=totals.resets)
        self.counts.update(cut=self.simulation.cut, reported=len(self.simulation.reports))
        self.counts.update(undecided=self.simulation.undecided, told=len(self.simulation.told))
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
        shut = self.resumed if self.simulation.core.suspended else None
        if self.warm and (entry := self.take()) is not None:
            self.counts["warm"] += 1
            self.use(entry, rounds)
            return

        def served(task: Task[Entry[FakeConnection]]) -> None:
            pause = self.draw.random() * 0.02
            if task.result is not None:
                self.counts["served"] += 1
                assert shut != self.resumed, "a suspended pool lent a connection"
                entry, task.result = task.result, None
                self.use(entry, rounds)
                return
            self.counts[type(task.error).__name__] += 1
            if self.customs.options.get("on_acquire") is None:
                assert not isinstance(task.error, FakeError), repr(task.error)
            if timeout is not None and not self.jumped:
                late = self.simulation.now - began - timeout
                assert late < 1.0 or self.slow, f"an acquire ended {late:.3f} s after its deadline"
            self.simulation.at(self.simulation.now + pause, lambda: self.client(rounds - 1))

        task = self.simulation.acquire(timeout)
        task.callbacks.append(served)
        self.perhaps_cancel(task)

    def take(self) -> Entry[FakeConnection] | None:
        """Take what is at hand, as the warm path does."""
        simulation, core = self.simulation, self.simulation.core
        if core.waiters or not core.idle:
            return None
        entry = core.idle[-1]
        if not simulation.now < entry.check_at or entry.doomed:
            return None
        core.idle.pop()
        assert entry not in simulation.lent, "an entry has two owners"
        entry.lent_at = simulation.now
        simulation.lent.add(entry)
        return entry

    def give(self, entry: Entry[FakeConnection]) -> bool:
        """Give back what is clean, as the warm path does; tell whether it was."""
        simulation, core = self.simulation, self.simulation.core
        check_at = simulation.now + simulation.flows.look_after if simulation.flows.warm else inf
        if entry.verdict(entry.conn, entry.baseline) or check_at >= entry.warm_until:
            return False
        simulation.lent.remove(entry)
        entry.idle_since, entry.check_at = simulation.now, check_at
        entry.holds.append(simulation.now - entry.lent_at)
        if len(entry.holds) >= entry.batch:
            core.fold(entry)
        core.idle.append(entry)
        if (core.waiters or entry.doomed) and core.rematch(entry):
            simulation.spawn(simulation.flows.follow_up(), "follow-up")
        return True

    jumped = False
    resumed = 0

    @property
    def slow(self) -> bool:
        """Whether somebody may have to dial by himself: then a dial's length adds to the wait."""
        return self.simulation._helpers < 1.0

    def use(self, entry: Entry[FakeConnection], rounds: int) -> None:
        """Do with a connection what borrowers do, and give it back."""
        draw, simulation = self.draw, self.simulation
        error: BaseException | None = None
        self.customs.check(entry.conn)
        deed = draw.randrange(10)
        try:
            self.customs.alter(entry.conn)
            if deed == 0:
                entry.conn.kill()
            if deed < 5:
                if not self.server.writable:
                    raise FakeError("cannot execute INSERT in a read-only transaction")
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
            assert deed == 9 or not entry.conn.closed, "a connection was closed while it was lent"
            if draw.random() < 0.03:
                self.lose(entry)
            elif error is not None or not (self.warm and self.give(entry)):
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

    def storm(self, at: float) -> None:
        """Plan what a server does beside dying, or what an operator does about it."""
        simulation, weather, flows = self.simulation, self.weather, self.simulation.flows
        until = at + weather.draw.random() * 2
        kind = weather.draw.randrange(5)
        if kind == 0:
            self.trouble(at, weather.rotate)
            self.trouble(until, lambda: simulation.spawn(flows.evict(), "evict"))
        elif kind == 1:
            self.trouble(at, weather.demote)
            self.trouble(until, weather.promote)
        elif kind == 2:
            self.trouble(at, weather.swallow)
            self.trouble(until, weather.pass_on)
        elif kind == 3:
            self.trouble(at, self.suspend)
            self.trouble(until, lambda: simulation.spawn(self.resume(), "resume"))
        else:
            self.trouble(at, lambda: simulation.spawn(flows.evict(until - at), "evict slowly"))

    def suspend(self) -> None:
        self.counts["suspended"] += 1
        self.simulation.core.suspend()

    def resume(self) -> Flow[None]:
        self.resumed += 1
        yield from self.simulation.flows.resume()

    def operate(self) -> None:
        """Evict, resize, or wait for the pool to be ready."""
        simulation, flows = self.simulation, self.simulation.flows
        kind = self.draw.randrange(3)
        if kind == 0:
            simulation.spawn(flows.evict(), "evict")
        elif kind == 1:
            self.bound = self.draw.randint(1, 4)
            task = simulation.spawn(flows.resize(self.bound, self.draw.randint(0, self.bound)), "resize")
            task.callbacks.append(self.resized)
        else:
            simulation.spawn(flows.ready(simulation.now + 1.0), "ready")

    def resized(self, task: Task[None]) -> None:
        core = self.simulation.core
        assert len(core.idle) <= core.max_size, "a surplus of idle connections"

    def close(self) -> None:
        """Prove that every place is usable, then close the pool and see that nothing is left."""
        simulation, core = self.simulation, self.simulation.core
        self.customs.faults = 0.0
        self.weather.clear()
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
        entries: list[Entry[FakeConnection]] = []
        errors: list[BaseException | None] = []
        while len(entries) < simulation.core.max_size:
            tasks = [simulation.acquire(30.0) for _ in range(simulation.core.max_size - len(entries))]
            self.until(lambda tasks=tasks: all(task.done for task in tasks))  # type: ignore[misc]
            entries += [task.result for task in tasks if task.result is not None]
            errors += [task.error for task in tasks if task.result is None]
            # A hook may come upon connections that have died: each of them once.
            lost = [error for error in errors if not isinstance(error, FakeOperationalError)]
            assert not lost, f"a place was lost: {lost}"
            assert len(errors) < 10, f"nothing but dead connections: {errors}"
        for entry in entries:
            self.customs.check(entry.conn)
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
