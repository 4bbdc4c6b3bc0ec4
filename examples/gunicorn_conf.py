"""gunicorn's settings for `flask_app`: at most workers x max_size sessions, here ten."""

from typing import Any

workers = 2
worker_class = "gthread"
threads = 16
preload_app = True  # the pool is made before the fork; each worker begins anew with it
graceful_timeout = 20


def post_worker_init(worker: Any) -> None:
    """Connect before the first request."""
    from flask_app import pool

    pool.wait_ready(timeout=10)


def worker_exit(server: Any, worker: Any) -> None:
    """Say goodbye to the server: called in the worker, when it has stopped serving."""
    from flask_app import pool

    pool.close(timeout=5)
