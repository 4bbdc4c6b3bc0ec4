"""Start one server of each kind, print how to reach them, and wait for Ctrl-C."""

import signal
import sys
import time
from contextlib import ExitStack

from servers import FaultProxy, MariaDB, PgBouncer, PostgreSQL, Server, system_binaries


def show(what: str, server: Server, url: str, began: float) -> None:
    seconds = time.monotonic() - began
    print(f"{what:<20} {seconds:5.2f} s  pid {server.pid:<8} {url}", flush=True)


def main() -> None:
    """Run until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A shell starts background jobs with SIGINT ignored; it should stop those servers too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with ExitStack() as stack:
        began = time.monotonic()
        postgresql = stack.enter_context(PostgreSQL())
        show("PostgreSQL (wheel)", postgresql, postgresql.url, began)
        if system_binaries() is not None:
            began = time.monotonic()
            system = stack.enter_context(PostgreSQL(build="system"))
            show("PostgreSQL (system)", system, system.url, began)
        began = time.monotonic()
        mariadb = stack.enter_context(MariaDB())
        show("MariaDB", mariadb, mariadb.url, began)
        began = time.monotonic()
        pgbouncer = stack.enter_context(PgBouncer(postgresql.address))
        show("PgBouncer", pgbouncer, pgbouncer.url, began)
        proxy = stack.enter_context(FaultProxy(postgresql.address))
        print(f"A fault proxy to PostgreSQL listens on {proxy.host}:{proxy.port}.")
        print("Ctrl-C stops everything.", flush=True)
        signal.pause()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print()
