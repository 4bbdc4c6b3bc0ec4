"""Hooks on real servers: the tenant is always the borrower's own, and what is set at connect stays."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest
from servers import PostgreSQL

from connpool import ConnectionPool, PoolTimeout
from connpool.adapters.psycopg import PsycopgAdapter
from isolation.leaks import one

pytestmark = pytest.mark.server

tenant: ContextVar[str] = ContextVar("tenant")


def set_tenant(conn: psycopg.Connection[Any]) -> None:
    conn.execute("select set_config('app.tenant', %s, false)", (tenant.get(),))


THREADS, BORROWS = 50, 10_000


@contextmanager
def pool_of(server: PostgreSQL, **options: Any) -> Iterator[ConnectionPool[Any]]:
    autocommit = options.pop("autocommit", True)
    with ConnectionPool(PsycopgAdapter(**server.params, autocommit=autocommit), **options) as pool:
        yield pool


def wrong_tenants(pool: ConnectionPool[Any], borrows: int) -> int:
    """Let many threads borrow, each of its own tenant; return how often one found another's."""
    wrong = []

    def request(number: int) -> None:
        draw = random.Random(number)
        mine = f"tenant {number}"
        tenant.set(mine)
        for _ in range(borrows // THREADS):
            with pool.connection(timeout=60) as conn:
                if one(conn, "select current_setting('app.tenant', true)") != mine:
                    wrong.append(mine)
                if draw.random() < 0.1:
                    conn.execute("set app.tenant = 'stolen'")

    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(request, range(THREADS)):
            pass
    return len(wrong)


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("reset", "borrows"), [("rollback", BORROWS), ("full", 2000)], ids=["rollback", "full"]
)
def test_tenant_is_always_the_borrowers(postgresql: PostgreSQL, reset: Any, borrows: int) -> None:
    with pool_of(postgresql, max_size=5, on_acquire=set_tenant, reset=reset) as pool:
        assert wrong_tenants(pool, borrows) == 0
        assert pool.stats().opened <= 5


def test_tenant_set_at_connect_is_somebody_elses(postgresql: PostgreSQL) -> None:
    """What people do in a pool that has no hook at acquire."""

    def set_some_tenant(conn: psycopg.Connection[Any]) -> None:
        conn.execute("select set_config('app.tenant', 'tenant 0', false)")

    with pool_of(postgresql, max_size=5, on_connect=set_some_tenant) as pool:
        assert wrong_tenants(pool, 500) > 0


def test_tenant_outlives_a_rollback_in_the_block(postgresql: PostgreSQL) -> None:
    with pool_of(postgresql, max_size=1, autocommit=False, on_acquire=set_tenant) as pool:
        for mine in ("first", "second"):
            tenant.set(mine)
            with pool.connection() as conn:
                conn.execute("select 1")
                conn.rollback()
                assert one(conn, "select current_setting('app.tenant')") == mine


def test_hook_that_raises_at_acquire_is_raised_once_and_costs_no_place(postgresql: PostgreSQL) -> None:
    calls = []

    def refuse(conn: Any) -> None:
        calls.append(conn.info.backend_pid)
        if len(calls) <= 3:
            raise ValueError("no tenant")

    with pool_of(postgresql, max_size=1, on_acquire=refuse) as pool:
        for _ in range(3):
            with pytest.raises(ValueError, match="no tenant"), pool.connection():
                pass
        with pool.connection() as conn:
            assert one(conn, "select 1") == 1
        assert len(set(calls)) == len(calls) == 4
        stats = pool.stats()
        assert stats.size == stats.idle == 1
        assert stats.discards["hook"] == 3  # type: ignore[index] # a StrEnum


def test_hook_that_hangs_at_acquire_is_cut_off_at_the_deadline(postgresql: PostgreSQL) -> None:
    with pool_of(postgresql, max_size=1, on_acquire=lambda conn: conn.execute("select pg_sleep(60)")) as pool:
        with pytest.raises(PoolTimeout, match="on_acquire did not return in time") as caught:
            with pool.connection(timeout=0.3):
                pass
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert pool.stats().in_use == 0


def test_what_on_connect_sets_is_what_a_reset_comes_back_to(postgresql: PostgreSQL) -> None:
    seen = []

    def prepare(conn: psycopg.Connection[Any]) -> None:
        seen.append((threading.current_thread().name, tenant.get(None)))
        conn.autocommit = True
        conn.row_factory = psycopg.rows.dict_row
        conn.execute("set timezone = 'Asia/Tokyo'")

    tenant.set("mine")
    for reset in ("rollback", "full"):
        seen.clear()
        with pool_of(postgresql, max_size=1, autocommit=False, on_connect=prepare, reset=reset) as pool:
            for _ in range(3):
                with pool.connection() as conn:
                    assert conn.autocommit
                    assert conn.row_factory is psycopg.rows.dict_row
                    assert one(conn, "show timezone") == "Asia/Tokyo"
                    conn.autocommit = False
                    conn.row_factory = psycopg.rows.tuple_row
                    if reset == "full":
                        conn.execute("set timezone = 'UTC'")
            assert pool.stats().opened == 1
        names, tenants = zip(*seen, strict=True)
        assert set(tenants) == {None}, "not an empty context"
        assert names[0].startswith("connpool"), "a new connection is prepared by whoever opens it"
        assert names[1:] == (threading.current_thread().name,) * (3 if reset == "full" else 0)


def test_hooks_come_in_order(postgresql: PostgreSQL) -> None:
    calls: list[str] = []

    def note(name: str) -> Any:
        return lambda conn: calls.append(name)

    options = {name: note(name) for name in ("on_connect", "on_acquire", "on_release", "on_close")}
    with pool_of(postgresql, max_size=1, reset=["full", note("reset")], **options) as pool:
        with pool.connection():
            calls.append("block")
    assert calls == [
        "on_connect",
        "on_acquire",
        "block",
        "on_release",
        "on_connect",
        "reset",
        "on_close",
    ]
