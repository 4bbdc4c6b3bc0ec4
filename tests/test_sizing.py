"""The arithmetic of sizes: the published examples, the rounding, and what is refused."""

from collections.abc import Callable

import pytest

from connpool import sizing
from connpool.sizing import PgBouncerSizes


def test_requests_as_in_the_documentation() -> None:
    assert sizing.for_requests(150, 0.3, 1.5) == 68  # 67.5


def test_half_a_connection_is_one() -> None:
    assert sizing.for_requests(1, 0.1, 1.0) == 1


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (sizing.for_requests(100, 1.1, 1.0), 110),  # 110.00000000000001 in binary
        (sizing.for_rate(3, 0.1, 10.0), 3),  # 3.0000000000000004
        (sizing.for_rate(3, 0.1, 10.01), 4),
        (sizing.budget(100, 0.42), 58),  # 58.00000000000001
        (sizing.budget(10, 0.3), 7),
        (sizing.budget(100, 0.9), 10),  # 9.999999999999998
    ],
)
def test_binary_fractions_neither_add_nor_take_a_connection(size: int, wanted: int) -> None:
    assert size == wanted


def test_littles_law() -> None:
    assert sizing.in_use(200, 0.05) == pytest.approx(10)
    assert sizing.for_rate(200, 0.05, 1.5) == 15


def test_below_the_deadlock_floor_threads_can_wait_for_each_other() -> None:
    floor = sizing.deadlock_floor(3, 4)
    assert floor == 10  # HikariCP's example
    held = [3, 3, 3]  # each has all but its last
    assert floor - sum(held) == 1
    assert sizing.deadlock_floor(50, 1) == 1


def test_orientation_by_cores() -> None:
    assert sizing.server_orientation(4, 1) == 9
    assert sizing.server_orientation(4) == 8


def test_all_processes_count_and_dedicated_connections_too() -> None:
    assert sizing.in_all(10, instances=3, processes=4) == 120
    assert sizing.in_all(10, instances=3, processes=4, dedicated=2) == 144


def test_the_reserve_is_taken_from_the_server() -> None:
    assert sizing.budget(100) == 85
    assert sizing.budget(97, 0.2) == 77  # rounded down
    assert sizing.budget(97, 0) == 97


def test_pgbouncer_never_has_more_than_its_budget() -> None:
    for clients in (1, 7, 100, 5000):
        for pairs in (1, 3):
            for bouncers in (1, 2):
                sizes = sizing.for_pgbouncer(clients, 85, pairs=pairs, bouncers=bouncers)
                together = sizes.default_pool_size + sizes.reserve_pool_size
                assert 1 <= together * pairs * bouncers <= 85
                assert 0 <= sizes.min_pool_size <= sizes.default_pool_size
                assert sizes.max_client_conn >= clients


def test_pgbouncer_gets_the_whole_share_when_clients_need_it() -> None:
    assert sizing.for_pgbouncer(500, 85) == PgBouncerSizes(
        max_client_conn=500, default_pool_size=68, min_pool_size=34, reserve_pool_size=17
    )


def test_pgbouncer_opens_no_more_than_there_are_clients() -> None:
    assert sizing.for_pgbouncer(10, 85).default_pool_size == 10


def test_pgbouncer_needs_a_connection_for_each_of_its_pools() -> None:
    with pytest.raises(ValueError, match="server_budget=5: is less than one .* 6 pools"):
        sizing.for_pgbouncer(10, 5, pairs=3, bouncers=2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: sizing.for_requests(0, 1), ValueError, "concurrency=0: must be more than 0"),
        (lambda: sizing.for_requests(1, -0.3), ValueError, "operations=-0.3: must be more than 0"),
        (lambda: sizing.for_requests(1, 1, 0.9), ValueError, "safety=0.9: must be 1 or more"),
        (lambda: sizing.in_use(float("nan"), 1), ValueError, "rate=nan: must be finite"),
        (lambda: sizing.for_rate(1, float("inf")), ValueError, "held=inf: must be finite"),
        (lambda: sizing.for_rate("1", 1), TypeError, "rate='1': must be a number"),
        (lambda: sizing.for_rate(True, 1), TypeError, "rate=True: must be a number"),
        (lambda: sizing.deadlock_floor(1.5, 2), TypeError, "threads=1.5: must be a whole number"),
        (lambda: sizing.deadlock_floor(2, 0), ValueError, "per_thread=0: .* at least 1"),
        (lambda: sizing.server_orientation(1, -1), ValueError, "spindles=-1: .* at least 0"),
        (lambda: sizing.in_all(1, dedicated=-1), ValueError, "dedicated=-1: .* at least 0"),
        (lambda: sizing.in_all(1, instances=0), ValueError, "instances=0: .* at least 1"),
        (lambda: sizing.budget(0), ValueError, "max_connections=0: .* at least 1"),
        (lambda: sizing.budget(100, 1), ValueError, "reserve=1: must be a share"),
        (lambda: sizing.budget(100, -0.1), ValueError, "reserve=-0.1: must be a share"),
        (lambda: sizing.for_pgbouncer(1, 1, pairs=0), ValueError, "pairs=0: .* at least 1"),
    ],
)
def test_what_is_wrong_is_named(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
