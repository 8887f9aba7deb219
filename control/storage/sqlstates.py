"""The meaning of a database error for the transaction that it ended, by its SQLSTATE.

asyncpg's exception classes aren't enough: CockroachDB has codes that asyncpg has no class for.
"""

import re

import asyncpg

_CONFLICTS = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        # The result of a statement is unknown. It is harmless before COMMIT: the transaction is given up as a whole.
        "40003",
        # A key that another writer took after the work had looked for it (PostgreSQL may say so before it finds the
        # conflict); the work then sees the other's row and says what is wrong.
        "23505",
    }
)
_LOST = (
    "08",  # the connection
    "57P0",  # the server shuts down, crashed, or starts
    "58C",  # CockroachDB: a range is unavailable, or the way to another of its nodes
    "53300",  # too many connections
    "57014",  # the statement was cancelled: its time was up
    "25P03",  # the transaction was left idle for too long, as by a process that was stopped within it
)
_FAILING = (
    "53",  # too little memory, disk or other means
    "55000",  # the server is in no state for this, as while it recovers
    "58",  # an error of its system, as of its disk
    "XX",  # an error of its own
    "42501",  # it doesn't let us
)
_TABLE = re.compile(r'relation "(\w+)"| in (\w+)@')
"""Where PostgreSQL and CockroachDB name the table of a row that was waited for."""


def of(error: BaseException) -> str:
    """Return the SQLSTATE of an error that the server sent; '' for any other error."""
    return error.sqlstate or "" if isinstance(error, asyncpg.PostgresError) else ""


def is_conflict(error: BaseException) -> bool:
    """Return whether a transaction that failed before COMMIT may succeed when its work is run again as a whole."""
    return of(error) in _CONFLICTS


def is_lost(error: BaseException) -> bool:
    """Return whether the connection or the server is gone, or didn't answer in time; another connection may do."""
    if is_too_large(error):
        return False
    return isinstance(error, OSError | TimeoutError) or of(error).startswith(_LOST)


def is_too_large(error: BaseException) -> bool:
    """Return whether a message was larger than the server takes (CockroachDB: 16 MiB); it always will be.

    The state is that of any violation of the protocol, by which PgBouncer says that it has lost the server.
    """
    return of(error) == "08P01" and "message size" in str(error)


def is_locked(error: BaseException) -> bool:
    """Return whether another transaction held a row, or a table, for longer than the lock timeout."""
    return of(error) == "55P03"


def locked_table(error: BaseException) -> str:
    """Return the table of the row that is locked, where the server names it, else ''."""
    found = _TABLE.search(f"{error} {getattr(error, 'context', '')}")
    return (found[1] or found[2]) if found else ""


def is_read_only(error: BaseException) -> bool:
    """Return whether the server takes no writes, as a standby or a database that was set so."""
    return of(error) == "25006"


def is_full(error: BaseException) -> bool:
    """Return whether the server's disk is full."""
    return of(error) == "53100"


def is_failing(error: BaseException) -> bool:
    """Return whether the server answers, and can't do what it is asked for reasons of its own."""
    return of(error).startswith(_FAILING) and not is_lost(error)


def is_forbidden(error: BaseException | None) -> bool:
    """Return whether the server doesn't let the user do what was asked."""
    return error is not None and of(error) == "42501"


def undoes_commit(error: BaseException) -> bool:
    """Return whether a COMMIT that failed with this error has certainly saved nothing.

    So say a rollback (class 40, but for 40003) and a violated constraint (class 23). After any other error the
    transaction may have been saved.
    """
    state = of(error)
    return state.startswith(("40", "23")) and state != "40003"
