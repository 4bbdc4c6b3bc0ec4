"""What nobody gives back, because nobody has it any more: connections, tasks, generators, pools."""

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator

import pytest

from connpool import Reason
from connpool.testing import FakeConnection, FakeServer
from tasks.stage import assert_sound, make_pool, pass_by, play, settle


def test_fifty_connections_that_become_garbage_cost_no_place() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server) as pool:
            for _ in range(50):
                conn = await pool.acquire(5.0)
                assert len(server.sessions) <= 2
                del conn
                gc.collect()
            assert pool.stats().discards[Reason.LOST] >= 48
            await assert_sound(pool, server)

    with pytest.warns(ResourceWarning, match=r"test_garbage\.py:\d+ was lost") as warned:
        play(main)
    assert len(warned) >= 48


def test_a_task_that_waits_is_served_when_what_was_lent_becomes_garbage() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1) as pool:
            held = [await pool.acquire()]
            waiting = asyncio.create_task(pool.acquire(5.0))
            await pass_by()
            held.clear()  # nobody is told
            gc.collect()
            await pool.release(await waiting)
            await assert_sound(pool, server)

    with pytest.warns(ResourceWarning, match=r"test_garbage\.py:\d+ was lost"):
        play(main)


def test_a_coroutine_closed_in_its_block_gives_its_connection_back_without_waiting() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1) as pool:

            async def body() -> None:
                async with pool.connection() as conn:
                    conn.execute("write")
                    await asyncio.sleep(60)

            await assert_sound(pool, server)
            coroutine = body()
            coroutine.send(None)
            coroutine.close()  # to wait in it would be a RuntimeError
            await settle()
            assert server.statements[-2:] == ["write", "rollback"]
            await assert_sound(pool, server)
            assert server.connects == 1

    play(main)


def test_a_generator_left_in_its_block_gives_its_connection_back() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1) as pool:

            async def rows() -> AsyncIterator[int]:
                async with pool.connection() as conn:
                    conn.execute("select")
                    for row in range(10):
                        yield row

            async for _ in rows():
                break  # the generator is garbage, and its loop closes it
            gc.collect()
            await pass_by()
            assert server.statements == ["select", "rollback"]
            await assert_sound(pool, server)

    play(main)


def test_a_coroutine_collected_after_its_loop_was_closed_is_no_error() -> None:
    server = FakeServer()
    pool = make_pool(server, max_size=1)

    async def body() -> None:
        async with pool.connection() as conn:
            conn.execute("write")
            await asyncio.sleep(60)

    async def leave_in_the_middle() -> list[object]:
        async with pool.connection():
            pass
        coroutine = body()
        coroutine.send(None)
        return [coroutine]

    left = asyncio.run(leave_in_the_middle())
    left.clear()
    gc.collect()

    async def main() -> None:
        await pool.wait_ready()
        await assert_sound(pool, server)
        assert server.connects == 2
        await pool.close()

    play(main)


def test_a_pool_that_nobody_has_any_more_closes_its_idle_connections() -> None:
    async def main() -> None:
        server = FakeServer()
        pool = make_pool(server)
        async with pool.connection() as conn:
            pass
        await settle()
        gone, runner = weakref.ref(pool), pool._runner
        assert runner._timer is not None
        del pool
        gc.collect()
        assert gone() is None
        assert runner._timer is None
        assert conn.closed

    play(main)


def test_a_pool_that_was_dropped_is_no_garbage_while_a_block_uses_it() -> None:
    async def main() -> None:
        server = FakeServer()
        lease = make_pool(server).connection()
        async with lease as conn:
            gc.collect()
            conn.execute("write")
        assert server.statements == ["write", "commit"]
        await settle()

    play(main)


def test_a_process_that_ends_without_closing_its_pool_says_nothing() -> None:
    program = """
import asyncio
from connpool import AsyncConnectionPool
from connpool.testing import AsyncFakeAdapter, FakeServer

adapter = AsyncFakeAdapter(FakeServer(latency=0.01))
pool = AsyncConnectionPool(adapter, min_idle=2, nested="allow", keepalive=1.0)

async def main():
    await pool.wait_ready()
    asyncio.create_task(wait())
    async with pool.connection() as conn:
        conn.execute("write")

async def wait():
    async with pool.connection() as conn, pool.connection():
        await asyncio.sleep(60)

asyncio.run(main())
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    done = subprocess.run(  # noqa: PLW1510 -- its return code is looked at
        command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert not done.stderr


def test_ended_tasks_and_leases_are_no_cycles() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1) as pool:

            async def borrow() -> FakeConnection:
                async with pool.connection() as conn:
                    await conn.query("write")
                return conn

            await asyncio.gather(*(borrow() for _ in range(10)))
            await settle()
            gc.collect()
            gc.disable()
            try:
                await asyncio.gather(*(borrow() for _ in range(10)))
                await settle()
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                ours = [thing for thing in gc.garbage if type(thing).__module__.startswith("connpool")]
                assert not ours
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()

    play(main)
