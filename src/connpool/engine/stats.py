"""Figures: histograms of fixed size and known error, counters, and the snapshot that shows them.

Nothing here takes a lock: the core folds and copies under its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from math import ceil, sqrt

GROWTH = 1.1
"""Each bucket reaches 10 % further than the one before; its middle is at most 4.9 % off any value in it."""

_FIRST_EDGE = 1e-6
_EDGES = tuple(_FIRST_EDGE * GROWTH**step for step in range(242))
"""The upper bounds of all buckets but the last: from a microsecond to almost three hours."""


class Reason(StrEnum):
    """Why a connection was discarded."""

    LIFETIME = "lifetime"
    IDLE = "idle"
    USES = "uses"
    DEAD = "dead"
    BROKEN = "broken"
    RESET_FAILED = "reset_failed"
    EVICTED = "evicted"
    SURPLUS = "surplus"
    DETACHED = "detached"
    LOST = "lost"
    CLOSED = "closed"


class Histogram:
    """Counts of durations in buckets that grow by `GROWTH`: fixed memory, error below 5 %."""

    __slots__ = ("_counts", "count", "max", "total")

    def __init__(self) -> None:
        self._counts = [0] * (len(_EDGES) + 1)
        self.count = 0
        self.total = 0.0
        self.max = 0.0

    def fold(self, durations: list[float]) -> None:
        """Add *durations*, in seconds; sorts the list it is given.

        Sorted, whole runs fall into one bucket: about 30 ns for each duration instead of 120.
        """
        if not durations:
            return
        durations.sort()
        start, end = 0, len(durations)
        while start < end:
            bucket = bisect_right(_EDGES, durations[start])
            stop = bisect_left(durations, _EDGES[bucket], start) if bucket < len(_EDGES) else end
            self._counts[bucket] += stop - start
            start = stop
        self.count += end
        self.total += sum(durations)
        self.max = max(self.max, durations[-1])

    def copy(self) -> Histogram:
        """Return an independent copy."""
        twin = Histogram()
        twin._counts = self._counts.copy()
        twin.count, twin.total, twin.max = self.count, self.total, self.max
        return twin

    def percentile(self, percent: float) -> float:
        """Return the duration in seconds that *percent* of all do not exceed; 0.0 if there is none."""
        if not self.count:
            return 0.0
        rank = max(1, ceil(self.count * percent / 100))
        bucket = bisect_left(list(accumulate(self._counts)), rank)
        if bucket == 0:
            return min(_FIRST_EDGE, self.max)
        return min(_EDGES[bucket - 1] * sqrt(GROWTH), self.max)

    def __repr__(self) -> str:
        figures = ", ".join(f"p{p:g}={self.percentile(p):.2g}" for p in (50, 90, 99))
        return f"<Histogram of {self.count}: {figures}, max={self.max:.2g} s>"


@dataclass(slots=True)
class Totals:
    """Counters of rare events; each is changed under the core's lock."""

    dials: int = 0
    dial_failures: int = 0
    opened: int = 0
    timeouts: int = 0
    overloads: int = 0
    rollbacks: int = 0
    discards: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    use: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)
    connect: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A consistent snapshot of a pool.  Durations are in seconds.

    ``size == idle + in_use + opening + validating + closing`` and ``opened - sum(discards) ==
    idle + in_use + validating`` hold in every snapshot.
    """

    name: str
    """The pool's name."""
    max_size: int
    """The most connections there may be."""
    size: int
    """All connections, whatever their state."""
    idle: int
    """Ready to be lent."""
    in_use: int
    """Lent, or on the way back."""
    opening: int
    """Being dialled."""
    validating: int
    """Being probed or pinged before they are lent."""
    closing: int
    """Being closed; they count towards the size for a second at most."""
    waiting: int
    """Callers in the queue."""
    acquires: int
    """Connections lent, from the beginning."""
    releases: int
    """Connections that came back, or will not."""
    waits: int
    """Acquires that had to queue."""
    timeouts: int
    """Acquires that ended at their deadline."""
    overloads: int
    """Acquires refused because `max_waiting` callers waited."""
    dials: int
    """Dials begun."""
    dial_failures: int
    """Dials that failed or were abandoned."""
    opened: int
    """Connections that a dial delivered."""
    discards: Mapping[Reason, int]
    """Connections discarded, by reason."""
    rollbacks: int
    """Rollbacks that the pool made for a borrower who left a transaction open."""
    wait: Histogram
    """How long queued acquires waited."""
    use: Histogram
    """How long connections were lent."""
    connect: Histogram
    """How long successful dials took."""
