"""Reset policies: what is done to a connection between two borrowers.

`ConnectionPool`'s ``reset=`` takes the name of a policy, a callable, or a list of parts and callables::

    reset="rollback"                      # an open transaction is rolled back; else nothing is sent
    reset="full"                          # and the session is as it was at connect
    reset="tracked"                       # the same, unless a facade has seen that nothing was altered
    reset="none"                          # nothing is ever sent
    reset=clear_tenant                    # a rollback if one is due, then clear_tenant(conn)
    reset=[reset.unlock, reset.unlisten, clear_tenant]

What is not "none" begins with a rollback if a transaction is open, and with the driver's settings put
back; then come the parts, in their order.  A part names what is to be done; the adapter knows how its
server does it.  A callable is given the connection; a transaction it leaves open is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias

__all__ = (
    "Part",
    "Policy",
    "close_cursors",
    "deallocate",
    "discard_all",
    "discard_plans",
    "discard_sequences",
    "discard_temp",
    "full",
    "reset_connection",
    "reset_role",
    "reset_settings",
    "rollback",
    "unlisten",
    "unlock",
)


class Part(StrEnum):
    """One thing that is done to a connection when it comes back."""

    ROLLBACK = "rollback"
    """End the open transaction.  Every policy but "none" begins with it, so it never needs saying."""
    FULL = "full"
    """Whatever it takes to make the session what it was at connect."""
    DISCARD_ALL = "discard_all"
    """PostgreSQL's ``DISCARD ALL``: all of the below."""
    CLOSE_CURSORS = "close_cursors"
    """PostgreSQL's ``CLOSE ALL``: cursors WITH HOLD."""
    RESET_ROLE = "reset_role"
    """PostgreSQL's ``SET SESSION AUTHORIZATION DEFAULT``, which ends SET ROLE as well."""
    RESET_SETTINGS = "reset_settings"
    """PostgreSQL's ``RESET ALL``: statement_timeout, search_path and the like; not the role."""
    DEALLOCATE = "deallocate"
    """PostgreSQL's ``DEALLOCATE ALL``: prepared statements, the driver's own among them."""
    UNLISTEN = "unlisten"
    """PostgreSQL's ``UNLISTEN *``, and what was notified already."""
    UNLOCK = "unlock"
    """PostgreSQL's ``pg_advisory_unlock_all()``: advisory locks of the session."""
    DISCARD_PLANS = "discard_plans"
    """PostgreSQL's ``DISCARD PLANS``."""
    DISCARD_TEMP = "discard_temp"
    """PostgreSQL's ``DISCARD TEMP``: temporary tables."""
    DISCARD_SEQUENCES = "discard_sequences"
    """PostgreSQL's ``DISCARD SEQUENCES``: what ``currval()`` remembers."""
    RESET_CONNECTION = "reset_connection"
    """MySQL's ``COM_RESET_CONNECTION``, and then what was set at connect."""


rollback: Final = Part.ROLLBACK
full: Final = Part.FULL
RESTORING: Final = frozenset((Part.FULL, Part.DISCARD_ALL, Part.RESET_CONNECTION))
"""The parts after which nothing of a session is left."""

discard_all: Final = Part.DISCARD_ALL
close_cursors: Final = Part.CLOSE_CURSORS
reset_role: Final = Part.RESET_ROLE
reset_settings: Final = Part.RESET_SETTINGS
deallocate: Final = Part.DEALLOCATE
unlisten: Final = Part.UNLISTEN
unlock: Final = Part.UNLOCK
discard_plans: Final = Part.DISCARD_PLANS
discard_temp: Final = Part.DISCARD_TEMP
discard_sequences: Final = Part.DISCARD_SEQUENCES
reset_connection: Final = Part.RESET_CONNECTION

Action: TypeAlias = Part | Callable[[Any], object]
Policy: TypeAlias = Literal["rollback", "full", "tracked", "none"] | Action | Sequence[Action | str]
"""What ``reset=`` accepts."""

Steps: TypeAlias = tuple[tuple[Part, ...] | Callable[[Any], object], ...]
"""A policy as the flows run it: parts that follow each other go to the adapter together."""


def steps(policy: Policy) -> Steps | None:
    """Return the steps of a policy beyond the rollback; ``None`` for "none".

    Raises:
        TypeError, ValueError: It is no policy; the message says what would be.
    """
    if isinstance(policy, str) and policy == "none":
        return None
    single = isinstance(policy, str) or callable(policy)
    if not single and not isinstance(policy, Sequence):
        raise TypeError(f"reset={policy!r}: {_WANTED}")
    actions: Sequence[object] = (policy,) if single else policy  # type: ignore[assignment] # as just found
    if not actions:
        return None
    found: list[tuple[Part, ...] | Callable[[Any], object]] = []
    for action in actions:
        if action == "tracked" and single:
            found.append((Part.FULL,))
        elif isinstance(action, str):
            try:
                part = Part(action)
            except ValueError:
                raise ValueError(f"reset={policy!r}: {_WANTED}") from None
            if part is Part.ROLLBACK:
                continue
            last = found[-1] if found else None
            if isinstance(last, tuple):
                found[-1] = (*last, part)
            else:
                found.append((part,))
        elif callable(action):
            found.append(action)
        else:
            raise TypeError(f"reset={policy!r}: {_WANTED}")
    return tuple(found)


_WANTED: Final = (
    'must be "rollback", "full", "tracked", "none", a callable with a connection, or a list of callables and'
    " parts: " + ", ".join(Part)
)
