"""Several processes share the work: `python crunch.py`.  Each has one connection, of its own."""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import connpool
from connpool.adapters.psycopg import PsycopgAdapter

# A child that was forked begins anew with it; one that was spawned makes it by importing this module.
pool = connpool.ConnectionPool(PsycopgAdapter(), name="crunch", max_size=1)


def count(item: str) -> tuple[str, int]:
    with pool.connection() as conn:
        row = conn.execute("select count(*) from orders where item = %s", [item]).fetchone()
    return item, row[0] if row else 0


def main(start_method: str = "spawn") -> None:
    with pool.connection() as conn:  # the parent's; no child ever touches it
        items = [item for (item,) in conn.execute("select distinct item from orders order by 1")]
    with ProcessPoolExecutor(4, mp_context=get_context(start_method)) as workers:
        for item, orders in workers.map(count, items):
            print(item, orders)
    pool.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
