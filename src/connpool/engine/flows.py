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

from collections.abc import Callable, Generator, Mapping
from contextvars import Context
from dataclasses import dataclass
from enum import Enum
from functools import partial
from math import inf
from typing import Any, Final, Generic, Literal, NoReturn, TypeAlias, TypeGuard, TypeVar, cast

from ..adapter import Adapter, Credentials, Fault, Verdict, adapter_for
from ..behind import PRESETS, strayed
from ..errors import (
    Holder,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from ..events import ERROR, INFO, WARNING, Event, Throttle
from ..reset import Part, steps
from ..stats import PoolStats, Reason
from . import diagnosis, upkeep
from .core import Core
from .records import Entry, People, Refusal, Site, Slot, Waiter, Watcher

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
    CREDENTIALS = "credentials"
    IDLE_LIMIT = "idle_limit"
    WRITABLE = "writable"
    REMEMBER = "remember"
    PING = "ping"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    RESTORE = "restore"
    SEND_RESET = "send_reset"
    READ_RESET = "read_reset"
    RESET = "reset"
    CLOSE = "close"
    ON_CONNECT = "on_connect"
    ON_ACQUIRE = "on_acquire"
    ON_RELEASE = "on_release"
    ON_CLOSE = "on_close"


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


@dataclass(slots=True)
class Report:
    """Tell of an exception that has no caller who could be given it, and the user's function it is from."""

    error: Exception
    origin: object


@dataclass(slots=True)
class Tell:
    """Tell the operator of something."""

    event: Event


Operation: TypeAlias = Park | Call | Start | Watch | Report | Tell
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
        slept: Callable[[], float],
        chance: Callable[[], float],
        waiter: Callable[[], Waiter],
        people: People,
        find: Callable[[object, Callable[[], Any]], Adapter[Any] | None] = adapter_for,
    ) -> None:
        self.core = core
        self.name = name
        self._find = find  # the adapter, by the first connection or the first exception
        self._signature = f" (pool {name!r})"
        self.adapter: Adapter[C] | None = None
        self._told = False  # that the server's own limit is shorter than ours
        self._cut = False  # what was still lent when the pool was closed
        self._clock = clock
        self._slept = slept
        self._slept_before = slept()
        self._chance = chance
        self._waiter = waiter
        self._people = people
        self._throttle = Throttle()
        self._told_blocking = False
        self._told_strayed = False
        self._diagnosis: tuple[PoolStats, tuple[Holder, ...], str] | None = None
        self._diagnoses = 0  # made since ...
        self._diagnosed_at = -inf
        self._connect: Callable[[], C] | None = None
        options = core.options
        self.look_after = upkeep.first_look(options.probe_after, options.ping_after, options.max_lifetime)
        self._steps = steps(options.reset)
        self._parts = tuple(part for step in self._steps or () if isinstance(step, tuple) for part in step)
        # Whether every return is a flow's: the warm path knows one policy, and no hook.
        self.warm = not (self._steps or options.on_acquire or options.on_release)
        if _is_adapter(source):
            self._check_parts(source)
            self.adapter = source
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
        if options.credentials is not None and not (self.adapter and self.adapter.bounded):
            raise TypeError(
                "credentials= needs an adapter made of parameters or a URL; a callable finds its own"
            )

    def inherit(self, core: Core[C]) -> list[object]:
        """Go on with another core, in a forked child; return the parent's connections, disconnected.

        What is lent at that moment is refused: its session is the parent's.
        """
        old, self.core = self.core, core
        found: list[object] = []
        for slot in list(old.slots):
            entry = slot.entry_ref and slot.entry_ref()
            if isinstance(entry, Entry):
                entry.doomed = Reason.INHERITED
                entry.warm_until = -inf  # sends its release to the flows
            conn: Any = slot.known()
            if conn is not None and self.adapter is not None:
                self.adapter.forget(conn)
                found.append(conn)
        return found

    # -- acquire -------------------------------------------------------------------------------------

    def acquire(
        self, candidate: Entry[C] | None, timeout: float | None, deadline: float | None
    ) -> Flow[Entry[C]]:
        """Come by an entry that is fit to be lent; *candidate* is one to look at first.

        *timeout* is what the caller asked for, *deadline* the instant that follows from it.  A caller
        whose candidate turns out to be dead keeps its place in line.
        """
        core, people = self.core, self._people
        began = self._clock()
        waiter = self._waiter()
        waiter.owner, waiter.site, waiter.since = people.me(), people.here(), began
        entry, candidate = candidate, None
        try:
            if entry is not None:
                entry.slot.validating = True
                core.number(waiter)  # its place in line counts from now
            if core.options.nested != "allow":
                yield from self._look_for_nesting(waiter)
            while True:
                if entry is None:
                    entry = yield from self._queued(waiter, began, timeout, deadline)
                    entry.slot.validating = True
                reason = yield from self._check(entry, deadline)
                failure = None
                if reason is None:
                    until = None if deadline is None else max(deadline, self._clock() + upkeep.ANSWER_GRACE)
                    failure = yield from self._hook(entry, Step.ON_ACQUIRE, core.options.on_acquire, until)
                    if failure is None:
                        slot = entry.slot
                        slot.code, slot.lasti = waiter.site or (None, 0)
                        entry.lent_at = self._clock()
                        slot.validating = False
                        slot.owner = waiter.owner
                        return entry
                    reason = Reason.HOOK
                core.retire(entry, reason, self._clock())
                entry = None
                if failure is not None:
                    try:
                        raise failure
                    finally:
                        failure = None  # else the traceback and this frame would keep each other alive
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
        twin.ticket, twin.owner, twin.site, twin.since = (
            waiter.ticket,
            waiter.owner,
            waiter.site,
            waiter.since,
        )
        return twin

    def _queued(
        self, waiter: Waiter, began: float, timeout: float | None, deadline: float | None
    ) -> Flow[Entry[C]]:
        """Queue, and wait for an entry or for the reason why there is none."""
        core = self.core
        outcome = core.queue(waiter)
        queued, looking, parked = outcome is None, False, False
        while outcome is None:
            if core.owes() or looking:
                yield from self.follow_up(waiter, deadline)
            if waiter.outcome is None:
                expired = deadline is not None and self._clock() >= deadline
                if expired or (deadline is not None and core.hopeless(deadline)):
                    outcome = core.leave(waiter, timed_out=expired)
                    if outcome is Refusal.LEFT and not expired:
                        core.refused()
                    break
                if not parked:
                    parked = True
                    yield from self._look_before_parking(waiter)
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
            self._refuse(outcome, waiter, waited, timeout)
        entry: Entry[C] = outcome
        return entry

    def _look_before_parking(self, waiter: Waiter) -> Flow[None]:
        """Raise if waiting is in vain, because everything is lent to those who wait."""
        core, people = self.core, self._people
        if not self._told_blocking and people.blocks():
            self._told_blocking = True
            site = self._where(waiter.site)
            yield from self._tell(
                "blocks_event_loop",
                f"{site} had to wait for a connection in a thread that runs an event loop: all its tasks "
                "wait with it; use AsyncConnectionPool, or a thread",
                site=site,
            )
        borrows, _ = core.standoff(waiter)
        if not borrows or not all(borrow.is_in(people) for borrow in borrows):
            return
        holders = self.holders(waiter)
        if core.deadlocked(waiter) is not Refusal.LEFT:
            return  # settled meanwhile
        text = f"all {len(borrows)} connections are held by those who wait for another one"
        yield from self._tell(
            "deadlock", f"{text}:{diagnosis.in_one_line(holders)}", ERROR, sites=[h.site for h in holders]
        )
        hint = "borrow one connection at a time, pass it on, or raise max_size above the number of borrowers"
        raise self._explained(PoolDeadlock, text, waiter, (self._snapshot(), holders, hint))

    def _look_for_nesting(self, waiter: Waiter) -> Flow[None]:
        """Tell of a borrower who asks for a second connection while he holds one, or refuse it."""
        core, people = self.core, self._people
        outer = next((held for held in core.held_by(waiter.owner) if held.is_in(people)), None)
        if outer is None:
            return
        site, before = self._where(waiter.site), self._where(outer.site)
        text = f"{site} asks for a second connection while {before} holds one"
        if core.options.nested == "forbid":
            raise self._error(PoolMisuse, f"{text}, and nested='forbid'")
        lines = (outer.site, waiter.site)
        if lines not in core.nestings and len(core.nestings) < _LINES:
            core.nestings.add(lines)
            yield from self._tell(
                "nested", f"{text}: enough such borrowers at a time would deadlock", site=site, outer=before
            )

    def _check(self, entry: Entry[C], deadline: float | None) -> Flow[Reason | None]:
        """Return why an entry must not be lent, or ``None``; the cheapest question comes first."""
        self._wake_up()
        if entry.doomed:
            return entry.doomed
        if self._clock() >= entry.expires:
            return Reason.LIFETIME
        adapter = self._adapter()
        collected = entry.pending is not None
        if collected:  # before any probe: the answer makes the socket readable
            reason = yield from self._collect(entry, adapter, deadline)
            if reason is not None:
                return reason
        now = self._clock()
        core, options = self.core, self.core.options
        idle = now - entry.heard_at()
        if idle >= entry.idle_limit:
            return Reason.SERVER_LIMIT
        suspect = entry.proven_at < core.suspect_at
        fresh = idle < self._quiet(entry) and not suspect
        # An alarm is not about connections that were opened since and never lent: a driver whose new
        # sockets are readable would never lend anything again.
        alarmed = now < core.alarmed_until and entry.lent_at
        # The answer to a reset is as old as the connection is idle; a look tells whether it lives still.
        if fresh and not alarmed and not collected:
            return None
        left = None if deadline is None else deadline - now
        limit = upkeep.ping_limit(left, options.reset_timeout)
        try:
            look = options.probe_after is not None and (fresh or suspect or idle >= options.probe_after)
            if look and not adapter.alive(entry.conn):
                return Reason.DEAD
            ask = options.ping_after is not None and (suspect or idle >= options.ping_after)
            # With no time left the probe has to do: to fail beside an idle connection would help nobody.
            asked = ask and (limit is None or limit > 0)
            if asked:
                yield Call(Step.PING, adapter.ping, entry.conn, limit)
        except Exception:
            # The count of discards tells; the caller gets another connection.
            return self._silence(now, limit)
        if asked or (suspect and not ask):
            self._prove(entry, now)
        return None

    def _wake_up(self) -> None:
        """Trust no connection that the machine was suspended with: its server has gone on without it."""
        before, self._slept_before = self._slept_before, self._slept()
        if self._slept_before - before >= upkeep.NAP:
            self.core.suspect(self._clock())

    def _silence(self, since: float, limit: float | None) -> Reason:
        """Return what a ping proves that failed: its server was not heard of since an instant."""
        if limit is None or limit <= 0 or self._clock() - since < limit:
            return Reason.DEAD  # said so, or the probe did
        # Silence is no proof if there was less time than a healthy server may take.
        return Reason.SILENT if limit >= upkeep.PATIENCE else Reason.UNANSWERED

    def _prove(self, entry: Entry[C], instant: float) -> None:
        """Note that the server has answered to something that was sent at an instant."""
        entry.proven_at = instant
        entry.warm_until = entry.expires  # publish ...
        # ... then look.  The warm path knows one limit of idleness; a shorter one is the flows'.
        if instant < self.core.suspect_at or entry.idle_limit < self.look_after:
            entry.warm_until = -inf

    def _collect(self, entry: Entry[C], adapter: Adapter[C], deadline: float | None) -> Flow[Reason | None]:
        """Read the answer to the reset that was sent when the entry came back."""
        now = self._clock()
        limit = upkeep.answer_limit(
            None if deadline is None else deadline - now, self.core.options.reset_timeout
        )
        try:
            yield Call(Step.READ_RESET, adapter.read_reset, entry.conn, entry.pending, limit)
        except Exception as exc:
            return self._silence(now, limit) if self._is_dead(exc, adapter) else Reason.RESET_FAILED
        entry.pending = None
        self._prove(entry, entry.idle_since)  # when it was sent
        return _UNFIT.get(self._settled(entry, adapter), Reason.BROKEN)

    # -- the return path -----------------------------------------------------------------------------

    def release(self, entry: Entry[C], error: BaseException | None, ending: Ending) -> Flow[None]:
        """Take an entry back: verdict, commit or rollback, age, then the next waiter or idle.

        *error* is the exception that ended the borrower's block; nothing of ours replaces it.
        """
        core, adapter = self.core, self._adapter()
        if entry.doomed in _NOT_OURS:
            return
        held = self._clock() - entry.lent_at
        failure: Exception | None = None
        try:
            verdict = adapter.verdict(entry.conn, entry.baseline)
            blamed = error
            if ending == "commit" and error is None:
                if verdict in _OPEN:
                    sent = self._clock()
                    failure = yield from self._commit(entry.slot, entry.conn, adapter, verdict)
                    if failure is None:
                        self._prove(entry, sent)
                        verdict = self._settled(entry, adapter)
                    elif isinstance(failure, PoolTimeout):
                        verdict = Verdict.BROKEN  # it is being cut, whatever it looks like
                    else:  # the borrower's; the connection is still ours
                        verdict = adapter.verdict(entry.conn, entry.baseline)
                elif verdict == Verdict.BROKEN:
                    failure = self._error(PoolMisuse, _CUT_SHORT)
                blamed = failure
            complaint = None
            reason = yield from self._blame(entry, adapter, verdict, blamed)
            if reason is None:
                began = self._clock()
                reason, complaint = yield from self._reset(entry, adapter, verdict, blamed)
                if verdict < Verdict.BROKEN and (self._steps or verdict != Verdict.CLEAN):
                    failed = reason in _RESET_FAILED
                    core.was_reset(self._clock() - began, steps=bool(self._steps), failed=failed)
        except BaseException:
            entry.holds.append(held)
            core.retire(entry, Reason.BROKEN, self._clock())
            raise
        entry.holds.append(held)  # it counts as released from here on, no sooner
        if reason is None and len(entry.holds) >= entry.batch:
            core.fold(entry)
            reason = entry.doomed
        slot = entry.slot
        overdue, slot.overdue, slot.orphaned = slot.overdue, False, False
        slot.owner = None
        if reason is None:
            core.give(entry)
        else:
            core.retire(entry, reason, self._clock())
        del entry
        if core.owes():
            yield from self.follow_up()
        if overdue and held >= (core.options.warn_after or inf):
            yield from self._tell_of_return(slot, held)
        if complaint is not None:
            if blamed is None:
                failure = complaint
            else:
                blamed.add_note(f"and when the connection was given back: {complaint!r}")
        if failure is not None:
            try:
                raise failure
            finally:  # else the traceback and this frame would keep each other alive
                failure = complaint = blamed = None

    def _tell_of_return(self, slot: Slot, held: float) -> Flow[None]:
        """Tell that a connection is back of which was told that it was held for long."""
        site = self._where(None if slot.code is None else (slot.code, slot.lasti))
        text = f"{site} has given its connection back after {held:.3g} s"
        yield from self._tell("long_hold_over", text, INFO, site=site, held=held)

    def begin(self, slot: Slot, conn: C) -> Flow[None]:
        """Open a transaction for a borrower, within `reset_timeout`."""
        timeout = self.core.options.reset_timeout
        until = None if timeout is None else self._clock() + timeout
        call = self._call(Step.BEGIN, self._adapter().begin, conn)
        late = f"no answer to BEGIN within reset_timeout={timeout} s"
        failure = yield from self._in_time(call, until, slot, late)
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # else the traceback and this frame would keep each other alive

    def _commit(self, slot: Slot, conn: C, adapter: Adapter[C], verdict: Verdict) -> Flow[Exception | None]:
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
        timeout = self.core.options.commit_timeout
        until = None if timeout is None else self._clock() + timeout
        late = (
            f"no answer to COMMIT within commit_timeout={timeout} s: whether the server has committed is not "
            "known; the connection is closed"
        )
        return (yield from self._in_time(self._call(Step.COMMIT, adapter.commit, conn), until, slot, late))

    def _call(self, step: Step, fn: Callable[..., object], *args: object) -> Flow[Exception | None]:
        """Make a call and return its error."""
        try:
            yield Call(step, fn, *args)
        except Exception as exc:
            return exc
        return None

    def _in_time(
        self, flow: Flow[Exception | None], until: float | None, slot: Slot, late: str
    ) -> Flow[Exception | None]:
        """Run a flow that returns an error; if it has not ended at an instant, cut its connection.

        It is for calls that know no limit: upkeep shuts the socket down, and a driver that waits for the
        server then returns.  What it returns is the cause of a `PoolTimeout` that says *late*.
        """
        if until is not None:
            self.core.limit(slot, until)
            yield Watch(until)
        cut, failure, error = False, None, None
        try:
            failure = yield from flow
        finally:
            if until is not None:
                cut = self.core.unlimit(slot)
        try:
            if not cut:
                return failure
            error = self._error(PoolTimeout, late)
            error.__cause__ = failure
            return error
        finally:
            failure = error = None  # since CPython 3.12 the frame of an error keeps its callers' frames

    def _blame(
        self, entry: Entry[C], adapter: Adapter[C], verdict: Verdict, error: BaseException | None
    ) -> Flow[Reason | None]:
        """Return why a connection is to be discarded for the error that its borrower met, or ``None``."""
        if not isinstance(error, Exception) or isinstance(error, PoolError):
            return None
        yield from self._look_for_strays(error)
        fault = self._fault(error, adapter)
        if fault is Fault.DEAD and verdict >= Verdict.BROKEN:
            return Reason.DEAD
        if fault is not Fault.DEMOTED or verdict >= Verdict.BROKEN:
            return None
        if self.core.options.behind is not None:
            return None  # whether another session takes writes is not this connection's to know
        # The same errors come from a transaction that its borrower made read-only.
        try:
            limit = self.core.options.reset_timeout
            writable = yield Call(Step.WRITABLE, adapter.writable, entry.conn, limit)
        except Exception:
            return Reason.DEAD  # counted
        return None if writable else Reason.DEMOTED

    def _look_for_strays(self, error: Exception) -> Flow[None]:
        """Tell, once, of prepared statements that met another session: that is what poolers do to them."""
        found = None if self._told_strayed else strayed(error)
        if found is None:
            return
        self._told_strayed = True
        behind = self.core.options.behind
        hint = (
            "in front of the server there is probably a pooler in transaction mode, such as PgBouncer: say "
            "behind='pgbouncer'; or somebody has said DEALLOCATE or DISCARD ALL himself"
            if behind is None
            else f"behind {PRESETS[behind].title} nothing can be prepared, by PREPARE or by the driver"
        )
        sqlstate, meaning = found
        text = f"{meaning} (SQLSTATE {sqlstate}): {hint}"
        error.add_note(text)
        yield from self._tell("stray_statement", text, sqlstate=sqlstate, hint=hint)

    def _reset(
        self, entry: Entry[C], adapter: Adapter[C], verdict: Verdict, error: BaseException | None
    ) -> Flow[tuple[Reason | None, Exception | None]]:
        """Make an entry fit for the next borrower.

        Return why that failed, or ``None``; and what a function of the user's raised, or ``None``.
        """
        options, steps = self.core.options, self._steps or ()
        if verdict >= Verdict.BROKEN:
            return Reason.SPENT if verdict == Verdict.SPENT else Reason.BROKEN, None
        unseen = verdict == Verdict.DIRTY and not adapter.sees_transactions
        if unseen and error is None and self._steps is None:
            verdict = Verdict.CLEAN  # nothing will be sent: its user is taken at his word
        timeout = options.reset_timeout
        until = None if timeout is None else self._clock() + timeout
        # Parts that come first end the transaction themselves, in the same message.
        if options.on_release or not steps or not isinstance(steps[0], tuple):
            reason = yield from self._tidy(entry, adapter, verdict, until)
            if reason is not None:
                return reason, None
        failure = yield from self._hook(entry, Step.ON_RELEASE, options.on_release, until)
        if failure is not None:
            return Reason.HOOK, failure
        if entry.doomed:
            return entry.doomed, None
        if self._clock() >= entry.expires:
            return Reason.LIFETIME, None
        for step in steps:
            if isinstance(step, tuple):
                deferred = step is steps[-1] and options.on_connect is None
                reason = yield from self._reset_parts(entry, adapter, step, until, deferred=deferred)
                if reason is None and not deferred:
                    failure = yield from self._hook(entry, Step.ON_CONNECT, options.on_connect, until)
                    reason = None if failure is None else Reason.HOOK
            else:
                failure = yield from self._hook(entry, Step.RESET, step, until)
                reason = None if failure is None else Reason.RESET_FAILED
                if isinstance(failure, PoolTimeout) or (failure and self._is_dead(failure, adapter)):
                    failure = None  # the connection's fault, not the function's: counted
            if reason is not None:
                return reason, failure
        if entry.pending is None and (steps or options.on_release):
            reason = yield from self._tidy(entry, adapter, self._settled(entry, adapter), until)
            if reason is not None:
                return reason, None
        self._rest(entry, self._clock())
        return None, None

    def _tidy(
        self, entry: Entry[C], adapter: Adapter[C], verdict: Verdict, until: float | None
    ) -> Flow[Reason | None]:
        """End an open transaction, and then put the driver's settings back; return why that failed.

        Never the other way round: to switch autocommit on would commit.
        """
        if self._steps is None:  # "none": nothing is sent
            return None if verdict == Verdict.CLEAN else Reason.RESET
        conn = entry.conn
        try:
            if verdict in _OPEN:
                self.core.rolled_back()
                sent = self._clock()
                yield Call(Step.ROLLBACK, adapter.rollback, conn, self._left(until))
                self._prove(entry, sent)
                verdict = self._settled(entry, adapter)
            if verdict == Verdict.ALTERED or not adapter.sees_transactions:
                yield Call(Step.RESTORE, adapter.restore, conn, entry.baseline, self._left(until))
                verdict = self._settled(entry, adapter)
        except Exception as exc:  # counted; the borrower is done and owes nothing
            return Reason.DEAD if self._is_dead(exc, adapter) else Reason.RESET_FAILED
        return _UNFIT.get(verdict, Reason.BROKEN)

    def _reset_parts(
        self,
        entry: Entry[C],
        adapter: Adapter[C],
        parts: tuple[Part, ...],
        until: float | None,
        *,
        deferred: bool,
    ) -> Flow[Reason | None]:
        """Do the parts of a policy, or, *deferred*, only send them; return why that failed."""
        conn = entry.conn
        try:
            token = yield Call(
                Step.SEND_RESET,
                adapter.send_reset,
                conn,
                entry.baseline,
                entry.memory,
                parts,
                self._left(until),
            )
            if token is not None:
                if deferred:
                    entry.pending = token  # the next borrower reads the answer; it has come by then
                    return None
                yield Call(Step.READ_RESET, adapter.read_reset, conn, token, self._left(until))
        except Exception as exc:
            return Reason.DEAD if self._is_dead(exc, adapter) else Reason.RESET_FAILED
        return _UNFIT.get(self._settled(entry, adapter), Reason.BROKEN)

    def _hook(
        self, entry: Entry[C], step: Step, hook: Callable[[Any], object] | None, until: float | None
    ) -> Flow[Exception | None]:
        """Call a function of the user's with a connection; return its error.

        A transaction that it leaves open is committed: a SET is undone by a rollback, and whoever wrote
        it meant it.  What the function does cannot be limited, but at *until* its connection is cut, and
        so it ends if it waits for the server.
        """
        if hook is None:
            return None
        call = self._call_hook(entry.conn, entry.baseline, step, hook)
        late = f"{step.value} did not return in time: its connection was cut"
        return (yield from self._in_time(call, until, entry.slot, late))

    def _call_hook(
        self, conn: C, baseline: object, step: Step, hook: Callable[[Any], object]
    ) -> Flow[Exception | None]:
        """Call a hook and commit what it has left open; return its error.

        It gets no entry: the error is the borrower's, and its traceback would own the entry.
        """
        adapter = self._adapter()
        try:
            if step is Step.ON_CONNECT:
                # An empty context: what a task or request has set must not leak into a connection of
                # everybody.
                yield Call(step, Context().run, hook, conn)
            else:
                yield Call(step, hook, conn)
            verdict = adapter.verdict(conn, baseline)
            if verdict == Verdict.DIRTY:
                yield Call(Step.COMMIT, adapter.commit, conn)
                verdict = self._judged(conn, baseline, adapter)
        except Exception as exc:
            return exc
        if verdict > Verdict.ALTERED:
            return self._error(PoolMisuse, f"{step.value} left the connection {verdict.name.lower()}")
        return None

    def _rest(self, entry: Entry[C], now: float) -> None:
        """Note that an entry is idle from *now* on."""
        entry.idle_since = now
        self._prove(entry, entry.proven_at)
        if entry.pending is not None or entry.warm_until < now or self.core.options.on_acquire is not None:
            entry.check_at = -inf  # whoever takes it has something to do first
        else:
            entry.check_at = min(now + self._quiet(entry), entry.expires, now + entry.idle_limit)

    def _quiet(self, entry: Entry[C]) -> float:
        """Return the seconds idle for which an entry is lent without a closer look."""
        return self.look_after if entry.lent_at else max(self.look_after, upkeep.NEWBORN)

    def _left(self, until: float | None) -> float | None:
        """Return the seconds left until an instant."""
        return None if until is None else max(0.0, until - self._clock())

    def _is_dead(self, exc: Exception, adapter: Adapter[C]) -> bool:
        """Tell whether an error is the connection's own fault."""
        return self._fault(exc, adapter) is Fault.DEAD

    def _fault(self, exc: Exception, adapter: Adapter[C], *, dialling: bool = False) -> Fault:
        """Ask the adapter what kind of fault an error is."""
        try:
            return adapter.fault(exc, dialling=dialling)
        except Exception as error:
            exc.add_note(f"and its adapter could not say what kind of fault that is: {error!r}")
            return Fault.ORDINARY

    def _settled(self, entry: Entry[C], adapter: Adapter[C]) -> Verdict:
        """Return the verdict on an entry after an end of its transaction that the server confirmed."""
        return self._judged(entry.conn, entry.baseline, adapter)

    def _judged(self, conn: C, baseline: object, adapter: Adapter[C]) -> Verdict:
        """Return the verdict after a COMMIT, ROLLBACK or reset that the server has confirmed.

        An adapter that cannot see transactions answers DIRTY to the end of time; the server's answer
        is proof enough then.
        """
        verdict = adapter.verdict(conn, baseline)
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
        yield from self._tell_notes()
        yield Watch(self.core.due(self._clock()))

    def _hurried(self, waiter: Waiter | None, deadline: float | None) -> bool:
        if waiter is None:
            return False
        return waiter.outcome is not None or (deadline is not None and self._clock() >= deadline)

    def upkeep(self) -> Flow[None]:
        """Do what time asks for: prune, give up what is overdue, dial again, keep `min_idle`."""
        self._wake_up()
        for conn in self.core.overstayed(self._clock()):
            self._abort(conn)
        self.core.prune(self._clock())
        yield from self._look_at_borrowers()
        while (entry := self.core.next_to_ping(self._clock())) is not None:
            if not (yield Start(self._keep_alive(entry))):
                yield from self._keep_alive(entry)
            del entry
        yield from self.follow_up()

    def _keep_alive(self, entry: Entry[C]) -> Flow[None]:
        """Ask the server about an idle connection: both ends, and what is between them, remember it then."""
        core, adapter, sent = self.core, self._adapter(), self._clock()
        reason = None
        try:
            if entry.pending is not None:
                reason = yield from self._collect(entry, adapter, None)
            if reason is None:
                limit = core.options.reset_timeout
                yield Call(Step.PING, adapter.ping, entry.conn, limit)
                self._prove(entry, sent)
        except Exception:
            reason = self._silence(sent, core.options.reset_timeout)
        except BaseException:
            core.retire(entry, Reason.BROKEN, self._clock())
            raise
        if reason is None:
            core.give_back(entry)
        else:
            core.retire(entry, reason, self._clock())
        del entry
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
        failure: Exception | None = None
        try:
            until = inf
            if self._connect is not None:
                conn = yield Call(Step.CONNECT, self._connect)
            else:
                conn, until = yield from self._dial(slot, began)
            if core.knows(conn):
                raise self._error(PoolMisuse, "connect returned a connection that the pool has already")
            slot.conn = entry.conn = conn  # from here on it is closed if this flow ends early
            adapter = self.adapter or self._decide(conn)
            entry.baseline = yield Call(Step.ADOPT, adapter.adopt, conn)
            if core.options.behind is not None and (unprepare := getattr(adapter, "unprepare", None)):
                yield Call(Step.ADOPT, unprepare, conn)
                entry.baseline = yield Call(Step.ADOPT, adapter.adopt, conn)
            entry.verdict = adapter.verdict
            yield from self._examine(entry, adapter, began)
            if self._parts:
                self._check_parts(adapter)
                timeout = core.options.connect_timeout
                entry.memory = yield Call(Step.REMEMBER, adapter.remember, conn, self._parts, timeout)
            if core.options.on_connect is not None:
                failure = yield from self._hook(entry, Step.ON_CONNECT, core.options.on_connect, None)
                if failure is not None:
                    raise failure
                # What the hook has set is what the connection comes back to.
                entry.baseline = yield Call(Step.ADOPT, adapter.adopt, conn)
            now = entry.proven_at = self._clock()
            entry.expires = min(until, upkeep.expiry(now, core.options.max_lifetime, self._chance()))
            entry.ping_every = upkeep.expiry(0.0, core.options.keepalive, self._chance())
            self._rest(entry, now)
            core.opened(entry, now - began)
        except BaseException as exc:
            failure = None  # else its traceback and this frame would keep each other alive
            _strip(exc)
            fault = self._dial_fault(exc)
            fatal = fault is Fault.AUTH or isinstance(exc, PoolMisuse)
            core.dial_failed(entry, exc, fault=fault, fatal=fatal, now=self._clock(), chance=self._chance())
            if not isinstance(exc, Exception):
                raise

    def _dial(self, slot: Slot, began: float) -> Flow[tuple[C, float]]:
        """Have the adapter connect; return the connection, and until when its credentials hold."""
        adapter, provider = self._adapter(), self.core.options.credentials
        if provider is None:
            conn = yield Call(Step.CONNECT, adapter.connect, self._dial_limit(began))
            return conn, inf
        refused = False
        while True:
            found = yield from self._ask(slot, provider)
            until = inf if found.expires_in is None else self._clock() + found.expires_in
            try:
                limit = self._dial_limit(began)
                conn = yield Call(Step.CONNECT, adapter.connect, limit, found.parameters)
            except Exception as exc:
                # What was asked for may have changed since; if it has not, it is wrong.
                if refused or self._fault(exc, adapter, dialling=True) is not Fault.AUTH:
                    raise
                refused = True
            else:
                return conn, until

    def _dial_limit(self, began: float) -> float | None:
        """Return what is left of `connect_timeout`."""
        timeout = self.core.options.connect_timeout
        return None if timeout is None else max(0.0, began + timeout - self._clock())

    def _ask(self, slot: Slot, provider: Callable[[], object]) -> Flow[Credentials]:
        """Ask for credentials; dials at the same time share one answer."""
        core, waiter = self.core, self._waiter()
        while not core.ask(slot, waiter):
            yield Park(waiter, None)
            if isinstance(waiter.outcome, Credentials):
                return waiter.outcome
            if waiter.outcome is not None:
                waiter = self._waiter()  # whoever asked has failed; everybody finds out for himself
        found: object = Refusal.LEFT
        try:
            found = yield Call(Step.CREDENTIALS, provider)
            if isinstance(found, Mapping):
                found = Credentials(found)
            if not isinstance(found, Credentials):
                what = type(found).__name__  # never its value
                raise self._error(
                    PoolMisuse, f"credentials= returned a {what}, no mapping and no Credentials"
                )
        finally:
            core.answered(slot, found)
        return found

    def _examine(self, entry: Entry[C], adapter: Adapter[C], began: float) -> Flow[None]:
        """Ask a new connection's server what it is like."""
        options = self.core.options
        if options.behind is not None:  # the answers would be about some session or other
            seconds = PRESETS[options.behind].idle_limit
        else:
            if options.require is not None:
                writable = yield Call(Step.WRITABLE, adapter.writable, entry.conn, self._dial_limit(began))
                if not writable:
                    raise self._error(
                        PoolUnavailable, f"the server takes no writes, and require={options.require!r}"
                    )
            seconds = yield Call(Step.IDLE_LIMIT, adapter.idle_limit, entry.conn, self._dial_limit(began))
        if seconds is None:
            return
        entry.idle_limit = seconds * upkeep.SERVER_MARGIN
        if not self._told and (options.idle_timeout is None or options.idle_timeout > entry.idle_limit):
            self._told = True
            yield from self._tell(
                "server_limit",
                f"idle connections are closed after {entry.idle_limit:g} s in place of "
                f"idle_timeout={options.idle_timeout!r}: their server ends them after {seconds:g} s",
                seconds=seconds,
            )

    def _close(self, slot: Slot) -> Flow[None]:
        """Close one connection and free its place."""
        conn, adapter = slot.conn, self.adapter
        if conn is not None and adapter is not None:
            hook = self.core.options.on_close
            try:
                if hook is not None and slot.opened:
                    try:
                        yield Call(Step.ON_CLOSE, Context().run, hook, conn)
                    except Exception as exc:
                        yield Report(exc, hook)
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

    def _check_parts(self, adapter: Adapter[C]) -> None:
        """Refuse a reset policy with parts that a driver's adapter does not know."""
        unknown = [part for part in self._parts if part not in adapter.parts]
        if unknown:
            known = ", ".join(sorted(adapter.parts)) or "none; give a callable instead"
            raise PoolMisuse(
                f"reset: the adapter for {adapter.name} does not know {', '.join(unknown)}; it knows: {known}"
            )

    def _decide(self, first: object) -> Adapter[C]:
        """Choose the adapter by the first connection."""
        assert self._connect is not None, "an adapter that was given is known from the beginning"
        adapter = self._find(first, self._connect)
        assert adapter is not None, "only an exception can leave the driver unknown"
        self.adapter = adapter  # known from here on: what it refuses is closed by it
        return adapter

    def _dial_fault(self, exc: BaseException) -> Fault:
        """Return what kind of fault a failed dial is; it may be what names the driver."""
        if not isinstance(exc, Exception) or isinstance(exc, PoolError):
            return Fault.ORDINARY
        try:
            if self.adapter is None and self._connect is not None:
                self.adapter = self._find(exc, self._connect)
        except Exception as error:
            exc.add_note(f"and no adapter was found for it: {error!r}")
        return Fault.ORDINARY if self.adapter is None else self._fault(exc, self.adapter, dialling=True)

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
        text = f"not ready after {waited:.2g} s: {core.available()} of {wanted} connections"
        text += self._because(error)
        raise self._error(PoolUnavailable, text) from error

    def close(self, deadline: float | None, *, cut: bool = False) -> Flow[None]:
        """Refuse and fail callers at once, close what is idle, wait for what is lent.

        At the deadline what is still lent is *cut*: its socket is shut down, and its borrower gets an error.
        """
        core = self.core
        core.shut()
        yield from self._until(Watcher(lambda: not core.slots, self._waiter(), 0), deadline)
        if not cut or self._cut or self.adapter is None:
            return
        conns = core.lent()
        holders = self.holders() if conns else ()
        for conn in conns:
            self._abort(conn)
        self._cut = True
        if conns:
            yield from self._tell(
                "closed_in_use",
                f"it was closed while {len(conns)} of its connections were still in use, which were cut:"
                f"{diagnosis.in_one_line(holders)}",
                sites=[holder.site for holder in holders],
            )

    def cut(self) -> None:
        """Close the pool at once, without a word to any server: nobody is left who could run a flow."""
        core = self.core
        core.shut()
        while (slot := core.next_to_close(self._clock())) is not None:
            if slot.conn is not None:
                self._abort(slot.conn)
            core.freed(slot)

    def evict(self, over: float = 0.0) -> Flow[None]:
        """Replace every connection: idle ones now, others when they return; or all within *over* seconds."""
        self.core.evict(self._clock(), over)
        yield from self.follow_up()

    def clear(self, deadline: float) -> Flow[None]:
        """Close what is idle and wait until that is done; close what is lent when it comes back."""
        core = self.core
        core.evict(self._clock(), refill=False)
        yield from self._until(Watcher(lambda: not core.closing, self._waiter(), 0), deadline)

    def resume(self) -> Flow[None]:
        """Serve callers again."""
        self.core.resume()
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

    def _error(self, kind: type[PoolError], text: str, more: str = "") -> PoolError:
        """Make an error, of the class that is the driver's OperationalError too if there is one."""
        if self.adapter is not None:
            kind = self.adapter.errors.get(kind, kind)
        return kind(text + self._signature + more)

    def _refuse(self, outcome: object, waiter: Waiter, waited: float, timeout: float | None) -> NoReturn:
        """Raise the error that explains an outcome without an entry."""
        core = self.core
        if isinstance(outcome, PoolError):  # each caller gets its own: a traceback belongs to one thread
            raise type(outcome)(*outcome.args) from outcome
        if isinstance(outcome, BaseException):
            core.refused()
            text = f"cannot connect{self._because(outcome)}"
            raise self._explained(PoolUnavailable, text, waiter) from outcome
        if outcome is Refusal.CLOSED:
            raise self._explained(PoolClosed, "no connection: the pool is closed", waiter)
        if outcome is Refusal.OVERLOADED:
            text = f"no connection: max_waiting={core.options.max_waiting} callers wait; {core.brief()}"
            raise self._explained(PoolOverloaded, text, waiter)
        error = core.last_error
        if core.available() or core.suspended or timeout == 0:
            text = f"no connection {_within(timeout, waited)}: {core.brief()}{self._because(error)}"
            raise self._explained(PoolTimeout, text, waiter) from error
        doing = "" if error else f", dialling for {waited:.1f} s"
        text = f"no connection {_within(timeout, waited)}: none is open{doing}{self._because(error)}"
        raise self._explained(PoolUnavailable, text, waiter) from error

    def _because(self, error: BaseException | None) -> str:
        """Return the last connect error as a part of a message; empty if there is none."""
        if error is None:
            return ""
        core = self.core
        age = self._clock() - core.failed_at if error is core.last_error else 0.0
        return f"; last connect error{f' {age:.2g} s ago' if age >= 1 else ''}: {self._said(error)}"

    def _said(self, error: BaseException) -> str:
        """Return the first line of what the driver said; the rest is in the cause."""
        # An error of ours, such as a refused standby's, names the pool; so will the one that this is for.
        first = str(error).strip().partition("\n")[0].removesuffix(self._signature).strip()
        return type(error).__name__ + (f": {first}" if first else "")

    # -- what is told --------------------------------------------------------------------------------

    def _tell(self, name: str, text: str, level: int = WARNING, **fields: object) -> Flow[None]:
        """Tell the operator, unless he was told too often of the same."""
        # Each leak has a line of its own, and costs a dial, which keeps them few.
        left_out = 0 if name == "leak" else self._throttle.passes(name, self._clock())
        if left_out is None:
            return
        if left_out:
            text, fields["left_out"] = f"{text} (and {left_out} such events before)", left_out
        yield Tell(Event(name, self.name, f"pool {self.name!r}: {text}", level, fields))

    def _tell_notes(self) -> Flow[None]:
        """Tell what transitions have noted."""
        core = self.core
        while True:
            try:
                name, what = core.notes.popleft()
            except IndexError:
                return
            if name == "dial_failed":
                assert isinstance(what, BaseException)
                fault = core.last_fault or Fault.ORDINARY
                text = f"a connection could not be opened: {self._said(what)}"
                yield from self._tell(name, text, error=type(what).__name__, fault=fault.value)
            elif name == "dial_recovered":
                seconds = self._clock() - core.failing_since
                text = f"connections can be opened again, after {what} failures in {seconds:.2g} s"
                yield from self._tell(name, text, INFO, failures=what, seconds=seconds)
            elif name == "session_lost":
                text = f"a session was lost ({what}): each idle connection is looked at before it is lent"
                yield from self._tell(name, text, reason=str(what))
            else:
                where = self._where(cast("Site", what))
                text = f"a connection borrowed by {where} was lost without being given back: it is closed"
                yield from self._tell(name, text, site=where)

    def _look_at_borrowers(self) -> Flow[None]:
        """Tell of what is held for long, and of borrowers that have ended."""
        core, now, warn_after = self.core, self._clock(), self.core.options.warn_after
        if warn_after is None:
            return
        for borrow in core.overdue(now - warn_after):
            site, held = self._where(borrow.site), now - borrow.since
            who = self._people.name(borrow.owner) or f"a {self._people.kind} that has ended"
            text = f"{site} in {who} has held a connection for {held:.3g} s"
            yield from self._tell("long_hold", text, site=site, held=held, holder=who)
        for borrow in core.borrows():
            if not borrow.slot.orphaned and self._people.name(borrow.owner) is None:
                borrow.slot.orphaned = True
                site, held = self._where(borrow.site), now - borrow.since
                kind = self._people.kind
                text = f"the {kind} that borrowed at {site} ended without giving back; it had {held:.3g} s"
                yield from self._tell("thread_ended", text, site=site, held=held)

    def _where(self, site: Site | None) -> str:
        return "somebody" if site is None else self._people.where(site)

    def holders(self, waiter: Waiter | None = None) -> tuple[Holder, ...]:
        """Return who has the connections; *waiter* is one who asks, and may be one of them."""
        people, now = self._people, self._clock()
        asked = self.core.asked()
        if waiter is not None:
            asked[waiter.owner] = waiter.site
        found = []
        for borrow in self.core.borrows():
            name = people.name(borrow.owner)
            waits = borrow.owner in asked and borrow.is_in(people)
            found.append(
                Holder(
                    now - borrow.since,
                    name or f"a {people.kind}",
                    self._where(borrow.site),
                    self._where(asked[borrow.owner]) if waits else None,
                    name is None,
                    partial(people.stack, borrow.owner),
                )
            )
        return tuple(found)

    def _snapshot(self) -> PoolStats:
        return self.core.snapshot(self.name, self._clock())

    def _explained(
        self,
        kind: type[PoolError],
        text: str,
        waiter: Waiter,
        found: tuple[PoolStats, tuple[Holder, ...], str] | None = None,
    ) -> PoolError:
        """Make an error that says who has the connections, and what that means."""
        now = self._clock()
        if found is None:
            # Where many fail at once, they share what was found for the first of them.
            if now - self._diagnosed_at >= _SHARED:
                self._diagnosed_at, self._diagnoses = now, 0
            self._diagnoses += 1
            found = self._diagnosis
            if found is None or self._diagnoses <= _ALONE:
                stats, holders = self._snapshot(), self.holders(waiter)
                suspended, fault = self.core.suspended, self.core.last_fault
                found = (stats, holders, diagnosis.hint(stats, holders, suspended=suspended, fault=fault))
                self._diagnosis = found
        stats, holders, hint = found
        error = self._error(kind, text, diagnosis.described(holders) + (f"\n{hint}" if hint else ""))
        error.stats, error.holders, error.hint, error.waited = stats, holders, hint, now - waiter.since
        return error


def _is_adapter(source: object) -> TypeGuard[Adapter[Any]]:
    return hasattr(source, "verdict") and not isinstance(source, type)


_RESET_FAILED: Final = (Reason.DEAD, Reason.RESET_FAILED, Reason.HOOK, Reason.BROKEN)
"""Why a connection does not come through its reset."""

_SHARED: Final = 0.1
"""Seconds for which a diagnosis is good enough for others ..."""

_ALONE: Final = 10
"""... after so many have made their own."""

_LINES: Final = 100
"""Pairs of lines of which is told that one borrows inside the other."""

_NOT_OURS: Final = (Reason.DETACHED, Reason.INHERITED)


def _strip(error: BaseException) -> None:
    """Take the frames from an error that the pool keeps, and note where it came from.

    They lead to their callers' frames: where a caller dials for himself, one of these is the very frame
    that has his entry later on, and his entry would never be lost.
    """
    found: BaseException | None = error
    while found is not None:
        traceback, found.__traceback__ = found.__traceback__, None
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        if traceback is not None and found is error:
            code = traceback.tb_frame.f_code
            error.add_note(f"raised in {code.co_qualname}, {code.co_filename}:{traceback.tb_lineno}")
        found = found.__cause__ or found.__context__


_OPEN: Final = (Verdict.DIRTY, Verdict.FAILED)

_UNFIT: Final[dict[Verdict, Reason | None]] = {Verdict.CLEAN: None, Verdict.SPENT: Reason.RESET}
"""Why a connection that should be clean is not; what is not here is BROKEN."""

_CUT_SHORT: Final = (
    "the block ended in the middle of an exchange with the server (a result, COPY or pipeline left half "
    "done, or a connection that was lost): what the block itself had not committed is lost"
)


def _within(timeout: float | None, waited: float) -> str:
    """Say how long was waited: what was asked for, unless something ended it sooner."""
    if timeout == 0 or (timeout is not None and waited < min(0.001, timeout / 2)):
        return "at once"
    return f"within {waited if timeout is None or waited < 0.9 * timeout else timeout:.3g} s"
