"""What ``connpool doctor`` finds out, from the server, the connection and this machine.

Nothing is judged here: that is `findings`.  Nothing is limited in time: that is `doctor`'s.  Nothing is
changed on the server, and no right is needed beyond that to connect.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from .. import Adapter

Mode = Literal["session", "transaction", "statement"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server's own settings and state."""

    version: str
    max_connections: int
    reserved: int = 0
    """Connections that ordinary users do not get."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Further limits that hold for this user, by what they are called."""
    sessions: int
    idle_setting: str
    transaction_setting: str | None = None
    transaction_timeout: float | None = None
    """Seconds that a session may be idle in a transaction; ``None``: for ever."""
    thread_cache_size: int | None = None
    """``None``: this server has none."""
    numbers_differ: bool = False
    """Whether the session has another number than the one that was told when it was opened."""

    @property
    def usable(self) -> int:
        """Connections that ordinary users may have in all."""
        return max(1, self.max_connections - self.reserved)


@dataclass(frozen=True, kw_only=True)
class Link:
    """The connection to the server, or to what stands in front of it."""

    local: bool
    """Whether it stays on this machine."""
    tls: str | None
    """The protocol; ``None``: not encrypted."""
    verified: bool = False
    """Whether the other side's certificate is checked."""
    keepalive: Keepalive | None = None
    """``None``: not TCP."""


@dataclass(frozen=True, kw_only=True)
class Keepalive:
    """The socket's options, as the pool sets them; seconds.  ``None``: this system does not tell."""

    on: bool
    idle: int | None = None
    interval: int | None = None
    count: int | None = None
    user_timeout: float | None = None

    @property
    def found_within(self) -> int | None:
        """Seconds after which a peer that has vanished is found out."""
        if self.idle is None or self.interval is None or self.count is None:
            return None
        return self.idle + self.interval * self.count


@dataclass(frozen=True, kw_only=True)
class Pooler:
    """What stands between the pool and the server."""

    name: str
    mode: Mode | None = None
    """When a server connection goes back; ``None``: not found out."""
    in_vain: bool = False
    """Whether a second connection was refused, or got no session of the server in time."""
    max_client_conn: int | None = None
    default_pool_size: int | None = None
    max_prepared_statements: int | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine, and the limits of processes that are started as this one was; ``None``: not known."""

    descriptors: int | None = None
    ports: int | None = None
    time_wait: int | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything."""

    server: Server
    idle_limit: float | None
    """Seconds after which the server ends an idle session, as the pool will see it; ``None``: never."""
    writable: bool
    link: Link
    pooler: Pooler | None
    machine: Machine


class Database(Protocol):
    """One kind of server."""

    def prepare(self, conn: Any) -> None:
        """Have each question be a transaction of its own.  Sends nothing, or waits for the answer."""

    def server(self, conn: Any) -> Server:
        """Ask the server."""

    def link(self, conn: Any) -> Link:
        """Look at the connection."""

    def pooler(self, adapter: Adapter[Any], conn: Any, server: Server, limit: float) -> Pooler | None:
        """Find out what stands in between.  It may open further connections, and closes them."""


# -- PostgreSQL, PgBouncer ---------------------------------------------------------------------------

# Others' rows of pg_stat_activity have a database and no type, for those who may not see more.
_POSTGRESQL = """
SELECT pg_catalog.current_setting('server_version'),
       pg_catalog.current_setting('max_connections')::int,
       pg_catalog.current_setting('superuser_reserved_connections')::int
           + coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0),
       (SELECT rolconnlimit FROM pg_catalog.pg_roles WHERE rolname = current_user),
       (SELECT datconnlimit FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()),
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
        WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'),
       extract(epoch FROM pg_catalog.current_setting('idle_in_transaction_session_timeout')::interval),
       pg_catalog.pg_backend_pid()
"""
ROUNDS = 5
"""Transactions on each of two connections; one is enough for a PgBouncer that is not busy."""


class PostgreSQL:
    """PostgreSQL by psycopg."""

    def prepare(self, conn: Any) -> None:
        """Switch autocommit on: PgBouncer may refuse transactions; and prepare nothing."""
        conn.autocommit = True
        conn.prepare_threshold = None

    def server(self, conn: Any) -> Server:
        """Ask in one statement."""
        (version, most, reserved, role, database, sessions, in_transaction, pid) = conn.execute(
            _POSTGRESQL
        ).fetchone()
        limits = {"the role's CONNECTION LIMIT": role, "the database's CONNECTION LIMIT": database}
        return Server(
            version=f"PostgreSQL {version}",
            max_connections=most,
            reserved=reserved,
            limits={name: limit for name, limit in limits.items() if limit >= 0},
            sessions=sessions,
            idle_setting="idle_session_timeout",
            transaction_setting="idle_in_transaction_session_timeout",
            transaction_timeout=float(in_transaction) or None,
            # The one is told when a session begins, so that it can be cancelled.
            numbers_differ=pid != conn.info.backend_pid,
        )

    def link(self, conn: Any) -> Link:
        """Ask libpq and the socket."""
        mode = conn.info.get_parameters().get("sslmode", "")
        local, keepalive = _socket(conn.fileno())
        return Link(
            local=local,
            tls="TLS" if conn.pgconn.ssl_in_use else None,
            verified=mode.startswith("verify-"),
            keepalive=keepalive,
        )

    def pooler(self, adapter: Adapter[Any], conn: Any, server: Server, limit: float) -> Pooler | None:
        """Recognise a pooler by the number of the session, and its mode by what two connections get.

        A pooler cannot tell its client the number of a server's session that it does not have yet, so it
        makes one up; that holds for PgBouncer in each mode.  Its name and settings it tells nobody but
        those who may use its console.
        """
        import psycopg

        if not server.numbers_differ:
            return None
        config = self._console(adapter, limit)
        mode: Mode | None = None
        try:
            with closing(adapter.connect(limit)) as other:
                self.prepare(other)
                mode = _mode(conn, other)
        except psycopg.Error:
            pass  # refused, or not in time: that is a finding, too
        return Pooler(
            name=config.get("version", "a pooler such as PgBouncer"),
            mode=mode,
            in_vain=mode is None,
            max_client_conn=_number(config.get("max_client_conn")),
            default_pool_size=_number(config.get("default_pool_size")),
            # What a PgBouncer older than 1.21 does not know it does not do.
            max_prepared_statements=_number(config.get("max_prepared_statements", "0" if config else None)),
        )

    def _console(self, adapter: Adapter[Any], limit: float) -> dict[str, str]:
        """Return PgBouncer's settings and version, if this user may see them."""
        import psycopg

        try:
            with closing(adapter.connect(limit, {"dbname": "pgbouncer"})) as console:
                self.prepare(console)
                config = {row[0]: row[1] for row in console.execute("SHOW CONFIG")}
                (config["version"],) = console.execute("SHOW VERSION").fetchone()
                return config
        except psycopg.Error:
            return {}  # not for this user, or not PgBouncer


def _mode(conn: Any, other: Any) -> Mode:
    """Tell a pooler's mode by whether two connections that are open get the same session."""
    import psycopg

    pids: list[set[int]] = [set(), set()]
    for _ in range(ROUNDS):
        for each, seen in zip((conn, other), pids, strict=True):
            seen.add(each.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()[0])
    mine, others = pids
    if mine.isdisjoint(others) and len(mine) == len(others) == 1:
        return "session"
    try:
        other.execute("BEGIN")
        other.execute("ROLLBACK")
    except psycopg.Error:
        return "statement"
    return "transaction"


# -- MySQL and MariaDB, ProxySQL, MaxScale -----------------------------------------------------------

_MYSQL = (
    "max_connections",
    "max_user_connections",
    "idle_transaction_timeout",
    "thread_cache_size",
    "thread_handling",
    "version",
)


class MySQL:
    """MySQL or MariaDB by PyMySQL."""

    def prepare(self, conn: Any) -> None:
        """Switch autocommit on."""
        conn.autocommit(True)

    def server(self, conn: Any) -> Server:
        """Ask for variables, status and number."""
        names = ", ".join(f"'{name}'" for name in _MYSQL)
        found = dict(_rows(conn, f"SHOW VARIABLES WHERE Variable_name IN ({names})"))
        (_, sessions), *_ = _rows(conn, "SHOW GLOBAL STATUS LIKE 'Threads_connected'")
        ((number,),) = _rows(conn, "SELECT CONNECTION_ID()")
        of_user = int(found.get("max_user_connections", 0))
        is_mariadb = "mariadb" in found["version"].lower()
        has_cache = found.get("thread_handling", "one-thread-per-connection") == "one-thread-per-connection"
        return Server(
            version=("MariaDB " if is_mariadb else "MySQL ") + found["version"],
            max_connections=int(found["max_connections"]),  # one more is kept for an administrator
            limits={"max_user_connections": of_user} if of_user else {},
            sessions=int(sessions),
            idle_setting="wait_timeout",
            transaction_setting="idle_transaction_timeout" if is_mariadb else None,
            transaction_timeout=float(found.get("idle_transaction_timeout", 0)) or None,
            thread_cache_size=int(found["thread_cache_size"]) if has_cache else None,
            numbers_differ=number != conn.thread_id(),
        )

    def link(self, conn: Any) -> Link:
        """Look at the driver's socket; it has no public name."""
        sock = conn._sock
        local, keepalive = _socket(sock.fileno())
        encrypted = isinstance(sock, ssl.SSLSocket)
        return Link(
            local=local,
            tls=sock.version() if encrypted else None,
            verified=encrypted and sock.context.verify_mode is ssl.CERT_REQUIRED,
            keepalive=keepalive,
        )

    def pooler(self, adapter: Adapter[Any], conn: Any, server: Server, limit: float) -> Pooler | None:  # noqa: ARG002 -- one connection tells
        """Ask what only ProxySQL answers; another proxy gives itself away by the number of the session.

        As documented by ProxySQL ("PROXYSQL INTERNAL SESSION") and MaxScale ("the session ID is the same
        that is exposed to the client as the connection ID").  Not tried on either.
        """
        import pymysql

        try:
            _rows(conn, "PROXYSQL INTERNAL SESSION")
        except pymysql.Error:
            return Pooler(name="a proxy such as MaxScale") if server.numbers_differ else None
        return Pooler(name="ProxySQL")


def _rows(conn: Any, statement: str) -> list[tuple[Any, ...]]:
    with conn.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


DATABASES: Mapping[str, Database] = {"psycopg": PostgreSQL(), "pymysql": MySQL()}
"""By the names of the adapters."""


# -- the socket and the machine ----------------------------------------------------------------------


def _socket(fileno: int) -> tuple[bool, Keepalive | None]:
    """Return whether a socket stays on this machine, and its keepalive."""
    with socket.socket(fileno=os.dup(fileno)) as sock:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return True, None
        peer = sock.getpeername()[0]
        local = peer in (sock.getsockname()[0], "::1") or peer.startswith(("127.", "::ffff:127."))

        def option(*names: str) -> int | None:
            for name in names:
                if hasattr(socket, name):
                    return sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            return None

        user_timeout = option("TCP_USER_TIMEOUT")
        return local, Keepalive(
            on=bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)),
            idle=option("TCP_KEEPIDLE", "TCP_KEEPALIVE"),  # as macOS calls it
            interval=option("TCP_KEEPINTVL"),
            count=option("TCP_KEEPCNT"),
            user_timeout=None if user_timeout is None else user_timeout / 1000,
        )


def machine(proc: Path = Path("/proc")) -> Machine:
    """Look at this machine; what another system than Linux does not tell is left open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        descriptors = None
    else:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors = None if soft == resource.RLIM_INFINITY else soft
    return Machine(
        descriptors=descriptors, ports=_ephemeral_ports(proc), time_wait=_time_wait(proc / "net/sockstat")
    )


def _ephemeral_ports(proc: Path) -> int | None:
    try:
        first, last = (proc / "sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:
        return None
    return int(last) - int(first) + 1


def _time_wait(sockstat: Path) -> int | None:
    """Return the sockets in TIME_WAIT, of "TCP: inuse 5 orphan 0 tw 3 alloc 6 mem 1"."""
    try:
        lines = sockstat.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, *words = line.split()
        if name == "TCP:":
            return _number(dict(zip(words[::2], words[1::2], strict=False)).get("tw"))
    return None


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
