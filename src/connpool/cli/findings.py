"""What ``connpool doctor`` makes of the facts: each finding says what it means for the pool.

Pure functions: `judge` takes the facts and returns the findings, in the order in which they are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from .. import PoolOptions, sizing
from .facts import Facts, Link, Machine, Pooler, Server


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    """Good to know; nothing is wrong."""
    WARNING = "warning"
    """It will hurt in a burst, an outage or a deployment."""
    PROBLEM = "problem"
    """It cannot work, or does not now."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    severity: Severity
    meaning: str
    """What it means for the pool."""
    advice: str = ""
    """What to change; empty if nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The pools that are to use this server."""

    size: int = PoolOptions.max_size
    processes: int = 1
    idle_timeout: float = PoolOptions.idle_timeout or 0.0

    @property
    def connections(self) -> int:
        """Connections of all processes together."""
        return sizing.in_all(self.size, processes=self.processes)

    def __str__(self) -> str:
        many = "process" if self.processes == 1 else "processes"
        return f"{self.processes} {many} x max_size={self.size} = {self.connections} connections"


SERVER_MARGIN = 0.8
"""What the pool uses of a server's limit for idle sessions."""
SHORT_IDLE = 60.0
"""Seconds; a server that ends sessions sooner has the pool dial again in every quiet minute."""
FORGETFUL = 300
"""Seconds after which NAT gateways and load balancers forget a silent connection, commonly."""
FULL = 0.95
SPARE_DESCRIPTORS = 64
"""What a process needs besides: the interpreter, logs, what it listens on."""

OK, NOTE, WARNING, PROBLEM = Severity


def judge(facts: Facts, plan: Plan) -> list[Finding]:
    """Return all findings."""
    server, link, machine = facts.server, facts.link, facts.machine
    return [
        Finding("version", server.version, OK, "What the server says it is."),
        _between(facts.pooler, plan),
        _slots(server, facts.pooler, plan),
        _sessions(server),
        _idle(server, facts.idle_limit, plan),
        *_idle_in_transaction(server),
        _writable(facts.writable),
        _tls(link),
        _keepalive(link),
        *_thread_cache(server, plan),
        *_descriptors(machine, plan),
        *_ports(machine, plan),
    ]


# -- the server --------------------------------------------------------------------------------------


def _slots(server: Server, pooler: Pooler | None, plan: Plan) -> Finding:
    name = "max_connections"
    most, what = min((limit, what) for what, limit in {name: server.usable, **server.limits}.items())
    value = f"{server.max_connections}, {server.reserved} of them reserved"
    value += "".join(f"; {what} {limit}" for what, limit in server.limits.items())
    if pooler is not None:
        return Finding(name, value, OK, f"For the connections of {pooler.name}, not for those of the pool.")
    room = sizing.budget(most) if most else 0
    if plan.connections <= room:
        return Finding(name, value, OK, f"{plan} fit, and leave a reserve of 15 % to others.")
    advice = (
        f"At most max_size={max(1, room // plan.processes)} with this many processes; or fewer processes,"
        f" a pooler in front of the server, or a larger {what}. See connpool size."
    )
    if plan.connections > most:
        meaning = f"{plan} do not fit: there are {most}. Dials will be refused, and their callers wait."
        return Finding(name, value, PROBLEM, meaning, advice)
    meaning = f"{plan} leave less than 15 % of {most} to administration, replication and batch."
    return Finding(name, value, WARNING, meaning, advice)


def _sessions(server: Server) -> Finding:
    name, value = "sessions", f"{server.sessions} of {server.usable}"
    advice = "See who holds them: pg_stat_activity, or SHOW PROCESSLIST. End what is idle for long."
    if server.sessions >= FULL * server.usable:
        meaning = "The server is full, or nearly: the pool can hardly open a connection now."
        return Finding(name, value, PROBLEM, meaning, advice)
    if server.sessions > sizing.budget(server.usable):
        return Finding(name, value, WARNING, "The reserve of 15 % is in use already.", advice)
    return Finding(name, value, OK, "There is room, with this session counted.")


def _idle(server: Server, limit: float | None, plan: Plan) -> Finding:
    name, setting = "idle sessions", server.idle_setting
    if limit is None:
        return Finding(
            name, f"{setting}: never", OK, "The server keeps idle sessions; the pool's idle_timeout decides."
        )
    value, usable = f"{setting}: {limit:g} s", SERVER_MARGIN * limit
    if usable >= plan.idle_timeout:
        return Finding(name, value, OK, f"Longer than the pool's idle_timeout of {plan.idle_timeout:g} s.")
    meaning = (
        f"The server ends a session that is idle for {limit:g} s, so the pool closes its connections after"
        f" {usable:g} s idle, and not after {plan.idle_timeout:g} s."
    )
    advice = (
        f"Set idle_timeout={usable:g} so that it can be read in the options,"
        f" or {setting} to {plan.idle_timeout / SERVER_MARGIN:g} s or more."
    )
    if limit < SHORT_IDLE:
        meaning += " After each quiet minute the first callers wait for a dial."
        return Finding(name, value, WARNING, meaning, advice)
    return Finding(name, value, NOTE, meaning, advice)


def _idle_in_transaction(server: Server) -> Iterator[Finding]:
    if server.transaction_setting is None:
        return
    name, setting, limit = "idle transactions", server.transaction_setting, server.transaction_timeout
    if limit is not None:
        yield Finding(
            name, f"{setting}: {limit:g} s", OK, "A transaction that its borrower forgets ends by then."
        )
        return
    meaning = "A borrower that hangs in a transaction keeps its locks, and its connection, for ever."
    yield Finding(
        name, f"{setting}: never", NOTE, meaning, f"Set {setting} for this user, to 60 s for example."
    )


def _writable(writable: bool) -> Finding:
    if writable:
        return Finding("writes", "taken", OK, "This is a primary.")
    meaning = "A standby, or a server that was made read-only: statements that write will fail."
    advice = 'Point the URL to the primary; require="read-write" has the pool refuse servers like this one.'
    return Finding("writes", "refused", WARNING, meaning, advice)


def _thread_cache(server: Server, plan: Plan) -> Iterator[Finding]:
    name, size = "thread_cache_size", server.thread_cache_size
    if size is None:
        return
    if size >= min(plan.connections, 256):
        yield Finding(
            name, str(size), OK, "Connections that are replaced get a thread that is there already."
        )
        return
    meaning = f"The server keeps {size} threads of ended sessions; {plan} may be replaced at one time."
    advice = f"Set thread_cache_size to {min(plan.connections, 256)}."
    yield Finding(name, str(size), NOTE if size else WARNING, meaning, advice)


# -- the way there -----------------------------------------------------------------------------------


def _between(pooler: Pooler | None, plan: Plan) -> Finding:
    name = "pooler"
    if pooler is None:
        return Finding(name, "none seen", OK, "Each connection of the pool has a session of its own.")
    value = f"{pooler.name}, {pooler.mode} mode" if pooler.mode else f"{pooler.name}, mode unknown"
    if pooler.max_client_conn is not None and plan.connections > pooler.max_client_conn:
        meaning = f"{plan} do not fit: max_client_conn is {pooler.max_client_conn}."
        return Finding(
            name, value, PROBLEM, meaning, "Raise max_client_conn: a client costs PgBouncer little."
        )
    if pooler.mode == "statement":
        meaning = "Transactions are refused, and the connection is closed: pool.connection() cannot work."
        return Finding(name, value, PROBLEM, meaning, "Set pool_mode = transaction.")
    if pooler.mode == "transaction":
        meaning = (
            "A session's settings, LISTEN, advisory locks and temporary tables do not stay with the"
            " connection, and reach other clients instead."
        )
        advice = 'Keep reset="rollback"; use SET LOCAL, and no SET in on_connect.'
        if pooler.max_prepared_statements:
            return Finding(name, value, NOTE, meaning, advice)
        sure = pooler.max_prepared_statements == 0
        meaning += (
            " Prepared statements fail, and psycopg prepares what it has run five times."
            if sure
            else " Prepared statements fail unless max_prepared_statements is set, from PgBouncer 1.21 on."
        )
        return Finding(
            name, value, WARNING, meaning, advice + " Use PsycopgAdapter(url, prepare_threshold=None)."
        )
    if pooler.mode == "session":
        meaning = "A connection of the pool holds a session of the server for as long as it is open."
        most = pooler.default_pool_size
        if most is not None and plan.connections > most:
            meaning += f" {plan} wait for {most}: default_pool_size."
            advice = "Set pool_mode = transaction, or raise default_pool_size."
            return Finding(name, value, WARNING, meaning, advice)
        return Finding(name, value, NOTE, meaning, "A short idle_timeout gives sessions back to others.")
    if pooler.in_vain:
        meaning = "A second connection got no session of the server: perhaps all are taken, in session mode."
        return Finding(name, value, WARNING, meaning, "Look at SHOW POOLS in PgBouncer's console.")
    meaning = (
        "It may share a session among clients. What it notices, such as SET, it keeps to one of them,"
        " and with it the session."
    )
    return Finding(name, value, NOTE, meaning, 'Keep reset="rollback", and avoid SET in on_connect.')


def _tls(link: Link) -> Finding:
    if link.tls is None:
        if link.local:
            return Finding("tls", "none", NOTE, "Not encrypted, and does not leave this machine.")
        meaning = "Passwords' proofs, statements and rows cross the network in the clear."
        advice = "PostgreSQL: ?sslmode=verify-full. MySQL: ?ssl_ca=/path/to/ca.pem."
        return Finding("tls", "none", WARNING, meaning, advice)
    if link.verified:
        return Finding("tls", f"{link.tls}, verified", OK, "Encrypted, and the server has proven who it is.")
    meaning = "Encrypted, but whoever answers at this address is believed to be the server."
    advice = "PostgreSQL: ?sslmode=verify-full&sslrootcert=... MySQL: ?ssl_ca=... in the URL."
    return Finding("tls", f"{link.tls}, not verified", NOTE if link.local else WARNING, meaning, advice)


def _keepalive(link: Link) -> Finding:
    name, settings = "keepalive", link.keepalive
    if settings is None:
        return Finding(name, "a Unix socket", OK, "Needs none: it cannot vanish silently.")
    advice = "Take the keepalives parameters out of the URL: the pool sets its own."
    if not settings.on:
        meaning = "A peer that vanished is not noticed, and gateways forget connections that are silent."
        return Finding(name, "off", WARNING, meaning, advice)
    within = settings.found_within
    if within is None:
        return Finding(name, "on", OK, "When it is sent, this system does not tell.")
    value = f"after {settings.idle} s, {settings.count} x {settings.interval} s"
    if settings.user_timeout:
        value += f"; sent data {settings.user_timeout:g} s"
    meaning = f"A peer that vanished is noticed within {within} s."
    if (settings.idle or 0) >= FORGETFUL:
        meaning += f" Gateways forget a connection that is silent for {FORGETFUL} s."
        return Finding(name, value, WARNING, meaning, advice)
    return Finding(name, value, OK, meaning)


# -- this machine ------------------------------------------------------------------------------------


def _descriptors(machine: Machine, plan: Plan) -> Iterator[Finding]:
    limit = machine.descriptors
    if limit is None:
        return
    name, value = "ulimit -n", str(limit)
    left = limit - SPARE_DESCRIPTORS - plan.size
    advice = "Raise it where the service is started: ulimit -n, or LimitNOFILE= of systemd."
    if left < 0:
        meaning = f"max_size={plan.size} does not fit into the descriptors of a process."
        yield Finding(name, value, PROBLEM, meaning, advice)
    elif plan.size > left:
        meaning = f"max_size={plan.size} takes more than half of the descriptors of a process."
        yield Finding(name, value, WARNING, meaning, advice)
    else:
        yield Finding(name, value, OK, "Enough for a process started as this one was.")


def _ports(machine: Machine, plan: Plan) -> Iterator[Finding]:
    if machine.ports is None:
        return
    closed = machine.time_wait or 0
    name, value = "ephemeral ports", f"{machine.ports}, {closed} sockets in TIME_WAIT"
    advice = "Find what opens a connection per request, and pool it; or widen net.ipv4.ip_local_port_range."
    left = machine.ports - closed
    if plan.connections > left:
        meaning = f"{plan} may find no free port: a closed connection keeps its own for a minute."
        yield Finding(name, value, PROBLEM, meaning, advice)
    elif closed > machine.ports / 2:
        meaning = "More than half may be taken by connections that were closed in the last minute."
        yield Finding(name, value, WARNING, meaning, advice)
    else:
        yield Finding(name, value, OK, "Enough: each connection to one server takes a port.")
