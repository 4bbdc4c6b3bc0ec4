"""What a server says about itself: how to connect, who is connected, what was executed.

Plain data, the same for every kind of server where the kinds agree.
"""

from dataclasses import dataclass
from typing import NotRequired, TypedDict


class PostgreSQLParams(TypedDict):
    """Keyword arguments for `psycopg.connect`."""

    host: str
    port: int
    user: str
    dbname: str
    sslmode: NotRequired[str]
    sslrootcert: NotRequired[str]


class MariaDBParams(TypedDict):
    """Keyword arguments for `pymysql.connect`."""

    host: str
    port: int
    user: str
    password: str
    database: str
    ssl_ca: NotRequired[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One client session as the server sees it; `id` is its process id, or its thread id."""

    id: int
    user: str
    database: str
    application_name: str
    state: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One statement from the server's log.

    `kind` is the server's own word. PostgreSQL: "statement" (simple protocol) or "execute ..."
    (extended). MariaDB: "Connect", "Query", "Prepare", "Init DB", "Quit" ...
    """

    session: int
    kind: str
    text: str
