"""How a runtime tells of events, and of exceptions that nobody else can be given."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

from .events import Event

Reporter: TypeAlias = Callable[[Exception, object], None]


def report(exc: Exception, origin: object) -> None:
    """Treat an exception as one that ended a thread: usually it is one of ours that it came in."""
    exc.add_note(f"raised by {origin!r}; the pool has gone on")
    threading.excepthook(
        threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, threading.current_thread()))
    )


def tell(event: Event, observers: Sequence[Callable[[Event], object]], reporter: Reporter = report) -> None:
    """Log an event, warn of a leak, and call each of the observers; what they raise goes to *reporter*."""
    import logging  # seldom needed, and slow to import

    fields = {"event": event.name, "pool": event.pool, **event.fields}
    logging.getLogger("connpool").log(event.level, "%s", event.text, extra=fields)
    if event.name == "leak":
        observers = (_warn_of_leak, *observers)
    for observer in observers:
        _call(observer, event, reporter)


def _call(observer: Callable[[Event], object], event: Event, reporter: Reporter) -> None:
    try:
        observer(event)
    except Exception as exc:
        if isinstance(exc, Warning):
            exc.__traceback__ = None  # warnings are errors here; its frames would keep what others lose
        reporter(exc, observer)


def _warn_of_leak(event: Event) -> None:
    place = str(event.fields["site"])
    path, _, number = place.rpartition(":")
    warnings.warn_explicit(event.text, ResourceWarning, path or place, int(number) if path else 0)
