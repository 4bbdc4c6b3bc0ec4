"""Spikes, as in HikariCP's "Welcome to the Jungle", on a server with scripted latencies."""

import threading
import time

import pytest
from servers import wait_until
from threads.crowd import crowd

from connpool import ConnectionPool, PoolError
from connpool.engine.operations import Step
from connpool.testing import FakeAdapter, FakeServer

pytestmark = pytest.mark.stress

CONNECT = 0.150
QUERY = 0.002


def jungle() -> tuple[FakeServer, ConnectionPool]:
    server = FakeServer(latency={Step.CONNECT: CONNECT})
    pool = ConnectionPool(FakeAdapter(server), min_idle=5, max_size=50)
    pool.wait_ready(10.0)
    # From here on only demand opens connections: the spike takes the idle ones, and they come back.
    pool.resize(min_idle=0)
    return server, pool


def test_fifty_requests_at_once_are_served_by_the_connections_there_are():
    server, pool = jungle()
    before = server.connects
    waits: list[float] = []

    def request(_: int) -> None:
        began = time.perf_counter()
        with pool.connection():
            waits.append(time.perf_counter() - began)
            time.sleep(QUERY)

    with pool:
        crowd(50, request)
        assert len(waits) == 50
        assert server.connects - before <= 2
        assert wait_until(lambda: pool.stats().opening == 0, 5.0)
        assert pool.stats().size <= 5 + 2
        # Soft, for a shared machine: with 5 connections the last waits 20 ms, and no dial's 150 ms.
        assert max(waits) < CONNECT


def test_sustained_load_still_makes_the_pool_grow():
    _, pool = jungle()
    stop = threading.Event()

    def work(_: int) -> None:
        while not stop.is_set():
            with pool.connection():
                time.sleep(0.020)

    with pool:
        timer = threading.Timer(3.0, stop.set)
        timer.start()
        crowd(50, work)
        assert pool.stats().size >= 20


def test_a_burst_of_instant_work_opens_next_to_nothing():
    server = FakeServer(latency={Step.CONNECT: 0.250})
    with ConnectionPool(FakeAdapter(server), min_idle=2, max_size=100) as pool:
        pool.wait_ready(10.0)
        pool.resize(min_idle=0)

        def work(_: int) -> None:
            for _ in range(100):
                with pool.connection():
                    pass

        crowd(50, work)
        assert wait_until(lambda: pool.stats().opening == 0, 5.0)
        assert pool.stats().size <= 2 + 4


def test_a_pool_whose_callers_are_impatient_still_becomes_warm():
    server = FakeServer(latency={Step.CONNECT: 0.200})
    with ConnectionPool(FakeAdapter(server), acquire_timeout=0.050) as pool:
        served = 0
        for _ in range(20):
            try:
                with pool.connection():
                    served += 1
            except PoolError as exc:
                assert "dialling" in str(exc), exc
            time.sleep(0.050)
        assert served >= 10
