"""Ctrl-C while the main thread waits for a connection."""

import signal
import threading
import time

import pytest

from connpool import ConnectionPool
from connpool.testing import FakeAdapter, FakeServer

pytestmark = pytest.mark.stress


def test_wait_on_the_main_thread_ends_soon_after_ctrl_c() -> None:
    with ConnectionPool(FakeAdapter(FakeServer()), max_size=1) as pool, pool.connection():
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), pool.connection(timeout=30):
            pass
        assert time.monotonic() - began < 0.3 + 0.2 + 0.1
        timer.join()
        assert pool.stats().waiting == 0
