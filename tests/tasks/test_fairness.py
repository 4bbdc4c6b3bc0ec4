"""First come, first served, among tasks: by tickets, ten thousand of them, whoever leaves in between."""

import asyncio
import random
import tracemalloc

from connpool.testing import FakeServer
from tasks.stage import assert_sound, make_pool, pass_by, play

WAITING = 10_000
BYTES = 6000  # per waiting task, its own coroutine and asyncio's part included


def test_ten_thousand_waiting_tasks_are_served_in_order_and_cost_little() -> None:
    async def main() -> None:
        server = FakeServer()
        served: list[int] = []

        async def visit(ticket: int) -> None:
            async with pool.connection(None):
                served.append(ticket)

        async with make_pool(server, max_size=1, max_waiting=None) as pool:
            async with pool.connection():
                tracemalloc.start()
                tasks = [asyncio.create_task(visit(ticket)) for ticket in range(WAITING)]
                await pass_by(3)
                size, _ = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                assert pool.stats().waiting == WAITING
                print(f"{size / WAITING:.0f} bytes per waiting task")
                assert size / WAITING < BYTES
            await asyncio.gather(*tasks)
            assert served == list(range(WAITING))
            assert server.connects == 1
            await assert_sound(pool, server)

    play(main)


def test_those_who_leave_the_queue_do_not_change_its_order() -> None:
    async def main() -> None:
        server = FakeServer()
        served: list[int] = []

        async def visit(ticket: int) -> None:
            async with pool.connection(None):
                served.append(ticket)
                await pass_by(random.randrange(3))

        async with make_pool(server, max_size=1) as pool:
            async with pool.connection():
                tasks = [asyncio.create_task(visit(ticket)) for ticket in range(300)]
                await pass_by()
            leavers = random.sample(range(300), 100)
            for ticket in leavers:
                tasks[ticket].cancel()
                await pass_by(random.randrange(3))
            await asyncio.gather(*tasks, return_exceptions=True)
            assert served == sorted(served)
            assert set(range(300)) - set(leavers) <= set(served)
            await assert_sound(pool, server)

    play(main)


def test_a_newcomer_does_not_overtake_who_was_handed_a_connection_and_does_not_know_yet() -> None:
    async def main() -> None:
        server = FakeServer()
        served: list[str] = []

        async def visit(name: str) -> None:
            async with pool.connection():
                served.append(name)

        async with make_pool(server, max_size=1) as pool:
            held = await pool.acquire()
            first = asyncio.create_task(visit("first"))
            await pass_by()
            await pool.release(held)
            await visit("newcomer")
            await first
            assert served == ["first", "newcomer"]

    play(main)
