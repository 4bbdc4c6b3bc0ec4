"""``pooling="transaction"``: a connection is held while a transaction lasts, and no longer."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError, InterfaceError, OperationalError, connections, transaction
from psycopg.rows import dict_row
from servers import MariaDB, PostgreSQL

from connpool import PoolMisuse

from .site import manage, on_postgresql, on_sqlite, serving
from .test_backends import asked, in_a_thread, items, said, session

POOL = {"max_size": 2, "pooling": "transaction"}


@pytest.fixture
def pooled(connection: Any) -> Any:
    """Provide each kind of connection, in transaction mode."""
    connection.close()
    connection.close_pool_for_good()
    connection.settings_dict["OPTIONS"]["pool"] = POOL
    return connection


@pytest.fixture
def on_a_server(served: Any) -> Any:
    """Provide each that has a server."""
    served.close()
    served.close_pool_for_good()
    served.settings_dict["OPTIONS"]["pool"] = POOL
    return served


@pytest.fixture
def on_pg(postgresql_alias: Any) -> Any:
    """Provide PostgreSQL's."""
    postgresql_alias.settings_dict["OPTIONS"]["pool"] = POOL
    return postgresql_alias


def in_use(connection: Any) -> int:
    count: int = connection.pool.stats(reset_peaks=False).in_use
    return count


def test_nothing_is_held_between_statements(pooled: Any) -> None:
    assert items(pooled).count() == 0
    assert in_use(pooled) == 0
    pen = items(pooled).create(name="pen", tags={"a": 1})
    assert in_use(pooled) == 0
    pen.name = "ink"
    pen.save()
    items(pooled).bulk_create([apps.get_model("shop", "Item")(name=str(n)) for n in range(3)])
    items(pooled).update_or_create(name="0", defaults={"price": 2})
    assert items(pooled).filter(price=2).update(price=3) == 1
    assert list(items(pooled).filter(price=3).values_list("name", "tags")) == [("0", {})]
    assert items(pooled).filter(name__in=["1", "2"]).delete()[0] == 2
    assert [item.name for item in items(pooled).raw("SELECT * FROM shop_item ORDER BY name")] == ["0", "ink"]
    assert in_use(pooled) == 0
    if pooled.vendor != "sqlite":  # Django 6.1 asks its connections for a limit, and nothing is known of that
        assert pooled.pool.stats().dials == 1


def test_rows_can_be_read_when_the_connection_has_gone_home(pooled: Any) -> None:
    items(pooled).bulk_create([apps.get_model("shop", "Item")(name=str(n)) for n in range(250)])
    rows = iter(items(pooled).order_by("id"))  # Django fetches a hundred at a time
    next(rows)
    assert in_use(pooled) == 0
    assert sum(1 for _ in rows) == 249


def test_a_transaction_holds_one_session_until_its_end(on_a_server: Any) -> None:
    with transaction.atomic(using=on_a_server.alias):
        mine = session(on_a_server)
        items(on_a_server).create(name="a")
        # Whoever asks meanwhile gets another.
        assert in_a_thread(lambda: session(connections[on_a_server.alias])) != mine
        with transaction.atomic(using=on_a_server.alias):
            items(on_a_server).create(name="b")
        with pytest.raises(IntegrityError), transaction.atomic(using=on_a_server.alias):
            items(on_a_server).create(name="b")
        assert in_use(on_a_server) == 1
        assert session(on_a_server) == mine
        assert in_a_thread(lambda: items(connections[on_a_server.alias]).count()) == 0
    assert in_use(on_a_server) == 0
    assert items(on_a_server).count() == 2


def test_a_transaction_that_fails_is_rolled_back_and_goes_home(pooled: Any) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=pooled.alias):
        items(pooled).create(name="gone")
        raise ZeroDivisionError
    with pytest.raises(IntegrityError), transaction.atomic(using=pooled.alias):
        items(pooled).create(name="gone")
        items(pooled).create(name="gone")
    assert in_use(pooled) == 0
    assert items(pooled).count() == 0


def test_callbacks_run_once_the_connection_is_home(pooled: Any) -> None:
    held: list[int] = []
    with transaction.atomic(using=pooled.alias):
        items(pooled).create(name="a")
        transaction.on_commit(lambda: held.append(in_use(pooled)), using=pooled.alias)
    assert held == [0]


def test_a_statement_that_fails_costs_nobody_anything(pooled: Any) -> None:
    items(pooled).create(name="a")
    with pytest.raises(IntegrityError):
        items(pooled).create(name="a")
    assert items(pooled).count() == 1
    assert in_use(pooled) == 0
    assert pooled.pool.stats().dials == 1


@pytest.mark.server
def test_only_what_was_asked_for_is_said(postgresql: PostgreSQL, on_pg: Any) -> None:
    items(on_pg).count()
    mark = postgresql.mark()
    items(on_pg).count()
    with transaction.atomic(using="pg"):
        items(on_pg).count()
        items(on_pg).exists()
    on_pg.close()
    items(on_pg).count()
    texts = [statement.text[:8] for statement in postgresql.statements(mark)]
    assert texts == ["SELECT C", "BEGIN", "SELECT C", "SELECT 1", "COMMIT", "SELECT C"]


@pytest.mark.server
def test_a_cursor_in_the_server_keeps_its_session(on_pg: Any) -> None:
    items(on_pg).bulk_create([apps.get_model("shop", "Item")(name=str(n)) for n in range(500)])
    rows = items(on_pg).iterator(chunk_size=100)
    next(rows)
    assert in_use(on_pg) == 1
    assert sum(1 for _ in rows) == 499
    assert in_use(on_pg) == 0
    rows = items(on_pg).iterator(chunk_size=100)
    next(rows)
    rows.close()
    assert in_use(on_pg) == 0
    with transaction.atomic(using="pg"):
        assert sum(1 for _ in items(on_pg).iterator(chunk_size=100)) == 500
    assert in_use(on_pg) == 0


@pytest.mark.server
def test_copy_and_djangos_log_of_queries_work(on_pg: Any) -> None:
    with on_pg.cursor() as cursor:
        with cursor.copy("COPY shop_item (name, price, made, tags) FROM STDIN") as copy:
            copy.write_row(("copied", "1", "2026-01-01T00:00Z", "{}"))
        assert in_use(on_pg) == 0
    on_pg.force_debug_cursor = True
    try:
        assert items(on_pg).filter(name="copied").exists()
        assert "'copied'" in on_pg.queries[-1]["sql"]
    finally:
        on_pg.force_debug_cursor = False


def test_what_is_left_in_a_session_keeps_it_until_the_end_of_the_request(on_a_server: Any) -> None:
    statement, question, clean = {
        "postgresql": ("SET work_mem = 100", "SELECT current_setting('work_mem')", "4MB"),
        "mysql": ("SET SESSION max_statement_time = 43", "SELECT @@max_statement_time", 0.0),
    }[on_a_server.vendor]
    said(on_a_server, statement)
    assert in_use(on_a_server) == 1
    assert asked(on_a_server, question) != clean
    on_a_server.close()
    assert in_use(on_a_server) == 0
    assert asked(on_a_server, question) == clean


def test_what_would_be_left_in_a_session_can_be_forbidden(on_a_server: Any) -> None:
    on_a_server.settings_dict["OPTIONS"]["pool"] = {**POOL, "on_session_state": "raise"}
    statement = {"postgresql": "LISTEN news", "mysql": "SET @a = 1"}[on_a_server.vendor]
    with pytest.raises(PoolMisuse, match="would stay in a session that others get"):
        said(on_a_server, statement)
    assert items(on_a_server).count() == 0


@pytest.mark.server
def test_declared_settings_are_carried_along(on_pg: Any) -> None:
    on_pg.settings_dict["OPTIONS"]["pool"] = {**POOL, "settings": {"work_mem": "123kB"}}
    for _ in range(2):
        assert asked(on_pg, "SELECT current_setting('work_mem')") == "123kB"
        on_pg.close()


def test_a_session_that_was_killed_costs_its_own_transaction_alone(
    on_a_server: Any, postgresql: PostgreSQL, mariadb: MariaDB
) -> None:
    def kill() -> None:
        if on_a_server.vendor == "postgresql":
            postgresql.terminate_sessions(application_name=on_a_server.settings_dict["NAME"])
        else:
            mariadb.terminate_sessions(user=mariadb.user)

    with pytest.raises((OperationalError, InterfaceError)), transaction.atomic(using=on_a_server.alias):
        items(on_a_server).create(name="lost")
        kill()
        items(on_a_server).count()
    # In the same request, without a close:
    assert items(on_a_server).count() == 0
    with transaction.atomic(using=on_a_server.alias):
        items(on_a_server).create(name="kept")
    assert items(on_a_server).count() == 1
    on_a_server.close()


def test_a_thread_that_ends_in_a_transaction_loses_nothing(pooled: Any) -> None:
    def work() -> None:
        transaction.set_autocommit(False, using=pooled.alias)
        items(connections[pooled.alias]).create(name="left")

    for _ in range(5):
        assert in_a_thread(work) is None
    assert items(pooled).count() == 0
    assert in_use(pooled) == 0


def test_a_pool_that_was_closed_is_followed_by_another(pooled: Any) -> None:
    items(pooled).create(name="a")
    first = pooled.pool
    pooled.close_pool()
    assert items(pooled).count() == 1  # to the end of the request it serves on
    pooled.close()
    assert pooled.pool is not first
    pooled.pool.close()
    assert items(pooled).count() == 1
    pooled.close()


# -- from one request to the next


def test_a_connection_that_has_nothing_serves_the_next_request(pooled: Any) -> None:
    items(pooled).count()
    mine = pooled.connection
    for _ in range(2):
        end_of_request(pooled)
        end_of_request(pooled)  # Django asks before the next one, too
        assert pooled.connection is mine
        with transaction.atomic(using=pooled.alias):
            items(pooled).count()
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=pooled.alias):
        items(pooled).count()
        raise ZeroDivisionError
    end_of_request(pooled)
    assert pooled.connection is mine
    pooled.close()
    assert pooled.connection is None


@pytest.mark.parametrize("left", ["a transaction", "autocommit", "an attribute", "a cursor of its own kind"])
def test_a_connection_that_has_something_does_not(on_pg: Any, left: str) -> None:
    items(on_pg).count()
    mine = on_pg.connection
    if left == "a transaction":
        transaction.set_autocommit(False, using="pg")
        items(on_pg).create(name="left")
    elif left == "autocommit":
        transaction.set_autocommit(False, using="pg")
    elif left == "an attribute":
        mine.read_only = True
    else:
        mine.row_factory = dict_row
    end_of_request(on_pg)
    assert on_pg.connection is None
    assert items(on_pg).count() == 0
    items(on_pg).create(name="next")
    assert in_use(on_pg) == 0


def test_what_pins_a_session_ends_with_its_request(on_a_server: Any) -> None:
    statement = {"postgresql": "SET work_mem = 100", "mysql": "SET SESSION max_statement_time = 43"}
    said(on_a_server, statement[on_a_server.vendor])
    assert in_use(on_a_server) == 1
    end_of_request(on_a_server)
    assert in_use(on_a_server) == 0


@pytest.mark.parametrize("how", ["closed", "left for another", "closed by itself"])
def test_a_request_begins_with_the_present_pool(pooled: Any, how: str) -> None:
    items(pooled).count()
    end_of_request(pooled)
    first = pooled.pool
    if how == "closed":
        pooled.close_pool()
    elif how == "left for another":
        pooled.settings_dict["OPTIONS"]["pool"] = {**POOL, "max_size": 1}
    else:
        first.close()
        assert pooled.pool is not first
    end_of_request(pooled)  # as Django does at the beginning of the next
    assert items(pooled).count() == 0
    assert pooled.connection._link.pool is pooled.pool is not first
    first.close()


def test_a_thread_that_ends_with_nothing_needs_no_word(pooled: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "connpool.django")
    for _ in range(3):
        assert in_a_thread(lambda: items(connections[pooled.alias]).count()) == 0
    assert in_use(pooled) == 0
    assert not caplog.text


def end_of_request(connection: Any) -> None:
    connection.close_if_unusable_or_obsolete()


# -- many at a time


def test_fifty_threads_share_two_sessions(on_a_server: Any) -> None:
    items(on_a_server).create(name="a")
    on_a_server.close()
    found: list[int] = []

    def work() -> None:
        mine = items(connections[on_a_server.alias])
        for _ in range(4):
            found.append(mine.count())
            with transaction.atomic(using=on_a_server.alias):
                found.append(mine.count())
            time.sleep(0.01)

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [1] * 400
    assert on_a_server.pool.stats().size <= 2


@pytest.mark.server
def test_requests_that_do_something_else_in_between_share_two_sessions(
    postgresql: PostgreSQL, postgresql_shop: dict[str, Any], tmp_path: Path
) -> None:
    settings = on_postgresql(postgresql, postgresql_shop["NAME"], pool=POOL)
    with serving("uvicorn", {"default": settings}, tmp_path / "log") as site:
        site.get("items")
        for page in ("spread", "async-spread"):
            began = time.monotonic()
            assert site.at_once(f"{page}?seconds=0.5", 20) == [200] * 20
            assert time.monotonic() - began < 3  # held for the whole request it would be 5
        assert len(postgresql.census(application_name=postgresql_shop["NAME"])) <= 2


def test_djangos_test_runner_works_on_sqlite(tmp_path: Path) -> None:
    settings = on_sqlite(
        tmp_path / "db", pool={"pooling": "transaction"}, TEST={"NAME": str(tmp_path / "test.sqlite3")}
    )
    arguments = ["test", "shop", "--pattern=modes.py", "--noinput", "--parallel=1"]
    assert "OK" in manage({"default": settings}, *arguments)


def test_a_mode_that_a_request_has_left_behind_ends_with_it(pooled: Any) -> None:
    for _ in range(2):  # the first look comes after statements, and the next before any
        assert items(pooled).filter(name="before").count() == 0
        transaction.set_autocommit(False, using=pooled.alias)
        assert items(pooled).count() == 0
        transaction.rollback(using=pooled.alias)
        pooled.close_if_unusable_or_obsolete()
        pooled.close_if_unusable_or_obsolete()
        assert pooled.get_autocommit()
        items(pooled).create(name="kept")
        assert in_a_thread(lambda: items(connections[pooled.alias]).filter(name="kept").delete()[0]) == 1
