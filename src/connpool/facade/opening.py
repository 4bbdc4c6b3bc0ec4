"""`connect`: a DB-API connection over a pool; and the options it has in common with `manage`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from connpool.options import DEFAULT, Default, check_timeout
from connpool.pool import ConnectionPool

from .drivers import Driver
from .link import Link
from .registry import driver_of_pool
from .session import open_session

__all__ = ("OnSessionState", "Options", "Pooling", "connect", "open_connection")

Pooling: TypeAlias = Literal["session", "transaction", "statement"]
OnSessionState: TypeAlias = Literal["pin", "raise"]

_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")


@dataclass(frozen=True)
class Options:
    """How connections of the facade behave, checked."""

    pooling: Pooling = "session"
    on_session_state: OnSessionState = "pin"
    settings: Mapping[str, object] | None = None
    autocommit: bool | None = None
    timeout: float | Default | None = DEFAULT
    exclusive: bool = False

    def __post_init__(self) -> None:
        if self.pooling not in ("session", "transaction", "statement"):
            raise ValueError(f'pooling={self.pooling!r}: must be "session", "transaction" or "statement"')
        if self.on_session_state not in ("pin", "raise"):
            raise ValueError(f'on_session_state={self.on_session_state!r}: must be "pin" or "raise"')
        if self.autocommit is not None and not isinstance(self.autocommit, bool):
            raise TypeError(
                f"autocommit={self.autocommit!r}: must be True, False, or None for the pool's own"
            )
        if self.pooling == "statement" and self.autocommit is False:
            raise ValueError(
                'autocommit=False: with pooling="statement" no statement may leave a transaction'
            )
        if self.timeout is not DEFAULT:
            check_timeout("timeout", self.timeout)
        if self.settings is None:
            return
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings={self.settings!r}: must be a mapping of names to values, or None")
        for name, value in self.settings.items():
            if not _SETTING.fullmatch(str(name)):
                raise ValueError(f"settings: {name!r} must be the name of a setting")
            if not isinstance(value, str | int | float):
                raise TypeError(f"settings: {name}={value!r} must be a text, a number, True or False")

    def told(self, driver: Driver, arguments: Mapping[str, Any]) -> Options:
        """Return the options of a connection that ``connect(**arguments)`` of a driver asked for."""
        if self.pooling == "session":
            return self
        autocommit = True if self.pooling == "statement" else driver.autocommit_of(arguments)
        return replace(self, autocommit=autocommit)


def connect(
    pool: ConnectionPool[Any],
    *,
    pooling: Pooling = "session",
    on_session_state: OnSessionState = "pin",
    settings: Mapping[str, object] | None = None,
    autocommit: bool | None = None,
    timeout: float | Default | None = DEFAULT,
    exclusive: bool = False,
) -> Any:
    """Return a DB-API connection of the pool's driver, for code that calls ``close()``.

    ``"session"`` holds one real connection from here to ``close()``.  ``"transaction"`` holds one only while
    a transaction is open or a statement runs, so that many such objects share few sessions;
    ``"statement"`` is the same and refuses transactions of several statements.

    Args:
        pool: Where real connections come from.
        pooling: When a real connection is held.
        on_session_state: What becomes of a statement that leaves something in the session, such as SET or
            LISTEN, in the last two modes.  ``"pin"`` keeps the session for this object until its
            ``close()``, and nobody gets it afterwards; ``"raise"`` raises `PoolMisuse` before it is sent.
        settings: Settings of the session, carried along: ``{"search_path": "tenant_7"}``.  They are set
            where a borrowed session has others.  ``None``: none.
        autocommit: As the driver's.  ``None``: as the pool's connections have it; with
            ``pooling="statement"``, on.
        timeout: Seconds to wait for a real connection, each time.  ``None``: no limit.
        exclusive: Whether the pool's connections are borrowed through facades alone.  Then `settings` stay
            in the session until somebody wants others; else they are undone before it goes home, which
            costs a round trip each time.

    Raises:
        TypeError, ValueError: An option breaks its rule.
        PoolError: As `ConnectionPool.acquire`; only session mode borrows here.
    """
    if pooling == "statement" and autocommit is None:
        autocommit = True
    options = Options(pooling, on_session_state, settings, autocommit, timeout, exclusive)
    return open_connection(pool, options, None)


def open_connection(pool: ConnectionPool[Any], options: Options, driver: Driver | None) -> Any:
    """Return a connection of the facade in the mode that is asked for."""
    whole = options.pooling == "session"
    if whole and not options.settings and pool.reset_policy != "tracked":
        return open_session(pool, options.timeout, options.autocommit, driver)
    driver = driver or driver_of_pool(pool)
    link = Link(pool, options, driver)
    if whole:
        with link.lock:
            link.borrow()
            link.holds = 1
    return driver.face(link)
