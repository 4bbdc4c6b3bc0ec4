"""Every setting of a pool: its unit, its default, its meaning, its rule.  In this one place.

Seconds are floats.  ``None`` means unlimited, or never.  Nothing is corrected silently: a value that
breaks its rule is refused at construction, with a message that names option, value and rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from . import reset as resets
from .behind import PRESETS, Proxy
from .events import Event


class Default:
    """The type of `DEFAULT`: "as the pool was told at construction"."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default()


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """The settings of one pool, checked."""

    min_idle: int = 0
    """Connections kept idle and ready, opened in the background; 0 opens only on demand."""

    max_size: int = 10
    """The most connections at any time, whatever their state: idle, in use, opening, closing."""

    acquire_timeout: float | None = 10.0
    """Seconds a caller waits for a connection: queueing, dialling and checking together.

    10 and not 30: web workers are commonly killed at 30, before anybody would see the error.
    0 takes an idle connection or fails at once.  ``None`` waits for ever.
    """

    max_waiting: int | None = 1000
    """Callers that may wait for each other at the same time; the next one gets `PoolOverloaded` at once.

    Those for whom a connection can still be opened do not count.  0 lets nobody wait for a connection
    in use.  ``None`` sets no bound.
    """

    max_connecting: int = 2
    """Dials at the same time, so that a restarted server is not met by a storm."""

    connect_timeout: float | None = 10.0
    """Seconds one dial may take.

    An adapter that makes the call itself enforces it.  A plain callable cannot be limited: its dial is
    given up after this time, and its connection closed if it comes late.  ``None`` waits for ever.
    """

    max_lifetime: float | None = 1800.0
    """Seconds after which a connection is replaced, less a random tenth; ``None`` never."""

    idle_timeout: float | None = 600.0
    """Seconds after which a connection that nobody needed is closed, down to `min_idle`; ``None`` never."""

    probe_after: float | None = 0.5
    """Seconds idle after which the socket is looked at, without a round trip, before lending.

    0 looks every time, ``None`` never.
    """

    ping_after: float | None = 30.0
    """Seconds idle after which one round trip must succeed before lending; 0 every time, ``None`` never.

    With `behind` it is ``None`` if nothing else is said.
    """

    keepalive: float | None = None
    """Seconds without a word after which an idle connection's server is pinged, less a random tenth.

    Off the callers' path.  It keeps gateways from forgetting the connection, and finds the dead early.
    ``None`` never.
    """

    max_uses: int | None = None
    """Times a connection is lent before it is replaced; ``None`` for any number."""

    reset: resets.Policy = "rollback"
    """What is done to a connection between two borrowers; see `connpool.reset`.

    "rollback" ends an open transaction and puts the driver's settings back; "full" restores the session
    as well; "tracked" does so unless a facade has seen that it was not altered; "none" sends nothing, and
    closes what would need it.  Or a callable, or a list.
    """

    reset_timeout: float | None = 5.0
    """Seconds that a return may take, COMMIT not counted; and a ping, and the BEGIN of `transaction`."""

    commit_timeout: float | None = None
    """Seconds that the COMMIT at the end of a block may take; ``None`` no limit.

    When they have passed, the connection is cut and the borrower gets `PoolTimeout`: whether the server has
    committed is not known.
    """

    credentials: Callable[[], object] | None = None
    """Asked before each dial for connect parameters, such as a password that changes; ``None`` none.

    Dials at the same time share one answer.  After a refusal it is asked once more.  It needs an adapter
    that is made of parameters or a URL.
    """

    require: Literal["read-write"] | None = None
    """"read-write" refuses a server that takes no writes, such as a standby, and dials again."""

    behind: Proxy | None = None
    """The proxy in front of the server, if it shares sessions between transactions; ``None``: none does.

    "pgbouncer" (in transaction mode), "rds-proxy" or "proxysql": the pool asks, sets and resets nothing, does
    not ping unless `ping_after` says so, and has drivers prepare nothing.
    """

    on_connect: Callable[[Any], object] | None = None
    """Called with each new connection, and again after each reset by parts of a policy.

    In the thread that opened or returned it, in an empty context.  A transaction that it leaves open is
    committed, as with every hook.  If it raises for a new connection, the dial has failed.
    """

    on_acquire: Callable[[Any], object] | None = None
    """Called with each connection before it is lent, in the borrower's thread and context.

    Within the borrower's deadline.  If it raises, the connection is closed and the borrower gets the error.
    """

    on_release: Callable[[Any], object] | None = None
    """Called with each connection that comes back fit for use, in the borrower's thread and context.

    Its transaction has ended and the driver's settings are restored; the reset policy comes after it.  If
    it raises, the connection is closed and the borrower gets the error, unless the block raised its own.
    """

    on_close: Callable[[Any], object] | None = None
    """Called with each connection before the pool closes it, dead ones too, in an empty context.

    Nobody waits for it, so what it raises is treated like a thread's: it goes to `threading.excepthook`.
    """

    max_dedicated: int = 4
    """The most connections at any time that `ConnectionPool.dedicated` lends, beside `max_size`."""

    nested: Literal["warn", "forbid", "allow"] = "warn"
    """What becomes of a borrower who asks for a second connection while he is in the block of a first one.

    Enough of them at a time wait for each other for ever.  "warn" tells the log once for each pair of
    lines, "forbid" raises `PoolMisuse`, "allow" does not look.  "warn" looks only where the second one is not
    at hand.
    """

    warn_after: float | None = 60.0
    """Seconds after which the log is told that a connection is still held, and by which line; ``None`` never.

    And once more when it comes back.  It is told at most as many seconds late.
    """

    observers: Sequence[Callable[[Event], object]] = ()
    """Called with each event of `connpool.events`, in the thread that met it; for alarms of one's own."""

    debug: bool = False
    """Lend guarded connections: use after release, or by two threads at once, raises `PoolMisuse`."""

    name: str | None = None
    """The pool's name in messages and metrics; ``None`` numbers it: ``pool-1``."""

    def __post_init__(self) -> None:
        for option in fields(self):
            rule = _RULES.get(option.name)
            if rule is not None:
                rule(option.name, getattr(self, option.name))
        steps = resets.steps(self.reset)
        if self.behind is not None:
            self._refuse_what_needs_a_session(steps)
        if self.min_idle > self.max_size:
            raise ValueError(f"min_idle={self.min_idle}: must not exceed max_size={self.max_size}")
        if (
            self.probe_after is not None
            and self.ping_after is not None
            and self.ping_after < self.probe_after
        ):
            raise ValueError(
                f"ping_after={self.ping_after!r}: must not be shorter than probe_after={self.probe_after!r};"
                " set both, or probe_after=None"
            )

    def _refuse_what_needs_a_session(self, steps: resets.Steps | None) -> None:
        """Refuse what contradicts `behind`."""
        meets = f"it would meet another session than the borrower's (behind={self.behind!r})"
        if any(isinstance(step, tuple) for step in steps or ()):
            raise ValueError(f'reset={self.reset!r}: {meets}; use "rollback", "none" or a callable')
        if self.require is not None:
            raise ValueError(f"require={self.require!r}: {meets}; the proxy decides which server it is")

    @property
    def reset_policy(self) -> str:
        """The name of the policy; ``custom`` if it has none."""
        return self.reset if isinstance(self.reset, str) else "custom"

    def apart(self) -> dict[str, Any]:
        """Return the options of the pool of dedicated connections beside a pool with these."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "name": f"{self.name}.dedicated",
            "max_size": self.max_dedicated,
            "min_idle": 0,
            "max_uses": 1,
            "reset": "rollback",
        }


def ping_after_of(ping_after: float | Default | None, behind: object) -> float | None:
    """Return what `ping_after` is if nothing, or something else, is said."""
    if not isinstance(ping_after, Default):
        return ping_after
    preset = PRESETS.get(behind) if isinstance(behind, str) else None
    return PoolOptions.ping_after if preset is None else preset.ping_after


# -- rules -------------------------------------------------------------------------------------------


def _whole(least: int, *, none: str | None = None) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        wanted = f"must be a whole number of at least {least}" + (f", or None for {none}" if none else "")
        if value is None and none:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}={value!r}: {wanted}")
        if value < least:
            raise ValueError(f"{name}={value!r}: {wanted}")

    return check


def _seconds(*, zero: str | None = None, none: str | None = None) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        wanted = "must be a number of seconds, " + ("0 or more" if zero else "more than 0")
        wanted += f" (0: {zero})" if zero else ""
        wanted += f", or None for {none}" if none else ""
        if value is None and none:
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}={value!r}: {wanted}")
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ValueError(f"{name}={value!r}: {wanted}")

    return check


def _hook(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r}: must be callable with a connection, or None")


def _switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: must be True or False")


def _provider(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name}: must be callable without arguments, or None")  # it may be a password


def _requirement(name: str, value: object) -> None:
    if value not in (None, "read-write"):
        raise ValueError(f'{name}={value!r}: must be "read-write", or None')


def _proxy(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or value not in PRESETS):
        known = ", ".join(f'"{proxy}"' for proxy in PRESETS)
        raise ValueError(f"{name}={value!r}: must be one of {known}, or None")


def _nesting(name: str, value: object) -> None:
    if value not in ("warn", "forbid", "allow"):
        raise ValueError(f'{name}={value!r}: must be "warn", "forbid" or "allow"')


def _observers(name: str, value: object) -> None:
    if not isinstance(value, Sequence) or not all(map(callable, value)):
        raise TypeError(f"{name}={value!r}: must be a list of callables that take an event")


def _text(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise TypeError(f"{name}={value!r}: must be a non-empty string, or None")


check_timeout = _seconds(zero="an idle connection or an error, at once", none="no limit")
"""The rule for a `timeout` argument, the same as for `acquire_timeout`."""

check_spread = _seconds(zero="at once")
"""The rule for the `over` of an eviction."""

_RULES: dict[str, Callable[[str, object], None]] = {
    "min_idle": _whole(0),
    "max_size": _whole(1),
    "acquire_timeout": check_timeout,
    "max_waiting": _whole(0, none="no bound"),
    "max_connecting": _whole(1),
    "connect_timeout": _seconds(none="no limit"),
    "max_lifetime": _seconds(none="never"),
    "idle_timeout": _seconds(none="never"),
    "probe_after": _seconds(zero="every time", none="never"),
    "ping_after": _seconds(zero="every time", none="never"),
    "keepalive": _seconds(none="never"),
    "max_uses": _whole(1, none="any number"),
    "reset_timeout": _seconds(none="no limit"),
    "commit_timeout": _seconds(none="no limit"),
    "credentials": _provider,
    "require": _requirement,
    "behind": _proxy,
    "on_connect": _hook,
    "on_acquire": _hook,
    "on_release": _hook,
    "on_close": _hook,
    "max_dedicated": _whole(0),
    "nested": _nesting,
    "warn_after": _seconds(none="never"),
    "observers": _observers,
    "debug": _switch,
    "name": _text,
}
