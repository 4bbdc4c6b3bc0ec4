"""mysqlclient, in a process of its own: Django's MySQL backend is imported with one driver."""

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
from servers import MariaDB

from .conftest import sessions_in
from .site import PROJECT, environment, manage, on_mariadb

pytestmark = [
    pytest.mark.server,
    # It must be compiled, with the C library's headers, wherever it has no wheel.
    pytest.mark.skipif(importlib.util.find_spec("MySQLdb") is None, reason="mysqlclient is not installed"),
]

SCENE = """
import django
django.setup()
from django.db import IntegrityError, connection, transaction
from shop.models import Item

assert connection.Database.__name__ == "MySQLdb"
transacting = connection.pools_transactions()
figures = lambda: connection.pool.stats()

def ask(question):
    with connection.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()[0] if cursor.description else None

Item.objects.bulk_create([Item(name=str(n), tags={"n": n}) for n in range(5)])
for alter, question, clean in (
    ("SET SESSION max_statement_time = 43", "SELECT @@max_statement_time", 0.0),
    ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT @@tx_isolation", "READ-COMMITTED"),
    ("SET sql_mode = ''", "SELECT @@sql_mode", "ANSI_QUOTES"),
    ("SELECT GET_LOCK('left', 1)", "SELECT IS_USED_LOCK('left')", None),
    ("CREATE TEMPORARY TABLE items (a int)", "SELECT DATABASE()", connection.settings_dict["NAME"]),
):
    ask(alter)
    assert figures().in_use == 1
    connection.close()
    assert figures().in_use == 0
    found = ask(question)
    assert found == clean, (question, found)
    connection.close()
assert Item.objects.get(name="3").tags == {"n": 3}
connection.close()
resets = figures().resets
for number in range(3):
    assert Item.objects.count() == 5
    connection.close()
with transaction.atomic():
    Item.objects.create(name="5")
    try:
        with transaction.atomic():
            Item.objects.create(name="5")
    except IntegrityError:
        pass
    assert figures().in_use == 1
assert figures().in_use == (0 if transacting else 1)
transaction.set_autocommit(False)
Item.objects.create(name="left")
connection.close()
assert Item.objects.count() == 6
connection.close()
assert figures().dials == 1, figures()
print("done")
"""


@pytest.mark.parametrize("pooling", ["session", "transaction"])
def test_mysqlclient_is_pooled_as_pymysql_is(mariadb: MariaDB, mariadb_database: str, pooling: str) -> None:
    settings: dict[str, Any] = on_mariadb(
        mariadb,
        mariadb_database,
        pool={"max_size": 2, "pooling": pooling},
        options={"init_command": "SET sql_mode = 'ANSI_QUOTES'"},
    )
    databases = {"default": settings}
    manage(databases, "migrate", "--run-syncdb", "--verbosity=0")
    done = subprocess.run(
        [sys.executable, "-c", SCENE],
        cwd=PROJECT,
        env=environment(databases),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "done\n", done.stdout + done.stderr
    assert sessions_in(mariadb, mariadb_database) == 0


def test_a_full_reset_needs_the_password_of_the_settings(mariadb: MariaDB, mariadb_database: str) -> None:
    settings = on_mariadb(mariadb, mariadb_database, pool={"credentials": "builtins.dict"})
    output = manage({"default": settings}, "migrate", "--verbosity=0", succeeds=False)
    assert "with credentials= use PyMySQL" in output
