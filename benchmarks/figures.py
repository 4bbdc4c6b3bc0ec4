"""Medians, spreads and ratios, and what is demanded of them.

A *round* maps each contender to what it measured.  Contenders take turns within a round, so that whatever
else the machine does meets them all; ratios are taken within each round, and their median is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Round = dict[str, dict[str, Any]]
Case = dict[str, Any]
"""``{"case": arguments of measure(), "rounds": [Round, ...]}``, as in the results file."""


@dataclass(frozen=True)
class Plan:
    """One case of a benchmark: the arguments for `measure`, and how often; where, and by whom."""

    case: dict[str, Any]
    rounds: int
    server: Literal["PostgreSQL", "MariaDB"] = "PostgreSQL"
    delay: float = 0.0  # seconds that the network takes each way
    only: tuple[str, ...] = ()  # contenders; nobody named: all


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Demand:
    """A figure that the project promises, and whether this run kept it.  None: it was not measured."""

    what: str
    value: float | None
    limit: float
    at_most: bool
    unit: str = ""

    @property
    def kept(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def names(case: Case) -> list[str]:
    """Return the contenders of a case, in the order in which they were named."""
    found: dict[str, None] = {}
    for round_ in case["rounds"]:
        found.update(dict.fromkeys(name for name in round_ if "error" not in round_[name]))
    order = case.get("order", list(found))
    return [name for name in order if name in found]


def series(case: Case, name: str, key: str) -> list[float]:
    """Return one contender's figure of every round."""
    return [float(round_[name][key]) for round_ in case["rounds"] if key in round_.get(name, {})]


def middle(case: Case, name: str, key: str) -> float | None:
    values = series(case, name, key)
    return median(values) if values else None


def ratio(case: Case, name: str, to: str, key: str) -> float | None:
    """Return the median of the ratios *name* / *to*, taken round by round."""
    pairs = [
        round_[name][key] / round_[to][key]
        for round_ in case["rounds"]
        if key in round_.get(name, {}) and round_.get(to, {}).get(key)
    ]
    return median(pairs) if pairs else None


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Show a median with the least and the greatest value."""
    if not values:
        return "-"
    return f"{show(median(values))} ({show(min(values))} to {show(max(values))})"


def find(cases: list[Case], **wanted: object) -> Case | None:
    """Return the case with these arguments."""
    for case in cases:
        if all(case["case"].get(key) == value for key, value in wanted.items()):
            return case
    return None


def percentile(values: list[float], percent: float) -> float:
    """Return the value that *percent* of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def thousands(value: float) -> str:
    return f"{value:,.0f}"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"
