"""Waiting: the queue, its bounds, deadlines, dials under way, and the errors that explain."""

import threading
from collections.abc import Callable

import pytest
from servers import wait_until

import connpool
from connpool import ConnectionPool, PoolClosed, PoolOverloaded, PoolTimeout, PoolUnavailable
from connpool.engine.operations import Step
from connpool.testing import FakeAdapter, FakeConnection, FakeOperationalError, FakeServer
from threads.crowd import Crowd


class Gate(FakeAdapter):
    """An adapter whose dials wait for the test."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.dials = 0
        self.open = threading.Event()

    def connect(self, limit: float | None) -> FakeConnection:
        self.dials += 1
        assert self.open.wait(20.0)
        return self.server.accept()


@pytest.fixture
def server():
    return FakeServer()


def full(server: FakeServer, **options: object) -> tuple[ConnectionPool[FakeConnection], FakeConnection]:
    """Return a pool of one and the connection that it has lent."""
    pool = ConnectionPool(FakeAdapter(server), max_size=1, name="full", **options)  # type: ignore[arg-type]
    return pool, pool.acquire()


def waiting(pool: ConnectionPool[FakeConnection], number: int) -> Callable[[], bool]:
    return lambda: pool.stats().waiting == number


# -- deadlines -------------------------------------------------------------------------------------------


def test_a_timeout_says_how_long_and_what_the_pool_was_doing(server):
    pool, conn = full(server, acquire_timeout=0.05)
    with pytest.raises(PoolTimeout) as caught:
        pool.acquire()
    assert str(caught.value).startswith(
        "no connection within 0.05 s: 1 of 1 in use, 0 idle, 0 opening, 0 waiting (pool 'full')\n"
    )
    assert isinstance(caught.value, TimeoutError)
    pool.release(conn)
    pool.close()


def test_a_timeout_of_nothing_takes_an_idle_connection_or_fails_at_once(server):
    pool, conn = full(server)
    with pytest.raises(PoolTimeout, match="no connection at once"), pool.connection(timeout=0):
        pass
    pool.release(conn)
    with pool.connection(timeout=0):
        pass
    pool.close()


def test_a_timeout_of_nothing_on_an_empty_pool_begins_a_dial(server):
    adapter = Gate(server)
    with ConnectionPool(adapter) as pool:
        with pytest.raises(PoolTimeout, match="no connection at once: 0 of 10 in use, 0 idle, 1 opening"):
            pool.acquire(timeout=0)
        adapter.open.set()
        assert wait_until(lambda: pool.stats().idle == 1, 5.0)
        with pool.connection(timeout=0):
            pass


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused_before_anything_happens(server, timeout):
    with ConnectionPool(FakeAdapter(server)) as pool:
        with pytest.raises(ValueError, match="timeout="):
            pool.connection(timeout)
        with pytest.raises(ValueError, match="timeout="):
            pool.acquire(timeout)
    assert server.connects == 0


def test_a_surrounding_deadline_caps_every_acquire(server):
    pool, conn = full(server, acquire_timeout=20.0)
    with connpool.deadline(0.05):
        for _ in range(2):  # the second has nothing left
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=None)
        with connpool.deadline(20.0), pytest.raises(PoolTimeout):
            pool.acquire()
    pool.release(conn)
    pool.close()


@pytest.mark.parametrize("seconds", [None, -1, "1"])
def test_a_deadline_needs_a_number_of_seconds(seconds):
    with pytest.raises((TypeError, ValueError), match="deadline|seconds="), connpool.deadline(seconds):
        pass


# -- the queue -------------------------------------------------------------------------------------------


def test_a_released_connection_goes_to_who_has_waited_longest(server):
    pool, conn = full(server)
    served: list[int] = []

    def borrow(number: int) -> None:
        with pool.connection():
            served.append(number)

    with Crowd() as crowd:
        for number in range(5):
            crowd.start(borrow, number)
            assert wait_until(waiting(pool, number + 1), 5.0)
        pool.release(conn)
    assert served == [0, 1, 2, 3, 4]
    pool.close()


def test_more_than_max_waiting_are_turned_away(server):
    pool, conn = full(server, max_waiting=1)
    with Crowd() as crowd:
        crowd.start(lambda: pool.release(pool.acquire()))
        assert wait_until(waiting(pool, 1), 5.0)
        with pytest.raises(PoolOverloaded, match="max_waiting=1 callers wait; 1 of 1 in use"):
            pool.acquire()
        pool.release(conn)
    assert pool.stats().overloads == 1
    pool.close()


def test_those_who_gave_up_do_not_count_as_waiting(server):
    pool, conn = full(server, max_waiting=1)
    for _ in range(3):
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.01)
    pool.release(conn)
    pool.close()


# -- dials -----------------------------------------------------------------------------------------------


def test_a_returned_connection_is_not_kept_waiting_by_a_dial(server):
    adapter = Gate(server)
    with ConnectionPool(adapter, max_size=2) as pool:
        adapter.open.set()
        conn = pool.acquire()
        adapter.open.clear()
        with Crowd() as crowd:
            crowd.start(lambda: pool.release(pool.acquire()))
            assert wait_until(lambda: adapter.dials == 2, 5.0)
            pool.release(conn)  # the dial still hangs
            assert wait_until(waiting(pool, 0), 5.0)
        adapter.open.set()


def test_no_more_dials_than_max_connecting_at_a_time(server):
    adapter = Gate(server)
    with ConnectionPool(adapter, max_size=10, max_connecting=2) as pool:
        with Crowd() as crowd:
            for number in range(6):
                crowd.start(lambda: pool.release(pool.acquire()))
                assert wait_until(waiting(pool, number + 1), 5.0)
            assert wait_until(lambda: adapter.dials == 2, 5.0)
            assert pool.stats().opening == 2
            adapter.open.set()


def test_a_dial_outlives_the_caller_that_asked_for_it(server):
    adapter = Gate(server)
    with ConnectionPool(adapter) as pool:
        with pytest.raises(PoolUnavailable, match=r"none is open, dialling for 0\.0 s"):
            pool.acquire(timeout=0.02)
        adapter.open.set()
        assert wait_until(lambda: pool.stats().idle == 1, 5.0)
        assert adapter.dials == 1


def test_the_first_error_of_a_pool_that_never_had_a_connection_is_told_at_once(server):
    server.down(FakeOperationalError("connection refused\nIs the server running?"))
    with ConnectionPool(FakeAdapter(server), name="app") as pool:
        with pytest.raises(PoolUnavailable) as caught:
            pool.acquire(timeout=None)
    assert str(caught.value) == (
        "cannot connect; last connect error: FakeOperationalError: connection refused (pool 'app')"
    )
    assert isinstance(caught.value.__cause__, FakeOperationalError)


def test_later_an_outage_is_waited_for(server):
    with ConnectionPool(FakeAdapter(server), probe_after=0) as pool:
        with pool.connection():
            pass
        server.down()
        with Crowd() as crowd:
            crowd.start(lambda: pool.release(pool.acquire(timeout=20.0)))
            assert wait_until(lambda: pool.stats().dial_failures >= 2, 5.0)
            server.up()


def test_an_outage_longer_than_the_deadline_is_explained(server):
    with ConnectionPool(FakeAdapter(server), probe_after=0) as pool:
        with pool.connection():
            pass
        server.down()
        with pytest.raises(
            PoolUnavailable, match=r"within 0\.\d+ s: none is open; .*connection refused"
        ) as caught:
            pool.acquire(timeout=0.1)
        assert isinstance(caught.value.__cause__, FakeOperationalError)
        server.up()


def test_wrong_credentials_are_told_at_once_when_nothing_is_open(server):
    with ConnectionPool(FakeAdapter(server), probe_after=0) as pool:
        with pool.connection():
            pass
        server.down(FakeOperationalError("password authentication failed"))
        with pytest.raises(PoolUnavailable, match="password authentication failed"):
            pool.acquire(timeout=None)
        server.up()


def test_a_failed_dial_fails_nobody_who_can_still_be_served(server):
    with ConnectionPool(FakeAdapter(server), max_size=2) as pool:
        conn = pool.acquire()
        server._down = FakeOperationalError("password authentication failed")  # sessions live on
        with Crowd() as crowd:
            crowd.start(lambda: pool.release(pool.acquire(timeout=20.0)))
            assert wait_until(lambda: pool.stats().dial_failures >= 1, 5.0)
            assert pool.stats().waiting == 1
            pool.release(conn)
        server.up()


def test_a_callable_that_hangs_is_given_up_and_closed_when_it_comes_late(server):
    release = threading.Event()

    def connect() -> FakeConnection:
        if not late:
            late.append(FakeConnection(server))
            assert release.wait(20.0)
            return late[0]
        return FakeConnection(server)

    late: list[FakeConnection] = []
    with ConnectionPool(connect, max_size=1, connect_timeout=0.05) as pool:
        conn = pool.acquire(timeout=20.0)
        assert conn is not late[0]
        stats = pool.stats()
        assert (stats.size, stats.dial_failures) == (1, 1)
        release.set()
        assert wait_until(lambda: late[0].closed, 5.0)
        pool.release(conn)


def test_without_helper_threads_the_caller_does_the_work(server, monkeypatch):
    monkeypatch.setattr(connpool.threads.helpers, "start", lambda job: False)
    with ConnectionPool(FakeAdapter(server), max_size=2) as pool:
        with pool.connection() as conn:
            pass
        pool.evict()
        assert conn.closed
        with pool.connection() as other:
            assert other is not conn


def test_a_hook_that_fails_is_told_to_who_waits_for_the_connection(server):
    def hook(conn: FakeConnection) -> None:
        raise LookupError("no such tenant")

    with ConnectionPool(FakeAdapter(server), on_connect=hook) as pool:
        with pytest.raises(PoolUnavailable, match="LookupError: no such tenant"):
            pool.acquire()
        assert wait_until(lambda: not server.sessions, 5.0)


# -- dead connections ------------------------------------------------------------------------------------


def test_a_connection_that_died_while_idle_is_replaced_without_an_error(server):
    with ConnectionPool(FakeAdapter(server), max_size=3, probe_after=0) as pool:
        conns = [pool.acquire() for _ in range(3)]
        for conn in conns:
            pool.release(conn)
        server.kill_sessions()
        with pool.connection() as conn:
            assert conn.alive
        assert pool.stats().discards["dead"] == 3


def test_a_connection_whose_ping_gets_no_answer_in_time_is_replaced():
    server = FakeServer(latency={Step.PING: 0.05})
    with ConnectionPool(FakeAdapter(server), probe_after=0, ping_after=0, reset_timeout=0.01) as pool:
        with pool.connection() as first:
            pass
        with pool.connection() as second:  # a new one is not pinged: its handshake was a round trip
            assert second is not first


def test_without_time_for_a_ping_the_probe_decides(server):
    with ConnectionPool(FakeAdapter(server), probe_after=0, ping_after=0) as pool:
        with pool.connection() as conn:
            pass
        server.latency = {Step.PING: 60.0}
        with pool.connection(timeout=0) as same:
            assert same is conn
        conn.kill()
        with pool.connection() as other:
            assert other is not conn


def test_a_connection_handed_over_shortly_after_a_death_is_looked_at_first(server):
    with ConnectionPool(FakeAdapter(server), max_size=2) as pool:
        killed, other = pool.acquire(), pool.acquire()
        with Crowd() as crowd:
            lent: list[FakeConnection] = []
            crowd.start(lambda: lent.append(pool.acquire()))
            assert wait_until(waiting(pool, 1), 5.0)
            server.kill_sessions()
            killed.close()  # its borrower has noticed
            pool.release(killed)
            pool.release(other)  # within `probe_after`, and clean as far as its driver knows
        assert lent[0].alive
        pool.release(lent[0])


def test_a_rollback_that_fails_closes_the_connection(server):
    with ConnectionPool(FakeAdapter(server), max_size=1) as pool:
        conn = pool.acquire()
        conn.execute("write")
        conn.kill()
        pool.release(conn)
        assert pool.stats().discards["dead"] == 1
        with pool.connection() as other:
            assert other is not conn


# -- closing ---------------------------------------------------------------------------------------------


def test_closing_fails_those_who_wait_and_awaits_what_is_lent(server):
    pool, conn = full(server)
    outcome: list[BaseException] = []

    def borrow() -> None:
        with pytest.raises(PoolClosed) as caught:
            pool.acquire()
        outcome.append(caught.value)

    with Crowd() as crowd:
        crowd.start(borrow)
        assert wait_until(waiting(pool, 1), 5.0)
        crowd.start(pool.close)
        assert wait_until(lambda: bool(outcome), 5.0)
        assert not conn.closed
        pool.release(conn)
    assert conn.closed
    assert str(outcome[0]).startswith("no connection: the pool is closed (pool 'full')\n")


def test_closing_does_not_wait_for_a_dial_that_hangs(server):
    adapter = Gate(server)
    pool = ConnectionPool(adapter)
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    assert wait_until(lambda: adapter.dials == 1, 5.0)
    pool.close(timeout=None)
    adapter.open.set()
    assert wait_until(lambda: not server.sessions, 5.0)


def test_closing_does_not_wait_longer_than_it_is_told(server):
    pool, conn = full(server)
    pool.close(timeout=0.01)
    pool.close(timeout=0)
    assert conn.closed, "what is still lent was not cut"
    pool.release(conn)
    assert wait_until(lambda: pool.stats().size == 0, 5.0)
    with pytest.raises(PoolClosed):
        pool.acquire()
