"""A results file as Markdown, and as the generated parts of the pages that compare the pools."""

import importlib
from pathlib import Path
from typing import Any

from .environment import ROOT
from .figures import Demand, Table

PAGES = ROOT / "docs" / "explanation"
COMPARED, APART = "compared.md", {"outage": "outages.md"}  # the page of most benchmarks, and of the others
PICTURES = ROOT / "docs" / "_static" / "benchmarks"
BEGIN = "<!-- figures: written by a command, see benchmarks/report.py -->"
END = "<!-- end of figures -->"


def markdown(results: dict[str, Any], *, level: int = 2, pictures: dict[str, str] | None = None) -> str:
    """Return the whole report; *pictures* are shown below the tables of their benchmark."""
    heading = "#" * level
    modules = {name: importlib.import_module(f".{name}", __package__) for name in results["benchmarks"]}
    parts = [conditions(results)]
    if not all(hasattr(module, "CONFIGURATIONS") for module in modules.values()):
        parts.append(grid(configurations(results)))
    promised: list[Demand] = []
    for name, cases in results["benchmarks"].items():
        module = modules[name]
        parts.append(f"{heading} {name}")
        parts.append(" ".join((module.__doc__ or "").split("\n\n")[0].split()))
        if hasattr(module, "CONFIGURATIONS"):
            parts.append(grid(configured(results, module.CONFIGURATIONS)))
        parts += [f"**{table.title}**\n\n{grid(table)}" for table in module.tables(cases) if table.rows]
        if pictures and name in pictures:
            parts.append(pictures[name])
        promised += module.demands(cases)
        parts += failures(cases)
    parts.append(f"{heading} What is demanded")
    parts.append(grid(verdicts(promised)))
    return "\n\n".join(parts)


def conditions(results: dict[str, Any]) -> str:
    machine, software = results["machine"], results["software"]
    versions = ", ".join(f"{name} {version}" for name, version in software.items())
    before, after = (", ".join(map(str, results.get(key, []))) for key in ("load_before", "load_after"))
    return (
        f"{results['date'][:16].replace('T', ' ')} UTC: `{results['command']}`"
        f"{' (a quick run: rough figures)' if results['quick'] else ''}\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {versions}; "
        f"load average before: {before}, after: {after}."
    )


def configurations(results: dict[str, Any]) -> Table:
    rows = []
    for name, entry in results["contenders"].items():
        if "missing" in entry:
            rows.append([name, "", entry["missing"], ""])
        else:
            configuration = entry["configuration"]
            shown = f"`{configuration}`" if "(" in configuration else configuration
            rows.append([name, entry["version"] or "", shown, entry["empty"]])
    return Table("contenders", ["", "version", "configuration", "in an empty block, besides lending"], rows)


def configured(results: dict[str, Any], configuration: dict[str, str]) -> Table:
    """Return how contenders are configured in a benchmark that does so itself."""
    rows = [
        [name, results["contenders"][name]["version"], f"`{configuration[name]}`"]
        for name in configuration
        if "version" in results["contenders"].get(name, {})
    ]
    return Table("contenders", ["", "version", "configuration"], rows)


def failures(cases: list[dict[str, Any]]) -> list[str]:
    found = {
        f"{name} failed: {measured['error']}"
        for case in cases
        for round_ in case["rounds"]
        for name, measured in round_.items()
        if "error" in measured
    }
    return sorted(found)


def verdicts(promised: list[Demand]) -> Table:
    words = {True: "yes", False: "**no**", None: "not measured"}
    rows = [
        [
            demand.what,
            f"{'at most' if demand.at_most else 'at least'} {demand.limit:g}{demand.unit}",
            "-" if demand.value is None else f"{demand.value:.4g}{demand.unit}",
            words[demand.kept],
        ]
        for demand in promised
    ]
    return Table("demands", ["", "demanded", "measured", "kept"], rows)


def grid(table: Table) -> str:
    lines = [table.head, ["---"] + ["---:"] * (len(table.head) - 1), *table.rows]
    if table.title == "contenders":
        lines[1] = ["---"] * len(table.head)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def update_docs(runs: list[dict[str, Any]], pages: Path = PAGES, pictures: Path = PICTURES) -> None:
    """Draw the pictures and replace the generated part of each page whose benchmarks were run.

    A benchmark is shown from the last of the *runs* that has it; each run tells of its own conditions.
    """
    from . import plots

    last = {name: results for results in runs for name in results["benchmarks"]}
    shown = plots.draw(
        {"benchmarks": {name: run["benchmarks"][name] for name, run in last.items()}}, pictures
    )
    for page in (COMPARED, *APART.values()):
        bodies = []
        for results in reversed(runs):
            its = {
                name: cases
                for name, cases in results["benchmarks"].items()
                if last[name] is results and APART.get(name, COMPARED) == page
            }
            if its:
                bodies.append(markdown({**results, "benchmarks": its}, level=3, pictures=shown))
        if bodies:
            replace_figures(pages / page, "\n\n".join(bodies))


def replace_figures(page: Path, body: str) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest:
        raise SystemExit(f"{page.name} has no line {BEGIN}")
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")
