"""Figures for OpenTelemetry, by its semantic conventions for connection pools, version 1.44.0.

Names, kinds, units and attributes are those of
https://github.com/open-telemetry/semantic-conventions/blob/v1.44.0/docs/db/database-metrics.md, whose part
on pools is in development.  Only the API is needed; the SDK decides what becomes of the figures.

The API has no histogram that is asked for its counts: it wants a call for every duration, which takes
6 µs where a whole loan takes less.  So the durations are recorded when the figures are collected: each once,
as a value from its bucket in the pool's own histogram.  Counts are exact; values are off by 3.2 % at most.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from threading import Lock
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider

from connpool import Histogram, PoolStats, __version__

from . import BOUNDS, Pool

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the conventions."""

PREFIX: Final = "db.client.connection."
POOL: Final = PREFIX + "pool.name"
STATE: Final = PREFIX + "state"

LEVELS: Final[dict[str, tuple[str, str, Callable[[PoolStats], int]]]] = {
    "idle.max": (
        "{connection}",
        "The maximum number of idle open connections allowed.",
        lambda s: s.max_size,
    ),
    "idle.min": (
        "{connection}",
        "The minimum number of idle open connections allowed.",
        lambda s: s.min_idle,
    ),
    "max": ("{connection}", "The maximum number of open connections allowed.", lambda s: s.max_size),
    "pending_requests": (
        "{request}",
        "The number of current pending requests for an open connection.",
        lambda s: s.waiting,
    ),
}
"""Unit, description and value of what goes up and down."""

DURATIONS: Final[dict[str, tuple[str, Callable[[PoolStats], Histogram]]]] = {
    "create_time": ("The time it took to create a new connection.", lambda s: s.connect),
    "wait_time": ("The time it took to obtain an open connection from the pool.", lambda s: s.wait),
    "use_time": ("The time between borrowing a connection and returning it to the pool.", lambda s: s.use),
}
"""Description and source of each histogram."""

INSIDE: Final = 0.97
"""Times the end of a bucket: a value near its middle, as each begins at 16/17 to 31/32 of its end."""


def instrument(
    pool: Pool,
    *,
    meter_provider: MeterProvider | None = None,
    histograms: Collection[str] = tuple(DURATIONS),
) -> None:
    """Show a pool to OpenTelemetry for as long as it exists; to do it twice is harmless.

    Where processes are forked, do it in each of them, after its SDK was set up.

    Args:
        pool: The pool; it is held weakly.
        meter_provider: ``None``: the global one, also if it is set later.
        histograms: Which of ``"wait_time"``, ``"use_time"`` and ``"create_time"`` to record.  With
            ``"use_time"``, a collection takes 6 µs for each loan since the last one.

    Raises:
        ValueError: Another pool has its name, or there is no such histogram.
    """
    unknown = set(histograms) - set(DURATIONS)
    if unknown:
        raise ValueError(f"histograms={histograms!r}: choose among {', '.join(DURATIONS)}")
    _meters.add(pool, histograms, meter_provider)


class _Meter:
    """The instruments of one provider, for all pools: a name can be registered only once."""

    def __init__(self, provider: MeterProvider) -> None:
        self._pools: WeakKeyDictionary[Pool, dict[str, dict[float, int]]] = WeakKeyDictionary()
        self.begin_anew()
        meter = provider.get_meter("connpool", __version__, SCHEMA)
        self._recorders = {
            name: meter.create_histogram(
                PREFIX + name, "s", description, explicit_bucket_boundaries_advisory=BOUNDS
            )
            for name, (description, _) in DURATIONS.items()
        }
        meter.create_observable_up_down_counter(
            PREFIX + "count",
            [self._count],
            "{connection}",
            "The number of connections that are currently in state described by the `state` attribute.",
        )
        meter.create_observable_counter(
            PREFIX + "timeouts",
            [self._observer(lambda s: s.timeouts)],
            "{timeout}",
            "The number of connection timeouts that have occurred"
            " trying to obtain a connection from the pool.",
        )
        for name, (unit, description, value) in LEVELS.items():
            meter.create_observable_up_down_counter(PREFIX + name, [self._observer(value)], unit, description)

    def add(self, pool: Pool, histograms: Collection[str]) -> None:
        if any(other is not pool and other.name == pool.name for other in self._living()):
            raise ValueError(f"two pools are called {pool.name!r}: give one of them another name=")
        self._pools.setdefault(pool, {name: {} for name in histograms})

    def begin_anew(self) -> None:
        """Take nothing for recorded: in a child, pools begin at zero."""
        self._recording = Lock()
        for pool in self._living():
            self._pools[pool] = {name: {} for name in self._pools[pool]}

    def _living(self) -> Iterator[Pool]:
        return (pool for reference in self._pools.keyrefs() if (pool := reference()) is not None)

    def _observer(
        self, value: Callable[[PoolStats], int]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for pool in self._living():
                yield Observation(value(pool.stats(reset_peaks=False)), {POOL: pool.name})

        return observe

    def _count(self, _: CallbackOptions) -> Iterator[Observation]:
        """Observe the states, and record the durations: each collection calls this once."""
        for pool in self._living():
            stats = self._record(pool)
            yield Observation(stats.idle, {POOL: pool.name, STATE: "idle"})
            yield Observation(stats.in_use + stats.validating, {POOL: pool.name, STATE: "used"})

    def _record(self, pool: Pool) -> PoolStats:
        """Record what is new since the last time."""
        # Two readers may collect at once: the older of two snapshots must not come second.
        with self._recording:
            stats = pool.stats(reset_peaks=False)
            for name, recorded in self._pools[pool].items():
                record = self._recorders[name].record
                for end, counted in DURATIONS[name][1](stats).buckets():
                    for _ in range(counted - recorded.get(end, 0)):
                        record(end * INSIDE, {POOL: pool.name})
                    recorded[end] = counted
        return stats


class _Meters:
    """What there is in this process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_provider: WeakKeyDictionary[MeterProvider, _Meter] = WeakKeyDictionary()
        self._global: MeterProvider | None = None

    def add(self, pool: Pool, histograms: Collection[str], provider: MeterProvider | None) -> None:
        with self._lock:
            if provider in (None, get_meter_provider()):
                # The first one stands in for one that is set later, and passes its instruments on to it:
                # that one would have the same names twice, and not call whoever is second.
                provider = self._global = self._global or get_meter_provider()
            meter = self._by_provider.get(provider)
            if meter is None:
                meter = self._by_provider[provider] = _Meter(provider)
            meter.add(pool, histograms)

    def begin_anew(self) -> None:
        """In a child: a lock may be held by a thread that is not there."""
        self._lock = Lock()
        for meter in self._by_provider.values():
            meter.begin_anew()


_meters = _Meters()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_meters.begin_anew)
