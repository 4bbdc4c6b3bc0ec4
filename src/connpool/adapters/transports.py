"""What adapters of asyncio drivers do with a transport: find its descriptor, and cut it from wherever."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from connpool.adapters.sockets import shut_down


def fileno(transport: Any) -> int:
    """Return the descriptor of a transport's socket; -1 if it is closed."""
    number: int = transport.get_extra_info("socket").fileno()
    return number


def is_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether a loop runs in this thread, and we in it."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def cut(transport: Any, loop: asyncio.AbstractEventLoop, *, keep: object = None) -> None:
    """Close a transport without a word, in any thread, whatever has become of its loop; never raises.

    The server sees the end at once, because the socket is shut down here.  The descriptor is freed in
    the loop, which is the only place where the loop does not mind; if there is no loop any more, here.
    *keep* is kept until then: a StreamWriter warns if it is dropped before.
    """
    shut_down(lambda: fileno(transport))
    # The loop may be closed meanwhile.
    with suppress(RuntimeError):
        if loop.is_closed():
            _free(transport)
        elif is_here(loop):
            transport.abort()
        else:
            loop.call_soon_threadsafe(_abort, transport, keep)


def _abort(transport: Any, _: object) -> None:
    transport.abort()


def _free(transport: Any) -> None:
    """Close the socket of a transport whose loop is closed, so that nobody warns of it later.

    asyncio has no public way: a transport closes its socket in a later turn of its loop.  With another
    loop's transport nothing happens here; its socket is closed with the object.
    """
    with suppress(AttributeError):
        plain = transport
        if hasattr(transport, "_ssl_protocol"):
            transport._closed = True
            plain = transport._ssl_protocol._transport
        plain._closing = True
        if plain._sock is not None:
            plain._sock.close()
            plain._sock = None
