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
from pymysql.constants import CLIENT
from pymysql.cursors import DictCursor, SSCursor
from servers import FaultProxy, MariaDB, free_port

from adapters.contract import LIMIT, SHORT, SOON, AdapterContract, Harness, Lent
from connpool.adapter import Adapter, Fault, Verdict, adapter_for_url
from connpool.adapters.pymysql import PyMySQLAdapter, PyMySQLPoolTimeout, PyMySQLPoolUnavailable
from connpool.errors import PoolMisuse

pytestmark = pytest.mark.server

SECRET = "geh:eim/4711"


class PyMySQLHarness(Harness):
    operational_error = pymysql.err.OperationalError
    lacks: Mapping[str, str] = {"fail": "a failed statement fails alone, the transaction lives on"}

    def __init__(self, server: MariaDB, database: str) -> None:
        self.server = server
        self.secret = server.password
        self.params: dict[str, Any] = dict(server.params_for(database=database))

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


def wait_readable(conn: Any) -> None:
    poll = select.poll()
    poll.register(conn._sock, select.POLLIN)
    assert poll.poll(SOON * 1000)


@pytest.fixture(scope="module")
def tls_mariadb() -> Iterator[MariaDB]:
    """Provide MariaDB with TLS, which takes statements of more than one packet."""
    with MariaDB(tls=True, settings={"max-allowed-packet": "64M"}) as server:
        yield server


class TestPlain(AdapterContract):
    @pytest.fixture
    def harness(self, mariadb: MariaDB, mariadb_database: str) -> Harness:
        return PyMySQLHarness(mariadb, mariadb_database)


class TestTLS(AdapterContract):
    @pytest.fixture
    def harness(self, tls_mariadb: MariaDB) -> Iterator[Harness]:
        with tls_mariadb.database() as database:
            yield PyMySQLHarness(tls_mariadb, database)

    def test_it_is_tls(self, lent: Lent) -> None:
        assert isinstance(lent.conn._sock, ssl.SSLSocket)


class TestAround(AdapterContract):
    @pytest.fixture
    def harness(self, mariadb: MariaDB, mariadb_database: str) -> Harness:
        class AroundHarness(PyMySQLHarness):
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
    with conn.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


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


def test_an_unbuffered_result_is_broken_until_it_is_read(lent: Lent) -> None:
    cursor = lent.conn.cursor(SSCursor)
    cursor.execute("select seq from seq_1_to_3")
    assert lent.verdict() is Verdict.BROKEN
    assert len(cursor.fetchall()) == 3
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    cursor.close()


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


def test_close_says_goodbye(mariadb: MariaDB, lent: Lent) -> None:
    mark = mariadb.mark()
    lent.adapter.close(lent.conn, LIMIT)
    number = lent.conn.thread_id()

    def said() -> list[str]:
        return [s.kind for s in mariadb.statements(mark) if s.session == number]

    deadline = monotonic() + SOON
    while said() != ["Quit"]:
        assert monotonic() < deadline, said()


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
        *((code(number), Fault.AUTH) for number in (1044, 1045, 1049, 1698, 2059, 1130)),
        (code(1053), Fault.STARTING),
        *((code(number), Fault.DEAD) for number in (2003, 2013, 2026, 9999)),
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
    with pytest.raises(pymysql.err.MySQLError) as caught:
        run(lent.conn, "insert into t values (1)")
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEMOTED


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
