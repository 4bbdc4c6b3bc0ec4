"""The project of the tests, in processes of its own: under a web server, or on the command line."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from servers import MariaDB, PostgreSQL, free_port, wait_until

import connpool

PROJECT = Path(__file__).parent / "project"
ENGINES = "connpool.integrations.django."

Databases = Mapping[str, Mapping[str, Any]]


def on_postgresql(server: PostgreSQL, name: str, **more: Any) -> dict[str, Any]:
    """Return Django's settings for a database on PostgreSQL."""
    options = {"application_name": name, **more.pop("options", {})}
    return {
        "ENGINE": ENGINES + "postgresql",
        "NAME": name,
        "USER": more.pop("user", server.user),
        "HOST": server.host,
        "PORT": server.port,
        "OPTIONS": {"pool": more.pop("pool", True), **options},
        **more,
    }


def on_mariadb(server: MariaDB, name: str, **more: Any) -> dict[str, Any]:
    """Return Django's settings for a database on MariaDB."""
    return {
        "ENGINE": ENGINES + "mysql",
        "NAME": name,
        "USER": server.user,
        "PASSWORD": server.password,
        "HOST": server.host,
        "PORT": server.port,
        "OPTIONS": {"pool": more.pop("pool", True), **more.pop("options", {})},
        **more,
    }


def on_sqlite(path: Path, **more: Any) -> dict[str, Any]:
    """Return Django's settings for a database in a file."""
    return {
        "ENGINE": ENGINES + "sqlite3",
        "NAME": str(path),
        "OPTIONS": {"pool": more.pop("pool", True), **more.pop("options", {})},
        **more,
    }


def environment(databases: Databases, *, hide: str = "") -> dict[str, str]:
    """Return the environment of a process with these databases, as if *hide* were not installed."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(connpool.__file__).parents[1]), str(PROJECT)]),
        "DJANGO_SETTINGS_MODULE": "settings",
        "SHOP_DATABASES": json.dumps(databases),
        "SHOP_HIDE": hide,
        "SHOP_LOGS": "to stderr",
    }


def manage(databases: Databases, *arguments: str, hide: str = "", succeeds: bool = True) -> str:
    """Run ``manage.py``; return all that it says."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=PROJECT,
        env=environment(databases, hide=hide),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) is succeeds, output
    return output


def command(kind: str, port: int, workers: int) -> list[str]:
    """Return the command line of a web server."""
    address = f"127.0.0.1:{port}"
    return {
        "gunicorn": [
            "gunicorn",
            "wsgi",
            "-b",
            address,
            "-w",
            str(workers),
            "--threads",
            "25",
            "-k",
            "gthread",
        ],
        "preload": ["gunicorn", "wsgi", "-b", address, "-w", str(workers), "--threads", "25", "--preload"],
        "uvicorn": [
            "uvicorn",
            "asgi:application",
            "--port",
            str(port),
            "--no-access-log",
            "--lifespan",
            "off",
        ],
        "daphne": ["daphne", "-b", "127.0.0.1", "-p", str(port), "asgi:application"],
    }[kind]


class Site:
    """The project under a web server."""

    def __init__(self, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.address = address
        self.process = process
        self.log = log

    def at_once(self, path: str, requests: int) -> list[int]:
        """Ask for a page many times at once; return the statuses."""

        async def main() -> list[int]:
            unlimited = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(limits=unlimited, timeout=30, trust_env=False) as client:
                answers = await asyncio.gather(
                    *(client.get(f"{self.address}/{path}") for _ in range(requests))
                )
                return [answer.status_code for answer in answers]

        return asyncio.run(main())

    def get(self, path: str) -> Any:
        """Return what a view says."""
        response = httpx.get(f"{self.address}/{path}", trust_env=False, timeout=30)
        assert response.status_code == 200, (response.status_code, self.log.read_text()[-3000:])
        return response.json()


@contextmanager
def serving(
    kind: str, databases: Databases, log: Path, *, workers: int = 1, hide: str = ""
) -> Iterator[Site]:
    """Serve the project until the block ends."""
    port = free_port()
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", *command(kind, port, workers)],
            cwd=PROJECT,
            env=environment(databases, hide=hide),
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        site = Site(f"http://127.0.0.1:{port}", process, log)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return bool(httpx.get(f"{site.address}/pool", trust_env=False, timeout=5).status_code)
            except httpx.TransportError:
                return False

        try:
            wait_until(answers, 20, f"{kind} answers")
            yield site
            process.send_signal(signal.SIGTERM)
            process.wait(15)
        finally:
            process.kill()
