"""The slow paths, each written once, as generators.

A flow decides and yields operations; a runtime executes them and resumes it with the result or the
exception.  Threads, asyncio tasks and the simulator run the same flows, so what is simulated is what
runs in production.  A flow knows no thread, no event loop and no driver.

Rules for a flow
----------------
* It changes state only through transitions of the core, and holds an entry in a local variable only as
  long as it owns it.
* It may be ended at any yield by any exception, and may be closed there (`GeneratorExit`).  Its clean-up
  therefore never yields: what is left to do goes to the core, where whoever comes next finds it
  (`follow_up`).
* A failing step of the pool's own closes the connection and never replaces the user's exception.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextvars import Context
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, NoReturn, TypeAlias, TypeGuard, TypeVar

from ..adapter import Adapter, Fault, Verdict, adapter_for
from ..errors import PoolClosed, PoolError, PoolMisuse, PoolOverloaded, PoolTimeout, PoolUnavailable
from . import upkeep
from .core import Core
from .records import Entry, Refusal, Slot, Waiter, Watcher
from .stats import Reason

C = TypeVar("C")
R = TypeVar("R")


# -- operations --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Park:
    """Sleep until the waiter is woken, or the deadline has passed, or for no reason at all."""

    waiter: Waiter
    deadline: float | None


class Step(Enum):
    """What a `Call` is for: the simulator gives each its own latency and faults."""

    CONNECT = "connect"
    ADOPT = "adopt"
    ON_CONNECT = "on_connect"
    PING = "ping"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    CLOSE = "close"


class Call:
    """Call something that may take long or leave the pool: a driver, a hook."""

    __slots__ = ("args", "fn", "step")

    def __init__(self, step: Step, fn: Callable[..., object], *args: object) -> None:
        self.step = step
        self.fn = fn
        self.args = args


@dataclass(slots=True)
class Start:
    """Run a flow elsewhere; resumed with False if there is nobody to run it, and then it is ours."""

    flow: Flow[None]


@dataclass(slots=True)
class Watch:
    """See to it that `Flows.upkeep` runs at an instant; ``None``: never."""

    at: float | None


Operation: TypeAlias = Park | Call | Start | Watch
Flow: TypeAlias = Generator[Operation, Any, R]

Ending: TypeAlias = Literal["commit", "rollback"]
"""What becomes of a transaction that is still open when its borrower is done without an exception."""


# -- flows -------------------------------------------------------------------------------------------


class Flows(Generic[C]):
    """The slow paths of one pool."""

    def __init__(
        self,
        core: Core[C],
        source: Adapter[C] | Callable[[], C] | object,
        *,
        name: str,
        clock: Callable[[], float],
        chance: Callable[[], float],
        waiter: Callable[[], Waiter],
    ) -> None:
        self.core = core
        self.name = name
        self.adapter: Adapter[C] | None = None
        self._clock = clock
        self._chance = chance
        self._waiter = waiter
        self._connect: Callable[[], C] | None = None
        options = core.options
        self.look_after = upkeep.first_look(options.probe_after, options.ping_after, options.max_lifetime)
        if _is_adapter(source):
            self._settle(source)
        elif callable(source) and not hasattr(source, "commit") and not hasattr(source, "verdict"):
            self._connect = source  # its first connection, or its first exception, names the driver
        else:
            kind = (
                f"the class {source.__name__}" if isinstance(source, type) else f"a {type(source).__name__}"
            )
            url = "; for a URL there is connpool.create_pool()" if isinstance(source, str) else ""
            raise TypeError(
                f"a pool needs an adapter, or a callable that returns a connection; got {kind}{url}"
            )

    # -- acquire -------------------------------------------------------------------------------------

    def acquire(
        self, candidate: Entry[C] | None, timeout: float | None, deadline: float | None
    ) -> Flow[Entry[C]]:
        """Come by an entry that is fit to be lent; *candidate* is one to look at first.

        *timeout* is what the caller asked for, *deadline* the instant that follows from it.  A caller
        whose candidate turns out to be dead keeps its place in line.
        """
        core = self.core
        began = self._clock()
        waiter = self._waiter()
        entry, candidate = candidate, None
        try:
            if entry is not None:
                core.number(waiter)  # its place in line counts from now
            while True:
                if entry is None:
                    entry = yield from self._queued(waiter, began, timeout, deadline)
                reason = yield from self._check(entry, deadline)
                if reason is None:
                    entry.lent_at = self._clock()
                    return entry
                core.retire(entry, reason, self._clock())
                entry = None
                if core.owes():
                    yield from self.follow_up(waiter, deadline)
                waiter = self._again(waiter)
        except BaseException:
            self._give_up(waiter, entry)
            raise

    def _give_up(self, waiter: Waiter, entry: Entry[C] | None) -> None:
        """Leave an acquire that was struck by an exception, whatever it had got hold of."""
        # Whoever has left already is in no queue; to look for it there would cost the queue's length.
        delivered = None if waiter.outcome is Refusal.LEFT else self.core.leave(waiter)
        if entry is not None:
            self.core.retire(entry, Reason.BROKEN, self._clock())  # in the middle of a check
        elif isinstance(delivered, Entry):
            self.core.give(delivered)  # at the moment of the hand-over

    def _again(self, waiter: Waiter) -> Waiter:
        """Return a new waiter with the place in line of another, whose outcome was no good."""
        twin = self._waiter()
        twin.ticket = waiter.ticket
        return twin

    def _queued(
        self, waiter: Waiter, began: float, timeout: float | None, deadline: float | None
    ) -> Flow[Entry[C]]:
        """Queue, and wait for an entry or for the reason why there is none."""
        core = self.core
        outcome = core.queue(waiter)
        queued, looking = outcome is None, False
        while outcome is None:
            if core.owes() or looking:
                yield from self.follow_up(waiter, deadline)
            if waiter.outcome is None:
                if deadline is not None and self._clock() >= deadline:
                    outcome = core.leave(waiter, timed_out=True)
                    break
                yield Park(waiter, deadline)
                if waiter.outcome is None:
                    # The deadline, or one of the looks that a parked thread takes by itself.
                    core.rematch(None)
                    looking = bool(core.opening or core.closing)  # one of them may be overdue
            outcome = waiter.outcome
        waiter.outcome = Refusal.LEFT  # a traceback may keep the waiter, but not what it was given
        waited = self._clock() - began
        if queued:
            core.waits.append(waited)
        if not isinstance(outcome, Entry):
            self._refuse(outcome, waited, timeout)
        entry: Entry[C] = outcome
        return entry

    def _check(self, entry: Entry[C], deadline: float | None) -> Flow[Reason | None]:
        """Return why an entry must not be lent, or ``None``; the cheapest question comes first."""
        now = self._clock()
        if entry.doomed:
            return entry.doomed
        fresh = now < entry.check_at
        # An alarm is not about connections that were opened since and never lent: a driver whose new
        # sockets are readable would never lend anything again.
        if fresh and (now >= self.core.alarmed_until or not entry.lent_at):
            return None
        if now >= entry.expires:
            return Reason.LIFETIME
        options, adapter = self.core.options, self._adapter()
        idle = now - entry.idle_since
        left = None if deadline is None else deadline - now
        hurried = False
        entry.slot.validating = True
        try:
            look = options.probe_after is not None and (fresh or idle >= options.probe_after)
            if look and not adapter.alive(entry.conn):
                return Reason.DEAD
            # With no time left the probe has to do: to fail beside an idle connection would help nobody.
            if options.ping_after is not None and idle >= options.ping_after and (left is None or left > 0):
                limit = upkeep.step_limit(left, options.reset_timeout)
                hurried = limit != options.reset_timeout
                yield Call(Step.PING, adapter.ping, entry.conn, limit)
        except Exception:
            # The count of discards tells; the caller gets another connection.  It proves no death that
            # there was less time for the answer than a healthy server may take.
            return Reason.UNANSWERED if hurried else Reason.DEAD
        finally:
            entry.slot.validating = False
        return None

    # -- the return path -----------------------------------------------------------------------------

    def release(self, entry: Entry[C], error: BaseException | None, ending: Ending) -> Flow[None]:
        """Take an entry back: verdict, commit or rollback, age, then the next waiter or idle.

        *error* is the exception that ended the borrower's block; nothing of ours replaces it.
        """
        core, adapter = self.core, self._adapter()
        if entry.doomed is Reason.DETACHED:
            return
        held = self._clock() - entry.lent_at
        failure: Exception | None = None
        try:
            verdict = adapter.verdict(entry.conn, entry.baseline)
            if ending == "commit" and error is None and verdict in _OPEN:
                failure = yield from self._commit(entry.conn, adapter, verdict)
                if failure is None:
                    verdict = self._settled(entry, adapter)
                else:  # the borrower's; the connection is still ours
                    verdict = adapter.verdict(entry.conn, entry.baseline)
            reason = yield from self._reset(entry, adapter, verdict)
        except BaseException:
            entry.holds.append(held)
            core.retire(entry, Reason.BROKEN, self._clock())
            raise
        entry.holds.append(held)  # it counts as released from here on, no sooner
        if reason is None and len(entry.holds) >= entry.batch:
            core.fold(entry)
            reason = entry.doomed
        if reason is None:
            core.give(entry)
        else:
            core.retire(entry, reason, self._clock())
        del entry
        if core.owes():
            yield from self.follow_up()
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # else the traceback and this frame would keep each other alive

    def begin(self, conn: C) -> Flow[None]:
        """Open a transaction for a borrower."""
        yield Call(Step.BEGIN, self._adapter().begin, conn)

    def _commit(self, conn: C, adapter: Adapter[C], verdict: Verdict) -> Flow[Exception | None]:
        """Commit what the borrower left open, or refuse what cannot be committed; return the error.

        It gets no entry, and its error is not raised through a frame that has one: the error goes to the
        borrower, and its traceback would own the entry.
        """
        if verdict == Verdict.FAILED:
            return self._error(
                PoolMisuse,
                "the transaction has failed and was rolled back, but its block ended without an exception: "
                "a statement's error was caught inside it",
            )
        try:
            yield Call(Step.COMMIT, adapter.commit, conn)
        except Exception as exc:
            return exc
        return None

    def _reset(self, entry: Entry[C], adapter: Adapter[C], verdict: Verdict) -> Flow[Reason | None]:
        """Make an entry fit for the next borrower; return why that failed, or ``None``."""
        options = self.core.options
        if verdict in _OPEN:
            self.core.totals.rollbacks += 1
            try:
                yield Call(Step.ROLLBACK, adapter.rollback, entry.conn, options.reset_timeout)
            except Exception:
                return Reason.RESET_FAILED  # counted; the borrower is done and owes nothing
            verdict = self._settled(entry, adapter)
        if verdict != Verdict.CLEAN:
            return Reason.BROKEN
        now = self._clock()
        if entry.doomed:
            return entry.doomed
        if now >= entry.expires:
            return Reason.LIFETIME
        self._rest(entry, now, self.look_after)
        return None

    def _rest(self, entry: Entry[C], now: float, look_after: float) -> None:
        """Note that an entry is idle from *now* on, and needs no closer look for so many seconds."""
        entry.idle_since = now
        entry.check_at = min(now + look_after, entry.expires)

    def _settled(self, entry: Entry[C], adapter: Adapter[C]) -> Verdict:
        """Return the verdict after a COMMIT or ROLLBACK that the server has confirmed.

        An adapter that cannot see transactions answers DIRTY to the end of time; the server's answer
        is proof enough then.
        """
        verdict = adapter.verdict(entry.conn, entry.baseline)
        if verdict == Verdict.DIRTY and not adapter.sees_transactions:
            return Verdict.CLEAN
        return verdict

    # -- opening and closing -------------------------------------------------------------------------

    def follow_up(self, waiter: Waiter | None = None, deadline: float | None = None) -> Flow[None]:
        """Do what the core says is to be done: close what was discarded, dial for those who wait.

        Helpers do it.  Where none can be had it is done here, but for a *waiter* only until it has an
        outcome or its *deadline* has passed.
        """
        while (slot := self.core.next_to_close(self._clock())) is not None:
            if not (yield Start(self._work(None, slot))):
                yield from self._close(slot)
                if self._hurried(waiter, deadline):
                    return
        while (entry := self._plan()) is not None:
            if not (yield Start(self._work(entry, None))):
                yield from self._open(entry)
                if self._hurried(waiter, deadline):
                    return
            del entry  # the dial's from here on
        yield Watch(self.core.due(self._clock()))

    def _hurried(self, waiter: Waiter | None, deadline: float | None) -> bool:
        if waiter is None:
            return False
        return waiter.outcome is not None or (deadline is not None and self._clock() >= deadline)

    def upkeep(self) -> Flow[None]:
        """Do what time asks for: prune, give up what is overdue, dial again, keep `min_idle`."""
        self.core.prune(self._clock())
        yield from self.follow_up()

    def _work(self, entry: Entry[C] | None, slot: Slot | None) -> Flow[None]:
        """Do one thing, and then what else there is to do: the life of a helper.

        It starts no further helpers, so that there are never more than there are things to do.
        """
        while entry is not None or slot is not None:
            if entry is not None:
                yield from self._open(entry)
            if slot is not None:
                yield from self._close(slot)
            entry, slot = self._plan(), None
            if entry is None:
                slot = self.core.next_to_close(self._clock())
            yield Watch(self.core.due(self._clock()))

    def _plan(self) -> Entry[C] | None:
        now = self._clock()
        bounded = self.adapter is not None and self.adapter.bounded
        return self.core.plan(now, upkeep.dial_until(now, self.core.options.connect_timeout, bounded=bounded))

    def _open(self, entry: Entry[C]) -> Flow[None]:
        """Dial, adopt, prepare and deliver one connection."""
        core, slot = self.core, entry.slot
        began = self._clock()
        try:
            if self._connect is not None:
                conn = yield Call(Step.CONNECT, self._connect)
            else:
                conn = yield Call(Step.CONNECT, self._adapter().connect, core.options.connect_timeout)
            if core.knows(conn):
                raise self._error(PoolMisuse, "connect returned a connection that the pool has already")
            slot.conn = entry.conn = conn  # from here on it is closed if this flow ends early
            adapter = self.adapter or self._decide(conn)
            entry.baseline = yield Call(Step.ADOPT, adapter.adopt, conn)
            entry.verdict = adapter.verdict
            if core.options.on_connect is not None:
                yield from self._prepare(entry, adapter, core.options.on_connect)
            now = self._clock()
            entry.expires = upkeep.expiry(now, core.options.max_lifetime, self._chance())
            self._rest(entry, now, max(self.look_after, upkeep.NEWBORN))
            core.opened(entry, now - began)
        except BaseException as exc:
            core.dial_failed(entry, exc, fatal=self._is_fatal(exc), now=self._clock(), chance=self._chance())
            if not isinstance(exc, Exception):
                raise

    def _prepare(
        self, entry: Entry[C], adapter: Adapter[C], on_connect: Callable[[Any], object]
    ) -> Flow[None]:
        """Run the user's hook on a new connection; keep what it did."""
        # An empty context: what a task or request has set must not leak into a connection of everybody.
        yield Call(Step.ON_CONNECT, Context().run, on_connect, entry.conn)
        verdict = adapter.verdict(entry.conn, entry.baseline)
        if verdict == Verdict.DIRTY:
            # SET and its like are undone by a rollback; a hook that forgot to commit meant them.
            yield Call(Step.COMMIT, adapter.commit, entry.conn)
            verdict = self._settled(entry, adapter)
        if verdict != Verdict.CLEAN:
            raise self._error(PoolMisuse, f"on_connect left the connection {verdict.name.lower()}")

    def _close(self, slot: Slot) -> Flow[None]:
        """Close one connection and free its place."""
        conn, adapter = slot.conn, self.adapter
        if conn is not None and adapter is not None:
            try:
                yield Call(Step.CLOSE, adapter.close, conn, upkeep.CLOSE_GRACE)
            except BaseException as exc:
                self._abort(conn)
                if not isinstance(exc, Exception):
                    self.core.freed(slot)
                    raise
        self.core.freed(slot)

    def _abort(self, conn: Any) -> None:
        """Close a connection that would not be closed politely."""
        try:
            self._adapter().abort(conn)
        except Exception:
            pass  # all that can be done is done: its socket goes with it

    # -- the adapter ---------------------------------------------------------------------------------

    def _adapter(self) -> Adapter[C]:
        assert self.adapter is not None, "there is a connection, so its adapter is known"
        return self.adapter

    def _settle(self, adapter: Adapter[C]) -> Adapter[C]:
        self.adapter = adapter
        return adapter

    def _decide(self, first: object) -> Adapter[C]:
        """Choose the adapter by the first connection."""
        assert self._connect is not None, "an adapter that was given is known from the beginning"
        adapter = adapter_for(first, self._connect)
        assert adapter is not None, "only an exception can leave the driver unknown"
        return self._settle(adapter)

    def _is_fatal(self, exc: BaseException) -> bool:
        """Tell whether dialling again is pointless."""
        if isinstance(exc, PoolMisuse):
            return True
        adapter = self.adapter
        try:
            if adapter is None and self._connect is not None:
                adapter = adapter_for(exc, self._connect)
                if adapter is not None:
                    self._settle(adapter)
            return adapter is not None and adapter.fault(exc, dialling=True) is Fault.AUTH
        except Exception as error:
            exc.add_note(f"and its adapter could not say what kind of fault that is: {error!r}")
            return False

    # -- the pool as a whole -------------------------------------------------------------------------

    def ready(self, deadline: float | None) -> Flow[None]:
        """Open `min_idle` connections, but at least one, and wait until they are there."""
        core = self.core
        began = self._clock()
        wanted = max(1, core.min_idle)
        watcher = Watcher(lambda: core.closed or core.available() >= wanted, self._waiter(), wanted)
        yield from self._until(watcher, deadline)
        outcome = watcher.waiter.outcome
        if core.closed:
            raise self._error(PoolClosed, "it is closed")
        if outcome is True:
            return
        if isinstance(outcome, PoolError):
            raise type(outcome)(*outcome.args) from outcome
        error = outcome if isinstance(outcome, BaseException) else core.last_error
        waited = self._clock() - began
        text = f"not ready after {waited:.2g} s: {core.available()} of {wanted} connections{_because(error)}"
        raise self._error(PoolUnavailable, text) from error

    def close(self, deadline: float | None) -> Flow[None]:
        """Refuse and fail callers at once, close what is idle, wait for what is lent."""
        core = self.core
        core.shut()
        yield from self._until(Watcher(lambda: not core.slots, self._waiter(), 0), deadline)

    def evict(self) -> Flow[None]:
        """Replace every connection: idle ones now, others when they come back."""
        self.core.evict()
        yield from self.follow_up()

    def resize(self, max_size: int, min_idle: int) -> Flow[None]:
        """Change the bounds."""
        self.core.resize(max_size, min_idle)
        yield from self.follow_up()

    def _until(self, watcher: Watcher, deadline: float | None) -> Flow[None]:
        """Wait until the watcher's condition holds, or the deadline passes."""
        core, waiter = self.core, watcher.waiter
        try:
            core.watch(watcher)
            yield from self.follow_up()
            while waiter.outcome is None and (deadline is None or self._clock() < deadline):
                yield Park(waiter, deadline)
                if core.owes():
                    yield from self.follow_up()
        finally:
            core.unwatch(watcher)

    # -- errors --------------------------------------------------------------------------------------

    def _error(self, kind: type[PoolError], text: str) -> PoolError:
        """Make an error, of the class that is the driver's OperationalError too if there is one."""
        if self.adapter is not None:
            kind = self.adapter.errors.get(kind, kind)
        return kind(f"{text} (pool {self.name!r})")

    def _refuse(self, outcome: object, waited: float, timeout: float | None) -> NoReturn:
        """Raise the error that explains an outcome without an entry."""
        core = self.core
        if isinstance(outcome, PoolError):  # each caller gets its own: a traceback belongs to one thread
            raise type(outcome)(*outcome.args) from outcome
        if isinstance(outcome, BaseException):
            raise self._error(PoolUnavailable, f"cannot connect{_because(outcome)}") from outcome
        if outcome is Refusal.CLOSED:
            raise self._error(PoolClosed, "no connection: the pool is closed")
        if outcome is Refusal.OVERLOADED:
            most = core.options.max_waiting
            raise self._error(
                PoolOverloaded, f"no connection: max_waiting={most} callers wait; {core.brief()}"
            )
        error = core.last_error
        if core.available() or timeout == 0:
            text = f"no connection {_within(timeout, waited)}: {core.brief()}{_because(error)}"
            raise self._error(PoolTimeout, text) from error
        doing = "" if error else f", dialling for {waited:.1f} s"
        text = f"no connection {_within(timeout, waited)}: none is open{doing}{_because(error)}"
        raise self._error(PoolUnavailable, text) from error


def _is_adapter(source: object) -> TypeGuard[Adapter[Any]]:
    return hasattr(source, "verdict") and not isinstance(source, type)


_OPEN = (Verdict.DIRTY, Verdict.FAILED)


def _within(timeout: float | None, waited: float) -> str:
    """Say how long was waited: what was asked for, unless something ended it sooner."""
    if timeout == 0:
        return "at once"
    return f"within {waited if timeout is None or waited < 0.9 * timeout else timeout:.3g} s"


def _because(error: BaseException | None) -> str:
    """Return the first line of what the driver said; the rest is in the cause."""
    if error is None:
        return ""
    first = str(error).strip().partition("\n")[0].strip()
    return f"; last connect error: {type(error).__name__}: {first}" if first else f"; {type(error).__name__}"
