"""Exceptions that strike anywhere, as Ctrl-C does: no answer is another's, and no session is lost."""

import random
import signal
import sys
from types import FrameType
from typing import Any

import pytest

from facade.sites import Site, SiteOf
from facade.test_transactions import SHOWN, autocommit, one, pooled

pytestmark = [pytest.mark.stress, pytest.mark.server]

STATEMENTS = 300


class Strike(BaseException):
    pass


@pytest.fixture
def site(request: pytest.FixtureRequest, site_of: SiteOf) -> Site:
    return site_of(request.param)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("site", SHOWN, indirect=True)
@pytest.mark.filterwarnings(
    "ignore:.*lost without being given back:ResourceWarning",
    "ignore:.*was deleted while still open:ResourceWarning",  # a dial that was struck
    "ignore::pytest.PytestUnraisableExceptionWarning",  # strikes in the drivers' own finalizers
)
def test_strikes_confuse_no_answer_and_lose_no_session(site: Site) -> None:
    module = pooled(site, max_size=2)
    chance = random.Random(7)
    struck = answered = 0

    def strike(number: int, frame: FrameType | None) -> None:
        while frame is not None:  # only within the call that is under test
            if frame.f_code is ask.__code__:
                raise Strike
            frame = frame.f_back

    def ask(conn: Any, number: int) -> Any:
        return one(conn, f"select {number}")

    single, several = (module.connect(**site.arguments) for _ in range(2))
    autocommit(single)
    before = signal.signal(signal.SIGALRM, strike)
    try:
        for number in range(STATEMENTS):
            conn = single if number % 2 else several
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00001, 0.0006))
            try:
                assert ask(conn, number) == number
                answered += 1
            except Strike:
                struck += 1
            except module.Error:
                pass  # what the driver makes of it
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if conn is several:
                try:
                    conn.rollback()
                except module.Error:
                    conn.rollback()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert struck > 0
    assert answered > 0
    for conn in (single, several):
        assert one(conn, "select 5") == 5
        conn.close()
    stats = module.pools[0].stats()
    assert (stats.in_use, stats.acquires) == (0, stats.releases)
    assert sys.exc_info() == (None, None, None)
