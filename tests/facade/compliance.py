"""What PEP 249 asks of a module, its connections and its cursors, for each driver and mode of the facade.

https://peps.python.org/pep-0249/.  What a driver does in its own way is compared with the driver alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from facade.sites import Site

ERRORS = ("Warning", "Error", "InterfaceError", "DatabaseError", "DataError", "OperationalError")
ERRORS += ("IntegrityError", "InternalError", "ProgrammingError", "NotSupportedError")


class Compliance:
    """Subclass it where fixtures `site` and `module` are, which may serve all its tests."""

    @pytest.fixture
    def conn(self, module: Any, site: Site) -> Iterator[Any]:
        conn = module.connect(**site.arguments)
        yield conn
        conn.close()
        assert all(pool.stats().in_use == 0 for pool in module.pools)

    @pytest.fixture
    def table(self, site: Site) -> str:
        site.run(f"delete from {site.table}")
        return site.table

    def mark(self, site: Site) -> str:
        return {"qmark": "?"}.get(site.module.paramstyle, "%s")

    def fill(self, conn: Any, table: str, site: Site, rows: int = 3) -> None:
        mark = self.mark(site)
        values = [(n, f"row {n}") for n in range(1, rows + 1)]
        conn.cursor().executemany(f"insert into {table} (x, y) values ({mark}, {mark})", values)

    # -- the module ----------------------------------------------------------------------------------

    def test_module_says_what_the_driver_says(self, module: Any, site: Site) -> None:
        for name in ("apilevel", "threadsafety", "paramstyle", "__name__", *ERRORS):
            assert getattr(module, name) is getattr(site.module, name)
        for name in ("Date", "Binary"):
            assert getattr(module, name, None) is getattr(site.module, name, None)

    def test_connection_and_cursor_are_of_the_drivers_types(self, conn: Any, site: Site) -> None:
        real = site.module.connect(**site.arguments)
        cursor, real_cursor = conn.cursor(), real.cursor()
        cursor.execute("select 1")
        assert isinstance(conn, type(real).__mro__[0])
        assert isinstance(cursor, type(real_cursor))
        cursor.fetchall()
        real_cursor.close()
        real.close()

    # -- connections ---------------------------------------------------------------------------------

    def test_what_was_committed_is_seen_by_others(
        self, conn: Any, module: Any, table: str, site: Site
    ) -> None:
        self.fill(conn, table, site)
        conn.commit()
        other = module.connect(**site.arguments)
        cursor = other.cursor()
        cursor.execute(f"select count(*) from {table}")
        assert tuple(cursor.fetchone()) == (3,)
        other.close()

    def test_what_was_rolled_back_is_gone(self, conn: Any, table: str, site: Site) -> None:
        self.fill(conn, table, site)
        conn.rollback()
        cursor = conn.cursor()
        cursor.execute(f"select count(*) from {table}")
        assert tuple(cursor.fetchone()) == (0,)

    def test_close_rolls_back(self, module: Any, table: str, site: Site) -> None:
        conn = module.connect(**site.arguments)
        self.fill(conn, table, site)
        conn.close()
        conn = module.connect(**site.arguments)
        cursor = conn.cursor()
        cursor.execute(f"select count(*) from {table}")
        assert tuple(cursor.fetchone()) == (0,)
        conn.close()

    def test_commit_and_rollback_without_a_transaction_do_nothing(self, conn: Any) -> None:
        conn.commit()
        conn.rollback()
        conn.commit()

    def test_closed_connection_and_its_cursors_refuse_to_work(self, module: Any, site: Site) -> None:
        conn = module.connect(**site.arguments)
        cursor = conn.cursor()
        cursor.execute("select 1")
        cursor.fetchall()
        conn.close()
        conn.close()  # harmless
        for use in (conn.cursor, conn.commit, conn.rollback, lambda: cursor.execute("select 1")):
            with pytest.raises(module.Error):
                use()

    def test_with_block_ends_as_the_drivers(self, module: Any, table: str, site: Site) -> None:
        def outcomes(connect: Callable[..., Any]) -> list[object]:
            found: list[object] = []
            for fails in (False, True):
                conn = connect(**site.arguments)
                cursor = conn.cursor()
                cursor.execute(f"delete from {table}")
                conn.commit()
                try:
                    with conn:
                        conn.cursor().execute(f"insert into {table} (x) values (1)")
                        if fails:
                            raise KeyError
                except KeyError:
                    pass
                try:
                    conn.cursor().execute("select 1")
                    found.append("open")
                except Exception:
                    found.append("closed")
                conn.close() if found[-1] == "open" else None
                conn = connect(**site.arguments)
                cursor = conn.cursor()
                cursor.execute(f"select count(*) from {table}")
                found.append(tuple(cursor.fetchone()))
                cursor.close()
                conn.close()
            return found

        assert outcomes(module.connect) == outcomes(site.module.connect)

    def test_errors_are_attributes_of_the_connection_where_they_are_the_drivers(
        self, conn: Any, site: Site
    ) -> None:
        real = site.module.connect(**site.arguments)
        for name in ERRORS:
            if hasattr(real, name):
                assert getattr(conn, name) is getattr(real, name)
        real.close()

    # -- cursors -------------------------------------------------------------------------------------

    def test_rows_are_fetched_in_every_way(self, conn: Any, table: str, site: Site) -> None:
        self.fill(conn, table, site, rows=7)
        conn.commit()
        cursor = conn.cursor()
        query = f"select x from {table} order by x"
        cursor.execute(query)
        conn.rollback() if site.name != "sqlite3" else None  # whose own rows would be gone
        assert tuple(cursor.fetchone()) == (1,)
        assert [tuple(row) for row in cursor.fetchmany(2)] == [(2,), (3,)]
        cursor.arraysize = 2
        assert cursor.arraysize == 2
        assert [tuple(row) for row in cursor.fetchmany()] == [(4,), (5,)]
        assert [tuple(row) for row in cursor.fetchall()] == [(6,), (7,)]
        assert cursor.fetchone() is None
        assert list(cursor.fetchmany(3)) == []
        assert list(cursor.fetchall()) == []
        cursor.execute(query)
        assert [tuple(row) for row in cursor] == [(n,) for n in range(1, 8)]

    def test_description_and_counts_are_the_drivers(self, conn: Any, table: str, site: Site) -> None:
        self.fill(conn, table, site)
        conn.commit()

        def outcome(conn: Any, statement: str) -> list[object]:
            cursor = conn.cursor()
            result = cursor.execute(statement)
            found = [result if isinstance(result, int) else result is cursor, cursor.rowcount]
            found.append([column[0] for column in cursor.description or ()])
            found.append(getattr(cursor, "lastrowid", None) if "insert" in statement else None)
            if cursor.description:
                found += [type(cursor.fetchmany(1)), type(cursor.fetchall())]
            cursor.close()
            conn.rollback()
            return found

        real = site.module.connect(**site.arguments)
        for statement in (
            f"select x, y from {table} where x > 1",
            f"update {table} set y = 'other' where x < 3",
            f"insert into {table} (x, y) values (8, 'new')",
            f"delete from {table} where x > 100",
        ):
            assert outcome(conn, statement) == outcome(real, statement)
        real.close()

    def test_fetching_without_rows_does_as_the_driver(self, conn: Any, table: str, site: Site) -> None:
        real = site.module.connect(**site.arguments)

        def outcome(cursor: Any) -> list[object]:
            found: list[object] = []
            for fetch in (cursor.fetchone, cursor.fetchall):
                try:
                    rows = fetch()
                    found.append(rows if rows is None else list(rows))
                except site.module.Error:
                    found.append("error")
            return found

        found = []
        for one in (conn, real):
            cursor = one.cursor()
            cursor.execute(f"delete from {table}")
            found.append(outcome(cursor))
            one.rollback()
        assert found[0] == found[1]
        real.close()

    def test_statement_error_is_the_drivers_and_leaves_the_connection_usable(
        self, conn: Any, module: Any, table: str, site: Site
    ) -> None:
        cursor = conn.cursor()
        with pytest.raises((module.ProgrammingError, module.OperationalError)):
            cursor.execute("select nothing from nowhere")
        conn.rollback()
        self.fill(conn, table, site)
        with pytest.raises(module.IntegrityError):
            self.fill(conn, table, site)
        conn.rollback()
        cursor.execute("select 1")
        assert tuple(cursor.fetchone()) == (1,)

    def test_closed_cursor_refuses_to_work(self, conn: Any, module: Any) -> None:
        cursor = conn.cursor()
        cursor.execute("select 1")
        cursor.fetchall()
        cursor.close()
        cursor.close()  # harmless
        with pytest.raises(module.Error):
            cursor.execute("select 1")

    def test_sizes_may_be_set(self, conn: Any) -> None:
        cursor = conn.cursor()
        cursor.setinputsizes([1])
        cursor.close()

    def test_cursor_knows_its_connection(self, conn: Any) -> None:
        cursor = conn.cursor()
        assert cursor.connection is conn or cursor.connection == conn
