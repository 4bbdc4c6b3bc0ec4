"""psycopg: the contract, plain and TLS, and what only psycopg has."""

import contextlib
import gc
import select
import threading
import timeit
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any

import psycopg
import pytest
from psycopg import errors, pq
from psycopg.adapt import AdaptersMap
from psycopg.rows import dict_row
from servers import FaultProxy, PostgreSQL, free_port

from adapters.contract import LIMIT, SHORT, SOON, AdapterContract, Harness, Lent
from connpool.adapter import Adapter, Fault, Verdict, adapter_for_url
from connpool.adapters.psycopg import (
    PsycopgAdapter,
    PsycopgPoolTimeout,
    PsycopgPoolUnavailable,
)
from connpool.errors import PoolMisuse, PoolTimeout

pytestmark = pytest.mark.server

SECRET = "geh:eim/4711"


class PsycopgHarness(Harness):
    operational_error = psycopg.OperationalError
    secret = SECRET

    def __init__(self, server: PostgreSQL, database: str) -> None:
        self.server = server
        self.params: dict[str, Any] = {**server.params_for(dbname=database), "password": SECRET}

    def make(self, params: Mapping[str, Any]) -> Adapter[Any]:
        return PsycopgAdapter(**params)

    def adapter(self) -> Adapter[Any]:
        return self.make(self.params)

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(**self.params)

    def url(self) -> str:
        return self.server.url_for(dbname=self.params["dbname"])

    def bad_dials(self) -> Mapping[str, tuple[Adapter[Any], frozenset[Fault]]]:
        def bad(**changes: Any) -> Adapter[Any]:
            return self.make({**self.params, **changes})

        return {
            "no such database": (bad(dbname="nowhere"), frozenset({Fault.AUTH})),
            "no such role": (bad(user="nobody"), frozenset({Fault.AUTH})),
            "nobody listens": (bad(port=free_port()), frozenset({Fault.DEAD})),
        }

    @contextlib.contextmanager
    def black_hole(self) -> Iterator[tuple[Adapter[Any], Callable[[], object]]]:
        with FaultProxy(self.server.address) as proxy:
            yield self.make({**self.params, "port": proxy.port}), proxy.black_hole

    def fail(self, conn: psycopg.Connection) -> None:
        with pytest.raises(errors.DivisionByZero):
            conn.execute("select 1 / 0")

    def leave_unread(self, conn: psycopg.Connection) -> object:
        rows = conn.cursor().stream("select generate_series(1, 10)")
        next(rows)
        return rows

    def kill(self, conn: psycopg.Connection) -> None:
        self.server.execute("select pg_terminate_backend(%s)", conn.info.backend_pid)
        wait_readable(conn)

    def slow(self, conn: psycopg.Connection) -> None:
        conn.execute("select pg_sleep(60)")


def wait_readable(conn: psycopg.Connection) -> None:
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    assert poll.poll(SOON * 1000)


class TestPlain(AdapterContract):
    @pytest.fixture
    def harness(self, postgresql: PostgreSQL, postgresql_database: str) -> Harness:
        return PsycopgHarness(postgresql, postgresql_database)


class TestTLS(AdapterContract):
    @pytest.fixture
    def harness(self, system_postgresql: PostgreSQL) -> Iterator[Harness]:
        with system_postgresql.database() as database:
            yield PsycopgHarness(system_postgresql, database)

    def test_it_is_tls(self, lent: Lent) -> None:
        assert lent.conn.pgconn.ssl_in_use

    def test_a_dial_keeps_its_limit_to_the_fraction(self, harness: PsycopgHarness) -> None:
        with harness.black_hole() as (adapter, swallow):
            swallow()
            began = monotonic()
            with pytest.raises(errors.ConnectionTimeout):
                adapter.connect(0.3)
            assert 0.3 <= monotonic() - began < 1.3


class TestAround(AdapterContract):
    @pytest.fixture
    def harness(self, postgresql: PostgreSQL, postgresql_database: str) -> Harness:
        class AroundHarness(PsycopgHarness):
            def make(self, params: Mapping[str, Any]) -> Adapter[Any]:
                return PsycopgAdapter.around(lambda: psycopg.connect(**params))

        return AroundHarness(postgresql, postgresql_database)


# -- what only psycopg has ---------------------------------------------------------------------------


@pytest.fixture
def adapter(postgresql: PostgreSQL) -> PsycopgAdapter[Any]:
    return PsycopgAdapter(postgresql.dsn)


@pytest.fixture
def lend(adapter: PsycopgAdapter[Any]) -> Iterator[Callable[..., Lent]]:
    all_lent: list[Lent] = []

    def lend(special: PsycopgAdapter[Any] | None = None) -> Lent:
        all_lent.append(Lent(special or adapter))
        return all_lent[-1]

    yield lend
    for lent in all_lent:
        lent.adapter.close(lent.conn, SOON)


@pytest.fixture
def lent(lend: Callable[..., Lent]) -> Lent:
    return lend()


def changed(server: PostgreSQL, **changes: Any) -> PsycopgAdapter[Any]:
    params: dict[str, Any] = {**server.params, **changes}
    return PsycopgAdapter(**params)


@pytest.fixture(scope="module")
def guarded() -> Iterator[PostgreSQL]:
    """Provide a server with a role that needs a password, and room for two ordinary sessions."""
    settings = {"max_prepared_transactions": "5"}
    with PostgreSQL(max_connections=5, settings=settings) as server:
        ((path,),) = server.execute("show hba_file")
        rules = (
            "host all locked all scram-sha-256",
            "host all all all trust",
            "local all all trust",
        )
        values = ", ".join(f"('{rule}')" for rule in rules)
        server.execute(f"copy (values {values}) to '{path}'")
        server.execute(f"create role locked login password '{SECRET}'")
        server.execute("select pg_reload_conf()")
        yield server


# -- the verdict


def test_a_copy_in_progress_is_broken(lent: Lent) -> None:
    with lent.conn.cursor().copy("copy (select generate_series(1, 9)) to stdout") as copy:
        assert lent.verdict() is Verdict.BROKEN
        assert len(list(copy)) == 9
    assert lent.verdict() is Verdict.DIRTY


def test_a_copy_that_nobody_read_is_broken(lent: Lent) -> None:
    with lent.conn.cursor().copy("copy (select generate_series(1, 9)) to stdout"):
        pass  # psycopg leaves it as it is
    assert lent.verdict() is Verdict.BROKEN


def test_an_open_pipeline_is_broken_even_with_nothing_in_it(lent: Lent) -> None:
    with lent.conn.pipeline():
        assert lent.verdict() is Verdict.BROKEN
    assert lent.verdict() is Verdict.CLEAN


def test_an_open_transaction_block_is_broken_whatever_the_server_says(lent: Lent) -> None:
    with lent.conn.transaction():
        assert lent.verdict() is Verdict.BROKEN
        lent.conn.pgconn.exec_(b"ROLLBACK")
        assert lent.conn.pgconn.transaction_status == pq.TransactionStatus.IDLE
        assert lent.verdict() is Verdict.BROKEN


def test_a_prepared_transaction_is_broken(guarded: PostgreSQL, lend: Callable[..., Lent]) -> None:
    lent = lend(PsycopgAdapter(guarded.dsn))
    lent.conn.tpc_begin("one")
    assert lent.verdict() is Verdict.BROKEN
    lent.conn.execute("create table if not exists tpc ()")
    lent.conn.tpc_prepare()
    assert lent.conn.pgconn.transaction_status == pq.TransactionStatus.IDLE
    assert lent.verdict() is Verdict.BROKEN
    lent.conn.tpc_rollback()
    assert lent.verdict() is Verdict.CLEAN


def test_a_thread_inside_the_connection_is_broken(lent: Lent) -> None:
    with lent.conn.lock:
        assert lent.verdict() is Verdict.BROKEN
    assert lent.verdict() is Verdict.CLEAN


def test_an_answer_that_nobody_awaited_is_broken(lent: Lent) -> None:
    lent.conn.pgconn.send_query(b"select 1")
    assert lent.verdict() is Verdict.BROKEN


def test_a_psycopg_without_the_private_state_is_judged_by_the_public_one(lent: Lent) -> None:
    del lent.conn._num_transactions, lent.conn._tpc
    assert lent.verdict() is Verdict.BROKEN  # in doubt
    lent.adapter.adopt(lent.conn)
    assert lent.verdict() is Verdict.CLEAN


def test_only_synchronous_connections_are_adopted(adapter: PsycopgAdapter[Any]) -> None:
    with pytest.raises(PoolMisuse, match=r"builtins\.object"):
        adapter.adopt(object())


def test_the_time_of_a_verdict_is_told(lent: Lent) -> None:
    names = {"verdict": lent.adapter.verdict, "conn": lent.conn, "baseline": lent.baseline}
    seconds = timeit.repeat("verdict(conn, baseline)", globals=names, number=20_000, repeat=5)
    print(f"\npsycopg: {min(seconds) / 20_000 * 1e9:.0f} ns for a CLEAN verdict")


# -- rollback and begin


def test_rollback_keeps_prepared_statements_usable(
    lend: Callable[..., Lent], adapter: PsycopgAdapter[Any]
) -> None:
    lent = lend(PsycopgAdapter(adapter._conninfo, prepare_threshold=0))
    for _ in range(2):
        lent.conn.execute("select 1")
        lent.conn.execute("select 2")
        lent.adapter.rollback(lent.conn, LIMIT)
        assert lent.verdict() is Verdict.CLEAN
        lent.conn.execute("select 1")  # prepared at once,
        lent.conn.execute("select 1")  # and still there
        assert lent.conn.execute("select count(*) from pg_prepared_statements").fetchone() <= (2,)
        lent.conn.rollback()


def test_rollback_without_prepared_statements_is_one_round_trip(postgresql: PostgreSQL, lent: Lent) -> None:
    lent.conn.execute("select 1")
    mark = postgresql.mark()
    lent.adapter.rollback(lent.conn, LIMIT)
    pid = lent.conn.info.backend_pid
    assert [s.text for s in postgresql.statements(mark) if s.session == pid] == ["ROLLBACK"]


def test_a_step_waits_no_longer_than_its_limit_for_another_thread(lent: Lent) -> None:
    with lent.conn.lock, pytest.raises(psycopg.OperationalError, match="another thread"):
        lent.adapter.ping(lent.conn, 0.05)
    lent.adapter.ping(lent.conn, LIMIT)


def test_a_step_that_ran_into_its_limit_leaves_it_closed(
    postgresql: PostgreSQL, lend: Callable[..., Lent]
) -> None:
    with FaultProxy(postgresql.address) as proxy:
        lent = lend(changed(postgresql, port=proxy.port))
        proxy.black_hole()
        began = monotonic()
        with pytest.raises(psycopg.OperationalError, match=r"ROLLBACK: no answer within 0\.3 s"):
            lent.adapter.rollback(lent.conn, 0.3)
        assert 0.3 <= monotonic() - began < 1.3
        assert lent.conn.closed
        assert lent.verdict() is Verdict.BROKEN


def test_a_large_unsent_statement_does_not_stop_the_close(
    postgresql: PostgreSQL, lend: Callable[..., Lent]
) -> None:
    with FaultProxy(postgresql.address) as proxy:
        lent = lend(changed(postgresql, port=proxy.port))
        proxy.black_hole()
        lent.conn.pgconn.send_query(b"select '" + b"x" * 16_000_000 + b"'")
        assert lent.conn.pgconn.flush() == 1
        began = monotonic()
        lent.adapter.close(lent.conn, SHORT)
        assert monotonic() - began < SOON
        assert lent.conn.closed


@pytest.mark.parametrize("autocommit", [False, True])
def test_begin_has_the_connections_characteristics(
    lend: Callable[..., Lent], adapter: PsycopgAdapter[Any], autocommit: bool
) -> None:
    lent = lend(PsycopgAdapter(adapter._conninfo, autocommit=autocommit))
    lent.conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    lent.conn.read_only = True
    lent.conn.deferrable = False
    lent.adapter.begin(lent.conn)
    assert lent.verdict() is Verdict.DIRTY
    shown = lent.conn.execute(
        "select current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
        " current_setting('transaction_deferrable')"
    ).fetchone()
    assert shown == ("repeatable read", "on", "off")
    lent.adapter.commit(lent.conn)
    assert lent.verdict() is Verdict.CLEAN


def test_begin_is_said_once(postgresql: PostgreSQL, lent: Lent) -> None:
    mark = postgresql.mark()
    lent.adapter.begin(lent.conn)
    lent.conn.execute("select 4711")
    pid = lent.conn.info.backend_pid
    said = [s.text for s in postgresql.statements(mark) if s.session == pid]
    assert said == ["BEGIN", "select 4711"]


# -- dialling


def test_what_psycopg_takes_for_itself_is_set(
    lend: Callable[..., Lent], adapter: PsycopgAdapter[Any]
) -> None:
    class Cursor(psycopg.Cursor[Any]):
        pass

    class Context:
        adapters = AdaptersMap(psycopg.adapters)
        connection = None

    Context.adapters.register_loader("int4", psycopg.types.string.TextLoader)
    lent = lend(
        PsycopgAdapter(
            adapter._conninfo,
            autocommit=True,
            prepare_threshold=None,
            row_factory=dict_row,
            cursor_factory=Cursor,
            context=Context(),
            application_name="told",
        )
    )
    assert type(lent.conn) is psycopg.Connection
    assert lent.conn.autocommit
    assert lent.conn.prepare_threshold is None
    cursor = lent.conn.execute("select 1 as a, current_setting('application_name') as b")
    assert type(cursor) is Cursor
    assert cursor.fetchall() == [{"a": "1", "b": "told"}]
    assert lent.verdict() is Verdict.CLEAN


def test_an_address_that_swallows_everything_leaves_time_for_the_next(
    postgresql: PostgreSQL, lend: Callable[..., Lent]
) -> None:
    with FaultProxy(postgresql.address) as proxy:
        proxy.black_hole()
        adapter: PsycopgAdapter[Any] = PsycopgAdapter(
            host="127.0.0.1,127.0.0.1",
            port=f"{proxy.port},{postgresql.port}",
            user=postgresql.user,
            dbname=postgresql.dbname,
        )
        began = monotonic()
        conn = adapter.connect(1.0)
        assert 0.5 <= monotonic() - began < 1.0
        assert conn.info.port == postgresql.port
        conn.close()


def test_a_dial_to_several_addresses_keeps_one_limit_and_tells_of_each(
    postgresql: PostgreSQL,
) -> None:
    with FaultProxy(postgresql.address) as proxy:
        proxy.black_hole()
        adapter: PsycopgAdapter[Any] = PsycopgAdapter(
            f"host=127.0.0.1,127.0.0.1 port={proxy.port} password={SECRET}"
        )
        began = monotonic()
        with pytest.raises(errors.ConnectionTimeout) as caught:
            adapter.connect(0.6)
        assert 0.6 <= monotonic() - began < 1.6
        assert str(caught.value).count("not connected within") == 2
        assert SECRET not in str(caught.value)


def test_the_users_own_connect_timeout_holds_if_it_is_shorter(postgresql: PostgreSQL) -> None:
    with FaultProxy(postgresql.address) as proxy:
        proxy.black_hole()
        adapter: PsycopgAdapter[Any] = PsycopgAdapter(host="127.0.0.1", port=proxy.port, connect_timeout=2)
        began = monotonic()
        with pytest.raises(errors.ConnectionTimeout):
            adapter.connect(LIMIT)
        assert 2.0 <= monotonic() - began < 4.0


def test_a_failed_dial_leaves_nothing_to_the_collector(adapter: PsycopgAdapter[Any]) -> None:
    bad: PsycopgAdapter[Any] = PsycopgAdapter(host="127.0.0.1,127.0.0.1", port=free_port(), user="nobody")
    gc.collect()
    gc.disable()
    try:
        before = {id(o) for o in gc.get_objects() if isinstance(o, psycopg.Error)}
        with pytest.raises(psycopg.OperationalError, match="no address could be connected"):
            bad.connect(LIMIT)
        left = [o for o in gc.get_objects() if isinstance(o, psycopg.Error)]
    finally:
        gc.enable()
    assert [o for o in left if id(o) not in before] == []


@pytest.mark.parametrize(
    ("what", "changes", "fault"),
    [
        ("wrong password", {"password": "wrong"}, Fault.AUTH),
        ("no password", {}, Fault.AUTH),
        ("no such database", {"password": SECRET, "dbname": "nowhere"}, Fault.AUTH),
    ],
)
def test_a_dial_that_the_server_refuses(
    guarded: PostgreSQL, what: str, changes: Mapping[str, str], fault: Fault
) -> None:
    adapter = changed(guarded, user="locked", passfile="/nowhere", **changes)
    with pytest.raises(psycopg.OperationalError) as caught:
        adapter.connect(LIMIT)
    assert adapter.fault(caught.value, dialling=True) is fault, caught.value
    assert SECRET not in str(caught.value)


def test_the_right_password_is_let_in(guarded: PostgreSQL, lend: Callable[..., Lent]) -> None:
    lent = lend(PsycopgAdapter(**guarded.params_for(user="locked"), password=SECRET))
    assert lent.conn.pgconn.used_password
    assert SECRET not in repr(lent.adapter)


def test_a_full_server_is_full(guarded: PostgreSQL) -> None:
    adapter: PsycopgAdapter[Any] = PsycopgAdapter(guarded.dsn)

    def fill(stack: contextlib.ExitStack) -> None:
        for _ in range(6):
            stack.callback(adapter.close, adapter.connect(LIMIT), SOON)

    with contextlib.ExitStack() as stack, pytest.raises(psycopg.OperationalError) as caught:
        fill(stack)
    assert adapter.fault(caught.value, dialling=True) is Fault.FULL, caught.value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("FATAL:  the database system is starting up", Fault.STARTING),
        ("FATAL:  the database system is shutting down", Fault.STARTING),
        ("FATAL:  the database system is not yet accepting connections", Fault.STARTING),
        ("FATAL:  the database system is in recovery mode", Fault.STARTING),
        ("FATAL:  sorry, too many clients already", Fault.FULL),
        ('FATAL:  too many connections for role "app"', Fault.FULL),
        ("FATAL:  no more connections allowed (max_client_conn)", Fault.FULL),
        ('FATAL:  no pg_hba.conf entry for host "::1"', Fault.AUTH),
        ("FATAL:  SASL authentication failed", Fault.AUTH),
        ('FATAL:  el rol "app" está de vacaciones', Fault.DEAD),
        ("no host: refused\n- b: FATAL:  the database system is starting up", Fault.STARTING),
    ],
)
def test_a_refusal_is_told_by_its_text(adapter: PsycopgAdapter[Any], text: str, fault: Fault) -> None:
    error = psycopg.OperationalError(f"connection failed: {text}")
    assert adapter.fault(error, dialling=True) is fault


# -- faults


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errors.AdminShutdown("x"), Fault.DEAD),
        (errors.CrashShutdown("x"), Fault.DEAD),
        (errors.CannotConnectNow("x"), Fault.STARTING),
        (errors.ConnectionFailure("x"), Fault.DEAD),
        (errors.TooManyConnections("x"), Fault.FULL),
        (errors.IdleSessionTimeout("x"), Fault.DEAD),
        (errors.ReadOnlySqlTransaction("x"), Fault.DEMOTED),
        (errors.QueryCanceled("x"), Fault.ORDINARY),
        (errors.InvalidCatalogName("x"), Fault.ORDINARY),
        (errors.PipelineAborted("x"), Fault.ORDINARY),
        (psycopg.OperationalError("the connection is closed"), Fault.DEAD),
        (psycopg.InterfaceError("the cursor is closed"), Fault.ORDINARY),
        (PsycopgPoolTimeout("another pool's"), Fault.ORDINARY),
        (OSError("a file's"), Fault.ORDINARY),
    ],
)
def test_an_error_in_use_is_told_by_its_code(
    adapter: PsycopgAdapter[Any], error: Exception, fault: Fault
) -> None:
    assert adapter.fault(error, dialling=False) is fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errors.InvalidPassword("x"), Fault.AUTH),
        (errors.InvalidCatalogName("x"), Fault.AUTH),
        (errors.ConnectionTimeout("x"), Fault.DEAD),
        (OSError("no route"), Fault.DEAD),
        (psycopg.ProgrammingError("x"), Fault.ORDINARY),
        (ValueError("x"), Fault.ORDINARY),
    ],
)
def test_an_error_while_dialling(adapter: PsycopgAdapter[Any], error: Exception, fault: Fault) -> None:
    assert adapter.fault(error, dialling=True) is fault


def test_codes_of_another_server_are_ordinary(lent: Lent) -> None:
    # What a foreign table of a dead server raises; this session lives on.
    raising = "do $$ begin raise exception 'x' using errcode = '%s'; end $$"
    for code in ("08006", "57P01", "28P01"):
        with pytest.raises(psycopg.Error) as caught:
            lent.conn.execute(raising % code)
        assert caught.value.sqlstate == code
        assert lent.adapter.fault(caught.value, dialling=False) is Fault.ORDINARY
        lent.adapter.rollback(lent.conn, LIMIT)


def test_a_write_on_a_read_only_server_is_a_demotion(lent: Lent) -> None:
    lent.conn.read_only = True
    with pytest.raises(psycopg.Error) as caught:
        lent.conn.execute("create table never ()")
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEMOTED


def test_a_session_that_its_server_ends_is_dead(lent: Lent) -> None:
    lent.conn.execute("set idle_in_transaction_session_timeout = '10ms'")
    wait_readable(lent.conn)
    with pytest.raises(psycopg.Error) as caught:  # an InternalError, if it is the result
        lent.conn.execute("select 1")
    assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD
    assert lent.verdict() is Verdict.BROKEN


# -- closing


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_thread_inside_gets_an_error_and_nobody_waits(lent: Lent, how: str) -> None:
    raised: list[BaseException] = []
    inside = threading.Event()

    def borrow() -> None:
        try:
            inside.set()
            lent.conn.execute("select pg_sleep(60)")
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=borrow, daemon=True)
    thread.start()
    assert inside.wait(SOON)
    while lent.conn.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
        thread.join(0.01)
    began = monotonic()
    if how == "close":
        lent.adapter.close(lent.conn, SHORT)
    else:
        lent.adapter.abort(lent.conn)
    thread.join(SOON)
    assert monotonic() - began < SOON
    assert isinstance(raised[0], psycopg.OperationalError)
    assert lent.adapter.fault(raised[0], dialling=False) is Fault.DEAD
    assert lent.verdict() is Verdict.BROKEN


def test_abort_frees_the_descriptor_when_nobody_is_inside(lent: Lent) -> None:
    lent.adapter.abort(lent.conn)
    assert lent.conn.closed


# -- names and secrets


def test_a_timeout_is_a_complete_driver_error() -> None:
    for kind in (PsycopgPoolTimeout, PsycopgPoolUnavailable):
        error = kind("no connection within 5 s")
        assert error.sqlstate is None
        assert error.pgconn is None
        assert error.diag.sqlstate is None
    with pytest.raises(psycopg.OperationalError):
        raise PsycopgPoolTimeout("x")
    assert issubclass(PsycopgPoolTimeout, PoolTimeout | TimeoutError)


def test_a_url_with_the_drivers_name_is_understood(postgresql: PostgreSQL) -> None:
    url = postgresql.url.replace("postgresql://", "postgresql+psycopg://")
    conn = adapter_for_url(url).connect(LIMIT)
    assert conn.info.dbname == postgresql.dbname
    conn.close()


def test_a_password_is_never_shown() -> None:
    adapters = [
        PsycopgAdapter("postgresql://me:geh%3Aeim%2F4711@db.example:5433/app"),
        PsycopgAdapter(f"host=db.example port=5433 dbname=app user=me password={SECRET}"),
        PsycopgAdapter(host="db.example", port=5433, dbname="app", user="me", password=SECRET),
    ]
    for adapter in adapters:
        assert repr(adapter) == "PsycopgAdapter('host=db.example port=5433 dbname=app user=me')"


@pytest.mark.parametrize(
    "conninfo", ["postgresql://me:geheim@[::1/app", "postgresql://me@h/app?geheim", "host=h geheim"]
)
def test_a_string_that_cannot_be_parsed_is_refused_and_not_repeated(conninfo: str) -> None:
    with pytest.raises(PoolMisuse) as caught:
        PsycopgAdapter(conninfo)
    assert "heim" not in str(caught.value)
    assert caught.value.__suppress_context__
    with pytest.raises(PoolMisuse):
        PsycopgAdapter.from_url(conninfo)


def test_a_parameter_that_libpq_does_not_know_is_refused_at_construction() -> None:
    with pytest.raises(PoolMisuse, match="pasword") as caught:
        PsycopgAdapter(pasword=SECRET)
    assert SECRET not in str(caught.value)


def test_a_callable_is_shown_by_its_name_alone() -> None:
    from functools import partial

    assert SECRET not in repr(PsycopgAdapter.around(partial(psycopg.connect, password=SECRET)))
