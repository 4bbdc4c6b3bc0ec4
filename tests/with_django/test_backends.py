"""The backends: what Django's connections are on a pool, for each kind of database."""

import gc
import os
import threading
from datetime import datetime
from typing import Any

import pytest
from django.apps import apps
from django.db import InterfaceError, OperationalError, ProgrammingError, connections, transaction
from django.db.backends.signals import connection_created
from servers import MariaDB, PostgreSQL, wait_until

from connpool.integrations.django import pools

from .conftest import Use
from .site import on_mariadb, on_postgresql


def items(connection: Any) -> Any:
    return apps.get_model("shop", "Item").objects.using(connection.alias)


def in_a_thread(work: Any) -> Any:
    """Call in a thread that closes nothing; return what came of it."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as exc:
            found.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    (result,) = found
    return result


def session(connection: Any) -> int:
    question = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(question)
        number: int = cursor.fetchone()[0]
        return number


def asked(connection: Any, question: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()[0]


def said(connection: Any, *statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


# -- borrowing and giving back


def test_rows_are_written_and_read(connection: Any) -> None:
    items(connection).create(name="pen", price="1.50", tags={"a": [1]})
    with transaction.atomic(using=connection.alias):
        items(connection).create(name="ink")
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=connection.alias):
        items(connection).create(name="gone")
        raise ZeroDivisionError
    pen = items(connection).get(name="pen")
    assert (str(pen.price), pen.tags, isinstance(pen.made, datetime)) == ("1.50", {"a": [1]}, True)
    assert sorted(items(connection).values_list("name", flat=True)) == ["ink", "pen"]


def test_close_gives_back_and_the_next_query_borrows_again(connection: Any) -> None:
    items(connection).count()
    pool = connection.pool
    assert pool.stats().in_use == 1
    connection.close()
    assert (pool.stats().in_use, pool.stats().idle) == (0, 1)
    connection.close()
    items(connection).count()
    assert connection.pool is pool
    assert pool.stats().dials == 1


def test_the_end_of_a_request_gives_back_without_a_word(connection: Any) -> None:
    items(connection).count()
    connection.errors_occurred = True  # Django would ask the server now
    connection.close_if_unusable_or_obsolete()
    assert connection.connection is None
    assert connection.pool.stats().idle == 1


def test_threads_share_one_pool(connection: Any) -> None:
    connection.close()

    def work() -> Any:
        try:
            return items(connection).count(), connections[connection.alias].pool
        finally:
            connections.close_all()

    results = [in_a_thread(work) for _ in range(4)]
    assert results == [(0, connection.pool)] * 4
    assert connection.pool.stats().dials == 1


def test_a_thread_that_ends_without_closing_loses_nothing(
    connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "connpool.django")
    connection.close()
    gc.disable()  # nor is the collector needed
    try:
        for _ in range(10):
            assert in_a_thread(lambda: items(connection).count()) == 0
            with_transaction = in_a_thread(lambda: transaction.set_autocommit(False, using=connection.alias))
            assert with_transaction is None
        assert items(connection).count() == 0
    finally:
        gc.enable()
    assert connection.pool.stats().size <= 2
    assert connection.pool.stats().in_use == 1
    assert "ended with a connection to" in caplog.text
    assert "close_all()" in caplog.text


def test_what_a_thread_left_uncommitted_is_rolled_back(connection: Any) -> None:
    connection.close()

    def work() -> None:
        transaction.set_autocommit(False, using=connection.alias)
        items(connection).create(name="left")

    assert in_a_thread(work) is None
    assert items(connection).count() == 0


def test_a_pool_that_was_closed_is_followed_by_another(connection: Any) -> None:
    items(connection).create(name="a")
    first = connection.pool
    connection.close_pool()
    assert items(connection).count() == 1  # what is lent goes on
    connection.close()
    assert connection.pool is not first
    connection.pool.close()  # past us
    assert items(connection).count() == 1
    connection.close()
    assert connection.pool.stats().size == 1


def test_a_pool_that_is_closed_in_the_middle_of_a_transaction_lets_it_end(served: Any) -> None:
    def close_pool() -> None:
        connections[served.alias].close_pool()

    with transaction.atomic(using=served.alias):
        items(served).create(name="a")
        assert in_a_thread(close_pool) is None
        items(served).create(name="b")
    served.close()
    assert items(served).count() == 2


@pytest.mark.server
def test_a_pool_that_is_closed_closes_what_is_idle_now_and_what_is_lent_later(
    postgresql: PostgreSQL, postgresql_alias: Any
) -> None:
    name = postgresql_alias.settings_dict["NAME"]
    items(postgresql_alias).count()
    assert in_a_thread(lambda: items(postgresql_alias).count()) == 0
    postgresql_alias.close_pool()
    wait_until(lambda: len(postgresql.census(application_name=name)) == 1, what="the idle one is closed")
    postgresql_alias.close()
    wait_until(lambda: not postgresql.census(application_name=name), what="the other one is closed")


def test_a_second_alias_for_the_same_place_shares_the_pool(use: Use, connection: Any) -> None:
    other = use("other", {**connection.settings_dict})
    connection.close()
    assert items(other).count() == 0
    assert other.pool is connection.pool
    assert pools().count(connection.pool) == 1


def test_other_settings_lead_to_another_pool(use: Use, connection: Any) -> None:
    before = connection.pool
    options = connection.settings_dict["OPTIONS"]
    other = use("other", {**connection.settings_dict, "OPTIONS": {**options, "pool": {"max_size": 3}}})
    assert other.pool is not before
    options["pool"] = {"max_size": 4}  # as a test runner rewrites settings
    connection.close()
    assert connection.pool is not before
    options["pool"] = {"max_size": 2}
    assert connection.pool is before


def test_a_connection_lost_in_an_atomic_block_is_not_replaced_there(connection: Any) -> None:
    with (
        pytest.raises(ProgrammingError, match="Cannot open a new connection in an atomic block"),
        transaction.atomic(using=connection.alias),
    ):
        connection.close()
        items(connection).count()
    assert items(connection).count() == 0


def test_each_borrow_tells_django(connection: Any) -> None:
    told: list[str] = []

    def listen(connection: Any, **kwargs: Any) -> None:
        told.append(connection.alias)

    connection.close()
    connection_created.connect(listen)
    try:
        items(connection).count()
        connection.close()
        items(connection).count()
    finally:
        connection_created.disconnect(listen)
    assert told == [connection.alias] * 2


# -- errors


def test_a_timeout_is_djangos_error_and_says_who_has_the_connections(served: Any) -> None:
    served.settings_dict["OPTIONS"]["pool"] = {"max_size": 1, "acquire_timeout": 0.1}
    items(served).count()
    exc = in_a_thread(lambda: items(served).count())
    assert isinstance(exc, OperationalError)
    assert "1 of 1 in use" in str(exc)
    assert "test_backends.py" in str(exc)


@pytest.mark.server
def test_a_server_that_is_not_there_is_djangos_error(use: Use) -> None:
    nobody = {
        "ENGINE": "connpool.integrations.django.postgresql",
        "NAME": "x",
        "HOST": "127.0.0.1",
        "PORT": 1,
    }
    connection = use("nobody", {**nobody, "OPTIONS": {"pool": {"acquire_timeout": 1}}})
    with pytest.raises(OperationalError, match="refused"):
        connection.ensure_connection()


def test_a_session_that_was_killed_is_replaced(served: Any, postgresql: PostgreSQL, mariadb: MariaDB) -> None:
    items(served).count()
    if served.vendor == "postgresql":
        postgresql.terminate_sessions(application_name=served.settings_dict["NAME"])
    else:
        mariadb.terminate_sessions()
    with pytest.raises((OperationalError, InterfaceError)):
        items(served).count()
    served.close()  # as the end of the request
    assert items(served).count() == 0


# -- what a session keeps


LEFT_BEHIND = {
    "postgresql": (
        ("SET statement_timeout = 4321", "SELECT current_setting('statement_timeout')", "0"),
        (
            "CREATE TEMP TABLE left_over (a int)",
            "SELECT count(*) FROM pg_class WHERE relname = 'left_over'",
            0,
        ),
        (
            "SELECT pg_advisory_lock(99)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
            0,
        ),
        ("SET TimeZone = 'Asia/Tokyo'", "SELECT current_setting('TimeZone')", "UTC"),
        ("SET search_path = pg_catalog", "SELECT current_setting('search_path')", '"$user", public'),
    ),
    "mysql": (
        ("SET @left = 1", "SELECT @left", None),
        ("SET SESSION max_statement_time = 43", "SELECT @@max_statement_time", 0.0),
        (
            "CREATE TEMPORARY TABLE left_over (a int)",
            "SELECT count(*) FROM information_schema.tables WHERE table_name = 'left_over'",
            0,
        ),
        ("SELECT GET_LOCK('left', 1)", "SELECT IS_USED_LOCK('left')", None),
        ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT @@tx_isolation", "READ-COMMITTED"),
        ("SET time_zone = '+09:00'", "SELECT @@time_zone", "SYSTEM"),
    ),
}


def test_the_next_borrower_sees_nothing_of_the_one_before(served: Any) -> None:
    before = session(served)
    leaks = LEFT_BEHIND[served.vendor]
    for statement, _, _ in leaks:
        said(served, statement)
    served.close()
    found = [asked(served, question) for _, question, _ in leaks]
    assert found == [clean for _, _, clean in leaks]
    assert session(served) == before


def test_a_transaction_that_was_left_open_is_over(served: Any) -> None:
    transaction.set_autocommit(False, using=served.alias)
    items(served).create(name="left")
    served.close()
    assert items(served).count() == 0
    assert transaction.get_autocommit(using=served.alias)


def past_django(connection: Any, statement: str) -> None:
    """Execute on the driver's own connection."""
    cursor = connection.connection.cursor()
    cursor.execute(statement)
    cursor.close()


@pytest.mark.server
@pytest.mark.parametrize("say", [said, past_django])
def test_what_altered_the_session_is_reset_and_nothing_else_is_said(
    postgresql: PostgreSQL, postgresql_alias: Any, say: Any
) -> None:
    def texts(*statements: str) -> list[str]:
        mark = postgresql.mark()
        items(postgresql_alias).count()
        for statement in statements:
            say(postgresql_alias, statement)
        postgresql_alias.close()
        items(postgresql_alias).exists()  # it has awaited the answer to a reset
        return [statement.text[:11] for statement in postgresql.statements(mark)]

    items(postgresql_alias).count()
    assert texts() == ["SELECT COUN", "SELECT 1 AS"]
    assert texts("SET work_mem = 100") == ["SELECT COUN", "SET work_me", "DISCARD ALL", "SELECT 1 AS"]
    assert texts() == ["SELECT COUN", "SELECT 1 AS"]
    assert texts("DO 'BEGIN END'")[2] == "DISCARD ALL"


@pytest.mark.server
def test_a_full_reset_can_be_asked_for_each_time(postgresql: PostgreSQL, postgresql_alias: Any) -> None:
    postgresql_alias.settings_dict["OPTIONS"]["pool"] = {"max_size": 2, "reset": "full"}
    items(postgresql_alias).count()
    mark = postgresql.mark()
    postgresql_alias.close()
    items(postgresql_alias).count()
    assert postgresql.statements(mark)[0].text == "DISCARD ALL"


def test_a_connection_to_sqlite_that_was_altered_is_replaced(sqlite_alias: Any) -> None:
    items(sqlite_alias).create(name="kept")
    assert sqlite_alias.pool.stats().dials == 1
    for number, alter in enumerate(
        (
            lambda: said(sqlite_alias, "CREATE TEMP TABLE left_over (a)"),
            lambda: past_django(sqlite_alias, "PRAGMA foreign_keys = OFF"),
            lambda: sqlite_alias.connection.create_function("f", 0, lambda: 1),
        )
    ):
        items(sqlite_alias).filter(made__year=2000).count()  # by a function of Django's
        alter()
        sqlite_alias.close()
        assert items(sqlite_alias).count() == 1
        assert sqlite_alias.pool.stats().dials == number + 2
        assert asked(sqlite_alias, "PRAGMA foreign_keys") == 1


@pytest.mark.server
def test_the_role_and_the_isolation_level_outlive_a_reset(use: Use, postgresql: PostgreSQL) -> None:
    if not postgresql.execute("select 1 from pg_roles where rolname = 'clerk'"):
        postgresql.execute("create role clerk")
        postgresql.execute(f"grant clerk to {postgresql.user}")
    with postgresql.database() as name:
        more = {"assume_role": "clerk", "isolation_level": 4}
        connection = use("role", on_postgresql(postgresql, name, options=more, TIME_ZONE="Europe/Oslo"))
        for _ in range(3):
            assert asked(connection, "SELECT current_user") == "clerk"
            assert asked(connection, "SELECT current_setting('TimeZone')") == "Europe/Oslo"
            with transaction.atomic(using="role"):
                assert asked(connection, "SELECT current_setting('transaction_isolation')") == "serializable"
            said(connection, "RESET ROLE", "SET TimeZone = 'UTC'")
            connection.close()
        assert connection.pool.stats().dials == 1
        connection.close_pool_for_good()


@pytest.mark.server
def test_an_init_command_of_the_users_stays_beside_djangos(use: Use, mariadb: MariaDB) -> None:
    with mariadb.database() as name:
        more = {"init_command": "SET sql_mode = 'ANSI_QUOTES'"}
        connection = use("init", on_mariadb(mariadb, name, options=more))
        for _ in range(2):
            assert asked(connection, "SELECT @@sql_mode") == "ANSI_QUOTES"
            assert asked(connection, "SELECT @@tx_isolation") == "READ-COMMITTED"
            said(connection, "SET sql_mode = ''", "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            connection.close()
        assert connection.pool.stats().dials == 1
        connection.close_pool_for_good()


@pytest.mark.server
def test_a_server_side_cursor_is_read_in_chunks(postgresql: PostgreSQL, postgresql_alias: Any) -> None:
    items(postgresql_alias).bulk_create([apps.get_model("shop", "Item")(name=str(n)) for n in range(500)])
    mark = postgresql.mark()
    assert sum(1 for _ in items(postgresql_alias).iterator(chunk_size=100)) == 500
    assert any("CURSOR" in statement.text for statement in postgresql.statements(mark))
    postgresql_alias.close()
    assert postgresql_alias.pool.stats().idle == 1


# -- fork


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_begins_anew_and_leaves_the_parents_session_alone(served: Any) -> None:
    mine = session(served)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, str(session(served)).encode())
            served.close()
        except BaseException as exc:
            os.write(write, repr(exc).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer.isdecimal(), answer
    assert int(answer) != mine
    assert session(served) == mine
