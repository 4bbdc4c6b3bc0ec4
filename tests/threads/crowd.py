"""Threads for tests: started together, joined with a limit, their errors brought home."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

JOINS_WITHIN = 20.0


class Crowd:
    """Threads that a test starts and must end with; an error in any of them is the test's."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    def start(self, call: Callable[..., object], *args: Any) -> threading.Thread:
        """Run a call in a thread of its own."""

        def run() -> None:
            try:
                call(*args)
            except BaseException as exc:
                self.errors.append(exc)

        thread = threading.Thread(target=run, name=f"crowd-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self) -> None:
        """Wait for all; raise what any of them raised."""
        for thread in self._threads:
            thread.join(JOINS_WITHIN)
            assert not thread.is_alive(), f"{thread.name} hangs"
        if self.errors:
            raise self.errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, *rest: object) -> None:
        if exc_type is None:
            self.join()


def crowd(size: int, call: Callable[[int], object]) -> None:
    """Run ``call(0)`` ... ``call(size - 1)`` in threads that begin together."""
    barrier = threading.Barrier(size)

    def run(number: int) -> None:
        barrier.wait()
        call(number)

    with Crowd() as threads:
        for number in range(size):
            threads.start(run, number)
