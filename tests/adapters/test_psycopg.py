"""psycopg: the contract, plain and TLS, and what only psycopg has."""

import contextlib
import gc
import itertools
import os
import select
import socket
import sys
import threading
import timeit
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
from engine.explorer import each_bytecode
from psycopg import errors, pq
from psycopg.adapt import AdaptersMap
from psycopg.rows import dict_row, namedtuple_row
from psycopg.types.string import TextLoader
from servers import FaultProxy, PgBouncer, PostgreSQL, free_port
from servers.certificate import make_certificate
from servers.standby import Standby

from adapters.contract import LIMIT, SHORT, SOON, AdapterContract, Harness, Lent, in_forked_child
from connpool.adapter import Adapter, Fault, Verdict, adapter_for_url
from connpool.adapters import psycopg as adapters_psycopg
from connpool.adapters.psycopg import (
    PsycopgAdapter,
    PsycopgPoolTimeout,
    PsycopgPoolUnavailable,
)
from connpool.adapters.sockets import KEEPALIVE, USER_TIMEOUT
from connpool.errors import PoolMisuse, PoolTimeout
from connpool.reset import Part

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

    def refused(self) -> tuple[Adapter[Any], Mapping[str, Any]]:
        own, user = {**self.params, "user": "nobody"}, self.params["user"]
        return self.make(own), {"user": user, "password": SECRET}

    def idle_limited(self) -> tuple[Adapter[Any], float]:
        return self.make({**self.params, "options": "-c idle_session_timeout=1500ms"}), 1.5

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Do what a failover often begins with: no transaction can write any more unless it asks to."""

        def switch(alter: str, value: str) -> None:
            self.server.execute(f"alter system {alter}")
            self.server.execute("select pg_reload_conf()")
            until = monotonic() + SOON
            while self.server.execute("show default_transaction_read_only") != [(value,)]:
                assert monotonic() < until

        switch("set default_transaction_read_only = on", "on")
        try:
            yield
        finally:
            switch("reset default_transaction_read_only", "off")

    def tuned(self) -> tuple[Adapter[Any], Mapping[str, int]]:
        # The first is what the kernel has for a default: only libpq knows that it is wanted.
        tuned = {"keepalives_idle": 7200, "keepalives_interval": 25, "tcp_user_timeout": 5000}
        expected = {
            "SO_KEEPALIVE": 1,
            "TCP_KEEPIDLE": 7200,
            "TCP_KEEPINTVL": 25,
            "TCP_KEEPCNT": KEEPALIVE["TCP_KEEPCNT"],
            "TCP_USER_TIMEOUT": 5000,
        }
        return self.make({**self.params, **tuned}), expected

    def fail(self, conn: psycopg.Connection) -> None:
        with pytest.raises(errors.DivisionByZero):
            conn.execute("select 1 / 0")

    def begin_read_only(self, conn: psycopg.Connection) -> None:
        conn.read_only = True
        conn.execute("select 1")

    def leave_unread(self, conn: psycopg.Connection) -> object:
        rows = conn.cursor().stream("select generate_series(1, 10)")
        next(rows)
        return rows

    def kill(self, conn: psycopg.Connection) -> None:
        self.server.execute("select pg_terminate_backend(%s)", conn.info.backend_pid)
        wait_readable(conn)

    def slow(self, conn: psycopg.Connection) -> None:
        conn.execute("select pg_sleep(60)")

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        def put(name: str, value: object) -> Callable[[Any], object]:
            return lambda conn: setattr(conn, name, value)

        class Cursor(psycopg.ClientCursor[Any]):
            pass

        class ServerCursor(psycopg.ServerCursor[Any]):
            pass

        return {
            # First: with a handler it would not be kept.
            "notifies": notify_itself,
            "isolation_level": put("isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
            "read_only": put("read_only", False),  # until now it was the server's choice
            "deferrable": put("deferrable", True),
            "row_factory": put("row_factory", namedtuple_row),
            "cursor_factory": put("cursor_factory", Cursor),
            "server_cursor_factory": put("server_cursor_factory", ServerCursor),
            "prepare_threshold": put("prepare_threshold", 0),
            "prepared_max": put("prepared_max", 7),
            "notice handlers": lambda conn: conn.add_notice_handler(print),
            "notify handlers": lambda conn: conn.add_notify_handler(print),
            "autocommit": put("autocommit", True),
        }

    def settings(self, conn: Any) -> object:
        return (
            [
                getattr(conn, name)
                for name in self.alterations()
                if hasattr(conn, name) and name != "notifies"
            ],
            list(conn._notice_handlers),
            list(conn._notify_handlers),
            list(conn._notifies_backlog),
        )

    def change_session(self, conn: psycopg.Connection) -> None:
        for statement in (
            "set statement_timeout = '54321ms'",
            "set search_path to leak, public",
            "create temporary table leak (a integer)",
            "prepare leak as select 4711",
            "declare leak cursor with hold for select 4711",
            "select pg_advisory_lock(4711)",
            "listen leak",
        ):
            conn.execute(statement)
        conn.commit()

    def session(self, conn: psycopg.Connection) -> object:
        return self.run(
            conn,
            "select current_setting('statement_timeout'), current_setting('search_path'),"
            " (select count(*) from pg_class where relname = 'leak'),"
            " (select count(*) from pg_prepared_statements where name = 'leak'),"
            " (select count(*) from pg_cursors where name = 'leak'),"
            " (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),"
            " array(select pg_listening_channels())",
        )


def notify_itself(conn: psycopg.Connection[Any]) -> None:
    """Leave a notification behind, which psycopg has read with the answer to the COMMIT."""
    conn.execute("listen itself")
    conn.execute("notify itself, 'of the last borrower'")
    conn.commit()
    assert conn._notifies_backlog


def wait_readable(conn: psycopg.Connection) -> None:
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    assert poll.poll(SOON * 1000)


@pytest.fixture(scope="class")
def system_postgresql_database(system_postgresql: PostgreSQL) -> Iterator[str]:
    with system_postgresql.database() as database:
        yield database


class TestPlain(AdapterContract):
    @pytest.fixture
    def harness(self, postgresql: PostgreSQL, postgresql_database: str) -> Harness:
        return PsycopgHarness(postgresql, postgresql_database)


class TestTLS(AdapterContract):
    @pytest.fixture
    def harness(self, system_postgresql: PostgreSQL, system_postgresql_database: str) -> Harness:
        return PsycopgHarness(system_postgresql, system_postgresql_database)

    def test_a_bad_certificate_is_refused_for_good(self, harness: PsycopgHarness, tmp_path: Path) -> None:
        other, key = make_certificate(tmp_path)
        nowhere = str(tmp_path / "nowhere.crt")
        for what, changes in {
            "another authority's": {"sslrootcert": str(other)},
            "another host's": {"host": "elsewhere.example", "hostaddr": "127.0.0.1"},
            "no authority": {"sslrootcert": nowhere},
            "no key of ours": {"sslcert": str(other), "sslkey": nowhere},
            "no certificate in the file": {"sslcert": str(key), "sslkey": str(key)},
        }.items():
            adapter = harness.make({**harness.params, **changes})
            with pytest.raises(psycopg.OperationalError) as caught:
                adapter.connect(LIMIT)
            assert adapter.fault(caught.value, dialling=True) is Fault.AUTH, (what, caught.value)

    def test_the_users_tls_is_passed_on_untouched(self, harness: PsycopgHarness) -> None:
        adapter = harness.make({**harness.params, "host": "localhost", "ssl_min_protocol_version": "TLSv1.3"})
        conn = adapter.connect(LIMIT)
        options = {option.keyword: option.val for option in conn.pgconn.info}
        assert options[b"sslmode"] == b"verify-full"
        assert options[b"ssl_min_protocol_version"] == b"TLSv1.3"
        adapter.close(conn, SOON)

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
            lacks: Mapping[str, str] = {"credentials": "a callable finds its own"}

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


PRIVATE = (
    "_num_transactions",
    "_tpc",
    "_autocommit",
    "_isolation_level",
    "_read_only",
    "_deferrable",
    "_notice_handlers",
    "_notify_handlers",
    "_notifies_backlog",
    "_prepared",
)


def test_a_psycopg_without_the_private_state_is_judged_by_the_public_one(lent: Lent) -> None:
    for name in PRIVATE:
        delattr(lent.conn, name)
    assert lent.verdict() is Verdict.BROKEN  # in doubt
    for _ in range(2):
        lent.adopt_again()
        assert lent.verdict() is Verdict.CLEAN
    lent.conn.row_factory = dict_row
    assert lent.verdict() is Verdict.ALTERED
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    lent.conn.pgconn.exec_(b"BEGIN")
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN


@pytest.mark.parametrize("name", PRIVATE)
def test_a_psycopg_without_one_private_name_has_all_others_compared(
    lent: Lent, postgresql: PostgreSQL, name: str
) -> None:
    changes = dict(PsycopgHarness(postgresql, "").alterations())
    del changes["notifies"]  # it needs all of psycopg
    hidden = {
        "_prepared": {"prepare_threshold", "prepared_max"},
        "_notice_handlers": {"notice handlers"},
        "_notify_handlers": {"notify handlers"},
    }.get(name, {name[1:]})
    delattr(lent.conn, name)
    lent.adopt_again()
    for what, change in changes.items():
        if what not in hidden:
            change(lent.conn)
            assert lent.verdict() is Verdict.ALTERED, what
            lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
            assert lent.verdict() is Verdict.CLEAN, what


def test_a_setting_that_cannot_be_read_is_not_written_either(lent: Lent) -> None:
    class Later(psycopg.Connection[Any]):
        deferrable: Any = True  # kept elsewhere, not in `_deferrable`

    del lent.conn._deferrable
    lent.conn.__class__ = Later
    lent.adopt_again()
    lent.conn.row_factory = dict_row
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    assert lent.conn.deferrable is True


def test_a_borrower_who_closes_is_told_from_a_session_that_died(
    lent: Lent, lend: Callable[..., Lent]
) -> None:
    with lent.conn:
        lent.conn.execute("select 1")
    assert lent.verdict() is Verdict.SPENT
    dead = lend()
    dead.conn.execute("select 1")
    dead.conn.pgconn.finish()  # as libpq and psycopg leave it; its transaction is lost
    dead.conn.close()
    assert dead.verdict() is Verdict.BROKEN


def test_autocommit_is_no_proof_that_no_transaction_is_lost(
    lend: Callable[..., Lent], adapter: PsycopgAdapter[Any]
) -> None:
    lent = lend(PsycopgAdapter(adapter._conninfo, autocommit=True))
    lent.conn.execute("begin")
    lent.conn.execute("create temporary table lost ()")
    rows = lent.conn.cursor().stream("select generate_series(1, 10)")
    next(rows)
    assert lent.verdict() is Verdict.BROKEN


def test_only_synchronous_connections_are_adopted(adapter: PsycopgAdapter[Any]) -> None:
    with pytest.raises(PoolMisuse, match=r"builtins\.object"):
        adapter.adopt(object())


def test_the_time_of_a_verdict_is_told(lent: Lent) -> None:
    names = {"verdict": lent.adapter.verdict, "conn": lent.conn, "baseline": lent.baseline}
    seconds = timeit.repeat("verdict(conn, baseline)", globals=names, number=20_000, repeat=5)
    print(f"\npsycopg: {min(seconds) / 20_000 * 1e9:.0f} ns for a CLEAN verdict")


# -- settings


def test_a_setting_with_its_old_value_is_not_altered(lent: Lent) -> None:
    lent.conn.prepared_max = 1_000
    lent.conn.add_notice_handler(print)
    lent.adopt_again()
    lent.conn.prepared_max = None
    lent.conn.prepared_max = 1_000
    lent.conn.remove_notice_handler(print)
    lent.conn.add_notice_handler(print)
    assert lent.verdict() is Verdict.CLEAN


def test_restore_sends_nothing_and_forgets_the_old_begin(postgresql: PostgreSQL, lent: Lent) -> None:
    lent.conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    lent.conn.execute("select 1")
    lent.conn.rollback()
    mark = postgresql.mark()
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    lent.conn.execute("select 4711")
    pid = lent.conn.info.backend_pid
    said = [s.text for s in postgresql.statements(mark) if s.session == pid]
    assert said == ["BEGIN", "select 4711"]


def test_what_libpq_has_read_of_notifications_is_dropped_too(postgresql: PostgreSQL, lent: Lent) -> None:
    lent.conn.execute("listen news")
    lent.conn.commit()
    postgresql.execute("notify news", dbname=postgresql.dbname)
    wait_readable(lent.conn)
    lent.adapter.ping(lent.conn, LIMIT)  # libpq has it now, psycopg has not
    lent.conn.autocommit = True
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    heard: list[psycopg.Notify] = []
    lent.conn.add_notify_handler(heard.append)
    lent.conn.execute("select 1")
    assert heard == []
    assert not lent.conn._notifies_backlog


def test_restore_waits_no_longer_than_its_limit_for_another_thread(lent: Lent) -> None:
    lent.conn.autocommit = True
    with lent.conn.lock, pytest.raises(psycopg.OperationalError, match="another thread"):
        lent.adapter.restore(lent.conn, lent.baseline, 0.05)
    assert lent.verdict() is Verdict.ALTERED


# -- resets


FULL, ALL = (Part.FULL,), (Part.DISCARD_ALL,)

# What a borrower leaves, and what shows it to the next one.
LEAKS = [
    (Part.RESET_ROLE, "set role app", "select current_user"),
    (Part.RESET_ROLE, "set session authorization app", "select session_user"),
    (Part.RESET_SETTINGS, "set statement_timeout = 54321", "show statement_timeout"),
    (Part.RESET_SETTINGS, "set search_path to theirs", "show search_path"),
    (Part.RESET_SETTINGS, "set default_transaction_read_only = on", "show transaction_read_only"),
    (Part.RESET_SETTINGS, "set timezone = 'Asia/Kathmandu'", "show timezone"),
    (Part.DISCARD_TEMP, "create temporary table theirs ()", "select to_regclass('theirs')"),
    (Part.DEALLOCATE, "prepare theirs as select 1", "select name from pg_prepared_statements"),
    (Part.UNLOCK, "select pg_advisory_lock(1)", "select objid from pg_locks where locktype = 'advisory'"),
    (Part.UNLISTEN, "listen theirs", "select pg_listening_channels()"),
    (Part.CLOSE_CURSORS, "declare theirs cursor with hold for select 1", "select name from pg_cursors"),
    (Part.DISCARD_SEQUENCES, "select nextval('numbers')", "select currval('numbers')"),
]


@pytest.fixture(scope="module")
def superuser(postgresql: PostgreSQL) -> PsycopgAdapter[Any]:
    postgresql.execute("create sequence if not exists numbers")
    return PsycopgAdapter(**postgresql.params_for(user="postgres", dbname="postgres"), prepare_threshold=None)


def shown(conn: psycopg.Connection[Any], statement: str) -> object:
    try:
        return conn.execute(statement).fetchall()
    except psycopg.Error as exc:
        return type(exc)
    finally:
        conn.rollback()


@pytest.mark.parametrize("state", ["idle", "in a transaction", "failed"])
@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak[1].replace(" ", "-"))
def test_no_leak_survives_its_part_and_none_survives_all(
    lend: Callable[..., Lent], superuser: PsycopgAdapter[Any], leak: tuple[Part, str, str], state: str
) -> None:
    part, leave, show = leak
    lent = lend(superuser)
    before = shown(lent.conn, show)
    others = tuple(sorted(superuser.parts - {part, Part.FULL, Part.DISCARD_ALL}))
    for parts in ((part,), FULL, ALL, (Part.DISCARD_PLANS, part), others):
        lent.conn.execute(leave)
        lent.conn.commit()
        assert shown(lent.conn, show) != before
        if state != "idle":
            lent.conn.execute("select 1")
        if state == "failed":
            with pytest.raises(errors.DivisionByZero):
                lent.conn.execute("select 1 / 0")
        lent.reset(None, parts)
        assert lent.verdict() is Verdict.CLEAN
        assert (shown(lent.conn, show) == before) is (parts is not others), parts


@pytest.mark.parametrize("threshold", [5, 0])
def test_a_thousand_full_resets_with_automatic_preparing(
    postgresql: PostgreSQL, lend: Callable[..., Lent], threshold: int
) -> None:
    lent = lend(changed(postgresql, prepare_threshold=threshold))
    conn = lent.conn
    memory = lent.adapter.remember(conn, FULL, LIMIT)
    for cycle in range(1_000):
        conn.execute("set statement_timeout = 54321")
        conn.execute("prepare theirs as select 1")
        conn.commit()
        for number in range(7):
            assert conn.execute("select %s::int", (number,)).fetchone() == (number,)
        assert conn._prepared._names
        if cycle % 3 == 0:
            conn.commit()
        elif cycle % 3 == 1:
            with pytest.raises(errors.DivisionByZero):
                conn.execute("select 1 / 0")
        lent.reset(memory)
        assert lent.verdict() is Verdict.CLEAN
        left = conn.execute(
            "select current_setting('statement_timeout'), count(*) from pg_prepared_statements", prepare=False
        )
        assert left.fetchone() == ("0", 0)
        conn.commit()  # a rollback of psycopg's would clear its memory for us


def test_a_reset_is_one_message(postgresql: PostgreSQL, lend: Callable[..., Lent]) -> None:
    lent = lend(changed(postgresql, prepare_threshold=0))
    pid = lent.conn.info.backend_pid

    def said(parts: tuple[Part, ...]) -> list[str]:
        mark = postgresql.mark()
        lent.reset(None, parts)
        return [s.text for s in postgresql.statements(mark) if s.session == pid]

    everything = (
        "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *; "
        "SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES"
    )
    assert said(FULL) == said(ALL) == said(FULL + ALL) == ["DISCARD ALL"]
    assert said((Part.UNLISTEN, Part.CLOSE_CURSORS)) == ["UNLISTEN *; CLOSE ALL"]
    assert said((Part.CLOSE_CURSORS, Part.FULL)) == [everything]
    lent.adapter.begin(lent.conn)
    assert said(FULL) == ["ROLLBACK; " + everything]
    lent.adapter.begin(lent.conn)
    assert said((Part.UNLOCK,)) == ["ROLLBACK; SELECT pg_catalog.pg_advisory_unlock_all()"]
    lent.conn.execute("select 1")  # prepared, and the rollback may have undone what it is about
    assert said((Part.UNLISTEN,)) == ["ROLLBACK; UNLISTEN *; DEALLOCATE ALL"]


def test_what_psycopg_prepared_outlives_a_part_that_leaves_it_alone(
    postgresql: PostgreSQL, lend: Callable[..., Lent]
) -> None:
    lent = lend(changed(postgresql, prepare_threshold=0, autocommit=True))
    lent.conn.execute("select 1")
    lent.reset(None, (Part.UNLOCK,))
    assert lent.conn._prepared._names
    lent.conn.execute("select 1")
    lent.reset(None, (Part.DEALLOCATE,))
    assert not lent.conn._prepared._names
    for _ in range(3):
        lent.conn.execute("select 1")


@pytest.mark.parametrize("given", [False, True], ids=["none-at-connect", "a-context-at-connect"])
def test_adapters_are_put_back_by_a_full_reset_alone(
    postgresql: PostgreSQL, lend: Callable[..., Lent], given: bool
) -> None:
    class Given:
        adapters = AdaptersMap(psycopg.adapters)
        connection = None

    Given.adapters.register_loader("int8", TextLoader)
    lent = lend(changed(postgresql, context=Given() if given else None))
    memory = lent.adapter.remember(lent.conn, FULL, LIMIT)
    query = "select 1::int8, 1::int4"
    at_connect = ("1", 1) if given else (1, 1)
    for _ in range(2):
        lent.conn.adapters.register_loader("int4", TextLoader)
        assert lent.conn.execute(query).fetchone() == (at_connect[0], "1")
        lent.reset(None, ALL)
        assert lent.conn.execute(query).fetchone() == (at_connect[0], "1")
        lent.reset(memory)
        assert lent.conn.execute(query).fetchone() == at_connect


@pytest.mark.parametrize("parts", [FULL, ALL, (Part.UNLISTEN,)])
def test_a_notification_that_came_before_the_reset_is_nobodys(
    postgresql: PostgreSQL, lent: Lent, parts: tuple[Part, ...]
) -> None:
    heard: list[psycopg.Notify] = []
    lent.conn.add_notify_handler(heard.append)
    lent.conn.execute("listen news")
    lent.conn.commit()
    postgresql.execute("notify news", dbname=postgresql.dbname)
    wait_readable(lent.conn)
    lent.reset(None, parts)
    assert lent.verdict() is Verdict.CLEAN
    lent.conn.add_notify_handler(heard.append)
    lent.conn.execute("select 1")
    assert heard == []
    assert not lent.conn._notifies_backlog
    postgresql.execute("notify news", dbname=postgresql.dbname)
    lent.conn.execute("select 1")
    assert lent.adapter.alive(lent.conn)


@pytest.mark.parametrize("state", ["idle", "in a transaction"])
def test_the_borrower_hears_nothing_of_the_reset(lent: Lent, state: str) -> None:
    heard: list[Any] = []
    lent.conn.execute("set client_min_messages = debug5")
    lent.conn.commit()
    lent.conn.add_notice_handler(heard.append)
    if state != "idle":
        lent.conn.execute("select 1")
        assert heard
        heard.clear()
    lent.reset(None)
    assert heard == []


def test_a_reset_that_the_server_refuses_raises_and_closes(
    postgresql: PostgreSQL, postgresql_database: str, lend: Callable[..., Lent]
) -> None:
    revoke = "revoke execute on function pg_advisory_unlock_all() from public"
    postgresql.execute(revoke, dbname=postgresql_database)
    lent = lend(changed(postgresql, dbname=postgresql_database))
    token = lent.adapter.send_reset(lent.conn, lent.baseline, None, (Part.UNLOCK, Part.UNLISTEN), LIMIT)
    with pytest.raises(errors.InsufficientPrivilege):
        lent.adapter.read_reset(lent.conn, token, LIMIT)
    assert lent.verdict() is Verdict.BROKEN


def test_a_function_of_the_borrower_is_not_taken_for_the_servers(
    lend: Callable[..., Lent], superuser: PsycopgAdapter[Any]
) -> None:
    lent = lend(superuser)
    for statement in (
        "create schema theirs",
        "create function theirs.pg_advisory_unlock_all() returns void language sql as 'select 1 / 0'",
        "set search_path to theirs, pg_catalog",
        "select pg_advisory_lock(1)",
    ):
        lent.conn.execute(statement)
    lent.conn.commit()
    lent.reset(None, (Part.UNLOCK,))
    assert shown(lent.conn, "select count(*) from pg_locks where locktype = 'advisory'") == [(0,)]
    lent.conn.execute("drop schema theirs cascade")
    lent.conn.commit()


def test_a_reset_that_cannot_be_sent_keeps_its_limit(
    postgresql: PostgreSQL, lend: Callable[..., Lent]
) -> None:
    with FaultProxy(postgresql.address) as proxy:
        lent = lend(changed(postgresql, port=proxy.port))
        proxy.black_hole()
        with socket.socket(fileno=os.dup(lent.conn.fileno())) as twin, pytest.raises(BlockingIOError):
            while True:
                twin.send(bytes(65536))
        began = monotonic()
        with pytest.raises(psycopg.OperationalError, match=r"reset: no answer within 0\.3 s"):
            lent.adapter.send_reset(lent.conn, lent.baseline, None, FULL, 0.3)
        assert 0.3 <= monotonic() - began < 1.3
        assert lent.verdict() is Verdict.BROKEN


def test_a_reset_waits_no_longer_than_its_limit_for_another_thread(lent: Lent) -> None:
    with lent.conn.lock, pytest.raises(psycopg.OperationalError, match="another thread"):
        lent.adapter.send_reset(lent.conn, lent.baseline, None, FULL, 0.05)
    token = lent.adapter.send_reset(lent.conn, lent.baseline, None, FULL, LIMIT)
    with lent.conn.lock:
        began = monotonic()
        with pytest.raises(psycopg.OperationalError, match="another thread"):
            lent.adapter.read_reset(lent.conn, token, 0.05)
        assert monotonic() - began < SOON
    assert lent.verdict() is Verdict.BROKEN


class Interrupt(BaseException):
    pass


@pytest.mark.bytecode
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="bytecodes are traced on CPython 3.11")
@pytest.mark.parametrize("step", ["rollback", "send_reset", "read_reset", "restore"])
def test_what_an_interrupted_step_leaves_never_passes_as_clean_unless_it_is(
    postgresql: PostgreSQL, lend: Callable[..., Lent], step: str
) -> None:
    adapter = changed(postgresql, prepare_threshold=0)
    seen: set[Verdict] = set()
    for number in itertools.count():
        lent = lend(adapter)
        conn, memory = lent.conn, lent.adapter.remember(lent.conn, FULL, LIMIT)
        notify_itself(conn)
        conn.autocommit = True
        conn.row_factory = dict_row
        conn.adapters.register_loader("int4", TextLoader)
        conn.execute("set statement_timeout = 54321")
        if step != "restore":
            adapter.begin(conn)
        conn.execute("select 1")
        token = None
        if step == "read_reset":
            token = adapter.send_reset(conn, lent.baseline, memory, FULL, LIMIT)
        do = {
            "rollback": lambda: adapter.rollback(conn, LIMIT),  # noqa: B023 # called at once
            "restore": lambda: adapter.restore(conn, lent.baseline, LIMIT),  # noqa: B023
            "send_reset": lambda: adapter.send_reset(conn, lent.baseline, memory, FULL, LIMIT),  # noqa: B023
            "read_reset": lambda: adapter.read_reset(conn, token, LIMIT),  # noqa: B023
        }[step]
        countdown = iter(range(number))

        def strike(_: object) -> None:
            if next(countdown, None) is None:  # noqa: B023
                raise Interrupt

        struck = True
        try:
            with each_bytecode(strike):
                do()
                struck = False
        except Interrupt:
            pass
        verdict = lent.verdict()
        seen.add(verdict)
        if verdict is Verdict.DIRTY:
            assert step in ("rollback", "send_reset")
            adapter.rollback(conn, LIMIT)
            verdict = lent.verdict()
        if verdict is Verdict.ALTERED:
            adapter.restore(conn, lent.baseline, LIMIT)
            verdict = lent.verdict()
        if verdict is Verdict.CLEAN:
            assert not conn._notifies_backlog
            assert not conn.pgconn.notifies()
            for _ in range(2):  # prepared, and still there
                (value,) = conn.execute("select 1").fetchone() or ()
                conn.rollback()
            assert conn.execute("show transaction_isolation").fetchone() == ("read committed",)
            conn.rollback()
            if step == "read_reset":
                assert value == 1
                assert conn.execute("show statement_timeout").fetchone() == ("0",)
        else:
            assert verdict is Verdict.BROKEN
        adapter.close(conn, SOON)
        conn.pgconn.finish()  # close() leaves it alone if the interrupt has left the lock taken
        if not struck:
            break
    assert number > 50
    assert Verdict.BROKEN in seen


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
    assert lent.verdict() is Verdict.ALTERED


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

    Context.adapters.register_loader("int4", TextLoader)
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
    assert type(lent.conn).__mro__[1] is psycopg.Connection
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


@pytest.mark.parametrize("answer", [b"", b"S", b"N"])
def test_a_dial_keeps_its_limit_whatever_the_other_side_says_before_it_falls_silent(answer: bytes) -> None:
    kept: list[socket.socket] = []

    def serve() -> None:
        client, _ = server.accept()
        kept.append(client)
        client.recv(8)
        client.send(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        adapter: PsycopgAdapter[Any] = PsycopgAdapter(
            host="127.0.0.1", port=server.getsockname()[1], user="x", sslmode="prefer"
        )
        began = monotonic()
        with pytest.raises(errors.ConnectionTimeout):
            adapter.connect(0.3)
        assert 0.3 <= monotonic() - began < 1.3
    for client in kept:
        client.close()


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
        ("SSL error: certificate verify failed", Fault.AUTH),
        ('server certificate for "a" does not match host name "b"', Fault.AUTH),
        ("SSL error: tlsv1 alert unknown ca", Fault.AUTH),
        ("SSL error: tlsv13 alert certificate required", Fault.AUTH),
        ("FATAL:  connection requires a valid client certificate", Fault.AUTH),
        ("channel binding required, but SSL not in use", Fault.AUTH),
        ('authentication method requirement "scram-sha-256" failed: no request', Fault.AUTH),
        ("SSL error: unexpected eof while reading", Fault.DEAD),
        ("SSL SYSCALL error: EOF detected", Fault.DEAD),
        ("session is read-only", Fault.DEAD),
        ('FATAL:  el rol "app" está de vacaciones', Fault.DEAD),
        ("no host: refused\n- b: FATAL:  the database system is starting up", Fault.STARTING),
    ],
)
def test_a_refusal_is_told_by_its_text(adapter: PsycopgAdapter[Any], text: str, fault: Fault) -> None:
    error = psycopg.OperationalError(f"connection failed: {text}")
    assert adapter.fault(error, dialling=True) is fault


def test_a_server_without_tls_is_no_server_for_one_who_demands_it(postgresql: PostgreSQL) -> None:
    adapter = changed(postgresql, sslmode="require")
    with pytest.raises(psycopg.OperationalError) as caught:
        adapter.connect(LIMIT)
    assert adapter.fault(caught.value, dialling=True) is Fault.AUTH, caught.value


def test_a_name_is_resolved_anew_at_each_dial(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = ["127.0.0.1"]

    def resolve(host: str, port: int, *_: object, **__: object) -> list[Any]:
        assert host == "db.example"
        family, kind = socket.AF_INET, socket.SOCK_STREAM
        return [(family, kind, 6, "", (address, int(port))) for address in addresses]

    adapter = changed(postgresql, host="db.example")
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    conn = adapter.connect(LIMIT)
    assert conn.info.hostaddr == "127.0.0.1"
    adapter.close(conn, SOON)
    addresses[:] = ["127.0.0.2"]
    with pytest.raises(psycopg.OperationalError, match=r"127\.0\.0\.2"):
        adapter.connect(LIMIT)
    addresses[:] = ["127.0.0.2", "127.0.0.1"]
    adapter.close(adapter.connect(LIMIT), SOON)


# -- credentials


def test_a_password_comes_from_the_credentials_alone(guarded: PostgreSQL) -> None:
    params = guarded.params_for(user="locked")
    url = f"postgresql://locked:wrong@{guarded.host}:{guarded.port}/{guarded.dbname}"
    accepted = {"password": SECRET}
    for adapter in (
        PsycopgAdapter(url),
        PsycopgAdapter(**params, passfile="/nowhere"),
        PsycopgAdapter(**params, password="wrong"),
        PsycopgAdapter("password=wrong", **params, password="wronger"),
    ):
        conn = adapter.connect(LIMIT, accepted)
        assert conn.pgconn.used_password
        adapter.close(conn, SOON)
        with pytest.raises(psycopg.OperationalError) as caught:
            adapter.connect(LIMIT)
        assert adapter.fault(caught.value, dialling=True) is Fault.AUTH
        assert SECRET not in f"{adapter!r} {caught.value}"


def test_a_credential_of_none_takes_the_adapters_own_away(guarded: PostgreSQL) -> None:
    right = PsycopgAdapter(f"password={SECRET} passfile=/nowhere", **guarded.params_for(user="locked"))
    right.close(right.connect(LIMIT), SOON)
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        right.connect(LIMIT, {"password": None})


def test_credentials_that_libpq_does_not_know_are_refused_and_not_repeated(
    adapter: PsycopgAdapter[Any],
) -> None:
    with pytest.raises(PoolMisuse, match="pasword") as caught:
        adapter.connect(LIMIT, {"pasword": SECRET})
    assert SECRET not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"


# -- what the kernel watches


def tcp(conn: psycopg.Connection[Any], name: str) -> int:
    with socket.socket(fileno=os.dup(conn.fileno())) as twin:
        level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
        return twin.getsockopt(level, getattr(socket, name))


def test_keepalives_that_the_user_has_switched_off_stay_off(
    postgresql: PostgreSQL, lend: Callable[..., Lent]
) -> None:
    lent = lend(changed(postgresql, keepalives=0))
    assert tcp(lent.conn, "SO_KEEPALIVE") == 0
    assert tcp(lent.conn, "TCP_USER_TIMEOUT") == USER_TIMEOUT
    lent = lend(changed(postgresql, tcp_user_timeout=0))
    assert tcp(lent.conn, "TCP_USER_TIMEOUT") == 0
    assert tcp(lent.conn, "TCP_KEEPIDLE") == KEEPALIVE["TCP_KEEPIDLE"]


def test_a_unix_socket_is_left_alone(postgresql: PostgreSQL, lend: Callable[..., Lent]) -> None:
    lent = lend(changed(postgresql, host=str(postgresql.directory)))
    assert tcp(lent.conn, "SO_KEEPALIVE") == 0
    assert lent.verdict() is Verdict.CLEAN


# -- the server's own limit


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", None),
        ("1", 0.001),
        ("1500", 1.5),
        ("90s", 90.0),
        ("2min", 120.0),
        ("36h", 129_600.0),
        ("7d", 604_800.0),
    ],
)
@pytest.mark.parametrize("style", ["postgres", "sql_standard", "iso_8601"])
def test_an_idle_limit_is_told_in_seconds_whatever_its_unit(
    postgresql: PostgreSQL, lend: Callable[..., Lent], value: str, seconds: float | None, style: str
) -> None:
    options = f"-c idle_session_timeout=0 -c intervalstyle={style}"
    lent = lend(changed(postgresql, options=options))
    lent.conn.execute(f"set idle_session_timeout = '{value}'")  # which counts in no transaction
    assert lent.adapter.idle_limit(lent.conn, LIMIT) == seconds
    assert lent.verdict() is Verdict.DIRTY


def test_what_cannot_be_asked_is_no_limit_and_no_harm(
    lend: Callable[..., Lent], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, unknown, old = lend(), lend(), lend()
    with pytest.raises(errors.DivisionByZero):
        failed.conn.execute("select 1 / 0")
    assert failed.adapter.idle_limit(failed.conn, LIMIT) is None
    assert failed.verdict() is Verdict.FAILED
    with monkeypatch.context() as patch:
        patch.setattr(adapters_psycopg, "IDLE_LIMIT", "show no_such_setting")
        patch.setattr(adapters_psycopg, "_IS_READ_ONLY", "show no_such_setting")
        assert unknown.adapter.idle_limit(unknown.conn, LIMIT) is None
        assert unknown.adapter.writable(unknown.conn, LIMIT)
        assert unknown.verdict() is Verdict.CLEAN
    monkeypatch.setattr(adapters_psycopg, "_MODERN", 990_000)
    assert old.adapter.idle_limit(old.conn, LIMIT) is None


def test_a_question_to_a_session_that_has_ended_raises(
    postgresql: PostgreSQL, lend: Callable[..., Lent]
) -> None:
    for question in ("idle_limit", "writable"):
        lent = lend()
        postgresql.execute("select pg_terminate_backend(%s)", lent.conn.info.backend_pid)
        wait_readable(lent.conn)
        with pytest.raises(psycopg.Error) as caught:
            getattr(lent.adapter, question)(lent.conn, LIMIT)
        assert lent.adapter.fault(caught.value, dialling=False) is Fault.DEAD
        assert lent.verdict() is Verdict.BROKEN


# -- whether it can write


@pytest.fixture(scope="module", params=["wheel", "system"])
def standby(request: pytest.FixtureRequest) -> Iterator[Standby]:
    fixture = "postgresql" if request.param == "wheel" else "system_postgresql"
    with Standby(request.getfixturevalue(fixture)) as server:
        yield server


def test_a_standby_is_not_writable_until_it_is_promoted(
    standby: Standby, lend: Callable[..., Lent], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter: PsycopgAdapter[Any] = PsycopgAdapter(**standby.params)
    lent, failed = lend(adapter), lend(adapter)
    with monkeypatch.context() as patch:
        patch.setattr(adapters_psycopg, "_MODERN", 990_000)  # as of a server that reports nothing
        assert not adapter.writable(lent.conn, LIMIT)
        assert lent.verdict() is Verdict.CLEAN
    assert not adapter.writable(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    with pytest.raises(errors.ReadOnlySqlTransaction) as caught:
        failed.conn.execute("create table never ()")
    assert adapter.fault(caught.value, dialling=False) is Fault.DEMOTED
    assert not adapter.writable(failed.conn, LIMIT), "it is reported, and need not be asked"
    assert failed.verdict() is Verdict.FAILED
    lent.conn.execute("select 1")
    assert not adapter.writable(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.DIRTY
    lent.conn.rollback()
    standby.promote()
    assert adapter.writable(lent.conn, LIMIT), "what was reported at connect is out of date"
    assert lent.verdict() is Verdict.CLEAN


def test_to_ask_whether_it_can_write_takes_no_snapshot(lent: Lent) -> None:
    lent.conn.execute("show timezone")
    assert lent.adapter.writable(lent.conn, LIMIT)
    lent.conn.execute("set transaction isolation level repeatable read")  # refused after a snapshot


def test_a_session_that_its_borrower_made_read_only_is_not_to_be_lent_again(lent: Lent) -> None:
    lent.conn.execute("set default_transaction_read_only = on")
    lent.conn.commit()
    assert not lent.adapter.writable(lent.conn, LIMIT)
    with pytest.raises(errors.ReadOnlySqlTransaction):
        lent.conn.execute("create table never ()")
    assert not lent.adapter.writable(lent.conn, LIMIT)


def test_a_primary_behind_pgbouncer_is_asked_itself(
    pgbouncer: PgBouncer, postgresql_behind_pgbouncer: PostgreSQL, lend: Callable[..., Lent]
) -> None:
    adapter: PsycopgAdapter[Any] = PsycopgAdapter(**pgbouncer.params)
    lent = lend(adapter)
    assert adapter.writable(lent.conn, LIMIT)
    harness = PsycopgHarness(postgresql_behind_pgbouncer, "")
    with harness.read_only():
        until = monotonic() + SOON
        while adapter.writable(lent.conn, LIMIT):
            assert monotonic() < until
        assert lent.verdict() is Verdict.CLEAN
    assert adapter.idle_limit(lent.conn, LIMIT) is None


# -- a forked child


def test_a_child_finds_every_way_to_the_parents_session_closed(
    postgresql: PostgreSQL, lend: Callable[..., Lent]
) -> None:
    lent = lend()
    conn = lent.conn
    cursor = conn.execute("select 1")
    pid = conn.info.backend_pid
    old = conn.pgconn

    def child() -> None:
        lent.adapter.forget(conn)
        assert lent.verdict() is Verdict.BROKEN
        assert conn.closed
        assert conn.broken
        for use in (
            lambda: cursor.execute("select 1"),
            lambda: conn.execute("select 1"),
            lambda: next(cursor.stream("select 1")),
            conn.commit,
            conn.rollback,
            lambda: lent.adapter.begin(conn),
            lambda: lent.adapter.commit(conn),
            lambda: lent.adapter.idle_limit(conn, LIMIT),
            lambda: lent.adapter.writable(conn, LIMIT),
        ):
            with pytest.raises(psycopg.OperationalError):
                use()
        conn.cancel_safe(timeout=1)  # would be the parent's statement
        assert old.exec_(b"select 1").status == pq.ExecStatus.FATAL_ERROR
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            conn.close()
        fresh = Lent(lent.adapter)
        assert fresh.conn.info.backend_pid != pid
        fresh.conn.execute("select 1")
        lent.adapter.close(fresh.conn, SOON)

    assert in_forked_child(child) == ""
    assert conn.execute("select pg_backend_pid()").fetchone() == (pid,)
    conn.commit()
    assert lent.verdict() is Verdict.CLEAN


def test_a_child_does_not_wait_for_a_thread_that_it_has_not(lent: Lent) -> None:
    conn, cursor = lent.conn, lent.conn.cursor()
    pid = conn.info.backend_pid

    def child() -> None:
        lent.adapter.forget(conn)
        assert lent.verdict() is Verdict.BROKEN
        began = monotonic()
        for use in (lambda: cursor.execute("select 1"), conn.commit, conn.rollback):
            with pytest.raises(psycopg.OperationalError):
                use()
        conn.close()
        assert monotonic() - began < SOON

    result: list[Any] = []

    def borrow() -> None:
        result.append(conn.execute("select pg_sleep(2), pg_backend_pid()").fetchone())

    thread = threading.Thread(target=borrow, daemon=True)
    thread.start()
    while conn.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
        thread.join(0.01)
    assert in_forked_child(child) == ""
    assert not result, "the thread is still inside"
    thread.join(SOON)
    assert result[0][1] == pid


def test_a_parent_that_dies_is_seen_by_the_server_while_its_child_lives(
    postgresql: PostgreSQL, adapter: PsycopgAdapter[Any]
) -> None:
    """The child of a killed worker must not keep its sessions, with their locks, alive."""
    marked: PsycopgAdapter[Any] = PsycopgAdapter(adapter._conninfo, application_name="orphan")
    here, there = os.pipe()

    def parent() -> None:
        lent = Lent(marked)
        lent.conn.execute("select 1")
        if os.fork():
            select.select([here], [], [], SOON)  # the child has forgotten
            os._exit(0)  # says no goodbye
        marked.forget(lent.conn)
        os.write(there, b"forgotten")
        stop = socket.create_connection(rendezvous.getsockname())
        stop.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as rendezvous:
        rendezvous.settimeout(SOON)
        ended = threading.Thread(target=lambda: results.append(in_forked_child(parent)), daemon=True)
        results: list[str] = []
        ended.start()
        child, _ = rendezvous.accept()
        with child:
            until = monotonic() + SOON
            while postgresql.census(application_name="orphan"):
                assert monotonic() < until, "the child keeps the session alive"
            assert ended.is_alive(), "the child lives, and holds the pipe"
        ended.join(SOON)
    os.close(here)
    os.close(there)
    assert results == [""]


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
