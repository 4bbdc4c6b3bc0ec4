"""What PyMySQL and mysqlclient have beyond PEP 249, in transaction mode."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connpool import PoolMisuse
from facade.sites import Site, SiteOf
from facade.test_transactions import MY, autocommit, one


@pytest.fixture(params=MY)
def site(request: pytest.FixtureRequest, site_of: SiteOf) -> Any:
    return site_of(request.param)


@pytest.fixture
def module(site: Site) -> Any:
    return site.manage(pooling="transaction", max_size=1, acquire_timeout=2)


@pytest.fixture
def conn(module: Any, site: Site) -> Iterator[Any]:
    conn = module.connect(**site.arguments)
    yield conn
    conn.close()


@pytest.fixture
def in_use(module: Any) -> Callable[[], int]:
    return lambda: module.pools[0].stats().in_use if module.pools else 0


def cursors_of(site: Site) -> Any:
    return __import__(f"{site.name}.cursors", fromlist=["cursors"])


def test_transaction_is_begun_and_autocommit_is_never_said(conn: Any, site: Any) -> None:
    table = site.make_table()
    one(conn, "select 1")
    conn.rollback()
    mark = site.server.mark()
    for number in (1, 2):
        conn.cursor().execute(f"insert into {table} (x) values ({number})")
        one(conn, f"select count(*) from {table}")
        conn.commit()
    autocommit(conn)
    one(conn, "select 1")
    conn.autocommit(False)
    said = [s.text.lower() for s in site.server.statements(mark) if table not in s.text]
    assert [text for text in said if "autocommit" in text] == []
    assert said.count("begin") == 2
    assert said.count("commit") == 2


def test_switching_autocommit_on_commits(conn: Any, site: Site, in_use: Any) -> None:
    table = site.make_table()
    conn.cursor().execute(f"insert into {table} (x) values (1)")
    assert in_use() == 1
    autocommit(conn)
    assert in_use() == 0
    assert conn.get_autocommit()
    assert one(conn, f"select count(*) from {table}") == 1


def test_begin_holds_in_autocommit(conn: Any, site: Site, in_use: Any) -> None:
    autocommit(conn)
    conn.begin()
    assert in_use() == 1
    first = one(conn, site.session)
    assert one(conn, site.session) == first
    conn.rollback()
    assert in_use() == 0


def test_statement_that_commits_gives_the_session_back(conn: Any, site: Site, in_use: Any) -> None:
    table = site.make_table()
    conn.cursor().execute(f"insert into {table} (x) values (1)")
    assert in_use() == 1
    conn.cursor().execute(f"alter table {table} add column z int")
    assert in_use() == 0
    conn.rollback()
    assert one(conn, f"select count(*) from {table}") == 1


def test_unbuffered_rows_hold_until_they_are_read_or_closed(conn: Any, site: Site, in_use: Any) -> None:
    autocommit(conn)
    query = "select 1 union select 2 union select 3"
    cursor = conn.cursor(cursors_of(site).SSCursor)
    cursor.execute(query)
    assert in_use() == 1
    assert tuple(cursor.fetchone()) == (1,)
    assert [tuple(row) for row in cursor.fetchall()] == [(2,), (3,)]
    assert in_use() == 0
    assert cursor.fetchone() is None
    cursor.execute(query)
    cursor.fetchone()
    assert in_use() == 1
    cursor.close()
    assert in_use() == 0
    assert one(conn, "select 5") == 5


def test_classes_of_cursors_are_the_drivers(conn: Any, site: Site) -> None:
    cursor = conn.cursor(cursors_of(site).DictCursor)
    cursor.execute("select 1 as x")
    conn.rollback()
    assert cursor.fetchone() == {"x": 1}
    assert isinstance(cursor, cursors_of(site).DictCursor)
    conn.cursorclass = cursors_of(site).DictCursor
    assert next(iter(conn.cursor().__class__.__mro__))
    cursor = conn.cursor()
    cursor.execute("select 2 as x")
    assert cursor.fetchall() in (({"x": 2},), [{"x": 2}])


def test_several_sets_of_rows_are_all_there(conn: Any, site: Any, in_use: Any) -> None:
    autocommit(conn)
    site.server.execute("create or replace procedure app.two() begin select 1; select 2; end")
    cursor = conn.cursor()
    cursor.callproc("two")
    found = [tuple(cursor.fetchone())]
    while cursor.nextset():
        if cursor.description:
            found.append(tuple(cursor.fetchone()))
    assert found == [(1,), (2,)]
    cursor.close()
    assert in_use() == 0


def test_arguments_of_a_procedure_pin(conn: Any, site: Any, in_use: Any) -> None:
    autocommit(conn)
    site.server.execute("create or replace procedure app.takes(in a int) begin select a; end")
    conn.cursor().callproc("takes", (5,))
    assert in_use() == 1
    assert one(conn, "select @_takes_0") == 5
    conn.close()


def test_encoders_belong_to_the_object(conn: Any, module: Any, site: Site) -> None:
    other = module.connect(**site.arguments)
    conn.encoders[complex] = lambda value, *rest: "'complex'"
    for _ in range(2):
        cursor = conn.cursor()
        cursor.execute("select %s", (1j,))
        assert tuple(cursor.fetchone()) == ("complex",)
        conn.rollback()
        one(other, "select 1")
        assert complex not in other.encoders
        other.rollback()


def test_what_frameworks_touch_is_there_without_a_session(conn: Any, in_use: Any, site: Site) -> None:
    assert conn.open
    conn.ping()
    assert conn.get_server_info()
    assert (conn.escape if site.name == "pymysql" else conn.literal)("it's") in ("'it\\'s'", b"'it\\'s'")
    assert isinstance(conn.encoders, dict)
    cursor = conn.cursor()
    cursor.execute("select %s", ("it's",))
    assert cursor._executed in ("select 'it\\'s'", b"select 'it\\'s'")
    conn.rollback()
    assert in_use() == 0


def test_questions_about_the_last_statement_need_its_session(conn: Any, site: Site) -> None:
    table = site.make_table()
    with pytest.raises(PoolMisuse, match="insert_id"):
        conn.insert_id()
    cursor = conn.cursor()
    cursor.execute(f"insert into {table} (x) values (1)")
    assert conn.affected_rows() == 1
    assert cursor.lastrowid is not None
    conn.rollback()
    assert cursor.rowcount == 1


def test_other_database_pins(conn: Any, site: Site, in_use: Any) -> None:
    conn.select_db(site.arguments["database"])
    assert in_use() == 1
    conn.close()
