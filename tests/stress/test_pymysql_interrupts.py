"""PyMySQL under exceptions that strike anywhere: nobody ever reads somebody else's rows.

As KeyboardInterrupt or gevent.Timeout do: once by injecting one into a thread at random moments,
which finds where they strike really, and once at every point where CPython can let one strike.  What
the borrower leaves is judged, rolled back or closed as the pool does it, and lent to the next one.
So is what a full reset leaves that was struck: the pool would close it, but the verdict must hold by
itself.
"""

import ctypes
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from types import FrameType
from typing import Any

import pytest
from servers import MariaDB

from connpool.adapter import Verdict
from connpool.adapters.pymysql import PyMySQLAdapter
from connpool.reset import Part

pytestmark = [
    # An interrupt may cost a connection, which is told like any other that was lost.
    pytest.mark.filterwarnings("ignore:pool .* was lost without being given back:ResourceWarning"),
    pytest.mark.stress,
    pytest.mark.server,
    # Where they strike in a finalizer, or before the thread's own handler, nobody can catch them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

INTERRUPTS = 300
INTERRUPTS_OF_RESETS = 200
FULL = (Part.FULL,)
LIMIT = 10.0


class Interrupt(BaseException):
    pass


class Pooled:
    """One connection, treated as the pool does."""

    def __init__(self, adapter: PyMySQLAdapter[Any], *, full: bool) -> None:
        self.adapter = adapter
        self.full = full
        self.opened = self.kept = 0
        self.conn: Any = None
        self.open()

    def open(self) -> None:
        self.conn = self.adapter.connect(LIMIT)
        self.baseline = self.adapter.adopt(self.conn)
        self.memory = self.adapter.remember(self.conn, FULL, LIMIT) if self.full else None
        self.opened += 1

    def take_back(self) -> None:
        verdict = self.adapter.verdict(self.conn, self.baseline)
        if verdict is Verdict.DIRTY:
            with suppress(Exception):
                self.adapter.rollback(self.conn, 1.0)
            verdict = self.adapter.verdict(self.conn, self.baseline)
        if verdict is Verdict.ALTERED:
            self.adapter.restore(self.conn, self.baseline, 1.0)
            verdict = self.adapter.verdict(self.conn, self.baseline)
        if verdict is Verdict.CLEAN:
            self.kept += 1
        else:
            self.adapter.close(self.conn, LIMIT)
            self.open()

    def reset(self) -> None:
        token = self.adapter.send_reset(self.conn, self.baseline, self.memory, FULL, LIMIT)
        self.adapter.read_reset(self.conn, token, LIMIT)

    def check_with_next_borrower(self, number: int) -> None:
        with self.conn.cursor() as cursor:
            cursor.execute("select %s, @@autocommit, @@character_set_client", (number,))
            assert cursor.fetchall() == ((number, self.conn.get_autocommit(), self.conn.charset),)
            cursor.execute("update counted set other = other + 1")
            assert cursor.rowcount == 1
        self.conn.commit()
        self.take_back()


def use(conn: Any) -> None:
    with conn.cursor() as cursor:
        cursor.execute("select 'theirs', v from counted")
        cursor.fetchall()
        cursor.execute("update counted set v = v + 1")
    conn.commit()


def use_and_alter(conn: Any) -> None:
    use(conn)
    conn.set_character_set("latin1")
    conn.autocommit(not conn.get_autocommit())
    with conn.cursor() as cursor:
        cursor.execute("select 'theirs', v from counted")


def borrow(conn: Any, used: Callable[[Any], object], *, tidy: bool) -> None:
    """Use a connection until interrupted; then, if tidy, roll back as one ought to."""
    try:
        try:
            used(conn)
        except BaseException:
            if tidy:
                conn.rollback()
            raise
    except (Interrupt, Exception):
        pass


@contextmanager
def pooled(server: MariaDB, *, autocommit: bool, full: bool = False) -> Iterator[Pooled]:
    with server.database() as database:
        server.execute(f"create table {database}.counted (v int, other int)")
        server.execute(f"insert into {database}.counted values (0, 0)")
        adapter: PyMySQLAdapter[Any] = PyMySQLAdapter(
            **server.params_for(database=database),
            autocommit=autocommit,
            ssl_disabled=True,  # opening is faster without
        )
        one = Pooled(adapter, full=full)
        try:
            yield one
        finally:
            adapter.close(one.conn, LIMIT)


def strike(thread: threading.Thread) -> None:
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt))


@pytest.fixture
def anywhere() -> Iterator[None]:
    """Let threads switch also while one computes, so that not all strikes are where one waits."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("tidy", [False, True], ids=["drops it", "rolls back first"])
@pytest.mark.parametrize("autocommit", [False, True], ids=["transactions", "autocommit"])
def test_no_interrupt_gives_the_next_borrower_anothers_rows(
    mariadb: MariaDB, tidy: bool, autocommit: bool
) -> None:
    seed = random.randrange(2**32)
    print(f"\nseed {seed}")
    moment = random.Random(seed)

    def use_and_think(conn: Any) -> None:
        while True:
            use(conn)
            for _ in range(20_000):
                pass  # about as long as the statements: here an interrupt does no harm

    with pooled(mariadb, autocommit=autocommit) as one:
        for number in range(INTERRUPTS):
            thread = threading.Thread(
                target=borrow, args=(one.conn, use_and_think), kwargs={"tidy": tidy}, daemon=True
            )
            thread.start()
            sleep(moment.random() * 0.003)
            deadline = monotonic() + LIMIT
            while thread.is_alive():  # one that strikes in the handler ends only that
                assert monotonic() < deadline
                strike(thread)
                thread.join(0.5)
            one.take_back()
            one.check_with_next_borrower(number)
        print(f"{INTERRUPTS} interrupts: kept {one.kept - INTERRUPTS}, opened {one.opened}")
        assert one.kept > INTERRUPTS, "no connection survived: then the verdict is of no use"


class StrikeAt:
    """Raises at one of the points where CPython looks for exceptions from outside.

    These are the beginning of a function and the return of a C function (and backward jumps, which
    no profile shows).
    """

    def __init__(self, point: int) -> None:
        self.left = point

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename != __file__:
            self.left -= 1
            if self.left == 0:
                raise Interrupt  # which ends the profile, too

    def __enter__(self) -> None:
        sys.setprofile(self)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@pytest.mark.parametrize("tidy", [False, True], ids=["drops it", "rolls back first"])
@pytest.mark.parametrize("autocommit", [False, True], ids=["transactions", "autocommit"])
def test_no_point_of_an_interrupt_gives_the_next_borrower_anothers_rows(
    mariadb: MariaDB, tidy: bool, autocommit: bool
) -> None:
    with pooled(mariadb, autocommit=autocommit) as one:
        point = 0
        struck = True
        while struck:
            point += 1
            at = StrikeAt(point)

            def use_and_be_struck(conn: Any, at: StrikeAt = at) -> None:
                with at:
                    use(conn)

            borrow(one.conn, use_and_be_struck, tidy=tidy)
            struck = at.left <= 0
            one.take_back()
            one.check_with_next_borrower(point)
        print(f"\n{point} points: kept {one.kept - point}, opened {one.opened}")
        assert point > 100
        assert one.kept > point


# -- full resets


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("autocommit", [False, True], ids=["transactions", "autocommit"])
def test_no_interrupt_of_a_full_reset_gives_the_next_borrower_its_answers(
    mariadb: MariaDB, autocommit: bool
) -> None:
    seed = random.randrange(2**32)
    print(f"\nseed {seed}")
    moment = random.Random(seed)
    with pooled(mariadb, autocommit=autocommit, full=True) as one:

        def reset_and_think(conn: Any) -> None:
            while True:
                use_and_alter(conn)
                one.reset()
                for _ in range(20_000):
                    pass

        for number in range(INTERRUPTS_OF_RESETS):
            thread = threading.Thread(
                target=borrow, args=(one.conn, reset_and_think), kwargs={"tidy": False}, daemon=True
            )
            thread.start()
            sleep(moment.random() * 0.003)
            deadline = monotonic() + LIMIT
            while thread.is_alive():
                assert monotonic() < deadline
                strike(thread)
                thread.join(0.5)
            one.take_back()
            one.check_with_next_borrower(number)
        kept = one.kept - INTERRUPTS_OF_RESETS
        print(f"{INTERRUPTS_OF_RESETS} interrupts: kept {kept}, opened {one.opened}")


@pytest.mark.parametrize("autocommit", [False, True], ids=["transactions", "autocommit"])
def test_no_point_of_an_interrupt_of_a_full_reset_gives_the_next_borrower_its_answers(
    mariadb: MariaDB, autocommit: bool
) -> None:
    with pooled(mariadb, autocommit=autocommit, full=True) as one:
        point = 0
        struck = True
        while struck:
            point += 1
            at = StrikeAt(point)
            use_and_alter(one.conn)

            def reset_and_be_struck(_: Any, at: StrikeAt = at) -> None:
                with at:
                    one.reset()

            borrow(one.conn, reset_and_be_struck, tidy=False)
            struck = at.left <= 0
            one.take_back()
            one.check_with_next_borrower(point)
        print(f"\n{point} points: kept {one.kept - point}, opened {one.opened}")
        assert point > 100
        assert one.kept > point
