"""Runs the real functions in schedules that are chosen bytecode by bytecode.

Each actor is a function that runs in a thread of its own, but only one thread runs at any time: the plan
says who, and for how many bytecodes of the package (counted by a trace function).  So every schedule is
exact and can be repeated.  A plan ``(a, 7), (b, None), (a, None)`` means: seven bytecodes of *a*, then *b*
to its end, then *a* to its end.

An actor that comes to the core's lock while another is inside waits there, as it would in reality, and
goes on when the lock is free: either at once, while the other stops behind its critical section
(*prompt*), or when the other is done.  An actor that parks sleeps until it is woken.  Nothing here looks
around by itself every quarter of a second: that would hide a lost wake-up.  When nobody can go on, the
`World` checks what must hold at rest.

The clock stands still, dials and closings happen in the thread that asks for them, the driver is fake.
What is between the brackets is real: `ConnectionPool`, `Lease`, `Core`, `Flows`, `ThreadRunner`.
"""

from __future__ import annotations

import dis
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, Self, TypeAlias

import connpool.deadlines
import connpool.leases
import connpool.pool
import connpool.threads
from connpool import ConnectionPool, PoolClosed, PoolError
from connpool.engine.core import Core
from connpool.engine.records import Entry, Waiter
from connpool.leases import Lease
from connpool.stats import Reason
from connpool.testing import FakeAdapter, FakeConnection, FakeServer

Plan: TypeAlias = list[tuple[int, int | None]]
Tracer: TypeAlias = Callable[[FrameType, str, Any], Any]

NOW: Final = 1000.0
HANGS_AFTER: Final = 30.0  # real seconds; only a mistake in the explorer itself gets there


class Violation(AssertionError):
    """A schedule after which something does not hold that must; the message says which schedule."""


# -- tracing -----------------------------------------------------------------------------------------------


def is_ours(frame: FrameType) -> bool:
    """Tell whether a frame runs code of the package; its test doubles do not count."""
    name: str = frame.f_globals.get("__name__", "")
    return name.startswith("connpool") and name != "connpool.testing"


LOCAL: Final = frozenset(
    {
        "CACHE",
        "COPY",
        "JUMP_BACKWARD",
        "JUMP_FORWARD",
        "KW_NAMES",
        "LOAD_CONST",
        "LOAD_DEREF",
        "LOAD_FAST",
        "LOAD_FAST_CHECK",
        "LOAD_FAST_LOAD_FAST",
        "LOAD_GLOBAL",
        "NOP",
        "PRECALL",
        "PUSH_NULL",
        "RESUME",
        "SWAP",
    }
)
"""Bytecodes that no other thread can notice: to switch before one is to switch before the next."""

SHARING: Final = frozenset(
    {
        "ConnectionPool._exit",
        "Flows._check",
        "Flows._queued",
        "Flows.just_waits",
        "Flows.served",
        "Lease.__enter__",
        "Lease.__exit__",
    }
)
"""Outside the core, these functions touch what threads share; all others do so by calling the core."""

GUARDED: Final = frozenset(
    "Core." + name
    for name in (
        "_batch",
        "_close_slot",
        "_discard_dial",
        "_fold_waits",
        "_free",
        "_free_overdue",
        "_notify",
        "_reclaim",
        "_retire",
        "due",
        "freed",
        "inside",
        "limit",
        "next_to_close",
        "number",
        "overstayed",
        "plan",
        "retire",
        "unlimit",
        "unwatch",
        "watch",
    )
)
"""In the core, these touch nothing but what the lock guards: to switch inside is to switch behind."""


@cache
def sharing_bytecodes(code: CodeType) -> frozenset[int]:
    """Return the offsets in a function at which a switch can make a difference."""
    if Path(code.co_filename).name == "core.py":
        counts = code.co_qualname not in GUARDED
    else:
        counts = code.co_qualname in SHARING
    return frozenset(i.offset for i in dis.get_instructions(code) if i.opname not in LOCAL and counts)


@contextmanager
def each_bytecode(
    step: Callable[[FrameType], None], only: Callable[[CodeType], frozenset[int]] | None = None
) -> Iterator[None]:
    """Call *step* before each bytecode of the package that this thread runs in the block.

    *only* picks the offsets that count.  Whoever traced before, such as coverage, goes on afterwards.
    """

    def every(frame: FrameType, event: str, arg: Any) -> Tracer:
        if event == "opcode":
            step(frame)
        return every

    @cache
    def some(code: CodeType) -> Tracer | None:
        offsets = only(code) if only is not None else frozenset()

        def local(frame: FrameType, event: str, arg: Any) -> Tracer:
            if event == "opcode" and frame.f_lasti in offsets:
                step(frame)
            return local

        return local if offsets else None

    def enter(frame: FrameType, event: str, arg: Any) -> Tracer | None:
        if not is_ours(frame):
            return None
        local = every if only is None else some(frame.f_code)
        if local is not None:
            frame.f_trace = local  # first: 3.13 ignores the next line without it
            frame.f_trace_lines = False
            frame.f_trace_opcodes = True
        return local

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # 3.12 asks the frames that exist now
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


# -- one thread at a time ----------------------------------------------------------------------------------


def _taken_lock() -> threading.Lock:
    """Return a lock to sleep on until somebody else releases it."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class Abandoned(BaseException):
    """Raised in an actor that is stuck when the explorer has seen enough."""


class Actor:
    """A thread that runs one job after the other, each in pieces."""

    def __init__(self, back: threading.Lock) -> None:
        self.state = "done"  # or: begun, paused, blocked, released, parked
        self.error: BaseException | None = None
        self.waiter: CooperativeWaiter | None = None
        self._back = back
        self._go = _taken_lock()
        self._job: Callable[[], None] | None = None
        self._budget: int | None = None
        self._ending = False
        self._tracing: AbstractContextManager[None] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def assign(self, job: Callable[[], None], tracing: AbstractContextManager[None] | None) -> None:
        """Give it something to do; it begins when it is resumed."""
        self.state, self.error, self.waiter = "begun", None, None
        self._job, self._tracing = job, tracing

    def resume(self, budget: int | None) -> None:
        """Run for so many bytecodes, or until it cannot go on; returns when it has stopped."""
        self._budget = budget
        self._go.release()
        if not self._back.acquire(timeout=HANGS_AFTER):
            raise RuntimeError("an actor waits for something that the explorer does not know of")

    def stop(self, state: str) -> None:
        """Called in the actor's thread: let the others run until somebody resumes it."""
        if not self._ending:
            self.state = state
            self._back.release()
            self._go.acquire()
        if self._ending:
            raise Abandoned
        self.state = "running"

    def end(self) -> None:
        """End the thread, wherever it has stopped."""
        self._ending = True
        self._job = None
        self._go.release()
        self._thread.join()

    @property
    def ident(self) -> int | None:
        return self._thread.ident

    def _work(self) -> None:
        while True:
            self._go.acquire()
            job, self._job = self._job, None
            if job is None:
                return
            self.state = "running"
            try:
                if self._tracing is not None:
                    with self._tracing:
                        job()
                else:
                    job()
            except BaseException as exc:
                self.error = exc
            del job
            if self._ending:
                return
            self.state = "done"
            self._back.release()

    def step(self, frame: FrameType) -> None:
        if self._budget is None:
            sys.settrace(None)  # to its end, at full speed
        elif self._budget:
            self._budget -= 1
        else:
            self.stop("paused")
            self.step(frame)


class Crew:
    """The actors, and whose turn it is."""

    def __init__(self, size: int) -> None:
        back = _taken_lock()
        self.actors = [Actor(back) for _ in range(size)]
        self.began_inside = False  # the first switch of a plan was in a critical section
        self._by_ident = {actor.ident: actor for actor in self.actors}

    def me(self) -> Actor | None:
        """Return the actor that is calling; ``None``: somebody outside the schedule."""
        return self._by_ident.get(threading.get_ident())

    def run(self, jobs: list[Callable[[], None]], plan: Plan, lock: Turnstile, *, every: bool) -> bool:
        """Run a schedule until nobody can go on; return whether the plan could be followed.

        Budgets count every bytecode of the package, or only those that can make a difference.
        """
        traced = {actor for actor, budget in plan if budget is not None}
        actors = self.actors[: len(jobs)]
        for number, (actor, job) in enumerate(zip(actors, jobs, strict=True)):
            tracing = each_bytecode(actor.step, None if every else sharing_bytecodes)
            actor.assign(job, tracing if number in traced else None)
        followed = True
        for index, (number, budget) in enumerate(plan):
            actor = actors[number]
            if not self._can_go(actor, lock):
                continue
            self._resume(actor, budget, lock)
            if index == 0:
                self.began_inside = lock.owner is not None
            if budget is not None and actor.state != "paused":
                followed = False
                break
        while ready := [actor for actor in actors if self._can_go(actor, lock)]:
            self._resume(ready[0], None, lock)
        return followed

    def _resume(self, actor: Actor, budget: int | None, lock: Turnstile) -> None:
        actor.resume(budget)
        while actor.state == "released":
            for other in self.actors:
                if other.state == "blocked" and lock.owner is None:
                    other.resume(None)
            actor.resume(actor._budget)

    def _can_go(self, actor: Actor, lock: Turnstile) -> bool:
        if actor.state == "blocked":
            return lock.owner is None
        if actor.state == "parked":
            return actor.waiter is not None and actor.waiter.woken
        return actor.state in ("begun", "paused")

    def end(self) -> None:
        for actor in self.actors:
            actor.end()


class Turnstile:
    """A re-entrant lock for actors: whoever comes while another is inside stops, and is resumed later."""

    def __init__(self, crew: Crew, *, prompt: bool) -> None:
        self.owner: int | None = None
        self._crew = crew
        self._prompt = prompt
        self._depth = 0
        self._blocked = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        while self.owner not in (None, me):
            actor = self._crew.me()
            assert actor is not None, "the lock was not released"
            self._blocked += 1
            actor.stop("blocked")
            self._blocked -= 1
        self.owner = me
        self._depth += 1

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        if not self._is_owned():
            raise RuntimeError("cannot release un-acquired lock")
        self._depth -= 1
        if not self._depth:
            self.owner = None
            actor = self._crew.me()
            if self._prompt and self._blocked and actor is not None:
                actor.stop("released")

    def _is_owned(self) -> bool:
        return self.owner == threading.get_ident()


class CooperativeWaiter(Waiter):
    """Parks an actor."""

    __slots__ = ("woken",)
    crew: Crew
    clock: Clock

    def __init__(self) -> None:
        super().__init__(self._wake)
        self.woken = False

    def _wake(self) -> None:
        self.woken = True

    def park(self, deadline: float | None) -> None:
        actor = self.crew.me()
        assert actor is not None, "somebody outside the schedule would have to wait"
        if not self.woken and (deadline is None or self.clock() < deadline):
            actor.waiter = self
            actor.stop("parked")
            actor.waiter = None


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class NoHousekeeper:
    """Nothing is ever due by itself."""

    def watch(self, runner: object, at: float | None) -> None:
        """Do nothing."""


# -- what the actors act upon ------------------------------------------------------------------------------


class World:
    """A pool, and a record of who holds what."""

    def __init__(self, crew: Crew, clock: Clock, *, prompt: bool, **options: Any) -> None:
        self.crew = crew
        self.clock = clock
        clock.now = NOW
        self.server = FakeServer()
        options = {"idle_timeout": None, "max_lifetime": None, **options}
        self.pool: ConnectionPool[FakeConnection] = ConnectionPool(FakeAdapter(self.server), **options)
        self.pool._runner.inline = True
        self.core: Core[FakeConnection] = self.pool._core
        self.lock = Turnstile(crew, prompt=prompt)
        self.core.lock = self.lock  # type: ignore[assignment]
        self.core.inside = self.lock._is_owned
        self.held: dict[FakeConnection, Lease[FakeConnection]] = {}
        self.gone: set[FakeConnection] = set()  # what an evict() that has returned meant
        self.refused: dict[str, PoolError] = {}
        self.served: list[str] = []
        self.faults: list[str] = []

    # -- deeds

    def take(self, name: str = "taker", timeout: float | None = None) -> None:
        """Borrow a connection, and see whether it may be lent."""
        gone, closed = self.gone.copy(), "closed" in self.served
        lease = self.pool.connection(timeout)
        try:
            conn = lease.__enter__()
        except PoolError as exc:
            self.refused[name] = exc.with_traceback(None)
            return
        if conn in gone:
            self.faults.append("a connection was lent by a take that began after evict() had returned")
        if closed:
            self.faults.append("a closed pool lent a connection")
        if conn in self.held:
            self.faults.append("a connection has two borrowers")
        if conn.closed and not self.core.closed:  # closing cuts what is lent
            self.faults.append("a closed connection was lent")
        self.held[conn] = lease
        self.served.append(name)

    def give(self, lease: Lease[FakeConnection]) -> None:
        """Give back what a lease holds."""
        assert lease._entry is not None
        del self.held[lease._entry.conn]
        lease.__exit__(None, None, None)

    def cycle(self, name: str) -> None:
        """Borrow and give back."""
        before = set(self.held)
        self.take(name)
        for conn in set(self.held) - before:
            self.give(self.held[conn])

    def evict(self) -> None:
        meant = {slot.conn for slot in self.core.slots if slot.opened}
        self.pool.evict()
        self.gone |= meant  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the pool; `close` waits for nobody here, the engine's part of it is done."""
        self.pool.close(0)
        self.served.append("closed")

    def lent(self) -> Lease[FakeConnection]:
        """Return a lease that holds a connection; it is set up before the schedule begins."""
        before = set(self.held)
        self.take("setup")
        (conn,) = set(self.held) - before
        return self.held[conn]

    # -- checks

    def check_at_rest(self) -> None:
        """Check what must hold when nobody can go on; then give everything back, and check again."""
        self._check_faults()
        self._check_queue()
        while parked := [actor for actor in self.crew.actors if actor.state == "parked"]:
            if not self.held:
                raise Violation("somebody is parked, and nobody is left who could wake them")
            self.give(next(iter(self.held.values())))
            for actor in parked:
                if actor.waiter is not None and actor.waiter.woken:
                    actor.resume(None)
            self._check_faults()
            self._check_queue()
        for lease in list(self.held.values()):
            self.give(lease)
        self._check_queue()
        self._check_capacity()
        self._check_books()

    def _check_faults(self) -> None:
        for actor in self.crew.actors:
            if actor.error is not None:
                raise Violation(f"an actor failed: {actor.error!r}") from actor.error
            if actor.state in ("blocked", "paused"):
                raise Violation("the lock was never released")
        if self.lock.owner is not None:
            raise Violation("the lock was never released")
        if self.faults:
            raise Violation("; ".join(self.faults))

    def _check_queue(self) -> None:
        core = self.core
        waiting = [waiter for waiter in core.waiters if waiter is not core._gate]
        live = [waiter for waiter in waiting if waiter.outcome is None]
        if live and core.idle:
            raise Violation("lost wake-up: an idle entry and a live waiter at rest")
        if live and core.closed:
            raise Violation("a closed pool lets somebody wait")
        if len(live) < len(waiting):
            raise Violation("a settled waiter was left in the queue")
        tickets = [waiter.ticket or 0 for waiter in waiting]
        if tickets != sorted(tickets):
            raise Violation("the queue is out of order")
        idle: list[Entry[FakeConnection]] = list(core.idle)
        if len(set(idle)) < len(idle):
            raise Violation("an entry is idle twice")
        if any(entry.conn in self.held for entry in idle):
            raise Violation("an entry is idle and lent")
        if any(entry.doomed for entry in idle):
            raise Violation("a doomed entry is idle at rest")
        if {entry.conn for entry in idle} & self.gone:
            raise Violation("evict() has returned, but a connection that it meant is idle")
        if core.owes():
            raise Violation("something is to be closed or dialled, and nobody does it")

    def _check_books(self) -> None:
        """Check that nothing is left over when everything has been given back."""
        self._check_queue()
        core, stats = self.core, self.pool.stats()
        if core.waiters and not core.closed:
            raise Violation("somebody is in the queue, and nobody parks")
        if stats.discards[Reason.LOST]:
            raise Violation("an entry was delivered to nobody, or dropped")
        if not stats.size == stats.idle == len(core.idle) <= core.max_size:
            raise Violation(f"a place was lost or won: {stats}")
        if stats.opened - sum(stats.discards.values()) != stats.size or stats.acquires != stats.releases:
            raise Violation(f"the figures do not add up: {stats}")
        if set(self.server.sessions) != {entry.conn for entry in core.idle}:
            raise Violation("the server has sessions that the pool does not know, or the other way round")

    def _check_capacity(self) -> None:
        """Check that all places can be lent at once."""
        if self.core.closed:
            try:
                self.pool.connection().__enter__()
            except PoolClosed:
                return
            raise Violation("a closed pool lent a connection")
        leases = [self.pool.connection(1.0) for _ in range(self.core.max_size)]
        conns = {lease.__enter__() for lease in leases}
        if len(conns) < len(leases):
            raise Violation("a connection has two borrowers")
        if conns & self.gone:
            raise Violation("an evicted connection was lent")
        for lease in leases:
            lease.__exit__(None, None, None)


# -- exploring ---------------------------------------------------------------------------------------------

Scenario: TypeAlias = Callable[[World], list[Callable[[], None]]]
"""Prepares a world and returns what its actors do."""


class Explorer:
    """Runs a scenario in schedule after schedule; use it as a context manager."""

    def __init__(self, scenario: Scenario, **options: Any) -> None:
        self.schedules = 0
        self._scenario = scenario
        self._options = options
        self._clock = Clock()
        self._restore: list[tuple[Any, str, Any]] = []
        self._collecting = False
        self._began_inside = False

    def __enter__(self) -> Self:
        self._crew = Crew(3)
        waiter = type(
            "Waiter", (CooperativeWaiter,), {"crew": self._crew, "clock": self._clock, "__slots__": ()}
        )
        self._replace(connpool.pool, "clock", self._clock)
        self._replace(connpool.leases, "clock", self._clock)
        self._replace(connpool.deadlines, "clock", self._clock)
        self._replace(connpool.pool, "ThreadWaiter", waiter)
        self._replace(connpool.threads, "housekeeper", NoHousekeeper())
        # A collection in the middle of a schedule would run finalizers there: not a schedule we chose.
        self._collecting = gc.isenabled()
        gc.disable()
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._restore:
            setattr(*self._restore.pop())
        self._crew.end()
        if self._collecting:
            gc.enable()

    def _replace(self, module: Any, name: str, value: Any) -> None:
        self._restore.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def run(self, plan: Plan, *, prompt: bool = True, every: bool = False) -> bool:
        """Run one schedule and check what is left; return False if an actor ended before its turn did."""
        world = World(self._crew, self._clock, prompt=prompt, **self._options)
        jobs = self._scenario(world)
        try:
            followed = self._crew.run(jobs, plan, world.lock, every=every)
            self._began_inside = self._crew.began_inside
            self.schedules += 1
            world.check_at_rest()
            world.pool.close(0)
        except AssertionError as exc:
            world.core.closed = True  # let nobody try to close what is broken
            exc.add_note(f"schedule: {plan}, prompt={prompt}; the actors: {self._scenario.__doc__}")
            raise
        if not self.schedules % 5000:
            gc.collect()
        return followed

    def once(self, first: int, second: int, *, before: Sequence[int] = ()) -> None:
        """At each bytecode of *first*, run *second* to its end; those *before* go first of all."""
        begin: Plan = [(actor, None) for actor in before]
        for prompt in (True, False):
            k = 0
            while self.run([*begin, (first, k), (second, None), (first, None)], prompt=prompt, every=True):
                k += 1

    def twice(self, first: int, second: int, third: int, *, locks_first: bool) -> None:
        """At each bytecode of *first* run *second*, and at the same or any later one *third*.

        *locks_first*: before anything else the second takes the lock.  There is no point then in
        starting it while the first is inside: it would begin when the first is out.
        """
        k = 0
        while self.run([(first, k), (second, None), (third, None), (first, None)]):
            more = 1
            while not (locks_first and self._began_inside) and self.run(
                [(first, k), (second, None), (first, more), (third, None), (first, None)]
            ):
                more += 1
            k += 1

    def weave(self, first: int, second: int) -> None:
        """Run *first* up to each bytecode, then *second* up to each of its own; then *first* to its end."""
        k = 0
        while self.run([(first, k), (second, None), (first, None)]):
            m = 1
            while self.run([(first, k), (second, m), (first, None), (second, None)]):
                m += 1
            k += 1
