"""PyMySQL under exceptions that strike anywhere: nobody ever reads somebody else's rows.

As with KeyboardInterrupt or a gevent.Timeout, but a few hundred of them, at random moments, in a
thread that executes statements.  What it leaves is judged, rolled back or closed as the pool does it,
and lent to the next borrower.
"""

import ctypes
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any

import pytest
from servers import MariaDB

from connpool.adapter import Verdict
from connpool.adapters.pymysql import PyMySQLAdapter

pytestmark = [pytest.mark.stress, pytest.mark.server, pytest.mark.timeout(120)]

INTERRUPTS = 400
LIMIT = 10.0


class Interrupt(BaseException):
    pass


def strike(thread: threading.Thread) -> None:
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt)
    )


class Pooled:
    """One connection, treated as the pool does."""

    def __init__(self, adapter: PyMySQLAdapter[Any]) -> None:
        self.adapter = adapter
        self.opened = self.kept = 0
        self.conn: Any = None
        self.open()

    def open(self) -> None:
        self.conn = self.adapter.connect(LIMIT)
        self.baseline = self.adapter.adopt(self.conn)
        self.opened += 1

    def take_back(self) -> None:
        verdict = self.adapter.verdict(self.conn, self.baseline)
        if verdict is Verdict.DIRTY:
            # In sequence the answer has come; if none is to come, do not wait for it as long as
            # for a server that is busy.
            with suppress(Exception):
                self.adapter.rollback(self.conn, 1.0)
            verdict = self.adapter.verdict(self.conn, self.baseline)
        if verdict is Verdict.CLEAN:
            self.kept += 1
        else:
            self.adapter.close(self.conn, LIMIT)
            self.open()


def borrow(conn: Any, ready: threading.Event, *, tidy: bool) -> None:
    """Execute statements until it is interrupted; then, if tidy, roll back as one ought to."""
    try:
        try:
            ready.set()
            while True:
                with conn.cursor() as cursor:
                    cursor.execute("select 'theirs', seq from seq_1_to_3")
                    cursor.fetchall()
                    cursor.execute("update counted set v = v + 1")
                conn.commit()
                for _ in range(300):
                    pass  # work of its own, where an interrupt does no harm
        except BaseException:
            if tidy:
                conn.rollback()
            raise
    except (Interrupt, Exception):
        pass


@pytest.fixture
def anywhere() -> Iterator[None]:
    """Let threads switch everywhere, and not only where one waits: so strikes land everywhere."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@contextmanager
def table(server: MariaDB) -> Iterator[str]:
    with server.database() as database:
        server.execute(f"create table {database}.counted (v int)")
        server.execute(f"insert into {database}.counted values (0)")
        yield database


@pytest.mark.usefixtures("anywhere")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
@pytest.mark.parametrize("tidy", [False, True], ids=["drops it", "rolls back first"])
@pytest.mark.parametrize("autocommit", [False, True], ids=["transactions", "autocommit"])
def test_no_interrupt_gives_the_next_borrower_anothers_rows(
    mariadb: MariaDB, tidy: bool, autocommit: bool
) -> None:
    seed = random.randrange(2**32)
    moment = random.Random(seed)
    with table(mariadb) as database:
        pooled = Pooled(
            PyMySQLAdapter(
                **mariadb.params_for(database=database),
                autocommit=autocommit,
                ssl_disabled=True,  # opening is faster without
            )
        )
        try:
            for number in range(INTERRUPTS):
                ready = threading.Event()
                conn = pooled.conn
                thread = threading.Thread(
                    target=borrow, args=(conn, ready), kwargs={"tidy": tidy}, daemon=True
                )
                thread.start()
                assert ready.wait(LIMIT)
                sleep(moment.random() * 0.003)
                # One that strikes before the loop is caught by nobody, one in the handler ends it.
                deadline = monotonic() + LIMIT
                while thread.is_alive():
                    assert monotonic() < deadline, f"seed {seed}"
                    strike(thread)
                    thread.join(0.5)
                del conn
                pooled.take_back()

                with pooled.conn.cursor() as cursor:
                    cursor.execute("select %s", (number,))
                    assert cursor.fetchall() == ((number,),), f"seed {seed}"
                pooled.take_back()
            print(
                f"\n{INTERRUPTS} interrupts, seed {seed}:"
                f" kept {pooled.kept - INTERRUPTS}, opened {pooled.opened}"
            )
            assert pooled.kept > INTERRUPTS, "none survived: the verdict is of no use"
        finally:
            pooled.adapter.close(pooled.conn, LIMIT)
