"""Nobody is overtaken, nobody starves: threads against a pool that is too small for them."""

import threading
import time

import pytest
from servers import wait_until
from threads.crowd import Crowd, crowd

from connpool import ConnectionPool
from connpool.testing import FakeAdapter, FakeServer
from connpool.threads import ThreadWaiter

pytestmark = pytest.mark.stress


def test_a_thread_that_loops_never_overtakes_one_that_waits():
    rounds, served, overtaken = 2000, 0, 0

    def wait_again_and_again() -> None:
        nonlocal served
        for _ in range(rounds):
            conn = pool.acquire()
            served += 1
            pool.release(conn)

    with ConnectionPool(FakeAdapter(FakeServer()), max_size=1) as pool, Crowd() as threads:
        conn = pool.acquire()
        threads.start(wait_again_and_again)
        for _ in range(rounds):
            assert wait_until(lambda: len(pool._core.waiters) == 1, 5.0)
            before = served
            pool.release(conn)
            conn = pool.acquire()  # at once: the other thread has not even woken
            overtaken += served == before
        pool.release(conn)
    assert overtaken == 0


def test_grants_follow_the_order_of_queueing():
    granted: list[int] = []

    class Recorded(ThreadWaiter):
        __slots__ = ()

        def __init__(self) -> None:
            super().__init__()
            wake = self.wake

            def recording() -> None:  # called under the lock, at the moment of the hand-over
                if self.ticket is not None:  # close() waits without one
                    granted.append(self.ticket)
                wake()

            self.wake = recording

    with ConnectionPool(FakeAdapter(FakeServer()), max_size=4) as pool:
        pool._flows._waiter = Recorded  # type: ignore[assignment] # nothing else makes its waiters

        def work(_: int) -> None:
            for _ in range(200):
                with pool.connection():
                    time.sleep(0.0005)

        crowd(32, work)
    assert len(granted) > 3000
    assert granted == sorted(granted)


def test_thirty_two_threads_on_four_connections_are_served_alike():
    stop = threading.Event()
    served = [0] * 32
    with ConnectionPool(FakeAdapter(FakeServer()), max_size=4) as pool:

        def work(number: int) -> None:
            while not stop.is_set():
                with pool.connection():
                    time.sleep(0.001)
                served[number] += 1

        timer = threading.Timer(3.0, stop.set)
        timer.start()
        crowd(32, work)
        stats = pool.stats()
    assert max(served) / min(served) <= 1.10
    assert stats.acquires == stats.releases == sum(served)
