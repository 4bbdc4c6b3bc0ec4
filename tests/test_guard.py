"""The guard: after release, and in a second thread, nothing reaches the server; all else is as without it."""

import _thread
import contextlib
import copy
import gc
import io
import pickle
import sqlite3
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from queue import Queue
from typing import Any

import psycopg
import psycopg.rows
import pymysql
import pymysql.cursors
import pytest
from psycopg import sql
from psycopg.copy import QueuedLibpqWriter
from psycopg.types import TypeInfo
from servers import MariaDB, PostgreSQL
from threads.crowd import Crowd

from connpool.errors import PoolMisuse
from connpool.guard import Guarded, Loan, guard, loan_of, site, unwrap
from connpool.testing import FakeConnection, FakeError, FakeServer

RELEASED = "app/views.py:41 in Thread-3"
SOON = 10.0
DUELS = 1000


def borrow(conn: Any) -> tuple[Any, Loan]:
    loan = Loan("app")
    return guard(conn, loan), loan


def refused() -> Any:
    return pytest.raises(PoolMisuse, match=f"after the connection was released at {RELEASED}")


def in_thread(call: Callable[..., object], *args: Any) -> Any:
    """Run a call in a thread of its own to its end, and return its result."""
    results: list[Any] = []
    with Crowd() as threads:
        threads.start(lambda: results.append(call(*args)))
    return results[0]


@contextlib.contextmanager
def inside(call: Callable[[], object], begun: threading.Event, finish: threading.Event) -> Iterator[str]:
    """Have a thread inside of a call, which sets `begun` and waits for `finish`; give the thread's name."""
    with Crowd() as threads:
        thread = threads.start(call)
        assert begun.wait(SOON)
        try:
            yield thread.name
        finally:
            finish.set()


def duel(use: Callable[[], object], hold: Callable[[], object], free: Callable[[], object]) -> list[str]:
    """Let two threads `use` the same thing at once, again and again; give the messages of those refused.

    What is in use waits, between `hold` and `free`, until the other has been refused: so the two always
    overlap, and a guard that lets both through hangs, or ends in the driver's error.
    """
    barrier = threading.Barrier(2, timeout=SOON)
    refusals: list[str] = []

    def fight(number: int) -> None:
        for _ in range(DUELS):
            if number == 0:
                hold()
            barrier.wait()
            try:
                use()
            except PoolMisuse as exc:
                refusals.append(str(exc))
                free()
            barrier.wait()

    with Crowd() as threads:
        for number in range(2):
            threads.start(fight, number)
    return refusals


class SlowConnection(FakeConnection):
    """A fake whose statement "slow" lasts until it is told to end."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.begun, self.finish = threading.Event(), threading.Event()

    def execute(self, statement: str) -> None:
        super().execute(statement)
        if statement == "slow":
            self.begun.set()
            assert self.finish.wait(SOON)

    def cancel(self) -> None:
        self.server.statements.append("cancel")
        self.finish.set()


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def fake(server: FakeServer) -> FakeConnection:
    return server.accept()


@pytest.fixture
def slow(server: FakeServer) -> SlowConnection:
    return SlowConnection(server)


@pytest.fixture
def lite() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as conn:
        yield conn


# -- after release -------------------------------------------------------------------------------------


class TestAfterRelease:
    def test_every_use_is_refused_and_sends_nothing(self, fake: FakeConnection, server: FakeServer) -> None:
        conn, loan = borrow(fake)
        execute = conn.execute
        loan.end(RELEASED)
        for use in (
            lambda: conn.execute("x"),
            lambda: execute("x"),
            conn.commit,
            lambda: conn.number,
            lambda: conn.nonsense,
            lambda: setattr(conn, "number", 1),
            lambda: delattr(conn, "number"),
            conn.cursor,
            conn.close,
        ):
            with refused():
                use()
        assert server.statements == []
        assert not fake.closed

    def test_the_message_names_call_pool_and_place(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        cursor = conn.execute("select 1")
        loan.end(RELEASED)
        with pytest.raises(PoolMisuse) as caught:
            cursor.fetchone()
        assert str(caught.value) == (
            f"Cursor.fetchone after the connection was released at {RELEASED}; "
            "it may serve somebody else by now (pool 'app')"
        )

    def test_a_released_cursor_gives_no_rows(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        cursor, rows, of_execute = conn.cursor(), conn.cursor(), conn.execute("select 1")
        cursor.execute("select 1 union select 2")
        iterator = iter(rows.execute("select 1 union select 2"))
        assert next(iterator) == (1,)
        loan.end(RELEASED)
        for use in (cursor.fetchone, of_execute.fetchall, lambda: next(iterator), lambda: list(cursor)):
            with refused():
                use()

    def test_the_next_borrower_is_not_concerned(self, lite: sqlite3.Connection) -> None:
        first, loan = borrow(lite)
        loan.end(RELEASED)
        second, _ = borrow(lite)
        assert second.execute("select 1").fetchone() == (1,)
        with refused():
            first.execute("select 1")
        assert first != second

    def test_closing_a_cursor_late_is_harmless_and_closes_nothing(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        cursor = conn.execute("select 1")
        loan.end(RELEASED)
        cursor.close()
        cursor.close()
        assert unwrap(cursor).fetchone() == (1,)

    def test_a_late_end_of_a_block_does_not_mask_its_exception(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        with pytest.raises(ZeroDivisionError) as caught, conn, contextlib.closing(conn.execute("select 1")):
            loan.end(RELEASED)
            raise ZeroDivisionError
        assert caught.value.__context__ is None

    def test_a_block_that_should_have_committed_says_that_it_has_not(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        with refused(), conn:
            loan.end(RELEASED)

    def test_the_drivers_exceptions_can_still_be_caught_by_name(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        loan.end(RELEASED)
        with refused() as caught:
            try:
                conn.execute("select 1")
            except conn.ProgrammingError:
                pytest.fail("PoolMisuse is no error of the driver")
        assert caught.value.__context__ is None

    def test_repr_says_it_and_never_raises(self, fake: FakeConnection) -> None:
        class Rude(FakeConnection):
            def __repr__(self) -> str:
                raise FakeError("no")

        conn, loan = borrow(fake)
        assert repr(conn) == f"<guarded {fake!r}>"
        assert repr(borrow(Rude(FakeServer()))[0]) == "<guarded Rude>"
        loan.end(RELEASED)
        assert repr(conn) == f"<guarded FakeConnection, released at {RELEASED}>"
        assert hash(conn)
        assert conn == conn
        assert isinstance(conn, FakeConnection)

    def test_a_loan_remembers_its_first_end(self, fake: FakeConnection) -> None:
        loan = borrow(fake)[1]
        assert loan.ended is None
        loan.check()
        loan.end(RELEASED)
        loan.end("elsewhere")
        assert loan.ended == RELEASED
        with refused():
            loan.check("release()")

    def test_a_refusal_leaves_nothing_locked(self, fake: FakeConnection) -> None:
        conn, loan = borrow(fake)
        loan.end(RELEASED)
        with refused():
            conn.commit()
        assert in_thread(loan.end, RELEASED) is None


class TestEnd:
    """What `Loan.end` tells the pool: whether the connection may be lent again."""

    def test_at_rest(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        lite.executescript("create table t (x); insert into t values (1)")
        for _ in conn.iterdump():
            pass
        next(conn.iterdump())  # garbage at once
        unstarted = conn.iterdump()
        assert loan.end(RELEASED) is None
        with refused():
            next(unstarted)

    def test_another_thread_is_inside_a_call(self, slow: SlowConnection) -> None:
        conn, loan = borrow(slow)
        with inside(lambda: conn.execute("slow"), slow.begun, slow.finish) as name:
            assert loan.end(RELEASED) == f"{name} was inside SlowConnection.execute during the release"

    def test_it_is_called_from_inside_a_call(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        reasons: list[str | None] = []

        def finish() -> None:
            conn.execute("select 1")
            reasons.append(loan.end(RELEASED))

        lite.create_function("finish", 0, finish)
        cursor = conn.execute("select finish()")
        assert reasons == ["MainThread was inside Connection.execute during the release"]
        with refused():
            cursor.fetchone()

    def test_a_generator_is_half_way(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        lines = conn.iterdump()
        next(lines)
        assert loan.end(RELEASED) is None
        assert loan.unfinished() == "_iterdump"
        with refused():
            next(lines)
        lines.close()
        assert unwrap(lines).gi_frame is not None, "its end would have been sent now"

    def test_a_cancellation_is_on_its_way(self, server: FakeServer) -> None:
        begun, finish = threading.Event(), threading.Event()

        class Cancelled(FakeConnection):
            def cancel(self) -> None:
                begun.set()
                assert finish.wait(SOON)

        conn, loan = borrow(Cancelled(server))
        with inside(conn.cancel, begun, finish):
            assert loan.end(RELEASED) == "cancel() has not returned"


# -- two threads ---------------------------------------------------------------------------------------


class TestTwoThreads:
    def test_the_second_is_refused_before_anything_is_sent(
        self, slow: SlowConnection, server: FakeServer
    ) -> None:
        conn, _ = borrow(slow)
        with inside(lambda: conn.execute("slow"), slow.begun, slow.finish) as name:
            with pytest.raises(PoolMisuse) as caught:
                conn.commit()
            assert str(caught.value) == (
                f"SlowConnection.commit in MainThread, while {name} was inside SlowConnection.execute: "
                "a connection serves one thread at a time (pool 'app')"
            )
            with pytest.raises(PoolMisuse, match="one thread at a time"):
                conn.number = 1
            assert conn.number == slow.number, "what is only read concerns nobody"
        assert server.statements == ["slow"]
        conn.commit()

    def test_a_second_thread_after_release_hears_of_the_release(self, slow: SlowConnection) -> None:
        conn, loan = borrow(slow)
        with inside(lambda: conn.execute("slow"), slow.begun, slow.finish):
            loan.end(RELEASED)
            with refused():
                conn.commit()

    def test_one_after_the_other_is_fine(self, lite: sqlite3.Connection) -> None:
        conn, _ = borrow(lite)
        cursor = in_thread(conn.execute, "select 1 union select 2")
        assert cursor.fetchone() == (1,)
        assert in_thread(cursor.fetchone) == (2,)

    def test_a_cancellation_may_come_from_another_thread(
        self, slow: SlowConnection, server: FakeServer
    ) -> None:
        conn, loan = borrow(slow)
        with inside(lambda: conn.execute("slow"), slow.begun, slow.finish):
            conn.cancel()
        assert server.statements == ["slow", "cancel"]
        loan.end(RELEASED)
        with refused():
            conn.cancel()
        assert server.statements == ["slow", "cancel"]

    def test_a_callback_may_use_the_connection_its_call_came_from(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        conn.create_function("twice", 1, lambda x: conn.execute("select ? * 2", (x,)).fetchone()[0])
        assert conn.execute("select twice(21)").fetchone() == (42,)
        assert loan.end(RELEASED) is None, "each call has left"

    def test_a_refusal_inside_a_callback_leaves_the_call_intact(self, slow: SlowConnection) -> None:
        conn, _ = borrow(slow)
        with inside(lambda: conn.execute("slow"), slow.begun, slow.finish):
            for _ in range(3):
                with pytest.raises(PoolMisuse, match="was inside SlowConnection.execute"):
                    conn.commit()
        conn.commit()

    def test_a_call_that_has_just_begun_has_no_name_yet(self, fake: FakeConnection) -> None:
        conn, loan = borrow(fake)
        in_thread(loan._lock.acquire)  # as if an exception had struck there: it stays locked
        with pytest.raises(PoolMisuse, match="while another thread was using it"):
            conn.commit()
        assert loan.end(RELEASED) == "another thread was using it during the release"

    def test_a_thousand_duels_on_the_fake(self, server: FakeServer) -> None:
        slow = SlowConnection(server)
        conn, _ = borrow(slow)
        refusals = duel(lambda: conn.execute("slow"), slow.finish.clear, slow.finish.set)
        assert len(refusals) == DUELS
        assert len(server.statements) == DUELS

    def test_a_thousand_duels_on_sqlite(self, lite: sqlite3.Connection) -> None:
        finish = threading.Event()
        lite.create_function("wait", 0, lambda: finish.wait(SOON))
        conn, _ = borrow(lite)
        refusals = duel(lambda: conn.execute("select wait()").fetchall(), finish.clear, finish.set)
        assert len(refusals) == DUELS
        assert all("while crowd-" in text for text in refusals)


# -- as without it -------------------------------------------------------------------------------------


class TestTransparency:
    def test_it_passes_for_what_it_guards(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        assert isinstance(conn, sqlite3.Connection)
        assert isinstance(conn, Guarded)
        assert isinstance(conn.cursor(), sqlite3.Cursor)
        assert not isinstance(conn, sqlite3.Cursor)
        assert conn.__doc__ == lite.__doc__
        assert dir(conn) == dir(lite)
        assert conn.execute.__doc__ == lite.execute.__doc__
        assert callable(conn)
        assert not callable(conn.cursor())
        assert loan_of(conn) is loan
        assert loan_of(lite) is None
        assert unwrap(conn) is lite
        assert unwrap("x") == "x"

    def test_what_returns_itself_returns_the_proxy(self, lite: sqlite3.Connection) -> None:
        conn, _ = borrow(lite)
        cursor = conn.cursor()
        assert cursor.execute("select 1") is cursor
        assert iter(cursor) is cursor
        assert cursor.connection is conn
        with conn as entered:
            assert entered is conn

    def test_data_are_not_wrapped(self, lite: sqlite3.Connection) -> None:
        conn, _ = borrow(lite)
        conn.row_factory = sqlite3.Row
        assert lite.row_factory is sqlite3.Row
        row = conn.execute("select 1 as one").fetchone()
        assert type(row) is sqlite3.Row
        assert type(conn.execute("select 1").description) is tuple
        assert conn.Error is sqlite3.Error
        assert type(conn.in_transaction) is bool

    def test_rows_of_the_users_own_type_are_not_wrapped(self, lite: sqlite3.Connection) -> None:
        class Row:
            def __init__(self, cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> None:
                self.values = values

            def close(self) -> None: ...

        conn, _ = borrow(lite)
        conn.row_factory = Row
        assert type(conn.execute("select 1").fetchone()) is Row

    def test_a_users_subclass_does_not_make_his_package_the_driver(self) -> None:
        class Resource:
            def close(self) -> None: ...

        class Mine(sqlite3.Connection):
            resource = Resource()

            def cursor(self, factory: Any = None) -> Any:
                return super().cursor(MineCursor)

        class MineCursor(sqlite3.Cursor): ...

        with contextlib.closing(sqlite3.connect(":memory:", factory=Mine)) as raw:
            conn, _ = borrow(raw)
            assert type(conn.resource) is Resource
            assert isinstance(conn.cursor(), Guarded)

    def test_the_drivers_errors_pass_unchanged(self, fake: FakeConnection) -> None:
        conn, _ = borrow(fake)
        with pytest.raises(FakeError) as caught:
            conn.execute("fail")
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert caught.traceback[-1].name == "execute"
        assert caught.traceback[-1].path.name == "testing.py"
        conn.rollback()

    def test_attributes_are_the_connections(self, fake: FakeConnection) -> None:
        conn, _ = borrow(fake)
        conn.note = "x"
        assert fake.note == "x"  # type: ignore[attr-defined]
        del conn.note
        assert not hasattr(fake, "note")
        assert not hasattr(conn, "note")
        assert vars(conn) is vars(fake)

    def test_a_method_replaced_on_the_connection_is_guarded_too(self, fake: FakeConnection) -> None:
        conn, loan = borrow(fake)
        seen: list[str] = []
        conn.execute = seen.append

        def executemany(statement: str) -> None:
            seen.append(statement)

        conn.executemany = executemany
        conn.execute("x")
        conn.executemany("y")
        assert seen == ["x", "y"]
        late = conn.executemany
        loan.end(RELEASED)
        for use in (lambda: conn.execute("z"), lambda: late("z")):
            with refused():
                use()
        assert seen == ["x", "y"]

    def test_a_wrapping_library_hides_no_cursor(self, lite: sqlite3.Connection) -> None:
        class Wrapper:
            def __getattr__(self, name: str) -> Any:
                return getattr(lite, name)

        conn, loan = borrow(Wrapper())
        cursor = conn.cursor()
        execute = conn.execute
        cursor.execute("select 1")
        loan.end(RELEASED)
        for use in (cursor.fetchone, lambda: execute("select 1")):
            with refused():
                use()

    def test_a_subclass_of_guarded_has_a_say(self, fake: FakeConnection) -> None:
        class Face(Guarded):
            __slots__ = ()

            def close(self) -> None:
                loan = loan_of(self)
                assert loan is not None
                if loan.ended is None:
                    loan.end(RELEASED)

        loan = Loan("app")
        conn = guard(fake, loan, face=Face)
        conn.close()
        conn.close()
        assert not fake.closed
        with refused():
            conn.execute("x")

    def test_it_can_be_referenced_weakly_and_is_garbage_with_its_last_reference(
        self, server: FakeServer
    ) -> None:
        raw = server.accept()
        conn, _ = borrow(raw)
        proxy, target = weakref.ref(conn), weakref.ref(raw)
        del conn, raw
        gc.collect()
        assert proxy() is None
        assert target() is None

    def test_it_cannot_be_pickled_or_copied(self, fake: FakeConnection) -> None:
        conn, _ = borrow(fake)
        for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="FakeConnection is on loan from pool 'app'"):
                refuse(conn)

    def test_it_is_equal_to_itself_alone(self, lite: sqlite3.Connection) -> None:
        conn, _ = borrow(lite)
        assert conn != lite
        assert conn != borrow(lite)[0]
        assert {conn: 1}[conn] == 1


class TestAsynchronous:
    """Not in scope yet, and said so instead of guarding half of it."""

    def test_a_connection_is_refused(self) -> None:
        with pytest.raises(TypeError, match="asynchronous connections cannot be guarded"):
            guard(psycopg.AsyncConnection.__new__(psycopg.AsyncConnection), Loan("app"))

    @pytest.mark.parametrize("name", ["run", "rows", "block"])
    def test_a_call_is_refused_before_it_begins(self, name: str) -> None:
        begun: list[str] = []

        class Half:
            def commit(self) -> None: ...

            async def run(self) -> None:
                begun.append("run")

            async def rows(self) -> AsyncIterator[int]:
                begun.append("rows")
                yield 1

            @contextlib.asynccontextmanager
            async def block(self) -> AsyncIterator[None]:
                begun.append("block")
                yield

        conn, _ = borrow(Half())
        with pytest.raises(TypeError, match="asynchronous calls cannot be guarded"):
            getattr(conn, name)()
        assert begun == []


class TestSite:
    def test_it_is_the_nearest_line_outside_of_the_pool_and_contextlib(self) -> None:
        scope: dict[str, Any] = {"__name__": "connpool.pool", "site": site}
        exec("class Lease:\n def close(self):\n  self.site = site()", scope)
        lease = scope["Lease"]()
        with contextlib.closing(lease):
            pass
        line = sys._getframe().f_lineno - 2
        assert lease.site == f"{__name__.replace('.', '/')}.py:{line} in MainThread"

    def test_a_thread_of_the_pools_own_has_none(self) -> None:
        places: Queue[str] = Queue()
        scope: dict[str, Any] = {"__name__": "connpool.threads", "site": site, "places": places}
        exec("def work(): places.put(site())", scope)
        _thread.start_new_thread(scope["work"], ())
        assert places.get(timeout=SOON).startswith("the pool itself in ")

    def test_it_shows_as_much_of_the_path_as_the_module_has_parts(self) -> None:
        for module, filename, shown in (
            ("app.views", "/srv/x/app/views.py", "app/views.py:1"),
            ("app.views", "C:\\x\\app\\views.py", "app/views.py:1"),
            ("app", "/srv/x/app/__init__.py", "app/__init__.py:1"),
            ("__main__", "/srv/x/script.py", "script.py:1"),
            ("connpooled", "/srv/x/connpooled.py", "connpooled.py:1"),
        ):
            scope: dict[str, Any] = {"__name__": module, "site": site}
            exec(compile("where = site()", filename, "exec"), scope)
            assert scope["where"] == f"{shown} in MainThread"


# -- sqlite3 -------------------------------------------------------------------------------------------


class TestSQLite:
    def test_a_call_of_the_connection_is_a_statement(self, lite: sqlite3.Connection) -> None:
        conn, _ = borrow(lite)
        assert type(conn("select 1")).__name__ == "Statement"

    def test_with_commits_and_rolls_back(self, lite: sqlite3.Connection) -> None:
        conn, _ = borrow(lite)
        conn.execute("create table t (x)")
        with conn:
            conn.execute("insert into t values (1)")
        assert not conn.in_transaction
        with pytest.raises(ZeroDivisionError), conn:
            conn.execute("insert into t values (2)")
            raise ZeroDivisionError
        assert conn.execute("select x from t").fetchall() == [(1,)]

    def test_iterdump(self, lite: sqlite3.Connection) -> None:
        conn, _ = borrow(lite)
        conn.executescript("create table t (x); insert into t values (1)")
        assert 'INSERT INTO "t" VALUES(1);' in list(conn.iterdump())

    def test_backup_to_another_borrowed_connection_uses_both(self, lite: sqlite3.Connection) -> None:
        conn, _ = borrow(lite)
        conn.execute("create table t (x)")
        with contextlib.closing(sqlite3.connect(":memory:")) as raw:
            target, loan = borrow(raw)
            conn.backup(target=target)
            assert target.execute("select count(*) from t").fetchone() == (0,)
            used: list[bool] = []
            begun, finish = threading.Event(), threading.Event()

            def progress(*_: int) -> None:
                begun.set()
                used.append(finish.wait(SOON))

            with inside(lambda: borrowed_backup(lite, target, progress), begun, finish):
                with pytest.raises(PoolMisuse, match="one thread at a time"):
                    target.commit()
            loan.end(RELEASED)
            with refused():
                conn.backup(target)
            assert used

    def test_blob(self, lite: sqlite3.Connection) -> None:
        conn, loan = borrow(lite)
        conn.execute("create table t (x blob)")
        conn.execute("insert into t values (zeroblob(4))")
        with conn.blobopen("t", "x", 1) as blob:
            blob[0] = 65
            blob[1:4] = b"BCD"
            assert len(blob) == 4
            assert blob[0:2] == b"AB"
            assert list(blob) == [65, 66, 67, 68]
            assert blob.read() == b"ABCD"
        late = conn.blobopen("t", "x", 1)
        loan.end(RELEASED)
        for use in (lambda: late[0], lambda: late.__setitem__(0, 1), late.read, lambda: len(late)):
            with refused():
                use()
        late.close()
        unwrap(late).close()

    def test_interrupt_may_come_from_another_thread(self, lite: sqlite3.Connection) -> None:
        conn, _ = borrow(lite)
        begun = threading.Event()
        finish = threading.Event()

        def wait() -> None:
            begun.set()
            assert finish.wait(SOON)

        lite.create_function("wait", 0, wait)
        endless = (
            "with recursive t(i) as (select 1 union all select i + 1 from t) select count(wait()) from t"
        )

        def run() -> None:
            with pytest.raises(sqlite3.OperationalError, match="interrupted"):
                conn.execute(endless).fetchall()

        with inside(run, begun, finish):
            conn.interrupt()


def borrowed_backup(raw: sqlite3.Connection, target: Any, progress: Callable[..., object]) -> None:
    borrow(raw)[0].backup(target, progress=progress)


# -- psycopg -------------------------------------------------------------------------------------------


@pytest.fixture
def pg(postgresql: PostgreSQL) -> Iterator["psycopg.Connection[Any]"]:
    with postgresql.database() as name, psycopg.connect(**postgresql.params_for(dbname=name)) as conn:
        yield conn


@pytest.mark.server
class TestPsycopg:
    def test_a_thousand_duels(self, pg: "psycopg.Connection[Any]", postgresql: PostgreSQL) -> None:
        pg.autocommit = True
        pg.execute("set lock_timeout = '5s'")
        conn, _ = borrow(pg)
        with psycopg.connect(**postgresql.params_for(dbname=pg.info.dbname), autocommit=True) as other:
            refusals = duel(
                lambda: conn.execute("select pg_advisory_xact_lock(1)").fetchall(),
                lambda: other.execute("select pg_advisory_lock(1)"),
                lambda: other.execute("select pg_advisory_unlock(1)"),
            )
        assert len(refusals) == DUELS
        assert all("while crowd-" in text for text in refusals)
        assert conn.execute("select 1").fetchone() == (1,)

    def test_nothing_is_sent_after_release(
        self, pg: "psycopg.Connection[Any]", postgresql: PostgreSQL
    ) -> None:
        conn, loan = borrow(pg)
        cursor = conn.cursor()
        named = conn.cursor("named")
        named.execute("select generate_series(1, 3)")
        copying = cursor.copy("copy (select 1) to stdout")
        stream = cursor.stream("select 1")
        block, pipeline, notifies = conn.transaction(), conn.pipeline(), conn.notifies(timeout=0)
        assert loan.end(RELEASED) is None
        mark = postgresql.mark()
        for use in (
            lambda: conn.execute("select 1"),
            lambda: cursor.execute("select 1"),
            named.fetchone,
            lambda: next(iter(named)),
            copying.__enter__,
            lambda: next(stream),
            block.__enter__,
            pipeline.__enter__,
            lambda: next(notifies),
            conn.commit,
            conn.cancel,
            conn.cancel_safe,
            conn.__enter__,
        ):
            with refused():
                use()
        cursor.close()
        named.close()
        for late in (stream, notifies):
            late.close()
        assert postgresql.statements(mark) == []
        unwrap(named).close()

    def test_types_pass(self, pg: "psycopg.Connection[Any]") -> None:
        conn, _ = borrow(pg)
        assert isinstance(conn, psycopg.Connection)
        assert isinstance(conn.cursor(), psycopg.Cursor)
        assert conn.cursor().connection is conn
        cursor = conn.cursor()
        assert cursor.execute("select 1") is cursor
        with conn.cursor("named") as named:
            assert isinstance(named, psycopg.ServerCursor)
        assert type(conn.info) is psycopg.ConnectionInfo
        assert conn.info.dbname == pg.info.dbname
        assert conn.pgconn is pg.pgconn

    def test_sql_is_composed_with_it(self, pg: "psycopg.Connection[Any]") -> None:
        conn, _ = borrow(pg)
        query = sql.SQL("select {}, {}").format(sql.Identifier("x"), sql.Literal("a'b"))
        assert query.as_string(conn) == query.as_string(conn.cursor()) == query.as_string(pg)
        assert conn.execute(sql.SQL("select {}").format(sql.Literal(1))).fetchone() == (1,)
        assert psycopg.ClientCursor(conn).mogrify("select %s", ["x"]) == "select 'x'"
        assert psycopg.ClientCursor(conn).execute("select %s", ["x"]).fetchone() == ("x",)

    def test_type_info(self, pg: "psycopg.Connection[Any]") -> None:
        conn, _ = borrow(pg)
        info = TypeInfo.fetch(conn, "text")
        assert info is not None
        info.register(conn)

    def test_row_factories(self, pg: "psycopg.Connection[Any]") -> None:
        conn, _ = borrow(pg)
        conn.row_factory = psycopg.rows.dict_row
        assert conn.row_factory is psycopg.rows.dict_row
        assert conn.execute("select 1 as one").fetchone() == {"one": 1}
        named = conn.cursor(row_factory=psycopg.rows.namedtuple_row).execute("select 1 as one").fetchone()
        assert not isinstance(named, Guarded)
        assert named.one == 1

    def test_transactions(self, pg: "psycopg.Connection[Any]") -> None:
        conn, loan = borrow(pg)
        conn.autocommit = True
        conn.execute("create table t (x int)")
        with conn.transaction() as outer:
            assert outer.connection is conn
            conn.execute("insert into t values (1)")
            with conn.transaction():
                conn.execute("insert into t values (2)")
                raise psycopg.Rollback
        with conn.transaction() as outer:
            conn.execute("insert into t values (3)")
            with conn.transaction():
                raise psycopg.Rollback(outer)
        with pytest.raises(ZeroDivisionError), conn.transaction():
            conn.execute("insert into t values (4)")
            raise ZeroDivisionError
        assert conn.execute("select x from t").fetchall() == [(1,)]
        assert loan.end(RELEASED) is None

    def test_a_transaction_as_decorator_is_guarded_at_each_call(self, pg: "psycopg.Connection[Any]") -> None:
        conn, loan = borrow(pg)
        status: list[str] = []

        @conn.transaction()
        def work() -> None:
            status.append(pg.info.transaction_status.name)

        work()
        work()
        assert status == ["INTRANS", "INTRANS"]
        loan.end(RELEASED)
        with refused():
            work()
        assert status == ["INTRANS", "INTRANS"]

    def test_release_inside_a_transaction_block(
        self, pg: "psycopg.Connection[Any]", postgresql: PostgreSQL
    ) -> None:
        conn, loan = borrow(pg)
        with refused(), conn.transaction():
            assert loan.end(RELEASED) is None
            assert loan.unfinished() == "Connection.transaction"
            pg.close()  # as the pool does, since it was told
            mark = postgresql.mark()
        assert postgresql.statements(mark) == [], "neither COMMIT nor ROLLBACK"

    def test_an_exception_after_release_inside_a_transaction_block(
        self, pg: "psycopg.Connection[Any]"
    ) -> None:
        conn, loan = borrow(pg)
        with pytest.raises(ZeroDivisionError) as caught, conn.transaction(), conn.cursor() as cursor:
            cursor.execute("select 1")
            loan.end(RELEASED)
            raise ZeroDivisionError
        assert caught.value.__context__ is None

    def test_release_inside_a_cursors_block_is_harmless(
        self, pg: "psycopg.Connection[Any]", postgresql: PostgreSQL
    ) -> None:
        conn, loan = borrow(pg)
        with conn.cursor("named") as cursor:
            cursor.execute("select 1")
            assert loan.end(RELEASED) is None
            mark = postgresql.mark()
        assert postgresql.statements(mark) == []
        unwrap(cursor).close()

    def test_pipeline(self, pg: "psycopg.Connection[Any]") -> None:
        conn, _ = borrow(pg)
        with conn.pipeline() as pipeline:
            cursors = [conn.execute("select %s", [number]) for number in range(3)]
            pipeline.sync()
            assert [cursor.fetchone() for cursor in cursors] == [(0,), (1,), (2,)]

    def test_copy(self, pg: "psycopg.Connection[Any]") -> None:
        conn, loan = borrow(pg)
        conn.execute("create table t (x int, y text)")
        cursor = conn.cursor()
        with cursor.copy("copy t from stdin") as copying:
            assert copying.cursor is cursor
            copying.write_row((1, "a"))
            copying.write(b"2\tb\n")
        assert cursor.rowcount == 2
        with cursor.copy("copy t from stdin", writer=QueuedLibpqWriter(cursor)) as copying:
            for number in range(1000):
                copying.write_row((number, "x" * 100))
        assert cursor.rowcount == 1000
        out = io.BytesIO()
        with cursor.copy("copy (select * from t order by y, x limit 2) to stdout") as copying:
            for block in copying:
                out.write(block)
        assert out.getvalue() == b"1\ta\n2\tb\n"
        with cursor.copy("copy (select 7) to stdout") as copying:
            copying.set_types(["int4"])
            assert list(copying.rows()) == [(7,)]
        with pytest.raises(ZeroDivisionError), cursor.copy("copy t from stdin") as copying:
            loan.end(RELEASED)
            with refused():
                copying.write(b"3\tc\n")
            raise ZeroDivisionError

    def test_iteration_and_streams(self, pg: "psycopg.Connection[Any]") -> None:
        conn, loan = borrow(pg)
        assert list(conn.execute("select generate_series(1, 3)")) == [(1,), (2,), (3,)]
        for row in conn.cursor().stream("select generate_series(1, 3)"):
            assert row == (1,)
            break
        results = conn.execute("select 1; select 2")
        assert [cursor.fetchone() for cursor in results.results()] == [(1,), (2,)]
        assert all(cursor is results for cursor in results.set_result(0).results())
        with conn.cursor("named") as named:
            named.itersize = 2
            assert list(named.execute("select generate_series(1, 5)")) == [(n,) for n in range(1, 6)]
        stream = conn.cursor().stream("select generate_series(1, 3)")
        next(stream)
        assert loan.end(RELEASED) is None
        assert loan.unfinished() == "Cursor.stream"
        with refused():
            next(stream)

    def test_notifications(self, pg: "psycopg.Connection[Any]") -> None:
        conn, _ = borrow(pg)
        conn.autocommit = True
        conn.execute("listen x")
        conn.execute("notify x, 'hello'")
        received = list(conn.notifies(timeout=SOON, stop_after=1))
        assert [notify.payload for notify in received] == ["hello"]
        assert type(received[0]) is psycopg.Notify

    def test_a_notice_handler_may_use_the_connection(self, pg: "psycopg.Connection[Any]") -> None:
        conn, _ = borrow(pg)
        seen: list[Any] = []
        conn.add_notice_handler(lambda diagnostic: seen.append((diagnostic.severity, conn.fileno())))
        conn.execute("do $$ begin raise notice 'x'; end $$")
        assert seen == [("NOTICE", pg.fileno())]

    def test_cancel_from_another_thread(self, pg: "psycopg.Connection[Any]", postgresql: PostgreSQL) -> None:
        conn, _ = borrow(pg)
        begun = threading.Event()
        conn.add_notice_handler(lambda _: begun.set())

        def run() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                conn.execute("do $$ begin raise notice 'x'; perform pg_sleep(60); end $$")

        with inside(run, begun, threading.Event()):
            conn.cancel_safe()

    def test_the_drivers_errors_pass_unchanged(self, pg: "psycopg.Connection[Any]") -> None:
        conn, _ = borrow(pg)
        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            conn.execute("select 1 / 0")
        assert caught.value.__context__ is None
        conn.rollback()


# -- PyMySQL -------------------------------------------------------------------------------------------


@pytest.fixture
def my(mariadb: MariaDB, mariadb_database: str) -> Iterator[Any]:
    with pymysql.connect(**mariadb.params_for(database=mariadb_database)) as conn:
        yield conn


@pytest.mark.server
class TestPyMySQL:
    def test_a_thousand_duels(self, my: Any, mariadb: MariaDB) -> None:
        conn, _ = borrow(my)

        def use() -> None:
            with conn.cursor() as cursor:
                cursor.execute("select get_lock('duel', 5), release_lock('duel')")
                assert cursor.fetchone() == (1, 1)

        with pymysql.connect(**mariadb.params) as other, other.cursor() as held:
            refusals = duel(
                use,
                lambda: held.execute("select get_lock('duel', 5)"),
                lambda: held.execute("select release_lock('duel')"),
            )
        assert len(refusals) == DUELS
        use()

    def test_nothing_is_sent_after_release(self, my: Any, mariadb: MariaDB) -> None:
        conn, loan = borrow(my)
        cursor = conn.cursor()
        cursor.execute("select 1 union select 2")
        mark = mariadb.mark()
        loan.end(RELEASED)
        for use in (
            lambda: cursor.execute("select 1"),
            cursor.fetchone,
            lambda: list(cursor),
            lambda: conn.ping(reconnect=False),
            conn.commit,
            lambda: conn.select_db("mysql"),
            lambda: conn.autocommit(True),
            conn.close,
        ):
            with refused():
                use()
        cursor.close()
        assert mariadb.statements(mark) == []
        assert my.open

    def test_cursors(self, my: Any) -> None:
        conn, _ = borrow(my)
        assert isinstance(conn, pymysql.connections.Connection)
        with conn.cursor() as cursor:
            assert cursor.execute("select 1 as one union select 2") == 2
            assert list(cursor) == [(1,), (2,)]
            assert cursor.connection is conn
        with conn.cursor(pymysql.cursors.DictCursor) as cursor:
            cursor.execute("select 1 as one")
            assert cursor.fetchone() == {"one": 1}
        with conn.cursor(pymysql.cursors.SSCursor) as cursor:
            cursor.execute("select 1 union select 2 union select 3")
            assert cursor.fetchone() == (1,)
            assert list(cursor.fetchall_unbuffered()) == [(2,), (3,)]
        assert conn.ping(reconnect=False) is None
        assert conn.autocommit(True) is None
        with pytest.raises(conn.ProgrammingError):
            conn.query("nonsense")

    def test_an_unbuffered_iterator_is_refused_after_release(self, my: Any) -> None:
        conn, loan = borrow(my)
        cursor = conn.cursor(pymysql.cursors.SSCursor)
        cursor.execute("select 1 union select 2 union select 3")
        rows = cursor.fetchall_unbuffered()
        assert next(rows) == (1,)
        loan.end(RELEASED)
        with refused():
            next(rows)
        with refused():
            cursor.nextset()
        unwrap(cursor).close()

    def test_close_is_the_drivers(self, mariadb: MariaDB) -> None:
        raw = pymysql.connect(**mariadb.params)
        conn, _ = borrow(raw)
        conn.close()
        assert not raw.open
