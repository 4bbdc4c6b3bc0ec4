"""What the backends have in common: where Django opens and closes, they borrow and give back.

Django keeps one wrapper for each thread and alias.  It calls `get_new_connection` when it needs a
connection, and `_close` when the request ends, because ``CONN_MAX_AGE`` is 0.  Those two are all that a
pool has to be told.  What Django gets is the driver's own connection, or with ``pooling="transaction"``
one of `connpool.facade`, which borrows the driver's in between.  The latter stays with its thread as long
as it has nothing: then there is nothing to give back.

Three ways lead around the two:

*A thread ends* without closing.  Its wrapper sits in cycles of references, so its connection would be
found when the collector comes by.  `_Keeper` notices the end itself.

*A fork.*  What the wrapper of the forking thread has borrowed is the parent's; the child forgets it.

*Somebody closes the pool*, as Celery does.  The next borrower finds another one: see `registry`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS
from django.db.backends.base.base import NO_DB_ALIAS

from connpool import Adapter, ConnectionPool, PoolClosed, facade
from connpool.leases import Turns

from . import registry, tracking
from .options import OF_THE_FACADE, Settings, read

if TYPE_CHECKING:
    from .registry import Pool

_log = logging.getLogger("connpool.django")

DDL_WAITS = 2.0
"""Seconds that whoever drops or copies a database waits for its borrowers; then they are cut."""


_ended: deque[tuple[str, str, str]] = deque(maxlen=100)
"""Threads that have ended with a connection, for the log.

Not told at once: to make a log record one must be a thread, and `threading` has forgotten this one already.
"""


def _tell_of_the_ended() -> None:
    while _ended:
        _log.info(
            "%s ended with a connection to %r, which went back to its pool%s; at the end of a thread's work"
            " call django.db.connections.close_all()",
            *_ended.popleft(),
        )


class _Keeper:
    """The wrappers of one thread.  It goes when the thread ends, and gives back what they still have."""

    __slots__ = ("__weakref__", "thread", "wrappers")

    def __init__(self) -> None:
        self.thread = threading.current_thread().name
        # Weakly: a wrapper that its user has lost is the pool's affair.
        self.wrappers: weakref.WeakSet[PooledWrapper] = weakref.WeakSet()

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        for wrapper in list(self.wrappers):
            # One that other threads may use as well, as those of a live server in a test, stays with them.
            if wrapper.is_kept_by(self) and not wrapper.allow_thread_sharing:
                wrapper.take_home(self.thread)


class _Thread(threading.local):
    def __init__(self) -> None:
        self.keeper = _Keeper()


_thread = _Thread()


def _forget_inherited() -> None:
    for wrapper in list(_thread.keeper.wrappers):
        wrapper.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)


class PooledWrapper:
    """Mixed into Django's ``DatabaseWrapper``, in front of it."""

    alias: str
    allow_thread_sharing: bool
    connection: Any
    settings_dict: dict[str, Any]
    timezone: Any
    timezone_name: str
    wrap_database_errors: Any

    _keeper: weakref.ref[_Keeper] | None = None
    """The thread that has borrowed last; weakly, for nothing else may keep it."""
    _lent: Any = None
    """What is lent.  `connection` may be somebody's wrapper of it."""
    _lease: Turns[Any] | None = None
    """What gives it back, if it is the driver's."""
    _link: Any = None
    """What gives it back, if it is the facade's."""
    _turn: int = -1
    """The turn of the facade's after which it was looked at."""
    _tracks: bool = False
    """Whether what was not altered needs no reset."""
    _seen: object = None
    """The settings that the following were made of."""
    _key: Hashable = None
    _params: dict[str, Any] | None = None
    """Django's parameters for the driver."""
    _by_transaction: bool = False

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        super().__init__(settings_dict, alias)  # type: ignore[call-arg] # Django's
        if alias != NO_DB_ALIAS:
            read(alias, settings_dict)  # what is wrong is refused now, and not by the first request

    # -- for each kind of database

    def make_adapter(self, params: dict[str, Any]) -> Adapter[Any]:
        """Return the adapter for Django's parameters."""
        raise NotImplementedError

    def pool_defaults(self) -> dict[str, Any]:
        """Return options that stand where the user's settings say nothing."""
        return {"reset": "tracked"}

    def server_capacity(self) -> tuple[int, int]:
        """Return how many ordinary sessions the server admits, and how many it has; zeros: no bound."""
        raise NotImplementedError

    # -- the pool

    def pool_settings(self) -> Settings | None:
        """Return the settings of the pool; ``None`` for a connection without one."""
        return None if self.alias == NO_DB_ALIAS else read(self.alias, self.settings_dict)

    @property
    def pool(self) -> Pool | None:
        """The pool that this process has for the present settings; it is made if need be."""
        if self.alias == NO_DB_ALIAS:
            return None
        key = self._pool_key()
        pool = registry.known(key)
        if pool is not None:
            if not pool.closed:
                return pool
            registry.drop(key, pool)  # somebody has closed it, and not said so to us
        chosen = self.pool_settings()
        return None if chosen is None else registry.pool_for(key, lambda: self._make_pool(chosen))

    def _make_pool(self, chosen: Settings) -> Pool:
        options = self.pool_options(chosen)
        return ConnectionPool(self.make_adapter(self.get_connection_params()), **options)

    def pool_options(self, chosen: Settings) -> dict[str, Any]:
        """Return the options of the pool."""
        defaults = self.pool_defaults()
        if chosen.options.get("behind") is not None:
            defaults["reset"] = "rollback"  # the sessions are the proxy's, and a reset meets any of them
        return {"name": self.alias, **defaults, **chosen.options}

    def _pool_key(self) -> Hashable:
        """Return what the effective parameters are: aliases that lead to the same place share a pool."""
        said = self.settings_dict
        zone = (self.timezone, self.timezone_name)  # Django's settings, as it keeps them here
        if self._seen == (said, zone):  # most often nothing has changed since the last time
            return self._key
        self._key = (
            type(self),
            *(said.get(name) for name in ("NAME", "USER", "PASSWORD", "HOST", "PORT", "AUTOCOMMIT")),
            *zone,
            registry.frozen(said["OPTIONS"]),
        )
        self._params = None
        self._by_transaction = self._said("pooling") == "transaction"
        # A copy as deep as anybody's changes are likely to go.
        options = {name: _copied(value) for name, value in said["OPTIONS"].items()}
        self._seen = ({**said, "OPTIONS": options}, zone)
        return self._key

    def _said(self, option: str) -> object:
        """Return an option of the pool's as it was given; it has been checked."""
        said = self.settings_dict["OPTIONS"].get("pool")
        return said.get(option) if isinstance(said, dict) else None

    def pools_transactions(self) -> bool:
        """Tell whether connections are given back after each transaction."""
        self._pool_key()
        return self._by_transaction

    def close_pool(self) -> None:
        """Close the pool of the present settings; whoever borrows next opens another.

        What is lent stays with its borrowers and is closed when it comes back.
        """
        key = self._pool_key()
        pool = registry.known(key)
        if pool is not None:
            registry.drop(key, pool)
            pool.resize(min_idle=0)
            pool.clear()

    def close_pool_for_good(self) -> None:
        """Close the pool, and cut who does not give back in time: its database is about to go."""
        key = self._pool_key()
        pool = registry.known(key)
        if pool is not None:
            registry.drop(key, pool)
            pool.close(DDL_WAITS)

    # -- borrowing and giving back, in place of opening and closing

    def ensure_connection(self) -> None:
        """Borrow, if that is not done already; Django's own would look first whether a loop runs here."""
        if self.connection is None:
            super().ensure_connection()  # type: ignore[misc] # Django's

    def get_connection_params(self) -> dict[str, Any]:
        """Return Django's parameters for the driver."""
        self._pool_key()
        params = self._params
        if params is None:
            params = super().get_connection_params()  # type: ignore[misc] # Django's
            params.pop("pool", None)
            self._params = params
        return dict(params)  # Django asks before each borrow, whose connection has them already

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Borrow a connection."""
        pool = self.pool
        if pool is None:
            return super().get_new_connection(conn_params)  # type: ignore[misc] # Django's
        if _ended:
            _tell_of_the_ended()
        if self._lent is not None:  # somebody has set `connection` to None by himself
            self._give_back()
        try:
            self._borrow(pool)
        except PoolClosed:  # just now
            self._borrow(self.pool or pool)
        keeper = _thread.keeper
        if not self.is_kept_by(keeper):
            keeper.wrappers.add(self)
            self._keeper = weakref.ref(keeper)
        return self._lent

    def is_kept_by(self, keeper: _Keeper) -> bool:
        """Tell whether a thread is the last that has borrowed."""
        return self._keeper is not None and self._keeper() is keeper

    def _borrow(self, pool: Pool) -> None:
        if self._by_transaction:
            self._lent = self._open_facade(pool)
            self._link = self._lent._link
            return
        lease = pool.turns()
        conn = lease.__enter__()
        lease.note_caller()
        self._tracks = pool.reset_policy == "tracked"
        if self._tracks:
            tracking.begin(conn)
        self._lease, self._lent = lease, conn

    def _open_facade(self, pool: Pool) -> Any:
        said: dict[str, Any] = {name: self._said(name) for name in OF_THE_FACADE}
        said = {name: value for name, value in said.items() if value is not None}
        # Who shares this pool has the same settings, so they may stay in the sessions.
        return facade.connect(
            pool,
            pooling="transaction",
            exclusive="settings" in said,
            autocommit=self.settings_dict["AUTOCOMMIT"],  # or each look at it would borrow
            **said,
        )

    def _close(self) -> None:
        if self._lent is None:
            super()._close()  # type: ignore[misc] # Django's
            return
        # Whatever becomes of it, it is not ours any more.
        self.connection = None
        with self.wrap_database_errors:
            self._give_back()

    def _give_back(self) -> None:
        conn, lease = self._lent, self._lease
        self._lent = self._lease = self._link = None
        if lease is None:
            conn.close()
            return
        if self._tracks and not tracking.altered(conn):
            lease.spare_reset()
        del conn  # the pool's again
        lease.__exit__(None, None, None)

    def take_home(self, thread: str) -> None:
        """Give back what a thread that has ended still had."""
        if self._lent is None or (self._link is not None and self._link.is_as_new()):
            return  # nobody else could use what it has
        self.connection = None
        failure = ""
        try:
            self._give_back()
        except Exception as exc:  # of a hook of the user's; the connection is closed, and its place is free
            failure = f" ({exc!r})"
        _ended.append((thread, self.alias, failure))

    def forget(self) -> None:
        """Forget what is lent, in a forked child: it is the parent's."""
        if self._lent is not None:
            self.connection = self._lent = self._lease = self._link = None

    # -- health: the pool's affair

    def close_if_health_check_failed(self) -> None:
        """Do nothing: what the pool lends is fit for use."""
        if self._lent is None and self.connection is not None:
            super().close_if_health_check_failed()  # type: ignore[misc] # Django's

    def close_if_unusable_or_obsolete(self) -> None:
        """Give back: what Django would find out first, with a query, the pool does by itself."""
        link = self._link
        if link is not None and link.is_as_new():  # it may serve the next request, too
            if link.turn != self._turn:
                self._turn = link.turn
                return
            # Nothing was said since the last look, so this one is before a request: is the pool still ours?
            if registry.known(self._pool_key()) is link.pool:
                return
        if self._lent is None:
            super().close_if_unusable_or_obsolete()  # type: ignore[misc] # Django's
            return
        self.health_check_done = False
        self.close()

    if TYPE_CHECKING:
        health_check_done: bool

        def close(self) -> None: ...


def _copied(value: object) -> object:
    return dict(value) if isinstance(value, dict) else value
