"""What the pools pool: psycopg connections to a real PostgreSQL, or a fake driver with scripted latencies."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self
from urllib.parse import unquote, urlsplit


class RealDriver:
    """psycopg, or PyMySQL for a MySQL URL, as it is: not in autocommit mode, no option set.

    An empty block sends nothing to the server in either mode, so the mode does not matter here.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connect: Callable[[], Any]
        if dsn.startswith("mysql:"):
            import pymysql

            parts = urlsplit(dsn)
            self.connect = partial(
                pymysql.connect,
                host=parts.hostname or "",
                port=parts.port or 3306,
                user=parts.username,
                password=unquote(parts.password or ""),
                database=parts.path[1:],
            )
            return
        import psycopg

        self.module: Any = psycopg
        self.connection_class: Any = psycopg.Connection
        self.connect = partial(psycopg.connect, dsn)


class FakeDriver:
    """A driver whose connects and queries take the time that they are told, and a ledger of connections."""

    def __init__(self, connect_seconds: float, query_seconds: float) -> None:
        self.dsn = ""
        self.module: Any = DBAPI(self.connect)
        self.connect_seconds = connect_seconds
        self.query_seconds = query_seconds
        self.dials: list[float] = []  # when each began
        self.ledger: list[tuple[float, int]] = []  # when a connection was opened (+1) or closed (-1)
        self.connection_class: Any = type("Connection", (FakeConnection,), {"driver": self})

    def connect(self) -> Any:
        self.dials.append(time.perf_counter())
        time.sleep(self.connect_seconds)
        self.ledger.append((time.perf_counter(), +1))
        return self.connection_class()

    def size(self) -> int:
        """Return the number of connections that are open now."""
        return sum(change for _, change in self.ledger)

    def reached(self, size: int) -> float | None:
        """Return when so many connections were open for the first time."""
        now = 0
        for instant, change in self.ledger:
            now += change
            if now >= size:
                return instant
        return None


class DBAPI:
    """A PEP 249 module's face, for DBUtils."""

    class OperationalError(Exception): ...

    InterfaceError = InternalError = DatabaseError = Error = OperationalError
    apilevel = "2.0"
    threadsafety = 2
    paramstyle = "format"

    def __init__(self, connect: Callable[[], Any]) -> None:
        self.connect = connect


class Status:
    """What psycopg_pool looks at: libpq's PQTRANS_IDLE."""

    transaction_status = 0


class FakeConnection:
    """Enough of a connection for every pool here.

    Only connects and queries take time, as in HikariCP's stubs.
    """

    driver: ClassVar[FakeDriver]
    autocommit = False
    closed = False
    pgconn = Status

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: object) -> Any:  # noqa: ARG003 -- psycopg's
        return cls.driver.connect()

    def cursor(self) -> "FakeCursor":
        return FakeCursor(self.driver)

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.driver.ledger.append((time.perf_counter(), -1))

    def __enter__(self) -> Self:  # psycopg_pool enters the connection, too
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class FakeCursor:
    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver

    def execute(self, statement: str) -> None:  # noqa: ARG002 -- all are the same
        time.sleep(self.driver.query_seconds)

    def close(self) -> None:
        pass
