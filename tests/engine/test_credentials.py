"""Credentials that change, and servers that take no writes: what a dial asks for, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine.driver import STRIKES, Hand, World, refusal

from connpool.adapter import Credentials
from connpool.engine.operations import Step
from connpool.engine.records import Entry
from connpool.errors import PoolMisuse, PoolTimeout, PoolUnavailable
from connpool.testing import FakeOperationalError

SECRET = "hunter2"


class Provider:
    """What `credentials=` is given: it says what the test wants, and counts."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def guarded(provider: Callable[[], Any], **options: Any) -> World:
    """Make a pool whose server asks for a password."""
    world = World(credentials=provider, **options)
    world.server.password = SECRET
    return world


def dials(world: World, count: int) -> list[Hand[None]]:
    """Hold so many dials at the same time."""
    for _ in range(count):
        world.acquire().run()
    return [world.hold(world.jobs.popleft()) for _ in range(count)]


# -- asking ------------------------------------------------------------------------------------------


def test_each_dial_asks_for_credentials_before_it_connects() -> None:
    provider = Provider({"password": SECRET})
    world = guarded(provider)
    lent = [*world.lend(1), *world.lend(1)]
    assert len(lent) == provider.asked == 2
    steps = world.hands[1].steps
    assert steps[:2] == ["credentials", "connect"]


def test_credentials_reach_the_adapter_with_what_is_left_of_the_time() -> None:
    world = guarded(Provider({"user": "app", "password": SECRET}), connect_timeout=10.0)
    (dialling,) = dials(world, 1)
    dialling.to(Step.CREDENTIALS)
    world.now += 4.0
    assert dialling.to(Step.CONNECT).args == (6.0, {"user": "app", "password": SECRET})


def test_dials_at_the_same_time_share_one_answer() -> None:
    provider = Provider({"password": SECRET})
    world = guarded(provider, max_connecting=3)
    asker, *others = dials(world, 3)
    assert asker.at(Step.CREDENTIALS)
    assert all(other.parked for other in others)
    for hand in (asker, *others):
        hand.value()
    assert provider.asked == 1
    assert len(world.server.sessions) == 3


def test_answer_is_not_kept_for_later_dials() -> None:
    provider = Provider({"password": SECRET})
    world = guarded(provider)
    first, second = dials(world, 2)
    first.value()
    (third,) = dials(world, 1) if world.jobs else [second]
    second.value()
    third.run()
    world.lend(1)
    assert provider.asked == 2


def test_error_of_the_provider_reaches_the_caller() -> None:
    error = LookupError("vault is sealed")
    world = guarded(Provider(error))
    hand = world.acquire().run()
    world.work()
    assert refusal(hand, PoolUnavailable) == (
        "cannot connect; last connect error: LookupError: vault is sealed (pool 'test')"
    )
    assert hand.error is not None
    assert hand.error.__cause__ is error
    assert world.server.connects == 0


def test_error_of_the_provider_is_no_reason_to_give_up() -> None:
    world = guarded(Provider(LookupError("vault is sealed"), {"password": SECRET}))
    world.core.ever_opened = True
    hand = world.acquire().run()
    world.work()
    assert hand.parked
    world.now = world.core.retry_at
    hand.resume()
    hand.run()
    world.work()
    assert isinstance(hand.value(), Entry)


def test_after_an_error_of_the_provider_everybody_finds_out_for_himself() -> None:
    provider = Provider(LookupError("vault is sealed"), {"password": SECRET})
    world = guarded(provider, max_connecting=3)
    world.core.ever_opened = True
    asker, second, third = dials(world, 3)
    asker.run()
    second.resume()
    assert second.at(Step.CREDENTIALS)
    third.resume()
    assert third.parked, "one of them asks"
    second.to(Step.CONNECT)
    third.resume()
    assert third.at(Step.CONNECT)
    assert provider.asked == 2


@pytest.mark.parametrize("strike", [*STRIKES, "interrupted"])
def test_asker_who_is_struck_leaves_the_question_to_the_others(strike: str) -> None:
    world = guarded(Provider({"password": SECRET}), max_connecting=2)
    asker, other = dials(world, 2)
    error = KeyboardInterrupt() if strike == "interrupted" else STRIKES[strike]()
    if isinstance(error, GeneratorExit):
        asker.close()
    else:
        asker.throw(error)
        asker.run()
    other.resume()
    assert other.at(Step.CREDENTIALS)
    other.value()
    world.settle()


@pytest.mark.parametrize("strike", STRIKES)
def test_dial_that_is_struck_while_it_waits_for_the_answer_costs_no_place(strike: str) -> None:
    world = guarded(Provider({"password": SECRET}), max_connecting=2)
    asker, other = dials(world, 2)
    error = STRIKES[strike]()
    if isinstance(error, GeneratorExit):
        other.close()
    else:
        other.throw(error)
        other.run()
    asker.value()
    world.settle()


def test_dial_that_wakes_for_no_reason_goes_on_waiting() -> None:
    world = guarded(Provider({"password": SECRET}), max_connecting=2)
    asker, other = dials(world, 2)
    for _ in range(3):
        other.resume()
        assert other.parked
    assert len(world.core.asking) == 1
    asker.value()
    other.value()


def test_provider_that_hangs_does_not_keep_later_dials_from_asking() -> None:
    world = guarded(Provider({"password": SECRET}), max_connecting=2, connect_timeout=5.0)
    world.core.ever_opened = True
    hanging, waiting = dials(world, 2)
    assert hanging.at(Step.CREDENTIALS)
    world.now += 6.0
    hand = world.acquire(30.0).run()
    world.now = world.core.retry_at
    hand.resume()
    hand.run()
    later = world.hold(world.jobs.popleft())
    assert later.at(Step.CREDENTIALS), "the dial of the first was given up"
    later.value()
    assert isinstance(world.hands[0].value(), Entry)
    waiting.run()
    hanging.run()
    world.settle()


def test_provider_that_answers_late_does_not_end_the_question_of_another() -> None:
    world = guarded(Provider({"password": SECRET}), max_connecting=2, connect_timeout=5.0)
    world.core.ever_opened = True
    hanging, _ = dials(world, 2)
    world.now += 6.0
    hand = world.acquire(30.0).run()
    world.now = world.core.retry_at
    hand.resume()
    hand.run()
    later = world.hold(world.jobs.popleft())
    asker = world.core.asker
    hanging.execute()
    assert world.core.asker is asker is not None
    later.run()
    world.settle()


@pytest.mark.parametrize("answer", [None, SECRET, ("user", SECRET), 5])
def test_answer_that_is_no_mapping_is_refused_and_never_repeated(answer: object) -> None:
    world = guarded(Provider(answer))
    hand = world.acquire().run()
    world.work()
    text = refusal(hand, PoolMisuse)
    assert text == (
        f"credentials= returned a {type(answer).__name__}, no mapping and no Credentials (pool 'test')"
    )
    assert SECRET not in text


def test_secret_is_in_no_message() -> None:
    wrong = "correct horse"
    world = guarded(Provider(Credentials({"password": wrong}, expires_in=60.0)))
    hand = world.acquire().run()
    world.work()
    text = refusal(hand, PoolUnavailable)
    assert wrong not in f"{text} {hand.error!r} {hand.error.__cause__!r} {Credentials({'password': wrong})!r}"


def test_credentials_need_an_adapter_that_connects_by_itself() -> None:
    with pytest.raises(TypeError, match="needs an adapter made of parameters or a URL"):
        World(lambda: None, credentials=dict)


# -- a refusal ---------------------------------------------------------------------------------------


def test_refused_dial_asks_once_more_and_is_served() -> None:
    provider = Provider({"password": "old"}, {"password": SECRET})
    world = guarded(provider)
    (dialling,) = dials(world, 1)
    dialling.value()
    assert dialling.steps[:4] == ["credentials", "connect", "credentials", "connect"]
    assert isinstance(world.hands[0].value(), Entry)
    assert world.core.totals.dial_failures == 0


def test_dial_that_is_refused_twice_ends_all_waiting() -> None:
    provider = Provider({"password": "old"})
    world = guarded(provider, max_connecting=1)
    world.core.ever_opened = True
    hands = [world.acquire().run() for _ in range(3)]
    world.work()
    assert provider.asked == 2
    for hand in hands:
        assert "password authentication failed" in refusal(hand, PoolUnavailable)


def test_refused_dial_fails_nobody_who_can_be_served_by_what_is_lent() -> None:
    world = guarded(Provider({"password": SECRET}, {"password": "old"}), max_size=2)
    (entry,) = world.lend()
    hand = world.acquire().run()
    world.work()
    assert hand.parked
    world.release(entry).value()
    assert hand.value() is entry


def test_other_error_is_no_reason_to_ask_again() -> None:
    provider = Provider({"password": SECRET})
    world = guarded(provider)
    (dialling,) = dials(world, 1)
    dialling.to(Step.CONNECT)
    dialling.throw(FakeOperationalError("connection refused"))
    dialling.run()
    assert provider.asked == 1
    assert "connection refused" in refusal(world.hands[0], PoolUnavailable)


# -- credentials that expire -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires_in", "max_lifetime", "life"),
    [(60.0, 1800.0, 60.0), (60.0, None, 60.0), (3600.0, 1800.0, 1800.0)],
)
def test_connection_is_replaced_when_its_credentials_expire(
    expires_in: float, max_lifetime: float | None, life: float
) -> None:
    answer = Credentials({"password": SECRET}, expires_in=expires_in)
    world = guarded(Provider(answer), max_lifetime=max_lifetime, ping_after=None)
    began = world.now
    (entry,) = world.stock()
    assert entry.expires == entry.warm_until == began + life
    world.now = entry.expires
    hand = world.acquire().run()
    world.work()
    assert hand.value() is not entry


def test_credentials_age_from_the_moment_they_were_given() -> None:
    world = guarded(Provider(Credentials({"password": SECRET}, expires_in=60.0)))
    (dialling,) = dials(world, 1)
    dialling.to(Step.CONNECT)
    given = world.now
    world.now += 9.0
    dialling.value()
    assert world.hands[0].value().expires == given + 60.0


# -- require="read-write" ----------------------------------------------------------------------------


def test_standby_is_refused_and_another_dial_made() -> None:
    world = World(require="read-write")
    world.core.ever_opened = True
    world.server.writable = False
    hand = world.acquire().run()
    world.work()
    assert hand.parked
    assert not world.server.sessions
    world.server.writable = True
    world.now = world.core.retry_at
    hand.resume()
    hand.run()
    world.work()
    assert isinstance(hand.value(), Entry)


def test_caller_is_told_that_there_is_only_a_standby() -> None:
    world = World(require="read-write")
    world.server.writable = False
    hand = world.acquire().run()
    world.work()
    assert refusal(hand, PoolUnavailable) == (
        "the server takes no writes, and require='read-write' (pool 'test')"
    )
    world.work()
    assert not world.server.sessions


def test_refused_standby_that_is_the_cause_names_the_pool_once() -> None:
    world = World(require="read-write")
    world.core.ever_opened = True
    world.server.writable = False
    hand = world.acquire(1.0).run()
    world.work()
    world.now += 1.0
    hand.resume()
    assert refusal(hand, PoolUnavailable) == (
        "no connection within 1 s: none is open; last connect error 1 s ago: PoolUnavailable: "
        "the server takes no writes, and require='read-write' (pool 'test')"
    )


def test_whoever_requires_nothing_asks_nothing() -> None:
    world = World(require=None)
    world.server.writable = False
    (dialling,) = dials(world, 1)
    dialling.value()
    assert "writable" not in dialling.steps


def test_standby_does_not_fail_who_can_be_served_by_what_is_lent() -> None:
    world = World(require="read-write", max_size=2)
    (entry,) = world.lend()
    world.server.writable = False
    hand = world.acquire(5.0).run()
    world.work()
    assert hand.parked
    world.now += 5.0
    hand.resume()
    assert "takes no writes" in refusal(hand, PoolTimeout)
    world.release(entry).value()


def test_question_is_asked_within_what_is_left_of_the_dials_time() -> None:
    world = World(require="read-write", connect_timeout=10.0)
    (dialling,) = dials(world, 1)
    dialling.to(Step.ADOPT)
    world.now += 3.0
    assert dialling.to(Step.WRITABLE).args[1] == 7.0
    dialling.throw(FakeOperationalError("no answer"))
    dialling.run()
    world.work()
    assert not world.server.sessions
