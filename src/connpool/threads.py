"""How threads run flows: parking, helpers, the housekeeper.  Nothing here knows what a pool is for.

Helpers and the housekeeper belong to the process, not to a pool: a thousand pools share them, and an
idle process has none.  Neither is needed for correctness: a flow that no helper can run is run by the
thread that asked, and a parked thread looks around by itself every `LOOK_EVERY` seconds.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from itertools import count
from math import inf
from operator import itemgetter
from typing import Any, Final, TypeVar

from .engine.core import Core
from .engine.flows import Call, Flow, Park, Start
from .engine.records import Waiter

R = TypeVar("R")

LOOK_EVERY: Final = 0.25
"""Seconds a parked thread sleeps at most before it looks around.

It cures a wake-up lost to an exception that struck between two bytecodes, does the work of a helper
that could not be started, and lets Ctrl-C through where a lock cannot be interrupted (Windows).
"""

MOST_HELPERS: Final = 64
"""Helper threads of the process; beyond them, whoever needs a dial makes it."""

clock: Callable[[], float]
"""The one clock: seconds, counting the time that the machine was suspended where that is possible.

After a night's sleep a connection's server has long given it up; `monotonic` would call it fresh.
"""
if hasattr(time, "CLOCK_BOOTTIME"):
    clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:
    clock = time.monotonic


class ThreadWaiter(Waiter):
    """A thread's place in the queue: it sleeps on a lock that its waker releases."""

    __slots__ = ("_baton",)

    def __init__(self) -> None:
        # Attributes looked up at use, not imported by name: gevent replaces them.
        self._baton = threading.Lock()
        self._baton.acquire()
        super().__init__(self._baton.release)

    def park(self, deadline: float | None) -> None:
        """Sleep until woken, at most until *deadline*, and never longer than `LOOK_EVERY`."""
        if self.outcome is None:
            left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, deadline - clock())
            self._baton.acquire(timeout=max(0.0, left))


class Helpers:
    """Short-lived threads that dial and close, for all pools of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._running = 0

    def start(self, job: Callable[[], None]) -> bool:
        """Run *job* in a thread of its own; False if there are too many, or no more can be had."""
        with self._lock:
            if self._running >= MOST_HELPERS:
                return False
            self._running += 1
        thread = threading.Thread(
            target=self._run,
            args=(job,),
            name=f"connpool-helper-{next(self._numbers)}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            with self._lock:
                self._running -= 1
            return False
        return True

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            with self._lock:
                self._running -= 1


class Housekeeper:
    """One thread that calls each pool's upkeep when it is due; it lives while any pool has a duty.

    Pools are held weakly: the housekeeper keeps none of them alive.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._due: weakref.WeakKeyDictionary[ThreadRunner, float] = weakref.WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        self._wakes_at = inf

    def watch(self, runner: ThreadRunner, at: float | None) -> None:
        """Call ``runner.upkeep()`` at an instant, in place of the one given before; ``None``: never."""
        with self._changed:
            if at is None:
                self._due.pop(runner, None)
            else:
                self._due[runner] = at
            if self._thread is None:
                if at is not None:
                    self._begin()
            elif at is None or at < self._wakes_at:
                self._changed.notify()

    def _begin(self) -> None:
        """Start the thread.  Lock held."""
        thread = threading.Thread(target=self._keep, name="connpool-housekeeper", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            self._thread = None  # parked threads look around by themselves

    def _keep(self) -> None:
        try:
            while (runner := self._await_duty()) is not None:
                runner.upkeep()
                del runner  # not while we sleep: we keep no pool alive
        except BaseException:
            with self._changed:
                self._thread = None  # the next duty starts another one
            raise

    def _await_duty(self) -> ThreadRunner | None:
        with self._changed:
            runner = self._next()
            if runner is None:
                self._thread = None
            return runner

    def _next(self) -> ThreadRunner | None:
        """Wait for the next duty that is due; ``None`` when there is none left.  Lock held."""
        while self._due:
            now = clock()
            runner, at = min(self._due.items(), key=itemgetter(1))
            if at <= now:
                del self._due[runner]
                return runner
            del runner  # as above
            self._wakes_at = at
            self._changed.wait(min(at - now, threading.TIMEOUT_MAX))
        return None


class ThreadRunner:
    """Runs the flows of one pool in threads.

    Not the pool itself: helpers and the housekeeper may know this object, and a pool that nobody uses
    any more must be garbage while a dial of it hangs.
    """

    def __init__(
        self, core: Core[Any], follow_up: Callable[[], Flow[None]], upkeep: Callable[[], Flow[None]]
    ) -> None:
        self.inline = False  # run everything in the calling thread from now on
        self._core = core
        self._follow_up = follow_up
        self._upkeep = upkeep

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
        """Do what is due now; the housekeeper calls this."""
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
                    else:
                        housekeeper.watch(self, operation.at)
                        value = None
                except BaseException as exc:
                    resume, value = flow.throw, exc
        except StopIteration as stop:
            result: R = stop.value
            return result


helpers = Helpers()
housekeeper = Housekeeper()
