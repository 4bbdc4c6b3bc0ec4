"""Who has a connection: the line of the user's own code, and what its thread is doing now.

A borrow notes the code and the instruction of its caller, which is cheap and keeps nothing alive, and its
thread.  All else is found when somebody asks: which line that is, what the thread is called, whether it is
still inside that block.

Where gevent has patched `threading`, its greenlets are the threads.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FrameType
from typing import Any

from .engine.records import Site, Slot

_THROUGH = frozenset(
    [
        *("connpool", "contextlib", "asyncio", "concurrent", "threading"),
        *("psycopg", "psycopg2", "pymysql", "MySQLdb", "sqlite3"),
        *("aiomysql", "aiosqlite", "asyncmy", "asyncpg"),
        *("anyio", "django", "fastapi", "flask_sqlalchemy", "gevent", "sqlalchemy", "starlette"),
    ]
)
"""Packages whose frames are looked through: who uses them is whose line is wanted."""


_modules: set[str] = set()
"""Those of their modules that were met: a framework's frames are many, and looked at for each borrow."""


def caller(frame: FrameType | None) -> FrameType | None:
    """Return the nearest frame of the user's own code, from *frame* outwards; ``None`` if there is none."""
    while frame is not None:
        name: str = frame.f_globals.get("__name__") or ""
        if name not in _modules:
            if name.partition(".")[0] not in _THROUGH:
                break
            _modules.add(name)
        frame = frame.f_back
    return frame


_HERE = os.path.join(os.path.dirname(caller.__code__.co_filename), "")  # noqa: PTH118, PTH120 -- text


def site(frame: FrameType) -> Site | None:
    """Return the place in the user's own code that led to a frame."""
    found = caller(frame)
    return found and (found.f_code, found.f_lasti)


def note(slot: Slot, frame: FrameType) -> None:
    """Note the user's place that led to a frame, unless it is noted: the warm path notes its own caller."""
    code = slot.code
    if code is None or code.co_filename.startswith(_HERE):
        slot.code, slot.lasti = site(frame) or (None, 0)


def line(code: CodeType, lasti: int) -> int:
    """Return the number of the line that an instruction belongs to."""
    for start, end, number in code.co_lines():
        if start <= lasti < end and number is not None:
            return number
    return code.co_firstlineno


def where(code: CodeType, lasti: int) -> str:
    """Return a place in the code as people write it: ``app/views.py:41``."""
    return f"{_short(code.co_filename)}:{line(code, lasti)}"


@cache
def _short(path: str) -> str:
    """Return a path relative to the directory that modules are imported from, as far as it is in one."""
    roots = (os.path.join(os.path.abspath(root), "") for root in (*sys.path, os.curdir))  # noqa: PTH100, PTH118 -- text
    longest = max((root for root in roots if path.startswith(root)), key=len, default="")
    return path[len(longest) :].replace("\\", "/")


_GEVENT = "gevent.monkey"

present: Callable[[], object] = threading.get_ident
"""Return what stands for the present borrower; replaced by `Threads.me`, so look it up at use."""


def _present_greenlet() -> object:
    """Return what stands for the present greenlet, and does not keep it alive.

    Not its ident, which is its address: the next greenlet may well be born there.
    """
    owner = weakref.ref(sys.modules["gevent"].getcurrent())
    hash(owner)  # kept in it: of a greenlet that is gone it could not be asked any more
    return owner


class Threads:
    """The borrowers of a `ConnectionPool`."""

    kind = "thread"

    def me(self) -> object:
        """Return what stands for the present borrower.

        Whoever is the first to borrow from a pool comes by here, and so does everybody who waits.  Hence
        this is early enough to find that gevent has patched `threading`, also after our import.
        """
        global present  # noqa: PLW0603 -- an attribute of an object would cost the warm path more
        if _GEVENT in sys.modules and present is not _present_greenlet and _is_patched():
            present = _present_greenlet
        return present()

    def here(self) -> Site | None:
        """Return the present borrower's place in his own code."""
        return site(sys._getframe(1))

    def name(self, owner: object) -> str | None:
        """Return what a borrower is called; ``None`` if it has ended."""
        if not isinstance(owner, weakref.ref):
            name = _thread_name(owner)
            if name is not None and name.startswith("connpool-"):
                # The system gives the identity of a thread that has ended to the next one: the helper that
                # looks after borrowers is the likeliest to have it, and is none.
                return None
            return name or (f"thread {owner}" if owner in sys._current_frames() else None)
        greenlet = owner()
        if greenlet is None or greenlet.dead:
            return None
        # As it was named, or as logs name it, or as its repr() begins: the rest of that shows arguments.
        name = vars(greenlet).get("name") or _thread_name(id(greenlet))
        return name or f"{type(greenlet).__name__} at {id(greenlet):#x}"

    def stands(self, owner: object, code: CodeType | None, lasti: int) -> bool:
        """Tell whether a borrower is inside the block that it borrowed for.

        A frame of that code is, if it has gone on since.  A generator that is suspended in its block is
        not: somebody else may be the one to resume it.
        """
        return any(frame.f_code is code and frame.f_lasti != lasti for frame in self._frames(owner))

    def stack(self, owner: object) -> str:
        """Return a borrower's stack at this moment, as a traceback shows it; empty if it has ended."""
        frame = caller(next(self._frames(owner), None))
        return "".join(traceback.format_stack(frame)) if frame else ""

    def where(self, site: tuple[CodeType, int]) -> str:
        """Return a place as people write it."""
        return where(*site)

    def blocks(self) -> bool:
        """Tell whether an event loop runs in this thread: all its tasks wait when the thread does.

        So do gevent's greenlets where it has not patched `threading`.
        """
        asyncio: Any = sys.modules.get("asyncio")
        if asyncio is not None and asyncio._get_running_loop() is not None:
            return True
        hub: Any = sys.modules.get("gevent.hub")
        if hub is None:
            return False
        loop = getattr(hub, "Hub", None)  # missing while it is being imported
        return loop is not None and isinstance(hub.getcurrent().parent, loop) and not _is_patched()

    def _frames(self, owner: object) -> Iterator[FrameType]:
        frame: FrameType | None
        if not isinstance(owner, weakref.ref):
            frame = sys._current_frames().get(owner)  # type: ignore[call-overload] # a thread's identity
        elif (greenlet := owner()) is sys.modules["gevent"].getcurrent():
            frame = sys._getframe()
        else:
            frame = greenlet and greenlet.gr_frame  # none if it runs in another thread
        while frame is not None:
            yield frame
            frame = frame.f_back


def _is_patched() -> bool:
    """Tell whether gevent has patched `threading`; it is not imported for that."""
    asked = getattr(sys.modules.get(_GEVENT), "is_module_patched", None)
    return asked is not None and asked("threading")


def _thread_name(ident: object) -> str | None:
    return next((thread.name for thread in threading.enumerate() if thread.ident == ident), None)


threads = Threads()
