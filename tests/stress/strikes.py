"""Strike callers of a pool by asynchronous exceptions, thousands of times, and see what is left of it.

A program of its own: in a test's process the strikes would hit pytest too.  It prints a line of JSON.
Callers in threads are struck by `PyThreadState_SetAsyncExc`, the one in the main thread by SIGINT.
Each strike waits until its caller is in the middle of borrowing, and the next until he is there again.
"""

import argparse
import ctypes
import json
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import connpool.threads
from connpool import ConnectionPool
from connpool.testing import FakeAdapter, FakeConnection, FakeServer

SIZE = 3
CALLERS = 4
DELAY = 2e-4  # seconds from the beginning of a borrowing to its strike, at most

logging.getLogger("connpool").addHandler(logging.NullHandler())  # what a strike costs is told


class Strike(BaseException):
    pass


STRIKE: Final = ctypes.py_object(Strike)


class NaivePool:
    """A stack of connections, as many write it: each borrower puts back what he took."""

    def __init__(self, server: FakeServer) -> None:
        self._free = [FakeConnection(server) for _ in range(SIZE)]

    def acquire(self, timeout: float = 0.01) -> FakeConnection:
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._free.pop()
            except IndexError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(0.001)

    def release(self, conn: FakeConnection) -> None:
        conn.rollback()
        self._free.append(conn)

    @contextmanager
    def connection(self) -> Iterator[FakeConnection]:
        conn = self.acquire()
        try:
            yield conn
        finally:
            self.release(conn)


def by_block(pool: Any, dirty: bool) -> None:
    with pool.connection() as conn:
        if dirty:
            conn.execute("insert")


def by_hand(pool: Any, dirty: bool) -> None:
    conn = pool.acquire()
    try:
        if dirty:
            conn.execute("insert")
    finally:
        pool.release(conn)


def by_turns(pool: Any, dirty: bool) -> None:
    turn = pool.turns()
    conn = turn.__enter__()
    try:
        if dirty:
            conn.execute("insert")
        else:
            turn.spare_reset()
    finally:
        turn.__exit__(None, None, None)


FORMS = {"with": by_block, "acquire": by_hand, "turns": by_turns}


class Caller:
    """Somebody who borrows and borrows, and is struck so many times, one after the other."""

    def __init__(self, borrow: Callable[[bool], None], strikes: int) -> None:
        self.ident = 0
        self.armed = 0  # the number of the strike that may come; -1: he has had enough
        self.rounds = 0
        self._borrow = borrow
        self._strikes = strikes

    def run(self) -> None:
        self.ident = threading.get_ident()
        for number in range(1, self._strikes + 1):
            try:
                self.armed = number
                while True:
                    self._borrow(self.rounds % 2 == 0)
                    self.rounds += 1
            except (Strike, KeyboardInterrupt):
                pass
        self.armed = -1


starting: set[int] = set()
"""Threads inside Thread.start: there a strike can hit the new thread, and then the old one waits for ever."""


def start(thread: threading.Thread, begin: Callable[..., None] = threading.Thread.start) -> None:
    starting.add(threading.get_ident())
    try:
        begin(thread)
    finally:
        starting.discard(threading.get_ident())


def strike_thread(ident: int) -> bool:
    strike, target, what = ctypes.pythonapi.PyThreadState_SetAsyncExc, ctypes.c_ulong(ident), STRIKE
    # Between the look and the strike stands nothing that lets another thread run.
    return ident not in starting and strike(target, what) == 1


def strike_main(ident: int) -> bool:
    signal.pthread_kill(ident, signal.SIGINT)
    return True


def strike_all(callers: list[Caller], strike: Callable[[int], bool], moment: random.Random) -> int:
    """Strike until all have had enough; return how many strikes were swallowed, as finalizers do."""
    last = dict.fromkeys(callers, (0, 0))
    swallowed = 0
    while any(caller.armed >= 0 for caller in callers):
        for caller in callers:
            time.sleep(moment.random() * DELAY)
            armed, (number, rounds) = caller.armed, last[caller]
            # Who goes on after a strike has not felt it.  Else the next one would come too soon.
            again = armed == number and caller.rounds > rounds + 1
            if (armed > number or again) and strike(caller.ident):
                swallowed += again
                last[caller] = armed, caller.rounds
    return swallowed


def lack(pool: Any) -> int:
    """Return how many of a pool's connections are not to be had within a second."""
    deadline, held = time.monotonic() + 1.0, []
    try:
        while len(held) < SIZE:
            held.append(pool.acquire(timeout=max(0.0, deadline - time.monotonic())))
    except TimeoutError:
        pass
    for conn in held:
        pool.release(conn)
    return SIZE - len(held)


def in_threads(borrow: Callable[[bool], None], strikes: int, moment: random.Random) -> int:
    """Strike callers in threads; return how many strikes were swallowed."""
    callers = [Caller(borrow, strikes // CALLERS) for _ in range(CALLERS)]
    threads = [threading.Thread(target=caller.run) for caller in callers]
    for thread in threads:
        thread.start()
    swallowed = strike_all(callers, strike_thread, moment)
    for thread in threads:
        thread.join()
    return swallowed


def in_main(borrow: Callable[[bool], None], strikes: int, moment: random.Random) -> int:
    """Strike a caller in the main thread, who has rivals; return how many strikes were swallowed."""
    caller, swallowed = Caller(borrow, strikes), []

    def compete() -> None:
        while caller.armed >= 0:
            borrow(False)
            time.sleep(DELAY)

    # As many as there are connections, so that he also waits.
    threads = [threading.Thread(target=compete) for _ in range(SIZE)]
    threads.append(
        threading.Thread(target=lambda: swallowed.append(strike_all([caller], strike_main, moment)))
    )
    for thread in threads:
        thread.start()
    caller.run()
    for thread in threads:
        thread.join()
    return swallowed[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pool", choices=["pool", "naive"])
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("where", choices=["threads", "main"])
    parser.add_argument("strikes", type=int)
    parser.add_argument("seed", type=int)
    asked = parser.parse_args()
    sys.setswitchinterval(1e-4)  # else most strikes come where somebody waits
    connpool.threads.LOOK_EVERY = 0.01  # else most of the time goes by in waiting for the next look
    sys.unraisablehook = lambda _: None  # a strike in a finalizer
    threading.Thread.start = start  # type: ignore[method-assign]

    server, form, moment = FakeServer(), FORMS[asked.form], random.Random(asked.seed)
    pool: Any = NaivePool(server)
    if asked.pool == "pool":
        reset = "tracked" if asked.form == "turns" else "rollback"
        pool = ConnectionPool(FakeAdapter(server), max_size=SIZE, reset=reset)

    def borrow(dirty: bool) -> None:
        try:
            form(pool, dirty)
        except TimeoutError:  # of the naive one
            pass

    strike = in_threads if asked.where == "threads" else in_main
    swallowed = strike(borrow, asked.strikes, moment)
    said: dict[str, object] = {"swallowed": swallowed, "lack": lack(pool)}
    if isinstance(pool, ConnectionPool):
        stats = pool.stats()
        said |= {"size": stats.size, "in_use": stats.in_use, "waiting": stats.waiting}
        said |= {"opened": stats.opened, "sessions": len(server.sessions)}
        pool.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
