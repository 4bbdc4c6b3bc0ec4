"""The dashboard of docs/_static/grafana, drawn from a real run: `python -m benchmarks.dashboard`.

A pool of ten on PostgreSQL has calm, a rush, a borrower that loses connections, and an outage.  A real
Prometheus scrapes it every second; panels, queries and units are read from the dashboard's file.  Only the
drawing is matplotlib's.  Prometheus must be installed; the run takes two minutes.
"""

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, PercentFormatter

from .environment import ROOT
from .plots import STYLE

STATIC = ROOT / "docs" / "_static" / "grafana"
SIZE, CROWD = 10, 60
BUSY, PAUSE = 0.02, 0.04  # seconds, on average, of a statement and between two requests
TIMEOUT = 0.75
STEP, RATE = 1, "5s"

PHASES = (("calm", 20), ("rush", 25), ("calm", 15), ("leak", 20), ("calm", 10), ("outage", 10), ("calm", 20))
"""What happens, for how many seconds."""
THREADS = {"calm": 8, "rush": CROWD, "leak": 8, "outage": 8}

COLOURS = ("#4c8dd6", "#e8590c", "#3aa17e", "#a27ad1", "#b8860b", "#d6457a", "#808080")
SHADES = {"rush": "#e8590c", "leak": "#a27ad1", "outage": "#d6457a"}


@dataclass
class Load:
    """Threads that borrow; more or fewer of them take part as the phase says."""

    pool: Any
    taking_part: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def thread(self, number: int) -> None:
        """Be one of the threads."""
        rng = random.Random(number)
        while not self.ended.wait(rng.expovariate(1 / PAUSE)):
            if number < self.taking_part:
                self.request(rng.expovariate(1 / BUSY))

    def request(self, seconds: float) -> None:
        """Borrow for a statement; a frame of its own, so that nobody refers to the connection after it."""
        from psycopg import OperationalError

        from connpool import PoolError

        try:
            with self.pool.connection(timeout=TIMEOUT) as conn:
                conn.execute("select pg_sleep(%s)", [seconds])
        except (PoolError, OperationalError):
            pass  # the pool counts them: that is what is shown

    def lose(self) -> None:
        """Borrow, and forget to give back."""
        self.pool.acquire()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.thread, args=(number,)) for number in range(CROWD)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()


def happen(load: Load, server: Any) -> list[tuple[str, float, float]]:
    """Go through the phases; return when each began and ended."""
    log = []
    for name, seconds in PHASES:
        print(f"{name}: {seconds} s", file=sys.stderr, flush=True)
        began = time.time()
        load.taking_part = THREADS[name]
        if name == "outage":
            server.kill()
        while time.time() < began + seconds:
            if name == "leak":
                load.lose()
            time.sleep(0.5)
        if name == "outage":
            server.start()
        log.append((name, began, time.time()))
    return log


# -- the picture


def draw(board: dict[str, Any], prometheus: Any, log: list[tuple[str, float, float]], path: Path) -> None:
    """Draw each panel in its place."""
    start, end = log[0][1], log[-1][2]
    with mpl.rc_context({**STYLE, "font.size": 8, "axes.titlesize": 9}):
        figure = Figure(figsize=(12, 8))
        grid = figure.add_gridspec(3, 3)
        for panel in board["panels"]:
            place = panel["gridPos"]
            axes = figure.add_subplot(grid[place["y"] // place["h"], place["x"] // place["w"]])
            series = [
                (name(target["legendFormat"], found["metric"]), found["values"])
                for target in panel["targets"]
                for found in prometheus.query_range(asked(target["expr"]), start, end, STEP)
            ]
            show(
                axes, panel, [(label, [(t - start, float(v)) for t, v in values]) for label, values in series]
            )
            for phase, began, ended in log:
                if phase in SHADES:
                    axes.axvspan(
                        began - start, ended - start, color=SHADES[phase], alpha=0.15, lw=0, zorder=0
                    )
                    axes.text(began - start, 1, phase, transform=axes.get_xaxis_transform(), va="bottom")
            axes.set_xlim(0, end - start)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def asked(expression: str) -> str:
    """Return a query with Grafana's variables filled in."""
    return expression.replace("$__rate_interval", RATE).replace("$pool", ".*")


def name(legend: str, labels: dict[str, str]) -> str:
    for label, value in labels.items():
        legend = legend.replace("{{" + label + "}}", value)
    return legend


def show(axes: Axes, panel: dict[str, Any], series: list[tuple[str, list[tuple[float, float]]]]) -> None:
    """Draw one panel as its settings say."""
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    below: dict[int, float] = {}
    for (label, values), colour in zip(series, cycle(COLOURS), strict=False):
        times, heights = [round(at) for at, _ in values], [height for _, height in values]
        if not stacked:
            axes.plot(times, heights, label=label, color=colour, linewidth=1.2)
        elif any(heights):
            feet = [below.get(at, 0.0) for at in times]
            tops = [foot + height for foot, height in zip(feet, heights, strict=True)]
            axes.fill_between(times, feet, tops, step="mid", label=label, color=colour, alpha=0.7, lw=0)
            below |= dict(zip(times, tops, strict=True))
    axes.set_title(panel["title"], pad=12)
    axes.set_ylim(0, defaults["max"] * 1.05 if "max" in defaults else None)
    units = {
        "percentunit": PercentFormatter(1.0),
        "s": EngFormatter("s", sep=" "),
        "ops": FuncFormatter(lambda value, _: f"{value:g}/s"),
    }
    if defaults["unit"] in units:
        axes.yaxis.set_major_formatter(units[defaults["unit"]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=5, fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("--output", type=Path, default=STATIC / "connpool.svg")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))

    from prometheus_client import CollectorRegistry, start_http_server
    from servers import PostgreSQL, wait_until
    from servers.prometheus import Prometheus

    from connpool import ConnectionPool
    from connpool.adapters.psycopg import PsycopgAdapter
    from connpool.metrics.prometheus import PoolCollector

    if Prometheus.program() is None:
        raise SystemExit("Prometheus is not installed: apt-get install prometheus, or put it into the PATH")
    registry = CollectorRegistry()
    with PostgreSQL() as server:
        pool = ConnectionPool(PsycopgAdapter(server.url), max_size=SIZE, name="orders")
        registry.register(PoolCollector(pool))
        web, thread = start_http_server(0, "127.0.0.1", registry)
        load = Load(pool)
        with pool, Prometheus([f"127.0.0.1:{web.server_port}"]) as prometheus, load.running():
            wait_until(lambda: prometheus.query(f"rate(connpool_dials_total[{RATE}])"))
            log = happen(load, server)
            draw(json.loads((STATIC / "connpool.json").read_text()), prometheus, log, arguments.output)
        web.shutdown()
        web.server_close()
        thread.join()
    print(arguments.output)


if __name__ == "__main__":
    main()
