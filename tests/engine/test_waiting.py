"""Who only has to wait queues without a flow, and goes on with one if that was not all."""

from collections.abc import Callable
from typing import Any

import pytest
from engine.driver import World, refusal

from connpool.engine.records import Entry, Refusal, Waiter
from connpool.errors import PoolOverloaded, PoolTimeout


def busy(**options: Any) -> tuple[World, Entry[Any]]:
    """Make a pool whose only connection somebody has."""
    world = World(max_size=1, **options)
    world.people.owner = "holder"
    (entry,) = world.lend()
    world.core.waits.clear()
    world.people.owner, world.people.site = "caller", (busy.__code__, 2)
    return world, entry


def waiting(world: World) -> Waiter:
    """Have a caller take a place in the queue, as the pool does."""
    waiter = world.flows.waiter(world.people.site)
    assert world.flows.just_waits(waiter)
    return waiter


def go_on(world: World, waiter: Waiter, timeout: float = 5.0) -> Any:
    """Have the flow see to the rest."""
    deadline = waiter.since + timeout
    return world.hold(world.flows.acquire(None, timeout, deadline, waiter))


def test_waiter_is_served_without_a_flow() -> None:
    world, entry = busy()
    waiter = waiting(world)
    world.now += 0.25
    world.release(entry).value()
    assert world.flows.served(waiter) is entry
    assert waiter.outcome is Refusal.LEFT
    assert entry.lent_at == world.now
    assert (entry.slot.code, entry.slot.lasti) == world.people.site
    assert entry.slot.owner == waiter.owner
    assert list(world.core.waits) == [0.25]
    assert not world.core.waiters


def test_what_comes_back_before_the_caller_is_in_the_queue_is_no_wait() -> None:
    world, entry = busy()
    waiter = world.flows.waiter(None)
    world.release(entry).value()
    assert not world.flows.just_waits(waiter)  # he has it already
    assert world.flows.served(waiter) is entry
    assert not world.core.waits


def owes(world: World) -> None:
    world.core.notes.append(("dial_recovered", 1))


def is_nested(world: World) -> None:
    next(iter(world.core.slots)).owner = world.people.owner


NEEDS: dict[str, Callable[[World], object]] = {
    "room for a dial": lambda world: world.core.resize(2, 0),
    "a dial under way": lambda world: world.core.opening.update({next(iter(world.core.slots)): None}),
    "a connection to be closed": lambda world: world.core.closing.update(
        {next(iter(world.core.slots)): None}
    ),
    "a pause between dials": lambda world: setattr(world.core, "retry_at", world.now + 1.0),
    "something to be told": owes,
    "a connection that the caller has": is_nested,
    "an event loop that would stand still": lambda world: setattr(world.people, "blocking", True),
}


@pytest.mark.parametrize("need", NEEDS)
def test_whatever_else_is_to_be_done_is_the_flows(need: str) -> None:
    world, _ = busy()
    waiting(world)
    NEEDS[need](world)
    waiter = world.flows.waiter(world.people.site)
    assert not world.flows.just_waits(waiter)
    assert world.flows.served(waiter) is None


def test_who_has_been_told_of_his_event_loop_may_wait() -> None:
    world, _ = busy()
    world.people.blocking = True
    world.acquire(1.0).run()
    waiting(world)


def test_deadline_is_told_by_the_flow() -> None:
    world, _ = busy()
    waiter = waiting(world)
    world.now += 5.0
    assert world.flows.served(waiter) is None
    assert refusal(go_on(world, waiter), PoolTimeout).startswith("no connection within 5 s: 1 of 1 in use")
    assert not world.core.waiters
    assert list(world.core.waits) == [5.0]


def test_place_in_the_queue_is_kept() -> None:
    world, entry = busy()
    first, second = waiting(world), waiting(world)
    assert world.flows.served(first) is None  # he looks around once in a while
    hand = go_on(world, first).run()
    assert list(world.core.waiters) == [first, second]
    world.release(entry).value()
    assert hand.value() is entry
    assert second.outcome is None


def test_wake_up_that_was_lost_is_cured() -> None:
    world, entry = busy()
    waiter = waiting(world)
    entry.slot.owner = None
    world.core.idle.append(entry)  # given back by somebody who was struck before he looked
    assert go_on(world, waiter).value() is entry


def test_entry_that_wants_a_closer_look_gets_it_from_the_flow() -> None:
    world, entry = busy()
    waiter = waiting(world)
    world.release(entry).value()
    world.core.alarmed_until = world.now + 1.0
    entry.conn.kill()
    assert world.flows.served(waiter) is None
    hand = go_on(world, waiter).run()
    world.work()
    assert hand.value() is not entry


def test_refusal_is_raised_by_the_flow() -> None:
    world, _ = busy(max_waiting=0)
    waiter = world.flows.waiter(None)
    assert not world.flows.just_waits(waiter)
    assert waiter.outcome is Refusal.OVERLOADED
    assert world.flows.served(waiter) is None
    assert refusal(go_on(world, waiter), PoolOverloaded)
    assert not world.core.waits


def test_who_was_struck_leaves_what_he_was_given_to_the_next() -> None:
    world, entry = busy()
    struck, following = waiting(world), waiting(world)
    world.release(entry).value()
    world.flows.give_up(struck)
    assert world.flows.served(following) is entry
    world.flows.give_up(struck)  # once is enough
    assert entry.slot.owner == following.owner
