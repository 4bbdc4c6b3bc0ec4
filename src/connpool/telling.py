"""How a runtime tells of events, and of exceptions that nobody else can be given."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence

from .events import Event


def tell(event: Event, observers: Sequence[Callable[[Event], object]]) -> None:
    """Log an event, warn of a leak, and call each of the observers; what they raise is reported."""
    import logging  # seldom needed, and slow to import

    fields = {"event": event.name, "pool": event.pool, **event.fields}
    logging.getLogger("connpool").log(event.level, "%s", event.text, extra=fields)
    if event.name == "leak":
        _call(_warn_of_leak, event)
    for observer in observers:
        _call(observer, event)


def _call(observer: Callable[[Event], object], event: Event) -> None:
    try:
        observer(event)
    except Exception as exc:
        if isinstance(exc, Warning):
            exc.__traceback__ = None  # warnings are errors here; its frames would keep what others lose
        report(exc, observer)


def _warn_of_leak(event: Event) -> None:
    place = str(event.fields["site"])
    path, _, number = place.rpartition(":")
    warnings.warn_explicit(event.text, ResourceWarning, path or place, int(number) if path else 0)


def report(exc: Exception, origin: object) -> None:
    """Treat an exception as one that ended a thread: usually it is one of ours that it came in."""
    exc.add_note(f"raised by {origin!r}; the pool has gone on")
    threading.excepthook(
        threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, threading.current_thread()))
    )
