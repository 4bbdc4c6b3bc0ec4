"""``manage.py test`` in every mode: databases are made, copied and dropped, and no session is in the way."""

from pathlib import Path
from typing import Any

import pytest
from servers import MariaDB, PostgreSQL

from .site import manage, on_mariadb, on_postgresql, on_sqlite

GONE = ["--parallel=2"]
KEPT = ["--parallel=1", "--keepdb"]
# It finds what the one before has kept, and makes the copies that were not needed then.
KEPT_AND_COPIED = ["--parallel=2", "--keepdb"]
SESSIONS = {"max_size": 3}
TRANSACTIONS = {"max_size": 3, "pooling": "transaction"}


def run(settings: dict[str, Any], mode: list[str], hide: str = "") -> str:
    output = manage(
        {"default": settings}, "test", "shop", "--pattern=modes.py", "--noinput", *mode, hide=hide
    )
    assert "Ran 8 tests" in output
    assert "OK" in output
    return output


@pytest.mark.server
@pytest.mark.timeout(120)
def test_every_mode_works_on_postgresql(postgresql: PostgreSQL, postgresql_database: str) -> None:
    def settings(pool: object) -> dict[str, Any]:
        return on_postgresql(postgresql, postgresql_database, user=postgresql.superuser, pool=pool)

    def left() -> list[object]:
        return [
            row[0] for row in postgresql.execute("select datname from pg_database") if "test_" in str(row[0])
        ]

    run(settings(SESSIONS), GONE)
    assert left() == []
    run(settings(SESSIONS), KEPT)
    run(settings(TRANSACTIONS), KEPT_AND_COPIED)
    assert len(left()) == 3
    for name in left():
        postgresql.execute(f"drop database {name}")  # nobody is there
    assert postgresql.census(application_name=postgresql_database) == []


@pytest.mark.server
@pytest.mark.timeout(120)
def test_every_mode_works_on_mariadb(mariadb: MariaDB, mariadb_database: str) -> None:
    # The user may do what he likes with databases of such names.
    test = {"NAME": f"{mariadb_database}_test"}

    def settings(pool: object) -> dict[str, Any]:
        return on_mariadb(mariadb, mariadb_database, pool=pool, TEST=test)

    def left() -> list[object]:
        return [row[0] for row in mariadb.execute("show databases") if "_test" in str(row[0])]

    run(settings(SESSIONS), GONE, "MySQLdb")
    assert left() == []
    run(settings(TRANSACTIONS), KEPT, "MySQLdb")
    run(settings(SESSIONS), KEPT_AND_COPIED, "MySQLdb")
    assert len(left()) == 3
    for name in left():
        mariadb.execute(f"drop database {name}")


@pytest.mark.parametrize("test", [{}, {"NAME": "test.sqlite3"}], ids=["in memory", "in a file"])
def test_every_mode_works_on_sqlite(tmp_path: Path, test: dict[str, str]) -> None:
    named = {name: str(tmp_path / value) for name, value in test.items()}
    settings = on_sqlite(tmp_path / "db.sqlite3", TEST=named)
    run(settings, GONE)
    assert list(tmp_path.iterdir()) == []
