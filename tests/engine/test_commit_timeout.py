"""A COMMIT or BEGIN without an answer: its connection is cut, its borrower told, its place free."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from engine.driver import STRIKES, Hand, World, assert_lawful, discards, refusal

from connpool.engine.operations import Step, Watch
from connpool.engine.records import Entry
from connpool.errors import PoolTimeout
from connpool.testing import FakeError, FakeOperationalError


def committing(world: World) -> tuple[Hand[None], Entry[Any]]:
    """Hold a release at its COMMIT."""
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    return hand, entry


def overstay(world: World, seconds: float) -> None:
    """Let time pass, and have upkeep cut what has overstayed."""
    world.now += seconds
    world.hold(world.flows.upkeep()).run()


def test_commit_that_is_answered_in_time_is_a_commit() -> None:
    world = World(commit_timeout=3.0)
    hand, entry = committing(world)
    overstay(world, 2.9)
    assert not entry.conn.closed
    hand.value()
    assert not world.core.limited
    assert list(world.core.idle) == [entry]


def test_upkeep_is_asked_to_come_when_the_time_is_over() -> None:
    world = World(commit_timeout=3.0)
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    assert hand.to(Watch).at == world.now + 3.0
    hand.to(Step.COMMIT)
    assert world.core.due(world.now) == world.now + 3.0


def test_commit_without_a_limit_is_not_cut() -> None:
    world = World(commit_timeout=None, max_lifetime=None)
    hand, entry = committing(world)
    overstay(world, 1e6)
    hand.value()
    assert list(world.core.idle) == [entry]


def test_commit_that_takes_too_long_is_cut_and_its_borrower_told_that_nobody_knows() -> None:
    world = World(max_size=1, commit_timeout=3.0)
    hand, entry = committing(world)
    overstay(world, 3.0)
    assert entry.conn.closed
    hand.run()
    assert refusal(hand, PoolTimeout) == (
        "no answer to COMMIT within commit_timeout=3.0 s: whether the server has committed is not known; "
        "the connection is closed (pool 'test')"
    )
    assert hand.error is not None
    assert isinstance(hand.error.__cause__, FakeOperationalError)
    assert sum(discards(world).values()) == 1
    world.work()
    assert not world.core.slots
    hand.error = None
    world.settle()


@pytest.mark.parametrize("error", [None, FakeError("deferred constraint")])
def test_commit_that_returns_while_it_is_being_cut_gives_nobody_its_connection(
    error: Exception | None,
) -> None:
    """Upkeep has found it, and will close it in a moment: the next borrower would lose his work."""
    world = World(max_size=1, commit_timeout=3.0)
    hand, entry = committing(world)
    waiting = world.acquire(60.0).run()
    world.now += 3.0
    assert world.core.overstayed(world.now) == [entry.conn]
    if error is None:
        hand.execute()
    else:
        hand.throw(error)
    assert "is not known" in refusal(hand, PoolTimeout)
    assert "rollback" not in hand.steps, "nobody asks anything of what is being cut"
    assert hand.error is not None
    assert hand.error.__cause__ is error
    assert discards(world) == {"broken": 1}
    world.work()
    assert waiting.value() is not entry


def test_error_of_a_commit_in_time_is_the_borrowers_as_it_is() -> None:
    world = World(commit_timeout=3.0)
    hand, entry = committing(world)
    hand.throw(error := FakeError("serialization failure"))
    hand.run()
    assert hand.error is error
    assert list(world.core.idle) == [entry]
    assert not world.core.limited


@pytest.mark.parametrize("strike", [*STRIKES, "interrupted"])
@pytest.mark.parametrize("operation", [Watch, Step.COMMIT])
def test_limited_commit_that_is_struck_costs_no_place(operation: Any, strike: str) -> None:
    world = World(max_size=1, commit_timeout=3.0)
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    hand.to(operation)
    error = KeyboardInterrupt() if strike == "interrupted" else STRIKES[strike]()
    if isinstance(error, GeneratorExit):
        hand.close()
    else:
        hand.throw(error)
        hand.run()
    world.work()
    assert not world.core.limited
    assert_lawful(world.core, in_use=0)
    hand.error = None
    del error, entry
    world.settle()


def test_place_of_a_commit_that_never_returns_is_its_borrowers_until_it_does() -> None:
    world = World(max_size=1, commit_timeout=3.0)
    hand, _ = committing(world)
    overstay(world, 3.0)
    overstay(world, 60.0)
    assert_lawful(world.core, in_use=1)
    hand.run()
    assert isinstance(hand.error, PoolTimeout)
    world.work()
    assert_lawful(world.core, in_use=0)


# -- BEGIN -------------------------------------------------------------------------------------------


def beginning(world: World) -> tuple[Hand[None], Entry[Any]]:
    """Hold a BEGIN."""
    (entry,) = world.lend()
    hand = world.hold(world.flows.begin(entry.slot, entry.conn))
    hand.to(Step.BEGIN)
    return hand, entry


def test_begin_that_is_answered_in_time_is_a_begin() -> None:
    world = World(reset_timeout=3.0)
    hand, entry = beginning(world)
    overstay(world, 2.9)
    hand.value()
    assert entry.conn.in_transaction
    assert not world.core.limited


def test_begin_without_a_limit_is_not_cut() -> None:
    world = World(reset_timeout=None, max_lifetime=None)
    hand, entry = beginning(world)
    overstay(world, 1e6)
    hand.value()
    assert entry.conn.in_transaction


def test_error_of_a_begin_is_the_borrowers() -> None:
    world = World()
    hand, _ = beginning(world)
    hand.throw(error := FakeOperationalError("server closed the connection"))
    hand.run()
    assert hand.error is error


@pytest.mark.parametrize("cut", [True, False])
def test_begin_that_fails_leaves_no_cycle_behind(cut: bool) -> None:
    """Else the connection's entry, and everything in the borrower's frame, would wait for the collector."""
    world = World(reset_timeout=3.0)
    (entry,) = world.lend()
    gc.collect()
    gc.disable()
    try:
        flow = world.flows.begin(entry.slot, entry.conn)
        flow.send(None)
        flow.send(None)
        if cut:
            world.core.overstayed(world.now + 3.0)
        error: BaseException | None = None
        try:
            flow.throw(FakeOperationalError("server closed the connection"))
        except Exception as exc:
            error = exc
        assert isinstance(error, PoolTimeout) == cut
        watched = weakref.ref(error)
        del error, flow
        assert watched() is None
    finally:
        gc.enable()


def test_begin_that_takes_too_long_is_cut_and_its_borrower_told() -> None:
    world = World(reset_timeout=3.0)
    hand, entry = beginning(world)
    overstay(world, 3.0)
    assert entry.conn.closed
    hand.run()
    assert refusal(hand, PoolTimeout) == "no answer to BEGIN within reset_timeout=3.0 s (pool 'test')"
    assert hand.error is not None
    assert isinstance(hand.error.__cause__, FakeOperationalError)
    world.release(entry, hand.error).value()
    assert sum(discards(world).values()) == 1


def test_begin_that_returns_while_it_is_being_cut_gives_nobody_its_connection() -> None:
    world = World(max_size=1, reset_timeout=3.0)
    hand, entry = beginning(world)
    world.now += 3.0
    assert world.core.overstayed(world.now) == [entry.conn]
    hand.run()
    assert isinstance(hand.error, PoolTimeout)
    world.release(entry, hand.error).value()
    assert discards(world) == {"broken": 1}
    assert not world.core.idle
