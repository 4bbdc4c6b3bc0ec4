"""`AsyncConnectionPool`: asyncio tasks run the flows.

The twin of `pool`, whose names, rules and order of steps it has; what differs is said where it stands.
"""

from __future__ import annotations

import asyncio
import os
import random
import weakref
from asyncio import AbstractEventLoop, _get_running_loop
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from math import inf
from sys import _getframe
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypeVar, cast

from .adapter import AsyncAdapter, Credentials, async_adapter_for, async_adapter_for_url
from .advice import Advice, advise
from .async_leases import BareLease, Lease, Transaction
from .behind import Proxy
from .deadlines import limits
from .description import Description, describe
from .engine.core import Core
from .engine.flows import Flows
from .engine.operations import Flow
from .engine.records import Entry
from .engine.upkeep import CLOSE_GRACE
from .errors import PoolMisuse
from .events import Event
from .options import DEFAULT, Default, PoolOptions, check_spread, check_timeout, ping_after_of
from .pool import _numbers
from .reset import Policy
from .stats import PoolStats
from .tasks import TaskRunner, TaskWaiter, tasks
from .threads import clock, slept

C = TypeVar("C")
R = TypeVar("R")

Provided: TypeAlias = Mapping[str, Any] | Credentials


class AsyncConnectionPool(Generic[C]):
    """A fair, bounded, self-healing pool of connections for asyncio tasks.

    The constructor opens nothing and starts nothing; connections are opened when they are needed.  The
    pool belongs to the event loop that uses it first; when that is closed, the next one has it, and finds
    it empty.  All arguments but the first are keyword-only, with the names, defaults and meanings that they
    have for `ConnectionPool`; here is what differs.

    Args:
        source: An adapter for asyncio, or a callable without arguments that returns, or is a coroutine
            function for, a new connection.
        credentials: A function, or a coroutine function.
        on_connect: A function, or a coroutine function, like all hooks.  It runs in a task of the pool's.
        on_acquire: Runs in the borrower's task.
        on_release: Runs in the borrower's task; in one of the pool's, with a copy of the borrower's
            context, if the borrower is being cancelled.
        debug: Must be False: connections of asyncio drivers cannot be guarded.

    Raises:
        TypeError, ValueError: An option breaks its rule; the message names option, value and rule.
    """

    _apart: AsyncConnectionPool[C] | None = None  # made by `dedicated`; its connections are lent once
    _loop: AbstractEventLoop | None = None

    def __init__(
        self,
        source: AsyncAdapter[C] | Callable[[], Awaitable[C]],
        /,
        *,
        min_idle: int = 0,
        max_size: int = 10,
        acquire_timeout: float | None = 10.0,
        max_waiting: int | None = 1000,
        max_connecting: int = 2,
        connect_timeout: float | None = 10.0,
        max_lifetime: float | None = 1800.0,
        idle_timeout: float | None = 600.0,
        probe_after: float | None = 0.5,
        ping_after: float | Default | None = DEFAULT,
        keepalive: float | None = None,
        max_uses: int | None = None,
        reset: Policy = "rollback",
        reset_timeout: float | None = 5.0,
        commit_timeout: float | None = None,
        credentials: Callable[[], Provided | Awaitable[Provided]] | None = None,
        require: Literal["read-write"] | None = None,
        behind: Proxy | None = None,
        on_connect: Callable[[C], object] | None = None,
        on_acquire: Callable[[C], object] | None = None,
        on_release: Callable[[C], object] | None = None,
        on_close: Callable[[C], object] | None = None,
        max_dedicated: int = 4,
        nested: Literal["warn", "forbid", "allow"] = "warn",
        warn_after: float | None = 60.0,
        observers: Sequence[Callable[[Event], object]] = (),
        debug: bool = False,
        name: str | None = None,
    ) -> None:
        if debug:
            raise ValueError(f"debug={debug!r}: must be False for AsyncConnectionPool")
        self._options = options = PoolOptions(
            min_idle=min_idle,
            max_size=max_size,
            acquire_timeout=acquire_timeout,
            max_waiting=max_waiting,
            max_connecting=max_connecting,
            connect_timeout=connect_timeout,
            max_lifetime=max_lifetime,
            idle_timeout=idle_timeout,
            probe_after=probe_after,
            ping_after=ping_after_of(ping_after, behind),
            keepalive=keepalive,
            max_uses=max_uses,
            reset=reset,
            reset_timeout=reset_timeout,
            commit_timeout=commit_timeout,
            credentials=credentials,
            require=require,
            behind=behind,
            on_connect=on_connect,
            on_acquire=on_acquire,
            on_release=on_release,
            on_close=on_close,
            max_dedicated=max_dedicated,
            nested=nested,
            warn_after=warn_after,
            observers=observers,
            debug=debug,
            name=name or f"pool-{next(_numbers)}",
        )
        assert options.name is not None
        self.name: Final[str] = options.name
        self._core: Core[C] = Core(options)
        self._attach(self._core)
        self._flows: Flows[C] = Flows(
            self._core,
            source,
            name=self.name,
            clock=clock,
            slept=slept,
            chance=random.random,
            waiter=TaskWaiter,
            people=tasks,
            # Flows call what may wait through their runtime alone, so either kind of adapter will do.
            find=cast(Any, async_adapter_for),
        )
        # For ever, if each return is a flow's: the warm path then finds none that is within its lifetime.
        self._look_after = self._flows.look_after if self._flows.warm else inf
        self._source = source
        self._runner = TaskRunner(self._core, self._flows.follow_up, self._flows.upkeep, options.observers)
        weakref.finalize(self, _drop, self._flows, self._runner)
        _pools.add(self)

    def _begin_anew(self) -> Core[C]:
        """Go on with nothing open; return the old core."""
        old = self._core
        core: Core[C] = Core(replace(self._options, max_size=old.max_size, min_idle=old.min_idle))
        if old.closed:
            core.shut()
        elif old.suspended:
            core.suspend()
        self._core, self._loop = core, None
        self._attach(core)
        self._runner.begin_anew(core)
        return old

    def _attach(self, core: Core[C]) -> None:
        self._idle = core.idle  # the same objects, one step nearer to the warm path
        # A pool that looks at every borrower sends them all to the flows, as if somebody waited.
        self._waiters = core.waiters if self._options.nested != "forbid" else (None,)

    def _bind(self) -> None:
        """Belong to the running loop, and forget what belonged to one that is closed."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise PoolMisuse(
                    f"pool {self.name!r} belongs to the event loop that used it first, which is not closed; "
                    "each loop needs a pool of its own"
                )
            # Nothing can be awaited there any more: idle connections are aborted, lent ones disconnected.
            self._begin_anew()
            self._flows.cut()
            self._flows.inherit(self._core)
        self._loop = self._runner.loop = loop

    # -- borrowing -----------------------------------------------------------------------------------

    def connection(self, timeout: float | Default | None = DEFAULT) -> Lease[C]:
        """Lend a connection for one ``with`` block.

        ``async with``, here; and what `ConnectionPool.connection` says holds in every other respect.  A
        task that is cancelled while it waits leaves the queue at once, and loses nothing.

        Args:
            timeout: Seconds to wait at most, in place of `acquire_timeout`.  0: an idle connection at
                once.  ``None``: no limit.  A surrounding `deadline` caps it.

        Raises:
            PoolTimeout: Nothing became free in time.
            PoolOverloaded: `max_waiting` callers wait already.
            PoolUnavailable: No connection is open and none could be opened; the cause is the driver's.
            PoolClosed: The pool is closed.
            PoolMisuse: The block's transaction had failed, and its error was caught inside the block; or
                the pool belongs to another event loop.
        """
        if timeout is not DEFAULT:
            check_timeout("timeout", timeout)
        # -- warm path: a lease has no __init__, whose frame would cost a tenth of the whole cycle
        lease: Lease[C] = Lease()
        lease._pool = self
        lease._timeout = timeout
        lease._entry = None
        return lease
        # -- end of warm path

    def transaction(self, timeout: float | Default | None = DEFAULT) -> Lease[C]:
        """Lend a connection for one ``with`` block that is one transaction.

        Like `connection`, with an explicit BEGIN, so that the block is one transaction on an autocommit
        connection too.  Same arguments and errors.
        """
        return self._lease(Transaction(), timeout)

    async def acquire(self, timeout: float | Default | None = DEFAULT) -> C:
        """Lend a connection until `release`: for frameworks; prefer `connection`.

        A connection that becomes garbage without release is closed, and its place is free again, if its
        type can be referenced weakly.  Arguments and errors as `connection`.
        """
        lease = self._lease(BareLease(), timeout)
        await lease.__aenter__()
        lease._note_caller()
        assert lease._entry is not None
        return self._core.lend_bare(lease._entry)

    async def release(self, conn: C, /) -> None:
        """Take back what `acquire` lent.  Never commits: an open transaction is rolled back.

        Raises:
            PoolMisuse: *conn* is not on loan: released twice, lent by `connection`, or another pool's.
        """
        self._bind()
        entry = self._core.take_bare(conn)
        if entry is None:
            raise PoolMisuse(f"release(): {self._core.whereabouts(conn)} (pool {self.name!r})")
        lease = self._lease(BareLease(), DEFAULT)
        lease._entry = entry
        del entry
        await lease.__aexit__(None, None, None)

    def detach(self, conn: C, /) -> C:
        """Take a lent connection out of the pool for good and return it; closing it is yours now.

        Its place in the pool is free at once.  A ``with`` block it was lent by neither commits nor
        rolls back any more.

        Raises:
            PoolMisuse: *conn* is not on loan from this pool.
        """
        if not self._core.detach(conn):
            raise PoolMisuse(f"detach(): {self._core.whereabouts(conn)} (pool {self.name!r})")
        self._runner.follow_up()
        return conn

    def dedicated(self, timeout: float | Default | None = DEFAULT) -> Lease[C]:
        """Lend a new connection that is nobody else's before or after, for one ``with`` block.

        For what lives in a session for long: LISTEN, session locks, replication.  It is opened for the
        block and closed at its end, takes no place of `max_size`, and there are `max_dedicated` at most.
        The block ends as that of `connection`.  Arguments and errors as `connection`.
        """
        apart = self._apart
        if apart is None:
            if not self._options.max_dedicated:
                raise PoolMisuse(f"dedicated(): max_dedicated=0 (pool {self.name!r})")
            apart = self._apart = AsyncConnectionPool(self._source, **self._options.apart())
            if self._core.closed:
                apart._core.shut()
            elif self._core.suspended:
                apart.suspend()
        return apart.connection(timeout)

    # -- the pool as a whole -------------------------------------------------------------------------

    async def wait_ready(self, timeout: float | None = 30.0) -> None:
        """Open `min_idle` connections, but at least one, and return when they are there.

        Waits for a server that is still starting; fails at once when it refuses the credentials.

        Args:
            timeout: Seconds to wait at most.  ``None``: no limit.

        Raises:
            PoolUnavailable: Not ready in time; the cause is the last connect error.
            PoolClosed: The pool is closed.
        """
        check_timeout("timeout", timeout)
        await self._run(self._flows.ready(limits(timeout)[1]))

    def evict(self, *, over: float = 0.0) -> None:
        """Replace every connection: idle ones now, those in use when they come back.

        For new credentials, certificates or addresses.  A dial that had begun before does not survive
        it either.  Replacements are opened at once where `max_size` leaves room, the others as room comes.
        It waits for nothing, and may be called from any thread, as may all that is no coroutine.

        Args:
            over: Seconds over which to spread it: each connection's lifetime ends within them, one after
                the other, so that neither callers nor the server feel it.  0: at once.

        Raises:
            TypeError, ValueError: *over* is no number of seconds.
        """
        check_spread("over", over)
        self._core.evict(clock(), over)
        self._runner.follow_up()
        if self._apart is not None:
            self._apart.evict(over=over)

    async def clear(self) -> None:
        """Close what is idle now, and what is in use when it comes back.

        Unlike `evict` it opens nothing in their place before somebody asks, but for `min_idle`, and it
        waits a moment until the idle ones are closed: for a database that is about to be dropped.  The
        pool serves on.
        """
        await self._run(self._flows.clear(clock() + CLOSE_GRACE))
        if self._apart is not None:
            await self._apart.clear()

    def suspend(self) -> None:
        """Serve nobody until `resume`: who acquires waits, within his deadline.

        For a short maintenance of the server.  What is lent stays with its borrowers, and nothing is
        opened; `evict` replaces what has not survived.
        """
        self._core.suspend()
        if self._apart is not None:
            self._apart.suspend()

    def resume(self) -> None:
        """Serve callers again, those that wait first."""
        self._core.resume()
        self._runner.follow_up()
        if self._apart is not None:
            self._apart.resume()

    def resize(self, *, max_size: int | None = None, min_idle: int | None = None) -> None:
        """Change the bounds of the running pool.

        What exceeds a smaller `max_size` leaves as it comes back; nobody's connection is taken away.

        Args:
            max_size: As in the constructor; ``None``: unchanged.
            min_idle: As in the constructor; ``None``: unchanged.

        Raises:
            TypeError, ValueError: As the constructor.
        """
        core = self._core
        bounds = PoolOptions(
            max_size=core.max_size if max_size is None else max_size,
            min_idle=core.min_idle if min_idle is None else min_idle,
        )
        core.resize(bounds.max_size, bounds.min_idle)
        self._runner.follow_up()

    def stats(self, *, reset_peaks: bool = True) -> PoolStats:
        """Return a consistent snapshot of all figures.

        Args:
            reset_peaks: ``False`` leaves the peaks to others, as who reads at regular intervals should.
        """
        dedicated = 0 if self._apart is None else self._apart.stats().size
        return self._core.snapshot(self.name, clock(), dedicated=dedicated, reading=reset_peaks)

    def describe(self) -> Description:
        """Return what the pool is: options, adapter, the server's limits, all that it says to the server.

        As text, with ``print(pool.describe())``, it is what a question about a pool should come with.
        """
        return describe(self.name, self._core, self._flows.adapter, self._source)

    def advise(self, since: PoolStats | None = None) -> Advice:
        """Say what size the recorded figures ask for, and whether another size would help at all.

        Little's law on the time that connections were held and waited for.  It looks at the time since
        *since*, an earlier snapshot, such as one from before the busy hour; an idle night would thin
        the average out.

        Args:
            since: An earlier result of `stats`.  ``None``: from the first acquire on.
        """
        snapshot = self._core.snapshot(self.name, clock())
        return advise(snapshot, since, self._flows.holders())

    async def close(self, timeout: float | None = 5.0) -> None:
        """Close the pool: callers that wait fail at once, idle connections are closed, lent ones awaited.

        A connection that is still lent after *timeout* is cut: its borrower's next word to the server fails.
        Closing twice is harmless.  No task of the pool is left when it returns; a process or loop that ends
        without it leaves the server to find out.

        Args:
            timeout: Seconds to wait for lent connections.  0: do not wait.  ``None``: no limit.
        """
        check_timeout("timeout", timeout)
        deadline = None if timeout is None else clock() + timeout
        self._bind()
        self._core.shut()
        if self._apart is not None:
            await self._apart.close(timeout)
        await self._run(self._flows.close(deadline, cut=True))
        await self._runner.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "closed" if self._core.closed else self._core.brief()
        return f"<{type(self).__name__} {self.name!r}: {state}>"

    # -- behind the lease ----------------------------------------------------------------------------

    def _lease(self, lease: Lease[C], timeout: float | Default | None) -> Lease[C]:
        if timeout is not DEFAULT:
            check_timeout("timeout", timeout)
        lease._pool, lease._timeout, lease._entry = self, timeout, None
        return lease

    async def _enter(self, lease: Lease[C], candidate: Entry[C] | None) -> C:
        """Acquire by the flow: nothing idle, somebody waiting, or a candidate to look at."""
        if candidate is None and lease._entry is not None:
            raise PoolMisuse(
                f"a lease serves one `with` block at a time; call connection() again (pool {self.name!r})"
            )
        lease._entry = None  # the flow owns it while it looks
        timeout = self._options.acquire_timeout if isinstance(lease._timeout, Default) else lease._timeout
        timeout, deadline = limits(timeout)
        frame = _getframe(2)
        waiter = self._flows.waiter((frame.f_code, frame.f_lasti))
        # The flow has noted its end, and here its owner is noted: nothing can be cancelled in between.
        entry = lease._entry = await self._run(self._flows.acquire(candidate, timeout, deadline, waiter))
        return entry.conn

    async def _begin(self, lease: Lease[C]) -> None:
        assert lease._entry is not None
        await self._run(self._flows.begin(lease._entry.slot, lease._entry.conn))

    async def _exit(self, lease: Lease[C], exc: BaseException | None) -> None:
        """Release by the flow: a transaction, an exception, an expiry, or a broken connection.

        Whoever is cancelled while he gives a connection back leaves at once, and the connection is closed:
        nobody knows what its server had heard.  Frameworks cancel a task again and again until it ends,
        though, and that would close a healthy connection for every client that hangs up.  So what a task
        gives back that is being cancelled already comes back in a task of the pool's.
        """
        entry, lease._entry = lease._entry, None
        if entry is None:
            raise PoolMisuse(f"this lease is not on loan: its block has ended already (pool {self.name!r})")
        if self._core.inside() or _get_running_loop() is not self._loop:
            # The collector has closed a coroutine that sat in its block, in the middle of our own critical
            # section, or after its loop was closed.  The connection is closed by whoever comes next.
            self._core.lost.append(entry)
            if exc is None:
                self._bind()  # another loop runs: nothing was committed, and that must not go unnoticed
            return
        flow = self._flows.release(entry, exc, lease._ending)
        closed = isinstance(exc, GeneratorExit)  # its coroutine, which must not wait then
        if closed or ((task := asyncio.current_task()) is not None and task.cancelling()):
            entry.slot.owner = None  # who leaves before it is back may borrow again, and waits for nobody's
            del entry
            if closed:
                self._runner.start(flow, copy_context())
            else:
                await self._runner.finish(flow)
        else:
            del entry
            await self._run(flow)

    def _run(self, flow: Flow[R]) -> Coroutine[Any, Any, R]:
        self._bind()
        return self._runner.run(flow)


def _drop(flows: Flows[C], runner: TaskRunner) -> None:
    """Close what a pool that is garbage, or a process that ends, has left idle; nothing can be awaited."""
    runner.stop()
    if not flows.core.closed and not flows.core.inside():
        flows.cut()


_pools: weakref.WeakSet[AsyncConnectionPool[Any]] = weakref.WeakSet()
_inherited: list[object] = []


def _begin_anew_in_child() -> None:
    """Begin anew in a forked child, as `ConnectionPool` does: what there is belongs to the parent."""
    for pool in list(_pools):
        _inherited.append(pool._begin_anew())
        _inherited.extend(pool._flows.inherit(pool._core))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_child)


def create_async_pool(url: str, /, **options: Any) -> AsyncConnectionPool[Any]:
    """Make a pool for asyncio from a URL; its scheme chooses the adapter.

    As `create_pool`.  A driver other than the usual one for a server is named in the scheme:
    ``postgresql+asyncpg://``.

    Args:
        url: Where to connect.  Query parameters go to the driver.
        options: As `AsyncConnectionPool`.

    Raises:
        PoolMisuse: The scheme, or the driver it names, is unknown.
        TypeError, ValueError: An option breaks its rule.
    """
    return AsyncConnectionPool(async_adapter_for_url(url), **options)
