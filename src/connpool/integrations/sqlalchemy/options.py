"""What `create_engine` is told, as options of a ConnectionPool."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Final

from connpool.options import PoolOptions

from .records import Record


def _on_connection(hook: Any) -> Any:
    """Make a function of the driver's connection into one of a record."""
    if not callable(hook):
        return hook  # refused where options are checked

    @functools.wraps(hook)
    def with_record(record: Record) -> object:
        return hook(record.driver_connection)

    return with_record


def _of_records(policy: Any) -> Any:
    """Do the same to the callables of a reset policy."""
    if isinstance(policy, list | tuple):
        return [_of_records(each) for each in policy]
    return policy if isinstance(policy, str) else _on_connection(policy)


def translated(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ConnectionPool, for arguments by SQLAlchemy's names and by ours.

    Raises:
        ValueError: SQLAlchemy's value means what this pool does not do, or the same is said twice.
    """
    own = dict(given)

    def say(theirs: str, **options: object) -> None:
        for name, value in options.items():
            if name in own:
                raise ValueError(f"{theirs} and {name}={own[name]!r}: both say the same; leave one out")
            own[name] = value

    for name, instead in _NOT_HERE.items():
        if own.pop(name, None):
            raise ValueError(f"{name}: not with SQLAlchemy; {instead}")
    size, overflow = own.pop("pool_size", None), own.pop("max_overflow", None)
    if size == 0 or overflow == -1:
        raise ValueError(f"pool_size={size!r}, max_overflow={overflow!r}: a pool without a bound is none")
    if size is not None or overflow is not None:
        total = PoolOptions(max_size=QUEUE_POOL_SIZE if size is None else size).max_size
        say(f"pool_size={size!r}, max_overflow={overflow!r}", max_size=total + (overflow or 0))
    if "timeout" in own:
        timeout = own.pop("timeout")
        say(f"pool_timeout={timeout!r}", acquire_timeout=timeout)
    recycle = own.pop("recycle", -1)
    if recycle == 0:
        raise ValueError("pool_recycle=0: to use each connection once, say max_uses=1")
    if recycle != -1:
        say(f"pool_recycle={recycle!r}", max_lifetime=recycle)
    if own.pop("pre_ping", False):
        say("pool_pre_ping=True", probe_after=0, ping_after=0)
    if not own.pop("use_lifo", True):
        raise ValueError("pool_use_lifo=False: what was used last is lent first; leave it out")
    for name in ("on_connect", "on_acquire", "on_release", "on_close"):
        if name in own:
            own[name] = _on_connection(own[name])
    if "reset" in own:
        own["reset"] = _of_records(own["reset"])
    return own


_NOT_HERE: Final = {
    "debug": "its connections stand behind proxies of SQLAlchemy's already",
    "credentials": "the engine has the address: listen to its do_connect event",
}

QUEUE_POOL_SIZE: Final = 5
"""What `QueuePool` takes for its size if only an overflow is given."""

NAMES: Final = frozenset(
    [
        *(field.name for field in dataclasses.fields(PoolOptions)),
        *("pool_size", "max_overflow", "timeout", "recycle", "pre_ping", "use_lifo"),
    ]
)
