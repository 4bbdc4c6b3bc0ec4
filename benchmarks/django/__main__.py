"""Compare the ways from Django to a database, or make a report of a results file."""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
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
SESSIONS = 600  # that the servers allow: all contenders are there at a time, and some take a hundred
WARM, TURN = 2, 1  # seconds
ROUNDS = 3
FAILURES = ("refused", "broken", "late", "status")
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


def address(server: Any, name: Server, label: str) -> dict[str, Any]:
    """Return where the server is, for settings; the sessions will be known by a label."""
    params = server.params
    database = params.get("dbname") or params.get("database")
    found = {"HOST": params["host"], "PORT": str(params["port"]), "NAME": database}
    found |= {"USER": params["user"], "PASSWORD": params.get("password", "")}
    if name == "PostgreSQL":
        return {**found, "OPTIONS": {"application_name": label}}
    server.execute("create or replace user %s@'%%' identified by %s", label, found["PASSWORD"])
    server.execute(f"grant all on {database}.* to %s@'%%'", label)
    return {**found, "USER": label}


class Running:
    """A contender's site, and what is measured of it, in turns with the others."""

    def __init__(self, stack: ExitStack, view: View, contender: Contender, server: Any, label: str) -> None:
        self.error: str | None = None
        self._view = view
        between = stack.enter_context(upstream(contender, server, view.sessions))
        where = address(server, view.server, label)
        where |= {"HOST": between.params["host"], "PORT": str(between.params["port"])}
        database = contender.database(where, view.size)
        try:
            self._site = stack.enter_context(serving(database, DRIVERS[view.server], servers.free_port()))
        except RuntimeError as exc:
            self.error = str(exc)
            return
        known_by = {"application_name" if view.server == "PostgreSQL" else "user": label}
        self._count = lambda: len(server.census(**known_by))
        self._processes = [self._site.master, *map(psutil.Process, {server.pid, between.pid})]
        ask(self._site, view.path, view.clients, WARM)

    def turn(self) -> dict[str, Any]:
        """Load the site for a moment, and say how that went."""
        with Watch(self._count, self._processes) as watch:
            counted = ask(self._site, self._view.path, self._view.clients, TURN)
        return {**counted, "counts": watch.counts, "cpu": watch.cpu}


def together(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a round."""
    total = {key: sum(turn[key] for turn in turns) for key in ("requests", "microseconds", *FAILURES)}
    counts = [count for turn in turns for count in turn["counts"]]
    return {
        "per_second": round((total["requests"] - total["status"]) / total["microseconds"] * 1e6, 1),
        "errors": sum(total[key] for key in FAILURES),
        **total,
        "p50_us": median(turn["p50_us"] for turn in turns),
        "p99_us": median(turn["p99_us"] for turn in turns),
        "max_us": max(turn["max_us"] for turn in turns),
        "peak": max(counts),
        "usual": median(counts),
        "cpu": round(sum(turn["cpu"] for turn in turns) / len(turns), 3),
    }


def compare(view: View, field: list[Contender], server: Any, *, quick: bool) -> list[dict[str, Any]]:
    """Serve the site with all contenders at a time, and load one after the other in short turns.

    A machine that is shared does not go at the same speed for long: what is compared is measured within
    seconds of each other.
    """
    rounds, turns = (1, 3) if quick else (ROUNDS, view.turns)
    measured = []
    with ExitStack() as stack:
        running = {
            contender.name: Running(stack, view, contender, server, f"site{number}")
            for number, contender in enumerate(field)
        }
        for number in range(rounds):
            seen: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
            for _ in range(turns):
                for name in shuffled(running):
                    if running[name].error is None:
                        seen[name].append(running[name].turn())
            round_ = {
                name: together(seen[name]) if seen[name] else {"error": running[name].error}
                for name in running
            }
            for name, found in round_.items():
                said = found.get("error") or f"{found['per_second']:,.0f}/s, {found['peak']} sessions"
                print(f"{view.name}, round {number + 1}: {name}: {said}", file=sys.stderr)
            measured.append(round_)
    return measured


def shuffled(names: Iterable[str]) -> list[str]:
    """Return the names in an order by chance: nobody always follows the same one."""
    found = list(names)
    random.shuffle(found)
    return found


def run(views: list[View], wanted: list[str] | None, *, quick: bool, command: str) -> dict[str, Any]:
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
            measured = compare(view, field, server, quick=quick)
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
