"""Whether a connection may be lent: the freshness ladder, and what is known of a server."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final, TypeVar

from ..adapter import Adapter, Verdict
from ..stats import Reason
from . import upkeep
from .calling import Calling
from .core import Core
from .operations import Call, Flow, Step
from .records import Entry, People

C = TypeVar("C")

UNFIT: Final[dict[Verdict, Reason | None]] = {Verdict.CLEAN: None, Verdict.SPENT: Reason.RESET}
"""Why a connection that should be clean is not; what is not here is BROKEN."""


class Freshness(Calling[C]):
    """How a pool knows that a connection is alive."""

    def __init__(
        self,
        core: Core[C],
        name: str,
        clock: Callable[[], float],
        people: People,
        slept: Callable[[], float],
    ) -> None:
        super().__init__(core, name, clock, people)
        self._slept = slept
        self._slept_before = slept()
        options = core.options
        self.look_after = upkeep.first_look(options.probe_after, options.ping_after, options.max_lifetime)

    def _is_fit(self, entry: Entry[C], now: float) -> bool:
        """Tell whether an entry may be lent without a closer look, as the warm path would lend it."""
        self._wake_up()
        known = now < entry.check_at and now < entry.warm_until
        return known and now >= self.core.alarmed_until and not entry.doomed

    def _check(self, entry: Entry[C], deadline: float | None) -> Flow[Reason | None]:
        """Return why an entry must not be lent, or ``None``; the cheapest question comes first."""
        if entry.doomed:
            return entry.doomed
        if self._clock() >= entry.expires:
            return Reason.LIFETIME
        adapter = self._adapter()
        collected = entry.pending is not None
        if collected:  # before any probe: the answer makes the socket readable
            reason = yield from self._collect(entry, adapter, deadline)
            if reason is not None:
                return reason
        now = self._clock()
        core, options = self.core, self.core.options
        idle = now - entry.heard_at()
        if idle >= entry.idle_limit:
            return Reason.SERVER_LIMIT
        suspect = entry.proven_at < core.suspect_at
        fresh = idle < self._quiet(entry) and not suspect
        # An alarm is not about connections that were opened since and never lent: a driver whose new
        # sockets are readable would never lend anything again.
        alarmed = now < core.alarmed_until and entry.lent_at
        # The answer to a reset is as old as the connection is idle; a look tells whether it lives still.
        if fresh and not alarmed and not collected:
            return None
        left = None if deadline is None else deadline - now
        limit = upkeep.ping_limit(left, options.reset_timeout)
        try:
            look = options.probe_after is not None and (fresh or suspect or idle >= options.probe_after)
            if look and not adapter.alive(entry.conn):
                return Reason.DEAD
            ask = options.ping_after is not None and (suspect or idle >= options.ping_after)
            # With no time left the probe has to do: to fail beside an idle connection would help nobody.
            asked = ask and (limit is None or limit > 0)
            if asked:
                yield Call(Step.PING, adapter.ping, entry.conn, limit)
        except Exception:
            # The count of discards tells; the caller gets another connection.
            return self._silence(now, limit)
        if asked or (suspect and not ask):
            self._prove(entry, now)
        return None

    def _collect(self, entry: Entry[C], adapter: Adapter[C], deadline: float | None) -> Flow[Reason | None]:
        """Read the answer to the reset that was sent when the entry came back."""
        now = self._clock()
        limit = upkeep.answer_limit(
            None if deadline is None else deadline - now, self.core.options.reset_timeout
        )
        try:
            yield Call(Step.READ_RESET, adapter.read_reset, entry.conn, entry.pending, limit)
        except Exception as exc:
            return self._silence(now, limit) if self._is_dead(exc, adapter) else Reason.RESET_FAILED
        entry.pending = None
        self._prove(entry, entry.idle_since)  # when it was sent
        return UNFIT.get(self._settled(entry, adapter), Reason.BROKEN)

    def _silence(self, since: float, limit: float | None) -> Reason:
        """Return what a ping proves that failed: its server was not heard of since an instant."""
        if limit is None or limit <= 0 or self._clock() - since < limit:
            return Reason.DEAD  # said so, or the probe did
        # Silence is no proof if there was less time than a healthy server may take.
        return Reason.SILENT if limit >= upkeep.PATIENCE else Reason.UNANSWERED

    def _wake_up(self) -> None:
        """Trust no connection that the machine was suspended with: its server has gone on without it."""
        before, self._slept_before = self._slept_before, self._slept()
        if self._slept_before - before >= upkeep.NAP:
            self.core.suspect(self._clock())

    def _prove(self, entry: Entry[C], instant: float) -> None:
        """Note that the server has answered to something that was sent at an instant."""
        entry.proven_at = instant
        entry.warm_until = entry.expires  # publish ...
        # ... then look.  The warm path knows one limit of idleness; a shorter one is the flows'.
        if instant < self.core.suspect_at or entry.idle_limit < self.look_after:
            entry.warm_until = -inf

    def _rest(self, entry: Entry[C], now: float) -> None:
        """Note that an entry is idle from *now* on."""
        entry.idle_since = now
        self._prove(entry, entry.proven_at)
        if entry.pending is not None or entry.warm_until < now or self.core.options.on_acquire is not None:
            entry.check_at = -inf  # whoever takes it has something to do first
        else:
            entry.check_at = min(now + self._quiet(entry), entry.expires, now + entry.idle_limit)

    def _quiet(self, entry: Entry[C]) -> float:
        """Return the seconds idle for which an entry is lent without a closer look."""
        return self.look_after if entry.lent_at else max(self.look_after, upkeep.NEWBORN)
