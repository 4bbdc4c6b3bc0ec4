"""Whole processes with a pool: forked by multiprocessing and gunicorn, stopped and continued, and ended.

Each is a process of its own: what the test's process has in threads and locks stays out of it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from servers import FaultProxy, MariaDB, PostgreSQL, free_port
from servers.process import wait_until
from threads.crowd import crowd

import connpool

pytestmark = [pytest.mark.server, pytest.mark.chaos]

BEGIN = """
import json, os, sys, threading, time
from connpool import ConnectionPool
from connpool.adapters.psycopg import PsycopgAdapter
from connpool.adapters.pymysql import PyMySQLAdapter

def say(what):
    print(json.dumps(what), flush=True)

ADAPTERS = {"PostgreSQL": PsycopgAdapter, "MariaDB": PyMySQLAdapter}
QUESTIONS = {"PostgreSQL": "select pg_backend_pid()", "MariaDB": "select connection_id()"}
asked = json.loads(os.environ["ASKED"])
adapter = ADAPTERS[asked["kind"]](**asked["params"])
pool = ConnectionPool(adapter, max_size=2)

def session():
    with pool.connection(timeout=10) as conn, conn.cursor() as cursor:
        cursor.execute(QUESTIONS[asked["kind"]])
        return cursor.fetchone()[0]
"""


def environment(server: PostgreSQL | MariaDB, **more: Any) -> dict[str, str]:
    """Return the environment of a script that begins as above; *more* are connect parameters."""
    asked = {"kind": server.name, "params": {**server.params, **more}}
    source = str(Path(connpool.__file__).parents[1])  # also from another directory
    return {**os.environ, "PYTHONPATH": source, "ASKED": json.dumps(asked)}


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a program; when the block ends it is killed, with its children, should they live still."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, start_new_session=True, **options
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(script: str, env: dict[str, str]) -> Any:
    """Run a script to its end, and return the one thing that it said."""
    with running([sys.executable, "-c", BEGIN + script], env=env) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(said)


def census(server: PostgreSQL | MariaDB) -> set[int]:
    return {session.id for session in server.census(user=server.user)}


# -- multiprocessing ---------------------------------------------------------------------------------

MULTIPROCESSING = """
import multiprocessing

WORKERS = 3

def work(number):
    return os.getpid(), session()

before = session()
with multiprocessing.get_context("fork").Pool(WORKERS) as workers:
    found = []
    while len({pid for pid, _ in found}) < WORKERS:
        found += workers.map(work, range(30), chunksize=1)
    workers.close()
    workers.join()
say({"before": before, "found": found, "after": session(), "opened": pool.stats().opened})
"""


def test_workers_of_multiprocessing_have_sessions_of_their_own(system_postgresql: PostgreSQL) -> None:
    said = run(MULTIPROCESSING, environment(system_postgresql))
    sessions: dict[int, set[int]] = {}
    for pid, session in said["found"]:
        sessions.setdefault(pid, set()).add(session)
    assert len(sessions) == 3
    everybodys = [said["before"], *(session for found in sessions.values() for session in found)]
    assert len(everybodys) == len(set(everybodys)), "a session was shared"
    assert said["after"] == said["before"]
    assert said["opened"] == 1
    wait_until(lambda: not census(system_postgresql), what="all sessions are closed")


# -- gunicorn ----------------------------------------------------------------------------------------

APPLICATION = """
parents = session()  # before the fork

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), session(), pool.stats().size]).encode()]
"""

CONFIGURATION = """
import json
import web

control_socket_disable = True  # newer ones leave a file in the home directory

def on_exit(server):  # in the parent
    with open("parent.json", "w") as file:
        json.dump([web.parents, web.session()], file)
"""


def test_workers_of_gunicorn_have_sessions_of_their_own(
    system_postgresql: PostgreSQL, tmp_path: Path
) -> None:
    (tmp_path / "web.py").write_text(BEGIN + APPLICATION)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIGURATION)
    workers, port = 4, free_port()
    options = f"--preload --workers={workers} --worker-class=gthread --threads=2 --bind=127.0.0.1:{port}"
    sessions: dict[int, set[int]] = {}
    sizes: dict[int, int] = {}

    def ask(_: int = 0) -> bool:
        with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as http:
            try:
                http.request("GET", "/")
            except ConnectionRefusedError:  # it does not listen yet
                return False
            answer = http.getresponse()
            assert answer.status == 200
            pid, session, sizes[pid] = json.load(answer)
        sessions.setdefault(pid, set()).add(session)
        return True

    def census_agrees() -> bool:
        crowd(8, ask)
        parents = 1
        return len(sizes) == workers and len(census(system_postgresql)) == parents + sum(sizes.values())

    command = [sys.executable, "-m", "gunicorn", *options.split(), "web:app"]
    env = environment(system_postgresql)
    with running(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        wait_until(ask, 20.0, "gunicorn answers")
        wait_until(census_agrees, 20.0, "each worker has answered, and the census is what the pools say")
        process.terminate()
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log
    assert "Traceback" not in log
    before, after = json.loads((tmp_path / "parent.json").read_text())
    assert before == after, "the parent's session was harmed"
    everybodys = [before, *(session for found in sessions.values() for session in found)]
    assert len(everybodys) == len(set(everybodys)), "a session was shared"
    wait_until(lambda: not census(system_postgresql), what="all sessions are closed")


# -- SIGSTOP and SIGCONT -----------------------------------------------------------------------------

STOPPED = """
for _ in sys.stdin:
    with pool.connection() as first, pool.connection() as second:
        pass
    say([session(), session(), pool.stats().opened])
"""


@pytest.fixture(params=["PostgreSQL, TLS", "MariaDB"])
def impatient(request: pytest.FixtureRequest) -> tuple[PostgreSQL | MariaDB, dict[str, str]]:
    """Provide a server, and how to connect so that it ends a session that is idle for a second or two."""
    if request.param == "MariaDB":
        mariadb: MariaDB = request.getfixturevalue("mariadb")
        return mariadb, {"init_command": "set session wait_timeout = 2"}
    return request.getfixturevalue("system_postgresql"), {"options": "-c idle_session_timeout=1500"}


def test_process_that_was_stopped_for_longer_than_its_sessions_live(
    impatient: tuple[PostgreSQL | MariaDB, dict[str, str]],
) -> None:
    server, brief = impatient
    command = [sys.executable, "-c", BEGIN + STOPPED]
    with running(command, env=environment(server, **brief)) as process:
        assert process.stdin
        assert process.stdout

        def borrow() -> None:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()

        borrow()
        first = set(json.loads(process.stdout.readline())[:2])
        assert first <= census(server)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: not census(server), what="the server has ended the sessions")
        borrow()
        process.send_signal(signal.SIGCONT)
        *then, opened = json.loads(process.stdout.readline() or "[]")
        assert not first & set(then)
        assert opened == 4
        process.stdin.close()
        assert process.wait(10) == 0


# -- the end of the interpreter ------------------------------------------------------------------------

WITHOUT = """
conn = adapter.connect(5)
conn.close()
say(time.monotonic())
"""

WITH = """
pool.close()
pool = ConnectionPool(adapter, min_idle=2, max_size=4, keepalive=0.05)
hole = {"hostaddr": "127.0.0.1", "port": int(os.environ["HOLE"])}
hanging = ConnectionPool(PsycopgAdapter(**{**asked["params"], **hole}), max_size=1)
try:
    hanging.acquire(timeout=0.0)
except TimeoutError:
    pass
pool.wait_ready()
session()
assert hanging.stats().opening == 1
assert {thread.name.rstrip("-0123456789") for thread in threading.enumerate()} >= {
    "connpool-helper", "connpool-housekeeper"
}
say(time.monotonic())
"""


def test_interpreter_with_a_pool_ends_as_soon_as_one_without(
    system_postgresql: PostgreSQL, fault_proxy: Callable[[PostgreSQL], FaultProxy]
) -> None:
    proxy = fault_proxy(system_postgresql)
    proxy.black_hole()
    env = environment(system_postgresql) | {"HOLE": str(proxy.port)}

    def seconds(script: str) -> float:
        with running([sys.executable, "-c", BEGIN + script], env=env) as process:
            assert process.stdout
            said = process.stdout.readline()
            process.wait(30)
            ended = time.monotonic()
        assert process.returncode == 0
        return ended - float(said)

    # The lowest of three: a machine that is busy can only add to it.
    without, with_pool = (min(seconds(script) for _ in range(3)) for script in (WITHOUT, WITH))
    print(f"{1000 * without:.0f} ms without a pool, {1000 * with_pool:.0f} ms with two")
    assert with_pool < without + 0.3
