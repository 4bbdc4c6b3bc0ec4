"""FastAPI with plain functions, which run in threads: `uvicorn fastapi_threads:app`, in this directory."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio.to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from psycopg import Connection

import connpool
from connpool.adapters.psycopg import PsycopgAdapter

# Each caller that waits has one of the 40 threads.  No more may wait than leaves threads for those who
# have a connection: 40 - 5.
pool = connpool.ConnectionPool(PsycopgAdapter(), name="web", max_size=5, max_waiting=35)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(pool.wait_ready)
    yield
    await anyio.to_thread.run_sync(pool.close)


app = FastAPI(lifespan=lifespan)


@app.exception_handler(connpool.PoolOverloaded)
@app.exception_handler(connpool.PoolTimeout)
@app.exception_handler(connpool.PoolUnavailable)
async def come_back_later(request: Request, exc: connpool.PoolError) -> JSONResponse:
    return JSONResponse({"detail": "busy"}, 503, headers={"Retry-After": "1"})


@app.get("/orders/{number}")
def order(number: int) -> dict[str, int]:
    with pool.connection() as conn:  # in the thread that the endpoint has already
        return {"number": (conn.execute("select %s::int", [number]).fetchone() or (0,))[0]}


def connection() -> Iterator[Connection]:
    with pool.connection() as conn:  # in one thread; left in another
        yield conn


@app.get("/customers/{number}")
def customer(
    number: int, conn: Annotated[Connection, Depends(connection, scope="function")]
) -> dict[str, int]:
    return {"number": (conn.execute("select %s::int", [number]).fetchone() or (0,))[0]}


@app.get("/pool")
async def health() -> dict[str, Any]:
    stats = pool.stats()
    return {"size": stats.size, "in_use": stats.in_use, "waiting": stats.waiting, "opened": stats.opened}
