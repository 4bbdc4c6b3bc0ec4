"""Threads that leak, wait for each other, hold too long: what their pool says of them, with their lines."""

import asyncio
import contextlib
import gc
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from servers import wait_until

import connpool
from connpool import ConnectionPool, PoolDeadlock, PoolMisuse, PoolTimeout
from connpool.events import Event
from connpool.testing import FakeAdapter, FakeConnection, FakeServer

HERE = "threads/test_diagnosis.py"


def line() -> int:
    """Return the number of the line that calls this."""
    import sys

    return sys._getframe(1).f_lineno


def run_all(*functions: Callable[[], object], timeout: float = 20.0) -> list[BaseException]:
    """Run functions in threads of their own, and return what they raised."""
    raised: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as exc:
            raised.append(exc)

    threads = [threading.Thread(target=run, args=(each,)) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), "somebody hangs"
    return raised


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def events() -> list[Event]:
    return []


# -- timeouts ----------------------------------------------------------------------------------------


def test_timeout_names_both_holders_with_lines_ages_and_counts(server: FakeServer) -> None:
    lines: dict[str, int] = {}
    ready, done = threading.Barrier(3), threading.Event()

    with ConnectionPool(FakeAdapter(server), max_size=2, name="two") as pool:

        def one() -> None:
            lines["one"] = line() + 1
            with pool.connection():
                ready.wait(5)
                done.wait(10)

        def two() -> None:
            lines["two"] = line() + 1
            conn = pool.acquire()
            ready.wait(5)
            done.wait(10)
            pool.release(conn)

        holders = [threading.Thread(target=one, name="first"), threading.Thread(target=two, name="second")]
        for holder in holders:
            holder.start()
        ready.wait(5)
        began = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(timeout=0.3)
        waited = time.monotonic() - began
        found = {holder.name: holder for holder in caught.value.holders}
        assert "done.wait(10)" in found["first"].stack()
        done.set()
        for holder in holders:
            holder.join()
    assert waited < 0.4
    text = str(caught.value)
    assert "no connection within 0.3 s: 2 of 2 in use, 0 idle, 0 opening, 0 waiting (pool 'two')" in text
    for name, key in (("first", "one"), ("second", "two")):
        assert found[name].site == f"{HERE}:{lines[key]}"
        assert 0.3 <= found[name].held < 2.0
        assert re.search(rf"held for 0\.\d+ s by {HERE}:{lines[key]} in {name}", text)
    assert caught.value.stats is not None
    assert caught.value.stats.in_use == 2
    assert caught.value.waited == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("way", ["connection", "transaction", "acquire", "guarded"])
def test_line_is_the_callers_whichever_way_he_borrows(server: FakeServer, way: str) -> None:
    with ConnectionPool(FakeAdapter(server), max_size=1, debug=way == "guarded") as pool:
        for _ in range(2):  # the second time the connection is at hand
            with contextlib.ExitStack() as stack:
                if way == "acquire":
                    here = line() + 1
                    conn = pool.acquire()
                    stack.callback(pool.release, conn)
                else:
                    here = line() + 2
                    borrow = pool.transaction if way == "transaction" else pool.connection
                    with borrow():
                        stack.enter_context(contextlib.suppress(PoolTimeout))
                        with pytest.raises(PoolTimeout) as caught:
                            pool.acquire(timeout=0)
                if way == "acquire":
                    with pytest.raises(PoolTimeout) as caught:
                        pool.acquire(timeout=0)
                (holder,) = caught.value.holders
                assert holder.site in (f"{HERE}:{here}", f"{HERE}:{here + 1}")


# -- leaks -------------------------------------------------------------------------------------------


def test_threads_that_die_with_their_connections_cost_no_place(tmp_path: Any) -> None:
    with connpool.create_pool(f"sqlite:///{tmp_path / 'app.db'}", max_size=2) as pool:
        with pytest.warns(ResourceWarning) as warned:
            for _ in range(10):

                def die() -> None:
                    conn = pool.acquire(timeout=1.0)
                    conn.execute("select 1")

                assert not run_all(die)
                gc.collect()
            began = time.monotonic()
            with pool.connection(timeout=1.0):
                assert time.monotonic() - began < 1.0
            assert pool.stats().size <= 2
        leaks = [str(each.message) for each in warned if HERE in str(each.message)]
        assert len(leaks) == 10
        assert all("was lost without being given back" in leak for leak in leaks)


def test_thread_that_ended_with_a_connection_that_somebody_keeps_is_told_and_nothing_is_taken(
    server: FakeServer, events: list[Event]
) -> None:
    kept: list[FakeConnection] = []
    with ConnectionPool(FakeAdapter(server), max_size=1, warn_after=0.1, observers=[events.append]) as pool:
        assert not run_all(lambda: kept.append(pool.acquire()))
        assert wait_until(lambda: any(event.name == "thread_ended" for event in events), 5.0)
        kept[0].execute("select 1")
        pool.release(kept[0])


def test_long_hold_is_told_with_its_line_and_so_is_its_end(
    server: FakeServer, events: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "connpool")
    with ConnectionPool(FakeAdapter(server), max_size=1, warn_after=0.1, observers=[events.append]) as pool:
        here = line() + 1
        with pool.connection():
            assert wait_until(lambda: len(events) == 1, 5.0)
        assert [event.name for event in events] == ["long_hold", "long_hold_over"]
        assert events[0].fields["site"] == events[1].fields["site"] == f"{HERE}:{here}"
    records = [record for record in caplog.records if record.name == "connpool"]
    assert [record.levelno for record in records] == [logging.WARNING, logging.INFO]
    assert records[0].event == "long_hold"  # type: ignore[attr-defined] # an extra


def test_close_names_who_still_holds_what(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    pool = ConnectionPool(FakeAdapter(server), name="closing")
    here = line() + 1
    conn = pool.acquire()
    pool.close(0)
    assert re.search(rf"held for [0-9.]+ s by {re.escape(HERE)}:{here} in MainThread", caplog.text)
    assert conn is not None


def test_observer_that_raises_harms_nobody(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)

    def raise_(event: Event) -> None:
        raise LookupError(event.name)

    with ConnectionPool(FakeAdapter(server), max_size=2, observers=[raise_]) as pool:
        with pool.connection(), pool.connection():
            pass
    (args,) = reported
    assert isinstance(args.exc_value, LookupError)
    assert str(args.exc_value) == "nested"


# -- deadlocks ---------------------------------------------------------------------------------------


def test_two_threads_that_nest_on_two_connections_are_told_apart_at_once(server: FakeServer) -> None:
    both = threading.Barrier(2)
    took: list[float] = []
    lines: list[int] = []
    with ConnectionPool(FakeAdapter(server), max_size=2, acquire_timeout=10.0) as pool:

        def one() -> None:
            lines.append(line() + 1)
            with pool.connection():
                both.wait(5)
                began = time.monotonic()
                try:
                    lines.append(line() + 1)
                    with pool.connection():
                        pass
                finally:
                    took.append(time.monotonic() - began)

        def two() -> None:
            lines.append(line() + 1)
            with pool.connection():
                both.wait(5)
                began = time.monotonic()
                try:
                    lines.append(line() + 1)
                    with pool.connection():
                        pass
                finally:
                    took.append(time.monotonic() - began)

        (error,) = run_all(one, two)
    assert isinstance(error, PoolDeadlock)
    assert max(took) < 0.5
    assert min(took) < 0.1
    assert len(lines) == 4
    assert all(f"{HERE}:{number}" in str(error) for number in lines), str(error)


def test_connection_that_a_generator_holds_for_another_thread_is_no_deadlock(server: FakeServer) -> None:
    """A web framework enters a dependency in one thread, leaves it in another, and uses both for more."""
    with ConnectionPool(FakeAdapter(server), max_size=2, acquire_timeout=5.0) as pool:

        @contextmanager
        def dependency() -> Iterator[FakeConnection]:
            with pool.connection() as conn:
                yield conn

        held = [dependency(), dependency()]
        entered, asked = threading.Barrier(3), threading.Barrier(3)

        def worker(number: int) -> None:
            held[number].__enter__()  # for a request that goes on elsewhere
            entered.wait(5)
            asked.wait(5)
            with dependency():  # for the next one
                pass

        threads = [threading.Thread(target=worker, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        entered.wait(5)
        asked.wait(5)
        assert wait_until(lambda: pool.stats().waiting == 2, 5.0)
        for each in held:
            each.__exit__(None, None, None)
        for thread in threads:
            thread.join(5)
        assert pool.stats().deadlocks == 0
        assert pool.stats().idle == 2


def test_nesting_is_told_once_or_forbidden(server: FakeServer, events: list[Event]) -> None:
    with ConnectionPool(FakeAdapter(server), max_size=2, observers=[events.append]) as pool:
        for _ in range(3):
            with pool.connection():
                with pool.connection():
                    pass
        assert [event.name for event in events] == ["nested"]
    with ConnectionPool(FakeAdapter(server), max_size=2, nested="forbid") as pool:
        for _ in range(3):
            with pool.connection(), pytest.raises(PoolMisuse, match="nested='forbid'"):
                with pool.connection():
                    pass
        assert pool.stats().idle == 1


def test_threads_that_come_and_go_on_few_connections_never_deadlock(server: FakeServer) -> None:
    with ConnectionPool(FakeAdapter(server), max_size=2, acquire_timeout=20.0) as pool:

        def work() -> None:
            for _ in range(150):
                with pool.transaction() as conn:
                    conn.execute("write")
                with pool.connection():
                    pass
                pool.release(pool.acquire())

        assert not run_all(*[work] * 8)
        stats = pool.stats()
        assert stats.acquires == stats.releases == 8 * 450
        assert stats.deadlocks == 0


def test_wait_in_a_running_event_loop_is_told_once(server: FakeServer, events: list[Event]) -> None:
    with ConnectionPool(FakeAdapter(server), max_size=1, observers=[events.append]) as pool:
        conn = pool.acquire()

        async def main() -> None:
            for _ in range(2):
                with pytest.raises(PoolTimeout):
                    pool.acquire(timeout=0.01)

        asyncio.run(main())
        pool.release(conn)
        assert [event.name for event in events] == ["blocks_event_loop"]
        assert str(events[0].fields["site"]).startswith(HERE)


# -- figures -----------------------------------------------------------------------------------------


def busy(pool: ConnectionPool[Any], threads: int, seconds: float) -> None:
    """Have threads use connections without a pause."""
    until = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < until:
            with pool.connection():
                time.sleep(0.01)

    assert not run_all(*[work] * threads)


@pytest.mark.stress
@pytest.mark.parametrize("max_size", [4, 7, 20])
def test_advice_for_seven_busy_threads_is_seven_to_nine(server: FakeServer, max_size: int) -> None:
    with ConnectionPool(FakeAdapter(server), max_size=max_size) as pool:
        busy(pool, 7, 0.2)
        before = pool.stats()
        busy(pool, 7, 1.0)
        advice = pool.advise(before)
        if max_size == 4:
            assert advice.max_size in (8, 9) or advice.max_size == 2 * max_size
        else:
            assert advice.max_size in (7, 8, 9)
        assert advice.concurrency == pytest.approx(7, abs=0.5)


@pytest.mark.stress
def test_advice_on_a_leak_names_the_line_and_no_size(server: FakeServer) -> None:
    with ConnectionPool(FakeAdapter(server), max_size=4) as pool:
        here = line() + 1
        kept = [pool.acquire() for _ in range(3)]
        busy(pool, 2, 1.1)
        advice = pool.advise()
        assert advice.max_size is None
        assert f"by {HERE}:{here}: a leak" in str(advice)
        assert "no size will help" in str(advice)
        assert "in place of" not in str(advice)
        for conn in kept:
            pool.release(conn)


def test_advice_without_figures_says_so(server: FakeServer) -> None:
    with ConnectionPool(FakeAdapter(server)) as pool:
        assert str(pool.advise()) == "nothing was lent and given back in this time"


def test_snapshot_is_cheap(server: FakeServer) -> None:
    with ConnectionPool(FakeAdapter(server), max_size=10) as pool:
        conns = [pool.acquire() for _ in range(10)]
        for conn in conns:
            pool.release(conn)
        for _ in range(5000):
            with pool.connection():
                pass
        least = min(_seconds(pool.stats) for _ in range(50))
    assert least < 150e-6, "50 us on a machine that is left alone"


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def test_description_tells_everything_and_no_secret(tmp_path: Any) -> None:
    def secret_hook(conn: sqlite3.Connection) -> None: ...

    with connpool.create_pool(
        f"sqlite:///{tmp_path / 'app.db'}", name="told", max_size=3, on_connect=secret_hook, reset="full"
    ) as pool:
        described = pool.describe()
        assert described.options["max_size"] == 3
        assert described.statements["rollback"] == "ROLLBACK"
        assert "full" in described.statements
        text = str(described)
        assert "pool 'told': " in text
        assert "secret_hook" in text
        assert set(described.options) == set(connpool.PoolOptions.__dataclass_fields__)
    with ConnectionPool(lambda: sqlite3.connect(":memory:")) as pool:
        assert "its first connection tells the driver" in str(pool.describe())
        assert pool.describe().statements == {}
