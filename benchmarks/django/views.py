"""What is measured: who asks for what, and how many connections a process may have."""

from dataclasses import dataclass

from .contenders import BUILT_IN, CONTENDERS, OURS, SQLALCHEMY, Contender, Server
from .site import WORKERS


@dataclass(frozen=True)
class View:
    """One case."""

    name: str
    title: str
    path: str
    clients: int
    size: int  # connections in a process
    server: Server
    only: tuple[str, ...] = ()  # contenders; nobody named: all
    turns: int = 5  # in a round, of each contender

    @property
    def contenders(self) -> list[Contender]:
        everybody = [contender for contender in CONTENDERS if contender.server == self.server]
        return [contender for contender in everybody if not self.only or contender.name in self.only]

    @property
    def sessions(self) -> int:
        """How many sessions a pool may have, all processes together."""
        return self.size * WORKERS


POOLS = (BUILT_IN, *OURS)

VIEWS = [
    View("rows, PostgreSQL", "one query of ten rows; 100 clients", "rows", 100, 5, "PostgreSQL", turns=36),
    View("rows, MariaDB", "one query of ten rows; 100 clients", "rows", 100, 5, "MariaDB", turns=36),
    View(
        "pause, PostgreSQL",
        "a query, 50 ms of something else, a query; 100 clients; 2 connections in a process",
        "pause",
        100,
        2,
        "PostgreSQL",
        (BUILT_IN, SQLALCHEMY, *OURS),
    ),
    View("crowd, PostgreSQL", "one query of ten rows; 1,000 clients", "rows", 1000, 5, "PostgreSQL", POOLS),
    View("crowd, MariaDB", "one query of ten rows; 1,000 clients", "rows", 1000, 5, "MariaDB", POOLS),
]

BEST_SHARE = 0.95
"""Of the best contender's requests, connpool serves at least this share."""
TIMES_BUILT_IN = 4.0
"""With a pause between queries, transaction pooling serves at least so many times the built-in pool's."""
