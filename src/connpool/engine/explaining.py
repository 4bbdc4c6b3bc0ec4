"""What is said of a pool: errors that explain themselves, and events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Final, Generic, NoReturn, TypeVar, cast

from ..adapter import Adapter, Fault
from ..behind import PRESETS, strayed
from ..errors import (
    Holder,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from ..events import ERROR, INFO, WARNING, Event, Throttle
from ..stats import PoolStats
from . import diagnosis
from .core import Core
from .operations import Flow, Tell
from .records import People, Refusal, Site, Slot, Waiter

C = TypeVar("C")

_SHARED: Final = 0.1
"""Seconds for which a diagnosis is good enough for others ..."""

_ALONE: Final = 10
"""... after so many have made their own."""

_LINES: Final = 100
"""Pairs of lines of which is told that one borrows inside the other."""


class Explaining(Generic[C]):
    """A pool's errors, and what its operator is told.  The first of the chapters that `Flows` is made of."""

    def __init__(self, core: Core[C], name: str, clock: Callable[[], float], people: People) -> None:
        self.core = core
        self.name = name
        self.adapter: Adapter[C] | None = None
        self._signature = f" (pool {name!r})"
        self._clock = clock
        self._people = people
        self._throttle = Throttle()
        self._told_blocking = False
        self._told_strayed = False
        self._diagnosis: tuple[PoolStats, tuple[Holder, ...], str] | None = None
        self._diagnoses = 0  # made since ...
        self._diagnosed_at = -inf

    # -- errors --------------------------------------------------------------------------------------

    def _error(self, kind: type[PoolError], text: str, more: str = "") -> PoolError:
        """Make an error, of the class that is the driver's OperationalError too if there is one."""
        if self.adapter is not None:
            kind = self.adapter.errors.get(kind, kind)
        return kind(text + self._signature + more)

    def _refuse(self, outcome: object, waiter: Waiter, waited: float, timeout: float | None) -> NoReturn:
        """Raise the error that explains an outcome without an entry."""
        core = self.core
        if isinstance(outcome, PoolError):  # each caller gets its own: a traceback belongs to one thread
            raise type(outcome)(*outcome.args) from outcome
        if isinstance(outcome, BaseException):
            core.refused()
            text = f"cannot connect{self._because(outcome)}"
            raise self._explained(PoolUnavailable, text, waiter) from outcome
        if outcome is Refusal.CLOSED:
            raise self._explained(PoolClosed, "no connection: the pool is closed", waiter)
        if outcome is Refusal.OVERLOADED:
            text = f"no connection: max_waiting={core.options.max_waiting} callers wait; {core.brief()}"
            raise self._explained(PoolOverloaded, text, waiter)
        error = core.last_error
        if core.available() or core.suspended or timeout == 0:
            text = f"no connection {_within(timeout, waited)}: {core.brief()}{self._because(error)}"
            raise self._explained(PoolTimeout, text, waiter) from error
        doing = "" if error else f", dialling for {waited:.1f} s"
        text = f"no connection {_within(timeout, waited)}: none is open{doing}{self._because(error)}"
        raise self._explained(PoolUnavailable, text, waiter) from error

    def _because(self, error: BaseException | None) -> str:
        """Return the last connect error as a part of a message; empty if there is none."""
        if error is None:
            return ""
        core = self.core
        age = self._clock() - core.failed_at if error is core.last_error else 0.0
        return f"; last connect error{f' {age:.2g} s ago' if age >= 1 else ''}: {self._said(error)}"

    def _said(self, error: BaseException) -> str:
        """Return the first line of what the driver said; the rest is in the cause."""
        # An error of ours, such as a refused standby's, names the pool; so will the one that this is for.
        first = str(error).strip().partition("\n")[0].removesuffix(self._signature).strip()
        return type(error).__name__ + (f": {first}" if first else "")

    def _explained(
        self,
        kind: type[PoolError],
        text: str,
        waiter: Waiter,
        found: tuple[PoolStats, tuple[Holder, ...], str] | None = None,
    ) -> PoolError:
        """Make an error that says who has the connections, and what that means."""
        now = self._clock()
        if found is None:
            # Where many fail at once, they share what was found for the first of them.
            if now - self._diagnosed_at >= _SHARED:
                self._diagnosed_at, self._diagnoses = now, 0
            self._diagnoses += 1
            found = self._diagnosis
            if found is None or self._diagnoses <= _ALONE:
                stats, holders = self._snapshot(), self.holders(waiter)
                suspended, fault = self.core.suspended, self.core.last_fault
                found = (stats, holders, diagnosis.hint(stats, holders, suspended=suspended, fault=fault))
                self._diagnosis = found
        stats, holders, hint = found
        error = self._error(kind, text, diagnosis.described(holders) + (f"\n{hint}" if hint else ""))
        error.stats, error.holders, error.hint, error.waited = stats, holders, hint, now - waiter.since
        return error

    # -- who has what --------------------------------------------------------------------------------

    def _where(self, site: Site | None) -> str:
        return "somebody" if site is None else self._people.where(site)

    def holders(self, waiter: Waiter | None = None) -> tuple[Holder, ...]:
        """Return who has the connections; *waiter* is one who asks, and may be one of them."""
        people, now = self._people, self._clock()
        asked = self.core.asked()
        if waiter is not None:
            asked[waiter.owner] = waiter.site
        found = []
        for borrow in self.core.borrows():
            name = people.name(borrow.owner)
            waits = borrow.owner in asked and borrow.is_in(people)
            found.append(
                Holder(
                    now - borrow.since,
                    name or f"a {people.kind}",
                    self._where(borrow.site),
                    self._where(asked[borrow.owner]) if waits else None,
                    name is None,
                    partial(people.stack, borrow.owner),
                )
            )
        return tuple(found)

    def _snapshot(self) -> PoolStats:
        return self.core.snapshot(self.name, self._clock())

    def _tell_of_blocking(self) -> Flow[None]:
        """Tell, once, that others are held up who do not wait."""
        self._told_blocking = True
        site = self._where(self._people.here())
        yield from self.tell(
            "blocks_event_loop",
            f"{site} had to wait for a connection in a thread that runs an event loop: all its tasks "
            "wait with it; use AsyncConnectionPool, or a thread",
            site=site,
        )

    def _look_for_deadlock(self, waiter: Waiter) -> Flow[None]:
        """Raise if waiting is in vain, because everything is lent to those who wait."""
        core, people = self.core, self._people
        borrows = core.standoff(waiter)
        if not borrows or not all(borrow.is_in(people) for borrow in borrows):
            return
        holders = self.holders(waiter)
        if core.deadlocked(waiter) is not Refusal.LEFT:
            return  # settled meanwhile
        text = f"all {len(borrows)} connections are held by those who wait for another one"
        yield from self.tell(
            "deadlock", f"{text}:{diagnosis.in_one_line(holders)}", ERROR, sites=[h.site for h in holders]
        )
        hint = "borrow one connection at a time, pass it on, or raise max_size above the number of borrowers"
        raise self._explained(PoolDeadlock, text, waiter, (self._snapshot(), holders, hint))

    def _look_for_nesting(self, waiter: Waiter) -> Flow[None]:
        """Tell of a borrower who asks for a second connection while he holds one, or refuse it."""
        core, people = self.core, self._people
        outer = next((held for held in core.held_by(waiter.owner) if held.is_in(people)), None)
        if outer is None:
            return
        site, before = self._where(waiter.site), self._where(outer.site)
        text = f"{site} asks for a second connection while {before} holds one"
        if core.options.nested == "forbid":
            raise self._error(PoolMisuse, f"{text}, and nested='forbid'")
        lines = (outer.site, waiter.site)
        if lines not in core.nestings and len(core.nestings) < _LINES:
            core.nestings.add(lines)
            yield from self.tell(
                "nested", f"{text}: enough such borrowers at a time would deadlock", site=site, outer=before
            )

    # -- events --------------------------------------------------------------------------------------

    def tell(self, name: str, text: str, level: int = WARNING, **fields: object) -> Flow[None]:
        """Tell the operator, unless he was told too often of the same."""
        # Each leak has a line of its own, and costs a dial, which keeps them few.
        left_out = 0 if name == "leak" else self._throttle.passes(name, self._clock())
        if left_out is None:
            return
        if left_out:
            text, fields["left_out"] = f"{text} (and {left_out} such events before)", left_out
        yield Tell(Event(name, self.name, f"pool {self.name!r}: {text}", level, fields))

    def _tell_notes(self) -> Flow[None]:
        """Tell what transitions have noted."""
        core = self.core
        while True:
            try:
                name, what = core.notes.popleft()
            except IndexError:
                return
            if name == "dial_failed":
                assert isinstance(what, BaseException)
                fault = core.last_fault or Fault.ORDINARY
                text = f"a connection could not be opened: {self._said(what)}"
                yield from self.tell(name, text, error=type(what).__name__, fault=fault.value)
            elif name == "dial_recovered":
                seconds = self._clock() - core.failing_since
                text = f"connections can be opened again, after {what} failures in {seconds:.2g} s"
                yield from self.tell(name, text, INFO, failures=what, seconds=seconds)
            elif name == "session_lost":
                text = f"a session was lost ({what}): each idle connection is looked at before it is lent"
                yield from self.tell(name, text, reason=str(what))
            else:
                where = self._where(cast("Site", what))
                text = f"a connection borrowed by {where} was lost without being given back: it is closed"
                yield from self.tell(name, text, site=where)

    def _tell_of_return(self, slot: Slot, held: float) -> Flow[None]:
        """Tell that a connection is back of which was told that it was held for long."""
        site = self._where(None if slot.code is None else (slot.code, slot.lasti))
        text = f"{site} has given its connection back after {held:.3g} s"
        yield from self.tell("long_hold_over", text, INFO, site=site, held=held)

    def _look_for_strays(self, error: Exception) -> Flow[None]:
        """Tell, once, of prepared statements that met another session: that is what poolers do to them."""
        found = None if self._told_strayed else strayed(error)
        if found is None:
            return
        self._told_strayed = True
        behind = self.core.options.behind
        hint = (
            "in front of the server there is probably a pooler in transaction mode, such as PgBouncer: say "
            "behind='pgbouncer'; or somebody has said DEALLOCATE or DISCARD ALL himself"
            if behind is None
            else f"behind {PRESETS[behind].title} nothing can be prepared, by PREPARE or by the driver"
        )
        sqlstate, meaning = found
        text = f"{meaning} (SQLSTATE {sqlstate}): {hint}"
        error.add_note(text)
        yield from self.tell("stray_statement", text, sqlstate=sqlstate, hint=hint)

    def _look_at_borrowers(self) -> Flow[None]:
        """Tell of what is held for long, and of borrowers that have ended."""
        core, now, warn_after = self.core, self._clock(), self.core.options.warn_after
        if warn_after is None:
            return
        for borrow in core.overdue(now - warn_after):
            site, held = self._where(borrow.site), now - borrow.since
            who = self._people.name(borrow.owner) or f"a {self._people.kind} that has ended"
            text = f"{site} in {who} has held a connection for {held:.3g} s"
            yield from self.tell("long_hold", text, site=site, held=held, holder=who)
        for borrow in core.borrows():
            if not borrow.slot.orphaned and self._people.name(borrow.owner) is None:
                borrow.slot.orphaned = True
                site, held = self._where(borrow.site), now - borrow.since
                kind = self._people.kind
                text = f"the {kind} that borrowed at {site} ended without giving back; it had {held:.3g} s"
                yield from self.tell("thread_ended", text, site=site, held=held)


def _within(timeout: float | None, waited: float) -> str:
    """Say how long was waited: what was asked for, unless something ended it sooner."""
    if timeout == 0 or (timeout is not None and waited < min(0.001, timeout / 2)):
        return "at once"
    return f"within {waited if timeout is None or waited < 0.9 * timeout else timeout:.3g} s"
