"""The commands and their options; what they do stands elsewhere."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer

from .. import __version__
from .databases import Unavailable, choose
from .demo import Plan, run
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
