"""Histograms cut at fixed bounds: nothing is estimated."""

import random
from math import inf

import pytest

from connpool import Histogram
from connpool.metrics import BOUNDS, cumulative


def histogram(durations):
    made = Histogram()
    made.fold(durations)
    return made


def test_durations_below_a_bound_are_counted_exactly():
    rng = random.Random(7)
    durations = [10 ** rng.uniform(-7, 3) for _ in range(5_000)]
    counts = dict(cumulative(histogram(durations)))
    assert counts == {bound: sum(d < bound for d in durations) for bound in (*BOUNDS, inf)}


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_bound_is_where_a_bucket_ends(bound):
    below, above = (histogram([bound * factor]) for factor in (0.999999, 1.000001))
    assert dict(cumulative(below))[bound] == 1
    assert dict(cumulative(above))[bound] == 0


def test_without_durations_all_counts_are_zero():
    assert {counted for _, counted in cumulative(Histogram())} == {0}
