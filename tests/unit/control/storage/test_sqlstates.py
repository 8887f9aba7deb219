"""What a database error means, by its code alone: asyncpg has no class for some of CockroachDB's codes."""

import asyncpg
import pytest

from control.storage import sqlstates


def error(code: str) -> asyncpg.PostgresError:
    """The exception that asyncpg makes of a server's error with this code."""
    made = asyncpg.PostgresError.new({"S": "ERROR", "C": code, "M": "words of the server"})
    assert isinstance(made, asyncpg.PostgresError)
    return made


@pytest.mark.parametrize("code", ["08006", "08003", "08S01", "57P01", "57P02", "57P03", "58C00", "58C01", "58C99"])
def test_a_lost_connection_is_known_by_its_code(code: str) -> None:
    assert sqlstates.is_lost(error(code))
    assert not sqlstates.is_conflict(error(code))
    assert not sqlstates.undoes_commit(error(code))


@pytest.mark.parametrize("code", ["53300", "57014"])
def test_a_server_that_is_too_busy_counts_as_lost(code: str) -> None:
    assert sqlstates.is_lost(error(code))


@pytest.mark.parametrize("code", ["40001", "40003", "40P01", "23505"])
def test_a_statement_that_met_another_writer_may_be_repeated(code: str) -> None:
    assert sqlstates.is_conflict(error(code))
    assert not sqlstates.is_lost(error(code))


@pytest.mark.parametrize("code", ["40001", "40P01", "40002", "23505", "23503"])
def test_a_commit_that_was_rolled_back_saved_nothing(code: str) -> None:
    assert sqlstates.undoes_commit(error(code))


@pytest.mark.parametrize("code", ["40003", "58C00", "08006", "57014", "XX000", "XXUUU"])
def test_after_any_other_error_of_commit_the_write_may_be_saved(code: str) -> None:
    assert not sqlstates.undoes_commit(error(code))


@pytest.mark.parametrize("code", ["42P01", "58000", "58P01", "0A000", "22P02", "XX000", ""])
def test_other_errors_are_neither(code: str) -> None:
    assert not sqlstates.is_lost(error(code))
    assert not sqlstates.is_conflict(error(code))


def test_errors_that_no_server_sent() -> None:
    assert sqlstates.is_lost(ConnectionResetError())
    assert sqlstates.is_lost(TimeoutError())
    assert not sqlstates.is_lost(asyncpg.InterfaceError("a mistake of ours"))
    assert sqlstates.of(ValueError()) == ""


@pytest.mark.parametrize("code", ["53100", "53200", "58030", "XX001", "55000", "42501"])
def test_a_server_that_can_do_nothing_is_not_taken_for_a_fault_of_ours(code: str) -> None:
    assert sqlstates.is_failing(error(code))
    assert not sqlstates.is_lost(error(code))
    assert not sqlstates.is_conflict(error(code))


@pytest.mark.parametrize(
    ("message", "context", "table"),
    [
        ("canceling statement due to lock timeout", 'while updating tuple (0,1) in relation "epochs"', "epochs"),
        ("could not obtain lock on row (id)=(1) in epochs@epochs_pkey", "", "epochs"),
        ("canceling statement due to lock timeout", "", ""),
    ],
)
def test_the_table_of_a_locked_row_is_named_where_the_server_does(message: str, context: str, table: str) -> None:
    made = asyncpg.PostgresError.new({"S": "ERROR", "C": "55P03", "M": message, "W": context})
    assert sqlstates.is_locked(made)
    assert not sqlstates.is_lost(made)
    assert sqlstates.locked_table(made) == table
