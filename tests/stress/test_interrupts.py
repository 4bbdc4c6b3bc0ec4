"""Callers are struck by exceptions at any instant: each gets out, and the pool lacks nothing afterwards."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from connpool import ConnectionPool
from connpool.testing import FakeAdapter, FakeServer

pytestmark = [
    # An interrupt may cost a connection, which is told like any other that was lost.
    pytest.mark.filterwarnings("ignore:pool .* was lost without being given back:ResourceWarning"),
    pytest.mark.stress,
]

STRIKES = 5000  # of each kind
NAIVE = 300  # enough for a pool that puts back what was taken


def struck(pool: str, form: str, where: str, strikes: int) -> dict[str, Any]:
    """Have callers struck in a process of their own; return what is left of their pool."""
    script, seed = Path(__file__).with_name("strikes.py"), random.randrange(2**32)
    command = [sys.executable, str(script), pool, form, where, str(strikes), str(seed)]
    print(*command[1:])
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    print(said)
    return said


@pytest.mark.parametrize("where", ["threads", "main"])
@pytest.mark.parametrize("form", ["with", "acquire", "turns"])
def test_no_place_is_lost_to_strikes(form: str, where: str) -> None:
    left = struck("pool", form, where, STRIKES)
    assert left["lack"] == 0, "not all connections could be acquired within 1 s"
    assert left["in_use"] == left["waiting"] == 0
    assert left["sessions"] == left["size"]
    assert left["opened"] > 10, "hardly a strike met a connection"


@pytest.mark.parametrize("where", ["threads", "main"])
@pytest.mark.parametrize("form", ["with", "acquire"])
def test_naive_pool_loses_places_to_strikes(form: str, where: str) -> None:
    assert struck("naive", form, where, NAIVE)["lack"] > 0


def test_wait_on_the_main_thread_ends_soon_after_ctrl_c() -> None:
    with ConnectionPool(FakeAdapter(FakeServer()), max_size=1) as pool:
        conn = pool.acquire()  # no block, of which a second one inside would be a deadlock
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), pool.connection(timeout=30):
            pass
        assert time.monotonic() - began < 0.3 + 0.2 + 0.1
        timer.join()
        assert pool.stats().waiting == 0
        pool.release(conn)
