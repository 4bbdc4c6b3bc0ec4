"""What ``manage.py check --database default`` says about a pool: does the fleet fit into the server?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.core.checks import CheckMessage, Warning  # noqa: A004 -- that is what Django calls it
from django.db.backends.base.validation import BaseDatabaseValidation

if TYPE_CHECKING:
    from .options import Settings
    from .wrapper import PooledWrapper

PATIENCE: Final = 30.0
"""Seconds after which web workers are commonly killed."""


class PooledValidation(BaseDatabaseValidation):  # type: ignore[misc] # Django has no types
    """Django's validation, and ours."""

    connection: PooledWrapper

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return Django's messages and ours."""
        return [*super().check(**kwargs), *messages(self.connection)]


def messages(connection: PooledWrapper) -> list[CheckMessage]:
    """Return what there is to say about the settings of one alias."""
    chosen = connection.pool_settings()
    if chosen is None:
        return []
    return [
        *_fleet(connection, chosen),
        *_health_checks(connection),
        *_atomic_requests(connection, chosen),
        *_patience(connection, chosen),
    ]


def _fleet(connection: PooledWrapper, chosen: Settings) -> list[CheckMessage]:
    capacity, _ = connection.server_capacity()
    processes = chosen.processes or 1
    most = processes * chosen.max_size
    if not capacity or most <= capacity:
        return []
    counted = "process" if processes == 1 else "processes"
    fitting = capacity // processes
    return [
        Warning(
            f"{connection.alias}: {processes} {counted} with max_size={chosen.max_size} each may open {most}"
            f" connections, but the server admits {capacity}.",
            hint=f"max_size={fitting} would fit; or raise the server's max_connections."
            if fitting
            else "There are more processes than the server admits connections: put a pooler in between.",
            id="connpool.W001",
        )
    ]


def _health_checks(connection: PooledWrapper) -> list[CheckMessage]:
    if not connection.settings_dict.get("CONN_HEALTH_CHECKS"):
        return []
    return [
        Warning(
            f"{connection.alias}: CONN_HEALTH_CHECKS does nothing here.",
            hint="The pool looks at each connection before it lends it, as far as its idle time asks for;"
            " leave CONN_HEALTH_CHECKS out.",
            id="connpool.W002",
        )
    ]


def _atomic_requests(connection: PooledWrapper, chosen: Settings) -> list[CheckMessage]:
    if chosen.pooling != "transaction" or not connection.settings_dict.get("ATOMIC_REQUESTS"):
        return []
    return [
        Warning(
            f'{connection.alias}: with ATOMIC_REQUESTS, pooling="transaction" gains nothing.',
            hint="Each request is one transaction, and has its connection for as long; use atomic() where"
            " it is needed instead, or pooling='session'.",
            id="connpool.W003",
        )
    ]


def _patience(connection: PooledWrapper, chosen: Settings) -> list[CheckMessage]:
    timeout = chosen.options.get("acquire_timeout", 0)
    if timeout is not None and timeout < PATIENCE:
        return []
    return [
        Warning(
            f"{connection.alias}: acquire_timeout={timeout} is longer than web workers commonly live.",
            hint="At 30 s they are killed, before anybody sees the error that says who has the connections.",
            id="connpool.W004",
        )
    ]
