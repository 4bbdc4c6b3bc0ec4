"""Two things that adapters do with a driver's socket behind its back: look at it, and cut it."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable


def ready(fileno: int, seconds: float | None = 0.0, *, read: bool = True, write: bool = False) -> bool:
    """Wait until a socket can be read or written, or has failed; tell whether it is so far.

    `select.poll` is looked up at use, because gevent replaces it.  Windows has none.
    """
    if seconds is not None and seconds < 0:
        seconds = 0.0
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fileno, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
        return bool(poll.poll(None if seconds is None else seconds * 1000))
    sockets = [fileno]
    return any(select.select(sockets if read else [], sockets if write else [], sockets, seconds))


def shut_down(descriptor: Callable[[], int | None]) -> None:
    """End whatever a thread waits for on a socket, from any thread; never blocks, never raises.

    Another thread may close the connection meanwhile, and the number may be somebody else's by then:
    the copy made here is ours only if *descriptor* still gives the same number afterwards.  The copy is
    a plain socket: shutdown() of an ssl.SSLSocket would take its encryption away.
    """
    try:
        fileno = descriptor()
        if fileno is None or fileno < 0:
            return
        with socket.socket(fileno=os.dup(fileno)) as twin:
            if descriptor() == fileno:
                twin.shutdown(socket.SHUT_RDWR)
    except Exception:
        pass  # closed already, in the words of whichever driver, or the other side was faster
