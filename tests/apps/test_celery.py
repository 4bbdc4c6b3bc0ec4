"""The application with Celery in `examples/`: tasks share their process's pool, and outlive its sessions."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import PostgreSQL, wait_until

from apps.stage import EXAMPLES, environment, orders, running

pytestmark = pytest.mark.server

TASKS, SIZE = 40, 2

# A broker in a folder: no server is needed for it.
CONFIGURATION = """
broker_url = "filesystem://"
broker_transport_options = {{
    "data_folder_in": {folder!r}, "data_folder_out": {folder!r}, "control_folder": {folder!r},
    "polling_interval": 0.05,
}}
worker_enable_remote_control = False
task_ignore_result = True
"""
PLACE = "import sys; from celery_app import place; [place.delay(n) for n in range(*map(int, sys.argv[1:]))]"


def test_tasks_keep_the_pools_of_their_processes_and_survive_the_end_of_all_sessions(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    """With processes and with threads, at the same time: Celery takes seconds to end a worker."""

    def play(pool: str, processes: int) -> None:
        with orders(postgresql) as database:
            worker = Worker(postgresql, database, tmp_path / pool, pool)
            worker.outlive_its_sessions(most=processes * SIZE)

    with ThreadPoolExecutor() as threads:
        scenes = [threads.submit(play, "prefork", 2), threads.submit(play, "threads", 1)]
    for scene in scenes:
        scene.result()


class Worker:
    """A worker of Celery, with a folder that is its broker."""

    def __init__(self, server: PostgreSQL, database: str, folder: Path, pool: str) -> None:
        self.server, self.database, self.log = server, database, folder / "log"
        self.name = f"celery-{pool}-{os.getpid()}"
        self.env = environment(server, self.name, database, folder)
        (folder / "queue").mkdir(parents=True)
        (folder / "celeryconfig.py").write_text(CONFIGURATION.format(folder=str(folder / "queue")))
        options = [f"--pool={pool}", "--concurrency=2", "--without-gossip", "--without-mingle"]
        self.command = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", *options, "-l", "INFO"]

    def place(self, first: int, last: int) -> None:
        command = [sys.executable, "-c", PLACE, str(first), str(last)]
        subprocess.run(command, cwd=EXAMPLES, env=self.env, check=True, timeout=20)

    def placed(self) -> list[int]:
        rows = self.server.execute("select number from orders order by 1", dbname=self.database)
        return [int(str(number)) for (number,) in rows]

    def census(self) -> int:
        return len(self.server.census(application_name=self.name))

    def outlive_its_sessions(self, most: int) -> None:
        self.place(0, TASKS)
        with running(self.command, self.env, self.log, lambda: self.placed() == list(range(TASKS))):
            sessions = self.server.execute("select distinct item from orders", dbname=self.database)
            assert len(sessions) <= most, "a task opened a session of its own"
            assert 0 < self.census() <= most
            self.server.terminate_sessions(application_name=self.name)
            time.sleep(0.6)  # longer than probe_after: whoever was used just now is lent without a look
            self.place(TASKS, 2 * TASKS)
            wait_until(lambda: len(self.placed()) == 2 * TASKS, 20, "all tasks are done")
            assert self.placed() == list(range(2 * TASKS)), "a task was repeated, or forgotten"
        assert self.census() == 0
        assert "Traceback" not in self.log.read_text()
