"""Compare the ways from Django to a database, or make a report of a results file."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pymysql

from .. import environment
from .contenders import CONTENDERS, Contender, Server
from .project import ITEMS
from .site import Watch, ask, serving
from .views import VIEWS, View

sys.path.insert(0, str(environment.ROOT / "tests"))

import servers

RESULTS = Path(__file__).parents[1] / "results"
SESSIONS = 300  # that the servers allow: whoever has no pool takes a hundred
DRIVERS = {"PostgreSQL": "psycopg", "MariaDB": "PyMySQL"}
POPULATE = "create table item (id integer primary key, name varchar(100) not null, price integer not null)"


class Databases:
    """The servers, started when they are first asked for, each with a thousand rows."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._started: dict[str, Any] = {}

    def server(self, name: Server) -> Any:
        if name not in self._started:
            kind = servers.PostgreSQL if name == "PostgreSQL" else servers.MariaDB
            started = self._stack.enter_context(kind(max_connections=SESSIONS))
            self._started[name] = started
            with connect(started, name) as conn, conn.cursor() as cursor:
                cursor.execute(POPULATE)
                items = [(number, f"item {number}", 3 * number) for number in range(1, ITEMS + 1)]
                cursor.executemany("insert into item values (%s, %s, %s)", items)
                conn.commit()
        return self._started[name]

    def versions(self) -> dict[str, str]:
        found = {name: server.execute("select version()")[0][0] for name, server in self._started.items()}
        return {name: str(text).removeprefix("PostgreSQL ").partition(" ")[0] for name, text in found.items()}


def connect(server: Any, name: Server) -> Any:
    return psycopg.connect(**server.params) if name == "PostgreSQL" else pymysql.connect(**server.params)


def pgbouncer_version() -> str:
    program = servers.install.require("pgbouncer")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[1]  # PgBouncer 1.18.0


@contextmanager
def upstream(contender: Contender, server: Any, sessions: int) -> Iterator[Any]:
    """Start what stands between the site and its server: nothing, or PgBouncer."""
    if not contender.through_pgbouncer:
        yield server
        return
    with servers.PgBouncer(server.address, default_pool_size=sessions, max_client_conn=2000) as bouncer:
        yield bouncer


def address(server: Any) -> dict[str, Any]:
    params = server.params
    database = params.get("dbname") or params.get("database")
    found = {"HOST": params["host"], "PORT": str(params["port"]), "USER": params["user"], "NAME": database}
    return {**found, "PASSWORD": params.get("password", "")}


@contextmanager
def counting(server: Any, name: Server) -> Iterator[Callable[[], int]]:
    """Yield a function that counts the site's sessions, by one more of the same user."""
    query = {
        "PostgreSQL": "select count(*) from pg_stat_activity where usename = current_user",
        "MariaDB": "select count(*) from information_schema.processlist",  # shows one's own
    }[name]
    with connect(server, name) as conn, conn.cursor() as cursor:

        def count() -> int:
            cursor.execute(query)
            sessions = int(cursor.fetchone()[0]) - 1
            conn.commit()
            return sessions

        yield count


def measure(view: View, contender: Contender, server: Any, warm: int, seconds: int) -> dict[str, Any]:
    """Serve the site with one contender, load it, and say how that went."""
    port = servers.free_port()
    with ExitStack() as stack:
        between = stack.enter_context(upstream(contender, server, view.sessions))
        database = contender.database(address(between), view.size)
        try:
            site = stack.enter_context(serving(database, DRIVERS[view.server], port))
        except RuntimeError as exc:
            return {"error": str(exc)}
        count = stack.enter_context(counting(server, view.server))
        ask(site, view.path, view.clients, warm)
        pids = {server.pid, between.pid}
        with Watch(count, [site.master, *map(psutil.Process, pids)]) as watch:
            counted = ask(site, view.path, view.clients, seconds)
        errors = sum(counted[key] for key in ("refused", "broken", "late", "status"))
        return {
            "per_second": round((counted["requests"] - counted["status"]) / counted["microseconds"] * 1e6, 1),
            "errors": errors,
            **counted,
            "peak": watch.peak,
            "usual": watch.usual,
            "cpu": round(watch.cpu, 3),
        }


def run(views: list[View], wanted: list[str] | None, *, quick: bool, command: str) -> dict[str, Any]:
    rounds, warm, seconds = (1, 3, 4) if quick else (3, 2, 5)
    versions = {contender.name: contender.version for contender in CONTENDERS}
    results: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "quick": quick,
        "machine": environment.machine(),
        "software": environment.software("Django", "gunicorn"),
        "load_before": environment.load(),
        "contenders": {name: version for name, version in versions.items() if version},
        "benchmarks": {},
    }
    with ExitStack() as stack:
        databases = Databases(stack)
        for view in views:
            server = databases.server(view.server)
            field = [c for c in view.contenders if c.version and (wanted is None or c.name in wanted)]
            measured = []
            for number in range(rounds):
                turn = number % len(field)
                round_ = {}
                for contender in field[turn:] + field[:turn]:
                    round_[contender.name] = found = measure(view, contender, server, warm, seconds)
                    said = found.get("error") or f"{found['per_second']:,.0f}/s, {found['peak']} sessions"
                    print(f"{view.name}, round {number + 1}: {contender.name}: {said}", file=sys.stderr)
                    time.sleep(0.5)  # for the server to notice who has left
                measured.append(round_)
            results["benchmarks"][view.name] = {"order": [c.name for c in field], "rounds": measured}
        results["software"] |= databases.versions()
        if any(contender.through_pgbouncer for view in views for contender in view.contenders):
            results["software"]["PgBouncer"] = pgbouncer_version()
    results["load_after"] = environment.load()
    return results


def write(results: dict[str, Any], output: Path) -> None:
    """Write a results file, and beside it the report and its picture."""
    from . import report

    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    picture = output.with_suffix(".svg")
    report.draw(results, picture)
    output.with_suffix(".html").write_text(report.page(results, picture))
    print(f"written: {output.name}, and the same as .svg and .html", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.django", description=__doc__)
    names = [view.name for view in VIEWS]
    parser.add_argument(
        "views",
        nargs="*",
        metavar="VIEW",
        help=f"of {'; '.join(names)} (default: all); or: docs RESULTS.json",
    )
    parser.add_argument("--quick", action="store_true", help="one short round; figures are rough")
    parser.add_argument("--contenders", help="who takes part, separated by semicolons (default: all)")
    parser.add_argument("--output", type=Path, help="the results file (default: results/DATE-django.json)")
    options = parser.parse_args()
    if options.views[:1] == ["docs"]:
        from . import report

        report.update_docs(json.loads(Path(options.views[1]).read_text()))
        return
    if unknown := [name for name in options.views if name not in names]:
        parser.error(f"unknown: {'; '.join(unknown)}")
    views = [view for view in VIEWS if not options.views or view.name in options.views]
    wanted = options.contenders.split(";") if options.contenders else None
    command = " ".join(["python -m benchmarks.django", *(["--quick"] if options.quick else [])])
    results = run(views, wanted, quick=options.quick, command=command)
    write(results, options.output or RESULTS / f"{results['date'][:10]}-django.json")


if __name__ == "__main__":
    main()
