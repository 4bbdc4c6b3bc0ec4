"""What stands under ``OPTIONS["pool"]``: read, and refused with one clear message.

The names are those of `connpool.ConnectionPool`; with `pooling`, and what `connpool.facade.connect` takes
besides; and `processes`.  In place of a function its dotted path will do.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from connpool import ConnectionPool, PoolOptions
from connpool.facade.opening import Options

Pooling = Literal["session", "transaction"]

OF_THE_POOL: Final = frozenset(
    name
    for name, parameter in inspect.signature(ConnectionPool.__init__).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
)
OF_THE_FACADE: Final = frozenset({"on_session_state", "settings"})
OUR_OWN: Final = frozenset({"pooling", "processes"}) | OF_THE_FACADE
FUNCTIONS: Final = ("credentials", "on_connect", "on_acquire", "on_release", "on_close")

# What the built-in pool, SQLAlchemy's and others call it.
ELSEWHERE: Final[Mapping[str, str]] = {
    "min_size": "min_idle",
    "pool_size": "max_size",
    "timeout": "acquire_timeout",
    "pool_timeout": "acquire_timeout",
    "max_idle": "idle_timeout",
    "pool_recycle": "max_lifetime",
    "recycle": "max_lifetime",
    "num_workers": "max_connecting",
    "configure": "on_connect",
}
NEEDLESS: Final[Mapping[str, str]] = {
    "check": "connections are always checked, as far as their idle time asks for",
    "pool_pre_ping": "connections are always checked, as far as their idle time asks for",
    "pre_ping": "connections are always checked, as far as their idle time asks for",
    "max_overflow": "there is one bound, max_size",
    "open": "a pool opens what it needs, when it is needed",
    "reconnect_timeout": "a pool never stops trying",
}


@dataclass(frozen=True)
class Settings:
    """The settings of one alias, checked."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """For `ConnectionPool`."""
    pooling: Pooling = "session"
    processes: int | None = None
    """How many processes use the database, for the checks alone; ``None``: nobody said."""

    @property
    def max_size(self) -> int:
        """The most connections of one process."""
        size: int = self.options.get("max_size", PoolOptions.max_size)
        return size


def read(alias: str, settings: Mapping[str, Any]) -> Settings | None:
    """Read what Django's settings say about the pool of an alias; ``None``: it wants none.

    Raises:
        ImproperlyConfigured: Something breaks a rule; the message names setting, value and rule.
    """
    given = settings.get("OPTIONS", {}).get("pool", True)
    where = f"DATABASES[{alias!r}]['OPTIONS']['pool']"
    if given is False or given is None:
        return None
    max_age = settings.get("CONN_MAX_AGE", 0)
    if max_age != 0:
        raise ImproperlyConfigured(
            f"DATABASES[{alias!r}]['CONN_MAX_AGE'] = {max_age!r}: must be 0, Django's default: it is the pool"
            f" that keeps connections from one request to the next; {where}['max_lifetime'] says for how long"
        )
    if given is True:
        given = {}
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(
            f"{where} = {given!r}: must be a dict of options, True for a pool with all defaults, or False"
        )
    return _checked(where, dict(given))


def _checked(where: str, given: dict[str, Any]) -> Settings:
    for name in given:
        if name not in OF_THE_POOL | OUR_OWN:
            raise ImproperlyConfigured(f"{where}: {_unknown(name)}")
    pooling = given.pop("pooling", "session")
    if pooling not in ("session", "transaction"):
        raise ImproperlyConfigured(f'{where}: pooling={pooling!r}: must be "session" or "transaction"')
    processes = given.pop("processes", None) or _web_concurrency()
    if processes is not None and (isinstance(processes, bool) or not isinstance(processes, int)):
        raise ImproperlyConfigured(f"{where}: processes={processes!r}: must be a whole number, or None")
    if pooling == "transaction" and given.get("behind") is not None:
        raise ImproperlyConfigured(
            f'{where}: pooling="transaction" with behind={given["behind"]!r}: one of the two is enough; the'
            " proxy gives its sessions back after each transaction already"
        )
    facade = {name: given.pop(name) for name in OF_THE_FACADE if name in given}
    if facade and pooling != "transaction":
        raise ImproperlyConfigured(f'{where}: {", ".join(facade)}: for pooling="transaction" alone')
    try:
        Options(pooling=pooling, **facade)
        for name in FUNCTIONS:
            if isinstance(given.get(name), str):
                given[name] = import_string(given[name])
        PoolOptions(**{name: value for name, value in given.items() if hasattr(PoolOptions, name)})
    except (ImportError, TypeError, ValueError) as exc:
        raise ImproperlyConfigured(f"{where}: {exc}") from exc
    return Settings(given, pooling, processes)


def _unknown(name: object) -> str:
    text = str(name)
    if text in ELSEWHERE:
        return f"there is no option {text!r}; it is called {ELSEWHERE[text]!r} here"
    if text in NEEDLESS:
        return f"there is no option {text!r}: {NEEDLESS[text]}"
    known = sorted(OF_THE_POOL | OUR_OWN)
    near = difflib.get_close_matches(text, known, 1)
    return f"there is no option {text!r}" + (
        f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"
    )


def _web_concurrency() -> int | None:
    """Return the number of workers that gunicorn, uvicorn and Heroku are told by the environment."""
    text = os.environ.get("WEB_CONCURRENCY", "")
    return int(text) if text.isdecimal() and int(text) else None
