"""The application with Flask in `examples/`, under gunicorn with threads and --preload."""

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import PostgreSQL, free_port, wait_until

from apps.stage import environment, orders, running

pytestmark = pytest.mark.server

WORKERS, SIZE = 2, 5
NAME = f"flask-{os.getpid()}"
REQUESTS = 100


class Application:
    """The application, its server and its database."""

    def __init__(self, server: PostgreSQL, database: str, log: Path) -> None:
        self.server, self.database, self.log = server, database, log
        self.address = f"http://127.0.0.1:{free_port()}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx.Client(base_url=self.address, trust_env=False, timeout=10, limits=limits)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def post(self, path: str) -> int:
        return self.client.post(path).status_code

    def answers(self) -> bool:
        try:
            return self.get("/pool").status_code == 200
        except httpx.TransportError:
            return False

    def census(self) -> int:
        return len(self.server.census(application_name=NAME))

    def items(self) -> list[Any]:
        return [item for (item,) in self.server.execute("select item from orders", dbname=self.database)]


@pytest.fixture(scope="module")
def app(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with orders(postgresql) as database:
        app = Application(postgresql, database, tmp_path_factory.mktemp("gunicorn") / "log")
        options = ["-c", "gunicorn_conf.py", "--no-control-socket", "-b", app.address.removeprefix("http://")]
        command = [sys.executable, "-m", "gunicorn", *options, "flask_app:app"]
        with running(command, environment(postgresql, NAME, database), app.log, app.answers):
            with closing(app.client):
                yield app
            wait_until(lambda: 0 < app.census() <= WORKERS * SIZE)
        assert app.census() == 0
        log = app.log.read_text()
        assert "Traceback" not in log
        assert len(re.findall(r"Booting worker", log)) == WORKERS, log


def at_once(call: Callable[[int], Any], requests: int = REQUESTS) -> list[Any]:
    with ThreadPoolExecutor(requests) as threads:
        return list(threads.map(call, range(requests)))


def test_a_hundred_requests_at_once_share_five_connections_in_each_worker(app: Application) -> None:
    assert Counter(at_once(lambda number: app.post(f"/orders/{number}/tea"))) == {201: REQUESTS}
    assert app.census() <= WORKERS * SIZE
    answers = at_once(lambda number: app.get(f"/orders/{number}").json())
    assert answers == [{"number": number, "item": "tea"} for number in range(REQUESTS)]


def test_a_request_that_is_aborted_in_its_block_writes_nothing(app: Application) -> None:
    assert app.post("/orders/7/moon") == 409
    assert "moon" not in app.items()


def test_who_has_no_connection_at_his_deadline_is_told_to_come_back(app: Application) -> None:
    def call(number: int) -> tuple[int, float]:
        began = time.monotonic()
        answer = app.get("/report?seconds=0.6")
        if answer.status_code == 503:
            assert answer.headers["Retry-After"] == "1"
        return answer.status_code, time.monotonic() - began

    answers = at_once(call, 40)
    codes = Counter(code for code, _ in answers)
    assert codes[200] + codes[503] == 40, codes
    assert codes[200] >= 2 * SIZE
    assert codes[503] > 0
    assert "in use" in app.log.read_text(), "the log does not say who had the connections"
