"""SQLAlchemy's side of the pool without a server: arguments, events, records; on SQLite files and fakes."""

import gc
import inspect
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from servers import wait_until
from sqlalchemy import event, exc
from sqlalchemy.pool import Pool, QueuePool

import connpool
from connpool import ConnectionPool
from connpool.integrations.sqlalchemy import (
    AsyncConnPool,
    ConnPool,
    EnginePoolDeadlock,
    EnginePoolOverloaded,
    EnginePoolTimeout,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'app.db'}"


@pytest.fixture
def make(url: str) -> Iterator[Callable[..., sa.Engine]]:
    engines: list[sa.Engine] = []

    def create(**arguments: Any) -> sa.Engine:
        engines.append(sa.create_engine(url, **{"poolclass": ConnPool, **arguments}))
        return engines[-1]

    yield create
    while engines:  # and leave none: pytest keeps what it has given to a test
        engines.pop().dispose()


def options(engine: sa.Engine) -> dict[str, Any]:
    return dict(engine.pool.connection_pool.describe().options)  # type: ignore[attr-defined]


# -- arguments ----------------------------------------------------------------------------------------


def test_every_option_of_a_pool_can_be_said_to_create_engine() -> None:
    ours = set(inspect.signature(ConnectionPool).parameters) - {"source"}
    assert ours <= set(sa.util.get_cls_kwargs(ConnPool))
    assert ours <= set(sa.util.get_cls_kwargs(AsyncConnPool))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"max_size": 3, "min_idle": 1, "reset_timeout": 2.0}, {"max_size": 3, "min_idle": 1}),
        ({"pool_size": 20}, {"max_size": 20}),
        ({"pool_size": 5, "max_overflow": 10}, {"max_size": 15}),
        ({"max_overflow": 10}, {"max_size": 15}),
        ({"pool_timeout": 3.0}, {"acquire_timeout": 3.0}),
        ({"pool_recycle": 3600}, {"max_lifetime": 3600}),
        ({"pool_recycle": -1}, {"max_lifetime": 1800.0}),
        ({"pool_pre_ping": True}, {"probe_after": 0, "ping_after": 0}),
        ({"pool_pre_ping": False}, {"ping_after": 30.0}),
        ({"pool_use_lifo": True}, {}),
        ({"pool_reset_on_return": None}, {"reset": "none"}),
        ({"pool_reset_on_return": "rollback"}, {"reset": "rollback"}),
        ({"pool_reset_on_return": "commit"}, {"reset": "rollback"}),
        ({"pool_reset_on_return": None, "reset": "full"}, {"reset": "full"}),
        ({"name": "orders"}, {"name": "orders"}),
    ],
)
def test_arguments_by_either_name_mean_the_same(
    make: Callable[..., sa.Engine], said: dict[str, Any], meant: dict[str, Any]
) -> None:
    found = options(make(**said))
    assert {name: found[name] for name in meant} == meant


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"pool_size": 0}, "pool_size=0.*without a bound"),
        ({"pool_size": 5, "max_overflow": -1}, "max_overflow=-1.*without a bound"),
        ({"pool_size": 5, "max_size": 5}, "pool_size=5.* and max_size=5: both say the same"),
        ({"pool_timeout": 5, "acquire_timeout": 5}, "pool_timeout=5 and acquire_timeout=5"),
        ({"pool_recycle": 0}, "max_uses=1"),
        ({"pool_recycle": 60, "max_lifetime": 60}, "pool_recycle=60 and max_lifetime=60"),
        ({"pool_pre_ping": True, "ping_after": 1}, "pool_pre_ping=True and ping_after=1"),
        ({"pool_use_lifo": False}, "pool_use_lifo=False: what was used last is lent first"),
        ({"debug": True}, "debug: not with SQLAlchemy; its connections stand behind proxies"),
        ({"credentials": dict}, "credentials: not with SQLAlchemy; .* do_connect"),
        ({"acquire_timeout": -1}, "acquire_timeout=-1: must be a number of seconds"),
        ({"on_connect": 5}, "on_connect=5: must be callable"),
        ({"reset": "everything"}, "reset='everything': must be"),
        ({"reset": [5]}, "reset="),
    ],
)
def test_what_means_nothing_here_is_refused_with_the_reason(url: str, said: dict[str, Any], why: str) -> None:
    with pytest.raises((TypeError, ValueError), match=why):
        sa.create_engine(url, poolclass=ConnPool, **said)


def test_an_unknown_argument_is_refused_by_sqlalchemy(url: str) -> None:
    with pytest.raises(TypeError, match="max_sise"):
        sa.create_engine(url, poolclass=ConnPool, max_sise=3)


def test_each_kind_of_engine_has_its_pool(url: str) -> None:
    with pytest.raises(exc.ArgumentError, match="AsyncConnPool cannot be used with non-asyncio engine"):
        sa.create_engine(url, poolclass=AsyncConnPool)


def test_an_engine_in_memory_keeps_the_pool_that_sqlalchemy_has_for_it() -> None:
    engine = sa.create_engine("sqlite://", poolclass=ConnPool)
    with pytest.raises(connpool.PoolMisuse):  # each connection would be a database of its own
        engine.connect()
    engine.dispose()


def test_a_pool_is_made_anew_with_what_it_was_told(make: Callable[..., sa.Engine]) -> None:
    engine = make(pool_size=2, max_overflow=1, reset="rollback", pool_reset_on_return=None, name="orders")
    before, told = engine.pool, options(engine)
    heard: list[object] = []
    event.listen(engine, "checkout", lambda *args: heard.append(args))
    engine.dispose()
    assert engine.pool is not before
    assert options(engine) == told
    engine.connect().close()
    assert len(heard) == 1


# -- figures ------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_a_queue_pool(make: Callable[..., sa.Engine]) -> None:
    seen = []
    for poolclass in (ConnPool, QueuePool):
        engine = make(poolclass=poolclass, pool_size=2, max_overflow=1, pool_timeout=7.0)
        pool: Any = engine.pool
        figures = [pool.status()]
        conns = [engine.connect() for _ in range(3)]
        figures.append(pool.status())
        for conn in conns[:2]:
            conn.close()
        figures.append(pool.status())
        assert (pool.size(), pool.checkedin(), pool.checkedout(), pool.timeout()) == (2, 2, 1, 7.0)
        conns[2].close()
        seen.append(figures)
    assert seen[0] == seen[1]


def test_the_pool_beneath_shows_figures_and_borrowers(make: Callable[..., sa.Engine]) -> None:
    engine = make(max_size=1, pool_timeout=0.05)
    with engine.connect():
        with pytest.raises(exc.TimeoutError) as caught:
            engine.connect()
    assert "1 of 1 in use" in str(caught.value)
    assert "test_sqlalchemy.py:" in str(caught.value), "the line of whoever has it, not SQLAlchemy's"
    stats = engine.pool.connection_pool.stats()  # type: ignore[attr-defined]
    assert (stats.acquires, stats.releases, stats.timeouts) == (1, 1, 1)


# -- events -------------------------------------------------------------------------------------------

EVENTS = ("first_connect", "connect", "checkout", "checkin", "reset", "invalidate", "soft_invalidate")
ENDS = ("close", "detach", "close_detached")


def listen(target: Any, heard: list[str]) -> None:
    for name in (*EVENTS, *ENDS):
        event.listen(target, name, lambda *_, name=name: heard.append(name))


def use_all_ways(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text("create table if not exists t (a int)"))
    raw = engine.raw_connection()
    raw.cursor().execute("insert into t values (1)")
    raw.close()
    with engine.connect() as conn:
        conn.invalidate()
        assert conn.execute(sa.text("select count(*) from t")).scalar() == 0, "it was rolled back"
    with engine.connect() as conn:
        conn.connection.invalidate(soft=True)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with engine.connect() as conn:
        conn.detach()


def test_events_come_as_with_a_queue_pool(make: Callable[..., sa.Engine]) -> None:
    seen = []
    for poolclass in (ConnPool, QueuePool):
        engine = make(poolclass=poolclass)
        heard: list[str] = []
        listen(engine, heard)
        use_all_ways(engine)
        engine.dispose()
        seen.append(heard)
    ours, theirs = seen
    # A connection that is no good any more is closed at once and elsewhere, not by its next borrower.
    assert [name for name in ours if name not in ENDS] == [name for name in theirs if name not in ENDS]
    assert sorted(ours) == sorted(theirs)


def test_listeners_are_given_the_connection_its_record_and_its_proxy(make: Callable[..., sa.Engine]) -> None:
    engine = make()
    heard: list[Any] = []
    event.listen(engine, "connect", lambda conn, record: record.info.update(number=len(heard)))
    event.listen(engine, "checkout", lambda conn, record, proxy: heard.append((conn, record, proxy)))
    with engine.connect() as conn:
        assert conn.info == {"number": 0}
        ((dbapi, record, proxy),) = heard
        assert conn.connection.dbapi_connection is dbapi is record.dbapi_connection is proxy.dbapi_connection
        assert conn.connection.driver_connection is dbapi
        assert record.in_use
    assert not record.in_use


def test_a_failing_connect_listener_is_the_callers_error_and_leaves_nothing(
    make: Callable[..., sa.Engine],
) -> None:
    engine = make()
    closed: list[object] = []

    def refuse(conn: Any, record: Any) -> None:
        closed.append(conn)
        raise KeyError("not today")

    event.listen(engine, "connect", refuse)
    with pytest.raises(exc.OperationalError, match="not today") as caught:
        engine.connect()
    assert isinstance(caught.value.orig.__cause__.__cause__ or caught.value.orig.__cause__, KeyError)
    event.remove(engine, "connect", refuse)
    with engine.connect() as conn:
        assert conn.execute(sa.text("select 1")).scalar() == 1
    assert engine.pool.connection_pool.stats().size == 1  # type: ignore[attr-defined]


def test_a_checkout_listener_can_have_the_connection_replaced(make: Callable[..., sa.Engine]) -> None:
    engine = make(max_size=1)
    engine.connect().close()
    refused: list[object] = []

    def refuse_once(conn: Any, record: Any, proxy: Any) -> None:
        if not refused:
            refused.append(conn)
            raise exc.DisconnectionError("of no use")

    event.listen(engine, "checkout", refuse_once)
    with engine.begin() as conn:
        dialled = conn.connection.dbapi_connection
        assert dialled is not refused[0]
        conn.execute(sa.text("create table t (a int)"))
    with engine.connect() as conn:
        assert conn.connection.dbapi_connection is dialled, "what its record has dialled is as good as any"
        conn.connection.dbapi_connection.execute("insert into t values (1)")  # type: ignore[attr-defined]
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from t")).scalar() == 0, "and it is rolled back"


def test_a_disconnect_replaces_what_is_as_old_and_no_more(make: Callable[..., sa.Engine]) -> None:
    engine = make(max_size=3)
    pool: Any = engine.pool
    old = [engine.connect() for _ in range(3)]
    olds = {conn.connection.dbapi_connection for conn in old}
    old[2].close()
    pool._invalidate(old[0].connection)
    assert wait_until(lambda: pool.connection_pool.stats().discards["evicted"] == 1, 5.0)
    new = engine.connect()
    before = pool.connection_pool.stats().discards["evicted"]
    pool._invalidate(old[1].connection)  # as old as the first: that is known
    assert new.connection.dbapi_connection not in olds
    new.close()
    assert pool.connection_pool.stats().discards["evicted"] == before
    for conn in old[:2]:
        conn.close()


# -- hooks --------------------------------------------------------------------------------------------


def test_hooks_and_reset_policies_are_given_the_drivers_connection(make: Callable[..., sa.Engine]) -> None:
    heard: list[tuple[str, object]] = []

    def note(name: str) -> Callable[[object], None]:
        return lambda conn: heard.append((name, conn))

    engine = make(
        on_connect=note("connect"),
        on_acquire=note("acquire"),
        on_release=note("release"),
        on_close=note("close"),
        reset=["rollback", note("reset")],
    )
    with engine.connect() as conn:
        real = conn.connection.driver_connection
    engine.dispose()
    assert [name for name, _ in heard] == ["connect", "acquire", "release", "reset", "close"]
    assert {id(conn) for _, conn in heard} == {id(real)}


def test_a_commit_on_return_is_sqlalchemys(make: Callable[..., sa.Engine]) -> None:
    engine = make(pool_reset_on_return="commit", max_size=1)
    with engine.begin() as conn:
        conn.execute(sa.text("create table t (a int)"))
    raw = engine.raw_connection()
    raw.cursor().execute("insert into t values (1)")
    raw.close()
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from t")).scalar() == 1


def test_a_connection_that_needs_a_reset_where_none_is_wanted_is_closed(
    make: Callable[..., sa.Engine],
) -> None:
    engine = make(pool_reset_on_return=None, max_size=1)
    with engine.begin() as conn:
        conn.execute(sa.text("create table t (a int)"))
    raw = engine.raw_connection()
    dirty = raw.driver_connection
    assert dirty is not None
    raw.cursor().execute("insert into t values (1)")
    raw.close()
    with engine.connect() as conn:
        assert conn.connection.driver_connection is not dirty
        assert conn.execute(sa.text("select count(*) from t")).scalar() == 0


# -- garbage ------------------------------------------------------------------------------------------


def test_a_connection_that_was_lost_comes_back(make: Callable[..., sa.Engine]) -> None:
    engine = make(max_size=1, pool_timeout=5.0)
    for _ in range(3):
        engine.connect()
        gc.collect()
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]


def test_an_engine_that_was_dropped_without_a_word_is_garbage_and_its_connections_are_closed(
    url: str,
) -> None:
    engine = sa.create_engine(url, poolclass=ConnPool, max_size=2)
    with engine.connect() as one, engine.connect() as other:
        conns = [conn.connection.driver_connection for conn in (one, other)]
    pool = weakref.ref(engine.pool)
    beneath = weakref.ref(engine.pool.connection_pool)  # type: ignore[attr-defined]
    del engine, one, other
    gc.collect()
    assert pool() is None
    assert beneath() is None
    for conn in conns:
        with pytest.raises(Exception, match="closed database"):
            conn.execute("select 1")  # type: ignore[union-attr]


def test_what_is_lent_outlives_the_disposal_and_is_closed_when_it_comes_back(
    make: Callable[..., sa.Engine],
) -> None:
    engine = make(min_idle=1)
    lent = engine.connect()
    old: Pool = engine.pool
    engine.dispose()
    assert lent.execute(sa.text("select 1")).scalar() == 1
    lent.close()
    assert wait_until(lambda: old.connection_pool.stats().size == 0, 5.0)  # type: ignore[attr-defined]


# -- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "plain"),
    [
        (EnginePoolTimeout, connpool.PoolTimeout),
        (EnginePoolDeadlock, connpool.PoolDeadlock),
        (EnginePoolOverloaded, connpool.PoolOverloaded),
    ],
)
def test_the_pools_errors_are_sqlalchemys_too(error: type[Exception], plain: type[Exception]) -> None:
    assert issubclass(error, (plain, exc.TimeoutError))
    assert issubclass(error, exc.TimeoutError)
    assert issubclass(error, plain)
    copy = pickle.loads(pickle.dumps(error("no connection within 1 s")))
    assert type(copy) is error
    assert str(copy) == "no connection within 1 s"


def test_a_database_that_cannot_be_opened_is_an_operational_error_with_the_drivers_words(
    tmp_path: Path,
) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'missing' / 'app.db'}", poolclass=ConnPool)
    with pytest.raises(exc.OperationalError, match="unable to open database file") as caught:
        engine.connect()
    assert isinstance(caught.value.orig, connpool.PoolUnavailable)
    engine.dispose()
