"""What the pool needs to know about a driver: read this before you write an adapter.

An adapter knows one driver and nothing of the pool: no sizes, no queues, no policy.  The pool knows no
driver.  Between them stand the methods of `Adapter`.  Those that may send something take a *limit* in
seconds and must return or raise within it, even when the network swallows every packet; those that may
not send anything say so.  A connection is given to one thread at a time.

An adapter is found by the module of the first connection that a plain callable returns, or of the first
exception that it raises; `register` makes a further driver known.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from math import inf
from typing import Any, Protocol, TypeVar

from .errors import PoolError, PoolMisuse
from .reset import Part

C = TypeVar("C")
"""The driver's own connection type."""


class Verdict(IntEnum):
    """What a connection's local state proves, without a word to the server.

    ``CLEAN`` is 0, so that the warm path can ask ``if not verdict``.
    """

    CLEAN = 0
    """At rest, no transaction open, the driver's settings as in the baseline: it may be lent as it is."""
    ALTERED = 1
    """At rest, no transaction open; but settings that `Adapter.restore` puts back are not as they were."""
    DIRTY = 2
    """At rest; a transaction is open, or might be."""
    FAILED = 3
    """At rest; the open transaction has failed and can only be rolled back."""
    BROKEN = 4
    """In the middle of an exchange, or not provably at rest: it must be closed.

    A transaction may be lost with it.
    """
    SPENT = 5
    """It must be closed, or is, and no transaction is lost with it.

    Its borrower closed it, or left it in the middle of an exchange outside of a transaction.
    """


class Fault(Enum):
    """What an exception says about the connection, or the server, that raised it."""

    __hash__ = object.__hash__  # in C: an interrupt cannot strike inside it

    ORDINARY = "ordinary"
    """The statement's own error: the connection is as good as before."""
    DEAD = "dead"
    """The connection is gone."""
    DEMOTED = "demoted"
    """The server has become read-only: a failover happened."""
    FULL = "full"
    """The server refuses further sessions."""
    STARTING = "starting"
    """The server is starting up or shutting down."""
    AUTH = "auth"
    """The server refuses these credentials; trying again will not help."""


@dataclass(frozen=True)
class Credentials:
    """What a ``credentials=`` provider returns, if what it returns does not hold for ever."""

    parameters: Mapping[str, Any] = field(repr=False)
    """Connect parameters, by the driver's names: ``{"user": ..., "password": ...}``."""
    expires_in: float | None = None
    """Seconds for which they hold; a connection made with them is replaced by then.  ``None``: for ever."""

    def __post_init__(self) -> None:
        seconds = self.expires_in
        if seconds is None:
            return
        wanted = f"expires_in={seconds!r}: must be a number of seconds, more than 0, or None for ever"
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(wanted)
        if not 0 < seconds < inf:
            raise ValueError(wanted)


class Adapter(Protocol[C]):
    """One driver, as the pool sees it."""

    name: str
    """The driver's name, for messages: ``"psycopg"``."""

    bounded: bool
    """Whether `connect` keeps its limit by itself.

    False for a callable handed in by the user, which nobody can limit: the pool then gives up waiting
    for it after `connect_timeout` and closes the connection if it comes after all.
    """

    sees_transactions: bool = True
    """Whether `verdict` can tell CLEAN from DIRTY.

    False for a driver that does not show whether a transaction is open.  Its verdict is then DIRTY
    whenever the connection is open, and a `commit` or `rollback` that returned is taken as the proof
    of rest; any other verdict but CLEAN after it still means that the connection must be closed.
    It may change with `adopt`, so it is read when it is needed.
    """

    errors: Mapping[type[PoolError], type[PoolError]]
    """The pool's errors that are also this driver's ``OperationalError``, by the plain class.

    Static classes: one built at run time cannot be pickled.
    """

    parts: Collection[Part]
    """The parts of a reset that `send_reset` knows how to do.  It is read after `adopt`, too."""

    def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> C:
        """Open a connection within *limit* seconds; ``None`` is no limit.

        *credentials* stand in place of the adapter's own parameters of the same names.  Names are
        resolved anew each time: after a failover they lead elsewhere.
        """

    def adopt(self, conn: C) -> object:
        """Take a fresh connection into the pool; return its baseline.

        The baseline is what `verdict` compares with and `restore` goes back to: the settings that the
        driver keeps in the connection object.  Runs in the thread that opened the connection, before
        any hook, and again after `on_connect`, whose settings are the baseline from then on.  No I/O.
        May raise `PoolMisuse` if such a connection cannot be pooled.
        """

    # A method that only some drivers need, and only with the option `behind`, and so no part of this
    # protocol: ``unprepare(conn)`` sees to it that the driver prepares nothing on a connection that has just
    # been adopted.  No I/O.  The connection is adopted once more afterwards.

    def remember(self, conn: C, parts: tuple[Part, ...], limit: float | None) -> object:
        """Note what a reset of these *parts* will have to bring back; return it.

        Called once, after the first `adopt` and before any hook, and only if the policy has parts.
        It may make round trips.
        """

    def verdict(self, conn: C, baseline: object) -> Verdict:
        """Judge a connection by local state alone: no I/O, no exception, one Python frame.

        In doubt ``BROKEN``.  It runs at every release; nothing else of an adapter is that warm.
        """

    def alive(self, conn: C) -> bool:
        """Tell whether the socket is quiet, without a round trip.

        An idle connection that has become readable has been closed by its server, or has got a
        message that nobody asked for; either way it must not be lent.
        """

    def ping(self, conn: C, limit: float | None) -> None:
        """Make one round trip; raise if there is no answer within *limit* seconds."""

    def idle_limit(self, conn: C, limit: float | None) -> float | None:
        """Return the seconds idle after which the server ends this session by itself; ``None``: never.

        Called once, after the first `adopt`.  It may make a round trip.
        """

    def writable(self, conn: C, limit: float | None) -> bool:
        """Tell whether the server takes writes: False on a standby, or a primary that was demoted.

        The connection is at rest, perhaps in a transaction, perhaps in a failed one.  True if that
        cannot be found out.  It may make a round trip.
        """

    def begin(self, conn: C) -> None:
        """Open a transaction explicitly, on an autocommit connection too."""

    def commit(self, conn: C) -> None:
        """Commit on the borrower's behalf; its error is the borrower's."""

    def rollback(self, conn: C, limit: float | None) -> None:
        """End the open transaction; afterwards the verdict is ``CLEAN``, or ``ALTERED``.

        It may stay ``DIRTY`` if the adapter does not see transactions (`sees_transactions`).
        """

    def restore(self, conn: C, baseline: object, limit: float | None) -> None:
        """Put the driver's settings back to the baseline: ``ALTERED`` becomes ``CLEAN``.

        No transaction is open: to switch autocommit on would commit it.
        """

    def send_reset(
        self, conn: C, baseline: object, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> object | None:
        """Send what does the *parts*, and read nothing; return what `read_reset` needs to know.

        The connection may be clean, altered, or in a transaction, failed or not; whatever it is, the
        transaction is over and the settings are those of the baseline when all is done.  ``None`` if
        all is done already, by an adapter that cannot send without reading.  One that can only do it
        by opening a new connection closes this one.
        """

    def read_reset(self, conn: C, token: object, limit: float | None) -> None:
        """Read the answers to `send_reset`; raise if one is an error or does not come in time."""

    def close(self, conn: C, limit: float | None) -> None:
        """Say goodbye and close within *limit* seconds."""

    def abort(self, conn: C) -> None:
        """Close at once: never block, whatever the connection is doing, in any thread."""

    def forget(self, conn: C) -> None:
        """Make a connection useless in this process, a forked child, and send nothing.

        Its session is the parent's.  Best by `connpool.adapters.sockets.disconnect`: the descriptor
        leads nowhere then, and whoever still uses the connection gets an error at once.  Never raises.
        """

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Classify what the driver raised; *dialling* while `connect` ran."""


class AsyncAdapter(Protocol[C]):
    """One asyncio driver, as the pool sees it.

    The same names as in `Adapter`, with the same meanings and limits: what may wait is a coroutine
    function, and what must not wait is a plain one.  Four things are particular to tasks:

    * A step may be cancelled.  `CancelledError` passes through as it is, and is not delayed; afterwards
      `verdict` says ``BROKEN`` if bytes went out whose answer was not read.
    * `abort` and `forget` work in any thread, at any time, also when the loop of the connection is
      closed: finalizers call them.
    * A connection that becomes garbage gives its socket up.  If its driver does not see to that by
      itself, the adapter does, as by a subclass whose ``__del__`` is `abort`.
    * `verdict` and `alive` run in the task that has the connection, and must not wait.
    """

    name: str
    bounded: bool
    sees_transactions: bool = True
    errors: Mapping[type[PoolError], type[PoolError]]
    parts: Collection[Part]

    # What may wait.

    async def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> C: ...

    async def remember(self, conn: C, parts: tuple[Part, ...], limit: float | None) -> object: ...

    async def ping(self, conn: C, limit: float | None) -> None: ...

    async def idle_limit(self, conn: C, limit: float | None) -> float | None: ...

    async def writable(self, conn: C, limit: float | None) -> bool: ...

    async def begin(self, conn: C) -> None: ...

    async def commit(self, conn: C) -> None: ...

    async def rollback(self, conn: C, limit: float | None) -> None: ...

    async def restore(self, conn: C, baseline: object, limit: float | None) -> None: ...

    async def send_reset(
        self, conn: C, baseline: object, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> object | None: ...

    async def read_reset(self, conn: C, token: object, limit: float | None) -> None: ...

    async def close(self, conn: C, limit: float | None) -> None: ...

    # What must not wait.

    def adopt(self, conn: C) -> object: ...

    def verdict(self, conn: C, baseline: object) -> Verdict: ...

    def alive(self, conn: C) -> bool: ...

    def abort(self, conn: C) -> None: ...

    def forget(self, conn: C) -> None: ...

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault: ...


# -- which adapter speaks for which driver -----------------------------------------------------------

_DRIVERS: dict[str, str] = {
    "psycopg": "connpool.adapters.psycopg:PsycopgAdapter",
    "pymysql": "connpool.adapters.pymysql:PyMySQLAdapter",
    "sqlite3": "connpool.adapters.sqlite:SQLiteAdapter",
}
_SCHEMES: dict[str, str] = {
    "postgresql": "psycopg",
    "postgres": "psycopg",
    "mysql": "pymysql",
    "mariadb": "pymysql",
    "sqlite": "sqlite3",
}
_ANY_DRIVER = "connpool.adapters.dbapi:DBAPIAdapter"

_ASYNC_DRIVERS: dict[str, str] = {
    "psycopg": "connpool.adapters.psycopg_async:AsyncPsycopgAdapter",
    "asyncpg": "connpool.adapters.asyncpg:AsyncpgAdapter",
    "aiomysql": "connpool.adapters.aiomysql:AiomysqlAdapter",
    "aiosqlite": "connpool.adapters.aiosqlite:AiosqliteAdapter",
}
_ASYNC_SCHEMES: dict[str, str] = {
    "postgresql": "psycopg",
    "postgres": "psycopg",
    "mysql": "aiomysql",
    "mariadb": "aiomysql",
    "sqlite": "aiosqlite",
}


def register(driver: str, adapter: str, *, schemes: tuple[str, ...] = ()) -> None:
    """Make an adapter known by the name of its driver's top-level module.

    Args:
        driver: The top-level module of the driver's classes, for example ``"oracledb"``.
        adapter: Where the adapter class is: ``"package.module:ClassName"``.  It is imported at first
            need.  The class has ``around(connect)`` and, for *schemes*, ``from_url(url)``.
        schemes: URL schemes that `connpool.create_pool` should send to this adapter.
    """
    _DRIVERS[driver] = adapter
    _SCHEMES.update(dict.fromkeys(schemes, driver))


def adapter_for_url(url: str) -> Adapter[Any]:
    """Return the adapter that the URL's scheme names, made from the URL."""
    if not isinstance(url, str):
        raise TypeError(f"create_pool() needs a URL, got {type(url).__name__}")
    scheme, separator, _ = url.partition("://")
    driver = _SCHEMES.get(scheme.partition("+")[0]) if separator else None
    if driver is None:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        # The rest of the URL may hold a password: it is not repeated.
        raise PoolMisuse(f"create_pool() needs a URL that begins with one of: {known}")
    adapter: Adapter[Any] = _load(_DRIVERS[driver]).from_url(url)
    return adapter


def adapter_for(first: object, connect: Callable[[], C]) -> Adapter[C] | None:
    """Choose an adapter by what *connect* first returned or raised.

    ``None`` for an exception that is no driver's: nothing is known yet.
    """
    adapter: Adapter[C]
    for klass in type(first).__mro__:
        where = _DRIVERS.get(klass.__module__.partition(".")[0])
        if where is not None:
            adapter = _load(where).around(connect)
            return adapter
    if isinstance(first, BaseException):
        return None
    missing = [name for name in ("cursor", "commit", "rollback", "close") if not hasattr(first, name)]
    if missing:
        raise PoolMisuse(
            f"the connect callable returned {type(first).__module__}.{type(first).__qualname__}, which is "
            f"no DB-API connection: it has no {', '.join(f'{name}()' for name in missing)}"
        )
    adapter = _load(_ANY_DRIVER).around(connect)
    return adapter


def register_async(driver: str, adapter: str, *, schemes: tuple[str, ...] = ()) -> None:
    """Make an adapter for an asyncio driver known, as `register` does; the two have tables of their own."""
    _ASYNC_DRIVERS[driver] = adapter
    _ASYNC_SCHEMES.update(dict.fromkeys(schemes, driver))


def async_adapter_for_url(url: str) -> AsyncAdapter[Any]:
    """Return the asyncio adapter that the URL's scheme names, made from the URL.

    A driver can be named after a plus sign: ``postgresql+asyncpg://``.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is needed, not {type(url).__name__}")
    scheme, separator, _ = url.partition("://")
    database, _, driver = scheme.partition("+")
    known = _ASYNC_SCHEMES.get(database) if separator else None
    if known is None or (driver and driver not in _ASYNC_DRIVERS):
        schemes = ", ".join(f"{name}://" for name in _ASYNC_SCHEMES)
        # The rest of the URL may hold a password: it is not repeated.
        raise PoolMisuse(
            f"a URL is needed that begins with one of: {schemes}; or with +, the name of a driver"
            f" ({', '.join(_ASYNC_DRIVERS)}) and ://"
        )
    adapter: AsyncAdapter[Any] = _load(_ASYNC_DRIVERS[driver or known]).from_url(url)
    return adapter


def async_adapter_for(first: object, connect: Callable[[], Awaitable[C]]) -> AsyncAdapter[C] | None:
    """Choose an asyncio adapter by what *connect* first returned, once awaited, or raised.

    ``None`` for an exception that is no driver's: nothing is known yet.
    """
    for klass in type(first).__mro__:
        where = _ASYNC_DRIVERS.get(klass.__module__.partition(".")[0])
        if where is not None:
            adapter: AsyncAdapter[C] = _load(where).around(connect)
            return adapter
    if isinstance(first, BaseException):
        return None
    raise PoolMisuse(
        f"the connect callable returned {type(first).__module__}.{type(first).__qualname__}, for which no"
        f" adapter for asyncio is known; there is one for each of: {', '.join(_ASYNC_DRIVERS)}"
    )


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)
