"""Where tests of tasks play: a loop that notices what is left behind, and a strike at a chosen step."""

from __future__ import annotations

import asyncio
import gc
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from garbage import keep_out_of_collections

from connpool import AsyncConnectionPool
from connpool.testing import AsyncFakeAdapter, FakeConnection, FakeServer

R = TypeVar("R")
Pool = AsyncConnectionPool[FakeConnection]


def make_pool(server: FakeServer, **options: Any) -> Pool:
    return AsyncConnectionPool(AsyncFakeAdapter(server), **({"max_size": 2} | options))


def play(
    scene: Callable[[], Awaitable[R]], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> R:
    """Run a scene in a loop of its own; fail if it leaves a task behind, or an error nobody was told of."""
    troubles: list[object] = []

    async def watched() -> R:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        result = await scene()
        gc.collect()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks are left behind: {left}"
        return result

    keep_out_of_collections()  # a scene may ask for hundreds
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        result = runner.run(watched())
    gc.collect()
    assert not troubles, troubles
    return result


async def settle() -> None:
    """Let all other tasks come to their end, those that the pool owns among them."""
    async with asyncio.timeout(10):
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


def spare_me() -> None:
    """Forget that the present task was cancelled."""
    task = asyncio.current_task()
    while task is not None and task.uncancel():
        pass


async def pass_by(times: int = 10) -> None:
    """Let everybody else go on for a while."""
    for _ in range(times):
        await asyncio.sleep(0)


async def assert_sound(pool: Pool, server: FakeServer) -> None:
    """Check that nothing is lent, lost, left to do or unknown, and that every place can be borrowed."""
    gc.collect()
    pools = [pool] if pool._apart is None else [pool, pool._apart]
    for each in pools:
        each._core.rematch(None)  # takes back what was lost
        each._runner.follow_up()
    await settle()
    known = set()
    for each in pools:
        core, stats = each._core, each.stats()
        assert not core.debris
        assert not core.lost
        assert not core.waiters or core.closed
        assert not core._watchers
        assert stats.size == stats.idle == len(set(core.idle)), stats
        assert stats.acquires == stats.releases
        known |= {entry.conn for entry in core.idle}
        assert all(entry.pending is not None or not entry.conn.busy for entry in core.idle)
        assert not any(entry.conn.in_transaction for entry in core.idle)
    assert {conn for conn in server.sessions if not conn.closed} == known
    if not pool._core.closed:
        conns = [await pool.acquire(5.0) for _ in range(pool._core.max_size)]
        for conn in conns:
            await pool.release(conn)
        await settle()


class Strike:
    """Cancels the present task at the suspension of a number, or at each one from there on."""

    def __init__(self, at: int, *, again: bool = False) -> None:
        self.at = at
        self.again = again
        self.suspensions = 0
        self.last: BaseException | None = None  # what was thrown in

    @types.coroutine
    def into(self, coroutine: Coroutine[Any, Any, R]) -> Generator[Any, Any, R]:
        """Await a coroutine, and strike it."""
        resume: Callable[[Any], Any] = coroutine.send
        value: Any = None
        while True:
            try:
                future = resume(value)
            except StopIteration as stop:
                result: R = stop.value
                return result
            self.suspensions += 1
            if self.suspensions == self.at or (self.again and self.suspensions > self.at):
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                resume, value = coroutine.send, (yield future)
            except BaseException as exc:
                self.last = exc
                resume, value = coroutine.throw, exc

    @property
    def struck(self) -> bool:
        return self.suspensions >= self.at
