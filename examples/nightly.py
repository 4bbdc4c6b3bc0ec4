"""A job for cron: `python nightly.py`.  One connection, and patience with a server that is restarting."""

import sys

import connpool
from connpool.adapters.psycopg import PsycopgAdapter

BATCH = 1000


def main() -> int:
    with connpool.ConnectionPool(PsycopgAdapter(), name="nightly", max_size=1) as pool:
        try:
            pool.wait_ready(timeout=60)
        except connpool.PoolUnavailable as exc:
            print(f"nightly: {exc}", file=sys.stderr)
            return 1
        deleted = BATCH
        while deleted == BATCH:
            with pool.connection() as conn:  # one transaction for each batch
                deleted = conn.execute(
                    "delete from orders where number in (select number from orders where item = '' limit %s)",
                    [BATCH],
                ).rowcount
        print("nightly: done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
