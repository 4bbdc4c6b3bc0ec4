"""The commands and their options; what they do stands elsewhere."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer

from .. import __version__
from . import doctor as doctors
from . import size as sizes
from .databases import Unavailable, choose
from .demo import Plan, run
from .findings import Plan as Pools
from .view import make_view

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # its boxes break paragraphs at the ends of our source lines
    pretty_exceptions_enable=False,  # they show local variables, passwords among them
)


class Driver(StrEnum):
    """What the demonstration runs on."""

    AUTO = "auto"
    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"connpool {__version__}")
        raise typer.Exit


@app.callback()
def _connpool(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A fair, fast, self-healing database connection pool."""


@app.command()
def demo(
    threads: Annotated[int, typer.Option(min=1, max=1000, help="Threads that want a connection.")] = 50,
    size: Annotated[int, typer.Option(min=1, max=90, help="Connections that the pool may have.")] = 5,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long the pool runs; the comparison takes half of it.")
    ] = 10.0,
    driver: Annotated[
        Driver, typer.Option(help="auto: an embedded PostgreSQL where one is installed, else SQLite.")
    ] = Driver.AUTO,
    plain: Annotated[
        bool, typer.Option("--plain", help="A line per second, no colours; so without a terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only the figures, at the end, as JSON.")] = False,
) -> None:
    """Watch a pool under load lose every server session, and go on.

    Many threads share few connections to a private PostgreSQL, which is started for this and removed
    afterwards.  Half-way every session is terminated.  Then the same threads do the same work with a
    connection of their own for each request.

    Exit code 0: no acquire failed and every thread got its fair share.  1: it was otherwise.
    """
    view = make_view(plain=plain, as_json=as_json)
    try:
        with ExitStack() as stack:
            database = choose(driver.value, stack, view.note)
            kept = run(Plan(threads=threads, size=size, seconds=seconds), database, view)
    except Unavailable as exc:
        typer.echo(f"connpool: {exc}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        # Said after the stack has been unwound, so it is true.
        typer.echo("Interrupted; nothing is left behind.", err=True)
        raise typer.Exit(130) from None
    if not kept:
        raise typer.Exit(1)


@app.command()
def doctor(
    url: Annotated[
        str,
        typer.Argument(
            envvar="CONNPOOL_URL",
            show_default=False,
            help="The server. Other users of the machine see a command's arguments, and not its environment.",
        ),
    ],
    size: Annotated[int, typer.Option(min=1, help="max_size of each pool.")] = Pools.size,
    processes: Annotated[int, typer.Option(min=1, help="Processes that have a pool.")] = Pools.processes,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds for all of it.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Examine a server and the way to it: what they mean for a pool's options.

    It connects as the pool would, reads, and changes nothing: version, limits and sessions, timeouts for
    idle sessions, TLS, keepalive, a pooler in between and its mode; on this machine file descriptors and
    ports.  postgresql:// and mysql:// are understood.

    Exit code 0: nothing but notes.  1: a warning or a problem.  2: not connected, or an option is wrong.
    """
    try:
        report = doctors.examine(url, Pools(size=size, processes=processes), timeout)
    except doctors.Failed as exc:
        doctors.show_failure(exc, as_json=as_json)
        raise typer.Exit(2) from None
    doctors.show(report, as_json=as_json)
    if not report.healthy:
        raise typer.Exit(1)


@app.command()
def size(
    concurrency: Annotated[
        float | None, typer.Option(help="Requests that one process serves at the same time.")
    ] = None,
    operations: Annotated[
        float | None,
        typer.Option(help="Database operations under way in a request, on average over all of its time."),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Acquires per second, of one process.")] = None,
    held: Annotated[
        float | None, typer.Option(help="Seconds that each holds its connection, on average.")
    ] = None,
    safety: Annotated[float, typer.Option(help="How much more than the average; 1 or more.")] = 1.5,
    given: Annotated[
        int | None, typer.Option("--size", help="The size of each pool, if it is decided already.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of a process that hold several connections each.")
    ] = None,
    per_thread: Annotated[
        int | None, typer.Option(help="How many one of them holds at the same time, at most.")
    ] = None,
    instances: Annotated[int, typer.Option(help="Machines or containers; in a deployment old and new.")] = 1,
    processes: Annotated[int, typer.Option(help="Processes in each that have a pool.")] = 1,
    dedicated: Annotated[int, typer.Option(help="What dedicated() may add to each pool.")] = 0,
    max_connections: Annotated[
        int | None, typer.Option(help="What the server has for ordinary users.")
    ] = None,
    reserve: Annotated[
        float, typer.Option(help="Share of it for administration, replication, batch: 0.1 to 0.2.")
    ] = 0.15,
    cores: Annotated[
        int | None, typer.Option(help="The server's processor cores, for an orientation.")
    ] = None,
    spindles: Annotated[int, typer.Option(help="The server's disks that can seek at the same time.")] = 0,
    pgbouncer: Annotated[
        bool, typer.Option("--pgbouncer", help="Divide the server's connections among PgBouncer's pools.")
    ] = False,
    pairs: Annotated[int, typer.Option(help="Pairs of user and database behind PgBouncer.")] = 1,
    bouncers: Annotated[int, typer.Option(help="PgBouncer processes in front of the server.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Work out how many connections a pool needs, and whether the server has them.

    From the load: --concurrency and --operations, or --rate and --held; or --size if it is known.
    150 requests at a time, in the database for three tenths of their time:

        connpool size --concurrency 150 --operations 0.3

    With --max-connections: whether all pools together leave the server its reserve.  With --pgbouncer:
    default_pool_size, min_pool_size and reserve_pool_size.  With --threads and --per-thread: the least
    size at which threads that take several connections cannot wait for each other.

    Exit code 0: it fits, or there was nothing to fit into.  1: it does not fit.  2: an option is wrong.
    """
    question = sizes.Question(
        size=given,
        concurrency=concurrency,
        operations=operations,
        rate=rate,
        held=held,
        safety=safety,
        threads=threads,
        per_thread=per_thread,
        instances=instances,
        processes=processes,
        dedicated=dedicated,
        max_connections=max_connections,
        reserve=reserve,
        cores=cores,
        spindles=spindles,
        pgbouncer=pgbouncer,
        pairs=pairs,
        bouncers=bouncers,
    )
    try:
        answer = sizes.calculate(question)
    except (sizes.Incomplete, ValueError) as exc:
        typer.echo(f"connpool: {exc}", err=True)
        raise typer.Exit(2) from None
    sizes.show(answer, as_json=as_json)
    if answer.fits is False:
        raise typer.Exit(1)
