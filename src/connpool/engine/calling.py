"""Calls of drivers and hooks: their limits of time, their errors, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

from ..adapter import Adapter, Fault, Verdict
from ..errors import PoolMisuse, PoolTimeout
from ..reset import RESTORING, steps
from .core import Core
from .explaining import Explaining
from .operations import Call, Flow, Step, Watch
from .records import Entry, People, Slot

C = TypeVar("C")


class Calling(Explaining[C]):
    """How a pool calls what is not its own."""

    def __init__(self, core: Core[C], name: str, clock: Callable[[], float], people: People) -> None:
        super().__init__(core, name, clock, people)
        self._steps = steps(core.options.reset)
        self._parts = tuple(part for step in self._steps or () if isinstance(step, tuple) for part in step)
        # Whether they leave nothing of a session, whatever was done to it.
        self.restores = not RESTORING.isdisjoint(self._parts)

    # -- calls and their errors ----------------------------------------------------------------------

    def _call(self, step: Step, fn: Callable[..., object], *args: object) -> Flow[Exception | None]:
        """Make a call and return its error."""
        try:
            yield Call(step, fn, *args)
        except Exception as exc:
            return exc
        return None

    def _in_time(
        self, flow: Flow[Exception | None], until: float | None, slot: Slot, late: str
    ) -> Flow[Exception | None]:
        """Run a flow that returns an error; if it has not ended at an instant, cut its connection.

        It is for calls that know no limit: upkeep shuts the socket down, and a driver that waits for the
        server then returns.  What it returns is the cause of a `PoolTimeout` that says *late*.
        """
        if until is not None:
            self.core.limit(slot, until)
            yield Watch(until)
        cut, failure, error = False, None, None
        try:
            failure = yield from flow
        finally:
            if until is not None:
                cut = self.core.unlimit(slot)
        try:
            if not cut:
                return failure
            error = self._error(PoolTimeout, late)
            error.__cause__ = failure
            return error
        finally:
            failure = error = None  # since CPython 3.12 the frame of an error keeps its callers' frames

    def _hook(
        self, entry: Entry[C], step: Step, hook: Callable[[Any], object] | None, until: float | None
    ) -> Flow[Exception | None]:
        """Call a function of the user's with a connection; return its error.

        A transaction that it leaves open is committed: a SET is undone by a rollback, and whoever wrote
        it meant it.  What the function does cannot be limited, but at *until* its connection is cut, and
        so it ends if it waits for the server.
        """
        if hook is None:
            return None
        call = self._call_hook(entry.conn, entry.baseline, step, hook)
        late = f"{step.value} did not return in time: its connection was cut"
        return (yield from self._in_time(call, until, entry.slot, late))

    def _call_hook(
        self, conn: C, baseline: object, step: Step, hook: Callable[[Any], object]
    ) -> Flow[Exception | None]:
        """Call a hook and commit what it has left open; return its error.

        It gets no entry: the error is the borrower's, and its traceback would own the entry.
        """
        adapter = self._adapter()
        try:
            if step is Step.ON_CONNECT:
                # An empty context: what a task or request has set must not leak into a connection of
                # everybody.
                yield Call(step, Context().run, hook, conn)
            else:
                yield Call(step, hook, conn)
            verdict = adapter.verdict(conn, baseline)
            if verdict == Verdict.DIRTY:
                yield Call(Step.COMMIT, adapter.commit, conn)
                verdict = self._judged(conn, baseline, adapter)
        except Exception as exc:
            return exc
        if verdict > Verdict.ALTERED:
            return self._error(PoolMisuse, f"{step.value} left the connection {verdict.name.lower()}")
        return None

    def _left(self, until: float | None) -> float | None:
        """Return the seconds left until an instant."""
        return None if until is None else max(0.0, until - self._clock())

    # -- the adapter ---------------------------------------------------------------------------------

    def _adapter(self) -> Adapter[C]:
        assert self.adapter is not None, "there is a connection, so its adapter is known"
        return self.adapter

    def _check_parts(self, adapter: Adapter[C]) -> None:
        """Refuse a reset policy with parts that a driver's adapter does not know."""
        unknown = [part for part in self._parts if part not in adapter.parts]
        if unknown:
            known = ", ".join(sorted(adapter.parts)) or "none; give a callable instead"
            raise PoolMisuse(
                f"reset: the adapter for {adapter.name} does not know {', '.join(unknown)}; it knows: {known}"
            )

    def _is_dead(self, exc: Exception, adapter: Adapter[C]) -> bool:
        """Tell whether an error is the connection's own fault."""
        return self._fault(exc, adapter) is Fault.DEAD

    def _fault(self, exc: Exception, adapter: Adapter[C], *, dialling: bool = False) -> Fault:
        """Ask the adapter what kind of fault an error is."""
        try:
            return adapter.fault(exc, dialling=dialling)
        except Exception as error:
            exc.add_note(f"and its adapter could not say what kind of fault that is: {error!r}")
            return Fault.ORDINARY

    def _settled(self, entry: Entry[C], adapter: Adapter[C]) -> Verdict:
        """Return the verdict on an entry after an end of its transaction that the server confirmed."""
        return self._judged(entry.conn, entry.baseline, adapter)

    def _judged(self, conn: C, baseline: object, adapter: Adapter[C]) -> Verdict:
        """Return the verdict after a COMMIT, ROLLBACK or reset that the server has confirmed.

        An adapter that cannot see transactions answers DIRTY to the end of time; the server's answer
        is proof enough then.
        """
        verdict = adapter.verdict(conn, baseline)
        if verdict == Verdict.DIRTY and not adapter.sees_transactions:
            return Verdict.CLEAN
        return verdict

    def _abort(self, conn: Any) -> None:
        """Close a connection that would not be closed politely."""
        try:
            self._adapter().abort(conn)
        except Exception:
            pass  # all that can be done is done: its socket goes with it
