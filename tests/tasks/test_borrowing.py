"""Lending to tasks and taking back: transactions, hooks, misuse, the pool as a whole."""

import asyncio
import contextvars

import pytest

import connpool
from connpool import (
    AsyncConnectionPool,
    PoolClosed,
    PoolDeadlock,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
    Reason,
)
from connpool.testing import (
    AsyncFakeAdapter,
    FakeConnection,
    FakeError,
    FakeOperationalError,
    FakeServer,
    Step,
)
from tasks.stage import assert_sound, make_pool, pass_by, play, settle

context = contextvars.ContextVar("context", default="empty")


def test_a_block_is_committed_or_rolled_back_and_a_clean_one_sends_nothing() -> None:
    async def main() -> None:
        server = FakeServer()
        error = LookupError("mine")
        async with make_pool(server) as pool:
            async with pool.connection():
                pass
            async with pool.connection() as conn:
                assert type(conn) is FakeConnection
                conn.execute("first")
            with pytest.raises(LookupError) as caught:
                async with pool.connection() as conn:
                    conn.execute("second")
                    raise error
            assert caught.value is error
            async with pool.transaction() as conn:
                conn.execute("third")
            with pytest.raises(PoolMisuse, match="the transaction has failed"):
                async with pool.connection() as conn:
                    with pytest.raises(FakeError):
                        conn.execute("fail")
            await assert_sound(pool, server)
        expected = ["first", "commit", "second", "rollback", "begin", "third", "commit", "fail", "rollback"]
        assert server.statements == expected

    play(main)


def test_a_transaction_that_cannot_begin_gives_its_connection_back() -> None:
    class Refusing(AsyncFakeAdapter):
        async def begin(self, conn: FakeConnection) -> None:
            raise FakeError("no transaction")

    async def main() -> None:
        server = FakeServer()
        async with AsyncConnectionPool(Refusing(server), max_size=1) as pool:
            with pytest.raises(FakeError, match="no transaction"):
                async with pool.transaction():
                    raise AssertionError("no block without BEGIN")
            await assert_sound(pool, server)
            assert server.connects == 1

    play(main)


def test_hooks_are_functions_or_coroutine_functions_and_run_where_they_are_told() -> None:
    seen = []

    def plain(conn: FakeConnection) -> None:
        seen.append(("plain", context.get()))

    async def slow(conn: FakeConnection) -> None:
        await asyncio.sleep(0)
        seen.append(("slow", context.get()))

    async def main() -> None:
        context.set("borrower")
        for hook in (plain, slow):
            server = FakeServer()
            async with make_pool(server, on_connect=hook, on_close=hook) as pool, pool.connection():
                pass
            async with make_pool(server, on_acquire=hook, on_release=hook) as pool, pool.connection():
                pass
            async with make_pool(server, reset=hook) as pool, pool.connection():
                pass

    play(main)
    for kind in ("plain", "slow"):
        found = [where for name, where in seen if name == kind]
        assert found == ["empty", "empty", "borrower", "borrower", "borrower"]


def test_on_connect_keeps_its_context_in_a_reset_of_the_borrowers_task() -> None:
    seen = []

    async def prepare(conn: FakeConnection) -> None:
        await asyncio.sleep(0)
        seen.append(context.get())
        context.set("leaked")

    async def main() -> None:
        context.set("borrower")
        async with make_pool(FakeServer(), on_connect=prepare, reset="full") as pool, pool.connection():
            pass
        assert context.get() == "borrower"

    play(main)
    assert seen == ["empty", "empty"]


def test_a_hook_that_fails_is_told_to_who_waits_and_one_at_closing_to_the_loop() -> None:
    async def main() -> None:
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        server = FakeServer()

        async def fail(conn: FakeConnection) -> None:
            raise LookupError("hook")

        async with make_pool(server, on_connect=fail) as pool:
            with pytest.raises(PoolUnavailable) as caught:
                await pool.acquire()
            assert isinstance(caught.value.__cause__, LookupError)
        async with make_pool(server, on_close=fail) as pool, pool.connection():
            pass
        (context,) = told
        assert isinstance(context["exception"], LookupError)
        assert "fail" in context["message"]

    play(main)


def test_credentials_may_be_awaited_and_dials_at_the_same_time_share_them() -> None:
    asked = 0

    async def provide() -> dict[str, str]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return {"password": "right"}

    async def main() -> None:
        server = FakeServer(password="right")
        async with make_pool(server, credentials=provide, min_idle=2) as pool:
            await pool.wait_ready()
            assert asked == 1
            await assert_sound(pool, server)

    play(main)


def test_acquire_and_release_roll_back_and_tell_of_misuse() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server) as pool:
            conn = await pool.acquire()
            conn.execute("write")
            await pool.release(conn)
            assert server.statements == ["write", "rollback"]
            with pytest.raises(PoolMisuse, match="released already"):
                await pool.release(conn)
            with pytest.raises(PoolMisuse, match="not from this pool"):
                pool.detach(FakeConnection(server))
            async with pool.connection() as lent:
                with pytest.raises(PoolMisuse, match="lent by a `with` block"):
                    await pool.release(lent)
                assert pool.detach(lent) is lent
            assert not lent.closed
            lent.close()
            lease = pool.connection()
            async with lease:
                with pytest.raises(PoolMisuse, match="one `with` block at a time"):
                    await lease.__aenter__()
            with pytest.raises(PoolMisuse, match="ended already"):
                await lease.__aexit__(None, None, None)
            with pytest.raises(AttributeError, match="a lease is no connection"):
                pool.connection().execute  # noqa: B018 -- what is looked up is the test
            await assert_sound(pool, server)

    play(main)


def test_dedicated_connections_are_beside_the_pool_and_lent_once() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1, max_dedicated=1) as pool:
            async with pool.dedicated() as conn:
                assert pool.stats().dedicated == 1
                assert pool.stats().size == 0
                with pytest.raises(PoolTimeout):
                    async with pool.dedicated(0.01):
                        pass
            await settle()
            assert conn.closed
            await assert_sound(pool, server)
        with pytest.raises(PoolClosed):
            async with pool.dedicated():
                pass
        with pytest.raises(PoolMisuse, match="max_dedicated=0"):
            make_pool(server, max_dedicated=0).dedicated()

    play(main)


def test_a_full_pool_says_so_in_time() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1, max_waiting=1) as pool, pool.connection():
            waiting = asyncio.create_task(pool.acquire(0.05))
            await pass_by()
            with pytest.raises(PoolOverloaded):
                await pool.acquire()
            with pytest.raises(PoolTimeout, match="at once"):
                await make_full_and_ask(server)
            with pytest.raises(PoolTimeout, match="1 of 1 in use"):
                await waiting
            with connpool.deadline(0.02), pytest.raises(PoolDeadlock):
                await pool.acquire()
            with pytest.raises(ValueError, match="timeout"):
                pool.connection(-1)

    async def make_full_and_ask(server: FakeServer) -> None:
        async with make_pool(server, max_size=1) as pool, pool.connection():
            await pool.acquire(0)

    play(main)


def test_an_outage_costs_no_caller_an_error() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, ping_after=0, probe_after=0) as pool:
            await assert_sound(pool, server)
            server.down()
            waiting = asyncio.create_task(pool.acquire(5.0))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            server.up()
            await pool.release(await waiting)
            await assert_sound(pool, server)

    play(main)


def test_a_rollback_without_an_answer_ends_in_time_and_the_place_is_free() -> None:
    async def main() -> None:
        server = FakeServer(latency={Step.ROLLBACK: 60.0})
        async with make_pool(server, max_size=1, reset_timeout=0.02) as pool:
            with pytest.raises(LookupError):
                async with pool.connection() as conn:
                    conn.execute("write")
                    raise LookupError
            await assert_sound(pool, server)
            assert server.connects == 2

    play(main)


def test_a_commit_without_an_answer_is_cut_in_time() -> None:
    class Cutting(AsyncFakeAdapter):
        """An exchange that its connection's end ends, as a driver's."""

        def abort(self, conn: FakeConnection) -> None:
            super().abort(conn)
            cut.set()

        async def commit(self, conn: FakeConnection) -> None:
            await cut.wait()
            raise FakeOperationalError("server closed the connection unexpectedly")

    cut = asyncio.Event()

    async def main() -> None:
        server = FakeServer()
        async with AsyncConnectionPool(Cutting(server), commit_timeout=0.02) as pool:
            with pytest.raises(PoolTimeout, match="whether the server has committed is not known"):
                async with pool.connection() as conn:
                    conn.execute("write")
            await settle()
            assert pool.stats().size == 0

    play(main)


def test_the_pool_as_a_whole_is_evicted_resized_suspended_and_read() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, min_idle=2) as pool:
            await pool.wait_ready()
            first = {entry.conn for entry in pool._core.idle}
            pool.evict()
            assert pool.stats().idle == 0  # at once
            await settle()
            assert all(conn.closed for conn in first)
            assert pool.stats().idle == 2  # replaced
            pool.evict(over=60.0)
            pool.suspend()
            waiting = asyncio.create_task(pool.acquire())
            await pass_by()
            assert not waiting.done()
            assert "suspended" in repr(pool)
            pool.resume()
            await pool.release(await waiting)
            pool.resize(max_size=1, min_idle=0)
            await settle()
            assert pool.stats().size == 1
            assert pool.stats().discards[Reason.SURPLUS] == 1
            with pytest.raises(ValueError, match="min_idle"):
                pool.resize(min_idle=5)
        await pool.close()  # twice is harmless
        assert "closed" in repr(pool)
        with pytest.raises(PoolClosed):
            await pool.acquire()
        with pytest.raises(PoolClosed):
            await pool.wait_ready()
        assert not server.sessions

    play(main)


def test_idle_connections_are_closed_and_kept_alive_by_the_loops_own_timer() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, idle_timeout=0.05, max_size=3) as pool:
            await assert_sound(pool, server)
            assert pool.stats().size == 3
            await asyncio.sleep(0.2)
            assert pool.stats().size == 0
            assert pool.stats().discards[Reason.IDLE] == 3
        async with make_pool(server, keepalive=0.02) as pool:
            async with pool.connection() as conn:
                pass
            server.kill_sessions()
            await asyncio.sleep(0.1)
            assert pool.stats().size == 0
            assert not conn.alive

    play(main)


def test_a_plain_callable_chooses_the_adapter_and_one_that_nobody_knows_is_refused() -> None:
    class Strange:
        pass

    async def connect() -> FakeConnection:
        connects.append(1)
        return FakeConnection(server)

    async def refuse() -> Strange:
        return Strange()

    server = FakeServer()
    connects: list[int] = []

    async def main() -> None:
        connpool.register_async("connpool", f"{__name__}:CallableAdapter")
        async with AsyncConnectionPool(connect, max_size=1) as pool:
            async with pool.connection() as conn:
                await conn.query("write")
            assert server.statements == ["write", "commit"]
        assert connects == [1]
        async with AsyncConnectionPool(refuse) as pool:
            with pytest.raises(PoolMisuse, match="Strange, for which no adapter for asyncio is known"):
                await pool.acquire()

    try:
        play(main)
    finally:
        del connpool.adapter._ASYNC_DRIVERS["connpool"]


class CallableAdapter(AsyncFakeAdapter):
    bounded = False

    @classmethod
    def around(cls, connect: object) -> "CallableAdapter":
        return cls(FakeServer())
