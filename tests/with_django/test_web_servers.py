"""The project under gunicorn, uvicorn and daphne: crowded, and with a server that goes away."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import MariaDB, PostgreSQL, wait_until

from .conftest import sessions_in
from .site import Site, on_mariadb, on_postgresql, serving

pytestmark = [pytest.mark.server, pytest.mark.timeout(120)]

SIZE = 5  # of each process' pool
REQUESTS = 100  # at a time
RECOVERS_WITHIN = 2.0  # seconds after the server accepts connections again


class Place:
    """A database with the project's table, and who is connected to it."""

    def __init__(self, settings: dict[str, Any], sessions: Callable[[], int]) -> None:
        self.settings = settings
        self.sessions = sessions

    @contextmanager
    def watched(self) -> Iterator[list[int]]:
        """Count the sessions all the time."""
        seen: list[int] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.1):
                seen.append(self.sessions())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            done.set()
            thread.join(10)


@pytest.fixture(params=["postgresql", "mariadb"])
def place(request: pytest.FixtureRequest) -> Place:
    pool = {"max_size": SIZE}
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        name = request.getfixturevalue("postgresql_shop")["NAME"]
        settings = on_postgresql(server, name, pool=pool)
        return Place(settings, lambda: len(server.census(application_name=name)))
    other: MariaDB = request.getfixturevalue("mariadb")
    name = request.getfixturevalue("mariadb_shop")["NAME"]
    return Place(on_mariadb(other, name, pool=pool), lambda: sessions_in(other, name))


def figures(site: Site, processes: int) -> dict[int, dict[str, int]]:
    """Return what each process says of its pool."""
    found: dict[int, dict[str, int]] = {}

    def asked() -> bool:
        for _ in range(4):
            figure = site.get("pool")
            found[figure["pid"]] = figure
        return len(found) == processes

    wait_until(asked, what=f"{processes} processes have answered")
    return found


@pytest.mark.parametrize(
    ("kind", "processes", "page"),
    [("gunicorn", 2, "items"), ("uvicorn", 1, "items"), ("daphne", 1, "async-items")],
)
def test_three_waves_of_requests_never_take_more_than_the_pool_has(
    place: Place, kind: str, processes: int, page: str, tmp_path: Path
) -> None:
    databases = {"default": place.settings}
    with serving(kind, databases, tmp_path / "log", workers=processes, hide="MySQLdb") as site:
        with place.watched() as seen:
            statuses = [site.at_once(page, REQUESTS) for _ in range(3)]
        assert statuses == [[200] * REQUESTS] * 3
        assert 0 < max(seen) <= SIZE * processes
        pools = figures(site, processes).values()
        assert all((pool["in_use"], pool["waiting"], pool["pools"]) == (0, 0, 1) for pool in pools)
        assert place.sessions() == sum(pool["idle"] for pool in pools)
    wait_until(lambda: place.sessions() == 0, what="its sessions ended with the server")


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
def test_workers_of_a_preloaded_application_have_pools_of_their_own(place: Place, tmp_path: Path) -> None:
    with serving("preload", {"default": place.settings}, tmp_path / "log", workers=2, hide="MySQLdb") as site:
        assert site.at_once("items", REQUESTS) == [200] * REQUESTS
        pools = figures(site, 2).values()
        assert place.sessions() == sum(pool["idle"] for pool in pools) <= 2 * SIZE
        assert site.get("threads") == {"done": True}
        assert sum(pool["in_use"] for pool in figures(site, 2).values()) == 0
    wait_until(lambda: place.sessions() == 0, what="its sessions ended with the server")


def test_a_restart_of_the_server_costs_errors_only_while_it_is_away(
    request: pytest.FixtureRequest, place: Place, tmp_path: Path
) -> None:
    kind = "postgresql" if place.settings["ENGINE"].endswith("postgresql") else "mariadb"
    server = request.getfixturevalue(kind)
    failed: list[tuple[float, float]] = []
    served = 0
    stop = threading.Event()

    with serving("gunicorn", {"default": place.settings}, tmp_path / "log", hide="MySQLdb") as site:

        def ask() -> None:
            nonlocal served
            with httpx.Client(base_url=site.address, trust_env=False, timeout=30) as client:
                while not stop.is_set():
                    began = time.monotonic()
                    if client.get("/items").status_code == 200:
                        served += 1
                    else:
                        failed.append((began, time.monotonic()))

        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        wait_until(lambda: served > 100, what="the load runs")
        down = time.monotonic()
        server.restart()
        up = time.monotonic()
        before = served
        wait_until(lambda: served > before + 100, what="it goes on")
        time.sleep(RECOVERS_WITHIN / 4)
        stop.set()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads), "somebody hangs"
        assert [(began - down, ended - up) for began, ended in failed if ended < down] == []
        assert [(began - down, ended - up) for began, ended in failed if ended > up + RECOVERS_WITHIN] == []
        pools = figures(site, 1).values()
        wait_until(lambda: place.sessions() == sum(pool["idle"] for pool in pools), what="the census agrees")
