"""A TCP proxy on loopback that breaks connections on command.

One thread with a selector does everything. A switch is a command that this thread executes between
two rounds, after it has accepted every client that is already connected: when the call returns, the
new behaviour holds for all connections. It knows bytes, and no protocol.
"""

import contextlib
import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Generic, Self, TypeVar

from servers.process import HOST, ServerError, bind_free_port, register, unregister

T = TypeVar("T")
Address = tuple[str, int]

CHUNK: Final = 65_536
BUFFERED: Final = 1_048_576  # bytes kept for one direction before its source has to wait
COMMAND_TIMEOUT: Final = 30.0
RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class _Pipe:
    """One direction of a connection: what was read from `source` and is not yet with `sink`."""

    __slots__ = ("chunks", "ended", "finished", "sink", "size", "source")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.chunks: deque[tuple[float, bytes]] = deque()  # with the time when each is due
        self.size = 0
        self.ended = False  # the source has sent its FIN; an empty chunk stands for it
        self.finished = False  # and the sink was told

    @property
    def wants_read(self) -> bool:
        return not self.ended and self.size < BUFFERED

    @property
    def due(self) -> float:
        return self.chunks[0][0] if self.chunks else float("inf")

    def read(self, due: float) -> None:
        data = self.source.recv(CHUNK)
        self.ended = not data
        self.size += len(data)
        self.chunks.append((due, data))

    def write(self, now: float) -> None:
        """Pass on what is due, as far as the sink takes it."""
        while self.due <= now:
            due, data = self.chunks.popleft()
            if not data:
                self.finished = True
                self.sink.shutdown(socket.SHUT_WR)
                return
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            self.size -= sent
            if sent < len(data):
                self.chunks.appendleft((due, data[sent:]))
                return


class _Connection:
    """A client, the upstream socket that was dialled for it, and the two pipes between them."""

    __slots__ = ("client", "closed", "connected", "pipes", "server", "upstream")

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket | None = None  # not dialled while the proxy is a black hole
        self.upstream: Address | None = None
        self.connected = False
        self.pipes: list[_Pipe] = []
        self.closed = False

    def dial(self, upstream: Address) -> None:
        """Connect to the upstream, or see how far that is; raise what it ended with."""
        if self.server is None or self.upstream is None:
            self.upstream = upstream
            self.server = socket.socket()
            _prepare(self.server)
            self.pipes = [_Pipe(self.client, self.server), _Pipe(self.server, self.client)]
        # A second connect() on the same socket tells how the first one is doing.
        code = self.server.connect_ex(self.upstream)
        self.connected = code in (0, errno.EISCONN)
        if not self.connected and code not in (errno.EINPROGRESS, errno.EALREADY):
            raise OSError(code, os.strerror(code))

    @property
    def finished(self) -> bool:
        return self.connected and all(pipe.finished for pipe in self.pipes)

    @property
    def sockets(self) -> list[socket.socket]:
        return [self.client] if self.server is None else [self.client, self.server]

    def interest(self, which: socket.socket, now: float) -> int:
        """Return the selector events that matter for one of the sockets."""
        if not self.connected:
            return selectors.EVENT_WRITE if which is self.server else 0
        events = 0
        for pipe in self.pipes:
            if pipe.source is which and pipe.wants_read:
                events |= selectors.EVENT_READ
            if pipe.sink is which and pipe.due <= now:
                events |= selectors.EVENT_WRITE
        return events


class _Command(Generic[T]):
    """Something for the proxy's thread to do, and where its caller waits."""

    def __init__(self, action: Callable[[], T]) -> None:
        self.action = action
        self.done: Future[T] = Future()

    def execute(self) -> None:
        try:
            self.done.set_result(self.action())
        except Exception as error:
            self.done.set_exception(error)

    def refuse(self) -> None:
        self.done.set_exception(ServerError("the proxy was closed"))


class FaultProxy:
    """Forward TCP connections to `upstream`, or refuse, stall, delay or cut them.

    Every switch can be called from any thread, and holds for all connections when it returns.
    """

    host: Final = HOST

    def __init__(self, upstream: Address) -> None:
        self.upstream = upstream
        self._port = 0
        self._listener: socket.socket | None = None
        self._listening = False
        self._black_hole = False
        self._delay = 0.0
        self._accepted = 0
        self._connections: set[_Connection] = set()
        self._commands: deque[_Command[Any]] = deque()
        self._commands_lock = threading.Lock()  # so that no command arrives after the last round
        self._ending = True
        self._thread: threading.Thread | None = None

    # -- life

    def start(self) -> Self:
        """Listen on a free port and start forwarding."""
        if self._thread is not None:
            return self
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._listener = bind_free_port()
        self._port = int(self._listener.getsockname()[1])
        self._listen()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        register(self)
        return self

    def close(self) -> None:
        """Close all connections and stop listening."""
        if self._thread is None:
            return
        with contextlib.suppress(ServerError):  # its thread has ended before
            self._call(self._end)
        self._thread.join()
        self._thread = None
        unregister(self)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port; the same for as long as the proxy lives, also while it refuses."""
        return self._port

    @property
    def address(self) -> Address:
        """Host and port."""
        return self.host, self._port

    # -- switches

    def pass_through(self) -> None:
        """Forward everything, at once; a stalled connection goes on where it stood."""
        self._call(self._behave)

    def delay(self, seconds: float) -> None:
        """Forward everything, each direction later by `seconds`."""
        self._call(lambda: self._behave(delay=seconds))

    def black_hole(self) -> None:
        """Accept, and forward nothing: no byte, FIN or RST, on old and new connections alike."""
        self._call(lambda: self._behave(black_hole=True))

    def refuse(self) -> None:
        """Refuse new connections; old ones go on as they are."""
        self._call(self._stop_listening)

    def send_fin(self) -> int:
        """Close the present connections orderly, to both sides; return how many there were."""
        return self._call(lambda: self._end_connections(_close_with_fin))

    def send_rst(self) -> int:
        """Reset the present connections, to both sides; return how many there were."""
        return self._call(lambda: self._end_connections(_close_with_rst))

    def switch(self, upstream: Address) -> None:
        """Send new connections to another server; old ones stay."""

        def change() -> None:
            self.upstream = upstream

        self._call(change)

    # -- counts

    @property
    def accepted(self) -> int:
        """How many connections were accepted so far."""
        return self._call(lambda: self._accepted)

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return self._call(lambda: len(self._connections))

    # -- commands, executed by the proxy's thread

    def _call(self, action: Callable[[], T]) -> T:
        command = _Command(action)
        with self._commands_lock:
            if self._ending:
                raise ServerError("the proxy is not running")
            self._commands.append(command)
            self._wake_out.send(b"\0")
        return command.done.result(COMMAND_TIMEOUT)

    def _behave(self, *, black_hole: bool = False, delay: float = 0.0) -> None:
        if not self._listening:
            self._listen()
        self._black_hole = black_hole
        self._delay = delay
        for connection in list(self._connections):
            if delay == 0.0:
                for pipe in connection.pipes:
                    pipe.chunks = deque((0.0, data) for _, data in pipe.chunks)
            self._advance(connection)

    def _listen(self) -> None:
        assert self._listener is not None
        self._listener.setblocking(False)
        self._listener.listen(1024)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._listening = True

    def _stop_listening(self) -> None:
        """Close the listening socket; a bound one that does not listen keeps the port for us."""
        assert self._listener is not None
        if self._listening:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(self.address)
            self._listening = False

    def _end_connections(self, close: Callable[[socket.socket], None]) -> int:
        count = len(self._connections)
        for connection in list(self._connections):
            self._drop(connection, close)
        return count

    def _end(self) -> None:
        self._ending = True

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._ending:
                now = time.monotonic()
                self._advance_due(now)
                for key, _ in self._selector.select(self._until_due(now)):
                    if isinstance(key.data, _Connection):
                        self._advance(key.data)
                self._accept()
                self._execute_commands()
        finally:
            self._clean_up()

    def _advance_due(self, now: float) -> None:
        if self._delay:
            for connection in list(self._connections):
                if any(pipe.due <= now for pipe in connection.pipes):
                    self._advance(connection)

    def _until_due(self, now: float) -> float | None:
        """Return the seconds to the next delayed chunk; None where nothing is delayed.

        What was due at `now` has been advanced since, and waits for its sink, not for the time.
        """
        if not self._delay:
            return None
        later = [p.due for c in self._connections for p in c.pipes if now < p.due < float("inf")]
        return max(0.0, min(later) - time.monotonic()) if later else None

    def _execute_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)
        while self._commands and not self._ending:
            command = self._commands.popleft()
            self._accept()  # who is connected in the client's eyes is connected in ours
            command.execute()

    def _accept(self) -> None:
        while self._listening and self._listener is not None:
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            _prepare(client)
            connection = _Connection(client)
            self._accepted += 1
            self._connections.add(connection)
            self._advance(connection)

    def _advance(self, connection: _Connection) -> None:
        """Do what a connection allows now: dial, read, write, close; then watch it."""
        if connection.closed:
            return
        try:
            if not self._black_hole:
                self._move(connection)
        except ConnectionResetError:
            self._drop(connection, _close_with_rst)  # pass it on
        except OSError:
            self._drop(connection, _close_with_fin)
        else:
            if connection.finished:
                self._drop(connection, _close_with_fin)
            else:
                self._watch(connection)

    def _move(self, connection: _Connection) -> None:
        if not connection.connected:
            connection.dial(self.upstream)
            if not connection.connected:
                return
        now = time.monotonic()
        for pipe in connection.pipes:
            with contextlib.suppress(BlockingIOError):
                while pipe.wants_read:
                    pipe.read(now + self._delay)
            pipe.write(now)

    def _watch(self, connection: _Connection) -> None:
        now = time.monotonic()
        for sock in connection.sockets:
            wanted = 0 if self._black_hole else connection.interest(sock, now)
            known = self._selector.get_map().get(sock)
            if known is None and wanted:
                self._selector.register(sock, wanted, connection)
            elif known is not None and not wanted:
                self._selector.unregister(sock)
            elif known is not None and known.events != wanted:
                self._selector.modify(sock, wanted, connection)

    def _drop(self, connection: _Connection, close: Callable[[socket.socket], None]) -> None:
        connection.closed = True
        self._connections.discard(connection)
        for sock in connection.sockets:
            if sock in self._selector.get_map():
                self._selector.unregister(sock)
            close(sock)

    def _clean_up(self) -> None:
        with self._commands_lock:
            self._ending = True
            while self._commands:
                self._commands.popleft().refuse()
        self._end_connections(_close_with_fin)
        assert self._listener is not None
        for sock in (self._listener, self._wake_in, self._wake_out):
            sock.close()
        self._listening = False
        self._selector.close()


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a proxy must not wait for more


def _close_with_fin(sock: socket.socket) -> None:
    """Close as a program that ends in order; unread bytes would turn the FIN into an RST."""
    with contextlib.suppress(OSError):
        for _ in range(64):  # a client that never stops sending gets its RST
            sock.recv(CHUNK)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    sock.close()


def _close_with_rst(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
    sock.close()
