"""An exception at every bytecode: what is the pool worth afterwards?

Ctrl-C, a signal handler, `gevent.Timeout`, `PyThreadState_SetAsyncExc` can raise in the middle of anything.
A `Bench` sets the stage, a deed is done, and an `Interrupt` is raised at its first bytecode inside the
package; then all over again at its second, and so on, until the deed comes through.  After each:

* the lock is free, and nobody is left in the queue,
* `max_size` connections can be lent at the same time, all different, none closed,
* when they are back, the figures add up and the server has the sessions that the pool knows.

CPython 3.11 to 3.13 raises only where it looks whether there is a reason to: at the beginning of a function,
behind a call, at a jump backward.  At all these places all of that holds, as soon as the exception and its
traceback are dropped, and without a garbage collection.  At every bytecode, which is more than any
interrupt can reach (see `everywhere` for the few that are left out), the first two hold, at the latest after
a collection; the figures may be off by one, because a count and what it counts are two steps.

What was interrupted may be half done: `resize` and `close` are called again first.

The clock moves only while somebody parks.  Dials and closings happen in the thread that asks for them, so
they are interrupted as well; what starts threads is left to the last test, which interrupts real ones.
"""

from __future__ import annotations

import ctypes
import dis
import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import CodeType, FrameType
from typing import Any, Final

import pytest
from engine.explorer import Clock, NoHousekeeper, each_bytecode
from garbage import keep_out_of_collections

import connpool.deadlines
import connpool.leases
import connpool.pool
import connpool.threads
from connpool import ConnectionPool, PoolClosed, PoolError
from connpool.engine.records import Entry, Waiter
from connpool.engine.upkeep import CLOSE_GRACE
from connpool.leases import Lease
from connpool.testing import FakeAdapter, FakeConnection, FakeError, FakeServer
from connpool.threads import LOOK_EVERY, Helpers, Housekeeper

# CPython 3.12 crashes when several threads trace bytecodes; 3.13 raises in other places.
pytestmark = [
    # An interrupt may cost a connection, which is told like any other that was lost.
    pytest.mark.filterwarnings("ignore:pool .* was lost without being given back:ResourceWarning"),
    pytest.mark.bytecode,
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="bytecodes are traced on CPython 3.11"),
]

LOOKS: Final = frozenset({"CALL", "CALL_FUNCTION_EX", "CALL_KW", "RESUME"})
"""Behind these bytecodes CPython raises what a signal handler or another thread has sent."""


@cache
def where_interrupts_strike(code: CodeType) -> frozenset[int]:
    """Return the offsets in a function at which an asynchronous exception can be raised."""
    spots: set[int] = set()
    before = ""
    for instruction in dis.get_instructions(code):
        if before in LOOKS:
            spots.add(instruction.offset)
        if instruction.opname.startswith("JUMP_BACKWARD"):
            spots.add(instruction.argval)
        before = instruction.opname
    return frozenset(spots)


EPILOGUE: Final = frozenset(
    [
        "COPY",
        "DELETE_FAST",
        "LOAD_CONST",
        "POP_EXCEPT",
        "RERAISE",
        "RETURN_CONST",
        "RETURN_VALUE",
        "STORE_FAST",
        "SWAP",
    ]
)


@cache
def everywhere(code: CodeType) -> frozenset[int]:
    """Return the offsets of all bytecodes in a function, but for those with which ``except`` blocks end.

    An exception that is raised in the middle of those makes CPython lose count of the exceptions that
    are being handled: one of them, and all that its traceback holds, stays alive.  Nothing but a trace
    function can raise there.
    """
    spots: set[int] = set()
    handled = False
    for instruction in dis.get_instructions(code):
        handled = instruction.opname in EPILOGUE and (handled or instruction.opname == "POP_EXCEPT")
        if not handled:
            spots.add(instruction.offset)
    return frozenset(
        spots
        - {offset for start, end, line in code.co_lines() if line is None for offset in range(start, end)}
    )


class Interrupt(BaseException):
    """What strikes."""


# -- the bench -----------------------------------------------------------------------------------------------


class Bench:
    """A pool on a clock of its own, to be interrupted once."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.server = FakeServer()
        options = {"max_size": 2, "idle_timeout": None, "max_lifetime": None, **options}
        self.pool: ConnectionPool[FakeConnection] = ConnectionPool(FakeAdapter(self.server), **options)
        self.pool._runner.inline = True
        self.pool._flows._waiter = lambda: BenchWaiter(self)
        self.core = self.pool._core
        self.when_parked: Callable[[], object] | None = None  # somebody else's deed
        self.again: Callable[[], object] | None = None  # brings to an end what was interrupted
        self.spot = ""
        self._quiet = False

    # -- setting the stage

    def lent(self) -> Lease[FakeConnection]:
        """Return a lease that holds a connection."""
        lease = self.pool.connection()
        lease.__enter__()
        return lease

    def warm(self, count: int = 1) -> None:
        """Have so many idle connections."""
        for lease in [self.lent() for _ in range(count)]:
            lease.__exit__(None, None, None)

    def park(self, waiter: BenchWaiter, deadline: float | None) -> None:
        """Let somebody else act, once, while the interrupted thread is parked; else let time pass."""
        if waiter.woken:
            return
        if self.when_parked is not None:
            act, self.when_parked = self.when_parked, None
            self._quiet = True
            try:
                act()
            finally:
                self._quiet = False
        else:
            assert deadline is not None, "parked for ever"
            self.clock.now = min(self.clock.now + LOOK_EVERY, deadline)

    # -- striking

    def strike(self, deed: Callable[[], object], at: int, *, every: bool) -> bool:
        """Do it, and raise at one bytecode; return False if it was done before."""
        left = at

        def step(frame: FrameType) -> None:
            nonlocal left
            if self._quiet:
                return
            left -= 1
            if left == -1:
                self.spot = f"{frame.f_code.co_qualname}, line {frame.f_lineno}, offset {frame.f_lasti}"
                raise Interrupt

        with each_bytecode(step, everywhere if every else where_interrupts_strike):
            try:
                deed()
            except Interrupt:
                pass
        return left < 0

    # -- checking

    def check(self, *, figures: bool) -> None:
        """Check what is promised after an interrupt."""
        core, pool = self.core, self.pool
        self.when_parked = None
        assert not core.inside(), "the lock was not released"
        if self.again is not None:
            self.again()
        if core.closed:
            with pytest.raises(PoolClosed):
                self.lent()
            self._keep_house()
            assert not core.slots, "a connection was not closed"
            assert not self.server.sessions, "a session survived the pool"
            return
        leases = [pool.connection(2.0) for _ in range(core.max_size)]
        conns = [lease.__enter__() for lease in leases]
        assert len(set(conns)) == len(conns), "a connection has two borrowers"
        assert not any(conn.closed for conn in conns), "a closed connection was lent"
        for lease in leases:
            lease.__exit__(None, None, None)
        self._keep_house()
        stats = pool.stats()
        assert not core.waiters, "somebody was left in the queue"
        assert not core.debris, "a connection was not closed"
        assert stats.size == stats.idle == core.max_size == len(core.idle), f"a place was lost: {stats}"
        assert set(self.server.sessions) == {entry.conn for entry in core.idle}, "a session was not closed"
        if figures:
            opened = stats.size + sum(stats.discards.values())
            assert stats.opened == opened, f"the figures do not add up: {stats}"
            assert stats.dials == stats.opened + stats.dial_failures, f"the figures do not add up: {stats}"
            assert stats.acquires == stats.releases, f"the figures do not add up: {stats}"

    def _keep_house(self) -> None:
        """Do what the housekeeper does after a while: what was lost or cut short is closed by then."""
        self.clock.now += CLOSE_GRACE
        self.pool._runner.upkeep()


class BenchWaiter(Waiter):
    """A place in the queue; the thread that parks here is the only one there is."""

    __slots__ = ("_bench", "woken")

    def __init__(self, bench: Bench) -> None:
        super().__init__(self._wake)
        self._bench = bench
        self.woken = False

    def _wake(self) -> None:
        self.woken = True

    def park(self, deadline: float | None) -> None:
        self._bench.park(self, deadline)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Let nothing happen by itself: no time, no housekeeper, no collection."""
    clock = Clock()
    monkeypatch.setattr(connpool.pool, "clock", clock)
    monkeypatch.setattr(connpool.leases, "clock", clock)
    monkeypatch.setattr(connpool.deadlines, "clock", clock)
    monkeypatch.setattr(connpool.threads, "housekeeper", NoHousekeeper())
    keep_out_of_collections()
    gc.disable()
    yield clock
    gc.enable()
    gc.collect()


def holds(bench: Bench) -> bool:
    """Tell whether nothing is lost, without a collection."""
    try:
        bench.check(figures=False)
    except (AssertionError, PoolError):
        return False
    return True


def strike_everywhere(deed: Deed, clock: Clock, *, every: bool, **options: Any) -> int:
    """Do the deed until it comes through, interrupted each time one bytecode later; return how often."""
    strikes = 0
    while True:
        bench = Bench(clock, **options)
        act = deed(bench)
        struck = bench.strike(act, strikes, every=every)
        del act  # it may hold what the interrupted thread held
        try:
            if not every:
                bench.check(figures=True)
            elif not holds(bench):
                gc.collect()
                bench.check(figures=False)
        except BaseException as exc:
            bench.core.closed = True  # let nobody try to close what is broken
            exc.add_note(f"struck at {bench.spot}")
            raise
        bench.pool.close(0)
        del bench.pool  # it knows the bench
        if not struck:
            return strikes
        strikes += 1
        if not strikes % 2000:
            gc.collect()


# -- deeds -------------------------------------------------------------------------------------------------

Deed = Callable[[Bench], Callable[[], object]]


def borrow(bench: Bench) -> Callable[[], object]:
    """Borrow and give back."""

    def deed() -> None:
        with bench.pool.connection():
            pass

    return deed


def borrow_warm(bench: Bench) -> Callable[[], object]:
    bench.warm()
    return borrow(bench)


def borrow_and_write(bench: Bench) -> Callable[[], object]:
    """Leave a transaction open that is committed."""
    bench.warm()

    def deed() -> None:
        with bench.pool.connection() as conn:
            conn.execute("write")

    return deed


def borrow_and_fail(bench: Bench) -> Callable[[], object]:
    """Leave by an exception: the transaction is rolled back."""
    bench.warm()

    def deed() -> None:
        with pytest.raises(FakeError), bench.pool.connection() as conn:
            conn.execute("fail")

    return deed


def borrow_and_hide_failure(bench: Bench) -> Callable[[], object]:
    """Leave a failed transaction without an exception: it is refused and rolled back."""
    bench.warm()

    def deed() -> None:
        with pytest.raises(PoolError), bench.pool.connection() as conn:
            with pytest.raises(FakeError):
                conn.execute("fail")

    return deed


def borrow_transaction(bench: Bench) -> Callable[[], object]:
    bench.warm()

    def deed() -> None:
        with bench.pool.transaction():
            pass

    return deed


def borrow_after_waiting(bench: Bench) -> Callable[[], object]:
    """Wait until another thread gives back the only connection."""
    lease = bench.lent()
    bench.when_parked = lambda: lease.__exit__(None, None, None)
    return borrow(bench)


def wait_in_vain(bench: Bench) -> Callable[[], object]:
    lease = bench.lent()

    def deed() -> None:
        with pytest.raises(PoolError):
            with bench.pool.connection(0.5):
                pass
        lease.__exit__(None, None, None)

    return deed


def borrow_dead(bench: Bench) -> Callable[[], object]:
    """Come upon an idle connection that the server has closed."""
    bench.warm()
    bench.clock.now += 40.0
    bench.server.kill_sessions()
    return borrow(bench)


def borrow_pinged(bench: Bench) -> Callable[[], object]:
    bench.warm()
    bench.clock.now += 40.0
    return borrow(bench)


def give_back_doomed(bench: Bench) -> Callable[[], object]:
    lease = bench.lent()
    bench.pool.evict()
    return lambda: lease.__exit__(None, None, None)


def give_back_closed(bench: Bench) -> Callable[[], object]:
    bench.warm()

    def deed() -> None:
        with bench.pool.connection() as conn:
            conn.close()

    return deed


def acquire_and_release(bench: Bench) -> Callable[[], object]:
    bench.warm()
    return lambda: bench.pool.release(bench.pool.acquire())


def acquire_and_drop(bench: Bench) -> Callable[[], object]:
    bench.warm()
    return lambda: bench.pool.acquire() and None


def acquire_and_detach(bench: Bench) -> Callable[[], object]:
    bench.warm()
    return lambda: bench.pool.detach(bench.pool.acquire()).close()


def borrow_and_detach(bench: Bench) -> Callable[[], object]:
    bench.warm()

    def deed() -> None:
        with bench.pool.connection() as conn:
            bench.pool.detach(conn).close()

    return deed


def evict(bench: Bench) -> Callable[[], object]:
    bench.warm(2)
    return bench.pool.evict


def resize(bench: Bench) -> Callable[[], object]:
    bench.warm(2)
    bench.again = lambda: bench.pool.resize(max_size=1)
    return bench.again


def prune(bench: Bench) -> Callable[[], object]:
    bench.warm(2)
    bench.clock.now += 10000.0
    return bench.pool._runner.upkeep


def close(bench: Bench) -> Callable[[], object]:
    bench.warm(2)
    bench.again = lambda: bench.pool.close(0)
    return bench.again


def stats(bench: Bench) -> Callable[[], object]:
    bench.warm(2)
    return bench.pool.stats


def borrow_twice(bench: Bench) -> Callable[[], object]:
    """Leave a reset whose answer the next borrower reads, and be the next borrower."""
    bench.warm()

    def deed() -> None:
        for _ in range(2):
            with bench.pool.connection():
                pass

    return deed


def wait_ready(bench: Bench) -> Callable[[], object]:
    return bench.pool.wait_ready


# -- tests -------------------------------------------------------------------------------------------------

ONE: dict[str, Any] = {"max_size": 1}
FULL: dict[str, Any] = {"reset": "full"}
HOOKS: dict[str, Any] = {
    "reset": ["unlock", lambda conn: conn.execute("set tenant nobody")],
    "on_connect": lambda conn: conn.execute("set role app"),
    "on_acquire": lambda conn: conn.execute("set tenant somebody"),
    "on_release": lambda conn: None,
    "on_close": lambda conn: None,
}


@pytest.mark.parametrize(
    ("deed", "options", "at_least"),
    [
        (borrow, {}, 200),
        (borrow_warm, {}, 8),
        (borrow_and_write, {}, 64),
        (borrow_and_fail, {}, 61),
        (borrow_and_hide_failure, {}, 81),
        (borrow_transaction, {}, 88),
        (borrow_after_waiting, ONE, 63),
        (wait_in_vain, ONE, 140),
        (borrow_dead, {}, 360),
        (borrow_pinged, {}, 49),
        (give_back_doomed, {}, 150),
        (give_back_closed, {}, 160),
        (acquire_and_release, {}, 21),
        (acquire_and_drop, {}, 8),
        (acquire_and_detach, {}, 110),
        (borrow_and_detach, {}, 120),
        (evict, {}, 240),
        (resize, {}, 230),
        (prune, {"idle_timeout": 5.0}, 220),
        (close, {}, 260),
        (stats, {}, 110),
        (wait_ready, {}, 240),
        (borrow, FULL, 260),
        (borrow_twice, FULL, 230),
        (borrow_and_fail, FULL, 110),
        (borrow_twice, HOOKS, 600),
        (borrow_and_write, HOOKS, 310),
        (give_back_doomed, HOOKS, 190),
        (evict, HOOKS, 230),
    ],
)
def test_nothing_is_lost_wherever_an_interrupt_can_strike(
    deed: Deed, options: dict[str, Any], at_least: int, clock: Clock
) -> None:
    assert strike_everywhere(deed, clock, every=False, **options) >= at_least


@pytest.mark.parametrize(
    ("deed", "options", "at_least"),
    [
        (borrow, {}, 1400),
        (borrow_warm, {}, 100),
        (borrow_and_write, {}, 460),
        (borrow_and_fail, {}, 440),
        (borrow_and_hide_failure, {}, 580),
        (borrow_transaction, {}, 580),
        (borrow_after_waiting, ONE, 500),
        (borrow_pinged, {}, 420),
        (give_back_doomed, {}, 1000),
        (acquire_and_release, {}, 210),
        (acquire_and_drop, {}, 85),
        (acquire_and_detach, {}, 830),
        (evict, {}, 1500),
        (resize, {}, 1800),
        (close, {}, 1700),
        (stats, {}, 830),
        (borrow_twice, FULL, 1700),
        (borrow_warm, HOOKS, 1900),
        (evict, HOOKS, 1500),
    ],
)
def test_no_place_is_lost_whatever_bytecode_raises(
    deed: Deed, options: dict[str, Any], at_least: int, clock: Clock
) -> None:
    assert strike_everywhere(deed, clock, every=True, **options) >= at_least


def test_interrupted_releaser_leaves_nobody_parked_beside_an_idle_connection(clock: Clock) -> None:
    """Warm, at every bytecode.  Then the parked thread looks around by itself, and is served."""
    strikes = 0
    struck = True
    while struck:
        bench = Bench(clock, max_size=1)
        lease, waiter = bench.lent(), BenchWaiter(bench)
        bench.core.queue(waiter)
        act = partial(lease.__exit__, None, None, None)
        del lease
        struck = bench.strike(act, strikes, every=True)
        del act
        assert not bench.core.inside(), f"the lock was not released: {bench.spot}"
        assert waiter.outcome is not None or not bench.core.idle, f"lost wake-up: {bench.spot}"
        bench.pool._follow_up()
        assert isinstance(waiter.outcome, Entry), f"nobody serves the waiter: {bench.spot}"
        bench.core.give(waiter.outcome)
        del waiter
        bench.check(figures=False)
        strikes += 1
    assert strikes > 180


# -- real threads ------------------------------------------------------------------------------------------


def interrupt(thread: threading.Thread) -> None:
    """Raise `Interrupt` in another thread, wherever it is."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Interrupt))


@pytest.fixture
def untraced_threads() -> Iterator[None]:
    """Let new threads have no tracer: coverage's own locks do not survive an interrupt."""
    tracer = threading.gettrace()
    threading.settrace(None)  # type: ignore[arg-type] # typeshed does not know that it may be None
    yield
    threading.settrace(tracer)  # type: ignore[arg-type] # as above


@pytest.mark.stress
@pytest.mark.usefixtures("untraced_threads")
@pytest.mark.parametrize("how", ["with", "acquire and release"])
def test_two_thousand_interrupts_cost_no_place(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads borrow from two places and are struck all the time, by the interpreter itself."""
    # Nobody helps: a thread that is being started carries the number of the one that starts it, for a
    # moment, and CPython throws into it what was meant for that one: `Thread.start` then waits for ever.
    monkeypatch.setattr(connpool.threads, "helpers", Helpers())
    monkeypatch.setattr(connpool.threads.helpers, "start", lambda job: False)
    monkeypatch.setattr(connpool.threads, "housekeeper", Housekeeper())
    pool = ConnectionPool(FakeAdapter(FakeServer()), max_size=2, acquire_timeout=10.0, idle_timeout=60.0)
    done, draw = threading.Event(), random.Random(how)
    hits: list[int] = []  # appended to, because += is not atomic
    failures: list[BaseException] = []

    def borrow() -> None:
        for _ in range(200):
            if how == "with":
                with pool.connection():
                    pass
            else:
                pool.release(pool.acquire())

    def work() -> None:
        try:
            while not done.is_set():
                try:
                    try:
                        borrow()
                    except Interrupt:
                        hits.append(1)
                except Interrupt:
                    hits.append(1)
        except Interrupt:
            hits.append(1)  # between the two: the thread ends, and another takes its place
        except BaseException as exc:
            failures.append(exc)

    threads: list[threading.Thread] = []
    ends = time.monotonic() + 60.0
    while len(hits) < 1000 and not failures and time.monotonic() < ends:
        threads = [thread for thread in threads if thread.is_alive()]
        while len(threads) < 4:
            threads.append(threading.Thread(target=work, daemon=True))
            threads[-1].start()
        time.sleep(draw.random() * 0.002)
        interrupt(draw.choice(threads))
    done.set()
    for thread in threads:
        thread.join(20.0)
    assert not failures, repr(failures[0])
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    assert len(hits) >= 1000, f"only {len(hits)} interrupts"
    gc.collect()  # tracebacks of others may be garbage in cycles
    for _ in range(3):
        conns = [pool.acquire(5.0) for _ in range(2)]
        assert len(set(conns)) == 2, "a connection has two borrowers"
        for conn in conns:
            pool.release(conn)
    assert pool._core.lock.acquire(timeout=5.0), "the lock was never released"
    pool._core.lock.release()
    pool.close()
    assert not pool._core.slots
