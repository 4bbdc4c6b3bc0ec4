"""The state machine, called directly: no thread, no flow, no sleep.  One section per fear."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest
from engine.driver import (
    NOW,
    Caller,
    Conn,
    Rigid,
    assert_lawful,
    close_all,
    connect,
    dial,
    fail,
    lend,
    make_core,
    queue,
    stock,
)

from connpool.adapter import Fault
from connpool.engine import upkeep
from connpool.engine.core import BATCH, Core
from connpool.engine.records import Entry, Ref, Refusal, Slot, Waiter, Watcher
from connpool.stats import Reason


def discards(core: Core[Any]) -> dict[str, int]:
    """Return the reasons for which connections were discarded, and how many were."""
    return {reason.value: count for reason, count in core.totals.discards.items() if count}


class Contested(deque[Any]):
    """The idle stack of a pool whose other threads take from it at the worst moment.

    The warm path takes no lock, so it can come between any two operations of a transition.
    """

    def __init__(self, core: Core[Any]) -> None:
        super().__init__(core.idle)
        self.taken: list[Entry[Any]] = []
        self.given_back = False
        self.torn = 0  # iterations that are still to be disturbed
        core.idle = self

    def _take(self) -> None:
        while self and not self.given_back:
            self.taken.append(self.pop())

    def give_back(self) -> None:
        self.given_back = True
        while self.taken:
            self.append(self.taken.pop())

    def remove(self, entry: Entry[Any]) -> None:
        self._take()
        super().remove(entry)

    def popleft(self) -> Entry[Any]:
        self._take()
        return super().popleft()

    def __iter__(self) -> Iterator[Entry[Any]]:
        if self.torn:
            self.torn -= 1
            raise RuntimeError("deque mutated during iteration")
        if self.taken:
            self.give_back()
        return super().__iter__()


# -- first come, first served ------------------------------------------------------------------------


def test_waiters_are_served_in_the_order_of_their_arrival() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    callers = queue(core, 4)
    for caller in callers:
        core.give(entry)
        entry = caller.take()
    assert [caller.woken for caller in callers] == [1, 1, 1, 1]


def test_hand_over_wakes_exactly_one() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    first, second = queue(core, 2)
    core.give(entry)
    assert (first.outcome, second.outcome) == (entry, None)
    assert (first.woken, second.woken) == (1, 0)


def test_newcomer_never_overtakes_the_queue() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    (first,) = queue(core)
    core.idle.append(entry)  # a release by the warm path that has not looked yet
    (newcomer,) = queue(core)
    assert first.outcome is entry
    assert newcomer.outcome is None


def test_idle_connection_is_handed_over_without_waking_sleep() -> None:
    core = make_core()
    (entry,) = stock(core)
    caller = Caller()
    assert core.queue(caller) is entry
    assert not core.waiters


def test_connection_used_last_is_lent_first() -> None:
    core = make_core(max_size=3)
    first, second, third = stock(core, 3)
    assert [caller.take() for caller in queue(core, 3)] == [third, second, first]


def test_caller_whose_connection_was_dead_keeps_its_place() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    unlucky, *others = queue(core, 3)
    core.give(entry)
    core.retire(unlucky.take(), Reason.DEAD, NOW)
    again = Caller()
    again.ticket = unlucky.ticket
    core.queue(again)
    assert list(core.waiters) == [again, *others]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_that_come_back_stand_in_their_old_order(order: tuple[int, int]) -> None:
    core = make_core(max_size=2)
    entries = lend(core, 2)
    callers = queue(core, 4)
    for entry in entries:
        core.give(entry)
    twins = [Caller(), Caller()]
    for twin, caller in zip(twins, callers[:2], strict=True):
        core.retire(caller.take(), Reason.DEAD, NOW)
        twin.ticket = caller.ticket
    for index in order:
        core.queue(twins[index])
    assert list(core.waiters) == [*twins, *callers[2:]]


def test_caller_with_a_candidate_has_its_place_from_the_beginning() -> None:
    core = make_core(max_size=1)
    (candidate,) = lend(core)
    looking = Caller()
    core.number(looking)
    (later,) = queue(core)
    core.retire(candidate, Reason.DEAD, NOW)
    core.queue(looking)
    assert list(core.waiters) == [looking, later]


def test_place_in_line_is_settled_by_the_first_ticket_even_if_it_is_zero() -> None:
    core = make_core(max_size=1)
    looking = Caller()
    core.number(looking)
    assert looking.ticket == 0
    queue(core, 2)
    core.queue(looking)
    assert core.waiters[0] is looking


# -- hand-over against leaving -----------------------------------------------------------------------


def test_waiter_that_leaves_is_told_so() -> None:
    core = make_core()
    (caller,) = queue(core)
    assert core.leave(caller) is Refusal.LEFT
    assert not core.waiters


def test_timed_out_waiter_is_never_given_a_connection() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    late, next_one = queue(core, 2)
    core.leave(late, timed_out=True)
    core.give(entry)
    assert late.outcome is Refusal.LEFT
    assert next_one.outcome is entry


def test_waiter_that_leaves_too_late_gets_what_was_delivered() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    (caller,) = queue(core)
    core.give(entry)
    assert core.leave(caller, timed_out=True) is entry
    assert core.totals.timeouts == 0


def test_waiter_that_left_keeps_nothing_alive() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    (caller,) = queue(core)
    core.give(entry)
    core.leave(caller)
    del entry
    core.brief()
    assert discards(core) == {"lost": 1}


def test_waiter_that_leaves_twice_left_once() -> None:
    core = make_core()
    (caller,) = queue(core)
    core.leave(caller, timed_out=True)
    assert core.leave(caller, timed_out=True) is Refusal.LEFT
    assert core.totals.timeouts == 1


def test_only_timeouts_are_counted_as_timeouts() -> None:
    core = make_core()
    cancelled, late = queue(core, 2)
    core.leave(cancelled)
    core.leave(late, timed_out=True)
    assert core.totals.timeouts == 1


def test_one_that_never_queued_can_leave() -> None:
    core = make_core()
    assert core.leave(Caller()) is Refusal.LEFT


def test_one_that_was_settled_but_not_unlinked_is_passed_over() -> None:
    """An interrupt can strike between the two steps of a transition; the next one finishes it."""
    core = make_core(max_size=1)
    (entry,) = lend(core)
    struck, next_one = queue(core, 2)
    struck.outcome = Refusal.LEFT
    core.give(entry)
    assert struck.outcome is Refusal.LEFT
    assert next_one.outcome is entry
    assert not core.waiters


# -- the bound of the queue --------------------------------------------------------------------------


def test_one_too_many_is_refused() -> None:
    core = make_core(max_size=1, max_waiting=2)
    lent = lend(core)
    *waiting, refused = queue(core, 3)
    assert [caller.outcome for caller in waiting] == [None, None]
    assert refused.outcome is Refusal.OVERLOADED
    assert core.totals.overloads == 1
    assert refused not in core.waiters
    assert_lawful(core, in_use=len(lent))


def test_one_that_left_makes_room_for_another() -> None:
    core = make_core(max_size=1, max_waiting=1)
    lent = lend(core)
    (first,) = queue(core)
    core.leave(first)
    (second,) = queue(core)
    assert second.outcome is None
    assert_lawful(core, in_use=len(lent))


def test_one_that_was_served_makes_room_for_another() -> None:
    core = make_core(max_size=1, max_waiting=1)
    (entry,) = lend(core)
    (first,) = queue(core)
    core.give(entry)
    (second,) = queue(core)
    assert (first.outcome, second.outcome) == (entry, None)


def test_one_that_comes_back_is_never_refused() -> None:
    core = make_core(max_size=1, max_waiting=1)
    (candidate,) = lend(core)
    looking = Caller()
    core.number(looking)
    queue(core)
    core.retire(candidate, Reason.DEAD, NOW)
    assert core.queue(looking) is None
    assert core.waiters[0] is looking


def test_nobody_is_refused_who_need_not_wait() -> None:
    core = make_core(max_size=1, max_waiting=1)
    (entry,) = lend(core)
    (first,) = queue(core)
    core.idle.append(entry)
    stale = core.queue(second := Caller())
    assert first.outcome is entry
    assert (stale, second.outcome) == (None, None)


def test_no_bound_is_no_bound() -> None:
    core = make_core(max_size=1, max_waiting=None)
    lent = lend(core)
    assert all(caller.outcome is None for caller in queue(core, 2000))
    assert_lawful(core, in_use=len(lent))


# -- freed capacity serves the oldest waiter ---------------------------------------------------------


def test_failed_dial_frees_its_place_at_once() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.retire(entry, Reason.DEAD, NOW)
    close_all(core)
    (caller,) = queue(core)
    fail(core, dial(core))
    assert not core.slots
    retry = dial(core, now=core.retry_at)
    connect(core, retry)
    assert caller.outcome is retry


def test_discarded_connection_makes_room_when_it_is_closed() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    (caller,) = queue(core)
    core.retire(entry, Reason.BROKEN, NOW)
    slot = core.next_to_close(NOW)
    assert slot is entry.slot
    assert core.plan(NOW, inf) is None
    core.freed(slot)
    connect(core, dial(core))
    assert isinstance(caller.outcome, Entry)
    assert_lawful(core, in_use=1)


def test_larger_pool_dials_for_those_who_wait() -> None:
    core = make_core(max_size=1)
    lent = lend(core)
    (caller,) = queue(core)
    assert core.plan(NOW, inf) is None
    core.resize(2, 0)
    assert core.owes()
    connect(core, dial(core))
    assert isinstance(caller.outcome, Entry)
    assert_lawful(core, in_use=len(lent) + 1)


def test_lost_entry_makes_room() -> None:
    core = make_core(max_size=1)
    lent = lend(core)
    (caller,) = queue(core)
    lent.clear()
    assert core.owes()
    assert close_all(core) == 1
    connect(core, dial(core))
    assert isinstance(caller.outcome, Entry)


def test_released_connection_goes_to_a_waiter_before_its_dial_comes_back() -> None:
    core = make_core(max_size=2)
    (entry,) = lend(core)
    (caller,) = queue(core)
    opening = dial(core)
    core.give(entry)
    assert caller.outcome is entry
    connect(core, opening)
    assert list(core.idle) == [opening]


def test_plan_looks_at_idle_before_it_dials() -> None:
    core = make_core(max_size=2)
    (entry,) = lend(core)
    (caller,) = queue(core)
    core.idle.append(entry)  # a release by the warm path that was struck before it looked
    assert core.plan(NOW, inf) is None
    assert caller.outcome is entry


def test_parked_one_that_looks_around_finds_what_was_released() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    (caller,) = queue(core)
    core.idle.append(entry)
    assert not core.rematch(None)
    assert caller.outcome is entry


def test_rematch_tells_whether_there_is_something_to_do() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.evict()
    core.idle.append(entry)
    assert core.rematch(entry)
    assert discards(core) == {"evicted": 1}
    assert not core.idle


def test_rematch_lets_a_doomed_entry_go_that_somebody_took() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.evict()
    core.rematch(entry)
    assert discards(core) == {}
    core.give(entry)
    assert discards(core) == {"evicted": 1}


def test_entry_that_was_taken_at_the_last_moment_is_not_handed_over() -> None:
    class Hurried(deque[Any]):
        def pop(self) -> Any:
            taken.append(super().pop())
            return super().pop()

    core = make_core(max_size=1)
    stock(core)
    taken: list[Entry[Any]] = []
    core.idle = Hurried(core.idle)
    (caller,) = queue(core)
    assert caller.outcome is None
    core.idle = deque()
    core.give(taken.pop())
    assert isinstance(caller.outcome, Entry)


def test_doomed_entry_is_not_handed_over() -> None:
    core = make_core(max_size=2)
    good, bad = lend(core, 2)
    core.idle.extend([good, bad])
    bad.doomed = Reason.EVICTED  # evict() publishes before it sweeps
    (caller,) = queue(core)
    assert caller.outcome is good
    assert discards(core) == {"evicted": 1}


# -- closing counts, but not for ever ----------------------------------------------------------------


def test_closing_connection_counts_for_a_second_at_most() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.retire(entry, Reason.DEAD, NOW)
    queue(core)
    core.next_to_close(NOW)
    assert core.plan(NOW + upkeep.CLOSE_GRACE - 0.01, inf) is None
    assert core.plan(NOW + upkeep.CLOSE_GRACE, inf) is not None


def test_closing_that_ends_late_changes_nothing() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.retire(entry, Reason.DEAD, NOW)
    queue(core)
    slot = core.next_to_close(NOW)
    assert slot is not None
    opening = dial(core, NOW + upkeep.CLOSE_GRACE)
    core.freed(slot)
    assert list(core.slots) == [opening.slot]


def test_each_discarded_connection_is_closed_once() -> None:
    core = make_core(max_size=2)
    for entry in lend(core, 2):
        core.retire(entry, Reason.DEAD, NOW)
        core.retire(entry, Reason.BROKEN, NOW)
    assert discards(core) == {"dead": 2}
    assert close_all(core) == 2
    assert core.next_to_close(NOW) is None
    assert not core.slots


def test_entry_is_not_discarded_after_its_place_was_freed() -> None:
    core = make_core()
    (entry,) = lend(core)
    core.retire(entry, Reason.DEAD, NOW)
    close_all(core)
    core.retire(entry, Reason.DEAD, NOW)
    assert discards(core) == {"dead": 1}
    assert not core.debris


def test_discarded_connection_waits_for_its_closing_as_long_as_it_takes() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    conn = entry.conn
    core.retire(entry, Reason.DEAD, NOW)
    queue(core)
    core.plan(NOW + 3600, inf)
    slot = core.next_to_close(NOW + 3600)
    assert slot is not None
    assert slot.conn is conn


# -- dials that hang ---------------------------------------------------------------------------------


def overdue(core: Core[Any]) -> Entry[Any]:
    """Have somebody wait for a dial that is given up at NOW + 10, and return it."""
    queue(core)
    entry = dial(core, NOW, NOW + 10)
    core.plan(NOW + 10, inf)
    return entry


def test_overdue_dial_is_given_up() -> None:
    core = make_core(max_size=1)
    queue(core)
    entry = dial(core, NOW, NOW + 10)
    core.plan(NOW + 9.9, inf)
    assert entry.slot in core.slots
    core.plan(NOW + 10, inf)
    assert entry.slot not in core.slots
    assert (core.totals.dial_failures, core.failures, core.abandoned) == (1, 1, 1)
    assert str(core.last_error) == "the dial was given up: no answer within connect_timeout"


def test_late_connection_of_a_dial_that_was_given_up_is_closed() -> None:
    core = make_core(max_size=1)
    entry = overdue(core)
    connect(core, entry, conn := Conn())
    assert not core.idle
    assert core.totals.opened == 0
    slot = core.next_to_close(NOW + 11)
    assert slot is not None
    assert slot.conn is conn
    core.freed(slot)
    assert_lawful(core, in_use=0)


def test_late_failure_of_a_dial_that_was_given_up_counts_once() -> None:
    core = make_core(max_size=1)
    entry = overdue(core)
    fail(core, entry, now=NOW + 11)
    assert core.totals.dial_failures == 1
    assert not core.debris


def test_dial_that_was_given_up_after_it_connected_is_closed_when_it_fails() -> None:
    core = make_core(max_size=1)
    queue(core)
    entry = dial(core, NOW, NOW + 10)
    entry.slot.conn = entry.conn = conn = Conn()  # its on_connect takes long
    core.plan(NOW + 10, inf)
    fail(core, entry, now=NOW + 11)
    slot = core.next_to_close(NOW + 11)
    assert slot is not None
    assert slot.conn is conn


def test_connection_of_a_dial_that_fails_after_its_time_is_still_closed() -> None:
    """Nobody looked at the clock between the instant at which it was overdue and its failure."""
    core = make_core(max_size=1)
    queue(core)
    entry = dial(core, NOW, NOW + 10)
    entry.slot.conn = entry.conn = conn = Conn()
    fail(core, entry, now=NOW + 11)
    core.plan(NOW + 11, inf)
    slot = core.next_to_close(NOW + 11)
    assert slot is not None
    assert slot.conn is conn


def test_each_abandoned_dial_doubles_the_pause_up_to_a_minute() -> None:
    core = make_core(max_size=1)
    queue(core)
    now = NOW
    pauses = []
    for _ in range(8):
        hanging = dial(core, now, now + 10)
        now += 10
        core.plan(now, inf)
        assert hanging.slot not in core.slots
        pauses.append(core.retry_at - now)
        queue(core)
        assert core.retry_at - now == pauses[-1], "each holds a thread, whoever comes"
        now = core.retry_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_waiters_outlive_an_abandoned_dial() -> None:
    core = make_core(max_size=1)
    overdue(core)
    assert len(core.waiters) == 1


def test_success_makes_the_pause_short_again_and_old_errors_no_cause() -> None:
    core = make_core(max_size=1)
    overdue(core)
    connect(core, dial(core, core.retry_at))
    assert (core.failures, core.abandoned, core.retry_at, core.last_error) == (0, 0, 0.0, None)


def test_what_an_interrupt_left_among_the_dials_is_swept_up_without_counting() -> None:
    core = make_core(max_size=1)
    queue(core)
    entry = dial(core, NOW, NOW + 10)
    del core.slots[entry.slot]  # an interrupt struck in the middle of freeing it
    core.plan(NOW + 10, inf)
    assert entry.slot not in core.opening
    assert core.totals.dial_failures == 0


# -- how many dials ----------------------------------------------------------------------------------


def test_dial_begins_only_if_somebody_needs_it() -> None:
    core = make_core()
    assert core.plan(NOW, inf) is None
    assert not core.owes()


def test_dials_at_the_same_time_are_bounded() -> None:
    core = make_core(max_connecting=2)
    queue(core, 5)
    dials = [core.plan(NOW, inf) for _ in range(3)]
    assert [entry is not None for entry in dials] == [True, True, False]


def test_no_more_dials_than_callers() -> None:
    core = make_core(max_connecting=5)
    queue(core, 2)
    dials = [core.plan(NOW, inf) for _ in range(3)]
    assert [entry is not None for entry in dials] == [True, True, False]


def test_dial_never_exceeds_max_size() -> None:
    core = make_core(max_size=2, max_connecting=5)
    queue(core, 5)
    dials = [core.plan(NOW, inf) for _ in range(3)]
    assert [entry is not None for entry in dials] == [True, True, False]
    assert not core.owes()


def test_those_who_left_are_not_dialled_for() -> None:
    core = make_core(max_connecting=1)
    first, second = queue(core, 2)
    opening = dial(core)
    core.leave(first)
    core.leave(second)
    connect(core, opening)
    assert core.plan(NOW, inf) is None


def test_min_idle_is_dialled_for() -> None:
    core = make_core(max_size=4, min_idle=2, max_connecting=4)
    first, second = dial(core), dial(core)
    assert core.plan(NOW, inf) is None
    connect(core, first)
    connect(core, second)
    assert core.plan(NOW, inf) is None
    assert len(core.idle) == 2


def test_lent_connections_do_not_count_as_idle_ones() -> None:
    core = make_core(max_size=4, min_idle=1)
    lent = lend(core)
    assert core.plan(NOW, inf) is not None
    assert len(lent) == 1


# -- dials that fail ---------------------------------------------------------------------------------


def test_nobody_dials_before_the_pause_is_over() -> None:
    core = make_core(max_size=1)
    stock(core)
    core.evict()
    close_all(core)
    queue(core)
    fail(core, dial(core))
    assert core.retry_at > NOW
    assert core.plan(core.retry_at - 0.001, inf) is None
    assert core.plan(core.retry_at, inf) is not None


def test_one_prober_is_enough_while_dials_fail() -> None:
    core = make_core(max_size=3, max_connecting=3)
    lent = lend(core)
    queue(core, 3)
    first, second = dial(core), dial(core)
    fail(core, first)
    assert core.plan(core.retry_at, inf) is None, "the second dial is the prober"
    fail(core, second, now=core.retry_at)
    prober = dial(core, core.retry_at)
    assert core.plan(core.retry_at, inf) is None
    connect(core, prober)
    assert core.plan(NOW, inf) is not None, "the server is back"
    assert len(lent) == 1


def test_pauses_double_while_dials_fail() -> None:
    core = make_core(max_size=1)
    stock(core)
    core.evict()
    close_all(core)
    queue(core)
    now, pauses = NOW, []
    for _ in range(7):
        fail(core, dial(core, now), now=now)
        pauses.append(core.retry_at - now)
        now = core.retry_at
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5])


def test_first_error_of_a_pool_that_never_connected_ends_all_waiting() -> None:
    core = make_core(max_size=3, max_connecting=1)
    callers = queue(core, 3)
    error = OSError("refused")
    fail(core, dial(core), error)
    assert [caller.outcome for caller in callers] == [error] * 3
    assert [caller.woken for caller in callers] == [1] * 3
    assert not core.waiters


def test_pool_that_was_connected_once_keeps_trying() -> None:
    core = make_core(max_size=1)
    stock(core)
    core.evict()
    close_all(core)
    (caller,) = queue(core)
    fail(core, dial(core))
    assert caller.outcome is None
    assert isinstance(core.last_error, OSError)


def test_failed_dial_fails_nobody_who_could_be_served_by_a_connection_in_use() -> None:
    core = make_core(max_size=2)
    (entry,) = lend(core)
    (caller,) = queue(core)
    fail(core, dial(core), fatal=True)
    assert caller.outcome is None
    core.give(entry)
    assert caller.outcome is entry


def test_fatal_error_ends_all_waiting_when_nothing_is_open() -> None:
    core = make_core(max_size=1)
    stock(core)
    core.evict()
    close_all(core)
    callers = queue(core, 2)
    error = OSError("password")
    fail(core, dial(core), error, fatal=True)
    assert [caller.outcome for caller in callers] == [error] * 2


def test_rematch_hands_over_what_it_is_told_of() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    (caller,) = queue(core)
    core.idle.append(entry)
    core.rematch(entry)
    assert caller.outcome is entry
    assert discards(core) == {}


def test_one_that_was_settled_already_keeps_its_outcome_when_all_fail() -> None:
    core = make_core(max_size=1)
    struck, other = queue(core, 2)
    entry = dial(core)
    struck.outcome = Refusal.LEFT  # and an interrupt struck before it was unlinked
    fail(core, entry, error := OSError())
    assert (struck.outcome, other.outcome) == (Refusal.LEFT, error)
    assert not core.waiters


def test_connection_of_a_failed_dial_is_closed_and_was_never_opened() -> None:
    core = make_core(max_size=1)
    queue(core)
    entry = dial(core)
    entry.slot.conn = entry.conn = Conn()
    fail(core, entry)
    assert list(core.closing) == [entry.slot]
    assert close_all(core) == 1
    assert discards(core) == {}
    assert core.totals.opened == 0
    assert_lawful(core, in_use=0)


def test_dial_that_is_struck_after_it_succeeded_has_not_failed() -> None:
    core = make_core(max_size=1)
    core.queue(waiter := Waiter(strike))
    entry = dial(core)
    with pytest.raises(Interrupt) as caught:
        connect(core, entry)
    core.dial_failed(entry, caught.value, fault=Fault.ORDINARY, fatal=False, now=NOW, chance=0.0)
    assert waiter.outcome is entry
    assert core.totals.dial_failures == 0
    assert_lawful(core, in_use=1)


# -- evict -------------------------------------------------------------------------------------------


def test_evict_closes_idle_connections_now() -> None:
    core = make_core(max_size=2)
    stock(core, 2)
    core.evict()
    assert not core.idle
    assert discards(core) == {"evicted": 2}
    assert close_all(core) == 2


def test_evicted_connection_in_use_is_closed_when_it_comes_back() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.evict()
    assert_lawful(core, in_use=1)
    core.give(entry)
    assert discards(core) == {"evicted": 1}


def test_dial_that_began_before_an_evict_does_not_survive_it() -> None:
    core = make_core(max_size=1)
    (caller,) = queue(core)
    opening = dial(core)
    core.evict()
    connect(core, opening)
    assert caller.outcome is None
    assert discards(core) == {"evicted": 1}
    close_all(core)
    assert core.plan(NOW, inf) is not None


def test_connection_opened_after_an_evict_stays() -> None:
    core = make_core(max_size=2)
    stock(core)
    core.evict()
    close_all(core)
    (entry,) = stock(core)
    assert list(core.idle) == [entry]


def test_connection_that_is_closing_is_not_evicted_again() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.retire(entry, Reason.DEAD, NOW)
    core.evict()
    assert discards(core) == {"dead": 1}


def test_first_reason_to_go_stays_the_reason() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.evict()
    core.shut()
    core.give(entry)
    assert discards(core) == {"evicted": 1}


def test_evict_leaves_to_its_taker_what_was_taken_meanwhile() -> None:
    core = make_core(max_size=1)
    (entry,) = stock(core)
    contested = Contested(core)
    core.evict()
    assert contested.taken == [entry]
    assert entry.doomed is Reason.EVICTED
    assert discards(core) == {}


# -- resize ------------------------------------------------------------------------------------------


def test_smaller_pool_closes_what_was_idle_longest() -> None:
    core = make_core(max_size=3)
    first, second, third = stock(core, 3)
    core.resize(1, 0)
    assert list(core.idle) == [third]
    assert [core.next_to_close(NOW), core.next_to_close(NOW)] == [first.slot, second.slot]
    assert discards(core) == {"surplus": 2}


def test_smaller_pool_gives_up_dials_before_connections_in_use() -> None:
    core = make_core(max_size=2)
    (entry,) = lend(core)
    queue(core)
    opening = dial(core)
    core.resize(1, 0)
    assert opening.doomed is Reason.SURPLUS
    assert entry.doomed is None


def test_smaller_pool_takes_no_connection_away() -> None:
    core = make_core(max_size=3)
    lent = lend(core, 3)
    core.resize(1, 0)
    assert_lawful(core, in_use=3)
    for entry in lent:
        core.give(entry)
    assert discards(core) == {"surplus": 2}
    assert len(core.idle) == 1


def test_smaller_pool_does_not_count_what_is_leaving_anyway() -> None:
    core = make_core(max_size=2)
    leaving, staying = lend(core, 2)
    core.retire(leaving, Reason.DEAD, NOW)
    core.resize(1, 0)
    assert staying.doomed is None


def test_resize_that_fits_changes_nothing_but_the_bounds() -> None:
    core = make_core(max_size=3)
    entries = stock(core, 2)
    core.resize(2, 1)
    assert list(core.idle) == entries
    assert (core.max_size, core.min_idle) == (2, 1)


def test_smaller_pool_dooms_what_was_lent_while_it_looked() -> None:
    core = make_core(max_size=2)
    stock(core, 2)
    first, second = core.idle
    Contested(core)
    core.resize(1, 0)
    assert (first.doomed, second.doomed) == (Reason.SURPLUS, None)
    assert list(core.idle) == [second], "both came back before it had looked"
    assert discards(core) == {"surplus": 1}


# -- closing the pool --------------------------------------------------------------------------------


def test_closed_pool_refuses_at_once() -> None:
    core = make_core()
    core.shut()
    assert core.queue(Caller()) is Refusal.CLOSED


def test_closing_ends_all_waiting() -> None:
    core = make_core(max_size=1)
    lent = lend(core)
    callers = queue(core, 3)
    core.shut()
    assert [caller.outcome for caller in callers] == [Refusal.CLOSED] * 3
    assert [caller.woken for caller in callers] == [1] * 3
    assert_lawful(core, in_use=len(lent))


def test_closing_closes_idle_connections_and_dooms_the_others() -> None:
    core = make_core(max_size=4)
    idle, lent = lend(core, 2)
    core.give(idle)
    core.resize(4, 4)
    opening = dial(core)
    core.shut()
    assert close_all(core) == 1
    connect(core, opening)
    core.give(lent)
    assert close_all(core) == 2
    assert discards(core) == {"closed": 2}
    assert not core.slots
    assert not core.idle


def test_dial_under_way_does_not_hold_up_the_closing_of_the_pool() -> None:
    core = make_core()
    queue(core)
    opening = dial(core)
    opening.slot.conn = opening.conn = conn = Conn()  # its hook runs
    core.shut()
    assert not core.slots
    assert core.totals.dial_failures == 1
    assert core.next_to_close(NOW) is None, "its flow still uses it"
    core.opened(opening, 0.01)
    slot = core.next_to_close(NOW)
    assert slot is not None
    assert slot.conn is conn
    assert core.totals.opened == 0


def test_closed_pool_sends_every_caller_to_the_flows_for_ever() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.shut()
    core.idle.append(entry)  # a release by the warm path that has not looked yet
    core.rematch(None)
    assert core.waiters, "the warm path would take from the idle stack"
    assert list(core.idle) == [entry]
    core.rematch(entry)
    assert not core.idle


def test_closing_twice_is_harmless() -> None:
    core = make_core()
    core.shut()
    core.shut()
    assert len(core.waiters) == 1
    assert core.snapshot("test", 0.0).waiting == 0


def test_closed_pool_dials_for_nobody() -> None:
    core = make_core(max_size=2, min_idle=2)
    core.shut()
    assert core.plan(NOW, inf) is None
    assert not core.owes()


def test_dial_that_fails_in_a_closed_pool_leaves_the_gate_shut() -> None:
    core = make_core()
    queue(core)
    opening = dial(core)
    core.shut()
    fail(core, opening)
    assert core.waiters
    assert core.queue(Caller()) is Refusal.CLOSED


# -- watchers ----------------------------------------------------------------------------------------


def watch(core: Core[Any], holds_now: Callable[[], bool], wanted: int = 0) -> tuple[Watcher, Caller]:
    caller = Caller()
    watcher = Watcher(holds_now, caller, wanted)
    core.watch(watcher)
    return watcher, caller


def test_condition_that_holds_already_is_noticed_at_once() -> None:
    _, caller = watch(make_core(), lambda: True)
    assert (caller.outcome, caller.woken) == (True, 1)


def test_condition_is_noticed_when_a_connection_opens() -> None:
    core = make_core(max_size=2)
    _, caller = watch(core, lambda: core.available() >= 2, wanted=2)
    connect(core, dial(core))
    assert caller.outcome is None
    connect(core, dial(core))
    assert (caller.outcome, caller.woken) == (True, 1)


def test_condition_is_noticed_when_the_last_connection_is_closed() -> None:
    core = make_core(max_size=2)
    stock(core, 2)
    core.shut()
    _, caller = watch(core, lambda: not core.slots)
    assert caller.outcome is None
    close_all(core)
    assert (caller.outcome, caller.woken) == (True, 1)


def test_condition_is_noticed_when_the_pool_is_closed() -> None:
    core = make_core()
    _, caller = watch(core, lambda: core.closed, wanted=1)
    core.shut()
    assert caller.outcome is True


def test_watcher_that_wants_connections_is_dialled_for() -> None:
    core = make_core(max_size=5, max_connecting=5)
    lent = lend(core)
    watch(core, lambda: False, wanted=3)
    dials = [core.plan(NOW, inf) for _ in range(3)]
    assert [entry is not None for entry in dials] == [True, True, False]
    assert len(lent) == 1


def test_watcher_that_left_is_neither_dialled_for_nor_woken() -> None:
    core = make_core()
    watcher, caller = watch(core, lambda: core.closed, wanted=1)
    core.unwatch(watcher)
    core.unwatch(watcher)
    assert core.plan(NOW, inf) is None
    core.shut()
    assert caller.woken == 0


def test_fatal_error_ends_the_wait_for_connections_but_not_for_the_end() -> None:
    core = make_core()
    _, ready = watch(core, lambda: False, wanted=1)
    _, ended = watch(core, lambda: False)
    fail(core, dial(core), error := OSError("password"), fatal=True)
    assert (ready.outcome, ready.woken) == (error, 1)
    assert (ended.outcome, ended.woken) == (None, 0)


def test_one_that_waits_for_the_pool_to_be_ready_outlives_an_ordinary_failure() -> None:
    core = make_core()
    _, ready = watch(core, lambda: False, wanted=1)
    fail(core, dial(core))
    assert ready.outcome is None
    assert core.plan(core.retry_at, inf) is not None


# -- detach and whereabouts --------------------------------------------------------------------------

NOT_OURS = "this connection is not from this pool, or the pool has given it up"
RELEASED = "this connection is not on loan: it has been released already"
IN_A_BLOCK = "this connection was lent by a `with` block, which gives it back itself"


def test_detached_connection_frees_its_place_and_is_not_closed() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    assert core.detach(entry.conn)
    assert not core.slots
    assert core.next_to_close(NOW) is None
    assert entry.doomed is Reason.DETACHED
    assert entry.warm_until == -inf
    assert discards(core) == {"detached": 1}
    assert_lawful(core, in_use=0)


def test_detached_connection_cannot_be_detached_again() -> None:
    core = make_core()
    (entry,) = lend(core)
    core.detach(entry.conn)
    assert not core.detach(entry.conn)
    assert core.whereabouts(entry.conn) == NOT_OURS


def test_idle_connection_cannot_be_detached() -> None:
    core = make_core()
    (entry,) = stock(core)
    assert not core.detach(entry.conn)
    assert core.whereabouts(entry.conn) == RELEASED


def test_connection_that_is_closing_cannot_be_detached() -> None:
    core = make_core()
    (entry,) = lend(core)
    core.retire(entry, Reason.DEAD, NOW)
    assert not core.detach(entry.conn)
    assert core.whereabouts(entry.conn) == RELEASED


def test_foreign_connection_cannot_be_detached() -> None:
    core = make_core()
    lent = lend(core)
    assert not core.detach(Conn())
    assert core.whereabouts(Conn()) == NOT_OURS
    assert_lawful(core, in_use=len(lent))


def test_connection_of_a_block_is_recognised() -> None:
    core = make_core(max_size=2)
    first, second = lend(core, 2)
    assert core.whereabouts(second.conn) == IN_A_BLOCK
    assert core.whereabouts(first.conn) == IN_A_BLOCK


def test_connection_that_was_lent_bare_can_be_detached() -> None:
    core = make_core()
    (entry,) = lend(core)
    conn = core.lend_bare(entry)
    assert core.detach(conn)
    assert not core.bare
    del conn
    assert not core.lost


def test_pool_knows_its_connections() -> None:
    core = make_core(max_size=3)
    idle, lent, bare = lend(core, 3)
    core.give(idle)
    conn = core.lend_bare(bare)
    assert core.knows(idle.conn)
    assert core.knows(lent.conn)
    assert core.knows(conn)
    assert not core.knows(Conn())
    assert not core.knows(None), "as which a connection that is lent bare is noted"


# -- ownership: what is dropped is found -------------------------------------------------------------


def test_entry_that_somebody_dropped_is_reported_and_its_connection_closed() -> None:
    core = make_core(max_size=1)
    lent = lend(core)
    conn = lent[0].conn
    lent.clear()
    assert len(core.lost) == 1
    assert core.brief() == "0 of 1 in use, 0 idle, 0 opening, 0 waiting"
    slot = core.next_to_close(NOW)
    assert slot is not None
    assert slot.conn is conn
    core.freed(slot)
    assert discards(core) == {"lost": 1}
    assert_lawful(core, in_use=0)


def test_dial_that_somebody_dropped_has_failed() -> None:
    core = make_core(max_size=1)
    queue(core)
    dial(core)
    assert core.lost
    assert core.plan(NOW, inf) is not None
    assert core.totals.dial_failures == 1


def test_connection_of_a_dial_that_somebody_dropped_is_closed() -> None:
    core = make_core(max_size=1)
    queue(core)
    entry = dial(core)
    entry.slot.conn = conn = Conn()
    del entry
    slot = core.next_to_close(NOW)
    assert slot is not None
    assert slot.conn is conn
    assert core.totals.dial_failures == 1
    core.freed(slot)
    assert_lawful(core, in_use=0)


def test_reference_that_was_struck_before_it_knew_its_slot_is_passed_over() -> None:
    core = make_core()
    lent = lend(core)
    core.lost.append(Ref(core))
    assert_lawful(core, in_use=1)
    assert not core.lost
    assert len(lent) == 1


def test_entry_that_was_retired_is_not_lost_when_it_ends() -> None:
    core = make_core()
    (entry,) = lend(core)
    core.retire(entry, Reason.DEAD, NOW)
    del entry
    assert not core.lost


def test_entry_given_back_inside_the_lock_is_closed_by_the_next_one() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.lost.append(entry)  # what a lease does when the collector ends it inside a transition
    assert core.owes()
    core.brief()
    assert discards(core) == {"lost": 1}
    assert close_all(core) == 1
    assert_lawful(core, in_use=0)


def test_entry_that_dies_while_lost_ones_are_taken_back_is_taken_back_too() -> None:
    core = make_core(max_size=2)
    first, second = lend(core, 2)
    core.lost.append(first)
    del first
    core.lost.append(second)
    del second
    assert_lawful(core, in_use=0)
    assert discards(core) == {"lost": 2}


@pytest.mark.parametrize("count", [1, 2])
def test_finalizer_that_takes_back_what_is_being_taken_back_leaves_the_rest(count: int) -> None:
    """The collector can come in the middle of it, and the finalizer that it runs looks around, too."""
    core = make_core(max_size=2)
    entries = lend(core, 2)
    conns = [core.lend_bare(entry) for entry in entries]
    places = len(core.slots)
    core.watch(Watcher(lambda: len(core.slots) < places, Waiter(core.brief), 0))
    entries.clear()
    del conns[:count]
    assert_lawful(core, in_use=2 - count)
    assert discards(core) == {"lost": count}
    assert not core.lost


def test_connection_lent_bare_is_its_borrowers_alone() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    conn = core.lend_bare(entry)
    assert not hasattr(entry, "conn")
    assert entry.slot.conn is None
    assert core.bare == {id(conn): entry}
    assert core.whereabouts(conn) == IN_A_BLOCK


def test_connection_lent_bare_that_became_garbage_frees_its_place() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    conn = core.lend_bare(entry)
    del entry, conn
    assert core.lost
    assert_lawful(core, in_use=0)
    assert not core.slots
    assert not core.bare, "the entry is kept alive"
    assert discards(core) == {"lost": 1}
    assert core.next_to_close(NOW) is None
    assert not core.lost


def test_connection_that_cannot_be_watched_stays_with_its_slot() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core, conn=Rigid())
    conn = core.lend_bare(entry)
    assert entry.conn is entry.slot.conn is conn
    slot = entry.slot
    del entry, conn
    assert_lawful(core, in_use=1)
    assert slot in core.slots


@pytest.mark.parametrize("kind", [Conn, Rigid])
def test_connection_lent_bare_is_taken_back_as_it_was(kind: type) -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core, conn=kind())
    slot, conn = entry.slot, core.lend_bare(entry)
    assert core.take_bare(conn) is entry
    assert entry.conn is slot.conn is conn
    assert not core.bare
    assert not slot.bare
    core.give(entry)
    assert_lawful(core, in_use=0)


def test_connection_that_was_not_lent_bare_is_not_taken_back() -> None:
    core = make_core(max_size=2)
    (entry,) = lend(core)
    conn = core.lend_bare(entry)
    assert core.take_bare(Conn()) is None
    assert core.take_bare(conn) is entry
    assert core.take_bare(conn) is None, "taken back twice"


def test_object_that_has_got_the_id_of_a_lost_connection_is_not_taken_for_it() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    conn = core.lend_bare(entry)
    other = Conn()
    core.bare[id(other)] = core.bare.pop(id(conn))
    assert core.take_bare(other) is None
    assert not hasattr(entry, "conn")


def test_connection_that_was_taken_back_and_retired_is_not_lost_when_it_ends() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    conn = core.lend_bare(entry)
    core.take_bare(conn)
    core.retire(entry, Reason.BROKEN, NOW)
    close_all(core)
    del entry, conn
    assert not core.lost


# -- the lock ----------------------------------------------------------------------------------------


class Interrupt(BaseException):
    pass


def strike() -> None:
    raise Interrupt


class StruckLock:
    """A lock that is interrupted between taking it and entering its block, as on CPython 3.14."""

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()
        self.release = self._lock.release
        self._is_owned = self._lock._is_owned

    def __enter__(self) -> None:
        self._lock.acquire()
        raise Interrupt

    def __exit__(self, *_: object) -> None:
        raise AssertionError("the block was not entered")


def test_interrupt_on_the_way_into_the_lock_leaves_it_free() -> None:
    core = make_core()
    lock: Any = StruckLock()
    core.lock, core.inside = lock, lock._is_owned
    with pytest.raises(Interrupt):
        core.brief()
    assert not core.inside()


def test_interrupt_inside_the_lock_leaves_it_free_and_the_hand_over_done() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    waiter = Waiter(strike)
    core.queue(waiter)
    with pytest.raises(Interrupt):
        core.give(entry)
    assert not core.inside()
    assert waiter.outcome is entry
    assert not core.waiters


def inside_the_lock(core: Core[Any], event: Callable[[], object]) -> None:
    """Have something happen in the middle of a transition, as a finalizer does that the collector runs."""
    core.watch(Watcher(lambda: True, Waiter(event), 0))


def test_release_inside_the_lock_is_looked_at_when_the_lock_is_left() -> None:
    """The collector can end a generator that sits in a `with` block."""
    core = make_core(max_size=1)
    (entry,) = lend(core)
    (caller,) = queue(core)
    seen: list[object] = []

    def collect() -> None:
        core.idle.append(entry)
        seen.extend([core.rematch(entry), caller.outcome])

    inside_the_lock(core, collect)
    assert seen == [False, None], "no transition begins inside another"
    assert caller.outcome is entry
    assert not core.again


def test_exception_in_a_transition_inside_the_lock_leaves_the_lock_to_its_owner() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.queue(Waiter(strike))
    owned: list[bool] = []

    def collect() -> None:
        with pytest.raises(Interrupt):
            core.give(entry)
        owned.append(core.inside())

    inside_the_lock(core, collect)
    assert owned == [True]
    assert not core.inside()


def test_transition_inside_the_lock_leaves_the_second_look_to_the_owner() -> None:
    core = make_core(max_size=2)
    first, second = lend(core, 2)
    seen: list[tuple[bool, bool]] = []

    def collect() -> None:
        core.rematch(None)
        core.brief()
        seen.append((core.again, core.inside()))

    core.queue(Waiter(collect))
    core.give(first)
    assert seen == [(True, True)]
    assert not core.again
    core.give(second)


def test_nobody_is_inside_between_transitions() -> None:
    core = make_core()
    core.brief()
    assert not core.inside()


# -- what time asks for ------------------------------------------------------------------------------


def test_prune_takes_the_longest_idle_first_and_keeps_min_idle() -> None:
    core = make_core(max_size=4, min_idle=2, idle_timeout=60.0)
    core.resize(4, 0)
    entries = stock(core, 4)
    core.resize(4, 2)
    core.prune(NOW + 60)
    assert list(core.idle) == entries[2:]
    assert discards(core) == {"idle": 2}


def test_prune_leaves_what_was_used_lately() -> None:
    core = make_core(max_size=3, idle_timeout=60.0)
    old, *young = stock(core, 3)
    for entry in young:
        entry.idle_since = NOW + 30
    core.prune(NOW + 60)
    assert list(core.idle) == young
    assert discards(core) == {"idle": 1}
    assert old.slot in core.closing


def test_prune_takes_the_expired_whatever_min_idle_says() -> None:
    core = make_core(max_size=2, min_idle=2)
    entries = [dial(core), dial(core)]
    for entry in entries:
        entry.expires = NOW + 5
        connect(core, entry)
    core.prune(NOW + 4.9)
    assert len(core.idle) == 2
    core.prune(NOW + 5)
    assert discards(core) == {"lifetime": 2}
    assert core.owes()


def test_without_a_timeout_nothing_is_pruned_for_being_idle() -> None:
    core = make_core(idle_timeout=None)
    stock(core, 2)
    core.prune(NOW + 1e9)
    assert len(core.idle) == 2


def test_prune_leaves_to_its_taker_what_was_taken_meanwhile() -> None:
    core = make_core(max_size=2, idle_timeout=60.0)
    stock(core, 2)
    contested = Contested(core)
    core.prune(NOW + 60)
    assert len(contested.taken) == 2
    assert discards(core) == {}


def test_collection_in_the_middle_of_a_look_at_the_stack_is_survived() -> None:
    core = make_core(max_size=2, idle_timeout=60.0)
    stock(core, 2)
    Contested(core).torn = 2
    assert core.due(NOW) == NOW + 60


def test_idle_pool_without_limits_has_nothing_due() -> None:
    core = make_core(idle_timeout=None, warn_after=None)
    assert core.due(NOW) is None
    stock(core)
    assert core.due(NOW) is None


def test_expiry_of_an_idle_connection_is_due() -> None:
    core = make_core(idle_timeout=None)
    (entry,) = stock(core)
    entry.expires = NOW + 7
    assert core.due(NOW) == NOW + 7


def test_idle_timeout_is_due_beyond_min_idle_only() -> None:
    core = make_core(max_size=2, idle_timeout=2.0)
    first, second = stock(core, 2)
    first.idle_since, second.idle_since = NOW + 1, NOW + 2
    assert core.due(NOW + 2) == NOW + 3
    core.resize(2, 1)
    assert core.due(NOW + 2) == NOW + 3, "the longest idle is the one to go"
    core.resize(2, 2)
    assert core.due(NOW + 2) == NOW + 2 + upkeep.MIN_IDLE_CHECK


def test_min_idle_is_looked_after_because_the_warm_path_takes_and_tells_nobody() -> None:
    core = make_core(max_size=2, min_idle=1, idle_timeout=None)
    assert core.due(NOW) is None, "nothing was ever asked of this pool"
    stock(core)
    assert core.due(NOW) == NOW + upkeep.MIN_IDLE_CHECK


def test_expiry_of_a_connection_in_use_is_due_because_it_may_be_idle_by_then() -> None:
    core = make_core(max_size=2, idle_timeout=None)
    first, second = lend(core, 2)
    first.expires, second.expires = NOW + 7, NOW + 9
    assert core.due(NOW) == NOW + 7
    assert core.due(NOW + 7) == NOW + 9, "what expired in use is closed when it comes back"
    core.give(second)
    assert core.due(NOW + 7) == NOW + 9


def test_connection_in_use_may_be_idle_next() -> None:
    core = make_core(idle_timeout=60.0)
    lent = lend(core)
    assert core.due(NOW + 5) == NOW + 65
    assert len(lent) == 1


def test_overdue_dial_is_due() -> None:
    core = make_core(idle_timeout=None)
    queue(core)
    entry = dial(core, NOW, NOW + 10)
    assert core.due(NOW) == NOW + 10
    del entry


def test_closing_is_due_when_its_grace_ends() -> None:
    core = make_core(idle_timeout=None)
    stock(core)
    core.evict()
    slot = core.next_to_close(NOW)
    assert core.due(NOW) == NOW + upkeep.CLOSE_GRACE
    core.shut()
    assert core.due(NOW) == NOW + upkeep.CLOSE_GRACE
    assert isinstance(slot, Slot)
    core.freed(slot)
    assert core.due(NOW) is None


def test_next_dial_is_due_while_somebody_needs_it() -> None:
    core = make_core(max_size=1, idle_timeout=None)
    stock(core)
    core.evict()
    close_all(core)
    (caller,) = queue(core)
    fail(core, dial(core))
    assert core.due(NOW) == core.retry_at
    assert core.due(core.retry_at) is None, "it is not due any more: it is owed"
    assert core.owes()
    core.leave(caller)
    assert core.due(NOW) is None


# -- time limits: what the user's code keeps too long is cut -----------------------------------------


def test_connection_is_cut_when_its_time_is_over_and_once() -> None:
    core = make_core(max_size=2)
    one, other = lend(core, 2)
    core.limit(one.slot, NOW + 1)
    core.limit(other.slot, NOW + 2)
    assert core.overstayed(NOW + 0.9) == []
    assert core.overstayed(NOW + 1) == [one.conn]
    assert core.overstayed(NOW + 1) == []
    assert core.overstayed(NOW + 9) == [other.conn]


def test_call_that_returned_learns_whether_it_was_cut() -> None:
    core = make_core(max_size=2)
    quick, slow = lend(core, 2)
    for entry in (quick, slow):
        core.limit(entry.slot, NOW + 1)
    assert not core.unlimit(quick.slot)
    assert core.overstayed(NOW + 1) == [slow.conn]
    assert core.unlimit(slow.slot)


def test_time_limit_is_due() -> None:
    core = make_core(idle_timeout=None, warn_after=None)
    (entry,) = lend(core)
    assert core.due(NOW) is None
    core.limit(entry.slot, NOW + 3)
    assert core.due(NOW) == NOW + 3
    core.shut()
    assert core.due(NOW) == NOW + 3
    core.unlimit(entry.slot)
    assert core.due(NOW) is None


def retire(core: Core[Any], entries: list[Entry[Any]]) -> None:
    core.retire(entries.pop(), Reason.BROKEN, NOW)


def lose(core: Core[Any], entries: list[Entry[Any]]) -> None:
    entries.clear()
    core.rematch(None)


def detach(core: Core[Any], entries: list[Entry[Any]]) -> None:
    core.detach(entries[0].conn)


@pytest.mark.parametrize("end", [retire, lose, detach])
def test_connection_that_left_the_pool_is_not_cut(
    end: Callable[[Core[Any], list[Entry[Any]]], None],
) -> None:
    core = make_core(max_size=1)
    entries = lend(core)
    slot = entries[0].slot
    core.limit(slot, NOW + 1)
    end(core, entries)
    assert not core.limited
    assert core.overstayed(NOW + 1) == []


def test_connection_that_its_borrower_detached_was_not_cut() -> None:
    core = make_core(max_size=1)
    (entry,) = lend(core)
    core.limit(entry.slot, NOW + 1)
    core.detach(entry.conn)
    assert not core.unlimit(entry.slot)


# -- uses and figures --------------------------------------------------------------------------------


def use(core: Core[Any], entry: Entry[Any]) -> None:
    """Note one use, as the return path does."""
    entry.holds.append(0.5)
    if len(entry.holds) >= entry.batch:
        core.fold(entry)


@pytest.mark.parametrize("most", [1, 2, 3, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 100])
def test_max_uses_is_exact(most: int) -> None:
    core = make_core(max_uses=most)
    (entry,) = lend(core)
    uses = 0
    while not entry.doomed:
        use(core, entry)
        uses += 1
    assert uses == most
    assert entry.doomed is Reason.USES


def test_used_up_connection_keeps_an_earlier_reason() -> None:
    core = make_core(max_uses=1)
    (entry,) = lend(core)
    core.evict()
    use(core, entry)
    assert entry.doomed is Reason.EVICTED


def test_without_max_uses_a_connection_is_never_used_up() -> None:
    core = make_core(max_uses=None)
    (entry,) = lend(core)
    for _ in range(3 * BATCH):
        use(core, entry)
    assert entry.doomed is None


def test_every_use_is_counted_once_folded_or_not() -> None:
    core = make_core(max_size=2)
    first, second = lend(core, 2)
    for _ in range(BATCH + 7):
        use(core, first)
    for _ in range(3):
        use(core, second)
    assert len(first.holds) == 7
    assert core.snapshot("test", 0.0).use.count == BATCH + 10
    assert core.snapshot("test", 0.0).use.count == BATCH + 10, "a look changes nothing"


def test_uses_of_a_connection_outlive_it() -> None:
    core = make_core()
    (entry,) = lend(core)
    use(core, entry)
    core.retire(entry, Reason.DEAD, NOW)
    assert core.snapshot("test", 0.0).use.count == 1
    close_all(core)
    stats = core.snapshot("test", 0.0)
    assert (stats.use.count, stats.acquires, stats.releases) == (1, 1, 1)


def test_waiting_times_are_folded_in_batches() -> None:
    core = make_core()
    core.waits.extend([0.25] * (2 * BATCH))
    assert core.snapshot("test", 0.0).waits == 2 * BATCH
    left = []
    for _ in range(3):
        queue(core)
        left.append(len(core.waits))
    assert left == [BATCH, 0, 0]
    assert core.snapshot("test", 0.0).waits == 2 * BATCH


def test_brief_says_what_everybody_does() -> None:
    core = make_core(max_size=4)
    idle, _lent = lend(core, 2)
    core.resize(5, 2)
    opening = dial(core)
    core.give(idle)
    assert core.brief() == "1 of 5 in use, 1 idle, 1 opening, 0 waiting"
    core.shut()
    assert core.brief() == "1 of 5 in use, 0 idle, 0 opening, 0 waiting"
    del opening


def test_snapshot_counts_each_connection_in_one_state() -> None:
    core = make_core(max_size=6, max_connecting=6)
    idle, lent, checked, broken = lend(core, 4)
    core.give(idle)
    checked.slot.validating = True
    core.retire(broken, Reason.BROKEN, NOW)
    core.resize(6, 2)
    opening = dial(core)
    stats = core.snapshot("a name", 0.0)
    assert (stats.idle, stats.in_use, stats.validating, stats.opening, stats.closing) == (1, 1, 1, 1, 1)
    assert (stats.name, stats.size, stats.max_size, stats.waiting) == ("a name", 5, 6, 0)
    assert (stats.dials, stats.opened, stats.connect.count) == (5, 4, 4)
    assert_lawful(core, in_use=1)
    del opening, lent


def test_snapshot_does_not_change_afterwards() -> None:
    core = make_core()
    (entry,) = lend(core)
    before = core.snapshot("test", 0.0)
    use(core, entry)
    core.waits.append(1.0)
    core.retire(entry, Reason.DEAD, NOW)
    close_all(core)
    lend(core)
    assert (before.use.count, before.wait.count, before.connect.count) == (0, 0, 1)
    assert before.discards[Reason.DEAD] == 0


def test_those_in_line_are_counted_as_waiting() -> None:
    core = make_core(max_size=1)
    lent = lend(core)
    queue(core, 3)
    assert core.snapshot("test", 0.0).waiting == 3
    assert core.brief() == "1 of 1 in use, 0 idle, 0 opening, 3 waiting"
    assert len(lent) == 1


# -- equal histories ---------------------------------------------------------------------------------


def history() -> list[int]:
    """Open, evict, drop and give up many connections; return in which order their places were freed."""
    core = make_core(max_size=40, max_connecting=40)
    numbers: dict[Slot, int] = {}
    entries = stock(core, 20)
    for entry in entries:
        numbers[entry.slot] = len(numbers)
    del entry
    lent = [core.idle.pop() for _ in range(7)]
    lent[0].doomed = Reason.USES
    lost = lent[2:5]
    entries.clear()
    del lent[2:5]
    lost.clear()
    core.evict()
    for entry in lent:
        core.give(entry)
    order = []
    while (slot := core.next_to_close(NOW)) is not None:
        order.append(numbers[slot])
    return order


def test_equal_histories_end_equally() -> None:
    """Slots have no order of their own: a set of them would iterate by address."""
    assert history() == history()
    assert sorted(history()) == list(range(20))


def test_lost_bare_connection_does_not_take_along_another_that_has_got_its_id() -> None:
    core = make_core(max_size=2)
    entries = lend(core, 2)
    first, second = (entry.slot for entry in entries)
    conn, other = (core.lend_bare(entry) for entry in entries)
    core.bare[first.bare] = entries[1]
    del entries, conn
    core.brief()  # whoever takes the lock looks at what was lost
    assert first not in core.slots
    assert core.bare[second.bare].slot is second
    assert core.take_bare(other) is not None


def test_sessions_that_are_kept_for_one_user_are_counted() -> None:
    core = make_core()
    core.pinned()
    assert core.snapshot("test", NOW).pins == 1
