"""What a session would keep for the next one: each pins the session, or is refused, and nobody sees it."""

from collections.abc import Iterator
from typing import Any

import pytest

from connpool import PoolMisuse
from connpool.events import Event
from facade.sites import Site, SiteOf
from facade.test_transactions import MY, PG, SERVERS, autocommit, one, pooled

POSTGRESQL = [
    "set work_mem = '3MB'",
    "set session characteristics as transaction read only",
    "set role none",
    "set session authorization default",
    "select set_config('work_mem', '3MB', false)",
    "listen news",
    "prepare plan as select 1",
    "create temp table leak (x int)",
    "create temporary table leak on commit delete rows as select 1",
    "select 1 as x into temp leak",
    "load 'auto_explain'",
    "select pg_advisory_lock(7)",
    "select pg_try_advisory_lock_shared(7)",
    "begin; declare leak cursor with hold for select 1; commit",
]
MYSQL = [
    "set @leak = 1",
    "set session sort_buffer_size = 100000",
    "set sql_mode = ''",
    "set names latin1",
    "create temporary table leak (x int)",
    "select get_lock('leak', 1)",
    "lock tables {table} read",
    "prepare plan from 'select 1'",
    "use {database}",
    "select 1 into @leak",
]
ASKS = {
    "psycopg": ["select lastval()", "select currval('x')"],
    "mysql": ["select last_insert_id()", "select found_rows()", "show warnings", "select row_count()"],
}


@pytest.fixture
def site(request: pytest.FixtureRequest, site_of: SiteOf) -> Iterator[Site]:
    site = site_of(request.param)
    if not site.name.startswith("psycopg"):
        site.make_table()
    return site


def leaks_of(site: Site) -> list[str]:
    if site.name.startswith("psycopg"):
        return POSTGRESQL
    database = site.arguments["database"]
    return [leak.format(table=site.table, database=database) for leak in MYSQL]


def superuser(site: Any) -> dict[str, Any]:
    """Return what connects as somebody who may LOAD."""
    if site.name.startswith("psycopg"):
        return {**site.arguments, "user": site.server.superuser}
    arguments: dict[str, Any] = site.arguments
    return arguments


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_each_leak_pins_the_session_which_serves_nobody_else(site: Site) -> None:
    module = pooled(site, max_size=2)
    arguments = superuser(site)
    other = autocommit(module.connect(**arguments))
    for leak in leaks_of(site):
        conn = autocommit(module.connect(**arguments))
        conn.cursor().execute(leak)
        assert module.pools[0].stats().in_use == 1, leak
        number = one(conn, site.session)
        assert {one(other, site.session) for _ in range(3)} != {number}, leak
        assert one(conn, site.session) == number, leak
        conn.close()
        assert module.pools[0].stats().in_use == 0, leak
        assert one(other, site.session) != number, leak
    assert module.pools[0].stats().discards["reset"] == len(leaks_of(site))


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_each_leak_is_refused_before_it_is_sent(site: Any) -> None:
    module = pooled(site, on_session_state="raise")
    conn = autocommit(module.connect(**superuser(site)))
    one(conn, "select 1")
    mark = site.server.mark()
    for leak in leaks_of(site):
        with pytest.raises(PoolMisuse, match="would stay in a session that others get"):
            conn.cursor().execute(leak)
        assert module.pools[0].stats().in_use == 0, leak
    said = " ".join(statement.text for statement in site.server.statements(mark))
    assert "leak" not in said
    assert "plan" not in said
    assert one(conn, "select 1") == 1


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_question_about_the_statement_before_needs_a_transaction(site: Site) -> None:
    module = pooled(site)
    conn = autocommit(module.connect(**site.arguments))
    questions = ASKS["psycopg" if site.name.startswith("psycopg") else "mysql"]
    for question in questions:
        with pytest.raises(PoolMisuse, match="asks for the session of the statement before"):
            conn.cursor().execute(question)
    if not site.name.startswith("psycopg"):
        conn.begin() if hasattr(conn, "begin") else conn.cursor().execute("begin")
        for question in questions:
            cursor = conn.cursor()
            cursor.execute(question)
            cursor.fetchall()
        conn.rollback()


@pytest.mark.parametrize("site", PG, indirect=True)
def test_what_ends_with_its_transaction_does_not_pin(site: Site) -> None:
    module = pooled(site)
    conn = module.connect(**site.arguments)
    for statement in (
        "set local work_mem = '3MB'",
        "select set_config('work_mem', '3MB', true)",
        "create temp table brief (x int) on commit drop",
        "select pg_advisory_xact_lock(7)",
        "declare brief cursor for select 1",
        "notify news",
        "savepoint one",
        "set constraints all immediate",
    ):
        conn.cursor().execute(statement)
        conn.commit()
        assert module.pools[0].stats().in_use == 0, statement


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_each_line_that_pins_is_told_once(site: Site) -> None:
    told: list[Event] = []
    module = pooled(site, observers=[told.append])
    for _ in range(3):
        conn = autocommit(module.connect(**site.arguments))
        conn.cursor().execute(leaks_of(site)[0])
        conn.close()
    (event,) = [event for event in told if event.name == "session_pinned"]
    assert "test_session_state.py" in str(event.fields["site"])
    assert str(event.fields["what"]).startswith("SET")


@pytest.mark.parametrize("site", [*PG, *MY], indirect=True)
def test_pinned_session_that_is_lost_is_told_until_close(site: Any) -> None:
    module = pooled(site, max_size=1)
    conn = autocommit(module.connect(**site.arguments))
    conn.cursor().execute(leaks_of(site)[0])
    if site.name.startswith("psycopg"):
        site.server.terminate_sessions(application_name=site.application)
    else:
        site.server.execute(f"kill {one(conn, site.session)}")
    with pytest.raises((module.OperationalError, module.InterfaceError)):
        one(conn, "select 1")
    if site.name != "MySQLdb":  # it does not know that its connection is gone
        with pytest.raises(module.OperationalError, match=r"the session is lost.*close\(\) this connection"):
            one(conn, "select 1")
    conn.close()


@pytest.mark.parametrize("site", [*PG, *MY], indirect=True)
@pytest.mark.parametrize("pooling", ["session", "transaction"])
def test_tracked_reset_is_sent_only_after_what_may_have_altered(site: Any, pooling: str) -> None:
    if site.name == "MySQLdb":
        pytest.skip("nothing is known of resets with this driver")
    module = pooled(site, reset="tracked", pooling=pooling, max_size=1)
    pool = None
    for statement, resets in (
        ("select 1", 0),
        ("select count(*) from information_schema.tables", 0),
        (leaks_of(site)[0], 1),
        ("select 1", 1),
        ("do $$ begin end $$" if site.name.startswith("psycopg") else "do nothing_known(1)", 2),
    ):
        conn = autocommit(module.connect(**site.arguments))
        pool = module.pools[0]
        try:
            conn.cursor().execute(statement)
        except module.Error:
            pass
        conn.close()
        assert pool.stats().resets == resets, statement
    assert pool is not None
    assert pool.stats().opened == 1
    with pool.connection():
        pass
    assert pool.stats().resets == 3  # nobody has seen what was done there
