"""`Link`: when a connection of the facade has a real one, and when it gives it back.

What PgBouncer does between a client and its servers is done here within the process.  The rules:

1.  A real connection is borrowed for the first statement, and goes home when the adapter's verdict says
    that the protocol is at rest and no transaction is open.  In between the link is *in a turn*.
2.  It stays while somebody *holds* it (a block of the driver's, a COPY, a cursor in the server), and until
    ``close()`` once it is *pinned*: a statement has left something in the session that cannot be carried.
    A pinned session serves nobody else afterwards: it is reset, if the pool resets, else closed.
3.  What is kept in the driver's objects (autocommit, row factories) belongs to the link.  It is applied to
    the borrowed connection as a difference, and undone before that goes home.
4.  A real connection that breaks goes home at once and is closed.  If a transaction may have been open, or
    the session was pinned, the link is *lost*: what comes next must not run in another session as if
    nothing had happened.  ``rollback()`` ends a lost transaction, ``close()`` a lost session.
5.  A lease that becomes garbage gives its connection back by itself, so whatever happens to a link, to the
    thread that used it or to an exception's frames, nothing is lost.

One thread at a time: each call holds the link's lock, as drivers do that may be shared by threads.
What is not known here: statements' texts are read by `statements`, drivers are `drivers`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from connpool.adapter import Verdict
from connpool.errors import PoolMisuse
from connpool.guard import site
from connpool.pool import ConnectionPool

from .settings import Carrier
from .statements import Statement

if TYPE_CHECKING:
    from .drivers import Driver
    from .opening import Options

__all__ = ("Link",)

_ALTERED, _BROKEN = Verdict.ALTERED, Verdict.BROKEN

_told: weakref.WeakKeyDictionary[ConnectionPool[Any], set[tuple[str, str]]] = weakref.WeakKeyDictionary()
"""Which lines were told to have pinned a session of a pool: each once."""


class Link:
    """The way from one connection of the facade to the real ones."""

    __slots__ = (
        "__weakref__",
        "_carrier",
        "_kept_at_first",
        "_lease",
        "_noted",
        "_open_cursors",
        "_since",
        "_statement",
        "_tracks",
        "_undo",
        "_unsettled",
        "altered",
        "autocommit",
        "closed",
        "driver",
        "holds",
        "in_transaction",
        "kept",
        "kind",
        "local",
        "lock",
        "lost",
        "lost_for_good",
        "options",
        "pinned",
        "pool",
        "real",
        "turn",
    )

    def __init__(self, pool: ConnectionPool[Any], options: Options, driver: Driver) -> None:
        self.pool = pool
        self.options = options
        self.driver = driver
        self.lock = threading.RLock()
        self.real: Any = None  # the borrowed connection; None between turns
        self.turn = 0  # the number of the last one
        self._since = 0  # what it was when the last call began
        self.holds = 0
        self.pinned: str | None = None  # what has pinned it
        self.lost: str | None = None  # what is to be told to who goes on after a loss
        self.lost_for_good = False  # a pinned session was lost: rollback() does not bring it back
        self.closed = False
        self.altered = False  # a statement of this turn is not known to leave the session as it was
        self.in_transaction = False  # as far as statements tell, for drivers that do not show it
        self.autocommit = options.autocommit  # None: as the real connections have it
        self.kept: dict[str, Any] = {}  # by the names of the driver's attributes
        self.local: dict[str, Any] = {}  # the same, for what no real connection needs to know
        self.kind = driver.connection_class()  # of the real connections; None until one was seen
        self._lease = pool.turns(options.timeout)
        self._statement: Statement | None = None  # the last one
        self._unsettled = False  # a statement has begun, and nobody has looked at the connection since
        self._noted = 0  # the turn whose caller was noted
        self._tracks = pool.reset_policy == "tracked"
        self._undo: list[tuple[str, Any]] = []  # what to put back before it goes home
        self._open_cursors: list[Any] = []  # the driver's, that end with the turn
        carries = options.settings or options.exclusive
        self._carrier = Carrier(pool, options, driver) if carries else None
        if options.autocommit is not None:
            driver.keep_autocommit(self, options.autocommit)
        self._kept_at_first = dict(self.kept)

    def is_as_new(self) -> bool:
        """Tell whether nothing is borrowed, lost or kept: no other link would serve differently."""
        if self.real is not None or self.lost is not None or self.closed:
            return False
        as_made = self.autocommit == self.options.autocommit and self.kept == self._kept_at_first
        return as_made and not self.local and self._lease._entry is None

    # -- a statement -----------------------------------------------------------------------------------

    def begin(self, query: object) -> Any:
        """Return a real connection for a statement, which has been looked at.  The lock is held.

        Raises:
            PoolMisuse: The mode, or ``on_session_state``, does not allow the statement.
        """
        self._next_call()
        driver = self.driver
        statement = driver.known[query if type(query) is str else driver.text(query)]
        if not statement.plain:
            self._consider(statement)
        self._statement = statement
        self._unsettled = True
        real = self.borrow()
        if driver.follows:
            try:
                driver.before(self, real, statement)
            except BaseException as exc:
                self.failed(exc, fresh=self.is_fresh())
                raise
        return real

    def begin_unseen(self) -> Any:
        """Return a real connection for a call whose statements nobody looks at.  The lock is held."""
        self._next_call()
        self.altered = True
        self._statement = None
        self._unsettled = True
        return self.borrow()

    def is_fresh(self) -> bool:
        """Tell whether the last call had to borrow."""
        return self.turn != self._since

    def _next_call(self) -> None:
        """Note that a call begins, and look at what an exception has left that struck the one before.

        Where nobody could see it, nobody has looked at the connection.  It may be in the middle of an
        exchange, and then the next answer would be taken for another's.
        """
        if self._unsettled:
            self.failed(BaseException("struck"), fresh=self.is_fresh())
            self.settle()
        self._since = self.turn

    def _consider(self, statement: Statement) -> None:
        """Refuse or note what a statement does beyond itself, before it is sent."""
        if statement.begins and self.options.pooling == "statement":
            raise PoolMisuse(
                self._said(f'{statement.verb}: pooling="statement" allows no transaction of several')
            )
        if statement.asks_previous and self.real is None:
            raise PoolMisuse(
                self._said(
                    f"{statement.asks_previous} asks for the session of the statement before, and outside of "
                    "a transaction that is anybody's: put both into one transaction, or use cursor.lastrowid"
                )
            )
        if statement.alters:
            self.pin(statement.alters)
        if not statement.harmless:
            self.altered = True

    def pin(self, what: str) -> None:
        """Keep the session until `close`, because of *what* is about to be left in it.

        Raises:
            PoolMisuse: ``on_session_state="raise"``.
        """
        self.altered = True
        if self.pinned is not None or self.options.pooling == "session":
            return
        if self.options.on_session_state == "raise":
            raise PoolMisuse(
                self._said(
                    f"{what} would stay in a session that others get: declare it with settings=, use a "
                    'connection of its own, or pooling="session"'
                )
            )
        self.pinned = what
        self._lease.count_pin()
        line = site()
        told = _told.setdefault(self.pool, set())
        if (what, line) not in told:
            told.add((what, line))
            self.pool.tell(
                "session_pinned",
                f"{what} keeps a session for the connection of {line} until its close()",
                what=what,
                site=line,
            )

    def borrow(self) -> Any:
        """Return the real connection, borrowing one if there is none.  The lock is held."""
        if self.lost is not None or self.closed:
            self._refuse_what_is_gone()
        if self.real is not None:
            return self.real
        lease = self._lease
        if lease._entry is not None:  # an exception struck on the way home
            lease.discard()
            self._return(None)
        try:
            real = lease.__enter__()
            if not self.turn:
                self.kind = type(real)
            self.turn += 1
            if self.driver.greets:
                self.driver.greet(self, real)
            if self._carrier is not None:
                self._carrier.apply(real)
            if self.kept:
                self._apply(real)
            self.real = real
            return real
        except BaseException as exc:
            if self.real is None:
                self._return(exc)
            raise

    def _refuse_what_is_gone(self) -> NoReturn:
        if self.closed:
            raise self.driver.closed(self._said("the connection is closed"))
        assert self.lost is not None
        raise self.driver.error("OperationalError", self._said(self.lost))

    def settle(self) -> None:
        """Give the real connection back if nothing keeps it.  The lock is held."""
        if self.real is not None and not self.holds and self.pinned is None:
            lease = self._lease
            verdict = lease.verdict()
            if verdict or self._undo or self._open_cursors or self._carrier is not None:
                self._settle(verdict)
            else:
                self.real = None  # as in _go_home: there is nothing to be left behind
                self.in_transaction = False
                altered, self.altered = self.altered, False
                lease.end(spare=self._tracks and not altered)
        self._unsettled = False

    def _settle(self, verdict: Verdict) -> None:
        at_rest = verdict <= _ALTERED or verdict > _BROKEN
        if not at_rest and verdict < _BROKEN and not self._lease.sees_transactions():
            at_rest = not self.in_transaction
        if at_rest:
            self._go_home()
        elif self._noted != self.turn:
            self._noted = self.turn
            self._lease.note_caller()  # somebody may ask who has it

    def failed(self, exc: BaseException, *, fresh: bool = False) -> None:
        """Look at the connection on which a call has raised: broken ones go home.  The lock is held.

        *fresh* says that it was borrowed for this call.  Within a block of the driver's nothing is decided:
        a connection is never at rest there, and the end of the block comes here once more.
        """
        if self.real is None or self.holds:
            return
        if self.driver.is_outdated(exc):
            self.pool.evict()  # each session has its own plans, and each would fail in its turn
        verdict = self._lease.verdict()
        if verdict >= _BROKEN:
            if self.pinned is not None:
                self.lost = f"the session is lost, and with it {self.pinned}: close() this connection"
                self.lost_for_good = True
            elif not fresh or not self.driver.autocommits(self, self.real):
                self.lost = "the connection was lost in a transaction: rollback() first"
            self.pinned = None
            self._go_home(exc)
        elif self.pinned is None:
            unseen = not self.in_transaction and not self._lease.sees_transactions()
            if verdict <= _ALTERED or unseen or (fresh and self._failed_alone()):
                self._go_home(exc)

    def _failed_alone(self) -> bool:
        """Tell whether a failed statement cannot have left a transaction, whatever its driver believes.

        MySQL's errors have no flags, so its adapter says DIRTY until the next answer; the pool rolls back.
        """
        statement = self._statement
        if statement is None or statement.begins or statement.several or statement.verb in ("CALL", ""):
            return False
        return self.driver.dialect == "mysql" and self.driver.autocommits(self, self.real)

    @contextmanager
    def held(self, query: object = None) -> Iterator[Any]:
        """Keep a real connection for a block; yield it.  Blocks nest."""
        with self.lock:
            if query is None:
                self._next_call()
                real = self.borrow()
            else:
                real = self.begin(query)
            fresh = self.is_fresh()
            self.holds += 1
            turn = self.turn
        try:
            yield real
        except BaseException as exc:
            with self.lock:
                if turn == self.turn:
                    self.let_go()
                    self.failed(exc, fresh=fresh)
                    self.settle()
            raise
        with self.lock:
            if turn == self.turn:
                self.let_go()
                self.settle()

    def let_go(self) -> None:
        """End one hold; `settle` comes next."""
        self.holds = max(0, self.holds - 1)  # a broken connection has gone home before its blocks

    # -- the end of a transaction, and of the connection -----------------------------------------------

    def commit(self) -> None:
        """Commit what is open; between turns there is nothing."""
        self._end("commit")

    def rollback(self) -> None:
        """Roll back what is open; a transaction that was lost is over then."""
        with self.lock:
            if self.lost is not None and not self.closed and not self.lost_for_good:
                self.lost = None
                return
        self._end("rollback")

    def _end(self, how: str) -> None:
        with self.lock:
            if self.closed or self.lost is not None:
                self._refuse_what_is_gone()
            self._next_call()
            if self.real is None:
                if self.lost is None or (how == "rollback" and not self.lost_for_good):
                    self.lost = None
                    return
                self._refuse_what_is_gone()
            real, self._unsettled = self.real, True
            try:
                getattr(real, how)()
            except BaseException as exc:
                self.failed(exc)
                if how == "rollback" and not self.lost_for_good:
                    self.lost = None  # the server has rolled back what it lost
                raise
            self.in_transaction = False
            self.settle()

    def close(self) -> None:
        """Give back what there is, for good; what is open is rolled back.  Closing twice is harmless."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.holds = 0
            if self.real is not None:
                self._go_home()

    def cancel(self, how: str, **kwargs: Any) -> None:
        """Call a method of the driver's that interrupts what runs, from any thread, without the lock.

        The request may come late, so the real connection serves nobody after this turn.  It is doomed
        before anything is sent, and must be in its turn still when that is done: a thread that gives it
        back takes it out of `real` first, so it finds it doomed.
        """
        real = self.real
        if real is None:
            return
        try:
            self._lease.discard()
        except PoolMisuse:
            return  # it has just gone home
        if self.real is real:
            getattr(real, how)(**kwargs)

    # -- going home ------------------------------------------------------------------------------------

    def _go_home(self, exc: BaseException | None = None) -> None:
        real, self.real = self.real, None
        try:
            if self._open_cursors:
                self._drop_cursors()
            if self.pinned is not None:
                self.pinned = None
                if not self.pool.resets_sessions:
                    self._lease.discard()
            if self._undo or self._carrier is not None:
                self._put_back(real)
        finally:
            self.in_transaction = False
            self._return(exc)

    def _return(self, exc: BaseException | None) -> None:
        lease = self._lease
        self._undo.clear()
        altered, self.altered = self.altered, False
        if not lease.lasts:
            return
        if not altered and self._tracks:
            lease.spare_reset()
        if exc is None:
            lease.__exit__(None, None, None)
        else:
            lease.__exit__(type(exc), exc, None)

    def _put_back(self, real: Any) -> None:
        """Undo the differences; a connection in a transaction goes back as it is, and is rolled back."""
        if self._lease.verdict() > _ALTERED and (self.in_transaction or self._lease.sees_transactions()):
            if self._carrier is not None:
                self._carrier.forget(real)
                if not self._carrier.exclusive:
                    self._lease.discard()
            return
        try:
            for name, was in reversed(self._undo):
                setattr(real, name, was)
            if self._carrier is not None:
                self._carrier.undo(real)
        except Exception:
            self._lease.discard()  # it cannot be what it was, so nobody gets it; nobody asked for this either

    def _apply(self, real: Any) -> None:
        for name, value in self.kept.items():
            was = getattr(real, name)
            if was is not value and was != value:
                self._undo.append((name, was))
                setattr(real, name, value)

    def ends_with_turn(self, cursor: Any) -> None:
        """Note a cursor of the driver's that must not be used once its transaction is over."""
        self._open_cursors.append(cursor)

    def _drop_cursors(self) -> None:
        cursors, self._open_cursors = self._open_cursors, []
        for cursor in cursors:
            self.driver.drop(cursor)

    # -- what the driver keeps in its connections --------------------------------------------------------

    def keep(self, name: str, value: Any) -> None:
        """Set an attribute that belongs to the link; at once, if there is a real connection."""
        with self.lock:
            self.driver.check_kept(self, name, value)
            if name in self.driver.local:
                self.local[name] = value
                return
            real = self.real
            if real is not None:
                was = getattr(real, name)
                setattr(real, name, value)
                if all(known != name for known, _ in self._undo):
                    self._undo.append((name, was))
            self.kept[name] = value

    def attribute(self, name: str) -> Any:
        """Return what an attribute of the real connection says."""
        with self.lock:
            for known in (self.kept, self.local):
                if name in known:
                    return known[name]
            real = self.borrow()
            try:
                return getattr(real, name)
            finally:
                self.settle()

    def _said(self, text: str) -> str:
        return f"{text} (pool {self.pool.name!r})"

    def refuse(self, text: str) -> NoReturn:
        """Raise `PoolMisuse`, naming the pool."""
        raise PoolMisuse(self._said(text))
