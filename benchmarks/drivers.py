"""What the pools pool: connections of real drivers, or of a fake one with scripted latencies."""

import asyncio
import importlib
import tempfile
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
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


class AsyncDriver:
    """psycopg's `AsyncConnection`, asyncpg, or aiosqlite with a file of its own, as it is: no option set."""

    connection_class: Any
    connect: Callable[..., Coroutine[Any, Any, Any]]

    def __init__(self, name: str, dsn: str) -> None:
        self.name, self.dsn = name, dsn
        self.module: Any = importlib.import_module(name)
        if name == "psycopg":
            self.connection_class = self.module.AsyncConnection
            self.connect = partial(self.connection_class.connect, dsn)
        elif name == "asyncpg":
            self.connection_class = self.module.Connection
            # Its pool passes on the DSN, and what it adds to a call of its own.
            self.connect = lambda *_, **how: self.module.connect(dsn, **how)
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="benchmarks-")  # goes with its driver
            self.connect = partial(
                self.module.connect, Path(self._folder.name, "db"), check_same_thread=False
            )


class Ledger:
    """When connections were dialled, opened and closed."""

    def __init__(self) -> None:
        self.dials: list[float] = []  # when each began
        self.ledger: list[tuple[float, int]] = []  # when a connection was opened (+1) or closed (-1)

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


class SlowAsyncDriver(AsyncDriver, Ledger):
    """psycopg's or asyncpg's connections, which take so much longer to open, and a ledger of them."""

    def __init__(self, name: str, dsn: str, more_seconds: float) -> None:
        AsyncDriver.__init__(self, name, dsn)
        Ledger.__init__(self)
        self._more = more_seconds
        self._open: set[Any] = set()
        plain = self.connection_class
        own: Any = {
            end: self._recorded(getattr(plain, end)) for end in ("close", "terminate") if end in dir(plain)
        }
        if name == "psycopg":  # its pool calls the class
            dial = plain.connect.__func__
            own["connect"] = classmethod(
                lambda cls, *args, **how: self._dialled(partial(dial, cls, *args, **how))
            )
            self.connection_class = type("Connection", (plain,), own)
            self.connect = partial(self.connection_class.connect, dsn)
        else:
            self.connection_class = type("Connection", (plain,), own)
            plainly = self.connect
            asked = {"connection_class": self.connection_class}
            self.connect = lambda *_, **how: self._dialled(partial(plainly, **(how | asked)))

    async def _dialled(self, dial: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        self.dials.append(time.perf_counter())
        await asyncio.sleep(self._more)
        conn = await dial()
        self.ledger.append((time.perf_counter(), +1))
        self._open.add(conn)
        return conn

    def _recorded(self, end: Callable[..., Any]) -> Callable[..., Any]:
        def ending(conn: Any, *args: Any, **how: Any) -> Any:
            if conn in self._open:
                self._open.remove(conn)
                self.ledger.append((time.perf_counter(), -1))
            return end(conn, *args, **how)

        return ending


class FakeDriver(Ledger):
    """A driver whose connects and queries take the time that they are told."""

    def __init__(self, connect_seconds: float, query_seconds: float) -> None:
        super().__init__()
        self.dsn = ""
        self.module: Any = DBAPI(self.connect)
        self.connect_seconds = connect_seconds
        self.query_seconds = query_seconds
        self.connection_class: Any = type("Connection", (FakeConnection,), {"driver": self})

    def connect(self) -> Any:
        self.dials.append(time.perf_counter())
        time.sleep(self.connect_seconds)
        self.ledger.append((time.perf_counter(), +1))
        return self.connection_class()


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
