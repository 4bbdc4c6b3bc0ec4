"""The pools of this process: one for each set of effective parameters, shared by all threads.

A pool is made when it is first asked for, which opens nothing.  It is never cached elsewhere: whoever
borrows looks it up, so a pool that somebody has closed is simply followed by a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

from connpool import ConnectionPool

Pool: TypeAlias = ConnectionPool[Any]

_pools: dict[Hashable, Pool] = {}
# Only single operations on it, which are atomic: a lock could be held by a thread that forks away.


def pools() -> list[Pool]:
    """Return the pools that Django's connections use in this process, for metrics and diagnosis."""
    return list(_pools.values())


def pool_for(key: Hashable, make: Callable[[], Pool]) -> Pool:
    """Return the pool of a key; make it if there is none."""
    pool = _pools.get(key)
    # Two threads may make one each: both get the same, and the other has opened nothing.
    return _pools.setdefault(key, make()) if pool is None else pool


def known(key: Hashable) -> Pool | None:
    """Return the pool of a key if there is one."""
    return _pools.get(key)


def drop(key: Hashable, pool: Pool) -> None:
    """Forget a pool, so that the next borrower makes another.

    What is lent stays with its borrowers, who have a reference to the pool; without them it is garbage.
    """
    if _pools.get(key) is pool:  # another thread may have put the next one there already
        _pools.pop(key, None)


def frozen(value: object) -> Hashable:
    """Return something hashable that is equal for equal settings."""
    if isinstance(value, Mapping):
        return frozenset((key, frozen(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(frozen, value))
    if isinstance(value, (set, frozenset)):
        return frozenset(map(frozen, value))
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


class _Same:
    """Something that cannot be hashed, equal to itself alone."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
