"""Which driver is whose."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from connpool.pool import ConnectionPool

from .drivers import Driver, OracleDB, SQLite
from .mysql import MySQLdb, PyMySQL
from .postgresql import Psycopg, Psycopg2

__all__ = ("driver_of_connection", "driver_of_module", "driver_of_pool")

_KNOWN: Mapping[str, type[Driver]] = {
    kind.name: kind for kind in (Psycopg, Psycopg2, PyMySQL, MySQLdb, SQLite, OracleDB)
}


def _driver(module: str) -> Driver:
    top = module.partition(".")[0]
    return _KNOWN.get(top, Driver)(top)


def driver_of_module(module: types.ModuleType) -> Driver:
    """Return what is known of a driver's module."""
    return _driver(module.__name__)


def driver_of_connection(conn: object) -> Driver:
    """Return what is known of the driver of a connection, by the modules of its classes."""
    tops = [base.__module__.partition(".")[0] for base in type(conn).__mro__[:-1]]
    return _driver(next((top for top in tops if top in _KNOWN), tops[-1]))


def driver_of_pool(pool: ConnectionPool[Any]) -> Driver:
    """Return what is known of a pool's driver; a connection is borrowed if nothing else tells."""
    adapter = pool.adapter
    if adapter is not None and adapter.name in _KNOWN:
        return _driver(adapter.name)
    with pool.connection() as conn:
        return driver_of_connection(conn)
