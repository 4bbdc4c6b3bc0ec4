"""A PostgreSQL that follows another one by streaming replication, until it is promoted."""

from servers.postgresql import PostgreSQL, reachable_binaries
from servers.process import wait_until


class Standby(PostgreSQL):
    """A hot standby: it answers queries and takes no writes.

    Args:
        primary: the server to follow; it must be running.
    """

    name = "PostgreSQL standby"
    ready_text = "database system is ready to accept read-only connections"

    def __init__(self, primary: PostgreSQL) -> None:
        super().__init__(build=primary.build, max_connections=primary.max_connections)
        self.primary = primary

    def promote(self) -> None:
        """Let it take writes from here on."""
        self.execute("select pg_promote(wait => true)")
        wait_until(
            lambda: self.execute("select pg_is_in_recovery()") == [(False,)], what="the standby is promoted"
        )

    def _prepare(self) -> None:
        self._binaries = reachable_binaries(self._find_binaries(), self._account, self.directory / "programs")
        host, port = self.primary.address
        self._run(
            *(self._binaries / "pg_basebackup", "-D", self._data, "-h", host, "-p", str(port)),
            *("-U", self.superuser, "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast"),
        )

    def _populate(self) -> None:
        pass  # it has what its primary has
