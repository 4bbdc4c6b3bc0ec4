"""The return path: verdict, commit or rollback, reset, age, then the next waiter or idle."""

from __future__ import annotations

from math import inf
from typing import Final, TypeVar

from ..adapter import Adapter, Fault, Verdict
from ..errors import PoolError, PoolMisuse, PoolTimeout
from ..reset import Part, Steps
from ..stats import Reason
from .freshness import UNFIT
from .opening import Opening
from .operations import Call, Ending, Flow, Step
from .records import Entry, Slot

C = TypeVar("C")

_RESET_FAILED: Final = (Reason.DEAD, Reason.RESET_FAILED, Reason.HOOK, Reason.BROKEN)
"""Why a connection does not come through its reset."""

_NOT_OURS: Final = (Reason.DETACHED, Reason.INHERITED)

_OPEN: Final = (Verdict.DIRTY, Verdict.FAILED)

_CUT_SHORT: Final = (
    "the block ended in the middle of an exchange with the server (a result, COPY or pipeline left half "
    "done, or a connection that was lost): what the block itself had not committed is lost"
)


class Returning(Opening[C]):
    """How a pool takes connections back."""

    def release(self, entry: Entry[C], error: BaseException | None, ending: Ending) -> Flow[None]:
        """Take an entry back: verdict, commit or rollback, age, then the next waiter or idle.

        *error* is the exception that ended the borrower's block; nothing of ours replaces it.
        """
        core, adapter = self.core, self._adapter()
        if entry.doomed in _NOT_OURS:
            return
        held = self._clock() - entry.lent_at
        failure: Exception | None = None
        try:
            verdict = adapter.verdict(entry.conn, entry.baseline)
            blamed = error
            if ending == "commit" and error is None:
                if verdict in _OPEN:
                    sent = self._clock()
                    failure = yield from self._commit(entry.slot, entry.conn, adapter, verdict)
                    if failure is None:
                        self._prove(entry, sent)
                        verdict = self._settled(entry, adapter)
                    elif isinstance(failure, PoolTimeout):
                        verdict = Verdict.BROKEN  # it is being cut, whatever it looks like
                    else:  # the borrower's; the connection is still ours
                        verdict = adapter.verdict(entry.conn, entry.baseline)
                elif verdict == Verdict.BROKEN:
                    failure = self._error(PoolMisuse, _CUT_SHORT)
                blamed = failure
            complaint = None
            reason = yield from self._blame(entry, adapter, verdict, blamed)
            if reason is None:
                began = self._clock()
                steps = () if entry.spared else self._steps or ()
                entry.spared = False
                reason, complaint = yield from self._reset(entry, adapter, verdict, steps, blamed)
                if verdict < Verdict.BROKEN and (steps or verdict != Verdict.CLEAN):
                    failed = reason in _RESET_FAILED
                    core.was_reset(self._clock() - began, steps=bool(steps), failed=failed)
        except BaseException:
            entry.holds.append(held)
            core.retire(entry, Reason.BROKEN, self._clock())
            raise
        entry.holds.append(held)  # it counts as released from here on, no sooner
        if reason is None and len(entry.holds) >= entry.batch:
            core.fold(entry)
            reason = entry.doomed
        slot = entry.slot
        overdue, slot.overdue, slot.orphaned = slot.overdue, False, False
        slot.owner = None
        if reason is None:
            core.give(entry)
        else:
            core.retire(entry, reason, self._clock())
        del entry
        if core.owes():
            yield from self.follow_up()
        if overdue and held >= (core.options.warn_after or inf):
            yield from self._tell_of_return(slot, held)
        if complaint is not None:
            if blamed is None:
                failure = complaint
            else:
                blamed.add_note(f"and when the connection was given back: {complaint!r}")
        if failure is not None:
            try:
                raise failure
            finally:  # else the traceback and this frame would keep each other alive
                failure = complaint = blamed = None

    def begin(self, slot: Slot, conn: C) -> Flow[None]:
        """Open a transaction for a borrower, within `reset_timeout`."""
        timeout = self.core.options.reset_timeout
        until = None if timeout is None else self._clock() + timeout
        call = self._call(Step.BEGIN, self._adapter().begin, conn)
        late = f"no answer to BEGIN within reset_timeout={timeout} s"
        failure = yield from self._in_time(call, until, slot, late)
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # else the traceback and this frame would keep each other alive

    def _commit(self, slot: Slot, conn: C, adapter: Adapter[C], verdict: Verdict) -> Flow[Exception | None]:
        """Commit what the borrower left open, or refuse what cannot be committed; return the error.

        It gets no entry, and its error is not raised through a frame that has one: the error goes to the
        borrower, and its traceback would own the entry.
        """
        if verdict == Verdict.FAILED:
            return self._error(
                PoolMisuse,
                "the transaction has failed and was rolled back, but its block ended without an exception: "
                "a statement's error was caught inside it",
            )
        timeout = self.core.options.commit_timeout
        until = None if timeout is None else self._clock() + timeout
        late = (
            f"no answer to COMMIT within commit_timeout={timeout} s: whether the server has committed is not "
            "known; the connection is closed"
        )
        return (yield from self._in_time(self._call(Step.COMMIT, adapter.commit, conn), until, slot, late))

    def _blame(
        self, entry: Entry[C], adapter: Adapter[C], verdict: Verdict, error: BaseException | None
    ) -> Flow[Reason | None]:
        """Return why a connection is to be discarded for the error that its borrower met, or ``None``."""
        if not isinstance(error, Exception) or isinstance(error, PoolError):
            return None
        yield from self._look_for_strays(error)
        fault = self._fault(error, adapter)
        if fault is Fault.DEAD and verdict >= Verdict.BROKEN:
            return Reason.DEAD
        if fault is not Fault.DEMOTED or verdict >= Verdict.BROKEN:
            return None
        if self.core.options.behind is not None:
            return None  # whether another session takes writes is not this connection's to know
        # The same errors come from a transaction that its borrower made read-only.
        try:
            limit = self.core.options.reset_timeout
            writable = yield Call(Step.WRITABLE, adapter.writable, entry.conn, limit)
        except Exception:
            return Reason.DEAD  # counted
        return None if writable else Reason.DEMOTED

    def _reset(
        self,
        entry: Entry[C],
        adapter: Adapter[C],
        verdict: Verdict,
        steps: Steps,
        error: BaseException | None,
    ) -> Flow[tuple[Reason | None, Exception | None]]:
        """Make an entry fit for the next borrower.

        Return why that failed, or ``None``; and what a function of the user's raised, or ``None``.
        """
        options = self.core.options
        if verdict >= Verdict.BROKEN:
            return Reason.SPENT if verdict == Verdict.SPENT else Reason.BROKEN, None
        unseen = verdict == Verdict.DIRTY and not adapter.sees_transactions
        if unseen and error is None and self._steps is None:
            verdict = Verdict.CLEAN  # nothing will be sent: its user is taken at his word
        timeout = options.reset_timeout
        until = None if timeout is None else self._clock() + timeout
        # Parts that come first end the transaction themselves, in the same message.
        if options.on_release or not steps or not isinstance(steps[0], tuple):
            reason = yield from self._tidy(entry, adapter, verdict, until)
            if reason is not None:
                return reason, None
        failure = yield from self._hook(entry, Step.ON_RELEASE, options.on_release, until)
        if failure is not None:
            return Reason.HOOK, failure
        if entry.doomed:
            return entry.doomed, None
        if self._clock() >= entry.expires:
            return Reason.LIFETIME, None
        for step in steps:
            if isinstance(step, tuple):
                deferred = step is steps[-1] and options.on_connect is None
                reason = yield from self._reset_parts(entry, adapter, step, until, deferred=deferred)
                if reason is None and not deferred:
                    failure = yield from self._hook(entry, Step.ON_CONNECT, options.on_connect, until)
                    reason = None if failure is None else Reason.HOOK
            else:
                failure = yield from self._hook(entry, Step.RESET, step, until)
                reason = None if failure is None else Reason.RESET_FAILED
                if isinstance(failure, PoolTimeout) or (failure and self._is_dead(failure, adapter)):
                    failure = None  # the connection's fault, not the function's: counted
            if reason is not None:
                return reason, failure
        if entry.pending is None and (steps or options.on_release):
            reason = yield from self._tidy(entry, adapter, self._settled(entry, adapter), until)
            if reason is not None:
                return reason, None
        self._rest(entry, self._clock())
        return None, None

    def _tidy(
        self, entry: Entry[C], adapter: Adapter[C], verdict: Verdict, until: float | None
    ) -> Flow[Reason | None]:
        """End an open transaction, and then put the driver's settings back; return why that failed.

        Never the other way round: to switch autocommit on would commit.
        """
        if self._steps is None:  # "none": nothing is sent
            return None if verdict == Verdict.CLEAN else Reason.RESET
        conn = entry.conn
        try:
            if verdict in _OPEN:
                self.core.rolled_back()
                sent = self._clock()
                yield Call(Step.ROLLBACK, adapter.rollback, conn, self._left(until))
                self._prove(entry, sent)
                verdict = self._settled(entry, adapter)
            if verdict == Verdict.ALTERED or not adapter.sees_transactions:
                yield Call(Step.RESTORE, adapter.restore, conn, entry.baseline, self._left(until))
                verdict = self._settled(entry, adapter)
        except Exception as exc:  # counted; the borrower is done and owes nothing
            return Reason.DEAD if self._is_dead(exc, adapter) else Reason.RESET_FAILED
        return UNFIT.get(verdict, Reason.BROKEN)

    def _reset_parts(
        self,
        entry: Entry[C],
        adapter: Adapter[C],
        parts: tuple[Part, ...],
        until: float | None,
        *,
        deferred: bool,
    ) -> Flow[Reason | None]:
        """Do the parts of a policy, or, *deferred*, only send them; return why that failed."""
        conn = entry.conn
        try:
            token = yield Call(
                Step.SEND_RESET,
                adapter.send_reset,
                conn,
                entry.baseline,
                entry.memory,
                parts,
                self._left(until),
            )
            if token is not None:
                if deferred:
                    entry.pending = token  # the next borrower reads the answer; it has come by then
                    return None
                yield Call(Step.READ_RESET, adapter.read_reset, conn, token, self._left(until))
        except Exception as exc:
            return Reason.DEAD if self._is_dead(exc, adapter) else Reason.RESET_FAILED
        return UNFIT.get(self._settled(entry, adapter), Reason.BROKEN)
