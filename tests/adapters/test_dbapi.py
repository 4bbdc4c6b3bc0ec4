"""Any DB-API driver: the contract over sqlite3, psycopg and PyMySQL; the rest over fakes."""

import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import psycopg
import pymysql
import pymysql.cursors
import pytest
from servers.fixtures import FaultProxy, MariaDB, PostgreSQL

from adapters.contract import LIMIT, SHORT, SOON, AdapterContract, Harness
from connpool.adapter import Adapter, Fault, Verdict, adapter_for
from connpool.adapters.dbapi import DBAPIAdapter
from connpool.errors import PoolMisuse

NO_URL = "a URL names a driver"
NO_ERRORS = "the driver is not known when the module is written"
NOT_CHOSEN = "the driver has an adapter of its own"


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


# -- over psycopg ------------------------------------------------------------------------------------


class PsycopgHarness(Harness):
    operational_error = psycopg.OperationalError
    lacks = MappingProxyType({"url": NO_URL, "errors": NO_ERRORS, "around": NOT_CHOSEN})

    def __init__(self, server: PostgreSQL, database: str) -> None:
        self.server = server
        self.params: dict[str, Any] = {**server.params_for(dbname=database)}

    def adapter(self) -> Adapter[Any]:
        return DBAPIAdapter(psycopg.connect, **self.params)

    def bad_dials(self) -> Any:
        nobody = DBAPIAdapter(psycopg.connect, **self.params | {"dbname": "no_such_database"})
        refused = DBAPIAdapter(psycopg.connect, **self.params | {"port": closed_port()})
        dead = frozenset({Fault.DEAD})
        return {"unknown database": (nobody, dead), "refused port": (refused, dead)}

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


@pytest.mark.server
class TestPsycopg(AdapterContract):
    @pytest.fixture
    def harness(self, postgresql: PostgreSQL, postgresql_database: str) -> Harness:
        return PsycopgHarness(postgresql, postgresql_database)


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
        }
    )

    def __init__(self, server: MariaDB, database: str) -> None:
        self.server = server
        self.secret = server.password
        self.params: dict[str, Any] = {**server.params_for(database=database)}

    def adapter(self) -> Adapter[Any]:
        return DBAPIAdapter(pymysql.connect, **self.params)

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


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0, Verdict.CLEAN),
        (1, Verdict.BROKEN),
        (2, Verdict.DIRTY),
        (3, Verdict.FAILED),
        (4, Verdict.BROKEN),
    ],
)
def test_psycopg2_shows_the_state_of_its_transaction(status: int, verdict: Verdict) -> None:
    conn = made_by("psycopg2.extensions", get_transaction_status=lambda self: self.status, status=0)
    adapter, baseline = adopted(conn)
    assert adapter.sees_transactions
    conn.status = status  # type: ignore[attr-defined] # a fake's
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
    class Connection(FakeConnection):
        status = 0

        def get_transaction_status(self) -> int:
            return self.status

        def ask(self, what: str) -> None:
            super().ask(what)
            self.status = {"BEGIN": 2, "COMMIT": 0, "ROLLBACK": 0}.get(what, self.status)

    Connection.__module__ = "psycopg2.extensions"
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


# -- faults ------------------------------------------------------------------------------------------


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
        (MySQLError(1040, "Too many connections"), Fault.FULL),
        (MySQLError(1045, "Access denied"), Fault.AUTH),
        (MySQLError(1213, "Deadlock found"), Fault.ORDINARY),
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
        (OperationalError("connection refused"), Fault.DEAD),
        (ConnectionRefusedError(111, "Connection refused"), Fault.DEAD),
        (TypeError("connect() got an unexpected keyword"), Fault.ORDINARY),
    ],
)
def test_error_of_a_dial(exc: Exception, fault: Fault) -> None:
    assert DBAPIAdapter.around(FakeConnection).fault(exc, dialling=True) is fault
