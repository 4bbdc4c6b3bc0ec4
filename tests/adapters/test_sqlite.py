"""sqlite3: the contract, and what only sqlite3 has."""

import gc
import os
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from adapters.contract import FULL, LIMIT, AdapterContract, Harness, Lent, in_forked_child
from connpool.adapter import Adapter, Fault, Verdict, adapter_for_url
from connpool.adapters.sqlite import Connection, SQLiteAdapter
from connpool.errors import PoolMisuse
from connpool.reset import Part

FOREVER = "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n) SELECT max(a) FROM n"

since_312 = pytest.mark.skipif(sys.version_info < (3, 12), reason="autocommit= is new in 3.12")


class SQLiteHarness(Harness):
    operational_error = sqlite3.OperationalError
    lacks: Mapping[str, str] = MappingProxyType(
        {
            "fail": "an error leaves sqlite3's transactions as they are",
            "kill": "no server",
            "black_hole": "no network",
            "keepalive": "no network",
            "credentials": "nobody asks for them",
            "idle_limit": "no server",
            "read_only": "no server that could be switched",
        }
    )

    def __init__(self, path: Path, **kwargs: Any) -> None:
        self.path = path
        self.kwargs = kwargs

    def adapter(self) -> Adapter[Any]:
        return SQLiteAdapter(self.path, **self.kwargs)

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, check_same_thread=False, **self.kwargs)

    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def bad_dials(self) -> Any:
        nowhere = SQLiteAdapter(self.path / "no" / "such.db")
        return {"no directory": (nowhere, frozenset({Fault.DEAD}))}

    def fileno(self, conn: sqlite3.Connection) -> int:
        return -1  # it has no socket

    def set_autocommit(self, conn: sqlite3.Connection) -> None:
        conn.isolation_level = None

    def leave_unread(self, conn: sqlite3.Connection) -> object:
        for a in range(3):
            self.insert(conn, a)
        conn.commit()
        cursor = conn.execute(f"SELECT a FROM {self.table}")
        cursor.fetchone()
        return cursor

    def slow(self, conn: sqlite3.Connection) -> None:
        conn.execute(FOREVER)

    def alterations(self) -> Mapping[str, Callable[[Any], object]]:
        def put(name: str, value: object) -> Callable[[Any], object]:
            return lambda conn: setattr(conn, name, value)

        return {
            "row_factory": put("row_factory", sqlite3.Row),
            "text_factory": put("text_factory", bytes),
            "isolation_level": put("isolation_level", "IMMEDIATE"),
            **({"autocommit": put("autocommit", True)} if sys.version_info >= (3, 12) else {}),
        }

    def settings(self, conn: Any) -> object:
        return [getattr(conn, name) for name in self.alterations()]

    def change_session(self, conn: sqlite3.Connection) -> None:
        conn.execute("PRAGMA cache_size = 4711")
        conn.execute("CREATE TEMP TABLE leak (a)")
        conn.execute("ATTACH ':memory:' AS leak")
        conn.create_function("leak", 0, lambda: 4711)
        conn.create_collation("leak", lambda a, b: 0)
        conn.commit()

    def session(self, conn: sqlite3.Connection) -> object:
        return (
            self.run(conn, "PRAGMA cache_size"),
            self.run(conn, "SELECT name FROM temp.sqlite_master"),
            [name for _, name, _ in self.run(conn, "PRAGMA database_list")],
            self.run(conn, "SELECT count(*) FROM pragma_function_list WHERE name = 'leak'"),
            self.run(conn, "SELECT count(*) FROM pragma_collation_list WHERE name = 'leak'"),
        )


class SQLiteContract(AdapterContract):
    """A full reset is a new connection here, so two tests of the contract look at that one."""

    @pytest.mark.parametrize("state", AdapterContract.STATES)
    def test_a_full_reset_makes_it_what_it_was_at_connect(
        self,
        harness: Harness,
        lend: Callable[..., Lent],
        table: Callable[[], list[int]],
        state: str,
    ) -> None:
        if state == "failed":
            self.need(harness, "fail")
        adapter = harness.adapter()
        lent = lend(adapter)
        settings, at_connect = harness.settings(lent.conn), self.session(harness, lent)
        memory = adapter.remember(lent.conn, FULL, LIMIT)
        for _ in range(2):
            harness.change_session(lent.conn)
            if "altered" in state:
                harness.alter(lent.conn)
            if "dirty" in state:
                adapter.begin(lent.conn)
                harness.insert(lent.conn, 1)
            lent.reset(memory)
            assert lent.verdict() is Verdict.SPENT
            adapter.close(lent.conn, LIMIT)
            lent = lend(adapter)
            assert self.session(harness, lent) == at_connect
            assert harness.settings(lent.conn) == settings
        assert table() == []

    def test_every_part_leaves_it_clean_and_usable(
        self, harness: Harness, lend: Callable[..., Lent], table: Callable[[], list[int]]
    ) -> None:
        assert lend().adapter.parts == {Part.FULL}


class TestFile(SQLiteContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return SQLiteHarness(tmp_path / "app.db")


class TestWAL(SQLiteContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        conn = sqlite3.connect(tmp_path / "app.db")
        conn.execute("PRAGMA journal_mode = WAL")
        conn.close()
        return SQLiteHarness(tmp_path / "app.db")


class TestAround(SQLiteContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        class AroundHarness(SQLiteHarness):
            lacks = MappingProxyType({**SQLiteHarness.lacks, "forget": "only the adapter can refuse"})

            def adapter(self) -> Adapter[Any]:
                return SQLiteAdapter.around(self.connect)

        return AroundHarness(tmp_path / "app.db")


class TestMemory(SQLiteContract):
    @pytest.fixture
    def harness(self) -> Harness:
        class MemoryHarness(SQLiteHarness):
            lacks = MappingProxyType(
                {
                    **SQLiteHarness.lacks,
                    "bad_dials": "memory is always there",
                    "around": "the adapter is the database",
                }
            )
            one = SQLiteAdapter(":memory:")

            def adapter(self) -> Adapter[Any]:
                return self.one

            def url(self) -> str:
                return "sqlite://"

        return MemoryHarness(Path())


if sys.version_info >= (3, 12):

    class TestAutocommitTrue(SQLiteContract):
        @pytest.fixture
        def harness(self, tmp_path: Path) -> Harness:
            class TrueHarness(SQLiteHarness):
                def set_autocommit(self, conn: Any) -> None:
                    conn.autocommit = True

            return TrueHarness(tmp_path / "app.db")

    class TestAutocommitFalse(SQLiteContract):
        @pytest.fixture
        def harness(self, tmp_path: Path) -> Harness:
            class FalseHarness(SQLiteHarness):
                lacks = MappingProxyType(
                    {**SQLiteHarness.lacks, "alter": "the verdict sees an open transaction at any time"}
                )

                def set_autocommit(self, conn: Any) -> None:
                    conn.autocommit = True

            return FalseHarness(tmp_path / "app.db", autocommit=False)

        def test_a_half_read_select_is_given_up_after_the_commit(
            self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
        ) -> None:
            kept = harness.leave_unread(lent.conn)
            harness.insert(lent.conn, 9)
            assert lent.verdict() is Verdict.DIRTY
            lent.adapter.commit(lent.conn)
            assert lent.verdict() is Verdict.SPENT
            del kept
            assert table() == [0, 1, 2, 9]

        def test_an_interrupt_does_not_keep_it_from_being_closed(
            self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
        ) -> None:
            kept = harness.leave_unread(lent.conn)
            harness.insert(lent.conn, 9)
            lent.conn.interrupt()
            lent.adapter.close(lent.conn, LIMIT)
            assert lent.verdict() is Verdict.SPENT
            del kept
            assert table() == [0, 1, 2]

        def test_restore_puts_all_settings_back_within_the_transaction_that_is_always_open(
            self, harness: Harness, lent: Lent, table: Callable[[], list[int]]
        ) -> None:
            before = harness.settings(lent.conn)
            for end in (lent.adapter.commit, lambda conn: lent.adapter.rollback(conn, LIMIT)):
                for what, change in harness.alterations().items():
                    harness.insert(lent.conn, 1)
                    change(lent.conn)
                    if lent.verdict() is Verdict.DIRTY:
                        end(lent.conn)
                    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
                    assert harness.settings(lent.conn) == before, what
                    assert lent.conn.in_transaction, what
                    assert lent.at_rest(), what
            committed = table()
            harness.insert(lent.conn, 2)
            lent.adapter.rollback(lent.conn, LIMIT)
            assert table() == committed

        def test_restoring_what_is_not_altered_sends_nothing(self, lent: Lent) -> None:
            sent: list[str] = []
            lent.conn.set_trace_callback(sent.append)
            lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
            assert sent == []

        def test_a_transaction_that_its_borrower_ended_by_hand_is_begun_anew(self, lent: Lent) -> None:
            lent.conn.execute("COMMIT")
            assert lent.verdict() is Verdict.ALTERED
            lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
            assert lent.conn.in_transaction
            assert lent.at_rest()


# -- the verdict -------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> SQLiteAdapter:
    return SQLiteAdapter(tmp_path / "app.db", timeout=0.1)


@pytest.fixture
def lent(adapter: SQLiteAdapter) -> Iterator[Lent]:
    lent = Lent(adapter)
    lent.conn.execute("CREATE TABLE t (a INTEGER, b BLOB)")
    lent.conn.executemany("INSERT INTO t VALUES (?, x'00')", [(1,), (2,), (3,)])
    lent.conn.commit()
    yield lent
    adapter.close(lent.conn, LIMIT)


def test_half_read_select_is_spent(lent: Lent) -> None:
    cursor = lent.conn.execute("SELECT a FROM t")
    cursor.fetchone()
    assert not lent.conn.in_transaction
    assert lent.verdict() is Verdict.SPENT
    assert lent.verdict() is Verdict.SPENT


@pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 35), reason="RETURNING is new in SQLite 3.35")
def test_half_read_insert_without_a_transaction_is_spent_and_loses_nothing(lent: Lent) -> None:
    lent.conn.isolation_level = None
    cursor = lent.conn.execute("INSERT INTO t VALUES (4, NULL), (5, NULL) RETURNING a")
    cursor.fetchone()
    assert not lent.conn.in_transaction
    assert lent.verdict() is Verdict.SPENT
    lent.adapter.close(lent.conn, LIMIT)
    del cursor
    other = lent.adapter.connect(LIMIT)
    assert other.execute("SELECT max(a) FROM t").fetchone() == (5,)
    other.close()


def test_select_that_was_read_to_its_end_or_dropped_is_clean(lent: Lent) -> None:
    cursor = lent.conn.execute("SELECT a FROM t WHERE a = 1")
    cursor.fetchone()
    assert lent.verdict() is Verdict.CLEAN
    cursor = lent.conn.execute("SELECT a FROM t")
    cursor.fetchone()
    del cursor
    assert lent.verdict() is Verdict.CLEAN


def test_open_blob_is_spent_and_what_was_written_to_it_is_not_lost(lent: Lent) -> None:
    blob = lent.conn.blobopen("t", "b", 1)
    blob.write(b"\x07")
    assert lent.verdict() is Verdict.SPENT
    lent.adapter.close(lent.conn, LIMIT)
    other = lent.adapter.connect(LIMIT)
    assert other.execute("SELECT b FROM t WHERE rowid = 1").fetchone() == (b"\x07",)
    other.close()


def test_a_transaction_is_committed_before_a_half_read_select_is_given_up(lent: Lent) -> None:
    cursor = lent.conn.execute("SELECT a FROM t")
    cursor.fetchone()
    lent.conn.execute("INSERT INTO t VALUES (4, NULL)")
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.commit(lent.conn)
    assert lent.verdict() is Verdict.SPENT
    other = lent.adapter.connect(LIMIT)
    assert other.execute("SELECT max(a) FROM t").fetchone() == (4,)
    other.close()


def test_the_verdict_leaves_no_interrupt_behind(lent: Lent) -> None:
    assert lent.verdict() is Verdict.CLEAN
    assert lent.conn.execute("SELECT a FROM t").fetchall() == [(1,), (2,), (3,)]


def test_the_verdict_shows_no_row_to_a_row_factory(lent: Lent) -> None:
    lent.conn.row_factory = lambda cursor, row: 1 / 0
    assert lent.verdict() is Verdict.ALTERED


def test_a_borrowers_factory_is_never_asked_what_it_equals(lent: Lent) -> None:
    class Factory:
        def __call__(self, cursor: object, row: object) -> object:
            return row

        def __eq__(self, other: object) -> bool:
            raise ValueError

        __hash__ = None  # type: ignore[assignment] # what defining __eq__ comes to

    lent.conn.row_factory = Factory()
    assert lent.verdict() is Verdict.ALTERED
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    assert lent.verdict() is Verdict.CLEAN


def test_the_verdict_takes_no_lock(lent: Lent, adapter: SQLiteAdapter) -> None:
    other = adapter.connect(LIMIT)
    other.execute("BEGIN EXCLUSIVE")
    assert lent.verdict() is Verdict.CLEAN
    adapter.ping(lent.conn, LIMIT)
    other.close()


def test_the_verdict_of_a_thread_that_must_not_touch_it_is_broken(tmp_path: Path) -> None:
    adapter = SQLiteAdapter(tmp_path / "app.db")
    conn = sqlite3.connect(tmp_path / "app.db")
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(adapter.verdict(conn, None)))
    thread.start()
    thread.join()
    conn.close()
    assert verdicts == [Verdict.BROKEN]


# -- settings ----------------------------------------------------------------------------------------

WAYS: list[dict[str, Any]] = [{}, {"isolation_level": None}, {"isolation_level": "EXCLUSIVE"}]
if sys.version_info >= (3, 12):
    WAYS += [{**way, "autocommit": mode} for way in WAYS for mode in (True, False)]


@pytest.mark.parametrize("altered", WAYS, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_from_any_way_to_begin_transactions_to_any_other_nothing_is_committed(
    tmp_path: Path, way: dict[str, Any], altered: dict[str, Any]
) -> None:
    lent = Lent(SQLiteAdapter(tmp_path / "app.db", **way))
    lent.conn.execute("CREATE TABLE t (a)")
    lent.adapter.commit(lent.conn)
    names = ["isolation_level", "autocommit"][: 1 + (sys.version_info >= (3, 12))]
    before = [getattr(lent.conn, name) for name in names]
    if sys.version_info >= (3, 12):
        lent.conn.autocommit = True  # else the next line fails or not, as its order with this one has it
    lent.conn.isolation_level = altered.get("isolation_level", "")
    if sys.version_info >= (3, 12):
        lent.conn.autocommit = altered.get("autocommit", sqlite3.LEGACY_TRANSACTION_CONTROL)
    lent.adapter.begin(lent.conn)
    lent.conn.execute("INSERT INTO t VALUES (1)")
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.rollback(lent.conn, LIMIT)
    sent: list[str] = []
    lent.conn.set_trace_callback(sent.append)
    lent.adapter.restore(lent.conn, lent.baseline, LIMIT)
    assert set(sent) <= {"ROLLBACK", "BEGIN", "BEGIN "}
    lent.conn.set_trace_callback(None)
    assert [getattr(lent.conn, name) for name in names] == before
    assert lent.at_rest()
    assert lent.conn.in_transaction is (way.get("autocommit") is False)
    assert lent.conn.execute("SELECT a FROM t").fetchall() == []
    lent.adapter.close(lent.conn, LIMIT)


def test_restore_never_commits_an_open_transaction(lent: Lent) -> None:
    lent.conn.execute("INSERT INTO t VALUES (4, NULL)")
    lent.adapter.restore(lent.conn, lent.baseline._replace(isolation_level=None), LIMIT)
    assert not lent.conn.in_transaction
    assert lent.conn.execute("SELECT max(a) FROM t").fetchone() == (3,)


@since_312
@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_mode_with_a_transaction_always_open_is_left_with_its_borrower(lent: Lent, ending: str) -> None:
    conn: Any = lent.conn
    conn.autocommit = False
    conn.execute("INSERT INTO t VALUES (4, NULL)")
    assert lent.verdict() is Verdict.DIRTY
    if ending == "commit":
        lent.adapter.commit(conn)
    else:
        lent.adapter.rollback(conn, LIMIT)
    assert lent.verdict() is Verdict.ALTERED
    lent.adapter.restore(conn, lent.baseline, LIMIT)
    assert lent.verdict() is Verdict.CLEAN
    assert conn.execute("SELECT max(a) FROM t").fetchone() == (4 if ending == "commit" else 3,)


@since_312
def test_a_mode_with_a_transaction_always_open_can_be_chosen_by_on_connect(lent: Lent) -> None:
    conn: Any = lent.conn
    conn.autocommit = False
    assert lent.verdict() is Verdict.DIRTY
    lent.adapter.commit(conn)
    assert lent.verdict() is Verdict.ALTERED
    lent.adopt_again()
    assert not lent.adapter.sees_transactions
    assert conn.autocommit is False
    assert conn.in_transaction
    conn.execute("INSERT INTO t VALUES (4, NULL)")
    lent.adapter.rollback(conn, LIMIT)
    assert conn.execute("SELECT max(a) FROM t").fetchone() == (3,)


# -- transactions ------------------------------------------------------------------------------------


def test_begin_is_of_the_kind_that_isolation_level_names(tmp_path: Path) -> None:
    adapter = SQLiteAdapter(tmp_path / "app.db", isolation_level="IMMEDIATE", timeout=0)
    one, two = adapter.connect(LIMIT), adapter.connect(LIMIT)
    adapter.begin(one)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        adapter.begin(two)
    adapter.rollback(one, LIMIT)
    adapter.begin(two)
    one.close()
    two.close()


@since_312
def test_autocommit_true_is_committed_by_statement(tmp_path: Path) -> None:
    adapter = SQLiteAdapter(tmp_path / "app.db", autocommit=True)
    lent = Lent(adapter)
    assert adapter.sees_transactions
    lent.conn.execute("BEGIN")
    lent.conn.execute("CREATE TABLE t (a)")
    assert lent.verdict() is Verdict.DIRTY
    adapter.commit(lent.conn)
    assert lent.verdict() is Verdict.CLEAN
    adapter.close(lent.conn, LIMIT)


@since_312
def test_autocommit_false_is_known_to_hide_its_transactions(tmp_path: Path) -> None:
    def connect() -> sqlite3.Connection:
        kwargs: dict[str, Any] = {"autocommit": False, "check_same_thread": False}
        return sqlite3.connect(tmp_path / "app.db", **kwargs)

    adapter = SQLiteAdapter.around(connect)
    lent = Lent(adapter)
    assert not adapter.sees_transactions
    lent.conn.execute("CREATE TABLE t (a)")
    adapter.commit(lent.conn)
    assert lent.verdict() is Verdict.DIRTY
    # What stays open holds no lock.
    other = connect()
    other.execute("INSERT INTO t VALUES (1)")
    other.commit()
    assert lent.conn.execute("SELECT a FROM t").fetchall() == [(1,)]
    other.close()
    adapter.close(lent.conn, LIMIT)


# -- connections that cannot be pooled ---------------------------------------------------------------


def test_check_same_thread_is_refused_at_construction(tmp_path: Path) -> None:
    with pytest.raises(PoolMisuse, match="check_same_thread=True"):
        SQLiteAdapter(tmp_path / "app.db", check_same_thread=True)
    with pytest.raises(PoolMisuse, match="check_same_thread=True"):
        SQLiteAdapter.from_url("sqlite:///app.db?check_same_thread=true")
    SQLiteAdapter(tmp_path / "app.db", check_same_thread=False)


def test_connection_of_one_thread_is_refused_with_the_fix(tmp_path: Path) -> None:
    adapter = SQLiteAdapter.around(lambda: sqlite3.connect(tmp_path / "app.db"))
    conn = adapter.connect(LIMIT)
    with pytest.raises(PoolMisuse, match="pass check_same_thread=False, or use create_pool"):
        adapter.adopt(conn)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        conn.cursor()


@pytest.mark.parametrize("database", [":memory:", ""])
def test_private_database_is_refused_with_the_fix(database: str) -> None:
    def connect() -> sqlite3.Connection:
        conn = sqlite3.connect(database, check_same_thread=False)
        conn.row_factory = lambda cursor, row: dict(enumerate(row))
        return conn

    adapter = SQLiteAdapter.around(connect)
    conn = adapter.connect(LIMIT)
    with pytest.raises(PoolMisuse, match=r'use create_pool\("sqlite://"\)'):
        adapter.adopt(conn)


def test_private_database_is_refused_on_the_first_class_way_too() -> None:
    adapter = SQLiteAdapter("file:x?mode=memory", uri=True)
    conn = adapter.connect(LIMIT)
    with pytest.raises(PoolMisuse, match="an empty database of its own"):
        adapter.adopt(conn)


def test_shared_memory_is_told_from_private_memory() -> None:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect("file:told-apart?mode=memory&cache=shared", uri=True, check_same_thread=False)

    adapter = SQLiteAdapter.around(connect)
    lent = Lent(adapter)
    assert lent.verdict() is Verdict.CLEAN
    assert lent.conn.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    adapter.close(lent.conn, LIMIT)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_shared_memory_of_a_callable_outlives_the_pools_connections(way: dict[str, Any]) -> None:
    def connect() -> sqlite3.Connection:
        uri = "file:outlives?mode=memory&cache=shared"
        return sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=0, **way)

    adapter = SQLiteAdapter.around(connect)
    one = Lent(adapter)
    one.conn.execute("CREATE TABLE t (a)")
    adapter.commit(one.conn)
    one.reset(adapter.remember(one.conn, FULL, LIMIT))
    assert one.verdict() is Verdict.SPENT
    two = Lent(adapter)
    assert two.conn.execute("SELECT a FROM t").fetchall() == []
    adapter.close(two.conn, LIMIT)


def test_same_connection_twice_is_refused() -> None:
    conn = sqlite3.connect(":memory:", check_same_thread=False)
    adapter = SQLiteAdapter.around(lambda: conn)
    with pytest.raises(PoolMisuse, match="the same connection twice"):
        adapter.adopt(conn)


def test_library_without_mutexes_is_refused(adapter: SQLiteAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "threadsafety", 0)
    conn = adapter.connect(LIMIT)
    with pytest.raises(PoolMisuse, match="threadsafety is 0"):
        adapter.adopt(conn)


# -- what is opened ----------------------------------------------------------------------------------


def test_connections_can_be_referred_to_weakly(lent: Lent) -> None:
    assert weakref.ref(lent.conn)() is lent.conn
    assert isinstance(lent.conn, sqlite3.Connection)


def test_factory_of_the_user_is_kept(tmp_path: Path) -> None:
    class Slotted(sqlite3.Connection):
        __slots__ = ()

    class Plain(sqlite3.Connection):
        pass

    for factory in (Slotted, Plain):
        adapter = SQLiteAdapter(tmp_path / "app.db", factory=factory)
        conn = adapter.connect(LIMIT)
        assert isinstance(conn, factory)
        assert weakref.ref(conn)() is conn
        conn.close()


def test_memory_is_shared_and_survives_without_a_connection_of_the_pool() -> None:
    adapter = adapter_for_url("sqlite://")
    one = Lent(adapter)
    one.conn.execute("CREATE TABLE t (a)")
    one.conn.execute("INSERT INTO t VALUES (1)")
    adapter.commit(one.conn)
    adapter.close(one.conn, LIMIT)
    two = Lent(adapter)
    assert two.conn.execute("SELECT a FROM t").fetchall() == [(1,)]
    adapter.close(two.conn, LIMIT)


def test_memory_survives_a_full_reset_of_its_only_connection() -> None:
    adapter = adapter_for_url("sqlite://")
    one = Lent(adapter)
    one.conn.execute("CREATE TABLE t (a)")
    one.conn.execute("INSERT INTO t VALUES (1)")
    adapter.commit(one.conn)
    one.conn.execute("INSERT INTO t VALUES (2)")
    one.reset(adapter.remember(one.conn, FULL, LIMIT))
    two = Lent(adapter)
    assert two.conn.execute("SELECT a FROM t").fetchall() == [(1,)]
    adapter.close(two.conn, LIMIT)


def test_memory_is_each_adapters_own() -> None:
    one, two = Lent(adapter_for_url("sqlite:///:memory:")), Lent(adapter_for_url("sqlite:///"))
    one.conn.execute("CREATE TABLE t (a)")
    assert two.conn.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    one.adapter.close(one.conn, LIMIT)
    two.adapter.close(two.conn, LIMIT)


def test_memory_goes_with_its_adapter() -> None:
    adapter = SQLiteAdapter(":memory:")
    conn = adapter.connect(LIMIT)
    anchor = weakref.ref(adapter._anchors[0])
    conn.close()
    del adapter
    gc.collect()
    assert anchor() is None  # and no ResourceWarning: it was closed


def test_path_means_the_same_file_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = adapter_for_url("sqlite:///app.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    adapter.connect(LIMIT).close()
    assert (tmp_path / "app.db").exists()


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///{}/a.db", "a.db"),
        ("sqlite:///{}/with%20space%3F.db", "with space?.db"),
        ("sqlite:///{}/with%20space%3F.db?mode=rwc&timeout=1.5", "with space?.db"),
        ("sqlite+pysqlite:///{}/a.db?isolation_level=IMMEDIATE", "a.db"),
    ],
)
def test_url_names_a_file(tmp_path: Path, url: str, file: str) -> None:
    lent = Lent(adapter_for_url(url.format(tmp_path)))
    assert [str(tmp_path / file)] == [row[2] for row in lent.conn.execute("PRAGMA database_list")]
    lent.adapter.close(lent.conn, LIMIT)


def test_parameters_of_a_url_arrive(tmp_path: Path) -> None:
    SQLiteAdapter(tmp_path / "app.db").connect(LIMIT).close()
    adapter = adapter_for_url(f"sqlite:///{tmp_path}/app.db?mode=ro&timeout=1.5&isolation_level=none")
    conn = adapter.connect(LIMIT)
    assert conn.isolation_level is None
    assert conn.execute("PRAGMA busy_timeout").fetchone() == (1500,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        conn.execute("CREATE TABLE t (a)")
    conn.close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("sqlite://app.db", "three slashes"),
        ("sqlite:///app.db?colour=red", "'colour' is no parameter"),
        ("sqlite:///app.db?timeout=soon", "timeout='soon'"),
        ("sqlite:///app.db?isolation_level=serializable", "isolation_level='serializable'"),
        ("sqlite://?mode=ro", "mode: only for a database in a file"),
    ],
)
def test_url_that_cannot_be_meant_is_refused(url: str, text: str) -> None:
    with pytest.raises(PoolMisuse, match=text):
        adapter_for_url(url)


def test_repr_says_which_database(tmp_path: Path) -> None:
    assert str(tmp_path / "app.db") in repr(SQLiteAdapter(tmp_path / "app.db"))
    assert repr(SQLiteAdapter(":memory:")) == "<SQLiteAdapter in memory>"
    assert "callable" in repr(SQLiteAdapter.around(lambda: sqlite3.connect(":memory:")))


# -- abort -------------------------------------------------------------------------------------------


def test_abort_leaves_closing_to_whoever_holds_it_last(adapter: SQLiteAdapter) -> None:
    conn = adapter.connect(LIMIT)
    aborted = weakref.ref(conn)
    adapter.abort(conn)
    conn.execute("SELECT 1")  # still open: another thread could be inside this
    del conn
    adapter.close(adapter.connect(LIMIT), LIMIT)
    gone = aborted() is None
    assert gone  # and closed, else there would be a ResourceWarning


def test_aborted_connection_is_not_alive_and_does_not_answer(lent: Lent) -> None:
    lent.adapter.abort(lent.conn)
    assert not lent.adapter.alive(lent.conn)
    with pytest.raises(sqlite3.OperationalError):
        lent.adapter.ping(lent.conn, LIMIT)


def test_closed_connection_is_not_alive(lent: Lent) -> None:
    lent.conn.close()
    assert not lent.adapter.alive(lent.conn)


# -- faults ------------------------------------------------------------------------------------------


def caught(call: Callable[[], object]) -> sqlite3.Error:
    with pytest.raises(sqlite3.Error) as caught:
        call()
    return caught.value


def test_lock_that_was_not_got_is_ordinary(lent: Lent) -> None:
    other = lent.adapter.connect(LIMIT)
    other.execute("BEGIN EXCLUSIVE")
    error = caught(lambda: lent.conn.execute("INSERT INTO t VALUES (1, NULL)"))
    other.close()
    assert "locked" in str(error)
    assert lent.adapter.fault(error, dialling=False) is Fault.ORDINARY


def test_file_that_is_no_database_is_ordinary(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all" * 100)
    adapter = SQLiteAdapter(tmp_path / "text")
    lent = Lent(adapter)
    error = caught(lambda: lent.conn.execute("SELECT * FROM t"))
    assert adapter.fault(error, dialling=False) is Fault.ORDINARY
    adapter.close(lent.conn, LIMIT)


def test_file_that_was_moved_away_is_dead(lent: Lent, tmp_path: Path) -> None:
    (tmp_path / "app.db").rename(tmp_path / "away.db")
    error = caught(lambda: lent.conn.execute("INSERT INTO t VALUES (1, NULL)"))
    assert lent.adapter.fault(error, dialling=False) is Fault.DEAD


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_CANTOPEN_ISDIR])
def test_disk_errors_are_dead(adapter: SQLiteAdapter, code: int) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    assert adapter.fault(error, dialling=False) is Fault.DEAD


def test_use_after_close_is_dead(lent: Lent) -> None:
    lent.conn.close()
    error = caught(lambda: lent.conn.execute("SELECT 1"))
    assert lent.adapter.fault(error, dialling=False) is Fault.DEAD


# -- whether it can write ----------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["mode=ro", "immutable=1", "cache=private&immutable=true"])
def test_database_opened_for_reading_takes_no_writes(lent: Lent, tmp_path: Path, query: str) -> None:
    for adapter in (
        SQLiteAdapter.from_url(f"sqlite:///{tmp_path}/app.db?{query}"),
        SQLiteAdapter(f"file:{tmp_path}/app.db?{query}", uri=True),
    ):
        conn = adapter.connect(LIMIT)
        adapter.adopt(conn)
        assert not adapter.writable(conn, LIMIT)
        adapter.close(conn, LIMIT)


def test_database_whose_name_speaks_of_a_mode_takes_writes(tmp_path: Path) -> None:
    for path in (tmp_path / "a?mode=ro", tmp_path / "b"):
        adapter = SQLiteAdapter(path)
        conn = adapter.connect(LIMIT)
        assert adapter.writable(conn, LIMIT)
        adapter.close(conn, LIMIT)


def test_session_that_only_queries_takes_no_writes(lent: Lent) -> None:
    lent.conn.execute("PRAGMA query_only = ON")
    lent.conn.row_factory = sqlite3.Row
    assert not lent.adapter.writable(lent.conn, LIMIT)
    lent.conn.execute("PRAGMA query_only = OFF")
    assert lent.adapter.writable(lent.conn, LIMIT)


def test_file_that_does_not_let_itself_be_written_takes_no_writes(
    lent: Lent, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as somebody who may write everything.
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK)
    assert not lent.adapter.writable(lent.conn, LIMIT)


def test_who_may_not_ask_is_told_that_it_takes_writes(lent: Lent) -> None:
    lent.conn.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
    assert lent.adapter.writable(lent.conn, LIMIT)


def test_asking_takes_no_lock_and_waits_for_none(lent: Lent) -> None:
    other = lent.adapter.connect(LIMIT)
    other.execute("BEGIN EXCLUSIVE")
    assert lent.adapter.writable(lent.conn, LIMIT)
    other.rollback()
    lent.adapter.close(other, LIMIT)


def test_credentials_are_refused(adapter: SQLiteAdapter) -> None:
    with pytest.raises(PoolMisuse, match="no credentials") as caught:
        adapter.connect(LIMIT, {"password": "ge:heim"})
    assert "heim" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "dialling", "fault"),
    [
        (sqlite3.SQLITE_CANTOPEN, True, Fault.DEAD),
        (sqlite3.SQLITE_NOTADB, True, Fault.AUTH),
        (sqlite3.SQLITE_PERM, True, Fault.AUTH),
        (sqlite3.SQLITE_BUSY, True, Fault.DEAD),
        (sqlite3.SQLITE_IOERR_READ, False, Fault.DEAD),
        (sqlite3.SQLITE_READONLY_DBMOVED, False, Fault.DEAD),
        (sqlite3.SQLITE_READONLY, False, Fault.ORDINARY),
        (sqlite3.SQLITE_NOTADB, False, Fault.ORDINARY),
        (sqlite3.SQLITE_BUSY, False, Fault.ORDINARY),
        (sqlite3.SQLITE_FULL, False, Fault.ORDINARY),
    ],
)
def test_faults_by_result_code(adapter: SQLiteAdapter, code: int, dialling: bool, fault: Fault) -> None:
    exc = sqlite3.OperationalError("x")
    exc.sqlite_errorcode = code
    assert adapter.fault(exc, dialling=dialling) is fault


# -- forked children ---------------------------------------------------------------------------------


def test_child_opens_a_file_anew_and_neither_harms_the_other(lent: Lent) -> None:
    def child() -> None:
        lent.adapter.forget(lent.conn)
        conn = lent.adapter.connect(LIMIT)
        lent.adapter.adopt(conn)
        conn.execute("INSERT INTO t (a) VALUES (4)")
        conn.commit()
        lent.adapter.close(conn, LIMIT)

    assert in_forked_child(child) == ""
    lent.conn.execute("INSERT INTO t (a) VALUES (5)")
    lent.conn.commit()
    assert lent.conn.execute("SELECT a FROM t ORDER BY a").fetchall() == [(a,) for a in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("kind", ["by path", "by URI", "around", "another adapter", "through a link"])
def test_child_refuses_a_file_in_wal_mode_that_its_parent_has_open(tmp_path: Path, kind: str) -> None:
    # If it did not: the parent closes its last connection and deletes the log, for it sees no lock of
    # the child's, which goes on writing to what nobody will ever read.
    path = tmp_path / "wal.db"
    made: Callable[[], SQLiteAdapter] = {
        "by URI": lambda: SQLiteAdapter(f"file:{path}", uri=True),
        "around": lambda: SQLiteAdapter.around(lambda: sqlite3.connect(path, check_same_thread=False)),
    }.get(kind, lambda: SQLiteAdapter(path))
    lent = Lent(made())
    lent.conn.execute("PRAGMA journal_mode = WAL")
    lent.conn.execute("CREATE TABLE t (a)")
    link = tmp_path / "link.db"
    link.symlink_to(path)

    def child() -> None:
        lent.adapter.forget(lent.conn)
        adapter = lent.adapter
        if kind == "another adapter":
            adapter = SQLiteAdapter(path)
        if kind == "through a link":
            adapter = SQLiteAdapter(link)
        for _ in range(2):
            with pytest.raises(PoolMisuse, match=r"WAL mode.*before the fork"):
                adapter.adopt(adapter.connect(LIMIT))
        other = Lent(SQLiteAdapter(tmp_path / "other.db"))
        assert other.at_rest(), "any other file is as good as before"

    assert in_forked_child(child) == ""
    lent.adapter.close(lent.conn, LIMIT)


def test_child_refuses_a_file_with_an_open_transaction_of_its_parent(lent: Lent) -> None:
    lent.conn.execute("INSERT INTO t (a) VALUES (4)")

    def child() -> None:
        lent.adapter.forget(lent.conn)
        with pytest.raises(PoolMisuse, match="was in a transaction"):
            lent.adapter.connect(LIMIT)

    assert in_forked_child(child) == ""
    lent.conn.commit()
    assert lent.conn.execute("SELECT max(a) FROM t").fetchone() == (4,)


def test_child_gets_a_copy_of_a_database_in_memory() -> None:
    lent = Lent(SQLiteAdapter(":memory:"))
    lent.conn.execute("CREATE TABLE t (a)")
    lent.conn.execute("INSERT INTO t VALUES (1)")
    lent.conn.commit()

    def child() -> None:
        lent.adapter.forget(lent.conn)
        for a in (2, 3):
            conn = lent.adapter.connect(LIMIT)
            lent.adapter.adopt(conn)
            conn.execute("INSERT INTO t VALUES (?)", (a,))
            conn.commit()
            lent.adapter.close(conn, LIMIT)
        conn = lent.adapter.connect(LIMIT)
        assert conn.execute("SELECT a FROM t").fetchall() == [(1,), (2,), (3,)]

    assert in_forked_child(child) == ""
    assert lent.conn.execute("SELECT a FROM t").fetchall() == [(1,)]
    lent.conn.execute("INSERT INTO t VALUES (4)")

    def other_child() -> None:
        lent.adapter.forget(lent.conn)
        lent.adapter.connect(LIMIT)

    assert "was in a transaction" in in_forked_child(other_child)
    lent.adapter.close(lent.conn, LIMIT)


def test_child_whose_parent_is_about_to_open_an_anchor_does_not_wait_for_it() -> None:
    adapter = SQLiteAdapter(":memory:")
    with adapter._lock:
        assert in_forked_child(lambda: adapter.adopt(adapter.connect(LIMIT))) == ""


def test_every_use_of_a_parents_connection_is_refused_in_a_child(lent: Lent) -> None:
    def child() -> None:
        adapter, conn = lent.adapter, lent.conn
        cursor = conn.cursor()
        adapter.forget(conn)
        assert isinstance(conn, Connection)
        uses: list[Callable[[], object]] = [
            lambda: conn.execute("SELECT 1"),
            lambda: conn("SELECT 1"),
            conn.__enter__,
            lambda: conn.backup(conn),
            lambda: conn.create_function("f", 0, print),
            lambda: conn.blobopen("t", "b", 1, readonly=True),
            lambda: conn.in_transaction,
            lambda: setattr(conn, "isolation_level", None),
            lambda: adapter.ping(conn, LIMIT),
            lambda: adapter.begin(conn),
            lambda: adapter.restore(conn, lent.baseline, LIMIT),
            lambda: adapter.writable(conn, LIMIT),
        ]
        for use in uses:
            with pytest.raises(sqlite3.ProgrammingError, match="it is the parent's") as caught:
                use()
            assert adapter.fault(caught.value, dialling=False) is Fault.DEAD
        del cursor

    assert in_forked_child(child) == ""


def test_connection_of_sqlites_own_class_is_refused_by_the_adapter(tmp_path: Path) -> None:
    lent = Lent(SQLiteAdapter.around(lambda: sqlite3.connect(tmp_path / "app.db", check_same_thread=False)))

    def child() -> None:
        adapter, conn = lent.adapter, lent.conn
        adapter.forget(conn)
        for use in (
            lambda: adapter.ping(conn, LIMIT),
            lambda: adapter.commit(conn),
            lambda: adapter.rollback(conn, LIMIT),
        ):
            with pytest.raises(sqlite3.ProgrammingError, match="it is the parent's"):
                use()
        assert lent.verdict() is Verdict.BROKEN
        assert not adapter.alive(conn)
        adapter.close(conn, LIMIT)
        assert conn.execute("SELECT 1").fetchone() == (1,), "it was not closed"

    assert in_forked_child(child) == ""
    lent.adapter.close(lent.conn, LIMIT)


def test_interpreter_that_ends_in_a_child_does_not_roll_back_its_parents_transaction(tmp_path: Path) -> None:
    # It frees the connection, which closes it: that plays the parent's journal back, and deletes it.
    script = """
import os, sqlite3, sys
from connpool.adapters.sqlite import SQLiteAdapter

adapter = SQLiteAdapter.around(lambda: sqlite3.connect(sys.argv[1], check_same_thread=False))
conn = adapter.connect(5)
conn.executescript("PRAGMA cache_size = 1; CREATE TABLE t (a, b)")
conn.executemany("INSERT INTO t VALUES (?, ?)", [(a, "x" * 900) for a in range(200)])
conn.commit()
adapter.adopt(conn)
conn.execute("UPDATE t SET b = replace(b, 'x', 'y')")
assert os.path.exists(sys.argv[1] + "-journal")
pid = os.fork()
if pid == 0:
    adapter.forget(conn)
    sys.exit(0)
os.waitpid(pid, 0)
assert os.path.exists(sys.argv[1] + "-journal")
conn.commit()
print(conn.execute("SELECT count(*) FROM t WHERE b LIKE 'y%'").fetchone())
print(conn.execute("PRAGMA integrity_check").fetchone())
conn.close()
"""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", script, str(tmp_path / "app.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("(200,)\n('ok',)\n", "", 0)
