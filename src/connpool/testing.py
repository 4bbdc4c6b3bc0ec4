"""Test doubles: a scripted server with its driver and adapter, and a simulator with a virtual clock.

Two ways to use them:

* **Your own code against an outage.**  Make a `FakeServer`, give ``FakeAdapter(server)`` to a real
  `connpool.ConnectionPool`, and take the server down, kill its sessions, slow it, fill it::

      server = FakeServer()
      with ConnectionPool(FakeAdapter(server), max_size=2) as pool:
          server.kill_sessions()
          with pool.connection() as conn:      # a fresh one, no error
              conn.execute("select 1")

* **The pool itself, thousands of schedules a second.**  `Simulation` runs the very flows that threads
  run in production, in one thread, on a virtual clock, in an order that a seed decides.  Every step can
  be cancelled.  `Simulation.check` verifies the invariants of `connpool.engine.core` after each step.
"""

from __future__ import annotations

import heapq
import random
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from itertools import count
from types import CodeType, MappingProxyType
from typing import Any, Final, Generic, TypeVar

from .adapter import Fault, Verdict
from .engine.core import Core
from .engine.flows import Flows
from .engine.operations import Call, Flow, Park, Report, Start, Step, Tell
from .engine.records import Entry, Site, Waiter
from .engine.upkeep import LOOK_EVERY
from .errors import PoolError
from .options import PoolOptions
from .reset import Part

__all__ = (
    "AsyncFakeAdapter",
    "Cancelled",
    "FakeAdapter",
    "FakeConnection",
    "FakeError",
    "FakeOperationalError",
    "FakeServer",
    "Simulation",
    "Step",
    "Task",
)

R = TypeVar("R")


# -- a driver without a server ------------------------------------------------------------------------


class FakeError(Exception):
    """What the fake driver raises."""


class FakeOperationalError(FakeError):
    """The connection or the server is at fault."""


class FakeServer:
    """A server that does what the test says.

    Args:
        latency: Seconds that every step takes, or a mapping from `~connpool.engine.operations.Step`
            to seconds.
        sleep: How a step waits; a test that wants to control it gives its own.
        max_sessions: Further connects are refused as *full*; ``None``: no bound.
        password: What credentials must say; ``None``: nobody is asked.
        idle_limit: Seconds idle after which it ends a session, as it says; ``None``: never.
    """

    def __init__(
        self,
        *,
        latency: float | Mapping[Step, float] = 0.0,
        sleep: Callable[[float], None] = time.sleep,
        max_sessions: int | None = None,
        password: str | None = None,
        idle_limit: float | None = None,
    ) -> None:
        self.password = password
        self.idle_limit = idle_limit
        self.writable = True  # False: a standby
        self.latency = latency
        self.max_sessions = max_sessions
        # Weakly: a connection that is garbage has closed its socket, and with it its session.
        self.sessions: weakref.WeakSet[FakeConnection] = weakref.WeakSet()
        self.connects = 0
        self.statements: list[str] = []
        self._sleep = sleep
        self._down: Exception | None = None

    def down(self, error: Exception | None = None) -> None:
        """Refuse connects with *error* and kill all sessions, until `up`."""
        self._down = error or FakeOperationalError("connection refused")
        self.kill_sessions()

    def up(self) -> None:
        """Accept connects again."""
        self._down = None

    def kill_sessions(self) -> int:
        """End every session, as a restart does; return how many there were."""
        victims = sorted(self.sessions, key=lambda conn: conn.number)
        for conn in victims:
            conn.kill()
        return len(victims)

    def seconds(self, step: Step) -> float:
        """Return how long a step takes."""
        return self.latency.get(step, 0.0) if isinstance(self.latency, Mapping) else self.latency

    def wait(self, step: Step, limit: float | None = None) -> bool:
        """Take the time that a step takes, at most *limit* seconds; False if it takes longer."""
        seconds = self.seconds(step)
        if seconds:
            self._sleep(seconds if limit is None else min(seconds, limit))
        return limit is None or seconds <= limit

    def accept(self, credentials: Mapping[str, Any] | None = None) -> FakeConnection:
        """Open a session, or refuse it."""
        self.connects += 1
        if self.password is not None and (credentials or {}).get("password") != self.password:
            raise FakeOperationalError("password authentication failed")
        if self._down is not None:
            raise type(self._down)(*self._down.args)  # a new one each time: tracebacks add up
        if self.max_sessions is not None and len(self.sessions) >= self.max_sessions:
            raise FakeOperationalError("sorry, too many clients already")
        return FakeConnection(self)


class FakeConnection:
    """A session with a `FakeServer`: it knows transactions, failure and death, but no SQL."""

    _numbers = count(1)

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.number = next(self._numbers)
        self.alive = True  # the server's side
        self.closed = False  # ours
        self.in_transaction = False
        self.failed = False  # the open transaction can only be rolled back
        self.busy = False  # an exchange was cut short, or its answer is outstanding
        self.mode = "default"  # a setting that the driver keeps
        self.session: dict[str, str] = {}  # settings that the server keeps
        self._before = self.session  # what a rollback comes back to
        server.sessions.add(self)

    async def query(self, statement: str, seconds: float = 0.0) -> None:
        """Do as `execute`, in a task that waits for the answer."""
        import asyncio  # whoever awaits this has it loaded

        outstanding, self.busy = self.busy, True  # it stays so if the task is cancelled meanwhile
        await asyncio.sleep(seconds)
        self.busy = outstanding
        self.execute(statement)

    def execute(self, statement: str) -> None:
        """Send a statement: ``begin``, ``commit``, ``rollback``, ``fail``, ``set x y``, or anything else.

        Anything else opens a transaction, as drivers do that are not in autocommit mode.
        """
        if self.closed or not self.alive:
            raise FakeOperationalError("server closed the connection unexpectedly")
        if self.busy:
            raise FakeOperationalError("another answer is outstanding")
        self.server.statements.append(statement)
        if statement == "fail":
            self.in_transaction = self.failed = True
            raise FakeError("the statement failed")
        if statement in ("commit", "rollback"):
            self.in_transaction = self.failed = False
            if statement == "rollback":
                self.session = self._before
            self._before = self.session
        else:
            self.in_transaction = True
            if statement.startswith("set "):
                name, _, value = statement.removeprefix("set ").partition(" ")
                self.session = {**self.session, name: value}

    def cursor(self) -> FakeConnection:
        """Return something with `execute`: this connection."""
        return self

    def commit(self) -> None:
        """Commit; a failed transaction is rolled back in silence, as drivers do."""
        self.execute("commit")

    def rollback(self) -> None:
        """Roll back."""
        self.execute("rollback")

    def kill(self) -> None:
        """End the session from the server's side."""
        self.alive = False
        self.server.sessions.discard(self)

    def close(self) -> None:
        """End the session from our side."""
        self.closed = True
        self.kill()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "alive" if self.alive else "killed"
        return f"<FakeConnection {self.number}, {state}>"


class FakeAdapter:
    """The adapter of the fake driver."""

    name = "fake"
    bounded = True
    sees_transactions = True
    errors: Mapping[type[PoolError], type[PoolError]] = MappingProxyType({})

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.parts: Collection[Part] = frozenset({Part.FULL, Part.UNLOCK})

    def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> FakeConnection:
        """Open a session."""
        if not self.server.wait(Step.CONNECT, limit):
            raise FakeOperationalError("connect timed out")
        return self.server.accept(credentials)

    def adopt(self, conn: FakeConnection) -> object:
        """Return the baseline: the mode at connect."""
        return conn.mode

    def remember(self, conn: FakeConnection, parts: tuple[Part, ...], limit: float | None) -> object:
        """Return what the session was told before it came here."""
        self._round_trip(conn, Step.REMEMBER, limit)
        return conn.session.copy()

    def verdict(self, conn: FakeConnection, baseline: object) -> Verdict:
        """Judge by what the client can know: a killed session looks clean until it is used."""
        if conn.closed:
            return Verdict.SPENT
        if conn.busy:
            return Verdict.BROKEN
        if conn.failed:
            return Verdict.FAILED
        if conn.in_transaction:
            return Verdict.DIRTY
        return Verdict.CLEAN if conn.mode == baseline else Verdict.ALTERED

    def alive(self, conn: FakeConnection) -> bool:
        """Tell whether the server has closed its end."""
        return conn.alive

    def ping(self, conn: FakeConnection, limit: float | None) -> None:
        """Make a round trip."""
        self._round_trip(conn, Step.PING, limit)

    def idle_limit(self, conn: FakeConnection, limit: float | None) -> float | None:
        """Return the server's own limit."""
        return self.server.idle_limit

    def writable(self, conn: FakeConnection, limit: float | None) -> bool:
        """Ask the server whether it is the primary."""
        self._round_trip(conn, Step.WRITABLE, limit)
        return self.server.writable

    def begin(self, conn: FakeConnection) -> None:
        """Open a transaction."""
        self.server.wait(Step.BEGIN)
        conn.execute("begin")

    def commit(self, conn: FakeConnection) -> None:
        """Commit."""
        self.server.wait(Step.COMMIT)
        conn.commit()

    def rollback(self, conn: FakeConnection, limit: float | None) -> None:
        """Roll back."""
        self._round_trip(conn, Step.ROLLBACK, limit)
        conn.rollback()

    def restore(self, conn: FakeConnection, baseline: object, limit: float | None) -> None:
        """Put the mode back."""
        assert not conn.in_transaction, "restored in a transaction: that would have committed it"
        self._round_trip(conn, Step.RESTORE, limit)
        assert isinstance(baseline, str)
        conn.mode = baseline

    def send_reset(
        self,
        conn: FakeConnection,
        baseline: object,
        memory: object,
        parts: tuple[Part, ...],
        limit: float | None,
    ) -> object:
        """Put everything on its way back to what it was; the answer is outstanding."""
        assert isinstance(baseline, str)
        assert isinstance(memory, dict)
        conn.execute("rollback")
        conn.execute("reset")
        conn.in_transaction = False
        conn.mode = baseline
        conn.busy = True
        return memory

    def read_reset(self, conn: FakeConnection, token: object, limit: float | None) -> None:
        """Read the answer."""
        assert isinstance(token, dict)
        self._round_trip(conn, Step.READ_RESET, limit)
        conn.session = conn._before = token.copy()
        conn.busy = False

    def close(self, conn: FakeConnection, limit: float | None) -> None:
        """Close politely."""
        self.server.wait(Step.CLOSE)
        conn.close()

    def abort(self, conn: FakeConnection) -> None:
        """Close at once."""
        conn.close()

    def forget(self, conn: FakeConnection) -> None:
        """Leave the session to the parent process."""
        conn.closed = True

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Classify by the text, as real adapters sometimes must."""
        if "read-only" in str(exc):
            return Fault.DEMOTED
        if "password" in str(exc):
            return Fault.AUTH
        if "too many clients" in str(exc):
            return Fault.FULL
        return Fault.DEAD if isinstance(exc, FakeOperationalError) else Fault.ORDINARY

    def _round_trip(self, conn: FakeConnection, step: Step, limit: float | None) -> None:
        if not self.server.wait(step, limit):
            conn.busy = True
            raise FakeOperationalError(f"no answer to {step.value} within {limit:g} s")
        if conn.closed or not conn.alive:
            raise FakeOperationalError("server closed the connection unexpectedly")


class AsyncFakeAdapter:
    """The adapter of the fake driver for asyncio: the same server and sessions, and steps that are awaited.

    A step suspends its task for the server's latency, and at least once.  Where that is cut short by a
    cancellation, the session is in the middle of an exchange, and a dial leaves none.
    """

    name = "fake"
    bounded = True
    sees_transactions = True
    errors: Mapping[type[PoolError], type[PoolError]] = MappingProxyType({})

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self._twin = _Instant(server)  # what a step does; here is only how long it takes
        self.parts = self._twin.parts

    async def connect(
        self, limit: float | None, credentials: Mapping[str, Any] | None = None
    ) -> FakeConnection:
        """Open a session."""
        if not await self._pause(Step.CONNECT, limit):
            raise FakeOperationalError("connect timed out")
        return self._twin.connect(limit, credentials)

    def adopt(self, conn: FakeConnection) -> object:
        """Return the baseline: the mode at connect."""
        return self._twin.adopt(conn)

    async def remember(self, conn: FakeConnection, parts: tuple[Part, ...], limit: float | None) -> object:
        """Return what the session was told before it came here."""
        await self._round_trip(conn, Step.REMEMBER, limit)
        return self._twin.remember(conn, parts, limit)

    def verdict(self, conn: FakeConnection, baseline: object) -> Verdict:
        """Judge by what the client can know."""
        return FakeAdapter.verdict(self._twin, conn, baseline)

    def alive(self, conn: FakeConnection) -> bool:
        """Tell whether the server has closed its end."""
        return conn.alive

    async def ping(self, conn: FakeConnection, limit: float | None) -> None:
        """Make a round trip."""
        await self._round_trip(conn, Step.PING, limit)

    async def idle_limit(self, conn: FakeConnection, limit: float | None) -> float | None:
        """Return the server's own limit."""
        await self._round_trip(conn, Step.IDLE_LIMIT, limit)
        return self._twin.idle_limit(conn, limit)

    async def writable(self, conn: FakeConnection, limit: float | None) -> bool:
        """Ask the server whether it is the primary."""
        await self._round_trip(conn, Step.WRITABLE, limit)
        return self._twin.writable(conn, limit)

    async def begin(self, conn: FakeConnection) -> None:
        """Open a transaction."""
        await self._round_trip(conn, Step.BEGIN, None)
        self._twin.begin(conn)

    async def commit(self, conn: FakeConnection) -> None:
        """Commit."""
        await self._round_trip(conn, Step.COMMIT, None)
        self._twin.commit(conn)

    async def rollback(self, conn: FakeConnection, limit: float | None) -> None:
        """Roll back."""
        await self._round_trip(conn, Step.ROLLBACK, limit)
        self._twin.rollback(conn, limit)

    async def restore(self, conn: FakeConnection, baseline: object, limit: float | None) -> None:
        """Put the mode back."""
        await self._round_trip(conn, Step.RESTORE, limit)
        self._twin.restore(conn, baseline, limit)

    async def send_reset(
        self,
        conn: FakeConnection,
        baseline: object,
        memory: object,
        parts: tuple[Part, ...],
        limit: float | None,
    ) -> object:
        """Put everything on its way back to what it was; the answer is outstanding."""
        await self._round_trip(conn, Step.SEND_RESET, limit)
        return self._twin.send_reset(conn, baseline, memory, parts, limit)

    async def read_reset(self, conn: FakeConnection, token: object, limit: float | None) -> None:
        """Read the answer."""
        await self._round_trip(conn, Step.READ_RESET, limit)
        self._twin.read_reset(conn, token, limit)

    async def close(self, conn: FakeConnection, limit: float | None) -> None:
        """Close politely."""
        await self._pause(Step.CLOSE, limit)
        conn.close()

    def abort(self, conn: FakeConnection) -> None:
        """Close at once."""
        conn.close()

    def forget(self, conn: FakeConnection) -> None:
        """Leave the session to the parent process."""
        conn.closed = True

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Classify by the text, as real adapters sometimes must."""
        return self._twin.fault(exc, dialling=dialling)

    async def _pause(self, step: Step, limit: float | None) -> bool:
        import asyncio  # whoever awaits this has it loaded

        seconds = self.server.seconds(step)
        await asyncio.sleep(seconds if limit is None else min(seconds, limit))
        return limit is None or seconds <= limit

    async def _round_trip(self, conn: FakeConnection, step: Step, limit: float | None) -> None:
        outstanding, conn.busy = conn.busy, True
        if not await self._pause(step, limit):
            raise FakeOperationalError(f"no answer to {step.value} within {limit:g} s")
        conn.busy = outstanding
        if conn.closed or not conn.alive:
            raise FakeOperationalError("server closed the connection unexpectedly")


# -- the simulator -------------------------------------------------------------------------------------


class Cancelled(BaseException):
    """What a cancelled task of a simulation raises: no `Exception`, like asyncio's and Ctrl-C's."""


class _SimulatedWaiter(Waiter):
    """A task's place in the queue."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        super().__init__(self._wake)
        self.task: Task[Any] | None = None

    def _wake(self) -> None:
        if self.task is not None:
            self.task._soon()


class Task(Generic[R]):
    """A flow that a simulation runs."""

    def __init__(self, simulation: Simulation, flow: Flow[R], name: str) -> None:
        self.name = name
        self.done = False
        self.result: R | None = None
        self.error: BaseException | None = None
        self.callbacks: list[Callable[[Task[R]], None]] = []
        self._simulation = simulation
        self._flow = flow
        self._step = 0  # whatever was scheduled for an earlier step is void
        self._call: Call | None = None
        self._waiter: _SimulatedWaiter | None = None

    def cancel(self) -> None:
        """Throw `Cancelled` into the flow where it is suspended; harmless when it is done."""
        if self.done:
            return
        if self._call is not None:  # bytes are out, the answer will never be read
            for arg in self._call.args:
                if isinstance(arg, FakeConnection):
                    arg.busy = True
        self._resume(self._flow.throw, Cancelled())

    def _soon(self, delay: float = 0.0) -> None:
        step = self._step
        self._simulation.at(self._simulation.now + delay, lambda: self._wake(step))

    def _wake(self, step: int) -> None:
        if step == self._step and not self.done:
            call = self._call
            if call is None:
                self._resume(self._flow.send, None)
                return
            try:
                value = call.fn(*call.args)
            except Exception as exc:
                self._resume(self._flow.throw, exc)
            else:
                self._resume(self._flow.send, value)

    def _resume(self, resume: Callable[[Any], Any], value: Any) -> None:
        """Run the flow to its next operation that takes time."""
        simulation = self._simulation
        self._step += 1
        self._call = None
        if self._waiter is not None:
            self._waiter.task = None
            self._waiter = None
        try:
            while True:
                operation = resume(value)
                resume, value = self._flow.send, None
                if isinstance(operation, Start):
                    value = simulation._start(operation.flow)
                elif isinstance(operation, Call):
                    self._call = operation
                    self._soon(simulation.seconds(operation))
                    return
                elif isinstance(operation, Park):
                    self._park(operation)
                    return
                elif isinstance(operation, Report):
                    simulation.reports.append(operation.error)
                elif isinstance(operation, Tell):
                    simulation.told.append(operation.event.text)
                else:
                    simulation._watch(operation.at)
        except StopIteration as stop:
            result, error = stop.value, None
        except (Exception, Cancelled) as exc:
            result, error = None, exc
        self._end(result, error)  # outside: an error of a callback must not drag StopIteration along

    def _park(self, operation: Park) -> None:
        waiter = operation.waiter
        assert isinstance(waiter, _SimulatedWaiter)
        self._waiter, waiter.task = waiter, self
        if waiter.outcome is not None:
            self._soon()
        elif operation.deadline is not None:
            self._soon(max(0.0, operation.deadline - self._simulation.now))

    def _end(self, result: R | None, error: BaseException | None) -> None:
        self.done, self.result, self.error = True, result, error
        self._simulation.tasks.pop(self)
        if error is not None and self._simulation.core.owes():
            self._simulation.spawn(self._simulation.flows.follow_up(), "follow-up")
        for callback in self.callbacks:
            callback(self)


class FakePeople:
    """Borrowers that a test plays: who acts, where he stands, what he is called."""

    kind = "thread"

    def __init__(self) -> None:
        self.owner: object = "somebody"
        """Who acts now."""
        self.site: Site | None = None
        """Where he is."""
        self.inside: set[object] = set()
        """Who is inside the block he borrowed for."""
        self.ended: set[object] = set()
        """Whose thread has ended."""
        self.blocking = False
        """Whether an event loop waits with him."""

    def me(self) -> object:
        """Return who acts."""
        return self.owner

    def here(self) -> Site | None:
        """Return where he is."""
        return self.site

    def name(self, owner: object) -> str | None:
        """Return what somebody is called."""
        return None if owner in self.ended else str(owner)

    def stands(self, owner: object, code: CodeType | None, lasti: int) -> bool:
        """Tell whether somebody is inside his block."""
        return owner in self.inside

    def stack(self, owner: object) -> str:
        """Return what somebody is doing."""
        return f"the stack of {owner}"

    def where(self, site: Site) -> str:
        """Return a place as text."""
        code, lasti = site
        return f"{code.co_name}:{lasti}"

    def blocks(self) -> bool:
        """Tell whether an event loop waits with him."""
        return self.blocking


class Simulation:
    """One pool on a virtual clock; the seed decides the order of everything that is due at once.

    Args:
        seed: Equal seeds give equal schedules.
        server: The scripted server; its `sleep` is not used, its latencies are virtual.
        helpers: The probability that a helper can be had; without one, the caller does the work.
        jitter: Each latency is multiplied by an exponentially distributed number of mean 1.
        options: As `connpool.ConnectionPool`.
    """

    def __init__(
        self,
        seed: int,
        server: FakeServer,
        *,
        helpers: float = 1.0,
        jitter: bool = True,
        **options: Any,
    ) -> None:
        self.seed = seed
        self.random: Final = random.Random(seed)
        self.server = server
        self.now = 0.0
        self.slept = 0.0
        self.steps = 0
        self.lent: set[Entry[FakeConnection]] = set()
        self.reports: list[Exception] = []
        self.told: list[str] = []
        self.tasks: dict[Task[Any], None] = {}
        self.core: Core[FakeConnection] = Core(PoolOptions(**options))
        self.flows = Flows(
            self.core,
            _Instant(server),
            name=f"seed {seed}",
            clock=lambda: self.now,
            slept=lambda: self.slept,
            people=FakePeople(),
            chance=self.random.random,
            waiter=_SimulatedWaiter,
        )
        self._helpers = helpers
        self._jitter = jitter
        self._events: list[tuple[float, float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._watched: float | None = None

    # -- what a schedule is made of ------------------------------------------------------------------

    def at(self, instant: float, event: Callable[[], None]) -> None:
        """Have something happen at an instant; simultaneous events happen in random order."""
        heapq.heappush(self._events, (instant, self.random.random(), next(self._numbers), event))

    def spawn(self, flow: Flow[R], name: str) -> Task[R]:
        """Run a flow as a task of its own."""
        task = Task(self, flow, name)
        self.tasks[task] = None
        task._soon()
        return task

    def _enter(
        self, candidate: Entry[FakeConnection] | None, timeout: float | None, deadline: float | None
    ) -> Flow[Entry[FakeConnection]]:
        """Acquire as `ConnectionPool` does: who only has to wait does that without the flow."""
        flows = self.flows
        waiter = flows.waiter(None)
        try:
            if candidate is None and flows.just_waits(waiter):
                yield Park(waiter, deadline)
            found = flows.served(waiter)
            if found is None:
                flow, candidate = flows.acquire(candidate, timeout, deadline, waiter), None
                found = yield from flow
        except BaseException:
            flows.give_up(waiter)
            raise
        return found

    def acquire(self, timeout: float | None) -> Task[Entry[FakeConnection]]:
        """Acquire as a lease does: the warm path first, then the flow."""
        core, candidate = self.core, None
        if not core.waiters and core.idle:
            candidate = core.idle.pop()
        deadline = None if timeout is None else self.now + timeout
        task = self.spawn(self._enter(candidate, timeout, deadline), "acquire")
        del candidate

        def lend(task: Task[Entry[FakeConnection]]) -> None:
            if task.result is not None:
                assert task.result not in self.lent, "an entry has two owners"
                assert not task.result.conn.closed, "a closed connection was lent"
                assert not task.result.conn.busy, "a connection was lent in the middle of an exchange"
                assert not task.result.conn.in_transaction, "a connection was lent in a transaction"
                self.lent.add(task.result)

        task.callbacks.append(lend)
        return task

    def release(self, entry: Entry[FakeConnection], error: BaseException | None = None) -> Task[None]:
        """Release as a lease does when the connection is not clean."""
        self.lent.remove(entry)
        return self.spawn(self.flows.release(entry, error, "commit"), "release")

    def jump(self, seconds: float) -> None:
        """Let the clock jump, as when the process was stopped."""
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        """Suspend the machine: its clock stands still, and that of the server goes on."""
        self.slept += seconds

    def run(self, until: float = float("inf")) -> None:
        """Let everything happen that is scheduled, and check the invariants after each event."""
        while self._events and self._events[0][0] <= until:
            instant, _, _, event = heapq.heappop(self._events)
            self.now = max(self.now, instant)
            self.steps += 1
            event()
            self.check()

    # -- what must always be true --------------------------------------------------------------------

    def check(self) -> None:
        """Verify the invariants at the top of `connpool.engine.core`."""
        core = self.core
        tickets = [waiter.ticket or 0 for waiter in core.waiters if waiter is not core._gate]
        assert tickets == sorted(tickets), "the queue is out of order"
        live = [waiter for waiter in core.waiters if waiter.outcome is None and waiter is not core._gate]
        assert core.suspended or not (core.idle and live), "an idle entry and a live waiter coexist"
        assert not (core.closed and live), "a closed pool lets somebody wait"
        assert core.opening.keys() <= core.slots.keys(), "a dial without a place"
        idle = list(core.idle)
        assert len(set(idle)) == len(idle), "an entry is idle twice"
        assert not self.lent & set(idle), "an entry is idle and lent"
        assert all(entry.slot in core.slots for entry in idle), "an idle entry without a place"
        for slot in core.slots:
            ref = slot.entry_ref
            assert ref is None or ref() is not None or ref in core.lost, "a lost entry went unreported"

    def check_at_rest(self) -> None:
        """Verify what must hold when nothing is left to happen and everything was given back."""
        core = self.core
        stats = core.snapshot("simulation", self.now)
        assert not self.tasks, f"stuck: {[task.name for task in self.tasks]}"
        assert not core.waiters or core.closed, "somebody waits for ever"
        assert not core.debris, "a discarded connection was never closed"
        assert stats.size == stats.idle == len(core.idle), f"a place was lost: {stats}"
        assert stats.size <= core.max_size, f"too many connections: {stats}"
        alive = {conn for conn in self.server.sessions if not conn.closed}
        known = {entry.conn for entry in core.idle}
        assert alive <= known, f"the server has sessions that the pool does not know: {alive - known}"
        assert stats.opened - sum(stats.discards.values()) == stats.size, f"figures do not add up: {stats}"
        assert stats.acquires == stats.releases + stats.in_use, f"figures do not add up: {stats}"

    # -- the runtime ---------------------------------------------------------------------------------

    def seconds(self, call: Call) -> float:
        """Return how long a call takes in this schedule, at most the limit it was given."""
        return self.server.seconds(call.step) * (self.random.expovariate(1.0) if self._jitter else 1.0)

    def _start(self, flow: Flow[None]) -> bool:
        if self._helpers < 1.0 and self.random.random() >= self._helpers:
            # Whoever does it here instead stops when it is served; parked threads look after the rest.
            self.at(self.now + LOOK_EVERY, self._look)
            return False
        self.spawn(flow, "helper")
        return True

    def _look(self) -> None:
        self.spawn(self.flows.follow_up(), "look")
        if self.core.waiters and not self.core.closed:
            self.at(self.now + LOOK_EVERY, self._look)

    def _watch(self, instant: float | None) -> None:
        if instant is None:
            if self.core.closed:  # else somebody may just have given a duty, as with the housekeeper
                self._watched = None
        elif self._watched is None or instant < self._watched:
            self._watched = instant
            self.at(instant, lambda: self._upkeep(instant))

    def _upkeep(self, instant: float) -> None:
        if instant == self._watched:
            self._watched = None
            self.spawn(self.flows.upkeep(), "upkeep")


class _Instant(FakeAdapter):
    """The fake adapter of a simulation, which itself makes steps take their time."""

    def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> FakeConnection:
        return self.server.accept(credentials)

    def begin(self, conn: FakeConnection) -> None:
        conn.execute("begin")

    def commit(self, conn: FakeConnection) -> None:
        conn.commit()

    def close(self, conn: FakeConnection, limit: float | None) -> None:
        conn.close()

    def _round_trip(self, conn: FakeConnection, step: Step, limit: float | None) -> None:
        if conn.closed or not conn.alive:
            raise FakeOperationalError("server closed the connection unexpectedly")
