"""What holds for every test: nobody leaves a thread of the pool behind."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest
from garbage import keep_out_of_collections

pytest_plugins = ["servers.fixtures"]

ENDS_WITHIN = 2.0  # seconds for threads of the pool to end after a test


def pytest_collection_finish() -> None:
    """Make collections cheap, before the first test asks for one."""
    keep_out_of_collections()


def pool_threads() -> set[threading.Thread]:
    # One that was struck in its start() never began, and is listed for ever.
    threads = [thread for thread in threading.enumerate() if thread.is_alive()]
    return {thread for thread in threads if thread.name.startswith("connpool")}


def left_behind(before: set[threading.Thread], within: float) -> set[threading.Thread]:
    """Return the pool's threads that are new since `before` and outlive the grace."""
    deadline = time.monotonic() + within
    if pool_threads() - before:
        gc.collect()  # a pool that sits in a cycle keeps its threads until then
    for thread in pool_threads() - before:
        thread.join(max(0.0, deadline - time.monotonic()))
    return pool_threads() - before


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fail a test after which threads of the pool live on.

    It is set up before the fixtures that a test asks for, so it looks after they have been torn
    down. Threads that belong to a fixture of a wider scope were there before, and are let be.
    """
    before = pool_threads()
    yield
    if left := left_behind(before, ENDS_WITHIN):
        names = ", ".join(sorted(thread.name for thread in left))
        pytest.fail(f"threads alive {ENDS_WITHIN:g} s after the test: {names}", pytrace=False)
