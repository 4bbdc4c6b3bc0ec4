"""Pictures of a results file, as SVG: equal results, equal bytes; readable on light and on dark pages."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .async_peers import ASYNC_FLOOR, ASYNC_OURS, SUFFIX
from .figures import Case, find, names, series
from .peers import FLOOR, OURS

INK = "#808080"  # in between: it stands out from white and from black alike
COLOURS = {
    OURS: "#e8590c",
    "psycopg_pool": "#4c8dd6",
    "SQLAlchemy": "#3aa17e",
    "DBUtils": "#a27ad1",
    "connpool 1.0.14 (PyPI)": "#b8860b",
    FLOOR: INK,
    ASYNC_OURS: "#e8590c",
    f"psycopg_pool{SUFFIX}": "#4c8dd6",
    f"SQLAlchemy{SUFFIX}": "#3aa17e",
    "asyncpg": "#a27ad1",
    "asyncpg, no reset": "#c9a8ec",
    "aiosqlitepool": "#b8860b",
    ASYNC_FLOOR: INK,
}
STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "connpool",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def draw(results: dict[str, Any], folder: Path) -> dict[str, str]:
    """Draw what there is to draw; return the Markdown that shows it, by benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = {}
    with mpl.rc_context(STYLE):
        for name, picture in PICTURES.items():
            cases = results["benchmarks"].get(name)
            if not cases:
                continue
            figure = Figure()
            alternative = picture(figure, cases)
            save(figure, folder / f"{name}.svg")
            shown[name] = f"![{alternative}](../_static/benchmarks/{name}.svg)"
    return shown


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # matplotlib ends lines with blanks, which hooks that look at text files dislike.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def bars(axes: Axes, case: Case, key: str, scale: float, show: Callable[[float], str]) -> None:
    """Draw a bar for each contender, with the least and the greatest round as a line across its end."""
    contenders = names(case)[::-1]
    for place, name in enumerate(contenders):
        colour = COLOURS[OURS if name.startswith(OURS) else "psycopg_pool"]
        values = [value * scale for value in series(case, name, key)]
        axes.barh(place, median(values), height=0.62, color=COLOURS.get(name, colour))
        axes.plot([min(values), max(values)], [place, place], color=INK, linewidth=1.2)
        axes.annotate(
            show(median(values)),
            (max(values), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    axes.set_yticks(range(len(contenders)), contenders)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.12)


def cycle(figure: Figure, cases: list[Case], who: str = "thread") -> str:
    shown = cases if who == "task" else cases[:1]
    figure.set_size_inches(7.2, 2.6 * len(shown))
    for axes, case in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        bars(axes, case, "ns", 1e-3, lambda us: f"{us:.2f} µs")
        axes.set_title(f"One lease and its return, one {who}, {case['case'].get('driver', 'psycopg')}")
        axes.set_xlabel("microseconds; less is better")
    return f"Bars: microseconds per cycle of each pool, one {who}"


def contended(figure: Figure, cases: list[Case]) -> str:
    empty = [case for case in cases if not case["case"]["hold"]]
    held = find(cases, threads=32, hold=0.001)
    figure.set_size_inches(7.2, 6.4 if held else 3.2)
    axes = figure.subplots(2 if held else 1, 1, squeeze=False)[:, 0]
    everybody = list(dict.fromkeys(name for case in empty for name in names(case)))
    width = 0.8 / max(1, len(everybody))
    for number, name in enumerate(everybody):
        for place, case in enumerate(empty):
            values = [value / 1000 for value in series(case, name, "per_second")]
            if not values:
                continue
            at = place + (number - (len(everybody) - 1) / 2) * width
            label = name if place == 0 else None
            axes[0].bar(at, median(values), width * 0.9, color=COLOURS[name], label=label)
            axes[0].plot([at, at], [min(values), max(values)], color=INK, linewidth=1)
    axes[0].set_yscale("log")
    axes[0].set_xticks(range(len(empty)), [f"{c['case']['threads']} on {c['case']['size']}" for c in empty])
    axes[0].set_title("Threads on connections, empty block")
    axes[0].set_ylabel("thousand cycles per second")
    axes[0].legend(ncols=3, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    if held:
        contenders = [name for name in names(held) if name != FLOOR][::-1]
        for place, name in enumerate(contenders):
            served = held["rounds"][0].get(name, {}).get("served", [])
            axes[1].scatter(
                served, [place] * len(served), s=22, color=COLOURS[name], alpha=0.55, linewidths=0
            )
        axes[1].set_yticks(range(len(contenders)), contenders)
        axes[1].set_xscale("symlog", linthresh=1)
        axes[1].set_xlim(-0.4, axes[1].get_xlim()[1] * 1.5)
        axes[1].set_ylim(-0.6, len(contenders) - 0.4)
        axes[1].set_title("32 threads on 4 connections, held 1 ms: a dot is a thread")
        axes[1].set_xlabel(f"blocks that a thread got through in {held['case']['seconds']:g} s")
    return "Bars: thousand cycles per second of each pool. Dots: how often each of 32 threads was served"


def handoff(figure: Figure, cases: list[Case]) -> str:
    figure.set_size_inches(7.2, 2.6)
    axes = figure.add_subplot()
    bars(axes, cases[0], "us", 1.0, lambda us: f"{us:.0f} µs")
    axes.set_title("From release to the waiting thread running")
    axes.set_xlabel("microseconds, median; less is better")
    return "Bars: microseconds from release to the waiter running, of each pool"


def spike(figure: Figure, cases: list[Case], who: str = "threads") -> str:
    found = [case for kind in ("burst", "sustained") if (case := find(cases, kind=kind))]
    figure.set_size_inches(7.2, 3.0)
    titles = {"burst": "50 requests of 2 ms, once", "sustained": f"50 {who}, queries of 20 ms"}
    axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for place, case in enumerate(found):
        limit = 500.0 if case["case"]["kind"] == "burst" else case["case"]["after"] * 1e3
        for name in names(case):
            steps = case["rounds"][0].get(name, {}).get("growth", [])
            x = [min(instant, limit) for instant, _ in steps] + [limit]
            y = [size for _, size in steps] + [steps[-1][1]] if steps else []
            axes[place].step(x, y, where="post", color=COLOURS[name], label=name, linewidth=1.6, alpha=0.9)
        axes[place].set_title(titles[case["case"]["kind"]])
        axes[place].set_xlabel("ms")
        axes[place].set_xlim(0, limit)
        axes[place].set_ylim(0, 53)
    axes[0].set_ylabel("open connections")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, fontsize=8, loc="outside lower center")
    return "Lines: how many connections each pool has open over time"


PICTURES: dict[str, Callable[[Figure, list[Case]], str]] = {
    "cycle": cycle,
    "contended": contended,
    "handoff": handoff,
    "spike": spike,
    "async_cycle": partial(cycle, who="task"),
    "async_spike": partial(spike, who="tasks"),
}
