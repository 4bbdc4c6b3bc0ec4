"""`AsyncConnectionPool` is recognised, not read: it has its twin's names, parameters and defaults."""

import inspect

import pytest

import connpool
from connpool import AsyncAdapter, AsyncConnectionPool, ConnectionPool
from connpool.adapter import Adapter
from connpool.testing import AsyncFakeAdapter, FakeAdapter, FakeServer

MAY_WAIT = {"acquire", "clear", "close", "release", "wait_ready"}
STEPS = {
    *("begin", "close", "commit", "connect", "idle_limit", "ping"),
    *("read_reset", "remember", "restore", "rollback", "send_reset", "writable"),
}


FOR_FACADES = {
    "adapter",
    "closed",
    "reset_policy",
    "resets_sessions",
    "tell",
    "turns",
}  # which are for threads alone


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def shape(function: object) -> list[tuple[str, object, object]]:
    assert callable(function)
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


def test_both_pools_offer_the_same() -> None:
    assert public(AsyncConnectionPool) == public(ConnectionPool) - FOR_FACADES


@pytest.mark.parametrize("name", sorted({"__init__", *public(AsyncConnectionPool)}))
def test_each_method_has_the_parameters_and_the_first_line_of_its_twin(name: str) -> None:
    ours, twins = getattr(AsyncConnectionPool, name), getattr(ConnectionPool, name)
    assert shape(ours) == shape(twins)
    if name != "__init__":
        assert ours.__doc__.partition("\n")[0] == twins.__doc__.partition("\n")[0]
    assert inspect.iscoroutinefunction(ours) == (name in MAY_WAIT)


@pytest.mark.parametrize(
    ("ours", "twins"), [(AsyncAdapter, Adapter), (AsyncFakeAdapter, FakeAdapter)], ids=["protocol", "fake"]
)
def test_adapters_for_both_have_the_same_methods(ours: type, twins: type) -> None:
    assert public(ours) == public(twins)
    for name in public(twins):
        if inspect.isfunction(method := getattr(ours, name)):
            assert shape(method) == shape(getattr(twins, name))
            assert inspect.iscoroutinefunction(method) == (name in STEPS)


def test_a_pool_for_tasks_is_made_from_a_url_of_a_known_kind_only() -> None:
    for url in ("oracle://u:secret@h/d", "postgresql+nobody://u:secret@h/d", "nobody+asyncpg://u:secret@h/d"):
        with pytest.raises(connpool.PoolMisuse, match="postgresql://") as caught:
            connpool.create_async_pool(url)
        assert "secret" not in str(caught.value)


def test_connections_for_tasks_are_not_guarded_and_that_is_said() -> None:
    with pytest.raises(ValueError, match="debug=True: must be False for AsyncConnectionPool"):
        AsyncConnectionPool(AsyncFakeAdapter(FakeServer()), debug=True)
