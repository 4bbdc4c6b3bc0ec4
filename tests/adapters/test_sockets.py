"""What adapters do with a driver's socket behind its back, with sockets that no driver has."""

import os
import resource
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic

import pytest

from adapters.contract import SOON, in_forked_child
from connpool.adapters import sockets
from connpool.adapters.sockets import (
    KEEPALIVE,
    USER_TIMEOUT,
    disconnect,
    keep_alive,
    ready,
    shut_down,
)

OPTIONS = {**KEEPALIVE, "TCP_USER_TIMEOUT": USER_TIMEOUT}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


def options(sock: socket.socket) -> dict[str, int]:
    return {
        "SO_KEEPALIVE": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        **{
            name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in OPTIONS
            if hasattr(socket, name)
        },
    }


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def raising() -> int:
    raise OSError("closed, says the driver")


# -- ready


def test_a_quiet_socket_is_waited_for_no_longer_than_was_asked(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = pair
    for seconds in (-1.0, 0.0):
        began = monotonic()
        assert not ready(ours.fileno(), seconds)
        assert monotonic() - began < SOON
    began = monotonic()
    assert not ready(ours.fileno(), 0.1)
    assert 0.1 <= monotonic() - began < SOON


@pytest.mark.parametrize("how", ["a byte", "the end", "writable"])
def test_a_socket_is_ready_at_once_when_something_has_happened(
    pair: tuple[socket.socket, socket.socket], how: str
) -> None:
    ours, theirs = pair
    if how == "a byte":
        theirs.send(b"x")
    elif how == "the end":
        theirs.close()
    began = monotonic()
    assert ready(ours.fileno(), None, write=how == "writable")
    assert monotonic() - began < SOON


# -- shut_down


def test_shutting_down_ends_what_another_thread_waits_for_and_leaves_the_descriptor_open(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = pair
    heard: list[bytes] = []
    thread = threading.Thread(target=lambda: heard.append(ours.recv(1)), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    before = descriptors()
    shut_down(ours.fileno)
    thread.join(SOON)
    assert heard == [b""]
    assert descriptors() == before
    assert ours.fileno() >= 0


def test_a_number_that_is_somebody_elses_by_now_is_not_shut_down(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    numbers = iter([ours.fileno(), -1])  # closed by its driver, and reused, in between
    shut_down(lambda: next(numbers))
    theirs.send(b"x")
    assert ours.recv(1) == b"x"


def test_what_has_no_socket_is_left_alone_and_leaks_none() -> None:
    reading, writing = os.pipe()
    before = descriptors()
    for step in (shut_down, disconnect):
        for descriptor in (raising, lambda: None, lambda: -1, lambda: 9_999):
            step(descriptor)
    for _ in range(3):
        shut_down(lambda: reading)
        keep_alive(reading)
        keep_alive(9_999)
    assert descriptors() <= before + 1
    os.write(writing, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)


# -- disconnect


@pytest.mark.parametrize("left", ["descriptors left", "none left"])
def test_a_child_is_led_nowhere_and_the_other_side_hears_nothing(
    pair: tuple[socket.socket, socket.socket], left: str
) -> None:
    ours, theirs = pair
    fileno = ours.fileno()

    def child() -> None:
        if left == "none left":
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (fileno + 1, most))
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    os.dup(fileno)
        for _ in range(2):
            disconnect(ours.fileno)
            assert not stat.S_ISSOCK(os.fstat(fileno).st_mode)
            assert not os.get_inheritable(fileno)
            assert ready(fileno)
            for use in (lambda: ours.send(b"x"), lambda: ours.recv(1), lambda: os.write(fileno, b"x")):
                with pytest.raises(OSError):  # noqa: PT011 # ENOTSOCK, EBADF
                    use()

    assert in_forked_child(child) == ""
    assert not ready(theirs.fileno())
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
    ours.close()
    assert theirs.recv(1) == b""


# -- keep_alive


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_new_socket_gets_everything(family: socket.AddressFamily) -> None:
    with closing(socket.socket(family)) as sock:
        keep_alive(sock.fileno())
        expected = {name: value for name, value in OPTIONS.items() if hasattr(socket, name)}
        assert options(sock) == {"SO_KEEPALIVE": 1, **expected}


@pytest.mark.parametrize("name", [name for name in OPTIONS if hasattr(socket, name)])
def test_what_differs_from_a_new_sockets_stays(tcp: socket.socket, name: str) -> None:
    tcp.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), 77)
    for _ in range(2):
        keep_alive(tcp.fileno())
        assert options(tcp)[name] == 77
        others = {other: value for other, value in options(tcp).items() if other != name}
        assert others.items() <= {"SO_KEEPALIVE": 1, **OPTIONS}.items()


@pytest.mark.parametrize("name", ["SO_KEEPALIVE", *(name for name in OPTIONS if hasattr(socket, name))])
def test_what_is_to_be_left_is_left(tcp: socket.socket, name: str) -> None:
    before = options(tcp)[name]
    keep_alive(tcp.fileno(), leave=[name])
    after = options(tcp)
    assert after.pop(name) == before
    assert after.items() <= {"SO_KEEPALIVE": 1, **OPTIONS}.items()


def test_what_the_machines_administrator_has_made_shorter_stays(
    tcp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = options(tcp)
    for name in KEEPALIVE:
        monkeypatch.setitem(sockets.KEEPALIVE, name, 10_000)
    keep_alive(tcp.fileno())
    assert options(tcp) == {**before, "SO_KEEPALIVE": 1, "TCP_USER_TIMEOUT": USER_TIMEOUT}


def test_a_unix_socket_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    keep_alive(ours.fileno())
    assert not ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_system_that_refuses_one_option_gets_the_others(
    tcp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = sockets._defaults(socket.AF_INET)
    monkeypatch.setitem(sockets.KEEPALIVE, "TCP_KEEPIDLE", -1)  # EINVAL
    assert defaults
    keep_alive(tcp.fileno())
    assert options(tcp)["TCP_KEEPIDLE"] == defaults["TCP_KEEPIDLE"]
    assert options(tcp)["TCP_USER_TIMEOUT"] == USER_TIMEOUT
