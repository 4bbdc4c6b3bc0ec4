"""What a flow may ask of whoever runs it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias, TypeVar

from ..events import Event
from .records import Waiter

R = TypeVar("R")


@dataclass(slots=True)
class Park:
    """Sleep until the waiter is woken, or the deadline has passed, or for no reason at all."""

    waiter: Waiter
    deadline: float | None


class Step(Enum):
    """What a `Call` is for: the simulator gives each its own latency and faults."""

    CONNECT = "connect"
    ADOPT = "adopt"
    CREDENTIALS = "credentials"
    IDLE_LIMIT = "idle_limit"
    WRITABLE = "writable"
    REMEMBER = "remember"
    PING = "ping"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    RESTORE = "restore"
    SEND_RESET = "send_reset"
    READ_RESET = "read_reset"
    RESET = "reset"
    CLOSE = "close"
    ON_CONNECT = "on_connect"
    ON_ACQUIRE = "on_acquire"
    ON_RELEASE = "on_release"
    ON_CLOSE = "on_close"


class Call:
    """Call something that may take long or leave the pool: a driver, a hook."""

    __slots__ = ("args", "fn", "step")

    def __init__(self, step: Step, fn: Callable[..., object], *args: object) -> None:
        self.step = step
        self.fn = fn
        self.args = args


@dataclass(slots=True)
class Start:
    """Run a flow elsewhere; resumed with False if there is nobody to run it, and then it is ours."""

    flow: Flow[None]


@dataclass(slots=True)
class Watch:
    """See to it that `Flows.upkeep` runs at an instant; ``None``: never."""

    at: float | None


@dataclass(slots=True)
class Report:
    """Tell of an exception that has no caller who could be given it, and the user's function it is from."""

    error: Exception
    origin: object


@dataclass(slots=True)
class Tell:
    """Tell the operator of something."""

    event: Event


Operation: TypeAlias = Park | Call | Start | Watch | Report | Tell
Flow: TypeAlias = Generator[Operation, Any, R]

Ending: TypeAlias = Literal["commit", "rollback"]
"""What becomes of a transaction that is still open when its borrower is done without an exception."""
