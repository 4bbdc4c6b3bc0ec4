"""Everybody who takes part: threads' pools in threads' benchmarks, asyncio's in those that say `TASKS`."""

import importlib
from typing import Any

from .async_peers import ASYNC_FLOOR, ASYNC_OURS, ASYNC_PEERS, AsyncPeer
from .peers import FLOOR, OURS, PEERS, Peer

EVERYBODY: dict[str, type[Peer | AsyncPeer]] = {**PEERS, **ASYNC_PEERS}


def module_of(benchmark: str) -> Any:
    return importlib.import_module(f".{benchmark}", __package__)


def may_take_part(benchmark: str) -> list[str]:
    """Return the contenders of a benchmark, ours first."""
    module = module_of(benchmark)
    peers: Any = ASYNC_PEERS if getattr(module, "TASKS", False) else PEERS
    return [name for name in peers if module.WITH_FLOOR or name not in (FLOOR, ASYNC_FLOOR)]


def ours_of(benchmark: str) -> str:
    return ASYNC_OURS if getattr(module_of(benchmark), "TASKS", False) else OURS
