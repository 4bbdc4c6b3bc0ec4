"""What an error says beyond its first line: who has the connections, and what that means.

Pure functions of figures and holders; `flows` gathers both.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from ..adapter import Fault
from ..errors import Holder
from ..stats import PoolStats

SHOWN: Final = 5
"""Holders that a message names; all of them stand in the error's `holders`."""

LONG: Final = 1.0
"""Seconds for which a connection is held that a web request would not hold it."""

_FAULTS: Final = {
    Fault.FULL: "the server takes no more sessions: fewer processes, a smaller max_size, or a higher limit",
    Fault.AUTH: "the server refuses these parameters: no retry will help",
    Fault.STARTING: "the server is starting or stopping: it is asked again every second",
}


def described(holders: tuple[Holder, ...]) -> str:
    """Return a line for each of the holders that have held longest, each begun with a line break."""
    lines = [f"\n  held for {holder}" for holder in holders[:SHOWN]]
    if len(holders) > SHOWN:
        lines.append(f"\n  and {len(holders) - SHOWN} more")
    return "".join(lines)


def in_one_line(holders: tuple[Holder, ...]) -> str:
    """Return the same for a line of a log."""
    return described(holders).replace("\n ", ";").removeprefix(";")


def hint(stats: PoolStats, holders: tuple[Holder, ...], *, suspended: bool, fault: Fault | None) -> str:
    """Return the one sentence that explains most; empty if nothing stands out."""
    if suspended:
        return "the pool is suspended: resume() serves again"
    if fault in _FAULTS and not stats.opening and stats.size < stats.max_size:
        return _FAULTS[fault]
    if not holders:
        return ""
    waiting = sum(holder.waits_at is not None for holder in holders)
    if waiting:
        return (
            f"{waiting} of {len(holders)} wait for a second connection while they hold one: pass the first "
            "on, or allow for it in max_size"
        )
    ended = sum(holder.ended for holder in holders)
    if ended:
        return (
            f"{ended} of {len(holders)} were borrowed by somebody who has ended: a leak, unless they were "
            "handed over"
        )
    long = [holder for holder in holders if holder.held >= LONG]
    if 2 * len(long) < len(holders):
        return _busy(stats)
    sites: defaultdict[str, list[float]] = defaultdict(list)
    for holder in long:
        sites[holder.site].append(holder.held)
    site, held = max(sites.items(), key=lambda item: len(item[1]))
    return (
        f"{len(held)} of {len(holders)} held for more than {_floor(min(held))} s by {site}: a leak or a slow "
        "statement, a larger pool will not help"
    )


def _busy(stats: PoolStats) -> str:
    if stats.size < stats.max_size:
        return ""
    typical = stats.use.percentile(50)
    if not stats.use.count:
        return ""
    return (
        f"they come back after {typical:.2g} s (median), but more is asked than {stats.max_size} can serve: "
        "hold them shorter, or raise max_size if the server has room"
    )


def _floor(seconds: float) -> str:
    return f"{int(seconds)}" if seconds >= 10 else f"{int(seconds * 10) / 10:g}"
