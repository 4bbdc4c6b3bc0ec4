"""How threads run flows: parking, helpers, the housekeeper.  Nothing here knows what a pool is for.

Helpers and the housekeeper belong to the process, not to a pool: a thousand pools share them, and an
idle process has none.  Neither is needed for correctness: a flow that no helper can run is run by the
thread that asked, and a parked thread looks around by itself every `LOOK_EVERY` seconds.
"""

from __future__ import annotations

import heapq
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from math import inf
from typing import Any, Final, TypeVar

from .engine.core import Core
from .engine.operations import Call, Flow, Park, Start, Tell, Watch
from .engine.records import Waiter
from .engine.upkeep import LOOK_EVERY
from .events import Event
from .telling import report, tell

R = TypeVar("R")

HELPERS_BUSY: Final = 0.1
"""Seconds until the housekeeper tries again to find a helper."""

MOST_HELPERS: Final = 64
"""Helper threads of the process; beyond them, whoever needs a dial makes it."""

clock: Callable[[], float] = time.monotonic
"""The one clock, in seconds.  It stands still while the machine is suspended; `slept` tells for how long."""


_BOOT: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def slept() -> float:
    """Return the seconds that the machine has been suspended since it started; 0.0 if no clock tells.

    Not the one clock itself: on CPython 3.11 it takes 50 ns more to read, twice for each borrow.
    """
    return 0.0 if _BOOT is None else time.clock_gettime(_BOOT) - time.monotonic()


class ThreadWaiter(Waiter):
    """A thread's place in the queue: it sleeps on a lock that its waker releases."""

    __slots__ = ("_baton",)

    def __init__(self) -> None:
        # Attributes looked up at use, not imported by name: gevent replaces them.
        baton = self._baton = threading.Lock()
        baton.acquire()
        Waiter.__init__(self, baton.release)

    def park(self, deadline: float | None) -> None:
        """Sleep until woken, at most until *deadline*, and never longer than `LOOK_EVERY`."""
        if self.outcome is None:
            left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, deadline - clock())
            self._baton.acquire(timeout=max(0.0, left))


class Helpers:
    """Short-lived threads that dial and close, for all pools of the process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: in a forked child none of the parent's helpers lives."""
        self._numbers = count(1)
        self._running: set[object] = set()

    def start(self, job: Callable[[], None]) -> bool:
        """Run *job* in a thread of its own; False if there are too many, or no more can be had.

        No lock: a finalizer may come here in the middle of itself.  The bound is not exact to the thread.
        """
        if len(self._running) >= MOST_HELPERS:
            return False
        name = f"connpool-helper-{next(self._numbers)}"
        box = [job]  # whoever takes the job out has it
        thread = threading.Thread(target=self._run, args=(box,), name=name, daemon=True)
        self._running.add(thread)
        try:
            thread.start()
        except BaseException as exc:
            self._running.discard(thread)
            # Struck in its start, the thread has begun or never will; then `threading` keeps it for ever,
            # and a job in it would keep the place of its dial.
            taken = _take(box) is None
            if isinstance(exc, RuntimeError):  # no more threads, or the interpreter is shutting down
                return taken
            raise
        return True

    def _run(self, box: list[Callable[[], None]]) -> None:
        try:
            job = _take(box)
            if job is not None:
                job()
        finally:
            self._running.discard(threading.current_thread())


def _take(box: list[Callable[[], None]]) -> Callable[[], None] | None:
    """Take the job out of a box; ``None`` if somebody else has it."""
    try:
        return box.pop()
    except IndexError:
        return None


class Housekeeper:
    """One thread that has each pool's upkeep run when it is due; it lives while any pool has a duty.

    It knows pools weakly, keeps none of them alive, and runs nothing of theirs itself: a dial that hangs
    in one pool must not keep it from the others.

    `watch` takes no lock.  The collector can run a finalizer, which closes a pool, which calls `watch`, at
    any allocation, also inside `watch` itself; a `queue.SimpleQueue` is made for that.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: in a forked child the thread is gone, and its token may be held by nobody."""
        # Attributes looked up at use, not imported by name: gevent replaces them.
        self._inbox: queue.SimpleQueue[tuple[weakref.ref[ThreadRunner], float | None]] = queue.SimpleQueue()
        self._starting = threading.Lock()  # a token, never waited for
        self._thread: threading.Thread | None = None

    def watch(self, runner: ThreadRunner, at: float | None) -> None:
        """Have ``runner.upkeep()`` run at an instant, or sooner; ``None``: it needs none any more."""
        if not self.is_alive():
            if at is None:
                return
            if not isinstance(self._inbox, queue.SimpleQueue):
                self.reset()  # gevent has patched `queue` since our import: the old one would block its hub
        self._inbox.put((weakref.ref(runner), at))  # publish ...
        if not self.is_alive():  # ... then look; the thread does it the other way round, see _keep
            self._begin()

    def is_alive(self) -> bool:
        """Tell whether the thread is there to read its inbox."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def _begin(self) -> None:
        """Start the thread, unless somebody is about to."""
        if not self._starting.acquire(blocking=False):
            return
        try:
            if not self.is_alive():
                thread = threading.Thread(target=self._keep, name="connpool-housekeeper", daemon=True)
                self._thread = thread
                thread.start()
        except RuntimeError:
            pass  # no more threads: parked ones look around by themselves
        finally:
            self._starting.release()

    def _keep(self) -> None:
        agenda = Agenda()
        while True:
            left = agenda.hand_out()
            try:
                if left is None:
                    ref, at = self._inbox.get(block=False)
                else:
                    ref, at = self._inbox.get(timeout=left)
            except queue.Empty:
                if left is not None:
                    continue
                self._thread = None
                if not self._inbox.empty():  # somebody published while we were still seen alive
                    self._begin()
                return
            agenda.note(ref, at)


class Agenda:
    """What the housekeeper has to do, and when.  Only its thread touches it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, weakref.ref[ThreadRunner]]] = []
        self._numbers = count()

    def note(self, ref: weakref.ref[ThreadRunner], at: float | None) -> None:
        """Add a duty; of several for one pool the earliest counts, and ``None`` cancels it."""
        runner = ref()
        if runner is None:
            return
        if runner.is_over():
            at = None  # what came late was meant for the time before
        # Upkeep that comes too soon finds that out by itself; upkeep that is late does harm.
        runner.due_at = inf if at is None else min(at, runner.due_at)
        if runner.due_at < inf:
            heapq.heappush(self._heap, (runner.due_at, next(self._numbers), ref))

    def hand_out(self) -> float | None:
        """Hand what is due to helpers; return the seconds until the next duty, ``None`` without one."""
        while self._heap:
            at, _, ref = self._heap[0]
            runner = ref()
            if runner is None or runner.due_at != at:
                heapq.heappop(self._heap)  # its pool is gone, or the duty was superseded
                continue
            left = at - clock()
            if left > 0:
                return min(left, threading.TIMEOUT_MAX)
            heapq.heappop(self._heap)
            runner.due_at = inf
            if not helpers.start(runner.upkeep):
                self.note(ref, clock() + HELPERS_BUSY)
        return None


class ThreadRunner:
    """Runs the flows of one pool in threads.

    Not the pool itself: helpers and the housekeeper may know this object, and a pool that nobody uses
    any more must be garbage while a dial of it hangs.
    """

    def __init__(
        self,
        core: Core[Any],
        follow_up: Callable[[], Flow[None]],
        upkeep: Callable[[], Flow[None]],
        observers: Sequence[Callable[[Event], object]] = (),
    ) -> None:
        self.inline = False  # run everything in the calling thread from now on
        self.due_at = inf  # the housekeeper's
        self._core = core
        self._follow_up = follow_up
        self._upkeep = upkeep
        self._observers = observers

    def begin_anew(self, core: Core[Any]) -> None:
        """Serve another core: in a forked child nothing that was due is."""
        self._core = core
        self.due_at = inf

    def run(self, flow: Flow[R]) -> R:
        """Run a flow to its end in this thread, and whatever it left undone if it was cut short."""
        try:
            return self._drive(flow)
        except BaseException:
            flow.close()  # its clean-up first: it may be what leaves something to do
            if self._core.owes():
                self._drive(self._follow_up())
            raise

    def upkeep(self) -> None:
        """Do what is due now; the housekeeper has a helper call this."""
        self.run(self._upkeep())

    def _drive(self, flow: Flow[R]) -> R:
        resume: Callable[[Any], Any] = flow.send
        value: Any = None
        try:
            while True:
                operation = resume(value)
                resume = flow.send
                try:
                    if isinstance(operation, Park):
                        value = operation.waiter.park(operation.deadline)  # type: ignore[attr-defined] # ours
                    elif isinstance(operation, Call):
                        value = operation.fn(*operation.args)
                    elif isinstance(operation, Start):
                        value = not self.inline and helpers.start(partial(self.run, operation.flow))
                    elif isinstance(operation, Watch):
                        self._watch(operation.at)
                        value = None
                    elif isinstance(operation, Tell):
                        tell(operation.event, self._observers)
                        value = None
                    else:
                        report(operation.error, operation.origin)
                        value = None
                except BaseException as exc:
                    resume, value = flow.throw, exc
        except StopIteration as stop:
            result: R = stop.value
            return result
        finally:
            del value  # an exception, perhaps: with its traceback and this frame it would be a cycle

    def is_over(self) -> bool:
        """Tell whether the pool is closed and has nothing left to close; what is lent comes by itself."""
        return self._core.closed and not self._core.closing

    def _watch(self, at: float | None) -> None:
        if at is None:
            # Final only for a closed pool: to another, somebody may just have given a duty.
            if self._core.closed:
                housekeeper.watch(self, None)
        elif at < self.due_at or not housekeeper.is_alive():
            # Else upkeep comes sooner, and asks then what is due next.  The duty was published before
            # this look, and `due_at` is lifted before upkeep runs: one of the two sees the other.
            housekeeper.watch(self, at)


helpers = Helpers()
housekeeper = Housekeeper()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.reset)
    os.register_at_fork(after_in_child=housekeeper.reset)
