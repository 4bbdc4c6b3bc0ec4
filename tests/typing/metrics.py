"""Pools of both kinds, of any connection, can be shown."""

import sqlite3

from connpool import AsyncConnectionPool, ConnectionPool
from connpool.metrics.opentelemetry import instrument
from connpool.metrics.prometheus import PoolCollector
from connpool.testing import FakeConnection


def both(pool: ConnectionPool[sqlite3.Connection], tasks: AsyncConnectionPool[FakeConnection]) -> None:
    PoolCollector(pool, tasks).add(pool)
    instrument(pool)
    instrument(tasks, histograms=())
    PoolCollector(pool.stats())  # type: ignore[arg-type]
