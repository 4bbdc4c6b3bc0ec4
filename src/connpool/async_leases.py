"""What a pool lends to tasks by: the twin of `leases`."""

from __future__ import annotations

import sys
from asyncio import _get_running_loop
from sys import _getframe
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar
from weakref import ref

from . import borrowers
from .engine.operations import Ending
from .engine.records import Entry
from .leases import no_connection
from .options import Default
from .tasks import NO_TASK, task_of
from .threads import clock

if TYPE_CHECKING:
    from .async_pool import AsyncConnectionPool

C = TypeVar("C")


class Lease(Generic[C]):
    """A connection on loan, for one ``async with`` block: what `AsyncConnectionPool.connection` returns.

    Between the two comments stands all that happens when a connection is at hand and comes back clean.
    Nothing there is awaited, so no task comes in between; the order of steps is that of `leases.Lease` all
    the same, because another thread may evict or resize.
    """

    __slots__ = ("_entry", "_pool", "_timeout")
    _ending: ClassVar[Ending] = "commit"
    _entry: Entry[C] | None
    _pool: AsyncConnectionPool[C]
    _timeout: float | Default | None

    # -- warm path

    async def __aenter__(self) -> C:
        pool = self._pool
        # Nobody overtakes the queue; and what is idle belongs to the loop that opened it.
        if pool._waiters or self._entry is not None or _get_running_loop() is not pool._loop:
            return await pool._enter(self, None)
        try:
            entry = self._entry = pool._idle.pop()
        except IndexError:
            return await pool._enter(self, None)
        entry.lent_at = now = clock()
        if now < entry.check_at and not entry.doomed:
            slot = entry.slot
            frame = _getframe(1)
            slot.code = frame.f_code
            slot.lasti = frame.f_lasti
            task = task_of(pool._loop)
            slot.owner = owner = NO_TASK if task is None else ref(task)
            hash(owner)  # kept in it: of a task that is gone it could not be asked any more
            return entry.conn
        return await pool._enter(self, entry)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entry = self._entry
        pool = self._pool
        if exc_type is None and entry is not None:
            verdict = entry.verdict  # looked up apart: as a method call it would take the long way
            now = clock()
            check_at = now + pool._look_after
            if not verdict(entry.conn, entry.baseline) and check_at < entry.warm_until:
                self._entry = None
                entry.idle_since = now
                entry.check_at = check_at
                entry.slot.owner = None
                holds = entry.holds
                holds.append(now - entry.lent_at)
                if len(holds) >= entry.batch:
                    pool._core.fold(entry)
                pool._idle.append(entry)  # publish ...
                if (pool._waiters or entry.doomed) and pool._core.rematch(entry):  # ... then look
                    pool._runner.follow_up()
                return
        await pool._exit(self, exc)

    # -- end of warm path

    def _note_caller(self) -> None:
        """Note the user's line, where it is one of ours that awaits `__aenter__`."""
        assert self._entry is not None
        borrowers.note(self._entry.slot, _getframe(1))

    if not TYPE_CHECKING:
        # Not by __getattr__: it would take the shortcut to the slots away from the warm path.
        execute = cursor = commit = rollback = close = no_connection("async with", "await acquire()")


async def _enter_by_flow(lease: Lease[C]) -> C:
    return await lease._pool._enter(lease, None)


async def _exit_by_flow(
    lease: Lease[C],
    exc_type: type[BaseException] | None,  # noqa: ARG001 -- the signature of __aexit__
    exc: BaseException | None,
    traceback: TracebackType | None,  # noqa: ARG001 -- as above
) -> None:
    await lease._pool._exit(lease, exc)


def lock_leases() -> None:
    """Let every lease take the flows, for builds without a GIL: as `leases.lock_leases`."""
    Lease.__aenter__ = _enter_by_flow  # type: ignore[method-assign, assignment] # that is the purpose
    Lease.__aexit__ = _exit_by_flow  # type: ignore[method-assign, assignment] # that is the purpose


if not getattr(sys, "_is_gil_enabled", lambda: True)():
    lock_leases()


class BareLease(Lease[C]):
    """The lease behind `acquire`: `release` never commits."""

    __slots__ = ()
    _ending: ClassVar[Ending] = "rollback"


class Transaction(Lease[C]):
    """A lease whose block is one transaction, on autocommit connections too."""

    __slots__ = ()

    async def __aenter__(self) -> C:
        conn = await super().__aenter__()
        self._note_caller()
        try:
            await self._pool._begin(self)
        except BaseException as exc:
            await self.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        return conn
