"""Declared settings of a session: carried along, and set where a borrowed session has others.

A session remembers what was set in it, and what was there before.  Where only facades borrow, the settings
stay until somebody wants others, so a session that serves one tenant for a while hears of it once; where
others borrow from the same pool, they are undone before the connection goes home.

Settings are read and set outside of transactions, because a ROLLBACK would undo them.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from connpool.errors import PoolMisuse
from connpool.pool import ConnectionPool

if TYPE_CHECKING:
    from .drivers import Driver
    from .opening import Options

__all__ = ("Carrier",)


class _Session:
    """What is known of one session: by the names of settings, what was there, and what is there now."""

    __slots__ = ("now", "original")

    def __init__(self) -> None:
        self.original: dict[str, object] = {}
        self.now: dict[str, object] = {}


_sessions: weakref.WeakKeyDictionary[Any, _Session] = weakref.WeakKeyDictionary()


class Carrier:
    """Applies the settings of one connection of the facade to real ones."""

    __slots__ = ("_driver", "_pool", "exclusive", "wanted")

    def __init__(self, pool: ConnectionPool[Any], options: Options, driver: Driver) -> None:
        self.wanted = {name: _text(value) for name, value in (options.settings or {}).items()}
        if self.wanted and driver.dialect not in ("postgresql", "mysql"):
            raise PoolMisuse(
                f"settings={list(self.wanted)}: they can be carried for PostgreSQL and MySQL,"
                f" not for {driver.module}"
            )
        self.exclusive = options.exclusive
        self._pool = pool
        self._driver = driver

    def apply(self, real: Any) -> None:
        """Set what is not as it should be: no word to the server if all is."""
        session = _sessions.get(real)
        if session is None:
            session = _sessions.setdefault(real, _Session())
        elif session.now == self.wanted:
            return
        wanted = {**{name: session.original[name] for name in session.now}, **self.wanted}
        changes = {
            name: value
            for name, value in wanted.items()
            if name not in session.now or session.now[name] != value
        }
        unknown = [name for name in changes if name not in session.original]
        self._set(real, session, changes, unknown)

    def undo(self, real: Any) -> None:
        """Put back what was there, if others borrow from this pool; if the pool resets, it is gone anyway."""
        if self._pool.resets_sessions:
            self.forget(real)
            return
        session = _sessions.get(real)
        if not self.exclusive and session is not None and session.now:
            self._set(real, session, {name: session.original[name] for name in session.now}, [])

    def forget(self, real: Any) -> None:
        """Forget what was set: the session is closed, or reset."""
        _sessions.pop(real, None)

    def _set(self, real: Any, session: _Session, changes: dict[str, Any], unknown: list[str]) -> None:
        try:
            found = self._driver.carry(real, changes, unknown)
        except BaseException:
            _sessions.pop(real, None)  # half of them may be set
            raise
        session.original.update(zip(unknown, found, strict=True))
        for name, value in changes.items():
            if name in self.wanted and value == self.wanted[name]:
                session.now[name] = value
            else:
                session.now.pop(name, None)


def _text(value: object) -> object:
    """Return a value as servers take it: a truth value as a word."""
    return ("on" if value else "off") if isinstance(value, bool) else value
