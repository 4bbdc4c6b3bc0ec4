"""The benchmarks run: a quick one, with the contenders that the test environment has."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import connpool

ROOT = Path(__file__).parents[1]


def benchmarks(*arguments: str | Path) -> str:
    """Run `python -m benchmarks` as a user would, in the project's directory; return what it prints."""
    path = [str(Path(connpool.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmarks") / "results.json"
    few = "connpool;connpool 1.0.14 (PyPI);floor;connpool (asyncio);asyncpg"
    benchmarks(
        "cycle",
        "fairness",
        "async_waiting",
        "--quick",
        "--no-download",
        "--contenders",
        few,
        "--output",
        path,
    )
    return path


TASKS = {
    "psycopg": {"connpool (asyncio)", "psycopg_pool (asyncio)", "SQLAlchemy (asyncio)", "floor (asyncio)"},
    "asyncpg": {
        "connpool (asyncio)",
        "SQLAlchemy (asyncio)",
        "asyncpg",
        "asyncpg, no reset",
        "floor (asyncio)",
    },
    "aiosqlite": {"connpool (asyncio)", "SQLAlchemy (asyncio)", "aiosqlitepool", "floor (asyncio)"},
}


def present_in(results: dict[str, Any]) -> set[str]:
    return {name for name, entry in results["contenders"].items() if "version" in entry}


@pytest.fixture(scope="module")
def results(results_file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(results_file.read_text())
    return loaded


@pytest.mark.server
def test_every_contender_took_part_or_says_that_it_is_not_installed(results: dict[str, Any]) -> None:
    contenders = results["contenders"]
    assert "version" in contenders["connpool"]
    assert "version" in contenders["floor"]
    assert "version" in contenders["connpool (asyncio)"]
    assert "version" in contenders["asyncpg"]
    for name, entry in contenders.items():
        assert "version" in entry or entry["missing"].startswith("not installed"), name


@pytest.mark.server
def test_every_contender_that_took_part_was_measured_in_every_round(results: dict[str, Any]) -> None:
    present = present_in(results) - set.union(*TASKS.values())
    [psycopg, pymysql], [fairness] = results["benchmarks"]["cycle"], results["benchmarks"]["fairness"]
    for cycle, wanted in ((psycopg, present), (pymysql, present & {"connpool", "SQLAlchemy", "floor"})):
        for round_ in cycle["rounds"]:
            assert round_.keys() == wanted
            assert all(measured["ns"] > 0 for measured in round_.values()), round_
    for round_ in fairness["rounds"]:
        assert round_.keys() == present - {"floor"}
        assert all(measured["attempts"] == 100 for measured in round_.values()), round_


@pytest.mark.server
def test_every_async_contender_was_measured_with_the_drivers_that_it_knows(results: dict[str, Any]) -> None:
    cases = results["benchmarks"]["async_waiting"]
    assert [case["case"]["driver"] for case in cases] == list(TASKS)
    for case in cases:
        for round_ in case["rounds"]:
            assert round_.keys() == TASKS[case["case"]["driver"]] & present_in(results)
            assert all(measured["served"] == 500 for measured in round_.values()), round_


@pytest.mark.server
def test_none_of_our_waiting_tasks_was_overtaken(results: dict[str, Any]) -> None:
    for case in results["benchmarks"]["async_waiting"]:
        assert [round_["connpool (asyncio)"]["overtaken"] for round_ in case["rounds"]] == [0]


@pytest.mark.server
def test_our_waiter_was_never_overtaken(results: dict[str, Any]) -> None:
    [fairness] = results["benchmarks"]["fairness"]
    assert [round_["connpool"]["overtaken"] for round_ in fairness["rounds"]] == [0]


@pytest.mark.server
def test_results_say_where_and_with_what_they_were_measured(results: dict[str, Any]) -> None:
    assert results["machine"].keys() == {"cpu", "cores", "system"}
    assert results["software"].keys() >= {"Python", "PostgreSQL", "psycopg"}
    assert results["date"]


@pytest.mark.server
def test_report_shows_a_table_of_each_benchmark(results_file: Path) -> None:
    text = benchmarks("report", results_file)
    assert "| connpool |" in text
    for heading in ("## cycle", "## fairness", "## async_waiting", "## What is demanded"):
        assert heading in text
