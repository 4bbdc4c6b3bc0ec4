"""A connection that is refused after its release, and to a second thread while it is in use.

`guard` puts a proxy in front of a connection for one loan.  The proxy behaves as the driver's own object,
for ``isinstance`` too, and so does all that is got from it and could reach the server: cursors, blocks,
copies, iterators.  Before anything is sent, each call asks the loan:

* Is it over?  `PoolMisuse` names where the connection was released.
* Is another thread inside a call?  `PoolMisuse` names that thread and that call.  One thread after the
  other is fine, and so is a callback that uses the connection its call came from.

Rows, descriptions, exceptions and settings pass as they are, and a driver's errors pass unchanged.

It knows no driver.  It guards against mistakes, not against determination: what a driver hands to its own
callbacks (row factories, say) is real, and so is the memory beneath it (psycopg's ``pgconn``).  A driver
written in C that insists on its own type gets it from `unwrap`.  Asynchronous drivers are refused.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NoReturn, TypeVar, cast

from .errors import PoolMisuse

__all__ = ("Guarded", "Loan", "guard", "loan_of", "site", "unwrap")

C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_PLAIN: Final = frozenset(
    {type(None), bool, int, float, str, bytes, bytearray, memoryview, tuple, list, dict, set, type}
)
"""What almost everything is that goes in and out: told apart by one look-up, and never looked into."""

_SPECIAL: Final = frozenset(
    [
        *("__enter__", "__iter__", "__next__", "__reversed__", "__call__", "__bool__"),
        *("__len__", "__contains__", "__getitem__", "__setitem__", "__delitem__"),
    ]
)
"""Looked up on the type by the interpreter, so a proxy's type has those that its target's type has."""

_FROM_OUTSIDE: Final = frozenset(["cancel", "cancel_safe", "interrupt"])
"""Made to be called while another thread is inside a call."""

_DB_API: Final = frozenset(
    [
        *("callproc", "close", "commit", "cursor", "execute", "executemany", "executescript"),
        *("fetchall", "fetchmany", "fetchone", "nextset", "rollback"),
    ]
)
"""Guarded even if an attribute of this name is a plain function, as a wrapping library may make it."""

_ERRORS: Final = frozenset(
    [
        *("Warning", "Error", "InterfaceError", "DatabaseError", "DataError", "OperationalError"),
        *("IntegrityError", "InternalError", "ProgrammingError", "NotSupportedError"),
    ]
)
"""PEP 249's exceptions as attributes: ``except conn.Error`` must not fail for being asked too late."""


_NO_METHODS: Final = (type, staticmethod)
"""Callable, and in a class, yet not called on its objects: cursor classes, row factories."""


def _cached(function: F) -> F:
    return cast(F, functools.lru_cache(maxsize=1024)(function))  # to mypy, a class is not hashable


class Loan:
    """The time for which one connection is lent, and who is using it right now."""

    __slots__ = ("__weakref__", "_cancels", "_ended", "_inside", "_lock", "_packages", "_pool_name", "_steps")

    def __init__(self, pool_name: str) -> None:
        self._pool_name = pool_name
        self._packages: frozenset[str] = frozenset()  # the driver's, since `guard`
        self._ended: str | None = None
        self._lock = threading.RLock()  # held during each call; looked up now, because gevent replaces it
        self._inside: tuple[Guarded, str, int] | None = None  # the innermost call: object, name, thread
        self._cancels: list[str] = []
        self._steps: set[weakref.ref[types.GeneratorType[Any, Any, Any]]] = set()

    @property
    def ended(self) -> str | None:
        """Where it ended; ``None`` while it lasts."""
        return self._ended

    def end(self, site: str) -> str | None:
        """Refuse every use from here on, naming *site*; never waits and never raises.

        Returns:
            What is under way on the connection, or ``None``: a call in another thread, or the call of whose
            callback this is; or a ``cancel()``, which could hit the next borrower.  Nobody may speak on it.
        """
        if self._ended is None:
            self._ended = site  # publish, then look: a call locks first and looks at this second
        if not self._lock.acquire(False):
            return self._others_call() + " during the release"
        try:
            if self._inside is not None:
                return self._others_call() + " during the release"
        finally:
            self._lock.release()
        if self._cancels:
            return f"{self._cancels[0]}() has not returned"
        return None

    def unfinished(self) -> str | None:
        """Return what was left half-way, and makes the connection unfit for another loan; or ``None``.

        The end of a generator, or of a block (a ROLLBACK, say), is sent whenever it becomes garbage.
        """
        for step in list(self._steps):
            if (generator := step()) is not None and (generator.gi_suspended or generator.gi_running):
                return generator.__qualname__
        return None

    def check(self, what: str = "use") -> None:
        """Raise `PoolMisuse` if the loan is over; *what* is the use that is refused."""
        if self._ended is not None:
            raise PoolMisuse(
                f"{what} after the connection was released at {self._ended}; "
                f"it may serve somebody else by now (pool {self._pool_name!r})"
            )

    def _enter(self, proxy: Guarded, name: str) -> tuple[Guarded, str, int] | None:
        """Begin a call, and return the one it is inside of, which `_leave` needs.

        An exception that strikes (Ctrl-C, say) outside of the caller's ``try`` leaves the loan locked:
        other threads are then refused for the rest of it, and the connection may be closed at its end.
        """
        if not self._lock.acquire(False):
            self.check(_words(proxy, name))
            raise PoolMisuse(
                f"{_words(proxy, name)} in {threading.current_thread().name}, while {self._others_call()}: "
                f"a connection serves one thread at a time (pool {self._pool_name!r})"
            )
        if self._ended is not None:
            self._lock.release()
            self.check(_words(proxy, name))
        outer = self._inside
        self._inside = (proxy, name, threading.get_ident())
        return outer

    def _leave(self, outer: tuple[Guarded, str, int] | None) -> None:
        self._inside = outer
        self._lock.release()

    def _others_call(self) -> str:
        inside = self._inside
        if inside is None:  # the other thread holds the lock, and has not said yet what for, or no longer
            return "another thread was using it"
        proxy, name, ident = inside
        names = (thread.name for thread in threading.enumerate() if thread.ident == ident)
        return f"{next(names, f'thread {ident}')} was inside {_words(proxy, name)}"

    def _watch(self, generator: types.GeneratorType[Any, Any, Any]) -> None:
        self._steps.add(weakref.ref(generator, self._steps.discard))


class Guarded:
    """The base of all proxies; a proxy's type is made for its target's type, by `_face`.

    Subclass it and pass the class to `guard` to have a say of your own: a method it defines stands in
    place of the driver's, unguarded, and finds the connection by `unwrap` and the loan by `loan_of`.
    """

    # The names must not be those of any driver's attributes.
    __slots__ = ("__weakref__", "_guard_loan", "_guard_parent", "_guard_target")
    _guard_loan: Loan
    _guard_parent: Guarded | None  # what it was got from; None: the connection
    _guard_target: Any
    _guard_steps: ClassVar[bool] = False  # a generator, or a block that is one

    def __init__(self, target: object, loan: Loan, parent: Guarded | None) -> None:
        _set_target(self, target)
        _set_loan(self, loan)
        _set_parent(self, parent)

    @property  # type: ignore[misc] # so that isinstance(proxy, psycopg.Connection) holds
    def __class__(self) -> Any:
        return type(self._guard_target)

    def __getattr__(self, name: str) -> Any:
        # Reading an attribute sends nothing, so it needs no lock.
        if self._guard_loan._ended is not None and name not in _ERRORS:
            self._guard_loan.check(_words(self, name))
        value = getattr(self._guard_target, name)
        if type(value) in _PLAIN:
            return value
        if name in _DB_API if isinstance(value, types.FunctionType) else _is_bound(value):
            return types.MethodType(_method(name), self)
        return self._guard_lend(value)

    def _guard_lend(self, value: Any) -> Any:
        """Return *value* as the borrower may have it: guarded, if it can reach the server."""
        proxy: Guarded | None = self
        while proxy is not None:  # execute() returns its cursor, cursor.connection its connection
            if value is proxy._guard_target:
                return proxy
            proxy = proxy._guard_parent
        loan = self._guard_loan
        face = _face_of_result(type(value), loan._packages)
        if face is None:
            return value
        if face is _Asynchronous:
            if isinstance(value, types.CoroutineType):
                value.close()  # or Python warns that it was never awaited
            raise TypeError(f"{type(value).__name__}: asynchronous calls cannot be guarded")
        if face._guard_steps and (generator := _generator(value)) is not None:
            loan._watch(generator)
        return face(value, loan, self)

    def _guard_pass(self, call: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Call with the real objects in place of proxies; another connection's loan is used as well."""
        own = self._guard_loan
        with contextlib.ExitStack() as stack:

            def real(arg: Any) -> Any:
                cls = type(arg)
                if cls in _PLAIN:
                    return arg
                if issubclass(cls, Guarded):
                    loan = arg._guard_loan
                    if loan is not own:
                        stack.callback(loan._leave, loan._enter(arg, name))
                    return arg._guard_target
                # The driver's objects that the borrower made from a proxy and the driver compares or runs
                # elsewhere: psycopg's Rollback(tx) and QueuedLibpqWriter(cursor).
                if not own._packages.isdisjoint(_packages(cls)) and hasattr(arg, "__dict__"):
                    for key, value in vars(arg).items():
                        if loan_of(value) is own:
                            vars(arg)[key] = value._guard_target
                return arg

            return call(*map(real, args), **{key: real(value) for key, value in kwargs.items()})

    def __eq__(self, other: object) -> bool:
        # Not the target's: a proxy of this loan and one of the next must not be mistaken for each other.
        if not isinstance(other, Guarded):
            return NotImplemented
        return self._guard_target is other._guard_target and self._guard_loan is other._guard_loan

    def __hash__(self) -> int:
        return hash((id(self._guard_target), id(self._guard_loan)))

    def __repr__(self) -> str:
        name = type(self._guard_target).__name__
        if self._guard_loan._ended is not None:
            return f"<guarded {name}, released at {self._guard_loan._ended}>"
        try:
            return f"<guarded {self._guard_target!r}>"
        except Exception:  # a repr is for logs and debuggers, often about something that has just gone wrong
            return f"<guarded {name}>"

    def __dir__(self) -> list[str]:
        return dir(self._guard_target)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        name = type(self._guard_target).__name__
        raise TypeError(
            f"{name} is on loan from pool {self._guard_loan._pool_name!r}: it cannot be copied or pickled"
        )


class _Asynchronous(Guarded):
    """Stands for what cannot be guarded."""

    __slots__ = ()


_set_target: Final = Guarded.__dict__["_guard_target"].__set__
_set_loan: Final = Guarded.__dict__["_guard_loan"].__set__
_set_parent: Final = Guarded.__dict__["_guard_parent"].__set__


def guard(conn: C, loan: Loan, *, face: type[Guarded] = Guarded) -> C:
    """Return a proxy of *conn* that serves one thread at a time until *loan* ends.

    Args:
        conn: The driver's connection.
        loan: One for each time it is lent.
        face: A subclass of `Guarded` whose methods stand in place of the driver's, such as ``close``.

    Raises:
        TypeError: The driver is asynchronous.
    """
    cls = type(conn)
    if _is_async(cls):
        raise TypeError(f"{cls.__qualname__}: asynchronous connections cannot be guarded")
    loan._packages = _driver_packages(cls)
    return cast(C, _face(cls, face)(conn, loan, None))


def unwrap(obj: T) -> T:
    """Return what stands behind a proxy; anything else as it is."""
    return cast(T, obj._guard_target) if isinstance(obj, Guarded) else obj


def loan_of(obj: object) -> Loan | None:
    """Return the loan that a proxy belongs to; ``None`` for anything else."""
    return obj._guard_loan if isinstance(obj, Guarded) else None


def site() -> str:
    """Return where the caller of the pool stands: ``app/views.py:41 in Thread-3``.

    That is the nearest frame outside of this package and of contextlib.  Of the path it shows as much as
    the module's dotted name has parts.
    """
    thread = threading.current_thread().name
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__") or ""
        if module != "contextlib" and _top(module) != _top(__name__):
            path = frame.f_code.co_filename.replace("\\", "/").split("/")
            parts = module.count(".") + (2 if path[-1] == "__init__.py" else 1)
            return f"{'/'.join(path[-parts:])}:{frame.f_lineno} in {thread}"
        frame = frame.f_back
    return f"the pool itself in {thread}"


# -- the proxies' types -------------------------------------------------------------------------------


@_cached
def _face(cls: type, base: type[Guarded]) -> type[Guarded]:
    """Make the type of *cls*'s proxies.

    Methods are real ones, made here once: finding each by `__getattr__` would cost as much again as the
    guarded call.
    """
    namespace: dict[str, Any] = {"__slots__": (), "__module__": base.__module__, "__doc__": cls.__doc__}
    namespace["_guard_steps"] = cls is types.GeneratorType or cls.__module__ == "contextlib"

    said = {name for step in base.__mro__[: base.__mro__.index(Guarded)] for name in vars(step)}

    def add(name: str, method: Any) -> None:
        if name not in said:
            namespace[name] = method

    for name in ("__setattr__", "__delattr__"):
        add(name, _method(name))
    for name in dir(cls):
        if name.startswith("__") and name not in _SPECIAL:
            continue
        original = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
        if (
            callable(original)
            and hasattr(type(original), "__get__")
            and not isinstance(original, _NO_METHODS)
        ):
            make = _aside if name in _FROM_OUTSIDE else _closing if name == "close" else _method
            add(name, functools.update_wrapper(make(name), original))
    if hasattr(cls, "__exit__"):
        add("__exit__", _exit)
    if issubclass(cls, contextlib.ContextDecorator):
        # It makes a block for each call by `_recreate_cm`, which is the proxy's then.
        add("__call__", contextlib.ContextDecorator.__call__)
    return type(f"Guarded[{cls.__name__}]", (base,), namespace)


def _method(name: str) -> Callable[..., Any]:
    def method(self: Guarded, /, *args: Any, **kwargs: Any) -> Any:
        loan = self._guard_loan
        outer = loan._enter(self, name)
        try:
            call = getattr(self._guard_target, name)
            if kwargs or not _PLAIN.issuperset(map(type, args)):
                result = self._guard_pass(call, name, args, kwargs)
            else:
                result = call(*args)
            return result if type(result) in _PLAIN else self._guard_lend(result)
        finally:
            loan._leave(outer)

    return method


def _aside(name: str) -> Callable[..., Any]:
    """Make a method that may be called while another thread is inside a call."""

    def method(self: Guarded, /, *args: Any, **kwargs: Any) -> Any:
        loan = self._guard_loan
        loan._cancels.append(name)  # publish, then look: `Loan.end` does it the other way round
        try:
            loan.check(_words(self, name))
            return getattr(self._guard_target, name)(*args, **kwargs)
        finally:
            loan._cancels.pop()

    return method


def _closing(name: str) -> Callable[..., Any]:
    call = _method(name)

    def method(self: Guarded, /, *args: Any, **kwargs: Any) -> Any:
        if self._guard_loan._ended is not None and self._guard_parent is not None:
            return None  # a cursor in somebody's `finally`: its connection is back, so it is closed
        return call(self, *args, **kwargs)

    return method


_leave_block: Final = _method("__exit__")


def _exit(
    self: Guarded,
    exc_type: type[BaseException] | None,
    exc: BaseException | None,
    traceback: types.TracebackType | None,
) -> Any:
    if self._guard_loan._ended is not None:
        # The block's own exception is the news.  Without one, a block that ends by close() has nothing
        # left to do; any other would have committed, and its user must hear that it has not.
        closes = self._guard_parent is not None and hasattr(type(self._guard_target), "close")
        if exc is not None or closes:
            return None
    return _leave_block(self, exc_type, exc, traceback)


def _words(proxy: Guarded, name: str) -> str:
    target = proxy._guard_target
    generator = _generator(target)
    owner = type(target).__name__ if generator is None else generator.__qualname__
    return f"{owner}.{name}"


# -- what is guarded ----------------------------------------------------------------------------------


def _top(module: str) -> str:
    return module.partition(".")[0]


@_cached
def _packages(cls: type) -> frozenset[str]:
    return frozenset(_top(base.__module__) for base in cls.__mro__ if base is not object)


@_cached
def _driver_packages(cls: type) -> frozenset[str]:
    """Return where ``commit`` is defined: a user's subclass does not make his whole package the driver."""
    found = (_top(base.__module__) for base in cls.__mro__ if "commit" in vars(base))
    return frozenset(found) or frozenset({_top(cls.__module__)})


@_cached
def _face_of_result(cls: type, packages: frozenset[str]) -> type[Guarded] | None:
    """Return the type of the proxy for what a call returned or an attribute held; ``None``: no proxy."""
    if not _is_live(cls, packages):
        return None
    return _Asynchronous if _is_async(cls) else _face(cls, Guarded)


def _is_live(cls: type, packages: frozenset[str]) -> bool:
    """Tell whether objects of a type may lead to the server."""
    if issubclass(cls, (BaseException, Guarded, *_PLAIN)):
        return False
    if hasattr(cls, "execute") and hasattr(cls, "fetchone"):
        return True  # a cursor, wherever it is from
    if not packages.isdisjoint(_packages(cls)):
        return _is_async(cls) or any(
            name in ("execute", "close", "read", "write", "__enter__", "__next__") or name.startswith("fetch")
            for name in dir(cls)
        )
    if cls.__module__ == "contextlib":
        return hasattr(cls, "__enter__") or _is_async(cls)
    return cls.__module__ in ("builtins", "itertools") and (hasattr(cls, "__next__") or _is_async(cls))


@_cached
def _is_async(cls: type) -> bool:
    return any(hasattr(cls, name) for name in ("__await__", "__anext__")) or (
        hasattr(cls, "__aenter__") and not hasattr(cls, "__enter__")
    )


def _is_bound(value: object) -> bool:
    """Tell a method of an object from a function, a class's method or a module's."""
    if not isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        return False
    return not isinstance(value.__self__, (type, types.ModuleType, type(None)))


def _generator(obj: object) -> types.GeneratorType[Any, Any, Any] | None:
    """Return the generator that is *obj*, or that makes its block."""
    generator = getattr(obj, "gen", None) if type(obj).__module__ == "contextlib" else obj
    return generator if isinstance(generator, types.GeneratorType) else None
