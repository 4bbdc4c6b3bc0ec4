"""What the state of a pool is made of: places in the queue, places in the pool, connections, watchers.

Plain records.  `core` says who may change which of them, and when.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf
from types import CodeType
from typing import Generic, Protocol, TypeAlias, TypeVar

from ..stats import Reason

C = TypeVar("C")

Site: TypeAlias = tuple[CodeType, int]
"""A place in the user's code: a code object, and the instruction that called us."""


class People(Protocol):
    """What a runtime knows of those who borrow."""

    kind: str
    """What they are: "thread", "task"."""

    def me(self) -> object:
        """Return what stands for the present borrower; equal for the same one, and keeping nothing alive."""

    def here(self) -> Site | None:
        """Return his place in his own code; the warm path notes whatever has called it."""

    def name(self, owner: object) -> str | None:
        """Return what a borrower is called; ``None`` if he has ended."""

    def stands(self, owner: object, code: CodeType | None, lasti: int) -> bool:
        """Tell whether a borrower is for certain inside the block that he borrowed for."""

    def stack(self, owner: object) -> str:
        """Return what a borrower is doing, as a traceback."""

    def where(self, site: Site) -> str:
        """Return a place as people write it."""

    def blocks(self) -> bool:
        """Tell whether the present borrower, if he has to wait, holds up others who do not wait for him."""


class Refusal(Enum):
    """Outcomes of a waiter that are neither an entry nor an error of the driver."""

    LEFT = "left"
    CLOSED = "closed"
    OVERLOADED = "overloaded"


class Waiter:
    """A place in the queue.  A runtime adds how its caller sleeps."""

    __slots__ = ("outcome", "owner", "queued", "since", "site", "ticket", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.ticket: int | None = None
        # An Entry, a Refusal, or the exception of the dial that failed everybody; None while open.
        self.outcome: object = None
        self.queued = False  # there was no outcome at once
        self.owner: object = None  # whose place it is, as `People` call him
        self.site: Site | None = None  # where he asked
        self.since = 0.0


class Ref(weakref.ref["object"]):
    """A weak reference that knows the slot it watches."""

    __slots__ = ("slot",)
    slot: Slot

    def watched(self) -> Slot | None:
        """Return the slot; ``None`` if an interrupt struck before it was noted: nobody has it then."""
        return getattr(self, "slot", None)


class Slot:
    """What the registry keeps of an entry: enough to free its place when its owner is gone."""

    __slots__ = (
        "bare",
        "code",
        "conn",
        "conn_ref",
        "entry_ref",
        "holds",
        "lasti",
        "opened",
        "orphaned",
        "overdue",
        "owner",
        "reason",
        "until",
        "uses",
        "validating",
    )

    def __init__(self) -> None:
        self.conn: object = None  # what to close if the entry is lost
        self.entry_ref: Ref | None = None
        self.bare = 0  # id of the connection while it is lent bare
        self.conn_ref: Ref | None = None  # watches a connection that acquire() lent bare
        self.holds: list[float] = []  # seconds of each use, not folded yet
        self.uses = 0  # uses folded so far
        self.until = inf  # opening and closing end here at the latest
        self.opened = False
        self.reason = Reason.BROKEN  # why it is closing, if it is
        self.validating = False  # nobody has it, and it is not idle: it is being looked at, or handed over
        # Who was lent it last: the code and the instruction of his call, and what `People` call him.
        self.code: CodeType | None = None
        self.lasti = 0
        self.owner: object = None  # None: nobody has it
        self.overdue = False  # the operator was told that it is held for long ...
        self.orphaned = False  # ... or that whoever borrowed it has ended

    def known(self) -> object:
        """Return the connection, also while only its borrower keeps it alive; ``None`` if there is none."""
        if self.conn is None and self.conn_ref is not None:
            return self.conn_ref()
        return self.conn


class Entry(Generic[C]):
    """One connection.  Whoever holds it strongly owns it."""

    __slots__ = (
        "__weakref__",
        "baseline",
        "batch",
        "check_at",
        "conn",
        "doomed",
        "expires",
        "holds",
        "idle_limit",
        "idle_since",
        "lent_at",
        "memory",
        "pending",
        "ping_every",
        "proven_at",
        "slot",
        "spared",
        "verdict",
        "warm_until",
    )
    conn: C
    verdict: Callable[[C, object], int]  # the adapter's, bound

    def __init__(self, slot: Slot, batch: int) -> None:
        self.slot = slot
        self.holds = slot.holds
        self.batch = batch  # fold when so many durations are collected
        self.baseline: object = None  # the adapter's, for its verdict
        self.memory: object = None  # the adapter's, for its resets
        self.pending: object = None  # the adapter's: a reset was sent, its answer is still to be read
        self.spared = False  # its borrower has seen to it that nothing needs a reset
        self.doomed: Reason | None = None  # set by evict, resize, shut; never cleared
        self.check_at = 0.0  # look closer from here; written by the holder only
        self.expires = inf  # its lifetime ends here
        self.warm_until = inf  # from here on each return is a flow's; -inf: the next one is
        self.idle_limit = inf  # seconds idle after which its server may have ended the session
        self.ping_every = inf  # seconds without a word after which its server is asked while it is idle
        self.proven_at = -inf  # when its server last answered the pool
        self.idle_since = 0.0
        self.lent_at = 0.0

    def heard_at(self) -> float:
        """Return when its server was last heard of, or its borrower left it: it counts as idle since."""
        return max(self.idle_since, self.proven_at)


@dataclass(frozen=True, slots=True)
class Borrow:
    """A connection that somebody has."""

    slot: Slot
    owner: object
    site: Site | None
    since: float
    bare: bool

    def is_in(self, people: People) -> bool:
        """Tell whether its borrower is for certain inside his ``with`` block."""
        return not self.bare and self.site is not None and people.stands(self.owner, *self.site)


class Watcher:
    """Somebody who waits for a condition of the pool as a whole: `close`, `wait_ready`."""

    __slots__ = ("holds_now", "waiter", "wanted")

    def __init__(self, holds_now: Callable[[], bool], waiter: Waiter, wanted: int) -> None:
        self.holds_now = holds_now
        self.waiter = waiter
        self.wanted = wanted  # connections that must be open for it
