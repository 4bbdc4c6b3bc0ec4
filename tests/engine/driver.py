"""Drive the engine by hand: a core without a server, and flows each step of which is the test's.

Nothing here has a thread or waits.  Time is a number that the test sets.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Generic, TypeVar

from connpool.adapter import Fault, Verdict
from connpool.engine.core import Core
from connpool.engine.flows import Flows
from connpool.engine.operations import Call, Ending, Flow, Operation, Park, Report, Start, Step, Tell, Watch
from connpool.engine.records import Entry, Refusal, Waiter
from connpool.errors import PoolError
from connpool.events import Event
from connpool.options import PoolOptions
from connpool.testing import Cancelled, FakeAdapter, FakeConnection, FakePeople, FakeServer

R = TypeVar("R")

NOW = 1000.0  # when every test begins: no instant of interest is 0 by accident


# -- the core alone ----------------------------------------------------------------------------------


class Conn:
    """A connection, as far as the core cares."""


class Rigid:
    """A connection that cannot be referenced weakly."""

    __slots__ = ()


class Caller(Waiter):
    """A waiter that remembers how often it was woken."""

    __slots__ = ("woken",)

    def __init__(self) -> None:
        super().__init__(self._wake)
        self.woken = 0

    def _wake(self) -> None:
        self.woken += 1

    def take(self) -> Entry[Any]:
        """Take the entry that was handed over: from here on the test owns it."""
        entry, self.outcome = self.outcome, Refusal.LEFT
        assert isinstance(entry, Entry), entry
        return entry


def make_core(**options: Any) -> Core[Any]:
    return Core(PoolOptions(**options))


def queue(core: Core[Any], count: int = 1) -> list[Caller]:
    """Have so many callers take their places."""
    callers = [Caller() for _ in range(count)]
    for caller in callers:
        core.queue(caller)
    return callers


def dial(core: Core[Any], now: float = NOW, until: float = inf) -> Entry[Any]:
    """Begin a dial that the core must want."""
    entry = core.plan(now, until)
    assert entry is not None, "no dial is planned"
    return entry


def connect(core: Core[Any], entry: Entry[Any], conn: object = None) -> None:
    """End a dial well."""
    entry.slot.conn = entry.conn = Conn() if conn is None else conn
    core.opened(entry, 0.01)


def fail(
    core: Core[Any],
    entry: Entry[Any],
    error: Exception | None = None,
    *,
    fatal: bool = False,
    now: float = NOW,
) -> None:
    """End a dial badly."""
    core.dial_failed(
        entry, error or OSError("refused"), fault=Fault.ORDINARY, fatal=fatal, now=now, chance=0.0
    )


def lend(core: Core[Any], count: int = 1, conn: object = None) -> list[Entry[Any]]:
    """Open so many connections, and lend them to the test."""
    entries = []
    for _ in range(count):
        (caller,) = queue(core)
        if caller.outcome is None:
            connect(core, dial(core), conn)
        entries.append(caller.take())
    return entries


def stock(core: Core[Any], count: int = 1) -> list[Entry[Any]]:
    """Open so many connections and leave them idle; the list is in the order of the stack."""
    entries = lend(core, count)
    for entry in entries:
        entry.idle_since = NOW
        core.give(entry)
    return entries


def close_all(core: Core[Any], now: float = NOW) -> int:
    """Close what is to be closed; return how many there were."""
    closed = 0
    while (slot := core.next_to_close(now)) is not None:
        core.freed(slot)
        closed += 1
    return closed


def assert_lawful(core: Core[Any], *, in_use: int | None = None) -> None:
    """Check the laws that hold whenever nobody is inside a transition."""
    stats = core.snapshot("test", 0.0)
    parts = stats.idle + stats.in_use + stats.opening + stats.validating + stats.closing
    assert stats.size == parts == len(core.slots), stats
    assert stats.opened - sum(stats.discards.values()) == stats.idle + stats.in_use + stats.validating, stats
    assert stats.acquires == stats.releases + stats.in_use, stats
    assert stats.dials == stats.dial_failures + stats.opened + stats.opening, stats
    assert stats.dial_failures == sum(stats.faults.values()), stats
    assert stats.use.count == stats.releases - stats.discards["lost"] - stats.discards["detached"], stats
    assert in_use is None or stats.in_use == in_use, stats
    live = [waiter for waiter in core.waiters if waiter.outcome is None and waiter is not core._gate]
    assert core.suspended or not (live and core.idle), "an idle entry and a live waiter coexist"
    assert not (live and core.closed), "a closed pool lets somebody wait"
    tickets = [waiter.ticket for waiter in live]
    assert tickets == sorted(tickets, key=lambda ticket: -1 if ticket is None else ticket)
    assert not core.opening.keys() & core.closing.keys()
    assert core.opening.keys() <= core.slots.keys()
    assert core.closing.keys() <= core.slots.keys()


# -- flows -------------------------------------------------------------------------------------------


class Hand(Generic[R]):
    """A flow in the hand of a test: it stands at one operation until the test goes on."""

    def __init__(self, world: World, flow: Flow[R]) -> None:
        self.world = world
        self.operation: Operation | None = None
        self.steps: list[str] = []  # the operations so far, by name
        self.done = False
        self.result: R | None = None
        self.error: BaseException | None = None
        self._flow = flow
        self.resume()

    def resume(self, value: object = None) -> None:
        """Answer the operation."""
        self._go(self._flow.send, value)

    def throw(self, error: BaseException) -> None:
        """Let the operation fail, or interrupt the flow in it."""
        self._go(self._flow.throw, error)

    def close(self) -> None:
        """Close the generator where it stands."""
        self._flow.close()
        self._end(None, GeneratorExit())

    def execute(self) -> None:
        """Do what the operation says, as a runtime does."""
        operation = self.operation
        if self.world.strikes(self):
            return
        if isinstance(operation, Call):
            try:
                value = operation.fn(*operation.args)
            except Exception as exc:
                self.throw(exc)
            else:
                self.resume(value)
        elif isinstance(operation, Start):
            if self.world.helpers:
                self.world.jobs.append(operation.flow)
            self.resume(self.world.helpers)
        elif isinstance(operation, Watch):
            self.world.watched = operation.at
            self.resume()
        elif isinstance(operation, Report):
            self.world.reports.append((operation.error, operation.origin))
            self.resume()
        elif isinstance(operation, Tell):
            self.world.told.append(operation.event.text)
            self.world.events.append(operation.event)
            self.resume()
        else:
            self.resume()

    def to(self, wanted: Step | type[Operation]) -> Any:
        """Go on to the first operation of a kind, and stand there."""
        while not self.at(wanted):
            assert not self.done, f"ended before {wanted}: {self.steps}, {self.error!r}"
            assert not self.parked, f"parked before {wanted}: {self.steps}"
            self.execute()
        return self.operation

    def run(self) -> Hand[R]:
        """Go on to the end, or until there is something to wait for."""
        while not self.done and not self.parked:
            self.execute()
        return self

    def value(self) -> R:
        """Go on to the end and return, or raise, what it came to."""
        self.run()
        assert self.done, f"it waits: {self.steps}"
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback owns what its callers own, and this frame would keep it
        result, self.result = self.result, None
        return result  # type: ignore[return-value] # it ended well

    @property
    def parked(self) -> bool:
        return isinstance(self.operation, Park) and self.operation.waiter.outcome is None

    def at(self, wanted: Step | type[Operation]) -> bool:
        """Tell whether it stands at an operation of a kind."""
        if isinstance(wanted, Step):
            return isinstance(self.operation, Call) and self.operation.step is wanted
        return isinstance(self.operation, wanted)

    def _go(self, resume: Callable[[Any], Operation], value: object) -> None:
        self.operation = None
        try:
            self.operation = operation = resume(value)
        except StopIteration as stop:
            self._end(stop.value, None)
        except BaseException as exc:
            self._flow.close()
            self._end(None, exc.with_traceback(None))
        else:
            name = operation.step.value if isinstance(operation, Call) else type(operation).__name__.lower()
            self.steps.append(name)

    def _end(self, result: R | None, error: BaseException | None) -> None:
        self.operation = None
        self.done, self.result, self.error = True, result, error
        if error is not None and self.world.core.owes():  # as every runtime does
            self.world.jobs.append(self.world.flows.follow_up())


class World:
    """A pool, its server and its runtime.

    Args:
        source: As the first argument of a pool; by default the fake adapter.
        helpers: Whether flows can be started elsewhere.  They wait in `jobs` then, until `work`.
        options: As `connpool.ConnectionPool`.
    """

    def __init__(self, source: Any = None, *, helpers: bool = True, **options: Any) -> None:
        self.now = NOW
        self.people = FakePeople()
        self.slept = 0.0
        self.server = FakeServer()
        self.adapter = FakeAdapter(self.server) if source is None else source
        self.core: Core[Any] = Core(PoolOptions(**options))
        self.flows: Flows[Any] = Flows(
            self.core,
            self.adapter,
            name="test",
            clock=lambda: self.now,
            slept=lambda: self.slept,
            chance=lambda: 0.0,
            waiter=Caller,
            people=self.people,
        )
        self.helpers = helpers
        self.jobs: deque[Flow[None]] = deque()
        self.watched: float | None = None
        self.reports: list[tuple[Exception, object]] = []
        self.told: list[str] = []
        self.events: list[Event] = []
        self.hands: list[Hand[Any]] = []
        self.suspensions = 0
        self._strike: tuple[int, BaseException] | None = None

    # -- what callers do -----------------------------------------------------------------------------

    def hold(self, flow: Flow[R]) -> Hand[R]:
        hand = Hand(self, flow)
        self.hands.append(hand)
        return hand

    def acquire(self, timeout: float | None = 5.0) -> Hand[Entry[Any]]:
        """Acquire as a lease does: a candidate from the stack unless somebody waits."""
        candidate = self.core.idle.pop() if self.core.idle and not self.core.waiters else None
        deadline = None if timeout is None else self.now + timeout
        waiter = self.flows.waiter(self.people.site)
        return self.hold(self.flows.acquire(candidate, timeout, deadline, waiter))

    def release(
        self, entry: Entry[Any], error: BaseException | None = None, ending: Ending = "commit"
    ) -> Hand[None]:
        return self.hold(self.flows.release(entry, error, ending))

    def work(self) -> None:
        """Run what was started elsewhere, and what that starts."""
        while self.jobs:
            self.hold(self.jobs.popleft()).run()

    def lend(self, count: int = 1) -> list[Entry[Any]]:
        """Lend so many connections to the test."""
        hands = [self.acquire() for _ in range(count)]
        for hand in hands:
            hand.run()
            self.work()
        return [hand.value() for hand in hands]

    def stock(self, count: int = 1) -> list[Entry[Any]]:
        """Leave so many connections idle."""
        entries = self.lend(count)
        for entry in entries:
            self.release(entry).value()
        self.work()
        return entries

    # -- strikes -------------------------------------------------------------------------------------

    def strike(self, suspension: int, error: BaseException) -> None:
        """Have an exception strike at a suspension, counted from now over all flows."""
        self.suspensions = 0
        self._strike = suspension, error

    def strikes(self, hand: Hand[Any]) -> bool:
        """Strike the flow if this is the suspension."""
        self.suspensions += 1
        if self._strike is None or self._strike[0] != self.suspensions:
            return False
        error = self._strike[1]
        self._strike = None
        if isinstance(hand.operation, Call) and not isinstance(error, Exception):
            for arg in hand.operation.args:  # the request is out, its answer will not be read
                if isinstance(arg, FakeConnection):
                    arg.busy = True
        if isinstance(error, GeneratorExit):
            hand.close()
        else:
            hand.throw(error)
        return True

    def settle(self) -> None:
        """Bring everything to rest, then prove that every place is usable and that nobody is left over."""
        core = self.core
        self._strike = None
        if sys.version_info >= (3, 12):
            # There a frame that a traceback keeps keeps its callers', generators' too: what is promised is
            # that a place is free once the tracebacks are dropped.
            for error in [hand.error for hand in self.hands] + [error for error, _ in self.reports]:
                found = error
                while found is not None:
                    found.__traceback__ = None
                    found = found.__cause__ or found.__context__
            gc.collect(0)  # see conftest: and a strike and the error it interrupts can hold each other
        self.server.up()
        self._end_all()
        self.now += 100.0  # past every pause and grace
        self.hold(self.flows.upkeep()).run()
        self._end_all()
        assert_lawful(core, in_use=0)
        assert not core.debris, "a discarded connection was never closed"
        assert not core.lost, "a lost entry was never found"
        if not core.closed:
            assert not core.waiters, "somebody waits for ever"
            hands = [self.acquire() for _ in range(core.max_size)]
            for hand in hands:
                hand.run()
                self.work()
            assert all(hand.run().result for hand in hands), "a place was lost"
            assert_lawful(core, in_use=core.max_size)
        self._end_all()
        known = {entry.conn for entry in core.idle}
        assert {conn for conn in self.server.sessions if not conn.closed} <= known
        self.hold(self.flows.close(self.now)).run()
        self._end_all()
        assert not core.slots, "a place is still taken in a closed pool"
        assert not self.server.sessions, "a session survived the pool"

    def _end_all(self) -> None:
        """Give back what is lent, and let everybody who waits wait no longer."""
        while self.hands or self.jobs:
            self.work()
            hands, self.hands = self.hands, []
            for hand in hands:
                hand.run()
                if hand.parked:
                    self.now += 10.0
                    hand.execute()
                    self.hands.append(hand)
                elif isinstance(hand.result, Entry):
                    entry, hand.result = hand.result, None
                    self.release(entry).run()
                    del entry


def discards(world: World) -> dict[str, int]:
    """Return the reasons for which connections were discarded, and how many were."""
    return {reason.value: count for reason, count in world.core.totals.discards.items() if count}


def refusal(hand: Hand[Any], kind: type[PoolError]) -> str:
    """Run a flow to its refusal and return the first line of what it says."""
    hand.run()
    assert type(hand.error) is kind, repr(hand.error)
    return str(hand.error).partition("\n")[0]


def opening(world: World) -> Hand[None]:
    """Have somebody ask for a connection, and hold the dial that this starts."""
    world.acquire().run()
    return world.hold(world.jobs.popleft())


def drive(flow: Flow[Any]) -> BaseException | None:
    """Run a flow to its end as a thread does, and return its error as it is, traceback and all."""
    resume: Callable[[Any], Any] = flow.send
    value: Any = None
    try:
        while True:
            operation = resume(value)
            resume, value = flow.send, None
            if isinstance(operation, Call):
                try:
                    value = operation.fn(*operation.args)
                except BaseException as exc:
                    resume, value = flow.throw, exc
    except StopIteration:
        return None
    except BaseException as exc:
        return exc
    finally:
        del value  # see ThreadRunner


STRIKES: dict[str, Callable[[], BaseException]] = {
    "cancelled": Cancelled,
    "failing": lambda: OSError("struck"),
    "closed": GeneratorExit,
}
"""What can end a flow at any of its operations, by name."""


class AroundAdapter(FakeAdapter):
    """The fake driver's adapter, made from a callable: what a plain callable turns out to need."""

    bounded = False

    def __init__(self, connect: Callable[[], FakeConnection]) -> None:
        super().__init__(FakeServer())
        self.dial = connect

    @classmethod
    def around(cls, connect: Callable[[], FakeConnection]) -> AroundAdapter:
        return cls(connect)


class BlindAdapter(FakeAdapter):
    """An adapter that cannot see transactions: DIRTY is all it says of an open connection."""

    sees_transactions = False

    def verdict(self, conn: FakeConnection, baseline: object) -> Verdict:
        if conn.closed:
            return Verdict.SPENT
        return Verdict.BROKEN if conn.busy else Verdict.DIRTY
