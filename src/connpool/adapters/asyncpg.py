"""asyncpg (https://magicstack.github.io/asyncpg/), for PostgreSQL.

What is true of this driver, and shapes what stands below:

*Rest.*  asyncpg shows whether a transaction is open, as the server's last answer says, but neither whether
an answer is outstanding nor whether the transaction has failed.  A statement that is cancelled, or times
out, is taken back in the background: a task asks the server to cancel, and ``_is_cancelling()`` is true
until another statement has waited for that.  A coroutine that is closed, and a second task inside, leave no
trace at all.  So the protocol object of a connection that is taken in gets a subclass of its own class,
which counts what goes in and what comes out with an answer, and notes an error inside a transaction.

*Cancelled is broken*, although asyncpg would wait and go on: the answer to the cancelled statement comes
when it comes, and until then nothing is proven.

*Transactions.*  There is no implicit one: each statement commits by itself.  ``conn.transaction()`` keeps
the outermost block in the connection, and would make a savepoint of the next borrower's if it were left.
A COMMIT of a failed transaction is answered with ROLLBACK, and no error.

*Settings* that the next borrower would inherit: the listeners of four kinds, and that block.  Type codecs
leave no trace that could be compared, nor can they be taken back: whoever sets one while he has the
connection spends it.  They belong into ``on_connect``.

*Prepared statements* are remembered in a cache, and an error of one that the server has forgotten is the
borrower's.  Whoever deallocates marks them as closed.

*Limits.*  All steps run under `asyncio.timeout`, and what does not end in time is closed without a word.
`connect` covers everything, names too.

*Transports.*  The loop itself reads whatever comes, so a connection whose server has gone is closed as
soon as the loop has had a turn; until then the descriptor is readable.

*Errors* of the server carry their SQLSTATE, while dialling, too.

Not known here: sizes, queues, when a connection is looked at, what becomes of it.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
import warnings
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped] # asyncpg ships no py.typed
from asyncpg.protocol import Protocol  # type: ignore[import-untyped]

from connpool.adapter import Fault, Verdict
from connpool.adapters.classes import Subclasses
from connpool.adapters.postgresql import (
    EVERYTHING,
    IDLE_LIMIT,
    READ_ONLY,
    RESETS,
    SAYS,
    fault_of,
    reset_message,
)
from connpool.adapters.sockets import disconnect, keep_alive, ready
from connpool.adapters.transports import cut, fileno, is_here
from connpool.errors import (
    PoolClosed,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from connpool.reset import Part

__all__ = [
    "AsyncpgAdapter",
    "AsyncpgPoolClosed",
    "AsyncpgPoolOverloaded",
    "AsyncpgPoolTimeout",
    "AsyncpgPoolUnavailable",
]

C = TypeVar("C", bound="asyncpg.Connection")
C2 = TypeVar("C2", bound="asyncpg.Connection")
T = TypeVar("T")


# -- the pool's errors, as this driver's --------------------------------------------------------------

# asyncpg has no OperationalError; this is its error for a connection that is not to be had.


class AsyncpgPoolTimeout(PoolTimeout, asyncpg.PostgresConnectionError):  # type: ignore[misc]
    """`PoolTimeout` for ``except asyncpg.PostgresConnectionError``."""


class AsyncpgPoolOverloaded(PoolOverloaded, asyncpg.PostgresConnectionError):  # type: ignore[misc]
    """`PoolOverloaded` for ``except asyncpg.PostgresConnectionError``."""


class AsyncpgPoolUnavailable(PoolUnavailable, asyncpg.PostgresConnectionError):  # type: ignore[misc]
    """`PoolUnavailable` for ``except asyncpg.PostgresConnectionError``."""


class AsyncpgPoolClosed(PoolClosed, asyncpg.PostgresConnectionError):  # type: ignore[misc]
    """`PoolClosed` for ``except asyncpg.PostgresConnectionError``."""


# -- tables ------------------------------------------------------------------------------------------

_CLEAN, _ALTERED, _DIRTY, _FAILED = Verdict.CLEAN, Verdict.ALTERED, Verdict.DIRTY, Verdict.FAILED
_BROKEN, _SPENT = Verdict.BROKEN, Verdict.SPENT

_PARAMETERS = frozenset(inspect.signature(asyncpg.connect).parameters) - {"loop"}

# The version that reports `READ_ONLY`.
_MODERN = (14, 0)

# What keeps callbacks, by the names in the connection object.
_CALLBACKS = ("_log_listeners", "_query_loggers", "_termination_listeners")


# -- rest, provably ----------------------------------------------------------------------------------


class _Watched(Protocol):  # type: ignore[misc] # it is compiled, and has no types
    """The protocol of a connection in a pool.  Its class attributes are what it begins with."""

    inside = 0
    """Exchanges that have begun and not ended with an answer; one that was cancelled counts for ever."""
    failed = False
    """The open transaction has failed."""
    ended = False
    """The borrower has closed the connection, and nothing was under way."""
    codecs = 0
    """How many times codecs were set, or could have been."""

    def abort(self) -> None:
        self._end()
        super().abort()

    async def close(self, *args: Any) -> None:
        self._end()
        await super().close(*args)

    def _end(self) -> None:
        if not (self.inside or self.is_closed() or self._is_cancelling()):
            self.ended = True


def _counted(method: Callable[..., Awaitable[Any]], *, executes: bool) -> Callable[..., Any]:
    """Make a method of the protocol count.

    A failed transaction executes nothing but what ends it, or goes back in it: whatever was executed
    without an error, and was not empty, proves that it is over.
    """

    async def counted(self: _Watched, *args: Any, **kwargs: Any) -> Any:
        self.inside += 1
        try:
            result = await method(self, *args, **kwargs)
        except Exception as exc:  # not a cancellation: its answer is still to come
            self.inside -= 1
            if isinstance(exc, asyncpg.PostgresError):
                self.failed = self.is_in_transaction()
            raise
        self.inside -= 1
        if executes and self.failed:
            self.failed = self.is_in_transaction() and result in ("", [])
        return result

    return counted


for _name in ("query", "bind_execute", "bind_execute_many", "execute", "copy_in", "copy_out"):
    setattr(_Watched, _name, _counted(getattr(Protocol, _name), executes=True))
for _name in ("prepare", "bind", "close_portal", "close_statement"):
    setattr(_Watched, _name, _counted(getattr(Protocol, _name), executes=False))


def _pooled(base: type[Any]) -> type[Any]:
    """Make the subclass that connections of *base*, asyncpg's class or a user's, get in a pool."""

    class Pooled(base):  # type: ignore[misc] # one for each class of a user
        __slots__ = ()

        async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
            self._protocol.codecs += 1
            await super().set_type_codec(*args, **kwargs)

        async def reset_type_codec(self, *args: Any, **kwargs: Any) -> None:
            self._protocol.codecs += 1
            await super().reset_type_codec(*args, **kwargs)

        async def set_builtin_type_codec(self, *args: Any, **kwargs: Any) -> None:
            self._protocol.codecs += 1
            await super().set_builtin_type_codec(*args, **kwargs)

        def __del__(self) -> None:
            if self.is_closed() or is_here(self._loop):
                super().__del__()
            else:  # asyncpg would call the loop's methods in whatever thread collects garbage
                warnings.warn(f"unclosed connection {self!r}", ResourceWarning, source=self, stacklevel=2)
                _cut_off(self)

    return Pooled


_classes = Subclasses(_pooled)


@dataclass(slots=True)
class _Baseline:
    """What a connection was like when it was taken in."""

    protocol: Any
    codecs: int
    listeners: Mapping[str, frozenset[Any]]
    callbacks: Mapping[str, frozenset[Any]]
    has_callbacks: bool


def _listeners(conn: Any) -> dict[str, frozenset[Any]]:
    return {channel: frozenset(callbacks) for channel, callbacks in conn._listeners.items() if callbacks}


def _judge_settings(conn: Any, was: _Baseline) -> Verdict:
    """Judge a connection that has callbacks, or had some."""
    if _listeners(conn) != was.listeners:
        return _ALTERED
    for name, callbacks in was.callbacks.items():
        if getattr(conn, name) != callbacks:
            return _ALTERED
    return _CLEAN


# -- the adapter -------------------------------------------------------------------------------------


class AsyncpgAdapter(Generic[C]):
    """Connections of asyncpg, made by the adapter within a limit.

    Args:
        dsn: A connection URI, as for `asyncpg.connect`.
        parameters: The other arguments of `asyncpg.connect`; its *timeout* is what a dial may take at
            most, if that is less than the pool's own limit.

    Raises:
        PoolMisuse: `asyncpg.connect` knows no such parameter.
    """

    name: str = "asyncpg"
    bounded: bool = True
    sees_transactions: bool = True
    parts: Collection[Part] = frozenset((*EVERYTHING, *RESETS))
    says: Mapping[str, str] = {
        **SAYS,
        "ping": "an empty query, as a prepared statement",
        "restore": "UNLISTEN of the channels that a borrower has listened to",
    }
    errors: Mapping[type[PoolError], type[PoolError]] = {
        PoolTimeout: AsyncpgPoolTimeout,
        PoolOverloaded: AsyncpgPoolOverloaded,
        PoolUnavailable: AsyncpgPoolUnavailable,
        PoolClosed: AsyncpgPoolClosed,
    }

    def __init__(self, dsn: str | None = None, **parameters: Any) -> None:
        _refuse_unknown(parameters)
        self._parameters: dict[str, Any] = {"dsn": dsn, **parameters}
        self._callable: Callable[[], Awaitable[Any]] | None = None

    @classmethod
    def around(cls, connect: Callable[[], Awaitable[C2]]) -> AsyncpgAdapter[C2]:
        """Make an adapter for a callable whose result is awaited; its dials have no limit of ours."""
        adapter: AsyncpgAdapter[Any] = AsyncpgAdapter()
        adapter.bounded = False
        adapter._callable = connect
        return adapter

    @classmethod
    def from_url(cls, url: str) -> AsyncpgAdapter[asyncpg.Connection]:
        """Make an adapter from a connection URI; ``postgresql+asyncpg://`` is understood as well."""
        scheme, separator, rest = url.partition("://")
        return AsyncpgAdapter(scheme.partition("+")[0] + separator + rest)

    def __repr__(self) -> str:
        # Of a callable only its name: a functools.partial shows its arguments.
        if self._callable is not None:
            shown = getattr(self._callable, "__qualname__", type(self._callable).__qualname__)
            return f"AsyncpgAdapter.around({shown})"
        return f"AsyncpgAdapter({_shown(self._parameters)!r})"

    # -- opening -------------------------------------------------------------------------------------

    async def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> C:
        """Open a connection within *limit* seconds, whatever the number of addresses.

        *credentials* are arguments of `asyncpg.connect`, in place of those of the same names;
        ``None`` for a value takes the argument away.
        """
        if self._callable is not None:
            return cast("C", await self._callable())
        given = dict(credentials or {})
        _refuse_unknown(given)
        parameters = {**self._parameters, **given}
        parameters = {name: value for name, value in parameters.items() if value is not None}
        limits = [seconds for seconds in (limit, self._parameters.get("timeout")) if seconds is not None]
        parameters["timeout"] = min(limits, default=None)
        return cast("C", await asyncpg.connect(**parameters))

    def adopt(self, conn: C) -> object:
        """Return the settings as they are now, and have the connection watched from now on."""
        # asyncpg takes what its own pool lends for a connection, if one asks with isinstance().
        if not issubclass(type(conn), asyncpg.Connection):
            raise PoolMisuse(
                f"the connect callable returned a {type(conn).__module__}.{type(conn).__qualname__},"
                " not an asyncpg.Connection"
            )
        protocol = conn._protocol
        if protocol is None:
            raise PoolMisuse("the connect callable returned an asyncpg.Connection that is closed")
        if type(protocol) is not _Watched:
            protocol.__class__ = _Watched
        _classes.give(conn)
        try:
            keep_alive(fileno(conn._transport))
        except (AttributeError, OSError):
            pass  # closed already; the verdict says so
        if not protocol.is_in_transaction():
            conn._top_xact = None  # a block that was left
        callbacks = {name: frozenset(getattr(conn, name)) for name in _CALLBACKS}
        listeners = _listeners(conn)
        has_callbacks = bool(listeners or any(callbacks.values()))
        return _Baseline(protocol, protocol.codecs, listeners, callbacks, has_callbacks)

    def unprepare(self, conn: C) -> None:
        """Have asyncpg prepare nothing that has a name: as ``statement_cache_size=0`` for its ``connect``."""
        conn._stmt_cache.set_max_size(0)
        conn._stmt_cache_enabled = False

    async def remember(self, conn: C, parts: tuple[Part, ...], limit: float | None) -> object:  # noqa: ARG002
        """Return nothing: the server remembers all that a reset brings back."""
        return None

    # -- judging -------------------------------------------------------------------------------------

    # -- warm path
    def verdict(self, conn: C, baseline: Any) -> Verdict:
        """Judge by asyncpg's state, and by what was counted of the exchanges."""
        try:
            protocol = baseline.protocol
            if protocol.inside or not protocol.is_connected() or protocol._is_cancelling():
                return _SPENT if protocol.ended and not protocol.inside else _BROKEN
            if conn._protocol is not protocol:
                return _BROKEN
            if protocol.is_in_transaction():
                return _FAILED if protocol.failed else _DIRTY
            if protocol.codecs != baseline.codecs:
                return _SPENT
            if conn._top_xact is not None:
                return _ALTERED
            if (
                conn._listeners
                or conn._log_listeners
                or conn._query_loggers
                or conn._termination_listeners
                or baseline.has_callbacks
            ):
                return _judge_settings(conn, baseline)
            return _CLEAN
        except Exception:  # costs nothing until it happens
            return _BROKEN

    # -- end of warm path

    def alive(self, conn: C) -> bool:
        """Tell whether asyncpg has a connection still, and its socket is quiet."""
        try:
            return bool(conn._protocol.is_connected()) and not ready(fileno(conn._transport))
        except (AttributeError, OSError, ValueError):  # closed; or not a descriptor any more
            return False

    # -- speaking ------------------------------------------------------------------------------------

    async def ping(self, conn: C, limit: float | None) -> None:
        """Execute an empty query, which opens no transaction, and is refused in a failed one.

        As a prepared statement: asyncpg stumbles over the answer to an empty simple query.
        """
        await self._within(limit, conn, "ping", conn.fetch(""))

    async def idle_limit(self, conn: C, limit: float | None) -> float | None:
        """Ask for ``idle_session_timeout``, which there is since PostgreSQL 14; 0 means never."""
        seconds = await self._within(limit, conn, "idle_session_timeout", conn.fetchval(IDLE_LIMIT))
        return float(seconds or 0) or None

    async def writable(self, conn: C, limit: float | None) -> bool:
        """Ask whether the server is a standby, or begins all transactions READ ONLY.

        In a failed transaction what it has reported with the error tells.  A session that its borrower
        has made read-only counts as a read-only server, as in the adapter for psycopg.
        """
        protocol = _open(conn)
        if protocol.is_in_transaction() and protocol.failed:
            settings = conn.get_settings()
            return "on" not in (getattr(settings, name, None) for name in READ_ONLY)
        return await self._within(limit, conn, "in_hot_standby", _takes_writes(conn))

    async def begin(self, conn: C) -> None:
        """Open a transaction block of asyncpg's, so that blocks of the borrower's are savepoints in it."""
        if not _open(conn).is_in_transaction():
            conn._top_xact = None  # a block that was left
        await conn.transaction().start()

    async def commit(self, conn: C) -> None:
        """Commit, if a transaction is open; raise if the server rolled back instead."""
        if _open(conn).is_in_transaction() and await conn.execute("COMMIT") == "ROLLBACK":
            raise asyncpg.InFailedSQLTransactionError(
                "COMMIT: the transaction had failed, and the server has rolled it back"
            )
        conn._top_xact = None

    async def rollback(self, conn: C, limit: float | None) -> None:
        """Roll back, if a transaction is open."""
        if _open(conn).is_in_transaction():
            await self._within(limit, conn, "ROLLBACK", conn.execute("ROLLBACK"))
        conn._top_xact = None

    # -- going back ----------------------------------------------------------------------------------

    async def restore(self, conn: C, baseline: Any, limit: float | None) -> None:
        """Put the callbacks back, and listen to the channels of the baseline only."""
        now = _listeners(conn)
        changes = [f"UNLISTEN {_quoted(name)}" for name in now if name not in baseline.listeners]
        changes += [f"LISTEN {_quoted(name)}" for name in baseline.listeners if name not in now]
        if changes:
            await self._within(limit, conn, "restore", conn.execute("; ".join(changes)))
        _put_back(conn, baseline)

    async def send_reset(
        self,
        conn: C,
        baseline: Any,
        memory: object,  # noqa: ARG002
        parts: tuple[Part, ...],
        limit: float | None,
    ) -> object | None:
        """Do the parts; asyncpg cannot send without reading, so nothing is left to be read."""
        in_transaction = _open(conn).is_in_transaction()
        _put_back(conn, baseline)  # no notice of ours is for the borrower
        conn._mark_stmts_as_closed()
        message = reset_message(parts, in_transaction=in_transaction)
        await self._within(limit, conn, "reset", self._reset(conn, message, baseline))
        return None

    @staticmethod
    async def _reset(conn: C, message: str, baseline: Any) -> None:
        await conn.execute(message)
        if baseline.listeners:
            await conn.execute("; ".join(f"LISTEN {_quoted(name)}" for name in baseline.listeners))

    async def read_reset(self, conn: C, token: object, limit: float | None) -> None:
        """Do nothing: `send_reset` has read everything."""

    # -- closing -------------------------------------------------------------------------------------

    async def close(self, conn: C, limit: float | None) -> None:
        """Say goodbye, if the connection is at rest and its loop is this one; close in any case.

        What was cancelled is ended in the server first: cut off at once, asyncpg would not tell it, and
        a statement goes on there although nobody waits for it.
        """
        protocol = conn._protocol
        try:
            if protocol is not None and is_here(conn._loop):
                async with asyncio.timeout(limit):
                    if conn._cancellations:
                        await asyncio.wait(conn._cancellations)
                    if not (getattr(protocol, "inside", 0) or protocol._is_cancelling()):
                        await conn.close()
        except Exception:
            pass  # it is closed without a word
        finally:
            self.abort(conn)

    def abort(self, conn: C) -> None:
        """Cut the transport; a task that waits for an answer gets an error."""
        _cut_off(conn)

    def forget(self, conn: C) -> None:
        """Let the descriptor lead nowhere, and asyncpg believe that it has closed the connection.

        The loop is the parent's, and shares its selector with it: it is not to be touched.
        """
        try:
            disconnect(lambda: fileno(conn._transport))
            if conn._protocol is not None:
                conn._protocol.inside = 1
            conn._aborted, conn._protocol = True, None
        except Exception:
            pass  # another asyncpg: the descriptor leads nowhere all the same

    # -- faults --------------------------------------------------------------------------------------

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Classify by SQLSTATE, which asyncpg's own error for a lost connection has, too."""
        if isinstance(exc, PoolError):
            return Fault.ORDINARY
        if isinstance(exc, asyncpg.PostgresError) and exc.sqlstate is not None:
            severity = exc.severity_en or exc.severity
            return fault_of(exc.sqlstate, severity, dialling=dialling)
        if isinstance(exc, asyncpg.InternalClientError):
            return Fault.DEAD
        if dialling:
            if isinstance(exc, ssl.SSLCertVerificationError):
                return Fault.AUTH
            return Fault.DEAD if isinstance(exc, OSError) else Fault.ORDINARY
        closed = isinstance(exc, asyncpg.InterfaceError) and "connection is closed" in str(exc)
        return Fault.DEAD if closed else Fault.ORDINARY

    # -- limits --------------------------------------------------------------------------------------

    async def _within(self, limit: float | None, conn: C, what: str, step: Coroutine[Any, Any, T]) -> T:
        """Take a step within *limit* seconds; cut the connection off if it does not end."""
        try:
            async with asyncio.timeout(limit):
                return await step
        except TimeoutError:
            self.abort(conn)
            raise asyncpg.ConnectionDoesNotExistError(
                f"{what}: no answer within {_seconds(limit)}, the connection is closed"
            ) from None


def _seconds(limit: float | None) -> str:
    return "asyncpg's own limit" if limit is None else f"{limit:.3g} s"


def _cut_off(conn: Any) -> None:
    """Close a connection at once, in any thread and whatever has become of its loop."""
    protocol = conn._protocol
    if protocol is None:
        return  # it is closed, or forgotten
    if not protocol.is_closed():
        protocol.inside = 1  # BROKEN from now on, whenever the loop comes to know it
    if is_here(conn._loop):
        conn.terminate()
        return
    cut(conn._transport, conn._loop)
    if conn._loop.is_closed():
        conn._aborted, conn._protocol = True, None


def _open(conn: Any) -> Any:
    """Return the protocol of a connection that is open."""
    if conn.is_closed():
        raise asyncpg.InterfaceError("connection is closed")
    return conn._protocol


async def _takes_writes(conn: Any) -> bool:
    if conn.get_server_version() < _MODERN:
        # A SELECT would take the borrower's snapshot.
        if not conn.is_in_transaction() and await conn.fetchval("SELECT pg_catalog.pg_is_in_recovery()"):
            return False
        return bool(await conn.fetchval("SHOW default_transaction_read_only") != "on")
    return all([await conn.fetchval(f"SHOW {name}") != "on" for name in READ_ONLY])


def _put_back(conn: Any, was: Any) -> None:
    conn._top_xact = None
    for name, callbacks in was.callbacks.items():
        getattr(conn, name).clear()
        getattr(conn, name).update(callbacks)
    conn._listeners.clear()
    conn._listeners.update((channel, set(callbacks)) for channel, callbacks in was.listeners.items())


def _quoted(identifier: str) -> str:
    doubled = identifier.replace('"', '""')
    return f'"{doubled}"'


def _refuse_unknown(parameters: Mapping[str, Any]) -> None:
    """Raise if `asyncpg.connect` does not know one of the names."""
    unknown = [name for name in parameters if name not in _PARAMETERS]
    if unknown:
        raise PoolMisuse(f"asyncpg.connect() has no parameter {unknown[0]!r}")


def _shown(parameters: Mapping[str, Any]) -> str:
    """Return what of the parameters may be shown: never a password, not even a wrong one."""
    shown: dict[str, Any] = {}
    try:
        url = urlsplit(parameters.get("dsn") or "")
        shown = {"host": url.hostname, "port": url.port, "database": url.path[1:], "user": url.username}
    except ValueError:
        pass  # several hosts, or no URL
    for name in ("host", "port", "database", "user"):
        shown[name] = parameters.get(name, shown.get(name))
    return " ".join(f"{name}={value}" for name, value in shown.items() if value)
