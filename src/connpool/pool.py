"""`ConnectionPool`: threads run the flows.  The warm path stands in `leases`; all else is delegated."""

from __future__ import annotations

import os
import random
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from math import inf
from sys import _getframe
from typing import Any, Final, Generic, Literal, Self, TypeVar, cast

from .adapter import Adapter, Credentials, adapter_for_url
from .advice import Advice, advise
from .behind import Proxy
from .borrowers import threads
from .deadlines import limits
from .description import Description, describe
from .engine.core import Core
from .engine.flows import Flows
from .engine.operations import Flow
from .engine.records import Entry
from .engine.upkeep import CLOSE_GRACE
from .errors import PoolMisuse
from .events import WARNING, Event
from .guard import Loan, guard, loan_of, unwrap
from .leases import BareLease, GuardedBareLease, GuardedLease, GuardedTransaction, Lease, Transaction, Turns
from .options import DEFAULT, Default, PoolOptions, check_spread, check_timeout, ping_after_of
from .reset import Policy
from .stats import PoolStats
from .threads import ThreadRunner, ThreadWaiter, clock, slept

C = TypeVar("C")
R = TypeVar("R")

_numbers = count(1)


class ConnectionPool(Generic[C]):
    """A fair, bounded, self-healing pool of connections for threads.

    The constructor opens nothing and starts nothing; connections are opened when they are needed.  All
    arguments but the first are keyword-only; seconds are floats; ``None`` means unlimited or never.

    Args:
        source: An adapter, such as ``PsycopgAdapter("dbname=app")``, or a callable without arguments that
            returns a new connection.  A callable's first connection, or first exception, tells which
            driver it is.  With an adapter the pool can bound each dial; a callable cannot be interrupted,
            only given up.  If it, or `on_connect`, leads back to the pool, only `close` ends the pool.
        min_idle: Connections kept idle and ready, opened in the background.  0 opens on demand only.
        max_size: The most connections at any time, whatever their state.
        acquire_timeout: Seconds an acquire may take: queueing, dialling and checking together.  0: an idle
            connection at once or an error.  ``None``: no limit.
        max_waiting: Callers that may wait for a connection in use at the same time.  0: nobody.
            ``None``: no bound.
        max_connecting: Dials at the same time.
        connect_timeout: Seconds one dial may take.  ``None``: no limit.
        max_lifetime: Seconds after which a connection is replaced, less a random tenth.  ``None``: never.
        idle_timeout: Seconds after which a connection that nobody needed is closed.  ``None``: never.
        probe_after: Seconds idle after which the socket is looked at before lending, without a round
            trip.  0: every time.  ``None``: never.
        ping_after: Seconds idle after which one round trip must succeed before lending.  0: every time.
            ``None``: never.  `DEFAULT`: 30, but never with `behind`.
        keepalive: Seconds without a word after which an idle connection's server is pinged, off the callers'
            path.  ``None``: never.
        max_uses: Times a connection is lent before it is replaced.  ``None``: any number.
        reset: What is done to a connection between two borrowers: ``"rollback"``, ``"full"``, ``"tracked"``,
            ``"none"``, a callable, or a list of callables and parts; see `connpool.reset`.
        reset_timeout: Seconds that a return may take, COMMIT not counted, and a ping.  ``None``: no limit.
        commit_timeout: Seconds that the COMMIT at the end of a block may take; then the connection is cut and
            `PoolTimeout` says that the outcome is unknown.  ``None``: no limit.
        credentials: Asked before each dial for connect parameters, such as a password that changes; returns
            them, or `Credentials` that expire.  It needs an adapter made of parameters or a URL.
        require: ``"read-write"`` refuses a server that takes no writes, such as a standby.
        behind: The proxy in front of the server that shares its sessions between transactions:
            ``"pgbouncer"``, ``"rds-proxy"`` or ``"proxysql"``.  Nothing is asked, reset or prepared then.
        on_connect: Called with each new connection, in the thread that opened it, in an empty context; and
            again after each reset by parts.  A transaction it leaves open is committed, as with any hook.
        on_acquire: Called with each connection before it is lent, in the borrower's thread and context,
            within his deadline.
        on_release: Called with each connection that comes back, in the borrower's thread and context, when
            its transaction has ended and before the reset policy.
        on_close: Called with each connection before the pool closes it, in an empty context.
        max_dedicated: The most connections at any time from `dedicated`, beside `max_size`.
        debug: Lend guarded connections: use after release, or by two threads at once, raises `PoolMisuse`.
        name: The pool's name in messages and metrics.  ``None``: ``pool-1`` and so on.

    Raises:
        TypeError, ValueError: An option breaks its rule; the message names option, value and rule.
    """

    _apart: ConnectionPool[C] | None = None  # made by `dedicated`; its connections are lent once

    def __init__(
        self,
        source: Adapter[C] | Callable[[], C],
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
        credentials: Callable[[], Mapping[str, Any] | Credentials] | None = None,
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
        self._core: Core[C]
        self._begin_anew(Core(options))
        self._flows: Flows[C] = Flows(
            self._core,
            source,
            name=self.name,
            clock=clock,
            slept=slept,
            chance=random.random,
            waiter=ThreadWaiter,
            people=threads,
        )
        # For ever, if each return is a flow's: the warm path then finds none that is within its lifetime.
        self._look_after = self._flows.look_after if self._flows.warm else inf
        hooked = options.on_acquire is not None or options.on_release is not None
        self._look_after_turns = inf if hooked else self._flows.look_after  # of those that owe no reset
        self._debug = debug
        self._source = source
        self._runner = ThreadRunner(self._core, self._flows.follow_up, self._flows.upkeep, options.observers)
        # Also at exit: drivers warn about connections that nobody closed.
        weakref.finalize(self, _drop, self._flows, self._runner)

        _pools.add(self)

    def _begin_anew(self, core: Core[C]) -> None:
        self._core = core
        self._idle = core.idle  # the same objects, one step nearer to the warm path
        # A pool that looks at every borrower sends them all to the flows, as if somebody waited.
        self._waiters = core.waiters if self._options.nested != "forbid" else (None,)

    # -- borrowing -----------------------------------------------------------------------------------

    def connection(self, timeout: float | Default | None = DEFAULT) -> Lease[C]:
        """Lend a connection for one ``with`` block.

        The block's open transaction is committed when it ends, and rolled back when it raises, as
        ``with`` does in psycopg and sqlite3; nothing is sent if the driver proves that none is open.
        Use `transaction` for an explicit BEGIN, `acquire` where a block does not fit.

        Args:
            timeout: Seconds to wait at most, in place of `acquire_timeout`.  0: an idle connection at
                once.  ``None``: no limit.  A surrounding `deadline` caps it.

        Raises:
            PoolTimeout: Nothing became free in time.
            PoolOverloaded: `max_waiting` callers wait already.
            PoolUnavailable: No connection is open and none could be opened; the cause is the driver's.
            PoolClosed: The pool is closed.
            PoolMisuse: The block's transaction had failed, and its error was caught inside the block.
        """
        # -- warm path: a lease has no __init__, whose frame would cost a tenth of the whole cycle
        lease: Lease[C] = GuardedLease() if self._debug else Lease()
        lease._pool = self
        lease._entry = None
        if timeout is not DEFAULT:
            check_timeout("timeout", timeout)
            lease._timeout = cast("float | None", timeout)
        return lease
        # -- end of warm path

    def transaction(self, timeout: float | Default | None = DEFAULT) -> Lease[C]:
        """Lend a connection for one ``with`` block that is one transaction.

        Like `connection`, with an explicit BEGIN, so that the block is one transaction on an autocommit
        connection too.  Same arguments and errors.
        """
        return self._lease(GuardedTransaction() if self._debug else Transaction(), timeout)

    def acquire(self, timeout: float | Default | None = DEFAULT) -> C:
        """Lend a connection until `release`: for frameworks; prefer `connection`.

        A connection that becomes garbage without release is closed, and its place is free again, if its
        type can be referenced weakly; psycopg's and PyMySQL's can.  Arguments and errors as `connection`.
        """
        lease = self._lease(BareLease(), timeout)
        lease.__enter__()
        lease._note_caller()
        assert lease._entry is not None
        conn = self._core.lend_bare(lease._entry)
        return guard(conn, Loan(self.name)) if self._debug else conn

    def release(self, conn: C, /) -> None:
        """Take back what `acquire` lent.  Never commits: an open transaction is rolled back.

        Raises:
            PoolMisuse: *conn* is not on loan: released twice, lent by `connection`, or another pool's.
        """
        conn, loan = self._unguarded("release", conn)
        entry = self._core.take_bare(conn)
        if entry is None:
            raise PoolMisuse(f"release(): {self._core.whereabouts(conn)} (pool {self.name!r})")
        lease: Lease[C]
        if loan is None:
            lease = BareLease()
        else:
            lease = GuardedBareLease()
            lease._loan = loan
        self._lease(lease, DEFAULT)
        lease._entry = entry
        del entry
        lease.__exit__(None, None, None)

    def detach(self, conn: C, /) -> C:
        """Take a lent connection out of the pool for good and return it; closing it is yours now.

        Its place in the pool is free at once.  A ``with`` block it was lent by neither commits nor
        rolls back any more.  What is returned is not guarded, also with `debug`.

        Raises:
            PoolMisuse: *conn* is not on loan from this pool.
        """
        conn, _ = self._unguarded("detach", conn)
        if not self._core.detach(conn):
            raise PoolMisuse(f"detach(): {self._core.whereabouts(conn)} (pool {self.name!r})")
        self._follow_up()
        return conn

    def turns(self, timeout: float | Default | None = DEFAULT) -> Turns[C]:
        """Return a lease for who borrows and gives back many times: for frameworks.

        It is entered and exited in turns, and owns the connection in between: where the lease becomes
        garbage, the connection comes back and is closed, whatever its type.  Same arguments and errors
        as `connection`, at each ``__enter__``.  With `debug` it lends bare connections all the same.
        """
        lease: Turns[C] = Turns()
        self._lease(lease, timeout)
        return lease

    def tell(self, name: str, text: str, *, level: int = WARNING, **fields: object) -> None:
        """Tell the log and the observers of an event, limited as the pool's own are: for integrations.

        Args:
            name: What kind of event: one of `connpool.events`, or a name of your own.
            text: What happened, in one line, without secrets.
            level: As in `logging`.
            fields: What the text is made of.
        """
        self._run(self._flows.tell(name, text, level, **fields))

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
            # Two threads may make one each; both get the same.
            apart = self.__dict__.setdefault("_apart", ConnectionPool(self._source, **self._options.apart()))
            if self._core.closed:  # `close` looks for it once it has said so
                apart.close(0)
            elif self._core.suspended:  # so does `suspend`
                apart.suspend()
        return apart.connection(timeout)

    @property
    def closed(self) -> bool:
        """Whether `close` was called: nothing is lent any more."""
        return self._core.closed

    @property
    def adapter(self) -> Adapter[C] | None:
        """What the pool knows of its driver; ``None`` until a callable's first connection tells."""
        return self._flows.adapter

    @property
    def reset_policy(self) -> str:
        """The policy that was chosen: ``rollback``, ``full``, ``tracked``, ``none``, or ``custom``."""
        return self._options.reset_policy

    @property
    def resets_sessions(self) -> bool:
        """Whether the policy makes a session what it was at connect, whatever was left in it."""
        return self._flows.restores

    # -- the pool as a whole -------------------------------------------------------------------------

    def wait_ready(self, timeout: float | None = 30.0) -> None:
        """Open `min_idle` connections, but at least one, and return when they are there.

        Waits for a server that is still starting; fails at once when it refuses the credentials.

        Args:
            timeout: Seconds to wait at most.  ``None``: no limit.

        Raises:
            PoolUnavailable: Not ready in time; the cause is the last connect error.
            PoolClosed: The pool is closed.
        """
        check_timeout("timeout", timeout)
        self._run(self._flows.ready(limits(timeout)[1]))

    def evict(self, *, over: float = 0.0) -> None:
        """Replace every connection: idle ones now, those in use when they come back.

        For new credentials, certificates or addresses.  A dial that had begun before does not survive
        it either.  Replacements are opened at once where `max_size` leaves room, the others as room comes.

        Args:
            over: Seconds over which to spread it: each connection's lifetime ends within them, one after
                the other, so that neither callers nor the server feel it.  0: at once.

        Raises:
            TypeError, ValueError: *over* is no number of seconds.
        """
        check_spread("over", over)
        self._run(self._flows.evict(over))
        if self._apart is not None:
            self._apart.evict(over=over)

    def clear(self) -> None:
        """Close what is idle now, and what is in use when it comes back.

        Unlike `evict` it opens nothing in their place before somebody asks, but for `min_idle`, and it
        waits a moment until the idle ones are closed: for a database that is about to be dropped.  The
        pool serves on.
        """
        self._run(self._flows.clear(clock() + CLOSE_GRACE))
        if self._apart is not None:
            self._apart.clear()

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
        self._run(self._flows.resume())
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
        self._run(self._flows.resize(bounds.max_size, bounds.min_idle))

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

    def close(self, timeout: float | None = 5.0) -> None:
        """Close the pool: callers that wait fail at once, idle connections are closed, lent ones awaited.

        A connection that is still lent after *timeout* is cut: its borrower's next word to the server fails.
        Closing twice is harmless.

        Args:
            timeout: Seconds to wait for lent connections.  0: do not wait.  ``None``: no limit.
        """
        check_timeout("timeout", timeout)
        deadline = None if timeout is None else clock() + timeout
        self._core.shut()
        apart = self._apart
        if apart is not None:
            apart._core.shut()
            apart._run(apart._flows.close(deadline, cut=True))
        self._run(self._flows.close(deadline, cut=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._core.closed else self._core.brief()
        return f"<{type(self).__name__} {self.name!r}: {state}>"

    # -- behind the lease ----------------------------------------------------------------------------

    def _lease(self, lease: Lease[C], timeout: float | Default | None) -> Lease[C]:
        lease._pool, lease._entry = self, None
        if timeout is not DEFAULT:
            check_timeout("timeout", timeout)
            lease._timeout = cast("float | None", timeout)
        return lease

    def _enter(self, lease: Lease[C], candidate: Entry[C] | None) -> C:
        """Wait for a connection; or acquire by the flow, if there is more to do than that."""
        if candidate is None and lease._entry is not None:
            raise PoolMisuse(
                f"a lease serves one `with` block at a time; call connection() again (pool {self.name!r})"
            )
        lease._entry = None  # the flow owns it while it looks
        timeout = getattr(lease, "_timeout", self._options.acquire_timeout)
        timeout, deadline = limits(timeout)
        frame = _getframe(2)
        self._stay_outside()
        flows = self._flows
        waiter = flows.waiter((frame.f_code, frame.f_lasti))
        try:
            if candidate is None and flows.just_waits(waiter):
                waiter.park(deadline)  # type: ignore[attr-defined] # ours
            entry = flows.served(waiter)
            if entry is None:
                entry = self._runner.run(flows.acquire(candidate, timeout, deadline, waiter))
        except BaseException:
            flows.give_up(waiter)
            if self._core.owes():
                self._follow_up()
            raise
        lease._entry = entry
        return entry.conn

    def _unguarded(self, method: str, conn: C) -> tuple[C, Loan | None]:
        """Return what stands behind a guarded connection, and its loan, which must not be over."""
        loan = loan_of(conn)
        if loan is None:
            return conn, None
        if loan.ended is not None:  # and the connection behind it may be on loan to somebody else
            raise PoolMisuse(
                f"{method}(): this connection was released at {loan.ended} already (pool {self.name!r})"
            )
        return unwrap(conn), loan

    def _misuse(self, text: str) -> PoolMisuse:
        return PoolMisuse(f"the connection was given back while it was in use: {text} (pool {self.name!r})")

    def _begin(self, lease: Lease[C]) -> None:
        assert lease._entry is not None
        self._run(self._flows.begin(lease._entry.slot, lease._entry.conn))

    def _exit(self, lease: Lease[C], exc: BaseException | None) -> None:
        """Release by the flow: a transaction, an exception, an expiry, or a broken connection."""
        entry, lease._entry = lease._entry, None
        if entry is None:
            raise PoolMisuse(f"this lease is not on loan: its block has ended already (pool {self.name!r})")
        if self._core.inside():
            # The collector has closed a generator that sat in a `with` block, in the middle of our own
            # critical section: no I/O here.  The connection is closed by whoever comes next.
            self._core.lost.append(entry)
            return
        self._run(self._flows.release(entry, exc, lease._ending))

    def _run(self, flow: Flow[R]) -> R:
        self._stay_outside()
        return self._runner.run(flow)

    def _stay_outside(self) -> None:
        if self._core.inside():
            raise PoolMisuse(
                f"pool {self.name!r} was called by a finalizer or a signal handler that ran in the middle of "
                "the pool's own critical section; do not use a pool in __del__ or in a signal handler"
            )

    def _follow_up(self) -> None:
        if not self._core.inside():
            self._runner.run(self._flows.follow_up())

    def _after_fork(self) -> None:
        """Begin anew in a forked child: what there is belongs to the parent, or to threads that are gone.

        The lock may be held by a thread that does not exist here.  The parent's connections are kept for
        ever, because to free one could say goodbye in its name.
        """
        old = self._core
        core: Core[C] = Core(replace(self._options, max_size=old.max_size, min_idle=old.min_idle))
        core.closed = old.closed
        if core.closed:
            core.shut()
        _inherited.append(old)
        self._begin_anew(core)
        self._runner.begin_anew(core)
        _inherited.extend(self._flows.inherit(core))


def _drop(flows: Flows[C], runner: ThreadRunner) -> None:
    """Close what a pool that is garbage, or a process that ends, has left idle."""
    core = flows.core
    if not core.closed and not core.inside():
        runner.inline = True  # no thread can be started while the interpreter ends
        runner.run(flows.close(clock()))


_pools: weakref.WeakSet[ConnectionPool[Any]] = weakref.WeakSet()
_inherited: list[object] = []


def _begin_anew_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_child)


def create_pool(url: str, /, **options: Any) -> ConnectionPool[Any]:
    """Make a pool from a URL; its scheme chooses the adapter.

    ``postgresql://user@host/db`` (psycopg), ``mysql://`` and ``mariadb://`` (PyMySQL),
    ``sqlite:///relative.db``, ``sqlite:////absolute.db`` and ``sqlite://`` (in memory, shared by the pool).
    For a pool typed by its driver's connection, give `ConnectionPool` an adapter instead.

    Args:
        url: Where to connect.  Query parameters go to the driver.
        options: As `ConnectionPool`.

    Raises:
        PoolMisuse: The scheme is unknown.
        TypeError, ValueError: An option breaks its rule.
    """
    return ConnectionPool(adapter_for_url(url), **options)
