"""The slow paths, each driven by hand: one operation after the other, and every operation struck once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from math import inf
from types import MappingProxyType
from typing import Any

import pytest
from engine.driver import (
    STRIKES,
    AroundAdapter,
    BlindAdapter,
    Hand,
    World,
    assert_lawful,
    close_all,
    discards,
    opening,
    refusal,
)

import connpool.adapter
from connpool.adapter import Fault
from connpool.adapters.dbapi import DBAPIAdapter
from connpool.engine import upkeep
from connpool.engine.operations import Park, Step, Watch
from connpool.engine.records import Entry
from connpool.errors import (
    PoolClosed,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from connpool.stats import Reason
from connpool.testing import (
    Cancelled,
    FakeAdapter,
    FakeConnection,
    FakeError,
    FakeOperationalError,
    FakeServer,
)

# -- acquire: something is idle ----------------------------------------------------------------------


def test_fresh_candidate_is_lent_as_it_is() -> None:
    world = World()
    (entry,) = world.stock()
    hand = world.acquire()
    assert hand.value() is entry
    assert hand.steps == []


def test_lent_connection_knows_since_when() -> None:
    world = World()
    (entry,) = world.stock()
    world.now += 0.3
    world.acquire().value()
    assert entry.lent_at == world.now


def test_candidate_that_was_idle_is_probed_without_a_round_trip() -> None:
    world = World(probe_after=0.5)
    (entry,) = world.stock()
    world.now += 0.5
    hand = world.acquire()
    assert hand.value() is entry
    assert hand.steps == []


def test_candidate_that_was_idle_for_long_is_pinged() -> None:
    world = World(ping_after=30.0)
    (entry,) = world.stock()
    world.now += 30.0
    hand = world.acquire()
    assert hand.value() is entry
    assert hand.steps == ["ping"]


@pytest.mark.parametrize("idle", [0.4, 29.9])
def test_killed_session_is_noticed_as_late_as_the_options_say(idle: float) -> None:
    world = World(max_size=1, probe_after=0.5, ping_after=30.0)
    (entry,) = world.stock()
    entry.conn.kill()
    world.now += idle
    hand = world.acquire().run()
    assert (hand.result is entry) == (idle < 0.5)


def test_probe_can_be_switched_off() -> None:
    world = World(probe_after=None, ping_after=None, max_lifetime=None)
    (entry,) = world.stock()
    entry.conn.kill()
    world.now += 1e6
    assert world.acquire().value() is entry


def test_ping_does_without_a_probe() -> None:
    world = World(probe_after=None, ping_after=30.0)
    (entry,) = world.stock()
    entry.conn.kill()
    world.now += 29.9
    assert world.acquire().value() is entry
    world.release(entry).value()
    world.now += 30.0
    hand = world.acquire()
    hand.to(Step.PING)
    hand.run()
    world.work()
    assert hand.value() is not entry


def test_probe_that_is_switched_off_leaves_the_lifetime() -> None:
    world = World(max_size=1, probe_after=None, max_lifetime=60.0)
    (entry,) = world.stock()
    world.now += 60.0
    hand = world.acquire().run()
    world.work()
    assert hand.value() is not entry
    assert discards(world) == {"lifetime": 1}


def test_ping_can_be_switched_off() -> None:
    world = World(ping_after=None, max_lifetime=None)
    world.stock()
    world.now += 1e6
    hand = world.acquire()
    hand.value()
    assert hand.steps == []


@pytest.mark.parametrize(
    ("timeout", "reset_timeout", "limit"),
    [(3.0, 5.0, 1.5), (12.0, 5.0, 5.0), (None, 5.0, 5.0), (3.0, None, 1.5), (None, None, None)],
)
def test_ping_is_limited_by_its_own_timeout_and_by_half_of_what_the_deadline_leaves(
    timeout: float | None, reset_timeout: float | None, limit: float | None
) -> None:
    world = World(reset_timeout=reset_timeout)
    world.stock()
    world.now += 30.0
    hand = world.acquire(timeout)
    assert hand.to(Step.PING).args[1] == limit


@pytest.mark.parametrize("timeout", [0, 2.0])
def test_without_time_for_a_ping_the_probe_decides(timeout: float) -> None:
    """A caller who cannot wait for an answer must not condemn a connection that had no time to give it."""
    world = World(ping_after=30.0)
    dead, alive = world.stock(2)
    world.now += 30.0
    hand = world.hold(
        world.flows.acquire(world.core.idle.pop(), timeout, world.now, world.flows.waiter(None))
    )
    assert hand.value() is alive
    assert hand.steps == []
    dead.conn.kill()
    refused = world.acquire(0).run()
    assert isinstance(refused.error, PoolTimeout)
    assert discards(world) == {"dead": 1}
    world.release(alive).value()


def test_connection_is_validating_while_it_is_pinged() -> None:
    world = World()
    world.stock()
    world.now += 30.0
    hand = world.acquire()
    hand.to(Step.PING)
    stats = world.core.snapshot("test", 0.0)
    assert (stats.validating, stats.in_use, stats.idle) == (1, 0, 0)
    entry = hand.value()
    assert_lawful(world.core, in_use=1)
    assert not entry.slot.validating


def kill(world: World, entry: Entry[Any]) -> None:
    entry.conn.kill()


def expire(world: World, entry: Entry[Any]) -> None:
    entry.expires = entry.check_at = world.now


def doom(world: World, entry: Entry[Any]) -> None:
    entry.doomed = Reason.EVICTED


def break_probe(world: World, entry: Entry[Any]) -> None:
    def alive(conn: FakeConnection) -> bool:
        if conn is entry.conn:
            raise OSError("bad descriptor")
        return True

    world.adapter.alive = alive


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(kill, "dead"), (break_probe, "dead"), (expire, "lifetime"), (doom, "evicted")],
)
def test_spoilt_candidate_is_discarded_and_replaced(
    spoil: Callable[[World, Entry[Any]], None], reason: str
) -> None:
    world = World(max_size=1)
    (entry,) = world.stock()
    world.now += 1.0
    spoil(world, entry)
    hand = world.acquire().run()
    assert hand.parked
    assert discards(world) == {reason: 1}
    world.work()
    assert hand.value() is not entry
    assert entry.conn.closed


def test_candidate_that_does_not_answer_a_ping_is_replaced() -> None:
    world = World(max_size=1)
    (entry,) = world.stock()
    world.now += 30.0
    hand = world.acquire()
    hand.to(Step.PING)
    hand.throw(FakeOperationalError("no answer"))
    hand.run()
    world.work()
    assert hand.value() is not entry
    assert discards(world) == {"dead": 1}


@pytest.mark.parametrize(
    ("timeout", "silence", "reason", "alarmed"),
    [
        (5.0, 0.1, "dead", True),
        (None, 4.9, "dead", True),
        (0.9, 0.1, "dead", True),
        (5.0, 2.5, "silent", True),
        (None, 5.0, "silent", True),
        (1.0, 0.5, "silent", True),
        (0.9, 0.45, "unanswered", False),
    ],
)
def test_silence_for_less_than_a_healthy_server_may_take_proves_no_death(
    timeout: float | None, silence: float, reason: str, alarmed: bool
) -> None:
    world = World(max_size=1, reset_timeout=5.0)
    world.stock()
    world.now += 30.0
    hand = world.acquire(timeout)
    hand.to(Step.PING)
    world.now += silence
    hand.throw(FakeOperationalError("no answer"))
    hand.run()
    assert discards(world) == {reason: 1}
    assert (world.core.alarmed_until > world.now) == alarmed
    world.work()
    assert isinstance(hand.value(), Entry)


def test_next_idle_connection_serves_the_one_whose_candidate_was_dead() -> None:
    world = World()
    alive, dead = world.stock(2)
    dead.conn.kill()
    world.now += 1.0
    assert world.acquire().value() is alive


def test_discarded_candidate_is_closed_although_another_was_at_hand() -> None:
    world = World()
    _, dead = world.stock(2)
    dead.conn.kill()
    world.now += 1.0
    world.acquire().value()
    world.work()
    assert dead.conn.closed
    assert not world.core.debris


def test_discarded_candidate_that_somebody_else_closed_already_is_let_be() -> None:
    world = World()
    alive, dead = world.stock(2)
    dead.conn.kill()
    world.now += 1.0
    retire = world.core.retire

    def retire_and_close(entry: Entry[Any], reason: Reason, now: float) -> None:
        retire(entry, reason, now)
        close_all(world.core)

    world.core.retire = retire_and_close  # type: ignore[method-assign] # another thread is faster
    hand = world.acquire()
    assert hand.value() is alive
    assert "close" not in hand.steps


def test_caller_whose_candidate_was_dead_is_served_before_those_who_came_later() -> None:
    world = World(max_size=1)
    world.stock()
    world.now += 30.0
    first = world.acquire()
    first.to(Step.PING)
    second = world.acquire().run()
    first.throw(FakeOperationalError("no answer"))
    first.run()
    world.work()
    first.run()
    assert isinstance(first.result, Entry)
    assert second.parked


def test_handed_over_connection_is_looked_at_too() -> None:
    world = World(max_size=1)
    (entry,) = world.lend()
    hand = world.acquire().run()
    world.release(entry).value()
    world.now += 1.0
    entry.conn.kill()
    hand.run()
    world.work()
    assert hand.value() is not entry
    assert discards(world) == {"dead": 1}


# -- the alarm after a death -------------------------------------------------------------------------


def alarm(world: World) -> None:
    """Have a borrower find out that his session has ended."""
    entry = world.core.idle.popleft()
    entry.conn.busy = True
    world.release(entry, FakeOperationalError("server closed the connection")).value()
    world.work()


def test_fresh_candidate_is_probed_for_a_moment_after_a_death() -> None:
    world = World(max_size=2)
    world.stock(2)
    alarm(world)
    killed = world.core.idle[-1]
    killed.conn.kill()
    hand = world.acquire().run()
    world.work()
    assert hand.value() is not killed
    assert discards(world) == {"dead": 2}


def test_handed_over_connection_is_probed_for_a_moment_after_a_death() -> None:
    world = World(max_size=2)
    world.stock(2)
    alarm(world)
    (entry,) = world.lend()
    others = world.lend()
    hand = world.acquire().run()
    world.release(entry).value()
    entry.conn.kill()
    hand.run()
    world.work()
    assert hand.value() is not entry
    assert len(others) == 1


def test_alarm_ends() -> None:
    world = World(max_size=2, probe_after=60.0, ping_after=60.0)
    world.stock(2)
    alarm(world)
    (entry,) = world.core.idle
    entry.conn.kill()
    world.now += upkeep.ALARM
    assert world.acquire().value() is entry


def test_alarm_asks_nobody_for_a_round_trip() -> None:
    world = World(max_size=2, probe_after=20.0, ping_after=20.0)
    world.stock(2)
    alarm(world)
    hand = world.acquire()
    hand.value()
    assert hand.steps == []


def test_alarm_does_not_switch_on_a_probe_that_is_switched_off() -> None:
    world = World(max_size=2, probe_after=None, ping_after=None)
    world.stock(2)
    alarm(world)
    (entry,) = world.core.idle
    entry.conn.kill()
    assert world.acquire().value() is entry


@pytest.mark.parametrize("reason", list(Reason))
def test_only_a_death_raises_the_alarm(reason: Reason) -> None:
    world = World()
    (entry,) = world.lend()
    world.core.retire(entry, reason, world.now)
    raised = world.core.alarmed_until > world.now
    assert raised == (reason in (Reason.DEAD, Reason.SILENT, Reason.BROKEN, Reason.RESET_FAILED))


def test_alarm_spares_connections_that_were_opened_after_it() -> None:
    """Else a driver whose fresh sockets are readable would never lend anything again."""
    world = World(max_size=1)
    world.stock()
    world.adapter.alive = lambda conn: False
    world.now += 1.0
    hand = world.acquire().run()
    world.work()
    assert isinstance(hand.value(), Entry)


# -- acquire: nothing is idle ------------------------------------------------------------------------


def test_connection_is_opened_elsewhere_while_its_caller_waits() -> None:
    world = World()
    hand = world.acquire().run()
    assert hand.steps == ["start", "watch", "park"]
    world.work()
    assert hand.value().conn in world.server.sessions
    assert world.hands[1].steps == ["connect", "adopt", "idle_limit", "watch"]


def test_without_a_helper_the_caller_dials_himself() -> None:
    world = World(helpers=False)
    hand = world.acquire()
    assert hand.value().conn in world.server.sessions
    assert hand.steps[:3] == ["start", "connect", "adopt"]
    assert hand.steps.count("connect") == 1


def test_caller_who_dials_himself_stops_when_he_is_served() -> None:
    world = World(helpers=False, max_size=3, min_idle=3)
    hand = world.acquire()
    assert isinstance(hand.value(), Entry)
    assert hand.steps.count("connect") == 1, "the rest is for those who look around"


def test_caller_who_dials_himself_stops_at_his_deadline() -> None:
    world = World(helpers=False, max_size=3, min_idle=3)
    world.server.down()
    hand = world.acquire(5.0)
    hand.to(Step.CONNECT)
    world.now += 5.0
    hand.run()
    assert isinstance(hand.error, PoolUnavailable)
    assert hand.steps.count("connect") == 1


def test_caller_who_closes_himself_stops_when_he_is_served() -> None:
    world = World(max_size=3)
    one, two, three = world.lend(3)
    hand = world.acquire().run()
    world.helpers = False
    for entry in (one, two):
        world.core.retire(entry, Reason.DEAD, world.now)
    hand.execute()
    hand.to(Step.CLOSE)
    world.core.give(three)
    assert hand.value() is three
    assert hand.steps.count("close") == 1
    world.hold(world.flows.follow_up()).value()
    assert one.conn.closed
    assert two.conn.closed


def test_parked_caller_gives_up_what_is_overdue() -> None:
    world = World(max_size=1, connect_timeout=5.0)
    hand = world.acquire(60.0).run()
    hanging = world.hold(world.jobs.popleft())
    hanging.to(Step.CONNECT)
    world.now += 5.0 + upkeep.DIAL_GRACE
    hand.execute()
    hand.run()
    assert hand.parked
    assert world.core.abandoned == 1, "the housekeeper may be gone"


def test_caller_takes_what_comes_first() -> None:
    world = World(max_size=2)
    (entry,) = world.lend()
    hand = world.acquire().run()
    world.release(entry).value()
    assert hand.value() is entry
    world.work()
    assert len(world.core.idle) == 1, "the dial outlives the caller that asked for it"


def test_caller_in_line_is_handed_what_comes_back() -> None:
    world = World(max_size=1)
    (entry,) = world.lend()
    world.core.waits.clear()
    hand = world.acquire().run()
    world.now += 2.0
    world.release(entry).value()
    assert hand.value() is entry
    assert world.core.waits == [2.0]


def test_caller_who_did_not_wait_is_not_counted_as_waiting() -> None:
    world = World()
    world.stock()
    world.core.waits.clear()
    world.acquire().value()
    assert world.core.waits == []


def test_wake_up_for_no_reason_is_slept_off() -> None:
    world = World(max_size=1)
    (entry,) = world.lend()
    hand = world.acquire().run()
    for _ in range(3):
        hand.resume()
        assert hand.parked
    world.release(entry).value()
    assert hand.value() is entry


def test_parked_caller_that_looks_around_finds_what_nobody_told_him() -> None:
    world = World(max_size=1)
    (entry,) = world.lend()
    hand = world.acquire().run()
    world.core.idle.append(entry)  # its releaser was struck before it looked at the queue
    hand.resume()
    assert hand.value() is entry


def test_parked_caller_that_looks_around_finds_what_was_lost() -> None:
    world = World(max_size=1)
    lent = world.lend()
    hand = world.acquire().run()
    lent.clear()
    hand.execute()
    hand.run()
    world.work()
    assert isinstance(hand.value(), Entry)
    assert discards(world)["lost"] == 1


def test_caller_is_parked_until_his_deadline() -> None:
    world = World()
    hand = world.acquire(5.0)
    assert hand.to(Park).deadline == world.now + 5.0


def test_caller_without_a_deadline_is_parked_without_one() -> None:
    world = World()
    hand = world.acquire(None)
    assert hand.to(Park).deadline is None


def test_caller_served_while_he_dialled_for_others_does_not_park() -> None:
    world = World(max_size=2, helpers=False)
    (entry,) = world.lend()
    hand = world.acquire()
    hand.to(Step.CONNECT)
    world.core.give(entry)
    assert hand.value() is entry
    assert "park" not in hand.steps


def test_handed_over_at_the_last_moment_is_no_timeout() -> None:
    world = World(max_size=1)
    (entry,) = world.lend()
    hand = world.acquire(5.0).run()
    world.now += 5.0
    world.core.give(entry)  # between his waking up and his leaving
    assert hand.value() is entry
    assert world.core.totals.timeouts == 0


def test_no_timeout_takes_an_idle_connection() -> None:
    world = World()
    (entry,) = world.stock()
    assert world.acquire(0).value() is entry


def test_no_timeout_looks_at_every_idle_connection() -> None:
    world = World(max_size=3)
    alive, *dead = world.stock(3)
    for entry in dead:
        entry.conn.kill()
    world.now += 1.0
    assert world.acquire(0).value() is alive


def test_no_timeout_on_an_empty_pool_starts_a_dial_and_fails_at_once() -> None:
    world = World(max_size=2)
    hand = world.acquire(0)
    assert refusal(hand, PoolTimeout) == (
        "no connection at once: 0 of 2 in use, 0 idle, 1 opening, 0 waiting (pool 'test')"
    )
    assert "park" not in hand.steps
    world.work()
    assert isinstance(world.acquire(0).value(), Entry)


# -- acquire: struck by an exception -----------------------------------------------------------------


def test_connection_handed_to_one_who_was_struck_goes_to_the_next() -> None:
    world = World(max_size=1)
    (entry,) = world.lend()
    struck, next_one = world.acquire().run(), world.acquire().run()
    world.core.give(entry)
    struck.throw(Cancelled())
    assert isinstance(struck.error, Cancelled)
    assert next_one.value() is entry


def test_one_who_was_struck_leaves_the_queue() -> None:
    world = World(max_size=1)
    (entry,) = world.lend()
    struck, next_one = world.acquire().run(), world.acquire().run()
    struck.throw(Cancelled())
    world.release(entry).value()
    assert next_one.value() is entry
    assert world.core.totals.timeouts == 0


def test_connection_whose_ping_was_struck_is_not_lent_again() -> None:
    world = World(max_size=1)
    (entry,) = world.stock()
    world.now += 30.0
    hand = world.acquire()
    hand.to(Step.PING)
    hand.throw(Cancelled())
    assert isinstance(hand.error, Cancelled)
    assert discards(world) == {"broken": 1}
    world.work()
    assert entry.conn.closed
    assert not entry.slot.validating


# -- refusals, word for word -------------------------------------------------------------------------


def outage(world: World, *, text: str = "connection refused") -> None:
    """Take down the server of a pool that was connected before."""
    (entry,) = world.lend()
    world.server.down(FakeOperationalError(text))
    world.core.retire(entry, Reason.EVICTED, world.now)
    world.hold(world.flows.follow_up()).run()
    world.work()


def test_timeout_says_how_the_pool_is_used() -> None:
    world = World(max_size=1)
    lent = world.lend()
    hand = world.acquire(5.0).run()
    others = [world.acquire(9.0).run() for _ in range(2)]
    world.now += 5.0
    hand.resume()
    assert refusal(hand, PoolTimeout) == (
        "no connection within 5 s: 1 of 1 in use, 0 idle, 0 opening, 2 waiting (pool 'test')"
    )
    assert hand.error is not None
    assert hand.error.__cause__ is None
    assert isinstance(hand.error, TimeoutError)
    assert world.core.totals.timeouts == 1
    assert all(other.parked for other in others)
    assert_lawful(world.core, in_use=len(lent))


def test_timeout_is_counted_once_and_its_place_is_gone() -> None:
    world = World(max_size=1)
    lent = world.lend()
    hand = world.acquire(5.0).run()
    world.now += 5.0
    hand.resume()
    assert hand.done
    assert not world.core.waiters
    assert world.core.totals.timeouts == len(lent)


def test_timeout_names_the_last_connect_error_as_its_cause() -> None:
    world = World(max_size=2)
    lent = world.lend()
    world.server.down(FakeOperationalError("sorry, too many clients already\nDETAIL: a secret"))
    hand = world.acquire(5.0).run()
    world.work()
    world.now += 5.0
    hand.resume()
    world.jobs.clear()  # its next dial is dropped before it began
    assert len(lent) == 1
    assert refusal(hand, PoolTimeout) == (
        "no connection within 5 s: 1 of 2 in use, 0 idle, 1 opening, 0 waiting; "
        "last connect error 5 s ago: FakeOperationalError: sorry, too many clients already (pool 'test')"
    )
    assert hand.error is not None
    assert hand.error.__cause__ is world.core.last_error is not None


def test_deadline_that_was_capped_from_outside_is_reported_as_waited() -> None:
    world = World(max_size=1)
    lent = world.lend()
    hand = world.hold(world.flows.acquire(None, 10.0, world.now + 2.5, world.flows.waiter(None))).run()
    world.now += 2.5
    hand.resume()
    assert refusal(hand, PoolTimeout).startswith(f"no connection within 2.5 s: {len(lent)} of 1 in use")


def test_deadline_from_outside_alone_is_reported_as_waited() -> None:
    world = World(max_size=1)
    lent = world.lend()
    hand = world.hold(world.flows.acquire(None, None, world.now + 2.5, world.flows.waiter(None))).run()
    world.now += 2.75
    hand.resume()
    assert refusal(hand, PoolTimeout).startswith(f"no connection within 2.75 s: {len(lent)} of 1 in use")


def test_unreachable_server_is_reported_as_unavailable() -> None:
    world = World(max_size=1)
    outage(world)
    hand = world.acquire(5.0).run()
    world.work()
    world.now += 5.0
    hand.resume()
    assert refusal(hand, PoolUnavailable) == (
        "no connection within 5 s: none is open; "
        "last connect error 5 s ago: FakeOperationalError: connection refused (pool 'test')"
    )
    assert hand.error is not None
    assert hand.error.__cause__ is world.core.last_error is not None


def test_dial_that_does_not_end_is_reported_as_such() -> None:
    world = World(max_size=1)
    hand = world.acquire(5.0).run()
    world.now += 5.0
    hand.resume()
    assert refusal(hand, PoolUnavailable) == (
        "no connection within 5 s: none is open, dialling for 5.0 s (pool 'test')"
    )
    assert hand.error is not None
    assert hand.error.__cause__ is None


def test_first_error_of_a_pool_that_never_connected_is_everybodys_at_once() -> None:
    world = World(max_connecting=1)
    world.server.down()
    hands = [world.acquire(5.0).run() for _ in range(3)]
    world.work()
    for hand in hands:
        assert refusal(hand, PoolUnavailable) == (
            "cannot connect; last connect error: FakeOperationalError: connection refused (pool 'test')"
        )
        assert hand.error is not None
        assert hand.error.__cause__ is world.core.last_error is not None
    assert len({id(hand.error) for hand in hands}) == 3, "a traceback belongs to one caller"


def test_error_without_a_text_is_named_by_its_class() -> None:
    world = World()
    world.server.down(ConnectionRefusedError())
    hand = world.acquire().run()
    world.work()
    assert (
        refusal(hand, PoolUnavailable)
        == "cannot connect; last connect error: ConnectionRefusedError (pool 'test')"
    )


def test_error_that_the_pool_keeps_has_no_frames_and_neither_has_its_cause() -> None:
    """A frame may own an entry, and what owns an entry keeps its place from being found when it is lost."""
    world = World()
    dialling = opening(world)
    dialling.to(Step.CONNECT)
    try:
        try:
            raise OSError("no route to host")
        except OSError as cause:
            raise FakeOperationalError("connection failed") from cause
    except FakeOperationalError as exc:
        error = exc
    dialling.throw(error)
    dialling.run()
    assert world.core.last_error is error
    assert isinstance(error.__cause__, OSError)
    assert error.__traceback__ is error.__cause__.__traceback__ is None
    assert len(error.__notes__) == 1
    assert not hasattr(error.__cause__, "__notes__")


def test_only_the_first_line_of_the_driver_is_repeated() -> None:
    world = World()
    world.server.down(FakeOperationalError("\n  connection failed  \nthe rest is in the cause"))
    hand = world.acquire().run()
    world.work()
    assert refusal(hand, PoolUnavailable) == (
        "cannot connect; last connect error: FakeOperationalError: connection failed (pool 'test')"
    )


def test_refused_credentials_end_all_waiting_at_once() -> None:
    world = World(max_size=1)
    outage(world, text="wrong password")
    hand = world.acquire(5.0).run()
    world.work()
    assert refusal(hand, PoolUnavailable) == (
        "cannot connect; last connect error: FakeOperationalError: wrong password (pool 'test')"
    )


def test_full_queue_is_reported_with_its_bound() -> None:
    world = World(max_size=1, max_waiting=1)
    lent = world.lend()
    waiting = world.acquire().run()
    assert refusal(world.acquire(), PoolOverloaded) == (
        "no connection: max_waiting=1 callers wait; 1 of 1 in use, 0 idle, 0 opening, 1 waiting (pool 'test')"
    )
    assert waiting.parked
    assert_lawful(world.core, in_use=len(lent))


def test_closed_pool_refuses_those_who_come() -> None:
    world = World()
    world.hold(world.flows.close(world.now)).value()
    hand = world.acquire()
    assert refusal(hand, PoolClosed) == "no connection: the pool is closed (pool 'test')"
    assert hand.steps == []


def test_closed_pool_refuses_those_who_wait() -> None:
    world = World(max_size=1)
    lent = world.lend()
    hand = world.acquire().run()
    world.hold(world.flows.close(world.now)).value()
    assert refusal(hand, PoolClosed) == "no connection: the pool is closed (pool 'test')"
    assert_lawful(world.core, in_use=len(lent))


def test_candidate_of_a_pool_that_closes_is_not_lent() -> None:
    world = World(max_size=1)
    (entry,) = world.stock()
    world.core.idle.clear()  # taken by the warm path
    world.core.shut()
    hand = world.hold(world.flows.acquire(entry, 5.0, world.now + 5.0, world.flows.waiter(None)))
    assert refusal(hand, PoolClosed) == "no connection: the pool is closed (pool 'test')"
    world.work()
    assert entry.conn.closed


class DriversTimeout(PoolTimeout, FakeOperationalError):
    pass


class DriversClosed(PoolClosed, FakeOperationalError):
    pass


def test_errors_are_the_drivers_too_where_the_adapter_has_some() -> None:
    adapter = FakeAdapter(FakeServer())
    adapter.errors = MappingProxyType({PoolTimeout: DriversTimeout, PoolClosed: DriversClosed})
    world = World(adapter, max_size=1)
    assert refusal(world.acquire(0), DriversTimeout).startswith("no connection at once")
    world.core.shut()
    assert refusal(world.acquire(), DriversClosed) == "no connection: the pool is closed (pool 'test')"


def test_errors_the_adapter_does_not_have_are_plain() -> None:
    adapter = FakeAdapter(FakeServer())
    adapter.errors = MappingProxyType({PoolTimeout: DriversTimeout})
    world = World(adapter)
    world.core.shut()
    refusal(world.acquire(), PoolClosed)


# -- release -----------------------------------------------------------------------------------------


def test_clean_connection_goes_back_without_a_word() -> None:
    world = World()
    (entry,) = world.lend()
    world.now += 0.7
    hand = world.release(entry)
    hand.value()
    assert hand.steps == []
    assert list(world.core.idle) == [entry]
    assert entry.holds == [pytest.approx(0.7)]
    assert (entry.idle_since, entry.check_at) == (world.now, world.now + 0.5)


def test_idle_connection_that_is_about_to_expire_is_looked_at_when_it_does() -> None:
    world = World(probe_after=0.5)
    (entry,) = world.lend()
    entry.expires = world.now + 0.2
    world.release(entry).value()
    assert entry.check_at == entry.expires


def test_open_transaction_is_committed_when_its_block_ended_well() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    hand.value()
    assert hand.steps == ["commit"]
    assert world.server.statements == ["write", "commit"]
    assert world.core.totals.rollbacks == 0
    assert list(world.core.idle) == [entry]


def test_open_transaction_is_rolled_back_when_its_block_failed() -> None:
    world = World(reset_timeout=4.0)
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry, ValueError("the borrower's"))
    assert hand.to(Step.ROLLBACK).args[1] == 4.0
    hand.value()
    assert hand.steps == ["rollback"]
    assert world.core.totals.rollbacks == 1
    assert list(world.core.idle) == [entry]


def test_release_without_a_block_never_commits() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry, ending="rollback")
    hand.value()
    assert hand.steps == ["rollback"]
    assert world.core.totals.rollbacks == 1


def test_failed_transaction_is_rolled_back_and_reported() -> None:
    world = World()
    (entry,) = world.lend()
    with pytest.raises(FakeError):
        entry.conn.execute("fail")
    hand = world.release(entry).run()
    assert type(hand.error) is PoolMisuse
    assert str(hand.error) == (
        "the transaction has failed and was rolled back, but its block ended without an exception: "
        "a statement's error was caught inside it (pool 'test')"
    )
    assert hand.steps == ["rollback"]
    assert list(world.core.idle) == [entry]


def test_failed_transaction_of_a_failed_block_is_rolled_back_in_silence() -> None:
    world = World()
    (entry,) = world.lend()
    with pytest.raises(FakeError) as caught:
        entry.conn.execute("fail")
    world.release(entry, caught.value).value()
    assert list(world.core.idle) == [entry]


def test_commit_error_is_the_borrowers_and_the_connection_is_kept() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    hand.throw(error := FakeError("serialization failure"))
    hand.run()
    assert hand.error is error
    assert hand.steps == ["commit", "rollback"]
    assert list(world.core.idle) == [entry]


def test_commit_error_on_a_dead_connection_closes_it() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    entry.conn.busy = True
    hand.throw(error := FakeOperationalError("connection lost"))
    hand.run()
    world.work()
    assert hand.error is error
    assert "rollback" not in hand.steps
    assert discards(world) == {"dead": 1}


def test_commit_error_leaves_no_cycle_behind() -> None:
    """Else the connection's entry, and everything in the borrower's frame, would wait for the collector."""
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    gc.collect()
    gc.disable()
    try:
        flow = world.flows.release(entry, None, "commit")
        flow.send(None)
        error = FakeError("serialization failure")
        watched = weakref.ref(error)
        operation = flow.throw(error)
        operation.fn(*operation.args)  # type: ignore[union-attr]
        with pytest.raises(FakeError):
            flow.send(None)
        del error, flow, operation
        assert watched() is None
    finally:
        gc.enable()


def test_transaction_that_survives_its_commit_is_rolled_back() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    hand.resume()  # the driver says that it has committed, and still shows a transaction
    hand.value()
    assert hand.steps == ["commit", "rollback"]


def test_rollback_error_closes_the_connection_and_is_nobodys() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry, ValueError("the borrower's"))
    hand.to(Step.ROLLBACK)
    hand.throw(FakeOperationalError("no answer"))
    hand.value()
    world.work()
    assert discards(world) == {"dead": 1}
    assert entry.conn.closed


@pytest.mark.parametrize("error", [Cancelled(), GeneratorExit()])
def test_connection_whose_rollback_was_struck_is_closed_and_its_use_counted(error: BaseException) -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry, ValueError("the borrower's"))
    hand.to(Step.ROLLBACK)
    if isinstance(error, GeneratorExit):
        hand.close()
    else:
        hand.throw(error)
    world.work()
    assert discards(world) == {"broken": 1}
    assert entry.conn.closed
    stats = world.core.snapshot("test", 0.0)
    assert (stats.acquires, stats.releases, stats.use.count) == (1, 1, 1)


def test_broken_connection_whose_batch_is_full_is_still_broken() -> None:
    world = World()
    (entry,) = world.lend()
    entry.batch = 1
    entry.conn.busy = True
    world.release(entry, ending="rollback").value()
    world.work()
    assert discards(world) == {"broken": 1}


def test_rollback_that_did_not_help_closes_the_connection() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry, ending="rollback")
    hand.to(Step.ROLLBACK)
    hand.resume()
    hand.value()
    world.work()
    assert discards(world) == {"broken": 1}


def test_broken_connection_is_closed_and_replaced_for_those_who_wait() -> None:
    world = World(max_size=1)
    (entry,) = world.lend()
    waiting = world.acquire().run()
    entry.conn.busy = True
    hand = world.release(entry, KeyboardInterrupt())
    hand.value()
    assert hand.steps == ["start", "watch"]
    world.work()
    assert waiting.value() is not entry
    assert discards(world) == {"broken": 1}


def test_evicted_connection_is_closed_when_it_comes_back() -> None:
    world = World()
    (entry,) = world.lend()
    world.hold(world.flows.evict()).value()
    world.release(entry).value()
    world.work()
    assert entry.conn.closed
    assert discards(world) == {"evicted": 1}


def test_expired_connection_is_closed_when_it_comes_back() -> None:
    world = World(max_lifetime=60.0)
    (entry,) = world.lend()
    world.now += 60.0
    world.release(entry).value()
    world.work()
    assert discards(world) == {"lifetime": 1}


def test_used_up_connection_is_closed_when_it_comes_back() -> None:
    world = World(max_uses=2)
    (entry,) = world.lend()
    world.release(entry).value()
    assert world.lend() == [entry]
    world.release(entry).value()
    world.work()
    assert discards(world) == {"uses": 1}


def test_detached_connection_is_let_go_as_it_is() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    world.core.detach(entry.conn)
    hand = world.release(entry)
    hand.value()
    assert hand.steps == []
    assert world.server.statements == ["write"]
    assert not entry.conn.closed


def test_connection_on_its_way_back_is_counted_once() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    assert world.core.snapshot("test", 0.0).acquires == 1
    hand.value()
    assert world.core.snapshot("test", 0.0).acquires == 1


def test_begin_opens_a_transaction() -> None:
    world = World()
    (entry,) = world.lend()
    hand = world.hold(world.flows.begin(entry.slot, entry.conn))
    hand.value()
    assert hand.steps == ["watch", "begin"]
    assert entry.conn.in_transaction


@pytest.mark.parametrize(("ending", "statement"), [("commit", "commit"), ("rollback", "rollback")])
def test_servers_answer_is_proof_enough_for_a_driver_that_shows_no_transactions(
    ending: Any, statement: str
) -> None:
    server = FakeServer()
    world = World(BlindAdapter(server))
    (entry,) = world.lend()
    hand = world.release(entry, ending=ending)
    hand.value()
    assert hand.steps == [statement, "restore"], "what it does not show may have been changed"
    assert list(world.core.idle) == [entry]


def test_servers_answer_does_not_heal_a_broken_connection() -> None:
    world = World(BlindAdapter(FakeServer()))
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    entry.conn.busy = True
    hand.resume()
    hand.value()
    world.work()
    assert discards(world) == {"broken": 1}


# -- opening -----------------------------------------------------------------------------------------


def test_dial_is_told_its_limit() -> None:
    world = World(connect_timeout=7.0)
    assert opening(world).to(Step.CONNECT).args == (7.0,)


def test_dial_of_an_adapter_that_keeps_its_limit_gets_a_moment_more() -> None:
    world = World(connect_timeout=7.0)
    dialling = opening(world)
    assert world.watched == world.now + 7.0 + upkeep.DIAL_GRACE
    dialling.value()


def test_connection_without_a_hook_is_adopted_and_delivered() -> None:
    world = World()
    dialling = opening(world)
    dialling.value()
    assert dialling.steps == ["connect", "adopt", "idle_limit", "watch"]
    assert isinstance(world.hands[0].value(), Entry)


def test_lifetime_is_fixed_at_birth() -> None:
    world = World(max_lifetime=60.0)
    (entry,) = world.stock()
    assert entry.expires == world.now + 60.0


def test_unlimited_lifetime_is_unlimited() -> None:
    world = World(max_lifetime=None)
    (entry,) = world.stock()
    assert entry.expires == inf


def test_dial_goes_on_while_somebody_needs_a_connection() -> None:
    world = World(max_size=3, max_connecting=1)
    hands = [world.acquire().run() for _ in range(3)]
    assert len(world.jobs) == 1
    world.work()
    assert all(isinstance(hand.run().result, Entry) for hand in hands)


def test_time_that_a_dial_takes_is_counted() -> None:
    world = World()
    dialling = opening(world)
    dialling.to(Step.ADOPT)
    world.now += 0.25
    dialling.value()
    assert world.core.snapshot("test", 0.0).connect.max == 0.25


def test_hook_runs_on_each_new_connection() -> None:
    seen: list[FakeConnection] = []
    world = World(on_connect=seen.append)
    dialling = opening(world)
    dialling.value()
    assert dialling.steps == ["connect", "adopt", "idle_limit", "on_connect", "adopt", "watch"]
    assert seen == [world.hands[0].value().conn]


def test_hook_runs_in_an_empty_context() -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    tenant.set("somebody")
    seen = []
    world = World(on_connect=lambda conn: seen.append(tenant.get()))
    opening(world).value()
    assert seen == ["nobody"]


def test_transaction_that_the_hook_left_open_is_committed() -> None:
    world = World(on_connect=lambda conn: conn.execute("set"))
    dialling = opening(world)
    dialling.value()
    assert dialling.steps == ["connect", "adopt", "idle_limit", "on_connect", "commit", "adopt", "watch"]
    assert world.server.statements == ["set", "commit"]
    assert not world.hands[0].value().conn.in_transaction


def test_hook_of_a_driver_that_shows_no_transactions_is_committed() -> None:
    world = World(BlindAdapter(FakeServer()), on_connect=lambda conn: None)
    dialling = opening(world)
    dialling.value()
    assert dialling.steps == ["connect", "adopt", "idle_limit", "on_connect", "commit", "adopt", "watch"]
    assert isinstance(world.hands[0].value(), Entry)


def test_connection_whose_hook_fails_is_closed() -> None:
    def hook(conn: FakeConnection) -> None:
        raise LookupError("no such role")

    world = World(on_connect=hook)
    conns: list[FakeConnection] = []
    dialling = opening(world)
    dialling.to(Step.ADOPT)
    conns.extend(world.server.sessions)
    dialling.value()
    assert refusal(world.hands[0], PoolUnavailable) == (
        "cannot connect; last connect error: LookupError: no such role (pool 'test')"
    )
    world.work()
    assert [conn.closed for conn in conns] == [True]
    assert not world.core.slots
    assert world.core.totals.opened == 0


@pytest.mark.parametrize(("state", "name"), [("failed", "failed"), ("busy", "broken")])
def test_connection_that_its_hook_spoilt_is_closed_and_the_hook_is_named(state: str, name: str) -> None:
    world = World(on_connect=lambda conn: setattr(conn, state, True))
    opening(world).value()
    world.work()
    assert refusal(world.hands[0], PoolMisuse) == (f"on_connect left the connection {name} (pool 'test')")
    assert not world.core.slots


def test_transaction_of_the_hook_that_cannot_be_committed_fails_the_dial() -> None:
    world = World(on_connect=lambda conn: conn.execute("set"))
    dialling = opening(world)
    dialling.to(Step.COMMIT)
    dialling.throw(FakeError("deferred constraint"))
    dialling.run()
    assert "FakeError: deferred constraint" in refusal(world.hands[0], PoolUnavailable)


def test_failed_dial_is_tried_again_by_upkeep_when_its_pause_is_over() -> None:
    world = World(max_size=1)
    outage(world)
    hand = world.acquire().run()
    world.work()
    assert world.watched == world.core.retry_at > world.now
    world.server.up()
    world.now = world.core.retry_at
    world.hold(world.flows.upkeep()).run()
    world.work()
    assert isinstance(hand.value(), Entry)


def test_dial_that_was_given_up_closes_what_it_opens_late() -> None:
    world = World(connect_timeout=5.0)
    dialling = opening(world)
    dialling.to(Step.CONNECT)
    world.now += 5.0 + upkeep.DIAL_GRACE
    world.hold(world.flows.upkeep()).run()
    dialling.to(Step.ADOPT)
    (conn,) = world.server.sessions
    dialling.run()
    world.work()
    assert conn.closed
    assert world.core.totals.dial_failures == 1


def test_interrupted_dial_fails_and_the_interrupt_goes_on() -> None:
    world = World()
    dialling = opening(world)
    dialling.to(Step.CONNECT)
    dialling.throw(Cancelled())
    assert isinstance(dialling.error, Cancelled)
    assert not world.core.slots


# -- which adapter -----------------------------------------------------------------------------------


class FakeDriver:
    """The fake driver as a plain callable, of which the pool must find out what it is."""

    def __init__(self) -> None:
        self.server = FakeServer()
        self.world = World(self.server.accept, max_size=1)
        self.world.server = self.server


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """Provide a driver whose adapter is found by the module of its classes."""
    drivers = {"connpool": f"{AroundAdapter.__module__}:AroundAdapter"}
    monkeypatch.setattr(connpool.adapter, "_DRIVERS", drivers)
    return FakeDriver()


def test_first_connection_names_the_driver(driver: FakeDriver) -> None:
    world = driver.world
    assert world.flows.adapter is None
    (entry,) = world.lend()
    assert type(world.flows.adapter).__name__ == "AroundAdapter"
    assert not entry.verdict(entry.conn, entry.baseline)


def test_callable_is_called_without_arguments_ever_after(driver: FakeDriver) -> None:
    world = driver.world
    (entry,) = world.lend()
    entry.conn.busy = True
    world.release(entry, ending="rollback").value()
    world.work()
    assert opening(world).to(Step.CONNECT).args == ()


def test_first_exception_names_the_driver(driver: FakeDriver) -> None:
    driver.server.down(FakeOperationalError("connection refused"))
    hand = driver.world.acquire().run()
    driver.world.work()
    assert type(driver.world.flows.adapter).__name__ == "AroundAdapter"
    refusal(hand, PoolUnavailable)
    driver.server.up()
    driver.world.now += 1.0
    driver.world.lend()


def test_exception_of_no_driver_leaves_it_open(driver: FakeDriver) -> None:
    driver.server.down(OSError("no route to host"))
    hand = driver.world.acquire().run()
    driver.world.work()
    assert driver.world.flows.adapter is None
    assert refusal(hand, PoolUnavailable) == (
        "cannot connect; last connect error: OSError: no route to host (pool 'test')"
    )


def test_dial_of_an_unknown_driver_is_given_up_on_time(driver: FakeDriver) -> None:
    world = driver.world
    dialling = opening(world)
    assert world.watched == world.now + 10.0, "nobody else keeps the limit"
    dialling.value()


def test_driver_that_nobody_knows_is_taken_for_a_db_api_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connpool.adapter, "_DRIVERS", {})
    world = World(FakeServer().accept)
    world.lend()
    assert isinstance(world.flows.adapter, DBAPIAdapter)


def test_something_that_is_no_connection_is_the_callers_mistake() -> None:
    made: list[weakref.ref[Any]] = []

    class Thing:
        def __init__(self) -> None:
            made.append(weakref.ref(self))

    world = World(Thing, max_size=1)
    hands = [world.acquire().run() for _ in range(2)]
    world.work()
    texts = {refusal(hand, PoolMisuse) for hand in hands}
    assert len(texts) == 1
    assert "which is no DB-API connection: it has no cursor(), commit(), rollback(), close()" in texts.pop()
    causes = {id(hand.error.__cause__) for hand in hands if hand.error}
    assert causes == {id(world.core.last_error)}, "each caller's own error, from the one that happened"
    assert not world.core.slots
    assert world.flows.adapter is None
    assert not any("close" in hand.steps for hand in world.hands), "nobody knows how"


def test_driver_is_named_once(driver: FakeDriver) -> None:
    driver.world.lend()
    adapter = driver.world.flows.adapter
    assert driver.world.flows._dial_fault(FakeOperationalError("connection refused")) is Fault.DEAD
    assert driver.world.flows.adapter is adapter


def test_dial_of_an_adapter_that_keeps_no_limit_is_given_up_on_time() -> None:
    server = FakeServer()
    world = World(AroundAdapter(server.accept), connect_timeout=7.0)
    opening(world)
    assert world.watched == world.now + 7.0


def test_credentials_refused_by_a_driver_known_by_its_exception_are_fatal(driver: FakeDriver) -> None:
    driver.server.down(FakeOperationalError("password authentication failed"))
    assert (
        driver.world.flows._dial_fault(FakeOperationalError("password authentication failed")) is Fault.AUTH
    )
    assert driver.world.flows._dial_fault(FakeOperationalError("connection refused")) is Fault.DEAD


def test_exception_of_no_driver_is_not_fatal() -> None:
    assert World(FakeServer().accept).flows._dial_fault(OSError()) is Fault.ORDINARY


class CallableConnection(FakeConnection):
    def __call__(self) -> None: ...


class CallableAdapter(FakeAdapter):
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("source", "got"),
    [
        ((), "a tuple"),
        ("postgresql://u:secret@host/db", "a str; for a URL there is connpool.create_pool()"),
        (FakeConnection(FakeServer()), "a FakeConnection"),
        (CallableConnection(FakeServer()), "a CallableConnection"),
        (FakeAdapter, "the class FakeAdapter"),
    ],
)
def test_neither_adapter_nor_callable_is_refused_without_repeating_it(source: object, got: str) -> None:
    with pytest.raises(TypeError) as caught:
        World(source)
    assert str(caught.value) == (
        f"a pool needs an adapter, or a callable that returns a connection; got {got}"
    )


def test_adapter_that_can_be_called_is_an_adapter() -> None:
    world = World(CallableAdapter(FakeServer()))
    assert world.flows.adapter is world.adapter


def test_class_whose_objects_are_connections_is_a_callable() -> None:
    server = FakeServer()
    world = World(lambda: FakeConnection(server))
    assert isinstance(world.lend()[0].conn, FakeConnection)


def test_connection_that_the_pool_has_already_is_the_callers_mistake() -> None:
    conn = FakeConnection(FakeServer())
    world = World(lambda: conn, max_size=2)
    (entry,) = world.lend()
    hand = world.acquire(5.0).run()
    world.work()
    assert hand.parked, "the one in use may come back"
    assert not conn.closed
    assert len(world.core.slots) == 1
    world.now += 5.0
    hand.resume()
    world.jobs.clear()
    assert "PoolMisuse: connect returned a connection that the pool has already" in refusal(hand, PoolTimeout)
    world.release(entry).value()


class ConfusedAdapter(FakeAdapter):
    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        raise LookupError("no such code")


def test_adapter_that_cannot_judge_an_error_does_not_replace_it() -> None:
    world = World(ConfusedAdapter(FakeServer()))
    world.server = world.adapter.server
    world.server.down()
    hand = world.acquire().run()
    world.work()
    assert "FakeOperationalError: connection refused" in refusal(hand, PoolUnavailable)
    assert world.core.last_error is not None
    origin, doubt = world.core.last_error.__notes__
    assert origin.startswith("raised in FakeServer.accept, ")
    assert doubt == "and its adapter could not say what kind of fault that is: LookupError('no such code')"


# -- closing -----------------------------------------------------------------------------------------


def closing(world: World, **options: Any) -> tuple[Hand[None], FakeConnection]:
    """Discard a connection and hold the flow that closes it."""
    (entry,) = world.lend()
    conn: FakeConnection = entry.conn
    world.core.retire(entry, Reason.EVICTED, world.now)
    world.hold(world.flows.follow_up()).run()
    return world.hold(world.jobs.popleft()), conn


def test_discarded_connection_is_closed_politely_and_within_its_grace() -> None:
    world = World()
    hand, conn = closing(world)
    assert hand.to(Step.CLOSE).args == (conn, upkeep.CLOSE_GRACE)
    hand.value()
    assert conn.closed
    assert not world.core.slots


def test_connection_that_cannot_be_closed_politely_is_aborted() -> None:
    world = World()
    hand, conn = closing(world)
    hand.to(Step.CLOSE)
    hand.throw(FakeOperationalError("no answer"))
    hand.value()
    assert conn.closed
    assert not world.core.slots


def test_connection_that_cannot_even_be_aborted_frees_its_place() -> None:
    def abort(conn: FakeConnection) -> None:
        raise OSError("bad descriptor")

    world = World()
    world.adapter.abort = abort
    hand, _ = closing(world)
    hand.to(Step.CLOSE)
    hand.throw(FakeOperationalError("no answer"))
    hand.value()
    assert not world.core.slots


@pytest.mark.parametrize("strike", ["cancelled", "closed"])
def test_closing_that_is_interrupted_aborts_and_frees_the_place(strike: str) -> None:
    world = World()
    hand, conn = closing(world)
    hand.to(Step.CLOSE)
    error = STRIKES[strike]()
    if isinstance(error, GeneratorExit):
        hand.close()
    else:
        hand.throw(error)
    assert conn.closed
    assert not world.core.slots
    assert type(hand.error) is type(error)


def test_place_that_a_closing_frees_is_used_at_once() -> None:
    world = World(max_size=1)
    hand, _ = closing(world)
    waiting = world.acquire().run()
    assert waiting.parked
    hand.value()
    assert hand.steps == ["close", "watch", "connect", "adopt", "idle_limit", "watch"]
    assert isinstance(waiting.value(), Entry)


def test_what_was_discarded_during_a_dial_is_closed_after_it() -> None:
    world = World(max_size=2)
    (entry,) = world.lend()
    dialling = opening(world)
    dialling.to(Step.CONNECT)
    world.core.retire(entry, Reason.DEAD, world.now)
    dialling.value()
    world.work()
    assert entry.conn.closed


# -- follow-up and upkeep ----------------------------------------------------------------------------


def test_follow_up_closes_first_and_then_dials() -> None:
    world = World(max_size=2, helpers=False)
    (entry,) = world.lend()
    world.core.retire(entry, Reason.DEAD, world.now)
    hand = world.acquire(5.0)
    hand.value()
    assert [step for step in hand.steps if step not in ("start", "watch")] == [
        "close",
        "connect",
        "adopt",
        "idle_limit",
    ]


def test_follow_up_says_when_upkeep_is_due() -> None:
    world = World(idle_timeout=60.0, max_lifetime=None)
    world.stock()
    world.hold(world.flows.follow_up()).value()
    assert world.watched == world.now + 60.0
    world.now += 60.0
    world.hold(world.flows.upkeep()).value()
    assert discards(world) == {"idle": 1}
    world.work()
    world.hold(world.flows.follow_up()).value()
    assert world.watched is None


def test_upkeep_keeps_min_idle() -> None:
    world = World(max_size=3, min_idle=2)
    world.hold(world.flows.upkeep()).value()
    world.work()
    assert len(world.core.idle) == 2
    world.now = max(entry.expires for entry in world.core.idle)
    world.hold(world.flows.upkeep()).value()
    world.work()
    assert len(world.core.idle) == 2
    assert discards(world) == {"lifetime": 2}


def test_upkeep_with_nothing_to_do_looks_at_the_clock_and_goes() -> None:
    world = World()
    hand = world.hold(world.flows.upkeep())
    hand.value()
    assert hand.steps == ["watch"]


# -- ready, close, evict, resize ---------------------------------------------------------------------


def test_ready_opens_min_idle_connections() -> None:
    world = World(max_size=5, min_idle=3)
    hand = world.hold(world.flows.ready(None)).run()
    assert hand.parked
    world.work()
    hand.value()
    assert len(world.core.idle) == 3


def test_ready_opens_one_connection_at_least() -> None:
    world = World(min_idle=0)
    hand = world.hold(world.flows.ready(None)).run()
    world.work()
    hand.value()
    assert len(world.core.idle) == 1


def test_pool_that_is_ready_says_so_at_once() -> None:
    world = World()
    world.stock()
    hand = world.hold(world.flows.ready(None))
    hand.value()
    assert "park" not in hand.steps


def test_ready_waits_for_a_server_that_is_still_starting() -> None:
    world = World()
    world.server.down()
    hand = world.hold(world.flows.ready(world.now + 30.0)).run()
    world.work()
    assert hand.parked
    world.server.up()
    world.now += 1.0
    hand.resume()
    hand.run()
    world.work()
    hand.value()


def test_ready_that_is_not_says_what_is_missing() -> None:
    world = World(max_size=3, min_idle=3, max_connecting=1)
    hand = world.hold(world.flows.ready(world.now + 30.0)).run()
    dialling = world.hold(world.jobs.popleft())
    dialling.to(Watch)
    world.server._down = FakeOperationalError("connection refused")  # but its sessions live
    dialling.run()
    world.now += 30.0
    hand.resume()
    assert refusal(hand, PoolUnavailable) == (
        "not ready after 30 s: 1 of 3 connections; "
        "last connect error 30 s ago: FakeOperationalError: connection refused (pool 'test')"
    )
    assert hand.error is not None
    assert hand.error.__cause__ is world.core.last_error is not None
    assert not world.core._watchers


def test_ready_fails_at_once_when_the_credentials_are_refused() -> None:
    world = World()
    world.server.down(FakeOperationalError("password authentication failed"))
    hand = world.hold(world.flows.ready(None)).run()
    world.work()
    assert refusal(hand, PoolUnavailable) == (
        "not ready after 0 s: 0 of 1 connections; "
        "last connect error: FakeOperationalError: password authentication failed (pool 'test')"
    )
    assert hand.error is not None
    assert hand.error.__cause__ is world.core.last_error is not None


def test_ready_reports_the_callers_mistake_as_itself() -> None:
    world = World(object)
    hand = world.hold(world.flows.ready(None)).run()
    world.work()
    assert "no DB-API connection" in refusal(hand, PoolMisuse)
    assert hand.error is not world.core.last_error


def test_pool_that_is_closed_will_not_be_ready() -> None:
    world = World(max_size=1)
    hand = world.hold(world.flows.ready(None)).run()
    world.hold(world.flows.close(world.now)).value()
    assert refusal(hand, PoolClosed) == "it is closed (pool 'test')"


def test_closing_waits_for_what_is_lent() -> None:
    world = World()
    (entry,) = world.lend()
    hand = world.hold(world.flows.close(world.now + 5.0)).run()
    assert hand.parked
    world.release(entry).value()
    world.work()
    hand.value()
    assert not world.server.sessions


def test_closing_an_empty_pool_waits_for_nothing() -> None:
    world = World()
    hand = world.hold(world.flows.close(None))
    hand.value()
    assert hand.steps == ["watch"]


def test_closing_waits_no_longer_than_it_was_told() -> None:
    world = World()
    (entry,) = world.lend()
    hand = world.hold(world.flows.close(world.now + 5.0)).run()
    world.now += 5.0
    hand.resume()
    hand.value()
    assert len(world.core.slots) == 1
    world.release(entry).value()
    world.work()
    assert not world.core.slots


def test_closing_that_looks_around_finds_what_was_lost() -> None:
    world = World()
    lent = world.lend()
    hand = world.hold(world.flows.close(None)).run()
    lent.clear()
    hand.resume()
    hand.run()
    world.work()
    hand.value()
    assert not world.core.slots


@pytest.mark.parametrize("min_idle", [0, 1, 2])
def test_evict_replaces_each_idle_connection(min_idle: int) -> None:
    world = World(max_size=3, min_idle=min_idle)
    world.stock(2)
    old = list(world.core.idle)
    world.hold(world.flows.evict()).value()
    world.work()
    assert all(entry.conn.closed for entry in old)
    assert len(world.core.idle) == len(old)


def test_resize_dials_for_those_who_wait() -> None:
    world = World(max_size=1)
    lent = world.lend()
    hand = world.acquire().run()
    world.hold(world.flows.resize(2, 0)).value()
    world.work()
    assert isinstance(hand.value(), Entry)
    assert len(lent) == 1


def test_resize_closes_what_exceeds() -> None:
    world = World(max_size=3)
    first, *others = world.stock(3)
    world.hold(world.flows.resize(2, 0)).value()
    world.work()
    assert first.conn.closed
    assert list(world.core.idle) == others


# -- every operation struck once ---------------------------------------------------------------------


def idle_hit(world: World) -> None:
    world.stock(2)
    world.now += 60.0
    world.acquire().run()


def dead_candidate(world: World) -> None:
    for entry in world.stock(2):
        entry.conn.kill()
    world.now += 1.0
    world.acquire().run()
    world.work()


def must_open(world: World) -> None:
    hands = [world.acquire() for _ in range(3)]
    for hand in hands:
        hand.run()
    world.work()


def handed_over(world: World) -> None:
    (entry, *_) = world.lend(2)
    world.acquire().run()
    world.acquire().run()
    world.release(entry).run()
    world.work()


def at_once(world: World) -> None:
    world.acquire(0).run()
    world.work()


def deadline_passes(world: World) -> None:
    lent = world.lend(2)
    hand = world.acquire(1.0).run()
    world.now += 1.0
    hand.execute()
    for entry in lent:
        world.release(entry).run()


def commits(world: World) -> None:
    (entry,) = world.lend()
    entry.conn.execute("write")
    world.release(entry).run()


def rolls_back(world: World) -> None:
    (entry,) = world.lend()
    entry.conn.execute("write")
    world.release(entry, ValueError()).run()


def transaction_has_failed(world: World) -> None:
    (entry,) = world.lend()
    entry.conn.in_transaction = entry.conn.failed = True
    world.release(entry).run()


def commit_fails(world: World) -> None:
    (entry,) = world.lend()
    entry.conn.execute("write")
    entry.conn.kill()
    world.release(entry).run()
    world.work()


def comes_back_broken(world: World) -> None:
    (entry,) = world.lend()
    entry.conn.busy = True
    world.release(entry).run()
    world.work()


def comes_back_evicted(world: World) -> None:
    (entry,) = world.lend()
    world.hold(world.flows.evict()).run()
    world.release(entry).run()
    world.work()


def comes_back_expired(world: World) -> None:
    (entry,) = world.lend()
    entry.expires = world.now
    world.acquire().run()
    world.acquire().run()
    world.release(entry).run()
    world.work()


def dial_fails(world: World) -> None:
    world.server.down()
    world.acquire().run()
    world.work()


def credentials_refused(world: World) -> None:
    world.server.down(FakeOperationalError("password"))
    world.acquire().run()
    world.hold(world.flows.ready(world.now + 5.0)).run()
    world.work()


def becomes_ready(world: World) -> None:
    world.hold(world.flows.ready(world.now + 5.0)).run()
    world.work()


def closes(world: World) -> None:
    (entry, *_) = world.stock(2)
    world.hold(world.flows.close(world.now + 5.0)).run()
    world.work()
    assert entry is not None


def evicts(world: World) -> None:
    world.stock(2)
    world.hold(world.flows.evict()).run()
    world.work()


def resizes(world: World) -> None:
    world.stock(2)
    world.hold(world.flows.resize(1, 1)).run()
    world.work()


def upkeep_prunes(world: World) -> None:
    world.stock(2)
    world.now += 10_000.0
    world.hold(world.flows.upkeep()).run()
    world.work()


def begins(world: World) -> None:
    (entry,) = world.lend()
    world.hold(world.flows.begin(entry.slot, entry.conn)).run()
    world.release(entry).run()


def settings_changed(world: World) -> None:
    (entry,) = world.lend()
    entry.conn.execute("write")
    entry.conn.mode = "mine"
    world.release(entry, ValueError()).run()
    world.acquire().run()


def resets_and_collects(world: World) -> None:
    (entry, *_) = world.lend(2)
    entry.conn.execute("write")
    waiting = world.acquire().run()
    world.release(entry).run()
    waiting.run()
    world.now += 60.0
    world.acquire(0).run()
    world.work()


def answer_does_not_come(world: World) -> None:
    for entry in world.stock(2):
        entry.conn.kill()
    world.acquire().run()
    world.work()


def answers_outstanding(world: World) -> None:
    world.stock(2)
    world.hold(world.flows.evict()).run()
    world.work()
    world.stock(2)
    world.hold(world.flows.close(world.now + 5.0)).run()
    world.work()


def hooks_run(world: World) -> None:
    (entry, *_) = world.stock(2)
    assert entry is not None
    del entry
    world.acquire().run()
    world.hold(world.flows.evict()).run()
    world.work()


def hooks_raise(world: World) -> None:
    for _ in range(2):
        hand = world.acquire().run()
        world.work()
        if hand.run().result is not None:
            world.release(hand.value()).run()
            world.work()


def hook_overstays(world: World) -> None:
    world.stock(1)
    world.work()
    hand = world.acquire(5.0)
    hand.to(Step.ON_ACQUIRE)
    world.now += 5.0
    world.hold(world.flows.upkeep()).run()
    hand.run()
    assert isinstance(hand.error, PoolTimeout)
    world.work()


def credentials_change(world: World) -> None:
    world.server.password = "new"
    for hand in [world.acquire(), world.acquire()]:
        hand.run()
    world.work()


def standby_is_refused(world: World) -> None:
    world.server.writable = False
    world.acquire().run()
    world.work()
    world.server.writable = True
    world.now += 1.0
    world.acquire().run()
    world.work()


def is_demoted(world: World) -> None:
    (entry, _) = world.lend(2)
    world.server.writable = False
    world.release(entry, FakeError("cannot execute INSERT in a read-only transaction")).run()
    world.work()
    world.acquire().run()
    world.work()


def keeps_alive(world: World) -> None:
    world.stock(2)
    world.now += 10.0
    world.hold(world.flows.upkeep()).run()
    world.acquire().run()
    world.work()


def keepalive_finds_the_dead(world: World) -> None:
    for entry in world.stock(2):
        entry.conn.kill()
    world.now += 10.0
    world.hold(world.flows.upkeep()).run()
    world.work()


def is_suspected(world: World) -> None:
    (entry, other) = world.lend(2)
    entry.conn.busy = True
    world.release(other).run()
    world.release(entry, FakeOperationalError("lost")).run()
    world.acquire().run()
    world.work()


def server_is_silent(world: World) -> None:
    world.stock(2)
    world.now += 60.0
    hand = world.acquire(5.0)
    hand.to(Step.PING)
    world.now += 2.5
    hand.throw(FakeOperationalError("no answer"))
    hand.run()
    world.work()


def commit_overstays(world: World) -> None:
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    world.now += 2.0
    world.hold(world.flows.upkeep()).run()
    hand.run()
    world.work()


def suspends_and_resumes(world: World) -> None:
    world.stock(1)
    world.core.suspend()
    hands = [world.acquire().run() for _ in range(2)]
    world.hold(world.flows.resume()).run()
    for hand in hands:
        hand.run()
    world.work()


def server_limits_idleness(world: World) -> None:
    world.server.idle_limit = 20.0
    world.acquire().run()
    world.work()
    world.now += 16.0
    world.hold(world.flows.upkeep()).run()
    world.work()


def evicts_slowly(world: World) -> None:
    world.stock(2)
    world.hold(world.flows.evict(60.0)).run()
    world.now += 60.0
    world.hold(world.flows.upkeep()).run()
    world.work()


def closes_and_cuts(world: World) -> None:
    (entry, *_) = world.lend(2)
    world.hold(world.flows.close(world.now, cut=True)).run()
    world.release(entry).run()
    world.work()


def rest(conn: FakeConnection) -> None:
    conn.execute("set tenant nobody")


def rotating() -> Callable[[], dict[str, str]]:
    passwords = ["new", "old"]

    def provider() -> dict[str, str]:
        return {"password": passwords.pop() if len(passwords) > 1 else passwords[0]}

    return provider


def raises_at_first() -> Callable[[FakeConnection], None]:
    errors: list[Exception] = [LookupError("no such tenant")]

    def hook(conn: FakeConnection) -> None:
        if errors:
            raise errors.pop()

    return hook


def raises_later() -> Callable[[FakeConnection], None]:
    errors: list[Exception | None] = [LookupError("no such tenant"), None]

    def hook(conn: FakeConnection) -> None:
        error = errors.pop() if errors else None
        if error is not None:
            raise error

    return hook


OPTIONS: dict[Callable[[World], None], Callable[[], dict[str, Any]]] = {
    resets_and_collects: lambda: {"reset": "full", "on_connect": None},
    answer_does_not_come: lambda: {"reset": "full", "on_connect": None},
    answers_outstanding: lambda: {"reset": ["unlock", rest, "full"], "on_connect": None},
    hooks_run: lambda: {
        "reset": ["full", rest],
        "on_acquire": rest,
        "on_release": rest,
        "on_close": lambda conn: None,
    },
    hooks_raise: lambda: {
        "on_acquire": raises_at_first(),
        "on_release": raises_later(),
        "on_close": raises_at_first(),
    },
    hook_overstays: lambda: {"on_acquire": lambda conn: conn.execute("set tenant somebody")},
    credentials_change: lambda: {"credentials": rotating()},
    standby_is_refused: lambda: {"require": "read-write"},
    keeps_alive: lambda: {"keepalive": 10.0, "reset": "full", "on_connect": None},
    keepalive_finds_the_dead: lambda: {"keepalive": 10.0},
    commit_overstays: lambda: {"commit_timeout": 2.0},
}
"""What a scenario needs beside the options of all."""

SCENARIOS: list[Callable[[World], None]] = [
    idle_hit,
    dead_candidate,
    must_open,
    handed_over,
    at_once,
    deadline_passes,
    commits,
    rolls_back,
    transaction_has_failed,
    commit_fails,
    comes_back_broken,
    comes_back_evicted,
    comes_back_expired,
    dial_fails,
    credentials_refused,
    becomes_ready,
    closes,
    evicts,
    resizes,
    upkeep_prunes,
    begins,
    settings_changed,
    is_demoted,
    is_suspected,
    server_is_silent,
    suspends_and_resumes,
    server_limits_idleness,
    evicts_slowly,
    closes_and_cuts,
    *OPTIONS,
]


def play(
    scenario: Callable[[World], None], helpers: bool, suspension: int, error: BaseException | None
) -> World:
    """Play a scenario to its end, with an exception at one of its suspensions."""
    options = {"on_connect": lambda conn: conn.execute("set"), **OPTIONS.get(scenario, dict)()}
    world = World(helpers=helpers, max_size=2, min_idle=1, ping_after=30.0, **options)
    if error is not None:
        world.strike(suspension, error)
    try:
        scenario(world)
    except BaseException as exc:
        if error is None or not isinstance(exc, PoolError | type(error) | AssertionError | StopIteration):
            raise  # a scenario whose preparation was struck ends early; that is fine
        error.__traceback__ = None  # it would own what the scenario owned
    return world


@pytest.mark.parametrize("helpers", [True, False], ids=["helpers", "inline"])
@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_place_is_lost_wherever_an_exception_strikes(
    scenario: Callable[[World], None], strike: str, helpers: bool
) -> None:
    world = play(scenario, helpers, 0, None)
    suspensions = world.suspensions
    assert suspensions >= 3
    world.settle()
    for suspension in range(1, suspensions + 1):
        world = play(scenario, helpers, suspension, STRIKES[strike]())
        try:
            world.settle()
        except BaseException as exc:
            exc.add_note(f"struck at suspension {suspension} of {suspensions}")
            raise


def test_every_scenario_is_struck_in_every_kind_of_operation() -> None:
    kinds: set[str] = set()
    for scenario in SCENARIOS:
        for helpers in (True, False):
            for hand in play(scenario, helpers, 0, None).hands:
                kinds.update(hand.steps)
    assert kinds == {step.value for step in Step} | {"park", "start", "watch", "report", "tell"}
