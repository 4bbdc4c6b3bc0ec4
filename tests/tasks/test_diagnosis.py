"""What errors say about tasks: who has the connections, by name and line, and who is gone."""

import asyncio
import gc

import pytest

from connpool import PoolDeadlock, PoolTimeout
from connpool.testing import FakeConnection, FakeServer
from tasks.stage import Pool, assert_sound, make_pool, play


def test_a_timeout_names_the_tasks_that_hold_the_connections_and_their_lines() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server) as pool:
            entered = asyncio.Event()

            async def hold() -> None:
                async with pool.connection():  # here
                    entered.set()
                    await asyncio.sleep(60)

            for way in ("by the flow", "on the warm path"):
                entered.clear()
                holder = asyncio.create_task(hold(), name="the holder")
                await entered.wait()
                pool.resize(max_size=1)
                with pytest.raises(PoolTimeout) as caught:
                    await pool.acquire(0.01)
                (borrower,) = caught.value.holders
                line = hold.__code__.co_firstlineno + 1
                assert borrower.site.endswith(f"test_diagnosis.py:{line}"), way
                assert borrower.name == "the holder"
                holder.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await holder

    play(main)


@pytest.mark.parametrize("warm", [False, True])
def test_a_connection_of_a_task_that_is_gone_is_told_of(warm: bool) -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server) as pool:
            if warm:
                await assert_sound(pool, server)
            lost: FakeConnection = await asyncio.create_task(pool.acquire())
            gc.collect()
            async with pool.connection():
                with pytest.raises(PoolTimeout) as caught:
                    await pool.acquire(0.01)
            assert [holder.ended for holder in caught.value.holders].count(True) == 1
            await pool.release(lost)
            await assert_sound(pool, server)

    play(main)


def test_tasks_that_wait_for_each_other_are_told_at_once() -> None:
    async def main() -> None:
        server = FakeServer()

        async def borrow_two(pool: Pool) -> str:
            async with pool.connection():
                await asyncio.sleep(0)
                async with pool.connection():
                    return "both"

        async with make_pool(server, acquire_timeout=None) as pool:
            results = await asyncio.gather(*(borrow_two(pool) for _ in range(2)), return_exceptions=True)
            assert results.count("both") == 1
            (error,) = (result for result in results if isinstance(result, BaseException))
            assert isinstance(error, PoolDeadlock)
            await assert_sound(pool, server)

    play(main)
