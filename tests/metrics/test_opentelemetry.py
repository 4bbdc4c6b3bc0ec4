"""What OpenTelemetry collects: read back through the SDK, it agrees with `stats` and with the conventions."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Sum
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.schemas import Schemas

import connpool
from connpool import AsyncConnectionPool, ConnectionPool
from connpool.metrics import BOUNDS
from connpool.metrics.opentelemetry import PREFIX, SCHEMA, instrument
from connpool.testing import AsyncFakeAdapter, FakeAdapter, FakeServer


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader):
    provider = MeterProvider([reader], shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def metrics(reader):
    data = reader.get_metrics_data()
    if data is None:
        return {}
    ((scope,),) = [resource.scope_metrics for resource in data.resource_metrics]
    assert (scope.scope.name, scope.schema_url) == ("connpool", SCHEMA)
    return {metric.name.removeprefix(PREFIX): metric for metric in scope.metrics}


def points(reader):
    """Return the points by the metric's name and the values of its attributes."""
    return {
        (name, *point.attributes.values()): point
        for name, metric in metrics(reader).items()
        for point in metric.data.data_points
    }


def values(reader):
    return {key: point.value for key, point in points(reader).items() if hasattr(point, "value")}


def test_every_point_agrees_with_stats(pool, provider, reader):
    instrument(pool, meter_provider=provider)
    with pool.connection():
        stats = pool.stats()
        found = points(reader)
    assert {key: point.value for key, point in found.items() if hasattr(point, "value")} == {
        ("count", "orders", "idle"): stats.idle,
        ("count", "orders", "used"): 1,
        ("idle.max", "orders"): 2,
        ("idle.min", "orders"): 0,
        ("max", "orders"): 2,
        ("pending_requests", "orders"): 0,
        ("timeouts", "orders"): stats.timeouts,
    }
    assert stats.timeouts
    for name, ours in {"wait_time": stats.wait, "use_time": stats.use, "create_time": stats.connect}.items():
        theirs = found[name, "orders"]
        assert theirs.count == ours.count > 0
        assert theirs.sum == pytest.approx(ours.total, rel=0.032)
        assert theirs.max == pytest.approx(ours.max, rel=0.032)
        assert theirs.explicit_bounds == BOUNDS


def test_histograms_cut_as_ours_are(pool, provider, reader):
    instrument(pool, meter_provider=provider)
    found = points(reader)["use_time", "orders"]
    ours = [counted for _, counted in connpool.metrics.cumulative(pool.stats().use)]
    assert [sum(found.bucket_counts[: at + 1]) for at in range(len(ours))] == ours


def test_names_kinds_units_and_words_are_those_of_the_convention(pool, provider, reader):
    instrument(pool, meter_provider=provider)
    ours = metrics(reader)
    theirs = InMemoryMetricReader()
    convention = MeterProvider([theirs], shutdown_on_exit=False)
    for name in dir(db_metrics):
        if name.startswith("create_db_client_connection_"):
            made = getattr(db_metrics, name)(convention.get_meter("connpool", schema_url=SCHEMA))
            made.record(0) if hasattr(made, "record") else made.add(0)

    def described(metric):
        kind = type(metric.data), getattr(metric.data, "is_monotonic", None)
        return metric.unit, metric.description, *kind

    assert {name: described(metric) for name, metric in ours.items()} == {
        name: described(metric)
        for name, metric in metrics(theirs).items()
        if not name.startswith("db.client.connections.")  # what the names were before 1.27
    }
    assert isinstance(ours["count"].data, Sum)
    assert isinstance(ours["use_time"].data, Histogram)
    assert SCHEMA in {schema.value for schema in Schemas}
    convention.shutdown()


def test_each_duration_is_recorded_once_whoever_collects(pool):
    readers = InMemoryMetricReader(), InMemoryMetricReader()
    provider = MeterProvider(readers, shutdown_on_exit=False)
    instrument(pool, meter_provider=provider)
    for reader in (*readers, *readers):
        with pool.connection():
            pass
        assert points(reader)["use_time", "orders"].count == pool.stats().use.count
    provider.shutdown()


def test_a_collection_leaves_the_peaks_to_others(pool, provider, reader):
    instrument(pool, meter_provider=provider)
    pool.stats()
    with pool.connection(), pool.connection():
        pass
    metrics(reader)
    assert pool.stats().peak_in_use == 2


def test_histograms_can_be_left_out(pool, provider, reader):
    instrument(pool, meter_provider=provider, histograms=("wait_time",))
    assert not {"use_time", "create_time"} & set(metrics(reader))
    assert points(reader)["wait_time", "orders"].count == pool.stats().wait.count


def test_an_unknown_histogram_is_refused(pool, provider):
    with pytest.raises(ValueError, match="choose among create_time, wait_time, use_time"):
        instrument(pool, meter_provider=provider, histograms=("wait",))


def test_pools_share_the_instruments_and_a_pool_that_is_garbage_is_not_shown(pool, provider, reader):
    other = ConnectionPool(FakeAdapter(FakeServer()), name="reports", max_size=7)
    instrument(pool, meter_provider=provider)
    instrument(other, meter_provider=provider)
    instrument(other, meter_provider=provider)
    found = values(reader)
    assert (found["max", "orders"], found["max", "reports"]) == (2, 7)
    del other
    gc.collect()
    assert ("max", "reports") not in values(reader)


def test_two_pools_of_one_name_are_refused(pool, provider):
    twin = ConnectionPool(FakeAdapter(FakeServer()), name="orders")
    instrument(pool, meter_provider=provider)
    with pytest.raises(ValueError, match="two pools are called 'orders'"):
        instrument(twin, meter_provider=provider)


PROVIDER_LATER = """
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
import connpool
from connpool.metrics.opentelemetry import instrument

pool = connpool.create_pool("sqlite://", name="early")
instrument(pool)
reader = InMemoryMetricReader()
set_meter_provider(MeterProvider([reader]))
late = connpool.create_pool("sqlite://", name="late")
instrument(late)
with pool.connection(), late.connection():
    pass
(resource,) = reader.get_metrics_data().resource_metrics
for metric in resource.scope_metrics[0].metrics:
    if metric.name in ("db.client.connection.max", "db.client.connection.use_time"):
        print(metric.name, sorted(point.attributes["db.client.connection.pool.name"]
                                  for point in metric.data.data_points))
"""

FORK = """
import os
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, Histogram, InMemoryMetricReader
import opentelemetry.sdk.metrics as sdk
import connpool
from connpool.metrics.opentelemetry import instrument

pool = connpool.create_pool("sqlite://", name="forked")
reader = InMemoryMetricReader({sdk.Histogram: AggregationTemporality.DELTA})
instrument(pool, meter_provider=MeterProvider([reader]))

def loans(number):
    for _ in range(number):
        with pool.connection():
            pass
    (resource,) = reader.get_metrics_data().resource_metrics
    (use,) = (m for m in resource.scope_metrics[0].metrics if m.name == "db.client.connection.use_time")
    print(use.data.data_points[0].count, flush=True)

loans(20)
if os.fork() == 0:
    loans(25)
    os._exit(0)
os.wait()
loans(1)
"""


def printed(program):
    source = Path(connpool.__file__).parents[1]
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(source)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert not done.returncode, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


def test_the_global_provider_may_be_set_after_a_pool_was_instrumented():
    names = "['early', 'late']"
    assert sorted(printed(PROVIDER_LATER)) == [f"{PREFIX}max {names}", f"{PREFIX}use_time {names}"]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="nothing to fork here")
def test_a_forked_child_records_its_own_durations_only():
    assert printed(FORK) == ["20", "25", "1"]


def test_a_pool_for_tasks_is_shown_too(provider, reader):
    pool = AsyncConnectionPool(AsyncFakeAdapter(FakeServer()), name="tasks", max_size=3)
    instrument(pool, meter_provider=provider)
    assert values(reader)["max", "tasks"] == 3
