"""What errors and the log say of those who have the connections."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest
from engine.driver import Hand, World, assert_lawful, discards, refusal

from connpool.adapter import Fault
from connpool.engine import diagnosis
from connpool.engine.core import Core
from connpool.engine.records import Entry, Slot
from connpool.errors import (
    Holder,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from connpool.events import MOST, WITHIN, Throttle
from connpool.options import PoolOptions
from connpool.stats import PoolStats, Reason
from connpool.testing import FakeOperationalError

CODE: CodeType = (lambda: None).__code__.replace(co_name="views.py")


KEPT: list[Entry[Any]] = []


@pytest.fixture(autouse=True)
def _nobody_keeps_anything() -> Iterator[None]:
    yield
    KEPT.clear()


def act(world: World, who: str, line: int) -> None:
    """Have somebody act from here on, at a line of his code."""
    world.people.owner, world.people.site = who, (CODE, line)


def borrow(world: World, who: str, line: int) -> Entry[Any]:
    """Have somebody borrow, and keep what he has got."""
    act(world, who, line)
    (entry,) = world.lend()
    KEPT.append(entry)
    return entry


def lose(world: World, who: str, line: int) -> None:
    """Have somebody borrow, and lose what he has got."""
    borrow(world, who, line)
    KEPT.pop()
    look(world)


def explanation(hand: Hand[Any]) -> list[str]:
    """Return what an error says after its first line."""
    hand.run()
    assert isinstance(hand.error, PoolError), hand.error
    return str(hand.error).splitlines()[1:]


def names(world: World) -> list[str]:
    return [event.name for event in world.events]


# -- errors ------------------------------------------------------------------------------------------


def test_timeout_names_the_holders_the_longest_first() -> None:
    world = World(max_size=2)
    borrow(world, "worker-1", 41)
    world.now += 20.0
    borrow(world, "worker-2", 9)
    act(world, "worker-3", 9)
    hand = world.acquire(5.0).run()
    world.now += 5.0
    hand.resume()
    assert explanation(hand) == [
        "  held for 25 s by views.py:41 in worker-1",
        "  held for 5 s by views.py:9 in worker-2",
        (
            "1 of 2 held for more than 25 s by views.py:41: "
            "a leak or a slow statement, a larger pool will not help"
        ),
    ]
    error = hand.error
    assert isinstance(error, PoolTimeout)
    assert error.waited == 5.0
    assert [holder.site for holder in error.holders] == ["views.py:41", "views.py:9"]
    assert error.holders[0].stack() == "the stack of worker-1"
    assert isinstance(error.stats, PoolStats)
    assert error.stats.in_use == 2
    assert error.stats.timeouts == 1


def test_error_can_be_pickled_with_what_it_says() -> None:
    world = World(max_size=1)
    borrow(world, "worker-1", 41)
    hand = world.acquire(0.0).run()
    assert isinstance(hand.error, PoolTimeout)
    copy = pickle.loads(pickle.dumps(hand.error))
    assert str(copy) == str(hand.error)
    assert copy.holders == hand.error.holders
    assert copy.holders[0].stack() == "", "what another process does is not known here"
    assert copy.stats.use.percentile(99) == 0.0
    assert copy.stats.discards == hand.error.stats.discards if hand.error.stats else False


@pytest.mark.parametrize("kind", [PoolOverloaded, PoolClosed])
def test_refusal_names_the_holders(kind: type[PoolError]) -> None:
    world = World(max_size=1, max_waiting=0)
    borrow(world, "worker-1", 41)
    if kind is PoolClosed:
        world.core.shut()
    hand = world.acquire()
    refusal(hand, kind)
    assert hand.error is not None
    assert "held for 0 s by views.py:41 in worker-1" in str(hand.error)


def test_holder_who_waits_is_told_with_both_lines() -> None:
    world = World(max_size=2)
    world.people.inside = {"worker-1"}
    borrow(world, "worker-1", 41)
    borrow(world, "worker-2", 9)
    act(world, "worker-1", 43)
    hand = world.acquire(5.0).run()
    world.now += 5.0
    hand.resume()
    assert explanation(hand) == [
        "  held for 5 s by views.py:41 in worker-1, and waits for another one at views.py:43",
        "  held for 5 s by views.py:9 in worker-2",
        (
            "1 of 2 wait for a second connection while they hold one: "
            "pass the first on, or allow for it in max_size"
        ),
    ]


def test_holder_whose_thread_has_ended_is_told() -> None:
    world = World(max_size=1)
    borrow(world, "worker-1", 41)
    world.people.ended = {"worker-1"}
    hand = world.acquire(0.0)
    assert explanation(hand) == [
        "  held for 0 s by views.py:41 in a thread, which has ended",
        "1 of 1 were borrowed by somebody who has ended: a leak, unless they were handed over",
    ]


def test_only_the_longest_are_named_and_all_are_there_as_data() -> None:
    world = World(max_size=8)
    for line in range(8):
        world.now += 1.0
        borrow(world, f"worker-{line}", line)
    hand = world.acquire(0.0)
    lines = explanation(hand)
    assert len(lines) == diagnosis.SHOWN + 2
    assert lines[0] == "  held for 7 s by views.py:0 in worker-0"
    assert lines[-2] == "  and 3 more"
    assert isinstance(hand.error, PoolTimeout)
    assert len(hand.error.holders) == 8


def test_short_uses_are_no_leak() -> None:
    world = World(max_size=1)
    for _ in range(5):
        entry = borrow(world, "worker-1", 41)
        world.now += 0.05
        world.release(entry).value()
    borrow(world, "worker-1", 41)
    hand = world.acquire(0.0)
    assert explanation(hand)[-1] == (
        "they come back after 0.05 s (median), but more is asked than 1 can serve: hold them shorter, "
        "or raise max_size if the server has room"
    )


def test_nothing_is_said_of_what_is_not_known() -> None:
    world = World(max_size=2)
    borrow(world, "worker-1", 41)
    world.server.down(FakeOperationalError("connection refused"))
    hand = world.acquire(0.0)
    assert explanation(hand) == ["  held for 0 s by views.py:41 in worker-1"]


def test_suspended_pool_says_so() -> None:
    world = World()
    world.core.suspend()
    hand = world.acquire(0.0)
    assert explanation(hand) == ["the pool is suspended: resume() serves again"]


@pytest.mark.parametrize(
    ("text", "fault", "said"),
    [
        ("sorry, too many clients already", Fault.FULL, "takes no more sessions"),
        ("password authentication failed", Fault.AUTH, "refuses these parameters"),
    ],
)
def test_what_a_server_refuses_is_explained(text: str, fault: Fault, said: str) -> None:
    world = World(max_size=2)
    world.server.down(FakeOperationalError(text))
    hand = world.acquire(5.0).run()
    world.work()
    assert isinstance(hand.run().error, PoolUnavailable)
    assert said in str(hand.error)
    stats = world.core.snapshot("test", world.now)
    assert stats.faults[fault] == stats.dial_failures == 1
    assert stats.unavailable == 1


def test_many_errors_at_a_time_share_one_diagnosis() -> None:
    world = World(max_size=1)
    borrow(world, "worker-1", 41)
    found = []
    for _ in range(30):
        hand = world.acquire(0.0).run()
        assert isinstance(hand.error, PoolTimeout)
        found.append(hand.error.stats)
    assert len({id(stats) for stats in found}) == 10
    world.now += 0.1
    hand = world.acquire(0.0).run()
    assert isinstance(hand.error, PoolTimeout)
    assert hand.error.stats is not found[-1]


def test_somebody_unknown_is_somebody() -> None:
    world = World(max_size=1)
    lent = world.lend()
    hand = world.acquire(0.0)
    assert len(lent) == 1
    assert explanation(hand)[0] == "  held for 0 s by somebody in somebody"


# -- deadlocks ---------------------------------------------------------------------------------------


def ring(world: World, *who: str) -> list[Hand[Entry[Any]]]:
    """Have everybody borrow one connection, and then ask for a second one."""
    world.people.inside = set(who)
    for number, one in enumerate(who):
        borrow(world, one, 10 + number)
    hands = []
    for number, one in enumerate(who):
        act(world, one, 20 + number)
        hands.append(world.acquire(60.0).run())
    return hands


def test_last_of_a_ring_is_refused_at_once_with_all_lines() -> None:
    world = World(max_size=2)
    first, last = ring(world, "worker-1", "worker-2")
    assert first.parked
    assert refusal(last, PoolDeadlock) == (
        "all 2 connections are held by those who wait for another one (pool 'test')"
    )
    text = str(last.error)
    assert all(f"views.py:{line}" in text for line in (10, 11, 20, 21)), text
    assert "deadlock" in names(world)
    stats = world.core.snapshot("test", world.now)
    assert (stats.deadlocks, stats.timeouts, stats.waiting) == (1, 0, 1)
    assert_lawful(world.core, in_use=2)


def test_borrower_of_all_that_waits_for_himself_is_refused() -> None:
    world = World(max_size=1)
    (hand,) = ring(world, "worker-1")
    refusal(hand, PoolDeadlock)


def test_ring_of_which_one_does_not_wait_is_none() -> None:
    world = World(max_size=3)
    borrow(world, "worker-3", 1)
    hands = ring(world, "worker-1", "worker-2")
    assert all(hand.parked for hand in hands)


def test_ring_in_a_pool_that_can_grow_is_none() -> None:
    world = World(max_size=3)
    hands = ring(world, "worker-1", "worker-2")
    world.work()
    assert hands[0].value()


def test_borrower_who_is_not_in_his_block_any_more_completes_no_ring() -> None:
    world = World(max_size=2)
    world.people.inside = {"worker-1"}
    borrow(world, "worker-1", 10)
    borrow(world, "worker-2", 11)  # a generator, say, that another thread resumes
    act(world, "worker-1", 20)
    first = world.acquire(60.0).run()
    act(world, "worker-2", 21)
    second = world.acquire(60.0).run()
    assert first.parked
    assert second.parked


def test_what_acquire_lent_completes_no_ring() -> None:
    world = World(max_size=1)
    world.people.inside = {"worker-1"}
    entry = borrow(world, "worker-1", 10)
    conn = world.core.lend_bare(entry)
    act(world, "worker-1", 20)
    hand = world.acquire(60.0).run()
    assert hand.parked, "somebody else may give it back"
    assert conn is not None


def test_ring_in_a_suspended_pool_is_none() -> None:
    world = World(max_size=1)
    world.people.inside = {"worker-1"}
    borrow(world, "worker-1", 10)
    world.core.suspend()
    assert world.acquire(60.0).run().parked


def test_ring_that_is_broken_while_it_is_looked_at_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_size=1)
    world.people.inside = {"worker-1"}
    entry = borrow(world, "worker-1", 10)
    real = Core.deadlocked

    def late(core: Core[Any], waiter: Any) -> object:
        core.give(entry)
        outcome = waiter.outcome
        left = real(core, waiter)
        waiter.outcome = outcome
        return left

    monkeypatch.setattr(Core, "deadlocked", late)
    act(world, "worker-1", 20)
    assert world.acquire(60.0).value() is entry
    assert "deadlock" not in names(world)


# -- nesting -----------------------------------------------------------------------------------------


def test_second_connection_inside_a_first_is_told_once_for_each_pair_of_lines() -> None:
    world = World(max_size=5)
    world.people.inside = {"worker-1"}
    borrow(world, "worker-1", 10)
    for line in (20, 20, 30):
        borrow(world, "worker-1", line)
    assert names(world) == ["nested", "nested"]
    assert world.told[0] == (
        "pool 'test': views.py:20 asks for a second connection while views.py:10 holds one: enough such "
        "borrowers at a time would deadlock"
    )
    assert world.events[0].fields == {"site": "views.py:20", "outer": "views.py:10"}


def test_nesting_can_be_forbidden() -> None:
    world = World(nested="forbid")
    world.people.inside = {"worker-1"}
    borrow(world, "worker-1", 10)
    act(world, "worker-1", 20)
    assert refusal(world.acquire(), PoolMisuse) == (
        "views.py:20 asks for a second connection while views.py:10 holds one, and nested='forbid' "
        "(pool 'test')"
    )
    assert_lawful(world.core, in_use=1)


def test_nesting_can_be_allowed() -> None:
    world = World(nested="allow")
    world.people.inside = {"worker-1"}
    borrow(world, "worker-1", 10)
    borrow(world, "worker-1", 20)
    assert world.told == []


def test_another_borrower_does_not_nest() -> None:
    world = World()
    world.people.inside = {"worker-1", "worker-2"}
    borrow(world, "worker-1", 10)
    borrow(world, "worker-2", 20)
    assert world.told == []


# -- the log -----------------------------------------------------------------------------------------


def look(world: World) -> None:
    world.hold(world.flows.upkeep()).run()
    world.work()


def test_long_hold_is_told_once_and_once_more_when_it_is_over() -> None:
    world = World(warn_after=60.0)
    entry = borrow(world, "worker-1", 41)
    world.now += 59.0
    look(world)
    assert world.told == []
    for _ in range(3):
        world.now += 1.0
        look(world)
    assert world.told == ["pool 'test': views.py:41 in worker-1 has held a connection for 60 s"]
    world.release(entry).value()
    assert world.told[1:] == ["pool 'test': views.py:41 has given its connection back after 62 s"]
    again = borrow(world, "worker-1", 42)
    world.release(again).value()
    assert names(world) == ["long_hold", "long_hold_over"]


def test_pool_looks_for_long_holds_by_itself() -> None:
    world = World(warn_after=30.0, idle_timeout=None, max_lifetime=None)
    (entry,) = world.lend()
    assert world.core.due(world.now) == world.now + 30.0
    world.now += 10.0
    assert world.core.due(world.now) == world.now + 20.0
    world.release(entry).value()
    world.now += 100.0
    assert world.core.due(world.now) == world.now + 30.0, "it may be lent, and nobody tells"


def test_borrower_that_ended_is_told_once() -> None:
    world = World(warn_after=60.0)
    borrow(world, "worker-1", 41)
    world.people.ended = {"worker-1"}
    world.now += 3.0
    look(world)
    look(world)
    assert world.told == [
        "pool 'test': the thread that borrowed at views.py:41 ended without giving back; it had 3 s"
    ]


def test_late_holds_of_ended_borrowers_have_no_name() -> None:
    world = World(warn_after=1.0)
    borrow(world, "worker-1", 41)
    world.people.ended = {"worker-1"}
    world.now += 3.0
    look(world)
    assert (
        world.told[0] == "pool 'test': views.py:41 in a thread that has ended has held a connection for 3 s"
    )


def test_nobody_is_looked_at_where_that_is_switched_off() -> None:
    world = World(warn_after=None)
    borrow(world, "worker-1", 41)
    world.people.ended = {"worker-1"}
    world.now += 3000.0
    look(world)
    assert world.told == []


def test_lost_connection_is_told_with_its_line() -> None:
    world = World()
    lose(world, "worker-1", 41)
    assert names(world) == ["leak"]
    assert world.events[0].fields == {"site": "views.py:41"}
    assert discards(world) == {Reason.LOST: 1}
    assert world.core.snapshot("test", world.now).leaks == 1


def test_failed_dials_are_told_and_their_end_too() -> None:
    world = World()
    world.stock()
    world.hold(world.flows.evict()).value()
    world.server.down(FakeOperationalError("connection refused"))
    world.work()
    world.server.up()
    world.now += 2.0
    borrow(world, "worker-1", 41)
    look(world)
    assert names(world) == ["dial_failed", "dial_recovered"]
    assert world.events[0].fields["fault"] == "dead"
    assert world.events[1].fields == {"failures": 1, "seconds": pytest.approx(2.0)}


def test_every_leak_is_told() -> None:
    world = World(max_size=2)
    for line in range(2 * MOST):
        lose(world, "worker-1", line)
    assert [event.fields["site"] for event in world.events] == [f"views.py:{n}" for n in range(2 * MOST)]


def test_lost_session_is_told() -> None:
    world = World()
    entry = borrow(world, "worker-1", 41)
    entry.conn.busy = True
    world.release(entry, FakeOperationalError("server closed the connection unexpectedly")).value()
    assert names(world) == ["session_lost"]
    assert world.events[0].fields == {"reason": "dead"}


def test_wait_in_an_event_loop_is_told_once() -> None:
    world = World(max_size=1)
    borrow(world, "worker-1", 41)
    world.people.blocking = True
    act(world, "loop", 50)
    for _ in range(2):
        world.acquire(60.0).run()
    assert names(world) == ["blocks_event_loop"]
    assert world.events[0].fields == {"site": "views.py:50"}


def test_storm_is_told_in_a_few_lines_and_counted() -> None:
    throttle = Throttle()
    passed = [throttle.passes("leak", now / 100) for now in range(100)]
    assert passed == [0] * MOST + [None] * (100 - MOST)
    assert throttle.passes("other", 1.0) == 0
    assert throttle.passes("leak", WITHIN) == 100 - MOST
    assert throttle.passes("leak", WITHIN + 0.01) == 0


def test_events_that_were_left_out_are_counted_in_the_next_one() -> None:
    world = World(warn_after=None, max_size=20)
    for wait in [0.0] * (MOST + 3) + [WITHIN]:
        world.now += wait
        entry = borrow(world, "worker-1", 41)
        entry.conn.busy = True
        world.release(entry, FakeOperationalError("server closed the connection unexpectedly")).value()
        look(world)
    assert len(world.told) == MOST + 1
    assert world.events[-1].fields["left_out"] == 3
    assert world.told[-1].endswith("(and 3 such events before)")


# -- figures -----------------------------------------------------------------------------------------


def test_peaks_are_those_since_the_last_reading() -> None:
    world = World(max_size=3)
    entries = [borrow(world, "worker-1", line) for line in range(3)]
    waiting = world.acquire(5.0).run()
    for entry in entries:
        world.now += 0.1
        world.release(entry).value()
    world.release(waiting.value()).value()
    stats = world.core.snapshot("test", world.now, reading=True)
    assert (stats.peak_size, stats.peak_in_use, stats.peak_waiting) == (3, 3, 1)
    assert stats.in_use == 0
    world.now += 1.0
    world.release(borrow(world, "worker-1", 9)).value()
    stats = world.core.snapshot("test", world.now, reading=True)
    assert (stats.peak_size, stats.peak_in_use, stats.peak_waiting) == (3, 1, 0)
    world.now += 1.0
    assert world.core.snapshot("test", world.now).peak_in_use == 0


def test_oldest_wait_is_told() -> None:
    world = World(max_size=1)
    borrow(world, "worker-1", 1)
    world.acquire(60.0).run()
    world.now += 2.0
    world.acquire(60.0).run()
    world.now += 1.0
    assert world.core.snapshot("test", world.now).oldest_wait == 3.0


def test_connection_that_on_acquire_refuses_was_never_acquired() -> None:
    def refuse(conn: Any) -> None:
        raise LookupError

    world = World(on_acquire=refuse)
    hand = world.acquire().run()
    world.work()
    assert isinstance(hand.run().error, LookupError)
    stats = world.core.snapshot("test", world.now)
    assert (stats.acquires, stats.releases, stats.opened) == (0, 0, 1)


@pytest.mark.parametrize(("reset", "policy"), [("full", "full"), (lambda conn: None, "custom")])
def test_resets_are_counted_and_timed(reset: Any, policy: str) -> None:
    world = World(reset=reset)
    world.release(borrow(world, "worker-1", 1)).value()
    stats = world.core.snapshot("test", world.now)
    assert (stats.resets, stats.reset_failures, stats.reset_policy) == (1, 0, policy)
    assert stats.reset.count == 1


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="nested='maybe'"):
        PoolOptions(nested="maybe")  # type: ignore[arg-type] # that is the test
    with pytest.raises(TypeError, match="observers="):
        PoolOptions(observers=[1])  # type: ignore[list-item] # that is the test
    with pytest.raises(ValueError, match="warn_after=0"):
        PoolOptions(warn_after=0)


def test_holder_reads_as_a_sentence() -> None:
    assert str(Holder(25.31, "worker-1", "app/views.py:41")) == "25.3 s by app/views.py:41 in worker-1"


def test_error_that_no_adapter_can_be_found_for_is_kept_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(found: object, connect: object) -> None:
        raise LookupError("no such module")

    world = World(lambda: None)
    world.flows._find = find
    error = OSError("refused")
    assert world.flows._dial_fault(error) is Fault.ORDINARY
    assert error.__notes__ == ["and no adapter was found for it: LookupError('no such module')"]


def test_connection_that_is_lost_while_it_is_looked_at_is_passed_over() -> None:
    world = World(warn_after=1.0)
    borrow(world, "worker-1", 41)
    (slot,) = world.core.slots
    world.now += 2.0
    real = world.core._borrows

    def lose_meanwhile() -> Any:
        found = real()
        KEPT.clear()  # another thread, between two bytecodes
        return found

    world.core._borrows = lose_meanwhile  # type: ignore[method-assign] # that is the test
    assert [borrow.slot for borrow in world.core.overdue(world.now - 1.0)] == [slot]


def test_pool_that_nobody_can_run_a_flow_for_any_more_is_cut() -> None:
    world = World()
    world.stock(2)
    entry = borrow(world, "worker-1", 41)
    world.flows.cut()
    assert not world.core.idle
    assert not entry.conn.closed
    world.release(entry).value()
    world.work()
    assert not world.server.sessions


def test_entries_can_be_looked_at() -> None:
    world = World()
    entry = borrow(world, "worker-1", 41)
    assert world.core.entries() == [entry]


def test_place_without_a_connection_is_freed_when_the_pool_is_cut() -> None:
    world = World()
    world.core.debris.append(Slot())
    world.flows.cut()
    assert not world.core.debris
