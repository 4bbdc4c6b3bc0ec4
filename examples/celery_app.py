"""Celery: `celery -A celery_app worker`, in this directory, with a `celeryconfig.py` that names the broker.

libpq finds the database's server: PGHOST, PGDATABASE and the like say which.
"""

from celery import Celery
from celery.signals import worker_process_shutdown, worker_shutdown

import connpool
from connpool.adapters.psycopg import PsycopgAdapter

app = Celery("orders")
app.config_from_object("celeryconfig")

# For each process of prefork, which has one task at a time; for all threads together in a pool of threads.
pool = connpool.ConnectionPool(PsycopgAdapter(), name="tasks", max_size=2)


# What these three say is that nothing was done: the task may be repeated.
@app.task(
    autoretry_for=(connpool.PoolTimeout, connpool.PoolOverloaded, connpool.PoolUnavailable),
    retry_backoff=True,
    max_retries=10,
)
def place(number: int) -> None:
    with pool.connection() as conn:  # commits at its end
        conn.execute("insert into orders values (%s, pg_backend_pid()::text)", [number])


@worker_process_shutdown.connect  # in each process of prefork
@worker_shutdown.connect  # in the worker itself: with --pool=threads or solo the tasks run there
def close_pool(**kwargs: object) -> None:
    pool.close(timeout=5)
