"""What adapters do with a driver's socket: look at it, cut it, and keep it from dying unheard."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache


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


@contextmanager
def _twin(fileno: int) -> Iterator[socket.socket]:
    """Provide a plain socket on a copy of a descriptor.

    The methods of an ssl.SSLSocket do more than one wants: its shutdown() takes the encryption away.
    """
    copy = os.dup(fileno)
    try:
        twin = socket.socket(fileno=copy)
    except BaseException:  # not a socket
        os.close(copy)
        raise
    with twin:
        yield twin


def shut_down(descriptor: Callable[[], int | None]) -> None:
    """End whatever a thread waits for on a socket, from any thread; never blocks, never raises.

    Another thread may close the connection meanwhile, and the number may be somebody else's by then:
    the copy made here is ours only if *descriptor* still gives the same number afterwards.
    """
    try:
        fileno = descriptor()
        if fileno is None or fileno < 0:
            return
        with _twin(fileno) as twin:
            if descriptor() == fileno:
                twin.shutdown(socket.SHUT_RDWR)
    except Exception:
        pass  # closed already, in the words of whichever driver, or the other side was faster


def disconnect(descriptor: Callable[[], int | None]) -> None:
    """Let a descriptor lead nowhere, in a forked child; never raises, and sends nothing.

    The session belongs to the parent.  A close() would say goodbye on its socket, and as long as the child
    holds a copy of it, the server does not see the parent die.  The number stays taken: the driver still
    believes that it is its own.
    """
    try:
        fileno = descriptor()
        if fileno is None or fileno < 0:
            return
        try:
            nowhere = os.open(os.devnull, os.O_RDONLY)  # what is read ends, and a write fails
        except OSError:
            os.close(fileno)  # there was no descriptor left: now there is one
            nowhere = os.open(os.devnull, os.O_RDONLY)
        if nowhere != fileno:
            os.dup2(nowhere, fileno, inheritable=False)
            os.close(nowhere)
    except Exception:
        pass  # closed already: there is nothing to disconnect


KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds of silence, seconds between probes, probes: a peer that vanished is found out within 90 s.

Linux waits two hours by default; NAT gateways and load balancers forget a silent connection in 5 minutes.
``TCP_KEEPALIVE`` is what macOS calls the first.
"""

USER_TIMEOUT = 30_000
"""Milliseconds for which what was sent may stay unacknowledged (RFC 5482); Linux waits for 15 minutes."""


def keep_alive(fileno: int, *, leave: Collection[str] = ()) -> None:
    """Have the kernel find out that a peer has vanished; nothing is raised if it refuses.

    Keepalive alone does not help while something sent is unacknowledged: that is TCP_USER_TIMEOUT's.
    What is not as in a new socket the user has set, and it stays; so does what the administrator of the
    machine has made shorter for all of them.

    Args:
        fileno: The socket; one that is not TCP's is left alone.
        leave: The options, by their names in `socket`, that the user has set to what a new socket has.
    """
    # An option that is not to be had, or a connection that is dead already, is no reason to fail here:
    # the limits of the steps hold without.
    with suppress(OSError), _twin(fileno) as twin:
        if twin.family not in (socket.AF_INET, socket.AF_INET6):
            return
        if "SO_KEEPALIVE" not in leave:
            with suppress(OSError):
                twin.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        defaults = _defaults(twin.family)
        for name, value in (*KEEPALIVE.items(), ("TCP_USER_TIMEOUT", USER_TIMEOUT)):
            default = defaults.get(name)
            if default is None or name in leave or 0 < default <= value:
                continue
            option = getattr(socket, name)
            with suppress(OSError):
                if twin.getsockopt(socket.IPPROTO_TCP, option) == default:
                    twin.setsockopt(socket.IPPROTO_TCP, option, value)


@cache
def _defaults(family: socket.AddressFamily) -> dict[str, int]:
    """Return what a new socket has of the options that this system knows; 0 is no limit."""
    with socket.socket(family, socket.SOCK_STREAM) as fresh:
        found = {}
        for name in (*KEEPALIVE, "TCP_USER_TIMEOUT"):
            with suppress(AttributeError, OSError):
                found[name] = fresh.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        return found
