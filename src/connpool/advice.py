"""What size the figures of a pool ask for, and whether another size would help at all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import Final

from .adapter import Fault
from .errors import Holder
from .stats import PoolStats

SPARE: Final = 1.2
"""Connections for each one in use on average: a fifth to spare, for bursts."""

LONG: Final = 1.0
"""Seconds for which a connection must be held, at least, to be called stuck ..."""

UNUSUAL: Final = 10.0
"""... and how many times as long as 99 of 100 uses."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What `ConnectionPool.advise` returns; as text, its sentences."""

    max_size: int | None
    """The size to set; ``None`` if the figures ask for none, or if no size would help."""
    concurrency: float
    """Connections in use or waited for, on average: Little's law, L = λW."""
    seconds: float
    """How long was looked at."""
    reasons: tuple[str, ...]
    """What was found, the most important first."""

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def advise(now: PoolStats, since: PoolStats | None, holders: tuple[Holder, ...]) -> Advice:
    """Judge the figures between two snapshots, and those who hold connections at the second one."""
    seconds = now.age - (since.age if since else 0.0)
    used = now.use.total - (since.use.total if since else 0.0)
    waited = now.wait.total - (since.wait.total if since else 0.0)
    uses = now.use.count - (since.use.count if since else 0)
    usual = UNUSUAL * now.use.percentile(99)
    stuck = [holder for holder in holders if holder.held >= max(LONG, usual)]
    held = sum(min(holder.held, seconds) for holder in holders if holder not in stuck)
    concurrency = (used + waited + held) / seconds if seconds > 0 else 0.0
    reasons = []
    if stuck:
        site, count = Counter(holder.site for holder in stuck).most_common(1)[0]
        least = min(holder.held for holder in stuck if holder.site == site)
        reasons.append(
            f"{count} of {now.max_size} are held for more than {least:.3g} s by {site}: a leak or a slow "
            "statement, no size will help"
        )
    refused = now.faults[Fault.FULL] - (since.faults[Fault.FULL] if since else 0)
    if refused:
        reasons.append(f"the server refused {refused} sessions because it is full: give it fewer, or room")
    if not uses and not held:
        return Advice(None, 0.0, seconds, (*reasons, "nothing was lent and given back in this time"))
    size = max(1, ceil(round(concurrency * SPARE, 6)))
    summary = f"{concurrency:.2g} connections were in use or waited for, on average over {seconds:.3g} s"
    if reasons:
        return Advice(None, concurrency, seconds, (*reasons, summary))
    timeouts = now.timeouts - (since.timeouts if since else 0)
    if waited > used:
        # More time is spent in the queue than with a connection: how many would be enough is a guess.
        size = min(size, 2 * now.max_size)
        summary += ", more of it waited than used"
    if timeouts or size > now.max_size:
        size = max(size, now.max_size + 1)
        verdict = f"max_size={size} in place of {now.max_size}, if the server has room; then measure again"
    elif size < now.max_size:
        verdict = f"max_size={size} would do, in place of {now.max_size}, as far as averages tell"
    else:
        verdict = f"max_size={size} is right"
    peak = (
        f"at most {now.peak_in_use} in use and {now.peak_waiting} waiting at a time since they were last read"
    )
    return Advice(size, concurrency, seconds, (verdict, summary, peak))
