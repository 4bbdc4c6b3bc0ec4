"""A hypothesis state machine over the core: any order of transitions, against a model that is simple.

The model knows who was queued when, and who owns what; it knows nothing of how the core does it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

from engine.driver import NOW, Caller, assert_lawful, connect, dial, make_core
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from connpool.adapter import Fault
from connpool.engine import upkeep
from connpool.engine.core import Core
from connpool.engine.records import Entry, Refusal, Slot
from connpool.stats import Reason
from connpool.testing import FakeConnection, FakeServer

GRACE = upkeep.CLOSE_GRACE
PATIENCE = 10.0  # seconds after which a dial is given up
WAITING = 3  # the bound of the queue


T = TypeVar("T")


def pick(data: st.DataObject, things: list[T]) -> T:
    """Take any one of them out of a list, and let hypothesis keep nothing of it but its number."""
    return things.pop(data.draw(st.integers(0, len(things) - 1), "index"))


def choose(data: st.DataObject, events: list[Callable[[st.DataObject], None]]) -> None:
    """Have one of several events happen."""
    names = [event.__name__ for event in events]
    events[names.index(data.draw(st.sampled_from(names), "event"))](data)


class Pool(RuleBasedStateMachine):
    """What callers, dials, helpers, the operator and time do to a core."""

    def __init__(self) -> None:
        super().__init__()
        self.server = FakeServer()
        self.now = NOW
        self.core: Core[FakeConnection] = make_core()
        self.queue: list[Caller] = []  # the model's: who waits, oldest first
        self.served: list[Caller] = []  # handed an entry, not woken up yet
        self.lent: list[Entry[FakeConnection]] = []
        self.hooked: list[Entry[FakeConnection]] = []  # a hook has them
        self.limits: dict[Slot, float] = {}  # of hooks
        self.dials: list[Entry[FakeConnection]] = []
        self.closing: list[tuple[Slot, FakeConnection, float]] = []
        self.doomed: set[int] = set()  # the numbers of connections that must not be lent again
        self.closed = False
        self.age = 0  # steps
        self.timeouts = 0
        self.overloads = 0
        self.uses = 0

    @initialize(
        max_size=st.integers(1, 4),
        min_idle=st.integers(0, 2),
        max_connecting=st.integers(1, 3),
        max_waiting=st.sampled_from((None, WAITING)),
        max_uses=st.sampled_from((None, None, 1, 3)),
        lent=st.integers(0, 4),
    )
    def begin(
        self,
        max_size: int,
        min_idle: int,
        max_connecting: int,
        max_waiting: int | None,
        max_uses: int | None,
        lent: int,
    ) -> None:
        self.core = make_core(
            max_size=max_size,
            min_idle=min(min_idle, max_size),
            max_connecting=max_connecting,
            max_waiting=max_waiting,
            max_uses=max_uses,
            idle_timeout=5.0,
        )
        self.max_size = max_size
        self.max_connecting = max_connecting
        self.max_waiting = max_waiting
        for _ in range(min(lent, max_size)):
            self.core.queue(caller := Caller())
            connect(self.core, dial(self.core), self.server.accept())
            self.lent.append(caller.take())

    # -- rules: who acts ------------------------------------------------------------------------------
    #
    # Few rules with many events each: hypothesis switches whole rules off, example by example, and a
    # connection that is never dialled is never lent.

    @rule(data=st.data())
    def a_caller_acts(self, data: st.DataObject) -> None:
        events = [self.a_caller_comes]
        if self.core.idle and not self.core.waiters:
            events.append(self.a_caller_comes_by_the_warm_path)
        if self.queue:
            events.append(self.a_caller_leaves)
        choose(data, events)

    @precondition(lambda self: self.served or self.lent)
    @rule(data=st.data())
    def a_borrower_acts(self, data: st.DataObject) -> None:
        events = []
        if self.served:
            events += [self.callers_wake_up] * 3
            events += [self.a_caller_leaves_too_late, self.a_candidate_turns_out_to_be_dead]
        if self.lent:
            events += [self.a_connection_comes_back] * 2
            events += [
                self.a_connection_comes_back_broken,
                self.a_connection_is_detached,
                self.an_entry_is_lost,
            ]
            events += [self.a_hook_begins] * 3
            if not self.closed:
                events += [self.a_connection_comes_back_by_the_warm_path] * 3
        choose(data, events)

    @precondition(lambda self: self.hooked)
    @rule(data=st.data())
    def a_hook_acts(self, data: st.DataObject) -> None:
        choose(
            data,
            [
                self.a_hook_detaches,
                self.a_hook_returns,
                self.a_hook_returns,
                self.a_hook_is_struck,
                self.a_hook_is_lost,
            ],
        )

    @precondition(lambda self: self.dials or self.closing or self.core.owes())
    @rule(data=st.data())
    def a_helper_acts(self, data: st.DataObject) -> None:
        events = []
        if self.core.owes():
            events += [self.dials_are_planned, self.closings_begin]
        if self.dials:
            events += [self.a_dial_succeeds] * 3
            events += [self.a_dial_fails, self.a_dial_is_lost]
        if self.closing:
            events += [self.a_closing_ends]
        choose(data, events)

    @rule(data=st.data())
    def the_world_goes_on(self, data: st.DataObject) -> None:
        events = [self.time_passes] * 2
        if self.age > 10:
            events.append(self.an_operator_comes)
        choose(data, events)

    # -- time and operator -----------------------------------------------------------------------------

    def an_operator_comes(self, data: st.DataObject) -> None:
        order = data.draw(st.sampled_from(("evict", "resize", "resize", "close")), "order")
        if order == "resize" and not self.closed:
            self.max_size = data.draw(st.integers(1, 4), "max_size")
            self.core.resize(self.max_size, data.draw(st.integers(0, self.max_size), "min_idle"))
            staying = [entry for entry in self.owned() if not entry.doomed]
            assert len(staying) + len(self.core.idle) <= self.max_size
        elif order == "evict":
            self.core.evict()
            self.doom_all()
        elif self.age > 40:  # little happens in a closed pool
            self.core.shut()
            self.closed = True
            assert all(caller.outcome is Refusal.CLOSED for caller in self.queue)
            self.queue.clear()
            self.doom_all()

    def time_passes(self, data: st.DataObject) -> None:
        """And housekeeping is done, which has nothing to do most of the time."""
        self.now += data.draw(st.sampled_from((0.01, 0.5, 1.0, 11.0, 100.0)), "seconds")
        self.core.rematch(None)
        over = {slot.conn for slot, until in self.limits.items() if until <= self.now and self.is_held(slot)}
        cut = self.core.overstayed(self.now)
        assert len(cut) == len(over)
        assert set(cut) == over
        self.limits = {slot: until for slot, until in self.limits.items() if until > self.now}
        idle = list(self.core.idle)
        self.core.prune(self.now)
        gone = [entry for entry in idle if entry not in self.core.idle]
        assert gone == idle[: len(gone)], "not the longest idle"
        assert len(self.core.idle) >= min(len(idle), self.core.min_idle)
        due = self.core.due(self.now)
        assert not self.core.limited or (due or inf) <= min(self.core.limited.values())
        if due is None:
            assert not self.core.opening
            assert not any(slot.until < inf for slot in self.core.closing)
            assert self.closed or len(self.core.idle) <= self.core.min_idle

    # -- callers ---------------------------------------------------------------------------------------

    def a_caller_comes(self, data: st.DataObject) -> None:
        caller = Caller()
        idle, room = len(self.core.idle), max(0, self.max_size - self.core.available())
        outcome = self.core.queue(caller)
        if self.closed:
            assert outcome is Refusal.CLOSED
        elif idle:
            assert isinstance(outcome, Entry), "an idle connection is at hand"
            self.served.append(caller)
        elif self.max_waiting is not None and len(self.queue) >= self.max_waiting + room:
            assert outcome is Refusal.OVERLOADED
            self.overloads += 1
        else:
            assert outcome is None
            self.queue.append(caller)

    def a_caller_comes_by_the_warm_path(self, data: st.DataObject) -> None:
        entry = self.core.idle.pop()
        assert not entry.doomed
        self.lent.append(entry)

    def a_caller_leaves(self, data: st.DataObject) -> None:
        timed_out = data.draw(st.booleans(), "timed_out")
        caller = pick(data, self.queue)
        assert self.core.leave(caller, timed_out=timed_out) is Refusal.LEFT
        self.timeouts += timed_out

    def callers_wake_up(self, data: st.DataObject) -> None:
        while self.served:
            self.lent.append(self.served.pop().take())

    def a_caller_leaves_too_late(self, data: st.DataObject) -> None:
        caller = pick(data, self.served)
        entry = self.core.leave(caller, timed_out=True)
        assert isinstance(entry, Entry), "what was delivered got lost"
        self.give(entry)

    def a_candidate_turns_out_to_be_dead(self, data: st.DataObject) -> None:
        caller = pick(data, self.served)
        self.retire(caller.take(), Reason.DEAD)
        again = Caller()
        again.ticket = caller.ticket
        idle = len(self.core.idle)
        outcome = self.core.queue(again)
        if self.closed:
            assert outcome is Refusal.CLOSED
        elif idle:
            assert isinstance(outcome, Entry)
            self.served.append(again)
        else:
            assert outcome is None
            self.queue.append(again)
            self.queue.sort(key=lambda caller: caller.ticket or 0)

    def a_connection_comes_back(self, data: st.DataObject) -> None:
        entry = pick(data, self.lent)
        self.use(entry)
        self.give(entry)

    def a_connection_comes_back_by_the_warm_path(self, data: st.DataObject) -> None:
        entry = pick(data, self.lent)
        self.use(entry)
        entry.idle_since = self.now
        self.core.idle.append(entry)
        if self.core.waiters or entry.doomed:
            self.core.rematch(entry)
        self.note_delivery(entry)

    def a_connection_comes_back_broken(self, data: st.DataObject) -> None:
        entry = pick(data, self.lent)
        self.retire(entry, Reason.BROKEN)

    def a_connection_is_detached(self, data: st.DataObject) -> None:
        entry = pick(data, self.lent)
        assert self.core.detach(entry.conn)
        assert not self.core.detach(entry.conn)

    def an_entry_is_lost(self, data: st.DataObject) -> None:
        reported = len(self.core.lost)
        pick(data, self.lent)
        assert len(self.core.lost) == reported + 1, "nobody heard of its end"

    # -- hooks -----------------------------------------------------------------------------------------

    def a_hook_begins(self, data: st.DataObject) -> None:
        seconds = data.draw(st.sampled_from((0.0, 0.4, 5.0)), "seconds")
        entry = pick(data, self.lent)
        self.core.limit(entry.slot, self.now + seconds)
        self.limits[entry.slot] = self.now + seconds
        self.hooked.append(entry)

    def a_hook_returns(self, data: st.DataObject) -> None:
        entry = pick(data, self.hooked)
        in_time = self.limits.pop(entry.slot, None) is not None
        assert self.core.unlimit(entry.slot) == (not in_time)
        if in_time:
            self.lent.append(entry)
        else:
            self.retire(entry, Reason.HOOK)

    def a_hook_is_struck(self, data: st.DataObject) -> None:
        self.retire(pick(data, self.hooked), Reason.BROKEN)

    def a_hook_is_lost(self, data: st.DataObject) -> None:
        reported = len(self.core.lost)
        pick(data, self.hooked)
        assert len(self.core.lost) == reported + 1, "nobody heard of its end"

    def a_hook_detaches(self, data: st.DataObject) -> None:
        entry = pick(data, self.hooked)
        assert self.core.detach(entry.conn)
        assert not self.core.unlimit(entry.slot), "nobody has cut it"

    def is_held(self, slot: Slot) -> bool:
        """Tell whether somebody holds the entry of a slot, or held it a moment ago."""
        return slot in self.core.slots and slot not in self.core.closing

    # -- dials -----------------------------------------------------------------------------------------

    def dials_are_planned(self, data: st.DataObject) -> None:
        while (entry := self.core.plan(self.now, self.now + PATIENCE)) is not None:
            assert not self.closed
            assert self.now >= self.core.retry_at
            assert len(self.core.slots) <= self.max_size
            assert len(self.core.opening) <= self.max_connecting
            self.dials.append(entry)
        assert all(slot.until > self.now for slot in self.core.opening), "an overdue dial was kept"
        assert all(slot.until > self.now for slot in self.core.closing), "an overdue closing was kept"

    def a_dial_succeeds(self, data: st.DataObject) -> None:
        entry = pick(data, self.dials)
        entry.slot.conn = entry.conn = self.server.accept()
        entry.idle_since = self.now
        given_up = entry.slot not in self.core.slots
        self.core.opened(entry, 0.01)
        if not given_up:
            self.note_delivery(entry)

    def a_dial_fails(self, data: st.DataObject) -> None:
        fatal = data.draw(st.booleans(), "fatal")
        connected = data.draw(st.booleans(), "connected")
        entry = pick(data, self.dials)
        if connected:  # and its hook failed
            entry.slot.conn = entry.conn = self.server.accept()
        given_up = entry.slot not in self.core.slots
        hopeless = (fatal or not self.core.ever_opened) and not self.core.available()
        error = OSError("refused")
        self.core.dial_failed(entry, error, fault=Fault.ORDINARY, fatal=fatal, now=self.now, chance=0.5)
        assert connected or entry.slot not in self.core.slots, "its place is not free"
        if hopeless and not given_up:
            assert all(caller.outcome is error for caller in self.queue)
            self.queue.clear()

    def a_dial_is_lost(self, data: st.DataObject) -> None:
        connected = data.draw(st.booleans(), "connected")
        entry = pick(data, self.dials)
        if connected:
            entry.slot.conn = self.server.accept()
        given_up = entry.slot not in self.core.slots
        reported = len(self.core.lost)
        del entry
        assert given_up or len(self.core.lost) == reported + 1

    # -- closing ---------------------------------------------------------------------------------------

    def closings_begin(self, data: st.DataObject) -> None:
        while (slot := self.core.next_to_close(self.now)) is not None:
            conn = slot.conn
            assert isinstance(conn, FakeConnection), "there is nothing to close"
            assert not conn.closed, "it is closed twice"
            self.closing.append((slot, conn, self.now + GRACE))

    def a_closing_ends(self, data: st.DataObject) -> None:
        slot, conn, _ = pick(data, self.closing)
        conn.close()
        self.core.freed(slot)
        assert slot not in self.core.slots

    # -- operator and time -----------------------------------------------------------------------------

    # -- the model -------------------------------------------------------------------------------------

    def use(self, entry: Entry[FakeConnection]) -> None:
        """Count one use, as the return path does."""
        self.uses += 1
        entry.holds.append(0.01)
        if len(entry.holds) >= entry.batch:
            self.core.fold(entry)
            if entry.doomed:
                self.doomed.add(entry.conn.number)

    def give(self, entry: Entry[FakeConnection]) -> None:
        entry.idle_since = self.now
        self.core.give(entry)
        self.note_delivery(entry)

    def retire(self, entry: Entry[FakeConnection], reason: Reason) -> None:
        self.doomed.add(entry.conn.number)
        self.core.retire(entry, reason, self.now)

    def note_delivery(self, entry: Entry[FakeConnection]) -> None:
        """Check that an entry that became free went to the oldest waiter, if it was fit for him."""
        fit = not entry.doomed and not self.closed
        if fit and self.queue:
            caller = self.queue.pop(0)
            assert caller.outcome is entry, "the oldest waiter was not served"
            assert caller.woken == 1
            self.served.append(caller)
        else:
            assert (entry in self.core.idle) == fit

    def owned(self) -> list[Entry[FakeConnection]]:
        """Return the entries that somebody holds, who is not the idle stack."""
        delivered = [caller.outcome for caller in self.served]
        entries = [
            *self.lent,
            *self.hooked,
            *self.dials,
            *(entry for entry in delivered if isinstance(entry, Entry)),
        ]
        return [entry for entry in entries if entry.slot in self.core.slots]

    def doom_all(self) -> None:
        """Note that none of today's connections may be lent again."""
        assert not self.core.idle
        assert all(entry.doomed for entry in self.owned())
        self.doomed |= {conn.number for conn in self.server.sessions}

    # -- what must always be true ----------------------------------------------------------------------

    @invariant()
    def laws_hold(self) -> None:
        self.age += 1
        assert_lawful(self.core)

    @invariant()
    def queue_is_as_in_the_model(self) -> None:
        waiting = [waiter for waiter in self.core.waiters if waiter is not self.core._gate]
        assert waiting == self.queue
        assert all(caller.outcome is None and caller.woken == 0 for caller in self.queue)

    @invariant()
    def every_entry_has_one_owner(self) -> None:
        entries = [*self.owned(), *self.core.idle]
        assert len({id(entry) for entry in entries}) == len(entries)
        slots = {entry.slot for entry in entries}
        assert len(slots) == len(entries)
        slots |= {item.slot for item in self.core.lost if item.slot in self.core.slots}
        assert slots | self.core.closing.keys() == self.core.slots.keys(), "a place belongs to nobody"

    @invariant()
    def nothing_doomed_is_lent(self) -> None:
        for caller in self.served:
            assert isinstance(caller.outcome, Entry)
        assert not any(entry.conn.number in self.doomed for entry in self.core.idle)
        assert not any(entry.conn.closed for entry in self.core.idle)

    @invariant()
    def whoever_is_limited_holds_a_connection(self) -> None:
        limits = {slot: until for slot, until in self.limits.items() if self.is_held(slot)}
        assert self.core.limited == limits

    @invariant()
    def every_session_is_known(self) -> None:
        known: list[Any] = [slot.conn for slot in (*self.core.slots, *self.core.debris)]
        known += [conn for _, conn, _ in self.closing]
        detached = self.core.totals.discards[Reason.DETACHED]
        unknown = [conn for conn in self.server.sessions if conn not in known]
        assert len(unknown) <= detached, "a session that nobody will close"

    @invariant()
    def figures_are_exact(self) -> None:
        stats = self.core.snapshot("machine", 0.0)
        assert stats.timeouts == self.timeouts
        assert stats.overloads == self.overloads
        assert stats.use.count == self.uses
        assert stats.waiting == len(self.queue)
        assert stats.max_size == self.max_size

    def teardown(self) -> None:
        """Close the pool, let everything come back, and see that nothing is left."""
        core = self.core
        core.shut()
        for caller in self.served:
            core.give(caller.take())
        self.served.clear()
        for entry in self.hooked:
            core.unlimit(entry.slot)
        for entry in (*self.lent, *self.hooked):
            core.give(entry)
        for entry in self.dials:
            core.dial_failed(entry, OSError(), fault=Fault.ORDINARY, fatal=False, now=self.now, chance=0.5)
        while (slot := core.next_to_close(self.now)) is not None:
            core.freed(slot)
        for slot, _, _ in self.closing:
            core.freed(slot)
        assert not core.slots
        assert not core.idle
        assert core.due(self.now) is None


Pool.TestCase.settings = settings(max_examples=300, stateful_step_count=80)
TestPool = Pool.TestCase
