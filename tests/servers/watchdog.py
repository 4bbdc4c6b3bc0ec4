"""A small process that cleans up after the one that started it, when that one no longer can.

It is run as a script and reads from standard input what exists: one JSON object per line, such as
`{"process": 4711, "signal": 2}`, `{"directory": "/tmp/..."}`, or `{"gone": 4711}`. The kernel
closes that pipe when its writer dies, also of SIGTERM, SIGKILL or a crash. Then the watchdog stops
what is left. After an orderly exit nothing is left.

Why not prctl(PR_SET_PDEATHSIG)? It fires when the *thread* that started the child ends, it needs a
preexec_fn (unsafe with threads), it is lost when the child changes its user, and it removes no
directories. Why not signal handlers? They belong to the program that uses this package.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

# No annotations come with psutil, and its stubs may or may not be installed.
import psutil  # type: ignore[import-untyped, unused-ignore]

GRACE = 5.0  # seconds for a server to obey its stop signal
READY = b"ready\n"  # written to standard output, once


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process is gone; a zombie that nobody buries counts as gone."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_ended(processes: Iterable[psutil.Process], timeout: float) -> bool:
    """Wait until all have ended; tell whether they did."""
    deadline = time.monotonic() + timeout
    while not all(has_ended(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def kill_tree(root: psutil.Process) -> None:
    """Kill a process and everything below it, and wait until they have ended."""
    family = [root]
    with contextlib.suppress(psutil.NoSuchProcess):
        root.suspend()  # so that it starts no child behind our back
        family += root.children(recursive=True)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_ended(family, GRACE)


def end(process: psutil.Process, stop_signal: int) -> None:
    """Stop a process with its own signal; with all below it if that is SIGKILL, or in vain."""
    if stop_signal != signal.SIGKILL:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(stop_signal)
        if wait_ended([process], GRACE):
            return
    kill_tree(process)


def remove(directory: str) -> None:
    """Remove a directory, into which a program that nobody had noted yet may still write."""
    deadline = time.monotonic() + GRACE
    while Path(directory).exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.01)


class Estate:
    """What the writer of the pipe will leave behind if it dies now."""

    def __init__(self) -> None:
        self._processes: dict[int, tuple[psutil.Process, int]] = {}
        self._directories: list[str] = []

    def note(self, message: dict[str, object]) -> None:
        """Take one line of the protocol."""
        match message:
            case {"process": int(pid), "signal": int(stop_signal)}:
                # Made at once: psutil remembers the start time, so a reused pid is never hit.
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._processes[pid] = (psutil.Process(pid), stop_signal)
            case {"directory": str(path)}:
                self._directories.append(path)
            case {"gone": int(pid)}:
                self._processes.pop(pid, None)
            case {"gone": str(path)}:
                self._directories.remove(path)

    def settle(self) -> None:
        """Stop the processes, the youngest first, and remove the directories."""
        for process, stop_signal in reversed(self._processes.values()):
            end(process, stop_signal)
        for directory in self._directories:
            remove(directory)


def watch(lines: TextIO) -> None:
    """Listen until the writer is gone, then settle its estate."""
    estate = Estate()
    for line in lines:
        if line.endswith("\n"):  # the writer may have died in the middle of one
            estate.note(json.loads(line))
    estate.settle()


if __name__ == "__main__":
    # Its time comes after the others were told to stop, so it must not stop with them.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    os.write(1, READY)
    # Our starter's standard error would be kept open for those who read it to its end.
    with Path(os.devnull).open("w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    watch(sys.stdin)
