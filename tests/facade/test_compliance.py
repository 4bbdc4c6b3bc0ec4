"""PEP 249, over each driver on its server, in session and in transaction mode."""

from collections.abc import Iterator
from typing import Any

import pytest
from servers import wait_until

from connpool.threads import housekeeper
from facade.compliance import Compliance
from facade.sites import THERE, Site, SiteOf

MODES = [
    pytest.param((name, mode), id=f"{name}-{mode}", marks=() if name == "sqlite3" else pytest.mark.server)
    for name in THERE
    for mode in ("session", "transaction")
]


@pytest.fixture(scope="class", params=MODES)
def mode(request: pytest.FixtureRequest) -> tuple[str, str]:
    name, mode = request.param
    return name, mode


@pytest.fixture(scope="class")
def site(mode: tuple[str, str], new_site: SiteOf) -> Iterator[Site]:
    with new_site(mode[0]) as site:
        site.make_table()
        yield site


@pytest.fixture(scope="class")
def module(site: Site, mode: tuple[str, str]) -> Any:
    module = site.manage(pooling=mode[1], max_size=2, acquire_timeout=5)
    conn = module.connect(**site.arguments)
    conn.cursor().execute("select 1")  # its threads begin here, and not in a test
    conn.close()
    wait_until(housekeeper.is_alive, what="the housekeeper")  # who dialled tells it after handing over
    return module


class TestCompliance(Compliance):
    """The suite, once for each driver and mode."""
