"""How many connections: the arithmetic, each formula with its units and its source.

These are estimates to begin with.  What the pool measures (`ConnectionPool.stats`) is better than any of
them as soon as there is something to measure.

Not known here: servers, pools, what runs where.  ``connpool size`` asks for the numbers and shows the sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isfinite


def for_requests(concurrency: float, operations: float, safety: float = 1.5) -> int:
    """Return the pool size for requests that are served at the same time.

    ``concurrency x operations x safety``, rounded up: 150 x 0.3 x 1.5 -> 68.  Without the factor it is
    Little's law once more: the average number in use.  The factor is for bursts, and a rule of thumb.

    Args:
        concurrency: Requests that one process serves at the same time.
        operations: Database operations that a request has under way, on average over all of its time.
            0.3: it holds a connection for three tenths of it.
        safety: How much more than the average; 1 or more.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range.
    """
    _more_than_0(concurrency=concurrency, operations=operations)
    return _up(concurrency * operations * _safety(safety))


def in_use(rate: float, held: float) -> float:
    """Return how many connections are in use on average: ``rate x held``.

    Little's law, L = λW (J. D. C. Little, "A Proof for the Queuing Formula: L = λW", Operations Research 9,
    1961, https://doi.org/10.1287/opre.9.3.383).  It holds whatever the distributions.

    Args:
        rate: Acquires per second, of one process.
        held: Seconds that each holds its connection, on average.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is not more than 0.
    """
    _more_than_0(rate=rate, held=held)
    return rate * held


def for_rate(rate: float, held: float, safety: float = 1.5) -> int:
    """Return the pool size for a rate of acquires: ``rate x held x safety``, rounded up.

    Args:
        rate: Acquires per second, of one process.
        held: Seconds that each holds its connection, on average.
        safety: How much more than the average; 1 or more.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range.
    """
    return _up(in_use(rate, held) * _safety(safety))


def deadlock_floor(threads: int, per_thread: int) -> int:
    """Return the least size at which threads that hold several connections cannot wait for each other.

    ``threads x (per_thread - 1) + 1``: if every thread holds all but its last one, one more is left, and
    whoever gets it goes on (HikariCP, "About Pool Sizing",
    https://github.com/brettwooldridge/HikariCP/wiki/About-Pool-Sizing).  It is a bound, not a good size.

    Args:
        threads: Threads that take connections from the pool at the same time.
        per_thread: Connections that one of them holds at the same time, at most.

    Raises:
        TypeError: An argument is not a whole number.
        ValueError: An argument is less than 1.
    """
    _at_least_1(threads=threads, per_thread=per_thread)
    return threads * (per_thread - 1) + 1


def server_orientation(cores: int, spindles: int = 0) -> int:
    """Return about how many connections a server can be busy with: ``cores x 2 + spindles``.

    For all pools together.  More of them wait inside the server (PostgreSQL wiki, "Number Of Database
    Connections", https://wiki.postgresql.org/wiki/Number_Of_Database_Connections).  It was measured with
    spinning disks, and is an orientation, not a limit.

    Args:
        cores: The server's processor cores, hyper-threads not counted.
        spindles: Disks that can seek at the same time; 0 if the data that is in use fits into memory.

    Raises:
        TypeError: An argument is not a whole number.
        ValueError: There is less than 1 core, or the spindles are negative.
    """
    _at_least_1(cores=cores)
    _whole(0, "spindles", spindles)
    return cores * 2 + spindles


def in_all(size: int, *, instances: int = 1, processes: int = 1, dedicated: int = 0) -> int:
    """Return the connections of a whole deployment: ``instances x processes x (size + dedicated)``.

    Args:
        size: `max_size` of the pool in one process.
        instances: Machines or containers, those of a rolling deployment included: old and new ones run
            side by side.
        processes: Processes in each that have a pool.
        dedicated: What `ConnectionPool.dedicated` may add in each: `max_dedicated`, if it is used.

    Raises:
        TypeError: An argument is not a whole number.
        ValueError: `dedicated` is negative, or another one less than 1.
    """
    _at_least_1(size=size, instances=instances, processes=processes)
    _whole(0, "dedicated", dedicated)
    return instances * processes * (size + dedicated)


def budget(max_connections: int, reserve: float = 0.15) -> int:
    """Return what pools may have of a server's connections: ``max_connections x (1 - reserve)``.

    Rounded down.  The rest is for administration, replication, migrations and batch jobs; 10 to 20 % is
    custom.

    Args:
        max_connections: What ordinary users may open; slots that the server keeps back not counted.
        reserve: The share that is left to others, 0 or more and less than 1.

    Raises:
        TypeError: An argument is not a number, or `max_connections` not a whole one.
        ValueError: An argument is out of its range.
    """
    _at_least_1(max_connections=max_connections)
    if not 0 <= _number("reserve", reserve) < 1:
        raise ValueError(f"reserve={reserve!r}: must be a share of 0 or more and less than 1, such as 0.15")
    return floor(_exact(max_connections * (1 - reserve)))


@dataclass(frozen=True, kw_only=True)
class PgBouncerSizes:
    """Settings of a PgBouncer (https://www.pgbouncer.org/config.html)."""

    max_client_conn: int
    """Connections of clients, in all."""
    default_pool_size: int
    """Connections to the server, for each pair of user and database."""
    min_pool_size: int
    """How many of these are kept open."""
    reserve_pool_size: int
    """How many more there may be when clients have waited for `reserve_pool_timeout`."""


def for_pgbouncer(clients: int, server_budget: int, *, pairs: int = 1, bouncers: int = 1) -> PgBouncerSizes:
    """Divide a server's connections among the pools of PgBouncer in front of it.

    Each pool may have ``default_pool_size + reserve_pool_size``, so together that is one share of
    *server_budget*.  That the reserve is a fifth of the share, and that half of the pool is kept open,
    are choices of ours: enough for a burst, and no dials in front of every one.

    Args:
        clients: Connections of all pools to all PgBouncers; see `in_all`.
        server_budget: Connections that PgBouncer may have to the server; see `budget`.
        pairs: Pairs of user and database: PgBouncer has a pool for each.
        bouncers: PgBouncer processes in front of the same server.

    Raises:
        TypeError: An argument is not a whole number.
        ValueError: An argument is less than 1, or the budget does not give every pool a connection.
    """
    _at_least_1(clients=clients, server_budget=server_budget, pairs=pairs, bouncers=bouncers)
    share = server_budget // (pairs * bouncers)
    if not share:
        raise ValueError(
            f"server_budget={server_budget}: is less than one connection for each of the"
            f" {pairs * bouncers} pools of PgBouncer"
        )
    reserve = share // 5
    size = min(share - reserve, -(-clients // (pairs * bouncers)))
    return PgBouncerSizes(
        # On each, because when one fails its clients go to the others.
        max_client_conn=clients,
        default_pool_size=size,
        min_pool_size=size // 2,
        reserve_pool_size=reserve,
    )


# -- rounding and checking ---------------------------------------------------------------------------


def _exact(value: float) -> float:
    """Take away what binary fractions add: 100 x 1.1 is 110, and not a little more."""
    return round(value, 9)


def _up(value: float) -> int:
    return max(1, ceil(_exact(value)))


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: must be a number")
    if not isfinite(value):
        raise ValueError(f"{name}={value!r}: must be finite")
    return value


def _more_than_0(**values: object) -> None:
    for name, value in values.items():
        if _number(name, value) <= 0:
            raise ValueError(f"{name}={value!r}: must be more than 0")


def _safety(value: object) -> float:
    factor = _number("safety", value)
    if factor < 1:
        raise ValueError(f"safety={value!r}: must be 1 or more")
    return factor


def _at_least_1(**values: object) -> None:
    for name, value in values.items():
        _whole(1, name, value)


def _whole(least: int, name: str, value: object) -> None:
    wanted = f"{name}={value!r}: must be a whole number of at least {least}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(wanted)
    if value < least:
        raise ValueError(wanted)
