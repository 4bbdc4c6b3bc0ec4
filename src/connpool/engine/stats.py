"""Figures: histograms of fixed size and known error, counters, and the snapshot that shows them.

Nothing here takes a lock: the core folds and copies under its own.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import compress
from math import ceil

_FIRST, _SECOND = (7, 6) if sys.byteorder == "little" else (0, 1)
"""Where the two highest bytes of a double stand: its sign, its exponent, four bits of its mantissa."""


class Reason(StrEnum):
    """Why a connection was discarded."""

    __hash__ = str.__hash__  # in C: an interrupt cannot strike inside it, so a count and its cause agree

    LIFETIME = "lifetime"
    IDLE = "idle"
    USES = "uses"
    SERVER_LIMIT = "server_limit"
    DEAD = "dead"
    SILENT = "silent"
    DEMOTED = "demoted"
    UNANSWERED = "unanswered"
    BROKEN = "broken"
    SPENT = "spent"
    RESET = "reset"
    RESET_FAILED = "reset_failed"
    HOOK = "hook"
    EVICTED = "evicted"
    SURPLUS = "surplus"
    DETACHED = "detached"
    LOST = "lost"
    INHERITED = "inherited"
    CLOSED = "closed"


class Histogram:
    """Counts of durations in logarithmic buckets: bounded memory, an error of at most 3.2 %.

    A bucket is named by the two highest bytes of the duration as an IEEE 754 double: sixteen buckets an
    octave, as in HdrHistogram, and nobody computes a logarithm.  No more than a thousand of them lie
    between a nanosecond and a century.
    """

    __slots__ = ("_counts", "count", "max", "total")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        """How many durations."""
        self.total = 0.0
        """Their sum in seconds."""
        self.max = 0.0
        """The longest, in seconds, exact."""

    def fold(self, durations: list[float]) -> None:
        """Add *durations*, in seconds.

        Bytes are counted in C: 35 ns a duration in a batch of a thousand.  To sort the batch costs 70
        (its branches cannot be predicted), and to count one by one 75.
        """
        if not durations:
            return
        raw = array("d", durations).tobytes()
        octaves, steps = raw[_FIRST::8], raw[_SECOND::8]
        largest = 0
        for octave in set(octaves):  # each is sixteen octaves wide: from 31 µs to 2 s it is the same one
            alone = octaves.count(octave) == len(octaves)
            mine = steps if alone else bytes(compress(steps, map(octave.__eq__, octaves)))
            for step in set(mine):
                bucket = octave << 8 | step
                self._counts[bucket] += mine.count(step)
                largest = max(largest, bucket)
        self.count += len(durations)
        self.total += sum(durations)
        if largest >= _bucket(self.max):
            self.max = max(self.max, *durations)

    def copy(self) -> Histogram:
        """Return an independent copy."""
        twin = Histogram()
        twin._counts = self._counts.copy()
        twin.count, twin.total, twin.max = self.count, self.total, self.max
        return twin

    def percentile(self, percent: float) -> float:
        """Return the duration in seconds that *percent* of all do not exceed; 0.0 if there is none."""
        if percent >= 100:
            return self.max
        left = ceil(self.count * percent / 100)
        for bucket, counted in sorted(self._counts.items()):
            left -= counted
            if left <= 0:
                return min(_middle(bucket), self.max)
        return self.max

    def __repr__(self) -> str:
        figures = ", ".join(f"p{p:g}={self.percentile(p):.2g}" for p in (50, 90, 99))
        return f"<Histogram of {self.count}: {figures}, max={self.max:.2g} s>"


def _bucket(duration: float) -> int:
    """Return the bucket of a duration."""
    bits: int = struct.unpack(">H", struct.pack(">d", duration)[:2])[0]
    return bits


def _middle(bucket: int) -> float:
    """Return the duration in the middle of a bucket."""
    low, high = (struct.unpack(">d", struct.pack(">Q", bits << 48))[0] for bits in (bucket, bucket + 1))
    return float(low + high) / 2


@dataclass(slots=True)
class Totals:
    """Counters of events that are rare, or no part of the warm path."""

    dials: int = 0
    dial_failures: int = 0
    opened: int = 0
    timeouts: int = 0
    overloads: int = 0
    rollbacks: int = 0
    resets: int = 0
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
    """Acquires that had to queue, whatever came of it."""
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
    resets: int
    """Resets, by the parts and callables of a policy, that connections came through."""
    dedicated: int
    """Connections outside of the rotation, from `ConnectionPool.dedicated`; they are no part of the size."""
    wait: Histogram
    """How long queued acquires waited."""
    use: Histogram
    """How long connections were lent."""
    connect: Histogram
    """How long successful dials took."""
