"""Any DB-API driver: the contract over sqlite3, psycopg, psycopg2 and PyMySQL; the rest over fakes."""

import gc
import socket
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import MappingProxyType, ModuleType
from typing import Any

import psycopg
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pymysql
import pymysql.cursors
import pytest
from servers.fixtures import FaultProxy, MariaDB, PostgreSQL

from adapters.contract import (
    FULL,
    LIMIT,
    SHORT,
    SOON,
    AdapterContract,
    Harness,
    Lent,
    in_forked_child,
    is_socket,
)
from connpool.adapter import Adapter, Fault, Verdict, adapter_for
from connpool.adapters.dbapi import DBAPIAdapter
from connpool.adapters.sockets import KEEPALIVE
from connpool.errors import PoolMisuse, PoolTimeout
from connpool.reset import Part

NO_URL = "a URL names a driver"
NO_ERRORS = "the driver is not known when the module is written"
NOT_CHOSEN = "the driver has an adapter of its own"
NOT_COMPARED = "the verdict does not come to the settings, because it sees no transaction"
NOT_ASKED = "psycopg's rows are whatever its user makes of them; it has an adapter of its own"
NO_PARTS = "nothing is known of resets with this driver"


# -- the contract, over sqlite3 ----------------------------------------------------------------------


class SQLiteHarness(Harness):
    operational_error = sqlite3.OperationalError
    lacks: Mapping[str, str] = MappingProxyType(
        {
            "fail": "an error leaves sqlite3's transactions as they are",
            "kill": "no server",
            "black_hole": "no network",
            "slow": "no socket that could be shut down",
            "leave_unread": "not seen without the driver's own adapter",
            "closed": "sqlite3 does not show it",
            "url": NO_URL,
            "errors": NO_ERRORS,
            "around": NOT_CHOSEN,
            "alter": "to read an attribute of an unknown driver may take a round trip",
            "full": NO_PARTS,
            "credentials": "nobody asks for them",
            "idle_limit": "no server",
            "read_only": "no server that could be switched",
            "forget": "no socket that could be disconnected",
            "keepalive": "no network",
            **({} if sys.version_info >= (3, 12) else {"autocommit": "new in Python 3.12"}),
        }
    )

    def __init__(self, path: Path) -> None:
        self.path = path

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, check_same_thread=False)

    def adapter(self) -> Adapter[Any]:
        return DBAPIAdapter(sqlite3.connect, self.path, check_same_thread=False)

    def bad_dials(self) -> Any:
        nowhere = DBAPIAdapter(sqlite3.connect, self.path / "no" / "such.db")
        return {"no directory": (nowhere, frozenset({Fault.DEAD}))}


class TestSQLite(AdapterContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return SQLiteHarness(tmp_path / "app.db")


# The first is what the kernel has for a default: only libpq knows that it is wanted.
TUNED = {"keepalives_idle": 7200, "keepalives_interval": 25, "tcp_user_timeout": 5000}
EXPECTED = {
    "SO_KEEPALIVE": 1,
    "TCP_KEEPIDLE": 7200,
    "TCP_KEEPINTVL": 25,
    "TCP_KEEPCNT": KEEPALIVE["TCP_KEEPCNT"],
    "TCP_USER_TIMEOUT": 5000,
}


@contextmanager
def read_only(server: PostgreSQL) -> Iterator[None]:
    def switch(alter: str, value: str) -> None:
        server.execute(f"ALTER SYSTEM {alter}")
        server.execute("SELECT pg_reload_conf()")
        until = monotonic() + SOON
        while server.execute("SHOW default_transaction_read_only") != [(value,)]:
            assert monotonic() < until

    switch("SET default_transaction_read_only = on", "on")
    try:
        yield
    finally:
        switch("RESET default_transaction_read_only", "off")


# -- over psycopg ------------------------------------------------------------------------------------


class PsycopgHarness(Harness):
    operational_error = psycopg.OperationalError
    lacks = MappingProxyType(
        {
            "url": NO_URL,
            "errors": NO_ERRORS,
            "around": NOT_CHOSEN,
            "full": NO_PARTS,
            "idle_limit": NOT_ASKED,
            "read_only": NOT_ASKED,
        }
    )

    def __init__(self, server: PostgreSQL, database: str) -> None:
        self.server = server
        self.params: dict[str, Any] = {**server.params_for(dbname=database)}

    def make(self, params: Mapping[str, Any]) -> Adapter[Any]:
        return DBAPIAdapter(psycopg.connect, **params)

    def adapter(self) -> Adapter[Any]:
        return self.make(self.params)

    def bad_dials(self) -> Any:
        nobody = DBAPIAdapter(psycopg.connect, **self.params | {"dbname": "no_such_database"})
        refused = DBAPIAdapter(psycopg.connect, **self.params | {"port": closed_port()})
        return {
            "unknown database": (nobody, frozenset({Fault.AUTH})),
            "refused port": (refused, frozenset({Fault.DEAD})),
        }

    def refused(self) -> tuple[Adapter[Any], Mapping[str, Any]]:
        user = self.params["user"]
        return self.make({**self.params, "user": "nobody"}), {"user": user, "password": "any"}

    def tuned(self) -> tuple[Adapter[Any], Mapping[str, int]]:
        return self.make({**self.params, **TUNED}), EXPECTED

    @contextmanager
    def black_hole(self) -> Iterator[tuple[Adapter[Any], Callable[[], object]]]:
        with FaultProxy(self.server.address) as proxy:
            params = self.params | {"host": proxy.host, "port": proxy.port}
            yield DBAPIAdapter(psycopg.connect, **params), proxy.black_hole

    def fail(self, conn: psycopg.Connection) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1 / 0")

    def leave_unread(self, conn: psycopg.Connection) -> object:
        stream = conn.cursor().stream("SELECT generate_series(1, 3)")
        next(stream)
        return stream

    def kill(self, conn: psycopg.Connection) -> None:
        self.server.execute("SELECT pg_terminate_backend(%s, 5000)", conn.info.backend_pid)

    def slow(self, conn: psycopg.Connection) -> None:
        conn.execute("SELECT pg_sleep(60)")

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        return put(
            isolation_level=psycopg.IsolationLevel.SERIALIZABLE,
            read_only=False,
            deferrable=True,
            row_factory=psycopg.rows.namedtuple_row,
            cursor_factory=psycopg.ClientCursor,
            server_cursor_factory=type("ServerCursor", (psycopg.ServerCursor,), {}),
            prepare_threshold=0,
            autocommit=True,
        )

    def settings(self, conn: Any) -> object:
        return [getattr(conn, name) for name in self.alterations()]


@pytest.mark.server
class TestPsycopg(AdapterContract):
    @pytest.fixture
    def harness(self, postgresql: PostgreSQL, postgresql_database: str) -> Harness:
        return PsycopgHarness(postgresql, postgresql_database)


# -- over psycopg2 -----------------------------------------------------------------------------------


class OwnCursor(psycopg2.extensions.cursor):
    """A borrower's own class of cursors."""


class Psycopg2Harness(Harness):
    operational_error = psycopg2.OperationalError
    lacks = MappingProxyType(
        {
            "url": NO_URL,
            "errors": NO_ERRORS,
            "leave_unread": "psycopg2 reads every result to its end",
            "forget": "tried below: commit() of nothing stays silent, and a locked connection waits",
        }
    )

    def __init__(self, server: PostgreSQL, database: str) -> None:
        self.server = server
        self.params: dict[str, Any] = {**server.params_for(dbname=database)}

    def make(self, params: Mapping[str, Any]) -> Adapter[Any]:
        return DBAPIAdapter(psycopg2.connect, **params)

    def adapter(self) -> Adapter[Any]:
        return self.make(self.params)

    def idle_limited(self) -> tuple[Adapter[Any], float]:
        return self.make({**self.params, "options": "-c idle_session_timeout=1500ms"}), 1.5

    def read_only(self) -> Any:
        return read_only(self.server)

    def begin_read_only(self, conn: Any) -> None:
        self.run(conn, "SET TRANSACTION READ ONLY")

    def connect(self) -> Any:
        return psycopg2.connect(**self.params)

    def bad_dials(self) -> Any:
        nobody = DBAPIAdapter(psycopg2.connect, **self.params | {"dbname": "no_such_database"})
        refused = DBAPIAdapter(psycopg2.connect, **self.params | {"port": closed_port()})
        return {
            "unknown database": (nobody, frozenset({Fault.AUTH})),
            "refused port": (refused, frozenset({Fault.DEAD})),
        }

    def refused(self) -> tuple[Adapter[Any], Mapping[str, Any]]:
        user = self.params["user"]
        return self.make({**self.params, "user": "nobody"}), {"user": user, "password": "any"}

    def tuned(self) -> tuple[Adapter[Any], Mapping[str, int]]:
        return self.make({**self.params, **TUNED}), EXPECTED

    @contextmanager
    def black_hole(self) -> Iterator[tuple[Adapter[Any], Callable[[], object]]]:
        with FaultProxy(self.server.address) as proxy:
            params = self.params | {"host": proxy.host, "port": proxy.port}
            yield DBAPIAdapter(psycopg2.connect, **params), proxy.black_hole

    def fail(self, conn: Any) -> None:
        with pytest.raises(psycopg2.errors.DivisionByZero):
            self.run(conn, "SELECT 1 / 0")

    def kill(self, conn: Any) -> None:
        self.server.execute("SELECT pg_terminate_backend(%s, 5000)", conn.info.backend_pid)

    def slow(self, conn: Any) -> None:
        self.run(conn, "SELECT pg_sleep(60)")

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        return {
            "commit by hand": commit_by_hand,
            "notice": notice,
            "notify": notify_itself,
            **put(
                isolation_level=psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE,
                readonly=False,
                deferrable=True,
                cursor_factory=OwnCursor,
                notices=["its borrower's"],
                notifies=["its borrower's"],
                autocommit=True,
            ),
            "encoding": lambda conn: conn.set_client_encoding("LATIN1"),
        }

    def settings(self, conn: Any) -> object:
        names = ("isolation_level", "readonly", "deferrable", "cursor_factory", "autocommit")
        return (
            [getattr(conn, name) for name in (*names, "encoding", "status")],
            id(conn.notices),
            id(conn.notifies),
            *conn.notices,
            *(conn.notifies),
        )

    def change_session(self, conn: Any) -> None:
        for statement in (
            "SET statement_timeout = '54321ms'",
            "SET search_path TO leak, public",
            "SET datestyle TO german",
            "SET client_encoding TO latin2",
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "CREATE TEMPORARY TABLE leak (a integer)",
            "PREPARE leak AS SELECT 4711",
            "DECLARE leak CURSOR WITH HOLD FOR SELECT 4711",
            "SELECT pg_advisory_lock(4711)",
            "LISTEN leak",
        ):
            self.run(conn, statement)
        conn.commit()
        psycopg2.extensions.register_type(psycopg2.extensions.UNICODEARRAY, conn)

    def session(self, conn: Any) -> object:
        shown = self.run(
            conn,
            "SELECT current_setting('statement_timeout'), current_setting('search_path'),"
            " current_setting('datestyle'), current_setting('client_encoding'),"
            " current_setting('default_transaction_isolation'),"
            " (SELECT count(*) FROM pg_class WHERE relname = 'leak'),"
            " (SELECT count(*) FROM pg_prepared_statements WHERE name = 'leak'),"
            " (SELECT count(*) FROM pg_cursors WHERE name = 'leak'),"
            " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
            " array(SELECT pg_listening_channels())",
        )
        return shown, dict(conn.string_types)


def put(**values: Any) -> dict[str, Callable[[Any], object]]:
    """Return functions that set one attribute each."""

    def setter(name: str) -> Callable[[Any], object]:
        return lambda conn: setattr(conn, name, values[name])

    return {name: setter(name) for name in values}


def run(conn: Any, statement: str) -> list[Any]:
    cursor = conn.cursor()
    cursor.execute(statement)
    return list(cursor.fetchall()) if cursor.description else []


def commit_by_hand(conn: Any) -> None:
    """Leave psycopg2 in the belief that its transaction is open."""
    run(conn, "COMMIT")
    assert conn.status == psycopg2.extensions.STATUS_IN_TRANSACTION


def notice(conn: Any) -> None:
    run(conn, "DO $$ BEGIN RAISE NOTICE 'for its borrower'; END $$")
    conn.commit()
    assert conn.notices


def notify_itself(conn: Any) -> None:
    run(conn, "LISTEN itself")
    run(conn, "NOTIFY itself")
    conn.commit()
    run(conn, "UNLISTEN itself")
    conn.commit()
    assert conn.notifies


@pytest.mark.server
class TestPsycopg2(AdapterContract):
    @pytest.fixture
    def harness(self, postgresql: PostgreSQL, postgresql_database: str) -> Harness:
        return Psycopg2Harness(postgresql, postgresql_database)

    def test_whatever_makes_the_rows_the_answers_are_understood(
        self, harness: Harness, lend: Callable[..., Lent]
    ) -> None:
        assert isinstance(harness, Psycopg2Harness)
        params = {**harness.params, "options": "-c idle_session_timeout=90s"}
        for factory in (None, psycopg2.extras.RealDictCursor, psycopg2.extras.NamedTupleCursor):
            for autocommit in (False, True):
                lent = lend(DBAPIAdapter(psycopg2.connect, **params, cursor_factory=factory))
                lent.conn.autocommit = autocommit
                lent.adopt_again()
                assert lent.adapter.idle_limit(lent.conn, LIMIT) == 90.0
                assert lent.verdict() is Verdict.CLEAN
                assert lent.adapter.writable(lent.conn, LIMIT)
                assert lent.verdict() is Verdict.CLEAN
                run(lent.conn, "SET default_transaction_read_only = on")
                lent.conn.commit()
                assert not lent.adapter.writable(lent.conn, LIMIT)
                assert lent.verdict() is Verdict.CLEAN

    @pytest.mark.parametrize("state", ["at rest", "in a transaction", "in a call"])
    def test_a_forked_child_leaves_the_parents_session_alone(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]], state: str
    ) -> None:
        adapter, conn = lent.adapter, lent.conn
        fileno, began = conn.fileno(), threading.Event()
        if state == "in a transaction":
            harness.insert(conn, 1)

        def borrow() -> None:
            began.set()
            run(conn, "SELECT pg_sleep(1)")

        def child() -> None:
            adapter.forget(conn)
            assert not is_socket(fileno)
            for _ in range(2):
                for use in (adapter.commit, adapter.begin, lambda conn: adapter.rollback(conn, LIMIT)):
                    with pytest.raises(ConnectionError, match="it is the parent's"):
                        use(conn)
                if state != "in a call":
                    with pytest.raises(psycopg2.Error):
                        run(conn, "SELECT 1")
                assert lent.verdict() is Verdict.BROKEN
                assert not adapter.alive(conn)
                adapter.forget(conn)
            adapter.close(conn, LIMIT)
            adapter.abort(conn)
            lent.conn = None

        thread = threading.Thread(target=borrow, daemon=True)
        if state == "in a call":
            thread.start()
            assert began.wait(SOON)
            thread.join(0.2)
        assert in_forked_child(child) == ""
        if state == "in a call":
            thread.join(SOON)
        adapter.commit(conn)
        assert table() == ([1] if state == "in a transaction" else [])
        assert adapter.alive(conn)
        assert lent.verdict() is Verdict.CLEAN

    def test_a_borrowers_own_empty_list_gets_nothing_of_the_next_ones(self, lent: Lent) -> None:
        own, its = lent.conn.notices, []  # type: ignore[var-annotated]
        lent.conn.notices = its
        assert lent.verdict() is Verdict.ALTERED
        lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
        notice(lent.conn)
        assert its == []
        assert lent.conn.notices is own

    def test_what_was_appended_while_it_was_opened_is_no_alteration(self, lent: Lent) -> None:
        notice(lent.conn)
        lent.adopt_again()
        assert lent.verdict() is Verdict.CLEAN
        assert lent.conn.notices == []

    def test_a_log_in_place_of_the_list_is_let_be(self, lent: Lent) -> None:
        class Log:
            def __init__(self) -> None:
                self.got: list[str] = []

            def append(self, message: str) -> None:
                self.got.append(message)

        log = lent.conn.notices = Log()
        lent.adopt_again()
        run(lent.conn, "DO $$ BEGIN RAISE NOTICE 'for the log'; END $$")
        lent.conn.commit()
        assert len(log.got) == 1
        assert lent.verdict() is Verdict.CLEAN
        lent.conn.notices = []
        assert lent.verdict() is Verdict.ALTERED
        lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
        assert lent.conn.notices is log

    def test_settings_alone_are_put_back_without_a_word_to_the_server(
        self, postgresql: PostgreSQL, lent: Lent
    ) -> None:
        lent.conn.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True)
        lent.conn.cursor_factory = OwnCursor
        mark = postgresql.mark()
        lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
        assert lent.verdict() is Verdict.CLEAN
        session = lent.conn.info.backend_pid
        assert [each.text for each in postgresql.statements(mark) if each.session == session] == []

    def test_a_full_reset_is_one_round_trip_and_so_are_parts(
        self, postgresql: PostgreSQL, lent: Lent
    ) -> None:
        lent.conn.set_session(isolation_level="SERIALIZABLE", readonly=False)
        lent.adopt_again()
        memory = lent.adapter.remember(lent.conn, FULL, LIMIT)
        mark = postgresql.mark()
        lent.reset(memory)
        lent.reset(None, (Part.DEALLOCATE, Part.UNLISTEN, Part.DEALLOCATE))
        session = lent.conn.info.backend_pid
        sent = [each.text for each in postgresql.statements(mark) if each.session == session]
        assert sent == ["DISCARD ALL", "DEALLOCATE ALL; UNLISTEN *"]

    @pytest.mark.parametrize("autocommit", [False, True])
    def test_characteristics_hold_after_every_way_of_coming_back(self, lent: Lent, autocommit: bool) -> None:
        characteristics = (
            "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
        )
        conn, adapter = lent.conn, lent.adapter
        conn.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=autocommit)
        lent.adopt_again()
        memory = adapter.remember(conn, FULL, LIMIT)

        def borrow() -> None:
            assert lent.verdict() is Verdict.CLEAN
            assert run(conn, characteristics) == [("repeatable read", "on")]
            adapter.rollback(conn, LIMIT)
            conn.set_session(isolation_level="SERIALIZABLE", readonly=False, autocommit=not autocommit)

        for _ in range(2):
            borrow()
            adapter.restore(conn, lent.baseline, LIMIT)
            borrow()
            lent.reset(memory)
            borrow()
            lent.reset(None, (Part.RESET_SETTINGS,))
            borrow()
            conn.autocommit = autocommit
            lent.reset(None, (Part.DEALLOCATE, Part.UNLOCK))

    def test_reset_settings_brings_the_encoding_and_the_dates_that_the_driver_relies_on(
        self, harness: Harness, postgresql: PostgreSQL, postgresql_database: str
    ) -> None:
        postgresql.execute(f"ALTER DATABASE {postgresql_database} SET datestyle TO german")
        other = Lent(harness.adapter())
        postgresql.execute(f"ALTER DATABASE {postgresql_database} RESET datestyle")
        other.conn.set_client_encoding("LATIN1")
        other.adopt_again()
        for encoding in ("LATIN1", "LATIN2"):
            other.conn.set_client_encoding(encoding)
            other.reset(None, (Part.RESET_SETTINGS,))
            assert other.verdict() is Verdict.CLEAN
            assert run(other.conn, "SHOW client_encoding") == [("LATIN1",)]
            assert run(other.conn, "SELECT DATE '2026-02-01'")[0][0].month == 2
            other.conn.rollback()
        other.adapter.close(other.conn, LIMIT)

    def test_every_part_does_what_it_says(self, harness: Harness, postgresql: PostgreSQL, lent: Lent) -> None:
        settings = ("timeout", "path", "dates", "encoding", "isolation")
        names = (*settings, "temp", "prepared", "cursor", "lock", "listening", "role")
        undone: dict[Part, set[str]] = {
            Part.RESET_SETTINGS: {*settings},
            Part.RESET_ROLE: {"role"},
            Part.DISCARD_TEMP: {"temp"},
            Part.DEALLOCATE: {"prepared"},
            Part.CLOSE_CURSORS: {"cursor"},
            Part.UNLOCK: {"lock"},
            Part.UNLISTEN: {"listening"},
        }
        postgresql.execute("GRANT pg_monitor TO app")

        def session() -> dict[str, object]:
            role = run(lent.conn, "SELECT current_user")
            shown: Any = self.session(harness, lent)
            return dict(zip(names, (*shown[0][0], role), strict=True))

        at_connect = session()
        harness.change_session(lent.conn)
        run(lent.conn, "SET ROLE pg_monitor")
        lent.conn.commit()
        left = session()
        assert all(left[name] != at_connect[name] for name in names)
        for part, what in undone.items():
            lent.reset(None, (part,))
            now = session()
            assert {name for name in names if now[name] != left[name]} == what, part
            left = now
        assert left == at_connect

    def test_a_full_reset_brings_back_how_values_were_converted_at_connect(self, lent: Lent) -> None:
        def converter(result: int) -> Any:
            oid = (23,)  # integer
            return psycopg2.extensions.new_type(oid, "INTEGER", lambda value, cursor: result)

        def selected() -> object:
            return run(lent.conn, "SELECT 1")

        psycopg2.extensions.register_type(converter(4711), lent.conn)
        memory = lent.adapter.remember(lent.conn, FULL, LIMIT)
        for _ in range(2):
            psycopg2.extensions.register_type(converter(666), lent.conn)
            assert selected() == [(666,)]
            lent.reset(memory)
            assert selected() == [(4711,)]

    def test_a_reset_does_not_depend_on_its_borrowers_cursors(self, harness: Harness, lent: Lent) -> None:
        class Silent(psycopg2.extensions.cursor):
            def execute(self, *args: object) -> None:
                pass

        harness.change_session(lent.conn)
        lent.conn.cursor_factory = Silent
        lent.reset(None, (Part.RESET_SETTINGS,))
        assert lent.verdict() is Verdict.CLEAN
        assert run(lent.conn, "SHOW statement_timeout") == [("0",)]

    def test_discard_sequences_forgets_what_currval_remembers(self, lent: Lent) -> None:
        run(lent.conn, "CREATE SEQUENCE s")
        run(lent.conn, "SELECT nextval('s')")
        lent.conn.commit()
        assert run(lent.conn, "SELECT currval('s')") == [(1,)]
        lent.reset(None, (Part.DISCARD_PLANS, Part.DISCARD_SEQUENCES))
        with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState):
            run(lent.conn, "SELECT currval('s')")

    def test_a_prepared_second_phase_is_no_rest(self, lent: Lent) -> None:
        # The server may not allow it, so the driver's state alone is looked at.
        lent.conn.tpc_begin("global id")
        assert lent.verdict() is Verdict.DIRTY
        with pytest.raises(psycopg2.ProgrammingError):
            lent.adapter.rollback(lent.conn, LIMIT)


# -- over PyMySQL ------------------------------------------------------------------------------------


class PyMySQLHarness(Harness):
    operational_error = pymysql.err.OperationalError
    lacks = MappingProxyType(
        {
            "fail": "an error leaves the transaction as it is",
            "alive": "no fileno()",
            "black_hole": "no fileno()",
            "slow": "no fileno()",
            "leave_unread": "not seen without the driver's own adapter",
            "url": NO_URL,
            "errors": NO_ERRORS,
            "around": NOT_CHOSEN,
            "alter": NOT_COMPARED,
            "full": NO_PARTS,
            "forget": "no fileno()",
            "keepalive": "no fileno()",
        }
    )
    idle_limit = 28_800.0

    def __init__(self, server: MariaDB, database: str) -> None:
        self.server = server
        self.secret = server.password
        self.params: dict[str, Any] = {**server.params_for(database=database)}

    def make(self, params: Mapping[str, Any]) -> Adapter[Any]:
        return DBAPIAdapter(pymysql.connect, **params)

    def adapter(self) -> Adapter[Any]:
        return self.make(self.params)

    def refused(self) -> tuple[Adapter[Any], Mapping[str, Any]]:
        user, password = self.params["user"], self.params["password"]
        return self.make({**self.params, "user": "nobody"}), {"user": user, "password": password}

    def idle_limited(self) -> tuple[Adapter[Any], float]:
        return self.make({**self.params, "init_command": "set wait_timeout = 1"}), 1.0

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self.server.execute("SET GLOBAL read_only = 1")
        try:
            yield
        finally:
            self.server.execute("SET GLOBAL read_only = 0")

    def bad_dials(self) -> Any:
        wrong = DBAPIAdapter(pymysql.connect, **self.params | {"password": "wrong"})
        refused = DBAPIAdapter(pymysql.connect, **self.params | {"port": closed_port()})
        return {
            "wrong password": (wrong, frozenset({Fault.AUTH})),
            "refused port": (refused, frozenset({Fault.DEAD})),
        }

    def set_autocommit(self, conn: Any) -> None:
        conn.autocommit(True)

    def kill(self, conn: Any) -> None:
        self.server.terminate_sessions(user=self.server.user)


@pytest.mark.server
class TestPyMySQL(AdapterContract):
    @pytest.fixture
    def harness(self, mariadb: MariaDB, mariadb_database: str) -> Harness:
        return PyMySQLHarness(mariadb, mariadb_database)

    def test_restore_puts_back_what_the_verdict_cannot_come_to(
        self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
    ) -> None:
        before = lent.conn.cursorclass
        for limit in (LIMIT, None):
            lent.conn.autocommit(True)
            lent.conn.cursorclass = pymysql.cursors.DictCursor
            assert lent.verdict() is Verdict.DIRTY
            lent.adapter.rollback(lent.conn, LIMIT)
            lent.adapter.restore(lent.conn, lent.baseline, limit)
            assert not lent.conn.get_autocommit()
            assert lent.conn.cursorclass is before
        harness.insert(lent.conn, 1)
        lent.adapter.rollback(lent.conn, LIMIT)
        assert table() == []


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# -- fakes -------------------------------------------------------------------------------------------


class Error(Exception):
    pass


class OperationalError(Error):
    pass


class InterfaceError(Error):
    pass


class FakeConnection:
    """What PEP 249 demands, and a record of what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses: dict[str, Exception] = {}

    def ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.refuses:
            raise self.refuses[what]

    def cursor(self) -> "FakeCursor":
        return FakeCursor(self)

    def commit(self) -> None:
        self.ask("commit()")

    def rollback(self) -> None:
        self.ask("rollback()")

    def close(self) -> None:
        self.ask("close()")


class FakeCursor:
    def __init__(self, conn: FakeConnection) -> None:
        self.conn = conn

    def execute(self, statement: str) -> None:
        self.conn.ask(statement)

    def fetchall(self) -> list[tuple[int]]:
        return [(1,)]

    def close(self) -> None:
        pass


def made_by(module: str, **attributes: Any) -> FakeConnection:
    """Return a connection whose class says that it comes from a module."""
    return type("Connection", (FakeConnection,), {"__module__": module, **attributes})()


class SocketConnection(FakeConnection):
    """A connection over a socket, whose rollback waits for an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair()
        self.asking = threading.Event()

    def fileno(self) -> int:
        return self.ours.fileno()

    def rollback(self) -> None:
        self.asking.set()
        if not self.ours.recv(1):
            raise OperationalError("the connection ended")

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


def adopted(conn: Any) -> tuple[DBAPIAdapter, object]:
    adapter = DBAPIAdapter.around(lambda: conn)
    return adapter, adapter.adopt(adapter.connect(LIMIT))


@pytest.fixture
def over_socket() -> Iterator[SocketConnection]:
    conn = SocketConnection()
    yield conn
    conn.close()


# -- what is known of the driver ---------------------------------------------------------------------


def test_unknown_driver_has_this_adapter() -> None:
    conn = made_by("somedriver.connections")
    adapter = adapter_for(conn, lambda: conn)
    assert isinstance(adapter, DBAPIAdapter)
    assert not adapter.bounded
    baseline = adapter.adopt(conn)
    assert adapter.name == "somedriver"
    assert not adapter.sees_transactions
    assert adapter.verdict(conn, baseline) is Verdict.DIRTY


def test_arguments_reach_the_driver_and_are_never_shown() -> None:
    seen: list[object] = []
    adapter = DBAPIAdapter(lambda *args, **kwargs: seen.append((args, kwargs)), "db", password="geheim")
    adapter.connect(LIMIT)
    assert seen == [(("db",), {"password": "geheim"})]
    assert "geheim" not in repr(adapter)


@pytest.mark.parametrize(
    ("name", "when_open", "when_closed"),
    [("closed", False, True), ("closed", 0, 2), ("open", True, False), ("open", 1, 0)],
)
def test_attribute_that_tells_open_from_closed_is_believed(
    name: str, when_open: object, when_closed: object
) -> None:
    conn = made_by("somedriver", **{name: when_open})
    adapter, baseline = adopted(conn)
    assert adapter.verdict(conn, baseline) is Verdict.DIRTY
    setattr(conn, name, when_closed)
    assert adapter.verdict(conn, baseline) is Verdict.BROKEN


@pytest.mark.parametrize("attributes", [{"closed": True}, {"open": False}, {"open": lambda self: 1}])
def test_attribute_that_means_something_else_is_not(attributes: dict[str, object]) -> None:
    conn = made_by("somedriver", **attributes)
    adapter, baseline = adopted(conn)
    assert adapter.verdict(conn, baseline) is Verdict.DIRTY


class FakePsycopg2(FakeConnection):
    """A connection of psycopg2's, as far as its state is looked at."""

    __module__ = "psycopg2.extensions"
    closed = 0
    status = 1
    transaction_status = 0
    autocommit = False
    isolation_level = readonly = deferrable = cursor_factory = None
    encoding = "UTF8"

    @property
    def info(self) -> "FakePsycopg2":
        return self

    def set_session(self, **settings: object) -> None:
        vars(self).update(settings)


@pytest.mark.parametrize(
    ("transaction_status", "status", "verdict"),
    [
        (0, 1, Verdict.CLEAN),
        (0, 2, Verdict.ALTERED),  # it believes that a transaction is open, and would begin none
        (0, 5, Verdict.BROKEN),  # prepared for a second phase
        (1, 1, Verdict.BROKEN),
        (2, 1, Verdict.DIRTY),
        (2, 2, Verdict.DIRTY),
        (3, 2, Verdict.FAILED),
        (4, 2, Verdict.BROKEN),
    ],
)
def test_psycopg2_shows_the_state_of_its_transaction(
    transaction_status: int, status: int, verdict: Verdict
) -> None:
    conn = FakePsycopg2()
    adapter, baseline = adopted(conn)
    assert adapter.sees_transactions
    conn.transaction_status, conn.status = transaction_status, status
    assert adapter.verdict(conn, baseline) is verdict


@pytest.mark.parametrize(("closed", "verdict"), [(1, Verdict.SPENT), (2, Verdict.BROKEN)])
@pytest.mark.parametrize("autocommit", [False, True])
def test_psycopg2_tells_who_has_closed_it(closed: int, verdict: Verdict, autocommit: bool) -> None:
    # A transaction may have died with an autocommit connection, too: somebody may have said BEGIN.
    conn = FakePsycopg2()
    conn.autocommit = autocommit
    adapter, baseline = adopted(conn)
    conn.transaction_status, conn.closed = 4, closed
    assert adapter.verdict(conn, baseline) is verdict


def test_oracledb_shows_its_transaction_and_its_health() -> None:
    conn: Any = made_by(
        "oracledb.connection",
        transaction_in_progress=False,
        healthy=True,
        is_healthy=lambda self: self.healthy,
        ping=lambda self: self.ask("ping()"),
    )
    adapter, baseline = adopted(conn)
    assert adapter.sees_transactions
    assert adapter.verdict(conn, baseline) is Verdict.CLEAN
    conn.transaction_in_progress = True
    assert adapter.verdict(conn, baseline) is Verdict.DIRTY
    assert adapter.alive(conn)
    conn.healthy = False
    assert not adapter.alive(conn)
    adapter.ping(conn, LIMIT)
    assert conn.asked == ["ping()"]


class FakeOracle(FakeConnection):
    """A connection of python-oracledb's, whose attributes raise when it is closed."""

    __module__ = "oracledb.connection"
    autocommit = False
    inputtypehandler = outputtypehandler = None
    call_timeout = 0

    def __init__(self) -> None:
        super().__init__()
        self._impl: object = self

    @property
    def transaction_in_progress(self) -> bool:
        if self._impl is None:
            raise InterfaceError("DPY-1001: not connected to database")
        return False

    @property
    def stmtcachesize(self) -> int:
        raise OperationalError("DPY-3001: this mode has none")


@pytest.mark.parametrize(
    "alteration",
    [{"autocommit": True}, {"call_timeout": 5000}, {"inputtypehandler": print}, {"outputtypehandler": print}],
    ids=str,
)
def test_oracledb_settings_are_compared_and_put_back(alteration: dict[str, object]) -> None:
    conn = FakeOracle()
    adapter, baseline = adopted(conn)
    assert adapter.verdict(conn, baseline) is Verdict.CLEAN
    vars(conn).update(alteration)
    assert adapter.verdict(conn, baseline) is Verdict.ALTERED
    adapter.restore(conn, baseline, LIMIT)
    assert adapter.verdict(conn, baseline) is Verdict.CLEAN
    assert conn.asked == []


def test_oracledb_connection_that_its_borrower_closed_is_spent() -> None:
    conn = FakeOracle()
    adapter, baseline = adopted(conn)
    conn._impl = None
    assert adapter.verdict(conn, baseline) is Verdict.SPENT


class FakeMySQLdb(FakeConnection):
    """A connection of mysqlclient's: a session that was killed stays "open"."""

    __module__ = "MySQLdb.connections"
    open = 1
    cursorclass: object = FakeCursor
    on = False

    def autocommit(self, on: bool) -> None:
        self.ask(f"autocommit({on})")
        self.on = on

    def get_autocommit(self) -> bool:
        return self.on


def test_mysqlclient_settings_are_put_back_although_no_verdict_shows_them() -> None:
    conn = FakeMySQLdb()
    adapter, baseline = adopted(conn)
    for _ in range(2):
        conn.on, conn.cursorclass = True, object
        assert adapter.verdict(conn, baseline) is Verdict.DIRTY
        adapter.restore(conn, baseline, LIMIT)
        assert (conn.get_autocommit(), conn.cursorclass) == (False, FakeCursor)
    adapter.restore(conn, baseline, LIMIT)
    assert conn.asked == ["autocommit(False)"] * 2


def test_mysqlclient_connection_that_its_borrower_closed_is_spent() -> None:
    conn = FakeMySQLdb()
    adapter, baseline = adopted(conn)
    conn.open = 0
    assert adapter.verdict(conn, baseline) is Verdict.SPENT


def test_pymysql_tells_who_has_closed_it() -> None:
    conn: Any = made_by("pymysql.connections", open=True, _closed=False, get_autocommit=lambda self: True)
    adapter, baseline = adopted(conn)
    conn.open = False
    assert adapter.verdict(conn, baseline) is Verdict.BROKEN
    conn._closed = True
    assert adapter.verdict(conn, baseline) is Verdict.SPENT


def test_no_setting_of_an_unknown_driver_is_looked_at() -> None:
    # mysql-connector's property runs a query.
    asking = property(lambda self: self.ask("SELECT @@session.autocommit"))
    conn = made_by("mysql.connector.connection", autocommit=asking, isolation_level=asking, notices=asking)
    adapter, baseline = adopted(conn)
    assert adapter.verdict(conn, baseline) is Verdict.DIRTY
    adapter.restore(conn, baseline, LIMIT)
    assert conn.asked == []


def test_all_parts_may_be_known_until_the_driver_is() -> None:
    adapter = DBAPIAdapter.around(lambda: made_by("somedriver"))
    assert adapter.parts == {*Part} - {Part.ROLLBACK}
    adapter.adopt(adapter.connect(LIMIT))
    assert not adapter.parts
    adapter.adopt(FakePsycopg2())
    assert {Part.FULL, Part.DISCARD_ALL, Part.UNLOCK} <= {*adapter.parts}
    assert Part.RESET_CONNECTION not in adapter.parts
    adapter.adopt(FakeMySQLdb())
    assert not adapter.parts


def test_state_that_cannot_be_read_is_broken() -> None:
    conn = made_by("psycopg2.extensions")  # without the method
    adapter, baseline = adopted(conn)
    assert adapter.verdict(conn, baseline) is Verdict.BROKEN


@pytest.mark.parametrize("top", ["somedriver", "vendor.somedriver"])
def test_driver_that_threads_may_not_share_is_refused(monkeypatch: pytest.MonkeyPatch, top: str) -> None:
    module: Any = ModuleType(top)
    module.threadsafety = 0
    monkeypatch.setitem(sys.modules, top, module)
    conn = made_by(f"{top}.connections")
    adapter = DBAPIAdapter.around(lambda: conn)
    with pytest.raises(PoolMisuse, match=rf"^{top} .* threadsafety is 0, and PEP 249"):
        adapter.adopt(conn)
    module.threadsafety = 1
    adapter.adopt(conn)


# -- transactions ------------------------------------------------------------------------------------


def test_a_transaction_begins_by_itself_without_autocommit() -> None:
    conn = made_by("somedriver")
    adapter, _ = adopted(conn)
    adapter.begin(conn)
    adapter.commit(conn)
    adapter.rollback(conn, LIMIT)
    assert conn.asked == ["commit()", "rollback()"]


def test_on_autocommit_a_transaction_is_begun_and_ended_by_statement() -> None:
    conn = made_by("somedriver", autocommit=True)
    adapter, _ = adopted(conn)
    adapter.begin(conn)
    adapter.commit(conn)
    adapter.begin(conn)
    adapter.rollback(conn, LIMIT)
    assert conn.asked == ["BEGIN", "commit()", "COMMIT", "BEGIN", "rollback()", "ROLLBACK"]


def test_driver_whose_methods_always_reach_the_server_needs_no_statement() -> None:
    conn = made_by("MySQLdb.connections", autocommit=lambda self, on: None, get_autocommit=lambda _: True)
    adapter, _ = adopted(conn)
    adapter.begin(conn)
    adapter.commit(conn)
    adapter.rollback(conn, LIMIT)
    assert conn.asked == ["BEGIN", "commit()", "rollback()"]


def test_refusal_to_end_what_was_never_begun_is_proof_enough() -> None:
    conn = made_by("somedriver", autocommit=True)
    conn.refuses["COMMIT"] = conn.refuses["ROLLBACK"] = OperationalError("no transaction is open")
    adapter, _ = adopted(conn)
    adapter.commit(conn)
    adapter.rollback(conn, LIMIT)
    conn.refuses["ROLLBACK"] = OperationalError("server closed the connection")
    with pytest.raises(OperationalError):
        adapter.rollback(conn, LIMIT)


def test_commit_that_fails_is_the_borrowers_error() -> None:
    conn = made_by("somedriver", autocommit=True)
    conn.refuses["COMMIT"] = OperationalError("constraint")
    adapter, _ = adopted(conn)
    adapter.begin(conn)
    with pytest.raises(OperationalError, match="constraint"):
        adapter.commit(conn)


def test_transaction_begun_by_hand_is_ended_where_the_driver_shows_it() -> None:
    class Connection(FakePsycopg2):
        autocommit = True

        def ask(self, what: str) -> None:
            super().ask(what)
            self.transaction_status = {"BEGIN": 2, "COMMIT": 0, "ROLLBACK": 0}.get(
                what, self.transaction_status
            )

    conn = Connection()
    adapter, baseline = adopted(conn)
    conn.ask("BEGIN")
    adapter.commit(conn)
    assert adapter.verdict(conn, baseline) is Verdict.CLEAN
    conn.ask("BEGIN")
    adapter.rollback(conn, LIMIT)
    assert adapter.verdict(conn, baseline) is Verdict.CLEAN
    adapter.rollback(conn, LIMIT)
    assert conn.asked == [
        *("BEGIN", "commit()", "COMMIT"),
        *("BEGIN", "rollback()", "ROLLBACK"),
        "rollback()",
    ]


# -- ping, limits, abort -----------------------------------------------------------------------------


def test_ping_leaves_no_transaction_behind() -> None:
    conn = made_by("somedriver")
    adapter, _ = adopted(conn)
    adapter.ping(conn, LIMIT)
    assert conn.asked == ["SELECT 1", "rollback()"]


def test_ping_statement_can_be_another() -> None:
    class DualAdapter(DBAPIAdapter):
        ping_statement = "SELECT 1 FROM dual"

    conn = made_by("somedriver", autocommit=True)
    DualAdapter.around(lambda: conn).ping(conn, LIMIT)
    assert conn.asked == ["SELECT 1 FROM dual"]


def test_step_that_takes_too_long_has_its_socket_shut_down(over_socket: SocketConnection) -> None:
    adapter, _ = adopted(over_socket)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.5 s") as caught:
        adapter.rollback(over_socket, SHORT)
    assert isinstance(caught.value.__cause__, OperationalError)
    assert adapter.fault(caught.value, dialling=False) is Fault.DEAD


def test_step_within_its_limit_keeps_its_socket(over_socket: SocketConnection) -> None:
    adapter, _ = adopted(over_socket)
    for limit in (LIMIT, None):
        over_socket.theirs.send(b"x")
        adapter.rollback(over_socket, limit)
    assert adapter.alive(over_socket)


def test_limits_hold_for_many_at_a_time_and_hit_only_their_own() -> None:
    slow, quick = [SocketConnection() for _ in range(5)], SocketConnection()
    adapter, _ = adopted(quick)
    ended: list[BaseException] = []

    def rollback(conn: SocketConnection, limit: float) -> None:
        try:
            adapter.rollback(conn, limit)
        except BaseException as exc:
            ended.append(exc)

    patient = threading.Thread(target=rollback, args=(quick, LIMIT), daemon=True)
    patient.start()
    threads = [
        threading.Thread(target=rollback, args=(conn, SHORT / (n + 1)), daemon=True)
        for n, conn in enumerate(slow)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert [type(exc) for exc in ended] == [TimeoutError] * 5
    quick.theirs.send(b"x")
    patient.join(SOON)
    assert not patient.is_alive()
    assert len(ended) == 5
    for conn in (*slow, quick):
        conn.close()


def test_interrupt_is_not_replaced_by_a_limit(over_socket: SocketConnection) -> None:
    def rollback() -> None:
        over_socket.ours.recv(1)
        raise KeyboardInterrupt

    over_socket.rollback = rollback  # type: ignore[method-assign] # a fake's
    adapter, _ = adopted(over_socket)
    with pytest.raises(KeyboardInterrupt):
        adapter.rollback(over_socket, 0.1)


def test_idle_connection_that_has_become_readable_is_not_alive(
    over_socket: SocketConnection,
) -> None:
    adapter, _ = adopted(over_socket)
    assert adapter.alive(over_socket)
    over_socket.theirs.send(b"x")
    assert not adapter.alive(over_socket)


def test_closed_socket_is_not_alive(over_socket: SocketConnection) -> None:
    adapter, _ = adopted(over_socket)
    over_socket.close()
    assert not adapter.alive(over_socket)


def test_file_is_not_taken_for_a_socket(tmp_path: Path) -> None:
    with (tmp_path / "db").open("w+") as file:
        conn = made_by("somedriver", fileno=lambda self: file.fileno())
        adapter, _ = adopted(conn)
        assert adapter.alive(conn)
        adapter.rollback(conn, LIMIT)
        adapter.abort(conn)


def test_abort_ends_a_call_in_another_thread(over_socket: SocketConnection) -> None:
    adapter, baseline = adopted(over_socket)
    raised: list[BaseException] = []

    def borrow() -> None:
        try:
            over_socket.rollback()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=borrow, daemon=True)
    thread.start()
    assert over_socket.asking.wait(SOON)
    adapter.abort(over_socket)
    thread.join(SOON)
    assert [type(exc) for exc in raised] == [OperationalError]
    assert adapter.verdict(over_socket, baseline) is Verdict.BROKEN
    assert not adapter.alive(over_socket)


def test_aborted_connection_is_closed_when_nobody_else_refers_to_it() -> None:
    closed: list[bool] = []
    conn = made_by("somedriver", close=lambda self: closed.append(True))
    adapter = DBAPIAdapter.around(lambda: made_by("somedriver"))
    adapter.abort(conn)
    adapter.connect(LIMIT)
    assert not closed
    del conn
    adapter.connect(LIMIT)
    assert closed == [True]


def test_close_that_fails_is_as_good() -> None:
    conn = made_by("somedriver")
    conn.refuses["close()"] = InterfaceError("already closed")
    adapter, _ = adopted(conn)
    adapter.close(conn, LIMIT)


# -- credentials, questions, forked children ---------------------------------------------------------


def test_credentials_stand_in_place_of_keyword_arguments_for_one_dial() -> None:
    seen: list[dict[str, str]] = []

    def connect(**given: str) -> FakeConnection:
        seen.append(given)
        return made_by("somedriver")

    adapter = DBAPIAdapter(connect, user="a", host="h")
    for credentials in (None, {"user": "b", "password": "c"}, {}):
        adapter.connect(LIMIT, credentials)
    assert seen == [
        {"user": "a", "host": "h"},
        {"user": "b", "password": "c", "host": "h"},
        {"user": "a", "host": "h"},
    ]
    DBAPIAdapter.around(connect).connect(LIMIT, {"user": "b"})
    assert seen[3] == {}


def test_unknown_driver_is_not_asked_what_it_might_not_know() -> None:
    conn = made_by("somedriver")
    adapter, _ = adopted(conn)
    assert adapter.idle_limit(conn, LIMIT) is None
    assert adapter.writable(conn, LIMIT)
    assert conn.asked == []


def test_connection_without_a_descriptor_is_refused_in_a_child() -> None:
    conn = made_by("somedriver")
    adapter, baseline = adopted(conn)
    adapter.forget(conn)
    uses: list[Callable[[], object]] = [
        lambda: adapter.ping(conn, LIMIT),
        lambda: adapter.begin(conn),
        lambda: adapter.commit(conn),
        lambda: adapter.rollback(conn, LIMIT),
        lambda: adapter.restore(conn, baseline, LIMIT),
        lambda: adapter.idle_limit(conn, LIMIT),
        lambda: adapter.writable(conn, LIMIT),
    ]
    for use in uses:
        with pytest.raises(ConnectionError) as caught:
            use()
        assert adapter.fault(caught.value, dialling=False) is Fault.DEAD
    assert adapter.verdict(conn, baseline) is Verdict.BROKEN
    assert not adapter.alive(conn)
    assert conn.asked == []


def test_connection_that_was_forgotten_is_never_closed_nor_freed() -> None:
    closed: list[bool] = []

    def forget() -> weakref.ref[Any]:
        conn = made_by("somedriver", close=lambda self: closed.append(True))
        adapter, _ = adopted(conn)
        adapter.forget(conn)
        adapter.close(conn, LIMIT)
        adapter.abort(conn)
        ref = weakref.ref(conn)
        del conn
        adapter.connect(LIMIT)
        return ref

    ref = forget()
    gc.collect()
    assert ref() is not None
    assert not closed


def test_child_does_not_close_what_its_parent_has_aborted() -> None:
    closed: list[bool] = []
    held: list[Any] = [made_by("somedriver", close=lambda self: closed.append(True))]
    adapter = DBAPIAdapter.around(lambda: made_by("somedriver"))
    adapter.abort(held[0])

    def child() -> None:
        held.clear()
        adapter.connect(LIMIT)
        assert not closed

    assert in_forked_child(child) == ""
    held.clear()
    adapter.connect(LIMIT)
    assert closed == [True], "the parent itself closes it as ever"


# -- faults ------------------------------------------------------------------------------------------


class OracleCode:
    """What Oracle's drivers have for an argument."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize(
    ("key", "exc"),
    [
        (4711, OperationalError(4711, "x")),
        (4711, type("E", (OperationalError,), {"errno": 4711})("x")),
        (12519, OperationalError(OracleCode(12519, "TNS"))),
        ("ORA-12519", OperationalError(OracleCode(12519, "ora-12519: TNS"))),
        ("XX123", OperationalError("XX123", "[XX123] x")),
        ("XX", OperationalError("XX123", "[XX123] x")),
        ("Lost The Thread", OperationalError("we have lost the thread")),
        ("08006", OperationalError("08006", "[08006] what is known here as DEAD")),
    ],
)
@pytest.mark.parametrize("dialling", [False, True])
def test_users_table_of_faults_comes_before_ours(key: str | int, exc: Exception, dialling: bool) -> None:
    adapter = DBAPIAdapter.around(FakeConnection)
    assert adapter.fault(exc, dialling=dialling) is not Fault.FULL
    adapter.faults = {key: Fault.FULL, "nothing": Fault.AUTH}
    assert adapter.fault(exc, dialling=dialling) is Fault.FULL
    assert DBAPIAdapter.around(FakeConnection).fault(exc, dialling=dialling) is not Fault.FULL

    class OwnAdapter(DBAPIAdapter):
        faults = {key: Fault.FULL}  # noqa: RUF012 # as a user writes it

    assert OwnAdapter.around(FakeConnection).fault(exc, dialling=dialling) is Fault.FULL


def test_what_is_more_exact_in_a_table_of_faults_comes_first() -> None:
    adapter = DBAPIAdapter.around(FakeConnection)
    adapter.faults = {"sad": Fault.AUTH, "XX": Fault.DEAD, "XX123": Fault.FULL}
    assert adapter.fault(OperationalError("XX123", "sad"), dialling=False) is Fault.FULL
    assert adapter.fault(OperationalError("XX999", "sad"), dialling=False) is Fault.DEAD
    assert adapter.fault(OperationalError("YY999", "sad"), dialling=False) is Fault.AUTH
    assert adapter.fault(OperationalError("YY999", "XX"), dialling=False) is Fault.ORDINARY


def test_table_of_faults_is_for_errors_of_drivers() -> None:
    adapter = DBAPIAdapter.around(FakeConnection)
    adapter.faults = {"sad": Fault.AUTH}
    assert adapter.fault(ValueError("sad"), dialling=False) is Fault.ORDINARY
    assert adapter.fault(PoolTimeout("sad"), dialling=False) is Fault.ORDINARY


class SQLStateError(OperationalError):
    def __init__(self, sqlstate: str) -> None:
        super().__init__("whatever the server says, in any language")
        self.sqlstate = sqlstate


MySQLError = type("OperationalError", (Error,), {"__module__": "MySQLdb"})


@pytest.mark.parametrize(
    ("exc", "fault"),
    [
        (SQLStateError("08006"), Fault.DEAD),
        (SQLStateError("57P01"), Fault.DEAD),
        (SQLStateError("57P03"), Fault.STARTING),
        (SQLStateError("53300"), Fault.FULL),
        (SQLStateError("28P01"), Fault.AUTH),
        (SQLStateError("40001"), Fault.ORDINARY),
        (SQLStateError("57014"), Fault.ORDINARY),
        (OperationalError("08S01", "[08S01] Communication link failure"), Fault.DEAD),
        (OperationalError("HYT00", "[HYT00] Query timeout expired"), Fault.ORDINARY),
        (MySQLError(2006, "gone away"), Fault.DEAD),
        (MySQLError(2002, "Can't connect to server"), Fault.DEAD),
        (MySQLError(1040, "Too many connections"), Fault.FULL),
        (MySQLError(1045, "Access denied"), Fault.AUTH),
        (MySQLError(1213, "Deadlock found"), Fault.ORDINARY),
        (SQLStateError("25006"), Fault.DEMOTED),
        (SQLStateError("57P04"), Fault.DEAD),
        (SQLStateError("3D000"), Fault.ORDINARY),
        (MySQLError(1290, "running with the --read-only option"), Fault.DEMOTED),
        (MySQLError(1290, "running with the --secure-file-priv option"), Fault.ORDINARY),
        (MySQLError(1836, "Running in read-only mode"), Fault.DEMOTED),
        (MySQLError(1049, "Unknown database"), Fault.ORDINARY),
        (OperationalError("SSL SYSCALL error: EOF detected"), Fault.DEAD),
        (PoolTimeout("no connection within 5 s"), Fault.ORDINARY),
        (OperationalError(2006), Fault.ORDINARY),  # not MySQL's number
        (OperationalError("server closed the connection unexpectedly"), Fault.DEAD),
        (InterfaceError("connection already closed"), Fault.DEAD),
        (InterfaceError("cursor already closed"), Fault.ORDINARY),
        (OperationalError("database is locked"), Fault.ORDINARY),
        (ConnectionResetError(104, "Connection reset by peer"), Fault.DEAD),
        (TimeoutError("no answer within 5 s"), Fault.DEAD),
        (EOFError(), Fault.DEAD),
        (ValueError("lost connection"), Fault.ORDINARY),
    ],
)
def test_error_of_a_statement(exc: Exception, fault: Fault) -> None:
    assert DBAPIAdapter.around(FakeConnection).fault(exc, dialling=False) is fault


@pytest.mark.parametrize(
    ("exc", "fault"),
    [
        (OperationalError('FATAL:  password authentication failed for user "a"'), Fault.AUTH),
        (OperationalError("FATAL:  sorry, too many clients already"), Fault.FULL),
        (OperationalError("FATAL:  the database system is starting up"), Fault.STARTING),
        (OperationalError("ORA-01017: invalid username/password; logon denied"), Fault.AUTH),
        (OperationalError('FATAL:  database "a" does not exist'), Fault.AUTH),
        (OperationalError("SSL error: certificate verify failed"), Fault.AUTH),
        (OperationalError("server does not support SSL, but SSL was required"), Fault.AUTH),
        (OperationalError("FATAL:  the database system is not yet accepting connections"), Fault.STARTING),
        (SQLStateError("3D000"), Fault.AUTH),
        (MySQLError(1049, "Unknown database"), Fault.AUTH),
        (MySQLError(2026, "SSL connection error: certificate verify failed"), Fault.AUTH),
        (MySQLError(2026, "SSL connection error: unexpected eof while reading"), Fault.DEAD),
        (OperationalError("connection refused"), Fault.DEAD),
        (ConnectionRefusedError(111, "Connection refused"), Fault.DEAD),
        (TypeError("connect() got an unexpected keyword"), Fault.ORDINARY),
    ],
)
def test_error_of_a_dial(exc: Exception, fault: Fault) -> None:
    assert DBAPIAdapter.around(FakeConnection).fault(exc, dialling=True) is fault
