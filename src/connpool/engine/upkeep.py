"""When something must be done: pure functions of settings, state and the present instant.

Nothing here holds state, takes a lock or reads a clock.  *chance* is a random number from 0 up to 1
that the caller draws, so that a simulation can be repeated.
"""

from __future__ import annotations

from math import inf

FIRST_PAUSE = 0.1
"""Seconds before the first new dial after a failed one; each further failure doubles it."""

PAUSE_CAP = 1.0
"""The longest pause between dials while somebody waits: a server that is back is noticed within it."""

IDLE_PAUSE_CAP = 5.0
"""The longest pause while nobody waits and only `min_idle` wants connections."""

ABANDONED_PAUSE = 1.0
"""Seconds before the next dial after one was abandoned; each further one doubles it ..."""

ABANDONED_PAUSE_CAP = 60.0
"""... up to this, because an abandoned dial may go on for minutes and each holds a thread."""

CLOSE_GRACE = 1.0
"""Seconds for which a connection being closed counts towards `max_size`.

A server usually ends its session within a round trip; one that does not must not starve the pool.
"""

DIAL_GRACE = 1.0
"""Seconds beyond `connect_timeout` before the dial of a bounded adapter is given up all the same."""

LOOK_EVERY = 0.25
"""Seconds a parked thread sleeps at most before it looks around.

It cures a wake-up lost to an exception that struck between two bytecodes, does the work of a helper
that could not be started, and lets Ctrl-C through where a lock cannot be interrupted (Windows).
"""

ANSWER_GRACE = 0.1
"""Seconds that a caller waits for the answer to a reset, and for `on_acquire`, whatever is left of its time.

The answer is on its way, or has come: to discard a healthy connection for a round trip helps nobody.
"""

NAP = 1.0
"""Seconds for which a machine must have been suspended before its connections are doubted.

Above the error of the difference of two clocks, between whose readings a busy machine may run another thread.
"""

LOOK_ANYWAY = 60.0
"""Seconds idle after which an entry's age is looked at, also where probes and pings are switched off."""

MIN_IDLE_CHECK = 5.0
"""Seconds after which `min_idle` is looked after: the warm path takes idle connections and tells nobody."""

NEWBORN = 0.5
"""Seconds for which a new connection is not looked at, whatever the options: its handshake was a look."""

ALARM = 1.0
"""Seconds after a connection was found dead for which every hand-over looks at the socket first.

Sessions seldom die alone.  A busy connection is never idle for `probe_after`: without this, one whose
session ended between two borrowers would be lent once more.
"""

PATIENCE = 0.5
"""Seconds within which a healthy server answers a ping; silence for less proves nothing."""

SERVER_MARGIN = 0.8
"""The share of a server's own idle limit for which a connection is kept idle."""

LIFETIME_JITTER = 0.1
"""The share of `max_lifetime` that chance may take away, so that connections do not expire together."""


def expiry(opened_at: float, max_lifetime: float | None, chance: float) -> float:
    """Return the instant at which a connection has lived long enough: fixed at birth, jittered."""
    if max_lifetime is None:
        return inf
    return opened_at + max_lifetime * (1.0 - LIFETIME_JITTER * chance)


def pause(failures: int, *, waiting: bool, chance: float) -> float:
    """Return the seconds until the next dial after *failures* failed ones in a row.

    Half fixed, half chance: many processes that lost the same server must not return in step.
    """
    cap = PAUSE_CAP if waiting else IDLE_PAUSE_CAP
    # 2 ** 10 is far beyond both caps; without the limit a week of outage overflows a float.
    return min(cap, FIRST_PAUSE * 2.0 ** min(failures - 1, 10)) * (0.5 + 0.5 * chance)


def abandoned_pause(abandoned: int) -> float:
    """Return the seconds until the next dial after *abandoned* dials that never came back."""
    return min(ABANDONED_PAUSE_CAP, ABANDONED_PAUSE * 2.0 ** min(abandoned - 1, 10))


def dial_until(now: float, connect_timeout: float | None, *, bounded: bool) -> float:
    """Return the instant at which a dial that begins now is given up."""
    if connect_timeout is None:
        return inf
    return now + connect_timeout + (DIAL_GRACE if bounded else 0.0)


def first_look(probe_after: float | None, ping_after: float | None, max_lifetime: float | None) -> float:
    """Return the seconds idle for which an entry is lent without a closer look.

    At most a twentieth of its life: a release within that time of its end takes the slow path.
    """
    looks = [seconds for seconds in (probe_after, ping_after, LOOK_ANYWAY) if seconds is not None]
    return min(*looks, inf if max_lifetime is None else max_lifetime / 20)


def ping_limit(left: float | None, timeout: float | None) -> float | None:
    """Return the limit of a ping: its own timeout, and half of what the deadline leaves.

    The other half is for a connection by another route.
    """
    return step_limit(None if left is None else left / 2, timeout)


def answer_limit(left: float | None, timeout: float | None) -> float | None:
    """Return the limit of an answer that is on its way: as of a ping, but never less than the grace."""
    return step_limit(None if left is None else max(left / 2, ANSWER_GRACE), timeout)


def step_limit(left: float | None, timeout: float | None) -> float | None:
    """Return the limit of one step: its own timeout, and no more than the deadline leaves."""
    if left is None or timeout is None:
        return timeout if left is None else left
    return min(left, timeout)
