"""Deliberate mistakes in the engine, to see whether the proofs notice them.

A mistake is a replacement of text in a function's source.  `made` compiles the changed function and puts it
in the place of the right one; it fails if the text is not there any more, so that no mistake is forgotten
when the code moves on.
"""

from __future__ import annotations
import __future__

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from connpool.engine.core import Core
from connpool.leases import Lease


class Edit(NamedTuple):
    """Replace *old* by *new* in a method."""

    owner: type
    method: str
    old: str
    new: str


CARELESSLY = "@__import__('engine.mutations', fromlist=['']).carelessly_locked\n"

MISTAKES: dict[str, list[Edit]] = {
    # The releaser.
    "skip the second look at the waiters": [
        Edit(Lease, "__exit__", "(pool._waiters or entry.doomed) and", "entry.doomed and"),
    ],
    "look at the waiters first, publish second": [
        Edit(
            Lease,
            "__exit__",
            "pool._idle.append(entry)  # publish ...",
            "seen = bool(pool._waiters or entry.doomed); pool._idle.append(entry)",
        ),
        Edit(Lease, "__exit__", "(pool._waiters or entry.doomed) and", "seen and"),
    ],
    "give without a look at doomed": [
        Edit(Lease, "__exit__", "(pool._waiters or entry.doomed) and", "pool._waiters and"),
    ],
    "no follow-up after a discard": [
        Edit(Lease, "__exit__", "pool._follow_up()", "pass"),
    ],
    "no look after a strike": [
        Edit(Lease, "__exit__", "pool._core.rematch(entry)\n                    raise", "raise"),
    ],
    # The taker.
    "take without a look at doomed": [
        Edit(Lease, "__enter__", "now < entry.check_at and not entry.doomed", "now < entry.check_at"),
    ],
    "overtake the queue": [
        Edit(Lease, "__enter__", "pool._waiters or self._entry is not None", "self._entry is not None"),
    ],
    # The waiter.
    "skip the second look at idle": [
        Edit(Core, "queue", "self._match()\n        waiter.queued", "waiter.queued"),
    ],
    "ignore tickets": [
        Edit(Core, "queue", "while place and ", "while False and "),
    ],
    "settle without the lock": [
        Edit(Core, "leave", "@locked\n", "\n"),
    ],
    # The match.
    "wake nobody": [
        Edit(Core, "_match", "head.wake()", "pass"),
    ],
    "hand over to the newest": [
        Edit(
            Core,
            "_match",
            "head = waiters[0]",
            "head = waiters[-1] if waiters[0] is not self._gate else waiters[0]",
        ),
        Edit(Core, "_match", "waiters.popleft()", "waiters.remove(head)"),
    ],
    "unlink first, settle second": [
        Edit(
            Core,
            "_match",
            "head.outcome = entry",
            "waiters.popleft(); head.outcome = entry; head.wake(); continue",
        ),
    ],
    # Evicting and closing.
    "evict through check_at": [
        Edit(
            Core,
            "_doom",
            "entry.doomed = entry.doomed or reason",
            "entry.check_at, entry.expires = 0.0, -inf",
        ),
        Edit(Core, "_sweep", "entry.doomed is not None", "entry.expires == -inf"),
    ],
    "sweep first, doom second": [
        Edit(
            Core,
            "evict",
            "self._doom(entries, Reason.EVICTED)\n            self._sweep()",
            "while self.idle: self._retire(self.idle.pop(), Reason.EVICTED)\n"
            "            self._doom(self._entries(), Reason.EVICTED)",
        ),
    ],
    "gate at the tail": [
        Edit(Core, "shut", "self.waiters.appendleft(self._gate)", "self.waiters.append(self._gate)"),
    ],
    # Ownership.
    "own every entry": [
        Edit(Core, "plan", "self.slots[slot] = None", "self.slots[slot] = entry"),
    ],
    "keep the lock when struck": [
        Edit(Core, "give", "@locked\n", CARELESSLY),
        Edit(Core, "_rematch", "@locked\n", CARELESSLY),
    ],
}


def carelessly_locked(transition: Callable[..., Any]) -> Callable[..., Any]:
    """Run a transition under the lock, without a thought of what may strike."""

    def under_lock(core: Any, /, *args: Any, **kwargs: Any) -> Any:
        core.lock.__enter__()
        result = transition(core, *args, **kwargs)
        core.lock.__exit__(None, None, None)
        return result

    return under_lock


@contextmanager
def made(mistake: str) -> Iterator[None]:
    """Make a mistake for the length of a block."""
    edits: dict[tuple[type, str], list[tuple[str, str]]] = {}
    for owner, method, old, new in MISTAKES[mistake]:
        edits.setdefault((owner, method), []).append((old, new))
    right = {(owner, method): owner.__dict__[method] for owner, method in edits}
    try:
        for (owner, method), replacements in edits.items():
            setattr(owner, method, _changed(owner, method, replacements))
        yield
    finally:
        for (owner, method), function in right.items():
            setattr(owner, method, function)


def _changed(owner: type, method: str, replacements: list[tuple[str, str]]) -> Callable[..., Any]:
    """Compile a method with some of its text replaced; it is traced as if it stood in its own file."""
    function = inspect.unwrap(owner.__dict__[method])
    source = inspect.getsource(function)
    for old, new in replacements:
        assert source.count(old) == 1, f"{owner.__name__}.{method} does not say {old!r} any more"
        source = source.replace(old, new)
    module = sys.modules[owner.__module__]
    file = str(Path("changed", Path(inspect.getfile(function)).name))
    names: dict[str, Any] = {}
    flags = __future__.annotations.compiler_flag
    code = compile(f"class {owner.__name__}:\n{source}", file, "exec", flags, dont_inherit=True)
    exec(code, vars(module), names)
    changed: Callable[..., Any] = vars(names[owner.__name__])[method]
    return changed
