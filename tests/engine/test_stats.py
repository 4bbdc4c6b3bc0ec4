"""Figures: what a histogram may be wrong about, and by how much."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connpool.stats import Histogram, Reason, Totals

NOTHING = 2e-9  # what no time at all may be shown as
PROMISED = 0.032  # the error that the class promises
ALLOWED = 0.05  # the error that any histogram of ours may have

# Clocks count nanoseconds: nothing lies between no time at all and one of them.
DURATIONS = st.one_of(st.just(0.0), st.floats(1e-9, 1e10))


def histogram(durations: list[float]) -> Histogram:
    figures = Histogram()
    figures.fold(durations)
    return figures


def exact(durations: list[float], percent: float) -> float:
    """Return the smallest duration that so many percent do not exceed."""
    return sorted(durations)[max(1, ceil(len(durations) * percent / 100)) - 1]


# -- the error ---------------------------------------------------------------------------------------


@given(st.lists(DURATIONS, min_size=1, max_size=200), st.floats(0, 100))
@example([0.0], 50)
@example([1.0], 50)
@example([0.5, 0.5 - 2**-54], 50)
@example([2.0**step for step in range(-29, 33)], 99)
def test_percentile_is_wrong_by_no_more_than_promised(durations: list[float], percent: float) -> None:
    shown, true = histogram(durations).percentile(percent), exact(durations, percent)
    assert shown == pytest.approx(true, rel=PROMISED, abs=NOTHING)
    assert PROMISED <= ALLOWED


@given(DURATIONS)
def test_one_duration_is_every_percentile(duration: float) -> None:
    figures = histogram([duration])
    assert (
        figures.percentile(1) == figures.percentile(50) == pytest.approx(duration, rel=PROMISED, abs=NOTHING)
    )
    assert figures.percentile(100) == figures.max == duration


@given(st.lists(DURATIONS, min_size=1), st.floats(0, 100), st.floats(0, 100))
def test_percentiles_grow(durations: list[float], one: float, other: float) -> None:
    figures = histogram(durations)
    assert figures.percentile(min(one, other)) <= figures.percentile(max(one, other)) <= figures.max


# -- edges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_percentile_of_nothing_is_nothing(percent: float) -> None:
    assert Histogram().percentile(percent) == 0.0


def test_zeroth_percentile_is_the_shortest() -> None:
    assert histogram([0.001, 1.0, 100.0]).percentile(0) == pytest.approx(0.001, rel=PROMISED)


def test_hundredth_percentile_is_the_longest_exactly() -> None:
    assert histogram([0.001, 1.0, 99.7]).percentile(100) == 99.7


def test_percentile_beyond_all_is_the_longest() -> None:
    assert histogram([0.001, 99.7]).percentile(200) == 99.7


@pytest.mark.parametrize(
    ("percent", "expected"), [(24.9, 1.0), (25, 1.0), (25.1, 2.0), (50, 2.0), (75, 3.0), (75.1, 4.0)]
)
def test_rank_is_rounded_up(percent: float, expected: float) -> None:
    assert histogram([1.0, 2.0, 3.0, 4.0]).percentile(percent) == pytest.approx(expected, rel=PROMISED)


@pytest.mark.parametrize("durations", [[0.0], [0.0, 0.0, 0.0], [0.0] * 5 + [1e-12]])
def test_no_time_at_all_is_counted(durations: list[float]) -> None:
    figures = histogram(durations)
    assert figures.count == len(durations)
    assert figures.percentile(50) <= 1e-9


def test_longest_duration_is_exact_and_bounds_every_percentile() -> None:
    figures = histogram([1.0])
    assert figures.max == 1.0
    assert figures.percentile(99.9) <= 1.0


# -- folding -----------------------------------------------------------------------------------------


@given(st.lists(st.lists(DURATIONS)))
@example([[]])
def test_folding_in_batches_is_counting_one_by_one(batches: list[list[float]]) -> None:
    folded, counted = Histogram(), Histogram()
    for batch in batches:
        folded.fold(batch)
        for duration in batch:
            counted.fold([duration])
    durations = [duration for batch in batches for duration in batch]
    assert folded._counts == counted._counts
    assert sum(folded._counts.values()) == folded.count == counted.count == len(durations)
    assert folded.total == pytest.approx(sum(durations))
    assert folded.max == max(durations, default=0.0)


@given(st.lists(DURATIONS, min_size=2), st.randoms())
def test_order_does_not_matter(durations: list[float], random: object) -> None:
    shuffled = durations.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis gives a Random
    assert histogram(durations)._counts == histogram(shuffled)._counts


@given(st.lists(DURATIONS))
def test_folding_leaves_the_list_as_it_was(durations: list[float]) -> None:
    before = durations.copy()
    histogram(durations)
    assert durations == before


def test_memory_is_bounded_however_much_is_counted() -> None:
    figures = Histogram()
    duration = 1e-9
    while duration < 3.2e9:  # a century
        figures.fold([duration])
        duration *= 1.01
    assert len(figures._counts) <= 1000


# -- copies and faces --------------------------------------------------------------------------------


def test_copy_is_independent() -> None:
    figures = histogram([1.0])
    twin = figures.copy()
    figures.fold([5.0])
    assert (twin.count, twin.total, twin.max) == (1, 1.0, 1.0)
    assert sum(twin._counts.values()) == 1
    twin.fold([9.0])
    assert figures.max == 5.0


def test_face_shows_the_figures_that_matter() -> None:
    assert repr(histogram([1.0] * 99 + [10.0])) == "<Histogram of 100: p50=1, p90=1, p99=1, max=10 s>"
    assert repr(Histogram()) == "<Histogram of 0: p50=0, p90=0, p99=0, max=0 s>"


def test_totals_know_every_reason_from_the_beginning() -> None:
    assert Totals().discards == dict.fromkeys(Reason, 0)
    assert Totals().discards is not Totals().discards
