"""How what is in `examples/` is started: in a process of its own, which libpq's variables guide."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import PostgreSQL, wait_until

import connpool

EXAMPLES = Path(__file__).parents[2] / "examples"


def environment(server: PostgreSQL, name: str, dbname: str | None = None, *paths: Path) -> dict[str, str]:
    """Return the variables that lead to a server, where the sessions have the application's name."""
    params = server.params
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [Path(connpool.__file__).parents[1], *paths])),
        "PGHOST": params["host"],
        "PGPORT": str(params["port"]),
        "PGUSER": params["user"],
        "PGDATABASE": dbname or params["dbname"],
        "PGAPPNAME": name,
    }


@contextmanager
def running(
    command: list[str], env: dict[str, str], log: Path, ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in the examples' directory; it must end well when the block does."""
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=EXAMPLES, env=env, stdout=output, stderr=subprocess.STDOUT) as process,
    ):

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            return ready()

        try:
            wait_until(is_ready, 20, f"{command[2]} is ready")
            yield process
            process.terminate()
            assert process.wait(20) in (0, -15), log.read_text()
        finally:
            process.kill()


@contextmanager
def orders(server: PostgreSQL) -> Iterator[str]:
    """Lend a database that has the table of the examples."""
    with server.database() as name:
        server.execute("create table orders (number int, item text)", dbname=name)
        server.execute(f"alter table orders owner to {server.user}", dbname=name)
        yield name
