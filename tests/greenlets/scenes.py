"""What greenlets do with a pool: a script for a process of its own, run by `test_gevent`.

    python -m gevent.monkey scenes.py NAME     patched before anything else is imported
    python scenes.py late                      it patches by itself, too late for nobody but psycopg

Each scene prints what it has seen, as JSON.  Nothing here is imported by name that gevent replaces.
"""

import inspect
import json
import os
import random
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from connpool import ConnectionPool, PoolDeadlock, PoolTimeout, PoolUnavailable
from connpool.testing import FakeAdapter, FakeServer

LATE = 0.02
"""Seconds of delay that nobody should notice."""


def adapter() -> Any:
    """Return the adapter for the server that was asked for."""
    asked = json.loads(os.environ["ASKED"])
    if asked["kind"] == "fake":
        return FakeAdapter(FakeServer(latency=0.001))
    if asked["kind"] == "MariaDB":
        from connpool.adapters.pymysql import PyMySQLAdapter

        return PyMySQLAdapter(**asked["params"])
    from connpool.adapters.psycopg import PsycopgAdapter

    return PsycopgAdapter(**asked["params"])


@contextmanager
def ticking() -> Iterator[list[float]]:
    """Let a greenlet sleep again and again; collect by how much each sleep was too long."""
    delays: list[float] = []

    def tick() -> None:
        while True:
            began = time.monotonic()
            gevent.sleep(0.01)
            delays.append(time.monotonic() - began - 0.01)

    ticker = gevent.spawn(tick)
    try:
        yield delays
    finally:
        ticker.kill()


def late(delays: list[float]) -> float:
    """Return the part of the ticks that were late: a hub that is blocked has few, and late ones."""
    return sum(delay > LATE for delay in delays) / len(delays)


def ask(conn: Any, statement: str, *params: object) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(statement, params)
        return cursor.fetchone()[0]


# -- scenes ------------------------------------------------------------------------------------------


def crowd() -> object:
    """200 greenlets, 5 connections, queries of 50 ms."""
    statement = "select pg_sleep(0.05)" if "PostgreSQL" in os.environ["ASKED"] else "select sleep(0.05)"
    pool = ConnectionPool(adapter(), max_size=5, name="crowd")
    served = []

    def work(number: int) -> None:
        with pool.connection() as conn:
            served.append(number)
            ask(conn, statement)

    with ticking() as delays:
        began = time.monotonic()
        gevent.joinall([gevent.spawn(work, number) for number in range(200)], raise_error=True)
        took = time.monotonic() - began
    # The pool is left open: the process must end all the same, and leave no session behind.
    return {
        "took": took,
        "ticks": len(delays),
        "late": late(delays),
        "worst": max(delays),
        # Of those who are handed a connection at the same time, the hub chooses who goes on first.
        "in_order": all(abs(place - number) < 5 for place, number in enumerate(served)),
    }


def kills() -> object:
    """Timeouts and kills strike greenlets wherever they wait: for a place, a dial, an answer, a return."""
    chance = random.Random(7)
    kind = json.loads(os.environ["ASKED"])["kind"]
    # Whoever is struck in an exchange costs a dial: 1 ms, 5 ms, and with TLS 30 ms.
    patience = {"fake": 0.02, "PostgreSQL": 0.06, "MariaDB": 0.2}[kind]
    pool: ConnectionPool[Any] = ConnectionPool(adapter(), max_size=5, acquire_timeout=10, name="kills")
    began = time.monotonic()
    seen = {"struck": 0, "served": 0}

    def goes_on() -> bool:
        # How many are struck depends on what else the machine has to do.
        took = time.monotonic() - began
        return took < 1.0 or (min(seen.values()) <= 20 and took < 20.0)

    def use(number: int) -> None:
        with pool.transaction() as conn:
            if kind == "fake":
                conn.execute("write")
            else:
                assert ask(conn, "select %s", number) == number, "somebody else's answer"
                ask(conn, "select 1")
        seen["served"] += 1

    def impatient(number: int) -> None:
        while goes_on():
            try:
                with gevent.Timeout(chance.uniform(0, patience)):
                    use(number)
            except gevent.Timeout:
                seen["struck"] += 1

    def mortal(number: int) -> None:
        while goes_on():
            victim = gevent.spawn(use, number)
            gevent.sleep(chance.uniform(0, patience))
            victim.kill()
            seen["struck"] += isinstance(victim.value, gevent.GreenletExit)
            victim.get()

    work = [gevent.spawn([impatient, mortal][number % 2], number) for number in range(12)]
    gevent.joinall(work, raise_error=True)
    assert pool.stats().in_use == 0, pool
    conns = [pool.acquire(timeout=5) for _ in range(5)]
    for conn in conns:
        pool.release(conn)
    stats = pool.stats()
    assert (stats.idle, stats.size, stats.waiting) == (5, 5, 0), pool
    assert stats.acquires == stats.releases, stats
    print(json.dumps(seen), flush=True)
    sys.stdin.readline()  # until the sessions are counted; it blocks, and nobody else is there
    return {}


def diagnosis() -> object:
    """A timeout names greenlets and their lines; an end is an end, and a successor somebody else."""
    pool = ConnectionPool(FakeAdapter(FakeServer()), max_size=2, name="two")
    sites = [""]

    def hold() -> None:
        sites.append(here(1))
        with pool.connection():
            gevent.sleep(600)

    def leave() -> None:
        kept.append(pool.acquire())

    def timeout() -> PoolTimeout:
        try:
            pool.acquire(timeout=0.05)
        except PoolTimeout as exc:
            return exc
        raise AssertionError("there was one left")

    kept: list[Any] = []
    holder = gevent.spawn(hold)
    holder.name = "report"
    successor = None
    while successor is None:  # born at the address of one who has left with a connection
        leaver = gevent.spawn(leave)
        leaver.join()
        address, left = id(leaver), weakref.ref(leaver)
        del leaver
        while left() is not None:  # the hub lets go of it at its next round
            gevent.sleep(0.001)
        born = [gevent.Greenlet(timeout) for _ in range(100)]
        successor = next((greenlet for greenlet in born if id(greenlet) == address), None)
        if successor is None:
            pool.release(kept.pop())
    successor.start()
    error = successor.get()
    report, gone = sorted(error.holders, key=lambda each: each.ended)
    assert (report.name, report.site, report.ended) == ("report", sites[1], False), report
    assert report.stack().endswith("    gevent.sleep(600)\n"), report.stack()
    assert gone.ended, gone
    assert not gone.stack()
    pool.release(kept.pop())

    leaver = gevent.spawn(leave)  # one that somebody still knows
    leaver.join()
    assert {each.name: each.ended for each in timeout().holders} == {"report": False, "a thread": True}
    pool.release(kept.pop())
    holder.kill()

    # The same on the warm path, and a greenlet without a name: as its repr() begins.
    holders = [gevent.spawn(hold), threading.Thread(target=hold, name="thread", daemon=True)]
    holders[1].start()
    gevent.sleep(0)
    assert pool.stats().in_use == 2
    names = {each.name for each in timeout().holders}
    assert names == {repr(holders[0])[1 : repr(holders[0]).index(":")], "thread"}, names
    return {}


def deadlock() -> object:
    """Greenlets that wait for each other are told so at once; those that only wait are not."""
    pool = ConnectionPool(FakeAdapter(FakeServer(latency=0.001)), max_size=2, name="two")
    sites: list[str] = []

    def nest() -> None:
        with pool.connection():
            gevent.sleep(0.02)
            sites.append(here(1))
            with pool.connection():
                gevent.sleep(0.02)

    began = time.monotonic()
    nests = [gevent.spawn(nest) for _ in range(2)]
    gevent.joinall(nests)
    assert time.monotonic() - began < 1
    errors = [nest.exception for nest in nests]
    assert sum(isinstance(error, PoolDeadlock) for error in errors) == 1, errors
    assert sum(error is None for error in errors) == 1, errors
    (found,) = filter(None, errors)
    assert {each.waits_at for each in found.holders} == set(sites)

    def take_turns() -> None:
        for _ in range(5):
            with pool.connection():
                gevent.sleep(0)
            with pool.transaction() as conn:
                conn.execute("write")
            pool.release(pool.acquire())

    gevent.joinall([gevent.spawn(take_turns) for _ in range(20)], raise_error=True)

    # Borrowed in one greenlet, given back in another: who has ended waits for nobody.
    held = [pool.connection(), pool.connection()]

    def begin(number: int) -> None:
        held[number].__enter__()

    for number in range(2):
        gevent.spawn(begin, number).join()
    waiting = [gevent.spawn(take_turns) for _ in range(20)]
    gevent.sleep(0.01)
    for each in held:
        each.__exit__(None, None, None)
    gevent.joinall(waiting, raise_error=True)
    assert pool.stats().deadlocks == 1
    return {}


def black_hole() -> object:
    """A dial that gets no answer keeps nobody else from going on, and ends with its limit."""
    from connpool.adapters.psycopg import PsycopgAdapter
    from connpool.adapters.pymysql import PyMySQLAdapter

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"host": "127.0.0.1", "port": silent.getsockname()[1], "user": "u"}
        with ticking() as delays:
            for dialled in (PsycopgAdapter(**address), PyMySQLAdapter(**address)):
                pool = ConnectionPool(dialled, acquire_timeout=0.3, connect_timeout=0.2)
                began = time.monotonic()
                try:
                    pool.acquire()
                except PoolUnavailable:
                    pass
                else:
                    raise AssertionError("nobody answers there")
                assert 0.15 < time.monotonic() - began < 1
                pool.close()
    return {"late": late(delays), "ticks": len(delays)}


def after_import() -> object:
    """The pool was imported, and made, before gevent patched."""
    from gevent import monkey

    pool = ConnectionPool(FakeAdapter(FakeServer()), max_size=2, idle_timeout=0.1, name="early")
    monkey.patch_all()

    def work(_: int) -> None:
        with pool.connection():
            gevent.sleep(0.01)

    with ticking() as delays:
        gevent.joinall([gevent.spawn(work, number) for number in range(10)], raise_error=True)
        while pool.stats().size:  # the housekeeper has the idle ones closed
            gevent.sleep(0.01)
    return {"late": late(delays), "ticks": len(delays)}


def unpatched() -> object:
    """Without patching, whoever waits holds up everybody; that is told."""
    told: list[Any] = []
    pool = ConnectionPool(FakeAdapter(FakeServer()), max_size=1, observers=[told.append])
    conn = pool.acquire()

    def work() -> None:
        try:
            pool.acquire(timeout=0.01)
        except PoolTimeout:
            pass

    gevent.spawn(work).get()
    pool.release(conn)
    return {"told": [event.name for event in told]}


def here(more: int) -> str:
    """Return the caller's line, or one below it, as the pool writes it."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"{os.path.basename(__file__)}:{frame.f_back.f_lineno + more}"  # noqa: PTH119 -- text


if __name__ == "__main__":
    scene: Callable[[], object] = globals()[sys.argv[1]]
    print(json.dumps(scene()), flush=True)
