"""Which adapter speaks for which driver."""

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import connpool.adapter
from connpool.adapter import Adapter, Verdict, adapter_for, adapter_for_url, register
from connpool.adapters.dbapi import DBAPIAdapter
from connpool.adapters.sqlite import SQLiteAdapter
from connpool.errors import PoolMisuse


class RecordingAdapter:
    """Remembers what it was made of."""

    def __init__(self, made_of: object) -> None:
        self.made_of = made_of

    @classmethod
    def around(cls, connect: object) -> "RecordingAdapter":
        return cls(connect)

    @classmethod
    def from_url(cls, url: str) -> "RecordingAdapter":
        return cls(url)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Provide where a `RecordingAdapter` is to be found; what a test registers is forgotten."""
    monkeypatch.setattr(connpool.adapter, "_DRIVERS", dict(connpool.adapter._DRIVERS))
    monkeypatch.setattr(connpool.adapter, "_SCHEMES", dict(connpool.adapter._SCHEMES))
    module: Any = ModuleType("recording_adapters")
    module.RecordingAdapter = RecordingAdapter
    monkeypatch.setitem(sys.modules, "recording_adapters", module)
    return "recording_adapters:RecordingAdapter"


def never_called() -> Any:
    raise AssertionError("choosing an adapter must not dial")


def instance(module: str, *bases: type, **attributes: object) -> Any:
    return type("Thing", bases, {"__module__": module, **attributes})()


# -- verdicts ----------------------------------------------------------------------------------------


def test_clean_is_the_only_verdict_that_is_false() -> None:
    assert [verdict for verdict in Verdict if not verdict] == [Verdict.CLEAN]


def test_an_adapter_sees_transactions_unless_it_says_otherwise() -> None:
    assert Adapter.sees_transactions
    assert not DBAPIAdapter.sees_transactions


# -- by the first connection, or the first exception ---------------------------------------------------


def test_connection_chooses_the_adapter_of_its_driver() -> None:
    conn = sqlite3.connect(":memory:")
    assert isinstance(adapter_for(conn, never_called), SQLiteAdapter)
    conn.close()


def test_exception_chooses_the_adapter_of_its_driver() -> None:
    error = sqlite3.OperationalError("unable to open database file")
    assert isinstance(adapter_for(error, never_called), SQLiteAdapter)


def test_subclass_from_elsewhere_belongs_to_its_driver() -> None:
    class Connection(sqlite3.Connection):
        pass

    conn = Connection(":memory:")
    assert isinstance(adapter_for(conn, never_called), SQLiteAdapter)
    conn.close()


def test_exception_of_no_driver_leaves_the_adapter_open() -> None:
    assert adapter_for(OSError("network is unreachable"), never_called) is None


def test_connection_of_an_unknown_driver_is_taken_for_a_db_api_one() -> None:
    methods = dict.fromkeys(("cursor", "commit", "rollback", "close"), never_called)
    assert isinstance(adapter_for(instance("nodriver", **methods), never_called), DBAPIAdapter)


@pytest.mark.parametrize("module", ["sqlite", "sqlite3x.thing", "my_psycopg"])
def test_module_is_compared_whole(module: str) -> None:
    assert adapter_for(instance(module, Exception), never_called) is None


def test_what_is_no_connection_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(PoolMisuse) as caught:
        adapter_for(instance("somewhere", close=never_called), never_called)
    assert str(caught.value) == (
        "the connect callable returned somewhere.Thing, which is no DB-API connection: "
        "it has no cursor(), commit(), rollback()"
    )


def test_none_is_no_connection() -> None:
    with pytest.raises(PoolMisuse, match=r"returned builtins\.NoneType"):
        adapter_for(None, never_called)


# -- by URL ------------------------------------------------------------------------------------------


def test_scheme_chooses_the_adapter(tmp_path: Path) -> None:
    assert isinstance(adapter_for_url(f"sqlite:///{tmp_path}/app.db"), SQLiteAdapter)


def test_dialect_after_a_plus_is_passed_over(tmp_path: Path) -> None:
    assert isinstance(adapter_for_url(f"sqlite+anything:///{tmp_path}/app.db"), SQLiteAdapter)


@pytest.mark.parametrize(
    "url", ["oracle://u:geheim@h/db", "postgresql:u:geheim@h", "geheim", "", "://u:geheim@h"]
)
def test_unknown_scheme_is_refused_without_repeating_the_url(url: str) -> None:
    with pytest.raises(PoolMisuse, match="a URL that begins with one of: postgresql://") as caught:
        adapter_for_url(url)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "driver"),
    [
        ("postgresql", "psycopg"),
        ("postgres", "psycopg"),
        ("mysql", "pymysql"),
        ("mariadb", "pymysql"),
    ],
)
def test_schemes_lead_to_drivers(recording: str, scheme: str, driver: str) -> None:
    register(driver, recording)
    adapter: Any = adapter_for_url(f"{scheme}://u@h/db")
    assert adapter.made_of == f"{scheme}://u@h/db"


# -- further drivers ---------------------------------------------------------------------------------


def test_registered_driver_is_found_by_connection_and_by_exception(recording: str) -> None:
    register("newdriver", recording)
    for first in (instance("newdriver.connection"), instance("newdriver", Exception)):
        adapter: Any = adapter_for(first, never_called)
        assert isinstance(adapter, RecordingAdapter)
        assert adapter.made_of is never_called


def test_registered_schemes_are_known(recording: str) -> None:
    register("newdriver", recording, schemes=("new", "newer"))
    adapter: Any = adapter_for_url("newer+fast://h/db")
    assert adapter.made_of == "newer+fast://h/db"
    with pytest.raises(PoolMisuse, match="new://, newer://"):
        adapter_for_url("old://h/db")


def test_registered_driver_replaces_ours(recording: str) -> None:
    register("sqlite3", recording)
    assert isinstance(adapter_for(sqlite3.Error(), never_called), RecordingAdapter)


def test_registering_imports_nothing_until_needed(recording: str) -> None:
    register("newdriver", "no_such_module:NoSuchAdapter")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        adapter_for(instance("newdriver"), never_called)
