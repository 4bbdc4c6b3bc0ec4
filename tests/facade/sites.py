"""The drivers that the facade is tested with, each on its real server, which is asked at the end."""

import importlib
import importlib.util
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from servers import MariaDB, PostgreSQL, wait_until

import connpool
from connpool.facade import Managed

DRIVERS = ("psycopg", "psycopg2", "pymysql", "MySQLdb", "sqlite3")
THERE = tuple(name for name in DRIVERS if importlib.util.find_spec(name))  # mysqlclient has to be compiled


class Site:
    """A driver, what its ``connect`` is given, and what its server sees."""

    made = False
    session: str = ""  # a statement that names the server's session

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.module: Any = importlib.import_module(name)
        self.name = name
        self.arguments = dict(arguments)
        self.table = f"facade_{secrets.token_hex(4)}"
        self.managed: list[Managed] = []

    def manage(self, **options: Any) -> Any:
        """Return the module, pooled; its sessions are counted and its pools closed at the end of the test."""
        managed = connpool.manage(self.module, **options)
        self.managed.append(managed)
        return managed

    def sessions(self) -> int:
        raise NotImplementedError

    def look(self) -> None:
        """Compare what the server sees with what the pools say."""
        pools = [pool for managed in self.managed for pool in managed.pools]
        assert all(pool.stats().in_use == 0 for pool in pools), [pool.stats().in_use for pool in pools]
        wait_until(
            lambda: self.sessions() == sum(pool.stats().size for pool in pools),  # some may be closing
            what="the server has the sessions that the pools have",
        )

    def run(self, statement: str) -> None:
        """Execute on a connection of the driver's own, and commit."""
        conn = self.module.connect(**self.arguments)
        conn.cursor().execute(statement)
        conn.commit()
        conn.close()

    def make_table(self) -> str:
        """Make the table of this test, which goes at its end."""
        self.run(f"create table {self.table} (x integer primary key, y varchar(20))")
        self.made = True
        return self.table

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            if exc_type is None:
                self.look()
        finally:
            for managed in self.managed:
                managed.close()
            if self.made:
                self.run(f"drop table {self.table}")


class OnPostgreSQL(Site):
    session = "select pg_backend_pid()"

    def __init__(self, name: str, server: PostgreSQL) -> None:
        self.server = server
        self.application = f"facade-{secrets.token_hex(4)}"
        super().__init__(name, {**server.params, "application_name": self.application})

    def sessions(self) -> int:
        return len(self.server.census(application_name=self.application))


class OnMariaDB(Site):
    session = "select connection_id()"

    def __init__(self, name: str, server: MariaDB) -> None:
        self.server = server
        super().__init__(name, {**server.params, "host": "127.0.0.1"})
        self.before = {session.id for session in server.census()}

    def sessions(self) -> int:
        return len({session.id for session in self.server.census()} - self.before)


class OnFile(Site):
    session = "select 1"

    def __init__(self, path: Path) -> None:
        super().__init__("sqlite3", {"database": str(path)})

    def sessions(self) -> int:  # nobody else knows
        return sum(pool.stats().size for managed in self.managed for pool in managed.pools)


SiteOf = Callable[[str], Site]
