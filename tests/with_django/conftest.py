"""Django in the test's own process, with one alias for each kind of database.

``mysql`` is PyMySQL here; mysqlclient has a process of its own in `test_mysqlclient`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import MariaDB, PostgreSQL, wait_until

from connpool.integrations.django import pools

from .site import PROJECT, on_mariadb, on_postgresql, on_sqlite


def _set_up() -> None:
    theirs = sys.modules.get("MySQLdb")
    sys.path.insert(0, str(PROJECT))
    os.environ.update(SHOP_DATABASES="{}", DJANGO_SETTINGS_MODULE="settings", SHOP_HIDE="MySQLdb")
    import django

    django.setup()
    __import__("connpool.integrations.django.mysql.base")
    del sys.modules["MySQLdb"]
    if theirs is not None:
        sys.modules["MySQLdb"] = theirs
    for name in ("SHOP_DATABASES", "DJANGO_SETTINGS_MODULE", "SHOP_HIDE"):
        del os.environ[name]


_set_up()

Use = Callable[..., Any]


@pytest.fixture
def use() -> Iterator[Use]:
    """Provide a function that gives an alias its settings, and returns Django's connection."""
    from django.db import connections

    used: list[str] = []

    def use(alias: str, settings: dict[str, Any]) -> Any:
        connections.databases[alias] = connections.configure_settings({"default": {}, alias: settings})[alias]
        connection = connections[alias]
        used.append(alias)
        return connection

    yield use
    for alias in used:
        connections[alias].close()
    for alias in used:
        connections[alias].close_pool_for_good()
        del connections[alias]
        del connections.databases[alias]


def _make_tables(settings: dict[str, Any]) -> None:
    from django.apps import apps
    from django.db import connections

    connections.databases["new"] = connections.configure_settings({"default": {}, "new": settings})["new"]
    with connections["new"].schema_editor() as editor:
        editor.create_model(apps.get_model("shop", "Item"))
    connections["new"].close()
    connections["new"].close_pool_for_good()
    del connections["new"]
    del connections.databases["new"]


@pytest.fixture(scope="module")
def postgresql_shop(postgresql: PostgreSQL) -> Iterator[dict[str, Any]]:
    """Provide the settings of a database with the project's table, and a pool of 2."""
    with postgresql.database() as name:
        settings = on_postgresql(postgresql, name, pool={"max_size": 2})
        _make_tables(settings)
        yield settings


@pytest.fixture(scope="module")
def mariadb_shop(mariadb: MariaDB) -> Iterator[dict[str, Any]]:
    """Provide the same on MariaDB."""
    with mariadb.database() as name:
        settings = on_mariadb(mariadb, name, pool={"max_size": 2})
        _make_tables(settings)
        yield settings


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "OPTIONS": {**settings["OPTIONS"]}}


def _at_rest(connection: Any, sessions: Callable[[], int]) -> None:
    """Empty the table; and the census: what the server sees is what the pools say."""
    from django.apps import apps
    from django.db import connections

    apps.get_model("shop", "Item").objects.using(connection.alias).all().delete()
    for wrapper in connections.all(initialized_only=True):
        wrapper.close()
    figures = [pool.stats() for pool in pools() if pool.name in (connection.alias, "other")]
    assert [figure.in_use for figure in figures] == [0] * len(figures)
    wait_until(lambda: sessions() == sum(figure.size for figure in figures), what="the census agrees")


@pytest.fixture
def postgresql_alias(use: Use, postgresql: PostgreSQL, postgresql_shop: dict[str, Any]) -> Iterator[Any]:
    """Provide the connection ``pg``, with a pool of 2."""
    connection = use("pg", _copied(postgresql_shop))
    yield connection
    _at_rest(connection, lambda: len(postgresql.census(application_name=postgresql_shop["NAME"])))


def sessions_in(server: MariaDB, database: str) -> int:
    """Return how many sessions use a database."""
    return sum(session.database == database for session in server.census(user=server.user))


@pytest.fixture
def mysql_alias(use: Use, mariadb: MariaDB, mariadb_shop: dict[str, Any]) -> Iterator[Any]:
    """Provide the connection ``my``, with a pool of 2."""
    connection = use("my", _copied(mariadb_shop))
    yield connection
    _at_rest(connection, lambda: sessions_in(mariadb, mariadb_shop["NAME"]))


@pytest.fixture
def sqlite_alias(use: Use, tmp_path: Path) -> Any:
    """Provide the connection ``lite``, with a pool of 2."""
    settings = on_sqlite(tmp_path / "db.sqlite3", pool={"max_size": 2})
    _make_tables(settings)
    return use("lite", settings)


@pytest.fixture(
    params=[
        pytest.param("postgresql", marks=pytest.mark.server),
        pytest.param("mysql", marks=pytest.mark.server),
        "sqlite",
    ]
)
def connection(request: pytest.FixtureRequest) -> Any:
    """Provide each of them."""
    return request.getfixturevalue(f"{request.param}_alias")


@pytest.fixture(
    params=[
        pytest.param("postgresql", marks=pytest.mark.server),
        pytest.param("mysql", marks=pytest.mark.server),
    ]
)
def served(request: pytest.FixtureRequest) -> Any:
    """Provide each that has a server."""
    return request.getfixturevalue(f"{request.param}_alias")
