"""Opening and closing connections, and what time asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context
from math import inf
from typing import Any, TypeGuard, TypeVar

from ..adapter import Adapter, Credentials, Fault
from ..behind import PRESETS
from ..errors import PoolError, PoolMisuse, PoolUnavailable
from ..stats import Reason
from . import upkeep
from .core import Core
from .freshness import Freshness
from .operations import Call, Flow, Park, Report, Start, Step, Watch
from .records import Entry, People, Refusal, Slot, Waiter

C = TypeVar("C")


class Opening(Freshness[C]):
    """How a pool comes by connections, and how it parts with them."""

    def __init__(
        self,
        core: Core[C],
        name: str,
        clock: Callable[[], float],
        people: People,
        slept: Callable[[], float],
        chance: Callable[[], float],
        waiter: Callable[[], Waiter],
        find: Callable[[object, Callable[[], Any]], Adapter[Any] | None],
    ) -> None:
        super().__init__(core, name, clock, people, slept)
        self._chance = chance
        self._waiter = waiter
        self._find = find  # the adapter, by the first connection or the first exception
        self._connect: Callable[[], C] | None = None
        self._told = False  # that the server's own limit is shorter than ours

    def _use(self, source: object) -> None:
        """Take the connections from an adapter, or from a callable."""
        if _is_adapter(source):
            self._check_parts(source)
            self.adapter = source
        elif callable(source) and not hasattr(source, "commit") and not hasattr(source, "verdict"):
            self._connect = source  # its first connection, or its first exception, names the driver
        else:
            kind = (
                f"the class {source.__name__}" if isinstance(source, type) else f"a {type(source).__name__}"
            )
            url = "; for a URL there is connpool.create_pool()" if isinstance(source, str) else ""
            raise TypeError(
                f"a pool needs an adapter, or a callable that returns a connection; got {kind}{url}"
            )
        if self.core.options.credentials is not None and not (self.adapter and self.adapter.bounded):
            raise TypeError(
                "credentials= needs an adapter made of parameters or a URL; a callable finds its own"
            )

    # -- what is to be done --------------------------------------------------------------------------

    def follow_up(self, waiter: Waiter | None = None, deadline: float | None = None) -> Flow[None]:
        """Do what the core says is to be done: close what was discarded, dial for those who wait.

        Helpers do it.  Where none can be had it is done here, but for a *waiter* only until it has an
        outcome or its *deadline* has passed.
        """
        while (slot := self.core.next_to_close(self._clock())) is not None:
            if not (yield Start(self._work(None, slot))):
                yield from self._close(slot)
                if self._hurried(waiter, deadline):
                    return
        while (entry := self._plan()) is not None:
            if not (yield Start(self._work(entry, None))):
                yield from self._open(entry)
                if self._hurried(waiter, deadline):
                    return
            del entry  # the dial's from here on
        yield from self._tell_notes()
        yield Watch(self.core.due(self._clock()))

    def _hurried(self, waiter: Waiter | None, deadline: float | None) -> bool:
        if waiter is None:
            return False
        return waiter.outcome is not None or (deadline is not None and self._clock() >= deadline)

    def upkeep(self) -> Flow[None]:
        """Do what time asks for: prune, give up what is overdue, dial again, keep `min_idle`."""
        self._wake_up()
        for conn in self.core.overstayed(self._clock()):
            self._abort(conn)
        self.core.prune(self._clock())
        yield from self._look_at_borrowers()
        while (entry := self.core.next_to_ping(self._clock())) is not None:
            if not (yield Start(self._keep_alive(entry))):
                yield from self._keep_alive(entry)
            del entry
        yield from self.follow_up()

    def _keep_alive(self, entry: Entry[C]) -> Flow[None]:
        """Ask the server about an idle connection: both ends, and what is between them, remember it then."""
        core, adapter, sent = self.core, self._adapter(), self._clock()
        reason = None
        try:
            if entry.pending is not None:
                reason = yield from self._collect(entry, adapter, None)
            if reason is None:
                limit = core.options.reset_timeout
                yield Call(Step.PING, adapter.ping, entry.conn, limit)
                self._prove(entry, sent)
        except Exception:
            reason = self._silence(sent, core.options.reset_timeout)
        except BaseException:
            core.retire(entry, Reason.BROKEN, self._clock())
            raise
        if reason is None:
            core.give_back(entry)
        else:
            core.retire(entry, reason, self._clock())
        del entry
        yield from self.follow_up()

    def _work(self, entry: Entry[C] | None, slot: Slot | None) -> Flow[None]:
        """Do one thing, and then what else there is to do: the life of a helper.

        It starts no further helpers, so that there are never more than there are things to do.
        """
        while entry is not None or slot is not None:
            if entry is not None:
                yield from self._open(entry)
            if slot is not None:
                yield from self._close(slot)
            entry, slot = self._plan(), None
            if entry is None:
                slot = self.core.next_to_close(self._clock())
            yield Watch(self.core.due(self._clock()))

    def _plan(self) -> Entry[C] | None:
        now = self._clock()
        bounded = self.adapter is not None and self.adapter.bounded
        return self.core.plan(now, upkeep.dial_until(now, self.core.options.connect_timeout, bounded=bounded))

    # -- opening -------------------------------------------------------------------------------------

    def _open(self, entry: Entry[C]) -> Flow[None]:
        """Dial, adopt, prepare and deliver one connection."""
        core, slot = self.core, entry.slot
        began = self._clock()
        failure: Exception | None = None
        try:
            until = inf
            if self._connect is not None:
                conn = yield Call(Step.CONNECT, self._connect)
            else:
                conn, until = yield from self._dial(slot, began)
            if core.knows(conn):
                raise self._error(PoolMisuse, "connect returned a connection that the pool has already")
            slot.conn = entry.conn = conn  # from here on it is closed if this flow ends early
            adapter = self.adapter or self._decide(conn)
            entry.baseline = yield Call(Step.ADOPT, adapter.adopt, conn)
            if core.options.behind is not None and (unprepare := getattr(adapter, "unprepare", None)):
                yield Call(Step.ADOPT, unprepare, conn)
                entry.baseline = yield Call(Step.ADOPT, adapter.adopt, conn)
            entry.verdict = adapter.verdict
            yield from self._examine(entry, adapter, began)
            if self._parts:
                self._check_parts(adapter)
                timeout = core.options.connect_timeout
                entry.memory = yield Call(Step.REMEMBER, adapter.remember, conn, self._parts, timeout)
            if core.options.on_connect is not None:
                failure = yield from self._hook(entry, Step.ON_CONNECT, core.options.on_connect, None)
                if failure is not None:
                    raise failure
                # What the hook has set is what the connection comes back to.
                entry.baseline = yield Call(Step.ADOPT, adapter.adopt, conn)
            now = entry.proven_at = self._clock()
            entry.expires = min(until, upkeep.expiry(now, core.options.max_lifetime, self._chance()))
            entry.ping_every = upkeep.expiry(0.0, core.options.keepalive, self._chance())
            self._rest(entry, now)
            core.opened(entry, now - began)
        except BaseException as exc:
            failure = None  # else its traceback and this frame would keep each other alive
            _strip(exc)
            fault = self._dial_fault(exc)
            fatal = fault is Fault.AUTH or isinstance(exc, PoolMisuse)
            core.dial_failed(entry, exc, fault=fault, fatal=fatal, now=self._clock(), chance=self._chance())
            if not isinstance(exc, Exception):
                raise

    def _dial(self, slot: Slot, began: float) -> Flow[tuple[C, float]]:
        """Have the adapter connect; return the connection, and until when its credentials hold."""
        adapter, provider = self._adapter(), self.core.options.credentials
        if provider is None:
            conn = yield Call(Step.CONNECT, adapter.connect, self._dial_limit(began))
            return conn, inf
        refused = False
        while True:
            found = yield from self._ask(slot, provider)
            until = inf if found.expires_in is None else self._clock() + found.expires_in
            try:
                limit = self._dial_limit(began)
                conn = yield Call(Step.CONNECT, adapter.connect, limit, found.parameters)
            except Exception as exc:
                # What was asked for may have changed since; if it has not, it is wrong.
                if refused or self._fault(exc, adapter, dialling=True) is not Fault.AUTH:
                    raise
                refused = True
            else:
                return conn, until

    def _dial_limit(self, began: float) -> float | None:
        """Return what is left of `connect_timeout`."""
        timeout = self.core.options.connect_timeout
        return None if timeout is None else max(0.0, began + timeout - self._clock())

    def _ask(self, slot: Slot, provider: Callable[[], object]) -> Flow[Credentials]:
        """Ask for credentials; dials at the same time share one answer."""
        core, waiter = self.core, self._waiter()
        while not core.ask(slot, waiter):
            yield Park(waiter, None)
            if isinstance(waiter.outcome, Credentials):
                return waiter.outcome
            if waiter.outcome is not None:
                waiter = self._waiter()  # whoever asked has failed; everybody finds out for himself
        found: object = Refusal.LEFT
        try:
            found = yield Call(Step.CREDENTIALS, provider)
            if isinstance(found, Mapping):
                found = Credentials(found)
            if not isinstance(found, Credentials):
                what = type(found).__name__  # never its value
                raise self._error(
                    PoolMisuse, f"credentials= returned a {what}, no mapping and no Credentials"
                )
        finally:
            core.answered(slot, found)
        return found

    def _examine(self, entry: Entry[C], adapter: Adapter[C], began: float) -> Flow[None]:
        """Ask a new connection's server what it is like."""
        options = self.core.options
        if options.behind is not None:  # the answers would be about some session or other
            seconds = PRESETS[options.behind].idle_limit
        else:
            if options.require is not None:
                writable = yield Call(Step.WRITABLE, adapter.writable, entry.conn, self._dial_limit(began))
                if not writable:
                    raise self._error(
                        PoolUnavailable, f"the server takes no writes, and require={options.require!r}"
                    )
            seconds = yield Call(Step.IDLE_LIMIT, adapter.idle_limit, entry.conn, self._dial_limit(began))
        if seconds is None:
            return
        entry.idle_limit = seconds * upkeep.SERVER_MARGIN
        if not self._told and (options.idle_timeout is None or options.idle_timeout > entry.idle_limit):
            self._told = True
            yield from self.tell(
                "server_limit",
                f"idle connections are closed after {entry.idle_limit:g} s in place of "
                f"idle_timeout={options.idle_timeout!r}: their server ends them after {seconds:g} s",
                seconds=seconds,
            )

    def _decide(self, first: object) -> Adapter[C]:
        """Choose the adapter by the first connection."""
        assert self._connect is not None, "an adapter that was given is known from the beginning"
        adapter = self._find(first, self._connect)
        assert adapter is not None, "only an exception can leave the driver unknown"
        self.adapter = adapter  # known from here on: what it refuses is closed by it
        return adapter

    def _dial_fault(self, exc: BaseException) -> Fault:
        """Return what kind of fault a failed dial is; it may be what names the driver."""
        if not isinstance(exc, Exception) or isinstance(exc, PoolError):
            return Fault.ORDINARY
        try:
            if self.adapter is None and self._connect is not None:
                self.adapter = self._find(exc, self._connect)
        except Exception as error:
            exc.add_note(f"and no adapter was found for it: {error!r}")
        return Fault.ORDINARY if self.adapter is None else self._fault(exc, self.adapter, dialling=True)

    # -- closing -------------------------------------------------------------------------------------

    def _close(self, slot: Slot) -> Flow[None]:
        """Close one connection and free its place."""
        conn, adapter = slot.conn, self.adapter
        if conn is not None and adapter is not None:
            hook = self.core.options.on_close
            try:
                if hook is not None and slot.opened:
                    try:
                        yield Call(Step.ON_CLOSE, Context().run, hook, conn)
                    except Exception as exc:
                        yield Report(exc, hook)
                yield Call(Step.CLOSE, adapter.close, conn, upkeep.CLOSE_GRACE)
            except BaseException as exc:
                self._abort(conn)
                if not isinstance(exc, Exception):
                    self.core.freed(slot)
                    raise
        self.core.freed(slot)


def _is_adapter(source: object) -> TypeGuard[Adapter[Any]]:
    return hasattr(source, "verdict") and not isinstance(source, type)


def _strip(error: BaseException) -> None:
    """Take the frames from an error that the pool keeps, and note where it came from.

    They lead to their callers' frames: where a caller dials for himself, one of these is the very frame
    that has his entry later on, and his entry would never be lost.
    """
    found: BaseException | None = error
    while found is not None:
        traceback, found.__traceback__ = found.__traceback__, None
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        if traceback is not None and found is error:
            code = traceback.tb_frame.f_code
            error.add_note(f"raised in {code.co_qualname}, {code.co_filename}:{traceback.tb_lineno}")
        found = found.__cause__ or found.__context__
