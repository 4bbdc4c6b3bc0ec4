"""PyMySQL: the contract, plain and TLS, and what only PyMySQL has."""

import contextlib
import gc
import select
import socket
import ssl
import threading
import timeit
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import pymysql
import pytest
from pymysql.connections import Connection
from pymysql.constants import CLIENT, FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import Cursor, DictCursor, SSCursor
from servers import FaultProxy, MariaDB, free_port
from servers.certificate import make_certificate

from adapters.contract import FINISHED, FULL, LIMIT, SHORT, SOON, AdapterContract, Harness, Lent
from connpool.adapter import Adapter, Fault, Verdict, adapter_for_url
from connpool.adapters import pymysql as module
from connpool.adapters.pymysql import PyMySQLAdapter, PyMySQLPoolTimeout, PyMySQLPoolUnavailable
from connpool.adapters.sockets import KEEPALIVE, ready
from connpool.errors import PoolMisuse
from connpool.reset import Part

pytestmark = pytest.mark.server

SECRET = "geh:eim/4711"


class PyMySQLHarness(Harness):
    operational_error = pymysql.err.OperationalError
    lacks: Mapping[str, str] = {"fail": "a failed statement fails alone, the transaction lives on"}
    idle_limit = 28_800.0

    def __init__(self, server: MariaDB, database: str) -> None:
        self.server = server
        self.secret = server.password
        self.params: dict[str, Any] = dict(server.params_for(database=database))
        self.table = f"{database}.{Harness.table}"  # `change_session` leaves the database

    def make(self, params: Mapping[str, Any]) -> Adapter[Any]:
        return PyMySQLAdapter(**params)

    def adapter(self) -> Adapter[Any]:
        return self.make(self.params)

    def connect(self) -> Any:
        return pymysql.connect(**self.params)

    def url(self) -> str:
        return self.server.url_for(database=self.params["database"])

    def bad_dials(self) -> Mapping[str, tuple[Adapter[Any], frozenset[Fault]]]:
        def bad(**changes: Any) -> Adapter[Any]:
            return self.make({**self.params, **changes})

        return {
            "wrong password": (bad(password="wrong"), frozenset({Fault.AUTH})),
            "no password": (bad(password=""), frozenset({Fault.AUTH})),
            "no such database": (bad(database="nowhere"), frozenset({Fault.AUTH})),
            "no such user": (bad(user="nobody"), frozenset({Fault.AUTH})),
            "nobody listens": (bad(port=free_port()), frozenset({Fault.DEAD})),
        }

    @contextlib.contextmanager
    def black_hole(self) -> Iterator[tuple[Adapter[Any], Callable[[], object]]]:
        with FaultProxy(self.server.address) as proxy:
            yield self.make({**self.params, "port": proxy.port}), proxy.black_hole

    def refused(self) -> tuple[Adapter[Any], Mapping[str, Any]]:
        user, password = self.params["user"], self.params["password"]
        return self.make({**self.params, "user": "nobody"}), {"user": user, "password": password}

    def idle_limited(self) -> tuple[Adapter[Any], float]:
        return self.make({**self.params, "init_command": "set wait_timeout = 1"}), 1.0

    def read_only(self) -> contextlib.AbstractContextManager[object]:
        return read_only(self.server)

    def tuned(self) -> tuple[Adapter[Any], Mapping[str, int]]:
        expected = {
            "SO_KEEPALIVE": 1,
            "TCP_KEEPIDLE": 700,
            "TCP_KEEPINTVL": 25,
            "TCP_KEEPCNT": KEEPALIVE["TCP_KEEPCNT"],
            "TCP_USER_TIMEOUT": 5000,
        }

        def connect() -> Any:  # there is no parameter for it
            conn: Any = pymysql.connect(**self.params)
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT"):
                conn._sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), expected[name])
            return conn

        return PyMySQLAdapter.around(connect), expected

    def fileno(self, conn: Any) -> int:
        fileno: int = conn._sock.fileno()
        return fileno

    def set_autocommit(self, conn: Any) -> None:
        conn.autocommit(True)

    def leave_unread(self, conn: Any) -> object:
        cursor = conn.cursor(SSCursor)
        cursor.execute("select seq from seq_1_to_10")
        cursor.fetchone()
        return cursor

    def kill(self, conn: Any) -> None:
        self.server.execute(f"kill connection {conn.thread_id()}")
        wait_readable(conn)

    def slow(self, conn: Any) -> None:
        self.run(conn, "select sleep(60)")

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        # What is sent is followed by a COMMIT: that the connection is altered shows when it is at rest.
        return {
            "autocommit": lambda conn: (conn.autocommit(True), conn.commit()),
            "character set": lambda conn: (conn.set_character_set("latin1"), conn.commit()),
            "collation": lambda conn: (conn.set_character_set("utf8mb4", "utf8mb4_bin"), conn.commit()),
            "cursorclass": lambda conn: setattr(conn, "cursorclass", DictCursor),
            "read timeout": lambda conn: setattr(conn, "_read_timeout", 77.0),
            "write timeout": lambda conn: setattr(conn, "_write_timeout", 78.0),
        }

    def settings(self, conn: Any) -> object:
        return (
            conn.get_autocommit(),
            conn.autocommit_mode,
            (conn.charset, conn.collation, conn.encoding),
            conn.cursorclass,
            (conn._read_timeout, conn._write_timeout),
        )

    def run(self, conn: Any, statement: str) -> list[tuple[Any, ...]]:
        return run(conn, statement)

    def change_session(self, conn: Any) -> None:
        for statement in (
            "set autocommit = 0, @x = 5, sql_mode = '', time_zone = '+05:00', group_concat_max_len = 4711",
            "set session transaction isolation level read uncommitted",
            "set names latin1",
            "do get_lock(concat('connpool', connection_id()), 0)",
            "create temporary table leak (a int)",
            "prepare leak from 'select 1'",
            "use information_schema",
        ):
            run(conn, statement)
        conn.commit()

    def session(self, conn: Any) -> object:
        found: list[object] = [
            *run(
                conn,
                "select database(), @@autocommit, @x, @@sql_mode, @@time_zone, @@group_concat_max_len,"
                " @@tx_isolation, @@character_set_client, @@character_set_results, @@collation_connection,"
                " is_used_lock(concat('connpool', connection_id()))",
            )
        ]
        for statement in ("select * from leak", "execute leak"):
            try:
                found.append(run(conn, statement))
            except pymysql.Error as error:
                found.append(error.args[0])
        return found


@contextlib.contextmanager
def read_only(server: MariaDB) -> Iterator[None]:
    server.execute("set global read_only = 1")
    try:
        yield
    finally:
        server.execute("set global read_only = 0")


def wait_readable(conn: Any) -> None:
    poll = select.poll()
    poll.register(conn._sock, select.POLLIN)
    assert poll.poll(SOON * 1000)


@pytest.fixture(scope="module")
def tls_mariadb() -> Iterator[MariaDB]:
    """Provide MariaDB with TLS, which takes statements of more than one packet."""
    with MariaDB(tls=True, settings={"max-allowed-packet": "64M"}) as server:
        yield server


@pytest.fixture(scope="class")
def tls_mariadb_database(tls_mariadb: MariaDB) -> Iterator[str]:
    with tls_mariadb.database() as database:
        yield database


class TestPlain(AdapterContract):
    @pytest.fixture
    def harness(self, mariadb: MariaDB, mariadb_database: str) -> Harness:
        return PyMySQLHarness(mariadb, mariadb_database)


class TestTLS(AdapterContract):
    @pytest.fixture
    def harness(self, tls_mariadb: MariaDB, tls_mariadb_database: str) -> Harness:
        return PyMySQLHarness(tls_mariadb, tls_mariadb_database)

    def test_it_is_tls(self, lent: Lent) -> None:
        assert isinstance(lent.conn._sock, ssl.SSLSocket)


class TestAround(AdapterContract):
    @pytest.fixture
    def harness(self, mariadb: MariaDB, mariadb_database: str) -> Harness:
        class AroundHarness(PyMySQLHarness):
            lacks: Mapping[str, str] = {
                **PyMySQLHarness.lacks,
                "credentials": "a callable finds its own",
            }

            def make(self, params: Mapping[str, Any]) -> Adapter[Any]:
                return PyMySQLAdapter.around(lambda: pymysql.connect(**params))

        return AroundHarness(mariadb, mariadb_database)


# -- what only PyMySQL has ---------------------------------------------------------------------------


@pytest.fixture
def adapter(mariadb: MariaDB) -> PyMySQLAdapter[Any]:
    return PyMySQLAdapter(**mariadb.params)


@pytest.fixture
def lend(mariadb: MariaDB) -> Iterator[Callable[..., Lent]]:
    all_lent: list[Lent] = []

    def lend(special: PyMySQLAdapter[Any] | None = None, **params: Any) -> Lent:
        all_lent.append(Lent(special or PyMySQLAdapter(**mariadb.params, **params)))
        return all_lent[-1]

    yield lend
    for lent in all_lent:
        lent.adapter.close(lent.conn, SOON)


@pytest.fixture
def lent(lend: Callable[..., Lent]) -> Lent:
    return lend()


def changed(server: MariaDB, **changes: Any) -> PyMySQLAdapter[Any]:
    params: dict[str, Any] = {**server.params, **changes}
    return PyMySQLAdapter(**params)


def run(conn: Any, statement: str) -> list[tuple[Any, ...]]:
    with conn.cursor(Cursor) as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def said(server: MariaDB, mark: int, conn: Any) -> list[str]:
    """Return what a session has sent since, in capitals."""
    return [s.text.upper() for s in server.statements(mark) if s.session == conn.thread_id()]


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt and gevent.Timeout."""


@contextlib.contextmanager
def interrupted(conn: Any, name: str) -> Iterator[None]:
    """Let an exception strike where PyMySQL calls one of its own methods next."""

    def strike(*_: object, **__: object) -> None:
        raise Interrupt

    setattr(conn, name, strike)
    try:
        with pytest.raises(Interrupt):
            yield
    finally:
        delattr(conn, name)


# -- the class


def test_a_pooled_connection_is_what_it_was_to_everybody_else(lent: Lent) -> None:
    assert isinstance(lent.conn, Connection)
    assert type(lent.conn).__name__ == "Connection"
    assert type(lent.conn).__module__ == "pymysql.connections"


def test_adopting_twice_changes_nothing(lent: Lent) -> None:
    kind = type(lent.conn)
    lent.adapter.adopt(lent.conn)
    assert type(lent.conn) is kind


def test_adopting_again_proves_nothing(lent: Lent) -> None:
    run(lent.conn, "select 1")
    with pytest.raises(pymysql.err.ProgrammingError):
        run(lent.conn, "select from")
    lent.adopt_again()
    assert lent.verdict() is Verdict.DIRTY


def test_all_connections_of_a_class_get_the_same_subclass(lend: Callable[..., Lent]) -> None:
    assert type(lend().conn) is type(lend().conn)


def test_a_users_class_keeps_its_methods(mariadb: MariaDB, lend: Callable[..., Lent]) -> None:
    class Loud(Connection):
        ended = 0

        def commit(self) -> None:
            self.ended += 1  # and sends nothing

        def rollback(self) -> None:
            self.ended += 1

    lent = lend(PyMySQLAdapter.around(lambda: Loud(**mariadb.params)))
    assert isinstance(lent.conn, Loud)
    assert lent.verdict() is Verdict.CLEAN
    run(lent.conn, "select 1")
    lent.conn.commit()
    lent.adapter.commit(lent.conn)
    assert lent.conn.ended == 2
    assert lent.verdict() is Verdict.DIRTY, "nothing was committed"
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.conn.ended == 2, "the pool's rollback must be one"
    assert lent.verdict() is Verdict.CLEAN


def test_a_class_that_cannot_be_swapped_is_refused(mariadb: MariaDB) -> None:
    class Frozen(Connection):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "__class__":
                raise TypeError("no")
            super().__setattr__(name, value)

    adapter = PyMySQLAdapter.around(lambda: Frozen(**mariadb.params))
    conn = adapter.connect(LIMIT)
    with pytest.raises(PoolMisuse, match="cannot be pooled"):
        adapter.adopt(conn)
    conn.close()


def test_only_pymysqls_connections_are_adopted(adapter: PyMySQLAdapter[Any]) -> None:
    with pytest.raises(PoolMisuse, match=r"builtins\.object"):
        adapter.adopt(object())


def test_a_connection_that_was_never_opened_is_broken(adapter: PyMySQLAdapter[Any]) -> None:
    conn = Connection(defer_connect=True)
    assert adapter.verdict(conn, adapter.adopt(conn)) is Verdict.BROKEN
    assert not adapter.alive(conn)
    adapter.abort(conn)


# -- the verdict


def test_a_select_without_autocommit_is_dirty_although_no_flag_shows_it(lent: Lent) -> None:
    assert run(lent.conn, "select 1") == [(1,)]
    assert not lent.conn.server_status & 1
    assert lent.verdict() is Verdict.DIRTY


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_after_the_borrowers_own_ending_it_is_clean_until_something_is_sent(lent: Lent, ending: str) -> None:
    run(lent.conn, "select 1")
    getattr(lent.conn, ending)()
    assert lent.conn.insert_id() == 0
    assert lent.verdict() is Verdict.CLEAN
    lent.adapter.ping(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    run(lent.conn, "select 1")
    assert lent.verdict() is Verdict.DIRTY


def test_a_ping_does_not_make_it_clean(lent: Lent) -> None:
    run(lent.conn, "select 1")
    lent.adapter.ping(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.DIRTY


def test_an_ending_that_begins_the_next_transaction_is_dirty(lent: Lent) -> None:
    run(lent.conn, "set completion_type = 'CHAIN'")
    for ending in (lent.conn.commit, lambda: lent.adapter.rollback(lent.conn, LIMIT)):
        ending()
        assert lent.verdict() is Verdict.DIRTY


def test_with_autocommit_a_statement_leaves_it_clean(lend: Callable[..., Lent]) -> None:
    lent = lend(autocommit=True)
    for _ in range(2):  # the second borrower finds the first one's result
        assert lent.verdict() is Verdict.CLEAN
        run(lent.conn, "select 1")
        assert lent.verdict() is Verdict.CLEAN
    run(lent.conn, "begin")
    run(lent.conn, "select 1")
    assert lent.verdict() is Verdict.DIRTY
    run(lent.conn, "rollback")
    assert lent.verdict() is Verdict.CLEAN
    run(lent.conn, "set autocommit = 0")
    assert lent.verdict() is Verdict.DIRTY


def test_a_failed_statement_leaves_it_dirty_and_usable(lent: Lent) -> None:
    with pytest.raises(pymysql.err.ProgrammingError):
        run(lent.conn, "select from")
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN


def test_an_error_inside_a_procedure_hides_no_transaction(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    lent = lend(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database), autocommit=True))
    run(lent.conn, "create table t (a int)")
    run(
        lent.conn,
        "create procedure p() begin"
        " start transaction; insert into t values (1); signal sqlstate '45000'; end",
    )
    with pytest.raises(pymysql.err.OperationalError):
        run(lent.conn, "call p()")
    assert lent.verdict() is Verdict.DIRTY
    assert run(lent.conn, "select @@in_transaction") == [(1,)]
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    assert run(lent.conn, "select * from t") == []


def test_after_an_error_with_autocommit_a_select_proves_rest_again(lend: Callable[..., Lent]) -> None:
    lent = lend(autocommit=True)
    with pytest.raises(pymysql.err.ProgrammingError):
        run(lent.conn, "select from")
    assert lent.verdict() is Verdict.DIRTY
    run(lent.conn, "select 1")
    assert lent.verdict() is Verdict.CLEAN
    assert "_read_packet" not in vars(lent.conn)


def test_rows_that_end_with_an_error_are_dirty(lend: Callable[..., Lent]) -> None:
    lent = lend(autocommit=True)
    cursor = lent.conn.cursor(SSCursor)
    cursor.execute("select (select b.seq from seq_1_to_9 b where b.seq + 998 <= a.seq) from seq_1_to_2000 a")
    assert cursor.fetchone() == (None,)
    with pytest.raises(pymysql.err.OperationalError, match="more than 1 row"):
        cursor.fetchall()
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    cursor.close()


def test_an_error_after_the_columns_leaves_it_dirty_and_usable(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    lent = lend(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database), autocommit=True))
    run(lent.conn, "create table u (a int unique)")
    run(lent.conn, "insert into u values (1)")
    run(lent.conn, "begin")
    run(lent.conn, "insert into u values (2)")
    with pytest.raises(pymysql.err.IntegrityError):
        # MariaDB describes the rows that are to come, and then says that none will.
        run(lent.conn, "insert into u values (1) returning a")
    assert lent.verdict() is Verdict.DIRTY
    assert run(lent.conn, "select count(*) from u") == [(2,)]
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    assert run(lent.conn, "select count(*) from u") == [(1,)]


@contextlib.contextmanager
def autocommit_switched_off_at_login(server: MariaDB) -> Iterator[None]:
    """As the example for ``init_connect`` in MySQL's manual does it."""
    server.execute("set global init_connect = 'set autocommit = 0'")
    try:
        yield
    finally:
        server.execute("set global init_connect = ''")


@pytest.mark.parametrize("wanted", [True, None, False])
def test_an_autocommit_that_the_server_switched_off_at_login_is_believed_by_nobody(
    mariadb: MariaDB, lend: Callable[..., Lent], wanted: bool | None
) -> None:
    with autocommit_switched_off_at_login(mariadb):
        own = lend(autocommit=wanted)
        assert run(own.conn, "select @@autocommit") == [(int(bool(wanted)),)]
        assert own.verdict() is (Verdict.CLEAN if wanted else Verdict.DIRTY)

        users = lend(PyMySQLAdapter.around(lambda: pymysql.connect(**mariadb.params, autocommit=wanted)))
        assert users.verdict() is Verdict.CLEAN
        assert run(users.conn, "select @@autocommit") == [(0,)], "PyMySQL knows better now"
        assert users.verdict() is Verdict.DIRTY
        if wanted:
            users.adapter.rollback(users.conn, LIMIT)
            assert users.verdict() is Verdict.ALTERED
            users.adapter.restore(users.conn, users.baseline, LIMIT)
            assert users.verdict() is Verdict.CLEAN
            assert run(users.conn, "select @@autocommit") == [(1,)]


def test_an_autocommit_of_the_connect_callable_is_believed_after_the_first_answer(
    mariadb: MariaDB, lend: Callable[..., Lent]
) -> None:
    lent = lend(PyMySQLAdapter.around(lambda: pymysql.connect(**mariadb.params, autocommit=True)))
    run(lent.conn, "select 1")
    assert lent.verdict() is Verdict.CLEAN


# -- settings


def test_a_rollback_comes_before_autocommit_is_put_back(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    lent = lend(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database)))
    run(lent.conn, "create table t (a int)")
    lent.conn.commit()
    mark = mariadb.mark()
    lent.conn.autocommit(True)
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.ALTERED
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    assert lent.conn.autocommit_mode is False
    assert said(mariadb, mark, lent.conn) == ["SET AUTOCOMMIT = 1", "ROLLBACK", "SET AUTOCOMMIT = 0"]
    run(lent.conn, "insert into t values (1)")
    lent.adapter.rollback(lent.conn, LIMIT)
    assert run(lent.conn, "select * from t") == []


def test_autocommit_switched_off_by_sql_is_rolled_back_and_put_back(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    lent = lend(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database), autocommit=True))
    run(lent.conn, "create table t (a int)")
    mark = mariadb.mark()
    run(lent.conn, "set autocommit = 0")
    run(lent.conn, "insert into t values (1)")
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.ALTERED
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    assert said(mariadb, mark, lent.conn)[2:] == ["ROLLBACK", "SET AUTOCOMMIT = 1"]
    assert run(lent.conn, "select @@autocommit") == [(1,)]
    assert run(lent.conn, "select * from t") == []


def test_with_autocommit_switched_on_and_proven_no_rollback_is_due(lent: Lent) -> None:
    lent.conn.autocommit(True)
    run(lent.conn, "select 1")
    assert lent.verdict() is Verdict.ALTERED


def test_equal_settings_cost_no_word(mariadb: MariaDB, lend: Callable[..., Lent]) -> None:
    lent = lend(charset="utf8mb4", read_timeout=7.5)
    mark = mariadb.mark()
    lent.conn.charset = lent.conn.charset.encode().decode()
    lent.conn._read_timeout = float("7.5")
    assert lent.verdict() is Verdict.ALTERED
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    assert said(mariadb, mark, lent.conn) == []


def test_a_character_set_is_put_back_on_both_sides(lent: Lent) -> None:
    lent.conn.set_character_set("latin1", "latin1_german2_ci")
    lent.adapter.rollback(lent.conn, LIMIT)
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    assert run(lent.conn, "select 'ü€日', @@character_set_client") == [("ü€日", "utf8mb4")]
    assert lent.conn.character_set_name() == "utf8mb4"


@pytest.mark.parametrize("strike_before", [True, False], ids=["before the answer", "after it"])
def test_a_character_set_of_which_only_the_server_knows_is_put_back(lent: Lent, strike_before: bool) -> None:
    read_packet = lent.conn._read_packet

    def strike(*args: Any) -> None:
        if not strike_before:
            read_packet(*args)
        raise Interrupt

    lent.conn._read_packet = strike
    with pytest.raises(Interrupt):
        lent.conn.set_character_set("latin1")
    del lent.conn._read_packet
    if strike_before:
        assert lent.verdict() is Verdict.BROKEN
        return
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.ALTERED
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    assert run(lent.conn, "select 'ü€日', @@character_set_client") == [("ü€日", "utf8mb4")]


def test_a_character_set_that_is_refused_changes_nothing(lent: Lent) -> None:
    with pytest.raises(pymysql.err.OperationalError):
        lent.conn.set_character_set("utf8mb4", "nowhere_ci")
    assert lent.conn.charset == "utf8mb4"
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN


# -- what is left half read


def test_an_unbuffered_result_is_broken_until_it_is_read(lent: Lent) -> None:
    cursor = lent.conn.cursor(SSCursor)
    cursor.execute("select seq from seq_1_to_3")
    assert lent.verdict() is Verdict.BROKEN
    assert len(cursor.fetchall()) == 3
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    cursor.close()


def half_read(conn: Any, statement: str) -> SSCursor:
    cursor: SSCursor = conn.cursor(SSCursor)
    cursor.execute(statement)
    cursor.fetchone()
    return cursor


def test_a_half_read_result_with_autocommit_is_spent(lend: Callable[..., Lent]) -> None:
    lent = lend(autocommit=True)
    cursor = half_read(lent.conn, "select seq from seq_1_to_1000")
    assert lent.verdict() is Verdict.SPENT
    assert len(cursor.fetchall()) == 999
    assert lent.verdict() is Verdict.CLEAN
    cursor.close()


@pytest.mark.parametrize(
    "before", ["begin", "set autocommit = 0", "call fail_in_transaction()", None], ids=str
)
def test_a_half_read_result_is_broken_where_a_transaction_could_be_lost(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent], before: str | None
) -> None:
    lent = lend(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database), autocommit=True))
    run(lent.conn, "create table t (a int)")
    for end in ("signal sqlstate '45000'", "select seq from seq_1_to_1000"):
        run(
            lent.conn,
            f"create procedure {'fail' if 'signal' in end else 'read'}_in_transaction()"
            f" begin start transaction; insert into t values (1); {end}; end",
        )
    if before is None:
        cursor = half_read(lent.conn, "call read_in_transaction()")
    else:
        with contextlib.suppress(pymysql.err.OperationalError):
            run(lent.conn, before)
        cursor = half_read(lent.conn, "select seq from seq_1_to_1000")
    assert lent.verdict() is Verdict.BROKEN
    cursor.fetchall()
    cursor.close()
    assert lent.verdict() is Verdict.DIRTY


@pytest.mark.parametrize("cursorclass", [Cursor, SSCursor])
def test_what_follows_an_unread_result_is_not_known(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent], cursorclass: type[Cursor]
) -> None:
    params = mariadb.params_for(database=mariadb_database)
    lent = lend(PyMySQLAdapter(**params, client_flag=CLIENT.MULTI_STATEMENTS, autocommit=True))
    run(lent.conn, "create table t (a int)")
    cursor = lent.conn.cursor(cursorclass)
    cursor.execute("select 1; begin; insert into t values (1)")
    assert lent.verdict() is Verdict.BROKEN
    lent.adapter.abort(lent.conn)
    assert lent.verdict() is Verdict.BROKEN
    cursor._result = None  # as the pool drops it
    cursor.connection = None


@pytest.mark.parametrize("cursorclass", [Cursor, SSCursor])
def test_a_dead_session_with_autocommit_is_spent(
    mariadb: MariaDB, lend: Callable[..., Lent], cursorclass: type[Cursor]
) -> None:
    lent = lend(autocommit=True)
    run(lent.conn, "select 1")
    mariadb.execute(f"kill connection {lent.conn.thread_id()}")
    wait_readable(lent.conn)
    with pytest.raises(pymysql.err.OperationalError):
        lent.conn.cursor(cursorclass).execute("select 1")
    assert lent.verdict() is Verdict.SPENT


def test_a_second_result_that_is_unread_is_broken(lend: Callable[..., Lent]) -> None:
    lent = lend(client_flag=CLIENT.MULTI_STATEMENTS, autocommit=True)
    cursor = lent.conn.cursor()
    cursor.execute("select 1; select 2")
    assert lent.verdict() is Verdict.BROKEN
    assert cursor.nextset()
    assert cursor.fetchall() == ((2,),)
    assert lent.verdict() is Verdict.CLEAN
    cursor.close()


def test_a_statement_of_the_connect_callable_is_not_forgotten(
    mariadb: MariaDB, lend: Callable[..., Lent]
) -> None:
    def connect() -> Any:
        conn = pymysql.connect(**mariadb.params)
        run(conn, "select 1")  # opens a snapshot
        return conn

    assert lend(PyMySQLAdapter.around(connect)).verdict() is Verdict.DIRTY


def test_an_unread_result_of_the_connect_callable_is_broken(
    mariadb: MariaDB, lend: Callable[..., Lent]
) -> None:
    kept: list[SSCursor] = []

    def connect() -> Any:
        conn = pymysql.connect(**mariadb.params)
        kept.append(conn.cursor(SSCursor))
        kept[0].execute("select seq from seq_1_to_3")
        return conn

    assert lend(PyMySQLAdapter.around(connect)).verdict() is Verdict.BROKEN


def test_a_reconnect_by_the_borrower_is_a_connection_like_any_other(lent: Lent) -> None:
    lent.conn.close()
    lent.conn.connect()
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN


def test_the_time_of_a_verdict_is_told(lend: Callable[..., Lent]) -> None:
    for autocommit in (False, True):
        lent = lend(autocommit=autocommit)
        if autocommit:
            run(lent.conn, "select 1")
        assert lent.verdict() is Verdict.CLEAN
        names = {"verdict": lent.adapter.verdict, "conn": lent.conn, "baseline": lent.baseline}
        seconds = timeit.repeat("verdict(conn, baseline)", globals=names, number=20_000, repeat=5)
        what = "a result of the last lease" if autocommit else "nothing sent"
        print(f"\nPyMySQL, {what}: {min(seconds) / 20_000 * 1e9:.0f} ns for a CLEAN verdict")


# -- interrupts


@pytest.mark.parametrize("autocommit", [False, True])
def test_an_interrupt_between_command_and_answer_is_broken(
    lend: Callable[..., Lent], autocommit: bool
) -> None:
    lent = lend(autocommit=autocommit)
    with interrupted(lent.conn, "_read_query_result"):
        run(lent.conn, "select 1")
    assert lent.verdict() is Verdict.BROKEN


def test_an_interrupt_while_bytes_go_out_is_broken(lent: Lent) -> None:
    sock = lent.conn._sock

    class Striking:
        def sendall(self, data: bytes) -> None:
            sock.sendall(data)
            raise Interrupt

        def settimeout(self, seconds: float | None) -> None:
            sock.settimeout(seconds)

    lent.conn._sock = Striking()
    with pytest.raises(Interrupt):
        run(lent.conn, "select 1")
    lent.conn._sock = sock
    assert lent.verdict() is Verdict.BROKEN


@pytest.mark.parametrize(
    "goes_on",
    [Connection.commit, Connection.rollback, lambda conn: run(conn, "select 'mine'")],
    ids=["commit", "rollback", "select"],
)
def test_whoever_goes_on_after_an_interrupt_never_reads_the_answer_of_the_command_before(
    lent: Lent, goes_on: Callable[[Any], object]
) -> None:
    with interrupted(lent.conn, "_read_query_result"):
        run(lent.conn, "select 'theirs'")
    with pytest.raises(pymysql.err.OperationalError, match="interrupted") as caught:
        goes_on(lent.conn)
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD
    assert lent.verdict() is Verdict.BROKEN
    assert not lent.conn.open


def test_an_interrupt_in_the_middle_of_an_answer_is_found_by_the_rollback(lent: Lent) -> None:
    read_packet, packets = lent.conn._read_packet, 0

    def read_one_packet(*args: Any) -> Any:
        nonlocal packets
        packets += 1
        if packets == 2:
            raise Interrupt
        return read_packet(*args)

    lent.conn._read_packet = read_one_packet
    with pytest.raises(Interrupt):
        run(lent.conn, "select seq from seq_1_to_3")
    del lent.conn._read_packet
    assert lent.verdict() is Verdict.DIRTY  # it could be the OK of an UPDATE
    with pytest.raises(pymysql.err.InternalError, match="sequence") as caught:
        lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD
    assert lent.verdict() is Verdict.BROKEN


@pytest.mark.parametrize("size", [17_000_000, 16_777_215 * 2])
def test_a_statement_of_several_packets_is_one_command(
    tls_mariadb: MariaDB, lend: Callable[..., Lent], size: int
) -> None:
    lent = lend(PyMySQLAdapter(**tls_mariadb.params))
    text = b"select length('" + b"x" * size + b"')"
    with lent.conn.cursor() as cursor:
        cursor.execute(text)
        assert cursor.fetchall() == ((size,),)
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    with interrupted(lent.conn, "_read_query_result"):
        lent.conn.query(text)
    with pytest.raises(pymysql.err.OperationalError):
        lent.conn.rollback()
    assert lent.verdict() is Verdict.BROKEN


def test_a_local_file_is_loaded(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent], tmp_path: Path
) -> None:
    file = tmp_path / "rows"
    file.write_text("".join(f"{number}\n" for number in range(10_000)))
    params = mariadb.params_for(database=mariadb_database)
    lent = lend(PyMySQLAdapter(**params, local_infile=True))
    run(lent.conn, "create table loaded (a int)")
    run(lent.conn, f"load data local infile '{file}' into table loaded")
    assert run(lent.conn, "select count(*) from loaded") == [(10_000,)]
    lent.adapter.commit(lent.conn)
    assert lent.verdict() is Verdict.CLEAN


# -- limits


@pytest.mark.parametrize("step", ["ping", "rollback"])
def test_a_step_gives_the_users_own_limits_back(lend: Callable[..., Lent], step: str) -> None:
    lent = lend(read_timeout=7.0, write_timeout=8.0)
    getattr(lent.adapter, step)(lent.conn, LIMIT)
    assert (lent.conn._read_timeout, lent.conn._write_timeout) == (7.0, 8.0)
    assert "_read_packet" not in vars(lent.conn)
    assert run(lent.conn, "select 1") == [(1,)]
    assert lent.conn._sock.gettimeout() == 7.0


def test_a_step_keeps_its_limit_to_the_fraction_and_closes(
    mariadb: MariaDB, lend: Callable[..., Lent]
) -> None:
    with FaultProxy(mariadb.address) as proxy:
        lent = lend(changed(mariadb, port=proxy.port))
        proxy.black_hole()
        began = monotonic()
        with pytest.raises(pymysql.err.OperationalError):
            lent.adapter.rollback(lent.conn, 0.3)
        assert 0.3 <= monotonic() - began < 1.3
        assert not lent.conn.open


@pytest.mark.parametrize("delay", [None, 0.1])
def test_a_dial_keeps_its_limit_with_its_handshake(mariadb: MariaDB, delay: float | None) -> None:
    with FaultProxy(mariadb.address) as proxy:
        if delay is None:
            proxy.black_hole()
        else:
            proxy.delay(delay)  # each answer comes in time, all together do not
        began = monotonic()
        with pytest.raises(pymysql.err.OperationalError) as caught:
            changed(mariadb, port=proxy.port).connect(0.3)
        assert 0.3 <= monotonic() - began < 1.3
        assert mariadb.password not in str(caught.value)


def test_a_dial_over_the_unix_socket(mariadb: MariaDB, lend: Callable[..., Lent]) -> None:
    adapter: PyMySQLAdapter[Any] = PyMySQLAdapter(
        unix_socket=str(mariadb.socket), user=mariadb.user, password=mariadb.password
    )
    lent = lend(adapter)
    assert lent.verdict() is Verdict.CLEAN
    assert lent.conn.connect_timeout == 10
    assert lent.conn._secure  # what caching_sha2_password asks


def test_a_dial_without_a_limit_is_pymysqls_own(adapter: PyMySQLAdapter[Any]) -> None:
    conn = adapter.connect(None)
    assert run(conn, "select 1") == [(1,)]
    conn.close()


def addresses(*ports: int) -> Callable[..., list[Any]]:
    return lambda *_, **__: [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports
    ]


def test_an_address_that_refuses_is_followed_by_the_next(
    mariadb: MariaDB, adapter: PyMySQLAdapter[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", addresses(free_port(), mariadb.port))
    conn = adapter.connect(LIMIT)
    monkeypatch.undo()
    assert run(conn, "select 1") == [(1,)]
    assert conn.host_info == f"socket {mariadb.host}:{mariadb.port}"
    assert conn._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    conn.close()


def test_a_name_without_addresses_cannot_be_dialled(
    adapter: PyMySQLAdapter[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", addresses())
    with pytest.raises(pymysql.err.OperationalError) as caught:
        adapter.connect(LIMIT)
    assert adapter.fault(caught.value, dialling=True) is Fault.DEAD


def test_a_failed_dial_leaves_nothing_to_the_collector(mariadb: MariaDB) -> None:
    bad = [
        changed(mariadb, port=free_port()),
        changed(mariadb, password="wrong"),
    ]
    gc.collect()
    gc.disable()
    try:
        before = {id(o) for o in gc.get_objects() if isinstance(o, OSError | pymysql.err.Error)}
        for adapter in bad:
            with pytest.raises(pymysql.err.OperationalError):
                adapter.connect(LIMIT)
        left = [o for o in gc.get_objects() if isinstance(o, OSError | pymysql.err.Error)]
    finally:
        gc.enable()
    assert [o for o in left if id(o) not in before] == []


def test_a_user_with_too_many_sessions_is_full(mariadb: MariaDB) -> None:
    mariadb.execute("create or replace user few@'%' identified by 'few' with max_user_connections 1")
    adapter: PyMySQLAdapter[Any] = PyMySQLAdapter(
        host=mariadb.host, port=mariadb.port, user="few", password="few"
    )
    conn = adapter.connect(LIMIT)
    try:
        with pytest.raises(pymysql.err.OperationalError) as caught:
            adapter.connect(LIMIT)
        assert adapter.fault(caught.value, dialling=True) is Fault.FULL, caught.value
    finally:
        adapter.close(conn, SOON)
        mariadb.execute("drop user few@'%'")


# -- closing


def ending(server: MariaDB, mark: int, conn: Any) -> list[str]:
    """Return what kinds of commands the server got from a session up to its goodbye."""
    deadline = monotonic() + SOON
    while True:
        kinds = [s.kind for s in server.statements(mark) if s.session == conn.thread_id()]
        if kinds[-1:] == ["Quit"]:
            return kinds
        assert monotonic() < deadline, kinds


def test_close_says_goodbye(mariadb: MariaDB, lent: Lent) -> None:
    mark = mariadb.mark()
    lent.adapter.close(lent.conn, LIMIT)
    assert ending(mariadb, mark, lent.conn) == ["Quit"]


def test_close_says_goodbye_behind_a_reset_that_nobody_has_read(
    mariadb: MariaDB, lend: Callable[..., Lent]
) -> None:
    mark = mariadb.mark()
    for _ in range(20):  # what is unread tears the connection down, sooner or later than the goodbye
        lent = lend()
        memory = remember(lent)
        lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
        lent.adapter.close(lent.conn, LIMIT)
        assert not lent.conn.open
        ending(mariadb, mark, lent.conn)


def test_to_close_behind_a_reset_keeps_its_limit(mariadb: MariaDB, lend: Callable[..., Lent]) -> None:
    with FaultProxy(mariadb.address) as proxy:
        lent = lend(changed(mariadb, port=proxy.port))
        memory = remember(lent)
        proxy.black_hole()
        lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
        began = monotonic()
        lent.adapter.close(lent.conn, 0.3)
        assert monotonic() - began < 1.3
        assert not lent.conn.open


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("tls", [False, True])
def test_a_thread_inside_gets_an_error_and_nobody_waits(
    mariadb: MariaDB, tls_mariadb: MariaDB, lend: Callable[..., Lent], how: str, tls: bool
) -> None:
    lent = lend(PyMySQLAdapter(**(tls_mariadb if tls else mariadb).params))
    raised: list[BaseException] = []

    def borrow() -> None:
        try:
            run(lent.conn, "select sleep(60)")
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=borrow, daemon=True)
    thread.start()
    while lent.verdict() is not Verdict.BROKEN:
        thread.join(0.01)
    thread.join(0.1)  # so that it reads
    began = monotonic()
    if how == "close":
        lent.adapter.close(lent.conn, SHORT)
    else:
        lent.adapter.abort(lent.conn)
    assert monotonic() - began < SHORT
    thread.join(SOON)
    assert not thread.is_alive()
    assert isinstance(raised[0], pymysql.err.OperationalError)
    assert lent.adapter.fault(raised[0], dialling=False) is Fault.DEAD
    assert lent.verdict() is Verdict.BROKEN


def test_a_half_read_result_of_a_closed_connection_fails_and_is_dropped_in_silence(
    lent: Lent,
) -> None:
    cursor = lent.conn.cursor(SSCursor)
    cursor.execute("select seq, repeat('x', 1000) from seq_1_to_1000")
    cursor.fetchone()
    lent.adapter.close(lent.conn, LIMIT)
    # An end of the rows would be a lie.  (PyMySQL before 1.2 looks for its socket first.)
    with pytest.raises((pymysql.err.OperationalError, AttributeError)):
        cursor.fetchall()
    del cursor  # what it does then pytest would tell
    gc.collect()


def test_abort_frees_the_descriptor(lent: Lent) -> None:
    sock = lent.conn._sock
    lent.adapter.abort(lent.conn)
    assert sock.fileno() == -1


# -- faults


def code(number: int, text: str = "x") -> pymysql.err.OperationalError:
    return pymysql.err.OperationalError(number, text)


READ_ONLY = "The MariaDB server is running with the --read-only option so it cannot execute this"
PRIVATE = "The MySQL server is running with the --secure-file-priv option so it cannot execute this"


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        *((code(number), Fault.DEAD) for number in (2006, 2013, 2014, 2055, 1053, 1927, 4031)),
        (pymysql.err.InterfaceError(0, ""), Fault.DEAD),
        (pymysql.err.InternalError("Packet sequence number wrong"), Fault.DEAD),
        (pymysql.err.Error("Already closed"), Fault.DEAD),
        (pymysql.err.InternalError(1836, "x"), Fault.DEMOTED),
        (code(1290, READ_ONLY), Fault.DEMOTED),
        (code(1290, PRIVATE), Fault.ORDINARY),
        (code(1205), Fault.ORDINARY),
        (code(1049), Fault.ORDINARY),
        (pymysql.err.ProgrammingError(1146, "x"), Fault.ORDINARY),
        (pymysql.err.ProgrammingError("Cursor closed"), Fault.ORDINARY),
        (pymysql.err.OperationalError(), Fault.ORDINARY),
        (PyMySQLPoolTimeout("another pool's"), Fault.ORDINARY),
        (OSError("a file's"), Fault.ORDINARY),
    ],
)
def test_an_error_in_use_is_told_by_its_code(
    adapter: PyMySQLAdapter[Any], error: Exception, fault: Fault
) -> None:
    assert adapter.fault(error, dialling=False) is fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        *((code(number), Fault.FULL) for number in (1040, 1203, 1226)),
        *((code(number), Fault.AUTH) for number in (1044, 1045, 1049, 1698, 2059, 1130, 2026, 3159)),
        (code(1053), Fault.STARTING),
        *((code(number), Fault.DEAD) for number in (2003, 2013, 9999)),
        (ConnectionRefusedError(111, "x"), Fault.DEAD),
        (pymysql.err.ProgrammingError(1064, "x"), Fault.ORDINARY),
        (PyMySQLPoolTimeout("another pool's"), Fault.DEAD),
        (ValueError("x"), Fault.ORDINARY),
    ],
)
def test_an_error_while_dialling(adapter: PyMySQLAdapter[Any], error: Exception, fault: Fault) -> None:
    assert adapter.fault(error, dialling=True) is fault


def test_a_write_in_a_read_only_transaction_is_a_demotion(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    lent = lend(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database)))
    run(lent.conn, "create table t (a int)")
    run(lent.conn, "start transaction read only")
    with pytest.raises(pymysql.err.MySQLError) as refused:
        run(lent.conn, "insert into t values (1)")
    assert lent.adapter.fault(refused.value, dialling=False) is Fault.DEMOTED


# -- resets


def reset(lent: Lent, memory: object, parts: tuple[Part, ...] = FULL) -> None:
    lent.reset(memory, parts)
    assert lent.verdict() is Verdict.CLEAN


def remember(lent: Lent) -> object:
    memory = lent.adapter.remember(lent.conn, FULL, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    return memory


EVERYTHING = (
    "select connection_id(), database(), @@autocommit, @x, @@sql_mode, @@time_zone, @@tx_isolation,"
    " @@tx_read_only, @@character_set_client, @@character_set_results, @@collation_connection,"
    " @@lc_time_names, @@foreign_key_checks, @@wait_timeout, @@max_statement_time,"
    " is_used_lock('of the session'), last_insert_id()"
)
LEAKS = (
    "use {other}",
    "set autocommit = 0",
    "set @x = 5, lc_time_names = 'de_DE', foreign_key_checks = 0, wait_timeout = 99",
    "set max_statement_time = 33",
    "do get_lock('of the session', 0)",
    "set sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES'",
    "create temporary table leak (a int)",
    "set time_zone = '+05:00'",
    "set names latin1",
    "set session transaction isolation level read uncommitted",
    "set session transaction read only",
    "prepare leak from 'select 1'",
    "do last_insert_id(4711)",
    "begin",
)


class Subclass(Connection):
    pass


def with_parameters(**params: Any) -> PyMySQLAdapter[Any]:
    return PyMySQLAdapter(**params, sql_mode="TRADITIONAL", charset="latin2", collation="latin2_croatian_ci")


def with_init_command(**params: Any) -> PyMySQLAdapter[Any]:
    return PyMySQLAdapter(**params, init_command="set time_zone = '+01:00', @x = 1")


def with_subclass(**params: Any) -> PyMySQLAdapter[Any]:
    return PyMySQLAdapter.around(lambda: Subclass(**params, cursorclass=DictCursor))


def with_callable(**params: Any) -> PyMySQLAdapter[Any]:
    def connect() -> Any:
        conn = pymysql.connect(**params, init_command="set time_zone = '+01:00'")
        for statement in (
            "set time_zone = 'SYSTEM', sql_mode = '', lc_time_names = 'fr_FR', wait_timeout = 77",
            "set names utf8mb4 collate utf8mb4_german2_ci",
            "set max_statement_time = 44.5, sql_select_limit = 1",
            "set session transaction isolation level serializable",
        ):
            run(conn, statement)
        return conn

    return PyMySQLAdapter.around(connect)


@pytest.mark.parametrize("autocommit", [False, True], ids=["transactions", "autocommit"])
@pytest.mark.parametrize("make", [with_parameters, with_init_command, with_subclass, with_callable])
def test_a_thousand_full_resets_leave_nothing_behind(
    mariadb: MariaDB,
    mariadb_database: str,
    lend: Callable[..., Lent],
    make: Callable[..., PyMySQLAdapter[Any]],
    autocommit: bool,
) -> None:
    params: dict[str, Any] = {**mariadb.params, "ssl_disabled": True, "autocommit": autocommit}
    lent = lend(make(**params))
    memory = remember(lent)
    at_connect = run(lent.conn, EVERYTHING)
    lent.adapter.rollback(lent.conn, LIMIT)
    settings = (lent.conn.cursorclass, lent.conn.encoding, lent.conn.autocommit_mode)
    for number in range(1000):
        for statement in LEAKS if number % 10 == 0 else LEAKS[number % len(LEAKS) :][:1]:
            run(lent.conn, statement.format(other=mariadb_database))
        lent.conn.cursorclass = SSCursor
        if number % 10 == 5:
            lent.conn.set_character_set("cp1250")
        reset(lent, memory)
        assert run(lent.conn, EVERYTHING) == at_connect
        if number % 10 == 0:
            for gone, code in (("select * from leak", 1146), ("execute leak", 1243)):
                with pytest.raises(pymysql.err.MySQLError) as caught:
                    run(lent.conn, gone)
                assert caught.value.args[0] == code
    assert (lent.conn.cursorclass, lent.conn.encoding, lent.conn.autocommit_mode) == settings
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN


def test_a_reset_is_one_message_and_reads_nothing(lent: Lent) -> None:
    memory = remember(lent)
    sock, sent = lent.conn._sock, []

    class Listening:
        def sendall(self, data: bytes) -> None:
            sent.append(data)
            sock.sendall(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(sock, name)

    lent.conn._sock, lent.conn._rfile = Listening(), None
    rfile = sock.makefile("rb")
    token = lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
    assert len(sent) == 1
    lent.conn._rfile = rfile
    lent.adapter.read_reset(lent.conn, token, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    lent.conn._sock = sock


@pytest.mark.parametrize(
    "goes_on",
    [Connection.commit, Connection.rollback, Connection.ping, lambda conn: run(conn, "select 'mine'")],
    ids=["commit", "rollback", "ping", "select"],
)
@pytest.mark.parametrize("read", [0, 1, 3], ids=["nothing read", "one answer read", "three answers read"])
def test_whoever_goes_on_while_a_reset_is_outstanding_never_reads_its_answers(
    lent: Lent, goes_on: Callable[[Any], object], read: int
) -> None:
    memory = remember(lent)
    commands: Any = lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
    for command in commands[:read]:
        lent.conn._next_seq_id = 1
        module._read_answer(lent.conn, command.answer)
        assert lent.verdict() is Verdict.BROKEN
    with pytest.raises(pymysql.err.OperationalError, match="interrupted"):
        goes_on(lent.conn)
    assert not lent.conn.open
    assert lent.verdict() is Verdict.BROKEN


def test_a_reset_of_what_is_not_at_rest_is_refused(lent: Lent) -> None:
    memory = remember(lent)
    cursor = half_read(lent.conn, "select seq from seq_1_to_10")
    with pytest.raises(pymysql.err.InterfaceError):
        lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
    cursor.close()
    lent.conn.close()
    with pytest.raises(pymysql.err.InterfaceError) as caught:
        lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD


def test_a_reset_that_was_aborted_cannot_be_read(lent: Lent) -> None:
    memory = remember(lent)
    token = lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
    lent.adapter.abort(lent.conn)
    with pytest.raises(pymysql.err.InterfaceError) as caught:
        lent.adapter.read_reset(lent.conn, token, LIMIT)
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD


def test_a_server_that_knows_no_reset_is_an_error(
    mariadb: MariaDB, lend: Callable[..., Lent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COM_RESET_CONNECTION", 0x70)  # as it was to MySQL 5.6
    lent = lend(autocommit=True)
    memory = remember(lent)
    token = lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
    with pytest.raises(pymysql.err.OperationalError, match="Unknown command"):
        lent.adapter.read_reset(lent.conn, token, LIMIT)
    assert lent.verdict() in FINISHED


def test_an_interrupt_in_the_middle_of_an_answer_is_found_by_the_reset(lent: Lent) -> None:
    memory = remember(lent)
    read_packet, packets = lent.conn._read_packet, 0

    def read_one_packet(*args: Any) -> Any:
        nonlocal packets
        packets += 1
        if packets == 2:
            raise Interrupt
        return read_packet(*args)

    lent.conn._read_packet = read_one_packet
    with pytest.raises(Interrupt):
        run(lent.conn, "select seq from seq_1_to_3")
    del lent.conn._read_packet
    assert lent.verdict() is Verdict.DIRTY
    with pytest.raises(pymysql.err.InternalError, match="sequence"):
        lent.reset(memory)
    assert lent.verdict() is Verdict.BROKEN


def test_a_database_that_was_dropped_meanwhile_is_an_error(
    mariadb: MariaDB, lend: Callable[..., Lent]
) -> None:
    with mariadb.database() as name:
        lent = lend(PyMySQLAdapter(**mariadb.params_for(database=name)))
        memory = remember(lent)
    with pytest.raises(pymysql.err.OperationalError, match="Unknown database"):
        lent.reset(memory)
    assert lent.verdict() in FINISHED


@pytest.mark.parametrize("name", ["app_x ü`'\"\\", "app_日本"])
def test_a_database_comes_back_by_whatever_name(
    mariadb: MariaDB, lend: Callable[..., Lent], name: str
) -> None:
    quoted = "`" + name.replace("`", "``") + "`"
    mariadb.execute(f"create database {quoted}")
    try:
        lent = lend(PyMySQLAdapter(**mariadb.params_for(database=name)))
        memory = remember(lent)
        lent.conn.select_db("app")
        reset(lent, memory)
        assert run(lent.conn, "select database()") == [(name,)]
        lent.conn.set_character_set("gbk" if "日" in name else "latin1")
        lent.conn.commit()
        lent.adopt_again()  # as after on_connect
        lent.conn.select_db("app")
        reset(lent, memory)
        assert run(lent.conn, "select database()") == [(name,)]
    finally:
        mariadb.execute(f"drop database {quoted}")


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_session_without_a_database_keeps_none_or_is_spent(
    mariadb: MariaDB, lend: Callable[..., Lent], autocommit: bool
) -> None:
    params: dict[str, Any] = {**mariadb.params, "autocommit": autocommit}
    del params["database"]
    lent = lend(PyMySQLAdapter(**params))
    memory = remember(lent)
    for _ in range(2):
        run(lent.conn, "set @x = 5")
        reset(lent, memory)
        assert run(lent.conn, "select @x, database()") == [(None, None)]
    mark = mariadb.mark()
    run(lent.conn, f"use {mariadb.database_name}")
    lent.reset(memory)
    assert lent.verdict() is Verdict.SPENT
    assert not lent.conn.open
    ending(mariadb, mark, lent.conn)


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize(
    "command",
    [
        "insert into ran values (1)",
        "select 'a row', x'ff', 3 from seq_1_to_3; insert into ran values (1); select 1",
        "call run()",
        b"insert into ran values (1)",
    ],
    ids=["a write", "several statements", "a procedure", "bytes"],
)
def test_the_init_command_runs_once_after_each_reset(
    mariadb: MariaDB,
    mariadb_database: str,
    lend: Callable[..., Lent],
    command: str | bytes,
    autocommit: bool,
) -> None:
    mariadb.execute(f"create table {mariadb_database}.ran (a int)")
    mariadb.execute(
        f"create procedure {mariadb_database}.run() begin insert into ran values (1); select 1; select 2; end"
    )
    lent = lend(
        PyMySQLAdapter(
            **mariadb.params_for(database=mariadb_database),
            autocommit=autocommit,
            init_command=command,
            client_flag=CLIENT.MULTI_STATEMENTS,
            conv={**conversions, FIELD_TYPE.VAR_STRING: lambda _: "spoilt", FIELD_TYPE.LONG: lambda _: 0},
        )
    )
    memory = remember(lent)
    counted = f"select count(*) from {mariadb_database}.ran"
    before = mariadb.execute(counted)[0][0]
    for times in (1, 2, 3):
        run(lent.conn, "use app")
        reset(lent, memory)
        assert mariadb.execute(counted) == [(before + times,)]  # type: ignore[operator] # a number


def test_an_init_command_finds_what_it_found_at_connect(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    mariadb.execute(f"create table {mariadb_database}.found (a text)")
    found = "concat_ws(' ', database(), @@autocommit, @@sql_mode, @@character_set_client, current_role())"
    lent = lend(
        PyMySQLAdapter(
            **mariadb.params_for(database=mariadb_database),
            sql_mode="ANSI_QUOTES",
            charset="latin2",
            init_command=f"insert into {mariadb_database}.found values ({found})",
        )
    )
    memory = remember(lent)
    for statement in ("use app", "set sql_mode = '', names latin1", "set autocommit = 0"):
        run(lent.conn, statement)
    reset(lent, memory)
    assert mariadb.execute(f"select distinct a from {mariadb_database}.found") == [
        (f"{mariadb_database} ON ANSI_QUOTES latin2",)
    ]


def test_an_init_command_leaves_no_transaction_open_where_the_server_has_autocommit_off(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    mariadb.execute(f"create table {mariadb_database}.ran (a int)")
    mariadb.execute("set global autocommit = 0")
    try:
        lent = lend(
            PyMySQLAdapter(
                **mariadb.params_for(database=mariadb_database), init_command="insert into ran values (1)"
            )
        )
        memory = remember(lent)
        reset(lent, memory)
    finally:
        mariadb.execute("set global autocommit = 1")
    assert mariadb.execute(f"select count(*) from {mariadb_database}.ran") == [(2,)]


def test_an_init_command_that_fails_is_an_error(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    mariadb.execute(f"create table {mariadb_database}.t (a int)")
    lent = lend(
        PyMySQLAdapter(**mariadb.params_for(database=mariadb_database), init_command="select count(*) from t")
    )
    memory = remember(lent)
    mariadb.execute(f"drop table {mariadb_database}.t")
    with pytest.raises(pymysql.err.ProgrammingError, match="doesn't exist"):
        lent.reset(memory)
    assert lent.verdict() in FINISHED


def test_all_answers_of_a_reset_have_one_limit(lend: Callable[..., Lent]) -> None:
    lent = lend(init_command="do sleep(0.3); do sleep(0.3)", client_flag=CLIENT.MULTI_STATEMENTS)
    memory = remember(lent)
    token = lent.adapter.send_reset(lent.conn, lent.baseline, memory, FULL, LIMIT)
    began = monotonic()
    with pytest.raises(pymysql.err.OperationalError, match="timed out"):
        lent.adapter.read_reset(lent.conn, token, 0.45)
    assert 0.4 < monotonic() - began < 0.58
    assert lent.verdict() in FINISHED


@pytest.mark.parametrize("at_connect", [None, "of_connect"])
def test_a_role_does_not_outlive_a_reset(
    mariadb: MariaDB, lend: Callable[..., Lent], at_connect: str | None
) -> None:
    for role in ("of_connect", "of_borrower"):
        mariadb.execute(f"create or replace role {role}")
        mariadb.execute(f"grant {role} to {mariadb.user}@'%'")

    def connect() -> Any:
        conn = pymysql.connect(**mariadb.params)
        run(conn, f"set role {at_connect or 'none'}")
        return conn

    lent = lend(PyMySQLAdapter.around(connect))
    memory = remember(lent)
    run(lent.conn, "set role of_borrower")
    reset(lent, memory)
    assert run(lent.conn, "select current_role()") == [(at_connect,)]


def test_a_transaction_that_was_prepared_for_xa_is_an_error(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    lent = lend(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database), autocommit=True))
    memory = remember(lent)
    run(lent.conn, "create table t (a int)")
    for statement in ("xa start 'x'", "insert into t values (1)", "xa end 'x'", "xa prepare 'x'"):
        run(lent.conn, statement)
    with pytest.raises(pymysql.err.MySQLError, match="PREPARED"):
        lent.reset(memory)
    assert lent.verdict() in FINISHED
    lent.adapter.abort(lent.conn)
    deadline = monotonic() + SOON
    while True:
        with contextlib.suppress(pymysql.err.MySQLError):  # until its session has ended
            mariadb.execute("xa rollback 'x'")
            break
        assert monotonic() < deadline


@pytest.mark.parametrize("part", [Part.FULL, Part.RESET_CONNECTION])
def test_converters_come_back_with_full_alone(lend: Callable[..., Lent], part: Part) -> None:
    lent = lend()
    memory = lent.adapter.remember(lent.conn, (part,), LIMIT)
    for _ in range(2):
        lent.conn.decoders[FIELD_TYPE.LONG] = lambda _: "spoilt"  # in the same dictionary
        lent.conn.encoders = {**lent.conn.encoders, int: lambda *_: "4711"}
        lent.conn.use_unicode = False
        assert run(lent.conn, "select 1") == [("spoilt",)]
        reset(lent, memory, (part,))
        full = part is Part.FULL
        assert run(lent.conn, "select 1, 'a'") == ([(1, "a")] if full else [("spoilt", b"a")])
        with lent.conn.cursor() as cursor:
            assert cursor.mogrify("%s", (1,)) == ("1" if full else "4711")


def test_what_on_connect_has_set_in_the_driver_comes_back(lent: Lent) -> None:
    memory = remember(lent)
    lent.conn.set_character_set("latin2", "latin2_croatian_ci")
    lent.conn.autocommit(True)
    lent.conn.cursorclass = DictCursor
    lent.conn.commit()
    lent.adopt_again()
    lent.conn.set_character_set("latin1")
    lent.conn.autocommit(False)
    reset(lent, memory)
    assert (lent.conn.cursorclass, lent.conn.encoding) == (DictCursor, "latin2")
    assert run(lent.conn, "select @@autocommit, @@character_set_client, @@collation_connection, 'č'") == [
        (1, "latin2", "latin2_croatian_ci", "č")
    ]


def test_results_in_no_character_set_stay_so(mariadb: MariaDB, lend: Callable[..., Lent]) -> None:
    def connect() -> Any:
        conn = pymysql.connect(**mariadb.params)
        run(conn, "set character_set_results = null")
        return conn

    lent = lend(PyMySQLAdapter.around(connect))
    memory = remember(lent)
    run(lent.conn, "set names latin1")
    reset(lent, memory)
    assert run(lent.conn, "select @@character_set_results, @@character_set_client") == [(None, "utf8mb4")]


def test_what_the_connect_callable_has_left_open_is_committed_when_it_is_remembered(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    mariadb.execute(f"create table {mariadb_database}.t (a int)")

    def connect() -> Any:
        conn = pymysql.connect(**mariadb.params_for(database=mariadb_database))
        run(conn, "insert into t values (1)")
        return conn

    lent = lend(PyMySQLAdapter.around(connect))
    assert lent.verdict() is Verdict.DIRTY
    remember(lent)
    assert mariadb.execute(f"select * from {mariadb_database}.t") == [(1,)]


def test_a_server_that_cannot_list_what_a_session_has_changed_is_asked_for_the_usual(
    lend: Callable[..., Lent], monkeypatch: pytest.MonkeyPatch
) -> None:
    # MariaDB has all that MySQL is asked for, but for this.
    monkeypatch.setattr(module, "_OF_MYSQL", [v for v in module._OF_MYSQL if v != "max_execution_time"])
    lent = lend()
    run(lent.conn, "set group_concat_max_len = 4711, lc_time_names = 'de_DE', join_buffer_size = 262144")
    lent.conn.server_version = "5.7.44-log"
    memory = remember(lent)
    run(lent.conn, "set group_concat_max_len = 5000, lc_time_names = 'fr_FR'")
    reset(lent, memory)
    assert run(lent.conn, "select @@group_concat_max_len, @@lc_time_names") == [(4711, "de_DE")]


@pytest.mark.parametrize(
    ("value", "literal"),
    [("it's", "'it''s'"), ("", "''"), ("-1.5", "-1.5"), ("+05:00", "'+05:00'"), (None, "NULL")],
)
def test_a_value_is_written_as_the_server_reads_it(value: str | None, literal: str) -> None:
    assert module._literal(value) == literal


def test_to_remember_keeps_its_limit(mariadb: MariaDB, lend: Callable[..., Lent]) -> None:
    with FaultProxy(mariadb.address) as proxy:
        lent = lend(changed(mariadb, port=proxy.port))
        proxy.black_hole()
        began = monotonic()
        with pytest.raises(pymysql.err.OperationalError):
            lent.adapter.remember(lent.conn, FULL, 0.3)
        assert 0.3 <= monotonic() - began < 1.3
        assert lent.verdict() in FINISHED


def test_what_is_remembered_is_not_shown(lend: Callable[..., Lent]) -> None:
    lent = lend(init_command=f"set @password = '{SECRET}'")
    assert SECRET not in repr(remember(lent))


# -- names and secrets


def test_a_timeout_is_a_complete_driver_error() -> None:
    for kind in (PyMySQLPoolTimeout, PyMySQLPoolUnavailable):
        error = kind("no connection within 5 s")
        assert vars(error) == vars(pymysql.err.OperationalError("x"))
    with pytest.raises(pymysql.err.OperationalError):
        raise PyMySQLPoolTimeout("x")


def test_the_cursor_class_is_the_connections(lend: Callable[..., Lent]) -> None:
    with lend(cursorclass=DictCursor).conn.cursor() as cursor:
        cursor.execute("select 1 as a")
        assert cursor.fetchall() == [{"a": 1}]


def test_a_url_says_everything() -> None:
    adapter = adapter_for_url(
        "mysql+pymysql://m%40e:geh%3Aeim%2F4711@db.example:3307/app%20one?charset=utf8mb4"
        "&connect_timeout=2.5&autocommit=true&ssl_verify_cert=off&max_allowed_packet=1024"
        "&unix_socket=%2Frun%2Fmy.sock"
    )
    assert isinstance(adapter, PyMySQLAdapter)
    assert adapter._params == {
        "host": "db.example",
        "port": 3307,
        "user": "m@e",
        "password": SECRET,
        "database": "app one",
        "charset": "utf8mb4",
        "connect_timeout": 2.5,
        "autocommit": True,
        "ssl_verify_cert": False,
        "max_allowed_packet": 1024,
        "unix_socket": "/run/my.sock",
    }
    assert "geh" not in repr(adapter)
    assert adapter_for_url("mariadb:///app?autocommit=none")._params == {  # type: ignore[attr-defined]
        "database": "app",
        "autocommit": None,
    }


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("mysql://me:geheim/4711@h/app", "percent-encoded"),
        ("mysql://me:geheim@[::1/app", "percent-encoded"),
        ("mysql://me:x?geheim@h/app", "percent-encoded"),
        ("mysql://me:x#geheim@h/app", "percent-encoded"),
        ("mysql://me:geheim@h/app?pasword=geheim", "pasword"),
        ("mysql://me:geheim@h/app?connect_timeout=geheim", "connect_timeout in the URL must be a"),
        ("mysql://me:geheim@h/app?autocommit=geheim", "must be true or false"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_and_not_repeated(url: str, hint: str) -> None:
    with pytest.raises(PoolMisuse, match=hint) as caught:
        PyMySQLAdapter.from_url(url)
    assert "geheim" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("name", ["pasword", "defer_connect"])
def test_a_parameter_that_pymysql_must_not_get_is_refused_at_construction(name: str) -> None:
    with pytest.raises(PoolMisuse, match=name) as caught:
        PyMySQLAdapter(**dict[str, Any]({name: SECRET}))
    assert SECRET not in str(caught.value)


def test_a_password_is_never_shown() -> None:
    from functools import partial

    params: dict[str, Any] = {"host": "db.example", "user": "me", "password": SECRET}
    assert repr(PyMySQLAdapter(**params)) == "PyMySQLAdapter(host='db.example', user='me')"
    assert SECRET not in repr(PyMySQLAdapter.around(partial(pymysql.connect, **params)))


# -- what the server is like -------------------------------------------------------------------------


@pytest.mark.parametrize("autocommit", [False, True, None])
def test_asking_aside_leaves_all_as_if_nobody_had_asked(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent], autocommit: bool | None
) -> None:
    lent = lend(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database), autocommit=autocommit))
    conn = lent.conn
    run(conn, "create table t (a int auto_increment primary key)")

    def fail() -> None:
        with pytest.raises(pymysql.err.ProgrammingError):
            run(conn, "select from")

    for do in (
        lambda: run(conn, "insert into t values (4711)"),
        conn.begin,
        fail,
        conn.commit,
        lambda: run(conn, "select 1"),
        conn.rollback,
        lambda: conn.ping(reconnect=False),
    ):
        do()
        before = (lent.verdict(), conn.server_status, conn.insert_id(), conn.affected_rows(), conn._result)
        assert lent.adapter.idle_limit(conn, LIMIT) == 28_800.0
        assert lent.adapter.writable(conn, LIMIT)
        after = (lent.verdict(), conn.server_status, conn.insert_id(), conn.affected_rows(), conn._result)
        assert after == before
    run(conn, "commit")
    assert run(conn, "select @@in_transaction") == [(0,)]


def test_asking_opens_no_transaction_at_the_server(mariadb: MariaDB, lent: Lent) -> None:
    lent.adapter.idle_limit(lent.conn, LIMIT)
    lent.adapter.writable(lent.conn, LIMIT)
    mine = f"where trx_mysql_thread_id = {lent.conn.thread_id()}"
    assert mariadb.execute(f"select count(*) from information_schema.innodb_trx {mine}") == [(0,)]
    assert run(lent.conn, "select @@in_transaction") == [(0,)]


def test_a_server_that_does_not_know_is_taken_for_an_ordinary_one(
    lent: Lent, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(wire: Any, statement: str) -> Any:
        asked.append(statement)
        return real(wire, f"{statement}, @@no_such_variable")

    real = module._ask
    monkeypatch.setattr(module, "_ask", ask)
    assert lent.adapter.idle_limit(lent.conn, LIMIT) is None
    assert lent.at_rest()
    assert lent.adapter.writable(lent.conn, LIMIT)
    assert len(asked) == 3
    assert lent.at_rest()
    assert lent.adapter.alive(lent.conn)


def test_what_a_server_without_innodb_knows_is_enough(
    mariadb: MariaDB, lent: Lent, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = module._ARE_WRITES_REFUSED
    monkeypatch.setattr(module, "_ARE_WRITES_REFUSED", (f"{first}, @@no_such_variable", second))
    assert lent.adapter.writable(lent.conn, LIMIT)
    with read_only(mariadb):
        assert not lent.adapter.writable(lent.conn, LIMIT)


@pytest.mark.parametrize(("value", "writable"), [("ON", False), ("OFF", True), ("NO_LOCK_NO_ADMIN", False)])
def test_words_for_read_only_are_understood(
    lent: Lent, monkeypatch: pytest.MonkeyPatch, value: str, writable: bool
) -> None:
    monkeypatch.setattr(module, "_ARE_WRITES_REFUSED", (f"select '{value}', 0",))
    assert lent.adapter.writable(lent.conn, LIMIT) is writable


def test_an_interactive_client_has_its_own_limit(mariadb: MariaDB, lend: Callable[..., Lent]) -> None:
    mariadb.execute("set global interactive_timeout = 77")
    try:
        lent = lend(client_flag=CLIENT.INTERACTIVE)
        assert lent.adapter.idle_limit(lent.conn, LIMIT) == 77.0
    finally:
        mariadb.execute("set global interactive_timeout = 28800")


def test_a_session_that_its_server_has_ended_for_idleness_is_dead(lend: Callable[..., Lent]) -> None:
    lent = lend(init_command="set wait_timeout = 1")
    wait_readable(lent.conn)
    with pytest.raises(pymysql.err.OperationalError) as caught:
        run(lent.conn, "select 1")
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD
    assert lent.verdict() in FINISHED


def test_a_write_to_a_read_only_server_means_that_it_was_demoted(
    mariadb: MariaDB, mariadb_database: str, lend: Callable[..., Lent]
) -> None:
    lent = lend(PyMySQLAdapter(**mariadb.params_for(database=mariadb_database)))
    run(lent.conn, "create table t (a int)")
    with read_only(mariadb), pytest.raises(pymysql.err.OperationalError) as caught:
        run(lent.conn, "insert into t values (1)")
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEMOTED
    run(lent.conn, "start transaction read only")
    with pytest.raises(pymysql.err.MySQLError) as caught:
        run(lent.conn, "insert into t values (1)")
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEMOTED
    assert lent.adapter.writable(lent.conn, LIMIT)


# -- credentials and certificates --------------------------------------------------------------------


def test_credentials_take_the_place_of_either_name_and_leave_the_rest(mariadb: MariaDB) -> None:
    own: dict[str, Any] = {**mariadb.params, "autocommit": None, "init_command": "set @x = 5"}
    password = own.pop("password")
    for mine, theirs in (("passwd", "password"), ("password", "password")):
        adapter: PyMySQLAdapter[Any] = PyMySQLAdapter(**{**own, mine: "wrong"})
        conn = adapter.connect(LIMIT, {theirs: password, "init_command": None})
        assert conn.autocommit_mode is None
        assert run(conn, "select @x") == [(None,)]
        adapter.close(conn, LIMIT)


def test_credentials_that_pymysql_does_not_know_are_named_without_their_values(
    adapter: PyMySQLAdapter[Any],
) -> None:
    with pytest.raises(PoolMisuse, match="no parameter token") as caught:
        adapter.connect(LIMIT, {"token": SECRET})
    assert SECRET not in str(caught.value)
    with pytest.raises(PoolMisuse, match="defer_connect"):
        adapter.connect(LIMIT, {"defer_connect": True})


def test_what_is_wrong_with_certificates_is_not_cured_by_trying_again(
    tls_mariadb: MariaDB, mariadb: MariaDB, tmp_path: Path
) -> None:
    right = tls_mariadb.params["ssl_ca"]
    other, key = make_certificate(tmp_path)
    empty, missing = tmp_path / "empty.pem", tmp_path / "missing.pem"
    empty.touch()
    cases: list[tuple[MariaDB, dict[str, Any]]] = [
        (tls_mariadb, {"ssl_ca": str(other), "ssl_verify_cert": True}),
        (tls_mariadb, {"ssl_ca": str(missing), "ssl_verify_cert": True}),
        (tls_mariadb, {"ssl_ca": str(empty), "ssl_verify_cert": True}),
        (tls_mariadb, {"ssl_ca": right, "ssl_cert": right, "ssl_key": str(key)}),  # another one's key
        (mariadb, {"ssl_ca": right, "ssl_verify_cert": True}),  # which speaks no TLS
    ]
    for server, changes in cases:
        adapter = changed(server, **changes)
        with pytest.raises(Exception) as caught:  # noqa: PT011 # of several kinds
            adapter.connect(LIMIT)
        assert adapter.fault(caught.value, dialling=True) is Fault.AUTH, (changes, caught.value)


def test_dials_without_tls_options_share_one_context_and_read_no_certificates(
    mariadb: MariaDB, tls_mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {name: value for name, value in tls_mariadb.params.items() if not name.startswith("ssl")}
    adapters = [PyMySQLAdapter(**params), PyMySQLAdapter(**mariadb.params)]
    with monkeypatch.context() as patch:
        patch.setattr(ssl, "create_default_context", None)  # it reads the system's certificates
        conns: list[Any] = [adapter.connect(LIMIT) for adapter in adapters * 2]
    with contextlib.ExitStack() as stack:
        for conn in conns:
            stack.callback(conn.close)
        assert [isinstance(conn._sock, ssl.SSLSocket) for conn in conns] == [True, False, True, False]
        assert len({conn.ctx for conn in conns}) == 1
        plain = stack.enter_context(pymysql.connect(**params))
        assert conns[0]._sock.cipher() == plain._sock.cipher()  # type: ignore[attr-defined] # not in the stubs
        for setting in ("verify_mode", "check_hostname", "verify_flags", "options", "minimum_version"):
            assert getattr(conns[0].ctx, setting) == getattr(plain.ctx, setting)  # type: ignore[attr-defined] # as above


def test_tls_options_are_passed_through_untouched(tls_mariadb: MariaDB) -> None:
    how = {"ssl_ca": tls_mariadb.params["ssl_ca"], "ssl_verify_cert": True, "ssl_verify_identity": True}
    conns: list[Any] = [changed(tls_mariadb, **how).connect(LIMIT) for _ in range(2)]
    for conn in conns:
        conn.close()
    assert len({conn.ctx for conn in conns}) == 2
    assert all(conn.ctx.verify_mode == ssl.CERT_REQUIRED and conn.ctx.check_hostname for conn in conns)
    own = ssl.create_default_context(cafile=tls_mariadb.params["ssl_ca"])
    lent: Any = PyMySQLAdapter(**{**tls_mariadb.params, "ssl_ca": None, "ssl": own}).connect(LIMIT)
    lent.close()
    assert lent.ctx is own


def test_a_handshake_that_breaks_off_is_worth_another_try(tls_mariadb: MariaDB) -> None:
    with FaultProxy(tls_mariadb.address) as proxy:
        adapter = changed(tls_mariadb, port=proxy.port, ssl_verify_cert=True)
        broken = pymysql.err.OperationalError(2003, "x")
        broken.original_exception = ssl.SSLEOFError(8, "EOF occurred in violation of protocol")  # type: ignore[attr-defined] # as PyMySQL sets it
        assert adapter.fault(broken, dialling=True) is Fault.DEAD
        proxy.black_hole()
        with pytest.raises(pymysql.err.OperationalError) as caught:
            adapter.connect(SHORT)
        assert adapter.fault(caught.value, dialling=True) is Fault.DEAD


def test_forgetting_never_shuts_the_parents_session_down(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    # Were there no descriptor left to lead nowhere, it must still not be a shutdown.
    monkeypatch.setattr(module, "disconnect", lambda descriptor: None)
    sock = lent.conn._sock
    lent.adapter.forget(lent.conn)
    assert not ready(sock.fileno(), 0.1), "the server has heard nothing and said nothing"
    with pytest.raises(pymysql.err.InterfaceError):
        run(lent.conn, "select 1")
    sock.close()
