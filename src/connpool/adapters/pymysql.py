"""PyMySQL (https://github.com/PyMySQL/PyMySQL), for MySQL and MariaDB.

What is true of this driver, and shapes what stands below:

*Rest.*  PyMySQL's attributes do not prove that a connection is at rest.  Where bytes have gone out
and the answer was not awaited (KeyboardInterrupt, gevent.Timeout: they strike in ``sendall``),
everything looks as it does after a COMMIT, and the next borrower reads the last one's rows: 1,206
times in 3,000 interrupts.  So a connection that is taken in gets a subclass of its own class, which
marks the sequence number from the moment when bytes may be out until the first packet of the answer
is there, and refuses to send the next command meanwhile: the borrower's own ROLLBACK after an
interrupt would read the interrupted statement's OK as its own.  And where nothing was sent since the
last COMMIT or ROLLBACK, a result of ours, one of `_REST`, stands in the place of the last one.

*Transactions.*  PyMySQL takes ``server_status`` from OK packets only.  A SELECT answers with none: under
``autocommit=False``, PyMySQL's default, it opens a transaction (a snapshot) that no flag shows.
Without autocommit therefore only `_REST` is clean.  With autocommit whatever opens a transaction answers
with an OK, except in three places where the pooled class looks for itself.  An error has no flags, and a
procedure may begin a transaction before it fails: until the next answer nobody relies on them.  The
flags in front of an unbuffered result's rows are dropped, and a procedure may have begun one there,
too.  And so are those in the OK to SET NAMES, the first that know of the server's ``init_connect``: with
the example of MySQL's manual, ``SET autocommit=0``, PyMySQL believes in an autocommit that is off.  A
failed transaction is no state of its own here: a statement that failed has had no effect, the others
stand, so there is never a `Verdict.FAILED`.

*Settings.*  What PyMySQL keeps in the connection, and the next borrower would inherit: autocommit (as the
server's flag shows it), ``cursorclass``, the character set with its collation, ``_read_timeout`` and
``_write_timeout``.  These are compared at each return.  ``decoders``, ``encoders``, ``use_unicode`` and
``max_allowed_packet`` are hardly ever touched, and are put back by `Part.FULL` only.  The rest (``db``,
``sql_mode``, ``init_command`` and others) is read by ``connect()`` alone.

*Resets.*  COM_RESET_CONNECTION forgets nearly everything of a session, what was set at connect as well.
The commands that bring this back follow it in the same message, and their answers are read when the
connection is needed; until then `_OUTSTANDING` stands where `_REST` would.  MariaDB can list the
variables that were set at connect; for MySQL there is a list of our own.  Not forgotten are the
database, the role (tried on MariaDB), and what XA PREPARE does to a session: a ROLLBACK in front fails
then.  A session that had no database cannot get rid of one.

*Limits.*  ``connect_timeout`` covers neither the handshake nor more than one address;
``read_timeout`` and ``write_timeout`` cover every single recv and send.  The adapter gives each wait
what is left of its own limit.  Name resolution is not covered.  A server that drips single bytes of
one packet is given the limit for each of them; the answer to a ROLLBACK has a dozen.

*TLS.*  Without an option for it, PyMySQL 1.2 uses TLS if the server offers it, and verifies nothing; yet it
reads the system's certificates at each dial: 24 ms of computing, which hold up all greenlets of a hub.  The
context that it makes is the same each time, so the adapter's connections share one.  Where there is an
option, PyMySQL makes a context for each dial, as it does without a pool: files may have been renewed.

*Threads.*  ``threadsafety`` is 1, and there is no lock to ask.

Not known here: sizes, queues, when a connection is looked at, what becomes of it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar, cast, overload
from urllib.parse import parse_qsl, unquote, urlsplit

from pymysql import err
from pymysql.connections import Connection, MySQLResult
from pymysql.constants import COMMAND, CR, ER, SERVER_STATUS
from pymysql.protocol import OKPacketWrapper

from connpool.adapter import Fault, Verdict
from connpool.adapters.classes import Subclasses
from connpool.adapters.sockets import disconnect, keep_alive, ready, shut_down
from connpool.errors import (
    PoolClosed,
    PoolError,
    PoolMisuse,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from connpool.reset import Part

if TYPE_CHECKING:
    from pymysql.cursors import Cursor
    from pymysql.protocol import MysqlPacket

__all__ = [
    "PyMySQLAdapter",
    "PyMySQLPoolClosed",
    "PyMySQLPoolOverloaded",
    "PyMySQLPoolTimeout",
    "PyMySQLPoolUnavailable",
]

C = TypeVar("C", bound="Connection[Any]")
C2 = TypeVar("C2", bound="Connection[Any]")
K = TypeVar("K", bound="Cursor")
T = TypeVar("T")


# -- the pool's errors, as this driver's --------------------------------------------------------------


class PyMySQLPoolTimeout(PoolTimeout, err.OperationalError):
    """`PoolTimeout` for ``except pymysql.err.OperationalError``."""

    def __init__(self, message: str = "") -> None:
        # OSError, which a TimeoutError is, passes nothing on: `sqlstate` would be missing.
        err.OperationalError.__init__(self, message)


class PyMySQLPoolOverloaded(PoolOverloaded, err.OperationalError):
    """`PoolOverloaded` for ``except pymysql.err.OperationalError``."""


class PyMySQLPoolUnavailable(PoolUnavailable, err.OperationalError):
    """`PoolUnavailable` for ``except pymysql.err.OperationalError``."""


class PyMySQLPoolClosed(PoolClosed, err.OperationalError):
    """`PoolClosed` for ``except pymysql.err.OperationalError``."""


# -- tables ------------------------------------------------------------------------------------------

_CLEAN, _ALTERED, _DIRTY = Verdict.CLEAN, Verdict.ALTERED, Verdict.DIRTY
_BROKEN, _SPENT = Verdict.BROKEN, Verdict.SPENT

_IN_TRANS = SERVER_STATUS.SERVER_STATUS_IN_TRANS
_AUTOCOMMIT = SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT
_MORE = SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
_TRANSACTION_BITS = _IN_TRANS | _AUTOCOMMIT
_UNREAD_BITS = _TRANSACTION_BITS | _MORE

# https://mariadb.com/kb/en/mariadb-error-codes/ and
# https://dev.mysql.com/doc/mysql-errors/8.4/en/
_OPTION_PREVENTS_STATEMENT = 1290
_READ_ONLY = re.compile("read.only", re.IGNORECASE)

_FAULTS = {
    CR.CR_SERVER_GONE_ERROR: Fault.DEAD,
    CR.CR_SERVER_LOST: Fault.DEAD,
    CR.CR_COMMANDS_OUT_OF_SYNC: Fault.DEAD,
    2055: Fault.DEAD,  # CR_SERVER_LOST_EXTENDED
    1053: Fault.DEAD,  # ER_SERVER_SHUTDOWN
    1152: Fault.DEAD,  # ER_ABORTING_CONNECTION
    1184: Fault.DEAD,  # ER_NEW_ABORTING_CONNECTION
    1927: Fault.DEAD,  # ER_CONNECTION_KILLED, MariaDB
    3032: Fault.DEAD,  # ER_SERVER_OFFLINE_MODE, MySQL
    3169: Fault.DEAD,  # ER_SESSION_WAS_KILLED, MySQL
    4031: Fault.DEAD,  # ER_CLIENT_INTERACTION_TIMEOUT, MySQL
    _OPTION_PREVENTS_STATEMENT: Fault.DEMOTED,  # if the option is --read-only
    1792: Fault.DEMOTED,  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
    1836: Fault.DEMOTED,  # ER_READ_ONLY_MODE
    1874: Fault.DEMOTED,  # ER_INNODB_READ_ONLY
}
# These are a statement's own later on: USE of a database that does not exist is 1049 as well.
_REFUSALS = {
    1053: Fault.STARTING,  # ER_SERVER_SHUTDOWN
    3032: Fault.STARTING,  # ER_SERVER_OFFLINE_MODE, MySQL
    1040: Fault.FULL,  # ER_CON_COUNT_ERROR
    1203: Fault.FULL,  # ER_TOO_MANY_USER_CONNECTIONS
    1226: Fault.FULL,  # ER_USER_LIMIT_REACHED
    1044: Fault.AUTH,  # ER_DBACCESS_DENIED_ERROR
    1045: Fault.AUTH,  # ER_ACCESS_DENIED_ERROR
    1049: Fault.AUTH,  # ER_BAD_DB_ERROR
    1129: Fault.AUTH,  # ER_HOST_IS_BLOCKED: until somebody unblocks it
    1130: Fault.AUTH,  # ER_HOST_NOT_PRIVILEGED
    1251: Fault.AUTH,  # ER_NOT_SUPPORTED_AUTH_MODE
    1524: Fault.AUTH,  # ER_PLUGIN_IS_NOT_LOADED
    1698: Fault.AUTH,  # ER_ACCESS_DENIED_NO_PASSWORD_ERROR
    1820: Fault.AUTH,  # ER_MUST_CHANGE_PASSWORD
    1862: Fault.AUTH,  # ER_MUST_CHANGE_PASSWORD_LOGIN
    3118: Fault.AUTH,  # ER_ACCOUNT_HAS_BEEN_LOCKED, MySQL
    4151: Fault.AUTH,  # ER_ACCOUNT_HAS_BEEN_LOCKED, MariaDB
    3159: Fault.AUTH,  # ER_SECURE_TRANSPORT_REQUIRED
    3955: Fault.AUTH,  # ER_USER_ACCESS_DENIED_FOR_USER_ACCOUNT_BLOCKED_BY_PASSWORD_LOCK, MySQL
    CR.CR_SSL_CONNECTION_ERROR: Fault.AUTH,
    2059: Fault.AUTH,  # CR_AUTH_PLUGIN_CANNOT_LOAD
}
# PyMySQL reports a failed handshake with the code of a server that cannot be reached.  That it is the
# certificates', the server's or ours, OpenSSL's name for the reason tells.
_CERTIFICATES = re.compile("CERTIFICATE|UNKNOWN_CA")

# PyMySQL's deprecated names, which give way to the others.
_ALIASES = {"passwd": "password", "db": "database"}

# MySQL's super_read_only sets read_only, too.  Where there is no InnoDB, its variable is missing.
_ARE_WRITES_REFUSED = (
    "SELECT @@global.read_only, @@global.innodb_read_only",
    "SELECT @@global.read_only",
)


def _boolean(text: str) -> bool:
    try:
        return {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _maybe_boolean(text: str) -> bool | None:
    return None if text.lower() == "none" else _boolean(text)


# What a URL may say after its "?", and how it is read.
_URL_PARAMETERS: dict[str, Callable[[str], object]] = {
    "autocommit": _maybe_boolean,  # None: as the server has it
    "bind_address": str,
    "charset": str,
    "client_flag": int,
    "collation": str,
    "connect_timeout": float,
    "init_command": str,
    "local_infile": _boolean,
    "max_allowed_packet": int,
    "program_name": str,
    "read_default_file": str,
    "read_default_group": str,
    "read_timeout": float,
    "sql_mode": str,
    "ssl_ca": str,
    "ssl_cert": str,
    "ssl_disabled": _boolean,
    "ssl_key": str,
    "ssl_key_password": str,
    "ssl_verify_cert": _boolean,
    "ssl_verify_identity": _boolean,
    "unix_socket": str,
    "use_unicode": _boolean,
    "write_timeout": float,
}

_GOODBYE = 1.0
"""Seconds that a server has to close its end, if the caller does not say."""

_TLS_OPTIONS = (
    "ssl",
    "ssl_ca",
    "ssl_cert",
    "ssl_disabled",
    "ssl_key",
    "ssl_verify_cert",
    "ssl_verify_identity",
)

# What of the parameters may be shown: never a password, not even a wrong one.
_SHOWN = ("unix_socket", "host", "port", "user", "database")


# -- rest, provably ----------------------------------------------------------------------------------


def _stand_in(has_next: int | None = None) -> MySQLResult:
    result: Any = MySQLResult(cast("Connection[Any]", None))
    result.insert_id = 0  # what conn.insert_id() answers after a COMMIT
    result.has_next = has_next
    return cast("MySQLResult", result)


_REST = {0: _stand_in(), _AUTOCOMMIT: _stand_in()}
"""Stands in ``conn._result`` while nothing was sent since a transaction ended.

PyMySQL clears ``_result`` before it sends any command (``_execute_command``), and there is no other
way to send one: whoever still finds this object knows that nothing was sent.  PyMySQL never writes to
a result that is complete, so one object serves all connections; there are two, with autocommit off and
on, because the warm path then has one thing less to compare.
"""

_OUTSTANDING = _stand_in(has_next=_MORE)
"""Stands in ``conn._result`` while the answers to a reset are to be read.

The sequence number alone would not do: each answer that has been read leaves one behind which looks as
if it had been the last.
"""

_SENT = -1
"""In ``conn._next_seq_id``: bytes may be out."""


class _Awaited(int):
    """In ``conn._next_seq_id``: the command is out, and nothing of its answer has been read.

    The first packet read makes a plain number of it, because PyMySQL adds 1.
    """

    __slots__ = ()


_ANSWERED = 2
"""A command is packet 0, the first packet of its answer is 1, and the next one would be this."""


class _Doubtful(int):
    """In ``conn.server_status``: a transaction might be open; ask what is read next.

    It has the flag of a transaction, so whoever does not know of it takes the connection for dirty.
    """

    __slots__ = ()


def _pooled(base: type[Any]) -> type[Any]:
    """Make the subclass that connections of *base*, PyMySQL's class or a user's, get in a pool."""

    class Pooled(base):  # type: ignore[misc] # one for each class of a user
        _next_seq_id: int
        server_status: int
        charset: str
        _shared_context: ssl.SSLContext | None = None

        def _create_ssl_ctx(self, sslp: Any) -> ssl.SSLContext:
            if sslp:
                return cast("ssl.SSLContext", super()._create_ssl_ctx(sslp))
            shared = Pooled._shared_context
            if shared is None:
                shared = Pooled._shared_context = super()._create_ssl_ctx(sslp)
            return cast("ssl.SSLContext", shared)

        def _execute_command(self, command: int, sql: str | bytes) -> None:
            number = self._next_seq_id
            if number == _SENT or type(number) is _Awaited or self._result is _OUTSTANDING:
                # Somebody was interrupted between a command and its answer, and goes on.  The
                # answer that comes first would be taken for the one to this command.
                _cut(self)
                raise err.OperationalError(
                    CR.CR_COMMANDS_OUT_OF_SYNC,
                    "an earlier command was interrupted before its answer came: connection closed",
                )
            super()._execute_command(command, sql)
            self._next_seq_id = _Awaited(self._next_seq_id)

        def _write_bytes(self, data: bytes) -> None:
            self._next_seq_id = _SENT
            super()._write_bytes(data)
            # The mark stays.  An exception may strike before our caller sets the number that it
            # awaits next, and one that was put back here could be the number of an answer read.

        def write_packet(self, payload: bytes) -> None:
            number = self._next_seq_id
            super().write_packet(payload)  # counts on from the mark
            self._next_seq_id = _Awaited((number + 1) % 256)

        def _read_query_result(self, unbuffered: bool = False) -> int:
            known = self.server_status
            try:
                if not unbuffered and type(known) is int:
                    return super()._read_query_result()  # type: ignore[no-any-return]
                self.server_status = _Doubtful(known | _IN_TRANS)
                with _tapped(self) as last:
                    affected: int = super()._read_query_result(unbuffered)
                if last[0].is_eof_packet():  # the end of the columns, or of the rows
                    self.server_status = int.from_bytes(last[0].get_bytes(3, 2), "little")
                return affected
            except err.MySQLError as exc:
                if self._sock is None:
                    self.server_status = known  # what the server was doing, this error tells
                else:
                    if _is_last_word(exc) and type(self._next_seq_id) is int:
                        # It came in place of further rows, as after the columns of an INSERT ... RETURNING.
                        self._next_seq_id = _ANSWERED
                    # In two steps: up to the first one there is no call, so no interrupt can strike.
                    self.server_status = known | _IN_TRANS
                    self.server_status = _Doubtful(self.server_status)
                raise

        # A user's own method may do something else, or nothing: that proves nothing to us.
        if base.set_character_set is Connection.set_character_set:

            def set_character_set(self, charset: str, collation: str | None = None) -> None:
                before = self.charset
                # If an interrupt strikes after the server's answer, this shows that the two sides do
                # not agree.
                self.charset = ""
                try:
                    with _tapped(self) as last:
                        super().set_character_set(charset, collation)
                except Exception:
                    self.charset = before
                    raise
                last[0].rewind()
                self.server_status = OKPacketWrapper(last[0]).server_status

        if base.commit is Connection.commit:

            def commit(self) -> None:
                super().commit()
                _plant(self)

        if base.rollback is Connection.rollback:

            def rollback(self) -> None:
                super().rollback()
                _plant(self)

    return Pooled


_classes = Subclasses(_pooled)


def _plant(conn: Any) -> None:
    """Note that a transaction has ended: its OK was read, and `_execute_command` let it be sent.

    With ``completion_type=CHAIN`` the next one has begun already, and the OK says so.
    """
    if not conn.server_status & _IN_TRANS:
        conn._result = _REST[conn.server_status & _AUTOCOMMIT]


def _plant_new(conn: Any) -> None:
    """Note that a connection has only just been opened, unless something was sent over it.

    What connect() sends at last is SET NAMES or SET AUTOCOMMIT; a statement of the user's would have
    left its result.
    """
    if conn._result is None and conn._next_seq_id == _ANSWERED:
        _plant(conn)


def _is_last_word(exc: err.MySQLError) -> bool:
    """Tell an error of the server's, after which nothing comes, from one of PyMySQL's own."""
    code = exc.args[0] if exc.args else None
    return isinstance(code, int) and code != ER.FILE_NOT_FOUND and not 2000 <= code < 3000


class _Abandoned(MySQLResult):
    """An unbuffered result whose connection is closed: it has no rest to read from the wire.

    PyMySQL reads it in ``__del__``, long after.  Fetching from it fails, as it should.
    """

    def _finish_unbuffered_query(self) -> None:
        self.unbuffered_active = False
        self.connection = None


# -- what a connection comes back to ------------------------------------------------------------------


class _Baseline:
    """The settings that PyMySQL keeps in the connection."""

    __slots__ = (
        "autocommit",
        "autocommit_mode",
        "charset",
        "collation",
        "cursorclass",
        "encoding",
        "proof",
        "read_timeout",
        "rest",
        "write_timeout",
    )

    def __init__(self, wire: Any) -> None:
        self.autocommit = getattr(wire, "server_status", 0) & _AUTOCOMMIT
        self.rest = _REST[self.autocommit]
        # The flags that prove rest, and autocommit as it was: none, if it was off.
        self.proof = self.autocommit or None
        self.autocommit_mode = wire.autocommit_mode
        self.cursorclass = wire.cursorclass
        self.charset, self.collation, self.encoding = wire.charset, wire.collation, wire.encoding
        self.read_timeout, self.write_timeout = wire._read_timeout, wire._write_timeout

    def put_back(self, wire: Any) -> None:
        wire.autocommit_mode = self.autocommit_mode
        wire.cursorclass = self.cursorclass
        wire.encoding, wire.collation, wire.charset = self.encoding, self.collation, self.charset
        wire._read_timeout, wire._write_timeout = self.read_timeout, self.write_timeout

    def set_autocommit(self) -> str:
        return f"AUTOCOMMIT = {int(self.autocommit > 0)}"

    def set_names(self) -> str:
        """Return what ``conn.set_character_set()`` sends."""
        return f"NAMES {self.charset}" + (f" COLLATE {self.collation}" if self.collation else "")


_COM_RESET_CONNECTION = 0x1F

SAYS: Mapping[str, str] = {
    "connect": "SELECT @@wait_timeout; under a reset by parts, a SELECT of the settings that it loses",
    "require": "SELECT @@global.read_only, @@global.innodb_read_only; MariaDB without the second",
    "ping": "COM_PING",
    "begin": "BEGIN",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "restore": "SET AUTOCOMMIT or SET NAMES, if a borrower has changed them",
    "demoted": "as for `require`",
    **dict.fromkeys(
        (str(Part.FULL), str(Part.RESET_CONNECTION)),
        "COM_RESET_CONNECTION, then what was set at connect: SET of character set, autocommit, sql_mode, "
        "time_zone and the like, SET ROLE, COM_INIT_DB, init_command",
    ),
}
"""What an adapter for MySQL says on which occasion."""

_NAMES = ("character_set_client", "character_set_results", "collation_connection")
# Brought back even where they are as for all sessions: what was said at connect holds when the
# server's administrator changes his mind.
_ALWAYS = ("sql_mode", "time_zone")
# MySQL lists what a session has changed in its performance schema only, which may be off.
_OF_MYSQL = (
    "foreign_key_checks",
    "group_concat_max_len",
    "innodb_lock_wait_timeout",
    "lc_time_names",
    "lock_wait_timeout",
    "max_execution_time",
    "sql_safe_updates",
    "unique_checks",
    "wait_timeout",
)
_CHANGED_IN_MARIADB = (
    "SELECT variable_name, session_value FROM information_schema.system_variables"
    " WHERE variable_scope = 'SESSION' AND read_only = 'NO' AND session_value <> global_value"
    " LIMIT 10000"  # or sql_select_limit, one of them, would hold
)
# These follow from the database and the collation, or are the baseline's.
_FOLLOWING = ("autocommit", "character_set_connection", "character_set_database", "collation_database")


Rows: TypeAlias = list[list[str | None]]

Questions: TypeAlias = Generator[str, Rows, T]
"""Something that asks the server: it yields statements, and is sent their rows."""


def _answered(questions: Questions[T], ask: Callable[[str], Rows]) -> T:
    try:
        question = next(questions)
        while True:
            question = questions.send(ask(question))
    except StopIteration as end:
        return cast("T", end.value)


class _Memory:
    """What COM_RESET_CONNECTION loses, as it was at connect."""

    _database: str | None
    _first_database: str | bytes | None
    _init_command: str | None
    _role: str | None
    """As SET ROLE wants it."""
    _names: list[str]
    _variables: list[str]
    _charset: tuple[str, str | None]
    _decoders: dict[Any, Any]
    _encoders: dict[Any, Any]
    _use_unicode: bool
    _max_allowed_packet: int | None

    @classmethod
    def asked(cls, wire: Any) -> Questions[_Memory]:
        """Ask the server: yield each question, and be sent its rows."""
        self = cls()
        version = wire.server_version
        mariadb = "MariaDB" in version
        # MySQL 8 has renamed the one, and has roles.
        modern = not mariadb and int(version.partition(".")[0]) >= 8
        transaction = "transaction" if modern else "tx"
        variables = [*_ALWAYS, f"{transaction}_isolation", f"{transaction}_read_only"]
        if not mariadb:
            variables += _OF_MYSQL
        asked = ["DATABASE()", *(f"@@{name}" for name in (*_NAMES, *variables))]
        if mariadb or modern:
            asked.append("CURRENT_ROLE()")
        ((self._database, *values),) = yield f"SELECT {', '.join(asked)}"

        self._role = None
        if modern:
            self._role = values.pop()  # "NONE", or a list of names in quotes
        elif mariadb:
            role = values.pop()
            self._role = "NONE" if role is None else f"`{role.replace('`', '``')}`"

        pairs = list(zip((*_NAMES, *variables), values, strict=True))
        if mariadb:
            known = {*_NAMES, *variables, *_FOLLOWING}
            changed = [(str(name).lower(), value) for name, value in (yield _CHANGED_IN_MARIADB)]
            pairs += [(name, value) for name, value in changed if name not in known]
        assignments = [f"{name} = {_literal(value)}" for name, value in pairs]
        self._names, self._variables = assignments[: len(_NAMES)], assignments[len(_NAMES) :]
        self._charset = (wire.charset, getattr(wire, "collation", None))

        self._first_database, self._init_command = wire.db, wire.init_command
        self._decoders, self._encoders = dict(wire.decoders), dict(wire.encoders)
        self._use_unicode = wire.use_unicode
        self._max_allowed_packet = getattr(wire, "max_allowed_packet", None)
        return self

    def put_back(self, wire: Any) -> None:
        """Put back what is of PyMySQL, and not in the baseline."""
        wire.decoders, wire.encoders = dict(self._decoders), dict(self._encoders)
        wire.use_unicode, wire.max_allowed_packet = self._use_unicode, self._max_allowed_packet

    def commands(self, baseline: _Baseline) -> Iterator[Command]:
        """Yield what makes a session that of a new connection."""
        yield Command(_COM_RESET_CONNECTION, "", Answer.OK)
        if self._database is None:
            yield Command(COMMAND.COM_QUERY, "SELECT DATABASE()", Answer.DATABASE)
        # on_connect may have called set_character_set(): then the server's part is in nobody's memory.
        same = (baseline.charset, baseline.collation) == self._charset
        settings = [*(self._names if same else [baseline.set_names()]), *self._variables]
        if self._init_command:
            # It finds what it found at connect, in the server's own mode of autocommit; what came after
            # it comes after it again.
            yield from self._session(self._first_database, settings)
            yield Command(COMMAND.COM_QUERY, self._init_command, Answer.ANYTHING)
            yield Command(COMMAND.COM_QUERY, "COMMIT", Answer.OK)
        yield from self._session(self._database, [*settings, baseline.set_autocommit()])

    def _session(self, database: str | bytes | None, settings: list[str]) -> Iterator[Command]:
        # First of all the character set: the names that follow are written in it.
        yield Command(COMMAND.COM_QUERY, f"SET {', '.join(settings)}", Answer.OK)
        if self._role is not None:
            yield Command(COMMAND.COM_QUERY, f"SET ROLE {self._role}", Answer.OK)
        if database is not None:
            yield Command(COMMAND.COM_INIT_DB, database, Answer.OK)


class Answer(Enum):
    """What is answered to a command, and what it may show."""

    OK = "an OK"
    ANYTHING = "anything"
    DATABASE = "a row with the database: if the session has one, no reset can undo that"


class Command(NamedTuple):
    """One command of several that are sent together, and how its answer is read."""

    code: int
    text: str | bytes
    answer: Answer

    def packet(self, encoding: str) -> bytes:
        text = self.text.encode(encoding) if isinstance(self.text, str) else self.text
        return (len(text) + 1).to_bytes(3, "little") + bytes((0, self.code)) + text


def _read_answer(wire: Any, answer: Answer) -> bool:
    """Read the answer to a command; tell whether it shows something that no reset can undo."""
    if answer is Answer.OK:
        wire._read_ok_packet()
        return False
    rows = _read_rows(wire)
    return answer is Answer.DATABASE and rows != ((None,),)


def _read_rows(wire: Any) -> Sequence[tuple[bytes | None, ...]]:
    """Read all that a statement answers, be it rows or not; return the last."""
    while True:
        result: Any = _Undecoded(wire)
        result.read()
        if not result.has_next:
            return result.rows or ()


def _ask(wire: Any, statement: str) -> Rows:
    wire._execute_command(COMMAND.COM_QUERY, statement)
    return [
        [None if value is None else value.decode(wire.encoding) for value in row] for row in _read_rows(wire)
    ]


class _Undecoded(MySQLResult):
    """A result of bytes, whatever a user's converters would make of them."""

    def _get_descriptions(self) -> None:
        super()._get_descriptions()  # type: ignore[misc] # the stubs know only what is public
        self.converters = [(None, None)] * self.field_count


def _literal(value: str | None) -> str:
    if value is None:
        return "NULL"
    if re.fullmatch(r"-?\d+(\.\d+)?", value):
        return value  # no number may be set from a text
    return "'" + value.replace("'", "''") + "'"


# -- the adapter -------------------------------------------------------------------------------------


class PyMySQLAdapter(Generic[C]):
    """Connections of PyMySQL, made by the adapter within a limit.

    Prefer it to a bare ``lambda: pymysql.connect(...)``, whose dials nobody can limit.

    Args:
        cursorclass: As for `pymysql.connect`; it decides the connection's type.
        params: The other arguments of `pymysql.connect`.  A `connect_timeout` is what one address may
            take at most; the pool's own limit is for all of them and the handshake together.

    Raises:
        PoolMisuse: `pymysql.connect` has no such parameter, or it is the pool's to decide.
    """

    name: str = "pymysql"
    bounded: bool = True
    sees_transactions: bool = True
    errors: Mapping[type[PoolError], type[PoolError]] = {
        PoolTimeout: PyMySQLPoolTimeout,
        PoolOverloaded: PyMySQLPoolOverloaded,
        PoolUnavailable: PyMySQLPoolUnavailable,
        PoolClosed: PyMySQLPoolClosed,
    }
    says: Mapping[str, str] = SAYS
    parts: Collection[Part] = frozenset({Part.FULL, Part.RESET_CONNECTION})

    @overload
    def __init__(
        self: PyMySQLAdapter[Connection[Cursor]], *, cursorclass: None = None, **params: object
    ) -> None: ...

    @overload
    def __init__(self: PyMySQLAdapter[Connection[K]], *, cursorclass: type[K], **params: object) -> None: ...

    def __init__(self, *, cursorclass: type[Cursor] | None = None, **params: object) -> None:
        if cursorclass is not None:
            params["cursorclass"] = cursorclass
        _refuse_unknown(params)
        self._params: dict[str, Any] = params
        self._callable: Callable[[], C] | None = None
        if params and not any(params.get(name) for name in _TLS_OPTIONS):
            # Has the shared context made now, and not while somebody waits for the first dial.
            _classes.of(Connection)(defer_connect=True)

    @classmethod
    def around(cls, connect: Callable[[], C2]) -> PyMySQLAdapter[C2]:
        """Make an adapter for a callable that returns connections; its dials have no limit."""
        adapter: PyMySQLAdapter[Any] = PyMySQLAdapter()
        adapter.bounded = False
        adapter._callable = connect
        return adapter

    @classmethod
    def from_url(cls, url: str) -> PyMySQLAdapter[Connection[Cursor]]:
        """Make an adapter from ``mysql://user:password@host:port/database?charset=utf8mb4``.

        ``mariadb://`` and ``mysql+pymysql://`` are understood as well.  What `pymysql.connect` takes
        as text, a number or a truth value may follow the question mark.

        Raises:
            PoolMisuse: The URL cannot be read; the message does not repeat it.
        """
        return PyMySQLAdapter(**_params_from_url(url))

    def __repr__(self) -> str:
        # Of a callable only its name: a functools.partial shows its arguments.
        if self._callable is not None:
            shown = getattr(self._callable, "__qualname__", type(self._callable).__qualname__)
            return f"PyMySQLAdapter.around({shown})"
        shown = ", ".join(f"{name}={self._params[name]!r}" for name in _SHOWN if name in self._params)
        return f"PyMySQLAdapter({shown})"

    # -- opening -------------------------------------------------------------------------------------

    def connect(self, limit: float | None, credentials: Mapping[str, Any] | None = None) -> C:
        """Open a connection within *limit* seconds, the handshake and all addresses together.

        *credentials* are parameters of `pymysql.connect`; ``None`` for a value takes the adapter's own
        away.
        """
        if self._callable is not None:
            return self._callable()
        params = self._with_credentials(credentials) if credentials else self._params
        conn: Any = _classes.of(Connection)(**params, defer_connect=True)
        deadline = None if limit is None else monotonic() + limit
        if deadline is None:
            conn.connect()
        elif conn.unix_socket:
            own, conn.connect_timeout = conn.connect_timeout, _shorter(conn.connect_timeout, limit)
            with _within(conn, limit):
                conn.connect()
            conn.connect_timeout = own
        else:
            sock = _dial(conn, deadline)
            try:
                with _within(conn, deadline - monotonic()):
                    conn.connect(sock)
            except BaseException:
                sock.close()
                raise
        _plant_new(conn)
        return cast("C", conn)

    def _with_credentials(self, credentials: Mapping[str, Any]) -> dict[str, Any]:
        _refuse_unknown(credentials)
        given = {_ALIASES.get(name, name) for name in credentials}
        own = {name: value for name, value in self._params.items() if _ALIASES.get(name, name) not in given}
        return own | {name: value for name, value in credentials.items() if value is not None}

    def adopt(self, conn: C) -> object:
        """Give the connection the class that marks what is sent; return its settings."""
        if not isinstance(conn, Connection):
            raise PoolMisuse(
                f"the connect callable returned a {type(conn).__module__}.{type(conn).__qualname__},"
                " not a pymysql.connections.Connection"
            )
        wire: Any = conn
        if wire.open:
            keep_alive(wire._sock.fileno())
        try:
            new = _classes.give(wire)
        except TypeError as exc:
            raise PoolMisuse(f"connections of this class cannot be pooled: {exc}") from exc
        if new and wire.open:
            _plant_new(wire)
            # PyMySQL's own class has not looked at the answer to SET NAMES.
            wire.server_status = _Doubtful(wire.server_status | _IN_TRANS)
        return _Baseline(wire)

    def remember(self, conn: C, parts: tuple[Part, ...], limit: float | None) -> object:  # noqa: ARG002 -- all lose the same
        """Ask for what a reset loses; commit what the connect callable has left open."""
        with _within(conn, limit):
            memory = _answered(_Memory.asked(conn), partial(_ask, conn))
            Connection.commit(conn)
        _plant(conn)
        return memory

    # -- judging -------------------------------------------------------------------------------------

    # -- warm path
    def verdict(self, conn: C, baseline: object) -> Verdict:
        """Judge by what was sent since rest was last proven."""
        try:
            wire: Any = conn
            was: Any = baseline
            result = wire._result
            if wire._sock is None:
                # Closed by its borrower; or dead, with flags that are true and say that no
                # transaction was open.  What the server was doing when it died, its error has told.
                unread = result is not None and result.has_next
                safe = not unread and wire.server_status & _UNREAD_BITS == _AUTOCOMMIT
                return _SPENT if wire._closed or safe else _BROKEN
            if result is not was.rest:
                if result is None:
                    # An answer has begun.  If it was one packet (OK, or the error of a statement),
                    # the ROLLBACK finds the wire at rest.  If more is to come, that comes first, and
                    # its sequence number is not the one that PyMySQL awaits: it closes the connection.
                    return _DIRTY if wire._next_seq_id == _ANSWERED else _BROKEN
                if result.has_next != 0 or result.unbuffered_active:
                    if result.unbuffered_active:
                        # The flags came with its columns.  If more results follow, so may a BEGIN.
                        safe = wire.server_status & _UNREAD_BITS == _AUTOCOMMIT
                        return _SPENT if safe else _BROKEN
                    if result.has_next:
                        return _BROKEN
                    # Nothing was sent in the other mode of autocommit; or an error has ended rows.
                    return _ALTERED if result is _REST[_AUTOCOMMIT - was.autocommit] else _DIRTY
                # A complete result is as good a proof as `_REST` that nothing was sent since; it
                # stays one for the next borrower, until he sends something.  BEGIN, and whatever else
                # opens a transaction while autocommit is on, answers with an OK, so the status is true.
                if wire.server_status & _TRANSACTION_BITS != was.proof:
                    proven = wire.server_status & _TRANSACTION_BITS == _AUTOCOMMIT
                    return _ALTERED if proven else _DIRTY
            if (
                wire.cursorclass is was.cursorclass
                and wire.charset is was.charset
                and wire.collation is was.collation
                and wire._read_timeout is was.read_timeout
                and wire._write_timeout is was.write_timeout
            ):
                return _CLEAN
            return _ALTERED  # or another object that is equal: `restore` sends nothing then
        except Exception:  # costs nothing until it happens
            return _BROKEN

    # -- end of warm path

    def _at_rest(self, conn: C) -> Verdict:
        """Judge by all but the settings."""
        return self.verdict(conn, _Baseline(conn))

    def alive(self, conn: C) -> bool:
        """Tell whether the socket is quiet; right under TLS too, for nothing is left to decrypt."""
        sock = cast("Any", conn)._sock
        try:
            return sock is not None and sock.fileno() >= 0 and not ready(sock.fileno())
        except (OSError, ValueError):  # closed meanwhile; or not a descriptor any more
            return False

    # -- speaking ------------------------------------------------------------------------------------

    def ping(self, conn: C, limit: float | None) -> None:
        """Send COM_PING, which neither opens a transaction nor ends one."""
        verdict = self._at_rest(conn)
        with _within(conn, limit):
            conn.ping(reconnect=False)
        if verdict == _CLEAN:
            _plant(conn)

    def idle_limit(self, conn: C, limit: float | None) -> float | None:
        """Ask for the session's ``wait_timeout``: an interactive one's begins as interactive_timeout."""
        rows = self._ask_aside(conn, "SELECT @@wait_timeout", limit)
        return float(rows[0][0] or 0) or None if rows else None

    def writable(self, conn: C, limit: float | None) -> bool:
        """Ask for ``read_only``; what this user could write all the same does not count."""
        deadline = None if limit is None else monotonic() + limit
        for question in _ARE_WRITES_REFUSED:
            left = None if deadline is None else deadline - monotonic()
            for row in self._ask_aside(conn, question, left):
                return all(value in ("0", "OFF", None) for value in row)
        return True

    def _ask_aside(self, conn: C, question: str, limit: float | None) -> list[list[str | None]]:
        """Ask for variables, and leave all as if nobody had: no rows if the server does not know them.

        A SELECT without a table neither opens a transaction nor ends one, so what was proven stays so.
        """
        wire: Any = conn
        with _within(conn, limit):
            known = wire._result, wire._next_seq_id
            try:
                rows = _ask(wire, question)
            except err.MySQLError as exc:
                if self.fault(exc, dialling=False) is not Fault.ORDINARY:
                    raise
                rows = []
            wire._result, wire._next_seq_id = known
        return rows

    def begin(self, conn: C) -> None:
        """Send BEGIN."""
        conn.begin()

    def commit(self, conn: C) -> None:
        """Commit; `_REST` is planted by the pooled class."""
        conn.commit()

    def rollback(self, conn: C, limit: float | None) -> None:
        """Roll back as PyMySQL does, whatever a user's class makes of it."""
        with _within(conn, limit):
            Connection.rollback(conn)
        _plant(conn)

    # -- coming back to what was at connect ----------------------------------------------------------

    def restore(self, conn: C, baseline: object, limit: float | None) -> None:
        """Put the settings back: with one SET if the server has to know, else without a word."""
        wire, was = cast("Any", conn), cast("_Baseline", baseline)
        wanted = []
        if wire.server_status & _AUTOCOMMIT != was.autocommit:
            wanted.append(was.set_autocommit())
        if (wire.charset, wire.collation, wire.encoding) != (was.charset, was.collation, was.encoding):
            wanted.append(was.set_names())
        if not wanted:
            was.put_back(wire)
            return
        with _within(conn, limit):
            wire._execute_command(COMMAND.COM_QUERY, f"SET {', '.join(wanted)}")
            wire._read_ok_packet()
        was.put_back(wire)
        _plant(wire)

    def send_reset(
        self, conn: C, baseline: object, memory: object, parts: tuple[Part, ...], limit: float | None
    ) -> object | None:
        """Send COM_RESET_CONNECTION and all that follows it in one message."""
        if self.verdict(conn, baseline) >= _BROKEN:
            raise err.InterfaceError(0, "the connection is not at rest")
        wire, was, known = cast("Any", conn), cast("_Baseline", baseline), cast("_Memory", memory)
        commands = list(known.commands(was))
        if wire.server_status & _IN_TRANS:
            commands.insert(0, Command(COMMAND.COM_QUERY, "ROLLBACK", Answer.OK))  # fails for XA
        wire._result = _OUTSTANDING  # first, so that nobody ever sees a connection half put back
        was.put_back(wire)
        if Part.FULL in parts:
            known.put_back(wire)
        with _within(conn, limit):
            wire._write_bytes(b"".join(command.packet(was.encoding) for command in commands))
        return commands

    def read_reset(self, conn: C, token: object, limit: float | None) -> None:
        """Read all answers; close a session that has got a database and cannot get rid of it."""
        wire, commands = cast("Any", conn), cast("list[Command]", token)
        if wire._sock is None:
            raise err.InterfaceError(0, "")
        lasting = False
        with _within(conn, limit):
            for command in commands:
                wire._next_seq_id = 1  # each answer counts for itself
                lasting |= _read_answer(wire, command.answer)
        wire._result = None
        _plant(wire)
        if lasting:
            self.close(conn, limit)
            wire._closed = True  # by its borrower, as it were: nothing is lost

    # -- closing -------------------------------------------------------------------------------------

    def close(self, conn: C, limit: float | None) -> None:
        """Send COM_QUIT if nothing is under way but a reset, and close.

        Not with ``conn.close()``: that waits for a thread which is in the middle of a read.
        """
        wire: Any = conn
        # Behind a reset it is one command more.  Every idle connection of a pool that resets is in this
        # state, and if it just went away, the server would count and log a client that was aborted.
        unread = wire._sock is not None and wire._result is _OUTSTANDING and wire._next_seq_id == _SENT
        if unread or self._at_rest(conn) < _BROKEN:
            try:
                deadline = monotonic() + (_GOODBYE if limit is None else limit)
                wire._write_timeout = _shorter(wire._write_timeout, deadline - monotonic())
                wire._write_bytes(b"\x01\0\0\0\x01")
                while unread:  # what nobody has read makes the kernel tear the connection down
                    wire._sock.settimeout(_shorter(None, deadline - monotonic()))
                    unread = bool(wire._sock.recv(65_536))
            except Exception:
                pass  # the goodbye is for the server's statistics
        self.abort(conn)

    def abort(self, conn: C) -> None:
        """Shut the socket down, which ends a call that another thread is in, and close."""
        _cut(conn)

    def forget(self, conn: C) -> None:
        """Let the descriptor lead nowhere, and have PyMySQL say to everybody that it is closed."""
        wire: Any = conn
        try:
            sock, result = wire._sock, wire._result
            if sock is None:
                return
            disconnect(sock.fileno)
            # Not with `_cut`: it shuts the session down, should the descriptor still lead to it.
            _parents.append((sock, wire._rfile))
            wire._sock, wire._rfile = None, io.BytesIO()
            if result is not None and result.unbuffered_active:
                result.__class__ = _Abandoned
        except Exception:
            pass  # the fork came in the middle of an opening or closing; it leads nowhere all the same

    # -- faults --------------------------------------------------------------------------------------

    def fault(self, exc: BaseException, *, dialling: bool) -> Fault:
        """Classify by the error code, the server's or PyMySQL's own."""
        return fault_of(exc, dialling=dialling)


def fault_of(exc: BaseException, *, dialling: bool) -> Fault:
    """Classify by the error code, the server's or PyMySQL's own."""
    if isinstance(exc, PoolError) or not isinstance(exc, err.MySQLError):
        if dialling and isinstance(exc, ssl.SSLError | FileNotFoundError | PermissionError):
            return Fault.AUTH  # a file of certificates or keys: PyMySQL wraps what the network does
        return Fault.DEAD if dialling and isinstance(exc, OSError) else Fault.ORDINARY
    code = exc.args[0] if exc.args else None
    if not isinstance(code, int):
        # "Already closed" and "Packet sequence number wrong" have no code.
        gone = type(exc) is err.Error or isinstance(exc, err.InternalError)
        return Fault.DEAD if gone else Fault.ORDINARY
    if isinstance(exc, err.InterfaceError) and code == 0:
        return Fault.DEAD  # the connection was closed before the statement
    if dialling:
        if isinstance(failure := getattr(exc, "original_exception", exc.__cause__), ssl.SSLError):
            verified = isinstance(failure, ssl.SSLCertVerificationError)
            if verified or _CERTIFICATES.search(getattr(failure, "reason", None) or ""):
                return Fault.AUTH
        unknown = Fault.DEAD if isinstance(exc, err.OperationalError) else Fault.ORDINARY
        return _REFUSALS.get(code) or _FAULTS.get(code, unknown)
    if code == _OPTION_PREVENTS_STATEMENT and not _READ_ONLY.search(str(exc.args[-1])):
        return Fault.ORDINARY  # --secure-file-priv and other options have this code as well
    return _FAULTS.get(code, Fault.ORDINARY)


def _refuse_unknown(params: Mapping[str, object]) -> None:
    """Raise if PyMySQL does not know one of the names; their values are not shown."""
    if "defer_connect" in params:
        raise PoolMisuse("defer_connect: it is the pool that decides when to connect")
    unknown = sorted(params.keys() - inspect.signature(Connection.__init__).parameters.keys())
    if unknown:
        raise PoolMisuse(f"pymysql.connect() has no parameter {', '.join(unknown)}")


def _params_from_url(url: str) -> dict[str, Any]:
    """Read a URL; a message names what is wrong, and never a value."""
    try:
        parts = urlsplit(url)
        port = parts.port
        if "@" in parts.path + parts.query + parts.fragment:
            raise ValueError("the password ended too early")
    except ValueError:
        # What was not understood may be a part of the password, whoever quotes it.
        raise PoolMisuse(
            "this URL cannot be read (not repeated here, it may hold a password); @ : / ? # and %"
            " inside a name or password must be percent-encoded"
        ) from None
    params: dict[str, Any] = {
        "host": unquote(parts.hostname) if parts.hostname else None,
        "port": port,
        "user": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "database": unquote(parts.path[1:]) or None,
    }
    params = {name: value for name, value in params.items() if value is not None}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        read = _URL_PARAMETERS.get(name)
        if read is None:
            known = ", ".join(_URL_PARAMETERS)
            raise PoolMisuse(f"a URL for PyMySQL cannot set {name!r}; it can set {known}")
        try:
            params[name] = read(text)
        except ValueError:
            wanted = "true or false" if "boolean" in read.__name__ else "a number"
            raise PoolMisuse(f"{name} in the URL must be {wanted}") from None
    return params


# -- the wire ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _tapped(conn: Any) -> Iterator[deque[MysqlPacket]]:
    """Keep the last packet that is read: PyMySQL drops the flags of some."""
    last: deque[MysqlPacket] = deque(maxlen=1)
    before = vars(conn).get("_read_packet")
    read_packet = conn._read_packet

    def read_and_keep(*args: Any) -> Any:
        packet = read_packet(*args)
        last.append(packet)
        return packet

    conn._read_packet = read_and_keep
    try:
        yield last
    finally:
        if before is None:
            del conn._read_packet
        else:
            conn._read_packet = before


def _dial(conn: Any, deadline: float) -> socket.socket:
    """Connect to one of the host's addresses, each with its share of the time that is left."""
    source = (conn.bind_address, 0) if conn.bind_address is not None else None
    failure: OSError | None = None
    try:
        addresses = socket.getaddrinfo(conn.host, conn.port, type=socket.SOCK_STREAM)
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                share = (deadline - monotonic()) / (len(addresses) - number)
                sock.settimeout(_shorter(conn.connect_timeout, share))
                if source is not None:
                    sock.bind(source)
                sock.connect(address)
                # As PyMySQL does with a socket of its own.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            except OSError as exc:
                sock.close()
                failure = exc
            except BaseException:
                sock.close()
                raise
            else:
                conn.host_info = f"socket {conn.host}:{conn.port}"
                return sock
    except OSError as exc:  # no such host, or no socket
        failure = exc
    try:
        raise err.OperationalError(
            CR.CR_CONN_HOST_ERROR, f"Can't connect to MySQL server on {conn.host!r} ({failure})"
        ) from failure
    finally:
        del failure  # else it and this frame would keep each other alive


@contextlib.contextmanager
def _within(conn: Any, limit: float | None) -> Iterator[None]:
    """Give every wait of the driver what is left of *limit*; close the connection on any error.

    PyMySQL applies its private timeouts before each packet, so they are set before each packet.
    There is no public way.
    """
    read_timeout, write_timeout = conn._read_timeout, conn._write_timeout
    read_packet = conn._read_packet
    deadline = None if limit is None else monotonic() + limit

    def allot() -> None:
        if deadline is not None:
            left = deadline - monotonic()
            conn._read_timeout = _shorter(read_timeout, left)
            conn._write_timeout = _shorter(write_timeout, left)

    def read_packet_in_time(*args: Any) -> Any:
        allot()
        return read_packet(*args)

    try:
        allot()
        conn._read_packet = read_packet_in_time  # on the object, for as long as this lasts
        try:
            yield
        finally:
            del conn._read_packet
            conn._read_timeout, conn._write_timeout = read_timeout, write_timeout
    except BaseException:
        _cut(conn)
        raise


def _shorter(seconds: float | None, limit: float | None) -> float | None:
    """Return the shorter of two timeouts; 0 would mean "do not wait at all" to a socket."""
    if limit is None:
        return seconds
    limit = max(limit, 0.001)
    return limit if seconds is None else min(seconds, limit)


_parents: list[object] = []
"""In a forked child, what the parent's connections were made of.

A thread of his may have been reading: the buffered reader is locked for ever then, and must not be closed.
"""


def _cut(conn: Any) -> None:
    """Close a connection at once, from any thread, whatever another one does with it.

    Not with ``_force_close()``: a buffered reader cannot be closed while a thread reads from it.  So
    it is dropped instead, and closed with its last reference.
    """
    sock, result = conn._sock, conn._result
    if sock is None:
        return
    shut_down(sock.fileno)
    if result is not None and result.unbuffered_active:
        result.__class__ = _Abandoned
    conn._sock = None
    conn._rfile = io.BytesIO()  # "connection lost", to a thread between two packets
    sock.close()
