"""The demonstration on PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from .. import Adapter, ConnectionPool
from ..adapters.psycopg import PsycopgAdapter
from .embedded import HOST, SUPERUSER, Server

Connection = psycopg.Connection[Any]

ROLE = "app"


class PostgreSQL:
    """A database on a private server, seen by an ordinary role, and by the superuser who strikes."""

    kills_sessions = True

    def __init__(self, server: Server, admin: Connection) -> None:
        number = admin.info.server_version
        self.title = f"PostgreSQL {number // 10000}.{number % 10000}, private, on {HOST}:{server.port}"
        self._admin = admin
        self._conninfo = _conninfo(server, ROLE)

    @classmethod
    @contextmanager
    def on(cls, server: Server) -> Iterator[PostgreSQL]:
        """Connect as superuser and create what the requests need.

        The superuser's connection is opened first and kept, so that it works when there are too many.
        """
        # libpq takes from the environment what it is not told: somebody's PGSSLMODE=require, PGOPTIONS
        # or PGSERVICE are meant for another server.
        for name in [name for name in os.environ if name.startswith("PG")]:
            del os.environ[name]
        with psycopg.connect(_conninfo(server, SUPERUSER), autocommit=True) as admin:
            admin.execute(
                sql.SQL("create role {} login password {}").format(sql.Identifier(ROLE), server.password)
            )
            admin.execute("create table orders (id bigint generated always as identity, thread text)")
            admin.execute("grant insert on orders to app")
            yield cls(server, admin)

    def adapter(self) -> Adapter[Connection]:
        """Return what the pool opens connections with."""
        return PsycopgAdapter(self._conninfo)

    def connect(self) -> Connection:
        """Open a connection of one's own; its block commits and closes it."""
        return psycopg.connect(self._conninfo)

    def request(self, conn: Connection) -> None:
        """Insert a row in a statement that takes 5 ms; the end of the block commits it."""
        conn.execute("insert into orders (thread) select 'demo' from pg_sleep(0.005)")

    def session(self, conn: Connection) -> int:
        """Return the number of the server process."""
        return conn.info.backend_pid

    def sessions(self) -> int | None:
        """Count the sessions of the ordinary role."""
        return self._number("select count(*) from pg_stat_activity where usename = 'app'")

    def rows(self) -> int | None:
        """Count the rows that were inserted."""
        return self._number("select count(*) from orders")

    def strike(self, pool: ConnectionPool[Connection]) -> frozenset[int]:  # noqa: ARG002 -- behind its back
        """Terminate every session of the ordinary role."""
        # Materialized, because the planner would else be free to terminate first and ask later whose.
        rows = self._admin.execute(
            "with ours as materialized (select pid from pg_stat_activity where usename = 'app')"
            " select pid from ours where pg_terminate_backend(pid)"
        )
        return frozenset(pid for (pid,) in rows)

    def _number(self, query: str) -> int:
        row = self._admin.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])


def _conninfo(server: Server, user: str) -> str:
    return psycopg.conninfo.make_conninfo(
        host=HOST,
        port=server.port,
        user=user,
        password=server.password,
        dbname="postgres",
        sslmode="disable",  # the wheel is built without TLS
        gssencmode="disable",
        application_name="connpool demo",
    )
