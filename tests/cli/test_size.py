"""`connpool size` adds up, says what does not fit, and what it lacks."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from connpool.cli.app import app


def size(*args: str) -> Result:
    return CliRunner().invoke(app, ["size", *args], prog_name="connpool")


def answer(*args: str) -> dict[str, Any]:
    done = size(*args, "--json")
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def results(*args: str) -> dict[str, float]:
    return {each["name"]: each["result"] for each in answer(*args)["sums"]}


def test_the_example_of_the_help() -> None:
    done = size("--concurrency", "150", "--operations", "0.3")
    assert done.exit_code == 0
    assert "150 requests x 0.3 operations x 1.5       68" in done.stdout
    assert "max_size=68" in done.stdout


def test_the_largest_demand_decides() -> None:
    found = results(
        *("--concurrency", "10", "--operations", "0.5", "--rate", "200", "--held", "0.02"),
        *("--threads", "4", "--per-thread", "3"),
    )
    assert (found["for_requests"], found["for_rate"], found["deadlock_floor"]) == (8, 6, 9)
    assert found["max_size"] == 9


def test_the_average_in_use_is_shown_and_is_no_size() -> None:
    found = results("--rate", "100", "--held", "0.1", "--safety", "1")
    assert (found["in_use"], found["max_size"]) == (10, 10)


@pytest.mark.parametrize(("processes", "code"), [("8", 0), ("9", 1)])
def test_exit_code_tells_whether_it_fits(processes: str, code: int) -> None:
    done = size("--size", "10", "--processes", processes, "--max-connections", "100", "--reserve", "0.2")
    assert done.exit_code == code


def test_what_does_not_fit_is_told_what_would() -> None:
    found = answer("--size", "10", "--instances", "3", "--processes", "4", "--max-connections", "100")
    assert found["fits"] is False
    assert "120 of 85 connections; at most max_size=7 in each process" in found["conclusion"]


def test_more_processes_than_connections_cannot_be_helped_by_size() -> None:
    found = answer("--size", "1", "--instances", "90", "--max-connections", "100")
    assert "not even one in each process" in found["conclusion"]


def test_dedicated_connections_count() -> None:
    assert results("--size", "10", "--dedicated", "4", "--processes", "3")["in_all"] == 42


def test_pgbouncer_gets_its_settings_by_their_own_names() -> None:
    found = results("--size", "10", "--instances", "20", "--max-connections", "100", "--pgbouncer")
    assert found["max_client_conn"] == 200
    assert found["default_pool_size"] + found["reserve_pool_size"] == 85
    assert found["min_pool_size"] == 34


def test_it_fits_or_not_only_if_asked() -> None:
    assert answer("--size", "10")["fits"] is None


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "give --concurrency and --operations, or --rate and --held, or --size"),
        (["--threads", "4", "--per-thread", "2"], "give --concurrency and --operations"),
        (["--rate", "3"], "--rate needs --held"),
        (["--operations", "3"], "--operations needs --concurrency"),
        (["--per-thread", "3", "--size", "3"], "--per-thread needs --threads"),
        (["--size", "3", "--pgbouncer"], "give --max-connections"),
        (["--size", "0"], "size=0: must be a whole number of at least 1"),
        (["--rate", "nan", "--held", "1"], "rate=nan: must be finite"),
        (["--size", "3", "--max-connections", "9", "--reserve", "20"], "reserve=20.0: must be a share"),
        (
            ["--size", "3", "--pgbouncer", "--max-connections", "3", "--pairs", "5"],
            "server_budget=2: is less",
        ),
    ],
)
def test_what_is_wrong_is_named_on_stderr(args: list[str], text: str) -> None:
    done = size(*args)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert text in done.stderr
