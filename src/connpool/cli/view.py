"""What is seen: a live picture on a terminal, a line per second elsewhere, or JSON at the end."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .. import PoolStats, __version__
from .workload import Figures

WIDTH, HEIGHT = 79, 23
"""What the live picture and the headline above it need; a smaller terminal gets plain lines."""

# -- what is shown -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to be done."""

    threads: int
    size: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """What was done to the pool half-way, and what followed.  Durations are in seconds."""

    kills_sessions: bool
    at: float
    killed: int
    in_flight: int
    """Statements lost with a killed session whose connection had been lent before the end of the blow."""
    late: int
    """Statements lost on a killed session that was lent after it."""
    found: int
    """Connections that the pool found dead before it lent them."""
    refusals: int
    """Acquires that have failed since the start."""
    new: int
    """Connections opened since."""
    first_after: float | None
    last_after: float | None

    def lines(self) -> list[str]:
        """Tell it, a sentence or two on each line."""
        if self.kills_sessions:
            sessions = _count(self.killed, "session")
            lines = [f"At {self.at:.1f} s every server session was terminated: {sessions}."]
            lost = f"{_were(self.in_flight, 'statement')} in flight and failed"
        else:
            lines = [f"At {self.at:.1f} s evict() had every connection replaced: no session to kill here."]
            lost = "No statement failed" if not self.in_flight else f"{self.in_flight} statements failed"
        lines.append(f"{lost}; {_count(self.refusals, 'acquire')} failed.")
        if self.late:
            # The session died between two borrowers, before anybody could know of a death.
            lines.append(f"{self.late} more failed that began on a session which had just died.")
        if self.found:
            lines.append(f"{_were(self.found, 'connection')} found dead by the pool before being lent.")
        if self.first_after is not None and self.last_after is not None:
            line = f"First new connection after {_duration(self.first_after)}"
            if self.new > 1:
                line += f", all {self.new} after {_duration(self.last_after)}"
            lines.append(line + ".")
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A look at a load that is under way."""

    title: str
    seconds: float
    total: Figures
    recent: Figures
    least: int
    most: int
    sessions: int | None
    stats: PoolStats | None
    blow: Blow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What became of one load: a column of the summary."""

    title: str
    figures: Figures
    rate: float
    least: int
    most: int
    opened: int
    peak: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything, at the end."""

    plan: Plan
    title: str
    blow: Blow | None
    pooled: Side
    single: Side
    committed: int
    rows: int | None
    broken: list[str]
    """What did not hold of the promise; empty if it did."""

    def sentence(self) -> str:
        """Say in one sentence what was seen."""
        if self.broken:
            return f"The promise did not hold: {'; '.join(self.broken)}."
        blow = self.blow
        if blow is not None and blow.kills_sessions:
            lost = blow.in_flight + blow.late
            cost = f"{_count(blow.killed, 'killed session')} cost {_count(lost, 'statement')} and no acquire"
        else:
            cost = "replacing every connection cost no statement and no acquire"
        pooled, single = self.pooled, self.single
        fair = f"no thread was served more than {_ratio(pooled.least, pooled.most)} times as often as another"
        if blow is None or not blow.kills_sessions:
            # A file is opened in no time: the comparison would mislead.
            return f"The promise held: {cost}, and {fair}; what a pool saves shows on a server."
        if not single.rate:
            return f"The promise held: {cost}, and {fair}."
        return (
            f"The promise held: {cost}, {fair}, and {_count(self.plan.size, 'pooled connection')} did"
            f" {pooled.rate / single.rate:.1f} times the requests of a connection per request."
        )


class View(Protocol):
    """Whoever shows it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def note(self, line: str) -> None:
        """Say something beforehand."""

    def begin(self, plan: Plan, title: str, *, kills_sessions: bool) -> None:
        """Say what is going to happen."""

    def show(self, sample: Sample) -> None:
        """Show a look at the load."""

    def end(self, outcome: Outcome) -> None:
        """Show what became of it."""


def make_view(*, plain: bool, as_json: bool) -> View:
    """Return the view that fits the terminal, or that was asked for."""
    if as_json:
        return JSONView()
    # Where rich would take TERM=dumb or FORCE_COLOR for something else, this is what is meant.
    console = Console(highlight=False)
    cannot = not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown")
    if plain or cannot or console.width < WIDTH or console.height < HEIGHT:
        return PlainView(Console(force_terminal=False, color_system=None, highlight=False))
    return LiveView(console)


# -- three views -------------------------------------------------------------------------------------


class _Printing:
    """What the plain and the live view have in common."""

    _box = SIMPLE_HEAD

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return

    def note(self, line: str) -> None:
        self._print(line, "dim")

    def begin(self, plan: Plan, title: str, *, kills_sessions: bool) -> None:
        self._print(f"connpool {__version__} on {title}.")
        half_way = "every server session is terminated" if kills_sessions else "every connection is replaced"
        crowd = f"{_count(plan.threads, 'thread')} over {_count(plan.size, 'connection')}"
        self._print(f"{crowd}; half-way {half_way}.")

    def end(self, outcome: Outcome) -> None:
        self._print("")
        lines = outcome.blow.lines() if outcome.blow else []
        if outcome.rows is not None:
            lines.append(
                f"{outcome.committed:,} requests were committed; the table has {outcome.rows:,} rows."
            )
        for line in lines:
            self._print(line)
        self._print("")
        self._console.print(_summary(outcome, self._box))
        self._print("")
        self._print(outcome.sentence(), "bold red" if outcome.broken else "bold", wrap=True)

    def _print(self, line: str, style: str = "", *, wrap: bool = False) -> None:
        # In a log a sentence is a line; on a screen it is to be read.
        screen = self._console.is_terminal or self._console.file.isatty()
        self._console.print(Text(line, style), soft_wrap=not (wrap and screen))


class PlainView(_Printing):
    """A line per second: for logs, pipes, screen readers."""

    _box = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
    _COLUMNS = (
        ("time", 6),
        ("in use", 7),
        ("idle", 5),
        ("opening", 8),
        ("waiting", 8),
        ("server", 7),
        ("per s", 7),
        ("p50", 7),
        ("p99", 7),
        ("served", 11),
        ("failed", 7),
    )

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._title = ""
        self._second = 0
        self._struck = False

    def show(self, sample: Sample) -> None:
        if not self._title:
            self._print("")
            self._print("p50, p99: of getting a connection; served: least..most per thread")
        if sample.title != self._title:
            self._title, self._second = sample.title, 0
            self._print("")
            self._print(sample.title)
            self._print_row([name for name, _ in self._COLUMNS])
        if sample.blow and not self._struck:
            self._struck = True
            self._print(f"     {sample.blow.lines()[0]}")
        second = int(sample.total.seconds)
        if second > self._second:
            self._second = second
            self._print_row(self._cells(sample))

    def _print_row(self, cells: list[str]) -> None:
        # At least one space between two, even where a figure needs more room than it was given.
        columns = zip(cells, self._COLUMNS, strict=True)
        self._print(" ".join(text.rjust(width - 1) for text, (_, width) in columns))

    def _cells(self, sample: Sample) -> list[str]:
        stats, recent, total = sample.stats, sample.recent, sample.total
        pool = [stats.in_use, stats.idle, stats.opening, stats.waiting] if stats else ["-"] * 4
        return [
            f"{self._second} s",
            *map(str, pool),
            "-" if sample.sessions is None else str(sample.sessions),
            f"{recent.rate:,.0f}",
            _duration(recent.wait.percentile(50)),
            _duration(recent.wait.percentile(99)),
            f"{sample.least}..{sample.most}",
            str(total.refusals + total.failures),
        ]


class LiveView(_Printing):
    """One picture, drawn anew in its place; it makes room for the summary at the end."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        # Drawn by whoever shows a sample: a thread more would only fight with fifty for the GIL.
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._latest: dict[str, Sample] = {}  # of each load so far, by its title

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show(self, sample: Sample) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(self._picture(sample), refresh=True)

    def _picture(self, sample: Sample) -> RenderableType:
        self._latest[sample.title] = sample
        samples = list(self._latest.values())
        parts: list[RenderableType] = ["", _bars(samples), "", _gauges(sample)]
        for blow in (each.blow for each in samples if each.blow):
            parts += ["", *(Text(f"  {line}") for line in blow.lines())]
        return Group(*parts)


class JSONView:
    """Nothing but one JSON object at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return

    def note(self, line: str) -> None:
        print(line, file=sys.stderr)

    def begin(self, plan: Plan, title: str, *, kills_sessions: bool) -> None:  # noqa: ARG002 -- all at the end
        return

    def show(self, sample: Sample) -> None:  # noqa: ARG002 -- all at the end
        return

    def end(self, outcome: Outcome) -> None:
        print(
            json.dumps(
                {
                    "connpool": __version__,
                    "database": outcome.title,
                    **asdict(outcome.plan),
                    "blow": asdict(outcome.blow) if outcome.blow else None,
                    "pool": _as_dict(outcome.pooled),
                    "connection_per_request": _as_dict(outcome.single),
                    "committed": outcome.committed,
                    "rows": outcome.rows,
                    "kept": not outcome.broken,
                    "broken": outcome.broken,
                },
                indent=2,
            )
        )


def _as_dict(side: Side) -> dict[str, Any]:
    figures = side.figures
    return {
        "requests_per_second": round(side.rate, 1),
        "wait_p50": figures.wait.percentile(50),
        "wait_p99": figures.wait.percentile(99),
        "connections_opened": side.opened,
        "most_sessions": side.peak,
        "failed_acquires": figures.refusals,
        "failed_statements": figures.failures,
        "least_served": side.least,
        "most_served": side.most,
    }


# -- parts of the picture ----------------------------------------------------------------------------


def _bars(samples: list[Sample]) -> RenderableType:
    bars = Table.grid(padding=(0, 2))
    bars.add_column(width=26)
    bars.add_column(width=30)
    bars.add_column(justify="right", width=12)
    for sample in samples:
        done = min(sample.total.seconds, sample.seconds)
        bars.add_row(
            Text(f"  {sample.title}", "bold" if sample is samples[-1] else "dim"),
            ProgressBar(total=sample.seconds, completed=done, width=30),
            Text(f"{done:.0f} of {sample.seconds:g} s"),
        )
    return bars


def _gauges(sample: Sample) -> RenderableType:
    """The state on the left, the figures on the right; fixed widths, so that nothing jumps."""
    stats, total, recent = sample.stats, sample.total, sample.recent
    state: list[tuple[str, str]] = []
    if stats:
        state += [
            ("in use", f"{stats.in_use} of {stats.max_size}"),
            ("idle", str(stats.idle)),
            ("opening", str(stats.opening)),
            ("threads waiting", str(stats.waiting)),
        ]
    if sample.sessions is not None:
        state.append(("server sessions", str(sample.sessions)))
    rows = [
        ("", "last second", "so far"),
        ("connections got per second", f"{recent.rate:,.0f}", f"{total.rate:,.0f}"),
        ("wait for one, p50", *(_duration(figures.wait.percentile(50)) for figures in (recent, total))),
        ("wait for one, p99", *(_duration(figures.wait.percentile(99)) for figures in (recent, total))),
        ("failed acquires" if stats else "failed connects", str(recent.refusals), str(total.refusals)),
        ("failed statements", str(recent.failures), str(total.failures)),
        ("served per thread, least", "", str(sample.least)),
        ("served per thread, most", "", f"{sample.most}"),
        ("most / least", "", _ratio(sample.least, sample.most)),
    ]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=17)
    grid.add_column(width=8, justify="right")
    grid.add_column(width=3)
    grid.add_column(width=26)
    grid.add_column(width=11, justify="right", style="bold")
    grid.add_column(width=9, justify="right")
    for number, (label, now, so_far) in enumerate(rows):
        # One row down, so that the state begins below the heads of the figures.
        name, value = state[number - 1] if 1 <= number <= len(state) else ("", "")
        heads = "dim" if number == 0 else ""
        grid.add_row(
            Text(f"  {name}"), Text(value, "bold"), "", Text(label), Text(now, heads), Text(so_far, heads)
        )
    return grid


def _summary(outcome: Outcome, box: Box) -> RenderableType:
    pooled, single = outcome.pooled, outcome.single
    table = Table(box=box, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column(f"pool of {outcome.plan.size}", justify="right", style="bold")
    table.add_column("connection per request", justify="right")

    def row(label: str, of_pooled: str, of_single: str) -> None:
        table.add_row(label, of_pooled, of_single)

    row("requests per second", f"{pooled.rate:,.0f}", f"{single.rate:,.0f}")
    for percent in (50, 99):
        row(
            f"getting a connection, p{percent}",
            *(_duration(side.figures.wait.percentile(percent)) for side in (pooled, single)),
        )
    row("connections opened", f"{pooled.opened:,}", f"{single.opened:,}")
    if pooled.peak is not None:
        row("most server sessions seen", f"{pooled.peak:,}", f"{single.peak:,}")
    row("failed to get a connection", f"{pooled.figures.refusals:,}", f"{single.figures.refusals:,}")
    row("failed statements", f"{pooled.figures.failures:,}", f"{single.figures.failures:,}")
    row(
        "served per thread, least to most",
        *(f"{side.least:,} to {side.most:,} ({_ratio(side.least, side.most)})" for side in (pooled, single)),
    )
    return table


# -- words and numbers -------------------------------------------------------------------------------


def _duration(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.0f} s"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    milliseconds = seconds * 1000
    if milliseconds >= 9.95:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds:.1f} ms" if milliseconds >= 0.095 else f"{milliseconds * 1000:.0f} us"


def _ratio(least: int, most: int) -> str:
    return f"{most / least:.2f}" if least else "-"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _were(number: int, noun: str) -> str:
    return f"{_count(number, noun)} {'was' if number == 1 else 'were'}"
