"""A results file as Markdown, as a page of HTML, and as the generated part of a page of the documentation."""

import html
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from .. import plots
from ..figures import Case, Demand, Table, middle, names, ratio, series, spread, thousands
from ..report import PAGES, conditions, grid, replace_figures, verdicts
from .contenders import BUILT_IN, CONTENDERS, OURS, TRANSACTION
from .views import BEST_SHARE, TIMES_BUILT_IN, VIEWS, View

PAGE = PAGES / "which-pool-for-django.md"
PICTURE = "django.svg"
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #8881 }
svg { max-width: 100%; height: auto }"""


def markdown(results: dict[str, Any], *, level: int = 2, picture: str | None = None) -> str:
    heading = "#" * level
    parts = [conditions(results), grid(configurations(results))]
    parts += [picture] if picture else []
    for view in VIEWS:
        case = results["benchmarks"].get(view.name)
        if case:
            parts += [f"{heading} {view.server}: {view.title}", grid(table(case))]
            parts += failures(case)
    parts += [f"{heading} What is demanded", grid(verdicts(demands(results)))]
    return "\n\n".join(parts)


def configurations(results: dict[str, Any]) -> Table:
    rows = [
        [
            contender.name,
            contender.server,
            f"{contender.distribution} {results['contenders'][contender.name]}",
            f"`{contender.configuration}`",
        ]
        for contender in CONTENDERS
        if contender.name in results["contenders"]
    ]
    return Table("contenders", ["", "server", "of", "in `DATABASES`"], rows)


def table(case: Case) -> Table:
    def shown(name: str, key: str, unit: float = 1.0, digits: int = 0) -> str:
        return spread([value * unit for value in series(case, name, key)], lambda x: f"{x:,.{digits}f}")

    rows = [
        [
            name,
            shown(name, "per_second"),
            shown(name, "p50_us", 1e-3),
            shown(name, "p99_us", 1e-3),
            thousands(sum(series(case, name, "errors"))),
            f"{max(series(case, name, 'peak')):.0f}",
            f"{middle(case, name, 'usual') or 0:.0f}",
            f"{middle(case, name, 'cpu') or 0:.2f}",
        ]
        for name in names(case)
    ]
    head = ["", "requests/s", "p50, ms", "p99, ms", "errors", "sessions: peak", "usual", "processors busy"]
    return Table("view", head, rows)


def failures(case: Case) -> list[str]:
    found = [(n, m["error"]) for round_ in case["rounds"] for n, m in round_.items() if "error" in m]
    return sorted({f"{name} failed: {error}" for name, error in found})


def demands(results: dict[str, Any]) -> list[Demand]:
    found = []
    for view in VIEWS:
        case = results["benchmarks"].get(view.name)
        if not case:
            continue
        if view.path == "rows" and not view.only:
            found.append(
                Demand(f"{view.name}: of the best contender's requests", best_share(case), BEST_SHARE, False)
            )
        if view.path == "pause":
            value = ratio(case, TRANSACTION, BUILT_IN, "per_second")
            what = f"{view.name}: requests in transaction mode, of the built-in pool's"
            found.append(Demand(what, value, TIMES_BUILT_IN, at_most=False))
        for name in OURS:
            found += totals(view, case, name)
    return found


def best_share(case: Case) -> float | None:
    """Return the requests of the better of ours, as a share of the best of the others; medians."""
    rates = {name: middle(case, name, "per_second") or 0.0 for name in names(case)}
    others = [rate for name, rate in rates.items() if name not in OURS]
    ours = [rate for name, rate in rates.items() if name in OURS]
    return max(ours) / max(others) if ours and others else None


def totals(view: View, case: Case, name: str) -> list[Demand]:
    errors, peaks = series(case, name, "errors"), series(case, name, "peak")
    return [
        Demand(f"{view.name}: errors, {name}", sum(errors) if errors else None, 0, at_most=True),
        Demand(f"{view.name}: sessions, {name}", max(peaks, default=None), view.sessions, at_most=True),
    ]


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the requests of each view, a bar for each contender."""
    found = [(view, results["benchmarks"][view.name]) for view in VIEWS if view.name in results["benchmarks"]]
    heights = [len(names(case)) for _, case in found]
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(7.2, 0.34 * sum(heights) + 0.8 * len(found)))
        axes = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
        for place, (view, case) in zip(axes, found, strict=True):
            plots.bars(place, case, "per_second", 1.0, thousands)
            place.set_title(f"{view.server}: {view.title}", fontsize=9)
        axes[-1].set_xlabel("requests per second; more is better")
        plots.save(figure, path)


def page(results: dict[str, Any], picture: Path) -> str:
    """Return the whole report as one page of HTML that needs nothing else."""
    body = MarkdownIt("commonmark").enable("table").render(markdown(results))
    drawing = picture.read_text()
    drawing = drawing[drawing.index("<svg") :]
    title = html.escape(f"Which pool for Django? {results['date'][:10]}")
    return (
        f"<!doctype html>\n<meta charset=utf-8>\n<title>{title}</title>\n<style>\n{STYLE}\n</style>\n"
        f"<h1>{title}</h1>\n{drawing}\n{body}"
    )


def update_docs(results: dict[str, Any]) -> None:
    from ..report import PICTURES

    draw(results, PICTURES / PICTURE)
    alternative = "Bars: requests per second with each way to reach the database"
    shown = f"![{alternative}](../_static/benchmarks/{PICTURE})"
    replace_figures(PAGE, markdown(results, level=3, picture=shown))
