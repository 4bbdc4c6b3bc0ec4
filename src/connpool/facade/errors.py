"""Use after close: an error that is the pool's and the driver's."""

from __future__ import annotations

import sys
from typing import Any

from connpool.errors import PoolMisuse

__all__ = ("closed_error",)

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
