"""What every adapter for PostgreSQL knows of the server itself: how its sessions are reset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from connpool.reset import Part

RESETS: Final[Mapping[Part, str]] = {  # in the order in which DISCARD ALL does them
    Part.CLOSE_CURSORS: "CLOSE ALL",
    Part.RESET_ROLE: "SET SESSION AUTHORIZATION DEFAULT",
    Part.RESET_SETTINGS: "RESET ALL",
    Part.DEALLOCATE: "DEALLOCATE ALL",
    Part.UNLISTEN: "UNLISTEN *",
    # Qualified: the borrower's search_path may begin with a function of this name.
    Part.UNLOCK: "SELECT pg_catalog.pg_advisory_unlock_all()",
    Part.DISCARD_PLANS: "DISCARD PLANS",
    Part.DISCARD_TEMP: "DISCARD TEMP",
    Part.DISCARD_SEQUENCES: "DISCARD SEQUENCES",
}
"""The statement of each part (https://www.postgresql.org/docs/current/sql-discard.html)."""

EVERYTHING: Final = (Part.FULL, Part.DISCARD_ALL)
"""The parts that are ``DISCARD ALL``, which cannot run inside a transaction, or all of the others."""
