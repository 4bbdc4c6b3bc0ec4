"""How asyncio tasks run flows: parking, tasks of the pool's own, its timer.  The twin of `threads`.

A flow that is to run elsewhere runs in a task that the pool owns: it is kept here until it has ended, and
`TaskRunner.end` awaits it.  All that is particular to asyncio stands here, and nothing knows what a pool is
for.

A cancellation is thrown into the flow at the operation that it struck, and leaves it as that same object.
What the flow's clean-up puts into the core is done by a task of the pool's (`follow_up`): whoever is
cancelled waits for nothing.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from asyncio import AbstractEventLoop, Future, Task, TimerHandle, _get_running_loop
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import Context, copy_context
from functools import partial
from math import inf
from traceback import StackSummary, format_list
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

from .borrowers import site, where
from .engine.core import Core
from .engine.operations import Call, Flow, Operation, Park, Start, Tell, Watch
from .engine.records import Site, Waiter
from .engine.upkeep import CLOSE_GRACE, LOOK_EVERY
from .events import Event
from .telling import tell
from .threads import clock

R = TypeVar("R")


class _Bell:
    """What wakes a waiter's task.  It does not know the waiter, so that they are no cycle."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: Future[None] | None = None  # while somebody sleeps

    def ring(self) -> None:
        """Wake the sleeper, if there is one; from any thread."""
        future = self.future
        if future is None:
            return
        loop = future.get_loop()
        if _get_running_loop() is loop:
            _rouse(future)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_rouse, future)


def _rouse(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class TaskWaiter(Waiter):
    """A task's place in the queue: it sleeps on a future that its waker sets."""

    __slots__ = ("_bell",)

    def __init__(self) -> None:
        self._bell = _Bell()
        super().__init__(self._bell.ring)

    async def park(self, loop: AbstractEventLoop, deadline: float | None) -> None:
        """Sleep until woken, at most until *deadline*."""
        future = self._bell.future = loop.create_future()  # publish ...
        if self.outcome is not None:  # ... then look: another thread may evict, or resume
            return
        timer = None
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - clock()), _rouse, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()


if sys.version_info >= (3, 12):
    task_of = asyncio.current_task
else:  # where that is written in Python, it takes a tenth of the whole warm path
    task_of = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined] # missing in typeshed

NO_TASK: Final = "no task"
"""Who borrows outside of any task."""


class Tasks:
    """The borrowers of an `AsyncConnectionPool`: as `borrowers.Threads`."""

    kind = "task"

    def me(self) -> object:
        """Return what stands for the running task, and does not keep it alive."""
        task = asyncio.current_task()
        if task is None:
            return NO_TASK
        owner = weakref.ref(task)
        hash(owner)  # kept in it: of a task that is gone it could not be asked any more
        return owner

    def here(self) -> Site | None:
        """Return its place in the user's code."""
        return site(sys._getframe(1))

    def name(self, owner: object) -> str | None:
        """Return what a task is called; ``None`` if it is done."""
        if not isinstance(owner, weakref.ref):
            return str(owner)
        task = owner()
        return None if task is None or task.done() else task.get_name()

    def stands(self, owner: object, code: CodeType | None, lasti: int) -> bool:
        """Tell whether a task is inside the block that it borrowed for: a frame of it has gone on since."""
        return any(frame.f_code is code and frame.f_lasti != lasti for frame in _frames(owner))

    def stack(self, owner: object) -> str:
        """Return what a task is doing, as a traceback, the innermost call last."""
        return "".join(format_list(StackSummary.extract((f, f.f_lineno) for f in _frames(owner))))

    def where(self, site: Site) -> str:
        """Return a place as people write it."""
        return where(*site)

    def blocks(self) -> bool:
        """Tell that nobody waits for a task who would not wait anyway."""
        return False


tasks = Tasks()


def _frames(owner: object) -> Iterator[FrameType]:
    """Return the frames of a task, the outermost first: its coroutine's, what that awaits, and so on."""
    task = owner() if isinstance(owner, weakref.ref) else None
    if task is None:
        return
    if task is asyncio.current_task():
        inner: FrameType | None = sys._getframe(1)
        stack = []
        while inner is not None:
            stack.append(inner)
            inner = inner.f_back
        yield from reversed(stack)
        return
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


class TaskRunner:
    """Runs the flows of one pool in the tasks of one event loop.

    Not the pool itself: the loop knows this object by the pool's timer and tasks, and a pool that nobody
    uses any more must be garbage all the same.
    """

    loop: AbstractEventLoop | None = None

    def __init__(
        self,
        core: Core[Any],
        follow_up: Callable[[], Flow[None]],
        upkeep: Callable[[], Flow[None]],
        observers: Sequence[Callable[[Event], object]] = (),
    ) -> None:
        self._follow_up = follow_up
        self._upkeep = upkeep
        self._observers = observers
        self._timer: TimerHandle | None = None
        self.begin_anew(core)

    def begin_anew(self, core: Core[Any]) -> None:
        """Serve another core: in another loop, or in a forked child, nothing that was due is."""
        self.stop()
        self.loop = None
        self._core = core
        self._tasks: set[Task[Any]] = set()  # a loop knows its tasks weakly
        self._following: Task[Any] | None = None
        self._parked: set[Waiter] = set()
        self._looking = False

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due_at = None, inf

    # -- flows ---------------------------------------------------------------------------------------

    async def run(self, flow: Flow[R], operation: Operation | None = None) -> R:
        """Run a flow to its end in this task; *operation* is what it has yielded already."""
        value: Any = None
        try:
            if operation is None:
                operation = flow.send(None)
            while True:
                resume: Callable[[Any], Operation] = flow.send
                value = None
                try:
                    if isinstance(operation, Park):
                        await self._park(operation)
                    elif isinstance(operation, Call):
                        value = operation.fn(*operation.args)
                        if hasattr(value, "__await__"):
                            value = await self._in_context(operation.fn, value)
                    elif isinstance(operation, Start):
                        self.start(operation.flow, Context())
                        value = True
                    elif isinstance(operation, Watch):
                        self._watch(operation.at)
                    elif isinstance(operation, Tell):
                        tell(operation.event, self._observers, self._report)
                    else:
                        self._report(operation.error, operation.origin)
                except BaseException as exc:
                    resume, value = flow.throw, exc
                operation = resume(value)
        except StopIteration as stop:
            result: R = stop.value
            return result
        except BaseException:
            flow.close()
            self.follow_up()
            raise
        finally:
            del value  # an exception, perhaps: with its traceback and this frame it would be a cycle

    def start(self, flow: Flow[R], context: Context) -> Task[R] | None:
        """Run a flow in a task of the pool's own; ``None`` if it has ended already.

        Its first step is done at once.  A task can be cancelled before it begins, and would then leave
        nothing behind that knows what it was to do; a flow that has begun cleans up behind itself.
        """
        try:
            operation = flow.send(None)
        except StopIteration:
            return None
        task = self._own(self.run(flow, operation), context)
        task.add_done_callback(partial(self._close, flow))
        return task

    def _close(self, flow: Flow[Any], task: Task[Any]) -> None:
        """Let a flow clean up whose task was cancelled before it began."""
        if task.cancelled():
            flow.close()
            self.follow_up()

    async def finish(self, flow: Flow[None]) -> None:
        """Run a flow to its end, also if this task is cancelled meanwhile: it does not wait then."""
        task = self.start(flow, copy_context())
        if task is not None:
            await asyncio.shield(task)

    def follow_up(self) -> None:
        """Have a task of the pool's do what the core says is to be done; from any thread."""
        loop = self.loop
        if loop is None or loop.is_closed() or self._core.inside():
            return  # whoever comes next finds it
        if _get_running_loop() is not loop:
            loop.call_soon_threadsafe(self.follow_up)
        elif self._core.owes() and (self._following is None or self._following.done()):
            self._following = self._own(self.run(self._follow_up()), Context())

    async def end(self) -> None:
        """Await the tasks of the pool's own, when it is closed.

        To close a connection has its limit; a dial that was given up is cancelled.
        """
        until = clock() + CLOSE_GRACE
        while self._core.closing and (left := until - clock()) > 0 and (tasks := self._others()):
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        tasks = self._others()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_GRACE)

    def _others(self) -> set[Task[Any]]:
        """Return the tasks of the pool's own, but not this one: a hook may be what closes the pool."""
        return self._tasks - {asyncio.current_task()}

    def _own(self, coroutine: Coroutine[Any, Any, R], context: Context) -> Task[R]:
        assert self.loop is not None, "whoever has something to do has a loop"
        task = self.loop.create_task(coroutine, name="connpool", context=context)
        # A loop that is closed in the middle of it was ended by somebody who did not close the pool.  The
        # flow cleans up when its coroutine is collected, and there is nothing to warn of.
        task._log_destroy_pending = False  # type: ignore[attr-defined] # as asyncio itself does it in gather()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _in_context(self, fn: Callable[..., Any], awaitable: Any) -> Any:
        """Await what a function has returned; in its own context, if it was called in one."""
        context = getattr(fn, "__self__", None)
        if isinstance(context, Context):
            # As it is, if it can be a task: one that is cancelled before it begins must be told so itself.
            coroutine = awaitable if asyncio.iscoroutine(awaitable) else _awaited(awaitable)
            return await self._own(coroutine, context)
        return await awaitable

    # -- waiting -------------------------------------------------------------------------------------

    async def _park(self, operation: Park) -> None:
        loop, waiter, parked = self.loop, operation.waiter, self._parked
        assert loop is not None, "the pool has bound itself before it ran a flow"
        assert isinstance(waiter, TaskWaiter), "the pool makes no others"
        if not self._looking:
            self._looking = True
            loop.call_later(LOOK_EVERY, self._look, context=Context())
        parked.add(waiter)
        try:
            await waiter.park(loop, operation.deadline)
        finally:
            parked.discard(waiter)

    def _look(self) -> None:
        """Look around for all that sleep: what became garbage is free, and nobody says so."""
        self._looking = bool(self._parked)
        if self._looking and self.loop is not None:
            self.loop.call_later(LOOK_EVERY, self._look, context=Context())
            self._core.rematch(None)
            self.follow_up()

    def _watch(self, at: float | None) -> None:
        if at is None:
            # Final only for a closed pool: to another, somebody may just have given a duty.
            if self._core.closed:
                self.stop()
        elif at < self._due_at and self.loop is not None:
            self.stop()
            self._due_at = at
            self._timer = self.loop.call_later(max(0.0, at - clock()), self._is_due, context=Context())

    def _is_due(self) -> None:
        self._timer, self._due_at = None, inf
        self.start(self._upkeep(), Context())

    def _report(self, error: Exception, origin: object) -> None:
        """Treat an exception as one that no task was there to take."""
        assert self.loop is not None, "a flow runs in it"
        self.loop.call_exception_handler(
            {
                "message": f"raised by {origin!r}; the pool has gone on",
                "exception": error,
            }
        )


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
