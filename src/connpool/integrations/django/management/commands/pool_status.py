"""``manage.py pool_status``: the pools' settings beside what the servers have.

A pool lives in a process, and this command is one of its own: it can ask the server, and not the other
processes' pools.  Their figures are in their metrics.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from connpool.integrations.django.wrapper import PooledWrapper


class Command(BaseCommand):  # type: ignore[misc] # Django has no types
    """Show each pool's settings, and how many sessions its server has and admits."""

    help = "Show the settings of each database's pool, and how many sessions its server has and admits."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take an alias, and the number of processes."""
        parser.add_argument("--database", help="the alias of one database; all if it is not given")
        parser.add_argument(
            "--processes",
            type=int,
            help="how many processes have such a pool; else OPTIONS['pool']['processes'], or WEB_CONCURRENCY",
        )

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002 -- Django's signature
        """Write a paragraph about each alias."""
        alias = options["database"]
        if alias is not None and alias not in connections:
            raise CommandError(f"there is no database {alias!r}; there are: {', '.join(connections)}")
        for name in [alias] if alias else connections:
            for line in self._lines(connections[name], options["processes"], options["verbosity"]):
                self.stdout.write(line)

    def _lines(self, connection: Any, processes: int | None, verbosity: int) -> list[str]:
        said = connection.settings_dict
        place = said.get("HOST") or "this machine"
        lines = [f"{connection.alias}: {connection.vendor}, {said['NAME']} on {place}"]
        pool = connection.pool if isinstance(connection, PooledWrapper) else None
        chosen = connection.pool_settings() if pool else None
        if pool is None or chosen is None:
            return [*lines, "  no pool of connpool's"]
        processes = processes or chosen.processes
        lines.append(f"  pooling: {chosen.pooling}")
        most = f"{chosen.max_size} for each process"
        if processes:
            most = f"{processes} processes x {chosen.max_size} = {processes * chosen.max_size}"
        lines.append(f"  connections, at most: {most}")
        capacity, used = connection.server_capacity()
        if capacity:
            lines.append(f"  the server admits {capacity} sessions and has {used}, this command's included")
            if processes and processes * chosen.max_size > capacity:
                lines.append(f"  too many: max_size={capacity // processes} would fit")
        if verbosity > 1:
            lines += [f"  {line}" for line in str(pool.describe()).splitlines()]
        connection.close()
        return lines
