"""What adapters do with a driver's classes: a pooled connection gets a subclass of its own one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Subclasses:
    """The subclass for each class of connections, a driver's or a user's, that has come into a pool.

    Args:
        make: Makes the subclass.  It takes the name, the module and the docstring of its base: nobody
            but the adapter need know of it.
    """

    def __init__(self, make: Callable[[type[Any]], type[Any]]) -> None:
        self._make = make
        self._made: dict[type[Any], type[Any]] = {}

    def of(self, base: type[Any]) -> type[Any]:
        """Return the subclass of a class; itself, if it is one of them."""
        if base in self._made.values():
            return base
        made = self._made.get(base)
        if made is None:
            made = self._make(base)
            made.__name__, made.__qualname__ = base.__name__, base.__qualname__
            made.__module__, made.__doc__ = base.__module__, base.__doc__
            # Two threads may have made one each; all connections of a class get the same.
            made = self._made.setdefault(base, made)
        return made

    def give(self, conn: Any) -> bool:
        """Give a connection the subclass of its class; tell whether it had none of them yet.

        Raises:
            TypeError: Its class has a layout of its own, so that its instances can have no other.
        """
        own, made = type(conn), self.of(type(conn))
        if made is own:
            return False
        conn.__class__ = made
        return True
