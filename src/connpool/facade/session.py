"""Session mode: a pooled connection as the driver's own, from ``connect()`` to ``close()``.

The real connection is lent for that long, behind a proxy of `connpool.guard`: all that the driver offers is
there, and refused once the connection has gone home.  ``close()`` releases it, and so does ``with`` where the
driver's own ``with`` closes.

What is not known here: statements.  Modes that look at them are in `connpool.facade.connection`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from connpool.adapter import C
from connpool.errors import PoolMisuse
from connpool.guard import Guarded, Loan, guard, loan_of, unwrap
from connpool.options import Default
from connpool.pool import ConnectionPool

from .drivers import Driver
from .errors import closed_error
from .registry import driver_of_connection

__all__ = ("open_session",)


class SessionLoan(Loan):
    """A loan that knows where its connection goes home, and refuses as its driver does."""

    __slots__ = ("driver", "pool")

    def __init__(self, pool: ConnectionPool[Any], driver: Driver) -> None:
        super().__init__(pool.name)
        self.pool = pool
        self.driver = driver

    def check(self, what: str = "use") -> None:
        """Raise what is `PoolMisuse` and the driver's ``InterfaceError``, if the loan is over."""
        try:
            super().check(what)
        except PoolMisuse as exc:
            raise closed_error(self.driver.module, str(exc)) from None


class Session(Guarded):
    """What stands in place of the driver's methods."""

    __slots__ = ()

    def close(self) -> None:
        """Give the connection back; its open transaction is rolled back.  Closing twice is harmless."""
        loan = _loan(self)
        if loan.ended is None:
            loan.pool.release(self)

    @property
    def closed(self) -> Any:
        """As the driver's; true once the connection has gone home."""
        return True if _loan(self).ended is not None else unwrap(self).closed

    @property
    def open(self) -> Any:
        """As the driver's; false once the connection has gone home."""
        return False if _loan(self).ended is not None else unwrap(self).open

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        """End a ``with`` block as the driver does; where that closes, the connection goes home."""
        loan = _loan(self)
        if loan.ended is not None:
            return None  # closed inside of the block
        real = unwrap(self)
        if not loan.driver.with_closes:
            loan.check()
            return real.__exit__(exc_type, exc, traceback)
        try:
            if loan.driver.with_commits and exc_type is None:
                real.commit()
        finally:
            self.close()
        return None


def _loan(session: object) -> SessionLoan:
    loan = loan_of(session)
    assert isinstance(loan, SessionLoan)
    return loan


def open_session(
    pool: ConnectionPool[C], timeout: float | Default | None, autocommit: bool | None, driver: Driver | None
) -> C:
    """Lend a connection behind a proxy whose ``close()`` gives it back."""
    conn = unwrap(pool.acquire(timeout))  # a pool with `debug` guards as well: one proxy is enough
    try:
        driver = driver or driver_of_connection(conn)
        if autocommit is not None:
            driver.set_autocommit(conn, autocommit)
        return guard(conn, SessionLoan(pool, driver), face=Session)
    except BaseException:
        pool.release(conn)
        raise
