"""Any driver that speaks PEP 249: what the DB-API lets a pool know, and what a few drivers add to it.

PEP 249 shows neither whether a transaction is open nor whether a connection is.  So a driver of which
nothing is known is taken for DIRTY at every release, and a COMMIT or ROLLBACK that comes back is the
proof that it is at rest (`Adapter.sees_transactions`): one round trip for each release.  A driver in
the table `_KNOWN` costs none, because its connections show their state.

Limits hold for a driver whose connections have a ``fileno()``: a step that takes too long has its
socket shut down under it, which makes any blocking driver return.  Without one they cannot hold.

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
from collections.abc import Callable, Mapping
from operator import attrgetter, methodcaller
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple

from ..adapter import Adapter, Fault, Verdict
from ..errors import PoolError, PoolMisuse
from .sockets import ready, shut_down

# An enum's member is looked up by a descriptor of its class: too dear for every release.
_CLEAN: Final = Verdict.CLEAN
_DIRTY: Final = Verdict.DIRTY
_BROKEN: Final = Verdict.BROKEN


# -- what a few drivers show --------------------------------------------------------------------------


class Known(NamedTuple):
    """What a driver shows of its state, without a round trip."""

    state: Callable[[Any], object] | None = None
    """Reads whether a transaction is open.  A C callable, so that it adds no Python frame of ours."""

    verdicts: Mapping[object, Verdict] = MappingProxyType({})
    """What the values mean; a value that is not here means BROKEN."""

    healthy: Callable[[Any], object] | None = None
    """Looks at the socket, for a driver that does not give it away."""

    ping: Callable[[Any], object] | None = None
    """The driver's own round trip, if it never reconnects behind the pool's back."""

    obeys: bool = False
    """Whether commit() and rollback() reach the server on an autocommit connection, too."""


_LIBPQ: Final[Mapping[object, Verdict]] = {
    0: Verdict.CLEAN,
    2: Verdict.DIRTY,
    3: Verdict.FAILED,
    # 1, in the middle of an exchange, and 4, unknown, are BROKEN
}

_KNOWN: Final[Mapping[str, Known]] = {
    # libpq keeps this from the ReadyForQuery message that ends every answer of the server.
    "psycopg2": Known(methodcaller("get_transaction_status"), _LIBPQ),
    "psycopg": Known(attrgetter("pgconn.transaction_status"), _LIBPQ),
    # A flag in the server's answers, also to statements that failed.  is_healthy() looks at the
    # socket; ping() never reconnects; "SELECT 1" needs a FROM before Oracle 23.
    "oracledb": Known(
        attrgetter("transaction_in_progress"),
        {False: Verdict.CLEAN, True: Verdict.DIRTY},
        healthy=methodcaller("is_healthy"),
        ping=methodcaller("ping"),
    ),
    # They send COMMIT and ROLLBACK whatever the mode.  The server's status flags are no use: under
    # autocommit=0 a plain SELECT opens a transaction that they do not show.
    "MySQLdb": Known(obeys=True),
    "pymysql": Known(obeys=True),
}
_UNKNOWN: Final = Known()


class _Reading(NamedTuple):
    """How the verdict on one connection is read: decided once, when it is adopted."""

    state: Callable[[Any], object] | None
    verdicts: Mapping[object, Verdict]
    ended: Callable[[Any], object] | None
    """Reads the attribute that tells open from closed, where `state` does not."""
    ended_is: bool
    """What it says when closed."""


def _reading(conn: object, known: Known) -> _Reading:
    # Many drivers have one of these two.  A fresh connection is open: an attribute that says so now
    # can be trusted when it says the opposite.  If it lies, a connection is closed needlessly.
    for name, closed in (("closed", True), ("open", False)):
        value = getattr(conn, name, None)
        if value is not None and not callable(value) and bool(value) is not closed:
            return _Reading(known.state, known.verdicts, attrgetter(name), closed)
    return _Reading(known.state, known.verdicts, None, True)


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
    errors: Mapping[type[PoolError], type[PoolError]] = MappingProxyType({})
    ping_statement = "SELECT 1"
    """One round trip.  For a database that wants a FROM, override it in a subclass."""

    def __init__(self, connect: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._connect = connect
        self._args = args
        self._kwargs = kwargs
        self._known = _UNKNOWN
        self._has_socket = False
        self._begun: set[int] = set()
        self._aborted = Aborted()
        weakref.finalize(self, self._aborted.sweep)

    @classmethod
    def around(cls, connect: Callable[[], Any]) -> DBAPIAdapter:
        """Make an adapter from a callable that returns connections."""
        return cls(connect)

    def __repr__(self) -> str:
        # Never the arguments: one of them is a password.
        return f"<{type(self).__name__} for {self.name}>"

    def connect(self, limit: float | None) -> Any:  # noqa: ARG002
        """Call the callable; *limit* is the pool's to keep."""
        self._aborted.sweep()
        return self._connect(*self._args, **self._kwargs)

    def adopt(self, conn: Any) -> object:
        """Find out what the driver shows.

        Raises:
            PoolMisuse: The driver says that its connections must not be used by several threads.
        """
        modules = _modules(conn)
        _refuse_single_thread(modules)
        driver = next((name for name in modules if name in _KNOWN), None)
        self.name = driver or modules[0].partition(".")[0]
        self._known = _KNOWN[driver] if driver else _UNKNOWN
        self.sees_transactions = self._known.state is not None
        self._has_socket = _is_socket(_descriptor(conn))
        return _reading(conn, self._known)

    def verdict(self, conn: Any, baseline: object) -> Verdict:
        """Read the state where the driver shows it; else say DIRTY of whatever is not closed."""
        reading: _Reading = baseline  # type: ignore[assignment] # what adopt() returned
        try:
            if self._aborted and id(conn) in self._aborted:
                return _BROKEN
            state, verdicts, ended, ended_is = reading
            if state is not None:
                return verdicts.get(state(conn), _BROKEN)
            return _BROKEN if ended is not None and bool(ended(conn)) is ended_is else _DIRTY
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
        with self._within(conn, limit):
            if self._known.ping is not None:
                self._known.ping(conn)
            else:
                _execute(conn, self.ping_statement, fetch=True)
                if not _autocommits(conn):
                    conn.rollback()

    def begin(self, conn: Any) -> None:
        """Send BEGIN on an autocommit connection; any other begins by itself, says PEP 249."""
        if _autocommits(conn):
            _execute(conn, "BEGIN")
            self._begun.add(id(conn))

    def commit(self, conn: Any) -> None:
        """Commit; on an autocommit connection with a statement if the driver's method does nothing."""
        begun = id(conn) in self._begun
        self._begun.discard(id(conn))
        conn.commit()
        self._end(conn, "COMMIT", required=begun)

    def rollback(self, conn: Any, limit: float | None) -> None:
        """Roll back, like `commit`; shut the socket down if that takes longer than *limit*."""
        self._begun.discard(id(conn))
        with self._within(conn, limit):
            conn.rollback()
            self._end(conn, "ROLLBACK", required=False)

    def _end(self, conn: Any, statement: str, *, required: bool) -> None:
        """End a transaction that was opened by hand on an autocommit connection.

        Many drivers' commit() and rollback() do nothing there: the transaction would be the next
        borrower's.
        """
        known = self._known
        if known.state is not None:
            if known.verdicts.get(known.state(conn)) in (Verdict.DIRTY, Verdict.FAILED):
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

    def close(self, conn: Any, limit: float | None) -> None:
        """Close; a connection that is closed already is fine."""
        self._forget(conn)
        try:
            with self._within(conn, limit):
                conn.close()
        except Exception:
            # Closed twice, or gone: PEP 249 lets drivers raise either way, and the socket ends with
            # the object.
            pass

    def abort(self, conn: Any) -> None:
        """Shut the socket down, which ends a call in another thread; closing is left for later.

        To close a connection under another thread's call would crash some C drivers.
        """
        if self._has_socket:
            shut_down(lambda: _descriptor(conn))
        self._begun.discard(id(conn))
        self._aborted[id(conn)] = conn
        self._aborted.sweep()

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Judge by error code where there is one, else by the text of a connection-level error."""
        if isinstance(exc, OSError | EOFError):
            return Fault.DEAD
        code = _code(exc)
        if code is not None:
            return _BY_CODE.get(code, _BY_CODE.get(str(code)[:2], Fault.ORDINARY))
        names = {klass.__name__ for klass in type(exc).__mro__}
        if not names & {"OperationalError", "InterfaceError", "DatabaseError"}:
            return Fault.ORDINARY
        text = str(exc).lower()
        for fault, signs in _BY_TEXT_DIALLING if dialling else _BY_TEXT:
            if any(sign in text for sign in signs):
                return fault
        return Fault.DEAD if dialling else Fault.ORDINARY

    def _forget(self, conn: Any) -> None:
        self._begun.discard(id(conn))
        self._aborted.pop(id(conn), None)
        self._aborted.sweep()

    def _within(self, conn: Any, limit: float | None) -> _Within:
        return _Within(_descriptor(conn) if self._has_socket else None, limit)


class Aborted(dict[int, Any]):
    """Connections that were aborted, by identity, until they can be closed.

    Closing one while another thread is inside a call on it crashes the interpreter with some drivers,
    sqlite3 among them (reproduced on 3.11 to 3.13: its next look at the closed handle is a null
    pointer's).  Whoever is inside a call holds a reference, so a connection that nobody else refers to
    can be closed.  Each is looked at again whenever the adapter has something else to do.

    Args:
        own: Returns how many references a connection of this driver has to itself.
    """

    __slots__ = ("__weakref__", "_own")

    def __init__(self, own: Callable[[], int] = int) -> None:
        super().__init__()
        self._own = own

    def sweep(self) -> None:
        """Close those that nobody else refers to."""
        for key in list(self):
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
    "28": Fault.AUTH,
    # MySQL and MariaDB
    2003: Fault.DEAD,
    2006: Fault.DEAD,
    2013: Fault.DEAD,
    2055: Fault.DEAD,
    4031: Fault.DEAD,
    1040: Fault.FULL,
    1203: Fault.FULL,
    1053: Fault.STARTING,
    1045: Fault.AUTH,
    1698: Fault.AUTH,
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
        ),
    ),
)

# While dialling, many drivers have nothing but the server's text to tell.
_BY_TEXT_DIALLING: Final = (
    (Fault.AUTH, ("authentication failed", "access denied", "login failed", "ora-01017")),
    (Fault.FULL, ("too many", "remaining connection slots", "ora-00018", "ora-00020")),
    (Fault.STARTING, ("starting up", "shutting down", "ora-01033")),
)


def _code(exc: BaseException) -> object:
    """Return the SQLSTATE of an error, or MySQL's number, or ``None``."""
    first = exc.args[0] if exc.args else None
    if type(exc).__module__.partition(".")[0] in ("MySQLdb", "mariadb", "mysql", "pymysql"):
        number = getattr(exc, "errno", None) or first
        return number if isinstance(number, int) else None
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
