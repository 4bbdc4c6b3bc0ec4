"""A borrower is struck by an exception at any instant, or leaves in the middle: the next one never knows.

The first borrower reads rows that say "theirs"; the second asks a question of his own and must get its
answer, from a pool of one connection.
"""

import ctypes
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pymysql
import pymysql.cursors
import pytest
from psycopg.pq import TransactionStatus
from servers import MariaDB, PostgreSQL

from connpool import ConnectionPool, PoolMisuse
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter
from isolation.leaks import naive

pytestmark = [
    # An interrupt may cost a connection, which is told like any other that was lost.
    pytest.mark.filterwarnings("ignore:pool .* was lost without being given back:ResourceWarning"),
    pytest.mark.server,
    pytest.mark.stress,
    # Where they strike in a finalizer, or before the thread's own handler, nobody can catch them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(300),
]

STRIKES = 3000
STRIKES_OF_FULL = 1000  # each return takes longer
NAIVE = 300  # enough for a pool without a return path to be found out


class Strike(BaseException):
    pass


class Hangs(AssertionError):
    """A struck borrower does not come to its end."""


def use(conn: Any) -> None:
    """Be a borrower whose rows nobody else must see."""
    with conn.cursor() as cursor:
        cursor.execute("select 'theirs', n from struck")
        cursor.fetchall()
        cursor.execute("update struck set n = n + 1")


def borrow(pool: ConnectionPool[Any]) -> None:
    """Borrow for a while, until struck."""
    try:
        for _ in range(50):
            with pool.connection() as conn:
                use(conn)
                use(conn)
    except (Strike, Exception):
        pass


def ask(pool: ConnectionPool[Any], number: int) -> None:
    """Be the next borrower."""
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("select %s", (number,))
        assert cursor.fetchall()[0][0] == number, "somebody else's rows"
        cursor.execute("update struck set asked = asked + 1")
        assert cursor.rowcount == 1


def strike(pool: ConnectionPool[Any], times: int, moment: random.Random) -> int:
    """Strike borrowers; return how often the next one noticed."""
    noticed = 0
    for number in range(times):
        thread = threading.Thread(target=borrow, args=(pool,), daemon=True)
        thread.start()
        time.sleep(moment.random() * 0.004)
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Strike))
        thread.join(30)
        if thread.is_alive():
            raise Hangs
        try:
            ask(pool, number)
        except (AssertionError, psycopg.Error, pymysql.Error, PoolMisuse):
            noticed += 1
    return noticed


Connect = Callable[..., Any]


@pytest.fixture(params=["psycopg", "PyMySQL"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Provide a function that returns an adapter, with a table to work on."""
    with ExitStack() as stack:
        if request.param == "psycopg":
            postgresql: PostgreSQL = request.getfixturevalue("postgresql")
            database = stack.enter_context(postgresql.database())
            for statement in ("create table struck (n int, asked int)", "insert into struck values (0, 0)"):
                postgresql.execute(statement, dbname=database)
            postgresql.execute("grant all on struck to app", dbname=database)
            yield lambda: PsycopgAdapter(**postgresql.params_for(dbname=database))
        else:
            mariadb: MariaDB = request.getfixturevalue("mariadb")
            database = stack.enter_context(mariadb.database())
            mariadb.execute(f"create table {database}.struck (n int, asked int)")
            mariadb.execute(f"insert into {database}.struck values (0, 0)")
            params = mariadb.params_for(database=database)
            yield lambda: PyMySQLAdapter(**params, ssl_disabled=True)


@pytest.fixture(autouse=True)
def anywhere() -> Iterator[None]:
    """Let threads switch also while one computes, so that not all strikes are where one waits."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize(("reset", "times"), [("rollback", STRIKES), ("full", STRIKES_OF_FULL)])
def test_next_borrower_never_knows_that_the_last_one_was_struck(
    connect: Connect, reset: Any, times: int
) -> None:
    seed = random.randrange(2**32)
    print(f"\nseed {seed}")
    with ConnectionPool(connect(), max_size=1, reset=reset) as pool:
        assert strike(pool, times, random.Random(seed)) == 0
        stats = pool.stats()
        assert stats.size == 1
        assert stats.in_use == 0, "a place was lost"
        print(f"{stats.opened} connections: {dict(stats.discards)}")


def test_next_borrower_of_a_naive_pool_knows(connect: Connect) -> None:
    with ConnectionPool(naive(connect()), max_size=1, acquire_timeout=5.0) as pool:
        try:
            noticed = strike(pool, NAIVE, random.Random(4711))
        except Hangs:
            noticed = 1  # it waits for an answer that somebody else has got
        assert noticed > 0


def test_socket_timeout_in_the_middle_of_a_query(mariadb: MariaDB) -> None:
    params = mariadb.params_for()
    with ConnectionPool(PyMySQLAdapter(**params, read_timeout=0.05), max_size=1) as pool:
        for number in range(20):
            with pytest.raises(pymysql.err.OperationalError), pool.connection() as conn:
                conn.cursor().execute("select 'theirs', sleep(0.2)")
            with pool.connection() as conn, conn.cursor() as cursor:
                cursor.execute("select %s", (number,))
                assert cursor.fetchone() == (number,)


# -- what is left half done ---------------------------------------------------------------------------


def half_read_unbuffered(conn: Any) -> object:
    cursor = conn.cursor(pymysql.cursors.SSCursor)
    cursor.execute("select 'theirs' from seq_1_to_100000")
    assert cursor.fetchone() == ("theirs",)
    return cursor


def half_read_statements(conn: Any) -> object:
    cursor = conn.cursor()
    cursor.execute("select 'theirs'; select 'theirs too'")
    return cursor


def half_read_server_side(conn: Any) -> object:
    cursor = conn.cursor(name="half")
    cursor.execute("select 'theirs' from generate_series(1, 100000)")
    assert cursor.fetchone() == ("theirs",)
    return cursor


def half_read_stream(conn: Any) -> object:
    stream = conn.cursor().stream("select 'theirs' from generate_series(1, 100000)")
    assert next(stream) == ("theirs",)
    return stream


def half_read_copy(conn: Any) -> object:
    copy = conn.cursor().copy("copy (select 'theirs' from generate_series(1, 100000)) to stdout")
    assert copy.__enter__().read()
    return copy


def half_written_copy(conn: Any) -> object:
    copy = conn.cursor().copy("copy struck from stdin")
    copy.__enter__().write("4711\t0\n")
    return copy


def open_pipeline(conn: Any) -> object:
    pipeline = conn.pipeline()
    pipeline.__enter__()
    conn.execute("select 'theirs'")
    return pipeline


HALF = {
    "psycopg": [half_read_server_side, half_read_stream, half_read_copy, half_written_copy, open_pipeline],
    "PyMySQL": [half_read_unbuffered, half_read_statements],
}


@pytest.mark.parametrize("ending", ["block", "exception", "release"])
@pytest.mark.parametrize("reset", ["rollback", "full"])
def test_what_is_left_half_done_is_nobodys_problem(
    connect: Connect, request: pytest.FixtureRequest, ending: str, reset: Any
) -> None:
    driver = request.node.callspec.params["connect"]
    adapter = connect()
    if driver == "PyMySQL":
        adapter._params["client_flag"] = pymysql.constants.CLIENT.MULTI_STATEMENTS
    for half in HALF[driver]:
        with ConnectionPool(adapter, max_size=1, reset=reset) as pool:
            kept: object = None
            if ending == "release":
                conn = pool.acquire()
                kept = half(conn)
                pool.release(conn)
            else:
                try:
                    with pool.connection() as conn:
                        kept = half(conn)
                        if ending == "exception":
                            raise LookupError("mine")
                except LookupError:
                    assert ending == "exception"
                except PoolMisuse as exc:
                    assert ending == "block"
                    assert "in the middle of an exchange" in str(exc)
                else:
                    # Rows that a server-side cursor has not sent yet hold up no COMMIT.
                    assert half is half_read_server_side
            ask(pool, 1)
            ask(pool, 2)
            del conn, kept
            ask(pool, 3)


def test_open_pipeline_is_seen_although_all_its_answers_were_read(postgresql: PostgreSQL) -> None:
    with ConnectionPool(PsycopgAdapter(**postgresql.params), max_size=1) as pool:
        conn = pool.acquire()
        block = conn.pipeline()
        pipeline = block.__enter__()
        conn.execute("select 1")
        pipeline.sync()
        assert conn.pgconn.transaction_status != TransactionStatus.ACTIVE
        pool.release(conn)
        with pool.connection() as other:
            assert other is not conn
            assert other.execute("select 2").fetchone() == (2,)
