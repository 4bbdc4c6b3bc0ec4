"""The pool as a whole: upkeep, bounds, eviction, readiness, threads, and what is left after it."""

import gc
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from servers import wait_until

import connpool
from connpool import ConnectionPool, PoolClosed, PoolUnavailable
from connpool.testing import FakeAdapter, FakeConnection, FakeOperationalError, FakeServer
from threads.crowd import Crowd


@pytest.fixture
def server():
    return FakeServer()


def open_connections(pool: ConnectionPool[FakeConnection], number: int) -> list[FakeConnection]:
    conns = [pool.acquire() for _ in range(number)]
    for conn in reversed(conns):
        pool.release(conn)
    return conns


def pool_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("connpool")]


# -- upkeep ----------------------------------------------------------------------------------------------


def test_idle_connections_are_closed_in_time_down_to_min_idle(server):
    with ConnectionPool(FakeAdapter(server), max_size=4, min_idle=1, idle_timeout=0.1) as pool:
        open_connections(pool, 4)
        assert wait_until(lambda: pool.stats().size == 1, 5.0)
        assert pool.stats().discards["idle"] == 3


def test_an_expired_idle_connection_is_replaced_where_min_idle_wants_one(server):
    with ConnectionPool(FakeAdapter(server), min_idle=1, max_lifetime=0.1) as pool:
        pool.wait_ready(5.0)
        first = next(iter(server.sessions)).number
        assert wait_until(lambda: server.sessions and min(c.number for c in server.sessions) > first, 5.0)
        assert pool.stats().discards["lifetime"] >= 1


def test_min_idle_is_restored_after_a_mass_kill_without_a_caller(server):
    with ConnectionPool(FakeAdapter(server), min_idle=3, max_lifetime=0.2) as pool:
        pool.wait_ready(5.0)
        server.down()
        assert wait_until(lambda: pool.stats().size == 0, 5.0)
        server.up()
        assert wait_until(lambda: pool.stats().idle == 3, 10.0)


# -- bounds ----------------------------------------------------------------------------------------------


def test_a_smaller_pool_lets_borrowers_finish(server):
    with ConnectionPool(FakeAdapter(server), max_size=3) as pool:
        conns = [pool.acquire() for _ in range(3)]
        pool.resize(max_size=1)
        assert not any(conn.closed for conn in conns)
        for conn in conns:
            pool.release(conn)
        assert wait_until(lambda: pool.stats().size == 1, 5.0)
        assert pool.stats().discards["surplus"] == 2


def test_a_larger_pool_serves_those_who_wait(server):
    with ConnectionPool(FakeAdapter(server), max_size=1) as pool:
        conn = pool.acquire()
        with Crowd() as crowd:
            crowd.start(lambda: pool.release(pool.acquire()))
            assert wait_until(lambda: pool.stats().waiting == 1, 5.0)
            pool.resize(max_size=2)
        pool.release(conn)


@pytest.mark.parametrize("bounds", [{"max_size": 0}, {"min_idle": -1}, {"min_idle": 11}])
def test_impossible_bounds_change_nothing(server, bounds):
    with ConnectionPool(FakeAdapter(server)) as pool:
        with pytest.raises(ValueError, match="m(ax_size|in_idle)="):
            pool.resize(**bounds)
        assert pool.stats().max_size == 10


# -- eviction --------------------------------------------------------------------------------------------


def test_eviction_replaces_idle_connections_now_and_lent_ones_when_they_come_back(server):
    with ConnectionPool(FakeAdapter(server), max_size=2) as pool:
        idle, lent = pool.acquire(), pool.acquire()
        pool.release(idle)
        pool.evict()
        assert wait_until(lambda: idle.closed, 5.0)
        assert not lent.closed
        pool.release(lent)
        assert wait_until(lambda: lent.closed, 5.0)
        with pool.connection() as conn:
            assert conn not in (idle, lent)


def test_a_dial_begun_before_the_eviction_does_not_survive_it(server):
    dialled, go = threading.Event(), threading.Event()

    class Slow(FakeAdapter):
        def connect(self, limit):
            conn = super().connect(limit)
            if not dialled.is_set():
                dialled.set()
                assert go.wait(20.0)
            return conn

    with ConnectionPool(Slow(server)) as pool, Crowd() as crowd:
        numbers: list[int] = []

        def borrow() -> None:
            with pool.connection() as conn:
                numbers.append(conn.number)

        crowd.start(borrow)
        assert dialled.wait(5.0)
        old = next(iter(server.sessions)).number
        pool.evict()
        go.set()
        crowd.join()
        assert numbers != [old]


# -- readiness -------------------------------------------------------------------------------------------


def test_ready_means_min_idle_connections(server):
    with ConnectionPool(FakeAdapter(server), min_idle=3) as pool:
        pool.wait_ready(5.0)
        assert pool.stats().idle == 3


def test_ready_without_min_idle_means_one_connection(server):
    with ConnectionPool(FakeAdapter(server)) as pool:
        pool.wait_ready(5.0)
        assert pool.stats().idle == 1
        pool.wait_ready(0)


def test_waiting_for_a_server_that_is_starting_outlives_refused_dials(server):
    server.down()
    with ConnectionPool(FakeAdapter(server)) as pool, Crowd() as crowd:
        crowd.start(pool.wait_ready, 20.0)
        assert wait_until(lambda: pool.stats().dial_failures >= 2, 5.0)
        server.up()


def test_not_ready_says_why(server):
    server.down()
    with ConnectionPool(FakeAdapter(server), name="app") as pool:
        with pytest.raises(PoolUnavailable) as caught:
            pool.wait_ready(0.05)
    assert re.fullmatch(
        r"not ready after 0\.\d+ s: 0 of 1 connections; "
        r"last connect error: FakeOperationalError: connection refused \(pool 'app'\)",
        str(caught.value),
    )


def test_wrong_credentials_are_not_waited_for(server):
    server.down(FakeOperationalError("password authentication failed"))
    with ConnectionPool(FakeAdapter(server)) as pool, pytest.raises(PoolUnavailable, match="password"):
        pool.wait_ready(None)


def test_a_pool_knows_that_it_is_closed(server):
    pool = ConnectionPool(FakeAdapter(server))
    assert not pool.closed
    pool.close()
    assert pool.closed


def test_a_closed_pool_is_never_ready(server):
    pool = ConnectionPool(FakeAdapter(server))
    pool.close()
    with pytest.raises(PoolClosed):
        pool.wait_ready(1.0)


# -- threads and leftovers -------------------------------------------------------------------------------


def test_construction_opens_nothing_and_starts_nothing(server):
    before = pool_threads()
    pool = ConnectionPool(FakeAdapter(server), min_idle=2)
    assert server.connects == 0
    assert pool_threads() == before
    pool.close()
    assert server.connects == 0


def test_five_hundred_idle_pools_share_one_thread_and_leave_none(server):
    pools = []
    for _ in range(500):
        pool = ConnectionPool(FakeAdapter(server), max_size=2)
        with pool.connection():
            pass
        pools.append(pool)
    assert wait_until(lambda: pool_threads() == ["connpool-housekeeper"], 5.0), pool_threads()
    for pool in pools:
        pool.close()
    assert wait_until(lambda: not pool_threads(), 5.0), pool_threads()


def test_a_pool_that_nobody_has_any_more_closes_its_idle_connections(server):
    pool = ConnectionPool(FakeAdapter(server))
    (conn,) = open_connections(pool, 1)
    reference = weakref.ref(pool)
    del pool
    assert wait_until(lambda: gc.collect() is not None and reference() is None, 5.0)
    assert wait_until(lambda: conn.closed, 5.0)


def test_a_lease_keeps_its_pool_alive(server):
    with ConnectionPool(FakeAdapter(server)).connection() as conn:
        gc.collect()
        conn.execute("write")
    assert server.statements == ["write", "commit"]


def test_a_generator_closed_by_the_collector_inside_our_lock_hangs_nobody(server):
    with ConnectionPool(FakeAdapter(server), max_size=2) as pool:

        def rows():
            with pool.connection() as conn:
                conn.execute("select")
                yield conn

        for dirty in (False, True):  # a clean one takes the warm path; a dirty one must not do I/O there
            generator = rows()
            conn = next(generator)
            conn.in_transaction = dirty
            with pool._core.lock:
                generator.close()
            for conn in [pool.acquire(timeout=5.0) for _ in range(2)]:
                pool.release(conn)
        assert server.statements == ["select", "select"]


def test_a_pool_used_inside_its_own_lock_is_named(server):
    with ConnectionPool(FakeAdapter(server)) as pool, pool._core.lock:
        with pytest.raises(connpool.PoolMisuse, match="do not use a pool in __del__"):
            pool.acquire()


def run_script(text: str) -> None:
    """Run a script in a fresh interpreter; it must end well and say nothing."""
    source = str(Path(connpool.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", text],
        env={"PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_process_that_ends_without_closing_its_pool_says_nothing():
    run_script(
        "import connpool\n"
        "pool = connpool.create_pool('sqlite://')\n"
        "with pool.connection() as conn:\n"
        "    conn.execute('select 1')\n"
    )


def test_without_a_gil_every_lease_takes_the_lock():
    run_script(
        "import threading, connpool, connpool.leases\n"
        "from connpool.testing import FakeAdapter, FakeServer\n"
        "connpool.leases.lock_leases()\n"
        "server = FakeServer()\n"
        "with connpool.ConnectionPool(FakeAdapter(server), max_size=2) as pool:\n"
        "    def work():\n"
        "        for _ in range(100):\n"
        "            with pool.transaction() as conn:\n"
        "                conn.execute('write')\n"
        "            pool.release(pool.acquire())\n"
        "    threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "    for thread in threads: thread.start()\n"
        "    for thread in threads: thread.join()\n"
        "    stats = pool.stats()\n"
        "    assert stats.acquires == stats.releases == 1600, stats\n"
        "    assert server.statements.count('commit') == 800\n"
    )


def test_the_constructors_signature_and_the_options_agree():
    import dataclasses
    import inspect

    parameters = inspect.signature(ConnectionPool).parameters
    for option in dataclasses.fields(connpool.PoolOptions):
        parameter = parameters[option.name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        depends = parameter.default is connpool.DEFAULT  # on another option
        assert depends if option.name == "ping_after" else parameter.default == option.default
    assert len(parameters) == len(dataclasses.fields(connpool.PoolOptions)) + 1


def test_a_pool_dropped_while_a_connection_is_lent_bare_is_garbage_all_the_same(server):
    pool = ConnectionPool(FakeAdapter(server), max_size=2)
    kept, idle = pool.acquire(), pool.acquire()
    pool.release(idle)
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None
    assert idle.closed
    assert not kept.closed


def test_a_forked_child_that_ends_leaves_its_parents_sessions_alone():
    run_script(
        "import os, sys, connpool\n"
        "from connpool.testing import FakeAdapter, FakeServer\n"
        "class Loud(FakeAdapter):\n"
        "    def close(self, conn, limit):\n"
        "        if os.getpid() != parent:\n"
        "            print('closed', conn)\n"
        "        super().close(conn, limit)\n"
        "parent = os.getpid()\n"
        "pool = connpool.ConnectionPool(Loud(FakeServer()), idle_timeout=None)\n"
        "pool.wait_ready()\n"
        "if os.fork() == 0:\n"
        "    sys.exit(0)\n"
        "os.wait()\n"
    )


# -- what a review found -----------------------------------------------------------------------------------


def test_an_idle_connection_expires_although_the_warm_path_told_nobody(server):
    with ConnectionPool(FakeAdapter(server), max_lifetime=0.3, idle_timeout=None) as pool:
        with pool.connection():
            pass
        assert wait_until(lambda: pool.stats().size == 0, 5.0)
        assert pool.stats().discards["lifetime"] == 1


def test_min_idle_is_restored_after_loans_that_told_nobody(server, monkeypatch):
    monkeypatch.setattr("connpool.engine.upkeep.MIN_IDLE_CHECK", 0.05)
    with ConnectionPool(FakeAdapter(server), min_idle=2) as pool:
        pool.wait_ready(5.0)
        conns = [pool.acquire() for _ in range(2)]
        assert wait_until(lambda: pool.stats().idle == 2, 5.0)
        for conn in conns:
            pool.release(conn)


def test_a_finalizer_that_closes_a_pool_inside_the_housekeeper_hangs_nobody(server, monkeypatch):
    def reentrant(runner):
        """Stand for the collector: it strikes while a duty is being handed over."""
        if pools:
            pools.pop().close()
        return weakref.ref(runner)

    pools = [ConnectionPool(FakeAdapter(server)) for _ in range(3)]
    for pool in pools:
        open_connections(pool, 1)
    monkeypatch.setattr("connpool.threads.weakref", SimpleNamespace(ref=reentrant))
    with ConnectionPool(FakeAdapter(server)) as pool, Crowd() as crowd:
        crowd.start(open_connections, pool, 1)
    monkeypatch.undo()
    for pool in pools:
        pool.close()


def test_a_thousand_connections_are_closed_without_helpers(server, monkeypatch):
    monkeypatch.setattr(connpool.threads.helpers, "start", lambda job: False)
    pool = ConnectionPool(FakeAdapter(server), max_size=1000, max_connecting=1000)
    open_connections(pool, 1000)
    pool.close()
    assert not server.sessions


def test_nothing_is_no_connection_to_detach_or_release(server):
    with ConnectionPool(FakeAdapter(server)) as pool:
        conn = pool.acquire()
        for give in (pool.detach, pool.release):
            with pytest.raises(connpool.PoolMisuse, match="not from this pool"):
                give(None)
        pool.release(conn)


def test_a_callable_must_return_a_new_connection_each_time(server):
    conn = FakeConnection(server)
    with ConnectionPool(lambda: conn, max_size=2) as pool:
        with pool.connection(), pytest.raises(connpool.PoolError, match="has already"):
            pool.acquire(timeout=0.2)


def test_using_a_lease_as_a_connection_is_explained(server):
    with ConnectionPool(FakeAdapter(server)) as pool:
        with pytest.raises(AttributeError, match=r"a lease is no connection: write `with pool\.connection"):
            pool.connection().execute("select 1")


@pytest.mark.parametrize("source", [FakeAdapter, FakeConnection(FakeServer())])
def test_what_is_neither_adapter_nor_callable_is_refused_at_once(source):
    with pytest.raises(TypeError, match="a pool needs an adapter, or a callable"):
        ConnectionPool(source)


def test_without_checks_the_warm_path_stays_warm(server, monkeypatch):
    with ConnectionPool(FakeAdapter(server), probe_after=None, ping_after=None) as pool:
        with pool.connection():
            pass
        monkeypatch.setattr(pool, "_exit", lambda *args: pytest.fail("a release took the slow path"))
        monkeypatch.setattr(pool, "_enter", lambda *args: pytest.fail("an acquire took the slow path"))
        for _ in range(3):
            with pool.connection():
                pass
        monkeypatch.undo()


def test_a_pool_made_in_a_forked_child_has_a_housekeeper():
    run_script(
        "import os, time, connpool\n"
        "from connpool.testing import FakeAdapter, FakeServer\n"
        "pool = connpool.ConnectionPool(FakeAdapter(FakeServer()))\n"
        "pool.wait_ready()\n"
        "if os.fork() == 0:\n"
        "    mine = connpool.ConnectionPool(FakeAdapter(FakeServer()), idle_timeout=0.1)\n"
        "    mine.wait_ready()\n"
        "    until = time.monotonic() + 10\n"
        "    while mine.stats().size and time.monotonic() < until:\n"
        "        time.sleep(0.01)\n"
        "    os._exit(mine.stats().size)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 0\n"
        "pool.close()\n"
    )


# -- clearing --------------------------------------------------------------------------------------------


def test_a_cleared_pool_has_nothing_open_when_it_returns_but_what_is_lent(server):
    with ConnectionPool(FakeAdapter(server), max_size=4) as pool:
        lent, *rest = [pool.acquire() for _ in range(3)]
        for conn in rest:
            pool.release(conn)
        pool.clear()
        assert set(server.sessions) == {lent}
        pool.release(lent)
        assert wait_until(lambda: not server.sessions, 5.0)
        assert pool.stats().size == 0
        with pool.connection() as conn:  # it serves on
            assert set(server.sessions) == {conn}


def test_clearing_keeps_min_idle_and_reaches_dedicated_connections(server):
    with ConnectionPool(FakeAdapter(server), min_idle=1) as pool:
        pool.wait_ready(5.0)
        (before,) = server.sessions
        with pool.dedicated() as alone:
            pool.clear()
            assert wait_until(lambda: pool.stats().idle == 1, 5.0)
            assert before not in server.sessions
            assert alone in server.sessions
