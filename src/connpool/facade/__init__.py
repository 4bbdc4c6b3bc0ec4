"""The PEP 249 face of a pool: for code that calls ``connect()`` and ``close()``.

`connect` returns a DB-API connection over a pool, `manage` a driver's module whose ``connect`` pools.
"""

from .managed import Managed, manage
from .opening import connect

__all__ = ("Managed", "connect", "manage")
