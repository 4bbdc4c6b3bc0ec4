"""Connections of the facade: what a user of a DB-API driver holds, while real ones come and go behind it."""

from __future__ import annotations

from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from connpool.errors import PoolMisuse
from connpool.guard import Loan, guard, site

from .cursor import Cursor

if TYPE_CHECKING:
    from .link import Link

__all__ = ("Connection",)

_ERRORS = frozenset(
    [
        *("Warning", "Error", "InterfaceError", "DatabaseError", "DataError", "OperationalError"),
        *("IntegrityError", "InternalError", "ProgrammingError", "NotSupportedError"),
    ]
)


class Connection:
    """A DB-API connection that borrows a real one when it needs it.

    What is not defined here is the driver's: an attribute is read from a real connection, borrowed for
    that if none is there, and a method is called on one; what it returns can be used until the real
    connection goes home.
    """

    __slots__ = ("__dict__", "__weakref__", "_link")
    _link: Link

    _kept: ClassVar[frozenset[str]] = frozenset()
    """Attributes of the driver's connections that belong to this object, whichever is behind it."""
    _pinning: ClassVar[MappingProxyType[str, str]] = MappingProxyType({})
    """Methods that leave something in the session: what it is."""
    _cursor: ClassVar[type[Cursor]] = Cursor

    def __init__(self, link: Link) -> None:
        object.__setattr__(self, "_link", link)

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor; the arguments are the driver's.  Nothing is sent, and nothing borrowed."""
        link = self._link
        if link.closed:
            raise link.driver.closed("the connection is closed")
        return self._cursor(self, link, args, kwargs)

    def commit(self) -> None:
        """Commit what is open, and give the real connection back."""
        self._link.commit()

    def rollback(self) -> None:
        """Roll back what is open, and give the real connection back."""
        self._link.rollback()

    def close(self) -> None:
        """Give back what there is; what is open is rolled back.  Closing twice is harmless."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        """End a ``with`` block as the driver does."""
        link = self._link
        if link.closed:
            return None
        driver = link.driver
        try:
            if exc_type is None and (driver.with_commits or not driver.with_closes):
                self.commit()
            elif not driver.with_closes:
                self.rollback()
        finally:
            if driver.with_closes:
                self.close()
        return None

    # -- what else the driver's connections have --------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        link = self._link
        if name in _ERRORS:
            return link.driver.error_class(name)
        if name in self._kept:
            return link.attribute(name)
        kind = link.kind
        if kind is not None and callable(getattr(kind, name, None)):
            return self._method(name)
        value = link.attribute(name)
        return self._method(name) if _is_method_of(value, link.kind) else value

    def _method(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs)

        call.__name__ = name
        return call

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method of the driver's on a real connection; what it returns is guarded for the turn."""
        link = self._link
        with link.lock:
            if name in self._pinning:
                link.pin(self._pinning[name])
            real = link.begin_unseen()
            loan = Loan(link.pool.name)
            try:
                result = getattr(guard(real, loan), name)(*args, **kwargs)
            except BaseException as exc:
                link.failed(exc, fresh=link.is_fresh())
                raise
            link.settle()
            if link.real is None:
                loan.end(site())
            return result

    def __setattr__(self, name: str, value: Any) -> None:
        link = self._link
        if name in self._kept:
            link.keep(name, value)
        elif isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        elif name not in self.__dict__ and link.driver.has_attribute(link, name):
            raise PoolMisuse(
                f"{name}: it belongs to a session, and this object has one only now and then "
                f"(pool {link.pool.name!r})"
            )
        else:
            self.__dict__[name] = value  # the user's own

    @property  # type: ignore[misc] # so that isinstance(conn, psycopg.Connection) holds
    def __class__(self) -> Any:
        link = self._link
        return type(self) if link.kind is None else link.kind

    def __repr__(self) -> str:
        link = self._link
        state = (
            "closed" if link.closed else "pinned" if link.pinned else "in a turn" if link.real else "at home"
        )
        return f"<{type(self).__name__} of pool {link.pool.name!r}: {state}>"


def _is_method_of(value: object, kind: type[Any] | None) -> bool:
    owner = getattr(value, "__self__", None)
    return callable(value) and kind is not None and isinstance(owner, kind)
