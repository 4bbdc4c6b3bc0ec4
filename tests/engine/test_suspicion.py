"""What one lost connection says about the others: they are asked before they are lent, or not lent at all."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import Any

import pytest
from engine.driver import Hand, World, assert_lawful, discards, opening, refusal

from connpool.adapter import Fault
from connpool.engine import upkeep
from connpool.engine.operations import Step
from connpool.engine.records import Entry
from connpool.errors import PoolMisuse, PoolTimeout, PoolUnavailable
from connpool.stats import Reason
from connpool.testing import (
    Cancelled,
    FakeAdapter,
    FakeConnection,
    FakeError,
    FakeOperationalError,
    FakeServer,
)


def lose(world: World, entry: Entry[Any]) -> None:
    """Have a borrower find out that his connection is gone; it happens after everything before."""
    world.now += 0.01
    entry.conn.busy = True
    world.release(entry, FakeOperationalError("server closed the connection unexpectedly")).value()
    world.work()


def steps_to_lend(world: World, entry: Entry[Any]) -> list[str]:
    """Lend what must be that entry, give it back, and return what was done before it was lent."""
    hand = world.acquire()
    assert hand.value() is entry
    world.release(entry).value()
    return hand.steps


# -- a machine that was suspended ---------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [2.0, 30_000.0])
def test_nothing_is_lent_unasked_after_the_machine_was_suspended(seconds: float) -> None:
    world = World(max_size=2)
    first, second = world.lend(2)
    world.release(first).value()
    world.release(second).value()
    world.now, world.slept = world.now + 0.01, world.slept + seconds
    for session in list(world.server.sessions):
        session.kill()
    (fresh,) = world.lend(1)  # the clock says that both are fresh
    assert fresh not in (first, second)
    assert discards(world) == {Reason.DEAD: 2}


def test_upkeep_notices_that_the_machine_was_suspended() -> None:
    world = World(max_size=1)
    (entry,) = world.lend(1)
    world.release(entry).value()
    assert entry.check_at > world.now
    world.now, world.slept = world.now + 0.01, world.slept + 60.0
    world.hold(world.flows.upkeep()).run()
    assert entry.check_at == -inf, "the warm path must not take it"
    assert steps_to_lend(world, entry) == ["ping"]
    assert steps_to_lend(world, entry) == []


def test_two_clocks_that_were_not_read_at_once_are_no_suspension() -> None:
    world = World(max_size=1)
    (entry,) = world.lend(1)
    world.release(entry).value()
    world.slept += 0.9 * upkeep.NAP
    assert steps_to_lend(world, entry) == []


# -- who is suspected --------------------------------------------------------------------------------


def test_idle_connection_is_pinged_once_after_a_loss() -> None:
    world = World(max_size=2)
    idle, lost = world.lend(2)
    world.release(idle).value()
    lose(world, lost)
    assert idle.check_at == -inf, "the warm path must not take it"
    assert steps_to_lend(world, idle) == ["ping"]
    assert idle.check_at > world.now
    assert steps_to_lend(world, idle) == []


def test_every_idle_connection_is_pinged_before_its_next_use() -> None:
    world = World(max_size=4)
    *idle, lost = world.lend(4)
    for entry in idle:
        world.release(entry).value()
    lose(world, lost)
    hands = [world.acquire() for _ in idle]
    assert {hand.value() for hand in hands} == set(idle)
    assert [hand.steps for hand in hands] == [["ping"]] * 3


def test_connection_that_was_lent_at_the_time_is_pinged_before_its_next_use() -> None:
    world = World(max_size=2)
    lent, lost = world.lend(2)
    lose(world, lost)
    assert lent.warm_until == -inf, "its return is a flow's"
    world.release(lent).value()
    assert lent.check_at == -inf, "the warm path must not take it"
    assert steps_to_lend(world, lent) == ["ping"]
    assert steps_to_lend(world, lent) == []
    assert lent.warm_until == lent.expires


@pytest.mark.parametrize(("error", "step"), [(None, Step.COMMIT), (ValueError(), Step.ROLLBACK)])
def test_server_that_has_answered_since_is_not_asked_again(error: Exception | None, step: Step) -> None:
    world = World(max_size=2)
    lent, lost = world.lend(2)
    lose(world, lost)
    lent.conn.execute("write")
    hand = world.release(lent, error)
    hand.to(step)
    hand.value()
    assert steps_to_lend(world, lent) == []


@pytest.mark.parametrize(("error", "step"), [(None, Step.COMMIT), (ValueError(), Step.ROLLBACK)])
def test_answer_to_something_that_was_sent_before_the_loss_proves_nothing(
    error: Exception | None, step: Step
) -> None:
    world = World(max_size=2)
    lent, lost = world.lend(2)
    lent.conn.execute("write")
    hand = world.release(lent, error)
    hand.to(step)
    lose(world, lost)
    hand.value()
    assert steps_to_lend(world, lent) == ["ping"]


def test_loss_while_a_ping_is_under_way_asks_for_another_one() -> None:
    world = World(max_size=3)
    idle, first, second = world.lend(3)
    world.release(idle).value()
    lose(world, first)
    hand = world.acquire()
    hand.to(Step.PING)
    lose(world, second)
    assert hand.value() is idle, "its server has answered"
    world.release(idle).value()
    assert steps_to_lend(world, idle) == ["ping"]
    assert steps_to_lend(world, idle) == []


def test_connection_that_was_being_handed_over_is_pinged() -> None:
    world = World(max_size=2)
    lent, lost = world.lend(2)
    waiting = world.acquire().run()
    world.release(lent).value()
    lose(world, lost)
    assert waiting.value() is lent
    assert waiting.steps[-1] == "ping"


def test_connection_whose_dial_ended_after_the_loss_is_trusted() -> None:
    world = World(max_size=2)
    (lost,) = world.lend()
    hand = world.acquire().run()
    dialling = world.hold(world.jobs.popleft())
    dialling.to(Step.CONNECT)
    lose(world, lost)
    dialling.value()
    entry = hand.value()
    assert "ping" not in hand.steps
    world.release(entry).value()
    assert steps_to_lend(world, entry) == []


def test_answer_to_a_reset_that_was_sent_before_the_loss_proves_nothing() -> None:
    world = World(max_size=2, reset="full")
    idle, lost = world.lend(2)
    world.release(idle).value()
    lose(world, lost)
    hand = world.acquire()
    assert hand.value() is idle
    assert hand.steps == ["read_reset", "ping"]


@pytest.mark.parametrize("reason", list(Reason))
def test_only_a_loss_raises_suspicion(reason: Reason) -> None:
    world = World()
    idle, other = world.lend(2)
    world.release(idle).value()
    world.now += 0.01
    world.core.retire(other, reason, world.now)
    suspected = idle.proven_at < world.core.suspect_at
    assert suspected == (reason in (Reason.DEAD, Reason.SILENT))


# -- how it is asked ---------------------------------------------------------------------------------


def test_where_pings_are_switched_off_a_look_must_do() -> None:
    world = World(max_size=3, ping_after=None, probe_after=600.0)
    idle, killed, lost = world.lend(3)
    world.release(idle).value()
    world.release(killed).value()
    lose(world, lost)
    world.now += upkeep.ALARM
    killed.conn.kill()
    hand = world.acquire()
    assert hand.value() is idle
    assert hand.steps == ["start", "tell", "watch"], "the dead one is closed elsewhere"
    assert discards(world) == {"dead": 2}


def test_connection_that_was_looked_at_where_pings_are_off_is_warm_again() -> None:
    world = World(max_size=2, ping_after=None)
    idle, lost = world.lend(2)
    world.release(idle).value()
    lose(world, lost)
    assert steps_to_lend(world, idle) == []
    assert idle.warm_until == idle.expires


def test_where_everything_is_switched_off_nobody_is_asked() -> None:
    world = World(max_size=2, ping_after=None, probe_after=None)
    idle, lost = world.lend(2)
    world.release(idle).value()
    lose(world, lost)
    idle.conn.kill()
    assert steps_to_lend(world, idle) == []
    assert idle.warm_until == idle.expires


def test_caller_without_time_for_a_ping_leaves_the_suspicion_to_the_next() -> None:
    world = World(max_size=2)
    idle, lost = world.lend(2)
    world.release(idle).value()
    lose(world, lost)
    hurried = world.acquire(0)
    assert hurried.value() is idle
    assert hurried.steps == []
    world.release(idle).value()
    assert steps_to_lend(world, idle) == ["ping"]


def test_probe_that_fails_for_a_caller_without_time_is_a_death() -> None:
    def alive(conn: FakeConnection) -> bool:
        raise OSError("bad descriptor")

    world = World()
    world.stock()
    world.adapter.alive = alive
    world.now += 1.0
    assert "no connection at once" in refusal(world.acquire(0), PoolTimeout)
    assert discards(world) == {"dead": 1}


def test_each_candidate_is_looked_at_once_for_one_caller() -> None:
    world = World(max_size=3)
    world.stock(3)
    seen: Counter[FakeConnection] = Counter()

    def alive(conn: FakeConnection) -> bool:
        seen[conn] += 1
        return conn.alive

    world.adapter.alive = alive
    world.server.kill_sessions()
    world.now += 1.0
    hand = world.acquire().run()
    assert sorted(seen.values()) == [1, 1, 1]
    assert discards(world) == {"dead": 3}
    world.work()
    assert hand.value().conn not in seen


@pytest.mark.parametrize("most", [1, 2, 3])
def test_mass_kill_is_not_followed_by_a_storm(most: int) -> None:
    world = World(max_size=6, max_connecting=most)
    world.stock(6)
    world.server.kill_sessions()
    world.now += 1.0
    hands = [world.acquire().run() for _ in range(6)]
    busiest = 0
    working: list[Hand[None]] = []
    while world.jobs or working:
        working += [world.hold(world.jobs.popleft()) for _ in range(len(world.jobs))]
        busiest = max(busiest, sum(hand.at(Step.CONNECT) for hand in working))
        assert busiest <= most
        for hand in working:
            hand.execute()
        working = [hand for hand in working if not hand.done]
    assert busiest == most
    assert all(isinstance(hand.run().result, Entry) for hand in hands)
    assert world.server.connects == 12


# -- silence -----------------------------------------------------------------------------------------


def silent(world: World, hand: Hand[Any]) -> None:
    """Let a ping have no answer for as long as it may wait."""
    limit = hand.to(Step.PING).args[1]
    world.now += limit
    hand.throw(FakeOperationalError(f"no answer within {limit} s"))


def test_silence_discards_everything_idle_and_leaves_half_of_the_time() -> None:
    world = World(max_size=3)
    world.stock(3)
    world.now += 30.0
    began = world.now
    hand = world.acquire(4.0)
    silent(world, hand)
    assert world.now == began + 2.0
    hand.run()
    assert discards(world) == {"silent": 3}
    world.work()
    assert isinstance(hand.value(), Entry)
    assert world.now < began + 4.0
    assert hand.steps.count("ping") == 1, "nobody waits for the others' silence, too"


def test_silence_spares_whom_the_server_has_answered_since() -> None:
    world = World(max_size=2)
    heard, _ = world.stock(2)
    world.now += 30.0
    hand = world.acquire(4.0)
    hand.to(Step.PING)
    world.now += 2.0
    other = world.acquire(4.0)
    assert other.value() is heard
    world.release(heard).value()
    hand.throw(FakeOperationalError("no answer"))
    assert hand.value() is heard
    assert discards(world) == {"silent": 1}
    assert hand.steps.count("ping") == 1


def test_silence_leaves_what_is_lent_to_its_borrowers() -> None:
    world = World(max_size=2)
    lent, idle = world.lend(2)
    world.release(idle).value()
    world.now += 30.0
    hand = world.acquire(4.0)
    silent(world, hand)
    hand.run()
    assert discards(world) == {"silent": 1}
    world.release(lent).value()
    world.work()
    assert lent.slot in world.core.slots, "its borrower was served"
    assert lent.check_at == -inf


def test_silence_that_finds_an_entry_gone_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at idle and the removal, the warm path may take it."""
    world = World()
    entry, other = world.lend(2)
    monkeypatch.setattr(world.core, "_idle_now", lambda: [entry])
    world.now += 0.01
    world.core.retire(other, Reason.SILENT, world.now)
    assert discards(world) == {"silent": 1}
    assert_lawful(world.core, in_use=1)
    monkeypatch.undo()
    world.release(entry).value()


# -- a server that takes no writes any more ----------------------------------------------------------

READ_ONLY = "cannot execute INSERT in a read-only transaction"


def demoted(world: World, entry: Entry[Any]) -> Hand[None]:
    """Have a borrower find out that his server is no primary any more."""
    world.server.writable = False
    return world.release(entry, FakeError(READ_ONLY))


def test_everything_leaves_a_server_that_takes_no_writes_any_more() -> None:
    world = World(max_size=4)
    idle, lent, finder = world.lend(3)
    world.release(idle).value()
    dialling = opening_another(world)
    hand = demoted(world, finder)
    hand.value()
    assert hand.steps[0] == "writable"
    assert discards(world) == {"demoted": 2}
    world.release(lent).value()
    assert discards(world) == {"demoted": 3}
    dialling.value()
    assert discards(world) == {"demoted": 4}, "it was dialled to the old primary"
    world.server.writable = True
    world.work()
    assert_lawful(world.core, in_use=0)


def opening_another(world: World) -> Hand[None]:
    """Begin a dial although something is idle, and hold it."""
    world.core.min_idle = 2
    world.hold(world.flows.follow_up()).value()
    world.core.min_idle = 0
    dialling = world.hold(world.jobs.popleft())
    dialling.to(Step.ADOPT)
    return dialling


def test_user_who_made_his_own_transaction_read_only_keeps_his_connection() -> None:
    world = World()
    (entry,) = world.lend()
    hand = world.release(entry, FakeError(READ_ONLY))
    hand.value()
    assert hand.steps == ["writable"]
    assert list(world.core.idle) == [entry]


def test_question_whether_it_was_demoted_has_the_limit_of_a_return() -> None:
    world = World(reset_timeout=3.0)
    (entry,) = world.lend()
    hand = demoted(world, entry)
    assert hand.to(Step.WRITABLE).args == (entry.conn, 3.0)
    hand.throw(FakeOperationalError("no answer"))
    hand.value()
    assert discards(world) == {"dead": 1}


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(READ_ONLY), Cancelled(READ_ONLY), PoolMisuse(READ_ONLY), PoolTimeout("password")],
)
def test_what_no_server_has_said_accuses_none(error: BaseException) -> None:
    world = World()
    world.server.writable = False
    (entry,) = world.lend()
    hand = world.release(entry, error)
    hand.value()
    assert hand.steps == []
    assert list(world.core.idle) == [entry]


def test_broken_connection_is_asked_nothing() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.busy = True
    hand = demoted(world, entry)
    hand.value()
    assert "writable" not in hand.steps
    assert discards(world) == {"broken": 1}


def test_commit_that_the_server_refuses_as_read_only_accuses_it_too() -> None:
    world = World()
    (entry,) = world.lend()
    entry.conn.execute("write")
    world.server.writable = False
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    hand.throw(error := FakeError(READ_ONLY))
    hand.run()
    assert hand.error is error, "the borrower's, as it is"
    assert discards(world) == {"demoted": 1}


def test_adapter_that_cannot_classify_an_error_accuses_nobody() -> None:
    class Confused(FakeAdapter):
        def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
            raise LookupError("unknown code")

    world = World(Confused(FakeServer()))
    (entry,) = world.lend()
    error = FakeError(READ_ONLY)
    world.release(entry, error).value()
    assert list(world.core.idle) == [entry]
    assert error.__notes__ == [
        "and its adapter could not say what kind of fault that is: LookupError('unknown code')"
    ]


# -- a server that is full ---------------------------------------------------------------------------


def test_full_server_is_back_pressure_for_those_who_can_be_served_by_what_is_lent() -> None:
    world = World(max_size=3)
    (entry,) = world.lend()
    world.server.max_sessions = 1
    hands = [world.acquire().run() for _ in range(2)]
    world.work()
    assert world.core.failures == 2
    assert all(hand.parked for hand in hands)
    for hand in hands:
        world.release(entry).value()
        assert hand.value() is entry


def test_full_server_is_asked_again_after_the_pause() -> None:
    world = World(max_size=2)
    lent = world.lend()
    world.server.max_sessions = 1
    hand = world.acquire().run()
    world.work()
    world.server.max_sessions = 2
    assert world.core.retry_at <= world.now + upkeep.FIRST_PAUSE
    world.now = world.core.retry_at
    world.hold(world.flows.upkeep()).run()
    world.work()
    assert hand.value() not in lent


# -- who cannot be served ----------------------------------------------------------------------------


def gone(world: World) -> None:
    """Have the server gone for long, as a pool knows that was connected once."""
    (entry,) = world.lend()
    world.server.down()
    world.core.retire(entry, Reason.DEAD, world.now)
    del entry
    world.hold(world.flows.follow_up()).run()
    world.work()
    for _ in range(10):
        world.now = max(world.now, world.core.retry_at)
        world.core.min_idle = 1
        world.hold(world.flows.follow_up()).run()
        world.core.min_idle = 0
        world.work()
    assert world.core.retry_at - world.now == 2.5


def test_caller_whose_deadline_comes_before_the_next_dial_fails_at_once() -> None:
    world = World()
    gone(world)
    hand = world.acquire(0.9)  # for whoever waits the pause is a second at most
    assert refusal(hand, PoolUnavailable) == (
        "no connection at once: none is open; last connect error: FakeOperationalError: "
        "connection refused (pool 'test')"
    )
    assert hand.error is not None
    assert isinstance(hand.error.__cause__, FakeOperationalError)
    assert "park" not in hand.steps
    assert not world.core.waiters
    assert world.core.totals.unavailable == 1


@pytest.mark.parametrize("timeout", [1.1, None])
def test_caller_whose_deadline_comes_after_the_next_dial_waits_for_it(timeout: float | None) -> None:
    world = World()
    gone(world)
    hand = world.acquire(timeout).run()
    assert hand.parked
    world.server.up()
    world.now = world.core.retry_at
    hand.resume()
    hand.run()
    world.work()
    assert isinstance(hand.run().result, Entry)


def test_caller_who_can_be_served_by_what_is_lent_is_not_hopeless() -> None:
    world = World()
    (entry,) = world.lend()
    gone(world)
    hand = world.acquire(2.0).run()
    assert hand.parked
    world.release(entry).value()
    assert hand.value() is entry


def test_caller_who_can_be_served_by_a_dial_under_way_is_not_hopeless() -> None:
    world = World()
    dialling = opening(world)
    dialling.to(Step.CONNECT)
    world.core.retry_at = world.now + 60.0
    hand = world.acquire(2.0).run()
    assert hand.parked
    dialling.value()
    assert isinstance(world.hands[0].value(), Entry)


def test_caller_who_waits_learns_that_it_has_become_hopeless() -> None:
    world = World(connect_timeout=5.0)
    (entry,) = world.lend()
    world.core.retire(entry, Reason.DEAD, world.now)
    del entry
    world.hold(world.flows.follow_up()).value()
    world.work()
    began = world.now
    hand = world.acquire(13.5).run()
    hanging = []
    for after in (0.0, 7.0):  # the second dial, when the pause after the first is over
        world.now = began + after
        hand.resume()
        hand.run()
        hanging.append(world.hold(world.jobs.popleft()))
        hanging[-1].to(Step.CONNECT)
        world.now += 6.0
        hand.resume()
        hand.run()
    assert world.core.abandoned == 2
    assert world.now < began + 13.5 < world.core.retry_at
    assert "the dial was given up" in refusal(hand, PoolUnavailable)
