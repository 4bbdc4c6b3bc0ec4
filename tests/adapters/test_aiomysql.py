"""aiomysql: the contract, and what only aiomysql has."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any

import aiomysql
import pymysql
import pytest
from servers import MariaDB, free_port

from adapters.async_contract import AsyncAdapterContract, AsyncHarness, Unread, run
from adapters.contract import LIMIT, SOON, Lent
from adapters.test_pymysql import SECRET, PyMySQLHarness
from connpool.adapter import Adapter, Fault, Verdict
from connpool.adapters.aiomysql import AiomysqlAdapter
from connpool.adapters.sockets import KEEPALIVE, ready
from connpool.errors import PoolMisuse

pytestmark = pytest.mark.server


class AiomysqlHarness(AsyncHarness, PyMySQLHarness):
    census = "select id from information_schema.processlist where db = database() and id <> connection_id()"

    def __init__(self, server: MariaDB, database: str) -> None:
        super().__init__(server, database)
        self.params["db"] = self.params.pop("database")

    def make(self, params: Mapping[str, Any]) -> Any:
        return self.block(AiomysqlAdapter(**params))

    def aadapter(self) -> AiomysqlAdapter[Any]:
        return AiomysqlAdapter(**self.params)

    async def aconnect(self) -> aiomysql.Connection:
        return await aiomysql.connect(**self.params)

    def url(self) -> str:
        return self.server.url_for(database=self.params["db"])

    def bad_dials(self) -> Mapping[str, tuple[Adapter[Any], frozenset[Fault]]]:
        def bad(**changes: Any) -> Adapter[Any]:
            return self.make({**self.params, **changes})

        return {
            "wrong password": (bad(password="wrong"), frozenset({Fault.AUTH})),
            "no such database": (bad(db="nowhere"), frozenset({Fault.AUTH})),
            "no such user": (bad(user="nobody"), frozenset({Fault.AUTH})),
            "nobody listens": (bad(port=free_port()), frozenset({Fault.DEAD})),
        }

    def tuned(self) -> tuple[Adapter[Any], Mapping[str, int]]:
        async def connect() -> aiomysql.Connection:  # there is no parameter for it
            conn = await self.aconnect()
            tcp = conn._writer.transport.get_extra_info("socket")
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 700)
            return conn

        expected = {"TCP_KEEPIDLE": 700, "TCP_KEEPCNT": KEEPALIVE["TCP_KEEPCNT"]}
        return self.block(AiomysqlAdapter.around(connect)), expected

    def fileno(self, conn: Any) -> int:
        fileno: int = conn._writer.transport.get_extra_info("socket").fileno()
        return fileno

    async def arun(self, conn: aiomysql.Connection, statement: str) -> list[tuple[Any, ...]]:
        cursor = await conn.cursor(aiomysql.Cursor)
        await cursor.execute(statement)
        rows = [tuple(row) for row in await cursor.fetchall()] if cursor.description else []
        await cursor.close()
        return rows

    def run(self, conn: Any, statement: str) -> list[tuple[Any, ...]]:
        return run(self.arun(conn.real, statement))

    async def aslow(self, conn: aiomysql.Connection) -> None:
        await self.arun(conn, "select sleep(60)")

    def leave_unread(self, conn: Any) -> object:
        async def rows() -> AsyncGenerator[Any, None]:
            cursor = await conn.real.cursor(aiomysql.SSCursor)
            await cursor.execute("select seq from seq_1_to_10")
            while row := await cursor.fetchone():
                yield row

        return Unread(rows())

    def kill(self, conn: Any) -> None:
        fileno = self.fileno(conn)
        self.server.execute(f"kill connection {conn.thread_id()}")
        while not (conn.real._reader._eof or conn.real._reader._buffer):
            if ready(fileno, 0.01):
                break

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        # What is sent is followed by a COMMIT: that the connection is altered shows when it is at rest.
        return {
            "autocommit": lambda conn: (conn.autocommit(True), conn.commit()),
            "character set": lambda conn: (conn.set_charset("latin1"), conn.commit()),
            "cursorclass": lambda conn: setattr(conn, "cursorclass", aiomysql.DictCursor),
        }

    def settings(self, conn: Any) -> object:
        return (
            conn.get_autocommit(),
            conn.autocommit_mode,
            (conn.charset, conn.encoding),
            conn.real.cursorclass,
        )

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
            self.run(conn, statement)
        conn.commit()

    def session(self, conn: Any) -> object:
        found: list[object] = [
            *self.run(
                conn,
                "select database(), @@autocommit, @x, @@sql_mode, @@time_zone, @@group_concat_max_len,"
                " @@tx_isolation, @@character_set_client, @@character_set_results, @@collation_connection,"
                " is_used_lock(concat('connpool', connection_id()))",
            )
        ]
        for statement in ("select * from leak", "execute leak"):
            try:
                found.append(self.run(conn, statement))
            except pymysql.Error as error:
                found.append(error.args[0])
        return found


class TestPlain(AsyncAdapterContract):
    @pytest.fixture
    def harness(self, mariadb: MariaDB, mariadb_database: str) -> AsyncHarness:
        return AiomysqlHarness(mariadb, mariadb_database)


# -- what only aiomysql has --------------------------------------------------------------------------


@pytest.fixture
def lend(mariadb: MariaDB) -> Iterator[Callable[..., Lent]]:
    all_lent: list[Lent] = []

    def lend(**params: Any) -> Lent:
        harness = AiomysqlHarness(mariadb, mariadb.params["database"])
        all_lent.append(Lent(harness.make({**harness.params, **params})))
        return all_lent[-1]

    yield lend
    for lent in all_lent:
        lent.adapter.close(lent.conn, SOON)


@pytest.fixture
def lent(lend: Callable[..., Lent]) -> Lent:
    return lend()


def query(lent: Lent, statement: str) -> list[tuple[Any, ...]]:
    async def execute() -> list[tuple[Any, ...]]:
        cursor = await lent.conn.real.cursor()
        await cursor.execute(statement)
        return list(await cursor.fetchall())

    return run(execute())


def test_a_select_without_autocommit_is_dirty_although_no_flag_shows_it(lent: Lent) -> None:
    assert query(lent, "select 1 from information_schema.schemata limit 1") == [(1,)]
    assert not lent.conn.get_transaction_status()
    assert lent.verdict() is Verdict.DIRTY


def test_a_coroutine_that_was_closed_by_hand_is_never_answered_to_the_next(lent: Lent) -> None:
    async def close_half_way() -> None:
        coro = lent.conn.real.query("select 815")
        coro.send(None)
        coro.close()
        assert lent.verdict() is Verdict.BROKEN
        with pytest.raises(pymysql.err.OperationalError, match="has not been read"):
            await lent.conn.real.query("select 4711")

    run(close_half_way())
    assert lent.conn.closed
    assert lent.verdict() is Verdict.BROKEN


def test_a_second_task_inside_never_gets_the_first_ones_answer(lent: Lent) -> None:
    async def both() -> list[Any]:
        first = asyncio.ensure_future(lent.conn.real.query("select sleep(0.2)"))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(lent.conn.real.query("select 4711"))
        return await asyncio.gather(first, second, return_exceptions=True)

    assert all(isinstance(result, pymysql.err.OperationalError) for result in run(both()))


def test_the_borrowers_close_is_told_from_a_lost_transaction(lend: Callable[..., Lent]) -> None:
    closed, cancelled = lend(), lend()
    query(closed, "select 1")
    closed.conn.close()
    assert closed.verdict() is Verdict.SPENT

    async def cancel() -> None:
        await cancelled.conn.real.begin()
        task = asyncio.ensure_future(cancelled.conn.real.query("select sleep(60)"))
        await asyncio.wait([task], timeout=0.05)
        task.cancel()
        await asyncio.wait([task])

    run(cancel())
    assert cancelled.conn.closed
    assert cancelled.verdict() is Verdict.BROKEN


def test_what_the_loop_has_read_already_is_seen(lent: Lent) -> None:
    assert lent.adapter.alive(lent.conn)

    async def receive() -> None:
        lent.conn.real._reader.feed_data(b"unasked")

    run(receive())
    assert not lent.adapter.alive(lent.conn)


def test_a_procedure_that_begins_and_fails_is_dirty_with_autocommit(lent: Lent) -> None:
    conn = lent.conn
    conn.autocommit(True)
    conn.commit()
    lent.adopt_again()
    query(lent, "create or replace procedure p() begin start transaction; signal sqlstate '45000'; end")
    conn.commit()
    assert lent.verdict() is Verdict.CLEAN
    with pytest.raises(pymysql.err.MySQLError):
        query(lent, "call p()")
    assert lent.verdict() is Verdict.DIRTY
    assert query(lent, "select 1") == [(1,)]
    assert lent.verdict() is Verdict.DIRTY, "the flags behind the rows say so"
    lent.adapter.rollback(conn, LIMIT)
    assert lent.verdict() is Verdict.CLEAN


def test_an_autocommit_that_init_connect_has_switched_off_is_not_believed_in(
    mariadb: MariaDB, lend: Callable[..., Lent]
) -> None:
    """The flags of the greeting say that it is on, and aiomysql sends nothing then."""
    mariadb.execute("create or replace user plain identified by 'plain'")
    mariadb.execute("grant all on *.* to plain")
    mariadb.execute("revoke super on *.* from plain")  # it would be spared the init_connect
    mariadb.execute("revoke connection admin on *.* from plain")
    mariadb.execute("set global init_connect = 'set autocommit = 0'")
    try:
        lent = lend(user="plain", password="plain", autocommit=True)
    finally:
        mariadb.execute("set global init_connect = ''")
    assert query(lent, "select @@autocommit") == [(0,)]
    assert lent.verdict() is not Verdict.CLEAN


def test_an_unknown_parameter_is_refused_at_construction() -> None:
    with pytest.raises(PoolMisuse, match="pasword") as caught:
        AiomysqlAdapter(pasword=SECRET)
    assert SECRET not in str(caught.value)


def test_a_password_is_never_shown() -> None:
    for adapter in (
        AiomysqlAdapter.from_url("mysql+aiomysql://me:geh%3Aeim%2F4711@db.example:3307/app"),
        AiomysqlAdapter(host="db.example", port=3307, user="me", password=SECRET, db="app"),
    ):
        assert repr(adapter) == "AiomysqlAdapter(host='db.example', port=3307, user='me', db='app')"


@pytest.mark.parametrize(
    "error",
    [
        aiomysql.InterfaceError("(0, 'Not connected')"),
        aiomysql.InterfaceError("Cancelled during execution"),
        aiomysql.OperationalError(2013, "Lost connection to MySQL server during query"),
        aiomysql.InternalError("Packet sequence number wrong - got 2 expected 1"),
    ],
)
def test_what_aiomysql_says_of_a_connection_that_is_gone_is_dead(error: Exception) -> None:
    assert AiomysqlAdapter().fault(error, dialling=False) is Fault.DEAD


@pytest.fixture(scope="module")
def tls_mariadb() -> Iterator[MariaDB]:
    with MariaDB(tls=True) as server:
        yield server


def tls_harness(server: MariaDB) -> AiomysqlHarness:
    params = dict(server.params)
    context = ssl.create_default_context(cafile=params.pop("ssl_ca"))
    context.check_hostname = False
    harness = AiomysqlHarness(server, params["database"])
    harness.params = {name: value for name, value in harness.params.items() if not name.startswith("ssl")}
    harness.params["ssl"] = context
    return harness


@pytest.mark.parametrize("where", ["in its loop", "in another thread", "when its loop is closed"])
def test_abort_ends_a_session_with_tls_wherever_it_is_called(tls_mariadb: MariaDB, where: str) -> None:
    harness = tls_harness(tls_mariadb)
    lent = Lent(harness.adapter())
    try:
        assert lent.conn.real._writer.transport.get_extra_info("ssl_object")
        AsyncAdapterContract().test_abort_ends_the_session_wherever_it_is_called(harness, lent, where)
    finally:
        lent.adapter.close(lent.conn, SOON)


def test_a_certificate_that_cannot_be_verified_is_refused_for_good(tls_mariadb: MariaDB) -> None:
    harness = tls_harness(tls_mariadb)
    adapter = harness.make({**harness.params, "ssl": ssl.create_default_context()})
    with pytest.raises(pymysql.err.OperationalError) as caught:
        adapter.connect(LIMIT)
    assert adapter.fault(caught.value, dialling=True) is Fault.AUTH
