"""Idle connections: the server's own limit on them, and `keepalive`, which is never in a caller's way."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from engine.driver import STRIKES, Hand, World, assert_lawful, discards, opening

from connpool.engine import upkeep
from connpool.engine.operations import Step
from connpool.stats import Reason
from connpool.testing import FakeConnection, FakeOperationalError


def world_with_limit(seconds: float | None, **options: Any) -> World:
    """Make a pool whose server ends idle sessions."""
    world = World(**{"max_size": 3, **options})
    world.server.idle_limit = seconds
    return world


# -- the server's limit ------------------------------------------------------------------------------


def test_connection_stays_below_its_servers_limit() -> None:
    world = world_with_limit(100.0, ping_after=1000.0, probe_after=1000.0)
    (entry,) = world.stock()
    assert entry.idle_limit == 100.0 * upkeep.SERVER_MARGIN == 80.0
    world.now += 79.9
    hand = world.acquire()
    assert hand.value() is entry
    world.release(entry).value()
    world.now += 80.0
    hand = world.acquire().run()
    world.work()
    assert hand.value() is not entry
    assert discards(world) == {"server_limit": 1}


def test_server_without_a_limit_sets_none() -> None:
    world = world_with_limit(None)
    (entry,) = world.stock()
    assert entry.idle_limit == inf
    assert world.told == []


def test_limit_is_asked_within_what_the_dial_leaves_of_its_time() -> None:
    world = World(connect_timeout=10.0)
    dialling = opening(world)
    dialling.to(Step.ADOPT)
    world.now += 4.0
    assert dialling.to(Step.IDLE_LIMIT).args[1] == 6.0
    world.now += 20.0
    dialling.value()
    unlimited = opening(World(connect_timeout=None))
    assert unlimited.to(Step.IDLE_LIMIT).args[1] is None


def test_upkeep_closes_what_reaches_the_servers_limit_and_keeps_min_idle() -> None:
    world = world_with_limit(10.0, min_idle=2)
    world.hold(world.flows.upkeep()).run()
    world.work()
    old = list(world.core.idle)
    assert world.core.due(world.now) == world.now + min(8.0, upkeep.MIN_IDLE_CHECK)
    world.now += 8.0
    world.hold(world.flows.upkeep()).run()
    world.work()
    assert discards(world) == {"server_limit": 2}
    assert len(world.core.idle) == 2
    assert all(entry.conn.closed for entry in old)


def test_upkeep_comes_in_time_for_the_servers_limit() -> None:
    world = world_with_limit(10.0, idle_timeout=None, max_lifetime=None)
    entry, other = world.lend(2)
    world.release(entry).value()
    world.core.detach(other.conn)
    assert world.core.due(world.now) == world.now + 8.0


def test_upkeep_comes_in_time_for_what_is_lent_and_comes_back_by_the_warm_path() -> None:
    world = world_with_limit(10.0, idle_timeout=None, max_lifetime=None)
    lent = world.lend()
    assert world.core.due(world.now) == world.now + 8.0
    assert len(lent) == 1


def test_limit_shorter_than_the_warm_path_looks_ahead_is_kept_by_the_flows() -> None:
    """The warm path lends what was idle for less than `look_after`, whatever its server says."""
    world = world_with_limit(10.0, probe_after=30.0, ping_after=30.0)
    assert world.flows.look_after == 30.0
    (entry,) = world.stock()
    assert entry.warm_until == -inf, "its return is a flow's"
    assert entry.check_at == -inf or entry.check_at <= world.now + entry.idle_limit
    world.now += 9.0
    hand = world.acquire().run()
    assert discards(world) == {"server_limit": 1}
    world.work()
    assert hand.value() is not entry


def test_new_connection_is_not_trusted_beyond_its_servers_limit() -> None:
    world = world_with_limit(0.25, min_idle=1, probe_after=0)
    world.hold(world.flows.upkeep()).run()
    world.work()
    (entry,) = world.core.idle
    assert not entry.lent_at
    assert entry.check_at == world.now + 0.2 < world.now + upkeep.NEWBORN


def test_shortened_limit_is_told_once() -> None:
    world = world_with_limit(100.0, idle_timeout=600.0)
    world.stock(3)
    (text,) = world.told
    assert text == (
        "pool 'test': idle connections are closed after 80 s in place of idle_timeout=600.0: their server "
        "ends them after 100 s"
    )


@pytest.mark.parametrize(("idle_timeout", "told"), [(None, 1), (81.0, 1), (80.0, 0), (5.0, 0)])
def test_limit_that_shortens_nothing_is_not_told(idle_timeout: float | None, told: int) -> None:
    world = world_with_limit(100.0, idle_timeout=idle_timeout)
    world.stock()
    assert len(world.told) == told


# -- keepalive ---------------------------------------------------------------------------------------


def keeping(**options: Any) -> World:
    return World(**{"max_size": 3, "keepalive": 10.0, "idle_timeout": None, "max_lifetime": None, **options})


def look_after(world: World) -> list[Hand[None]]:
    """Have upkeep run, and hold what it has started elsewhere."""
    world.hold(world.flows.upkeep()).value()
    return [world.hold(world.jobs.popleft()) for _ in range(len(world.jobs))]


def test_idle_connection_is_pinged_when_nothing_was_heard_for_so_long() -> None:
    world = keeping()
    (entry,) = world.stock()
    idle_since = entry.idle_since
    assert world.core.due(world.now) == world.now + 10.0
    world.now += 9.9
    assert look_after(world) == []
    world.now += 0.1
    (hand,) = look_after(world)
    assert hand.to(Step.PING).args == (entry.conn, 5.0)
    hand.value()
    assert list(world.core.idle) == [entry]
    assert entry.idle_since == idle_since, "nobody has used it"
    assert entry.heard_at() == world.now
    assert world.core.due(world.now) == world.now + 10.0


def test_keepalive_counts_as_a_word_of_the_server_and_spares_the_next_caller_a_ping() -> None:
    world = keeping(ping_after=15.0)
    world.stock()
    world.now += 10.0
    look_after(world)[0].value()
    world.now += 9.0
    hand = world.acquire()
    hand.value()
    assert hand.steps == []


def test_keepalive_keeps_a_server_from_ending_a_session() -> None:
    world = keeping(keepalive=5.0)
    world.server.idle_limit = 10.0
    (entry,) = world.stock()
    for _ in range(10):
        world.now += 5.0
        look_after(world)[0].value()
    assert list(world.core.idle) == [entry]


def test_keepalive_does_not_keep_what_nobody_needs() -> None:
    world = keeping(keepalive=5.0, idle_timeout=12.0)
    world.stock()
    for _ in range(3):
        world.now += 5.0
        for hand in look_after(world):
            hand.value()
    assert discards(world) == {"idle": 1}


def test_connection_of_a_pool_without_keepalive_is_left_alone() -> None:
    world = World(keepalive=None)
    (entry,) = world.stock()
    assert entry.ping_every == inf
    world.now += 500.0
    assert look_after(world) == []


def test_connections_opened_together_are_not_pinged_together() -> None:
    world = keeping()
    chances = iter([0.0, 0.0, 0.0, 0.25, 0.0, 0.5] * 2)
    world.flows._chance = lambda: next(chances)
    entries = world.stock(3)
    assert len({entry.ping_every for entry in entries}) == len(entries)


def test_connection_that_is_pinged_is_lent_to_nobody_and_counts_as_validating() -> None:
    world = keeping(max_size=1)
    (entry,) = world.stock()
    acquires = world.core.snapshot("test", 0.0).acquires
    world.now += 10.0
    world.hold(world.flows.upkeep()).value()
    for stage in ("started", "pinging"):
        stats = world.core.snapshot("test", 0.0)
        assert (stats.validating, stats.idle, stats.in_use) == (1, 0, 0), stage
        assert stats.acquires == acquires
        if stage == "started":
            hand = world.hold(world.jobs.popleft())
            hand.to(Step.PING)
    waiting = world.acquire().run()
    assert waiting.parked
    hand.value()
    assert waiting.value() is entry
    assert_lawful(world.core, in_use=1)


def test_caller_who_comes_meanwhile_takes_another_connection() -> None:
    world = keeping()
    first, second = world.stock(2)
    world.now += 10.0
    pinging, _ = look_after(world)
    _.value()
    pinging.to(Step.PING)
    hand = world.acquire()
    assert hand.value() in (first, second)
    pinging.value()
    assert len(world.core.idle) == 1


def test_pinged_connection_goes_to_the_bottom_where_the_surplus_is() -> None:
    world = keeping()
    first, second, third = world.stock(3)
    first.proven_at = third.proven_at = first.idle_since = third.idle_since = world.now + 9.0
    world.now += 10.0
    (hand,) = look_after(world)
    hand.value()
    assert list(world.core.idle) == [second, first, third]


def test_entry_that_is_lent_at_the_last_moment_is_not_pinged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm path takes it between the look at idle and the removal."""
    world = keeping()
    (entry,) = world.stock()
    world.now += 10.0
    taken = world.core.idle.pop()
    monkeypatch.setattr(world.core, "_idle_now", lambda: [taken])
    assert world.core.next_to_ping(world.now) is None
    assert not entry.slot.validating


def test_doomed_entry_is_not_pinged() -> None:
    world = keeping()
    (entry,) = world.stock()
    world.now += 10.0
    entry.doomed = Reason.EVICTED
    assert world.core.next_to_ping(world.now) is None


def test_entry_that_is_evicted_while_it_is_pinged_does_not_come_back() -> None:
    world = keeping()
    (entry,) = world.stock()
    world.now += 10.0
    (hand,) = look_after(world)
    hand.to(Step.PING)
    world.hold(world.flows.evict()).value()
    hand.value()
    world.work()
    assert discards(world) == {"evicted": 1}
    assert entry.conn.closed


def test_dead_connection_is_found_before_anybody_is_lent_it() -> None:
    world = keeping()
    alive, killed = world.stock(2)
    killed.conn.kill()
    world.now += 10.0
    for hand in look_after(world):
        hand.value()
    world.work()
    assert discards(world) == {"dead": 1}
    assert list(world.core.idle) == [alive]
    assert world.core.suspect_at == world.now


def test_silent_server_is_found_before_anybody_waits_for_it() -> None:
    world = keeping()
    world.stock(2)
    world.now += 10.0
    first, second = look_after(world)
    for hand in (first, second):
        hand.to(Step.PING)
    world.now += 5.0
    first.throw(FakeOperationalError("no answer"))
    first.value()
    second.throw(FakeOperationalError("no answer"))
    second.value()
    assert discards(world) == {"silent": 2}


def test_answer_to_a_keepalive_that_was_sent_before_a_loss_proves_nothing() -> None:
    world = keeping()
    idle, lost = world.lend(2)
    world.release(idle).value()
    world.now += 10.0
    (hand,) = look_after(world)
    hand.to(Step.PING)
    world.now += 0.1
    world.core.retire(lost, Reason.DEAD, world.now)
    hand.value()
    asked = world.acquire()
    assert asked.value() is idle
    assert "ping" in asked.steps


def test_answer_to_a_reset_is_read_before_the_ping() -> None:
    world = keeping(reset="full", on_connect=None)
    (entry,) = world.stock()
    world.now += 10.0
    (hand,) = look_after(world)
    hand.value()
    assert hand.steps[:2] == ["read_reset", "ping"]
    assert entry.pending is None
    assert_lawful(world.core, in_use=0)


def test_reset_that_has_failed_meanwhile_is_found() -> None:
    world = keeping(reset="full", on_connect=None)
    (entry,) = world.stock()
    entry.conn.kill()
    world.now += 10.0
    (hand,) = look_after(world)
    hand.value()
    assert "ping" not in hand.steps
    assert discards(world) == {"dead": 1}


def test_connection_that_its_reset_left_unfit_is_not_kept() -> None:
    world = keeping(reset="full", on_connect=None)
    (entry,) = world.stock()
    world.now += 10.0
    (hand,) = look_after(world)
    hand.to(Step.READ_RESET)
    hand.resume()  # the driver says that all is read, and still waits for an answer
    hand.value()
    assert "ping" not in hand.steps
    assert entry.conn.busy
    assert discards(world) == {"broken": 1}


@pytest.mark.parametrize("strike", [*STRIKES, "interrupted"])
@pytest.mark.parametrize("step", [Step.READ_RESET, Step.PING])
def test_keepalive_that_is_struck_costs_its_connection_and_no_place(step: Step, strike: str) -> None:
    world = keeping(max_size=1, reset="full", on_connect=None)
    world.stock()
    world.now += 10.0
    (hand,) = look_after(world)
    hand.to(step)
    error = KeyboardInterrupt() if strike == "interrupted" else STRIKES[strike]()
    if isinstance(error, GeneratorExit):
        hand.close()
    else:
        hand.throw(error)
        hand.run()
    assert sum(discards(world).values()) == 1
    assert_lawful(world.core, in_use=0)
    world.settle()


def test_keepalive_that_was_never_begun_costs_its_connection_and_no_place() -> None:
    world = keeping(max_size=1)
    conns: list[FakeConnection] = [entry.conn for entry in world.stock()]
    world.now += 10.0
    world.hold(world.flows.upkeep()).value()
    world.jobs.pop().close()  # its thread has died
    world.hold(world.flows.upkeep()).value()
    world.work()
    assert discards(world) == {"lost": 1}
    assert conns[0].closed
    assert_lawful(world.core, in_use=0)


def test_without_a_helper_upkeep_pings_by_itself() -> None:
    world = keeping(helpers=False)
    world.stock(2)
    world.now += 10.0
    hand = world.hold(world.flows.upkeep())
    hand.value()
    assert hand.steps.count("ping") == 2
