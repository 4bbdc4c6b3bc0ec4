"""Transaction mode: when a server's session is held, by whom, and what goes with it."""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from connpool import PoolMisuse, facade
from facade.sites import THERE, Site

SERVERS = [pytest.param(name, marks=pytest.mark.server) for name in THERE if name != "sqlite3"]
SHOWN = [pytest.param(name, marks=pytest.mark.server) for name in ("psycopg", "psycopg2", "pymysql")]


def one(conn: Any, query: str) -> Any:
    cursor = conn.cursor()
    cursor.execute(query)
    return next(iter(cursor.fetchone()))


@pytest.fixture
def site(request: pytest.FixtureRequest, site_of: Callable[[str], Site]) -> Site:
    return site_of(request.param)


def autocommit(conn: Any) -> Any:
    """Switch autocommit on, in the driver's way."""
    if callable(getattr(conn, "autocommit", None)):
        conn.autocommit(True)
    else:
        conn.autocommit = True
    return conn


def pooled(site: Site, **options: Any) -> Any:
    options = {"max_size": 2, "acquire_timeout": 2, "pooling": "transaction"} | options
    return site.manage(**options)


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_transaction_has_one_session_and_shares_it_with_nobody(site: Site) -> None:
    module = pooled(site)
    first, second = (module.connect(**site.arguments) for _ in range(2))
    sessions = {one(first, site.session) for _ in range(3)}
    others = {one(second, site.session) for _ in range(3)}
    assert len(sessions) == len(others) == 1
    assert sessions != others
    assert module.pools[0].stats().in_use == 2
    first.commit()
    second.rollback()
    assert module.pools[0].stats().in_use == 0


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_between_transactions_nothing_is_held_and_rows_stay_readable(site: Site) -> None:
    module = pooled(site, max_size=1)
    conns = [module.connect(**site.arguments) for _ in range(5)]
    cursors = []
    for number, conn in enumerate(conns):
        cursors.append(conn.cursor())
        cursors[-1].execute(f"select {number}")
        conn.commit()
    assert [next(iter(cursor.fetchone())) for cursor in cursors] == [0, 1, 2, 3, 4]
    assert module.pools[0].stats().size == 1


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_autocommit_holds_a_session_for_a_statement_alone(site: Site) -> None:
    module = pooled(site, max_size=1)
    first, second = (autocommit(module.connect(**site.arguments)) for _ in range(2))
    pool = module.pools[0]
    for conn in (first, second, first):
        cursor = conn.cursor()
        cursor.execute("select 1")
        assert pool.stats().in_use == 0
        assert tuple(cursor.fetchone()) == (1,)
    cursor = first.cursor()
    cursor.execute("begin")
    assert pool.stats().in_use == 1
    cursor.execute("select 1")
    assert pool.stats().in_use == 1
    cursor.execute("commit")
    assert pool.stats().in_use == 0


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_failed_statement_in_autocommit_gives_the_session_back(site: Site) -> None:
    module = pooled(site, max_size=1)
    conn = autocommit(module.connect(**site.arguments))
    with pytest.raises(module.Error):
        conn.cursor().execute("select nothing from nowhere")
    assert module.pools[0].stats().in_use == 0
    assert one(conn, "select 1") == 1


@pytest.mark.parametrize("site", SHOWN, indirect=True)
def test_session_that_ends_in_a_transaction_is_told_until_rollback(site: Any) -> None:
    module = pooled(site, max_size=1)
    conn = module.connect(**site.arguments)
    one(conn, "select 1")
    if site.name == "pymysql":
        site.server.execute(f"kill {one(conn, site.session)}")
    else:
        site.server.terminate_sessions(application_name=site.application)
    for _ in range(2):
        with pytest.raises((module.OperationalError, module.InterfaceError)):
            one(conn, "select 2")
    assert module.pools[0].stats().in_use == 0
    with pytest.raises(module.OperationalError, match=r"rollback\(\) first"):
        conn.commit()
    conn.rollback()
    assert one(conn, "select 3") == 3
    conn.close()


@pytest.mark.parametrize("site", SHOWN, indirect=True)
def test_autocommit_statement_after_a_lost_session_gets_another(site: Any) -> None:
    module = pooled(site, max_size=1)
    conn = autocommit(module.connect(**site.arguments))
    number = one(conn, site.session)
    if site.name == "pymysql":
        site.server.execute(f"kill {number}")
    else:
        site.server.terminate_sessions(application_name=site.application)
    try:
        one(conn, "select 1")  # the pool may find it out, or the statement
    except (module.OperationalError, module.InterfaceError):
        pass
    assert one(conn, site.session) != number


@pytest.mark.parametrize("site", [p for p in SHOWN if p.values != ("psycopg2",)], indirect=True)
def test_interrupted_statement_closes_the_session(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt(BaseException):
        pass

    module = pooled(site, max_size=1)
    conn = module.connect(**site.arguments, autocommit=True)
    before = one(conn, site.session)
    link = conn._link

    def strike(*args: Any, **kwargs: Any) -> None:
        raise Interrupt

    if site.name == "pymysql":
        with link.held() as real:
            monkeypatch.setattr(real, "_read_query_result", strike)
    else:
        with link.held() as real:
            monkeypatch.setattr(real, "wait", lambda gen, *args: (next(gen), strike()))
    with pytest.raises(Interrupt):
        one(conn, "select 1")
    monkeypatch.undo()
    assert module.pools[0].stats().in_use == 0
    assert one(conn, site.session) != before


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_lost_connection_object_gives_its_session_up(site: Site) -> None:
    module = pooled(site, max_size=1)
    conn = module.connect(**site.arguments)
    one(conn, "select 1")
    gone = weakref.ref(conn._link)
    with pytest.warns(ResourceWarning, match="lost without being given back"):
        del conn
        gc.collect()
        assert gone() is None
        other = module.connect(**site.arguments)
        assert one(other, "select 2") == 2
    other.close()


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_lost_object_between_transactions_costs_nothing(site: Site) -> None:
    module = pooled(site, max_size=1)
    conn = module.connect(**site.arguments)
    number = one(conn, site.session)
    conn.commit()
    del conn
    other = module.connect(**site.arguments)
    assert one(other, site.session) == number
    other.close()


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_statement_mode_refuses_transactions_of_several_statements(site: Site) -> None:
    module = pooled(site, pooling="statement")
    conn = module.connect(**site.arguments)
    assert one(conn, "select 1") == 1
    assert module.pools[0].stats().in_use == 0
    with pytest.raises(PoolMisuse, match="statement"):
        conn.cursor().execute("BEGIN")
    with pytest.raises(PoolMisuse, match="statement"):
        if callable(getattr(conn, "autocommit", None)):
            conn.autocommit(False)
        else:
            conn.autocommit = False
    conn.commit()


@pytest.mark.server
def test_a_thousand_connections_share_twenty_sessions(site_of: Callable[[str], Site]) -> None:
    site = site_of("psycopg")
    module = pooled(site, max_size=20, acquire_timeout=30)
    wrong: list[object] = []
    barrier = threading.Barrier(1000)

    def client(number: int) -> None:
        conn = module.connect(**site.arguments)
        try:
            barrier.wait(60)
            for _ in range(2):
                pids = {one(conn, "select pg_backend_pid()") for _ in range(2)}
                if len(pids) != 1 or one(conn, f"select {number}") != number:
                    wrong.append(pids)
                conn.commit()
            barrier.wait(60)  # all of them have a "connection" at this moment
        except BaseException as exc:
            wrong.append(exc)
            barrier.abort()
        finally:
            conn.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    stats = module.pools[0].stats()
    assert stats.opened <= 20
    assert stats.size <= 20


# -- declared settings ------------------------------------------------------------------------------------

PG = [pytest.param(name, marks=pytest.mark.server) for name in ("psycopg", "psycopg2")]
MY = [pytest.param(name, marks=pytest.mark.server) for name in THERE if name in ("pymysql", "MySQLdb")]


@pytest.mark.parametrize("site", PG, indirect=True)
@pytest.mark.parametrize("exclusive", [True, False])
def test_declared_settings_come_along_and_reach_nobody_else(site: Site, exclusive: bool) -> None:
    module = pooled(site, max_size=1)
    module.connect(**site.arguments)
    pool = module.pools[0]
    tenant = {"search_path": "tenant_7", "statement_timeout": 7000, "timezone": "Asia/Tokyo"}
    first = facade.connect(pool, pooling="transaction", settings=tenant, exclusive=exclusive)
    second = facade.connect(pool, pooling="transaction", exclusive=exclusive)
    before = one(second, "show timezone")
    second.rollback()
    for end in (first.rollback, first.commit):
        assert one(first, "show search_path") == "tenant_7"
        assert one(first, "show statement_timeout") == "7s"
        end()
        assert one(second, "show timezone") == before != "Asia/Tokyo"
        assert one(second, "show statement_timeout") == "0"
        second.rollback()
    if not exclusive:
        with pool.connection() as conn:
            assert one(conn, "show search_path") != "tenant_7"


@pytest.mark.parametrize("site", MY, indirect=True)
@pytest.mark.parametrize("exclusive", [True, False])
def test_declared_settings_come_along_on_mysql(site: Site, exclusive: bool) -> None:
    module = pooled(site, max_size=1)
    module.connect(**site.arguments)
    pool = module.pools[0]
    tenant = {"time_zone": "+07:00", "sql_mode": "ANSI_QUOTES"}
    first = facade.connect(pool, pooling="transaction", settings=tenant, exclusive=exclusive)
    second = facade.connect(pool, pooling="transaction", exclusive=exclusive)
    for end in (first.rollback, first.commit):
        assert one(first, "select @@session.time_zone") == "+07:00"
        assert one(first, "select @@session.sql_mode") == "ANSI_QUOTES"
        end()
        assert one(second, "select @@session.time_zone") == "SYSTEM"
        second.rollback()
    if not exclusive:
        with pool.connection() as conn:
            assert one(conn, "select @@session.time_zone") == "SYSTEM"


@pytest.mark.parametrize("site", PG, indirect=True)
def test_unchanged_settings_cost_no_word(site: Any) -> None:
    module = pooled(site, max_size=1, settings={"search_path": "tenant_7"})
    conn = autocommit(module.connect(**site.arguments))
    one(conn, "select 1")
    mark = site.server.mark()
    for number in range(3):
        one(conn, f"select {number} + 1000")
    said = [s.text for s in site.server.statements(mark) if "1000" in s.text or "set_config" in s.text]
    assert len(said) == 3, said


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_modes_of_the_driver_stay_with_the_object(site: Site) -> None:
    module = pooled(site, max_size=1)
    first, second = autocommit(module.connect(**site.arguments)), module.connect(**site.arguments)
    pool = module.pools[0]
    for _ in range(2):
        one(first, "select 1")
        assert pool.stats().in_use == 0
        one(second, "select 1")
        assert pool.stats().in_use == 1
        second.rollback()
