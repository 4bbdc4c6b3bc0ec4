"""SQLAlchemy's connection records as what is pooled: an adapter around the driver's own."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Final, cast

from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.pool import Pool
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import greenlet_spawn

import connpool
from connpool.adapter import adapter_for, async_adapter_for
from connpool.errors import PoolDeadlock, PoolError, PoolOverloaded, PoolTimeout
from connpool.reset import Part

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


class Record(_ConnectionRecord):
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
    process: int = 0
    """The process that opened it: in a forked child it is refused, and nobody's to give back."""


def _on_driver(step: str) -> Any:
    """Make a step of an adapter that is the driver's adapter's; for asyncio it returns an awaitable."""

    def method(self: Records, record: Record, *args: Any) -> Any:
        return getattr(self.driver, step)(record.driver, *args)

    method.__name__ = step
    return method


class Records:
    """An adapter whose connections are SQLAlchemy's records."""

    bounded = False  # a creator knows no limit
    find: ClassVar[Callable[..., Any]] = staticmethod(adapter_for)

    def __init__(self, pool: Pool) -> None:
        # Weak, in the records too: an engine that was dropped without dispose() is garbage, as it is with
        # QueuePool, and then its sessions are closed.
        self._pool = weakref.ref(pool)
        self._owner = cast("Pool", weakref.proxy(pool))
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
        record = Record(self._owner)
        record.driver, record.process = record.driver_connection, os.getpid()
        return record

    def unprepared(self, creator: Callable[[Any], Any]) -> Any:
        """Make a creator whose connections prepare nothing, also not for the ``connect`` listeners."""

        def create(record: Any) -> Any:
            connection = creator(record)
            driver = self._owner._dialect.get_driver_connection(connection)
            self._look_at(driver)
            if hasattr(self.driver, "unprepare"):
                self.driver.unprepare(driver)
            return connection

        return create

    def _look_at(self, driver: Any) -> None:
        """Find the driver's adapter, by the first connection."""
        if self.driver is None:
            self.driver = self.find(driver, _never)

    def adopt(self, record: Record) -> object:
        """Take in the connection that a record has now; return nothing, it is all in the record."""
        record.driver = record.driver_connection
        self._look_at(record.driver)
        record.baseline = self.driver.adopt(record.driver)
        record.adopted = record.dbapi_connection
        return None

    def verdict(self, record: Record, _: object) -> Any:
        """Ask the driver's adapter; a record that is not what it was must be closed."""
        if record.dbapi_connection is not record.adopted or record._soft_invalidate_time > record.starttime:
            return connpool.Verdict.SPENT
        return self.driver.verdict(record.driver, record.baseline)

    def close(self, record: Record, limit: float | None) -> Any:
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

    def restore(self, record: Record, _: object, limit: float | None) -> Any:
        return self.driver.restore(record.driver, record.baseline, limit)

    def send_reset(
        self, record: Record, _: object, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> Any:
        return self.driver.send_reset(record.driver, record.baseline, memory, parts, limit)

    def forget(self, record: Record) -> None:
        if self.driver is not None:  # else it was not even looked at
            self.driver.forget(record.driver)

    def abort(self, record: Record) -> None:
        if self.driver is not None:
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


class AsyncRecords(Records):
    """The same for asyncio: what SQLAlchemy does on a connection needs a greenlet."""

    bounded = True  # a task can be cancelled
    find = staticmethod(async_adapter_for)

    async def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> Any:
        async with asyncio.timeout(limit):
            return await greenlet_spawn(super().connect, None, credentials)

    async def close(self, record: Record, limit: float | None) -> Any:
        async with asyncio.timeout(limit):
            if self._pool() is not None:
                await greenlet_spawn(record.close)
            else:
                await self.driver.close(record.driver, limit)

    async def rollback(self, record: Record, limit: float | None) -> None:
        """Roll back as SQLAlchemy knows it, and then what it does not know of."""
        connection = record.dbapi_connection
        assert connection is not None, "the verdict has said that there is one"
        async with asyncio.timeout(limit):
            await greenlet_spawn(connection.rollback)
        if self.driver.verdict(record.driver, record.baseline) in _OPEN:
            await self.driver.rollback(record.driver, limit)

    async def send_reset(
        self, record: Record, _: object, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> Any:
        # asyncpg's dialect has a cache of its own; what is in it does not survive a reset.
        cache = getattr(record.dbapi_connection, "_prepared_statement_cache", None)
        if cache is not None:
            cache.clear()
        return await self.driver.send_reset(record.driver, record.baseline, memory, parts, limit)


_OPEN: Final = (connpool.Verdict.DIRTY, connpool.Verdict.FAILED)


def _never() -> Any:
    raise AssertionError("records are made by SQLAlchemy's creator")
