"""SQLAlchemy's engines on a connpool: ``create_engine(url, poolclass=ConnPool)``.

SQLAlchemy keeps what is its own: connection records and fairies, the events, the dialect's `is_disconnect`,
reset characteristics.  What its `QueuePool` does is done by a `connpool.ConnectionPool` whose connections are
SQLAlchemy's connection records: queueing, dialling, looking at what was idle, rollback, reset, replacement.

How the two meet:

*A record is what is pooled.*  To open a connection is to make a record, which calls the engine's creator and
fires ``connect``; to close it is to close its record, which fires ``close``.  All else is asked of the
driver's own adapter, about the driver's own connection.

*A record may dial by itself*, in its borrower's place: where a ``checkout`` listener has raised
`DisconnectionError`.  What it has then is taken in anew (`connect`).

*Invalidation*.  A record that was invalidated gives its place up as soon as it comes back.  A disconnect that
a dialect recognises evicts the whole pool, as `QueuePool` would do it.

*asyncio.*  A creator of an asyncio dialect runs in a greenlet.  It need not be that of whoever waits: the
pool's own tasks have one each.  Transactions of these dialects are objects of SQLAlchemy's, so it is
SQLAlchemy that rolls them back.

Not known here: what the pool decides, and how a driver shows its state.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Final, cast

from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.pool import Pool, PoolProxiedConnection
from sqlalchemy.pool.base import ResetStyle, _ConnectionRecord
from sqlalchemy.util import await_only, greenlet_spawn

import connpool
from connpool.adapter import adapter_for, async_adapter_for
from connpool.errors import PoolDeadlock, PoolError, PoolOverloaded, PoolTimeout, PoolUnavailable
from connpool.options import PoolOptions
from connpool.reset import Part

__all__ = [
    "AsyncConnPool",
    "ConnPool",
    "EnginePoolDeadlock",
    "EnginePoolOverloaded",
    "EnginePoolTimeout",
]

DEFAULT: Final = connpool.DEFAULT


# -- the pool's errors, as SQLAlchemy's ---------------------------------------------------------------


class EnginePoolTimeout(PoolTimeout, sqlalchemy_errors.TimeoutError):
    """`connpool.PoolTimeout` for ``except sqlalchemy.exc.TimeoutError``."""


class EnginePoolDeadlock(PoolDeadlock, sqlalchemy_errors.TimeoutError):
    """`connpool.PoolDeadlock` for ``except sqlalchemy.exc.TimeoutError``."""


class EnginePoolOverloaded(PoolOverloaded, sqlalchemy_errors.TimeoutError):
    """`connpool.PoolOverloaded` for ``except sqlalchemy.exc.TimeoutError``."""


_ERRORS: Final[dict[type[PoolError], type[PoolError]]] = {
    PoolTimeout: EnginePoolTimeout,
    PoolDeadlock: EnginePoolDeadlock,
    PoolOverloaded: EnginePoolOverloaded,
}


# -- records ------------------------------------------------------------------------------------------


class _Record(_ConnectionRecord):
    """SQLAlchemy's connection record, with what the driver's adapter needs to remember of its connection.

    It stands here and not in the pool's baseline, because that must not keep the record alive: a record
    that nobody has any more is how the pool finds out about a leak.
    """

    driver: Any = None
    """The driver's own connection."""
    adopted: Any = None
    """The DB-API connection that was adopted: another one means that the record has dialled by itself."""
    baseline: object = None
    """What the driver's adapter compares with."""


def _on_driver(step: str) -> Any:
    """Make a step of an adapter that is the driver's adapter's; for asyncio it returns an awaitable."""

    def method(self: _Records, record: _Record, *args: Any) -> Any:
        return getattr(self.driver, step)(record.driver, *args)

    method.__name__ = step
    return method


class _Records:
    """An adapter whose connections are SQLAlchemy's records."""

    bounded = False  # a creator knows no limit
    find: ClassVar[Callable[..., Any]] = staticmethod(adapter_for)

    def __init__(self, pool: ConnPool) -> None:
        # Weak, in the records too: an engine that was dropped without dispose() is garbage, as it is with
        # QueuePool, and then its sessions are closed.
        self._pool = weakref.ref(pool)
        self._owner = cast("ConnPool", weakref.proxy(pool))
        self.driver: Any = None  # its adapter, known by its first connection or its first error

    # -- what is known of the driver

    @property
    def name(self) -> str:
        return self.driver.name if self.driver else "SQLAlchemy"

    @property
    def sees_transactions(self) -> bool:
        return self.driver is None or self.driver.sees_transactions

    @property
    def parts(self) -> Collection[Part]:
        return self.driver.parts if self.driver else frozenset(Part)  # read again when it is known

    @property
    def errors(self) -> Mapping[type[PoolError], type[PoolError]]:
        return {**self.driver.errors, **_ERRORS} if self.driver else _ERRORS

    @property
    def says(self) -> Mapping[str, str]:
        return getattr(self.driver, "says", {})

    def __repr__(self) -> str:
        return f"<SQLAlchemy's creator, for {self.name}>" if self.driver else "<SQLAlchemy's creator>"

    # -- opening and closing

    def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> Any:  # noqa: ARG002
        """Make a record: that calls the engine's creator, and then the ``connect`` listeners."""
        record = _Record(self._owner)
        record.driver = record.driver_connection
        return record

    def adopt(self, record: _Record) -> object:
        """Take in the connection that a record has now; return nothing, it is all in the record."""
        record.driver = record.driver_connection
        if self.driver is None:
            self.driver = self.find(record.driver, _never)
        record.baseline = self.driver.adopt(record.driver)
        record.adopted = record.dbapi_connection
        return None

    def unprepare(self, record: _Record) -> None:
        """Have the driver prepare nothing, if it would."""
        unprepare = getattr(self.driver, "unprepare", None)
        if unprepare is not None:
            unprepare(record.driver)

    def verdict(self, record: _Record, _: object) -> Any:
        """Ask the driver's adapter; a record that is not what it was must be closed."""
        if record.dbapi_connection is not record.adopted or record._soft_invalidate_time > record.starttime:
            return connpool.Verdict.SPENT
        return self.driver.verdict(record.driver, record.baseline)

    def close(self, record: _Record, limit: float | None) -> Any:
        """Close a record, which fires ``close``; the driver's connection alone if the engine has gone."""
        if self._pool() is not None:
            record.close()
        elif self.driver is not None:
            self.driver.close(record.driver, limit)

    def fault(self, error: BaseException, *, dialling: bool) -> Any:
        """Ask the driver's adapter, about what SQLAlchemy's asyncio dialects have translated, too."""
        for exc in (error, error.__cause__):
            if exc is None:
                continue
            if self.driver is None:
                self.driver = self.find(exc, _never)
            if self.driver is not None:
                fault = self.driver.fault(exc, dialling=dialling)
                if fault is not connpool.Fault.ORDINARY:
                    return fault
        return connpool.Fault.ORDINARY

    def restore(self, record: _Record, _: object, limit: float | None) -> Any:
        return self.driver.restore(record.driver, record.baseline, limit)

    def send_reset(
        self, record: _Record, _: object, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> Any:
        return self.driver.send_reset(record.driver, record.baseline, memory, parts, limit)

    def forget(self, record: _Record) -> None:
        self.driver.forget(record.driver)

    def abort(self, record: _Record) -> None:
        self.driver.abort(record.driver)

    remember = _on_driver("remember")
    alive = _on_driver("alive")
    ping = _on_driver("ping")
    idle_limit = _on_driver("idle_limit")
    writable = _on_driver("writable")
    begin = _on_driver("begin")
    commit = _on_driver("commit")
    rollback = _on_driver("rollback")
    read_reset = _on_driver("read_reset")


class _AsyncRecords(_Records):
    """The same for asyncio: what SQLAlchemy does on a connection needs a greenlet."""

    bounded = True  # a task can be cancelled
    find = staticmethod(async_adapter_for)

    async def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> Any:
        async with asyncio.timeout(limit):
            return await greenlet_spawn(super().connect, None, credentials)

    async def close(self, record: _Record, limit: float | None) -> Any:
        async with asyncio.timeout(limit):
            if self._pool() is not None:
                await greenlet_spawn(record.close)
            else:
                await self.driver.close(record.driver, limit)

    async def rollback(self, record: _Record, limit: float | None) -> None:
        """Roll back as SQLAlchemy knows it, and then what it does not know of."""
        connection = record.dbapi_connection
        assert connection is not None, "the verdict has said that there is one"
        async with asyncio.timeout(limit):
            await greenlet_spawn(connection.rollback)
        if self.driver.verdict(record.driver, record.baseline) in _OPEN:
            await self.driver.rollback(record.driver, limit)

    async def send_reset(
        self, record: _Record, _: object, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> Any:
        # asyncpg's dialect has a cache of its own; what is in it does not survive a reset.
        cache = getattr(record.dbapi_connection, "_prepared_statement_cache", None)
        if cache is not None:
            cache.clear()
        return await self.driver.send_reset(record.driver, record.baseline, memory, parts, limit)


_OPEN: Final = (connpool.Verdict.DIRTY, connpool.Verdict.FAILED)


def _never() -> Any:
    raise AssertionError("records are made by SQLAlchemy's creator")


# -- options ------------------------------------------------------------------------------------------


def _on_connection(hook: Any) -> Any:
    """Make a function of the driver's connection into one of a record."""
    if not callable(hook):
        return hook  # refused where options are checked

    @functools.wraps(hook)
    def with_record(record: _Record) -> object:
        return hook(record.driver_connection)

    return with_record


def _of_records(policy: Any) -> Any:
    """Do the same to the callables of a reset policy."""
    if isinstance(policy, list | tuple):
        return [_of_records(each) for each in policy]
    return policy if isinstance(policy, str) else _on_connection(policy)


def _translated(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ConnectionPool, for arguments by SQLAlchemy's names and by ours.

    Raises:
        ValueError: SQLAlchemy's value means what this pool does not do, or the same is said twice.
    """
    own = dict(given)

    def say(theirs: str, **options: object) -> None:
        for name, value in options.items():
            if name in own:
                raise ValueError(f"{theirs} and {name}={own[name]!r}: both say the same; leave one out")
            own[name] = value

    for name, instead in _NOT_HERE.items():
        if own.pop(name, None):
            raise ValueError(f"{name}: not with SQLAlchemy; {instead}")
    size, overflow = own.pop("pool_size", None), own.pop("max_overflow", None)
    if size == 0 or overflow == -1:
        raise ValueError(f"pool_size={size!r}, max_overflow={overflow!r}: a pool without a bound is none")
    if size is not None or overflow is not None:
        total = PoolOptions(max_size=QUEUE_POOL_SIZE if size is None else size).max_size
        say(f"pool_size={size!r}, max_overflow={overflow!r}", max_size=total + (overflow or 0))
    if "timeout" in own:
        timeout = own.pop("timeout")
        say(f"pool_timeout={timeout!r}", acquire_timeout=timeout)
    recycle = own.pop("recycle", -1)
    if recycle == 0:
        raise ValueError("pool_recycle=0: to use each connection once, say max_uses=1")
    if recycle != -1:
        say(f"pool_recycle={recycle!r}", max_lifetime=recycle)
    if own.pop("pre_ping", False):
        say("pool_pre_ping=True", probe_after=0, ping_after=0)
    if not own.pop("use_lifo", True):
        raise ValueError("pool_use_lifo=False: what was used last is lent first; leave it out")
    for name in ("on_connect", "on_acquire", "on_release", "on_close"):
        if name in own:
            own[name] = _on_connection(own[name])
    if "reset" in own:
        own["reset"] = _of_records(own["reset"])
    return own


_NOT_HERE: Final = {
    "debug": "its connections stand behind proxies of SQLAlchemy's already",
    "credentials": "the engine has the address: listen to its do_connect event",
}

QUEUE_POOL_SIZE: Final = 5
"""What `QueuePool` takes for its size if only an overflow is given."""

_NAMES: Final = frozenset(
    [
        *(field.name for field in dataclasses.fields(PoolOptions)),
        *("pool_size", "max_overflow", "timeout", "recycle", "pre_ping", "use_lifo"),
    ]
)


# -- the pools ----------------------------------------------------------------------------------------


class ConnPool(Pool):
    """A `connpool.ConnectionPool` as the pool of an engine.

    All that can be said to a `ConnectionPool` can be said to ``create_engine``, by the same names, and so
    can `QueuePool`'s arguments, as far as they mean something here::

        engine = create_engine(url, poolclass=ConnPool, max_size=20, reset="full")
        engine = create_engine(url, poolclass=ConnPool, pool_size=20, pool_recycle=1800)

    Args:
        creator: SQLAlchemy's.
        pool_size: With `max_overflow`, `max_size`: the most connections there may be.
        max_overflow: Added to `pool_size`; unlike `QueuePool`'s it is 0 if it is not given.
        timeout: ``pool_timeout`` is `acquire_timeout`.
        use_lifo: ``pool_use_lifo`` must be True: what was used last is lent first.
        recycle: ``pool_recycle`` is `max_lifetime`; -1: as that is by default.
        pre_ping: ``pool_pre_ping`` is ``ping_after=0``.  It is seldom needed: what the kernel knows to be
            dead is not lent anyway, and what was idle for long is asked.
        reset_on_return: ``pool_reset_on_return``: "rollback" if a transaction is open; "commit" first, as
            SQLAlchemy does it; ``None``: ``reset="none"``, if no `reset` is given.
        echo: SQLAlchemy's, like all from here to the options of `ConnectionPool`.

    Raises:
        TypeError, ValueError: An option breaks its rule; the message names option, value and rule.
    """

    _is_asyncio = False
    _records: ClassVar[type[_Records]] = _Records

    def __init__(
        self,
        creator: Any,
        # By position or name: SQLAlchemy looks for the names among those alone.
        pool_size: object = DEFAULT,
        max_overflow: object = DEFAULT,
        timeout: object = DEFAULT,
        use_lifo: object = DEFAULT,
        recycle: object = DEFAULT,
        pre_ping: object = DEFAULT,
        reset_on_return: Any = True,
        echo: Any = None,
        logging_name: str | None = None,
        events: Any = None,
        dialect: Any = None,
        _dispatch: Any = None,
        min_idle: object = DEFAULT,
        max_size: object = DEFAULT,
        acquire_timeout: object = DEFAULT,
        max_waiting: object = DEFAULT,
        max_connecting: object = DEFAULT,
        connect_timeout: object = DEFAULT,
        max_lifetime: object = DEFAULT,
        idle_timeout: object = DEFAULT,
        probe_after: object = DEFAULT,
        ping_after: object = DEFAULT,
        keepalive: object = DEFAULT,
        max_uses: object = DEFAULT,
        reset: object = DEFAULT,
        reset_timeout: object = DEFAULT,
        commit_timeout: object = DEFAULT,
        credentials: object = DEFAULT,
        require: object = DEFAULT,
        behind: object = DEFAULT,
        on_connect: object = DEFAULT,
        on_acquire: object = DEFAULT,
        on_release: object = DEFAULT,
        on_close: object = DEFAULT,
        max_dedicated: object = DEFAULT,
        nested: object = DEFAULT,
        warn_after: object = DEFAULT,
        observers: object = DEFAULT,
        debug: object = DEFAULT,
        name: object = DEFAULT,
    ) -> None:
        said = locals()
        self._given = {name: said[name] for name in _NAMES if said[name] is not DEFAULT}
        self._asked_to_reset = reset_on_return
        own = _translated(self._given)
        super().__init__(
            creator,
            echo=echo,
            logging_name=logging_name,
            reset_on_return=reset_on_return,
            events=events,
            dialect=dialect,
            _dispatch=_dispatch,
        )
        if self._reset_on_return is ResetStyle.reset_none:
            own.setdefault("reset", "none")
        self._roll_back_ourselves(own)
        self._source = self._records(self)
        self.connection_pool: Any = self._made(own)
        """The `connpool.ConnectionPool`: figures, `describe`, `advise`, `resize`, `suspend` and so on."""
        self._evicted_at = 0.0

    def _made(self, options: dict[str, Any]) -> Any:
        return connpool.ConnectionPool(cast("Any", self._source), **options)

    def _roll_back_ourselves(self, options: Mapping[str, object]) -> None:
        """Have the pool do what SQLAlchemy would: only if a transaction is open, and within a limit."""
        if self._reset_on_return is ResetStyle.reset_rollback and options.get("reset") != "none":
            self._reset_on_return = ResetStyle.reset_none

    # -- what SQLAlchemy calls

    def connect(self) -> PoolProxiedConnection:
        """Lend a connection until its ``close()``.

        Raises:
            sqlalchemy.exc.TimeoutError: Nothing became free in time; it is a `connpool.PoolTimeout` too.
            sqlalchemy.exc.OperationalError: Nothing could be opened; raised by the engine.
        """
        fairy: Any = super().connect()
        record = fairy._connection_record
        if record.adopted is not fairy.dbapi_connection:
            self._source.adopt(record)  # a listener had it dial again
        return cast("PoolProxiedConnection", fairy)

    def _do_get(self) -> Any:
        try:
            return self._acquired()
        except PoolUnavailable as exc:
            # The engine makes its own error of those of its DB-API, and some drivers' cannot be ours, too.
            dbapi = getattr(self._dialect, "loaded_dbapi", None)
            if dbapi is None or isinstance(exc, dbapi.Error):
                raise
            raise dbapi.OperationalError(str(exc)) from exc

    def _acquired(self) -> Any:
        return self.connection_pool.acquire()

    def _do_return_conn(self, record: Any) -> None:
        if record.dbapi_connection is None:  # invalidated, or detached: its place is free at once
            self.connection_pool.detach(record)
        else:
            self._release(record)

    def _release(self, record: Any) -> None:
        self.connection_pool.release(record)

    def _invalidate(
        self, connection: Any, exception: BaseException | None = None, _checkin: bool = True
    ) -> None:
        """Replace every connection that is as old as one whose server has gone."""
        record = getattr(connection, "_connection_record", None)
        if record is None or self._evicted_at < record.starttime:
            self._evicted_at = time.time()  # what SQLAlchemy's records are stamped with
            self.connection_pool.evict()
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)

    def recreate(self) -> ConnPool:
        """Make another pool with the same arguments."""
        self.logger.info("Pool recreating")
        return self.__class__(
            self._creator,
            **self._given,
            reset_on_return=self._asked_to_reset,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            dialect=self._dialect,
            _dispatch=self.dispatch,
        )

    def dispose(self) -> None:
        """Close what is idle, and what is lent when it comes back."""
        self.connection_pool.resize(min_idle=0)  # an engine goes on with another pool
        self._clear()
        self.logger.info("Pool disposed. %s", self.status())

    def _clear(self) -> None:
        self.connection_pool.clear()

    # -- QueuePool's figures

    def status(self) -> str:
        """Return a brief description; ``connection_pool.stats()`` has all figures."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} "
            f"Current Overflow: {self.overflow()} Current Checked out connections: {self.checkedout()}"
        )

    def size(self) -> int:
        """Return how many connections there may be, but for an overflow."""
        size: int = self._given.get("pool_size") or self._figures().max_size
        return size

    def timeout(self) -> float | None:
        """Return the seconds that a caller waits at most; ``None``: no limit."""
        timeout: float | None = self.connection_pool.describe().options["acquire_timeout"]
        return timeout

    def checkedin(self) -> int:
        """Return how many connections are idle."""
        return self._figures().idle

    def checkedout(self) -> int:
        """Return how many connections are lent."""
        return self._figures().in_use

    def overflow(self) -> int:
        """Return by how many connections the size is exceeded; less than 0: it is not."""
        return self._figures().size - self.size()

    def _figures(self) -> connpool.PoolStats:
        stats: connpool.PoolStats = self.connection_pool.stats(reset_peaks=False)
        return stats


class AsyncConnPool(ConnPool):
    """A `connpool.AsyncConnectionPool` as the pool of an asyncio engine.

    For ``create_async_engine(url, poolclass=AsyncConnPool)``, with asyncpg, psycopg, aiomysql or aiosqlite.
    Arguments and errors as `ConnPool`.  Hooks are given the driver's own connection, and may be coroutine
    functions.  What SQLAlchemy rolls back is rolled back by it.
    """

    _is_asyncio = True
    _records = _AsyncRecords

    def _made(self, options: dict[str, Any]) -> Any:
        return connpool.AsyncConnectionPool(cast("Any", self._source), **options)

    def _roll_back_ourselves(self, options: Mapping[str, object]) -> None:
        pass  # the transactions of these dialects are objects of SQLAlchemy's

    def _acquired(self) -> Any:
        return await_only(self.connection_pool.acquire())

    def _release(self, record: Any) -> None:
        await_only(self.connection_pool.release(record))

    def _clear(self) -> None:
        try:
            await_only(self.connection_pool.clear())
        except sqlalchemy_errors.MissingGreenlet:  # of a sync_engine: nothing can be awaited
            self.connection_pool.evict()
