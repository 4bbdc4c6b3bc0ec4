"""The applications with FastAPI in `examples/`, under uvicorn: crowded, left in the middle, cut off."""

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import PostgreSQL, free_port, wait_until

from apps.stage import environment, running

pytestmark = pytest.mark.server

REQUESTS = 100  # at a time
SIZE = 5  # of both applications' pools


class Application:
    """An application under uvicorn, and the server that it uses."""

    def __init__(self, address: str, server: PostgreSQL, name: str, log: Path) -> None:
        self.address = address
        self.server = server
        self.name = name
        self.log = log

    def client(self) -> httpx.AsyncClient:
        unlimited = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.address, limits=unlimited, timeout=20, trust_env=False)

    def pool(self) -> dict[str, int]:
        figures: dict[str, int] = httpx.get(f"{self.address}/pool", trust_env=False).json()
        return figures

    def census(self) -> int:
        return len(self.server.census(application_name=self.name))

    def is_at_rest(self) -> bool:
        pool = self.pool()
        return pool["in_use"] == pool["waiting"] == 0 and pool["size"] == self.census()


@contextmanager
def serving(module: str, server: PostgreSQL, log: Path) -> Iterator[Application]:
    port, name = free_port(), f"{module}-{os.getpid()}"
    command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port), "--no-access-log"]
    app = Application(f"http://127.0.0.1:{port}", server, name, log)

    def answers() -> bool:
        try:
            return bool(app.pool()["size"])
        except httpx.TransportError:
            return False

    with running(command, environment(server, name), log, answers):
        yield app
        wait_until(app.is_at_rest, what="what the server sees is what the pool says, and nobody has any")
    assert app.census() == 0


@pytest.fixture(scope="module")
def app(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with serving("fastapi_app", postgresql, tmp_path_factory.mktemp("uvicorn") / "log") as app:
        yield app


@pytest.fixture(scope="module")
def threads(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with serving("fastapi_threads", postgresql, tmp_path_factory.mktemp("uvicorn") / "log") as app:
        yield app


def at_once(app: Application, call: Callable[[httpx.AsyncClient, int], Awaitable[Any]]) -> list[Any]:
    """Make a hundred calls at once; return their results."""

    async def main() -> list[Any]:
        async with app.client() as client:
            return await asyncio.gather(*(call(client, number) for number in range(REQUESTS)))

    return asyncio.run(main())


async def status(client: httpx.AsyncClient, path: str, number: int) -> int:
    """Ask for something with a number of one's own, and get no other; return the status."""
    try:
        response = await client.get(f"{path}/{number}")
    except httpx.ReadError:  # uvicorn has just ended a connection that it had kept for us
        response = await client.get(f"{path}/{number}")
    if response.status_code == 200:
        assert response.json() == {"number": number}
    elif response.status_code == 503:
        assert int(response.headers["Retry-After"]) > 0
    return response.status_code


async def give_up(client: httpx.AsyncClient, path: str, seconds: float) -> None:
    """Ask, and hang up after a while."""
    try:
        async with asyncio.timeout(seconds), client.stream("GET", path) as response:
            async for _ in response.aiter_lines():
                pass
    except TimeoutError:
        return
    raise AssertionError(f"{path} was answered within {seconds:.3f} s: nobody has hung up")


def test_clients_that_hang_up_cost_the_others_nothing(app: Application) -> None:
    chance = random.Random(4711)

    async def call(client: httpx.AsyncClient, number: int) -> int | None:
        if number % 4 == 0:  # cancelled in its block, or in line
            return await give_up(client, "/export", 0.05 + chance.random() / 2)
        if number % 4 == 1:  # never told of it
            return await give_up(client, "/report?seconds=0.3", 0.05 + chance.random() / 5)
        await asyncio.sleep(chance.random())
        return await status(client, "/orders", number)

    results = Counter(at_once(app, call))
    assert results[None] == REQUESTS / 2
    assert results[200] + results[503] == REQUESTS / 2, results
    wait_until(app.is_at_rest)
    assert "Traceback" not in app.log.read_text()


def test_too_many_requests_are_told_to_come_back(app: Application) -> None:
    """Of a hundred, five are served at once and fifty may wait, of whom some are served in time."""

    async def call(client: httpx.AsyncClient, number: int) -> tuple[int, float]:
        began = time.monotonic()
        response = await client.get("/report?seconds=0.8")
        if response.status_code == 503:
            assert response.headers["Retry-After"] == "1"
        return response.status_code, time.monotonic() - began

    results = at_once(app, call)
    codes = Counter(code for code, _ in results)
    assert codes[200] + codes[503] == REQUESTS, codes
    assert codes[200] > SIZE
    refused = [took for code, took in results if code == 503]
    assert sum(took < 2.0 for took in refused) > 10, "nobody was refused because of the queue"
    assert sum(took >= 2.0 for took in refused) > 10, "nobody was refused at his deadline"
    assert max(refused) < 4.0


def test_no_request_fails_that_begins_when_the_server_is_back(app: Application) -> None:
    done: list[tuple[float, float, int]] = []  # when it began, when it ended, its status
    stopped = False

    async def run(client: httpx.AsyncClient, number: int) -> None:
        while not stopped:
            began = time.monotonic()
            code = await status(client, "/orders", number)
            done.append((began, time.monotonic(), code))

    async def main() -> None:
        nonlocal stopped
        async with app.client() as client, asyncio.TaskGroup() as group:
            for number in range(REQUESTS // 2):
                group.create_task(run(client, number))
            await asyncio.sleep(0.5)
            away = time.monotonic()
            await asyncio.to_thread(app.server.kill)
            try:
                await asyncio.sleep(2.2)
            finally:
                await asyncio.to_thread(app.server.start)
            back = time.monotonic()
            await asyncio.sleep(0.5)
            stopped = True
        assert Counter(code for _, ended, code in done if ended < away).keys() == {200}
        assert 503 in {code for began, _, code in done if away < began < back}
        assert Counter(code for began, _, code in done if began > back).keys() == {200}, app.log.read_text()
        assert sum(code == 500 for _, _, code in done) <= 2 * SIZE, "more than were in flight"

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/orders", "/customers"])
def test_threads_serve_a_hundred_at_once(threads: Application, path: str) -> None:
    began = time.monotonic()
    results = Counter(at_once(threads, lambda client, number: status(client, path, number)))
    took = time.monotonic() - began
    assert results[200] + results[503] == REQUESTS
    if path == "/orders":
        assert results[200] == REQUESTS
    assert took < 5.0, "threads that wait kept those from working that had a connection"
