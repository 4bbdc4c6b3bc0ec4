"""What Prometheus scrapes: read by its own parser, it agrees with `stats`."""

import gc
import weakref
from dataclasses import fields, replace
from itertools import count
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from connpool import AsyncConnectionPool, ConnectionPool, Fault, PoolStats, Reason
from connpool.metrics import BOUNDS
from connpool.metrics.prometheus import PoolCollector
from connpool.testing import AsyncFakeAdapter, FakeAdapter, FakeServer


def scrape(*pools):
    """Return the samples by name and labels, as Prometheus' parser reads them."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(PoolCollector(*pools))
    text = generate_latest(registry).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def idle_pool(name):
    return ConnectionPool(FakeAdapter(FakeServer()), name=name)


class Shown(SimpleNamespace):
    """Something with figures."""


def samples(stats):
    """Return the samples that a pool's figures are, but for the buckets."""
    mine = ("pool", stats.name)
    single = {
        "connpool_max_connections": stats.max_size,
        "connpool_min_idle_connections": stats.min_idle,
        "connpool_dedicated_connections": stats.dedicated,
        "connpool_waiting_callers": stats.waiting,
        "connpool_oldest_wait_seconds": stats.oldest_wait,
        "connpool_releases_total": stats.releases,
        "connpool_dials_total": stats.dials,
        "connpool_opened_total": stats.opened,
        "connpool_rollbacks_total": stats.rollbacks,
        "connpool_pins_total": stats.pins,
        "connpool_resets_total": stats.resets,
        "connpool_reset_failures_total": stats.reset_failures,
    }
    states = ("idle", "in_use", "opening", "validating", "closing")
    failures = {
        "timeout": stats.timeouts,
        "overloaded": stats.overloads,
        "unavailable": stats.unavailable,
        "deadlock": stats.deadlocks,
    }
    durations = {"wait": stats.wait, "use": stats.use, "connect": stats.connect, "reset": stats.reset}
    return (
        {(name, mine): value for name, value in single.items()}
        | {("connpool_connections", mine, ("state", state)): getattr(stats, state) for state in states}
        | {("connpool_acquire_failures_total", mine, ("reason", r)): n for r, n in failures.items()}
        | {("connpool_dial_failures_total", ("fault", f.value), mine): stats.faults[f] for f in Fault}
        | {("connpool_discards_total", mine, ("reason", r.value)): stats.discards[r] for r in Reason}
        | {(f"connpool_{name}_seconds_count", mine): d.count for name, d in durations.items()}
        | {(f"connpool_{name}_seconds_sum", mine): d.total for name, d in durations.items()}
    )


def without_buckets(found):
    return {key: value for key, value in found.items() if not key[0].endswith("_bucket")}


def test_every_sample_agrees_with_stats(pool):
    stats = pool.stats()
    found = scrape(pool)
    assert without_buckets(found) == samples(stats)
    assert len(found) - len(samples(stats)) == 4 * (len(BOUNDS) + 1)
    assert all((stats.releases, stats.timeouts, stats.overloads, stats.dial_failures, stats.rollbacks))
    assert all((stats.wait.count, stats.use.count, stats.connect.count, stats.reset.count))


def test_no_figure_is_taken_for_another(pool):
    numbers = count(1000)
    stats = replace(
        pool.stats(),
        oldest_wait=0.25,
        faults={fault: next(numbers) for fault in Fault},
        discards={reason: next(numbers) for reason in Reason},
        **{field.name: next(numbers) for field in fields(PoolStats) if field.type == "int"},
    )
    shown = Shown(name=stats.name, stats=lambda reset_peaks: stats)
    assert without_buckets(scrape(shown)) == samples(stats)


def test_states_add_up_to_the_size_while_connections_are_lent_and_awaited(pool):
    with pool.connection():
        found = scrape(pool)
    in_use = found["connpool_connections", ("pool", "orders"), ("state", "in_use")]
    total = sum(value for key, value in found.items() if key[0] == "connpool_connections")
    assert (in_use, total) == (1, pool.stats().size)


def test_a_scrape_leaves_the_peaks_to_others(pool):
    pool.stats()
    with pool.connection(), pool.connection():
        pass
    scrape(pool)
    assert pool.stats().peak_in_use == 2
    assert pool.stats().peak_in_use == 0


def test_a_pool_that_is_garbage_is_not_shown():
    collector, pool = PoolCollector(), idle_pool("short")
    collector.add(pool)
    collector.add(pool)
    gone = weakref.ref(pool)
    assert any(family.samples for family in collector.collect())
    del pool
    gc.collect()
    assert gone() is None
    assert not any(family.samples for family in collector.collect())
    collector.add(idle_pool("short"))


def test_two_pools_of_one_name_are_refused():
    first, second = idle_pool("twin"), idle_pool("twin")
    with pytest.raises(ValueError, match="two pools are called 'twin'"):
        PoolCollector(first, second)


def test_each_pool_has_its_own_samples(pool):
    other = idle_pool("reports")
    found = scrape(pool, other)
    assert found["connpool_releases_total", ("pool", "reports")] == 0
    assert found["connpool_releases_total", ("pool", "orders")] > 0


def test_an_empty_collector_can_be_registered_before_there_are_pools():
    registry = CollectorRegistry(auto_describe=True)
    collector = PoolCollector()
    registry.register(collector)
    pool = idle_pool("later")
    collector.add(pool)
    assert registry.get_sample_value("connpool_max_connections", {"pool": "later"}) == pool.stats().max_size


def test_a_pool_for_tasks_is_shown_too():
    pool = AsyncConnectionPool(AsyncFakeAdapter(FakeServer()), name="tasks", max_size=3)
    assert without_buckets(scrape(pool)) == samples(pool.stats())
