"""What goes wrong with real servers is explained, and no password is anywhere in it."""

import gc
import json
import logging
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from servers import MariaDB, PostgreSQL

import connpool
from connpool import ConnectionPool, PoolError, PoolUnavailable
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter
from connpool.events import Event

pytestmark = pytest.mark.server

SECRET = "s3cr3t-Zeichen"


def postgresql_adapter(server: PostgreSQL, **changes: Any) -> PsycopgAdapter[Any]:
    return PsycopgAdapter(**{**server.params_for(), "password": SECRET, **changes})


def mariadb_adapter(server: MariaDB, **changes: Any) -> PyMySQLAdapter[Any]:
    return PyMySQLAdapter(**{**server.params_for(), "password": SECRET, **changes})


@pytest.fixture(params=["PostgreSQL", "MariaDB"])
def make(request: pytest.FixtureRequest) -> Any:
    if request.param == "PostgreSQL":
        server = request.getfixturevalue("system_postgresql")
        return lambda **changes: postgresql_adapter(server, **changes)
    server = request.getfixturevalue("mariadb")
    return lambda **changes: mariadb_adapter(server, **changes)


def everything(error: BaseException | None) -> Iterator[str]:
    """Return all that an error can be made to say, its causes and their attributes included."""
    while error is not None:
        yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
        yield from getattr(error, "__notes__", ())
        error = error.__cause__ or error.__context__


TROUBLES = {
    "closed port": {"host": "127.0.0.1", "port": 1},
    "unknown host": {"host": "nowhere.invalid"},
}


@pytest.mark.parametrize("trouble", [*TROUBLES, "wrong password", "tls"])
def test_failure_to_connect_is_explained_without_the_password(
    make: Any, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, Any] = dict(TROUBLES.get(trouble, {}))
    probe = make()
    is_mysql = isinstance(probe, PyMySQLAdapter)
    if trouble == "tls":
        if is_mysql:
            changes = {"ssl": {"ca": "/etc/ssl/certs/ca-certificates.crt"}, "ssl_verify_cert": True}
        else:
            changes = {"sslmode": "verify-full", "sslrootcert": "/etc/ssl/certs/ca-certificates.crt"}
    elif trouble == "wrong password":
        changes = {"user": "nobody_of_that_name"}
    events: list[Event] = []
    caplog.set_level(logging.DEBUG)
    adapter = make(**changes)
    with ConnectionPool(adapter, name="told", acquire_timeout=5.0, observers=[events.append]) as pool:
        with pytest.raises(PoolUnavailable) as caught:
            pool.acquire()
        said = [
            *everything(caught.value),
            repr(pool),
            str(pool.describe()),
            repr(pool.stats()),
            repr(adapter),
        ]
        said += [caplog.text, *(repr(event) for event in events), str(pool.advise())]
        copy = pickle.loads(pickle.dumps(caught.value))
        said += [str(copy), repr(vars(copy)), repr(pickle.dumps(caught.value))]
        said += [json.dumps({str(k): str(v) for k, v in vars(caught.value).items()})]
    assert caught.value.__cause__ is not None
    assert "last connect error" in str(caught.value)
    assert "told" in str(caught.value)
    host = changes.get("host", "127.0.0.1")
    assert host in str(caught.value) + str(caught.value.__cause__) + repr(adapter)
    assert [event.name for event in events][:1] == ["dial_failed"]
    assert not any(SECRET in text for text in said), [text for text in said if SECRET in text]


@pytest.mark.parametrize("trouble", ["password", "user"])
def test_url_with_a_password_is_not_repeated(trouble: str) -> None:
    for url in (
        f"postgresql://app:{SECRET}@127.0.0.1:1/app",
        f"mysql://app:{SECRET}@127.0.0.1:1/app",
    ):
        with connpool.create_pool(url, acquire_timeout=5.0) as pool, pytest.raises(PoolError) as caught:
            pool.acquire()
        assert not any(SECRET in text for text in everything(caught.value))
        assert SECRET not in str(pool.describe())


def test_threads_that_die_with_their_connections_leave_no_session_behind(
    postgresql: PostgreSQL, mariadb: MariaDB
) -> None:
    for server, adapter in (
        (postgresql, PsycopgAdapter(**postgresql.params_for(), application_name="dying")),
        (mariadb, PyMySQLAdapter(**mariadb.params_for())),
    ):
        with ConnectionPool(adapter, max_size=2) as pool:
            with pytest.warns(ResourceWarning) as warned:
                for _ in range(10):
                    thread = threading.Thread(target=lambda: pool.acquire(timeout=1.0).cursor())
                    thread.start()
                    thread.join()
                    gc.collect()
                with pool.connection(timeout=1.0) as conn:
                    conn.cursor().execute("select 1")
            leaks = [str(each.message) for each in warned if "was lost" in str(each.message)]
            assert len(leaks) == 10, server
            assert all("test_explanations.py:" in leak for leak in leaks)
            assert pool.stats().size <= 2


@pytest.mark.parametrize("reset", ["rollback", "full", "none"])
def test_description_tells_what_the_server_is_told(
    postgresql: PostgreSQL, mariadb: MariaDB, reset: Any
) -> None:
    for adapter in (PsycopgAdapter(**postgresql.params_for()), PyMySQLAdapter(**mariadb.params_for())):
        with ConnectionPool(adapter, reset=reset) as pool:
            with pool.connection():
                pass
            described = pool.describe()
            assert described.statements
            assert "not told by its adapter" not in described.statements.values()
            assert ("rollback" in described.statements) == (reset != "none")
            assert ("full" in described.statements) == (reset == "full")
            if adapter.name == "pymysql":
                assert described.idle_limit is not None


def test_every_statement_of_the_pool_is_in_its_description(postgresql: PostgreSQL) -> None:
    with ConnectionPool(
        PsycopgAdapter(**postgresql.params_for(), application_name="described"),
        max_size=1,
        reset="full",
        ping_after=0.0,
        probe_after=0.0,
        require="read-write",
    ) as pool:
        mark = postgresql.mark()
        for _ in range(3):
            with pool.connection() as conn:
                conn.execute("select 'mine'")
        known = "; ".join(pool.describe().statements.values())
        said = {statement.text.strip() for statement in postgresql.statements(mark)}
    unknown = {text for text in said if text and "mine" not in text and text not in known}
    assert "DISCARD ALL" in said
    assert unknown <= {"BEGIN"}, "psycopg's own"
