"""Figures for Prometheus, taken when it scrapes.

Each is a figure of `connpool.PoolStats` under a name of Prometheus' kind.  The peaks are missing: they
begin anew when they are read, and there may be two Prometheus servers, or somebody else who reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Final, TypeAlias
from weakref import WeakValueDictionary

from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from connpool import Histogram, PoolStats

from . import Pool, cumulative

Family: TypeAlias = type[Counter | Gauge]

# Not acquires: they may fall for an instant, which Prometheus takes for a restart.
FIGURES: Final[tuple[tuple[Family, str, str, Callable[[PoolStats], float]], ...]] = (
    (Gauge, "connpool_max_connections", "The most connections there may be.", lambda s: s.max_size),
    (Gauge, "connpool_min_idle_connections", "How many are kept idle.", lambda s: s.min_idle),
    (Gauge, "connpool_dedicated_connections", "Connections outside of the rotation.", lambda s: s.dedicated),
    (Gauge, "connpool_waiting_callers", "Callers in the queue.", lambda s: s.waiting),
    (
        Gauge,
        "connpool_oldest_wait_seconds",
        "How long the first of them has waited.",
        lambda s: s.oldest_wait,
    ),
    (Counter, "connpool_releases_total", "Connections that came back, or will not.", lambda s: s.releases),
    (Counter, "connpool_dials_total", "Dials begun.", lambda s: s.dials),
    (Counter, "connpool_opened_total", "Connections that a dial delivered.", lambda s: s.opened),
    (Counter, "connpool_rollbacks_total", "Rollbacks made for borrowers.", lambda s: s.rollbacks),
    (Counter, "connpool_pins_total", "Sessions that facades have kept.", lambda s: s.pins),
    (Counter, "connpool_resets_total", "Resets that connections came through.", lambda s: s.resets),
    (
        Counter,
        "connpool_reset_failures_total",
        "Resets and rollbacks that failed.",
        lambda s: s.reset_failures,
    ),
)
"""Kind, name, meaning, value."""


def _states(stats: PoolStats) -> Mapping[str, float]:
    return {
        "idle": stats.idle,
        "in_use": stats.in_use,
        "opening": stats.opening,
        "validating": stats.validating,
        "closing": stats.closing,
    }


def _failures(stats: PoolStats) -> Mapping[str, float]:
    return {
        "timeout": stats.timeouts,
        "overloaded": stats.overloads,
        "unavailable": stats.unavailable,
        "deadlock": stats.deadlocks,
    }


def _faults(stats: PoolStats) -> Mapping[str, float]:
    return {fault.value: count for fault, count in stats.faults.items()}


def _reasons(stats: PoolStats) -> Mapping[str, float]:
    return {reason.value: count for reason, count in stats.discards.items()}


SPLIT: Final[tuple[tuple[Family, str, str, str, Callable[[PoolStats], Mapping[str, float]]], ...]] = (
    (Gauge, "connpool_connections", "Connections; the states add up to the size.", "state", _states),
    (Counter, "connpool_acquire_failures_total", "Acquires without a connection.", "reason", _failures),
    (Counter, "connpool_dial_failures_total", "Dials that failed or were abandoned.", "fault", _faults),
    (Counter, "connpool_discards_total", "Connections discarded.", "reason", _reasons),
)
"""Kind, name, meaning, label, the values by what the label says."""

DURATIONS: Final[tuple[tuple[str, str, Callable[[PoolStats], Histogram]], ...]] = (
    ("connpool_wait_seconds", "How long queued acquires waited.", lambda s: s.wait),
    ("connpool_use_seconds", "How long connections were lent.", lambda s: s.use),
    ("connpool_connect_seconds", "How long successful dials took.", lambda s: s.connect),
    ("connpool_reset_seconds", "How long callers waited for rollbacks and resets.", lambda s: s.reset),
)
"""Name, meaning, the histogram."""


class PoolCollector(Collector):
    """Shows pools to a registry of ``prometheus_client``.

    One collector serves all pools of the process::

        collector = PoolCollector(orders, reports)
        prometheus_client.REGISTRY.register(collector)

    The label ``pool`` is a pool's name.  A closed pool is shown until it is garbage.

    Args:
        *pools: As `add`.
    """

    def __init__(self, *pools: Pool) -> None:
        self._pools: WeakValueDictionary[str, Pool] = WeakValueDictionary()
        for pool in pools:
            self.add(pool)

    def add(self, pool: Pool) -> None:
        """Show one more pool; to add it twice is harmless.

        Raises:
            ValueError: Another pool has its name.  Prometheus would take both for one.
        """
        if self._pools.setdefault(pool.name, pool) is not pool:
            raise ValueError(f"two pools are called {pool.name!r}: give one of them another name=")

    def collect(self) -> Iterator[Metric]:
        """Yield all figures; those of one pool are of one instant."""
        pools = [pool for reference in self._pools.valuerefs() if (pool := reference()) is not None]
        snapshots = [pool.stats(reset_peaks=False) for pool in pools]
        for kind, name, meaning, figure in FIGURES:
            family = kind(name, meaning, labels=("pool",))
            for stats in snapshots:
                family.add_metric((stats.name,), figure(stats))
            yield family
        for kind, name, meaning, label, figures in SPLIT:
            family = kind(name, meaning, labels=("pool", label))
            for stats in snapshots:
                for value, count in figures(stats).items():
                    family.add_metric((stats.name, value), count)
            yield family
        for name, meaning, durations in DURATIONS:
            histograms = HistogramMetricFamily(name, meaning, labels=("pool",))
            for stats in snapshots:
                histogram = durations(stats)
                buckets = [(_le(bound), count) for bound, count in cumulative(histogram)]
                histograms.add_metric((stats.name,), buckets, histogram.total)
            yield histograms


def _le(bound: float) -> str:
    return "+Inf" if bound == inf else repr(bound)
