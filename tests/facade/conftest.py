from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from facade.sites import OnFile, OnMariaDB, OnPostgreSQL, Site, SiteOf


@pytest.fixture(scope="session")
def new_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SiteOf:
    """Provide a function that returns the site of a driver, as a context manager."""

    def make(name: str) -> Site:
        if name.startswith("psycopg"):
            return OnPostgreSQL(name, request.getfixturevalue("postgresql"))
        if name == "sqlite3":
            return OnFile(Path(tmp_path_factory.mktemp("facade")) / "app.db")
        return OnMariaDB(name, request.getfixturevalue("mariadb"))

    return make


@pytest.fixture
def site_of(new_site: SiteOf) -> Iterator[SiteOf]:
    """Provide a function that returns the site of a driver; each one's server is asked at the end."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(new_site(name))
