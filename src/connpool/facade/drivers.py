"""What the facade needs to know about a driver, beyond what its adapter tells the pool."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from connpool.errors import PoolMisuse

Dialect = Literal["postgresql", "mysql", "sqlite", "unknown"]

__all__ = ("GENERIC", "Driver", "closed_error", "driver_of_module")


class Driver:
    """A DB-API driver of which nothing is known: what PEP 249 says, and no more."""

    name: ClassVar[str] = "DB-API"
    dialect: ClassVar[Dialect] = "unknown"

    with_closes: ClassVar[bool] = False
    """Whether ``with conn:`` closes the connection at its end."""
    with_commits: ClassVar[bool] = False
    """Whether it commits before it closes."""

    def __init__(self, module: str = "") -> None:
        self.module = module
        """The driver's module, by its name."""

    def of(self, conn: object) -> Driver:
        """Return what is known of the driver of a connection."""
        return self if self.module else driver_of(conn)

    # -- connecting ----------------------------------------------------------------------------------

    def autocommit_of(self, arguments: Mapping[str, Any]) -> bool | None:  # noqa: ARG002
        """Return the mode that the arguments of ``connect`` ask for; ``None``: the connection tells."""
        return None

    def pooled_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments for connections that are shared by transactions."""
        return arguments

    def set_autocommit(self, conn: Any, value: bool) -> None:
        """Switch autocommit, if that is not so already; may send something."""
        if conn.autocommit != value:
            conn.autocommit = value


class Psycopg(Driver):
    name = "psycopg"
    dialect = "postgresql"
    with_closes = with_commits = True


class Psycopg2(Driver):
    name = "psycopg2"
    dialect = "postgresql"


class _MySQL(Driver):
    dialect = "mysql"
    with_closes = True

    def set_autocommit(self, conn: Any, value: bool) -> None:
        if bool(conn.get_autocommit()) != value:
            conn.autocommit(value)


class PyMySQL(_MySQL):
    name = "pymysql"


class MySQLdb(_MySQL):
    name = "MySQLdb"


class SQLite(Driver):
    name = "sqlite3"
    dialect = "sqlite"


class OracleDB(Driver):
    name = "oracledb"
    with_closes = True


GENERIC = Driver()

_KNOWN: Mapping[str, type[Driver]] = {
    kind.name: kind for kind in (Psycopg, Psycopg2, PyMySQL, MySQLdb, SQLite, OracleDB)
}


def _driver(module: str) -> Driver:
    top = module.partition(".")[0]
    kind = _KNOWN.get("sqlite3" if top == "_sqlite3" else top, Driver)
    return kind(top)


def driver_of_module(module: types.ModuleType) -> Driver:
    """Return what is known of a driver's module."""
    return _driver(module.__name__)


def driver_of(conn: object) -> Driver:
    """Return what is known of the driver of a connection, by the modules of its classes."""
    tops = [base.__module__.partition(".")[0] for base in type(conn).__mro__[:-1]]
    return _driver(next((top for top in tops if top in _KNOWN), tops[-1]))


# -- use after close -----------------------------------------------------------------------------------


_closed_errors: dict[str, type[PoolMisuse]] = {}


def closed_error(module: str, message: str) -> PoolMisuse:
    """Return a `PoolMisuse` that is the driver's ``InterfaceError``, too, if there is one."""
    kind = _closed_errors.get(module)
    if kind is None:
        kind = _closed_errors.setdefault(module, _closed_error(module))
    return kind(message)


def _closed_error(module: str) -> type[PoolMisuse]:
    base = getattr(sys.modules.get(module), "InterfaceError", None)
    if not isinstance(base, type) or not issubclass(base, Exception):
        return PoolMisuse

    def reduce(error: BaseException) -> tuple[Any, ...]:
        return closed_error, (
            module,
            str(error),
        )  # a class that is made at run time has no name to find it by

    try:
        return type("ConnectionClosed", (PoolMisuse, base), {"__reduce__": reduce, "__module__": __name__})
    except TypeError:  # the driver's is written in C, and of another layout
        return PoolMisuse
