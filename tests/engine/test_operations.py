"""What an operator does to a running pool: suspend, evict at once or slowly, close, fork."""

from __future__ import annotations

from math import inf

import pytest
from engine.driver import (
    STRIKES,
    World,
    assert_lawful,
    connect,
    dial,
    discards,
    lend,
    make_core,
    opening,
    queue,
    refusal,
    stock,
)

from connpool.engine.core import Core
from connpool.engine.operations import Step
from connpool.engine.records import Entry
from connpool.errors import PoolClosed, PoolOverloaded, PoolTimeout
from connpool.options import PoolOptions
from connpool.stats import Reason
from connpool.testing import FakeConnection, FakeOperationalError

# -- suspend and resume ------------------------------------------------------------------------------


def test_suspended_pool_lets_callers_wait_although_something_is_idle() -> None:
    world = World()
    (entry,) = world.stock()
    world.core.suspend()
    hand = world.acquire().run()
    assert hand.parked
    assert world.core.brief() == "suspended, 0 of 10 in use, 1 idle, 0 opening, 1 waiting"
    assert_lawful(world.core, in_use=0)
    world.hold(world.flows.resume()).value()
    assert hand.value() is entry


def test_those_who_waited_are_served_first_and_in_their_order() -> None:
    world = World(max_size=2)
    world.stock(2)
    world.core.suspend()
    first, second, third = (world.acquire().run() for _ in range(3))
    world.core.resume()
    late = world.acquire().run()
    assert isinstance(first.run().result, Entry)
    assert isinstance(second.run().result, Entry)
    assert third.parked
    assert late.parked
    entry = first.value()
    world.release(entry).value()
    assert third.value() is entry


def test_what_comes_back_during_a_suspension_is_kept() -> None:
    world = World()
    (entry,) = world.lend()
    world.core.suspend()
    hand = world.acquire().run()
    world.release(entry).value()
    assert hand.parked
    assert list(world.core.idle) == [entry]
    world.hold(world.flows.resume()).value()
    assert hand.value() is entry


def test_nothing_is_dialled_during_a_suspension() -> None:
    world = World(max_size=3, min_idle=1)
    world.core.suspend()
    hand = world.acquire().run()
    world.hold(world.flows.upkeep()).value()
    assert not world.jobs
    assert not world.core.owes()
    world.hold(world.flows.resume()).value()
    world.work()
    assert isinstance(hand.value(), Entry)


def test_dial_that_was_under_way_keeps_its_connection_for_later() -> None:
    world = World()
    dialling = opening(world)
    dialling.to(Step.CONNECT)
    world.core.suspend()
    dialling.value()
    assert len(world.core.idle) == 1
    assert world.hands[0].parked
    world.hold(world.flows.resume()).value()
    assert isinstance(world.hands[0].value(), Entry)


@pytest.mark.parametrize("connections", [0, 1])
def test_deadline_passes_during_a_suspension(connections: int) -> None:
    world = World()
    world.stock(connections)
    world.core.suspend()
    hand = world.acquire(5.0).run()
    world.now += 5.0
    hand.resume()
    assert refusal(hand, PoolTimeout) == (
        f"no connection within 5 s: suspended, 0 of 10 in use, {connections} idle, 0 opening, 0 waiting "
        "(pool 'test')"
    )
    assert_lawful(world.core, in_use=0)


def test_caller_of_a_suspended_pool_is_not_hopeless() -> None:
    world = World()
    world.core.retry_at = world.now + 60.0
    world.core.suspend()
    assert world.acquire(5.0).run().parked


def test_closing_ends_a_suspension_and_all_waiting() -> None:
    world = World()
    world.stock()
    world.core.suspend()
    hand = world.acquire().run()
    world.hold(world.flows.close(world.now)).run()
    assert "the pool is closed" in refusal(hand, PoolClosed)
    world.work()
    world.hold(world.flows.resume()).value()
    assert world.core.snapshot("test", 0.0).waiting == 0
    assert "the pool is closed" in refusal(world.acquire(), PoolClosed)
    world.core.suspend()
    assert not world.core.suspended
    assert len(world.core.waiters) == 1


def test_suspending_and_resuming_can_be_repeated() -> None:
    world = World()
    world.stock()
    for _ in range(2):
        world.core.suspend()
        world.core.suspend()
        assert len(world.core.waiters) == 1
        world.hold(world.flows.resume()).value()
        world.hold(world.flows.resume()).value()
        assert not world.core.waiters
    assert isinstance(world.acquire().value(), Entry)


def test_resuming_goes_on_if_an_interrupt_struck_before_the_gate_was_shut() -> None:
    world = World()
    world.stock()
    world.core.suspended = True
    (hand,) = (world.acquire().run(),)
    world.core.resume()
    assert isinstance(hand.value(), Entry)


def test_suspended_pool_bounds_its_queue() -> None:
    world = World(max_size=1, max_waiting=2)
    world.stock()
    world.core.suspend()
    hands = [world.acquire().run() for _ in range(2)]
    assert all(hand.parked for hand in hands)
    assert "max_waiting=2 callers wait; suspended, " in refusal(world.acquire(), PoolOverloaded)


def test_retry_of_a_caller_keeps_its_place_behind_the_gate() -> None:
    core = make_core(max_size=1)
    (entry,) = stock(core)
    caller = queue(core)[0]
    assert caller.take() is entry
    core.suspend()
    (later,) = queue(core)
    caller.outcome = None
    core.queue(caller)
    assert list(core.waiters) == [core._gate, caller, later]
    core.give(entry)
    assert caller.outcome is None
    core.resume()
    assert caller.take() is entry


@pytest.mark.parametrize("strike", STRIKES)
def test_caller_who_is_struck_during_a_suspension_leaves_the_queue(strike: str) -> None:
    world = World()
    world.stock()
    world.core.suspend()
    hand = world.acquire().run()
    error = STRIKES[strike]()
    if isinstance(error, GeneratorExit):
        hand.close()
    else:
        hand.throw(error)
    assert list(world.core.waiters) == [world.core._gate]
    world.core.resume()
    world.settle()


def test_refused_credentials_fail_those_who_wait_for_a_resumption() -> None:
    world = World()
    dialling = opening(world)
    dialling.to(Step.CONNECT)
    world.core.suspend()
    dialling.throw(FakeOperationalError("password authentication failed"))
    dialling.run()
    assert world.hands[0].run().error is not None
    assert list(world.core.waiters) == [world.core._gate]


# -- evict -------------------------------------------------------------------------------------------


def test_evicted_idle_connections_are_opened_anew_although_nobody_waits() -> None:
    world = World(max_size=4, max_connecting=2)
    old = world.stock(3)
    world.hold(world.flows.evict()).value()
    assert len(world.core.opening) == 1, "there was room for one more, the others are being closed"
    world.work()
    assert all(entry.conn.closed for entry in old)
    assert len(world.core.idle) == 3
    assert not world.core.owes()


def test_replacement_of_what_is_lent_is_opened_before_it_comes_home_where_there_is_room() -> None:
    world = World(max_size=3, max_connecting=3)
    old = world.lend(2)
    world.hold(world.flows.evict()).value()
    world.work()
    assert len(world.core.idle) == 1, "there was room for one"
    assert_lawful(world.core, in_use=2)
    for entry in old:
        world.release(entry).value()
    world.work()
    assert len(world.core.idle) == 2, "each has its replacement"
    assert discards(world) == {"evicted": 2}
    assert not world.core.owes()


def test_cleared_pool_opens_nothing_unasked_and_forgets_what_an_eviction_wanted() -> None:
    world = World(max_size=4, max_connecting=1)
    (lent,) = world.lend(1)
    old = world.stock(2)
    world.hold(world.flows.evict()).value()
    clearing = world.hold(world.flows.clear(world.now + 1.0)).run()
    world.work()
    clearing.run().value()
    assert all(entry.conn.closed for entry in old)
    assert world.core.refill == 0
    world.release(lent).value()
    world.work()
    assert_lawful(world.core)
    assert not world.core.slots
    assert not world.core.owes()


def test_clearing_waits_no_longer_than_it_may() -> None:
    world = World()
    world.stock(1)
    clearing = world.hold(world.flows.clear(world.now + 1.0)).run()
    world.now += 1.0
    clearing.execute()  # the park ends at its deadline
    clearing.value()
    assert world.core.closing, "nobody has closed it yet"


def test_what_is_lent_only_once_is_not_replaced() -> None:
    world = World(max_size=4, max_uses=1)
    world.lend(2)
    world.hold(world.flows.evict()).value()
    assert not world.core.opening


def test_dial_that_an_eviction_condemned_is_no_replacement() -> None:
    core = make_core(max_size=3)
    lent = lend(core)
    queue(core)
    condemned = dial(core)
    core.evict()
    connect(core, condemned)
    assert core.refill == len(lent)


def test_eviction_repeated_before_anybody_came_home_asks_for_no_more() -> None:
    world = World(max_size=9, max_connecting=1)
    lent = world.lend(3)
    for _ in range(3):
        world.hold(world.flows.evict()).value()
        world.work()
    assert_lawful(world.core, in_use=len(lent))
    assert len(world.core.idle) == 3


def test_server_that_refuses_is_not_asked_again_for_connections_that_nobody_needs() -> None:
    world = World(max_size=4)
    world.stock(3)
    world.hold(world.flows.evict()).value()
    world.server.down()
    world.work()
    assert world.core.refill == 0
    world.core.notes.clear()  # to be told by whoever comes next
    assert not world.core.owes()
    assert world.core.due(world.now) is None or not world.core.slots


def test_eviction_of_a_pool_that_shrinks_opens_no_more_than_it_may() -> None:
    world = World(max_size=3)
    world.stock(3)
    world.core.max_size = 2
    world.core.evict(world.now)
    assert world.core.refill == 2


def test_lifetimes_of_a_slow_eviction_are_spread() -> None:
    world = World(max_lifetime=None)
    entries = world.stock(4)
    world.core.evict(world.now, 60.0)
    assert sorted(entry.expires - world.now for entry in entries) == [15.0, 30.0, 45.0, 60.0]
    assert all(entry.warm_until == entry.expires for entry in entries)
    assert all(entry.check_at <= entry.expires for entry in entries)
    assert len(world.core.idle) == 4, "nothing is closed yet"


def test_slow_eviction_lengthens_no_life() -> None:
    world = World(max_lifetime=10.0)
    entries = world.stock(2)
    world.core.evict(world.now, 60.0)
    assert [entry.expires - world.now for entry in entries] == [10.0, 10.0]


def test_connection_is_not_lent_beyond_its_place_in_a_slow_eviction() -> None:
    world = World(max_size=2, max_lifetime=None, probe_after=600.0, ping_after=600.0, idle_timeout=None)
    idle, lent = world.lend(2)
    world.release(idle).value()
    world.core.evict(world.now, 4.0)
    assert idle.check_at <= idle.expires < world.now + 10.0
    world.now += 4.0
    world.release(lent).value()
    assert discards(world) == {"lifetime": 1}
    hand = world.acquire().run()
    world.work()
    assert hand.value() not in (idle, lent)
    assert discards(world) == {"lifetime": 2}


def test_upkeep_replaces_idle_connections_one_after_the_other() -> None:
    world = World(min_idle=4, max_lifetime=None, idle_timeout=None)
    world.hold(world.flows.upkeep()).value()
    world.work()
    old = set(world.core.idle)
    began = world.now
    world.hold(world.flows.evict(40.0)).value()
    left = []
    while old & set(world.core.idle):
        assert world.watched is not None
        world.now = max(world.now, world.watched)
        world.hold(world.flows.upkeep()).value()
        world.work()
        left.append(len(old & set(world.core.idle)))
        assert len(world.core.idle) == 4
    assert sorted(set(left), reverse=True) == [*range(max(left), -1, -1)], "one at a time"
    assert world.now <= began + 40.0


@pytest.mark.parametrize("over", [0.0, 60.0])
def test_dial_that_had_begun_does_not_survive_an_eviction(over: float) -> None:
    world = World()
    dialling = opening(world)
    dialling.to(Step.CONNECT)
    world.core.evict(world.now, over)
    dialling.value()
    assert discards(world) == {"evicted": 1}
    world.hold(world.flows.follow_up()).value()
    world.work()
    assert isinstance(world.hands[0].value(), Entry)


def test_eviction_leaves_alone_what_is_leaving_already() -> None:
    world = World()
    entry, other = world.lend(2)
    entry.doomed = Reason.SURPLUS
    world.core.evict(world.now, 60.0)
    assert entry.expires > world.now + 60.0
    assert other.expires == world.now + 60.0
    world.core.evict(world.now)
    assert (entry.doomed, other.doomed) == (Reason.SURPLUS, Reason.EVICTED)


def test_slow_eviction_of_an_empty_pool_is_nothing() -> None:
    world = World()
    world.hold(world.flows.evict(60.0)).value()
    assert world.core.due(world.now) is None


# -- close, and cut ----------------------------------------------------------------------------------


def test_borrower_who_is_late_is_cut_and_told_of() -> None:
    world = World()
    first, second = world.lend(2)
    hand = world.hold(world.flows.close(world.now + 5.0, cut=True)).run()
    world.release(first).value()
    world.work()
    assert hand.parked
    world.now += 5.0
    hand.resume()
    hand.value()
    assert second.conn.closed
    with pytest.raises(FakeOperationalError):
        second.conn.execute("select 1")
    assert world.told == [
        (
            "pool 'test': it was closed while 1 of its connections were still in use, which were cut: "
            "held for 5 s by somebody in somebody"
        )
    ]
    world.release(second).value()
    world.work()
    assert not world.core.slots
    assert discards(world) == {"closed": 1, "spent": 1}


def test_closing_twice_cuts_and_tells_once() -> None:
    world = World()
    (entry,) = world.lend()
    for _ in range(2):
        world.hold(world.flows.close(world.now, cut=True)).value()
    assert len(world.told) == 1
    assert entry.conn.closed


def test_closing_in_time_cuts_nobody() -> None:
    world = World()
    world.stock(2)
    hand = world.hold(world.flows.close(world.now + 5.0, cut=True)).run()
    world.work()
    hand.value()
    assert world.told == []


def test_pool_that_never_had_a_connection_has_nobody_to_cut() -> None:
    world = World(lambda: None)
    world.hold(world.flows.close(world.now, cut=True)).value()
    assert world.told == []


def test_connection_that_was_lent_bare_is_cut_too() -> None:
    world = World()
    (entry,) = world.lend()
    conn = world.core.lend_bare(entry)
    del entry
    world.hold(world.flows.close(world.now, cut=True)).value()
    assert conn.closed


def test_only_what_is_lent_is_in_other_hands() -> None:
    world = World(max_size=3)
    lent, idle, closing = world.lend(3)
    world.release(idle).value()
    world.core.retire(closing, Reason.DEAD, world.now)
    opening(World()).to(Step.CONNECT)
    assert world.core.lent() == [lent.conn]


# -- fork --------------------------------------------------------------------------------------------


def test_child_forgets_every_connection_of_its_parent() -> None:
    world = World(max_size=5)
    idle, lent, bare, closing = world.lend(4)
    world.release(idle).value()
    conns = [idle.conn, lent.conn, world.core.lend_bare(bare), closing.conn]
    world.core.retire(closing, Reason.DEAD, world.now)
    dialling = opening_beside(world)
    sent = list(world.server.statements)
    new: Core[FakeConnection] = Core(PoolOptions(max_size=5))
    found = world.flows.inherit(new)
    assert set(found) >= set(conns)
    assert all(conn.closed for conn in conns)
    assert world.server.statements == sent
    assert set(conns) <= set(world.server.sessions), "the parent's sessions live"
    assert world.flows.core is new
    assert all(entry.doomed is Reason.INHERITED for entry in (idle, lent, bare))
    dialling.close()


def opening_beside(world: World) -> object:
    """Begin a dial that has no connection yet."""
    world.core.min_idle = 2
    world.hold(world.flows.follow_up()).value()
    dialling = world.hold(world.jobs.pop())
    dialling.to(Step.CONNECT)
    return dialling


def test_connection_that_was_lent_at_the_fork_is_given_back_to_nobody() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    assert entry.warm_until > world.now
    new: Core[FakeConnection] = Core(PoolOptions())
    old, world.core = world.core, new
    world.flows.inherit(new)
    assert entry.warm_until == -inf, "its release is a flow's"
    hand = world.release(entry)
    hand.value()
    assert hand.steps == []
    assert not new.slots
    assert len(old.slots) == 1


def test_child_of_a_pool_whose_driver_is_unknown_inherits_nothing() -> None:
    world = World(lambda: None)
    dialling = opening(world)
    dialling.to(Step.CONNECT)
    assert world.flows.inherit(Core(PoolOptions())) == []


def test_child_opens_connections_of_its_own() -> None:
    world = World()
    (entry,) = world.stock()
    new: Core[FakeConnection] = Core(PoolOptions())
    world.core = new
    world.flows.inherit(new)
    hand = world.acquire().run()
    world.work()
    assert hand.value().conn is not entry.conn


# -- who lost the race -------------------------------------------------------------------------------


def test_entry_that_is_lent_while_upkeep_prunes_is_left_to_its_borrower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    (entry,) = world.stock()
    world.core.idle.pop()
    monkeypatch.setattr(world.core, "_idle_now", lambda: [entry])
    world.core.prune(entry.expires)
    assert discards(world) == {}
