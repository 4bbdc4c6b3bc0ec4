"""The proofs notice mistakes: what they are worth.

Each mistake is made in the model, or in the real code, and must be noticed.  Four of them are the ways in
which a pool without a lock on its warm path goes wrong: the releaser does not look at the waiters a second
time, the waiter does not look at idle a second time, a timeout is settled without the lock, and an
eviction speaks through `check_at`, which the holder overwrites.
"""

import sys
from collections.abc import Callable
from typing import get_args

import pytest
from engine import schedules
from engine.explorer import Explorer, Violation
from engine.model import Model, Mutation
from engine.model import Violation as Impossible
from engine.mutations import MISTAKES, made
from engine.test_explorer import (
    ONE,
    leave_and_hand_over,
    release_and_acquire,
    release_evict_take,
)

MODELS = [
    (2, 1, 2, None),
    (2, 1, 2, "evict"),
    (2, 1, 2, "close"),
    (3, 1, 1, None),
    (3, 1, 1, "evict"),
    (3, 1, 1, "close"),
]


@pytest.mark.parametrize("mistake", get_args(Mutation))
def test_the_model_notices_the_mistake(mistake: Mutation) -> None:
    with pytest.raises(Impossible):
        for threads, places, cycles, operator in MODELS:
            Model(threads, places, cycles, operator, mutation=mistake).explore()


def once(scenario: Callable[..., object], *jobs: int, before: tuple[int, ...] = ()) -> Callable[[], None]:
    def explore() -> None:
        with Explorer(scenario, **ONE) as explorer:
            if before:
                explorer.once(*jobs, before=list(before))
            else:
                explorer.once(*jobs)

    return explore


@pytest.mark.bytecode
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="bytecodes are traced on CPython 3.11")
@pytest.mark.parametrize(
    ("mistake", "explore"),
    [
        ("skip the second look at the waiters", once(release_and_acquire, 0, 1)),
        ("look at the waiters first, publish second", once(release_and_acquire, 0, 1)),
        ("skip the second look at idle", once(release_and_acquire, 1, 0)),
        ("settle without the lock", once(leave_and_hand_over, 0, 1)),
        ("evict through check_at", once(release_evict_take, 0, 1)),
        ("wake nobody", once(release_and_acquire, 0, 1)),
    ],
)
def test_the_explorer_notices_the_mistake_in_the_real_code(mistake: str, explore: Callable[[], None]) -> None:
    explore()  # without it, nothing is wrong
    with made(mistake), pytest.raises((Violation, IndexError)):
        explore()


@pytest.mark.parametrize("mistake", ["skip the second look at idle", "wake nobody", "ignore tickets"])
def test_the_simulator_notices_the_mistake_in_the_real_code(mistake: str) -> None:
    with made(mistake), pytest.raises(AssertionError):
        for seed in range(400):
            schedules.run(seed)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_code_that_a_mistake_changes_is_still_there(mistake: str) -> None:
    with made(mistake):
        pass
