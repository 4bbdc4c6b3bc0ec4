"""FastAPI with coroutines: `uvicorn fastapi_app:app`, in this directory.

libpq finds the server: PGHOST, PGDATABASE and the like say which.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from psycopg import AsyncConnection
from starlette.types import ASGIApp, Receive, Scope, Send

import connpool
from connpool.adapters.psycopg_async import AsyncPsycopgAdapter

logger = logging.getLogger("app")

# The server looks every second whether somebody waits for the answer still.
adapter = AsyncPsycopgAdapter(options="-c client_connection_check_interval=1s")
pool = connpool.AsyncConnectionPool(adapter, name="web", max_size=5, max_waiting=50)

# -- opening and closing


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with pool:  # closes it, when the last request has been served
        await pool.wait_ready()
        yield


app = FastAPI(lifespan=lifespan)

# -- a deadline for each request


class Deadline:
    """Bounds what a request waits for connections, however many it asks for."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with connpool.deadline(self.seconds):
                await self.app(scope, receive, send)
        else:  # the lifespan lasts longer
            await self.app(scope, receive, send)


app.add_middleware(Deadline, seconds=2.0)

# -- what the client hears when there is no connection


@app.exception_handler(connpool.PoolOverloaded)
@app.exception_handler(connpool.PoolTimeout)
@app.exception_handler(connpool.PoolUnavailable)
async def come_back_later(request: Request, exc: connpool.PoolError) -> JSONResponse:
    logger.warning("%s: %s", request.url.path, exc)  # who has the connections is not for clients
    seconds = 5 if isinstance(exc, connpool.PoolUnavailable) else 1
    return JSONResponse({"detail": "busy"}, 503, headers={"Retry-After": str(seconds)})


# -- a connection for each endpoint that wants one


async def connection() -> AsyncIterator[AsyncConnection]:
    async with pool.connection() as conn:
        yield conn


# With the usual scope, "request", the commit would come after the response.
Connection = Annotated[AsyncConnection, Depends(connection, scope="function")]


@app.get("/orders/{number}")
async def order(number: int, conn: Connection) -> dict[str, int]:
    cursor = await conn.execute("select %s::int", [number])
    return {"number": (await cursor.fetchone() or (0,))[0]}


@app.get("/report")
async def report(conn: Connection, seconds: float = 1.0) -> dict[str, str]:
    await conn.execute("select pg_sleep(%s)", [seconds])
    return {"report": "done"}


@app.get("/export")
async def export() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        # In the stream itself: it runs when the endpoint, and its dependencies, are through.
        async with pool.connection() as conn, conn.cursor("export") as cursor:
            await cursor.execute("select n from generate_series(1, 1000000) n")
            async for (number,) in cursor:
                yield f"{number}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.get("/pool")
async def health() -> dict[str, Any]:
    stats = pool.stats()
    return {"size": stats.size, "in_use": stats.in_use, "waiting": stats.waiting, "opened": stats.opened}
