"""The state machine of a pool.

Rules
-----
1. Everything that changes the state of a pool stands in this file, but for the warm path (below).
2. Nothing here waits, does I/O, reads a clock, draws a random number, calls user code or logs.  A
   transition changes state under the one lock and says what the caller must do: what to close
   (`next_to_close`), what to dial (`plan`), when to look again (`due`).
3. Under the lock only a waiter's `wake` is called, which never blocks.

Invariants
----------
* At rest an idle entry and a live waiter never coexist, unless the pool is suspended.
* ``size == idle + in use + opening + validating + closing``, and no dial begins that would make the
  size exceed `max_size`.  The size is ``len(slots)``, never a counter.
* An entry has exactly one owner: the idle stack, a lease, a waiter's outcome or a flow's local variable.
* A waiter gets exactly one outcome, decided under the lock.  Timeout, cancellation, interrupt, closing
  and hand-over are one transition; whoever comes late gives back what was delivered.
* Capacity that becomes free serves the oldest waiter.

Theory of operation: ownership
------------------------------
An exception can strike between any two bytecodes: Ctrl-C, a signal handler, `gevent.Timeout`.  No
``try`` can be everywhere, so ownership itself must survive it.  The registry (`slots`) holds an entry
only by a weak reference whose callback is the C function ``lost.append``.  Whatever drops the last strong
reference thereby reports the slot as lost; whoever next takes the lock frees it, and the connection,
which the slot does hold strongly, is closed.  Hence the order of steps everywhere below: publish before
removing, settle before unlinking, wake last.  Each is a single operation that is atomic under the GIL.

Theory of operation: the warm path
----------------------------------
A lease pops from `idle` and appends to it without the lock (see `connpool.leases.Lease`).  Two threads
that use the lock can miss each other only if one looks before the other has published.  So both
publish first and look second::

    waiter, under the lock                releaser, without it
    ----------------------                --------------------
    waiters.append(waiter)   publish      idle.append(entry)        publish
    look at idle             look         look at waiters, doomed   look

Whoever publishes second sees the other, so no wake-up is lost.  A newcomer looks at `waiters` before it
takes from `idle`, so it never overtakes somebody in the queue.

`evict`, `resize` and `shut` reach the entries in other hands by `doomed`: they set it first and sweep
`idle` second.  The taker looks at `doomed` after it popped, the releaser after it appended.  `doomed`
is never cleared.  (`check_at` could not carry that message: it is written by the holder at every
release, and would be overwritten.)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import wraps
from itertools import count
from math import inf
from operator import attrgetter
from typing import Concatenate, Final, Generic, ParamSpec, TypeVar

from ..adapter import Fault
from ..options import PoolOptions
from ..stats import PoolStats, Reason, Totals
from . import upkeep
from .records import Borrow, Entry, Ref, Refusal, Site, Slot, Waiter, Watcher

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")


BATCH: Final = 1000
"""Durations an entry collects before they are folded into the histogram, under the lock."""


_DEATHS: Final = frozenset({Reason.DEAD, Reason.SILENT, Reason.BROKEN, Reason.RESET_FAILED})
"""Reasons that may have befallen other connections in the same moment: sockets are looked at for a while."""

_LOSSES: Final = frozenset({Reason.DEAD, Reason.SILENT})
"""Reasons for which the server is asked about each connection that has not been heard of since."""


_OWNER: Final = attrgetter("owner")

_TOLD: Final = frozenset({Reason.DEAD, Reason.SILENT, Reason.DEMOTED})
"""Reasons that the operator wants to hear of."""


def locked(
    transition: Callable[Concatenate[Core[C], P], R],
) -> Callable[Concatenate[Core[C], P], R]:
    """Run a transition under the core's lock; nothing else takes it.

    The lock is released by ``with`` in all cases but one: CPython 3.14 can be interrupted between
    taking it and entering the block (gh-148874).  An RLock can be asked whether that happened.

    The collector may run a finalizer inside this very block, in the thread that owns the lock.  The
    lock is re-entrant, so that does not hang.  Runtimes let no flow begin there (see `inside`), and a
    release that comes this way (see `rematch`) leaves `again` for the owner, who looks once more when
    it has left.
    """

    @wraps(transition)
    def under_lock(core: Core[C], /, *args: P.args, **kwargs: P.kwargs) -> R:
        owned = core.inside()
        try:
            with core.lock:
                if core.lost:
                    core._reclaim()
                result = transition(core, *args, **kwargs)
        except BaseException:
            if not owned and core.inside():
                core.lock.release()
            raise
        if core.again and not owned:
            core.again = False
            core.rematch(None)
        return result

    return under_lock


class Core(Generic[C]):
    """The state of one pool and every transition of it."""

    def __init__(self, options: PoolOptions) -> None:
        # Looked up here, not imported by name: gevent replaces the attribute.
        self.lock = threading.RLock()
        # Tells whether this thread is in a transition already: only a finalizer can ask and hear yes.
        self.inside: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined] # see locked
        self.idle: deque[Entry[C]] = deque()  # a stack: surplus connections sink and age
        self.waiters: deque[Waiter] = deque()  # first come, first served, by ticket
        # Ordered sets, as dictionaries: equal histories must give equal iterations.
        self.slots: dict[Slot, None] = {}  # the registry
        self.opening: dict[Slot, None] = {}
        self.closing: dict[Slot, None] = {}
        self.debris: deque[Slot] = deque()  # closing, but nobody has begun to
        self.limited: dict[Slot, float] = {}  # calls that know no limit, and until when they may last
        self.lost: deque[Ref | Entry[C]] = deque()
        self.bare: dict[int, Entry[C]] = {}  # of connections lent by acquire(), by id(connection)
        self.again = False

        self.options = options
        self.max_size = options.max_size
        self.min_idle = options.min_idle
        self.closed = False
        self.failures = 0  # dials failed in a row
        self.abandoned = 0  # dials abandoned in a row
        self.retry_at = 0.0  # no dial before
        self.last_error: BaseException | None = None
        self.last_fault: Fault | None = None
        self.failed_at = 0.0  # ... and when that was
        self.failing_since = 0.0  # the first of the dials that failed in a row
        self.ever_opened = False
        self.alarmed_until = 0.0  # a connection was found dead: look at the others before lending them
        self.suspect_at = -inf  # one was lost then: an older word of a server counts no more
        self.suspended = False
        self.refill = 0  # connections to be opened in place of evicted ones
        self.asker: Slot | None = None  # the dial that asks for credentials ...
        self.asking: list[Waiter] = []  # ... and who waits for its answer
        self.notes: deque[tuple[str, object]] = deque()  # what the operator is to be told
        self.nestings: set[tuple[object, object]] = set()  # of which lines he was told
        self.born_at: float | None = None  # when the first dial began
        self.read_at = 0.0  # when the figures were last read
        self.totals = Totals()
        self.waits: list[float] = []  # seconds of queued acquires, not folded yet; appended without the lock
        self._gate = Waiter(lambda: None)
        self._tickets = count()
        self._watchers: list[Watcher] = []

    # -- waiting -------------------------------------------------------------------------------------

    @locked
    def queue(self, waiter: Waiter) -> object:
        """Take a place in line, or the same place again; return the outcome if there is one at once."""
        waiters = self.waiters
        if self.closed:
            waiter.outcome = Refusal.CLOSED
            return waiter.outcome
        if len(self.waits) >= BATCH:
            self._fold_waits()
        if waiter.ticket is None:
            bound = self.options.max_waiting
            if bound is not None and len(waiters) >= bound and self._is_crowded(bound):
                self.totals.overloads += 1
                waiter.outcome = Refusal.OVERLOADED
                return waiter.outcome
            waiter.ticket = next(self._tickets)
        if not self.abandoned:  # the pause may date from a time when nobody waited
            self.retry_at = min(self.retry_at, self.failed_at + upkeep.PAUSE_CAP)
        place = len(waiters)
        while place and (waiters[place - 1].ticket or 0) > waiter.ticket:
            place -= 1  # it was here before: its candidate turned out to be dead
        waiters.insert(place, waiter)
        if not self.idle or self.suspended:
            totals = self.totals
            if totals.peak_in_use < self.max_size:
                totals.peak_in_use = max(totals.peak_in_use, self._in_use())
            if totals.peak_waiting < len(waiters):
                totals.peak_waiting = max(totals.peak_waiting, self._waiting())
        self._match()
        waiter.queued = waiter.outcome is None
        return waiter.outcome

    def _is_crowded(self, bound: int) -> bool:
        """Tell whether as many wait as may.  Lock held."""
        if self.idle and not self.suspended:
            return False
        room = max(0, self.max_size - self.available())  # they wait for a dial, not for each other
        return self._waiting() >= bound + room

    @locked
    def leave(self, waiter: Waiter, *, timed_out: bool = False) -> object:
        """Leave the queue; return the outcome if there was one already, or `Refusal.LEFT`.

        The judge of every race: a timeout that comes a moment after the hand-over finds an entry here.
        The waiter does not keep it: a traceback may keep the waiter.
        """
        self.totals.timeouts += timed_out and waiter.outcome is None
        return self._leave(waiter)

    def _leave(self, waiter: Waiter) -> object:
        """Take a waiter out of the queue.  Lock held."""
        outcome = waiter.outcome
        if outcome is None:
            outcome = Refusal.LEFT
        waiter.outcome = Refusal.LEFT
        try:
            self.waiters.remove(waiter)
        except ValueError:
            pass
        return outcome

    def rematch(self, entry: Entry[C] | None) -> bool:
        """Look again, after *entry* was published in `idle`; return whether there is follow-up work."""
        if self.inside():
            self.again = True
            return False
        return self._rematch(entry)

    @locked
    def _rematch(self, entry: Entry[C] | None) -> bool:
        if entry is not None and entry.doomed:
            try:
                self.idle.remove(entry)
            except ValueError:
                pass  # taken meanwhile; the taker looks at `doomed` itself
            else:
                self._retire(entry, entry.doomed)
        self._match()
        return self.owes()

    @locked
    def give(self, entry: Entry[C]) -> None:
        """Put an entry that is fit to be lent where it belongs: to the oldest waiter, or to idle."""
        entry.slot.validating = False
        if entry.doomed:
            self._retire(entry, entry.doomed)
        else:
            self.idle.append(entry)
            self._match()

    def _match(self) -> None:
        """Hand idle entries to waiters, oldest first.  Lock held."""
        waiters = self.waiters
        while waiters:
            head = waiters[0]
            if head.outcome is None:
                if head is self._gate:
                    return
                entry = self._pop_idle()
                if entry is None:
                    return
                head.outcome = entry
            # Settled: by us, or by somebody whom an interrupt kept from finishing.
            waiters.popleft()
            head.wake()

    def _pop_idle(self) -> Entry[C] | None:
        """Return the entry that was used last and is not doomed.  Lock held."""
        while self.idle:
            try:
                entry = self.idle.pop()
            except IndexError:  # taken since we looked, without the lock
                break
            if not entry.doomed:
                return entry
            self._retire(entry, entry.doomed)
        return None

    def _fail_waiters(self, outcome: object) -> None:
        """Give everybody in the queue the same outcome.  Lock held."""
        waiters = self.waiters
        first = int(bool(waiters) and waiters[0] is self._gate)
        while len(waiters) > first:
            waiter = waiters[first]
            if waiter.outcome is None:
                waiter.outcome = outcome
            del waiters[first]
            waiter.wake()

    # -- checking ------------------------------------------------------------------------------------

    @locked
    def number(self, waiter: Waiter) -> None:
        """Give a caller its place in line before it queues: it has a candidate to look at first."""
        waiter.ticket = next(self._tickets)

    @locked
    def retire(self, entry: Entry[C], reason: Reason, now: float) -> None:
        """Discard an entry: its owner lets go of it, its connection is to be closed."""
        if reason in _DEATHS:
            self.alarmed_until = now + upkeep.ALARM
        if reason in _LOSSES:
            self._suspect(now)
        if reason in _TOLD and not entry.doomed:
            self.notes.append(("session_lost", reason))
        self._retire(entry, reason)
        if reason is Reason.SILENT:
            # No answer at all: to wait for each of the others' would use up everybody's time.
            self._sweep_if(lambda other: other.proven_at < self.suspect_at, reason)
        elif reason is Reason.DEMOTED:
            self._doom(self._entries(), reason)
            self._sweep()

    @locked
    def suspect(self, now: float) -> None:
        """Have the server asked before anything is lent that was not heard of since *now*."""
        self._suspect(now)

    def _suspect(self, now: float) -> None:
        """Have the server asked before anything is lent that was not heard of since.  Lock held."""
        self.suspect_at = now
        for entry in self._entries():
            entry.warm_until = -inf  # publish: a release that comes later is a flow's ...
        for entry in self._idle_now():
            entry.check_at = -inf  # ... then sweep

    def _retire(self, entry: Entry[C], reason: Reason) -> None:
        """Move the slot of an entry to closing, once.  Lock held."""
        slot = entry.slot
        if slot in self.slots and slot not in self.closing:
            self._close_slot(slot, reason)

    def _close_slot(self, slot: Slot, reason: Reason) -> None:
        """Turn a slot into work for `next_to_close`.  Lock held."""
        slot.until = inf  # of the dial, if it was one; `next_to_close` sets the grace
        slot.reason = reason
        self.opening.pop(slot, None)
        self.limited.pop(slot, None)
        self.debris.append(slot)
        self._bury(slot)

    def _bury(self, slot: Slot) -> None:
        """Count a slot as closing, once.  Lock held.

        No call stands in here, and so no interrupt: what is counted is done.  If one kept the slot from
        coming here, `next_to_close` sends it.
        """
        if slot not in self.closing:
            slot.entry_ref = slot.conn_ref = None  # nobody needs to hear of their end any more
            slot.validating = False
            self.closing[slot] = None
            if slot.opened:
                self.totals.discards[slot.reason] += 1

    @locked
    def detach(self, conn: C) -> bool:
        """Forget a lent connection without closing it; False if it is not on loan."""
        slot = self._slot_of(conn)
        entry = slot and slot.entry_ref and slot.entry_ref()
        if slot is None or not isinstance(entry, Entry) or entry in self.idle:
            return False
        entry.doomed = Reason.DETACHED
        entry.warm_until = -inf  # sends its release to the flows
        self.bare.pop(slot.bare, None)
        self._free(slot, Reason.DETACHED)
        return True

    @locked
    def knows(self, conn: C) -> bool:
        """Tell whether a connection is in the pool."""
        return self._slot_of(conn) is not None

    @locked
    def whereabouts(self, conn: C) -> str:
        """Say where a connection is, to a caller who expected it on loan from `acquire`."""
        slot = self._slot_of(conn)
        if slot is None:
            return "this connection is not from this pool, or the pool has given it up"
        entry = slot.entry_ref and slot.entry_ref()
        if entry is None or entry in self.idle:
            return "this connection is not on loan: it has been released already"
        return "this connection was lent by a `with` block, which gives it back itself"

    def _slot_of(self, conn: C) -> Slot | None:
        """Return the slot of a connection, whoever has it.  Lock held."""
        for slot in self.slots if conn is not None else ():
            if slot.conn is conn or (slot.conn_ref is not None and slot.conn_ref() is conn):
                return slot
        return None

    @locked
    def fold(self, entry: Entry[C]) -> None:
        """Fold the collected durations of an entry; doom it if it has been used often enough."""
        slot = entry.slot
        slot.uses += len(slot.holds)
        self.totals.use.fold(slot.holds)
        slot.holds.clear()
        entry.batch = self._batch(slot)
        if not entry.batch:
            entry.doomed = entry.doomed or Reason.USES

    def _batch(self, slot: Slot) -> int:
        """Return the number of uses until the next fold: exact `max_uses` at no cost.  Lock held."""
        most = self.options.max_uses
        return BATCH if most is None else min(BATCH, most - slot.uses)

    # -- opening -------------------------------------------------------------------------------------

    def owes(self) -> bool:
        """Tell, without the lock and so only roughly, whether somebody should follow up."""
        return bool(
            self.debris or self.lost or self.notes or (len(self.slots) < self.max_size and self._demand() > 0)
        )

    def _demand(self) -> int:
        """Return the number of connections that are missing, dials under way not counted."""
        if self.closed or self.suspended:
            return 0
        wanted = max((watcher.wanted for watcher in self._watchers), default=0)
        missing = len(self.waiters) + max(0, self.min_idle - len(self.idle))
        return max(missing, wanted - self.available(), self.refill)

    @locked
    def plan(self, now: float, until: float) -> Entry[C] | None:
        """Reserve a place for one dial, if somebody needs it and nothing forbids it.

        The place is given up at *until*, whatever has become of the dial.

        Demand is counted when a seat is free, so a dial is never queued, and the returned connections
        of a short spike cancel the dials it would have asked for.
        """
        self._free_overdue(now)
        self._match()
        if self.closed or now < self.retry_at or len(self.slots) >= self.max_size:
            return None
        # While dials fail, one prober at a time is enough to notice that the server is back.
        seats = 1 if self.failures else self.options.max_connecting
        if len(self.opening) >= min(seats, self._demand()):
            return None
        slot = Slot()
        entry: Entry[C] = Entry(slot, self._batch(slot))
        ref = Ref(entry, self.lost.append)
        ref.slot = slot
        slot.entry_ref = ref
        slot.until = until
        self.slots[slot] = None  # the place is taken from here; if the entry dies, the callback frees it
        self.opening[slot] = None
        self.totals.dials += 1
        if self.born_at is None:
            self.born_at = now
        self.totals.peak_size = max(self.totals.peak_size, len(self.slots))
        return entry

    @locked
    def opened(self, entry: Entry[C], seconds: float) -> None:
        """Deliver a new connection, or see to its closing if its place was given up meanwhile."""
        slot = entry.slot
        if slot not in self.slots:
            self.debris.append(slot)
            return
        try:
            slot.conn_ref = Ref(slot.conn, self.lost.append)
            slot.conn_ref.slot = slot
        except TypeError:
            pass  # cannot be referenced weakly: see lend_bare
        self.totals.connect.fold([seconds])
        self.opening.pop(slot, None)
        slot.until = inf
        if self.failures:
            self.notes.append(("dial_recovered", self.failures))
        self.failures = self.abandoned = 0
        self.last_error = self.last_fault = None
        self.retry_at = 0.0
        self.ever_opened = True
        # No call stands between these two, and so no interrupt.  One that strikes from here on finds the
        # dial done: the entry is delivered, or it is lost and found like any other.
        slot.opened = True
        self.totals.opened += 1
        if entry.doomed:
            self._retire(entry, entry.doomed)
        else:
            self.refill = max(0, self.refill - 1)
            self.idle.append(entry)
            self._match()
        self._notify()

    @locked
    def dial_failed(
        self,
        entry: Entry[C],
        error: BaseException,
        *,
        fault: Fault,
        fatal: bool,
        now: float,
        chance: float,
    ) -> None:
        """Free the place of a failed dial and set the pause before the next one.

        Nobody fails who could still be served by a connection in use.  With none, a fatal error, or
        the first error of a pool that never had a connection, ends all waiting.
        """
        slot = entry.slot
        if slot not in self.slots:  # given up before it failed
            if slot.conn is not None:
                self.debris.append(slot)
            return
        if slot.opened:
            return  # struck after it had succeeded
        self.totals.faults[fault] += 1
        self._note_failure(error, fault, now)
        self.refill = 0  # whoever needs one asks for it
        self.retry_at = now + upkeep.pause(self.failures, waiting=bool(self.waiters), chance=chance)
        self._discard_dial(slot)
        if fatal:
            self._fail_watchers(error)
        if (fatal or not self.ever_opened) and not self.available():
            self._fail_waiters(error)

    def _note_failure(self, error: BaseException, fault: Fault, now: float) -> None:
        """Keep what a dial has failed with.  Lock held."""
        if not self.failures:
            self.failing_since = now
        self.failures += 1
        self.last_error, self.last_fault, self.failed_at = error, fault, now
        if isinstance(error, Exception):  # else it was struck: its caller knows
            self.notes.append(("dial_failed", error))

    def _fail_watchers(self, error: BaseException) -> None:
        """Tell those who wait for connections to be opened that they will not be.  Lock held."""
        for watcher in self._watchers.copy():
            if watcher.wanted:
                self._watchers.remove(watcher)
                watcher.waiter.outcome = error
                watcher.waiter.wake()

    def available(self) -> int:
        """Return the number of connections that are open and not being closed."""
        return len(self.slots) - len(self.opening) - len(self.closing)

    def _discard_dial(self, slot: Slot) -> None:
        """Free the place of a dial; a connection that it got as far as is to be closed.  Lock held."""
        if slot.conn is not None:
            self._close_slot(slot, Reason.BROKEN)
        else:
            self._free(slot)

    def _free_overdue(self, now: float) -> None:
        """Give up dials and closings that have taken too long.  Lock held."""
        for slot in [slot for slot in self.closing if slot.until <= now]:
            self._free(slot)
        for slot in [slot for slot in self.opening if slot.until <= now]:
            if slot in self.slots:
                self.abandoned += 1
                given_up = TimeoutError("the dial was given up: no answer within connect_timeout")
                self._note_failure(given_up, Fault.DEAD, now)
                self.retry_at = now + upkeep.abandoned_pause(self.abandoned)
            self._abandon(slot)

    def _abandon(self, slot: Slot) -> None:
        """Free the place of a dial that goes on.  Lock held."""
        self.totals.faults[Fault.DEAD] += slot in self.slots
        conn = slot.conn
        self._free(slot)
        slot.conn = conn  # if the dial got that far, its flow still closes what it opened

    # -- closing -------------------------------------------------------------------------------------

    @locked
    def next_to_close(self, now: float) -> Slot | None:
        """Return the next slot whose connection the caller must close, and then call `freed`."""
        if not self.debris:
            return None
        slot = self.debris[0]
        if slot in self.slots:  # not given up before, and not here twice
            self._bury(slot)
        slot.until = now + upkeep.CLOSE_GRACE  # from here on it is freed even if nobody reports back
        self.debris.popleft()
        return slot

    @locked
    def freed(self, slot: Slot) -> None:
        """Free the place of a connection that has been closed."""
        self._free(slot)

    def _free(self, slot: Slot, reason: Reason | None = None) -> None:
        """Take a slot out of the registry; harmless when repeated.  Lock held.

        *reason* counts a connection that is discarded without being closed by us.
        """
        # The registry first: what an interrupt leaves in the other sets is overdue one day.
        if slot in self.slots:
            del self.slots[slot]
            if reason is not None:
                self.totals.discards[reason] += 1
        slot.entry_ref = slot.conn_ref = slot.conn = None
        self.opening.pop(slot, None)
        self.closing.pop(slot, None)
        self.limited.pop(slot, None)
        holds, slot.holds = slot.holds, []
        self.totals.use.fold(holds)
        self._notify()

    def _reclaim(self) -> None:
        """Take back what was lost.  Lock held."""
        while self.lost:
            item = self.lost[0]
            if isinstance(item, Entry):  # given back by the collector, from inside the lock
                self._retire(item, Reason.LOST)
            elif (slot := item.watched()) in self.slots and slot not in self.closing:
                if not slot.opened:
                    self.totals.faults[Fault.ORDINARY] += 1  # struck by an exception of its caller's
                    self._discard_dial(slot)
                elif slot.conn is not None:
                    self._note_leak(slot)
                    self._close_slot(slot, Reason.LOST)
                else:  # a bare connection that is garbage: its driver has closed it
                    entry = self.bare.get(slot.bare)
                    if entry is not None and entry.slot is slot:  # else its id is another one's by now
                        del self.bare[slot.bare]
                    del entry
                    self._note_leak(slot)
                    self._free(slot, Reason.LOST)
            if self.lost and self.lost[0] is item:  # a finalizer may have come in between
                self.lost.popleft()

    def _note_leak(self, slot: Slot) -> None:
        """Have the operator told of a borrower who has lost what he was lent.  Lock held."""
        if slot.owner is not None and slot.code is not None:
            self.notes.append(("leak", (slot.code, slot.lasti)))

    # -- time limits ---------------------------------------------------------------------------------

    @locked
    def limit(self, slot: Slot, until: float) -> None:
        """Note that a call which nobody can limit has the connection of a slot until an instant."""
        self.limited[slot] = until

    @locked
    def unlimit(self, slot: Slot) -> bool:
        """Note that the call has returned; return whether it was cut off.

        The cut may be still to come, whatever the connection looks like: nobody must be lent it any more.
        """
        if self.limited.pop(slot, None) is not None or slot not in self.slots:  # the hook has detached it
            return False
        entry = slot.entry_ref and slot.entry_ref()
        if isinstance(entry, Entry):
            entry.doomed = entry.doomed or Reason.BROKEN
        return True

    @locked
    def overstayed(self, now: float) -> list[object]:
        """Return the connections to cut, because a call on them has taken too long."""
        late = [slot for slot, until in self.limited.items() if until <= now]
        for slot in late:
            del self.limited[slot]
        return [slot.conn for slot in late if slot.conn is not None]

    # -- the pool as a whole -------------------------------------------------------------------------

    @locked
    def prune(self, now: float) -> None:
        """Retire idle entries that have expired, or that nobody needed for `idle_timeout`."""
        timeout = self.options.idle_timeout
        spare = len(self.idle) - self.min_idle
        for entry in self._idle_now():  # from the bottom: the longest idle first
            if now >= entry.expires:
                reason = Reason.LIFETIME
            elif now >= entry.heard_at() + entry.idle_limit:
                reason = Reason.SERVER_LIMIT
            elif timeout is not None and spare > 0 and now >= entry.idle_since + timeout:
                reason = Reason.IDLE
            else:
                continue
            try:
                self.idle.remove(entry)
            except ValueError:
                continue  # lent meanwhile
            self._retire(entry, reason)
            spare -= 1

    @locked
    def due(self, now: float) -> float | None:
        """Return the next instant at which time alone gives the pool something to do."""
        instants = [slot.until for slot in (*self.opening, *self.closing)]
        instants += self.limited.values()
        if self.closed:
            earliest = min(instants, default=inf)
            return None if earliest == inf else earliest
        if now < self.retry_at and len(self.slots) < self.max_size and self._demand() > 0:
            instants.append(self.retry_at)
        idle = self._idle_now()
        timeout = self.options.idle_timeout
        if timeout is not None:
            instants += [entry.idle_since + timeout for entry in idle[: max(0, len(idle) - self.min_idle)]]
        instants += [entry.expires for entry in idle]
        instants += [entry.heard_at() + min(entry.idle_limit, entry.ping_every) for entry in idle]
        if self.available() > len(idle):  # those in use may be idle next, and nobody will tell
            entries = self._entries()
            instants += [entry.expires for entry in entries if entry.expires > now]
            instants += [now + min(entry.idle_limit, entry.ping_every) for entry in entries]
            instants += [now + timeout] if timeout is not None else []
        warn_after = self.options.warn_after
        if warn_after is not None:  # idle ones may be lent next, and nobody will tell
            lent = [entry.lent_at + warn_after for entry in self._entries()]
            instants += [at if at > now else now + warn_after for at in lent]
        if self.min_idle and self.slots:
            instants.append(now + upkeep.MIN_IDLE_CHECK)
        earliest = min(instants, default=inf)
        return None if earliest == inf else earliest

    def _idle_now(self) -> list[Entry[C]]:
        """Return the idle entries at this moment, longest idle first.  Lock held."""
        while True:
            try:
                return list(self.idle)
            except RuntimeError:  # a collection ran inside list() and let a warm path in
                continue

    @locked
    def next_to_ping(self, now: float) -> Entry[C] | None:
        """Take an idle entry whose server is to be asked, so that it stays; `give_back` it then."""
        for entry in self._idle_now():
            if not entry.doomed and now >= entry.heard_at() + entry.ping_every:
                try:
                    self.idle.remove(entry)
                except ValueError:
                    continue  # lent meanwhile
                entry.slot.validating = True
                return entry
        return None

    @locked
    def give_back(self, entry: Entry[C]) -> None:
        """Put an entry back that was taken by `next_to_ping`: nobody has used it."""
        entry.slot.validating = False
        if entry.doomed:
            self._retire(entry, entry.doomed)
        else:
            self.idle.appendleft(entry)
            self._match()

    @locked
    def evict(self, now: float = 0.0, over: float = 0.0, *, refill: bool = True) -> None:
        """Doom every connection there is: idle ones now, others when they come back or arrive.

        With *over* each one's lifetime ends within so many seconds instead, one after the other.  Without
        *refill* nothing is opened in their place before it is needed.
        """
        entries = [entry for entry in self._entries() if not entry.doomed]
        opened = [entry for entry in entries if entry.slot.opened]
        if not over:
            # Those in use are replaced too: where there is room, before they come home.  Of those that are
            # lent only once none would have come home.
            gaps = len(self.idle) if self.options.max_uses == 1 else len(opened)
            self.refill = min(self.refill + gaps, self.max_size) if refill else 0
            self._doom(entries, Reason.EVICTED)
            self._sweep()
            return
        self._doom([entry for entry in entries if not entry.slot.opened], Reason.EVICTED)
        for number, entry in enumerate(opened):
            entry.expires = min(entry.expires, now + over * (number + 1) / len(opened))
            entry.warm_until = min(entry.warm_until, entry.expires)  # publish ...
        for entry in self._idle_now():
            entry.check_at = min(entry.check_at, entry.expires)  # ... then sweep

    @locked
    def suspend(self) -> None:
        """Serve nobody until `resume`; who comes waits."""
        self.suspended = not self.closed
        if not self.waiters or self.waiters[0] is not self._gate:
            self.waiters.appendleft(self._gate)

    @locked
    def resume(self) -> None:
        """Serve callers again, those that wait first."""
        if self.suspended:
            self.suspended = False
            if self.waiters and self.waiters[0] is self._gate:
                self.waiters.popleft()
            self._match()

    def hopeless(self, deadline: float) -> bool:
        """Tell whether nobody can be served before an instant: nothing is there, and no dial will be."""
        return self.retry_at > deadline and self._hopeless(deadline)

    @locked
    def _hopeless(self, deadline: float) -> bool:
        nothing = len(self.slots) == len(self.closing)
        return nothing and self.retry_at > deadline and not self.suspended

    @locked
    def lent(self) -> list[object]:
        """Return the connections in other hands, as far as they are known."""
        idle = {id(entry.slot) for entry in self._idle_now()}
        slots = [slot for slot in self.slots if slot.opened and slot not in self.closing]
        found = [slot.known() for slot in slots if id(slot) not in idle]
        return [conn for conn in found if conn is not None]

    @locked
    def ask(self, slot: Slot, waiter: Waiter) -> bool:
        """Tell whether a dial is the one to ask for credentials; else its waiter is woken for them.

        A dial that was given up, or lost, asks no more, whatever its provider does.
        """
        if self.asker is None or self.asker not in self.opening:
            self.asker = slot
            return True
        if waiter not in self.asking:
            self.asking.append(waiter)
        return False

    @locked
    def answered(self, slot: Slot, outcome: object) -> None:
        """Give everybody who waits for credentials what came of it."""
        if self.asker is slot:
            self.asker = None
        waiters, self.asking = self.asking, []
        for waiter in waiters:
            waiter.outcome = outcome
            waiter.wake()

    @locked
    def resize(self, max_size: int, min_idle: int) -> None:
        """Change the bounds; what exceeds them leaves, idle ones first, then dials, then those in use."""
        self.max_size = max_size
        self.min_idle = min_idle
        surplus = len(self.slots) - len(self.closing) - max_size
        while surplus > 0 and self.idle:
            try:
                entry = self.idle.popleft()
            except IndexError:
                break
            self._retire(entry, Reason.SURPLUS)
            surplus -= 1
        if surplus > 0:
            rest = sorted(self._entries(), key=lambda entry: entry.slot.opened)
            self._doom(rest[:surplus], Reason.SURPLUS)
            self._sweep()
        self._match()

    @locked
    def shut(self) -> None:
        """Close the pool: nobody is served any more, and whatever comes back is closed."""
        self.closed = True
        self.suspended = False
        if not self.waiters or self.waiters[0] is not self._gate:  # or an interrupt struck the last time
            self.waiters.appendleft(self._gate)  # publish: from here on every caller takes the flows
        self._doom(self._entries(), Reason.CLOSED)
        self._sweep()
        for slot in list(self.opening):
            self._abandon(slot)  # a dial into a black hole must not hold up whoever closes
        self._fail_waiters(Refusal.CLOSED)
        self._notify()

    @locked
    def entries(self) -> list[Entry[C]]:
        """Return the entries of all places, in whosever hands they are; to be looked at, not to be kept."""
        return self._entries()

    def _entries(self) -> list[Entry[C]]:
        """Return the entries of all places, in whosever hands they are.  Lock held."""
        entries = (slot.entry_ref and slot.entry_ref() for slot in self.slots)
        return [entry for entry in entries if isinstance(entry, Entry)]

    def _doom(self, entries: list[Entry[C]], reason: Reason) -> None:
        """Mark entries, in whosever hands they are.  Lock held."""
        for entry in entries:
            entry.doomed = entry.doomed or reason

    def _sweep(self) -> None:
        """Retire the doomed among the idle entries.  Lock held."""
        self._sweep_if(lambda entry: entry.doomed is not None)

    def _sweep_if(self, condition: Callable[[Entry[C]], bool], reason: Reason = Reason.BROKEN) -> None:
        """Retire idle entries, each for what it is doomed for or else for *reason*.  Lock held."""
        for entry in self._idle_now():
            if condition(entry):
                try:
                    self.idle.remove(entry)
                except ValueError:
                    continue  # taken meanwhile; the taker looks at `doomed` itself
                self._retire(entry, entry.doomed or reason)

    @locked
    def watch(self, watcher: Watcher) -> None:
        """Settle a watcher's waiter once its condition holds."""
        self._watchers.append(watcher)
        self._notify()

    @locked
    def unwatch(self, watcher: Watcher) -> None:
        """Stop watching; harmless when repeated."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def _notify(self) -> None:
        """Wake the watchers whose condition holds now.  Lock held."""
        for watcher in self._watchers.copy():
            if watcher.holds_now():
                self._watchers.remove(watcher)
                watcher.waiter.outcome = True
                watcher.waiter.wake()

    def lend_bare(self, entry: Entry[C]) -> C:
        """Let go of the connection of an entry, so that only its borrower keeps it alive.

        If it becomes garbage, `conn_ref` reports the slot as lost.  A connection that cannot be
        referenced weakly stays with its slot: it is never lost, and never reclaimed either.

        The order matters to an interrupt: until the entry is noted, it dies with its caller's frame,
        and with it the slot is lost and found.
        """
        conn, slot = entry.conn, entry.slot
        if slot.conn_ref is not None:
            slot.conn = None
            del entry.conn
        slot.bare = id(conn)
        self.bare[slot.bare] = entry
        return conn

    def take_bare(self, conn: C) -> Entry[C] | None:
        """Undo `lend_bare`; ``None`` if the connection was not lent so."""
        entry = self.bare.pop(id(conn), None)
        if entry is None:
            return None
        slot = entry.slot
        if slot.conn_ref is not None and slot.conn_ref() is not conn:
            return None  # another object, which has got the id of a lost one
        entry.conn = slot.conn = conn
        slot.bare = 0
        return entry

    # -- who has what --------------------------------------------------------------------------------

    @locked
    def borrows(self) -> list[Borrow]:
        """Return what is lent, the longest first."""
        return sorted(self._borrows(), key=lambda borrow: borrow.since)

    def _borrows(self) -> list[Borrow]:
        """Return what is lent, as far as its borrowers are known.  Lock held."""
        idle = {id(entry) for entry in self._idle_now()}
        found = []
        for slot in self.slots:
            entry = slot.entry_ref and slot.entry_ref()
            lent = slot.opened and slot.owner is not None and slot not in self.closing
            if isinstance(entry, Entry) and lent and id(entry) not in idle:
                site = None if slot.code is None else (slot.code, slot.lasti)
                found.append(Borrow(slot, slot.owner, site, entry.lent_at, slot.bare in self.bare))
        return found

    def has(self, owner: object) -> bool:
        """Tell whether a borrower may have a connection; for himself, who is the only one to change it.

        Most have none when they ask for one, so this takes no lock, and looks at nobody who waits.
        """
        return owner in map(_OWNER, self.slots.copy())

    @locked
    def standoff(self, waiter: Waiter) -> list[Borrow]:
        """Return all borrows if everything is lent to those who wait; else nothing.

        It can only come about when somebody who has a connection begins to wait: see `has`.
        """
        if self.suspended or len(self.slots) < self.max_size:
            return []
        borrows = self._borrows()
        waiting = {other.owner for other in self.waiters if other.outcome is None and other is not self._gate}
        mine = any(borrow.owner == waiter.owner for borrow in borrows)
        if not mine or len(borrows) < self.max_size or any(b.owner not in waiting for b in borrows):
            return []
        return borrows

    @locked
    def deadlocked(self, waiter: Waiter) -> object:
        """Leave the queue for a deadlock; return the outcome if there was one already."""
        self.totals.deadlocks += waiter.outcome is None
        return self._leave(waiter)

    @locked
    def held_by(self, owner: object) -> list[Borrow]:
        """Return what a borrower has."""
        return [borrow for borrow in self._borrows() if borrow.owner == owner]

    @locked
    def asked(self) -> dict[object, Site | None]:
        """Return who waits, and where each has asked."""
        return {waiter.owner: waiter.site for waiter in self.waiters if waiter.outcome is None}

    @locked
    def overdue(self, before: float) -> list[Borrow]:
        """Return what was lent before an instant, each once, and have its release told."""
        late = [borrow for borrow in self._borrows() if borrow.since <= before and not borrow.slot.overdue]
        for borrow in late:
            borrow.slot.overdue = True
            entry = borrow.slot.entry_ref and borrow.slot.entry_ref()
            if isinstance(entry, Entry):
                entry.warm_until = -inf  # sends its release to the flows
        return late

    # -- figures -------------------------------------------------------------------------------------

    @locked
    def refused(self) -> None:
        """Count an acquire that was refused because nothing could be opened."""
        self.totals.unavailable += 1

    @locked
    def rolled_back(self) -> None:
        """Count a rollback."""
        self.totals.rollbacks += 1

    @locked
    def pinned(self) -> None:
        """Count a session that is kept for one user."""
        self.totals.pins += 1

    @locked
    def was_reset(self, seconds: float, *, steps: bool, failed: bool) -> None:
        """Count a return that took more than a verdict."""
        self.totals.resets += steps and not failed
        self.totals.reset_failures += failed
        self.totals.reset.fold([seconds])

    @locked
    def brief(self) -> str:
        """Return the state of the pool in a few words, for messages."""
        validating = self._validating()
        return (
            f"{'suspended, ' if self.suspended else ''}{self._in_use()} of {self.max_size} in use, "
            f"{len(self.idle)} idle, {len(self.opening)} opening, "
            f"{f'{validating} validating, ' if validating else ''}{self._waiting()} waiting"
        )

    def _waiting(self) -> int:
        """Return the number of callers in the queue.  Lock held."""
        return len(self.waiters) - (self.closed or self.suspended)

    def _validating(self) -> int:
        """Return the number of connections that are looked at or handed over.  Lock held."""
        return sum(slot.validating for slot in self.slots)

    def _in_use(self) -> int:
        """Return the number of connections that somebody has.  Lock held."""
        return max(0, self.available() - len(self.idle) - self._validating())

    @locked
    def snapshot(self, name: str, now: float, *, dedicated: int = 0, reading: bool = False) -> PoolStats:
        """Return all figures at one instant; *reading* begins the peaks anew."""
        totals = self.totals
        use, wait = totals.use.copy(), totals.wait.copy()
        for slot in self.slots:
            use.add(slot.holds.copy())
        wait.add(self.waits.copy())
        idle, validating = len(self.idle), self._validating()
        in_use = max(0, self.available() - idle - validating)
        gone = totals.discards[Reason.LOST] + totals.discards[Reason.DETACHED]
        # Idle connections are a stack: what was lent at any time was once lent together.
        lent = sum(entry.lent_at > self.read_at for entry in self._entries())
        first = next((waiter for waiter in self.waiters if waiter is not self._gate), None)
        stats = PoolStats(
            name=name,
            age=0.0 if self.born_at is None else now - self.born_at,
            max_size=self.max_size,
            min_idle=self.min_idle,
            size=len(self.slots),
            idle=idle,
            in_use=in_use,
            opening=len(self.opening),
            validating=validating,
            closing=len(self.closing),
            waiting=self._waiting(),
            oldest_wait=0.0 if first is None else max(0.0, now - first.since),
            peak_size=totals.peak_size,
            peak_in_use=max(totals.peak_in_use, in_use, lent),
            peak_waiting=totals.peak_waiting,
            acquires=use.count + gone + in_use,
            releases=use.count + gone,
            waits=wait.count,
            timeouts=totals.timeouts,
            overloads=totals.overloads,
            unavailable=totals.unavailable,
            deadlocks=totals.deadlocks,
            dials=totals.dials,
            dial_failures=totals.dial_failures,
            faults=totals.faults.copy(),
            opened=totals.opened,
            discards=totals.discards.copy(),
            leaks=totals.discards[Reason.LOST],
            rollbacks=totals.rollbacks,
            pins=totals.pins,
            resets=totals.resets,
            reset_failures=totals.reset_failures,
            reset_policy=self.options.reset_policy,
            dedicated=dedicated,
            wait=wait,
            use=use,
            connect=totals.connect.copy(),
            reset=totals.reset.copy(),
        )
        if reading:
            self.read_at = now
            totals.peak_size, totals.peak_in_use, totals.peak_waiting = len(self.slots), in_use, stats.waiting
        return stats

    def _fold_waits(self) -> None:
        """Move the collected waiting times into the histogram.  Lock held; others may be appending."""
        batch = self.waits[:BATCH]
        del self.waits[:BATCH]
        self.totals.wait.fold(batch)
