"""What a pool is: its effective options, what it found out about its server, what it will ever say to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any

from .engine.core import Core
from .options import PoolOptions
from .reset import steps


@dataclass(frozen=True, slots=True)
class Description:
    """What `ConnectionPool.describe` returns; as text, a line for each fact."""

    name: str
    """The pool's name."""
    adapter: str
    """Driver and address, without secrets; what is known of a callable before its first connection."""
    options: Mapping[str, object]
    """Every option with the value that holds; functions by their names."""
    idle_limit: float | None
    """Seconds idle after which the server ends sessions, as far as one was asked; ``None``: never."""
    statements: Mapping[str, str]
    """Everything that the pool itself may say to the server under these options, by the occasion.

    What hooks and callables say is theirs.  The driver's own handshake is not listed.
    """

    def __str__(self) -> str:
        never = "none, or not known yet" if self.idle_limit is None else f"{self.idle_limit:g} s"
        lines = [
            f"pool {self.name!r}: {self.adapter}",
            f"its server's limit of idleness: {never}",
            "options:",
        ]
        lines += [f"  {name}={value!r}" for name, value in self.options.items()]
        lines += ["it says to the server:"]
        lines += [f"  {occasion}: {said}" for occasion, said in self.statements.items()]
        return "\n".join(lines)


def describe(name: str, core: Core[Any], adapter: Any, source: object) -> Description:
    """Describe a pool; *adapter* is ``None`` as long as a callable's first connection has not named it."""
    options = core.options
    values = {field.name: _shown(getattr(options, field.name)) for field in fields(PoolOptions)}
    values |= {"name": name, "max_size": core.max_size, "min_idle": core.min_idle}
    known = min((entry.idle_limit for entry in core.entries()), default=inf)
    return Description(
        name,
        repr(adapter) if adapter is not None else f"{_shown(source)}, its first connection tells the driver",
        values,
        None if known == inf else known,
        {} if adapter is None else _statements(options, adapter),
    )


def _shown(value: object) -> object:
    if isinstance(value, list | tuple):
        return type(value)(_shown(each) for each in value)
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else value


def _statements(options: PoolOptions, adapter: Any) -> dict[str, str]:
    """Return what is said on the occasions that these options leave."""
    says: Mapping[str, str] = getattr(adapter, "says", {})
    policy = steps(options.reset)
    parts = [part for step in policy or () if isinstance(step, tuple) for part in step]
    occasions = {
        "connect": options.behind is None,
        "require": options.require is not None,
        "ping": options.ping_after is not None or options.keepalive is not None,
        "begin": True,
        "commit": True,
        "rollback": policy is not None,
        "restore": policy is not None,
        "demoted": options.behind is None,
        **dict.fromkeys((str(part) for part in parts), True),
    }
    return {occasion: says.get(occasion, _UNKNOWN) for occasion, there in occasions.items() if there}


_UNKNOWN = "not told by its adapter"
