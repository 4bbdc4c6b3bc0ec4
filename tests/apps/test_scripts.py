"""The scripts in `examples/`: a job with one connection, and work that is shared by processes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from servers import PostgreSQL, wait_until

from apps.stage import EXAMPLES, environment, orders

pytestmark = pytest.mark.server

NAME = f"script-{os.getpid()}"


@pytest.fixture
def database(postgresql: PostgreSQL) -> Iterator[str]:
    with orders(postgresql) as name:
        items = "(array['', 'tea', 'jam'])[1 + n %% 3]"
        statement = f"insert into orders select n, {items} from generate_series(1, %s) n"
        postgresql.execute(statement, 6000, dbname=name)
        yield name


def start(script: str, server: PostgreSQL, database: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, script, *arguments]
    env = environment(server, NAME, database)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=EXAMPLES, env=env, stdout=pipe, stderr=pipe, text=True)


def test_job_waits_for_a_server_that_is_away_and_works_with_one_session(
    postgresql: PostgreSQL, database: str
) -> None:
    postgresql.kill()
    try:
        job = start("nightly.py", postgresql, database)
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(1.0)
    finally:
        postgresql.start()
    said, errors = job.communicate(timeout=20)
    assert (said, job.returncode) == ("nightly: done\n", 0), errors
    assert all(line.startswith("pool 'nightly': a connection could not") for line in errors.splitlines())
    assert postgresql.execute("select count(*) from orders where item = ''", dbname=database) == [(0,)]
    assert not postgresql.census(application_name=NAME)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_count_with_connections_of_their_own(
    postgresql: PostgreSQL, database: str, method: str
) -> None:
    work = start("crunch.py", postgresql, database, method)
    said, errors = work.communicate(timeout=20)
    assert said == " 2000\njam 2000\ntea 2000\n", errors
    assert errors == ""
    assert work.returncode == 0
    wait_until(lambda: not postgresql.census(application_name=NAME), what="no session is left")
