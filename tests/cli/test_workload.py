"""What the threads of a load note, and how it is summed up."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from connpool.cli.workload import Load


class Source:
    """Gives numbers for connections, and refuses every third."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.asked = 0
        self.done = threading.Event()

    @contextmanager
    def connection(self) -> Iterator[int]:
        self.asked += 1
        if self.asked == self.enough:
            self.done.set()
        if self.asked % 3 == 0:
            raise ConnectionError("full\nand more")
        yield self.asked


def fail_at_four(conn: int) -> None:
    if conn == 4:
        raise ValueError("no such table")


def test_a_refused_connection_is_told_from_a_failed_request() -> None:
    source = Source(enough=9)
    load = Load(1, source.connection, fail_at_four, lambda conn: conn)
    load.start()
    assert source.done.wait(10)
    load.stop()

    (client,) = load.clients
    total, recent = load.look()
    assert set(client.refusals) == {"ConnectionError: full"}
    assert [(failure.session, failure.error) for failure in client.failures] == [
        (4, "ValueError: no such table")
    ]
    assert total.refusals == source.asked // 3
    assert total.served == source.asked - total.refusals == total.wait.count
    assert total.done == total.served - 1
    assert (recent.served, recent.refusals, recent.failures) == (total.served, total.refusals, total.failures)


def test_shares_are_those_of_the_least_and_the_most_served() -> None:
    load = Load(2, Source(enough=1).connection, fail_at_four, lambda conn: conn)
    first, second = load.clients
    first.waits = [0.1]
    second.waits = [0.1, 0.1, 0.1]

    assert load.shares() == (1, 3)


def test_a_load_that_was_never_started_can_be_stopped() -> None:
    Load(2, Source(enough=1).connection, fail_at_four, lambda conn: conn).stop()
