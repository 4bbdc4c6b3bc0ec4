"""A model of the warm path: its shared accesses as atomic steps, every interleaving of them explored.

What is modelled
----------------
Threads that take and give (`connpool.leases.Lease`), queue, park, wake, time out and leave; one operator
who evicts or closes; one helper that dials.  A step is one access to something that another thread can
see without the lock: `waiters`, `idle`, a `doomed` flag, a waiter's `outcome`.  Taking the lock joins the
step behind it and releasing it the step before it: to move a lock operation there changes nothing for
anybody else.  What only owners of the lock touch (tickets, the registry, `closed`) joins likewise.

A parked thread sleeps until it is woken or times out.  The looks that it takes by itself every quarter
of a second are left out: they would hide a lost wake-up.

What is not modelled
--------------------
Exceptions between steps (see `test_injection`), the steps between two accesses (see `test_explorer`),
expiry, checks, commits and rollbacks (see the simulator), and the time for which a connection that is
being closed counts towards the size: here its place is free at once.

How it is explored
------------------
A state is a tuple of small numbers: one for all that is shared, one for each actor's own variables.  The
steps of an actor depend on those two numbers alone, so each combination is worked out once, in readable
code, and remembered.  States that differ only in which thread is which are one state, and what nobody can
reach any more is forgotten (`_tidy`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

T = TypeVar("T")

Mutation = Literal[
    "skip the second look at the waiters",
    "look at the waiters first, publish second",
    "skip the second look at idle",
    "settle without the lock",
    "evict through check_at",
    "gate at the tail",
    "ignore tickets",
    "sweep first, doom second",
    "take without a look at doomed",
    "give without a look at doomed",
    "wake nobody",
    "no follow-up after a discard",
]

GATE = -1
LEFT = -2
CLOSED = -3


class Shared(NamedTuple):
    """Everything that more than one actor can see; what is a ghost, only the checks look at."""

    idle: tuple[int, ...]
    waiters: tuple[int, ...]
    outcomes: tuple[int | None, ...]  # of each thread's present waiter: an entry, LEFT, CLOSED or None
    woken: frozenset[int]
    tickets: tuple[int | None, ...]  # ranks: only their order counts
    lock: int | None
    doomed: frozenset[int]
    stale: frozenset[int]  # only for "evict through check_at": what the holder's write would clear
    places: tuple[int | None, ...]  # the entry in each place of the registry
    names: tuple[int | None, ...]  # of each thread: the entry that it has published and can still name
    opening: tuple[int, ...]
    closed: bool
    evicted: frozenset[int] = frozenset()  # ghost: what was there when evict() or close() began
    returned: bool = False  # ghost: evict() or close() has returned
    late: frozenset[int] = frozenset()  # ghost: threads whose take began after that


class Local(NamedTuple):
    """One actor's own variables."""

    at: str
    then: tuple[str, ...] = ()  # where to go on after a subroutine
    own: int | None = None  # the entry it owns
    rest: tuple[int, ...] = ()  # what a loop still has to visit
    cycles: int = 0


Step = tuple[Shared, Local]


class Violation(AssertionError):
    """A state that must not be; the message says how to get there."""


@dataclass
class Model:
    """So many threads, places and cycles, with one operator or none.

    It begins with every number of idle connections that the places allow, or with *opened* of them.
    """

    threads: int
    places: int
    cycles: int
    operator: Literal["evict", "close"] | None = None
    timeouts: bool = True
    mutation: Mutation | None = None
    opened: int | None = None
    states: int = field(default=0, init=False)
    transitions: int = field(default=0, init=False)
    rests: int = field(default=0, init=False)

    # -- exploration -----------------------------------------------------------------------------------

    def explore(self) -> Model:
        """Visit every state; raise `Violation` at the first that must not be."""
        actors = self.threads + (self.operator is not None) + 1
        shareds, locals_ = _Numbers[Shared](), _Numbers[Local]()
        known: list[dict[tuple[int, int], list[tuple[int, int]]]] = [{} for _ in range(actors)]
        owned: dict[int, tuple[int, ...]] = {}
        came_from: dict[tuple[int, ...], tuple[int, ...] | None] = {}
        frontier: list[tuple[int, ...]] = []
        for shared, own in self._beginnings():
            state = (shareds.of(shared), *map(locals_.of, own))
            came_from[state] = None
            frontier.append(state)
        strictly_sorted = _strictly_sorted[self.threads]
        try:
            while frontier:
                state = frontier.pop()
                number = state[0]
                if number not in owned:
                    owned[number] = _entries(shareds[number])
                    self._check_shared(shareds[number])
                owners = list(owned[number])
                owners += [e for n in state[1:] if (e := locals_[n].own) is not None]
                if len(owners) != len(set(owners)):
                    raise Violation("an entry has two owners")
                moved = False
                for actor in range(actors):
                    key = (number, state[actor + 1])
                    steps = known[actor].get(key)
                    if steps is None:
                        steps = known[actor][key] = [
                            (shareds.of(after), locals_.of(own))
                            for after, own in self._steps(actor, shareds[number], locals_[key[1]])
                        ]
                    for after, mine in steps:
                        moved |= locals_[mine].at != "leave" or locals_[key[1]].at != "asleep"
                        self.transitions += 1
                        successor = (after, *state[1 : actor + 1], mine, *state[actor + 2 :])
                        if not strictly_sorted(successor):
                            successor = self._canonical(successor, shareds)
                        if successor not in came_from:
                            came_from[successor] = state
                            frontier.append(successor)
                if not moved:
                    self.rests += 1
                    self._check_rest(shareds[number], [locals_[n] for n in state[1:]])
        except Violation as violation:
            raise Violation(f"{violation}\n{self._story(state, came_from, shareds, locals_)}") from None
        self.states = len(came_from)
        return self

    def _canonical(self, state: tuple[int, ...], shareds: _Numbers[Shared]) -> tuple[int, ...]:
        """Return the one state that stands for all that differ only in which thread is which."""
        shared = shareds[state[0]]
        order = sorted(range(self.threads), key=lambda thread: (state[thread + 1], _role(shared, thread)))
        number = shareds.of(_permuted(shared, order))
        return (number, *(state[thread + 1] for thread in order), *state[self.threads + 1 :])

    def _story(
        self,
        state: tuple[int, ...],
        came_from: dict[tuple[int, ...], tuple[int, ...] | None],
        shareds: _Numbers[Shared],
        locals_: _Numbers[Local],
    ) -> str:
        """Tell the way to a state, one line for each step."""
        lines: list[str] = []
        at: tuple[int, ...] | None = state
        while at is not None:
            shared = shareds[at[0]]
            where = " ".join(locals_[n].at for n in at[1:])
            lines.append(f"  {where:60} idle={shared.idle} waiters={shared.waiters} lock={shared.lock}")
            at = came_from[at]
        return "\n".join(reversed(lines))

    def _beginnings(self) -> Iterator[tuple[Shared, tuple[Local, ...]]]:
        threads = (Local("take", cycles=self.cycles),) * self.threads
        others = ((Local(self.operator),) if self.operator else ()) + (Local("dial"),)
        counts = range(self.places + 1) if self.opened is None else (self.opened,)
        for count in counts:
            opened = tuple(range(count))
            yield (
                Shared(
                    idle=opened,
                    waiters=(),
                    outcomes=(None,) * self.threads,
                    woken=frozenset(),
                    tickets=(None,) * self.threads,
                    lock=None,
                    doomed=frozenset(),
                    stale=frozenset(),
                    places=(*opened, *(None,) * (self.places - count)),
                    names=(None,) * self.threads,
                    opening=(),
                    closed=False,
                ),
                threads + others,
            )

    # -- what must not be ------------------------------------------------------------------------------

    def _check_shared(self, shared: Shared) -> None:
        """Check what holds in every state."""
        tickets = [shared.tickets[w] or 0 for w in shared.waiters if w != GATE and shared.outcomes[w] is None]
        if tickets != sorted(tickets):
            raise Violation("the queue is out of order")
        if len(set(shared.waiters)) != len(shared.waiters):
            raise Violation("somebody queues twice")
        present = {entry for entry in shared.places if entry is not None}
        if not set(shared.idle) <= present:
            raise Violation("an idle entry has no place")

    def _check_lent(self, actor: int, shared: Shared, entry: int) -> None:
        """Check the moment at which an entry is lent."""
        if actor in shared.late and entry in shared.evicted:
            raise Violation(f"entry {entry} was lent by a take that began after {self.operator}() returned")
        if entry not in shared.places:
            raise Violation(f"entry {entry} was lent after it had been discarded")

    def _check_rest(self, shared: Shared, own: list[Local]) -> None:
        """Check a state in which nobody can go on, unless by timing out."""
        live = [w for w in shared.waiters if w != GATE and shared.outcomes[w] is None]
        if live and shared.idle:
            raise Violation("lost wake-up: an idle entry and a live waiter at rest")
        if any(local.at not in ("done", "dial") for local in own):
            raise Violation("somebody is stuck")
        if any(outcome is not None and outcome >= 0 for outcome in shared.outcomes):
            raise Violation("an entry was delivered to nobody")
        if set(shared.idle) != {entry for entry in shared.places if entry is not None}:
            raise Violation("a place was lost")
        if shared.evicted.intersection(shared.idle):
            raise Violation(f"{self.operator}() has returned, but an entry that it meant is idle")
        if shared.closed and shared.idle:
            raise Violation("a closed pool has idle entries")

    # -- steps -----------------------------------------------------------------------------------------

    def _steps(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Return what an actor can do next; nothing, if it must wait or is done."""
        step: Callable[[int, Shared, Local], list[Step]] = getattr(self, "_at_" + me.at)
        return step(actor, shared, me)

    # Taking: `Lease.__enter__`.

    def _at_take(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        waiters = shared.waiters
        if shared.returned:
            shared = shared._replace(late=shared.late | {actor})
        return [(shared, me._replace(at="queue" if waiters else "pop"))]

    def _at_pop(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if not shared.idle:
            return [(shared, me._replace(at="queue"))]
        return [(shared._replace(idle=shared.idle[:-1]), me._replace(at="look", own=shared.idle[-1]))]

    def _at_look(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Look at `doomed`, of an entry that was popped or delivered."""
        assert me.own is not None
        delivered = shared.tickets[actor] is not None
        blind = self.mutation == "take without a look at doomed" and not delivered
        if self._is_doomed(shared, me.own) and not blind:
            # Once doomed, always doomed: the look may as well happen when the lock is free.
            return (self._at_discard if delivered else self._at_number)(actor, shared, me)
        self._check_lent(actor, shared, me.own)
        shared = shared._replace(late=shared.late - {actor})
        return [(_drop_ticket(shared, actor), me._replace(at="use"))]

    def _at_number(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Take a ticket: the candidate was no good, but its finder keeps its place in line."""
        if shared.lock is not None:
            return []
        return [(_draw_ticket(shared, actor), me._replace(at="discard"))]

    def _at_discard(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if shared.lock is not None:
            return []
        assert me.own is not None
        return [(_retired(shared, me.own), me._replace(at="owes", own=None, then=("queue",)))]

    # Queueing: `Core.queue`, `Flows._queued`, `Core.leave`.

    def _at_queue(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if shared.lock is not None:
            return []
        if shared.closed:
            return [self._over(actor, _drop_ticket(shared, actor), me)]
        if shared.tickets[actor] is None:
            shared = _draw_ticket(shared, actor)
        place = len(shared.waiters)
        if self.mutation != "ignore tickets":
            while place and (shared.tickets[shared.waiters[place - 1]] or 0) > (shared.tickets[actor] or 0):
                place -= 1
        shared = shared._replace(
            waiters=(*shared.waiters[:place], actor, *shared.waiters[place:]),
            outcomes=_with(shared.outcomes, actor, None),
            woken=shared.woken - {actor},
        )
        then = me._replace(then=("owes", "park"))
        if self.mutation == "skip the second look at idle":
            return [(shared, _goes_on(then))]
        return [(shared._replace(lock=actor), then._replace(at="match"))]

    def _at_park(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Look at the outcome before going to sleep; the deadline may have passed by now."""
        if shared.outcomes[actor] is not None:
            return [_received(shared, me, actor)]
        asleep = (shared, me._replace(at="asleep"))
        return [asleep, (shared, me._replace(at="leave"))] if self.timeouts else [asleep]

    def _at_asleep(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        steps: list[Step] = []
        if actor in shared.woken:
            if shared.outcomes[actor] is not None:
                steps.append(_received(shared, me, actor))
            else:
                steps.append((shared, me._replace(at="rematch", then=("park",))))
        if self.timeouts:
            steps.append((shared, me._replace(at="leave")))
        return steps

    def _at_leave(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Settle as timed out, unless somebody has delivered: the judge of the race."""
        if self.mutation == "settle without the lock":
            if shared.outcomes[actor] is not None:
                return [_received(shared, me, actor)]
            return [(shared, me._replace(at="leave_regardless"))]
        if shared.lock is not None:
            return []
        if shared.outcomes[actor] is not None:
            without = tuple(w for w in shared.waiters if w != actor)
            return [_received(shared._replace(waiters=without), me, actor)]
        return self._at_leave_regardless(actor, shared, me)

    def _at_leave_regardless(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        shared = shared._replace(
            outcomes=_with(shared.outcomes, actor, None),
            waiters=tuple(w for w in shared.waiters if w != actor),
            woken=shared.woken - {actor},
        )
        return [(_drop_ticket(shared, actor), me._replace(at="owes", then=("over",)))]

    # Giving: `Lease.__exit__`, or `Core.give` at the end of the release flow.

    def _at_use(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Publish, by the warm path or by the flow."""
        assert me.own is not None
        by_flow = [(shared._replace(lock=actor), me._replace(at="give"))] if shared.lock is None else []
        if self.mutation == "evict through check_at":
            overwritten = shared._replace(stale=shared.stale - {me.own})
            return [(overwritten, me._replace(at="append"))]
        if self.mutation == "look at the waiters first, publish second":
            seen = bool(shared.waiters) or self._is_doomed(shared, me.own)
            return [(shared, me._replace(at="append", then=("rematch",) if seen else ("over",)))]
        return [self._appended(actor, shared, me), *by_flow]

    def _at_append(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        return [self._appended(actor, shared, me)]

    def _appended(self, actor: int, shared: Shared, me: Local) -> Step:
        assert me.own is not None
        shared = shared._replace(idle=(*shared.idle, me.own), names=_with(shared.names, actor, me.own))
        me = me._replace(at="look_at_waiters", own=None)
        if me.then == ("rematch",):
            return shared, me._replace(at="rematch", then=("owes", "over"))
        if me.then == ("over",):
            return self._over(actor, shared, me)
        return shared, me

    def _at_look_at_waiters(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if shared.waiters and self.mutation != "skip the second look at the waiters":
            return [(shared, me._replace(at="rematch", then=("owes", "over")))]
        return [(shared, me._replace(at="look_at_doomed"))]

    def _at_look_at_doomed(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        name = shared.names[actor]
        assert name is not None
        if self._is_doomed(shared, name) and self.mutation != "give without a look at doomed":
            return self._at_rematch(actor, shared, me._replace(then=("owes", "over")))
        return [self._over(actor, shared, me)]

    def _at_rematch(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Under the lock: take a doomed entry back, then match."""
        if shared.lock is not None:
            return []
        name = shared.names[actor]
        shared = shared._replace(names=_with(shared.names, actor, None))
        if name is not None and self._is_doomed(shared, name) and name in shared.idle:
            shared = _retired(_without(shared, name), name)
        return [(_tidy(shared)._replace(lock=actor), me._replace(at="match"))]

    def _at_give(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Under the lock: `Core.give`."""
        assert me.own is not None
        after = me._replace(own=None, then=("owes", "over"))
        if self._is_doomed(shared, me.own):
            return [(_retired(shared, me.own)._replace(lock=None), _goes_on(after))]
        return [(shared._replace(idle=(*shared.idle, me.own)), after._replace(at="match"))]

    def _at_over(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        return [self._over(actor, shared, me)]

    def _over(self, actor: int, shared: Shared, me: Local) -> Step:
        """End a cycle."""
        cycles = me.cycles - 1
        shared = shared._replace(names=_with(shared.names, actor, None), late=shared.late - {actor})
        shared = _tidy(shared)
        return shared, Local("take" if cycles else "done", cycles=cycles)

    def _at_done(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        return []

    # Matching: `Core._match`.  The lock is ours; we release it at the end, unless a dial is planned next.

    def _at_match(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if shared.waiters and shared.waiters[0] != GATE:
            if shared.outcomes[shared.waiters[0]] is not None:
                return [(shared, me._replace(at="unlink"))]
            if shared.idle:
                entry, shared = shared.idle[-1], shared._replace(idle=shared.idle[:-1])
                if self._is_doomed(shared, entry):
                    return [(_retired(shared, entry), me)]
                return [(shared, me._replace(at="settle", own=entry))]
        lock = actor if me.then[0] == "reserve" else None
        return [(shared._replace(lock=lock), _goes_on(me))]

    def _at_settle(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if shared.closed:
            raise Violation("a waiter was served by a closed pool")
        if not shared.waiters:  # only if somebody left without the lock
            raise Violation("an entry was delivered to nobody")
        shared = shared._replace(outcomes=_with(shared.outcomes, shared.waiters[0], me.own))
        return [(shared, me._replace(at="unlink", own=None))]

    def _at_unlink(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if not shared.waiters:  # only if somebody left without the lock
            return [(shared, me._replace(at="match"))]
        head, shared = shared.waiters[0], shared._replace(waiters=shared.waiters[1:])
        return [(self._woken(shared, head), me._replace(at="match"))]

    def _woken(self, shared: Shared, thread: int) -> Shared:
        """Wake a thread that is out of the queue now; if it knows its outcome already, nobody notices."""
        if shared.outcomes[thread] == LEFT:
            return shared._replace(outcomes=_with(shared.outcomes, thread, None))
        if self.mutation == "wake nobody":
            return shared
        return shared._replace(woken=shared.woken | {thread})

    # Following up: `Core.owes`, `Core.plan`, `Core.opened`.  The helper is the actor that dials.

    def _at_owes(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Look, without the lock, whether a dial is needed."""
        wanted = shared.waiters and not shared.closed and None in shared.places
        if not wanted or (self.mutation == "no follow-up after a discard" and me.then == ("over",)):
            return [(shared, _goes_on(me))]
        # Somebody who saw demand and finds none when it has got the lock does nothing more than this.
        return self._at_plan(actor, shared, me)

    def _at_plan(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if shared.lock is not None:
            return []
        if not shared.waiters or shared.closed:
            return [(shared, _goes_on(me))]
        return [(shared._replace(lock=actor), me._replace(at="match", then=("reserve", *me.then)))]

    def _at_reserve(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        while not shared.closed and None in shared.places and len(shared.opening) < len(shared.waiters):
            place = shared.places.index(None)
            entry = place
            while entry in shared.doomed or entry in shared.stale or entry in shared.names:
                entry += self.places  # never the name of a former entry that somebody can still utter
            shared = shared._replace(
                places=_with(shared.places, place, entry),
                opening=(*shared.opening, entry),
            )
        return [(shared._replace(lock=None), _goes_on(me))]

    def _at_dial(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Deliver a new connection, any of those under way, then see whether another is needed."""
        if shared.lock is not None:
            return []
        steps: list[Step] = []
        for entry in shared.opening:
            after = shared._replace(opening=tuple(e for e in shared.opening if e != entry))
            if self._is_doomed(after, entry):
                steps.append((_retired(after, entry), me._replace(at="plan", then=("dial",))))
            else:
                after = after._replace(lock=actor, idle=(*after.idle, entry))
                steps.append((after, me._replace(at="match", then=("plan", "dial"))))
        return steps

    # Evicting and closing: `Core.evict`, `Core.shut`.  Doom first, sweep second.

    def _at_evict(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if shared.lock is not None:
            return []
        there = tuple(e for e in shared.places if e is not None)
        shared = shared._replace(lock=actor, evicted=frozenset(there))
        first = "sweep" if self.mutation == "sweep first, doom second" else "doom"
        return [(shared, me._replace(at=first, rest=there, then=("owes", "done")))]

    def _at_close(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if shared.lock is not None:
            return []
        there = tuple(e for e in shared.places if e is not None)
        queue = (GATE, *shared.waiters)
        if self.mutation == "gate at the tail":
            queue = (*shared.waiters, GATE)
        shared = shared._replace(lock=actor, evicted=frozenset(there), closed=True, waiters=queue)
        return [(shared, me._replace(at="doom", rest=there, then=("fail_waiters", "done")))]

    def _at_doom(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if me.rest:
            mark = {me.rest[0]}
            if self.mutation == "evict through check_at":
                shared = shared._replace(stale=shared.stale | mark)
            else:
                shared = shared._replace(doomed=shared.doomed | mark)
            return [(shared, me._replace(rest=me.rest[1:]))]
        if self.mutation == "sweep first, doom second":
            return [(shared._replace(lock=None, returned=bool(shared.evicted)), _goes_on(me))]
        return self._at_sweep(actor, shared, me)

    def _at_sweep(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Take a list of what is idle now."""
        return [(shared, me._replace(at="sweep_each", rest=shared.idle))]

    def _at_sweep_each(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        if me.rest:
            entry = me.rest[0]
            first = self.mutation == "sweep first, doom second"
            if entry in shared.idle and (first or self._is_doomed(shared, entry)):
                shared = _retired(_without(shared, entry), entry)
            return [(shared, me._replace(rest=me.rest[1:]))]
        if self.mutation == "sweep first, doom second":
            there = tuple(e for e in shared.places if e is not None)
            return self._at_doom(actor, shared, me._replace(at="doom", rest=there))
        if me.then[0] == "fail_waiters":  # first the dials under way: what they open is closed at once
            places = tuple(None if entry in shared.opening else entry for entry in shared.places)
            return [(_tidy(shared._replace(places=places, opening=())), _goes_on(me))]
        return [(shared._replace(lock=None, returned=bool(shared.evicted)), _goes_on(me))]

    def _at_fail_waiters(self, actor: int, shared: Shared, me: Local) -> list[Step]:
        """Behind the gate, one after the other: settle, unlink, wake."""
        if len(shared.waiters) == 1:
            return [(shared._replace(lock=None, returned=bool(shared.evicted)), _goes_on(me))]
        waiter = shared.waiters[1]
        if waiter != GATE and shared.outcomes[waiter] is None:
            return [(shared._replace(outcomes=_with(shared.outcomes, waiter, CLOSED)), me)]
        shared = shared._replace(waiters=(shared.waiters[0], *shared.waiters[2:]))
        return [(self._woken(shared, waiter) if waiter != GATE else shared, me)]

    def _is_doomed(self, shared: Shared, entry: int) -> bool:
        return entry in shared.doomed or entry in shared.stale


# -- changes of the shared state ---------------------------------------------------------------------------


def _goes_on(me: Local) -> Local:
    """Return from a subroutine."""
    return me._replace(at=me.then[0], then=me.then[1:])


def _with(values: tuple[Any, ...], index: int, value: object) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _without(shared: Shared, entry: int) -> Shared:
    return shared._replace(idle=tuple(e for e in shared.idle if e != entry))


def _retired(shared: Shared, entry: int) -> Shared:
    """Free the place of an entry, if it still has one."""
    places = tuple(None if e == entry else e for e in shared.places)
    return _tidy(shared._replace(places=places, evicted=shared.evicted - {entry}))


def _tidy(shared: Shared) -> Shared:
    """Forget what is said of entries that nobody can reach any more, so that equal futures are equal."""
    known = {*shared.places, *shared.names}
    return shared._replace(
        doomed=shared.doomed & known,
        stale=shared.stale & known,
        returned=shared.returned and bool(shared.evicted),
        late=shared.late if shared.evicted else frozenset(),
    )


def _received(shared: Shared, me: Local, actor: int) -> Step:
    """Take an outcome out of the waiter."""
    outcome = shared.outcomes[actor]
    # It stays settled as long as it is in the queue; afterwards nobody can see it.
    left = LEFT if actor in shared.waiters else None
    shared = shared._replace(outcomes=_with(shared.outcomes, actor, left), woken=shared.woken - {actor})
    if outcome is None or outcome < 0:
        return _drop_ticket(shared, actor), me._replace(at="over")
    return shared, me._replace(at="look", own=outcome)


def _draw_ticket(shared: Shared, actor: int) -> Shared:
    drawn = [ticket for ticket in shared.tickets if ticket is not None]
    return shared._replace(tickets=_with(shared.tickets, actor, max(drawn, default=-1) + 1))


def _drop_ticket(shared: Shared, actor: int) -> Shared:
    """Forget a ticket; the others close ranks, so that equal orders are equal states."""
    tickets = _with(shared.tickets, actor, None)
    ranks = {ticket: rank for rank, ticket in enumerate(sorted(t for t in tickets if t is not None))}
    return shared._replace(tickets=tuple(None if t is None else ranks[t] for t in tickets))


def _entries(shared: Shared) -> tuple[int, ...]:
    """Return the entries that the shared state owns."""
    delivered = [outcome for outcome in shared.outcomes if outcome is not None and outcome >= 0]
    return (*shared.idle, *delivered)


# -- threads are interchangeable ---------------------------------------------------------------------------

_strictly_sorted: dict[int, Callable[[tuple[int, ...]], bool]] = {
    2: lambda state: state[1] < state[2],
    3: lambda state: state[1] < state[2] < state[3],
}


def _role(shared: Shared, thread: int) -> tuple[int, ...]:
    """Return all that the shared state says of one thread."""
    ticket, outcome, name = shared.tickets[thread], shared.outcomes[thread], shared.names[thread]
    return (
        shared.waiters.index(thread) if thread in shared.waiters else -1,
        -1 if ticket is None else ticket,
        -9 if outcome is None else outcome,
        -1 if name is None else name,
        thread in shared.woken,
        thread in shared.late,
        shared.lock == thread,
    )


def _permuted(shared: Shared, order: list[int]) -> Shared:
    """Return the state in which ``order[n]`` is called *n*."""
    if order == sorted(order):
        return shared
    called = {thread: name for name, thread in enumerate(order)}
    return shared._replace(
        waiters=tuple(called.get(w, w) for w in shared.waiters),
        outcomes=tuple(shared.outcomes[thread] for thread in order),
        woken=frozenset(called[w] for w in shared.woken),
        late=frozenset(called[w] for w in shared.late),
        tickets=tuple(shared.tickets[thread] for thread in order),
        names=tuple(shared.names[thread] for thread in order),
        lock=shared.lock if shared.lock is None else called.get(shared.lock, shared.lock),
    )


class _Numbers(Generic[T]):
    """Gives each distinct value a small number."""

    def __init__(self) -> None:
        self._number: dict[T, int] = {}
        self._values: list[T] = []

    def of(self, value: T) -> int:
        number = self._number.setdefault(value, len(self._values))
        if number == len(self._values):
            self._values.append(value)
        return number

    def __getitem__(self, number: int) -> T:
        return self._values[number]
