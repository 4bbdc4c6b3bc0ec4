"""What can go wrong, and nothing else.

::

    PoolError
    ├── PoolTimeout      (also TimeoutError)  no connection within the deadline; some are in use
    ├── PoolOverloaded                        `max_waiting` callers are waiting already
    ├── PoolUnavailable                       no connection can be opened; the driver's error is the cause
    ├── PoolClosed                            the pool was closed before or while waiting
    └── PoolMisuse       (also RuntimeError)  a rule was broken by the caller; the message names it

Errors of the driver pass through unwrapped: what your statement raises is what you get.  An adapter
ships subclasses of the middle four that are the driver's ``OperationalError`` as well, so that
``except OperationalError`` keeps working where it is written already.

Each error takes exactly one positional argument, its message: ``TimeoutError`` is an ``OSError``, which
would turn two arguments into an errno and a text.  That keeps every one of them picklable, too.
"""


class PoolError(Exception):
    """The root of everything that the pool itself raises."""


class PoolTimeout(PoolError, TimeoutError):
    """No connection became free within the deadline, while some are in use."""


class PoolOverloaded(PoolError):
    """The wait queue is full: `max_waiting` callers are waiting already."""


class PoolUnavailable(PoolError):
    """No connection could be opened; ``__cause__`` is what the driver said."""


class PoolClosed(PoolError):
    """The pool was closed before the call, or while it waited."""


class PoolMisuse(PoolError, RuntimeError):
    """A rule was broken by the caller; the message names the rule."""
