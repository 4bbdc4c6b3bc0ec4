"""Behind a proxy that shares sessions: the pool says nothing to them, and knows what strays there."""

from __future__ import annotations

from typing import Any

import pytest
from engine.driver import World, discards

from connpool.adapter import Fault
from connpool.engine.operations import Step
from connpool.testing import FakeAdapter, FakeConnection, FakeOperationalError, FakeServer

# -- what is not said --------------------------------------------------------------------------------


def behind(proxy: str, **options: Any) -> World:
    return World(behind=proxy, ping_after=None, **options)


def test_nothing_is_asked_of_a_new_session() -> None:
    world = behind("pgbouncer", idle_timeout=None)
    world.server.idle_limit = 100.0
    (entry,) = world.stock()
    steps = {step for hand in world.hands for step in hand.steps}
    assert "connect" in steps
    assert not steps & {Step.IDLE_LIMIT.value, Step.WRITABLE.value, Step.PING.value}
    assert entry.idle_limit > 1e9
    assert world.told == []


def test_limit_of_idleness_is_the_proxys_own() -> None:
    world = behind("rds-proxy", idle_timeout=None, max_lifetime=None)
    (entry,) = world.stock()
    assert entry.idle_limit == 0.8 * 1800.0
    assert "their server ends them after 1800 s" in world.told[0]
    world = behind("rds-proxy")
    world.stock()
    assert world.told == [], "idle_timeout is shorter anyway"


def test_error_of_a_server_that_takes_no_writes_leads_to_no_question() -> None:
    world = behind("proxysql")
    world.adapter.fault = lambda exc, *, dialling: Fault.DEMOTED
    (entry,) = world.lend()
    hand = world.release(entry, FakeOperationalError("read only"))
    hand.value()
    assert Step.WRITABLE.value not in hand.steps
    assert discards(world) == {}


# -- what is prepared --------------------------------------------------------------------------------


class Preparing(FakeAdapter):
    """An adapter of a driver that prepares statements: that is its mode."""

    def unprepare(self, conn: FakeConnection) -> None:
        conn.mode = "unprepared"


def test_drivers_prepare_nothing_and_that_is_what_they_come_back_to() -> None:
    world = World(Preparing(FakeServer()), behind="pgbouncer", ping_after=None)
    (entry,) = world.lend()
    assert (entry.conn.mode, entry.baseline) == ("unprepared", "unprepared")
    world = World(Preparing(FakeServer()))
    (entry,) = world.lend()
    assert entry.conn.mode != "unprepared"


# -- what strays -------------------------------------------------------------------------------------


class Stray(FakeOperationalError):
    def __init__(self, name: str, code: object) -> None:
        super().__init__("prepared statement _pg3_0")
        setattr(self, name, code)


@pytest.mark.parametrize(
    ("name", "code", "meaning"),
    [
        ("sqlstate", "26000", "is not known to the session that it met"),
        ("pgcode", "42P05", "has a name that the session it met knows already"),
    ],
)
def test_statement_that_strayed_is_told_once_with_what_to_do(name: str, code: str, meaning: str) -> None:
    world = World()
    first, second = Stray(name, code), Stray(name, code)
    for error in (first, second):
        (entry,) = world.lend()
        world.release(entry, error).value()
    (text,) = world.told
    assert meaning in text
    assert f"SQLSTATE {code}" in text
    assert "say behind='pgbouncer'" in text
    (event,) = [event for event in world.events if event.name == "stray_statement"]
    assert event.fields["sqlstate"] == code
    assert any("behind='pgbouncer'" in note for note in first.__notes__)
    assert not hasattr(second, "__notes__")


def test_statement_that_strayed_although_the_proxy_is_known_is_told_otherwise() -> None:
    world = behind("pgbouncer")
    (entry,) = world.lend()
    world.release(entry, Stray("sqlstate", "26000")).value()
    (text,) = world.told
    assert "behind PgBouncer nothing can be prepared" in text


@pytest.mark.parametrize(
    "error", [FakeOperationalError("no"), Stray("sqlstate", "42601"), Stray("pgcode", 5)]
)
def test_no_other_error_is_taken_for_one(error: Exception) -> None:
    world = World()
    (entry,) = world.lend()
    world.release(entry, error).value()
    assert world.told == []
