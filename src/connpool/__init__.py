"""connpool: a fair, fast connection pool for any Python database driver.

import connpool, psycopg

pool = connpool.ConnectionPool(lambda: psycopg.connect("dbname=app"), max_size=10)
with pool.connection() as conn:
    conn.execute("select 1")
"""

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
    "register",
    "register_async",
    "reset",
)


def __getattr__(name: str) -> object:
    """Load what needs asyncio when it is first asked for."""
    if name not in ("AsyncConnectionPool", "create_async_pool"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import async_pool

    value: object = getattr(async_pool, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
