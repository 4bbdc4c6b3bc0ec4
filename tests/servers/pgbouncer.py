"""PgBouncer, in front of a PostgreSQL, or of a proxy that stands in front of one."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import psycopg
from psycopg.rows import dict_row

from servers.install import require
from servers.postgresql import CONTROL, PostgreSQL
from servers.process import Server
from servers.records import PostgreSQLParams, Session


class PgBouncer(Server):
    """One private PgBouncer.

    Args:
        upstream: host and port of the server behind it, such as `PostgreSQL().address`.
        pool_mode: when a server connection goes back to PgBouncer.
        default_pool_size: server connections for each user and database.
        max_client_conn: client connections in all.
        settings: more lines for pgbouncer.ini.
    """

    name = "PgBouncer"
    stop_signal = signal.SIGTERM  # at once; SIGINT would wait for the clients
    ready_text = "process up"

    superuser: ClassVar = PostgreSQL.superuser
    user: ClassVar = PostgreSQL.user
    dbname: ClassVar = PostgreSQL.dbname

    def __init__(
        self,
        upstream: tuple[str, int],
        *,
        pool_mode: Literal["session", "transaction", "statement"] = "transaction",
        default_pool_size: int = 20,
        max_client_conn: int = 200,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.upstream = upstream
        self.pool_mode = pool_mode
        self.default_pool_size = default_pool_size
        self.max_client_conn = max_client_conn
        self.settings = dict(settings or {})

    def params_for(self, *, dbname: str | None = None) -> PostgreSQLParams:
        """Return the arguments for `psycopg.connect`, for another database than `app`."""
        return PostgreSQLParams(host=self.host, port=self.port, user=self.user, dbname=dbname or self.dbname)

    def url_for(self, *, dbname: str | None = None) -> str:
        """Return the same as a URL."""
        return f"postgresql://{self.user}@{self.host}:{self.port}/{dbname or self.dbname}"

    @property
    def params(self) -> PostgreSQLParams:
        """Arguments for `psycopg.connect`."""
        return self.params_for()

    @property
    def url(self) -> str:
        """The same as a URL."""
        return self.url_for()

    def console(self, command: str) -> list[dict[str, object]]:
        """Run a command of the admin console, such as "show pools"; return its rows."""
        with psycopg.connect(
            host=self.host,
            port=self.port,
            user=self.superuser,
            dbname="pgbouncer",
            application_name=CONTROL,
            autocommit=True,
            row_factory=dict_row,
        ) as connection:
            cursor = connection.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def census(self, *, application_name: str | None = None) -> list[Session]:
        """Return the client sessions that PgBouncer has, without those that this class opens."""
        clients = [
            Session(
                id=int(str(row["port"])),  # PgBouncer numbers nothing; the client's port is unique
                user=str(row["user"]),
                database=str(row["database"]),
                application_name=str(row.get("application_name", "")),
                state=str(row["state"]),
                query="",
            )
            for row in self.console("show clients")
            if row["database"] != "pgbouncer"
        ]
        return [c for c in clients if application_name in (None, c.application_name)]

    # -- the process

    def _prepare(self) -> None:
        self._write("users.txt", "".join(f'"{u}" ""\n' for u in (self.user, self.superuser)))

    def _command(self) -> list[str | Path]:
        # Written at every start, because the port is known only now.
        return [require("pgbouncer"), self._write("pgbouncer.ini", self._configuration())]

    def _configuration(self) -> str:
        host, port = self.upstream
        settings = {
            "listen_addr": self.host,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": str(self.directory / "users.txt"),
            "admin_users": self.superuser,
            "pool_mode": self.pool_mode,
            "default_pool_size": str(self.default_pool_size),
            "max_client_conn": str(self.max_client_conn),
            "ignore_startup_parameters": "extra_float_digits,options",
            "server_login_retry": "0.2",  # 15 s would make every test of an outage long
            **self.settings,
        }
        lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
        return f"[databases]\n* = host={host} port={port}\n\n[pgbouncer]\n{lines}"
