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

from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

from ..adapter import Adapter, adapter_for
from ..errors import PoolClosed, PoolError, PoolUnavailable
from ..stats import Reason
from . import diagnosis, upkeep
from .core import Core
from .operations import Flow, Park, Step
from .records import Entry, People, Refusal, Site, Waiter, Watcher
from .returning import Returning

C = TypeVar("C")


class Flows(Returning[C]):
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
        super().__init__(core, name, clock, people, slept, chance, waiter, find)
        self._cut = False  # what was still lent when the pool was closed
        # Whether every return is a flow's: the warm path knows one policy, and no hook.
        self.warm = not (self._steps or core.options.on_acquire or core.options.on_release)
        self._use(source)

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

    def waiter(self, site: Site | None) -> Waiter:
        """Return a waiter for the present borrower; *site* is what the warm path would note."""
        waiter = self._waiter()
        waiter.owner, waiter.site, waiter.since = self._people.me(), site, self._clock()
        return waiter

    def just_waits(self, waiter: Waiter) -> bool:
        """Queue a caller who needs no more than a place in line, and tell whether he is to park.

        All connections are there, in other hands than his, and nothing else is to be done; whatever this
        leaves open, `acquire` sees to.
        """
        core = self.core
        if len(core.slots) < core.max_size or core.closing or core.opening or core.retry_at:
            return False
        if core.has(waiter.owner) or (not self._told_blocking and self._people.blocks()):
            return False
        return core.queue(waiter) is None and not core.owes()

    def served(self, waiter: Waiter) -> Entry[C] | None:
        """Lend what a waiter in the queue was given; ``None``: `acquire` has to see to it."""
        entry = waiter.outcome
        if not isinstance(entry, Entry):
            return None
        now = self._clock()
        if not self._is_fit(entry, now):
            return None
        waiter.outcome = Refusal.LEFT  # a traceback may keep the waiter, but not what it was given
        if waiter.queued:
            self.core.waits.append(now - waiter.since)
        return self._lend(entry, waiter, now)

    def _lend(self, entry: Entry[C], waiter: Waiter, now: float) -> Entry[C]:
        slot = entry.slot
        slot.code, slot.lasti = waiter.site or (None, 0)
        entry.lent_at = now
        slot.validating = False
        slot.owner = waiter.owner
        return entry

    def acquire(
        self, candidate: Entry[C] | None, timeout: float | None, deadline: float | None, waiter: Waiter
    ) -> Flow[Entry[C]]:
        """Come by an entry that is fit to be lent; *candidate* is one to look at first.

        *timeout* is what the caller asked for, *deadline* the instant that follows from it.  The *waiter*
        may be in the queue already, and have an outcome: see `just_waits`.  A caller whose candidate
        turns out to be dead keeps its place in line.
        """
        core, people = self.core, self._people
        began = waiter.since
        entry, candidate = candidate, None
        try:
            if entry is not None:
                entry.slot.validating = True
                core.number(waiter)  # its place in line counts from now
            nests = core.has(waiter.owner)
            if nests:
                waiter.site = people.here()  # he may have to be told where
                if core.options.nested != "allow":
                    yield from self._look_for_nesting(waiter)
            while True:
                reason = failure = None
                if entry is None:
                    entry = yield from self._queued(waiter, began, timeout, deadline, nests=nests)
                now = self._clock()
                if not self._is_fit(entry, now):
                    entry.slot.validating = True
                    reason = yield from self._check(entry, deadline)
                    if reason is None and core.options.on_acquire is not None:
                        until = None if deadline is None else max(deadline, now + upkeep.ANSWER_GRACE)
                        failure = yield from self._hook(
                            entry, Step.ON_ACQUIRE, core.options.on_acquire, until
                        )
                    now = self._clock()
                if reason is None and failure is None:
                    return self._lend(entry, waiter, now)
                core.retire(entry, reason or Reason.HOOK, now)
                entry = None
                if failure is not None:
                    try:
                        raise failure
                    finally:
                        failure = None  # else the traceback and this frame would keep each other alive
                yield from self.follow_up(waiter, deadline)
                waiter = self._again(waiter)
        except BaseException:
            self.give_up(waiter, entry)
            raise

    def give_up(self, waiter: Waiter, entry: Entry[C] | None = None) -> None:
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
        self, waiter: Waiter, began: float, timeout: float | None, deadline: float | None, *, nests: bool
    ) -> Flow[Entry[C]]:
        """Queue, and wait for an entry or for the reason why there is none.

        *nests* says that the caller has a connection: he may be one of those who wait for each other.
        """
        core, people = self.core, self._people
        parked = waiter.queued  # he has looked up already
        looking = parked and waiter.outcome is None and self._looks_around()
        outcome = waiter.outcome if parked or waiter.outcome is not None else core.queue(waiter)
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
                    if not self._told_blocking and people.blocks():
                        yield from self._tell_of_blocking()
                    if nests:
                        yield from self._look_for_deadlock(waiter)
                yield Park(waiter, deadline)
                if waiter.outcome is None:
                    looking = self._looks_around()
            outcome = waiter.outcome
        waiter.outcome = Refusal.LEFT  # a traceback may keep the waiter, but not what it was given
        waited = self._clock() - began
        if waiter.queued:
            core.waits.append(waited)
        if not isinstance(outcome, Entry):
            self._refuse(outcome, waiter, waited, timeout)
        entry: Entry[C] = outcome
        return entry

    def _looks_around(self) -> bool:
        """Look again for whoever woke without an outcome: for the deadline, or as parked threads do.

        Returns:
            Whether something is under way that may be overdue.
        """
        core = self.core
        core.rematch(None)
        return bool(core.opening or core.closing)

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
            yield from self.tell(
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
