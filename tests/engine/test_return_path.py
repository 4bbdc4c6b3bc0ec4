"""What is done to a connection between two borrowers: every policy, every state that it can come back in.

Who has to hear of an error is half of the matter: the borrower of his own, once; nobody of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from engine.driver import BlindAdapter, Hand, World, assert_lawful, discards, drive, opening, refusal

import connpool.adapter
from connpool import reset
from connpool.adapter import Fault
from connpool.engine import upkeep
from connpool.engine.operations import Park, Step
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

PREPARED = ("connect", "adopt", "remember")
"""How a connection is opened where a policy has parts."""


def nothing(conn: FakeConnection) -> None:
    """Do nothing: a callable as a policy."""


def way(hand: Hand[Any]) -> str:
    """Return what a flow did with a connection; neither looking after it nor closing it counts."""
    return " ".join(step for step in hand.steps if step not in ("start", "watch", "close", *PREPARED))


def sets_tenant(conn: FakeConnection) -> None:
    """Tell the session something, in a transaction that is left open."""
    conn.execute("set tenant nobody")


# -- every policy, every state -----------------------------------------------------------------------


def clean(conn: FakeConnection) -> None: ...


def altered(conn: FakeConnection) -> None:
    conn.mode = "mine"


def dirty(conn: FakeConnection) -> None:
    conn.execute("write")


def both(conn: FakeConnection) -> None:
    conn.execute("write")
    conn.mode = "mine"


def failed(conn: FakeConnection) -> None:
    with pytest.raises(FakeError):
        conn.execute("fail")


def broken(conn: FakeConnection) -> None:
    conn.busy = True


def spent(conn: FakeConnection) -> None:
    conn.close()


CUT_SHORT = "in the middle of an exchange"
CAUGHT = "a statement's error was caught inside it"

Deed = Callable[[FakeConnection], None]
Ways = dict[Deed, tuple[str, str]]
"""What is done when its block ended well, and when it did not or there was none; then "!" and the discard."""

LAST: Ways = {broken: ("!broken", "!broken"), spent: ("!spent", "!spent")}
TIDIED: Ways = {
    clean: ("", ""),
    altered: ("restore", "restore"),
    dirty: ("commit", "rollback"),
    both: ("commit restore", "rollback restore"),
    failed: ("rollback", "rollback"),
    **LAST,
}
SENT: Ways = {  # parts end the transaction and put the settings back themselves
    clean: ("", ""),
    altered: ("", ""),
    dirty: ("commit", ""),
    both: ("commit", ""),
    failed: ("", ""),
    **LAST,
}
LEFT_ALONE: Ways = {
    clean: ("", ""),
    altered: ("!reset", "!reset"),
    dirty: ("commit", "!reset"),
    both: ("commit !reset", "!reset"),
    failed: ("!reset", "!reset"),
    **LAST,
}

POLICIES: dict[str, tuple[Any, Ways, str]] = {
    "rollback": ("rollback", TIDIED, ""),
    "none": ("none", LEFT_ALONE, ""),
    "full": ("full", SENT, "send_reset"),
    "callable": (nothing, TIDIED, "reset"),
    "callable, parts": ([nothing, "unlock"], TIDIED, "reset send_reset"),
    "parts, callable": (["unlock", nothing], SENT, "send_reset read_reset reset"),
    "parts, callable, parts": (
        ["unlock", nothing, "full"],
        SENT,
        "send_reset read_reset reset send_reset",
    ),
}
"""The policy, what it begins with, and what it does to a connection that is kept."""


@pytest.mark.parametrize("ended", ["well", "badly", "bare"])
@pytest.mark.parametrize("leave", TIDIED, ids=lambda leave: leave.__name__)
@pytest.mark.parametrize("name", POLICIES)
def test_connection_comes_back_as_its_policy_and_its_state_demand(name: str, leave: Deed, ended: str) -> None:
    policy, ways, rest = POLICIES[name]
    world = World(max_size=1, reset=policy)
    (entry,) = world.lend()
    entry.conn.session = {"tenant": "somebody"}
    leave(entry.conn)
    error = ValueError("the block's own") if ended == "badly" else None
    hand = world.release(entry, error, ending="rollback" if ended == "bare" else "commit").run()
    world.work()

    steps, _, reason = ways[leave][ended != "well"].partition("!")
    assert way(hand) == (f"{steps} {rest}" if not reason else steps).strip()
    assert discards(world) == ({reason: 1} if reason else {})
    if ended == "well" and leave in (failed, broken):
        assert (CAUGHT if leave is failed else CUT_SHORT) in refusal(hand, PoolMisuse)
    else:
        assert hand.error is None
    assert error is None or not hasattr(error, "__notes__")

    hand = world.acquire().run()
    world.work()
    following = hand.value()
    conn = following.conn
    assert (following is entry) == (not reason)
    assert (conn.mode, conn.in_transaction, conn.busy) == ("default", False, False)
    if following.memory is not None:
        assert conn.session == {}, "the session of somebody else"
    assert_lawful(world.core, in_use=1)


@pytest.mark.parametrize(("policy", "resets"), [("rollback", 0), ("none", 0), ("full", 1), (nothing, 1)])
def test_resets_are_counted_and_rollbacks_are_none(policy: Any, resets: int) -> None:
    world = World(reset=policy)
    world.stock()
    assert world.core.snapshot("test", 0.0).resets == resets
    assert world.core.snapshot("test", 0.0).rollbacks == 0


@pytest.mark.parametrize("policy", ["full", nothing])
def test_reset_that_failed_is_not_counted_as_one(policy: Any) -> None:
    world = World(reset=policy)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.SEND_RESET if policy == "full" else Step.RESET)
    hand.throw(FakeOperationalError("connection lost"))
    hand.value()
    assert world.core.snapshot("test", 0.0).resets == 0


@pytest.mark.parametrize(
    ("policy", "warm"), [("rollback", True), ("none", True), ("full", False), (nothing, False)]
)
def test_warm_path_is_for_policies_that_have_nothing_to_do(policy: Any, warm: bool) -> None:
    world = World(reset=policy)
    assert world.flows.warm == warm


def test_connection_that_must_go_anyway_is_not_reset_first() -> None:
    world = World(reset=["unlock", nothing])
    one, other = world.lend(2)
    world.hold(world.flows.evict()).value()
    evicted = world.release(one)
    evicted.value()
    other.doomed, other.expires = None, world.now
    expired = world.release(other)
    expired.value()
    assert way(evicted) == way(expired) == ""
    assert discards(world) == {"evicted": 1, "lifetime": 1}


# -- the rollback and the driver's settings ----------------------------------------------------------


def test_settings_are_restored_when_the_transaction_has_ended() -> None:
    """Never before: to switch autocommit on would commit."""
    world = World()
    (entry,) = world.lend()
    both(entry.conn)
    hand = world.release(entry, ValueError())
    hand.to(Step.ROLLBACK)
    assert entry.conn.mode == "mine"
    assert hand.to(Step.RESTORE).args == (entry.conn, "default", 5.0)
    assert not entry.conn.in_transaction
    hand.value()


def test_settings_that_cannot_be_restored_close_the_connection_and_are_nobodys_error() -> None:
    world = World()
    (entry,) = world.lend()
    altered(entry.conn)
    hand = world.release(entry)
    hand.to(Step.RESTORE)
    hand.throw(FakeOperationalError("no answer"))
    hand.value()
    world.work()
    assert discards(world) == {"dead": 1}
    assert entry.conn.closed


@pytest.mark.parametrize(
    ("leave", "reason"), [(altered, "broken"), (dirty, "broken"), (broken, "broken"), (spent, "reset")]
)
def test_restore_that_did_not_help_closes_the_connection(leave: Deed, reason: str) -> None:
    world = World()
    (entry,) = world.lend()
    altered(entry.conn)
    hand = world.release(entry)
    hand.to(Step.RESTORE)
    entry.conn.mode = "default"
    leave(entry.conn)
    hand.resume()
    hand.value()
    assert discards(world) == {reason: 1}


def test_settings_of_the_hook_are_what_a_connection_comes_back_to() -> None:
    world = World(on_connect=lambda conn: setattr(conn, "mode", "autocommit"))
    (entry,) = world.lend()
    assert entry.baseline == "autocommit"
    entry.conn.mode = "default"
    hand = world.release(entry)
    hand.value()
    assert way(hand) == "restore"
    assert entry.conn.mode == "autocommit"


# -- one deadline for the whole way ------------------------------------------------------------------


def test_all_that_the_pool_does_on_the_way_back_shares_one_limit() -> None:
    limits: list[float | None] = []
    world = World(reset_timeout=4.0, reset=[nothing, "full"], on_connect=nothing, on_release=nothing)
    (entry,) = world.lend()
    both(entry.conn)
    hand = world.release(entry, ValueError())
    began = world.now
    for step in (Step.ROLLBACK, Step.RESTORE, Step.ON_RELEASE, Step.RESET, Step.SEND_RESET, Step.READ_RESET):
        call = hand.to(step)
        if step in (Step.ON_RELEASE, Step.RESET):
            limits.append(world.core.limited[entry.slot] - world.now)
        else:
            limits.append(call.args[-1])
        world.now += 0.5
    hand.to(Step.ON_CONNECT)
    assert world.core.limited[entry.slot] == began + 4.0
    assert limits == [4.0, 3.5, 3.0, 2.5, 2.0, 1.5]


def test_step_that_comes_too_late_has_no_time_left_but_no_less() -> None:
    world = World(reset_timeout=4.0, reset="full", on_connect=nothing)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.SEND_RESET)
    world.now += 9.0
    assert hand.to(Step.READ_RESET).args[-1] == 0.0
    hand.run()


def test_commit_is_the_borrowers_and_takes_nothing_of_the_limit() -> None:
    world = World(reset_timeout=4.0)
    (entry,) = world.lend()
    both(entry.conn)
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    world.now += 60.0
    assert hand.to(Step.RESTORE).args[-1] == 4.0
    hand.value()


def test_without_a_limit_every_step_is_unlimited() -> None:
    world = World(reset_timeout=None, reset=[nothing, "full"])
    (entry,) = world.lend()
    both(entry.conn)
    hand = world.release(entry, ValueError())
    assert hand.to(Step.ROLLBACK).args[-1] is None
    assert hand.to(Step.RESTORE).args[-1] is None
    hand.to(Step.RESET)
    assert not world.core.limited
    assert hand.to(Step.SEND_RESET).args[-1] is None
    hand.value()
    hand = world.acquire(None)
    assert hand.to(Step.READ_RESET).args[-1] is None
    hand.value()


# -- parts -------------------------------------------------------------------------------------------


def test_adapter_remembers_what_a_reset_brings_back_before_any_hook() -> None:
    world = World(reset=["unlock", nothing, "full"], on_connect=sets_tenant)
    dialling = opening(world)
    call = dialling.to(Step.REMEMBER)
    assert call.args[1:] == (("unlock", "full"), 10.0)
    dialling.value()
    assert dialling.steps == [
        "connect",
        "adopt",
        "idle_limit",
        "remember",
        "on_connect",
        "commit",
        "adopt",
        "watch",
    ]
    assert world.hands[0].value().memory == {}


def test_connection_that_cannot_be_remembered_fails_its_dial() -> None:
    world = World(reset="full")
    dialling = opening(world)
    dialling.to(Step.REMEMBER)
    dialling.throw(FakeOperationalError("no answer"))
    dialling.value()
    assert "FakeOperationalError: no answer" in refusal(world.hands[0], PoolUnavailable)
    world.work()
    assert not world.server.sessions


def test_policy_without_parts_asks_nothing_of_a_new_connection() -> None:
    world = World(reset=nothing)
    dialling = opening(world)
    dialling.value()
    assert dialling.steps == ["connect", "adopt", "idle_limit", "watch"]


def test_parts_get_what_the_adapter_gave() -> None:
    world = World(reset=["full", "unlock"])
    (entry,) = world.lend()
    entry.memory = {"role": "app"}
    call = world.release(entry).to(Step.SEND_RESET)
    assert call.args == (entry.conn, "default", {"role": "app"}, ("full", "unlock"), 5.0)


@pytest.mark.parametrize("step", [Step.SEND_RESET, Step.READ_RESET])
def test_parts_that_fail_close_the_connection_and_are_nobodys_error(step: Step) -> None:
    world = World(reset="full", on_connect=nothing)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(step)
    hand.throw(FakeOperationalError("no answer"))
    hand.value()
    world.work()
    assert discards(world) == {"dead": 1}
    assert entry.conn.closed


def test_parts_that_are_done_when_they_are_sent_leave_nothing_outstanding() -> None:
    world = World(reset="full")
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.SEND_RESET)
    hand.resume(None)
    hand.value()
    assert entry.pending is None
    assert entry.check_at > world.now
    again = world.acquire()
    assert again.value() is entry
    assert again.steps == []


@pytest.mark.parametrize(("leave", "reason"), [(spent, "reset"), (altered, "broken"), (dirty, "broken")])
def test_parts_after_which_the_connection_is_not_clean_close_it(leave: Deed, reason: str) -> None:
    """An adapter that would have to open a new connection closes this one."""
    world = World(reset="full")
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.SEND_RESET)
    leave(entry.conn)
    hand.resume(None)
    hand.value()
    world.work()
    assert discards(world) == {reason: 1}


def test_hook_of_new_connections_runs_again_after_parts_and_before_what_follows() -> None:
    done: list[str] = []
    world = World(
        reset=["full", lambda conn: done.append("callable"), "unlock"],
        on_connect=lambda conn: (sets_tenant(conn), done.append("on_connect")),
    )
    (entry,) = world.lend()
    done.clear()
    hand = world.release(entry)
    hand.value()
    part = "send_reset read_reset on_connect commit"
    assert way(hand) == f"{part} reset {part}"
    assert done == ["on_connect", "callable", "on_connect"]
    assert entry.pending is None
    assert entry.conn.session == {"tenant": "nobody"}


def unknown(world: World) -> str:
    """Have somebody come, and return what he is told."""
    hand = world.acquire().run()
    world.work()
    text = refusal(hand, PoolMisuse)
    world.work()
    return text


def test_parts_that_the_adapter_does_not_know_are_refused_at_once() -> None:
    with pytest.raises(PoolMisuse) as caught:
        World(reset=["discard_all", "unlock", "unlisten"])
    assert str(caught.value) == (
        "reset: the adapter for fake does not know discard_all, unlisten; it knows: full, unlock"
    )


def test_adapter_without_parts_says_what_else_there_is() -> None:
    adapter = FakeAdapter(FakeServer())
    adapter.parts = ()
    with pytest.raises(PoolMisuse, match="does not know full; it knows: none; give a callable instead"):
        World(adapter, reset="full")
    World(adapter, reset=nothing)


class AroundPlainly(FakeAdapter):
    """The fake driver's adapter, found by what a callable does; it knows no parts."""

    bounded = False
    server: FakeServer

    def __init__(self, connect: Callable[[], FakeConnection]) -> None:
        super().__init__(FakeServer())
        self.parts = ()

    @classmethod
    def around(cls, connect: Callable[[], FakeConnection]) -> AroundPlainly:
        return cls(connect)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> World:
    """Provide a pool around a callable, and with a policy that its driver does not know."""
    monkeypatch.setattr(connpool.adapter, "_DRIVERS", {"connpool": f"{__name__}:AroundPlainly"})
    server = FakeServer()
    opened: list[FakeConnection] = []

    def connect() -> FakeConnection:
        opened.append(server.accept())
        return opened[-1]

    world = World(connect, reset="full")
    world.server, world.opened = server, opened
    return world


def test_parts_that_the_driver_of_the_first_connection_does_not_know_are_refused(plain: World) -> None:
    text = unknown(plain)
    assert text == "reset: the adapter for fake does not know full; it knows: none; give a callable instead"
    assert [conn.closed for conn in plain.opened] == [True]
    assert not plain.core.slots
    plain.now += 1.0
    assert unknown(plain) == text


def test_parts_that_the_driver_of_the_first_exception_does_not_know_are_refused_when_it_connects(
    plain: World,
) -> None:
    plain.server.down(FakeOperationalError("connection refused"))
    hand = plain.acquire().run()
    plain.work()
    assert "connection refused" in refusal(hand, PoolUnavailable)
    assert plain.core.last_error is not None
    (origin,) = plain.core.last_error.__notes__
    assert origin.startswith("raised in ")
    plain.server.up()
    plain.now += 1.0
    assert "does not know full" in unknown(plain)
    assert [conn.closed for conn in plain.opened] == [True]


# -- the answer that the next borrower reads ---------------------------------------------------------


class Awaited(World):
    """A pool with connections to which a reset was sent; an answer that has come makes a socket readable."""

    def __init__(self, count: int = 1, **options: Any) -> None:
        super().__init__(**{"max_size": count, "reset": "full", **options})
        self.probed: list[FakeConnection] = []
        self.adapter.alive = self.alive
        self.entries: list[Entry[Any]] = self.stock(count)
        assert all(entry.pending is not None and entry.conn.busy for entry in self.entries)

    def alive(self, conn: FakeConnection) -> bool:
        self.probed.append(conn)
        return conn.alive and not conn.busy


def test_borrower_does_not_wait_for_the_answer_to_a_reset() -> None:
    world = World(reset="full")
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.value()
    assert hand.steps == ["send_reset"]
    assert list(world.core.idle) == [entry]
    assert entry.check_at == -inf, "the warm path must not take it"


def test_next_borrower_reads_the_answer_and_then_looks_at_the_socket() -> None:
    """The answer is as old as the connection is idle; its session may have ended since."""
    world = Awaited()
    (entry,) = world.entries
    hand = world.acquire()
    assert hand.value() is entry
    assert hand.steps == ["read_reset"], "and a look at the socket, without a round trip"
    assert world.probed == [entry.conn]
    assert (entry.pending, entry.conn.busy) == (None, False)


def test_session_that_ended_after_it_had_answered_is_not_lent() -> None:
    """The answer is as old as the connection is idle, however short that is."""
    world = Awaited(2)
    other, entry = world.entries
    hand = world.acquire()
    hand.to(Step.READ_RESET)
    entry.conn.busy = False
    entry.conn.kill()
    hand.resume()
    assert hand.value() is other
    assert discards(world) == {"dead": 1}


def test_answer_is_not_followed_by_a_probe_that_is_switched_off() -> None:
    world = Awaited(probe_after=None)
    (entry,) = world.entries
    hand = world.acquire()
    assert hand.value() is entry
    assert world.probed == []


def test_answer_is_read_once() -> None:
    world = Awaited()
    (entry,) = world.entries
    world.acquire().value()
    world.flows.warm = True
    world.core.give(entry)
    hand = world.acquire()
    assert hand.value() is entry
    assert hand.steps == []


def test_answer_is_read_before_probe_and_ping() -> None:
    world = Awaited(ping_after=30.0)
    (entry,) = world.entries
    world.now += 30.0
    hand = world.acquire()
    assert hand.value() is entry
    assert hand.steps == ["read_reset", "ping"]
    assert world.probed == [entry.conn]


def test_connection_is_validating_while_the_answer_is_read() -> None:
    world = Awaited()
    hand = world.acquire()
    hand.to(Step.READ_RESET)
    stats = world.core.snapshot("test", 0.0)
    assert (stats.validating, stats.in_use, stats.idle) == (1, 0, 0)
    hand.value()
    assert world.core.snapshot("test", 0.0).validating == 0


@pytest.mark.parametrize(
    ("timeout", "reset_timeout", "limit"),
    [
        (3.0, 5.0, 1.5),
        (9.0, 5.0, 4.5),
        (20.0, 5.0, 5.0),
        (None, 5.0, 5.0),
        (3.0, None, 1.5),
        (None, None, None),
        (0, 5.0, upkeep.ANSWER_GRACE),
        (0.05, 5.0, upkeep.ANSWER_GRACE),
        (0, 0.02, 0.02),
        (0, None, upkeep.ANSWER_GRACE),
    ],
)
def test_answer_may_take_its_own_limit_and_half_of_what_the_deadline_leaves_but_a_moment_at_least(
    timeout: float | None, reset_timeout: float | None, limit: float | None
) -> None:
    world = Awaited(reset_timeout=reset_timeout)
    hand = world.acquire(timeout)
    assert hand.to(Step.READ_RESET).args[-1] == limit
    hand.run()


@pytest.mark.parametrize(
    ("timeout", "error", "reason", "alarmed"),
    [
        (9.0, FakeOperationalError("connection lost"), "dead", True),
        (None, FakeOperationalError("connection lost"), "dead", True),
        (9.0, FakeError("DISCARD ALL cannot run"), "reset_failed", True),
        (2.0, TimeoutError("no answer"), "silent", True),
        (0.8, TimeoutError("no answer"), "unanswered", False),
        (0, TimeoutError("no answer"), "unanswered", False),
    ],
)
def test_connection_without_a_good_answer_is_discarded_and_the_caller_gets_another(
    timeout: float | None, error: Exception, reason: str, alarmed: bool
) -> None:
    world = Awaited(2)
    other, entry = world.entries
    hand = world.acquire(timeout)
    limit = hand.to(Step.READ_RESET).args[-1]
    if isinstance(error, TimeoutError):
        world.now += limit
        error = FakeOperationalError(*error.args)
    hand.throw(error)
    if reason == "silent":  # nor is the other one asked: it was not heard of since either
        hand.run()
        world.work()
        assert hand.value() is not other
    else:
        assert hand.value() is other
    assert discards(world) == {reason: 2 if reason == "silent" else 1}
    assert (world.core.alarmed_until > world.now) == alarmed, "a moment without an answer proves no death"
    world.work()
    assert entry.conn.closed
    assert not entry.slot.validating


def test_caller_whose_only_candidate_is_dead_is_served_by_a_dial() -> None:
    world = Awaited()
    (entry,) = world.entries
    entry.conn.kill()
    hand = world.acquire().run()
    world.work()
    assert hand.value() is not entry
    assert discards(world) == {"dead": 1}


def test_caller_without_time_fails_at_once_when_the_answer_does_not_come() -> None:
    world = Awaited()
    hand = world.acquire(0)
    world.now += hand.to(Step.READ_RESET).args[-1]
    hand.throw(FakeOperationalError("no answer"))
    assert "no connection at once" in refusal(hand, PoolTimeout)
    assert discards(world) == {"unanswered": 1}


def test_adapter_that_cannot_judge_a_bad_answer_does_not_stop_the_caller() -> None:
    def fault(exc: BaseException, *, dialling: bool) -> Fault:
        raise LookupError("no such code")

    world = Awaited(2)
    world.adapter.fault = fault
    other, entry = world.entries
    entry.conn.kill()
    assert world.acquire(9.0).value() is other
    assert discards(world) == {"reset_failed": 1}


@pytest.mark.parametrize(
    ("leave", "reason"), [(spent, "reset"), (altered, "broken"), (dirty, "broken"), (broken, "broken")]
)
def test_connection_that_is_not_clean_after_its_answer_is_discarded(leave: Deed, reason: str) -> None:
    world = Awaited(2)
    other, entry = world.entries
    hand = world.acquire()
    hand.to(Step.READ_RESET)
    entry.conn.busy = False
    leave(entry.conn)
    hand.resume()
    assert hand.value() is other
    assert discards(world) == {reason: 1}


def test_connection_that_is_handed_over_is_handed_over_with_its_answer_outstanding() -> None:
    world = World(max_size=1, reset="full")
    (entry,) = world.lend()
    hand = world.acquire().run()
    returning = world.release(entry)
    returning.value()
    assert returning.steps == ["send_reset"], "not the releaser's to wait for"
    assert entry.conn.busy
    assert hand.value() is entry
    assert hand.steps[-1] == "read_reset"
    assert not entry.conn.busy


def test_caller_whose_answer_is_bad_keeps_his_place_in_line() -> None:
    world = World(max_size=1, reset="full")
    (entry,) = world.lend()
    first, second = world.acquire().run(), world.acquire().run()
    world.release(entry).value()
    first.to(Step.READ_RESET)
    first.throw(FakeOperationalError("connection lost"))
    first.run()
    world.work()
    assert isinstance(first.value(), Entry)
    assert second.parked


def close(world: World) -> None:
    world.hold(world.flows.close(world.now + 5.0)).run()


def evict(world: World) -> None:
    world.hold(world.flows.evict()).run()


def prune(world: World) -> None:
    world.now += 600.0
    world.hold(world.flows.upkeep()).run()


def expire(world: World) -> None:
    world.now += 7200.0
    world.hold(world.flows.upkeep()).run()


def shrink(world: World) -> None:
    world.core.resize(1, 0)
    world.hold(world.flows.follow_up()).run()


@pytest.mark.parametrize(
    ("end", "reason"),
    [(close, "closed"), (evict, "evicted"), (prune, "idle"), (expire, "lifetime"), (shrink, "surplus")],
)
def test_answer_that_nobody_needs_any_more_is_not_read(end: Callable[[World], None], reason: str) -> None:
    world = Awaited(2)
    end(world)
    world.work()
    gone = [entry for entry in world.entries if entry.conn.closed]
    assert discards(world) == {reason: len(gone)}
    assert len(gone) == (1 if end is shrink else 2)
    assert not any("read_reset" in hand.steps for hand in world.hands)
    assert_lawful(world.core, in_use=0)


@pytest.mark.parametrize(("name", "value"), [("doomed", Reason.EVICTED), ("expires", 0.0)])
def test_candidate_that_is_over_is_not_lent_whatever_its_answer(name: str, value: Any) -> None:
    world = Awaited(2)
    other, entry = world.entries
    setattr(entry, name, value)
    assert world.acquire().value() is other
    world.work()
    assert entry.conn.closed


@pytest.mark.parametrize("struck", [True, False])
def test_connection_whose_answer_was_struck_while_it_was_read_is_not_lent_again(struck: bool) -> None:
    world = Awaited(2)
    other, entry = world.entries
    hand = world.acquire()
    hand.to(Step.READ_RESET)
    if struck:
        hand.throw(Cancelled())
    else:
        hand.close()
    world.work()
    assert discards(world) == {"broken": 1}
    assert entry.conn.closed
    assert not entry.slot.validating
    assert world.acquire().value() is other


# -- callables ---------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[FakeConnection], None]:
    def policy(conn: FakeConnection) -> None:
        raise error

    return policy


def test_callable_is_given_a_connection_that_is_at_rest_and_as_at_connect() -> None:
    seen: list[tuple[FakeConnection, bool, str]] = []
    world = World(reset=lambda conn: seen.append((conn, conn.in_transaction, conn.mode)))
    (entry,) = world.lend()
    both(entry.conn)
    world.release(entry, ValueError()).value()
    assert seen == [(entry.conn, False, "default")]


def test_transaction_that_a_callable_left_open_is_committed_and_no_rollback() -> None:
    world = World(reset=lambda conn: conn.execute("set role"))
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.value()
    assert way(hand) == "reset commit"
    assert world.core.totals.rollbacks == 0
    assert list(world.core.idle) == [entry]


def test_settings_that_a_callable_changed_are_restored() -> None:
    world = World(reset=altered)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.value()
    assert way(hand) == "reset restore"
    assert entry.conn.mode == "default"


@pytest.mark.parametrize(("leave", "state"), [(failed, "failed"), (broken, "broken"), (spent, "spent")])
def test_callable_that_spoilt_the_connection_is_named(leave: Deed, state: str) -> None:
    world = World(reset=leave)
    (entry,) = world.lend()
    hand = world.release(entry).run()
    assert refusal(hand, PoolMisuse) == f"reset left the connection {state} (pool 'test')"
    assert discards(world) == {"reset_failed": 1}


def test_error_of_a_callable_is_its_borrowers_once_and_its_connection_is_closed() -> None:
    error = LookupError("no such tenant")
    world = World(max_size=1, reset=raising(error))
    (entry,) = world.lend()
    waiting = world.acquire().run()
    hand = world.release(entry).run()
    assert hand.error is error
    assert discards(world) == {"reset_failed": 1}
    world.work()
    assert entry.conn.closed
    assert waiting.value() is not entry, "the next one is served, and not told"
    assert not world.reports


def test_error_of_a_callable_is_a_note_where_the_block_has_raised_its_own() -> None:
    world = World(reset=raising(LookupError("no such tenant")))
    (entry,) = world.lend()
    error = ValueError("the block's own")
    hand = world.release(entry, error)
    hand.value()
    assert error.__notes__ == ["and when the connection was given back: LookupError('no such tenant')"]
    assert discards(world) == {"reset_failed": 1}


def test_error_of_a_callable_is_a_note_where_the_commit_has_failed() -> None:
    world = World(reset=raising(LookupError("no such tenant")))
    (entry,) = world.lend()
    dirty(entry.conn)
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    hand.throw(error := FakeError("serialization failure"))
    hand.run()
    assert hand.error is error
    assert error.__notes__ == ["and when the connection was given back: LookupError('no such tenant')"]


def test_connection_that_died_under_a_callable_is_counted_and_nobodys_error() -> None:
    world = World(reset=lambda conn: conn.execute("select reset()"))
    (entry,) = world.lend()
    entry.conn.kill()
    hand = world.release(entry)
    hand.value()
    assert discards(world) == {"reset_failed": 1}
    assert world.core.alarmed_until > world.now


@pytest.mark.parametrize("raises", [True, False])
def test_callable_that_takes_too_long_is_cut_off_and_nobodys_error(raises: bool) -> None:
    world = World(reset=nothing, reset_timeout=4.0)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.RESET)
    assert world.watched == world.now + 4.0
    world.now += 4.0
    world.hold(world.flows.upkeep()).value()
    assert entry.conn.closed, "whatever it waits for, it waits no longer"
    hand.throw(FakeOperationalError("connection closed")) if raises else hand.resume()
    hand.value()
    world.work()
    assert discards(world) == {"reset_failed": 1}
    assert not world.core.slots
    assert not world.core.limited


def test_callable_that_returns_in_time_is_not_cut_off_later() -> None:
    world = World(reset=nothing, reset_timeout=4.0)
    (entry,) = world.lend()
    world.release(entry).value()
    assert not world.core.limited
    world.now += 5.0
    world.hold(world.flows.upkeep()).value()
    assert not entry.conn.closed


def test_what_follows_a_callable_that_failed_is_not_done() -> None:
    world = World(reset=[raising(LookupError()), "full"])
    (entry,) = world.lend()
    hand = world.release(entry).run()
    assert way(hand) == "reset"


@pytest.mark.parametrize("error", [Cancelled(), KeyboardInterrupt(), GeneratorExit()])
def test_callable_that_is_struck_takes_its_connection_with_it(error: BaseException) -> None:
    world = World(max_size=1, reset=nothing)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.RESET)
    if isinstance(error, GeneratorExit):
        hand.close()
    else:
        hand.throw(error)
    assert type(hand.error) is type(error)
    world.work()
    assert discards(world) == {"broken": 1}
    assert not world.core.limited
    assert not world.core.slots


# -- drivers that do not show transactions -----------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "good", "bad", "kept"),
    [
        ("rollback", "commit restore", "rollback restore", True),
        ("none", "commit", "", False),
        (nothing, "commit restore reset commit restore", "rollback restore reset commit restore", True),
        ("full", "commit send_reset", "send_reset", True),
    ],
)
def test_driver_that_shows_no_transactions_is_always_restored_but_never_twice_rolled_back(
    policy: Any, good: str, bad: str, kept: bool
) -> None:
    world = World(BlindAdapter(FakeServer()), reset=policy)
    entry, other = world.lend(2)
    hand = world.release(entry)
    hand.value()
    assert way(hand) == good
    assert list(world.core.idle) == [entry]
    hand = world.release(other, ValueError())
    hand.value()
    assert way(hand) == bad
    assert (other in world.core.idle) == kept
    assert world.core.totals.rollbacks == bad.split().count("rollback")


def test_without_a_policy_a_driver_that_shows_nothing_is_taken_at_its_users_word() -> None:
    world = World(BlindAdapter(FakeServer()), reset="none")
    (entry,) = world.lend()
    hand = world.release(entry, ending="rollback")
    hand.value()
    assert way(hand) == ""
    assert list(world.core.idle) == [entry]


def test_without_a_policy_the_failed_commit_of_such_a_driver_closes_the_connection() -> None:
    world = World(BlindAdapter(FakeServer()), reset="none")
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    hand.throw(error := FakeError("serialization failure"))
    hand.run()
    assert hand.error is error
    assert discards(world) == {"reset": 1}


# -- errors and ownership ----------------------------------------------------------------------------


def test_parked_caller_gets_the_place_of_a_connection_whose_reset_failed() -> None:
    world = World(max_size=1, reset="full", on_connect=nothing)
    (entry,) = world.lend()
    waiting = world.acquire()
    waiting.to(Park)
    hand = world.release(entry)
    hand.to(Step.READ_RESET)
    hand.throw(FakeOperationalError("no answer"))
    hand.value()
    world.work()
    assert waiting.value() is not entry


def test_policy_that_does_nothing_more_is_the_rollback() -> None:
    world = World(reset=[reset.rollback])
    assert world.flows.warm
    (entry,) = world.lend()
    assert drive(world.flows.release(entry, None, "commit")) is None
    assert list(world.core.idle) == [entry]
