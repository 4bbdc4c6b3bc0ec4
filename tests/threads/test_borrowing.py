"""Lending and taking back: what happens to the connection, its transaction and its place."""

import contextvars
import gc
import threading

import pytest

from connpool import ConnectionPool, PoolMisuse, PoolStats, create_pool
from connpool.testing import FakeAdapter, FakeConnection, FakeError, FakeServer


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def pool(server):
    with ConnectionPool(FakeAdapter(server), max_size=2) as pool:
        yield pool


def assert_all_places_are_free(pool: ConnectionPool[FakeConnection]) -> None:
    conns = [pool.acquire(timeout=5.0) for _ in range(pool.stats().max_size)]
    for conn in conns:
        pool.release(conn)
    stats = pool.stats()
    assert stats.in_use == 0
    assert stats.acquires == stats.releases


# -- connection() ----------------------------------------------------------------------------------------


def test_the_drivers_own_connection_is_lent(pool):
    with pool.connection() as conn:
        assert type(conn) is FakeConnection


def test_a_clean_block_sends_nothing(pool, server):
    with pool.connection():
        pass
    assert server.statements == []


def test_a_block_that_ends_well_is_committed(pool, server):
    with pool.connection() as conn:
        conn.execute("write")
    assert server.statements == ["write", "commit"]


def test_a_block_that_raises_is_rolled_back_and_raises_what_it_raised(pool, server):
    error = LookupError("mine")
    with pytest.raises(LookupError) as caught, pool.connection() as conn:
        conn.execute("write")
        raise error
    assert caught.value is error
    assert server.statements == ["write", "rollback"]


def test_a_failed_transaction_whose_error_was_swallowed_is_named_not_committed(pool, server):
    with (
        pytest.raises(PoolMisuse, match="failed and was rolled back.*caught inside it"),
        pool.connection() as conn,
    ):
        with pytest.raises(FakeError):
            conn.execute("fail")
    assert server.statements == ["fail", "rollback"]
    assert_all_places_are_free(pool)


def test_an_error_of_commit_is_the_borrowers(pool, server):
    with pytest.raises(FakeError, match="server closed"), pool.connection() as conn:
        conn.execute("write")
        conn.kill()
    assert pool.stats().discards["dead"] == 1
    assert_all_places_are_free(pool)


def test_a_connection_found_dead_on_return_does_not_hide_the_users_error(pool):
    with pytest.raises(LookupError, match="mine"), pool.connection() as conn:
        conn.execute("write")
        conn.kill()
        raise LookupError("mine")
    assert_all_places_are_free(pool)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_in_the_block_rolls_back_and_keeps_the_place(pool, server, interrupt):
    with pytest.raises(interrupt), pool.connection() as conn:
        conn.execute("write")
        raise interrupt
    assert server.statements == ["write", "rollback"]
    assert_all_places_are_free(pool)


def test_a_lease_serves_one_block_at_a_time(pool):
    lease = pool.connection()
    with lease, pytest.raises(PoolMisuse, match="one `with` block at a time"), lease:
        pass
    assert_all_places_are_free(pool)


def test_ending_a_lease_twice_is_named(pool):
    lease = pool.connection()
    with lease:
        pass
    with pytest.raises(PoolMisuse, match="its block has ended already"):
        lease.__exit__(None, None, None)
    assert_all_places_are_free(pool)


def test_the_connection_used_last_is_lent_first(pool):
    one, other = pool.acquire(), pool.acquire()
    pool.release(other)
    pool.release(one)
    with pool.connection() as conn:
        assert conn is one


# -- transaction() ---------------------------------------------------------------------------------------


def test_a_transaction_begins_explicitly(pool, server):
    with pool.transaction() as conn:
        conn.execute("write")
    assert server.statements == ["begin", "write", "commit"]


def test_a_transaction_that_cannot_begin_gives_its_connection_back(server):
    with ConnectionPool(FakeAdapter(server), max_size=1, probe_after=None) as pool:
        with pool.connection() as conn:
            pass
        conn.kill()
        with pytest.raises(FakeError, match="server closed"), pool.transaction():
            pytest.fail("the block must not run")
        conn.close()  # what the next release would have found
        pool.evict()
        assert_all_places_are_free(pool)


# -- acquire() and release() -----------------------------------------------------------------------------


def test_release_rolls_back_and_counts(pool, server):
    conn = pool.acquire()
    conn.execute("write")
    pool.release(conn)
    assert server.statements == ["write", "rollback"]
    assert pool.stats().rollbacks == 1


def test_a_second_release_is_refused(pool):
    conn = pool.acquire()
    pool.release(conn)
    with pytest.raises(PoolMisuse, match="has been released already"):
        pool.release(conn)


def test_a_connection_of_somebody_else_is_refused(pool, server):
    with pytest.raises(PoolMisuse, match="not from this pool"):
        pool.release(FakeConnection(server))


def test_a_connection_lent_by_a_block_is_not_released_by_hand(pool):
    with pool.connection() as conn, pytest.raises(PoolMisuse, match="gives it back itself"):
        pool.release(conn)
    assert_all_places_are_free(pool)


def test_a_connection_may_be_released_by_another_thread(pool):
    conn = pool.acquire()
    thread = threading.Thread(target=pool.release, args=(conn,))
    thread.start()
    thread.join()
    assert pool.stats().idle == 1


def test_an_acquired_connection_that_is_garbage_frees_its_place(pool, server):
    with pytest.warns(ResourceWarning, match=r"test_borrowing\.py:\d+ was lost"):
        for _ in range(20):
            conn = pool.acquire(timeout=5.0)
            del conn
            gc.collect()
        assert len(server.sessions) <= 2
        assert pool.stats().discards["lost"] >= 18
        assert_all_places_are_free(pool)


# -- detach() --------------------------------------------------------------------------------------------


def test_a_detached_connection_stays_open_and_its_place_is_free(pool):
    conn = pool.acquire()
    assert pool.detach(conn) is conn
    assert not conn.closed
    assert pool.stats().size == 0
    assert_all_places_are_free(pool)
    assert not conn.closed


def test_detaching_inside_a_block_leaves_the_transaction_to_the_borrower(pool, server):
    with pool.connection() as conn:
        conn.execute("write")
        pool.detach(conn)
    assert server.statements == ["write"]
    assert_all_places_are_free(pool)


def test_only_a_lent_connection_can_be_detached(pool):
    with pool.connection() as conn:
        pass
    with pytest.raises(PoolMisuse, match="detach.*released already"):
        pool.detach(conn)


# -- new connections -------------------------------------------------------------------------------------

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


def test_on_connect_runs_in_an_empty_context_and_its_work_is_kept(server):
    seen = []

    def hook(conn: FakeConnection) -> None:
        seen.append(tenant.get())
        conn.execute("set timezone")

    tenant.set("acme")
    with ConnectionPool(FakeAdapter(server), on_connect=hook) as pool, pool.connection():
        pass
    assert seen == ["nobody"]
    assert server.statements == ["set timezone", "commit"]


def test_max_uses_is_exact(server):
    with ConnectionPool(FakeAdapter(server), max_size=1, max_uses=3) as pool:
        numbers = []
        for _ in range(9):
            with pool.connection() as conn:
                numbers.append(conn.number)
    assert [numbers.count(number) for number in sorted(set(numbers))] == [3, 3, 3]


def test_a_plain_callable_that_returns_no_connection_is_told_so():
    with ConnectionPool(lambda: "not a connection", max_size=1) as pool:  # type: ignore[type-var]
        with pytest.raises(PoolMisuse, match="returned builtins.str, which is no DB-API connection"):
            pool.acquire()


def test_something_that_is_no_source_is_refused_at_construction():
    with pytest.raises(TypeError, match="needs an adapter, or a callable .* got a str; .*create_pool"):
        ConnectionPool("postgresql://")  # type: ignore[arg-type]


def test_a_url_of_an_unknown_kind_is_refused_without_repeating_its_password():
    with pytest.raises(PoolMisuse, match="postgresql://") as caught:
        create_pool("oracle://scott:tiger@db/x")
    assert "tiger" not in str(caught.value)


# -- figures ---------------------------------------------------------------------------------------------


def test_figures_add_up_while_connections_are_lent(pool):
    with pool.connection():
        conn = pool.acquire()
        stats = pool.stats()
        assert isinstance(stats, PoolStats)
        assert (stats.size, stats.in_use, stats.idle) == (2, 2, 0)
        assert stats.acquires == stats.releases + stats.in_use
        pool.release(conn)
    stats = pool.stats()
    assert (stats.acquires, stats.releases, stats.use.count) == (2, 2, 2)


def test_a_repr_tells_the_state_and_no_secret():
    pool = create_pool("postgresql://user:hunter2@db/app", name="orders")
    assert repr(pool) == "<ConnectionPool 'orders': 0 of 10 in use, 0 idle, 0 opening, 0 waiting>"
    pool.close()
    assert repr(pool) == "<ConnectionPool 'orders': closed>"
    assert "hunter2" not in repr(vars(pool))
