"""aiomysql (https://aiomysql.readthedocs.io/), for MySQL and MariaDB.

aiomysql is PyMySQL with its I/O awaited, and uses its errors, so the tables, the proofs of rest and what a
reset brings back are those of the adapter for PyMySQL: read its module first.  Particular to this one:

*Rest.*  Sending does not wait, and the number that is awaited next is set in the same step: while it is 1
nothing of an answer has been read.  aiomysql closes a connection whose read is cancelled.  It does not see a
coroutine that is closed, nor a second task that sends meanwhile; both would be taken for the first one's
answer, so the pooled class refuses to send then, and closes.

*Closed.*  The borrower, a lost connection and a cancellation all end in ``close()``.  Only what was closed
between two exchanges counts as closed by the borrower.

*The flags* are those of the server's greeting until the first OK.  What an ``init_connect`` has changed
they do not show, so a new connection's are doubtful.

*Settings*: autocommit, ``cursorclass`` and the character set.  There are no timeouts in the connection.

*Threads.*  aiomysql's finalizer calls the loop from whatever thread collects garbage, and fails when the
loop is closed; the pooled class has one that does not.

asyncmy, the other driver for asyncio, has no adapter.  Since its rewrite of 2026 (0.2.12) it reads results
in C, past the methods where the flags of a result would be looked at, and keeps the flags in a C integer,
which can carry no doubt.  And it leaves a connection open whose packets are out of order.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Generic, TypeVar, cast

from aiomysql import Connection, InterfaceError, MySQLError, OperationalError  # type: ignore[import-untyped]
from aiomysql.connection import (  # type: ignore[import-untyped]
    COMMAND,
    CR,
    SERVER_STATUS,
    MySQLResult,
    OKPacketWrapper,
    charset_by_name,
)

from connpool.adapter import Fault, Verdict
from connpool.adapters.classes import Subclasses
from connpool.adapters.pymysql import (
    _ANSWERED,
    _ARE_WRITES_REFUSED,
    _GOODBYE,
    _OUTSTANDING,
    _REST,
    _SHOWN,
    SAYS,
    Answer,
    Command,
    PyMySQLPoolClosed,
    PyMySQLPoolOverloaded,
    PyMySQLPoolTimeout,
    PyMySQLPoolUnavailable,
    Questions,
    Rows,
    _Doubtful,
    _Memory,
    _params_from_url,
    _plant,
    fault_of,
)
from connpool.adapters.sockets import disconnect, keep_alive, ready
from connpool.adapters.transports import cut, fileno, is_here
from connpool.errors import (
    PoolClosed,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from connpool.reset import Part

__all__ = ["AiomysqlAdapter"]

C = TypeVar("C", bound="Connection")
C2 = TypeVar("C2", bound="Connection")
T = TypeVar("T")

_CLEAN, _ALTERED, _DIRTY = Verdict.CLEAN, Verdict.ALTERED, Verdict.DIRTY
_BROKEN, _SPENT = Verdict.BROKEN, Verdict.SPENT

_IN_TRANS = SERVER_STATUS.SERVER_STATUS_IN_TRANS
_AUTOCOMMIT = SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT
_TRANSACTION_BITS = _IN_TRANS | _AUTOCOMMIT
_UNREAD_BITS = _TRANSACTION_BITS | SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS

_AWAITED = 1
"""In ``conn._next_seq_id``: a command is out, and nothing of its answer has been read."""

_PARAMETERS = frozenset(inspect.signature(Connection.__init__).parameters) - {"self", "loop"}

# What aiomysql says of a connection that is closed; such an error has no code.
_CLOSED = ("Not connected", "Cancelled during execution")


# -- rest, provably ----------------------------------------------------------------------------------


def _pooled(base: type[Any]) -> type[Any]:
    """Make the subclass that connections of *base*, aiomysql's class or a user's, get in a pool."""

    class Pooled(base):  # type: ignore[misc] # one for each class of a user
        _ended = False  # by its borrower, with nothing under way
        server_status: int

        async def _execute_command(self, command: int, sql: str | bytes) -> None:
            if self._next_seq_id == _AWAITED or self._result is _OUTSTANDING:
                _cut_off(self)
                raise OperationalError(
                    CR.CR_COMMANDS_OUT_OF_SYNC,
                    "an earlier command's answer has not been read: connection closed",
                )
            await super()._execute_command(command, sql)

        async def _read_query_result(self, unbuffered: bool = False) -> None:
            known = self.server_status
            try:
                if not unbuffered and type(known) is int:
                    await super()._read_query_result()
                    return
                self.server_status = _Doubtful(known | _IN_TRANS)
                with _tapped(self) as last:
                    await super()._read_query_result(unbuffered)
                if last[0].is_eof_packet():  # the end of the columns, or of the rows
                    self.server_status = int.from_bytes(last[0].get_bytes(3, 2), "little")
            except MySQLError:
                closed = self._writer is None  # what the server was doing, this error tells
                self.server_status = known if closed else _Doubtful(known | _IN_TRANS)
                raise

        async def set_charset(self, charset: str) -> None:
            with _tapped(self) as last:
                await super().set_charset(charset)
            last[0].rewind()
            self.server_status = OKPacketWrapper(last[0]).server_status

        # A user's own method may do something else, or nothing: that proves nothing to us.
        if base.commit is Connection.commit:

            async def commit(self) -> None:
                await super().commit()
                _plant(self)

        if base.rollback is Connection.rollback:

            async def rollback(self) -> None:
                await super().rollback()
                _plant(self)

        def close(self) -> None:
            result = self._result
            if self._writer is not None and result is not None and not result.unbuffered_active:
                self._ended = True
            super().close()

        def __del__(self) -> None:
            if not is_here(self._loop):
                _cut_off(self)
            super().__del__()

    return Pooled


_classes = Subclasses(_pooled)


@contextmanager
def _tapped(conn: Any) -> Iterator[deque[Any]]:
    """Keep the last packet that is read: aiomysql drops the flags of some."""
    last: deque[Any] = deque(maxlen=1)
    read_packet = conn._read_packet

    async def read_and_keep(*args: Any) -> Any:
        packet = await read_packet(*args)
        last.append(packet)
        return packet

    conn._read_packet = read_and_keep
    try:
        yield last
    finally:
        del conn._read_packet


class _Undecoded(MySQLResult):  # type: ignore[misc] # aiomysql has no types
    """A result of bytes, whatever a user's converters would make of them."""

    async def _get_descriptions(self) -> None:
        await super()._get_descriptions()
        self.converters = [(None, None)] * self.field_count


async def _read_rows(wire: Any) -> Any:
    """Read all that a statement answers, be it rows or not; return the last."""
    while True:
        result = _Undecoded(wire)
        await result.read()
        if not result.has_next:
            return result.rows or ()


async def _read_answer(wire: Any, answer: Answer) -> bool:
    """Read the answer to a command; tell whether it shows something that no reset can undo."""
    if answer is Answer.OK:
        await wire._read_ok_packet()
        return False
    rows = await _read_rows(wire)
    return answer is Answer.DATABASE and rows != ((None,),)


async def _ask(wire: Any, statement: str) -> Rows:
    await wire._execute_command(COMMAND.COM_QUERY, statement)
    return [
        [None if value is None else value.decode(wire.encoding) for value in row]
        for row in await _read_rows(wire)
    ]


async def _answered(wire: Any, questions: Questions[T]) -> T:
    try:
        question = next(questions)
        while True:
            question = questions.send(await _ask(wire, question))
    except StopIteration as end:
        return cast("T", end.value)


# -- what a connection comes back to ------------------------------------------------------------------


class _Baseline:
    """The settings that aiomysql keeps in the connection."""

    __slots__ = ("autocommit", "autocommit_mode", "charset", "cursorclass", "encoding", "proof", "rest")

    collation = None  # aiomysql knows of none but each character set's own

    def __init__(self, wire: Any) -> None:
        self.autocommit = getattr(wire, "server_status", 0) & _AUTOCOMMIT
        self.rest = _REST[self.autocommit]
        # The flags that prove rest, and autocommit as it was: none, if it was off.
        self.proof = self.autocommit or None
        self.autocommit_mode = wire.autocommit_mode
        self.cursorclass = wire.cursorclass
        self.charset, self.encoding = wire._charset, wire._encoding

    def put_back(self, wire: Any) -> None:
        wire.autocommit_mode, wire.cursorclass = self.autocommit_mode, self.cursorclass
        wire._charset, wire._encoding = self.charset, self.encoding

    def set_autocommit(self) -> str:
        return f"AUTOCOMMIT = {int(self.autocommit > 0)}"

    def set_names(self) -> str:
        """Return what makes the session's character set what the handshake makes it."""
        return f"NAMES {self.charset} COLLATE {charset_by_name(self.charset).collation}"


# -- the adapter -------------------------------------------------------------------------------------


class AiomysqlAdapter(Generic[C]):
    """Connections of aiomysql, made by the adapter within a limit.

    Args:
        params: The arguments of `aiomysql.connect`.  A `connect_timeout` is what one address may take at
            most; the pool's own limit is for all of them and the handshake together.

    Raises:
        PoolMisuse: `aiomysql.connect` has no such parameter.
    """

    name: str = "aiomysql"
    bounded: bool = True
    sees_transactions: bool = True
    # aiomysql raises PyMySQL's errors.
    errors: Mapping[type[PoolError], type[PoolError]] = {
        PoolTimeout: PyMySQLPoolTimeout,
        PoolOverloaded: PyMySQLPoolOverloaded,
        PoolUnavailable: PyMySQLPoolUnavailable,
        PoolClosed: PyMySQLPoolClosed,
    }
    parts: Collection[Part] = frozenset({Part.FULL, Part.RESET_CONNECTION})
    says: Mapping[str, str] = SAYS

    def __init__(self, **params: Any) -> None:
        _refuse_unknown(params)
        self._params = params
        self._callable: Callable[[], Awaitable[Any]] | None = None

    @classmethod
    def around(cls, connect: Callable[[], Awaitable[C2]]) -> AiomysqlAdapter[C2]:
        """Make an adapter for a callable whose result is awaited; its dials have no limit of ours."""
        adapter: AiomysqlAdapter[Any] = AiomysqlAdapter()
        adapter.bounded = False
        adapter._callable = connect
        return adapter

    @classmethod
    def from_url(cls, url: str) -> AiomysqlAdapter[Connection]:
        """Make an adapter from ``mysql://user:password@host:port/database?charset=utf8mb4``.

        ``mariadb://`` and ``mysql+aiomysql://`` are understood as well.  What `aiomysql.connect` takes as
        text, a number or a truth value may follow the question mark.

        Raises:
            PoolMisuse: The URL cannot be read; the message does not repeat it.
        """
        params = _params_from_url(url)
        if "database" in params:
            params["db"] = params.pop("database")
        return AiomysqlAdapter(**params)

    def __repr__(self) -> str:
        # Of a callable only its name: a functools.partial shows its arguments.
        if self._callable is not None:
            shown = getattr(self._callable, "__qualname__", type(self._callable).__qualname__)
            return f"AiomysqlAdapter.around({shown})"
        names = (*_SHOWN, "db")
        shown = ", ".join(f"{name}={self._params[name]!r}" for name in names if name in self._params)
        return f"AiomysqlAdapter({shown})"

    # -- opening -------------------------------------------------------------------------------------

    async def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> C:
        """Open a connection within *limit* seconds: names, all addresses and the handshake together.

        *credentials* are parameters of `aiomysql.connect`; ``None`` for a value takes the adapter's own
        away.
        """
        if self._callable is not None:
            return cast("C", await self._callable())
        given = dict(credentials or {})
        _refuse_unknown(given)
        params = {name: value for name, value in {**self._params, **given}.items() if value is not None}
        if (credentials or {}).get("autocommit", self._params.get("autocommit", 0)) is None:
            params["autocommit"] = None  # as the server has it
        conn = _classes.of(Connection)(**params)
        try:
            async with asyncio.timeout(limit):
                await conn._connect()
        except TimeoutError:
            text = f"Can't connect to MySQL server on {conn.host!r}: not connected within {limit:.3g} s"
            raise OperationalError(CR.CR_CONN_HOST_ERROR, text) from None
        _begin(conn)
        return cast("C", conn)

    def adopt(self, conn: C) -> object:
        """Give the connection the class that proves rest; return its settings."""
        if not isinstance(conn, Connection):
            raise PoolMisuse(
                f"the connect callable returned a {type(conn).__module__}.{type(conn).__qualname__},"
                " not an aiomysql.Connection"
            )
        try:
            new = _classes.give(conn)
        except TypeError as exc:
            raise PoolMisuse(f"connections of this class cannot be pooled: {exc}") from exc
        if conn._writer is not None:
            with suppress(OSError):
                keep_alive(fileno(conn._writer.transport))
            if new and conn._result is None:
                _begin(conn)
        return _Baseline(conn)

    async def remember(self, conn: C, parts: tuple[Part, ...], limit: float | None) -> object:  # noqa: ARG002 -- all lose the same
        """Ask for what a reset loses; commit what the connect callable has left open."""
        async with _within(limit, conn, "remember"):
            memory = await _answered(conn, _Memory.asked(conn))
            await Connection.commit(conn)
        _plant(conn)
        return memory

    # -- judging -------------------------------------------------------------------------------------

    # -- warm path
    def verdict(self, conn: C, baseline: Any) -> Verdict:
        """Judge by what was sent since rest was last proven, as the adapter for PyMySQL does."""
        try:
            result = conn._result
            if conn._writer is None:
                # Closed by its borrower; or dead, with flags that are true and say that no
                # transaction was open.
                unread = result is not None and result.has_next
                safe = not unread and conn.server_status & _UNREAD_BITS == _AUTOCOMMIT
                return _SPENT if conn._ended or safe else _BROKEN
            if result is not baseline.rest:
                if result is None:
                    # An answer has begun.  If it was one packet, the ROLLBACK finds the wire at rest; if
                    # more is to come, that has not the number that is awaited: it closes the connection.
                    return _DIRTY if conn._next_seq_id == _ANSWERED else _BROKEN
                if result.has_next != 0 or result.unbuffered_active:
                    if result.unbuffered_active:
                        # The flags came with its columns.  If more results follow, so may a BEGIN.
                        safe = conn.server_status & _UNREAD_BITS == _AUTOCOMMIT
                        return _SPENT if safe else _BROKEN
                    if result.has_next:
                        return _BROKEN
                    # Nothing was sent in the other mode of autocommit; or an error has ended rows.
                    return _ALTERED if result is _REST[_AUTOCOMMIT - baseline.autocommit] else _DIRTY
                if conn.server_status & _TRANSACTION_BITS != baseline.proof:
                    proven = conn.server_status & _TRANSACTION_BITS == _AUTOCOMMIT
                    return _ALTERED if proven else _DIRTY
            if conn.cursorclass is baseline.cursorclass and conn._charset is baseline.charset:
                return _CLEAN
            return _ALTERED  # or another object that is equal: `restore` sends nothing then
        except Exception:  # costs nothing until it happens
            return _BROKEN

    # -- end of warm path

    def _at_rest(self, conn: C) -> Verdict:
        """Judge by all but the settings."""
        return self.verdict(conn, _Baseline(conn))

    def alive(self, conn: C) -> bool:
        """Tell whether nothing has come, neither to the socket nor to the loop, which reads it."""
        try:
            reader = conn._reader
            if reader.exception() or reader._eof or reader._buffer:
                return False
            return not ready(fileno(conn._writer.transport))
        except (AttributeError, OSError, ValueError):  # closed; or not a descriptor any more
            return False

    # -- speaking ------------------------------------------------------------------------------------

    async def ping(self, conn: C, limit: float | None) -> None:
        """Send COM_PING, which neither opens a transaction nor ends one."""
        verdict = self._at_rest(conn)
        async with _within(limit, conn, "ping"):
            await conn.ping(reconnect=False)
        if verdict == _CLEAN:
            _plant(conn)

    async def idle_limit(self, conn: C, limit: float | None) -> float | None:
        """Ask for the session's ``wait_timeout``: an interactive one's begins as interactive_timeout."""
        rows = await self._ask_aside(conn, "SELECT @@wait_timeout", limit)
        return float(rows[0][0] or 0) or None if rows else None

    async def writable(self, conn: C, limit: float | None) -> bool:
        """Ask for ``read_only``; what this user could write all the same does not count."""
        for question in _ARE_WRITES_REFUSED:
            for row in await self._ask_aside(conn, question, limit):
                return all(value in ("0", "OFF", None) for value in row)
        return True

    async def _ask_aside(self, conn: C, question: str, limit: float | None) -> Rows:
        """Ask for variables, and leave all as if nobody had: no rows if the server does not know them.

        A SELECT without a table neither opens a transaction nor ends one, so what was proven stays so.
        """
        async with _within(limit, conn, question):
            known = conn._result, conn._next_seq_id
            try:
                rows = await _ask(conn, question)
            except MySQLError as exc:
                if self.fault(exc, dialling=False) is not Fault.ORDINARY:
                    raise
                rows = []
            conn._result, conn._next_seq_id = known
        return rows

    async def begin(self, conn: C) -> None:
        """Send BEGIN."""
        await conn.begin()

    async def commit(self, conn: C) -> None:
        """Commit; what proves rest is planted by the pooled class."""
        await conn.commit()

    async def rollback(self, conn: C, limit: float | None) -> None:
        """Roll back as aiomysql does, whatever a user's class makes of it."""
        async with _within(limit, conn, "ROLLBACK"):
            await Connection.rollback(conn)
        _plant(conn)

    # -- coming back to what was at connect ----------------------------------------------------------

    async def restore(self, conn: C, baseline: Any, limit: float | None) -> None:
        """Put the settings back: with one SET if the server has to know, else without a word."""
        wanted = []
        if conn.server_status & _AUTOCOMMIT != baseline.autocommit:
            wanted.append(baseline.set_autocommit())
        if conn._charset != baseline.charset:
            wanted.append(baseline.set_names())
        if wanted:
            async with _within(limit, conn, "restore"):
                await conn._execute_command(COMMAND.COM_QUERY, f"SET {', '.join(wanted)}")
                await conn._read_ok_packet()
            _plant(conn)
        baseline.put_back(conn)

    async def send_reset(
        self, conn: C, baseline: Any, memory: Any, parts: tuple[Part, ...], limit: float | None
    ) -> object | None:
        """Send COM_RESET_CONNECTION and all that follows it in one message."""
        if self.verdict(conn, baseline) >= _BROKEN:
            raise InterfaceError(0, "the connection is not at rest")
        commands = list(memory.commands(baseline))
        if conn.server_status & _IN_TRANS:
            commands.insert(0, Command(COMMAND.COM_QUERY, "ROLLBACK", Answer.OK))  # fails for XA
        conn._result = _OUTSTANDING  # first, so that nobody ever sees a connection half put back
        baseline.put_back(conn)
        if Part.FULL in parts:
            memory.put_back(conn)
        async with _within(limit, conn, "reset"):
            conn._write_bytes(b"".join(command.packet(baseline.encoding) for command in commands))
            await conn._writer.drain()
        return commands

    async def read_reset(self, conn: C, token: Any, limit: float | None) -> None:
        """Read all answers; close a session that has got a database and cannot get rid of it."""
        if conn._writer is None:
            raise InterfaceError(0, "")
        lasting = False
        async with _within(limit, conn, "reset"):
            for command in token:
                conn._next_seq_id = 1  # each answer counts for itself
                lasting |= await _read_answer(conn, command.answer)
        conn._result = None
        _plant(conn)
        if lasting:
            await self.close(conn, limit)
            conn._ended = True  # by its borrower, as it were: nothing is lost

    # -- closing -------------------------------------------------------------------------------------

    async def close(self, conn: C, limit: float | None) -> None:
        """Send COM_QUIT if nothing is under way but a reset, and close."""
        unread = conn._result is _OUTSTANDING and conn._next_seq_id != _AWAITED
        try:
            if conn._writer is not None and is_here(conn._loop) and (unread or self._at_rest(conn) < _BROKEN):
                async with asyncio.timeout(_GOODBYE if limit is None else limit):
                    conn._write_bytes(b"\x01\0\0\0\x01")
                    await conn._writer.drain()
                    while unread:  # what nobody has read makes the kernel tear the connection down
                        unread = bool(await conn._reader.read(65_536))
        except Exception:
            pass  # the goodbye is for the server's statistics
        finally:
            self.abort(conn)

    def abort(self, conn: C) -> None:
        """Cut the transport; a task that waits for an answer gets an error."""
        _cut_off(conn)

    def forget(self, conn: C) -> None:
        """Let the descriptor lead nowhere, and have aiomysql say to everybody that it is not connected.

        The loop is the parent's, and shares its selector with it: it is not to be touched.
        """
        try:
            writer = conn._writer
            if writer is None:
                return
            disconnect(lambda: fileno(writer.transport))
            _parents.append((writer, conn._reader))
            conn._writer = conn._reader = None
        except Exception:
            pass  # another aiomysql; it leads nowhere all the same

    # -- faults --------------------------------------------------------------------------------------

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Classify by the error code, the server's or PyMySQL's own."""
        if isinstance(exc, InterfaceError) and any(text in str(exc) for text in _CLOSED):
            return Fault.DEAD
        return fault_of(exc, dialling=dialling)


_parents: list[object] = []
"""In a forked child, what the parent's connections were made of: their finalizers would call its loop."""


def _begin(conn: Any) -> None:
    """Note that a connection has only just been opened: nothing was sent that has a result."""
    _plant(conn)
    # These are the flags of the greeting.
    conn.server_status = _Doubtful(conn.server_status | _IN_TRANS)


@asynccontextmanager
async def _within(limit: float | None, conn: Any, what: str) -> AsyncIterator[None]:
    """Give a step *limit* seconds; close the connection on any error."""
    try:
        async with asyncio.timeout(limit):
            yield
    except TimeoutError:
        _cut_off(conn)
        text = f"{what}: no answer within {limit:.3g} s, the connection is closed"
        raise OperationalError(CR.CR_SERVER_LOST, text) from None
    except BaseException:
        _cut_off(conn)
        raise


def _cut_off(conn: Any) -> None:
    """Close a connection at once, in any thread and whatever has become of its loop."""
    writer = conn._writer
    if writer is not None:
        conn._writer = conn._reader = None
        cut(writer.transport, conn._loop, keep=writer)


def _refuse_unknown(params: Mapping[str, object]) -> None:
    """Raise if aiomysql does not know one of the names; their values are not shown."""
    unknown = sorted(params.keys() - _PARAMETERS)
    if unknown:
        raise PoolMisuse(f"aiomysql.connect() has no parameter {', '.join(unknown)}")
