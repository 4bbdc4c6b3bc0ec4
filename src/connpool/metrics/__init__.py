"""Pools as monitoring systems see them: `prometheus` and `opentelemetry`, each an extra of its own.

Both read `connpool.ConnectionPool.stats` when they are asked, and leave its peaks to others.  They hold
pools weakly, count nothing themselves, and a pool does not know of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Protocol

from connpool import Histogram, PoolStats

BOUNDS: Final = (*(step * 2.0**octave for octave in range(-12, 6) for step in (1.0, 1.5)), 64.0)
"""Seconds at which histograms are cut: two an octave, from a quarter of a millisecond to a minute.

Each is the end of a bucket of `connpool.Histogram`, so nothing is split or estimated, as round decimals
would ask for.  A quantile lies between two bounds a factor of 1.5 apart, at most; below the first are
hand-overs and idle connections, above the last is what has gone wrong.
"""


class Pool(Protocol):
    """What is needed of a pool."""

    @property
    def name(self) -> str:
        """The pool's name."""

    def stats(self, *, reset_peaks: bool = True) -> PoolStats:
        """Return a snapshot."""


def cumulative(histogram: Histogram) -> Iterator[tuple[float, int]]:
    """Yield each bound, infinity last, with the number of durations below it."""
    buckets = list(histogram.buckets())
    ends = [end for end, _ in buckets]
    counts = [0, *accumulate(counted for _, counted in buckets)]
    for bound in (*BOUNDS, float("inf")):
        yield bound, counts[bisect_right(ends, bound)]
