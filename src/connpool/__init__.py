"""connpool: a fair, fast connection pool for any Python database driver.

import connpool, psycopg

pool = connpool.ConnectionPool(lambda: psycopg.connect("dbname=app"), max_size=10)
with pool.connection() as conn:
    conn.execute("select 1")
"""

from . import reset
from ._version import __version__
from .adapter import Adapter, Credentials, Fault, Verdict, register
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

__all__ = (
    "DEFAULT",
    "Adapter",
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
    "create_pool",
    "deadline",
    "register",
    "reset",
)
