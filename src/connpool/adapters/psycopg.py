"""psycopg 3 (https://www.psycopg.org/psycopg3/): both kinds of connections, and the synchronous adapter.

What is said to the server stands here once, in generators that yield whenever the socket must be waited for
(`Wait`).  `PsycopgAdapter` waits with poll, the adapter in `psycopg_async` in the event loop.

What is true of this driver, and shapes what stands below:

*Rest.*  libpq's ``transaction_status`` is the server's own answer: it cannot be stale, and it is
ACTIVE as long as an answer, a COPY or a row in single-row mode is outstanding, and UNKNOWN once the
connection is closed or bad.  It does not show a pipeline whose answers are all read, nor what
psycopg itself keeps: an open ``transaction()`` block, a two-phase transaction, a thread that is
inside a call.  The verdict asks for those as well.

*Lost or not.*  While libpq says ACTIVE or UNKNOWN it does not say whether a transaction is open, or
was.  Autocommit is no proof that none was: it can be begun by hand.  So only a connection that its
borrower has closed is SPENT.  What is closed here is closed with ``PQfinish``, past psycopg's
``close()``, and is ``broken`` to psycopg, which tells the two apart.

*Settings* are attributes of the connection object; changing them sends nothing, and psycopg forbids
it in a transaction.  To compare them all costs more than all the rest of a borrow, so a connection that
is taken in gets a subclass of its own class, which notes that an attribute was set; the verdict compares
only then.  All have public setters but the handlers of notices and notifications, and the adapters.  A
notification that came while nobody listened is kept, by libpq until psycopg reads the next answer, and
then in psycopg's backlog, where the next ``notifies()`` finds it, whoever calls it.

*Prepared statements.*  psycopg remembers what it has prepared, and does not look when the server
forgets it, except in statements of its own.  Whoever deallocates past psycopg must clear its memory.
A name is never used twice, so the memory may be cleared too early, but not too late.

*DISCARD ALL* is refused in a transaction block, and several statements in one message are one.  So a
reset that begins with a ROLLBACK sends its parts.

*Limits.*  No call of psycopg's has one, and ``connect_timeout`` is a whole number, at least 2 s, for
each address.  So dialling, ROLLBACK and the ping are made of the public `psycopg.pq` calls, which
never block once psycopg has made the connection non-blocking, under one deadline of ours.  Not
covered is what libpq and the C library do before the first packet: name resolution, Kerberos.

*The lock.*  ``conn.lock`` is held by whoever is inside the connection.  ``PQfinish`` frees memory that
such a thread still uses, so another thread may only shut the socket down.  Closing politely never
blocks: the socket is non-blocking, and what cannot be sent at once is not sent.

*Fork.*  libpq's memory is the parent's state, and perhaps that of a thread which stopped in the middle of a
step, holding the lock.  So a forked child does not finish it: psycopg's destructor checks the process for
the same reason.  The connection object gets another, closed one in its place, and a new lock.

*Keepalive.*  libpq's parameters for it say what the user wants; where he says nothing, the kernel's defaults
are far too long for a pool.

*A read-only server.*  Since version 14 it reports ``in_hot_standby`` and ``default_transaction_read_only``
with the next answer after they change, so it is known even in a failed transaction, where nothing can be
asked.  A SHOW is true behind a PgBouncer, too, and takes no snapshot.

*Failed dials* carry no SQLSTATE (psycopg issue 1188), only ``needs_password`` and a text in the
server's language.  What the text does not tell is taken for a dead server, and tried again.

Not known here: sizes, queues, when a connection is looked at, what becomes of it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast, overload

import psycopg
from psycopg import errors, pq
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import (
    conninfo_attempts,
    conninfo_to_dict,
    make_conninfo,
    timeout_from_conninfo,
)

from connpool.adapter import Fault, Verdict
from connpool.adapters.classes import Subclasses
from connpool.adapters.postgresql import (
    EVERYTHING,
    IDLE_LIMIT,
    READ_ONLY,
    RESETS,
    SAYS,
    fault_of,
    one_by_one,
    reset_message,
)
from connpool.adapters.sockets import disconnect, keep_alive, ready, shut_down
from connpool.errors import (
    PoolClosed,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from connpool.reset import Part

if TYPE_CHECKING:
    from psycopg import BaseConnection
    from psycopg.abc import AdaptContext, ConnParam
    from psycopg.pq.abc import PGconn, PGresult
    from psycopg.rows import RowFactory, TupleRow

__all__ = [
    "PsycopgAdapter",
    "PsycopgPoolClosed",
    "PsycopgPoolOverloaded",
    "PsycopgPoolTimeout",
    "PsycopgPoolUnavailable",
]

B = TypeVar("B", bound="BaseConnection[Any]")
C = TypeVar("C", bound="psycopg.Connection[Any]")
C2 = TypeVar("C2", bound="psycopg.Connection[Any]")
R = TypeVar("R")
T = TypeVar("T")


# -- the pool's errors, as this driver's --------------------------------------------------------------


class PsycopgPoolTimeout(PoolTimeout, psycopg.OperationalError):
    """`PoolTimeout` for ``except psycopg.OperationalError``."""

    def __init__(self, message: str = "") -> None:
        # OSError, which a TimeoutError is, passes nothing on: `diag` would miss its attributes.
        psycopg.OperationalError.__init__(self, message)


class PsycopgPoolOverloaded(PoolOverloaded, psycopg.OperationalError):
    """`PoolOverloaded` for ``except psycopg.OperationalError``."""


class PsycopgPoolUnavailable(PoolUnavailable, psycopg.OperationalError):
    """`PoolUnavailable` for ``except psycopg.OperationalError``."""


class PsycopgPoolClosed(PoolClosed, psycopg.OperationalError):
    """`PoolClosed` for ``except psycopg.OperationalError``."""


# -- tables ------------------------------------------------------------------------------------------

_CLEAN, _ALTERED, _BROKEN, _SPENT = Verdict.CLEAN, Verdict.ALTERED, Verdict.BROKEN, Verdict.SPENT
# By libpq's PGTransactionStatusType: IDLE, ACTIVE, INTRANS, INERROR, UNKNOWN.
_VERDICTS = (_CLEAN, _BROKEN, Verdict.DIRTY, Verdict.FAILED, _BROKEN)

# What servers say to a dial that they refuse, in English.  What trying again may cure comes first:
# one text can speak of several hosts.
_REFUSALS = (
    (
        Fault.STARTING,
        re.compile(
            r"the database system is (starting up|shutting down|in recovery mode)"
            r"|the database system is not (yet )?accepting connections"
        ),
    ),
    (
        Fault.FULL,
        re.compile(
            r"too many clients already|remaining connection slots are reserved"
            r"|too many connections for (role|database)"
            r"|no more connections allowed"  # PgBouncer
        ),
    ),
    (
        Fault.AUTH,
        re.compile(
            r"authentication failed|no password supplied|no pg_hba\.conf entry"
            r"|pg_hba\.conf rejects connection|(role|database) \".*\" does not exist"
            r"|is not permitted to log in|permission denied for database"
            r"|no such (database|user)"  # PgBouncer
            # Certificates, the server's and ours, and what is demanded of the encryption
            r"|certificate verify failed|server certificate for .* does not match"
            r"|could not get server's host name from server certificate"
            r"|root certificate file .* does not exist"
            r"|could not (read|load) (root certificate|certificate|private key|certificate revocation list)"
            r"|certificate present, but not private key|does not match private key"
            r"|private key file .* (has group or world access|must be owned)"
            r"|server does not support SSL, but SSL was required"
            r"|alert (unknown ca|bad certificate|certificate (required|expired|revoked|unknown))"
            r"|requires a valid client certificate"
            r"|channel binding required|authentication method requirement"
        ),
    ),
)

# libpq's parameters, and the socket's options that they set.
_KEEPALIVES = {
    b"keepalives": ("SO_KEEPALIVE",),
    b"keepalives_idle": ("TCP_KEEPIDLE", "TCP_KEEPALIVE"),
    b"keepalives_interval": ("TCP_KEEPINTVL",),
    b"keepalives_count": ("TCP_KEEPCNT",),
    b"tcp_user_timeout": ("TCP_USER_TIMEOUT",),
}

# The version that reports the one, and knows the other: idle_session_timeout.
_MODERN = 140_000
_IS_READ_ONLY = "; ".join(f"SHOW {name}" for name in READ_ONLY)
_IS_READ_ONLY_BEFORE = "SELECT pg_catalog.pg_is_in_recovery(); SHOW default_transaction_read_only"

# What of the parameters may be shown: never a password, not even a wrong one.
_SHOWN = ("service", "host", "hostaddr", "port", "dbname", "user")


# -- settings ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Settings:
    """What psycopg keeps in a connection, by the names of the public attributes, and how to see it change."""

    autocommit: object
    isolation_level: object
    read_only: object
    deferrable: object
    row_factory: object
    cursor_factory: object
    server_cursor_factory: object
    prepare_threshold: object
    prepared_max: object
    notice_handlers: list[Any]
    notify_handlers: list[Any]

    # The connection's own parts, which are still its parts unless something was set.
    pgconn: Any
    locked: Callable[[], bool]
    backlog: Any
    touched: bool  # something was set, or must be looked at
    watched: bool = True  # whether anything tells; if not, `touched` stays


def _watched(base: type[Any]) -> type[Any]:
    class Watched(base):  # type: ignore[misc] # one for each class of a user
        _settings: _Settings

        def __setattr__(self, name: str, value: object) -> None:
            self._settings.touched = True  # first: an interrupt between the two costs a comparison
            super().__setattr__(name, value)

        def __delattr__(self, name: str) -> None:
            self._settings.touched = True
            super().__delattr__(name)

        # These change lists in place.

        def add_notice_handler(self, callback: Any) -> None:
            self._settings.touched = True
            super().add_notice_handler(callback)

        def remove_notice_handler(self, callback: Any) -> None:
            self._settings.touched = True
            super().remove_notice_handler(callback)

        def add_notify_handler(self, callback: Any) -> None:
            self._settings.touched = True
            super().add_notify_handler(callback)

        def remove_notify_handler(self, callback: Any) -> None:
            self._settings.touched = True
            super().remove_notify_handler(callback)

    return Watched


_classes = Subclasses(_watched)


def _watch(conn: BaseConnection[Any], settings: _Settings) -> None:
    """Have *settings* told when something is set; without, all is compared each time."""
    object.__setattr__(conn, "_settings", settings)
    try:
        _classes.give(conn)
    except TypeError:
        settings.touched, settings.watched = True, False


class _Unknown:
    """Stands in for what a later psycopg keeps under another name: it is always the same."""


_UNKNOWN: Any = _Unknown()

# What the verdict reads.  What a later psycopg does not have is not compared, nor put back; the rest is.
_PRIVATE: Mapping[str, Any] = {
    "_num_transactions": 0,
    "_tpc": None,
    "_autocommit": _UNKNOWN,
    "_isolation_level": _UNKNOWN,
    "_read_only": _UNKNOWN,
    "_deferrable": _UNKNOWN,
    "_prepared": _UNKNOWN,
    "_notice_handlers": [],
    "_notify_handlers": [],
    "_notifies_backlog": None,
}
_PREPARING: Mapping[str, Any] = {"prepare_threshold": _UNKNOWN, "prepared_max": _UNKNOWN}

_SETTABLE = (
    "autocommit",
    "isolation_level",
    "read_only",
    "deferrable",
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
    "prepare_threshold",
    "prepared_max",
)


def _complete(whole: object, names: Mapping[str, Any]) -> None:
    for name, stand_in in names.items():
        if not hasattr(whole, name):
            setattr(whole, name, stand_in)


def to_put_back(conn: BaseConnection[Any], settings: Any) -> Iterator[tuple[str, object]]:
    """Put back what has no setter; yield the names and values of what else is not as it was."""
    _put_back_handlers(conn, settings)
    for name in _SETTABLE:
        value = getattr(settings, name)
        if value is not _UNKNOWN and getattr(conn, name) is not value:
            yield name, value
    if conn._notifies_backlog:
        conn._notifies_backlog.clear()


def _put_back_handlers(conn: BaseConnection[Any], settings: Any) -> None:
    conn._notice_handlers = [*settings.notice_handlers]
    conn._notify_handlers = [*settings.notify_handlers]


def _forget_prepared(conn: BaseConnection[Any]) -> bool:
    """Clear psycopg's memory of what it prepared; tell whether the server has any of it.

    psycopg would deallocate that after the next statement.  If that one is prepared at once, it would be
    deallocated with the rest, and its second execution would fail.
    """
    prepared = conn._prepared
    prepared.clear()
    any_left = bool(prepared._to_flush)
    prepared._to_flush.clear()
    return any_left


def _reset_message(conn: BaseConnection[Any], parts: tuple[Part, ...], *, in_transaction: bool) -> str:
    """Return the one message that does the parts; psycopg's memory is cleared of what it deallocates."""
    if not in_transaction and all(part in EVERYTHING for part in parts):
        _forget_prepared(conn)
        return reset_message(parts, in_transaction=False)
    single = one_by_one(parts)
    if (in_transaction or Part.DEALLOCATE in single) and _forget_prepared(conn):
        single = (*single, Part.DEALLOCATE)  # as in `rollback`
    return reset_message(single, in_transaction=in_transaction)


# -- the verdict -------------------------------------------------------------------------------------


def _judge(conn: Any, was: _Settings) -> Verdict:
    """Judge a connection of which something is not as in most borrows."""
    pgconn = conn.pgconn
    # `transaction_status` answers for `status` and `closed` too: UNKNOWN unless both are good.  Without
    # `_num_transactions` an abandoned transaction() block would refuse the next borrower's commit();
    # without `_tpc` a prepared transaction would.
    status = pgconn.transaction_status
    if conn._num_transactions or conn._tpc or pgconn.pipeline_status or conn.lock.locked():
        return _SPENT if conn.closed and not conn.broken else _BROKEN
    if status:
        return _SPENT if conn.closed and not conn.broken else _VERDICTS[status]
    prepared = conn._prepared
    if (
        conn._autocommit is not was.autocommit
        or conn._isolation_level is not was.isolation_level
        or conn._read_only is not was.read_only
        or conn._deferrable is not was.deferrable
        or conn.row_factory is not was.row_factory
        or conn.cursor_factory is not was.cursor_factory
        or conn.server_cursor_factory is not was.server_cursor_factory
        or prepared.prepare_threshold is not was.prepare_threshold
        or prepared.prepared_max is not was.prepared_max
        or conn._notice_handlers != was.notice_handlers
        or conn._notify_handlers != was.notify_handlers
        or conn._notifies_backlog
    ):
        return _ALTERED
    if was.touched and was.watched:
        # Set, and set back, as `transaction()` does with its counter.
        was.pgconn, was.locked, was.backlog = pgconn, conn.lock.locked, conn._notifies_backlog
        was.touched = False
    return _CLEAN


# -- the wire ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Wait:
    """What a step waits for: yielded, and answered with whether it has come in time."""

    fileno: int
    seconds: float | None
    read: bool = True
    write: bool = False


Steps: TypeAlias = Generator[Wait, bool, T]
"""Something to do on a connection, which yields whenever its socket must be waited for."""


def dial(
    params: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], deadline: float | None
) -> Steps[PGconn]:
    """Connect to the first address that lets us in.

    `psycopg.connect` cannot be given such a limit, so the dial is made of the same public parts that it
    is made of, except for the wait.  An address gets its share of the time that is left: one that
    swallows every packet must not cost the next one its turn.
    """
    most = float(timeout_from_conninfo(dict(params)))  # 130 s if nobody said anything
    failures: list[tuple[str, psycopg.Error]] = []
    for number, attempt in enumerate(attempts):
        seconds = most
        if deadline is not None:
            seconds = min(most, max(0.0, deadline - monotonic()) / (len(attempts) - number))
        try:
            return (yield from _dial_one(make_conninfo("", **attempt), seconds))
        except psycopg.Error as exc:
            where = attempt.get("host") or "local socket"
            failures.append((f"{where} ({attempt.get('hostaddr')})", exc))
    try:
        last = failures[-1][1]
        if len(failures) > 1:
            texts = "\n".join(f"- {where}: {exc}" for where, exc in failures)
            last = type(last)(f"no address could be connected:\n{texts}", pgconn=last.pgconn)
        raise last
    finally:
        del failures, last  # else they and this frame would keep each other alive


def _dial_one(conninfo: str, seconds: float) -> Steps[PGconn]:
    """Connect to one address within *seconds*."""
    deadline = monotonic() + seconds
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    try:
        while pgconn.status != pq.ConnStatus.BAD:
            status = pgconn.connect_poll()
            if status == pq.PollingStatus.OK:
                pgconn.nonblocking = 1  # what psycopg expects, and every limit of ours
                return pgconn
            if status == pq.PollingStatus.FAILED:
                break
            # The socket is another one after each address, and each try with less encryption.
            writing = status == pq.PollingStatus.WRITING
            if not (yield Wait(pgconn.socket, deadline - monotonic(), read=not writing, write=writing)):
                raise errors.ConnectionTimeout(f"not connected within {seconds:.3g} s")
        message = f"connection failed: {pgconn.get_error_message()}"
        raise psycopg.OperationalError(message, pgconn=_finished(pgconn))
    except BaseException:
        pgconn.finish()
        raise


def _finished(pgconn: PGconn) -> PGconn:
    """Finish a connection; return what psycopg's errors have of it, without its passwords.

    Somebody shows all that an error has: a log of exceptions with their attributes.
    """
    finished: Any = errors.finish_pgconn(pgconn)
    finished.password = b""
    # libpq marks what a form would show as asterisks.
    finished.info = [
        option._replace(val=None) if option.dispchar == b"*" else option for option in finished.info
    ]
    return cast("PGconn", finished)


def _keep_alive(pgconn: PGconn) -> None:
    """Have the kernel watch the connection, as far as libpq has not been told how."""
    try:
        given = [name for option in pgconn.info if option.val for name in _KEEPALIVES.get(option.keyword, ())]
        keep_alive(pgconn.socket, leave=given)
    except psycopg.OperationalError:
        pass  # closed already; the verdict says so


def busy(what: str, limit: float | None, *, who: str) -> psycopg.OperationalError:
    """Make the error for a lock that was not to be had."""
    return psycopg.OperationalError(f"{what}: another {who} has used the connection for {limit:.3g} s")


@dataclass(slots=True)
class Wire:
    """A connection whose lock we hold, and the deadline of what is being done with it."""

    conn: BaseConnection[Any]
    what: str
    limit: float | None
    deadline: float | None

    @property
    def pgconn(self) -> PGconn:
        return self.conn.pgconn

    def send(self, commands: str) -> Steps[None]:
        """Send a message; it is with the kernel when this returns."""
        pgconn = self.conn.pgconn
        pgconn.send_query(commands.encode())
        while pgconn.flush():
            # The server may write before it reads on, until we have read that.
            yield from self._wait(write=True)
            pgconn.consume_input()

    def read(self) -> Steps[list[PGresult]]:
        """Read all the answers to one message and return them; raise what the server says."""
        pgconn = self.conn.pgconn
        results: list[PGresult] = []
        while True:
            if pgconn.is_busy():
                yield from self._wait()
                pgconn.consume_input()
                continue
            result = pgconn.get_result()
            if result is None:
                break
            results.append(result)
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result, encoding=self.conn.info.encoding)
        return results

    def exchange(self, commands: str) -> Steps[list[PGresult]]:
        """Send a message and read its answers; raise what the server says."""
        yield from self.send(commands)
        return (yield from self.read())

    def ask(self, question: str) -> Steps[list[bytes | None]]:
        """Return the one value of each answer; none if the server does not know what is asked for."""
        try:
            results = yield from self.exchange(question)
        except psycopg.Error as exc:
            if _fault(exc, dialling=False) is not Fault.ORDINARY:
                raise
            return []
        return [result.get_value(0, 0) for result in results]

    def _wait(self, *, write: bool = False) -> Steps[None]:
        """Wait for the socket; close the connection if there is no time left.

        The answer might come later, and be taken for the next statement's.
        """
        left = None if self.deadline is None else self.deadline - monotonic()
        if not (yield Wait(self.conn.pgconn.socket, left, write=write)):
            self.conn.pgconn.finish()
            raise psycopg.OperationalError(
                f"{self.what}: no answer within {self.limit:.3g} s, the connection is closed"
            )


# -- what is said on it --------------------------------------------------------------------------------


def ping(wire: Wire) -> Steps[None]:
    """Send an empty query, which changes nothing in any state of a transaction."""
    yield from wire.exchange("")


def idle_limit(wire: Wire) -> Steps[float | None]:
    """Ask for ``idle_session_timeout``, which there is since PostgreSQL 14; 0 means never."""
    if wire.pgconn.server_version < _MODERN:
        return None
    for value in (yield from wire.ask(IDLE_LIMIT)):
        return float(value or 0) or None
    return None


def writable(wire: Wire) -> Steps[bool]:
    """Ask whether the server is a standby, or begins all transactions READ ONLY.

    In a failed transaction what it has reported with the error tells.  A session that its borrower
    has made read-only, not his transaction alone, counts as a read-only server: nothing that can be
    read in a failed transaction tells them apart, and it is not to be lent again either.
    """
    pgconn = wire.pgconn
    status = pgconn.transaction_status
    modern = pgconn.server_version >= _MODERN
    answers: list[bytes | None]
    if status == pq.TransactionStatus.IDLE or (status == pq.TransactionStatus.INTRANS and modern):
        answers = yield from wire.ask(_IS_READ_ONLY if modern else _IS_READ_ONLY_BEFORE)
    else:
        answers = [pgconn.parameter_status(name.encode()) for name in READ_ONLY]
    return not {b"on", b"t"}.intersection(answers)


def begin(wire: Wire) -> Steps[None]:
    """Send the BEGIN that psycopg would, with the connection's characteristics.

    psycopg itself sends none in autocommit, and only together with a statement otherwise; and
    in its ``transaction()`` block ``commit()`` is forbidden.
    """
    conn = wire.conn
    words = ["BEGIN"]
    if conn.isolation_level is not None:
        words.append("ISOLATION LEVEL " + conn.isolation_level.name.replace("_", " "))
    if conn.read_only is not None:
        words.append("READ ONLY" if conn.read_only else "READ WRITE")
    if conn.deferrable is not None:
        words.append("DEFERRABLE" if conn.deferrable else "NOT DEFERRABLE")
    yield from wire.exchange(" ".join(words))


def rollback(wire: Wire) -> Steps[None]:
    """Roll back, and forget what psycopg prepared, as it does in a rollback of its own.

    What was prepared may refer to tables that the rollback has undone.
    """
    # A psycopg that keeps it elsewhere forgets nothing here; that is its own affair.
    forgotten = hasattr(wire.conn._prepared, "_to_flush") and _forget_prepared(wire.conn)
    yield from wire.exchange("ROLLBACK; DEALLOCATE ALL" if forgotten else "ROLLBACK")


def drop_notifies(wire: Wire) -> Steps[None]:
    """Drop what libpq has read and psycopg has not asked for: it was for the last borrower."""
    while wire.pgconn.notifies():
        pass
    yield from ()


def adapters_of(conn: BaseConnection[Any], parts: tuple[Part, ...]) -> object:
    """Copy the adapters for `Part.FULL`: what a reset brings back and the server does not remember.

    ``None`` if there are none yet: psycopg copies its global ones when the first cursor is made.
    """
    adapters = conn._adapters if Part.FULL in parts else None
    return None if adapters is None else AdaptersMap(adapters)


def send_reset(settings: Any, memory: object, parts: tuple[Part, ...], wire: Wire) -> Steps[None]:
    """Send the parts in one message, after a ROLLBACK if a transaction is open.

    What no verdict can see, the adapters and what psycopg has prepared, is put right before the
    message is on its way: an interrupt after it finds the connection BROKEN, until the settings are
    put back, and those the verdict sees.
    """
    conn = wire.conn
    _put_back_handlers(conn, settings)  # no notice of ours is for the borrower
    if Part.FULL in parts:
        conn._adapters = None if memory is None else AdaptersMap(cast("AdaptersMap", memory))
    in_transaction = wire.pgconn.transaction_status != pq.TransactionStatus.IDLE
    yield from wire.send(_reset_message(conn, parts, in_transaction=in_transaction))


def read_reset(wire: Wire) -> Steps[None]:
    """Read the answers to a reset, and drop what was notified."""
    yield from wire.read()
    yield from drop_notifies(wire)


# -- faults -----------------------------------------------------------------------------------------


def _fault(exc: BaseException, *, dialling: bool) -> Fault:
    """Classify by SQLSTATE; while dialling by what the server's text says."""
    if isinstance(exc, PoolError) or not isinstance(exc, psycopg.Error):
        return Fault.DEAD if dialling and isinstance(exc, OSError) else Fault.ORDINARY
    if dialling and exc.sqlstate is None:
        return _refusal(exc)
    if exc.sqlstate is None:
        # No server said this.  libpq and psycopg say it of a connection that is gone, except
        # that a pipeline skips what comes after an error.
        gone = isinstance(exc, psycopg.OperationalError)
        return Fault.DEAD if gone and not isinstance(exc, errors.PipelineAborted) else Fault.ORDINARY
    return fault_of(exc.sqlstate, exc.diag.severity_nonlocalized, dialling=dialling)


def _refuse_unknown(parameters: Mapping[str, Any]) -> None:
    """Raise if libpq does not know one of the names."""
    try:
        make_conninfo(**dict.fromkeys(parameters, ""))
    except psycopg.ProgrammingError as exc:  # it names the parameter, and there are no values
        raise PoolMisuse(f"psycopg: {exc}") from None


def _refusal(exc: psycopg.Error) -> Fault:
    """Classify a failed dial, for which there is no SQLSTATE."""
    if not isinstance(exc, psycopg.OperationalError):
        return Fault.ORDINARY
    text = str(exc)
    for fault, pattern in _REFUSALS:
        if pattern.search(text):
            return fault
    if exc.pgconn is not None and exc.pgconn.needs_password:
        return Fault.AUTH
    return Fault.DEAD


# -- the adapter -------------------------------------------------------------------------------------


class Psycopg(Generic[B]):
    """What the adapters for both kinds of connections share: everything but the waiting."""

    name: str = "psycopg"
    bounded: bool = True
    sees_transactions: bool = True
    says: Mapping[str, str] = {
        **SAYS,
        "rollback": "ROLLBACK, and DEALLOCATE ALL if psycopg has prepared statements",
    }
    parts: Collection[Part] = frozenset((*EVERYTHING, *RESETS))
    errors: Mapping[type[PoolError], type[PoolError]] = {
        PoolTimeout: PsycopgPoolTimeout,
        PoolOverloaded: PsycopgPoolOverloaded,
        PoolUnavailable: PsycopgPoolUnavailable,
        PoolClosed: PsycopgPoolClosed,
    }
    _kind: type[BaseConnection[Any]]
    _callable: Callable[[], Any] | None = None

    def __init__(
        self,
        conninfo: str = "",
        *,
        row_factory: Any = None,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        cursor_factory: Any = None,
        **kwargs: ConnParam,
    ) -> None:
        try:
            make_conninfo(conninfo)
        except psycopg.ProgrammingError:
            # libpq quotes what it does not understand, and that may be a part of the password.
            raise PoolMisuse(
                "libpq cannot parse the connection string (not repeated here, it may hold a"
                " password); in a URL, @ : / ? # and % inside a name or password must be"
                " percent-encoded"
            ) from None
        _refuse_unknown(kwargs)
        self._conninfo = conninfo
        self._kwargs = kwargs
        self._row_factory = row_factory
        self._autocommit = autocommit
        self._prepare_threshold = prepare_threshold
        self._context = context
        self._cursor_factory = cursor_factory

    def __repr__(self) -> str:
        # Of a callable only its name: a functools.partial shows its arguments.
        if self._callable is not None:
            shown = getattr(self._callable, "__qualname__", type(self._callable).__qualname__)
            return f"{type(self).__name__}.around({shown})"
        params = conninfo_to_dict(self._conninfo, **self._kwargs)
        shown = " ".join(f"{name}={params[name]}" for name in _SHOWN if name in params)
        return f"{type(self).__name__}({shown!r})"

    # -- opening -------------------------------------------------------------------------------------

    def _parameters(self, credentials: Mapping[str, Any]) -> dict[str, Any]:
        _refuse_unknown(credentials)
        params = {**conninfo_to_dict(self._conninfo, **self._kwargs), **credentials}
        return {name: value for name, value in params.items() if value is not None}

    def _furnished(self, pgconn: PGconn) -> B:
        """Make a connection of psycopg's own class, as its ``connect`` does."""
        try:
            conn: Any = self._kind(pgconn)
            conn.prepare_threshold = self._prepare_threshold
            if self._row_factory is not None:
                conn.row_factory = self._row_factory
            if self._cursor_factory is not None:
                conn.cursor_factory = self._cursor_factory
            if self._context is not None:
                # The one thing that has no public setter.
                conn._adapters = AdaptersMap(self._context.adapters)
        except BaseException:
            pgconn.finish()
            raise
        return cast("B", conn)

    def adopt(self, conn: Any) -> object:
        """Return the settings as they are now, and see to it that `verdict` will find all names.

        The socket gets its keepalive here, so that it is the same for a callable's connections.
        """
        kind: type[Any] = self._kind
        if not isinstance(conn, kind):
            raise PoolMisuse(
                f"the connect callable returned a {type(conn).__module__}.{type(conn).__qualname__},"
                f" not a psycopg.{kind.__name__}"
            )
        _keep_alive(conn.pgconn)
        _complete(conn, _PRIVATE)
        _complete(conn._prepared, _PREPARING)
        if conn._notifies_backlog:
            conn._notifies_backlog.clear()  # it came before anybody could ask for it
        settings = _Settings(
            conn._autocommit,
            conn._isolation_level,
            conn._read_only,
            conn._deferrable,
            conn.row_factory,
            conn.cursor_factory,
            conn.server_cursor_factory,
            conn._prepared.prepare_threshold,
            conn._prepared.prepared_max,
            [*conn._notice_handlers],
            [*conn._notify_handlers],
            conn.pgconn,
            conn.lock.locked,
            conn._notifies_backlog,
            bool(conn._num_transactions or conn._tpc),
        )
        _watch(conn, settings)
        return settings

    def unprepare(self, conn: Any) -> None:
        """Have psycopg prepare nothing.

        PgBouncer since 1.22 knows prepared statements, if psycopg's libpq (17 or later) can take them back;
        neither can be asked here.  `on_connect` may set ``prepare_threshold`` again where both are there.
        """
        conn._prepared.prepare_threshold = None

    # -- judging -------------------------------------------------------------------------------------

    # -- warm path
    def verdict(self, conn: B, baseline: Any) -> Verdict:
        """Judge by libpq's own state, which no interrupt can falsify, and psycopg's above it."""
        try:
            pgconn, locked = baseline.pgconn, baseline.locked
            # A held lock is a thread inside the connection, which may be about to send.
            if (
                pgconn.transaction_status
                or pgconn.pipeline_status
                or locked()
                or baseline.touched
                or baseline.backlog
            ):
                return _judge(conn, baseline)
            return _CLEAN
        except Exception:  # costs nothing until it happens
            return _BROKEN

    # -- end of warm path

    def alive(self, conn: B) -> bool:
        """Tell whether the socket is quiet.

        Right under TLS too: there is nothing left to decrypt in a connection at rest.  Only NOTIFY
        makes a healthy connection readable, and whoever listens wants no pool.
        """
        try:
            return not ready(conn.pgconn.socket)
        except (psycopg.Error, OSError, ValueError):  # closed; or not a descriptor any more
            return False

    # -- closing -------------------------------------------------------------------------------------

    def _new_lock(self) -> object:
        """Make a lock such as psycopg has in these connections."""
        raise NotImplementedError

    def _finish(self, conn: B) -> None:
        """Say goodbye if it can be said at once, and close; cut it if somebody is inside."""
        raise NotImplementedError

    def abort(self, conn: B) -> None:
        """Shut the socket down, which ends a call that somebody is in; close if none is.

        Whoever is in a call gets `psycopg.OperationalError`, and libpq closes the
        connection under it; the memory is freed with the connection object.
        """
        shut_down(lambda: conn.pgconn.socket)
        self._finish(conn)

    def forget(self, conn: Any) -> None:
        """Let the descriptor lead nowhere, and put a closed connection of libpq's in place of the open one.

        The open one is the parent's, and not to be touched: a thread of his may be inside it.
        """
        disconnect(lambda: conn.pgconn.socket)
        try:
            nothing = pq.PGconn.connect_start(b"=")  # no parameter is called that: nobody is dialled
            nothing.finish()
            conn.pgconn = nothing
            conn.lock = self._new_lock()
        except Exception:
            pass  # no memory, or another psycopg: the descriptor leads nowhere all the same

    # -- faults --------------------------------------------------------------------------------------

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Classify by SQLSTATE; while dialling by what the server's text says."""
        return _fault(exc, dialling=dialling)


class PsycopgAdapter(Psycopg[C]):
    """Connections of psycopg 3, made by the adapter within a limit.

    Prefer it to a bare ``lambda: psycopg.connect(...)``, whose dials nobody can limit.

    Args:
        conninfo: A libpq connection string or URI, as for `psycopg.connect`.
        row_factory: As for `psycopg.connect`; it decides the connection's type.
        kwargs: The other arguments of `psycopg.connect`.  A `connect_timeout` is what one address may
            take at most; the pool's own limit is for all of them together.

    Raises:
        PoolMisuse: libpq cannot parse the connection string, or knows no such parameter.
    """

    _kind = psycopg.Connection

    @overload
    def __init__(
        self: PsycopgAdapter[psycopg.Connection[TupleRow]],
        conninfo: str = "",
        *,
        row_factory: None = None,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        cursor_factory: type[psycopg.Cursor[Any]] | None = None,
        **kwargs: ConnParam,
    ) -> None: ...

    @overload
    def __init__(
        self: PsycopgAdapter[psycopg.Connection[R]],
        conninfo: str = "",
        *,
        row_factory: RowFactory[R],
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        cursor_factory: type[psycopg.Cursor[Any]] | None = None,
        **kwargs: ConnParam,
    ) -> None: ...

    def __init__(self, conninfo: str = "", **kwargs: Any) -> None:
        super().__init__(conninfo, **kwargs)

    @classmethod
    def around(cls, connect: Callable[[], C2]) -> PsycopgAdapter[C2]:
        """Make an adapter for a callable that returns connections; its dials have no limit."""
        adapter: PsycopgAdapter[Any] = PsycopgAdapter()
        adapter.bounded = False
        adapter._callable = connect
        return adapter

    @classmethod
    def from_url(cls, url: str) -> PsycopgAdapter[psycopg.Connection[TupleRow]]:
        """Make an adapter from a libpq URI; ``postgresql+psycopg://`` is understood as well."""
        scheme, separator, rest = url.partition("://")
        return PsycopgAdapter(scheme.partition("+")[0] + separator + rest)

    # -- opening -------------------------------------------------------------------------------------

    def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> C:
        """Open a connection within *limit* seconds, whatever the number of addresses.

        *credentials* are parameters of libpq's, in place of those of the same names, wherever these come
        from; ``None`` for a value takes the parameter away.
        """
        if self._callable is not None:
            conn: C = self._callable()
            return conn
        deadline = None if limit is None else monotonic() + limit
        params = self._parameters(credentials or {})
        conn = self._furnished(_run(dial(params, conninfo_attempts(params), deadline)))
        if self._autocommit:
            conn.autocommit = True
        return conn

    def remember(self, conn: C, parts: tuple[Part, ...], limit: float | None) -> object:  # noqa: ARG002
        """Copy the adapters for `Part.FULL`; the server remembers all else that a reset brings back."""
        return adapters_of(conn, parts)

    # -- speaking ------------------------------------------------------------------------------------

    def ping(self, conn: C, limit: float | None) -> None:
        """Send an empty query, which changes nothing in any state of a transaction."""
        _speak(conn, "ping", limit, ping)

    def idle_limit(self, conn: C, limit: float | None) -> float | None:
        """Ask for ``idle_session_timeout``, which there is since PostgreSQL 14; 0 means never."""
        return _speak(conn, "idle_session_timeout", limit, idle_limit)

    def writable(self, conn: C, limit: float | None) -> bool:
        """Ask whether the server is a standby, or begins all transactions READ ONLY."""
        return _speak(conn, "in_hot_standby", limit, writable)

    def begin(self, conn: C) -> None:
        """Send the BEGIN that psycopg would, with the connection's characteristics."""
        _speak(conn, "BEGIN", None, begin)

    def commit(self, conn: C) -> None:
        """Commit."""
        conn.commit()

    def rollback(self, conn: C, limit: float | None) -> None:
        """Roll back, and forget what psycopg prepared, as it does in a rollback of its own."""
        _speak(conn, "ROLLBACK", limit, rollback)

    # -- going back ----------------------------------------------------------------------------------

    def restore(self, conn: C, baseline: Any, limit: float | None) -> None:
        """Put the settings back, and drop what was notified.  Nothing is sent.

        *limit* is for the lock, if another thread has it; the setters take it once more.
        """
        _speak(conn, "restore", limit, drop_notifies)
        self._put_back(conn, baseline)

    def send_reset(
        self, conn: C, baseline: Any, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> object | None:
        """Send the parts in one message, after a ROLLBACK if a transaction is open."""
        _speak(conn, "reset", limit, partial(send_reset, baseline, memory, parts))
        settings: object = baseline
        return settings

    def read_reset(self, conn: C, token: object, limit: float | None) -> None:
        """Read the answers, and put the settings back; close the connection if that fails.

        For the server has done nothing of a message in which one statement failed.
        """
        try:
            _speak(conn, "reset", limit, read_reset)
            self._put_back(conn, token)
        except BaseException:
            self._finish(conn)
            raise

    @staticmethod
    def _put_back(conn: C, settings: object) -> None:
        """Put all settings back.  The setters take the lock, so it must be free."""
        for name, value in to_put_back(conn, settings):
            setattr(conn, name, value)

    # -- closing -------------------------------------------------------------------------------------

    def close(self, conn: C, limit: float | None) -> None:  # noqa: ARG002 -- it never blocks
        """Say goodbye if it can be said at once, and close."""
        self._finish(conn)

    def _new_lock(self) -> object:
        return threading.Lock()

    def _finish(self, conn: C) -> None:
        if conn.lock.acquire(blocking=False):
            try:
                conn.pgconn.finish()
            finally:
                conn.lock.release()
        else:
            shut_down(lambda: conn.pgconn.socket)


# -- waiting with poll ---------------------------------------------------------------------------------


def _run(steps: Steps[T]) -> T:
    """Take the steps, waiting with poll in between."""
    try:
        wait = next(steps)
        while True:
            wait = steps.send(ready(wait.fileno, wait.seconds, read=wait.read, write=wait.write))
    except StopIteration as end:
        return cast("T", end.value)
    finally:
        steps.close()  # it cleans up at once, whatever has struck


def _speak(
    conn: psycopg.Connection[Any], what: str, limit: float | None, talk: Callable[[Wire], Steps[T]]
) -> T:
    """Take the connection's lock within *limit* seconds, and talk in what is left of them."""
    deadline = None if limit is None else monotonic() + limit
    if not conn.lock.acquire(timeout=-1 if limit is None else max(0.0, limit)):
        raise busy(what, limit, who="thread")
    try:
        return _run(talk(Wire(conn, what, limit, deadline)))
    finally:
        conn.lock.release()
