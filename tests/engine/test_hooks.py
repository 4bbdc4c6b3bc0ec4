"""Functions of the user's: when they are called, for how long, and what becomes of their errors.

Whatever a hook does, its connection's place is conserved, nobody is told twice, and nobody else is told.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from engine.driver import NOW, STRIKES, Hand, World, assert_lawful, discards, drive, opening, refusal

from connpool.engine import upkeep
from connpool.engine.operations import Park, Report, Step, Watch
from connpool.engine.records import Entry
from connpool.errors import PoolMisuse, PoolTimeout, PoolUnavailable
from connpool.stats import Reason
from connpool.testing import Cancelled, FakeConnection, FakeError, FakeOperationalError

Hook = Callable[[FakeConnection], object]

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")


def nothing(conn: FakeConnection) -> None:
    """Do nothing."""


class Once:
    """A hook that raises when it is called for the first time."""

    def __init__(self, error: BaseException) -> None:
        self.errors = [error]

    def __call__(self, conn: FakeConnection) -> None:
        if self.errors:
            raise self.errors.pop()


def always(error: BaseException) -> Hook:
    def hook(conn: FakeConnection) -> None:
        raise error

    return hook


def cut(world: World) -> None:
    """Let the housekeeper cut what has overstayed."""
    world.hold(world.flows.upkeep()).value()


# -- the order of everything -------------------------------------------------------------------------


def test_everything_happens_in_its_order() -> None:
    world = World(
        reset=["unlock", nothing, "full"],
        on_connect=nothing,
        on_acquire=nothing,
        on_release=nothing,
        on_close=nothing,
    )
    dialling = opening(world)
    dialling.value()
    acquiring = world.hands[0]
    entry = acquiring.value()
    entry.conn.execute("write")
    entry.conn.mode = "mine"
    releasing = world.release(entry, ValueError())
    releasing.value()
    world.hold(world.flows.evict()).run()
    closing = world.hold(world.jobs.popleft()).run()
    assert [step for step in dialling.steps if step != "watch"] == [
        "connect",
        "adopt",
        "idle_limit",
        "remember",
        "on_connect",
        "adopt",
    ]
    assert [step for step in acquiring.steps if step != "watch"] == ["start", "park", "on_acquire"]
    assert [step for step in releasing.steps if step != "watch"] == [
        "rollback",
        "restore",
        "on_release",
        "send_reset",
        "read_reset",
        "on_connect",
        "reset",
        "send_reset",
        "read_reset",
        "on_connect",
    ]
    assert [step for step in closing.steps if step != "watch"] == ["on_close", "close"]


def test_block_is_committed_before_its_connection_is_given_to_a_hook() -> None:
    world = World(on_release=nothing)
    (entry,) = world.lend()
    entry.conn.execute("write")
    hand = world.release(entry)
    hand.to(Step.ON_RELEASE)
    assert hand.steps[0] == "commit"
    assert not entry.conn.in_transaction
    hand.value()


def test_answer_and_ping_come_before_the_hook_of_the_borrower() -> None:
    world = World(reset="full", on_acquire=nothing)
    (entry,) = world.stock()
    world.now += 30.0
    hand = world.acquire()
    assert hand.value() is entry
    assert hand.steps == ["read_reset", "ping", "watch", "on_acquire"]


def test_hook_of_a_release_comes_before_parts_also_where_they_come_first() -> None:
    """It is given a connection at rest, as at connect; the parts then undo what it did to the session."""
    seen: list[tuple[bool, str]] = []
    world = World(reset="full", on_release=lambda conn: seen.append((conn.in_transaction, conn.mode)))
    (entry,) = world.lend()
    entry.conn.execute("write")
    entry.conn.mode = "mine"
    hand = world.release(entry, ValueError())
    hand.value()
    assert [step for step in hand.steps if step != "watch"] == [
        "rollback",
        "restore",
        "on_release",
        "send_reset",
    ]
    assert seen == [(False, "default")]
    assert entry.pending is not None


@pytest.mark.parametrize("hook", ["on_acquire", "on_release"])
def test_warm_path_is_not_for_pools_with_such_a_hook(hook: str) -> None:
    assert not World(**{hook: nothing}).flows.warm
    assert World(on_connect=nothing, on_close=nothing).flows.warm


def test_hook_of_the_borrower_runs_each_time_also_on_what_was_opened_or_used_just_now() -> None:
    seen: list[FakeConnection] = []
    world = World(max_size=1, on_acquire=seen.append)
    (entry,) = world.lend()
    assert seen == [entry.conn]
    world.release(entry).value()
    assert entry.check_at < NOW, "the warm path must not take it"
    assert world.lend() == [entry]
    waiting = world.acquire().run()
    world.release(entry).value()
    waiting.value()
    assert seen == [entry.conn] * 3


def test_hook_of_a_release_gets_only_what_is_fit_for_use() -> None:
    seen: list[FakeConnection] = []
    world = World(max_size=3, on_release=seen.append)
    broken, spent, whole = world.lend(3)
    broken.conn.busy = True
    world.release(broken, ValueError()).value()
    spent.conn.close()
    world.release(spent).value()
    world.release(whole).value()
    assert seen == [whole.conn]


def test_connection_that_cannot_be_rolled_back_never_reaches_the_hook() -> None:
    seen: list[FakeConnection] = []
    world = World(on_release=seen.append)
    (entry,) = world.lend()
    entry.conn.execute("write")
    entry.conn.kill()
    world.release(entry, ValueError()).value()
    assert seen == []
    assert discards(world) == {"dead": 1}


def test_hook_of_a_release_runs_where_nothing_is_reset() -> None:
    seen: list[FakeConnection] = []
    world = World(reset="none", on_release=seen.append)
    (entry,) = world.lend()
    world.release(entry).value()
    assert seen == [entry.conn]
    assert list(world.core.idle) == [entry]


# -- contexts ----------------------------------------------------------------------------------------


def test_hooks_of_the_borrower_see_his_context_and_those_of_the_connection_see_none() -> None:
    seen: dict[str, str] = {}

    def look(name: str, conn: FakeConnection) -> None:
        seen[name] = TENANT.get()

    hooks = {name: partial(look, name) for name in ("on_connect", "on_acquire", "on_release", "on_close")}
    world = World(reset=["unlock", partial(look, "reset")], **hooks)
    token = TENANT.set("somebody")
    try:
        world.stock()
        seen_before = dict(seen)
        world.hold(world.flows.evict()).value()
        world.work()
    finally:
        TENANT.reset(token)
    assert seen_before == {
        "on_connect": "nobody",
        "on_acquire": "somebody",
        "on_release": "somebody",
        "reset": "somebody",
    }
    assert seen["on_close"] == "nobody"


# -- what a hook leaves behind -----------------------------------------------------------------------


def held(world: World, hook: str) -> tuple[Hand[Any], Entry[Any]]:
    """Hold the flow that is about to call a hook, and its entry."""
    (entry,) = world.stock() if hook == "on_acquire" else world.lend()
    if hook == "on_acquire":
        return world.acquire(), entry
    return world.release(entry), entry


AROUND_A_LOAN = ["on_acquire", "on_release"]


@pytest.mark.parametrize("hook", AROUND_A_LOAN)
def test_transaction_that_a_hook_leaves_open_is_committed(hook: str) -> None:
    world = World(**{hook: lambda conn: conn.execute("set tenant somebody")})
    hand, entry = held(world, hook)
    hand.value()
    assert [step for step in hand.steps if step != "watch"] == [hook, "commit"]
    assert entry.conn.session == {"tenant": "somebody"}
    assert not entry.conn.in_transaction


def failed(conn: FakeConnection) -> None:
    with pytest.raises(FakeError):
        conn.execute("fail")


def broken(conn: FakeConnection) -> None:
    conn.busy = True


def spent(conn: FakeConnection) -> None:
    conn.close()


@pytest.mark.parametrize("leave", [failed, broken, spent])
@pytest.mark.parametrize("hook", AROUND_A_LOAN)
def test_hook_that_spoils_the_connection_is_named_and_the_connection_closed(hook: str, leave: Hook) -> None:
    world = World(max_size=1, **{hook: nothing})
    hand, entry = held(world, hook)
    hand.to(Step(hook))
    leave(entry.conn)
    hand.resume()
    assert refusal(hand, PoolMisuse) == f"{hook} left the connection {leave.__name__} (pool 'test')"
    world.work()
    assert discards(world) == {"hook": 1}
    assert not world.core.slots


@pytest.mark.parametrize("hook", AROUND_A_LOAN)
def test_transaction_of_a_hook_that_cannot_be_committed_is_an_error_of_the_hook(hook: str) -> None:
    world = World(**{hook: nothing})
    hand, entry = held(world, hook)
    hand.to(Step(hook))
    entry.conn.execute("write")
    hand.resume()
    hand.to(Step.COMMIT)
    hand.throw(error := FakeError("deferred constraint"))
    hand.run()
    assert hand.error is error
    assert discards(world) == {"hook": 1}


@pytest.mark.parametrize("hook", AROUND_A_LOAN)
def test_commit_that_did_not_help_is_an_error_of_the_hook(hook: str) -> None:
    world = World(**{hook: nothing})
    hand, entry = held(world, hook)
    hand.to(Step(hook))
    entry.conn.execute("write")
    hand.resume()
    hand.to(Step.COMMIT)
    hand.resume()
    assert refusal(hand, PoolMisuse) == f"{hook} left the connection dirty (pool 'test')"


def test_settings_that_the_hook_of_the_borrower_changed_are_his_until_he_is_done() -> None:
    world = World(on_acquire=lambda conn: setattr(conn, "mode", "read only"))
    (entry,) = world.lend()
    assert entry.conn.mode == "read only"
    hand = world.release(entry)
    hand.value()
    assert hand.steps == ["restore"]
    assert entry.conn.mode == "default"


@pytest.mark.parametrize(("policy", "steps"), [("rollback", ["restore"]), ("full", ["send_reset"])])
def test_settings_that_the_hook_of_a_release_changed_are_restored(policy: str, steps: list[str]) -> None:
    world = World(reset=policy, on_release=lambda conn: setattr(conn, "mode", "autocommit"))
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.value()
    assert hand.steps == ["watch", "on_release", *steps]
    assert entry.conn.mode == "default"
    assert world.lend() == [entry]


def test_settings_that_the_hook_of_a_release_changed_cannot_be_restored_where_nothing_is() -> None:
    world = World(reset="none", on_release=lambda conn: setattr(conn, "mode", "autocommit"))
    (entry,) = world.lend()
    world.release(entry).value()
    assert discards(world) == {"reset": 1}


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [LookupError("no such tenant"), FakeOperationalError("connection lost")])
@pytest.mark.parametrize("hook", AROUND_A_LOAN)
def test_error_of_a_hook_is_its_borrowers_once_and_its_connection_is_replaced(
    hook: str, error: Exception
) -> None:
    world = World(max_size=1, **{hook: Once(error)})
    if hook == "on_acquire":
        hand = world.acquire().run()
        waiting = world.acquire().run()
        world.work()
    else:
        (entry,) = world.lend()
        waiting = world.acquire().run()
        hand = world.release(entry)
    hand.run()
    assert hand.error is error
    assert waiting.parked
    assert discards(world) == {"hook": 1}
    world.work()
    served = waiting.value()
    assert served.conn in world.server.sessions, "the next one is served, and not told"
    assert not world.reports
    assert_lawful(world.core, in_use=1)


def test_hook_that_refuses_every_connection_costs_no_place() -> None:
    world = World(max_size=2, on_acquire=always(LookupError("no such tenant")))
    for _ in range(5):
        hand = world.acquire().run()
        world.work()
        hand.run()
        assert isinstance(hand.error, LookupError)
        world.work()
        assert_lawful(world.core, in_use=0)
    assert world.core.totals.discards["hook"] == 5


def test_error_of_the_hook_of_a_release_is_a_note_where_the_block_has_raised_its_own() -> None:
    world = World(on_release=always(LookupError("no such tenant")))
    (entry,) = world.lend()
    error = KeyboardInterrupt()
    world.release(entry, error).value()
    assert error.__notes__ == ["and when the connection was given back: LookupError('no such tenant')"]
    assert discards(world) == {"hook": 1}


def test_error_of_the_hook_of_a_release_is_a_note_where_the_block_was_refused() -> None:
    world = World(on_release=always(LookupError("no such tenant")))
    (entry,) = world.lend()
    failed(entry.conn)
    hand = world.release(entry)
    assert "a statement's error was caught inside it" in refusal(hand, PoolMisuse)
    assert hand.error is not None
    assert hand.error.__notes__ == ["and when the connection was given back: LookupError('no such tenant')"]


def test_error_of_the_hook_of_a_release_reaches_who_gives_back_without_a_block() -> None:
    world = World(on_release=always(error := LookupError("no such tenant")))
    (entry,) = world.lend()
    hand = world.release(entry, ending="rollback").run()
    assert hand.error is error


def test_error_of_the_hook_of_new_connections_after_a_reset_is_the_borrowers() -> None:
    world = World(reset="full", on_connect=nothing)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.ON_CONNECT)
    hand.throw(error := LookupError("no such role"))
    hand.run()
    assert hand.error is error
    assert discards(world) == {"hook": 1}


def test_hook_that_fails_is_followed_by_nothing() -> None:
    world = World(reset=[nothing, "full"], on_release=always(LookupError()))
    (entry,) = world.lend()
    hand = world.release(entry).run()
    assert [step for step in hand.steps if step not in ("watch", "start")] == ["on_release"]
    assert world.core.totals.resets == 0


@pytest.mark.parametrize("strike", [*STRIKES, "interrupted"])
@pytest.mark.parametrize("hook", AROUND_A_LOAN)
def test_connection_that_was_struck_in_a_hook_is_closed_and_its_limit_forgotten(
    hook: str, strike: str
) -> None:
    world = World(max_size=1, **{hook: nothing})
    hand, entry = held(world, hook)
    hand.to(Step(hook))
    assert world.core.limited
    error = KeyboardInterrupt() if strike == "interrupted" else STRIKES[strike]()
    if isinstance(error, GeneratorExit):
        hand.close()
    else:
        hand.throw(error)
    hand.run()
    assert type(hand.error) is type(error)
    assert not world.core.limited
    world.work()
    assert discards(world) == {"hook" if isinstance(error, Exception) else "broken": 1}
    assert entry.conn.closed
    world.release(world.lend()[0]).run()
    assert_lawful(world.core, in_use=0)


@pytest.mark.parametrize("hook", AROUND_A_LOAN)
def test_connection_that_was_struck_before_its_hook_is_closed_and_its_limit_forgotten(hook: str) -> None:
    """Between the limit and the hook, while the housekeeper is told."""
    world = World(max_size=1, **{hook: nothing})
    hand, entry = held(world, hook)
    hand.to(Watch)
    assert world.core.limited
    hand.throw(Cancelled())
    assert not world.core.limited
    world.work()
    assert entry.conn.closed
    assert not world.core.slots


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("overdue", [False, True], ids=["in time", "cut"])
@pytest.mark.parametrize("hook", [*AROUND_A_LOAN, "reset", "on_connect"])
def test_error_of_a_hook_keeps_nothing_alive_but_its_connection(hook: str, overdue: bool) -> None:
    """The borrower may keep his error for long: neither a place nor an entry may wait for that."""
    armed = False

    def fail(conn: FakeConnection) -> None:
        if armed:
            if overdue:
                world.now += 10.0
                drive(world.flows.upkeep())
            raise FakeError("no such tenant")

    options = {"reset": ["unlock", fail]} if hook == "reset" else {"reset": "full", hook: fail}
    world = World(max_size=1, **options)
    (entry,) = world.stock() if hook == "on_acquire" else world.lend()
    armed = True
    watched = weakref.ref(entry)
    if hook == "on_acquire":
        world.core.idle.clear()
        flow: Any = world.flows.acquire(entry, 5.0, world.now + 5.0, world.flows.waiter(None))
    else:
        flow = world.flows.release(entry, None, "commit")
    world.hands.clear()
    del entry
    error = drive(flow)
    del flow
    if sys.version_info < (3, 12):  # since then a traceback keeps its frames' callers, too
        assert watched() is None
    if hook == "reset" and overdue:
        assert error is None, "counted, and nobody's"
    else:
        assert isinstance(error, PoolTimeout if overdue else FakeError)
        assert error.__traceback__ is not None
    assert drive(world.flows.follow_up()) is None
    assert not world.core.lost
    assert not world.core.slots
    ended = weakref.ref(error) if error is not None else lambda: None
    del error
    if sys.version_info >= (3, 12):
        gc.collect()
    assert ended() is None, "its traceback and a frame keep each other alive"


# -- time limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "limit"),
    [(5.0, 5.0), (0, upkeep.ANSWER_GRACE), (0.05, upkeep.ANSWER_GRACE), (None, None)],
)
def test_hook_of_the_borrower_has_what_his_deadline_leaves_but_a_moment_at_least(
    timeout: float | None, limit: float | None
) -> None:
    world = World(on_acquire=nothing)
    (entry,) = world.stock()
    hand = world.acquire(timeout)
    hand.to(Step.ON_ACQUIRE)
    assert world.core.limited == ({} if limit is None else {entry.slot: world.now + limit})
    assert limit is None or world.watched == world.now + limit
    assert hand.value() is entry
    assert not world.core.limited


def test_hook_of_the_borrower_shares_his_deadline_with_all_that_came_before() -> None:
    world = World(max_size=1, on_acquire=nothing)
    (entry,) = world.lend()
    hand = world.acquire(5.0).run()
    world.now += 4.0
    world.release(entry).value()
    hand.to(Step.ON_ACQUIRE)
    assert world.core.limited == {entry.slot: world.now + 1.0}
    hand.value()


@pytest.mark.parametrize("reset_timeout", [4.0, None])
def test_hook_of_a_release_has_the_time_of_a_return(reset_timeout: float | None) -> None:
    world = World(on_release=nothing, reset_timeout=reset_timeout)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.ON_RELEASE)
    assert world.core.limited == ({} if reset_timeout is None else {entry.slot: world.now + reset_timeout})
    hand.value()


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize(("hook", "seconds"), [("on_acquire", 5.0), ("on_release", 4.0)])
def test_hook_that_takes_too_long_is_cut_off_and_its_borrower_told(
    hook: str, seconds: float, raises: bool
) -> None:
    world = World(max_size=1, reset_timeout=4.0, **{hook: nothing})
    hand, entry = held(world, hook)
    hand.to(Step(hook))
    world.now += seconds - 0.1
    cut(world)
    assert not entry.conn.closed
    world.now += 0.1
    cut(world)
    assert entry.conn.closed, "if it waits for the server, it waits no longer"
    cause = FakeOperationalError("connection closed") if raises else None
    hand.throw(cause) if cause else hand.resume()
    assert refusal(hand, PoolTimeout) == (
        f"{hook} did not return in time: its connection was cut (pool 'test')"
    )
    assert hand.error is not None
    if raises:
        assert hand.error.__cause__ is cause
    else:
        assert isinstance(hand.error.__cause__, PoolMisuse), "what it left behind: a closed connection"
    world.work()
    assert discards(world) == {"hook": 1}
    assert not world.core.slots


@pytest.mark.parametrize("hook", AROUND_A_LOAN)
def test_hook_that_returns_while_it_is_being_cut_off_has_lost(hook: str) -> None:
    """The housekeeper has found it, and will close its connection in a moment: nobody may have it then."""
    world = World(max_size=1, **{hook: nothing})
    hand, entry = held(world, hook)
    hand.to(Step(hook))
    world.now += 5.0
    assert world.core.overstayed(world.now) == [entry.conn]
    hand.resume()
    assert f"{hook} did not return in time" in refusal(hand, PoolTimeout)
    assert discards(world) == {"hook": 1}


def test_hook_that_is_cut_off_is_a_note_where_the_block_has_raised_its_own() -> None:
    world = World(on_release=nothing, reset_timeout=4.0)
    (entry,) = world.lend()
    hand = world.release(entry, error := ValueError("the block's own"))
    hand.to(Step.ON_RELEASE)
    world.now += 4.0
    cut(world)
    hand.value()
    assert "on_release did not return in time" in error.__notes__[0]


def test_commit_of_what_a_hook_left_open_is_part_of_its_time() -> None:
    world = World(on_release=lambda conn: conn.execute("set a 1"), reset_timeout=4.0)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.COMMIT)
    world.now += 4.0
    cut(world)
    hand.throw(FakeOperationalError("connection closed"))
    assert "on_release did not return in time" in refusal(hand, PoolTimeout)


def test_hook_of_new_connections_after_a_reset_has_the_time_of_a_return() -> None:
    world = World(reset="full", on_connect=nothing, reset_timeout=4.0)
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.to(Step.ON_CONNECT)
    world.now += 4.0
    cut(world)
    hand.throw(FakeOperationalError("connection closed"))
    assert "on_connect did not return in time" in refusal(hand, PoolTimeout)
    assert discards(world) == {"hook": 1}


def test_hook_of_a_new_connection_has_the_time_of_its_dial_and_is_not_cut() -> None:
    world = World(on_connect=nothing)
    dialling = opening(world)
    dialling.to(Step.ON_CONNECT)
    assert not world.core.limited
    dialling.value()


def test_hook_that_has_returned_is_not_cut_off_later() -> None:
    world = World(on_acquire=nothing)
    (entry,) = world.lend()
    world.now += 10.0
    cut(world)
    assert not entry.conn.closed


def test_only_the_hook_that_overstays_is_cut_off() -> None:
    world = World(max_size=2, on_acquire=nothing)
    one, other = world.stock(2)
    slow, quick = world.acquire(9.0), world.acquire(5.0)
    slow.to(Step.ON_ACQUIRE)
    quick.to(Step.ON_ACQUIRE)
    world.now += 5.0
    cut(world)
    assert (other.conn.closed, one.conn.closed) == (False, True)
    assert slow.value() is other


def test_connection_that_a_hook_has_detached_is_gone_and_nobody_is_told_of_a_limit() -> None:
    world = World(max_size=1, on_release=lambda conn: detach(conn) or None)
    detach = world.core.detach
    (entry,) = world.lend()
    hand = world.release(entry)
    hand.value()
    assert discards(world) == {"detached": 1}
    assert not entry.conn.closed
    assert not world.core.slots


def test_upkeep_is_asked_for_when_a_hook_must_be_cut() -> None:
    world = World(max_size=2, on_acquire=nothing, idle_timeout=None, max_lifetime=None)
    world.stock()
    hand = world.acquire(5.0)
    hand.to(Step.ON_ACQUIRE)
    assert world.core.due(world.now) == world.now + 5.0
    world.core.closed = True
    assert world.core.due(world.now) == world.now + 5.0, "also in a pool that is closing"
    world.core.closed = False
    hand.value()
    assert world.core.due(world.now) is None


# -- on_connect --------------------------------------------------------------------------------------


def test_driver_is_asked_again_what_the_settings_are_once_the_hook_has_set_them() -> None:
    world = World(on_connect=lambda conn: setattr(conn, "mode", "autocommit"))
    (entry,) = world.lend()
    assert entry.baseline == "autocommit"
    hand = world.release(entry)
    hand.value()
    assert hand.steps == []


def test_driver_that_refuses_what_the_hook_has_made_of_a_connection_fails_the_dial() -> None:
    world = World(on_connect=nothing)
    dialling = opening(world)
    dialling.to(Step.ON_CONNECT)
    dialling.resume()
    dialling.to(Step.ADOPT)
    dialling.throw(PoolMisuse("a connection in two-phase commit cannot be pooled"))
    dialling.run()
    assert "cannot be pooled" in refusal(world.hands[0], PoolMisuse)
    world.work()
    assert not world.server.sessions


@pytest.mark.parametrize("strike", ["cancelled", "closed"])
def test_dial_that_was_struck_in_its_hook_is_closed(strike: str) -> None:
    world = World(on_connect=nothing)
    dialling = opening(world)
    dialling.to(Step.ON_CONNECT)
    (conn,) = world.server.sessions
    if strike == "closed":
        dialling.close()
    else:
        dialling.throw(STRIKES[strike]())
    world.work()
    assert conn.closed
    assert not world.core.opening


# -- on_close ----------------------------------------------------------------------------------------


def discarded(world: World) -> tuple[Hand[None], FakeConnection]:
    """Discard a connection, and hold the flow that closes it."""
    (entry,) = world.lend()
    conn: FakeConnection = entry.conn
    world.core.retire(entry, Reason.EVICTED, world.now)
    world.hold(world.flows.follow_up()).run()
    return world.hold(world.jobs.popleft()), conn


def test_hook_is_given_each_connection_before_it_is_closed() -> None:
    seen: list[bool] = []
    world = World(on_close=lambda conn: seen.append(conn.closed))
    hand, conn = discarded(world)
    hand.value()
    assert hand.steps[:2] == ["on_close", "close"]
    assert seen == [False]
    assert conn.closed


def test_hook_is_given_dead_connections_too() -> None:
    seen: list[FakeConnection] = []
    world = World(on_close=seen.append)
    (entry,) = world.lend()
    entry.conn.kill()
    entry.conn.busy = True
    world.release(entry, ValueError()).value()
    world.work()
    assert seen == [entry.conn]


def test_hook_never_hears_of_a_connection_that_was_never_ready() -> None:
    seen: list[FakeConnection] = []
    world = World(on_connect=always(LookupError("no such role")), on_close=seen.append)
    hand = world.acquire().run()
    world.work()
    refusal(hand, PoolUnavailable)
    world.work()
    assert seen == []
    assert not world.server.sessions


def test_error_of_the_hook_is_reported_with_its_origin_and_the_connection_closed() -> None:
    hook = always(error := LookupError("no such listener"))
    world = World(max_size=1, on_close=hook)
    hand, conn = discarded(world)
    hand.value()
    assert hand.steps[:3] == ["on_close", "report", "close"]
    assert world.reports == [(error, hook)]
    assert conn.closed
    assert not world.core.slots
    world.lend()


def test_error_of_the_hook_does_not_break_the_closing_of_a_pool() -> None:
    world = World(max_size=3, on_close=always(LookupError("no such listener")))
    world.stock(3)
    world.helpers = False
    hand = world.hold(world.flows.close(world.now + 5.0))
    hand.value()
    assert len(world.reports) == 3
    assert not world.server.sessions
    assert not world.core.slots


@pytest.mark.parametrize("strike", ["cancelled", "closed", "interrupted"])
@pytest.mark.parametrize("operation", [Step.ON_CLOSE, Report])
def test_closing_that_is_struck_in_its_hook_aborts_and_frees_the_place(operation: Any, strike: str) -> None:
    world = World(on_close=always(LookupError()))
    hand, conn = discarded(world)
    hand.to(operation)
    error = KeyboardInterrupt() if strike == "interrupted" else STRIKES[strike]()
    if isinstance(error, GeneratorExit):
        hand.close()
    else:
        hand.throw(error)
    assert conn.closed
    assert not world.core.slots
    assert type(hand.error) is type(error)


def test_report_that_fails_does_not_keep_a_connection_open() -> None:
    world = World(on_close=always(LookupError()))
    hand, conn = discarded(world)
    hand.to(Report)
    hand.throw(OSError("standard error is closed"))
    hand.value()
    assert conn.closed
    assert not world.core.slots


def test_place_of_a_hook_that_never_returns_is_free_after_the_grace() -> None:
    world = World(max_size=1, on_close=nothing)
    hand, conn = discarded(world)
    hand.to(Step.ON_CLOSE)
    waiting = world.acquire().run()
    waiting.to(Park)
    world.now += upkeep.CLOSE_GRACE
    world.hold(world.flows.upkeep()).run()
    world.work()
    entry = waiting.value()
    hand.value()
    assert conn.closed, "late, but not never"
    assert not entry.conn.closed
    assert len(world.core.slots) == 1


def test_detached_connection_is_not_closed_and_no_hook_is_told() -> None:
    seen: list[FakeConnection] = []
    world = World(on_close=seen.append)
    (entry,) = world.lend()
    world.core.detach(entry.conn)
    world.release(entry).value()
    world.work()
    assert seen == []
    assert not entry.conn.closed
