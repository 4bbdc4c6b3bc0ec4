"""Behind a proxy that shares the server's sessions: what a pool leaves out there, in one table.

PgBouncer in transaction mode, RDS Proxy and ProxySQL give a client another session of the server for each
transaction.  Whatever is said to the session outside of a transaction meets somebody else's: a SET, a reset,
a statement that was prepared; or it makes the proxy keep one session for this client, which it is there to
avoid.  So with ``behind=`` the pool itself says nothing but what begins and ends a borrower's transaction,
and drivers prepare nothing.

The limits of idleness are the defaults of each proxy, because none of them can be asked for its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

Proxy: TypeAlias = Literal["pgbouncer", "rds-proxy", "proxysql"]


@dataclass(frozen=True, slots=True)
class Preset:
    """What is particular to one proxy."""

    title: str
    """What it is called in messages."""
    idle_limit: float | None
    """Seconds idle after which it ends a client's connection by itself; ``None``: never."""
    ping_after: float | None = None
    """The pool's default behind it.  A ping would be answered by the proxy, or wait for a session."""


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "pgbouncer": Preset("PgBouncer", None),  # client_idle_timeout=0
        "rds-proxy": Preset("RDS Proxy", 1800.0),  # IdleClientTimeout
        "proxysql": Preset("ProxySQL", 28800.0),  # mysql-wait_timeout
    }
)

_PREPARED: Final = MappingProxyType(
    {
        "26000": "a prepared statement is not known to the session that it met",
        "42P05": "a prepared statement has a name that the session it met knows already",
    }
)
"""What becomes of prepared statements that meet another session than the one they were made in."""


def strayed(error: BaseException) -> tuple[str, str] | None:
    """Return the SQLSTATE and the meaning of an error of a prepared statement in the wrong session.

    Drivers for PostgreSQL call the code ``sqlstate``, psycopg2 ``pgcode``.
    """
    for name in ("sqlstate", "pgcode"):
        code = getattr(error, name, None)
        if isinstance(code, str) and code in _PREPARED:
            return code, _PREPARED[code]
    return None
