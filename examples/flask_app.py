"""Flask: `gunicorn -c gunicorn_conf.py flask_app:app`, in this directory.

libpq finds the server: PGHOST, PGDATABASE and the like say which.
"""

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, abort, request
from flask.typing import ResponseReturnValue

import connpool
from connpool.adapters.psycopg import PsycopgAdapter

pool = connpool.ConnectionPool(PsycopgAdapter(), name="web", max_size=5)

app = Flask(__name__)

# -- a deadline for each request


class Deadline:
    """Bounds what a request waits for connections, however many it asks for."""

    def __init__(self, app: Callable[..., Iterable[bytes]], seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    def __call__(self, *request: Any) -> Iterable[bytes]:
        with connpool.deadline(self.seconds):
            return self.app(*request)


app.wsgi_app = Deadline(app.wsgi_app, seconds=1.0)  # type: ignore[method-assign] # as Flask's documentation does

# -- what the client hears when there is no connection


@app.errorhandler(connpool.PoolOverloaded)
@app.errorhandler(connpool.PoolTimeout)
@app.errorhandler(connpool.PoolUnavailable)
def come_back_later(exc: connpool.PoolError) -> ResponseReturnValue:
    app.logger.warning("%s: %s", request.path, exc)  # who has the connections is not for clients
    return {"detail": "busy"}, 503, {"Retry-After": "1"}


# -- a connection for each view that wants one


@app.get("/orders/<int:number>")
def order(number: int) -> ResponseReturnValue:
    with pool.connection() as conn:
        row = conn.execute("select item from orders where number = %s", [number]).fetchone()
    return {"number": number, "item": row[0]} if row else ({"detail": "no such order"}, 404)


@app.post("/orders/<int:number>/<item>")
def new_order(number: int, item: str) -> ResponseReturnValue:
    with pool.connection() as conn:
        conn.execute("insert into orders values (%s, %s)", [number, item])
        if item == "moon":
            abort(409)  # an exception, too: nothing is written
    return {"number": number}, 201  # behind the block, which has committed


@app.get("/report")
def report() -> ResponseReturnValue:
    with pool.connection() as conn:
        conn.execute("select pg_sleep(%s)", [request.args.get("seconds", 1.0, float)])
    return {"report": "done"}


@app.get("/pool")
def health() -> ResponseReturnValue:
    stats = pool.stats()
    return {"size": stats.size, "in_use": stats.in_use, "waiting": stats.waiting, "opened": stats.opened}
