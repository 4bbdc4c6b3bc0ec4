"""Any driver that speaks PEP 249: what the DB-API lets a pool know, and what a few drivers add to it.

PEP 249 shows neither whether a transaction is open nor whether a connection is.  So a driver of which
nothing is known is taken for DIRTY at every release, and a COMMIT or ROLLBACK that comes back is the
proof that it is at rest (`Adapter.sees_transactions`): one round trip for each release.  A driver in
the table `_KNOWN` costs none, because its connections show their state.

The same table says which settings a driver keeps in its connections: they are compared and put back.
Of a driver that is not in it none is looked at, because to read an attribute may take a round trip
(mysql-connector's ``autocommit`` does).  And it says what is known of resets: of PostgreSQL's with
psycopg2 all, of any other driver's nothing.

Limits hold for a driver whose connections have a ``fileno()``: a step that takes too long has its
socket shut down under it, which makes any blocking driver return.  Without one they cannot hold.

In a forked child a connection's descriptor is made to lead nowhere.  Without one the child must not so
much as close it, so it is kept for ever, and refused wherever the pool would use it.

This module refuses to know any driver's package: it imports none.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, MutableSequence
from contextlib import AbstractContextManager
from operator import attrgetter, methodcaller
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple

from ..adapter import Adapter, Fault, Verdict
from ..errors import PoolError, PoolMisuse
from ..reset import Part
from .postgresql import EVERYTHING, RESETS
from .sockets import disconnect, keep_alive, ready, shut_down

try:
    import ctypes
except ImportError:  # Python can be built without
    ctypes = None  # type: ignore[assignment]

# An enum's member is looked up by a descriptor of its class: too dear for every release.
_CLEAN: Final = Verdict.CLEAN
_ALTERED: Final = Verdict.ALTERED
_DIRTY: Final = Verdict.DIRTY
_BROKEN: Final = Verdict.BROKEN
_SPENT: Final = Verdict.SPENT


# -- what a few drivers show --------------------------------------------------------------------------


def _put_back(conn: Any, settings: Mapping[str, object]) -> None:
    """Set attributes, and autocommit by its method where it is one."""
    for name, value in settings.items():
        if _setting(conn, name) != value:
            if name == "autocommit" and callable(conn.autocommit):
                conn.autocommit(value)
            else:
                setattr(conn, name, value)


def _setting(conn: Any, name: str) -> object:
    value = getattr(conn, name)
    return _autocommits(conn) if name == "autocommit" else value


class Known(NamedTuple):
    """What a driver shows of its state, without a round trip, and what more it can do."""

    state: tuple[str, ...] = ()
    """Attributes that tell whether a transaction is open."""

    verdicts: Mapping[object, Verdict] = MappingProxyType({})
    """What their values mean, the first being CLEAN; what is not here means BROKEN."""

    closed: Callable[[Any], bool] | None = None
    """Tells, of what is not open any more, whether its own close() did that, and not the network."""

    settings: tuple[str, ...] = ()
    """Attributes that the next borrower would inherit.  Those that a version lacks are left out."""

    backlogs: tuple[str, ...] = ()
    """Lists to which the driver appends what comes unasked.  A borrower may have put his own there."""

    put_back: Callable[[Any, Mapping[str, object]], None] = _put_back
    """Sets the settings, outside of a transaction."""

    parts: Collection[Part] = frozenset()
    """The parts of a reset that `reset` does."""

    reset: Callable[[Any, tuple[Part, ...]], None] | None = None
    """Does parts of a reset, outside of a transaction.  The settings are anything afterwards."""

    type_maps: tuple[str, ...] = ()
    """Dictionaries by which the connection converts values: they are for `Part.FULL` alone."""

    healthy: Callable[[Any], object] | None = None
    """Looks at the socket, for a driver that does not give it away."""

    ping: Callable[[Any], object] | None = None
    """The driver's own round trip, if it never reconnects behind the pool's back."""

    obeys: bool = False
    """Whether commit() and rollback() reach the server on an autocommit connection, too."""

    idle_limit: Callable[[Any], object] | None = None
    """Asks for the seconds after which the server ends an idle session; 0 or ``None`` is never."""

    read_only: Callable[[Any], object] | None = None
    """Asks whether the server takes no writes, in any state of a transaction."""

    tuned: Callable[[Any], Collection[str]] | None = None
    """Tells which options of its socket the user has set, by their names in `socket`."""

    unlock: Callable[[Any], object] | None = None
    """Frees, in a forked child, the lock of a thread that only the parent has."""


# -- psycopg2

_PSYCOPG2: Final[Mapping[object, Verdict]] = {
    # libpq's status comes from the ReadyForQuery message that ends every answer of the server.  The
    # driver's own says whether it has sent a BEGIN: 1 no, 2 yes.  If the borrower has said COMMIT by
    # himself, it sends none to the next one either, whose statements would commit themselves.
    (0, 1): Verdict.CLEAN,
    (0, 2): Verdict.ALTERED,
    (2, 1): Verdict.DIRTY,
    (2, 2): Verdict.DIRTY,
    (3, 1): Verdict.FAILED,
    (3, 2): Verdict.FAILED,
    # All else is BROKEN: in the middle of an exchange, unknown, prepared for a second phase
}

_CHARACTERISTICS: Final = ("isolation_level", "readonly", "deferrable")
_SET_BY_METHODS: Final = ("autocommit", *_CHARACTERISTICS, "encoding")

_POSTGRESQL: Final[Mapping[Part, str]] = {
    **RESETS,
    # The driver relies on ISO dates, and sets them when it connects.
    Part.RESET_SETTINGS: "RESET ALL; SET datestyle TO ISO; SET client_encoding TO '{encoding}'",
}


def _put_back_psycopg2(conn: Any, settings: Mapping[str, object]) -> None:
    """Set what set_session() sets in one call, for the order matters; then the rest.

    On an autocommit connection the characteristics are settings of the session: it sends them.  What
    they are there the driver does not know, so it is told again what was not the server's own choice.
    """
    conn.rollback()  # does nothing unless the driver believes that a transaction is open
    characteristics = {
        name: "default" if settings[name] is None else settings[name]
        for name in _CHARACTERISTICS
        if settings[name] is not None or getattr(conn, name) is not None
    }
    conn.set_session(autocommit=settings["autocommit"], **characteristics)
    if conn.encoding != settings["encoding"]:
        conn.set_client_encoding(settings["encoding"])
    _put_back(conn, {name: value for name, value in settings.items() if name not in _SET_BY_METHODS})


def _reset_psycopg2(conn: Any, parts: tuple[Part, ...]) -> None:
    """Do parts of a reset in one message, and so in one round trip."""
    if any(part in EVERYTHING for part in parts):
        # DISCARD ALL, which runs in no transaction: this sends no BEGIN before it.  Then the driver
        # reads again what it had noted of the session: the encoding, the style of dates.
        conn.reset()
        return
    if not conn.autocommit:
        # In this order nothing is sent: the characteristics would be, once autocommit is on.
        conn.set_session(**{name: "default" for name in _CHARACTERISTICS if getattr(conn, name) is not None})
        conn.autocommit = True
    message = "; ".join(_POSTGRESQL[part] for part in dict.fromkeys(parts))
    _execute(conn, message.format(encoding=conn.encoding))


_MODERN: Final = 140_000  # has idle_session_timeout, and reports what makes it read-only
_READ_ONLY: Final = ("in_hot_standby", "default_transaction_read_only")
_TUNED: Final[Mapping[str, tuple[str, ...]]] = {
    "keepalives": ("SO_KEEPALIVE",),
    "keepalives_idle": ("TCP_KEEPIDLE", "TCP_KEEPALIVE"),
    "keepalives_interval": ("TCP_KEEPINTVL",),
    "keepalives_count": ("TCP_KEEPCNT",),
    "tcp_user_timeout": ("TCP_USER_TIMEOUT",),
}


def _idle_limit_psycopg2(conn: Any) -> object:
    if conn.server_version < _MODERN:
        return None
    # As an interval: it is shown in whatever unit suits.  And no number of Python's own, for whose
    # types the user may have other converters.
    return _asked(
        conn,
        "SELECT extract(epoch FROM pg_catalog.current_setting('idle_session_timeout', true)"
        "::pg_catalog.interval)::pg_catalog.text",
    )


def _read_only_psycopg2(conn: Any) -> object:
    """Ask; where that might fail the transaction, or it has failed, see what the server has reported."""
    status = conn.info.transaction_status
    if status == 0 or (status == 2 and conn.server_version >= _MODERN):
        return (
            _asked(
                conn,
                "SELECT (pg_catalog.pg_is_in_recovery()"
                " OR pg_catalog.current_setting('default_transaction_read_only') = 'on')::pg_catalog.text",
            )
            == "true"
        )
    return any(conn.info.parameter_status(name) == "on" for name in _READ_ONLY)


def _asked(conn: Any, question: str) -> object:
    """Return the one value of an answer, whatever class of cursors makes its rows."""
    cursor = conn.cursor()
    try:
        cursor.execute(question)
        (row,) = cursor.fetchall()
    finally:
        cursor.close()
    return next(iter(row.values())) if isinstance(row, Mapping) else row[0]


def _asks(question: str) -> Callable[[Any], object]:
    return lambda conn: _asked(conn, question)


# -- the others

_LIBPQ: Final[Mapping[object, Verdict]] = {
    0: Verdict.CLEAN,
    2: Verdict.DIRTY,
    3: Verdict.FAILED,
    # 1, in the middle of an exchange, and 4, unknown, are BROKEN
}

# The session's own: interactive_timeout is where it begins for an interactive client.
_WAIT_TIMEOUT: Final = "SELECT @@wait_timeout"
# Later versions of MariaDB have words for the first.  MySQL's super_read_only sets it, too.
_IS_READ_ONLY: Final = "SELECT @@global.read_only NOT IN ('0', 'OFF') OR @@global.innodb_read_only"

_KNOWN: Final[Mapping[str, Known]] = {
    "psycopg2": Known(
        ("info.transaction_status", "status"),
        _PSYCOPG2,
        closed=lambda conn: bool(conn.closed == 1),  # 2 if the driver has found it dead
        settings=(*_SET_BY_METHODS, "cursor_factory"),
        backlogs=("notices", "notifies"),
        put_back=_put_back_psycopg2,
        parts=frozenset((*EVERYTHING, *_POSTGRESQL)),
        reset=_reset_psycopg2,
        type_maps=("string_types", "binary_types"),
        idle_limit=_idle_limit_psycopg2,
        read_only=_read_only_psycopg2,
        tuned=lambda conn: [n for p in conn.info.dsn_parameters for n in _TUNED.get(p, ())],
    ),
    "psycopg": Known(
        ("pgconn.transaction_status",),
        _LIBPQ,
        closed=lambda conn: conn.closed and not conn.broken,
        settings=(
            *("autocommit", "isolation_level", "read_only", "deferrable"),
            *("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold"),
        ),
        tuned=lambda conn: [n for p in conn.info.get_parameters() for n in _TUNED.get(p, ())],
        unlock=lambda conn: setattr(conn, "lock", threading.Lock()),
    ),
    # A flag in the server's answers, also to statements that failed.  is_healthy() looks at the
    # socket; ping() never reconnects; "SELECT 1" needs a FROM before Oracle 23.  The settings are
    # fields of the driver's, or of its library's handle.
    "oracledb": Known(
        ("transaction_in_progress",),
        {False: Verdict.CLEAN, True: Verdict.DIRTY},
        closed=lambda conn: conn._impl is None,
        settings=(
            *("autocommit", "call_timeout", "stmtcachesize", "inputtypehandler", "outputtypehandler"),
            *("operation_callback", "round_trip_callback"),
        ),
        healthy=methodcaller("is_healthy"),
        ping=methodcaller("ping"),
    ),
    # They send COMMIT and ROLLBACK whatever the mode.  The server's status flags are no use: under
    # autocommit=0 a plain SELECT opens a transaction that they do not show.  That of autocommit is.
    "MySQLdb": Known(
        closed=lambda conn: not conn.open,  # a session that its server has ended stays "open"
        settings=("autocommit", "cursorclass", "executemany_fallback"),
        obeys=True,
        idle_limit=_asks(_WAIT_TIMEOUT),
        read_only=_asks(_IS_READ_ONLY),
    ),
    "pymysql": Known(
        closed=lambda conn: bool(conn._closed),
        settings=("autocommit", "cursorclass"),
        obeys=True,
        idle_limit=_asks(_WAIT_TIMEOUT),
        read_only=_asks(_IS_READ_ONLY),
    ),
}
_UNKNOWN: Final = Known()


class _Baseline(NamedTuple):
    """How the verdict on one connection is read, and what it is compared with."""

    state: Callable[[Any], object] | None
    """Reads the transaction's state.  A C callable, like the next: they add no Python frame of ours."""
    verdicts: Mapping[object, Verdict]
    read: Callable[[Any], Any] | None
    """Reads all at once, if there is a state: backlogs, settings, state."""
    rest: object
    """What it reads at rest: then nothing else needs to be looked at."""
    own: tuple[MutableSequence[object], ...]
    """The backlogs."""
    ended: Callable[[Any], object] | None
    """Reads the attribute that tells open from closed, where `state` does not."""
    ended_is: bool
    """What it says when closed."""
    backlogs: tuple[str, ...]
    settings: Mapping[str, object]


def _baseline(conn: object, known: Known) -> _Baseline:
    """Note the settings, and empty the backlogs."""
    backlogs: dict[str, MutableSequence[object]] = {}
    settings: dict[str, object] = {}
    for name in (*known.backlogs, *known.settings):
        try:
            value = _setting(conn, name)
        except Exception:
            continue  # the driver's version, or its mode, has none
        if name in known.backlogs and isinstance(value, MutableSequence):
            value.clear()
            backlogs[name] = value
        else:
            settings[name] = value
    clean = next(iter(known.verdicts), None)
    rest = (*backlogs.values(), *settings.values(), *(clean if isinstance(clean, tuple) else (clean,)))
    ended, ended_is = _ended(conn)
    return _Baseline(
        state=attrgetter(*known.state) if known.state else None,
        verdicts=known.verdicts,
        read=attrgetter(*backlogs, *settings, *known.state) if known.state else None,
        rest=rest if len(rest) > 1 else clean,
        own=tuple(backlogs.values()),
        ended=ended,
        ended_is=ended_is,
        backlogs=tuple(backlogs),
        settings=MappingProxyType(settings),
    )


def _ended(conn: object) -> tuple[Callable[[Any], object] | None, bool]:
    # Many drivers have one of these two.  A fresh connection is open: an attribute that says so now
    # can be trusted when it says the opposite.  If it lies, a connection is closed needlessly.
    for name, closed in (("closed", True), ("open", False)):
        value = getattr(conn, name, None)
        if value is not None and not callable(value) and bool(value) is not closed:
            return attrgetter(name), closed
    return None, True


def _modules(conn: object) -> list[str]:
    """Return the modules, and packages around them, that a connection's classes come from."""
    names = []
    for klass in type(conn).__mro__[:-1]:
        parts = klass.__module__.split(".")
        names += [".".join(parts[: n + 1]) for n in range(len(parts))]
    return names


# -- the adapter --------------------------------------------------------------------------------------


class DBAPIAdapter(Adapter[Any]):
    """Any PEP 249 driver.  Prefer the driver's own adapter where there is one.

    On sqlite3 it cannot see a SELECT that was read halfway, which a rollback does not end.

    Args:
        connect: The driver's ``connect``, or any callable that returns a new connection.
        *args: Passed to it.
        **kwargs: Passed to it.
    """

    name = "DB-API"  # until the first connection tells
    bounded = False
    sees_transactions = False  # until then, too
    parts: Collection[Part] = frozenset(Part) - {Part.ROLLBACK}  # until then, all that there are
    says: Mapping[str, str] = MappingProxyType(
        {
            "connect": "for PostgreSQL and MySQL, the question for the server's limit of idleness",
            "require": "for the same, the question whether the server takes writes",
            "ping": "the driver's own ping(), or `ping_statement`, and then rollback()",
            "begin": "BEGIN on an autocommit connection, else nothing",
            "commit": "the driver's commit(); COMMIT on an autocommit connection",
            "rollback": "the driver's rollback(); ROLLBACK on an autocommit connection",
            "restore": "what the driver's settings say when they are set",
            "demoted": "as for `require`",
        }
    )
    errors: Mapping[type[PoolError], type[PoolError]] = MappingProxyType({})
    ping_statement = "SELECT 1"
    """One round trip.  For a database that wants a FROM, override it in a subclass."""
    faults: Mapping[str | int, Fault] = MappingProxyType({})
    """What a driver's errors mean, where the tables here do not know it; assign it, or override it.

    A number is looked for as the error's ``errno``, ``code`` or first argument.  Five digits and capital
    letters are an SQLSTATE, two of them its class.  Anything else is a text: part of the message, in
    whatever case.  A number comes before an SQLSTATE, that before its class, that before a text, and all
    of them before what is known here::

        adapter = DBAPIAdapter(oracledb.connect, dsn="db/app", user="app", password=...)
        adapter.faults = {"ORA-12519": Fault.FULL, "ORA-16456": Fault.DEMOTED}

    Only errors of drivers are looked up: those whose class has one called ``Error`` among its bases
    (PEP 249).
    """

    def __init__(self, connect: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._connect = connect
        self._args = args
        self._kwargs = kwargs
        self._takes_credentials = True
        self._known = _UNKNOWN
        self._has_socket = False
        self._begun: set[int] = set()
        self._aborted = Aborted()
        weakref.finalize(self, self._aborted.sweep)

    @classmethod
    def around(cls, connect: Callable[[], Any]) -> DBAPIAdapter:
        """Make an adapter from a callable that returns connections."""
        adapter = cls(connect)
        adapter._takes_credentials = False
        return adapter

    def __repr__(self) -> str:
        # Never the arguments: one of them is a password.
        return f"<{type(self).__name__} for {self.name}>"

    def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> Any:  # noqa: ARG002
        """Call the callable; *limit* is the pool's to keep.

        *credentials* are keyword arguments; a callable that was handed to `around` gets none.
        """
        self._aborted.sweep()
        own = (credentials or {}) if self._takes_credentials else {}
        return self._connect(*self._args, **{**self._kwargs, **own})

    def adopt(self, conn: Any) -> object:
        """Find out what the driver shows, and note its settings.

        Raises:
            PoolMisuse: The driver says that its connections must not be used by several threads.
        """
        modules = _modules(conn)
        _refuse_single_thread(modules)
        driver = next((name for name in modules if name in _KNOWN), None)
        self.name = driver or modules[0].partition(".")[0]
        self._known = _KNOWN[driver] if driver else _UNKNOWN
        self.sees_transactions = bool(self._known.state)
        self.parts = self._known.parts
        descriptor = _descriptor(conn)
        self._has_socket = _is_socket(descriptor)
        if self._has_socket and descriptor is not None:
            keep_alive(descriptor, leave=self._known.tuned(conn) if self._known.tuned else ())
        return _baseline(conn, self._known)

    def remember(self, conn: Any, parts: tuple[Part, ...], limit: float | None) -> object:  # noqa: ARG002
        """Copy the type maps for `Part.FULL`; the server remembers all else that a reset brings back."""
        if Part.FULL not in parts:
            return None
        return {name: dict(getattr(conn, name)) for name in self._known.type_maps}

    def verdict(self, conn: Any, baseline: Any) -> Verdict:
        """Read the state where the driver shows it; else say DIRTY of whatever is not closed."""
        try:
            if self._aborted and id(conn) in self._aborted:
                return _BROKEN
            state, verdicts, read, rest, own, ended, ended_is, _, _ = baseline
            if state is None:
                if ended is None or bool(ended(conn)) is not ended_is:
                    return _DIRTY
            else:
                now = read(conn)
                if now == rest:
                    if own:
                        for backlog, there in zip(own, now, strict=False):
                            # A list of the borrower's that is empty, too, is equal: it would get
                            # what comes for the next one.
                            if backlog or backlog is not there:
                                return _ALTERED
                    return _CLEAN
                verdict: Verdict = verdicts.get(state(conn), _BROKEN)
                if verdict is not _BROKEN:
                    return _ALTERED if verdict is _CLEAN else verdict
        except Exception:  # some drivers raise if it is closed
            pass
        return self._finished(conn)

    def _finished(self, conn: Any) -> Verdict:
        """Judge what is not open, or not at rest.

        If it died, a transaction may have died with it: even on an autocommit connection somebody may
        have said BEGIN.  A transaction that its own borrower closed on is none that he misses.
        """
        try:
            return _SPENT if self._known.closed is not None and self._known.closed(conn) else _BROKEN
        except Exception:
            return _BROKEN

    def alive(self, conn: Any) -> bool:
        """Look at the socket, where the driver gives it away; True where it does not."""
        if id(conn) in self._aborted:
            return False
        if self._known.healthy is not None:
            return bool(self._known.healthy(conn))
        if not self._has_socket:
            return True
        descriptor = _descriptor(conn)
        return descriptor is not None and not ready(descriptor)

    def ping(self, conn: Any, limit: float | None) -> None:
        """Run `ping_statement` and leave no transaction behind."""
        with self.within(conn, limit):
            if self._known.ping is not None:
                self._known.ping(conn)
            else:
                _execute(conn, self.ping_statement, fetch=True)
                if not _autocommits(conn):
                    conn.rollback()

    def idle_limit(self, conn: Any, limit: float | None) -> float | None:
        """Ask, where it is known how: PostgreSQL with psycopg2, MySQL and MariaDB."""
        seconds = self._ask(conn, self._known.idle_limit, limit)
        return None if seconds is None else float(str(seconds)) or None

    def writable(self, conn: Any, limit: float | None) -> bool:
        """Ask, where it is known how, like `idle_limit`; True where it is not.

        A session that its borrower has made read-only, not his transaction alone, counts as a server
        that is.
        """
        return not self._ask(conn, self._known.read_only, limit)

    def _ask(self, conn: Any, question: Callable[[Any], object] | None, limit: float | None) -> object:
        """Return an answer, leaving the transaction as it was; ``None`` if the server does not know."""
        with self.within(conn, limit):
            if question is None:
                return None
            known, answer = self._known, None
            rests = known.state and known.verdicts.get(attrgetter(*known.state)(conn)) in (_CLEAN, _ALTERED)
            try:
                answer = question(conn)
            except Exception as exc:
                if self.fault(exc, dialling=False) is not Fault.ORDINARY:
                    raise
            if rests and not _autocommits(conn):
                conn.rollback()  # the question has opened a transaction
            return answer

    def begin(self, conn: Any) -> None:
        """Send BEGIN on an autocommit connection; any other begins by itself, says PEP 249."""
        self._aborted.refuse_kept(conn)
        if _autocommits(conn):
            _execute(conn, "BEGIN")
            self._begun.add(id(conn))

    def commit(self, conn: Any) -> None:
        """Commit; on an autocommit connection with a statement if the driver's method does nothing."""
        self._aborted.refuse_kept(conn)
        begun = id(conn) in self._begun
        self._begun.discard(id(conn))
        conn.commit()
        self._end(conn, "COMMIT", required=begun)

    def rollback(self, conn: Any, limit: float | None) -> None:
        """Roll back, like `commit`; shut the socket down if that takes longer than *limit*."""
        self._begun.discard(id(conn))
        with self.within(conn, limit):
            conn.rollback()
            self._end(conn, "ROLLBACK", required=False)

    def _end(self, conn: Any, statement: str, *, required: bool) -> None:
        """End a transaction that was opened by hand on an autocommit connection.

        Many drivers' commit() and rollback() do nothing there: the transaction would be the next
        borrower's.
        """
        known = self._known
        if known.state:
            if known.verdicts.get(attrgetter(*known.state)(conn)) in (Verdict.DIRTY, Verdict.FAILED):
                _execute(conn, statement)
            return
        if known.obeys or not _autocommits(conn):
            return
        try:
            _execute(conn, statement)
        except Exception as refusal:
            # Some databases refuse to end what was never begun.  That is the usual case here, and
            # as good a proof of rest.
            if required or self.fault(refusal, dialling=False) is not Fault.ORDINARY:
                raise

    def restore(self, conn: Any, baseline: Any, limit: float | None) -> None:
        """Put back the settings that are known; empty the backlogs."""
        self._aborted.refuse_kept(conn)
        settings, state = baseline.settings, baseline.state
        _reclaim(conn, baseline)
        altered = any(_setting(conn, name) != value for name, value in settings.items())
        if altered or (state is not None and baseline.verdicts.get(state(conn)) is _ALTERED):
            with self.within(conn, limit):
                self._known.put_back(conn, settings)
        _empty(baseline)

    def send_reset(
        self, conn: Any, baseline: Any, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> object | None:
        """Do all of it at once: PEP 249 knows no way to send without reading."""
        known = self._known
        assert known.reset is not None, "no parts are known without it"
        self._begun.discard(id(conn))
        with self.within(conn, limit):
            _reclaim(conn, baseline)
            conn.rollback()
            self._end(conn, "ROLLBACK", required=False)
            known.put_back(conn, baseline.settings)  # first: the cursor factory is the borrower's
            known.reset(conn, parts)
            known.put_back(conn, baseline.settings)
        if Part.FULL in parts:
            type_maps: Mapping[str, Mapping[object, object]] = memory  # type: ignore[assignment] # remember()'s
            for name, type_map in type_maps.items():
                there = getattr(conn, name)
                there.clear()
                there.update(type_map)
        _empty(baseline)
        return None

    def read_reset(self, conn: Any, token: object, limit: float | None) -> None:
        """Do nothing: `send_reset` has read the answers."""

    def close(self, conn: Any, limit: float | None) -> None:
        """Close; a connection that is closed already is fine."""
        if id(conn) in self._aborted.kept:
            return
        self._forget(conn)
        try:
            with self.within(conn, limit):
                conn.close()
        except Exception:
            # Closed twice, or gone: PEP 249 lets drivers raise either way, and the socket ends with
            # the object.
            pass

    def abort(self, conn: Any) -> None:
        """Shut the socket down, which ends a call in another thread; closing is left for later.

        To close a connection under another thread's call would crash some C drivers.
        """
        if id(conn) in self._aborted.kept:
            return
        if self._has_socket:
            shut_down(lambda: _descriptor(conn))
        self._begun.discard(id(conn))
        self._aborted[id(conn)] = conn
        self._aborted.sweep()

    def forget(self, conn: Any) -> None:
        """Let the descriptor lead nowhere, if there is one; keep the connection for ever.

        Nobody closes it in this process, not even the interpreter when it ends: a driver that does not
        show its socket would say goodbye to the parent's session.
        """
        self._begun.discard(id(conn))
        if _is_socket(_descriptor(conn)):
            disconnect(lambda: _descriptor(conn))
        self._aborted.keep(conn)
        if self._known.unlock is not None:
            self._known.unlock(conn)

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Judge by `faults`; else by error code where there is one, else by a connection error's text."""
        if isinstance(exc, PoolError):
            return Fault.ORDINARY
        names = {klass.__name__ for klass in type(exc).__mro__}
        if self.faults and "Error" in names:
            fault = self._looked_up(exc)
            if fault is not None:
                return fault
        if isinstance(exc, OSError | EOFError):
            return Fault.DEAD
        code = _code(exc)
        if code is not None:
            if code == _OPTION_PREVENTS_STATEMENT and not _SAYS_READ_ONLY.search(str(exc)):
                return Fault.ORDINARY
            if code == _SSL_CONNECTION_ERROR and dialling:
                return Fault.AUTH if _OF_CERTIFICATES.search(str(exc)) else Fault.DEAD
            fault = _BY_CODE_DIALLING.get(code) if dialling else None
            return fault or _BY_CODE.get(code, _BY_CODE.get(str(code)[:2], Fault.ORDINARY))
        if not names & {"OperationalError", "InterfaceError", "DatabaseError"}:
            return Fault.ORDINARY
        text = str(exc).lower()
        for fault, signs in _BY_TEXT_DIALLING if dialling else _BY_TEXT:
            if any(sign in text for sign in signs):
                return fault
        return Fault.DEAD if dialling else Fault.ORDINARY

    def _looked_up(self, exc: BaseException) -> Fault | None:
        """Look an error up in `faults`."""
        first = exc.args[0] if exc.args else None
        keys: list[object] = []
        for source in (exc, first):  # Oracle's drivers have an object with a ``code`` there
            keys += [getattr(source, name, None) for name in ("errno", "code")]
        keys.append(first)
        state = _sqlstate(exc)
        if state is not None:
            keys += [state, state[:2]]
        for key in keys:
            if isinstance(key, str | int) and key in self.faults:
                return self.faults[key]
        text = str(exc).lower()
        for sign, fault in self.faults.items():
            if isinstance(sign, str) and not _SQLSTATE.fullmatch(sign) and sign.lower() in text:
                return fault
        return None

    def _forget(self, conn: Any) -> None:
        self._begun.discard(id(conn))
        self._aborted.pop(id(conn), None)
        self._aborted.sweep()

    def within(self, conn: Any, limit: float | None) -> AbstractContextManager[None]:
        """Return a block in which the driver's calls on *conn* have *limit* seconds: for subclasses.

        Then the socket is shut down, and the block raises `TimeoutError`.
        """
        self._aborted.refuse_kept(conn)
        return _Within(_descriptor(conn) if self._has_socket else None, limit)


OF_THE_PARENT: Final = "this connection was opened before the process was forked: it is the parent's"


class Aborted(dict[int, Any]):
    """Connections that were aborted, by identity, until they can be closed.

    Closing one while another thread is inside a call on it crashes the interpreter with some drivers,
    sqlite3 among them (reproduced on 3.11 to 3.13: its next look at the closed handle is a null
    pointer's).  Whoever is inside a call holds a reference, so a connection that nobody else refers to
    can be closed.  Each is looked at again whenever the adapter has something else to do.

    Args:
        own: Returns how many references a connection of this driver has to itself.
    """

    __slots__ = ("__weakref__", "_own", "_process", "kept")

    def __init__(self, own: Callable[[], int] = int) -> None:
        super().__init__()
        self._own = own
        self._process = os.getpid()
        self.kept: set[int] = set()
        """Those that are the parent's, by identity: this process must neither use nor close them."""

    def keep(self, conn: Any) -> None:
        """Count a connection of the parent's as aborted, in a forked child, and never close it."""
        if id(conn) not in self.kept:
            self[id(conn)] = conn
            self.kept.add(id(conn))
            if ctypes is not None:
                # When the interpreter ends, it frees what its modules hold, and a driver may close
                # what is freed.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))

    def refuse_kept(self, conn: Any) -> None:
        """Raise if a connection is the parent's."""
        if self.kept and id(conn) in self.kept:
            raise ConnectionError(OF_THE_PARENT)

    def sweep(self) -> None:
        """Close those that nobody else refers to."""
        if self and self._process != os.getpid():
            for conn in list(self.values()):
                self.keep(conn)
        self._process = os.getpid()
        for key in list(self):
            if key in self.kept:
                continue
            try:
                others = sys.getrefcount(self[key]) - 2  # the dictionary's, and the argument's
            except KeyError:
                continue
            conn = None if others > self._own() else self.pop(key, None)
            if conn is not None:
                try:
                    conn.close()
                except Exception:
                    pass  # an aborted connection has nothing to tell any more


def _refuse_single_thread(modules: list[str]) -> None:
    """Refuse a driver whose module says ``threadsafety = 0``.

    From 1 on threads may share the module: a pool gives a connection to one thread at a time.
    """
    for name in modules:
        level = getattr(sys.modules.get(name), "threadsafety", None)
        if isinstance(level, int):
            if level < 1:
                raise PoolMisuse(
                    f"{name} cannot be pooled: its threadsafety is {level}, and PEP 249 lets threads "
                    "share a module from level 1 on"
                )
            return


def _reclaim(conn: Any, baseline: _Baseline) -> None:
    """Put back the backlogs, so that a borrower gets nothing that comes from here on."""
    for name, own in zip(baseline.backlogs, baseline.own, strict=True):
        if getattr(conn, name) is not own:
            setattr(conn, name, own)


def _empty(baseline: _Baseline) -> None:
    for own in baseline.own:
        own.clear()


def _autocommits(conn: Any) -> bool:
    mode = getattr(conn, "autocommit", False)
    if callable(mode):  # the MySQL drivers: a method that sets it, and another that tells
        mode = getattr(conn, "get_autocommit", bool)()
    return bool(mode == 1)  # sqlite3's third mode, -1, is no autocommit in this sense


def _execute(conn: Any, statement: str, *, fetch: bool = False) -> None:
    cursor = conn.cursor()
    try:
        cursor.execute(statement)
        if fetch:
            cursor.fetchall()
    finally:
        cursor.close()


# -- faults -------------------------------------------------------------------------------------------

_BY_CODE: Final[Mapping[object, Fault]] = {
    # SQLSTATE, the first two characters of which are the class
    "08": Fault.DEAD,
    "57P01": Fault.DEAD,
    "57P02": Fault.DEAD,
    "57P05": Fault.DEAD,
    "53300": Fault.FULL,
    "57P03": Fault.STARTING,
    "25006": Fault.DEMOTED,
    "25P03": Fault.DEAD,
    "25P04": Fault.DEAD,
    "28": Fault.AUTH,
    "57P04": Fault.DEAD,
    # MySQL and MariaDB; some libraries say 2002 for every connection that is refused
    2002: Fault.DEAD,
    2003: Fault.DEAD,
    2006: Fault.DEAD,
    2013: Fault.DEAD,
    2055: Fault.DEAD,
    4031: Fault.DEAD,
    1152: Fault.DEAD,
    1184: Fault.DEAD,
    1927: Fault.DEAD,
    1290: Fault.DEMOTED,  # if the option that prevents the statement is --read-only
    1792: Fault.DEMOTED,
    1836: Fault.DEMOTED,
    1874: Fault.DEMOTED,
    1040: Fault.FULL,
    1203: Fault.FULL,
    1053: Fault.STARTING,
    1045: Fault.AUTH,
    1698: Fault.AUTH,
}
_OPTION_PREVENTS_STATEMENT: Final = 1290
_SSL_CONNECTION_ERROR: Final = 2026  # a broken handshake, too
_OF_CERTIFICATES: Final = re.compile("certificate|unknown ca|required", re.IGNORECASE)
_SAYS_READ_ONLY: Final = re.compile("read.only", re.IGNORECASE)

# These are a statement's own later on.
_BY_CODE_DIALLING: Final[Mapping[object, Fault]] = {
    "3D000": Fault.AUTH,  # no such database
    1044: Fault.AUTH,  # and the like in MySQL and MariaDB: see PyMySQL's adapter
    1049: Fault.AUTH,
    1129: Fault.AUTH,
    1130: Fault.AUTH,
    1226: Fault.FULL,
    1251: Fault.AUTH,
    1862: Fault.AUTH,
    2059: Fault.AUTH,
    3032: Fault.STARTING,
    3118: Fault.AUTH,
    3159: Fault.AUTH,
    4151: Fault.AUTH,
}

_BY_TEXT: Final = (
    (
        Fault.DEAD,
        (
            "broken pipe",
            "closed the connection",
            "closed unexpectedly",
            "communication link failure",
            "connection already closed",
            "connection has been closed",
            "connection is closed",
            "connection not open",
            "connection reset",
            "could not receive data",
            "could not send data",
            "lost connection",
            "not connected",
            "terminating connection",
            "ssl syscall error",
            "eof detected",
            "ora-03113",
            "ora-03114",
            "ora-03135",
            "dpy-1001",
            "dpy-4011",
        ),
    ),
    (Fault.DEMOTED, ("ora-16000",)),
)

# While dialling, many drivers have nothing but the server's text to tell.
_BY_TEXT_DIALLING: Final = (
    # What trying again may cure comes first: one text can speak of several hosts.
    (
        Fault.STARTING,
        (
            *("starting up", "shutting down", "in recovery mode", "not accepting connections"),
            *("not yet accepting connections", "ora-01033", "ora-01034", "ora-01089", "ora-12528"),
        ),
    ),
    (
        Fault.FULL,
        (
            *("too many", "remaining connection slots", "no more connections allowed"),
            *("ora-00018", "ora-00020", "ora-12516", "ora-12518", "ora-12520"),
        ),
    ),
    (
        Fault.AUTH,
        (
            *("authentication failed", "access denied", "login failed", "no password supplied"),
            *("no pg_hba.conf entry", "pg_hba.conf rejects", "not permitted to log in"),
            *('" does not exist', "permission denied for database", "no such database", "no such user"),
            *("unknown database", "cannot open database", "certificate verify failed"),
            *("does not match host name", "but ssl was required", "requires a valid client certificate"),
            *("alert unknown ca", "alert bad certificate", "certificate required", "certificate expired"),
            *("root certificate file", "ora-01017", "ora-01045", "ora-28000", "ora-28001"),
        ),
    ),
)


def _code(exc: BaseException) -> object:
    """Return the SQLSTATE of an error, or MySQL's number, or ``None``."""
    first = exc.args[0] if exc.args else None
    if type(exc).__module__.partition(".")[0] in ("MySQLdb", "mariadb", "mysql", "pymysql"):
        number = getattr(exc, "errno", None) or first
        return number if isinstance(number, int) else None
    return _sqlstate(exc)


_SQLSTATE: Final = re.compile("[0-9A-Z]{5}|[0-9A-Z]{2}")


def _sqlstate(exc: BaseException) -> str | None:
    first = exc.args[0] if exc.args else None
    for state in (getattr(exc, "sqlstate", None), getattr(exc, "pgcode", None), first):
        # ODBC drivers put it first among the arguments
        if isinstance(state, str) and re.fullmatch("[0-9A-Z]{5}", state):
            return state
    return None


# -- sockets ------------------------------------------------------------------------------------------


def _descriptor(conn: Any) -> int | None:
    try:
        descriptor = conn.fileno()
    except Exception:
        return None  # no such method, or closed
    return descriptor if isinstance(descriptor, int) and descriptor >= 0 else None


def _is_socket(descriptor: int | None) -> bool:
    # A file is readable at any time, and cannot be shut down.
    try:
        return descriptor is not None and stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


class _Within:
    """A limit on what is done inside: when it passes, the socket is shut down."""

    __slots__ = ("_descriptor", "_limit", "_step")

    def __init__(self, descriptor: int | None, limit: float | None) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._step: _Step | None = None

    def __enter__(self) -> None:
        if self._descriptor is not None and self._limit is not None:
            self._step = _watchdog.watch(self._descriptor, self._limit)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._step is None or _watchdog.release(self._step):
            return
        if exc is None or isinstance(exc, Exception):  # an interrupt is not replaced
            raise TimeoutError(f"no answer within {self._limit:g} s") from exc


class _Step:
    """A step under watch: its end, and a copy of its socket's descriptor."""

    __slots__ = ("at", "descriptor")

    def __init__(self, at: float, descriptor: int) -> None:
        self.at = at
        self.descriptor = descriptor

    def own(self) -> int:
        """Return the copy: nobody else closes it."""
        return self.descriptor


class _Watchdog:
    """Shuts down the sockets of steps that take too long.

    One thread for the whole process, which lives while there are steps and a moment longer.  A step
    costs a lock and a copied descriptor, but no change of threads: the thread looks around by itself
    every `_ROUND` seconds, by which a limit may be overrun.  The copy makes sure that no other socket
    is hit, should the driver have closed its own and the number be in use again.
    """

    _ROUND: Final = 0.25

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start afresh, as in a forked child, which has neither the thread nor a free lock."""
        self._changed = threading.Condition()  # never notified: only waited on, with a timeout
        self._steps: set[_Step] = set()
        self._thread: threading.Thread | None = None

    def watch(self, descriptor: int, limit: float) -> _Step | None:
        """Begin a step."""
        try:
            step = _Step(time.monotonic() + limit, os.dup(descriptor))
        except OSError:
            return None  # no descriptors left: better no limit than no rollback
        with self._changed:
            self._steps.add(step)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="connpool-dbapi-limits", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return step  # no threads left: likewise
                self._thread = thread
        return step

    def release(self, step: _Step) -> bool:
        """End a step; return False if its limit has passed and the socket was shut down."""
        with self._changed:
            if step not in self._steps:
                return False
            self._steps.remove(step)
        os.close(step.descriptor)
        return True

    def _run(self) -> None:
        with self._changed:
            empty = 0  # rounds without a step
            while empty < 2:
                now = time.monotonic()
                for step in [step for step in self._steps if step.at <= now]:
                    self._steps.remove(step)
                    shut_down(step.own)
                    os.close(step.descriptor)
                empty = 0 if self._steps else empty + 1
                ends = min((step.at for step in self._steps), default=now + self._ROUND)
                self._changed.wait(min(ends - now, self._ROUND))
                if self._steps:
                    empty = 0
            self._thread = None


_watchdog = _Watchdog()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watchdog.reset)
