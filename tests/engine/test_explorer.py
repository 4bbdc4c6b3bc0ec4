"""The real warm path, interrupted by another thread at every bytecode.

A scenario names two or three actors.  `Explorer.once` lets the second run at each bytecode of the first,
also inside critical sections, where it goes on as far as it can without the lock.  `Explorer.twice` adds a
third at the same or any later bytecode; `Explorer.weave` goes back from the second, at each of its
bytecodes, to the first.  These two switch only before bytecodes that another thread could notice: all others
give the same schedules again.  After each schedule `World.check_at_rest` holds: nobody is parked beside an
idle connection, the queue is in order, no entry has two owners or none, nothing doomed is idle, no work is
left undone, the figures add up, the server has the sessions that the pool knows, and after everything has
been given back `max_size` connections can be lent at once, and no more.

Not proven: schedules with three switches and more.  The model (`test_model`) has no such limit, but
describes the code by hand.

The bounds on the number of schedules keep an explorer that stops too early from passing.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from engine.explorer import Explorer, World

from connpool.engine.records import Entry

# CPython 3.12 crashes when several threads trace bytecodes; 3.13 raises in other places.
pytestmark = [
    # An interrupt may cost a connection, which is told like any other that was lost.
    pytest.mark.filterwarnings("ignore:pool .* was lost without being given back:ResourceWarning"),
    pytest.mark.bytecode,
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="bytecodes are traced on CPython 3.11"),
]

Job = Callable[[], None]


def release_and_acquire(world: World) -> list[Job]:
    """The only connection is released; somebody wants it."""
    lease = world.lent()
    return [lambda: world.give(lease), lambda: world.take("second")]


def release_and_two_who_wait(world: World) -> list[Job]:
    """The only connection is released; two want it, one after the other."""
    lease = world.lent()
    return [lambda: world.give(lease), lambda: world.take("second"), lambda: world.take("third")]


def release_and_newcomer(world: World) -> list[Job]:
    """The only connection is released; somebody waits for it; a newcomer tries to get it at once."""
    lease = world.lent()

    def overtake() -> None:
        world.take("third", 0)
        if "third" in world.served:
            world.faults.append("a newcomer overtook somebody in the queue")

    return [lambda: world.give(lease), lambda: world.take("second"), overtake]


def release_and_evict(world: World) -> list[Job]:
    """A connection is released; all are evicted."""
    lease = world.lent()
    return [lambda: world.give(lease), world.evict]


def release_and_close(world: World) -> list[Job]:
    """A connection is released; the pool is closed."""
    lease = world.lent()
    return [lambda: world.give(lease), world.close]


def release_and_resize(world: World) -> list[Job]:
    """One of two connections is released; the pool shrinks to one."""
    lease, _ = world.lent(), world.lent()
    return [lambda: world.give(lease), lambda: world.pool.resize(max_size=1)]


def acquire_and_evict(world: World) -> list[Job]:
    """An idle connection is taken; all are evicted."""
    world.give(world.lent())
    return [lambda: world.take("first"), world.evict]


def release_evict_take(world: World) -> list[Job]:
    """A connection is released; all are evicted; somebody takes one."""
    lease = world.lent()
    return [lambda: world.give(lease), world.evict, lambda: world.take("third")]


def release_close_take(world: World) -> list[Job]:
    """A connection is released; the pool is closed; somebody wants one."""
    lease = world.lent()
    return [lambda: world.give(lease), world.close, lambda: world.take("third", 1.0)]


def acquire_and_close(world: World) -> list[Job]:
    """An idle connection is taken; the pool is closed."""
    world.give(world.lent())
    return [lambda: world.take("first", 1.0), world.close]


def waiting_and_close(world: World) -> list[Job]:
    """Somebody has to wait; the pool is closed; the connection they waited for comes back."""
    lease = world.lent()
    return [lambda: world.take("first"), world.close, lambda: world.give(lease)]


def give_up_and_hand_over(world: World) -> list[Job]:
    """Somebody's time is up; the connection is released."""
    lease = world.lent()
    return [lambda: world.take("first", 0), lambda: world.give(lease)]


def leave_and_hand_over(world: World) -> list[Job]:
    """A waiter that queues already leaves; the connection is released."""
    lease, waiter, core = world.lent(), world.pool._flows._waiter(), world.core
    core.queue(waiter)

    def leave() -> None:
        delivered = core.leave(waiter, timed_out=True)
        if isinstance(delivered, Entry):
            core.give(delivered)

    return [leave, lambda: world.give(lease)]


def give_up_behind_another(world: World) -> list[Job]:
    """Somebody's time is up; another waits too; the connection is released."""
    lease = world.lent()
    return [lambda: world.take("first", 0), lambda: world.take("second"), lambda: world.give(lease)]


def two_releases_and_acquire(world: World) -> list[Job]:
    """Both connections are released; somebody waits."""
    one, other = world.lent(), world.lent()
    return [lambda: world.give(one), lambda: world.give(other), lambda: world.take("third")]


def two_takers_of_one(world: World) -> list[Job]:
    """Two want the only connection, which is idle."""
    world.give(world.lent())
    return [lambda: world.take("first"), lambda: world.take("second")]


def prune_and_take(world: World) -> list[Job]:
    """A connection has been idle for too long; somebody takes it."""
    world.give(world.lent())
    world.clock.now += 10.0
    return [world.pool._runner.upkeep, lambda: world.take("second")]


def dirty_release_and_acquire(world: World) -> list[Job]:
    """The only connection is released with a transaction open, by the flow; somebody wants it."""
    lease = world.lent()
    next(iter(world.held)).execute("write")
    return [lambda: world.give(lease), lambda: world.take("second")]


def cycle_and_cycle(world: World) -> list[Job]:
    """Two threads borrow and give back the only connection."""
    world.give(world.lent())
    return [lambda: world.cycle("first"), lambda: world.cycle("second")]


ONE: dict[str, Any] = {"max_size": 1}
TWO: dict[str, Any] = {"max_size": 2}
PRUNED: dict[str, Any] = {"max_size": 1, "idle_timeout": 5.0, "probe_after": None, "ping_after": None}


@pytest.mark.parametrize(
    ("scenario", "options", "first", "second", "at_least"),
    [
        (release_and_acquire, ONE, 0, 1, 120),
        (release_and_acquire, ONE, 1, 0, 760),
        (release_and_evict, ONE, 0, 1, 120),
        (release_and_evict, ONE, 1, 0, 1100),
        (release_and_close, ONE, 0, 1, 120),
        (release_and_close, ONE, 1, 0, 1400),
        (release_and_resize, TWO, 0, 1, 120),
        (release_and_resize, TWO, 1, 0, 3000),
        (acquire_and_evict, ONE, 0, 1, 150),
        (acquire_and_evict, ONE, 1, 0, 2100),
        (acquire_and_close, ONE, 0, 1, 190),
        (acquire_and_close, ONE, 1, 0, 2500),
        (waiting_and_close, ONE, 0, 1, 760),
        (waiting_and_close, ONE, 1, 0, 1400),
        (give_up_and_hand_over, ONE, 0, 1, 1400),
        (give_up_and_hand_over, ONE, 1, 0, 120),
        (give_up_behind_another, ONE, 0, 1, 1400),
        (two_releases_and_acquire, TWO, 0, 1, 120),
        (two_takers_of_one, ONE, 0, 1, 150),
        (prune_and_take, PRUNED, 0, 1, 2100),
        (prune_and_take, PRUNED, 1, 0, 150),
        (dirty_release_and_acquire, ONE, 0, 1, 730),
        (dirty_release_and_acquire, ONE, 1, 0, 760),
        (cycle_and_cycle, ONE, 0, 1, 280),
    ],
)
def test_another_thread_may_come_between_any_two_bytecodes(
    scenario: Callable[[World], list[Job]], options: dict[str, Any], first: int, second: int, at_least: int
) -> None:
    with Explorer(scenario, **options) as explorer:
        explorer.once(first, second)
    assert explorer.schedules >= at_least


def test_newcomer_never_overtakes_somebody_who_waits() -> None:
    with Explorer(release_and_newcomer, **ONE) as explorer:
        explorer.once(0, 2, before=[1])
    assert explorer.schedules >= 120


@pytest.mark.parametrize(
    ("scenario", "options", "locks_first", "at_least"),
    [
        (release_and_two_who_wait, ONE, False, 3000),
        (release_evict_take, ONE, True, 8100),
        (release_close_take, ONE, True, 7000),
        (two_releases_and_acquire, TWO, False, 750),
    ],
)
def test_two_other_threads_may_come_between_any_two_bytecodes(
    scenario: Callable[[World], list[Job]], options: dict[str, Any], locks_first: bool, at_least: int
) -> None:
    with Explorer(scenario, **options) as explorer:
        explorer.twice(0, 1, 2, locks_first=locks_first)
    assert explorer.schedules >= at_least


@pytest.mark.parametrize(
    ("scenario", "options", "first", "second", "at_least"),
    [
        (release_and_acquire, ONE, 0, 1, 4000),
        (release_and_evict, ONE, 0, 1, 7100),
        (release_and_close, ONE, 0, 1, 8000),
        (release_and_resize, TWO, 0, 1, 8900),
        (acquire_and_evict, ONE, 0, 1, 3900),
        (leave_and_hand_over, ONE, 0, 1, 1800),
        (two_takers_of_one, ONE, 0, 1, 1400),
        (two_releases_and_acquire, TWO, 0, 1, 1400),
    ],
)
def test_two_threads_may_be_woven_at_any_two_bytecodes(
    scenario: Callable[[World], list[Job]], options: dict[str, Any], first: int, second: int, at_least: int
) -> None:
    with Explorer(scenario, **options) as explorer:
        explorer.weave(first, second)
    assert explorer.schedules >= at_least
