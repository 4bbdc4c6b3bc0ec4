"""What every adapter for PostgreSQL knows of the server: its errors, and how its sessions are reset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from connpool.adapter import Fault
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


def one_by_one(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return the parts, with all that there are in place of `EVERYTHING`."""
    return tuple(
        dict.fromkeys(each for part in parts for each in (RESETS if part in EVERYTHING else (part,)))
    )


def reset_message(parts: Iterable[Part], *, in_transaction: bool) -> str:
    """Return the one message that does the parts, after a ROLLBACK if a transaction is open."""
    parts = tuple(parts)
    if not in_transaction and all(part in EVERYTHING for part in parts):
        return "DISCARD ALL"
    statements = [RESETS[part] for part in one_by_one(parts)]
    return "; ".join(["ROLLBACK", *statements] if in_transaction else statements)


READ_ONLY: Final = ("in_hot_standby", "default_transaction_read_only")
"""The parameters that tell of a server that takes no writes; it reports both since version 14."""

IDLE_LIMIT: Final = (
    # As an interval, because it is shown in whatever unit suits: "90s", "2min".
    "SELECT extract(epoch FROM pg_catalog.current_setting('idle_session_timeout', true)::pg_catalog.interval)"
)
"""Asks for the seconds idle after which the server ends the session: NULL before version 14, 0 for never."""

_FAULTS: Final = {  # https://www.postgresql.org/docs/current/errcodes-appendix.html
    "08": Fault.DEAD,  # connection exceptions
    "28": Fault.AUTH,  # invalid authorization specification
    "25006": Fault.DEMOTED,  # read_only_sql_transaction
    "3D000": Fault.AUTH,  # invalid_catalog_name: no such database
    "53300": Fault.FULL,  # too_many_connections
    "57P01": Fault.DEAD,  # admin_shutdown
    "57P02": Fault.DEAD,  # crash_shutdown
    "57P03": Fault.STARTING,  # cannot_connect_now
    "57P04": Fault.DEAD,  # database_dropped
    "57P05": Fault.DEAD,  # idle_session_timeout
    "25P03": Fault.DEAD,  # idle_in_transaction_session_timeout
    "25P04": Fault.DEAD,  # transaction_timeout
}


def fault_of(sqlstate: str, severity: str | None, *, dialling: bool) -> Fault:
    """Classify what a server said, by its code and its severity in English."""
    fault = _FAULTS.get(sqlstate) or _FAULTS.get(sqlstate[:2]) or Fault.ORDINARY
    if severity == "ERROR":
        # The session lives on, whatever the code: dblink and foreign tables report the faults
        # of other servers with the classes 08 and 28.
        return fault if fault is Fault.DEMOTED else Fault.ORDINARY
    if fault is Fault.AUTH and not dialling:
        fault = Fault.ORDINARY  # a statement's own: nobody is let in or kept out any more
    if fault is Fault.ORDINARY and severity in ("FATAL", "PANIC"):
        return Fault.DEAD  # the server ends the session with either
    return fault


SAYS: Final[Mapping[str, str]] = {
    "connect": IDLE_LIMIT,
    "require": "; ".join(f"SHOW {name}" for name in READ_ONLY),
    "ping": "an empty query",
    "begin": "BEGIN, with the connection's isolation level, READ ONLY and DEFERRABLE if they are set",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "restore": "nothing: settings of the driver's own",
    "demoted": "; ".join(f"SHOW {name}" for name in READ_ONLY),
    **{str(part): statement for part, statement in RESETS.items()},
    **{str(part): "DISCARD ALL; in a transaction ROLLBACK and its parts, one by one" for part in EVERYTHING},
}
"""What an adapter for PostgreSQL says on which occasion, if it says no more."""
