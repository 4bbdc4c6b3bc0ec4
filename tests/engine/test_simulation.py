"""The simulator in the default run: thousands of schedules, and proof that its checks can fail.

Set CONNPOOL_SEED, CONNPOOL_SCHEDULES and CONNPOOL_OUTAGES for others, or for more.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from engine import outages
from engine.schedules import Report, Schedule, run, run_many

from connpool.adapter import Verdict
from connpool.engine import upkeep
from connpool.engine.core import Core, locked
from connpool.engine.flows import Flows
from connpool.engine.operations import Call, Flow, Park, Step
from connpool.engine.records import Entry, Ref, Refusal, Slot, Waiter
from connpool.stats import Reason
from connpool.testing import FakeConnection, FakeServer, Simulation

SEED = int(os.environ.get("CONNPOOL_SEED", "1"))
SCHEDULES = int(os.environ.get("CONNPOOL_SCHEDULES", "10000"))
OUTAGES = int(os.environ.get("CONNPOOL_OUTAGES", "1000"))
PORTION = 250  # schedules that a process is given at a time

ONCE_FAILED = (92, 614, 4754, 5664, 507270)
"""Schedules that failed in earlier versions of the engine."""


def processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Provide one process for each processor; spawned, because forking after threads were is not safe."""
    with ProcessPoolExecutor(processors(), multiprocessing.get_context("spawn")) as executor:
        yield executor


def describe(failures: dict[int, str]) -> str:
    """Say which schedules failed, how to replay them, and what went wrong in the first."""
    seeds = sorted(failures)
    return (
        f"{len(seeds)} of {SCHEDULES} schedules from CONNPOOL_SEED={SEED} failed: {seeds[:20]}; replay: "
        f"PYTHONPATH=src{os.pathsep}tests python -m engine.schedules {seeds[0]}\n\n{failures[seeds[0]]}"
    )


# -- the schedules -----------------------------------------------------------------------------------


@pytest.mark.timeout(max(120, SCHEDULES // 20))
def test_every_schedule_ends_well(
    processes: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> None:
    last = SEED + SCHEDULES
    portions = [range(first, min(first + PORTION, last)) for first in range(SEED, last, PORTION)]
    whole = Report()
    for report in processes.map(run_many, portions):
        whole.counts += report.counts
        whole.failures |= report.failures
    record_property("schedules", f"{SCHEDULES} from CONNPOOL_SEED={SEED}: {dict(whole.counts)}")
    if whole.failures:
        pytest.fail(describe(whole.failures), pytrace=False)
    if SCHEDULES >= 1000:  # a simulation in which nothing happens would end well, too
        assert whole.counts["served"] > 5 * SCHEDULES
        for event in ("PoolTimeout", "PoolUnavailable", "PoolOverloaded", "Cancelled", "lost"):
            assert whole.counts[event] > SCHEDULES / 100, f"{event} is hardly ever simulated"
        for event in ("warm", "resets", "rollbacks", "hook failed", "HookError", "reported"):
            assert whole.counts[event] > SCHEDULES / 100, f"{event} is hardly ever simulated"
        unseen = (Reason.DETACHED, Reason.INHERITED)
        for event in (
            *("cut", "suspended", "told", "undecided"),
            *(f"discarded: {reason}" for reason in Reason if reason not in unseen),
        ):
            assert whole.counts[event] > SCHEDULES / 1000, f"{event} is hardly ever simulated"


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_schedule_that_failed_once_ends_well(seed: int) -> None:
    run(seed)


@pytest.mark.parametrize("seed", [*ONCE_FAILED, *range(20)])
def test_equal_seeds_give_equal_schedules(seed: int) -> None:
    assert run(seed) == run(seed)


def test_equal_seeds_give_equal_schedules_in_every_process(processes: ProcessPoolExecutor) -> None:
    """A set in the engine would be iterated by address, and by the hashes of its process."""
    here = run_many(range(50))
    there = processes.submit(run_many, range(50)).result()
    assert here == there


def test_failure_names_its_seed_and_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(self: Schedule) -> None:
        raise AssertionError("strange")

    monkeypatch.setattr(Schedule, "close", strange)
    report = run_many([7, 8])
    assert list(report.failures) == [7, 8]
    text = describe(report.failures)
    assert "failed: [7, 8]; replay: PYTHONPATH=src" in text
    assert "python -m engine.schedules 7\n" in text
    assert "AssertionError: strange\nschedule 7, after" in text


# -- outages -----------------------------------------------------------------------------------------


@pytest.mark.timeout(max(120, OUTAGES // 5))
def test_every_outage_of_a_day_is_over_within_the_longest_pause(
    processes: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> None:
    last = SEED + OUTAGES
    portions = [range(first, min(first + 25, last)) for first in range(SEED, last, 25)]
    whole = outages.Report()
    for report in processes.map(outages.run_many, portions):
        whole.counts += report.counts
        whole.longest = {
            kind: max(whole.longest.get(kind, 0), report.longest.get(kind, 0)) for kind in outages.KINDS
        }
        whole.failures |= report.failures
    text = f"{OUTAGES} days from CONNPOOL_SEED={SEED}: {dict(whole.counts)}, ms at most: {whole.longest}"
    record_property("schedules", text)
    if whole.failures:
        seeds = sorted(whole.failures)
        text = f"outages failed: {seeds[:20]}; replay: python -m engine.outages {seeds[0]}"
        pytest.fail(f"{text}\n\n{whole.failures[seeds[0]]}", pytrace=False)
    if OUTAGES >= 100:
        for kind in outages.KINDS:
            assert whole.counts[f"outages: {kind}"] > OUTAGES / 20


def pause_is_not_capped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upkeep, "pause", lambda failures, waiting, chance: 0.1 * 2.0 ** min(failures - 1, 20))


def credentials_are_kept(patch: pytest.MonkeyPatch) -> None:
    original = outages.Outage.credentials
    patch.setattr(outages.Outage, "credentials", lambda outage: _kept(outage, original))


def _kept(outage: outages.Outage, original: Callable[[outages.Outage], object]) -> object:
    return vars(outage).setdefault("kept", original(outage))


def every_seat_dials_while_dials_fail(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upkeep, "pause", lambda failures, waiting, chance: 0.0001)


@pytest.mark.parametrize(
    "breakage",
    [pause_is_not_capped, credentials_are_kept, every_seat_dials_while_dials_fail],
    ids=lambda breakage: breakage.__name__,
)
def test_pool_that_does_not_recover_is_noticed(
    breakage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breakage(monkeypatch)
    assert outages.run_many(range(40)).failures


# -- each check can fail -----------------------------------------------------------------------------


class Still:
    """A simulation at rest, to be spoilt."""

    def __init__(self, *, connections: int = 1, **options: Any) -> None:
        self.server = FakeServer()
        options = {"max_size": 3, "max_lifetime": None, "idle_timeout": None, **options}
        self.simulation = Simulation(1, self.server, **options)
        self.core = self.simulation.core
        tasks = [self.simulation.acquire(5.0) for _ in range(connections)]
        self.simulation.run(10.0)
        for task in tasks:
            assert task.result is not None
            self.simulation.release(task.result)
            task.result = None
        self.simulation.run(20.0)
        self.simulation.check()
        self.simulation.check_at_rest()

    def waiter(self, ticket: int) -> Waiter:
        waiter = Waiter(lambda: None)
        waiter.ticket = ticket
        return waiter


def queue_is_shuffled(still: Still) -> None:
    still.core.idle.clear()
    still.core.waiters.extend([still.waiter(2), still.waiter(1)])


def waiter_is_forgotten(still: Still) -> None:
    still.core.waiters.append(still.waiter(1))


def closed_pool_lets_wait(still: Still) -> None:
    still.core.shut()
    still.core.waiters.append(still.waiter(1))


def dial_has_no_place(still: Still) -> None:
    still.core.opening[Slot()] = None


def entry_is_idle_twice(still: Still) -> None:
    still.core.idle.append(still.core.idle[0])


def entry_is_idle_and_lent(still: Still) -> None:
    still.simulation.lent.add(still.core.idle[0])


def idle_entry_has_no_place(still: Still) -> None:
    del still.core.slots[still.core.idle[0].slot]


def lost_entry_goes_unreported(still: Still) -> None:
    slot = still.core.idle[0].slot
    slot.entry_ref = Ref(still.core.idle[0])
    still.core.idle.clear()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (queue_is_shuffled, "the queue is out of order"),
        (waiter_is_forgotten, "an idle entry and a live waiter coexist"),
        (closed_pool_lets_wait, "a closed pool lets somebody wait"),
        (dial_has_no_place, "a dial without a place"),
        (entry_is_idle_twice, "an entry is idle twice"),
        (entry_is_idle_and_lent, "an entry is idle and lent"),
        (idle_entry_has_no_place, "an idle entry without a place"),
        (lost_entry_goes_unreported, "a lost entry went unreported"),
    ],
)
def test_check_after_each_step_notices(spoil: Callable[[Still], None], complaint: str) -> None:
    still = Still()
    spoil(still)
    with pytest.raises(AssertionError, match=complaint):
        still.simulation.check()


def somebody_is_stuck(still: Still) -> None:
    (entry,) = still.core.idle
    still.simulation.spawn(still.simulation.flows.begin(entry.slot, entry.conn), "stuck")


def somebody_waits_for_ever(still: Still) -> None:
    still.core.waiters.append(still.waiter(1))


def nobody_closes(still: Still) -> None:
    still.core.retire(still.core.idle.pop(), Reason.DEAD, still.simulation.now)


def place_is_lost(still: Still) -> None:
    still.core.slots[Slot()] = None


def pool_is_too_large(still: Still) -> None:
    still.core.max_size = 0


def session_is_unknown(still: Still) -> None:
    still.simulation.strangers = [still.server.accept()]  # type: ignore[attr-defined]


def opening_is_counted_twice(still: Still) -> None:
    still.core.totals.opened += 1


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (somebody_is_stuck, r"stuck: \['stuck'\]"),
        (somebody_waits_for_ever, "somebody waits for ever"),
        (nobody_closes, "a discarded connection was never closed"),
        (place_is_lost, "a place was lost"),
        (pool_is_too_large, "too many connections"),
        (session_is_unknown, "the server has sessions that the pool does not know"),
        (opening_is_counted_twice, "figures do not add up"),
    ],
)
def test_check_at_rest_notices(spoil: Callable[[Still], None], complaint: str) -> None:
    still = Still()
    spoil(still)
    with pytest.raises(AssertionError, match=complaint):
        still.simulation.check_at_rest()


def test_entry_that_is_lent_twice_is_noticed() -> None:
    still = Still()
    task = still.simulation.acquire(5.0)
    still.simulation.run(30.0)
    assert task.result is not None
    flows = still.simulation.flows
    flow = flows.acquire(task.result, 5.0, 35.0, flows.waiter(None))
    task.result.check_at = float("inf")
    again = still.simulation.spawn(flow, "again")
    again.callbacks.extend(task.callbacks)
    with pytest.raises(AssertionError, match="an entry has two owners"):
        still.simulation.run(40.0)


def test_closed_connection_that_is_lent_is_noticed() -> None:
    still = Still(probe_after=None)
    still.core.idle[0].conn.close()
    still.simulation.acquire(5.0)
    with pytest.raises(AssertionError, match="a closed connection was lent"):
        still.simulation.run(30.0)


# -- broken engines are noticed ----------------------------------------------------------------------

ENOUGH = 1000  # schedules within which each of these breakages shows


def lost_entries_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "_reclaim", lambda core: core.lost.clear())


def release_does_not_look_at_the_queue(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "give", locked(lambda core, entry: core.idle.append(entry)))


def waiter_does_not_look_at_idle(patch: pytest.MonkeyPatch) -> None:
    match = Core._match

    @locked
    def queue(core: Core[Any], waiter: Waiter) -> object:
        patch.setattr(Core, "_match", lambda core: None)
        try:
            return original(core, waiter)
        finally:
            patch.setattr(Core, "_match", match)

    original = Core.queue
    patch.setattr(Core, "queue", queue)


def returning_caller_goes_to_the_end(patch: pytest.MonkeyPatch) -> None:
    @locked
    def queue(core: Core[Any], waiter: Waiter) -> object:
        if core.closed:
            return Refusal.CLOSED
        if waiter.ticket is None:
            waiter.ticket = next(core._tickets)
        core.waiters.append(waiter)
        core._match()
        return waiter.outcome

    patch.setattr(Core, "queue", queue)


def failed_dial_keeps_its_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "_discard_dial", lambda core, slot: core.opening.pop(slot, None))


def retired_connection_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def close_slot(core: Core[Any], slot: Slot, reason: Reason) -> None:
        core.closing[slot] = None
        slot.entry_ref = None

    patch.setattr(Core, "_close_slot", close_slot)


def discarded_connections_are_left_to_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "next_to_close", lambda core, now: None)


def resize_takes_nothing_back(patch: pytest.MonkeyPatch) -> None:
    @locked
    def resize(core: Core[Any], max_size: int, min_idle: int) -> None:
        core.max_size, core.min_idle = max_size, min_idle

    patch.setattr(Core, "resize", resize)


def nobody_dials_again(patch: pytest.MonkeyPatch) -> None:
    """Nobody is told when the pause after a failed dial is over."""
    due = Core.due

    def never_due(core: Core[Any], now: float) -> float | None:
        instant = due(core, now)
        return None if instant == core.retry_at else instant

    patch.setattr(Core, "due", never_due)


def transactions_are_not_rolled_back(patch: pytest.MonkeyPatch) -> None:
    original = Flows._tidy

    def tidy(
        flows: Flows[Any], entry: Entry[Any], adapter: Any, verdict: Verdict, until: float | None
    ) -> Flow[Reason | None]:
        if verdict in (Verdict.DIRTY, Verdict.FAILED):
            verdict = Verdict.CLEAN
        return (yield from original(flows, entry, adapter, verdict, until))

    patch.setattr(Flows, "_tidy", tidy)


def settings_are_restored_before_the_rollback(patch: pytest.MonkeyPatch) -> None:
    original = Flows._tidy

    def tidy(
        flows: Flows[Any], entry: Entry[Any], adapter: Any, verdict: Verdict, until: float | None
    ) -> Flow[Reason | None]:
        if entry.conn.mode != entry.baseline and flows._steps is not None:
            try:
                yield Call(Step.RESTORE, adapter.restore, entry.conn, entry.baseline, flows._left(until))
            except Exception:
                return Reason.RESET_FAILED
        return (yield from original(flows, entry, adapter, verdict, until))

    patch.setattr(Flows, "_tidy", tidy)


def settings_are_not_restored(patch: pytest.MonkeyPatch) -> None:
    original = Flows._tidy

    def tidy(
        flows: Flows[Any], entry: Entry[Any], adapter: Any, verdict: Verdict, until: float | None
    ) -> Flow[Reason | None]:
        if verdict is Verdict.ALTERED:
            verdict = Verdict.CLEAN
        return (yield from original(flows, entry, adapter, verdict, until))

    patch.setattr(Flows, "_tidy", tidy)


def deferred_answers_are_not_read_before_lending(patch: pytest.MonkeyPatch) -> None:
    def collect(
        flows: Flows[Any], entry: Entry[Any], adapter: Any, deadline: float | None
    ) -> Flow[Reason | None]:
        entry.pending = None
        yield from ()

    patch.setattr(Flows, "_collect", collect)


def struck_hook_keeps_its_entry(patch: pytest.MonkeyPatch) -> None:
    kept: list[Entry[Any]] = []
    hook, retire = Flows._hook, Core.retire

    def struck(flows: Flows[Any], entry: Entry[Any], *rest: Any) -> Flow[Exception | None]:
        try:
            return (yield from hook(flows, entry, *rest))
        except BaseException:
            kept.append(entry)
            raise

    def retire_others(core: Core[Any], entry: Entry[Any], reason: Reason, now: float) -> None:
        if entry not in kept:
            retire(core, entry, reason, now)

    patch.setattr(Flows, "_hook", struck)
    patch.setattr(Core, "retire", retire_others)


def on_acquire_is_skipped_on_the_warm_path(patch: pytest.MonkeyPatch) -> None:
    original = Flows._rest

    def rest(flows: Flows[Any], entry: Entry[Any], now: float) -> None:
        original(flows, entry, now)
        if entry.pending is None:
            entry.check_at = min(now + flows._quiet(entry), entry.warm_until)

    patch.setattr(Flows, "_rest", rest)


def limits_are_not_lifted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "unlimit", lambda core, slot: slot not in core.limited)


def openings_are_counted_twice(patch: pytest.MonkeyPatch) -> None:
    original = Core.opened

    def opened(core: Core[Any], entry: Entry[Any], seconds: float) -> None:
        core.totals.opened += 1
        original(core, entry, seconds)

    patch.setattr(Core, "opened", opened)


def deadlines_are_slept_through(patch: pytest.MonkeyPatch) -> None:
    original = Flows._queued

    def queued(flows: Flows[Any], waiter: Waiter, *rest: Any) -> Flow[Entry[Any]]:
        flow, value = original(flows, waiter, *rest), None
        while True:
            try:
                operation = flow.send(value)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            if isinstance(operation, Park) and operation.deadline is not None:
                operation = Park(operation.waiter, operation.deadline + 2.0)
            value = yield operation

    patch.setattr(Flows, "_queued", queued)


def connections_are_not_closed(patch: pytest.MonkeyPatch) -> None:
    kept: list[FakeConnection] = []

    def close(flows: Flows[Any], slot: Slot) -> Flow[None]:
        kept.append(slot.conn)  # type: ignore[arg-type]
        flows.core.freed(slot)
        yield from ()

    patch.setattr(Flows, "_close", close)


def struck_acquire_keeps_what_it_was_handed(patch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []

    def give_up(flows: Flows[Any], waiter: Waiter, entry: Entry[Any] | None = None) -> None:
        kept.append((flows.core.leave(waiter), entry))

    patch.setattr(Flows, "give_up", give_up)


def who_only_waited_gets_anything(patch: pytest.MonkeyPatch) -> None:
    def served(flows: Flows[Any], waiter: Waiter) -> Entry[Any] | None:
        entry = waiter.outcome
        if not isinstance(entry, Entry):
            return None
        waiter.outcome = Refusal.LEFT
        return flows._lend(entry, waiter, flows._clock())

    patch.setattr(Flows, "served", served)


def resuming_leaves_the_gate_shut(patch: pytest.MonkeyPatch) -> None:
    @locked
    def resume(core: Core[Any]) -> None:
        core.suspended = False

    patch.setattr(Core, "resume", resume)


def suspended_pool_hands_over(patch: pytest.MonkeyPatch) -> None:
    @locked
    def suspend(core: Core[Any]) -> None:
        core.suspended = True
        core.waiters.appendleft(Waiter(lambda: None))

    patch.setattr(Core, "suspend", suspend)


def answer_with_the_credentials_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "answered", lambda core, slot, outcome: core.asking.clear())


def entry_is_given_twice(patch: pytest.MonkeyPatch) -> None:
    original = Core.give

    def give(core: Core[Any], entry: Entry[Any]) -> None:
        original(core, entry)
        original(core, entry)

    patch.setattr(Core, "give", give)


def idle_entry_is_handed_over_and_kept(patch: pytest.MonkeyPatch) -> None:
    original = Core._pop_idle

    def pop_idle(core: Core[Any]) -> Entry[Any] | None:
        entry = original(core)
        if entry is not None and len(core.slots) == core.max_size:
            core.idle.append(entry)
        return entry

    patch.setattr(Core, "_pop_idle", pop_idle)


@pytest.mark.parametrize(
    "breakage",
    [
        answer_with_the_credentials_is_forgotten,
        connections_are_not_closed,
        deadlines_are_slept_through,
        deferred_answers_are_not_read_before_lending,
        discarded_connections_are_left_to_others,
        entry_is_given_twice,
        failed_dial_keeps_its_place,
        idle_entry_is_handed_over_and_kept,
        limits_are_not_lifted,
        lost_entries_are_ignored,
        nobody_dials_again,
        on_acquire_is_skipped_on_the_warm_path,
        openings_are_counted_twice,
        release_does_not_look_at_the_queue,
        resize_takes_nothing_back,
        resuming_leaves_the_gate_shut,
        retired_connection_is_forgotten,
        returning_caller_goes_to_the_end,
        settings_are_not_restored,
        settings_are_restored_before_the_rollback,
        struck_acquire_keeps_what_it_was_handed,
        struck_hook_keeps_its_entry,
        suspended_pool_hands_over,
        transactions_are_not_rolled_back,
        who_only_waited_gets_anything,
        waiter_does_not_look_at_idle,
    ],
    ids=lambda breakage: breakage.__name__,
)
def test_broken_engine_is_noticed(
    breakage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breakage(monkeypatch)
    for seed in range(ENOUGH):
        try:
            run(seed)
        except AssertionError:
            return
    pytest.fail(f"{ENOUGH} schedules ended well in a pool of which {breakage.__name__.replace('_', ' ')}")
