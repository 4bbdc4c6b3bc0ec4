"""The model of the warm path holds in every state that it can reach.

See `model` for what it covers and what it leaves out; `test_mutations` shows that it notices each of a
dozen mistakes.  The numbers of states are exact, so that the model cannot shrink unnoticed: whoever
changes a step of it corrects them, and says why they went down if they did.
"""

from typing import Literal

import pytest
from engine.model import Model

ALONE, EVICT, CLOSE = None, "evict", "close"


@pytest.mark.parametrize(
    ("threads", "places", "cycles", "operator", "states"),
    [
        (2, 1, 2, ALONE, 3_941),
        (2, 1, 2, EVICT, 39_500),
        (2, 1, 2, CLOSE, 13_879),
        (2, 2, 1, EVICT, 41_834),
        (2, 2, 1, CLOSE, 13_633),
        (3, 1, 1, ALONE, 7_557),
        (3, 1, 1, EVICT, 95_112),
        (3, 1, 1, CLOSE, 28_454),
        (3, 2, 1, ALONE, 39_729),
        (3, 2, 1, CLOSE, 146_636),
    ],
)
def test_every_interleaving_of_the_shared_accesses_keeps_the_invariants(
    threads: int, places: int, cycles: int, operator: Literal["evict", "close"] | None, states: int
) -> None:
    """Proves: no lost wake-up, one owner per entry, one outcome per waiter, nobody stuck, no place lost,
    tickets in order, nothing lent after `evict` or `close` returned that it meant; with timeouts at any
    moment, from every number of open connections."""
    assert Model(threads, places, cycles, operator).explore().states == states


def test_three_threads_two_connections_and_an_eviction_keep_the_invariants() -> None:
    """The largest: it begins with both connections open; the smaller ones cover dials that are doomed."""
    assert Model(3, 2, 1, "evict", opened=2).explore().states == 445_506


def test_without_timeouts_everybody_is_served() -> None:
    """A timeout could hide that somebody is never served: here nobody may leave."""
    for operator in (ALONE, EVICT, CLOSE):
        model = Model(3, 1, 1, operator, timeouts=False).explore()
        assert model.rests, "it must come to rest"
