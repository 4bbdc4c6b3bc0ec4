"""One contender in a process of its own: JSON lines in on stdin, JSON lines out on stdout.

A process each, because a pool's threads and its share of the garbage collector are its own affair, and
because two of the contenders have the same import name.  A worker that is not asked sleeps in a read.

    {"do": "hello", "peer": "DBUtils"}                         -> {"version": "3.2.0"} or {"missing": "why"}
    {"do": "run", "benchmark": "cycle", "dsn": "...", "case": {...}}   -> what the benchmark measured
"""

import ctypes
import gc
import importlib
import json
import os
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .async_peers import AsyncPeer
from .field import EVERYBODY
from .peers import Connpool, Peer, PyPIConnpool

PR_SET_TIMERSLACK = 29


def exact_sleeps() -> None:
    """Ask Linux for sleeps that end in time; by default they may take 0.05 ms more, 5 % of a hold of 1 ms."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


def hello(peer: type[Peer | AsyncPeer]) -> dict[str, Any]:
    """Say which version of the contender is here; make sure that it is the right one of the two connpools."""
    try:
        module = importlib.import_module(peer.module)
    except ImportError:
        return {"missing": f"not installed: there is no module {peer.module}"}
    ours = hasattr(module, "create_pool")
    if peer.distribution == Connpool.distribution:
        assert ours, f"this is another package of the same name: {module.__file__}"
        return {"version": module.__version__}
    if peer is PyPIConnpool:
        assert not ours, "our own package is importable here"
        assert module.__file__, "a package without a file"
        assert Path(module.__file__).is_relative_to(sys.prefix), "not from the environment made for it"
    if peer.distribution is None:
        return {"version": None}
    try:
        return {"version": version(peer.distribution)}
    except PackageNotFoundError:
        return {"missing": f"not installed: {peer.distribution}"}


def run(peer: type[Peer | AsyncPeer], benchmark: str, dsn: str, case: dict[str, Any]) -> dict[str, Any]:
    """Measure once, with the garbage collector in the same state for everybody: on, and nothing old in it."""
    measure = importlib.import_module(f".{benchmark}", __package__).measure
    gc.collect()
    gc.freeze()
    try:
        began, used = time.perf_counter(), time.process_time()
        measured: dict[str, Any] = measure(peer, dsn, **case)
        measured["seconds"] = round(time.perf_counter() - began, 4)
        measured["cpu_seconds"] = round(time.process_time() - used, 4)
        return measured
    finally:
        gc.unfreeze()


def main() -> None:
    exact_sleeps()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # whatever a pool prints is not an answer
    peer: type[Peer | AsyncPeer] = Peer
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "hello":
            peer = EVERYBODY[command["peer"]]
            answer = hello(peer)
        else:
            try:
                answer = run(peer, command["benchmark"], command["dsn"], command["case"])
            except Exception as exc:
                traceback.print_exc()
                answer = {"error": f"{type(exc).__name__}: {exc}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
