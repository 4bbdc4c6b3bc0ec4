"""What happens to a pool that its operator wants to hear of: rare events, by stable names.

Each is one line in the log ``connpool``, with the event's fields as attributes of the record, and one call
of each of the pool's `observers`.

================== ======= ============================================================================
name               level   when
================== ======= ============================================================================
dial_failed        WARNING a connection could not be opened; ``error``, ``fault``
dial_recovered     INFO    one could again; ``failures``, ``seconds`` since the first of them
session_lost       WARNING a connection was found dead, silent or on a demoted server; ``reason``
server_limit       WARNING the server ends idle sessions sooner than `idle_timeout`; ``seconds``
long_hold          WARNING a connection is held for more than `warn_after`; ``site``, ``held``, ``holder``
long_hold_over     INFO    such a one has come back; ``site``, ``held``
thread_ended       WARNING whoever borrowed a connection has ended without giving it back; ``site``, ``held``
leak               WARNING a borrowed connection was garbage, and is closed; ``site``, ``held``
nested             WARNING a borrower asked for a second connection while it held one; ``site``, ``outer``
deadlock           ERROR   all connections were held by those who waited for one; ``sites``
session_pinned     WARNING a facade keeps a session for what a statement leaves in it; ``what``, ``site``
blocks_event_loop  WARNING a thread that runs an event loop had to wait; ``site``
stray_statement    WARNING a prepared statement met another session, once; ``sqlstate``, ``hint``
closed_in_use      WARNING the pool was closed and cut connections that were in use; ``sites``
================== ======= ============================================================================

What comes in storms is limited, but for leaks: five of a name in ten seconds; the next one tells how many
were left out.
Names and fields are stable; texts may change in any release.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40
"""Levels as in `logging`, which is not imported before there is something to say."""

MOST: Final = 5
WITHIN: Final = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something rare that happened to a pool."""

    name: str
    """One of the names above."""
    pool: str
    """The pool's name."""
    text: str
    """What happened, in one line, without secrets."""
    level: int = WARNING
    """As in `logging`."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """What the text is made of; ``left_out`` counts those of this name that were not told before this one."""


class Throttle:
    """Lets a few events of each name pass in a while, and counts the others."""

    def __init__(self) -> None:
        self._passed: dict[str, deque[float]] = {}
        self._left_out: dict[str, int] = {}

    def passes(self, name: str, now: float) -> int | None:
        """Return how many of a name were left out before this one; ``None`` if this one is left out, too."""
        passed = self._passed.setdefault(name, deque(maxlen=MOST))
        if len(passed) == MOST and now - passed[0] < WITHIN:
            self._left_out[name] = self._left_out.get(name, 0) + 1
            return None
        passed.append(now)
        return self._left_out.pop(name, 0)
