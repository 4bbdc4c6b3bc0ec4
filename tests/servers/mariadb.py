"""MariaDB: the system's mariadbd, with a data directory of its own.

`app` is an ordinary user with a password, who owns the database `app`. `control` has every right,
and is used here for looking and for killing. Nobody else can connect.
"""

import contextlib
import re
import secrets
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final, Self
from urllib.parse import quote

import pymysql  # type: ignore[import-untyped, unused-ignore] # stubs may or may not be installed

from servers.certificate import make_certificate
from servers.install import require
from servers.process import Server, read_from, size_of, wait_until
from servers.records import MariaDBParams, Session, Statement

CONTROL: Final = "control"

# Small; what is committed survives kill -9, not a crash of the machine.
FAST: Final = {
    "innodb-buffer-pool-size": "8M",
    "innodb-log-file-size": "4M",
    "innodb-flush-log-at-trx-commit": "2",
    "innodb-flush-method": "nosync",
    "innodb-use-native-aio": "0",  # few asynchronous requests are to be had in containers
    "aria-pagecache-buffer-size": "1M",
    "key-buffer-size": "1M",
    "performance-schema": "off",
}

# "261122  5:07:04 \t     3 Query\tselect 1", the time only where it differs from the line before.
LOGGED: Final = re.compile(r"^(?:\d{6} [ \d]\d:\d\d:\d\d)?\t+ *(\d+) ([A-Z][A-Za-z ]*)\t(.*)$")


class MariaDB(Server):
    """One private MariaDB.

    Args:
        max_connections: MariaDB allows no fewer than 10; one more is for `control`.
        wait_timeout: seconds after which the server closes an idle session; also the interactive.
        log_statements: keep the general log, for `statements()`; off where speed is measured.
        tls: serve TLS with a self-signed certificate.
        settings: more options, such as {"max-allowed-packet": "1M"}.
    """

    name = "MariaDB"
    stop_signal = signal.SIGTERM
    ready_text = "mariadbd: ready for connections"

    user: ClassVar = "app"
    database_name: ClassVar = "app"

    def __init__(
        self,
        *,
        max_connections: int = 100,
        wait_timeout: int = 28_800,
        log_statements: bool = False,
        tls: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.max_connections = max_connections
        self.wait_timeout = wait_timeout
        self.log_statements = log_statements
        self.tls = tls
        self.settings = dict(settings or {})
        self.password = secrets.token_hex(8)
        self._control_password = secrets.token_hex(8)
        self._control_sessions: set[int] = set()
        self._certificate = Path()

    # -- how to connect

    def params_for(self, *, database: str | None = None) -> MariaDBParams:
        """Return the arguments for `pymysql.connect`, for another database than `app`."""
        params = MariaDBParams(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            database=database or self.database_name,
        )
        if self.tls:
            params["ssl_ca"] = str(self._certificate)
        return params

    def url_for(self, *, database: str | None = None) -> str:
        """Return the same as a URL."""
        query = f"?ssl_ca={quote(str(self._certificate))}" if self.tls else ""
        credentials = f"{self.user}:{self.password}"
        database = database or self.database_name
        return f"mysql://{credentials}@{self.host}:{self.port}/{database}{query}"

    @property
    def params(self) -> MariaDBParams:
        """Arguments for `pymysql.connect`, as the ordinary user."""
        return self.params_for()

    @property
    def url(self) -> str:
        """The same as a URL."""
        return self.url_for()

    @property
    def socket(self) -> Path:
        """The private Unix socket."""
        return self.directory / "socket"

    # -- what an administrator sees and does

    def execute(self, statement: str, *args: object) -> list[tuple[object, ...]]:
        """Run one statement with every right; return its rows."""
        connection = pymysql.connect(
            unix_socket=str(self.socket),
            user=CONTROL,
            password=self._control_password,
            autocommit=True,
        )
        with connection, connection.cursor() as cursor:
            number = connection.thread_id()  # type: ignore[no-untyped-call, unused-ignore]
            self._control_sessions.add(number)
            cursor.execute(statement, args or None)
            return [tuple(row) for row in cursor.fetchall()]

    def census(self, *, user: str | None = None) -> list[Session]:
        """Return the client sessions that the server has, without those that this class opens."""
        rows = self.execute(
            "select id, user, coalesce(db, ''), command, coalesce(info, '')"
            " from information_schema.processlist"
            " where command <> 'Daemon' and user not in (%s, 'system user')"
            " and user = coalesce(%s, user) order by id",
            CONTROL,
            user,
        )
        return [
            Session(
                id=int(str(number)),
                user=str(name),
                database=str(database),
                application_name="",
                state=str(command),
                query=str(query),
            )
            for number, name, database, command, query in rows
        ]

    def terminate_sessions(self, *, user: str | None = None) -> int:
        """End client sessions with KILL; return how many, once they are gone."""
        doomed = {session.id for session in self.census(user=user)}
        for number in doomed:
            try:
                self.execute(f"kill connection {number}")
            except pymysql.err.OperationalError as error:
                if error.args[0] != pymysql.constants.ER.NO_SUCH_THREAD:  # it left by itself
                    raise
        wait_until(
            lambda: doomed.isdisjoint(session.id for session in self.census()),
            what="killed sessions are gone",
        )
        return len(doomed)

    def statements(self, since: int = 0) -> list[Statement]:
        """Return what clients executed since a `mark()`, in order; needs `log_statements`.

        MariaDB logs neither COM_PING nor COM_RESET_CONNECTION; `execute("show global status like
        'Com_admin_commands'")` counts them.
        """
        if not self.log_statements:
            raise ValueError("statements() needs MariaDB(log_statements=True)")
        found: list[Statement] = []
        for line in read_from(self.general_log, since).splitlines():
            if match := LOGGED.match(line):
                session, kind, text = match.groups()
                found.append(Statement(session=int(session), kind=kind, text=text))
            elif found:  # a further line of the statement above
                last = found.pop()
                text = f"{last.text}\n{line}"
                found.append(Statement(session=last.session, kind=last.kind, text=text))
        return [statement for statement in found if statement.session not in self._control_sessions]

    def mark(self) -> int:
        """Return the present end of the general log, for `statements()`."""
        return size_of(self.general_log)

    @property
    def general_log(self) -> Path:
        """The file that holds every statement."""
        return self.directory / "general.log"

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Create a database with a unique name, owned by `app`; drop it afterwards."""
        name = f"app_{secrets.token_hex(6)}"
        self.execute(f"create database {name}")
        try:
            yield name
        finally:
            self.start()  # in case it was killed in between
            self.execute(f"drop database {name}")

    # -- the process

    def start(self) -> Self:
        """Start the server, or start it again; it numbers its sessions from 1 then, so ours are forgotten."""
        if not self.running:
            self._control_sessions.clear()
        return super().start()

    def _prepare(self) -> None:
        require("my_print_defaults")
        if self.tls:
            self._certificate, key = make_certificate(self.directory)
            self._give_away(key)
        self._write("init.sql", self._users())
        self._run(
            *(require("mariadb-install-db"), "--no-defaults", f"--datadir={self.directory}/data"),
            *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
            *_options(FAST),
        )

    def _users(self) -> str:
        """Return the statements that the server runs before it lets anybody in, at every start."""
        app, control = f"'{self.user}'@'%'", f"'{CONTROL}'@'%'"
        return (
            f"create database if not exists {self.database_name};\n"
            f"create user if not exists {app} identified by '{self.password}';\n"
            f"create user if not exists {control} identified by '{self._control_password}';\n"
            f"grant all privileges on *.* to {control} with grant option;\n"
            # `_` is a wildcard in the name of a granted database.
            f"grant all privileges on `{self.database_name}`.* to {app};\n"
            rf"grant all privileges on `{self.database_name}\_%`.* to {app};" + "\n"
            "drop user if exists 'root'@'localhost', 'root'@'127.0.0.1', 'root'@'::1';\n"
        )

    def _command(self) -> list[str | Path]:
        settings = {
            **FAST,
            "datadir": str(self.directory / "data"),
            "init-file": str(self.directory / "init.sql"),
            "bind-address": self.host,
            "port": str(self.port),
            "socket": str(self.socket),
            "pid-file": str(self.directory / "pid"),
            "tmpdir": str(self.directory),
            "max-connections": str(self.max_connections),
            "wait-timeout": str(self.wait_timeout),
            "interactive-timeout": str(self.wait_timeout),
            "skip-name-resolve": "on",
            **self.settings,
        }
        if self.log_statements:
            settings |= {"general-log": "1", "general-log-file": str(self.general_log)}
        if self.tls:
            key = self._certificate.with_suffix(".key")
            settings |= {"ssl-cert": str(self._certificate), "ssl-key": str(key)}
        return [require("mariadbd"), "--no-defaults", *_options(settings)]


def _options(settings: Mapping[str, str]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]
