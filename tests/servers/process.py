"""Starting and stopping server processes, and the list of everything that was started.

Three nets, one below the other: `close()`, best as a context manager; `atexit`, for exceptions and
Ctrl-C; the watchdog process, for every other death. See `watchdog.py` for why it is a process.
Servers are stopped by the pid that was started here, never by name.
"""

import atexit
import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Final, Protocol, Self, TypeVar

import psutil  # type: ignore[import-untyped, unused-ignore] # as in watchdog.py

from servers import watchdog

T = TypeVar("T")

HOST: Final = "127.0.0.1"

# Below the ports that systems hand to outgoing connections: while a server is down, nobody else
# gets its port by chance, and a client that dials it cannot end up connected to itself.
PORTS: Final = range(20_000, 32_768)

# The shell waits for a line before it becomes the program. If we die before the watchdog knows the
# process, the shell reads the end of our pipe and ends too: no moment is without a net.
GATE: Final = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")

START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 10.0


class ServerError(Exception):
    """A server could not be started, or did not do what it was told; carries the end of its log."""


# -- waiting and ports


def wait_until(predicate: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """Return the first true value of `predicate`, looking every few milliseconds.

    Raises:
        TimeoutError: it was not true within `timeout` seconds; the message says `what`.
    """
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what or predicate}")
        time.sleep(0.005)
    return value


def bind_free_port() -> socket.socket:
    """Return a socket bound to a loopback port that is free, not yet listening."""
    choose = random.SystemRandom().choice  # not the shared generator, which tests seed
    for _ in range(1000):
        candidate = socket.socket()
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, choose(PORTS)))
        except OSError:
            candidate.close()
        else:
            return candidate
    raise ServerError(f"no free port from {PORTS.start} to {PORTS.stop} on {HOST}")


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with bind_free_port() as candidate:
        return int(candidate.getsockname()[1])


# -- what was started, and must end with us


class Closable(Protocol):
    """Whatever has to be closed before the process ends."""

    def close(self) -> None: ...


class _Watchdog:
    """Our end of the pipe to the watchdog process, which is started before anything else is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._lock:
            if self._process is None:
                self._process = self._launch()

    def _launch(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", watchdog.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for us, it acts on our end only
        )
        assert process.stdout is not None
        with process.stdout as stdout:
            if stdout.readline() != watchdog.READY:
                raise ServerError(f"the watchdog ended with {process.wait()} instead of starting")
        return process

    def tell(self, **message: str | int) -> None:
        with self._lock:
            if self._process is not None and self._process.stdin is not None:
                # A watchdog that was killed is no reason to fail; the other two nets remain.
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def dismiss(self) -> None:
        with self._lock:
            if self._process is not None:
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process.wait()
                self._process = None

    def disown(self) -> None:
        """Let go in a forked child: its end of the pipe would hold the watchdog back."""
        self._lock = threading.Lock()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.returncode = 0  # somebody else's child: nothing to wait for
            self._process = None


_watchdog = _Watchdog()
_started: dict[int, Closable] = {}


def register(thing: Closable) -> None:
    """Remember to close this at exit."""
    _started[id(thing)] = thing


def unregister(thing: Closable) -> None:
    """Forget it: it has been closed."""
    _started.pop(id(thing), None)


def close_all() -> None:
    """Close all that is still open, the youngest first; one failure does not stop the rest."""
    failures: list[Exception] = []
    for thing in reversed(list(_started.values())):
        try:
            thing.close()
        except Exception as error:
            failures.append(error)
    if failures:
        raise ExceptionGroup("servers that could not be closed", failures)


@atexit.register
def _close_at_exit() -> None:
    try:
        close_all()
    finally:
        _watchdog.dismiss()


def _disown() -> None:
    # The servers are our parent's. Emptied, not replaced: other modules may hold the same dict.
    _started.clear()
    _watchdog.disown()


os.register_at_fork(after_in_child=_disown)


# -- one server


def unprivileged_account() -> pwd.struct_passwd | None:
    """Return the account that servers run under: None is our own, unless we are root.

    PostgreSQL and PgBouncer refuse to run as root. "nobody" exists everywhere, owns nothing, and is
    the same on every machine, which the accounts that packages create are not.
    """
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


class Server(ABC):
    """One private server: its process, port, directory and log.

    A subclass says what to prepare once, how the program is called, and what it logs when it is
    ready. Nothing is started before `start()`; `with` starts and closes. `stop()` and `kill()` keep
    port and data, so that `start()` brings the same server back; `close()` removes everything.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]  # the fast way down that loses no data
    ready_text: ClassVar[str]

    host: Final = HOST

    def __init__(self) -> None:
        self._port = 0
        self._account = unprivileged_account()
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _prepare(self) -> None:
        """Create what the server needs before its first start."""

    @abstractmethod
    def _command(self) -> list[str | Path]:
        """Return the command line that runs the server in the foreground."""

    def _populate(self) -> None:  # noqa: B027 -- most servers have nothing to add
        """Finish the first start, with the server running."""

    @property
    def port(self) -> int:
        """The port; chosen at the first start, and kept."""
        return self._port

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as sockets and `FaultProxy` like them."""
        return self.host, self._port

    @property
    def directory(self) -> Path:
        """The private directory, which exists from the first start until `close()`."""
        if self._directory is None:
            raise ServerError(f"{self.name} has not been started, or has been closed")
        return self._directory

    @property
    def pid(self) -> int:
        """The process id of the running server; 0 when it is down."""
        return self._process.pid if self._process and self._process.poll() is None else 0

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.pid != 0

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.running else "down"
        return f"<{type(self).__name__} {self.host}:{self._port} {state}>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Start the server, or start it again, and return when it accepts connections.

        Raises:
            MissingServer: a program is not installed; the message says how to install it.
            ServerError: it did not start; the message carries the end of its log.
        """
        if self.running:
            return self
        first = self._directory is None
        try:
            if first:
                self._make_directory()
                self._prepare()
                self._launch_on_free_port()
                self._populate()
            else:
                self._launch()
        except BaseException:
            self.close() if first else self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server fast and orderly: clients are disconnected, no data is lost."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget_process()

    def kill(self) -> None:
        """Kill the server and its children with SIGKILL, as a crash would."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            watchdog.kill_tree(psutil.Process(self._process.pid))
        self._process.wait()
        self._forget_process()

    def restart(self) -> None:
        """Stop the server if it runs, and start it on the same port with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            _watchdog.tell(gone=str(self._directory))
            self._directory = None
        self._port = 0
        unregister(self)

    # -- the log

    @property
    def log(self) -> Path:
        """Everything that the server wrote."""
        return self.directory / "log"

    def log_text(self) -> str:
        """Return the log."""
        return read_from(self.log, 0)

    # -- processes

    def _make_directory(self) -> None:
        _watchdog.start()
        register(self)
        directory = self._directory = Path(tempfile.mkdtemp(prefix="connpool-"))
        _watchdog.tell(directory=str(directory))
        directory.chmod(0o755)
        self._give_away(directory)

    def _give_away(self, path: Path) -> None:
        """Make the server's account the owner of a file that we wrote for it."""
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _write(self, name: str, text: str, mode: int = 0o600) -> Path:
        """Write a file for the server into its directory."""
        path = self.directory / name
        path.touch(mode)
        path.write_text(text)
        self._give_away(path)
        return path

    def _spawn(self, command: list[str | Path], stop_signal: signal.Signals) -> subprocess.Popen[bytes]:
        account = self._account
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*GATE, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C at the terminal is for us; we stop the servers
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        assert process.stdin is not None
        with process.stdin as gate:
            _watchdog.tell(process=process.pid, signal=int(stop_signal))
            gate.write(b"go\n")
        return process

    def _environment(self) -> Mapping[str, str]:
        # Nothing of ours, such as PGDATA or MYSQL_HOME; messages in English, because we read them.
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        # In a shared one a MariaDB that starts removes the temporary tables of another.
        places = dict.fromkeys(("HOME", "TMPDIR"), str(self.directory))
        return {**places, "PATH": path, "LC_ALL": "C", "TZ": "UTC"}

    def _run(self, *command: str | Path) -> None:
        """Run a program to its end, under the server's account."""
        mark = size_of(self.log)
        process = self._process = self._spawn(list(command), signal.SIGKILL)
        try:
            process.wait(START_TIMEOUT)
        except BaseException:
            self.kill()
            raise
        self._forget_process()
        if process.returncode != 0:
            raise self._failure(f"{Path(command[0]).name} ended with {process.returncode}", mark)

    def _launch_on_free_port(self) -> None:
        for attempt in range(5):
            self._port = free_port()
            try:
                return self._launch()
            except ServerError as error:
                # Somebody took the port since we looked.
                if attempt == 4 or "ddress already in use" not in str(error):
                    raise
        raise AssertionError("unreachable")

    def _launch(self) -> None:
        mark = size_of(self.log)
        self._process = self._spawn(self._command(), self.stop_signal)

        def ready_or_ended() -> bool:
            return self.ready_text in read_from(self.log, mark) or not self.running

        try:
            wait_until(ready_or_ended, START_TIMEOUT, f"{self.name} is ready")
        except TimeoutError as error:
            raise self._failure(f"{self.name} was not ready in {START_TIMEOUT:g} s", mark) from error
        if not self.running:
            code = self._process.wait()
            self._forget_process()
            raise self._failure(f"{self.name} ended with {code} instead of starting", mark)

    def _failure(self, what: str, mark: int) -> ServerError:
        return ServerError(f"{what}; the end of its log:\n{read_from(self.log, mark)[-3000:]}")

    def _forget_process(self) -> None:
        if self._process is not None:
            _watchdog.tell(gone=self._process.pid)
            self._process = None


def size_of(path: Path) -> int:
    """Return the size of a log file; 0 before it exists."""
    return path.stat().st_size if path.exists() else 0


def read_from(path: Path, position: int) -> str:
    """Return what was appended to a log file since it had that size."""
    with path.open("rb") as file:
        file.seek(position)
        return file.read().decode(errors="replace")
