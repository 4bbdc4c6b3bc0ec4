"""A deadline that a caller sets around several acquires; each of them spends from the same budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .options import check_timeout
from .threads import clock

_deadline: ContextVar[float | None] = ContextVar("connpool_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Cap every acquire in this block by one deadline.

    The block may acquire any number of connections of any number of pools; waiting for all of them
    together ends *seconds* from now.  Blocks nest: the earliest deadline counts.  It bounds waiting for a
    connection, not your statements.  A context variable carries it, so tasks inherit it and plain
    threads do not.

    Args:
        seconds: From now, 0 or more; 0 lets acquires take an idle connection or fail at once.

    Raises:
        TypeError, ValueError: *seconds* is not a number, negative or not finite.
    """
    if seconds is None:
        raise TypeError("deadline(None): a deadline needs a number of seconds")
    check_timeout("seconds", seconds)
    at, outer = clock() + seconds, _deadline.get()
    token = _deadline.set(at if outer is None else min(at, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


def limits(timeout: float | None) -> tuple[float | None, float | None]:
    """Return the timeout and the deadline of an acquire that begins now and is asked to take *timeout*."""
    now, deadline = clock(), _deadline.get()
    if timeout is not None and (deadline is None or now + timeout < deadline):
        deadline = now + timeout
    if deadline is not None and deadline <= now:
        timeout = 0  # also if it is a surrounding deadline that has passed
    return timeout, deadline
