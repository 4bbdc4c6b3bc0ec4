"""Helpers: a job is done once, or dropped; who starts a thread can be struck before, while and after."""

import threading
import time
from collections.abc import Callable

import pytest
from servers import wait_until

import connpool.threads
from connpool import ConnectionPool
from connpool.testing import FakeAdapter, FakeServer
from connpool.threads import Helpers


class Starts:
    """A `Thread.start` that is struck by an exception."""

    def __init__(self) -> None:
        self.begin: Callable[[threading.Thread], None] = threading.Thread.start
        self.kept: list[threading.Thread] = []  # as `threading` keeps a thread that never began
        self.error: type[BaseException] = KeyboardInterrupt

    def before(self, thread: threading.Thread) -> None:
        self.kept.append(thread)
        raise self.error

    def after(self, thread: threading.Thread) -> None:
        self.begin(thread)
        thread.join()
        raise self.error


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    """Provide starts that are struck, and helpers that nobody else uses."""
    monkeypatch.setattr(connpool.threads, "helpers", Helpers())
    return Starts()


def strike(monkeypatch: pytest.MonkeyPatch, starts: Starts, when: str) -> None:
    """Have each start of a helper struck from here on."""

    def start(thread: threading.Thread) -> None:
        helper = thread.name.startswith("connpool-helper")
        (getattr(starts, when) if helper else starts.begin)(thread)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_dial_whose_helper_never_began_leaves_its_place(starts, monkeypatch):
    server = FakeServer()
    with ConnectionPool(FakeAdapter(server), max_size=1, connect_timeout=None) as pool:
        with monkeypatch.context() as patch:
            strike(patch, starts, "before")
            with pytest.raises(KeyboardInterrupt):
                pool.acquire()
        pool.release(pool.acquire(timeout=1.0))
        assert server.connects == 1
    assert starts.kept


def test_dial_whose_helper_had_begun_is_made_once(starts, monkeypatch):
    server = FakeServer()
    with ConnectionPool(FakeAdapter(server), max_size=1, connect_timeout=None) as pool:
        with monkeypatch.context() as patch:
            strike(patch, starts, "after")
            with pytest.raises(KeyboardInterrupt):
                pool.acquire()
        pool.release(pool.acquire(timeout=1.0))
        assert server.connects == 1


@pytest.mark.parametrize(("when", "done"), [("before", False), ("after", True)])
def test_helper_that_cannot_be_started_says_whether_the_job_was_done(starts, monkeypatch, when, done):
    starts.error = RuntimeError
    jobs: list[float] = []
    with monkeypatch.context() as patch:
        strike(patch, starts, when)
        assert connpool.threads.helpers.start(lambda: jobs.append(time.monotonic())) is done
    assert len(jobs) == done
    for thread in starts.kept:  # it may begin after all
        thread.start()
    assert wait_until(lambda: not any(thread.is_alive() for thread in starts.kept), 5.0)
    assert len(jobs) == done, "done twice: here, and by whoever was told that nobody does it"
