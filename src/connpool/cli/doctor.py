"""What ``connpool doctor`` does: connect, ask, judge, show; within a time, and without the password."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import Adapter, PoolMisuse
from ..adapter import Fault, adapter_for_url
from .facts import DATABASES, Database, Facts, Pooler, machine
from .findings import Finding, Plan, Severity, judge

R = TypeVar("R")

URL = re.compile(
    r"""
    [a-z0-9+]+ ://
    (?: [^@/?\#]* @ )?                                       # user and password
    (?: \[ [^\]@/?\#]* \] | [^@:/?\#,\[\]]* ) (?: :\d* )?      # host and port
    (?: , (?: \[ [^\]@/?\#]* \] | [^@:/?\#,\[\]]* ) (?: :\d* )? )*
    (?: / [^@?\#]* )?                                        # database
    (?: \? \w+ = [^&\#]* (?: & \w+ = [^&\#]* )* )?             # parameters
    """,
    re.VERBOSE,
)
"""A URL of which no part of the password can be taken for something else, and shown by a driver."""

ADVICE = {
    Fault.AUTH: "Check user, password and database.",
    Fault.FULL: "All of its sessions are taken.",
    Fault.STARTING: "Try again in a moment.",
    Fault.DEAD: "Check host and port, and that the server runs.",
}
PROBING = 3.0
"""Seconds for a second connection behind a pooler: it waits if all sessions are taken."""

ROUNDING = 0.01
"""Seconds by which a poll with a timeout may return too early: it counts milliseconds."""


class Failed(Exception):
    """There is no report: not connected, no answer, or nothing that can be asked."""


@dataclass(frozen=True)
class Report:
    """What was found."""

    findings: list[Finding]

    @property
    def worst(self) -> Severity:
        """The worst severity of all."""
        order = list(Severity)
        return max((each.severity for each in self.findings), key=order.index)

    @property
    def healthy(self) -> bool:
        """Whether there is neither a warning nor a problem."""
        return self.worst in (Severity.OK, Severity.NOTE)


def examine(url: str, plan: Plan, timeout: float) -> Report:
    """Connect to a server and report, within *timeout* seconds.

    Raises:
        Failed: The message says why, and never holds the password.
    """
    deadline = monotonic() + timeout
    adapter, database = _choose(url)
    try:
        conn = within(deadline, lambda: adapter.connect(deadline - monotonic()))
    except Exception as exc:  # whatever the driver raises
        if monotonic() > deadline - ROUNDING:  # the adapter gives up at the same moment, in other words
            raise Failed(f"not connected within {timeout:g} s. {ADVICE[Fault.DEAD]}") from None
        raise Failed(_not_connected(adapter, exc)) from None
    try:
        facts = _ask(adapter, database, conn, deadline)
    except TimeoutError:
        raise Failed(f"connected, but the server did not answer within {timeout:g} s") from None
    except Exception as exc:
        raise Failed(f"connected, but the server did not answer: {_one_line(exc)}") from None
    finally:
        adapter.close(conn, 1.0)
    return Report(judge(facts, plan))


def within(deadline: float, call: Callable[[], R]) -> R:
    """Return what *call* returns; raise `TimeoutError` if it does not by *deadline*, and leave it alone.

    The adapters limit their own steps; but nobody limits name resolution, or a statement of a driver.
    """
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, name="doctor", daemon=True).start()
    return future.result(max(0.0, deadline - monotonic()))


def _choose(url: str) -> tuple[Adapter[Any], Database]:
    if "://" in url and not URL.fullmatch(url):
        raise Failed(
            "this URL cannot be read (not repeated here, it may hold a password); @ : / ? # and % inside a"
            " name or password must be percent-encoded"
        )
    try:
        adapter = adapter_for_url(url)
    except PoolMisuse as exc:
        raise Failed(str(exc).replace("create_pool()", "doctor")) from None
    except ModuleNotFoundError as exc:
        driver = (exc.name or "").partition(".")[0]
        raise Failed(f"{driver} is missing; run: pip install 'dbapi-connpool[{driver}]'") from None
    if adapter.name not in DATABASES:
        raise Failed(f"{adapter.name} has no server to examine")
    return adapter, DATABASES[adapter.name]


def _ask(adapter: Adapter[Any], database: Database, conn: Any, deadline: float) -> Facts:
    """Find out everything, what stands in between last: only that may get no answer."""

    def ask() -> Facts:
        database.prepare(conn)
        adapter.adopt(conn)  # as the pool does: it sets the keepalive
        left = deadline - monotonic()
        return Facts(
            server=database.server(conn),
            idle_limit=adapter.idle_limit(conn, left),
            writable=adapter.writable(conn, left),
            link=database.link(conn),
            pooler=None,
            machine=machine(),
        )

    facts = within(deadline, ask)
    limit = min(PROBING, deadline - monotonic())
    try:
        pooler = within(monotonic() + limit, lambda: database.pooler(adapter, conn, facts.server, limit))
    except TimeoutError:
        pooler = Pooler(name="a pooler such as PgBouncer", in_vain=True)
    return replace(facts, pooler=pooler)


def _not_connected(adapter: Adapter[Any], exc: Exception) -> str:
    advice = ADVICE.get(adapter.fault(exc, dialling=True), "")
    return f"not connected: {_one_line(exc)}. {advice}".rstrip()


def _one_line(exc: Exception) -> str:
    """Return a driver's message in one line; PyMySQL puts a number before it."""
    text = str(exc.args[-1]) if exc.args else type(exc).__name__
    return " ".join(text.split()).rstrip(".?")


# -- showing it --------------------------------------------------------------------------------------

STYLES = {
    Severity.OK: "green",
    Severity.NOTE: "cyan",
    Severity.WARNING: "yellow",
    Severity.PROBLEM: "bold red",
}


def show(report: Report, *, as_json: bool) -> None:
    """Print the report."""
    if as_json:
        found = [asdict(each) for each in report.findings]
        print(json.dumps({"worst": report.worst, "findings": found}, indent=2))
        return
    table = Table(box=SIMPLE_HEAD, show_header=False)
    for each in report.findings:
        told = Text(each.value, style="bold")
        told.append(f"\n{each.meaning}", style="not bold")
        if each.advice:
            told.append(f"\n{each.advice}", style="not bold italic")
        table.add_row(Text(each.severity, style=STYLES[each.severity]), Text(each.name), told)
    console = Console(highlight=False)
    console.print(table)
    counts = {kind: sum(each.severity is kind for each in report.findings) for kind in Severity}
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))


def show_failure(failure: Failed, *, as_json: bool) -> None:
    """Print why there is no report: as JSON on stdout, in words on stderr."""
    if as_json:
        print(json.dumps({"error": str(failure)}, indent=2))
    else:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"connpool: {failure}")
