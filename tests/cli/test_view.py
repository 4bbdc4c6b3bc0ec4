"""The pictures fit the smallest usual terminal, and stand still."""

import dataclasses
import io

import pytest
from rich.console import Console

from connpool import ConnectionPool, Histogram
from connpool.cli.view import HEIGHT, WIDTH, Blow, LiveView, Outcome, PlainView, Plan, Sample, Side
from connpool.cli.workload import Figures

HEADLINE = 3  # lines that stand above the picture

BLOW = Blow(
    kills_sessions=True,
    at=60.0,
    killed=90,
    in_flight=88,
    late=2,
    found=1,
    refusals=0,
    new=90,
    first_after=0.0123,
    last_after=1.234,
)


def figures(*, served: int, waits: list[float]) -> Figures:
    wait = Histogram()
    wait.fold(waits)
    return Figures(seconds=100.0, served=served, done=served, refusals=0, failures=90, wait=wait)


def sample(title: str = "one pool for all", *, blow: Blow | None = BLOW) -> Sample:
    stats = ConnectionPool(lambda: None, max_size=90).stats()
    return Sample(
        title=title,
        seconds=120.0,
        total=figures(served=1_234_567, waits=[0.000_003, 1.5, 12.0]),
        recent=figures(served=12_345, waits=[0.25]),
        least=12_345,
        most=12_346,
        sessions=90,
        stats=dataclasses.replace(stats, in_use=90, waiting=910),
        blow=blow,
    )


def side(title: str) -> Side:
    total = sample().total
    return Side(title=title, figures=total, rate=12_345.0, least=12_345, most=12_346, opened=180, peak=90)


def outcome(**changes: object) -> Outcome:
    told = Outcome(
        plan=Plan(threads=1000, size=90, seconds=120.0),
        title="PostgreSQL 18.6, private, on 127.0.0.1:65535",
        blow=BLOW,
        pooled=side("one pool for all"),
        single=side("a connection per request"),
        committed=1_234_567,
        rows=1_234_567,
        broken=[],
    )
    return dataclasses.replace(told, **changes)  # type: ignore[arg-type]


def terminal(*, width: int = 80, height: int = 24) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        color_system=None,
        highlight=False,
    )


def drawn(console: Console, *samples: Sample) -> list[str]:
    view = LiveView(console)
    for each in samples:
        picture = view._picture(each)
    with console.capture() as capture:
        console.print(picture)
    return capture.get().splitlines()


def test_the_live_picture_fits_80_columns_and_leaves_room_for_the_headline() -> None:
    lines = drawn(terminal(), sample(), sample("a connection per request", blow=None))

    assert max(len(line.rstrip()) for line in lines) <= WIDTH
    assert len(lines) + HEADLINE <= HEIGHT
    assert not any("…" in line for line in lines)


def test_the_live_picture_does_not_move_when_the_figures_change() -> None:
    few = dataclasses.replace(sample(), least=0, most=1, recent=figures(served=0, waits=[]))

    def places(lines: list[str]) -> list[int]:
        labels = ("in use", "threads waiting", "wait for one, p50", "failed acquires", "last second")
        return [line.index(label) for label in labels for line in lines if label in line]

    assert places(drawn(terminal(), sample())) == places(drawn(terminal(), few))


def test_the_end_fits_24_lines_of_80_columns() -> None:
    console = terminal()
    with console.capture() as capture:
        LiveView(console).end(outcome())
    lines = capture.get().splitlines()

    assert max(map(len, lines)) <= 80
    assert len(lines) <= 23  # and the prompt
    assert not any("…" in line for line in lines)


def test_plain_lines_are_aligned_ascii_of_at_most_80_columns() -> None:
    out = io.StringIO()
    view = PlainView(Console(file=out, force_terminal=False, color_system=None, highlight=False, width=80))
    view.show(dataclasses.replace(sample(blow=None), least=1234, most=1235))
    view.end(outcome())
    text = out.getvalue()
    head, line = text.splitlines()[4:6]

    assert text.isascii()
    assert len(head) == len(line) <= 80
    assert max(map(len, text.splitlines()[:-1])) <= 80  # the last sentence is as long as it is


def test_a_late_statement_is_told_apart_from_those_in_flight() -> None:
    assert BLOW.lines()[1:4] == [
        "88 statements were in flight and failed; 0 acquires failed.",
        "2 more failed that began on a session which had just died.",
        "1 connection was found dead by the pool before being lent.",
    ]


def test_one_is_not_told_in_the_plural() -> None:
    blow = dataclasses.replace(BLOW, killed=1, in_flight=1, late=0, found=0, refusals=1, new=1)

    assert blow.lines() == [
        "At 60.0 s every server session was terminated: 1 session.",
        "1 statement was in flight and failed; 1 acquire failed.",
        "First new connection after 12 ms.",
    ]


@pytest.mark.parametrize("broken", [["x failed"], ["x failed", "y failed"]])
def test_all_that_was_broken_is_named(broken: list[str]) -> None:
    assert outcome(broken=broken).sentence() == f"The promise did not hold: {'; '.join(broken)}."
