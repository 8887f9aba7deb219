"""What a database error means for the transaction that it ended, by its SQLSTATE.

asyncpg's exception classes aren't enough: CockroachDB has codes that asyncpg has no class for.
"""

import re

import asyncpg

_CONFLICTS = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        # The result of a statement is unknown. This is harmless before COMMIT: the whole transaction is abandoned.
        "40003",
        # Another writer took a key after the work had looked for it (PostgreSQL may report this before it finds the
        # conflict); on retry the work sees the other's row and reports the problem.
        "23505",
    }
)
_LOST = (
    "08",  # the connection
    "57P0",  # the server shuts down, crashed, or starts
    "58C",  # CockroachDB: a range is unavailable, or the way to another of its nodes
    "53300",  # too many connections
    "57014",  # the statement was cancelled: its time was up
    "25P03",  # the transaction was idle for too long, as when a process is stopped within it
)
_FAILING = (
    "53",  # too little memory, disk or other means
    "55000",  # the server isn't in a state for this, as during recovery
    "58",  # an error of its system, such as its disk
    "XX",  # an internal error
    "42501",  # permission denied
)
_TABLE = re.compile(r'relation "(\w+)"| in (\w+)@')
"""Where PostgreSQL and CockroachDB name the table of a locked row."""


def of(error: BaseException) -> str:
    """Return the SQLSTATE of an error that the server sent; '' for any other error."""
    return error.sqlstate or "" if isinstance(error, asyncpg.PostgresError) else ""


def is_conflict(error: BaseException) -> bool:
    """Return whether a transaction that failed before COMMIT may succeed when its work is run again as a whole."""
    return of(error) in _CONFLICTS


def is_lost(error: BaseException) -> bool:
    """Return whether the connection or the server is gone, or didn't answer in time; another connection may work."""
    if is_too_large(error):
        return False
    return isinstance(error, OSError | TimeoutError) or of(error).startswith(_LOST)


def is_too_large(error: BaseException) -> bool:
    """Return whether a message was larger than the server accepts (CockroachDB: 16 MiB), so that a retry can't help.

    The state is that of any protocol violation; PgBouncer uses it to report that it has lost the server.
    """
    return of(error) == "08P01" and "message size" in str(error)


def is_locked(error: BaseException) -> bool:
    """Return whether another transaction held a row or a table for longer than the lock timeout."""
    return of(error) == "55P03"


def locked_table(error: BaseException) -> str:
    """Return the table of the locked row if the server names it, else ''."""
    found = _TABLE.search(f"{error} {getattr(error, 'context', '')}")
    return (found[1] or found[2]) if found else ""


def is_read_only(error: BaseException) -> bool:
    """Return whether the server takes no writes, as a standby or a read-only database."""
    return of(error) == "25006"


def is_full(error: BaseException) -> bool:
    """Return whether the server's disk is full."""
    return of(error) == "53100"


def is_failing(error: BaseException) -> bool:
    """Return whether the server answers but can't execute the request for internal reasons."""
    return of(error).startswith(_FAILING) and not is_lost(error)


def is_forbidden(error: BaseException | None) -> bool:
    """Return whether the server denies the user permission."""
    return error is not None and of(error) == "42501"


def undoes_commit(error: BaseException) -> bool:
    """Return whether a COMMIT that failed with this error has certainly saved nothing.

    A rollback (class 40, except 40003) and a violated constraint (class 23) say so. After any other error the
    transaction may have been saved.
    """
    state = of(error)
    return state.startswith(("40", "23")) and state != "40003"
