"""A task that is cancelled leaves at once, as cancelled, and nothing stays behind: at every step there is."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from connpool import AsyncConnectionPool, PoolClosed, PoolTimeout
from connpool.testing import AsyncFakeAdapter, FakeConnection, FakeServer, Step
from tasks.stage import Pool, Strike, assert_sound, make_pool, pass_by, play, settle, spare_me

Scene = Callable[[Pool], Coroutine[Any, Any, object]]


async def borrow(pool: Pool) -> None:
    async with pool.connection():
        pass


async def borrow_and_ask(pool: Pool) -> None:
    async with pool.connection() as conn:
        await conn.query("write")


async def borrow_and_fail(pool: Pool) -> None:
    with pytest.raises(LookupError):
        async with pool.connection() as conn:
            conn.execute("write")
            raise LookupError


async def borrow_for_a_transaction(pool: Pool) -> None:
    async with pool.transaction() as conn:
        conn.execute("write")


async def acquire_and_release(pool: Pool) -> None:
    conn = await pool.acquire()
    try:
        await conn.query("write")
    finally:
        await pool.release(conn)


async def borrow_a_dedicated_one(pool: Pool) -> None:
    async with pool.dedicated() as conn:
        await conn.query("write")


async def warm_up(pool: Pool) -> None:
    """Leave a connection idle."""
    await borrow(pool)
    await settle()


async def lend_all(pool: Pool) -> None:
    """Lend all connections to holders who give them back after a few steps."""
    for steps in (3, 8):
        asyncio.create_task(hold(pool, steps))  # noqa: RUF006 -- the loop has it: it is never long asleep
    await pass_by(2)


async def hold(pool: Pool, steps: int) -> None:
    async with pool.connection():
        await pass_by(steps)


async def do_nothing(pool: Pool) -> None:
    pass


async def get_ready(pool: Pool) -> None:
    await pool.wait_ready()


async def close(pool: Pool) -> None:
    await pool.close()


async def ask(conn: FakeConnection) -> None:
    await conn.query("hook")


async def say_goodbye(conn: FakeConnection) -> None:
    await asyncio.sleep(0)


HOOKS = {"on_connect": ask, "on_acquire": ask, "on_release": ask, "on_close": say_goodbye}

SCENES: dict[str, tuple[Scene, Scene, dict[str, Any]]] = {
    # what comes before, what is cancelled, and the pool's options
    "must-open": (do_nothing, borrow, {}),
    "must-open-with-a-hook": (do_nothing, borrow_and_ask, HOOKS),
    "must-open-with-parts": (do_nothing, borrow, {"reset": "full", "require": "read-write"}),
    "must-ping": (warm_up, borrow, {"ping_after": 0, "probe_after": 0}),
    "queued": (lend_all, borrow, {}),
    "hooks": (warm_up, borrow_and_ask, HOOKS),
    "body-and-commit": (warm_up, borrow_and_ask, {}),
    "rollback": (warm_up, borrow_and_fail, {}),
    "full-reset": (warm_up, borrow_and_ask, {"reset": "full", "on_connect": ask}),
    "deferred-reset": (warm_up, borrow_and_ask, {"reset": "full"}),
    "last-use": (warm_up, borrow_and_ask, {"max_uses": 1}),
    "limited-commit": (warm_up, borrow_and_ask, {"commit_timeout": 5.0}),
    "transaction": (warm_up, borrow_for_a_transaction, {}),
    "acquire-and-release": (do_nothing, acquire_and_release, {}),
    "dedicated": (do_nothing, borrow_a_dedicated_one, {}),
    "ready": (do_nothing, get_ready, {"min_idle": 2}),
    "close": (warm_up, close, {"min_idle": 2}),
}


@pytest.mark.parametrize("again", [False, True], ids=["once", "again-and-again"])
@pytest.mark.parametrize("scene", SCENES)
def test_cancelled_at_every_step_it_leaves_as_cancelled_and_nothing_behind(scene: str, again: bool) -> None:
    prepare, action, options = SCENES[scene]

    async def cancelled_at(step: int) -> bool:
        server = FakeServer()
        pool = make_pool(server, **options)
        await prepare(pool)
        strike = Strike(step, again=again)
        try:
            await strike.into(action(pool))
        except asyncio.CancelledError as exc:
            assert exc is strike.last, "another CancelledError came out than went in"
        else:
            assert not strike.struck, "the cancellation was swallowed"
        spare_me()
        await settle()
        assert not pool._core.debris, "what was discarded waits for somebody to come by"
        await assert_sound(pool, server)
        await pool.close()
        assert pool.stats().size == 0
        assert not server.sessions
        return strike.struck

    async def main() -> int:
        step = 1
        while await cancelled_at(step):
            step += 1
        return step - 1

    assert play(main) > 0, "the scene has no step at which it could be cancelled"


def test_a_connection_at_hand_is_lent_and_taken_back_without_a_step_in_between() -> None:
    async def main() -> None:
        async with make_pool(FakeServer()) as pool:
            await borrow(pool)
            strike = Strike(1)
            await strike.into(borrow(pool))
            assert not strike.struck

    play(main)


def test_cancelled_in_the_moment_of_the_hand_over_the_next_in_line_is_served() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1) as pool:
            held = await pool.acquire()
            first, second = (asyncio.create_task(pool.acquire()) for _ in range(2))
            await pass_by()
            await pool.release(held)  # the first one has it, and does not know yet ...
            first.cancel()  # ... nor that it is cancelled
            assert await second is held
            assert first.cancelled()
            await pool.release(held)
            await assert_sound(pool, server)

    play(main)


def test_a_block_that_was_cancelled_between_statements_is_rolled_back_and_its_connection_kept() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server) as pool:

            async def body() -> None:
                async with pool.connection() as conn:
                    conn.execute("write")
                    await asyncio.sleep(60)

            task = asyncio.create_task(body())
            await pass_by()
            for _ in range(3):  # as anyio's scopes do, until the task has left
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            await assert_sound(pool, server)
            assert server.statements == ["write", "rollback"]
            assert server.connects == 2  # the second place was tried by assert_sound

    play(main)


def test_a_task_that_left_before_its_connection_was_back_does_not_wait_for_itself() -> None:
    async def main() -> None:
        server = FakeServer(latency={Step.ROLLBACK: 0.05})
        task = asyncio.current_task()
        assert task is not None
        async with make_pool(server, max_size=1) as pool:
            with pytest.raises(asyncio.CancelledError):
                async with pool.connection() as conn:
                    conn.execute("write")
                    task.cancel()
                    asyncio.get_running_loop().call_later(0.01, task.cancel)  # while it is rolled back
                    await asyncio.sleep(60)
            spare_me()
            assert pool.stats().in_use == 1  # a task of the pool's has it
            async with pool.connection():
                pass
            await assert_sound(pool, server)
            assert server.connects == 1

    play(main)


def test_a_block_that_was_cancelled_in_the_middle_of_an_exchange_loses_its_connection() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1) as pool:

            async def body() -> None:
                async with pool.connection() as conn:
                    await conn.query("select", 60)

            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await body()
            async with pool.connection() as conn:
                assert not conn.busy
            assert server.connects == 2

    play(main)


def test_a_cancelled_borrower_does_not_wait_for_the_server() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1, reset_timeout=None) as pool:
            await borrow(pool)

            async def body() -> None:
                async with pool.connection() as conn:
                    conn.execute("write")
                    server.latency = {Step.ROLLBACK: 60.0}
                    raise LookupError

            task = asyncio.create_task(body())
            await pass_by()
            assert not task.done()  # it waits for the answer to its rollback
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 0.1)
            server.latency = 0.0
            await assert_sound(pool, server)

    play(main)


def test_timeouts_of_asyncio_cap_an_acquire_and_lose_nothing() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server, max_size=1) as pool, pool.connection():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await pool.acquire()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.acquire(), 0.01)
            with pytest.raises(PoolTimeout):
                await pool.acquire(0.01)
            assert pool.stats().waiting == 0
        await assert_sound(pool, server)

    play(main)


def test_a_task_group_that_fails_takes_its_borrowers_with_it() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server) as pool:
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as group:
                    for _ in range(10):
                        group.create_task(borrow_and_ask(pool))
                    async with pool.connection() as conn:
                        conn.execute("write")
                        raise LookupError("mine")
            assert [str(error) for error in caught.value.exceptions] == ["mine"]
            await assert_sound(pool, server)

    play(main)


def test_closing_fails_those_who_wait_and_leaves_no_task() -> None:
    async def main() -> None:
        server = FakeServer(latency=0.001)
        pool = make_pool(server, max_size=1)
        held = await pool.acquire()
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(5)]
        await pass_by()
        closing = asyncio.create_task(pool.close())
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, PoolClosed) for result in results)
        assert not closing.done()  # a connection is lent still
        await pool.release(held)
        await closing
        assert not server.sessions

    play(main)


def test_closing_cuts_what_is_not_given_back_and_cancels_a_dial_that_hangs() -> None:
    async def main() -> None:
        server = FakeServer()
        pool = make_pool(server)
        conn = await pool.acquire()
        server.latency = 60.0
        with pytest.raises(PoolTimeout):
            await pool.acquire(0.01)  # its dial goes on
        await asyncio.wait_for(pool.close(0.01), 2.0)
        assert conn.closed
        assert not pool._runner._tasks

    play(main)


def test_closing_without_waiting_says_goodbye_to_what_is_idle() -> None:
    aborted = []

    class Rude(AsyncFakeAdapter):
        def abort(self, conn: FakeConnection) -> None:
            aborted.append(conn)
            super().abort(conn)

    async def main() -> None:
        server = FakeServer(latency={Step.CLOSE: 0.02})
        pool = AsyncConnectionPool(Rude(server))
        await borrow(pool)
        await pool.close(0)
        assert not server.sessions
        assert not aborted

    play(main)


def test_tasks_of_the_pools_that_are_cancelled_before_they_begin_leave_nothing_open() -> None:
    async def main() -> None:
        server = FakeServer()
        async with make_pool(server) as pool:
            async with pool.connection() as conn:
                pass
            await settle()
            pool.evict()
            await asyncio.sleep(0)  # tasks that are to close it and to open another have been made ...
            tasks = list(pool._runner._tasks)
            for task in tasks:
                task.cancel()  # ... and all are cancelled now; who keeps them must not matter
            await settle()
            assert conn.closed
            await assert_sound(pool, server)
            assert tasks

    play(main)


@pytest.mark.timeout(60)
def test_ten_thousand_tasks_half_of_them_cancelled_at_random_lose_nothing() -> None:
    """On five connections, with each way of borrowing; the seed makes the instants, the loop the order."""
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    scenes: list[Callable[[Pool], Awaitable[object]]]
    scenes = [borrow, borrow_and_ask, borrow_for_a_transaction, acquire_and_release]

    async def main() -> None:
        server = FakeServer()
        served = 0

        async def visit(scene: Callable[[Pool], Awaitable[object]], after: int) -> None:
            nonlocal served
            await pass_by(after)
            await scene(pool)
            served += 1

        async with make_pool(server, max_size=5, max_waiting=None, acquire_timeout=None) as pool:
            tasks = [
                asyncio.create_task(visit(chance.choice(scenes), chance.randrange(5))) for _ in range(10_000)
            ]
            victims = chance.sample(tasks, 5_000)
            while victims:
                await asyncio.sleep(0)
                for _ in range(chance.randrange(20)):
                    if victims:
                        victims.pop().cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            errors = [error for error in results if isinstance(error, Exception)]
            assert not errors
            assert served >= 5_000
            assert sum(isinstance(result, asyncio.CancelledError) for result in results) + served == 10_000
            await assert_sound(pool, server)
            assert pool.stats().size <= 5
        assert not server.sessions

    play(main)
