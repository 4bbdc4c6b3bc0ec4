"""Twenty thousand exceptions thrown into borrowers, anywhere: afterwards every place is usable."""

import ctypes
import gc
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import connpool.threads
from connpool import ConnectionPool
from connpool.testing import FakeAdapter, FakeConnection, FakeServer

pytestmark = [
    pytest.mark.stress,
    pytest.mark.bytecode,  # a tracer sees what strikes here, and does not always survive it
    pytest.mark.timeout(300),
    # Where they strike in a finalizer, or before the thread's own handler, nobody can catch them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STRIKES = 10_000  # for each way of borrowing
STRIKES_OF_MAIN = 2_000
SIZE, THREADS = 4, 6

Pool = ConnectionPool[FakeConnection]


class Strike(BaseException):
    pass


def by_block(pool: Pool) -> None:
    with pool.connection(timeout=10) as conn:
        conn.execute("select 1")


def by_acquire(pool: Pool) -> None:
    conn = pool.acquire(timeout=10)
    try:
        conn.execute("select 1")
    finally:
        pool.release(conn)


WAYS = pytest.mark.parametrize("way", [by_block, by_acquire])


@pytest.fixture(autouse=True)
def anywhere() -> Iterator[None]:
    """Let threads switch also while one computes, so that not all strikes are where one waits."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def nobody_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have borrowers dial and close by themselves.

    A thread that is being started carries the number of the one that starts it, for a moment, and CPython
    throws into it what was meant for that one: `Thread.start` then waits for ever.
    """
    monkeypatch.setattr(connpool.threads.helpers, "start", lambda job: False)


def assert_every_place_is_usable(pool: Pool) -> None:
    gc.collect()  # a traceback that somebody keeps owns what its frames had
    began = time.monotonic()
    with ExitStack() as stack:
        for _ in range(SIZE):
            stack.enter_context(pool.connection(timeout=5)).execute("select 2")
        assert time.monotonic() - began < 1.0
        assert pool.stats().in_use == SIZE
    assert pool.stats().size == SIZE


def borrow_until(stop: threading.Event, pool: Pool, way: Callable[[Pool], None]) -> None:
    """Borrow for ever.  It must not die: its number would soon be another thread's, and that one struck."""
    while not stop.is_set():
        try:
            try:
                while not stop.is_set():
                    way(pool)
            except (Strike, Exception):
                pass
        except (Strike, Exception):
            pass


@WAYS
@pytest.mark.usefixtures("nobody_helps")
def test_threads_are_struck(way: Callable[[Pool], None]) -> None:
    seed = random.randrange(2**32)
    print(f"\nseed {seed}")
    draw = random.Random(seed)
    stop = threading.Event()
    with ConnectionPool(FakeAdapter(FakeServer()), max_size=SIZE) as pool:
        threads: list[threading.Thread] = []

        def start() -> threading.Thread:
            thread = threading.Thread(target=borrow_until, args=(stop, pool, way), daemon=True)
            thread.start()
            return thread

        threads = [start() for _ in range(THREADS)]
        for _ in range(STRIKES):
            number = draw.randrange(THREADS)
            if not threads[number].is_alive():  # struck between its loop and its handler
                threads[number] = start()
            ident: Any = threads[number].ident
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Strike))
            time.sleep(draw.random() * 0.0004)
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a struck borrower hangs"
        assert_every_place_is_usable(pool)
        print(f"{pool.stats().opened} connections")


@WAYS
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on this system")
def test_main_thread_is_struck_by_signals(way: Callable[[Pool], None]) -> None:
    def strike(number: int, frame: object) -> None:
        raise Strike

    draw = random.Random(4711)
    before = signal.signal(signal.SIGALRM, strike)
    try:
        with ConnectionPool(FakeAdapter(FakeServer()), max_size=SIZE) as pool:
            for _ in range(STRIKES_OF_MAIN):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00001 + draw.random() * 0.0003)
                    while True:
                        way(pool)
                except Strike:
                    pass
            assert_every_place_is_usable(pool)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on this system")
def test_wait_on_the_main_thread_ends_soon_after_ctrl_c() -> None:
    with ConnectionPool(FakeAdapter(FakeServer()), max_size=1) as pool, pool.connection():
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), pool.connection(timeout=30):
            pass
        assert time.monotonic() - began < 0.3 + 0.2 + 0.1
        timer.join()
        assert pool.stats().waiting == 0
