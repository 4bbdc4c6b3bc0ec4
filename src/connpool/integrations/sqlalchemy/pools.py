"""The pools: what SQLAlchemy calls, and `QueuePool`'s figures."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final, cast

from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.pool import Pool, PoolProxiedConnection
from sqlalchemy.pool.base import ResetStyle
from sqlalchemy.util import await_only

import connpool
from connpool.errors import PoolUnavailable

from .options import NAMES, translated
from .records import AsyncRecords, Records

DEFAULT: Final = connpool.DEFAULT


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
    _records: ClassVar[type[Records]] = Records

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
        self._given = {name: said[name] for name in NAMES if said[name] is not DEFAULT}
        self._asked_to_reset = reset_on_return
        own = translated(self._given)
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
        if own.get("behind") is not None:
            self._invoke_creator = self._source.unprepared(self._invoke_creator)
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
        if record.process != os.getpid():
            record.dbapi_connection = None  # its session is the parent's, and the pool has let go of it
        elif record.dbapi_connection is None:  # invalidated, or detached: its place is free at once
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
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)  # listeners hear of it before they hear of what replaces it
        if record is None or self._evicted_at < record.starttime:
            self._evicted_at = time.time()  # what SQLAlchemy's records are stamped with
            self.connection_pool.evict()

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
    _records = AsyncRecords

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
