"""Turns: what frameworks borrow by, again and again, without a commit."""

import gc
import logging
import threading

import pytest
from servers import wait_until

from connpool import ConnectionPool, PoolMisuse, Verdict
from connpool.events import Event
from connpool.testing import FakeAdapter, FakeServer


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def pool(server):
    with ConnectionPool(FakeAdapter(server), max_size=1) as pool:
        yield pool


def test_turns_follow_each_other_on_one_lease(pool, server):
    lease = pool.turns()
    for _ in range(3):
        assert not lease.lasts
        with lease as conn:
            assert lease.lasts
            assert lease.verdict() is Verdict.CLEAN
            conn.execute("write")
            assert lease.verdict() is Verdict.DIRTY
            assert lease.sees_transactions()
    assert server.statements == ["write", "rollback"] * 3
    assert pool.stats().opened == 1


def test_two_turns_at_a_time_are_refused(pool):
    lease = pool.turns()
    with lease, pytest.raises(PoolMisuse, match="one `with` block at a time"):
        lease.__enter__()


def test_turn_that_owes_no_reset_takes_no_flow(server, monkeypatch):
    with ConnectionPool(FakeAdapter(server), max_size=1, reset="tracked") as pool:
        lease, by_flow = pool.turns(), []
        with lease:
            pass
        ends = pool._exit
        monkeypatch.setattr(pool, "_exit", lambda *args: (by_flow.append(args), ends(*args)))
        for spared in (True, False, True):
            with lease:
                if spared:
                    lease.spare_reset()
        assert len(by_flow) == 1
        assert pool.stats().resets == 2


def test_turn_that_was_judged_ends_without_a_second_look(server, monkeypatch):
    with ConnectionPool(FakeAdapter(server), max_size=1, reset="tracked") as pool:
        lease = pool.turns()
        for spared in (True, False, True):
            lease.__enter__()
            assert lease.verdict() is Verdict.CLEAN
            lease.end(spare=spared)
            assert not lease.lasts
        assert pool.stats().resets == 1
        assert pool.stats().releases == 3
        lease.__enter__()
        lease.discard()  # by another thread, say
        lease.end(spare=True)
        assert pool.stats().discards["reset"] == 1
        with pytest.raises(PoolMisuse, match="no turn lasts"):
            lease.end(spare=True)


def test_turn_that_ends_hands_over(server):
    with ConnectionPool(FakeAdapter(server), max_size=1, reset="tracked") as pool:
        lease, served = pool.turns(), []
        conn = lease.__enter__()
        waiting = threading.Thread(target=lambda: served.append(pool.acquire(timeout=10)))
        waiting.start()
        wait_until(lambda: pool.stats().waiting)
        lease.end(spare=True)
        waiting.join(10)
        assert served == [conn]
        pool.release(conn)


def test_questions_outside_of_a_turn_are_refused(pool):
    lease = pool.turns()
    for question in (
        lease.verdict,
        lease.sees_transactions,
        lease.note_caller,
        lease.discard,
        lease.spare_reset,
    ):
        with pytest.raises(PoolMisuse, match="no turn lasts"):
            question()


def test_discarded_connection_serves_nobody_else(pool):
    lease = pool.turns()
    with lease as conn:
        lease.discard()
    with lease as other:
        assert other is not conn
    assert pool.stats().discards["reset"] == 1


def test_pins_are_counted(pool):
    pool.turns().count_pin()
    assert pool.stats().pins == 1


def test_lease_that_is_garbage_frees_its_place(pool):
    lease = pool.turns()
    first = lease.__enter__()
    with pytest.warns(ResourceWarning, match="lost without being given back"):
        del lease
        gc.collect()
        with pool.turns() as conn:
            assert conn is not first


def test_line_that_is_noted_is_told(pool):
    lease = pool.turns(timeout=0)
    with lease:
        lease.note_caller()
        with pytest.raises(TimeoutError, match=r"test_turns\.py"), pool.connection(timeout=0):
            pass


@pytest.mark.parametrize(
    ("reset", "restores"), [("rollback", False), ("none", False), ("full", True), ("tracked", True)]
)
def test_pool_says_what_its_policy_is(server, reset, restores):
    with ConnectionPool(FakeAdapter(server), reset=reset) as pool:
        assert pool.reset_policy == reset
        assert pool.resets_sessions == restores
        assert pool.stats().reset_policy == reset


def test_tracked_reset_is_spared_where_nothing_was_altered(server):
    with ConnectionPool(FakeAdapter(server), reset="tracked", max_size=1) as pool:
        lease = pool.turns()
        for spared, resets in ((True, 0), (False, 1), (True, 1)):
            with lease:
                if spared:
                    lease.spare_reset()
            assert pool.stats().resets == resets
        with pool.connection():
            pass
        assert pool.stats().resets == 2


def test_adapter_is_known_once_a_connection_told(server):
    with ConnectionPool(FakeAdapter(server)) as pool:
        assert pool.adapter is not None
        assert pool.adapter.name


def test_events_of_others_are_told_as_the_pools_own(server, caplog):
    told: list[Event] = []
    with ConnectionPool(FakeAdapter(server), name="mine", observers=[told.append]) as pool:
        with caplog.at_level(logging.WARNING, logger="connpool"):
            for _ in range(7):
                pool.tell("happened", "something", what=1)
    assert {(event.name, event.pool, event.text, event.fields["what"]) for event in told} == {
        ("happened", "mine", "pool 'mine': something", 1)
    }
    assert len(told) == 5
    assert len(caplog.records) == 5
