"""asyncpg: the contract, and what only asyncpg has."""

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import asyncpg
import pytest
from servers import PostgreSQL, free_port

from adapters.async_contract import AsyncAdapterContract, AsyncHarness, Blocking, run
from adapters.contract import FULL, LIMIT, SOON, Lent
from adapters.test_psycopg import SECRET, PsycopgHarness
from connpool.adapter import Adapter, Fault, Verdict
from connpool.adapters.asyncpg import AsyncpgAdapter
from connpool.adapters.sockets import KEEPALIVE, ready
from connpool.errors import PoolMisuse

pytestmark = pytest.mark.server


class Connection(Blocking):
    """With the face of a DB-API connection, as far as the contract uses it."""

    def commit(self) -> None:
        run(self.real.execute("COMMIT"))


class AsyncpgHarness(AsyncHarness, PsycopgHarness):
    """A transaction is begun before the first statement, as a DB-API driver does, unless in autocommit."""

    operational_error = asyncpg.PostgresConnectionError
    connection = Connection
    wrong: Mapping[str, Any] = {"user": "nobody_at_all", "password": "ver:legt/0815"}
    census = "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"

    def __init__(self, server: PostgreSQL, database: str) -> None:
        super().__init__(server, database)
        self.params["database"] = self.params.pop("dbname")

    def aadapter(self) -> AsyncpgAdapter[Any]:
        return AsyncpgAdapter(**self.params)

    async def aconnect(self) -> asyncpg.Connection:
        return await asyncpg.connect(**self.params)

    def make(self, params: Mapping[str, Any]) -> Any:
        return self.block(AsyncpgAdapter(**params))

    def url(self) -> str:
        return self.server.url_for(dbname=self.params["database"]).replace("://", "+asyncpg://")

    def bad_dials(self) -> Mapping[str, tuple[Adapter[Any], frozenset[Fault]]]:
        return {
            "no such database": (self.make({**self.params, "database": "nowhere"}), frozenset({Fault.AUTH})),
            "no such role": (self.make({**self.params, "user": "nobody"}), frozenset({Fault.AUTH})),
            "nobody listens": (self.make({**self.params, "port": free_port()}), frozenset({Fault.DEAD})),
        }

    def idle_limited(self) -> tuple[Adapter[Any], float]:
        settings = {"idle_session_timeout": "1500ms"}
        return self.make({**self.params, "server_settings": settings}), 1.5

    def tuned(self) -> tuple[Adapter[Any], Mapping[str, int]]:
        # asyncpg has no parameters for them.
        async def connect() -> asyncpg.Connection:
            conn = await self.aconnect()
            tcp = conn._transport.get_extra_info("socket")
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 33)
            return conn

        expected = {"TCP_KEEPIDLE": 33, "TCP_KEEPCNT": KEEPALIVE["TCP_KEEPCNT"]}
        return self.block(AsyncpgAdapter.around(connect)), expected

    def fileno(self, conn: Any) -> int:
        fileno: int = conn._transport.get_extra_info("socket").fileno()
        return fileno

    # -- statements

    async def arun(self, conn: asyncpg.Connection, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await conn.fetch(statement)]

    async def aslow(self, conn: asyncpg.Connection) -> None:
        await conn.execute("select pg_sleep(60)")

    async def acommit(self, conn: asyncpg.Connection) -> None:
        await conn.execute("COMMIT")

    def run(self, conn: Any, statement: str) -> list[tuple[Any, ...]]:
        if statement != "BEGIN" and not conn.__dict__.get("autocommits") and not conn.is_in_transaction():
            run(conn.real.execute("BEGIN"))
        return super().run(conn, statement)

    def set_autocommit(self, conn: Any) -> None:
        conn.__dict__["autocommits"] = True

    def fail(self, conn: Any) -> None:
        with pytest.raises(asyncpg.DivisionByZeroError):
            conn.fetch("select 1 / 0")

    def begin_read_only(self, conn: Any) -> None:
        conn.execute("BEGIN READ ONLY")

    def leave_unread(self, conn: Any) -> object:
        async def fetch_some() -> object:
            await conn.real.transaction().start()
            cursor = await conn.real.cursor("select generate_series(1, 10)")
            await cursor.fetch(3)
            return cursor

        return run(fetch_some())

    def kill(self, conn: Any) -> None:
        self.server.execute("select pg_terminate_backend(%s)", conn.get_server_pid())
        assert not conn._protocol.is_connected() or ready(self.fileno(conn), SOON)

    # -- settings

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        def listener(*_: object) -> None:
            pass

        return {
            "listeners": lambda conn: conn.add_listener("leak", listener),
            "log listeners": lambda conn: conn.add_log_listener(listener),
            "query loggers": lambda conn: conn.add_query_logger(listener),
            "termination listeners": lambda conn: conn.add_termination_listener(listener),
            "an abandoned block": lambda conn: setattr(conn.real, "_top_xact", conn.real.transaction()),
        }

    def settings(self, conn: Any) -> object:
        real = conn.real
        kept = ("_log_listeners", "_query_loggers", "_termination_listeners")
        return (
            {name: set(one) for name, one in real._listeners.items()},
            *(set(getattr(real, name)) for name in kept),
            real._top_xact,
        )

    def change_session(self, conn: Any) -> None:
        for statement in (
            "set statement_timeout = '54321ms'",
            "set search_path to leak, public",
            "create temporary table leak (a integer)",
            "prepare leak as select 4711",
            "declare leak cursor with hold for select 4711",
            "select pg_advisory_lock(4711)",
            "listen leak",
        ):
            self.run(conn, statement)
        conn.commit()


class TestPlain(AsyncAdapterContract):
    @pytest.fixture
    def harness(self, postgresql: PostgreSQL, postgresql_database: str) -> AsyncHarness:
        return AsyncpgHarness(postgresql, postgresql_database)


# -- what only asyncpg has ---------------------------------------------------------------------------


@pytest.fixture
def harness(postgresql: PostgreSQL) -> AsyncpgHarness:
    return AsyncpgHarness(postgresql, postgresql.dbname)


@pytest.fixture
def lent(harness: AsyncpgHarness) -> Iterator[Lent]:
    lent = Lent(harness.adapter())
    yield lent
    lent.adapter.close(lent.conn, SOON)


def test_a_coroutine_that_was_closed_by_hand_leaves_it_broken(lent: Lent) -> None:
    """asyncpg itself shows nothing of it: neither in a transaction, nor cancelling."""

    async def close_half_way() -> None:
        coro = lent.conn.real.execute("select pg_sleep(5)")
        coro.send(None)
        coro.close()
        assert not lent.conn.real._protocol._is_cancelling()
        assert lent.verdict() is Verdict.BROKEN

    run(close_half_way())


def test_a_statement_that_timed_out_is_broken_until_the_next_has_waited_for_it(lent: Lent) -> None:
    with pytest.raises(TimeoutError):
        lent.conn.execute("select pg_sleep(60)", timeout=0.05)
    assert lent.verdict() is Verdict.BROKEN
    assert lent.conn.fetchval("select 4711") == 4711
    assert lent.verdict() is Verdict.CLEAN


def test_a_failed_transaction_that_went_back_to_a_savepoint_is_dirty(lent: Lent) -> None:
    for statement in ("begin", "savepoint here"):
        lent.conn.execute(statement)
    for execute in (lent.conn.execute, lent.conn.fetch):
        with pytest.raises(asyncpg.UndefinedTableError):
            execute("select * from nowhere")
        assert lent.verdict() is Verdict.FAILED
        lent.conn.execute("rollback to here")
        assert lent.verdict() is Verdict.DIRTY
    with pytest.raises(asyncpg.UndefinedTableError):
        lent.conn.fetch("select * from nowhere")
    lent.conn.fetch("rollback")
    assert lent.verdict() is Verdict.CLEAN
    lent.conn.execute("begin")
    assert lent.verdict() is Verdict.DIRTY


def test_the_commit_of_a_failed_transaction_is_an_error(lent: Lent) -> None:
    lent.adapter.begin(lent.conn)
    with pytest.raises(asyncpg.UndefinedTableError):
        lent.conn.execute("select * from nowhere")
    with pytest.raises(asyncpg.InFailedSQLTransactionError, match="rolled it back"):
        lent.adapter.commit(lent.conn)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_block_inside_the_adapters_transaction_is_a_savepoint_and_none_is_left(
    lent: Lent, ending: str
) -> None:
    async def nest() -> str:
        async with lent.conn.real.transaction():
            return await lent.conn.real.fetchval("select 'in it'")

    lent.adapter.begin(lent.conn)
    assert run(nest()) == "in it"
    assert lent.verdict() is Verdict.DIRTY
    if ending == "commit":
        lent.adapter.commit(lent.conn)
    else:
        lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    assert run(nest()) == "in it"
    assert lent.verdict() is Verdict.CLEAN


def test_who_sets_a_type_codec_spends_the_connection_unless_it_was_in_on_connect(lent: Lent) -> None:
    def set_codec() -> None:
        lent.conn.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=str)

    set_codec()
    lent.adopt_again()
    assert lent.verdict() is Verdict.CLEAN
    lent.conn.execute("begin")
    set_codec()
    assert lent.verdict() is Verdict.DIRTY, "a transaction is not to be lost without a word"
    lent.adapter.rollback(lent.conn, LIMIT)
    assert lent.verdict() is Verdict.SPENT


def test_a_reset_leaves_no_prepared_statement_that_the_server_has_forgotten(lent: Lent) -> None:
    for _ in range(2):
        assert lent.conn.fetchval("select $1::int + 1", 1) == 2
        lent.reset(None, FULL)
    lent.conn.execute("begin")
    lent.reset(None, FULL)
    assert lent.conn.fetchval("select $1::int + 1", 1) == 2


def test_a_reset_listens_again_to_what_on_connect_listened_to(lent: Lent) -> None:
    heard = asyncio.Event()

    async def listen() -> None:
        await lent.conn.real.add_listener("news", lambda *_: heard.set())

    async def hear() -> None:
        await asyncio.wait_for(heard.wait(), SOON)

    run(listen())
    lent.adopt_again()
    lent.reset(None, FULL)
    assert lent.verdict() is Verdict.CLEAN
    lent.conn.execute("notify news")
    run(hear())


def test_what_asyncpgs_own_pool_lends_is_refused(harness: AsyncpgHarness) -> None:
    async def lend_by_asyncpg() -> None:
        async with asyncpg.create_pool(**harness.params, min_size=1, max_size=1) as pool:
            async with pool.acquire() as conn:
                with pytest.raises(PoolMisuse, match="not an asyncpg.Connection"):
                    harness.aadapter().adopt(conn)

    run(lend_by_asyncpg())


def test_an_unknown_parameter_is_refused_at_construction() -> None:
    with pytest.raises(PoolMisuse, match="pasword") as caught:
        AsyncpgAdapter(pasword=SECRET)
    assert SECRET not in str(caught.value)


def test_a_password_is_never_shown() -> None:
    for adapter in (
        AsyncpgAdapter("postgresql://me:geh%3Aeim%2F4711@db.example:5433/app?password=geh%3Aeim%2F4711"),
        AsyncpgAdapter(host="db.example", port=5433, database="app", user="me", password=SECRET),
    ):
        assert repr(adapter) == "AsyncpgAdapter('host=db.example port=5433 database=app user=me')"


@pytest.mark.parametrize(
    ("error", "dialling", "fault"),
    [
        (asyncpg.AdminShutdownError("x"), False, Fault.DEAD),
        (asyncpg.ConnectionDoesNotExistError("x"), False, Fault.DEAD),
        (asyncpg.InterfaceError("connection is closed"), False, Fault.DEAD),
        (asyncpg.InterfaceError("another operation is in progress"), False, Fault.ORDINARY),
        (asyncpg.ReadOnlySQLTransactionError("x"), False, Fault.DEMOTED),
        (asyncpg.QueryCanceledError("x"), False, Fault.ORDINARY),
        (TimeoutError(), False, Fault.ORDINARY),
        (TimeoutError(), True, Fault.DEAD),
        (asyncpg.TooManyConnectionsError("x"), True, Fault.FULL),
        (asyncpg.CannotConnectNowError("x"), True, Fault.STARTING),
        (asyncpg.InvalidPasswordError("x"), True, Fault.AUTH),
        (asyncpg.ClientConfigurationError("x"), True, Fault.ORDINARY),
    ],
)
def test_an_error_is_told_by_its_code(error: Exception, dialling: bool, fault: Fault) -> None:
    assert AsyncpgAdapter().fault(error, dialling=dialling) is fault


@pytest.mark.parametrize("where", ["in its loop", "in another thread", "when its loop is closed"])
def test_abort_ends_a_session_with_tls_wherever_it_is_called(
    system_postgresql: PostgreSQL, where: str
) -> None:
    class Harness(AsyncpgHarness):
        def __init__(self) -> None:
            super().__init__(system_postgresql, system_postgresql.dbname)
            self.params = {"dsn": system_postgresql.url_for(dbname=system_postgresql.dbname)}

    harness = Harness()
    lent = Lent(harness.adapter())
    try:
        assert lent.conn.real._protocol.is_ssl
        AsyncAdapterContract().test_abort_ends_the_session_wherever_it_is_called(harness, lent, where)
    finally:
        lent.adapter.close(lent.conn, SOON)
