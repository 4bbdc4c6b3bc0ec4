"""Run benchmarks, or make a report of a results file."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from . import environment, report
from .field import EVERYBODY, may_take_part, module_of, ours_of
from .figures import Plan
from .peers import PyPIConnpool

THREADS = ("cycle", "contended", "handoff", "spike", "fairness", "resets", "outage")
TASKS = ("async_cycle", "async_contended", "async_handoff", "async_spike", "async_waiting")
NAMES = THREADS + TASKS
RESULTS = Path(__file__).with_name("results")
LIMIT = 120.0  # seconds; a contender that takes longer for one measurement hangs


class Contender:
    """A worker process and what it said."""

    def __init__(self, name: str, python: Path, variables: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python, "-P", "-m", "benchmarks.worker"],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        answer = self._ask(do="hello", peer=name)
        self.missing: str | None = answer.get("missing") or answer.get("error")
        self.version: str | None = answer.get("version")

    def measure(self, benchmark: str, dsn: str, case: dict[str, Any]) -> dict[str, Any]:
        return self._ask(do="run", benchmark=benchmark, dsn=dsn, case=case)

    def _ask(self, **command: Any) -> dict[str, Any]:
        process = self._process
        assert process.stdin, "made with pipes"
        assert process.stdout, "made with pipes"
        watchdog = threading.Timer(LIMIT, process.kill)
        watchdog.start()
        try:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer
        except (OSError, ValueError):
            return {"error": "the worker has died, or was killed because it hung"}
        finally:
            watchdog.cancel()

    def close(self) -> None:
        """End the worker: its input ends."""
        with contextlib.suppress(OSError):
            self._process.communicate(timeout=10)
        self._process.kill()


def contenders(wanted: list[str], *, download: bool) -> Iterator[Contender | tuple[str, str]]:
    """Start the contenders, or say why one cannot take part."""
    for name in wanted:
        python, variables = Path(sys.executable), environment.here()
        if name == PyPIConnpool.name:
            found = environment.pypi_python(make=download)
            if isinstance(found, str):
                yield name, found
                continue
            python, variables = found, environment.alone()
        contender = Contender(name, python, variables)
        if contender.missing:
            contender.close()
            yield name, contender.missing
        else:
            yield contender


def rounds(plan: Plan, benchmark: str, servers: "Servers", field: list[Contender]) -> dict[str, Any]:
    """Measure one case: in every round each contender once, and each round begins with another one.

    A benchmark that does something to the server meanwhile has a function `conduct`, which asks contenders.
    """
    conduct = getattr(module_of(benchmark), "conduct", None)
    server, dsn = servers.server(plan), servers.url(plan)

    def measure(peer: Contender) -> dict[str, Any]:
        if conduct is None:
            return peer.measure(benchmark, dsn, plan.case)
        conducted: dict[str, Any] = conduct(partial(peer.measure, benchmark, dsn), server, **plan.case)
        return conducted

    measured = []
    field = [contender for contender in field if not plan.only or contender.name in plan.only]
    for number in range(plan.rounds):
        turn = number % len(field)
        order = field[turn:] + field[:turn]
        measured.append({peer.name: measure(peer) for peer in order})
    return {"case": plan.case, "order": [peer.name for peer in field], "rounds": measured}


class Servers:
    """The servers that a run needs, each started when it is first asked for, and proxies in front of them."""

    def __init__(self, stack: contextlib.ExitStack, software: dict[str, str]) -> None:
        self._stack = stack
        self._software = software
        self._started: dict[str, Any] = {}

    def server(self, plan: Plan) -> Any:
        """Return the server of a case."""
        import servers

        server = self._started.get(plan.server)
        if server is None:
            server = self._stack.enter_context(getattr(servers, plan.server)())
            self._started[plan.server] = server
            [[version]] = server.execute("select version()")
            self._software[plan.server] = str(version).removeprefix("PostgreSQL ").partition(" ")[0]
        return server

    def url(self, plan: Plan) -> str:
        """Return where a case connects to."""
        import servers

        server = self.server(plan)
        url: str = server.url
        if not plan.delay:
            return url
        proxy = self._stack.enter_context(servers.FaultProxy(server.address))
        proxy.delay(plan.delay)
        return url.replace(f":{server.address[1]}", f":{proxy.address[1]}")


def run(names: list[str], wanted: list[str], *, quick: bool, download: bool, command: str) -> dict[str, Any]:
    sys.path.insert(0, str(environment.ROOT / "tests"))
    results: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "quick": quick,
        "machine": environment.machine(),
        "software": environment.software(),
        "load_before": environment.load(),
        "contenders": {},
        "benchmarks": {},
    }
    with contextlib.ExitStack() as stack:
        servers = Servers(stack, results["software"])
        field = []
        for found in contenders(wanted, download=download):
            if isinstance(found, Contender):
                stack.callback(found.close)
                field.append(found)
                peer = EVERYBODY[found.name]
                entry = {
                    "version": found.version,
                    "configuration": peer.configuration,
                    "empty": peer.empty,
                }
                results["contenders"][found.name] = entry
            else:
                results["contenders"][found[0]] = {"missing": found[1]}
        for ours in map(ours_of, names):
            if not any(contender.name == ours for contender in field):
                raise SystemExit(f"{ours} does not run: {results['contenders'].get(ours, 'not asked for')}")
        for name in names:
            possible = may_take_part(name)
            taking_part = [contender for contender in field if contender.name in possible]
            cases = []
            for plan in module_of(name).plans(quick=quick):
                what = ", ".join(f"{key}={value}" for key, value in plan.case.items())
                print(f"{name}: {what}", file=sys.stderr, flush=True)
                cases.append(rounds(plan, name, servers, taking_part))
            results["benchmarks"][name] = cases
    results["load_after"] = environment.load()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"what to run, of {', '.join(NAMES)} (default: all); or: report FILE, or docs FILE ...",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds; figures are rough")
    parser.add_argument(
        "--contenders",
        help=f"who takes part, separated by semicolons, of {'; '.join(EVERYBODY)} (default: who can)",
    )
    parser.add_argument(
        "--no-download",
        action="store_true",
        help="leave out the contender that needs an environment of its own",
    )
    parser.add_argument(
        "--output", type=Path, help="the results file (default: results/DATE.json, none if quick)"
    )
    options = parser.parse_args()
    if options.names and options.names[0] in ("report", "docs"):
        what, *files = options.names
        if not files or (what == "report" and len(files) > 1):
            parser.error(f"{what} needs {'one results file' if what == 'report' else 'results files'}")
        runs = [json.loads(Path(file).read_text()) for file in files]
        if what == "docs":
            report.update_docs(runs)
        else:
            print(report.markdown(runs[0]))
        return
    wanted = [name.strip() for name in options.contenders.split(";")] if options.contenders else None
    if unknown := [name for name in options.names if name not in NAMES] + [
        name for name in wanted or [] if name not in EVERYBODY
    ]:
        parser.error(f"unknown: {', '.join(unknown)}")
    names = options.names or list(NAMES)
    if wanted is None:
        wanted = list(dict.fromkeys(contender for name in names for contender in may_take_part(name)))
    results = run(
        names,
        wanted,
        quick=options.quick,
        download=not options.no_download,
        command=" ".join(["python -m benchmarks", *options.names, *(["--quick"] if options.quick else [])]),
    )
    output = options.output
    if output is None and not options.quick:
        output = RESULTS / f"{results['date'][:10]}.json"
    if output is not None:
        output.parent.mkdir(exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
        print(f"written: {output.name}", file=sys.stderr)
    print(report.markdown(results))


if __name__ == "__main__":
    main()
