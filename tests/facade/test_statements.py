"""What is read from a text: a table of texts for each server, and what holds for every text."""

import time
from typing import get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from connpool.facade import functions, verbs
from connpool.facade.statements import _RULES, Dialect, Readings, Statement, recognise

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

ALTERING: list[tuple[Dialect, str, str]] = [
    ("postgresql", "SET search_path = tenant_7, public", "SET search_path"),
    ("postgresql", "set session statement_timeout to 5", "SET statement_timeout"),
    ("postgresql", "SET TIME ZONE 'UTC'", "SET TIME ZONE"),
    ("postgresql", "SET ROLE app", "SET ROLE"),
    ("postgresql", "SET SESSION ROLE app", "SET ROLE"),
    ("postgresql", "SET SESSION AUTHORIZATION app", "SET SESSION AUTHORIZATION"),
    (
        "postgresql",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET SESSION CHARACTERISTICS",
    ),
    ("postgresql", "RESET ALL", "RESET all"),
    ("postgresql", "DISCARD TEMP", "DISCARD temp"),
    ("postgresql", "LISTEN jobs", "LISTEN"),
    ("postgresql", "UNLISTEN *", "UNLISTEN"),
    ("postgresql", "PREPARE q AS SELECT 1", "PREPARE"),
    ("postgresql", "PREPARE transaction (int) AS SELECT $1", "PREPARE"),
    ("postgresql", "DEALLOCATE q", "DEALLOCATE"),
    ("postgresql", "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "a cursor WITH HOLD"),
    ("postgresql", "CREATE TEMP TABLE t (id int)", "a temporary table"),
    ("postgresql", "create or replace local temporary view v as select 1", "a temporary view"),
    ("postgresql", "CREATE TEMP SEQUENCE s", "a temporary sequence"),
    ("postgresql", "CREATE TEMP TABLE t (id int) ON COMMIT DELETE ROWS", "a temporary table"),
    ("postgresql", "CREATE TABLE pg_temp.t (id int)", "a temporary table"),
    ("postgresql", 'CREATE FUNCTION "pg_temp".f() RETURNS int LANGUAGE sql RETURN 1', "a temporary function"),
    ("postgresql", "SELECT 1 INTO TEMP t", "a temporary table"),
    ("postgresql", "WITH x AS (SELECT 1) SELECT * INTO LOCAL TEMPORARY TABLE t FROM x", "a temporary table"),
    ("postgresql", "EXPLAIN (ANALYZE, FORMAT json) CREATE TEMP TABLE t AS SELECT 1", "a temporary table"),
    ("postgresql", "LOAD 'auto_explain'", "LOAD"),
    ("postgresql", "SELECT pg_advisory_lock(1)", "pg_advisory_lock()"),
    ("postgresql", "SELECT pg_catalog . pg_try_advisory_lock_shared (1)", "pg_try_advisory_lock_shared()"),
    ("postgresql", 'SELECT "pg_advisory_unlock_all"()', "pg_advisory_unlock_all()"),
    ("postgresql", "WITH x AS (SELECT pg_advisory_lock(%s)) SELECT 1 FROM x", "pg_advisory_lock()"),
    ("postgresql", "COPY (SELECT set_config('a.b', 'c', false)) TO STDOUT", "set_config()"),
    ("postgresql", "VALUES (set_config('a.b', 'c', %s))", "set_config()"),
    ("postgresql", "SELECT set_config('a.b', 'c', not true)", "set_config()"),
    ("postgresql", "SELECT a[1:set_config('a.b', 'c', false)::int] FROM t", "set_config()"),
    ("postgresql", "SELECT setseed(0.5)", "setseed()"),
    ("postgresql", "SELECT dblink_connect('host=other')", "dblink_connect()"),
    ("postgresql", "SELECT 1; LISTEN jobs", "LISTEN"),
    ("postgresql", "SELECT 1 -- SELECT\r; LISTEN jobs", "LISTEN"),
    (
        "postgresql",
        "CREATE TABLE t AS SELECT 1 FROM a JOIN b ON pg_try_advisory_lock(1)",
        "pg_try_advisory_lock()",
    ),
    ("postgresql", "SELECT DISTINCT ON (a) pg_try_advisory_lock(1) FROM t", "pg_try_advisory_lock()"),
    ("postgresql", "CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2); LISTEN jobs", "LISTEN"),
    (
        "postgresql",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END; LISTEN jobs",
        "LISTEN",
    ),
    ("mysql", "SET sql_mode = 'ANSI'", "SET sql_mode"),
    ("mysql", "SET SESSION time_zone = '+00:00'", "SET time_zone"),
    ("mysql", "SET @@session.time_zone = '+00:00'", "SET @@session.time_zone"),
    ("mysql", "SET NAMES utf8mb4", "SET NAMES"),
    ("mysql", "SET CHARACTER SET utf8mb4", "SET CHARACTER SET"),
    ("mysql", "SET @total = 5", "SET @total"),
    ("mysql", "SET GLOBAL max_connections = 5, @total = 5", "SET global"),
    ("mysql", "SET TRANSACTION READ ONLY", "SET TRANSACTION for the next transaction"),
    ("mysql", "SET SESSION TRANSACTION READ ONLY", "SET transaction"),
    ("mysql", "SET autocommit = 0", "SET autocommit"),
    ("mysql", "/*!40101 SET NAMES utf8 */", "SET NAMES"),
    ("mysql", "SET /*!99999 GLOBAL */ sort_buffer_size = 5", "SET sort_buffer_size"),
    ("mysql", "SET /*!99999 /* a */ GLOBAL */ sort_buffer_size = 5", "SET sort_buffer_size"),
    ("mysql", "SELECT @total := @total + 1 FROM (SELECT @total := 0) zero", "the user variable @total"),
    ("mysql", "select 1.5into@a", "the user variable @a"),
    ("mysql", "CALL totals(1, @total)", "the user variable @total"),
    ("mysql", "GET DIAGNOSTICS @n = NUMBER", "the user variable @n"),
    ("mysql", "CREATE TEMPORARY TABLE t (id int)", "a temporary table"),
    ("mysql", "SELECT GET_LOCK('a', 1)", "GET_LOCK()"),
    ("mysql", "DO release_all_locks()", "RELEASE_ALL_LOCKS()"),
    ("mysql", "SET STATEMENT max_statement_time = 1 FOR SELECT get_lock('a', 1)", "GET_LOCK()"),
    ("mysql", "LOCK TABLES t WRITE", "LOCK TABLES"),
    ("mysql", "UNLOCK TABLES", "UNLOCK TABLES"),
    ("mysql", "FLUSH TABLES t WITH READ LOCK", "FLUSH TABLES WITH READ LOCK"),
    ("mysql", "PREPARE q FROM 'SELECT 1'", "PREPARE"),
    ("mysql", "EXECUTE q", "EXECUTE"),
    ("mysql", "DROP PREPARE q", "DROP PREPARE"),
    ("mysql", "USE other", "USE"),
    ("mysql", "HANDLER t OPEN", "HANDLER"),
    ("mysql", "SELECT SQL_CALC_FOUND_ROWS id FROM t LIMIT 1", "SQL_CALC_FOUND_ROWS"),
    ("mysql", "UPDATE tickets SET id = LAST_INSERT_ID(id + 1)", "LAST_INSERT_ID(expr)"),
    ("mysql", "SELECT LAST_INSERT_ID(5)", "LAST_INSERT_ID(expr)"),
    ("mysql", "XA START 'x'", "an XA transaction"),
    ("mysql", "SELECT 'it\\'s'; USE other", "USE"),
    ("mysql", "SELECT 5--1; USE other", "USE"),
    ("mysql", "SET STATEMENT max_statement_time = 1 FOR SELECT 1 INTO @a", "the user variable @a"),
    (
        "mysql",
        "CREATE PROCEDURE p() BEGIN IF 1 THEN BEGIN SET @a = 1; END; END IF; SET @b = 1; END; USE other",
        "USE",
    ),
    ("sqlite", "PRAGMA foreign_keys = ON", "PRAGMA foreign_keys"),
    ("sqlite", "PRAGMA busy_timeout(5)", "PRAGMA busy_timeout"),
    ("sqlite", "ATTACH 'other.db' AS other", "ATTACH"),
    ("sqlite", "DETACH other", "DETACH"),
    ("sqlite", "CREATE TEMP TRIGGER a AFTER INSERT ON t BEGIN SELECT 1; END", "a temporary trigger"),
    ("sqlite", "CREATE TABLE temp.t (id)", "a temporary table"),
    (
        "sqlite",
        "CREATE TRIGGER a AFTER INSERT ON t BEGIN DELETE FROM u; END; PRAGMA foreign_keys = 1",
        "PRAGMA foreign_keys",
    ),
    ("sqlite", "SELECT load_extension('x')", "load_extension()"),
    ("unknown", "SET search_path TO other", "SET search_path"),
    ("unknown", "ALTER SESSION SET NLS_DATE_FORMAT = 'x'", "ALTER SESSION"),
    ("unknown", "EXEC sp_reset", "EXEC"),
    ("unknown", "USE other", "USE"),
    ("unknown", "SELECT 1 id INTO #t", "a temporary table"),
    ("unknown", "CREATE PRIVATE TEMPORARY TABLE t (id int)", "a temporary table"),
]


@pytest.mark.parametrize(("dialect", "text", "what"), ALTERING)
def test_what_stays_in_the_session_is_told(dialect: Dialect, text: str, what: str) -> None:
    statement = recognise(text, dialect)
    assert statement.alters == what
    assert not statement.harmless


HARMLESS: list[tuple[Dialect, str]] = [
    ("postgresql", ""),
    ("postgresql", " \n "),
    ("postgresql", "SELECT 1"),
    ("postgresql", "(SELECT 1) UNION (SELECT 2)"),
    ("postgresql", 'SELECT "u"."id", count(*), now() FROM "u" WHERE "u"."id" IN (%s, %s) GROUP BY 1'),
    ("postgresql", "SELECT %(now)s, $1, a[1:2], 'x'::varchar(10), CAST(b AS numeric(10, 2)) FROM t"),
    ("postgresql", "WITH RECURSIVE x(a) AS (VALUES (1)) SELECT sum(a) OVER (PARTITION BY a) FROM x"),
    ("postgresql", "SELECT pg_catalog.set_config('a.b', 'c', TRUE)"),
    ("postgresql", "SELECT pg_advisory_xact_lock(1)"),
    (
        "postgresql",
        "SELECT 'LISTEN jobs; SET a = 1' AS \"LISTEN\", $x$ ; LISTEN jobs $x$, E'\\'; LISTEN jobs'",
    ),
    ("postgresql", "SELECT 1 /* /* a */ ; LISTEN jobs */ -- ; LISTEN jobs"),
    ("postgresql", "SELECT a$b$c FROM t"),
    ("postgresql", "SELECT E'a'\n'\\'; LISTEN jobs'"),
    (
        "postgresql",
        "INSERT INTO t (a, b) VALUES (1, lower('X')) ON CONFLICT (a) DO UPDATE SET b = excluded.b",
    ),
    ("postgresql", "INSERT INTO temp (a) VALUES (1) RETURNING id"),
    ("postgresql", "UPDATE t SET a = coalesce(b, %s)"),
    ("postgresql", "DELETE FROM t USING u WHERE t.id = u.id"),
    ("postgresql", "COPY t (a, b) FROM STDIN"),
    ("postgresql", "SET LOCAL search_path = other"),
    ("postgresql", "SET TRANSACTION READ ONLY"),
    ("postgresql", "SET CONSTRAINTS ALL DEFERRED"),
    ("postgresql", "CREATE TEMP TABLE t (id int) ON COMMIT DROP"),
    ("postgresql", "DECLARE c CURSOR FOR SELECT 1"),
    ("postgresql", "PREPARE TRANSACTION 'x'"),
    ("postgresql", "CREATE TABLE t (id int PRIMARY KEY, a varchar(9) REFERENCES u (a), CHECK (id > 0))"),
    ("postgresql", "CREATE INDEX i ON t USING gin (lower(a))"),
    ("postgresql", "NOTIFY jobs"),
    ("postgresql", "SELECT pg_catalog . lower(a) FROM unnest(%s::text[]) AS x (a), unnest(%s) y (b)"),
    ("postgresql", "CREATE TABLE event (id int); INSERT INTO lastval (id) VALUES (1)"),
    ("mysql", "SELECT COUNT(*) FROM `t` WHERE `a` = 'it''s' AND b = \"x; USE other\""),
    ("mysql", "SELECT @@session.time_zone, 2*/*c*/3 # ; USE other"),
    ("mysql", "INSERT INTO t (id) VALUES (1) ON DUPLICATE KEY UPDATE id = LAST_INSERT_ID(id)"),
    ("mysql", "REPLACE t (id) VALUES (1)"),
    ("mysql", "SET GLOBAL max_connections = 5"),
    ("mysql", "SET @@global.max_connections = 5"),
    ("mysql", "SET STATEMENT max_statement_time = 1 FOR SELECT 1"),
    ("mysql", "SHOW TABLES"),
    ("mysql", "CREATE TABLE t (id int(11) PRIMARY KEY, a enum('x'), KEY i (a))"),
    ("mysql", "GRANT ALL ON app.* TO app@localhost"),
    ("mysql", "DROP TEMPORARY TABLE t"),
    ("mysql", "SELECT /*+ SET_VAR(sort_buffer_size = 16M) */ 1"),
    ("sqlite", "PRAGMA table_info(t)"),
    ("sqlite", "PRAGMA user_version"),
    ("sqlite", "INSERT INTO changes (a) VALUES (1)"),
    ("sqlite", "SELECT json_extract(a, '$.b'), [set], `use` FROM t WHERE b = :b"),
    ("sqlite", "INSERT OR REPLACE INTO t (a) VALUES (?)"),
    ("unknown", "SELECT a FROM t WHERE b IN (1, 2) AND c = ?"),
    ("unknown", "INSERT INTO t (a) VALUES (?)"),
    ("unknown", "UPDATE t SET a = 1"),
    ("unknown", "DELETE FROM t"),
]


@pytest.mark.parametrize(("dialect", "text"), HARMLESS)
def test_what_leaves_nothing_is_harmless(dialect: Dialect, text: str) -> None:
    statement = recognise(text, dialect)
    assert statement.harmless
    assert statement.alters is None


UNCLEAR: list[tuple[Dialect, str]] = [
    ("postgresql", "%s"),
    ("postgresql", "DO $$ BEGIN END $$"),
    ("postgresql", "CALL p()"),
    ("postgresql", "EXECUTE q"),
    ("postgresql", "SELECT audit('x')"),
    ("postgresql", "SELECT app.lower('x')"),
    ("postgresql", "SELECT \"LOWER\"('x')"),
    ("postgresql", "SELECT ran\N{KELVIN SIGN}()"),
    ("postgresql", "SELECT \N{EURO SIGN}()"),
    ("postgresql", "SELECT query_to_xml('LISTEN jobs', true, true, '')"),
    ("postgresql", "SELECT 'a\\'', f(), '''"),
    ("postgresql", "CREATE EXTENSION hstore"),
    ("postgresql", "CREATE FUNCTION f() RETURNS void BEGIN ATOMIC SELECT 1; COMMIT; END"),
    ("postgresql", "FROBNICATE"),
    ("mysql", "SELECT @total"),
    ("mysql", "INSERT INTO t VALUES (@total)"),
    ("mysql", "SELECT 1f()"),
    ("mysql", "CALL p()"),
    ("mysql", "EXECUTE IMMEDIATE 'USE other'"),
    ("mysql", "CREATE DEFINER = app@localhost PROCEDURE p() BEGIN SET @a = 1; COMMIT; END"),
    ("mysql", "BEGIN NOT ATOMIC SET @a = 1; END"),
    ("mysql", "COMMIT RELEASE"),
    ("mysql", "SELECT 'a\\', f(), ''"),
    ("sqlite", "SELECT audit(1)"),
    ("sqlite", "CREATE TRIGGER a AFTER INSERT ON t BEGIN DELETE FROM u; END"),
    ("unknown", "SELECT lower(a) FROM t"),
    ("unknown", "SELECT 1 EXEC sp_reset"),
    ("unknown", "UPDATE t SET a = 1 SET x ON"),
    ("unknown", "COMMIT"),
]


@pytest.mark.parametrize(("dialect", "text"), UNCLEAR)
def test_what_may_do_anything_is_neither(dialect: Dialect, text: str) -> None:
    statement = recognise(text, dialect)
    assert not statement.harmless
    assert statement.alters is None


ASKING: list[tuple[Dialect, str, str | None]] = [
    ("postgresql", "SELECT lastval()", "lastval()"),
    ("postgresql", "INSERT INTO t VALUES (currval('s'))", "currval()"),
    ("postgresql", "SELECT nextval('s'), currval('s')", None),
    ("postgresql", "INSERT INTO t VALUES (1); SELECT lastval()", None),
    ("postgresql", "SELECT 1; SELECT lastval()", "lastval()"),
    ("mysql", "SELECT LAST_INSERT_ID( )", "LAST_INSERT_ID()"),
    ("mysql", "SELECT LAST_INSERT_ID(/* none */)", "LAST_INSERT_ID()"),
    ("mysql", "SELECT FOUND_ROWS()", "FOUND_ROWS()"),
    ("mysql", "SELECT ROW_COUNT()", "ROW_COUNT()"),
    ("mysql", "SHOW COUNT(*) WARNINGS", "SHOW WARNINGS"),
    ("mysql", "SHOW ERRORS", "SHOW ERRORS"),
    ("mysql", "SELECT @@session.warning_count", "@@warning_count"),
    ("mysql", "GET DIAGNOSTICS @n = NUMBER", "GET DIAGNOSTICS"),
    ("mysql", "SELECT @total", "@total"),
    ("mysql", "SELECT LAST_INSERT_ID(5)", None),
    ("sqlite", "SELECT changes(), 1", "changes()"),
    ("sqlite", "SELECT last_insert_rowid()", "last_insert_rowid()"),
]


@pytest.mark.parametrize(("dialect", "text", "what"), ASKING)
def test_a_question_about_the_statement_before_is_told(dialect: Dialect, text: str, what: str | None) -> None:
    assert recognise(text, dialect).asks_previous == what


BLOCKS: list[tuple[Dialect, str, bool, bool]] = [
    ("postgresql", "BEGIN", True, False),
    ("postgresql", "START TRANSACTION ISOLATION LEVEL SERIALIZABLE", True, False),
    ("postgresql", "COMMIT", False, True),
    ("postgresql", "END", False, True),
    ("postgresql", "ABORT", False, True),
    ("postgresql", "COMMIT AND CHAIN", True, True),
    ("postgresql", "ROLLBACK", False, True),
    ("postgresql", "ROLLBACK WORK TO SAVEPOINT a", False, False),
    ("postgresql", "ROLLBACK PREPARED 'x'", False, False),
    ("postgresql", "PREPARE TRANSACTION 'x'", False, True),
    ("postgresql", "BEGIN; INSERT INTO t VALUES (1); COMMIT", True, True),
    ("postgresql", "CREATE TABLE t (id int)", False, False),
    ("mysql", "BEGIN", True, True),
    ("mysql", "BEGIN NOT ATOMIC SELECT 1; END", False, False),
    ("mysql", "START REPLICA", False, False),
    ("mysql", "ROLLBACK TO a", False, False),
    ("mysql", "CREATE TABLE t (id int)", False, True),
    ("mysql", "CREATE TEMPORARY TABLE t (id int)", False, False),
    ("mysql", "DROP TEMPORARY TABLE t", False, False),
    ("mysql", "TRUNCATE t", False, True),
    ("mysql", "LOCK TABLES t READ", False, True),
    ("mysql", "XA START 'x'", True, False),
    ("mysql", "XA COMMIT 'x'", False, True),
    ("sqlite", "BEGIN IMMEDIATE", True, False),
    ("sqlite", "SAVEPOINT a", True, False),
    ("sqlite", "ROLLBACK TO a", False, False),
    ("unknown", "COMMIT", False, True),
]


@pytest.mark.parametrize(("dialect", "text", "begins", "ends"), BLOCKS)
def test_the_ends_of_a_transaction_are_told(dialect: Dialect, text: str, begins: bool, ends: bool) -> None:
    statement = recognise(text, dialect)
    assert (statement.begins, statement.ends) == (begins, ends)


def test_a_value_is_never_told() -> None:
    for text in (
        "SET password_of_app = 'geheim'",
        "SET x TO 'geheim'",
        "SELECT set_config('x', 'geheim', false)",
    ):
        assert "geheim" not in repr(recognise(text, "postgresql"))


def test_a_long_name_is_cut() -> None:
    statement = recognise("SET " + "a" * 10_000, "postgresql")
    assert statement.alters is not None
    assert len(statement.alters) < 100


# -- what holds for every text

PIECES: dict[Dialect, list[str]] = {
    dialect: [
        *(text for d, text, *_ in (*ALTERING, *ASKING, *BLOCKS) if d == dialect),
        *(text for d, text in HARMLESS if d == dialect and text.strip()),
    ]
    for dialect in DIALECTS
}
# These go to the end of the text, so that nothing can follow.
OPEN_ENDS = ("--", "#")


def whole(dialect: Dialect) -> st.SearchStrategy[str]:
    return st.sampled_from([text for text in PIECES[dialect] if not any(end in text for end in OPEN_ENDS)])


dialects = st.sampled_from(DIALECTS)
SIGNS = st.text(st.sampled_from("'\"`$[]()/*!-#;\\ \n@:=,.eEU&%sax1") | st.characters(), max_size=60)
few = settings(max_examples=150, deadline=None)


@few
@given(dialects, SIGNS)
def test_no_text_raises(dialect: Dialect, text: str) -> None:
    assert isinstance(recognise(text, dialect), Statement)


@few
@given(st.data(), dialects)
def test_comments_and_white_space_and_case_change_nothing(data: st.DataObject, dialect: Dialect) -> None:
    text = data.draw(whole(dialect))
    assume(not any(sign in text for sign in "'\"`[$%:/\\\N{KELVIN SIGN}"))  # spaces mean something in there
    gaps = st.sampled_from([" ", "\n", "\t  ", " /* ; SET x = 1 ' */ ", " -- it's\n"])
    other = "".join(data.draw(gaps) if sign == " " else sign for sign in text)
    other = (
        data.draw(gaps) + data.draw(st.sampled_from([other, other.upper(), other.lower()])) + data.draw(gaps)
    )
    assert recognise(other, dialect) == recognise(text, dialect)


@few
@given(st.data(), dialects)
def test_a_statement_in_a_literal_has_no_effect(data: st.DataObject, dialect: Dialect) -> None:
    inner = data.draw(st.sampled_from(PIECES[dialect]) | SIGNS)
    backslashes = dialect == "mysql"
    literal = "'" + (inner.replace("\\", "\\\\") if backslashes else inner).replace("'", "''") + "'"
    statement = recognise(f"SELECT {literal} AS x", dialect)
    assert (statement.verb, statement.alters, statement.asks_previous, statement.several) == (
        "SELECT",
        None,
        None,
        False,
    )
    # Where a backslash could end the literal early, it is not promised.
    assert statement.harmless or "\\" in inner


@few
@given(st.data(), dialects)
def test_statements_in_one_text_are_joined(data: st.DataObject, dialect: Dialect) -> None:
    one, other = data.draw(whole(dialect)), data.draw(whole(dialect))
    first, second = recognise(one, dialect), recognise(other, dialect)
    both = recognise(f"{one}; {other}", dialect)
    assert both.several
    assert both.verb == first.verb
    assert both.alters in (first.alters, second.alters)
    assert (both.alters is None) == (first.alters is None and second.alters is None)
    assert both.harmless == (first.harmless and second.harmless)
    assert both.begins == (first.begins or second.begins)
    assert both.ends == (first.ends or second.ends)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "unit",
    [
        "(",
        "'",
        '"',
        ",(",
        "/*",
        "/*!",
        "$a$ $b$ ",
        "a.",
        ",('",
        "\\'",
        "--",
        "--\n",
        "1e",
        "@",
        "%(",
        ":a",
        "[",
        ";",
    ],
)
def test_reading_takes_time_in_proportion(dialect: Dialect, unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        began = time.thread_time()
        recognise(text, dialect)
        return time.thread_time() - began

    # What grows with the square would take 256 times as long, and not 16.
    assert seconds(160_000) < 100 * max(seconds(10_000), 0.0005)


def test_the_tables_do_not_contradict_each_other() -> None:
    for rules in _RULES.values():
        assert not rules.harmless & (rules.altering.keys() | rules.asking.keys())
        assert not functions.DEFINITION & (rules.altering.keys() | rules.asking.keys())
    assert not functions.GRAMMAR & verbs.PROGRAMS


def test_a_bounded_number_of_texts_is_remembered() -> None:
    known = Readings("postgresql")
    for number in range(5000):
        assert known[f"SELECT {number}"].harmless
        assert len(known) <= 2048
    assert known["SELECT 4999"] is known["SELECT 4999"]
    long = f"SELECT '{'a' * 5000}'"
    assert known[long].harmless
    assert long not in known
