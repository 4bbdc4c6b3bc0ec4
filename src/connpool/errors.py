"""What can go wrong, and nothing else.

::

    PoolError
    ├── PoolTimeout      (also TimeoutError)  no connection within the deadline; some are in use
    │   └── PoolDeadlock                      ... nor ever: all are held by those who wait for one
    ├── PoolOverloaded                        `max_waiting` callers are waiting already
    ├── PoolUnavailable                       no connection can be opened; the driver's error is the cause
    ├── PoolClosed                            the pool was closed before or while waiting
    └── PoolMisuse       (also RuntimeError)  a rule was broken by the caller; the message names it

Errors of the driver pass through unwrapped: what your statement raises is what you get.  An adapter
ships subclasses of the middle four that are the driver's ``OperationalError`` as well, so that
``except OperationalError`` keeps working where it is written already.

Each error takes exactly one positional argument, its message: ``TimeoutError`` is an ``OSError``, which
would turn two arguments into an errno and a text.  That keeps every one of them picklable, too.

The message is the diagnosis: how long, how many, who has the connections, what that means.  The same is
there as data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .stats import PoolStats


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who has a connection."""

    held: float
    """Seconds since he got it."""
    name: str
    """What his thread or task is called."""
    site: str
    """Where he got it: ``app/views.py:41``, the nearest line that is neither the pool's nor a framework's."""
    waits_at: str | None = None
    """Where he waits for another connection of the same pool; ``None`` if he does not."""
    ended: bool = False
    """Whether his thread has ended.  Another one may have the connection now; usually nobody has."""
    _stack: Callable[[], str] | None = field(default=None, repr=False, compare=False)

    def stack(self) -> str:
        """Return what he is doing at this moment, as a traceback; empty if he has ended, or in a copy."""
        return self._stack() if self._stack else ""

    def __str__(self) -> str:
        doing = ", which has ended" if self.ended else ""
        if self.waits_at is not None:
            doing = f", and waits for another one at {self.waits_at}"
        held = f"{self.held:.3g}" if self.held >= 0.001 else "0"
        return f"{held} s by {self.site} in {self.name}{doing}"

    def __reduce__(self) -> tuple[object, ...]:
        return Holder, (self.held, self.name, self.site, self.waits_at, self.ended)


class PoolError(Exception):
    """The root of everything that the pool itself raises."""

    stats: PoolStats | None = None
    """The pool's figures, at most a tenth of a second old; ``None`` if the error is not about them."""
    holders: tuple[Holder, ...] = ()
    """Who has the connections, the longest first."""
    waited: float | None = None
    """Seconds that the caller waited; ``None`` if the error is not about waiting."""
    hint: str = ""
    """What the figures and the holders say; empty if nothing stands out."""


class PoolTimeout(PoolError, TimeoutError):
    """No connection became free within the deadline, while some are in use."""


class PoolDeadlock(PoolTimeout):
    """Every connection is held by somebody who waits for one: no waiting would have helped."""


class PoolOverloaded(PoolError):
    """The wait queue is full: `max_waiting` callers are waiting already."""


class PoolUnavailable(PoolError):
    """No connection could be opened; ``__cause__`` is what the driver said."""


class PoolClosed(PoolError):
    """The pool was closed before the call, or while it waited."""


class PoolMisuse(PoolError, RuntimeError):
    """A rule was broken by the caller; the message names the rule."""
