"""What a pool lends by.  The warm path stands in `Lease`: a borrow that needs no flow."""

from __future__ import annotations

import sys
from math import inf
from sys import _getframe
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Generic, NoReturn, TypeVar

from . import borrowers
from .adapter import Verdict
from .engine.operations import Ending
from .engine.records import Entry
from .errors import PoolMisuse
from .guard import Loan, guard, site
from .stats import Reason
from .threads import clock

if TYPE_CHECKING:
    from .pool import ConnectionPool

C = TypeVar("C")


def no_connection(block: str, acquire: str) -> property:
    """Return an attribute for what only connections have; whoever asks for it is told how to get one."""

    def refuse(_lease: object) -> NoReturn:
        raise AttributeError(
            f"a lease is no connection: write `{block} pool.connection() as conn:` and use conn, "
            f"or take a connection with {acquire}"
        )

    return property(refuse)


class Lease(Generic[C]):
    """A connection on loan, for one ``with`` block: what `ConnectionPool.connection` returns.

    Between the two comments stands all that happens when a connection is at hand and comes back clean.
    It takes no lock: two short critical sections per cycle cost seven eighths of the throughput of four
    threads, because a thread that loses the GIL inside one makes all others queue for it.  `core` tells
    why these steps, in this order, need none.  `take` and `give` as functions of their own would cost
    another quarter of the time.
    """

    __slots__ = ("_entry", "_pool", "_timeout")
    _ending: ClassVar[Ending] = "commit"
    _entry: Entry[C] | None
    _pool: ConnectionPool[C]
    _timeout: float | None  # not set: as the pool was told

    # -- warm path

    def __enter__(self) -> C:
        pool = self._pool
        if pool._waiters or self._entry is not None:  # nobody overtakes the queue
            return pool._enter(self, None)
        try:
            entry = self._entry = pool._idle.pop()
        except IndexError:
            return pool._enter(self, None)
        entry.lent_at = now = clock()
        if now < entry.check_at and not entry.doomed:
            slot = entry.slot
            frame = _getframe(1)
            slot.code = frame.f_code
            slot.lasti = frame.f_lasti
            slot.owner = borrowers.present()
            return entry.conn
        return pool._enter(self, entry)

    def __exit__(
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
                try:
                    if len(holds) >= entry.batch:
                        pool._core.fold(entry)
                    pool._idle.append(entry)  # publish ...
                    if (pool._waiters or entry.doomed) and pool._core.rematch(entry):  # ... then look
                        pool._follow_up()
                except BaseException:
                    # Struck between the two: whoever parked meanwhile must not sleep through it.
                    pool._core.rematch(entry)
                    raise
                return
        pool._exit(self, exc)

    # -- end of warm path

    def _note_caller(self) -> None:
        """Note the user's line, where it is one of ours that called `__enter__`."""
        assert self._entry is not None
        borrowers.note(self._entry.slot, _getframe(1))

    if not TYPE_CHECKING:
        # Not by __getattr__: it would take the shortcut to the slots away from the warm path.
        execute = cursor = commit = rollback = close = no_connection("with", "acquire()")


def _enter_by_flow(lease: Lease[C]) -> C:
    return lease._pool._enter(lease, None)


def _exit_by_flow(
    lease: Lease[C],
    exc_type: type[BaseException] | None,  # noqa: ARG001 -- the signature of __exit__
    exc: BaseException | None,
    traceback: TracebackType | None,  # noqa: ARG001 -- as above
) -> None:
    lease._pool._exit(lease, exc)


def _end_by_flow(turns: Turns[C], entry: Entry[C]) -> bool:  # noqa: ARG001 -- the signature of _end
    return False


def lock_leases() -> None:
    """Let every lease take the flows, whose steps run under the lock.

    For builds without a GIL, where the single operations of the warm path are not atomic.
    """
    Lease.__enter__ = _enter_by_flow  # type: ignore[method-assign] # that is the purpose
    Lease.__exit__ = _exit_by_flow  # type: ignore[method-assign] # that is the purpose
    Turns._end = _end_by_flow  # type: ignore[method-assign, assignment] # that is the purpose


class BareLease(Lease[C]):
    """The lease behind `acquire`: `release` never commits."""

    __slots__ = ()
    _ending: ClassVar[Ending] = "rollback"


class Turns(Lease[C]):
    """A lease for who borrows and gives back in turns: what `ConnectionPool.turns` returns.

    ``__enter__`` begins a turn and ``__exit__`` ends it, any number of times, each as warm as
    `ConnectionPool.connection`.  A turn never commits: what is left open is rolled back.
    """

    __slots__ = ()
    _ending: ClassVar[Ending] = "rollback"

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entry = self._entry
        if entry is not None and entry.spared and exc_type is None:
            verdict = entry.verdict
            if not verdict(entry.conn, entry.baseline) and self._end(entry):
                return
        super().__exit__(exc_type, exc, traceback)

    def _end(self, entry: Entry[C]) -> bool:
        """End a turn that is at rest and owes no reset as a lease does: the same steps in the same order."""
        pool = self._pool
        now = clock()
        check_at = now + pool._look_after_turns
        if check_at >= entry.warm_until:
            return False
        self._entry = None
        entry.spared = False
        entry.idle_since = now
        entry.check_at = check_at
        entry.slot.owner = None
        holds = entry.holds
        holds.append(now - entry.lent_at)
        try:
            if len(holds) >= entry.batch:
                pool._core.fold(entry)
            pool._idle.append(entry)  # publish ...
            if (pool._waiters or entry.doomed) and pool._core.rematch(entry):  # ... then look
                pool._follow_up()
        except BaseException:
            # Struck between the two: whoever parked meanwhile must not sleep through it.
            pool._core.rematch(entry)
            raise
        return True

    def end(self, *, spare: bool) -> None:
        """End a turn whose connection was just judged, and found `Verdict.CLEAN`.

        Args:
            spare: The session is as it was, and is owed no reset: see `spare_reset`.

        Raises:
            PoolMisuse: No turn lasts.
        """
        entry = self._entry or self._in_turn()
        entry.spared = spare
        if not (spare and self._end(entry)):
            super().__exit__(None, None, None)

    @property
    def lasts(self) -> bool:
        """Whether a turn has begun and has not ended."""
        return self._entry is not None

    def verdict(self) -> Verdict:
        """Judge the connection by local state alone, as its return would.

        Raises:
            PoolMisuse: No turn lasts.
        """
        entry = self._entry or self._in_turn()
        judge = entry.verdict
        return judge(entry.conn, entry.baseline)  # type: ignore[return-value] # the members of Verdict are ints

    def sees_transactions(self) -> bool:
        """Tell whether `verdict` can tell an open transaction from none, for this driver.

        Raises:
            PoolMisuse: No turn lasts.
        """
        self._in_turn()
        adapter = self._pool._flows.adapter
        return adapter is not None and adapter.sees_transactions

    def note_caller(self) -> None:
        """Note the user's line as the one that holds the connection: for turns that last.

        Raises:
            PoolMisuse: No turn lasts.
        """
        self._in_turn()
        self._note_caller()

    def discard(self) -> None:
        """Have the connection closed at the end of the turn: its session must serve nobody else.

        Raises:
            PoolMisuse: No turn lasts.
        """
        entry = self._in_turn()
        entry.doomed = entry.doomed or Reason.RESET
        entry.warm_until = -inf  # sends its release to the flows

    def count_pin(self) -> None:
        """Count this turn among `PoolStats.pins`: its session stays with its user."""
        self._pool._core.pinned()

    def spare_reset(self) -> None:
        """Say that this turn has left the session as it was: ``reset="tracked"`` sends nothing then.

        Raises:
            PoolMisuse: No turn lasts.
        """
        self._in_turn().spared = True

    def _in_turn(self) -> Entry[C]:
        entry = self._entry
        if entry is None:
            raise PoolMisuse(f"no turn lasts (pool {self._pool.name!r})")
        return entry


if not getattr(sys, "_is_gil_enabled", lambda: True)():
    lock_leases()


class Transaction(Lease[C]):
    """A lease whose block is one transaction, on autocommit connections too."""

    __slots__ = ()

    def __enter__(self) -> C:
        conn = super().__enter__()
        self._note_caller()
        try:
            self._pool._begin(self)
        except BaseException as exc:
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise
        return conn


class GuardedLease(Lease[C]):
    """A lease that lends a guarded connection, and ends the loan with the block."""

    __slots__ = ("_loan",)
    _loan: Loan

    def __enter__(self) -> C:
        if self._entry is None:
            self._loan = Loan(self._pool.name)
        conn = super().__enter__()
        self._note_caller()
        return guard(conn, self._loan)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._entry is not None:
            in_use = self._loan.end(site())
            if in_use is not None or self._loan.unfinished() is not None:
                self._entry.doomed = self._entry.doomed or Reason.BROKEN
                self._entry.warm_until = -inf  # sends its release to the flows
            if in_use is not None and exc is None:
                # Nothing is committed: somebody may be in the middle of a statement.
                misuse = self._pool._misuse(in_use)
                super().__exit__(PoolMisuse, misuse, None)
                raise misuse
        super().__exit__(exc_type, exc, traceback)


class GuardedBareLease(GuardedLease[C], BareLease[C]):
    """The lease behind `acquire`, guarded."""

    __slots__ = ()


class GuardedTransaction(GuardedLease[C], Transaction[C]):
    """A guarded lease whose block is one transaction."""

    __slots__ = ()
