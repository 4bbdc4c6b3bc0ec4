"""The ways to a database that are compared, each as a Django user would write it."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import connpool

Server = Literal["PostgreSQL", "MariaDB"]

SESSION, TRANSACTION = "connpool, session", "connpool, transaction"
OURS = (SESSION, TRANSACTION)
BUILT_IN = "built-in pool"
SQLALCHEMY = "django-db-connection-pool"
PGBOUNCER = "PgBouncer"
PGBOUNCER_KEPT = "PgBouncer, CONN_MAX_AGE=600"

SIZE = "SIZE"
"""Stands for the connections that a process may have."""


@dataclass(frozen=True)
class Contender:
    """A name, and what of ``DATABASES["default"]`` is particular to it."""

    name: str
    server: Server
    engine: str
    settings: dict[str, Any] = field(default_factory=dict)
    distribution: str = "Django"  # whose version is told
    through_pgbouncer: bool = False

    @property
    def version(self) -> str | None:
        """What is installed; None: it is not."""
        if self.name in OURS:
            return connpool.__version__
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    def database(self, address: dict[str, Any], size: int) -> dict[str, Any]:
        """Return ``DATABASES["default"]`` for a server's address and so many connections in a process."""
        settings = _sized(self.settings, size)
        options = {**address.get("OPTIONS", {}), **settings.get("OPTIONS", {})}
        return {"ENGINE": self.engine, **address, **settings, "OPTIONS": options}

    @property
    def configuration(self) -> str:
        """The same in short, for the report."""
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"{self.engine}{', ' if settings else ''}{settings}".replace(f"'{SIZE}'", "size")


def _sized(settings: Any, size: int) -> Any:
    if isinstance(settings, dict):
        return {key: _sized(value, size) for key, value in settings.items()}
    return size if settings == SIZE else settings


def _contenders(server: Server, backend: str) -> list[Contender]:
    """Return those that are there for both servers, ours last."""
    plain, ours = f"django.db.backends.{backend}", f"connpool.integrations.django.{backend}"
    sized = {"POOL_SIZE": SIZE, "MAX_OVERFLOW": 0, "TIMEOUT": 30}
    session = {"max_size": SIZE, "acquire_timeout": 30.0}
    transaction = {**session, "pooling": "transaction"}
    sqlalchemy = f"dj_db_conn_pool.backends.{backend}"
    return [
        Contender("CONN_MAX_AGE=0", server, plain, {"CONN_MAX_AGE": 0}),
        Contender("CONN_MAX_AGE=600", server, plain, {"CONN_MAX_AGE": 600}),
        Contender(SQLALCHEMY, server, sqlalchemy, {"POOL_OPTIONS": sized}, SQLALCHEMY),
        Contender(SESSION, server, ours, {"OPTIONS": {"pool": session}}, "connpool"),
        Contender(TRANSACTION, server, ours, {"OPTIONS": {"pool": transaction}}, "connpool"),
    ]


def _only_postgresql() -> list[Contender]:
    plain = "django.db.backends.postgresql"
    pool = {"OPTIONS": {"pool": {"min_size": SIZE, "max_size": SIZE, "timeout": 30}}}
    return [
        Contender(BUILT_IN, "PostgreSQL", plain, pool, "psycopg_pool"),
        Contender(PGBOUNCER, "PostgreSQL", plain, {"CONN_MAX_AGE": 0}, through_pgbouncer=True),
        Contender(PGBOUNCER_KEPT, "PostgreSQL", plain, {"CONN_MAX_AGE": 600}, through_pgbouncer=True),
    ]


CONTENDERS = [
    *_only_postgresql(),
    *_contenders("PostgreSQL", "postgresql"),
    *_contenders("MariaDB", "mysql"),
]
