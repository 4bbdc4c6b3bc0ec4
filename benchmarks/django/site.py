"""The site under gunicorn, what asks it for pages, and what is watched meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from .. import environment

WORKERS, THREADS = 4, 25
READY = 30.0  # seconds for gunicorn to answer
LATE = 30.0  # seconds after which a client has waited too long
SCRIPT = Path(__file__).with_name("page.lua")


@dataclass(frozen=True)
class Site:
    """One running site."""

    address: str
    master: psutil.Process
    log: Path

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.address}/{path}", timeout=LATE) as response:
            body: bytes = response.read()
            return body


@contextmanager
def serving(database: dict[str, Any], driver: str, port: int) -> Iterator[Site]:
    """Run gunicorn with four workers of 25 threads each; say what it logged if it does not answer."""
    variables = {"BENCHMARK_DATABASE": json.dumps(database), "BENCHMARK_DRIVER": driver}
    variables |= {"DJANGO_SETTINGS_MODULE": "benchmarks.django.project.settings"}
    command = [sys.executable, "-m", "gunicorn", "benchmarks.django.project.wsgi", "--worker-class=gthread"]
    command += [f"--workers={WORKERS}", f"--threads={THREADS}", f"--bind=127.0.0.1:{port}"]
    # A worker that accepts more than it has threads for leaves other workers idle, and luck decides.
    command += [f"--worker-connections={THREADS}", "--keep-alive=0"]
    command += ["--graceful-timeout=2", "--log-level=warning"]
    with tempfile.NamedTemporaryFile("w", suffix=".log") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment.here(), **variables}, stdout=output, stderr=output
        )
        site = Site(f"http://127.0.0.1:{port}", psutil.Process(process.pid), Path(output.name))
        try:
            _wait_for(site, process)
            yield site
        finally:
            _end(process, site.master)


def _wait_for(site: Site, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + READY
    while True:
        try:
            site.get("rows")
            return
        except urllib.error.HTTPError as exc:
            raise RuntimeError(
                f"the first page was answered with {exc.code}: {_last_line(site.log)}"
            ) from exc
        except OSError as exc:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"gunicorn does not answer: {_last_line(site.log)}") from exc
            time.sleep(0.1)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "it has logged nothing"


def _end(process: "subprocess.Popen[bytes]", master: psutil.Process) -> None:
    family = [*master.children(recursive=True), master] if process.poll() is None else []
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        for member in family:
            member.kill()
        process.wait()


# -- the clients


def ask(site: Site, path: str, clients: int, seconds: int) -> dict[str, float]:
    """Have so many clients ask for pages, one after the other each; return what wrk counted."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("the load is made by wrk, which is not installed: apt-get install wrk")
    command = [program, "--threads=1", f"--connections={clients}", f"--duration={seconds}s"]
    command += [f"--timeout={LATE:g}s", f"--script={SCRIPT}", f"{site.address}/{path}"]
    # As nginx does it by default.  A connection that is kept would stay with the worker that accepted it.
    command += ["--header=Connection: close"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 2 * LATE)
    counted: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return counted


# -- what is watched


class Watch:
    """Counts the server's sessions, and its processes' and the site's time on processors."""

    EVERY = 0.2  # seconds

    def __init__(self, count: Callable[[], int], processes: list[psutil.Process]) -> None:
        self._count = count
        self._processes = processes
        self._stop = threading.Event()
        self.counts = [count()]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._began, self._used = time.monotonic(), self._cpu()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cpu = (self._cpu() - self._used) / (time.monotonic() - self._began)
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.EVERY):
            self.counts.append(self._count())

    def _cpu(self) -> float:
        total = 0.0
        for process in self._processes:
            ended = process.cpu_times()  # PostgreSQL has a process for each session
            total += ended.children_user + ended.children_system
            for member in (process, *process.children(recursive=True)):
                try:
                    times = member.cpu_times()
                except psutil.NoSuchProcess:
                    continue  # ended just now
                total += times.user + times.system
        return total
