"""The contract for adapters of asyncio drivers: the same tests, through an event loop in a thread.

    class AsyncpgHarness(AsyncHarness): ...

    class TestAsyncpg(AsyncAdapterContract):
        @pytest.fixture
        def harness(self, postgresql): return AsyncpgHarness(postgresql)

The tests of `AdapterContract` see `Blocking` adapters and connections, whose coroutine functions block until
they are through. What must be true of coroutines only, of cancelling above all, is added here.
"""

import asyncio
import atexit
import gc
import inspect
import os
import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from time import monotonic
from typing import Any, TypeVar

import pytest

from adapters.contract import FINISHED, FULL, LIMIT, SHORT, SOON, AdapterContract, Harness, Lent
from connpool.adapter import Adapter, AsyncAdapter, Fault, Verdict, async_adapter_for, async_adapter_for_url

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own; in a forked child, which has not that thread, a new loop."""

    def __init__(self) -> None:
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coro: Awaitable[T]) -> T:
        if self._loop is None:
            self._pid = os.getpid()
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True)
            thread.start()
            atexit.register(self._stop, self._loop, thread)

        async def awaited() -> T:
            return await coro

        if self._pid != os.getpid():
            with asyncio.Runner() as runner:
                return runner.run(awaited())
        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    @staticmethod
    def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SOON)
        loop.close()


_loop = Loop()
run = _loop.run


class Blocking:
    """An asyncio driver's connection whose methods block."""

    real: Any

    def __init__(self, real: Any) -> None:
        self.__dict__["real"] = real

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.real, name, value)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.real, name)
        if not inspect.ismethod(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            async def in_the_loop() -> Any:
                result = value(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result

            return run(in_the_loop())

        return call


class BlockingAdapter:
    """An asyncio adapter as `Adapter`: what the tests of the contract speak to."""

    connection: type[Blocking]

    def __init__(self, real: AsyncAdapter[Any], connection: type[Blocking] = Blocking) -> None:
        self.real = real
        self.connection = connection

    def __repr__(self) -> str:
        return repr(self.real)

    def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> Any:
        return self.connection(run(self.real.connect(limit, credentials)))

    def verdict(self, conn: Blocking, baseline: object) -> Verdict:
        return self.real.verdict(conn.real, baseline)

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        return self.real.fault(exc, dialling=dialling)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.real, name)
        if not inspect.ismethod(value):
            return value

        def call(conn: Blocking, *args: Any) -> Any:
            result = value(conn.real, *args)
            return run(result) if inspect.iscoroutine(result) else result

        return call


class Unread:
    """An asynchronous generator of rows, which is ended when nobody refers to this any more."""

    def __init__(self, rows: AsyncGenerator[Any, None]) -> None:
        self._rows = rows
        run(anext(rows))

    def __del__(self) -> None:
        run(self._rows.aclose())


class AsyncHarness(Harness):
    """How things are done with an asyncio driver: by coroutines, whose names begin with ``a``."""

    connection: type[Blocking] = Blocking
    census: str
    """The statement whose rows are the sessions of the harness's database."""

    # -- for a driver to say

    def aadapter(self) -> AsyncAdapter[Any]:
        raise NotImplementedError

    async def aconnect(self) -> Any:
        raise NotImplementedError

    async def arun(self, conn: Any, statement: str) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    async def aslow(self, conn: Any) -> None:
        """Execute a statement that takes a minute."""
        raise NotImplementedError

    async def acommit(self, conn: Any) -> None:
        await conn.commit()

    def sessions(self, lent: Lent) -> list[Any]:
        """Return what there is of other sessions in the harness's database."""
        found = self.run(lent.conn, self.census)
        lent.adapter.rollback(lent.conn, LIMIT)
        return found

    # -- for the contract

    def slow(self, conn: Any) -> None:
        run(self.aslow(conn.real))

    def block(self, adapter: AsyncAdapter[Any]) -> Any:
        return BlockingAdapter(adapter, self.connection)

    def adapter(self) -> Adapter[Any]:
        return self.block(self.aadapter())

    def connect(self) -> Any:
        return self.connection(run(self.aconnect()))

    def adapter_for(self, first: Any) -> Adapter[Any]:
        adapter = async_adapter_for(first.real, self.aconnect)
        assert adapter is not None
        return self.block(adapter)

    def adapter_for_url(self) -> Adapter[Any]:
        return self.block(async_adapter_for_url(self.url()))

    def kind(self, adapter: Any) -> type[Any]:
        return type(adapter.real)

    def run(self, conn: Any, statement: str) -> list[tuple[Any, ...]]:
        return run(self.arun(conn.real, statement))

    def create_table(self, conn: Any) -> None:
        self.run(conn, f"CREATE TABLE {self.table} (a INTEGER)")
        run(self.acommit(conn.real))


class Cancelled:
    """Awaits something in a task that is cancelled when it comes to its k-th suspension."""

    def __init__(self, awaitable: Awaitable[T], k: int) -> None:
        self._awaitable = awaitable
        self._k = k
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._awaitable.__await__()
        call, value = steps.send, None
        while True:
            try:
                future = call(value)
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._k:
                task = asyncio.current_task()
                assert task is not None
                task.cancel("the test's")
            call, value = steps.send, None
            try:
                yield future
            except BaseException as exc:
                call, value = steps.throw, exc


async def cancelled_at(k: int, awaitable: Awaitable[Any]) -> bool:
    """Run something in a task that is cancelled at its k-th suspension; tell whether it came to that.

    CancelledError must come out then, and soon.
    """
    cancelled = Cancelled(awaitable, k)

    async def body() -> None:
        await cancelled

    task = asyncio.ensure_future(body())
    done, _ = await asyncio.wait([task], timeout=SOON)
    assert done, f"cancelled at suspension {k}, and still there after {SOON:g} s"
    if cancelled.suspensions < k:
        task.result()
        return False
    assert task.cancelled(), f"cancelled at suspension {k}: {task.exception()!r}"
    return True


STEPS: Mapping[str, Callable[[Any, Any, Any], Coroutine[Any, Any, Any]]] = {
    "ping": lambda adapter, conn, baseline: adapter.ping(conn, LIMIT),
    "begin": lambda adapter, conn, baseline: adapter.begin(conn),
    "commit": lambda adapter, conn, baseline: adapter.commit(conn),
    "rollback": lambda adapter, conn, baseline: adapter.rollback(conn, LIMIT),
    "restore": lambda adapter, conn, baseline: adapter.restore(conn, baseline, LIMIT),
    "idle_limit": lambda adapter, conn, baseline: adapter.idle_limit(conn, LIMIT),
    "writable": lambda adapter, conn, baseline: adapter.writable(conn, LIMIT),
    "close": lambda adapter, conn, baseline: adapter.close(conn, LIMIT),
}


class AsyncAdapterContract(AdapterContract):
    """Subclass it as `TestSomething`, with a fixture `harness` that gives an `AsyncHarness`."""

    @staticmethod
    @asynccontextmanager
    async def opened(harness: AsyncHarness) -> AsyncIterator[tuple[AsyncAdapter[Any], Any, object]]:
        adapter = harness.aadapter()
        conn = await adapter.connect(LIMIT)
        try:
            yield adapter, conn, adapter.adopt(conn)
        finally:
            await adapter.close(conn, SOON)

    @staticmethod
    async def is_told_true(
        harness: AsyncHarness, adapter: AsyncAdapter[Any], conn: Any, baseline: object
    ) -> None:
        """Fail if the verdict lets a connection live whose next answer is another statement's."""
        if adapter.verdict(conn, baseline) in FINISHED:
            return
        if adapter.verdict(conn, baseline) is not Verdict.CLEAN:
            await adapter.rollback(conn, LIMIT)
        if adapter.verdict(conn, baseline) not in FINISHED:
            assert await harness.arun(conn, "SELECT 4711") == [(4711,)]

    @pytest.mark.parametrize(
        ("state", "step"),
        [
            (state, step)
            for state in ("clean", "dirty")
            for step in STEPS
            if (state, step) != ("dirty", "begin")
        ],
    )
    def test_a_step_cancelled_anywhere_leaves_no_answer_for_the_next(
        self, harness: AsyncHarness, table: Callable[[], list[int]], state: str, step: str
    ) -> None:
        async def scenario() -> None:
            for k in count(1):
                async with self.opened(harness) as (adapter, conn, baseline):
                    if state == "dirty":
                        await adapter.begin(conn)
                        await harness.arun(conn, f"INSERT INTO {harness.table} VALUES (1)")
                    if not await cancelled_at(k, STEPS[step](adapter, conn, baseline)):
                        assert k > 1 or step != "ping", "it never waited"
                        return
                    await self.is_told_true(harness, adapter, conn, baseline)

        run(scenario())
        assert step == "commit" or table() == []

    def test_a_reset_cancelled_anywhere_leaves_no_answer_for_the_next(self, harness: AsyncHarness) -> None:
        self.need(harness, "full")

        async def reset(adapter: Any, conn: Any, baseline: object, memory: object) -> None:
            token = await adapter.send_reset(conn, baseline, memory, FULL, LIMIT)
            if token is not None:
                await adapter.read_reset(conn, token, LIMIT)

        async def scenario() -> None:
            for k in count(1):
                async with self.opened(harness) as (adapter, conn, baseline):
                    memory = await adapter.remember(conn, FULL, LIMIT)
                    if not await cancelled_at(k, reset(adapter, conn, baseline, memory)):
                        assert k > 1, "it never waited"
                        return
                    assert adapter.verdict(conn, baseline) in FINISHED, "nobody knows what has been reset"

        run(scenario())

    def test_a_dial_cancelled_anywhere_leaves_nothing_behind(self, harness: AsyncHarness) -> None:
        async def scenario() -> None:
            adapter = harness.aadapter()
            for k in count(1):
                conns: list[Any] = []

                async def dial(conns: list[Any] = conns) -> None:
                    conns.append(await adapter.connect(LIMIT))

                if not await cancelled_at(k, dial()):
                    await adapter.close(conns[0], SOON)
                    assert k > 1, "it never waited"
                    return
                gc.collect()  # what is left open says so, and warnings are errors

        run(scenario())

    def test_a_statement_cancelled_anywhere_never_answers_the_next_borrower(
        self, harness: AsyncHarness
    ) -> None:
        async def scenario() -> None:
            for k in count(1):
                async with self.opened(harness) as (adapter, conn, baseline):
                    if not await cancelled_at(k, harness.arun(conn, "SELECT 815")):
                        assert k > 1, "it never waited"
                        return
                    await self.is_told_true(harness, adapter, conn, baseline)

        run(scenario())

    def test_a_slow_statement_cancelled_never_answers_the_next_borrower(self, harness: AsyncHarness) -> None:
        self.need(harness, "slow")

        async def scenario() -> None:
            async with self.opened(harness) as (adapter, conn, baseline):
                task = asyncio.ensure_future(harness.aslow(conn))
                await asyncio.wait([task], timeout=0.1)
                assert adapter.verdict(conn, baseline) is Verdict.BROKEN, "a task is inside"
                task.cancel()
                await asyncio.wait([task], timeout=SOON)
                assert task.cancelled()
                await self.is_told_true(harness, adapter, conn, baseline)

        run(scenario())

    def test_a_step_on_a_black_holed_network_can_be_cancelled(self, harness: AsyncHarness) -> None:
        self.need(harness, "black_hole")

        async def scenario(adapter: AsyncAdapter[Any], swallow: Callable[[], object]) -> None:
            conn = await adapter.connect(LIMIT)
            baseline = adapter.adopt(conn)
            swallow()
            task = asyncio.ensure_future(adapter.ping(conn, None))
            await asyncio.wait([task], timeout=0.1)
            began = monotonic()
            task.cancel()
            await asyncio.wait([task], timeout=SOON)
            assert task.cancelled()
            assert adapter.verdict(conn, baseline) in FINISHED
            adapter.abort(conn)
            assert monotonic() - began < SHORT
            await adapter.close(conn, SHORT)

        with harness.black_hole() as (adapter, swallow):
            run(scenario(adapter.real, swallow))  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        "where", ["in its loop", "in another thread", "when its loop stands still", "when its loop is closed"]
    )
    def test_abort_ends_the_session_wherever_it_is_called(
        self, harness: AsyncHarness, lent: Lent, where: str
    ) -> None:
        """Finalizers call it, and they run anywhere."""
        before = len(harness.sessions(lent))
        adapter = harness.aadapter()

        async def open_and_adopt() -> tuple[Any, object]:
            conn = await adapter.connect(LIMIT)
            return conn, adapter.adopt(conn)

        async def abort() -> None:
            adapter.abort(conn)

        def is_ended() -> bool:
            assert adapter.verdict(conn, baseline) in FINISHED
            until = monotonic() + SOON
            while len(harness.sessions(lent)) > before:
                if monotonic() > until:
                    return False
            return True

        if "its loop is closed" in where or "stands still" in where:
            with asyncio.Runner() as runner:
                conn, baseline = runner.run(open_and_adopt())
                if "stands still" in where:
                    adapter.abort(conn)
                    assert is_ended()
            adapter.abort(conn)
        else:
            conn, baseline = run(open_and_adopt())
            if where == "in its loop":
                run(abort())
            else:
                adapter.abort(conn)
        assert is_ended()

    @pytest.mark.parametrize("where", ["in its loop", "in another thread"])
    def test_a_connection_that_nobody_refers_to_gives_up_its_session(
        self, harness: AsyncHarness, lent: Lent, where: str
    ) -> None:
        before = len(harness.sessions(lent))
        adapter = harness.aadapter()

        async def lose() -> Any:
            # From now on the loop refuses to be called from another thread.
            asyncio.get_running_loop().set_debug(True)
            conn = await adapter.connect(LIMIT)
            adapter.adopt(conn)
            return conn if where == "in another thread" else None

        async def stop_debugging() -> None:
            asyncio.get_running_loop().set_debug(False)

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # the drivers', some of which give one
                run(lose())
                until = monotonic() + SOON
                while len(harness.sessions(lent)) > before:
                    gc.collect()
                    assert monotonic() < until, "the session lives on"
        finally:
            run(stop_debugging())
