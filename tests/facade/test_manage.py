"""`manage` and `connect`: which pool, what is refused, and what is never shown."""

import gc
import os
import pickle
import sqlite3
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import connpool
from connpool import ConnectionPool, PoolClosed, PoolMisuse, PoolTimeout, facade
from connpool.testing import FakeAdapter, FakeServer


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "app.db")


@pytest.fixture
def module() -> Iterator[Any]:
    module = connpool.manage(sqlite3, max_size=2, acquire_timeout=0.05)
    yield module
    module.close()


def test_each_set_of_arguments_has_a_pool(module: Any, path: str) -> None:
    for kwargs in ({}, {"timeout": 1}, {"timeout": 1.0}, {"timeout": True}, {"isolation_level": None}):
        for _ in range(2):
            module.connect(path, **kwargs).close()
    assert len(module.pools) == 5
    assert [pool.name for pool in module.pools] == [f"sqlite3-{n}" for n in range(1, 6)]


def test_arguments_that_have_no_hash_find_their_pool_again() -> None:
    calls: list[Any] = []
    driver = types.ModuleType("nobodys")

    def connect(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return sqlite3.connect(":memory:", check_same_thread=False, factory=Mine)

    class Mine(sqlite3.Connection):
        pass

    driver.connect = connect  # type: ignore[attr-defined]
    module = connpool.manage(driver)

    class NoHash:
        __hash__ = None  # type: ignore[assignment]

    one, other = NoHash(), NoHash()
    arguments = [{"a": [1, {"b": {2}}]}, {"a": [1, {"b": {2}}]}, {"a": one}, {"a": one}, {"a": other}]
    for kwargs in arguments:
        with pytest.raises(PoolMisuse, match="database"):  # each would be a database of its own
            module.connect("first", **kwargs)
    assert len(module.pools) == 3


def test_no_argument_is_shown() -> None:
    driver = types.ModuleType("nobodys")

    def connect(*args: Any, **kwargs: Any) -> Any:
        raise OSError("refused")

    driver.connect = connect  # type: ignore[attr-defined]
    module = connpool.manage(driver, acquire_timeout=0.1)
    with pytest.raises(connpool.PoolError) as caught:
        module.connect("hunter2", password="hunter2")
    (pool,) = module.pools
    shown = f"{module!r} {pool!r} {pool.describe()} {caught.value} {pool.name}"
    assert "hunter2" not in shown
    assert "nobodys.connect" in str(pool.describe())
    module.close()


def test_dispose_begins_anew_and_close_is_for_good(module: Any, path: str) -> None:
    module.connect(path).close()
    (first,) = module.pools
    module.dispose()
    assert module.pools == ()
    with pytest.raises(PoolClosed):
        first.acquire()
    module.connect(path).close()
    module.close()
    module.close()
    with pytest.raises(PoolClosed, match="close"):
        module.connect(path)


def test_pools_are_shared_by_threads(module: Any, path: str) -> None:
    def work() -> None:
        module.connect(path).close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(module.pools) == 1
    assert module.pools[0].stats().size <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_has_pools_of_its_own(tmp_path: Path) -> None:
    module = connpool.manage(sqlite3, pooling="transaction")
    conn = module.connect(str(tmp_path / "app.db"))
    conn.execute("create table t (x)")
    conn.commit()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            conn.execute("insert into t values (1)")
            conn.commit()
            os.write(writer, str(module.pools[0].stats().opened).encode())
        except BaseException as exc:
            os.write(writer, repr(exc).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 1000) == b"1"
    assert conn.execute("select x from t").fetchall() == [(1,)]
    conn.close()
    module.close()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"pooling": "sessions"}, ValueError, "pooling='sessions': must be \"session\""),
        ({"on_session_state": "ignore"}, ValueError, "on_session_state='ignore': must be \"pin\""),
        ({"settings": ["search_path"]}, TypeError, "settings=.*: must be a mapping"),
        ({"settings": {"a; drop": 1}}, ValueError, "settings: 'a; drop' must be the name"),
        ({"settings": {"a": None}}, TypeError, "settings: a=None must be"),
        ({"timeout": -1}, ValueError, "timeout=-1: must be"),
        ({"max_size": 0}, ValueError, "max_size=0: must be"),
        ({"max_sise": 1}, TypeError, "max_sise"),
    ],
)
def test_bad_option_is_refused_at_construction(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        connpool.manage(sqlite3, **options)


def test_only_a_module_with_connect_is_managed() -> None:
    with pytest.raises(TypeError, match="DB-API module"):
        connpool.manage(os)


def test_statement_mode_and_settings_refuse_what_cannot_be() -> None:
    with ConnectionPool(FakeAdapter(FakeServer())) as pool:
        with pytest.raises(ValueError, match="autocommit=False"):
            facade.connect(pool, pooling="statement", autocommit=False)
        with pytest.raises(TypeError, match="autocommit=1"):
            facade.connect(pool, autocommit=1)  # type: ignore[arg-type]
        with pytest.raises(PoolMisuse, match="PostgreSQL and MySQL"):
            facade.connect(pool, pooling="transaction", settings={"a": 1})


def test_session_mode_holds_until_close_and_waits_no_longer_than_it_may(module: Any, path: str) -> None:
    conns = [module.connect(path) for _ in range(2)]
    with pytest.raises(PoolTimeout):
        module.connect(path)
    with pytest.raises(sqlite3.OperationalError):
        module.connect(path)
    conns.pop().close()
    module.connect(path).close()
    conns.pop().close()


def test_use_after_close_is_both_the_pools_error_and_the_drivers(module: Any, path: str) -> None:
    conn = module.connect(path)
    cursor = conn.cursor()
    conn.close()
    for use in (conn.cursor, cursor.fetchall):
        with pytest.raises(sqlite3.InterfaceError, match=r"released at .*test_manage.py") as caught:
            use()
        assert isinstance(caught.value, PoolMisuse)
        again = pickle.loads(pickle.dumps(caught.value))
        assert isinstance(again, sqlite3.InterfaceError)
        assert str(again) == str(caught.value)


def test_session_that_is_lost_comes_back(module: Any, path: str) -> None:
    conns = [module.connect(path) for _ in range(2)]
    with pytest.warns(ResourceWarning) as told:  # since 3.13 by sqlite3, too
        conns.clear()
        gc.collect()
        module.connect(path).close()
    assert sum("lost without being given back" in str(each.message) for each in told) == 2


def test_pool_that_guards_is_guarded_once(path: str) -> None:
    module = connpool.manage(sqlite3, debug=True)
    conn = module.connect(path)
    assert conn.execute("select 1").fetchone() == (1,)
    conn.close()
    module.close()


def test_autocommit_of_a_session_is_undone_for_the_next(path: str) -> None:
    with connpool.create_pool(f"sqlite:///{path}", max_size=1) as pool:
        conn = facade.connect(pool, autocommit=True)
        assert conn.isolation_level is None
        conn.close()
        with pool.connection() as real:
            assert real.isolation_level is not None


def test_sqlite_in_transaction_mode_reads_lazily_nowhere(path: str) -> None:
    module = connpool.manage(sqlite3, pooling="transaction", max_size=1)
    one, other = module.connect(path), module.connect(path)
    one.executescript("create table t (x); insert into t values (1), (2), (3)")
    half = one.execute("select x from t order by x")
    assert next(half) == (1,)
    assert other.execute("delete from t").rowcount == 3
    other.commit()
    assert half.fetchall() == [(2,), (3,)]
    one.row_factory = sqlite3.Row
    assert one.execute("select 5 as y").fetchone()["y"] == 5
    assert other.execute("select 5").fetchone() == (5,)
    for conn in (one, other):
        conn.close()
    module.close()


def test_driver_of_a_plain_callable_is_found_by_its_connection(path: str) -> None:
    with ConnectionPool(lambda: sqlite3.connect(path, check_same_thread=False)) as pool:
        conn = facade.connect(pool, pooling="transaction")
        assert conn.execute("select 1").fetchone() == (1,)
        assert isinstance(conn, sqlite3.Connection)
        conn.close()
