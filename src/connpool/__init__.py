"""connpool: a fair, fast connection pool for any Python database driver.

import connpool, psycopg

pool = connpool.ConnectionPool(lambda: psycopg.connect("dbname=app"), max_size=10)
with pool.connection() as conn:
    conn.execute("select 1")
"""

import importlib
from typing import TYPE_CHECKING

from . import reset
from ._version import __version__
from .adapter import Adapter, AsyncAdapter, Credentials, Fault, Verdict, register, register_async
from .deadlines import deadline
from .errors import (
    Holder,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from .options import DEFAULT, PoolOptions
from .pool import ConnectionPool, create_pool
from .stats import Histogram, PoolStats, Reason

if TYPE_CHECKING:
    from .async_pool import AsyncConnectionPool, create_async_pool
    from .facade import manage

_LAZY = {"AsyncConnectionPool": "async_pool", "create_async_pool": "async_pool", "manage": "facade"}

__all__ = (
    "DEFAULT",
    "Adapter",
    "AsyncAdapter",
    "AsyncConnectionPool",
    "ConnectionPool",
    "Credentials",
    "Fault",
    "Histogram",
    "Holder",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolMisuse",
    "PoolOptions",
    "PoolOverloaded",
    "PoolStats",
    "PoolTimeout",
    "PoolUnavailable",
    "Reason",
    "Verdict",
    "__version__",
    "create_async_pool",
    "create_pool",
    "deadline",
    "manage",
    "register",
    "register_async",
    "reset",
)


def __getattr__(name: str) -> object:
    """Load what needs asyncio, and what few need, when it is first asked for."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
