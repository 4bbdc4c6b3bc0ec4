"""A pool belongs to one event loop at a time, and to the next one when that is closed."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from connpool import PoolDeadlock, PoolMisuse, PoolTimeout
from connpool.testing import FakeConnection, FakeServer
from tasks.stage import Pool, assert_sound, make_pool, pass_by, play, settle


async def borrow(pool: Pool) -> FakeConnection:
    async with pool.connection() as conn:
        conn.execute("write")
    return conn


def test_a_pool_made_outside_of_a_loop_serves_three_runs_in_a_row() -> None:
    server = FakeServer()
    pool = make_pool(server)
    seen = [asyncio.run(borrow(pool)) for _ in range(3)]
    assert len(set(seen)) == 3  # none is lent in another loop than its own
    assert [conn.closed for conn in seen] == [True, True, False]
    assert pool.stats().size == 1

    async def main() -> None:
        await assert_sound(pool, server)
        await pool.close()

    play(main)
    assert not server.sessions
    asyncio.run(pool.close())  # of a loop that never used it


def test_what_was_lent_and_who_waited_in_a_loop_that_was_closed_is_forgotten() -> None:
    server = FakeServer()
    pool = make_pool(server, max_size=1)

    async def leave_in_the_middle() -> list[object]:
        conn = await pool.acquire()
        waiting = pool.acquire()
        waiting.send(None)
        return [conn, waiting]

    left = asyncio.run(leave_in_the_middle())

    async def main() -> None:
        assert not (await borrow(pool)).closed
        with pytest.raises(PoolMisuse, match="not from this pool"):
            await pool.release(left[0])  # type: ignore[arg-type] # it is the connection
        left.clear()  # its waiter is closed here
        gc.collect()
        await assert_sound(pool, server)
        await pool.close()

    play(main)


def test_bounds_and_states_outlive_the_loop() -> None:
    server = FakeServer()
    pool = make_pool(server)
    asyncio.run(borrow(pool))
    pool.resize(max_size=1)
    pool.suspend()

    async def main() -> None:
        with pytest.raises(PoolTimeout, match="suspended"):
            await pool.acquire(0.01)
        pool.resume()
        async with pool.connection(), asyncio.timeout(1):
            with pytest.raises(PoolDeadlock):
                await pool.acquire(0.01)
        await pool.close()

    play(main)


def test_a_second_loop_that_runs_at_the_same_time_is_refused_at_once() -> None:
    server = FakeServer()

    async def main() -> None:
        async with make_pool(server) as pool:
            await borrow(pool)
            for use in (borrow, Pool.acquire, Pool.wait_ready, Pool.close):
                with pytest.raises(PoolMisuse, match="belongs to the event loop that used it first"):
                    await asyncio.to_thread(lambda use=use: asyncio.run(use(pool)))
            lease = pool.connection()
            (await lease.__aenter__()).execute("write")
            with pytest.raises(PoolMisuse, match="belongs to the event loop"):
                await asyncio.to_thread(lambda: asyncio.run(lease.__aexit__(None, None, None)))
            await assert_sound(pool, server)

    play(main)


def test_eviction_bounds_and_resumption_may_come_from_any_thread() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)  # it refuses what another thread must not do
        server = FakeServer()
        async with make_pool(server, max_size=1) as pool:
            first = await borrow(pool)
            pool.suspend()
            waiting = asyncio.create_task(pool.acquire())
            await pass_by()
            await asyncio.to_thread(pool.resume)  # hands an idle connection over
            assert await waiting is first
            await pool.release(first)
            await asyncio.to_thread(pool.evict)
            await asyncio.to_thread(pool.resize, max_size=2)
            await settle()
            assert first.closed
            await assert_sound(pool, server)

    play(main)


@pytest.mark.skipif(sys.platform == "win32", reason="no uvloop here")
@pytest.mark.parametrize("main", ["cycle", "crowd"])
def test_uvloop_runs_it(main: str) -> None:
    import uvloop

    async def cycle() -> None:
        server = FakeServer(latency=0.001)
        async with make_pool(server, ping_after=0, probe_after=0, idle_timeout=0.05) as pool:
            for _ in range(3):
                await borrow(pool)
            with pytest.raises(PoolTimeout):
                async with pool.connection(), pool.connection():
                    await pool.acquire(0.02)
            await assert_sound(pool, server)
            await asyncio.sleep(0.2)
            assert pool.stats().size == 0

    async def crowd() -> None:
        server = FakeServer()
        async with make_pool(server) as pool:
            tasks = [asyncio.create_task(borrow(pool)) for _ in range(500)]
            await pass_by(3)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, FakeConnection) for result in results[1::2])
            await assert_sound(pool, server)

    scenes: dict[str, Callable[[], object]] = {"cycle": cycle, "crowd": crowd}
    play(scenes[main], uvloop.new_event_loop)  # type: ignore[arg-type] # a coroutine function


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_opens_connections_of_its_own() -> None:
    program = """
import asyncio, os, threading
from connpool import AsyncConnectionPool
from connpool.testing import AsyncFakeAdapter, FakeServer

pool = AsyncConnectionPool(AsyncFakeAdapter(FakeServer()))

async def borrow():
    async with pool.connection() as conn:
        return conn.number

def child(parents):
    # Not in the loop that it was forked in: that one is the parent's.
    numbers = []
    thread = threading.Thread(target=lambda: numbers.append(asyncio.run(borrow())))
    thread.start()
    thread.join()
    os._exit(0 if numbers and parents not in numbers else 1)

async def main():
    mine = await borrow()
    pid = os.fork() or child(mine)
    assert os.waitpid(pid, 0)[1] == 0
    assert await borrow() == mine
    await pool.close()

asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(  # noqa: PLW1510 -- its return code is looked at
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_a_pool_keeps_no_thread() -> None:
    async def main() -> None:
        before = threading.enumerate()
        async with make_pool(FakeServer(), min_idle=2) as pool:
            await pool.wait_ready()
            await settle()
            assert threading.enumerate() == before

    play(main)
