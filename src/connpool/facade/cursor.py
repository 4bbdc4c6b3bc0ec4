"""Cursors of the facade: each execution may run on another real connection; the rows stay here.

The driver's own cursor does the work.  It is made when it is first needed, and anew where the link has
another connection; what was set on the facade's cursor is set on each.  How its rows outlive the turn is the
driver's: where they are in the client's memory its cursor goes on reading them (`Cursor`), where it would
step through them with the connection's help they are fetched before that goes home (`BufferedCursor`).

A cursor that has its rows in the server is *live*: the link stays with it, and each of its steps may be the
last one of the turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from .connection import Connection
    from .link import Link

__all__ = ("BufferedCursor", "Cursor")


_MISSING = object()
_OWN = frozenset(
    ["_adapters", "_args", "_closed", "_face", "_holds", "_kwargs", "_link", "_live", "_raw", "_turn"]
)


class Through:
    """An attribute that counts while rows are read, too: what is set reaches the driver's cursor at once."""

    def __init__(self, default: object = _MISSING) -> None:
        self._default = default

    def __set_name__(self, owner: type[object], name: str) -> None:
        self._name = name

    def __get__(self, cursor: Any, owner: object = None) -> Any:
        if cursor is None:
            return self
        name = self._name
        if name in cursor.__dict__:
            return cursor.__dict__[name]
        if cursor._raw is None and self._default is not _MISSING:
            return self._default
        return cursor.__getattr__(name)

    def __set__(self, cursor: Any, value: object) -> None:
        cursor.__dict__[self._name] = value
        if cursor._raw is not None:
            setattr(cursor._raw, self._name, value)


class Cursor:
    """A cursor that reads from the driver's own, which needs no connection for that."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_adapters",
        "_args",
        "_closed",
        "_face",
        "_holds",
        "_kwargs",
        "_link",
        "_live",
        "_raw",
        "_turn",
    )

    arraysize: Through = Through(1)
    _speak: ClassVar[frozenset[str]] = frozenset()
    """Methods that may speak with the server after the execution, by the driver's source code."""

    def __init__(self, face: Connection, link: Link, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._face = face
        self._link = link
        self._args = args
        self._kwargs = kwargs
        self._adapters: Any = None  # the types' adapters of psycopg's, if this one has its own
        self._raw: Any = None  # the driver's
        self._turn = 0  # of the link, when it was executed last
        self._live = False
        self._holds = False  # the link stays for this cursor
        self._closed = False

    # -- executing -------------------------------------------------------------------------------------

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute as the driver does, on a connection that is borrowed if there is none."""
        return self._run("execute", query, args, kwargs)

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute for each set of parameters, on one connection."""
        return self._run("executemany", query, args, kwargs)

    def _run(
        self, name: str, query: Any, args: tuple[Any, ...], kwargs: dict[str, Any], text: Any = None
    ) -> Any:
        link = self._link
        with link.lock:
            if self._closed:
                raise link.driver.closed("the cursor is closed")
            real = link.begin(query if text is None else text)
            try:
                raw = self._on(real)
                result = getattr(raw, name)(query, *args, **kwargs)
                self._turn = link.turn
                if type(raw) not in link.driver.in_memory:
                    self._note_rows(raw)
            except BaseException as exc:
                link.failed(exc, fresh=link.is_fresh())
                raise
            link.settle()
        return self if result is raw else result

    def _on(self, real: Any) -> Any:
        """Return the driver's cursor on a connection, with what was set on this one."""
        raw = self._raw
        link = self._link
        driver = link.driver
        if raw is None or driver.connection_of(raw) is not real:
            raw = self._raw = driver.new_cursor(link, real, self._args, self._kwargs)
            self._live = False
            if self._adapters is not None:
                driver.adapt(raw, self._adapters)
        for name, value in self.__dict__.items():
            setattr(raw, name, value)
        return raw

    def _note_rows(self, raw: Any) -> None:
        """Note what the execution has left to be read."""
        driver, link = self._link.driver, self._link
        if driver.reads_ahead(type(raw)):
            driver.in_memory.add(type(raw))
        self._live = driver.is_live(raw)
        if self._live and not self._holds:
            if driver.must_hold(raw):
                self._holds = True
                link.holds += 1
            else:
                link.ends_with_turn(raw)

    def _let_go(self) -> None:
        if self._holds:
            self._holds = False
            if self._turn == self._link.turn:
                self._link.let_go()

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the driver's cursor that is not known here, with a connection at hand."""
        link = self._link
        with link.lock:
            real = link.begin_unseen()
            try:
                raw = self._on(real)
                result = getattr(raw, name)(*args, **kwargs)
            except BaseException as exc:
                link.failed(exc, fresh=link.is_fresh())
                raise
            link.settle()
        return self if result is raw else result

    def _step(self, name: str, *args: Any) -> Any:
        """Call a method of the driver's cursor that may speak with the server, if it may still do so."""
        link = self._link
        with link.lock:
            raw = self._raw
            if link.real is None or link.turn != self._turn:
                return link.driver.step_at_home(raw, name, args)
            try:
                result = getattr(raw, name)(*args)
            except BaseException as exc:
                link.failed(exc)
                raise
            if self._holds and link.driver.is_exhausted(name, args, result, raw):
                self._let_go()
            link.settle()
            return result

    def _read(self) -> Any:
        raw = self._raw
        if raw is not None and not self._closed:
            return raw
        if self._closed:
            raise self._link.driver.error("InterfaceError", "the cursor is closed")
        raise self._link.driver.error("ProgrammingError", "no result: execute() first")

    # -- reading ---------------------------------------------------------------------------------------

    def fetchone(self) -> Any:
        """Return the next row, or ``None``."""
        return self._step("fetchone") if self._live else self._read().fetchone()

    def fetchmany(self, size: int | None = None) -> Any:
        """Return some rows: `arraysize` if no size is given."""
        asked = () if size is None else (size,)
        return self._step("fetchmany", *asked) if self._live else self._read().fetchmany(*asked)

    def fetchall(self) -> Any:
        """Return all rows that are left."""
        return self._step("fetchall") if self._live else self._read().fetchall()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._step("__next__") if self._live else next(self._read())

    def nextset(self) -> Any:
        """Go to the next set of rows, if there is one."""
        raw = self._read()
        return self._step("nextset") if "nextset" in self._speak else raw.nextset()

    def scroll(self, *args: Any, **kwargs: Any) -> Any:
        """Move within the rows, where the driver can."""
        if self._live:
            return self._step("scroll", *args, *kwargs.values())
        return self._read().scroll(*args, **kwargs)

    def setinputsizes(self, *sizes: Any) -> None:
        """Do nothing: PEP 249 allows that."""

    def setoutputsize(self, *size: Any) -> None:
        """Do nothing: PEP 249 allows that."""

    @property
    def description(self) -> Any:
        """The columns of the present rows; ``None`` if there are none."""
        return None if self._raw is None else self._raw.description

    @property
    def rowcount(self) -> int:
        """How many rows there are, or were changed; -1 if that is not known."""
        return -1 if self._raw is None else self._raw.rowcount

    @property
    def connection(self) -> Any:
        """The connection of the facade."""
        return self._face

    # -- the end ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the cursor; a link that stayed for it goes home if nothing else keeps it."""
        if self._closed:
            return
        raw = self._raw
        link = self._link
        if raw is not None:
            if self._live or (link.real is not None and "close" in self._speak):
                self._step("close")
            else:
                link.driver.close_at_home(raw)
        if self._holds:
            with link.lock:
                self._let_go()
                link.settle()
        self._closed = True
        self._live = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- what else the driver's cursors have -----------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _OWN:  # the latter if an exception struck in __init__
            raise AttributeError(name)
        raw = self._raw
        if raw is None:
            with self._link.lock:
                real = self._link.borrow()
                try:
                    raw = self._on(real)
                finally:
                    self._link.settle()
        value = getattr(raw, name)
        if not callable(value) or getattr(value, "__self__", None) is not raw:
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, *args, **kwargs)

        return call

    @property  # type: ignore[misc] # so that isinstance(cursor, psycopg.Cursor) holds
    def __class__(self) -> Any:
        raw = self._raw
        return type(self) if raw is None else type(raw)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "live" if self._live else "ready"
        return f"<cursor of {self._face!r}: {state}>"


class BufferedCursor(Cursor):
    """A cursor whose rows are fetched at the execution: its driver would need the connection to read them."""

    __slots__ = ("_at", "_columns", "_counted", "_id", "_rows", "_sets")

    def __init__(self, face: Connection, link: Link, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(face, link, args, kwargs)
        self._forget()

    def _forget(self) -> None:
        self._rows: Sequence[Any] | None = None
        self._at = 0
        self._columns: Any = None
        self._counted = -1
        self._id: Any = None
        self._sets: list[tuple[Any, ...]] = []

    def _note_rows(self, raw: Any) -> None:
        self._forget()
        super()._note_rows(raw)
        if self._live:
            return
        sets = [_fetched(raw)]
        while self._link.driver.has_more(raw) and raw.nextset():
            sets.append(_fetched(raw))
        self._sets = sets[::-1]
        self._show_next()

    def _show_next(self) -> None:
        self._columns, self._counted, self._id, self._rows = self._sets.pop()
        self._at = 0

    def _left(self) -> Sequence[Any]:
        if self._closed:
            raise self._link.driver.error("InterfaceError", "the cursor is closed")
        if self._rows is None:
            return self._link.driver.no_rows(self._raw)
        return self._rows

    def fetchone(self) -> Any:
        """Return the next row, or ``None``."""
        if self._live:
            return self._step("fetchone")
        rows, at = self._left(), self._at
        if at >= len(rows):
            return None
        self._at = at + 1
        return rows[at]

    def fetchmany(self, size: int | None = None) -> Any:
        """Return some rows: `arraysize` if no size is given."""
        if self._live:
            return self._step("fetchmany", *(() if size is None else (size,)))
        rows, at = self._left(), self._at
        wanted = self.arraysize if size is None else size
        self._at = min(len(rows), at + wanted)
        return rows[at : self._at]

    def fetchall(self) -> Any:
        """Return all rows that are left."""
        if self._live:
            return self._step("fetchall")
        rows, at = self._left(), self._at
        self._at = len(rows)
        return rows[at:]

    def __next__(self) -> Any:
        if self._live:
            return self._step("__next__")
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def nextset(self) -> Any:
        """Go to the next set of rows, if there is one."""
        if self._live:
            return self._step("nextset")
        self._read()
        if not self._sets:
            return None
        self._show_next()
        return True

    def scroll(self, value: int, mode: str = "relative") -> Any:
        """Move within the rows.

        Raises:
            IndexError: There is no such row.
        """
        if self._live:
            return self._step("scroll", value, mode)
        if mode not in ("relative", "absolute"):
            raise self._link.driver.error("ProgrammingError", f"mode={mode!r}: must be relative or absolute")
        rows = self._left()
        at = value + (self._at if mode == "relative" else 0)
        if not 0 <= at < len(rows):
            raise IndexError(f"row {at} of {len(rows)}")
        self._at = at
        return None

    @property
    def description(self) -> Any:
        """The columns of the present rows; ``None`` if there are none."""
        return self._raw.description if self._live else self._columns

    @property
    def rowcount(self) -> int:
        """How many rows there are, or were changed; -1 if that is not known."""
        return self._raw.rowcount if self._live else self._counted

    @property
    def lastrowid(self) -> Any:
        """The identity of the row inserted last, where the driver tells."""
        return self._id

    @property
    def rownumber(self) -> int | None:
        """The index of the next row; ``None`` if there are no rows."""
        if self._live:
            number: int | None = self._raw.rownumber
            return number
        return None if self._rows is None else self._at


def _fetched(raw: Any) -> tuple[Any, ...]:
    columns = raw.description
    rows = raw.fetchall() if columns is not None else None
    return columns, raw.rowcount, getattr(raw, "lastrowid", None), rows
