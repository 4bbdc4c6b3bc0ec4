"""`manage`: a driver's module whose ``connect`` pools.

One pool for each set of arguments, in each process: code that calls ``module.connect(...)`` and ``close()``
gets pooled connections, and everything else of the module is the driver's own.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from connpool.errors import PoolClosed
from connpool.options import DEFAULT, Default, PoolOptions
from connpool.pool import ConnectionPool

from .drivers import Driver
from .opening import OnSessionState, Options, Pooling, open_connection
from .registry import driver_of_module

__all__ = ("Managed", "manage")

_NAMES_OF_SQLITE = (
    *("database", "timeout", "detect_types", "isolation_level", "check_same_thread", "factory"),
    *("cached_statements", "uri"),
)


class Managed(types.ModuleType):
    """A driver's module, with pooling: what `manage` returns."""

    def __init__(self, module: types.ModuleType, options: Options, pool_options: Mapping[str, Any]) -> None:
        super().__init__(module.__name__, module.__doc__)
        self._module = module
        self._driver = driver_of_module(module)
        self._options = options
        self._pool_options = dict(pool_options)
        self._pools: dict[object, ConnectionPool[Any]] = {}
        self._closed = False

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Return a pooled connection; the arguments are the driver's.

        Raises:
            PoolError: As `ConnectionPool.acquire`; for PostgreSQL, MySQL and SQLite these are the driver's
                ``OperationalError``, too.
        """
        if self._closed:
            raise PoolClosed(f"{self.__name__}: its pools were closed by close()")
        key = _key((args, kwargs))
        pool = self._pools.get(key)
        if pool is None:
            # Two threads may make one each, and both get the same; a pool that never opened is nothing.
            pool = self._pools.setdefault(key, self._pool(args, kwargs))
        return open_connection(pool, self._options.told(self._driver, kwargs), self._driver)

    @property
    def pools(self) -> tuple[ConnectionPool[Any], ...]:
        """The pools there are, one for each set of arguments, in the order of their first use."""
        return tuple(self._pools.values())

    def dispose(self) -> None:
        """Close all pools; the next `connect` begins anew."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def close(self) -> None:
        """Close all pools for good: `connect` raises `PoolClosed` from then on.  Twice is harmless."""
        self._closed = True
        self.dispose()

    def _pool(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ConnectionPool[Any]:
        options = dict(self._pool_options)
        number = len(self._pools) + 1
        name = options.pop("name", None)
        options["name"] = (
            f"{self.__name__}-{number}" if name is None else name if number == 1 else f"{name}-{number}"
        )
        if self._options.pooling != "session":
            kwargs = self._driver.pooled_arguments(kwargs)
        return ConnectionPool(_source(self._module, self._driver, args, kwargs), **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __dir__(self) -> Iterable[str]:
        return sorted({*dir(self._module), "connect", "pools", "dispose", "close"})

    def __repr__(self) -> str:
        # No arguments: one of them is a password.
        return f"<{self.__name__}, pooled by connpool: {len(self._pools)} pools>"


def manage(
    module: types.ModuleType,
    *,
    pooling: Pooling = "session",
    on_session_state: OnSessionState = "pin",
    settings: Mapping[str, object] | None = None,
    timeout: float | Default | None = DEFAULT,
    **pool_options: Any,
) -> Any:
    """Return a module like *module* whose ``connect`` gives pooled connections.

    There is one pool for each set of arguments of ``connect``, shared by all threads of the process::

        pymysql = connpool.manage(pymysql, max_size=10)
        conn = pymysql.connect(host="db", user="app", password=...)
        conn.close()  # goes home

    Prefer a `ConnectionPool` of your own where you can change the code: a block cannot be forgotten.

    Args:
        module: A PEP 249 module: psycopg, psycopg2, pymysql, MySQLdb, sqlite3, oracledb, any other.
        pooling: As `connpool.facade.connect`, like the next three.
        on_session_state: As there.
        settings: As there, for all connections.
        timeout: As there.
        pool_options: As `ConnectionPool`, for each of the pools.

    Raises:
        TypeError, ValueError: An option breaks its rule, or *module* has no ``connect``.
    """
    if not callable(getattr(module, "connect", None)):
        raise TypeError(f"module={module!r}: must be a DB-API module, with connect()")
    options = Options(pooling, on_session_state, settings, None, timeout, exclusive=bool(settings))
    PoolOptions(**pool_options)  # refused here rather than at the first connect
    return Managed(module, options, pool_options)


def _source(module: types.ModuleType, driver: Driver, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a pool opens connections with: an adapter that makes the call, where there is one."""
    # An adapter needs its driver, so it is imported with the first connection to it.
    if driver.name == "psycopg":
        from connpool.adapters.psycopg import PsycopgAdapter

        return PsycopgAdapter(*args, **kwargs)
    if driver.name == "pymysql" and not args:
        from connpool.adapters.pymysql import PyMySQLAdapter

        return PyMySQLAdapter(**kwargs)
    if driver.name == "sqlite3":
        from connpool.adapters.sqlite import SQLiteAdapter

        given = dict(zip(_NAMES_OF_SQLITE, args, strict=False)) | kwargs
        return SQLiteAdapter(given.pop("database"), **given)
    if driver.name in ("psycopg2", "MySQLdb", "oracledb"):
        from connpool.adapters.dbapi import DBAPIAdapter

        return DBAPIAdapter(module.connect, *args, **kwargs)
    return _connector(module, args, kwargs)


def _connector(module: types.ModuleType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    def connect() -> Any:
        return module.connect(*args, **kwargs)

    connect.__qualname__ = f"{module.__name__}.connect"  # in messages, in place of the arguments
    return connect


class _Same:
    """Stands in a key for an object that has no hash: equal to itself alone, and kept alive."""

    __slots__ = ("it",)

    def __init__(self, it: object) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.it is self.it

    def __hash__(self) -> int:
        return id(self.it)


def _key(value: object) -> object:
    """Return something hashable that is equal for equal arguments: 1 and True are not."""
    if isinstance(value, Mapping):
        return type(value), frozenset((_key(name), _key(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(_key(item) for item in value)
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_key(item) for item in value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value
