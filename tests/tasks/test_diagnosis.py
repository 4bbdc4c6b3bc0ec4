"""What errors say about tasks: who has the connections, by name and line, and who is gone."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import connpool
from connpool import PoolDeadlock, PoolTimeout
from connpool.events import Event
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


def test_connection_that_an_async_generator_holds_is_no_deadlock() -> None:
    async def main() -> None:
        async with make_pool(FakeServer(), max_size=1) as pool:

            @asynccontextmanager
            async def dependency() -> AsyncIterator[object]:
                async with pool.connection() as conn:
                    yield conn

            held = dependency()
            await held.__aenter__()  # who leaves it is somebody else, perhaps
            with connpool.deadline(0.05), pytest.raises(PoolTimeout) as caught:
                async with dependency():
                    pass
            assert not isinstance(caught.value, PoolDeadlock)
            await held.__aexit__(None, None, None)

    play(main)


def test_tasks_that_hold_long_or_end_are_told_by_name() -> None:
    async def main() -> None:
        events: list[Event] = []
        kept: list[object] = []

        async def take() -> None:
            kept.append(await pool.acquire())

        async with make_pool(FakeServer(), max_size=2, warn_after=0.05, observers=[events.append]) as pool:
            await asyncio.create_task(take())
            async with pool.connection():
                await asyncio.sleep(0.2)
            await pool.release(kept.pop())  # type: ignore[arg-type] # what was taken
            names = {event.name for event in events}
            assert names == {"long_hold", "thread_ended", "long_hold_over"}
            assert any("the task that borrowed" in event.text for event in events)

    play(main)
