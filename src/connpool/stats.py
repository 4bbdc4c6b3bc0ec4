"""Figures: histograms of fixed size and known error, counters, and the snapshot that shows them.

Nothing here takes a lock: the core folds and copies under its own.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil

from .adapter import Fault

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

    __slots__ = ("_counts", "_max", "_pending", "_total", "count")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._pending: list[list[float]] = []  # counted, but not folded before somebody asks for more
        self._total = 0.0
        self._max = 0.0
        self.count = 0
        """How many durations."""

    @property
    def total(self) -> float:
        """Their sum in seconds."""
        self._settle()
        return self._total

    @property
    def max(self) -> float:
        """The longest, in seconds, exact; 0.0 if there is none."""
        self._settle()
        return self._max

    def add(self, durations: list[float]) -> None:
        """Add *durations*, in seconds: the list is this histogram's now, and is folded when it is read."""
        if durations:
            self._pending.append(durations)
            self.count += len(durations)

    def fold(self, durations: list[float]) -> None:
        """Add *durations*, in seconds, now.

        Bytes are counted in C, by what is left of them without one: about 30 ns a duration in a batch of a
        thousand.  To sort the batch costs 70 (its branches cannot be predicted), to count one by one 75.
        """
        if durations:
            self.count += len(durations)
            self._fold(durations)

    def _settle(self) -> None:
        while self._pending:
            self._fold(self._pending.pop())

    def _fold(self, durations: list[float]) -> None:
        raw = array("d", durations).tobytes()
        octaves, steps = raw[_FIRST::8], raw[_SECOND::8]
        usual = octaves[len(octaves) // 2 :][:1]  # each is sixteen octaves wide: from 31 µs to 2 s it is one
        counts, largest, strays = self._counts, 0, bytearray()
        for octave in set(octaves.translate(None, usual)):
            place = octaves.find(octave)
            while place >= 0:
                bucket = octave << 8 | steps[place]
                counts[bucket] += 1
                largest = max(largest, bucket)
                strays.append(steps[place])
                place = octaves.find(octave, place + 1)
        while steps:
            step, rest = steps[0], steps.translate(None, steps[:1])
            counted = len(steps) - len(rest) - strays.count(step)
            if counted:
                bucket = usual[0] << 8 | step
                counts[bucket] += counted
                largest = max(largest, bucket)
            steps = rest
        self._total += sum(durations)
        if largest >= _bucket(self._max):
            self._max = max(self._max, *durations)

    def copy(self) -> Histogram:
        """Return an independent copy."""
        self._settle()
        twin = Histogram()
        twin._counts = self._counts.copy()
        twin.count, twin._total, twin._max = self.count, self._total, self._max
        return twin

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Return the upper bound in seconds of each bucket in use, and how many durations lie in it."""
        self._settle()
        for bucket, counted in sorted(self._counts.items()):
            yield _bounds(bucket)[1], counted

    def percentile(self, percent: float) -> float:
        """Return the duration in seconds that *percent* of all do not exceed; 0.0 if there is none."""
        if percent >= 100:
            return self.max
        self._settle()
        left = ceil(self.count * percent / 100)
        for bucket, counted in sorted(self._counts.items()):
            left -= counted
            if left <= 0:
                return min(_middle(bucket), self._max)
        return self._max

    def __repr__(self) -> str:
        figures = ", ".join(f"p{p:g}={self.percentile(p):.2g}" for p in (50, 90, 99))
        return f"<Histogram of {self.count}: {figures}, max={self.max:.2g} s>"


def _bucket(duration: float) -> int:
    """Return the bucket of a duration."""
    bits: int = struct.unpack(">H", struct.pack(">d", duration)[:2])[0]
    return bits


def _middle(bucket: int) -> float:
    """Return the duration in the middle of a bucket."""
    return sum(_bounds(bucket)) / 2


def _bounds(bucket: int) -> tuple[float, float]:
    """Return where a bucket begins and ends, in seconds."""
    low, high = (struct.unpack(">d", struct.pack(">Q", bits << 48))[0] for bits in (bucket, bucket + 1))
    return float(low), float(high)


@dataclass(slots=True)
class Totals:
    """Counters of events that are rare, or no part of the warm path."""

    dials: int = 0
    opened: int = 0
    timeouts: int = 0
    overloads: int = 0
    unavailable: int = 0
    deadlocks: int = 0
    rollbacks: int = 0
    pins: int = 0
    resets: int = 0
    reset_failures: int = 0
    peak_size: int = 0
    peak_in_use: int = 0
    peak_waiting: int = 0
    faults: dict[Fault, int] = field(default_factory=lambda: dict.fromkeys(Fault, 0))
    discards: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    use: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)
    connect: Histogram = field(default_factory=Histogram)
    reset: Histogram = field(default_factory=Histogram)

    @property
    def dial_failures(self) -> int:
        """Dials that failed or were abandoned."""
        return sum(self.faults.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A consistent snapshot of a pool.  Durations are in seconds; counters begin with the pool.

    In every snapshot::

        size == idle + in_use + opening + validating + closing
        dials == dial_failures + opened + opening
        opened - sum(discards.values()) == idle + in_use + validating
        acquires == releases + in_use
        use.count == releases - discards["lost"] - discards["detached"]
        sum(faults.values()) == dial_failures
    """

    name: str
    """The pool's name."""
    age: float
    """Seconds since the first dial began: what the counters are about."""
    max_size: int
    """The most connections there may be."""
    min_idle: int
    """How many are kept idle and ready."""
    size: int
    """All connections, whatever their state."""
    idle: int
    """Ready to be lent."""
    in_use: int
    """Lent, or on the way back."""
    opening: int
    """Being dialled."""
    validating: int
    """Being looked at, or prepared by `on_acquire`, before they are lent."""
    closing: int
    """Being closed; they count towards the size for a second at most."""
    waiting: int
    """Callers in the queue."""
    oldest_wait: float
    """How long the first of them has waited; 0.0 if nobody waits."""
    peak_size: int
    """The largest size since `stats` was last called, by whomever, without ``reset_peaks=False``."""
    peak_in_use: int
    """The most connections lent at a time since then."""
    peak_waiting: int
    """The most callers in the queue since then."""
    acquires: int
    """Connections lent."""
    releases: int
    """Connections that came back, or will not.  Unlike `acquires`, it never falls for an instant."""
    waits: int
    """Acquires that had to queue, whatever came of it."""
    timeouts: int
    """Acquires that ended at their deadline: `PoolTimeout`, or `PoolUnavailable` if nothing was open."""
    overloads: int
    """Acquires refused because `max_waiting` callers waited: `PoolOverloaded`."""
    unavailable: int
    """Acquires refused before their deadline because nothing could be opened: `PoolUnavailable`."""
    deadlocks: int
    """Acquires refused because everybody waited for everybody: `PoolDeadlock`."""
    dials: int
    """Dials begun."""
    dial_failures: int
    """Dials that failed or were abandoned."""
    faults: Mapping[Fault, int]
    """The same by what kind of fault it was; an abandoned one counts as dead."""
    opened: int
    """Connections that a dial delivered."""
    discards: Mapping[Reason, int]
    """Connections discarded, by reason."""
    leaks: int
    """Connections discarded because their borrower had lost them: ``discards["lost"]``."""
    rollbacks: int
    """Rollbacks that the pool made for a borrower who left a transaction open."""
    pins: int
    """Sessions that facades have kept until their ``close()``, for what a statement left in them."""
    resets: int
    """Resets, by the parts and callables of a policy, that connections came through."""
    reset_failures: int
    """Resets and rollbacks that failed; the connections were closed."""
    reset_policy: str
    """The policy that was chosen: ``rollback``, ``full``, ``tracked``, ``none``, or ``custom``."""
    dedicated: int
    """Connections outside of the rotation, from `ConnectionPool.dedicated`; they are no part of the size."""
    wait: Histogram
    """How long queued acquires waited."""
    use: Histogram
    """How long connections were lent."""
    connect: Histogram
    """How long successful dials took."""
    reset: Histogram
    """How long callers waited for rollbacks and resets at their return."""
