"""What the warm path may cost: frames, a ratio to the least that Python can do, and no allocation that stays.

Wall time is no matter for CI.  Frames and allocations are counted; the one ratio is taken pairwise within one
process, with a margin wide enough for a machine that does other things.
"""

import gc
import queue
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import repeat
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import pytest
from servers import PostgreSQL

import connpool
from connpool.engine.core import BATCH
from connpool.testing import FakeAdapter, FakeServer

FRAMES = 7
TIMES_THE_FLOOR = 4.5  # 3.0 is what `python -m benchmarks cycle` demands, on a machine that is left alone
OURS = str(Path(connpool.__file__).parent)


def frames_of_a_cycle(pool: connpool.ConnectionPool[Any]) -> list[str]:
    """Return the functions of ours that a warm `with pool.connection(): pass` calls."""
    called = []

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            called.append(frame.f_code.co_qualname)

    def cycle() -> None:
        with pool.connection():
            pass

    for _ in range(3):
        cycle()
    sys.setprofile(profile)
    try:
        cycle()
    finally:
        sys.setprofile(None)
    return called


def test_warm_cycle_with_a_fake_connection_stays_within_the_frames() -> None:
    with connpool.ConnectionPool(FakeAdapter(FakeServer()), max_size=1) as pool:
        called = frames_of_a_cycle(pool)
    assert 0 < len(called) <= FRAMES, called


@pytest.mark.server
def test_warm_cycle_with_psycopg_stays_within_the_frames(postgresql: PostgreSQL) -> None:
    from connpool.adapters.psycopg import PsycopgAdapter

    with connpool.ConnectionPool(PsycopgAdapter(postgresql.dsn), max_size=1) as pool:
        called = frames_of_a_cycle(pool)
    assert 0 < len(called) <= FRAMES, called


@pytest.fixture
def untraced() -> Iterator[None]:
    """Measure the pool, and not the coverage measurement that may be watching this thread."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


class Floor:
    """The least that lends and takes back: a thread-safe queue and a context manager."""

    __slots__ = ("conn", "queue")

    def __init__(self, queue: "queue.SimpleQueue[object]") -> None:
        self.queue = queue

    def __enter__(self) -> object:
        self.conn = self.queue.get()
        return self.conn

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        self.queue.put(self.conn)


def seconds(lease: Callable[[], AbstractContextManager[object]], cycles: int) -> float:
    began = time.perf_counter()
    for _ in repeat(None, cycles):
        with lease():
            pass
    return time.perf_counter() - began


def test_warm_cycle_takes_a_few_times_the_floor(untraced: None) -> None:
    connections: queue.SimpleQueue[object] = queue.SimpleQueue()
    connections.put(object())

    def floor() -> Floor:
        return Floor(connections)

    with connpool.ConnectionPool(FakeAdapter(FakeServer()), max_size=1) as pool:
        seconds(pool.connection, 1000)
        # Turns of half a millisecond: another process seldom cuts into one, and the median forgets those.
        ratios = [seconds(pool.connection, 700) / seconds(floor, 700) for _ in range(300)]
    assert median(ratios) <= TIMES_THE_FLOOR


def test_ten_thousand_cycles_leave_nothing_behind_but_durations_not_folded_yet(untraced: None) -> None:
    with connpool.ConnectionPool(FakeAdapter(FakeServer()), max_size=1) as pool:
        seconds(pool.connection, 2 * BATCH)
        gc.collect()
        blocks = sys.getallocatedblocks()
        seconds(pool.connection, 10_000)
        gc.collect()
        grown = sys.getallocatedblocks() - blocks
    # A duration is a float, one block; a batch of them waits on the connection to be folded.
    assert grown <= BATCH + 50


def test_memory_of_the_warm_path_is_bounded_by_one_batch(untraced: None) -> None:
    with connpool.ConnectionPool(FakeAdapter(FakeServer()), max_size=1) as pool:
        seconds(pool.connection, 2 * BATCH)
        ours = tracemalloc.Filter(True, f"{OURS}/*")
        tracemalloc.start()
        try:
            seconds(pool.connection, 3 * BATCH)
            first = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([ours]).traces)
            seconds(pool.connection, 10_000)
            second = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([ours]).traces)
        finally:
            tracemalloc.stop()
    # A float takes 24 bytes, and its place in the list 8.
    assert second - first <= BATCH * (24 + 8)
