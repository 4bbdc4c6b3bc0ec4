"""When something is due: pure functions, so every test is a table or a property."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connpool.engine import upkeep

NOW = 1000.0
CHANCES = st.floats(0.0, 1.0, exclude_max=True)
FAILURES = st.integers(1, 10**9)


# -- lifetime ----------------------------------------------------------------------------------------


def test_unlimited_lifetime_never_ends() -> None:
    assert upkeep.expiry(NOW, None, 0.5) == inf


@given(st.floats(0.001, 1e9), CHANCES)
def test_lifetime_is_never_longer_and_at_most_a_tenth_shorter_than_asked_for(
    lifetime: float, chance: float
) -> None:
    assert 0.9 * lifetime - 1e-6 <= upkeep.expiry(0.0, lifetime, chance) <= lifetime


def test_connections_opened_together_do_not_expire_together() -> None:
    assert len({upkeep.expiry(NOW, 1800.0, chance / 10) for chance in range(10)}) == 10


# -- the pause after a failed dial -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "longest"),
    [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (6, 1.0), (1000, 1.0)],
)
def test_pause_doubles_up_to_a_second_while_somebody_waits(failures: int, longest: float) -> None:
    assert upkeep.pause(failures, waiting=True, chance=0.0) == pytest.approx(longest / 2)
    assert upkeep.pause(failures, waiting=True, chance=0.999999) == pytest.approx(longest, rel=1e-5)


@pytest.mark.parametrize(("failures", "longest"), [(5, 1.6), (6, 3.2), (7, 5.0), (1000, 5.0)])
def test_pause_grows_to_five_seconds_while_nobody_waits(failures: int, longest: float) -> None:
    assert upkeep.pause(failures, waiting=False, chance=0.0) == pytest.approx(longest / 2)


@given(FAILURES, st.booleans(), CHANCES)
def test_pause_is_never_nothing_and_never_beyond_its_cap(failures: int, waiting: bool, chance: float) -> None:
    pause = upkeep.pause(failures, waiting=waiting, chance=chance)
    assert upkeep.FIRST_PAUSE / 2 <= pause <= (upkeep.PAUSE_CAP if waiting else upkeep.IDLE_PAUSE_CAP)


@given(FAILURES, st.booleans())
def test_processes_that_lost_the_same_server_do_not_return_in_step(failures: int, waiting: bool) -> None:
    pauses = {upkeep.pause(failures, waiting=waiting, chance=chance / 10) for chance in range(10)}
    assert len(pauses) == 10


# -- the pause after an abandoned dial ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("abandoned", "pause"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 60), (8, 60), (10**9, 60)]
)
def test_each_abandoned_dial_doubles_the_pause_up_to_a_minute(abandoned: int, pause: float) -> None:
    assert upkeep.abandoned_pause(abandoned) == pause


# -- the limits of steps -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "bounded", "until"),
    [
        (10.0, False, NOW + 10.0),
        (10.0, True, NOW + 10.0 + upkeep.DIAL_GRACE),
        (None, False, inf),
        (None, True, inf),
    ],
)
def test_dial_is_given_up_when_its_time_is_over_and_its_adapter_had_its_chance(
    timeout: float | None, bounded: bool, until: float
) -> None:
    assert upkeep.dial_until(NOW, timeout, bounded=bounded) == until


@pytest.mark.parametrize(
    ("left", "timeout", "limit"),
    [
        (3.0, 5.0, 3.0),
        (7.0, 5.0, 5.0),
        (0.0, 5.0, 0.0),
        (None, 5.0, 5.0),
        (3.0, None, 3.0),
        (None, None, None),
        (0.0, None, 0.0),
    ],
)
def test_step_has_its_own_limit_and_no_more_than_the_deadline_leaves(
    left: float | None, timeout: float | None, limit: float | None
) -> None:
    assert upkeep.step_limit(left, timeout) == limit


# -- the next look -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe_after", "ping_after", "max_lifetime", "first"),
    [
        (0.5, 30.0, None, 0.5),
        (30.0, 0.5, None, 0.5),
        (0, 0, None, 0),
        (0, None, None, 0),
        (None, 30.0, None, 30.0),
        (0.5, None, None, 0.5),
        (None, None, None, upkeep.LOOK_ANYWAY),
        (300.0, 300.0, None, upkeep.LOOK_ANYWAY),
        (None, None, 20.0, 1.0),
        (0.5, None, 20.0, 0.5),
        (0.5, 30.0, 2.0, 0.1),
    ],
)
def test_entry_is_looked_at_when_the_soonest_look_is_due_or_its_age_matters(
    probe_after: float | None, ping_after: float | None, max_lifetime: float | None, first: float
) -> None:
    assert upkeep.first_look(probe_after, ping_after, max_lifetime) == pytest.approx(first)
