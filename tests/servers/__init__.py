"""Private, disposable database servers, and a TCP proxy that breaks the way to them.

For tests (`servers.fixtures`), benchmarks (`from servers import PostgreSQL`) and the curious
(`python -m servers`). Everything listens on a free loopback port, lives in a temporary directory,
and is gone when the process that started it is gone, however that one ends. Nothing here knows
connection pools.
"""

from servers.install import MissingServer, requirements
from servers.mariadb import MariaDB
from servers.pgbouncer import PgBouncer
from servers.postgresql import PostgreSQL, system_binaries, wheel_binaries
from servers.process import Server, ServerError, close_all, free_port, wait_until
from servers.proxy import FaultProxy
from servers.records import MariaDBParams, PostgreSQLParams, Session, Statement

__all__ = [
    "FaultProxy",
    "MariaDB",
    "MariaDBParams",
    "MissingServer",
    "PgBouncer",
    "PostgreSQL",
    "PostgreSQLParams",
    "Server",
    "ServerError",
    "Session",
    "Statement",
    "close_all",
    "free_port",
    "requirements",
    "system_binaries",
    "wait_until",
    "wheel_binaries",
]
