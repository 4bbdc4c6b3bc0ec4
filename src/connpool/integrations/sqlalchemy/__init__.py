"""SQLAlchemy's engines on a connpool: ``create_engine(url, poolclass=ConnPool)``.

SQLAlchemy keeps what is its own: connection records and fairies, the events, the dialect's `is_disconnect`,
reset characteristics.  What its `QueuePool` does is done by a `connpool.ConnectionPool` whose connections are
SQLAlchemy's connection records: queueing, dialling, looking at what was idle, rollback, reset, replacement.

How the two meet:

*A record is what is pooled.*  To open a connection is to make a record, which calls the engine's creator and
fires ``connect``; to close it is to close its record, which fires ``close``.  All else is asked of the
driver's own adapter, about the driver's own connection.

*A record may dial by itself*, in its borrower's place: where a ``checkout`` listener has raised
`DisconnectionError`.  What it has then is taken in anew (`connect`).

*Invalidation*.  A record that was invalidated gives its place up as soon as it comes back.  A disconnect that
a dialect recognises evicts the whole pool, as `QueuePool` would do it.

*asyncio.*  A creator of an asyncio dialect runs in a greenlet.  It need not be that of whoever waits: the
pool's own tasks have one each.  Transactions of these dialects are objects of SQLAlchemy's, so it is
SQLAlchemy that rolls them back.

Not known here: what the pool decides, and how a driver shows its state.
"""

from .pools import AsyncConnPool, ConnPool
from .records import EnginePoolDeadlock, EnginePoolOverloaded, EnginePoolTimeout

__all__ = [
    "AsyncConnPool",
    "ConnPool",
    "EnginePoolDeadlock",
    "EnginePoolOverloaded",
    "EnginePoolTimeout",
]
