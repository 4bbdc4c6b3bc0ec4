"""Test databases: created, copied and destroyed while no idle session of ours is in the way.

PostgreSQL neither copies nor drops a database that has a session, and a server that has lost its
database under idle sessions would only tell their next borrowers.  So the pool goes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .wrapper import PooledWrapper


class PooledCreation:
    """Mixed into Django's ``DatabaseCreation``, in front of it."""

    connection: PooledWrapper

    def create_test_db(self, *args: Any, **kwargs: Any) -> str:
        """Leave the real database before its test database is made."""
        self.connection.close()
        self.connection.close_pool_for_good()
        name: str = super().create_test_db(*args, **kwargs)  # type: ignore[misc] # Django's
        return name

    def _clone_test_db(self, *args: Any, **kwargs: Any) -> None:
        self.connection.close()
        self.connection.close_pool_for_good()
        super()._clone_test_db(*args, **kwargs)  # type: ignore[misc] # Django's

    def _destroy_test_db(self, *args: Any, **kwargs: Any) -> None:
        self.connection.close_pool_for_good()
        super()._destroy_test_db(*args, **kwargs)  # type: ignore[misc] # Django's
