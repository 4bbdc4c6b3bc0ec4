"""What is read from a text is what the server's session shows afterwards."""

import contextlib
from collections.abc import Iterator

import psycopg
import pymysql  # type: ignore[import-untyped, unused-ignore] # as in servers/mariadb.py
import pytest
from servers import MariaDB, PostgreSQL
from servers.process import wait_until

from connpool.facade import functions
from connpool.facade.statements import _RULES, Dialect, recognise

pytestmark = pytest.mark.server

State = dict[str, object]


def changes(before: State, after: State) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def disagreement(dialect: Dialect, text: str, changed: set[str], *, expected: bool) -> str | None:
    """Return in words how what was read differs from what has changed; None if it does not."""
    statement = recognise(text, dialect)
    if changed and statement.alters is None:
        return f"{text!r} changed {sorted(changed)}, and was not told to alter the session"
    if changed and statement.harmless:
        return f"{text!r} changed {sorted(changed)}, and was called harmless"
    if expected and not changed:
        return f"{text!r} changed nothing: the test does not see what it does"
    if not expected and not statement.harmless:
        return f"{text!r} left nothing, and was not called harmless"
    return None


# -- PostgreSQL

POSTGRESQL_STATE = """
    select 'setting ' || name as what, setting from pg_settings
    union all select 'setting a.b', current_setting('a.b', true)
    union all select 'current user', current_user
    union all select 'session user', session_user
    union all select 'temporary ' || relname, relkind::text from pg_class
        where relnamespace = pg_my_temp_schema()
    union all select 'temporary ' || proname, '' from pg_proc where pronamespace = pg_my_temp_schema()
    union all select 'lock ' || objid, mode from pg_locks
        where locktype = 'advisory' and pid = pg_backend_pid()
    union all select 'prepared ' || name, statement from pg_prepared_statements
    union all select 'cursor ' || name, statement from pg_cursors
    union all select 'listens ' || channel, '' from pg_listening_channels() channel
    union all select 'module ' || file_name, '' from pg_get_loaded_modules()
        where file_name like '%auto_explain%'
"""

POSTGRESQL_ALTERS = """
    SET search_path = pg_catalog
    set session statement_timeout to 5000
    SET TIME ZONE 'Asia/Tokyo'
    SET ROLE pg_monitor
    SET SESSION AUTHORIZATION app
    SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
    SELECT set_config('statement_timeout', '5s', false)
    SELECT pg_catalog.set_config('statement_timeout', '5s', not true)
    WITH x AS MATERIALIZED (SELECT set_config('work_mem', '1MB', false) AS y) SELECT y FROM x
    VALUES (set_config('a.b', 'c', false), 1)
    SELECT 1 WHERE EXISTS (SELECT 1 FROM (SELECT set_config('work_mem', '1MB', false)) x)
    SELECT (ARRAY[1, 2])[1:length(set_config('work_mem', '1MB', false))]
    EXPLAIN ANALYZE SELECT set_config('work_mem', '1MB', false)
    LISTEN jobs
    PREPARE q AS SELECT 1
    PREPARE transaction AS SELECT 1
    BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT
    CREATE TEMP TABLE left_behind (id int)
    CREATE TEMPORARY TABLE left_behind (id int) ON COMMIT DELETE ROWS
    CREATE LOCAL TEMP TABLE left_behind AS SELECT 1 AS id
    CREATE OR REPLACE TEMP VIEW left_behind AS SELECT 1 AS id
    CREATE TEMP SEQUENCE left_behind
    CREATE TABLE pg_temp.left_behind (id int)
    CREATE TABLE "pg_temp" . left_behind (id int)
    CREATE FUNCTION pg_temp.left_behind() RETURNS int LANGUAGE sql RETURN 1
    SELECT 1 AS id INTO TEMP left_behind
    SELECT 1 AS id INTO TEMPORARY TABLE left_behind
    SELECT 1 AS id INTO pg_temp.left_behind
    EXPLAIN (ANALYZE) CREATE TEMP TABLE left_behind AS SELECT 1 AS id
    LOAD 'auto_explain'
    SELECT pg_advisory_lock(1)
    SELECT pg_try_advisory_lock(1, 2)
    SELECT pg_advisory_lock_shared(1)
    SELECT "pg_try_advisory_lock_shared"(1)
    SELECT 'a\\'; SELECT pg_advisory_lock(1); --'
    SELECT 1; SELECT /* ; */ pg_advisory_lock (1)
"""

POSTGRESQL_HARMLESS = """
    SELECT 1
    SELECT count(*), now(), lower('X'), coalesce(NULL, 1) FROM pg_class WHERE relname LIKE 'pg%'
    SELECT set_config('statement_timeout', '5s', true)
    SELECT 'LISTEN jobs; SET work_mem = 1', $$ SELECT pg_advisory_lock(1) $$, E'\\'; LISTEN jobs --'
    SELECT 1 /* ; LISTEN /* nested */ jobs; */ -- ; LISTEN jobs
    BEGIN; SET LOCAL work_mem = '1MB'; COMMIT
    BEGIN; SET TRANSACTION READ ONLY; COMMIT
    BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; COMMIT
    BEGIN; CREATE TEMP TABLE left_behind (id int) ON COMMIT DROP; COMMIT
    BEGIN; SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2); COMMIT
    BEGIN; SAVEPOINT a; ROLLBACK TO a; RELEASE a; END
    BEGIN; LOCK TABLE t IN SHARE MODE; ROLLBACK AND CHAIN; ABORT
    INSERT INTO t (id, name) VALUES (1, 'a'), (2, 'b') ON CONFLICT (id) DO UPDATE SET name = excluded.name
    INSERT INTO temp (id) VALUES (1) RETURNING id
    UPDATE t SET name = upper(name) WHERE id IN (SELECT max(id) FROM t)
    DELETE FROM t USING temp WHERE t.id = temp.id
    MERGE INTO t USING temp ON t.id = temp.id WHEN MATCHED THEN DO NOTHING
    WITH gone AS (DELETE FROM t RETURNING id) SELECT count(*) FROM gone
    SELECT nextval('numbers'), setval('numbers', 5)
    TABLE t
    VALUES (1, 2)
    COPY (SELECT id FROM t) TO '/dev/null'
    EXPLAIN (COSTS OFF) SELECT id FROM t
    SHOW search_path
    CREATE TABLE u (id int PRIMARY KEY, name varchar(10) REFERENCES v (name), CHECK (id > 0))
    CREATE INDEX ON t USING btree (lower(name), id)
    ALTER TABLE t ADD COLUMN more numeric(10, 2) DEFAULT round(1.5)
    CREATE VIEW w AS SELECT id FROM t
    COMMENT ON TABLE t IS 'LISTEN jobs'
    NOTIFY jobs, 'x'
    ANALYZE t
    TRUNCATE t
    VACUUM t
"""

POSTGRESQL_TABLES = """
    create table t (id int primary key, name text);
    create table temp (id int);
    create table v (name varchar(10) primary key);
    create sequence numbers
"""


def lines(texts: str) -> list[str]:
    return [line.strip() for line in texts.strip().splitlines()]


def postgresql_changes(server: PostgreSQL, database: str, text: str) -> set[str]:
    """Return what a text changes in the session in which it runs."""
    params = {**server.params_for(user="postgres", dbname=database)}
    with contextlib.closing(psycopg.connect(**params, autocommit=True)) as conn:

        def state() -> State:
            return dict(conn.execute(POSTGRESQL_STATE, prepare=False).fetchall())

        before = state()
        conn.execute(text.encode(), prepare=False)
        return changes(before, state())


@pytest.fixture(scope="module")
def postgresql_tables(postgresql: PostgreSQL) -> Iterator[str]:
    with postgresql.database() as name:
        with psycopg.connect(**postgresql.params_for(user="postgres", dbname=name)) as conn:
            conn.execute(POSTGRESQL_TABLES.encode())
        conn.close()
        yield name


@pytest.mark.parametrize(("texts", "expected"), [(POSTGRESQL_ALTERS, True), (POSTGRESQL_HARMLESS, False)])
def test_postgresql_agrees_with_what_is_read(
    postgresql: PostgreSQL, postgresql_tables: str, texts: str, expected: bool
) -> None:
    found = [
        disagreement(
            "postgresql", text, postgresql_changes(postgresql, postgresql_tables, text), expected=expected
        )
        for text in lines(texts)
    ]
    assert [report for report in found if report] == []
    wait_until(lambda: not any(session.database == postgresql_tables for session in postgresql.census()))


def test_every_function_in_the_table_is_one_of_postgresql(postgresql: PostgreSQL) -> None:
    with contextlib.closing(psycopg.connect(**postgresql.params, autocommit=True)) as conn:
        rows = conn.execute("select proname from pg_proc where pronamespace = 'pg_catalog'::regnamespace")
        there = {name for (name,) in rows}
    assert functions.POSTGRESQL - there == set()
    rules = _RULES["postgresql"]
    extensions = {"dblink_connect", "dblink_connect_u", "dblink_disconnect", "dblink_open"}
    assert (rules.altering.keys() | rules.asking.keys()) - there == extensions


# -- MariaDB

NOT_A_SETTING = {
    "timestamp",
    "rand_seed1",
    "rand_seed2",
    "last_insert_id",
    "identity",
    "insert_id",
    "in_transaction",
}
NOT_A_SETTING |= {"warning_count", "error_count", "pseudo_thread_id", "last_gtid"}

MARIADB_ALTERS = """
    SET sql_mode = 'ANSI_QUOTES'
    SET SESSION time_zone = '+05:00'
    SET @@session.sort_buffer_size = 100000
    SET LOCAL sort_buffer_size = 100000
    SET @@local.sort_buffer_size = 100000, @b = 2
    SET NAMES latin1
    SET CHARACTER SET latin1
    SET autocommit = 0
    SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE
    SET @total = 5
    SET @`total` := 5
    SELECT @total := 5
    select 1.5into@total
    SELECT 1, 2 INTO @a, @b
    SELECT'x'INTO@`total`
    CALL into_variable(@total)
    /*!40101 SET @total = 5 */
    SELECT 1 /*M!100000 + (@total := 5) */
    SET /*!999999 GLOBAL */ sort_buffer_size = 100000
    CREATE TEMPORARY TABLE left_behind (id int)
    CREATE OR REPLACE TEMPORARY TABLE left_behind AS SELECT 1 AS id
    SELECT GET_LOCK('left_behind', 1)
    DO `get_lock`('left_behind', 1)
    SET STATEMENT max_statement_time = 5 FOR SELECT get_lock('left_behind', 1)
    LOCK TABLES t WRITE
    PREPARE left_behind FROM 'SELECT 1'
    USE information_schema
    HANDLER t OPEN AS left_behind
    SELECT 5--1; SET @total = 5
    SELECT 'it\\'s', "x\\"y"; SET @total = 5
"""

MARIADB_HARMLESS = """
    SELECT 1
    SELECT COUNT(*), NOW(), CONCAT('a', "b;USE x"), IFNULL(NULL, 1) FROM `t`
    SELECT 'USE mysql; SET @a = 1', 'it''s', 2*/*c*/3 # ; USE mysql
    SELECT 1 /* ; USE mysql; */ -- ; USE mysql
    SELECT @@session.time_zone, @@max_connections
    INSERT INTO t (id, name) VALUES (1, 'a'), (2, 'b') ON DUPLICATE KEY UPDATE id = LAST_INSERT_ID(id)
    INSERT t (id) VALUES (5)
    REPLACE t (id, name) VALUES (1, 'x')
    UPDATE t SET name = UPPER(name) WHERE id IN (1, 2)
    DELETE FROM t WHERE name = 'GET_LOCK()'
    SET STATEMENT max_statement_time = 5 FOR SELECT 1
    START TRANSACTION; SAVEPOINT a; ROLLBACK TO a; COMMIT
    BEGIN; INSERT INTO t (name) VALUES ('x'); ROLLBACK
    CREATE TABLE u (id int(11) PRIMARY KEY, kind enum('a', 'b'), price decimal(10, 2), KEY i (kind))
    ALTER TABLE t ADD COLUMN more datetime(6) DEFAULT now(6)
    DROP TABLE IF EXISTS u
    CREATE INDEX i ON t (name)
    ANALYZE TABLE t
    TRUNCATE t
    SHOW TABLES
    EXPLAIN SELECT id FROM t
    WITH RECURSIVE x (a) AS (SELECT 1) SELECT a FROM x
    VALUES (1, 2)
    DO SLEEP(0)
    SELECT LAST_INSERT_ID()
    SHOW WARNINGS
"""

MARIADB_TABLES = (
    "create table t (id int auto_increment primary key, name varchar(20))",
    "create procedure into_variable(out total int) set total = 5",
)

# Each is answered in a manner that tells whether something by this name is in the session.
MARIADB_PROBES = {
    "temporary table": "select count(*) from left_behind",
    "prepared statement": "execute left_behind",
    "handler": "handler left_behind read first",
    "locked tables": "select count(*) from information_schema.tables limit 0",
}


def mariadb_changes(server: MariaDB, database: str, text: str) -> set[str]:
    params = server.params_for(database=database)
    multi = pymysql.constants.CLIENT.MULTI_STATEMENTS
    with contextlib.closing(pymysql.connect(**params, autocommit=True, client_flag=multi)) as conn:
        cursor = conn.cursor()

        def answer(question: str) -> object:
            try:
                cursor.execute(question)
                return cursor.fetchall()
            except pymysql.MySQLError as error:
                return error.args[0]

        def state() -> State:
            cursor.execute("show session variables")
            found: State = {name: value for name, value in cursor.fetchall() if name not in NOT_A_SETTING}
            found["database"] = answer("select database()")
            found["lock"] = answer("select is_used_lock('left_behind') is not null")
            cursor.execute("select variable_name, variable_value from information_schema.user_variables")
            found.update({f"@{name}": value for name, value in cursor.fetchall()})
            return found | {what: answer(probe) for what, probe in MARIADB_PROBES.items()}

        before = state()
        cursor.execute(text)
        while cursor.nextset():
            pass
        return changes(before, state())


@pytest.fixture(scope="module")
def mariadb_tables(mariadb: MariaDB) -> Iterator[str]:
    with mariadb.database() as name:
        with contextlib.closing(pymysql.connect(**mariadb.params_for(database=name))) as conn:
            for text in MARIADB_TABLES:
                conn.cursor().execute(text)
        yield name


@pytest.mark.parametrize(("texts", "expected"), [(MARIADB_ALTERS, True), (MARIADB_HARMLESS, False)])
def test_mariadb_agrees_with_what_is_read(
    mariadb: MariaDB, mariadb_tables: str, texts: str, expected: bool
) -> None:
    found = [
        disagreement("mysql", text, mariadb_changes(mariadb, mariadb_tables, text), expected=expected)
        for text in lines(texts)
    ]
    assert [report for report in found if report] == []
    wait_until(lambda: not any(session.database == mariadb_tables for session in mariadb.census()))


# A function that is there complains of its arguments, or of the syntax.
NO_SUCH_FUNCTION = 1305
NOT_IN_MARIADB_10_11 = functions.names("""
    any_value bin_to_uuid format_bytes format_pico_time geometrycollection grouping is_uuid
    json_array_intersect json_schema_valid json_storage_free json_storage_size linestring member
    multilinestring multipoint multipolygon point polygon regexp_like st_isvalid st_latitude st_longitude
    st_makeenvelope st_simplify st_transform uuid_to_bin validate_password_strength
""")


def test_every_function_in_the_table_is_known_to_mariadb_or_to_others_of_its_kind(mariadb: MariaDB) -> None:
    with contextlib.closing(pymysql.connect(**mariadb.params, autocommit=True)) as conn:
        missing = set()
        for name in functions.MYSQL:
            try:
                conn.cursor().execute(f"do {name}()")
            except pymysql.MySQLError as error:
                if error.args[0] == NO_SUCH_FUNCTION:
                    missing.add(name)
    assert missing == NOT_IN_MARIADB_10_11
