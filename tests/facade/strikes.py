"""Strike statements in transaction mode as Ctrl-C does, anywhere; `test_interrupts` runs it on its own.

What strikes in finalizers is reported on stderr, and nobody minds.
"""

import importlib
import json
import random
import signal
import sys
import warnings
from types import FrameType
from typing import Any

import connpool

STATEMENTS = 300


class Strike(BaseException):
    pass


def ask(conn: Any, number: int) -> Any:
    cursor = conn.cursor()
    cursor.execute(f"select {number}")
    return next(iter(cursor.fetchone()))


def strike(number: int, frame: FrameType | None) -> None:
    while frame is not None:  # only within the call that is under test
        if frame.f_code is ask.__code__:
            raise Strike
        frame = frame.f_back


def run(driver: str, arguments: dict[str, Any]) -> dict[str, int]:
    plain = importlib.import_module(driver)
    module = connpool.manage(plain, pooling="transaction", max_size=2, acquire_timeout=5)
    single, several = module.connect(**arguments), module.connect(**arguments)
    if driver == "pymysql":
        single.autocommit(True)
    else:
        single.autocommit = True
    chance = random.Random(7)
    counts = {"struck": 0, "answered": 0, "wrong": 0}
    signal.signal(signal.SIGALRM, strike)
    for number in range(STATEMENTS):
        conn = single if number % 2 else several
        # From the first bytecodes to long after a dial.
        signal.setitimer(signal.ITIMER_REAL, 10 ** chance.uniform(-5, -1.5))
        try:
            counts["wrong"] += ask(conn, number) != number
            counts["answered"] += 1
        except Strike:
            counts["struck"] += 1
        except plain.Error:
            pass  # what the driver makes of it
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if conn is several:
            try:
                conn.rollback()
            except plain.Error:
                conn.rollback()
    for conn in (single, several):
        counts["wrong"] += ask(conn, 5) != 5
        conn.close()
    stats = module.pools[0].stats()
    counts["lost"] = stats.in_use + stats.acquires - stats.releases
    module.close()
    return counts


if __name__ == "__main__":
    warnings.simplefilter("ignore", ResourceWarning)
    print(json.dumps(run(**json.load(sys.stdin))))
