"""With gevent's patches the pool works as it is.

Each scene is a process of its own, because the tests' must not be patched; see `scenes`.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import MariaDB, PostgreSQL
from servers.process import wait_until

import connpool

SOURCE = str(Path(connpool.__file__).parents[1])
PATCHED = ["-m", "gevent.monkey"]
JITTER = 0.02
"""Seconds by which the latest tick of a greenlet beside may be later than that of a process beside."""
MOST_LATE = 0.1
"""Of the ticks of a greenlet beside, how many may be late; all are, if somebody blocks the hub."""


@contextmanager
def playing(scene: str, *, server: Any = None, patched: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Play a scene; when the block ends its process must have ended, and well."""
    asked = {"kind": "fake"} if server is None else {"kind": server.name, "params": server.params}
    command = [sys.executable, *PATCHED * patched, "scenes.py", scene]
    pipe = subprocess.PIPE
    env = {**os.environ, "ASKED": json.dumps(asked), "PYTHONPATH": SOURCE}
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=env, cwd=Path(__file__).parent
    ) as process:
        try:
            yield process
            process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 0


def play(scene: str, **how: Any) -> Any:
    """Play a scene to its end, and return what it said."""
    with playing(scene, **how) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
    return json.loads(said)


TICKER = """
import select, sys, time
worst = 0.0
while True:
    began = time.monotonic()
    if select.select([sys.stdin], [], [], 0.01)[0]:
        break
    worst = max(worst, time.monotonic() - began - 0.01)
print(worst)
"""


@contextmanager
def ticking_beside() -> Iterator[list[float]]:
    """Let a process sleep again and again meanwhile; say then by how much one of its sleeps was too long."""
    pipe, worst = subprocess.PIPE, list[float]()
    with subprocess.Popen([sys.executable, "-c", TICKER], stdin=pipe, stdout=pipe, text=True) as ticker:
        yield worst
        said, _ = ticker.communicate(timeout=10)
        worst.append(float(said))


def census(server: PostgreSQL | MariaDB) -> int:
    return len(server.census(user=server.user))


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Any:
    server = request.getfixturevalue(request.param)
    server.terminate_sessions()  # a statement of another test's may go on for a while
    wait_until(lambda: not server.census(), what="nobody else is there")
    return server


# -- real servers ------------------------------------------------------------------------------------


@pytest.mark.server
def test_200_greenlets_share_5_connections_and_the_hub_goes_on(server: PostgreSQL | MariaDB) -> None:
    late: list[float] = []
    # Other tests hold up processes, too: what holds up the hub by itself does so each time, and nobody else.
    while not late or (min(late) >= JITTER and len(late) < 3):
        with ticking_beside() as beside, playing("crowd", server=server) as process:
            counts = [0]
            while process.poll() is None:
                counts.append(census(server))
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
        assert max(counts) == 5
        assert 2 <= said["took"] < 4  # 40 rounds of 50 ms
        assert said["in_order"]
        assert said["late"] < MOST_LATE
        assert said["ticks"] > 100
        wait_until(lambda: not census(server), what="no session is left behind")
        late.append(said["worst"] - beside[0])
    assert min(late) < JITTER


@pytest.mark.server
def test_timeouts_and_kills_at_any_point_lose_no_place(server: PostgreSQL | MariaDB) -> None:
    with playing("kills", server=server) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        wait_until(lambda: census(server) == 5, what="the server sees what the pool says")
    assert min(said["struck"], said["served"]) > 20


@pytest.mark.server
def test_page_about_gevent_says_what_happens(postgresql: PostgreSQL) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "gevent.md").read_text()
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert found is not None
    code, printed = found.groups()
    env = {**os.environ, "PYTHONPATH": SOURCE}
    env |= {"PGHOST": postgresql.host, "PGPORT": str(postgresql.port), "PGUSER": postgresql.user}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=False)
    assert (run.stdout, run.returncode) == (printed, 0), run.stderr


# -- without a server --------------------------------------------------------------------------------


def test_timeouts_and_kills_without_a_server_lose_no_place() -> None:
    said = play("kills")
    assert min(said["struck"], said["served"]) > 100


def test_timeout_names_greenlets_and_no_successor_inherits_a_name() -> None:
    play("diagnosis")


def test_greenlets_that_wait_for_each_other_are_told_so_and_nobody_else_is() -> None:
    play("deadlock")


def test_dial_without_an_answer_does_not_block_the_hub() -> None:
    said = play("black_hole")
    assert said["late"] < MOST_LATE
    assert said["ticks"] > 20


def test_pool_that_was_made_before_patching_does_not_block_the_hub() -> None:
    assert play("after_import", patched=False)["late"] < MOST_LATE


def test_wait_without_patching_is_told() -> None:
    assert play("unpatched", patched=False)["told"] == ["blocks_event_loop"]


def test_gevent_is_not_imported() -> None:
    code = "import sys, connpool.pool; sys.exit('gevent' in sys.modules)"
    assert subprocess.call([sys.executable, "-c", code]) == 0
