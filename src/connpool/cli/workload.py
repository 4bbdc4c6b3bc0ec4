"""Threads that make requests, and what they note: it knows neither the pool nor the screen."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import monotonic as clock
from typing import Generic, TypeVar

from .. import Histogram

C = TypeVar("C")

PAUSE = 0.05
"""Seconds that a thread waits when it got no connection, so that it does not storm the server."""

JOIN_TIMEOUT = 15.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed although it had a connection.

    The error is kept as text: its traceback would hold on to the connection.
    """

    acquired_at: float
    failed_at: float
    session: int
    error: str


class Client(threading.Thread, Generic[C]):
    """One thread, asking again and again for a connection; nobody else writes its figures."""

    def __init__(self, load: Load[C], number: int) -> None:
        # A daemon, so that a second Ctrl-C need not wait for it.
        super().__init__(name=f"client-{number}", daemon=True)
        self._load = load
        self.waits: list[float] = []
        """How long it took to get each connection; as many as it has got."""
        self.done = 0
        """Requests that went through to the end, commit included."""
        self.refusals: list[str] = []
        """Errors instead of a connection."""
        self.failures: list[Failure] = []

    def run(self) -> None:
        """Make requests until the load is stopped."""
        load = self._load
        load.gate.wait()
        while not load.stopped.is_set():
            if not self._request():
                load.stopped.wait(PAUSE)

    def _request(self) -> bool:
        """Make one request; return False if there was no connection for it."""
        load = self._load
        acquired_at, session = 0.0, 0
        asked_at = clock()
        try:
            with load.connection() as conn:
                acquired_at = clock()
                self.waits.append(acquired_at - asked_at)
                session = load.session(conn)
                load.request(conn)
        except Exception as exc:
            error = f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"
            if not acquired_at:
                self.refusals.append(error)
                return False
            self.failures.append(Failure(acquired_at, clock(), session, error))
        else:
            self.done += 1
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a load has done, from its start or in the last second.  Durations are in seconds."""

    seconds: float
    served: int
    """Connections that the threads have got."""
    done: int
    refusals: int
    failures: int
    wait: Histogram

    @property
    def rate(self) -> float:
        """Connections got per second."""
        return self.served / self.seconds if self.seconds else 0.0


class Load(Generic[C]):
    """Threads under way; start it by entering it, stop it with `stop`.

    Args:
        threads: How many.
        connection: Returns a context manager that provides a connection; entering may take long.
        request: What a thread does with the connection.
        session: Returns the number of a connection's session.
    """

    def __init__(
        self,
        threads: int,
        connection: Callable[[], AbstractContextManager[C]],
        request: Callable[[C], None],
        session: Callable[[C], int],
    ) -> None:
        self.connection = connection
        self.request = request
        self.session = session
        self.gate = threading.Event()
        self.stopped = threading.Event()
        self.clients = [Client(self, number) for number in range(1, threads + 1)]
        self.began_at = 0.0
        self._seen = [0] * threads
        self._wait = Histogram()
        self._recent: deque[tuple[Figures, list[float]]] = deque()

    def start(self) -> None:
        """Let all threads begin at the same moment."""
        for client in self.clients:
            client.start()
        self.began_at = clock()
        self._recent.append((self._total(self.began_at), []))
        self.gate.set()

    def stop(self) -> None:
        """Tell all threads to stop, and wait until they have finished what they are at."""
        self.stopped.set()
        self.gate.set()
        deadline = clock() + JOIN_TIMEOUT
        for client in self.clients:
            if client.is_alive():
                client.join(max(0.0, deadline - clock()))

    def look(self) -> tuple[Figures, Figures]:
        """Return the figures from the start, and those of the last second."""
        now = clock()
        fresh = self._fresh_waits()
        self._wait.fold(fresh)
        total = self._total(now)
        self._recent.append((total, fresh))
        while len(self._recent) > 2 and self._recent[1][0].seconds <= total.seconds - 0.95:
            self._recent.popleft()
        before = self._recent[0][0]
        wait = Histogram()
        for _, waits in list(self._recent)[1:]:
            wait.fold(waits)
        recent = Figures(
            seconds=total.seconds - before.seconds,
            served=total.served - before.served,
            done=total.done - before.done,
            refusals=total.refusals - before.refusals,
            failures=total.failures - before.failures,
            wait=wait,
        )
        return total, recent

    def shares(self) -> tuple[int, int]:
        """Return how often the least and the most served thread has got a connection."""
        served = [len(client.waits) for client in self.clients]
        return min(served), max(served)

    def _fresh_waits(self) -> list[float]:
        fresh: list[float] = []
        for position, client in enumerate(self.clients):
            end = len(client.waits)
            fresh += client.waits[self._seen[position] : end]
            self._seen[position] = end
        return fresh

    def _total(self, now: float) -> Figures:
        return Figures(
            seconds=now - self.began_at,
            served=sum(self._seen),
            done=sum(client.done for client in self.clients),
            refusals=sum(len(client.refusals) for client in self.clients),
            failures=sum(len(client.failures) for client in self.clients),
            wait=self._wait.copy(),
        )
