"""What psycopg has beyond PEP 249, in transaction mode: it works, and holds the session while it must."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row, tuple_row
from psycopg.types.json import Jsonb, set_json_loads
from servers import PostgreSQL, wait_until

from connpool import PoolMisuse
from facade.sites import Site, SiteOf

pytestmark = pytest.mark.server


@pytest.fixture
def site(site_of: SiteOf) -> Site:
    return site_of("psycopg")


@pytest.fixture
def module(site: Site) -> Any:
    return site.manage(pooling="transaction", max_size=1, acquire_timeout=2)


@pytest.fixture
def conn(module: Any, site: Site) -> Any:
    return module.connect(**site.arguments, autocommit=True)


@pytest.fixture
def in_use(module: Any) -> Callable[[], int]:
    return lambda: module.pools[0].stats().in_use if module.pools else 0


def pid(conn: Any) -> Any:
    return conn.execute("select pg_backend_pid()").fetchone()[0]


def test_blocks_hold_until_the_outermost_ends(conn: Any, in_use: Any) -> None:
    with conn.transaction():
        first = pid(conn)
        with conn.transaction():
            assert pid(conn) == first
        assert in_use() == 1
        with pytest.raises(psycopg.ProgrammingError):
            conn.commit()
    assert in_use() == 0
    with pytest.raises(ZeroDivisionError), conn.transaction(), conn.transaction("inner"):
        conn.execute("select 1")
        raise ZeroDivisionError
    assert in_use() == 0
    with conn.transaction():
        raise psycopg.Rollback
    assert in_use() == 0


def test_pipeline_and_copy_hold_until_their_block_ends(conn: Any, in_use: Any, site: Site) -> None:
    table = site.make_table()
    with conn.pipeline():
        cursors = [conn.execute("select %s::int", (n,)) for n in range(3)]
        assert in_use() == 1
    assert in_use() == 0
    assert [cursor.fetchone() for cursor in cursors] == [(0,), (1,), (2,)]
    cursor = conn.cursor()
    with cursor.copy(f"copy {table} from stdin") as copy:
        copy.write_row((1, "one"))
        assert in_use() == 1
    assert in_use() == 0
    with cursor.copy(f"copy {table} to stdout") as copy:
        assert list(copy.rows()) == [("1", "one")]
    assert in_use() == 0
    with pytest.raises(psycopg.errors.UniqueViolation), cursor.copy(f"copy {table} from stdin") as copy:
        copy.write_row((1, "one"))
    assert in_use() == 0


def test_stream_holds_until_it_is_read_or_closed(conn: Any, in_use: Any) -> None:
    stream = conn.cursor().stream("select generate_series(1, 3)")
    assert next(stream) == (1,)
    assert in_use() == 1
    assert list(stream) == [(2,), (3,)]
    assert in_use() == 0
    stream = conn.cursor().stream("select generate_series(1, 3)")
    next(stream)
    stream.close()
    assert in_use() == 0


def test_named_cursor_lives_in_its_transaction(conn: Any, module: Any, in_use: Any) -> None:
    conn.autocommit = False
    cursor = conn.cursor("named")
    cursor.execute("select generate_series(1, 5)")
    assert cursor.fetchmany(2) == [(1,), (2,)]
    assert next(cursor) == (3,)
    assert in_use() == 1
    conn.commit()
    assert in_use() == 0
    with pytest.raises(psycopg.Error):
        cursor.fetchone()
    with warnings.catch_warnings(action="error"):
        cursor.close()
        del cursor
    assert pid(conn)
    conn.rollback()


def test_cursor_with_hold_keeps_the_session_until_it_is_closed(conn: Any, in_use: Any, module: Any) -> None:
    with conn.cursor("holding", withhold=True) as cursor:
        cursor.execute("select generate_series(1, 5)")
        assert in_use() == 1
        assert cursor.fetchall() == [(n,) for n in range(1, 6)]
        assert in_use() == 1
    assert in_use() == 0
    assert conn.execute("select count(*) from pg_cursors").fetchone() == (0,)
    first = pid(conn)
    cursor = conn.cursor("forgotten", withhold=True)
    cursor.execute("select 1")
    with pytest.warns(ResourceWarning):
        del cursor
    conn.execute("select 1")
    assert in_use() == 1
    conn.close()
    assert module.pools[0].stats().discards["reset"] == 1
    assert first


def test_factories_and_formats_belong_to_the_object(conn: Any, module: Any, site: Site) -> None:
    other = module.connect(**site.arguments, autocommit=True)
    conn.row_factory = dict_row
    conn.cursor_factory = psycopg.ClientCursor
    assert conn.execute("select 1 as x").fetchone() == {"x": 1}
    assert isinstance(conn.execute("select 1 as x"), psycopg.ClientCursor)
    assert other.execute("select 1 as x").fetchone() == (1,)
    assert not isinstance(other.execute("select 1 as x"), psycopg.ClientCursor)
    conn.cursor_factory = psycopg.Cursor
    cursor = conn.cursor(row_factory=tuple_row, binary=True)
    assert cursor.execute("select 1").fetchone() == (1,)
    assert cursor.format == psycopg.pq.Format.BINARY
    cursor.row_factory = dict_row
    assert cursor.execute("select 1 as y").fetchone() == {"y": 1}
    with module.pools[0].connection() as real:
        assert real.row_factory is tuple_row


def test_adapters_belong_to_the_object(conn: Any, module: Any, site: Site) -> None:
    other = module.connect(**site.arguments, autocommit=True)
    set_json_loads(lambda text: "loaded", conn)
    query = "select '{}'::jsonb"
    assert conn.execute(query).fetchone() == ("loaded",)
    assert other.execute(query).fetchone() == ({},)
    cursor = other.cursor()
    set_json_loads(lambda text: "by the cursor", cursor)
    for _ in range(2):
        other.execute("select 1")
        assert cursor.execute(query).fetchone() == ("by the cursor",)
    assert conn.execute("select %s", (Jsonb(1),)).fetchone()


def test_characteristics_of_transactions_come_along(conn: Any, module: Any) -> None:
    conn.autocommit = False
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    conn.read_only = True
    for _ in range(2):
        assert conn.execute("show transaction_isolation").fetchone() == ("serializable",)
        assert conn.execute("show transaction_read_only").fetchone() == ("on",)
        with pytest.raises(psycopg.ProgrammingError):
            conn.read_only = False
        conn.rollback()
    with module.pools[0].connection() as real:
        assert real.execute("show transaction_isolation").fetchone() == ("read committed",)
        assert real.read_only is None


def test_what_frameworks_touch_is_there_without_a_session(conn: Any, in_use: Any) -> None:
    assert conn.closed is False
    assert conn.broken is False
    assert conn.info.server_version >= 130000
    assert conn.info.parameter_status("TimeZone")
    assert conn.pgconn.error_message is not None
    assert conn.adapters.get_loader(23, psycopg.pq.Format.TEXT)
    assert in_use() == 0
    quoted = sql.SQL("select {} as {}").format(sql.Literal("it's"), sql.Identifier("x"))
    assert quoted.as_string(conn) == "select 'it''s' as \"x\""
    assert conn.execute(quoted).fetchone() == ("it's",)
    with conn.cursor() as cursor:
        assert psycopg.ClientCursor(cursor.connection).mogrify("select %s", ["it's"]) == "select 'it''s'"
    assert isinstance(conn, psycopg.Connection)
    assert in_use() == 0


def test_results_keep_their_shape(conn: Any) -> None:
    cursor = conn.execute("select 1 as a; select 2 as b, 3 as c")
    conn.execute("select 4")
    assert cursor.fetchall() == [(1,)]
    assert cursor.nextset()
    assert [column.name for column in cursor.description] == ["b", "c"]
    assert cursor.fetchone() == (2, 3)
    assert not cursor.nextset()
    assert [result.fetchall() for result in cursor.set_result(0).results()] == [[(1,)], [(2, 3)]]
    cursor.executemany("select %s::int", [(1,), (2,)], returning=True)
    assert [result.fetchone() for result in cursor.results()] == [(1,), (2,)]
    cursor.execute("select generate_series(1, 4)")
    cursor.scroll(2)
    assert (cursor.rownumber, cursor.fetchone(), cursor.statusmessage) == (2, (3,), "SELECT 4")


def test_handlers_and_notifications_pin(conn: Any, in_use: Any) -> None:
    heard: list[str] = []
    conn.add_notify_handler(lambda note: heard.append(note.payload))
    assert in_use() == 1
    conn.execute("listen news")
    conn.execute("notify news, 'hello'")
    conn.execute("select 1")
    assert heard == ["hello"]
    conn.close()


def test_cancel_ends_the_statement_and_the_session(conn: Any, in_use: Any, postgresql: PostgreSQL) -> None:
    before = pid(conn)

    def cancel() -> None:
        wait_until(lambda: any("pg_sleep(10)" in session.query for session in postgresql.census()))
        conn.cancel_safe()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute("select pg_sleep(10)")
    thread.join()
    assert in_use() == 0
    assert pid(conn) != before
    conn.cancel()  # nothing runs


def test_plans_that_somebody_has_outdated_fail_once(conn: Any, site: Site) -> None:
    table = site.make_table()
    for _ in range(7):
        conn.execute(f"select * from {table}")
    site.run(f"alter table {table} add column z int")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        conn.execute(f"select * from {table}")
    assert len(conn.execute(f"select * from {table}").description) == 3


def test_two_phases_keep_their_session(conn: Any, in_use: Any, module: Any) -> None:
    conn.autocommit = False
    xid = conn.xid(1, "facade", "x")
    assert in_use() == 0
    conn.tpc_begin(xid)
    assert in_use() == 1
    conn.execute("select 1")
    conn.tpc_rollback()
    assert in_use() == 0


def test_statement_mode_refuses_blocks(site: Site) -> None:
    conn = site.manage(pooling="statement").connect(**site.arguments)
    with pytest.raises(PoolMisuse, match="statement"), conn.transaction():
        pass
    assert conn.execute("select 1").fetchone() == (1,)


def test_attribute_that_is_a_sessions_is_not_set_in_vain(conn: Any) -> None:
    conn.execute("select 1")
    with pytest.raises(PoolMisuse, match="pgconn"):
        conn.pgconn = None
    conn.of_mine = 7
    assert conn.of_mine == 7
    with pytest.raises(AttributeError):
        conn.nobodys  # noqa: B018


def test_threads_share_one_object_as_with_the_driver(conn: Any, in_use: Any) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        rows = [conn.execute("select %s::int", (number,)).fetchone() for _ in range(50)]
        wrong.extend(row for row in rows if row != (number,))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert in_use() == 0
